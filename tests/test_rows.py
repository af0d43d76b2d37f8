"""Reading: every malformed file and row is named with its fix; formats, published schemas and text."""

from __future__ import annotations

import csv
import decimal
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saerl_lib.config import PAPER
from saerl_lib.data.judge import read
from saerl_lib.data.published import SCHEMAS, load_labelled, read_row
from saerl_lib.data.rows import Source
from saerl_lib.data.sample import DataError, Sample
from saerl_lib.needs import SETS
from saerl_lib.settings import Fields
from tests import stand_ins as build
from tests.real_files import rows as records
from tests.real_files import write_jsonl

LABELLED = Fields(labels="level")


def changed(**values: Any) -> list[dict[str, Any]]:
    """Rows whose third one has other values."""
    made = records()
    made[2] |= values
    return made


def fails(source: str | Source, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read([source], LABELLED, **options)
    return str(caught.value)


# Rows of any source.


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"question": 5}, ("'question' is an int, not text",)), ({"question": {"q": "a"}}, ("such as question.q",)),
        ({"question": None}, ("'question' is missing or empty", "remove the row")),
        ({"question": "x" * 10_000_000}, ("10,000,000 characters", "at most 200,000", "shorten it")),
        ({"question": "half \ud800"}, ("half a character",)), ({"id": "a\0"}, ("control characters",)),
        ({"id": "p-0"}, ("id 'p-0' was already used in line 1", "its own id")), ({"id": None}, ("'id' is missing",)),
        ({"id": "x" * 300}, ("longer than 200",)), ({"level": True}, ("a bool, not a number",)),
        ({"level": "hard"}, ("'level' is 'hard', a str, not a number", "leave it out when unknown")),
        ({"level": 10**400}, ("not a finite number",)),
        ({"level": 6}, ("'level' is 6, outside 1 to 5", "--label-range")),
        ({"answer": float("nan")}, ("'answer' is nan",)), ({"solution": {"a": "b"}}, ("'solution' is a dict, not text",)),
    ],
)  # fmt: skip
def test_a_malformed_row_is_named_with_the_fix(tmp_path: Path, values: dict[str, Any], parts: tuple[str, ...]) -> None:
    message = fails(write_jsonl(tmp_path / "my.jsonl", changed(**values)), allowed=(1.0, 5.0))
    for part in ("my.jsonl, line 3", "of 60 rows, 1 cannot be used", "--skip-bad-rows", *parts):
        assert part in message
    assert len(message) < 1000


