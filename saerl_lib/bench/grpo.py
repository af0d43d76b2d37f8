"""`bench grpo`: a step with the artifact's logging reward and plan, against the same TRL trainer with a bare reward."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saerl_lib.artifacts import Stage
from saerl_lib.bench.timing import report, seconds
from saerl_lib.config import Profile, sub_seed
from saerl_lib.data.answers import reward
from saerl_lib.data.schema import Sample
from saerl_lib.data.stage import load_split
from saerl_lib.plan.orders import build_plan
from saerl_lib.rl.policy import load_policy
from saerl_lib.rl.training import build_trainer, grpo_arguments, logging_reward, plan_dataset

GRPO_STEPS = 6


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
