"""The two passes over the features: k-means by mini-batches, then clusters and difficulty of every block (paper, section 3).

The first pass starts from `pool_clusters` on a seeded subsample, which also gives the scaling, and goes on with one
mini-batch a block (`MiniBatchKMeans.partial_fit`). In memory, k-means is fitted on the subsample alone (ours, both).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import ElasticNet
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from saerl_lib.config import PlanConfig, PropertyConfig, sub_seed
from saerl_lib.properties.clusters import SAMPLES_PER_STEP, Clusters, pool_clusters, subsample
from saerl_lib.properties.difficulty import DifficultyModel, fit_difficulty
from saerl_lib.scale.clock import Clock
from saerl_lib.scale.config import ScaleConfig
from saerl_lib.scale.plan_file import Written, plan_to_file
from saerl_lib.scale.records import Scored
from saerl_lib.scale.shards import ShardedPool

ALPHA, L1_RATIO = 0.05, 0.5
"""Penalties of the elastic net: fixed, as tuning on L does not depend on N (ours)."""


@dataclass(frozen=True)
class Labelled:
    """The subset L with difficulty labels (paper: 3,000 samples)."""

    phi: np.ndarray
    """float32 [n, D]."""
    labels: np.ndarray
    """float64 [n], larger is harder."""


def first_clusters(pool: ShardedPool, properties: PropertyConfig, seed: int) -> Clusters:
    """Scaling and first centroids from a seeded subsample of `cluster_fit_rows` samples.

    Raises ValueError when `smallest_cluster` asks for merging, which needs the clusters of all samples, and as `fit_clusters`.
    """
    if properties.smallest_cluster > 1:
        raise ValueError(f"smallest_cluster={properties.smallest_cluster} needs a further pass; use 1 out of core")
    rows = subsample(pool.rows, min(properties.cluster_fit_rows, pool.rows), sub_seed(seed, "clusters"))
    return pool_clusters(pool.take(rows), properties, seed)


def refine_clusters(pool: ShardedPool, start: Clusters, seed: int, config: ScaleConfig) -> Clusters:
    """One pass of mini-batches over all samples, from the centroids of `start`; deterministic for a seed."""
    kmeans = MiniBatchKMeans(
        start.k, init=start.centroids.astype(np.float32), n_init=1, batch_size=SAMPLES_PER_STEP, reassignment_ratio=0.0,
        random_state=sub_seed(seed, "clusters"),
    )  # fmt: skip
    for block in pool.blocks(config.block_rows):
        kmeans.partial_fit(start.standardise(block.phi).astype(np.float32))
    return replace(start, centroids=kmeans.cluster_centers_.astype(np.float64))


def fixed_elastic_net() -> Pipeline:
    """The difficulty predictor with fixed penalties, not fitted."""
    return Pipeline([("scale", StandardScaler()), ("probe", ElasticNet(alpha=ALPHA, l1_ratio=L1_RATIO, max_iter=5000))])


def fit_scores(labelled: Labelled, clusters: Clusters, properties: PropertyConfig, seed: int) -> DifficultyModel:
    """Predictor, calibration and cluster corrections on L (equation 10); its cost does not depend on N."""
    inside = clusters.assign(labelled.phi).label
    return fit_difficulty(labelled.phi, labelled.labels, inside, clusters.k, properties, seed, fixed_elastic_net())


def score_blocks(pool: ShardedPool, clusters: Clusters, model: DifficultyModel, config: ScaleConfig) -> Iterator[Scored]:
    """Cluster and scores of one block after another: the second pass."""
    for block in pool.blocks(config.block_rows):
        label = clusters.assign(block.phi).label
        scores = model.predict(block.phi, label)
        yield Scored(block.ids, label, scores.ranking, scores.raw, block.length)


def plan_by_passes(
    pool: ShardedPool, labelled: Labelled, out: Path, work: Path, plan: PlanConfig, properties: PropertyConfig,
    config: ScaleConfig, seed: int, clock: Clock,
) -> Written:
    """From features on disk to plan.parquet at `out`. Raises ValueError and PlanError as the steps do."""
    start = clock.call("cluster_start", lambda: first_clusters(pool, properties, seed))
    clusters = clock.call("cluster_fit", lambda: refine_clusters(pool, start, seed, config))
    model = clock.call("difficulty_fit", lambda: fit_scores(labelled, clusters, properties, seed))
    return plan_to_file(score_blocks(pool, clusters, model, config), out, work, plan, config, pool.id_bytes, clock)
