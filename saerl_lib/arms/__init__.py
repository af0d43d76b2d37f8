"""Arms of the study: which prompts, in which order. One file a family; `all_arms` finds every `ARMS` tuple here."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from pathlib import Path

from saerl_lib.arms.base import GROUPS, Arm, ArmError


@functools.cache
def all_arms(extra: Path | None = None) -> dict[str, Arm]:
    """Every arm by name, grouped, the baseline first; those of the user's file `extra` included. Raises ArmError for a doubled or malformed arm."""
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name)]
    found: dict[str, Arm] = {}
    tuples = [(module.__name__, getattr(module, "ARMS", ())) for module in modules]
    if extra is not None:
        tuples.append((str(extra), _load(extra)))
    for where, arms in tuples:
        for arm in arms:
            if not isinstance(arm, Arm):
                raise ArmError(f"{where}: ARMS holds a {type(arm).__name__}, not an Arm")
            if arm.name in found:
                raise ArmError(f"{where}: an arm named {arm.name!r} exists already; choose another name")
            found[arm.name] = arm
    return dict(sorted(found.items(), key=lambda item: (GROUPS.index(item[1].group), item[0] != "grpo")))


def _load(path: Path) -> tuple[Arm, ...]:
    """ARMS of a Python file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ArmError(f"{path}: no Python file; name one that defines ARMS")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "ARMS"):
        raise ArmError(f"{path}: define a tuple named ARMS")
    return tuple(module.ARMS)


def find_arm(name: str, extra: Path | None = None) -> Arm:
    """The arm `name`. Raises ArmError when there is none."""
    arms = all_arms(extra)
    if name not in arms:
        raise ArmError(f"arm {name!r} does not exist; choose one of {', '.join(arms)}")
    return arms[name]
