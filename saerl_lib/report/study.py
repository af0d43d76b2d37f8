"""Tables of the RL study and of the laptop's own runs, and the claims of the paper beside what the tables say.

Evaluations have one row a run, step and problem. Outcome of a run: the mean over the sets of Avg@k, averaged over the last three
evaluations. Small evaluations use the first problems of a set, the last one all of them; each carries the weight that makes the
mean over a set's problems the outcome. Pass@k is counted over all k attempts at a problem: is one of them right. Differences
between arms are paired by seed (`statistics.paired_estimate`) and corrected by Holm within families of comparisons that were
fixed before the arms were trained, but for `post_hoc`, which the first results suggested. The paper's Tables 4, 5, 7, 8 and
Figure 3 stand beside the study's; its values lie in `paper_tables.csv` beside this file. All ours unless the paper is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from saerl_lib.config import StudyConfig
from saerl_lib.report.statistics import (
    ALPHA,
    Interval,
    auc_interval,
    compare,
    corrected,
    difference_interval,
    over_seeds,
    paired_estimate,
    weighted_roc_auc,
    wilson_interval,
)
from saerl_lib.report.tables import SCHEMAS, TableError, is_true, read_table, rows_of

if TYPE_CHECKING:
    from saerl_lib.train.arms import Arm

LAST = 3
"""Evaluations that the outcome averages."""
RUN = ["arm", "seed"]
SET = [*RUN, "step", "eval_set"]
NO_INTERVAL = Interval(math.nan, math.nan, math.nan)
PASS_SET = "hardest"
"""The set that the paper's way of averaging scores by Pass@k, as AIME24."""
BASELINE, PAPER = "grpo", "paper"
"""The random order, and the group of the paper's own arms."""

# From evaluations to outcomes.


def outcome_values(evaluations: pd.DataFrame, last: int = LAST, passed: str = "") -> dict[str, pd.DataFrame]:
    """Set name -> values [(arm, seed) x problem] in percent whose mean over problems is the run's outcome on that set.

    `evaluations` has one row a run, step and problem: arm, seed, step, eval_set, sample_id, attempts, correct. The set named
    `passed` counts by Pass@k, the others by Avg@k. Columns are (evaluations that hold the problem, sample_id).
    Raises ValueError when a run lacks one of the last evaluations or was evaluated on other problems.
    """
    steps = np.sort(evaluations["step"].unique())[-last:]
    frame = evaluations[evaluations["step"].isin(steps)]
    seen = frame.groupby([*RUN, "step"])["sample_id"].nunique().unstack("step")
    if seen.isna().to_numpy().any() or (seen.nunique() > 1).any():
        raise ValueError(
            f"not every run was evaluated at steps {steps.tolist()} on the same problems: finish or rerun those that were not"
        )
    rate = (frame["correct"] / frame["attempts"]).where(frame["eval_set"] != passed, (frame["correct"] > 0).astype(float))
    out = {}
    for name, part in frame.assign(rate=100.0 * rate / len(steps)).groupby("eval_set"):
        counts = part.groupby("step")["sample_id"].nunique()
        scaled = part["rate"] * part["sample_id"].nunique() / part["step"].map(counts)
        table = part.assign(rate=scaled).groupby([*RUN, "sample_id"])["rate"].sum().unstack("sample_id").fillna(0.0)
        number = part.groupby("sample_id")["step"].nunique()[table.columns]
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
    rated = frame.assign(avg=100.0 * (frame["correct"] / frame["attempts"]), passed=100.0 * (frame["correct"] > 0))
    return rated.groupby(list(by)).agg(avg=("avg", "mean"), passed=("passed", "mean"), n=("correct", "size")).reset_index()


def _with_mean(rates: pd.DataFrame, value: str = "avg", name: str = "mean") -> pd.DataFrame:
    """arm, seed, eval_set, value (and step) with the mean over sets added as the set `name`."""
    keys = [key for key in (*RUN, "step") if key in rates]
    means = rates.groupby(keys)[value].mean().reset_index().assign(eval_set=name)
    return pd.concat([rates, means])[[*keys, "eval_set", value]].rename(columns={value: "value"})


def runs_table(evaluations: pd.DataFrame, curve: pd.DataFrame) -> pd.DataFrame:
    """Rows of study_runs.csv: one an arm, seed and evaluation step."""
    keys, rates = [*RUN, "step"], set_rates(evaluations)
    wide = rates.pivot(index=keys, columns="eval_set", values="avg")
    scored = rates["avg"].where(rates["eval_set"] != PASS_SET, rates["passed"])
    table = wide.add_prefix("avg_").assign(
        mean_avg=wide.mean(axis=1),
        mean_with_pass=rates.assign(value=scored).groupby(keys)["value"].mean(),
        mean_without_pass_set=wide.drop(columns=PASS_SET).mean(axis=1),
        **{f"pass_{PASS_SET}": rates[rates["eval_set"] == PASS_SET].set_index(keys)["passed"]},
    )
    facts = evaluations.groupby(keys).agg(
        update=("update", "first"), rollouts=("rollouts", "first"), problems=("sample_id", "size"),
        completions=("attempts", "sum"),
    )  # fmt: skip
    return facts.join(table).join(_training(facts, curve)).reset_index()


