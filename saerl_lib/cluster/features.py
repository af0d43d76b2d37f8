"""A plan from the latents that `encode` left in shards: nothing is encoded again, wherever the shards were made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from saerl_lib.artifacts import file_sha256, read_manifest
from saerl_lib.cluster.store import ParquetStore, open_encoded
from saerl_lib.data.sample import DataError, Dataset
from saerl_lib.encode.features import FeatureTable
from saerl_lib.encode.metadata import metadata_features
from saerl_lib.encode.retain import choose_retained
from saerl_lib.own.represent import TOKENS, Representation, finish
from saerl_lib.own.settings import OwnConfig


def represent_encoded(data: Dataset, source: str, folder: Path, config: OwnConfig) -> Representation:
    """SAE features and metadata of the rows of `source`, which `encode` read into `folder`, perhaps beside other files.

    Raises ArtifactError when it did not finish, and DataError when it read another file or left some of these rows out.
    """
    store, manifest = open_encoded(folder), read_manifest(folder) or {}
    if Path(source).is_file() and file_sha256(Path(source)) not in {file["sha256"] for file in manifest["source"]}:
        names = ", ".join(file["name"] for file in manifest["source"])
        raise DataError(f"--features {folder}: `encode` read {names}, not this {Path(source).name}; encode it as it is now")
    place = {name: row for row, name in enumerate(store.ids)}
    absent = [name for name in data.ids if name not in place]
    if absent:
        raise DataError(
            f"--features {folder}: {len(absent)} of {len(data.samples)} rows are not there, first {absent[:3]}; encode this file "
            "with the same field options"
        )
    rows = np.array([place[name] for name in data.ids])
    retained = choose_retained(store, min(config.retained_latents, store.width))
    table = FeatureTable(tuple(data.ids), store.select(retained)[rows], metadata_features(data.samples))
    tokens, cut = _read(store, ("tokens", "truncated"))
    name = f"{len(retained)} SAE latents of layer {manifest['decided_by']['layer']} from {folder.name}, and metadata"
    return finish(table, tokens[rows].astype(float), TOKENS, name, int(cut[rows].sum()))


def _read(store: ParquetStore, columns: tuple[str, ...]) -> list[np.ndarray]:
    tables = [pq.read_table(path, columns=list(columns)) for path in sorted(store.folder.glob("shard-*.parquet"))]
    return [np.concatenate([table[name].to_numpy() for table in tables]) for name in columns]
