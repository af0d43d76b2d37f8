"""One training run (arm x seed) as a process of its own: resumes from its last checkpoint, finished when `done.json` lies.

A job folder holds job.json (what to run), checkpoints, rollouts.jsonl, evaluations.jsonl and progress.json, and after
the end rollouts.parquet, evaluations.parquet, curve.parquet, final/ (the trained policy) and done.json, in this order.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers.trainer_utils import get_last_checkpoint

from saerl_lib.artifacts import ArtifactError, write_json
from saerl_lib.rl.environment import environment
from saerl_lib.arms import find_arm
from saerl_lib.arms.base import ArmPool, ArmSetting, InOrder, Selector
from saerl_lib.config import PlanConfig, TrainConfig, WorldConfig, sub_seed
from saerl_lib.data.sample import read_samples
from saerl_lib.data.splits import EVAL_SETS
from saerl_lib.encode.language_model import load_model
from saerl_lib.plan.batch_plan import read_plan
from saerl_lib.rl.evaluation import evaluate
from saerl_lib.rl.feed import Feed
from saerl_lib.rl.rollouts import append_rows, compare_with_plan, cut_back, read_rows
from saerl_lib.rl.training import EvaluationCallback, build_trainer, grpo_arguments, plan_dataset, prompt_dataset

CURVE_COLUMNS = {
    "reward": "reward_mean",
    "frac_reward_zero_std": "zero_variance_share",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
    "completions/mean_length": "completion_tokens",
}
"""TRL's log names against ours."""


ROLLOUT_COLUMNS = ["step", "round", "row", "sample_id", "used", "reward", "completion_tokens", "completion"]
"""`used` is False for rollouts that dynamic sampling dropped."""


@dataclass(frozen=True)
class Job:
    """What one run needs; stored as job.json."""

    arm: str
    seed: int
    key: str
    """Content hash of everything that decides the run."""
    policy: str
    plan: str
    """Parquet of the batch plan; '' when the arm's selector decides during training."""
    pool: str
    evaluation: str
    """Folder with one eval_<name>.parquet a set."""
    prompts_per_step: int
    train: TrainConfig
    world: WorldConfig
    steps: int = 0
    """Evaluation steps of the run; one stands for `rollouts_per_step` rollouts."""
    rollouts_per_step: int = 0
    initial: str = ""
    """Evaluation of the initial weights, which all arms of a matched seed share; '' evaluates anew."""
    table: str = ""
    """Parquet that a selector reads (`ArmPool.table`)."""
    arms: str = ""
    """File with the user's own arms, '' for none."""


def read_job(folder: Path) -> Job:
    """The job record of a folder."""
    record = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    record.pop("environment", None)
    train, world = TrainConfig(**record.pop("train")), WorldConfig(**record.pop("world"))
    return Job(**record, train=train, world=world)


