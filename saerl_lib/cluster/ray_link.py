"""The way to a Ray cluster that runs already (`ray start --head`); `ray` is an optional extra.

Nothing is started here. The machines share the output folder under the same path and have the same environment.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError

SECONDS = 120
"""Time limit of finding a cluster."""
RETRIES = 10
"""Times that Ray repeats a task whose worker or machine was lost."""
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
           "PYTHONHASHSEED": "0"}  # fmt: skip
"""Environment of the workers: one thread a process, no network."""
PROBE = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='error')"


def require_ray() -> ModuleType:
    """The package `ray`. Raises ArtifactError that names the extra when it is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ArtifactError('--ray needs the package ray, which is not installed: pip install -e ".[ray]"')
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return importlib.import_module("ray")


def require_cluster(address: str, seconds: float = SECONDS) -> None:
    """Raises ArtifactError when no cluster answers at `address` (HOST:PORT or auto) within `seconds`.

    Ray itself may wait for minutes or end the process, so a process of its own tries first.
    """
    fix = "start one with `ray start --head`, join this machine to it with `ray start --address HOST:PORT`, and pass HOST:PORT"
    if address.startswith("ray://"):
        raise ArtifactError(
            f"--ray {address}: Ray clients are not supported; run the command on a machine of the cluster, with HOST:PORT"
        )
    host, _, port = address.rpartition(":")
    if address != "auto":
        if not (host and port.isdigit()):
            raise ArtifactError(f"--ray {address}: not an address; pass HOST:PORT or auto")
        try:
            socket.create_connection((host, int(port)), timeout=min(10, seconds)).close()
        except (OSError, OverflowError) as error:
            raise ArtifactError(f"--ray {address}: nothing answers there ({error}); {fix}") from error
    reason = _refusal(address, seconds)
    if reason:
        raise ArtifactError(f"--ray {address}: no Ray cluster to join ({reason}); {fix}")


_joined: set[str] = set()
"""Addresses that a process of its own has joined."""


def _refusal(address: str, seconds: float) -> str:
    """Why a process cannot join the cluster, '' when it can."""
    if address in _joined:
        return ""
    environment = dict(os.environ, RAY_USAGE_STATS_ENABLED="0")
    try:
        found = subprocess.run(
            [sys.executable, "-c", PROBE, address], capture_output=True, text=True, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired:
        return f"none answered within {seconds:g} s"
    if found.returncode:
        lines = [line for line in found.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {found.returncode}"
    _joined.add(address)
    return ""


@contextlib.contextmanager
def connected(address: str) -> Iterator[ModuleType]:
    """Ray, joined to the cluster at `address` until the block ends. Raises ArtifactError as `require_cluster` does."""
    ray = require_ray()
    require_cluster(address)
    workers = {"env_vars": {**THREADS, "PYTHONPATH": str(paths.ROOT)}}
    ray.init(address=address, runtime_env=workers, log_to_driver=False, logging_level=logging.ERROR)
    try:
        if slots(ray) < 1:
            raise ArtifactError(f"--ray {address}: the cluster has no CPU to give; start its machines with --num-cpus")
        yield ray
    except ray.exceptions.RayError as error:
        reason = str(error).strip().split("\n")[0]
        raise ArtifactError(f"Ray gave up ({reason}); what is finished is kept and the same command continues") from error
    finally:
        ray.shutdown()


def slots(ray: ModuleType) -> int:
    """CPUs of the cluster as it stands."""
    return int(ray.cluster_resources().get("CPU", 0))
