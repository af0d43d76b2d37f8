"""`bench gpu --out DIR`: every part in turn, bounds, seconds by part, and a table with its provenance."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from saerl_lib.bench.gpu.checks import TABLE, Check, device_record, missed, write_checks
from saerl_lib.bench.gpu.encoding import KINDS, compare_encoding
from saerl_lib.bench.gpu.grpo import compare_orders
from saerl_lib.bench.gpu.policy import build_policy
from saerl_lib.bench.gpu.size import GpuSize, size_for
from saerl_lib.bench.gpu.speed import measure_speed
from saerl_lib.bench.timing import seconds


def require_one_gpu(device: torch.device) -> torch.device:
    """Raises ValueError where several GPUs are visible: TRL in one process would split each batch over all of them."""
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        raise ValueError(f"{torch.cuda.device_count()} GPUs are visible, the test set is for one: set CUDA_VISIBLE_DEVICES=0")
    return device


def run_parts(size: GpuSize, device: torch.device, work: Path) -> tuple[list[Check], dict[str, float]]:
    """The checks of all parts and the seconds of each; later parts read the policy and SAE of earlier ones in `work`."""
    model, saes, runs = (work / name for name in ("policy", "saes", "runs"))
    for folder in (saes, runs):
        folder.mkdir(parents=True)
    parts: dict[str, Callable[[], list[Check]]] = {
        "policy": lambda: build_policy(size, device, model),
        "encoding": lambda: compare_encoding(model, size, device, saes),
        "speed": lambda: measure_speed(size, device),
        "grpo": lambda: compare_orders(model, saes / KINDS[0], size, device, runs),
    }
    checks: list[Check] = []
    spent = {name: seconds(lambda work=part: checks.extend(work()), device) for name, part in parts.items()}
    return checks, spent


def bench_gpu(device: torch.device, out: Path) -> int:
    """Run the set on `device` (in small on a CPU) and write its table into `out`; exit code 1 when a bound is missed."""
    size = size_for(require_one_gpu(device))
    print(f"{size.name} set on {device_record(device)['device']}", flush=True)
    with tempfile.TemporaryDirectory(prefix="saerl-gpu-") as work:
        checks, spent = run_parts(size, device, Path(work))
    write_checks(checks, spent, device, size.name, out)
    for check in checks:
        bounds = "" if check.met is None else f"  {check.low} to {check.high}: {'met' if check.met else 'MISSED'}"
        print(f"{check.part:9s} {check.quantity:62s} {check.value:12.5g}{bounds}")
    for name, value in spent.items():
        print(f"{name:9s} {value:8.1f} s")
    print(f"table: {out / TABLE}")
    wrong = missed(checks)
    line = {"size": size.name, "checks": len(checks), "missed": wrong, "seconds": round(sum(spent.values()), 1)}
    print(json.dumps(line))
    return 1 if wrong else 0
