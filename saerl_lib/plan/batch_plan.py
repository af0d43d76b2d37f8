"""The BatchPlan: one row a sample, in training order, with the reasons of its place (paper, section D.3).

The trainer follows `position`; its log of sample ids must equal `BatchPlan.ids`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = {
    "position": "int64", "step": "int64", "slot": "int64", "sample_id": "str", "cluster": "int64",
    "raw_difficulty": "float64", "ranking_score": "float64", "swapped_with": "int64",
}
"""position = step * b + slot; swapped_with is the step that a tail sample was exchanged with, -1 for a sample that stayed."""
_META = (b"order", b"prompts_per_step", b"swapped_per_batch")


class PlanError(ValueError):
    """The plan is no permutation of the pool or its table is malformed."""


@dataclass(frozen=True)
class Pool:
    """The samples to plan, N rows."""

    ids: np.ndarray
    """Unique sample ids, str [N]."""
    clusters: np.ndarray
    """int [N]."""
    ranking: np.ndarray
    """Ranking score r, larger is harder, float [N]."""
    raw: np.ndarray
    """d_hat, breaks ties of r, float [N]."""
    lengths: np.ndarray
    """Sequence length in tokens, above 0, float [N]."""

    def __post_init__(self) -> None:
        sizes = {name: len(getattr(self, name)) for name in ("ids", "clusters", "ranking", "raw", "lengths")}
        if len(set(sizes.values())) > 1 or not sizes["ids"]:
            raise PlanError(f"row counts must be equal and above zero, found {sizes}: pass the arrays of the same samples")
        repeated = [name for name, count in Counter(self.ids.tolist()).items() if count > 1]
        if repeated:
            raise PlanError(f"ids holds {len(repeated)} repeated ids, first {repeated[:3]}: give every sample its own id")
        for name in ("ranking", "raw", "lengths"):
            if not np.isfinite(getattr(self, name)).all():
                raise PlanError(f"{name} holds non-finite values: score every sample before planning")
        if (self.lengths <= 0).any():
            raise PlanError("lengths holds values of 0 or less: count the tokens of every sample")


def make_pool(
    ids: Sequence[str], clusters: np.ndarray, ranking: np.ndarray, raw: np.ndarray, lengths: np.ndarray
) -> Pool:
    """A checked Pool from sequences. Raises PlanError as `Pool` says."""
    scores = [np.asarray(values, dtype=np.float64) for values in (ranking, raw, lengths)]
    return Pool(np.asarray(ids, dtype=str), np.asarray(clusters, dtype=np.int64), *scores)


@dataclass(frozen=True)
class BatchPlan:
    """An order of the pool, cut into batches."""

    table: pd.DataFrame
    """Columns of `COLUMNS`, sorted by position."""
    order: str
    """Name of the order, `orders.ORDERS`."""
    prompts_per_step: int
    """b."""
    swapped_per_batch: int = 0
    """h that was asked for; 0 for orders without mixing."""

    @property
    def ids(self) -> list[str]:
        """Sample ids in training order."""
        return self.table["sample_id"].tolist()

    @property
    def steps(self) -> int:
        """Number of batches T."""
        return len(self.table) // self.prompts_per_step

    @property
    def unpaired_share(self) -> float:
        """Share of batches that exchanged no tail; 1 without mixing."""
        return float((self.table.groupby("step")["swapped_with"].max() < 0).mean())


def plan_of(pool: Pool, order_of_rows: np.ndarray, swapped_with: np.ndarray, order: str, b: int, h: int = 0) -> BatchPlan:
    """The plan that visits the pool in `order_of_rows` (row numbers [N]); swapped_with [N] is by position."""
    position = np.arange(len(order_of_rows))
    columns = (
        position, position // b, position % b, pool.ids[order_of_rows], pool.clusters[order_of_rows],
        pool.raw[order_of_rows], pool.ranking[order_of_rows], swapped_with,
    )
    table = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True))).astype(COLUMNS)
    return BatchPlan(table, order, b, h)


def require_full_batches(n: int, prompts_per_step: int) -> None:
    """Raise PlanError unless n samples fill whole batches."""
    if n % prompts_per_step:
        raise PlanError(
            f"{n} samples are no multiple of prompts_per_step={prompts_per_step}: keep "
            f"{n - n % prompts_per_step} samples, or the last step would be short"
        )


def validate(plan: BatchPlan, pool_ids: Sequence[str], prompts_per_step: int) -> None:
    """Check that the plan visits every id of the pool once, in numbered batches of `prompts_per_step`.

    Raises PlanError that names the first three missing, doubled or unknown ids, or the malformed column.
    """
    if list(plan.table.columns) != list(COLUMNS):
        raise PlanError(f"the plan has columns {list(plan.table.columns)}, expected {list(COLUMNS)}: build it again")
    planned, pool = Counter(plan.ids), set(np.asarray(pool_ids, dtype=str).tolist())
    problems = {
        "missing": sorted(pool - planned.keys()),
        "doubled": sorted(name for name, count in planned.items() if count > 1),
        "unknown": sorted(planned.keys() - pool),
    }
    found = [f"{len(names)} {kind} ids, first {names[:3]}" for kind, names in problems.items() if names]
    if found:
        raise PlanError(f"the plan is no permutation of the pool: {'; '.join(found)}: build it again from this pool")
    require_full_batches(len(plan.table), prompts_per_step)
    position = np.arange(len(plan.table))
    expected = {"position": position, "step": position // prompts_per_step, "slot": position % prompts_per_step}
    for name, values in expected.items():
        if not np.array_equal(plan.table[name].to_numpy(), values):
            raise PlanError(f"column {name} does not number batches of prompts_per_step={prompts_per_step}: build the plan again")


def plan_hash(plan: BatchPlan) -> str:
    """SHA-256 over the ordered ids, one a line."""
    return hashlib.sha256("\n".join(plan.ids).encode()).hexdigest()


def write_plan(plan: BatchPlan, path: Path) -> None:
    """Store the plan as Parquet; equal plans give equal bytes with the same pyarrow."""
    values = (plan.order, str(plan.prompts_per_step), str(plan.swapped_per_batch))
    table = pa.Table.from_pandas(plan.table, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(dict(zip(_META, values, strict=True))), path)


def read_plan(path: Path) -> BatchPlan:
    """The stored plan. Raises PlanError when the file is no plan."""
    table = pq.read_table(path)
    meta = table.schema.metadata or {}
    if any(key not in meta for key in _META) or set(table.column_names) != set(COLUMNS):
        raise PlanError(f"{path} is no batch plan: write it with write_plan")
    order, b, h = (meta[key].decode() for key in _META)
    return BatchPlan(table.to_pandas()[list(COLUMNS)].astype(COLUMNS), order, int(b), int(h))
