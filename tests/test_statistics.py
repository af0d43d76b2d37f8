"""Every statistic on numbers that a hand can check."""

from __future__ import annotations

import doctest
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saerl_lib.report import intervals, statistics
from saerl_lib.report.intervals import auc_interval, difference_interval, histogram_auc, wilson_interval
from saerl_lib.report.statistics import (
    Interval,
    area_under_curve,
    avg_at_k,
    bootstrap_interval,
    minimum_detectable_effect,
    paired_bootstrap,
    paired_bootstrap_sets,
    paired_t_interval,
    pass_at_k,
    steps_to_target,
    target_accuracy,
    total_variation,
)


@pytest.mark.parametrize("module", [statistics, intervals])
def test_docstring_examples(module) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 3
    assert result.failed == 0


def test_avg_at_k_is_the_mean_over_problems_and_completions() -> None:
    assert avg_at_k([[1, 1, 0, 0], [1, 0, 0, 0]]) == pytest.approx(3 / 8)
    with pytest.raises(ValueError, match=r"\[problems, completions\]"):
        avg_at_k([1, 0])


@given(st.integers(1, 7), st.data())
def test_pass_at_k_equals_the_share_of_subsets_with_a_right_answer(n: int, data: st.DataObject) -> None:
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations([1] * correct + [0] * (n - correct), k))
    assert pass_at_k(n, [correct], k)[0] == pytest.approx(np.mean([max(subset) for subset in subsets]))


def test_pass_at_k_rejects_what_it_cannot_estimate() -> None:
    with pytest.raises(ValueError, match="draw more completions"):
        pass_at_k(2, [1], k=8)
    with pytest.raises(ValueError, match="n_correct"):
        pass_at_k(2, [3], k=1)


def test_steps_to_target_takes_the_first_evaluation_that_reaches_it() -> None:
    assert steps_to_target([0, 20, 40, 60], [0.1, 0.29, 0.3, 0.2], 0.3) == 40
    assert steps_to_target([0, 20], [0.3, 0.2], 0.3) == 0
    assert steps_to_target([0, 20], [0.1, 0.2], 0.3) is None
    with pytest.raises(ValueError, match="rise"):
        steps_to_target([20, 20], [0.1, 0.2], 0.3)
    with pytest.raises(ValueError, match="one value a step"):
        steps_to_target([20], [0.1, 0.2], 0.3)


def test_target_is_the_lowest_final_accuracy() -> None:
    assert target_accuracy({"a": [0.4, 0.6], "b": 0.45, "c": [0.7]}) == pytest.approx(0.45)
    with pytest.raises(ValueError, match="at least one method"):
        target_accuracy({})


def test_area_under_curve_is_the_mean_height() -> None:
    assert area_under_curve([0, 20, 40], [0.0, 0.5, 1.0]) == pytest.approx(0.5)
    assert area_under_curve([10, 20, 40], [1.0, 1.0, 0.0]) == pytest.approx((10 * 1 + 20 * 0.5) / 30)
    with pytest.raises(ValueError, match="rising"):
        area_under_curve([20, 10], [0.0, 1.0])


def test_total_variation() -> None:
    assert total_variation([0.2, 0.3, 0.5], [0.5, 0.3, 0.2]) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="sum of 0.9"):
        total_variation([0.5, 0.4], [0.5, 0.5])
    with pytest.raises(ValueError, match="same bins"):
        total_variation([0.5, 0.5], [1.0])


def test_paired_t_interval_by_hand() -> None:
    interval = paired_t_interval([1.0, 3.0])
    assert interval.value == 2.0
    # sd = sqrt(2), n = 2: half width = 12.7062 * sqrt(2) / sqrt(2)
    assert interval.high - interval.value == pytest.approx(12.7062, abs=1e-3)
    single = paired_t_interval([1.5])
    assert single.value == 1.5 and math.isnan(single.low) and math.isnan(single.high)
    with pytest.raises(ValueError, match="finite"):
        paired_t_interval([1.0, float("nan")])


def test_minimum_detectable_effect_by_hand() -> None:
    # n = 4, sd = 2: (3.1824 + 0.9785) * 2 / 2
    assert minimum_detectable_effect([-2.0, 0.0, 0.0, 2.0]) == pytest.approx((3.1824 + 0.9785) * math.sqrt(8 / 3) / 2, abs=1e-3)
    assert minimum_detectable_effect([0.5, 0.5, 0.5]) == 0.0
    assert math.isnan(minimum_detectable_effect([1.0]))
    assert minimum_detectable_effect([0, 1, 2], power=0.9) > minimum_detectable_effect([0, 1, 2], power=0.8)


