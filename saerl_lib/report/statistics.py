"""Numbers of the evaluation: accuracy estimators, intervals over seeds and problems, smallest detectable effects.

Pure functions on arrays. The paper reports single runs without intervals (section 4.1); every interval here is ours.
Axes: S seeds, P problems, N problems of one set, k completions a problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


class Interval(NamedTuple):
    """An estimate with its interval, all in the unit of the value; low and high are nan where no interval exists."""

    value: float
    low: float
    high: float


def _vector(values: ArrayLike, name: str) -> np.ndarray:
    vector = np.asarray(values, dtype=float)
    if vector.ndim != 1 or vector.size == 0 or not np.isfinite(vector).all():
        raise ValueError(f"{name} must be a non-empty vector of finite numbers, got shape {vector.shape}")
    return vector


def avg_at_k(correct: ArrayLike) -> float:
    """Avg@k: mean accuracy over problems and completions (paper, section C.3).

    `correct` is [N, k] of 0 and 1. Raises ValueError for another shape.

    >>> avg_at_k([[1, 0], [1, 1]])
    0.75
    """
    table = np.asarray(correct, dtype=float)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"correct must be [problems, completions] and not empty, got shape {table.shape}")
    return float(table.mean())


def pass_at_k(n_samples: int, n_correct: ArrayLike, k: int) -> np.ndarray:
    """Unbiased Pass@k of each problem: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021; used in the paper, section C.3).

    `n_correct` is [N] counts of right completions out of `n_samples`; returns [N] values in 0..1.
    Raises ValueError when k is outside 1..n_samples or a count is outside 0..n_samples.

    >>> pass_at_k(4, [0, 1, 3, 4], k=2).tolist()
    [0.0, 0.5, 1.0, 1.0]
    """
    counts = np.asarray(n_correct)
    if not 1 <= k <= n_samples:
        raise ValueError(f"k={k} must lie in 1..n_samples={n_samples}: draw more completions or lower k")
    if counts.size and (counts.min() < 0 or counts.max() > n_samples or (counts != np.round(counts)).any()):
        raise ValueError(f"n_correct must hold whole numbers in 0..n_samples={n_samples}")
    total = math.comb(n_samples, k)
    return np.array([1.0 - math.comb(n_samples - int(c), k) / total for c in counts.ravel()]).reshape(counts.shape)


def target_accuracy(final_by_method: Mapping[str, ArrayLike]) -> float:
    """Target of a benchmark: the lowest final accuracy among the compared methods (paper, section 4.1).

    Each value is the final accuracy of a method, or a vector of them over seeds, which is averaged first (ours).

    >>> target_accuracy({"grpo": [0.50, 0.54], "saerl": [0.60]})
    0.52
    """
    if not final_by_method:
        raise ValueError("final_by_method is empty: name at least one method")
    return min(float(np.mean(np.asarray(value, dtype=float))) for value in final_by_method.values())


def steps_to_target(steps: Sequence[int], values: Sequence[float], target: float) -> int | None:
    """First evaluated step whose value reaches `target`, None when none does (paper, section 4.1).

    Raises ValueError when the lengths differ or the steps do not rise. Values within 1e-9 of the target count.

    >>> steps_to_target([0, 20, 40], [0.1, 0.5, 0.4], 0.5), steps_to_target([0, 20], [0.1, 0.2], 0.5)
    (20, None)
    """
    if len(steps) != len(values):
        raise ValueError(f"{len(steps)} steps but {len(values)} values: give one value a step")
    if any(later <= earlier for earlier, later in zip(steps, steps[1:], strict=False)):
        raise ValueError("steps must rise strictly: sort the evaluations and drop doubled steps")
    return next((int(step) for step, value in zip(steps, values, strict=True) if value >= target - 1e-9), None)


def area_under_curve(steps: ArrayLike, values: ArrayLike) -> float:
    """Area under a learning curve by trapezoids, divided by the steps spanned: its mean height, in the value's unit (ours).

    >>> area_under_curve([0, 10, 30], [0.0, 1.0, 1.0])
    0.8333333333333334
    """
    x, y = _vector(steps, "steps"), _vector(values, "values")
    if x.shape != y.shape or x.size < 2 or (np.diff(x) <= 0).any():
        raise ValueError("area_under_curve needs two or more rising steps and one value each")
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def total_variation(p: ArrayLike, q: ArrayLike) -> float:
    """Total variation distance of two distributions over the same bins, 0..1.

    >>> total_variation([0.5, 0.5], [0.75, 0.25])
    0.25
    """
    a, b = _vector(p, "p"), _vector(q, "q")
    if a.shape != b.shape:
        raise ValueError(f"p has {a.size} bins, q has {b.size}: use the same bins")
    for name, shares in (("p", a), ("q", b)):
        if (shares < 0).any() or abs(shares.sum() - 1.0) > 1e-3:
            raise ValueError(f"{name} must hold shares that add up to 1, got a sum of {shares.sum():.6g}")
    return float(0.5 * np.abs(a - b).sum())


def paired_bootstrap_sets(
    differences: Sequence[ArrayLike], resamples: int, seed: int, confidence: float = 0.95
) -> Interval:
    """Mean over sets of the mean paired difference, with a two-level percentile bootstrap (ours).

    `differences[j]` is [S, P_j]: the same S seeds in every set, each set with its own problems. Seeds are drawn once
    for all sets, problems within each set, both with replacement; a problem is drawn for all seeds at once.
    Raises ValueError for empty input, another number of seeds, or values that are not finite.
    """
    tables = [np.asarray(table, dtype=float) for table in differences]
    if not tables or any(t.ndim != 2 or t.size == 0 or not np.isfinite(t).all() for t in tables):
        raise ValueError("each difference table must be [seeds, problems], not empty and finite")
    if resamples < 1 or len({t.shape[0] for t in tables}) != 1:
        raise ValueError("resamples must be positive and every table needs the same seeds")
    rng = np.random.default_rng(seed)
    n_seeds = tables[0].shape[0]
    seed_weights = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=resamples) / n_seeds
    draws = np.zeros(resamples)
    for table in tables:
        n_problems = table.shape[1]
        weights = rng.multinomial(n_problems, np.full(n_problems, 1 / n_problems), size=resamples) / n_problems
        draws += ((seed_weights @ table) * weights).sum(axis=1) / len(tables)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(np.mean([t.mean() for t in tables])), float(low), float(high))


def paired_bootstrap(difference: ArrayLike, resamples: int, seed: int, confidence: float = 0.95) -> Interval:
    """Mean of `difference` [S, P] with a percentile interval over resampled seeds and problems (ours).

    >>> paired_bootstrap([[1.0, 1.0], [1.0, 1.0]], resamples=10, seed=0)
    Interval(value=1.0, low=1.0, high=1.0)
    """
    return paired_bootstrap_sets([difference], resamples, seed, confidence)


def paired_t_interval(differences: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of one paired difference a seed, [S], with Student's t interval; nan bounds for a single seed (ours).

    >>> interval = paired_t_interval([1.0, 2.0, 3.0])
    >>> [round(x, 3) for x in interval]
    [2.0, -0.484, 4.484]
    """
    values = _vector(differences, "differences")
    mean = float(values.mean())
    if values.size < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf(0.5 + confidence / 2, values.size - 1) * values.std(ddof=1) / math.sqrt(values.size))
    return Interval(mean, mean - half, mean + half)


