"""Appendix A with measured gradients: what mixing a batch of one cluster with samples of another does to its error.

A batch of b prompts, rho b of them from cluster d and the rest from c, estimates G, the mean gradient of the pool:
    MSE(rho) - MSE(0) = - rho A + rho^2 C,   A = 2 <r_c, v> - tr(Sigma_d - Sigma_c) / b,   C = ||v||^2,
r_c = G - mu_c, v = mu_d - mu_c, optimum rho* = A / 2C clipped to [0, 1]. A and C are estimated without bias from
products of different prompts (`coherence.Moments`); rho*, a clipped ratio of them, is not. Where the estimate of C is
not positive, rho* is the better end of [0, 1] (ours). The share of a cluster in G is its share of the kept pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from saerl_lib.report.statistics import weighted_interval
from saerl_lib.rl.coherence import Moments, Pairs, group_moments, resample_weights

MEAN = "mean"
"""A partner, or a cluster, drawn by its share of the pool."""
THEORY_COLUMNS = [
    "cluster_c", "cluster_d", "n_c", "n_d", "bias2", "variance", "A", "A_low", "A_high", "C", "C_low", "C_high",
    "rho_star", "ci_low", "ci_high", "rho_h", "mse_change_at_h", "change_low", "change_high",
    "random_change", "random_low", "random_high",
]  # fmt: skip
CURVE_COLUMNS = ["cluster_c", "rho", "mse_change", "ci_low", "ci_high", "n_prompts"]
CURVE_POINTS = 21


@dataclass(frozen=True)
class MixingTerms:
    """Terms of Appendix A for K clusters and S resamples."""

    a: np.ndarray
    """A of clusters c and d, [S, K, K], in squared gradient units."""
    c: np.ndarray
    """C = ||mu_d - mu_c||^2, [S, K, K]."""
    bias2: np.ndarray
    """||G - mu_c||^2, [S, K]."""
    variance: np.ndarray
    """tr Sigma_c / b, [S, K]."""
    random: np.ndarray
    """MSE of a batch drawn from the whole pool, [S]: all variance, no bias."""


def mixing_terms(moments: Moments, shares: np.ndarray, prompts_per_step: int) -> MixingTerms:
    """Appendix A from moments of K clusters and their shares [K] of the pool (summing to 1)."""
    m, own = moments.products, np.diagonal(moments.products, axis1=1, axis2=2)
    to_pool = m @ shares
    pool = to_pool @ shares
    residual_v = to_pool[:, None, :] - to_pool[:, :, None] - m + own[:, :, None]
    spread = moments.variance / prompts_per_step
    squared_v = own[:, :, None] + own[:, None, :] - 2 * m
    bias2 = pool[:, None] - 2 * to_pool + own
    random = (moments.squared @ shares - pool) / prompts_per_step
    return MixingTerms(2 * residual_v - (spread[:, None, :] - spread[:, :, None]), squared_v, bias2, spread, random)


def rho_star(a: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Minimiser of - rho a + rho^2 c on [0, 1].

    >>> rho_star(np.array([1.0, 3.0, -1.0, 1.0]), np.array([2.0, 1.0, 1.0, -1.0])).tolist()
    [0.25, 1.0, 0.0, 1.0]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.clip(a / (2 * c), 0, 1)
    found = np.where(c > 0, inside, (a > c).astype(float))
    return np.where(np.isfinite(a) & np.isfinite(c), found, np.nan)


def mixing_tables(
    pairs: Pairs,
    clusters: np.ndarray,
    pool_shares: Mapping[int, float],
    prompts_per_step: int,
    swapped_per_batch: int,
    samples: int,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of mixing_theory.csv and mixing_curve.csv; changes are fractions of the MSE at rho = 0.

    clusters [N] are those of the sampled prompts; `pool_shares` maps a cluster to its share of the kept pool. A cluster
    with fewer than two sampled prompts is left out. Rows with cluster_d "mean" have a partner drawn by share, those
    with cluster_c "mean" average over clusters as well. `random_change` is a batch of the whole pool instead.
    """
    names, counts = np.unique(clusters, return_counts=True)
    names, counts = names[counts > 1], counts[counts > 1]
    shares = np.array([pool_shares[int(c)] for c in names])
    shares = shares / shares.sum()
    keep = np.isin(clusters, names)
    kept = Pairs(*(getattr(pairs, f)[np.ix_(keep, keep)] if getattr(pairs, f).ndim == 2 else getattr(pairs, f)[keep]
                   for f in Pairs.__dataclass_fields__))  # fmt: skip
    weights = resample_weights(int(keep.sum()), samples, seed, clusters[keep])
    terms = mixing_terms(group_moments(kept, clusters[keep], weights), shares, prompts_per_step)
    cases = _cases(terms, names, counts, shares)
    rho_h = swapped_per_batch / prompts_per_step
    theory = pd.DataFrame([_theory_row(case, rho_h, terms.random) for case in cases], columns=THEORY_COLUMNS)
    curve = [row for case in cases if case.d == MEAN for row in _curve_rows(case)]
    return theory, pd.DataFrame(curve, columns=CURVE_COLUMNS)


@dataclass(frozen=True)
class _Case:
    """One pair of clusters, or a mean over them; arrays [S]."""

    c: str
    d: str
    n_c: int
    n_d: int
    a: np.ndarray
    cc: np.ndarray
    bias2: np.ndarray
    variance: np.ndarray

    @property
    def start(self) -> np.ndarray:
        """MSE at rho = 0."""
        return self.bias2 + self.variance


def _cases(terms: MixingTerms, names: np.ndarray, counts: np.ndarray, shares: np.ndarray) -> list[_Case]:
    """Every pair, then every cluster with the mean partner, then the mean of those."""
    total = int(counts.sum())
    found, means = [], []
    for i, c in enumerate(names):
        own = (terms.bias2[:, i], terms.variance[:, i])
        for j, d in enumerate(names):
            if i != j:
                found.append(_Case(str(c), str(d), int(counts[i]), int(counts[j]), terms.a[:, i, j], terms.c[:, i, j], *own))
        partner = np.where(np.arange(len(names)) == i, 0.0, shares)
        partner = partner / partner.sum()
        a, cc = terms.a[:, i] @ partner, terms.c[:, i] @ partner
        means.append(_Case(str(c), MEAN, int(counts[i]), total - int(counts[i]), a, cc, *own))
    averaged = [np.stack([getattr(m, f) for m in means], axis=1) @ shares for f in ("a", "cc", "bias2", "variance")]
    return [*found, *means, _Case(MEAN, MEAN, total, total, *averaged)]


def _theory_row(case: _Case, rho_h: float, random: np.ndarray) -> tuple[object, ...]:
    best, change = rho_star(case.a, case.cc), (-rho_h * case.a + rho_h**2 * case.cc) / case.start
    head = (case.c, case.d, case.n_c, case.n_d, float(case.bias2[0]), float(case.variance[0]))
    parts = [v for values in (case.a, case.cc, best) for v in weighted_interval(values)]
    return (*head, *parts, rho_h, *weighted_interval(change), *weighted_interval(random / case.start - 1))


def _curve_rows(case: _Case) -> list[tuple[object, ...]]:
    grid = np.linspace(0, 1, CURVE_POINTS)
    return [(case.c, float(r), *weighted_interval((-r * case.a + r**2 * case.cc) / case.start), case.n_c) for r in grid]
