"""Probes, tasks and the control ladder, and the scores that should find wrong samples: by hand, at chance, against slow twins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import RidgeCV
from sklearn.metrics import average_precision_score, roc_auc_score

from saerl_lib.config import LadderConfig, PropertyConfig, get_profile
from saerl_lib.data.published import load_labelled
from saerl_lib.data.sample import SEPARATOR, DataError, Sample
from saerl_lib.encode import models
from saerl_lib.encode.models import measure_surprise, open_causal
from saerl_lib.properties import probes
from saerl_lib.properties.probes import Task, fit_tfidf, metric, split_tasks, task_rows, tasks_of_file
from saerl_lib.report.statistics import bootstrap_weights, rank_metrics
from saerl_lib.studies.flaws import BUCKETS, FlawData, common_scores, flaw_table, log_importance_weights, sgd_scores
from saerl_lib.studies.ladder import Group, balanced, feature_sets, ladder
from saerl_lib.train.policy import FOLDER
from tests.real_files import problems, write_jsonl

CONFIG = PropertyConfig(bootstrap_samples=200, elastic_net_alphas=8)


def topics(n: int, signal: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three topics [n]; feature y carries `signal` where the topic is y."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = rng.normal(size=(n, 6))
    x[np.arange(n), y] += signal
    return x.astype(np.float32), np.array(["alg", "geo", "num"])[y]


def test_topic_probe_reads_a_clear_signal_and_shuffled_labels_are_at_chance() -> None:
    (train_x, train_y), (test_x, test_y) = topics(300, 4.0, 1), topics(600, 4.0, 2)
    assert probes.fit_topic_probe(train_x, train_y, 0).score(test_x, test_y) > 0.95
    mixed = [probes.fit_topic_probe(train_x, probes.shuffled(train_y, s), 0).score(test_x, test_y) for s in range(10)]
    # errors of one probe are not independent (a probe of noise may swap whole topics), hence the mean of ten
    assert abs(np.mean(mixed) - 1 / 3) < 0.06


def test_elastic_net_and_ridge_find_the_order_in_dense_and_sparse_features() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 10))
    y = 2 * x[:, 0] - x[:, 1] + 0.1 * rng.normal(size=400)
    for kind in (np.asarray, sparse.csr_matrix):
        fitted = probes.fit_elastic_net(kind(x[:200]), y[:200], CONFIG, 0)
        assert metric("rank", fitted.predict(kind(x[200:])), y[200:]) > 0.98
        assert metric("rank", probes.ridge_predictions(kind(x[:200]), y[:200], kind(x[200:]), 0), y[200:]) > 0.98


def test_ridge_by_the_gram_matrix_is_ridge_on_centred_columns() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 90)) + 3, rng.normal(size=60) + 5
    folds, norm = probes._folds(x, 0), float(np.square(x - x.mean(axis=0)).sum()) / 60
    by_hand = RidgeCV(norm * np.array(probes.RIDGE_PENALTIES), cv=folds, fit_intercept=False)
    by_hand.fit(x - x.mean(axis=0), y - y.mean())
    found = probes.ridge_predictions(sparse.csr_matrix(x), y, sparse.csr_matrix(x[:7] + 1), 0)
    np.testing.assert_allclose(found, by_hand.predict(x[:7] + 1 - x.mean(axis=0)) + y.mean())


def test_constant_labels_or_features_give_the_mean() -> None:
    x = np.arange(12.0)[:, None]
    assert set(probes.fit_elastic_net(x, np.ones(12), CONFIG, 0).predict(x)) == {1.0}
    assert np.ptp(probes.fit_elastic_net(np.ones((12, 2)), x[:, 0], CONFIG, 0).predict(np.ones((12, 2)))) == 0.0


def test_tfidf_keeps_digits_and_signs_and_feeds_the_probe() -> None:
    texts = ["3 + 4 = ?", "3 * 4 = ?", "5 + 6 = ?", "5 * 6 = ?"] * 10
    vectorizer = fit_tfidf(texts)
    assert {"3", "+", "*", "3 +"} <= set(vectorizer.get_feature_names_out())
    x, y = vectorizer.transform(texts), np.array(["sum", "product"] * 20)
    assert probes.fit_topic_probe(x, y, 0).score(x, y) == 1.0


def test_any_labelled_file_gets_its_tasks(tmp_path: Path) -> None:
    rows = problems(120, level=lambda i: i % 4, subject=lambda i: "ab"[i % 2], pass_rate=lambda i: (i % 9) / 8, solution="x")
    data = load_labelled(Path(write_jsonl(tmp_path / "mine.jsonl", rows)))
    tasks = tasks_of_file(data, LadderConfig(), held_out=set(data.keys[:3]))
    assert [t.target for t in tasks] == [
        "subject", "difficulty_level", "difficulty_level_with_solution", "difficulty_by_pass_rate",
    ]  # fmt: skip
    assert all(not {s.prompt for s in t.train} & {s.prompt for s in t.test} for t in tasks)
    assert all(not {s.id for s in t.train} & {"p0", "p1", "p2"} for t in tasks)
    rated = tasks[-1]
    assert rated.y_train.tolist() == [-(int(s.id[1:]) % 9) / 8 for s in rated.train], "a pass rate becomes difficulty by its sign"


def test_a_file_is_told_of_every_row_that_is_left_out(tmp_path: Path) -> None:
    rows = problems(100, level=2, subject=lambda i: "ab"[i % 2] if i < 95 else "rare")
    rows[0]["level"] = 3
    for row in rows[60:]:
        row |= {"pass_rate": 0.5, "solution": "x"}
    rows += [{**rows[3], "id": "again"}]
    said: list[str] = []
    data = load_labelled(Path(write_jsonl(tmp_path / "mine.jsonl", rows)))
    config = LadderConfig(max_train=50, max_test=20)
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
        tasks_of_file(load_labelled(Path(write_jsonl(tmp_path / "bare.jsonl", problems(60, level=2)))), config, set())


def task(kind: str = "rank", n: int = 80) -> Task:
    rng = np.random.default_rng(0)
    samples = tuple(Sample(f"s{i}", f"Find {i} times {rng.integers(99)}.", ("a",), "1", topic="t") for i in range(n))
    y = np.array([["a", "b"][i % 2] for i in range(n)]) if kind == "topic" else rng.random(n).round(2)
    y = (y > 0.5).astype(float) if kind == "binary" else y
    half = n // 2
    return Task("d", "t", kind, samples[:half], samples[half:], y[:half], y[half:], True)


def test_latents_are_chosen_on_labels_that_are_numbers_or_on_topics_as_numbers() -> None:
    (_, rated), (_, numbered) = (Group("g", tasks).training(get_profile("smoke")) for tasks in (
        (task("topic"), task("rank")), (task("topic"),)))  # fmt: skip
    assert sorted(rated) == sorted(task("rank").y_train) and set(numbered) == {0, 1}


def test_metrics_by_hand() -> None:
    assert metric("topic", np.array(["a", "b"]), np.array(["a", "a"])) == 0.5
    assert metric("rank", np.array([1.0, 5.0, 9.0]), np.array([2.0, 3.0, 70.0])) == pytest.approx(1.0)
    assert metric("binary", np.array([0.1, 0.9, 0.4]), np.array([0.0, 1.0, 1.0])) == 1.0
    assert metric("rank", np.ones(3), np.arange(3.0)) == 0.0


def test_intervals_average_the_seeds_of_a_resample() -> None:
    made = task("quality")
    runs = {"sae": [made.y_test + shift for shift in (0.0, 0.0, 0.0, 1.0)]}
    (row,) = task_rows(made, runs, 400, 0).query("features == 'sae' and metric == 'mae'").itertuples()
    assert row.value == pytest.approx(0.25)
    # a resample averages four draws of 0 or 1, so 1, which a single draw would give in a quarter of them, is out of reach
    assert 0 <= row.ci_low < row.value < row.ci_high <= 0.75


def test_prompt_tasks_read_no_solution() -> None:
    t = task()
    object.__setattr__(t, "with_solution", False)
    x = np.hstack([np.zeros((40, 4)), np.full((40, 4), np.nan)])
    *texts, found = feature_sets(t, {"sae_untrained#1": (x, x)})
    assert found.train.shape == (40, 4) and np.isfinite(found.train).all() and found.seed == 1
    assert all(s.train.shape[1] == {"length": 1, "metadata": 13}.get(s.name, s.train.shape[1]) for s in texts)


def test_split_tasks_follow_the_papers_tables(smoke_world: dict[str, list[Sample]]) -> None:
    splits = smoke_world
    tasks = split_tasks(splits)
    assert [t.target for t in tasks] == [
        "topic_l2", "topic_l3", "topic_leaf", "difficulty_in_domain", "difficulty_out_of_domain", "difficulty_adapted",
        "solution_quality",
    ]  # fmt: skip
    assert not any(t.with_solution for t in tasks[:3]) and all(t.with_solution for t in tasks[3:])
    other = [replace(s, difficulty=10 + 3 * s.difficulty) for s in splits["contest_train"]]
    again = split_tasks({**splits, "contest_train": other})
    np.testing.assert_allclose(again[5].y_train, tasks[5].y_train, err_msg="the scale of a source's labels is its own affair")
    assert abs(tasks[5].y_train[-len(other) :].mean()) < 1e-9 and abs(tasks[5].y_train[: -len(other)].mean()) < 1e-9


def test_the_ladder_reads_every_block_that_holds_its_samples() -> None:
    made, rng = task(n=120), np.random.default_rng(0)
    ids = [s.id for s in (*made.train, *made.test)]
    z = rng.random((120, 8)).astype(np.float32)
    z[:, 5] = np.concatenate([made.y_train, made.y_test])
    order = rng.permutation(120)
    noise = rng.random((120, 8)).astype(np.float32)
    blocks = {"sae": ([ids[i] for i in order], z[order]), "sae_all": (ids, sparse.csr_matrix(z)), "sae_untrained": (ids, noise),
              "sae_short#0": (ids, z), "sae_short#1": (ids, noise), "other": (ids[:100], z[:100])}  # fmt: skip
    rows, pairs = ladder([made], blocks, PropertyConfig(bootstrap_samples=20), 0, workers=1)
    table = rows.set_index("features")["value"]
    assert set(table.index) == {"mean", "length", "metadata", "tfidf", "sae", "sae+metadata", "shuffled_labels", "sae_all",
                                "sae_all+tfidf", "sae_untrained", "sae_short"}  # fmt: skip
    assert table["sae"] > 0.95 > 0.5 > abs(table["shuffled_labels"]) and table["sae_all"] > 0.9
    gap = pairs.set_index(["features", "against"]).loc[("sae", "sae_untrained")]
    assert gap["difference"] == pytest.approx(table["sae"] - table["sae_untrained"]) and 0.3 < gap["ci_low"] < gap["ci_high"]
    few, *_ = ladder([made], blocks, PropertyConfig(bootstrap_samples=20), 0, workers=1, only=("sae",))
    assert few["features"].tolist() == ["mean", "sae"] and few["value"].iloc[1] == table["sae"]


def test_dense_features_are_projected_to_the_width_that_the_task_reads() -> None:
    made, x = task(n=120), np.random.default_rng(0).random((60, 40))
    for with_solution, width in ((True, 8), (False, 4)):
        own = replace(made, with_solution=with_solution)
        sets = feature_sets(own, {"sae": (x[:, :8], x[:, :8]), "dense": (x, x)})
        widths = {s.name: s.train.shape[1] for s in sets}
        assert widths["sae"] == widths["dense_pca"] == width and widths["dense"] == 5 * width
        assert [s.name for s in sets if not s.standardise] == ["dense_pca"], "small directions stay small"


@pytest.mark.parametrize("standardise", [True, False])
def test_a_column_keeps_its_scale_where_a_probe_is_told_so(standardise: bool) -> None:
    x, y = np.random.default_rng(0).random((90, 2)) * [1.0, 1e-9], np.random.default_rng(0).random((90, 2))[:, 1]
    predicted = probes.ridge_predictions(x[:60], y[:60], x[60:], 0, standardise)
    topics = np.where(y > 0.5, "a", "b")
    accuracy = probes.fit_topic_probe(x[:60], topics[:60], 0, standardise).score(x[60:], topics[60:])
    assert (metric("rank", predicted, y[60:]) > 0.99) is standardise and (accuracy > 0.9) is standardise


def test_blocks_of_all_latents_weigh_alike() -> None:
    x = sparse.csr_matrix(np.array([[1.0, 0, 0, 100], [0, 4, 900, 0]]))
    train, test = balanced(x, x[:1], 2)
    assert train.power(2)[:, :2].sum() == pytest.approx(2) and train.power(2)[:, 2:].sum() == pytest.approx(2)
    np.testing.assert_allclose(test.toarray(), train[:1].toarray())


def test_intervals_of_a_grouped_task_resample_groups() -> None:
    made = replace(task("quality", 120), groups=np.repeat(np.arange(20), 3))
    made = replace(made, y_test=np.tile([0.0, 0.5, 1.0], 20), y_train=np.full(60, 0.5))
    rows, *_ = ladder([made], {}, PropertyConfig(bootstrap_samples=30), 0, workers=1, only=())
    found = rows.set_index("metric")[["value", "ci_low", "ci_high"]]
    assert found.loc["mae"].tolist() == pytest.approx([1 / 3] * 3), "every group has the same errors"
    assert found.loc["rmse"].tolist() == pytest.approx([(1 / 6) ** 0.5] * 3)


# Scores that should find wrong samples.


def test_dsir_by_hand() -> None:
    # target p = (1 + 1) / (size + 1), raw q = (1 + 1) / (size + 2) of two texts with a bucket each, smoothed by one
    weights, size = log_importance_weights(["find", "sum"], ["find"]), BUCKETS
    q = 2 / (2 + size)
    assert weights.tolist() == pytest.approx([np.log(2 / (1 + size) / q), np.log(1 / (1 + size) / q)])
    # "a b a" has the n-grams a, b, a, "a b", "b a"; signs and digits are words
    whole, each = (log_importance_weights(["A b a", "3+4", ""], ["3 + 4"], per_ngram=flag) for flag in (False, True))
    assert whole.tolist() == pytest.approx([5 * each[0], 5 * each[1], 0.0]) and each[1] > 0 > each[0]


def test_rank_metrics_equal_those_of_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 9, 60) / 3, rng.random(60) < 0.3
    found = rank_metrics(scores, positive, bootstrap_weights(60, 20, 0))
    assert found["roc_auc"].value == pytest.approx(roc_auc_score(positive, scores))
    assert found["average_precision"].value == pytest.approx(average_precision_score(positive, scores))
    assert found["roc_auc"].low < found["roc_auc"].value < found["roc_auc"].high


def planted_flaw(n: int, seed: int) -> FlawData:
    """Flaws shift the first column of z; metadata and words know nothing."""
    rng = np.random.default_rng(seed)
    flaw = np.where(rng.random(n) < 0.3, "wrong_answer", "")
    z = rng.standard_normal((n, 6))
    z[:, 0] += 2.5 * (flaw != "")
    texts = tuple(f"find {rng.integers(99)} and {rng.integers(99)}" for _ in range(n))
    return FlawData(z, rng.standard_normal((n, 3)), texts, flaw)


def test_a_planted_flaw_is_found_by_the_right_probe_alone() -> None:
    train, test = (planted_flaw(600, 0).rows(rows) for rows in (np.arange(400), np.arange(400, 600)))
    scores = common_scores(train, test, train.rows(np.flatnonzero(~train.flawed)).texts, 0)
    table = flaw_table(scores, test.flaw, {"test": np.ones(200, dtype=bool)}, dataset="d", config=CONFIG, seed=0)
    auc = table[(table["metric"] == "roc_auc") & (table["flaw"] == "any")].set_index("score")["value"]
    assert auc["flaw_probe_sae"] > 0.9
    for name in ("flaw_probe_metadata", "flaw_probe_tfidf", "flaw_probe_shuffled", "dsir", "length"):
        assert abs(auc[name] - 0.5) < 0.2, name
    assert auc["chance"] == 0.5


X, Y = topics(30, 1.0, 0)
BROKEN = np.where(np.arange(180).reshape(30, 6) == 44, np.nan, X)
FLAWS = planted_flaw(60, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: probes.fit_topic_probe(BROKEN, Y, 0), "train_x holds 1 non-finite values, first in row 7"),
        (lambda: probes.fit_topic_probe(X, np.full(30, "a"), 0), "single topic"),
        (lambda: probes.ridge_predictions(X, np.zeros(29), X, 0), "row counts"),
        (lambda: probes.ridge_predictions(X[:2], np.array([0.0, 1.0]), X, 0), "2 training samples are fewer than the 3 folds"),
        (lambda: task(n=40), "too few; label at least 30 and 10"),
        (lambda: fit_tfidf(["", " "]), "train_texts"),
        (lambda: sgd_scores(FLAWS.z, np.ones(60, dtype=bool), FLAWS.z, 0), "single class"),
    ],
)  # fmt: skip
def test_bad_input_names_the_place(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_surprise_equals_a_loop_and_does_not_depend_on_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = open_causal(FOLDER)
    prompts, solutions = ["Add 3 and 4.", "What is 12 times 7, then?", "Sum 1 and 1."], ["3 + 4 = 7", "84", "1 + 1 = 2"]
    found = measure_surprise(prompts, solutions, model, tokenizer)
    for i, (prompt, solution) in enumerate(zip(prompts, solutions, strict=True)):
        head, tail = tokenizer(prompt + SEPARATOR)["input_ids"], tokenizer(solution)["input_ids"]
        with torch.no_grad():
            logs = torch.log_softmax(model(input_ids=torch.tensor([head + tail])).logits[0], dim=-1)
        nats = [-float(logs[t - 1, token]) for t, token in enumerate(head + tail) if t]
        assert found.prompt[i] == pytest.approx(np.mean(nats[: len(head) - 1]), rel=1e-4)
        assert found.solution[i] == pytest.approx(np.mean(nats[len(head) - 1 :]), rel=1e-4)
        assert found.solution_peak[i] == pytest.approx(np.max(nats[len(head) - 1 :]), rel=1e-4)
    monkeypatch.setattr(models, "TOKENS_PER_BATCH", 20)
    again = measure_surprise(prompts[::-1], solutions[::-1], model, tokenizer)
    np.testing.assert_allclose(again.solution[::-1], found.solution, rtol=1e-5)
    with pytest.raises(DataError, match="row 1: the solution has too few tokens"):
        measure_surprise(prompts[:2], ["1", ""], model, tokenizer)
