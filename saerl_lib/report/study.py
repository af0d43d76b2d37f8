"""Tables of the RL study and of the laptop's own runs, all ours unless the paper is named.

Outcome of a run: the mean over the sets of Avg@k, averaged over the last three evaluations. Differences between arms are paired
by seed (`statistics.paired_estimate`) and corrected by Holm within families of comparisons that were fixed before the arms were
trained, but for `post_hoc`, which the first results suggested.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from saerl_lib.config import PASSES, StudyConfig
from saerl_lib.report.statistics import Interval, corrected, over_seeds, paired_estimate
from saerl_lib.report.tables import LABELS, SCHEMAS, TableError, as_table
from saerl_lib.train.arms import HALF, REAL, WIDER, Arm, variant_of

LAST = 3
"""Evaluations that the outcome averages (of a larger batch they lie at other steps)."""
PASS_AT = 8
"""k of the study's Pass@k, in expectation; its Avg@k is the mean chance."""
RUN = ["arm", "seed"]
SET = [*RUN, "step", "eval_set"]
TRAINING = ["zero_variance_share", "entropy", "grad_norm"]
"""What a run's curve tells of training."""
NO_INTERVAL = Interval(math.nan, math.nan, math.nan)
PASS_SET = "hardest"
"""The set that the paper's way of averaging scores by Pass@k, as AIME24."""
BASELINE, PAPER = "grpo", "paper"
"""The random order, and the group of the paper's own arms."""
WHOLE = (PAPER, "online", WIDER)
"""Groups, and families of comparisons, with all matched seeds of `StudyConfig`."""
UPDATE = "update"
"""The family that compares orders under every loss and optimizer, each with the random order of its own."""

# From evaluations to outcomes.


def rated(evaluations: pd.DataFrame) -> pd.DataFrame:
    """With avg and passed, the shares of right answers and of solved problems: sampled, unless exact ones are there."""
    if "avg" in evaluations:
        return evaluations
    return evaluations.assign(avg=evaluations["correct"] / evaluations["attempts"], passed=(evaluations["correct"] > 0) * 1.0)


