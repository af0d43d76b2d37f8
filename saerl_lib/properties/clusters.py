"""Clusters of the sample representation and their agreement with topics (paper, sections 3 and 5.4).

MiniBatchKMeans on standardised phi. Not stated in the paper; ours: the scaling, the clip at `CLIP` deviations (a latent
that fires on one sample in a thousand stands 30 deviations out and would take a centroid for itself), no random
reassignment of centroids (late in a fit it leaves clusters of one sample), the choice among restarts, the subsample that
a large pool is fitted on, and what becomes of empty and tiny clusters. phi may be a memory map: it is read by chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler

from saerl_lib.config import PropertyConfig, sub_seed
from saerl_lib.properties import require_rows
from saerl_lib.properties.rows import float_chunks, require_finite_rows

CLIP = 5.0
"""Standardised features are cut to +- this many deviations (not stated in the paper; ours)."""
RESTARTS = 10
"""Full fits, of which the one with the least inertia is kept: scikit-learn's n_init compares starts only (ours)."""
SAMPLES_PER_STEP = 4096
"""Mini-batch of k-means (not stated in the paper; ours)."""
TIE = 1e-9
"""Relative gap of squared distances below which the nearest centroid is decided by the distances themselves."""


@dataclass(frozen=True)
class Assignment:
    """Nearest centroids of N samples."""

    label: np.ndarray
    """Cluster of each sample, int [N]."""
    distance: np.ndarray
    """Euclidean distance to its centroid in standardised, clipped space, float [N]."""


@dataclass(frozen=True)
class Clusters:
    """Fitted centroids; every cluster held a sample when it was fitted."""

    mean: np.ndarray
    """Subtracted from phi, [D]."""
    scale: np.ndarray
    """Divides phi - mean, [D]."""
    centroids: np.ndarray
    """In standardised, clipped space, [K, D]."""
    n_dropped: int
    """Centroids without samples, removed; the others were renumbered without a gap."""
    n_merged: int = 0
    """Clusters below the smallest size, whose centroid was removed."""
    n_moved: int = 0
    """Samples of those, which went to their nearest other centroid."""

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
        """Nearest centroid of each row of phi [N, D], the lowest number among equals; reads phi by chunks.

        Raises ValueError for non-finite values or another width than the fitted one.
        """
        if phi.ndim != 2 or phi.shape[1] != len(self.mean):
            raise ValueError(
                f"phi has shape {phi.shape}, the clusters were fitted on {len(self.mean)} columns: encode with the same features"
            )
        label, distance = np.empty(len(phi), dtype=np.int64), np.empty(len(phi))
        for rows, chunk in float_chunks("phi", phi):
            points = self.standardise(chunk)
            label[rows] = _nearest(points, self.centroids)
            distance[rows] = np.linalg.norm(points - self.centroids[label[rows]], axis=1)
        return Assignment(label, distance)


