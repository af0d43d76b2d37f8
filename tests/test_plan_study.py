"""Open choices of the plan, stability, sensitivity and the comparison of two plans."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_lib.cli import main
from saerl_lib.config import REST, UNEQUAL, PlanConfig
from saerl_lib.plan.batch_plan import BatchPlan, has_moved, plan_diff, write_plan
from saerl_lib.plan.curriculum import cluster_first, stage_of_batch
from saerl_lib.plan.orders import build_plan
from saerl_lib.studies.sensitivity import changed_values, curve_sizes, nested_subsets

DOZEN = [f"s{i:02d}" for i in range(12)]
CLUSTERS = np.array([0] * 7 + [1] * 5)
DIFFICULTY = np.array([1.0, 2, 3, 4, 5, 6, 7, 1.5, 2.5, 3.5, 4.5, 5.5])


def batches(config: PlanConfig) -> list[list[int]]:
    return [b.rows.tolist() for b in cluster_first(DOZEN, CLUSTERS, DIFFICULTY, DIFFICULTY, config)]


def test_what_happens_to_a_clusters_rest_by_hand() -> None:
    # cluster 0 holds rows 0-6, cluster 1 rows 7-11, b = 3: rests are row 6 and rows 10, 11 (the hardest)
    config = PlanConfig(prompts_per_step=3, swapped_per_batch=0)
    assert batches(config) == [[0, 1, 2], [7, 8, 9], [3, 4, 5], [10, 11, 6]]
    assert batches(replace(config, rest="append"))[-1] == [10, 11, 6]
    easiest = batches(replace(config, rest="pool_easiest"))
    assert easiest[0] == [0, 7, 8] and [4, 5, 6] in easiest and [9, 10, 11] in easiest


def test_clusters_of_unequal_size_by_hand() -> None:
    assert [stage_of_batch(j, 1, 3, name) for name in UNEQUAL for j in range(1)] == [0, 1, 2]
    clusters = np.array([0] * 9 + [1] * 3)
    ranking = np.array([1.0, 1.1, 1.2, 2.0, 2.1, 2.2, 3.0, 3.1, 3.2, 0.1, 0.2, 0.3])
    small = [9, 10, 11]
    for name, place in (("front", 0), ("stretch", 1), ("back", 2)):
        config = PlanConfig(prompts_per_step=3, swapped_per_batch=0, unequal=name)
        found = [b.rows.tolist() for b in cluster_first(DOZEN, clusters, ranking, ranking, config)]
        assert found.index(small) == place


@st.composite
def pools(draw: st.DrawFn) -> tuple:
    b = draw(st.integers(1, 5))
    n = b * draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    config = PlanConfig(
        prompts_per_step=b, swapped_per_batch=draw(st.integers(0, b - 1)), rest=draw(st.sampled_from(REST)),
        unequal=draw(st.sampled_from(UNEQUAL)),
    )  # fmt: skip
    ids = [f"p{i}" for i in range(n)]
    scores = rng.random(n).round(1)
    return ids, rng.integers(0, draw(st.integers(1, 5)), n), scores, scores, rng.integers(1, 50, n).astype(float), config


@settings(max_examples=60, deadline=None)
@given(pools())
def test_no_choice_loses_or_doubles_a_sample(pool: tuple) -> None:
    *arrays, config = pool
    plan = build_plan(*arrays, config)
    assert sorted(plan.ids) == sorted(arrays[0])


def plan_of(order: str = "saerl", seed: int = 0, n: int = 40, **changes: object) -> BatchPlan:
    rng = np.random.default_rng(3)
    difficulty = rng.random(n)
    config = replace(PlanConfig(prompts_per_step=4, swapped_per_batch=1), **changes)
    ids = [f"p{i:02d}" for i in range(n)]
    return build_plan(ids, np.arange(n) % 3, difficulty, difficulty, np.full(n, 9.0), config, order=order, seed=seed)


def test_a_plan_does_not_differ_from_itself_and_random_orders_do() -> None:
    plan = plan_of()
    same = plan_diff(plan, plan)
    assert (same.share_moved, same.spearman, same.same_batches, same.company) == (0.0, pytest.approx(1.0), 1.0, 1.0)
    other = plan_diff(plan_of("random", seed=1), plan_of("random", seed=2))
    assert other.share_moved > 0.5 and abs(other.spearman) < 0.5 and other.company < 0.5
    assert has_moved(np.array([0.1, 0.3 - 0.2, 0.11])).tolist() == [False, False, True]


def test_plan_diff_counts_what_is_in_one_alone() -> None:
    found = plan_diff(plan_of(n=40), plan_of(n=32))
    assert found.n == 32 and len(found.only_a) == 8 and found.only_b == ()


def test_the_command_compares_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_plan(plan_of(), tmp_path / "a.parquet")
    write_plan(plan_of("random"), tmp_path / "b.parquet")
    assert main(["plan", "diff", str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n"] == 40
    assert main(["plan", "diff", str(tmp_path / "a.parquet"), str(tmp_path / "c.parquet")]) == 1
    assert "c.parquet is missing" in capsys.readouterr().err
    (tmp_path / "d.parquet").write_text("no parquet")
    assert main(["plan", "diff", str(tmp_path / "a.parquet"), str(tmp_path / "d.parquet")]) == 1


def test_settings_that_are_tried_leave_out_the_default() -> None:
    assert changed_values(10, (0.5, 1.0, 2.0)) == [5, 20]
    assert curve_sizes(240) == (30, 100, 240)
    first, second = nested_subsets(50, 0, 2)
    assert sorted(first.tolist()) == list(range(50)) and first.tolist() != second.tolist()
    assert first.tolist() == nested_subsets(50, 0, 1)[0].tolist()
