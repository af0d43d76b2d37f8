"""Clusters, calibrated difficulty and the quality score of one's own rows (paper, sections 3.2, 3.3 and B.4).

No row is scored by a model that saw its own label: labelled rows take out-of-fold scores, the others those of the final model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from saerl_lib.config import PropertyConfig, sub_seed
from saerl_lib.own.represent import Representation
from saerl_lib.own.settings import OwnConfig
from saerl_lib.plan.mixing import projection_2d
from saerl_lib.properties import correlation
from saerl_lib.properties.clusters import Assignment, Clusters, pool_clusters
from saerl_lib.properties.scorer import Columns, Rated, fit_rated, fit_scorer
from saerl_lib.report.statistics import Interval, bootstrap_interval

MIN_LABELS = 30
"""With fewer labels no difficulty is fitted (ours)."""
MIN_CLASS = 10
"""With fewer quality labels of either kind no filter is fitted (ours)."""
RESAMPLES = 200
"""Bootstrap resamples of an interval (ours)."""


@dataclass(frozen=True)
class Grouping:
    """Clusters of N samples and their map."""

    clusters: Clusters
    assignment: Assignment
    points: np.ndarray
    """First two principal components of the standardised, clipped features, [N, 2]."""


@dataclass(frozen=True)
class Difficulty:
    """Difficulty of N samples in label units, larger is harder, float [N] each."""

    raw: np.ndarray
    ranking: np.ndarray
    """r of equation 10."""
    low: np.ndarray
    """Lower end of the nominal 95 % interval; -inf when there are too few labels."""
    high: np.ndarray
    n_labels: int
    spearman: float
    """Of out-of-fold predictions with the labels."""
    spearman_length: float
    """|rho| of the length with the labels."""
    gain: Interval
    """Of spearman minus spearman_length: 95 % bootstrap over labelled rows."""


@dataclass(frozen=True)
class Quality:
    """Quality score of N samples."""

    score: np.ndarray
    """In [0, 1], larger is more like the rows labelled true, [N]."""
    n_labels: int
    roc_auc: float
    """Of out-of-fold scores."""
    roc_auc_length: float
    """Of the length alone, in its better direction."""


def properties_of(n: int, config: OwnConfig) -> PropertyConfig:
    """The settings of a pool of n samples: 10 clusters (paper), fewer when each would hold less than two batches."""
    k = config.clusters or max(1, min(10, n // max(2 * config.prompts_per_step, 10)))
    if k > n:
        raise ValueError(f"--clusters {k} exceeds the {n} usable rows: ask for fewer")
    smallest = min(config.prompts_per_step, max(1, n // (2 * k)))
    return PropertyConfig(clusters=k, smallest_cluster=smallest, bootstrap_samples=RESAMPLES, cluster_fit_rows=max(10_000, k))


def group(found: Representation, settings: PropertyConfig, seed: int) -> Grouping:
    """Fit clusters on phi and lay the map."""
    clusters = pool_clusters(found.phi, settings, seed)
    with np.errstate(invalid="ignore"):  # equal rows have no variance to explain
        points = projection_2d(clusters.standardise(found.phi))
    return Grouping(clusters, clusters.assign(found.phi), points)


def fit_scores(
    found: Representation, grouping: Grouping, labels: np.ndarray, settings: PropertyConfig, seed: int
) -> Difficulty | None:
    """Difficulty from labels [N] (NaN: unknown), or None with fewer than `MIN_LABELS` or with equal labels."""
    known = np.flatnonzero(np.isfinite(labels))
    if len(known) < MIN_LABELS or np.ptp(labels[known]) == 0:
        return None
    pool = Columns(found.table.ids, found.phi, found.phi)
    labelled = Columns([pool.ids[i] for i in known], found.phi[known], found.phi[known])
    scores = fit_scorer(pool, labelled, labels[known], None, settings, seed, grouping.clusters).score(pool)
    raw, ranking, half = (scores[name].to_numpy() for name in ("raw", "ranking", "half_width"))
    read, length = raw[known], found.lengths[known]

    def gain(rows: np.ndarray) -> float:
        return correlation("spearman", read[rows], labels[known][rows]) - abs(
            correlation("spearman", length[rows], labels[known][rows])
        )

    return Difficulty(
        raw, ranking, ranking - half, ranking + half, len(known),
        correlation("spearman", read, labels[known]), abs(correlation("spearman", length, labels[known])),
        bootstrap_interval(gain, len(known), settings.bootstrap_samples, sub_seed(seed, "gain")),
    )  # fmt: skip


def fit_quality(found: Representation, quality: np.ndarray, settings: PropertyConfig, seed: int) -> Quality | None:
    """Quality scores from labels [N] in {0, 1} (NaN: unknown), or None with fewer than `MIN_CLASS` of either kind."""
    known = np.flatnonzero(np.isfinite(quality))
    sound = quality[known] == 1
    if min(sound.sum(), (~sound).sum()) < MIN_CLASS:
        return None
    rated = Rated([found.table.ids[i] for i in known], found.phi[known], sound)
    classifier, own = fit_rated(rated, sub_seed(seed, "quality"))
    score = classifier.score(found.phi)
    score[known] = own
    by_length = float(roc_auc_score(sound, found.lengths[known]))
    return Quality(score, len(known), float(roc_auc_score(sound, score[known])), max(by_length, 1 - by_length))
