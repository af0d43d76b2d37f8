"""Cluster-first curriculum: batches of one cluster, easy to hard, interleaved stage by stage (paper, section 3).

Stage t holds the t-th batch of every cluster that has one. Not stated in the paper; ours: inside a stage batches go by
ascending mean ranking score; the samples that fill no batch of their own cluster (the hardest of each) are sorted
together into mixed batches, and each of those is a stage of its own before the first stage with a larger mean.
`PlanConfig.rest` and `PlanConfig.unequal` name the other readings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from saerl_lib.config import PlanConfig
from saerl_lib.plan.batch_plan import Ids, PlanError, by_name, require_full_batches


class Batch(NamedTuple):
    """One optimiser step."""

    stage: int
    rows: np.ndarray
    """Row numbers of the pool in slot order, easy to hard, int [b]."""


@dataclass(frozen=True)
class Batches:
    """T batches in training order; an index gives one as a `Batch`."""

    stage: np.ndarray
    """Ascending from 0, int [T]."""
    rows: np.ndarray
    """Row numbers of the pool in slot order, int [T, b]."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, step: int) -> Batch:
        return Batch(int(self.stage[step]), self.rows[step])


def cluster_first(
    ids: Ids, clusters: np.ndarray, ranking: np.ndarray, raw: np.ndarray, config: PlanConfig, within: np.ndarray | None = None
) -> Batches:
    """Batches in training order; every row number 0..N-1 occurs once.

    Ties of the ranking score are broken by raw, then by id, so the order of the input does not matter. `within`, row
    numbers [N], replaces the order easy to hard inside clusters and rests.
    Raises PlanError when N is no multiple of `prompts_per_step` or a score is not finite.
    """
    clusters, ranking, raw = np.asarray(clusters), np.asarray(ranking, dtype=float), np.asarray(raw, dtype=float)
    require_full_batches(len(ids), config.prompts_per_step)
    if not (np.isfinite(ranking).all() and np.isfinite(raw).all()):
        raise PlanError("ranking or raw holds non-finite values: score every sample before planning")
    if within is None:
        named = by_name(ids)
        within = named[np.lexsort((raw[named], ranking[named]))]
    full, rests = _cut(np.asarray(within), clusters, ranking, config)
    return _insert_rests(full, rests, ranking, at_end=config.rest == "append")


def stage_of_batch(batch: Any, batches: Any, stages: int, unequal: str) -> Any:
    """Stage of a cluster's batch number `batch` of `batches`, when the largest cluster has `stages`; see `UNEQUAL`.

    Numbers or arrays of them.

    >>> [stage_of_batch(np.arange(2), 2, 5, unequal).tolist() for unequal in ("front", "stretch", "back")]
    [[0, 1], [1, 3], [3, 4]]
    """
    if unequal == "stretch":
        return (2 * batch + 1) * stages // (2 * batches)
    return batch + (stages - batches if unequal == "back" else 0)


def _numbers(sizes: np.ndarray) -> np.ndarray:
    """0, 1, ... anew for each group of `sizes`, joined."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _cut(order: np.ndarray, clusters: np.ndarray, ranking: np.ndarray, config: PlanConfig) -> tuple[Batches, np.ndarray]:
    """Full batches of the clusters, in stages, from rows in `order` [N]; and batches [m, b] of the rows left over."""
    b = config.prompts_per_step
    grouped = order[np.argsort(clusters[order], kind="stable")]
    size = np.unique(clusters, return_counts=True)[1]
    first = size % b if config.rest == "pool_easiest" else np.zeros_like(size)
    number = _numbers(size)
    inside = (number >= np.repeat(first, size)) & (number < np.repeat(first + size - size % b, size))
    full, left = grouped[inside].reshape(-1, b), np.ones(len(order), dtype=bool)
    left[full] = False
    batches = size // b
    stage = stage_of_batch(_numbers(batches), np.repeat(batches, batches), batches.max(), config.unequal)
    # a stable sort: equal means of a stage stay in the order of the cluster numbers
    easy_first = np.lexsort((ranking[full].mean(axis=1), stage))
    return Batches(stage[easy_first], full[easy_first]), order[left[order]].reshape(-1, b)


def _insert_rests(full: Batches, rests: np.ndarray, ranking: np.ndarray, at_end: bool) -> Batches:
    """Put each rest batch, as a stage of its own, before the first stage with a larger mean ranking score, or at the end."""
    scores, ends = ranking[full.rows], np.flatnonzero(np.diff(full.stage, append=-1)) + 1
    means = [scores[start:end].ravel().mean() for start, end in zip([0, *ends[:-1]], ends, strict=True)] if len(full) else []
    # the first stage above a mean is also the first at which the running maximum is above it
    place = np.searchsorted(np.maximum.accumulate(np.array(means)), ranking[rests].mean(axis=1), side="right")
    before = np.concatenate([np.full_like(place, len(means)) if at_end else place, full.stage])
    order = np.argsort(before, kind="stable")
    is_rest, before = order < len(rests), before[order]
    begins = is_rest[1:] | is_rest[:-1] | (before[1:] != before[:-1])
    return Batches(np.concatenate([[0], np.cumsum(begins)]), np.concatenate([rests, full.rows])[order])
