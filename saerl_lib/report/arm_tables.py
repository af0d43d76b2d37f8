"""From the results of the grid to study_runs.csv and study_summary.csv (columns in `schemas`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saerl_lib.report.arm_effects import outcome_values, outcomes
from saerl_lib.report.paired import Comparison, compare
from saerl_lib.report.statistics import area_under_curve, pass_at_k, steps_to_target

if TYPE_CHECKING:
    from saerl_lib.train.arms import Arm

PASS_SET = "hardest"
"""The set that the paper's way of averaging scores by Pass@k, as AIME24."""
BASELINE, PAPER = "grpo", "paper"
RUN = ["arm", "seed"]


def set_rates(evaluations: pd.DataFrame, problems: int | None = None) -> pd.DataFrame:
    """Percent by arm, seed, step and set: columns avg (Avg@k) and passed (Pass@k), of the first `problems` or of all."""
    frame = evaluations
    if problems is not None:
        frame = frame.groupby([*RUN, "step", "eval_set"]).head(problems)
    passed = np.concatenate([pass_at_k(int(k), part["correct"].to_numpy(), int(k)) for k, part in frame.groupby("attempts")])
    index = np.concatenate([part.index.to_numpy() for _, part in frame.groupby("attempts")])
    frame = frame.assign(avg=100.0 * (frame["correct"] / frame["attempts"]), passed=pd.Series(100 * passed, index=index))
    return frame.groupby([*RUN, "step", "eval_set"])[["avg", "passed"]].mean().reset_index()


def runs_table(evaluations: pd.DataFrame, curve: pd.DataFrame) -> pd.DataFrame:
    """Rows of study_runs.csv: one an arm, seed and evaluation step."""
    evaluations = evaluations.reset_index(drop=True)
    rates = set_rates(evaluations)
    wide = rates.pivot(index=[*RUN, "step"], columns="eval_set", values="avg")
    scored = rates.assign(value=rates["avg"].where(rates["eval_set"] != PASS_SET, rates["passed"]))
    table = wide.add_prefix("avg_").assign(
        mean_avg=wide.mean(axis=1),
        mean_with_pass=scored.groupby([*RUN, "step"])["value"].mean(),
        mean_without_pass_set=wide.drop(columns=PASS_SET).mean(axis=1),
    )
    table[f"pass_{PASS_SET}"] = rates[rates["eval_set"] == PASS_SET].set_index([*RUN, "step"])["passed"]
    facts = evaluations.groupby([*RUN, "step"]).agg(
        update=("update", "first"), rollouts=("rollouts", "first"), problems=("sample_id", "size"),
        completions=("attempts", "sum"),
    )  # fmt: skip
    return facts.join(table).join(_training(facts, curve)).reset_index()


def _training(facts: pd.DataFrame, curve: pd.DataFrame) -> pd.DataFrame:
    """Means over the updates since the evaluation before: zero-variance share, entropy, gradient norm."""
    names = ["zero_variance_share", "entropy", "grad_norm"]
    rows = {}
    for run, part in facts.groupby(level=RUN):
        own = curve[(curve["arm"] == run[0]) & (curve["seed"] == run[1])]
        before = 0
        for (arm, seed, step), update in part["update"].items():
            inside = own[(own["step"] > before) & (own["step"] <= update)]
            rows[arm, seed, step] = inside[names].mean()
            before = update
    return pd.DataFrame(rows).T.rename_axis([*RUN, "step"])


def target_steps(evaluations: pd.DataFrame, arms: Sequence[str], problems: int, budget: int) -> pd.DataFrame:
    """Steps to target of every run and set: arm, seed, eval_set, target, steps, reached.

    A set's target is the lowest final accuracy among `arms`, the paper's, each averaged over its seeds (paper, section
    5). All curves are of the first `problems` of a set. A run that never reaches it counts with the budget.
    """
    rates = set_rates(evaluations.reset_index(drop=True), problems)
    final = rates[(rates["step"] == rates["step"].max()) & rates["arm"].isin(arms)]
    target = final.groupby(["eval_set", "arm"])["avg"].mean().groupby("eval_set").min()
    rows = []
    for (arm, seed, name), part in rates.groupby([*RUN, "eval_set"]):
        part = part.sort_values("step")
        found = steps_to_target(part["step"].tolist(), part["avg"].tolist(), target[name])
        rows.append((arm, seed, name, target[name], budget if found is None else found, found is not None))
    return pd.DataFrame(rows, columns=[*RUN, "eval_set", "target", "steps", "reached"])


def targets_by_policy(evaluations: pd.DataFrame, arms: Mapping[str, Arm], problems: int, budget: int) -> pd.DataFrame:
    """`target_steps` of each trained policy by itself: its targets come from the paper's arms, or from all where it has none."""
    present, parts = set(evaluations["arm"]), []
    for model in dict.fromkeys(arm.model for arm in arms.values()):
        own = [name for name, arm in arms.items() if name in present and arm.model == model]
        rated = [name for name in own if arms[name].group == PAPER] or own
        if own:
            parts.append(target_steps(evaluations[evaluations["arm"].isin(own)], rated, problems, budget))
    return pd.concat(parts, ignore_index=True)


