"""One scorer for every pool: clusters, calibrated difficulty with an interval, and quality (paper, sections 3 and B.4).

Difficulty is an elastic net, calibrated globally and by cluster (paper, section 3.3, equation 10):

    r = g(d_hat) + lambda_c * Delta_c,   lambda_c = n_c / (n_c + tau),   larger is harder

g is isotonic; g and Delta_c are fitted on out-of-fold predictions of L, as in-sample ones lie too close to the labels (both
ours). g is flat in places, hence d_hat is kept for ties. The interval is r +- width, as in split-conformal prediction (ours);
the guarantee holds only nearly, so `coverage_table` measures it.

`fit_scorer` fits what the labels at hand allow, `Scorer.score` gives one table for any features of the same columns. The embedded
world, one's own rows, the paper's data and alternative features differ in their arguments alone. No row is scored by a model that
saw its own label: labelled and rated rows take out-of-fold scores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.base import clone
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import ElasticNet, SGDClassifier
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, PropertyConfig, sub_seed, to_dict
from saerl_lib.data.sample import Sample, hash_order, load_split
from saerl_lib.encode.store import FEATURES, FeatureTable, load_split_features
from saerl_lib.properties.clusters import Clusters, agreement, by_chunks, pool_clusters
from saerl_lib.properties.probes import FOLDS, fit_elastic_net, require_rows, topics_at
from saerl_lib.properties.quality import (
    SourceClassifier,
    filter_table,
    fit_source_classifier,
    keep_top_k,
    paper_share_k,
    separation_table,
)
from saerl_lib.report.statistics import over_seeds, wilson_interval

FITTED = ("mean_", "scale_", "coef_", "intercept_", "classes_", "n_features_in_")
"""What is stored of a scaler and of the linear model behind it, as scikit-learn calls it."""

# Difficulty.


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
        found = over_seeds(inside).interval()
        rows.append((score, int(number), len(inside), float(predicted[place == number].mean()), *found))
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


# The scorer.

PAPER_AGREEMENT = (0.1095, 0.0881, 0.0394)
"""Purity, NMI and ARI of the paper's clusters against its topics (section 5.4)."""


class Columns(NamedTuple):
    """Features of N samples as plain arrays: phi [N, D] of clusters and difficulty, no NaN, perhaps stored rows that are read by
    chunks; z [N, E] of quality."""

    ids: Sequence[str]
    phi: np.ndarray
    z: np.ndarray


Features = FeatureTable | Columns
"""What is read of N samples."""


class Rated(NamedTuple):
    """What quality is learnt from: m rows with z [m, E] that are good or not, bool [m], by ratings or by their source; negatives
    are z [n, E] of rows that are not good, whose scores place the threshold: they train nothing."""

    ids: Sequence[str]
    z: np.ndarray
    good: np.ndarray
    negatives: np.ndarray | None = None


def rated_sources(target: Features, other: Features) -> Rated:
    """Two labelled sources (paper, B.4): the target and half of the other one train, the other half places the threshold."""
    half = len(other.ids) // 2
    ids = (*target.ids, *other.ids[:half])
    return Rated(ids, np.concatenate([target.z, other.z[:half]]), np.arange(len(ids)) < len(target.ids), other.z[half:])


@dataclass(frozen=True)
class Scorer:
    """Fitted clusters and, where labels were at hand, difficulty and quality."""

    clusters: Clusters
    difficulty: DifficultyModel | None = None
    widths: pd.DataFrame | None = None
    """Of `cluster_half_widths`."""
    labelled: tuple[str, ...] = ()
    """Ids of L, the rows of `difficulty.out_of_fold`."""
    quality: SourceClassifier | None = None
    rated: tuple[str, ...] = ()
    out_of_fold: np.ndarray | None = None
    """Quality of the rated rows, float [m]."""
    negatives: np.ndarray | None = None
    """Quality of the held-out negatives, float [n]."""

    def score(self, features: Features, keep: int | None = None) -> pd.DataFrame:
        """One row a sample of `features`, in their order. Columns: sample_id, cluster, distance, raw (d_hat), calibrated
        (g(d_hat)), ranking (difficulty, r of equation 10, larger is harder), half_width (of its nominal 95 % interval), quality
        (0..1), kept: the `keep` best rows (ties by id), all without. Columns of a part that was not fitted are NaN. Raises
        ValueError for non-finite values or other columns."""
        ids, phi = list(features.ids), features.phi
        found = self.clusters.assign(phi)
        table = pd.DataFrame({"sample_id": ids, "cluster": found.label, "distance": found.distance})
        table[["raw", "calibrated", "ranking", "half_width", "quality"]] = np.nan
        table["kept"] = True
        if self.difficulty is not None:
            scores, own = self.difficulty.predict(phi, found.label), self.difficulty.out_of_fold
            for name in own:
                table[name] = _with_own(scores[name], ids, own[name], self.labelled)
            table["half_width"] = self.widths["width"].to_numpy()[found.label]
        if self.quality is not None:
            table["quality"] = _with_own(self.quality.score(features.z), ids, self.out_of_fold, self.rated)
        if keep is not None:
            table["kept"] = keep_top_k(table["quality"].to_numpy(), ids, keep)
        return table


