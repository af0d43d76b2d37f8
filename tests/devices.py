"""What the tests of devices share: samples of the world, a small SAE and its threshold twin, and how far two encodings differ."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from torch import Tensor

from saerl_lib.config import ReaderConfig, sub_seed
from saerl_lib.data.sample import Sample
from saerl_lib.encode.models import open_reader, token_vectors, truncate
from saerl_lib.encode.pool import Encoder
from saerl_lib.encode.sae import load_sae
from saerl_lib.encode.store import Store, shard_path, write_shard
from saerl_lib.encode.train_sae import train_sae
from saerl_lib.settings import SAEConfig
from saerl_lib.train.policy import FOLDER, load_policy
from saerl_lib.world.sources import TARGET, draw_split

KINDS = ("topk", "jumprelu")
"""Architectures."""
LAYER = 3
CONFIG = SAEConfig(tokens=60_000, latents=256, k=8, learning_rate=5e-3)
ALL = np.arange(256)


def world_samples(count: int, name: str) -> list[Sample]:
    """Samples of the target source with worked solutions."""
    return draw_split(name, count, TARGET, sub_seed(0, "gpu"), set())


def train_saes(folder: Path) -> dict[str, Path]:
    """A TopK SAE of the shipped policy, trained with SAELens, and its threshold twin."""
    decoder, tokenizer = load_policy()
    cut = truncate(decoder, LAYER)
    vectors = torch.cat(list(token_vectors(world_samples(150, "gpu-sae"), cut, tokenizer, 1024)))
    places = {kind: folder / kind for kind in KINDS}
    train_sae(vectors, CONFIG, places["topk"])
    threshold_twin(load_sae(places["topk"], vectors.shape[1]), vectors[:512], CONFIG.k).save_model(str(places["jumprelu"]))
    return places


@torch.inference_mode()
def threshold_twin(sae: SAE, vectors: Tensor, k: int) -> SAE:
    """A JumpReLU SAE with the weights of a TopK one; k latents a token pass its threshold, on average over `vectors` [n, D]."""
    shape = {"d_in": sae.cfg.d_in, "d_sae": sae.cfg.d_sae, "apply_b_dec_to_input": sae.cfg.apply_b_dec_to_input}
    twin = JumpReLUSAE(JumpReLUSAEConfig(**shape))
    hidden = sae.process_sae_in(vectors) @ sae.W_enc + sae.b_enc
    threshold = hidden.flatten().kthvalue(hidden.numel() - k * len(vectors)).values.clamp_min(0)
    twin.load_state_dict({**sae.state_dict(), "threshold": threshold.expand(sae.cfg.d_sae).clone()})
    return twin


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
