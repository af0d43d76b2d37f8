"""Feature audit: which pooled features tell the clusters apart, and what the strongest latents stand for (paper, Tables 11, 12).

LightGBM predicts the cluster label from phi ("auxiliary LightGBM on the same labels", section 5.4); the total gain of its
splits is summed by feature group. Gain is measured on the samples that the trees were grown on: it ranks features, it is
no accuracy. Settings of the trees, number of resamples and of latents shown are not stated in the paper; ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import lightgbm
import numpy as np
import pandas as pd
from scipy import stats

from saerl_lib.properties import require_finite, require_rows
from saerl_lib.properties.confidence import best_label_control, best_labels, confidence, confidence_interval
from saerl_lib.properties.feature_names import GROUPS, group_of, is_latent

ROUNDS, LEAVES, BINS, LEARNING_RATE = 30, 15, 63, 0.1
"""Boosting rounds, leaves a tree, histogram bins, shrinkage (not stated in the paper; ours)."""
MIN_LEAF_SAMPLES = 20
"""Samples of a leaf at least; less when the set is small (LightGBM's default)."""
RESAMPLES = 8
"""Bootstrap resamples of the interval of a group's share (ours)."""
SHUFFLES = 20
"""Shuffles of the labels behind the control value of FRC (ours)."""
TOP_FEATURES = (20, 100)
"""How many of the strongest features the paper counts by group."""
PAPER_GROUPS = {"sol_mean": (10, 36), "prompt_max": (5, 26), "prompt_mean": (2, 24), "sol_max": (2, 11), "metadata": (1, 3)}
"""group -> features among the top 20 and the top 100 by gain in the paper (section 5.4, Table 11)."""
GROUP_COLUMNS = (
    "group", "n_features", "gain_share", "ci_low", "ci_high", "top_20", "top_100", "paper_top_20", "paper_top_100", "n"
)  # fmt: skip
SHOWN_LATENTS = 12
"""Latents of `top_latents.csv` (not stated in the paper; ours)."""


def feature_gain(phi: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Total gain of each column of phi [N, D] in trees that predict labels [N], float [D], at least 0; repeats for a seed.

    All zero when the labels hold a single class, since nothing is to be told apart; two classes are a valid case.
    Raises ValueError for unequal rows or non-finite phi.
    """
    require_rows(phi=phi, labels=labels)
    require_finite("phi", phi)
    classes, codes, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if len(classes) < 2:
        return np.zeros(phi.shape[1])
    settings = {
        "objective": "multiclass",
        "num_class": len(classes),
        "num_leaves": LEAVES,
        "learning_rate": LEARNING_RATE,
        "max_bin": BINS,
        "min_data_in_leaf": int(max(1, min(MIN_LEAF_SAMPLES, np.median(counts) // 2))),
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(np.asarray(phi, dtype=np.float64), codes, params=settings)
    return np.asarray(lightgbm.train(settings, data, ROUNDS).feature_importance("gain"), dtype=np.float64)


def resampled_gains(phi: np.ndarray, labels: np.ndarray, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Gains [R, D] of trees on bootstrap resamples of the N samples."""
    rng, n = np.random.default_rng(seed), len(labels)
    draws = [rng.integers(0, n, n) for _ in range(resamples)]
    return np.stack([feature_gain(phi[rows], np.asarray(labels)[rows], seed) for rows in draws])


def group_shares(gains: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Share of the total gain by group of `GROUPS`, [..., 5], for gains [..., D]; NaN where nothing was gained.

    >>> group_shares(np.array([3.0, 0.0, 1.0]), ["sol_mean/1", "sol_max/1", "metadata/words"]).tolist()
    [0.0, 0.0, 0.75, 0.0, 0.25]
    """
    of = np.array([GROUPS.index(group_of(name)) for name in names])
    sums = np.stack([gains[..., of == g].sum(axis=-1) for g in range(len(GROUPS))], axis=-1)
    total = sums.sum(axis=-1, keepdims=True)
    return np.divide(sums, total, out=np.full(sums.shape, np.nan), where=total > 0)


def strongest_features(gain: np.ndarray, top: int) -> np.ndarray:
    """Columns of the `top` largest gains above 0, strongest first, the lower column among equals."""
    order = np.argsort(-gain, kind="stable")[:top]
    return order[gain[order] > 0]


def feature_groups_table(gain: np.ndarray, resampled: np.ndarray, names: Sequence[str], n: int) -> pd.DataFrame:
    """Rows of `feature_groups.csv`: group, n_features, gain_share, ci_low, ci_high, top_20, top_100, paper_top_20,
    paper_top_100, n (samples).

    The interval is gain_share +- t * bootstrap deviation over the R resamples (R - 1 degrees of freedom), cut to [0, 1]:
    with so few resamples percentiles would be too narrow. Empty when nothing was gained.
    """
    shares = group_shares(gain, names)
    usable = group_shares(resampled, names)
    usable = usable[np.isfinite(usable).all(axis=1)]
    half = np.full(len(GROUPS), np.nan)
    if len(usable) > 1:
        half = stats.t.ppf(0.975, len(usable) - 1) * usable.std(axis=0, ddof=1)
    groups = [group_of(name) for name in names]
    top = [[groups[i] for i in strongest_features(gain, k)] for k in TOP_FEATURES]
    rows = [
        (
            group, groups.count(group), shares[g], np.clip(shares[g] - half[g], 0, 1), np.clip(shares[g] + half[g], 0, 1),
            top[0].count(group), top[1].count(group), *PAPER_GROUPS[group], n,
        )
        for g, group in enumerate(GROUPS)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(GROUP_COLUMNS))


def top_latents_table(
    gain: np.ndarray, names: Sequence[str], phi: np.ndarray, topics: np.ndarray, *, bootstrap_samples: int, seed: int,
    shown: int = SHOWN_LATENTS,
) -> pd.DataFrame:  # fmt: skip
    """The pooled latents of largest gain with the topic that each stands for best, one a row.

    Columns: feature, block, latent, gain (share of all features' total), topic (largest FRC), necessity, sufficiency,
    base_rate, lift, frc, ci_low, ci_high (95 %, bootstrap over samples, topic fixed), control (FRC with shuffled topics,
    the best topic chosen anew), n, n_active, n_topic. A latent is active where its pooled value is above 0. Samples
    without a topic are left out of the FRC columns, which are empty when no sample has one. See `confidence` for the terms.
    """
    columns = [int(i) for i in np.argsort(-gain, kind="stable") if gain[i] > 0 and is_latent(names[i])][:shown]
    topics = np.asarray(topics, dtype=str)
    known = topics != ""
    active = np.asarray(phi)[known][:, columns] > 0
    best = best_labels(active, topics[known]) if known.any() and columns else [""] * len(columns)
    control = best_label_control(active, topics[known], SHUFFLES, seed) if known.any() and columns else [np.nan] * len(columns)
    rows = []
    for j, column in enumerate(columns):
        block, latent = names[column].split("/")
        values: tuple = (np.nan,) * 8 + (int(known.sum()), 0, 0)
        if known.any():
            has = topics[known] == best[j]
            c, ci = confidence(active[:, j], has), confidence_interval(active[:, j], has, bootstrap_samples, seed + j)
            values = (c.necessity, c.sufficiency, c.base_rate, c.lift, c.frc, ci.low, ci.high, control[j])
            values += (c.n, c.n_active, c.n_label)
        rows.append((names[column], block, int(latent), gain[column] / gain.sum(), str(best[j]), *values))
    return pd.DataFrame(
        rows,
        columns=["feature", "block", "latent", "gain", "topic", "necessity", "sufficiency", "base_rate", "lift", "frc",
                 "ci_low", "ci_high", "control", "n", "n_active", "n_topic"],
    )  # fmt: skip


def highest_activating(phi: np.ndarray, ids: Sequence[str], column: int, top: int) -> list[int]:
    """Rows of the `top` largest values above 0 in a column of phi, ties by id."""
    values = np.asarray(phi)[:, column]
    order = np.lexsort((np.asarray(ids, dtype=str), -values))[:top]
    return [int(i) for i in order if values[i] > 0]
