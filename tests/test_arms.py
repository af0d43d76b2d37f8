"""Every arm's order or update rule by hand; the interface that a user's own arm goes through."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_lib.config import PlanConfig
from saerl_lib.plan.batch_plan import BatchPlan
from saerl_lib.train import arms
from saerl_lib.train.arms import (
    Arm,
    ArmError,
    ArmPool,
    ArmSetting,
    all_arms,
    curriculum,
    find_arm,
    scaled,
)

SETTING = ArmSetting(PlanConfig(prompts_per_step=4, swapped_per_batch=1, window_batches=4), steps=6, seed=3)


def pool(n: int = 24, **columns: np.ndarray) -> ArmPool:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "sample_id": [f"s{i:02d}" for i in range(n)],
            "cluster": np.arange(n) % 3,
            "ranking": rng.permutation(n).astype(float),
            "raw": rng.normal(size=n),
            "length": np.full(n, 10.0),
            "label": rng.permutation(n).astype(float),
        }
    )
    return ArmPool(table.assign(**columns))


def test_adarft_target_and_nearest_unused_prompts() -> None:
    values = np.array([0.0, 30.0, 60.0, 100.0])
    public = arms.AdaptiveTarget(values)
    assert public.next(2).tolist() == public.next(2).tolist() == [0, 1], "the public form repeats what is nearest"
    selector = arms.AdaptiveTarget(values, once=True)
    assert selector.next(2).tolist() == [0, 1]
    selector.told(np.array([0, 1]), np.array([[1.0, 1.0], [1.0, 1.0]]))
    assert selector.target == pytest.approx(50 * np.tanh(1.0))
    assert selector.next(2).tolist() == [2, 3]
    selector.told(np.array([2, 3]), np.zeros((2, 2)))
    assert selector.target == pytest.approx(0.0)
    assert selector.next(1).tolist() == [0], "a new pass begins when all are used"
    assert arms.adarft(pool(1, pass_rate=np.array([0.25])), SETTING).difficulties.tolist() == [75.0]


def test_gainrl_draws_around_a_mean_that_moves_by_the_rule() -> None:
    scores = np.linspace(0, 1, 2000)
    selector = arms.MovingGaussian(scores, seed=0)
    first = selector.next(64)
    ranks = np.searchsorted(-scores[selector.ranked], -scores[first])
    assert len(set(first.tolist())) == 64 and ranks.max() < 5 * 100
    selector.told(first, np.full((64, 4), 0.5))
    expected = 500 / 256 * 64 * np.tanh(2 * scores[first].mean())
    assert selector.mean == pytest.approx(expected)
    selector.mean = 1990.0
    selector.told(first, np.ones((64, 4)))
    assert selector.mean == 1999, "it stops at the last rank"
    selector.mean = 1500.0
    assert np.abs(np.searchsorted(-scores[selector.ranked], -scores[selector.next(64)]) - 1500).mean() < 150


def test_mopps_posterior_by_hand() -> None:
    selector = arms.PosteriorSampling(3, seed=0)
    selector.told(np.array([1]), np.array([[1.0, 1.0, 1.0, 0.0]]))
    assert selector.a.tolist() == [1.0, 4.0, 1.0] and selector.b.tolist() == [1.0, 2.0, 1.0]
    selector.told(np.array([1]), np.array([[0.0, 0.0, 0.0, 0.0]]))
    assert selector.a[1] == pytest.approx(0.5 * 4 + 0.5) and selector.b[1] == pytest.approx(0.5 * 2 + 0.5 + 4)
    selector.a[:], selector.b[:] = [9000, 5000, 1], [1000, 5000, 9000]
    assert selector.next(1).tolist() == [1]


def test_sec_learns_which_cluster_has_gradient() -> None:
    clusters = np.repeat([0, 1], 50)
    selector = arms.ClusterBandit(clusters, seed=0)
    rows = np.array([0, 50])
    selector.told(rows, np.array([[1.0, 0.0], [1.0, 1.0]]))
    assert selector.value.tolist() == pytest.approx([0.5 * np.sqrt(0.5), 0.0])
    for _ in range(30):
        selector.told(rows, np.array([[1.0, 0.0], [1.0, 1.0]]))
    selector.value *= 20
    assert (clusters[selector.next(40)] == 0).mean() > 0.9


def log_det(points: np.ndarray, weights: np.ndarray, rows: tuple[int, ...]) -> float:
    part = points[list(rows)]
    return float(np.linalg.slogdet(np.eye(points.shape[1]) + (part.T * weights[list(rows)]) @ part)[1])


def test_greedy_log_det_equals_brute_force_on_ten_samples() -> None:
    rng = np.random.default_rng(1)
    points, weights = rng.normal(size=(10, 4)), rng.random(10)
    chosen: tuple[int, ...] = ()
    for _ in range(5):
        chosen += (max((i for i in range(10) if i not in chosen), key=lambda i: log_det(points, weights, (*chosen, i))),)
    assert tuple(arms.greedy_log_det(points, weights, 5)) == chosen
    best = max(log_det(points, weights, rows) for rows in itertools.combinations(range(10), 5))
    assert log_det(points, weights, chosen) >= (1 - 1 / np.e) * best


def test_irds_weights_and_shift_subset_by_hand() -> None:
    motifs, rate = np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([0.5, 1.0])
    assert arms.motif_weights(motifs, rate).tolist() == pytest.approx([0.25 * 0.25, 0.0])
    table = pool(8)
    shifted = ArmPool(table.table, {"solution_shift": np.random.default_rng(0).normal(size=(8, 6))})
    rows = arms.twice(shifted, replace(SETTING, steps=2), arms.shift_rows)
    assert len(rows) == 8 and len(set(rows.tolist())) == 4 and set(rows[:4]) == set(rows[4:])


def test_saerl_ablations_change_one_thing_each() -> None:
    data = pool(48)
    full, unmixed = curriculum(data, SETTING), curriculum(data, SETTING, mixing=False)
    assert isinstance(full, BatchPlan) and full.swapped_per_batch == 1 and unmixed.swapped_per_batch == 0
    assert (unmixed.table.groupby("step")["cluster"].nunique() == 1).all()
    unsorted = curriculum(data, SETTING, sorting=False, mixing=False)
    assert (unsorted.table.groupby("step")["cluster"].nunique() == 1).all() and unsorted.ids != unmixed.ids
    ranks = data.column("ranking")[find_arm("minus_clus_mix").order(data, SETTING)]
    assert (np.diff(ranks) > 0).all()
    assert curriculum(data, SETTING, swapped=0.5).swapped_per_batch == 2
    with pytest.raises(ArmError, match="'ranking@tfidf'"):
        curriculum(data, SETTING, features="tfidf")
    config = scaled(SETTING.plan, 4)
    assert (config.prompts_per_step, config.swapped_per_batch, config.window_batches) == (16, 4, 1)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(n for n, a in all_arms().items() if a.policy)), st.integers(0, 5))
def test_selectors_repeat_themselves_and_stay_in_the_pool(name: str, seed: int) -> None:
    data = pool(40, pass_rate=np.linspace(0, 1, 40), angle_concentration=np.linspace(0, 1, 40))

    def walk() -> list[list[int]]:
        selector, out = all_arms()[name].policy(data, replace(SETTING, seed=seed)), []
        for step in range(6):
            rows = selector.next(4)
            selector.told(rows, np.random.default_rng(step).integers(0, 2, (4, 8)).astype(float))
            out.append(rows.tolist())
        return out

    first = walk()
    assert first == walk() and all(0 <= r < 40 for step in first for r in step) and all(len(step) == 4 for step in first)
    rows = arms.e2h(pool(200), replace(SETTING, steps=50, seed=seed))
    labels = pool(200).column("label")[rows].reshape(50, 4).mean(axis=1)
    assert labels[:10].mean() < labels[-10:].mean(), "from easy to hard bins"


def test_a_users_arm_is_one_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\nfrom saerl_lib.train.arms import Arm\n"
        "def backwards(pool, setting):\n    return np.arange(len(pool.table))[::-1]\n"
        "ARMS = (Arm('backwards', 'last first', order=backwards),)\n"
    )
    assert find_arm("backwards", file).order(pool(3), SETTING).tolist() == [2, 1, 0]
    assert "backwards" not in all_arms()
    file.write_text("ARMS = ('grpo',)\n")
    all_arms.cache_clear()
    with pytest.raises(ArmError, match="ARMS holds a str"):
        find_arm("grpo", file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": None}, "exactly one of order and policy"),
        ({"group": "best"}, "must be one of paper"),
        ({"name": "a/b"}, "letters, digits"),
    ],
)
def test_malformed_arms(change: dict, message: str) -> None:
    with pytest.raises(ArmError, match=message):
        Arm(**{"name": "mine", "title": "", "order": lambda pool, setting: np.arange(3), **change})


@pytest.mark.parametrize(("name", "steps"), [("saerl_front", (0, 1, 2)), ("saerl_grpo", (2, 3, 4)), ("saerl_back", (3, 4, 5))])
def test_small_clusters_stand_where_the_staging_puts_them(name: str, steps: tuple[int, ...]) -> None:
    clusters = np.repeat([0, 1, 2], (16, 4, 4))  # four batches of the largest cluster, one of each other
    plan = find_arm(name).order(pool(24, cluster=clusters), replace(SETTING, plan=replace(SETTING.plan, swapped_per_batch=0)))
    assert isinstance(plan, BatchPlan) and sorted(plan.ids) == [f"s{i:02d}" for i in range(24)]
    batches = plan.table["cluster"].to_numpy().reshape(-1, 4)
    assert {step for step in range(6) if batches[step, 0] > 0} < set(steps)


def test_the_positive_control_takes_the_pass_rates_nearest_to_one_half() -> None:
    rates = np.array([0.0, 0.5, 0.4, 1.0, 0.75, 0.6, 0.1, 0.25])
    rows = find_arm("informative_half").order(pool(8, pass_rate=rates), replace(SETTING, steps=2))
    assert set(rows[:4]) == set(rows[4:]) == {1, 2, 4, 5}, "of 4 and 7, equally far, the smaller id"
