"""Sharded encoding and the grid on many hands: equal bytes whoever works, a lost worker or machine costs what it held."""

from __future__ import annotations

import csv
import functools
import gzip
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from killing import below, processes, until

from saerl_lib import __main__, paths
from saerl_lib.artifacts import ArtifactError
from saerl_lib.cluster import encode_files, open_encoded, ray_link
from saerl_lib.cluster.encode import LOCK
from saerl_lib.cluster.local import encode_local
from saerl_lib.cluster.shard import ATTEMPTS, BLOCK_ROWS, EncodeSpec, ShardTask, encode_shard, environment
from saerl_lib.data.sample import DataError, read_samples
from saerl_lib.encode.encoder import ENCODER, encoder_folder
from saerl_lib.encode.features import load_features
from saerl_lib.encode.retain import choose_retained
from saerl_lib.encode.store import write_store
from saerl_lib.own import OwnConfig, load_data
from saerl_lib.own.model import open_model

ROWS = 3 * BLOCK_ROWS + 50
"""Three full blocks and a short one."""
TEXTS = ("Add {} and {}.", "What is the area of a {} by {} rectangle?", "Find the remainder of {} divided by {}, a prime.")


def rows(n: int = ROWS) -> list[dict[str, Any]]:
    """n problems of unequal length, every fifth without a solution."""
    return [
        {"id": f"p-{i}", "question": TEXTS[i % 3].format(7 * i + 3, 11 + 13 * (i % 17)), "answer": str(i),
         "subject": f"kind {i % 3}",
         "solution": None if i % 5 == 0 else f"Step one of {i}.\nThen {'again and ' * (i % 4)}so."}
        for i in range(n)
    ]  # fmt: skip


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def here(tasks: Sequence[ShardTask], spec: EncodeSpec) -> Generator[dict[str, Any]]:
    """The hands of this process."""
    for task in tasks:
        yield encode_shard(task, spec)


class Counted:
    """Hands that note which shards they were given."""

    def __init__(self, hands: Callable[..., Generator[dict[str, Any]]] = here) -> None:
        self.hands, self.numbers = hands, []

    def __call__(self, tasks: Sequence[ShardTask], spec: EncodeSpec) -> Generator[dict[str, Any]]:
        self.numbers = [task.number for task in tasks]
        return self.hands(tasks, spec)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> OwnConfig:
    """The shipped encoder with a small SAE as drawn: its latents mean nothing, its arithmetic is that of any other."""
    import torch

    from saerl_lib.config import EncoderConfig
    from saerl_lib.encode.sae import train_sae

    folder = tmp_path_factory.mktemp("sae")
    torch.manual_seed(0)
    sizes = EncoderConfig(sae_latents=128, sae_k=8, retained_latents=12)
    train_sae(torch.randn(4096, ENCODER.width), sizes, 0, folder, "untrained")
    return OwnConfig(encoder=str(encoder_folder()), layer=3, sae=str(folder))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_jsonl(tmp_path_factory.mktemp("data") / "my.jsonl", rows())


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, source: str, config: OwnConfig) -> Path:
    """What an undisturbed run in this process leaves, one block a shard."""
    out = tmp_path_factory.mktemp("reference") / "out"
    done = encode_files([source], out, config, here, BLOCK_ROWS)
    assert (done.read, done.encoded, done.shards, done.reused) == (ROWS, ROWS, 4, 0)
    return out


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def same(folder: Path, reference: Path) -> None:
    """Equal names and equal bytes."""
    found, wanted = content(folder), content(reference)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


def values(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(p) for p in sorted(folder.glob("shard-*.parquet"))]).combine_chunks()


# What a shard holds.


