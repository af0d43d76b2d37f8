"""The out-of-core path on synthetic features: seconds a step, disk and peak memory, each measured in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from saerl_lib import paths
from saerl_lib.config import PropertyConfig
from saerl_lib.notebooks import UserError
from saerl_lib.scale.clock import Clock
from saerl_lib.scale.config import ScaleConfig

SAMPLES = 1_000_000
"""Samples of `--simulate` without a number."""
DISK_BYTES = 2_300
"""Features, runs, sorted records and plan of one sample on disk, rounded up."""
FIXED = ("cluster_start", "difficulty_fit")
"""Steps whose time does not depend on N."""
NAMES = {
    "cluster_start": "scaling and first centroids", "cluster_fit": "cluster fit", "difficulty_fit": "difficulty fit",
    "assign_score": "assign and score", "external_sort": "external sort", "unique_ids": "ids, each once",
    "swap": "stages and tail swap", "export": "export",
}  # fmt: skip
"""Steps in order."""


@dataclass(frozen=True)
class Simulation:
    """One measured run."""

    samples: int
    steps: int
    unpaired_share: float
    wall: dict[str, float]
    """Wall-clock seconds by step, in the order of `NAMES`; on a busy machine mostly waiting."""
    processor: dict[str, float]
    """Processor seconds by step."""
    peak_bytes: float
    """Largest resident memory of the process, libraries included."""
    start_bytes: float
    """Its resident memory once the libraries are loaded."""
    feature_bytes: float
    sorted_bytes: float
    plan_bytes: float

    @property
    def rows_per_second(self) -> dict[str, float]:
        """By step, of processor time."""
        return {name: self.samples / seconds for name, seconds in self.processor.items()}

    def extrapolated(self, samples: int) -> dict[str, float]:
        """Processor seconds a step at another N: linear, but for the steps of `FIXED`."""
        return {name: s if name in FIXED else s * samples / self.samples for name, s in self.processor.items()}


def simulate(samples: int, batch: int, config: ScaleConfig) -> Simulation:
    """Draw features of `samples` rounded down to whole batches, plan them in a fresh process, and remove everything.

    Raises UserError for fewer samples than a batch or too little disk, RuntimeError when the process fails.
    """
    whole = samples - samples % batch
    if whole < batch:
        raise UserError(f"--simulate {samples} fills no batch of {batch}: pass more")
    with tempfile.TemporaryDirectory(prefix="saerl-scale-") as name:
        free, need = shutil.disk_usage(name).free, whole * DISK_BYTES
        if free < need:
            shown = f"{need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free below {name}"
            raise UserError(f"--simulate {whole} needs about {shown}: point TMPDIR at a larger disk")
        _fresh(["draw", name, str(whole), str(config.shard_rows)])
        found = _fresh(["plan", name])
    return Simulation(samples=whole, **found)


def _fresh(arguments: list[str]) -> dict:
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "saerl_lib.scale.simulate", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=paths.ROOT)
    if done.returncode:
        raise RuntimeError(f"scale simulation ({arguments[0]}) failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _peak_bytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _draw(folder: Path, samples: int, shard_rows: int) -> dict:
    from saerl_lib.scale.synthetic import write_pool

    write_pool(folder, samples, ScaleConfig(shard_rows=shard_rows))
    return {}


def _plan(folder: Path) -> dict:
    from saerl_lib.bench.plan import PLAN
    from saerl_lib.scale.passes import plan_by_passes
    from saerl_lib.scale.shards import open_pool
    from saerl_lib.scale.synthetic import read_labelled

    start, clock, work = _peak_bytes(), Clock(), folder / "work"
    work.mkdir()
    pool = open_pool(folder / "pool")
    out = folder / "plan.parquet"
    written = plan_by_passes(pool, read_labelled(folder), out, work, PLAN, PropertyConfig(), ScaleConfig(), 0, clock)
    wall, processor = ({name: times[name] for name in NAMES} for times in (clock.wall, clock.processor))
    return {
        "steps": written.steps, "unpaired_share": written.unpaired / written.steps,
        "wall": wall, "processor": processor, "peak_bytes": _peak_bytes(), "start_bytes": start,
        "feature_bytes": pool.disk_bytes, "sorted_bytes": written.sorted_bytes, "plan_bytes": written.plan_bytes,
    }  # fmt: skip


if __name__ == "__main__":
    where = Path(sys.argv[2])
    print(json.dumps(_draw(where, int(sys.argv[3]), int(sys.argv[4])) if sys.argv[1] == "draw" else _plan(where)))
