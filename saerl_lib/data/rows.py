"""One reader of rows for every source, and one judge of what a row holds: a sample, or the reason why it is none.

A source is a file (JSON lines, a JSON document, CSV, TSV, Parquet or Arrow; text may be gzip or zstd), a folder or a pattern of
such files, or a data set of the Hugging Face Hub. `rows` streams it as it stands there; `judge` names row, field and fix; `read`
holds a whole source. Rows may have the schemas of the trainers: chat messages, answers inside other fields (`NAMES`).
"""

from __future__ import annotations

import csv
import dataclasses
import decimal
import glob
import gzip
import io
import itertools
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saerl_lib.data.answers import GSM8K, bare_answer, read_final_answer
from saerl_lib.data.sample import DataError, Dataset, Dropped, Judged, Sample, lines
from saerl_lib.settings import DEFAULTS, Fields, RowFields

USUAL = Fields()
"""The usual names."""
NAMES = {
    "id": ("id", "sample_id", "unique_id", "uuid", "extra_info.sample_id", "extra_info.id"),
    "prompt": ("responses_create_params.input", "question", "problem", "prompt", "messages", "conversations", "input", "query"),
    "answer": ("answer", "ground_truth", "reward_model.ground_truth", "final_answer", "expected_answer", "gold", "output"),
    "solution": ("solution", "worked_solution", "extra_info.solution"),
    "topic": ("subject", "topic", "problem_type", "type", "extra_info.subject"),
}
"""What a field may be called where it is not named; the first that holds a value is taken. A dot leads into an object."""
KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""Endings that are read; those of text may be followed by .gz or .zst. A .json file may also hold one document."""
PACKED = {".gz": "gzip", ".zst": "zstd"}
HUB = re.compile(r"(?:hub:)?([\w.-]+/[\w.-]+)(?:@([0-9a-f]{40}))?(?::([\w.-]+))?(?::([\w.-]+))?")
"""[hub:]owner/name[@commit][:configuration][:split]."""
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\..*)")
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
SHORT = 60
"""A solution of one line and at most so many characters may be the answer itself (ours)."""
LEVEL = re.compile(r"\s*(?:level\s*)?-?\d+(?:\.\d+)?\s*", re.IGNORECASE)
"""A label as text, such as MATH's 'Level 3'."""
TRUTH = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}
"""Quality labels of a CSV file."""
ROLES = {"human": "user", "gpt": "assistant"}
"""Other names of the roles in a chat."""


@dataclass(frozen=True)
class Row:
    """One row of a source."""

    where: str
    """Such as 'line 7' (JSON lines, CSV) or 'row 7' (others), counted from 1; with the file's name where there are several."""
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
    """A file, a folder or a pattern of files, or owner/name on the hub."""
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
        return self.place if self.published else Path(self.place).resolve().name


def kind_of(path: Path) -> str:
    """The ending of `KINDS` that a file's name has, .gz and .zst aside; '' for another."""
    name = path.name
    for packed in PACKED:
        name = name.removesuffix(packed)
    return next((kind for kind in KINDS if name.endswith(kind)), "")


