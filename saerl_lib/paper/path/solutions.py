"""Quality of worked solutions from PRM800K's step labels (paper, Table 3).

A question has many solutions there: all of them lie on one side of the split, and intervals resample questions (ours).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd

from saerl_lib.artifacts import Stage
from saerl_lib.config import PropertyConfig, sub_seed
from saerl_lib.data.sample import hash_share, normalise
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.path.data import group
from saerl_lib.paper.path.encode import features
from saerl_lib.properties.probes import ProbeRow, mean_baseline, quality_regression, shuffled
from saerl_lib.properties.tasks import solution_quality

DATASET, TARGET = "prm800k", "solution_quality"
TRAIN_SHARE = 0.75
"""Of the questions, by their hash (not stated in the paper; ours)."""


def trains(question: str) -> bool:
    """Whether the solutions of a normalised question are trained on: by another hash than the one that draws questions."""
    return hash_share(f"quality {question}") < TRAIN_SHARE


def solutions_table(data: Stage, encoded: Stage, config: PaperConfig, settings: PropertyConfig) -> pd.DataFrame:
    """Rows as in world_probes.csv: mean, metadata, SAE and, for scale, SAE with shuffled labels; RMSE, MAE and Pearson.

    One row without a value where there are fewer than two questions on either side.
    """
    samples = group(data, "rated")
    keys = np.array([normalise(sample.prompt) for sample in samples], dtype=str)
    is_train = np.array([trains(key) for key in keys], dtype=bool)
    sides = np.unique(keys[is_train]), np.unique(keys[~is_train])
    if min(map(len, sides)) < 2:
        found = (math.nan,) * 3
        empty = ProbeRow(DATASET, TARGET, "pearson", "sae", *found, int(is_train.sum()), int((~is_train).sum()))
        return pd.DataFrame([dataclasses.asdict(empty)])
    table = features(encoded, ("rated",))
    reference = table.rows(np.flatnonzero(is_train))
    train, test = reference.complete(), table.rows(np.flatnonzero(~is_train)).complete(reference)
    label = np.array([solution_quality(sample) for sample in samples])
    y, truth = label[is_train], label[~is_train]
    common = {
        "dataset": DATASET, "target": TARGET, "config": settings, "seed": sub_seed(config.seed, "solutions"),
        "groups": keys[~is_train],
    }  # fmt: skip
    rows = mean_baseline(y, truth, **common)
    for name, own, other in (("metadata", train.metadata, test.metadata), ("sae", train.z, test.z)):
        rows += quality_regression(own, y, other, truth, features=name, **common)
    mixed = shuffled(y, sub_seed(config.seed, "shuffled solutions"))
    rows += quality_regression(train.z, mixed, test.z, truth, features="shuffled_labels", **common)
    return pd.DataFrame(map(dataclasses.asdict, rows))
