"""What every benchmark shares: a stopwatch and a report whose last line is one JSON object."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

REPEATS = 5


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def report(rows: dict[str, float], digits: int = 3) -> int:
    """Print a small table and the JSON line."""
    for name, value in rows.items():
        print(f"{name:40s} {value:14.{digits}f}")
    print(json.dumps({name: round(value, 5) for name, value in rows.items()}))
    return 0
