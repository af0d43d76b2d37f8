"""What the tests of devices share: samples of the world, two small SAEs, and how far two encodings differ."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from saerl_lib.config import ReaderConfig, sub_seed
from saerl_lib.data.sample import Sample
from saerl_lib.encode.models import open_reader
from saerl_lib.encode.pool import Encoder
from saerl_lib.encode.store import Store, shard_path, write_shard
from saerl_lib.studies.bench import SMALL, random_sae
from saerl_lib.train.policy import FOLDER
from saerl_lib.world.pretrain import WIDTH
from saerl_lib.world.sources import TARGET, draw_split

KINDS = ("topk", "jumprelu")
"""Architectures."""
LAYER = 3
ALL = np.arange(256)


def world_samples(count: int, name: str) -> list[Sample]:
    """Samples of the target source with worked solutions."""
    return draw_split(name, count, TARGET, sub_seed(0, "gpu"), set())


def random_saes(folder: Path) -> dict[str, Path]:
    """A TopK SAE and one with thresholds for the shipped policy, with random weights."""
    torch.manual_seed(0)
    for kind in KINDS:
        random_sae(len(ALL), kind, replace(SMALL, width=WIDTH, k=8)).save_model(str(folder / kind))
    return {kind: folder / kind for kind in KINDS}


def open_on(
    sae: Path, device: torch.device, precision: torch.dtype = torch.float32, layer: int = LAYER, tokens: int = 1024
) -> Encoder:
    """A fresh encoder on `device`, in batches of `tokens` tokens."""
    name, half = str(device), precision == torch.bfloat16
    return open_reader(ReaderConfig(str(FOLDER), layer, str(sae), max_norm=None, tokens_per_batch=tokens, device=name, bf16=half))


def pooled(samples: list[Sample], encoder: Encoder, retained: NDArray[np.int64] = ALL) -> NDArray[np.float32]:
    """z [N, 4 S] of samples, read now."""
    with tempfile.TemporaryDirectory() as folder:
        write_shard(samples, encoder, shard_path(Path(folder), 0), {})
        return Store(Path(folder)).select(retained)


def different_share(found: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float = 1e-3) -> float:
    """Share of entries of [N, C] that differ by more than `tolerance` times the largest entry of their column."""
    scale = np.abs(expected).max(axis=0, keepdims=True, initial=1e-12)
    return float(1 - (np.abs(found - expected) <= tolerance * scale).mean())
