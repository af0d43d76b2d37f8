"""The source classifier and the filter rules."""

from __future__ import annotations

import numpy as np
import pytest

from saerl_lib.config import PropertyConfig
from saerl_lib.properties import quality

CONFIG = PropertyConfig(bootstrap_samples=100)


def sources(n: int, shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """z [n, 8] of which the target half is shifted on the first axis."""
    rng = np.random.default_rng(seed)
    is_target = np.arange(n) % 2 == 0
    z = rng.normal(size=(n, 8)) * [1, 1, 1, 1, 1, 1, 1, 1000]
    z[:, 0] += shift * is_target
    return z, is_target


def test_classifier_separates_sources_and_repeats() -> None:
    z, is_target = sources(400, 3.0, 0)
    fitted = quality.fit_source_classifier(z, is_target, seed=0)
    test_z, test_target = sources(400, 3.0, 1)
    scores = fitted.score(test_z)
    assert scores.min() > 0.0 and scores.max() < 1.0
    names = {"n_train": 400, "dataset": "toy", "features": "sae", "config": CONFIG, "seed": 0}
    auc, precision = quality.source_separation(scores, test_target, **names)
    assert (auc.metric, precision.metric) == ("roc_auc", "average_precision")
    assert auc.value > 0.95 and precision.value > 0.95
    assert auc.ci_low < auc.value < auc.ci_high
    np.testing.assert_array_equal(scores, quality.fit_source_classifier(z, is_target, seed=0).score(test_z))
    assert not np.array_equal(scores, quality.fit_source_classifier(z, is_target, seed=1).score(test_z))


def test_equal_sources_are_not_separated() -> None:
    z, is_target = sources(600, 0.0, 0)
    test_z, test_target = sources(600, 0.0, 1)
    scores = quality.fit_source_classifier(z, is_target, seed=0).score(test_z)
    names = {"n_train": 600, "dataset": "toy", "features": "sae", "config": CONFIG, "seed": 0}
    assert abs(quality.source_separation(scores, test_target, **names)[0].value - 0.5) < 0.1


def test_roc_auc_and_average_precision_by_hand() -> None:
    scores, is_target = np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False])
    auc, precision = quality.source_separation(
        scores, is_target, n_train=0, dataset="toy", features="sae", config=CONFIG, seed=0
    )
    assert auc.value == 0.75  # 3 of 4 pairs in the right order
    assert precision.value == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_filter_table_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.2])
    is_target = np.array([True, True, False, True, False])
    negative_scores = np.arange(101) / 100 - 0.38  # 95th percentile 0.57, 99th 0.61
    table = quality.filter_table(scores, list("abcde"), is_target, negative_scores, {"top_k": 3}).set_index("rule")
    assert table.loc["full", ["kept", "target_kept", "purity", "recall"]].tolist() == [5, 3, 0.6, 1.0]
    assert table.loc["p95", ["kept", "target_kept"]].tolist() == [4, 3]
    assert table.loc["p99", ["kept", "target_kept"]].tolist() == [3, 2]
    assert table.loc["top_k", ["kept", "target_kept", "purity", "recall"]].tolist() == [3, 2, 2 / 3, 2 / 3]
    assert table.loc["p95", "paper_purity"] == 0.9537
    assert np.isnan(table.loc["top_k", "paper_recall"])
    assert (table["n_pool"] == 5).all()


def test_thresholds_keep_their_share_of_the_negatives() -> None:
    negatives = np.random.default_rng(0).random(1000)
    found = quality.negative_thresholds(negatives)
    assert (negatives >= found["p95"]).sum() == 50
    assert (negatives >= found["p99"]).sum() == 10


def test_top_k_breaks_ties_by_id_in_any_input_order() -> None:
    scores, ids = np.array([0.5, 0.5, 0.9, 0.5]), np.array(["d", "b", "c", "a"])
    assert sorted(ids[quality.keep_top_k(scores, ids, 3)]) == ["a", "b", "c"]
    turn = np.array([3, 2, 1, 0])
    assert sorted(ids[turn][quality.keep_top_k(scores[turn], ids[turn], 3)]) == ["a", "b", "c"]


def test_score_histogram_by_hand() -> None:
    rows = quality.score_histogram(np.array([0.1, 0.9, 1.0, 0.2]), np.array(["t", "t", "t", "p"]), bins=2)
    assert rows.to_numpy().tolist() == [
        ["p", 0.0, 0.5, 1.0, 1],
        ["p", 0.5, 1.0, 0.0, 0],
        ["t", 0.0, 0.5, 1 / 3, 1],
        ["t", 0.5, 1.0, 2 / 3, 2],
    ]


def test_bad_input() -> None:
    scores = np.array([0.1, 0.2])
    with pytest.raises(ValueError, match="k=3 must lie between 1 and the 2 samples"):
        quality.keep_top_k(scores, ["a", "b"], 3)
    with pytest.raises(ValueError, match="k=0"):
        quality.keep_top_k(scores, ["a", "b"], 0)
    with pytest.raises(ValueError, match="repeated"):
        quality.keep_top_k(scores, ["a", "a"], 1)
    with pytest.raises(ValueError, match="scores holds 1 non-finite"):
        quality.keep_top_k(np.array([np.nan, 0.1]), ["a", "b"], 1)
    with pytest.raises(ValueError, match="single class"):
        quality.fit_source_classifier(np.eye(3), np.ones(3), seed=0)
    with pytest.raises(ValueError, match="z holds 1 non-finite"):
        quality.fit_source_classifier(np.array([[0.0], [np.inf]]), np.array([True, False]), seed=0)
    with pytest.raises(ValueError, match="marks no sample"):
        quality.filter_table(scores, ["a", "b"], np.zeros(2, bool), scores, {})
