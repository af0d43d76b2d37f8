"""The control ladder: what each feature set reads of a task, same splits, same tuning budget (ours; see peers of the paper).

A feature set is a pair of matrices (train, test). Everything that is fitted (scalers, PCA, TF-IDF, retained sets) sees
training rows alone. The ladder stores test predictions, so that intervals and comparisons can be drawn again without fitting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from sklearn.random_projection import GaussianRandomProjection
from threadpoolctl import threadpool_limits

from saerl_lib.config import PropertyConfig, sub_seed
from saerl_lib.data.sample import Sample
from saerl_lib.encode.metadata import PROMPT_COLUMNS, metadata_features
from saerl_lib.properties import Matrix
from saerl_lib.properties.probes import fit_elastic_net, fit_ridge, fit_topic_probe, probe_path, shuffled
from saerl_lib.properties.tasks import Task
from saerl_lib.properties.text import fit_tfidf

SHUFFLES = 5
"""Permutations of the shuffled-label control."""


@dataclass(frozen=True)
class FeatureSet:
    """One rung of the ladder for one task."""

    name: str
    train: Matrix
    test: Matrix
    seed: int = 0
    """Seed of the SAE, or number of the permutation; 0 where there is one only."""
    shuffled: bool = False
    """Train on permuted labels."""


def task_texts(samples: Sequence[Sample], with_solution: bool) -> list[str]:
    """What a text baseline reads."""
    return [f"{s.prompt}\n{s.solution}" if with_solution else s.prompt for s in samples]


def text_sets(task: Task) -> list[FeatureSet]:
    """Length, metadata and TF-IDF, which need no model."""
    sides = (task.train, task.test)
    metadata = [metadata_features(samples) for samples in sides]
    columns = list(range(metadata[0].shape[1])) if task.with_solution else PROMPT_COLUMNS
    lengths = [column for column in columns if column in (0, 13)]  # characters of the prompt and of the solution
    texts = [task_texts(samples, task.with_solution) for samples in sides]
    words = fit_tfidf(texts[0])
    return [
        FeatureSet("length", *(m[:, lengths] for m in metadata)),
        FeatureSet("metadata", *(m[:, columns] for m in metadata)),
        FeatureSet("tfidf", *(words.transform(t) for t in texts)),
    ]


def block_sets(task: Task, blocks: Mapping[str, tuple[np.ndarray, np.ndarray]], width: int, seed: int) -> list[FeatureSet]:
    """Dense activations (all, PCA, random projection) and every SAE; `blocks` maps a reader to its (train, test) features.

    SAE readers are named kind#seed; `width` is that of their features, to which dense ones are projected. A sample whose
    solution was cut off with the end of its text has the mean of the training samples there.
    """

    def part(x: np.ndarray) -> np.ndarray:
        return x if task.with_solution else x[:, : x.shape[1] // 2]

    sets = []
    for name, (train, test) in blocks.items():
        a, b = part(train), part(test)
        mean = np.nanmean(a, axis=0) if np.isnan(a).any() or np.isnan(b).any() else 0.0
        a, b = np.where(np.isnan(a), mean, a), np.where(np.isnan(b), mean, b)
        if name == "dense":
            sets += [FeatureSet("dense", a, b), *_projected(a, b, width, seed)]
            continue
        kind, _, number = name.partition("#")
        sets.append(FeatureSet(kind, a, b, int(number or 0)))
        if kind == "sae":
            columns = slice(None) if task.with_solution else PROMPT_COLUMNS
            joined = [np.concatenate([z, metadata_features(s)[:, columns]], axis=1) for z, s in ((a, task.train), (b, task.test))]
            sets.append(FeatureSet("sae+metadata", *joined, seed=int(number or 0)))
            if number in ("", "0"):
                sets += [FeatureSet("shuffled_labels", a, b, i, shuffled=True) for i in range(SHUFFLES)]
    return sets


def _projected(train: np.ndarray, test: np.ndarray, width: int, seed: int) -> list[FeatureSet]:
    """Dense features brought to `width` columns; PCA ends at their own width when that is smaller."""
    scaler = StandardScaler().fit(train)
    a, b = scaler.transform(train), scaler.transform(test)
    pca = PCA(n_components=min(width, *a.shape), svd_solver="covariance_eigh").fit(a)
    random = GaussianRandomProjection(n_components=width, random_state=seed).fit(a)
    return [
        FeatureSet("dense_pca", pca.transform(a), pca.transform(b)),
        FeatureSet("dense_random_projection", random.transform(a), random.transform(b)),
    ]


def predict(task: Task, features: FeatureSet, config: PropertyConfig, seed: int) -> np.ndarray:
    """Test predictions [n_test]: a topic, a difficulty, a probability of "true", or a quality."""
    y = task.y_train
    if features.shuffled:
        y = shuffled(y, sub_seed(seed, f"shuffle-{features.seed}"))
    with threadpool_limits(1):
        if task.kind == "topic":
            return fit_topic_probe(features.train, y, config, seed).predict(features.test)
        if task.kind == "binary":
            probe = fit_topic_probe(features.train, y, config, seed)
            return probe.predict_proba(features.test)[:, list(probe.classes_).index(1.0)]
        if task.kind == "quality":
            probe = fit_ridge(features.train, y, config, seed)
        else:
            probe = fit_elastic_net(features.train, y, probe_path(config), seed)
        return np.asarray(probe.predict(features.test), dtype=float)


def predict_all(
    task: Task, sets: Sequence[FeatureSet], config: PropertyConfig, seed: int, workers: int
) -> dict[tuple[str, int], np.ndarray]:
    """(feature set, seed) -> test predictions, fits spread over `workers` processes of one thread."""
    done = Parallel(n_jobs=workers)(delayed(predict)(task, s, config, sub_seed(seed, task.target)) for s in sets)
    return {(s.name, s.seed): values for s, values in zip(sets, done, strict=True)}
