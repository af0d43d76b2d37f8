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

import numpy as np
import pandas as pd

from saerl_lib.config import MethodConfig
from saerl_lib.report.statistics import (
    ALPHA,
    Interval,
    auc_interval,
    difference_interval,
    over_seeds,
    weighted_roc_auc,
    wilson_interval,
)
from saerl_lib.report.study import (
    BASELINE,
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
    ("saerl_dapo", "dapo"): (f"SAERL on DAPO against DAPO{BUDGET}: fewer steps to target, percent (Table 5)", 37.6),
}
"""Pair -> its claim about steps and the paper's saving."""
FEWER_CLAIM = "At b, three quarters of the prompts of 4b: Avg@8 gain over GRPO, points (Table 8, 128 prompts a step)"
"""The second reading of Table 8, whose two batch sizes saw different numbers of prompts."""
HEADLINE_PAIR = FAMILIES["paper"][0].claim
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


def _interval(row: pd.Series) -> Interval:
    return Interval(*(float(row[column]) for column in ("value", "ci_low", "ci_high")))


def _moved(interval: Interval, factor: float, by: float = 0.0) -> Interval:
    """The interval plus `by`, times `factor`."""
    return Interval(*(factor * (bound + by) for bound in interval))


# The effects, each from the tables of `figures/data` alone.


def accuracy_effects(curves: pd.DataFrame) -> list[Effect]:
    """Gain over GRPO: as the paper averages, without the Pass@8 set, and with Avg@8 everywhere (Table 4, Table 8)."""
    sets = [name for name in dict.fromkeys(curves["eval_set"]) if name != "all"]
    paper = {name: "pass_at_k" if name == "hardest" else "avg_at_k" for name in sets}
    without = {name: metric for name, metric in paper.items() if name != "hardest"}
    average, rows = dict.fromkeys(sets, "avg_at_k"), []
    for how, value, metrics in (("the hardest by Pass@k", 3.0, paper), ("without the Pass@k set", 1.6, without),
                                ("all by Avg@k", 1.4, average)):  # fmt: skip
        if not metrics or (metrics is not without and "hardest" not in metrics):
            continue
        found = over_seeds(final_differences(curves, metrics))
        claim = f"Laptop runs: accuracy gain over GRPO, points ({len(metrics)} sets, {how})"
        rows.append((claim, value, found.interval(), "accuracy points", found.n_seeds, "08_evaluation", "paired_difference"))
    return [Effect(*row) for row in rows]


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


def _regimes(label: str, inside: str, outside: str, adapted: str) -> list[tuple[str, float, str, str, str]]:
    """Readings of Table 2: rho in-domain, its fall out of domain, and what some labels of the other source bring back."""
    inside, outside, adapted = (f"{task} spearman sae" for task in (inside, outside, adapted))
    return [
        (f"{label}, in-domain: Spearman rho", 0.749, "correlation", inside, ""),
        (f"{label}, out of domain: fall of Spearman rho (0.749 to 0.135)", 0.614, "correlation", inside, outside),
        (f"{label}, adapted: gain of Spearman rho (0.135 to 0.286)", 0.151, "correlation", adapted, outside),
    ]


WORLD_READINGS = (
    *((f"{label} topic from SAE features: accuracy above majority, points", paper, "probe points",
       f"world topic_{level} accuracy sae", f"world topic_{level} accuracy majority")
      for label, level, paper in (("L2", "l2", 22.8), ("L3", "l3", 20.5), ("leaf", "leaf", 19.1))),
    *_regimes("Difficulty from SAE features", *(f"world difficulty_{n}" for n in ("in_domain", "out_of_domain", "adapted"))),
    ("Solution quality: Pearson of SAE above metadata (0.3715 against 0.2100)", 0.1615, "correlation",
     "world solution_quality pearson sae", "world solution_quality pearson metadata"),
)  # fmt: skip
"""Tables 1 to 3: claim, the paper's value, kind, and data set, target, metric and features of two probes: first minus second."""
REAL_READINGS = (
    ("MATH, 7 subjects from SAE features: accuracy above majority, points", 22.8, "probe points",
     "math_test subject accuracy sae", "math_test subject accuracy majority"),
    *_regimes("DeepMath difficulty, then DeepScaleR", "deepmath_18k difficulty_level",
              *(f"deepscaler_pass_rate difficulty_{name}" for name in ("out_of_domain", "adapted"))),
)  # fmt: skip
"""The same on real data, questions alone, read by a small LM."""


def probe_effects(ladder: pd.DataFrame, real: bool = False) -> list[Effect]:
    """The effects of `WORLD_READINGS` or `REAL_READINGS` that the ladder has rows for.

    A difference of two probes gets the interval of two separate estimates, too wide where they share a test set.
    Raises TableError when the world's ladder has no row of the world.
    """
    if not real and not (ladder["dataset"] == "world").any():
        raise TableError(f"world_probes: no rows of dataset 'world'; it holds {sorted(ladder['dataset'].unique())}")
    found = ladder.dropna(subset=["value"])
    keys = [" ".join(row).split("|")[0] for row in found[["dataset", "target", "metric", "features"]].to_numpy()]
    found = found.set_axis(keys, axis=0)
    origin = (MethodConfig().sae_seeds, "03_data_properties", "probe_ladder", "./run_all.sh --profile method")
    effects = []
    for claim, paper, kind, first, second in REAL_READINGS if real else WORLD_READINGS:
        if first not in found.index or (second and second not in found.index):
            continue
        effect = _interval(found.loc[first])
        effect = difference_interval(effect, _interval(found.loc[second])) if second else effect
        effect = _moved(effect, 100 if kind == "probe points" else 1)
        effects.append(Effect(claim, paper, effect, kind, *(origin if real else (1, "03_data_properties", "world_probes"))))
    return effects


