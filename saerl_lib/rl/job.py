"""One training run (arm x seed) as a process of its own: resumes from its last checkpoint, finished when `done.json` lies.

A job folder holds job.json (what to run), checkpoints, rollouts.jsonl, evaluations.jsonl and progress.json, and after
the end rollouts.parquet, evaluations.parquet, curve.parquet, final/ (the trained policy) and done.json, in this order.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers.trainer_utils import get_last_checkpoint

from saerl_lib.artifacts import ArtifactError, write_json
from saerl_lib.config import TrainConfig, WorldConfig
from saerl_lib.data.schema import read_samples
from saerl_lib.data.splits import EVAL_SETS
from saerl_lib.encode.language_model import load_model
from saerl_lib.rl.evaluation import evaluate
from saerl_lib.rl.rollouts import append_rows, compare_with_plan, cut_back, read_rows
from saerl_lib.rl.training import EvaluationCallback, build_trainer, grpo_arguments, logging_reward, plan_dataset

CURVE_COLUMNS = {
    "reward": "reward_mean",
    "frac_reward_zero_std": "zero_variance_share",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
    "completions/mean_length": "completion_tokens",
}
"""TRL's log names against ours."""


@dataclass(frozen=True)
class Job:
    """What one run needs; stored as job.json."""

    arm: str
    seed: int
    key: str
    """Content hash of everything that decides the run."""
    policy: str
    plan: str
    pool: str
    evaluation: str
    """Folder with one eval_<name>.parquet a set."""
    prompts_per_step: int
    train: TrainConfig
    world: WorldConfig


def read_job(folder: Path) -> Job:
    """The job record of a folder."""
    record = json.loads((folder / "job.json").read_text(encoding="utf-8"))
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
    for name in ("rollouts.jsonl", "evaluations.jsonl"):
        cut_back(folder / name, start)
    trainer = prepare(job, folder, checkpoints)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    finish(job, folder, trainer)
    lock.close()
    return 0


def prepare(job: Job, folder: Path, checkpoints: Path) -> Any:
    """The TRL trainer of a job with its logging reward and evaluations."""
    model, tokenizer = load_model(Path(job.policy))
    plan = pd.read_parquet(job.plan)
    samples = {s.id: s for s in read_samples(Path(job.pool))}
    sets = {spec.name: read_samples(Path(job.evaluation) / f"eval_{spec.name}.parquet") for spec in EVAL_SETS}
    steps = int(plan["step"].max()) + 1

    def evaluate_at(step: int, full: bool) -> None:
        rows: list[dict[str, Any]] = []
        for name in sets:
            rows += evaluate(model, tokenizer, {name: sets[name]}, job.train, job.world, job.seed, step, full)
            callback.stop_when_orphaned()
        append_rows(folder / "evaluations.jsonl", rows)

    def progress(step: int) -> None:
        write_json(folder / "progress.json", {"step": step, "steps": steps})

    arguments = grpo_arguments(job.train, job.prompts_per_step, steps, job.seed, checkpoints)
    callback = EvaluationCallback(evaluate_at, job.train.eval_every_steps, steps, progress)
    reward_function = logging_reward(folder / "rollouts.jsonl")
    return build_trainer(model, tokenizer, plan_dataset(plan, samples), arguments, reward_function, [callback])


def finish(job: Job, folder: Path, trainer: Any) -> None:
    """Compare the log with the plan, write the Parquet tables and, last, done.json."""
    rollouts = pd.DataFrame(read_rows(folder / "rollouts.jsonl"))
    compare_with_plan(rollouts, pd.read_parquet(job.plan), job.train.rollouts_per_prompt)
    curve = pd.DataFrame([row for row in trainer.state.log_history if "reward" in row])
    curve = curve.rename(columns=CURVE_COLUMNS)[["step", *CURVE_COLUMNS.values()]]
    tables = {
        "rollouts": rollouts[["step", "row", "sample_id", "reward", "completion_tokens", "completion"]],
        "evaluations": pd.DataFrame(read_rows(folder / "evaluations.jsonl")),
        "curve": curve,
    }
    for name, table in tables.items():
        table.insert(0, "seed", job.seed)
        table.insert(0, "arm", job.arm)
        table.to_parquet(folder / f"{name}.parquet", index=False, compression="zstd")
    trainer.model.save_pretrained(folder / "final", safe_serialization=True)
    write_json(folder / "done.json", {"key": job.key, "steps": int(curve["step"].max())})
