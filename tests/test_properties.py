"""Clusters, difficulty by Equation 10, the source classifier with its filter, and the scorer that saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from saerl_lib.artifacts import Stage
from saerl_lib.config import PropertyConfig
from saerl_lib.properties import clusters, quality
from saerl_lib.properties import scorer as difficulty
from saerl_lib.properties.clusters import Clusters
from saerl_lib.properties.probes import metric
from saerl_lib.properties.scorer import Columns, Rated, Scorer, fit_scorer, load_scorer, rated_sources, save_scorer


def blobs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three well separated groups of 20 in the plane."""
    group = np.repeat([0, 1, 2], 20)
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 1000.0]])
    noise = np.random.default_rng(seed).normal(size=(60, 2)) * [0.5, 50.0]
    return (centres[group] + noise).astype(np.float32), group


def test_separated_groups_are_found_the_fit_repeats_and_empty_clusters_go() -> None:
    phi, group = blobs()
    fitted = clusters.fit_clusters(phi, 3, seed=1)
    labels = fitted.assign(phi).label
    assert clusters.agreement(labels, group) == clusters.Agreement(purity=1.0, nmi=1.0, ari=1.0)
    assert fitted.k == 3
    np.testing.assert_array_equal(fitted.centroids, clusters.fit_clusters(phi, 3, seed=1).centroids)
    twice = np.repeat([[0.0, 0.0], [5.0, 5.0]], 10, axis=0)
    fitted = clusters.fit_clusters(twice, 4, seed=0)
    assert fitted.k == 2 and set(fitted.assign(twice).label) == {0, 1}, "empty clusters are dropped"


def test_assignment_by_hand() -> None:
    centroids = np.array([[0.0, 0.0], [3.0, 0.0]])
    fitted = Clusters(mean=np.array([1.0, 0.0]), scale=np.array([2.0, 1.0]), centroids=centroids)
    found = fitted.assign(np.array([[1.0, 0.5], [7.0, 4.0], [4.0, 0.0]]))
    assert found.label.tolist() == [0, 1, 0]  # the last one lies half-way: lowest number
    assert found.distance.tolist() == [0.5, 4.0, 1.5]


@pytest.mark.parametrize("smallest", [1, 4])
def test_clusters_are_numbered_by_size_then_by_their_first_sample(smallest: int) -> None:
    centres = np.repeat([[0.0, 9.0], [9.0, 0.0], [0.0, 0.0], [9.0, 9.0]], (20, 30, 20, 3), axis=0)
    phi = centres + np.random.default_rng(0).normal(size=centres.shape) * 0.1
    for seed in range(3):
        label = clusters.fit_clusters(phi, 4, seed, smallest=smallest).assign(phi).label
        assert label[[20, 0, 50]].tolist() == [0, 1, 2] and (label[72] == 3) == (smallest == 1), "ties go by first sample"


def test_a_rare_feature_takes_no_centroid_for_itself() -> None:
    phi, group = blobs()
    phi = np.column_stack([phi, np.where(np.arange(60) == 4, 1e6, 0.0), np.where(np.arange(60) == 50, 1e6, 0.0)])
    fitted = clusters.fit_clusters(phi, 3, seed=0)
    assert np.bincount(fitted.assign(phi).label).min() > 10
    assert np.abs(fitted.standardise(phi)).max() == clusters.CLIP


def test_purity_by_hand() -> None:
    labels, topics = np.array([0, 0, 0, 1, 1]), np.array(["a", "a", "b", "b", "b"])
    assert clusters.agreement(labels, topics).purity == 0.8


