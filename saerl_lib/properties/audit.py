"""What clusters hold, which features tell them apart, and where the strongest latents fire (paper, 5.4, Tables 10-12, D).

No external language model: a cluster's label is made of its most frequent leaf topics, and a reader sees the tokens of a
latent where the paper lets a language model describe them. LightGBM predicts the cluster from phi ("auxiliary LightGBM on the
same labels", section 5.4); the total gain of its splits is summed by feature group, measured on the samples that the trees
were grown on: it ranks features, it is no accuracy. The strength of a token is shown by shade and by weight (bold from half
the maximum, the maximum underlined), so that it also reads without colour. Columns of phi are named as in the paper:
`sol_mean/50831`.

The fitted models as arrays, so that one sample's decision can be taken apart without fitting again (paper, D.3).

Difficulty and quality are linear in standardised features, so prediction = intercept + sum over features of
weight * (x - mean) / scale: each term is that feature's contribution. They describe the readers, not the policy.

How well one latent stands for one label: necessity, sufficiency and their harmonic mean, FRC.

Ours, after the definition of "feature representation confidence" in LinguaLens (arXiv 2502.20344), which the paper's
authors use elsewhere. There both probabilities come from minimal pairs of sentences with and without a property; here
they are conditional frequencies over the samples of a pool, so everything below is correlational: necessity is a recall,
sufficiency a precision, FRC their F1. No text is changed and no latent is switched off.

    necessity   = P(latent active | label)      sufficiency = P(label | latent active)
    FRC = 2 * necessity * sufficiency / (necessity + sufficiency)

A latent is active in a sample when it fires on a token of the span of its block. Axes: N samples, J latents, C labels.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file, save_file
from scipy import stats

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, PropertyConfig, sub_seed, to_dict
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.encode.metadata import FEATURES
from saerl_lib.encode.models import open_reader
from saerl_lib.encode.pool import BLOCKS, Encoder, batch_latents
from saerl_lib.encode.stages import retained_latents
from saerl_lib.encode.store import FeatureTable, load_split_features
from saerl_lib.encode.tokens import token_batches
from saerl_lib.properties.clusters import Assignment, Clusters, topic_entropy
from saerl_lib.properties.difficulty import DifficultyModel, HalfWidths, cluster_half_widths, coverage_table
from saerl_lib.properties.probes import require_finite, require_rows
from saerl_lib.properties.quality import SourceClassifier, fit_source_classifier
from saerl_lib.properties.scorer import fit_properties
from saerl_lib.report.statistics import Interval, percentile_interval


@dataclass(frozen=True)
class LinearReader:
    """A linear model of D standardised features."""

    mean: np.ndarray
    """[D]."""
    scale: np.ndarray
    """[D]."""
    weight: np.ndarray
    """Of the standardised features, [D]."""
    intercept: float

    def standardise(self, x: np.ndarray) -> np.ndarray:
        """x [..., D] in deviations."""
        return (np.asarray(x, dtype=np.float64) - self.mean) / self.scale

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """weight * standardised value, [..., D]; with the intercept they add up to the prediction.

        >>> reader = LinearReader(np.array([1.0, 0.0]), np.array([2.0, 1.0]), np.array([3.0, -1.0]), 0.5)
        >>> reader.contributions(np.array([5.0, 4.0])).tolist()
        [6.0, -4.0]
        """
        return self.standardise(x) * self.weight


@dataclass(frozen=True)
class DecisionModel:
    """What decides about a sample before the plan."""

    clusters: Clusters
    difficulty: LinearReader
    """phi -> d_hat, label units."""
    quality: LinearReader
    """z -> log-odds of the filter score."""
    widths: HalfWidths
    """Of the interval r +- width, one a cluster."""


def linear_readers(model: DifficultyModel, classifier: SourceClassifier) -> tuple[LinearReader, LinearReader]:
    """The elastic net and the source classifier as linear readers of unscaled features."""
    scaler, probe = model.predictor.named_steps["scale"], model.predictor.named_steps["probe"]
    net = LinearReader(scaler.mean_, scaler.scale_, np.asarray(probe.coef_), float(probe.intercept_))
    scaler, linear = classifier.scaler, classifier.classifier
    weight, intercept = linear.coef_[0] / classifier.norm, float(linear.intercept_[0])
    return net, LinearReader(scaler.mean_, scaler.scale_, weight, intercept)


def fit_decision(profile: Profile, world: Stage, features: Stage) -> tuple[DecisionModel, pd.DataFrame]:
    """The models of stages `difficulty` and `filter`, fitted again with their seeds, and the interval's coverage on test.

    The second value holds the rows of `conformal.coverage_table` on the held-out test split.
    """
    clusters, model = fit_properties(profile, world, features)
    labelled, negatives, test = (load_split_features(features, n) for n in ("labelled", "filter_negatives", "test"))
    train = np.concatenate([labelled.z, negatives.z[: len(negatives.ids) // 2]])
    is_target = np.arange(len(train)) < len(labelled.ids)
    classifier = fit_source_classifier(train, is_target, sub_seed(profile.seed, "filter"))
    labels, test_labels = (np.array([s.difficulty for s in load_split(world, n)]) for n in ("labelled", "test"))
    residuals = labels - model.out_of_fold.ranking
    widths = cluster_half_widths(residuals, clusters.assign(labelled.phi).label, clusters.k)
    assigned = clusters.assign(test.phi).label
    coverage = coverage_table(model.predict(test.phi, assigned).ranking, test_labels, assigned, widths)
    return DecisionModel(clusters, *linear_readers(model, classifier), widths), coverage


def save_decision(decision: DecisionModel, path: Path) -> None:
    """Write every part's arrays and numbers as safetensors named `part.field`."""
    parts = {entry.name: vars(getattr(decision, entry.name)) for entry in fields(decision)}
    save_file({f"{part}.{name}": np.array(v, order="C") for part, values in parts.items() for name, v in values.items()}, path)