def test_a_plan_is_made_from_the_shards_without_a_model(
    tmp_path: Path, source: str, config: OwnConfig, reference: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    usual = ["plan", "--data", source, "--prompts-per-step", "16", "--out"]
    model = ["--encoder", config.encoder, "--layer", "3", "--sae", str(config.sae)]
    assert __main__.main([*usual, str(tmp_path / "direct"), *model]) == 0
    monkeypatch.setattr("saerl_lib.own.model.open_model", lambda *_: pytest.fail("a model was opened"))
    assert __main__.main([*usual, str(tmp_path / "stored"), "--features", str(reference)]) == 0
    direct, stored = (load_features(tmp_path / name / "features.safetensors") for name in ("direct", "stored"))
    np.testing.assert_allclose(stored.z, direct.z, rtol=1e-4, atol=1e-4)
    lengths = [pd.read_csv(tmp_path / name / "scores.csv").set_index("id")["length"] for name in ("direct", "stored")]
    assert lengths[0].to_dict() == lengths[1].to_dict()
    changed = write_jsonl(tmp_path / "my.jsonl", rows()[1:])
    for data, options, said in (
        (changed, ["--features", str(reference)], "`encode` read my.jsonl, not this my.jsonl"),
        (source, ["--features", str(reference), "--id-field", "question"], "rows are not there"),
        (source, ["--features", str(tmp_path)], "has not finished there"),
        (source, ["--features", str(reference), *model], "takes the place of --encoder"),
    ):
        capsys.readouterr()
        assert __main__.main(["plan", "--data", data, "--out", str(tmp_path / "no"), *options]) == 1
        assert said in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_the_shards_hold_what_the_store_holds(tmp_path: Path, source: str, config: OwnConfig, reference: Path) -> None:
    samples = load_data(source, config).samples
    encoder = open_model(config, samples)
    wanted, found = write_store(samples, encoder, tmp_path / "store"), open_encoded(reference)
    assert found.ids == wanted.ids == tuple(f"p-{i}" for i in range(ROWS)) and found.width == 128
    retained = choose_retained(found, 12)
    z = found.select(retained)
    np.testing.assert_allclose(z, wanted.select(retained), rtol=1e-4, atol=1e-4)
    assert np.isnan(z[::5, 2 * len(retained) :]).all() and np.isfinite(z[1::5]).all() and (np.nan_to_num(z) > 0).any()
    np.testing.assert_allclose(found.peaks().toarray(), wanted.peaks().toarray(), rtol=1e-4, atol=1e-4)
    table = values(reference)
    assert table["position"].to_pylist() == list(range(ROWS))
    manifest = json.loads((reference / "manifest.json").read_text())
    assert manifest["totals"]["tokens"] == sum(table["tokens"].to_pylist()) and manifest["totals"]["truncated"] == 0
    assert manifest["totals"]["solved"] == sum(s.solved for s in samples) == sum(table["solved"].to_pylist())
    assert manifest["totals"]["entries"] == sum(map(len, table["column"].to_pylist())) == wanted.blocks().nnz // 2


def test_shard_size_changes_where_values_are_cut_and_nothing_else(
    tmp_path: Path, source: str, config: OwnConfig, reference: Path
) -> None:
    done = encode_files([source], tmp_path / "out", config, here, 2 * BLOCK_ROWS)
    assert done.shards == 2 and values(tmp_path / "out").equals(values(reference))


def test_cut_samples_are_counted(tmp_path: Path, source: str, config: OwnConfig) -> None:
    done = encode_files([source], tmp_path / "out", replace(config, max_tokens=12), here, BLOCK_ROWS)
    table = values(tmp_path / "out")
    cut = np.array(table["truncated"].to_pylist())
    assert 0 < done.totals["truncated"] == cut.sum() < ROWS
    assert (np.array(table["tokens"].to_pylist())[cut] == 12).all()


# Finished, stale, damaged and missing shards.


def test_a_finished_folder_is_left_as_it_is(source: str, config: OwnConfig, reference: Path) -> None:
    times = {p: p.stat().st_mtime_ns for p in reference.glob("shard-*")}
    hands = Counted()
    done = encode_files([source], reference, config, hands, BLOCK_ROWS)
    assert (done.reused, hands.numbers) == (4, []) and {p: p.stat().st_mtime_ns for p in times} == times


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        (lambda folder: (folder / "shard-00001.parquet").unlink(), [1]),
        (lambda folder: damage(folder / "shard-00002.parquet"), [2]),
        (lambda folder: (folder / "shard-00003.parquet").write_bytes(b"PAR1"), [3]),
        (lambda folder: (folder / "manifest.json").unlink(), []),
        (lambda folder: (folder / "shard-00000.parquet").rename(folder / "shard-00009.parquet"), [0]),
    ],
)
def test_what_is_not_whole_is_done_again(
    tmp_path: Path, source: str, config: OwnConfig, reference: Path, change: Callable[[Path], Any], redone: list[int]
) -> None:
    out, hands = tmp_path / "out", Counted()
    shutil.copytree(reference, out)
    change(out)
    encode_files([source], out, config, hands, BLOCK_ROWS)
    assert hands.numbers == redone
    same(out, reference)


