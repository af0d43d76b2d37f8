"""Rows of a file or a hub data set as they stand there: JSON lines, CSV, Parquet, gzip or plain. Nothing is judged here."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saerl_lib.data.schema import DataError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""owner/name of a data set on the Hugging Face Hub."""
KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
"""Endings that are read; all but Parquet may be followed by .gz."""


@dataclass(frozen=True)
class RawRow:
    """One row of the source."""

    where: str
    """Such as 'line 7' (JSON lines, CSV) or 'row 7' (Parquet, hub), counted from 1."""
    record: dict[str, Any] | None
    """Field -> value; None when the row cannot be read."""
    problem: str = ""
    """Why it cannot be read, and the fix."""


@dataclass(frozen=True)
class RawData:
    """All rows of a source."""

    name: str
    rows: tuple[RawRow, ...]
    text_only: bool = False
    """True for CSV, where numbers come as text and an empty cell is a missing value."""

    @property
    def fields(self) -> list[str]:
        """Names that occur in some row, in order of appearance."""
        return list(dict.fromkeys(key for row in self.rows if row.record is not None for key in row.record))


def read_rows(source: str, split: str = "train") -> RawData:
    """Every row of a file, or of `split` of a hub data set `owner/name`.

    Raises DataError with name and fix: no such file, an unknown ending, not gzip, not Parquet, CSV that is no UTF-8 or has no
    header, an empty file, or a hub data set that cannot be read.
    """
    path = Path(source)
    if not path.exists() and HUB_NAME.fullmatch(source) and not kind_of(path):
        return _hub(source, split)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise DataError(f"{source}: {what}; name a file ({', '.join(KINDS)}) or a hub data set as owner/name")
    kind = kind_of(path)
    if not kind:
        raise DataError(f"{path.name}: unknown ending; name the file {', '.join(KINDS)} by what it holds (.gz may follow)")
    data = _parquet(path) if kind == ".parquet" else (_csv if kind == ".csv" else _json_lines)(_bytes(path), path.name)
    if not data.rows:
        raise DataError(f"{path.name}: no row; the file is empty")
    return data


def kind_of(path: Path) -> str:
    """The ending of `KINDS` that a file's name has, .gz aside; '' for another."""
    name = path.name.removesuffix(".gz")
    return next((kind for kind in KINDS if name.endswith(kind)), "")


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name}: cannot be read ({error}); the name may end in .gz only when the file is gzip") from error


def _json_lines(data: bytes, name: str) -> RawData:
    lines = enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
    return RawData(name, tuple(json_row(line, f"line {number}") for number, line in lines if line.strip()))


def json_row(line: bytes, where: str) -> RawRow:
    """One line of JSON; a line that is no JSON object becomes a row with a problem."""
    try:
        record = json.loads(line.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return RawRow(where, None, f"byte {error.start + 1} is no UTF-8; save the file as UTF-8")
    except json.JSONDecodeError as error:
        return RawRow(where, None, f"not JSON ({error.msg} at column {error.colno}); write one object a line")
    except (ValueError, RecursionError) as error:
        return RawRow(where, None, f"not readable JSON ({error}); write one flat object a line")
    if not isinstance(record, dict):
        return RawRow(where, None, f"expected a JSON object, found {type(record).__name__}; write one object a line")
    return RawRow(where, record)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError when a key occurs twice, since one of its values would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in (k for k, _ in pairs[:i]))
        raise ValueError(f"key {twice[:40]!r} occurs twice")
    return found


def _csv(data: bytes, name: str) -> RawData:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{name}, line {line}: a byte is no UTF-8; save the file as UTF-8") from error
    before = csv.field_size_limit(max(1, len(text)))
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(reader, [])
        if len(header) == 1 and (other := next((sign for sign in ";\t|" if sign in header[0]), "")):
            raise DataError(f"{name}, line 1: one column {header[0][:60]!r}; separate the cells by commas instead of {other!r}")
        if len(set(header)) < len(header):
            raise DataError(f"{name}, line 1: a column name occurs twice; give every column its own name")
        return RawData(name, tuple(_csv_rows(reader, header)), text_only=True)
    except csv.Error as error:
        raise DataError(
            f"{name}, line {reader.line_num}: not CSV ({error}); quote cells that hold commas, quotes or line ends"
        ) from error
    finally:
        csv.field_size_limit(before)


def _csv_rows(reader: Any, header: list[str]) -> Iterator[RawRow]:
    start = reader.line_num + 1
    for cells in reader:
        where, start = f"line {start}", reader.line_num + 1
        if len(cells) == len(header):
            yield RawRow(where, {key: cell if cell else None for key, cell in zip(header, cells, strict=True)})
        elif cells:
            yield RawRow(where, None, f"{len(cells)} cells where the header has {len(header)}; quote cells that hold commas")


def _parquet(path: Path) -> RawData:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        records = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: cannot be read as Parquet ({error}); write it again, text as UTF-8") from error
    return _numbered(path.name, records)


def _hub(name: str, split: str) -> RawData:
    from datasets import load_dataset

    try:
        records = list(load_dataset(name, split=split))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{name}: no such file, and not readable from the Hugging Face Hub, split {split!r} ({reason}); "
                        "check the name, --split and the network") from error  # fmt: skip
    if not records:
        raise DataError(f"{name}: split {split!r} holds no row; name another with --split")
    return _numbered(name, records)


def _numbered(name: str, records: list[dict[str, Any]]) -> RawData:
    return RawData(name, tuple(RawRow(f"row {number}", record) for number, record in enumerate(records, start=1)))