def load_decision(path: Path) -> DecisionModel:
    """Read what `save_decision` wrote; a part's numbers were kept as arrays without axes."""
    parts: dict[str, dict[str, Any]] = {"clusters": {}, "difficulty": {}, "quality": {}, "widths": {}}
    for key, value in load_file(path).items():
        part, name = key.split(".")
        parts[part][name] = value if value.ndim else value.item()
    return DecisionModel(Clusters(**parts["clusters"]), LinearReader(**parts["difficulty"]),
                         LinearReader(**parts["quality"]), HalfWidths(**parts["widths"]))  # fmt: skip


@dataclass(frozen=True)
class Confidence:
    """One latent against one label over n samples."""

    necessity: float
    """P(active | label); 0 when no sample has the label."""
    sufficiency: float
    """P(label | active); 0 when the latent is never active."""
    base_rate: float
    """P(label)."""
    n: int
    n_active: int
    n_label: int

    @property
    def frc(self) -> float:
        """Harmonic mean of necessity and sufficiency, 0 when both are 0."""
        total = self.necessity + self.sufficiency
        return 2 * self.necessity * self.sufficiency / total if total else 0.0

    @property
    def lift(self) -> float:
        """Sufficiency over base rate; 1 means that the latent says nothing about the label."""
        return self.sufficiency / self.base_rate if self.base_rate else float("nan")


def confidence(active: np.ndarray, has_label: np.ndarray) -> Confidence:
    """Necessity and sufficiency of a latent, active [N], for a label, has_label [N].

    >>> c = confidence(np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 0]))
    >>> round(c.necessity, 3), round(c.sufficiency, 3), round(c.frc, 3), round(c.lift, 3)
    (0.667, 0.667, 0.667, 1.111)

    Raises ValueError for unequal rows or none.
    """
    require_rows(active=active, has_label=has_label)
    active, has_label = np.asarray(active, dtype=bool), np.asarray(has_label, dtype=bool)
    n, both, n_active, n_label = len(active), int((active & has_label).sum()), int(active.sum()), int(has_label.sum())
    return Confidence(both / max(1, n_label), both / max(1, n_active), n_label / n, n, n_active, n_label)