TRAINING = ["zero_variance_share", "entropy", "grad_norm"]


def _training(facts: pd.DataFrame, curve: pd.DataFrame) -> pd.DataFrame:
    """Means over the updates since the evaluation before."""
    ends = facts["update"].reset_index().astype({"seed": int, "update": int}).sort_values("update")
    made = curve.rename(columns={"step": "made"}).astype({"seed": int, "made": int}).sort_values("made")
    told = pd.merge_asof(made, ends, left_on="made", right_on="update", by=RUN, direction="forward")
    return told.groupby([*RUN, "step"])[TRAINING].mean()


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


def study_targets(evaluations: pd.DataFrame, arms: Mapping[str, Arm], problems: int, budget: int) -> pd.DataFrame:
    """`target_steps` with the targets of the paper's arms, or of all where there are none."""
    own = [name for name in arms if name in set(evaluations["arm"])]
    rated = [name for name in own if arms[name].group == PAPER] or own
    return target_steps(evaluations[evaluations["arm"].isin(own)], rated, problems, budget)


def _areas(runs: pd.DataFrame, value: str) -> pd.Series:
    """(arm, seed) -> area under the curve of `value` over steps, divided by the run's length."""
    groups = runs.sort_values("step").groupby(RUN)[["step", value]]
    return groups.apply(lambda run: float(np.trapezoid(run[value], run["step"]) / np.ptp(run["step"])))


def summary_table(results: Mapping[str, pd.DataFrame], arms: Mapping[str, Arm], steps: pd.DataFrame) -> pd.DataFrame:
    """Rows of study_summary.csv: one an arm, in the order of `arms`; differences are corrected by Holm over all arms.

    `steps` is `study_targets`.
    """
    evaluations, steps = results["evaluations"], steps.groupby("arm")
    values, runs = outcome_values(evaluations), runs_table(evaluations, results["curve"])
    present = [name for name in arms if name in set(evaluations["arm"])]
    told = {name: {"title": arms[name].title, "group": arms[name].group} for name in present}
    pairs = [(name, BASELINE) for name in present if name != BASELINE and BASELINE in present]
    against = compare(values, pairs).set_index("arm")
    by_arm, shown = outcomes(values).groupby("arm"), [c for c in runs if c.startswith(("avg_", "pass_", "mean_"))]
    spent = ["updates", "prompts", "distinct_prompts", "rollouts", "rollouts_used", "tokens"]
    parts = [
        pd.DataFrame.from_dict(told, orient="index"),
        by_arm.agg(n_seeds="size", outcome="mean", outcome_sd="std"),
        against[["difference", "ci_low", "ci_high", "holm_low", "holm_high", "detectable"]],
        runs[runs["step"] == runs["step"].max()].groupby("arm")[shown].mean().add_prefix("final_"),
        steps.agg(steps_to_target=("steps", "mean"), targets_reached=("reached", "mean")),
        _areas(runs, "mean_avg").groupby("arm").mean().rename("area"),
        runs[runs["step"] > 0].groupby("arm")[TRAINING].mean(),
        results["budget"].groupby("arm")[spent].mean(),
        results["provenance"].groupby("arm")[["training_s", "evaluation_s"]].mean(),
    ]
    return pd.concat(parts, axis=1).loc[present].rename_axis("arm").reset_index()


# Comparisons.

SMALLEST_POINTS, SMALLEST_STEPS = 0.5, 5.0
"""Smallest effects of interest: points of accuracy, percent of steps; an interval wholly below says "not reproduced" (ours)."""

COMPARISONS = pd.read_csv(Path(__file__).with_name("comparisons.csv")).fillna({"claim": ""})
"""family, arm, baseline, paper_value (points, of the paper's own tables), and the paper's claim that the comparison answers.

DAPO drops rollouts, so that at equal generated rollouts it makes fewer updates: not the paper's comparison at equal steps."""
NO_GAIN = "Mixing without difficulty sorting: accuracy gain, points (the claim is that there is none; Table 7)"
"""The one claim that is reproduced by a gain below the smallest effect of interest."""


def planned_seeds(family: str) -> int:
    """Matched seeds that the protocol gives to the arms of a family of comparisons."""
    study = StudyConfig()
    return study.seeds if family == "paper" else study.other_seeds


