"""Probes, baselines, controls and intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from saerl_lib.config import PropertyConfig
from saerl_lib.properties import probes
from saerl_lib.properties.text import fit_tfidf
from saerl_lib.report.statistics import bootstrap_interval

CONFIG = PropertyConfig(bootstrap_samples=200, elastic_net_alphas=8)
NAMES = {"dataset": "toy", "target": "t", "features": "f", "config": CONFIG, "seed": 0}


def topics(n: int, signal: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three topics [n]; feature y carries `signal` where the topic is y."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = rng.normal(size=(n, 6))
    x[np.arange(n), y] += signal
    return x.astype(np.float32), np.array(["alg", "geo", "num"])[y]


def test_topic_probe_reads_a_clear_signal_and_not_shuffled_labels() -> None:
    (train_x, train_y), (test_x, test_y) = topics(300, 4.0, 1), topics(600, 4.0, 2)
    row = probes.topic_probe(train_x, train_y, test_x, test_y, **NAMES)
    assert row.value > 0.95
    assert row.ci_low < row.value < row.ci_high
    assert (row.metric, row.n_train, row.n_test) == ("accuracy", 300, 600)
    control = probes.topic_probe(train_x, probes.shuffled(train_y, 0), test_x, test_y, **NAMES)
    # its errors are not independent (a probe of noise may swap whole topics), hence the wide band around 1/3
    assert abs(control.value - 1 / 3) < 0.2


def test_shuffled_labels_are_at_chance_on_average() -> None:
    (train_x, train_y), (test_x, test_y) = topics(300, 1.0, 1), topics(600, 1.0, 2)
    values = [probes.topic_probe(train_x, probes.shuffled(train_y, s), test_x, test_y, **NAMES).value for s in range(10)]
    assert abs(np.mean(values) - 1 / 3) < 0.06


def test_probe_repeats_itself_and_never_looks_at_test_labels() -> None:
    (train_x, train_y), (test_x, test_y) = topics(120, 1.0, 1), topics(80, 1.0, 2)
    first = probes.topic_probe(train_x, train_y, test_x, test_y, **NAMES)
    assert first == probes.topic_probe(train_x, train_y, test_x, test_y, **NAMES)
    other = probes.topic_probe(train_x, train_y, test_x, test_y, **(NAMES | {"seed": 1}))
    assert (first.ci_low, first.ci_high) != (other.ci_low, other.ci_high)
    fitted = probes.fit_topic_probe(train_x, train_y, CONFIG, 0)
    np.testing.assert_allclose(fitted["scale"].mean_, train_x.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_majority_baseline_by_hand() -> None:
    row = probes.majority_baseline(
        np.array(["a", "a", "b"]), np.array(["a", "b", "b", "c"]), dataset="toy", target="t", config=CONFIG, seed=0
    )
    assert row.value == 0.25
    assert row.features == "majority"


def test_difficulty_probe_finds_the_order_and_dense_equals_sparse_budget() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 10))
    y = 2 * x[:, 0] - x[:, 1] + 0.1 * rng.normal(size=400)
    row = probes.difficulty_probe(x[:200], y[:200], x[200:], y[200:], **NAMES)
    assert row.value > 0.98
    assert row.metric == "spearman"
    on_sparse = probes.difficulty_probe(sparse.csr_matrix(x[:200]), y[:200], sparse.csr_matrix(x[200:]), y[200:], **NAMES)
    assert on_sparse.value > 0.98


def test_probes_look_further_down_the_penalty_path_than_the_plan() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 5))
    y = x @ np.arange(1.0, 6.0)  # without noise the smallest penalty is the best
    config = replace(CONFIG, elastic_net_l1_ratios=(0.5,))
    plan, probe = (float(probes.fit_elastic_net(x, y, c, 0)["probe"].alpha) for c in (config, probes.probe_path(config)))
    top = np.abs((x - x.mean(axis=0)).T @ (y - y.mean()) / x.std(axis=0)).max() / len(y) / 0.5  # empties the model
    assert plan == pytest.approx(config.elastic_net_floor * top) and probe == pytest.approx(config.probe_floor * top)


def test_one_fit_serves_two_test_sets() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(90, 3))
    model = probes.fit_elastic_net(x[:60], x[:60, 0], CONFIG, 0)
    score = probes.score_difficulty(model, x[60:], x[60:, 0], n_train=60, **NAMES)
    assert score == probes.difficulty_probe(x[:60], x[:60, 0], x[60:], x[60:, 0], **NAMES)
    assert probes.score_difficulty(model, x[60:], -x[60:, 0], n_train=60, **NAMES).value == pytest.approx(-score.value)


def test_constant_labels_or_features_give_no_correlation() -> None:
    x = np.arange(12.0)[:, None]
    assert probes.difficulty_probe(x, np.ones(12), x, x[:, 0], **NAMES).value == 0.0
    assert probes.difficulty_probe(np.ones((12, 2)), x[:, 0], np.ones((12, 2)), x[:, 0], **NAMES).value == 0.0


def test_quality_regression_beats_the_mean() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(300, 5))
    y = 0.5 + 0.1 * x[:, 2]
    rows = {r.metric: r for r in probes.quality_regression(x[:200], y[:200], x[200:], y[200:], **NAMES)}
    mean = {r.metric: r for r in probes.mean_baseline(y[:200], y[200:], dataset="toy", target="t", config=CONFIG, seed=0)}
    assert set(rows) == {"rmse", "mae", "pearson"}
    assert set(mean) == {"rmse", "mae"}
    assert rows["rmse"].value < 0.1 * mean["rmse"].value
    assert rows["pearson"].value > 0.99


def test_mean_baseline_by_hand() -> None:
    rows = probes.mean_baseline(np.array([0.0, 1.0]), np.array([0.5, 1.5]), dataset="toy", target="t", config=CONFIG, seed=0)
    assert [(r.metric, r.value) for r in rows] == [("rmse", pytest.approx(0.5**0.5)), ("mae", 0.5)]


def test_penalty_is_relative_to_the_scale_of_the_features() -> None:
    x, y = topics(200, 2.0, 5)
    small, large = (probes.fit_topic_probe(sparse.csr_matrix(x * s), y, CONFIG, 0) for s in (0.01, 100.0))
    first, other = small.predict_proba(sparse.csr_matrix(x * 0.01)), large.predict_proba(sparse.csr_matrix(x * 100.0))
    np.testing.assert_allclose(first, other, atol=0.05)  # the solver stops at an absolute gradient, hence the tolerance


def test_tfidf_keeps_digits_and_signs_and_feeds_the_probe() -> None:
    texts = ["3 + 4 = ?", "3 * 4 = ?", "5 + 6 = ?", "5 * 6 = ?"] * 10
    vectorizer = fit_tfidf(texts)
    assert {"3", "+", "*", "3 +"} <= set(vectorizer.get_feature_names_out())
    x, y = vectorizer.transform(texts), np.array(["sum", "product"] * 20)
    assert probes.topic_probe(x, y, x, y, **NAMES).value == 1.0
    with pytest.raises(ValueError, match="train_texts"):
        fit_tfidf(["", " "])


def test_bootstrap_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(size=400)
    interval = bootstrap_interval(lambda rows: float(values[rows].mean()), 400, 500, seed=1)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval(lambda rows: 0.0, 0, 10, seed=0)
    with pytest.raises(ValueError, match="undefined"):
        bootstrap_interval(lambda rows: float("nan"), 3, 10, seed=0)


def test_bad_input_names_the_place() -> None:
    x, y = topics(30, 1.0, 0)
    x[7, 2] = np.nan
    with pytest.raises(ValueError, match="train_x holds 1 non-finite values, first in row 7"):
        probes.fit_topic_probe(x, y, CONFIG, 0)
    with pytest.raises(ValueError, match="first in row 7"):
        probes.fit_topic_probe(sparse.csr_matrix(x), y, CONFIG, 0)
    x = np.nan_to_num(x)
    with pytest.raises(ValueError, match="single topic"):
        probes.fit_topic_probe(x, np.full(30, "a"), CONFIG, 0)
    with pytest.raises(ValueError, match="row counts"):
        probes.fit_ridge(x, np.zeros(29), CONFIG, 0)
    with pytest.raises(ValueError, match="cv_folds=3"):
        probes.fit_ridge(x[:2], np.array([0.0, 1.0]), CONFIG, 0)
    with pytest.raises(ValueError, match="train_y"):
        probes.fit_elastic_net(x, np.full(30, np.inf), CONFIG, 0)
