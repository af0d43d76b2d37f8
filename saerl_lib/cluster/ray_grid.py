"""The study's training runs on a Ray cluster: one task of one CPU a run, over the same job folders as the local grid.

A task starts the run as the local grid does, a process of its own that resumes from its last checkpoint. When a worker or a
machine is lost, Ray gives the run to another; the folder's lock keeps two processes from training one run.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from saerl_lib.arms.base import Arm
from saerl_lib.artifacts import Stage
from saerl_lib.cluster.ray_link import RETRIES, connected, slots
from saerl_lib.config import Profile
from saerl_lib.rl.grid import jobs_home, planned_run
from saerl_lib.rl.jobs import prepare_jobs
from saerl_lib.rl.runner import is_done, run_jobs


def run_grid_on_ray(
    profile: Profile, world: Stage, pools: Stage, cells: Sequence[tuple[Arm, int]], address: str, arms_file: Path | None = None,
    seconds: float | None = None,
) -> dict[str, str]:  # fmt: skip
    """`rl.grid.run_grid` on the cluster at `address`; the folder of outputs lies under the same path on all its machines."""
    home = jobs_home(profile)
    runs = [planned_run(profile, pools, arm, seed, home, arms_file) for arm, seed in cells]
    folders = prepare_jobs(runs, profile, world.folder, home)
    with connected(address) as ray:
        failed = run_jobs_on_ray(ray, folders, profile.steps, seconds)
    return {folder.name: log for folder, log in failed.items()}


def run_jobs_on_ray(ray: ModuleType, folders: Sequence[Path], steps: int, seconds: float | None = None) -> dict[Path, str]:
    """Run the unfinished jobs, one a CPU of the cluster; returns failures, message by folder.

    After `seconds` no further job is started. Interrupted, it stops the running ones, which resume later.
    """
    deadline = time.monotonic() + seconds if seconds is not None else float("inf")
    task = ray.remote(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD")(run_one)
    waiting = [folder for folder in folders if not is_done(folder)]
    running: dict[Any, Path] = {}
    failed: dict[Path, str] = {}
    bar = tqdm(total=len(folders), desc="training", unit="run", initial=len(folders) - len(waiting), file=sys.stdout)
    try:
        while running or (waiting and time.monotonic() < deadline):
            while waiting and len(running) < max(1, slots(ray)) and time.monotonic() < deadline:
                folder = waiting.pop(0)
                running[task.remote(str(folder), steps)] = folder
            for done in ray.wait(list(running), timeout=5)[0]:
                folder = running.pop(done)
                message = _result(ray, done)
                if message or not is_done(folder):
                    failed[folder] = message or f"{folder} holds no finished run: all machines must share it under this path"
                bar.update(1)
    finally:
        for reference in running:
            ray.cancel(reference)
        bar.close()
    return failed


def _result(ray: ModuleType, reference: Any) -> str:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return f"Ray gave up: {error}"


def run_one(folder: str, steps: int) -> str:
    """Run or resume one job where it lies, on the machine that this is called on; returns why it failed, '' when it did not."""
    path = Path(folder)
    if not (path / "job.json").is_file():
        return f"{folder} is not to be seen on {socket.gethostname()}: all machines must share it under this path"
    return run_jobs([path], steps, processes=1, keep_going=True).get(path, "")
