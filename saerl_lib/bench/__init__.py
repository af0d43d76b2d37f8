"""`python -m saerl_lib bench NAME`: speed and memory as ratios measured in one run; the last line is one JSON object."""

from __future__ import annotations

from saerl_lib.config import get_profile
from saerl_lib.data.stage import world_stage

NAMES = ("encode", "memory", "plan", "grpo", "preparation")
"""Benchmarks by name."""


def run_bench(name: str, samples: int) -> int:
    """Entry of the command; `samples` is the pool size of `bench plan`."""
    if name == "plan":
        from saerl_lib.bench.plan import bench_plan

        return bench_plan(samples)
    if name == "memory":
        from saerl_lib.bench.memory import bench_memory

        return bench_memory()
    profile = get_profile("laptop")
    world = world_stage(profile)
    if name == "encode":
        from saerl_lib.bench.encode import bench_encode

        return bench_encode(profile, world)
    if name == "preparation":
        from saerl_lib.bench.preparation import bench_preparation

        return bench_preparation(profile, world)
    from saerl_lib.bench.grpo import bench_grpo

    return bench_grpo(profile, world)