def accuracy_metrics(evaluations: pd.DataFrame) -> dict[str, Mapping[str, pd.DataFrame]]:
    """Metric -> values by set: the outcome, and the last evaluation as the paper averages it, and without its Pass@8 set."""
    final = outcome_values(evaluations, 1, PASS_SET)
    without = {name: table for name, table in final.items() if name != PASS_SET}
    return {"outcome": outcome_values(evaluations), "final_with_pass": final, "final_without_pass_set": without}


def compare_runs(values: pd.Series, pairs: Sequence[tuple[str, str]], saved: bool = False) -> pd.DataFrame:
    """Comparisons of one value a run, by arm and seed: t intervals over the seeds that both arms have, corrected by Holm.

    In the value's unit; with `saved` in percent of the baseline that the arm saves, as for steps.
    """
    found = []
    for arm, baseline in pairs:
        first, second = values.loc[arm].align(values.loc[baseline], join="inner")
        found.append(over_seeds(100 * (second - first) / second.clip(lower=1.0) if saved else first - second))
    return corrected(pairs, found, SMALLEST_STEPS if saved else SMALLEST_POINTS)


def comparison_rows(evaluations: pd.DataFrame, steps: pd.DataFrame, extra: Sequence[str] = ()) -> pd.DataFrame:
    """Rows of study_comparisons.csv for all comparisons whose arms are there; arms of the user, `extra`, are held against `grpo`.

    Metrics: the accuracies, percent of the steps to target saved, points of the area under the accuracy curve (means over sets).
    The claim and the paper's value stand with the outcome alone.
    """
    rows, metrics, steps_of_run = [], accuracy_metrics(evaluations), steps.groupby(RUN)["steps"].mean()
    areas = _areas(set_rates(evaluations).groupby([*RUN, "step"])["avg"].mean().reset_index(), "avg")
    own = pd.DataFrame({"family": "user", "arm": list(extra), "baseline": BASELINE, "paper_value": math.nan, "claim": ""})
    known = pd.concat([COMPARISONS, own]) if extra else COMPARISONS
    known = known[known[["arm", "baseline"]].isin(set(evaluations["arm"])).all(axis=1)]
    for _, pairs in known.groupby("family", sort=False):
        names = list(pairs[["arm", "baseline"]].itertuples(index=False, name=None))
        found = {metric: compare(values, names, SMALLEST_POINTS) for metric, values in metrics.items()}
        found |= {"steps": compare_runs(steps_of_run, names, saved=True), "area": compare_runs(areas, names)}
        for metric, compared in found.items():
            told = {} if metric == "outcome" else {"claim": "", "paper_value": math.nan}
            rows.append(pairs.assign(metric=metric, **told).merge(compared, on=["arm", "baseline"]))
    table = pd.concat(rows, ignore_index=True) if rows else rows_of("study_comparisons", [])
    return table[list(SCHEMAS["study_comparisons"].columns)]


# Beside the paper.

BENCHMARKS = {
    "AIME24": "hardest", "AMC23": "mid_a", "GSM8K": "easy_a", "MATH500": "easy_b", "MinervaMath": "mid_b",
    "OlympiadBench": "hard", "mean": "mean",
}  # fmt: skip
"""The paper's benchmark -> the set of the world that stands for it (ours: two easy, two middle, hard, small and hardest)."""
MIXING = ("minus_mix", "mix_1", "saerl_grpo", "mix_4", "mix_8")
"""Arms of Figure 3, by rising h."""
BATCH = (("saerl_grpo", "grpo"), ("saerl_4b", "grpo_4b"))
"""Table 8: SAERL and its baseline at b, then at 4b."""
FEWER_PROMPTS = 115_200 / 153_600
"""Prompts that the paper's b = 128 saw, as a share of those of b = 512."""


def paper_values() -> pd.DataFrame:
    """The paper's numbers: table, model, arm, column, value."""
    return pd.read_csv(Path(__file__).with_name("paper_tables.csv"))


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
    rows, paper = [], paper_values()
    for row in paper[paper["table"].isin(sources)].itertuples():
        source, name = sources[str(row.table)], BENCHMARKS[row.column]
        own = source[(source["arm"] == row.arm) & (source["eval_set"] == name)]["value"]
        found = over_seeds(own).interval() if len(own) else NO_INTERVAL
        rows.append((row.table, row.arm, row.column, name, row.value, *found, len(own)))
    return rows_of("study_paper_tables", rows + _gains(evaluations, paper))


def _gains(evaluations: pd.DataFrame, paper: pd.DataFrame) -> list[tuple[object, ...]]:
    """Rows "4 gain": each arm of Table 4 minus its baseline, with the interval of `paired`, beside the paper's difference."""
    four = paper[paper["table"] == "4"].set_index(["arm", "column"])["value"]
    values, present, rows = outcome_values(evaluations, 1, PASS_SET), set(evaluations["arm"]), []
    for (arm, column), value in four.items():
        baseline = baseline_of(arm)
        if arm == baseline:
            continue
        name = BENCHMARKS[column]
        own, found, n = values if name == "mean" else {name: values[name]}, NO_INTERVAL, 0
        if {arm, baseline} <= present:
            estimate = paired_estimate(own, arm, baseline)
            found, n = estimate.interval(), estimate.n_seeds
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


