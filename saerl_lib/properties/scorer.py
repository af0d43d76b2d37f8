"""One scorer for every pool: clusters, calibrated difficulty with an interval, and quality (paper, sections 3 and B.4).

`fit_scorer` fits what the labels at hand allow, `Scorer.score` gives one table for any features of the same columns. The embedded
world, one's own rows, the paper's data and alternative features differ in their arguments alone.
No row is scored by a model that saw its own label: labelled and rated rows take out-of-fold scores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import ElasticNet, SGDClassifier
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, PropertyConfig, sub_seed, to_dict
from saerl_lib.data.sample import Sample, hash_share, load_split, normalise
from saerl_lib.encode.store import FEATURES, FeatureTable, load_split_features
from saerl_lib.properties.clusters import Clusters, agreement, pool_clusters
from saerl_lib.properties.difficulty import (
    DifficultyModel,
    cluster_half_widths,
    coverage_table,
    fit_difficulty,
    reliability_table,
)
from saerl_lib.properties.probes import FOLDS, require_rows
from saerl_lib.properties.quality import (
    SourceClassifier,
    filter_table,
    fit_source_classifier,
    keep_top_k,
    paper_share_k,
    score_histogram,
    separation_table,
)

LINEAR = ("mean", "scale", "weight", "intercept")
"""Stored arrays of a scaler and of the linear model behind it."""
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
    features: Features, labelled: Features | None, labels: np.ndarray | None, quality: Rated | None, config: PropertyConfig,
    seed: int, clusters: Clusters | None = None,
) -> Scorer:  # fmt: skip
    """Fit clusters on the pool `features` [N] and, from what is given, difficulty and quality; deterministic for a base seed.
    `labelled` are the features of L with difficulty `labels` [n], inside the pool or beside it; `clusters` were fitted before.
    Raises ValueError for non-finite values, unequal rows, fewer labels than folds, or ratings of a single class."""
    clusters = pool_clusters(features.phi, config, seed) if clusters is None else clusters
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


def topics_at(samples: Sequence[Sample], depth: int) -> np.ndarray:
    """Topic paths cut to `depth` levels: 1 domain, 2 subfield, 3 leaf."""
    return np.array([" -> ".join(s.topic.split(" -> ")[:depth]) for s in samples])


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


def difficulties(data: Stage, split: str) -> np.ndarray:
    """Difficulty labels of a split [n]."""
    return np.array([s.difficulty for s in load_split(data, split)])


def difficulty_stage(profile: Profile, data: Stage, features: Stage) -> Stage:
    """The scorer of the pool, fitted on L and, for quality, on L against the first half of the labelled parent samples. The
    filter comes before the clusters (paper, section 3.4): they are fitted on the samples that are planned. Files:
    scorer.safetensors, scores.parquet (a pool sample a row; quality is the stage `filter`'s), and what notebook 04 shows: how the
    score is calibrated, its interval's coverage on the test split, what the clusters hold, the terms of equation 10."""

    def compute(folder: Path) -> dict[str, pd.DataFrame]:
        splits = ("pool", "labelled", "filter_negatives", "test")
        pool, labelled, parent, test = (load_split_features(features, name) for name in splits)
        labels, rated = difficulties(data, "labelled"), rated_sources(labelled, parent)
        filtering = fit_source_classifier(rated.z, np.asarray(rated.good), sub_seed(profile.seed, "filter"))
        samples = load_split(data, "pool")
        clusters = pool_clusters(pool.phi[kept_rows(profile, samples, filtering.score(pool.z))], profile.properties, profile.seed)
        scorer = fit_scorer(pool, labelled, labels, rated, profile.properties, profile.seed, clusters)
        save_scorer(scorer, folder / "scorer.safetensors")
        frame = scorer.score(pool).drop(columns=["quality", "kept"]).assign(length=sum(side_words(pool.metadata).values()))
        held_out, truth = scorer.score(test), difficulties(data, "test")
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
    arrays = {"cluster.mean": c.mean, "cluster.scale": c.scale, "cluster.centroids": c.centroids,
              "cluster.counts": np.array([c.n_merged, c.n_moved]), "g.x": m.calibration.X_thresholds_,
              "g.y": m.calibration.y_thresholds_, "source.norm": np.array([q.norm]), "source.own": scorer.out_of_fold,
              "source.negatives": scorer.negatives}  # fmt: skip
    for name, (scaler, model) in {"net": m.predictor.named_steps.values(), "source": (q.scaler, q.classifier)}.items():
        parts = (scaler.mean_, scaler.scale_, np.ravel(model.coef_), np.ravel(model.intercept_))
        arrays |= {f"{name}.{part}": values for part, values in zip(LINEAR, parts, strict=True)}
    for name, table in {"corrections": m.corrections, "own": m.out_of_fold, "widths": scorer.widths}.items():
        arrays |= {f"{name}.{column}": table[column].to_numpy() for column in table}
    header = {"ids": json.dumps({"labelled": scorer.labelled, "rated": scorer.rated})}
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, path, metadata=header)


