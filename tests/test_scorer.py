"""The scorer: what a table of scores holds, with each kind of labels, and that a saved scorer scores the same."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from saerl_lib.config import PropertyConfig
from saerl_lib.properties import clusters, probes, quality
from saerl_lib.properties.probes import correlation
from saerl_lib.properties.scorer import Columns, Rated, Scorer, fit_scorer, load_scorer, rated_sources
from saerl_lib.studies import real

CONFIG = PropertyConfig(clusters=3, elastic_net_alphas=8, shrinkage_tau=10.0)
COLUMNS = ["sample_id", "cluster", "runner_up", "distance", "raw", "calibrated", "ranking", "half_width", "quality", "kept"]


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
    return fit_scorer(pool, labelled, labels, rated_sources(labelled, other), CONFIG, 7), pool, truth


@pytest.mark.parametrize("module", [clusters, quality, real, probes], ids=lambda m: m.__name__)
def test_docstring_examples(module) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def test_one_table_holds_every_score(fitted: tuple[Scorer, Columns, np.ndarray]) -> None:
    scorer, pool, truth = fitted
    table = scorer.score(pool)
    assert table.columns.tolist() == COLUMNS and table["sample_id"].tolist() == pool.ids
    assert correlation("spearman", table["ranking"].to_numpy(), truth) > 0.9
    assert (table["runner_up"] != table["cluster"]).all() and table["cluster"].value_counts().is_monotonic_decreasing
    inside = np.abs(table["ranking"] - truth) <= table["half_width"]
    assert 0.85 < inside.mean() <= 1.0, "nominal 95 %"
    assert (table["kept"] == (table["quality"] >= scorer.threshold)).all()
    assert scorer.score(pool, keep=37)["kept"].sum() == 37
    assert scorer.negatives is not None and len(scorer.negatives) == 60 and len(scorer.rated) == 400 + 60
    np.testing.assert_array_equal(table, scorer.score(pool), "scoring repeats itself")


def test_a_saved_scorer_scores_the_same(fitted: tuple[Scorer, Columns, np.ndarray], tmp_path: Path) -> None:
    scorer, pool, _ = fitted
    scorer.save(tmp_path / "scorer.safetensors")
    again = load_scorer(tmp_path / "scorer.safetensors")
    pd.testing.assert_frame_equal(again.score(pool, 50), scorer.score(pool, 50), check_exact=True)
    bare = fit_scorer(pool, None, None, None, CONFIG, 7)
    bare.save(tmp_path / "bare.safetensors")
    table = load_scorer(tmp_path / "bare.safetensors").score(pool)
    pd.testing.assert_frame_equal(table, bare.score(pool), check_exact=True)
    assert table[["ranking", "half_width", "quality"]].isna().all(axis=None) and table["kept"].all()
    np.testing.assert_array_equal(table["cluster"], scorer.score(pool)["cluster"], "clusters read no label")


def test_no_row_is_scored_by_a_model_that_saw_its_label() -> None:
    """Labels of pure noise: in-sample scores would follow them, out-of-fold scores do not."""
    pool, _ = made(200, 3, "p")
    noise, known = np.random.default_rng(4).normal(size=200), np.arange(0, 200, 2)
    rng = np.random.default_rng(5)
    wide = Columns(pool.ids, rng.normal(size=(200, 60)), rng.normal(size=(200, 60)))
    rated = Rated([wide.ids[i] for i in known], wide.z[known], noise[known] > 0)
    scorer = fit_scorer(wide, rows(wide, known), noise[known], rated, CONFIG, 0)
    table = scorer.score(wide).iloc[known]
    assert correlation("spearman", scorer.difficulty.predictor.predict(wide.phi[known]), noise[known]) > 0.3
    np.testing.assert_array_equal(table["raw"], scorer.difficulty.out_of_fold.raw)
    seen = scorer.quality.score(wide.z[known])
    assert correlation("spearman", seen, noise[known]) > 0.5 > 0.3 > correlation("spearman", table["quality"], noise[known])


def test_bad_input_is_named(fitted: tuple[Scorer, Columns, np.ndarray]) -> None:
    scorer, pool, truth = fitted
    with pytest.raises(ValueError, match="fitted on 6 columns"):
        scorer.score(Columns(pool.ids, pool.phi[:, :4], pool.z))
    with pytest.raises(ValueError, match="row counts"):
        fit_scorer(pool, pool, truth[:-1], None, CONFIG, 0)
    with pytest.raises(ValueError, match="single class"):
        fit_scorer(pool, None, None, Rated(pool.ids, pool.z, np.ones(400, bool)), CONFIG, 0)
    with pytest.raises(ValueError, match="k=401 must lie between"):
        scorer.score(pool, keep=401)
