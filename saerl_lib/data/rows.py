"""One reader of rows for every source, and one judge of what a row holds: a sample, or the reason why it is none.

A source is a file (JSON lines, CSV, TSV or Parquet; all but Parquet may be gzip), a folder of such files, or a data set of the
Hugging Face Hub. `rows` streams it as it stands there; `judge` names row, field and fix; `read` holds a whole source.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import itertools
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saerl_lib.config import DEFAULTS, Fields, RowFields
from saerl_lib.data.sample import DataError, Dataset, Dropped, Judged, Sample, lines

USUAL = Fields()
"""The usual names."""
KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Endings that are read; all but Parquet may be followed by .gz. A .json file may also hold one list of objects."""
HUB = re.compile(r"(?:hub:)?([\w.-]+/[\w.-]+)(?:@([0-9a-f]{40}))?(?::([\w.-]+))?(?::([\w.-]+))?")
"""[hub:]owner/name[@commit][:configuration][:split]."""
READ_ROWS = 1024
"""Rows of Parquet that are held at once."""
MIN_ROWS = 10
"""Fewer usable rows give neither clusters nor a plan (ours)."""
SHOWN = 5
"""Problems that one error message lists."""
MAX_CHARACTERS = 200_000
"""Longest prompt or solution; a longer one is a broken export rather than a problem (ours)."""
MAX_ID = 200
"""Longest id, in characters."""
TRUTH = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}
"""Quality labels of a CSV file."""


@dataclass(frozen=True)
class Row:
    """One row of a source."""

    where: str
    """Such as 'line 7' (JSON lines, CSV) or 'row 7' (Parquet, hub), counted from 1; with the file's name in a folder."""
    record: dict[str, Any] | None
    """Field -> value; None when the row cannot be read."""
    problem: str = ""
    """Why it cannot be read, and the fix."""
    text_only: bool = False
    """True for CSV, where numbers come as text and an empty cell is a missing value."""


@dataclass(frozen=True)
class Source:
    """Where rows come from."""

    place: str
    """A file, a folder of files, or owner/name on the hub."""
    split: str = "train"
    """Split of a hub data set."""
    configuration: str | None = None
    data_file: str | None = None
    """The one file to read, for a repository of plain JSON lines."""
    revision: str | None = None
    streaming: bool = False
    """Read a hub data set over the network row by row, instead of keeping it in the cache."""
    published: bool = False
    """`place` is a hub repository, or a folder laid out as one."""

    @classmethod
    def parse(cls, text: str, split: str = "train", streaming: bool = False) -> Source:
        """A path that exists or has an ending of `KINDS`, else [hub:]owner/name[@commit][:configuration][:split]."""
        named = HUB.fullmatch(text)
        if named is None or Path(text).exists() or kind_of(Path(text)):
            return cls(text)
        name, commit, configuration, own_split = named.groups()
        return cls(name, own_split or split, configuration, None, commit, streaming, published=True)

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.place if self.published else Path(self.place).name


def kind_of(path: Path) -> str:
    """The ending of `KINDS` that a file's name has, .gz aside; '' for another."""
    name = path.name.removesuffix(".gz")
    return next((kind for kind in KINDS if name.endswith(kind)), "")


def rows(source: Source | str | Path, columns: Sequence[str] = ()) -> Iterator[Row]:
    """Every row of a source, streamed (CSV files are held whole); of Parquet only `columns`, where they are named.

    Raises DataError with name and fix: no such file, an unknown ending, not gzip, not Parquet, CSV that is no UTF-8 or has no
    header, an empty file, or a hub data set that cannot be read. A row that cannot be read comes with its problem.
    """
    source = source if isinstance(source, Source) else Source.parse(str(source))
    if source.published:
        yield from _hub(source)
        return
    path = Path(source.place)
    if not path.is_dir():
        yield from _file(path, source.place, columns)
        return
    parts = sorted(part for part in path.iterdir() if part.is_file() and kind_of(part) and not part.name.startswith("."))
    if not parts:
        raise DataError(f"{source.place}: is a folder without a file that is read ({', '.join(KINDS)}); name another")
    for part in parts:
        yield from (dataclasses.replace(row, where=f"{part.name}, {row.where}") for row in _file(part, str(part), columns))


def _file(path: Path, shown: str, columns: Sequence[str]) -> Iterator[Row]:
    if not path.is_file():
        raise DataError(f"{shown}: no such file; name a file ({', '.join(KINDS)}) or a hub data set as owner/name")
    kind = kind_of(path)
    if not kind:
        raise DataError(f"{path.name}: unknown ending; name the file {', '.join(KINDS)} by what it holds (.gz may follow)")
    if kind == ".parquet":
        found = _parquet(path, columns)
    elif kind in (".csv", ".tsv"):
        found = iter(_csv(b"".join(_byte_lines(path)), path.name, "\t" if kind == ".tsv" else ","))
    else:
        found = json_rows(path)
    first = next(found, None)
    if first is None:
        raise DataError(f"{path.name}: no row; the file is empty")
    yield first
    yield from found


