"""What the formulas and the simulation say, as tables and sentences for the terminal and for docs/hundred_million.md."""

from __future__ import annotations

from collections.abc import Sequence

from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.text import size
from saerl_lib.scale.assumptions import ScaleAssumptions
from saerl_lib.scale.config import ScaleConfig
from saerl_lib.scale.formula import Step, all_steps, in_memory_growth, store_bytes
from saerl_lib.scale.records import record_dtype
from saerl_lib.scale.simulate import NAMES, Simulation

Rows = list[tuple[str, ...]]
MEMORIES = (16e9, 256e9)
"""Memories that a growing function is held against, bytes."""


def duration(seconds: float) -> str:
    """Seconds as people read them.

    >>> [duration(s) for s in (0.2, 42, 600, 30_000, 400_000)]
    ['0.2 s', '42 s', '10 min', '8.3 h', '111 h']
    """
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.{1 if seconds < 36_000 else 0}f} h"


def usd(low: float, high: float) -> str:
    """A cost or a range of it.

    >>> usd(0.021, 0.021), usd(2063.4, 3881.0)
    ('0.02 USD', '2,063 to 3,881 USD')
    """
    shown = [f"{value:,.0f}" if value >= 10 else f"{value:.2f}" for value in (low, high)]
    return f"{shown[0]} USD" if shown[0] == shown[1] else f"{shown[0]} to {shown[1]} USD"


def step_rows(steps: Sequence[Step], given: ScaleAssumptions) -> Rows:
    """One row a step, a header first."""
    rows: Rows = [("Step", "Passes", "Left on disk", "Bound", "Next resource", "Time", "Cost")]
    for step in steps:
        order = sorted(step.seconds_by, key=lambda name: -step.seconds_by[name])
        following = f"{order[1]}, {100 * step.seconds_by[order[1]] / step.seconds:.2g} %" if len(order) > 1 else "-"
        left = size(step.left_bytes) if step.left_bytes else "-"
        cost = usd(*step.usd(given)) if any(step.usd(given)) else "-"
        rows.append((step.name, step.passes, left, step.bound, following, duration(step.seconds), cost))
    return rows


def growth_rows(samples: int, config: PaperConfig, given: ScaleAssumptions) -> Rows:
    """Memory of the in-memory path by function."""
    full = [f"{size(memory)} are full at" for memory in MEMORIES]
    rows: Rows = [("Function of `saerl_lib`", "Holds", "Bytes a sample", f"At {samples:,}", *full)]
    for growth in in_memory_growth(config, given):
        at = [f"{growth.full_at(memory):,}" for memory in MEMORIES]
        need = size(samples * growth.bytes_per_sample)
        rows.append((f"`{growth.function}`", growth.what, f"{growth.bytes_per_sample:,.0f}", need, *at))
    return rows


def facts(samples: int, config: PaperConfig, given: ScaleAssumptions, scale: ScaleConfig) -> list[str]:
    """What follows, in sentences."""
    steps = {step.key: step for step in all_steps(samples, config, given, scale)}
    encode, dense, sparse = steps["encode"], steps["store_features"], steps["store_sparse"]
    low, high = encode.gpu_hours
    rest = [step for step in steps.values() if step.core_hours]
    cores, upper = sum(step.core_hours for step in rest), samples * store_bytes(config, given)[1]
    bounds = encode.seconds_by
    record = record_dtype(given.id_bytes).itemsize
    month = [size_bytes / 1e12 * given.usd_per_terabyte_month for size_bytes in (dense.left_bytes, sparse.left_bytes)]
    slowest = max(rest, key=lambda step: step.seconds)
    weights, texts = (100 * bounds[name] / bounds["GPU FLOPs"] for name in ("GPU memory bandwidth", "disk bandwidth"))
    rates = [step.left_bytes / encode.seconds / 1e6 for step in (dense, sparse)]
    core_cost, merges = cores * given.usd_per_core_hour, scale.merge_passes(samples)
    return [
        f"Encoding takes {low:,.0f} H100-hours with solutions cut at {config.max_response_tokens:,} tokens and {high:,.0f} with "
        f"whole ones: {usd(*encode.usd(given))}. All that follows takes {cores:.1f} core-hours, {usd(core_cost, core_cost)}.",
        f"Encoding is bound by the GPUs' FLOPs: reading the weights takes {weights:.1g} % of that time, "
        f"reading the texts {texts:.1g} %.",
        f"The features of the retained latents take {size(dense.left_bytes)}, {usd(month[0], month[0])} a month; all latents as "
        f"sparse pooled statistics {size(sparse.left_bytes)} ({size(upper)} if tokens drew their latents at random), "
        f"{usd(month[1], month[1])} a month: {sparse.left_bytes / dense.left_bytes:.0f} times as much.",
        "Choosing other latents later needs the sparse form or another encoding; keeping the sparse form costs as much as "
        f"encoding again after {encode.usd(given)[0] / month[1]:.1f} months.",
        f"Beside {given.gpus} GPUs that encode, the writer gets {rates[0]:.2g} MB/s of retained features or {rates[1]:.2g} MB/s "
        f"of sparse statistics; the disk takes {given.disk_bytes_per_second / 1e6:,.0f} MB/s.",
        f"After encoding the slowest step is `{slowest.name}`, bound by {slowest.bound} ({duration(slowest.seconds)} on "
        f"{given.processes} core); its disk would need {duration(slowest.seconds_by['disk bandwidth'])}.",
        f"The sort holds {size(samples * record)} of records twice, as runs and merged, and {size(2 * samples * given.id_bytes)} "
        f"of ids; {-(-samples // scale.run_rows):,} runs are merged in {merges} {'pass' if merges == 1 else 'passes'}.",
    ]


def measured_rows(found: Simulation, steps: Sequence[Step], samples: int) -> Rows:
    """Measured seconds by step, the processor's extrapolated to `samples`, and the formula's figure."""
    formula = {step.key: step.seconds for step in steps}
    header = ("Step", "Wall clock", "Processor time", "Samples a processor second", f"Extrapolated to {samples:,}", "Formula")
    rows: Rows = [header]
    there, rates = found.extrapolated(samples), found.rows_per_second
    for key, name in NAMES.items():
        shown = duration(formula[key]) if key in formula else "not modelled"
        times = (f"{found.wall[key]:.2f} s", f"{found.processor[key]:.2f} s")
        rows.append((name, *times, f"{rates[key]:,.0f}", duration(there[key]), shown))
    total, wall = sum(found.processor.values()), sum(found.wall.values())
    modelled = duration(sum(formula[key] for key in NAMES if key in formula))
    times = (f"{wall:.2f} s", f"{total:.2f} s", f"{found.samples / total:,.0f}")
    return [*rows, ("all", *times, duration(sum(there.values())), modelled)]


def measured_facts(found: Simulation, steps: Sequence[Step], samples: int) -> list[str]:
    """Memory and disk of the simulation."""
    left = {step.key: step.left_bytes for step in steps}
    scale = samples / found.samples
    pairs = (("features", found.feature_bytes, "store_features"), ("sorted records", found.sorted_bytes, "external_sort"),
             ("plan", found.plan_bytes, "export"))  # fmt: skip
    disk = "; ".join(f"{name} {size(got)}, there {size(got * scale)} (formula {size(left[key])})" for name, got, key in pairs)
    return [
        f"Peak memory {size(found.peak_bytes)}, of which {size(found.start_bytes)} are the loaded libraries.",
        f"On disk, here and extrapolated: {disk}.",
        f"{found.samples:,} samples in {found.steps:,} steps; {found.unpaired_share:.1%} of the batches found no partner.",
    ]
