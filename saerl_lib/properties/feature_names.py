"""Names of the columns of phi, as the paper writes them: `sol_mean/50831` is latent 50831 of the block of solution means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saerl_lib.encode.metadata import FEATURES
from saerl_lib.encode.pooling import BLOCKS

METADATA = "metadata"
GROUPS = (*(block.replace("solution", "sol") for block in BLOCKS), METADATA)
"""Feature groups in the order of phi = [z ; m]."""


def feature_names(latents: Sequence[int] | np.ndarray, metadata: Sequence[str] = FEATURES) -> tuple[str, ...]:
    """Column names of phi [4 S + m] for retained `latents` [S] and the metadata columns; pass `metadata=()` for z alone.

    >>> feature_names([7, 40], ["words"])[3:]
    ('prompt_max/40', 'sol_mean/7', 'sol_mean/40', 'sol_max/7', 'sol_max/40', 'metadata/words')
    """
    pooled = [f"{block}/{int(latent)}" for block in GROUPS[:-1] for latent in latents]
    return (*pooled, *(f"{METADATA}/{name}" for name in metadata))


def group_of(name: str) -> str:
    """The feature group of a column name."""
    return name.split("/", 1)[0]


def is_latent(name: str) -> bool:
    """Whether a column pools a latent, so that its tokens can be shown."""
    return group_of(name) != METADATA
