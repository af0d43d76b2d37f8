"""What is left of a probe when latents tied to length or style are suppressed (ours, after the idea of SelfReg).

SelfReg (arXiv 2502.14133) lets a language model name unintended SAE latents and penalises a classifier that leans on
them. Here metadata (lengths, counts, shares of signs) says what is unintended, so no judge is needed: a column of z counts as
tied in the measure R^2 in which a linear regression on metadata explains it. Three suppressions, fitted on training samples
alone:

- scaled: standardised columns times 1 - R^2, which raises the penalty on tied columns;
- dropped: the half of the columns with the largest R^2 is set to zero;
- residual: the linear prediction from metadata is taken away from each column.

Each has a random twin of the same size. Metadata also holds what the problem is about (largest number, operators), so
the fall is an upper bound on what style alone carried. Axes: N samples, D features, M metadata.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.preprocessing import StandardScaler

from saerl_lib.config import PropertyConfig, sub_seed
from saerl_lib.properties import require_finite, require_rows
from saerl_lib.properties.flaws import sgd_scores
from saerl_lib.report.statistics import Interval, bootstrap_weights, rank_metrics, weighted_interval

COLUMNS = ("dataset", "target", "variant", "metric", "value", "ci_low", "ci_high", "n_test")
"""Columns of filter_selfreg.csv."""
VARIANTS = (
    "plain", "scaled", "scaled_random", "dropped", "dropped_random", "residual", "residual_random", "metadata_only"
)  # fmt: skip
DROPPED_SHARE = 0.5
"""Share of the columns that the variant `dropped` sets to zero (ours)."""


@dataclass(frozen=True)
class Target:
    """What the score of a probe is measured against."""

    labels: np.ndarray
    """[N test] bool."""
    mask: np.ndarray
    """[N test] bool, samples that it is measured on."""
    sign: float = 1.0
    """-1 where a small score speaks for the label."""


@dataclass(frozen=True)
class Suppression:
    """Linear regression of every standardised column of z on standardised covariates."""

    scaler: StandardScaler
    covariate_scaler: StandardScaler
    coefficients: np.ndarray
    """[M, D]"""
    explained: np.ndarray
    """[D] adjusted R^2 on the training samples, cut to 0..1."""

    def scaled(self, z: np.ndarray) -> np.ndarray:
        """[N, D] standardised z, each column times 1 - R^2."""
        return self.scaler.transform(z.astype(np.float64)) * (1.0 - self.explained)

    def untied(self) -> np.ndarray:
        """[D] bool, False for the `DROPPED_SHARE` of columns with the largest R^2, the later ones among equals."""
        rank = np.argsort(np.argsort(self.explained, kind="stable"), kind="stable")
        return rank < round((1 - DROPPED_SHARE) * len(rank))

    def residual(self, z: np.ndarray, covariates: np.ndarray) -> np.ndarray:
        """[N, D] standardised z without its linear prediction from covariates [N, M]; not standardised again."""
        predicted = self.covariate_scaler.transform(covariates.astype(np.float64)) @ self.coefficients
        return self.scaler.transform(z.astype(np.float64)) - predicted


def fit_suppression(z: np.ndarray, covariates: np.ndarray) -> Suppression:
    """Regress z [N, D] on covariates [N, M], both of training samples.

    Raises ValueError for non-finite values, unequal rows or no more samples than covariates.
    """
    require_rows(z=z, covariates=covariates)
    require_finite("z", z)
    require_finite("covariates", covariates)
    n, m = covariates.shape
    if n <= m + 1:
        raise ValueError(f"{n} samples for {m} covariates: R^2 is undefined; pass more training samples")
    scaler, covariate_scaler = StandardScaler(), StandardScaler()
    points = scaler.fit_transform(z.astype(np.float64))
    design = covariate_scaler.fit_transform(covariates.astype(np.float64))
    coefficients = np.linalg.lstsq(design, points, rcond=1e-10)[0]
    unexplained = np.square(points - design @ coefficients).mean(axis=0)
    total = np.square(points).mean(axis=0)
    share = np.divide(unexplained, total, out=np.ones_like(total), where=total > 0)
    adjusted = 1.0 - share * (n - 1) / (n - m - 1)
    return Suppression(scaler, covariate_scaler, coefficients, np.clip(np.where(total > 0, adjusted, 0.0), 0.0, 1.0))


def suppressed_views(
    train_z: np.ndarray, train_metadata: np.ndarray, test_z: np.ndarray, test_metadata: np.ndarray, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """variant -> (training features, test features) for every name of `VARIANTS`.

    `scaled_random` and `dropped_random` treat randomly chosen columns so; `residual_random` takes away the prediction from as
    many random projections of z as there are metadata features.
    """
    rng = np.random.default_rng(seed)
    fitted = fit_suppression(train_z, train_metadata)
    plain = tuple(fitted.scaler.transform(z.astype(np.float64)) for z in (train_z, test_z))
    factors, untied = 1.0 - rng.permutation(fitted.explained), rng.permutation(fitted.untied())
    directions = rng.normal(size=(train_z.shape[1], train_metadata.shape[1]))
    covariates = tuple(z @ directions for z in plain)
    random = fit_suppression(train_z, covariates[0])
    metadata = tuple(fitted.covariate_scaler.transform(m.astype(np.float64)) for m in (train_metadata, test_metadata))
    return {
        "plain": plain,
        "scaled": (fitted.scaled(train_z), fitted.scaled(test_z)),
        "scaled_random": (plain[0] * factors, plain[1] * factors),
        "dropped": (plain[0] * fitted.untied(), plain[1] * fitted.untied()),
        "dropped_random": (plain[0] * untied, plain[1] * untied),
        "residual": (fitted.residual(train_z, train_metadata), fitted.residual(test_z, test_metadata)),
        "residual_random": (random.residual(train_z, covariates[0]), random.residual(test_z, covariates[1])),
        "metadata_only": metadata,
    }


def _spearman(scores: np.ndarray, length: np.ndarray, weights: np.ndarray) -> Interval:
    """Weighted Pearson of the ranks in the whole test set: ranks are not drawn anew in a resample."""
    total = weights.sum(axis=1, keepdims=True)
    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (scores, length))
    mean_a, mean_b = (weights @ values[:, None] / total for values in (a, b))
    covariance = weights @ (a * b)[:, None] / total - mean_a * mean_b
    spread = (weights @ (a * a)[:, None] / total - mean_a**2) * (weights @ (b * b)[:, None] / total - mean_b**2)
    return weighted_interval((covariance / np.sqrt(np.where(spread > 0, spread, np.nan))).ravel())


def selfreg_table(
    views: dict[str, tuple[np.ndarray, np.ndarray]],
    train_y: np.ndarray,
    targets: dict[str, Target],
    length: np.ndarray,
    *,
    dataset: str,
    config: PropertyConfig,
    seed: int,
) -> pd.DataFrame:
    """Rows of filter_selfreg.csv: one probe a variant on train_y [N train], measured on each target.

    `length` [N test] in any unit. Metrics: roc_auc, average_precision and spearman_length, the rank correlation of the score
    (turned by the target's sign) with length.
    """
    rows = []
    for variant, (train_x, test_x) in views.items():
        scores = sgd_scores(train_x, train_y, test_x, sub_seed(seed, "selfreg"), standardise=False)
        for name, target in targets.items():
            require_rows(scores=scores, labels=target.labels, mask=target.mask, length=length)
            inside, n = target.sign * scores[target.mask], int(target.mask.sum())
            weights = bootstrap_weights(n, config.bootstrap_samples, sub_seed(seed, f"selfreg {name}"))
            found = rank_metrics(inside, target.labels[target.mask], weights)
            found["spearman_length"] = _spearman(inside, length[target.mask], weights)
            rows += [(dataset, name, variant, metric, e.value, e.low, e.high, n) for metric, e in found.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))
