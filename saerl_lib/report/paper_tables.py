"""The paper's Tables 4, 5, 7, 8 and Figure 3 beside the study's.

Rows of study_paper_tables.csv, study_batch.csv and study_mixing.csv. The paper's values lie in `paper_tables.csv` beside this
file; arms of the 7B policy end in `_large`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from saerl_lib.report.arm_effects import final_values, outcome_values, outcomes
from saerl_lib.report.arm_tables import PASS_SET, set_rates
from saerl_lib.report.paired import ALPHA, over_seeds, paired_estimate
from saerl_lib.report.statistics import Interval, paired_t_interval

BENCHMARKS = {
    "AIME24": "hardest", "AMC23": "mid_a", "GSM8K": "easy_a", "MATH500": "easy_b", "MinervaMath": "mid_b",
    "OlympiadBench": "hard", "mean": "mean",
}  # fmt: skip
"""The paper's benchmark -> the set of the world that stands for it (ours: two easy, two middle, hard, small and hardest)."""
MIXING = ("minus_mix", "mix_1", "saerl_grpo", "mix_4", "mix_8")
"""Arms of Figure 3, by rising h."""
BATCH = (("saerl_grpo", "grpo"), ("saerl_4b", "grpo_4b"))
"""Table 8: SAERL and its baseline at b, then at 4b."""
COLUMNS = ["table", "arm", "benchmark", "eval_set", "paper_value", "our_value", "ci_low", "ci_high", "n_seeds"]
FEWER_PROMPTS = 115_200 / 153_600
"""Prompts that the paper's b = 128 saw, as a share of those of b = 512."""


def paper_values() -> pd.DataFrame:
    """The paper's numbers: table, model, arm, column, value."""
    return pd.read_csv(Path(__file__).with_name("paper_tables.csv"))


