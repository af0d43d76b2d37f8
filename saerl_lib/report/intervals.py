"""Intervals in closed form, for claims that are computed from summary tables alone (all ours).

They need no samples, only an estimate with its bounds or its counts.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from saerl_lib.report.statistics import Interval


def difference_interval(a: Interval, b: Interval) -> Interval:
    """a - b from two separate intervals (method of variance estimates recovery, Zou and Donner 2008).

    Meant for independent estimates, too wide for positively related ones. A missing interval of b (a constant
    baseline) counts as no uncertainty; one of a gives nan bounds.

    >>> difference_interval(Interval(5, 2, 8), Interval(1, -3, 5))
    Interval(value=4, low=-1.0, high=9.0)
    """
    b_low, b_high = (b.value if math.isnan(bound) else bound for bound in (b.low, b.high))
    value = a.value - b.value
    low = value - math.hypot(a.value - a.low, b_high - b.value)
    return Interval(value, low, value + math.hypot(a.high - a.value, b.value - b_low))


def histogram_auc(positive: ArrayLike, negative: ArrayLike) -> float:
    """ROC-AUC of scores known by bin only: P(positive in a higher bin) + half of P(same bin). Bins rise.

    >>> histogram_auc([0, 1, 1], [1, 1, 0])
    0.875
    """
    p, n = np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)
    if p.ndim != 1 or p.shape != n.shape or not (p.sum() > 0 and n.sum() > 0):
        raise ValueError("histogram_auc needs the same bins for both classes and some mass in each")
    p, n = p / p.sum(), n / n.sum()
    return float((p * (np.cumsum(n) - n / 2)).sum())


def auc_interval(auc: float, n_positive: int, n_negative: int) -> Interval:
    """95 % interval of a ROC-AUC by Hanley and McNeil (1982), cut to 0..1.

    >>> [round(x, 3) for x in auc_interval(0.8, 50, 50)]
    [0.8, 0.713, 0.887]
    """
    if not 0 <= auc <= 1 or n_positive < 1 or n_negative < 1:
        raise ValueError(f"auc={auc} must lie in 0..1 with at least one sample a class")
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (n_positive - 1) * (q1 - auc**2) + (n_negative - 1) * (q2 - auc**2)
    half = 1.959964 * math.sqrt(max(variance, 0.0) / (n_positive * n_negative))
    return Interval(auc, max(0.0, auc - half), min(1.0, auc + half))


def wilson_interval(successes: int, n: int) -> Interval:
    """95 % interval of a share by Wilson (1927).

    >>> [round(x, 3) for x in wilson_interval(8, 10)]
    [0.8, 0.49, 0.943]
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"successes={successes} must lie in 0..n={n} with n at least 1")
    z, share = 1.959964, successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, centre - half, centre + half)
