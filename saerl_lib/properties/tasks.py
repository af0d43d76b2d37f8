"""Probe tasks of the control ladder: which label is read from which samples, on the world and on real data.

Splits are those of `saerl_lib.data.published`; no training row shares its question with an evaluation set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from saerl_lib.config import MethodConfig
from saerl_lib.data.published import SPLIT_LABELS, probe_splits
from saerl_lib.data.sample import LabelledSet, Sample, hash_order, without

STEP_SCORE = {1: 1.0, 0: 0.5, -1: 0.0}
"""Step label -> share of correctness (paper, Table 3)."""
METRICS = {"topic": "accuracy", "rank": "spearman", "binary": "roc_auc", "quality": "pearson"}
"""Kind of a task -> its metric in the ladder."""


@dataclass(frozen=True)
class Task:
    """One label to be read."""

    dataset: str
    target: str
    kind: str
    """Key of `METRICS`."""
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    y_train: np.ndarray
    y_test: np.ndarray
    with_solution: bool
    """Whether the solution may be read beside the prompt."""

    def __post_init__(self) -> None:
        if len(self.train) != len(self.y_train) or len(self.test) != len(self.y_test):
            raise ValueError(f"{self.dataset} {self.target}: samples and labels differ in number")
        if len(self.train) < 30 or len(self.test) < 10:
            raise ValueError(
                f"{self.dataset} {self.target}: {len(self.train)} training and {len(self.test)} test samples are too few; "
                "label at least 30 and 10"
            )


def solution_quality(sample: Sample) -> float:
    """Mean step score of a solution (paper, Table 3)."""
    return float(np.mean([STEP_SCORE[label] for label in sample.step_labels]))


def labelled_task(
    train: LabelledSet, test: LabelledSet, label: str, target: str, kind: str, *, sign: float = 1.0, with_solution: bool = False
) -> Task:
    """The task of one label; rows without it are left out of this task alone. `sign` = -1 turns a pass rate into difficulty."""
    train, test = train.with_label(label), test.with_label(label)
    y, truth = train.labels[label], test.labels[label]
    if kind in ("rank", "binary"):
        y, truth = sign * y, sign * truth
    return Task(test.name, target, kind, train.samples, test.samples, y, truth, with_solution)


LABEL_KINDS = {"subject": "topic", "level": "rank", "pass_rate": "rank", "learnability": "rank", "valid": "binary"}
"""Label of a file -> kind of its task."""
TARGET_NAMES = {
    "subject": "subject", "level": "difficulty_level", "pass_rate": "difficulty_by_pass_rate", "learnability": "learnability",
    "valid": "well_posed",
}  # fmt: skip


def joined_labels(*sources: np.ndarray) -> np.ndarray:
    """Labels of several sources in a row, each brought to mean 0 and deviation 1: they have no common scale (ours).

    >>> joined_labels(np.array([1.0, 3.0]), np.array([0.0, 100.0])).tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """
    return np.concatenate([(values - values.mean()) / (values.std() or 1.0) for values in sources])


def real_tasks(load: Callable[[str], LabelledSet], config: MethodConfig, held_out: set[str]) -> list[Task]:
    """The tasks of the shared sets: MATH, DeepMath, DeepScaleR, ValiMath, DSR-sub (paper, Tables 1 and 2, and beyond)."""
    math_train, math_test = without(load("math_train"), held_out), load("math_test")
    if not config.official_split:
        math_train = math_train.rows(hash_order(math_train)[: config.max_train])
        math_test = math_test.rows(hash_order(math_test)[: config.max_test])
    tasks = [
        labelled_task(math_train, math_test, "subject", "subject", "topic"),
        labelled_task(math_train, math_test, "level", "difficulty_level", "rank"),
        labelled_task(math_train, math_test, "level", "difficulty_level_with_solution", "rank", with_solution=True),
    ]
    splits = probe_splits(load, config, held_out)
    for name, label in SPLIT_LABELS.items():
        split, sign = splits[name], -1.0 if label == "pass_rate" else 1.0
        tasks.append(labelled_task(split.train, split.test, label, TARGET_NAMES[label], LABEL_KINDS[label], sign=sign))
    scaler = splits["deepscaler_pass_rate"]
    return tasks + transfer_tasks(splits["deepmath_18k"].train, scaler.train, scaler.test, config)


def transfer_tasks(deepmath: LabelledSet, rated: LabelledSet, held: LabelledSet, config: MethodConfig) -> list[Task]:
    """DeepMath difficulty -> DeepScaleR pass rate, without and with some labels of the target source (Table 2)."""
    deepmath = deepmath.with_label("level")
    y, truth = joined_labels(deepmath.labels["level"]), -held.labels["pass_rate"]
    outside = Task(held.name, "difficulty_out_of_domain", "rank", deepmath.samples, held.samples, y, truth, False)
    some = rated.rows(np.arange(min(config.adapted_labels, len(rated))))
    both = joined_labels(deepmath.labels["level"], -some.labels["pass_rate"])
    adapted = Task(held.name, "difficulty_adapted", "rank", (*deepmath.samples, *some.samples), held.samples, both, truth, False)
    return [outside, adapted]


def world_tasks(splits: Mapping[str, Sequence[Sample]]) -> list[Task]:
    """Tables 1 to 3 on the embedded world: splits labelled, test, contest_train, contest_test, step_labelled."""
    labelled, test = tuple(splits["labelled"]), tuple(splits["test"])
    contest, extra = tuple(splits["contest_test"]), tuple(splits["contest_train"])
    steps = tuple(splits["step_labelled"])
    cut = 3 * len(steps) // 4

    def difficulty(samples: Sequence[Sample]) -> np.ndarray:
        return np.array([s.difficulty for s in samples])

    joined = joined_labels(difficulty(labelled), difficulty(extra))
    tasks = []
    for target, depth in (("topic_l2", 1), ("topic_l3", 2), ("topic_leaf", 3)):
        y, truth = (np.array([" -> ".join(s.topic.split(" -> ")[:depth]) for s in part]) for part in (labelled, test))
        tasks.append(Task("world", target, "topic", labelled, test, y, truth, False))
    for target, train, y, held in (
        ("difficulty_in_domain", labelled, difficulty(labelled), test),
        ("difficulty_out_of_domain", labelled, difficulty(labelled), contest),
        ("difficulty_adapted", (*labelled, *extra), joined, contest),
    ):
        tasks.append(Task("world", target, "rank", train, held, y, difficulty(held), True))
    scores = np.array([solution_quality(s) for s in steps])
    tasks.append(Task("world", "solution_quality", "quality", steps[:cut], steps[cut:], scores[:cut], scores[cut:], True))
    return tasks
