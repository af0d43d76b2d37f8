"""Where a run was made: versions, commit, processor, threads, peak memory."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import subprocess
import sys
from typing import Any

import torch

from saerl_lib import paths
from saerl_lib.artifacts import provenance

PACKAGES = ("torch", "transformers", "trl", "accelerate", "numpy", "tokenizers")
"""Packages whose versions decide a run."""


def versions() -> dict[str, str]:
    """Python's version and those of `PACKAGES`."""
    return {"python": ".".join(map(str, sys.version_info[:2])), **{n: importlib.metadata.version(n) for n in PACKAGES}}


def cpu_name() -> str:
    """The processor's model name and whether it has AVX-512, which change the last bits of a product."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            lines = dict(line.split(":", 1) for line in handle.read().split("\n\n")[0].splitlines() if ":" in line)
        fields = {k.strip(): v.strip() for k, v in lines.items()}
        name = f"{fields.get('model name', platform.machine())}, family {fields.get('cpu family', '?')}"
        return f"{name}, model {fields.get('model', '?')}, {torch.backends.cpu.get_cpu_capability()}"
    except OSError:
        return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def commit() -> str:
    """The commit, marked when sources of the library differ from it."""
    name = str(provenance()["commit"])
    if name == "unknown":
        return name
    command = ["git", "status", "--porcelain", "--", "saerl_lib"]
    changed = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True).stdout.strip()
    return f"{name}+changes" if changed else name


def environment() -> dict[str, Any]:
    """Stored with every finished run."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "versions": versions(),
        "commit": commit(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "peak_memory_mb": round(peak / (1024 if sys.platform != "darwin" else 1024**2)),
    }
