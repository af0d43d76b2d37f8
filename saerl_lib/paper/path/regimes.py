"""Spearman correlation of predicted difficulty in the paper's three regimes (paper, Table 2).

Labels of two sources have no common scale: each is brought to mean 0 and deviation 1 before they are joined (ours).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd

from saerl_lib.artifacts import Stage
from saerl_lib.config import PropertyConfig, sub_seed
from saerl_lib.encode.features import FeatureTable
from saerl_lib.own.represent import SOLVED_SHARE
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.path.data import group
from saerl_lib.paper.path.encode import features
from saerl_lib.properties.probes import ProbeRow, fit_elastic_net, score_difficulty
from saerl_lib.properties.tasks import joined_labels

COLUMNS = [field.name for field in dataclasses.fields(ProbeRow)]


def regimes_table(data: Stage, encoded: Stage, config: PaperConfig, settings: PropertyConfig) -> pd.DataFrame:
    """Rows as in world_probes.csv: in domain, out of domain, adapted; a regime without labelled rows has no value."""
    reference = features(encoded, ("labelled", "target"))
    train, seed = _phi(features(encoded, ("labelled",)), reference), sub_seed(config.seed, "regimes")
    label = _difficulty(data, "labelled")
    rows = [_row("deepmath", "difficulty_in_domain", train, label, *_test(data, encoded, "target", reference), settings, seed)]
    outside = _test(data, encoded, "outside", reference)
    some, held = (tuple(part[rows] for part in outside) for rows in _split(len(outside[1]), config))
    rows.append(_row("deepscaler", "difficulty_out_of_domain", train, joined_labels(label), *held, settings, seed))
    both = np.concatenate([train, some[0]]), joined_labels(label, some[1]) if len(some[1]) else joined_labels(label)
    rows.append(_row("deepscaler", "difficulty_adapted", *both, *held, settings, seed))
    return pd.DataFrame(map(dataclasses.asdict, rows), columns=COLUMNS)


def _split(count: int, config: PaperConfig) -> tuple[slice, slice]:
    """The rows that adapt and those that test; of a small set a tenth adapts."""
    cut = min(config.adapted_labels, count // 10)
    return slice(0, cut), slice(cut, cut + config.outside_samples)


def _phi(table: FeatureTable, reference: FeatureTable) -> np.ndarray:
    return table.complete(reference).phi if reference.solved.mean() >= SOLVED_SHARE else table.prompt_phi


def _difficulty(data: Stage, name: str) -> np.ndarray:
    return np.array([sample.difficulty for sample in group(data, name)], dtype=float)


def _test(data: Stage, encoded: Stage, name: str, reference: FeatureTable) -> tuple[np.ndarray, np.ndarray]:
    """phi and labels of the labelled rows of a group."""
    label = _difficulty(data, name)
    if not len(label):
        return np.empty((0, _phi(reference.rows(np.arange(1)), reference).shape[1])), label
    known = np.isfinite(label)
    return _phi(features(encoded, (name,)), reference)[known], label[known]


def _row(
    dataset: str, target: str, x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray,
    settings: PropertyConfig, seed: int,
) -> ProbeRow:  # fmt: skip
    if len(test_y) < 2:
        return ProbeRow(dataset, target, "spearman", "sae", math.nan, math.nan, math.nan, len(y), len(test_y))
    model = fit_elastic_net(x, y, settings, seed)
    return score_difficulty(
        model, test_x, test_y, n_train=len(y), dataset=dataset, target=target, features="sae", config=settings, seed=seed
    )