def batch_readings(evaluations: pd.DataFrame, sizes: Mapping[str, int]) -> pd.DataFrame:
    """Rows of study_batch.csv: SAERL's gain at b and at 4b, and the difference of the two gains, in two readings of Table 8.

    "equal prompts": both sizes see the same number. "the paper's counts": b stops at `FEWER_PROMPTS` of what 4b sees.
    `sizes` is prompts a step by arm. Outcomes as everywhere, paired by the seeds that all four arms have, t-intervals.
    Empty when an arm is missing.
    """
    arms = [name for pair in BATCH for name in pair]
    evaluations = evaluations[evaluations["arm"].isin(arms)]
    if set(evaluations["arm"]) != set(arms):
        return rows_of("study_batch", [])
    last, rows, own_sizes = evaluations["step"].max(), [], [sizes[arm] for arm, _ in BATCH]
    evaluations = evaluations[evaluations.groupby("seed")["arm"].transform("nunique") == len(arms)]
    for reading, until in (("equal prompts", 1.0), ("the paper's counts", FEWER_PROMPTS)):
        gains, found = [], []
        for (arm, baseline), limit in zip(BATCH, (until * last, last), strict=True):
            part = evaluations[evaluations["arm"].isin([arm, baseline]) & (evaluations["step"] <= limit)]
            values = outcome_values(part)
            found.append(paired_estimate(values, arm, baseline))
            gains.append(outcomes(values).loc[arm] - outcomes(values).loc[baseline])
        found.append(over_seeds((gains[1] - gains[0]).to_numpy()))
        for name, size, estimate in zip(("gain at b", "gain at 4b", "4b - b"), (*own_sizes, 0), found, strict=True):
            rows.append((reading, name, size, *estimate.interval(), estimate.n_seeds))
    return rows_of("study_batch", rows)


def mixing_rows(evaluations: pd.DataFrame, steps: pd.DataFrame, diversity: pd.DataFrame) -> pd.DataFrame:
    """Rows of study_mixing.csv: each h with its outcome, difference to h = 0 paired by seed (t-interval), steps and diversity.

    `diversity` has arm, swapped_per_batch, space, value: in-batch k-NN distance. Diversity is given relative to h = 0,
    the paper's too. Rows of arms that were not trained are left out; empty without h = 0.
    """
    present = [name for name in MIXING if name in set(evaluations["arm"])]
    if MIXING[0] not in present or len(present) < 2:
        return rows_of("study_mixing", [])
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
        found = paired_estimate(by_problem, name, MIXING[0]).interval() if name != MIXING[0] else none
        # the seeds that the arm shares with h = 0, so that outcome, difference and steps speak of the same runs
        own, its = values.loc[name].loc[paired.index], paper.loc[name]
        reached = steps[(steps["arm"] == name) & steps["seed"].isin(paired.index)]["steps"].mean()
        rows.append(
            (name, int(swapped[name]), own.mean(), *found, len(paired), reached,
             *spaces.loc[name, ["PCA 2-D", "full"]], 4 * int(swapped[name]), its["mean"] - first["mean"], its["steps to 43 %"],
             its["in-batch diversity, 1e-4"] / first["in-batch diversity, 1e-4"])
        )  # fmt: skip
    return rows_of("study_mixing", rows)


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


def final_differences(curves: pd.DataFrame, metrics: dict[str, str]) -> np.ndarray:
    """saerl minus grpo at the last step, mean over sets, in percent points, one value a matched seed [S].

    `metrics` maps an evaluation set to its metric (avg_at_k or pass_at_k); of several evaluations at the last step the
    one with most problems and completions counts. Raises TableError when the arms end at different steps or a set, a
    metric or a seed is missing in one of them.
    """
    last = curves.groupby(["arm", "seed"])["step"].max()
    if last.nunique() != 1:
        raise TableError("learning_curves: the runs end at different steps; finish the shorter ones")
    final = curves[curves["step"] == last.iloc[0]].sort_values(["n_problems", "n_samples"], kind="stable")
    final = final.drop_duplicates(["arm", "seed", "eval_set", "metric"], keep="last")
    columns = []
    for name, metric in metrics.items():
        part = final[(final["eval_set"] == name) & (final["metric"] == metric)]
        table = part.pivot(index="seed", columns="arm", values="value").reindex(columns=["saerl", "grpo"])
        if table.empty or table.isna().to_numpy().any():
            raise TableError(f"learning_curves: {name} {metric} at the last step lacks saerl or grpo for a seed")
        columns.append(100 * (table["saerl"] - table["grpo"]))
    return pd.concat(columns, axis=1, join="inner").mean(axis=1).sort_index().to_numpy()


