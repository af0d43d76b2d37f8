"""Pooling SAE latents over the prompt and the solution span (paper, section 3.1): z = [mean_p ; max_p ; mean_s ; max_s].

The array samples x tokens x latents never exists: a batch is encoded in chunks, kept as triples and reduced to one
entry a (span, latent) that fired, on the device that encoded it, so memory is bounded by the batch. Axes: N samples, F
latents, S retained.

SAE latents as (token, latent, value) triples, a bounded number of tokens at a time.

The encoder's product is the floor: a dense [T, F] array exists for one chunk of tokens only, and what follows the product
touches it once. Three ways in: all latents of a TopK SAE, all latents of a threshold SAE (ReLU, JumpReLU, and BatchTopK,
which SAELens saves as JumpReLU), and the retained latents alone, which a threshold SAE can encode without the others.
Values are those of SAELens' `encode` (a test compares them). `find_*` leave the triples on the SAE's device, where they
are reduced before anything is copied; `encode_all` brings them to the host.

The 26 shallow metadata features m (paper, section 3.1 and B.1; the paper names three kinds, the list is ours).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from torch import Tensor

from saerl_lib.data.sample import Sample
from saerl_lib.encode.language_model import CutModel, Layout, TokenBatch, activations, check_finite, token_batches

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
    from saerl_lib.encode.sae import topk_entries

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


def _share(text: str, pattern: str) -> float:
    return len(re.findall(pattern, text)) / max(1, len(text))


def _count(text: str, pattern: str) -> float:
    return float(len(re.findall(pattern, text)))


def _numbers(text: str) -> list[int]:
    return [int(v[:15]) for v in re.findall(r"\d+", text)]


def _log_max(text: str) -> float:
    return math.log10(1 + max(_numbers(text), default=0))


def _log_mean(text: str) -> float:
    values = _numbers(text)
    return math.log10(1 + sum(values) / max(1, len(values)))


def _distinct_words(text: str) -> float:
    words = re.findall(r"\w+", text.lower())
    return len(set(words)) / max(1, len(words))


TEX = r"\\[a-zA-Z]+|[${}^_]"
OPERATORS = r"[-+*/%:]"

_BOTH: dict[str, Callable[[str], float]] = {
    "characters": lambda t: float(len(t)),
    "words": lambda t: _count(t, r"\S+"),
    "numbers": lambda t: _count(t, r"\d+"),
    "digit_ratio": lambda t: _share(t, r"\d"),
    "tex_ratio": lambda t: _share(t, TEX),
    "operators": lambda t: _count(t, OPERATORS),
    "punctuation_ratio": lambda t: _share(t, r"[.,;!?]"),
    "log10_largest_number": _log_max,
    "log10_mean_number": _log_mean,
    "distinct_word_share": _distinct_words,
    "brackets": lambda t: _count(t, r"[()\[\]]"),
}
_PROMPT: dict[str, Callable[[str], float]] = {
    "question_marks": lambda t: _count(t, r"\?"),
    "upper_case_ratio": lambda t: _share(t, r"[A-Z]"),
}
_SOLUTION: dict[str, Callable[[str], float]] = {"lines": lambda t: _count(t, r"\n") + 1.0}

FEATURES: tuple[str, ...] = (
    *(f"prompt_{name}" for name in (*_BOTH, *_PROMPT)),
    *(f"solution_{name}" for name in (*_BOTH, *_SOLUTION)),
    "solution_to_prompt_length",
)
"""Names of the 26 features, in column order."""
PROMPT_COLUMNS = [i for i, name in enumerate(FEATURES) if name.startswith("prompt_")]
"""Columns that need no solution."""
FORMULAS: dict[str, str] = {
    "characters": "number of characters",
    "words": "number of runs without white space",
    "numbers": "number of digit runs",
    "digit_ratio": "digits / characters",
    "tex_ratio": r"TeX commands and the signs $ { } ^ _ / characters",
    "operators": "number of the signs - + * / % :",
    "punctuation_ratio": "signs . , ; ! ? / characters",
    "log10_largest_number": "log10(1 + largest digit run as a number), 15 digits at the most",
    "log10_mean_number": "log10(1 + mean of the digit runs as numbers)",
    "distinct_word_share": "distinct words / words, lower case",
    "brackets": "number of ( ) [ ]",
    "question_marks": "number of ?",
    "upper_case_ratio": "capital letters A-Z / characters",
    "lines": "number of lines",
    "solution_to_prompt_length": "characters of the solution / characters of the prompt",
}
"""What each feature computes, by its name without `prompt_` or `solution_`."""


def formula_table() -> list[tuple[str, str, str]]:
    """(feature, span, formula) of the 26 features, in column order."""
    rows = []
    for name in FEATURES:
        span, _, rest = name.partition("_")
        both = name == "solution_to_prompt_length"
        rows.append((name, "prompt and solution" if both else span, FORMULAS[name if both else rest]))
    return rows


def metadata_features(samples: Sequence[Sample]) -> NDArray[np.float32]:
    """[N, 26] metadata of the samples, unscaled, columns as in `FEATURES`; NaN where a feature needs a missing solution."""
    rows = []
    for sample in samples:
        prompt, solution = sample.prompt, sample.solution
        row = [f(prompt) for f in (*_BOTH.values(), *_PROMPT.values())]
        if sample.solved:
            row += [f(solution) for f in (*_BOTH.values(), *_SOLUTION.values())]
            row.append(len(solution) / len(prompt))
        else:
            row += [math.nan] * (len(FEATURES) - len(row))
        rows.append(row)
    return np.asarray(rows, dtype=np.float32).reshape(len(samples), len(FEATURES))
