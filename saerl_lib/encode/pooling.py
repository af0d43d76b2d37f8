"""Pooling SAE latents over the prompt and the solution span (paper, section 3.1): z = [mean_p ; max_p ; mean_s ; max_s].

The array samples x tokens x latents never exists: a batch is encoded in chunks, kept as triples and reduced to one
entry a (span, latent) that fired, on the device that encoded it, so memory is bounded by the batch. Axes: N samples, F
latents, S retained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from torch import Tensor

from saerl_lib.data.sample import Sample
from saerl_lib.encode.activations import CutModel, activations, check_finite
from saerl_lib.encode.spans import Layout, TokenBatch, token_batches
from saerl_lib.encode.sparse import SparseLatents, Triples, find_all, find_retained

BLOCKS = ("prompt_mean", "prompt_max", "solution_mean", "solution_max")
"""Blocks of z, in order."""


@dataclass(frozen=True)
class Encoder:
    """A model cut at the hook, its tokenizer and its SAE, on one device; batches and results lie on the CPU."""

    decoder: CutModel
    tokenizer: Any
    sae: SAE
    tokens_per_batch: int
    layout: Layout = field(default_factory=Layout)


@dataclass(frozen=True)
class Pooled:
    """Pooled latents of the spans of one batch, one entry a (sample, span, latent) that fired, in that order."""

    row: NDArray[np.int64]
    """Position of the sample in the input sequence, [nnz]."""
    span: NDArray[np.int64]
    """0 prompt, 1 solution, [nnz]."""
    latent: NDArray[np.int64]
    """Latent number, [nnz]."""
    mean: NDArray[np.float32]
    """Sum over the span's tokens by their number, zeros included, [nnz]."""
    peak: NDArray[np.float32]
    """Largest activation in the span, [nnz]."""


def pool_triples(found: SparseLatents, group: NDArray[np.int64], group_tokens: NDArray[np.int64], width: int) -> Pooled:
    """Reduce triples by group: token t belongs to `group[t]` = 2 * row + span, which has `group_tokens[group]` tokens.

    >>> found = SparseLatents(np.array([0, 1, 1]), np.array([7, 3, 7]), np.array([2.0, 1.0, 4.0], dtype=np.float32))
    >>> pooled = pool_triples(found, np.array([0, 0]), np.array([2, 0]), width=8)
    >>> pooled.latent.tolist(), pooled.mean.tolist(), pooled.peak.tolist()
    ([3, 7], [0.5, 3.0], [1.0, 4.0])
    """
    key = group[found.token] * width + found.latent
    order = np.argsort(key, kind="stable")
    key, value = key[order], found.value[order]
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    if not len(starts):
        empty = np.empty(0, dtype=np.int64)
        return Pooled(empty, empty, empty, np.empty(0, np.float32), np.empty(0, np.float32))
    groups, latent = np.divmod(key[starts], width)
    total = np.add.reduceat(value.astype(np.float64), starts)
    mean = (total / group_tokens[groups]).astype(np.float32)
    return Pooled(groups // 2, groups % 2, latent, mean, np.maximum.reduceat(value, starts))


@torch.inference_mode()
def pool_on_device(found: Triples, group: NDArray[np.int64], group_tokens: NDArray[np.int64], width: int) -> Pooled:
    """`pool_triples` where the triples lie: what is copied to the host is one entry a (span, latent), not one a token."""
    groups = torch.from_numpy(group).to(found.token.device)
    key, order = (groups[found.token] * width + found.latent).sort(stable=True)
    value = found.value[order].float()
    key, lengths = torch.unique_consecutive(key, return_counts=True)
    if not len(key):
        return pool_triples(found.host(), group, group_tokens, width)
    place = torch.div(key, width, rounding_mode="floor")
    total = torch.segment_reduce(value.double(), "sum", lengths=lengths, unsafe=True)
    mean = (total / torch.from_numpy(group_tokens).to(place.device)[place]).float()
    peak = torch.segment_reduce(value, "max", lengths=lengths, unsafe=True)
    row = torch.div(place, 2, rounding_mode="floor")
    return Pooled(*(t.cpu().numpy() for t in (row, place - 2 * row, key - place * width, mean, peak)))


def pool_vectors(
    sae: SAE, vectors: Tensor, group: NDArray[np.int64], group_tokens: NDArray[np.int64],
    retained: NDArray[np.int64] | None = None,
) -> Pooled:  # fmt: skip
    """Pooled latents of vectors [n, D] by group, as `pool_triples`; of `retained` alone, numbered by its columns, if given."""
    if retained is None:
        found, width = find_all(sae, vectors), sae.cfg.d_sae
    else:
        found, width = find_retained(sae, vectors, retained), len(retained)
    if found.token.device.type == "cpu":
        return pool_triples(found.host(), group, group_tokens, width)
    return pool_on_device(found, group, group_tokens, width)


@torch.inference_mode()
def pool_batch(
    encoder: Encoder, batch: TokenBatch, samples: Sequence[Sample], retained: NDArray[np.int64] | None = None
) -> Pooled:
    """Pooled latents of one batch, all or `retained` by column; rows are positions in `samples`."""
    values = activations(encoder.decoder, batch)
    check_finite(values, batch, samples)
    keep = batch.prompt | batch.solution
    group = (2 * torch.arange(len(batch.rows)).unsqueeze(1) + batch.solution.long())[keep].numpy()
    vectors = values[keep]
    del values
    tokens = np.bincount(group, minlength=2 * len(batch.rows))
    pooled = pool_vectors(encoder.sae, vectors, group, tokens, retained)
    return Pooled(np.asarray(batch.rows)[pooled.row], pooled.span, pooled.latent, pooled.mean, pooled.peak)


def fill_z(z: NDArray[np.float32], pooled: Pooled, columns: int) -> None:
    """Write pooled latents, numbered by column of the retained set, into z [N, 4 S]."""
    z[pooled.row, (2 * pooled.span) * columns + pooled.latent] = pooled.mean
    z[pooled.row, (2 * pooled.span + 1) * columns + pooled.latent] = pooled.peak


def pool_samples(samples: Sequence[Sample], encoder: Encoder, retained: NDArray[np.int64]) -> NDArray[np.float32]:
    """[N, 4 S] pooled features z in the order of `samples`; solution blocks are NaN where there is no solution span.

    Only the retained latents are encoded where the SAE allows it.
    """
    columns = len(retained)
    z = np.zeros((len(samples), len(BLOCKS) * columns), dtype=np.float32)

    for batch in token_batches(samples, encoder.tokenizer, encoder.tokens_per_batch, encoder.layout):
        fill_z(z, pool_batch(encoder, batch, samples, retained), columns)
        unsolved = ~batch.solution.any(dim=1).numpy()
        z[np.asarray(batch.rows)[unsolved], 2 * columns :] = np.nan
    return z


@torch.inference_mode()
def batch_latents(encoder: Encoder, batch: TokenBatch, samples: Sequence[Sample]) -> Tensor:
    """[B, T, F] latents of one small batch, on the CPU, zero on masked tokens: for looking at tokens, not for a data set."""
    values = activations(encoder.decoder, batch)
    check_finite(values, batch, samples)
    keep = batch.prompt | batch.solution
    latents = torch.zeros(*keep.shape, encoder.sae.cfg.d_sae)
    latents[keep] = encoder.sae.encode(values[keep]).float().cpu()
    return latents
