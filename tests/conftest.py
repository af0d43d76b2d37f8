"""Shared fixtures: outputs go to a temporary folder, hypothesis is repeatable, GPU tests are skipped without a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # test files run side by side; threads that wait for a core would spin

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def saerl_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that `SAERL_HOME` points at; `SAERL_DATA_DIR` is unset."""
    home = tmp_path / "home"
    monkeypatch.setenv("SAERL_HOME", str(home))
    monkeypatch.delenv("SAERL_DATA_DIR", raising=False)
    return home


@dataclass(frozen=True)
class Machines:
    """A Ray cluster."""

    address: str
    second: int
    """Process id of the second machine's raylet, which all its workers descend from."""


RAY_NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """A Ray cluster of one node with one CPU; what needs it is skipped without ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for name in ("raylet_start_wait_time_s", "worker_register_timeout_seconds", "gcs_server_request_timeout_seconds"):
            patch.setenv(f"RAY_{name}", "240")  # a busy machine is slow to start
        cluster = pytest.importorskip("ray.cluster_utils").Cluster(initialize_head=True, head_node_args=RAY_NODE)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def two_machines(ray_cluster: Any) -> Iterator[Machines]:
    """The cluster with a second node of one CPU, which the test may kill."""
    second = ray_cluster.add_node(**RAY_NODE)
    ray_cluster.wait_for_nodes()
    yield Machines(ray_cluster.address, second.all_processes["raylet"][0].process.pid)
    ray_cluster.remove_node(second, allow_graceful=False)


GPU_TESTS_ON = "SAERL_GPU_TESTS_ON"
"""Environment variable: `cpu` runs the tests marked `gpu` in small on the CPU."""


@pytest.fixture(scope="session")
def gpu_device() -> torch.device:
    """The one GPU of tests marked `gpu`, or the CPU when a dry run was asked for."""
    from saerl_lib.encode.device import pick_device

    return pick_device(os.environ.get(GPU_TESTS_ON, "cuda"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest file; skip tests marked `gpu` where there is no CUDA device and no dry run was asked for."""
    items.sort(key=lambda item: item.path.name != "test_smoke.py")
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked or GPU_TESTS_ON in os.environ:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"no CUDA device; {GPU_TESTS_ON}=cpu runs this in small on the CPU"))
