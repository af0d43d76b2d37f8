"""The BatchPlan: one row a sample, in training order, with the reasons of its place (paper, section D.3); and two plans compared.

The trainer follows `position`; its log of sample ids must equal `BatchPlan.ids`. Ids are one Arrow array beside columns of
numbers, and whatever visits every sample does so a column at a time: tens of millions of rows fit in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import stats

COLUMNS = {
    "position": "int64", "step": "int64", "slot": "int64", "sample_id": "str", "cluster": "int64",
    "raw_difficulty": "float64", "ranking_score": "float64", "swapped_with": "int64",
}
"""position = step * b + slot; swapped_with is the step that a tail sample was exchanged with, -1 for a sample that stayed."""
_META = (b"order", b"prompts_per_step", b"swapped_per_batch")
Ids = Sequence[str] | np.ndarray | pd.Series | pa.Array | pa.ChunkedArray
"""Sample ids, [N]."""
HASHED_ROWS = 2**16
"""Ids joined to one string at a time."""
MOVED = 0.1
"""A sample has moved when its step differs by more than this share of the run; of two random orders 0.81 of them have."""


class PlanError(ValueError):
    """The plan visits a sample twice or its table is malformed."""


def as_arrow(ids: Ids) -> pa.LargeStringArray:
    """The ids as one Arrow array [N], without a copy where they are one already."""
    found = ids if isinstance(ids, (pa.Array, pa.ChunkedArray)) else pa.array(ids, pa.large_string())
    found = found.cast(pa.large_string())
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def by_name(ids: Ids) -> np.ndarray:
    """Row numbers [N] of the ids in ascending order, that of Python's strings; equal ids stay in their order.

    >>> by_name(["b", "a10", "a9"]).tolist()
    [1, 2, 0]
    """
    return pc.sort_indices(as_arrow(ids)).to_numpy().astype(np.int64)


def rows_of(ids: Ids, pool_ids: Ids) -> np.ndarray:
    """Row number in pool_ids [N] of each of ids [n], the first of equal ones, -1 for an id that is not there, int [n].

    >>> rows_of(["b", "x", "a"], ["a", "b"]).tolist()
    [1, -1, 0]
    """
    found = pc.index_in(as_arrow(ids), value_set=as_arrow(pool_ids))
    return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


class Pool(NamedTuple):
    """The samples to plan, N rows; see `make_pool`."""

    ids: pa.LargeStringArray
    clusters: np.ndarray
    ranking: np.ndarray
    raw: np.ndarray
    lengths: np.ndarray


def make_pool(ids: Ids, clusters: np.ndarray, ranking: np.ndarray, raw: np.ndarray, lengths: np.ndarray) -> Pool:
    """The samples to plan: unique ids, clusters int [N], ranking scores r (larger is harder), d_hat, which breaks ties of r, and
    lengths in tokens, above 0. Raises PlanError with the fix for unequal rows, repeated ids, and other values."""
    scores = [np.asarray(values, dtype=np.float64) for values in (ranking, raw, lengths)]
    pool = Pool(as_arrow(ids), np.asarray(clusters, dtype=np.int64), *scores)
    sizes = {name: len(values) for name, values in pool._asdict().items()}
    if len(set(sizes.values())) > 1 or not sizes["ids"]:
        raise PlanError(f"row counts must be equal and above zero, found {sizes}: pass the arrays of the same samples")
    if repeated := _repeated(pool.ids):
        raise PlanError(f"ids holds {len(repeated)} repeated ids, first {repeated[:3]}: give every sample its own id")
    for name in ("ranking", "raw", "lengths"):
        if not np.isfinite(getattr(pool, name)).all():
            raise PlanError(f"{name} holds non-finite values: score every sample before planning")
    if (pool.lengths <= 0).any():
        raise PlanError("lengths holds values of 0 or less: count the tokens of every sample")
    return pool


class Batches(NamedTuple):
    """T batches in training order: stage int [T], ascending from 0, and rows of the pool int [T, b] in slot order."""

    stage: np.ndarray
    rows: np.ndarray


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
        position, position // b, position % b, pd.array(pool.ids.take(pa.array(order_of_rows)), dtype="str"),
        pool.clusters[order_of_rows], pool.raw[order_of_rows], pool.ranking[order_of_rows], swapped_with,
    )  # fmt: skip
    table = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)), copy=False).astype(COLUMNS)
    return BatchPlan(table, order, b, h)


def require_full_batches(n: int, prompts_per_step: int) -> None:
    """Raise PlanError unless n samples fill whole batches."""
    if n % prompts_per_step:
        raise PlanError(
            f"{n} samples are no multiple of prompts_per_step={prompts_per_step}: keep "
            f"{n - n % prompts_per_step} samples, or the last step would be short"
        )


def validate(plan: BatchPlan) -> None:
    """Check that the plan visits no sample twice, in numbered batches of its `prompts_per_step`. Raises PlanError that names the
    first three repeated ids, or the column that is off."""
    if repeated := sorted(_repeated(as_arrow(plan.table["sample_id"]))):
        raise PlanError(f"the plan holds {len(repeated)} repeated ids, first {repeated[:3]}: build it again from its pool")
    position, b = np.arange(len(plan.table)), plan.prompts_per_step
    require_full_batches(len(position), b)
    for name, values in {"position": position, "step": position // b, "slot": position % b}.items():
        if not np.array_equal(plan.table[name].to_numpy(), values):
            raise PlanError(f"column {name} does not number batches of prompts_per_step={b}: build the plan again")


def plan_hash(plan: BatchPlan) -> str:
    """SHA-256 over the ordered ids, one a line."""
    ids, digest = as_arrow(plan.table["sample_id"]), hashlib.sha256()
    for start in range(0, len(ids), HASHED_ROWS):
        digest.update(("\n" * (start > 0) + "\n".join(ids.slice(start, HASHED_ROWS).to_pylist())).encode())
    return digest.hexdigest()


def write_plan(plan: BatchPlan, path: Path) -> None:
    """Store the plan as Parquet; equal plans give equal bytes with the same pyarrow."""
    values = (plan.order, str(plan.prompts_per_step), str(plan.swapped_per_batch))
    table = pa.Table.from_pandas(plan.table, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(dict(zip(_META, values, strict=True))), path)


def read_plan(path: Path) -> BatchPlan:
    """The stored plan. Raises PlanError when the file is missing or is no plan."""
    if not path.is_file():
        raise PlanError(f"{path} is missing: pass a plan, such as plans/saerl.parquet of a profile or the one that `plan` wrote")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise PlanError(f"{path} is no batch plan: {error}") from error
    meta = table.schema.metadata or {}
    if any(key not in meta for key in _META) or set(table.column_names) != set(COLUMNS):
        raise PlanError(f"{path} is no batch plan: write it with write_plan")
    order, b, h = (meta[key].decode() for key in _META)
    return BatchPlan(table.to_pandas()[list(COLUMNS)].astype(COLUMNS), order, int(b), int(h))


def read_whole_plan(path: Path) -> BatchPlan:
    """The stored plan, checked to be whole batches of distinct samples; an arm's own order may repeat some. Raises PlanError."""
    plan = read_plan(path)
    validate(plan)
    return plan


