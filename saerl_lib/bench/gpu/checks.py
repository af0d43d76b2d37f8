"""What the GPU test set measures, row by row, and the table that it writes with its provenance."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from saerl_lib.artifacts import ArtifactError, provenance

TABLE, RECORD = "gpu_checks.csv", "gpu_checks.json"


@dataclass(frozen=True)
class Check:
    """One measured quantity, with bounds or without."""

    part: str
    """policy, encoding, speed or grpo."""
    quantity: str
    value: float
    low: float | None = None
    """Smallest allowed value; None: no bound."""
    high: float | None = None
    """Largest allowed value; None: no bound."""

    @property
    def met(self) -> bool | None:
        """Whether the value lies within its bounds (a NaN never does); None without bounds."""
        if self.low is None and self.high is None:
            return None
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)


def missed(checks: Sequence[Check]) -> list[str]:
    """One sentence for each check outside its bounds."""
    return [f"{c.part}: {c.quantity} is {c.value:.6g}, allowed {c.low} to {c.high}" for c in checks if c.met is False]


def device_record(device: torch.device) -> dict[str, Any]:
    """Name, memory (MiB) and software of the device."""
    if device.type == "cpu":
        return {"device": f"CPU {platform.machine()}", "threads": torch.get_num_threads()}
    found = torch.cuda.get_device_properties(device)
    return {
        "device": found.name, "compute_capability": f"{found.major}.{found.minor}", "memory_mib": found.total_memory // 2**20,
        "cuda": torch.version.cuda,
    }  # fmt: skip


def write_checks(checks: Sequence[Check], seconds: dict[str, float], device: torch.device, size: str, folder: Path) -> None:
    """Write gpu_checks.csv (one row a check) and gpu_checks.json (device, versions, commit, size, seconds by part) into `folder`.

    Both are renamed into place, the record last. Raises ArtifactError when the folder cannot be written.
    """
    where = device_record(device)
    table = pd.DataFrame([{**asdict(c), "met": c.met} for c in checks])
    table["size"], table["device"], table["commit"] = size, where["device"], provenance()["commit"]
    record = {**where, **provenance(), "size": size, "seconds": {k: round(v, 1) for k, v in seconds.items()},
              "command": f"python -m saerl_lib bench gpu --device {device.type}"}  # fmt: skip
    texts = {TABLE: table.to_csv(index=False, float_format="%.6g", lineterminator="\n"),
             RECORD: json.dumps(record, indent=1, sort_keys=True) + "\n"}  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = {name: folder / f".{name}.{os.getpid()}.partial" for name in texts}
        for name, text in texts.items():
            partial[name].write_text(text, encoding="utf-8")
        for name, path in partial.items():
            path.replace(folder / name)
    except OSError as error:
        for path in folder.glob(f".gpu_checks.*.{os.getpid()}.partial"):
            path.unlink()
        raise ArtifactError(f"cannot write {folder}: {error.strerror}; name another folder with --out") from error
