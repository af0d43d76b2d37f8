"""Moderate mixing by tail swap: two batches of a stage exchange their last h samples (paper, section 3).

Partners must have similar mean ranking scores, similar mean lengths and different dominant clusters. The paper names
both "within each stage" and "a local window": a partner is of the same stage and at most `window_batches` away.
Not stated in the paper; ours: batches choose in training order, each swaps once at most, the admissible partner
with the closest mean score wins and the earlier one among equals. A stage of one batch has no partner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saerl_lib.config import PlanConfig
from saerl_lib.plan.curriculum import Batch


@dataclass(frozen=True)
class Mixed:
    """Batches after the tail swap."""

    batches: list[Batch]
    """In the same order; the partner's tail stands in the last h slots."""
    partner: np.ndarray
    """Position of the batch that each batch exchanged tails with, -1 for none, int [T]."""

    @property
    def unpaired_share(self) -> float:
        """Share of batches without a partner; 1 when h = 0."""
        return float((self.partner < 0).mean())


def dominant_cluster(clusters: np.ndarray) -> int:
    """The most frequent cluster of a batch [b], the lowest number among equals.

    >>> dominant_cluster(np.array([4, 2, 4, 2, 7]))
    2
    """
    labels, counts = np.unique(clusters, return_counts=True)
    return int(labels[counts.argmax()])


def dominant_clusters(clusters: np.ndarray) -> list[int]:
    """`dominant_cluster` of each row of clusters [T, b].

    >>> dominant_clusters(np.array([[4, 2, 4, 2, 7], [7, 7, 2, 2, 7]]))
    [2, 7]
    """
    names, number = np.unique(clusters, return_inverse=True)
    number = number.reshape(clusters.shape) + len(names) * np.arange(len(clusters))[:, None]
    counts = np.bincount(number.ravel(), minlength=len(clusters) * len(names)).reshape(len(clusters), len(names))
    return names[counts.argmax(axis=1)].tolist()


def mix_tails(
    batches: Sequence[Batch], clusters: np.ndarray, ranking: np.ndarray, lengths: np.ndarray, config: PlanConfig
) -> Mixed:
    """Exchange the last `swapped_per_batch` samples of admissible pairs; h = 0 changes nothing.

    clusters, ranking and lengths (tokens, above 0) are [N], indexed by `Batch.rows`.
    """
    h, partner = config.swapped_per_batch, np.full(len(batches), -1, dtype=np.int64)
    rows = [batch.rows.copy() for batch in batches]
    if h:
        partner = _find_partners(batches, clusters, ranking, lengths, config)
        for i, j in enumerate(partner):
            if i < j:
                rows[i][-h:], rows[j][-h:] = batches[j].rows[-h:], batches[i].rows[-h:]
    return Mixed([Batch(batch.stage, r) for batch, r in zip(batches, rows, strict=True)], partner)


def relative_difference(first: float, second: float) -> float:
    """|first - second| over the larger of two positive numbers.

    >>> relative_difference(80.0, 100.0)
    0.2
    """
    return abs(first - second) / max(first, second)


def _find_partners(
    batches: Sequence[Batch], clusters: np.ndarray, ranking: np.ndarray, lengths: np.ndarray, config: PlanConfig
) -> np.ndarray:
    rows = np.stack([batch.rows for batch in batches])
    mean_ranking, mean_length = ranking[rows].mean(axis=1).tolist(), lengths[rows].mean(axis=1).tolist()
    dominant = dominant_clusters(clusters[rows])
    partner = np.full(len(batches), -1, dtype=np.int64)

    def admissible(i: int, j: int) -> bool:
        return (
            partner[j] < 0
            and batches[i].stage == batches[j].stage
            and dominant[i] != dominant[j]
            and abs(mean_ranking[i] - mean_ranking[j]) <= config.difficulty_tolerance
            and relative_difference(mean_length[i], mean_length[j]) <= config.length_tolerance
        )

    for i in range(len(batches)):
        if partner[i] >= 0:
            continue
        # earlier free batches need no second look: the conditions are symmetric, so one of them would have chosen i
        later = range(i + 1, min(i + config.window_batches, len(batches) - 1) + 1)
        found = [j for j in later if admissible(i, j)]
        if found:
            j = min(found, key=lambda j: (abs(mean_ranking[i] - mean_ranking[j]), j))
            partner[i], partner[j] = j, i
    return partner
