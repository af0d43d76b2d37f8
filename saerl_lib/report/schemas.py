"""The CSV tables of `figures/data`: their columns, which notebook writes each, checked writing and reading.

The notebooks and the study write them, figures and claims are drawn from them alone. Shares, accuracies, purity and recall are
fractions in 0..1; only `paired_difference.csv` and rows of `claims.csv` that say so are in percent points.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from saerl_lib.artifacts import ArtifactError
from saerl_lib.report.columns import SCHEMAS, Schema


class TableError(ValueError):
    """A table is missing, empty or does not have its columns."""


def schema_of(name: str) -> Schema:
    """The schema of table `name`; raises TableError for a name that is not in `SCHEMAS`."""
    if name not in SCHEMAS:
        raise TableError(f"table {name!r} is not known; choose one of {', '.join(SCHEMAS)}")
    return SCHEMAS[name]


def write_atomic(path: Path, data: bytes) -> None:
    """Write bytes through a temporary sibling that is renamed into place.

    Raises ArtifactError when the folder cannot be written or the disk is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        if path.parent.is_dir():
            partial.unlink(missing_ok=True)
        raise ArtifactError(f"cannot write {path}: {error.strerror}; free space or choose a writable folder") from error


def _check_columns(columns: list[str], name: str, where: str) -> None:
    schema = schema_of(name)
    missing = [column for column in schema.columns if column not in columns]
    unknown = [column for column in columns if column not in schema.columns]
    if missing or unknown:
        found = " and ".join(
            f"{word} {', '.join(names)}" for word, names in (("lacks column", missing), ("has unknown column", unknown)) if names
        )
        raise TableError(f"{where} {found}; notebook {schema.notebook} writes {','.join(schema.columns)}")


def _check_values(frame: pd.DataFrame, name: str) -> None:
    schema = schema_of(name)
    for column in schema.columns:
        values = frame[column]
        if column not in schema.optional and values.isna().any():
            raise TableError(f"table {name}: column {column} is empty in row {int(np.flatnonzero(values.isna())[0])}; fill it")
        numbers = pd.to_numeric(values, errors="coerce").astype(float)
        if np.isinf(numbers).any():
            raise TableError(f"table {name}: column {column} holds an infinite number; leave such cells empty")
        if column in schema.fractions and not numbers.dropna().between(-1e-9, 1 + 1e-9).all():
            raise TableError(f"table {name}: column {column} must lie in 0..1; write fractions, not percent")


def _text_ready(values: pd.Series) -> pd.Series:
    if values.dtype == bool:
        return values.map({True: "true", False: "false"})
    if values.dtype == object:
        values = values.map(lambda cell: str(bool(cell)).lower() if isinstance(cell, (bool, np.bool_)) else cell)
        return values.map(lambda cell: f"{cell:.6g}" if isinstance(cell, (float, np.floating)) and np.isfinite(cell) else cell)
    return values


def write_csv(frame: pd.DataFrame, name: str, folder: Path) -> Path:
    """Write table `name` into `folder` and return its path: schema order, 6 digits, `\\n` line ends, atomically.

    Raises TableError for an empty table, a missing or unknown column, an empty cell where none may be, an infinite
    number, or a percent where a fraction belongs; ArtifactError when the folder cannot be written.
    """
    _check_columns(list(frame.columns), name, f"table {name}")
    if frame.empty:
        raise TableError(f"table {name} has no rows; nothing would be drawn from it")
    _check_values(frame, name)
    ready = frame[list(schema_of(name).columns)].apply(_text_ready)
    path = folder / f"{name}.csv"
    write_atomic(path, ready.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode("utf-8"))
    return path


def read_table(name: str, folder: Path) -> pd.DataFrame:
    """Read table `name` from `folder`.

    Raises TableError naming the file, the column and the notebook that writes it when it is missing, empty or incomplete.
    """
    schema = schema_of(name)
    path = folder / f"{name}.csv"
    remedy = f"run ./run_all.sh --only {schema.notebook}, the notebook that writes it"
    if not path.is_file():
        raise TableError(f"{path} is missing; {remedy}")
    try:
        frame = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise TableError(f"{path} is not a CSV table ({error}); {remedy}") from error
    _check_columns(list(frame.columns), name, str(path))
    if frame.empty:
        raise TableError(f"{path} has no rows; {remedy}")
    return frame


def is_true(values: pd.Series) -> pd.Series:
    """A column of true and false, however it was read, as booleans; empty cells are false."""
    return values.astype(str).str.lower().eq("true")
