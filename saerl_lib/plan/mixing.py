"""Moderate mixing by tail swap, why a batch found its partner or none, and what the batches of a plan look like.

Two batches of a stage exchange their last h samples (paper, section 3). Partners must have similar mean ranking scores,
similar mean lengths and different dominant clusters. The paper names both "within each stage" and "a local window": a
partner is of the same stage and at most `window_batches` away. Not stated in the paper; ours: batches choose in training
order, each swaps once at most, the admissible partner with the closest mean score wins and the earlier one among equals. A
stage of one batch has no partner.

`batch_facts` and `candidates` measure the same quantities for the audit of a sample (paper, section D.3). The paper's
in-batch diversity (Figure 3) is the mean distance to the k = 5 nearest neighbours inside a batch, in "a 2-D projection of
SAE space" that it does not name: here PCA, and beside it the full standardised space (not stated in the paper; ours).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from saerl_lib.config import PlanConfig
from saerl_lib.plan.batch_plan import BatchPlan, Ids, PlanError, rows_of
from saerl_lib.plan.curriculum import Batches
from saerl_lib.properties.probes import require_finite
from saerl_lib.report.statistics import bootstrap_interval

DIFFICULTY, LENGTH, CLUSTER = "difficulty too different", "length too different", "same dominant cluster"
"""How a candidate fails the paper's three conditions on a partner (section 3)."""
TAKEN = "already exchanged with another"
"""A batch exchanges its tail once at most (ours)."""
NEIGHBOURS = 5
"""k of the k-NN distance (paper, Figure 3)."""


@dataclass(frozen=True)
class Mixed:
    """Batches after the tail swap."""

    batches: Batches
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
    batches: Batches, clusters: np.ndarray, ranking: np.ndarray, lengths: np.ndarray, config: PlanConfig
) -> Mixed:
    """Exchange the last `swapped_per_batch` samples of admissible pairs; h = 0 changes nothing.

    clusters, ranking and lengths (tokens, above 0) are [N], indexed by `Batches.rows`.
    """
    h, rows = config.swapped_per_batch, batches.rows.copy()
    if not h:
        return Mixed(batches, np.full(len(rows), -1, dtype=np.int64))
    partner = _find_partners(batches, clusters, ranking, lengths, config)
    paired = np.flatnonzero(partner >= 0)
    rows[paired, -h:] = batches.rows[partner[paired], -h:]
    return Mixed(Batches(batches.stage, rows), partner)


def relative_difference(first: float, second: float) -> float:
    """|first - second| over the larger of two positive numbers.

    >>> relative_difference(80.0, 100.0)
    0.2
    """
    return abs(first - second) / max(first, second)


def _find_partners(
    batches: Batches, clusters: np.ndarray, ranking: np.ndarray, lengths: np.ndarray, config: PlanConfig
) -> np.ndarray:
    rows, window, partner = batches.rows, config.window_batches, [-1] * len(batches)
    mean_ranking, mean_length = ranking[rows].mean(axis=1).tolist(), lengths[rows].mean(axis=1).tolist()
    dominant = dominant_clusters(clusters[rows])
    stage_ends = np.searchsorted(batches.stage, batches.stage, side="right").tolist()
    for i, stage_end in enumerate(stage_ends):
        if partner[i] >= 0:
            continue
        # earlier free batches need no second look: the conditions are symmetric, so one of them would have chosen i
        found = [
            (abs(mean_ranking[i] - mean_ranking[j]), j)
            for j in range(i + 1, min(i + window + 1, stage_end))
            if partner[j] < 0
            and dominant[i] != dominant[j]
            and abs(mean_ranking[i] - mean_ranking[j]) <= config.difficulty_tolerance
            and relative_difference(mean_length[i], mean_length[j]) <= config.length_tolerance
        ]
        if found:
            j = min(found)[1]
            partner[i], partner[j] = j, i
    return np.array(partner, dtype=np.int64)


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


def batch_facts(batches: Batches, clusters: np.ndarray, ranking: np.ndarray, lengths: np.ndarray) -> list[BatchFacts]:
    """Facts of the batches before the swap; clusters, ranking and lengths are [N], indexed by `Batches.rows`."""
    inside = clusters[batches.rows]
    columns = (ranking[batches.rows].mean(axis=1), lengths[batches.rows].mean(axis=1))
    numbers = (batches.stage.tolist(), *(c.tolist() for c in columns), dominant_clusters(inside), _distinct(inside).tolist())
    return [BatchFacts(step, *values) for step, values in enumerate(zip(*numbers, strict=True))]


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


