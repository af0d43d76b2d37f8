"""Features of one's own rows: metadata and TF-IDF for a first look, SAE features of a model, or those that `encode` stored.

All give a FeatureTable, so that what follows is the same. Vocabulary and SVD see all rows, but no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD

from saerl_lib.artifacts import file_sha256
from saerl_lib.config import sub_seed
from saerl_lib.data.sample import DataError, Dataset, Sample
from saerl_lib.encode.features import FeatureTable
from saerl_lib.encode.metadata import metadata_features
from saerl_lib.encode.models import open_reader
from saerl_lib.encode.parts import encode, open_encoded
from saerl_lib.encode.pooling import Encoder
from saerl_lib.encode.retain import choose_retained
from saerl_lib.encode.sae import SAEQuality
from saerl_lib.encode.sae_check import MEASURED_SAMPLES, measured
from saerl_lib.encode.store import Store
from saerl_lib.own.settings import OwnConfig
from saerl_lib.properties.probes import fit_tfidf

TEXT_COLUMNS = 64
"""Columns of the truncated SVD of each span's TF-IDF (ours)."""
TOKENS = "tokens"
"""Unit of the lengths where a model read the rows."""
SOLVED_SHARE = 0.5
"""Solutions are read when at least this share of the rows has one (ours)."""


@dataclass(frozen=True)
class Representation:
    """What is known about N samples before any label."""

    table: FeatureTable
    phi: NDArray[np.float32]
    """Columns that everything below reads, [N, D]; no NaN."""
    lengths: NDArray[np.float64]
    """Length of prompt and solution, above 0, [N]."""
    unit: str
    """Of the lengths: words or tokens."""
    name: str
    """What the features are, in words."""
    with_solution: bool
    """Whether phi holds the solution."""
    truncated: int = 0
    """Samples whose end was cut."""
    sae: SAEQuality | None = None
    """The SAE's reconstruction of some rows' own tokens; None where it was not measured."""

    @property
    def by_model(self) -> bool:
        """Whether a model read the rows."""
        return self.unit == TOKENS


def represent_text(samples: Sequence[Sample], seed: int) -> Representation:
    """Metadata and TF-IDF (by truncated SVD) of N samples; no model. Deterministic for a seed."""
    z = [_svd([s.prompt for s in samples], sub_seed(seed, "prompt-svd"))]
    solved = np.array([s.solved for s in samples])
    z.append(np.full_like(z[0], np.nan))
    if solved.any():
        block = _svd([s.solution if s.solved else "" for s in samples], sub_seed(seed, "solution-svd"))
        z[1][solved] = block[solved]
    table = FeatureTable(tuple(s.id for s in samples), np.concatenate(z, axis=1), metadata_features(samples))
    lengths = np.array([len(f"{s.prompt} {s.solution}".split()) for s in samples], dtype=float)
    return finish(table, lengths, "words", "metadata and TF-IDF")


def represent_model(samples: Sequence[Sample], config: OwnConfig, work: Path) -> Representation:
    """SAE features and metadata of N samples; `work` is an empty folder for the store of all latents.

    Raises OSError or ValueError for a model that cannot be read, SAEGateError for an SAE that does not fit it, and
    FloatingPointError for non-finite activations.
    """

    @cache
    def opened() -> Encoder:
        return open_reader(config.reader, [s.prompt for s in samples])

    store = encode(samples, config.reader, work, opened=opened).store
    found = _of_store(samples, store, np.arange(len(samples)), config, f"{Path(config.encoder).name}, layer {config.layer}")
    return replace(found, sae=measured(samples[:MEASURED_SAMPLES], opened(), config.reader.sae))


def represent_encoded(data: Dataset, source: str, folder: Path, config: OwnConfig) -> Representation:
    """SAE features and metadata of the rows of `source`, which `encode` read into `folder`, perhaps beside other files.

    Nothing is encoded again, wherever it was encoded. Raises ArtifactError when `encode` did not finish or a shard is damaged,
    and DataError when it read another file or left some of these rows out.
    """
    store, manifest = open_encoded(folder)
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
    return _of_store(data.samples, store, rows, config, f"layer {manifest['decided_by']['layer']} from {folder.name}")


def _of_store(
    samples: Sequence[Sample], store: Store, rows: NDArray[np.int64], config: OwnConfig, origin: str
) -> Representation:
    """The representation of samples that lie in `rows` of a store; the retained set is chosen from all of it."""
    retained = choose_retained(store, min(config.retained_latents, store.width))
    table = FeatureTable(tuple(s.id for s in samples), store.select(retained)[rows], metadata_features(samples))
    tokens, cut = store.values("tokens")[rows], store.values("truncated")[rows]
    name = f"{len(retained)} SAE latents of {origin}, and metadata"
    return finish(table, tokens.astype(float), TOKENS, name, int(cut.sum()))


def finish(table: FeatureTable, lengths: NDArray[np.float64], unit: str, name: str, truncated: int = 0) -> Representation:
    """The representation of a feature table: with solutions when at least half of the rows have one, else prompts alone.

    A row without solution gets the mean one in the first case (`FeatureTable.complete`).
    """
    with_solution = bool(table.solved.mean() >= SOLVED_SHARE)
    phi = table.complete().phi if with_solution else table.prompt_phi
    return Representation(table, phi, lengths, unit, name, with_solution, truncated)


def _svd(texts: Sequence[str], seed: int) -> NDArray[np.float32]:
    """[N, TEXT_COLUMNS]; columns beyond the rank of a small pool are 0."""
    matrix = fit_tfidf(texts).transform(texts)
    out = np.zeros((len(texts), TEXT_COLUMNS), dtype=np.float32)
    width = min(TEXT_COLUMNS, *(size - 1 for size in matrix.shape))
    if width > 0:
        with np.errstate(invalid="ignore"):  # equal texts have no variance to explain
            out[:, :width] = TruncatedSVD(width, random_state=seed).fit_transform(matrix)
    return out
