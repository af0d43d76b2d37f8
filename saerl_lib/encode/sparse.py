"""SAE latents as (token, latent, value) triples, a bounded number of tokens at a time.

The encoder's product is the floor: a dense [T, F] array exists for one chunk of tokens only, and what follows the product
touches it once. Three ways in: all latents of a TopK SAE, all latents of a threshold SAE (ReLU, JumpReLU, and BatchTopK,
which SAELens saves as JumpReLU), and the retained latents alone, which a threshold SAE can encode without the others.
Values are those of SAELens' `encode` (a test compares them).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from torch import Tensor

CHUNK_ELEMENTS = 2**25
"""Entries of the dense [tokens, F] array of one chunk: 128 MiB in float32, 256 tokens at F = 131,072."""
GROUP = 128
"""Latents a group in the search for the k largest."""


@dataclass(frozen=True)
class SparseLatents:
    """Positive latents of n tokens, by ascending token."""

    token: NDArray[np.int64]
    """Row of the activation vector, [nnz]."""
    latent: NDArray[np.int64]
    """Latent number (or column of the retained set), [nnz]."""
    value: NDArray[np.float32]
    """Activation, above 0, [nnz]."""


def architecture(sae: SAE) -> str:
    """The inference architecture as SAELens names it: standard, topk, jumprelu, ..."""
    return str(sae.cfg.architecture())


def is_threshold(sae: SAE) -> bool:
    """Whether a latent's activation depends on no other latent, so that it can be encoded alone."""
    return architecture(sae) in ("standard", "jumprelu")


def _pre_activation(sae: SAE, vectors: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    hidden = sae.process_sae_in(vectors) @ weight
    hidden += bias
    return hidden


def _positive(hidden: Tensor, threshold: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    keep = hidden > threshold
    keep &= hidden > 0
    rows, columns = keep.nonzero(as_tuple=True)
    return rows, columns, hidden[rows, columns]


def topk_entries(hidden: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positive entries among the k largest of each row of [n, F], as (row, column, value) by ascending row and column.

    The k-th largest of the maxima of F / GROUP groups is a lower bound of the k-th largest entry, so only entries above
    it are sorted: at F = 131,072 this reads the array twice instead of partitioning each row. That pays on a CPU; elsewhere
    the device's own topk is asked.

    >>> [v.tolist() for v in topk_entries(torch.tensor([[3.0, -1.0, 2.0, 1.0]]), 2)]
    [[0, 0], [0, 2], [3.0, 2.0]]
    """
    n, width = hidden.shape
    if hidden.device.type != "cpu" or width % GROUP or width // GROUP < 2 * k:
        values, columns = hidden.topk(k, dim=1, sorted=False)
        columns, order = columns.sort(dim=1)
        values = values.gather(1, order)
        rows = torch.arange(n, device=hidden.device).unsqueeze(1).expand_as(columns)
        keep = values > 0
        return rows[keep], columns[keep], values[keep]
    maxima = hidden.view(n, width // GROUP, GROUP).amax(dim=2)
    bound = maxima.topk(k, dim=1, sorted=True).values[:, -1:].clamp_min(0)
    keep = hidden >= bound
    keep &= hidden > 0
    rows, columns = keep.nonzero(as_tuple=True)
    values = hidden[rows, columns]
    # by row, then by falling value: the first k of each row are its largest
    order = torch.from_numpy(np.lexsort((columns.numpy(), -values.float().numpy(), rows.numpy())))
    starts = torch.searchsorted(rows, torch.arange(n))
    rank = torch.arange(len(rows)) - starts[rows]
    order = order[rank < k].sort().values
    return rows[order], columns[order], values[order]


@torch.inference_mode()
def encode_all(sae: SAE, vectors: Tensor, chunk_elements: int = CHUNK_ELEMENTS) -> SparseLatents:
    """All positive latents of vectors [n, D].

    Raises ValueError for an architecture that is none of standard, topk, jumprelu.
    """
    kind = architecture(sae)
    if kind not in ("standard", "topk", "jumprelu"):
        raise ValueError(
            f"SAE architecture {kind!r} cannot be encoded here; use standard, topk or jumprelu (BatchTopK saves as jumprelu)"
        )
    scale = sae.W_dec.norm(dim=-1) if kind == "topk" and sae.cfg.rescale_acts_by_decoder_norm else None
    threshold = sae.threshold if kind == "jumprelu" else 0.0

    def entries(chunk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = _pre_activation(sae, chunk, sae.W_enc, sae.b_enc)
        if scale is not None:
            hidden *= scale
        return topk_entries(hidden, int(sae.cfg.k)) if kind == "topk" else _positive(hidden, threshold)

    return _in_chunks(vectors, max(1, chunk_elements // sae.cfg.d_sae), entries)


@torch.inference_mode()
def encode_retained(sae: SAE, vectors: Tensor, retained: NDArray[np.int64]) -> SparseLatents:
    """Latents of `retained` [S] alone for vectors [n, D]; `latent` numbers the columns of `retained`.

    A threshold SAE multiplies with S columns instead of F. A TopK SAE needs all of them: a latent fires only among the
    k largest.
    """
    chosen = torch.from_numpy(np.asarray(retained, dtype=np.int64)).to(sae.W_enc.device)
    if not is_threshold(sae):
        found = encode_all(sae, vectors)
        column = np.full(sae.cfg.d_sae, -1, dtype=np.int64)
        column[retained] = np.arange(len(retained))
        keep = column[found.latent] >= 0
        return SparseLatents(found.token[keep], column[found.latent[keep]], found.value[keep])
    weight, bias = sae.W_enc[:, chosen].contiguous(), sae.b_enc[chosen]
    threshold = sae.threshold[chosen] if architecture(sae) == "jumprelu" else 0.0

    def entries(chunk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _positive(_pre_activation(sae, chunk, weight, bias), threshold)

    return _in_chunks(vectors, max(1, CHUNK_ELEMENTS // max(1, len(retained))), entries)


def _in_chunks(
    vectors: Tensor, tokens: int, entries: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
) -> SparseLatents:
    parts: list[tuple[NDArray, NDArray, NDArray]] = []
    for start in range(0, len(vectors), tokens):
        rows, columns, values = entries(vectors[start : start + tokens])
        parts.append(((rows + start).cpu().numpy(), columns.cpu().numpy(), values.float().cpu().numpy()))
    if not parts:
        return SparseLatents(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    token, latent, value = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return SparseLatents(token, latent, value)
