"""Which arms of the study are compared, in families that Holm's correction holds within, and the rows of study_comparisons.csv.

Fixed before the arms were trained, but for the family `post_hoc`, which the first results suggested. A difference is arm minus
baseline, so that a positive one speaks for the arm; for `steps` it is the percentage of the baseline's steps that the arm saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from saerl_lib.config import StudyConfig
from saerl_lib.report.arm_effects import final_values, outcome_values
from saerl_lib.report.arm_tables import set_rates
from saerl_lib.report.paired import Comparison, compare, corrected, over_seeds
from saerl_lib.report.statistics import area_under_curve

PASS_SET = "hardest"
SMALLEST_POINTS, SMALLEST_STEPS = StudyConfig().smallest_effect_points, 5.0
"""Smallest effects of interest: points of accuracy, percent of steps (ours)."""


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
