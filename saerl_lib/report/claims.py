"""The rows of `claims.csv`: what the paper claims beside what the tables of `figures/data` say.

Rules, fixed before any arm was trained and the same for every claim. A claim is an effect with a sign (a gain, a fall, a
difference to a baseline), turned so that the paper's direction is positive, with a 95 % interval:
  reproduced      the interval lies above 0 (ci_low > 0);
  not reproduced  the interval lies below the smallest effect of interest of the claim (`SMALLEST`);
  undecided       neither, or there is no interval (one seed, a missing bound);
  not run         this project did not run it.
"Reproduced" speaks of the direction in the embedded world, not of the paper's size; both sizes stand side by side.
Claims on the order of prompts are "undecided" when the world cannot separate orders: accuracy under the gate
`ORDER_GATE`, steps to target under `SPEED_GATE`. How each effect is computed stands in `effects`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from saerl_lib.report import effects
from saerl_lib.report.schemas import SCHEMAS, is_true, read_table
from saerl_lib.report.statistics import Interval

INPUTS = (
    "world_gates", "world_probes", "probe_ladder", "filter", "filter_scores", "inbatch_diversity", "learning_curves", "steps_to_target",
)  # fmt: skip
"""Tables that the claims are built from."""
ORDER_GATE = "sensitivity: order effect / minimum detectable effect"
SPEED_GATE = "sensitivity of speed: order effect / minimum detectable effect"
SMALLEST = {
    "accuracy points": 0.5,
    "fewer steps percent": 5.0,
    "probe points": 5.0,
    "correlation": 0.05,
    "purity points": 5.0,
    "auc": 0.1,
    "diversity percent": 2.0,
}
"""Smallest effects of interest, in the unit of the claim (ours)."""
NOT_RUN: tuple[tuple[str, float], ...] = (
    ("SAERL on DAPO instead of GRPO: accuracy gain, points (Table 4)", 1.05),
    ("7B policy: accuracy gain over GRPO, points (Table 4)", 2.0),
    ("One SAE serves policies of other sizes and families (section 5)", math.nan),
    ("Ablation without difficulty sorting: accuracy lost, points (Table 7)", 2.7),
    ("Ablation without difficulty sorting and mixing: accuracy lost, points (Table 7)", 2.3),
    ("Ablation without clusters and mixing: accuracy lost, points (Table 7)", 1.6),
    ("Mixing study: accuracy gain of h = 8 of 128 over h = 0, points (Figure 3)", 1.9),
    ("512 prompts a step: Avg@8 gain over GRPO, points (Table 8)", 1.82),
    ("Preparation cost: H100-hours of SAE encoding (ADARFT: 17.33)", 0.5),
)
"""Claims of the paper that this project did not run, with the paper's value."""


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
        "command": f"./run_all.sh --only {effect.notebook[:2]}",
    }


def not_run_claims() -> list[dict[str, Any]]:
    """A row for each claim of `NOT_RUN`."""
    empty = dict.fromkeys(SCHEMAS["claims"].columns, "")
    numbers = {"our_value": math.nan, "ci_low": math.nan, "ci_high": math.nan, "n_seeds": 0, "verdict": "not run"}
    return [empty | numbers | {"claim": claim, "paper_value": value} for claim, value in NOT_RUN]


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
    rows = on_order + [claim_row(effect) for effect in on_data]
    return pd.DataFrame(rows + not_run_claims(), columns=list(SCHEMAS["claims"].columns))
