"""Streaming pooling of SAE latents over the prompt and the solution span (paper, sections 3.1 and B.1).

z = [mean_p ; max_p ; mean_s ; max_s] over the retained latents. Samples pass batch by batch; tokens x latents is never
held for more than one batch, so memory is bounded by the batch. Axes: N samples, F latents, S retained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from saerl_lib.config import EncoderConfig
from saerl_lib.data.schema import Sample
from saerl_lib.encode.activations import TokenBatch, activations, check_finite, token_batches

BLOCKS = ("prompt_mean", "prompt_max", "solution_mean", "solution_max")
"""Blocks of z, in order."""


@dataclass(frozen=True)
class Encoder:
    """A decoder cut at the hook, its tokenizer and its SAE."""

    decoder: nn.Module
    tokenizer: PreTrainedTokenizerFast
    sae: SAE
    tokens_per_batch: int


def pool_span(latents: Tensor, mask: Tensor) -> Tensor:
    """[B, 2 S] mean and max over the tokens where `mask` [B, T] holds; `latents` is [B, T, S], non-negative.

    >>> pool_span(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
    tensor([[2., 3.]])
    """
    kept = latents * mask.unsqueeze(-1)
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.cat([kept.sum(dim=1) / count, kept.amax(dim=1)], dim=1)


@torch.inference_mode()
def batch_latents(encoder: Encoder, batch: TokenBatch, samples: Sequence[Sample]) -> Tensor:
    """[B, T, F] latents of one batch, zero on masked tokens."""
    values = activations(encoder.decoder, batch)
    check_finite(values, batch, samples)
    keep = batch.prompt | batch.solution
    latents = torch.zeros(*keep.shape, encoder.sae.cfg.d_sae)
    latents[keep] = encoder.sae.encode(values[keep])
    return latents


@torch.inference_mode()
def pool_samples(samples: Sequence[Sample], encoder: Encoder, retained: NDArray[np.int64]) -> NDArray[np.float32]:
    """[N, 4 S] pooled features z in the order of `samples`."""
    columns = torch.from_numpy(retained)
    z = np.empty((len(samples), len(BLOCKS) * len(retained)), dtype=np.float32)
    for batch in token_batches(samples, encoder.tokenizer, encoder.tokens_per_batch):
        latents = batch_latents(encoder, batch, samples)[:, :, columns]
        pooled = torch.cat([pool_span(latents, batch.prompt), pool_span(latents, batch.solution)], dim=1)
        z[list(batch.rows)] = pooled.numpy()
    return z


@torch.inference_mode()
def choose_retained(samples: Sequence[Sample], encoder: Encoder, config: EncoderConfig) -> NDArray[np.int64]:
    """Indices of the retained latents, ascending, chosen without labels (not stated in the paper; ours).

    Of the latents that fire on a share of `samples` inside `frequency_band`, those whose per-sample maximum varies
    most; when the band holds too few, the rest follows by the same variance.
    """
    fired = torch.zeros(encoder.sae.cfg.d_sae, dtype=torch.float64)
    total, squares = torch.zeros_like(fired), torch.zeros_like(fired)
    for batch in token_batches(samples, encoder.tokenizer, encoder.tokens_per_batch):
        peak = batch_latents(encoder, batch, samples).amax(dim=1).double()
        fired += (peak > 0).sum(dim=0)
        total += peak.sum(dim=0)
        squares += peak.square().sum(dim=0)
    share = (fired / len(samples)).numpy()
    variance = (squares / len(samples) - (total / len(samples)).square()).numpy()
    low, high = config.frequency_band
    inside = (share >= low) & (share <= high)
    order = np.lexsort((np.arange(len(share)), -variance, ~inside))
    return np.sort(order[: config.retained_latents]).astype(np.int64)