def _byte_lines(path: Path) -> Iterator[bytes]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as handle:
            yield from handle
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name}: cannot be read ({error}); the name may end in .gz only when the file is gzip") from error


# JSON lines: data files and logs.


def json_rows(path: Path, strict_end: bool = True) -> Iterator[Row]:
    """One row a line that holds something. Without `strict_end` a last line that a kill cut short is left out."""
    for number, line in enumerate(_byte_lines(path), start=1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if number == 1 and kind_of(path) == ".json" and line.lstrip().startswith(b"["):
            yield from _json_list(path)
            return
        if line.strip():
            row = _json_row(line.removesuffix(b"\n"), f"line {number}")
            if row.record is not None or strict_end or line.endswith(b"\n"):
                yield row


def jsonl(path: Path, strict_end: bool = True) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file. Raises DataError with file, line and fix; `strict_end` as in `json_rows`."""
    for row in json_rows(path, strict_end):
        if row.record is None:
            raise DataError(f"{path.name}, {row.where}: {row.problem}")
        yield row.record


def _json_list(path: Path) -> Iterator[Row]:
    found = _json_row(b'{"": ' + b"".join(_byte_lines(path)).removeprefix(b"\xef\xbb\xbf") + b"}", "line 1")
    if found.record is None:
        raise DataError(f"{path.name}: {found.problem.partition(';')[0]}; write one list of objects, or one object a line")
    for number, record in enumerate(found.record[""], start=1):
        good = isinstance(record, dict)
        yield Row(f"row {number}", record if good else None, "" if good else f"is a {type(record).__name__}, not an object")


def _json_row(line: bytes, where: str) -> Row:
    """One line of JSON; a line that is no JSON object becomes a row with a problem."""
    try:
        record = json.loads(line.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return Row(where, None, f"byte {error.start + 1} is no UTF-8; save the file as UTF-8")
    except json.JSONDecodeError as error:
        return Row(where, None, f"not JSON ({error.msg} at column {error.colno}); write one object a line")
    except (ValueError, RecursionError) as error:
        return Row(where, None, f"not readable JSON ({error}); write one flat object a line")
    if not isinstance(record, dict):
        return Row(where, None, f"expected a JSON object, found {type(record).__name__}; write one object a line")
    return Row(where, record)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError when a key occurs twice, since one of its values would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in (k for k, _ in pairs[:i]))
        raise ValueError(f"key {twice[:40]!r} occurs twice")
    return found


# Tables.


def _csv(data: bytes, name: str, separator: str) -> list[Row]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{name}, line {line}: a byte is no UTF-8; save the file as UTF-8") from error
    found: list[Row] = []
    before = csv.field_size_limit(max(1, len(text)))
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
        header, wanted = next(reader, []), {",": "commas", "\t": "tabs"}[separator]
        if len(header) == 1 and (other := next((sign for sign in ",;\t|" if sign in header[0]), "")):
            raise DataError(f"{name}, line 1: one column {header[0][:60]!r}; separate the cells by {wanted} instead of {other!r}")
        if len(set(header)) < len(header):
            raise DataError(f"{name}, line 1: a column name occurs twice; give every column its own name")
        start = reader.line_num + 1
        for cells in reader:
            where, start = f"line {start}", reader.line_num + 1
            if len(cells) == len(header):
                found.append(Row(where, {key: cell or None for key, cell in zip(header, cells, strict=True)}, text_only=True))
            elif cells:
                problem = f"{len(cells)} cells where the header has {len(header)}; quote cells that hold {wanted}"
                found.append(Row(where, None, problem))
    except csv.Error as error:
        fix = f"quote cells that hold {wanted}, quotes or line ends"
        raise DataError(f"{name}, line {reader.line_num}: not CSV ({error}); {fix}") from error
    finally:
        csv.field_size_limit(before)
    return found


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = itertools.count(1)
    try:
        with pq.ParquetFile(path) as file:
            wanted = [name for name in columns if name in file.schema_arrow.names] if columns else None
            for batch in file.iter_batches(READ_ROWS, columns=wanted):
                yield from (Row(f"row {next(numbers)}", record) for record in batch.to_pylist())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: cannot be read as Parquet ({error}); write it again, text as UTF-8") from error


def _hub(source: Source) -> Iterator[Row]:
    from datasets import load_dataset

    number = 0
    try:
        found = load_dataset(
            source.place, name=source.configuration, data_files=source.data_file, split=source.split,
            revision=source.revision, streaming=source.streaming,
        )  # fmt: skip
        for number, record in enumerate(found, start=1):
            yield Row(f"row {number}", dict(record))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{source.place}: no such file, and not readable from the Hugging Face Hub, split {source.split!r} "
                        f"({reason}); check the name, --split and the network") from error  # fmt: skip
    if not number:
        raise DataError(f"{source.place}: split {source.split!r} holds no row; name another with --split")


# What a row holds.


@dataclass(frozen=True)
class Rules:
    """What the rows of one source are judged by."""

    names: Mapping[str, str]
    """Name of a field of `Fields` -> the source's; absent: the source has none."""
    allowed: tuple[float, float] | None = None
    """Smallest and largest label."""
    turned: bool = False
    """Whether a larger label means easier, so that labels are turned round."""
    need_answer: bool = True
    """Whether a row without an answer is set aside, where the source has the field."""
    seen: dict[str, str] = dataclasses.field(default_factory=dict)
    """Id -> the place of its row, filled by `judge`."""


class BadRow(Exception):
    """A row that cannot be used; the message names field and fix."""


def read(
    sources: Sequence[Source | str | Path], fields: RowFields = USUAL, *, allowed: tuple[float, float] | None = None,
    turned: bool = False, skip_bad_rows: bool = False, least: int = 1,
) -> Dataset:  # fmt: skip
    """The usable rows of sources that are read as one list, with labels and the others; `allowed` and `turned` as in `Rules`.

    A row without an answer is set aside when other rows have one: no reward could be computed for it. Raises DataError that
    names file, row, field and fix: what `rows` and `resolve_fields` raise; malformed rows (the first five are listed), unless
    `skip_bad_rows` sets them aside; or fewer usable rows than `least`.
    """
    places = [source if isinstance(source, Source) else Source.parse(str(source)) for source in sources]
    several = len(places) > 1
    raw = [
        dataclasses.replace(row, where=f"{place.name}, {row.where}") if several else row
        for place in places
        for row in rows(place)
    ]
    name = places[0].name + (f" and {len(places) - 1} more" if several else "")
    names, notes = resolve_fields(name, list(dict.fromkeys(key for row in raw for key in row.record or ())), fields)
    rules = Rules(names, allowed, turned)
    outcomes = [judge(row, number, rules) for number, row in enumerate(raw, start=1)]
    dropped = tuple(found for found in outcomes if isinstance(found, Dropped))
    kept = [(row.where, found) for row, found in zip(raw, outcomes, strict=True) if isinstance(found, Judged)]
    bad = [f"{problem.where}: {problem.reason}" for problem in dropped if problem.status == "malformed"]
    if bad and not skip_bad_rows:
        listed = "\n".join(f"  {name}, {problem}" for problem in bad[:SHOWN])
        more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise DataError(f"{name}: of {len(raw)} rows, {len(bad)} cannot be used:\n{listed}{more}\nmend them, or pass "
                        "--skip-bad-rows to leave them out and have them listed")  # fmt: skip
    if len(kept) < least:
        needed = f"at least {least} are needed" + (f" (one batch, and {MIN_ROWS} rows)" if least >= MIN_ROWS else "")
        lower = " or lower --prompts-per-step" if len(kept) >= MIN_ROWS else ""
        first = f"; first row left out: {dropped[0].where}: {dropped[0].reason}" if dropped else ""
        raise DataError(f"{name}: {len(kept)} of {len(raw)} rows are usable, {needed}; add rows{lower}{first}")
    numbers = np.array([(found.label, found.quality) for _, found in kept], dtype=float).reshape(-1, 2)
    samples, where = tuple(found.sample for _, found in kept), tuple(place for place, _ in kept)
    return Dataset(name, samples, where, numbers[:, 0], numbers[:, 1], dropped, tuple(notes))


def judge(row: Row, number: int, rules: Rules) -> Judged | Dropped:
    """What a row holds, or why it cannot be used; `number` counts the rows of the source from 1 and names rows without id."""
    try:
        judged = _judged(row, number, rules)
    except BadRow as problem:
        value = (row.record or {}).get(rules.names.get("id", ""))
        shown = str(value)[:MAX_ID].encode("utf-8", "replace").decode() if isinstance(value, str | int) else ""
        return Dropped(row.where, shown, "malformed", str(problem))
    rules.seen[judged.sample.id] = row.where
    if rules.need_answer and "answer" in rules.names and not judged.sample.answer:
        return Dropped(row.where, judged.sample.id, "no answer", "no answer, so no reward could be computed")
    return judged


def _judged(row: Row, number: int, rules: Rules) -> Judged:
    if row.record is None:
        raise BadRow(row.problem)
    names = {field.name: rules.names.get(field.name, "") for field in dataclasses.fields(Fields)}
    given = {field: row.record.get(name) for field, name in names.items() if name}
    prompt, solution = (text(given.get(field), names[field]) for field in ("prompt", "solution"))
    if not prompt.strip():
        raise BadRow(f"field {names['prompt']!r} is missing or empty; fill it in or remove the row")
    answer, topic = (plain(given.get(field), names[field]) for field in ("answer", "topic"))
    name = identifier(given["id"], names["id"]) if "id" in given else f"row-{number:06d}"
    sample = Sample(name, prompt, lines(solution), answer.strip(), topic, solved=bool(solution.strip()))
    label = difficulty(given.get("labels"), names["labels"], rules, row.text_only)
    quality = truth(given.get("quality"), names["quality"], row.text_only)
    if name in rules.seen:
        raise BadRow(f"id {name!r} was already used in {rules.seen[name]}; give every row its own id")
    return Judged(sample, label, quality)


def resolve_fields(name: str, present: Sequence[str], fields: RowFields) -> tuple[dict[str, str], list[str]]:
    """(our name -> the file's, what was assumed) where rows have the fields `present`.

    Raises DataError for a field that no row has.
    """
    names: dict[str, str] = {}
    notes: list[str] = []
    listed = ", ".join(present[:20]) or "none"
    if not present:
        return {"prompt": DEFAULTS["prompt"]}, notes
    for entry in dataclasses.fields(fields):
        given = getattr(fields, entry.name)
        option = f"--{entry.name}" if entry.name in ("labels", "quality") else f"--{entry.name}-field"
        found = given or DEFAULTS.get(entry.name)
        if found in present:
            names[entry.name] = found
        elif given or entry.name == "prompt":
            raise DataError(
                f"{name}: no row has a field {found!r}; its fields are: {listed}; name the right one with {option}"
            )
    if "id" not in names:
        notes.append(f"the file has no field {DEFAULTS['id']!r}: ids are row numbers")
    if "answer" not in names:
        notes.append(f"the file has no field {DEFAULTS['answer']!r}: whether a row can be rewarded was not checked")
    return names, notes


# One value.


def text(value: Any, name: str) -> str:
    """A text field; '' when missing."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"field {name!r} is a {type(value).__name__}, not text; write the text itself in quotes")
    if len(value) > MAX_CHARACTERS:
        raise BadRow(
            f"field {name!r} has {len(value):,} characters, at most {MAX_CHARACTERS:,} are read; shorten it or remove the row"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"field {name!r} holds half a character at place {error.start + 1}; write it as valid Unicode") from error
    return value


def plain(value: Any, name: str) -> str:
    """A text or number as text; '' when missing."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadRow(f"field {name!r} is {value}; write the value as text, or leave it out when unknown")
        return str(int(value) if value.is_integer() else value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text(value, name)


def identifier(value: Any, name: str) -> str:
    """An id as text."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        found = "missing" if value is None else f"a {type(value).__name__}"
        raise BadRow(f"field {name!r} is {found}; an id is text or a whole number")
    found = text(str(value), name)
    if not found.strip() or len(found) > MAX_ID or any(ord(letter) < 32 for letter in found):
        raise BadRow(
            f"field {name!r} is empty, longer than {MAX_ID} characters or holds control characters; give the row a short id"
        )
    return found


def difficulty(value: Any, name: str, rules: Rules, text_only: bool) -> float:
    """A label, larger is harder; NaN when missing."""
    if value is None:
        return math.nan
    if text_only:
        try:
            value = float(value)
        except ValueError as error:
            raise BadRow(f"field {name!r} is {value[:40]!r}, not a number; leave it empty when unknown") from error
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(f"field {name!r} is {str(value)[:40]!r}, a {type(value).__name__}, not a number; leave it out when unknown")
    if not abs(value) <= 1e12:
        raise BadRow(f"field {name!r} is {str(value)[:40]}, not a finite number of usual size; leave it out when unknown")
    label, allowed = float(value), rules.allowed
    if allowed is not None and not allowed[0] <= label <= allowed[1]:
        fix = "mend it, leave it out when unknown, or set --label-range"
        raise BadRow(f"field {name!r} is {label:g}, outside {allowed[0]:g} to {allowed[1]:g}; {fix}")
    return (sum(allowed) if allowed else 0.0) - label if rules.turned else label


def truth(value: Any, name: str, text_only: bool) -> float:
    """1 for true, 0 for false, NaN when missing."""
    if text_only and value is not None:
        value = TRUTH.get(value.strip().lower(), value)
    if value is None:
        return math.nan
    if value not in (0, 1):  # True and False are
        raise BadRow(f"field {name!r} is {str(value)[:40]!r}; write true or false, or leave it out when unknown")
    return float(value)
