"""Features on disk in shards that are read block by block: z in float16 or float32, the rest exact (ours).

A shard is a safetensors file with z [n, 4 S], metadata float32 [n, 26], length float64 [n] and ids uint8 [n, w], UTF-8 padded
with zeros. Metadata stay float32: float16 ends at 65,504 and counts exactly to 2,048 only. Files are read, not mapped, so
that resident memory is what the path holds and not what the page cache could.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from saerl_lib.properties.clusters import CHUNK_ROWS

DTYPES = {"F16": np.dtype(np.float16), "F32": np.dtype(np.float32), "F64": np.dtype(np.float64), "U8": np.dtype(np.uint8)}
TENSORS = ("z", "metadata", "length", "ids")


@dataclass(frozen=True)
class Block:
    """Some consecutive samples."""

    ids: np.ndarray
    """UTF-8, bytes [n]."""
    phi: np.ndarray
    """[z ; m], float32 [n, D]."""
    length: np.ndarray
    """Sequence length, above 0, float64 [n]."""


@dataclass(frozen=True)
class Shard:
    """One file: where each tensor lies."""

    path: Path
    rows: int
    layout: dict[str, tuple[np.dtype, int, int]]
    """Name -> dtype, columns, byte offset in the file."""

    def read(self, start: int, stop: int) -> Block:
        """Rows start to stop. Raises ValueError that names file and row for a value that is not finite."""
        with self.path.open("rb") as handle:
            parts = {}
            for name, (dtype, columns, offset) in self.layout.items():
                handle.seek(offset + start * columns * dtype.itemsize)
                parts[name] = np.fromfile(handle, dtype, (stop - start) * columns).reshape(stop - start, columns)
        phi = np.concatenate([parts["z"], parts["metadata"]], axis=1, dtype=np.float32)
        bad = ~np.isfinite(phi).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{self.path}: {int(bad.sum())} rows hold non-finite features, first row {start + int(bad.argmax())}: "
                "encode that sample again or drop it"
            )
        return Block(np.ascontiguousarray(parts["ids"]).view(f"S{parts['ids'].shape[1]}").ravel(), phi, parts["length"].ravel())


@dataclass(frozen=True)
class ShardedPool:
    """The shards of a pool, in the order of their names."""

    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """Number of samples N."""
        return sum(shard.rows for shard in self.shards)

    @property
    def id_bytes(self) -> int:
        """Bytes of the longest id's field."""
        return max(shard.layout["ids"][1] for shard in self.shards)

    @property
    def disk_bytes(self) -> int:
        """Size of all files."""
        return sum(shard.path.stat().st_size for shard in self.shards)

    def blocks(self, block_rows: int = CHUNK_ROWS) -> Iterator[Block]:
        """All samples in order, at most `block_rows` at a time. Raises ValueError as `Shard.read` does."""
        for shard in self.shards:
            for start in range(0, shard.rows, block_rows):
                yield shard.read(start, min(start + block_rows, shard.rows))

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """phi float32 [n, D] of the rows `numbers`, ascending; reads those rows alone."""
        parts, first = [], 0
        for shard in self.shards:
            here = numbers[np.searchsorted(numbers, first) : np.searchsorted(numbers, first + shard.rows)] - first
            parts += [shard.read(int(row), int(row) + 1).phi for row in here]
            first += shard.rows
        return np.concatenate(parts)


def write_shard(path: Path, ids: Sequence[str], z: np.ndarray, metadata: np.ndarray, length: np.ndarray) -> None:
    """Write one shard; z keeps its dtype, float16 or float32.

    Raises ValueError for another dtype, a value that float16 does not hold, an id that is empty or holds a NUL, unequal rows.
    """
    encoded = np.array([name.encode() for name in ids])
    if z.dtype not in (np.float16, np.float32):
        raise ValueError(f"{path}: z is {z.dtype}; store float16 or float32")
    if not np.isfinite(z).all():
        raise ValueError(f"{path}: z holds non-finite values or overflowed float16 (65,504); store float32 or encode again")
    if any(not name or "\0" in name for name in ids):
        raise ValueError(f"{path}: an id is empty or holds a NUL character; give every sample a plain name")
    if not len(ids) == len(z) == len(metadata) == len(length):
        raise ValueError(f"{path}: {len(ids)} ids, {len(z)} rows of z, {len(metadata)} of metadata, {len(length)} lengths")
    codes = encoded.view(np.uint8).reshape(len(ids), -1)
    arrays = {"z": z, "metadata": metadata.astype(np.float32), "length": length.astype(np.float64), "ids": codes}
    beside = path.with_suffix(".partial")
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, beside)
    beside.replace(path)


def open_shard(path: Path) -> Shard:
    """A shard without its data. Raises ValueError when the file is none, or is cut short."""
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length)) if length < path.stat().st_size else {}
    if not set(TENSORS) <= header.keys():
        raise ValueError(f"{path} is no feature shard: write it with write_shard")
    layout, rows = {}, header["z"]["shape"][0]
    for name in TENSORS:
        dtype, columns = DTYPES[header[name]["dtype"]], int(np.prod(header[name]["shape"][1:]))
        layout[name] = (dtype, columns, 8 + length + header[name]["data_offsets"][0])
        if header[name]["shape"][0] != rows or 8 + length + header[name]["data_offsets"][1] > path.stat().st_size:
            raise ValueError(f"{path}: {name} does not hold {rows} rows: the file is cut short, write it again")
    return Shard(path, rows, layout)


def open_pool(folder: Path) -> ShardedPool:
    """The pool in `folder`. Raises ValueError when there is no shard or their widths differ."""
    shards = tuple(open_shard(path) for path in sorted(folder.glob("shard-*.safetensors")))
    if not shards:
        raise ValueError(f"{folder}: no shard; write the features with write_shard as shard-00000.safetensors and so on")
    for shard in shards:
        if shard.layout["z"][1] != shards[0].layout["z"][1] or shard.layout["metadata"][1] != shards[0].layout["metadata"][1]:
            raise ValueError(f"{shard.path} has other columns than {shards[0].path}: encode with the same features")
    return ShardedPool(shards)