def load_scorer(difficulty: Stage) -> Scorer:
    """The fitted scorer of the stage `difficulty`; scores are the same to the last digit."""
    with safe_open(difficulty.path("scorer.safetensors"), framework="numpy") as handle:
        a = {name: handle.get_tensor(name) for name in handle.keys()}
        ids = {name: tuple(own) for name, own in json.loads(handle.metadata()["ids"]).items()}

    def table(name: str, columns: Sequence[str]) -> pd.DataFrame:
        return pd.DataFrame({column: a[f"{name}.{column}"] for column in columns})

    def linear(name: str, model: Any) -> tuple[StandardScaler, Any]:
        scaler = StandardScaler()
        scaler.mean_, scaler.scale_, model.coef_, model.intercept_ = (a[f"{name}.{part}"] for part in LINEAR)
        scaler.var_, scaler.n_features_in_, model.n_features_in_ = scaler.scale_**2, len(scaler.mean_), len(scaler.mean_)
        return scaler, model

    scaler, net = linear("net", ElasticNet())
    net.intercept_ = float(net.intercept_[0])
    calibration = IsotonicRegression(out_of_bounds="clip").fit(a["g.x"][:, None], a["g.y"])
    model = DifficultyModel(Pipeline([("scale", scaler), ("probe", net)]), calibration,
                            table("corrections", ("n_labelled", "residual", "shrinkage")),
                            table("own", ("raw", "calibrated", "ranking")))  # fmt: skip
    scaler, classifier = linear("source", SGDClassifier(loss="log_loss"))
    classifier.coef_, classifier.classes_ = classifier.coef_[None], np.array([False, True])
    clusters = Clusters(a["cluster.mean"], a["cluster.scale"], a["cluster.centroids"], *map(int, a["cluster.counts"]))
    quality = SourceClassifier(scaler, float(a["source.norm"][0]), classifier)
    return Scorer(clusters, model, table("widths", ("width", "n", "own")), ids["labelled"], quality, ids["rated"],
                  a["source.own"], a["source.negatives"])  # fmt: skip


def pool_scorer(profile: Profile, data: Stage, features: Stage) -> Scorer:
    """The same, from what the stage is computed of."""
    return load_scorer(difficulty_stage(profile, data, features))


def whole_batches(ids: Sequence[str], keys: Sequence[str], prompts_per_step: int, most: int | None = None) -> np.ndarray:
    """Mask bool [N] of the rows, `most` of them, that fill whole batches: by the hash of the question, so that neither easy nor
    late rows are favoured.

    >>> int(whole_batches(["a", "b", "c"], ["1", "2", "3"], 2).sum())
    2
    """
    order = np.lexsort((np.asarray(ids, dtype=str), np.array([hash_share(key) for key in keys])))
    mask = np.zeros(len(ids), dtype=bool)
    n = min(len(ids), len(ids) if most is None else most)
    mask[order[: n - n % prompts_per_step]] = True
    return mask


def kept_rows(profile: Profile, samples: Sequence[Sample], score: np.ndarray) -> np.ndarray:
    """Mask bool [N] of the pool's samples that are planned, whole batches: the target source (`pool_samples` of a world's), or,
    with `planned` all, the best of the noisy pool by the filter's `score` (of published sets as many as the target has)."""
    ids, is_target = [s.id for s in samples], np.array([s.source == profile.target for s in samples])
    count = profile.pool_samples if profile.world else min(profile.pool_samples, int(is_target.sum()))
    kept = is_target if profile.planned == "target" else keep_top_k(score, ids, count)
    rows = np.flatnonzero(kept)
    keys = [normalise(samples[i].prompt) for i in rows]
    kept[rows] = whole_batches([ids[i] for i in rows], keys, profile.plan.prompts_per_step, count if profile.world else None)
    return kept


def filter_stage(profile: Profile, data: Stage, features: Stage) -> Stage:
    """The quality filter: table.parquet, histogram.parquet, separation.parquet and kept.parquet (sample_id, score, kept, reason).
    The classifier is that of the stage `difficulty`; held-out parent samples place the percentile thresholds. `kept_rows` says
    which are kept."""
    fitted = difficulty_stage(profile, data, features)

    def compute(_: Path) -> dict[str, pd.DataFrame]:
        scorer, pool = load_scorer(fitted), load_split_features(features, "pool")
        samples = load_split(data, "pool")
        sources = np.array([s.source for s in samples])
        is_target = sources == profile.target
        count = profile.pool_samples if profile.world else min(profile.pool_samples, int(is_target.sum()))
        found = scorer.score(pool, count)
        scores, rules = found["quality"].to_numpy(), {**paper_share_k(len(pool.ids)), "top_k used": count}
        table = filter_table(scores, pool.ids, is_target, scorer.negatives, rules)
        separation = separation_table(scores, is_target, profile.properties.bootstrap_samples, profile.seed)
        kept = found[["sample_id", "quality"]].rename(columns={"quality": "score"})
        kept["kept"] = kept_rows(profile, samples, scores)
        candidate = is_target if profile.planned == "target" else found["kept"].to_numpy()
        reasons = np.where(candidate, f"fills no whole batch of {profile.plan.prompts_per_step}", "filtered")
        kept["reason"] = np.where(kept["kept"], "", reasons)
        return {"table": table, "histogram": score_histogram(scores, sources), "separation": separation, "kept": kept}

    chosen = [profile.pool_samples, profile.planned, profile.plan.prompts_per_step]
    config = {**to_dict(profile.properties), "kept": chosen, "seed": profile.seed}
    return get_or_compute(profile, "filter", config, compute, (data, features, fitted))
