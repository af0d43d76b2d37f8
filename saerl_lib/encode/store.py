"""Pooled statistics of all latents, sparse on disk, so that the retained set can be chosen without encoding again.

A store is a folder of shards. A shard is one safetensors file with the entries of a few thousand samples in CSR form over
the combined index (span, latent): row pointers [n + 1], column = span * F + latent, mean and peak; with them the lengths. Zeros
are not stored. Ids, F and what the shard was made from (`saerl_lib.encode.parts`) stand in the file's header.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy import sparse

from saerl_lib.artifacts import ArtifactError
from saerl_lib.data.sample import Sample
from saerl_lib.encode.pooling import Encoder, pool_batch
from saerl_lib.encode.spans import pack, pad, sample_spans

SHARD_SAMPLES = 4096
"""Samples of one shard of `write_store`; bounds the memory of writing and reading."""
HEADER = "shard"
"""Key of the header's one entry: several would be written in no fixed order."""


@dataclass(frozen=True)
class Shard:
    """Pooled latents of some consecutive samples."""

    ids: tuple[str, ...]
    solved: NDArray[np.bool_]
    """Whether the sample has a solution span, [n]."""
    tokens: NDArray[np.int32]
    """Tokens that were read, [n]."""
    truncated: NDArray[np.bool_]
    """Whether the sample's end was cut, [n]."""
    pointers: NDArray[np.int64]
    column: NDArray[np.int32]
    mean: NDArray[np.float32]
    peak: NDArray[np.float32]

    def matrix(self, values: NDArray[np.float32], width: int) -> sparse.csr_matrix:
        """`mean` or `peak` as [n, 2 F]: prompt columns, then solution columns."""
        return sparse.csr_matrix((values, self.column, self.pointers), shape=(len(self.ids), 2 * width))


ARRAYS = tuple(field.name for field in fields(Shard) if field.name != "ids")


@dataclass(frozen=True)
class Store:
    """Shards of one list of samples, in its order."""

    folder: Path
    width: int
    """F of the SAE."""

    def files(self) -> list[Path]:
        """The shards, in order. Raises ArtifactError when there is none."""
        files = sorted(self.folder.glob("shard-*.safetensors"))
        if not files:
            raise ArtifactError(f"{self.folder}: no shard; write the store with write_store")
        return files

    def shards(self) -> Iterator[Shard]:
        """One shard after another."""
        for path in self.files():
            with safe_open(path, framework="numpy") as handle:
                yield Shard(tuple(_header(handle)["ids"]), **{name: handle.get_tensor(name) for name in ARRAYS})

    def values(self, name: str) -> NDArray:
        """[N] one of `solved`, `tokens` and `truncated`."""
        parts = []
        for path in self.files():
            with safe_open(path, framework="numpy") as handle:
                parts.append(handle.get_tensor(name))
        return np.concatenate(parts)

    def select(self, retained: NDArray[np.int64]) -> NDArray[np.float32]:
        """z [N, 4 S] of a retained set, equal to encoding again; solution blocks are NaN without a solution span."""
        parts = []
        for shard in self.shards():
            mean, peak = (shard.matrix(values, self.width) for values in (shard.mean, shard.peak))
            columns = [matrix[:, span * self.width + retained].toarray() for span in (0, 1) for matrix in (mean, peak)]
            z = np.concatenate(columns, axis=1)
            z[~shard.solved, 2 * len(retained) :] = np.nan
            parts.append(z)
        return np.concatenate(parts)

    def peaks(self) -> sparse.csr_matrix:
        """[N, F] largest activation of each latent over both spans."""
        parts = []
        for shard in self.shards():
            both = shard.matrix(shard.peak, self.width)
            parts.append(both[:, : self.width].maximum(both[:, self.width :]))
        return sparse.vstack(parts, format="csr")

    def blocks(self) -> sparse.csr_matrix:
        """[N, 4 F] all blocks of z with every latent; a missing solution span has no entries."""
        parts = []
        for shard in self.shards():
            mean, peak = (shard.matrix(values, self.width) for values in (shard.mean, shard.peak))
            parts.append(sparse.hstack([m[:, s * self.width : (s + 1) * self.width] for s in (0, 1) for m in (mean, peak)]))
        return sparse.vstack(parts, format="csr")

    @property
    def ids(self) -> tuple[str, ...]:
        """Sample ids, in order."""
        found: list[str] = []
        for path in self.files():
            with safe_open(path, framework="numpy") as handle:
                found += _header(handle)["ids"]
        return tuple(found)


