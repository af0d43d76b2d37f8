"""The rows of `claims.csv`: what the paper claims beside what the tables of `figures/data` say.

Rules, fixed before any arm of the study was trained, but for two that its first tables, of two to three seeds, led to: fewer
seeds than planned decide nothing, and a claim that something does not help has the rule turned round. A claim is an effect
with a sign (a gain, a fall, a difference to a baseline), turned so that the paper's direction is positive, with a 95 %
interval in its own unit:
  reproduced      the interval lies above 0 (ci_low > 0);
  not reproduced  the interval lies below the smallest effect of interest of the claim (`SMALLEST`), for claims of the study
                  after Holm's correction for that bound too;
  undecided       neither, or there is no interval (one seed, a missing bound);
  not run         this project did not run it.
"Reproduced" speaks of the direction in the embedded world, not of the paper's size; both sizes stand side by side.
The laptop's own claims on the order of prompts are "undecided" when the world cannot separate orders: accuracy under the
gate `ORDER_GATE`, steps to target under `SPEED_GATE`; the study carries its smallest detectable effect with each row.
Accuracy and steps of the laptop are paired by seed with a t interval over seeds; a run that never reaches a target counts with
its last step, which favours the slower arm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from saerl_lib.report.statistics import (
    ALPHA,
    Interval,
    auc_interval,
    difference_interval,
    histogram_auc,
    over_seeds,
    wilson_interval,
)
from saerl_lib.report.study import (
    BUDGET,
    FAMILIES,
    NO_GAIN,
    NO_INTERVAL,
    SMALLEST_POINTS,
    SMALLEST_STEPS,
    final_differences,
    planned_seeds,
)
from saerl_lib.report.tables import SCHEMAS, TableError, is_true, read_table

INPUTS = (
    "world_gates", "world_probes", "probe_ladder", "filter", "filter_scores", "inbatch_diversity", "learning_curves",
    "steps_to_target", "study_comparisons", "study_batch", "preparation_cost",
)  # fmt: skip
"""Tables that the claims are built from."""
ORDER_GATE = "sensitivity: order effect / minimum detectable effect"
SPEED_GATE = "sensitivity of speed: order effect / minimum detectable effect"
SMALLEST = {
    "accuracy points": SMALLEST_POINTS,
    "fewer steps percent": SMALLEST_STEPS,
    "probe points": 5.0,
    "correlation": 0.05,
    "purity points": 5.0,
    "auc": 0.1,
    "diversity percent": 2.0,
    "time percent": 5.0,
}
"""Smallest effects of interest, in the unit of the claim (ours)."""
OTHERS_NOT_RUN: tuple[tuple[str, float], ...] = (
    ("One SAE serves policies of other families (the paper trained two sizes of one family)", math.nan),
)
"""Claims of the paper, with its value, that no comparison of the study speaks of."""
HEADLINE = {
    "outcome": ("all sets by Avg@k, mean of the last three evaluations", 1.4),
    "final_with_pass": ("last evaluation, the hardest set by Pass@8", 3.0),
    "final_without_pass_set": ("last evaluation, without the Pass@8 set", 1.6),
}
"""Metric of the study -> how it averages, and the paper's gain over GRPO averaged so (Tables 4 and 8)."""
STEPS_CLAIMS = {
    ("saerl_grpo", "grpo"): ("SAERL on GRPO against GRPO: fewer steps to target, percent (mean over sets, Table 5)", 19.1),
    ("saerl_dapo", "dapo"): (f"SAERL on DAPO against DAPO{BUDGET}: fewer steps to target, percent (Table 5)", 37.6),
}
"""Pair -> its claim about steps and the paper's saving."""
FEWER_CLAIM = "At b, three quarters of the prompts of 4b: Avg@8 gain over GRPO, points (Table 8, 128 prompts a step)"
"""The second reading of Table 8, whose two batch sizes saw different numbers of prompts."""
HEADLINE_PAIR = FAMILIES["paper"][0].claim
"""The claim that the rows of `HEADLINE` stand for."""


# The effects behind them, each from the tables of `figures/data` alone.


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
    profile: str = ""
    """Profile that computes it; '' for the default one."""


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
        effect = over_seeds(differences).interval()
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
    effect = NO_INTERVAL if means.empty else over_seeds(saved).interval()
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
    subjects, deepmath, scaler = (ladder[ladder["dataset"] == n] for n in ("math_test", "deepmath_18k", "deepscaler_pass_rate"))
    rows = []
    sae, majority = _probe(subjects, "subject", "accuracy", "sae"), _probe(subjects, "subject", "accuracy", "majority")
    if sae and majority:
        effect = Interval(*(100 * x for x in difference_interval(sae, majority)))
        rows.append(("MATH, 7 subjects from SAE features: accuracy above majority, points", 22.8, effect, "probe points"))
    inside = _probe(deepmath, "difficulty_level", "spearman", "sae")
    outside, adapted = (_probe(scaler, f"difficulty_{n}", "spearman", "sae") for n in ("out_of_domain", "adapted"))
    rows += _regime_rows("DeepMath difficulty, then DeepScaleR", inside, outside, adapted)
    return [Effect(*row, 1, "03_data_properties", "probe_ladder", "laptop") for row in rows]


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
    found = over_seeds(cost["saved"]).interval()
    return Effect(claim, 97.1, found, "time percent", 1, "08_evaluation", "preparation_cost")


# The claims.


