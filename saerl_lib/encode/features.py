"""The feature table: z, metadata and phi of a list of samples, stored as safetensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from saerl_lib.data.schema import Sample
from saerl_lib.encode.metadata import metadata_features
from saerl_lib.encode.pooling import Encoder, pool_samples


@dataclass(frozen=True)
class FeatureTable:
    """Representation of N samples."""

    ids: tuple[str, ...]
    z: NDArray[np.float32]
    """[N, 4 S] pooled SAE features."""
    metadata: NDArray[np.float32]
    """[N, 26] metadata features."""

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.z) == len(self.metadata):
            raise ValueError(
                f"{len(self.ids)} ids, {len(self.z)} rows of z and {len(self.metadata)} of metadata: lengths must agree"
            )

    @property
    def phi(self) -> NDArray[np.float32]:
        """[N, 4 S + 26], phi = [z ; m] (paper, section 3.1)."""
        return np.concatenate([self.z, self.metadata], axis=1)

    @property
    def prompt_z(self) -> NDArray[np.float32]:
        """[N, 2 S] prompt-side blocks of z, for the topic probe."""
        return self.z[:, : self.z.shape[1] // 2]

    def rows(self, keep: NDArray[np.int64]) -> FeatureTable:
        """The table of some rows."""
        return FeatureTable(tuple(self.ids[i] for i in keep), self.z[keep], self.metadata[keep])


def encode_samples(samples: Sequence[Sample], encoder: Encoder, retained: NDArray[np.int64]) -> FeatureTable:
    """Encode samples into a feature table, in their order."""
    return FeatureTable(tuple(s.id for s in samples), pool_samples(samples, encoder, retained), metadata_features(samples))


def save_features(table: FeatureTable, path: Path) -> None:
    """Write a feature table as safetensors, the ids in its header."""
    save_file({"z": table.z, "metadata": table.metadata}, path, metadata={"ids": json.dumps(table.ids)})


def load_features(path: Path) -> FeatureTable:
    """Read a feature table."""
    with safe_open(path, framework="numpy") as handle:
        ids = tuple(json.loads(handle.metadata()["ids"]))
        return FeatureTable(ids, handle.get_tensor("z"), handle.get_tensor("metadata"))
