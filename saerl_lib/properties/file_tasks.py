"""Probe tasks of any labelled file: one for every label on enough of its rows, and a line on every row left out (ours)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from saerl_lib.config import MethodConfig
from saerl_lib.data.sample import LabelledSet, split_by_hash, unique, without
from saerl_lib.properties.tasks import LABEL_KINDS, TARGET_NAMES, Task, labelled_task

LEAST_ROWS = 43
"""Different questions that a file needs for a label: a split of 70 to 30 then leaves 30 and 13."""
LEAST_TOPIC_ROWS = 10
"""Rows of a file that a topic needs to be a class."""


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
