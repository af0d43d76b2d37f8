"""What the tests of devices share: samples of the world, a small SAE and its threshold twin, and how far two encodings differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from torch import Tensor

from saerl_lib.config import EncoderConfig, sub_seed
from saerl_lib.data.sample import Sample
from saerl_lib.train.language_model import load_model
from saerl_lib.encode.language_model import place
from saerl_lib.encode.models import token_vectors, truncate
from saerl_lib.encode.models import encoder_folder
from saerl_lib.encode.pool import Encoder
from saerl_lib.encode.sae import load_sae
from saerl_lib.encode.train_sae import train_sae
from saerl_lib.world.sources import draw_split, target_weights

KINDS = ("topk", "jumprelu")
"""Architectures; of the second the retained latents are encoded without the others."""
LAYER = 3
CONFIG = EncoderConfig(
    sae_latents=256, sae_k=8, retained_latents=24, sae_training_tokens=60_000, sae_learning_rate=5e-3, tokens_per_batch=1024
)


def world_samples(count: int, name: str) -> list[Sample]:
    """Samples of the target source with worked solutions."""
    return draw_split(name, count, target_weights(), "target", sub_seed(0, "gpu"), set())


def train_saes(folder: Path) -> dict[str, Path]:
    """A TopK SAE of the shipped encoder, trained with SAELens, and its threshold twin."""
    decoder, tokenizer = load_model(encoder_folder())
    cut = truncate(decoder, LAYER)
    vectors = torch.cat(list(token_vectors(world_samples(150, "gpu-sae"), cut, tokenizer, CONFIG.tokens_per_batch)))
    places = {kind: folder / kind for kind in KINDS}
    train_sae(vectors, CONFIG, sub_seed(0, "gpu-sae"), places["topk"])
    threshold_twin(load_sae(places["topk"], vectors.shape[1]), vectors[:512], CONFIG.sae_k).save_model(str(places["jumprelu"]))
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
    decoder, tokenizer = load_model(encoder_folder())
    width = decoder.config.hidden_size
    return place(Encoder(truncate(decoder, layer), tokenizer, load_sae(sae, width), tokens), device, precision)


def different_share(found: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float = 1e-3) -> float:
    """Share of entries of [N, C] that differ by more than `tolerance` times the largest entry of their column."""
    scale = np.abs(expected).max(axis=0, keepdims=True, initial=1e-12)
    return float(1 - (np.abs(found - expected) <= tolerance * scale).mean())
