"""Real labelled problems: JSON-lines files in the schema of the README, one `LabelledSet` a file.

The files lie in the folder named by `SAERL_DATA_DIR`, or anywhere else: any file of the same schema goes the same way.
Nothing is dropped silently: rows without a label stay in the set and are counted by `LabelledSet.with_label`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saerl_lib.data.schema import DataError, Sample, load_jsonl, normalise

LABELS = ("subject", "level", "pass_rate", "valid", "learnability")
"""Labels that a problem may carry: topic, difficulty on the source's scale, share of correct attempts, well-posed, LIMR score."""


@dataclass(frozen=True)
class LabelledSet:
    """N problems with their labels."""

    name: str
    samples: tuple[Sample, ...]
    labels: Mapping[str, np.ndarray]
    """Label name -> [N]: subject as text ('' when unknown), the others as float (NaN when unknown)."""
    overlap: tuple[tuple[str, ...], ...]
    """Evaluation sets that hold the same question, by the file's own record, [N]."""

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, keep: Sequence[int] | np.ndarray) -> LabelledSet:
        """The set of some rows."""
        rows = np.asarray(keep, dtype=np.int64)
        labels = {name: values[rows] for name, values in self.labels.items()}
        return LabelledSet(
            self.name, tuple(self.samples[i] for i in rows), labels, tuple(self.overlap[i] for i in rows)
        )

    def has_label(self, label: str) -> np.ndarray:
        """Mask [N] of the rows that carry a label."""
        values = self.labels[label]
        return values != "" if label == "subject" else np.isfinite(values)

    def with_label(self, label: str) -> LabelledSet:
        """The rows that carry a label."""
        return self.rows(np.flatnonzero(self.has_label(label)))

    @property
    def keys(self) -> list[str]:
        """Normalised question of each row, the identity that splits and overlap checks use."""
        return [normalise(s.prompt) for s in self.samples]


def read_lines(path: Path) -> list[str]:
    """Lines of a JSON-lines file, gzip or plain.

    Raises DataError when the file is missing, no gzip although its name says so, or no UTF-8.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; set SAERL_DATA_DIR to the folder that holds it")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path.name}: cannot be read ({error}); write it as UTF-8, gzip only when its name ends in .gz"
        ) from error


def load_labelled(path: Path) -> LabelledSet:
    """Every row of a file with its labels.

    A level below 0 counts as unknown. Raises DataError with file, line, field and fix, as `load_jsonl`; the answer may be
    absent, a label of the wrong type may not.
    """
    lines = list(read_lines(path))
    found = {n: _object(line, f"{path.name}, line {n}") for n, line in enumerate(lines, start=1) if line.strip()}
    filled = [json.dumps({"answer": "", **found[n]}) if n in found else "" for n in range(1, len(lines) + 1)]
    samples, records = load_jsonl(filled, path.name), list(found.values())
    labels: dict[str, list[Any]] = {name: [] for name in LABELS}
    for number, record in found.items():
        for name, value in _labels(record, f"{path.name}, line {number}").items():
            labels[name].append(value)
    arrays = {name: np.array(values, dtype=str if name == "subject" else float) for name, values in labels.items()}
    arrays["learnability"] = learnability([r.get("meta", {}).get("train_acc_history") for r in records])
    overlap = tuple(tuple(r.get("meta", {}).get("overlap_eval") or ()) for r in records)
    stem = path.name.split(".")[0]
    return LabelledSet(stem, tuple(samples), arrays, overlap)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno}); write one object a line") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}")
    if not isinstance(record.get("meta", {}), dict):
        raise DataError(f"{where}: field 'meta' is no object; leave it out or write an object")
    return record


def _labels(record: dict[str, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {"subject": str(record.get("subject") or ""), "learnability": np.nan}
    for name in ("level", "pass_rate"):
        value = record.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise DataError(f"{where}: field {name!r} is {value!r}, not a number; leave it out when unknown")
        found[name] = np.nan if value is None or value < 0 else float(value)
    if np.isfinite(found["pass_rate"]) and found["pass_rate"] > 1:
        raise DataError(f"{where}: field 'pass_rate' is {record['pass_rate']}, not a share; divide by the number of attempts")
    valid = record.get("valid")
    if valid is not None and not isinstance(valid, bool):
        raise DataError(f"{where}: field 'valid' is {valid!r}; write true, false, or leave it out")
    found["valid"] = np.nan if valid is None else float(valid)
    return found


def learnability(histories: Sequence[Sequence[float] | None]) -> np.ndarray:
    """LIMR score of each training history (arXiv 2502.11886), NaN without one, [N].

    s_i = 1 - sum_k (r_i^k - rbar^k)^2 / sum_k (1 - rbar^k)^2 over the epochs k that sample i has; rbar^k is the mean
    accuracy of epoch k over the samples that reach it.

    >>> learnability([[0.0, 1.0], [1.0, 1.0], None]).round(2).tolist()
    [0.0, 0.0, nan]
    """
    known = [h for h in histories if h]
    longest = max((len(h) for h in known), default=0)
    table = np.full((len(histories), longest), np.nan)
    for i, history in enumerate(histories):
        if history:
            table[i, : len(history)] = history
    if not longest:
        return np.full(len(histories), np.nan)
    mean = np.nanmean(table, axis=0)
    there = np.isfinite(table)
    distance = np.where(there, (table - mean) ** 2, 0.0).sum(axis=1)
    scale = np.where(there, (1 - mean) ** 2, 0.0).sum(axis=1)
    score = 1 - distance / np.where(scale > 0, scale, 1.0)
    return np.where(there.any(axis=1), score, np.nan)


def hash_share(key: str) -> float:
    """A number in [0, 1) from the text alone: a split by it does not depend on order, file or machine.

    >>> hash_share("a") == hash_share("a"), 0 <= hash_share("b") < 1
    (True, True)
    """
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def hash_order(data: LabelledSet) -> np.ndarray:
    """Row numbers ordered by the hash of the normalised question: its first n rows are a fixed random sample."""
    shares = np.array([hash_share(key) for key in data.keys])
    return np.lexsort((np.array([s.id for s in data.samples]), shares))


def without(data: LabelledSet, keys: set[str]) -> LabelledSet:
    """The rows whose normalised question is not among `keys`."""
    return data.rows([i for i, key in enumerate(data.keys) if key not in keys])


def unique(data: LabelledSet) -> LabelledSet:
    """The first row of every normalised question, so that no question stands on both sides of a split."""
    first = {key: i for i, key in reversed(list(enumerate(data.keys)))}
    return data.rows(sorted(first.values()))


def evaluation_keys(folder: Path) -> dict[str, set[str]]:
    """Evaluation set -> its normalised questions, for every `eval_*` file of a folder."""
    return {path.name.split(".")[0]: set(load_labelled(path).keys) for path in sorted(folder.glob("eval_*.jsonl*"))}


def corpus_texts(sets: Sequence[LabelledSet], held_out: set[str]) -> Iterator[str]:
    """Question and, where there is one, solution of every row whose question is not held out."""
    for data in sets:
        for sample, key in zip(data.samples, data.keys, strict=True):
            if key not in held_out:
                yield f"{sample.prompt}\n{sample.solution}" if sample.solved else sample.prompt
