"""Probe tasks of the control ladder: which label is read from which samples, on the world, on real data and in any file.

Splits are those of `saerl_lib.data.published`; no training row shares its question with an evaluation set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from saerl_lib.config import MethodConfig
from saerl_lib.data.published import SPLIT_LABELS, probe_splits
from saerl_lib.data.sample import LabelledSet, Sample, hash_order, split_by_hash, unique, without
from saerl_lib.properties.probes import Task

LEAST_ROWS = 43
"""Different questions that a file needs for a label: a split of 70 to 30 then leaves 30 and 13."""
LEAST_TOPIC_ROWS = 10
"""Rows of a file that a topic needs to be a class."""
STEP_SCORE = {1: 1.0, 0: 0.5, -1: 0.0}
"""Step label -> share of correctness (paper, Table 3)."""


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


def tasks_of_file(
    data: LabelledSet, config: MethodConfig, held_out: set[str], say: Callable[[str], None] = lambda line: None
) -> list[Task]:
    """A task for every label that a file carries, with its own split by hash; `say` is told of every row that is left out.

    Raises ValueError when no label has two values on `LEAST_ROWS` different questions.
    """
    tasks = []
    for label, kind in LABEL_KINDS.items():
        labelled = data.with_label(label)
        if not len(labelled):
            continue
        part = _frequent_topics(labelled) if kind == "topic" else labelled
        questions, values = len(unique(part)), len(np.unique(part.labels[label]))
        if questions < LEAST_ROWS or values < 2:
            say(f"{label}: not read; {len(labelled)} rows carry it, {questions} different questions with {values} values of use, "
                f"and {LEAST_ROWS} with 2 are needed")  # fmt: skip
            continue
        train, test = split_by_hash(part, config.max_train, config.max_test)
        own = without(train, held_out)
        left = {
            f"of topics with fewer than {LEAST_TOPIC_ROWS} rows": len(labelled) - len(part),
            "that repeat a question": len(part) - questions,
            f"beyond max_train = {config.max_train} and max_test = {config.max_test}": questions - len(train) - len(test),
            "for training whose question stands in an evaluation set": len(train) - len(own),
        }
        say(f"{label}: {len(labelled)} of {len(data)} rows carry it; left out: "
            + (", ".join(f"{count} {reason}" for reason, count in left.items() if count) or "none"))  # fmt: skip
        sign = -1.0 if label == "pass_rate" else 1.0
        tasks.append(labelled_task(own, test, label, TARGET_NAMES[label], kind, sign=sign))
        if label == "level":
            bare = sum(not s.solved for s in (*own.samples, *test.samples))
            if not bare:
                tasks.append(labelled_task(own, test, label, "difficulty_level_with_solution", kind, with_solution=True))
            elif bare < len(own) + len(test):
                say(f"level with solutions: not read; {bare} of {len(own) + len(test)} rows have no solution")
    if not tasks:
        raise ValueError(
            f"{data.name}: no label with two values on at least {LEAST_ROWS} rows; known labels: {', '.join(LABEL_KINDS)}"
        )
    return tasks


def _frequent_topics(data: LabelledSet) -> LabelledSet:
    names, counts = np.unique(data.labels["subject"], return_counts=True)
    return data.rows(np.flatnonzero(np.isin(data.labels["subject"], names[counts >= LEAST_TOPIC_ROWS])))