def test_a_large_pool_is_fitted_on_a_seeded_subsample_and_may_be_a_memory_map(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    phi = (rng.normal(0, 0.2, (900, 4)) + 4 * (np.arange(900) % 3)[:, None]).astype(np.float32)
    stored = np.memmap(tmp_path / "phi", np.float32, "w+", shape=phi.shape)
    stored[:] = phi
    first = clusters.fit_clusters(stored, 3, 0, fit_rows=200)
    assert np.array_equal(first.centroids, clusters.fit_clusters(phi, 3, 0, fit_rows=200).centroids)
    whole = clusters.fit_clusters(phi, 3, 0)
    assert clusters.stability_row("fit", [first.assign(stored).label, whole.assign(phi).label])["ari_low"][0] == 1.0


# Difficulty.


CONFIG = PropertyConfig(clusters=3, elastic_net_alphas=8, shrinkage_tau=10.0)


def labelled(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """phi [n, 6], labels [n] and clusters [n]; cluster 1 is harder by 2 than phi says."""
    rng = np.random.default_rng(seed)
    phi, cluster = rng.normal(size=(n, 6)), rng.integers(0, 2, n)
    return phi, 5 + phi[:, 0] + 2.0 * cluster + 0.1 * rng.normal(size=n), cluster


def test_equation_10_on_three_clusters_by_hand() -> None:
    labels = np.array([3.0, 5.0, 6.0, 2.0])
    calibrated = np.array([2.0, 2.0, 4.0, 3.0])
    found = difficulty.cluster_corrections(labels - calibrated, np.array([0, 0, 0, 1]), k=3, tau=1.0)
    assert found.n_labelled.tolist() == [3, 1, 0]
    assert found.residual.tolist() == [2.0, -1.0, 0.0]  # (1 + 3 + 2) / 3; -1; no labels
    assert found.shrinkage.tolist() == [0.75, 0.5, 0.0]
    scores = difficulty.rank(np.array([9.0, 8.0, 7.0]), np.array([4.0, 4.0, 4.0]), np.array([0, 1, 2]), found)
    assert scores.ranking.tolist() == [4 + 0.75 * 2, 4 - 0.5 * 1, 4.0]
    assert scores[["raw", "calibrated"]].to_numpy().tolist() == [[9.0, 4.0], [8.0, 4.0], [7.0, 4.0]]


def test_reliability_table_by_hand() -> None:
    rows = difficulty.reliability_table("raw", np.array([4.0, 1.0, 3.0, 2.0]), np.array([8.0, 1.0, 6.0, 3.0]), bins=2)
    assert rows["n"].tolist() == [2, 2]
    assert rows["predicted_mean"].tolist() == [1.5, 3.5]
    assert rows["label_mean"].tolist() == [2.0, 7.0]
    # t(0.975, 1) = 12.706, standard error of (1, 3) = 1
    assert rows.loc[0, ["ci_low", "ci_high"]].tolist() == pytest.approx([2 - 12.706, 2 + 12.706], abs=1e-3)
    predicted = np.array([1.0] * 7 + [2.0] + [3.0] * 4)
    rows = difficulty.reliability_table("global", predicted, np.arange(12.0), bins=12)
    assert rows["n"].tolist() == [7, 1, 4] and np.isnan(rows.loc[1, "ci_low"]), "equal predictions stay together"


# Quality.


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
    auc, precision = quality.separation_table(scores, test_target, 100, 0).itertuples()
    assert (auc.metric, precision.metric) == ("roc_auc", "average_precision")
    assert precision.value > 0.95 < auc.ci_low < auc.value < auc.ci_high
    for seed in (0, 1):
        assert np.array_equal(scores, quality.fit_source_classifier(z, is_target, seed).score(test_z)) == (seed == 0)
    few = quality.separation_table(np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False]), 20, 0)
    assert few["value"].tolist() == [0.75, pytest.approx((1 / 1 + 2 / 3) / 2)], "3 of 4 pairs in the right order"


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


def test_top_k_breaks_ties_by_id_in_any_input_order() -> None:
    scores, ids = np.array([0.5, 0.5, 0.9, 0.5]), np.array(["d", "b", "c", "a"])
    assert sorted(ids[quality.keep_top_k(scores, ids, 3)]) == ["a", "b", "c"]
    turn = np.array([3, 2, 1, 0])
    assert sorted(ids[turn][quality.keep_top_k(scores[turn], ids[turn], 3)]) == ["a", "b", "c"]


# The scorer.


COLUMNS = ["sample_id", "cluster", "distance", "raw", "calibrated", "ranking", "half_width", "quality", "kept"]


