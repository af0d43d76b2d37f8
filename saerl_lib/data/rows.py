"""One reader of rows for every source, as they stand there; what they hold is for `saerl_lib.data.judge` to say.

A source is a file (JSON lines, a JSON document, CSV, TSV, Parquet or Arrow; text may be gzip or zstd), a folder or a pattern of
such files, or a data set of the Hugging Face Hub. A row that cannot be read comes with its problem.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import glob
import io
import itertools
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saerl_lib.data.sample import DataError

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""Endings that are read; those of text may be followed by .gz or .zst. A .json file may also hold one document."""
PACKED = {".gz": "gzip", ".zst": "zstd"}
HUB = re.compile(
    r"(?:hub:|https://huggingface\.co/datasets/)?([\w.-]+/[\w.-]+)/?(?:@([0-9a-f]{40}))?(?::([\w.-]+))?(?::([\w.-]+))?"
)
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
"""What the names of files begin or end with that belong to a split."""
FOLDED = re.compile(r"""\s*(?:\[\s*)?\{\s*["']|\s*\[\s*["']|\s*\[\s*-?\d+(?:\.\d+)?\s*\]\s*\Z""")
"""How an object, a list of objects or texts, or a list of one number begins as text."""
DEEP = 8
"""Objects inside objects in which a field is looked for (ours)."""
ABSENT = ("n/a", "null", "none", "nan", "-", "--", "unknown", "proof", "notfound", "not found")
"""Answers and labels that say that there is none, such as those of NuminaMath."""


class Row(NamedTuple):
    """One row of a source."""

    where: str
    """Such as 'line 7' (JSON lines, CSV) or 'row 7' (others), counted from 1; with the file's name where there are several."""
    record: dict[str, Any] | None
    """Field -> value; None when the row cannot be read."""
    problem: str = ""
    """Why it cannot be read, and the fix."""


class Source(NamedTuple):
    """Where rows come from."""

    place: str
    """A file, a folder or a pattern of files, or owner/name on the hub."""
    split: str | None = None
    """Split of a hub data set, None: train; or of the files of a folder, None: those of all, which must be of one split."""
    configuration: str | None = None
    data_file: str | None = None
    """The one file to read, for a repository of plain JSON lines."""
    revision: str | None = None
    streaming: bool = False
    """Read a hub data set over the network row by row, instead of keeping it in the cache."""
    published: bool = False
    """`place` is a hub repository, or a folder laid out as one."""

    @classmethod
    def parse(cls, text: str, split: str | None = None, streaming: bool = False) -> Source:
        """A path that exists or has an ending of `KINDS`, else [hub:]owner/name[@commit][:configuration][:split], or its page."""
        named = HUB.fullmatch(text)
        if named is None or Path(text).exists() or kind_of(Path(text)):
            return cls(text, split)
        name, commit, configuration, own_split = named.groups()
        return cls(name, own_split or split, configuration, None, commit, streaming, published=True)

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.place if self.published else Path(self.place).resolve().name


def kind_named(value: object) -> str:
    """The type of a value as a message names it, such as 'an int' or 'bytes'."""
    name = type(value).__name__
    return name if name.endswith("s") else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def kind_of(path: Path) -> str:
    """The ending of `KINDS` that a file's name has, .gz and .zst aside; '' for another."""
    name = path.name
    for packed in PACKED:
        name = name.removesuffix(packed)
    return next((kind for kind in KINDS if name.endswith(kind)), "")


def split_of(path: Path) -> str:
    """The split that a file's name begins or ends with (test-00000-of-00001.parquet, math_test.jsonl), or else a folder above it
    begins with; '' for none."""
    stem = re.sub(r"-\d{5}-of-\d{5}\Z", "", path.name.partition(kind_of(path) or " ")[0])
    name, *above = (re.split(r"[-_.]", part.lower()) for part in (stem, *reversed(path.parts[:-1])))
    return next((part for part in (name[0], name[-1], *(parts[0] for parts in above)) if part in SPLITS), "")


