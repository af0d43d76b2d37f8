"""A plan of one's own data: what is read, no row lost or doubled, nothing half-written, a report of text, not markup."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import saerl_lib
from saerl_lib import cli, own
from saerl_lib.artifacts import ArtifactError, imported_names
from saerl_lib.data.sample import DataError
from saerl_lib.encode import stages
from saerl_lib.encode.store import load_features
from saerl_lib.own import Arranged, OwnConfig, Planned, arrange, load_data, plan_own_data, represent_text
from saerl_lib.paths import ROOT
from saerl_lib.plan.batch_plan import BatchPlan, read_plan
from saerl_lib.report.page import _terms, caveats, expectation, largest_fall, score_table
from saerl_lib.settings import Fields
from saerl_lib.train.policy import FOLDER
from tests.real_files import rows, write_jsonl
from tests.stand_ins import untrained_sae

SMALL = OwnConfig(prompts_per_step=4, clusters=3)
LABELLED = replace(SMALL, fields=Fields(labels="level"))


def make(
    tmp_path: Path, records: list[dict[str, Any]] | None = None, config: OwnConfig = LABELLED, name: str = "out", **options: Any
) -> Path:
    source = write_jsonl(tmp_path / "my.jsonl", rows() if records is None else records)
    return plan_own_data(source, tmp_path / name, config, **options).folder


def arranged(tmp_path: Path, records: list[dict[str, Any]], config: OwnConfig = LABELLED) -> Arranged:
    """The plan of `records`, not written."""
    data = load_data(write_jsonl(tmp_path / "my.jsonl", records), config)
    return arrange(data, represent_text(data.samples, config.seed), config)


def told(found: Arranged) -> dict[str, str]:
    """Title -> text of the caveats."""
    return {c.title: c.text for c in caveats(found)}


# Settings and places.


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"reader": "model"}, "needs --layer and --sae"), ({"layer": 3}, "need a model"), ({"keep": 0.5}, "--quality"),
        ({"prompts_per_step": 1}, "at least 2"), ({"label_range": (5.0, 1.0)}, "--label-range"),
        ({"without_labels": "hash"}, "length or random"), ({"clusters": 0}, "clusters"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(change: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        OwnConfig(**change)


def test_equal_runs_give_equal_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    first, second = make(tmp_path, name="a"), make(tmp_path, name="b")
    for name in ("plan.parquet", "scores.parquet", "clusters.csv", "left_out.csv", "features.safetensors", "report.html"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    third = make(tmp_path, name="c", config=replace(LABELLED, seed=1))
    assert (first / "report.html").read_bytes() != (third / "report.html").read_bytes()


def test_an_earlier_plan_is_returned_kept_or_with_force_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = make(tmp_path)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert make(tmp_path) == out, "the same plan is returned as it is"
    with pytest.raises(DataError, match="--force"):
        make(tmp_path, config=replace(LABELLED, seed=4))
    with monkeypatch.context() as patch:
        patch.setattr("saerl_lib.report.page.page", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, force=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before, "a failure leaves it as it was"
    make(tmp_path, force=True, config=replace(LABELLED, seed=5))
    assert (out / "run.json").read_bytes() != before["run.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my.jsonl", "out"]


def test_a_place_that_is_no_plan_is_named_and_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="holds no earlier plan"):
        make(tmp_path, force=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"
    with pytest.raises(DataError, match="my.jsonl is no folder that can be written"):
        plan_own_data("absent.jsonl", tmp_path / "my.jsonl" / "a" / "out", LABELLED)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ArtifactError, match="is the folder that you are in"):
        plan_own_data(str(tmp_path / "my.jsonl"), Path("."), LABELLED)


# The plan.


def test_without_labels_it_sorts_by_a_stand_in_and_says_so(tmp_path: Path) -> None:
    by_length = arranged(tmp_path, rows(), SMALL)
    assert "a stand-in for difficulty" in told(by_length)["No labels"]
    scores = score_table(by_length)
    assert scores["difficulty"].isna().all()
    assert scores["reason"].str.contains(r"longer than [1-9]\d?% of its cluster|among the shortest").all()
    at_random = arranged(tmp_path, rows(), replace(SMALL, without_labels="random"))
    assert "The order is random" in told(at_random)["No labels"]
    lengths = scores.set_index("id")["length"]
    for found, rises in ((by_length, True), (at_random, False)):
        stays = found.plan.table[found.plan.table["swapped_with"] < 0]
        inside = stays.groupby("step")["sample_id"].apply(lambda ids: lengths[ids].is_monotonic_increasing)
        assert inside.all() == rises


def test_labelled_and_unlabelled_rows_get_a_difficulty_and_a_reason(tmp_path: Path) -> None:
    records = [r | ({"level": None} if i % 2 else {}) for i, r in enumerate(rows(120))]
    found = arranged(tmp_path, records)
    scores = score_table(found).set_index("id")
    assert scores["difficulty"].notna().all() and scores["label"].isna().sum() == 60
    assert scores["low"].min() >= 1 and scores["high"].max() <= 5, "the labels' own scale"
    row = scores.loc[found.plan.ids[0]]
    parts = row["reason"].split("; ")
    assert re.match(r"step 0, slot 0: (full batch 1 of \d+ of its own cluster|among what filled no batch)", parts[0])
    assert parts[1] == "among the easiest of its cluster" and row["percentile"] == 0
    assert parts[-2].startswith(f"difficulty {row['difficulty']:.2f} (95% interval {row['low']:.2f} to ")
    assert re.fullmatch(rf"in cluster {row['cluster']}, farther from its centre than \d\d?% of it", parts[-1])
    doubted = scores["reason"].str.contains(": outside it, as about one label in 20 is")
    assert doubted.tolist() == ((scores["label"] < scores["low"]) | (scores["label"] > scores["high"])).tolist() and doubted.any()
    stays = scores[scores["step"].ge(0) & scores["swapped_with"].eq(-1)].sort_values("position")
    alike = stays[stays["reason"].str.contains(r"own cluster;.* rows of its cluster share this difficulty: number \d+ of")]
    assert len(alike) and alike.groupby(["cluster", "percentile"])["raw_difficulty"].is_monotonic_increasing.all()
    assert not stays["reason"].str.contains(r"than (?:0|100)%").any()
    assert "60 of 120 rows have a label; without one are p-1, p-3, p-5" in told(found)["How difficulty was read"]


def test_a_cluster_is_told_by_commands_of_latex_too_and_a_plan_by_its_largest_fall() -> None:
    terms = _terms([r"\frac{1}{2} of Apples", r"\frac{x}{3}", "a b"], np.array([0, 0, 1]))
    assert terms == {0: [r"\frac 100% (0%)", "apples 50% (0%)"], 1: []}
    table = pd.DataFrame({"step": [0, 0, 1, 1, 2, 2, 3, 3], "cluster": [0, 0, 1, 1, 0, 0, 0, 1], "swapped_with": -1,
                          "ranking_score": [1.0, 2.0, 6.0, 6.0, 3.0, 4.0, 0.0, 0.0]})  # fmt: skip
    falls = largest_fall(BatchPlan(table, "saerl", 2))  # the last step holds what filled no batch
    assert falls.to_numpy().tolist() == [[1, 1, 6.0], [2, 0, 3.5]] and largest_fall(BatchPlan(table[:4], "saerl", 2)).empty


def test_a_filter_keeps_the_best_and_clusters_are_those_of_the_planned_rows_alone(tmp_path: Path) -> None:
    records = [r | {"sound": i % 3 == 0 if i % 2 else int(i % 3 == 0)} for i, r in enumerate(rows(90))]
    config = replace(LABELLED, fields=Fields(labels="level", quality="sound"), keep=0.4)
    found = arranged(tmp_path, records, config)
    scores = score_table(found).groupby("status")["quality"]
    assert scores.size()["filtered"] == 54 and scores.max()["filtered"] <= scores.min()["planned"]
    planned = np.sort([found.data.ids.index(name) for name in found.plan.ids])
    alone = own.pool_clusters(found.found.phi[planned], own.properties_of(len(planned), config), config.seed)
    np.testing.assert_array_equal(alone.centroids, found.clusters.centroids)
    with pytest.raises(ValueError, match="less than a batch of 4: raise --keep"):
        arranged(tmp_path, records, replace(config, keep=0.02))


@pytest.mark.parametrize(
    ("change", "title"),
    [
        (lambda i: {"level": 1 + i % 3 if i < 10 else None}, "Too few labels"),
        (lambda i: {"level": 2}, "All labels are equal"),
        (lambda i: {}, "Few labels"),
        (lambda i: {"question": "Compute " + " ".join(["and"] * (i % 30 + 1)), "solution": None, "level": i % 30},
         "The probe is no better than length"),
        (lambda i: {"level": int(np.random.default_rng(3).permutation(60)[i])},
         "The probe is not shown to be better than length"),
        (lambda i: {"answer": None if i % 3 else "1"}, "40 of 60 rows not planned: no answer"),
        (lambda i: {"question": f"Add {i} and {i + 1}." if i < 54 else f"\\zeta({i})\\" * 9, "solution": None},
         "Dominant cluster"),
        (lambda i: {"question": f"Add {i // 2}."}, "30 repeated questions"),
        (lambda i: {"question": f"Add {i // 2}."}, "30 questions with different answers"),
        (lambda i: {"question": "1+1", "solution": None}, "One cluster"),
    ],
)  # fmt: skip
def test_what_makes_a_result_doubtful_is_a_warning(tmp_path: Path, change: Callable[[int], dict[str, Any]], title: str) -> None:
    found = caveats(arranged(tmp_path, [r | change(i) for i, r in enumerate(rows())]))
    assert title in [c.title for c in found if c.kind == "warning"]
    assert [c.kind for c in found] == sorted((c.kind for c in found), reverse=True)  # warnings first


def test_rows_that_no_trainer_could_use_are_never_planned_and_each_has_a_reason(tmp_path: Path) -> None:
    records = rows(64)
    for i in (3, 4):
        records[i] |= {"answer": None, "sound": False}
    records[5]["answer"] = "?"
    records[6]["question"] = "Count the words: " + "many " * 200
    records[8]["question"] = records[7]["question"].upper()
    for i, answer in ((7, r"\frac{1}{3}"), (8, r"\frac13"), (9, r"\$5")):
        records[i]["answer"] = answer
    records[9]["question"] += "\0"
    records += [{"id": "bro\rken", "question": 5}]
    for i in range(10, 60):
        records[i]["sound"] = i % 2 == 0
    config = replace(LABELLED, fields=Fields(labels="level", quality="sound"), policy=str(FOLDER), max_prompt_tokens=100,
                     skip_bad_rows=True)  # fmt: skip
    source = write_jsonl(tmp_path / "my.jsonl", records)
    done = plan_own_data(source, tmp_path / "out", config)
    assert done.left_out == {"malformed": 1, "no answer": 2, "too long": 1, "unverifiable": 1}
    assert done.read == 65 == done.planned + sum(done.left_out.values()) == done.planned + len(done.rows_left_out)
    reasons = done.rows_left_out.set_index("id")["reason"]
    assert "labelled flawed and without an answer: it trains the quality filter" in reasons["p-3"]
    assert "tokens, above --max-prompt-tokens 100" in reasons["p-6"] and "'?' is not read by the checker" in reasons["p-5"]
    record = json.loads((done.folder / "run.json").read_text())
    told = {c["title"]: c["text"] for c in record["caveats"]}
    assert not any("different answers" in title for title in told), "they are written in two ways"
    assert "such as p-9 (\\$5 as 5)." in told["1 answer that our checker reads in a plainer form"]
    assert "p-7 and p-8" in told["1 repeated question"] and "first p-9" in told["1 row with NUL characters"]
    assert "52 labels" in told["How quality was read"], "flawed rows without an answer train the filter"
    planned = set(read_plan(done.folder / "plan.parquet").ids)
    assert not planned & {"p-3", "p-4", "p-5", "p-6", "broken"}
    kept = load_data(source, replace(config, keep_unverifiable=True))
    assert "p-5" not in {row.id for row in kept.aside} and any(
        "1 answer kept that the checker cannot read" in n for n in kept.notes
    )


def test_one_call_plans_shows_explains_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    records = [r | {"question": f"<b>{r['question']}</b>"} for r in rows(62)]
    write_jsonl(tmp_path / "my.jsonl", records)
    plan = saerl_lib.plan("my.jsonl", labels="level", prompts_per_step=4, reader=None)
    assert plan.folder == Path("my_plan") and (plan.read, plan.planned, plan.steps) == (62, 60, 15)
    shown = plan._repr_html_()
    assert "&lt;b&gt;" in shown and "<b>Add" not in shown and "data:image/png;base64," in shown and "left over" in shown
    row = plan.scores.iloc[17]
    assert plan.why(row["id"]).startswith(f"{row['id']} ({row['where']})\n  step {row['step']}, slot {row['slot']}") and plan.why(
        "line 18"
    ) == plan.why(row["id"])
    assert "left over: 62 rows to plan are 15 batches of 4 and 2 more" in plan.why(plan.rows_left_out["id"][0])
    write_jsonl(tmp_path / "bare.jsonl", [{"question": r["question"], "answer": "1"} for r in rows(20)])
    bare = saerl_lib.plan("bare.jsonl", prompts_per_step=4, reader=None)
    assert bare.why("row-17") == bare.why("line 17") and bare.why("row-17").startswith("row-000017 (line 17)")
    with pytest.raises(DataError, match="no row of my_plan; did you mean p-17"):
        plan.why("p-17x")
    assert "train.parquet" in plan.export("verl", "out") and Planned.open("my_plan") == plan
    assert saerl_lib.plan("my.jsonl", labels="level", prompts_per_step=4, reader=None) == plan
    assert saerl_lib.plan("my.jsonl", labels="level", prompts_per_step=8, reader=None).steps == 7, (
        "its own default folder is replaced"
    )
    with pytest.raises(DataError, match="holds no finished plan"):
        Planned.open("out")


def test_what_to_expect_is_said_only_where_the_replay_curve_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = arranged(tmp_path, rows(120))
    monkeypatch.setattr("saerl_lib.report.page.REPLAY", tmp_path / "replay.csv")
    assert expectation(found) is None
    rows_of_replay = [("simulated", "-", 1.0, 0.5, 0.25), ("simulated", "-", -1.0, 0.0, 0.25), ("simulated", "-", 1.0, 0.9, 0.5),
                      ("features", "sae_all", 0.4, 0.1, 0.25)]  # fmt: skip
    columns = ["form", "features", "spearman", "silent_groups_saved", "share"]
    pd.DataFrame(rows_of_replay, columns=columns).to_csv(tmp_path / "replay.csv", index=False)
    assert expectation(found) == pytest.approx(((1 + found.difficulty.skill) / 4, 0.4, 0.1))
    assert expectation(replace(found, difficulty=None)) is None


FUZZ = (b"{", b"]", b'"', b",", b"\xff\xfe", b"\0", b"\n", b"NaN", b"1e999", b"\xe2\x80\xa8", b"\\ud800", b'["a"]', b"[" * 300,
        b"9" * 400, b"\x1f\x8b", b"\r", b"\\")  # fmt: skip
ODD = (None, 5, -1.5, True, "", "x" * 3000, ["8"], [1, 2], {"a": 1}, [{"role": "user", "content": "Hi?"}], "{'a': {[]: 1}}", "\0",
       "９", "?", "p-1", 10**400)  # fmt: skip


def fuzzed(seed: int, folder: Path) -> Path:
    """A file of a random kind with random faults, some of them none."""
    draw = np.random.default_rng(seed)
    made = rows(int(draw.integers(0, 30)))
    for _ in range(int(draw.integers(0, 12)) if made else 0):
        field = str(draw.choice(["id", "question", "answer", "solution", "level", "reward_model"]))
        made[draw.integers(len(made))][field] = ODD[draw.integers(len(ODD))]
    kind = str(draw.choice(["jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz", "jsonl.zst", "arrow"]))
    data = draw.choice(["\n".join(map(json.dumps, made)), json.dumps({"data": made}, indent=2)]).encode()
    path, table = folder / f"f{seed}.{kind}", pd.DataFrame(made, dtype=object)
    if kind in ("csv", "tsv"):
        data = table.to_csv(index=False, sep="\t" if kind == "tsv" else ",").encode()
    elif kind == "parquet":
        data = table.astype(str).to_parquet()
    data = gzip.compress(data) if kind.endswith("gz") and draw.random() < 0.8 else data
    for _ in range(int(draw.integers(0, 4))):
        at = int(draw.integers(0, len(data) + 1))
        data = data[:at] + FUZZ[draw.integers(len(FUZZ))] + data[at + int(draw.integers(0, 9)) :]
    path.write_bytes(data)
    return path


@pytest.mark.filterwarnings("error")
def test_a_fuzzed_file_is_planned_or_refused_with_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(40):
        out, path = tmp_path / f"out{seed}", fuzzed(seed, tmp_path)
        skip = ["--skip-bad-rows"] if seed % 3 else []
        words = ["plan", "--data", str(path), "--reader", "none", "--prompts-per-step", "4", "--clusters", "2"]
        code = cli.main([*words, "--out", str(out), *skip])
        said, error = capsys.readouterr()
        assert code in (0, 1) and "Traceback" not in said + error, seed
        if code:
            assert error.startswith("error: ") and path.name in error and len(error) < 3000 and not out.exists(), seed
        else:  # no row is lost or doubled
            last, made, ids = json.loads(said.splitlines()[-1]), Planned.open(out), read_plan(out / "plan.parquet").ids
            scores, rest = made.scores, made.rows_left_out
            assert last["read"] == last["planned"] + sum(last["left_out"].values()) == last["planned"] + len(rest), seed
            planned = scores[scores["status"] == "planned"].sort_values("position")
            assert planned["id"].tolist() == ids and len(set(ids)) == len(ids) == last["steps"] * 4, seed
            assert len({*planned["where"], *rest["where"]}) == last["read"] and rest["reason"].notna().all(), seed
            assert (scores["status"] == "left over").sum() < 4, seed


# The command.


def test_the_command_plans_and_diff_still_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_jsonl(tmp_path / "my.jsonl", rows(70))
    common = ["plan", "--data", source, "--reader", "none", "--prompts-per-step", "8", "--clusters", "2"]
    assert cli.main([*common, "--labels", "level", "--label-range", "1", "5", "--out", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert json.loads(out[-1]) | {"seconds": 0} == {
        "read": 70, "planned": 64, "left_out": {"left over": 6}, "steps": 8, "seconds": 0
    }  # fmt: skip
    assert any(line.startswith("warning: Few labels") for line in out) and "not planned, left over: 6 (left_out.csv)" in out
    chosen = json.loads((tmp_path / "a" / "run.json").read_text())["settings"]
    assert (chosen["clusters"], chosen["fields"]["labels"], chosen["label_range"]) == (2, "level", [1.0, 5.0])
    assert cli.main([*common, "--without-labels", "random", "--out", str(tmp_path / "b")]) == 0
    assert cli.main(["plan", "diff", str(tmp_path / "a" / "plan.parquet"), str(tmp_path / "b" / "plan.parquet")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n"] == 64


def test_what_is_imported_waits_until_it_is_needed(tmp_path: Path) -> None:
    """The library alone, help, and a first look without a model."""
    words = ["plan", "--data", write_jsonl(tmp_path / "my.jsonl", rows()), "--reader", "none", "--out", str(tmp_path / "out")]
    code = """import sys, saerl_lib
