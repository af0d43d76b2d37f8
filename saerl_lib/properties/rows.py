"""Many rows of phi at little memory: chunks of rows, and stored features that stay on disk.

A million samples of 986 float32 columns take 4 GB, as float64 8 GB; whatever visits all of them does so by `CHUNK_ROWS`
rows. A matrix here is anything with `shape` and rows that can be sliced: an array, a `numpy.memmap` or `StoredPhi`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CHUNK_ROWS = 4096
"""Rows converted to float64 at a time: 32 MB for 986 columns (ours)."""


@dataclass(frozen=True)
class StoredPhi:
    """phi = [z ; m] of a feature table on disk; only the rows that are asked for are read and joined."""

    ids: tuple[str, ...]
    z: np.ndarray
    """float32 [N, 4 S], memory-mapped."""
    metadata: np.ndarray
    """float32 [N, 26], memory-mapped."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, 4 S + 26)."""
        return len(self.z), self.z.shape[1] + self.metadata.shape[1]

    @property
    def ndim(self) -> int:
        """2, as an array says."""
        return 2

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """phi of some rows, float32 [n, D]."""
        return np.concatenate([self.z[rows], self.metadata[rows]], axis=1)


def open_phi(path: Path) -> StoredPhi:
    """The feature table that `save_features` wrote, memory-mapped instead of read.

    Raises ValueError when the file holds no feature table of float32.
    """
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length)) if length < path.stat().st_size else {}
    if {"z", "metadata", "__metadata__"} - header.keys() or {header[name]["dtype"] for name in ("z", "metadata")} != {"F32"}:
        raise ValueError(f"{path} is no feature table of float32: write it with save_features")
    z, metadata = (
        np.memmap(path, np.float32, "r", 8 + length + header[name]["data_offsets"][0], tuple(header[name]["shape"]))
        for name in ("z", "metadata")
    )
    return StoredPhi(tuple(json.loads(header["__metadata__"]["ids"])), z, metadata)


def row_slices(n: int) -> Iterator[slice]:
    """Slices of `CHUNK_ROWS` rows that cover n rows in order.

    >>> [(s.start, s.stop) for s in row_slices(5000)]
    [(0, 4096), (4096, 5000)]
    """
    return (slice(start, min(start + CHUNK_ROWS, n)) for start in range(0, n, CHUNK_ROWS))


def float_chunks(name: str, x: Any) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, a float64 copy of them [n, D]) of a matrix [N, D], which the caller may overwrite.

    Raises ValueError that names `name` and its first bad row when an entry is NaN or infinite.
    """
    for rows in row_slices(len(x)):
        chunk = np.array(x[rows], dtype=np.float64)
        if not np.isfinite(chunk).all():
            require_finite_rows(name, x)
        yield rows, chunk


def require_finite_rows(name: str, x: Any) -> None:
    """`require_finite` for a matrix [N, D] of any size. Raises ValueError with the count and the first bad row."""
    count, first = 0, -1
    for rows in row_slices(len(x)):
        finite = np.isfinite(x[rows])
        if not finite.all():
            count += int(finite.size - finite.sum())
            first = rows.start + int(np.flatnonzero(~finite.all(axis=1))[0]) if first < 0 else first
    if count:
        raise ValueError(f"{name} holds {count} non-finite values, first in row {first}: encode that sample again or drop it")


def by_chunks(name: str, x: Any, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`function` of float64 chunks [n, D] -> [n], joined to [N]. Raises ValueError as `float_chunks` does."""
    return np.concatenate([function(chunk) for _, chunk in float_chunks(name, x)])
