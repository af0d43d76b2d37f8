"""Find processes, and kill a training job in the middle, as the kernel would."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
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


def processes() -> dict[int, tuple[int, str]]:
    """pid -> (parent, command line) of what runs, zombies left out."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state, parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            if state != "Z":
                found[int(folder.name)] = (int(parent), line)
    return found


def below(parent: int) -> list[int]:
    """All processes that descend from one."""
    known, found = processes(), [parent]
    for pid in found:
        found += [child for child, (above, _) in known.items() if above == pid]
    return found[1:]


def until(happened: Callable[[], Any], seconds: float = 300) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
