"""Every path of the project, absolute from this file; `SAERL_HOME` moves the large outputs."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
FIGURES = ROOT / "figures"
"""The published figures; their tables lie in `PUBLISHED`."""
PUBLISHED = FIGURES / "data"
WEIGHTS = ROOT / "saerl_lib" / "data" / "weights"
"""The pre-trained policy of the embedded world, as safetensors."""
SAE = ROOT / "saerl_lib" / "data" / "sae"
"""The SAE of the default reader, as SAELens saves it, with its card."""


def artifacts_root() -> Path:
    """Folder of large outputs: `$SAERL_HOME`, else `artifacts/` beside the package."""
    return Path(os.environ.get("SAERL_HOME") or ROOT / "artifacts").expanduser().resolve()


def models_dir() -> Path:
    """Folder of fetched models: below the large outputs, or beside the package where an earlier call left them there."""
    beside = ROOT / "artifacts" / "models"
    return beside if beside.is_dir() and any(beside.iterdir()) else artifacts_root() / "models"


def sae_dir() -> Path:
    """Where `reader` trains SAEs: activations, the shipped one before it is shipped, and its variants."""
    return artifacts_root() / "sae"


def profile_dir(profile: str) -> Path:
    """Stage outputs, executed notebooks and HTML of one profile."""
    return artifacts_root() / profile


def figures_dir(profile: str) -> Path:
    """Where a run of `profile` draws its figures. The committed ones, in `FIGURES`, change with `./run_all.sh publish` alone."""
    return profile_dir(profile) / "figures"


def figure_data_dir(profile: str) -> Path:
    """The CSV files that the figures of a run of `profile` are drawn from."""
    return figures_dir(profile) / "data"


def shared_data_dir() -> Path | None:
    """Folder of real labelled mathematics named by `SAERL_DATA_DIR`, or None when it is not set. Raises FileNotFoundError when it
    is no folder."""
    value = os.environ.get("SAERL_DATA_DIR")
    if not value:
        return None
    path = Path(value).expanduser().resolve()
    if not path.is_dir():
        raise FileNotFoundError(f"SAERL_DATA_DIR={value}: no such folder; unset it or point it at the data")
    return path
