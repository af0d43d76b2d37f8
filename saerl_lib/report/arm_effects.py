"""What a run of the study is worth, problem by problem, so that seeds and problems can be told apart (ours).

Outcome of a run: the mean over the six sets of Avg@k, averaged over the last three evaluations. Small evaluations use
the first problems of a set, the last one all of them; each problem carries the weight that makes the mean over a set's
problems the outcome. Columns of the tables are (evaluations, sample_id): how many of the evaluations hold a problem.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

LAST = 3
"""Evaluations that the outcome averages."""


def outcome_values(evaluations: pd.DataFrame, last: int = LAST) -> dict[str, pd.DataFrame]:
    """Set name -> values [(arm, seed) x problem] in percent whose mean over problems is the run's outcome on that set.

    `evaluations` has one row a run, step and problem: arm, seed, step, eval_set, sample_id, attempts, correct.
    Raises ValueError when a run lacks one of the last evaluations or was evaluated on other problems.
    """
    steps = np.sort(evaluations["step"].unique())[-last:]
    frame = evaluations[evaluations["step"].isin(steps)]
    seen = frame.groupby(["arm", "seed", "step"])["sample_id"].nunique().unstack("step")
    if seen.isna().to_numpy().any() or (seen.nunique() > 1).any():
        raise ValueError(
            f"not every run was evaluated at steps {steps.tolist()} on the same problems: finish or rerun those that were not"
        )
    rate = 100.0 * (frame["correct"] / frame["attempts"]) / len(steps)
    out = {}
    for name, part in frame.assign(rate=rate).groupby("eval_set"):
        problems = part["sample_id"].nunique()
        counts = part.groupby("step")["sample_id"].nunique()
        scaled = part["rate"] * problems / part["step"].map(counts)
        table = part.assign(rate=scaled).groupby(["arm", "seed", "sample_id"])["rate"].sum().unstack("sample_id")
        out[str(name)] = _by_evaluations(table.fillna(0.0), part.groupby("sample_id")["step"].nunique())
    return out


def final_values(evaluations: pd.DataFrame, passed: str = "") -> dict[str, pd.DataFrame]:
    """As `outcome_values`, of the last evaluation alone; the set named `passed` counts by Pass@k, the others by Avg@k."""
    frame = evaluations[evaluations["step"] == evaluations["step"].max()]
    rate = frame["correct"] / frame["attempts"]
    rate = rate.where(frame["eval_set"] != passed, (frame["correct"] > 0).astype(float))
    out = {}
    for name, part in frame.assign(rate=100 * rate).groupby("eval_set"):
        out[str(name)] = _by_evaluations(part.pivot(index=["arm", "seed"], columns="sample_id", values="rate"))
    return out


def _by_evaluations(table: pd.DataFrame, counts: pd.Series | None = None) -> pd.DataFrame:
    number = [1 if counts is None else int(counts[name]) for name in table.columns]
    return table.set_axis(pd.MultiIndex.from_arrays([number, table.columns], names=["evaluations", "sample_id"]), axis=1)


def outcomes(values: Mapping[str, pd.DataFrame]) -> pd.Series:
    """(arm, seed) -> outcome in percent, the mean over sets."""
    return pd.concat([table.mean(axis=1) for table in values.values()], axis=1).mean(axis=1)
