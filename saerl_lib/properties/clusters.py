"""Clusters of the sample representation, their agreement with topics and their stability (paper, sections 3 and 5.4).

MiniBatchKMeans on standardised phi. Ours: the scaling, the clip at `CLIP` deviations (a latent that fires on one sample in a
thousand would take a centroid for itself), no random reassignment of centroids, the choice among restarts, the subsample that a
large pool is fitted on, what becomes of empty and tiny clusters, and the numbering: by size, then by first sample.

phi is an array or a `numpy.memmap`; whatever visits all of it does so by chunks of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler

from saerl_lib.config import PropertyConfig, sub_seed
from saerl_lib.properties.probes import require_finite

CHUNK_ROWS = 4096
"""Rows converted to float64 at a time: 32 MB for 986 columns (ours)."""


def float_chunks(name: str, x: Any) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, a float64 copy of them [n, D]) of a matrix [N, D], which the caller may overwrite; `CHUNK_ROWS` at a time. Raises
    ValueError that names `name` and its first bad row when an entry is NaN or infinite."""
    for start in range(0, len(x), CHUNK_ROWS):
        chunk = np.array(x[start : start + CHUNK_ROWS], dtype=np.float64)
        require_finite(name, chunk, start)
        yield slice(start, start + len(chunk)), chunk


