"""`bench plan`: from stored features, or from stored scores, to a checked plan on disk: seconds by stage and peak memory.

Up to `FEATURES_UP_TO` samples their features are drawn and everything after encoding is timed: clusters, difficulty, filter
and plan. Above that a table of scores (id, cluster, ranking and raw score, length) is drawn and the plan alone is timed.
Drawing is not timed; a fresh process does the work, so that its peak memory is its own. It runs one thread unless
OMP_NUM_THREADS says otherwise: small matrix products of k-means lose more by waiting for a second one than they gain.
Penalties are tuned apart.

Floor: one pass over the features as float64 blocks; of scores, reading the table and sorting it once. The obvious way, on at
most `OBVIOUS_ROWS` of the rows: features converted to float64 at once, scaling and all restarts of k-means on all of them and
the distance to one centroid after another; of scores, `plain_order`, the same plan in lists and loops.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.cluster import MiniBatchKMeans
from sklearn.preprocessing import StandardScaler

from saerl_lib import paths
from saerl_lib.bench.timing import report, seconds
from saerl_lib.config import PlanConfig, PropertyConfig
from saerl_lib.plan import build_plan, write_plan
from saerl_lib.properties.clusters import (
    CLIP,
    RESTARTS,
    SAMPLES_PER_STEP,
    StoredPhi,
    by_chunks,
    float_chunks,
    open_phi,
    pool_clusters,
)
from saerl_lib.properties.difficulty import fit_difficulty
from saerl_lib.properties.probes import fit_elastic_net
from saerl_lib.properties.quality import fit_source_classifier, keep_top_k

PLAN = PlanConfig(prompts_per_step=128, swapped_per_batch=8)
"""The paper's b and h."""
BARS = {103_022: (8.0, 4.0), 1_000_000: (60.0, 8.0), 10_000_000: (60.0, 4.0)}
"""Pool size -> seconds and GB allowed on two cores."""
FEATURES_UP_TO = 2_000_000
"""Features of more samples would fill the disk (4 KB a sample)."""
OBVIOUS_ROWS = 50_000
Z_COLUMNS, METADATA_COLUMNS, GROUPS = 960, 26, 12
LABELLED, NEGATIVES = "labelled", "negatives"
N_LABELLED, N_NEGATIVES = 3000, 1500
CHUNK = 8192
SCORES = ("sample_id", "cluster", "ranking", "raw", "length")
"""Columns of the stored scores."""


def bench_plan(samples: int) -> int:
    """Draw `samples` prompts, time the way to the plan, print the table and the JSON line; returns 0.

    Raises ValueError for fewer samples than a batch.
    """
    if samples < PLAN.prompts_per_step:
        raise ValueError(f"samples={samples} fill no batch of {PLAN.prompts_per_step}: pass --samples with more")
    kind, draw, what = ("scores", write_scores, "rows of scores")
    if samples <= FEATURES_UP_TO:
        kind, draw, what = ("features", write_features, f"samples x {Z_COLUMNS + METADATA_COLUMNS} float32")
    with tempfile.TemporaryDirectory(prefix="saerl-bench-") as name:
        drawing = seconds(lambda: draw(Path(name), samples))
        print(f"{samples:,} {what} drawn and written in {drawing:.1f} s (not timed)")
        times, obvious = (_in_fresh_process(name, f"{way}{kind}") for way in ("", "obvious-"))
    memory, floor, processor = (times.pop(name) for name in ("peak_gb", "floor_s", "processor_s"))
    total = sum(times.values()) - times.get("tuning_apart_s", 0.0)
    rows = {"samples": samples, **times, "total_s": total, "processor_s": processor, "peak_gb": memory}
    rows |= _against(samples, total, memory)
    rows |= {"floor_s": floor, "ratio_total_to_floor": total / floor, "obvious_peak_gb": obvious.pop("peak_gb"), **obvious}
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
    """Seconds of named calls, and the processor's seconds of all calls but the floor and the tuning."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {"processor_s": 0.0}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of `work()`, timed under `name`."""
        kept: list[Any] = []
        start = process_time()
        self.times[name] = seconds(lambda: kept.append(work()))
        if name not in ("floor_s", "tuning_apart_s"):
            self.times["processor_s"] += process_time() - start
        return kept[0]


def _features(folder: Path) -> dict[str, float]:
    """Seconds a stage, from the files of `write_features` to plan.parquet beside them."""
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
    time("floor_s", lambda: [chunk.sum() for _, chunk in float_chunks("phi", pool)])
    return time.times