def test_a_stale_shard_is_done_again(tmp_path: Path, config: OwnConfig, source: str, reference: Path) -> None:
    out, hands = tmp_path / "out", Counted()
    changed = rows()
    changed[BLOCK_ROWS + 3]["question"] += " Say why."
    shutil.copytree(reference, out)
    other = write_jsonl(tmp_path / "my.jsonl", changed)
    encode_files([other], out, config, hands, BLOCK_ROWS)
    assert hands.numbers == [1]
    assert content(out)["shard-00001.parquet"] != content(reference)["shard-00001.parquet"]
    encode_files([source], out, config, hands, BLOCK_ROWS)
    assert hands.numbers == [1]
    same(out, reference)


@pytest.mark.parametrize(
    ("change", "shard_rows", "numbers"),
    [
        ({"layer": 2}, BLOCK_ROWS, [0, 1, 2, 3]), ({"max_tokens": 40}, BLOCK_ROWS, [0, 1, 2, 3]),
        ({"tokens_per_batch": 4096}, BLOCK_ROWS, [0, 1, 2, 3]), ({}, 4 * BLOCK_ROWS, [0]),
    ],
)  # fmt: skip
def test_other_settings_make_every_shard_stale(
    tmp_path: Path, config: OwnConfig, source: str, reference: Path, change: dict[str, Any], shard_rows: int, numbers: list[int]
) -> None:
    out, hands = tmp_path / "out", Counted(lambda tasks, spec: (record for record in ()))
    shutil.copytree(reference, out)
    with pytest.raises(ArtifactError, match="shard 0 is not in"):
        encode_files([source], out, replace(config, **change), hands, shard_rows)
    assert hands.numbers == numbers
    assert list(out.glob("shard-*")) == [] and not (out / "manifest.json").exists()


def test_another_sae_makes_every_shard_stale(tmp_path: Path, config: OwnConfig, source: str, reference: Path) -> None:
    hands = Counted(lambda tasks, spec: (record for record in ()))
    shutil.copytree(reference, tmp_path / "out")
    shutil.copytree(config.sae, tmp_path / "sae")
    encode_files([source], tmp_path / "out", replace(config, sae=str(tmp_path / "sae")), hands, BLOCK_ROWS)
    assert hands.numbers == [], "where it lies does not matter"
    with (tmp_path / "sae" / "cfg.json").open("a") as handle:
        handle.write("\n")
    with pytest.raises(ArtifactError):
        encode_files([source], tmp_path / "out", replace(config, sae=str(tmp_path / "sae")), hands, BLOCK_ROWS)
    assert hands.numbers == [0, 1, 2, 3]


