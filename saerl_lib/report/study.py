"""Tables of the RL study and of the laptop's own runs, from evaluations that have one row a run, step and problem.

Outcome of a run: the mean over the sets of Avg@k, averaged over the last three evaluations. Small evaluations use the first
problems of a set, the last one all of them; each carries the weight that makes the mean over a set's problems the outcome.
Differences between arms are paired by seed (`statistics.paired_estimate`) and corrected by Holm within families of comparisons
that were fixed before the arms were trained, but for `post_hoc`, which the first results suggested. The paper's Tables 4, 5, 7, 8
and Figure 3 stand beside the study's; its values lie in `paper_tables.csv` beside this file. All ours unless the paper is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from saerl_lib.config import StudyConfig
from saerl_lib.report.statistics import (
    Comparison,
    Interval,
    area_under_curve,
    compare,
    corrected,
    over_seeds,
    paired_estimate,
    pass_at_k,
    steps_to_target,
)
from saerl_lib.report.tables import SCHEMAS, TableError

# From evaluations to outcomes.


LAST = 3
"""Evaluations that the outcome averages."""
RUN = ["arm", "seed"]
NO_INTERVAL = Interval(math.nan, math.nan, math.nan)


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


# Runs and arms.


PASS_SET = "hardest"
"""The set that the paper's way of averaging scores by Pass@k, as AIME24."""
BASELINE, PAPER = "grpo", "paper"


class StudyArm(Protocol):
    """What the tables need to know of an arm."""

    title: str
    group: str
    model: str
    """The policy that it trains."""
    baseline: str
    cost: Sequence[str]


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


def targets_by_policy(evaluations: pd.DataFrame, arms: Mapping[str, StudyArm], problems: int, budget: int) -> pd.DataFrame:
    """`target_steps` of each trained policy by itself: its targets come from the paper's arms, or from all where it has none."""
    present, parts = set(evaluations["arm"]), []
    for model in dict.fromkeys(arm.model for arm in arms.values()):
        own = [name for name, arm in arms.items() if name in present and arm.model == model]
        rated = [name for name in own if arms[name].group == PAPER] or own
        if own:
            parts.append(target_steps(evaluations[evaluations["arm"].isin(own)], rated, problems, budget))
    return pd.concat(parts, ignore_index=True)


def against_random(arms: Mapping[str, StudyArm], present: Sequence[str]) -> list[tuple[str, str]]:
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
        "label_pool": ("prep_labels", sizes.pool), "label_subset": ("prep_labels", sizes.labelled),
        "rollouts_16": ("prep_rollouts", sizes.pool * sizes.attempts), "rollouts_1": ("prep_rollouts", sizes.pool),
        "encode": ("prep_encoded", sizes.pool + sizes.labelled), "policy_forward": ("prep_forward", sizes.pool),
    }  # fmt: skip
    found = dict.fromkeys(("prep_labels", "prep_rollouts", "prep_encoded", "prep_forward"), 0)
    for item in cost:
        if item not in known:
            raise ValueError(f"cost item {item!r} is not known; choose from {', '.join(known)}")
        name, amount = known[item]
        found[name] += amount
    return found


