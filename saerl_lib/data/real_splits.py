"""Train and test problems of every probe on the shared sets: what a probe is tested on, the LM and the SAEs must not read.

A split never depends on the order of a file: rows are taken by the hash of their normalised question, and a question stands
on one side alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from saerl_lib.config import MethodConfig
from saerl_lib.data.real import LabelledSet, hash_order, unique, without

SPLIT_LABELS = {
    "deepmath_18k": "level", "deepscaler_pass_rate": "pass_rate", "quality_valimath": "valid",
    "dsr_sub_training_accuracy": "learnability",
}  # fmt: skip
"""File without an official test set -> the label that its probe reads."""


class Split(NamedTuple):
    """The two sides of one file."""

    train: LabelledSet
    test: LabelledSet


def split_by_hash(data: LabelledSet, max_train: int, max_test: int) -> Split:
    """Train and test of one set: the first rows by hash train, the next ones test; 70 to 30 when the set is small."""
    data = unique(data)
    order = hash_order(data)
    train = min(max_train, int(0.7 * len(order)))
    return Split(data.rows(order[:train]), data.rows(order[train : train + max_test]))


def probe_splits(load: Callable[[str], LabelledSet], config: MethodConfig, held_out: set[str]) -> dict[str, Split]:
    """The split of every file of `SPLIT_LABELS`, of its labelled rows.

    No training row has its question in `held_out`, and DeepScaleR gives up the questions that it shares with DeepMath.
    """
    found: dict[str, Split] = {}
    for name, label in SPLIT_LABELS.items():
        data = load(name).with_label(label)
        if name == "deepmath_18k":
            data = without(data, held_out)
        elif name == "deepscaler_pass_rate":
            data = without(data, held_out | set(load("deepmath_18k").with_label("level").keys))
        split = split_by_hash(data, config.max_train, config.max_test)
        found[name] = Split(without(split.train, held_out), split.test)
    return found


def probe_test_keys(splits: dict[str, Split]) -> set[str]:
    """Normalised questions on which a probe is tested."""
    return set().union(*(split.test.keys for split in splits.values()))
