"""Token activations at one layer: spans by token position, batches by length, nothing computed past the hook.

Axes: B texts, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib.data.schema import DataError, Sample
from saerl_lib.encode.language_model import SEPARATOR


@dataclass(frozen=True)
class TokenBatch:
    """Padded token ids of some samples."""

    rows: tuple[int, ...]
    """Positions of the samples in the input sequence."""
    ids: Tensor
    """[B, T] token ids, padded on the right."""
    prompt: Tensor
    """[B, T] True on prompt tokens; the first token, an attention sink, is masked."""
    solution: Tensor
    """[B, T] True on solution tokens."""


def truncate(model: LlamaForCausalLM, layer: int) -> nn.Module:
    """The decoder up to and including block `layer` (1 is the first), without the final norm and without logits.

    Raises ValueError when the model has fewer blocks. The model itself is changed: load it for this purpose alone.
    """
    blocks = len(model.model.layers)
    if not 1 <= layer <= blocks:
        raise ValueError(f"hook_layer={layer} does not fit a model of {blocks} blocks; choose 1 to {blocks}")
    decoder = model.model
    decoder.layers = decoder.layers[:layer]
    decoder.config.num_hidden_layers = layer
    decoder.norm = nn.Identity()
    return decoder.eval()


def token_batches(
    samples: Sequence[Sample], tokenizer: PreTrainedTokenizerFast, tokens_per_batch: int
) -> Iterator[TokenBatch]:
    """Batches of samples of similar length with at most `tokens_per_batch` padded tokens, in a fixed order.

    Raises DataError for a sample without a solution span.
    """
    prompts = tokenizer([s.prompt + SEPARATOR for s in samples])["input_ids"]
    solutions = tokenizer([s.solution for s in samples])["input_ids"]
    for sample, ids in zip(samples, solutions, strict=True):
        if not ids:
            raise DataError(f"sample {sample.id}: no solution text; this representation needs a prompt and a solution")
    lengths = [len(p) + len(s) for p, s in zip(prompts, solutions, strict=True)]
    order = sorted(range(len(samples)), key=lambda i: (lengths[i], i))
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and lengths[order[stop]] * (stop + 1 - start) <= tokens_per_batch:
            stop += 1
        rows = tuple(order[start:stop])
        yield _pad(rows, prompts, solutions, tokenizer.pad_token_id)
        start = stop


def _pad(rows: tuple[int, ...], prompts: list[list[int]], solutions: list[list[int]], pad: int) -> TokenBatch:
    longest = max(len(prompts[i]) + len(solutions[i]) for i in rows)
    ids = torch.full((len(rows), longest), pad)
    prompt = torch.zeros(len(rows), longest, dtype=torch.bool)
    solution = torch.zeros(len(rows), longest, dtype=torch.bool)
    for b, i in enumerate(rows):
        middle, end = len(prompts[i]), len(prompts[i]) + len(solutions[i])
        ids[b, :end] = torch.tensor(prompts[i] + solutions[i])
        prompt[b, 1:middle] = True
        solution[b, middle:end] = True
    return TokenBatch(rows, ids, prompt, solution)


@torch.inference_mode()
def activations(decoder: nn.Module, batch: TokenBatch) -> Tensor:
    """[B, T, D] residual stream at the hook.

    Padding on the right needs no mask under causal attention: no real token attends to it.
    """
    return decoder(input_ids=batch.ids, use_cache=False).last_hidden_state


def token_vectors(
    samples: Sequence[Sample], decoder: nn.Module, tokenizer: PreTrainedTokenizerFast, tokens_per_batch: int
) -> Iterator[Tensor]:
    """[n, D] activations of the unmasked tokens of one batch after another.

    Raises FloatingPointError with the sample id when a value is not finite.
    """
    for batch in token_batches(samples, tokenizer, tokens_per_batch):
        values = activations(decoder, batch)
        check_finite(values, batch, samples)
        yield values[batch.prompt | batch.solution]


def check_finite(values: Tensor, batch: TokenBatch, samples: Sequence[Sample]) -> None:
    """Raise FloatingPointError that names the first sample with a non-finite activation."""
    bad = ~torch.isfinite(values).all(dim=-1) & (batch.prompt | batch.solution)
    if bad.any():
        row = int(bad.any(dim=1).nonzero()[0])
        raise FloatingPointError(
            f"sample {samples[batch.rows[row]].id}: non-finite activation; check the encoder's weights or run it in float32"
        )