def files_of(place: str) -> list[Path]:
    """The files of a path, in name order: itself, those of a folder (below it where it holds none), or those of a pattern.

    A folder's .json files are passed over as descriptions where it holds data of another kind. Raises DataError for no file, or
    a shard `-0000i-of-0000n` that is not there.
    """
    path = Path(place)
    if path.is_dir():
        below = [p for p in path.rglob("*") if p.is_file() and kind_of(p)]
        below = [p for p in below if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        found = (
            [p for p in below if p.parent == path and kind_of(p) != ".json"]
            or [p for p in below if kind_of(p) != ".json"]
            or below
        )
    elif path.exists() or not glob.has_magic(place):
        return [path]
    else:
        found = [p for p in map(Path, glob.glob(place, recursive=True)) if p.is_file() and kind_of(p)]
    if not found:
        what = "is a folder" if path.is_dir() else "is a pattern"
        raise DataError(f"{place}: {what} without a file that is read ({', '.join(KINDS)}); name another")
    shards: dict[tuple[str, ...], set[int]] = {}
    for match in filter(None, (SHARD.fullmatch(str(p)) for p in found)):
        shards.setdefault((match[1], match[3], match[4]), set()).add(int(match[2]))
    for (name, total, ending), there in shards.items():
        if absent := set(range(int(total))) - there:
            raise DataError(
                f"{Path(name).name}-{min(absent):05d}-of-{total}{ending} is missing in {place}; fetch all {int(total)} shards"
            )
    return sorted(found)


def rows(source: Source | str | Path, columns: Sequence[str] = ()) -> Iterator[Row]:
    """Every row of a source, streamed (CSV files and JSON documents are held whole); of Parquet only `columns`, where named.

    Raises DataError with name and fix: what `files_of` raises, no such file, an unknown ending, not gzip, not Parquet, CSV that
    is no UTF-8 or has no header, an empty file, or a hub data set that cannot be read. A row that cannot be read comes with its
    problem.
    """
    source = source if isinstance(source, Source) else Source.parse(str(source))
    if source.published:
        yield from _hub(source)
        return
    place, files = Path(source.place), files_of(source.place)
    for path in files:
        shown = path.relative_to(place).as_posix() if place.is_dir() else path.name
        for row in _file(path, columns):
            yield row if files == [place] else dataclasses.replace(row, where=f"{shown}, {row.where}")


def _file(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a file ({', '.join(KINDS)}) or a hub data set as owner/name")
    kind = kind_of(path)
    if not kind:
        raise DataError(
            f"{path.name}: unknown ending; name the file {', '.join(KINDS)} by what it holds (.gz or .zst may follow)"
        )
    if kind in (".parquet", ".arrow"):
        found = _table(path, columns)
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
    try:
        with _opened(path) as handle:
            yield from handle
    except (OSError, EOFError, zlib.error, ValueError) as error:
        packed = PACKED.get(path.suffix)
        fix = f"; the name may end in {path.suffix} only when the file is {packed}" if packed else ""
        raise DataError(f"{path.name}: cannot be read ({error}){fix}") from error


def _opened(path: Path) -> io.BufferedIOBase:
    if path.suffix == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


# JSON lines: data files and logs.


def json_rows(path: Path, strict_end: bool = True) -> Iterator[Row]:
    """One row a line that holds something, or those of one JSON document (`_document`).

    A file is a document when its first line is no object by itself. Without `strict_end` a last line that a kill cut short is
    left out.
    """
    for number, line in enumerate(_byte_lines(path), start=1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if number == 1 and (line.lstrip()[:1] == b"[" or line.strip() in (b"", b"{") or kind_of(path) == ".json"):
            if (found := _document(path)) is not None:
                yield from found
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


def _document(path: Path) -> list[Row] | None:
    """The rows of a file that holds JSON values not one a line: objects, one list of them, or one object around such a list.

    None for JSON lines. Raises DataError with file, line and fix for what is broken in it.
    """
    data = b"".join(_byte_lines(path)).removeprefix(b"\xef\xbb\xbf")
    head = data.lstrip().partition(b"\n")[0]
    if head[:1] == b"{" and _json_row(head, "").record is not None and data.strip() != head.strip():
        return None  # more than one line, the first one whole
    try:
        text, reader, values, place = data.decode("utf-8").strip(), json.JSONDecoder(object_pairs_hook=_object), [], 0
        while place < len(text):
            value, place = reader.raw_decode(text, place)
            values.append(value)
            place += len(text[place:]) - len(text[place:].lstrip(" \t\r\n,"))
    except (ValueError, RecursionError) as error:
        if kind_of(path) != ".json" and head.strip() not in (b"[", b"{"):
            return None
        reason = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{path.name}: not JSON ({reason}); write one list of objects, or one object a line") from error
    if len(values) == 1 and isinstance(values[0], dict):
        around = [value for value in values[0].values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        if len(around) == 1 and "role" not in around[0][0]:
            values = around
        elif values[0] and all(isinstance(value, dict) for value in values[0].values()):
            raise DataError(f"{path.name}: one object of columns; write rows (pandas: to_json(orient='records', lines=True))")
    records = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    return [
        Row(f"row {number}", record) if isinstance(record, dict)
        else Row(f"row {number}", None, f"is a {type(record).__name__}, not an object; write every row as an object")
        for number, record in enumerate(records, start=1)
    ]  # fmt: skip


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


def _table(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of Parquet, or of Arrow as a stream or a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = itertools.count(1)
    try:
        with pq.ParquetFile(path) if kind_of(path) == ".parquet" else _arrow(path) as file:
            schema = file.schema if kind_of(path) == ".arrow" else file.schema_arrow
            if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
                raise DataError(f"{path.name}: the column {twice[0]!r} occurs twice; rename one of them")
            wanted = [name for name in columns if name in schema.names] if columns else None
            whole = kind_of(path) == ".arrow"
            for batch in file if whole else file.iter_batches(READ_ROWS, columns=wanted):
                yield from (Row(f"row {next(numbers)}", record) for record in batch.to_pylist())
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        kind = "Arrow" if kind_of(path) == ".arrow" else "Parquet"
        raise DataError(f"{path.name}: cannot be read as {kind} ({str(error)[:200]}); write it again, text as UTF-8") from error


def _arrow(path: Path) -> Any:
    import pyarrow as pa

    if path.read_bytes()[:6] != b"ARROW1":
        return pa.ipc.open_stream(path)
    return pa.ipc.RecordBatchReader.from_batches(
        (file := pa.ipc.open_file(path)).schema, map(file.get_batch, range(file.num_record_batches))
    )


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
    """Whether a row without an answer is never planned, where the source has answers; without it answers stay as written."""
    from_solution: bool = False
    """Whether the answer stands in the solution: in its last box, or as all of a short one."""
    seen: dict[str, str] = dataclasses.field(default_factory=dict)
    """Id -> the place of its row, filled by `judge`."""


class BadRow(Exception):
    """A row that cannot be used; the message names field and fix."""


def read(
    sources: Sequence[Source | str | Path], fields: RowFields = USUAL, *, allowed: tuple[float, float] | None = None,
    turned: bool = False, skip_bad_rows: bool = False, least: int = 1,
) -> Dataset:  # fmt: skip
    """The usable rows of sources that are read as one list, with labels and the others; `allowed` and `turned` as in `Rules`.

    A row without an answer is set aside when other rows have one: no reward could be computed for it, but its labels count.
    Without a field of answers they are looked for in the solutions, and taken from there when half of those have one. Raises
    DataError that names file, row, field and fix: what `rows` and `resolve_fields` raise; malformed rows (the first five are
    listed), unless `skip_bad_rows` sets them aside; or fewer usable rows than `least`.
    """
    places = [source if isinstance(source, Source) else Source.parse(str(source)) for source in sources]
    several = len(places) > 1
    raw = [
        dataclasses.replace(row, where=f"{place.name}, {row.where}") if several else row
        for place in places
        for row in rows(place)
    ]
    name = places[0].name + (f" and {len(places) - 1} more" if several else "")
    names, notes = resolve_fields(name, [row.record for row in raw if row.record is not None], fields)
    rules = Rules(names, allowed, turned, from_solution="answer" not in names)
    outcomes = [judge(row, number, rules) for number, row in enumerate(raw, start=1)]
    if rules.from_solution:
        told = [
            bool(found.sample.answer)
            for found in outcomes
            if isinstance(found, Judged) and (found.sample.solved or found.sample.answer)
        ]
        if 2 * sum(told) > len(told):
            notes.append("answers were read from the solutions: the last box, or all of a short one")
        else:
            notes.append("there is no field of answers: whether a row can be rewarded was not checked")
            rules = Rules(names, allowed, turned, need_answer=False)
            outcomes = [judge(row, number, rules) for number, row in enumerate(raw, start=1)]
    dropped = tuple(found for found in outcomes if isinstance(found, Dropped))
    kept = [(row.where, found) for row, found in zip(raw, outcomes, strict=True) if isinstance(found, Judged)]
    bad = [f"{problem.where}: {problem.reason}" for problem in dropped]
    if bad and not skip_bad_rows:
        listed = "\n".join(f"  {name}, {problem}" for problem in bad[:SHOWN])
        more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise DataError(f"{name}: of {len(raw)} rows, {len(bad)} cannot be used:\n{listed}{more}\nmend them, or pass "
                        "--skip-bad-rows to leave them out and have them listed")  # fmt: skip
    numbers = np.array([(found.label, found.quality) for _, found in kept], dtype=float).reshape(-1, 2)
    samples, where = tuple(found.sample for _, found in kept), tuple(place for place, _ in kept)
    aside = tuple(found.aside for _, found in kept if found.aside is not None)
    data = Dataset(name, samples, where, numbers[:, 0], numbers[:, 1], dropped, tuple(notes), aside)
    require(data, least)
    return data


def require(data: Dataset, least: int) -> None:
    """Raises DataError unless at least so many rows may be planned."""
    usable = len(data.samples) - len(data.aside)
    if usable < least:
        needed = f"at least {least} are needed" + (f" (one batch, and {MIN_ROWS} rows)" if least >= MIN_ROWS else "")
        lower = " or lower --prompts-per-step" if usable >= MIN_ROWS else ""
        out = [*data.dropped, *data.aside]
        first = f"; first row left out: {out[0].where}: {out[0].reason}" if out else ""
        raise DataError(f"{data.name}: {usable} of {data.read} rows are usable, {needed}; add rows{lower}{first}")


def judge(row: Row, number: int, rules: Rules) -> Judged | Dropped:
    """What a row holds, or why it cannot be used; `number` counts the rows of the source from 1 and names rows without id."""
    try:
        judged = _judged(row, number, rules)
    except BadRow as problem:
        value = field_of(row.record or {}, rules.names.get("id", ""))
        shown = str(value)[:MAX_ID].encode("utf-8", "replace").decode() if isinstance(value, str | int) else ""
        return Dropped(row.where, shown, "malformed", str(problem))
    rules.seen[judged.sample.id] = row.where
    if judged.sample.answer or not rules.need_answer or not (rules.from_solution or "answer" in rules.names):
        return judged
    reason = "no answer, so no reward could be computed"
    if judged.quality == 0:
        reason = "labelled flawed and without an answer: it trains the quality filter and is never planned"
    return dataclasses.replace(judged, aside=Dropped(row.where, judged.sample.id, "no answer", reason))


def _judged(row: Row, number: int, rules: Rules) -> Judged:
    if row.record is None:
        raise BadRow(row.problem)
    names = {field.name: rules.names.get(field.name, "") for field in dataclasses.fields(Fields)}
    given = {field: field_of(row.record, name) for field, name in names.items() if name}
    asked = chat(given.get("prompt"), names["prompt"])
    solution = text(given.get("solution"), names["solution"]) or asked.reply
    if not asked.question.strip():
        raise BadRow(f"field {names['prompt']!r} is missing or empty; fill it in or remove the row")
    answer, topic = (plain(given.get(field), names[field]).strip() for field in ("answer", "topic"))
    if rules.from_solution:
        answer = read_final_answer(solution) or ("" if "\n" in solution.strip() or len(solution) > SHORT else solution.strip())
    if rules.need_answer:
        if (marked := GSM8K.search(answer)) and not solution:
            solution = answer[: marked.start()]
        alone = (answer, f"\\boxed{{{answer}}}", f"$\\boxed{{{answer}}}$")  # TRL calls the answer a solution
        solution = "" if solution.strip() in alone else solution
        answer = bare_answer(answer)
    name = identifier(given["id"], names["id"]) if "id" in given else f"row-{number:06d}"
    sample = Sample(
        name, asked.question, lines(solution), answer, topic, solved=bool(solution.strip()), before=asked.before
    )
    label = difficulty(given.get("labels"), names["labels"], rules, row.text_only)
    quality = truth(given.get("quality"), names["quality"], row.text_only)
    if name in rules.seen:
        raise BadRow(f"id {name!r} was already used in {rules.seen[name]}; give every row its own id")
    return Judged(sample, label, quality)


def field_of(record: Mapping[str, Any], name: str) -> Any:
    """The value of a field; a dot leads into an object where no field has the whole name. None when it is absent.

    >>> field_of({"a": {"b": 1}, "c.d": 2}, "a.b"), field_of({"c.d": 2}, "c.d"), field_of({"a": 3}, "a.b")
    (1, 2, None)
    """
    if name in record or "." not in name:
        return record.get(name)
    first, _, rest = name.partition(".")
    inner = record.get(first)
    return field_of(inner, rest) if isinstance(inner, Mapping) else None


def resolve_fields(name: str, records: Sequence[Mapping[str, Any]], fields: RowFields) -> tuple[dict[str, str], list[str]]:
    """(our name -> the file's, what was assumed) for the rows `records`.

    Raises DataError for a field that no row has.
    """
    names: dict[str, str] = {}
    notes: list[str] = []
    present = dict.fromkeys(key for record in records for key in record)
    if not present:
        return {"prompt": DEFAULTS["prompt"]}, notes

    def there(wanted: str) -> bool:
        return any(field_of(record, wanted) is not None for record in records)

    for entry in dataclasses.fields(fields):
        given, known = getattr(fields, entry.name), NAMES.get(entry.name, ())
        option = f"--{entry.name}" if entry.name in ("labels", "quality") else f"--{entry.name}-field"
        found = [usual for usual in known if there(usual)] if given is None else [given] * (given in present or there(given))
        if found:
            names[entry.name] = found[0]
        elif given or entry.name == "prompt":
            listed = ", ".join(list(present)[:20])
            missing = f"a field {given!r}" if given else f"a prompt under a usual name ({', '.join(known)})"
            raise DataError(f"{name}: no row has {missing}; its fields are: {listed}; name the right one with {option}")
        if given is None and found and found[0] != DEFAULTS[entry.name]:
            notes.append(f"{entry.name}: the field {found[0]!r} was taken; {option} names another")
    if "id" not in names:
        notes.append(f"the file has no field {DEFAULTS['id']!r}: ids are row numbers")
    return names, notes


# One value.


class Chat(NamedTuple):
    """A prompt as it was written."""

    question: str
    before: str = ""
    """As in `Sample.before`."""
    reply: str = ""
    """What the assistant says behind the question."""


def chat(value: Any, name: str) -> Chat:
    """The question of a prompt: all of a text, or the last message of the user in a chat, also one written as JSON text."""
    if isinstance(value, str) and re.match(r"\s*\[\s*\{\s*\"(?:role|from|content)\"", value):
        try:
            value = json.loads(value)
        except ValueError:
            return Chat(text(value, name))
    value = _element(value, name) if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) else value
    if not isinstance(value, list):
        return Chat(text(value, name))
    messages = []
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "from"} & set(message):
            raise BadRow(f"field {name!r} is a list, but not of chat messages; write objects with role and content")
        role = str(message.get("role") or message.get("from"))
        content = message.get("content", message.get("value"))
        if isinstance(content, list):
            if any(not isinstance(part, Mapping) or not isinstance(part.get("text"), str) for part in content):
                raise BadRow(f"field {name!r} holds a message that is not text alone; a plan reads text")
            content = "".join(part["text"] for part in content)
        messages.append({"role": ROLES.get(role, role), "content": text(content, name)})
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        raise BadRow(f"field {name!r} holds no message of the user; write the question as one")
    before = json.dumps(messages[:last]) if last else ""
    reply = "\n".join(message["content"] for message in messages[last + 1 :] if message["role"] == "assistant")
    return Chat(messages[last]["content"], before, reply)


def _element(value: Any, name: str) -> Any:
    """The one element of a list; other values as they are."""
    if not isinstance(value, list):
        return value
    if len(value) > 1:
        raise BadRow(f"field {name!r} is a list of {len(value)}, where one value is read; write one")
    return value[0] if value else None


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
    """A text, number, truth value or bytes, also as the one element of a list, as text; '' when missing."""
    value = _element(value, name)
    if isinstance(value, float | decimal.Decimal):
        if not math.isfinite(value):
            raise BadRow(f"field {name!r} is {value}; write the value as text, or leave it out when unknown")
        return (
            str(int(value))
            if value == int(value)
            else format(value.normalize(), "f")
            if isinstance(value, decimal.Decimal)
            else str(value)
        )
    if isinstance(value, bytes):
        try:
            return text(value.decode("utf-8"), name)
        except UnicodeDecodeError as error:
            raise BadRow(f"field {name!r} holds bytes that are no UTF-8; write it as text") from error
    return str(value) if isinstance(value, int) else text(value, name)


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
    if isinstance(value, str) and (text_only or LEVEL.fullmatch(value)):
        try:
            value = float(re.sub(r"\A\s*level\s*", "", value, flags=re.IGNORECASE))
        except ValueError as error:
            raise BadRow(f"field {name!r} is {value[:40]!r}, not a number; leave it empty when unknown") from error
    value = float(value) if isinstance(value, decimal.Decimal) else value
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
