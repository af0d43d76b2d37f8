"""Step `measure`: what the arms that choose as they learn need to know of the base policy, for every planned sample.

ADARFT takes the share of right answers among some rollouts (paper, section C.3: 16, whose cost it counts), GAINRL the angle
concentration of the last layer's states over the prompt. The samples are measured in parts, so that a step that was stopped goes
on with the part it was in. Nothing is computed when no such arm is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from saerl_lib.artifacts import Stage
from saerl_lib.config import sub_seed
from saerl_lib.data.sample import Sample, read_samples
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.path.angles import angle_concentration
from saerl_lib.paper.path.answers import attempted, judged
from saerl_lib.paper.path.generate import Policy
from saerl_lib.paper.path.home import Home, code_of
from saerl_lib.paper.path.places import model_folder, model_identity, policy_model, samples_digest
from saerl_lib.paper.replacements import SELECTORS

CODE = code_of(
    "paper/path/measure.py", "paper/path/angles.py", "paper/path/answers.py", "paper/path/generate.py", "paper/path/prompts.py",
    "own/model.py", "encode/spans.py", "encode/language_model.py", "data/answers.py",
)  # fmt: skip


def measured_file(measured: Stage, arm: str) -> Path:
    """What the selector of `arm` reads: Parquet with sample_id and its column of `SELECTORS`."""
    return measured.path(f"{SELECTORS[arm]}.parquet")


def measured_stage(home: Home, plans: Stage) -> Stage | None:
    """One Parquet file for every arm of `SELECTORS` that is asked for, see `measured_file`, and measured.csv, their summary.

    None when no arm needs it.
    """
    config = home.config
    columns = [column for arm, column in SELECTORS.items() if arm in config.arms]
    if not columns:
        return None
    samples = sorted(read_samples(plans.path("samples.parquet")), key=lambda sample: sample.id)
    policy, parts = _Opened(config), _parts(samples, config.measure_part)
    found = {column: [_part(home, column, number, part, policy) for number, part in parts] for column in columns}
    stages = tuple(stage for own in found.values() for stage in own)

    def compute(folder: Path) -> None:
        attempts, rows = {"pass_rate": config.adarft_samples, "angle_concentration": 0}, []
        for column in columns:
            table = pd.concat([pd.read_parquet(stage.path("part.parquet")) for stage in found[column]], ignore_index=True)
            table.to_parquet(folder / f"{column}.parquet", index=False)
            values = table[column]
            rows.append((column, len(table), attempts[column] * len(table), values.mean(), values.std(ddof=0)))
        summary = pd.DataFrame(rows, columns=["quantity", "n_samples", "rollouts", "mean", "sd"])
        summary.to_csv(folder / "measured.csv", index=False, float_format="%.6g", lineterminator="\n")

    return home.stage("measure", "measured", CODE, {"columns": columns}, compute, stages)


class _Opened:
    """The base policy, opened when a part has to be computed and once for all of them."""

    policy: Policy | None

    def __init__(self, config: PaperConfig) -> None:
        self.config, self.model = config, policy_model(config)
        self.identity, self.policy = model_identity(self.model), None

    def __call__(self) -> Policy:
        if self.policy is None:
            self.policy = Policy(model_folder(self.model, "--policy"), self.config.bf16)
        return self.policy


def _parts(samples: Sequence[Sample], size: int) -> list[tuple[int, Sequence[Sample]]]:
    return [(number, samples[start : start + size]) for number, start in enumerate(range(0, len(samples), size))]


def _part(home: Home, column: str, number: int, samples: Sequence[Sample], opened: _Opened) -> Stage:
    config, measure = home.config, MEASURES[column]
    seed = sub_seed(config.seed, f"{column}-{number}")
    shared = {
        "policy": opened.identity, "samples": samples_digest(samples), "chat": config.chat, "bf16": config.bf16,
    }  # fmt: skip
    own = {
        "pass_rate": {
            "attempts": config.adarft_samples, "max_tokens": config.max_response_tokens, "temperature": config.temperature,
            "seconds": config.answer_seconds, "sequences": config.measure_sequences, "seed": seed,
        },
        "angle_concentration": {"tokens": config.tokens_per_batch},
    }  # fmt: skip

    def compute(folder: Path) -> None:
        values = measure(opened(), samples, config, seed)
        table = pd.DataFrame({"sample_id": [sample.id for sample in samples], column: values})
        table.to_parquet(folder / "part.parquet", index=False)

    return home.stage("measure", f"measured-{column}-{number:05d}", CODE, shared | own[column], compute)


def pass_rates(policy: Policy, samples: Sequence[Sample], config: PaperConfig, seed: int) -> np.ndarray:
    """Share of right answers among `adarft_samples` rollouts of each sample, [N]."""
    rows = attempted(policy, "rates", samples, config.adarft_samples, config.temperature, config.measure_sequences, config, seed)
    right = judged(rows, config.answer_seconds).groupby("sample_id")["correct"].mean()
    return right.reindex([sample.id for sample in samples]).to_numpy(dtype=float)


def angles(policy: Policy, samples: Sequence[Sample], config: PaperConfig, seed: int) -> np.ndarray:
    """Angle concentration of each sample's prompt as the policy gets it, [N]; nothing is drawn."""
    return angle_concentration(policy, samples, config.tokens_per_batch, config.chat)


MEASURES: dict[str, Callable[[Policy, Sequence[Sample], PaperConfig, int], np.ndarray]] = {
    "pass_rate": pass_rates, "angle_concentration": angles,
}  # fmt: skip
"""Column -> how it is measured."""
