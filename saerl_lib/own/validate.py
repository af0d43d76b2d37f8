"""One's own rows as samples with labels: every row is judged before a model is loaded, and every row that leaves is counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from saerl_lib.data.schema import DataError, Sample
from saerl_lib.own.cells import MAX_ID, BadRow, difficulty, identifier, plain, text, truth
from saerl_lib.own.read import RawData, RawRow
from saerl_lib.own.settings import DEFAULTS, OwnConfig

MIN_ROWS = 10
"""Fewer usable rows give neither clusters nor a plan (ours)."""
SHOWN = 5
"""Problems that one error message lists."""


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
class Judged:
    """A usable row."""

    sample: Sample
    label: float
    """Difficulty, larger is harder; NaN when unknown."""
    quality: float
    """1 sound, 0 not, NaN when unknown."""


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


def validate(raw: RawData, config: OwnConfig) -> OwnData:
    """The usable rows of `raw`, with labels and the list of the others.

    A row without an answer is set aside when other rows have one: no reward could be computed for it. Raises DataError that
    names file, row, field and fix: a field that no row has; malformed rows (the first five are listed), unless
    `skip_bad_rows` sets them aside; or fewer than `MIN_ROWS` usable rows.
    """
    names, notes = resolve_fields(raw.name, raw.fields, config)
    kept: list[tuple[RawRow, Judged]] = []
    dropped: list[Dropped] = []
    seen: dict[str, str] = {}
    for number, row in enumerate(raw.rows, start=1):
        judged = judge_row(row, number, names, config, raw.text_only, seen)
        if isinstance(judged, Dropped):
            dropped.append(judged)
        else:
            kept.append((row, judged))
    require_sound(raw.name, len(raw.rows), dropped, config)
    _require_enough(raw.name, len(raw.rows), len(kept), dropped, config)
    numbers = np.array([(judged.label, judged.quality) for _, judged in kept], dtype=float).reshape(-1, 2)
    samples, where = tuple(judged.sample for _, judged in kept), tuple(row.where for row, _ in kept)
    return OwnData(raw.name, samples, where, numbers[:, 0], numbers[:, 1], tuple(dropped), tuple(notes))


def judge_row(
    row: RawRow, number: int, names: Mapping[str, str], config: OwnConfig, text_only: bool, seen: dict[str, str]
) -> Judged | Dropped:
    """What a row holds, or why it cannot be used.

    `number` counts the rows of the source from 1; `names` are those of `resolve_fields`; `seen` holds the place of every id
    so far and gains this row's.
    """
    try:
        judged = _checked(row, number, names, config, text_only)
        if judged.sample.id in seen:
            raise BadRow(f"id {judged.sample.id!r} was already used in {seen[judged.sample.id]}; give every row its own id")
    except BadRow as problem:
        return Dropped(row.where, _id_of(row, names), "malformed", str(problem))
    seen[judged.sample.id] = row.where
    if "answer" in names and not judged.sample.answer:
        return Dropped(row.where, judged.sample.id, "no answer", "no answer, so no reward could be computed")
    return judged


def require_sound(name: str, read: int, dropped: Sequence[Dropped], config: OwnConfig) -> None:
    """Raises DataError that lists the first malformed rows, unless `skip_bad_rows` sets them aside."""
    bad = [d for d in dropped if d.status == "malformed"]
    if bad and not config.skip_bad_rows:
        listed = "\n".join(f"  {name}, {problem.where}: {problem.reason}" for problem in bad[:SHOWN])
        more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise DataError(f"{name}: of {read} rows, {len(bad)} cannot be used:\n{listed}{more}\nmend them, or pass --skip-bad-rows "
                        "to leave them out and have them listed")  # fmt: skip


def _require_enough(name: str, read: int, kept: int, dropped: Sequence[Dropped], config: OwnConfig) -> None:
    least = max(MIN_ROWS, config.prompts_per_step)
    if kept < least:
        bad = [d for d in dropped if d.status == "malformed"]
        first = f"; first bad row: {bad[0].where}: {bad[0].reason}" if bad else ""
        raise DataError(
            f"{name}: {kept} of {read} rows are usable, at least {least} are needed (one batch, and {MIN_ROWS} rows); "
            f"add rows{' or lower --prompts-per-step' if kept >= MIN_ROWS else ''}{first}"
        )


def resolve_fields(name: str, present: Sequence[str], config: OwnConfig) -> tuple[dict[str, str], list[str]]:
    """(our name -> the file's, what was assumed) where rows have the fields `present`.

    Raises DataError for a field that no row has.
    """
    names: dict[str, str] = {}
    notes: list[str] = []
    listed = ", ".join(present[:20]) or "none"
    if not present:
        return {"prompt": DEFAULTS["prompt"]}, notes
    for entry in fields(config.fields):
        given = getattr(config.fields, entry.name)
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


def _id_of(row: RawRow, names: Mapping[str, str]) -> str:
    value = (row.record or {}).get(names.get("id", ""))
    return str(value)[:MAX_ID].encode("utf-8", "replace").decode() if isinstance(value, str | int) else ""


def _checked(row: RawRow, number: int, names: Mapping[str, str], config: OwnConfig, text_only: bool) -> Judged:
    """One row, its id not yet compared with others. Raises BadRow."""
    if row.record is None:
        raise BadRow(row.problem)
    given = {key: row.record.get(name) for key, name in names.items()}
    prompt = text(given["prompt"], names["prompt"])
    if not prompt.strip():
        raise BadRow(f"field {names['prompt']!r} is missing or empty; fill it in or remove the row")
    solution = text(given.get("solution"), names.get("solution", ""))
    sample = Sample(
        id=identifier(given["id"], names["id"]) if "id" in names else f"row-{number:06d}",
        prompt=prompt,
        steps=tuple(line for line in solution.split("\n") if line.strip()),
        answer=plain(given.get("answer"), names.get("answer", "")).strip(),
        topic=plain(given.get("topic"), names.get("topic", "")),
        solved=bool(solution.strip()),
    )
    label = difficulty(given.get("labels"), names.get("labels", ""), config, text_only)
    return Judged(sample, label, truth(given.get("quality"), names.get("quality", ""), text_only))
