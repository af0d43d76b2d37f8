"""Two plans of one pool side by side: how far samples move and how much of their company they keep (ours).

A sample has moved when its step differs by more than a tenth of the run; of two random orders 0.81 of the samples have.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from saerl_lib.plan.batch_plan import BatchPlan, PlanError, read_plan

MOVED = 0.1
"""A sample has moved when its step differs by more than this share of the run."""


@dataclass(frozen=True)
class PlanDiff:
    """What differs between plans A and B; all but the ids is about the samples of both."""

    n: int
    """Samples in both."""
    only_a: tuple[str, ...]
    """Ids in A alone, sorted."""
    only_b: tuple[str, ...]
    """Ids in B alone, sorted."""
    share_moved: float
    """Share of samples whose step differs by more than `MOVED` of the run."""
    mean_step_shift: float
    """Mean absolute difference of the step, in steps of A."""
    spearman: float
    """Of the positions; NaN for one sample."""
    kendall: float
    """Of the positions; NaN for one sample."""
    same_batches: float
    """Share of A's batches that hold the same samples as some batch of B."""
    company: float
    """Mean Jaccard index of a sample's batch-mates in A and in B; 1 where it has none in either."""


def step_shift(a: BatchPlan, b: BatchPlan) -> np.ndarray:
    """Absolute difference of each common sample's step as a share of the run, [n], in A's order.

    Raises PlanError when the plans have no sample in common.
    """
    both = _common(a, b)
    return np.abs(both["step_a"] / a.steps - both["step_b"] / b.steps).to_numpy()


def has_moved(shift: np.ndarray) -> np.ndarray:
    """Mask of shifts above `MOVED`; a shift of exactly a tenth has not moved, whatever its last digit.

    >>> has_moved(np.array([3 / 10 - 2 / 10, 0.11])).tolist()
    [False, True]
    """
    return shift > MOVED + 1e-12


def plan_diff(a: BatchPlan, b: BatchPlan) -> PlanDiff:
    """Compare two plans. Raises PlanError when they have no sample in common."""
    both, shift = _common(a, b), step_shift(a, b)
    ids_a, ids_b = set(a.ids), set(b.ids)
    orders = (both["position_a"], both["position_b"])
    spearman, kendall = (
        float(statistic(*orders)[0]) if len(both) > 1 else float("nan") for statistic in (stats.spearmanr, stats.kendalltau)
    )
    size_a, size_b = (len(plan.table) / plan.steps for plan in (a, b))
    together = both.groupby(["step_a", "step_b"])["step_a"].transform("size").to_numpy()
    union = size_a + size_b - together - 1
    company = np.where(union > 0, (together - 1) / np.maximum(union, 1), 1.0)
    same = both[(together == size_a) & (together == size_b)]["step_a"].nunique()
    return PlanDiff(
        len(both), tuple(sorted(ids_a - ids_b)), tuple(sorted(ids_b - ids_a)), float(has_moved(shift).mean()),
        float(shift.mean() * a.steps), spearman, kendall, same / a.steps, float(company.mean()),
    )  # fmt: skip


def run_plan_diff(first: Path, second: Path) -> int:
    """`plan diff A B`: print the comparison of two stored plans; the last line is one JSON object.

    Raises PlanError when a file is missing or no plan, or when the plans have no sample in common.
    """
    a, b = (_read(path) for path in (first, second))
    found = plan_diff(a, b)
    print(f"A  {first}: {a.order}, {a.steps} steps of {a.prompts_per_step}")
    print(f"B  {second}: {b.order}, {b.steps} steps of {b.prompts_per_step}")
    values = {**dataclasses.asdict(found), "only_a": len(found.only_a), "only_b": len(found.only_b)}
    for name, value in values.items():
        print(f"{LABELS[name]:55s} {value:>10,}" if isinstance(value, int) else f"{LABELS[name]:55s} {value:10.3f}")
    for side, ids in (("A", found.only_a), ("B", found.only_b)):
        if ids:
            print(f"first ids in {side} alone: {', '.join(ids[:3])}")
    line = {name: None if value != value else round(value, 6) for name, value in values.items()}
    print(json.dumps({**line, "steps_a": a.steps, "steps_b": b.steps}))
    return 0


LABELS = {
    "n": "samples in both plans",
    "only_a": "samples in A alone",
    "only_b": "samples in B alone",
    "share_moved": "share moved by more than a tenth of the run",
    "mean_step_shift": "mean shift, steps",
    "spearman": "Spearman of the positions",
    "kendall": "Kendall of the positions",
    "same_batches": "share of A's batches with the same samples in B",
    "company": "mean Jaccard of a sample's batch-mates",
}
"""Words of the printed table."""


def _read(path: Path) -> BatchPlan:
    if not path.is_file():
        raise PlanError(f"{path} is missing: pass a Parquet file of the stage plans, such as plans/saerl.parquet")
    try:
        return read_plan(path)
    except (OSError, ValueError) as error:
        raise error if isinstance(error, PlanError) else PlanError(f"{path} is no batch plan: {error}") from error


def _common(a: BatchPlan, b: BatchPlan) -> pd.DataFrame:
    columns = ["sample_id", "position", "step"]
    both = a.table[columns].merge(b.table[columns], on="sample_id", suffixes=("_a", "_b"), validate="one_to_one")
    if both.empty:
        raise PlanError("the plans have no sample in common: compare plans of one pool")
    return both
