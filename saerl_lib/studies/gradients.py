"""Do gradients agree where samples are alike, and what does mixing do to a batch's error? Appendix A, measured (ours).

The paper lets distance in SAE space stand for gradient coherence and measures no gradient. Here every prompt of a seeded sample
of the kept pool gets two independent groups of G rollouts ("halves") at the base policy, each with the gradient that training
would take from it; the first step is on-policy, so no clip acts. Of gradients only inner products are asked, so their exact Gram
matrix is kept. Products of a prompt with itself are left out of every mean, also in the bootstrap, which weighs prompts.

A batch of b prompts, rho b of them from cluster d and the rest from c, estimates G, the mean gradient of the pool:
    MSE(rho) - MSE(0) = - rho A + rho^2 C,   A = 2 <r_c, v> - tr(Sigma_d - Sigma_c) / b,   C = ||v||^2,
r_c = G - mu_c, v = mu_d - mu_c, optimum rho* = A / 2C clipped to [0, 1]. A and C are estimated without bias from products of
different prompts (`Moments`); rho*, a clipped ratio of them, is not.

Axes: N prompts, K groups, S = resamples + 1, the first row being the sample itself.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist
from scipy.stats import rankdata
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, TrainConfig, sub_seed, to_dict
from saerl_lib.data.answers import reward
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.encode.models import open_causal
from saerl_lib.encode.store import load_split_features
from saerl_lib.plan.batch_plan import rows_of
from saerl_lib.plan.orders import kept_pool, standardised_space
from saerl_lib.properties.clusters import CLIP
from saerl_lib.properties.probes import fit_tfidf, texts_of, topics_at
from saerl_lib.report.statistics import bootstrap_weights, weighted_interval
from saerl_lib.train.policy import FOLDER
from saerl_lib.train.sampler import encode_prompts, log_probabilities, sample_groups

HALVES = 2
"""Independent groups a prompt: products between them carry no rollout noise (ours)."""
THEORY_COLUMNS = [
    "cluster_c", "cluster_d", "n_c", "n_d", "bias2", "variance", "A", "A_low", "A_high", "C", "C_low", "C_high",
    "rho_star", "ci_low", "ci_high", "rho_h", "mse_change_at_h", "change_low", "change_high",
    "random_change", "random_low", "random_high",
]  # fmt: skip

class GradientGram(NamedTuple):
    """Inner products of the gradients of N prompts, [2 N, 2 N] float64: row h N + i is half h of prompt i, zero where a group has
    no gradient; and the share of right answers in each half, [N, 2]."""

    products: np.ndarray
    pass_rate: np.ndarray

    @property
    def zero(self) -> np.ndarray:
        """[N, 2] whether all rewards of the half were equal, so that its gradient is exactly zero."""
        return (self.pass_rate == 0) | (self.pass_rate == 1)

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """By prompt, free of rollout noise where that can be had: [N, N] estimates of <E g_p, E g_q> (all four pairs of halves
        for p != q, the two halves on the diagonal), and [N] ||g_p||^2 of one group, noise included, mean of the halves."""
        n = len(self.pass_rate)
        blocks = self.products.reshape(HALVES, n, HALVES, n)
        products = blocks.sum(axis=(0, 2)) / 4
        np.fill_diagonal(products, np.diag(blocks[0, :, 1]))
        return products, np.diag(self.products).reshape(HALVES, n).mean(axis=0)


def advantages(rewards: np.ndarray) -> np.ndarray:
    """Group-normalised advantages of rewards [..., G], zero where all are equal; 1e-4 is added to the deviation, as TRL does.

    >>> advantages(np.array([1.0, 0.0, 0.0, 0.0])).round(2).tolist()
    [1.5, -0.5, -0.5, -0.5]
    """
    deviation = rewards.std(axis=-1, ddof=1, keepdims=True)
    return (rewards - rewards.mean(axis=-1, keepdims=True)) / (deviation + 1e-4)


def group_loss(
    model: LlamaForCausalLM, prompt: list[int], completions: Sequence[list[int]], weights: np.ndarray, temperature: float
) -> torch.Tensor:
    """TRL's "grpo" loss of one group: - mean over G of advantage x mean log-probability of its tokens. `weights` [G] are the
    advantages."""
    logs = log_probabilities(model, [prompt] * len(completions), list(completions), temperature)
    rows = logs.sum(dim=1) / torch.tensor([len(completion) for completion in completions])
    return -(torch.as_tensor(weights, dtype=rows.dtype) * rows).mean()


def flat_gradient(model: LlamaForCausalLM, loss: torch.Tensor) -> torch.Tensor:
    """Gradient of `loss` over all parameters as one vector [P]; tied weights count once."""
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])


def measure_gradients(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample], train: TrainConfig, seed: int
) -> GradientGram:
    """Draw two groups of `train.rollouts_per_prompt` completions a sample and return the Gram matrix of their gradients.
    Transient memory: one float32 gradient (1.9 MB at 0.47 M parameters) a group that has one."""
    n, g = len(samples), train.rollouts_per_prompt
    rows, prompts = HALVES * g, [s.prompt for s in samples]
    drawn = sample_groups(model, tokenizer, prompts, rows, train.max_completion_tokens, train.temperature, seed)
    rewards = np.array([reward(text, samples[i // rows].answer) for i, text in enumerate(drawn.texts)]).reshape(n, HALVES, g)
    weights, pass_rate, ids = advantages(rewards), rewards.mean(axis=2), encode_prompts(tokenizer, prompts)
    places = [(h, i) for h in range(HALVES) for i in range(n) if 0 < pass_rate[i, h] < 1]
    gradients = torch.empty(len(places), sum(p.numel() for p in model.parameters()))
    for row, (h, i) in enumerate(tqdm(places, desc="prompt gradients", file=sys.stdout, mininterval=10)):
        completions = drawn.ids[i * rows + h * g : i * rows + (h + 1) * g]
        gradients[row] = flat_gradient(model, group_loss(model, ids[i], completions, weights[i, h], train.temperature))
    total = torch.zeros(len(places), len(places), dtype=torch.float64)
    for block in gradients.split(65_536, dim=1):  # products in float32, summed in float64
        total += (block @ block.T).double()
    products, where = np.zeros((HALVES * n, HALVES * n)), np.array([h * n + i for h, i in places], dtype=int)
    products[np.ix_(where, where)] = ((total + total.T) / 2).numpy()
    return GradientGram(products, pass_rate)


class Moments(NamedTuple):
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


def group_moments(pairs: tuple[np.ndarray, np.ndarray], labels: np.ndarray, weights: np.ndarray) -> Moments:
    """Moments of the groups of labels [N], in sorted order, under weights [S, N], from `GradientGram.pairs`."""
    between, length = pairs
    members = (np.asarray(labels)[:, None] == np.unique(labels)).astype(float)
    apart = between - np.diag(np.diag(between))
    parts = weights[:, :, None] * members
    size = parts.sum(axis=1)
    counts = size[:, :, None] * size[:, None, :]
    inside = np.arange(members.shape[1])
    counts[:, inside, inside] -= (parts**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        products = (parts.transpose(0, 2, 1) @ (apart @ parts)) / np.where(counts > 0, counts, np.nan)
        squared, halves = ((weights * v) @ members / size for v in (length, np.diag(between)))
    return Moments(products, squared, halves, size)


def batch_cosines(moments: Moments, prompts_per_step: int) -> dict[str, np.ndarray]:
    """within, across and halves [S]: cosine of the gradients of two batches of `prompts_per_step`, each of one group. E<B, B'>
    over the root of E||B||^2 E||B'||^2, groups weighted by size: the ratio of unbiased means, not the mean of ratios. `halves`
    are the same prompts with new rollouts: what is left of 1 after rollout noise."""
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


def coherence_table(
    gram: GradientGram, labels: Mapping[str, np.ndarray], prompts_per_step: int, samples: int, seed: int
) -> pd.DataFrame:
    """Rows of gradient_coherence.csv for groupings, name -> labels [N], and "random", the whole pool as one group. n are the
    prompts, n_zero those of them without any gradient, which count as zero, as in training."""
    pairs, n = gram.pairs, len(gram.pass_rate)
    weights, everyone = bootstrap_weights(n, samples, seed), np.zeros(n, dtype=int)
    found = []
    for name, label in labels.items():
        cosines = batch_cosines(group_moments(pairs, label, weights), prompts_per_step)
        found += [(name, relation, values) for relation, values in cosines.items() if relation != "halves"]
    pool = batch_cosines(group_moments(pairs, everyone, weights), prompts_per_step)
    found += [("random", "random", pool["within"]), ("random", "halves", pool["halves"])]
    zero = int(gram.zero.all(axis=1).sum())
    rows = [(*names, *weighted_interval(values), n, zero) for *names, values in found]
    return pd.DataFrame(rows, columns=["grouping", "relation", "value", "ci_low", "ci_high", "n", "n_zero"])


def rank_correlation(first: np.ndarray, second: np.ndarray, use: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman rho [S] of two distances [N, N] over the pairs p < q of prompts `use` [N]; resamples keep the ranks."""
    pairs = np.triu(np.outer(use, use), k=1)
    x, y = np.zeros(first.shape), np.zeros(first.shape)
    x[pairs], y[pairs] = (rankdata(distance[pairs]) - (pairs.sum() + 1) / 2 for distance in (first, second))
    # sums over pairs of w_p w_q m_pq, one a resample
    total, *sums = (((weights @ m) * weights).sum(axis=1) for m in (pairs.astype(float), x, y, x * x, y * y, x * y))
    mean_x, mean_y, xx, yy, xy = (one / total for one in sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (xy - mean_x * mean_y) / np.sqrt((xx - mean_x**2) * (yy - mean_y**2))


def gradient_distances(products: np.ndarray, squared: np.ndarray, unbiased: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Cosine and squared distance [N, N] of gradients with these products [N, N] and squared lengths [N]. `unbiased` [N] are the
    lengths of the squared distance, where they are known without rollout noise."""
    size = np.sqrt(np.where(squared > 0, squared, 1.0))
    length = squared if unbiased is None else unbiased
    return {"cosine": 1 - products / np.outer(size, size), "squared distance": length[:, None] + length[None] - 2 * products}


def distance_table(gram: GradientGram, spaces: Mapping[str, np.ndarray], samples: int, seed: int) -> pd.DataFrame:
    """Rows of gradient_distance.csv: Spearman rho between the gradients' distance and distances [N, N] of each space. measure
    "cosine": 1 - cosine of the gradients of all 2 G rollouts, prompts without gradient left out; "squared distance": ||E g_p - E
    g_q||^2 from independent halves, all prompts. Space "gradient, other rollouts" holds one half against the other: the most that
    any space could reach with G rollouts a prompt."""
    (between, _), n = gram.pairs, len(gram.pass_rate)
    weights = bootstrap_weights(n, samples, seed)
    whole = gram.products.reshape(2, n, 2, n)
    first, second = (gradient_distances(whole[h, :, h], np.diag(whole[h, :, h])) for h in range(HALVES))
    mean = whole.sum(axis=(0, 2)) / 4
    joint = gradient_distances(mean, np.diag(mean), np.diag(between))
    everyone, rows = np.ones(n, dtype=bool), []
    kept = {"cosine": ((~gram.zero).any(axis=1), (~gram.zero).all(axis=1)), "squared distance": (everyone, everyone)}
    for measure, (use, sure) in kept.items():
        compared = [(name, joint[measure], distance, use) for name, distance in spaces.items()]
        for name, one, other, mask in [*compared, ("gradient, other rollouts", first[measure], second[measure], sure)]:
            values, count = weighted_interval(rank_correlation(one, other, mask, weights)), int(mask.sum())
            rows.append((name, measure, *values, count * (count - 1) // 2, count))
    return pd.DataFrame(rows, columns=["space", "measure", "spearman", "ci_low", "ci_high", "n_pairs", "n_prompts"])


class MixingTerms(NamedTuple):
    """Terms of Appendix A for K clusters c, d and S resamples, in squared gradient units."""

    a: np.ndarray  # A, [S, K, K]
    c: np.ndarray  # C = ||mu_d - mu_c||^2, [S, K, K]
    bias2: np.ndarray  # ||G - mu_c||^2, [S, K]
    variance: np.ndarray  # tr Sigma_c / b, [S, K]
    random: np.ndarray  # MSE of a batch drawn from the whole pool, [S]: all variance, no bias


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
    """Minimiser of - rho a + rho^2 c on [0, 1]; its better end where the estimate c is not positive (ours)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.clip(a / (2 * c), 0, 1)
    found = np.where(c > 0, inside, (a > c).astype(float))
    return np.where(np.isfinite(a) & np.isfinite(c), found, np.nan)


def mixing_table(
    pairs: tuple[np.ndarray, np.ndarray], clusters: np.ndarray, pool_shares: Mapping[int, float], prompts_per_step: int,
    swapped_per_batch: int, samples: int, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Rows of mixing_theory.csv from `GradientGram.pairs`; changes are fractions of the MSE at rho = 0. clusters [N] are those of
    the sampled prompts; `pool_shares` maps a cluster to its share of the kept pool. A cluster with fewer than two sampled prompts
    is left out. Rows with cluster_d "mean" have a partner drawn by share, those with cluster_c "mean" average over clusters as
    well. `random_change` is a batch of the whole pool instead."""
    names, counts = np.unique(clusters, return_counts=True)
    names, counts = names[counts > 1], counts[counts > 1]
    shares = np.array([pool_shares[int(c)] for c in names])
    shares, keep = shares / shares.sum(), np.isin(clusters, names)
    weights = np.empty((samples + 1, int(keep.sum())))
    for name, count in zip(names, counts, strict=True):  # the sizes of the clusters stay
        weights[:, clusters[keep] == name] = bootstrap_weights(count, samples, sub_seed(seed, f"cluster {name}"))
    between, length = pairs
    moments = group_moments((between[np.ix_(keep, keep)], length[keep]), clusters[keep], weights)
    a, c, bias2, variance, random = mixing_terms(moments, shares, prompts_per_step)
    partner = np.where(np.eye(len(names), dtype=bool), 0.0, shares)
    partner = partner / partner.sum(axis=1, keepdims=True)
    total, every = int(counts.sum()), range(len(names))
    mean_a, mean_c = (np.stack([x[:, i] @ partner[i] for i in every], axis=1) for x in (a, c))
    cases = [(names[i], names[j], counts[i], counts[j], a[:, i, j], c[:, i, j], bias2[:, i], variance[:, i])
             for i in every for j in every if i != j]  # fmt: skip
    cases += [(names[i], "mean", counts[i], total - counts[i], mean_a[:, i], mean_c[:, i], bias2[:, i], variance[:, i])
              for i in every]  # fmt: skip
    cases.append(("mean", "mean", total, total, *(x @ shares for x in (mean_a, mean_c, bias2, variance))))
    rows, rho_h = [], swapped_per_batch / prompts_per_step
    for one, other, n_one, n_other, slope, bend, bias, spread in cases:
        start = bias + spread
        parts = (slope, bend, rho_star(slope, bend))
        change = weighted_interval((-rho_h * slope + rho_h**2 * bend) / start)
        head = (str(one), str(other), int(n_one), int(n_other), float(bias[0]), float(spread[0]))
        rows.append((*head, *(v for x in parts for v in weighted_interval(x)), rho_h, *change,
                     *weighted_interval(random / start - 1)))  # fmt: skip
    return pd.DataFrame(rows, columns=THEORY_COLUMNS)


def zero_variance_table(clusters: np.ndarray, pass_rate: np.ndarray) -> pd.DataFrame:
    """One row a cluster and one for all: prompts, share of groups [N, 2] whose rewards are all equal (no gradient), by side."""
    rows = []
    for name, rates in [*((str(c), pass_rate[clusters == c]) for c in np.unique(clusters)), ("all", pass_rate)]:
        wrong, right = rates == 0, rates == 1
        rows.append((name, len(rates), float(np.mean(wrong | right)), float(wrong.mean()), float(right.mean())))
    return pd.DataFrame(rows, columns=["cluster", "prompts", "zero-variance share", "all wrong", "all right"])


def space_distances(
    z: np.ndarray, metadata: np.ndarray, samples: Sequence[Sample], rows: np.ndarray, ranking: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Distances [N, N] between the sampled prompts in every space; z and metadata are those of the whole pool. Euclidean after
    standardising on the pool and clipping as for clusters; TF-IDF of prompt and solution by cosine; difficulty by the difference
    of labels and of ranking scores [N]; "z, permuted" gives every prompt another's z."""
    points = {"z": z, "phi": np.concatenate([z, metadata], axis=1), "metadata": metadata}
    points = {name: np.clip(standardised_space(v), -CLIP, CLIP)[rows] for name, v in points.items()}
    found = {name: cdist(v, v) for name, v in points.items()}
    terms = fit_tfidf(texts := texts_of(samples)).transform(texts).toarray()
    found["TF-IDF"] = 1 - terms @ terms.T
    for name, values in (("difficulty label", np.array([s.difficulty for s in samples])), ("ranking score", ranking)):
        found[name] = np.abs(values[:, None] - values[None])
    order = np.random.default_rng(seed).permutation(len(rows))
    found["z, permuted"] = found["z"][np.ix_(order, order)]
    return found


def gradients_stage(profile: Profile, world: Stage, features: Stage, difficulty: Stage, quality: Stage) -> Stage:
    """Tables gradient_coherence, gradient_distance, mixing_theory and zero_variance. The sample holds `profile.gradient_prompts`
    rows of the kept pool, all if it holds fewer, in pool order. Tenths of difficulty are by rank; "clusters, permuted" keeps the
    sizes and nothing else."""
    b, h, resamples = profile.plan.prompts_per_step, profile.plan.swapped_per_batch, profile.properties.bootstrap_samples

    def compute(_: Path) -> dict[str, pd.DataFrame]:
        torch.set_num_threads(1)  # the rollouts would depend on the machine's number of cores
        pool = kept_pool(difficulty, quality)
        draw = np.random.default_rng(sub_seed(profile.seed, "gradient-sample"))
        rows = np.sort(draw.choice(len(pool), min(profile.gradient_prompts, len(pool)), replace=False))
        chosen, by_id = pool.iloc[rows], {s.id: s for s in load_split(world, "pool")}
        samples = [by_id[name] for name in chosen["sample_id"]]
        gram = measure_gradients(*open_causal(FOLDER), samples, profile.train, sub_seed(profile.seed, "gradient-rollouts"))
        table = load_split_features(features, "pool")
        kept = rows_of(pool["sample_id"], table.ids)
        spaces = space_distances(
            table.z[kept], table.metadata[kept], samples, rows, chosen["ranking"].to_numpy(),
            sub_seed(profile.seed, "gradient-permuted-z"),
        )  # fmt: skip
        shares, clusters = pool["cluster"].value_counts(normalize=True).to_dict(), chosen["cluster"].to_numpy()
        rank = np.argsort(np.argsort([s.difficulty for s in samples], kind="stable"), kind="stable")
        permuted = np.random.default_rng(sub_seed(profile.seed, "gradient-permutation")).permutation(clusters)
        labels = {
            "cluster": clusters, "leaf topic": topics_at(samples, 3), "domain": topics_at(samples, 1),
            "difficulty tenth": rank * 10 // len(samples), "clusters, permuted": permuted,
        }  # fmt: skip
        seed = sub_seed(profile.seed, "gradient-bootstrap")
        return {
            "gradient_coherence": coherence_table(gram, labels, b, resamples, seed),
            "gradient_distance": distance_table(gram, spaces, resamples, seed),
            "mixing_theory": mixing_table(gram.pairs, clusters, shares, b, h, resamples, seed),
            "zero_variance": zero_variance_table(clusters, gram.pass_rate),
        }

    train = {name: value for name, value in to_dict(profile.train).items() if name != "seeds"}
    config = {"prompts": profile.gradient_prompts, "resamples": resamples, "train": train,
              "plan": to_dict(profile.plan), "seed": profile.seed}  # fmt: skip
    return get_or_compute(profile, "gradients", config, compute, (world, features, difficulty, quality))