def standardised_space(x: np.ndarray) -> np.ndarray:
    """x [N, D] of the pool with mean 0 and deviation 1 a column. Raises ValueError for non-finite values."""
    require_finite("x", x)
    return StandardScaler().fit_transform(np.asarray(x, dtype=np.float64))


def projection_2d(x: np.ndarray) -> np.ndarray:
    """First two principal components [N, 2] of the standardised pool x [N, D]; N and D at least 2."""
    return PCA(n_components=2, svd_solver="covariance_eigh").fit_transform(standardised_space(x))


def batch_diversity(points: np.ndarray, batches: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """Mean distance to the k nearest neighbours in the batch (b - 1 if that is less), one value a batch, [T].

    points are [N, D], batches row numbers [T, b].

    >>> batch_diversity(np.array([[0.0], [1.0], [3.0]]), np.array([[0, 1, 2]]), k=1).round(3).tolist()
    [1.333]

    Raises ValueError for batches of fewer than two samples.
    """
    b = batches.shape[1]
    if b < 2:
        raise ValueError("prompts_per_step must be at least 2: a batch of one has no neighbours")
    values = []
    for rows in batches:
        distances = np.linalg.norm(points[rows][:, None] - points[rows][None], axis=2)
        np.fill_diagonal(distances, np.inf)
        values.append(np.sort(distances, axis=1)[:, : min(k, b - 1)].mean())
    return np.array(values)


def diversity_rows(
    plan: BatchPlan, ids: Ids, spaces: Mapping[str, np.ndarray], bootstrap_samples: int, seed: int
) -> pd.DataFrame:
    """Rows of `inbatch_diversity.csv`: order, swapped_per_batch, space, value, ci_low, ci_high, n_batches.

    `spaces` maps a name to points [N, D] in the order of ids [N]; value is the mean over batches and the interval
    resamples batches.
    """
    batches = _rows_of(plan, ids).reshape(plan.steps, plan.prompts_per_step)
    rows = []
    for space, points in spaces.items():
        values = batch_diversity(points, batches)
        interval = bootstrap_interval(lambda index, v=values: float(v[index].mean()), len(values), bootstrap_samples, seed)
        rows.append((plan.order, plan.swapped_per_batch, space, float(values.mean()), interval.low, interval.high, len(values)))
    return pd.DataFrame(rows, columns=["order", "swapped_per_batch", "space", "value", "ci_low", "ci_high", "n_batches"])


def composition_rows(plan: BatchPlan, ids: Ids, prompt_tokens: np.ndarray) -> pd.DataFrame:
    """Rows of `batch_composition.csv`, one a step; prompt_tokens [N] in the order of ids [N].

    Columns: order, step, dominant_cluster, dominant_share, n_clusters, mean_ranking_score, mean_sequence_words.
    """
    shape = (plan.steps, plan.prompts_per_step)
    tokens = np.asarray(prompt_tokens, dtype=float)[_rows_of(plan, ids)].reshape(shape)
    clusters, ranking = (plan.table[name].to_numpy().reshape(shape) for name in ("cluster", "ranking_score"))
    dominant = np.array(dominant_clusters(clusters))
    return pd.DataFrame(
        {
            "order": plan.order,
            "step": np.arange(plan.steps),
            "dominant_cluster": dominant,
            "dominant_share": (clusters == dominant[:, None]).mean(axis=1),
            "n_clusters": _distinct(clusters),
            "mean_ranking_score": ranking.mean(axis=1),
            "mean_sequence_words": tokens.mean(axis=1),
        }
    )


def _distinct(clusters: np.ndarray) -> np.ndarray:
    """Number of different clusters in each row of clusters [T, b], int [T]."""
    return 1 + np.count_nonzero(np.diff(np.sort(clusters, axis=1), axis=1), axis=1)


def _rows_of(plan: BatchPlan, ids: Ids) -> np.ndarray:
    """Row number in ids of each planned sample, by position."""
    row = rows_of(plan.table["sample_id"], ids)
    if (row < 0).any():
        unknown = plan.table["sample_id"][row < 0].tolist()
        raise PlanError(f"ids lacks {len(unknown)} planned samples, first {unknown[:3]}: pass the ids of the planned pool")
    return row
