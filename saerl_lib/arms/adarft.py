"""ADARFT (arXiv 2504.05520): the prompts whose measured difficulty is nearest to a target that follows the reward.

The public code does not mark prompts as used, so it repeats them until the target moves; this variant uses each prompt
once a pass (ours).
"""

from __future__ import annotations

import numpy as np

from saerl_lib.arms.base import Arm, ArmPool, ArmSetting

ALPHA, BETA, ETA = 2.0, 0.5, 50.0
LOWEST, HIGHEST, START = 0.0, 100.0, 0.0
"""Scale of the difficulty, and where the target starts: low."""


def difficulty(pass_rate: np.ndarray) -> np.ndarray:
    """100 (1 - pass rate of the base policy), [N]."""
    return 100.0 * (1.0 - pass_rate)


def moved(target: float, mean_reward: float) -> float:
    """T <- clip(T + eta tanh(alpha (mean reward - beta)), d_min, d_max).

    >>> moved(0.0, 0.5), moved(0.0, 0.0), round(moved(10.0, 1.0), 2)
    (0.0, 0.0, 48.08)
    """
    return float(np.clip(target + ETA * np.tanh(ALPHA * (mean_reward - BETA)), LOWEST, HIGHEST))


class AdaptiveTarget:
    """The nearest unused prompts to the target, ties by row."""

    def __init__(self, difficulties: np.ndarray) -> None:
        self.difficulties, self.target = difficulties, START
        self.unused = np.ones(len(difficulties), dtype=bool)

    def next(self, count: int) -> np.ndarray:
        """The `count` nearest; a new pass begins when too few are left."""
        if self.unused.sum() < count:
            self.unused[:] = True
        distance = np.where(self.unused, np.abs(self.difficulties - self.target), np.inf)
        rows = np.argsort(distance, kind="stable")[:count]
        self.unused[rows] = False
        return rows

    def told(self, rows: np.ndarray, rewards: np.ndarray) -> None:
        """Move the target by the step's mean reward."""
        self.target = moved(self.target, float(rewards.mean()))


def start(pool: ArmPool, setting: ArmSetting) -> AdaptiveTarget:
    """Equal difficulties are visited in a seeded order."""
    values = difficulty(pool.column("pass_rate"))
    return AdaptiveTarget(values + 1e-6 * np.random.default_rng(setting.seed).permutation(len(values)) / len(values))


ARMS = (
    Arm("adarft", "ADARFT", "paper", policy=start, needs=("pass_rate",), seeded=True, cost=("rollouts_16",)),
)  # fmt: skip