def test_of_many_malformed_rows_five_are_shown(tmp_path: Path) -> None:
    message = fails(write_jsonl(tmp_path / "my.jsonl", [r | {"level": "x"} for r in records(20)]))
    assert "of 20 rows, 20 cannot" in message and message.count("line ") == 5 and "and 15 more" in message


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("empty.jsonl", b"", ("empty.jsonl: no row; the file is empty",)), ("header.csv", b"id,question,level\n", ("no row",)),
        ("my.txt", b"{}", ("unknown ending", ".jsonl")), ("my.jsonl.gz", b"{}", ("my.jsonl.gz", "only when the file is gzip")),
        ("my.parquet", b"PAR1 no PAR1", ("my.parquet: cannot be read as Parquet",)),
        ("my.csv", b"id,question,level\n1,caf\xe9,3\n", ("my.csv, line 2", "UTF-8")),
        ("my.csv", b"id,id\n1,2\n", ("line 1", "occurs twice")),
        ("my.csv", b'id,question,level\n1,"open,3\n', ("my.csv, line", "not CSV")),
        ("my.csv", b"id;question;level\n1;two;3\n", ("line 1", "separate the cells by commas instead of ';'")),
        ("my.tsv", b"id,question\n1,two\n", ("line 1", "by tabs instead of ','")),
        ("my.json", b'[{"question": "a"}, ', ("my.json: not JSON (line 1", "one list of objects")),
        ("my.json", b'{"question": {"0": "a"}, "level": {"0": 1}}', ("one object of columns", "orient='records'")),
        ("my.jsonl.zst", b"{}", ("my.jsonl.zst", "only when the file is zstd")),
        ("my.json", b'{"train": [{"question": "a"}], "test": [{"question": "b"}]}', ("the splits train, test; write each into",)),
        ("my.json", b'[{"question": "a", "level": 1}, 3]', ("row 2", "is an int, not an object")),
        ("my.jsonl", b'{"question": "a", "level": 1, "level": 2}', ("line 1", "key 'level' occurs twice")),
        ("my.csv", b"id,question,level\n1,two,3,four\n", ("line 2", "4 cells where the header has 3")),
        ("my.csv", b"id,question,level\n1,two,hard\n", ("line 2", "'level' is 'hard', a str, not a number")),
        ("my.jsonl", b'{"question": "a", "level": 1}\n{"question"', ("line 2", "not JSON", "one object a line")),
        ("my.jsonl", b'{"question": "a", "level": 1}\n[1, 2]', ("line 2", "expected a JSON object, found list")),
        ("my.jsonl", b'{"question": "a", "level": 1}\n{"question": "caf\xe9"}', ("line 2", "byte 18 is no UTF-8")),
        ("my.json", b'[{"question": "caf\xe9"}]', ("not JSON (byte 19 is no UTF-8)",)),
        ("my.tsv", b'id\t"question"s\n', ("line 1: not CSV ('tab' expected", "quote cells")),
        ("my.jsonl", b"[" * 100_000, ("line 1", "not readable JSON")),
        ("my.jsonl", b'{"question": 1, "%s": 2}' % (b"k" * 9999), ("no row has a field 'level'", "question, kk", "--labels")),
        ("my.jsonl", b'{"question": "a", "extra": {"level": 1}}', ("no row has a field 'level'; did you mean 'extra.level'?",)),
        ("my.jsonl", '{"question": "a"}\n'.encode("utf-16") * 40, ("the text is UTF-16; save the file as UTF-8",)),
        ("my.parquet", b"version https://git-lfs.github.com/spec/v1", ("a pointer of Git LFS", "git lfs pull")),
    ],
)  # fmt: skip
def test_a_malformed_file_is_named_with_the_fix(tmp_path: Path, name: str, content: bytes, parts: tuple[str, ...]) -> None:
    (tmp_path / name).write_bytes(content)
    message = fails(str(tmp_path / name))
    missing = [part for part in (name, *parts) if part not in message]
    assert missing == [] and len(message) < 1000


# Formats and fields.


def test_every_format_gives_the_same_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = records(20)
    made[4] |= {"level": None, "question": 'Quotes " and\nlines, and commas.'}
    lines = "\n".join(json.dumps(r) for r in made)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.replace("\n", "\r\n").encode())
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pd.DataFrame(made).to_parquet(tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(made[0]))
        writer.writeheader()
        writer.writerows(made)
    documents = {"a.json": json.dumps(made), "b.json": json.dumps({"data": made}, indent=1), "e.json": lines,
                 "c.jsonl": json.dumps(made, indent=2), "d.json": json.dumps({"version": 1, "rows": made})}  # fmt: skip
    for name, text in documents.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "a.tsv").write_text(pd.DataFrame(made).to_csv(sep="\t", index=False), encoding="utf-8")
    (tmp_path / "parts").mkdir()
    for number, part in enumerate((made[:7], made[7:])):
        write_jsonl(tmp_path / "parts" / f"{number}.jsonl", part)
    monkeypatch.setattr("datasets.load_dataset", lambda place, split, **_: {"validation": made}[split])
    hub = read([Source.parse("owner/name", "validation")], LABELLED)
    assert read(["hub:owner/name:main:validation"], LABELLED).samples == hub.samples
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet", "a.csv", "a.tsv", *documents, "parts"):
        data = read([tmp_path / name], LABELLED)
        assert data.samples == hub.samples
        np.testing.assert_array_equal(data.labels, hub.labels)
    assert hub.samples[4].prompt == 'Quotes " and\nlines, and commas.' and np.isnan(hub.labels[4])
    assert read([tmp_path / "parts"], LABELLED).where[8] == "1.jsonl, line 2"
    both = read([tmp_path / "parts" / f"{number}.jsonl" for number in (0, 1)], LABELLED)
    assert both.samples == hub.samples and both.where[8] == "1.jsonl, line 2" and both.name == "0.jsonl and 1 more"
    assert read([tmp_path / "a.csv"], LABELLED).where[5] == "line 13"  # four rows of two lines, one of three


