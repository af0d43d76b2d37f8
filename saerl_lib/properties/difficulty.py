"""Calibrated difficulty: elastic net, global map g, shrunken cluster residual, and an interval (paper, section 3.3, equation 10).

    r = g(d_hat) + lambda_c * Delta_c,   lambda_c = n_c / (n_c + tau),   larger is harder

The paper fits g on the labelled subset L and leaves its form open. Here g and Delta_c are fitted on out-of-fold
predictions of L: in-sample predictions lie closer to the labels than those of new samples, so g would be too steep and
Delta_c too small (not stated in the paper; ours). An isotonic g is flat in places, hence `Scores` keeps d_hat for ties.

The interval is r +- width (ours; the paper gives none): width = the ceil((n + 1) * level)-th smallest absolute residual of n
labelled samples, as in split-conformal prediction. The folds' models differ from the final one and the corrections saw the same
labels, so the guarantee holds only nearly: `coverage_table` measures it on held-out samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.base import clone
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import Pipeline

from saerl_lib.config import PropertyConfig
from saerl_lib.properties.clusters import by_chunks
from saerl_lib.properties.probes import FOLDS, fit_elastic_net, require_finite, require_rows
from saerl_lib.report.statistics import wilson_interval


@dataclass(frozen=True)
class Corrections:
    """Cluster part of equation 10, one entry a cluster."""

    n_labelled: np.ndarray
    """n_c, labelled samples, int [K]."""
    residual: np.ndarray
    """Delta_c, mean of label minus g(d_hat); 0 without labels, float [K]."""
    shrinkage: np.ndarray
    """lambda_c in [0, 1), float [K]."""


@dataclass(frozen=True)
class Scores:
    """Difficulty of N samples, float [N] each, in label units; larger is harder."""

    raw: np.ndarray
    """d_hat, the prediction of the elastic net."""
    calibrated_global: np.ndarray
    """g(d_hat)."""
    ranking: np.ndarray
    """r of equation 10."""


@dataclass(frozen=True)
class DifficultyModel:
    """Fitted on L alone."""

    predictor: Pipeline
    """f_D: standardisation and elastic net."""
    calibration: IsotonicRegression
    """g."""
    corrections: Corrections
    out_of_fold: Scores
    """Scores of L itself, d_hat predicted by folds that did not see the sample."""

    def predict(self, phi: np.ndarray, clusters: np.ndarray) -> Scores:
        """Scores of phi [N, D], read by chunks, whose clusters are [N].

        Raises ValueError for non-finite phi.
        """
        require_rows(phi=phi, clusters=clusters)
        raw = by_chunks("phi", phi, self.predictor.predict)
        return rank(raw, self.calibration.predict(raw[:, None]), clusters, self.corrections)


def cluster_corrections(residuals: np.ndarray, clusters: np.ndarray, k: int, tau: float) -> Corrections:
    """Delta_c and lambda_c from residuals d* - g(d_hat) [N] of labelled samples in clusters [N] (equation 10).

    >>> c = cluster_corrections(np.array([1.0, 3.0, -1.0]), np.array([0, 0, 1]), k=3, tau=2.0)
    >>> c.residual.tolist(), c.shrinkage.round(3).tolist()
    ([2.0, -1.0, 0.0], [0.5, 0.333, 0.0])
    """
    n = np.bincount(clusters, minlength=k)
    residual = np.bincount(clusters, weights=residuals, minlength=k) / np.maximum(n, 1)
    return Corrections(n, residual, n / (n + tau))


def rank(raw: np.ndarray, calibrated: np.ndarray, clusters: np.ndarray, corrections: Corrections) -> Scores:
    """Equation 10 for N samples, whose clusters [N] lie below K."""
    return Scores(raw, calibrated, calibrated + (corrections.shrinkage * corrections.residual)[clusters])


def fit_difficulty(
    phi: np.ndarray, labels: np.ndarray, clusters: np.ndarray, k: int, config: PropertyConfig, seed: int
) -> DifficultyModel:
    """Fit f_D, g and the corrections on L: phi [N, D], difficulty labels [N], clusters [N] below k.

    Raises ValueError for non-finite phi or labels, unequal rows or fewer samples than folds.
    """
    require_rows(phi=phi, labels=labels, clusters=clusters)
    labels = np.asarray(labels, dtype=np.float64)
    predictor = fit_elastic_net(phi, labels, config, seed)
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    raw = cross_val_predict(clone(predictor), np.asarray(phi, dtype=np.float64), labels, cv=folds)
    calibration = IsotonicRegression(out_of_bounds="clip").fit(raw[:, None], labels)
    calibrated = calibration.predict(raw[:, None])
    corrections = cluster_corrections(labels - calibrated, clusters, k, config.shrinkage_tau)
    return DifficultyModel(predictor, calibration, corrections, rank(raw, calibrated, clusters, corrections))


def with_clusters(model: DifficultyModel, labels: np.ndarray, clusters: np.ndarray, k: int, tau: float) -> DifficultyModel:
    """The same f_D and g with the corrections of other clusters [N] of L, or of another tau_sh; labels [N] of L.

    d_hat and g do not depend on the clusters, so nothing else is fitted again.
    """
    found = model.out_of_fold
    corrections = cluster_corrections(np.asarray(labels, dtype=float) - found.calibrated_global, clusters, k, tau)
    scores = rank(found.raw, found.calibrated_global, clusters, corrections)
    return replace(model, corrections=corrections, out_of_fold=scores)


def reliability_table(score: str, predicted: np.ndarray, labels: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """Rows of `calibration.csv`: score, bin, n, predicted_mean, label_mean, ci_low, ci_high of held-out samples [N].

    Bins are quantiles of the prediction; equal predictions share a bin, so there may be fewer than `bins`.
    The interval is the 95 % t-interval of the label mean, NaN for a bin of one sample.
    """
    require_rows(predicted=predicted, labels=labels)
    predicted, labels = np.asarray(predicted, dtype=float), np.asarray(labels, dtype=float)
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    edges = np.unique(np.quantile(predicted, inner, method="inverted_cdf"))
    place = np.searchsorted(edges, predicted, side="left")
    rows = []
    for number in np.unique(place):
        inside = labels[place == number]
        n, mean = len(inside), float(inside.mean())
        half = stats.t.ppf(0.975, n - 1) * inside.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
        rows.append((score, int(number), n, float(predicted[place == number].mean()), mean, mean - half, mean + half))
    return pd.DataFrame(rows, columns=["score", "bin", "n", "predicted_mean", "label_mean", "ci_low", "ci_high"])


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

    Raises ValueError for no or non-finite residuals.
    """
    require_rows(residuals=residuals)
    require_finite("residuals", residuals)
    place = math.ceil((len(residuals) + 1) * level - 1e-9)
    return float(np.sort(np.abs(residuals))[place - 1]) if place <= len(residuals) else math.inf


