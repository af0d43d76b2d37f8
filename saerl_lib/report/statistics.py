"""Every estimate and interval of the library: bootstraps, rankings, shares, seeds, families of comparisons.

Pure functions on arrays; this module imports no other room, so that all of them use it. The paper reports single runs without
intervals (section 4.1); every interval here is ours. Axes: S seeds, P problems, N items, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

ALPHA, POWER = 0.05, 0.8


class Interval(NamedTuple):
    """An estimate with its 95 % interval, all in the unit of the value; low and high are nan where no interval exists."""

    value: float
    low: float
    high: float


# Bootstraps over samples.


def percentile_interval(value: float, draws: ArrayLike) -> Interval:
    """`value` with the 2.5 % and 97.5 % percentiles of its resamples [R].

    Undefined resamples are left out; when all are, the bounds are nan.

    >>> percentile_interval(2.0, [0.0, 1.0, 2.0, 3.0, 4.0, float("nan")])
    Interval(value=2.0, low=0.1, high=3.9)
    """
    drawn = np.asarray(draws, dtype=float)
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (math.nan, math.nan)
    return Interval(float(value), float(low), float(high))


def bootstrap_runs(statistic: Callable[[np.ndarray, int], float], n: int, runs: int, samples: int, seed: int) -> Interval:
    """Mean over `runs` of `statistic(indices, run)` with a percentile interval over items and runs.

    Each of `samples` resamples draws n items and as many runs as there are, both with replacement; the runs see the same items.
    Raises ValueError when no resample has a defined value.
    """
    rng, draws = np.random.default_rng(seed), []
    for _ in range(samples):
        rows, chosen = rng.integers(0, n, n), rng.integers(0, runs, runs)
        draws.append(np.mean([statistic(rows, run) for run in chosen]))
    found = percentile_interval(float(np.mean([statistic(np.arange(n), run) for run in range(runs)])), draws)
    if math.isnan(found.low):
        raise ValueError("the statistic is undefined on every bootstrap resample; pass more test samples")
    return found


def bootstrap_interval(statistic: Callable[[np.ndarray], float], n: int, samples: int, seed: int) -> Interval:
    """`statistic(indices)` of n items with a percentile interval over `samples` resamples; errors as `bootstrap_runs`."""
    return bootstrap_runs(lambda rows, _: statistic(rows), n, 1, samples, seed)


# Rankings: scores are sorted once, and a resample is the vector of how often each item was drawn.


def bootstrap_weights(n: int, samples: int, seed: int) -> np.ndarray:
    """[1 + samples, n] how often each of n items is drawn: row 0 is all ones (the data), then resamples of n items."""
    drawn = np.random.default_rng(seed).integers(0, n, (samples, n)) + n * np.arange(samples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=samples * n).reshape(samples, n)
    return np.concatenate([np.ones((1, n)), counts])


def weighted_interval(values: np.ndarray) -> Interval:
    """The value of the data, row 0 of values [1 + R], with the percentiles of the resamples; bounds as `percentile_interval`."""
    return percentile_interval(values[0], values[1:])


def rank_metrics(scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> dict[str, Interval]:
    """Of scores [N], larger for positives: roc_auc, the chance that a positive scores above a negative, ties half; and
    average_precision, the sum over distinct scores of precision times the recall gained there. `weights` are those of
    `bootstrap_weights(N, ...)`; a resample that lacks a class is left out. Raises ValueError when all of them do.

    >>> found = rank_metrics(np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False]), np.ones((2, 4)))
    >>> [round(interval.value, 3) for interval in found.values()]
    [0.75, 0.833]
    """
    is_positive, order = np.asarray(is_positive, dtype=bool), np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])  # of the distinct scores, which are falling
    sides = [weights[:, order] * side for side in (is_positive[order], ~is_positive[order])]
    if len(starts) < len(order):  # ties are summed
        sides = [np.add.reduceat(side, starts, axis=1) for side in sides]
    positive, negative = sides
    hits, false = np.cumsum(positive, axis=1), np.cumsum(negative, axis=1)
    below = negative.sum(axis=1, keepdims=True) - false
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (positive * (below + negative / 2)).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))
        precision = (np.nan_to_num(hits / (hits + false)) * positive).sum(axis=1) / positive.sum(axis=1)
    found = {"roc_auc": weighted_interval(area), "average_precision": weighted_interval(precision)}
    if any(math.isnan(interval.low) for interval in found.values()):
        raise ValueError("the metric is undefined on every bootstrap resample: pass more samples of the rarer class")
    return found


# Closed forms, for claims that are computed from summary tables alone.


def wilson_interval(successes: int, n: int) -> Interval:
    """95 % interval of a share by Wilson (1927).

    >>> [round(x, 3) for x in wilson_interval(8, 10)]
    [0.8, 0.49, 0.943]
    """
    found = stats.binomtest(successes, n).proportion_ci(1 - ALPHA, method="wilson")
    return Interval(successes / n, float(found.low), float(found.high))


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


# Means over seeds.


class Estimate(NamedTuple):
    """A mean over seeds with what its interval is made of."""

    mean: float
    error: float
    """Standard error."""
    degrees: float
    """Degrees of freedom; nan for one seed."""
    n_seeds: int

    def interval(self, level: float = ALPHA) -> Interval:
        """The interval that misses with probability `level`; nan bounds for one seed."""
        half = float(stats.t.ppf(1 - level / 2, self.degrees)) * self.error
        return Interval(self.mean, self.mean - half, self.mean + half)

    def p_value(self) -> float:
        """Two-sided p-value of a true mean of 0; 1 for one seed."""
        if self.n_seeds < 2:
            return 1.0
        return float(2 * stats.t.sf(abs(self.mean) / self.error, self.degrees)) if self.error > 0 else float(self.mean == 0)

    def detectable(self, level: float = ALPHA) -> float:
        """Smallest true mean that a test at `level` finds with `POWER`: (t_{1-level/2} + t_power) * error; nan for one seed."""
        return float(stats.t.ppf(1 - level / 2, self.degrees) + stats.t.ppf(POWER, self.degrees)) * self.error


def over_seeds(by_seed: ArrayLike, shared: float = 0.0) -> Estimate:
    """The mean of one value a seed, [S]; `shared` is the variance that the values have in common.

    Student's t with S - 1 degrees of freedom for the part between seeds (Satterthwaite).

    >>> [round(over_seeds([0.0, 2.0, 4.0, 2.0], shared).degrees, 1) for shared in (0.0, 2 / 3)]
    [3.0, 12.0]
    >>> [round(x, 3) for x in over_seeds([1.0, 2.0, 3.0]).interval()]
    [2.0, -0.484, 4.484]
    """
    values = np.asarray(by_seed, dtype=float)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"by_seed must hold finite numbers, one a seed at least: got {values}")
    n = len(values)
    between = float(values.var(ddof=1)) / n if n > 1 else math.nan
    total = between + shared
    degrees = (n - 1) * (total / between) ** 2 if n > 1 and between > 0 else float(n - 1)
    return Estimate(float(values.mean()), math.sqrt(total) if n > 1 else math.nan, degrees, n)


def problem_variance(differences: pd.DataFrame) -> float:
    """Variance of the mean of a set's differences [S, P] that its problems alone make; negative when chance makes it so.

    Columns are (evaluations, sample_id): g are the problems that are in equally many evaluations, so that the design is fixed.

        sum_g (n_g / P)^2 (var_p(mean_s D) - MS_rest / S) / n_g
    """
    total, seeds = 0.0, len(differences)
    for _, part in differences.T.groupby(level=0):
        values = part.to_numpy().T
        n = values.shape[1]
        if n < 2 or seeds < 2:
            continue
        common = values.mean(axis=0)
        rest = values - values.mean(axis=1, keepdims=True) - common + values.mean()
        component = common.var(ddof=1) - np.square(rest).sum() / ((seeds - 1) * (n - 1)) / seeds
        total += (n / differences.shape[1]) ** 2 * component / n
    return float(total)


def paired_estimate(values: Mapping[str, pd.DataFrame], arm: str, baseline: str) -> Estimate:
    """Arm minus baseline, mean over J sets, on the seeds that both have; `values` maps a set to [(arm, seed), problem].

    Model D = mean + seed + problem + rest. The error^2 of the mean has a part between seeds, var_s(mean_p D) / S, which holds
    the rest as well, and one that all seeds share because they are evaluated on the same problems: `problem_variance` / J^2,
    cut at 0. A bootstrap over seeds and problems at once counts the rest three times and is up to half too wide here;
    percentiles of it are too narrow where seeds differ (ours).
    """
    tables = []
    for table in values.values():
        a, b = (table.loc[name] for name in (arm, baseline))
        seeds = a.index.intersection(b.index)
        tables.append(a.loc[seeds] - b.loc[seeds])
    by_seed = np.mean([table.mean(axis=1).to_numpy() for table in tables], axis=0)
    shared = sum(problem_variance(table) for table in tables) / len(tables) ** 2
    return over_seeds(by_seed, max(0.0, shared))


# Families of comparisons.


def holm_levels(p_values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Level of each interval, and Holm-adjusted p-values: the k-th smallest of m is held to ALPHA / (m - k + 1).

    Holm steps down and stops at the first p-value above its level; all later ones keep that level.

    >>> [x.round(3).tolist() for x in holm_levels([0.01, 0.5, 0.02])]
    [[0.017, 0.05, 0.025], [0.03, 0.5, 0.04]]
    >>> [x.round(3).tolist() for x in holm_levels([0.03, 0.04])]
    [[0.025, 0.025], [0.06, 0.06]]
    """
    p = np.asarray(p_values, dtype=float)
    place = np.argsort(np.argsort(p, kind="stable"), kind="stable")
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.sort(p) * (len(p) - np.arange(len(p)))))[place]
    return ALPHA / (len(p) - np.minimum(place, (adjusted <= ALPHA).sum())), adjusted


def corrected(pairs: Sequence[tuple[str, str]], found: Sequence[Estimate]) -> pd.DataFrame:
    """A row a comparison of a family on the matched seeds of both arms, in points: the interval at 95 % and at Holm's level for
    its place in the family; two-sided p-values of a difference of 0, plain and adjusted; the smallest true difference found at
    the corrected level with power 0.8."""
    p_values = [e.p_value() for e in found]
    levels, adjusted = holm_levels(p_values)
    rows = [
        (*pair, e.n_seeds, *e.interval(), *e.interval(level)[1:], p, p_holm, e.detectable(level))
        for pair, e, p, level, p_holm in zip(pairs, found, p_values, levels, adjusted, strict=True)
    ]
    names = ["arm", "baseline", "n_seeds", "difference", "ci_low", "ci_high", "holm_low", "holm_high", "p_value", "p_holm",
             "detectable"]  # fmt: skip
    return pd.DataFrame(rows, columns=names)
