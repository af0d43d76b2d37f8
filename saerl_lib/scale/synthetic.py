"""Features of any number of samples in shards, with the cluster structure of `saerl_lib.bench.synthetic`.

Each shard has a generator of its own, seeded by (seed, number): a shard does not depend on how many there are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from saerl_lib.bench.synthetic import N_LABELLED, difficulty_of, draw, tendencies
from saerl_lib.scale.config import ScaleConfig
from saerl_lib.scale.passes import Labelled
from saerl_lib.scale.shards import open_pool, write_shard

WORDS_PER_UNIT = 100
"""Words of prompt and solution for one unit of the first metadata column."""


def write_pool(folder: Path, samples: int, config: ScaleConfig, seed: int = 0) -> None:
    """Write pool/ with z in float16, labelled/ and labels.npy below `folder`."""
    often, weight = tendencies(np.random.default_rng(seed))
    for name in ("pool", "labelled"):
        (folder / name).mkdir(parents=True)
    for number, first in enumerate(range(0, samples, config.shard_rows)):
        rng = np.random.default_rng([seed, number])
        _shard(folder / "pool", number, "pool", first, min(config.shard_rows, samples - first), often, rng)
    rng = np.random.default_rng([seed, 2**31])
    z, metadata = _shard(folder / "labelled", 0, "labelled", 0, N_LABELLED, often, rng)
    np.save(folder / "labels.npy", difficulty_of(z, metadata, weight, rng))


def _shard(
    folder: Path, number: int, name: str, first: int, rows: int, often: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    z, metadata = draw(rows, often, rng)
    ids = [f"{name}-{i:010d}" for i in range(first, first + rows)]
    length = np.ceil(WORDS_PER_UNIT * metadata[:, 0].astype(np.float64))
    write_shard(folder / f"shard-{number:05d}.safetensors", ids, z.astype(np.float16), metadata, length)
    return z, metadata


def read_labelled(folder: Path) -> Labelled:
    """L as `write_pool` left it."""
    phi = np.concatenate([block.phi for block in open_pool(folder / "labelled").blocks()])
    return Labelled(phi, np.load(folder / "labels.npy"))
