"""Does a quality score find wrong or ill-posed samples, and what is left of it without length and style? (ours)

The paper's filter predicts the source and asks no further. Larger scores mean more suspect, whatever the labels say, so an AUC
below 0.5 is a finding. Probes of flaws are trained on labelled samples outside the pool: an upper reference.

SelfReg (arXiv 2502.14133) penalises a classifier that leans on unintended SAE latents. Here metadata (lengths, counts, shares of
signs) say what is unintended: a column of z counts as tied by the R^2 with which they explain it. Metadata also hold what
a problem is about, so the fall is an upper bound on what style alone carried.
Axes: N samples, D features, M metadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, PropertyConfig, sub_seed, to_dict
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.encode.models import measure_surprise, open_causal
from saerl_lib.encode.store import load_split_features
from saerl_lib.properties.probes import TOKEN_PATTERN, Matrix, fit_tfidf, shuffled, texts_of
from saerl_lib.properties.quality import PENALTY, fit_source_classifier
from saerl_lib.properties.scorer import Scorer, difficulty_stage, load_scorer
from saerl_lib.report.statistics import Interval, bootstrap_weights, rank_metrics, weighted_interval

FLAW_COLUMNS = ["dataset", "pool", "flaw", "score", "metric", "value", "ci_low", "ci_high", "n_flawed", "n_sound"]
PENALTIES = (1e-4, 1e-3, 1e-2)
"""Grid of alpha for probes of flaws, whatever they read; one held-out fold chooses (ours)."""
BUCKETS = 10_000
"""Hash buckets (DSIR, section 4)."""
READ_WHOLE = 1_000
"""Samples of the pool, drawn at random, on which scores are compared: the whole language model reads them (ours)."""


class FlawData(NamedTuple):
    """N samples with known flaws: z [N, D] that the probe reads, shallow metadata [N, M], texts, and the kind of flaw [N], ''
    when the sample is sound."""

    z: np.ndarray
    metadata: np.ndarray
    texts: tuple[str, ...]
    flaw: np.ndarray

    @property
    def flawed(self) -> np.ndarray:
        """Mask bool [N]."""
        return np.asarray(self.flaw) != ""

    def rows(self, index: np.ndarray) -> FlawData:
        """The samples at some positions."""
        return FlawData(self.z[index], self.metadata[index], tuple(self.texts[i] for i in index), self.flaw[index])


def log_importance_weights(pool_texts: Sequence[str], target_texts: Sequence[str], per_ngram: bool = False) -> np.ndarray:
    """[N] log p(x) - log q(x) in nats of every pool text (DSIR, arXiv 2302.03169); p of the target's texts, q of the pool's. The
    text-only way to make a pool look like a target. A text is a bag of lower-case unigrams and bigrams hashed into `BUCKETS`;
    target and pool are each one categorical distribution over buckets, one added to every count so that no weight is infinite
    (ours). `per_ngram` divides by the number of n-grams (ours): the sum grows with length. A text without words weighs 0."""
    hashed = HashingVectorizer(
        n_features=BUCKETS, ngram_range=(1, 2), token_pattern=TOKEN_PATTERN, alternate_sign=False, norm=None
    )
    pool = hashed.transform(pool_texts)
    smoothed = [np.asarray(counts.sum(axis=0)).ravel() + 1.0 for counts in (hashed.transform(target_texts), pool)]
    target, raw = (np.log(counts / counts.sum()) for counts in smoothed)
    weights = np.asarray(pool @ (target - raw)).ravel()
    return weights / np.maximum(np.asarray(pool.sum(axis=1)).ravel(), 1.0) if per_ngram else weights


def sgd_scores(
    train_x: Matrix, train_y: np.ndarray, test_x: Matrix, seed: int, penalty: float = PENALTY, standardise: bool = True
) -> np.ndarray:
    """[N test] log-odds by the paper's probe (`fit_source_classifier`), larger for the class True; errors as there."""
    return fit_source_classifier(train_x, train_y, seed, penalty, standardise).log_odds(test_x)


