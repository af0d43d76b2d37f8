"""`python -m saerl_lib bench NAME`: speed and memory as ratios measured in one run; the last line is one JSON object."""

from __future__ import annotations

from saerl_lib.config import get_profile
from saerl_lib.data.stage import world_stage


def run_bench(name: str, samples: int, device: str | None = None) -> int:
    """Entry of the command; `samples` is the pool size of `bench plan`, `device` is for `encode`.

    Raises ValueError for an option that the benchmark does not have.
    """
    if device is not None and name != "encode":
        raise ValueError(f"bench {name} has no --device; `bench encode` has one")
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
