"""Every module of the library can be imported in the locked environment."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import saerl_lib

MODULES = [m.name for m in pkgutil.walk_packages(saerl_lib.__path__, "saerl_lib.") if not m.name.endswith("__main__")]


@pytest.mark.parametrize("name", MODULES)
def test_module_is_importable(name: str) -> None:
    assert importlib.import_module(name) is not None
