"""One judge of what a row holds: a sample, or the reason why it is none; and `read`, which holds a whole source.

`judge` names row, field and fix. Rows may have the schemas of the trainers: chat messages, answers inside other fields (`NAMES`).
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import decimal
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saerl_lib.data.answers import GSM8K, bare_answer, read_final_answer
from saerl_lib.data.rows import Row, Source, kind_named, rows
from saerl_lib.data.sample import DataError, Dataset, Dropped, Judged, Sample, lines, number_of
from saerl_lib.settings import DEFAULTS, Fields, RowFields

NAMES = {
    "id": ("id", "sample_id", "unique_id", "uuid", "extra_info.sample_id", "extra_info.id"),
    "prompt": ("responses_create_params.input", "question", "problem", "prompt", "messages", "conversations", "input", "query",
               "instruction"),
    "answer": ("answer", "ground_truth", "reward_model.ground_truth", "final_answer", "expected_answer", "gold", "output"),
    "solution": ("solution", "worked_solution", "extra_info.solution"),
    "topic": ("subject", "topic", "problem_type", "type", "extra_info.subject"),
}
"""What a field may be called where it is not named; the first that holds a value is taken. A dot leads into an object."""
MIN_ROWS = 10
"""Fewer usable rows give neither clusters nor a plan (ours)."""
MAX_CHARACTERS, MAX_ID = 200_000, 200
"""Longest prompt or solution, longer ones are broken exports rather than problems; longest id (ours)."""
DEEP = 8
"""Objects inside objects in which a field is looked for (ours)."""
SHORT = 60
"""A solution of one line and at most so many characters may be the answer itself (ours)."""
LEVEL = re.compile(r"\s*(?:level\s*)?-?\d+(?:\.\d+)?\s*", re.IGNORECASE)
"""A label as text, such as MATH's 'Level 3'."""
ONE_IN_JSON = re.compile(r'\s*\[\s*(?:"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?)\s*\]\s*')
"""A list of one text or number, written as JSON text."""
FOLDED = re.compile(r"\s*(?:\[\s*)?\{\s*[\"']")
"""How an object, or a list of objects, begins as text."""
ABSENT = ("n/a", "null", "none", "nan", "-", "--")
"""Answers that say that there is none."""
FRACTION = re.compile(r"\s*(\d+)\s*/\s*0*([1-9]\d*)\s*")
"""A pass rate as right answers of attempts."""
ROLES = {"human": "user", "gpt": "assistant"}
"""Other names of the roles in a chat."""


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
    """Whether the answer stands in the solution: in its last box, or as all of one that is short or lies between dollars."""
    skip: bool = False
    """Whether a row whose label cannot be read is kept without it, and told in `unlabelled`."""
    unlabelled: list[str] = dataclasses.field(default_factory=list)
    """Place and fault of each such row, filled by `judge`."""
    seen: dict[str, str] = dataclasses.field(default_factory=dict)
    """Id -> the place of its row, filled by `judge`."""


class BadRow(Exception):
    """A row that cannot be used; the message names field and fix."""


def read(
    sources: Sequence[Source | str | Path], fields: RowFields | None = None, *, allowed: tuple[float, float] | None = None,
    turned: bool = False, skip_bad_rows: bool = False,
) -> Dataset:  # fmt: skip
    """The usable rows of sources that are read as one list, with labels and the others; `allowed` and `turned` as in `Rules`.

    A row without an answer is set aside when other rows have one: no reward could be computed for it, but its labels count.
    Without a field of answers they are looked for in the solutions, and taken from there when half of those have one. Raises
    DataError: what `rows` and `resolve_fields` raise; malformed rows, unless `skip_bad_rows` drops them; no usable row.
    """
    places = [source if isinstance(source, Source) else Source.parse(str(source)) for source in sources]
    several = len(places) > 1
    raw = [dataclasses.replace(row, where=f"{place.name}, {row.where}") if several else row
           for place in places for row in rows(place)]  # fmt: skip
    name = places[0].name + (f" and {len(places) - 1} more" if several else "")
    names, notes = resolve_fields(name, [row.record for row in raw if row.record is not None], fields or RowFields())
    rules = Rules(names, allowed, turned, from_solution="answer" not in names, skip=skip_bad_rows)
    outcomes = [judge(row, number, rules) for number, row in enumerate(raw, start=1)]
    if rules.from_solution:
        samples = [found.sample for found in outcomes if isinstance(found, Judged)]
        told = [bool(sample.answer) for sample in samples if sample.solved or sample.answer]
        if 2 * sum(told) > len(told):
            notes.append("answers were read from the solutions: the last box, or all of one that is short or between dollars")
        else:
            notes.append("there is no field of answers: whether a row can be rewarded was not checked")
            rules = Rules(names, allowed, turned, need_answer=False, skip=skip_bad_rows)
            outcomes = [judge(row, number, rules) for number, row in enumerate(raw, start=1)]
    if rules.unlabelled:
        lost = f"{number_of(len(rules.unlabelled), 'label')} not read because of --skip-bad-rows"
        notes.append(f"{lost}: the rows are kept without; first {rules.unlabelled[0]}")
    dropped = tuple(found for found in outcomes if isinstance(found, Dropped))
    if dropped and not skip_bad_rows:
        listed = [f"  {name}, {row.where}: {row.reason}" for row in dropped[:5]]
        listed += [f"  and {len(dropped) - 5} more"] * (len(dropped) > 5)
        raise DataError("\n".join([f"{name}: of {len(raw)} rows, {len(dropped)} cannot be used:", *listed,
                                   "mend them, or pass --skip-bad-rows to leave them out and have them listed"]))  # fmt: skip
    where = tuple(row.where for row, found in zip(raw, outcomes, strict=True) if isinstance(found, Judged))
    kept = [found for found in outcomes if isinstance(found, Judged)]
    label, quality = (np.array([getattr(found, part) for found in kept], dtype=float) for part in ("label", "quality"))
    aside = tuple(found.aside for found in kept if found.aside is not None)
    samples = tuple(found.sample for found in kept)
    return require(Dataset(name, samples, where, label, quality, dropped, tuple(notes), aside), 1)


