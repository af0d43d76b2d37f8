"""An SAE trained on streamed text: what is read and in which order, the quality of the result, a stop in the middle, bad text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import stand_ins as build
import torch
from real_files import write_jsonl

from saerl_lib.artifacts import ArtifactError
from saerl_lib.cli import main
from saerl_lib.config import ReaderConfig
from saerl_lib.data.sample import DataError
from saerl_lib.encode.models import CutModel, open_decoder
from saerl_lib.encode.sae import VectorStream, blocks, documents, open_sae, train_text_sae
from saerl_lib.settings import SAEConfig
from saerl_lib.studies.reader import explained_rows, projections

TEXTS = [f"The sum of {i} and {i * 7 % 31} is {i + i * 7 % 31}.\nIt leaves {(i + i * 7 % 31) % 3} by three." for i in range(400)]
SMALL = SAEConfig(
    latents=64, tokens=6_000, k=8, learning_rate=3e-3, vectors_per_step=200, context=32, blocks_per_pass=4, buffer_vectors=800,
    heldout_tokens=400, checkpoint_every=1_500,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.build_qwen("qwen3", TEXTS, tmp_path_factory.mktemp("model") / "qwen3")


def write_texts(folder: Path) -> str:
    return write_jsonl(folder / "text.jsonl", [{"text": text} for text in TEXTS])


def test_blocks_hold_every_token_once_with_an_end_between_documents(model: Path) -> None:
    _, tokenizer, _ = open_decoder(ReaderConfig(str(model), 2))
    whole = [token for text in TEXTS for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    found = list(blocks(iter(TEXTS), tokenizer, 32))
    assert torch.cat(found).tolist() == whole[: 32 * len(found)] and 0 <= len(whole) - 32 * len(found) < 32


def test_vectors_are_those_of_the_model_without_the_first_token_of_a_block(model: Path) -> None:
    from transformers import AutoModel

    decoder, tokenizer, shape = open_decoder(ReaderConfig(str(model), 1, max_norm=None))
    found = list(blocks(iter(TEXTS), tokenizer, 32))[:5]
    stream = VectorStream(iter(found), decoder, rows=2)
    vectors = torch.cat(list(stream))
    assert stream.read == 5 and vectors.shape == (5 * 31, shape.hidden_size)
    whole = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        states = whole(input_ids=torch.stack(found), output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(vectors, states[:, 1:].flatten(0, 1), atol=1e-5, rtol=1e-4)
    later = VectorStream(iter(found), decoder, rows=2)
    later.skip_to(4)
    torch.testing.assert_close(torch.cat(list(later)), vectors[4 * 31 :], atol=1e-5, rtol=1e-4)


def train(model: Path, source: str, out: Path, device: str = "cpu", config: SAEConfig = SMALL):
    decoder, tokenizer, _ = open_decoder(ReaderConfig(str(model), 2, device=device, max_norm=None))
    return train_text_sae([source] * 3, "text", decoder, tokenizer, config, "model", out)


def test_the_command_trains_an_sae_that_explains_it(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_texts(tmp_path), tmp_path / "sae"
    options = ["--reader", str(model), "--layer", "2", "--out", str(out), "--tokens", "12000", "--latents", "96", "--k", "8",
               "--learning-rate", "0.003", "--vectors-per-step", "200", "--context", "32", "--buffer", "800",
               "--heldout", "400"]  # fmt: skip
    assert main(["sae", "--text", source, source, *options]) == 0
    told = json.loads(capsys.readouterr().out.strip().split("\n")[-1])
    assert told["explained_variance"] > 0.5 and 0 < told["l0"] <= 8
    assert open_sae(str(out), build.WIDTH).cfg.d_sae == 96 and not (out / "checkpoints").exists()
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert main(["sae", "--text", source, source, *options]) == 0, "a finished SAE is found again"
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert main(["sae", "--text", source, source, *options, "--k", "9"]) == 1
    assert "begun with other settings" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_a_stopped_training_goes_on_behind_its_checkpoint(
    where: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    device = "cpu" if where == "cpu" else str(request.getfixturevalue("gpu_device"))
    source, read = write_texts(tmp_path), []
    whole = CutModel.forward

    def stops(self: CutModel, ids: torch.Tensor) -> torch.Tensor:
        if len(read) == 40:
            raise KeyboardInterrupt
        read.append(ids)
        return whole(self, ids)

    monkeypatch.setattr(CutModel, "forward", stops)
    with pytest.raises(KeyboardInterrupt):
        train(model, source, tmp_path / "sae", device)
    (checkpoint,) = (tmp_path / "sae" / "checkpoints").iterdir()
    position = json.loads((checkpoint / "position.json").read_text())["blocks"]
    assert 1_500 <= int(checkpoint.name) < SMALL.tokens and position > 0
    again: list[torch.Tensor] = []
    monkeypatch.setattr(CutModel, "forward", lambda self, ids: again.append(ids) or whole(self, ids))
    capsys.readouterr()
    quality = train(model, source, tmp_path / "sae")
    said = capsys.readouterr().out
    assert f"going on after {int(checkpoint.name):,} of 6,000 vectors" in said and quality.explained_variance > 0
    held_out = -(-SMALL.heldout_tokens // (4 * 31))  # passes before training
    _, tokenizer, _ = open_decoder(ReaderConfig(str(model), 2))
    found = list(blocks(documents([source] * 3), tokenizer, 32))
    assert torch.equal(again[held_out], torch.stack(found[position : position + 4])), "the text goes on, it does not begin again"
    undisturbed = train(model, source, tmp_path / "other", device)
    assert quality.explained_variance == pytest.approx(undisturbed.explained_variance, abs=0.1)


def test_bad_text_and_too_little_of_it_are_named(model: Path, tmp_path: Path) -> None:
    pd.DataFrame({"text": TEXTS}).to_parquet(tmp_path / "good.parquet")
    assert list(documents([str(tmp_path / "good.parquet")])) == TEXTS
    (tmp_path / "config.ini").write_text("x")
    other = str(tmp_path / "config.ini")
    for bad, said in (("none.jsonl", "no such file"), (other, "unknown ending"), ("owner/name", "40 digits")):
        with pytest.raises(DataError, match=said):
            next(documents([bad]))
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    for name, field, where in (("bad.jsonl", "text", "line 2"), ("good.parquet", "body", "row 1")):
        with pytest.raises(DataError, match=f"{name}, {where}: field '{field}' is NoneType, not text; name the right one"):
            list(documents([str(tmp_path / name)], field))
    with pytest.raises(ArtifactError, match="the text ends before 400 held-out and 900,000 training vectors"):
        train(model, write_texts(tmp_path), tmp_path / "long", config=SAEConfig(**{**vars(SMALL), "tokens": 900_000}))


def test_the_curve_keeps_a_plane_whole_by_two_directions() -> None:
    rng = torch.Generator().manual_seed(1)
    plane = torch.randn(500, 2, generator=rng) @ torch.tensor([[3.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]) + 5.0
    pca = {k: torch.eye(4, dtype=torch.float64)[:, :k] for k in (1, 2)}
    mean = plane.double().mean(dim=0)
    one, two = explained_rows({}, plane, mean, pca)
    share = plane.var(dim=0, correction=0)
    assert one[:3] == ("explained_variance", "pca", 1) and one[3] == pytest.approx(float(share[0] / share.sum()), rel=1e-5)
    assert two[3] == pytest.approx(1.0)
    dense = np.concatenate([plane.numpy(), np.zeros((500, 12))], axis=1)
    found = projections(dense, mean, pca)["pca#2"]
    assert np.allclose(found, np.tile((plane - mean)[:, :2].numpy(), 2), atol=1e-5)
