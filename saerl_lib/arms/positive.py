"""A positive control (ours): an order that should beat a random one if the world can show a benefit at all.

It takes the half of the pool whose measured pass rates lie nearest to one half, where a group most often has a gradient, and
passes it twice in random order. Added after the first results, in which no arm had beaten the random order.
"""

from __future__ import annotations

import numpy as np

from saerl_lib.arms.base import Arm, ArmPool
from saerl_lib.arms.subsets import twice


def informative_rows(pool: ArmPool, count: int) -> np.ndarray:
    """Row numbers [count] by ascending distance of the pass rate from one half; ties by id."""
    return np.lexsort((np.asarray(pool.ids), np.abs(pool.column("pass_rate") - 0.5)))[:count]


ARMS = (
    Arm("informative_half", "half the pool by pass rates near one half, twice", "control", order=twice(informative_rows),
        seeded=True, needs=("pass_rate",), cost=("rollouts_16",)),
)  # fmt: skip
