"""One's own rows as samples with labels: every row is judged before a model is loaded, and every row that leaves is counted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from saerl_lib.data.schema import DataError, Sample
from saerl_lib.own.read import RawData, RawRow
from saerl_lib.own.settings import DEFAULTS, SHARE_FIELD, OwnConfig

MIN_ROWS = 10
"""Fewer usable rows give neither clusters nor a plan (ours)."""
MAX_CHARACTERS = 200_000
"""Longest prompt or solution; a longer one is a broken export rather than a problem (ours)."""
MAX_ID = 200
"""Longest id, in characters."""
SHOWN = 5
"""Problems that one error message lists."""
TRUTH = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}
"""Quality labels of a CSV file."""


@dataclass(frozen=True)
class Dropped:
    """A row of the source that is not in the plan."""

    where: str
    id: str
    """'' when the row has none that can be read."""
    status: str
    """malformed, no answer, filtered or left over."""
    reason: str


@dataclass(frozen=True)
class OwnData:
    """N usable rows of a source."""

    name: str
    samples: tuple[Sample, ...]
    where: tuple[str, ...]
    """Place of each row in the source, [N]."""
    labels: np.ndarray
    """Difficulty, larger is harder, NaN when unknown, float [N]."""
    quality: np.ndarray
    """1 sound, 0 not, NaN when unknown, float [N]."""
    dropped: tuple[Dropped, ...]
    """Rows that are not among the samples."""
    notes: tuple[str, ...]
    """What was assumed about fields."""

    @property
    def read(self) -> int:
        """Rows of the source."""
        return len(self.samples) + len(self.dropped)

    @property
    def ids(self) -> list[str]:
        """Sample ids in the order of the source."""
        return [sample.id for sample in self.samples]


class _BadRow(Exception):
    """A row that cannot be used; the message names field and fix."""


def validate(raw: RawData, config: OwnConfig) -> OwnData:
    """The usable rows of `raw`, with labels and the list of the others.

    A row without an answer is set aside when other rows have one: no reward could be computed for it. Raises DataError that
    names file, row, field and fix: a field that no row has; malformed rows (the first five are listed), unless
    `skip_bad_rows` sets them aside; or fewer than `MIN_ROWS` usable rows.
    """
    names, notes = _resolve(raw, config)
    answered = "answer" in names
    kept: list[tuple[RawRow, Sample, float, float]] = []
    dropped: list[Dropped] = []
    seen: dict[str, str] = {}
    for number, row in enumerate(raw.rows, start=1):
        try:
            sample, label, quality = _checked(row, number, names, config, raw.text_only)
            if sample.id in seen:
                raise _BadRow(f"id {sample.id!r} was already used in {seen[sample.id]}; give every row its own id")
        except _BadRow as problem:
            dropped.append(Dropped(row.where, _id_of(row, names), "malformed", str(problem)))
            continue
        seen[sample.id] = row.where
        if answered and not sample.answer:
            dropped.append(Dropped(row.where, sample.id, "no answer", "no answer, so no reward could be computed"))
        else:
            kept.append((row, sample, label, quality))
    _judge(raw.name, len(raw.rows), len(kept), [d for d in dropped if d.status == "malformed"], config)
    numbers = np.array([(label, quality) for *_, label, quality in kept], dtype=float).reshape(-1, 2)
    samples, where = tuple(sample for _, sample, _, _ in kept), tuple(row.where for row, *_ in kept)
    return OwnData(raw.name, samples, where, numbers[:, 0], numbers[:, 1], tuple(dropped), tuple(notes))


def _judge(name: str, read: int, kept: int, bad: list[Dropped], config: OwnConfig) -> None:
    if bad and not config.skip_bad_rows:
        listed = "\n".join(f"  {name}, {problem.where}: {problem.reason}" for problem in bad[:SHOWN])
        more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise DataError(f"{name}: {len(bad)} of {read} rows cannot be used:\n{listed}{more}\nmend them, or pass --skip-bad-rows "
                        "to leave them out and have them listed")  # fmt: skip
    least = max(MIN_ROWS, config.prompts_per_step)
    if kept < least:
        first = f"; first bad row: {bad[0].where}: {bad[0].reason}" if bad else ""
        raise DataError(f"{name}: {kept} of {read} rows are usable, at least {least} are needed (one batch, and {MIN_ROWS} rows); "
                        f"add rows or lower --prompts-per-step{first}")  # fmt: skip


def _resolve(raw: RawData, config: OwnConfig) -> tuple[dict[str, str], list[str]]:
    """(our name -> the file's, what was assumed). Raises DataError for a field that no row has."""
    present, names, notes = raw.fields, {}, []
    listed = ", ".join(present[:20]) or "none"
    if not present:
        return {"prompt": DEFAULTS["prompt"]}, notes
    for entry in fields(config.fields):
        given = getattr(config.fields, entry.name)
        option = f"--{entry.name}" if entry.name in ("labels", "quality") else f"--{entry.name}-field"
        name = given or DEFAULTS.get(entry.name)
        if name in present:
            names[entry.name] = name
        elif given or entry.name == "prompt":
            raise DataError(f"{raw.name}: no row has a field {name!r}; its fields are: {listed}; name the right one with {option}")
    if "id" not in names:
        notes.append(f"the file has no field {DEFAULTS['id']!r}: ids are row numbers")
    if "answer" not in names:
        notes.append(f"the file has no field {DEFAULTS['answer']!r}: whether a row can be rewarded was not checked")
    return names, notes


def _id_of(row: RawRow, names: Mapping[str, str]) -> str:
    value = (row.record or {}).get(names.get("id", ""))
    return str(value)[:MAX_ID].encode("utf-8", "replace").decode() if isinstance(value, str | int) else ""


def _checked(row: RawRow, number: int, names: Mapping[str, str], config: OwnConfig, text_only: bool) -> tuple[Sample, float, float]:
    """(sample, difficulty, quality) of one row. Raises _BadRow."""
    if row.record is None:
        raise _BadRow(row.problem)
    given = {key: row.record.get(name) for key, name in names.items()}
    prompt = _text(given["prompt"], names["prompt"])
    if not prompt.strip():
        raise _BadRow(f"field {names['prompt']!r} is missing or empty; fill it in or remove the row")
    solution = _text(given.get("solution"), names.get("solution", ""))
    sample = Sample(
        id=_identifier(given["id"], names["id"]) if "id" in names else f"row-{number:06d}",
        prompt=prompt,
        steps=tuple(line for line in solution.split("\n") if line.strip()),
        answer=_plain(given.get("answer"), names.get("answer", "")).strip(),
        topic=_plain(given.get("topic"), names.get("topic", "")),
        solved=bool(solution.strip()),
    )
    label = _difficulty(given.get("labels"), names.get("labels", ""), config, text_only)
    return sample, label, _truth(given.get("quality"), names.get("quality", ""), text_only)


def _text(value: Any, name: str) -> str:
    """A text field; '' when missing."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _BadRow(f"field {name!r} is a {type(value).__name__}, not text; write the text itself in quotes")
    if len(value) > MAX_CHARACTERS:
        raise _BadRow(f"field {name!r} has {len(value):,} characters, at most {MAX_CHARACTERS:,} are read; shorten it or remove the row")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _BadRow(f"field {name!r} holds half a character at place {error.start + 1}; write it as valid Unicode") from error
    return value


def _plain(value: Any, name: str) -> str:
    """A text or number as text; '' when missing."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _BadRow(f"field {name!r} is {value}; write the value as text, or leave it out when unknown")
        return str(int(value) if value.is_integer() else value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value, name)


def _identifier(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        found = "missing" if value is None else f"a {type(value).__name__}"
        raise _BadRow(f"field {name!r} is {found}; an id is text or a whole number")
    text = _text(str(value), name)
    if not text.strip() or len(text) > MAX_ID or any(ord(letter) < 32 for letter in text):
        raise _BadRow(f"field {name!r} is empty, longer than {MAX_ID} characters or holds control characters; give the row a short id")
    return text


def _difficulty(value: Any, name: str, config: OwnConfig, text_only: bool) -> float:
    """A label, larger is harder; NaN when missing."""
    if value is None:
        return math.nan
    if text_only:
        try:
            value = float(value)
        except ValueError as error:
            raise _BadRow(f"field {name!r} is {value[:40]!r}, not a number; leave it empty when unknown") from error
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _BadRow(f"field {name!r} is {str(value)[:40]!r}, a {type(value).__name__}, not a number; leave it out when unknown")
    label, allowed = _finite(value, name), config.allowed_labels
    if allowed is not None and not allowed[0] <= label <= allowed[1]:
        raise _BadRow(f"field {name!r} is {label:g}, outside {allowed[0]:g} to {allowed[1]:g}; mend it, leave it out when unknown, "
                      "or set --label-range")  # fmt: skip
    if not (config.larger_is_easier or name == SHARE_FIELD):
        return label
    return (sum(allowed) if allowed else 0.0) - label


def _finite(value: float, name: str) -> float:
    try:
        label = float(value)
    except OverflowError:
        label = math.inf
    if not math.isfinite(label) or abs(label) > 1e12:
        raise _BadRow(f"field {name!r} is {label}, not a finite number of usual size; leave it out when unknown")
    return label


def _truth(value: Any, name: str, text_only: bool) -> float:
    if text_only and value is not None:
        value = TRUTH.get(value.strip().lower(), value)
    if value is None:
        return math.nan
    if not isinstance(value, bool) and not (text_only and isinstance(value, float)):
        raise _BadRow(f"field {name!r} is {str(value)[:40]!r}; write true or false, or leave it out when unknown")
    return float(value)
