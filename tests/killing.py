"""Kill a training job in the middle, as the kernel would."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

from saerl_lib import paths
from saerl_lib.plan.trainers import read_rows
from saerl_lib.train.run import Run, command, write_run


def kill_in_training(run: Run, steps: int) -> None:
    """Start the run and kill it once `steps` steps are logged; it must not have finished."""
    write_run(run)
    environment = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process, log = subprocess.Popen(command(run), cwd=paths.ROOT, env=environment, **quiet), run.folder / "rollouts-000.jsonl"
    until(lambda: process.poll() is not None or len({row["step"] for row in read_rows(log)}) >= steps)
    process.kill()
    process.wait()
    assert not run.finished


def until(happened: Callable[[], Any], seconds: float = 300) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
