"""Part `speed`: the encode benchmark on the device, in float32 and bfloat16 (see `saerl_lib.bench.model_shape`)."""

from __future__ import annotations

import torch

from saerl_lib.bench.gpu.checks import Check
from saerl_lib.bench.gpu.size import GpuSize
from saerl_lib.bench.model_shape import shape_ratios


def measure_speed(size: GpuSize, device: torch.device) -> list[Check]:
    """Ratios to the forward pass and peaks of memory.

    No time is bounded. On a GPU the obvious way's peak at the largest F must lie above the chunked one's.
    """
    checks, largest = [], max(size.shape.latents)
    for name, precision in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        rows = shape_ratios(size.repeats, size.shape, device, precision)
        checks += [Check("speed", f"{name}: {quantity}", value) for quantity, value in rows.items()]
        if device.type == "cuda":
            ratio = rows[f"dense_peak_mib_{largest}"] / rows[f"all_peak_mib_{largest}"]
            checks.append(Check("speed", f"{name}: obvious / chunked peak at F = {largest}", ratio, low=1.0))
    return checks
