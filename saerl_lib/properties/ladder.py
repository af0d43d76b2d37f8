"""Probes on the embedded world: each property from the main feature sets, same splits, same tuning budget.

The whole ladder of controls, with SAE seeds and real data, is that of profile `method` (`ladder_stage`).

Targets follow the paper's Tables 1 to 3. The paper's L2, L3 and leaf topics are domain, subfield and leaf here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from saerl_lib.artifacts import Stage
from saerl_lib.config import Profile, sub_seed
from saerl_lib.data.sample import Sample
from saerl_lib.data.stage import load_split
from saerl_lib.encode.metadata import FEATURES
from saerl_lib.encode.stage import load_split_features
from saerl_lib.properties.probes import (
    ProbeRow,
    difficulty_probe,
    majority_baseline,
    mean_baseline,
    quality_regression,
    shuffled,
    topic_probe,
)
from saerl_lib.properties.tasks import joined_labels, solution_quality
from saerl_lib.properties.text import fit_tfidf

TOPIC_TARGETS = {"topic_l2": 1, "topic_l3": 2, "topic_leaf": 3}
"""Target name -> levels of the topic path."""
Matrices = dict[str, tuple[Any, Any]]
"""feature set -> (train, test)."""


def _length_columns() -> list[int]:
    return [FEATURES.index(f"{side}_characters") for side in ("prompt", "solution")]


def _text(samples: Sequence[Sample], with_solution: bool) -> list[str]:
    return [f"{s.prompt}\n{s.solution}" if with_solution else s.prompt for s in samples]


def _tfidf(train: Sequence[Sample], test: Sequence[Sample], with_solution: bool) -> tuple[Any, Any]:
    vectors = fit_tfidf(_text(train, with_solution))
    return vectors.transform(_text(train, with_solution)), vectors.transform(_text(test, with_solution))


class _Side:
    """A split's samples and features."""

    def __init__(self, world: Stage, features: Stage, *names: str) -> None:
        self.samples = [s for name in names for s in load_split(world, name)]
        tables = [load_split_features(features, name) for name in names]
        self.prompt_z = np.concatenate([t.prompt_z for t in tables])
        self.z = np.concatenate([t.z for t in tables])
        self.metadata = np.concatenate([t.metadata for t in tables])
        self.phi = np.concatenate([t.phi for t in tables])
        self.difficulty = np.array([s.difficulty for s in self.samples])

    def part(self, rows: slice) -> _Side:
        """The same record for some rows."""
        other = object.__new__(_Side)
        other.samples = self.samples[rows]
        for name in ("prompt_z", "z", "metadata", "phi", "difficulty"):
            setattr(other, name, getattr(self, name)[rows])
        return other


def _sets(train: _Side, test: _Side) -> Matrices:
    lengths = _length_columns()
    return {
        "length": (train.metadata[:, lengths], test.metadata[:, lengths]),
        "metadata": (train.metadata, test.metadata),
        "tfidf": _tfidf(train.samples, test.samples, True),
        "sae": (train.z, test.z),
        "sae+metadata": (train.phi, test.phi),
    }


def topic_rows(train: _Side, test: _Side, profile: Profile) -> list[ProbeRow]:
    """Table 1: topics from the prompt side; metadata are cut to their prompt half."""
    prompt_columns = [i for i, name in enumerate(FEATURES) if name.startswith("prompt_")]
    sets: Matrices = {
        "length": (train.metadata[:, :1], test.metadata[:, :1]),
        "metadata": (train.metadata[:, prompt_columns], test.metadata[:, prompt_columns]),
        "tfidf": _tfidf(train.samples, test.samples, False),
        "sae": (train.prompt_z, test.prompt_z),
    }
    rows = []
    for target, depth in TOPIC_TARGETS.items():
        y, truth = (np.array([" -> ".join(s.topic.split(" -> ")[:depth]) for s in side.samples]) for side in (train, test))
        common = {"dataset": "world", "target": target, "config": profile.properties, "seed": sub_seed(profile.seed, "topic")}
        rows.append(majority_baseline(y, truth, **common))
        rows += [topic_probe(a, y, b, truth, features=name, **common) for name, (a, b) in sets.items()]
        mixed = shuffled(y, sub_seed(profile.seed, "shuffle"))
        rows.append(topic_probe(train.prompt_z, mixed, test.prompt_z, truth, features="shuffled_labels", **common))
    return rows