def minimum_detectable_effect(differences: ArrayLike, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest true mean difference that a paired t-test over these seeds finds with `power` (ours); nan for one seed.

    (t_{1-alpha/2, S-1} + t_{power, S-1}) * sd / sqrt(S), in the unit of `differences` [S].

    >>> round(minimum_detectable_effect([1.0, 2.0, 3.0]), 3)
    3.097
    """
    values = _vector(differences, "differences")
    if values.size < 2:
        return math.nan
    quantiles = stats.t.ppf(1 - alpha / 2, values.size - 1) + stats.t.ppf(power, values.size - 1)
    return float(quantiles * values.std(ddof=1) / math.sqrt(values.size))


def bootstrap_interval(
    statistic: Callable[..., float], arrays: Sequence[ArrayLike], seed: int, resamples: int, confidence: float = 0.95
) -> Interval:
    """`statistic(*arrays)` with a percentile interval over rows drawn jointly, with replacement (ours).

    All arrays share their first axis. Resamples on which the statistic is nan (one class only, say) are left out;
    ValueError when they are more than half, or when the arrays differ in length.

    >>> bootstrap_interval(np.mean, [[2.0, 2.0, 2.0]], seed=0, resamples=5)
    Interval(value=2.0, low=2.0, high=2.0)
    """
    tables = [np.asarray(array) for array in arrays]
    if not tables or len({len(t) for t in tables}) != 1 or len(tables[0]) == 0 or resamples < 1:
        raise ValueError("bootstrap_interval needs arrays of one equal, positive length and resamples of at least 1")
    rng = np.random.default_rng(seed)
    rows = (rng.integers(0, len(tables[0]), len(tables[0])) for _ in range(resamples))
    draws = np.array([float(statistic(*(t[row] for t in tables))) for row in rows])
    if np.isnan(draws).mean() > 0.5:
        raise ValueError("the statistic is undefined on more than half of the resamples: use more samples")
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return Interval(float(statistic(*tables)), float(low), float(high))