def told(*names): print("loaded", [name for name in names if name in sys.modules])
told("numpy", "pandas", "pyarrow", "torch"); assert callable(saerl_lib.plan)
from saerl_lib.cli import main
main(["plan", "--help"]); told("torch", "sklearn", "transformers", "scipy", "matplotlib")
assert main(sys.argv[1:]) == 0; told("torch", "transformers", "sae_lens")"""
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)
    assert [line for line in done.stdout.splitlines() if line.startswith("loaded")] == ["loaded []"] * 3, done.stderr
    assert imported_names(Path(saerl_lib.__file__).read_text()) == set(), "or every stage would depend on own data"


# What is read; a model and its SAE.


@pytest.mark.parametrize(
    ("records", "config", "part"),
    [
        (rows(3), LABELLED, "3 of 3 rows are usable, at least 10 are needed; add rows\\Z"),
        (rows(20), replace(LABELLED, prompts_per_step=32), "20 of 20 rows are usable.* lower --prompts-per-step"),
        (rows(20, pass_rate=75), replace(SMALL, fields=Fields(labels="pass_rate")), "outside 0 to 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_named_and_leaves_nothing(
    tmp_path: Path, records: list[dict[str, Any]], config: OwnConfig, part: str
) -> None:
    with pytest.raises(DataError, match=part):
        make(tmp_path, records, config)
    assert [p.name for p in tmp_path.iterdir()] == ["my.jsonl"]


@pytest.mark.parametrize(
    ("extra", "config", "label"),
    [
        ({"pass_rate": 0.75}, replace(SMALL, fields=Fields(labels="pass_rate")), 0.25),
        ({"extra": {"pass_rate": 0.75}}, replace(SMALL, fields=Fields(labels="extra.pass_rate")), 0.25),
        ({"level": 1}, replace(LABELLED, larger_is_easier=True), -1),
    ],
)  # fmt: skip
def test_labels_that_mean_easier_are_turned(tmp_path: Path, extra: dict[str, Any], config: OwnConfig, label: float) -> None:
    data = load_data(write_jsonl(tmp_path / "my.jsonl", [row | extra for row in rows(20)]), config)
    assert np.allclose(data.labels, label)


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_sae(tmp_path_factory.mktemp("sae"))


def test_a_model_and_its_sae_give_the_features_and_a_killed_call_goes_on(
    tmp_path: Path, sae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(LABELLED, reader=str(FOLDER), layer=3, sae=str(sae), retained_latents=12, max_tokens=60)
    records = rows(45)
    records[7]["solution"] = None
    records[8]["solution"] = "Very long. " * 80
    with monkeypatch.context() as patch:
        patch.setattr("saerl_lib.own.arrange", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, records, config)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.store", "my.jsonl"]
    reused: list[int] = []
    encode = stages.encode
    monkeypatch.setattr(stages, "encode", lambda *a, **k: (found := encode(*a, **k), reused.append(found[0].reused))[0])
    folder = make(tmp_path, records, config)
    assert reused == [1] and sorted(p.name for p in tmp_path.iterdir()) == ["my.jsonl", "out"]
    told = {c["title"]: c["text"] for c in json.loads((folder / "run.json").read_text())["caveats"]}
    assert "1 row cut" in told and "A first look" not in told and "The SAE does not fit this layer" in told
    assert "12 SAE latents of policy, layer 3" in told["What was read"]
    table = load_features(folder / "features.safetensors")
    assert table.z.shape == (45, 48) and not table.solved[7] and table.solved[0] and np.abs(table.z[0]).max() > 0
    assert pd.read_parquet(folder / "scores.parquet")["length"].max() == 60


def test_what_does_not_fit_is_named_and_leaves_nothing(
    tmp_path: Path, sae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path / "my.jsonl", rows(45))
    for name, good in (("reader", FOLDER), ("sae", sae)):
        bad = tmp_path / name
        shutil.copytree(good, bad)
        (weights,) = bad.glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:200])
        used = {"reader": FOLDER, "sae": sae} | {name: bad}
        options = ["--reader", str(used["reader"]), "--layer", "3", "--sae", str(used["sae"]), "--out", str(tmp_path / "out")]
        assert cli.main(["plan", "--data", source, *options]) == 1
        assert f"{bad}: its weights cannot be read" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my.jsonl", "reader", "sae"], "nothing half-written stays"
