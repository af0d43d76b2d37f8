"""Pooled statistics of all latents, sparse on disk, so that the retained set can be chosen without encoding again.

A store is a folder of shards. A shard is one safetensors file with the entries of a few thousand samples in CSR form over
the combined index (span, latent): row pointers [n + 1], column = span * F + latent, mean and peak. Zeros are not stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy import sparse

from saerl_lib.artifacts import ArtifactError
from saerl_lib.data.sample import Sample
from saerl_lib.encode.pooling import Encoder, pooled_batches

SHARD_SAMPLES = 4096
"""Samples of one shard; bounds the memory of writing and reading."""


@dataclass(frozen=True)
class Shard:
    """Pooled latents of some consecutive samples."""

    ids: tuple[str, ...]
    solved: NDArray[np.bool_]
    """Whether the sample has a solution span, [n]."""
    pointers: NDArray[np.int64]
    column: NDArray[np.int32]
    mean: NDArray[np.float32]
    peak: NDArray[np.float32]

    def matrix(self, values: NDArray[np.float32], width: int) -> sparse.csr_matrix:
        """`mean` or `peak` as [n, 2 F]: prompt columns, then solution columns."""
        return sparse.csr_matrix((values, self.column, self.pointers), shape=(len(self.ids), 2 * width))


@dataclass(frozen=True)
class Store:
    """Shards of one list of samples, in its order."""

    folder: Path
    width: int
    """F of the SAE."""

    def shards(self) -> Iterator[Shard]:
        """One shard after another. Raises ArtifactError when there is none."""
        files = sorted(self.folder.glob("shard-*.safetensors"))
        if not files:
            raise ArtifactError(f"{self.folder}: no shard; write the store with write_store")
        for path in files:
            with safe_open(path, framework="numpy") as handle:
                arrays = {name: handle.get_tensor(name) for name in ("solved", "pointers", "column", "mean", "peak")}
                yield Shard(ids=tuple(json.loads(handle.metadata()["ids"])), **arrays)

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
        return tuple(name for shard in self.shards() for name in shard.ids)


def write_store(samples: Sequence[Sample], encoder: Encoder, folder: Path) -> Store:
    """Encode samples shard by shard into `folder`; memory is bounded by a shard of samples and a batch of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    width = encoder.sae.cfg.d_sae
    for number, start in enumerate(range(0, len(samples), SHARD_SAMPLES)):
        part = samples[start : start + SHARD_SAMPLES]
        _write_shard(part, encoder, width, folder / f"shard-{number:05d}.safetensors")
    return Store(folder, width)


def _write_shard(samples: Sequence[Sample], encoder: Encoder, width: int, path: Path) -> None:
    solved = np.zeros(len(samples), dtype=bool)
    rows, columns, means, peaks = [], [], [], []
    for batch, pooled in pooled_batches(samples, encoder):
        solved[list(batch.rows)] = batch.solution.any(dim=1).numpy()
        rows.append(pooled.row)
        columns.append(pooled.span * width + pooled.latent)
        means.append(pooled.mean)
        peaks.append(pooled.peak)
    row, column = np.concatenate(rows), np.concatenate(columns)
    order = np.lexsort((column, row))
    pointers = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(samples)))])
    arrays = {
        "solved": solved,
        "pointers": pointers.astype(np.int64),
        "column": column[order].astype(np.int32),
        "mean": np.concatenate(means)[order],
        "peak": np.concatenate(peaks)[order],
    }
    save_file(arrays, path, metadata={"ids": json.dumps([s.id for s in samples])})

