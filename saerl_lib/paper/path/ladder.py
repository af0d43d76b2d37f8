"""The control ladder on the paper's data: difficulty in three regimes and quality of worked solutions (paper, Tables 2, 3).

Labels of two sources have no common scale: each is brought to mean 0 and deviation 1 before they are joined. A question of
PRM800K has many solutions: all of them lie on one side of the split, and intervals resample questions (both ours).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from saerl_lib.artifacts import Stage
from saerl_lib.config import PropertyConfig
from saerl_lib.data.sample import Sample, hash_share, normalise
from saerl_lib.own.represent import SOLVED_SHARE
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.path.data import group
from saerl_lib.paper.path.encode import features
from saerl_lib.properties.ladder import Blocks, empty_row, ladder
from saerl_lib.properties.probes import LEAST_TEST, LEAST_TRAIN, Task
from saerl_lib.properties.tasks import joined_labels, solution_quality

TRAIN_SHARE = 0.75
"""Of the questions, by their hash (not stated in the paper; ours)."""


def trains(question: str) -> bool:
    """Whether the solutions of a normalised question are trained on: by another hash than the one that draws questions."""
    return hash_share(f"quality {question}") < TRAIN_SHARE


def regimes_table(data: Stage, encoded: Stage, config: PaperConfig, settings: PropertyConfig) -> pd.DataFrame:
    """Rows as in probe_ladder.csv: in domain, out of domain, adapted; a regime without enough labelled rows has no value."""
    groups = {
        name: [s for s in group(data, name) if np.isfinite(s.difficulty)] for name in ("labelled", "target", "outside")
    }
    labelled, outside = groups["labelled"], groups["outside"]
    cut = min(config.adapted_labels, len(outside) // 10)  # of a small set a tenth adapts
    some, held = outside[:cut], outside[cut : cut + config.outside_samples]
    both = joined_labels(_labels(labelled), *([_labels(some)] if some else []))
    read = features(encoded, ("labelled", "target"))
    with_solution = bool(read.solved.mean() >= SOLVED_SHARE)
    blocks = _blocks(encoded, ("labelled", "target", *(["outside"] if outside else [])))
    named = (
        ("deepmath", "difficulty_in_domain", labelled, _labels(labelled), groups["target"]),
        ("deepscaler", "difficulty_out_of_domain", labelled, joined_labels(_labels(labelled)), held),
        ("deepscaler", "difficulty_adapted", [*labelled, *some], both, held),
    )
    return pd.concat(
        [_rows(blocks, settings, config.seed, dataset, target, "rank", train, y, test, _labels(test), with_solution)
         for dataset, target, train, y, test in named], ignore_index=True
    )  # fmt: skip


def solutions_table(data: Stage, encoded: Stage, config: PaperConfig, settings: PropertyConfig) -> pd.DataFrame:
    """Rows as in probe_ladder.csv of the quality of solutions; one row without a value where there are too few of them."""
    samples = group(data, "rated")
    keys = np.array([normalise(sample.prompt) for sample in samples], dtype=str)
    is_train = np.array([trains(key) for key in keys], dtype=bool)
    train, test = ([s for s, own in zip(samples, is_train, strict=True) if own == side] for side in (True, False))
    y, truth = (np.array([solution_quality(s) for s in side]) for side in (train, test))
    blocks = _blocks(encoded, ("rated",)) if samples else {}
    return _rows(blocks, settings, config.seed, "prm800k", "solution_quality", "quality", train, y, test, truth, True,
                 keys[~is_train])  # fmt: skip


def _labels(samples: list[Sample]) -> np.ndarray:
    return np.array([sample.difficulty for sample in samples], dtype=float)


def _blocks(encoded: Stage, names: tuple[str, ...]) -> Blocks:
    table = features(encoded, names)
    return {"sae": (table.ids, table.z)}


def _rows(
    blocks: Blocks, settings: PropertyConfig, seed: int, dataset: str, target: str, kind: str, train: list[Sample], y: np.ndarray,
    test: list[Sample], truth: np.ndarray, with_solution: bool, groups: np.ndarray | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The ladder of one task, or the row without a value where it has too few samples or questions."""
    if len(train) < LEAST_TRAIN or len(test) < LEAST_TEST:
        return empty_row(dataset, target, kind, len(train), len(test))
    task = Task(dataset, target, kind, tuple(train), tuple(test), y, truth, with_solution, groups)
    return ladder([task], blocks, settings, seed)[0]