def confidence_interval(active: np.ndarray, has_label: np.ndarray, samples: int, seed: int) -> Interval:
    """95 % percentile interval of FRC over `samples` bootstrap resamples of the N samples.

    A resample only redraws how many samples fall into the four cells of (active, label), so the cells are drawn directly.
    The interval does not cover that the label was chosen as the best one; `best_label_control` does.
    """
    require_rows(active=active, has_label=has_label)
    cells = np.bincount(2 * np.asarray(active, dtype=int) + np.asarray(has_label, dtype=int), minlength=4)
    draws = np.random.default_rng(seed).multinomial(cells.sum(), cells / cells.sum(), size=samples)
    marginals = draws[:, 1] + draws[:, 2] + 2 * draws[:, 3]
    return percentile_interval(confidence(active, has_label).frc, 2 * draws[:, 3] / np.maximum(1, marginals))


def frc_matrix(active: np.ndarray, one_hot: np.ndarray) -> np.ndarray:
    """FRC of every latent for every label, [J, C]; active is bool [N, J], one_hot bool [N, C].

    The harmonic mean of both / n_label and both / n_active is 2 both / (n_active + n_label).
    """
    both = active.T.astype(np.float64) @ one_hot.astype(np.float64)
    marginals = active.sum(axis=0)[:, None] + one_hot.sum(axis=0)[None]
    return 2 * both / np.maximum(1, marginals)


