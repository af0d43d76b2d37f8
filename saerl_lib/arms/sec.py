"""SEC (arXiv 2505.14970) with SAE clusters as categories: a bandit over clusters whose reward is the mean |advantage|."""

from __future__ import annotations

import numpy as np

from saerl_lib.arms.base import Arm, ArmPool, ArmSetting

RATE, TEMPERATURE = 0.5, 1.0
"""Learning rate of Q and temperature of its softmax (not stated in the facts at hand; ours)."""


def absolute_advantage(rewards: np.ndarray) -> np.ndarray:
    """Mean |advantage| of each group, [B], from rewards [B, G]: 0 where all rewards are equal.

    >>> absolute_advantage(np.array([[1.0, 0.0], [1.0, 1.0]])).round(3).tolist()
    [0.707, 0.0]
    """
    deviation = rewards.std(axis=1, ddof=1)
    spread = np.abs(rewards - rewards.mean(axis=1, keepdims=True)).mean(axis=1)
    return np.divide(spread, deviation, out=np.zeros(len(rewards)), where=deviation > 0)


class ClusterBandit:
    """Draws clusters by softmax(Q / tau), prompts of a cluster in random order, again when it is used up."""

    def __init__(self, clusters: np.ndarray, seed: int) -> None:
        self.names = np.unique(clusters)
        self.members = [np.flatnonzero(clusters == name) for name in self.names]
        self.number = np.searchsorted(self.names, clusters)
        self.value, self.rng = np.zeros(len(self.names)), np.random.default_rng(seed)
        self.dealt: list[list[int]] = [[] for _ in self.names]

    def next(self, count: int) -> np.ndarray:
        """`count` rows."""
        odds = np.exp((self.value - self.value.max()) / TEMPERATURE)
        rows = []
        for arm in self.rng.choice(len(self.names), size=count, p=odds / odds.sum()):
            if not self.dealt[arm]:
                self.dealt[arm] = list(self.rng.permutation(self.members[arm]))
            rows.append(self.dealt[arm].pop())
        return np.asarray(rows, dtype=np.int64)

    def told(self, rows: np.ndarray, rewards: np.ndarray) -> None:
        """Q_c <- rate x mean |advantage| of the step's prompts of c + (1 - rate) Q_c."""
        gain = absolute_advantage(rewards)
        for arm in np.unique(self.number[rows]):
            self.value[arm] = RATE * gain[self.number[rows] == arm].mean() + (1 - RATE) * self.value[arm]


def start(pool: ArmPool, setting: ArmSetting) -> ClusterBandit:
    """The selector of one run."""
    return ClusterBandit(pool.column("cluster"), setting.seed)


ARMS = (Arm("sec", "SEC with SAE clusters", "rival", policy=start, seeded=True, cost=("encode",)),)
