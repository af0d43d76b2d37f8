"""Why a batch exchanged its tail with another, or with none: the conditions of the tail swap, one candidate at a time.

`mixing` decides; this module measures the same quantities on the same batches, for the audit of a sample (paper, D.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saerl_lib.config import PlanConfig
from saerl_lib.plan.curriculum import Batch
from saerl_lib.plan.mixing import dominant_cluster, relative_difference

DIFFICULTY, LENGTH, CLUSTER = "difficulty too different", "length too different", "same dominant cluster"
"""How a candidate fails the paper's three conditions on a partner (section 3)."""
TAKEN = "already exchanged with another"
"""A batch exchanges its tail once at most (ours)."""


@dataclass(frozen=True)
class BatchFacts:
    """A batch of the curriculum before the tail swap, as the partner search sees it."""

    step: int
    stage: int
    mean_ranking: float
    """Label units."""
    mean_length: float
    """Words of prompt and solution."""
    dominant: int
    """Most frequent cluster."""
    n_clusters: int


@dataclass(frozen=True)
class Candidate:
    """A batch of the same stage and window as a possible partner."""

    step: int
    dominant: int
    ranking_difference: float
    """|difference of mean ranking scores|, label units."""
    length_difference: float
    """Relative difference of mean lengths, a share."""
    failed: tuple[str, ...]
    """Conditions that it fails, in the words above; empty for an admissible partner."""


def batch_facts(batches: Sequence[Batch], clusters: np.ndarray, ranking: np.ndarray, lengths: np.ndarray) -> list[BatchFacts]:
    """Facts of the batches before the swap; clusters, ranking and lengths are [N], indexed by `Batch.rows`."""
    return [
        BatchFacts(
            step,
            batch.stage,
            float(np.mean(ranking[batch.rows])),
            float(np.mean(lengths[batch.rows])),
            dominant_cluster(clusters[batch.rows]),
            len(np.unique(clusters[batch.rows])),
        )
        for step, batch in enumerate(batches)
    ]


def candidates(step: int, facts: Sequence[BatchFacts], partner: np.ndarray, config: PlanConfig) -> list[Candidate]:
    """The other batches of the stage inside the window, closest mean ranking score first, with the conditions each fails.

    partner [T] is the step that each batch exchanged tails with, -1 for none. A batch without a partner has no candidate
    that fails nothing, for the conditions are symmetric: one of the two would have chosen the other.
    """
    here = facts[step]
    low, high = max(0, step - config.window_batches), min(len(facts) - 1, step + config.window_batches)
    near = [j for j in range(low, high + 1) if j != step and facts[j].stage == here.stage]
    found = [_judge(here, facts[j], int(partner[j]), config) for j in near]
    return sorted(found, key=lambda c: (c.ranking_difference, c.step))


def _judge(here: BatchFacts, other: BatchFacts, partner_of_other: int, config: PlanConfig) -> Candidate:
    ranking = abs(here.mean_ranking - other.mean_ranking)
    length = relative_difference(here.mean_length, other.mean_length)
    conditions = {
        DIFFICULTY: ranking <= config.difficulty_tolerance,
        LENGTH: length <= config.length_tolerance,
        CLUSTER: here.dominant != other.dominant,
        TAKEN: partner_of_other in (-1, here.step),
    }
    return Candidate(other.step, other.dominant, ranking, length, tuple(name for name, met in conditions.items() if not met))
