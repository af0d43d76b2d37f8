"""`bench memory`: peak memory above the weights of encoding 8,192 tokens at F = 131,072, against the obvious way.

Each way runs in a process of its own: resident memory once weights and activations lie there, and its peak afterwards.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time

import numpy as np
import torch

from saerl_lib import paths
from saerl_lib.bench.model_shape import PAPER, random_sae
from saerl_lib.bench.timing import report
from saerl_lib.encode.pooling import pool_vectors

TOKENS, LATENTS = 8192, 131_072
BAR = 5.0
"""The obvious way's peak must be at least this many times larger."""


def resident_mib() -> float:
    """Resident memory of this process now, MiB."""
    with open("/proc/self/statm", encoding="ascii") as handle:
        return int(handle.read().split()[1]) * resource.getpagesize() / 2**20


class PeakSampler(threading.Thread):
    """Watches resident memory until it is stopped; the kernel's own high-water mark would include building the weights."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.running = resident_mib(), True

    def run(self) -> None:
        """Sample about every millisecond."""
        while self.running:
            self.peak = max(self.peak, resident_mib())
            time.sleep(0.001)

    def stop(self) -> float:
        """The largest value seen, MiB."""
        self.running = False
        self.join()
        return max(self.peak, resident_mib())


@torch.inference_mode()
def measure(way: str) -> dict[str, float]:
    """Peak above weights and activations of one way, in this process."""
    sae = random_sae(LATENTS, "topk")
    vectors = torch.randn(TOKENS, PAPER.width, generator=torch.Generator().manual_seed(0))
    group = np.repeat(np.arange(2 * TOKENS // 256), 128)
    before, sampler = resident_mib(), PeakSampler()
    sampler.start()
    if way == "obvious":
        found = sae.encode(vectors).view(len(np.unique(group)), -1, LATENTS)
        torch.cat([found.mean(dim=1), found.amax(dim=1)])
    else:
        pool_vectors(sae, vectors, group, np.bincount(group))
    return {"before_mib": before, "peak_mib": sampler.stop() - before}


def bench_memory() -> int:
    """Both ways, their ratio and the bar."""
    found = {}
    for way in ("obvious", "chunked"):
        code = f"import json; from saerl_lib.bench.memory import measure; print(json.dumps(measure({way!r})))"
        done = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True, check=True)
        found[way] = json.loads(done.stdout.strip().splitlines()[-1])
    ratio = found["obvious"]["peak_mib"] / max(found["chunked"]["peak_mib"], 1.0)
    print(f"obvious / chunked {ratio:.1f}, bar at least {BAR}: {'met' if ratio >= BAR else 'MISSED'}")
    return report(
        {
            "obvious_peak_mib": found["obvious"]["peak_mib"],
            "chunked_peak_mib": found["chunked"]["peak_mib"],
            "weights_and_activations_mib": found["chunked"]["before_mib"],
            "ratio_obvious_to_chunked": ratio,
            "tokens": TOKENS,
            "latents": LATENTS,
        },
        1,
    )
