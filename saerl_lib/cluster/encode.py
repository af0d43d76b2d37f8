"""A data file as pooled SAE latents in shards: judged rows, shards by any number of hands, a manifest when all are there.

Idempotent: a shard carries the content hash of its rows, model, SAE, settings, code and package versions. A finished one is
kept, one of another hash is done again, so a killed run costs the shards in progress and the same command continues.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from saerl_lib.artifacts import MANIFEST, ArtifactError, file_sha256, provenance, read_manifest, write_json
from saerl_lib.cluster.shard import BLOCK_ROWS, EncodeSpec, ShardTask, environment, finished
from saerl_lib.cluster.stage import ROWS, Source, Staged, open_source, stage_rows
from saerl_lib.config import content_hash
from saerl_lib.data.sample import DataError
from saerl_lib.own.settings import NO_ENCODER, OwnConfig

SHARD_ROWS = 4096
"""Rows of a shard; bounds what a lost worker costs (ours)."""
LOCK = "encode.lock"
"""Held while a command writes the folder; tells a folder of ours from another."""
LEFT_OUT = "not_encoded.csv"
TOTALS = ("tokens", "truncated", "solved", "entries")
Hands = Callable[[Sequence[ShardTask], EncodeSpec], Generator[dict[str, Any]]]
"""Does shards in any order and yields their records, or number and `error`."""


@dataclass(frozen=True)
class Encoded:
    """What an encoding left behind."""

    folder: Path
    read: int
    """Rows of the source."""
    encoded: int
    left_out: dict[str, int]
    """status -> rows that are not encoded; with `encoded` they add up to `read`."""
    shards: int
    reused: int
    """Shards that were finished before."""
    totals: dict[str, int]
    """Tokens read, samples cut, samples with a solution span, entries above zero."""


def encode_files(
    sources: Sequence[str],
    out: Path,
    config: OwnConfig,
    hands: Hands,
    shard_rows: int = SHARD_ROWS,
    say: Callable[[str], None] = lambda text: None,
) -> Encoded:
    """Encode files of rows into `out`: rows/, shard-*.parquet, not_encoded.csv and, last, manifest.json.

    The bytes of `out` are the same whatever the `hands`; with another `shard_rows` the same values are cut elsewhere. Raises
    DataError for bad data (an `out` that this call made is removed then) or a folder that is not of this command, ValueError
    for bad settings, and ArtifactError when a shard fails; finished shards are kept.
    """
    config = _checked(config, shard_rows)
    out = out.absolute()
    with _locked(out) as fresh:
        try:
            source = open_source(sources)
            staged = stage_rows(source, config, out / ROWS, shard_rows)
        except DataError:
            if fresh:
                shutil.rmtree(out)
            raise
        usable = sum(piece.rows for piece in staged.pieces)
        say(f"{source.name}: {staged.read} rows read, {usable} usable, {len(staged.pieces)} shards")
        shared = _shared_key(config, staged)
        tasks = _tasks(staged, out, shared)
        reused = _clear(out, tasks, say)
        todo = [task for task in tasks if task.number not in reused]
        _work(todo, EncodeSpec(config, staged.probe, shared["environment"]), hands, say)
        return _finish(out, source, staged, tasks, shared, len(reused))


def _checked(config: OwnConfig, shard_rows: int) -> OwnConfig:
    """The configuration with absolute folders. Raises ValueError with option and fix."""
    if shard_rows < 1 or shard_rows % BLOCK_ROWS:
        raise ValueError(f"--shard-rows {shard_rows}: choose a multiple of {BLOCK_ROWS}, the rows that are batched together")
    if config.encoder == NO_ENCODER:
        raise ValueError("--encoder none has nothing to encode; name a model's folder")
    if not Path(config.encoder).is_dir():
        raise ValueError(f"--encoder {config.encoder}: no such folder; save the model first, so that all workers read the same")
    kind, colon, rest = str(config.sae).rpartition(":")
    if kind not in ("", "opensae") or not Path(rest).is_dir():
        raise ValueError(f"--sae {config.sae}: no such folder; name one saved by SAELens or opensae:FOLDER, so that all workers "
                         "read the same (a registry's SAE: SAE.from_pretrained(...).save_model(FOLDER))")  # fmt: skip
    return replace(config, encoder=str(Path(config.encoder).absolute()), sae=f"{kind}{colon}{Path(rest).absolute()}")


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[bool]:
    """The folder for this command alone; yields whether it was made. Raises DataError or ArtifactError."""
    if out.exists() and not (out / LOCK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} holds what `encode` did not write; name another folder")
    fresh = not (out / LOCK).is_file()
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(f"{out}: another command encodes into it; wait for it or stop it") from error
        yield fresh


def _shared_key(config: OwnConfig, staged: Staged) -> dict[str, Any]:
    """All that decides every shard beside its rows; where the folders lie does not."""
    from saerl_lib.own.model import open_tokenizer

    kind, _, sae = str(config.sae).rpartition(":")
    tokenizer = open_tokenizer(config.encoder, [sample.prompt for sample in staged.probe], True)
    return {
        "model": _folder_sha256(Path(config.encoder)), "sae": _folder_sha256(Path(sae)), "sae_format": kind or "saelens",
        "tokenizer": type(tokenizer).__name__, "layer": config.layer, "max_tokens": config.max_tokens,
        "tokens_per_batch": config.tokens_per_batch, "block_rows": BLOCK_ROWS, "environment": environment(),
    }  # fmt: skip


def _folder_sha256(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        found.update(f"{path.relative_to(folder)}\n{file_sha256(path)}\n".encode())
    return found.hexdigest()


def _tasks(staged: Staged, out: Path, shared: dict[str, Any]) -> list[ShardTask]:
    return [
        ShardTask(
            piece.number, str(piece.path), str(out / f"shard-{piece.number:05d}.parquet"), piece.first, piece.rows,
            content_hash({**shared, "rows": piece.digest, "first": piece.first}),
        )
        for piece in staged.pieces
    ]  # fmt: skip


def _clear(out: Path, tasks: Sequence[ShardTask], say: Callable[[str], None]) -> set[int]:
    """Remove what is stale, damaged or half-written; returns the numbers of the shards that are kept."""
    manifest = read_manifest(out) or {"shards": []}
    known = {shard["name"]: shard["sha256"] for shard in manifest["shards"]}
    kept = set()
    for task in tasks:
        path = Path(task.path)
        if finished(task) and known.get(path.name) in (None, file_sha256(path)):
            kept.add(task.number)
    wanted = {Path(task.path).name for task in tasks if task.number in kept}
    if len(kept) < len(tasks) or set(known) - wanted:
        (out / MANIFEST).unlink(missing_ok=True)  # before the shards, so that it never speaks of what is not there
    stale = [path for path in out.glob("shard-*.parquet") if path.name not in wanted]
    for path in [*stale, *out.glob(".shard-*")]:
        path.unlink(missing_ok=True)
    say(f"{len(kept)} of {len(tasks)} shards are finished already" + (f", {len(stale)} stale ones removed" if stale else ""))
    return kept


def _work(tasks: Sequence[ShardTask], spec: EncodeSpec, hands: Hands, say: Callable[[str], None]) -> None:
    if not tasks:
        return
    with contextlib.closing(hands(tasks, spec)) as records:
        for count, record in enumerate(records, start=1):
            if "error" in record:
                raise ArtifactError(f"{record['error']}; finished shards are kept and the same command continues")
            say(f"shard {record['number']}: {record['rows']} rows, {record['tokens']} tokens; {count} of {len(tasks)}")


def _finish(
    out: Path, source: Source, staged: Staged, tasks: Sequence[ShardTask], shared: dict[str, Any], reused: int
) -> Encoded:
    """Check that nothing is missing, then write the list of rows left out and the manifest."""
    records = {task.number: finished(task) for task in tasks}
    missing = [number for number, record in records.items() if record is None]
    if missing:
        raise ArtifactError(
            f"shard {missing[0]} is not in {out}, which the workers wrote; --out must be a folder that all machines share"
        )
    for path in out.glob(".shard-*"):  # of workers that were killed
        path.unlink(missing_ok=True)
    totals = {name: sum(record[name] for record in records.values()) for name in TOTALS}
    encoded = sum(record["rows"] for record in records.values())
    if encoded + len(staged.dropped) != staged.read:
        raise RuntimeError(f"{staged.read} rows were read, {encoded} encoded and {len(staged.dropped)} listed: a row was lost")
    left_out = dict(sorted(Counter(d.status for d in staged.dropped).items()))
    rows = [(d.where, d.id, d.status, d.reason) for d in staged.dropped]
    rest = pd.DataFrame(rows, columns=["where", "id", "status", "reason"])
    rest.to_csv(out / LEFT_OUT, index=False, lineterminator="\n")
    shards = [
        {"name": Path(task.path).name, "key": task.key, "rows": task.rows, "sha256": file_sha256(Path(task.path))}
        for task in tasks
    ]
    write_json(out / MANIFEST, {
        "source": [{"name": p.name, "sha256": s} for p, s in zip(source.paths, source.sha256, strict=True)],
        "read": staged.read, "encoded": encoded, "left_out": left_out, "notes": list(staged.notes), "totals": totals,
        "width": records[0]["width"], "decided_by": shared, "shards": shards, "provenance": provenance(),
    })  # fmt: skip
    return Encoded(out, staged.read, encoded, left_out, len(tasks), reused, totals)
