"""Paired differences between arms of the study, with intervals over seeds and problems and Holm's correction (ours).

Difference D of two arms on S matched seeds and the problems of J sets, model D = mean + seed + problem + rest. The variance of
its mean has a part between seeds and one that all seeds share because they are evaluated on the same problems:

    error^2 = var_s(mean_p D) / S  +  sum_j 1 / J^2 sum_g (n_g / P_j)^2 (var_p(mean_s D) - MS_rest / S) / n_g

The first holds the rest as well, so it is taken out of the second, which is cut at 0; g are the problems of set j that are in
equally many evaluations, so that the design is fixed. A bootstrap over seeds and problems at once counts the rest three times
and is up to half too wide here; percentiles of it are too narrow where seeds differ. Intervals are Student's t with S - 1
degrees of freedom for the part between seeds (Satterthwaite).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from saerl_lib.report.statistics import Interval

ALPHA, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Comparison:
    """One arm against another on the matched seeds that both have, in points."""

    arm: str
    baseline: str
    n_seeds: int
    interval: Interval
    """Difference with its 95 % interval."""
    corrected: Interval
    """The same at Holm's level for its place in the family."""
    p_value: float
    """Two-sided, of a difference of 0."""
    p_holm: float
    p_small: float
    """Of a difference of the smallest effect of interest or more, two-sided in size, after Holm's correction for that bound."""
    detectable: float
    """Smallest true difference that this comparison, at its corrected level, finds with power 0.8."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with what its interval is made of."""

    mean: float
    error: float
    """Standard error."""
    degrees: float
    """Degrees of freedom; nan for one seed."""
    n_seeds: int

    def interval(self, level: float) -> Interval:
        """The interval that misses with probability `level`; nan bounds for one seed."""
        if self.n_seeds < 2:
            return Interval(self.mean, math.nan, math.nan)
        half = float(stats.t.ppf(1 - level / 2, self.degrees)) * self.error
        return Interval(self.mean, self.mean - half, self.mean + half)

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided p-value of a true mean of `null`; 1 for one seed."""
        if self.n_seeds < 2:
            return 1.0
        return two_sided(self.mean - null, self.error, self.degrees)

    def detectable(self, level: float) -> float:
        """Smallest true mean that a test at `level` finds with power 0.8; nan for one seed."""
        if self.n_seeds < 2:
            return math.nan
        return float(stats.t.ppf(1 - level / 2, self.degrees) + stats.t.ppf(POWER, self.degrees)) * self.error


def two_sided(mean: float, error: float, degrees: float) -> float:
    """p-value of a difference of 0 for a mean with a standard error.

    >>> round(two_sided(2.776, 1.0, 4), 3)
    0.05
    """
    return float(2 * stats.t.sf(abs(mean) / error, degrees)) if error > 0 else float(mean == 0)


def over_seeds(by_seed: np.ndarray, shared: float = 0.0) -> Estimate:
    """The mean of values of S seeds, [S]; `shared` is the variance that they have in common.

    >>> [round(over_seeds(np.array([0.0, 2.0, 4.0, 2.0]), shared).degrees, 1) for shared in (0.0, 2 / 3)]
    [3.0, 12.0]
    """
    n = len(by_seed)
    between = float(by_seed.var(ddof=1)) / n if n > 1 else math.nan
    total = between + shared
    degrees = (n - 1) * (total / between) ** 2 if n > 1 and between > 0 else float(n - 1)
    return Estimate(float(by_seed.mean()), math.sqrt(total) if n > 1 else math.nan, degrees, n)


def problem_variance(differences: pd.DataFrame) -> float:
    """Variance of the mean of a set's differences [S, P] that its problems alone make; negative when chance makes it so.

    Columns are (evaluations, sample_id), as `arm_effects.outcome_values` gives them.
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
    """Arm minus baseline, mean over sets, on the seeds that both have; `values` maps a set to [(arm, seed), problem]."""
    tables = []
    for table in values.values():
        a, b = (table.loc[name] for name in (arm, baseline))
        seeds = a.index.intersection(b.index)
        tables.append(a.loc[seeds] - b.loc[seeds])
    by_seed = np.mean([table.mean(axis=1).to_numpy() for table in tables], axis=0)
    shared = sum(problem_variance(table) for table in tables) / len(tables) ** 2
    return over_seeds(by_seed, max(0.0, shared))


def holm_levels(p_values: Sequence[float], alpha: float = ALPHA) -> tuple[np.ndarray, np.ndarray]:
    """Level of each interval, and Holm-adjusted p-values: the k-th smallest of m is held to alpha / (m - k + 1).

    Holm steps down and stops at the first p-value above its level; all later ones keep that level.

    >>> [x.round(3).tolist() for x in holm_levels([0.01, 0.5, 0.02])]
    [[0.017, 0.05, 0.025], [0.03, 0.5, 0.04]]
    >>> [x.round(3).tolist() for x in holm_levels([0.03, 0.04])]
    [[0.025, 0.025], [0.06, 0.06]]
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    levels, adjusted = np.empty(len(p)), np.empty(len(p))
    running, level = 0.0, alpha / max(1, len(p))
    for place, i in enumerate(order):
        left = len(p) - place
        level = alpha / left if running <= alpha else level
        running = max(running, min(1.0, left * p[i]))
        levels[i], adjusted[i] = level, running
    return levels, adjusted


def corrected(pairs: Sequence[tuple[str, str]], found: Sequence[Estimate], smallest: float) -> list[Comparison]:
    """The comparisons of a family, corrected over it: Holm for a difference of 0, and apart for one of `smallest`."""
    p_values = [e.p_value() for e in found]
    levels, adjusted = holm_levels(p_values)
    _, small = holm_levels([e.p_value(smallest) if e.mean < smallest else 1.0 for e in found])
    return [
        Comparison(*pair, e.n_seeds, e.interval(ALPHA), e.interval(level), p, float(p_holm), float(p_small), e.detectable(level))
        for pair, e, p, level, p_holm, p_small in zip(pairs, found, p_values, levels, adjusted, small, strict=True)
    ]


def compare(
    values: Mapping[str, pd.DataFrame], pairs: Sequence[tuple[str, str]], smallest: float = 0.0
) -> list[Comparison]:
    """Every (arm, baseline) of a family of comparisons, corrected over the family; one matched seed gives nan bounds."""
    return corrected(pairs, [paired_estimate(values, *pair) for pair in pairs], smallest)
