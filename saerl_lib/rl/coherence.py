"""Do gradients agree where samples are alike? Cosines by grouping, and gradient distance against distance in a space.

The assumption of the paper's Appendix A, measured (ours). Everything is a quadratic form of the Gram matrix of prompt
gradients, so one bootstrap serves all: prompts get multinomial weights, and products of a prompt with itself are left
out, so that a prompt drawn twice never passes for two that agree. Where a mean gradient is near zero such intervals are
wider than needed, never narrower. S = resamples + 1, the first row being the sample itself; N prompts; K groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from saerl_lib.properties import require_rows
from saerl_lib.report.statistics import weighted_interval
from saerl_lib.rl.gradients import GradientGram

COHERENCE_COLUMNS = ["grouping", "level", "relation", "value", "ci_low", "ci_high", "n", "n_zero"]
DISTANCE_COLUMNS = ["space", "measure", "spearman", "ci_low", "ci_high", "n_pairs", "n_prompts"]


def resample_weights(n: int, samples: int, seed: int, strata: np.ndarray | None = None) -> np.ndarray:
    """[samples + 1, n] multiplicities of n prompts; the first row is all ones. `strata` [n] keeps group sizes fixed."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(n, dtype=int) if strata is None else np.asarray(strata)
    weights = np.ones((samples + 1, n))
    for label in np.unique(labels):
        (rows,) = np.nonzero(labels == label)
        weights[1:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=samples)
    return weights


