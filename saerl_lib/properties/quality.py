"""The quality filter: a linear source classifier on z, and the rules that cut the pool (paper, equation 6, section B.4, Table 6).

The positive class is membership of the target source, so "quality" is a source label. It is trained on a labelled
split of its own, never on the pool that it filters. Scaling, penalty and averaging are not stated in the paper; ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import expit
from sklearn.linear_model import SGDClassifier
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from saerl_lib.properties.clusters import by_chunks
from saerl_lib.properties.probes import Matrix, mean_squared_row_norm, require_finite, require_rows, scaler_for
from saerl_lib.report.statistics import bootstrap_weights, rank_metrics

PENALTY = 1e-4
"""alpha of SGDClassifier, for rows of mean squared norm 1 (scikit-learn's default; not stated in the paper; ours)."""
PERCENTILES = {"p95": 95.0, "p99": 99.0}
"""Threshold rules of Table 6, read as percentiles of the scores of held-out negatives (paper: "of which distribution" open)."""
PAPER_TABLE_6 = {
    "full": (0.4905, 1.0),
    "p95": (0.9537, 0.9546),
    "p99": (0.9898, 0.8422),
    "top_50k_share": (0.9992, 0.4850),
    "top_90k_share": (0.9873, 0.8625),
}
"""rule -> (purity, recall) in the paper, as shares."""
PAPER_POOL = 210_043
"""Samples of the paper's noisy pool."""


@dataclass(frozen=True)
class SourceClassifier:
    """s = sigmoid(w.z + b) on standardised z (paper, equation 6). Standardised rows are divided by `norm`, else the steps of SGD
    are too long and scores saturate at exactly 0 and 1."""

    scaler: StandardScaler | FunctionTransformer
    """The identity for sparse z, and where standardising was not wanted."""
    norm: float
    """Root mean squared norm of a standardised training row."""
    classifier: SGDClassifier

    def log_odds(self, z: Matrix) -> np.ndarray:
        """w.z + b of z [N, D], larger is more like the target; dense z by chunks. Raises ValueError for non-finite z."""

        def read(rows: Matrix) -> np.ndarray:
            return self.classifier.decision_function(self.scaler.transform(rows) / self.norm)

        if not sparse.issparse(z):
            return by_chunks("z", z, read)
        require_finite("z", z)
        return read(z.astype(np.float64))

    def score(self, z: Matrix) -> np.ndarray:
        """Scores in [0, 1] of z [N, D]. Raises ValueError for non-finite z."""
        return expit(self.log_odds(z))


def fit_source_classifier(
    z: Matrix, is_target: np.ndarray, seed: int, penalty: float = PENALTY, standardise: bool = True
) -> SourceClassifier:
    """Logistic SGD with averaged weights on z [N, D] against is_target [N]. Dense features are standardised unless `standardise`
    is False; sparse ones never are. Raises ValueError for non-finite z, unequal rows or a single class."""
    require_rows(z=z, is_target=is_target)
    require_finite("z", z)
    is_target = np.asarray(is_target, dtype=bool)
    if is_target.all() or not is_target.any():
        raise ValueError("is_target holds a single class: the source classifier needs target and parent samples")
    scaler = scaler_for(z, standardise)
    points = scaler.fit_transform(z.astype(np.float64))
    norm = mean_squared_row_norm(points) ** 0.5
    classifier = SGDClassifier(loss="log_loss", alpha=penalty, average=True, random_state=seed)
    return SourceClassifier(scaler, norm, classifier.fit(points / norm, is_target))


def keep_top_k(scores: np.ndarray, ids: Sequence[str], k: int) -> np.ndarray:
    """Mask bool [N] of the k largest scores; equal scores are taken in ascending order of id. Raises ValueError for k outside
    1..N or non-finite scores."""
    require_rows(scores=scores, ids=ids)
    require_finite("scores", scores)
    names = np.asarray(ids, dtype=str)
    if not 1 <= k <= len(names):
        raise ValueError(
            f"k={k} must lie between 1 and the {len(names)} samples of the pool: lower pool_samples or enlarge the pool"
        )
    keep = np.zeros(len(names), dtype=bool)
    keep[np.lexsort((names, -np.asarray(scores, dtype=float)))[:k]] = True
    return keep


def filter_table(
    scores: np.ndarray, ids: Sequence[str], is_target: np.ndarray, negative_scores: np.ndarray, top_k: Mapping[str, int]
) -> pd.DataFrame:
    """Rows of `filter.csv`: rule, kept, n_pool, target_kept, purity, recall, paper_purity, paper_recall (shares in [0, 1]).
    Rules: the full pool, score >= each of `PERCENTILES` of the negative scores, each name -> k of `top_k`. Purity is NaN when a
    rule keeps nothing; the paper's columns are NaN for a rule that it does not have."""
    if not is_target.any():
        raise ValueError("is_target marks no sample of the pool: recall is undefined")
    masks = {"full": np.ones(len(scores), dtype=bool)}
    masks |= {rule: scores >= np.percentile(negative_scores, percentile) for rule, percentile in PERCENTILES.items()}
    masks |= {rule: keep_top_k(scores, ids, k) for rule, k in top_k.items()}
    rows = []
    for rule, keep in masks.items():
        kept, target_kept = int(keep.sum()), int((keep & is_target).sum())
        purity = target_kept / kept if kept else np.nan
        recall = target_kept / int(is_target.sum())
        rows.append((rule, kept, len(scores), target_kept, purity, recall, *PAPER_TABLE_6.get(rule, (np.nan, np.nan))))
    columns = ["rule", "kept", "n_pool", "target_kept", "purity", "recall", "paper_purity", "paper_recall"]
    return pd.DataFrame(rows, columns=columns)


def paper_share_k(n_pool: int) -> dict[str, int]:
    """The paper's top 50k and top 90k as the same shares of a pool of n_pool samples.

    >>> paper_share_k(2100)
    {'top_50k_share': 500, 'top_90k_share': 900}
    """
    return {f"top_{k}k_share": max(1, round(n_pool * k * 1000 / PAPER_POOL)) for k in (50, 90)}


def separation_table(scores: np.ndarray, is_target: np.ndarray, samples: int, seed: int) -> pd.DataFrame:
    """metric, value, ci_low, ci_high, n_test: ROC-AUC and average precision of scores [N], with 95 % bootstrap intervals (paper:
    0.9911 and 0.9910)."""
    found = rank_metrics(scores, is_target, bootstrap_weights(len(scores), samples, seed))
    rows = [(metric, *interval, len(scores)) for metric, interval in found.items()]
    return pd.DataFrame(rows, columns=["metric", "value", "ci_low", "ci_high", "n_test"])
