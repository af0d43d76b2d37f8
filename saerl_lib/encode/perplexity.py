"""How surprising a causal language model finds a prompt and its solution, in nats a token (ours).

The perplexity filter is a control for the quality filter. Works for the encoder of the world and for any Hugging Face
causal language model with its tokenizer. Axes: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saerl_lib.data.sample import DataError
from saerl_lib.encode.language_model import SEPARATOR

TOKENS_PER_BATCH = 16_384
"""Padded tokens of one batch."""
LOGITS_PER_BATCH = 2**27
"""Padded tokens times vocabulary of one batch: half a gigabyte in float32; one text may exceed it."""


@dataclass(frozen=True)
class Surprise:
    """Negative log-likelihoods of N samples, float64 [N] each."""

    prompt: NDArray[np.float64]
    """Mean nats a token of the prompt; its first token counts only where the tokenizer has a beginning-of-text token."""
    solution: NDArray[np.float64]
    """Mean nats a token of the solution given the prompt."""
    solution_peak: NDArray[np.float64]
    """Nats of the most surprising solution token: one wrong digit hardly moves a mean."""


@dataclass(frozen=True)
class _Row:
    ids: tuple[int, ...]
    middle: int
    """Position of the first solution token."""
    position: int
    """Row of the input."""


def _rows(prompts: Sequence[str], solutions: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int) -> list[_Row]:
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    heads = tokenizer([p + SEPARATOR for p in prompts], add_special_tokens=False)["input_ids"]
    tails = tokenizer(list(solutions), add_special_tokens=False)["input_ids"]
    rows = []
    for i, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        if not tail or len(start) + len(head) < 2:
            side = "solution" if not tail else "prompt"
            raise DataError(f"row {i}: the {side} has too few tokens to be scored; drop the row or fill it in")
        if len(start) + len(head) + len(tail) > limit:
            found = len(start) + len(head) + len(tail)
            raise DataError(f"row {i}: {found} tokens exceed the model's {limit} positions; shorten or drop the row")
        rows.append(_Row(tuple(start + head + tail), len(start) + len(head), i))
    return rows


def _batches(rows: list[_Row], tokens_per_batch: int) -> Iterator[list[_Row]]:
    """Rows of similar length; sorted by their tokens, so that a batch does not depend on the order of the input."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda r: (len(r.ids), r.ids, r.middle)):
        if batch and len(row.ids) * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _token_nats(batch: list[_Row], model: PreTrainedModel) -> Tensor:
    """[B, T - 1] nats of tokens 1.. given all before them; entries on padding mean nothing.

    Padding on the right needs no mask under causal attention: no real token attends to it.
    """
    longest = max(len(row.ids) for row in batch)
    ids = torch.tensor([row.ids + (0,) * (longest - len(row.ids)) for row in batch], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


@torch.inference_mode()
def measure_surprise(
    prompts: Sequence[str],
    solutions: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Surprise:
    """Nats of prompts [N] and of solutions [N] given their prompts, in the order of the input.

    Prompt and separator are tokenised apart from the solution, as in pre-training. Raises DataError that names the row
    for an empty side or a text longer than the model's positions, ValueError for unequal or empty lists.
    """
    if len(prompts) != len(solutions) or not len(prompts):
        raise ValueError(f"{len(prompts)} prompts and {len(solutions)} solutions: pass equally many of both, at least one")
    limit = getattr(model.config, "max_position_embeddings", None) or 2**31
    rows = _rows(prompts, solutions, tokenizer, limit)
    budget = min(tokens_per_batch, max(1, LOGITS_PER_BATCH // model.config.vocab_size))
    found = np.empty((3, len(rows)))
    for batch in _batches(rows, budget):
        nats = _token_nats(batch, model).double().cpu().numpy()
        for values, row in zip(nats, batch, strict=True):
            head, tail = values[: row.middle - 1], values[row.middle - 1 : len(row.ids) - 1]
            found[:, row.position] = head.mean(), tail.mean(), tail.max()
    return Surprise(*found)
