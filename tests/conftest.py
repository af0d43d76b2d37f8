"""Shared fixtures: outputs go to a temporary folder, hypothesis is repeatable, GPU tests are skipped without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def saerl_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that `SAERL_HOME` points at; `SAERL_DATA_DIR` is unset."""
    home = tmp_path / "home"
    monkeypatch.setenv("SAERL_HOME", str(home))
    monkeypatch.delenv("SAERL_DATA_DIR", raising=False)
    return home


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