def _filter(pool: StoredPhi, labelled: StoredPhi, negatives: StoredPhi) -> np.ndarray:
    """The source classifier fitted and applied; keeps as many whole batches as the pool fills."""
    z = np.concatenate([labelled.z, negatives.z])
    classifier = fit_source_classifier(z, np.arange(len(z)) < len(labelled), 0)
    return keep_top_k(by_chunks("z", pool.z, classifier.score), pool.ids, len(pool) - len(pool) % PLAN.prompts_per_step)


def _obvious_features(folder: Path) -> dict[str, float]:
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
    return {"obvious_rows": n, **{name: time.times[name] for name in ("ours_s", "obvious_s")}}


def _scores(folder: Path) -> dict[str, float]:
    """Seconds a stage, from the file of `write_scores` to plan.parquet beside it; rows that fill no batch are cut off."""
    time = _Stopwatch()
    arrays = time("read_s", lambda: _read_scores(folder))
    plan = time("curriculum_swap_validate_s", lambda: build_plan(*arrays, PLAN))
    time("write_s", functools.partial(write_plan, plan, folder / "plan.parquet"))
    del plan
    time("floor_s", lambda: np.lexsort(_read_scores(folder)[2:0:-1]))
    return time.times


def _read_scores(folder: Path, rows: int | None = None) -> list[Any]:
    table = pq.read_table(folder / "scores.parquet")
    n = min(len(table), rows or len(table))
    table = table.slice(0, n - n % PLAN.prompts_per_step)
    return [table["sample_id"], *(table[name].to_numpy() for name in SCORES[1:])]


def _obvious_scores(folder: Path) -> dict[str, float]:
    """The plan of the first rows, both ways. Raises ValueError when the two plans differ."""
    time, arrays = _Stopwatch(), _read_scores(folder, OBVIOUS_ROWS)
    ours = time("ours_s", lambda: build_plan(*arrays, PLAN))
    lists = [column.to_pylist() if isinstance(column, pa.ChunkedArray) else column.tolist() for column in arrays]
    if ours.ids != time("obvious_s", lambda: plain_order(*lists, PLAN)):
        raise ValueError("the plan in lists and loops is another one: `plain_order` or `build_plan` is wrong")
    return {"obvious_rows": len(lists[0]), **{name: time.times[name] for name in ("ours_s", "obvious_s")}}


