"""`bench grpo`: a step of the artifact's trainer against TRL's own with its own generation, and where the time goes.

Both train on the same plan with the same settings on one thread; the artifact's also logs every rollout.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from trl import GRPOTrainer

from saerl_lib.artifacts import Stage
from saerl_lib.bench.timing import report, seconds
from saerl_lib.config import Profile, sub_seed
from saerl_lib.data.answers import reward
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.train.policy import load_policy
from saerl_lib.train.selectors import InOrder
from saerl_lib.train.trainer import PackedFeed, PlanTrainer, grpo_arguments, record

GRPO_STEPS, REPEATS = 4, 3
PROMPTS = 32
"""Prompts of a step, as in profile `study`."""
RUN_STEPS = 100
"""Steps of a run of 25,600 rollouts at this size."""


def _arguments(profile: Profile, folder: Path) -> Any:
    return grpo_arguments(profile.train, PROMPTS, GRPO_STEPS, sub_seed(0, "bench"), folder)


def trl_trainer(profile: Profile, samples: list[Sample], folder: Path) -> Any:
    """TRL's trainer as it comes, with the exact-answer reward."""
    def exact_answer(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [reward(text, gold) for text, gold in zip(completions, answer, strict=True)]

    model, tokenizer = load_policy()
    return GRPOTrainer(
        model=model, reward_funcs=exact_answer, args=_arguments(profile, folder), processing_class=tokenizer,
        train_dataset=Dataset.from_list([record(s) for s in samples]),
    )  # fmt: skip


def own_trainer(profile: Profile, samples: list[Sample], folder: Path) -> Any:
    """The artifact's trainer with its log."""
    policy, order = load_policy(), InOrder(range(len(samples)))
    feed = PackedFeed(policy, samples, order, profile.train, PROMPTS, folder / "rollouts-000.jsonl", 10**9, seed=0)
    data = Dataset.from_list([record(s) for s in samples])
    return PlanTrainer(feed, model=policy[0], args=_arguments(profile, folder), train_dataset=data, processing_class=policy[1])


def timed_parts(trainer: Any) -> dict[str, float]:
    """Total seconds of `train` and of its parts: rollouts, loss, backward; what is left is the optimiser and bookkeeping."""
    spent: dict[str, float] = defaultdict(float)

    def watch(owner: Any, name: str, label: str) -> None:
        work: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            box: list[Any] = []
            spent[label] += seconds(lambda: box.append(work(*args, **kwargs)))
            return box[0]

        setattr(owner, name, timed)

    watch(trainer.feed, "step", "rollouts")
    watch(trainer, "_compute_loss", "loss")
    watch(trainer.accelerator, "backward", "backward")
    spent["total"] = seconds(trainer.train)
    return dict(spent)


def bench_grpo(profile: Profile, world: Stage) -> int:
    """Medians of alternating runs of `GRPO_STEPS` steps on one thread."""
    torch.set_num_threads(1)
    samples = load_split(world, "pool")[: GRPO_STEPS * PROMPTS]
    plain, ours = [], []
    with tempfile.TemporaryDirectory() as name:
        for i in range(REPEATS):
            folders = [Path(name) / f"{kind}{i}" for kind in ("trl", "own")]
            for folder in folders:
                folder.mkdir()
            plain.append(seconds(trl_trainer(profile, samples, folders[0]).train) / GRPO_STEPS)
            ours.append(timed_parts(own_trainer(profile, samples, folders[1])))
    part = {k: float(np.median([run[k] for run in ours])) / GRPO_STEPS for k in ("rollouts", "loss", "backward", "total")}
    trl_s = float(np.median(plain))
    return report(
        {
            "trl_step_s": trl_s,
            "artifact_step_s": part["total"],
            "ratio_trl_to_artifact": trl_s / part["total"],
            **{f"{k}_s": part[k] for k in ("rollouts", "loss", "backward")},
            "other_s": part["total"] - part["rollouts"] - part["loss"] - part["backward"],
            "run_of_25600_rollouts_s": RUN_STEPS * part["total"],
            "prompts_per_step": PROMPTS,
            "steps_timed": REPEATS * GRPO_STEPS,
        }
    )
