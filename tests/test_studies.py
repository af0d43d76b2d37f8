"""The smaller studies: replay of recorded rollouts, gradients of single prompts with Appendix A, and the benchmarks in small."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from mmap import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.stats import betabinom
from transformers import LlamaConfig, LlamaForCausalLM

from saerl_lib import paths
from saerl_lib.cli import main
from saerl_lib.encode.pool import pool_vectors
from saerl_lib.encode.store import MAIN
from saerl_lib.report.statistics import bootstrap_weights
from saerl_lib.report.tables import read_table
from saerl_lib.studies import bench, gradients, replay
from saerl_lib.studies.bench import Shape, Stopwatch, peak_mib
from saerl_lib.studies.ladder import ALL
from saerl_lib.studies.replay import NOTHING, ROLLOUTS, SHUFFLED, TRUE, history, mixed, screened, stream, whole_groups

# Replay: choice by predicted pass rate on recorded rollouts.


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
    for name, value in {"STEP": 8, "RUNS": 4, "SHARES": (0.25,), "CORRELATIONS": (0.2, 0.6, 0.95), "WORKERS": 1}.items():
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


# Policy gradients of single prompts, and Appendix A estimated from them, against slow twins and known moments.


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=12, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                    max_position_embeddings=32)
    ).eval()  # fmt: skip


def test_the_loss_of_a_group_equals_a_loop_over_tokens(model: LlamaForCausalLM) -> None:
    prompt, completions, weights = [3, 4, 5], [[6, 7], [8], [9, 10, 11]], np.array([1.0, -0.5, 0.25])
    total = 0.0
    for completion, weight in zip(completions, weights, strict=True):
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0] / 0.7
        logs = torch.log_softmax(logits, dim=-1)
        chosen = [logs[len(prompt) - 1 + t, token] for t, token in enumerate(completion)]
        total -= weight * torch.stack(chosen).mean()
    torch.testing.assert_close(gradients.group_loss(model, prompt, completions, weights, 0.7), total / 3, rtol=1e-5, atol=1e-6)


def test_the_gradient_equals_a_finite_difference(model: LlamaForCausalLM) -> None:
    arguments = ([3, 4], [[6, 7], [8, 2]], np.array([1.0, -1.0]), 1.0)
    gradient = gradients.flat_gradient(model, gradients.group_loss(model, *arguments))
    step = 1e-2 * torch.nn.functional.normalize(gradient, dim=0)
    before, losses = torch.nn.utils.parameters_to_vector(model.parameters()).detach(), []
    for moved in (before + step, before - step, before):
        torch.nn.utils.vector_to_parameters(moved, model.parameters())
        losses.append(float(gradients.group_loss(model, *arguments).detach()))
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(float(gradient.norm()), rel=1e-2)


def planted(seed: int, n: int = 120, gap: float = 2.0) -> tuple[gradients.GradientGram, np.ndarray]:
    """Two clusters of prompts whose mean gradients differ by `gap` along one axis; noise of deviation 1 on 30 axes."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    mean = np.zeros((n, 30))
    mean[:, 0] = gap * (label - 0.5)
    halves = [mean + 0.5 * rng.standard_normal((n, 30)) for _ in range(2)]
    rows = np.concatenate(halves)
    return gradients.GradientGram(rows @ rows.T, np.full((n, 2), 0.5)), label


def table_of(gram: gradients.GradientGram, label: np.ndarray) -> dict[str, float]:
    labels = {"cluster": label, "leaf topic": np.arange(len(label)) % 3}
    table = gradients.coherence_table(gram, labels, 8, 50, 0)
    rows = table[table["grouping"] == "cluster"]
    return dict(zip(rows["relation"], rows["value"], strict=True))


def test_a_planted_structure_is_found_and_permuted_labels_find_nothing() -> None:
    gram, label = planted(0)
    found = table_of(gram, label)
    assert found["within"] > 0.3 and found["across"] < -0.3
    mixed = table_of(gram, np.random.default_rng(1).permutation(label))
    assert abs(mixed["difference"]) < 0.2


def test_moments_are_unbiased_on_known_gaussians() -> None:
    found = []
    for seed in range(40):
        gram, label = planted(seed, n=40)
        found.append(gradients.group_moments(gram.pairs, label, np.ones((1, 40))))
    products = np.mean([m.products[0] for m in found], axis=0)
    np.testing.assert_allclose(products, [[1.0, -1.0], [-1.0, 1.0]], atol=0.06)
    variance = np.mean([m.variance[0] for m in found], axis=0)
    np.testing.assert_allclose(variance, [30 * 0.25] * 2, rtol=0.06)


def test_appendix_a_by_hand() -> None:
    # two clusters, mu = +-1 on one axis, equal variances 7.5, equal shares: G = 0, r = -mu_c, v = mu_d - mu_c = -2 mu_c
    gram, label = planted(0, n=400)
    moments = gradients.group_moments(gram.pairs, label, np.ones((1, 400)))
    terms = gradients.mixing_terms(moments, np.array([0.5, 0.5]), 8)
    assert terms.c[0, 0, 1] == pytest.approx(4.0, rel=0.15)
    assert terms.a[0, 0, 1] == pytest.approx(4.0, rel=0.25)
    assert gradients.rho_star(terms.a, terms.c)[0, 0, 1] == pytest.approx(0.5, abs=0.1)
    assert gradients.rho_star(np.array([1.0, 3.0, -1.0, 1.0]), np.array([2.0, 1.0, 1.0, -1.0])).tolist() == [0.25, 1.0, 0.0, 1.0]