def require(data: Dataset, least: int) -> Dataset:
    """The same data. Raises DataError unless at least so many rows may be planned."""
    usable = len(data.samples) - len(data.aside)
    if usable < least:
        lower, out = " or lower --prompts-per-step" if usable >= MIN_ROWS else "", [*data.dropped, *data.aside]
        first = f"; first row left out: {out[0].where}: {out[0].reason}" if out else ""
        few = f"{usable} of {data.read} rows are usable, at least {least} are needed"
        raise DataError(f"{data.name}: {few}; add rows{lower}{first}")
    return data


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
    flawed = "labelled flawed and without an answer: it trains the quality filter and is never planned"
    reason = flawed if judged.quality == 0 else "no answer, so no reward could be computed"
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
        whole = solution.strip()
        short = (len(solution) <= SHORT and "\n" not in whole) or (whole[:1] == "$" and bare_answer(whole) != whole)
        answer = read_final_answer(solution) or (whole if short else "")
    if rules.need_answer:
        if (marked := GSM8K.search(answer)) and not solution:
            solution = answer[: marked.start()]
        alone = (answer, f"\\boxed{{{answer}}}", f"$\\boxed{{{answer}}}$")  # TRL calls the answer a solution
        solution = "" if solution.strip() in alone else solution
        answer = "" if answer.lower() in ABSENT else bare_answer(answer)
    name = identifier(given["id"], names["id"]) if "id" in given else f"row-{number:06d}"
    solved = bool(solution.strip())
    sample = Sample(name, asked.question, lines(solution), answer, topic, solved=solved, before=asked.before)
    quality = truth(given.get("quality"), names["quality"], row.text_only)
    if name in rules.seen:
        raise BadRow(f"id {name!r} was already used in {rules.seen[name]}; give every row its own id")
    try:
        label = difficulty(given.get("labels"), names["labels"], rules, row.text_only)
    except BadRow as problem:
        if not rules.skip:
            raise
        rules.unlabelled.append(f"{row.where}: {problem}")
        label = math.nan
    return Judged(sample, label, quality)


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
    """The object or list of objects that a text is, in JSON or as pandas writes it into CSV; other values as they are."""
    if isinstance(value, str) and FOLDED.match(value):
        for parse in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError), warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                return parse(value)
    return value


