"""One's own data are read and judged: every malformed input is named, and a model with its SAE gives the features."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from saerl_lib import cli
from saerl_lib.data.rows import Fields
from saerl_lib.data.sample import DataError
from saerl_lib.encode.models import ENCODER, encoder_folder
from saerl_lib.own import OwnConfig, load_data, plan_own_data
from saerl_lib.plan.batch_plan import plan_diff, read_plan

SMALL = OwnConfig(prompts_per_step=4, clusters=3)
LABELLED = replace(SMALL, fields=Fields(labels="level"))


def rows(n: int = 60, **extra: Any) -> list[dict[str, Any]]:
    """n problems of three kinds; the level grows with the numbers, not with the length."""
    kinds = ("Add {} and {}.", "What is the area of a {} by {} rectangle?", "Find the remainder of {} divided by {}, a prime.")
    return [
        {"id": f"p-{i}", "question": kinds[i % 3].format(7 * i + 3, 11 + 13 * (i % 17)), "answer": str(i),
         "solution": f"Step one of {i}.\nStep two.", "subject": f"kind {i % 3}", "level": 1 + i % 17 // 4, **extra}
        for i in range(n)
    ]  # fmt: skip


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(r) for r in records) + "\n", encoding="utf-8")
    return str(path)


def fails(tmp_path: Path, source: str, config: OwnConfig = LABELLED) -> str:
    """The message of the DataError of a plan, which must leave nothing behind."""
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(DataError) as caught:
        plan_own_data(source, tmp_path / "out", config)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    return str(caught.value)


# Malformed data: the message names file, row, field and fix, and nothing is written.


def changed(**values: Any) -> list[dict[str, Any]]:
    """Rows whose third one has other values."""
    records = rows()
    records[2] |= values
    return records


def test_three_rows_are_too_few(tmp_path: Path) -> None:
    message = fails(tmp_path, write_jsonl(tmp_path / "my.jsonl", rows(3)))
    assert "3 of 3 rows are usable, at least 10 are needed" in message and "--prompts-per-step" not in message
    many = fails(tmp_path, write_jsonl(tmp_path / "my.jsonl", rows(20)), replace(LABELLED, prompts_per_step=32))
    assert "20 of 20 rows are usable, at least 32 are needed" in many and "lower --prompts-per-step" in many
    message = fails(tmp_path, write_jsonl(tmp_path / "my.jsonl", rows(30)), replace(SMALL, prompts_per_step=32))
    assert "at least 32 are needed" in message


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    assert "no such file" in fails(tmp_path, str(tmp_path / "absent.jsonl"))
    (tmp_path / "folder").mkdir()
    assert "is a folder" in fails(tmp_path, str(tmp_path / "folder"))


def test_pass_rates_are_shares(tmp_path: Path) -> None:
    config = replace(SMALL, fields=Fields(labels="pass_rate"))
    assert "outside 0 to 1" in fails(tmp_path, write_jsonl(tmp_path / "my.jsonl", rows(20, pass_rate=75)), config)
    data = load_data(write_jsonl(tmp_path / "my.jsonl", rows(20, pass_rate=0.75)), config)
    assert np.allclose(data.labels, 0.25)  # larger is harder
    easy = replace(SMALL, fields=Fields(labels="level"), larger_is_easier=True)
    assert load_data(write_jsonl(tmp_path / "my.jsonl", rows(20)), easy).labels[0] == -1


# Formats and fields.


def make(
    tmp_path: Path, records: list[dict[str, Any]] | None = None, config: OwnConfig = LABELLED, name: str = "out", **options: Any
) -> Path:
    source = write_jsonl(tmp_path / "my.jsonl", rows() if records is None else records)
    return plan_own_data(source, tmp_path / name, config, **options).folder


def titles(folder: Path) -> list[str]:
    return [c["title"] for c in json.loads((folder / "run.json").read_text())["caveats"]]


def text_of(folder: Path, title: str) -> str:
    return next(c["text"] for c in json.loads((folder / "run.json").read_text())["caveats"] if c["title"] == title)


# A model and an SAE.


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from saerl_lib.config import EncoderConfig
    from saerl_lib.encode.sae import train_sae

    folder = tmp_path_factory.mktemp("sae")
    torch.manual_seed(0)
    train_sae(
        torch.randn(4096, ENCODER.width), EncoderConfig(sae_latents=128, sae_k=8, retained_latents=12), 0, folder, "untrained"
    )
    return folder


def test_a_model_and_its_sae_give_the_features(tmp_path: Path, sae: Path) -> None:
    config = replace(LABELLED, encoder=str(encoder_folder()), layer=3, sae=str(sae), retained_latents=12, max_tokens=60)
    records = rows(45)
    records[7]["solution"] = None
    records[8]["solution"] = "Very long. " * 80
    folder = make(tmp_path, records, config)
    assert not (folder / "store").exists()
    titled = titles(folder)
    assert "1 row cut" in titled and "A first look" not in titled and "The SAE does not fit this layer" in titled
    assert "12 SAE latents of encoder, layer 3" in text_of(folder, "What was read")
    from saerl_lib.encode.store import load_features

    table = load_features(folder / "features.safetensors")
    assert table.z.shape == (45, 48) and not table.solved[7] and table.solved[0] and np.abs(table.z[0]).max() > 0
    assert plan_diff(*[read_plan(folder / "plan.parquet")] * 2).same_batches == 1
    assert pd.read_csv(folder / "scores.csv")["length"].max() == 60


def test_an_sae_of_another_layer_is_told_from_its_own(tmp_path: Path) -> None:
    import torch

    from saerl_lib.config import EncoderConfig
    from saerl_lib.encode.language_model import token_vectors, truncate
    from saerl_lib.encode.models import load_encoder
    from saerl_lib.encode.sae import train_sae

    samples = load_data(write_jsonl(tmp_path / "my.jsonl", rows(200)), LABELLED).samples
    model, tokenizer = load_encoder()
    vectors = torch.cat(list(token_vectors(samples, truncate(model, 3), tokenizer, 4096)))
    small = EncoderConfig(sae_latents=256, sae_k=16, retained_latents=12, sae_training_tokens=200_000)
    train_sae(vectors, small, 0, tmp_path / "sae")
    config = replace(LABELLED, encoder=str(encoder_folder()), layer=3, sae=str(tmp_path / "sae"), retained_latents=12)
    own, other = (make(tmp_path, rows(45), replace(config, layer=layer), f"layer-{layer}") for layer in (3, 1))
    assert "How well the SAE reads the model" in titles(own) and "The SAE does not fit this layer" not in titles(own)
    assert "The SAE does not fit this layer" in titles(other)


def test_damaged_weights_are_named(tmp_path: Path, sae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_jsonl(tmp_path / "my.jsonl", rows(45))
    for name, good in (("encoder", encoder_folder()), ("sae", sae)):
        bad = tmp_path / name
        shutil.copytree(good, bad)
        (weights,) = bad.glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:200])
        used = {"encoder": encoder_folder(), "sae": sae} | {name: bad}
        options = ["--encoder", str(used["encoder"]), "--layer", "3", "--sae", str(used["sae"]), "--out", str(tmp_path / "out")]
        assert cli.main(["plan", "--data", source, *options]) == 1
        assert f"{bad}: its weights cannot be read" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_data_are_judged_before_a_model_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saerl_lib.own.open_reader", lambda *_: pytest.fail("a model was opened"))
    config = replace(LABELLED, encoder=str(encoder_folder()), layer=3, sae="nowhere")
    assert "line 3" in fails(tmp_path, write_jsonl(tmp_path / "my.jsonl", changed(level="x")), config)


@pytest.mark.parametrize(
    ("change", "part"), [({"sae": "nowhere"}, "no cfg.json"), ({"layer": 9}, "choose 1 to 4")]
)  # fmt: skip
def test_what_does_not_fit_the_model_leaves_nothing(tmp_path: Path, sae: Path, change: dict[str, Any], part: str) -> None:
    config = replace(LABELLED, **({"encoder": str(encoder_folder()), "layer": 3, "sae": str(sae)} | change))
    with pytest.raises((ValueError, RuntimeError), match=part):
        make(tmp_path, config=config)
    assert [p.name for p in tmp_path.iterdir()] == ["my.jsonl"]
