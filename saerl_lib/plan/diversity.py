"""What the batches of a plan look like: in-batch diversity and composition (paper, Figure 3 and section D).

The paper's diversity is the mean distance to the k = 5 nearest neighbours inside a batch, in "a 2-D projection of SAE
space" that it does not name: here PCA, and beside it the full standardised space (not stated in the paper; ours).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from saerl_lib.plan.batch_plan import BatchPlan, PlanError
from saerl_lib.plan.mixing import dominant_cluster
from saerl_lib.properties import require_finite
from saerl_lib.report.statistics import bootstrap_interval

NEIGHBOURS = 5
"""k of the k-NN distance (paper, Figure 3)."""


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
    plan: BatchPlan, ids: Sequence[str], spaces: Mapping[str, np.ndarray], bootstrap_samples: int, seed: int
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


def composition_rows(plan: BatchPlan, ids: Sequence[str], prompt_tokens: np.ndarray) -> pd.DataFrame:
    """Rows of `batch_composition.csv`, one a step; prompt_tokens [N] in the order of ids [N].

    Columns: order, step, dominant_cluster, dominant_share, n_clusters, mean_ranking_score, mean_sequence_words.
    """
    tokens = np.asarray(prompt_tokens, dtype=float)[_rows_of(plan, ids)]
    rows = []
    for step, batch in plan.table.groupby("step"):
        clusters = batch["cluster"].to_numpy()
        dominant = dominant_cluster(clusters)
        rows.append(
            {
                "order": plan.order,
                "step": int(step),
                "dominant_cluster": dominant,
                "dominant_share": float((clusters == dominant).mean()),
                "n_clusters": len(np.unique(clusters)),
                "mean_ranking_score": float(batch["ranking_score"].mean()),
                "mean_sequence_words": float(tokens[batch["position"].to_numpy()].mean()),
            }
        )
    return pd.DataFrame(rows)


def _rows_of(plan: BatchPlan, ids: Sequence[str]) -> np.ndarray:
    """Row number in ids of each planned sample, by position."""
    row = {name: number for number, name in enumerate(np.asarray(ids, dtype=str).tolist())}
    unknown = [name for name in plan.ids if name not in row]
    if unknown:
        raise PlanError(f"ids lacks {len(unknown)} planned samples, first {unknown[:3]}: pass the ids of the planned pool")
    return np.array([row[name] for name in plan.ids])