def test_a_hub_set_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(place: str, **_: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    message = fails("owner/name")
    assert "owner/name" in message and "no network" in message and "--split" in message
    monkeypatch.setattr("datasets.load_dataset", lambda place, **_: [])
    assert "holds no row" in fails("owner/name")


def test_rows_without_an_answer_are_set_aside_only_if_others_have_one(tmp_path: Path) -> None:
    made = records(20)
    made[5]["answer"] = None
    made[6]["answer"] = " "
    made[7]["answer"] = "N/A"
    data = read([write_jsonl(tmp_path / "my.jsonl", made)])
    assert [(d.id, d.status) for d in data.aside] == [(f"p-{i}", "no answer") for i in (5, 6, 7)] and data.read == 20
    assert np.flatnonzero(~data.plannable).tolist() == [5, 6, 7] and data.labels.shape == (20,)
    for record in made:
        del record["answer"]
    data = read([write_jsonl(tmp_path / "my.jsonl", made)])
    assert len(data.samples) == data.plannable.sum() == 20 and any("reward" in note for note in data.notes)


# What people have: the schemas of trainers, documents, folders, odd values.

ASKED = [f"Add {i} and 3." for i in range(12)]
SYSTEM = {"role": "system", "content": "Be brief."}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("schema", "before"),
    [
        (lambda i, q: {"data_source": "math", "prompt": [SYSTEM, user(q)], "ability": "math", "extra_info": {"index": i},
                       "reward_model": {"style": "rule", "ground_truth": str(i)}}, [SYSTEM]),
        (lambda i, q: {"prompt": [user(q)], "solution": f"\\boxed{{{i}}}"}, []),
        (lambda i, q: {"prompt": q, "answer": i}, []),
        (lambda i, q: {"system_prompt": "Be brief.", "prompt": q, "answer": i}, [SYSTEM]),
        (lambda i, q: {"prompt": q, "solution": str(i)}, []),
        (lambda i, q: {"messages": [SYSTEM, user("Hi"), {"role": "assistant", "content": "Yes?"}, user(q)], "answer": str(i)},
         [SYSTEM, user("Hi"), {"role": "assistant", "content": "Yes?"}]),
        (lambda i, q: {"messages": [user(q), {"role": "assistant", "content": f"So it is\n\\boxed{{{i}}}."}]}, []),
        (lambda i, q: {"conversations": [{"from": "human", "value": q}], "answer": [str(i)]}, []),
        (lambda i, q: {"prompt": json.dumps([SYSTEM, user(q)]), "ground_truth": str(i)}, [SYSTEM]),
        (lambda i, q: {"prompt": [{"role": "user", "content": [{"type": "text", "text": q}]}], "answer": str(i)}, []),
        (lambda i, q: {"responses_create_params": {"input": [user(q)]}, "expected_answer": str(i)}, []),
        (lambda i, q: {"question": q, "answer": f"{i} + 0 = {i}\n#### {i}"}, []),
        (lambda i, q: {"input": q, "output": f"$\\boxed{{{i}}}$"}, []),
        (lambda i, q: {"instruction": q, "input": "", "output": f"$${i}$$"}, []),
        (lambda i, q: {"Question": q, "Answer": f'["{i}"]'}, []),
        (lambda i, q: {"prompt": json.dumps([user(q)]), "reward_model": json.dumps({"ground_truth": str(i)})}, []),
        (lambda i, q: {"messages": str([SYSTEM, user(q)]), "reward_model": str({"ground_truth": i})}, [SYSTEM]),
        (lambda i, q: {"prompt": f"[{SYSTEM}\n {user(q)}]", "ground_truth": f"['{i}']"}, [SYSTEM]),  # as NumPy prints
        (lambda i, q: {"prompt": [user(q)], "label": str(i)}, []),
        (lambda i, q: {"data": {"problem": q}, "info": {"answer": str(i)}}, []),
        (lambda i, q: {"problem": q, "solutions": [f"We add.\nIt is \\boxed{{{i}}}.", "Or count."]}, []),
        (lambda i, q: {"question": q, "answer": f"We add.\nIt is {i}, as 3 says.", "final_answer": [str(i), str(i)]}, []),
        (lambda i, q: {"instruction": q, "input": None, "output": f"We add.\nNo, \\boxed{{9}}.\nIt is \\boxed{{{i}}}."}, []),
        (lambda i, q: {"question" if i % 2 else "problem": q, "answer" if i % 2 else "gt_answer": str(i)}, []),
        (lambda i, q: {"messages": [user(q), {"role": "assistant", "ground_truth": {"value": str(i)}}]}, []),
        (lambda i, q: {"prompt": [user(q), {"role": "assistant", "content": "<think>\n"}], "answer": f"The answer is {i}."}, []),
        (lambda i, q: {"Problem Statement": q, "Final Answer": i}, []),
        (lambda i, q: {"userPrompt": q, "ground-truth": str(i)}, []),
        (lambda i, q: {"problem": q, "ground_truth_solution": f"We add 3.\nIt is \\boxed{{{i}}}."}, []),
        (lambda i, q: {"input": q, "output": "We add 3.\nIt is \\boxed{9}.", "gts": str(i), "score": 0.0}, []),
        (lambda i, q: {"question": q, "solution": f"We add 3.\nThen we look.\n**Final Answer**: ${i}$"}, []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_in_the_schemas_of_trainers_are_read(tmp_path: Path, schema: Any, before: list[Any], kind: str) -> None:
    made = [schema(i, q) for i, q in enumerate(ASKED)]
    path = tmp_path / f"my.{kind}"
    if kind == "parquet":
        pd.DataFrame(made).to_parquet(path)  # nested values come back from it as lists and structures
    else:
        write_jsonl(path, made)
    data = read([path])
    assert [s.prompt for s in data.samples] == ASKED and [s.answer for s in data.samples] == [str(i) for i in range(12)]
    assert data.samples[3].messages == [*before, user(ASKED[3])] and data.plannable.all() and data.ids[0] == "row-000001"
    assert any("ids are row numbers" in note for note in data.notes)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ([{"role": "system", "content": "a"}], "no message of the user"), ([1, 2], "not of chat messages"),
        ([{"role": "user", "content": [{"type": "image"}]}], "not text alone"), ([], "no message of the user"),
        ('[{"role": "system", "content": "a"}]', "no message of the user"),
    ],
)  # fmt: skip
def test_a_chat_without_a_question_is_named(tmp_path: Path, value: Any, part: str) -> None:
    with pytest.raises(DataError, match=part):
        read([write_jsonl(tmp_path / "my.jsonl", [{"prompt": user("a")["content"]}, {"prompt": value}])])


def test_folders_patterns_shards_arrow_and_zstd_are_read_in_name_order(tmp_path: Path) -> None:
    made, folder = records(12), tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    for i in reversed(range(4)):
        pd.DataFrame(made[3 * i : 3 * i + 3]).to_parquet(folder / f"train-{i:05d}-of-00004.parquet")
    (folder / "dataset_info.json").write_text("{}")
    ids = [row["id"] for row in made]
    for place in (tmp_path / "set", folder, folder / "train-*.parquet"):
        found = read([str(place)])
        assert found.ids == ids and found.where[4].endswith("train-00001-of-00004.parquet, row 2")
    (folder / "train-00002-of-00004.parquet").unlink()
    assert (
        "train-00002-of-00004.parquet is missing" in fails(str(folder))
        and read([folder / "train-00000-of-00004.parquet"]).read == 3
    )
    table = pa.Table.from_pylist(made)
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pa.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as sink:
        sink.write("\n".join(map(json.dumps, made)).encode())
    assert read([tmp_path / "a.arrow"]).ids == read([tmp_path / "a.jsonl.zst"]).ids == ids
    assert "a pattern without a file" in fails(str(tmp_path / "none-*.parquet"))
    write_jsonl(folder / "test-00000-of-00001.jsonl", records(3))
    (folder / "train-00000-of-00004.parquet").rename(folder / "train.parquet")
    for name in ("train-00001-of-00004.parquet", "train-00003-of-00004.parquet"):
        (folder / name).unlink()
    assert "holds the splits test, train; name one with --split" in fails(str(folder))
    assert read([Source.parse(str(tmp_path / "set"), "train")]).ids == ids[:3]
    assert "holds the splits test, train" in fails(Source.parse(str(folder), "dev"))


def test_documents_of_chats_of_columns_and_of_rows_by_id_are_read(tmp_path: Path) -> None:
    answers = [f"Answer: {i}" for i in range(12)]
    chats = [[user(q), {"role": "assistant", "content": a}] for q, a in zip(ASKED, answers, strict=True)]
    by_id = {f"q-{i}": {"problem": q, "answer": a} for i, (q, a) in enumerate(zip(ASKED, answers, strict=True))}
    told = [{"level": i} for i in range(12)]
    for value in (chats, {"problem": ASKED, "answer": answers, "extra_info": told}, {"problem": ASKED, "answer": answers}, by_id):
        (tmp_path / "my.json").write_text(json.dumps(value))
        assert [s.prompt for s in read([tmp_path / "my.json"]).samples] == ASKED
    assert read([tmp_path / "my.json"]).ids[3] == "q-3"
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, chats)))
    assert [s.answer for s in read([tmp_path / "my.jsonl"]).samples] == [str(i) for i in range(12)]


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"instruction": "Simplify.", "input": "2/4", "output": "1/2"}, "Simplify.\n2/4"),
        ({"Body": "I have 2 pens.", "Question": "How many?", "Answer": 2}, "I have 2 pens. How many?"),
        ({"question": "1 + 1?", "choices": [2, 3], "answer": "A"}, "1 + 1?\nA. 2\nB. 3"),
        ({"question": "1 + 1?", "options": ["A) 2", "B) 3"], "answer": "(A)"}, "1 + 1?\nA) 2\nB) 3"),
        ({"question_stem": "1 + 1?", "choices": {"text": [2, 3], "label": ["A", "B"]}, "answerKey": "A"}, "1 + 1?\nA. 2\nB. 3"),
        ({"question": "1 + 1? (A) 2 (B) 3", "options": {"A": 2, "B": 3}, "answer": "A"}, "1 + 1? (A) 2 (B) 3"),
        ({"question": "1 + 1?", "options": {"A": 2, "B": 3}, "answer": "2"}, "1 + 1?"),
        ({"question": "1 + 1?", "choices": {"text": [2, 3], "label": ["1", "2"]}, "answerKey": "1"}, "1 + 1?\n1. 2\n2. 3"),
        ({"question": "1 + 1?", "A": 2, "B": 3, "answer": "A"}, "1 + 1?\nA. 2\nB. 3"),
        ({"question": "1 + 1?", "opa": 3, "opb": 2, "cop": 0}, "1 + 1?\nA. 3\nB. 2"),
        ({"Problem": "1 + 1?", "options": "a ) 2 , b ) 3", "correct": "a"}, "1 + 1?\na ) 2 , b ) 3"),
        ({"context": "I have 2.", "query": "How many?", "options": [2, 3], "cop": 0}, "I have 2.\nHow many?\nA. 2\nB. 3"),
        ({"body": "I have 2 pens.", "question": "How many?", "answer": "2"}, "I have 2 pens. How many?"),
        ({"Body": "I have.", "Question": "I have. How many?", "Answer": "2", "distractor1": "3"}, "I have. How many?"),
    ],
)
def test_a_question_in_several_fields_is_read_whole_and_told(tmp_path: Path, row: dict[str, Any], question: str) -> None:
    data = read([write_jsonl(tmp_path / "my.jsonl", [row])])
    assert data.samples[0].prompt == question
    assert any(note.startswith("1 row whose") for note in data.notes) == ("(B)" not in question)


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (["1", "2"], "unverifiable", "'answer' is a list of 2, where one value is read"), ({"a": 1}, "unverifiable", "is a dict"),
        ("We add 1.\nThe rest follows.", "no answer", "'answer' is a worked text that marks no answer"),
        ("proof", "no answer", "no reward could be computed"),
    ],
)  # fmt: skip
def test_rows_whose_answer_is_none_are_set_aside(tmp_path: Path, answer: Any, status: str, reason: str) -> None:
    data = read([write_jsonl(tmp_path / "my.jsonl", changed(answer=answer))])
    assert [(row.id, row.status) for row in data.aside] == [("p-2", status)] and reason in data.aside[0].reason