def difficulty_rows(train: _Side, y: np.ndarray, test: _Side, target: str, profile: Profile) -> list[ProbeRow]:
    """One regime of Table 2: labels y [N] of the training side."""
    common = {"dataset": "world", "target": target, "config": profile.properties, "seed": sub_seed(profile.seed, "difficulty")}
    rows = [difficulty_probe(a, y, b, test.difficulty, features=n, **common) for n, (a, b) in _sets(train, test).items()]
    mixed = shuffled(y, sub_seed(profile.seed, "shuffle"))
    rows.append(difficulty_probe(train.phi, mixed, test.phi, test.difficulty, features="shuffled_labels", **common))
    return rows


def quality_rows(train: _Side, test: _Side, profile: Profile) -> list[ProbeRow]:
    """Table 3: mean step score of a solution."""
    common = {
        "dataset": "world",
        "target": "solution_quality",
        "config": profile.properties,
        "seed": sub_seed(profile.seed, "quality"),
    }
    y, truth = (np.array([solution_quality(s) for s in side.samples]) for side in (train, test))
    rows = mean_baseline(y, truth, **common)
    for name, (a, b) in _sets(train, test).items():
        rows += quality_regression(a, y, b, truth, features=name, **common)
    mixed = shuffled(y, sub_seed(profile.seed, "shuffle"))
    return rows + quality_regression(train.z, mixed, test.z, truth, features="shuffled_labels", **common)


def control_rows(train: _Side, test: _Side, profile: Profile) -> list[ProbeRow]:
    """SAE features of the encoder that saw every family, beside those of the encoder that did not."""
    rows = []
    for target, depth in TOPIC_TARGETS.items():
        y, truth = (np.array([" -> ".join(s.topic.split(" -> ")[:depth]) for s in side.samples]) for side in (train, test))
        common = {"dataset": "world", "target": target, "config": profile.properties, "seed": sub_seed(profile.seed, "topic")}
        rows.append(topic_probe(train.prompt_z, y, test.prompt_z, truth, features="sae_all_families", **common))
    common = {"dataset": "world", "target": "difficulty_in_domain", "config": profile.properties}
    seed = sub_seed(profile.seed, "difficulty")
    row = difficulty_probe(train.z, train.difficulty, test.z, test.difficulty, features="sae_all_families", seed=seed, **common)
    return [*rows, row]


def probe_rows(profile: Profile, world: Stage, features: Stage, control: Stage) -> list[dict[str, Any]]:
    """Every row of the ladder; all fits see training splits alone."""
    labelled, test = _Side(world, features, "labelled"), _Side(world, features, "test")
    contest = _Side(world, features, "contest_test")
    adapted = _Side(world, features, "labelled", "contest_train")
    steps = _Side(world, features, "step_labelled")
    cut = 3 * len(steps.samples) // 4
    rows = topic_rows(labelled, test, profile)
    rows += control_rows(_Side(world, control, "labelled"), _Side(world, control, "test"), profile)
    rows += difficulty_rows(labelled, labelled.difficulty, test, "difficulty_in_domain", profile)
    rows += difficulty_rows(labelled, labelled.difficulty, contest, "difficulty_out_of_domain", profile)
    n = len(labelled.samples)
    joined = joined_labels(adapted.difficulty[:n], adapted.difficulty[n:])
    rows += difficulty_rows(adapted, joined, contest, "difficulty_adapted", profile)
    rows += quality_rows(steps.part(slice(None, cut)), steps.part(slice(cut, None)), profile)
    return [dataclasses.asdict(row) for row in rows]


def ladder_table(probes: Stage) -> pd.DataFrame:
    """Rows of world_probes.csv."""
    return pd.read_parquet(probes.path("ladder.parquet"))
