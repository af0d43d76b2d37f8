"""The policies, what is measured of them before training, and how their answers are evaluated.

The world's policy is a small model pre-trained on a learner's solutions (`saerl_lib.studies.world_check`). Evaluations have one
row a run, step and problem. The world's answers have one canonical form and are compared to the letter; others by math-verify
within a time limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from saerl_lib import paths
from saerl_lib.artifacts import Stage, file_sha256, get_or_compute
from saerl_lib.config import SMOLLM2, Profile, TrainConfig, sub_seed
from saerl_lib.data.answers import check_answers, read_final_answer
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.encode.models import open_causal, smollm2_folder, token_batches
from saerl_lib.needs import model_folder
from saerl_lib.train.sampler import READ, GenerateSampler, Sampler, gold_probability

WORLD_POLICY = "world"
"""Name of the policy that the world ships."""
FOLDER = paths.WEIGHTS / "policy"
ANSWER_SECONDS = 10.0
"""Longest comparison of one answer; it is killed then and counts as wrong."""


def policy_folder(name: str) -> Path:
    """The folder of a policy: world (the shipped one), smollm2, one in Hugging Face format, or a hub's, as `model_folder`."""
    if name == SMOLLM2:
        return smollm2_folder()
    return FOLDER if name == WORLD_POLICY else model_folder(name, "--policy")


def open_sampler(folder: Path, train: TrainConfig) -> Sampler:
    """What draws completions of the policy in `folder` for an engine, "trl" on the GPU where there is one."""
    model, tokenizer = open_causal(folder, torch.bfloat16 if train.bf16 else torch.float32)
    if train.engine == "packed":
        return Sampler(model, tokenizer, train.chat)
    return GenerateSampler(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer, train.chat)


def attempted(
    sampler: Sampler, sets: Mapping[str, Sequence[Sample]], attempts: int, train: TrainConfig, seeds: Mapping[str, int]
) -> pd.DataFrame:
    """One row an attempt at some sets, by name: eval_set, sample_id, attempt, answer ('' when there is none), gold, correct.

    Under engine "packed" exact answers alone are right; else `judged` decides.
    """
    exact, rows = train.engine == "packed", []
    read = READ[train.answer_from] if exact else read_final_answer
    for name, samples in sets.items():
        asked, most = [sample.asked for sample in samples], train.max_completion_tokens
        completions = sampler.complete(asked, attempts, most, train.temperature, seeds[name])
        rows += [
            (name, sample.id, attempt, read(text) or "", sample.answer)
            for sample, texts in zip(samples, completions, strict=True)
            for attempt, text in enumerate(texts)
        ]
    frame = pd.DataFrame(rows, columns=["eval_set", "sample_id", "attempt", "answer", "gold"])
    return frame.assign(correct=frame["answer"] == frame["gold"]) if exact else judged(frame, ANSWER_SECONDS)


def judged(frame: pd.DataFrame, seconds: float) -> pd.DataFrame:
    """With column correct; equal pairs are compared once, and one whose comparison overruns `seconds` or crashes is wrong."""
    asked = list(zip(frame["gold"], frame["answer"], strict=True))
    pairs = sorted({(gold, answer) for gold, answer in asked if answer not in ("", gold)})
    equal = {pair: one.equal for pair, one in zip(pairs, check_answers(pairs, seconds), strict=True)}
    return frame.assign(correct=[pair[1] != "" and equal.get(pair, True) for pair in asked])


def counted(attempts: pd.DataFrame) -> pd.DataFrame:
    """One row a set and problem, in order of appearance: eval_set, sample_id, attempts, correct."""
    grouped = attempts.groupby(["eval_set", "sample_id"], sort=False)["correct"]
    return grouped.agg(attempts="size", correct="sum").reset_index().astype({"correct": int})


def evaluate(
    sampler: Sampler, name: str, samples: Sequence[Sample], attempts: int, train: TrainConfig, seed: int, step: int, full: bool
) -> pd.DataFrame:
    """An evaluation during training, `counted`, with step and full; exact answers alone are right.

    Beside the sampled `correct` of `attempts` stands `gold_probability`, exact and without sampling noise: the chance of writing
    the gold solution, NaN where the sample has none or any text with the right last number counts.

    The evaluation's seed depends on the matched seed, the step and the set, not on the arm, so arms are compared on
    the same problems from the same seed (the streams part once completions differ), and training never notices.
    """
    if attempts:
        seeds = {name: sub_seed(seed, f"evaluation-{name}-{step}-{full}")}
        found = counted(attempted(sampler, {name: samples}, attempts, train, seeds))
    else:
        found = pd.DataFrame({"eval_set": name, "sample_id": [s.id for s in samples], "attempts": 0, "correct": 0})
    exact = np.full(len(samples), np.nan)
    if train.answer_from == "answer":
        told = gold_probability(sampler.model, sampler.tokenizer, samples, train.temperature, train.chat)
        exact = np.where([sample.solved for sample in samples], told, np.nan)
    return found.assign(gold_probability=exact, step=step, full=full)


