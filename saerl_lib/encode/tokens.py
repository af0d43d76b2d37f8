"""A sample as one token sequence with its prompt and solution spans, batches of similar length, and surprise (paper, 3.1).

Prompt, separator and solution are tokenised apart, so the border is exact by construction. A policy's prompt may stand in its
chat template, where its span is found by character offsets and the template's tokens belong to no span. Special tokens, the
first token (an attention sink) and padding are masked. Axes: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saerl_lib.data.sample import DataError, Sample

SEPARATOR = "\n"
"""Between prompt and solution."""


@dataclass(frozen=True)
class TokenBatch:
    """Padded token ids of some samples."""

    rows: tuple[int, ...]
    """Positions of the samples in the input sequence."""
    ids: Tensor
    """[B, T] token ids, padded on the right."""
    prompt: Tensor
    """[B, T] True on prompt tokens; the first token and special tokens are masked."""
    solution: Tensor
    """[B, T] True on solution tokens; all False for a sample without a worked solution."""
    real: Tensor
    """[B, T] True where there is a token, False on padding."""


@dataclass(frozen=True)
class Layout:
    """How a sample becomes one token sequence."""

    chat: bool = False
    """The prompt alone, in the tokenizer's chat template."""
    max_tokens: int | None = None
    """Longer sequences are cut at the end; how many were is reported by `Spans.truncated`."""
    prompt_only: bool = False
    """Leave solutions out even where they exist."""


@dataclass(frozen=True)
class Spans:
    """Token sequence of one sample with its two spans; plain lists, since most samples are short."""

    ids: list[int]
    prompt: list[bool]
    solution: list[bool]
    truncated: bool


def _plain(sample: Sample, tokenizer: Any, with_solution: bool) -> Spans:
    prompt = tokenizer(sample.prompt + SEPARATOR)["input_ids"]
    solution = tokenizer(sample.solution, add_special_tokens=False)["input_ids"] if with_solution else []
    ids, special, border = prompt + solution, set(tokenizer.all_special_ids), len(prompt)
    inside = [position > 0 and token not in special for position, token in enumerate(ids)]
    masks = ([keep and (i < border) == own for i, keep in enumerate(inside)] for own in (True, False))
    return Spans(ids, *masks, False)


def _chat(sample: Sample, tokenizer: Any) -> Spans:
    message = {"role": "user", "content": sample.prompt}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    start = next((text.find(said) for said in (sample.prompt, sample.prompt.strip()) if said and said in text), None)
    if start is None:
        raise DataError(
            f"sample {sample.id}: the chat template changes its text, so its span cannot be found; use the plain layout"
        )
    end, special = start + len(sample.prompt), set(tokenizer.all_special_ids)
    # a token that only touches the border by one character of the content counts: no content is lost
    inside = [
        position > 0 and token not in special and low < end and high > start and high > low
        for position, (token, (low, high)) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
    ]
    return Spans(encoded["input_ids"], inside, [False] * len(inside), False)


def sample_spans(sample: Sample, tokenizer: Any, layout: Layout = Layout()) -> Spans:
    """Tokens of one sample with the masks of its spans. Raises DataError when nothing of the prompt is left to read."""
    with_solution = sample.solved and not layout.prompt_only
    spans = _chat(sample, tokenizer) if layout.chat else _plain(sample, tokenizer, with_solution)
    if layout.max_tokens is not None and len(spans.ids) > layout.max_tokens:
        cut = slice(0, layout.max_tokens)
        spans = Spans(spans.ids[cut], spans.prompt[cut], spans.solution[cut], True)
    if not any(spans.prompt):
        raise DataError(
            f"sample {sample.id}: no prompt token is left to read; the prompt is one token or max_tokens is too small"
        )
    return spans