def _lock(folder: Path, seconds: float = 60.0) -> Any:
    """An exclusive lock on the folder, released by the kernel when the process ends; waits for a dying predecessor."""
    handle = (folder / "lock").open("w")
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise ArtifactError(f"{folder}: another process trains this run; wait for it or stop it") from error
            time.sleep(0.5)


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose trainer state was written; TRL writes it after weights and optimiser."""
    while (found := get_last_checkpoint(str(folder))) is not None:
        path = Path(found)
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            return path
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(path)
    return None


def run_job(path: str) -> int:
    """Run or resume the job in folder `path`; returns 0."""
    folder = Path(path)
    lock = _lock(folder)
    job = read_job(folder)
    torch.set_num_threads(1)
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    resume = last_complete_checkpoint(checkpoints)
    start = int(resume.name.split("-")[1]) if resume else -1
    cut_back(folder / "rollouts.jsonl", start)
    cut_back(folder / "evaluations.jsonl", start, "update")
    started, evaluating = time.monotonic(), Stopwatch()
    trainer = prepare(job, folder, checkpoints, evaluating)
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    finally:
        append_rows(folder / "times.jsonl", [{"total": time.monotonic() - started, "evaluation": evaluating.seconds}])
    finish(job, folder, trainer)
    lock.close()
    return 0


@dataclass
class Stopwatch:
    """Seconds spent on evaluations."""

    seconds: float = 0.0


def prepare(job: Job, folder: Path, checkpoints: Path, evaluating: Stopwatch) -> Any:
    """The TRL trainer of a job with its feed and evaluations, where the logs in the folder end."""
    model, tokenizer = load_model(Path(job.policy))
    pool = read_samples(Path(job.pool))
    sets = {spec.name: read_samples(Path(job.evaluation) / f"eval_{spec.name}.parquet") for spec in EVAL_SETS}
    budget = job.steps * job.rollouts_per_step
    feed = Feed(
        (model, tokenizer), pool, _selector(job), job.train, job.prompts_per_step, budget, job.seed, folder / "rollouts.jsonl"
    )
    feed.replay(read_rows(folder / "rollouts.jsonl"))

    def evaluate_at(step: int, update: int, full: bool) -> None:
        started = time.monotonic()
        known = Path(job.initial) if job.initial and step == 0 else None
        if known is not None and known.exists():
            rows = pd.read_parquet(known).to_dict("records")
        else:
            rows = []
            for name in sets:
                rows += evaluate(model, tokenizer, {name: sets[name]}, job.train, job.world, job.seed, step, full)
                callback.stop_when_orphaned()
        if known is not None and not known.exists():
            write_table(pd.DataFrame(rows), known)
        append_rows(folder / "evaluations.jsonl", [{**row, "update": update, "rollouts": feed.generated} for row in rows])
        evaluating.seconds += time.monotonic() - started

    def progress(step: int) -> None:
        write_json(folder / "progress.json", {"step": step, "steps": job.steps})

    updates = -(-budget // (job.prompts_per_step * job.train.rollouts_per_prompt))
    arguments = grpo_arguments(job.train, job.prompts_per_step, updates, job.seed, checkpoints)
    callback = EvaluationCallback(
        evaluate_at, lambda: feed.generated, job.rollouts_per_step, job.train.eval_every_steps, job.steps, progress
    )
    if job.plan:
        dataset = plan_dataset(pd.read_parquet(job.plan), {s.id: s for s in pool})
    else:
        dataset = prompt_dataset(pool)
    return build_trainer(model, tokenizer, dataset, arguments, feed, [callback])


def _selector(job: Job) -> Selector | None:
    """What decides the prompts: None leaves it to the data set in plan order."""
    if job.plan and not job.train.dynamic_sampling:
        return None
    if job.plan:
        row_of = {s.id: i for i, s in enumerate(read_samples(Path(job.pool)))}
        return InOrder([row_of[i] for i in read_plan(Path(job.plan)).ids])
    arm = find_arm(job.arm, Path(job.arms) if job.arms else None)
    setting = ArmSetting(PlanConfig(prompts_per_step=job.prompts_per_step), job.steps, sub_seed(job.seed, f"arm-{arm.name}"))
    return arm.policy(ArmPool(pd.read_parquet(job.table)), setting)


def finish(job: Job, folder: Path, trainer: Any) -> None:
    """Compare the log with the plan, write the Parquet tables and, last, done.json."""
    rollouts = pd.DataFrame(read_rows(folder / "rollouts.jsonl"))
    if job.plan and not job.train.dynamic_sampling:
        compare_with_plan(rollouts, pd.read_parquet(job.plan), job.train.rollouts_per_prompt)
    curve = pd.DataFrame([row for row in trainer.state.log_history if "reward" in row])
    curve = curve.rename(columns=CURVE_COLUMNS)[["step", *CURVE_COLUMNS.values()]]
    tables = {"rollouts": rollouts[ROLLOUT_COLUMNS], "evaluations": pd.DataFrame(read_rows(folder / "evaluations.jsonl")), "curve": curve}
    for name, table in tables.items():
        table.insert(0, "seed", job.seed)
        table.insert(0, "arm", job.arm)
        write_table(table, folder / f"{name}.parquet")
    trainer.model.save_pretrained(folder / "final", safe_serialization=True)
    shutil.rmtree(folder / "checkpoints")
    for name in ("rollouts.jsonl", "evaluations.jsonl"):
        (folder / name).unlink()
    times = pd.DataFrame(read_rows(folder / "times.jsonl")).sum()
    seconds = {"training": round(float(times["total"] - times["evaluation"]), 1), "evaluation": round(float(times["evaluation"]), 1)}
    record = {"key": job.key, "steps": int(curve["step"].max()), "seconds": seconds, "environment": environment()}
    write_json(folder / "done.json", record)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write Parquet atomically: two jobs may write the same table."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(partial, index=False, compression="zstd")
    partial.replace(path)