def step_shift(a: BatchPlan, b: BatchPlan) -> np.ndarray:
    """Absolute difference of each common sample's step as a share of the run, [n], in A's order. Raises PlanError when the plans
    have no sample in common."""
    in_a, in_b = _common(a, b)
    return np.abs(in_a // a.prompts_per_step / a.steps - in_b // b.prompts_per_step / b.steps)


def has_moved(shift: np.ndarray) -> np.ndarray:
    """Mask of shifts above `MOVED`; a shift of exactly a tenth has not moved, whatever its last digit."""
    return shift > MOVED + 1e-12


def plan_diff(a: BatchPlan, b: BatchPlan) -> dict[str, float]:
    """Two plans compared: n samples in both, only_a and only_b; of the common ones share_moved (`has_moved`), mean_step_shift in
    steps of A and the rank correlation of the positions (NaN for one); same_batches: share of A's batches with the same samples
    in B. Raises PlanError when no sample is common."""
    orders, shift = _common(a, b), step_shift(a, b)
    together = np.unique(orders[0] // a.prompts_per_step * b.steps + orders[1] // b.prompts_per_step, return_counts=True)[1]
    return {
        "n": len(shift), "only_a": len(a.ids) - len(shift), "only_b": len(b.ids) - len(shift),
        "share_moved": float(has_moved(shift).mean()), "mean_step_shift": float(shift.mean() * a.steps),
        "spearman": float(stats.spearmanr(*orders)[0]) if len(shift) > 1 else float("nan"),
        "same_batches": int((together == max(a.prompts_per_step, b.prompts_per_step)).sum()) / a.steps,
    }  # fmt: skip


def run_plan_diff(first: Path, second: Path) -> int:
    """`plan diff A B`: print `plan_diff` of two stored plans, as JSON in the last line. Raises what it and `read_plan` raise."""
    a, b = read_plan(first), read_plan(second)
    found = {name: round(value, 6) for name, value in plan_diff(a, b).items()} | {"steps_a": a.steps, "steps_b": b.steps}
    table = pd.Series(found, dtype=object)
    print(f"{table.to_string()}\n{table.to_json()}")
    return 0


def _common(a: BatchPlan, b: BatchPlan) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the common samples in A and in B, [n] each, in A's order."""
    position = rows_of(a.table["sample_id"], b.table["sample_id"])
    in_a = np.flatnonzero(position >= 0)
    if not len(in_a):
        raise PlanError("the plans have no sample in common: compare plans of one pool")
    return in_a, position[in_a]


def _repeated(ids: pa.LargeStringArray) -> list[str]:
    """Ids that occur more than once, in order of their first appearance."""
    values, counts = pc.value_counts(ids).flatten()
    return values.filter(pc.greater(counts, 1)).to_pylist()