def _with_own(values: np.ndarray, ids: Sequence[str], own: np.ndarray, own_ids: Sequence[str]) -> np.ndarray:
    """`values` [N] of the ids, with those of `own` [m] for the ids that stand among `own_ids` [m]."""
    known = pd.Series(np.asarray(own), index=list(own_ids)).reindex(ids).to_numpy()
    return np.where(np.isnan(known), values, known)


def fit_rated(rated: Rated, seed: int) -> tuple[SourceClassifier, np.ndarray]:
    """The quality classifier of all rated rows, and their out-of-fold scores [m]. Raises as `fit_source_classifier` does."""
    require_rows(ids=rated.ids, z=rated.z, good=rated.good)
    good, own = np.asarray(rated.good, dtype=bool), np.empty(len(rated.ids))
    classifier = fit_source_classifier(rated.z, good, seed)
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(own, good):
        own[test] = fit_source_classifier(rated.z[train], good[train], seed).score(rated.z[test])
    return classifier, own


def fit_scorer(
    clusters: Clusters, labelled: Features | None, labels: np.ndarray | None, quality: Rated | None, config: PropertyConfig,
    seed: int,
) -> Scorer:  # fmt: skip
    """Beside the pool's clusters fit, from what is given, difficulty and quality; deterministic for a base seed. `labelled` are
    the features of L with difficulty `labels` [n], inside the pool or beside it. Raises ValueError for non-finite values, unequal
    rows, fewer labels than folds, or ratings of a single class."""
    found = Scorer(clusters)
    if labelled is not None:
        require_rows(ids=labelled.ids, labels=labels)
        phi, cluster = labelled.phi, clusters.assign(labelled.phi).label
        model = fit_difficulty(phi, labels, cluster, clusters.k, config, sub_seed(seed, "difficulty"))
        widths = cluster_half_widths(labels - model.out_of_fold["ranking"].to_numpy(), cluster, clusters.k)
        found = replace(found, difficulty=model, widths=widths, labelled=tuple(labelled.ids))
    if quality is not None:
        classifier, own = fit_rated(quality, sub_seed(seed, "filter"))
        negatives = None if quality.negatives is None else classifier.score(quality.negatives)
        found = replace(found, quality=classifier, rated=tuple(quality.ids), out_of_fold=own, negatives=negatives)
    return found


def side_words(metadata: np.ndarray) -> dict[str, np.ndarray]:
    """prompt_words and solution_words of N samples, [N] each; their sum is the length that the tail swap compares."""
    return {name: metadata[:, FEATURES.index(name)] for name in ("prompt_words", "solution_words")}


def agreement_table(label: np.ndarray, samples: Sequence[Sample]) -> pd.DataFrame:
    """Rows of cluster_agreement.csv: clusters against topics at each level; the paper gives its leaf topics' values."""
    rows = []
    for depth, name in enumerate(("domain", "subfield", "leaf"), start=1):
        paper = PAPER_AGREEMENT if name == "leaf" else (np.nan,) * 3
        rows.append((name, len(label), *agreement(label, topics_at(samples, depth)), *paper))
    return pd.DataFrame(rows, columns=["level", "n", "purity", "nmi", "ari", "paper_purity", "paper_nmi", "paper_ari"])


