"""The sample record, its table on disk, what a source holds, and labelled sets, split by the text of their questions."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from saerl_lib.artifacts import Stage

COLUMNS = ("id", "prompt", "steps", "answer", "topic", "difficulty", "source", "flaw", "step_labels")
SAMPLES = "samples.parquet"
"""Name of the samples beside a plan of one's own data."""
SEPARATOR = "\n"
"""Between prompt and solution, as a model reads them."""


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
    before: str = ""
    """JSON list of the chat messages before the question, system text and earlier turns; '' when there are none."""

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat that a policy is given: what stands before, then the question."""
        return [*json.loads(self.before or "[]"), {"role": "user", "content": self.prompt}]

    @property
    def asked(self) -> str | list[dict[str, str]]:
        """What a policy is asked: the messages where earlier ones belong to it, else the prompt."""
        return self.messages if self.before else self.prompt

    @property
    def solution(self) -> str:
        """The solution span: one line a step, then the answer line; '' without a worked solution."""
        return "\n".join((*self.steps, f"Answer: {self.answer}")) if self.solved else ""


def lines(solution: str) -> tuple[str, ...]:
    """A worked solution as steps, one a line that holds something."""
    return tuple(line for line in solution.split("\n") if line.strip())


def normalise(text: str) -> str:
    """Text without case, white space and punctuation marks, for the overlap check.

    >>> normalise("Find 3 + 4.")
    'find3+4'
    """
    return re.sub(r"[\s.,?!$;]+", "", text.lower())


def letters_of(name: str) -> str:
    """A field's name without case, spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "", name.lower())


def number_of(n: int, what: str) -> str:
    """Such as '1 row' or '2,000 rows'."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def hash_share(key: str) -> float:
    """A number in [0, 1) from the text alone: a split by it does not depend on order, file or machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def write_samples(samples: Sequence[Sample], path: Path) -> None:
    """Write samples as Parquet, one row a sample with the columns of `COLUMNS`; `solved` and `before` join where needed."""
    optional = ["solved"] * (not all(s.solved for s in samples)) + ["before"] * any(s.before for s in samples)
    frame = pd.DataFrame([vars(s) for s in samples], columns=[*COLUMNS, *optional])
    frame.to_parquet(path, index=False, engine="pyarrow", compression="zstd")


def read_samples(path: Path) -> list[Sample]:
    """Read samples written by `write_samples`. Raises DataError when a column is missing."""
    frame = pd.read_parquet(path, engine="pyarrow")
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise DataError(f"{path}: column {missing[0]!r} is missing; write the file with write_samples")
    lists = {"steps": frame["steps"].map(tuple), "step_labels": frame["step_labels"].map(lambda found: tuple(map(int, found)))}
    return [Sample(**record) for record in frame.assign(**lists).to_dict("records")]


@dataclass(frozen=True)
class Dropped:
    """A row of the source that is not planned."""

    where: str
    id: str
    """'' when the row has none that can be read."""
    status: str
    """malformed, no answer, unverifiable, too long, filtered or left over."""
    reason: str


class Judged(NamedTuple):
    """A usable row."""

    sample: Sample
    label: float
    """Difficulty, larger is harder; NaN when unknown."""
    quality: float
    """1 sound, 0 not, NaN when unknown."""
    aside: Dropped | None = None
    """Why it is never planned, though it is read and its labels count."""


@dataclass(frozen=True)
class Dataset:
    """N usable rows of a source."""

    name: str
    samples: tuple[Sample, ...]
    where: tuple[str, ...]
    """Place of each row in the source, [N]."""
    labels: np.ndarray
    quality: np.ndarray
    """As in `Judged`, float [N] each."""
    dropped: tuple[Dropped, ...]
    """Rows that are not among the samples."""
    notes: tuple[str, ...]
    aside: tuple[Dropped, ...] = ()
    """Samples that are read but never planned, at most one entry each, in the order of the source."""

    @property
    def read(self) -> int:
        """Rows of the source."""
        return len(self.samples) + len(self.dropped)

    @property
    def ids(self) -> list[str]:
        """Of the samples, [N]."""
        return [sample.id for sample in self.samples]

    @property
    def plannable(self) -> np.ndarray:
        """Mask bool [N] of the rows that are not set aside."""
        aside = {row.id for row in self.aside}
        return np.array([sample.id not in aside for sample in self.samples], dtype=bool)


@dataclass(frozen=True)
class LabelledSet:
    """N problems with their labels."""

    name: str
    samples: tuple[Sample, ...]
    labels: Mapping[str, np.ndarray]
    """Label name -> [N]: subject as text ('' when unknown), the others as float (NaN when unknown)."""

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, keep: Sequence[int] | np.ndarray) -> LabelledSet:
        """The set of some rows."""
        rows = np.asarray(keep, dtype=np.int64)
        labels = {name: values[rows] for name, values in self.labels.items()}
        return LabelledSet(self.name, tuple(self.samples[i] for i in rows), labels)

    def has_label(self, label: str) -> np.ndarray:
        """Mask [N] of the rows that carry a label."""
        values = self.labels[label]
        return values != "" if label == "subject" else np.isfinite(values)

    def with_label(self, label: str) -> LabelledSet:
        """The rows that carry a label."""
        return self.rows(np.flatnonzero(self.has_label(label)))

    def without(self, keys: set[str]) -> LabelledSet:
        """The rows whose normalised question is not among `keys`."""
        return self.rows([i for i, key in enumerate(self.keys) if key not in keys])

    def unique(self) -> LabelledSet:
        """The first row of every normalised question, so that no question stands on both sides of a split."""
        return self.rows(np.flatnonzero(~pd.Series(self.keys).duplicated()))

    def split(self, max_train: int, max_test: int) -> Split:
        """Train and test: the first rows by hash train, the next ones test; 70 to 30 when the set is small."""
        data = self.unique()
        order = hash_order(data.samples)
        train = min(max_train, int(0.7 * len(order)))
        return Split(data.rows(order[:train]), data.rows(order[train : train + max_test]))

    @property
    def keys(self) -> list[str]:
        """Normalised question of each row, the identity that splits and overlap checks use."""
        return [normalise(s.prompt) for s in self.samples]


def hash_order(samples: Sequence[Sample]) -> np.ndarray:
    """Row numbers ordered by the hash of the normalised question: its first n rows are a fixed random sample."""
    shares = np.array([hash_share(normalise(s.prompt)) for s in samples])
    return np.lexsort((np.array([s.id for s in samples]), shares))


class Split(NamedTuple):
    """The two sides of one set."""

    train: LabelledSet
    test: LabelledSet


def load_split(world: Stage, name: str) -> list[Sample]:
    """The samples of one split, in file order."""
    return read_samples(world.path(f"{name}.parquet"))


def split_table(data: Stage) -> pd.DataFrame:
    """One row a split: samples, leaf topics, mean difficulty of those that have one, share with a flaw."""
    frames = {path.stem: pd.read_parquet(path) for path in sorted(data.folder.glob("*.parquet"))}
    level = {name: round(frame["difficulty"].astype(float).mean(), 2) for name, frame in frames.items()}
    rows = [(name, len(f), f["topic"].nunique(), level[name], f"{(f['flaw'] != '').mean():.1%}") for name, f in frames.items()]
    return pd.DataFrame(rows, columns=["split", "samples", "leaf topics", "mean difficulty", "planted errors"])