def test_ids_that_repeat_across_files_are_written_with_their_file_and_null_ones_are_row_numbers(tmp_path: Path) -> None:
    for name in ("math_train", "gsm_train", "math_test"):
        write_jsonl(tmp_path / f"{name}.jsonl", [row | {"id": float(i)} for i, row in enumerate(records(3))])
    assert "holds the splits test, train" in fails(str(tmp_path))
    data = read([Source.parse(str(tmp_path), "train")])
    assert data.ids[:4] == [f"gsm_train.jsonl:{i}" for i in range(3)] + ["math_train.jsonl:0"]
    assert any("ids repeat across files" in note for note in data.notes)
    assert read([write_jsonl(tmp_path / "my.jsonl", [row | {"id": None} for row in records(3)])]).ids[0] == "row-000001"
    few = [records(1)[0], *({"question": question} for question in ASKED)]
    assert read([write_jsonl(tmp_path / "few.jsonl", few)]).ids[:2] == ["row-000001", "row-000002"]
    assert Source.parse("https://huggingface.co/datasets/owner/name").place == "owner/name"


def test_odd_values_of_parquet_become_text_or_are_named(tmp_path: Path) -> None:
    answers = {"list": ["8"], "decimal": decimal.Decimal("8.00"), "bytes": b"8", "int": 8, "float": 8.0}
    for name, value in answers.items():
        pq.write_table(pa.table({"question": ASKED, "answer": [value] * 12}), tmp_path / f"{name}.parquet")
        assert {s.answer for s in read([tmp_path / f"{name}.parquet"]).samples} == {"8"}, name
    twice = pa.Table.from_arrays([pa.array(ASKED)] * 2, names=["question", "question"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    assert "twice.parquet: the column 'question' occurs twice" in fails(str(tmp_path / "twice.parquet"))
    pq.write_table(pa.table({"question": [question.encode() for question in ASKED]}), tmp_path / "coded.parquet")
    assert [sample.prompt for sample in read([tmp_path / "coded.parquet"]).samples] == ASKED
    pq.write_table(pa.table({"question": [b"caf\xe9"] * 12}), tmp_path / "latin.parquet")
    with pytest.raises(DataError, match="row 1: field 'question' holds half a character, or no UTF-8, at place 4"):
        read([tmp_path / "latin.parquet"])
    sink, table = pa.BufferOutputStream(), pa.table({"question": ["a"] * 12})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    whole, places = sink.getvalue().to_pybytes(), np.arange(13, dtype="<i4")
    (tmp_path / "far.arrow").write_bytes(whole.replace(places.tobytes(), (places * 10**8).tobytes()))
    assert "far.arrow: cannot be read as Arrow" in fails(str(tmp_path / "far.arrow"))


def test_a_worked_solution_is_told_from_an_answer_called_solution(tmp_path: Path) -> None:
    made = [row | {"solution": f"We add.\nIt is $\\boxed{{{row['answer']}}}$."} for row in records(12)]
    data = read([write_jsonl(tmp_path / "my.jsonl", made)])
    assert data.samples[3].steps == ("We add.", "It is $\\boxed{3}$.") and data.samples[3].solved
    for row in made:
        row["solution"] = f"\\boxed{{{row['answer']}}}"
    assert not any(s.solved for s in read([write_jsonl(tmp_path / "my.jsonl", made)]).samples)
    long = "x +\n" * 40 + "1"
    data = read([write_jsonl(tmp_path / "my.jsonl", [{"prompt": q, "solution": f"${long}$"} for q in ASKED])])
    assert {(s.answer, s.solved) for s in data.samples} == {(long, False)}, "dollars mark an answer at any length"


def test_labels_as_text_and_fields_inside_objects(tmp_path: Path) -> None:
    made = [{"problem": q, "level": f"Level {i % 5}", "extra_info": {"hard": i, "id": f"x{i}"}} for i, q in enumerate(ASKED)]
    path = write_jsonl(tmp_path / "my.jsonl", made)
    assert read([path], LABELLED).labels.tolist() == [i % 5 for i in range(12)]
    made[2] |= {"level": [0, 1, 1.0, True]}
    made[3] |= {"level": "7/8"}
    made[4] |= {"level": "Level six"}
    made[5] |= {"level": "37.5%"}
    made[10] |= {"level": "[True, 0, 1.0, 0]"}
    for row, unknown in zip(made[6:], ("Level ?", "n/a", math.nan, "None"), strict=False):
        row |= {"level": unknown}
    data = read([write_jsonl(tmp_path / "odd.jsonl", made)], LABELLED, skip_bad_rows=True)
    np.testing.assert_array_equal(data.labels, [0, 1, 0.75, 0.875, np.nan, 0.375, *[np.nan] * 4, 0.5, 1])
    assert any(note.startswith("1 label not read because of --skip-bad-rows: ") and "line 5" in note for note in data.notes)
    data = read([path], Fields(labels="extra_info.hard"))
    assert data.labels[7] == 7 and data.ids[7] == "x7" and any("'problem' was taken" in note for note in data.notes)
    folded = [{"question": q, "extra_info": json.dumps({"hard": i, "sound": i > 3})} for i, q in enumerate(ASKED)]
    pd.DataFrame(folded).to_csv(tmp_path / "folded.csv")
    data = read([tmp_path / "folded.csv"], Fields(labels="extra_info.hard", quality="extra_info.sound"))
    assert data.labels.tolist() == list(range(12)) and data.quality.tolist() == [0] * 4 + [1] * 8, "objects as JSON text"


# Files of labelled problems.


def test_labels_are_read_and_unknown_ones_counted(tmp_path: Path) -> None:
    rows = records(3)
    for row, level, subject, valid in zip(rows, (2, -1, 5), ("a", "", "b"), ("No", "true", True), strict=True):
        row |= {"level": level, "subject": subject, "valid": valid, "solution": ""}
    rows[0] |= {"solution": "one\ntwo", "pass_rate": 0.25}
    data = load_labelled(Path(write_jsonl(tmp_path / "x.jsonl", rows)))
    assert data.name == "x" and len(data) == 3
    assert data.has_label("level").tolist() == [True, False, True]
    assert data.has_label("subject").tolist() == [True, False, True]
    assert data.labels["valid"].tolist() == [0.0, 1.0, 1.0]
    assert data.samples[0].steps == ("one", "two") and not data.samples[1].solved and data.samples[1].solution == ""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q"}, "line 3: field 'id' is missing"),
        ({"id": "b", "question": "q", "pass_rate": 40}, "line 3: field 'pass_rate' is 40, not a share"),
        ({"id": "b", "question": "q", "valid": "perhaps"}, "line 3: field 'valid' is 'perhaps'; write true or false"),
        ({"id": "b", "question": "q", "meta": 3}, "line 3: field 'meta' is no object"),
    ],
)
def test_bad_rows_of_labelled_files_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(records(1)[0]) + "\n\n" + json.dumps(row), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_labelled(tmp_path / "x.jsonl")


