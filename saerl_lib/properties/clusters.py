"""Clusters of the sample representation and their agreement with topics (paper, sections 3 and 5.4).

MiniBatchKMeans on standardised phi. Not stated in the paper; ours: the scaling, the clip at `CLIP` deviations (a latent
that fires on one sample in a thousand stands 30 deviations out and would take a centroid for itself), no random
reassignment of centroids (late in a fit it leaves clusters of one sample) and the choice among restarts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler

from saerl_lib.properties import require_finite, require_rows

CLIP = 5.0
"""Standardised features are cut to +- this many deviations (not stated in the paper; ours)."""
RESTARTS = 10
"""Full fits, of which the one with the least inertia is kept: scikit-learn's n_init compares starts only (ours)."""
SAMPLES_PER_STEP = 4096
"""Mini-batch of k-means (not stated in the paper; ours)."""


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

    @property
    def k(self) -> int:
        """Number of clusters K."""
        return len(self.centroids)

    def standardise(self, phi: np.ndarray) -> np.ndarray:
        """phi [N, D] in the space of the centroids."""
        return np.clip((np.asarray(phi, dtype=np.float64) - self.mean) / self.scale, -CLIP, CLIP)

    def assign(self, phi: np.ndarray) -> Assignment:
        """Nearest centroid of each row of phi [N, D], the lowest number among equals.

        Raises ValueError for non-finite values or another width than the fitted one.
        """
        require_finite("phi", phi)
        if phi.ndim != 2 or phi.shape[1] != len(self.mean):
            raise ValueError(
                f"phi has shape {phi.shape}, the clusters were fitted on {len(self.mean)} columns: encode with the same features"
            )
        points = self.standardise(phi)
        # one centroid at a time: [N, K, D] would not fit in memory, and the expanded square loses digits
        distances = np.stack([np.linalg.norm(points - centroid, axis=1) for centroid in self.centroids], axis=1)
        label = distances.argmin(axis=1)
        return Assignment(label.astype(np.int64), distances[np.arange(len(label)), label])


@dataclass(frozen=True)
class Agreement:
    """Clusters against topics (paper, section 5.4: 0.1095, 0.0881, 0.0394)."""

    purity: float
    """Share of samples whose topic is the most frequent one of their cluster."""
    nmi: float
    """Normalised mutual information, arithmetic mean of the entropies."""
    ari: float
    """Adjusted Rand index."""


def fit_clusters(phi: np.ndarray, k: int, seed: int) -> Clusters:
    """K-means of phi [N, D] after standardisation and clipping; deterministic for a seed.

    Raises ValueError for k below 1 or above N, and for non-finite values.
    """
    require_finite("phi", phi)
    if k < 1:
        raise ValueError(f"clusters={k} must be at least 1")
    if k > len(phi):
        raise ValueError(f"clusters={k} exceeds the {len(phi)} samples: lower PropertyConfig.clusters or encode more samples")
    scaler = StandardScaler().fit(np.asarray(phi, dtype=np.float64))
    space = Clusters(scaler.mean_, scaler.scale_, np.empty((0, phi.shape[1])), n_dropped=0)
    points = space.standardise(phi)
    fits = [
        MiniBatchKMeans(k, n_init=1, batch_size=SAMPLES_PER_STEP, reassignment_ratio=0.0, random_state=start).fit(points)
        for start in np.random.default_rng(seed).integers(0, 2**31, RESTARTS).tolist()
    ]
    found = replace(space, centroids=min(fits, key=lambda fit: fit.inertia_).cluster_centers_)
    used = np.unique(found.assign(phi).label)
    return replace(found, centroids=found.centroids[used], n_dropped=k - len(used))


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