def plain_order(
    ids: Sequence[str], clusters: Sequence[int], ranking: Sequence[float], raw: Sequence[float], lengths: Sequence[float],
    config: PlanConfig,
) -> list[str]:  # fmt: skip
    """Ids in the order of the `saerl` plan for the default `rest` and `unequal`, in lists and loops.

    Equal to `build_plan` up to the rounding of means. Raises ValueError for ids that are not each planned once.
    """
    b, h = config.prompts_per_step, config.swapped_per_batch
    rows = sorted(range(len(ids)), key=lambda i: (ranking[i], raw[i], ids[i]))
    groups: dict[int, list[int]] = defaultdict(list)
    for i in rows:
        groups[clusters[i]].append(i)
    stages: list[list[list[int]]] = []
    for cluster in sorted(groups):
        for t in range(len(groups[cluster]) // b):
            stages += [[]] if t == len(stages) else []
            stages[t].append(groups[cluster][t * b : (t + 1) * b])
    stages = [sorted(stage, key=lambda batch: _mean(ranking, batch)) for stage in stages]
    in_full = {i for stage in stages for batch in stage for i in batch}
    left = [i for i in rows if i not in in_full]
    for start in range(0, len(left), b):
        mean = _mean(ranking, left[start : start + b])
        harder = (t for t, stage in enumerate(stages) if _mean(ranking, [i for batch in stage for i in batch]) > mean)
        stages.insert(next(harder, len(stages)), [left[start : start + b]])
    batches = [(t, batch, Counter(sorted(clusters[i] for i in batch)).most_common(1)[0][0]) for t, stage in enumerate(stages)
               for batch in stage]  # fmt: skip
    taken, order = set(), [list(batch) for _, batch, _ in batches]
    for i, (stage, batch, dominant) in enumerate(batches if h else []):
        found = []
        for j in range(i + 1, min(i + config.window_batches + 1, len(batches))):
            gap = abs(_mean(ranking, batch) - _mean(ranking, batches[j][1]))
            one, other = _mean(lengths, batch), _mean(lengths, batches[j][1])
            alike = gap <= config.difficulty_tolerance and abs(one - other) / max(one, other) <= config.length_tolerance
            if alike and batches[j][0] == stage and batches[j][2] != dominant and not {i, j} & taken:
                found.append((gap, j))
        if found:
            j = min(found)[1]
            taken |= {i, j}
            order[i][-h:], order[j][-h:] = order[j][-h:], order[i][-h:]
    planned = [ids[i] for batch in order for i in batch]
    if Counter(planned) != Counter(dict.fromkeys(ids, 1)):
        raise ValueError("the plan is no permutation of the pool")
    return planned


def _mean(values: Sequence[float], rows: Sequence[int]) -> float:
    return sum(values[i] for i in rows) / len(rows)


def write_scores(folder: Path, samples: int, seed: int = 0) -> None:
    """Write scores.parquet, columns of `SCORES`, in no order: clusters of unequal size, harder ones longer."""
    rng = np.random.default_rng(seed)
    cluster = rng.choice(GROUPS, samples, p=rng.dirichlet(np.full(GROUPS, 5.0)))
    ranking = 5 + rng.normal(size=samples) + cluster / GROUPS
    table = {
        "sample_id": [f"pool-{i:010d}" for i in rng.permutation(samples)], "cluster": cluster, "ranking": ranking,
        "raw": ranking + rng.normal(size=samples), "length": np.ceil(40 * ranking.clip(1) * rng.lognormal(size=samples)),
    }  # fmt: skip
    pq.write_table(pa.table(table), folder / "scores.parquet")


def write_features(folder: Path, samples: int, seed: int = 0) -> None:
    """Write pool, labelled and negatives .safetensors, as `save_features` does, and labels.npy (of the labelled) into `folder`.

    Sparse non-negative values with cluster structure: each of 12 groups fires some latents often and the rest seldom.
    """
    rng = np.random.default_rng(seed)
    often = np.where(rng.random((GROUPS, Z_COLUMNS)) < 0.2, 0.5, 0.05).astype(np.float32)
    weight = rng.normal(size=Z_COLUMNS) * (rng.random(Z_COLUMNS) < 0.05)
    for name, n in (("pool", samples), (LABELLED, N_LABELLED), (NEGATIVES, N_NEGATIVES)):
        difficulty = _write(folder / f"{name}.safetensors", name, n, often, weight, rng)
        if name == LABELLED:
            np.save(folder / "labels.npy", difficulty)


def _write(path: Path, name: str, n: int, often: np.ndarray, weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One feature table of n samples, chunk by chunk; returns a difficulty a sample, [n], linear in z and noisy."""
    z_bytes, all_bytes = 4 * n * Z_COLUMNS, 4 * n * (Z_COLUMNS + METADATA_COLUMNS)
    header = {
        "__metadata__": {"ids": json.dumps([f"{name}-{i:07d}" for i in range(n)])},
        "z": {"dtype": "F32", "shape": [n, Z_COLUMNS], "data_offsets": [0, z_bytes]},
        "metadata": {"dtype": "F32", "shape": [n, METADATA_COLUMNS], "data_offsets": [z_bytes, all_bytes]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    difficulty = np.empty(n)
    with path.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        start = handle.tell()
        for first in range(0, n, CHUNK):
            size = min(CHUNK, n - first)
            group = rng.integers(0, GROUPS, size)
            fires = rng.random((size, Z_COLUMNS), dtype=np.float32) < often[group]
            z = rng.standard_exponential((size, Z_COLUMNS), dtype=np.float32) * fires
            spread = rng.standard_exponential((size, METADATA_COLUMNS), dtype=np.float32)
            metadata = (1 + spread * (1 + group[:, None] / GROUPS)).astype(np.float32)
            difficulty[first : first + size] = 5 + z @ weight + rng.normal(size=size) + 0.1 * metadata[:, 0]
            handle.seek(start + 4 * first * Z_COLUMNS)
            z.tofile(handle)
            handle.seek(start + z_bytes + 4 * first * METADATA_COLUMNS)
            metadata.tofile(handle)
    return difficulty


WAYS = {"features": _features, "obvious-features": _obvious_features, "scores": _scores, "obvious-scores": _obvious_scores}

if __name__ == "__main__":
    found = WAYS[sys.argv[2]](Path(sys.argv[1]))
    print(json.dumps({**found, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