def paired_differences(curves: pd.DataFrame, passed: str = PASS_SET) -> pd.DataFrame:
    """Rows of paired_difference.csv: saerl minus grpo at the last step in percent points, t-interval over matched seeds.

    The set named `passed` counts by Pass@k as well.
    """
    sets = list(dict.fromkeys(curves["eval_set"]))
    wanted = [(name, "avg_at_k") for name in sets] + ([(passed, "pass_at_k")] if passed in sets else [])
    last = curves[curves["step"] == curves["step"].max()]
    rows = []
    for name, metric in wanted:
        differences = final_differences(curves, {name: metric})
        found, problems = over_seeds(differences), int(last.loc[last["eval_set"] == name, "n_problems"].max())
        rows.append((name, metric, *found.interval(), found.n_seeds, problems, found.detectable()))
    return rows_of("paired_difference", rows)


def steps_to_targets(evaluations: pd.DataFrame, problems: int) -> pd.DataFrame:
    """Rows of steps_to_target.csv: `target_steps` with all arms as the paper's, and of the mean over sets; empty: never."""
    found = target_steps(evaluations, list(evaluations["arm"].unique()), problems, math.nan, overall=True)
    found = found.assign(target=found["target"] / 100, steps=found["steps"].astype("Int64"))
    return found[list(SCHEMAS["steps_to_target"].columns)]


# Claims: what the paper says beside what the tables of `figures/data` say.

INPUTS = (
    "world_gates", "world_probes", "probe_ladder", "filter", "filter_scores", "inbatch_diversity", "learning_curves",
    "steps_to_target", "study_comparisons", "study_batch", "preparation_cost",
)  # fmt: skip
"""Tables that the claims are built from."""
ORDER_GATE = "positive control: nearest to one half now - random"
"""The laptop's own claims on the order of prompts are "undecided" when the world cannot show that a better choice helps; the
study carries its smallest detectable effect with each row."""
SMALLEST = {
    "accuracy points": SMALLEST_POINTS, "fewer steps percent": SMALLEST_STEPS, "probe points": 5.0, "correlation": 0.05,
    "purity points": 5.0, "auc": 0.1, "diversity percent": 2.0, "time percent": 5.0,
}  # fmt: skip
"""Smallest effects of interest, in the unit of the claim (ours)."""
OTHERS_NOT_RUN = (("One SAE serves policies of other families (the paper trained two sizes of one family)", math.nan),)
"""Claims of the paper, with its value, that no comparison of the study speaks of."""
HEADLINE = {
    "outcome": ("all sets by Avg@k, mean of the last three evaluations", 1.4),
    "final_with_pass": ("last evaluation, the hardest set by Pass@8", 3.0),
    "final_without_pass_set": ("last evaluation, without the Pass@8 set", 1.6),
}
"""Metric of the study -> how it averages, and the paper's gain over GRPO averaged so (Tables 4 and 8)."""
STEPS_CLAIMS = {
    ("saerl_grpo", "grpo"): ("SAERL on GRPO against GRPO: fewer steps to target, percent (mean over sets, Table 5)", 19.1),
    ("saerl_dapo", "dapo"): (
        "SAERL on DAPO against DAPO, equal generated rollouts: fewer steps to target, percent (Table 5)", 37.6
    ),
}  # fmt: skip
"""Pair -> its claim about steps and the paper's saving."""
FEWER_CLAIM = "At b, three quarters of the prompts of 4b: Avg@8 gain over GRPO, points (Table 8, 128 prompts a step)"
"""The second reading of Table 8, whose two batch sizes saw different numbers of prompts."""
PREPARATION = "Preparation: time that SAE encoding saves over ADARFT's rollouts, percent (0.5 against 17.33 H100-hours)"
"""Percent of the rollouts' time for the same prompts, t-interval over parts (section 5)."""
HEADLINE_PAIR = COMPARISONS["claim"].iloc[0]
"""The claim that the rows of `HEADLINE` stand for."""


class Effect(NamedTuple):
    """One claim with what was measured."""

    claim: str
    paper_value: float
    interval: Interval
    kind: str
    """Key of `SMALLEST`, which also names the unit."""
    n_seeds: int
    notebook: str
    figure: str
    command: str = ""
    """What computes it; '' for its notebook under the default profile."""
    decidable: bool = True
    """Else "undecided" whatever its interval."""
    p_small: float = 0.0
    """Corrected p-value of the smallest effect of interest or more; above `ALPHA` a verdict from above is not given."""


def _interval(row: pd.Series) -> Interval:
    return Interval(*(float(row[column]) for column in ("value", "ci_low", "ci_high")))