def tuned_scores(train_x: Matrix, train_y: np.ndarray, test_x: Matrix, seed: int) -> np.ndarray:
    """`sgd_scores` with the penalty of `PENALTIES` that ranks a held-out third best; ties towards the stronger penalty. With
    fewer than six samples of the rarer class there is nothing to choose by, and the strongest penalty is taken."""
    y, penalty = np.asarray(train_y, dtype=bool), PENALTIES[-1]
    if min(y.sum(), (~y).sum()) >= 6:
        kept, held_out = train_test_split(np.arange(len(y)), test_size=1 / 3, random_state=seed, stratify=y)
        scores = {alpha: sgd_scores(train_x[kept], y[kept], train_x[held_out], seed, alpha) for alpha in reversed(PENALTIES)}
        penalty = max(scores, key=lambda alpha: roc_auc_score(y[held_out], scores[alpha]))
    return sgd_scores(train_x, y, test_x, seed, penalty)


def common_scores(train: FlawData, test: FlawData, target_texts: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """score -> [N test] suspicion, from arrays and texts alone. `flaw_probe_*`: probes of flaws fitted on `train` (SAE features;
    metadata; TF-IDF; SAE features with shuffled labels). `dsir`: how little a text looks like `target_texts` against the test
    pool, as a sum and per n-gram. `length`: characters."""
    vectorizer = fit_tfidf(train.texts)
    words = [vectorizer.transform(data.texts) for data in (train, test)]
    noise = shuffled(train.flawed, sub_seed(seed, "shuffled flaws"))
    probes = {
        "flaw_probe_sae": (train.z, train.flawed, test.z),
        "flaw_probe_metadata": (train.metadata, train.flawed, test.metadata),
        "flaw_probe_tfidf": (words[0], train.flawed, words[1]),
        "flaw_probe_shuffled": (train.z, noise, test.z),
    }
    scores = {name: tuned_scores(*data, sub_seed(seed, name)) for name, data in probes.items()}
    scores["dsir"] = -log_importance_weights(test.texts, target_texts)
    scores["dsir_per_ngram"] = -log_importance_weights(test.texts, target_texts, per_ngram=True)
    scores["length"] = np.array([len(text) for text in test.texts], dtype=float)
    return scores


def flaw_table(
    scores: Mapping[str, np.ndarray], flaw: Sequence[str], pools: Mapping[str, np.ndarray], *, dataset: str,
    config: PropertyConfig, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Rows of filter_flaws.csv for suspicion scores [N] by name and kinds of flaw [N], '' when sound. `pools` maps a name to a
    mask [N]. roc_auc and average_precision set one kind, or `any`, against the sound samples; the score `chance` states what a
    random order gives. Intervals resample samples of the pool, the same resamples for every score."""
    kinds, rows = np.asarray(flaw, dtype=str), []
    for pool, mask in pools.items():
        inside = kinds[np.asarray(mask, dtype=bool)]
        sound = inside == ""
        weights = bootstrap_weights(len(inside), config.bootstrap_samples, sub_seed(seed, f"flaws {pool}"))
        for kind in ("any", *sorted(set(inside[~sound]))):
            positive = ~sound if kind == "any" else inside == kind
            compared = positive | sound
            label, counts = (dataset, pool, kind), (int(positive.sum()), int(sound.sum()))
            chance = {"roc_auc": 0.5, "average_precision": positive.sum() / compared.sum()}
            rows += [(*label, "chance", metric, value, np.nan, np.nan, *counts) for metric, value in chance.items()]
            for name, values in scores.items():
                found = rank_metrics(values[mask][compared], positive[compared], weights[:, compared])
                rows += [(*label, name, metric, *estimate, *counts) for metric, estimate in found.items()]
    return pd.DataFrame(rows, columns=FLAW_COLUMNS)


class Target(NamedTuple):
    """What the score of a probe is measured against: labels bool [N test] on the samples of a mask bool [N test]; the sign is -1
    where a small score speaks for the label."""

    labels: np.ndarray
    mask: np.ndarray
    sign: float = 1.0


def _standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in deviations of the training samples' columns."""
    scaler = StandardScaler().fit(train.astype(np.float64))
    return scaler.transform(train.astype(np.float64)), scaler.transform(test.astype(np.float64))


def _regression(points: np.ndarray, design: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [M, D] and adjusted R^2 [D], cut to 0..1, of standardised points [N, D] on a standardised design [N, M]."""
    n, m = design.shape
    coefficients = np.linalg.lstsq(design, points, rcond=1e-10)[0]
    unexplained, total = (np.square(x).mean(axis=0) for x in (points - design @ coefficients, points))
    share = np.divide(unexplained, total, out=np.ones_like(total), where=total > 0)
    adjusted = np.where(total > 0, 1.0 - share * (n - 1) / (n - m - 1), 0.0)
    return coefficients, np.clip(adjusted, 0.0, 1.0)


def suppressed_views(train: FlawData, test: FlawData, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """variant -> (training features, test features), standardised on the training samples. `scaled`: columns times 1 - R^2, which
    raises the penalty on tied ones; `dropped`: the half with the largest R^2 is set to zero, the later ones among equals;
    `residual`: the linear prediction from metadata is taken away. `scaled_random` and `dropped_random` treat randomly chosen
    columns so; `residual_random` takes away the prediction from as many random projections of z as there are metadata features.
    There must be more training samples than of these."""
    plain, metadata = _standardised(train.z, test.z), _standardised(train.metadata, test.metadata)
    rng = np.random.default_rng(seed)
    slopes, explained = _regression(plain[0], metadata[0])
    rank = np.argsort(np.argsort(explained, kind="stable"), kind="stable")
    untied = rank < round(len(rank) / 2)
    factors = {"scaled": 1.0 - explained, "scaled_random": 1.0 - rng.permutation(explained)}
    factors |= {"dropped": untied, "dropped_random": rng.permutation(untied)}
    directions = rng.normal(size=(train.z.shape[1], train.metadata.shape[1]))
    random = _standardised(*(z @ directions for z in plain))
    random_slopes, _ = _regression(plain[0], random[0])
    return {
        "plain": plain,
        **{name: (plain[0] * factor, plain[1] * factor) for name, factor in factors.items()},
        "residual": tuple(z - m @ slopes for z, m in zip(plain, metadata, strict=True)),
        "residual_random": tuple(z - r @ random_slopes for z, r in zip(plain, random, strict=True)),
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
    views: Mapping[str, tuple[np.ndarray, np.ndarray]], train_y: np.ndarray, targets: Mapping[str, Target], length: np.ndarray, *,
    dataset: str, config: PropertyConfig, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Rows of filter_selfreg.csv: one probe a variant on train_y [N train], measured on each target. `length` [N test] in any
    unit. Metrics: roc_auc, average_precision and spearman_length, the rank correlation of the score (turned by the target's sign)
    with length."""
    rows = []
    for variant, (train_x, test_x) in views.items():
        scores = sgd_scores(train_x, train_y, test_x, sub_seed(seed, "selfreg"), standardise=False)
        for name, target in targets.items():
            inside, n = target.sign * scores[target.mask], int(target.mask.sum())
            weights = bootstrap_weights(n, config.bootstrap_samples, sub_seed(seed, f"selfreg {name}"))
            found = rank_metrics(inside, target.labels[target.mask], weights)
            found["spearman_length"] = _spearman(inside, length[target.mask], weights)
            rows += [(dataset, name, variant, metric, *estimate, n) for metric, estimate in found.items()]
    return pd.DataFrame(rows, columns=["dataset", "target", "variant", "metric", "value", "ci_low", "ci_high", "n_test"])


def pool_scores(
    profile: Profile, scorer: Scorer, target: FlawData, parent: FlawData, pool: FlawData, samples: Sequence[Sample]
) -> dict[str, np.ndarray]:
    """score -> [N pool] suspicion: the paper's source probe, surprise, lengths of the sides, and `common_scores`.
    `source_membership`, the true source, is what a perfect source probe would say: any excess over chance is no knowledge of
    flaws."""
    surprise = measure_surprise([s.prompt for s in samples], [s.solution for s in samples], *open_causal(profile.reader.model))
    return {
        "source_membership": np.array([s.source == "parent" for s in samples], dtype=float),
        "source_probe": 1.0 - scorer.quality.score(pool.z),
        **common_scores(parent, pool, target.texts, sub_seed(profile.seed, "flaws")),
        "perplexity_prompt": surprise.prompt,
        "perplexity_solution": surprise.solution,
        "peak_surprise_solution": surprise.solution_peak,
        "prompt_length": np.array([len(s.prompt) for s in samples], dtype=float),
        "solution_length": np.array([len(s.solution) for s in samples], dtype=float),
    }


def selfreg_rows(profile: Profile, target: FlawData, parent: FlawData, pool: FlawData, in_parent: np.ndarray) -> pd.DataFrame:
    """Rows of filter_selfreg.csv: the source probe on source and (as 1 - s) on flaws, and the direct flaw probe. Targets:
    `source` on the whole pool; `flaw by source probe` and `flaw` among parent samples."""
    half, seed = len(parent.z) // 2, sub_seed(profile.seed, "selfreg")  # the rows that train the source filter
    z, metadata = np.concatenate([target.z, parent.z[:half]]), np.concatenate([target.metadata, parent.metadata[:half]])
    is_target = np.arange(len(z)) < len(target.z)
    length = np.array([len(text) for text in pool.texts], dtype=float)
    everything = np.ones(len(length), dtype=bool)
    named = {"dataset": "world", "config": profile.properties, "seed": seed}
    views = suppressed_views(target._replace(z=z, metadata=metadata), pool, seed)
    targets = {"source": Target(~in_parent, everything), "flaw by source probe": Target(pool.flawed, in_parent, sign=-1.0)}
    source = selfreg_table(views, is_target, targets, length, **named)
    views = suppressed_views(parent, pool, seed)
    flaws = selfreg_table(views, parent.flawed, {"flaw": Target(pool.flawed, in_parent)}, length, **named)
    return pd.concat([source, flaws], ignore_index=True)


def flaws_stage(profile: Profile, world: Stage, features: Stage) -> Stage:
    """Planted errors against scores: flaws.parquet (rows of filter_flaws.csv) and selfreg.parquet (filter_selfreg.csv). Pools:
    `whole pool`, where flaws occur in the parent source alone, so that a source score gets credit for membership; and `within
    parent`, where it does not."""
    fitted = difficulty_stage(profile, world, features)

    def compute(_: Path) -> dict[str, pd.DataFrame]:
        samples = {name: load_split(world, name) for name in ("labelled", "filter_negatives", "pool")}
        target, parent, pool = (
            FlawData(table.z, table.metadata, tuple(texts_of(rows)), np.array([s.flaw for s in rows]))
            for rows, table in ((rows, load_split_features(features, name)) for name, rows in samples.items())
        )
        in_parent = np.array([s.source == "parent" for s in samples["pool"]])
        drawn = np.random.default_rng(sub_seed(profile.seed, "read whole")).permutation(len(in_parent))[:READ_WHOLE]
        some = pool.rows(drawn)
        scores = pool_scores(profile, load_scorer(fitted), target, parent, some, [samples["pool"][i] for i in drawn])
        pools = {"whole pool": np.ones(len(drawn), dtype=bool), "within parent": in_parent[drawn]}
        named = {"dataset": "world", "config": profile.properties, "seed": profile.seed}
        left = selfreg_rows(profile, target, parent, pool, in_parent)
        return {"flaws": flaw_table(scores, some.flaw, pools, **named), "selfreg": left}

    config = {**to_dict(profile.properties), "seed": profile.seed}
    return get_or_compute(profile, "flaws", config, compute, (world, features, fitted))
