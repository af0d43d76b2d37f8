"""Moderate mixing by tail swap, why a batch found its partner or none, and what the batches of a plan look like.

Two batches exchange their last h samples (paper, section 3). Partners must have similar mean ranking scores, similar mean
lengths and different dominant clusters. The paper says "within each stage", "a nearby curriculum stage" and "a local curriculum
window": a partner is at most `window_batches` of the finished order away, whatever its stage. Not stated in the paper; ours:
batches choose in training order, each swaps once at most, and of the admissible partners that with the fewest of its own wins, so
that few are left alone, then that with the closest mean score, then the earlier one.

`batch_facts` and `candidates` measure the same quantities for the audit of a sample (paper, section D.3). The paper's
in-batch diversity (Figure 3) is the mean distance to the k = 5 nearest neighbours inside a batch, in "a 2-D projection of
SAE space" that it does not name: here PCA, and beside it the full standardised space (not stated in the paper; ours).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from saerl_lib.config import PlanConfig
from saerl_lib.plan.batch_plan import Batches, BatchPlan, Ids, PlanError, rows_of
from saerl_lib.properties.probes import require_finite
from saerl_lib.report.statistics import bootstrap_interval

DIFFICULTY, LENGTH, CLUSTER = "difficulty too different", "length too different", "same dominant cluster"
"""How a candidate fails the paper's three conditions on a partner (section 3)."""
TAKEN = "already exchanged with another"
"""A batch exchanges its tail once at most (ours)."""
NEIGHBOURS = 5
"""k of the k-NN distance (paper, Figure 3)."""


@dataclass(frozen=True)
class BatchFacts:
    """T batches of the curriculum before the tail swap, as the partner search sees them; [T] each."""

    stage: np.ndarray
    ranking: np.ndarray
    """Mean ranking score, label units."""
    length: np.ndarray
    """Mean length of prompt and solution, words or tokens."""
    dominant: np.ndarray
    """Most frequent cluster."""
    n_clusters: np.ndarray


@dataclass(frozen=True)
class Candidate:
    """A batch of the window as a possible partner."""

    step: int
    dominant: int
    ranking_difference: float
    """|difference of mean ranking scores|, label units."""
    length_difference: float
    """Relative difference of mean lengths, a share."""
    failed: tuple[str, ...]
    """Conditions that it fails, in the words above; empty for an admissible partner."""


def dominant_clusters(clusters: np.ndarray) -> list[int]:
    """The most frequent cluster of each batch of clusters [T, b], the lowest number among equals.

    >>> dominant_clusters(np.array([[4, 2, 4, 2, 7], [7, 7, 2, 2, 7]]))
    [2, 7]
    """
    names, number = np.unique(clusters, return_inverse=True)
    number = number.reshape(clusters.shape) + len(names) * np.arange(len(clusters))[:, None]
    counts = np.bincount(number.ravel(), minlength=len(clusters) * len(names)).reshape(len(clusters), len(names))
    return names[counts.argmax(axis=1)].tolist()


def batch_facts(batches: Batches, clusters: np.ndarray, ranking: np.ndarray, lengths: np.ndarray) -> BatchFacts:
    """What a partner is chosen by; clusters, ranking and lengths (above 0) are [N], indexed by `Batches.rows`."""
    rows, inside = batches.rows, clusters[batches.rows]
    means = (values[rows].mean(axis=1).astype(np.float64) for values in (ranking, lengths))
    return BatchFacts(batches.stage, *means, np.array(dominant_clusters(inside)), _distinct(inside))


def mix_tails(
    batches: Batches, clusters: np.ndarray, ranking: np.ndarray, lengths: np.ndarray, config: PlanConfig
) -> tuple[Batches, np.ndarray]:
    """Exchange the last `swapped_per_batch` samples of admissible pairs; h = 0 changes nothing. Arrays as in `batch_facts`.

    Returns the batches, the partner's tail in the last h slots, and the step that each exchanged tails with, -1 for none, [T].
    """
    h, rows = config.swapped_per_batch, batches.rows.copy()
    partner = np.full(len(rows), -1, dtype=np.int64)
    if not h:
        return batches, partner
    facts, steps = batch_facts(batches, clusters, ranking, lengths), np.arange(len(rows))[:, None]
    others = steps + np.arange(1, config.window_batches + 1)  # the conditions are symmetric: earlier batches have chosen
    difference, _, met = _compared(steps, np.minimum(others, len(rows) - 1), facts, config)
    fits = np.logical_and.reduce([others < len(rows), *met.values()])
    choices = fits.sum(axis=1) + np.bincount(others[fits], minlength=len(rows))
    for i in range(len(rows)):
        free = np.flatnonzero(fits[i]) if partner[i] < 0 else np.empty(0, dtype=np.int64)
        free = free[partner[i + 1 + free] < 0]
        if len(free):
            j = i + 1 + free[np.lexsort((difference[i, free], choices[i + 1 + free]))[0]]
            partner[i], partner[j] = j, i
    paired = np.flatnonzero(partner >= 0)
    rows[paired, -h:] = batches.rows[partner[paired], -h:]
    return Batches(batches.stage, rows), partner


def _compared(
    step: int | np.ndarray, others: np.ndarray, facts: BatchFacts, config: PlanConfig
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Difference of the mean scores of steps and others, that of lengths as a share of the larger, and what is met."""
    ranking = np.abs(facts.ranking[step] - facts.ranking[others])
    longer = np.maximum(facts.length[step], facts.length[others])
    length = np.abs(facts.length[step] - facts.length[others]) / longer
    met = {DIFFICULTY: ranking <= config.difficulty_tolerance, LENGTH: length <= config.length_tolerance,
           CLUSTER: facts.dominant[step] != facts.dominant[others]}  # fmt: skip
    return ranking, length, met


def candidates(step: int, facts: BatchFacts, partner: np.ndarray, config: PlanConfig) -> list[Candidate]:
    """The other batches inside the window, closest mean ranking score first, with the conditions each fails.

    partner [T] is the step that each batch exchanged tails with, -1 for none. A batch without a partner has no candidate
    that fails nothing, for the conditions are symmetric: one of the two would have chosen the other.
    """
    away = np.abs(np.arange(len(facts.stage)) - step)
    others = np.flatnonzero((away > 0) & (away <= config.window_batches))
    ranking, length, met = _compared(step, others, facts, config)
    met[TAKEN] = np.isin(partner[others], (-1, step))
    return [
        Candidate(int(others[i]), int(facts.dominant[others[i]]), float(ranking[i]), float(length[i]),
                  tuple(name for name, values in met.items() if not values[i]))
        for i in np.argsort(ranking, kind="stable")
    ]  # fmt: skip


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
    distances = (np.linalg.norm(points[rows][:, None] - points[rows][None], axis=2) for rows in batches)
    return np.array([np.sort(d, axis=1)[:, 1 : min(k, b - 1) + 1].mean() for d in distances])  # the first is the sample itself


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
    return pd.DataFrame({
        "order": plan.order, "step": np.arange(plan.steps), "dominant_cluster": dominant,
        "dominant_share": (clusters == dominant[:, None]).mean(axis=1), "n_clusters": _distinct(clusters),
        "mean_ranking_score": ranking.mean(axis=1), "mean_sequence_words": tokens.mean(axis=1),
    })  # fmt: skip


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