def against_random(arms: Mapping[str, Arm], present: Sequence[str]) -> list[tuple[str, str]]:
    """Every arm with what it is compared with: `grpo`, or for an arm of another policy its baseline, which trains that policy."""
    found = []
    for name in present:
        baseline = BASELINE if arms[name].model == arms[BASELINE].model else arms[name].baseline
        if name != baseline and baseline in present:
            found.append((name, baseline))
    return found


@dataclass(frozen=True)
class Sizes:
    """What the preparation of an arm is counted from."""

    pool: int
    """Kept prompts N."""
    labelled: int
    """|L|."""
    attempts: int
    """Attempts a prompt behind a measured pass rate."""


def preparation(cost: Sequence[str], sizes: Sizes) -> dict[str, int]:
    """Labels, rollouts, encoded samples and forward passes before training, from an arm's `cost`.

    `encode` is the pool and L; the filter that chose the kept pool is charged to no arm, since all of them train on it.

    >>> found = preparation(("encode", "label_subset"), Sizes(3200, 3000, 16))
    >>> found["prep_labels"], found["prep_encoded"]
    (3000, 6200)
    """
    known = {
        "label_pool": ("prep_labels", sizes.pool),
        "label_subset": ("prep_labels", sizes.labelled),
        "rollouts_16": ("prep_rollouts", sizes.pool * sizes.attempts),
        "rollouts_1": ("prep_rollouts", sizes.pool),
        "encode": ("prep_encoded", sizes.pool + sizes.labelled),
        "policy_forward": ("prep_forward", sizes.pool),
    }
    found = dict.fromkeys(("prep_labels", "prep_rollouts", "prep_encoded", "prep_forward"), 0)
    for item in cost:
        if item not in known:
            raise ValueError(f"cost item {item!r} is not known; choose from {', '.join(known)}")
        name, amount = known[item]
        found[name] += amount
    return found


def summary_table(
    results: Mapping[str, pd.DataFrame], arms: Mapping[str, Arm], problems: int, budget: int, sizes: Sizes
) -> pd.DataFrame:
    """Rows of study_summary.csv: one an arm, in the order of `arms`; differences are corrected by Holm over all arms."""
    evaluations = results["evaluations"].reset_index(drop=True)
    values = outcome_values(evaluations)
    outcome, present = outcomes(values), [name for name in arms if name in set(evaluations["arm"])]
    against = {c.arm: c for c in compare(values, against_random(arms, present))}
    runs = runs_table(evaluations, results["curve"])
    steps = targets_by_policy(evaluations, arms, problems, budget)
    rows = []
    for name in present:
        own = outcome.loc[name]
        row = {"arm": name, "title": arms[name].title, "group": arms[name].group, "n_seeds": len(own)}
        row |= {"outcome": own.mean(), "outcome_sd": own.std(ddof=1)} | _difference(against.get(name))
        row |= _final(runs, name) | _speed(runs, steps, name) | _budget(results, name)
        rows.append(row | preparation(arms[name].cost, sizes))
    return pd.DataFrame(rows)


def _difference(found: Comparison | None) -> dict[str, float]:
    names = ("difference", "ci_low", "ci_high", "holm_low", "holm_high", "detectable")
    if found is None:
        return dict.fromkeys(names, np.nan)
    values = (*found.interval, found.corrected.low, found.corrected.high, found.detectable)
    return dict(zip(names, values, strict=True))


def _final(runs: pd.DataFrame, name: str) -> dict[str, float]:
    last = runs[(runs["arm"] == name) & (runs["step"] == runs["step"].max())]
    columns = [c for c in runs if c.startswith(("avg_", "pass_", "mean_"))]
    return {f"final_{c}": last[c].mean() for c in columns}


def _speed(runs: pd.DataFrame, steps: pd.DataFrame, name: str) -> dict[str, float]:
    own, part = runs[runs["arm"] == name], steps[steps["arm"] == name]
    areas = [area_under_curve(r["step"].to_numpy(), r["mean_avg"].to_numpy()) for _, r in own.groupby("seed")]
    training = own[own["step"] > 0][["zero_variance_share", "entropy", "grad_norm"]].mean()
    found = {"steps_to_target": part["steps"].mean(), "targets_reached": part["reached"].mean(), "area": float(np.mean(areas))}
    return found | training.to_dict()


def _budget(results: Mapping[str, pd.DataFrame], name: str) -> dict[str, float]:
    spent = results["budget"][results["budget"]["arm"] == name]
    columns = ["updates", "prompts", "distinct_prompts", "rollouts", "rollouts_used", "tokens"]
    made = results["provenance"][results["provenance"]["arm"] == name]
    return spent[columns].mean().to_dict() | made[["training_s", "evaluation_s"]].mean().to_dict()