def difficulty_stage(profile: Profile, data: Stage, features: Stage) -> Stage:
    """The scorer of the pool, fitted on L and, for quality, on L against the first half of the labelled parent samples. The
    filter comes before the clusters (paper, section 3.4): they are fitted on the samples that are planned. Files:
    scorer.safetensors, scores.parquet (a pool sample a row; quality is the stage `filter`'s), and what notebook 04 shows: how the
    score is calibrated, its interval's coverage on the test split, what the clusters hold, the terms of equation 10."""

    def compute(folder: Path) -> dict[str, pd.DataFrame]:
        splits = ("pool", "labelled", "filter_negatives", "test")
        pool, labelled, parent, test = (load_split_features(features, name) for name in splits)
        labels, truth = (np.array([s.difficulty for s in load_split(data, name)]) for name in ("labelled", "test"))
        rated = rated_sources(labelled, parent)
        filtering = fit_source_classifier(rated.z, np.asarray(rated.good), sub_seed(profile.seed, "filter"))
        samples = load_split(data, "pool")
        clusters = pool_clusters(pool.phi[kept_rows(profile, samples, filtering.score(pool.z))], profile.properties, profile.seed)
        scorer = fit_scorer(clusters, labelled, labels, rated, profile.properties, profile.seed)
        save_scorer(scorer, folder / "scorer.safetensors")
        frame = scorer.score(pool).drop(columns=["quality", "kept"]).assign(length=sum(side_words(pool.metadata).values()))
        held_out = scorer.score(test)
        named = {"raw": "raw", "global": "calibrated", "ranking": "ranking"}
        tables = [reliability_table(name, held_out[column].to_numpy(), truth) for name, column in named.items()]
        label = frame["cluster"].to_numpy()
        topics = pd.DataFrame({"cluster": label, "domain": topics_at(samples, 1)}).groupby(["cluster", "domain"]).size()
        corrections = scorer.difficulty.corrections.rename_axis("cluster").reset_index()
        corrections.insert(1, "n_pool", np.bincount(label, minlength=len(corrections)))
        ranking, cluster = held_out["ranking"].to_numpy(), held_out["cluster"].to_numpy()
        return {"scores": frame, "calibration": pd.concat(tables), "agreement": agreement_table(label, samples),
                "cluster_topics": topics.rename("n").reset_index(), "clusters": corrections,
                "difficulty_interval": coverage_table(ranking, truth, cluster, scorer.widths)}  # fmt: skip

    chosen = [profile.pool_samples, profile.planned, profile.plan.prompts_per_step]
    config = {**to_dict(profile.properties), "kept": chosen, "seed": profile.seed}
    return get_or_compute(profile, "difficulty", config, compute, (data, features))


def save_scorer(scorer: Scorer, path: Path) -> None:
    """Write the fitted arrays of a scorer with all its parts as safetensors, ids in the header."""
    c, m, q = scorer.clusters, scorer.difficulty, scorer.quality
    arrays = {
        "cluster.mean": c.mean, "cluster.scale": c.scale, "cluster.centroids": c.centroids, "g.x": m.calibration.X_thresholds_,
        "g.y": m.calibration.y_thresholds_, "quality.norm": q.norm, "quality.own": scorer.out_of_fold,
        "quality.negatives": scorer.negatives,
    }  # fmt: skip
    for name, model in {**m.predictor.named_steps, "source_scale": q.scaler, "source": q.classifier}.items():
        arrays |= {f"{name}.{field}": getattr(model, field) for field in FITTED if hasattr(model, field)}
    for name, table in {"corrections": m.corrections, "own": m.out_of_fold, "widths": scorer.widths}.items():
        arrays |= {f"{name}.{column}": table[column].to_numpy() for column in table}
    header = {"ids": json.dumps({"labelled": scorer.labelled, "rated": scorer.rated})}
    save_file({name: np.array(values, order="C") for name, values in arrays.items()}, path, metadata=header)


