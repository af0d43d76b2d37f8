"""SAE latents pooled over the prompt and the solution span (paper, section 3.1): z = [mean_p ; max_p ; mean_s ; max_s].

The array samples x tokens x latents never exists: a batch is encoded in chunks of tokens, kept as (token, latent, value) triples
and reduced to one entry a (span, latent) that fired, on the device that encoded it. Values are those of SAELens' `encode` (a test
compares them). Axes: N samples, F latents, D model width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from saerl_lib.data.sample import Sample
from saerl_lib.encode.models import CutModel, TokenBatch, pack, pad, sample_spans, states_of, token_batches
from saerl_lib.encode.store import DENSE, ENTRIES, HEADER, values_hash

if TYPE_CHECKING:
    from sae_lens import SAE  # takes seconds

CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**27}
"""Entries of the dense [tokens, F] array of one chunk; 8 MiB in float32 stay in a CPU's cache until they are read again."""
CHUNK_TOKENS = 256
"""Tokens of a chunk at least, since each reads the encoder's weights once: 128 MiB at F = 131,072."""


class Triples(NamedTuple):
    """Positive latents of n tokens on the SAE's device, by ascending token, three tensors [nnz]."""

    token: Tensor
    """Row of the activation vector."""
    latent: Tensor
    value: Tensor


