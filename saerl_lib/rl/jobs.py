"""From an arm, an order and a matched seed to a job folder whose key is the content hash of all that decides the run."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saerl_lib import paths
from saerl_lib.arms import all_arms
from saerl_lib.arms.base import InOrder
from saerl_lib.artifacts import file_sha256, write_json
from saerl_lib.config import Profile, TrainConfig, content_hash, to_dict
from saerl_lib.plan.batch_plan import plan_hash, read_plan
from saerl_lib.rl.environment import versions
from saerl_lib.rl.job import Job
from saerl_lib.rl.policy import FOLDER as POLICY_FOLDER

JOB_CODE = (
    "rl/group_attention.py", "rl/generation.py", "rl/packing.py", "rl/feed.py", "rl/trainer.py", "rl/rollouts.py",
    "rl/evaluation.py", "rl/training.py", "rl/job.py", "data/answers.py",
)  # fmt: skip
"""Sources that decide the outcome of a job whose plan and samples are given."""

@dataclass(frozen=True)
class PlannedRun:
    """An arm, its order and a matched seed."""

    arm: str
    seed: int
    plan: Path | None = None
    """Parquet of the batch plan; None: the arm's selector decides."""
    table: Path | None = None
    """Parquet that the selector reads."""
    pool: Path | None = None
    """Samples that the order speaks of; None: the pool of the world."""
    prompts_per_step: int = 0
    """0: the profile's."""
    dapo: bool = False
    policy: Path = POLICY_FOLDER
    arms: Path | None = None
    """File with the user's own arms."""


def dapo_settings(train: TrainConfig) -> TrainConfig:
    """DAPO's loss, clip and dynamic sampling (arXiv 2503.14476) without its overlong penalty: 0.2 % of completions are cut."""
    return dataclasses.replace(train, loss_type="dapo", clip_epsilon_high=0.28, dynamic_sampling=True)


def make_job(run: PlannedRun, profile: Profile, world: Path, home: Path) -> Job:
    """The record of a run; its key is the content hash of all that decides it, not of where files lie."""
    train = dataclasses.replace(dapo_settings(profile.train) if run.dapo else profile.train, seeds=1)
    pool, evaluation = run.pool or world / "pool.parquet", sorted(world.glob("eval_*.parquet"))
    job = Job(
        arm=run.arm,
        seed=1000 * profile.seed + run.seed,
        key="",
        policy=str(run.policy),
        plan=str(run.plan or ""),
        pool=str(pool),
        evaluation=str(world),
        prompts_per_step=run.prompts_per_step or profile.plan.prompts_per_step,
        train=train,
        world=profile.world,
        steps=_steps(run, profile),
        rollouts_per_step=profile.plan.prompts_per_step * train.rollouts_per_prompt,
        table=str(run.table or ""),
        arms=str(run.arms or ""),
    )
    weights = [file_sha256(run.policy / name) for name in ("model.safetensors", "tokenizer.json", "config.json")]
    shared = {
        "seed": [profile.seed, run.seed],
        "evaluation": [file_sha256(path) for path in evaluation],
        "policy": weights,
        "small": profile.world.eval_problems_small,
        "train": to_dict(train),
        "versions": versions(),
        "code": [file_sha256(paths.ROOT / "saerl_lib" / name) for name in JOB_CODE],
    }
    selector = paths.ROOT / "saerl_lib" / "arms"
    own = {
        "arm": run.arm,
        "plan": plan_hash(read_plan(run.plan)) if run.plan else "",
        "pool": file_sha256(pool),
        "table": file_sha256(run.table) if run.table else "",
        "selector": [file_sha256(p) for p in (run.arms or selector / "base.py", _module(run.arm))] if not run.plan else [],
        "prompts_per_step": [job.prompts_per_step, job.steps, job.rollouts_per_step],
    }
    quiet = {k: v for k, v in shared.items() if k != "train"} | {
        k: getattr(train, k) for k in ("eval_samples_full", "max_completion_tokens", "temperature")
    }
    initial = home / "initial" / f"{content_hash(quiet)}.parquet"
    return dataclasses.replace(job, key=content_hash({**shared, **own}), initial=str(initial))


def _steps(run: PlannedRun, profile: Profile) -> int:
    """Steps that the run's prompts fill at the profile's batch; a selector gets the profile's number."""
    return len(read_plan(run.plan).ids) // profile.plan.prompts_per_step if run.plan else profile.steps


def _module(arm: str) -> Path:
    """The file that defines an arm's selector, or the interface for an arm of the user's."""
    function = all_arms()[arm].policy if arm in all_arms() else None
    return Path(inspect.getfile(function)) if function else Path(inspect.getfile(InOrder))


def prepare_jobs(runs: Sequence[PlannedRun], profile: Profile, world: Path, home: Path) -> list[Path]:
    """Job folders under `home`, one a run; an earlier folder of the same name with another key is removed."""
    folders = []
    for run in runs:
        job = make_job(run, profile, world, home)
        folder = home / f"{run.arm}-seed{run.seed}"
        record = folder / "job.json"
        if record.exists() and json.loads(record.read_text(encoding="utf-8"))["key"] != job.key:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(record, to_dict(job))
        folders.append(folder)
    return folders
