"""The retained set F: which latents enter z (the paper keeps 240 and does not say which; all rules here are ours).

Every rule gives each latent a score from the samples of L alone and takes the highest. Two are label-free
(`frequency_variance`, the default, and `variance`), two read labels of L (`anova`, `elastic_net`), one reads the model's
own gradient (`gradient`, after GradSAE, arXiv 2505.08080). `random` is the control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_selection import f_regression
from sklearn.linear_model import ElasticNet

from saerl_lib.encode.store import Store

RULES = ("frequency_variance", "variance", "anova", "elastic_net", "gradient", "random")
"""Names of the rules; the first is the default."""
LABEL_FREE = ("frequency_variance", "variance")
"""Rules that read activations alone."""
LABELLED = ("anova", "elastic_net")
"""Rules that read labels, which must be those of training samples."""


@dataclass(frozen=True)
class LatentStatistics:
    """What label-free rules read, one entry a latent, [F]."""

    share: NDArray[np.float64]
    """Share of samples on which the latent fires."""
    variance: NDArray[np.float64]
    """Variance over samples of its largest activation, zeros included."""


def latent_statistics(store: Store) -> LatentStatistics:
    """Firing share and variance of the per-sample peak, shard by shard."""
    fired, total, squares = (np.zeros(store.width) for _ in range(3))
    n = 0
    for shard in store.shards():
        both = shard.matrix(shard.peak, store.width)
        peak = both[:, : store.width].maximum(both[:, store.width :]).tocsc().astype(np.float64)
        fired += peak.getnnz(axis=0)
        total += np.asarray(peak.sum(axis=0)).ravel()
        squares += np.asarray(peak.multiply(peak).sum(axis=0)).ravel()
        n += len(shard.ids)
    return LatentStatistics(fired / n, squares / n - (total / n) ** 2)


def best(score: NDArray[np.float64], first: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """`count` latents: those of `first` by falling score, then the others; ties to the lower number. Ascending."""
    order = np.lexsort((np.arange(len(score)), -score, ~first))
    return np.sort(order[:count]).astype(np.int64)


def require_label_free(rule: str) -> None:
    """Raise ValueError for a rule that reads labels or gradients."""
    if rule not in LABEL_FREE:
        raise ValueError(f"retained_rule={rule!r} is not label-free; the ladder's readers know {', '.join(LABEL_FREE)}")


def choose_label_free(
    share: NDArray[np.float64], variance: NDArray[np.float64], count: int, band: tuple[float, float], rule: str
) -> NDArray[np.int64]:
    """Ascending indices of `count` latents by a rule of `LABEL_FREE`, from firing share and variance of the peak, [F] each."""
    require_label_free(rule)
    first = (share >= band[0]) & (share <= band[1]) if rule == "frequency_variance" else share > 0
    return best(variance, first, count)


def _relevance(peaks: sparse.csr_matrix, labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """F statistic of the linear relation of each latent's peak with the label; 0 for a constant latent."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(f_regression(peaks.astype(np.float64), labels)[0], nan=0.0, posinf=0.0)


def _coefficients(blocks: sparse.csr_matrix, labels: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Sum of |coefficient| over the four blocks of a latent, in an elastic net on columns of unit deviation."""
    scaled = blocks.astype(np.float64).tocsc()
    mean = np.asarray(scaled.mean(axis=0)).ravel()
    deviation = np.sqrt(np.maximum(np.asarray(scaled.multiply(scaled).mean(axis=0)).ravel() - mean**2, 0.0))
    scaled = scaled @ sparse.diags(1.0 / np.where(deviation > 0, deviation, 1.0))
    centred = labels - labels.mean()
    alpha = 0.1 * np.abs(scaled.T @ centred).max() / len(labels) or 1.0  # a tenth of the penalty that empties the model
    model = ElasticNet(alpha=alpha, l1_ratio=0.5, max_iter=300, tol=1e-3).fit(scaled.tocsc(), centred)
    return np.abs(model.coef_).reshape(4, width).sum(axis=0)


def choose_retained(
    store: Store,
    count: int,
    *,
    rule: str = RULES[0],
    band: tuple[float, float] = (0.01, 0.9),
    labels: NDArray[np.float64] | None = None,
    influence: Callable[[], NDArray[np.float64]] | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Ascending indices of `count` retained latents, chosen from a store of training samples.

    frequency_variance: of the latents that fire on a share of samples inside `band`, those whose peak varies most (the rest
    follows when the band holds too few). variance: those whose peak varies most. anova: largest F statistic with `labels`.
    elastic_net: largest coefficients on all blocks. gradient: largest `influence()` [F]. random: a seeded draw among the
    latents that fire.
    Raises ValueError for an unknown rule, missing labels or influence, or a count outside 1..F.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} does not exist; choose one of {', '.join(RULES)}")
    if not 1 <= count <= store.width:
        raise ValueError(f"retained_latents={count} must lie between 1 and the SAE's {store.width} latents")
    if rule in LABELLED and (labels is None or not np.isfinite(labels).all()):
        raise ValueError(f"rule {rule!r} needs a finite label for every sample of the store; pass the labels of L")
    if rule == "gradient" and influence is None:
        raise ValueError("rule 'gradient' needs influence; pass a function that measures it on the full model")
    found = latent_statistics(store)
    fires = found.share > 0
    if rule in LABEL_FREE:
        return choose_label_free(found.share, found.variance, count, band, rule)
    if rule == "anova":
        return best(_relevance(store.peaks(), labels), fires, count)
    if rule == "elastic_net":
        score = _coefficients(store.blocks(), labels, store.width)
        return best(score + 1e-12 * found.variance / (found.variance.max() or 1.0), fires, count)
    if rule == "gradient":
        return best(influence(), fires, count)
    return best(np.random.default_rng(seed).random(store.width), fires, count)