def best_labels(active: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The label with the largest FRC for each latent, str [J]; the first by name among equals."""
    require_rows(active=active, labels=labels)
    names, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    one_hot = codes[:, None] == np.arange(len(names))
    return names[frc_matrix(np.asarray(active, dtype=bool), one_hot).argmax(axis=1)]


def best_label_control(active: np.ndarray, labels: np.ndarray, shuffles: int, seed: int) -> np.ndarray:
    """Mean over shuffles of the labels of the largest FRC that each latent then reaches, float [J].

    The best label is chosen anew in every shuffle, as for the real labels: what FRC looks like without a relation.
    """
    require_rows(active=active, labels=labels)
    names, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    rng, active = np.random.default_rng(seed), np.asarray(active, dtype=bool)
    found = [
        frc_matrix(active, rng.permutation(codes)[:, None] == np.arange(len(names))).max(axis=1) for _ in range(shuffles)
    ]
    return np.mean(found, axis=0)


METADATA = "metadata"
GROUPS = (*(block.replace("solution", "sol") for block in BLOCKS), METADATA)
"""Feature groups in the order of phi = [z ; m]."""


def feature_names(latents: Sequence[int] | np.ndarray, metadata: Sequence[str] = FEATURES) -> tuple[str, ...]:
    """Column names of phi [4 S + m] for retained `latents` [S] and the metadata columns; pass `metadata=()` for z alone.

    >>> feature_names([7, 40], ["words"])[3:]
    ('prompt_max/40', 'sol_mean/7', 'sol_mean/40', 'sol_max/7', 'sol_max/40', 'metadata/words')
    """
    pooled = [f"{block}/{int(latent)}" for block in GROUPS[:-1] for latent in latents]
    return (*pooled, *(f"{METADATA}/{name}" for name in metadata))


def group_of(name: str) -> str:
    """The feature group of a column name."""
    return name.split("/", 1)[0]


def is_latent(name: str) -> bool:
    """Whether a column pools a latent, so that its tokens can be shown."""
    return group_of(name) != METADATA


UNLABELLED = "unlabelled"
"""Label of a cluster whose samples have no topic."""
TOP_TOPICS, REPRESENTATIVES, TOP_LATENTS = 3, 3, 5
"""Named topics, samples nearest to the centroid and latents a cluster (not stated in the paper; ours)."""
LABEL_SHARE = 0.1
"""A topic joins the label from this share of its cluster on; the first one always does (not stated in the paper; ours)."""
MIXED_SHARE = 0.25
"""Below this share of the first topic the label says that the cluster is mixed (not stated in the paper; ours)."""
CLUSTER_COLUMNS = (
    "cluster", "n", "label", "top_topics", "topic_entropy_bits", "difficulty_mean", "difficulty_q25", "difficulty_median",
    "difficulty_q75", "n_difficulty", "prompt_words_mean", "solution_words_mean", "representatives", "top_latents",
)  # fmt: skip


@dataclass(frozen=True)
class PoolFacts:
    """What is known of N samples beside their features; topics may be '' and difficulty NaN."""

    ids: Sequence[str]
    topics: np.ndarray
    """Paths 'A -> B -> C', str [N]."""
    difficulty: np.ndarray
    """Labels, float [N]."""
    prompt_words: np.ndarray
    """[N]."""
    solution_words: np.ndarray
    """[N]."""


def ranked_topics(topics: np.ndarray) -> list[tuple[str, float]]:
    """(topic, share) of the non-empty topics [N], most frequent first, by name among equals; shares of the labelled ones.

    >>> ranked_topics(np.array(["b", "a", "", "a"]))
    [('a', 0.6666666666666666), ('b', 0.3333333333333333)]
    """
    names, counts = np.unique(topics[topics != ""], return_counts=True)
    order = np.lexsort((names, -counts))
    return [(str(names[i]), float(counts[i] / counts.sum())) for i in order]


def cluster_label(ranked: Sequence[tuple[str, float]]) -> str:
    """A cluster's label: the leaves of its top topics with a share of at least `LABEL_SHARE`, else the first leaf alone.

    >>> cluster_label([("Algebra -> Linear -> Two steps", 0.5), ("Numbers -> Primes", 0.3), ("Numbers -> Powers", 0.05)])
    'Two steps, Primes'
    >>> cluster_label([("Algebra -> Linear", 0.15), ("Numbers -> Primes", 0.05)])
    'mixed: Linear'
    """
    if not ranked:
        return UNLABELLED
    named = [topic for place, (topic, share) in enumerate(ranked[:TOP_TOPICS]) if place == 0 or share >= LABEL_SHARE]
    return ("mixed: " if ranked[0][1] < MIXED_SHARE else "") + ", ".join(topic.split(" -> ")[-1] for topic in named)


def standardised_shift(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Mean of `inside` [N] minus mean of the rest, in deviations of all rows of values [N, D]; 0 if constant or without a rest.

    >>> standardised_shift(np.array([[3.0, 1.0], [1.0, 1.0]]), np.array([True, False])).tolist()
    [2.0, 0.0]
    """
    if inside.all() or not inside.any():
        return np.zeros(values.shape[1])
    spread = values.std(axis=0)
    shift = values[inside].mean(axis=0) - values[~inside].mean(axis=0)
    return np.divide(shift, spread, out=np.zeros_like(shift), where=spread > 1e-12)


def cluster_audit_table(phi: np.ndarray, names: Sequence[str], assigned: Assignment, facts: PoolFacts) -> pd.DataFrame:
    """Rows of `cluster_audit.csv`, one a cluster that holds a sample; columns of `CLUSTER_COLUMNS`.

    phi is [N, D] with column names [D]. Quartiles are of the finite difficulty labels, NaN without one; entropy in bits,
    0 without topics; lengths in words. `representatives` are the ids nearest to the centroid, `top_latents` the pooled
    latents whose mean lies most deviations above that of the other clusters. Both are joined by '; '.

    Raises ValueError for unequal rows, non-finite phi or another number of names than columns.
    """
    require_rows(phi=phi, labels=assigned.label, ids=facts.ids, topics=facts.topics, difficulty=facts.difficulty)
    require_finite("phi", phi)
    if len(names) != phi.shape[1]:
        raise ValueError(f"{len(names)} names for {phi.shape[1]} columns of phi: build them with feature_names")
    latents = np.flatnonzero([is_latent(name) for name in names])
    values, latent_names = np.asarray(phi, dtype=np.float64)[:, latents], [names[i] for i in latents]
    rows = [_cluster_row(int(c), values, latent_names, assigned, facts) for c in np.unique(assigned.label)]
    return pd.DataFrame(rows, columns=list(CLUSTER_COLUMNS))


def _cluster_row(cluster: int, values: np.ndarray, latents: Sequence[str], assigned: Assignment, facts: PoolFacts) -> tuple:
    inside = assigned.label == cluster
    topics = np.asarray(facts.topics, dtype=str)[inside]
    ranked = ranked_topics(topics)
    difficulty = np.asarray(facts.difficulty, dtype=float)[inside]
    difficulty = difficulty[np.isfinite(difficulty)]
    quartiles = np.percentile(difficulty, [25, 50, 75]).tolist() if len(difficulty) else [np.nan] * 3
    ids = np.asarray(facts.ids, dtype=str)[inside]
    nearest = ids[np.lexsort((ids, assigned.distance[inside]))][:REPRESENTATIVES]
    shift = standardised_shift(values, inside)
    top = [i for i in np.argsort(-shift, kind="stable")[:TOP_LATENTS] if shift[i] > 0]
    return (
        cluster,
        int(inside.sum()),
        cluster_label(ranked),
        "; ".join(f"{topic} ({share:.0%})" for topic, share in ranked[:TOP_TOPICS]),
        topic_entropy(topics[topics != ""]) if ranked else 0.0,
        float(difficulty.mean()) if len(difficulty) else np.nan,
        *quartiles,
        len(difficulty),
        float(np.mean(np.asarray(facts.prompt_words)[inside])),
        float(np.mean(np.asarray(facts.solution_words)[inside])),
        "; ".join(nearest),
        "; ".join(f"{latents[i]} (+{shift[i]:.1f})" for i in top),
    )


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


BOLD_SHARE = 0.5
"""Tokens from this share of the maximum on are bold (ours)."""
CONTEXT_TOKENS = 24
"""Tokens before and after the strongest one in the text version (ours)."""
BOX = "font-family:monospace;white-space:pre-wrap;background:#FFFFFF;color:#000000;padding:0.3em"
"""Style of the token box: black on white whatever the notebook's theme."""
FULL_SHADE = (86, 180, 233)
"""RGB of the strongest token: sky blue of Okabe and Ito; black text stays readable on it."""


@dataclass(frozen=True)
class TokenHighlights:
    """One span of one sample with the activations of one latent."""

    feature: str
    """Column name such as sol_mean/50831."""
    sample_id: str
    span: str
    """prompt or solution."""
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    """One a token, at least 0, in the SAE's units."""

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.activations):
            raise ValueError(
                f"{self.sample_id}: {len(self.tokens)} tokens, {len(self.activations)} activations: lengths must agree"
            )

    @property
    def strongest(self) -> int | None:
        """Place of the first token with the largest activation, None when no token is active."""
        peak = max(self.activations, default=0.0)
        return self.activations.index(peak) if peak > 0 else None

    def text(self, context: int = CONTEXT_TOKENS) -> str:
        """The strongest token in guillemets with `context` tokens on both sides, line breaks as ' | '.

        >>> TokenHighlights("sol_max/3", "a", "solution", ("x", " =", " 7"), (0.0, 0.5, 2.0)).text()
        'x =« 7»'
        """
        best = self.strongest
        marked = [f"«{t}»" if i == best else t for i, t in enumerate(self.tokens)]
        low = max(0, (best or 0) - context)
        high = min(len(marked), (best or 0) + context + 1)
        cut = ("..." if low else "") + "".join(marked[low:high]) + ("..." if high < len(marked) else "")
        return cut.replace("\n", " | ").strip()

    def excerpt(self, characters: int) -> str:
        """`text` with as many tokens around the strongest one as stay within a number of characters."""
        texts = (self.text(context) for context in range(CONTEXT_TOKENS, -1, -1))
        return next((text for text in texts if len(text) <= characters), self.text(0)[:characters])

    def _repr_html_(self) -> str:
        peak = max(self.activations, default=0.0)
        pairs = enumerate(zip(self.tokens, self.activations, strict=True))
        shown = "".join(_token(t, a / peak if peak else 0.0, i == self.strongest, a) for i, (t, a) in pairs)
        feature, span, sample = (html.escape(name) for name in (self.feature, self.span, self.sample_id))
        head = f"<b>{feature}</b> in the {span} of {sample}, maximum {peak:.2f}"
        return f'<div style="margin:0 0 0.8em 0">{head}<div style="{BOX}">{shown}</div></div>'


