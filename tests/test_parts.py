"""Encoding in parts: equal bytes whoever works, a finished part is kept, what is damaged, stale or lost is done again."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from joblib.externals.loky import get_reusable_executor
from killing import until

from saerl_lib import cli
from saerl_lib.artifacts import ArtifactError, file_sha256
from saerl_lib.config import ReaderConfig
from saerl_lib.data.sample import DataError, Sample
from saerl_lib.encode import stages
from saerl_lib.encode.models import open_reader, sample_spans
from saerl_lib.encode.stages import LOCK, encode, open_encoded
from saerl_lib.encode.store import load_features
from saerl_lib.train.policy import FOLDER
from tests.real_files import rows, write_jsonl
from tests.stand_ins import untrained_sae

SIZE = 16
"""Samples of a part: 70 samples are four parts and a short one."""


def samples(n: int = 70) -> list[Sample]:
    """n problems of unequal length, every fifth without a solution."""
    return [
        Sample(row["id"], row["question"], (f"Step one of {i}.", f"Then {'on ' * (i % 4)}so."), row["answer"],
               topic=row["subject"], solved=i % 5 > 0)
        for i, row in enumerate(rows(n))
    ]  # fmt: skip


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ReaderConfig:
    return ReaderConfig(str(FOLDER), 3, str(untrained_sae(tmp_path_factory.mktemp("sae"))))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, spec: ReaderConfig) -> Path:
    """What an undisturbed call in this process leaves."""
    out = tmp_path_factory.mktemp("reference") / "out"
    (done,) = encode({out: samples()}, spec, samples_per_part=SIZE, workers=1)
    assert (done.parts, done.reused, done.totals["samples"], done.totals["solved"]) == (5, 0, 70, 56)
    return out


@pytest.fixture
def out(tmp_path: Path, reference: Path) -> Path:
    """A copy of the reference."""
    return Path(shutil.copytree(reference, tmp_path / "out"))


def shard(number: int) -> str:
    return f"shard-{number:06d}.safetensors"


def again(out: Path, spec: ReaderConfig, rows: list[Sample] | None = None) -> int:
    """Encode once more in this process; returns the number of parts that were kept."""
    return encode({out: rows or samples()}, spec, samples_per_part=SIZE, workers=1)[0].reused


def same(folder: Path, reference: Path) -> None:
    """Equal names and equal bytes."""
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in reference.iterdir())
    assert [p.name for p in reference.iterdir() if p.read_bytes() != (folder / p.name).read_bytes()] == []


# What is stored.


def test_the_manifest_counts_what_the_store_holds(spec: ReaderConfig, reference: Path) -> None:
    store, manifest = open_encoded(reference)
    tokenizer, rows = open_reader(spec).tokenizer, samples()
    lengths = [len(sample_spans(s, tokenizer).ids) for s in rows]
    assert store.ids == tuple(s.id for s in rows) and store.values("tokens").tolist() == lengths
    assert manifest["totals"] == {
        "samples": 70, "tokens": sum(lengths), "truncated": 0, "solved": 56, "entries": store.blocks().nnz // 2
    }  # fmt: skip


# Finished, damaged, stale and missing parts.


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda out: (out / shard(1)).unlink(), 4), (lambda out: flip(out / shard(2)), 4),
        (lambda out: (out / "manifest.json").unlink(), 5), (lambda out: shutil.copy(out / shard(1), out / shard(2)), 4),
    ],
)  # fmt: skip
def test_what_is_not_whole_is_done_again(
    spec: ReaderConfig, out: Path, reference: Path, change: Callable[[Path], Any], kept: int
) -> None:
    change(out)
    with pytest.raises(ArtifactError, match="has not finished there|damaged or of another encoding"):
        open_encoded(out)
    assert again(out, spec) == kept
    same(out, reference)


def test_a_changed_row_costs_its_part_and_the_rest_is_left_as_it_is(
    tmp_path: Path, spec: ReaderConfig, out: Path, reference: Path
) -> None:
    times = {p: p.stat().st_mtime_ns for p in out.iterdir() if p.name != LOCK}
    shutil.copytree(spec.sae, tmp_path / "sae")
    assert again(out, replace(spec, sae=str(tmp_path / "sae"))) == 5, "where the SAE lies does not matter"
    assert {p: p.stat().st_mtime_ns for p in times} == times
    rows = samples()
    rows[3] = replace(rows[3], prompt=rows[3].prompt + " Say why.")
    assert again(out, spec, rows[: 3 * SIZE]) == 2
    assert [p.name for p in sorted(out.glob("shard-*"))] == [shard(i) for i in range(3)], "what is beyond the end goes"
    assert again(out, spec) == 2
    same(out, reference)


@pytest.mark.parametrize("change", [{"layer": 2}, {"max_tokens": 40}, {"tokens_per_batch": 4096}, {"bf16": True}, {"sae": ""}])
def test_other_settings_or_another_sae_make_every_part_stale(
    tmp_path: Path, spec: ReaderConfig, out: Path, reference: Path, change: dict[str, Any]
) -> None:
    if "sae" in change:
        change["sae"] = str(shutil.copytree(spec.sae, tmp_path / "sae"))
        (tmp_path / "sae" / "more.txt").write_text("other content")
    def opened() -> Any:
        raise RuntimeError("the model is opened")

    with pytest.raises(RuntimeError, match="the model is opened"):
        encode({out: samples()}, replace(spec, **change), samples_per_part=SIZE, workers=1, opened=opened)
    same(out, reference)


def test_bad_calls_are_refused(tmp_path: Path, spec: ReaderConfig) -> None:
    (tmp_path / "mine.txt").write_text("not of encode")
    for given, more, part in (
        ([], {}, "no sample"), (samples(), {}, "did not write"), (samples(), {"workers": 0}, "workers=0 must be at least 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=part):
            encode({tmp_path: given}, spec, **more)
    folder = tmp_path / "out"
    with pytest.raises(ValueError, match="choose 1 to 4"):
        encode({folder: samples()}, replace(spec, layer=9), workers=1)
    with (folder / LOCK).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match="another command encodes into it"):
            encode({folder: samples()}, spec)


# Processes of this machine, and Ray.


@pytest.mark.slow
def test_two_workers_one_of_them_killed_write_the_same_bytes(tmp_path: Path, spec: ReaderConfig, reference: Path) -> None:
    get_reusable_executor().shutdown(kill_workers=True)  # an idle worker of another test, killed, would keep its queue locked
    killed: list[int] = []

    def kill() -> None:
        until(multiprocessing.active_children)
        killed.append(multiprocessing.active_children()[0].pid)
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    two = {tmp_path / "out": samples(), tmp_path / "more": samples()[:20]}
    done = encode(two, spec, samples_per_part=SIZE, workers=2)
    killer.join()
    assert len(killed) == 1 and [one.totals["samples"] for one in done] == [70, 20]
    same(tmp_path / "out", reference)
    assert done[1].store.ids == done[0].store.ids[:20]
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(DataError, match="sample p-40: no prompt token is left"):
        encode({tmp_path / "out": [*samples()[:40], replace(samples()[40], prompt="")]}, spec, samples_per_part=SIZE, workers=1)
    assert not (tmp_path / "out" / "manifest.json").exists()


class StandIn(types.ModuleType):
    """As much of ray as is used, in this process: a task is done when its result is asked for."""

    exceptions = types.SimpleNamespace(RayError=KeyError, RayTaskError=LookupError)

    def __init__(self) -> None:
        super().__init__("ray")
        self.running, self.most, self.calls = 0, 0, []

    def init(self, address: str, **_: Any) -> None:
        self.calls.append(address)

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def remote(self, **options: Any) -> Any:
        assert options["num_cpus"] == 1 and options["max_retries"] > 0
        return lambda function: types.SimpleNamespace(remote=lambda *words: self.begin(function, *words))

    def begin(self, function: Callable[..., Any], *words: Any) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        return lambda: function(*words)

    def wait(self, running: list[Any]) -> tuple[list[Any], list[Any]]:
        self.running -= 1
        return running[-1:], running[:-1]

    def get(self, done: list[Any]) -> list[Any]:
        return [task() for task in done]


def test_ray_tasks_write_the_same_bytes(
    tmp_path: Path, spec: ReaderConfig, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = StandIn()
    monkeypatch.setitem(sys.modules, "ray", ray)
    (done,) = encode({tmp_path / "out": samples()}, spec, samples_per_part=SIZE, ray="auto")
    assert (done.parts, ray.most, ray.calls) == (5, 2, ["auto", "shutdown"]), "two parts a CPU at a time"
    same(tmp_path / "out", reference)
    monkeypatch.setattr(stages, "_encode_part", lambda part, reading: (part.path, {"samples": 1}))
    with pytest.raises(ArtifactError, match="must be shared by all machines"):
        encode({tmp_path / "elsewhere": samples()}, spec, ray="auto")


def test_a_worker_with_other_packages_is_refused(tmp_path: Path, spec: ReaderConfig) -> None:
    reading = stages.Reading(spec, stages.environment() | {"torch": "1.0"})
    with pytest.raises(ArtifactError, match="torch is .* and 1.0 where the command runs"):
        stages._encode_part(stages.Part(str(tmp_path / shard(0)), "key", tuple(samples(3))), reading)
    assert list(tmp_path.iterdir()) == []


def test_ray_that_is_missing_or_cannot_be_reached_is_named(
    tmp_path: Path, spec: ReaderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ray, address, part in (
        (None, "auto", 'pip install -e ".\\[ray]"'), (StandIn(), "127.0.0.1:1", "--ray 127.0.0.1:1: nothing answers there"),
        (StandIn(), "here", "--ray here: nothing answers there"),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, "ray", ray)
        with pytest.raises(ArtifactError, match=part):
            encode({tmp_path / "out": samples()}, spec, ray=address)
    with pytest.raises(ValueError, match="--sae: with --ray, name a folder"):
        encode({tmp_path / "out": samples()}, replace(spec, sae="saelens:release/id"), ray="auto")
    assert not (tmp_path / "out").exists()


# The commands.


def records(n: int = 60) -> list[dict[str, Any]]:
    return [
        {"id": s.id, "question": s.prompt, "answer": s.answer, "solution": "\n".join(s.steps) if s.solved else None}
        for s in samples(n)
    ]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main(list(words))
    return code, *capsys.readouterr()


def test_a_plan_from_stored_features_equals_one_that_encodes(
    tmp_path: Path, spec: ReaderConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write_jsonl(tmp_path / f"{name}.jsonl", part) for name, part in (("a", records()[:40]), ("b", records()[40:]))]
    source, model = write_jsonl(tmp_path / "my.jsonl", records()), ["--reader", spec.model, "--layer", "3", "--sae", spec.sae]
    folder = str(tmp_path / "stored")
    code, printed, error = run(capsys, "encode", "--data", source, "--out", folder, *model)
    assert code == 0 and "60/60" in error, "a bar counts the samples"
    line = {name: json.loads(printed.splitlines()[-1])[name] for name in ("read", "left_out", "parts", "reused", "samples")}
    assert line == {"read": 60, "left_out": {}, "parts": 1, "reused": 0, "samples": 60}
    assert run(capsys, "encode", "--data", *files, "--out", str(tmp_path / "two"), *model)[0] == 0
    assert file_sha256(tmp_path / "two" / shard(0)) == file_sha256(tmp_path / "stored" / shard(0)), "files are one list"
    usual = ["plan", "--data", source, "--prompts-per-step", "16", "--out"]
    assert run(capsys, *usual, str(tmp_path / "direct"), *model)[0] == 0
    monkeypatch.setattr("saerl_lib.encode.models.open_reader", lambda *_: pytest.fail("a model was opened"))
    assert run(capsys, *usual, str(tmp_path / "plan"), "--features", folder)[0] == 0
    z = [load_features(tmp_path / name / "features.safetensors").z for name in ("direct", "plan")]
    np.testing.assert_array_equal(*z)
    for name in ("plan.parquet", "scores.parquet"):
        assert (tmp_path / "direct" / name).read_bytes() == (tmp_path / "plan" / name).read_bytes()
    told = json.loads((tmp_path / "stored" / "manifest.json").read_text())
    (tmp_path / "stored" / "manifest.json").write_text(json.dumps({**told, "shards": ["another SAE's"]}))
    code, _, error = run(capsys, *usual, str(tmp_path / "plan"), "--features", folder)
    assert code == 1 and "holds another plan" in error, "features that were encoded again are other features"
    (tmp_path / "stored" / "manifest.json").write_text(json.dumps(told))
    changed = write_jsonl(tmp_path / "changed.jsonl", records()[1:])
    for data, options, said in (
        (changed, ["--features", folder], "`encode` read my.jsonl, not this changed.jsonl"),
        (source, ["--features", folder, "--id-field", "question"], "rows are not there"),
        (source, ["--features", str(tmp_path)], "has not finished there"),
        (source, ["--features", folder, *model], "takes the place of --reader"),
    ):
        code, _, error = run(capsys, "plan", "--data", data, "--out", str(tmp_path / "no"), *options)
        assert code == 1 and said in error and not (tmp_path / "no").exists()


def test_bad_rows_stop_or_are_listed(tmp_path: Path, spec: ReaderConfig, capsys: pytest.CaptureFixture[str]) -> None:
    bad = records(30)
    bad[7]["question"], bad[9]["answer"], bad[11]["id"] = 5, None, "p-1"
    folder, model = tmp_path / "out", ["--reader", spec.model, "--layer", "3", "--sae", spec.sae]
    words = ["encode", "--data", write_jsonl(tmp_path / "my.jsonl", bad), "--out", str(folder), *model]
    code, _, error = run(capsys, *words)
    assert code == 1 and "of 30 rows, 2 cannot be used" in error and "line 8: field 'question'" in error and not folder.exists()
    assert run(capsys, *words, "--skip-bad-rows")[0] == 0
    assert json.loads((folder / "manifest.json").read_text())["left_out"] == {"malformed": 2}
    assert pd.read_csv(folder / "not_encoded.csv")["where"].tolist() == ["line 8", "line 12"]
    words[2] = write_jsonl(tmp_path / "none.jsonl", [{"question": ""}])
    code, _, error = run(capsys, *words, "--skip-bad-rows")
    assert code == 1 and "0 of 1 rows are usable" in error
