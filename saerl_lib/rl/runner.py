"""Runs training jobs as processes, one a core with one thread each; a killed grid goes on where it was."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, file_sha256, write_json
from saerl_lib.config import Profile, content_hash, to_dict
from saerl_lib.plan.batch_plan import plan_hash, read_plan
from saerl_lib.rl.job import Job
from saerl_lib.rl.policy import FOLDER as POLICY_FOLDER

JOB_CODE = (
    "rl/generation.py", "rl/rollouts.py", "rl/evaluation.py", "rl/training.py", "rl/job.py",
    "data/answers.py", "data/schema.py", "encode/language_model.py",
)  # fmt: skip
"""Sources that decide the outcome of a job whose plan and samples are given."""

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "268435456"}
"""glibc keeps freed memory instead of returning it after every step."""


@dataclass(frozen=True)
class PlannedRun:
    """An arm, its plan and a matched seed."""

    arm: str
    seed: int
    plan: Path
    """Parquet of the batch plan."""


def job_key(run: PlannedRun, profile: Profile, pool: Path, evaluation: Sequence[Path]) -> str:
    """Content hash of all that decides a run; it does not depend on the number of seeds."""
    train = dataclasses.replace(profile.train, seeds=1)
    package = paths.ROOT / "saerl_lib"
    return content_hash(
        {
            "arm": run.arm,
            "seed": [profile.seed, run.seed],
            "plan": plan_hash(read_plan(run.plan)),
            "pool": file_sha256(pool),
            "evaluation": [file_sha256(path) for path in evaluation],
            "prompts_per_step": profile.plan.prompts_per_step,
            "policy": [file_sha256(POLICY_FOLDER / name) for name in ("model.safetensors", "tokenizer.json", "config.json")],
            "lock": file_sha256(paths.ROOT / "requirements.lock"),
            "train": to_dict(train),
            "small": profile.world.eval_problems_small,
            "code": [file_sha256(package / name) for name in JOB_CODE],
        }
    )


def prepare_jobs(runs: Sequence[PlannedRun], profile: Profile, world: Path, home: Path) -> list[Path]:
    """Job folders under `home`, one a run; an earlier folder of the same name with another key is removed."""
    evaluation = sorted(world.glob("eval_*.parquet"))
    pool = world / "pool.parquet"
    folders = []
    for run in runs:
        key = job_key(run, profile, pool, evaluation)
        folder = home / f"{run.arm}-seed{run.seed}"
        record = folder / "job.json"
        if record.exists() and json.loads(record.read_text(encoding="utf-8"))["key"] != key:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        job = Job(
            arm=run.arm,
            seed=1000 * profile.seed + run.seed,
            key=key,
            policy=str(POLICY_FOLDER),
            plan=str(run.plan),
            pool=str(pool),
            evaluation=str(world),
            prompts_per_step=profile.plan.prompts_per_step,
            train=profile.train,
            world=profile.world,
        )
        write_json(record, to_dict(job))
        folders.append(folder)
    return folders


def is_done(folder: Path) -> bool:
    """Whether the job of the folder finished under its present key."""
    done, record = folder / "done.json", folder / "job.json"
    if not done.exists():
        return False
    key = json.loads(record.read_text(encoding="utf-8"))["key"]
    return json.loads(done.read_text(encoding="utf-8"))["key"] == key


def _start(folder: Path) -> subprocess.Popen[bytes]:
    environment = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", **MALLOC)
    environment.update(HF_HUB_OFFLINE="1", PYTHONHASHSEED="0", PYTHONPATH=str(paths.ROOT))
    with (folder / "output.log").open("ab") as log:
        command = [sys.executable, "-m", "saerl_lib", "train-job", str(folder)]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=paths.ROOT)


def _step(folder: Path) -> int:
    try:
        return int(json.loads((folder / "progress.json").read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError):
        return 0


def run_jobs(folders: Sequence[Path], steps: int, processes: int | None = None) -> None:
    """Run the unfinished jobs, `processes` at a time (default: one a core), with one progress bar over all steps.

    Raises ArtifactError with the end of the log when a job fails; the other running jobs are stopped and resume later.
    """
    waiting = [folder for folder in folders if not is_done(folder)]
    finished = len(folders) - len(waiting)
    limit = processes or len(os.sched_getaffinity(0))
    running: dict[Path, subprocess.Popen[bytes]] = {}
    bar = tqdm(
        total=steps * len(folders), desc="training", unit="step", initial=steps * finished, mininterval=10, file=sys.stdout
    )
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                folder = waiting.pop(0)
                running[folder] = _start(folder)
            time.sleep(0.5)
            for folder in [f for f, process in running.items() if process.poll() is not None]:
                process = running.pop(folder)
                if process.returncode != 0 or not is_done(folder):
                    tail = (folder / "output.log").read_text(encoding="utf-8", errors="replace")[-2000:]
                    raise ArtifactError(f"training run {folder.name} failed with exit code {process.returncode}:\n{tail}")
                finished += 1
            bar.n = steps * finished + sum(_step(folder) for folder in running)
            bar.refresh() if not running else bar.update(0)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        bar.close()
