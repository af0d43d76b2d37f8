"""Real labelled sets: the loader's errors, splits by hash, tasks, and the ladder's arithmetic; real files where they lie."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from real_files import write_real_files

from saerl_lib import paths
from saerl_lib.config import MethodConfig, PropertyConfig, get_profile
from saerl_lib.data.published import corpus_texts, evaluation_keys, load_labelled
from saerl_lib.data.sample import LabelledSet, Sample, hash_order, split_by_hash, unique, without
from saerl_lib.encode import kinds_stage, real_stage
from saerl_lib.encode.spans import Layout
from saerl_lib.properties.controls import FeatureSet, block_sets, predict, text_sets
from saerl_lib.properties.file_tasks import tasks_of_file
from saerl_lib.properties.ladder_tables import overlap_table
from saerl_lib.properties.scores import baseline, interval, metric, task_rows
from saerl_lib.properties.tasks import Task, labelled_task, real_tasks, world_tasks

REAL = pytest.mark.skipif(not paths.shared_data_dir(), reason="SAERL_DATA_DIR is not set: no real labelled data")


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    return path


def problems(n: int, **labels: object) -> list[dict]:
    return [
        {"id": f"p{i}", "question": f"What is {i} plus {i * 7 % 13}?", "answer": "1"}
        | {name: (value(i) if callable(value) else value) for name, value in labels.items()}
        for i in range(n)
    ]


def test_splits_depend_on_the_text_alone(tmp_path: Path) -> None:
    rows = problems(200, level=lambda i: i % 5)
    rows.append({**rows[7], "id": "again"})
    first = load_labelled(write(tmp_path / "a.jsonl", rows))
    second = load_labelled(write(tmp_path / "b.jsonl", rows[::-1]))
    train, test = split_by_hash(first, 100, 50)
    again, _ = split_by_hash(second, 100, 50)
    assert sorted(train.keys) == sorted(again.keys) and not set(train.keys) & set(test.keys)
    assert len(train) == 100 and len(test) == 50 and len(unique(first)) == 200
    left = without(first, set(train.keys))
    assert not set(left.keys) & set(train.keys) and len(set(left.keys)) == 100
    assert sorted(hash_order(first).tolist()) == list(range(201))


def test_the_corpus_holds_no_held_out_question(tmp_path: Path) -> None:
    data = load_labelled(write(tmp_path / "a.jsonl", problems(5, solution="s")))
    texts = list(corpus_texts([data], set(data.keys[:2])))
    assert len(texts) == 3 and all("\n" in t for t in texts)


def test_overlap_with_evaluation_sets_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAERL_DATA_DIR", str(write_real_files(tmp_path / "data")))
    found = overlap_table(get_profile("smoke")).set_index(["dataset", "evaluation_set"])
    assert found["n_overlap"].sum() == found.loc[("math_train", "eval_aime24"), "n_overlap"] == 1
    assert found.loc[("math_train", "math_test"), "n"] == 80 and ("math_test", "math_test") not in found.index
    monkeypatch.delenv("SAERL_DATA_DIR")
    assert overlap_table(get_profile("smoke"))["n"].min() > 80, "without the files the committed table stands"


def test_any_labelled_file_gets_its_tasks(tmp_path: Path) -> None:
    rows = problems(120, level=lambda i: i % 4, subject=lambda i: "ab"[i % 2], pass_rate=lambda i: (i % 9) / 8, solution="x")
    data = load_labelled(write(tmp_path / "mine.jsonl", rows))
    tasks = tasks_of_file(data, MethodConfig(), held_out=set(data.keys[:3]))
    assert [t.target for t in tasks] == [
        "subject", "difficulty_level", "difficulty_level_with_solution", "difficulty_by_pass_rate",
    ]  # fmt: skip
    assert all(not {s.prompt for s in t.train} & {s.prompt for s in t.test} for t in tasks)
    assert all(not {s.id for s in t.train} & {"p0", "p1", "p2"} for t in tasks)
    assert (tasks[-1].y_train <= 0).all()


def test_a_file_is_told_of_every_row_that_is_left_out(tmp_path: Path) -> None:
    rows = problems(100, level=2, subject=lambda i: "ab"[i % 2] if i < 95 else "rare")
    rows[0]["level"] = 3
    for row in rows[60:]:
        row |= {"pass_rate": 0.5, "solution": "x"}
    rows += [{**rows[3], "id": "again"}]
    said: list[str] = []
    data = load_labelled(write(tmp_path / "mine.jsonl", rows))
    config = MethodConfig(max_train=50, max_test=20)
    held_out = {data.keys[i] for i in range(95)}
    with pytest.raises(ValueError, match="0 training and 20 test samples are too few"):
        tasks_of_file(data, config, held_out, said.append)
    assert said == [
        "subject: 101 of 101 rows carry it; left out: 5 of topics with fewer than 10 rows, 1 that repeat a question, "
        "25 beyond max_train = 50 and max_test = 20, 50 for training whose question stands in an evaluation set"
    ]
    said.clear()
    (_, level) = tasks_of_file(data, config, set(), said.append)
    assert level.target == "difficulty_level" and len(level.train) + len(level.test) == 70
    bare = sum(not sample.solved for sample in (*level.train, *level.test))
    assert 0 < bare < 70 and said[2:] == [
        f"level with solutions: not read; {bare} of 70 rows have no solution",
        "pass_rate: not read; 40 rows carry it, 40 different questions with 1 values of use, and 43 with 2 are needed",
    ]
    assert said[1].startswith("level: 101 of 101 rows carry it; left out: 1 that repeat")
    with pytest.raises(ValueError, match="no label with two values"):
        tasks_of_file(load_labelled(write(tmp_path / "bare.jsonl", problems(60, level=2))), config, set())


def task(kind: str = "rank", n: int = 80) -> Task:
    rng = np.random.default_rng(0)
    samples = tuple(Sample(f"s{i}", f"Find {i} times {rng.integers(99)}.", ("a",), "1", topic="t") for i in range(n))
    y = np.array([["a", "b"][i % 2] for i in range(n)]) if kind == "topic" else rng.random(n).round(2)
    y = (y > 0.5).astype(float) if kind == "binary" else y
    half = n // 2
    return Task("d", "t", kind, samples[:half], samples[half:], y[:half], y[half:], True)


def test_metrics_by_hand() -> None:
    assert metric("topic", np.array(["a", "b"]), np.array(["a", "a"])) == 0.5
    assert metric("rank", np.array([1.0, 5.0, 9.0]), np.array([2.0, 3.0, 70.0])) == pytest.approx(1.0)
    assert metric("binary", np.array([0.1, 0.9, 0.4]), np.array([0.0, 1.0, 1.0])) == 1.0
    assert metric("rank", np.ones(3), np.arange(3.0)) == 0.0


def test_intervals_cover_seeds_as_well() -> None:
    truth = np.arange(200.0)
    good, bad = truth.copy(), np.random.default_rng(0).permutation(truth)
    value, low, high = interval("rank", [good, good], truth, 200, 0)
    assert value == low == high == pytest.approx(1.0)
    _, low, high = interval("rank", [good, bad], truth, 200, 0)
    assert low < 0.2 and high > 0.9


def test_error_intervals_average_the_seeds_of_a_resample() -> None:
    made = task("quality")
    runs = {("sae", i): made.y_test + shift for i, shift in enumerate((0.0, 0.0, 0.0, 1.0))}
    (row,) = (r for r in task_rows(made, runs, 400, 0) if (r.features, r.metric) == ("sae", "mae"))
    assert row.value == pytest.approx(0.25)
    # a resample averages four draws of 0 or 1, so 1, which a single draw would give in a quarter of them, is out of reach
    assert 0 <= row.ci_low < row.value < row.ci_high <= 0.75


@pytest.mark.parametrize("kind", ["topic", "rank", "binary", "quality"])
def test_rows_of_a_task_hold_its_baseline_and_every_set(kind: str) -> None:
    t = task(kind)
    config = get_profile("smoke").properties
    sets = [s for s in text_sets(t) if s.name != "tfidf"]
    found = {(s.name, s.seed): predict(t, s, config, 0) for s in sets}
    rows = task_rows(t, found, 30, 0)
    names = {r.features for r in rows}
    assert {"length", "metadata", baseline(t)[0]} <= names
    assert {r.metric for r in rows} == ({"pearson", "rmse", "mae"} if kind == "quality" else {metric_name(kind)})
    assert all(r.ci_low <= r.value + 1e-9 and r.value <= r.ci_high + 1e-9 for r in rows if r.features != "length")


def metric_name(kind: str) -> str:
    return {"topic": "accuracy", "rank": "spearman", "binary": "roc_auc"}[kind]


def test_a_planted_signal_is_found_and_shuffled_labels_are_at_chance() -> None:
    rng = np.random.default_rng(1)
    n = 600
    samples = tuple(Sample(f"s{i}", f"Find {i}.", ("a",), "1") for i in range(n))
    x = rng.random((n, 24)).astype(np.float32)
    y = x[:, 0] + x[:, 7] + 0.1 * rng.standard_normal(n)
    t = Task("d", "t", "rank", samples[:400], samples[400:], y[:400], y[400:], True)
    sets = block_sets(t, {"sae#0": (x[:400], x[400:]), "dense": (x[:400], x[400:])}, 12, 0)
    config = PropertyConfig(elastic_net_alphas=8)
    scores = {(s.name, s.seed): metric("rank", predict(t, s, config, 0), t.y_test) for s in sets}
    assert scores["sae", 0] > 0.9 and scores["dense", 0] > 0.9
    mixed = [v for (name, _), v in scores.items() if name == "shuffled_labels"]
    assert len(mixed) == 5 and abs(np.mean(mixed)) < 0.2
    assert {name for name, _ in scores} >= {"sae+metadata", "dense_pca", "dense_random_projection"}


def test_prompt_tasks_read_no_solution() -> None:
    t = task()
    object.__setattr__(t, "with_solution", False)
    x = np.hstack([np.zeros((40, 4)), np.full((40, 4), np.nan)])
    (found,) = (s for s in block_sets(t, {"sae_untrained#1": (x, x)}, 4, 0))
    assert found.train.shape == (40, 4) and np.isfinite(found.train).all() and found.seed == 1
    assert all(s.train.shape[1] == {"length": 1, "metadata": 13}.get(s.name, s.train.shape[1]) for s in text_sets(t))


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="too few; label at least 30 and 10"):
        task(n=40)


def test_world_tasks_follow_the_papers_tables() -> None:
    from saerl_lib.data.splits import draw_world

    splits = draw_world(get_profile("smoke").world)
    tasks = world_tasks(splits)
    assert [t.target for t in tasks] == [
        "topic_l2", "topic_l3", "topic_leaf", "difficulty_in_domain", "difficulty_out_of_domain", "difficulty_adapted",
        "solution_quality",
    ]  # fmt: skip
    assert not any(t.with_solution for t in tasks[:3]) and all(t.with_solution for t in tasks[3:])
    other = [replace(s, difficulty=10 + 3 * s.difficulty) for s in splits["contest_train"]]
    again = world_tasks({**splits, "contest_train": other})
    np.testing.assert_allclose(again[5].y_train, tasks[5].y_train, err_msg="the scale of a source's labels is its own affair")
    assert abs(tasks[5].y_train[-len(other) :].mean()) < 1e-9 and abs(tasks[5].y_train[: -len(other)].mean()) < 1e-9


def test_no_model_reads_a_question_that_a_probe_is_tested_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAERL_DATA_DIR", str(write_real_files(tmp_path / "data")))
    monkeypatch.setenv("SAERL_HOME", str(tmp_path / "home"))
    profile = get_profile("smoke")
    texts: list[str] = []
    monkeypatch.setattr(
        real_stage, "train_text_model", lambda given, _, folder, __: texts.extend(given) or folder.mkdir() or [1.0]
    )
    real_stage.text_model_stage(profile)
    read: list[Sample] = []
    monkeypatch.setattr(
        kinds_stage, "token_vectors", lambda samples, *_: read.extend(samples) or iter([torch.zeros(len(samples), 4)])
    )
    kinds_stage.collect_text_vectors(None, None, profile.method.text_sae, profile.method, Layout(), 0)
    tested = {s.prompt for t in real_tasks(real_stage.load_set, profile.method, real_stage.held_out_keys()) for s in t.test}
    assert len(tested) > 100 and {s.prompt for s in read} == {t.split("\n")[0] for t in texts}
    assert len(texts) > 150 and not tested & {s.prompt for s in read}


def labelled_set(name: str, n: int) -> LabelledSet:
    samples = tuple(Sample(f"{name}{i}", f"{name} {i}", (), "", solved=False) for i in range(n))
    return LabelledSet(name, samples, {"level": np.arange(float(n))}, ((),) * n)


def test_a_pass_rate_becomes_difficulty_by_its_sign() -> None:
    made = labelled_task(labelled_set("a", 40), labelled_set("b", 20), "level", "t", "rank", sign=-1.0)
    assert made.y_train[3] == -3.0 and made.y_test[5] == -5.0


@REAL
def test_every_shared_file_loads_and_its_counts_are_those_of_its_readme() -> None:
    folder = paths.shared_data_dir()
    for path in sorted(folder.glob("*.jsonl.gz")):
        assert len(load_labelled(path)) > 0
    deepmath = load_labelled(folder / "deepmath_18k.jsonl.gz")
    assert len(deepmath) == 18_329 and int(deepmath.has_label("level").sum()) == 4_997  # one row is -1
    assert len(evaluation_keys(folder)) == 5


@REAL
def test_tfidf_meets_the_known_numbers() -> None:
    """MATH subject 0.75, MATH level 0.55, ValiMath 0.72, from the question alone."""
    folder = paths.shared_data_dir()
    train, test = (load_labelled(folder / f"math_{part}.jsonl.gz") for part in ("train", "test"))
    flawed = split_by_hash(load_labelled(folder / "quality_valimath.jsonl.gz"), 3000, 5000)
    config = PropertyConfig(elastic_net_alphas=10, elastic_net_l1_ratios=(0.5,))
    for made, low in (
        (labelled_task(train, test, "subject", "subject", "topic"), 0.74),
        (labelled_task(train, test, "level", "level", "rank"), 0.54),
        (labelled_task(*flawed, "valid", "valid", "binary"), 0.69),
    ):
        (words,) = (s for s in text_sets(made) if s.name == "tfidf")
        assert metric(made.kind, predict(made, FeatureSet("tfidf", words.train, words.test), config, 0), made.y_test) > low
