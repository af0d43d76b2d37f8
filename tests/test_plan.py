"""Curriculum, tail swap, orders, the plan record, the plan's open choices and the comparison of two plans."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_lib.config import REST, UNEQUAL, PlanConfig
from saerl_lib.plan import batch_plan, orders
from saerl_lib.plan.orders import ORDERS, build_plan, cluster_first, mix_tails


def config(
    b: int, h: int = 0, window: int = 100, difficulty: float = 1e9, length: float = 1.0, rest: str = "pool",
    unequal: str = "front",
) -> PlanConfig:  # fmt: skip
    """A PlanConfig whose swap conditions are open unless narrowed; all samples stay and small clusters end early."""
    return PlanConfig(b, h, window, difficulty, length, rest, unequal)


def dozen() -> dict[str, np.ndarray]:
    """Cluster 0 has six samples, cluster 1 five, cluster 2 one; batches of two."""
    clusters = np.array([0] * 6 + [1] * 5 + [2])
    ranking = np.array([6.0, 5, 4, 3, 2, 1, 1.4, 2.4, 3.4, 4.4, 9.0, 2.2])
    return {"ids": np.array([f"s{i:02d}" for i in range(12)]), "clusters": clusters, "ranking": ranking, "raw": ranking * 2}


def steps_of(batches: batch_plan.Batches) -> list[tuple[int, list[int]]]:
    """(stage, rows) of each step."""
    return list(zip(batches.stage.tolist(), batches.rows.tolist(), strict=True))


def test_curriculum_of_a_dozen_by_hand() -> None:
    batches = cluster_first(**dozen(), config=config(2))
    found = steps_of(batches)
    # stage means: (1, 2, 1.4, 2.4) -> 1.7; (3, 4, 3.4, 4.4) -> 3.7; (5, 6) -> 5.5; rests s11 (2.2) and s10 (9.0) -> 5.6
    assert found == [(0, [5, 4]), (0, [6, 7]), (1, [3, 2]), (1, [8, 9]), (2, [1, 0]), (3, [11, 10])]
    default = cluster_first(**dozen(), config=PlanConfig(2, 0))
    # s10 and s11 fill no batch; the two batches of cluster 1 are spread over the three stages of cluster 0
    assert steps_of(default) == [(0, [5, 4]), (0, [6, 7]), (1, [3, 2]), (2, [8, 9]), (2, [1, 0])]
    samples = dozen()
    samples["ranking"][10] = 4.5  # the rest batch now has mean 3.35: before stage 1 (mean 3.7)
    found = steps_of(cluster_first(**samples, config=config(2)))
    assert found == [(0, [5, 4]), (0, [6, 7]), (1, [11, 10]), (2, [3, 2]), (2, [8, 9]), (3, [1, 0])]


@pytest.mark.parametrize(
    ("narrowed", "clusters", "stages", "swaps"),
    [
        ({}, [0, 0, 1, 1], (0, 0), True), ({"difficulty": 1.0}, [0, 0, 1, 1], (0, 0), True),
        ({"difficulty": 0.9}, [0, 0, 1, 1], (0, 0), False), ({"length": 0.5}, [0, 0, 1, 1], (0, 0), True),
        ({"length": 0.4}, [0, 0, 1, 1], (0, 0), False), ({"h": 0}, [0, 0, 1, 1], (0, 0), False),
        ({"window": 0}, [0, 0, 1, 1], (0, 0), False), ({}, [0, 0, 0, 0], (0, 0), False),
        ({}, [0, 1, 0, 2], (0, 0), False),  # both dominated by 0, the lowest number among equals
        ({}, [0, 0, 1, 1], (0, 1), True),  # the window reaches into the next stage
    ],
)  # fmt: skip
def test_swap_conditions(narrowed: dict, clusters: list[int], stages: tuple[int, int], swaps: bool) -> None:
    batches = batch_plan.Batches(np.array(stages), np.arange(4).reshape(2, 2))
    ranking, lengths = np.array([1.0, 1, 2, 2]), np.array([10.0, 10, 20, 20])
    mixed, partner = mix_tails(batches, np.array(clusters), ranking, lengths, config(2, **({"h": 1} | narrowed)))
    assert partner.tolist() == ([1, 0] if swaps else [-1, -1])
    assert mixed.rows.tolist() == ([[0, 3], [2, 1]] if swaps else [[0, 1], [2, 3]])
    assert batches.rows.tolist() == [[0, 1], [2, 3]], "the input is untouched"


def test_plan_table_records_the_path_of_a_sample() -> None:
    plan = build_plan(**dozen(), lengths=np.ones(12), config=config(2, h=1))
    assert plan.ids[:4] == ["s05", "s07", "s06", "s04"]
    assert list(plan.table.columns) == list(batch_plan.COLUMNS)
    assert plan.table["swapped_with"].tolist()[:4] == [-1, 1, -1, 0]
    assert plan.table.loc[1].to_dict() == {
        "position": 1, "step": 0, "slot": 1, "sample_id": "s07", "cluster": 1,
        "raw_difficulty": 4.8, "ranking_score": 2.4, "swapped_with": 1,
    }
    assert plan.unpaired_share == 0.0
    before = build_plan(**dozen(), lengths=np.ones(12), config=config(2, h=1), order="saerl_before_mixing")
    assert before.unpaired_share == 1.0
    assert before.ids[:4] == ["s05", "s04", "s06", "s07"]


pools = st.integers(2, 6).flatmap(
    lambda b: st.tuples(
        st.just(b),
        st.integers(0, b - 1),
        st.integers(1, 12).flatmap(
            lambda t: st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(1, 9)), min_size=b * t, max_size=b * t)
        ),
        st.integers(0, 5),
    )
)


def plain_order(
    ids: Sequence[str], clusters: Sequence[int], ranking: Sequence[float], raw: Sequence[float], lengths: Sequence[float],
    config: PlanConfig,
) -> list[str]:  # fmt: skip
    """Ids in the order of the `saerl` plan, in lists and loops."""
    b, h = config.prompts_per_step, config.swapped_per_batch
    rows = sorted(range(len(ids)), key=lambda i: (ranking[i], raw[i], ids[i]))
    groups: dict[int, list[int]] = defaultdict(list)
    for i in rows:
        groups[clusters[i]].append(i)
    most = max(len(group) // b for group in groups.values())
    stages: list[list[list[int]]] = [[] for _ in range(most)]
    for cluster in sorted(groups):
        own = len(groups[cluster]) // b
        for t in range(own):
            place = {"front": t, "back": t + most - own, "stretch": int((t + 0.5) * most / own)}[config.unequal]
            stages[place].append(groups[cluster][t * b : (t + 1) * b])
    stages = [sorted(stage, key=lambda batch: _mean(ranking, batch)) for stage in stages]
    in_full = {i for stage in stages for batch in stage for i in batch}
    left = [i for i in rows if i not in in_full]
    for start in range(0, len(left) if config.rest == "pool" else 0, b):
        mean = _mean(ranking, left[start : start + b])
        harder = (t for t, stage in enumerate(stages) if _mean(ranking, [i for batch in stage for i in batch]) > mean)
        stages.insert(next(harder, len(stages)), [left[start : start + b]])
    batches = [(t, batch, Counter(sorted(clusters[i] for i in batch)).most_common(1)[0][0]) for t, stage in enumerate(stages)
               for batch in stage]  # fmt: skip
    taken, order = set(), [list(batch) for _, batch, _ in batches]

    def gap(i: int, j: int) -> float:
        return abs(_mean(ranking, batches[i][1]) - _mean(ranking, batches[j][1]))

    def fits(i: int, j: int) -> bool:
        one, other = _mean(lengths, batches[i][1]), _mean(lengths, batches[j][1])
        alike = gap(i, j) <= config.difficulty_tolerance and abs(one - other) / max(one, other) <= config.length_tolerance
        return alike and 0 < abs(i - j) <= config.window_batches and batches[i][2] != batches[j][2]

    choices = [sum(fits(i, j) for j in range(len(batches))) for i in range(len(batches))]
    for i in range(len(batches) if h else 0):
        found = [(choices[j], gap(i, j), j) for j in range(i + 1, len(batches)) if fits(i, j) and not {i, j} & taken]
        if found:
            j = min(found)[2]
            taken |= {i, j}
            order[i][-h:], order[j][-h:] = order[j][-h:], order[i][-h:]
    return [ids[i] for batch in order for i in batch]


def _mean(values: Sequence[float], rows: Sequence[int]) -> float:
    return sum(values[i] for i in rows) / len(rows)


@settings(max_examples=100, deadline=None)
@given(
    pools, st.sampled_from(("saerl", *ORDERS)), st.sampled_from(REST), st.sampled_from(UNEQUAL),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_every_plan_is_a_permutation_that_ignores_the_input_order(pool, order: str, rest: str, unequal: str, random) -> None:
    b, h, samples, window = pool
    clusters, ranking, lengths = (np.array(column) for column in zip(*samples, strict=True))
    ids = np.array([f"id{i}" for i in range(len(samples))])
    settings_ = config(b, h, window, 2.0, 0.5, rest, unequal)
    whole = sum(n // b * b for n in Counter(clusters.tolist()).values())
    if order.startswith("saerl") and rest == "drop" and not whole:
        with pytest.raises(batch_plan.PlanError, match=f"no cluster holds {b} samples, a batch: lower prompts_per_step"):
            build_plan(ids, clusters, ranking, ranking, lengths, settings_)
        return

    def plan_of(rows: np.ndarray) -> batch_plan.BatchPlan:
        scores = {"ranking": ranking[rows], "raw": ranking[rows] % 3, "lengths": lengths[rows], "labels": ranking[rows]}
        return build_plan(ids=ids[rows], clusters=clusters[rows], config=settings_, order=order, seed=7, **scores)

    plan = plan_of(np.arange(len(ids)))
    drops = order.startswith("saerl") and rest == "drop"
    assert len({*plan.ids}) == len(plan.ids) == (whole if drops else len(ids)) and set(plan.ids) <= set(ids)
    batch_plan.validate(plan)
    swapped = plan.table["swapped_with"].to_numpy().reshape(-1, b)
    for step, other in enumerate(swapped.max(axis=1).tolist()):
        assert swapped[step].tolist() == ([-1] * b if other < 0 else [-1] * (b - h) + [other] * h)
        assert step != other and (other < 0 or swapped[other].max() == step)
    rows = list(range(len(ids)))
    random.shuffle(rows)
    assert batch_plan.plan_hash(plan) == batch_plan.plan_hash(plan_of(np.array(rows)))
    if order == "saerl":
        arrays = (list(map(str, ids)), clusters.tolist(), ranking.tolist(), (ranking % 3).tolist(), lengths.tolist())
        assert plan.ids == plain_order(*arrays, settings_), "the plan is that of lists and loops"


def test_baseline_orders() -> None:
    ids = ["a", "b", "c", "d"]
    labels = np.array([2.0, 1.0, 2.0, 0.0])
    assert orders.by_difficulty(ids, labels).tolist() == [3, 1, 0, 2]
    assert orders.by_difficulty(ids, labels, descending=True).tolist() == [0, 2, 1, 3]
    many = [f"{i:03d}" for i in range(100)]
    assert orders.random_order(many, 0).tolist() == orders.random_order(many, 0).tolist()
    assert orders.random_order(many, 0).tolist() != orders.random_order(many, 1).tolist()
    assert sorted(orders.random_order(many, 0)) == list(range(100))


def test_parquet_round_trip_is_exact_and_deterministic(tmp_path: Path) -> None:
    plan = build_plan(**dozen(), lengths=np.ones(12), config=config(2, h=1))
    batch_plan.write_plan(plan, tmp_path / "a.parquet")
    batch_plan.write_plan(plan, tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    again = batch_plan.read_plan(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(again.table, plan.table)
    assert (again.order, again.prompts_per_step, again.swapped_per_batch) == ("saerl", 2, 1)
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(batch_plan.PlanError, match="is no batch plan"):
        batch_plan.read_plan(tmp_path / "c.parquet")


def test_validate_names_repeated_ids_and_columns_that_are_off() -> None:
    plan = build_plan(**dozen(), lengths=np.ones(12), config=config(2))
    table = plan.table.copy()
    table.loc[0, "sample_id"] = "s07"
    with pytest.raises(batch_plan.PlanError, match=r"1 repeated ids, first \['s07'\]"):
        batch_plan.validate(dataclasses.replace(plan, table=table))
    for b, said in ((3, "column step"), (5, "12 samples are no multiple of prompts_per_step=5")):
        with pytest.raises(batch_plan.PlanError, match=said):
            batch_plan.validate(dataclasses.replace(plan, prompts_per_step=b))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": config(5)}, "12 samples are no multiple of prompts_per_step=5: keep 10"),
        ({"order": "ascending"}, "pass labels"),
        ({"order": "zigzag"}, "order='zigzag' does not exist; choose one of saerl"),
        ({"order": "descending", "labels": np.full(12, np.nan)}, "labels must hold 12 finite"),
        ({"ids": ["x"] * 12}, "1 repeated ids, first \\['x'\\]"),
        ({"ranking": np.full(12, np.nan)}, "ranking holds non-finite"),
        ({"lengths": np.zeros(12)}, "lengths holds values of 0"),
        ({"lengths": np.ones(11)}, "row counts"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    with pytest.raises(batch_plan.PlanError, match=message):
        build_plan(**({**dozen(), "lengths": np.ones(12), "config": config(2)} | change))


def test_diversity_and_composition_by_hand() -> None:
    assert orders.projection_2d(np.random.default_rng(0).normal(size=(20, 5))).shape == (20, 2)
    plan, line = build_plan(**dozen(), lengths=np.ones(12), config=config(2)), np.arange(12.0)[:, None]
    spaces = {"line": line, "plane": np.hstack([3 * line, 4 * line])}
    rows = orders.diversity_rows(plan, dozen()["ids"], spaces, bootstrap_samples=50, seed=0)
    assert [row["value"] for row in rows] == pytest.approx([1.0, 5.0])  # every batch of the dozen holds neighbours
    assert (rows[1]["order"], rows[1]["space"], rows[1]["n_batches"]) == ("saerl", "plane", 6)
    plan = build_plan(**dozen(), lengths=np.ones(12), config=config(2, h=1))
    assert orders.composition_rows(plan, dozen()["ids"], np.arange(12.0)).loc[0].to_dict() == {
        "order": "saerl", "step": 0, "dominant_cluster": 0, "dominant_share": 0.5, "n_clusters": 2,
        "mean_ranking_score": pytest.approx(1.7), "mean_sequence_words": 6.0,
    }

# Open choices, and the comparison of two plans.


DOZEN = [f"s{i:02d}" for i in range(12)]
CLUSTERS = np.array([0] * 7 + [1] * 5)
DIFFICULTY = np.array([1.0, 2, 3, 4, 5, 6, 7, 1.5, 2.5, 3.5, 4.5, 5.5])


def test_the_batches_of_each_cluster_are_counted() -> None:
    plan = build_plan(DOZEN, CLUSTERS, DIFFICULTY, DIFFICULTY, np.ones(12), PlanConfig(3, 1))
    table = orders.cluster_batches(plan, pd.DataFrame({"cluster": CLUSTERS}))
    assert table.to_dict("list") == {"cluster": [0, 1], "samples": [7, 5], "batches": [2, 1], "without_partner": [1, 0],
                                     "left_out": [1, 2]}  # fmt: skip


def forty(order: str = "saerl", seed: int = 0, n: int = 40, **changes: object) -> batch_plan.BatchPlan:
    rng = np.random.default_rng(3)
    difficulty = rng.random(n)
    config = replace(PlanConfig(prompts_per_step=4, swapped_per_batch=1, rest="pool"), **changes)
    ids = [f"p{i:02d}" for i in range(n)]
    return build_plan(ids, np.arange(n) % 3, difficulty, difficulty, np.full(n, 9.0), config, order=order, seed=seed)


def test_a_plan_does_not_differ_from_itself_and_random_orders_do() -> None:
    plan = forty()
    assert batch_plan.plan_diff(plan, plan) == {"n": 40, "only_a": 0, "only_b": 0, "share_moved": 0, "mean_step_shift": 0,
                                     "spearman": pytest.approx(1.0), "same_batches": 1}  # fmt: skip
    other = batch_plan.plan_diff(forty("random", seed=1), forty("random", seed=2))
    assert other["share_moved"] > 0.5 and abs(other["spearman"]) < 0.5
    found = batch_plan.plan_diff(forty(n=40), forty(n=32))
    assert (found["n"], found["only_a"], found["only_b"]) == (32, 8, 0)
    assert batch_plan.has_moved(np.array([0.1, 0.3 - 0.2, 0.11])).tolist() == [False, False, True]
