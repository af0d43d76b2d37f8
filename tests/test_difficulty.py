"""Equation 10, calibration and the reliability table."""

from __future__ import annotations

import numpy as np
import pytest

from saerl_lib.config import PropertyConfig
from saerl_lib.properties import difficulty
from saerl_lib.properties.probes import correlation

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
    assert scores.raw.tolist() == [9.0, 8.0, 7.0]
    assert scores.calibrated_global.tolist() == [4.0, 4.0, 4.0]


def test_cluster_correction_improves_the_order_on_held_out_samples() -> None:
    phi, labels, cluster = labelled()
    model = difficulty.fit_difficulty(phi, labels, cluster, 3, CONFIG, seed=0)
    test_phi, test_labels, test_cluster = labelled(seed=1)
    scores = model.predict(test_phi, test_cluster)
    before, after = (correlation("spearman", s, test_labels) for s in (scores.calibrated_global, scores.ranking))
    assert after > before + 0.1
    assert model.corrections.residual[1] > 0.5 > -0.5 > model.corrections.residual[0]
    assert model.corrections.residual[2] == 0.0
    assert model.corrections.n_labelled.sum() == 300


def test_calibration_uses_out_of_fold_predictions() -> None:
    rng = np.random.default_rng(0)
    phi, labels = rng.normal(size=(60, 50)), rng.normal(size=60)  # nothing to learn: in-sample predictions would flatter
    model = difficulty.fit_difficulty(phi, labels, np.zeros(60, int), 1, PropertyConfig(elastic_net_alphas=8), seed=0)
    in_sample = model.predictor.predict(phi)
    assert not np.allclose(model.out_of_fold.raw, in_sample)
    assert model.out_of_fold.calibrated_global.mean() == pytest.approx(labels.mean())


def test_isotonic_map_is_monotone_and_clipped() -> None:
    phi, labels, cluster = labelled()
    model = difficulty.fit_difficulty(phi, labels, cluster, 3, CONFIG, seed=0)
    grid = np.zeros((50, 6))
    grid[:, 0] = np.linspace(-30, 30, 50)
    scores = model.predict(grid, np.full(50, 2))
    assert (np.diff(scores.calibrated_global) >= 0).all()
    assert labels.min() <= scores.calibrated_global.min() <= scores.calibrated_global.max() <= labels.max()
    np.testing.assert_array_equal(scores.ranking, scores.calibrated_global)  # cluster 2 has no labels


def test_fit_repeats_for_a_seed_and_differs_for_another() -> None:
    phi, labels, cluster = labelled(90)
    first, same, other = (difficulty.fit_difficulty(phi, labels, cluster, 2, CONFIG, s).out_of_fold.raw for s in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_reliability_table_by_hand() -> None:
    rows = difficulty.reliability_table("raw", np.array([4.0, 1.0, 3.0, 2.0]), np.array([8.0, 1.0, 6.0, 3.0]), bins=2)
    assert rows["n"].tolist() == [2, 2]
    assert rows["predicted_mean"].tolist() == [1.5, 3.5]
    assert rows["label_mean"].tolist() == [2.0, 7.0]
    # t(0.975, 1) = 12.706, standard error of (1, 3) = 1
    assert rows.loc[0, ["ci_low", "ci_high"]].tolist() == pytest.approx([2 - 12.706, 2 + 12.706], abs=1e-3)


def test_reliability_table_keeps_equal_predictions_together() -> None:
    predicted = np.array([1.0] * 7 + [2.0] + [3.0] * 4)
    rows = difficulty.reliability_table("global", predicted, np.arange(12.0), bins=12)
    assert rows["n"].tolist() == [7, 1, 4]
    assert np.isnan(rows.loc[1, "ci_low"])
    assert difficulty.reliability_table("global", np.ones(5), np.arange(5.0))["n"].tolist() == [5]


def test_bad_input() -> None:
    phi, labels, cluster = labelled(30)
    model = difficulty.fit_difficulty(phi, labels, cluster, 2, CONFIG, seed=0)
    with pytest.raises(ValueError, match="clusters holds values from 0 to 5, known are 0 to 1"):
        model.predict(phi[:2], np.array([0, 5]))
    broken = phi.copy()
    broken[4, 0] = np.nan
    with pytest.raises(ValueError, match="phi holds 1 non-finite values, first in row 4"):
        model.predict(broken, cluster)
    with pytest.raises(ValueError, match="train_x holds 1 non-finite"):
        difficulty.fit_difficulty(broken, labels, cluster, 2, CONFIG, seed=0)
    with pytest.raises(ValueError, match="row counts"):
        difficulty.fit_difficulty(phi, labels[:-1], cluster, 2, CONFIG, seed=0)
