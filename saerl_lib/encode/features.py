"""The feature table: z, metadata and phi of a list of samples, stored as safetensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from saerl_lib.artifacts import Stage
from saerl_lib.data.sample import Sample
from saerl_lib.encode.metadata import PROMPT_COLUMNS, metadata_features
from saerl_lib.encode.pooling import Encoder, pool_samples


@dataclass(frozen=True)
class FeatureTable:
    """Representation of N samples."""

    ids: tuple[str, ...]
    z: NDArray[np.float32]
    """[N, 4 S] pooled SAE features; the solution blocks are NaN for a sample without a worked solution."""
    metadata: NDArray[np.float32]
    """[N, 26] metadata features; those of the solution are NaN for a sample without one."""

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
    def solved(self) -> NDArray[np.bool_]:
        """[N] whether the sample has a solution span."""
        return np.isfinite(self.z[:, self.z.shape[1] // 2 :]).all(axis=1)

    @property
    def prompt_phi(self) -> NDArray[np.float32]:
        """[N, 2 S + 13], the prompt-only representation: prompt blocks and prompt metadata, for pools without solutions."""
        return np.concatenate([self.prompt_z, self.metadata[:, PROMPT_COLUMNS]], axis=1)

    def complete(self, reference: FeatureTable | None = None) -> FeatureTable:
        """Samples without a solution get the mean solution of `reference` (default: of this table) in place of NaN.

        The mean says "no information" to a standardised linear model and to k-means; zeros would say "nothing fires".
        Raises ValueError when no sample of the reference has a solution: use `prompt_phi` then.
        """
        source = reference or self
        if not source.solved.any():
            raise ValueError("no sample has a worked solution; use the prompt-only features (prompt_z, prompt_phi)")
        filled = [np.where(np.isnan(own), np.nanmean(given[source.solved], axis=0), own).astype(np.float32)
                  for own, given in ((self.z, source.z), (self.metadata, source.metadata))]  # fmt: skip
        return FeatureTable(self.ids, *filled)

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


def load_split_features(features: Stage, name: str) -> FeatureTable:
    """The feature table of one split."""
    return load_features(features.path(f"{name}.safetensors"))


def retained_latents(features: Stage) -> np.ndarray:
    """Indices of the retained latents."""
    return load_file(features.path("retained.safetensors"))["retained"]
