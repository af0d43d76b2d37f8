"""The sample record and its table on disk; loaders validate every row and name the one that is wrong."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

COLUMNS = ("id", "prompt", "steps", "answer", "topic", "difficulty", "source", "flaw", "step_labels")


class DataError(ValueError):
    """A row of a data file is malformed."""


@dataclass(frozen=True)
class Sample:
    """One problem with its worked solution and labels."""

    id: str
    prompt: str
    steps: tuple[str, ...]
    """Lines of the worked solution, without the answer line."""
    answer: str
    topic: str = ""
    """Three-level path 'A -> B -> C'."""
    difficulty: float = float("nan")
    """Label on the source's own scale."""
    source: str = ""
    """target, parent or contest in the embedded world."""
    flaw: str = ""
    """Kind of a planted error, '' when the sample is sound."""
    step_labels: tuple[int, ...] = ()
    """+1 / 0 / -1 for each step and for the answer line, as PRM800K has them."""
    solved: bool = True
    """False when the source has no worked solution: then there is no solution span, and the answer alone is none."""

    @property
    def solution(self) -> str:
        """The solution span: one line a step, then the answer line; '' without a worked solution."""
        return "\n".join((*self.steps, f"Answer: {self.answer}")) if self.solved else ""


def normalise(text: str) -> str:
    """Text without case, white space and punctuation marks, for the overlap check.

    >>> normalise("Find 3 + 4.")
    'find3+4'
    """
    return re.sub(r"[\s.,?!$;]+", "", text.lower())


def to_frame(samples: Sequence[Sample]) -> pd.DataFrame:
    """A table with the columns of `COLUMNS`, one row a sample; `solved` joins them when a sample has no solution."""
    rows = [dataclasses.asdict(s) for s in samples]
    optional = [] if all(s.solved for s in samples) else ["solved"]
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *optional])
    frame["steps"] = [list(s.steps) for s in samples]
    frame["step_labels"] = [list(s.step_labels) for s in samples]
    return frame


SAMPLES = "samples.parquet"
"""Name of the samples beside a plan of one's own data."""


def write_samples(samples: Sequence[Sample], path: Path) -> None:
    """Write samples as Parquet."""
    to_frame(samples).to_parquet(path, index=False, engine="pyarrow", compression="zstd")


def read_samples(path: Path) -> list[Sample]:
    """Read samples written by `write_samples`."""
    frame = pd.read_parquet(path, engine="pyarrow")
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise DataError(f"{path}: column {missing[0]!r} is missing; write the file with write_samples")
    records = frame[[*COLUMNS, *(name for name in ("solved",) if name in frame.columns)]].to_dict("records")
    return [
        Sample(**{**r, "steps": tuple(r["steps"]), "step_labels": tuple(int(v) for v in r["step_labels"])}) for r in records
    ]


def _row(record: object, where: str, fields: dict[str, str]) -> Sample:
    """One validated sample; `fields` maps our names to the file's."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}")
    for name in ("id", "prompt", "answer"):
        if fields[name] not in record:
            raise DataError(f"{where}: field {fields[name]!r} is missing; add it or name the right field")
        if not isinstance(record[fields[name]], str):
            found = type(record[fields[name]]).__name__
            raise DataError(f"{where}: field {fields[name]!r} is a {found}, not a string; write it in quotes")
    if not record[fields["prompt"]].strip():
        raise DataError(f"{where}: field {fields['prompt']!r} is empty; remove the row or fill it in")
    steps, level = record.get(fields["steps"]) or "", record.get(fields["difficulty"])
    if not isinstance(steps, str):
        raise DataError(f"{where}: field {fields['steps']!r} is a {type(steps).__name__}, not a string; write one line a step")
    if level is not None and (isinstance(level, bool) or not isinstance(level, int | float)):
        raise DataError(f"{where}: field {fields['difficulty']!r} is {level!r}, not a number; leave it out when unknown")
    return Sample(
        id=record[fields["id"]],
        prompt=record[fields["prompt"]],
        steps=tuple(line for line in steps.split("\n") if line.strip()),
        solved=bool(steps.strip()),
        answer=record[fields["answer"]],
        topic=str(record.get(fields["topic"]) or ""),
        difficulty=float("nan") if level is None else float(level),
        source=str(record.get("source") or ""),
    )


FIELDS = {"id": "id", "prompt": "question", "answer": "answer", "steps": "solution", "topic": "subject", "difficulty": "level"}
"""Our names against those of the JSON-lines files under `SAERL_DATA_DIR`."""


def load_jsonl(lines: Iterable[str], name: str, fields: dict[str, str] = FIELDS) -> list[Sample]:
    """Samples of a JSON-lines file, every row checked before the first is used.

    Raises DataError with file, line, field and fix: not JSON, a missing field, an empty prompt, a duplicate id,
    a non-string answer, or no row at all.
    """
    samples: list[Sample] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno}); write one object a line") from error
        sample = _row(record, where, fields)
        if sample.id in seen:
            raise DataError(f"{where}: id {sample.id!r} was already used in line {seen[sample.id]}; ids must be unique")
        seen[sample.id] = number
        samples.append(sample)
    if not samples:
        raise DataError(f"{name}: no row; the file is empty")
    return samples
