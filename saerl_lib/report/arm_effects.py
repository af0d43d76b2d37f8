"""Paired differences between arms of the study, with intervals over seeds and problems and Holm's correction (ours).

Outcome of a run: the mean over the six sets of Avg@k, averaged over the last three evaluations. Small evaluations use
the first problems of a set, the last one all of them; each problem carries the weight that makes the mean over a set's
problems the outcome, so that seeds and problems can be drawn again together. The standard error is the deviation of these
draws, widened by sqrt(S / (S - 1)), by which a bootstrap over few seeds is too narrow; intervals and p-values are Student's t
on it, with S - 1 degrees of freedom for the part that lies between seeds (Satterthwaite). Percentiles of the draws would hold
90.5 % instead of 95 % at five seeds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from saerl_lib.report.statistics import Interval, minimum_detectable_effect

LAST = 3
"""Evaluations that the outcome averages."""
RESAMPLES = 20_000


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
    detectable: float
    """Smallest true difference that a paired t-test over these seeds finds with power 0.8."""


def outcome_values(evaluations: pd.DataFrame, last: int = LAST) -> dict[str, pd.DataFrame]:
    """Set name -> values [(arm, seed) x problem] in percent whose mean over problems is the run's outcome on that set.

    `evaluations` has one row a run, step and problem: arm, seed, step, eval_set, sample_id, attempts, correct.
    Raises ValueError when a run lacks one of the last evaluations or was evaluated on other problems.
    """
    steps = np.sort(evaluations["step"].unique())[-last:]
    frame = evaluations[evaluations["step"].isin(steps)]
    seen = frame.groupby(["arm", "seed", "step"])["sample_id"].nunique().unstack("step")
    if seen.isna().to_numpy().any() or (seen.nunique() > 1).any():
        raise ValueError(
            f"not every run was evaluated at steps {steps.tolist()} on the same problems: finish or rerun those that were not"
        )
    rate = 100.0 * (frame["correct"] / frame["attempts"]) / len(steps)
    out = {}
    for name, part in frame.assign(rate=rate).groupby("eval_set"):
        problems = part["sample_id"].nunique()
        counts = part.groupby("step")["sample_id"].nunique()
        scaled = part["rate"] * problems / part["step"].map(counts)
        table = part.assign(rate=scaled).groupby(["arm", "seed", "sample_id"])["rate"].sum().unstack("sample_id")
        out[str(name)] = table.fillna(0.0)
    return out


def final_values(evaluations: pd.DataFrame, passed: str = "") -> dict[str, pd.DataFrame]:
    """As `outcome_values`, of the last evaluation alone; the set named `passed` counts by Pass@k, the others by Avg@k."""
    frame = evaluations[evaluations["step"] == evaluations["step"].max()]
    rate = frame["correct"] / frame["attempts"]
    rate = rate.where(frame["eval_set"] != passed, (frame["correct"] > 0).astype(float))
    out = {}
    for name, part in frame.assign(rate=100 * rate).groupby("eval_set"):
        out[str(name)] = part.pivot(index=["arm", "seed"], columns="sample_id", values="rate")
    return out


def outcomes(values: Mapping[str, pd.DataFrame]) -> pd.Series:
    """(arm, seed) -> outcome in percent, the mean over sets."""
    return pd.concat([table.mean(axis=1) for table in values.values()], axis=1).mean(axis=1)


def paired_tables(values: Mapping[str, pd.DataFrame], arm: str, baseline: str) -> list[np.ndarray]:
    """Differences [S, P] of each set on the seeds that both arms have, in percent."""
    tables = []
    for table in values.values():
        a, b = (table.loc[name] for name in (arm, baseline))
        seeds = a.index.intersection(b.index)
        tables.append((a.loc[seeds] - b.loc[seeds]).to_numpy())
    return tables


@functools.lru_cache(maxsize=4)
def _counts(seed: int, resamples: int, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """How often each of n things is drawn, [resamples, n] for every n of `sizes`; all pairs of equal sizes share the draws."""
    rng = np.random.default_rng(seed)
    return [rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.uint16) for n in sizes]


def bootstrap_draws(tables: Sequence[np.ndarray], resamples: int, seed: int) -> np.ndarray:
    """Means over sets of resampled differences: seeds once for all sets, problems within each, [resamples]."""
    n_seeds = tables[0].shape[0]
    counts = _counts(seed, resamples, (n_seeds, *(table.shape[1] for table in tables)))
    draws, seed_weights = np.zeros(resamples), counts[0] / n_seeds
    for table, drawn in zip(tables, counts[1:], strict=True):
        draws += (seed_weights * (drawn / table.shape[1] @ table.T)).sum(axis=1) / len(tables)
    centre = float(np.mean([t.mean() for t in tables]))
    return centre + (draws - centre) * (math.sqrt(n_seeds / (n_seeds - 1)) if n_seeds > 1 else 1.0)


def freedom(by_seed: np.ndarray, error: float) -> float:
    """Degrees of freedom of a standard error of the mean of `by_seed` [S]: S - 1 when seeds alone make it, more with problems.

    >>> [round(freedom(np.array([0.0, 2.0, 4.0, 2.0]), error), 1) for error in ((2 / 3) ** 0.5, (4 / 3) ** 0.5)]
    [3.0, 12.0]
    """
    between = float(by_seed.var(ddof=1)) / len(by_seed) if len(by_seed) > 1 else 0.0
    return (len(by_seed) - 1) * max(1.0, error**2 / between) ** 2 if between > 0 else max(1.0, len(by_seed) - 1.0)


def two_sided(mean: float, error: float, degrees: float) -> float:
    """p-value of a difference of 0 for a mean with a standard error.

    >>> round(two_sided(2.776, 1.0, 4), 3)
    0.05
    """
    return float(2 * stats.t.sf(abs(mean) / error, degrees)) if error > 0 else float(mean == 0)


def holm_levels(p_values: Sequence[float], alpha: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
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


def compare(
    values: Mapping[str, pd.DataFrame], pairs: Sequence[tuple[str, str]], resamples: int = RESAMPLES, seed: int = 0
) -> list[Comparison]:
    """Every (arm, baseline) of a family of comparisons, corrected over the family; one matched seed gives nan bounds."""
    found = []
    for arm, baseline in pairs:
        tables = paired_tables(values, arm, baseline)
        by_seed = np.mean([t.mean(axis=1) for t in tables], axis=0)
        error = float(bootstrap_draws(tables, resamples, seed).std())
        found.append((arm, baseline, by_seed, error, freedom(by_seed, error)))
    p_values = [two_sided(float(s.mean()), error, d) if len(s) > 1 else 1.0 for *_, s, error, d in found]
    levels, adjusted = holm_levels(p_values)
    rows = []
    for (arm, baseline, by_seed, error, degrees), p, level, p_holm in zip(found, p_values, levels, adjusted, strict=True):
        mean, n = float(by_seed.mean()), len(by_seed)
        few = Interval(mean, math.nan, math.nan)
        plain, corrected = (_interval(mean, error, degrees, a) if n > 1 else few for a in (0.05, level))
        rows.append(Comparison(arm, baseline, n, plain, corrected, p, float(p_holm), minimum_detectable_effect(by_seed)))
    return rows


def _interval(mean: float, error: float, degrees: float, level: float) -> Interval:
    half = float(stats.t.ppf(1 - level / 2, degrees)) * error
    return Interval(mean, mean - half, mean + half)
