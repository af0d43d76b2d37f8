"""Sorting more records than memory holds: sorted runs on disk, then a merge by blocks (ours).

Records are structured arrays with a bytes field `key`. The merge holds a piece of every run; all records up to the least of
the last keys of the pieces are in memory, so they can be sorted and handed on together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from saerl_lib.scale.config import ScaleConfig


def write_runs(chunks: Iterable[np.ndarray], folder: Path, run_rows: int) -> list[Path]:
    """Sorted runs of `run_rows` records in the new `folder`, from chunks in any order; a run and a chunk are in memory."""
    folder.mkdir(parents=True)
    runs: list[Path] = []
    held: list[np.ndarray] = []
    rows = 0

    def flush() -> None:
        nonlocal held, rows
        run = np.concatenate(held)
        held, rows = [], 0
        path = folder / f"run-0-{len(runs):06d}"
        run[np.argsort(run["key"])].tofile(path)
        runs.append(path)

    for chunk in chunks:
        while len(chunk):
            part, chunk = chunk[: run_rows - rows], chunk[run_rows - rows :]
            held.append(part)
            rows += len(part)
            if rows == run_rows:
                flush()
    if rows:
        flush()
    return runs


@dataclass
class _Reader:
    """One run and the piece of it in memory."""

    path: Path
    dtype: np.dtype
    place: int = 0
    held: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.rows = self.path.stat().st_size // self.dtype.itemsize
        self.held = np.empty(0, self.dtype)

    @property
    def left(self) -> bool:
        """Whether records are still on disk."""
        return self.place < self.rows

    def fill(self, rows: int) -> None:
        """Read the next piece once the last one is used up."""
        if not len(self.held) and self.left:
            count = min(rows, self.rows - self.place)
            self.held = np.fromfile(self.path, self.dtype, count, offset=self.place * self.dtype.itemsize)
            self.place += len(self.held)

    def take(self, limit: np.ndarray | None) -> np.ndarray:
        """Records of the piece up to `limit`, all without one."""
        stop = len(self.held) if limit is None else int(np.searchsorted(self.held["key"], limit, side="right"))
        taken, self.held = self.held[:stop], self.held[stop:]
        return taken


def merge_runs(runs: list[Path], dtype: np.dtype, merge_rows: int) -> Iterator[np.ndarray]:
    """The records of sorted runs in order, in blocks; at most about `merge_rows` are in memory."""
    readers, piece = [_Reader(path, dtype) for path in runs], max(1, merge_rows // max(1, len(runs)))
    while True:
        for reader in readers:
            reader.fill(piece)
        readers = [reader for reader in readers if len(reader.held)]
        if not readers:
            return
        bounds = [reader.held["key"][-1] for reader in readers if reader.left]
        limit = np.array(min(bounds), dtype=dtype["key"]) if bounds else None
        block = np.concatenate([reader.take(limit) for reader in readers])
        yield block[np.argsort(block["key"])]


def merged(runs: list[Path], dtype: np.dtype, config: ScaleConfig) -> Iterator[np.ndarray]:
    """The records of sorted runs in order, in blocks; each run is removed once it is used up.

    More than `fan_in` runs are merged in several passes.
    """
    level = 0
    while len(runs) > config.fan_in:
        level += 1
        groups = [runs[i : i + config.fan_in] for i in range(0, len(runs), config.fan_in)]
        runs = [_merged_run(group, dtype, group[0].with_name(f"run-{level}-{i:06d}"), config) for i, group in enumerate(groups)]
    yield from merge_runs(runs, dtype, config.merge_rows)
    for path in runs:
        path.unlink()


def _merged_run(group: list[Path], dtype: np.dtype, path: Path, config: ScaleConfig) -> Path:
    with path.open("wb") as handle:
        for block in merge_runs(group, dtype, config.merge_rows):
            block.tofile(handle)
    for run in group:
        run.unlink()
    return path
