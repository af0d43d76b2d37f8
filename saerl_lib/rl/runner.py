"""Runs training jobs as processes, one a core with one thread each; a killed grid goes on where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "268435456"}
"""glibc keeps freed memory instead of returning it after every step."""


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


def run_jobs(
    folders: Sequence[Path], steps: int, processes: int | None = None, keep_going: bool = False, seconds: float | None = None
) -> dict[Path, str]:
    """Run the unfinished jobs, `processes` at a time (default: one a core), with one progress bar over all steps.

    Raises ArtifactError with the end of the log when a job fails; the other running jobs are stopped and resume later.
    With `keep_going` the rest is run first and the failures are returned, message by folder. After `seconds` no further
    job is started.
    """
    deadline = time.monotonic() + seconds if seconds is not None else None
    failed: dict[Path, str] = {}
    waiting = [folder for folder in folders if not is_done(folder)]
    finished = len(folders) - len(waiting)
    limit = processes or len(os.sched_getaffinity(0))
    running: dict[Path, subprocess.Popen[bytes]] = {}
    bar = tqdm(
        total=steps * len(folders), desc="training", unit="step", initial=steps * finished, mininterval=10, file=sys.stdout
    )
    try:
        while waiting or running:
            if deadline is not None and time.monotonic() > deadline:
                waiting = []
            while waiting and len(running) < limit:
                folder = waiting.pop(0)
                running[folder] = _start(folder)
            time.sleep(0.5)
            for folder in [f for f, process in running.items() if process.poll() is not None]:
                process = running.pop(folder)
                if process.returncode != 0 or not is_done(folder):
                    tail = (folder / "output.log").read_text(encoding="utf-8", errors="replace")[-2000:]
                    failed[folder] = f"training run {folder.name} failed with exit code {process.returncode}:\n{tail}"
                    if not keep_going:
                        raise ArtifactError(failed[folder])
                    continue
                finished += 1
            bar.n = steps * finished + sum(_step(folder) for folder in running)
            bar.refresh() if not running else bar.update(0)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        bar.close()
    return failed
