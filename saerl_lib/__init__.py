"""SAERL (arXiv 2605.27354) as a library: `plan("my.jsonl", labels="level")` makes a batch plan of one's own data.

`saerl_lib.plan` is the package of plans, and it can be called. What the call needs is imported then, so this import is quick, and
by name, so that no stage of a profile depends on it (`artifacts.code_hash`).
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["plan"]


class _Callable(ModuleType):
    """The package `saerl_lib.plan`, which makes a plan when it is called."""

    def __call__(self, data: Any, out: Any = None, **options: Any) -> Any:
        """`saerl_lib.own.plan`: plan a file, folder, pattern or hub data set; returns a `Planned`."""
        return import_module("saerl_lib.own").plan(data, out, **options)


plan = import_module("saerl_lib.plan")
plan.__class__ = _Callable