def test_no_manifest_speaks_of_a_shard_that_failed(tmp_path: Path, source: str, config: OwnConfig, reference: Path) -> None:
    def failing(tasks: Sequence[ShardTask], spec: EncodeSpec) -> Generator[dict[str, Any]]:
        yield encode_shard(tasks[0], spec)
        yield encode_shard(replace(tasks[1], rows_path="/nowhere"), spec)

    out, hands = tmp_path / "out", Counted()
    with pytest.raises(ArtifactError, match="shard 1 on .*a folder that all machines share.*the same command continues"):
        encode_files([source], out, config, failing, BLOCK_ROWS)
    with pytest.raises(ArtifactError, match="has not finished there"):
        open_encoded(out)
    with pytest.raises(ArtifactError, match="shard 1 is not in"):
        encode_files([source], out, config, lambda tasks, spec: (record for record in ()), BLOCK_ROWS)
    assert not (out / "manifest.json").exists()
    encode_files([source], out, config, hands, BLOCK_ROWS)
    assert hands.numbers == [1, 2, 3]
    same(out, reference)


def task_of(folder: Path, number: int, out: Path) -> ShardTask:
    """A task over the rows of a finished folder."""
    rows_path = folder / "rows" / f"rows-{number:05d}.parquet"
    return ShardTask(number, str(rows_path), str(out / f"shard-{number:05d}.parquet"), 0, len(read_samples(rows_path)), "key")


def test_a_worker_with_other_packages_is_refused(tmp_path: Path, config: OwnConfig, reference: Path) -> None:
    spec = EncodeSpec(config, (), environment() | {"torch": "1.0"})
    record = encode_shard(task_of(reference, 0, tmp_path), spec)
    assert "torch is" in record["error"] and "and 1.0 where the command runs" in record["error"]
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_loses_every_worker_is_given_up(tmp_path: Path, config: OwnConfig, reference: Path) -> None:
    task = task_of(reference, 3, tmp_path)
    (tmp_path / ".shard-00003.parquet.attempts").write_bytes(b"." * ATTEMPTS)
    assert f"{ATTEMPTS} workers were lost with it" in encode_shard(task, EncodeSpec(config, (), environment()))["error"]


# Rows: the same judgement as `plan`, from every format, streamed.


def test_rows_are_those_that_a_plan_sees(source: str, config: OwnConfig, reference: Path) -> None:
    staged = [s for p in sorted((reference / "rows").iterdir()) for s in read_samples(p)]
    assert str(tuple(staged)) == str(load_data(source, config).samples), "as text, since nan is unequal to itself"


@pytest.mark.parametrize("kind", ["gz", "parquet", "csv", "two files"])
def test_every_format_gives_the_same_shards(tmp_path: Path, kind: str, config: OwnConfig, reference: Path) -> None:
    records = rows()
    files = [tmp_path / f"my.{kind}"]
    if kind == "gz":
        files = [tmp_path / "my.jsonl.gz"]
        files[0].write_bytes(gzip.compress(b"\xef\xbb\xbf" + "\r\n\n".join(map(json.dumps, records)).encode()))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), files[0], row_group_size=100)
    elif kind == "csv":
        with files[0].open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        parts = {"b": records[:300], "a": records[300:]}
        files = [Path(write_jsonl(tmp_path / f"{name}.jsonl", part)) for name, part in parts.items()]
    encode_files([str(f) for f in files], tmp_path / "out", config, here, BLOCK_ROWS)
    wanted, found = content(reference), content(tmp_path / "out")
    assert found.keys() == wanted.keys()
    assert [n for n in wanted if n != "manifest.json" and found[n] != wanted[n]] == []
    assert len(json.loads(found["manifest.json"])["source"]) == len(files)


