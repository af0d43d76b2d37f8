"""`python -m saerl_lib bench NAME`: speed and memory as ratios measured in one run; the last line is one JSON object."""

from __future__ import annotations

from pathlib import Path

from saerl_lib.config import get_profile
from saerl_lib.data.stage import world_stage

NAMES = ("encode", "memory", "plan", "grpo", "preparation", "gpu")
"""Benchmarks by name."""


def run_bench(name: str, samples: int, device: str | None = None, out: Path | None = None) -> int:
    """Entry of the command; `samples` is the pool size of `bench plan`, `device` and `out` are for `encode` and `gpu`.

    Raises ValueError for an option that the benchmark does not have, or without the one that it needs.
    """
    if device is not None and name not in ("encode", "gpu"):
        raise ValueError(f"bench {name} has no --device; `bench encode` and `bench gpu` have one")
    if name != "gpu" and out is not None:
        raise ValueError(f"bench {name} has no --out; `bench gpu` has one")
    if name == "gpu":
        return _gpu(device, out)
    if name == "plan":
        from saerl_lib.bench.plan import bench_plan

        return bench_plan(samples)
    if name == "memory":
        from saerl_lib.bench.memory import bench_memory

        return bench_memory()
    profile = get_profile("laptop")
    if name == "encode":
        from saerl_lib.bench.encode import bench_encode
        from saerl_lib.encode.device import pick_device

        where = pick_device(device or "cpu")
        return bench_encode(profile, world_stage(profile), where)
    world = world_stage(profile)
    if name == "preparation":
        from saerl_lib.bench.preparation import bench_preparation

        return bench_preparation(profile, world)
    from saerl_lib.bench.grpo import bench_grpo

    return bench_grpo(profile, world)


def _gpu(device: str | None, out: Path | None) -> int:
    if out is None:
        raise ValueError("bench gpu needs --out DIR, the folder for its table")
    from saerl_lib.bench.gpu.command import bench_gpu
    from saerl_lib.encode.device import pick_device

    return bench_gpu(pick_device(device or "cuda"), out)