def _moved(interval: Interval, factor: float, by: float = 0.0) -> Interval:
    """The interval plus `by`, times `factor`."""
    return Interval(*(factor * (bound + by) for bound in interval))


def accuracy_effects(curves: pd.DataFrame) -> list[Effect]:
    """Gain over GRPO: as the paper averages, without the Pass@8 set, and with Avg@8 everywhere (Table 4, Table 8)."""
    sets = [name for name in dict.fromkeys(curves["eval_set"]) if name != "all"]
    paper = {name: "pass_at_k" if name == "hardest" else "avg_at_k" for name in sets}
    without = {name: metric for name, metric in paper.items() if name != "hardest"}
    average, effects = dict.fromkeys(sets, "avg_at_k"), []
    for how, value, metrics in (("the hardest by Pass@k", 3.0, paper), ("without the Pass@k set", 1.6, without),
                                ("all by Avg@k", 1.4, average)):  # fmt: skip
        if metrics and (metrics is without or "hardest" in metrics):
            found = over_seeds(final_differences(curves, metrics))
            claim = f"Laptop runs: accuracy gain over GRPO, points ({len(metrics)} sets, {how})"
            where = (found.n_seeds, "08_evaluation", "paired_difference")
            effects.append(Effect(claim, value, found.interval(), "accuracy points", *where))
    return effects


def steps_effect(steps: pd.DataFrame, budget: int) -> Effect:
    """Percent fewer steps to target, mean over sets, paired by seed (Table 5: 380 against 470); `budget` is the last step.

    A run that never reaches a target counts with the last step, which favours the slower arm. The effect is nan when no
    seed has both arms, or `grpo` meets every target before training.
    """
    table = steps[steps["eval_set"] != "all"] if (steps["eval_set"] != "all").any() else steps
    table = table.assign(steps=table["steps"].fillna(budget))
    means = table.pivot_table(index="seed", columns="arm", values="steps").reindex(columns=["grpo", "saerl"]).dropna()
    means = means[means["grpo"] > 0]
    saved = 100 * (means["grpo"] - means["saerl"]) / means["grpo"]
    effect = NO_INTERVAL if means.empty else over_seeds(saved).interval()
    claim = "Laptop runs: fewer steps to target than GRPO, percent (mean over sets)"
    return Effect(claim, 19.1, effect, "fewer steps percent", len(means), "08_evaluation", "learning_curves")


def _regimes(label: str, inside: str, outside: str, adapted: str) -> list[tuple[str, float, str, str, str]]:
    """Readings of Table 2: rho in-domain, its fall out of domain, and what some labels of the other source bring back."""
    inside, outside, adapted = (f"{task} spearman sae" for task in (inside, outside, adapted))
    return [
        (f"{label}, in-domain: Spearman rho", 0.749, "correlation", inside, ""),
        (f"{label}, out of domain: fall of Spearman rho (0.749 to 0.135)", 0.614, "correlation", inside, outside),
        (f"{label}, adapted: gain of Spearman rho (0.135 to 0.286)", 0.151, "correlation", adapted, outside),
    ]


READINGS = (
    *((f"{label} topic from SAE features: accuracy above majority, points", paper, "probe points",
       f"world topic_{level} accuracy sae", f"world topic_{level} accuracy majority")
      for label, level, paper in (("L2", "l2", 22.8), ("L3", "l3", 20.5), ("leaf", "leaf", 19.1))),
    *_regimes("Difficulty from SAE features", *(f"world difficulty_{n}" for n in ("in_domain", "out_of_domain", "adapted"))),
    ("Solution quality: Pearson of SAE above metadata (0.3715 against 0.2100)", 0.1615, "correlation",
     "world solution_quality pearson sae", "world solution_quality pearson metadata"),
    ("MATH, 7 subjects from SAE features: accuracy above majority, points", 22.8, "probe points",
     "math_test subject accuracy sae", "math_test subject accuracy majority"),
    *_regimes("DeepMath difficulty, then DeepScaleR", "deepmath_18k difficulty_level",
              *(f"deepscaler_pass_rate difficulty_{name}" for name in ("out_of_domain", "adapted"))),
)  # fmt: skip
"""Tables 1 to 3 on the world, then on real data, questions alone: claim, the paper's value, kind, and data set, target, metric
and features of two probes: first minus second."""


