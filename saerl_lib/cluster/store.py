"""The pooled latents that `encode` left, one block of rows in memory at a time, with the readings of `encode.store`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saerl_lib.artifacts import MANIFEST, ArtifactError, read_manifest
from saerl_lib.encode.store import Shard, Store


@dataclass(frozen=True)
class ParquetStore(Store):
    """The shards of an encoded data set, one block at a time; `select`, `peaks` and `blocks` are those of `Store`."""

    def shards(self) -> Iterator[Shard]:
        """One block after another. Raises ArtifactError when there is none."""
        files = sorted(self.folder.glob("shard-*.parquet"))
        if not files:
            raise ArtifactError(f"{self.folder}: no shard; write them with `python -m saerl_lib encode`")
        for path in files:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    yield _block(file.read_row_group(group).combine_chunks())


def _block(table: pa.Table) -> Shard:
    lists = {name: table[name].chunk(0) for name in ("column", "mean", "peak")}
    offsets = lists["column"].offsets.to_numpy().astype(np.int64)
    arrays = {name: found.flatten().to_numpy() for name, found in lists.items()}
    ids, solved = tuple(table["id"].to_pylist()), table["solved"].to_numpy()
    return Shard(ids, solved, offsets - offsets[0], arrays["column"], arrays["mean"], arrays["peak"])


def open_encoded(folder: Path) -> ParquetStore:
    """The pooled latents that `encode` left in `folder`. Raises ArtifactError when it did not finish."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtifactError(f"{folder}: no {MANIFEST}; `python -m saerl_lib encode` has not finished there, run it again")
    return ParquetStore(folder, int(manifest["width"]))
