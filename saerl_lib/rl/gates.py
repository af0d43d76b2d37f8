"""Gates of the world: one table of measured values, allowed ranges and whether they are met.

Text gates come from `saerl_lib.data.gates`, policy gates from the base attempts. Gates that need training runs are
measured by `python -m saerl_lib world --check` on reserved seeds and kept with their provenance in `TRAINED_RECORD`.
"""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
from scipy.stats import spearmanr

from saerl_lib import paths
from saerl_lib.artifacts import TRAINED_GATES, Stage, file_sha256
from saerl_lib.config import WORLD_VERSION, Profile, content_hash, get_profile, to_dict
from saerl_lib.data.gates import TEXT_BOUNDS, Bounds, met, text_gates
from saerl_lib.data.sample import load_split
from saerl_lib.data.world import MIXTURE_PATH
from saerl_lib.rl.base_rates import REFERENCE_SHARES, histogram

TRAINED_RECORD = paths.ROOT / "saerl_lib" / "data" / TRAINED_GATES
POLICY_BOUNDS: dict[str, Bounds] = {
    "total variation from published pass rates": (None, 0.10),
    "rho(difficulty, pass rate)": (-0.7, -0.4),
}
TRAINED_BOUNDS: dict[str, Bounds] = {
    "transfer: other domains' gain / own gain": (None, 0.5),
    "grpo: gain in the last quarter, points": (0.5, None),
    "sensitivity: order effect / minimum detectable effect": (1.0, None),
    "sensitivity of speed: order effect / minimum detectable effect": (1.0, None),
}
"""Ranges fixed before any SAERL arm was trained."""


def policy_gates(rates: pd.DataFrame) -> dict[str, tuple[float, int]]:
    """gate -> (value, n) from the base attempts."""
    distance = 0.5 * abs(histogram(rates["pass_rate"].to_numpy()) - pd.Series(REFERENCE_SHARES)).sum()
    return {
        "total variation from published pass rates": (float(distance), len(rates)),
        "rho(difficulty, pass rate)": (float(spearmanr(rates["difficulty"], rates["pass_rate"])[0]), len(rates)),
    }


def trained_gates() -> dict[str, dict[str, Any]]:
    """The recorded gates of training runs: gate -> value, n and note; empty before the first `world --check`.

    A record of another version of the world or of other training settings is not used: its gates count as not met.
    """
    if not TRAINED_RECORD.exists():
        return {}
    record = json.loads(TRAINED_RECORD.read_text(encoding="utf-8"))
    return record["gates"] if record["settings"] == trained_settings() else {}


USED = (
    "rollouts_per_prompt", "learning_rate", "temperature", "max_completion_tokens", "checkpoint_every_steps", "eval_every_steps",
    "eval_samples_small", "eval_samples_full",
)  # fmt: skip
"""Fields of TrainConfig that reserved runs depend on: they are GRPO by the packed engine, on seeds of their own."""


def trained_settings() -> str:
    """Hash of what the recorded gates depend on: world version, mixture and the laptop profile's training."""
    laptop = get_profile("laptop")
    train = {name: getattr(laptop.train, name) for name in USED}
    batch = laptop.plan.prompts_per_step  # all that reserved orders take of the plan's settings
    parts = [WORLD_VERSION, file_sha256(MIXTURE_PATH), train, batch, laptop.pool_samples, to_dict(laptop.world)]
    return content_hash(parts)


def gate_row(name: str, value: float, bounds: Bounds, n: int, note: str) -> dict[str, Any]:
    """One row of world_gates.csv."""
    return {
        "gate": name,
        "value": value,
        "low": bounds[0],
        "high": bounds[1],
        "met": met(value, bounds),
        "n": n,
        "unit": "",
        "note": note,
    }


def gate_table(profile: Profile, world: Stage, rates: Stage) -> pd.DataFrame:
    """Rows of world_gates.csv."""
    splits = (load_split(world, name) for name in ("labelled", "test", "filter_negatives", "pool"))
    measured = {**text_gates(*splits), **policy_gates(pd.read_parquet(rates.path("pass_rates.parquet")))}
    bounds = {**TEXT_BOUNDS, **POLICY_BOUNDS}
    rows = [gate_row(name, value, bounds[name], n, "measured in this run") for name, (value, n) in measured.items()]
    for name, record in trained_gates().items():
        rows.append(gate_row(name, record["value"], TRAINED_BOUNDS[name], record["n"], record["note"]))
    return pd.DataFrame(rows)
