"""Encoding: batches, spans, pooling against a slow loop, the SAE's gates, the shipped models."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from saerl_lib.config import get_profile
from saerl_lib.data.sample import Sample
from saerl_lib.encode.language_model import SEPARATOR, activations, token_batches, token_vectors, truncate
from saerl_lib.encode.models import encoder_folder, load_encoder
from saerl_lib.encode.pool import FEATURES, Encoder, metadata_features, pool_samples
from saerl_lib.encode.sae import SAEGateError, SAEQuality, check_sae, load_sae, measure_sae, train_sae
from saerl_lib.encode.store import choose_retained, encode_samples, load_features, save_features, write_store
from saerl_lib.world.sources import HELD_OUT, draw_world, encoder_families, rebuild_encoder

CONFIG = replace(
    get_profile("smoke").encoder, sae_latents=128, sae_k=8, retained_latents=12, sae_training_tokens=200_000,
    sae_learning_rate=5e-3, tokens_per_batch=512
)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return draw_world(get_profile("smoke").world)["labelled"][:40]


@pytest.fixture(scope="module")
def encoder(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    model, tokenizer = load_encoder()
    decoder = truncate(model, 3)
    vectors = torch.cat(list(token_vectors(samples, decoder, tokenizer, 512)))
    folder = tmp_path_factory.mktemp("sae")
    train_sae(vectors, CONFIG, 0, folder)
    return Encoder(decoder, tokenizer, load_sae(folder, vectors.shape[1]), 512)


def test_batches_hold_every_sample_once_and_respect_the_bound(samples: list[Sample], encoder: Encoder) -> None:
    batches = list(token_batches(samples, encoder.tokenizer, 512))
    assert sorted(i for b in batches for i in b.rows) == list(range(len(samples)))
    assert all(b.ids.numel() <= 512 or len(b.rows) == 1 for b in batches)
    real = sum(int((b.ids != encoder.tokenizer.pad_token_id).sum()) for b in batches)
    assert sum(b.ids.numel() for b in batches) <= 1.25 * real


def test_spans_decode_to_prompt_and_solution(samples: list[Sample], encoder: Encoder) -> None:
    batch = next(iter(token_batches(samples, encoder.tokenizer, 512)))
    sample = samples[batch.rows[0]]
    first = encoder.tokenizer.decode(batch.ids[0, :1])
    assert first + encoder.tokenizer.decode(batch.ids[0][batch.prompt[0]]) == sample.prompt + SEPARATOR
    assert encoder.tokenizer.decode(batch.ids[0][batch.solution[0]]) == sample.solution


def test_pooling_equals_a_slow_loop(samples: list[Sample], encoder: Encoder) -> None:
    retained = np.array([3, 17, 40, 41, 99, 127])
    z = pool_samples(samples, encoder, retained)
    for i in (0, 7, 31):
        (batch,) = token_batches([samples[i]], encoder.tokenizer, 4096)
        with torch.inference_mode():
            latents = encoder.sae.encode(activations(encoder.decoder, batch)[0])[:, retained]
        spans = (latents[batch.prompt[0]], latents[batch.solution[0]])
        slow = torch.cat([v for s in spans for v in (s.mean(dim=0), s.max(dim=0).values)])
        np.testing.assert_allclose(z[i], slow.numpy(), rtol=2e-4, atol=2e-5)


def test_padding_changes_no_activation(samples: list[Sample], encoder: Encoder) -> None:
    (alone,) = token_batches(samples[:1], encoder.tokenizer, 4096)
    (together,) = token_batches(samples[:8], encoder.tokenizer, 100_000)
    row = together.rows.index(0)
    n = int((alone.prompt | alone.solution).sum()) + 1
    values = activations(encoder.decoder, together)[row, :n]
    torch.testing.assert_close(values, activations(encoder.decoder, alone)[0, :n], rtol=1e-4, atol=1e-4)


def test_default_retained_set_is_label_free_and_fixed(samples: list[Sample], encoder: Encoder, tmp_path) -> None:
    store = write_store(samples, encoder, tmp_path)
    first = choose_retained(store, CONFIG.retained_latents)
    assert first.tolist() == choose_retained(store, CONFIG.retained_latents, labels=np.arange(40.0)).tolist()
    assert len(set(first.tolist())) == CONFIG.retained_latents


def test_features_survive_the_disk(samples: list[Sample], encoder: Encoder, tmp_path) -> None:
    table = encode_samples(samples, encoder, np.arange(12))
    save_features(table, tmp_path / "f.safetensors")
    again = load_features(tmp_path / "f.safetensors")
    assert again.ids == table.ids
    np.testing.assert_array_equal(again.phi, table.phi)
    assert table.phi.shape == (len(samples), 4 * 12 + 26)


def test_metadata_by_hand() -> None:
    sample = Sample("a", "Add 12 and 3?", ("12+3=15",), "15")
    row = dict(zip(FEATURES, metadata_features([sample])[0].tolist(), strict=True))
    assert len(FEATURES) == len(set(FEATURES)) == 26
    assert row["prompt_words"] == 4 and row["prompt_numbers"] == 2 and row["prompt_question_marks"] == 1
    assert row["solution_lines"] == 2 and row["solution_operators"] == 2
    assert row["prompt_log10_largest_number"] == pytest.approx(np.log10(13), abs=1e-5)


def test_truncation_matches_the_hidden_state_of_the_whole_model(samples: list[Sample]) -> None:
    whole, tokenizer = load_encoder()
    batch = next(iter(token_batches(samples, tokenizer, 512)))
    with torch.inference_mode():
        expected = whole(input_ids=batch.ids, output_hidden_states=True).hidden_states[3]
    torch.testing.assert_close(activations(truncate(whole, 3), batch), expected, rtol=1e-4, atol=1e-4)


def test_hook_outside_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="hook_layer=9 does not fit a model of 4 blocks"):
        truncate(load_encoder()[0], 9)


def test_sae_of_another_width_is_refused(tmp_path) -> None:
    train_sae(torch.randn(256, 16), replace(CONFIG, sae_latents=32, sae_k=4, sae_training_tokens=256), 0, tmp_path)
    with pytest.raises(SAEGateError, match="reads vectors of width 16, the model's residual stream has width 96"):
        load_sae(tmp_path, 96)


def test_sae_gates_stop_the_run() -> None:
    with pytest.raises(SAEGateError, match="explained variance 0.100 is below"):
        check_sae(SAEQuality(0.1, 8.0, 0.0, 10), CONFIG)
    with pytest.raises(SAEGateError, match="dead share 0.950 is above"):
        check_sae(SAEQuality(0.99, 8.0, 0.95, 10), CONFIG)


def test_measured_l0_is_k_and_quality_is_bounded(encoder: Encoder, samples: list[Sample]) -> None:
    quality = measure_sae(encoder.sae, list(token_vectors(samples, encoder.decoder, encoder.tokenizer, 512)))
    assert 0 < quality.l0 <= CONFIG.sae_k + 1e-6
    assert 0.3 < quality.explained_variance <= 1.0


def test_non_finite_activations_name_the_sample(samples: list[Sample]) -> None:
    model, tokenizer = load_encoder()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="sample labelled-"):
        list(token_vectors(samples, truncate(model, 3), tokenizer, 512))


def test_encoder_leaves_out_four_families() -> None:
    assert len(HELD_OUT) >= 4 and not set(HELD_OUT) & set(encoder_families(False))
    assert set(HELD_OUT) <= set(encoder_families(True))


def test_a_rebuild_begins_with_the_recorded_loss(tmp_path) -> None:
    recorded = json.loads((encoder_folder() / "losses.json").read_text(encoding="utf-8"))
    losses = rebuild_encoder(tmp_path, steps=1)
    assert losses[0] == pytest.approx(recorded[0], rel=0.002)
