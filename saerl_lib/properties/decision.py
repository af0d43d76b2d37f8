"""The fitted models as arrays, so that one sample's decision can be taken apart without fitting again (paper, D.3).

Difficulty and quality are linear in standardised features, so prediction = intercept + sum over features of
weight * (x - mean) / scale: each term is that feature's contribution. They describe the readers, not the policy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from saerl_lib.artifacts import Stage
from saerl_lib.config import Profile, sub_seed
from saerl_lib.data.sample import load_split
from saerl_lib.encode.features import load_split_features
from saerl_lib.properties.clusters import Clusters
from saerl_lib.properties.difficulty import DifficultyModel, HalfWidths, cluster_half_widths, coverage_table
from saerl_lib.properties.quality import SourceClassifier, fit_source_classifier
from saerl_lib.properties.scorer import fit_properties


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
