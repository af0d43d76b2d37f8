"""Stages of the properties room: the probe ladder, clusters with calibrated difficulty, and the quality filter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, sub_seed, to_dict
from saerl_lib.data.sample import Sample
from saerl_lib.data.stage import load_split
from saerl_lib.encode.metadata import FEATURES
from saerl_lib.encode.stage import load_split_features
from saerl_lib.properties.clusters import Clusters, agreement, cluster_topics, pool_clusters, topic_summary
from saerl_lib.properties.difficulty import DifficultyModel, fit_difficulty, reliability_table
from saerl_lib.properties.ladder import probe_rows
from saerl_lib.properties.quality import (
    filter_table,
    fit_source_classifier,
    keep_top_k,
    paper_share_k,
    score_histogram,
    source_separation,
)

PAPER_AGREEMENT = (0.1095, 0.0881, 0.0394)
"""Purity, NMI and ARI of the paper's clusters against its topics (section 5.4)."""


def topics_at(samples: Sequence[Sample], depth: int) -> np.ndarray:
    """Topic paths cut to `depth` levels: 1 domain, 2 subfield, 3 leaf."""
    return np.array([" -> ".join(s.topic.split(" -> ")[:depth]) for s in samples])


def sequence_words(metadata: np.ndarray) -> np.ndarray:
    """Words of prompt and solution together, the sequence length that the tail swap compares, [N]."""
    return metadata[:, [FEATURES.index(f"{side}_words") for side in ("prompt", "solution")]].sum(axis=1)


def agreement_table(label: np.ndarray, samples: Sequence[Sample]) -> pd.DataFrame:
    """Rows of cluster_agreement.csv: clusters against topics at each level; the paper gives its leaf topics' values."""
    rows = []
    for depth, name in enumerate(("domain", "subfield", "leaf"), start=1):
        found = agreement(label, topics_at(samples, depth))
        paper = PAPER_AGREEMENT if name == "leaf" else (np.nan,) * 3
        rows.append((name, len(label), found.purity, found.nmi, found.ari, *paper))
    return pd.DataFrame(rows, columns=["level", "n", "purity", "nmi", "ari", "paper_purity", "paper_nmi", "paper_ari"])


def probes_stage(profile: Profile, world: Stage, features: Stage, control: Stage) -> Stage:
    """The probe ladder: ladder.parquet with the rows of world_probes.csv; `control` is the encoder that saw every family."""

    def compute(folder: Path) -> None:
        pd.DataFrame(probe_rows(profile, world, features, control)).to_parquet(folder / "ladder.parquet", index=False)

    config = {**to_dict(profile.properties), "seed": profile.seed}
    return get_or_compute(profile, "probes", "properties", config, compute, (world, features, control))


def fit_properties(profile: Profile, world: Stage, features: Stage) -> tuple[Clusters, DifficultyModel]:
    """Clusters of the pool's phi and the difficulty model fitted on L."""
    pool, labelled = load_split_features(features, "pool"), load_split_features(features, "labelled")
    labels = np.array([s.difficulty for s in load_split(world, "labelled")])
    clusters = pool_clusters(pool.phi, profile.properties, profile.seed)
    assigned = clusters.assign(labelled.phi).label
    seed = sub_seed(profile.seed, "difficulty")
    return clusters, fit_difficulty(labelled.phi, labels, assigned, clusters.k, profile.properties, seed)