def _filled(record: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The fields of a row that hold something, those inside objects behind a dot."""
    for key, value in record.items():
        if value is not None and not (isinstance(value, str) and not value):
            yield f"{above}{key}"
            if isinstance(inner := unfolded(value), Mapping) and above.count(".") < DEEP:
                yield from _filled(inner, f"{above}{key}.")


def resolve_fields(name: str, records: Sequence[Mapping[str, Any]], fields: RowFields) -> tuple[dict[str, str], list[str]]:
    """(our name -> the file's, what was assumed) for the rows `records`; where none has a name as it is, upper and lower case
    are alike. Raises DataError for a field that no row has."""
    names: dict[str, str] = {}
    notes: list[str] = []
    present = dict.fromkeys(key for record in records for key in record)
    if not present:
        return {"prompt": DEFAULTS["prompt"]}, notes
    filled = dict.fromkeys(key for record in records for key in _filled(record))
    spelled = {name.lower(): name for name in reversed((*filled, *present))}
    for entry in dataclasses.fields(fields):
        given, known = getattr(fields, entry.name), NAMES.get(entry.name, ())
        option = f"--{entry.name}" if entry.name in ("labels", "quality") else f"--{entry.name}-field"
        likely = [wanted if wanted in filled else spelled.get(wanted.lower()) for wanted in ((given,) if given else known)]
        found = [usual for usual in likely if usual and (given or usual in filled)] or [n for n in likely if n in present]
        if found:
            names[entry.name] = found[0]
        elif given or entry.name == "prompt":
            listed = ", ".join(list(present)[:20])
            missing = f"a field {given!r}" if given else f"a prompt under a usual name ({', '.join(known)})"
            inside = [key for key in filled if given and key.lower().endswith(f".{given.lower()}")]
            meant = f"; did you mean {inside[0]!r}?" if inside else ""
            raise DataError(f"{name}: no row has {missing}{meant}; its fields are: {listed}; name the right one with {option}")
        if given is None and found and found[0] != DEFAULTS[entry.name]:
            notes.append(f"{entry.name}: the field {found[0]!r} was taken; {option} names another")
    if "id" not in names:
        notes.append(f"the file has no field {DEFAULTS['id']!r}: ids are row numbers")
    return names, notes


# One value.


class Chat(NamedTuple):
    """A prompt as it was written: question, `Sample.before`, and what the assistant says behind the question."""

    question: str
    before: str = ""
    reply: str = ""


def chat(value: Any, name: str) -> Chat:
    """The question of a prompt: all of a text, or the last message of the user in a chat, which may be `unfolded`."""
    inner = unfolded(value) if isinstance(value, str) else None
    if isinstance(inner, list) and isinstance(inner[0], Mapping) and {"role", "from"} & set(inner[0]):
        value = inner
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
        raise BadRow(f"field {name!r} is {kind_named(value)}, not text; write the text itself in quotes")
    if len(value) > MAX_CHARACTERS:
        limit = f"at most {MAX_CHARACTERS:,} are read; shorten it or remove the row"
        raise BadRow(f"field {name!r} has {len(value):,} characters, {limit}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"field {name!r} holds half a character at place {error.start + 1}; write it as valid Unicode") from error
    return value


def plain(value: Any, name: str) -> str:
    """A text, number, truth value or bytes, also as the one element of a list (JSON text too), as text; '' when missing."""
    value = _element(value, name)
    if isinstance(value, str) and ONE_IN_JSON.fullmatch(value):
        with contextlib.suppress(ValueError):
            (inner,) = json.loads(value)
            value = inner if str(inner).isprintable() else value  # LaTeX that was not escaped is no JSON
    if isinstance(value, float | decimal.Decimal):
        if not math.isfinite(value):
            raise BadRow(f"field {name!r} is {value}; write the value as text, or leave it out when unknown")
        if value == int(value):
            return str(int(value))
        return str(value) if isinstance(value, float) else format(value.normalize(), "f")
    if isinstance(value, bytes):
        try:
            return text(value.decode("utf-8"), name)
        except UnicodeDecodeError as error:
            raise BadRow(f"field {name!r} holds bytes that are no UTF-8; write it as text") from error
    return str(value) if isinstance(value, int) else text(value, name)


def identifier(value: Any, name: str) -> str:
    """An id as text."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        found = "missing" if value is None else kind_named(value)
        raise BadRow(f"field {name!r} is {found}; an id is text or a whole number")
    found = text(str(value), name)
    if not found.strip() or len(found) > MAX_ID or any(ord(letter) < 32 for letter in found):
        fault = f"is empty, longer than {MAX_ID} characters or holds control characters"
        raise BadRow(f"field {name!r} {fault}; give the row a short id")
    return found


def difficulty(value: Any, name: str, rules: Rules, text_only: bool) -> float:
    """A label, larger is harder; NaN when missing. Rewards of attempts, each 0 to 1, count as their mean, '7/8' as 0.875."""
    if isinstance(value, list) and all(isinstance(one, int | float) and (0 <= one <= 1 or len(value) == 1) for one in value):
        value = sum(value) / len(value) if value else None
    if value is None:
        return math.nan
    if isinstance(value, str) and (share := FRACTION.fullmatch(value)):
        value = int(share[1]) / int(share[2])
    if isinstance(value, str) and (text_only or LEVEL.fullmatch(value)):
        with contextlib.suppress(ValueError):
            value = float(re.sub(r"\A\s*level\s*", "", value, flags=re.IGNORECASE))
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal):
        raise BadRow(f"field {name!r} is {str(value)[:40]!r}, {kind_named(value)}, not a number; leave it out when unknown")
    if not abs(value) <= 1e12:
        raise BadRow(f"field {name!r} is {str(value)[:40]}, not a finite number of usual size; leave it out when unknown")
    label, allowed = float(value), rules.allowed
    if allowed is not None and not allowed[0] <= label <= allowed[1]:
        fix = "mend it, leave it out when unknown, or set --label-range"
        raise BadRow(f"field {name!r} is {label:g}, outside {allowed[0]:g} to {allowed[1]:g}; {fix}")
    return (sum(allowed) if allowed else 0.0) - label if rules.turned else label


def truth(value: Any, name: str, text_only: bool) -> float:
    """1 for true, 0 for false, NaN when missing."""
    if text_only and isinstance(value, str):
        value = {"true": 1, "false": 0, "1": 1, "0": 0}.get(value.strip().lower(), value)
    if value is None:
        return math.nan
    if value not in (0, 1):  # True and False are
        raise BadRow(f"field {name!r} is {str(value)[:40]!r}; write true or false, or leave it out when unknown")
    return float(value)