def by_chunks(name: str, x: Any, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`function` of float64 chunks [n, D] -> [n], joined to [N]. Raises ValueError as `float_chunks` does."""
    return np.concatenate([function(chunk) for _, chunk in float_chunks(name, x)])


CLIP = 5.0
"""Standardised features are cut to +- this many deviations (not stated in the paper; ours)."""
RESTARTS = 10
"""Full fits, of which the one with the least inertia is kept: scikit-learn's n_init compares starts only (ours)."""
SAMPLES_PER_STEP = 4096
"""Mini-batch of k-means (not stated in the paper; ours)."""


class Assignment(NamedTuple):
    """Cluster of each of N samples, and its Euclidean distance to the centroid in standardised, clipped space; [N] each."""

    label: np.ndarray
    distance: np.ndarray


@dataclass(frozen=True)
class Clusters:
    """Fitted centroids, the largest cluster first; every cluster held a sample when it was fitted."""

    mean: np.ndarray
    """Subtracted from phi, [D]."""
    scale: np.ndarray
    """Divides phi - mean, [D]."""
    centroids: np.ndarray
    """In standardised, clipped space, [K, D]."""

    @property
    def k(self) -> int:
        """Number of clusters K."""
        return len(self.centroids)

    def standardise(self, phi: np.ndarray) -> np.ndarray:
        """phi [N, D] in the space of the centroids, a float64 copy: for as many rows as memory holds."""
        points = np.array(phi, dtype=np.float64)
        points -= self.mean
        points /= self.scale
        return np.clip(points, -CLIP, CLIP, out=points)

    def assign(self, phi: np.ndarray) -> Assignment:
        """Nearest centroid of each row of phi [N, D], the lowest number among equals; reads phi by chunks. Raises ValueError for
        non-finite values or another width than the fitted one."""
        if phi.ndim != 2 or phi.shape[1] != len(self.mean):
            raise ValueError(
                f"phi has shape {phi.shape}, the clusters were fitted on {len(self.mean)} columns: encode with the same features"
            )
        label, distance = np.empty(len(phi), dtype=np.int64), np.empty(len(phi))
        for rows, chunk in float_chunks("phi", phi):
            apart = cdist(self.standardise(chunk), self.centroids)
            label[rows], distance[rows] = apart.argmin(axis=1), apart.min(axis=1)
        return Assignment(label, distance)


class Agreement(NamedTuple):
    """Clusters against topics: share of samples whose topic is the most frequent one of their cluster, normalised mutual
    information (arithmetic mean of the entropies), adjusted Rand index."""

    purity: float
    nmi: float
    ari: float


def fit_clusters(phi: np.ndarray, k: int, seed: int, fit_rows: int | None = None, smallest: int = 1) -> Clusters:
    """K-means of phi [N, D] after standardisation and clipping; deterministic for a seed. Of more than `fit_rows` samples a
    subsample gives scaling and, as float32, centroids. A cluster with fewer than `smallest` of the N samples loses its centroid,
    the smallest first, and its samples go to their nearest other one. Clusters are numbered by size, the largest first, then by
    their first sample: numbers do not depend on the processor as those of k-means do. Raises ValueError for k below 1 or above
    the number of fitted samples, and for non-finite values."""
    for start in range(0, len(phi), CHUNK_ROWS):
        require_finite("phi", phi[start : start + CHUNK_ROWS], start)
    if k < 1:
        raise ValueError(f"clusters={k} must be at least 1")
    n = min(len(phi), fit_rows or len(phi))
    if k > n:
        raise ValueError(f"clusters={k} exceeds the {n} samples: lower PropertyConfig.clusters or encode more samples")
    rng = np.random.default_rng(sub_seed(seed, "cluster-subsample"))
    sample = phi if n == len(phi) else phi[np.sort(rng.choice(len(phi), n, replace=False))]
    scaler = StandardScaler().fit(np.asarray(sample[:], dtype=np.float64))
    space = Clusters(scaler.mean_, scaler.scale_, np.empty((0, phi.shape[1])))
    points = space.standardise(sample[:])
    # half the time at half the memory; a pool that is fitted whole keeps all digits
    fitted = points if n == len(phi) else points.astype(np.float32)
    fits = [
        MiniBatchKMeans(k, n_init=1, batch_size=SAMPLES_PER_STEP, reassignment_ratio=0.0, random_state=start).fit(fitted)
        for start in np.random.default_rng(seed).integers(0, 2**31, RESTARTS).tolist()
    ]
    found = replace(space, centroids=min(fits, key=lambda fit: fit.inertia_).cluster_centers_.astype(np.float64))
    nearest = cdist(points, found.centroids).argmin(axis=1)
    found = replace(found, centroids=found.centroids[np.unique(nearest)])  # none without samples
    found, label = merge_small(found, phi, smallest)
    first = np.full(found.k, len(phi))
    names, rows = np.unique(label, return_index=True)
    first[names] = rows
    return replace(found, centroids=found.centroids[np.lexsort((first, -np.bincount(label, minlength=found.k)))])


def merge_small(found: Clusters, phi: np.ndarray, smallest: int) -> tuple[Clusters, np.ndarray]:
    """Remove the smallest cluster (the lowest number among equals) until each holds `smallest` rows of phi [N, D] or one is left;
    with the label [N] of each row."""
    label = found.assign(phi).label
    while found.k > 1 and np.bincount(label, minlength=found.k).min() < smallest:
        small = int(np.bincount(label, minlength=found.k).argmin())
        moved = np.flatnonzero(label == small)
        found = replace(found, centroids=np.delete(found.centroids, small, axis=0))
        label[label > small] -= 1
        label[moved] = found.assign(phi[moved]).label
    return found, label


def pool_clusters(phi: np.ndarray, config: PropertyConfig, seed: int) -> Clusters:
    """The clusters of a pool's phi [N, D] under a profile's settings and base seed. Raises as `fit_clusters` does."""
    return fit_clusters(phi, config.clusters, sub_seed(seed, "clusters"), config.cluster_fit_rows, config.smallest_cluster)


def agreement(labels: np.ndarray, topics: np.ndarray) -> Agreement:
    """Purity, NMI and ARI of cluster labels [N] against topics [N]."""
    counts = pd.crosstab(np.asarray(labels), np.asarray(topics)).to_numpy()
    purity = counts.max(axis=1).sum() / counts.sum()
    values = (purity, normalized_mutual_info_score(topics, labels), adjusted_rand_score(topics, labels))
    return Agreement(*map(float, values))


OTHER_SEEDS = 5
"""Fits beside the profile's own one: 15 pairs."""


def seed_fits(phi: np.ndarray, config: PropertyConfig, seed: int) -> list[Clusters]:
    """The clusters of phi [N, D] under the base seed, then under `OTHER_SEEDS` k-means seeds; same settings, same phi."""
    seeds = [seed, *(sub_seed(seed, f"cluster-stability-{i}") for i in range(OTHER_SEEDS))]
    return [pool_clusters(phi, config, number) for number in seeds]


def stability_row(varied: str, labels: Sequence[np.ndarray]) -> pd.DataFrame:
    """The row of `cluster_stability.csv` for two or more label vectors [N] that differ in `varied`, seeds of k-means or the SAE.

    Adjusted Rand index of all pairs (1 is equal): number of pairs, mean, least and largest, and N.

    >>> stability_row("seeds", [[0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]]).to_numpy().tolist()
    [['seeds', 3, 0.0, -0.5, 1.0, 4]]
    """
    values = [adjusted_rand_score(first, second) for first, second in combinations(labels, 2)]
    row = {"varied": varied, "pairs": len(values), "ari_mean": float(np.mean(values)), "ari_low": float(min(values)),
           "ari_high": float(max(values)), "n": len(labels[0])}  # fmt: skip
    return pd.DataFrame([row])
