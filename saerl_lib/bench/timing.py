"""What every benchmark shares: a stopwatch, the peak of GPU memory and a report whose last line is one JSON object."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch

REPEATS = 5
CPU = torch.device("cpu")


def synchronise(device: torch.device) -> None:
    """Wait until `device` has done all that was asked of it; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device = CPU) -> float:
    """Wall-clock seconds of one call, the work that it leaves running on `device` included."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def peak_mib(work: Callable[[], Any], device: torch.device) -> float | None:
    """Largest GPU memory that one call of `work` allocates above what lies there before, MiB; None on a CPU."""
    if device.type != "cuda":
        return None
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    synchronise(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def report(rows: dict[str, float], digits: int = 3) -> int:
    """Print a small table and the JSON line."""
    for name, value in rows.items():
        print(f"{name:40s} {value:14.{digits}f}")
    print(json.dumps({name: round(value, 5) for name, value in rows.items()}))
    return 0