def cluster_half_widths(residuals: np.ndarray, clusters: np.ndarray, k: int) -> HalfWidths:
    """Half-widths of K clusters from residuals [N] of labelled samples in clusters [N]; small clusters take that of all."""
    require_rows(residuals=residuals, clusters=clusters)
    counts = np.bincount(clusters, minlength=k)
    own, everywhere = counts >= MIN_LABELS, conformal_half_width(residuals)
    width = [conformal_half_width(residuals[clusters == c]) if own[c] else everywhere for c in range(k)]
    return HalfWidths(np.array(width), np.where(own, counts, len(residuals)), own)


def coverage_table(scores: np.ndarray, labels: np.ndarray, clusters: np.ndarray, widths: HalfWidths) -> pd.DataFrame:
    """How many held-out labels [N] lie in scores [N] +- width: cluster, half_width, n_residuals, residuals_of, n_test,
    coverage, ci_low, ci_high (Wilson, 95 %), level; the last row is 'all'. Clusters without a test sample are left out."""
    require_rows(scores=scores, labels=labels, clusters=clusters)
    inside = np.abs(labels - scores) <= widths.width[clusters]
    rows = [
        (str(c), widths.width[c], int(widths.n[c]), "cluster" if widths.own[c] else "all", inside[clusters == c])
        for c in np.unique(clusters).tolist()
    ]
    rows.append(("all", float(widths.width[clusters].mean()), int(widths.n.max()), "mixed", inside))
    counted = [(*row, len(hits), *wilson_interval(int(hits.sum()), len(hits)), LEVEL) for *row, hits in rows]
    columns = ["cluster", "half_width", "n_residuals", "residuals_of", "n_test", "coverage", "ci_low", "ci_high", "level"]
    return pd.DataFrame(counted, columns=columns)