def difficulty_stage(profile: Profile, world: Stage, features: Stage) -> Stage:
    """Clusters and difficulty.

    Files: scores.parquet (a pool sample a row), calibration.parquet, cluster_topics.parquet, clusters.parquet.
    """

    def compute(folder: Path) -> None:
        clusters, model = fit_properties(profile, world, features)
        pool_samples, pool = load_split(world, "pool"), load_split_features(features, "pool")
        assigned = clusters.assign(pool.phi)
        scores = model.predict(pool.phi, assigned.label)
        frame = pd.DataFrame(
            {
                "sample_id": pool.ids,
                "cluster": assigned.label,
                "distance": assigned.distance,
                "raw": scores.raw,
                "calibrated": scores.calibrated_global,
                "ranking": scores.ranking,
                "length": sequence_words(pool.metadata),
            }
        )
        frame.to_parquet(folder / "scores.parquet", index=False)
        test_samples, test = load_split(world, "test"), load_split_features(features, "test")
        held_out = model.predict(test.phi, clusters.assign(test.phi).label)
        labels = np.array([s.difficulty for s in test_samples])
        named = {"raw": held_out.raw, "global": held_out.calibrated_global, "ranking": held_out.ranking}
        tables = [reliability_table(name, values, labels) for name, values in named.items()]
        pd.concat(tables).to_parquet(folder / "calibration.parquet", index=False)
        agreement_table(assigned.label, pool_samples).to_parquet(folder / "agreement.parquet", index=False)
        cluster_topics(assigned.label, topics_at(pool_samples, 1)).to_parquet(folder / "cluster_topics.parquet", index=False)
        summary = _summary(frame, pool_samples, pool.metadata, model)
        summary.to_parquet(folder / "clusters.parquet", index=False)

    config = {**to_dict(profile.properties), "seed": profile.seed}
    return get_or_compute(profile, "difficulty", "properties", config, compute, (world, features))


def _summary(scores: pd.DataFrame, samples: Sequence[Sample], metadata: np.ndarray, model: DifficultyModel) -> pd.DataFrame:
    """Rows of cluster_summary.csv."""
    label = scores["cluster"].to_numpy()
    frame = topic_summary(label, topics_at(samples, 3)).rename(columns={"n": "n_pool"})
    frame["n_labelled"] = model.corrections.n_labelled
    frame["residual"] = model.corrections.residual
    frame["shrinkage"] = model.corrections.shrinkage
    words = {side: metadata[:, FEATURES.index(f"{side}_words")] for side in ("prompt", "solution")}
    means = {
        "difficulty_mean": np.array([s.difficulty for s in samples]),
        "prompt_words_mean": words["prompt"],
        "solution_words_mean": words["solution"],
    }
    for name, values in means.items():
        frame[name] = [float(values[label == c].mean()) for c in frame["cluster"]]
    return frame


def filter_stage(profile: Profile, world: Stage, features: Stage) -> Stage:
    """The quality filter: table.parquet, histogram.parquet, separation.parquet and kept.parquet (sample_id, score, kept).

    L and half of the labelled parent samples train the classifier, the other half of the parent places the
    percentile thresholds; the run keeps the top `pool_samples`, one of the paper's two rules.
    """

    def compute(folder: Path) -> None:
        positives, negatives, pool = (load_split_features(features, n) for n in ("labelled", "filter_negatives", "pool"))
        half = len(negatives.ids) // 2
        train = np.concatenate([positives.z, negatives.z[:half]])
        is_target = np.arange(len(train)) < len(positives.ids)
        classifier = fit_source_classifier(train, is_target, sub_seed(profile.seed, "filter"))
        scores = classifier.score(pool.z)
        sources = np.array([s.source for s in load_split(world, "pool")])
        rules = {**paper_share_k(len(pool.ids)), "top_k used": profile.pool_samples}
        held_out = classifier.score(negatives.z[half:])
        filter_table(scores, pool.ids, sources == "target", held_out, rules).to_parquet(folder / "table.parquet", index=False)
        score_histogram(scores, sources).to_parquet(folder / "histogram.parquet", index=False)
        rows = source_separation(
            scores,
            sources == "target",
            n_train=len(train),
            dataset="world",
            features="sae",
            config=profile.properties,
            seed=profile.seed,
        )
        pd.DataFrame(rows).to_parquet(folder / "separation.parquet", index=False)
        kept = keep_top_k(scores, pool.ids, profile.pool_samples)
        pd.DataFrame({"sample_id": pool.ids, "score": scores, "kept": kept}).to_parquet(folder / "kept.parquet", index=False)

    config = {**to_dict(profile.properties), "kept": profile.pool_samples, "seed": profile.seed}
    return get_or_compute(profile, "filter", "properties", config, compute, (world, features))