def verdict(effect: Interval, smallest: float, no_gain: bool = False) -> str:
    """The rule of this module for an effect whose claimed direction is positive; turned round for a claim of `no_gain`.

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


def claim_row(effect: Effect, decidable: bool = True) -> dict[str, Any]:
    """A row of `claims.csv`; an effect that is not `decidable` is "undecided" whatever its interval."""
    return {
        "claim": effect.claim,
        "paper_value": effect.paper_value,
        "our_value": effect.interval.value,
        "ci_low": effect.interval.low,
        "ci_high": effect.interval.high,
        "n_seeds": effect.n_seeds,
        "verdict": verdict(effect.interval, SMALLEST[effect.kind]) if decidable else "undecided",
        "notebook": f"notebooks/{effect.notebook}.ipynb",
        "figure": f"figures/{effect.figure}.png",
        "command": f"./run_all.sh --profile {effect.profile}" if effect.profile else f"./run_all.sh --only {effect.notebook[:2]}",
    }


def not_run_claims(present: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row for each claim of the paper that no row answers; `present` are those that one does."""
    claims = [(p.claim, p.paper_value) for pairs in FAMILIES.values() for p in pairs if p.claim]
    empty = dict.fromkeys(SCHEMAS["claims"].columns, "")
    numbers = {"our_value": math.nan, "ci_low": math.nan, "ci_high": math.nan, "n_seeds": 0, "verdict": "not run"}
    missing = [c for c in (*claims, *OTHERS_NOT_RUN) if c[0] not in present]
    return [empty | numbers | {"claim": claim, "paper_value": value} for claim, value in missing]


def study_claims(comparisons: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each comparison of the study that a claim of the paper speaks of; intervals are Holm's within the family.

    A comparison with fewer seeds than planned stays "undecided": a look at half of the runs decides nothing.
    """
    rows = []
    for row in comparisons[comparisons["metric"] != "area"].itertuples():
        claim, value, kind, pair = row.claim, row.paper_value, "accuracy points", (row.arm, row.baseline)
        if row.metric == "steps":
            (claim, value), kind = STEPS_CLAIMS.get(pair, ("", math.nan)), "fewer steps percent"
        elif pair == ("saerl_grpo", "grpo"):
            how, value = HEADLINE[row.metric]
            claim = f"SAERL on GRPO against GRPO: accuracy gain, points ({how})"
        if not isinstance(claim, str) or not claim:
            continue
        interval = Interval(row.difference, row.holm_low, row.holm_high)
        effect = Effect(claim, value, interval, kind, int(row.n_seeds), "08_evaluation", "study_effects")
        complete = row.n_seeds >= planned_seeds(row.family)
        made = claim_row(effect, decidable=complete) | {"command": "./run_all.sh --profile study"}
        if claim == NO_GAIN and complete:
            made["verdict"] = verdict(interval, SMALLEST[kind], no_gain=True)
        decided = "reproduced" if claim == NO_GAIN else "not reproduced"  # by a bound from above
        if made["verdict"] == decided and row.p_small > ALPHA:
            made["verdict"] = "undecided"
        rows.append(made)
    return rows


def batch_claim(readings: pd.DataFrame) -> list[dict[str, Any]]:
    """The row of `FEWER_CLAIM` from study_batch.csv; none where the four arms were not trained."""
    part = readings[(readings["reading"] == "the paper's counts") & (readings["comparison"] == "gain at b")]
    rows = []
    for row in part.itertuples():
        interval = Interval(row.difference, row.ci_low, row.ci_high)
        effect = Effect(FEWER_CLAIM, 1.4, interval, "accuracy points", int(row.n_seeds), "08_evaluation", "study_effects")
        complete = row.n_seeds >= planned_seeds("batch")
        rows.append(claim_row(effect, decidable=complete) | {"command": "./run_all.sh --profile study"})
    return rows


def order_gate_met(gates: pd.DataFrame, gate: str = ORDER_GATE) -> bool:
    """Whether `world_gates.csv` holds `gate` as met; a missing gate counts as not met."""
    return bool((is_true(gates["met"]) & (gates["gate"] == gate)).any())


def build_claims(data_folder: Path, gate_met: bool | None = None) -> pd.DataFrame:
    """All rows of `claims.csv` from the other tables in `data_folder`.

    `gate_met` overrides what `world_gates.csv` says about both gates. Raises TableError for a missing table or row.
    """
    tables = {name: read_table(name, data_folder) for name in INPUTS}
    curves = tables["learning_curves"]
    gates = (ORDER_GATE, SPEED_GATE)
    final, speed = (order_gate_met(tables["world_gates"], g) if gate_met is None else gate_met for g in gates)
    on_order = [claim_row(effect, decidable=final) for effect in accuracy_effects(curves)]
    steps = steps_effect(tables["steps_to_target"], int(curves["step"].max()))
    on_order.append(claim_row(steps, decidable=speed))
    on_data = [
        *probe_effects(tables["world_probes"]),
        *real_probe_effects(tables["probe_ladder"]),
        *filter_effects(tables["filter"], tables["filter_scores"]),
        *diversity_effects(tables["inbatch_diversity"]),
    ]
    costs = claim_row(preparation_effect(tables["preparation_cost"])) | {"command": "python -m saerl_lib bench preparation"}
    study = study_claims(tables["study_comparisons"]) + batch_claim(tables["study_batch"])
    rows = study + on_order + [claim_row(effect) for effect in on_data] + [costs]
    answered = [row["claim"] for row in study] + [HEADLINE_PAIR] * bool(study)
    return pd.DataFrame(rows + not_run_claims(answered), columns=list(SCHEMAS["claims"].columns))
