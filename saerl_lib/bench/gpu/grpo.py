"""Part `grpo`: a short comparison of a random order with the SAERL plan, by TRL's own trainer in bfloat16.

The plan is made on the device by the code of `plan --data`; both orders hold the same prompts. A handful of steps says that
the path works and what it costs, and nothing about which order is better.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from saerl_lib.bench.gpu.checks import Check
from saerl_lib.bench.gpu.encoding import world_samples
from saerl_lib.bench.gpu.size import GpuSize
from saerl_lib.config import PlanConfig, sub_seed
from saerl_lib.data.rows import Fields
from saerl_lib.export.follow import FollowReport
from saerl_lib.export.samples import open_export
from saerl_lib.own.example import write_example
from saerl_lib.own.run import plan_own_data
from saerl_lib.own.settings import OwnConfig
from saerl_lib.plan.batch_plan import write_plan
from saerl_lib.plan.orders import build_plan
from saerl_lib.rl.job import last_complete_checkpoint
from saerl_lib.rl.policy import FOLDER as SHIPPED
from saerl_lib.train_command import TrainSettings, check_logs, run_train

ARMS = ("random", "saerl")
LEAST_TRAINED = 1e-3
"""Share of groups with a gradient over all runs below which nothing was trained: one group of either size is more."""


@dataclass(frozen=True)
class ShortRun:
    """One GRPO run of a few steps."""

    arm: str
    seed: int
    follow: FollowReport
    """What was consumed against the plan."""
    rewards: tuple[float, ...]
    """Mean reward of each step, in [0, 1]."""
    flat_groups: tuple[float, ...]
    """Share of groups of each step whose rollouts all earned the same: they give no gradient."""
    losses: tuple[float, ...]
    gradient_norms: tuple[float, ...]
    seconds: float
    """Loading, training and saving."""

    @property
    def finite(self) -> bool:
        """Whether rewards, losses and gradient norms are numbers."""
        return all(map(math.isfinite, self.rewards + self.losses + self.gradient_norms))


def write_plans(model: Path, sae: Path, size: GpuSize, device: torch.device, work: Path) -> dict[tuple[str, int], Path]:
    """(arm, seed) -> plan of the pool `work`/pool.jsonl, which is written too; the SAERL plan is the same for every seed."""
    pool = world_samples(size.steps * size.prompts_per_step, "gpu-pool")
    write_example(pool, work / "pool.jsonl")
    config = OwnConfig(
        fields=Fields(labels="level"), encoder=str(model), layer=size.hook_layer, sae=str(sae), device=str(device), bf16=True,
        retained_latents=size.sae.retained_latents, tokens_per_batch=size.sae.tokens_per_batch,
        prompts_per_step=size.prompts_per_step,
    )  # fmt: skip
    plan_own_data(str(work / "pool.jsonl"), work / "plan", config)
    found = {("saerl", seed): work / "plan" / "plan.parquet" for seed in range(size.seeds)}
    none, one, ids = np.zeros(len(pool)), np.ones(len(pool)), [s.id for s in pool]
    for seed in range(size.seeds):
        plan = build_plan(
            ids, none.astype(int), none, none, one, PlanConfig(prompts_per_step=size.prompts_per_step),
            order="random", seed=sub_seed(seed, "gpu-random"),
        )  # fmt: skip
        found["random", seed] = work / f"random-{seed}.parquet"
        write_plan(plan, found["random", seed])
    return found


def short_run(policy: Path, plan: Path, arm: str, seed: int, size: GpuSize, device: torch.device, work: Path) -> ShortRun:
    """Train in `work`/<arm>-<seed>, read what TRL logged, and drop the weights.

    Raises ArtifactError when the plan was not followed.
    """
    folder, samples = work / f"{arm}-{seed}", work / "pool.jsonl"
    settings = TrainSettings(
        rollouts_per_prompt=size.rollouts_per_prompt, micro_batch=size.micro_batch, learning_rate=1e-5, temperature=1.0,
        max_completion_tokens=size.max_completion_tokens, save_every_steps=size.steps, bf16=True, cpu=device.type == "cpu",
        seed=seed,
    )  # fmt: skip
    start = time.perf_counter()
    run_train(plan, samples, str(policy), folder, settings)
    spent = time.perf_counter() - start
    state = json.loads((last_complete_checkpoint(folder / "checkpoints") / "trainer_state.json").read_text(encoding="utf-8"))
    steps = [row for row in state["log_history"] if "reward" in row]
    report = check_logs(open_export(plan, samples, size.rollouts_per_prompt), folder)
    shutil.rmtree(folder / "checkpoints")
    shutil.rmtree(folder / "final")
    columns = (tuple(float(row[name]) for row in steps) for name in ("reward", "frac_reward_zero_std", "loss", "grad_norm"))
    return ShortRun(arm, seed, report, *columns, spent)


def compare_orders(model: Path, sae: Path, size: GpuSize, device: torch.device, work: Path) -> list[Check]:
    """Both orders from every seed; `sae` reads the residual stream of `model` at the hook, `work` is an empty folder.

    The policy is `model` too, or the shipped one where the size says so.
    """
    checks, trained, policy = [], [], SHIPPED if size.trains_shipped else model
    for (arm, seed), plan in sorted(write_plans(model, sae, size, device, work).items()):
        run = short_run(policy, plan, arm, seed, size, device, work)
        name = f"{arm}, seed {seed}"
        trained.append(1 - float(np.mean(run.flat_groups)))
        checks += [
            Check("grpo", f"{name}: steps that consumed the planned prompts", run.follow.steps_kept, size.steps, size.steps),
            Check("grpo", f"{name}: steps logged with a reward", len(run.rewards), size.steps, size.steps),
            Check("grpo", f"{name}: rewards, losses and gradients finite", float(run.finite), 1.0, 1.0),
            Check("grpo", f"{name}: mean reward", float(np.mean(run.rewards)), 0.0, 1.0),
            Check("grpo", f"{name}: share of groups with a gradient", trained[-1], 0.0, 1.0),
            Check("grpo", f"{name}: seconds a step, loading and saving included", run.seconds / size.steps),
        ]
    return [*checks, Check("grpo", "all runs: share of groups with a gradient", float(np.mean(trained)), LEAST_TRAINED, 1.0)]