def probe_effects(ladder: pd.DataFrame, real: bool = False) -> list[Effect]:
    """The effects of `READINGS` on the world, or on real data, that the ladder has rows for.

    A difference of two probes gets the interval of two separate estimates, too wide where they share a test set.
    """
    found = ladder.dropna(subset=["value"])
    keys = [" ".join(row).split("|")[0] for row in found[["dataset", "target", "metric", "features"]].to_numpy()]
    found = found.set_axis(keys, axis=0)
    seeds = 3 if (ladder["features"] == "sae_frozen_decoder").any() else 1  # the first version's ladder read three SAEs of a kind
    where = (seeds, "03_data_properties", "probe_ladder", "SAERL_DATA_DIR=DIR ./run_all.sh")
    where = where if real else (1, "03_data_properties", "world_probes")
    effects = []
    for claim, paper, kind, first, second in READINGS:
        if first.startswith("world ") == real or not {first, second or first} <= set(found.index):
            continue
        effect = _interval(found.loc[first])
        effect = difference_interval(effect, _interval(found.loc[second])) if second else effect
        effects.append(Effect(claim, paper, _moved(effect, 100 if kind == "probe points" else 1), kind, *where))
    return effects


def filter_effects(rules: pd.DataFrame, scores: pd.DataFrame) -> list[Effect]:
    """Gain of purity at the p95 rule, and ROC-AUC above chance from the score histogram (Table 6)."""
    by_rule, rows = rules.set_index("rule"), []
    kept, full = by_rule.loc["p95"], by_rule.loc["full"]
    if kept["kept"] > 0:
        purity = wilson_interval(int(kept["target_kept"]), int(kept["kept"]))
        effect = _moved(purity, 100, -float(full["target_kept"]) / float(full["kept"]))
        recall = 100 * float(kept["target_kept"]) / float(full["target_kept"])
        claim = f"Filter at p95: purity above the pool's, points (95.37 against 49.05; recall 95 %, here {recall:.0f} %)"
        rows.append((claim, 46.32, effect, "purity points"))
    wide = scores.pivot(index="bin_low", columns="source", values="share").sort_index()[["target", "parent"]]
    shares, bins = (wide / wide.sum()).to_numpy(), np.arange(len(wide))
    is_target = np.repeat([True, False], len(wide))
    auc = float(weighted_roc_auc(np.tile(bins, 2), is_target, shares.T.reshape(1, -1))[0])
    interval = auc_interval(auc, int(full["target_kept"]), int(full["kept"] - full["target_kept"]))
    rows.append(("Source probe: ROC-AUC above chance (0.9911 - 0.5)", 0.4911, _moved(interval, 1, -0.5), "auc"))
    return [Effect(*row, 1, "05_quality_filter", "filter") for row in rows]


def diversity_effects(diversity: pd.DataFrame) -> list[Effect]:
    """Gain of in-batch diversity by the tail swap with the smallest h above 0, percent, a row a space (Figure 3)."""
    ours, rows = diversity[diversity["order"].str.startswith("saerl")], []
    for space, part in ours.sort_values("swapped_per_batch", kind="stable").groupby("space"):
        mixed, unmixed = part[part["swapped_per_batch"] > 0], part[part["swapped_per_batch"] == 0]
        if mixed.empty or unmixed.empty or unmixed["value"].iloc[0] <= 0:
            continue
        before = _interval(unmixed.iloc[0])
        effect = _moved(difference_interval(_interval(mixed.iloc[0]), before), 100 / before.value)
        claim = f"Tail swap raises in-batch diversity, percent (h = {int(mixed['swapped_per_batch'].iloc[0])}, space {space})"
        rows.append(Effect(claim, 15.3, effect, "diversity percent", 1, "06_batch_plans", "inbatch_diversity"))
    return rows


def verdict(effect: Interval, smallest: float, no_gain: bool = False) -> str:
    """The rule for an effect whose claimed direction is positive, and turned round for a claim of `no_gain`.

    Fixed before any arm of the study was trained, but for two that its first tables, of two to three seeds, led to: fewer seeds
    than planned decide nothing, and a claim that something does not help has the rule turned round. A claim is an effect with a
    sign (a gain, a fall, a difference to a baseline), turned so that the paper's direction is positive, with a 95 % interval in
    its own unit:
      reproduced      the interval lies above 0 (low > 0);
      not reproduced  the interval lies below the smallest effect of interest of the claim (`SMALLEST`), for claims of the study
                      after Holm's correction for that bound too;
      undecided       neither, or there is no interval (one seed, a missing bound);
      not run         this project did not run it.
    "Reproduced" speaks of the direction in the embedded world, not of the paper's size; both sizes stand side by side.

    >>> [verdict(Interval(1, low, high), 0.5) for low, high in ((0.2, 2), (-1, 0.4), (-1, 2), (float("nan"), 2))]
    ['reproduced', 'not reproduced', 'undecided', 'undecided']
    >>> [verdict(Interval(0, low, high), 0.5, no_gain=True) for low, high in ((-1, 0.4), (0.2, 2), (-1, 2))]
    ['reproduced', 'not reproduced', 'undecided']
    """
    if math.isnan(effect.low) or math.isnan(effect.high):
        return "undecided"
    gains, small = effect.low > 0, effect.high < smallest
    if no_gain:
        return "reproduced" if small else "not reproduced" if gains else "undecided"
    return "reproduced" if gains else "not reproduced" if small else "undecided"


