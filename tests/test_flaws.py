"""Scores that should find wrong samples: DSIR by hand, rank metrics against scikit-learn, SelfReg, perplexity's slow twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from saerl_lib.config import get_profile
from saerl_lib.data.sample import DataError
from saerl_lib.encode.language_model import SEPARATOR, measure_surprise
from saerl_lib.encode.models import load_encoder
from saerl_lib.report.statistics import bootstrap_weights, rank_metrics, weighted_share_dropped
from saerl_lib.studies.flaws import FlawData, flaw_rows_from_features, flaw_table, log_importance_weights, sgd_scores

CONFIG = get_profile("smoke").properties


def test_dsir_by_hand() -> None:
    # target p = (1 + 1) / (size + 1), raw q = (1 + 1) / (size + 2) of two texts with a bucket each, smoothed by one
    size = 1 << 16
    weights = log_importance_weights(["find", "sum"], ["find"], buckets=size)
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
    half = weighted_share_dropped(np.array([4.0, 3, 2, 1]), np.array([True, False, True, False]), np.ones((1, 4)), 0.5)
    assert half.tolist() == [0.5]


def planted(n: int, seed: int) -> FlawData:
    """Flaws shift the first column of z; metadata and words know nothing."""
    rng = np.random.default_rng(seed)
    flaw = np.where(rng.random(n) < 0.3, "wrong_answer", "")
    z = rng.standard_normal((n, 6))
    z[:, 0] += 2.5 * (flaw != "")
    texts = tuple(f"find {rng.integers(99)} and {rng.integers(99)}" for _ in range(n))
    return FlawData(z, rng.standard_normal((n, 3)), texts, flaw)


def test_a_planted_flaw_is_found_by_the_right_probe_alone() -> None:
    data = planted(600, 0)
    split = np.array(["train"] * 400 + ["test"] * 200)
    table = flaw_rows_from_features(
        data.z, data.metadata, data.texts, data.flaw == "", split, dataset="d", keep_share=0.5, config=CONFIG, seed=0
    )
    auc = table[(table["metric"] == "roc_auc") & (table["flaw"] == "any")].set_index("score")["value"]
    assert auc["flaw_probe_sae"] > 0.9
    for name in ("flaw_probe_metadata", "flaw_probe_tfidf", "flaw_probe_shuffled", "dsir", "length"):
        assert abs(auc[name] - 0.5) < 0.2, name
    assert auc["chance"] == 0.5
    dropped = table[(table["metric"] == "dropped_share") & (table["flaw"] == "any")].set_index("score")["value"]
    assert dropped["flaw_probe_sae"] > 0.85


def test_bad_input_is_named() -> None:
    data = planted(60, 0)
    with pytest.raises(ValueError, match="use 'train' and 'test' only"):
        flaw_rows_from_features(
            data.z, data.metadata, data.texts, data.flaw == "", ["dev"] * 60, dataset="d", keep_share=0.5, config=CONFIG, seed=0
        )
    with pytest.raises(ValueError, match="single class"):
        sgd_scores(data.z, np.ones(60, dtype=bool), data.z, 0)
    with pytest.raises(ValueError, match="it needs both"):
        flaw_table({}, [""] * 60, {"p": np.ones(60, dtype=bool)}, dataset="d", keep_share=0.5, config=CONFIG, seed=0)
    with pytest.raises(ValueError, match="DSIR needs at least one text"):
        log_importance_weights([], ["a"])


def test_surprise_equals_a_loop_and_does_not_depend_on_order() -> None:
    model, tokenizer = load_encoder()
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
    again = measure_surprise(prompts[::-1], solutions[::-1], model, tokenizer, tokens_per_batch=20)
    np.testing.assert_allclose(again.solution[::-1], found.solution, rtol=1e-5)
    with pytest.raises(DataError, match="row 1: the solution has too few tokens"):
        measure_surprise(prompts[:2], ["1", ""], model, tokenizer)