def test_tables_hold_every_pair_and_are_the_same_for_the_same_seed() -> None:
    gram, label = planted(0)
    arguments = (gram.pairs, label, {0: 0.5, 1: 0.5}, 8, 1, 30)
    theory = gradients.mixing_table(*arguments, 0)
    assert theory.equals(gradients.mixing_table(*arguments, 0)) and not theory.equals(gradients.mixing_table(*arguments, 1))
    assert {(r.cluster_c, r.cluster_d) for r in theory.itertuples()} >= {("0", "1"), ("1", "0"), ("0", "mean"), ("mean", "mean")}


def test_rank_correlation_equals_scipy_on_all_pairs() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    first, second = (m + m.T for m in rng.random((2, 9, 9)))
    upper = np.triu_indices(9, 1)
    found = gradients.rank_correlation(first, second, np.ones(9, dtype=bool), bootstrap_weights(9, 3, 0))
    assert found[0] == pytest.approx(spearmanr(first[upper], second[upper])[0])


# Benchmarks: what is measured is what it says, and the JSON line is printed.

SMALL = Shape(64, 128, 2, 4, 2, 16, (512, 2048), 4, 4, 128)


def test_encoding_adds_to_the_forward_pass() -> None:
    rows = bench.shape_ratios(1, SMALL)
    for latents in SMALL.latents:
        assert rows[f"forward_s_{latents}"] > 0
        assert all(rows[f"{way}_to_forward_{latents}"] > 1 for way in ("obvious", "all"))
        assert 0 < rows[f"all_to_forward_and_product_{latents}"] < rows[f"all_to_forward_{latents}"]


def test_the_obvious_way_pools_the_same_latents() -> None:
    sae = bench.random_sae(512, SMALL)
    with torch.inference_mode():
        vectors = bench.shape_activations(SMALL)().flatten(0, 1)
        mean = bench.dense_way(sae, vectors, 2 * SMALL.samples)[: 2 * SMALL.samples]
    found = pool_vectors(sae, vectors, *bench.span_groups(SMALL))
    dense = np.zeros(mean.shape, np.float32)
    dense[2 * found.row + found.span, found.latent] = found.mean
    assert np.allclose(dense, mean, atol=1e-5) and (dense > 0).any()


def test_the_obvious_way_takes_more_memory_in_a_process_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert bench.in_fresh_process(os.getenv, "OMP_NUM_THREADS") == "1" and "OMP_NUM_THREADS" not in os.environ
    rows = bench.in_fresh_process(bench.encode_peaks, replace(SMALL, latents=(16_384,), tokens=2048))
    assert rows["obvious_peak_mib"] > 2048 * 16_384 * 4 / 2**20
    assert rows["obvious_to_chunked_peak"] > 2


def test_peaks_and_seconds_are_of_the_one_call() -> None:
    pages = mmap(-1, 2**26)  # new pages: an array may lie in memory that an earlier test freed
    assert 60 < peak_mib(lambda: np.frombuffer(pages, np.uint8).fill(1)) < 90
    assert peak_mib(lambda: None) < 20
    watch = Stopwatch()
    assert [watch("a_s", int, "7"), watch("a_s", max, [1, 2], key=abs)] == [7, 2]
    watch("floor", sum, range(10**6))
    assert watch.times["floor"] > watch.times["a_s"] and watch.times["processor_s"] < watch.times["floor"]


@pytest.mark.parametrize("kind", ["scores", "features"])
def test_a_plan_is_timed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "in_fresh_process", lambda work, folder: work(folder))
    monkeypatch.setattr(bench, "FEATURES_UP_TO", 10**6 if kind == "features" else 0)
    for name, value in {"Z_COLUMNS": 40, "LABELLED": 300, "NEGATIVES": 150}.items():
        monkeypatch.setattr(bench, name, value)
    assert main(["bench", "plan", "--samples", "1300"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    stages = {"plan_s", "write_s"} | ({"clusters_s", "score_s"} if kind == "features" else {"read_s"})
    assert stages == {key for key in row if key.endswith("_s")} - {"total_s", "processor_s"}
    assert row["total_s"] == pytest.approx(sum(row[key] for key in stages), abs=1e-4)
    assert row["peak_gb"] > 0.1


def test_options_that_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--samples", "5"], "samples=5 fill no batch of 128"), (["--device", "cpu"], "bench plan has no --device"),
    ):  # fmt: skip
        assert main(["bench", "plan", *words]) == 1
        assert message in capsys.readouterr().err


def test_a_command_is_timed_and_published_rows_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "PUBLISHED", tmp_path)
    for line in ("true", "sleep 0.3", "true"):
        assert main(["bench", "command", "--line", line, "--publish"]) == 0
    table = read_table("measurements", tmp_path)
    assert list(table[["of", "quantity"]].itertuples(index=False, name=None)) == [
        (line, quantity) for line in ("sleep 0.3", "true") for quantity in ("seconds", "peak_gb")
    ]
    assert 0.3 <= table["value"][0] < 30 and table["processor"].notna().all()
    assert main(["bench", "command", "--line", "true"]) == 0 and len(read_table("measurements", tmp_path)) == 4
    capsys.readouterr()
    for words, told in (
        (["command", "--line", "exit 3"], "exit 3 ended with code 3"), (["grpo", "--line", "true"], "bench grpo has no --line"),
        (["command"], "needs --line"),
    ):  # fmt: skip
        assert main(["bench", *words]) == 1 and told in capsys.readouterr().err
