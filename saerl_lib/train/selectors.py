"""Selectors: arms that choose the prompts of each step by the rewards before it, as classes over arrays.

ADARFT (arXiv 2504.05520), GAINRL (arXiv 2506.02281), MoPPS (arXiv 2507.04632) and SEC (arXiv 2505.14970, with SAE clusters as
categories). N samples in pool order, a row number stands for a sample, G rollouts a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Selector(Protocol):
    """Decides during training; the same calls must give the same rows, since a resumed run replays them."""

    def next(self, count: int) -> np.ndarray:
        """Row numbers [count] of the prompts to roll out now."""

    def told(self, rows: np.ndarray, rewards: np.ndarray) -> None:
        """Rewards [count, G] of the rows handed out last."""


class InOrder:
    """A selector that walks a fixed order, from the start again when it ends."""

    def __init__(self, rows: Sequence[int] | np.ndarray) -> None:
        self.rows, self.place = np.asarray(rows, dtype=np.int64), 0

    def next(self, count: int) -> np.ndarray:
        """The next `count` rows."""
        places = np.arange(self.place, self.place + count) % len(self.rows)
        self.place += count
        return self.rows[places]

    def told(self, rows: np.ndarray, rewards: np.ndarray) -> None:
        """Rewards change nothing."""


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
    """ADARFT: the unused prompts whose difficulty is nearest to a target that follows the reward; ties by row.

    The public code does not mark prompts as used, so it repeats them until the target moves; this variant uses each prompt
    once a pass (ours).
    """

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


SENSITIVITY, CENTRE = 2.0, 0.5
DEVIATION_SHARE = 1 / 20
"""Standard deviation of the Gaussian in ranks, as a share of the pool."""


def drift(accuracy: float, mean_score: float, most: float) -> float:
    """Ranks that the mean moves: clip(most/2 tanh(2 (accuracy - 0.5)) + most/2 tanh(2 mean score), 0, most).

    >>> drift(0.5, 0.0, 1000.0), drift(0.0, 0.0, 1000.0), round(drift(1.0, 1.0, 1000.0), 1)
    (0.0, 0.0, 862.8)
    """
    half = most / 2
    step = half * np.tanh(SENSITIVITY * (accuracy - CENTRE)) + half * np.tanh(SENSITIVITY * mean_score)
    return float(np.clip(step, 0.0, most))


class MovingGaussian:
    """GAINRL: distinct prompts within a step, drawn by a moving Gaussian over the rank of their angle concentration.

    Ranks are in descending score. The public constants (500, 1000, deviation 1000) belong to pools of 7,500 to 40,000 prompts
    and rounds of many; here a round is one step, the mean moves by at most b ranks, and the deviation is a twentieth of the
    pool (ours).
    """

    def __init__(self, scores: np.ndarray, seed: int) -> None:
        self.scores = scores
        self.ranked = np.lexsort((np.arange(len(scores)), -scores))
        self.mean, self.rng = 0.0, np.random.default_rng(seed)

    def next(self, count: int) -> np.ndarray:
        """`count` rows drawn with the Gaussian's weights, without repetition."""
        ranks = np.arange(len(self.ranked))
        log_weight = -0.5 * ((ranks - self.mean) / (DEVIATION_SHARE * len(ranks))) ** 2
        noisy = log_weight + self.rng.gumbel(size=len(ranks))
        return self.ranked[np.argsort(-noisy, kind="stable")[:count]]

    def told(self, rows: np.ndarray, rewards: np.ndarray) -> None:
        """Move the mean by accuracy and score of the step."""
        self.mean += drift(float(rewards.mean()), float(self.scores[rows].mean()), float(len(rows)))


DISCOUNT = 0.5
"""lambda, weight of the old posterior (not stated in the facts at hand; ours)."""
PRIOR = 1.0
"""a0 and b0."""
TARGET = 0.5
"""Pass rate that MoPPS looks for."""


class PosteriorSampling:
    """MoPPS: a Beta posterior of each prompt's pass rate; Thompson sampling towards one half."""

    def __init__(self, prompts: int, seed: int) -> None:
        self.a, self.b = np.full(prompts, PRIOR), np.full(prompts, PRIOR)
        self.rng = np.random.default_rng(seed)

    def next(self, count: int) -> np.ndarray:
        """The `count` prompts whose drawn pass rate is nearest to the target."""
        return np.argsort(np.abs(self.rng.beta(self.a, self.b) - TARGET), kind="stable")[:count]

    def told(self, rows: np.ndarray, rewards: np.ndarray) -> None:
        """a <- lambda a + (1 - lambda) a0 + successes, b likewise with failures."""
        solved = rewards.sum(axis=1)
        self.a[rows] = DISCOUNT * self.a[rows] + (1 - DISCOUNT) * PRIOR + solved
        self.b[rows] = DISCOUNT * self.b[rows] + (1 - DISCOUNT) * PRIOR + rewards.shape[1] - solved


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
    """SEC: a bandit over clusters whose reward is the mean |advantage|.

    Draws clusters by softmax(Q / tau), prompts of a cluster in random order, again when it is used up.
    """

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