@torch.inference_mode()
def find_all(sae: SAE, vectors: Tensor) -> Triples:
    """All positive latents of vectors [n, D]. Raises ValueError for an architecture that is none of standard, topk, jumprelu."""
    kind = str(sae.cfg.architecture())
    if kind not in ("standard", "topk", "jumprelu"):
        raise ValueError(
            f"SAE architecture {kind!r} cannot be encoded here; use standard, topk or jumprelu (BatchTopK saves as jumprelu)"
        )
    scale = sae.W_dec.norm(dim=-1) if kind == "topk" and sae.cfg.rescale_acts_by_decoder_norm else None

    def entries(chunk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = sae.process_sae_in(chunk) @ sae.W_enc
        hidden += sae.b_enc
        if scale is not None:
            hidden *= scale
        if kind == "topk":
            return topk_entries(hidden, int(sae.cfg.k))
        keep = hidden > (sae.threshold if kind == "jumprelu" else 0.0)
        keep &= hidden > 0
        rows, columns = keep.nonzero(as_tuple=True)
        return rows, columns, hidden[rows, columns]

    elements = CHUNK_ELEMENTS.get(vectors.device.type, CHUNK_ELEMENTS["cpu"])
    size = max(CHUNK_TOKENS, elements // sae.cfg.d_sae)
    parts, start = [], 0
    # even chunks: a last one of a few rows would be multiplied by another kernel, with other last digits
    for chunk in vectors.tensor_split(max(1, -(-len(vectors) // size))):
        rows, columns, values = entries(chunk)
        parts.append((rows + start, columns, values))
        start += len(chunk)
    return Triples(*(torch.cat(arrays) for arrays in zip(*parts, strict=True)))


GROUP = 128
"""Columns of a group in the search for the k largest of a wide row."""


def topk_entries(hidden: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positive entries among the k largest of each row of [n, F], as (row, column, value), by ascending row.

    Those of a wide row lie in the k groups of columns with the largest maxima, so that it is read once; sizes do not depend on
    the values, so a GPU need not wait for them.

    >>> [v.tolist() for v in topk_entries(torch.tensor([[3.0, -1.0, 2.0, 1.0]]), 2)]
    [[0, 0], [0, 2], [3.0, 2.0]]
    """
    n, width = hidden.shape
    if width % GROUP or width // GROUP < 2 * k:
        values, columns = hidden.topk(k, dim=1)
    else:
        groups = hidden.view(n, width // GROUP, GROUP)
        best = groups.amax(dim=2).topk(k, dim=1, sorted=False).indices
        near = groups.gather(1, best.unsqueeze(2).expand(-1, -1, GROUP)).flatten(1)
        values, place = near.topk(k, dim=1, sorted=False)
        columns = best.gather(1, place // GROUP) * GROUP + place % GROUP
    keep = values > 0
    return keep.nonzero()[:, 0], columns[keep], values[keep]


BLOCKS = ("prompt_mean", "prompt_max", "solution_mean", "solution_max")
"""Blocks of z, in order."""


@dataclass(frozen=True)
class Encoder:
    """A model cut at the hook, its tokenizer and its SAEs, on one device; batches and results lie on the CPU."""

    decoder: CutModel
    tokenizer: Any
    saes: Mapping[str, SAE]
    """By name; the first is the reader's own, the others read the same vectors."""
    tokens_per_batch: int
    max_tokens: int | None = None
    """Longer samples are cut at the end."""
    dense: bool = False
    """Pool the activations themselves too."""

    @property
    def sae(self) -> SAE:
        """The reader's own SAE."""
        return next(iter(self.saes.values()))


class Pooled(NamedTuple):
    """Pooled latents of the spans of one batch, one entry a (sample, span, latent) that fired, in that order; arrays [nnz]."""

    row: NDArray[np.int64]
    """Position of the sample in the input sequence."""
    span: NDArray[np.int64]
    """0 prompt, 1 solution."""
    latent: NDArray[np.int64]
    mean: NDArray[np.float32]
    """Sum over the span's tokens by their number, zeros included."""
    peak: NDArray[np.float32]
    """Largest activation in the span."""


@torch.inference_mode()
def pool_triples(found: Triples, group: NDArray[np.int64], group_tokens: NDArray[np.int64], width: int) -> Pooled:
    """Reduce triples by group, where they lie: token t belongs to `group[t]` = 2 * row + span of `group_tokens[group]` tokens.

    >>> found = Triples(torch.tensor([0, 1, 1]), torch.tensor([7, 3, 7]), torch.tensor([2.0, 1.0, 4.0]))
    >>> pooled = pool_triples(found, np.array([0, 0]), np.array([2, 0]), width=8)
    >>> pooled.latent.tolist(), pooled.mean.tolist(), pooled.peak.tolist()
    ([3, 7], [0.5, 3.0], [1.0, 4.0])
    """
    groups = torch.from_numpy(group).to(found.token.device)
    key, order = (groups[found.token] * width + found.latent).sort(stable=True)
    value = found.value[order].float()
    key, lengths = torch.unique_consecutive(key, return_counts=True)
    place = torch.div(key, width, rounding_mode="floor")
    total = torch.segment_reduce(value.double(), "sum", lengths=lengths, unsafe=True)
    mean = (total / torch.from_numpy(group_tokens).to(place.device)[place]).float()
    peak = torch.segment_reduce(value, "max", lengths=lengths, unsafe=True)
    row = torch.div(place, 2, rounding_mode="floor")
    return Pooled(*(t.cpu().numpy() for t in (row, place - 2 * row, key - place * width, mean, peak)))


def pool_vectors(sae: SAE, vectors: Tensor, group: NDArray[np.int64], group_tokens: NDArray[np.int64]) -> Pooled:
    """Pooled latents of vectors [n, D] by group, as `pool_triples`."""
    return pool_triples(find_all(sae, vectors), group, group_tokens, sae.cfg.d_sae)


def pool_dense(vectors: NDArray[np.float32], group: NDArray[np.int64], rows: int) -> NDArray[np.float32]:
    """[rows, 4 D] mean and max of token vectors [n, D] over the groups 2 * row + span; `group` is ascending, gaps are NaN."""
    out = np.full((rows * 2, 2, vectors.shape[1]), np.nan, dtype=np.float32)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    if len(starts):
        found = group[starts]
        counts = np.diff(np.append(starts, len(group)))[:, None]
        out[found, 0] = np.add.reduceat(vectors.astype(np.float64), starts, axis=0) / counts
        out[found, 1] = np.maximum.reduceat(vectors, starts, axis=0)
    return out.reshape(rows, -1)


@torch.inference_mode()
def pool_batch(encoder: Encoder, batch: TokenBatch, samples: Sequence[Sample]) -> tuple[dict[str, Pooled], NDArray | None]:
    """Pooled latents of one batch by SAE name, rows as positions in `samples`, and [B, 4 D] pooled activations if wanted."""
    values, keep = states_of(encoder.decoder, batch, samples)
    group = (2 * torch.arange(len(batch.rows)).unsqueeze(1) + batch.solution.long())[keep].numpy()
    vectors = values[keep]
    del values
    tokens = np.bincount(group, minlength=2 * len(batch.rows))
    found = {name: pool_vectors(sae, vectors, group, tokens) for name, sae in encoder.saes.items()}
    rows = np.asarray(batch.rows)
    placed = {name: pooled._replace(row=rows[pooled.row]) for name, pooled in found.items()}
    return placed, pool_dense(vectors.float().cpu().numpy(), group, len(rows)) if encoder.dense else None


def write_shard(samples: Sequence[Sample], encoder: Encoder, path: Path, made_from: Mapping[str, Any]) -> dict[str, Any]:
    """Encode n samples into the file `path`; returns its record: `made_from`, counts, and the hash of all values. Batches are
    formed inside the shard, so on one device with one number of threads equal samples give equal bytes. Raises as `states_of`."""
    spans = [sample_spans(s, encoder.tokenizer, encoder.max_tokens) for s in samples]
    found: list[dict[str, Pooled]] = []
    arrays = {
        "solved": np.zeros(len(samples), dtype=bool),
        "tokens": np.array([len(s.ids) for s in spans], dtype=np.int32),
        "truncated": np.array([s.truncated for s in spans], dtype=bool),
    }
    if encoder.dense:
        arrays[DENSE] = np.empty((len(samples), 4 * encoder.sae.cfg.d_in), dtype=np.float32)
    for batch_rows in pack([len(s.ids) for s in spans], encoder.tokens_per_batch):
        batch = pad(batch_rows, spans, encoder.tokenizer.pad_token_id or 0)
        pooled, activations = pool_batch(encoder, batch, samples)
        arrays["solved"][list(batch.rows)] = batch.solution.any(dim=1).numpy()
        found.append(pooled)
        if encoder.dense:
            arrays[DENSE][list(batch.rows)] = activations
    for name, sae in encoder.saes.items():
        row, span, latent, mean, peak = (np.concatenate(parts) for parts in zip(*(part[name] for part in found), strict=True))
        column = span * sae.cfg.d_sae + latent
        order = np.lexsort((column, row))
        pointers = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(samples)))]).astype(np.int64)
        entries = pointers, column[order].astype(np.int32), mean[order], peak[order]
        arrays |= {f"{name}.{field}": values for field, values in zip(ENTRIES, entries, strict=True)}
    ids = [s.id for s in samples]
    record = {
        **made_from, "widths": {name: sae.cfg.d_sae for name, sae in encoder.saes.items()}, "samples": len(samples),
        **{name: int(arrays[name].sum()) for name in ("tokens", "truncated", "solved")},
        "entries": len(arrays[f"{next(iter(encoder.saes))}.column"]), "values": values_hash(ids, arrays),
    }  # fmt: skip
    save_file(arrays, path, metadata={HEADER: json.dumps({"ids": ids, "record": record}, sort_keys=True)})
    return record


@torch.inference_mode()
def batch_latents(encoder: Encoder, batch: TokenBatch, samples: Sequence[Sample]) -> Tensor:
    """[B, T, F] latents of one small batch, on the CPU, zero on masked tokens."""
    values, keep = states_of(encoder.decoder, batch, samples)
    latents = torch.zeros(*keep.shape, encoder.sae.cfg.d_sae)
    latents[keep] = encoder.sae.encode(values[keep]).float().cpu()
    return latents


def token_table(sample: Sample, encoder: Encoder, latents: int = 10) -> pd.DataFrame:
    """Tokens of one sample (rows) against the `latents` that fire most on it (columns, by falling maximum): activations."""
    batch = next(iter(token_batches([sample], encoder.tokenizer, encoder.tokens_per_batch, encoder.max_tokens)))
    found = batch_latents(encoder, batch, [sample])[0]
    strongest = found.amax(dim=0).topk(latents).indices
    tokens = [str(encoder.tokenizer.decode([i])) for i in batch.ids[0].tolist()]
    index = pd.Index(tokens, name="token")
    return pd.DataFrame(found[:, strongest].double().numpy(), index=index, columns=strongest.tolist()).round(2)