def pair_form(weights: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Sum over pairs of w_p w_q matrix_pq, one value a resample, [S]."""
    return ((weights @ matrix) * weights).sum(axis=1)


@dataclass(frozen=True)
class Pairs:
    """The Gram matrix by prompt, free of rollout noise where that can be had."""

    products: np.ndarray
    """[N, N] estimates of <E g_p, E g_q>: all four pairs of halves for p != q, the two halves on the diagonal."""
    squared: np.ndarray
    """[N] ||g_p||^2 of one group, rollout noise included, mean of the halves."""
    cosine_sum: np.ndarray
    """[N, N] sum of the cosines of the pairs of halves that have both a gradient, zero on the diagonal."""
    cosine_count: np.ndarray
    """[N, N] their number, 0 to 4."""
    halves: np.ndarray
    """[N] cosine of a prompt's two halves, NaN where one has no gradient."""


def prompt_pairs(gram: GradientGram) -> Pairs:
    """Products and cosines between the prompts of a Gram matrix."""
    n, full = len(gram.ids), gram.products
    size = np.sqrt(np.diag(full))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.clip(full / np.outer(size, size), -1, 1)
    blocks = full.reshape(2, n, 2, n)
    products = blocks.sum(axis=(0, 2)) / 4
    cross = np.diag(blocks[0, :, 1]).copy()
    np.fill_diagonal(products, cross)
    parts = cosine.reshape(2, n, 2, n)
    count = np.isfinite(parts).sum(axis=(0, 2)).astype(float)
    total = np.nansum(parts, axis=(0, 2))
    np.fill_diagonal(count, 0)
    np.fill_diagonal(total, 0)
    return Pairs(products, (size**2).reshape(2, n).mean(axis=0), total, count, np.diag(parts[0, :, 1]).copy())


@dataclass(frozen=True)
class Moments:
    """First and second moments of the gradients of K groups, without bias; NaN for a group of fewer than two prompts."""

    products: np.ndarray
    """[S, K, K] <mu_c, mu_d>, over pairs of different prompts."""
    squared: np.ndarray
    """[S, K] E ||g||^2."""
    halves: np.ndarray
    """[S, K] E ||E[g | prompt]||^2, from independent halves."""
    size: np.ndarray
    """[S, K] prompts of the group, multiplicities counted."""

    @property
    def variance(self) -> np.ndarray:
        """[S, K] tr Sigma_c of one prompt's gradient, over prompts and rollouts."""
        return self.squared - np.diagonal(self.products, axis1=1, axis2=2)


def group_moments(pairs: Pairs, labels: np.ndarray, weights: np.ndarray) -> Moments:
    """Moments of the groups of labels [N], in sorted order, under weights [S, N]."""
    require_rows(labels=labels, products=pairs.products)
    members = (np.asarray(labels)[:, None] == np.unique(labels)).astype(float)
    apart = pairs.products - np.diag(np.diag(pairs.products))
    parts = weights[:, :, None] * members
    size = parts.sum(axis=1)
    counts = size[:, :, None] * size[:, None, :]
    inside = np.arange(members.shape[1])
    counts[:, inside, inside] -= (parts**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        products = (parts.transpose(0, 2, 1) @ (apart @ parts)) / np.where(counts > 0, counts, np.nan)
        squared, halves = ((weights * v) @ members / size for v in (pairs.squared, np.diag(pairs.products)))
    return Moments(products, squared, halves, size)


def batch_cosines(moments: Moments, prompts_per_step: int) -> dict[str, np.ndarray]:
    """within, across and halves [S]: cosine of the gradients of two batches of `prompts_per_step`, each of one group.

    E<B, B'> over the root of E||B||^2 E||B'||^2, groups weighted by size: the ratio of unbiased means, not the mean of
    ratios. `halves` are the same prompts with new rollouts: what is left of 1 after rollout noise.
    """
    b, k = prompts_per_step, moments.products.shape[1]
    own = np.diagonal(moments.products, axis1=1, axis2=2)
    length = np.clip(own + (moments.squared - own) / b, 0, None)
    share = np.where(np.isfinite(own), moments.size, 0.0)
    again = own + (moments.halves - own) / b
    norm = np.nansum(share * length, axis=1)
    found = {"within": np.nansum(share * own, axis=1) / norm, "halves": np.nansum(share * again, axis=1) / norm}
    if k > 1:
        both = share[:, :, None] * share[:, None, :] * (1 - np.eye(k))
        root = np.sqrt(length[:, :, None] * length[:, None, :])
        found["across"] = np.nansum(both * moments.products, axis=(1, 2)) / np.nansum(both * root, axis=(1, 2))
        found["difference"] = found["within"] - found["across"]
    return found


def prompt_cosines(pairs: Pairs, within: np.ndarray, across: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Mean cosine of single prompts' gradients [S] over the pairs of two boolean masks [N, N], and their difference."""
    found = {}
    for name, mask in (("within", within), ("across", across)):
        with np.errstate(divide="ignore", invalid="ignore"):
            found[name] = pair_form(weights, pairs.cosine_sum * mask) / pair_form(weights, pairs.cosine_count * mask)
    found["difference"] = found["within"] - found["across"]
    return found


def nearest_mask(distance: np.ndarray, neighbours: int) -> np.ndarray:
    """[N, N] whether one of two samples is among the `neighbours` nearest of the other; distance [N, N]."""
    far = distance + np.diag(np.full(len(distance), np.inf))
    order = np.argsort(far, axis=1, kind="stable")[:, :neighbours]
    mask = np.zeros(distance.shape, dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return mask | mask.T


def coherence_table(
    gram: GradientGram,
    labels: Mapping[str, np.ndarray],
    spaces: Mapping[str, np.ndarray],
    neighbours: int,
    prompts_per_step: int,
    samples: int,
    seed: int,
) -> pd.DataFrame:
    """Rows of gradient_coherence.csv.

    `labels` maps a grouping to [N] labels ("cluster" and "leaf topic" among them), `spaces` a name to distances [N, N].
    n are the prompts behind a row, n_zero those of the sample without any gradient: left out between prompts, counted
    as zero inside batches, as in training.
    """
    pairs, n = prompt_pairs(gram), len(gram.ids)
    weights = resample_weights(n, samples, seed)
    alive = int((~gram.zero).any(axis=1).sum())
    everyone = np.zeros(n, dtype=int)
    masks = {name: (same := np.equal.outer(v, v), ~same) for name, v in labels.items()}
    other_topic = ~masks["leaf topic"][0]
    masks["cluster, topics differ"] = (masks["cluster"][0] & other_topic, masks["cluster"][1] & other_topic)
    near = {f"{neighbours} nearest in {name}": nearest_mask(d, neighbours) for name, d in spaces.items()}
    masks.update({name: (mask, ~mask) for name, mask in near.items()})
    rows: list[tuple[object, ...]] = []

    def add(grouping: str, level: str, relation: str, values: np.ndarray, count: int) -> None:
        rows.append((grouping, level, relation, *weighted_interval(values), count, n - alive))

    for name, (within, across) in masks.items():
        for relation, values in prompt_cosines(pairs, within, across, weights).items():
            add(name, "prompt", relation, values, alive)
    drawn = prompt_cosines(pairs, everyone[:, None] == everyone, masks["cluster"][0], weights)["within"]
    add("random", "prompt", "random", drawn, alive)
    both = np.isfinite(pairs.halves)
    again = (weights * both) @ np.where(both, pairs.halves, 0.0) / (weights @ both)
    add("random", "prompt", "halves", again, int(both.sum()))
    for name, label in labels.items():
        for relation, values in batch_cosines(group_moments(pairs, label, weights), prompts_per_step).items():
            if relation != "halves":
                add(name, "batch", relation, values, n)
    pool = batch_cosines(group_moments(pairs, everyone, weights), prompts_per_step)
    add("random", "batch", "random", pool["within"], n)
    add("random", "batch", "halves", pool["halves"], n)
    return pd.DataFrame(rows, columns=COHERENCE_COLUMNS)


def rank_correlation(first: np.ndarray, second: np.ndarray, use: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman rho [S] of two distances [N, N] over the pairs p < q of prompts `use` [N]; resamples keep the ranks."""
    pairs = np.triu(np.outer(use, use), k=1)
    x, y = np.zeros(first.shape), np.zeros(first.shape)
    x[pairs], y[pairs] = rankdata(first[pairs]), rankdata(second[pairs])
    x[pairs], y[pairs] = x[pairs] - x[pairs].mean(), y[pairs] - y[pairs].mean()
    total = pair_form(weights, pairs.astype(float))
    sums = {name: pair_form(weights, m) / total for name, m in (("x", x), ("y", y), ("xx", x * x), ("yy", y * y), ("xy", x * y))}
    spread = (sums["xx"] - sums["x"] ** 2) * (sums["yy"] - sums["y"] ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (sums["xy"] - sums["x"] * sums["y"]) / np.sqrt(spread)


def distance_table(gram: GradientGram, spaces: Mapping[str, np.ndarray], samples: int, seed: int) -> pd.DataFrame:
    """Rows of gradient_distance.csv: Spearman rho between the gradients' distance and distances [N, N] of each space.

    measure "cosine": 1 - cosine of the gradients of all 2 G rollouts, prompts without gradient left out; "squared
    distance": ||E g_p - E g_q||^2 from independent halves, all prompts. Space "gradient, other rollouts" holds one half
    against the other: the most that any space could reach with G rollouts a prompt.
    """
    pairs, n = prompt_pairs(gram), len(gram.ids)
    weights = resample_weights(n, samples, seed)
    whole = gram.products.reshape(2, n, 2, n)
    halves = {name: _distances(whole[h, :, h], np.diag(whole[h, :, h])) for h, name in enumerate(("first", "second"))}
    mean = whole.sum(axis=(0, 2)) / 4
    joint = _distances(mean, np.diag(mean), np.diag(pairs.products))
    alive, both = (~gram.zero).any(axis=1), (~gram.zero).all(axis=1)
    rows = []
    for measure, use, sure in (("cosine", alive, both), ("squared distance", np.ones(n, dtype=bool), np.ones(n, dtype=bool))):
        compared = [(name, joint[measure], distance, use) for name, distance in spaces.items()]
        compared.append(("gradient, other rollouts", halves["first"][measure], halves["second"][measure], sure))
        for name, first, second, kept in compared:
            values = weighted_interval(rank_correlation(first, second, kept, weights))
            count = int(kept.sum())
            rows.append((name, measure, *values, count * (count - 1) // 2, count))
    return pd.DataFrame(rows, columns=DISTANCE_COLUMNS)


def _distances(products: np.ndarray, squared: np.ndarray, unbiased: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Cosine and squared distance [N, N] of gradients with these products [N, N] and squared lengths [N]."""
    size = np.sqrt(np.where(squared > 0, squared, 1.0))
    length = squared if unbiased is None else unbiased
    return {
        "cosine": 1 - products / np.outer(size, size),
        "squared distance": length[:, None] + length[None] - 2 * products,
    }
