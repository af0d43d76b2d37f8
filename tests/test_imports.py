"""Every module of the library is imported in the locked environment, and its docstring examples hold."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import saerl_lib


def test_every_module_is_importable_and_its_examples_hold() -> None:
    faults, examples = [], 0
    for module in pkgutil.walk_packages(saerl_lib.__path__, "saerl_lib."):
        if module.name.endswith("__main__"):
            continue
        try:
            result = doctest.testmod(importlib.import_module(module.name))
        except Exception as error:  # named with the rest
            faults.append(f"{module.name}: {error!r}")
            continue
        examples += result.attempted
        faults += [f"{module.name}: {result.failed} examples fail"] * (result.failed > 0)
    assert not faults and examples > 60
