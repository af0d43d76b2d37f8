"""How large the GPU test set is: full on a GPU, small for a dry run of the same code on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from saerl_lib.bench.model_shape import PAPER_GPU, SMALL, Shape
from saerl_lib.config import EncoderConfig
from saerl_lib.encode.language_model import LanguageModelConfig

GPU_POLICY = LanguageModelConfig(
    seed=41, vocabulary=640, width=512, layers=8, heads=8, feed_forward=1536, steps=1200, sequences_per_step=96,
    learning_rate=6e-4,
)  # fmt: skip
"""27 M parameters; the shipped policy has 0.94 M."""


@dataclass(frozen=True)
class GpuSize:
    """Everything that decides how much the test set computes; the defaults are the full set."""

    name: str = "full"
    policy: LanguageModelConfig = GPU_POLICY
    """Pre-trained in bfloat16 inside the set."""
    tokenizer_texts: int = 20_000
    hook_layer: int = 6
    """Block of the policy whose residual stream is encoded."""
    encoded_samples: int = 400
    sae: EncoderConfig = field(
        default_factory=lambda: EncoderConfig(sae_latents=4096, sae_k=32, sae_training_tokens=100_000, tokens_per_batch=8192)
    )
    """SAEs of the comparison of devices."""
    shape: Shape = PAPER_GPU
    """Of the encode benchmark."""
    repeats: int = 5
    """Timed calls of each way of the benchmark."""
    trains_shipped: bool = False
    """GRPO trains the shipped policy: one pre-trained for seconds earns no reward."""
    steps: int = 6
    """Steps of a GRPO run."""
    prompts_per_step: int = 16
    rollouts_per_prompt: int = 8
    micro_batch: int = 128
    """Rollouts of one forward pass."""
    max_completion_tokens: int = 96
    seeds: int = 2


FULL = GpuSize()
DRY = GpuSize(
    name="dry",
    policy=replace(
        GPU_POLICY, width=64, layers=3, heads=4, feed_forward=128, steps=40, sequences_per_step=32, learning_rate=3e-3
    ),
    tokenizer_texts=2000,
    hook_layer=2,
    encoded_samples=48,
    sae=EncoderConfig(
        sae_latents=256, sae_k=8, retained_latents=24, sae_training_tokens=60_000, sae_learning_rate=5e-3, tokens_per_batch=1024
    ),
    shape=SMALL,
    repeats=2,
    trains_shipped=True,
    steps=3,
    prompts_per_step=12,
    rollouts_per_prompt=4,
    micro_batch=24,
    max_completion_tokens=40,
)


def size_for(device: torch.device) -> GpuSize:
    """The full set on a GPU, the dry run on a CPU."""
    return DRY if device.type == "cpu" else FULL