def _header(handle: Any) -> dict[str, Any]:
    return json.loads(handle.metadata()[HEADER])


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` of a store lies; names sort like numbers."""
    return folder / f"shard-{number:06d}.safetensors"


def write_store(samples: Sequence[Sample], encoder: Encoder, folder: Path) -> Store:
    """Encode samples shard by shard into `folder`; memory is bounded by a shard of samples and a batch of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(samples), SHARD_SAMPLES)):
        write_shard(samples[start : start + SHARD_SAMPLES], encoder, shard_path(folder, number), {})
    return Store(folder, encoder.sae.cfg.d_sae)


def write_shard(samples: Sequence[Sample], encoder: Encoder, path: Path, made_from: Mapping[str, Any]) -> dict[str, Any]:
    """Encode n samples into the file `path`; returns its record: `made_from`, counts, and the hash of all values.

    Batches are formed inside the shard, so on one device with one number of threads equal samples give equal bytes. Raises
    FloatingPointError with the sample id when an activation is not finite.
    """
    spans = [sample_spans(s, encoder.tokenizer, encoder.layout) for s in samples]
    width, solved = encoder.sae.cfg.d_sae, np.zeros(len(samples), dtype=bool)
    rows, columns, means, peaks = [], [], [], []
    for batch_rows in pack([len(s.ids) for s in spans], encoder.tokens_per_batch):
        batch = pad(batch_rows, spans, encoder.tokenizer.pad_token_id or 0)
        pooled = pool_batch(encoder, batch, samples)
        solved[list(batch.rows)] = batch.solution.any(dim=1).numpy()
        rows.append(pooled.row)
        columns.append(pooled.span * width + pooled.latent)
        means.append(pooled.mean)
        peaks.append(pooled.peak)
    row, column = np.concatenate(rows), np.concatenate(columns)
    order = np.lexsort((column, row))
    arrays = {
        "solved": solved,
        "tokens": np.array([len(s.ids) for s in spans], dtype=np.int32),
        "truncated": np.array([s.truncated for s in spans], dtype=bool),
        "pointers": np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(samples)))]).astype(np.int64),
        "column": column[order].astype(np.int32),
        "mean": np.concatenate(means)[order],
        "peak": np.concatenate(peaks)[order],
    }
    ids = [s.id for s in samples]
    record = {
        **made_from, "width": width, "samples": len(samples), "tokens": int(arrays["tokens"].sum()),
        "truncated": int(arrays["truncated"].sum()), "solved": int(solved.sum()), "entries": len(order),
        "values": _values_hash(ids, arrays),
    }  # fmt: skip
    save_file(arrays, path, metadata={HEADER: json.dumps({"ids": ids, "record": record}, sort_keys=True)})
    return record


def read_record(path: Path) -> dict[str, Any] | None:
    """The record that `write_shard` returned for the file, or None when it is missing or not as it was written."""
    try:
        with safe_open(path, framework="numpy") as handle:
            header, arrays = _header(handle), {name: handle.get_tensor(name) for name in ARRAYS}
        record = header["record"]
        return record if record["values"] == _values_hash(header["ids"], arrays) else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _values_hash(ids: Sequence[str], arrays: Mapping[str, NDArray]) -> str:
    found = hashlib.sha256(json.dumps(list(ids)).encode())
    for name in ARRAYS:
        found.update(np.ascontiguousarray(arrays[name]))
    return found.hexdigest()
