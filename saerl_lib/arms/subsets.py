"""Rivals that choose a subset: SHIFT (2605.28631) and an IRDS-style choice (2605.28247, equations not public, so ours).

Half the pool is chosen and passed twice in random order, so that the rollouts equal those of the other arms (ours).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from saerl_lib.arms.base import Arm, ArmPool, ArmSetting, Order

SHARE = 0.5
RIDGE = 1.0
"""lambda of the log determinant (not stated; ours)."""


def farthest_first(quality: np.ndarray, points: np.ndarray, count: int) -> np.ndarray:
    """Greedy argmax of quality(x) * min over chosen x' of ||x - x'||, [count]; the first is the best quality.

    >>> farthest_first(np.array([1.0, 1.0, 0.9]), np.array([[0.0], [0.1], [1.0]]), 2).tolist()
    [0, 2]
    """
    chosen = [int(quality.argmax())]
    nearest = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < count:
        gain = quality * nearest
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return np.asarray(chosen)


def greedy_log_det(points: np.ndarray, weights: np.ndarray, count: int, ridge: float = RIDGE) -> np.ndarray:
    """Greedy maximisation of log det(I + ridge sum_i w_i phi_i phi_i^T) by Sherman-Morrison, [count].

    The gain of x is log(1 + ridge w phi^T A^-1 phi); `points` [N, K], `weights` [N] of 0 or more.
    """
    inverse = np.eye(points.shape[1])
    chosen: list[int] = []
    for _ in range(count):
        gain = ridge * weights * np.einsum("nk,kl,nl->n", points, inverse, points, optimize=True)
        gain[chosen] = -np.inf
        best = int(gain.argmax())
        chosen.append(best)
        v = inverse @ points[best]
        scale = ridge * weights[best]
        inverse = inverse - scale * np.outer(v, v) / (1.0 + scale * float(points[best] @ v))
    return np.asarray(chosen)


def motif_weights(motifs: np.ndarray, pass_rate: np.ndarray) -> np.ndarray:
    """w_i = (sum_k f_k phi_ik) p_i (1 - p_i), f_k the activation-weighted failure rate of motif k, [N]."""
    failure = motifs.T @ (1.0 - pass_rate) / np.maximum(motifs.sum(axis=0), 1e-12)
    return (motifs @ failure) * pass_rate * (1.0 - pass_rate)


def shift_rows(pool: ArmPool, count: int) -> np.ndarray:
    """SHIFT: quality log(1 + ||Delta||), distance between normalised [s ; Delta]."""
    states = pool.matrix("solution_shift")
    change = states[:, states.shape[1] // 2 :]
    points = states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)
    return farthest_first(np.log1p(np.linalg.norm(change, axis=1)), points, count)


def irds_rows(pool: ArmPool, count: int) -> np.ndarray:
    """IRDS-style: log-determinant coverage of SAE motifs, weighted by failure and by p (1 - p)."""
    motifs = pool.matrix("motifs")
    return greedy_log_det(motifs, motif_weights(motifs, pool.column("pass_rate")), count)


def twice(select: Callable[[ArmPool, int], np.ndarray]) -> Order:
    """The chosen half, shuffled by the matched seed, two passes."""

    def order(pool: ArmPool, setting: ArmSetting) -> np.ndarray:
        total = setting.steps * setting.plan.prompts_per_step
        chosen = np.sort(select(pool, int(SHARE * len(pool.table))))
        rng = np.random.default_rng(setting.seed)
        passes = [rng.permutation(chosen) for _ in range(-(-total // len(chosen)))]
        return np.concatenate(passes)[:total]

    return order


ARMS = (
    Arm("shift", "SHIFT, half the pool", "rival", order=twice(shift_rows), seeded=True, needs=("solution_shift",),
        cost=("rollouts_1",)),
    Arm("irds", "IRDS-style, half the pool", "rival", order=twice(irds_rows), seeded=True, needs=("motifs", "pass_rate"),
        cost=("encode", "rollouts_16")),
)  # fmt: skip
