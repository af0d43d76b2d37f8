"""Cluster-first curriculum: batches of one cluster, easy to hard, interleaved stage by stage (paper, section 3).

Stage t holds the t-th batch of every cluster that has one. Not stated in the paper; ours: inside a stage batches go by
ascending mean ranking score; the samples that fill no batch of their own cluster (the hardest of each) are sorted
together into mixed batches, and each of those is a stage of its own before the first stage with a larger mean.
`PlanConfig.rest` and `PlanConfig.unequal` name the other readings.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from saerl_lib.config import PlanConfig
from saerl_lib.plan.batch_plan import PlanError, require_full_batches


@dataclass(frozen=True)
class Batch:
    """One optimiser step."""

    stage: int
    """Stages are numbered from 0 in training order."""
    rows: np.ndarray
    """Row numbers of the pool in slot order, easy to hard, int [b]."""


def cluster_first(
    ids: Sequence[str], clusters: np.ndarray, ranking: np.ndarray, raw: np.ndarray, config: PlanConfig,
    within: np.ndarray | None = None,
) -> list[Batch]:
    """Batches in training order; every row number 0..N-1 occurs once.

    Ties of the ranking score are broken by raw, then by id, so the order of the input does not matter. `within`, row
    numbers [N], replaces the order easy to hard inside clusters and rests.
    Raises PlanError when N is no multiple of `prompts_per_step` or a score is not finite.
    """
    names, clusters, b = np.asarray(ids, dtype=str), np.asarray(clusters), config.prompts_per_step
    ranking, raw = np.asarray(ranking, dtype=float), np.asarray(raw, dtype=float)
    require_full_batches(len(names), b)
    if not (np.isfinite(ranking).all() and np.isfinite(raw).all()):
        raise PlanError("ranking or raw holds non-finite values: score every sample before planning")
    order = np.lexsort((names, raw, ranking)) if within is None else np.asarray(within)
    full, in_rest = _cut(order, clusters, config)
    stages = _interleave(full, ranking, config)
    rests = order[in_rest[order]].reshape(-1, b)
    ordered = _insert_rests(stages, rests, ranking, at_end=config.rest == "append")
    return [Batch(number, batch) for number, stage in enumerate(ordered) for batch in stage]


def stage_of_batch(batch: int, batches: int, stages: int, unequal: str) -> int:
    """Stage of a cluster's batch number `batch` of `batches`, when the largest cluster has `stages`; see `UNEQUAL`.

    >>> [[stage_of_batch(j, 2, 5, unequal) for j in range(2)] for unequal in ("front", "stretch", "back")]
    [[0, 1], [1, 3], [3, 4]]
    """
    if unequal == "stretch":
        return (2 * batch + 1) * stages // (2 * batches)
    return batch + (stages - batches if unequal == "back" else 0)


def _cut(order: np.ndarray, clusters: np.ndarray, config: PlanConfig) -> tuple[list[np.ndarray], np.ndarray]:
    """Full batches [m, b] of each cluster in `order`, and the mask [N] of what is left over."""
    b, in_rest, full = config.prompts_per_step, np.zeros(len(order), dtype=bool), []
    for cluster in np.unique(clusters):
        rows = order[clusters[order] == cluster]
        over = len(rows) % b
        cut = over if config.rest == "pool_easiest" else 0
        kept = rows[cut : len(rows) - over + cut]
        in_rest[rows[:cut]] = True
        in_rest[rows[len(kept) + cut :]] = True
        full.append(kept.reshape(-1, b))
    return full, in_rest


def _interleave(full: list[np.ndarray], ranking: np.ndarray, config: PlanConfig) -> list[list[np.ndarray]]:
    """Stages of batches from the batches [m, b] of each cluster."""
    longest = max(map(len, full))
    stages: list[list[np.ndarray]] = [[] for _ in range(longest)]
    for batches in full:
        for number, batch in enumerate(batches):
            stages[stage_of_batch(number, len(batches), longest, config.unequal)].append(batch)
    for stage in stages:
        # a stable sort: equal means stay in the order of the cluster numbers
        stage.sort(key=lambda batch: float(ranking[batch].mean()))
    return stages


def _insert_rests(
    stages: list[list[np.ndarray]], rests: np.ndarray, ranking: np.ndarray, at_end: bool
) -> list[list[np.ndarray]]:
    """Put each rest batch, as a stage of its own, before the first stage with a larger mean ranking score, or at the end."""
    # the first stage above a mean is also the first at which the running maximum is above it
    highest = list(accumulate((float(ranking[np.concatenate(stage)].mean()) for stage in stages), max))
    before: list[list[np.ndarray]] = [[] for _ in range(len(stages) + 1)]
    for batch in rests:
        place = len(stages) if at_end else bisect_right(highest, float(ranking[batch].mean()))
        before[place].append(batch)
    ordered: list[list[np.ndarray]] = []
    for t, batches in enumerate(before):
        ordered += [[batch] for batch in batches]
        if t < len(stages):
            ordered.append(stages[t])
    return ordered
