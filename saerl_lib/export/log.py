"""What a trainer consumed, as it was logged: Parquet, JSON lines or one id a line; and the append-only logs of our own runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saerl_lib.data.rows import json_rows


class LogError(ValueError):
    """The log cannot be read as ids that a trainer consumed."""


@dataclass(frozen=True)
class ConsumedLog:
    """Sample ids in the order of the log, one a rollout or one a prompt."""

    ids: tuple[str, ...]
    steps: tuple[int, ...] | None = None
    """The trainer's step of each id, from 0 or 1; None when the log has none."""


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows as JSON lines."""
    with path.open("a", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Complete rows of a JSON-lines log; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def cut_back(path: Path, step: int, field: str = "step") -> None:
    """Keep only rows whose `field` is at most `step`: a resumed run writes the later ones again."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    append_rows(partial, [row for row in read_rows(path) if row[field] <= step])
    partial.replace(path)


def read_log(path: Path) -> ConsumedLog:
    """The log of one run.

    `.parquet`: columns sample_id and, if there, step. Text whose first line is a JSON object: objects with sample_id
    and, in all or none, step; a last line without line break that a kill cut short is left out. Other text: one id a line.
    Raises LogError that names the line or column: missing file, missing or ill-typed field, several runs, no id.
    """
    if not path.is_file():
        raise LogError(f"{path} is missing: pass the log of sample ids that the trainer wrote")
    if path.suffix == ".parquet":
        log = _from_parquet(path)
    else:
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise LogError(f"{path} is no UTF-8 text: pass Parquet with the suffix .parquet, JSON lines or text") from error
        first = next((line for line in lines if line.strip()), "")
        if "," in first and "sample_id" in first and not first.lstrip().startswith("{"):
            raise LogError(f"{path} looks like CSV: write Parquet, JSON lines with sample_id and step, or one id a line")
        plain = tuple(line.strip() for line in lines if line.strip())
        log = _from_json(path) if first.lstrip().startswith("{") else ConsumedLog(plain)
    if not log.ids:
        raise LogError(f"{path} holds no sample id")
    return log


def _from_parquet(path: Path) -> ConsumedLog:
    try:
        schema = pq.read_schema(path)
        if "sample_id" not in schema.names:
            raise LogError(f"{path}: column 'sample_id' is missing, found {schema.names}")
        wanted = [name for name in ("sample_id", "step", "arm", "seed") if name in schema.names]
        table = pq.read_table(path, columns=wanted).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise LogError(f"{path} is no Parquet file: {error}") from error
    for name in ("arm", "seed"):
        if len(runs := set(table.get(name, ()))) > 1:
            raise LogError(f"{path} holds {len(runs)} runs (column {name!r}): pass the log of one run")
    return _checked(table["sample_id"], table.get("step"), path.name, "row", range(len(table["sample_id"])))


def _from_json(path: Path) -> ConsumedLog:
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    for row in json_rows(path, strict_end=False):
        if row.record is None or "sample_id" not in row.record:
            problem = row.problem or "field 'sample_id' is missing"
            raise LogError(f"{path.name}, {row.where}: {problem}")
        rows.append(row.record)
        numbers.append(int(row.where.removeprefix("line ")))
    with_step = sum("step" in row for row in rows)
    if with_step not in (0, len(rows)):
        raise LogError(f"{path.name}: {with_step} of {len(rows)} lines have a step; write it in all lines or in none")
    steps = [row["step"] for row in rows] if with_step else None
    return _checked([row["sample_id"] for row in rows], steps, path.name, "line", numbers)


def _checked(ids: Sequence[Any], steps: Sequence[Any] | None, name: str, unit: str, numbers: Sequence[int]) -> ConsumedLog:
    for number, found in zip(numbers, ids, strict=True):
        if not isinstance(found, str) or not found:
            raise LogError(f"{name}, {unit} {number}: sample_id is {found!r}, not an id; write it as text")
    for number, found in zip(numbers, steps or [0] * len(ids), strict=True):
        if isinstance(found, bool) or not isinstance(found, int) or found < 0:
            raise LogError(f"{name}, {unit} {number}: step is {found!r}, not a whole number from 0")
    return ConsumedLog(tuple(ids), None if steps is None else tuple(steps))
