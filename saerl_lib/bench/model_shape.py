"""What reading an SAE adds to a model's forward pass at a given shape, with random weights, on a CPU or a GPU.

Floor: the same model's forward pass on the same token batch, cut at the hook, no logits. The obvious way: SAELens' dense
`encode`, then pooling. All ratios come from one run, the ways timed in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAE
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from transformers import Qwen3Config, Qwen3Model

from saerl_lib.bench.timing import CPU, REPEATS, peak_mib, seconds
from saerl_lib.encode.activations import CutModel, activations, truncate
from saerl_lib.encode.pooling import pool_vectors
from saerl_lib.encode.spans import TokenBatch


@dataclass(frozen=True)
class Shape:
    """A decoder, its SAEs and one batch; the defaults are Qwen3-1.7B cut at the paper's layer 27 of 28."""

    width: int = 2048
    """D."""
    feed_forward: int = 6144
    layers: int = 27
    heads: int = 16
    key_value_heads: int = 8
    head_width: int = 128
    latents: tuple[int, ...] = (32_768, 131_072)
    """F of the SAEs that are measured."""
    k: int = 50
    """Active latents a token of the TopK SAE."""
    threshold: float = 3.2
    """Of the JumpReLU SAE, in deviations of a pre-activation; about k latents of the paper's F pass."""
    retained: int = 240
    samples: int = 4
    """Samples of the batch, half prompt and half solution."""
    tokens: int = 256
    """Tokens of the batch."""


PAPER = Shape()
PAPER_GPU = replace(PAPER, samples=64, tokens=4096)
"""256 tokens would leave a GPU idle; at 4,096 the obvious way still fits into 24 GB beside model and SAEs."""
SMALL = Shape(64, 128, 2, 4, 2, 16, (512, 2048), 4, 2.0, 24, 4, 128)
"""For a dry run."""


def paper_model(shape: Shape = PAPER, device: torch.device = CPU, precision: torch.dtype = torch.float32) -> CutModel:
    """Random weights, cut at the last block; the vocabulary is small, as embeddings cost no product."""
    size = {"hidden_size": shape.width, "intermediate_size": shape.feed_forward, "num_hidden_layers": shape.layers}
    heads = {"num_attention_heads": shape.heads, "num_key_value_heads": shape.key_value_heads, "head_dim": shape.head_width}
    torch.manual_seed(0)
    with device:
        model = truncate(Qwen3Model(Qwen3Config(vocab_size=512, max_position_embeddings=1024, **size, **heads)), shape.layers)
    for weight in model.parameters():
        weight.data = weight.data.to(precision)
    return model


def random_sae(
    latents: int, kind: str, shape: Shape = PAPER, device: torch.device = CPU, precision: torch.dtype = torch.float32
) -> SAE:
    """A SAELens SAE with random weights: TopK, or JumpReLU with a threshold."""
    size = {"d_in": shape.width, "d_sae": latents, "device": str(device)}
    sae = TopKSAE(TopKSAEConfig(k=shape.k, **size)) if kind == "topk" else JumpReLUSAE(JumpReLUSAEConfig(**size))
    with torch.no_grad():
        sae.W_enc.normal_(std=shape.width**-0.5)
        if kind == "jumprelu":
            sae.threshold.fill_(shape.threshold)
    return sae.to(dtype=precision).eval()


def paper_batch(shape: Shape = PAPER) -> TokenBatch:
    """Samples of equal length, the second half of each the solution."""
    size = (shape.samples, shape.tokens // shape.samples)
    half = torch.arange(size[1]).expand(size) < size[1] // 2
    ids = torch.randint(0, 512, size, generator=torch.Generator().manual_seed(0))
    return TokenBatch(tuple(range(shape.samples)), ids, half, ~half, torch.ones(size, dtype=torch.bool))


def alternate(works: dict[str, Callable[[], object]], repeats: int, device: torch.device = CPU) -> dict[str, float]:
    """Median seconds of each work, run in turn, so that a slow moment of the machine hits all of them."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work, device))
    return {name: float(np.median(values)) for name, values in times.items()}


@torch.inference_mode()
def shape_ratios(
    repeats: int = REPEATS, shape: Shape = PAPER, device: torch.device = CPU, precision: torch.dtype = torch.float32
) -> dict[str, float]:
    """Ratios for each F of `shape`; every part is added to the same measured forward pass.

    On a GPU also the peak of memory (MiB) that a way allocates. `precision` is that of model and SAEs alike.
    """
    model, batch = paper_model(shape, device, precision), paper_batch(shape)
    group = (2 * torch.arange(shape.samples).unsqueeze(1) + batch.solution.long()).flatten().numpy()
    counts = np.bincount(group, minlength=2 * shape.samples)
    vectors = activations(model, batch).flatten(0, 1)
    vectors = vectors / vectors.norm(dim=1, keepdim=True) * shape.width**0.5
    rows: dict[str, float] = {}
    for latents in shape.latents:
        top, jump = (random_sae(latents, kind, shape, device, precision) for kind in ("topk", "jumprelu"))
        retained = np.arange(0, latents, latents // shape.retained)[: shape.retained]

        def dense(sae: SAE = top) -> torch.Tensor:
            found = sae.encode(vectors).view(2 * shape.samples, -1, sae.cfg.d_sae)
            return torch.cat([found.mean(dim=1), found.amax(dim=1)])

        works: dict[str, Callable[[], object]] = {
            "forward": lambda: activations(model, batch),
            "product": lambda sae=top: sae.process_sae_in(vectors) @ sae.W_enc,
            "dense": dense,
            "all": lambda sae=top: pool_vectors(sae, vectors, group, counts),
            "retained": lambda sae=jump, r=retained: pool_vectors(sae, vectors, group, counts, r),
        }
        found = alternate(works, repeats, device)
        forward, product = found["forward"], found["product"]
        rows |= {
            f"forward_s_{latents}": forward,
            f"obvious_to_forward_{latents}": (forward + found["dense"]) / forward,
            f"all_to_forward_{latents}": (forward + found["all"]) / forward,
            f"all_to_forward_and_product_{latents}": (forward + found["all"]) / (forward + product),
            f"retained_to_forward_{latents}": (forward + found["retained"]) / forward,
        }
        peaks = {name: peak_mib(works[name], device) for name in ("forward", "dense", "all", "retained")}
        rows |= {f"{name}_peak_mib_{latents}": peak for name, peak in peaks.items() if peak is not None}
    return rows