def pack(lengths: Sequence[int], tokens_per_batch: int) -> list[tuple[int, ...]]:
    """Rows in batches of similar length with at most `tokens_per_batch` padded tokens (a longer row gets its own).

    >>> pack([5, 2, 5, 2], 10)
    [(1, 3), (0, 2)]
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    batches, start = [], 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and lengths[order[stop]] * (stop + 1 - start) <= tokens_per_batch:
            stop += 1
        batches.append(tuple(order[start:stop]))
        start = stop
    return batches


def token_batches(
    samples: Sequence[Sample], tokenizer: Any, tokens_per_batch: int, layout: Layout = Layout()
) -> Iterator[TokenBatch]:
    """Batches of samples of similar length with at most `tokens_per_batch` padded tokens, in a fixed order."""
    spans = [sample_spans(s, tokenizer, layout) for s in samples]
    for rows in pack([len(s.ids) for s in spans], tokens_per_batch):
        yield pad(rows, spans, tokenizer.pad_token_id or 0)


def pad(rows: tuple[int, ...], spans: Sequence[Spans], pad_id: int) -> TokenBatch:
    """The padded batch of some rows."""
    own = [spans[i] for i in rows]
    ids = pad_sequence([torch.tensor(s.ids) for s in own], batch_first=True, padding_value=pad_id)
    masks = ([s.prompt for s in own], [s.solution for s in own], [[True] * len(s.ids) for s in own])
    return TokenBatch(rows, ids, *(pad_sequence([torch.tensor(m) for m in mask], batch_first=True) for mask in masks))


TOKENS_PER_BATCH = 1024
"""Padded tokens of one batch: the states of more leave a processor's caches."""
LOGITS_PER_BATCH = 2**27
"""Padded tokens times vocabulary of one batch: half a gigabyte in float32; one text may exceed it."""


class Surprise(NamedTuple):
    """Mean nats a token of N prompts (the first counts only where the tokenizer has a beginning-of-text token) and of solutions
    given them, and the nats of the most surprising solution token: one wrong digit hardly moves a mean. float64 [N] each."""

    prompt: NDArray[np.float64]
    solution: NDArray[np.float64]
    solution_peak: NDArray[np.float64]


@torch.inference_mode()
def measure_surprise(
    prompts: Sequence[str], solutions: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Surprise:  # fmt: skip
    """Nats of prompts [N] and of solutions [N] given their prompts, in the order of the input. Prompt and separator are tokenised
    apart from the solution, as in pre-training. Raises DataError that names the row for an empty side or a text longer than the
    model's positions."""
    limit = getattr(model.config, "max_position_embeddings", None) or 2**31
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    heads = [start + head for head in tokenizer([p + SEPARATOR for p in prompts], add_special_tokens=False)["input_ids"]]
    tails = tokenizer(list(solutions), add_special_tokens=False)["input_ids"]
    rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
    for i, row in enumerate(rows):
        if not tails[i] or len(heads[i]) < 2:
            side = "prompt" if tails[i] else "solution"
            raise DataError(f"row {i}: the {side} has too few tokens to be scored; drop the row or fill it in")
        if len(row) > limit:
            raise DataError(f"row {i}: {len(row)} tokens exceed the model's {limit} positions; shorten or drop the row")
    # sorted by their tokens, so that a batch does not depend on the order of the input
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), rows[i], len(heads[i])))
    budget = min(tokens_per_batch, max(1, LOGITS_PER_BATCH // model.config.vocab_size))
    found = np.empty((3, len(rows)))
    for places in pack([len(rows[i]) for i in order], budget):
        batch = [order[place] for place in places]
        longest = len(rows[batch[-1]])
        ids = torch.tensor([rows[i] + [0] * (longest - len(rows[i])) for i in batch], device=model.device)
        # padding on the right needs no mask under causal attention: no real token attends to it
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        for nats, i in zip(losses.double().cpu().numpy(), batch, strict=True):
            head, tail = nats[: len(heads[i]) - 1], nats[len(heads[i]) - 1 : len(rows[i]) - 1]
            found[:, i] = head.mean(), tail.mean(), tail.max()
    return Surprise(*found)
