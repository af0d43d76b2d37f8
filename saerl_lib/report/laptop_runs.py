"""From the evaluations of all runs to learning curves, paired differences and steps to target.

The evaluations have one row a run, step and problem: arm, seed, step, eval_set, full, sample_id, attempts, correct.
"""

from __future__ import annotations

import pandas as pd

from saerl_lib.report.effects import final_differences
from saerl_lib.report.statistics import avg_at_k, minimum_detectable_effect, paired_t_interval, pass_at_k, steps_to_target

KEYS = ["arm", "seed", "step", "eval_set"]


def learning_curves(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Rows of learning_curves.csv: Avg@k and Pass@k a set, and the mean of the sets' Avg@k as 'all'; k is n_samples."""
    rows = []
    for (arm, seed, step, name, attempts), part in evaluations.groupby([*KEYS, "attempts"], sort=True):
        rates = part["correct"].to_numpy() / attempts
        common = (arm, seed, step, name)
        rows.append((*common, "avg_at_k", avg_at_k(rates[:, None]), len(part), attempts))
        passed = pass_at_k(attempts, part["correct"].to_numpy(), attempts)
        rows.append((*common, "pass_at_k", float(passed.mean()), len(part), attempts))
    curves = pd.DataFrame(rows, columns=[*KEYS, "metric", "value", "n_problems", "n_samples"])
    means = curves[curves["metric"] == "avg_at_k"].groupby(["arm", "seed", "step", "n_samples"], as_index=False)
    mean = means.agg(value=("value", "mean"), n_problems=("n_problems", "sum")).assign(eval_set="all", metric="avg_at_k")
    return pd.concat([curves, mean[curves.columns]], ignore_index=True)


def paired_differences(curves: pd.DataFrame) -> pd.DataFrame:
    """Rows of paired_difference.csv: saerl minus grpo at the last step in percent points, t-interval over matched seeds."""
    sets = list(dict.fromkeys(curves["eval_set"]))
    wanted = [(name, "avg_at_k") for name in sets] + ([("hardest", "pass_at_k")] if "hardest" in sets else [])
    last = curves[curves["step"] == curves["step"].max()]
    rows = []
    for name, metric in wanted:
        differences = final_differences(curves, {name: metric})
        interval = paired_t_interval(differences)
        effect = minimum_detectable_effect(differences) if len(differences) > 1 else float("nan")
        problems = int(last.loc[last["eval_set"] == name, "n_problems"].max())
        rows.append((name, metric, interval.value, interval.low, interval.high, len(differences), problems, effect))
    columns = ["eval_set", "metric", "difference", "ci_low", "ci_high", "n_seeds", "n_problems", "minimum_detectable_effect"]
    return pd.DataFrame(rows, columns=columns)


def steps_to_targets(evaluations: pd.DataFrame, problems: int) -> pd.DataFrame:
    """Rows of steps_to_target.csv: the target is the lowest final accuracy among the arms, mean over seeds (paper, section 5).

    A run reaches it at its first evaluation at or above it; empty when none is. Every evaluation counts on the first
    `problems` problems of a set, those of the small evaluations, so that target and curve speak of the same problems.
    """
    keys = ["arm", "seed", "step", "eval_set"]
    curves = learning_curves(evaluations.groupby(keys, sort=False).head(problems))
    values = curves[curves["metric"] == "avg_at_k"]
    final = values[values["step"] == values["step"].max()]
    rows = []
    for name, part in values.groupby("eval_set", sort=False):
        target = float(final[final["eval_set"] == name].groupby("arm")["value"].mean().min())
        for (arm, seed), run in part.groupby(["arm", "seed"]):
            run = run.sort_values("step")
            reached = steps_to_target(run["step"].tolist(), run["value"].tolist(), target)
            rows.append((name, target, arm, seed, reached))
    frame = pd.DataFrame(rows, columns=["eval_set", "target", "arm", "seed", "steps"])
    return frame.astype({"steps": "Int64"})
