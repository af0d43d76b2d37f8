"""The rows of `claims.csv`: what the paper claims beside what the tables of `figures/data` say.

Rules, fixed before any arm of the study was trained, but for two that its first tables, of two to three seeds, led to: fewer
seeds than planned decide nothing, and a claim that something does not help has the rule turned round. A claim is an effect
with a sign (a gain, a fall, a difference to a baseline), turned so that the paper's direction is positive, with a 95 %
interval:
  reproduced      the interval lies above 0 (ci_low > 0);
  not reproduced  the interval lies below the smallest effect of interest of the claim (`SMALLEST`), for claims of the study
                  after Holm's correction for that bound too;
  undecided       neither, or there is no interval (one seed, a missing bound);
  not run         this project did not run it.
"Reproduced" speaks of the direction in the embedded world, not of the paper's size; both sizes stand side by side.
The laptop's own claims on the order of prompts are "undecided" when the world cannot separate orders: accuracy under the
gate `ORDER_GATE`, steps to target under `SPEED_GATE`; the study carries its smallest detectable effect with each row. How
each effect is computed stands in `effects`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from saerl_lib.report import effects
from saerl_lib.report.arm_pairs import BUDGET, FAMILIES, NO_GAIN, SMALLEST_POINTS, SMALLEST_STEPS, planned_seeds
from saerl_lib.report.paired import ALPHA
from saerl_lib.report.schemas import SCHEMAS, is_true, read_table
from saerl_lib.report.statistics import Interval

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


def verdict(effect: Interval, smallest: float) -> str:
    """The rule of this module for an effect whose claimed direction is positive.

    >>> [verdict(Interval(1, low, high), 0.5) for low, high in ((0.2, 2), (-1, 0.4), (-1, 2), (float("nan"), 2))]
    ['reproduced', 'not reproduced', 'undecided', 'undecided']
    """
    if math.isnan(effect.low) or math.isnan(effect.high):
        return "undecided"
    if effect.low > 0:
        return "reproduced"
    return "not reproduced" if effect.high < smallest else "undecided"


def claim_row(effect: effects.Effect, decidable: bool = True) -> dict[str, Any]:
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


def no_gain_verdict(effect: Interval, smallest: float) -> str:
    """The rule turned round for a claim that something does not help.

    >>> [no_gain_verdict(Interval(0, low, high), 0.5) for low, high in ((-1, 0.4), (0.2, 2), (-1, 2))]
    ['reproduced', 'not reproduced', 'undecided']
    """
    if math.isnan(effect.low) or math.isnan(effect.high):
        return "undecided"
    if effect.high < smallest:
        return "reproduced"
    return "not reproduced" if effect.low > 0 else "undecided"


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
        effect = effects.Effect(claim, value, interval, kind, int(row.n_seeds), "08_evaluation", "study_effects")
        complete = row.n_seeds >= planned_seeds(row.family)
        made = claim_row(effect, decidable=complete) | {"command": "./run_all.sh --profile study"}
        if claim == NO_GAIN and complete:
            made["verdict"] = no_gain_verdict(interval, SMALLEST[kind])
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
        effect = effects.Effect(FEWER_CLAIM, 1.4, interval, "accuracy points", int(row.n_seeds), "08_evaluation", "study_effects")
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
    on_order = [claim_row(effect, decidable=final) for effect in effects.accuracy_effects(curves)]
    steps = effects.steps_effect(tables["steps_to_target"], int(curves["step"].max()))
    on_order.append(claim_row(steps, decidable=speed))
    on_data = [
        *effects.probe_effects(tables["world_probes"]),
        *effects.real_probe_effects(tables["probe_ladder"]),
        *effects.filter_effects(tables["filter"], tables["filter_scores"]),
        *effects.diversity_effects(tables["inbatch_diversity"]),
    ]
    costs = claim_row(effects.preparation_effect(tables["preparation_cost"])) | {
        "command": "python -m saerl_lib bench preparation"
    }
    study = study_claims(tables["study_comparisons"]) + batch_claim(tables["study_batch"])
    rows = study + on_order + [claim_row(effect) for effect in on_data] + [costs]
    answered = [row["claim"] for row in study] + [HEADLINE_PAIR] * bool(study)
    return pd.DataFrame(rows + not_run_claims(answered), columns=list(SCHEMAS["claims"].columns))