def outcome_values(evaluations: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Set name -> values [(arm, seed) x problem] in percent (Avg@k) whose mean over problems is the run's outcome on that set.

    `evaluations` has one row a run, step and problem: arm, seed, step, eval_set, sample_id, attempts, correct; or is `rated`.
    Small evaluations use the first problems, the last one all: each carries its weight. Columns are (evaluations that hold the
    problem, sample_id). Raises ValueError when runs of an arm were evaluated at unequal steps, or runs on other problems.
    """
    taken = evaluations[[*RUN, "step"]].drop_duplicates().sort_values("step").groupby(RUN).tail(LAST)
    taken = taken.assign(place=taken.groupby(RUN).cumcount())
    frame = evaluations.merge(taken, on=[*RUN, "step"])
    seen = frame.groupby([*RUN, "place"])["sample_id"].nunique().unstack("place")
    at = taken.groupby(["arm", "place"])["step"].agg(["nunique", "max"])
    ends = at["max"].groupby("arm").max()
    if seen.isna().to_numpy().any() or (seen.nunique() > 1).any() or (at["nunique"] > 1).any() or ends.nunique() > 1:
        raise ValueError(
            f"not every run was evaluated up to step {ends.max()}, the runs of an arm at the same steps and all on the same "
            "problems: finish or rerun those that were not"
        )
    out, frame = {}, rated(frame)
    for name, part in frame.assign(rate=100.0 * frame["avg"] / taken["place"].nunique()).groupby("eval_set"):
        counts = part.groupby("place")["sample_id"].nunique()
        scaled = part["rate"] * part["sample_id"].nunique() / part["place"].map(counts)
        table = part.assign(rate=scaled).groupby([*RUN, "sample_id"])["rate"].sum().unstack("sample_id").fillna(0.0)
        number = part.groupby("sample_id")["place"].nunique()[table.columns]
        columns = pd.MultiIndex.from_arrays([number, table.columns], names=["evaluations", "sample_id"])
        out[str(name)] = table.set_axis(columns, axis=1)
    return out


def outcomes(values: Mapping[str, pd.DataFrame]) -> pd.Series:
    """(arm, seed) -> outcome in percent, the mean over sets."""
    return pd.concat([table.mean(axis=1) for table in values.values()], axis=1).mean(axis=1)


# Runs and arms.


def set_rates(evaluations: pd.DataFrame, problems: int | None = None, by: Sequence[str] = SET) -> pd.DataFrame:
    """Percent by arm, seed, step and set: avg (Avg@k), passed (Pass@k), n (problems), of the first `problems` or of all."""
    frame = evaluations if problems is None else evaluations.groupby(SET).head(problems)
    found = rated(frame).groupby(list(by)).agg(avg=("avg", "mean"), passed=("passed", "mean"), n=("avg", "size")).reset_index()
    return found.assign(avg=100.0 * found["avg"], passed=100.0 * found["passed"])


def _with_mean(rates: pd.DataFrame, value: str = "avg", name: str = "mean") -> pd.DataFrame:
    """arm, seed, eval_set, value (and step) with the mean over sets added as the set `name`."""
    keys = [key for key in (*RUN, "step") if key in rates]
    means = rates.groupby(keys)[value].mean().reset_index().assign(eval_set=name)
    return pd.concat([rates, means])[[*keys, "eval_set", value]].rename(columns={value: "value"})


def runs_table(evaluations: pd.DataFrame, curve: pd.DataFrame, tail: pd.DataFrame) -> pd.DataFrame:
    """Rows of study_runs.csv: one an arm, seed and evaluation step; part says run, or tail behind the common random tail. Columns
    of `curve` are means over the updates since the evaluation before."""
    last, evaluations, keys = evaluations["step"].max(), pd.concat([evaluations, tail]), [*RUN, "step"]
    wide = set_rates(evaluations).pivot(index=keys, columns="eval_set", values="avg")
    facts = evaluations.groupby(keys).agg(
        update=("update", "first"), rollouts=("rollouts", "first"), problems=("sample_id", "size"),
        completions=("attempts", "sum"),
    )  # fmt: skip
    table = wide.add_prefix("avg_").assign(mean_avg=wide.mean(axis=1))
    ends = facts["update"].reset_index().astype({"seed": int, "update": int}).sort_values("update")
    made = curve.rename(columns={"step": "made"}).astype({"seed": int, "made": int}).sort_values("made")
    told = pd.merge_asof(made, ends, left_on="made", right_on="update", by=RUN, direction="forward")
    found = facts.join(table).join(told.groupby(keys)[TRAINING].mean()).reset_index()
    return found.assign(part=np.where(found["step"] > last, "tail", "run"))


def target_steps(
    evaluations: pd.DataFrame, arms: Sequence[str], problems: int, budget: float, overall: bool = False
) -> pd.DataFrame:
    """Steps to target of every run and set: arm, seed, eval_set, target, steps, reached.

    A set's target is the lowest final accuracy among `arms`, the paper's, each averaged over its seeds (paper, section
    5). All curves are of the first `problems` of a set. A run that never reaches it counts with the budget. `overall` adds the
    mean over sets as the set "all".
    """
    rates = set_rates(evaluations, problems)
    rates = _with_mean(rates, name="all") if overall else rates.rename(columns={"avg": "value"})
    final = rates[(rates["step"] == rates["step"].max()) & rates["arm"].isin(arms)]
    target = final.groupby(["eval_set", "arm"])["value"].mean().groupby("eval_set").min()
    rates = rates.assign(target=rates["eval_set"].map(target))
    runs = rates.assign(steps=rates["step"].where(rates["value"] >= rates["target"] - 1e-9)).groupby([*RUN, "eval_set"])
    found = runs.agg(target=("target", "first"), steps=("steps", "min")).reset_index()
    return found.assign(reached=found["steps"].notna(), steps=found["steps"].fillna(budget))


def run_values(evaluations: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """One row a run, by arm and seed. Of its curve, on the problems that every evaluation holds: best, once (the last value in
    the first pass), area (under it over steps, divided by the run's length) and caught (steps until the curve, linear between
    evaluations, reaches the last value of the same seed's random order, `grpo` or that of the arm's own setting; its length if
    never). Beside it: tail (accuracy behind the common random tail, NaN without one) and silent (percent of its generated groups
    without a gradient). `runs` is `runs_table`."""
    curve = set_rates(evaluations, int(evaluations.groupby(SET).size().min())).groupby([*RUN, "step"])["avg"].mean().reset_index()
    last = evaluations["step"].max()
    behind, before = runs[runs["part"] == "tail"].groupby(RUN), runs[(runs["part"] == "run") & (runs["step"] > 0)].groupby(RUN)
    areas = curve.groupby(RUN)[["step", "avg"]]
    aims, pairs = curve[curve["step"] == last].set_index(RUN)["avg"], COMPARISONS[COMPARISONS["family"].isin([UPDATE, HALF])]
    pairs = pairs[pairs["baseline"].str.startswith(BASELINE)]
    against = dict(zip(pairs["arm"], pairs["baseline"], strict=True)) | {name: name for name in pairs["baseline"]}
    caught = {run: _reached(part, aims.get((against.get(run[0], shuffled(run[0])), run[1]), math.nan)) for run, part in areas}
    return pd.DataFrame({
        "best": curve[curve["step"] > 0].groupby(RUN)["avg"].max(),
        "once": curve[curve["step"] <= last / PASSES].groupby(RUN)["avg"].last(), "tail": behind["mean_avg"].last(),
        "area": areas.apply(lambda run: float(np.trapezoid(run["avg"], run["step"]) / np.ptp(run["step"]))),
        "silent": 100 * before["zero_variance_share"].mean(), "caught": pd.Series(caught).rename_axis(RUN),
    })  # fmt: skip


def shuffled(arm: str) -> str:
    """The random order of the same pool and policy.

    >>> shuffled("diff"), shuffled("diff_real")
    ('grpo', 'grpo_real')
    """
    return f"{BASELINE}_{end}" if (end := variant_of(arm)) else BASELINE


def _reached(curve: pd.DataFrame, aim: float) -> float:
    """The step at which a curve (step, avg) first reaches `aim`, linear between its points; its last step if never."""
    step, value = curve["step"].to_numpy(dtype=float), curve["avg"].to_numpy()
    above = np.flatnonzero(value >= aim - 1e-9)
    if math.isnan(aim) or not len(above):
        return math.nan if math.isnan(aim) else float(step[-1])
    at = [max(above[0] - 1, 0), above[0]]
    return float(np.interp(aim, value[at], step[at]))


def summary_table(
    results: Mapping[str, pd.DataFrame], arms: Mapping[str, Arm], steps: pd.DataFrame, runs: pd.DataFrame
) -> pd.DataFrame:
    """Rows of study_summary.csv: one an arm, in the order of `arms`; differences are corrected by Holm over all arms that
    have one.

    `steps` is `target_steps`, `runs` is `runs_table`.
    """
    evaluations, steps = results["evaluations"], steps.groupby("arm")
    values, single = outcome_values(evaluations), run_values(evaluations, runs)
    runs = runs[runs["part"] == "run"]
    seen = set(evaluations["arm"].unique())
    present = [name for name in arms if name in seen]
    told = {name: {"title": arms[name].title, "group": arms[name].group} for name in present}
    first = next((name for name in present if name in (BASELINE, f"{BASELINE}_{REAL}")), None)
    pairs = [(name, first) for name in present if first not in (None, name) and not name.endswith(HALF)]  # see their family
    against = corrected(pairs, [paired_estimate(values, *pair) for pair in pairs]).set_index("arm")
    by_arm, shown = outcomes(values).groupby("arm"), [c for c in runs if c.startswith(("avg_", "mean_"))]
    spent = ["updates", "prompts", "distinct_prompts", "rollouts", "rollouts_used", "tokens"]
    parts = [
        pd.DataFrame.from_dict(told, orient="index"),
        by_arm.agg(n_seeds="size", outcome="mean", outcome_sd="std"),
        against[["difference", "ci_low", "ci_high", "holm_low", "holm_high", "detectable"]],
        runs[runs["step"] == runs["step"].max()].groupby("arm")[shown].mean().add_prefix("final_"),
        steps.agg(steps_to_target=("steps", "mean"), targets_reached=("reached", "mean")),
        single.groupby("arm").mean(),
        runs[runs["step"] > 0].groupby("arm")[TRAINING[1:]].mean(),
        results["budget"].groupby("arm")[spent].mean(),
        results["provenance"].groupby("arm")[["training_s", "evaluation_s"]].mean(),
    ]
    return pd.concat(parts, axis=1).loc[present].rename_axis("arm").reset_index()


# Comparisons.

COMPARISONS = pd.read_csv(Path(__file__).with_name("comparisons.csv")).fillna({"claim": ""})
"""family, arm, baseline, paper_value (points, of the paper's own tables), and the paper's claim that the comparison answers."""


def planned_seeds(family: str) -> int:
    """Matched seeds that the protocol gives to the arms of a family of comparisons."""
    return StudyConfig.seeds if family in WHOLE else StudyConfig.other_seeds


def compare_runs(values: pd.Series, pairs: Sequence[tuple[str, str]], saved: bool = False) -> pd.DataFrame:
    """Comparisons of one value a run, by arm and seed: t intervals over the seeds that both arms have, corrected by Holm.

    In the value's unit; with `saved` in percent of the baseline that the arm saves, as for steps.
    """
    found = []
    for arm, baseline in pairs:
        first, second = values.loc[arm].align(values.loc[baseline], join="inner")
        found.append(over_seeds(100 * (second - first) / second.clip(lower=1.0) if saved else first - second))
    return corrected(pairs, found)


def comparison_rows(
    evaluations: pd.DataFrame, steps: pd.DataFrame, runs: pd.DataFrame, extra: Sequence[str] = ()
) -> pd.DataFrame:
    """Rows of study_comparisons.csv for all comparisons whose arms are there; arms of the user, `extra`, are held against a
    random order.

    Metrics: the outcome, percent of the steps saved to target and until that order is caught, and points of what else
    `run_values` has (means over sets). The claim and the paper's value stand with the outcome alone.
    """
    rows, values, steps_of_run = [], outcome_values(evaluations), steps.groupby(RUN)["steps"].mean()
    single = run_values(evaluations, runs)
    against = [shuffled(name) for name in extra]
    mine = pd.DataFrame({"family": "user", "arm": list(extra), "baseline": against, "paper_value": math.nan, "claim": ""})
    known = pd.concat([COMPARISONS, mine]) if extra else COMPARISONS
    known = known[known[["arm", "baseline"]].isin(set(evaluations["arm"])).all(axis=1)]
    for family, pairs in known.groupby("family", sort=False):
        if family == UPDATE and set(pairs["baseline"]) == {BASELINE}:
            continue  # without another loss or optimizer they repeat the paper's family under another correction
        names = list(pairs[["arm", "baseline"]].itertuples(index=False, name=None))
        found = {"outcome": corrected(names, [paired_estimate(values, *pair) for pair in names])}
        found["steps"] = compare_runs(steps_of_run, names, saved=True)
        for metric, column in single.items():
            own = column.dropna()  # arms at equal rollouts have no tail
            if both := [pair for pair in names if set(own.index.get_level_values("arm")).issuperset(pair)]:
                found[metric] = compare_runs(own, both, metric == "caught")
        for metric, compared in found.items():
            told = {} if metric == "outcome" else {"claim": "", "paper_value": math.nan}
            rows.append(pairs.assign(metric=metric, **told).merge(compared, on=["arm", "baseline"]))
    table = pd.concat(rows, ignore_index=True) if rows else as_table("study_comparisons", [])
    return table[list(SCHEMAS["study_comparisons"].columns)]


# Beside the paper.

BENCHMARKS = LABELS["benchmark"]
"""The paper's benchmark -> the set of the world that stands for it (ours: two easy, two middle, hard, small and hardest)."""
MIXING = {"minus_mix": 0, "mix_1": 1, "saerl_grpo": 2, "mix_4": 4, "mix_8": 8}
"""Arms of Figure 3 with their h of 32; the paper's are of 128."""
PAPER_VALUES = pd.read_csv(Path(__file__).with_name("paper_tables.csv"))
"""The paper's numbers: table, model, arm, column, value."""


def beside_paper(evaluations: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Rows of study_paper_tables.csv: every cell of Tables 4, 5, 7 and 8 with the study's mean and its t-interval over seeds.

    `steps` has arm, seed, eval_set, steps. Cells of arms that were not trained stay empty. Tables 4 and 7 count the
    hardest set by Pass@k, as the paper does.
    """
    rates = set_rates(evaluations[evaluations["step"] == evaluations["step"].max()]).drop(columns="step")
    rates["scored"] = rates["avg"].where(rates["eval_set"] != PASS_SET, rates["passed"])
    scored = _with_mean(rates, "scored")
    sources = {
        "4": scored, "7": scored, "5": _with_mean(steps[[*RUN, "eval_set", "steps"]], "steps"),
        "8 Avg@8": _with_mean(rates, "avg"), "8 Pass@8": _with_mean(rates, "passed"),
    }  # fmt: skip
    rows = []
    for row in PAPER_VALUES.query("table in @sources").itertuples():
        source, name = sources[str(row.table)], BENCHMARKS[row.column]
        own = source[(source["arm"] == row.arm) & (source["eval_set"] == name)]["value"]
        found = over_seeds(own).interval() if len(own) else NO_INTERVAL
        rows.append((row.table, row.arm, row.column, name, row.value, *found, len(own)))
    return as_table("study_paper_tables", rows)


def table_view(frame: pd.DataFrame, table: str) -> pd.DataFrame:
    """One table of study_paper_tables.csv to look at: a row an arm, under each benchmark the paper's value and ours."""
    part = frame[(frame["table"] == table) & (frame["n_seeds"] > 0)]
    names = {"paper_value": "paper", "our_value": "toy set"}
    wide = part.pivot(index="arm", columns="benchmark", values=list(names)).swaplevel(axis=1).round(1)
    order = [(name, value) for name in reversed(BENCHMARKS) for value in names if (name, value) in wide.columns]
    return wide.loc[part["arm"].unique(), order].rename(columns=names).rename_axis(columns=[None, None], index=None)


def mixing_rows(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Rows of study_mixing.csv: each h with its outcome, its difference to h = 0, paired by seed (t-interval), and the paper's.

    The outcome is of the seeds that the arm shares with h = 0. Arms that were not trained are left out; empty without h = 0.
    """
    first, present = "minus_mix", set(evaluations["arm"])
    if first not in present or len(present & set(MIXING)) < 2:
        return as_table("study_mixing", [])
    by_problem = outcome_values(evaluations[evaluations["arm"].isin(MIXING)].reset_index(drop=True))
    values, rows = outcomes(by_problem), []
    paper = PAPER_VALUES.query("table == 'Figure 3' and column == 'mean'").set_index("arm")["value"]
    for name, h in MIXING.items():
        if name in present:
            paired = values.loc[name][values.loc[name].index.intersection(values.loc[first].index)]
            found = NO_INTERVAL._replace(value=0.0) if name == first else paired_estimate(by_problem, name, first).interval()
            rows.append((name, h, paired.mean(), *found, len(paired), 4 * h, paper[name] - paper[first]))
    return as_table("study_mixing", rows)


# The laptop's own runs.


def learning_curves(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Rows of learning_curves.csv: Avg@k and Pass@k a set, and the mean of the sets' Avg@k as 'all'; k is n_samples."""
    rates = set_rates(evaluations, by=[*SET, "attempts"]).rename(
        columns={"avg": "avg_at_k", "passed": "pass_at_k", "n": "n_problems", "attempts": "n_samples"}
    )
    curves = rates.melt([*SET, "n_problems", "n_samples"], ["avg_at_k", "pass_at_k"], "metric")
    curves = curves.sort_values([*SET, "n_samples"], kind="stable").assign(value=curves["value"] / 100)
    means = curves[curves["metric"] == "avg_at_k"].groupby([*RUN, "step", "n_samples"], as_index=False)
    mean = means.agg(value=("value", "mean"), n_problems=("n_problems", "sum")).assign(eval_set="all", metric="avg_at_k")
    return pd.concat([curves, mean], ignore_index=True)[list(SCHEMAS["learning_curves"].columns)]


def paired_differences(curves: pd.DataFrame, passed: str = PASS_SET) -> pd.DataFrame:
    """Rows of paired_difference.csv: saerl minus grpo at the last step in percent points, t-interval over matched seeds.

    Of several evaluations at the last step the one with most problems and completions counts. The set `passed` counts by Pass@k
    as well. No rows where one of the arms was not trained. Raises TableError when the arms end at different steps or lack a seed
    of each other.
    """
    if not {"saerl", "grpo"} <= set(curves["arm"]):
        return as_table("paired_difference", [])
    last = curves.groupby(RUN)["step"].max()
    if last.nunique() != 1:
        raise TableError("learning_curves: the runs end at different steps; finish the shorter ones")
    final = curves[curves["step"] == last.iloc[0]].sort_values(["n_problems", "n_samples"], kind="stable")
    final = final[(final["metric"] == "avg_at_k") | (final["eval_set"] == passed)]
    final = final.drop_duplicates([*RUN, "eval_set", "metric"], keep="last").sort_index()
    rows = []
    for (metric, name), part in final.groupby(["metric", "eval_set"], sort=False):
        table = 100 * part.pivot(index="seed", columns="arm", values="value").reindex(columns=["saerl", "grpo"])
        if table.isna().to_numpy().any():
            raise TableError(f"learning_curves: {name} {metric} at the last step lacks saerl or grpo for a seed")
        found = over_seeds((table["saerl"] - table["grpo"]).to_numpy())
        rows.append((name, metric, *found.interval(), found.n_seeds, int(part["n_problems"].max()), found.detectable()))
    return as_table("paired_difference", rows)


def steps_to_targets(evaluations: pd.DataFrame, problems: int) -> pd.DataFrame:
    """Rows of steps_to_target.csv: `target_steps` with all arms as the paper's, and of the mean over sets; empty: never."""
    found = target_steps(evaluations, list(evaluations["arm"].unique()), problems, math.nan, overall=True)
    found = found.assign(target=found["target"] / 100, steps=found["steps"].astype("Int64"))
    return found[list(SCHEMAS["steps_to_target"].columns)]


TREND = 0.05
"""Level at which `study_updates` speaks of a trend: exact two-sided Kendall test over the settings, uncorrected."""


def study_trend(table: pd.DataFrame) -> str:
    """What the effect of easy to hard does where a random order gets farther. A trend is said when Kendall's rank correlation of
    the end of the random order and the effect is below zero at `TREND`, a change of sign when the effect is below zero at the
    farthest setting and above at the nearest."""
    table = table.sort_values("end")
    tau, p = kendalltau(table["end"], table["value"])
    seen = f"({len(table)} settings, rank correlation {tau:.2f}, first seen afterwards)"
    if not (tau < 0 and p < TREND):
        low, high = table["value"].min(), table["value"].max()
        return f"easy to hard ends {low:+.1f} to {high:+.1f} points from a random order, without a clear trend {seen}"
    if table["value"].iloc[0] > 0 > table["value"].iloc[-1]:
        return f"easy to hard loses where a random order gets farthest and gains where it gets least far {seen}"
    return f"easy to hard does worse the farther a random order gets {seen}"
