"""Difficulty of a sample: an elastic net, calibrated globally and by cluster, with an interval (paper, section 3.3, equation 10).

    r = g(d_hat) + lambda_c * Delta_c,   lambda_c = n_c / (n_c + tau),   larger is harder

g is isotonic; g and Delta_c are fitted on out-of-fold predictions of L, as in-sample ones lie too close to the labels (both
ours). g is flat in places, hence d_hat is kept for ties. The interval is r +- width, as in split-conformal prediction (ours);
the guarantee holds only nearly, so `coverage_table` measures it.
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
from saerl_lib.properties.probes import FOLDS, fit_elastic_net, require_rows
from saerl_lib.report.statistics import wilson_interval


@dataclass(frozen=True)
class DifficultyModel:
    """Fitted on L alone."""

    predictor: Pipeline
    """f_D: standardisation and elastic net."""
    calibration: IsotonicRegression
    """g."""
    corrections: pd.DataFrame
    """Of `cluster_corrections`."""
    out_of_fold: pd.DataFrame
    """Of `rank`, scores of L itself, d_hat predicted by folds that did not see the sample."""

    def predict(self, phi: np.ndarray, clusters: np.ndarray) -> pd.DataFrame:
        """`rank` of phi [N, D], read by chunks, whose clusters are [N]. Raises ValueError for non-finite phi."""
        raw = by_chunks("phi", phi, self.predictor.predict)
        return rank(raw, self.calibration.predict(raw[:, None]), clusters, self.corrections)


def cluster_corrections(residuals: np.ndarray, clusters: np.ndarray, k: int, tau: float) -> pd.DataFrame:
    """The cluster part of equation 10, a row each of K clusters: n_labelled (n_c), residual (Delta_c, the mean residual
    d* - g(d_hat) [N] of labelled samples in clusters [N], 0 without labels) and shrinkage (lambda_c in [0, 1))."""
    n = np.bincount(clusters, minlength=k)
    residual = np.bincount(clusters, weights=residuals, minlength=k) / np.maximum(n, 1)
    return pd.DataFrame({"n_labelled": n, "residual": residual, "shrinkage": n / (n + tau)})


def rank(raw: np.ndarray, calibrated: np.ndarray, clusters: np.ndarray, corrections: pd.DataFrame) -> pd.DataFrame:
    """Equation 10 for N samples, whose clusters [N] lie below K: raw (d_hat), calibrated (g(d_hat)), ranking (r), label units."""
    correction = (corrections["shrinkage"] * corrections["residual"]).to_numpy()[clusters]
    return pd.DataFrame({"raw": raw, "calibrated": calibrated, "ranking": calibrated + correction})


def fit_difficulty(
    phi: np.ndarray, labels: np.ndarray, clusters: np.ndarray, k: int, config: PropertyConfig, seed: int
) -> DifficultyModel:
    """Fit f_D, g and the corrections on L: phi [N, D], difficulty labels [N], clusters [N] below k. Raises ValueError for
    non-finite phi or labels, unequal rows or fewer samples than folds."""
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
    """The same f_D and g with the corrections of other clusters [N] of L, or of another tau_sh; labels [N] of L. d_hat and g do
    not depend on the clusters, so nothing else is fitted again."""
    raw, calibrated = (model.out_of_fold[name].to_numpy() for name in ("raw", "calibrated"))
    corrections = cluster_corrections(np.asarray(labels, dtype=float) - calibrated, clusters, k, tau)
    return replace(model, corrections=corrections, out_of_fold=rank(raw, calibrated, clusters, corrections))


def reliability_table(score: str, predicted: np.ndarray, labels: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """Rows of `calibration.csv`: score, bin, n, predicted_mean, label_mean, ci_low, ci_high of held-out samples [N]. Bins are
    quantiles of the prediction; equal predictions share a bin, so there may be fewer than `bins`. The interval is the 95 %
    t-interval of the label mean, NaN for a bin of one sample."""
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


def conformal_half_width(residuals: np.ndarray, level: float = LEVEL) -> float:
    """Half-width of an interval that covers a new sample with probability `level` when residuals [n] are exchangeable. Infinite
    when n is below level / (1 - level)."""
    place = math.ceil((len(residuals) + 1) * level - 1e-9)
    return float(np.sort(np.abs(residuals))[place - 1]) if place <= len(residuals) else math.inf


def cluster_half_widths(residuals: np.ndarray, clusters: np.ndarray, k: int) -> pd.DataFrame:
    """Half-widths of the intervals r +- width of K clusters from residuals [N] of labelled samples in clusters [N]. Columns width
    (label units, infinite when there are too few labels for the level), n (residuals behind it) and own: whether they are those
    of the cluster alone; small clusters take the half-width of all."""
    counts = np.bincount(clusters, minlength=k)
    own, everywhere = counts >= MIN_LABELS, conformal_half_width(residuals)
    width = [conformal_half_width(residuals[clusters == c]) if own[c] else everywhere for c in range(k)]
    return pd.DataFrame({"width": width, "n": np.where(own, counts, len(residuals)), "own": own})


def coverage_table(scores: np.ndarray, labels: np.ndarray, clusters: np.ndarray, widths: pd.DataFrame) -> pd.DataFrame:
    """How many held-out labels [N] lie in scores [N] +- width: cluster, half_width, n_residuals, residuals_of, n_test,
    coverage, ci_low, ci_high (Wilson, 95 %), level; the last row is 'all'. Clusters without a test sample are left out."""
    inside = np.abs(labels - scores) <= widths["width"].to_numpy()[clusters]
    rows = [
        (str(w.Index), w.width, w.n, "cluster" if w.own else "all", inside[clusters == w.Index])
        for w in widths.loc[np.unique(clusters)].itertuples()
    ]
    rows.append(("all", float(widths["width"].to_numpy()[clusters].mean()), int(widths["n"].max()), "mixed", inside))
    counted = [(*row, len(hits), *wilson_interval(int(hits.sum()), len(hits)), LEVEL) for *row, hits in rows]
    columns = ["cluster", "half_width", "n_residuals", "residuals_of", "n_test", "coverage", "ci_low", "ci_high", "level"]
    return pd.DataFrame(counted, columns=columns)