# The readers, on rows of the published schemas.

ROWS: dict[str, dict[str, Any]] = {
    "deepmath": build.deepmath_rows(1)[0], "numinamath": build.numina_rows(10)[9] | {"solution_is_valid": "No"},
    "deepscaler": build.deepscaler_rows(1)[0], **{name: build.benchmark_rows(name)[0] for name in PAPER.eval_sets},
    "prm800k": {
        "question": {"problem": "2+2?", "ground_truth_answer": "4", "pre_generated_answer": "5"},
        "label": {"finish_reason": "found_error", "steps": [
            {"completions": [{"text": "Add.", "rating": 0}], "human_completion": None, "chosen_completion": 0},
            {"completions": [{"text": "2+2=5", "rating": -1}, {"text": "2+2=4", "rating": 1}], "human_completion": None,
             "chosen_completion": None},
        ]},
    },
}  # fmt: skip
ROWS["amc23"]["answer"] = 27.0
ROWS["gsm8k"]["answer"] = "She sells 9.\n9 * 2000 = <<9*2000=18000>>18000.\n#### 18,000"
ROWS["olympiadbench"]["final_answer"] = ["2", "3"]


def test_rows_become_these_samples() -> None:
    assert {*SCHEMAS, "prm800k"} == set(SETS) == set(ROWS)
    deepmath = Sample("deepmath-7", "Divide the sum of $a = 3$ and $b = 5$ by 3. What remains?",
                      ("3 + 5 = 8.", "So \\boxed{2}."), "2", "Mathematics -> Algebra -> Sums", 1.0, "deepmath")  # fmt: skip
    assert read_row("deepmath", ROWS["deepmath"], 7) == deepmath
    math500 = Sample("math500-t/0", "What remains of 7 plus 7 of math500 by 3?", ("Add.",), "2", "Algebra", 2.0, "math500")
    assert read_row("math500", ROWS["math500"], 7) == math500
    prm = Sample("prm800k-7", "2+2?", ("Add.", "2+2=5"), "5", source="prm800k", flaw="found_error", step_labels=(0, -1))
    assert str(read_row("prm800k", ROWS["prm800k"], 7)) == str(prm)  # a difficulty of NaN equals no other
    solved = {"numinamath": ("", True), "deepscaler": ("7", False), "aime24": ("1", True), "amc23": ("27", False),
              "gsm8k": ("18000", True), "minerva": ("2", False), "olympiadbench": ("2, 3", True)}  # fmt: skip
    found = {name: read_row(name, ROWS[name], 0) for name in solved}
    assert {name: (sample.answer, sample.solved) for name, sample in found.items()} == solved
    row = {**ROWS["numinamath"], "solution_is_valid": "Incomplete", "answer": "42"}
    assert found["numinamath"].flaw == "solution" and read_row("numinamath", row, 0).flaw == ""