@dataclass(frozen=True)
class HighlightPage:
    """Some highlights below each other."""

    items: tuple[TokenHighlights, ...]

    def _repr_html_(self) -> str:
        return "".join(item._repr_html_() for item in self.items)

    def text(self) -> str:
        """One line an item: feature, sample, excerpt."""
        return "\n".join(f"{i.feature}  {i.sample_id}  {i.text()}" for i in self.items)

    def of(self, feature: str) -> HighlightPage:
        """The highlights of one feature."""
        return HighlightPage(tuple(item for item in self.items if item.feature == feature))


def _token(token: str, share: float, strongest: bool, activation: float) -> str:
    text = html.escape(token)
    if share <= 0:
        return text
    shade = "".join(f"{round(255 - share * (255 - c)):02X}" for c in FULL_SHADE)
    style = f"background:#{shade};font-weight:{'bold' if share >= BOLD_SHARE else 'normal'}"
    style += ";text-decoration:underline" if strongest else ""
    return f'<span style="{style}" title="{activation:.2f}">{text}</span>'


@dataclass(frozen=True)
class Wanted:
    """A latent to be shown in one sample."""

    feature: str
    latent: int
    """Index of the SAE's dictionary."""
    span: str
    """prompt or solution."""
    sample: Sample


def token_highlights(wanted: Sequence[Wanted], encoder: Encoder) -> HighlightPage:
    """Highlights in the order of `wanted`; every sample is encoded once, one batch at a time."""
    samples = list({w.sample.id: w.sample for w in wanted}.values())
    found: dict[int, TokenHighlights] = {}
    for batch in token_batches(samples, encoder.tokenizer, encoder.tokens_per_batch, encoder.layout):
        latents = batch_latents(encoder, batch, samples)
        for b, row in enumerate(batch.rows):
            for place, w in enumerate(wanted):
                if w.sample.id == samples[row].id:
                    mask = batch.prompt[b] if w.span == "prompt" else batch.solution[b]
                    tokens = tuple(str(encoder.tokenizer.decode([i])) for i in batch.ids[b][mask].tolist())
                    values = latents[b, mask, w.latent].to(torch.float64)
                    found[place] = TokenHighlights(w.feature, w.sample.id, w.span, tokens, tuple(values.tolist()))
    return HighlightPage(tuple(found[place] for place in range(len(wanted))))