def last_rates(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Percent of the last evaluation: arm, seed, eval_set (and "mean" over sets), avg (Avg@k), passed (Pass@k)."""
    last = evaluations[evaluations["step"] == evaluations["step"].max()].reset_index(drop=True)
    rates = set_rates(last).drop(columns="step")
    return pd.concat([rates, rates.groupby(["arm", "seed"])[["avg", "passed"]].mean().reset_index().assign(eval_set="mean")])


def _interval(values: pd.Series) -> Interval:
    if len(values) < 2:
        return Interval(float(values.mean()), math.nan, math.nan)
    return paired_t_interval(values.to_numpy())


def beside_paper(evaluations: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Rows of study_paper_tables.csv: every cell of Tables 4, 5, 7 and 8 with the study's mean and its t-interval over seeds.

    `steps` has arm, seed, eval_set, steps. Cells of arms that were not trained stay empty. Tables 4 and 7 count the
    hardest set by Pass@k, as the paper does.
    """
    rates = last_rates(evaluations)
    scored = rates[rates["eval_set"] != "mean"]
    scored = scored.assign(value=scored["avg"].where(scored["eval_set"] != PASS_SET, scored["passed"]))
    steps = steps.rename(columns={"steps": "value"})
    sources = {
        "4": _with_mean(scored), "7": _with_mean(scored), "5": _with_mean(steps),
        "8 Avg@8": rates.assign(value=rates["avg"]), "8 Pass@8": rates.assign(value=rates["passed"]),
    }  # fmt: skip
    rows = []
    paper = paper_values()
    for row in paper[paper["table"].isin(sources)].itertuples():
        source, name = sources[str(row.table)], BENCHMARKS[row.column]
        own = source[(source["arm"] == row.arm) & (source["eval_set"] == name)]["value"]
        found = _interval(own) if len(own) else Interval(math.nan, math.nan, math.nan)
        rows.append((row.table, row.arm, row.column, name, row.value, found.value, found.low, found.high, len(own)))
    return pd.DataFrame(rows + _gains(evaluations, paper), columns=COLUMNS)


def _gains(evaluations: pd.DataFrame, paper: pd.DataFrame) -> list[tuple[object, ...]]:
    """Rows "4 gain": each arm of Table 4 minus its baseline, with the interval of `paired`, beside the paper's difference."""
    four = paper[paper["table"] == "4"].set_index(["arm", "column"])["value"]
    values, present, rows = final_values(evaluations, PASS_SET), set(evaluations["arm"]), []
    for (arm, column), value in four.items():
        baseline = baseline_of(arm)
        if arm == baseline:
            continue
        name = BENCHMARKS[column]
        own, found, n = values if name == "mean" else {name: values[name]}, Interval(math.nan, math.nan, math.nan), 0
        if {arm, baseline} <= present:
            estimate = paired_estimate(own, arm, baseline)
            found, n = estimate.interval(ALPHA), estimate.n_seeds
        rows.append(("4 gain", arm, column, name, value - four[baseline, column], *found, n))
    return rows


def baseline_of(arm: str) -> str:
    """What an arm of Table 4 is compared with: DAPO for SAERL on DAPO, GRPO of the same policy for the others."""
    return "dapo" if arm == "saerl_dapo" else "grpo_large" if arm.endswith("_large") else "grpo"


def table_view(frame: pd.DataFrame, table: str) -> pd.DataFrame:
    """One table of study_paper_tables.csv to look at: a row an arm, under each benchmark the paper's value and ours."""
    part = frame[(frame["table"] == table) & (frame["n_seeds"] > 0)]
    wide = part.pivot(index="arm", columns="benchmark", values=["paper_value", "our_value"]).swaplevel(axis=1).round(1)
    order = [(name, column) for name in BENCHMARKS for column in ("paper_value", "our_value") if (name, column) in wide.columns]
    names = {"paper_value": "paper", "our_value": "here"}
    return wide.loc[part["arm"].unique(), order].rename(columns=names).rename_axis(columns=[None, None], index=None)


def _with_mean(frame: pd.DataFrame) -> pd.DataFrame:
    """arm, seed, eval_set, value with the mean over sets added."""
    frame = frame[["arm", "seed", "eval_set", "value"]]
    return pd.concat([frame, frame.groupby(["arm", "seed"])["value"].mean().reset_index().assign(eval_set="mean")])


def batch_readings(evaluations: pd.DataFrame, sizes: Mapping[str, int]) -> pd.DataFrame:
    """Rows of study_batch.csv: SAERL's gain at b and at 4b, and the difference of the two gains, in two readings of Table 8.

    "equal prompts": both sizes see the same number. "the paper's counts": b stops at `FEWER_PROMPTS` of what 4b sees.
    `sizes` is prompts a step by arm. Outcomes as everywhere, paired by the seeds that all four arms have, t-intervals.
    Empty when an arm is missing.
    """
    columns = ["reading", "comparison", "prompts_per_step", "difference", "ci_low", "ci_high", "n_seeds"]
    arms = [name for pair in BATCH for name in pair]
    evaluations = evaluations[evaluations["arm"].isin(arms)].reset_index(drop=True)
    if set(evaluations["arm"]) != set(arms):
        return pd.DataFrame(columns=columns)
    last, rows, own_sizes = evaluations["step"].max(), [], [sizes[arm] for arm, _ in BATCH]
    shared = set.intersection(*(set(part["seed"]) for _, part in evaluations.groupby("arm")))
    for reading, until in (("equal prompts", 1.0), ("the paper's counts", FEWER_PROMPTS)):
        gains, found = [], []
        for (arm, baseline), limit in zip(BATCH, (until * last, last), strict=True):
            part = evaluations[evaluations["arm"].isin([arm, baseline]) & (evaluations["step"] <= limit)]
            part = part[part["seed"].isin(shared)].reset_index(drop=True)
            values = outcome_values(part)
            found.append(paired_estimate(values, arm, baseline))
            gains.append(outcomes(values).loc[arm] - outcomes(values).loc[baseline])
        found.append(over_seeds((gains[1] - gains[0]).to_numpy()))
        for name, size, estimate in zip(("gain at b", "gain at 4b", "4b - b"), (*own_sizes, 0), found, strict=True):
            rows.append((reading, name, size, *estimate.interval(ALPHA), estimate.n_seeds))
    return pd.DataFrame(rows, columns=columns)


def mixing_rows(evaluations: pd.DataFrame, steps: pd.DataFrame, diversity: pd.DataFrame) -> pd.DataFrame:
    """Rows of study_mixing.csv: each h with its outcome, difference to h = 0 paired by seed (t-interval), steps and diversity.

    `diversity` has arm, swapped_per_batch, space, value: in-batch k-NN distance. Diversity is given relative to h = 0,
    the paper's too. Rows of arms that were not trained are left out; empty without h = 0.
    """
    columns = [
        "arm", "swapped_per_batch", "outcome", "difference", "ci_low", "ci_high", "n_seeds", "steps_to_target", "diversity_2d",
        "diversity_full", "paper_swapped", "paper_difference", "paper_steps", "paper_diversity",
    ]  # fmt: skip
    present = [name for name in MIXING if name in set(evaluations["arm"])]
    if MIXING[0] not in present or len(present) < 2:
        return pd.DataFrame(columns=columns)
    by_problem = outcome_values(evaluations[evaluations["arm"].isin(present)].reset_index(drop=True))
    values = outcomes(by_problem)
    paper = paper_values().query("table == 'Figure 3'").pivot(index="arm", columns="column", values="value")
    spaces = diversity.pivot(index="arm", columns="space", values="value")
    spaces = spaces / spaces.loc[MIXING[0]]
    swapped = diversity.drop_duplicates("arm").set_index("arm")["swapped_per_batch"]
    first, rows = paper.loc[MIXING[0]], []
    for name in present:
        paired = (values.loc[name] - values.loc[MIXING[0]]).dropna()
        none = Interval(0.0, math.nan, math.nan)
        found = paired_estimate(by_problem, name, MIXING[0]).interval(ALPHA) if name != MIXING[0] else none
        # the seeds that the arm shares with h = 0, so that outcome, difference and steps speak of the same runs
        own, its = values.loc[name].loc[paired.index], paper.loc[name]
        reached = steps[(steps["arm"] == name) & steps["seed"].isin(paired.index)]["steps"].mean()
        rows.append(
            (name, int(swapped[name]), own.mean(), *found, len(paired), reached,
             *spaces.loc[name, ["PCA 2-D", "full"]], 4 * int(swapped[name]), its["mean"] - first["mean"], its["steps to 43 %"],
             its["in-batch diversity, 1e-4"] / first["in-batch diversity, 1e-4"])
        )  # fmt: skip
    return pd.DataFrame(rows, columns=columns)

