"""The policies, what is measured of them before training, and how their answers are evaluated.

The world's policy is a small model pre-trained on a learner's solutions (`saerl_lib.world.pretrain`). Evaluations have one row a
run, step and problem. The world's answers have one canonical form and are compared to the letter; others by math-verify within a
time limit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib import paths
from saerl_lib.artifacts import Stage, file_sha256, get_or_compute
from saerl_lib.config import SMOLLM2, Profile, TrainConfig, sub_seed
from saerl_lib.data.answers import check_answers, read_final_answer
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.encode.models import smollm2_folder
from saerl_lib.encode.tokens import Layout, pack, sample_spans
from saerl_lib.needs import model_folder
from saerl_lib.train.sampler import READ, GenerateSampler, GroupSampler, Sampler, gold_probability

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


def load_model(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A model in float32 and its tokenizer, from a local folder.

    The tokenizer is read as `PreTrainedTokenizerFast`: the automatic class may build another one from the
    configuration's model type and drop spaces.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no config.json; rebuild the weights with `python -m saerl_lib world --rebuild`")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), tokenizer


def load_policy() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The shipped base policy and its tokenizer."""
    return load_model(FOLDER)


def attempted(
    sampler: Sampler, sets: Mapping[str, Sequence[Sample]], attempts: int, train: TrainConfig, seeds: Mapping[str, int],
    progress: Callable[[int], None] = lambda rows: None,
) -> pd.DataFrame:  # fmt: skip
    """One row an attempt at some sets, by name: eval_set, sample_id, attempt, answer ('' when there is none), gold, correct.

    Under engine "packed" exact answers alone are right; else `judged` decides, and adds the outcome.
    """
    exact, rows = train.engine == "packed", []
    read = READ[train.answer_from] if exact else read_final_answer
    for name, samples in sets.items():
        completions = sampler.complete(
            [s.asked for s in samples], attempts, train.max_completion_tokens, train.temperature, seeds[name], progress
        )
        rows += [
            (name, sample.id, attempt, read(text) or "", sample.answer)
            for sample, texts in zip(samples, completions, strict=True)
            for attempt, text in enumerate(texts)
        ]
    frame = pd.DataFrame(rows, columns=["eval_set", "sample_id", "attempt", "answer", "gold"])
    return frame.assign(correct=frame["answer"] == frame["gold"]) if exact else judged(frame, ANSWER_SECONDS)


def judged(frame: pd.DataFrame, seconds: float) -> pd.DataFrame:
    """With columns correct and outcome: same, no answer, compared, overran or crashed. Equal pairs are compared once."""
    same, empty = frame["answer"] == frame["gold"], frame["answer"] == ""
    pairs = sorted(set(zip(frame.loc[~same & ~empty, "gold"], frame.loc[~same & ~empty, "answer"], strict=True)))
    checked = dict(zip(pairs, check_answers(pairs, seconds), strict=True))

    def verdict(gold: str, answer: str) -> tuple[bool, str]:
        if not answer:
            return False, "no answer"
        return (True, "same") if gold == answer else (checked[gold, answer].equal, checked[gold, answer].outcome)

    verdicts = [verdict(gold, answer) for gold, answer in zip(frame["gold"], frame["answer"], strict=True)]
    return frame.assign(correct=[v for v, _ in verdicts], outcome=[o for _, o in verdicts])


def counted(attempts: pd.DataFrame) -> pd.DataFrame:
    """One row a set and problem, in order of appearance: eval_set, sample_id, attempts, correct."""
    grouped = attempts.groupby(["eval_set", "sample_id"], sort=False)["correct"]
    return grouped.agg(attempts="size", correct="sum").reset_index().astype({"correct": int})


def evaluate(
    sampler: Sampler, name: str, samples: Sequence[Sample], attempts: int, train: TrainConfig, seed: int, step: int, full: bool
) -> pd.DataFrame:
    """An evaluation during training, `counted`, with step and full; exact answers alone are right.

    Beside the sampled `correct` of `attempts` stands `gold_probability`, exact and without sampling noise: the chance of writing
    the gold solution, NaN where the sample has none.

    The evaluation's seed depends on the matched seed, the step and the set, not on the arm, so arms are compared on
    the same problems from the same seed (the streams part once completions differ), and training never notices.
    """
    if attempts:
        seeds = {name: sub_seed(seed, f"evaluation-{name}-{step}-{full}")}
        found = counted(attempted(sampler, {name: samples}, attempts, train, seeds))
    else:
        found = pd.DataFrame({"eval_set": name, "sample_id": [s.id for s in samples], "attempts": 0, "correct": 0})
    exact = gold_probability(sampler.model, sampler.tokenizer, samples, train.temperature, train.chat)
    exact = np.where([sample.solved for sample in samples], exact, np.nan)
    return found.assign(gold_probability=exact, step=step, full=full)


