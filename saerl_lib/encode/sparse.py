"""SAE latents as (token, latent, value) triples, a bounded number of tokens at a time.

The encoder's product is the floor: a dense [T, F] array exists for one chunk of tokens only, and what follows the product
touches it once. Three ways in: all latents of a TopK SAE, all latents of a threshold SAE (ReLU, JumpReLU, and BatchTopK,
which SAELens saves as JumpReLU), and the retained latents alone, which a threshold SAE can encode without the others.
Values are those of SAELens' `encode` (a test compares them). `find_*` leave the triples on the SAE's device, where
`saerl_lib.encode.pooling` reduces them before anything is copied; `encode_all` brings them to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from torch import Tensor

from saerl_lib.encode.topk import topk_entries

CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**27}
"""Entries of the dense [tokens, F] array of one chunk; 8 MiB in float32 stay in a CPU's cache until they are read again."""
CHUNK_TOKENS = 256
"""Tokens of a chunk at least, since each reads the encoder's weights once: 128 MiB at F = 131,072."""


@dataclass(frozen=True)
class Triples:
    """Positive latents of n tokens on the SAE's device, by ascending token, three tensors [nnz]."""

    token: Tensor
    latent: Tensor
    value: Tensor

    def host(self) -> SparseLatents:
        """The same in NumPy, values in float32."""
        return SparseLatents(self.token.cpu().numpy(), self.latent.cpu().numpy(), self.value.float().cpu().numpy())


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
    if vectors.device.type != "cpu":  # one pass over the product fewer; a CPU keeps the order of its sums
        return torch.addmm(bias, sae.process_sae_in(vectors), weight)
    hidden = sae.process_sae_in(vectors) @ weight
    hidden += bias
    return hidden


def _positive(hidden: Tensor, threshold: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    keep = hidden > threshold
    keep &= hidden > 0
    rows, columns = keep.nonzero(as_tuple=True)
    return rows, columns, hidden[rows, columns]


def encode_all(sae: SAE, vectors: Tensor, chunk_elements: int | None = None) -> SparseLatents:
    """All positive latents of vectors [n, D], on the host. Raises as `find_all`."""
    return find_all(sae, vectors, chunk_elements).host()


@torch.inference_mode()
def find_all(sae: SAE, vectors: Tensor, chunk_elements: int | None = None) -> Triples:
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

    return _in_chunks(vectors, _chunk_tokens(vectors, sae.cfg.d_sae, chunk_elements), entries)


@torch.inference_mode()
def find_retained(sae: SAE, vectors: Tensor, retained: NDArray[np.int64]) -> Triples:
    """Latents of `retained` [S] alone for vectors [n, D]; `latent` numbers the columns of `retained`.

    A threshold SAE multiplies with S columns instead of F. A TopK SAE needs all of them: a latent fires only among the
    k largest.
    """
    chosen = torch.from_numpy(np.asarray(retained, dtype=np.int64)).to(sae.W_enc.device)
    if not is_threshold(sae):
        found = find_all(sae, vectors)
        column = torch.full((sae.cfg.d_sae,), -1, device=chosen.device)
        column[chosen] = torch.arange(len(chosen), device=chosen.device)
        own = column[found.latent]
        keep = own >= 0
        return Triples(found.token[keep], own[keep], found.value[keep])
    weight, bias = sae.W_enc[:, chosen].contiguous(), sae.b_enc[chosen]
    threshold = sae.threshold[chosen] if architecture(sae) == "jumprelu" else 0.0

    def entries(chunk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _positive(_pre_activation(sae, chunk, weight, bias), threshold)

    return _in_chunks(vectors, _chunk_tokens(vectors, len(retained)), entries)


def _chunk_tokens(vectors: Tensor, columns: int, asked: int | None = None) -> int:
    if asked:
        return max(1, asked // columns)
    elements = CHUNK_ELEMENTS.get(vectors.device.type, CHUNK_ELEMENTS["cpu"])
    return max(CHUNK_TOKENS, elements // max(1, columns))


def _in_chunks(vectors: Tensor, tokens: int, entries: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]) -> Triples:
    parts, start = [], 0
    # even chunks: a last one of a few rows would be multiplied by another kernel, with other last digits
    for chunk in vectors.tensor_split(-(-len(vectors) // tokens)) if len(vectors) else ():
        rows, columns, values = entries(chunk)
        parts.append((rows + start, columns, values))
        start += len(chunk)
    if not parts:
        none = torch.empty(0, dtype=torch.int64, device=vectors.device)
        return Triples(none, none, torch.empty(0, device=vectors.device))
    return Triples(*(torch.cat(arrays) for arrays in zip(*parts, strict=True)))