# What some arms need to know of the policy before training.


def pass_rates(sampler: Sampler, samples: Sequence[Sample], train: TrainConfig, seed: int) -> np.ndarray:
    """Share of right answers among `DIFFICULTY_ATTEMPTS` rollouts of each sample, [N] (ADARFT)."""
    frame = attempted(sampler, {"rates": samples}, DIFFICULTY_ATTEMPTS, train, {"rates": seed})
    return frame.groupby("sample_id")["correct"].mean()[[sample.id for sample in samples]].to_numpy(dtype=float)


DIFFICULTY_ATTEMPTS = 16
"""Attempts a prompt behind measured pass rates (paper, section C.3: Avg@16 for ADARFT)."""
TEMPLATE_WEIGHT = 8.0
"""Of the tokens before the question (GAINRL's public script)."""
TOKENS_AT_ONCE = 8192
"""Padded tokens of one forward pass of `angle_concentration`."""


@torch.inference_mode()
def angle_concentration(sampler: Sampler, samples: Sequence[Sample], train: TrainConfig, seed: int = 0) -> np.ndarray:
    """GAINRL's score of a prompt: how close the directions of the policy's last-layer states lie (arXiv 2506.02281, their code).

    Mean cosine of the question's tokens with each other, each pair and itself, plus `TEMPLATE_WEIGHT` times that with the
    tokens of the chat template before them, float64 [N]; plain prompts have none. Samples of similar length go together, padded
    behind; nothing is drawn. Raises DataError when the template changes a question.
    """
    out = np.empty(len(samples))
    prompts = [replace(sample, solved=False) for sample in samples]
    for batch in token_batches(prompts, sampler.tokenizer, TOKENS_AT_ONCE, chat=train.chat):
        inputs = {"input_ids": batch.ids.to(sampler.device), "attention_mask": batch.real.long().to(sampler.device)}
        states = sampler.model.base_model(**inputs, use_cache=False).last_hidden_state.double().cpu()
        directions = torch.nn.functional.normalize(states, dim=-1)
        template = (batch.prompt.cumsum(dim=1) == 0) & train.chat
        own, other = (
            (directions * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
            for mask in (batch.prompt, template)
        )
        out[list(batch.rows)] = ((own * own).sum(dim=1) + TEMPLATE_WEIGHT * (own * other).sum(dim=1)).numpy()
    return out


MEASURES: dict[str, Callable[[Sampler, Sequence[Sample], TrainConfig, int], np.ndarray]] = {
    "pass_rate": pass_rates, "angle_concentration": angle_concentration,
}  # fmt: skip
"""Column -> how it is measured."""
MEASURED_AT_ONCE = 512
"""Samples of one part: a step that was stopped goes on with the part it was in."""


def measured_stage(profile: Profile, plans: Stage, columns: Sequence[str]) -> Stage:
    """<column>.parquet (sample_id and the column) of every planned sample for some of `MEASURES`."""
    folder = policy_folder(profile.policy)
    samples = sorted(load_split(plans, "samples"), key=lambda sample: sample.id)
    opened, train = cache(lambda: open_sampler(folder, profile.train)), profile.train
    weights = {path.name: file_sha256(path) for path in sorted(folder.glob("*.safetensors"))}
    how = [train.max_completion_tokens, train.temperature, train.chat, train.bf16, profile.seed]

    def part(column: str, start: int) -> Stage:
        def compute(out: Path) -> dict[str, pd.DataFrame]:
            chosen = samples[start : start + MEASURED_AT_ONCE]
            values = MEASURES[column](opened(), chosen, train, sub_seed(profile.seed, f"measure-{start}"))
            return {"part": pd.DataFrame({"sample_id": [s.id for s in chosen], column: values})}

        settings = {"policy": weights, "how": how}
        return get_or_compute(profile, f"measured-{column}-{start:06d}", settings, compute, (plans,))

    parts = {column: [part(column, start) for start in range(0, len(samples), MEASURED_AT_ONCE)] for column in columns}

    def compute(out: Path) -> dict[str, pd.DataFrame]:
        return {column: pd.concat([pd.read_parquet(s.path("part.parquet")) for s in found]) for column, found in parts.items()}

    inputs = tuple(stage for own in parts.values() for stage in own)
    return get_or_compute(profile, "measured", {"columns": list(columns)}, compute, inputs)