# What some arms need to know of the policy before training.


def pass_rates(sampler: Sampler, samples: Sequence[Sample], train: TrainConfig, seed: int) -> np.ndarray:
    """Share of right answers among `DIFFICULTY_ATTEMPTS` rollouts of each sample, [N] (ADARFT)."""
    with tqdm(total=len(samples) * DIFFICULTY_ATTEMPTS, desc="pass rates", file=sys.stdout, mininterval=10) as bar:
        frame = attempted(sampler, {"rates": samples}, DIFFICULTY_ATTEMPTS, train, {"rates": seed}, bar.update)
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
    chat = train.chat
    spans = [sample_spans(sample, sampler.tokenizer, Layout(chat=chat, prompt_only=True)) for sample in samples]
    out = np.empty(len(spans))
    for rows in pack([len(span.ids) for span in spans], TOKENS_AT_ONCE):
        width = max(len(spans[i].ids) for i in rows)
        ids, real, question, before = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(4))
        for place, i in enumerate(rows):
            span = spans[i]
            ids[place, : len(span.ids)], real[place, : len(span.ids)] = torch.tensor(span.ids), 1
            question[place, : len(span.ids)] = torch.tensor(span.prompt, dtype=torch.long)
            before[place, : span.prompt.index(True) if chat else 0] = 1
        inputs = {"input_ids": ids.to(sampler.device), "attention_mask": real.to(sampler.device)}
        states = sampler.model.base_model(**inputs, use_cache=False).last_hidden_state.double().cpu()
        directions = torch.nn.functional.normalize(states, dim=-1)
        own, other = (
            (directions * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1) for mask in (question, before)
        )
        out[list(rows)] = ((own * own).sum(dim=1) + TEMPLATE_WEIGHT * (own * other).sum(dim=1)).numpy()
    return out


MEASURES: dict[str, Callable[[Sampler, Sequence[Sample], TrainConfig, int], np.ndarray]] = {
    "pass_rate": pass_rates, "angle_concentration": angle_concentration,
}  # fmt: skip
"""Column -> how it is measured."""
MEASURED_AT_ONCE = 512
"""Samples of one part: a step that was stopped goes on with the part it was in."""


def open_sampler(folder: Path, train: TrainConfig) -> Sampler:
    """What draws completions of the policy in `folder` for an engine."""
    packed = train.engine == "packed"
    return GroupSampler(*load_model(folder), train.chat) if packed else GenerateSampler(folder, train.bf16, train.chat)


def measured_stage(profile: Profile, plans: Stage, columns: Sequence[str]) -> Stage:
    """<column>.parquet (sample_id and the column) of every planned sample for some of `MEASURES`, and measured.csv."""
    folder = policy_folder(profile.policy)
    samples = sorted(load_split(plans, "samples"), key=lambda sample: sample.id)
    opened = cache(lambda: open_sampler(folder, profile.train))
    weights = {path.name: file_sha256(path) for path in sorted(folder.glob("*.safetensors"))}
    train = profile.train
    how = [train.max_completion_tokens, train.temperature, train.chat, train.bf16, profile.seed]

    def part(column: str, start: int) -> Stage:
        def compute(out: Path) -> None:
            chosen = samples[start : start + MEASURED_AT_ONCE]
            values = MEASURES[column](opened(), chosen, train, sub_seed(profile.seed, f"measure-{start}"))
            pd.DataFrame({"sample_id": [s.id for s in chosen], column: values}).to_parquet(out / "part.parquet", index=False)

        settings = {"policy": weights, "how": how}
        return get_or_compute(profile, f"measured-{column}-{start:06d}", settings, compute, (plans,))

    parts = {column: [part(column, start) for start in range(0, len(samples), MEASURED_AT_ONCE)] for column in columns}

    def compute(out: Path) -> None:
        rows = []
        for column, found in parts.items():
            table = pd.concat([pd.read_parquet(stage.path("part.parquet")) for stage in found], ignore_index=True)
            table.to_parquet(out / f"{column}.parquet", index=False)
            rollouts = DIFFICULTY_ATTEMPTS * len(table) if column == "pass_rate" else 0
            rows.append((column, len(table), rollouts, table[column].mean(), table[column].std(ddof=0)))
        summary = pd.DataFrame(rows, columns=["quantity", "n_samples", "rollouts", "mean", "sd"])
        summary.to_csv(out / "measured.csv", index=False, float_format="%.6g", lineterminator="\n")

    inputs = tuple(stage for own in parts.values() for stage in own)
    return get_or_compute(profile, "measured", {"columns": list(columns)}, compute, inputs)
