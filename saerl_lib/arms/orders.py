"""Orders that need a label or nothing: `grpo`, `dapo`, DIFF, and the controls of order (paper, section 4.1; ours)."""

from __future__ import annotations

import numpy as np

from saerl_lib.arms.base import Arm, ArmPool, ArmSetting, Order
from saerl_lib.config import sub_seed
from saerl_lib.plan.batch_plan import BatchPlan
from saerl_lib.plan.orders import by_difficulty, random_order


def shuffle(label: str) -> Order:
    """A random order, another one for every matched seed; `label` tells several shuffles of one seed apart."""

    def order(pool: ArmPool, setting: ArmSetting) -> BatchPlan | np.ndarray:
        return random_order(pool.ids, sub_seed(setting.seed, label))

    return order


def ascending(column: str, descending: bool = False) -> Order:
    """Sorted by a column of the pool; equal values in random order, since ids tell the source of a sample."""

    def order(pool: ArmPool, setting: ArmSetting) -> BatchPlan | np.ndarray:
        shuffled = random_order(pool.ids, sub_seed(setting.seed, "ties"))
        values = pool.column(column)[shuffled]
        return shuffled[np.argsort(-values if descending else values, kind="stable")]

    return order


def by_label(pool: ArmPool, setting: ArmSetting) -> BatchPlan | np.ndarray:
    """Ascending label, ties by id: DIFF as the paper describes it; labels here are nearly all distinct."""
    return by_difficulty(pool.ids, pool.column("label"))


ARMS = (
    Arm("grpo", "GRPO, random order", "paper", order=shuffle("shuffle"), seeded=True),
    Arm("dapo", "DAPO, random order", "paper", order=shuffle("shuffle"), seeded=True, dapo=True),
    Arm("diff", "DIFF: easy to hard by label", "paper", order=by_label, cost=("label_pool",)),
    Arm("grpo_shuffle_b", "random order, second shuffle", "control", order=shuffle("shuffle-b"), seeded=True),
    Arm("grpo_shuffle_c", "random order, third shuffle", "control", order=shuffle("shuffle-c"), seeded=True),
    Arm("hard_to_easy", "hard to easy by label", "control", order=ascending("label", True), seeded=True, cost=("label_pool",)),
    Arm("short_to_long", "short to long", "control", order=ascending("length"), seeded=True),
    Arm(
        "pass_rate_order", "easy to hard by base pass rate", "control", order=ascending("pass_rate", True),
        needs=("pass_rate",), cost=("rollouts_16",), seeded=True,
    ),
    Arm("grpo_4b", "GRPO, four times the batch", "batch", order=shuffle("shuffle"), seeded=True, batch_factor=4),
    Arm("grpo_unfiltered", "GRPO on the unfiltered pool", "filter", order=shuffle("shuffle"), seeded=True, pool="unfiltered"),
)  # fmt: skip
