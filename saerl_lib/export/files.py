"""Files as bytes, equal for equal input, and a folder that appears whole or not at all."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saerl_lib.export.samples import ExportError

TEMPLATES = Path(__file__).parent / "templates"


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    """Rows as Parquet in one row group, order kept; the same pyarrow gives the same bytes."""
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, buffer, compression="zstd", row_group_size=max(1, table.num_rows))
    return buffer.getvalue()


def jsonl_bytes(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as JSON lines in UTF-8, keys in the order given."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def template(name: str) -> bytes:
    """A file that an export carries as it is."""
    return (TEMPLATES / name).read_bytes()


def answer_files() -> dict[str, bytes]:
    """The module that reads and checks final answers, carried as it is: it needs math-verify alone."""
    return {"answers.py": (Path(__file__).parents[1] / "data" / "answers.py").read_bytes()}


def write_folder(files: Mapping[str, bytes], out: Path) -> None:
    """Write relative paths -> bytes to a sibling of `out`, then rename it into place.

    Raises ExportError when `out` is a file or a folder with content.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ExportError(f"{out} already exists: remove it or name another folder")
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, content in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
