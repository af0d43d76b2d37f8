"""E2H (arXiv 2506.06632): the share of each difficulty bin follows a cosine over the run."""

from __future__ import annotations

import numpy as np

from saerl_lib.arms.base import Arm, ArmPool, ArmSetting

BINS = 5
"""Bins of equal size by label (not stated; ours)."""


def bin_odds(progress: float, bins: int = BINS) -> np.ndarray:
    """Probability of each bin at `progress` in [0, 1]: weight K - i early, i + 1 late, blended by a cosine.

    >>> bin_odds(0.0, 2).round(3).tolist(), bin_odds(1.0, 2).round(3).tolist(), bin_odds(0.5, 2).round(3).tolist()
    ([0.667, 0.333], [0.333, 0.667], [0.5, 0.5])
    """
    early = 0.5 * (1.0 + np.cos(np.pi * progress))
    number = np.arange(bins)
    weights = early * (bins - number) + (1.0 - early) * (number + 1)
    return weights / weights.sum()


def order(pool: ArmPool, setting: ArmSetting) -> np.ndarray:
    """Row numbers of `steps` batches; a bin that is used up is dealt again in a new order."""
    rng = np.random.default_rng(setting.seed)
    by_label = np.lexsort((np.asarray(pool.ids), pool.column("label")))
    bins = [list(rng.permutation(part)) for part in np.array_split(by_label, BINS)]
    dealt: list[list[int]] = [[] for _ in bins]
    rows = []
    for step in range(setting.steps):
        odds = bin_odds(step / max(1, setting.steps - 1))
        for number in rng.choice(BINS, size=setting.plan.prompts_per_step, p=odds):
            if not dealt[number]:
                dealt[number] = list(rng.permutation(bins[number]))
            rows.append(dealt[number].pop())
    return np.asarray(rows, dtype=np.int64)


ARMS = (Arm("e2h", "E2H, cosine", "rival", order=order, seeded=True, cost=("label_pool",)),)