def to_records(page: HighlightPage) -> list[dict[str, Any]]:
    """JSON-ready records of a page; activations to 5 digits."""
    return [{**asdict(item), "activations": [round(a, 5) for a in item.activations]} for item in page.items]


def from_records(records: Iterable[dict[str, Any]]) -> HighlightPage:
    """A page from the records of `to_records`."""
    return HighlightPage(
        tuple(TokenHighlights(**{**r, "tokens": tuple(r["tokens"]), "activations": tuple(r["activations"])}) for r in records)
    )


EXAMPLES = 3
"""Highest-activating samples of each top latent (ours)."""


def pool_facts(samples: list[Sample], metadata: np.ndarray) -> PoolFacts:
    """Labels and lengths of a pool beside its features."""
    words = {side: metadata[:, FEATURES.index(f"{side}_words")] for side in ("prompt", "solution")}
    topics = np.array([s.topic for s in samples], dtype=str)
    difficulty = np.array([s.difficulty for s in samples], dtype=float)
    return PoolFacts([s.id for s in samples], topics, difficulty, words["prompt"], words["solution"])


def audit_tables(
    samples: Sequence[Sample], table: FeatureTable, names: Sequence[str], assigned: Assignment, facts: PoolFacts,
    encoder: Encoder, config: PropertyConfig, seed: int, characters: int | None = None,
) -> tuple[dict[str, pd.DataFrame], HighlightPage]:  # fmt: skip
    """Tables cluster_audit, feature_groups and top_latents of N clustered samples, and the tokens of the top latents.

    top_latents has example_id and example_text of the sample that each feature is largest on, at most `characters` of it.
    """
    phi = table.phi
    gain = feature_gain(phi, assigned.label, seed)
    latents = top_latents_table(gain, names, phi, facts.topics, bootstrap_samples=config.bootstrap_samples, seed=seed)
    wanted = [
        Wanted(row.feature, row.latent, "prompt" if row.block.startswith("prompt") else "solution", samples[i])
        for row in latents.itertuples()
        for i in highest_activating(table.z, table.ids, names.index(row.feature), EXAMPLES)
    ]
    page = token_highlights(wanted, encoder) if wanted else HighlightPage(())
    first = {item.feature: item for item in reversed(page.items)}
    shown = [first[feature] for feature in latents["feature"]]
    texts = [item.text() if characters is None else item.excerpt(characters) for item in shown]
    return {
        "cluster_audit": cluster_audit_table(phi, names, assigned, facts),
        "feature_groups": feature_groups_table(gain, resampled_gains(phi, assigned.label, seed), names, len(phi)),
        "top_latents": latents.assign(example_id=[item.sample_id for item in shown], example_text=texts),
    }, page


