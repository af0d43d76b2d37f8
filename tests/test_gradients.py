"""Policy gradients of single prompts, and Appendix A estimated from them, against slow twins and known moments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from saerl_lib.report.statistics import bootstrap_weights
from saerl_lib.studies.gradients import (
    GradientGram,
    coherence_table,
    flat_gradient,
    group_loss,
    group_moments,
    mixing_table,
    mixing_terms,
    prompt_pairs,
    rank_correlation,
    rho_star,
)


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
    torch.testing.assert_close(group_loss(model, prompt, completions, weights, 0.7), total / 3, rtol=1e-5, atol=1e-6)


def test_the_gradient_equals_a_finite_difference(model: LlamaForCausalLM) -> None:
    arguments = ([3, 4], [[6, 7], [8, 2]], np.array([1.0, -1.0]), 1.0)
    gradient = flat_gradient(model, group_loss(model, *arguments))
    step = 1e-2 * torch.nn.functional.normalize(gradient, dim=0)
    before, losses = torch.nn.utils.parameters_to_vector(model.parameters()).detach(), []
    for moved in (before + step, before - step, before):
        torch.nn.utils.vector_to_parameters(moved, model.parameters())
        losses.append(float(group_loss(model, *arguments).detach()))
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(float(gradient.norm()), rel=1e-2)


def planted(seed: int, n: int = 120, gap: float = 2.0) -> tuple[GradientGram, np.ndarray]:
    """Two clusters of prompts whose mean gradients differ by `gap` along one axis; noise of deviation 1 on 30 axes."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    mean = np.zeros((n, 30))
    mean[:, 0] = gap * (label - 0.5)
    halves = [mean + 0.5 * rng.standard_normal((n, 30)) for _ in range(2)]
    rows = np.concatenate(halves)
    return GradientGram(rows @ rows.T, np.full((n, 2), 0.5)), label


def table_of(gram: GradientGram, label: np.ndarray) -> dict[str, float]:
    labels = {"cluster": label, "leaf topic": np.arange(len(label)) % 3}
    table = coherence_table(gram, labels, 8, 50, 0)
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
        found.append(group_moments(prompt_pairs(gram), label, np.ones((1, 40))))
    products = np.mean([m.products[0] for m in found], axis=0)
    np.testing.assert_allclose(products, [[1.0, -1.0], [-1.0, 1.0]], atol=0.06)
    variance = np.mean([m.variance[0] for m in found], axis=0)
    np.testing.assert_allclose(variance, [30 * 0.25] * 2, rtol=0.06)


def test_appendix_a_by_hand() -> None:
    # two clusters, mu = +-1 on one axis, equal variances 7.5, equal shares: G = 0, r = -mu_c, v = mu_d - mu_c = -2 mu_c
    gram, label = planted(0, n=400)
    terms = mixing_terms(group_moments(prompt_pairs(gram), label, np.ones((1, 400))), np.array([0.5, 0.5]), 8)
    assert terms.c[0, 0, 1] == pytest.approx(4.0, rel=0.15)
    assert terms.a[0, 0, 1] == pytest.approx(4.0, rel=0.25)
    assert rho_star(terms.a, terms.c)[0, 0, 1] == pytest.approx(0.5, abs=0.1)
    assert rho_star(np.array([1.0, 3.0, -1.0, 1.0]), np.array([2.0, 1.0, 1.0, -1.0])).tolist() == [0.25, 1.0, 0.0, 1.0]


def test_tables_hold_every_pair_and_are_the_same_for_the_same_seed() -> None:
    gram, label = planted(0)
    arguments = (prompt_pairs(gram), label, {0: 0.5, 1: 0.5}, 8, 1, 30)
    theory = mixing_table(*arguments, 0)
    assert theory.equals(mixing_table(*arguments, 0)) and not theory.equals(mixing_table(*arguments, 1))
    assert {(r.cluster_c, r.cluster_d) for r in theory.itertuples()} >= {("0", "1"), ("1", "0"), ("0", "mean"), ("mean", "mean")}


def test_rank_correlation_equals_scipy_on_all_pairs() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    first, second = (m + m.T for m in rng.random((2, 9, 9)))
    upper = np.triu_indices(9, 1)
    found = rank_correlation(first, second, np.ones(9, dtype=bool), bootstrap_weights(9, 3, 0))
    assert found[0] == pytest.approx(spearmanr(first[upper], second[upper])[0])
