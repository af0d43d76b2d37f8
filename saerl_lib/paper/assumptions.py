"""What the estimates rest on beyond `PaperConfig`: each number with its unit, its origin and why. All are printed by the plan."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

PAPER = "stated in the paper"
OURS = "ours"


def ours(value: float, unit: str, why: str) -> Any:
    """A field of `Assumptions` that the paper does not state."""
    return field(default=value, metadata={"unit": unit, "origin": OURS, "why": why})


@dataclass(frozen=True)
class Assumptions:
    """Hardware, tokens and bytes; every field carries unit, origin and reason as metadata."""

    h100_peak_flops: float = ours(989e12, "FLOP/s", "dense bf16 of an H100 SXM, NVIDIA's data sheet")
    h100_bytes_per_second: float = ours(3.35e12, "B/s", "memory of an H100 SXM, NVIDIA's data sheet")
    a100_peak_flops: float = ours(312e12, "FLOP/s", "dense bf16 of an A100, NVIDIA's data sheet")
    gpu_memory_bytes: float = ours(80e9, "B", "one H100 or A100; the paper does not say which size it used")
    encode_utilisation: float = ours(0.4, "share", "of the peak, forward passes over packed texts")
    train_utilisation: float = ours(0.4, "share", "of the peak, training of SAE and policy")
    decode_bandwidth_share: float = ours(0.3, "share", "of the memory's bandwidth, generation with batches that run empty")
    decode_sequences: int = ours(256, "sequences", "that a GPU generates together")
    deepmath_solution_bytes: float = ours(4_959_744_761 / 103_022 / 3, "B", "card of DeepMath-103K: bytes / rows / 3 solutions")
    numina_sample_bytes: float = ours(1_141_178_809 / 896_215, "B", "card of NuminaMath-1.5: bytes / rows")
    prm_sample_bytes: float = ours(343_127_415 / 93_794, "B", "card of a copy of PRM800K: bytes / rows, metadata included")
    deepscaler_sample_bytes: float = ours(19_443_229 / 40_315, "B", "card of a copy of DeepScaleR: bytes / rows")
    numina_samples: int = field(default=107_021, metadata={"unit": "samples", "origin": PAPER, "why": "Table 6"})
    deepscaler_samples: int = field(default=10_800, metadata={"unit": "samples", "origin": PAPER, "why": "Table 2: 10,000 + 800"})
    math_bytes_per_token: float = ours(3.0, "B/token", "mathematics in LaTeX with Qwen's tokenizer")
    web_bytes_per_token: float = ours(4.2, "B/token", "English web text with Qwen's tokenizer")
    prompt_tokens: int = ours(100, "tokens", "mean prompt with its template")
    response_tokens: int = ours(1000, "tokens", "mean completion; the upper figure takes the longest allowed")
    update_forwards: float = ours(4.0, "forward passes", "an update: old log-probabilities, forward, and two for backward")
    train_bytes_per_parameter: float = ours(18.0, "B", "bf16 weights 2, fp32 weights 4, Adam 8, fp32 gradient 4")
    checkpoint_bytes_per_parameter: float = ours(14.0, "B", "bf16 weights 2, fp32 weights 4, Adam 8")
    sae_train_bytes_per_parameter: float = ours(16.0, "B", "fp32 weights 4, gradient 4, Adam 8")
    logits_tile: int = ours(4096 * 32_768, "numbers", "tokens x vocabulary that TRL's output head holds in fp32 at a time")
    working_bytes: float = ours(8e9, "B", "buffers, and activations of a forward pass without gradients")

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(name, value with unit, origin, why) of every assumption.

        >>> Assumptions().rows()[3][:3]
        ('gpu_memory_bytes', '8e+10 B', 'ours')
        """
        found = []
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
            found.append((item.name, f"{shown} {item.metadata['unit']}", item.metadata["origin"], item.metadata["why"]))
        return found


STATED = (
    ("steps", "optimiser steps"),
    ("prompts_per_step", "prompts"),
    ("rollouts_per_prompt", "completions"),
    ("max_prompt_tokens", "tokens"),
    ("max_response_tokens", "tokens"),
    ("learning_rate", ""),
    ("temperature", ""),
    ("pool_samples", "samples"),
    ("labelled_samples", "samples"),
    ("clusters", ""),
    ("eval_samples", "completions a problem"),
    ("adarft_samples", "rollouts a prompt"),
    ("sae_expansion", "latents / width"),
    ("sae_text_gigabytes", "GB of text"),
    ("runs_per_policy", "rows of Table 4"),
)
"""Fields of `PaperConfig` that enter the plan and are stated in the paper, with their unit."""

INFERRED = (
    ("eval_every_steps", "steps, from the multiples of 20 in Table 5"),
    ("retained_latents", "from 960 = 4 x 240"),
    ("micro_batch", "rollouts of one forward pass, not stated"),
)
"""Fields that the paper does not state; marked as ours."""