def audit_stage(profile: Profile, world: Stage, features: Stage, difficulty: Stage) -> Stage:
    """Write what notebook 04 shows and what `plan.audit` reads.

    cluster_audit.parquet, feature_groups.parquet and top_latents.parquet hold the rows of the CSV tables of these names,
    difficulty_interval.parquet the interval's coverage on the test split, highlights.json the tokens of the top latents,
    decision.safetensors the fitted models.
    """

    def compute(folder: Path) -> None:
        samples, table = load_split(world, "pool"), load_split_features(features, "pool")
        names = feature_names(retained_latents(features))
        scores = pd.read_parquet(difficulty.path("scores.parquet"))
        assigned = Assignment(scores["cluster"].to_numpy(), scores["distance"].to_numpy())
        tables, page = audit_tables(
            samples, table, names, assigned, pool_facts(samples, table.metadata), open_reader(profile.reader), profile.properties,
            sub_seed(profile.seed, "feature-audit"),
        )  # fmt: skip
        for name, found in tables.items():
            found.to_parquet(folder / f"{name}.parquet", index=False)
        (folder / "highlights.json").write_text(json.dumps(to_records(page)) + "\n", encoding="utf-8")
        decision, coverage = fit_decision(profile, world, features)
        save_decision(decision, folder / "decision.safetensors")
        coverage.to_parquet(folder / "difficulty_interval.parquet", index=False)

    config = {**to_dict(profile.properties), "seed": profile.seed}
    return get_or_compute(profile, "audit", config, compute, (world, features, difficulty))


def load_highlights(audit: Stage) -> HighlightPage:
    """The tokens of the top latents' highest-activating samples; shown as HTML in a notebook."""
    return from_records(json.loads(audit.path("highlights.json").read_text(encoding="utf-8")))


def load_decision_model(audit: Stage) -> DecisionModel:
    """The fitted models of the stage."""
    return load_decision(audit.path("decision.safetensors"))
