"""SAERL (arXiv 2605.27354) as a library: `plan("my.jsonl", labels="level")` makes a batch plan of one's own data.

`saerl_lib.plan` is the package of plans, and it can be called; what the call needs is imported then, so this import is quick.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from saerl_lib import plan

if TYPE_CHECKING:
    from saerl_lib.own import Planned

__all__ = ["plan"]


class _Callable(ModuleType):
    """The package `saerl_lib.plan`, which makes a plan when it is called: see `saerl_lib.own.plan`."""

    def __call__(self, data: Any, out: Any = None, **options: Any) -> Planned:
        """`saerl_lib.own.plan`: the plan of a file, folder, pattern or hub data set, in a folder of its own."""
        from saerl_lib.own import plan as make

        return make(data, out, **options)


plan.__class__ = _Callable
