"""How far the clusters depend on a seed: adjusted Rand index over all pairs of fits (ours; the paper has one fit)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score

from saerl_lib.config import PropertyConfig, sub_seed
from saerl_lib.properties.clusters import Clusters, pool_clusters

OTHER_SEEDS = 5
"""Fits beside the profile's own one: 15 pairs."""
COLUMNS = ["varied", "pairs", "ari_mean", "ari_low", "ari_high", "n"]


def seed_fits(phi: np.ndarray, config: PropertyConfig, seed: int, others: int = OTHER_SEEDS) -> list[Clusters]:
    """The clusters of phi [N, D] under the base seed, then under `others` further k-means seeds; same settings, same phi."""
    seeds = [seed, *(sub_seed(seed, f"cluster-stability-{i}") for i in range(others))]
    return [pool_clusters(phi, config, number) for number in seeds]


def pairwise_ari(labels: Sequence[np.ndarray]) -> np.ndarray:
    """Adjusted Rand index of every pair of label vectors [N], in the order of `itertools.combinations`; 1 is equal.

    >>> pairwise_ari([np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]), np.array([0, 1, 0, 1])]).round(3).tolist()
    [1.0, -0.5, -0.5]

    Raises ValueError for fewer than two vectors or unequal lengths.
    """
    if len(labels) < 2:
        raise ValueError(f"{len(labels)} label vectors have no pair: fit with at least two seeds")
    if len({len(vector) for vector in labels}) > 1:
        raise ValueError(f"label vectors of {sorted({len(v) for v in labels})} samples: label the same samples under every seed")
    return np.array([adjusted_rand_score(first, second) for first, second in combinations(labels, 2)])


def stability_row(varied: str, labels: Sequence[np.ndarray]) -> pd.DataFrame:
    """The row of `cluster_stability.csv` for label vectors [N] that differ in `varied`: mean, least and largest ARI of all pairs.

    Serves seeds of k-means and of the SAE alike. Raises as `pairwise_ari` does.
    """
    values = pairwise_ari(labels)
    row = (varied, len(values), float(values.mean()), float(values.min()), float(values.max()), len(labels[0]))
    return pd.DataFrame([row], columns=COLUMNS)
