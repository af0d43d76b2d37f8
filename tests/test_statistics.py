"""Every statistic on numbers that a hand can check."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from saerl_lib.report import statistics
from saerl_lib.report.statistics import Estimate, Interval, bootstrap_interval, difference_interval, over_seeds


def test_difference_interval_adds_half_widths_in_squares() -> None:
    assert difference_interval(Interval(0.7, 0.4, 1.0), Interval(0.2, -0.2, 0.6)) == pytest.approx((0.5, 0.0, 1.0))
    constant = Interval(0.2, math.nan, math.nan)
    assert difference_interval(Interval(0.7, 0.4, 0.9), constant) == pytest.approx((0.5, 0.2, 0.7))
    assert math.isnan(difference_interval(constant, Interval(0.1, 0.0, 0.2)).low)


def test_closed_form_intervals() -> None:
    assert statistics.wilson_interval(0, 10).low == pytest.approx(0.0, abs=1e-12)
    # z^2 / (n + z^2) with z^2 = 3.8415
    assert statistics.wilson_interval(0, 10).high == pytest.approx(3.8415 / 13.8415, abs=1e-4)


def test_a_bootstrap_of_a_mean_has_its_standard_error() -> None:
    coin = np.array([0.0, 1.0] * 50)
    found = bootstrap_interval(lambda rows: float(coin[rows].mean()), 100, 1000, seed=0)
    assert found.value == 0.5 and found.high - found.low == pytest.approx(2 * 1.96 * 0.05, rel=0.15)
    x = np.arange(40.0)
    first, again, other = (bootstrap_interval(lambda rows: float(x[rows].mean()), 40, 50, seed=s) for s in (0, 0, 1))
    assert first == again != other


def test_a_bootstrap_over_runs_draws_them_too() -> None:
    """Two runs that differ by 1 and samples that do not: a resample has mean 0, 0.5 or 1."""
    found = statistics.bootstrap_runs(lambda rows, run: float(run), 30, 2, 500, seed=0)
    assert found == Interval(0.5, 0.0, 1.0)
    one = statistics.bootstrap_runs(lambda rows, run: float(rows.mean()), 30, 1, 50, seed=3)
    assert one == bootstrap_interval(lambda rows: float(rows.mean()), 30, 50, seed=3), "one run draws nothing"


def test_undefined_resamples_are_left_out_or_named() -> None:
    assert statistics.weighted_interval(np.array([1.0, math.nan, 3.0, 3.0])) == Interval(1.0, 3.0, 3.0)
    assert math.isnan(statistics.percentile_interval(1.0, [math.nan]).low)
    scores, positive = np.array([1.0, 2.0]), np.array([True, False])
    with pytest.raises(ValueError, match="more samples of the rarer class"):
        statistics.rank_metrics(scores, positive, np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]))
    with pytest.raises(ValueError, match="a single class"):
        statistics.rank_metrics(scores, ~positive | True, statistics.bootstrap_weights(2, 3, 0))


def test_one_value_a_seed_is_a_t_test() -> None:
    by_seed = np.array([0.0, 2.0, 4.0, 2.0])
    found, expected = over_seeds(by_seed), stats.ttest_1samp(by_seed, 0.0)
    assert found.p_value() == pytest.approx(expected.pvalue) and found.degrees == 3
    assert found.interval()[1:] == pytest.approx(tuple(expected.confidence_interval(0.95)))
    # n = 4, standard error sqrt(8 / 3) / 2: (3.1824 + 0.9785) times it
    assert found.detectable() == pytest.approx((3.1824 + 0.9785) * math.sqrt(8 / 3) / 2, abs=1e-3)
    assert found.detectable(power=0.9) > found.detectable()
    assert over_seeds([0.5, 0.5, 0.5]).detectable() == 0.0 and over_seeds([0.5, 0.5]).p_value() == 0.0
    single = over_seeds([1.5])
    assert single.interval().value == 1.5 and math.isnan(single.interval().low) and math.isnan(single.detectable())
    with pytest.raises(ValueError, match="finite"):
        over_seeds([1.0, math.nan])


def block(values: np.ndarray, evaluations: int = 1) -> pd.DataFrame:
    columns = pd.MultiIndex.from_product([[evaluations], [f"p{i}" for i in range(values.shape[1])]])
    return pd.DataFrame(values, columns=columns)


def test_the_problems_part_by_hand() -> None:
    # seeds agree: the variance of a mean over problems is that of a sample of 4, (1 + 1 + 1 + 1) / 3 / 4
    same = np.tile([1.0, 3.0, 1.0, 3.0], (3, 1))
    assert statistics.problem_variance(block(same)) == pytest.approx(4 / 3 / 4)
    # a constant of each seed is no problem's, and of two strata each has its own mean
    assert statistics.problem_variance(block(same + np.array([[0.0], [5.0], [9.0]]))) == pytest.approx(4 / 3 / 4)
    apart = pd.concat([block(same), block(same + 100, 3)], axis=1)
    assert statistics.problem_variance(apart) == pytest.approx(2 * 0.5**2 * 4 / 3 / 4)


@pytest.mark.parametrize(("seeds", "problems", "rest"), [(1.0, 3.0, 0.0), (0.3, 1.0, 8.0)])
def test_intervals_hold_what_they_say_at_five_seeds(seeds: float, problems: float, rest: float) -> None:
    """Coverage of the 95 % interval when seeds, problems and attempts differ; percentiles over seeds would hold 90.5 %."""
    rng, inside = np.random.default_rng(5), 0
    index = pd.MultiIndex.from_product([["a", "b"], range(5)], names=["arm", "seed"])
    for _ in range(300):
        noise = seeds * rng.normal(size=(5, 1)) + problems * rng.normal(size=24) + rest * rng.normal(size=(5, 24))
        table = block(np.concatenate([noise, np.zeros_like(noise)])).set_axis(index)
        _, low, high = statistics.paired_estimate({"s": table}, "a", "b").interval()
        inside += low <= 0 <= high
    assert 0.92 < inside / 300 < 0.985


def test_what_a_comparison_finds_hangs_on_its_place_in_the_family() -> None:
    found = statistics.corrected([("a", "z"), ("b", "z"), ("c", "z")], [Estimate(m, 0.15, 1e9, 8) for m in (0.1, 0.2, 2.0)])
    # Holm's order is that of differences from 0: c 5 / 3 %, b 2.5 %, a none left
    assert found["detectable"][2] == pytest.approx((stats.norm.ppf(1 - 0.05 / 6) + stats.norm.ppf(0.8)) * 0.15)
    assert statistics.corrected([], []).empty
