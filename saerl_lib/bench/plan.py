"""`bench plan`: from stored features to a finished plan, by stage, with peak memory, against the bars and the obvious way.

Features are drawn into a temporary folder first (not timed); a fresh process then does the work, so that its peak memory
is its own. It runs one thread unless OMP_NUM_THREADS says otherwise: small matrix products of k-means lose more by waiting
for a second one than they gain. Penalties are tuned apart. The obvious way converts everything to float64 at once, fits scaling
and all restarts of k-means on all rows and measures the distance to one centroid after another.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.preprocessing import StandardScaler

from saerl_lib import paths
from saerl_lib.bench.synthetic import LABELLED, NEGATIVES, write_features
from saerl_lib.bench.timing import report, seconds
from saerl_lib.config import PlanConfig, PropertyConfig
from saerl_lib.plan import build_plan, write_plan
from saerl_lib.properties.clusters import CLIP, RESTARTS, SAMPLES_PER_STEP, StoredPhi, by_chunks, open_phi, pool_clusters
from saerl_lib.properties.difficulty import fit_difficulty
from saerl_lib.properties.probes import fit_elastic_net
from saerl_lib.properties.quality import fit_source_classifier, keep_top_k

PLAN = PlanConfig(prompts_per_step=128, swapped_per_batch=8)
"""The paper's b and h."""
BARS = {103_022: (10.0, 4.0), 1_000_000: (120.0, 8.0)}
"""Pool size -> seconds and GB allowed on two cores."""
OBVIOUS_ROWS = 50_000
"""The obvious way is measured on at most as many rows: it holds several float64 copies of them."""


def bench_plan(samples: int) -> int:
    """Draw features of `samples` prompts, time the way to the plan, print the table and the JSON line; returns 0.

    Raises ValueError for fewer samples than a batch.
    """
    if samples < PLAN.prompts_per_step:
        raise ValueError(f"samples={samples} fill no batch of {PLAN.prompts_per_step}: pass --samples with more")
    with tempfile.TemporaryDirectory(prefix="saerl-bench-") as name:
        drawing = seconds(lambda: write_features(Path(name), samples))
        print(f"{samples:,} samples x 986 float32 drawn and written in {drawing:.1f} s (not timed)")
        times, memory = _in_fresh_process(name, "timed"), 0.0
        memory = times.pop("peak_gb")
        obvious = _in_fresh_process(name, "obvious")
    total = sum(times.values()) - times["tuning_apart_s"]
    rows = {"samples": samples, **times, "total_without_tuning_s": total, "peak_gb": memory, **_against(samples, total, memory)}
    rows |= {name: value for name, value in obvious.items() if name != "peak_gb"}
    rows["obvious_peak_gb"] = obvious["peak_gb"]
    rows["ratio_obvious_to_ours"] = obvious["obvious_s"] / obvious["ours_s"]
    return report(rows)


def _against(samples: int, total: float, memory: float) -> dict[str, float]:
    """Bars of this size and whether they are met (1 or 0); nothing for a size without a bar."""
    if samples not in BARS:
        print("no bar is set for this size; bars: " + ", ".join(f"{n:,}: {s:g} s, {g:g} GB" for n, (s, g) in BARS.items()))
        return {}
    allowed_s, allowed_gb = BARS[samples]
    print(f"bar at {samples:,}: {allowed_s:g} s {'met' if total <= allowed_s else 'MISSED'}, "
          f"{allowed_gb:g} GB {'met' if memory <= allowed_gb else 'MISSED'}")  # fmt: skip
    return {"bar_s": allowed_s, "bar_gb": allowed_gb, "bars_met": float(total <= allowed_s and memory <= allowed_gb)}


def _in_fresh_process(folder: str, what: str) -> dict[str, float]:
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "saerl_lib.bench.plan", folder, what]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=paths.ROOT)
    if done.returncode:
        raise RuntimeError(f"bench plan ({what}) failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class _Stopwatch:
    """Seconds of named calls."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of `work()`, timed under `name`."""
        kept: list[Any] = []
        self.times[name] = seconds(lambda: kept.append(work()))
        return kept[0]


def _timed(folder: Path) -> dict[str, float]:
    """Seconds a stage, from the files of `folder` to plan.parquet in it."""
    config, time = PropertyConfig(), _Stopwatch()
    pool, labelled, negatives = time(
        "open_s", lambda: [open_phi(folder / f"{n}.safetensors") for n in ("pool", LABELLED, NEGATIVES)]
    )
    y, lengths = np.load(folder / "labels.npy"), pool.metadata[:, 0].astype(float)
    clusters = time("clusters_s", lambda: pool_clusters(pool, config, 0))
    tuned = time("tuning_apart_s", lambda: fit_elastic_net(labelled[:], y, config, 0))
    inside = clusters.assign(labelled).label
    model = time("difficulty_fit_s", lambda: fit_difficulty(labelled[:], y, inside, clusters.k, config, 0, tuned))
    label = time("assign_s", lambda: clusters.assign(pool).label)
    scores = time("score_s", lambda: model.predict(pool, label))
    keep = time("filter_s", lambda: _filter(pool, labelled, negatives))
    ids = np.array(pool.ids)[keep]
    arrays = (ids, label[keep], scores.ranking[keep], scores.raw[keep], lengths[keep])
    plan = time("curriculum_swap_validate_s", lambda: build_plan(*arrays, PLAN))
    time("write_s", lambda: write_plan(plan, folder / "plan.parquet"))
    return time.times


def _filter(pool: StoredPhi, labelled: StoredPhi, negatives: StoredPhi) -> np.ndarray:
    """The source classifier fitted and applied; keeps as many whole batches as the pool fills."""
    z = np.concatenate([labelled.z, negatives.z])
    classifier = fit_source_classifier(z, np.arange(len(z)) < len(labelled), 0)
    return keep_top_k(by_chunks("z", pool.z, classifier.score), pool.ids, len(pool) - len(pool) % PLAN.prompts_per_step)


def _obvious(folder: Path) -> dict[str, float]:
    """Clusters and scores of the first rows, both ways."""
    config, time = PropertyConfig(), _Stopwatch()
    pool, labelled = (open_phi(folder / f"{name}.safetensors") for name in ("pool", LABELLED))
    n = min(len(pool), OBVIOUS_ROWS)
    pool, y = StoredPhi(pool.ids[:n], pool.z[:n], pool.metadata[:n]), np.load(folder / "labels.npy")
    tuned = fit_elastic_net(labelled[:], y, config, 0)

    def ours() -> None:
        clusters = pool_clusters(pool, config, 0)
        clusters.assign(pool)
        by_chunks("phi", pool, tuned.predict)

    def obvious() -> None:
        scaler = StandardScaler()
        points = np.clip(scaler.fit_transform(pool[:].astype(np.float64)), -CLIP, CLIP)
        fits = [MiniBatchKMeans(config.clusters, n_init=1, batch_size=SAMPLES_PER_STEP, reassignment_ratio=0.0, random_state=i)
                .fit(points) for i in range(RESTARTS)]  # fmt: skip
        centroids = min(fits, key=lambda fit: fit.inertia_).cluster_centers_
        np.stack([np.linalg.norm(points - centroid, axis=1) for centroid in centroids], axis=1).argmin(axis=1)
        tuned.predict(pool[:].astype(np.float64))

    time("ours_s", ours)
    time("obvious_s", obvious)
    return {"obvious_rows": n, **time.times}


if __name__ == "__main__":
    found = {"timed": _timed, "obvious": _obvious}[sys.argv[2]](Path(sys.argv[1]))
    print(json.dumps({**found, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