def test_paired_bootstrap_resamples_seeds_and_problems() -> None:
    seeds_differ = np.array([[0.0] * 50, [1.0] * 50])
    interval = paired_bootstrap(seeds_differ, resamples=2000, seed=0)
    assert interval == Interval(0.5, 0.0, 1.0)
    problems_differ = np.tile([0.0, 1.0] * 50, (3, 1))
    interval = paired_bootstrap(problems_differ, resamples=4000, seed=0)
    assert interval.value == 0.5
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.05, rel=0.1)


def test_paired_bootstrap_follows_its_seed() -> None:
    difference = np.random.default_rng(1).normal(size=(3, 20))
    assert paired_bootstrap(difference, 200, seed=0) == paired_bootstrap(difference, 200, seed=0)
    assert paired_bootstrap(difference, 200, seed=0) != paired_bootstrap(difference, 200, seed=1)
    with pytest.raises(ValueError, match=r"\[seeds, problems\]"):
        paired_bootstrap([1.0, 2.0], 10, seed=0)


def test_bootstrap_over_sets_weighs_sets_equally() -> None:
    interval = paired_bootstrap_sets([np.zeros((2, 100)), np.ones((2, 3))], resamples=50, seed=0)
    assert interval == pytest.approx((0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="same seeds"):
        paired_bootstrap_sets([np.zeros((2, 3)), np.zeros((3, 3))], resamples=5, seed=0)


def test_bootstrap_interval_draws_rows_jointly() -> None:
    x = np.arange(40.0)
    interval = bootstrap_interval(lambda a, b: float(np.corrcoef(a, b)[0, 1]), [x, 2 * x], seed=0, resamples=50)
    assert interval == pytest.approx((1.0, 1.0, 1.0))
    coin = np.array([0.0, 1.0] * 50)
    first = bootstrap_interval(np.mean, [coin], seed=0, resamples=2000)
    assert first.high - first.low == pytest.approx(2 * 1.96 * 0.05, rel=0.15)
    assert bootstrap_interval(np.mean, [x], seed=0, resamples=50) == bootstrap_interval(np.mean, [x], seed=0, resamples=50)
    assert bootstrap_interval(np.mean, [x], seed=0, resamples=50) != bootstrap_interval(np.mean, [x], seed=1, resamples=50)
    with pytest.raises(ValueError, match="equal, positive length"):
        bootstrap_interval(np.mean, [coin, x], seed=0, resamples=5)
    with pytest.raises(ValueError, match="undefined"):
        bootstrap_interval(lambda a: float("nan"), [coin], seed=0, resamples=5)


def test_difference_interval_adds_half_widths_in_squares() -> None:
    assert difference_interval(Interval(0.7, 0.4, 1.0), Interval(0.2, -0.2, 0.6)) == pytest.approx((0.5, 0.0, 1.0))
    constant = Interval(0.2, math.nan, math.nan)
    assert difference_interval(Interval(0.7, 0.4, 0.9), constant) == pytest.approx((0.5, 0.2, 0.7))
    assert math.isnan(difference_interval(constant, Interval(0.1, 0.0, 0.2)).low)


def test_histogram_auc_by_pairs() -> None:
    positive, negative = [0, 1, 3], [2, 2, 0]
    pairs = [(p, n) for p in range(3) for _ in range(positive[p]) for n in range(3) for _ in range(negative[n])]
    expected = np.mean([1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs])
    assert histogram_auc(positive, negative) == pytest.approx(expected)
    with pytest.raises(ValueError, match="same bins"):
        histogram_auc([1, 0], [1, 0, 0])


def test_closed_form_intervals() -> None:
    assert wilson_interval(0, 10).low == pytest.approx(0.0, abs=1e-12)
    # z^2 / (n + z^2) with z^2 = 3.8415
    assert wilson_interval(0, 10).high == pytest.approx(3.8415 / 13.8415, abs=1e-4)
    assert auc_interval(1.0, 10, 10) == (1.0, 1.0, 1.0)
    wide, narrow = auc_interval(0.8, 20, 20), auc_interval(0.8, 200, 200)
    assert wide.low < narrow.low < 0.8 < narrow.high < wide.high
    with pytest.raises(ValueError, match="n at least 1"):
        wilson_interval(0, 0)