def made(n: int, seed: int, name: str, shift: float = 0.0) -> tuple[Columns, np.ndarray]:
    """n samples of three groups in 6 columns, and their difficulty; `shift` moves the source along the last column."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6))
    x[:, 0] += 6.0 * rng.integers(0, 3, n)
    x[:, 5] += shift
    labels = 2 * x[:, 1] + 0.3 * x[:, 0] + 0.2 * rng.normal(size=n)
    return Columns([f"{name}{i}" for i in range(n)], x, x), labels


def rows(table: Columns, index: np.ndarray) -> Columns:
    return Columns([table.ids[i] for i in index], table.phi[index], table.z[index])


@pytest.fixture(scope="module")
def fitted() -> tuple[Scorer, Columns, np.ndarray]:
    (labelled, labels), (pool, truth), (other, _) = made(400, 0, "l"), made(400, 1, "p"), made(120, 2, "o", 3.0)
    found = clusters.pool_clusters(pool.phi, CONFIG, 7)
    return fit_scorer(found, labelled, labels, rated_sources(labelled, other), CONFIG, 7), pool, truth


def test_one_table_holds_every_score(fitted: tuple[Scorer, Columns, np.ndarray]) -> None:
    scorer, pool, truth = fitted
    table = scorer.score(pool)
    assert table.columns.tolist() == COLUMNS and table["sample_id"].tolist() == pool.ids
    assert metric("rank", table["ranking"].to_numpy(), truth) > 0.9
    assert table["cluster"].value_counts().is_monotonic_decreasing and table["kept"].all()
    inside = np.abs(table["ranking"] - truth) <= table["half_width"]
    assert 0.85 < inside.mean() <= 1.0, "nominal 95 %"
    assert scorer.score(pool, keep=37)["kept"].sum() == 37
    assert scorer.negatives is not None and len(scorer.negatives) == 60 and len(scorer.rated) == 400 + 60
    np.testing.assert_array_equal(table, scorer.score(pool), "scoring repeats itself")


def test_a_saved_scorer_scores_the_same(fitted: tuple[Scorer, Columns, np.ndarray], tmp_path: Path) -> None:
    scorer, pool, _ = fitted
    for name in ("scorer", "twin"):
        save_scorer(scorer, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "scorer.safetensors").read_bytes() == (tmp_path / "twin.safetensors").read_bytes()
    again = load_scorer(Stage("difficulty", tmp_path, "key", True))
    pd.testing.assert_frame_equal(again.score(pool, 50), scorer.score(pool, 50), check_exact=True)
    bare = fit_scorer(scorer.clusters, None, None, None, CONFIG, 7)
    table = bare.score(pool)
    assert table[["ranking", "half_width", "quality"]].isna().all(axis=None) and table["kept"].all()


def test_no_row_is_scored_by_a_model_that_saw_its_label() -> None:
    """Labels of pure noise: in-sample scores would follow them, out-of-fold scores do not."""
    pool, _ = made(200, 3, "p")
    noise, known = np.random.default_rng(4).normal(size=200), np.arange(0, 200, 2)
    rng = np.random.default_rng(5)
    wide = Columns(pool.ids, rng.normal(size=(200, 60)), rng.normal(size=(200, 60)))
    rated = Rated([wide.ids[i] for i in known], wide.z[known], noise[known] > 0)
    scorer = fit_scorer(clusters.pool_clusters(wide.phi, CONFIG, 0), rows(wide, known), noise[known], rated, CONFIG, 0)
    table = scorer.score(wide).iloc[known]
    assert metric("rank", scorer.difficulty.predictor.predict(wide.phi[known]), noise[known]) > 0.3
    np.testing.assert_array_equal(table["raw"], scorer.difficulty.out_of_fold.raw)
    seen = scorer.quality.score(wide.z[known])
    assert metric("rank", seen, noise[known]) > 0.5 > 0.3 > metric("rank", table["quality"], noise[known])


PHI, BROKEN, FIXED = blobs()[0], blobs()[0], Clusters(np.zeros(2), np.ones(2), np.zeros((1, 2)))
BROKEN[3, 1] = np.inf
L = labelled(30)
TWO = np.array([0.1, 0.2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clusters.fit_clusters(PHI, 61, 0), "clusters=61 exceeds the 60 samples: lower PropertyConfig.clusters"),
        (lambda: clusters.fit_clusters(PHI, 0, 0), "clusters=0"),
        (lambda: FIXED.assign(np.zeros((3, 4))), "fitted on 2 columns"),
        (lambda: clusters.fit_clusters(BROKEN, 3, 0), "phi holds 1 non-finite values, first in row 3"),
        (lambda: difficulty.fit_difficulty(*L, 2, CONFIG, 0).predict(BROKEN, L[2]), "phi holds 1 non-finite"),
        (lambda: difficulty.fit_difficulty(BROKEN[:30], *L[1:], 2, CONFIG, 0), "train_x holds 1 non-finite"),
        (lambda: difficulty.fit_difficulty(L[0], L[1][:-1], L[2], 2, CONFIG, 0), "row counts"),
        (lambda: quality.keep_top_k(TWO, ["a", "b"], 3), "k=3 must lie between 1 and the 2 samples"),
        (lambda: quality.keep_top_k(TWO * np.nan, ["a", "b"], 1), "scores holds 2 non-finite"),
        (lambda: quality.fit_source_classifier(np.eye(3), np.ones(3), 0), "single class"),
        (lambda: quality.filter_table(TWO, ["a", "b"], np.zeros(2, bool), TWO, {}), "marks no sample"),
        (lambda: fit_scorer(FIXED, made(60, 0, "p")[0], np.zeros(59), None, CONFIG, 0), "row counts"),
    ],
)
def test_bad_input_names_the_field_and_the_fix(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
