"""Features of any number of samples for `bench plan` and `scale`; here written chunk by chunk in the format of `save_features`.

Sparse non-negative values with cluster structure: each of 12 groups fires some latents often and the rest seldom.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

Z_COLUMNS, METADATA_COLUMNS, GROUPS = 960, 26, 12
LABELLED, NEGATIVES = "labelled", "negatives"
N_LABELLED, N_NEGATIVES = 3000, 1500
CHUNK = 8192


def write_features(folder: Path, samples: int, seed: int = 0) -> None:
    """Write pool, labelled and negatives .safetensors and labels.npy (difficulty of the labelled) into `folder`."""
    rng = np.random.default_rng(seed)
    often, weight = tendencies(rng)
    for name, n in (("pool", samples), (LABELLED, N_LABELLED), (NEGATIVES, N_NEGATIVES)):
        difficulty = _write(folder / f"{name}.safetensors", name, n, often, weight, rng)
        if name == LABELLED:
            np.save(folder / "labels.npy", difficulty)


def tendencies(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """How often each latent fires in each group, float32 [12, 960], and what it adds to the difficulty, [960]."""
    often = np.where(rng.random((GROUPS, Z_COLUMNS)) < 0.2, 0.5, 0.05).astype(np.float32)
    return often, rng.normal(size=Z_COLUMNS) * (rng.random(Z_COLUMNS) < 0.05)


def difficulty_of(z: np.ndarray, metadata: np.ndarray, weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A difficulty label a sample, [n]: linear in z [n, 960], a little in the first metadata column, and noise."""
    return 5 + z @ weight + rng.normal(size=len(z)) + 0.1 * metadata[:, 0]


def _write(path: Path, name: str, n: int, often: np.ndarray, weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One feature table of n samples; returns a difficulty a sample, [n]."""
    z_bytes, all_bytes = 4 * n * Z_COLUMNS, 4 * n * (Z_COLUMNS + METADATA_COLUMNS)
    header = {
        "__metadata__": {"ids": json.dumps([f"{name}-{i:07d}" for i in range(n)])},
        "z": {"dtype": "F32", "shape": [n, Z_COLUMNS], "data_offsets": [0, z_bytes]},
        "metadata": {"dtype": "F32", "shape": [n, METADATA_COLUMNS], "data_offsets": [z_bytes, all_bytes]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    difficulty = np.empty(n)
    with path.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        start = handle.tell()
        for first in range(0, n, CHUNK):
            size = min(CHUNK, n - first)
            z, metadata = draw(size, often, rng)
            difficulty[first : first + size] = difficulty_of(z, metadata, weight, rng)
            handle.seek(start + 4 * first * Z_COLUMNS)
            z.tofile(handle)
            handle.seek(start + z_bytes + 4 * first * METADATA_COLUMNS)
            metadata.tofile(handle)
    return difficulty


def draw(n: int, often: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """z float32 [n, 960], about one in seven above 0, and metadata float32 [n, 26], all above 0."""
    group = rng.integers(0, GROUPS, n)
    fires = rng.random((n, Z_COLUMNS), dtype=np.float32) < often[group]
    z = rng.standard_exponential((n, Z_COLUMNS), dtype=np.float32) * fires
    metadata = 1 + rng.standard_exponential((n, METADATA_COLUMNS), dtype=np.float32) * (1 + group[:, None] / GROUPS)
    return z, metadata.astype(np.float32)
