"""Rows of one or more files, judged and written as Parquet of samples in pieces of equal size, without holding a file in memory.

Two passes. The first hashes the files and learns their fields; the second judges every row by the rules of `data.rows` and
writes the usable ones. Parquet and JSON lines are streamed, a CSV file is read whole. In memory stay one piece of rows, the ids,
and the list of rows that are left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from saerl_lib.artifacts import file_sha256
from saerl_lib.data.rows import KINDS, Row, Rules, judge, kind_of, require_sound, resolve_fields, rows
from saerl_lib.data.sample import DataError, Dropped, Sample, to_frame
from saerl_lib.own.settings import OwnConfig

ROWS = "rows"
"""Folder of the usable rows, in the format of `data.sample.write_samples`."""


@dataclass(frozen=True)
class Source:
    """Files of rows that are read as one list, in the order given."""

    paths: tuple[Path, ...]
    sha256: tuple[str, ...]
    fields: tuple[str, ...]
    """Names that occur in some row, in order of appearance."""
    text_only: bool
    """True for CSV."""

    @property
    def name(self) -> str:
        """For messages."""
        more = len(self.paths) - 1
        return self.paths[0].name + (f" and {more} more" if more else "")


@dataclass(frozen=True)
class Piece:
    """Consecutive usable rows on disk."""

    number: int
    path: Path
    first: int
    """Position of its first row among all usable rows."""
    rows: int
    digest: str
    """Content hash of the samples."""


@dataclass(frozen=True)
class Staged:
    """What became of every row of a source."""

    pieces: tuple[Piece, ...]
    read: int
    dropped: tuple[Dropped, ...]
    notes: tuple[str, ...]
    probe: tuple[Sample, ...]
    """The first usable rows."""


def open_source(names: Sequence[str]) -> Source:
    """The first pass. Raises DataError with file and fix: no such file, an unknown ending, CSV mixed with others, no row."""
    paths = tuple(Path(name) for name in names)
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file; name local files ({', '.join(KINDS)}), a hub data set after it was saved")
        if not kind_of(path):
            raise DataError(f"{path.name}: unknown ending; name the file {', '.join(KINDS)} by what it holds (.gz may follow)")
    text = {kind_of(path) == ".csv" for path in paths}
    if len(text) > 1:
        raise DataError("CSV files hold text alone and are not mixed with others: encode them into a folder of their own")
    found: dict[str, None] = {}
    for path in paths:
        for row in rows(path):
            found.update(dict.fromkeys(row.record or ()))
    return Source(paths, tuple(file_sha256(path) for path in paths), tuple(found), text == {True})


def stage_rows(source: Source, config: OwnConfig, folder: Path, piece_rows: int) -> Staged:
    """The second pass: `folder` is replaced by pieces of `piece_rows` usable rows (the last may be shorter).

    Raises DataError as `own.validate.validate` does for malformed rows, and when no row is usable; `folder` is then as it was.
    """
    names, notes = resolve_fields(source.name, source.fields, config.fields)
    rules = Rules(names, config.allowed_labels, config.turned)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    pieces: list[Piece] = []
    dropped: list[Dropped] = []
    probe: list[Sample] = []
    held: list[Sample] = []

    def put() -> None:
        first = pieces[-1].first + pieces[-1].rows if pieces else 0
        path = partial / f"rows-{len(pieces):05d}.parquet"
        _write(held, path)
        pieces.append(Piece(len(pieces), folder / path.name, first, len(held), digest(held)))
        probe.extend(held[: 20 - len(probe)])
        held.clear()

    read = 0
    try:
        for row in _all_rows(source):
            read += 1
            judged = judge(row, read, rules)
            if isinstance(judged, Dropped):
                dropped.append(judged)
                continue
            held.append(judged.sample)
            if len(held) == piece_rows:
                put()
        if held:
            put()
        if not config.skip_bad_rows:
            require_sound(source.name, read, dropped)
        if not pieces:
            raise DataError(f"{source.name}: none of {read} rows is usable; first: {dropped[0].where}: {dropped[0].reason}")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Staged(tuple(pieces), read, tuple(dropped), tuple(notes), tuple(probe))


def _all_rows(source: Source) -> Iterator[Row]:
    several = len(source.paths) > 1
    for path in source.paths:
        for row in rows(path):
            yield dataclasses.replace(row, where=f"{path.name}, {row.where}") if several else row


def digest(samples: Sequence[Sample]) -> str:
    """Content hash of samples in their order: every field counts."""
    found = hashlib.sha256()
    for sample in samples:
        found.update(json.dumps(dataclasses.asdict(sample)).encode() + b"\n")
    return found.hexdigest()


def _write(samples: Sequence[Sample], path: Path) -> None:
    to_frame(samples).to_parquet(path, index=False, engine="pyarrow", compression="zstd")
