"""Where a plan can go, and where it cannot.

What keeps an order was read in the frameworks' sources: TRL 1.16, verl 0.9.1, OpenRLHF 0.11.2, SkyRL 0.3.0 and
verifiers 0.4.0 from the package index, NeMo-RL and prime-rl in their repositories.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from saerl_lib.export.files import write_folder
from saerl_lib.export.nemo_rl import nemo_rl_files
from saerl_lib.export.prime_rl import prime_rl_files
from saerl_lib.export.samples import Export, ExportError
from saerl_lib.export.trl import trl_files
from saerl_lib.export.verl import verl_files

TARGETS: dict[str, Callable[[Export], dict[str, bytes]]] = {
    "trl": trl_files, "verl": verl_files, "nemo-rl": nemo_rl_files, "prime-rl": prime_rl_files,
}  # fmt: skip
"""Framework -> relative paths and contents of its export."""

REFUSED = {
    "openrlhf": (
        "OpenRLHF (0.11.2) cannot keep an order: its PPO trainer builds the loader of prompts with shuffle=True written "
        "into the call (openrlhf/trainer/ppo_trainer.py), and no option reaches it. Pass False there in a copy of your "
        "own, or train with one of {targets}"
    ),
    "skyrl": (
        "SkyRL (0.3.0) cannot keep an order in RL: its loader of training prompts is built with shuffle=True "
        "(skyrl/train/utils/trainer_utils.py); the option `sampler` belongs to supervised fine-tuning alone. Change that "
        "line in a copy of your own, or train with one of {targets}"
    ),
}
"""Framework -> why no plan is exported for it."""


def export_plan(export: Export, target: str, out: Path) -> list[str]:
    """Write the folder `out` for a framework; returns the relative paths of its files, sorted.

    Raises ExportError for a framework that is unknown or cannot keep an order, or when `out` is not free.
    """
    require_target(target)
    files = TARGETS[target](export)
    write_folder(files, out)
    return sorted(files)


def require_target(target: str) -> None:
    """Raise ExportError unless plans can be exported for `target`."""
    names = ", ".join(TARGETS)
    if target in REFUSED:
        raise ExportError(REFUSED[target].format(targets=names))
    if target not in TARGETS:
        raise ExportError(f"--to {target}: choose one of {names}")