def test_bad_rows_stop_or_are_listed(tmp_path: Path, config: OwnConfig) -> None:
    records = rows(300)
    records[7]["question"] = 5
    records[9]["answer"] = None
    records[11]["id"] = "p-1"
    source, out = write_jsonl(tmp_path / "my.jsonl", records), tmp_path / "out"
    message = "of 300 rows, 2 cannot be used:\n.*line 8: field 'question' is a int(?s:.*)line 12: id 'p-1'"
    with pytest.raises(DataError, match=message):
        encode_files([source], out, config, here, BLOCK_ROWS)
    assert not out.exists()
    lenient = replace(config, skip_bad_rows=True)
    done = encode_files([source], out, lenient, here, BLOCK_ROWS)
    assert (done.read, done.encoded, done.left_out) == (300, 297, {"malformed": 2, "no answer": 1})
    assert pd.read_csv(out / "not_encoded.csv")["where"].tolist() == ["line 8", "line 10", "line 12"]
    before = content(out)
    with pytest.raises(DataError):
        encode_files([source], out, config, here, BLOCK_ROWS)
    assert content(out) == before, "an earlier result stays as it was"


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("my.txt", b"{}", "unknown ending"),
        ("my.jsonl", b"\n", "no row; the file is empty"),
        ("my.jsonl.gz", b"{}", "only when the file is gzip"),
        ("my.parquet", b"PAR1 no PAR1", "cannot be read as Parquet"),
        ("my.jsonl", b'{"problem": "a"}\n', "no row has a field 'question'; its fields are: problem"),
        ("my.jsonl", b'{"question": ""}\n{"question": 3}', "of 2 rows, 2 cannot be used"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, config: OwnConfig, name: str, data: bytes, part: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=part):
        encode_files([str(tmp_path / name)], tmp_path / "out", config, here, BLOCK_ROWS)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_encoded_is_refused(tmp_path: Path, source: str, config: OwnConfig) -> None:
    out = tmp_path / "out"
    for change, rows_of_shard, part in (
        ({}, 100, "multiple of 256"), ({}, 0, "multiple of 256"), ({"encoder": "owner/name"}, BLOCK_ROWS, "no such folder"),
        ({"sae": "saelens:release/id"}, BLOCK_ROWS, "save_model"), ({"sae": "nowhere"}, BLOCK_ROWS, "no such folder"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=part):
            encode_files([source], out, replace(config, **change), here, rows_of_shard)
    (tmp_path / "my.csv").write_text("id,question\n1,two\n")
    with pytest.raises(DataError, match="CSV files hold text alone"):
        encode_files([source, str(tmp_path / "my.csv")], out, config, here)
    with pytest.raises(DataError, match="no such file"):
        encode_files(["owner/name"], out, config, here)
    assert not out.exists()
    with pytest.raises(ArtifactError, match="choose 1 to"):
        encode_files([source], out, replace(config, layer=99), here)
    with pytest.raises(DataError, match="did not write"):
        encode_files([source], tmp_path, config, here)


def test_two_commands_do_not_write_one_folder(tmp_path: Path, source: str, config: OwnConfig) -> None:
    import fcntl

    out = tmp_path / "out"
    out.mkdir()
    with (out / LOCK).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match="another command encodes into it"):
            encode_files([source], out, config, here)


# Processes of this machine.


