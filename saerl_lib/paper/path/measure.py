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
import torch

from saerl_lib.artifacts import Stage
from saerl_lib.config import sub_seed
from saerl_lib.data.sample import Sample, read_samples
from saerl_lib.encode.models import open_tokenizer
from saerl_lib.encode.spans import Layout, pack, sample_spans
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.path.home import Home
from saerl_lib.paper.path.places import model_folder, model_identity, policy_model, samples_digest
from saerl_lib.paper.replacements import SELECTORS
from saerl_lib.train.evaluate import attempted, judged
from saerl_lib.train.sampler import GenerateSampler


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

    return home.stage("measure", "measured", {"columns": columns}, compute, stages)


class _Opened:
    """The base policy, opened when a part has to be computed and once for all of them."""

    policy: GenerateSampler | None

    def __init__(self, config: PaperConfig) -> None:
        self.config, self.model = config, policy_model(config)
        self.identity, self.policy = model_identity(self.model), None

    def __call__(self) -> GenerateSampler:
        if self.policy is None:
            self.policy = GenerateSampler(
                model_folder(self.model, "--policy"), self.config.bf16, self.config.chat, self.config.measure_sequences
            )
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

    return home.stage("measure", f"measured-{column}-{number:05d}", shared | own[column], compute)


def pass_rates(policy: GenerateSampler, samples: Sequence[Sample], config: PaperConfig, seed: int) -> np.ndarray:
    """Share of right answers among `adarft_samples` rollouts of each sample, [N]."""
    how = (config.adarft_samples, config.max_response_tokens, config.temperature, sub_seed(seed, "rates"))
    rows = attempted(policy, "rates", samples, *how)
    right = judged(rows, config.answer_seconds).groupby("sample_id")["correct"].mean()
    return right.reindex([sample.id for sample in samples]).to_numpy(dtype=float)


TEMPLATE_WEIGHT = 8.0
"""Of the tokens before the question (their public script)."""


@torch.inference_mode()
def angle_concentration(policy: GenerateSampler, samples: Sequence[Sample], tokens_per_batch: int, chat: bool) -> np.ndarray:
    """GAINRL's score of a prompt: how close the directions of the policy's last-layer states lie (arXiv 2506.02281, their code).

    Mean cosine of the question's tokens with each other, each pair and itself, plus `TEMPLATE_WEIGHT` times that with the
    tokens of the chat template before them, float64 [N]; plain prompts have none.

    Samples of similar length go together, padded behind. Raises DataError when the template changes a question.
    """
    tokenizer = open_tokenizer(str(policy.folder), [s.prompt for s in samples[:20]], local=True)
    spans = [sample_spans(sample, tokenizer, Layout(chat=chat, prompt_only=True)) for sample in samples]
    out = np.empty(len(spans))
    for rows in pack([len(span.ids) for span in spans], tokens_per_batch):
        width = max(len(spans[i].ids) for i in rows)
        ids, real, question, before = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(4))
        for place, i in enumerate(rows):
            span = spans[i]
            ids[place, : len(span.ids)], real[place, : len(span.ids)] = torch.tensor(span.ids), 1
            question[place, : len(span.ids)] = torch.tensor(span.prompt, dtype=torch.long)
            before[place, : span.prompt.index(True) if chat else 0] = 1
        inputs = {"input_ids": ids.to(policy.device), "attention_mask": real.to(policy.device)}
        states = policy.model.base_model(**inputs, use_cache=False).last_hidden_state.double().cpu()
        directions = torch.nn.functional.normalize(states, dim=-1)
        own, other = (
            (directions * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1) for mask in (question, before)
        )
        out[list(rows)] = ((own * own).sum(dim=1) + TEMPLATE_WEIGHT * (own * other).sum(dim=1)).numpy()
    return out


def angles(policy: GenerateSampler, samples: Sequence[Sample], config: PaperConfig, seed: int) -> np.ndarray:
    """Angle concentration of each sample's prompt as the policy gets it, [N]; nothing is drawn."""
    return angle_concentration(policy, samples, config.tokens_per_batch, config.chat)


MEASURES: dict[str, Callable[[GenerateSampler, Sequence[Sample], PaperConfig, int], np.ndarray]] = {
    "pass_rate": pass_rates, "angle_concentration": angles,
}  # fmt: skip
"""Column -> how it is measured."""
