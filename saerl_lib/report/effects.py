"""Effects behind the claims, each computed from the tables of `figures/data` alone.

An effect has the paper's direction as its positive sign, a 95 % interval in its own unit, and the paper's value beside it.
Accuracy and steps are paired by seed with a t interval over seeds. A run that never reaches a target counts with its
last step, which favours the slower arm.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from saerl_lib.config import MethodConfig
from saerl_lib.report.intervals import auc_interval, difference_interval, histogram_auc, wilson_interval
from saerl_lib.report.schemas import TableError
from saerl_lib.report.statistics import Interval, paired_t_interval


class Effect(NamedTuple):
    """One claim with what was measured."""

    claim: str
    paper_value: float
    interval: Interval
    kind: str
    """Key of `claims.SMALLEST`, which also names the unit."""
    n_seeds: int
    notebook: str
    figure: str
    profile: str = ""
    """Profile that computes it; '' for the default one."""


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


def accuracy_effects(curves: pd.DataFrame) -> list[Effect]:
    """Gain over GRPO: as the paper averages, without the Pass@8 set, and with Avg@8 everywhere (Table 4, Table 8)."""
    sets = [name for name in dict.fromkeys(curves["eval_set"]) if name != "all"]
    paper = {name: "pass_at_k" if name == "hardest" else "avg_at_k" for name in sets}
    without = {name: metric for name, metric in paper.items() if name != "hardest"}
    variants: list[tuple[str, float, dict[str, str]]] = [
        ("{n} sets, the hardest by Pass@k", 3.0, paper),
        ("{n} sets, without the Pass@k set", 1.6, without),
        ("{n} sets, all by Avg@k", 1.4, dict.fromkeys(sets, "avg_at_k")),
    ]
    rows = []
    for text, value, metrics in variants:
        if not metrics or (text != variants[1][0] and "hardest" not in metrics):
            continue
        differences = final_differences(curves, metrics)
        claim = f"Laptop runs: accuracy gain over GRPO, points ({text.format(n=len(metrics))})"
        effect = paired_t_interval(differences)
        rows.append(Effect(claim, value, effect, "accuracy points", len(differences), "08_evaluation", "paired_difference"))
    return rows


def steps_effect(steps: pd.DataFrame, budget: int) -> Effect:
    """Percent fewer steps to target, mean over sets, paired by seed (Table 5: 380 against 470); `budget` is the last step.

    The effect is nan when no seed has both arms, or `grpo` meets every target before training.
    """
    table = steps[steps["eval_set"] != "all"] if (steps["eval_set"] != "all").any() else steps
    table = table.assign(steps=table["steps"].fillna(budget))
    means = table.pivot_table(index="seed", columns="arm", values="steps").reindex(columns=["grpo", "saerl"]).dropna()
    means = means[means["grpo"] > 0]
    saved = 100 * (means["grpo"] - means["saerl"]) / means["grpo"]
    effect = Interval(math.nan, math.nan, math.nan) if means.empty else paired_t_interval(saved)
    claim = "Laptop runs: fewer steps to target than GRPO, percent (mean over sets)"
    return Effect(claim, 19.1, effect, "fewer steps percent", len(means), "08_evaluation", "learning_curves")


def _probe(ladder: pd.DataFrame, target: str, metric: str, *features: str) -> Interval | None:
    rows = ladder[(ladder["target"] == target) & (ladder["metric"] == metric) & ladder["features"].isin(features)]
    if rows.empty or pd.isna(rows["value"].iloc[0]):
        return None
    return Interval(*(float(rows[column].iloc[0]) for column in ("value", "ci_low", "ci_high")))


def _regime_rows(label: str, inside: Interval | None, outside: Interval | None, adapted: Interval | None) -> list[tuple]:
    """Claims of Table 2: rho in-domain, its fall out of domain, and what some labels of the other source bring back."""
    rows = []
    if inside:
        rows.append((f"{label}, in-domain: Spearman rho", 0.749, inside, "correlation"))
    if inside and outside:
        effect = difference_interval(inside, outside)
        rows.append((f"{label}, out of domain: fall of Spearman rho (0.749 to 0.135)", 0.614, effect, "correlation"))
    if outside and adapted:
        effect = difference_interval(adapted, outside)
        rows.append((f"{label}, adapted: gain of Spearman rho (0.135 to 0.286)", 0.151, effect, "correlation"))
    return rows


def probe_effects(ladder: pd.DataFrame, dataset: str = "world") -> list[Effect]:
    """Topic, difficulty and solution quality read from SAE features (Tables 1 to 3), on the rows of one data set.

    A difference of two probes gets the interval of two separate estimates, too wide where they share a test set.
    Raises TableError when the data set has no rows.
    """
    table = ladder[ladder["dataset"] == dataset]
    if table.empty:
        raise TableError(f"world_probes: no rows of dataset {dataset!r}; it holds {sorted(ladder['dataset'].unique())}")
    rows = []
    for target, label, paper in (("topic_l2", "L2", 22.8), ("topic_l3", "L3", 20.5), ("topic_leaf", "leaf", 19.1)):
        sae, majority = _probe(table, target, "accuracy", "sae"), _probe(table, target, "accuracy", "majority", "majority|mean")
        if sae and majority:
            effect = Interval(*(100 * x for x in difference_interval(sae, majority)))
            rows.append((f"{label} topic from SAE features: accuracy above majority, points", paper, effect, "probe points"))
    regimes = [_probe(table, f"difficulty_{name}", "spearman", "sae") for name in ("in_domain", "out_of_domain", "adapted")]
    rows += _regime_rows("Difficulty from SAE features", *regimes)
    sae, metadata = (_probe(table, "solution_quality", "pearson", name) for name in ("sae", "metadata"))
    if sae and metadata:
        effect = difference_interval(sae, metadata)
        rows.append(("Solution quality: Pearson of SAE above metadata (0.3715 against 0.2100)", 0.1615, effect, "correlation"))
    return [Effect(*row, 1, "03_data_properties", "world_probes") for row in rows]


def real_probe_effects(ladder: pd.DataFrame) -> list[Effect]:
    """Tables 1 and 2 on real data, read by a small LM: MATH subjects, DeepMath difficulty, and its transfer to DeepScaleR.

    Questions alone. Differences get the interval of two separate estimates. A ladder without real data gives no effect.
    """
    math, deepmath, scaler = (ladder[ladder["dataset"] == n] for n in ("math_test", "deepmath_18k", "deepscaler_pass_rate"))
    rows = []
    sae, majority = _probe(math, "subject", "accuracy", "sae"), _probe(math, "subject", "accuracy", "majority")
    if sae and majority:
        effect = Interval(*(100 * x for x in difference_interval(sae, majority)))
        rows.append(("MATH, 7 subjects from SAE features: accuracy above majority, points", 22.8, effect, "probe points"))
    inside = _probe(deepmath, "difficulty_level", "spearman", "sae")
    outside, adapted = (_probe(scaler, f"difficulty_{n}", "spearman", "sae") for n in ("out_of_domain", "adapted"))
    rows += _regime_rows("DeepMath difficulty, then DeepScaleR", inside, outside, adapted)
    return [Effect(*row, MethodConfig().sae_seeds, "03_data_properties", "probe_ladder", "method") for row in rows]


def filter_effects(rules: pd.DataFrame, scores: pd.DataFrame) -> list[Effect]:
    """Gain of purity at the p95 rule, and ROC-AUC above chance from the score histogram (Table 6)."""
    by_rule = rules.set_index("rule")
    for name in ("full", "p95"):
        if name not in by_rule.index:
            raise TableError(f"filter: rule {name!r} is missing; notebook 05 writes it")
    kept, full = by_rule.loc["p95"], by_rule.loc["full"]
    rows = []
    if kept["kept"] > 0:
        purity = wilson_interval(int(kept["target_kept"]), int(kept["kept"]))
        base = float(full["target_kept"]) / float(full["kept"])
        effect = Interval(*(100 * (value - base) for value in purity))
        recall = 100 * float(kept["target_kept"]) / float(full["target_kept"])
        claim = f"Filter at p95: purity above the pool's, points (95.37 against 49.05; recall 95 %, here {recall:.0f} %)"
        rows.append((claim, 46.32, effect, "purity points"))
    parts = {name: part.sort_values("bin_low")["share"].to_numpy() for name, part in scores.groupby("source")}
    if not {"target", "parent"} <= parts.keys():
        raise TableError(f"filter_scores: sources {sorted(parts)} lack 'target' or 'parent'; notebook 05 writes both")
    auc = histogram_auc(parts["target"], parts["parent"])
    interval = auc_interval(auc, int(full["target_kept"]), int(full["kept"] - full["target_kept"]))
    effect = Interval(*(value - 0.5 for value in interval))
    rows.append(("Source probe: ROC-AUC above chance (0.9911 - 0.5)", 0.4911, effect, "auc"))
    return [Effect(*row, 1, "05_quality_filter", "filter") for row in rows]


def diversity_effects(diversity: pd.DataFrame) -> list[Effect]:
    """Gain of in-batch diversity by the tail swap with the smallest h above 0, percent, a row a space (Figure 3)."""
    ours = diversity[diversity["order"].str.startswith("saerl")]
    rows = []
    for space in sorted(ours["space"].unique()):
        part = ours[ours["space"] == space].sort_values("swapped_per_batch", kind="stable")
        mixed = part[part["swapped_per_batch"] > 0]
        unmixed = part[part["swapped_per_batch"] == 0]
        if mixed.empty or unmixed.empty or unmixed["value"].iloc[0] <= 0:
            continue
        after, before = (
            Interval(*(float(rows_of[c].iloc[0]) for c in ("value", "ci_low", "ci_high"))) for rows_of in (mixed, unmixed)
        )
        effect = Interval(*(100 * value / before.value for value in difference_interval(after, before)))
        claim = f"Tail swap raises in-batch diversity, percent (h = {int(mixed['swapped_per_batch'].iloc[0])}, space {space})"
        rows.append(Effect(claim, 15.3, effect, "diversity percent", 1, "06_batch_plans", "inbatch_diversity"))
    return rows


def preparation_effect(cost: pd.DataFrame) -> Effect:
    """Share of ADARFT's rollout time that SAE encoding of the same prompts saves, percent, t-interval over parts (section 5)."""
    claim = "Preparation: time that SAE encoding saves over ADARFT's rollouts, percent (0.5 against 17.33 H100-hours)"
    found = paired_t_interval(cost["saved"].to_numpy())
    return Effect(claim, 97.1, found, "time percent", 1, "08_evaluation", "preparation_cost")
