"""An interval for a difficulty score from the residuals of labelled samples (ours; the paper gives none).

Half-width = the ceil((n + 1) * level)-th smallest absolute residual of n labelled samples, as in split-conformal
prediction. The residuals are those of out-of-fold scores of L, so that no label helped to predict itself. As the folds'
models differ from the final one and the corrections of equation 10 saw the same labels, the guarantee of split-conformal
prediction holds only nearly: `coverage_table` measures it on held-out samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from saerl_lib.properties import require_finite, require_rows
from saerl_lib.report.statistics import wilson_interval

LEVEL = 0.95
"""Nominal coverage (not stated in the paper; ours)."""
MIN_LABELS = 50
"""A cluster with fewer labelled samples takes the half-width of all of L (not stated in the paper; ours)."""


@dataclass(frozen=True)
class HalfWidths:
    """Half-widths of the interval r +- width, one a cluster."""

    width: np.ndarray
    """Label units, infinite when there are too few labels for the level, float [K]."""
    n: np.ndarray
    """Residuals behind each width, int [K]."""
    own: np.ndarray
    """Whether the residuals are those of the cluster alone, bool [K]."""


def conformal_half_width(residuals: np.ndarray, level: float = LEVEL) -> float:
    """Half-width of an interval that covers a new sample with probability `level` when residuals [n] are exchangeable.

    Infinite when n is below level / (1 - level).

    >>> conformal_half_width(np.array([-1.0, 2.0, 3.0, -4.0]), level=0.8), conformal_half_width(np.array([1.0]), level=0.8)
    (4.0, inf)

    Raises ValueError for no or non-finite residuals or a level outside (0, 1).
    """
    residuals = np.asarray(residuals, dtype=float)
    require_rows(residuals=residuals)
    require_finite("residuals", residuals)
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie strictly between 0 and 1")
    place = math.ceil((len(residuals) + 1) * level - 1e-9)
    return float(np.sort(np.abs(residuals))[place - 1]) if place <= len(residuals) else math.inf


def cluster_half_widths(
    residuals: np.ndarray, clusters: np.ndarray, k: int, level: float = LEVEL, min_labels: int = MIN_LABELS
) -> HalfWidths:
    """Half-widths of K clusters from residuals [N] of labelled samples in clusters [N]; small clusters take that of all."""
    require_rows(residuals=residuals, clusters=clusters)
    residuals, clusters = np.asarray(residuals, dtype=float), np.asarray(clusters)
    counts = np.bincount(clusters, minlength=k)
    own = counts >= min_labels
    everywhere = conformal_half_width(residuals, level)
    width = [conformal_half_width(residuals[clusters == c], level) if own[c] else everywhere for c in range(k)]
    return HalfWidths(np.array(width), np.where(own, counts, len(residuals)), own)


def coverage_table(
    scores: np.ndarray, labels: np.ndarray, clusters: np.ndarray, widths: HalfWidths, level: float = LEVEL
) -> pd.DataFrame:
    """How many held-out labels [N] lie in scores [N] +- width: cluster, half_width, n_residuals, residuals_of, n_test,
    coverage, ci_low, ci_high (Wilson, 95 %), level; the last row is 'all'. Clusters without a test sample are left out."""
    require_rows(scores=scores, labels=labels, clusters=clusters)
    clusters = np.asarray(clusters)
    inside = np.abs(np.asarray(labels, dtype=float) - np.asarray(scores, dtype=float)) <= widths.width[clusters]
    rows = []
    for c in np.unique(clusters).tolist():
        hits, n = int(inside[clusters == c].sum()), int((clusters == c).sum())
        origin = "cluster" if widths.own[c] else "all"
        rows.append((str(c), widths.width[c], int(widths.n[c]), origin, n, *wilson_interval(hits, n), level))
    mean = float(widths.width[clusters].mean())
    hits, n = int(inside.sum()), len(inside)
    rows.append(("all", mean, int(widths.n.max()), "mixed", n, *wilson_interval(hits, n), level))
    columns = ["cluster", "half_width", "n_residuals", "residuals_of", "n_test", "coverage", "ci_low", "ci_high", "level"]
    return pd.DataFrame(rows, columns=columns)