def test_prm800k_follows_the_chosen_path() -> None:
    steps = [
        {"completions": [{"text": "wrong", "rating": -1}], "human_completion": {"text": "Mine.", "rating": None},
         "chosen_completion": None},
        {"completions": [{"text": "no", "rating": -1}, {"text": "So 4.\n\n# Answer\n\n4", "rating": 1}], "chosen_completion": 1},
    ]  # fmt: skip
    row = {"question": {"problem": "2+2?"}, "label": {"steps": steps, "finish_reason": "solution"}}
    sample = read_row("prm800k", row, 0)
    assert (sample.steps, sample.answer, sample.step_labels, sample.flaw) == (("Mine.", "So 4."), "4", (1, 1), "")
    damaged = {**row, "label": {"steps": [{"completions": [], "chosen_completion": 2}], "finish_reason": "solution"}}
    with pytest.raises(DataError, match="prm800k row 3: chosen_completion 2"):
        read_row("prm800k", damaged, 3)
    given_up = read_row("prm800k", {**row, "label": {"steps": [], "finish_reason": "give_up"}}, 0)
    assert given_up.flaw == "give_up" and not given_up.solved


@pytest.mark.parametrize("name", sorted(ROWS))
def test_row_of_another_schema_is_named(name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} row 5: .*"):
        read_row(name, {"text": "something else"}, 5)


def test_numbers_that_are_none_are_rejected_or_unknown() -> None:
    assert math.isnan(read_row("deepmath", {**ROWS["deepmath"], "difficulty": -1}, 0).difficulty)
    assert read_row("math500", {**ROWS["math500"], "level": "Level 3"}, 0).difficulty == 3.0
    with pytest.raises(DataError, match="'difficulty' is 'True', a bool"):
        read_row("deepmath", {**ROWS["deepmath"], "difficulty": True}, 0)
