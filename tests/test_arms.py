"""Every arm's order or update rule by hand; the interface that a user's own arm goes through."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_lib.config import PlanConfig
from saerl_lib.plan.batch_plan import BatchPlan
from saerl_lib.plan.orders import build_plan
from saerl_lib.train import arms, selectors
from saerl_lib.train.arms import Arm, ArmError, ArmPool, ArmSetting, all_arms, curriculum, find_arm
from saerl_lib.train.selectors import OnlineRates

SETTING = ArmSetting(PlanConfig(prompts_per_step=4, swapped_per_batch=1, window_batches=4), steps=6, seed=3)


def pool(n: int = 24, **columns: np.ndarray) -> ArmPool:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({
        "sample_id": [f"s{i:02d}" for i in range(n)], "cluster": np.arange(n) % 3, "ranking": rng.permutation(n).astype(float),
        "raw": rng.normal(size=n), "length": np.full(n, 10.0), "label": rng.permutation(n).astype(float),
    })  # fmt: skip
    return ArmPool(table.assign(**columns))


def test_adarft_target_and_nearest_unused_prompts() -> None:
    values = np.array([0.0, 30.0, 60.0, 100.0])
    public = selectors.AdaptiveTarget(values)
    assert public.next(2).tolist() == public.next(2).tolist() == [0, 1], "the public form repeats what is nearest"
    selector = selectors.AdaptiveTarget(values, once=True)
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
    selector = selectors.MovingGaussian(scores, seed=0)
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
    selector = selectors.PosteriorSampling(3, seed=0)
    selector.told(np.array([1]), np.array([[1.0, 1.0, 1.0, 0.0]]))
    assert selector.a.tolist() == [1.0, 4.0, 1.0] and selector.b.tolist() == [1.0, 2.0, 1.0]
    selector.told(np.array([1]), np.array([[0.0, 0.0, 0.0, 0.0]]))
    assert selector.a[1] == pytest.approx(0.5 * 4 + 0.5) and selector.b[1] == pytest.approx(0.5 * 2 + 0.5 + 4)
    selector.a[:], selector.b[:] = [9000, 5000, 1], [1000, 5000, 9000]
    assert selector.next(1).tolist() == [1]


def test_sec_learns_which_cluster_has_gradient() -> None:
    clusters = np.repeat([0, 1], 50)
    selector = selectors.ClusterBandit(clusters, seed=0)
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
    with pytest.raises(ArmError, match="'cluster@tfidf'"):
        curriculum(data, SETTING, features="tfidf")
    drawn = replace(SETTING, draw=2)
    own = {f"{name}@draw2": data.column(name) for name in ("cluster", "raw")} | {"ranking@draw2": -data.column("ranking")}
    sharp = {f"{name}_sharp": values for name, values in own.items()} | {"ranking@draw2_sharp": data.column("ranking")}
    other = ArmPool(data.table.assign(**own, **sharp))
    assert curriculum(other, SETTING).ids == full.ids == curriculum(other, drawn, features=arms.SHARP).ids
    assert curriculum(other, drawn).ids != full.ids, "another matched seed has the scores of its own SAE"
    assert (np.diff(data.column("ranking")[find_arm("minus_clus_mix").order(other, drawn)]) < 0).all()
    assert find_arm("saerl_true").order(other, drawn).ids == find_arm("saerl_true").order(other, SETTING).ids
    uneven = pool(24, cluster=np.repeat([0, 1, 2], (16, 4, 4)))  # four batches of the largest cluster, one of each other
    for name, unequal in (("saerl_front", "front"), ("saerl_grpo", "stretch"), ("saerl_back", "back")):
        plan = build_plan(uneven.ids, *(uneven.column(c) for c in ("cluster", "ranking", "raw", "length")),
                          replace(SETTING.plan, unequal=unequal), order="saerl")  # fmt: skip
        assert find_arm(name).order(uneven, SETTING).ids == plan.ids


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(n for n, a in all_arms().items() if a.policy)), st.integers(0, 5))
def test_selectors_repeat_themselves_and_stay_in_the_pool(name: str, seed: int) -> None:
    phi = {f"phi@{name}": list(np.random.default_rng(1).random((40, 3))) for name in ("sae", "tfidf", "dense", "sharp")}
    ranks = {f"ranking@{name}": np.arange(40.0) for name in ("tfidf", "dense", "sharp")}
    data = pool(40, pass_rate=np.linspace(0, 1, 40), angle_concentration=np.linspace(0, 1, 40), **phi, **ranks)

    def walk() -> list[list[int]]:
        selector, out = all_arms()[name].policy(data, replace(SETTING, seed=seed)), []
        for step in range(6):
            rows = selector.next(4)
            selector.told(rows, np.random.default_rng(step).integers(0, 2, (4, 8)).astype(float))
            out.append(rows.tolist())
        return out

    first = walk()
    assert first == walk() and all(0 <= r < 40 for step in first for r in step) and all(len(step) == 4 for step in first)


def test_malformed_arms(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("ARMS = ('grpo',)\n")
    with pytest.raises(ArmError, match="ARMS holds a str"):
        find_arm("grpo", tmp_path / "mine.py")
    (tmp_path / "one.py").write_text("ARMS = 'mine'\n")
    with pytest.raises(ArmError, match="define a tuple named ARMS"):
        find_arm("grpo", tmp_path / "one.py")
    for change, message in (({"order": None}, "exactly one of order and policy"), ({"group": "best"}, "must be one of paper"),
                            ({"name": "a/b"}, "letters, digits")):  # fmt: skip
        with pytest.raises(ArmError, match=message):
            Arm(**{"name": "mine", "title": "", "order": lambda pool, setting: np.arange(3), **change})


def test_the_positive_control_and_easy_to_hard_bins() -> None:
    rates = np.array([0.0, 0.5, 0.4, 1.0, 0.75, 0.6, 0.1, 0.25])
    rows = find_arm("informative_half").order(pool(8, pass_rate=rates), replace(SETTING, steps=2))
    assert set(rows[:4]) == set(rows[4:]) == {1, 2, 4, 5}, "of 4 and 7, equally far, the smaller id"
    easy = pool(200).column("label")[arms.e2h(pool(200), replace(SETTING, steps=50))].reshape(50, 4).mean(axis=1)
    assert easy[:10].mean() < easy[-10:].mean(), "E2H goes from easy to hard bins"


# saerl_online: the current pass rate predicted from features.


def test_the_online_model_by_hand() -> None:
    selector = OnlineRates(np.zeros((4, 1)), np.array([2.0, 0.0, -2.0, 1.0]), np.zeros(4), seed=0)
    assert selector.rates.tolist() == [0.0, 0.5, 1.0, 0.25], "the offline difficulty alone, a quarter a deviation"
    selector.told(np.array([1]), np.array([[1.0, 1.0, 1.0, 1.0]]))
    # one row (1, 0, 0), residual 1 - 0.5, ridge 1: the intercept is 0.5 / (1 + 1)
    np.testing.assert_allclose(selector.weights, [0.25, 0.0, 0.0])
    selector.told(np.array([0]), np.array([[0.0, 1.0]]))
    # normal equations of rows (1, 0) with weight 0.999 and (1, 2), both with residual 0.5
    gram = np.array([[0.999 + 1 + 1, 2.0], [2.0, 4 + 1]])
    np.testing.assert_allclose(selector.weights[:2], np.linalg.solve(gram, [0.999 * 0.5 + 0.5, 2 * 0.5]))


def test_the_nearest_to_one_half_are_taken_spread_over_clusters_and_some_at_random() -> None:
    difficulty = np.concatenate([np.linspace(-0.1, 0.1, 40), np.linspace(1, 2, 40)])
    clusters = np.repeat([0, 1, 2], (40, 20, 20))
    selector = OnlineRates(np.zeros((80, 1)), difficulty, clusters, seed=0)
    rows = selector.next(16)
    assert sorted(np.abs(difficulty[rows[:4]]).tolist()) == sorted(np.abs(difficulty).tolist())[:4]
    assert np.bincount(clusters[rows[:12]], minlength=3).max() == 4, "a quarter of the step from a cluster"
    others = {tuple(OnlineRates(np.zeros((80, 1)), difficulty, clusters, seed=s).next(16)[15:]) for s in range(8)}
    assert len(others) > 1, "one of 16 is drawn at random"
    drawn = np.concatenate([rows, *(selector.next(16) for _ in range(4))])
    assert sorted(drawn.tolist()) == list(range(80)), "no prompt twice in a pass"


def test_the_features_of_an_online_arm_come_with_the_table_of_its_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    phi = {f"phi@{name}": list(rng.random((40, 3), dtype=np.float32)) for name in ("sae", "tfidf")}
    table = pool(40, **phi, **{"ranking@tfidf": np.arange(40.0), "pass_rate": np.linspace(1, 0, 40)}).table
    table.to_parquet(tmp_path / "table.parquet", index=False)
    own, read = (arms.online(ArmPool(t), SETTING).design for t in (table, pd.read_parquet(tmp_path / "table.parquet")))
    assert read.tobytes() == own.tobytes() and read.shape == (40, 5), "one, the difficulty and the features"
    twins = (find_arm(f"saerl_online_{name}_wide") for name in ("tfidf", "shuffled"))
    words, dealt = (twin.policy(ArmPool(table), SETTING).design for twin in twins)
    assert np.corrcoef(words[:, 1], np.arange(40))[0, 1] > 0.99 and not np.allclose(words[:, 2:], own[:, 2:])
    same = np.lexsort(dealt.T), np.lexsort(own.T)
    assert not np.allclose(dealt, own) and np.allclose(dealt[same[0]], own[same[1]]), "whole rows go to other prompts"
    told = find_arm("saerl_online_rate").policy(ArmPool(table), SETTING)
    assert told.rates[0] > 0.5 > told.rates[-1], "it starts from the measured rates"
