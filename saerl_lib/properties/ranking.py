"""How well a score ranks one class above another, with intervals from one set of resamples (ours).

ROC-AUC, average precision and the share caught by a cut, each as a function of integer weights: a bootstrap resample
is the vector of how often each sample was drawn. The scores are sorted once for all resamples, and every score that is
compared sees the same resamples. Axes: N samples, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from saerl_lib.properties import require_finite, require_rows


@dataclass(frozen=True)
class Estimate:
    """One value with the 2.5 % and 97.5 % percentiles of its resamples."""

    value: float
    low: float
    high: float


def bootstrap_weights(n: int, samples: int, seed: int) -> np.ndarray:
    """[1 + samples, n] how often each of n items is drawn: row 0 is all ones (the data), then resamples of n items.

    Raises ValueError for n = 0 or no resample.
    """
    if n < 1 or samples < 1:
        raise ValueError(f"n={n} items and samples={samples} resamples: both must be at least 1")
    drawn = np.random.default_rng(seed).integers(0, n, (samples, n)) + n * np.arange(samples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=samples * n).reshape(samples, n)
    return np.concatenate([np.ones((1, n)), counts])


def _ties_summed(scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of positives and of negatives [R, distinct scores], scores falling."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
    sorted_weights, positive = weights[:, order], is_positive[order]
    if len(starts) == len(order):  # no ties: nothing to sum
        return sorted_weights * positive, sorted_weights * ~positive
    return (
        np.add.reduceat(sorted_weights * positive, starts, axis=1),
        np.add.reduceat(sorted_weights * ~positive, starts, axis=1),
    )


def weighted_roc_auc(scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R] chance that a positive scores above a negative, ties half; NaN where a resample lacks a class.

    >>> weighted_roc_auc(np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False]), np.ones((1, 4)))
    array([0.75])
    """
    positive, negative = _ties_summed(scores, is_positive, weights)
    below = negative.sum(axis=1, keepdims=True) - np.cumsum(negative, axis=1)
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positive * (below + negative / 2)).sum(axis=1) / pairs


def weighted_average_precision(scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R] sum over distinct scores of precision times the recall gained there; NaN where a resample has no positive.

    >>> weighted_average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), np.ones((1, 3))).round(3)
    array([0.833])
    """
    positive, negative = _ties_summed(scores, is_positive, weights)
    hits = np.cumsum(positive, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(hits / (hits + np.cumsum(negative, axis=1)))
        return (precision * positive).sum(axis=1) / positive.sum(axis=1)


def weighted_share_dropped(scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray, keep_share: float) -> np.ndarray:
    """[R] share of the positives among the dropped when the `keep_share` of lowest scores is kept; ties share the cut.

    >>> weighted_share_dropped(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]), np.ones((1, 4)), 0.5)
    array([0.5])
    """
    positive, negative = _ties_summed(scores, is_positive, weights)
    group = positive + negative
    room = (1 - keep_share) * group.sum(axis=1, keepdims=True) - (np.cumsum(group, axis=1) - group)
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = np.nan_to_num(np.clip(room / group, 0.0, 1.0))
        return (positive * inside).sum(axis=1) / positive.sum(axis=1)


def estimate(values: np.ndarray) -> Estimate:
    """The value of row 0 and the percentiles of the other rows of values [1 + R]; undefined resamples are left out."""
    if not np.isfinite(values[1:]).any():
        raise ValueError("the metric is undefined on every bootstrap resample: pass more samples of the rarer class")
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return Estimate(float(values[0]), float(low), float(high))


def _checked(scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    require_rows(scores=scores, is_positive=is_positive, weights=weights.T)
    require_finite("scores", scores)
    is_positive = np.asarray(is_positive, dtype=bool)
    if is_positive.all() or not is_positive.any():
        raise ValueError("is_positive holds a single class: a ranking is undefined; pass samples of both classes")
    return np.asarray(scores, dtype=np.float64), is_positive


def rank_metrics(scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> dict[str, Estimate]:
    """roc_auc and average_precision of scores [N], larger for positives; `weights` from `bootstrap_weights(N, ...)`.

    Raises ValueError for unequal rows, non-finite scores or a single class.
    """
    scores, is_positive = _checked(scores, is_positive, weights)
    metrics: dict[str, Callable[..., np.ndarray]] = {
        "roc_auc": weighted_roc_auc,
        "average_precision": weighted_average_precision,
    }
    return {name: estimate(metric(scores, is_positive, weights)) for name, metric in metrics.items()}


def dropped_share(scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray, keep_share: float) -> Estimate:
    """Share of the positives that a cut drops which keeps the `keep_share` (0..1) of lowest scores; errors as above."""
    scores, is_positive = _checked(scores, is_positive, weights)
    if not 0.0 <= keep_share <= 1.0:
        raise ValueError(f"keep_share={keep_share} must lie in 0..1")
    return estimate(weighted_share_dropped(scores, is_positive, weights, keep_share))
