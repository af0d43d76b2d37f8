"""The study's outcome of a run (ours)."""

from __future__ import annotations

import pandas as pd


def final_outcome(evaluations: pd.DataFrame, last: int = 3) -> pd.DataFrame:
    """The study's outcome of each run: mean over sets of Avg@k in percent, averaged over the last `last` evaluations.

    `evaluations` has one row a run, step and problem: arm, seed, step, eval_set, attempts, correct. Returns arm, seed,
    outcome. Raises ValueError when a run has fewer evaluations.
    """
    rates = evaluations.assign(rate=100 * evaluations["correct"].astype(float) / evaluations["attempts"])
    sets = rates.groupby(["arm", "seed", "step", "eval_set"])["rate"].mean()
    curve = sets.groupby(["arm", "seed", "step"]).mean()
    counts = curve.groupby(["arm", "seed"]).size()
    if (counts < last).any():
        raise ValueError(f"run {counts.idxmin()} has {counts.min()} evaluations, the outcome averages the last {last}")
    return curve.groupby(["arm", "seed"]).tail(last).groupby(["arm", "seed"]).mean().rename("outcome").reset_index()