def claim_row(effect: Effect) -> dict[str, Any]:
    """A row of `claims.csv`."""
    judged = verdict(effect.interval, SMALLEST[effect.kind], no_gain=effect.claim == NO_GAIN)
    from_above = judged == ("reproduced" if effect.claim == NO_GAIN else "not reproduced")
    if not effect.decidable or (from_above and effect.p_small > ALPHA):
        judged = "undecided"
    return {
        "claim": effect.claim, "paper_value": effect.paper_value, "our_value": effect.interval.value,
        "ci_low": effect.interval.low, "ci_high": effect.interval.high, "n_seeds": effect.n_seeds,
        "verdict": judged, "notebook": f"notebooks/{effect.notebook}.ipynb",
        "figure": f"figures/{effect.figure}.png", "command": effect.command or f"./run_all.sh --only {effect.notebook[:2]}",
    }  # fmt: skip


def not_run_claims(present: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row for each claim of the paper that no row answers; `present` are those that one does."""
    known = COMPARISONS[COMPARISONS["claim"] != ""]
    empty = dict.fromkeys(SCHEMAS["claims"].columns, "") | dict.fromkeys(("our_value", "ci_low", "ci_high"), math.nan)
    missing = [c for c in (*zip(known["claim"], known["paper_value"], strict=True), *OTHERS_NOT_RUN) if c[0] not in present]
    return [empty | {"claim": c, "paper_value": value, "n_seeds": 0, "verdict": "not run"} for c, value in missing]


STUDY = ("08_evaluation", "study_effects", "./run_all.sh --profile study")


def study_claims(comparisons: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each comparison of the study that a claim of the paper speaks of; intervals are Holm's within the family.

    A comparison with fewer seeds than planned stays "undecided": a look at half of the runs decides nothing.
    """
    rows = []
    for row in comparisons[comparisons["metric"] != "area"].itertuples():
        claim, value, kind, pair = row.claim, row.paper_value, "accuracy points", (row.arm, row.baseline)
        if row.metric == "steps":
            (claim, value), kind = STEPS_CLAIMS.get(pair, ("", math.nan)), "fewer steps percent"
        elif pair == ("saerl_grpo", BASELINE):
            how, value = HEADLINE[row.metric]
            claim = f"SAERL on GRPO against GRPO: accuracy gain, points ({how})"
        if not isinstance(claim, str) or not claim:
            continue
        interval, enough = Interval(row.difference, row.holm_low, row.holm_high), row.n_seeds >= planned_seeds(row.family)
        rows.append(claim_row(Effect(claim, value, interval, kind, int(row.n_seeds), *STUDY, enough, row.p_small)))
    return rows


def batch_claim(readings: pd.DataFrame) -> list[dict[str, Any]]:
    """The row of `FEWER_CLAIM` from study_batch.csv; none where the four arms were not trained."""
    part = readings[(readings["reading"] == "the paper's counts") & (readings["comparison"] == "gain at b")]
    return [
        claim_row(Effect(FEWER_CLAIM, 1.4, Interval(row.difference, row.ci_low, row.ci_high), "accuracy points", int(row.n_seeds),
                         *STUDY, row.n_seeds >= planned_seeds("batch")))
        for row in part.itertuples()
    ]  # fmt: skip


def build_claims(data_folder: Path) -> pd.DataFrame:
    """All rows of `claims.csv` from the other tables in `data_folder`; a gate that is missing counts as not met.

    Raises TableError for a missing table.
    """
    tables = {name: read_table(name, data_folder) for name in INPUTS}
    curves, gates = tables["learning_curves"], tables["world_gates"]
    decidable = ORDER_GATE in set(gates.loc[is_true(gates["met"]), "gate"])
    steps = steps_effect(tables["steps_to_target"], int(curves["step"].max()))
    saved, bench = over_seeds(tables["preparation_cost"]["saved"]).interval(), "python -m saerl_lib bench preparation"
    others = [
        *probe_effects(tables["world_probes"]),
        *probe_effects(tables["probe_ladder"], real=True),
        *filter_effects(tables["filter"], tables["filter_scores"]),
        *diversity_effects(tables["inbatch_diversity"]),
        Effect(PREPARATION, 97.1, saved, "time percent", 1, "08_evaluation", "preparation_cost", bench),
    ]
    study = study_claims(tables["study_comparisons"]) + batch_claim(tables["study_batch"])
    laptop = [claim_row(effect._replace(decidable=decidable)) for effect in (*accuracy_effects(curves), steps)]
    rows = study + laptop + [claim_row(effect) for effect in others]
    answered = [row["claim"] for row in study] + [HEADLINE_PAIR] * bool(study)
    return pd.DataFrame(rows + not_run_claims(answered))[list(SCHEMAS["claims"].columns)]
