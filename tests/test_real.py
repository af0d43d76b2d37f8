"""Real labelled sets: the loader's errors, splits by hash, what is kept out of training; real files where they lie."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from real_files import write_real_files

from saerl_lib import paths
from saerl_lib.config import get_profile
from saerl_lib.data.real import (
    corpus_texts,
    evaluation_keys,
    hash_order,
    learnability,
    load_labelled,
    unique,
    without,
)
from saerl_lib.data.real_splits import split_by_hash
from saerl_lib.data.schema import DataError, Sample
from saerl_lib.encode import kinds_stage, real_stage
from saerl_lib.encode.spans import Layout
from saerl_lib.properties.ladder import overlap_table
from saerl_lib.properties.tasks import real_tasks

REAL = pytest.mark.skipif(not paths.shared_data_dir(), reason="SAERL_DATA_DIR is not set: no real labelled data")


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    return path


def problems(n: int, **labels: object) -> list[dict]:
    return [
        {"id": f"p{i}", "question": f"What is {i} plus {i * 7 % 13}?", "answer": "1"}
        | {name: (value(i) if callable(value) else value) for name, value in labels.items()}
        for i in range(n)
    ]


def test_labels_are_read_and_unknown_ones_counted(tmp_path: Path) -> None:
    rows = problems(3, level=lambda i: [2, -1, 5][i], subject=lambda i: ["a", "", "b"][i], valid=lambda i: i > 0)
    rows[0] |= {"solution": "one\ntwo", "pass_rate": 0.25, "meta": {"overlap_eval": ["math500"]}}
    data = load_labelled(write(tmp_path / "x.jsonl", rows))
    assert data.name == "x" and len(data) == 3
    assert data.has_label("level").tolist() == [True, False, True]
    assert data.has_label("subject").tolist() == [True, False, True]
    assert data.labels["valid"].tolist() == [0.0, 1.0, 1.0] and data.overlap[0] == ("math500",)
    assert data.samples[0].steps == ("one", "two") and not data.samples[1].solved and data.samples[1].solution == ""


def test_gzip_and_plain_files_are_the_same(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.jsonl", problems(4, level=3))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert load_labelled(plain).samples == load_labelled(tmp_path / "b.jsonl.gz").samples


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "x.jsonl, line 2: not JSON"),
        ([1], "line 2: expected a JSON object"),
        ({"id": "b", "question": " "}, "line 2: field 'question' is empty"),
        ({"id": "p0", "question": "q"}, "line 2: id 'p0' was already used"),
        ({"id": "b", "question": "q", "level": "hard"}, "line 2: field 'level' is 'hard', not a number"),
        ({"id": "b", "question": "q", "pass_rate": 40}, "line 2: field 'pass_rate' is 40, not a share"),
        ({"id": "b", "question": "q", "valid": "yes"}, "line 2: field 'valid' is 'yes'; write true, false"),
        ({"id": "b", "question": "q", "meta": 3}, "line 2: field 'meta' is no object"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: object, message: str) -> None:
    second = row if isinstance(row, str) else json.dumps(row)
    (tmp_path / "x.jsonl").write_text(json.dumps(problems(1)[0]) + "\n" + second, encoding="utf-8")
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        load_labelled(tmp_path / "x.jsonl")


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    row = json.dumps({"id": "b", "question": "q", "level": "hard"})
    (tmp_path / "x.jsonl").write_text(json.dumps(problems(1)[0]) + "\n\n\n" + row, encoding="utf-8")
    with pytest.raises(DataError, match="line 4: field 'level'"):
        load_labelled(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").write_text("\n\n" + json.dumps({"id": "b", "question": " "}), encoding="utf-8")
    with pytest.raises(DataError, match="line 3: field 'question' is empty"):
        load_labelled(tmp_path / "x.jsonl")


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; set SAERL_DATA_DIR"):
        load_labelled(tmp_path / "none.jsonl.gz")
    (tmp_path / "x.jsonl.gz").write_bytes(b"plain text")
    with pytest.raises(DataError, match="x.jsonl.gz: cannot be read"):
        load_labelled(tmp_path / "x.jsonl.gz")


def test_learnability_by_hand() -> None:
    # means 0.5, 0.75; sample 0: 1 - (0.25 + 0.0625) / (0.25 + 0.0625) = 0
    scores = learnability([[0.0, 0.5], [1.0, 1.0], None])
    np.testing.assert_allclose(scores[:2], [0.0, 0.0], atol=1e-12)
    assert np.isnan(scores[2])


def test_splits_depend_on_the_text_alone(tmp_path: Path) -> None:
    rows = problems(200, level=lambda i: i % 5)
    rows.append({**rows[7], "id": "again"})
    first = load_labelled(write(tmp_path / "a.jsonl", rows))
    second = load_labelled(write(tmp_path / "b.jsonl", rows[::-1]))
    train, test = split_by_hash(first, 100, 50)
    again, _ = split_by_hash(second, 100, 50)
    assert sorted(train.keys) == sorted(again.keys) and not set(train.keys) & set(test.keys)
    assert len(train) == 100 and len(test) == 50 and len(unique(first)) == 200
    left = without(first, set(train.keys))
    assert not set(left.keys) & set(train.keys) and len(set(left.keys)) == 100
    assert sorted(hash_order(first).tolist()) == list(range(201))


def test_the_corpus_holds_no_held_out_question(tmp_path: Path) -> None:
    data = load_labelled(write(tmp_path / "a.jsonl", problems(5, solution="s")))
    texts = list(corpus_texts([data], set(data.keys[:2])))
    assert len(texts) == 3 and all("\n" in t for t in texts)


def test_overlap_with_evaluation_sets_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAERL_DATA_DIR", str(write_real_files(tmp_path / "data")))
    found = overlap_table(get_profile("smoke")).set_index(["dataset", "evaluation_set"])
    assert found["n_overlap"].sum() == found.loc[("math_train", "eval_aime24"), "n_overlap"] == 1
    assert found.loc[("math_train", "math_test"), "n"] == 80 and ("math_test", "math_test") not in found.index
    monkeypatch.delenv("SAERL_DATA_DIR")
    assert overlap_table(get_profile("smoke"))["n"].min() > 80, "without the files the committed table stands"


def test_no_model_reads_a_question_that_a_probe_is_tested_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAERL_DATA_DIR", str(write_real_files(tmp_path / "data")))
    monkeypatch.setenv("SAERL_HOME", str(tmp_path / "home"))
    profile = get_profile("smoke")
    texts: list[str] = []
    monkeypatch.setattr(
        real_stage, "train_text_model", lambda given, _, folder, __: texts.extend(given) or folder.mkdir() or [1.0]
    )
    real_stage.text_model_stage(profile)
    read: list[Sample] = []
    monkeypatch.setattr(
        kinds_stage, "token_vectors", lambda samples, *_: read.extend(samples) or iter([torch.zeros(len(samples), 4)])
    )
    kinds_stage.collect_text_vectors(None, None, profile.method.text_sae, profile.method, Layout(), 0)
    tested = {s.prompt for t in real_tasks(real_stage.load_set, profile.method, real_stage.held_out_keys()) for s in t.test}
    assert len(tested) > 100 and {s.prompt for s in read} == {t.split("\n")[0] for t in texts}
    assert len(texts) > 150 and not tested & {s.prompt for s in read}


@REAL
def test_every_shared_file_loads_and_its_counts_are_those_of_its_readme() -> None:
    folder = paths.shared_data_dir()
    for path in sorted(folder.glob("*.jsonl.gz")):
        assert len(load_labelled(path)) > 0
    deepmath = load_labelled(folder / "deepmath_18k.jsonl.gz")
    assert len(deepmath) == 18_329 and int(deepmath.has_label("level").sum()) == 4_997  # one row is -1
    assert len(evaluation_keys(folder)) == 5