def files_of(place: str, split: str | None = None) -> list[Path]:
    """The files of a path, in name order: itself, those of a folder (below it where it holds none), or those of a pattern. A
    folder's .json files are passed over as descriptions where it holds data of another kind; of one with splits those of `split`
    are taken. Raises DataError for no file, several splits without the name of one, or a shard that is not there."""
    path = Path(place)
    if path.is_dir():
        below = [p for p in path.rglob("*") if p.is_file() and kind_of(p)]
        below = [p for p in below if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        data = [p for p in below if kind_of(p) != ".json"]
        found = [p for p in data if p.parent == path] or data or below
        splits = sorted({split_of(p.relative_to(path)) for p in found} - {""})
        if splits and split not in splits and (split or len(splits) > 1):
            fix = f"name one with --split, such as --split {splits[-1]}, or the files by a pattern such as {found[0].parent}/*"
            raise DataError(f"{place}: holds the splits {', '.join(splits)}; {fix}")
        found = [p for p in found if len(splits) < 2 or split_of(p.relative_to(path)) == split]
    elif path.exists() or not glob.has_magic(place):
        return [path]
    else:
        found = [p for p in map(Path, glob.glob(place, recursive=True)) if p.is_file() and kind_of(p)]
    if not found:
        what = "is a folder" if path.is_dir() else "is a pattern"
        raise DataError(f"{place}: {what} without a file that is read ({', '.join(KINDS)}); name another")
    shards: dict[tuple[str, ...], set[int]] = {}
    for match in filter(None, (re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})(\..*)", str(p)) for p in found)):
        shards.setdefault((match[1], match[3], match[4]), set()).add(int(match[2]))
    for (name, total, ending), there in shards.items():
        if absent := set(range(int(total))) - there:
            raise DataError(
                f"{Path(name).name}-{min(absent):05d}-of-{total}{ending} is missing in {place}; fetch all {int(total)} shards"
            )
    return sorted(found)


def rows(source: Source, columns: Sequence[str] = ()) -> Iterator[Row]:
    """Every row of a source, streamed (CSV files and JSON documents are held whole); of Parquet only `columns`, where named.
    Raises DataError with name and fix: what `files_of` raises, no such file, an unknown ending, not gzip, not Parquet, CSV that
    is no UTF-8 or has no header, an empty file, or a hub data set that cannot be read."""
    if source.published:
        yield from _hub(source)
        return
    place, files = Path(source.place), files_of(source.place, source.split)
    for path in files:
        shown = path.relative_to(place).as_posix() if place.is_dir() else path.name
        for row in _file(path, columns):
            yield row if files == [place] else row._replace(where=f"{shown}, {row.where}")


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
    import pyarrow as pa

    try:
        with io.BufferedReader(pa.input_stream(str(path), compression=PACKED.get(path.suffix))) as handle:
            for number, line in enumerate(handle):
                if not number and line[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    raise DataError(f"{path.name}: the text is UTF-16; save the file as UTF-8")
                yield line
    except OSError as error:
        packed = PACKED.get(path.suffix)
        fix = f"; the name may end in {path.suffix} only when the file is {packed}" if packed else ""
        raise DataError(f"{path.name}: cannot be read ({error}){fix}") from error


# JSON lines: data files and logs.


def json_rows(path: Path, strict_end: bool = True) -> Iterator[Row]:
    """One row a line that holds something, or those of one JSON document: a file whose first line is no object by itself. Without
    `strict_end` a last line that a kill cut short is left out."""
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
    """The rows of a file that holds one list of objects, one object around such a list, or one object; None for JSON lines.
    Raises DataError with file, line and fix for what is broken in it."""
    data = b"".join(_byte_lines(path)).removeprefix(b"\xef\xbb\xbf")
    head = data.lstrip().partition(b"\n")[0]
    if head[:1] == b"{" and _json_row(head, "").record is not None and data.strip() != head.strip():
        return None  # more than one line, the first one whole
    try:
        value = json.loads(data, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        if kind_of(path) != ".json" and head.strip() not in (b"[", b"{"):
            return None
        told = f"line {error.lineno}: {error.msg.removesuffix(' at')}" if isinstance(error, json.JSONDecodeError) else error
        told = f"byte {error.start + 1} is no UTF-8" if isinstance(error, UnicodeDecodeError) else told
        raise DataError(f"{path.name}: not JSON ({told}); write one list of objects, or one object a line") from error
    records = value if isinstance(value, list) else _listed(value, path.name) if isinstance(value, dict) else [value]
    return [
        Row(f"row {number}", record) if (record := _as_object(given)) is not None
        else Row(f"row {number}", None, f"is {kind_named(given)}, not an object; write every row as an object")
        for number, given in enumerate(records, start=1)
    ]  # fmt: skip


def _listed(value: dict[str, Any], name: str) -> list[Any]:
    """The rows of one object: of its columns as lists, those of the one list in it, by their ids, or itself as the one row.
    Raises DataError for an object of several splits, or of columns as objects."""
    inside = list(value.values())
    around = [inner for inner in inside if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    if len(around) > 1 and set(value) <= set(SPLITS):
        raise DataError(f"{name}: one object of the splits {', '.join(value)}; write each into a file of its own")
    columns = bool(inside) and all(isinstance(inner, list) and len(inner) == len(inside[0]) > 1 for inner in inside)
    if columns and (len(inside) > 1 or not around):
        return [dict(zip(value, cells, strict=True)) for cells in zip(*inside, strict=True)]
    if len(around) == 1 and "role" not in around[0][0]:
        return around[0]
    if inside and all(isinstance(inner, dict) for inner in inside):
        if len({tuple(inner) for inner in inside}) > 1 or all(key.isdigit() for key in inside[0]):
            raise DataError(f"{name}: one object of columns; write rows (pandas: to_json(orient='records', lines=True))")
        return [{"id": key, **inner} for key, inner in value.items()]
    return [value]


def _as_object(value: Any) -> dict[str, Any] | None:
    """A row as an object, also where it is a bare list of chat messages; None for what is neither."""
    if isinstance(value, list) and value and all(isinstance(one, dict) and {"role", "from"} & set(one) for one in value):
        return {"messages": value}
    return value if isinstance(value, dict) else None


def _json_row(line: bytes, where: str) -> Row:
    """One line of JSON; a line that is no JSON object becomes a row with a problem."""
    try:
        given = json.loads(line.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return Row(where, None, f"byte {error.start + 1} is no UTF-8; save the file as UTF-8")
    except json.JSONDecodeError as error:
        return Row(where, None, f"not JSON ({error.msg.removesuffix(' at')} at column {error.colno}); write one object a line")
    except (ValueError, RecursionError) as error:
        return Row(where, None, f"not readable JSON ({error}); write one flat object a line")
    if (record := _as_object(given)) is None:
        return Row(where, None, f"expected a JSON object, found {type(given).__name__}; write one object a line")
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
    found, wanted = list[Row](), {",": "commas", "\t": "tabs"}[separator]
    before = csv.field_size_limit(max(1, len(text)))
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
        header = next(reader, [])
        if len(header) == 1 and (other := next((sign for sign in ",;\t|" if sign in header[0]), "")):
            raise DataError(f"{name}, line 1: one column {header[0][:60]!r}; separate the cells by {wanted} instead of {other!r}")
        if len(set(header)) < len(header):
            raise DataError(f"{name}, line 1: a column name occurs twice; give every column its own name")
        start = reader.line_num + 1
        for cells in reader:
            where, start = f"line {start}", reader.line_num + 1
            if len(cells) == len(header):
                found.append(Row(where, {key: cell or None for key, cell in zip(header, cells, strict=True)}))
            elif cells:
                problem = f"{len(cells)} cells where the header has {len(header)}; quote cells that hold {wanted}"
                found.append(Row(where, None, problem))
    except csv.Error as error:
        fix = f"quote cells that hold {wanted}, quotes or line ends"
        said = str(error).replace("\t", "tab")
        raise DataError(f"{name}, line {reader.line_num}: not CSV ({said}); {fix}") from error
    finally:
        csv.field_size_limit(before)
    return found


def _table(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of Parquet, or of Arrow as a stream or a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow, numbers = kind_of(path) == ".arrow", itertools.count(1)
    try:
        with path.open("rb") as file:
            whole = arrow and file.read(6) == b"ARROW1"
        with (pa.ipc.open_file if whole else pa.ipc.open_stream if arrow else pq.ParquetFile)(path) as file:
            names = (file.schema if arrow else file.schema_arrow).names
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise DataError(f"{path.name}: the column {twice[0]!r} occurs twice; rename one of them")
            wanted = [name for name in columns if name in names] if columns else None
            batches = map(file.get_batch, range(file.num_record_batches)) if whole else file
            for batch in batches if arrow else file.iter_batches(1024, columns=wanted):
                batch.validate(full=True)  # or a broken offset would be read outside the file, which ends the process
                yield from (Row(f"row {next(numbers)}", record) for record in batch.to_pylist())
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        if path.read_bytes()[:7] == b"version":
            raise DataError(f"{path.name}: is a pointer of Git LFS, not the data; `git lfs pull` in its repository") from error
        kind, told = "Arrow" if arrow else "Parquet", re.sub(r"[^ -~]+", " ", str(error)).strip()[:200]
        raise DataError(f"{path.name}: cannot be read as {kind} ({told}); write it again, text as UTF-8") from error


def _hub(source: Source) -> Iterator[Row]:
    from datasets import load_dataset

    number, split = 0, source.split or "train"
    try:
        found = load_dataset(
            source.place, name=source.configuration, data_files=source.data_file, split=split,
            revision=source.revision, streaming=source.streaming,
        )  # fmt: skip
        for number, record in enumerate(found, start=1):
            yield Row(f"row {number}", dict(record))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{source.place}: no such file, and not readable from the Hugging Face Hub, split {split!r} "
                        f"({reason}); check the name, --split and the network") from error  # fmt: skip
    if not number:
        raise DataError(f"{source.place}: split {split!r} holds no row; name another with --split")


def field_of(record: Mapping[str, Any], name: str) -> Any:
    """The value of a field; a dot leads into an object (`unfolded`) where no field has the whole name. None when it is absent.

    >>> field_of({"a": {"b": 1}, "c.d": 2}, "a.b"), field_of({"c.d": 2}, "c.d"), field_of({"a": 3}, "a.b")
    (1, 2, None)
    """
    if name in record or "." not in name:
        return record.get(name)
    first, _, rest = name.partition(".")
    inner = unfolded(record.get(first))
    return field_of(inner, rest) if isinstance(inner, Mapping) else None


def unfolded(value: Any) -> Any:
    """The object or list (`FOLDED`) that a text is, in JSON or as pandas writes it into CSV; other values as they are."""
    if isinstance(value, str) and FOLDED.match(value):
        printed = re.sub(r"\}\s*\n\s*\{(?=[\"'])", "}, {", value)  # by NumPy
        for parse, written in ((json.loads, value), (ast.literal_eval, value), (ast.literal_eval, printed)):
            with contextlib.suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError), warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                return parse(written)
    return value


def filled_fields(record: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The fields of a row that hold something, those inside objects behind a dot."""
    for key, value in record.items():
        if value is not None and not (isinstance(value, str) and value[:20].strip().lower() in ("", *ABSENT)):
            yield f"{above}{key}"
            if isinstance(inner := unfolded(value), Mapping) and above.count(".") < DEEP:
                yield from filled_fields(inner, f"{above}{key}.")
