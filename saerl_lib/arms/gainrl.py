"""GAINRL (arXiv 2506.02281): prompts by the angle concentration of the policy's hidden states, drawn by a moving Gaussian.

Score of a prompt: mean cosine similarity between the last-layer states of its tokens. The public script adds 8 times the
similarity to the tokens of a preceding template; the prompts here have none, so that term is 0. Ranks are in descending
score. The public constants (500, 1000, deviation 1000) belong to pools of 7,500 to 40,000 prompts and rounds of many;
here a round is one step, the mean moves by at most b ranks, and the deviation is a twentieth of the pool (ours).
"""

from __future__ import annotations

import numpy as np

from saerl_lib.arms.base import Arm, ArmPool, ArmSetting

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
    """Distinct prompts within a step, by a Gaussian over the rank."""

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


def start(pool: ArmPool, setting: ArmSetting) -> MovingGaussian:
    """The selector of one run."""
    return MovingGaussian(pool.column("angle_concentration"), setting.seed)


ARMS = (
    Arm("gainrl", "GAINRL", "paper", policy=start, needs=("angle_concentration",), seeded=True, cost=("policy_forward",)),
)  # fmt: skip
