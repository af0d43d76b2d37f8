"""Real labelled sets: the loader's errors, splits by hash, what is kept out of training; real files where they lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_files import problems, write_jsonl, write_real_files

from saerl_lib import paths
from saerl_lib.config import get_profile
from saerl_lib.data.answers import marked_answer
from saerl_lib.data.judge import read
from saerl_lib.data.published import evaluation_keys, held_out_keys, load_labelled, load_set
from saerl_lib.data.sample import hash_order
from saerl_lib.properties.probes import real_tasks
from saerl_lib.studies.ladder import overlap_table
from saerl_lib.studies.reader import corpus

REAL = pytest.mark.skipif(not paths.shared_data_dir(), reason="SAERL_DATA_DIR is not set: no real labelled data")


def test_splits_depend_on_the_text_alone(tmp_path: Path) -> None:
    rows = problems(200, level=lambda i: i % 5)
    rows.append({**rows[7], "id": "again"})
    first = load_labelled(Path(write_jsonl(tmp_path / "a.jsonl", rows)))
    second = load_labelled(Path(write_jsonl(tmp_path / "b.jsonl", rows[::-1])))
    train, test = first.split(100, 50)
    again, _ = second.split(100, 50)
    assert sorted(train.keys) == sorted(again.keys) and not set(train.keys) & set(test.keys)
    assert len(train) == 100 and len(test) == 50 and len(first.unique()) == 200
    left = first.without(set(train.keys))
    assert not set(left.keys) & set(train.keys) and len(set(left.keys)) == 100
    assert sorted(hash_order(first.samples).tolist()) == list(range(201))


def test_overlap_with_evaluation_sets_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAERL_DATA_DIR", str(write_real_files(tmp_path / "data")))
    found = overlap_table(get_profile("smoke")).set_index(["dataset", "evaluation_set"])
    assert found["n_overlap"].sum() == found.loc[("math_train", "eval_aime24"), "n_overlap"] == 1
    assert found.loc[("math_train", "math_test"), "n"] == 80 and ("math_test", "math_test") not in found.index
    monkeypatch.delenv("SAERL_DATA_DIR")
    assert overlap_table(get_profile("smoke"))["n"].min() > 80, "without the files the committed table stands"


def test_no_sae_is_trained_on_a_question_that_a_probe_is_tested_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAERL_DATA_DIR", str(write_real_files(tmp_path / "data")))
    config = get_profile("smoke").ladder
    read = {s.prompt for samples in corpus(config).values() for s in samples}
    tested = {s.prompt for t in real_tasks(load_set, config, held_out_keys()) for s in t.test}
    assert len(tested) > 100 and len(read) > 3000 and not tested & read


@REAL
def test_every_shared_file_loads_and_its_counts_are_those_of_its_readme() -> None:
    folder = paths.shared_data_dir()
    for path in sorted(folder.glob("*.jsonl.gz")):
        assert len(load_labelled(path)) > 0
    deepmath = load_labelled(folder / "deepmath_18k.jsonl.gz")
    assert len(deepmath) == 18_329 and int(deepmath.has_label("level").sum()) == 4_997  # one row is -1
    assert len(evaluation_keys(folder)) == 5


@REAL
def test_the_answers_of_maths_training_set_are_judged_as_a_person_would() -> None:
    data = read([paths.shared_data_dir() / "math_train.jsonl.gz"])
    assert [row.reason for row in data.aside] == ["no answer, so no reward could be computed"] * 2, "none is a worked text"
    assert data.read == 7_500 and 32 * (int(data.plannable.sum()) // 32) == 7_488
    answered = [sample for sample in data.samples if sample.answer]
    unlike = [sample.id for sample in answered if marked_answer("\n".join(sample.steps)) != sample.answer]
    assert unlike == ["math-train-888", "math-train-1011"], "two boxes have no braces"
