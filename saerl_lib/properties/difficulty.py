"""Calibrated difficulty: elastic net, global map g, shrunken cluster residual (paper, section 3.3, equation 10).

    r = g(d_hat) + lambda_c * Delta_c,   lambda_c = n_c / (n_c + tau),   larger is harder

The paper fits g on the labelled subset L and leaves its form open. Here g and Delta_c are fitted on out-of-fold
predictions of L: in-sample predictions lie closer to the labels than those of new samples, so g would be too steep and
Delta_c too small (not stated in the paper; ours). An isotonic g is flat in places, hence `Scores` keeps d_hat for ties.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.base import clone
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import Pipeline

from saerl_lib.config import PropertyConfig
from saerl_lib.properties import require_finite, require_rows
from saerl_lib.properties.probes import fit_elastic_net
from saerl_lib.properties.rows import by_chunks


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
    calibration: IsotonicRegression | LinearRegression
    """g."""
    corrections: Corrections
    out_of_fold: Scores
    """Scores of L itself, d_hat predicted by folds that did not see the sample."""

    def predict(self, phi: np.ndarray, clusters: np.ndarray) -> Scores:
        """Scores of phi [N, D], read by chunks, whose clusters are [N].

        Raises ValueError for non-finite phi or an unknown cluster.
        """
        require_rows(phi=phi, clusters=clusters)
        raw = by_chunks("phi", phi, self.predictor.predict)
        return rank(raw, _apply(self.calibration, raw), clusters, self.corrections)


def cluster_corrections(residuals: np.ndarray, clusters: np.ndarray, k: int, tau: float) -> Corrections:
    """Delta_c and lambda_c from residuals d* - g(d_hat) [N] of labelled samples in clusters [N] (equation 10).

    >>> c = cluster_corrections(np.array([1.0, 3.0, -1.0]), np.array([0, 0, 1]), k=3, tau=2.0)
    >>> c.residual.tolist(), c.shrinkage.round(3).tolist()
    ([2.0, -1.0, 0.0], [0.5, 0.333, 0.0])
    """
    clusters = _known_clusters(clusters, k)
    n = np.bincount(clusters, minlength=k)
    residual = np.bincount(clusters, weights=residuals, minlength=k) / np.maximum(n, 1)
    return Corrections(n, residual, n / (n + tau))


def rank(raw: np.ndarray, calibrated: np.ndarray, clusters: np.ndarray, corrections: Corrections) -> Scores:
    """Equation 10 for N samples. Raises ValueError for a cluster that the corrections do not hold."""
    clusters = _known_clusters(clusters, len(corrections.residual))
    return Scores(raw, calibrated, calibrated + (corrections.shrinkage * corrections.residual)[clusters])


def fit_difficulty(
    phi: np.ndarray, labels: np.ndarray, clusters: np.ndarray, k: int, config: PropertyConfig, seed: int,
    tuned: Pipeline | None = None,
) -> DifficultyModel:
    """Fit f_D, g and the corrections on L: phi [N, D], difficulty labels [N], clusters [N] below k.

    `tuned` is a pipeline of `fit_elastic_net` whose penalties are taken over and fitted anew; without it they are tuned.
    Raises ValueError for non-finite phi or labels, unequal rows, an unknown cluster or fewer samples than folds.
    """
    require_rows(phi=phi, labels=labels, clusters=clusters)
    labels = np.asarray(labels, dtype=np.float64)
    if tuned is None:
        predictor = fit_elastic_net(phi, labels, config, seed)
    else:
        require_finite("phi", phi)
        predictor = clone(tuned).fit(np.asarray(phi, dtype=np.float64), labels)
    folds = KFold(config.cv_folds, shuffle=True, random_state=seed)
    raw = cross_val_predict(clone(predictor), np.asarray(phi, dtype=np.float64), labels, cv=folds)
    calibration = IsotonicRegression(out_of_bounds="clip") if config.calibration == "isotonic" else LinearRegression()
    calibration.fit(raw[:, None], labels)
    calibrated = _apply(calibration, raw)
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


def _apply(calibration: IsotonicRegression | LinearRegression, raw: np.ndarray) -> np.ndarray:
    return np.asarray(calibration.predict(raw[:, None]), dtype=np.float64)


def _known_clusters(clusters: np.ndarray, k: int) -> np.ndarray:
    clusters = np.asarray(clusters, dtype=np.int64)
    if clusters.size and not 0 <= clusters.min() <= clusters.max() < k:
        raise ValueError(
            f"clusters holds values from {clusters.min()} to {clusters.max()}, known are 0 to {k - 1}: "
            "assign with the fitted Clusters"
        )
    return clusters