def filter_effects(rules: pd.DataFrame, scores: pd.DataFrame) -> list[Effect]:
    """Gain of purity at the p95 rule, and ROC-AUC above chance from the score histogram (Table 6)."""
    by_rule, rows = rules.set_index("rule"), []
    for name in ("full", "p95"):
        if name not in by_rule.index:
            raise TableError(f"filter: rule {name!r} is missing; notebook 05 writes it")
    kept, full = by_rule.loc["p95"], by_rule.loc["full"]
    if kept["kept"] > 0:
        purity = wilson_interval(int(kept["target_kept"]), int(kept["kept"]))
        effect = _moved(purity, 100, -float(full["target_kept"]) / float(full["kept"]))
        recall = 100 * float(kept["target_kept"]) / float(full["target_kept"])
        claim = f"Filter at p95: purity above the pool's, points (95.37 against 49.05; recall 95 %, here {recall:.0f} %)"
        rows.append((claim, 46.32, effect, "purity points"))
    wide = scores.pivot(index="bin_low", columns="source", values="share").sort_index()
    if not {"target", "parent"} <= set(wide):
        raise TableError(f"filter_scores: sources {sorted(wide)} lack 'target' or 'parent'; notebook 05 writes both")
    shares, bins = (wide[["target", "parent"]] / wide[["target", "parent"]].sum()).to_numpy(), np.arange(len(wide))
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


def preparation_effect(cost: pd.DataFrame) -> Effect:
    """Share of ADARFT's rollout time that SAE encoding of the same prompts saves, percent, t-interval over parts (section 5)."""
    claim = "Preparation: time that SAE encoding saves over ADARFT's rollouts, percent (0.5 against 17.33 H100-hours)"
    where = ("08_evaluation", "preparation_cost", "python -m saerl_lib bench preparation")
    return Effect(claim, 97.1, over_seeds(cost["saved"]).interval(), "time percent", 1, *where)


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
    judged = verdict(effect.interval, SMALLEST[effect.kind], no_gain=effect.claim == NO_GAIN)
    return {
        "claim": effect.claim, "paper_value": effect.paper_value, "our_value": effect.interval.value,
        "ci_low": effect.interval.low, "ci_high": effect.interval.high, "n_seeds": effect.n_seeds,
        "verdict": judged if decidable else "undecided", "notebook": f"notebooks/{effect.notebook}.ipynb",
        "figure": f"figures/{effect.figure}.png", "command": effect.command or f"./run_all.sh --only {effect.notebook[:2]}",
    }  # fmt: skip


def not_run_claims(present: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row for each claim of the paper that no row answers; `present` are those that one does."""
    claims = [(p.claim, p.paper_value) for pairs in FAMILIES.values() for p in pairs if p.claim]
    empty = dict.fromkeys(SCHEMAS["claims"].columns, "") | dict.fromkeys(("our_value", "ci_low", "ci_high"), math.nan)
    missing = [c for c in (*claims, *OTHERS_NOT_RUN) if c[0] not in present]
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
        interval = Interval(row.difference, row.holm_low, row.holm_high)
        effect = Effect(claim, value, interval, kind, int(row.n_seeds), *STUDY)
        made = claim_row(effect, decidable=row.n_seeds >= planned_seeds(row.family))
        from_above = "reproduced" if claim == NO_GAIN else "not reproduced"
        if made["verdict"] == from_above and row.p_small > ALPHA:
            made["verdict"] = "undecided"
        rows.append(made)
    return rows


def batch_claim(readings: pd.DataFrame) -> list[dict[str, Any]]:
    """The row of `FEWER_CLAIM` from study_batch.csv; none where the four arms were not trained."""
    part = readings[(readings["reading"] == "the paper's counts") & (readings["comparison"] == "gain at b")]
    rows = []
    for row in part.itertuples():
        interval = Interval(row.difference, row.ci_low, row.ci_high)
        effect = Effect(FEWER_CLAIM, 1.4, interval, "accuracy points", int(row.n_seeds), *STUDY)
        rows.append(claim_row(effect, decidable=row.n_seeds >= planned_seeds("batch")))
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
    steps = steps_effect(tables["steps_to_target"], int(curves["step"].max()))
    others = [
        *probe_effects(tables["world_probes"]),
        *probe_effects(tables["probe_ladder"], real=True),
        *filter_effects(tables["filter"], tables["filter_scores"]),
        *diversity_effects(tables["inbatch_diversity"]),
        preparation_effect(tables["preparation_cost"]),
    ]
    study = study_claims(tables["study_comparisons"]) + batch_claim(tables["study_batch"])
    laptop = [*(claim_row(effect, final) for effect in accuracy_effects(curves)), claim_row(steps, speed)]
    rows = study + laptop + [claim_row(effect) for effect in others]
    answered = [row["claim"] for row in study] + [HEADLINE_PAIR] * bool(study)
    return pd.DataFrame(rows + not_run_claims(answered), columns=list(SCHEMAS["claims"].columns))
