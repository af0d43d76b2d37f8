"""Cluster-first curriculum: batches of one cluster, easy to hard, interleaved stage by stage (paper, section 3).

Stage t holds the t-th batch of every cluster that has one. Not stated in the paper; ours: inside a stage batches go by
ascending mean ranking score; the samples that fill no batch of their own cluster (the hardest of each) are sorted
together into mixed batches, and each of those is a stage of its own before the first stage with a larger mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    ids: Sequence[str], clusters: np.ndarray, ranking: np.ndarray, raw: np.ndarray, config: PlanConfig
) -> list[Batch]:
    """Batches in training order; every row number 0..N-1 occurs once.

    Ties of the ranking score are broken by raw, then by id, so the order of the input does not matter.
    Raises PlanError when N is no multiple of `prompts_per_step` or a score is not finite.
    """
    names, clusters, b = np.asarray(ids, dtype=str), np.asarray(clusters), config.prompts_per_step
    ranking, raw = np.asarray(ranking, dtype=float), np.asarray(raw, dtype=float)
    require_full_batches(len(names), b)
    if not (np.isfinite(ranking).all() and np.isfinite(raw).all()):
        raise PlanError("ranking or raw holds non-finite values: score every sample before planning")
    easy_to_hard = np.lexsort((names, raw, ranking))
    stages: list[list[np.ndarray]] = []
    rests = []
    for cluster in np.unique(clusters):
        rows = easy_to_hard[clusters[easy_to_hard] == cluster]
        full = len(rows) - len(rows) % b
        rests.append(rows[full:])
        for t, batch in enumerate(rows[:full].reshape(-1, b)):
            if t == len(stages):
                stages.append([])
            stages[t].append(batch)
    for stage in stages:
        # a stable sort: equal means stay in the order of the cluster numbers
        stage.sort(key=lambda batch: float(ranking[batch].mean()))
    in_rest = np.zeros(len(names), dtype=bool)
    in_rest[np.concatenate(rests)] = True
    ordered = _insert_rests(stages, easy_to_hard[in_rest[easy_to_hard]].reshape(-1, b), ranking)
    return [Batch(number, batch) for number, stage in enumerate(ordered) for batch in stage]


def _insert_rests(stages: list[list[np.ndarray]], rests: np.ndarray, ranking: np.ndarray) -> list[list[np.ndarray]]:
    """Put each rest batch, as a stage of its own, before the first stage with a larger mean ranking score."""
    means = [float(ranking[np.concatenate(stage)].mean()) for stage in stages]
    before: list[list[np.ndarray]] = [[] for _ in range(len(stages) + 1)]
    for batch in rests:
        mean = float(ranking[batch].mean())
        before[next((t for t, other in enumerate(means) if other > mean), len(stages))].append(batch)
    ordered: list[list[np.ndarray]] = []
    for t, batches in enumerate(before):
        ordered += [[batch] for batch in batches]
        if t < len(stages):
            ordered.append(stages[t])
    return ordered
