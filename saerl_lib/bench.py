"""`python -m saerl_lib bench NAME`: speed as ratios measured in one run; the last line is one JSON object.

encode: token activations + SAE + pooling, against the bare forward pass of the same model on the same batches.
grpo: a step with the artifact's logging reward and plan, against the same TRL trainer with a bare reward.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saerl_lib.artifacts import Stage
from saerl_lib.config import Profile, get_profile, sub_seed
from saerl_lib.data.answers import reward
from saerl_lib.data.schema import Sample
from saerl_lib.data.stage import load_split, world_stage
from saerl_lib.encode.activations import activations, token_batches
from saerl_lib.encode.pooling import pool_samples
from saerl_lib.encode.stage import open_encoder, sae_stage
from saerl_lib.plan.orders import build_plan
from saerl_lib.rl.policy import load_policy
from saerl_lib.rl.training import build_trainer, grpo_arguments, logging_reward, plan_dataset

REPEATS = 5
GRPO_STEPS = 6


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def report(rows: dict[str, float], digits: int = 3) -> int:
    """Print a small table and the JSON line."""
    for name, value in rows.items():
        print(f"{name:32s} {value:12.{digits}f}")
    print(json.dumps({name: round(value, 5) for name, value in rows.items()}))
    return 0


def bench_encode(profile: Profile, world: Stage) -> int:
    """Median of `REPEATS` alternating passes over 2,000 samples."""
    encoder = open_encoder(profile, sae_stage(profile))
    samples = load_split(world, "pool")[:2000]
    batches = list(token_batches(samples, encoder.tokenizer, encoder.tokens_per_batch))
    retained = np.arange(profile.encoder.retained_latents)

    def forward() -> None:
        for batch in batches:
            activations(encoder.decoder, batch)

    floor, ours = [], []
    for _ in range(REPEATS):
        floor.append(seconds(forward))
        ours.append(seconds(lambda: pool_samples(samples, encoder, retained)))
    real = sum(int((b.prompt | b.solution).sum()) for b in batches)
    padded = sum(b.ids.numel() for b in batches)
    forward_s, encode_s = float(np.median(floor)), float(np.median(ours))
    return report(
        {
            "forward_s": forward_s,
            "encode_s": encode_s,
            "ratio_encode_to_forward": encode_s / forward_s,
            "tokens_per_second": real / encode_s,
            "padded_to_real_tokens": padded / real,
            "samples": len(samples),
        }
    )


def _trainer(profile: Profile, samples: list[Sample], folder: Path, reward_function: Callable[..., list[float]]) -> Any:
    model, tokenizer = load_policy()
    labels = np.arange(len(samples), dtype=float)
    ids = [s.id for s in samples]
    plan = build_plan(ids, labels.astype(int) * 0, labels, labels, labels + 1, profile.plan, order="ascending", labels=labels)
    dataset = plan_dataset(plan.table, {s.id: s for s in samples})
    arguments = grpo_arguments(profile.train, profile.plan.prompts_per_step, GRPO_STEPS, sub_seed(0, "bench"), folder)
    return build_trainer(model, tokenizer, dataset, arguments, reward_function, [])


def bare_reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """The same check without the log."""
    return [reward(text, gold) for text, gold in zip(completions, answer, strict=True)]


def bench_grpo(profile: Profile, world: Stage) -> int:
    """Median of three alternating runs of `GRPO_STEPS` steps on one thread."""
    torch.set_num_threads(1)
    samples = load_split(world, "pool")[: GRPO_STEPS * profile.plan.prompts_per_step]
    plain, ours = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(3):
            bare = _trainer(profile, samples, folder / f"bare{i}", bare_reward)
            plain.append(seconds(bare.train) / GRPO_STEPS)
            logged = _trainer(profile, samples, folder / f"ours{i}", logging_reward(folder / f"rollouts{i}.jsonl"))
            ours.append(seconds(logged.train) / GRPO_STEPS)
    trl_s, step_s = float(np.median(plain)), float(np.median(ours))
    return report(
        {"trl_step_s": trl_s, "artifact_step_s": step_s, "ratio_artifact_to_trl": step_s / trl_s, "steps": 3 * GRPO_STEPS}
    )


def run_bench(name: str) -> int:
    """Entry of the command."""
    profile = get_profile("laptop")
    world = world_stage(profile)
    return {"encode": bench_encode, "grpo": bench_grpo}[name](profile, world)
