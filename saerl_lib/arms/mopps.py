"""MoPPS (arXiv 2507.04632): a Beta posterior of each prompt's pass rate; the prompts whose draw is nearest to one half."""

from __future__ import annotations

import numpy as np

from saerl_lib.arms.base import Arm, ArmPool, ArmSetting

DISCOUNT = 0.5
"""lambda, weight of the old posterior (not stated in the facts at hand; ours)."""
PRIOR = 1.0
"""a0 and b0."""
TARGET = 0.5


class PosteriorSampling:
    """Thompson sampling towards a pass rate of one half."""

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


def start(pool: ArmPool, setting: ArmSetting) -> PosteriorSampling:
    """The selector of one run."""
    return PosteriorSampling(len(pool.table), setting.seed)


ARMS = (Arm("mopps", "MoPPS", "rival", policy=start, seeded=True),)
