"""Shared fixtures: outputs go to a temporary folder, hypothesis is repeatable, GPU tests are skipped without a GPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    import torch

    from saerl_lib.data.sample import Sample

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


@pytest.fixture(scope="session")
def smoke_world() -> dict[str, list[Sample]]:
    """The splits of profile smoke, drawn once; not to be changed."""
    from saerl_lib.config import get_profile
    from saerl_lib.world.sources import draw_world

    return draw_world(get_profile("smoke").world)


@pytest.fixture(scope="session")
def gpu_device() -> torch.device:
    """The GPU of tests marked `gpu`, which are skipped without one; with `SAERL_GPU_TESTS_ON=cpu` the CPU in its place."""
    import torch

    from saerl_lib.encode.models import pick_device

    name = os.environ.get("SAERL_GPU_TESTS_ON", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device; SAERL_GPU_TESTS_ON=cpu runs this in small on the CPU")
    return pick_device(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest file."""
    items.sort(key=lambda item: item.path.name != "test_smoke.py")
