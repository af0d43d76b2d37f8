"""Kill a training job in the middle, as the kernel would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from saerl_lib import paths
from saerl_lib.rl.rollouts import read_rows
from saerl_lib.rl.runner import is_done


def kill_in_training(folder: Path, steps: int) -> None:
    """Start the job in `folder` and send SIGKILL once `steps` steps are logged; it must not have finished."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    command = [sys.executable, "-m", "saerl_lib", "train-job", str(folder)]
    process = subprocess.Popen(command, cwd=paths.ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if len({row["step"] for row in read_rows(folder / "rollouts.jsonl")}) >= steps:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not is_done(folder)