def _nearest(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Number of the nearest centroid [K, D] of each point [N, D], the lowest among equals."""
    squares = np.square(centroids).sum(axis=1) - 2 * (points @ centroids.T)
    label = squares.argmin(axis=1)
    if len(centroids) > 1:
        # the expanded square takes one matrix product but loses digits: near ties are decided by the distances
        best = np.partition(squares, 1, axis=1)
        close = np.flatnonzero(best[:, 1] - best[:, 0] <= TIE * CLIP**2 * points.shape[1])
        label[close] = np.stack([np.linalg.norm(points[close] - c, axis=1) for c in centroids], axis=1).argmin(axis=1)
    return label


@dataclass(frozen=True)
class Agreement:
    """Clusters against topics (paper, section 5.4: 0.1095, 0.0881, 0.0394)."""

    purity: float
    """Share of samples whose topic is the most frequent one of their cluster."""
    nmi: float
    """Normalised mutual information, arithmetic mean of the entropies."""
    ari: float
    """Adjusted Rand index."""


def fit_clusters(phi: np.ndarray, k: int, seed: int, fit_rows: int | None = None, smallest: int = 1) -> Clusters:
    """K-means of phi [N, D] after standardisation and clipping; deterministic for a seed.

    Of more than `fit_rows` samples a subsample gives scaling and, as float32, centroids. A cluster with fewer than `smallest` of
    the N samples loses its centroid, the smallest first, and its samples go to their nearest other one.
    Raises ValueError for k below 1 or above the number of fitted samples, and for non-finite values.
    """
    require_finite_rows("phi", phi)
    if k < 1:
        raise ValueError(f"clusters={k} must be at least 1")
    n = min(len(phi), fit_rows or len(phi))
    if k > n:
        raise ValueError(f"clusters={k} exceeds the {n} samples: lower PropertyConfig.clusters or encode more samples")
    sample = phi if n == len(phi) else phi[subsample(len(phi), n, seed)]
    scaler = StandardScaler().fit(np.asarray(sample[:], dtype=np.float64))
    space = Clusters(scaler.mean_, scaler.scale_, np.empty((0, phi.shape[1])), n_dropped=0)
    points = space.standardise(sample[:])
    # half the time at half the memory; a pool that is fitted whole keeps all digits
    fitted = points if n == len(phi) else points.astype(np.float32)
    fits = [
        MiniBatchKMeans(k, n_init=1, batch_size=SAMPLES_PER_STEP, reassignment_ratio=0.0, random_state=start).fit(fitted)
        for start in np.random.default_rng(seed).integers(0, 2**31, RESTARTS).tolist()
    ]
    found = replace(space, centroids=min(fits, key=lambda fit: fit.inertia_).cluster_centers_.astype(np.float64))
    used = np.unique(_nearest(points, found.centroids))
    found = replace(found, centroids=found.centroids[used], n_dropped=k - len(used))
    return merge_small(found, phi, smallest) if smallest > 1 else found


def subsample(n: int, size: int, seed: int) -> np.ndarray:
    """`size` of n row numbers in ascending order, drawn without repetition."""
    return np.sort(np.random.default_rng(sub_seed(seed, "cluster-subsample")).choice(n, size, replace=False))


def merge_small(found: Clusters, phi: np.ndarray, smallest: int) -> Clusters:
    """Remove the smallest cluster (the lowest number among equals) until each holds `smallest` rows of phi or one is left."""
    label = found.assign(phi).label
    while found.k > 1 and np.bincount(label, minlength=found.k).min() < smallest:
        small = int(np.bincount(label, minlength=found.k).argmin())
        moved = np.flatnonzero(label == small)
        found = replace(
            found,
            centroids=np.delete(found.centroids, small, axis=0),
            n_merged=found.n_merged + 1,
            n_moved=found.n_moved + len(moved),
        )
        label[label > small] -= 1
        label[moved] = found.assign(phi[moved]).label
    return found


def pool_clusters(phi: np.ndarray, config: PropertyConfig, seed: int) -> Clusters:
    """The clusters of a pool's phi [N, D] under a profile's settings and base seed. Raises as `fit_clusters` does."""
    return fit_clusters(phi, config.clusters, sub_seed(seed, "clusters"), config.cluster_fit_rows, config.smallest_cluster)


def agreement(labels: np.ndarray, topics: np.ndarray) -> Agreement:
    """Purity, NMI and ARI of cluster labels [N] against topics [N]."""
    require_rows(labels=labels, topics=topics)
    counts = pd.crosstab(np.asarray(labels), np.asarray(topics)).to_numpy()
    return Agreement(
        purity=float(counts.max(axis=1).sum() / counts.sum()),
        nmi=float(normalized_mutual_info_score(topics, labels)),
        ari=float(adjusted_rand_score(topics, labels)),
    )


def topic_entropy(topics: np.ndarray) -> float:
    """Shannon entropy of the topics [N] in bits.

    >>> topic_entropy(["a", "a", "b", "c"])
    1.5
    """
    shares = np.unique(np.asarray(topics), return_counts=True)[1] / len(topics)
    return float(abs(np.sum(shares * np.log2(shares))))


def cluster_topics(labels: np.ndarray, domains: np.ndarray) -> pd.DataFrame:
    """Rows of `cluster_topics.csv`: cluster, domain, n, for every pair that occurs."""
    require_rows(labels=labels, domains=domains)
    pairs = pd.DataFrame({"cluster": np.asarray(labels), "domain": np.asarray(domains)})
    return pairs.groupby(["cluster", "domain"]).size().rename("n").reset_index()


def topic_summary(labels: np.ndarray, topics: np.ndarray) -> pd.DataFrame:
    """One row a cluster: cluster, n, topic_entropy_bits, top_topic (first by name among equals), top_share."""
    require_rows(labels=labels, topics=topics)
    labels, topics, rows = np.asarray(labels), np.asarray(topics), []
    for cluster in np.unique(labels):
        inside = topics[labels == cluster]
        names, counts = np.unique(inside, return_counts=True)
        top = int(counts.argmax())
        rows.append((int(cluster), len(inside), topic_entropy(inside), str(names[top]), float(counts[top] / len(inside))))
    return pd.DataFrame(rows, columns=["cluster", "n", "topic_entropy_bits", "top_topic", "top_share"])
