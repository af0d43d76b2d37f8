"""Features of one's own rows: metadata and TF-IDF for a first look, or SAE features through the encode room (paper, section 3.1).

Both give a FeatureTable, so that what follows is the same. Vocabulary and SVD see all rows, but no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD

from saerl_lib.config import sub_seed
from saerl_lib.data.sample import Sample
from saerl_lib.encode.features import FeatureTable
from saerl_lib.encode.metadata import metadata_features
from saerl_lib.properties.text import fit_tfidf

if TYPE_CHECKING:
    from saerl_lib.encode.sae import SAEQuality

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
