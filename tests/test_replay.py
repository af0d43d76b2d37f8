"""Choice by predicted pass rate on recorded rollouts: its worth by hand, and what rewards teach."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import betabinom

from saerl_lib.encode.store import MAIN
from saerl_lib.studies import replay
from saerl_lib.studies.ladder import ALL
from saerl_lib.studies.replay import NOTHING, ROLLOUTS, SHUFFLED, TRUE, history, mixed, screened, stream, whole_groups

RNG = np.random.default_rng(7)
SIGNAL = RNG.standard_normal((480, 3))
RATES = 1 / (1 + np.exp(-4 * SIGNAL[:, 0]))
"""Pass rates that one column of the features decides."""


def test_screening_and_silent_groups_by_hand() -> None:
    rates = np.array([0.5, 0.5, 0.0, 1.0])
    everyone = whole_groups(np.ones((replay.RUNS, 4), dtype=bool), mixed(rates))
    rows = np.arange(4)
    assert everyone.saved(rows, 0) == 0 and everyone.teaching(rows, 0) == pytest.approx(1.0)
    two = screened(everyone, rates, 2)  # half of the pairs at 0.5 differ: 2 x (2 + 6 / 2) + 2 x 2 rollouts for 1 group
    assert two.spent[0].tolist() == [5.0, 5.0, 2.0, 2.0]
    assert two.teaching(rows, 0) == pytest.approx((1 / 14) / (mixed(rates).sum() / 32))
    halves = whole_groups(np.tile(rates == 0.5, (replay.RUNS, 1)), mixed(rates))
    silent = 1 - mixed(np.array([0.5]))[0]
    assert halves.saved(rows, 0) == pytest.approx(1 - silent / ((2 * silent + 2) / 4))


def test_kernel_is_centred_and_the_same_for_sparse_features() -> None:
    x = (SIGNAL[:40] - SIGNAL[:40].mean(axis=0)) / SIGNAL[:40].std(axis=0)
    dense = replay.kernel_of(SIGNAL[:40])
    assert np.allclose(dense, replay.kernel_of(sparse.csr_matrix(x)), atol=1e-5)
    assert np.allclose(dense.sum(axis=0), 0, atol=1e-3) and np.trace(dense) == pytest.approx(40, rel=1e-5)


def test_fitted_is_ridge_regression() -> None:
    from sklearn.linear_model import Ridge

    kernel, known = replay.kernel_of(SIGNAL[:60]), np.arange(0, 60, 2)
    scaled = (SIGNAL[:60] - SIGNAL[:60].mean(axis=0)) / SIGNAL[:60].std(axis=0) / np.sqrt(3)
    y = RATES[known]
    expected = y.mean() + scaled @ Ridge(alpha=2.0, fit_intercept=False).fit(scaled[known], y - y.mean()).coef_
    assert np.allclose(replay.fitted(kernel, known, y, 2.0), expected, atol=1e-4)


def test_rewards_teach_informative_features_alone_and_no_prompt_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"STEP": 8, "RUNS": 4, "SHARES": (0.25,), "CORRELATIONS": (0.2, 0.6, 0.95), "WORKERS": 1}
    for name, value in small.items():
        monkeypatch.setattr(replay, name, value)
    x = {MAIN + ALL: SIGNAL, SHUFFLED: RNG.permutation(SIGNAL)}
    rows = replay.stream_rows(x, RATES, seed=3)
    table = replay.table_of(rows, samples=60, seed=0)
    own = table[(table["form"] == "features") & (table["share"] == 0.25)].set_index("features")
    assert own.loc[TRUE, "silent_groups_saved"] > own.loc[MAIN + ALL, "silent_groups_saved"] > 0.3
    assert own.loc[MAIN + ALL, "spearman"] > 0.9 and own.loc[MAIN + ALL, "saved_low"] > 0.2
    assert own.loc[SHUFFLED, "saved_low"] < 0 < own.loc[SHUFFLED, "saved_high"] and own.loc[SHUFFLED, "lead_low"] > 0
    ladder = table[(table["form"] == "simulated") & (table["share"] == 0.25)]["silent_groups_saved"].to_numpy()
    assert ladder[-1] > ladder[len(ladder) // 2] > ladder[0]
    plain = table[(table["form"] == "screening") & (table["features"] == NOTHING)]
    assert set(plain["own_rollouts"]) == set(replay.SCREENED) and plain["silent_groups_saved"].isna().all()
    kernel = replay.kernel_of(SIGNAL)
    taken, _ = stream(kernel, RATES, 0.25, 5)
    assert len(taken) == len(set(taken)) == len(RATES) // 32 * 8
    assert stream(kernel, RATES, 0.25, 5)[0].tolist() == taken.tolist()


def test_history_takes_what_was_mixed_and_a_prior_helps_while_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "RUNS", 3)
    still = np.tile([[0], [4], [8], [0]], (5, 3))
    assert history(None, still, 8, 0.25, seed=0).saved(np.arange(20), 0) == 1.0
    later = np.tile([[0, 0, 4], [4, 4, 4], [8, 8, 4], [0, 0, 4]], (5, 1))
    assert history(None, later, 16, 0.25, seed=0).teaching(np.arange(20), 0) == 1.0, "the epoch that is chosen for is the measure"
    epochs = RNG.binomial(ROLLOUTS, RATES[:, None], (len(RATES), 3))
    kernel, rows = replay.kernel_of(SIGNAL), np.arange(len(RATES))
    saved = {(k is None, own): history(k, epochs, own, 0.5, 1).saved(rows, 0) for k in (kernel, None) for own in (0, 8)}
    gain = [saved[False, own] - saved[True, own] for own in (0, 8)]
    assert gain[0] > 0.3 and abs(gain[1]) < gain[0] / 2


def test_weight_of_the_prior_is_that_of_the_largest_likelihood() -> None:
    prior = np.full(4000, 0.4)
    seen = betabinom.rvs(8, 5 * 0.4, 5 * 0.6, size=4000, random_state=1)
    expected = (5 * 0.4 + seen) / 13
    assert np.abs(replay.posterior_mean(prior, seen, 8) - expected).max() < 0.03
    assert replay.posterior_mean(prior, seen, 0).tolist() == prior.tolist()
