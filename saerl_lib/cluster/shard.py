"""One shard: rows in Parquet -> pooled latents of all spans in Parquet, written whole or not at all (paper, section 3.1).

Rows are encoded in blocks of `BLOCK_ROWS` consecutive rows, and batches are formed inside a block. A shard holds whole blocks,
so neither its size nor the number of workers decides which rows share a padded batch, and with it the last digits: on one kind
of CPU and with the same packages the values are the same for every shard size, one thread a process.
"""

from __future__ import annotations

import functools
import json
import os
import socket
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from saerl_lib.artifacts import ArtifactError, code_hash
from saerl_lib.data.sample import Sample, read_samples
from saerl_lib.encode.pooling import Encoder, pool_batch
from saerl_lib.encode.spans import pack, pad, sample_spans
from saerl_lib.own.model import open_model
from saerl_lib.own.settings import OwnConfig

BLOCK_ROWS = 256
"""Rows that are batched together, one row group of a shard; shards are multiples of it (ours)."""
CODE = (
    "cluster/shard.py", "data/sample.py", "encode/activations.py", "encode/pooling.py", "encode/sae.py", "encode/sources.py",
    "encode/spans.py", "encode/sparse.py", "encode/topk.py", "own/model.py",
)  # fmt: skip
"""Sources that decide a shard's bytes."""
PACKAGES = ("torch", "transformers", "tokenizers", "sae-lens", "numpy", "pyarrow")
ATTEMPTS = 5
"""Times that a shard is begun by one command; more workers lost with it mean that the shard is to blame."""
RECORD = b"saerl"
"""Key of the shard's record in the footer of its file."""
EXPECTED = (ArtifactError, ValueError, OSError, FloatingPointError)
"""Errors of a shard that another attempt would repeat."""
COLUMNS = pa.schema([
    ("id", pa.string()), ("position", pa.int64()), ("tokens", pa.int32()), ("truncated", pa.bool_()), ("solved", pa.bool_()),
    ("column", pa.list_(pa.int32())), ("mean", pa.list_(pa.float32())), ("peak", pa.list_(pa.float32())),
])  # fmt: skip
"""One row a sample: tokens read, whether the end was cut, whether a solution span was read, and the entries above zero by
ascending column = span * F + latent (span 0 prompt, 1 solution) with mean and largest activation."""


@dataclass(frozen=True)
class EncodeSpec:
    """What every shard of a data set shares; travels to the workers."""

    config: OwnConfig
    """Folders are absolute."""
    probe: tuple[Sample, ...]
    """Rows on which the tokenizer is tried, the same for every shard."""
    environment: dict[str, str]
    """`environment()` of the process that ordered the work."""


@dataclass(frozen=True)
class ShardTask:
    """One shard to encode; plain values, so that it can be a row of a table."""

    number: int
    rows_path: str
    path: str
    first: int
    """Position of the first row among all usable rows."""
    rows: int
    key: str
    """Content hash of all that decides the shard."""


def environment() -> dict[str, str]:
    """Hash of the code and versions of the packages that decide the values of a shard."""
    return {"code": code_hash(CODE)} | {name: metadata.version(name) for name in PACKAGES}


def finished(task: ShardTask) -> dict[str, Any] | None:
    """The record of the shard in its place, or None when it is missing, unreadable or of another key."""
    try:
        footer = pq.read_metadata(task.path)
        record = json.loads((footer.metadata or {})[RECORD])
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None
    return record if record["key"] == task.key and record["rows"] == footer.num_rows == task.rows else None


def encode_shard(task: ShardTask, spec: EncodeSpec) -> dict[str, Any]:
    """Encode one shard unless it lies finished in its place; returns its record, or number and `error`.

    Safe to repeat and to run twice at once: the file appears by renaming, and equal work gives equal bytes.
    """
    try:
        return finished(task) or _encode(task, spec)
    except EXPECTED as error:
        return {"number": task.number, "error": f"shard {task.number} on {socket.gethostname()}: {error}"}


def _encode(task: ShardTask, spec: EncodeSpec) -> dict[str, Any]:
    here = environment()
    for name, wanted in spec.environment.items():
        if here[name] != wanted:
            raise ArtifactError(
                f"{name} is {here[name]} here and {wanted} where the command runs; install the same on all machines"
            )
    if not Path(task.rows_path).is_file():
        raise ArtifactError(f"{task.rows_path} is not to be seen; --out must lie in a folder that all machines share")
    attempts = _count_attempt(task)
    torch.set_num_threads(1)
    encoder, samples = _opened(spec.config, spec.probe), read_samples(Path(task.rows_path))
    path = Path(task.path)
    partial = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    totals = dict.fromkeys(("tokens", "truncated", "solved", "entries"), 0)
    try:
        with pq.ParquetWriter(partial, COLUMNS, compression="zstd") as writer:
            for start in range(0, len(samples), BLOCK_ROWS):
                table = encode_block(samples[start : start + BLOCK_ROWS], encoder, task.first + start)
                writer.write_table(table, row_group_size=BLOCK_ROWS)
                for name in ("tokens", "truncated", "solved"):
                    totals[name] += int(np.sum(table[name].to_numpy()))
                totals["entries"] += sum(len(chunk.flatten()) for chunk in table["column"].chunks)
            record = {"number": task.number, "key": task.key, "rows": task.rows, "width": encoder.sae.cfg.d_sae, **totals}
            writer.add_key_value_metadata({RECORD: json.dumps(record, sort_keys=True).encode()})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    attempts.unlink(missing_ok=True)
    return record


def _count_attempt(task: ShardTask) -> Path:
    """Note on disk that the shard was begun once more. Raises ArtifactError after `ATTEMPTS` times."""
    path = Path(task.path)
    attempts = path.with_name(f".{path.name}.attempts")
    with attempts.open("ab") as handle:
        handle.write(b".")
    if attempts.stat().st_size > ATTEMPTS:
        raise ArtifactError(
            f"{ATTEMPTS} workers were lost with it, for want of memory perhaps: lower --tokens-per-batch or --workers"
        )
    return attempts


@functools.lru_cache(maxsize=1)
def _opened(config: OwnConfig, probe: tuple[Sample, ...]) -> Encoder:
    """The model, once a process."""
    return open_model(config, probe)


def encode_block(samples: list[Sample], encoder: Encoder, first: int) -> pa.Table:
    """Rows of `COLUMNS` for at most `BLOCK_ROWS` samples, the first of which has position `first`."""
    spans = [sample_spans(s, encoder.tokenizer, encoder.layout) for s in samples]
    width, solved = encoder.sae.cfg.d_sae, np.zeros(len(samples), dtype=bool)
    parts = []
    for rows in pack([len(s.ids) for s in spans], encoder.tokens_per_batch):
        batch = pad(rows, spans, encoder.tokenizer.pad_token_id or 0)
        found = pool_batch(encoder, batch, samples)
        solved[list(rows)] = batch.solution.any(dim=1).numpy()
        parts.append((found.row, found.span * width + found.latent, found.mean, found.peak))
    row, column, mean, peak = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.lexsort((column, row))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(samples)))]).astype(np.int32)
    entries = [(column, np.int32), (mean, np.float32), (peak, np.float32)]
    return pa.Table.from_arrays([
        pa.array([s.id for s in samples]), pa.array(first + np.arange(len(samples))),
        pa.array([len(s.ids) for s in spans], pa.int32()), pa.array([s.truncated for s in spans]), pa.array(solved),
        *(pa.ListArray.from_arrays(offsets, pa.array(values[order].astype(kind))) for values, kind in entries),
    ], schema=COLUMNS)  # fmt: skip