def summary_table(
    results: Mapping[str, pd.DataFrame], arms: Mapping[str, StudyArm], problems: int, budget: int, sizes: Sizes
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


# Comparisons.


SMALLEST_POINTS, SMALLEST_STEPS = 0.5, 5.0
"""Smallest effects of interest: points of accuracy, percent of steps; an interval wholly below says "not reproduced" (ours)."""


@dataclass(frozen=True)
class Pair:
    """One comparison, and the paper's claim that it answers."""

    arm: str
    baseline: str
    claim: str = ""
    paper_value: float = math.nan
    """In points, of the paper's own tables."""


NO_GAIN = "Mixing without difficulty sorting: accuracy gain, points (the claim is that there is none; Table 7)"
"""The one claim that is reproduced by a gain below the smallest effect of interest."""

BUDGET = ", equal generated rollouts"
"""DAPO drops rollouts, so that at this budget it makes fewer updates: not the paper's comparison at equal steps."""
FOUR_TIMES = "Four times the batch, a quarter of the updates: Avg@8 gain over GRPO, points (Table 8, 512 prompts a step)"
SAE_FEATURES = "SAERL on SAE features against SAERL on"

FAMILIES: dict[str, tuple[Pair, ...]] = {
    "paper": (
        Pair("saerl_grpo", "grpo", "SAERL on GRPO against GRPO: accuracy gain, points (Table 4)", 3.0),
        Pair("saerl_dapo", "dapo", f"SAERL on DAPO against DAPO{BUDGET}: accuracy gain, points (Table 4)", 1.05),
        Pair("dapo", "grpo", f"DAPO against GRPO{BUDGET}: accuracy gain, points (Table 4)", 2.1),
        Pair("diff", "grpo", "DIFF against GRPO: accuracy gain, points (Table 4)", 1.1),
        Pair("adarft", "grpo", "ADARFT against GRPO: accuracy gain, points (Table 4)", 0.5),
        Pair("gainrl", "grpo", "", 0.0),
        Pair("saerl_grpo", "diff", "SAERL on GRPO against DIFF: accuracy gain, points (Table 4)", 1.9),
    ),
    "ablation": (
        Pair("saerl_grpo", "minus_diff", "Ablation without difficulty sorting: accuracy lost, points (Table 7)", 2.7),
        Pair("saerl_grpo", "minus_diff_mix", "Ablation without difficulty sorting and mixing: accuracy lost, points (Table 7)",
             2.3),
        Pair("saerl_grpo", "minus_clus_mix", "Ablation without clusters and mixing: accuracy lost, points (Table 7)", 1.6),
        Pair("saerl_grpo", "minus_mix", "Mixing study: accuracy gain of h = 8 of 128 over h = 0, points (Figure 3)", 1.9),
        Pair("minus_diff", "minus_diff_mix", NO_GAIN, -0.4),
    ),
    "mixing": (
        Pair("mix_1", "minus_mix", "", 1.05),
        Pair("saerl_grpo", "mix_4", "Mixing study: accuracy gain of h = 8 of 128 over h = 16, points (Figure 3)", 1.1),
        Pair("saerl_grpo", "mix_8", "Mixing study: accuracy gain of h = 8 of 128 over h = 32, points (Figure 3)", 1.65),
    ),
    "batch": (Pair("saerl_4b", "grpo_4b", FOUR_TIMES, 1.82),),
    "filter": (
        Pair("grpo", "grpo_unfiltered"),
        Pair("saerl_grpo", "saerl_unfiltered"),
    ),
    "features": (
        Pair("saerl_grpo", "saerl_tfidf", f"{SAE_FEATURES} TF-IDF features: accuracy gain, points (not in the paper)"),
        Pair("saerl_grpo", "saerl_dense", f"{SAE_FEATURES} dense activations: accuracy gain, points (not in the paper)"),
        Pair("saerl_grpo", "saerl_frozen",
             f"{SAE_FEATURES} an SAE with a frozen decoder: accuracy gain, points (not in the paper)"),
        Pair("saerl_grpo", "saerl_shuffled"), Pair("saerl_true", "saerl_grpo"),
    ),
    "post_hoc": (
        Pair("saerl_stretch", "saerl_grpo"), Pair("saerl_back", "saerl_grpo"), Pair("minus_clus_mix", "diff"),
        Pair("minus_diff", "grpo"), Pair("informative_half", "grpo"),
    ),
    "order": (
        Pair("grpo_shuffle_b", "grpo"), Pair("grpo_shuffle_c", "grpo"), Pair("hard_to_easy", "grpo"),
        Pair("short_to_long", "grpo"), Pair("pass_rate_order", "grpo"),
    ),
    "rival": (
        Pair("shift", "grpo"), Pair("irds", "grpo"), Pair("e2h", "grpo"), Pair("mopps", "grpo"), Pair("sec", "grpo"),
    ),
    "transfer": (
        Pair("saerl_grpo_large", "grpo_large", "Larger policy, same plan: accuracy gain over GRPO, points (Table 4, 7B)", 2.0),
    ),
}  # fmt: skip


def planned_seeds(family: str) -> int:
    """Matched seeds that the protocol gives to the arms of a family of comparisons."""
    study = StudyConfig()
    return study.seeds if family == "paper" else study.other_seeds


def family_pairs(present: Sequence[str], extra: Sequence[str] = ()) -> dict[str, list[Pair]]:
    """Comparisons whose two arms are present; arms of the user, `extra`, are compared with `grpo`."""
    known = set(present)
    families = {name: [p for p in pairs if {p.arm, p.baseline} <= known] for name, pairs in FAMILIES.items()}
    families["user"] = [Pair(name, "grpo") for name in extra if {name, "grpo"} <= known]
    return {name: pairs for name, pairs in families.items() if pairs}


def accuracy_metrics(evaluations: pd.DataFrame) -> dict[str, Mapping[str, pd.DataFrame]]:
    """Metric -> values by set: the outcome, and the last evaluation as the paper averages it, and without its Pass@8 set."""
    final = final_values(evaluations, PASS_SET)
    return {
        "outcome": outcome_values(evaluations),
        "final_with_pass": final,
        "final_without_pass_set": {name: table for name, table in final.items() if name != PASS_SET},
    }


def compare_steps(steps: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
    """Percent of the baseline's steps to target saved, mean over sets, paired by seed with Student's t, corrected by Holm."""
    means = steps.groupby(["arm", "seed"])["steps"].mean()

    def saved(arm: pd.Series, baseline: pd.Series) -> pd.Series:
        return 100 * (baseline - arm) / baseline.clip(lower=1.0)

    return _paired(means, pairs, saved, SMALLEST_STEPS)


def compare_areas(evaluations: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
    """Points of the area under the accuracy curve (mean over sets, divided by the run's length), as `compare_steps`."""
    rates = set_rates(evaluations.reset_index(drop=True)).groupby(["arm", "seed", "step"])["avg"].mean()
    runs = rates.reset_index("step").groupby(["arm", "seed"])
    areas = runs.apply(lambda run: area_under_curve(run["step"].to_numpy(), run["avg"].to_numpy()))
    return _paired(areas, pairs, lambda arm, baseline: arm - baseline, SMALLEST_POINTS)


def _paired(
    values: pd.Series, pairs: Sequence[tuple[str, str]], effect: Callable[[pd.Series, pd.Series], pd.Series], smallest: float
) -> list[Comparison]:
    """Comparisons of one value a run, by arm and seed, with t intervals over the seeds that both arms have."""
    found = []
    for arm, baseline in pairs:
        both = values.loc[arm].index.intersection(values.loc[baseline].index)
        found.append(over_seeds(effect(values.loc[arm].loc[both], values.loc[baseline].loc[both]).to_numpy()))
    return corrected(pairs, found, smallest)


def comparison_rows(evaluations: pd.DataFrame, steps: pd.DataFrame, extra: Sequence[str] = ()) -> pd.DataFrame:
    """Rows of study_comparisons.csv for all comparisons whose arms are there."""
    rows, metrics = [], accuracy_metrics(evaluations)
    for family, pairs in family_pairs(sorted(evaluations["arm"].unique()), extra).items():
        names = [(p.arm, p.baseline) for p in pairs]
        found = {metric: compare(values, names, SMALLEST_POINTS) for metric, values in metrics.items()}
        found |= {"steps": compare_steps(steps, names), "area": compare_areas(evaluations, names)}
        for metric, comparisons in found.items():
            rows += [comparison_row(family, metric, pair, c) for pair, c in zip(pairs, comparisons, strict=True)]
    return pd.DataFrame(rows)


def comparison_row(family: str, metric: str, pair: Pair, found: Comparison) -> dict[str, object]:
    """A row of study_comparisons.csv; the claim and the paper's value stand with the outcome alone."""
    told = metric == "outcome"
    return {
        "family": family, "metric": metric, "arm": pair.arm, "baseline": pair.baseline, "n_seeds": found.n_seeds,
        "difference": found.interval.value, "ci_low": found.interval.low, "ci_high": found.interval.high,
        "holm_low": found.corrected.low, "holm_high": found.corrected.high, "p_value": found.p_value,
        "p_holm": found.p_holm, "p_small": found.p_small, "detectable": found.detectable,
        "claim": pair.claim if told else "", "paper_value": pair.paper_value if told else np.nan,
    }  # fmt: skip


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


def last_rates(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Percent of the last evaluation: arm, seed, eval_set (and "mean" over sets), avg (Avg@k), passed (Pass@k)."""
    last = evaluations[evaluations["step"] == evaluations["step"].max()].reset_index(drop=True)
    rates = set_rates(last).drop(columns="step")
    return pd.concat([rates, rates.groupby(["arm", "seed"])[["avg", "passed"]].mean().reset_index().assign(eval_set="mean")])


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
        found = over_seeds(own).interval() if len(own) else NO_INTERVAL
        rows.append((row.table, row.arm, row.column, name, row.value, found.value, found.low, found.high, len(own)))
    return pd.DataFrame(rows + _gains(evaluations, paper), columns=list(SCHEMAS["study_paper_tables"].columns))


def _gains(evaluations: pd.DataFrame, paper: pd.DataFrame) -> list[tuple[object, ...]]:
    """Rows "4 gain": each arm of Table 4 minus its baseline, with the interval of `paired`, beside the paper's difference."""
    four = paper[paper["table"] == "4"].set_index(["arm", "column"])["value"]
    values, present, rows = final_values(evaluations, PASS_SET), set(evaluations["arm"]), []
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
    columns = list(SCHEMAS["study_batch"].columns)
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
            rows.append((reading, name, size, *estimate.interval(), estimate.n_seeds))
    return pd.DataFrame(rows, columns=columns)


def mixing_rows(evaluations: pd.DataFrame, steps: pd.DataFrame, diversity: pd.DataFrame) -> pd.DataFrame:
    """Rows of study_mixing.csv: each h with its outcome, difference to h = 0 paired by seed (t-interval), steps and diversity.

    `diversity` has arm, swapped_per_batch, space, value: in-batch k-NN distance. Diversity is given relative to h = 0,
    the paper's too. Rows of arms that were not trained are left out; empty without h = 0.
    """
    columns = list(SCHEMAS["study_mixing"].columns)
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
        found = paired_estimate(by_problem, name, MIXING[0]).interval() if name != MIXING[0] else none
        # the seeds that the arm shares with h = 0, so that outcome, difference and steps speak of the same runs
        own, its = values.loc[name].loc[paired.index], paper.loc[name]
        reached = steps[(steps["arm"] == name) & steps["seed"].isin(paired.index)]["steps"].mean()
        rows.append(
            (name, int(swapped[name]), own.mean(), *found, len(paired), reached,
             *spaces.loc[name, ["PCA 2-D", "full"]], 4 * int(swapped[name]), its["mean"] - first["mean"], its["steps to 43 %"],
             its["in-batch diversity, 1e-4"] / first["in-batch diversity, 1e-4"])
        )  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


# The laptop's own runs.


def learning_curves(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Rows of learning_curves.csv: Avg@k and Pass@k a set, and the mean of the sets' Avg@k as 'all'; k is n_samples."""
    rows, keys = [], [*RUN, "step", "eval_set"]
    for (arm, seed, step, name, attempts), part in evaluations.groupby([*keys, "attempts"], sort=True):
        rates = part["correct"].to_numpy() / attempts
        common = (arm, seed, step, name)
        rows.append((*common, "avg_at_k", float(rates.mean()), len(part), attempts))
        passed = pass_at_k(attempts, part["correct"].to_numpy(), attempts)
        rows.append((*common, "pass_at_k", float(passed.mean()), len(part), attempts))
    curves = pd.DataFrame(rows, columns=[*keys, "metric", "value", "n_problems", "n_samples"])
    means = curves[curves["metric"] == "avg_at_k"].groupby(["arm", "seed", "step", "n_samples"], as_index=False)
    mean = means.agg(value=("value", "mean"), n_problems=("n_problems", "sum")).assign(eval_set="all", metric="avg_at_k")
    return pd.concat([curves, mean[curves.columns]], ignore_index=True)


def final_differences(curves: pd.DataFrame, metrics: dict[str, str], arm: str = "saerl", baseline: str = "grpo") -> np.ndarray:
    """arm minus baseline at the last step, mean over sets, in percent points, one value a matched seed [S].

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
        table = part.pivot(index="seed", columns="arm", values="value").reindex(columns=[arm, baseline])
        if table.empty or table.isna().to_numpy().any():
            raise TableError(f"learning_curves: {name} {metric} at the last step lacks {arm} or {baseline} for a seed")
        columns.append(100 * (table[arm] - table[baseline]))
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
    return pd.DataFrame(rows, columns=list(SCHEMAS["paired_difference"].columns))


def steps_to_targets(evaluations: pd.DataFrame, problems: int) -> pd.DataFrame:
    """Rows of steps_to_target.csv: the target is the lowest final accuracy among the arms, mean over seeds (paper, section 5).

    A run reaches it at its first evaluation at or above it; empty when none is. Every evaluation counts on the first
    `problems` problems of a set, those of the small evaluations, so that target and curve speak of the same problems.
    """
    curves = learning_curves(evaluations.groupby([*RUN, "step", "eval_set"], sort=False).head(problems))
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