def command(source: str, out: Path, config: OwnConfig, *more: str) -> list[str]:
    return ["encode", "--data", source, "--out", str(out), "--encoder", config.encoder, "--layer", "3", "--sae", config.sae,
            "--shard-rows", str(BLOCK_ROWS), *more]  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_resumes(
    tmp_path: Path, source: str, config: OwnConfig, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = [sys.executable, "-m", "saerl_lib", *command(source, out, config, "--workers", "1")]
    process = subprocess.Popen(line, cwd=paths.ROOT, stdout=subprocess.DEVNULL)
    until(lambda: len(list(out.glob("shard-*"))) >= 1 or process.poll() is not None)
    workers = below(process.pid)
    process.kill()
    process.wait()
    assert workers and not (out / "manifest.json").exists()
    until(lambda: not set(workers) & set(processes()))
    left = len(list(out.glob("shard-*.parquet")))
    assert 1 <= left < 4, "killed in the middle"
    assert __main__.main(command(source, out, config, "--workers", "1")) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["reused"] == left
    same(out, reference)


@pytest.mark.slow
def test_a_killed_worker_of_the_pool_is_replaced(tmp_path: Path, source: str, config: OwnConfig, reference: Path) -> None:
    killed = []

    def hands(tasks: Sequence[ShardTask], spec: EncodeSpec) -> Generator[dict[str, Any]]:
        for record in encode_local(tasks, spec, workers=1):
            yield record
            if not killed:
                killed.append(multiprocessing.active_children()[0].pid)
                os.kill(killed[0], signal.SIGKILL)

    done = encode_files([source], tmp_path / "out", config, hands, BLOCK_ROWS)
    assert len(killed) == 1 and done.encoded == ROWS
    same(tmp_path / "out", reference)


# Ray.


def test_ray_that_is_not_installed_is_named(
    tmp_path: Path, source: str, config: OwnConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else found(name, *more))
    for words in (command(source, tmp_path / "out", config), ["grid", "--profile", "smoke-study"]):
        monkeypatch.setattr("saerl_lib.grid_command.study_profile", lambda name: None)
        assert __main__.main([*words, "--ray", "127.0.0.1:6379"]) == 1
        assert 'pip install -e ".[ray]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("127.0.0.1:1", "nothing answers there"), ("127.0.0.1:99999999", "nothing answers there"), ("here", "not an address"),
        ("ray://127.0.0.1:10001", "Ray clients are not supported"),
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_reached_is_named(address: str, part: str) -> None:
    with pytest.raises(ArtifactError, match=f"--ray {address}: .*{part}"):
        ray_link.require_cluster(address)


@pytest.mark.slow
def test_what_is_no_ray_cluster_does_not_hang() -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        with pytest.raises(ArtifactError, match="no Ray cluster"):
            ray_link.require_cluster(f"127.0.0.1:{server.getsockname()[1]}", seconds=10)
        assert time.monotonic() - started < 30


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory, config: OwnConfig) -> tuple[str, Path]:
    """A file of eight blocks and what an undisturbed run in this process leaves of it."""
    folder = tmp_path_factory.mktemp("long")
    source = write_jsonl(folder / "long.jsonl", rows(8 * BLOCK_ROWS))
    encode_files([source], folder / "out", config, here, BLOCK_ROWS)
    return source, folder / "out"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "machine"])
def test_ray_that_loses_a_worker_or_a_machine_gives_equal_bytes(
    tmp_path: Path, config: OwnConfig, long: tuple[str, Path], two_machines: Any, victim: str
) -> None:
    from saerl_lib.cluster.ray_encode import encode_on_ray

    killed: list[int] = []

    def busy() -> list[int]:
        return [pid for pid in below(two_machines.second) if processes().get(pid, (0, ""))[1].startswith("ray::Map(_encode_row)")]

    def hands(tasks: Sequence[ShardTask], spec: EncodeSpec) -> Generator[dict[str, Any]]:
        for record in encode_on_ray(tasks, spec, two_machines.address):
            yield record
            if not killed:
                until(busy)
                killed.extend(busy())
                for pid in killed if victim == "worker" else [two_machines.second]:
                    os.kill(pid, signal.SIGKILL)

    source, reference = long
    done = encode_files([source], tmp_path / "out", config, hands, BLOCK_ROWS)
    assert len(killed) == 1 and killed[0] not in processes(), "one worker was at work on a shard when it was killed"
    assert (done.encoded, done.shards, done.reused) == (8 * BLOCK_ROWS, 8, 0)
    same(tmp_path / "out", reference)


@pytest.mark.slow
def test_the_command_on_ray_goes_on_where_a_local_one_stopped(
    tmp_path: Path, config: OwnConfig, source: str, reference: Path, two_machines: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    for name in ("manifest.json", "shard-00001.parquet"):
        (out / name).unlink()
    assert __main__.main(command(source, out, config, "--ray", two_machines.address)) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["reused"] == 3
    same(out, reference)


@pytest.mark.slow
def test_an_error_of_a_shard_on_ray_is_told(tmp_path: Path, config: OwnConfig, source: str, two_machines: Any) -> None:
    from saerl_lib.cluster.ray_encode import encode_on_ray

    hands = functools.partial(encode_on_ray, address=two_machines.address)
    with pytest.raises(ArtifactError, match="shard . on .*choose 1 to"):
        encode_files([source], tmp_path / "out", replace(config, layer=99), hands, BLOCK_ROWS)