def load_scorer(difficulty: Stage) -> Scorer:
    """The fitted scorer of the stage `difficulty`; scores are the same to the last digit."""
    with safe_open(difficulty.path("scorer.safetensors"), framework="numpy") as handle:
        a = {name: handle.get_tensor(name) for name in handle.keys()}
        ids = {name: tuple(own) for name, own in json.loads(handle.metadata()["ids"]).items()}

    def table(name: str, columns: Sequence[str]) -> pd.DataFrame:
        return pd.DataFrame({column: a[f"{name}.{column}"] for column in columns})

    def model(name: str, unfitted: Any) -> Any:
        for field in FITTED:
            if (values := a.get(f"{name}.{field}")) is not None:
                setattr(unfitted, field, values[()])  # a scalar where it was one
        return unfitted

    predictor = Pipeline([("scale", model("scale", StandardScaler())), ("probe", model("probe", ElasticNet()))])
    calibration = IsotonicRegression(out_of_bounds="clip").fit(a["g.x"][:, None], a["g.y"])
    corrections = table("corrections", ("n_labelled", "residual", "shrinkage"))
    classifier = model("source", SGDClassifier(loss="log_loss"))
    quality = SourceClassifier(model("source_scale", StandardScaler()), float(a["quality.norm"]), classifier)
    return Scorer(
        Clusters(a["cluster.mean"], a["cluster.scale"], a["cluster.centroids"]),
        DifficultyModel(predictor, calibration, corrections, table("own", ("raw", "calibrated", "ranking"))),
        table("widths", ("width", "n", "own")), ids["labelled"], quality, ids["rated"], a["quality.own"], a["quality.negatives"],
    )  # fmt: skip


def whole_batches(samples: Sequence[Sample], prompts_per_step: int, most: int | None = None) -> np.ndarray:
    """Mask bool [N] of the samples, `most` of them, that fill whole batches: by the hash of the question, so that neither easy
    nor late ones are favoured.

    >>> int(whole_batches([Sample(name, name, (), "1") for name in "abc"], 2).sum())
    2
    """
    mask = np.zeros(len(samples), dtype=bool)
    n = min(len(samples), len(samples) if most is None else most)
    mask[hash_order(samples)[: n - n % prompts_per_step]] = True
    return mask


def kept_rows(profile: Profile, samples: Sequence[Sample], score: np.ndarray) -> np.ndarray:
    """Mask bool [N] of the pool's samples that are planned, whole batches: the target source (`pool_samples` of a world's), or,
    with `planned` all, the best of the noisy pool by the filter's `score` (of published sets as many as the target has)."""
    ids, is_target = [s.id for s in samples], np.array([s.source == profile.target for s in samples])
    count = profile.pool_samples if profile.world else min(profile.pool_samples, int(is_target.sum()))
    kept = is_target if profile.planned == "target" else keep_top_k(score, ids, count)
    rows = np.flatnonzero(kept)
    kept[rows] = whole_batches([samples[i] for i in rows], profile.plan.prompts_per_step, count if profile.world else None)
    return kept


def filter_stage(profile: Profile, data: Stage, features: Stage) -> Stage:
    """The quality filter: table.parquet, kept.parquet (sample_id, score, kept, reason); separation.parquet where sources differ.
    The classifier is that of the stage `difficulty`; held-out parent samples place the percentile thresholds. `kept_rows` says
    which are kept."""
    fitted = difficulty_stage(profile, data, features)

    def compute(_: Path) -> dict[str, pd.DataFrame]:
        scorer, pool = load_scorer(fitted), load_split_features(features, "pool")
        samples, b = load_split(data, "pool"), profile.plan.prompts_per_step
        is_target = np.array([s.source == profile.target for s in samples])
        count = profile.pool_samples if profile.world else min(profile.pool_samples, int(is_target.sum()))
        found = scorer.score(pool, count)
        scores, rules = found["quality"].to_numpy(), {**paper_share_k(len(pool.ids)), "top_k used": count}
        table = filter_table(scores, pool.ids, is_target, scorer.negatives, rules)
        separation = {} if is_target.all() else {
            "separation": separation_table(scores, is_target, profile.properties.bootstrap_samples, profile.seed)
        }  # fmt: skip
        kept = found[["sample_id", "quality"]].rename(columns={"quality": "score"})
        kept["kept"] = kept_rows(profile, samples, scores)
        candidate = is_target if profile.planned == "target" else found["kept"].to_numpy()
        over = profile.world and candidate.sum() >= profile.pool_samples + b
        spare = f"beyond the {profile.pool_samples:,} samples of the profile" if over else f"fills no whole batch of {b}"
        kept["reason"] = np.where(kept["kept"], "", np.where(candidate, spare, "filtered"))
        return {"table": table, **separation, "kept": kept}

    chosen = [profile.pool_samples, profile.planned, profile.plan.prompts_per_step]
    config = {**to_dict(profile.properties), "kept": chosen, "seed": profile.seed}
    return get_or_compute(profile, "filter", config, compute, (data, features, fitted))
