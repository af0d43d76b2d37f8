"""Sampling completions from a policy, batched by prompt length, with a random stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib.data.answers import reward
from saerl_lib.data.schema import Sample
from saerl_lib.encode.language_model import SEPARATOR

ROWS_PER_BATCH = 512
"""Completions sampled at once; bounds the memory."""


@torch.inference_mode()
def sample_tokens(
    model: LlamaForCausalLM, ids: torch.Tensor, mask: torch.Tensor, max_new: int, temperature: float, generator: torch.Generator
) -> torch.Tensor:
    """[B, max_new] sampled token ids, padded after the end-of-sequence token; prompts [B, T] are padded on the left.

    Rows that have ended are dropped from the batch once they are 15 % of it, so that the time follows the mean completion.
    """
    end, pad = model.config.eos_token_id, model.config.pad_token_id
    out = torch.full((len(ids), max_new), pad)
    live, ended = torch.arange(len(ids)), torch.zeros(len(ids), dtype=torch.bool)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    state = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    cache, logits, place = state.past_key_values, state.logits[:, -1], positions[:, -1]
    for t in range(max_new):
        odds = torch.softmax(logits.float() / temperature, dim=-1)
        chosen = torch.multinomial(odds, 1, generator=generator).squeeze(1)
        chosen[ended] = pad
        out[live, t] = chosen
        ended = ended | (chosen == end)
        going = ~ended
        if not going.any() or t == max_new - 1:
            break
        place, mask = place + 1, torch.cat([mask, torch.ones(len(live), 1, dtype=mask.dtype)], dim=1)
        if going.float().mean() < 0.85:
            keep = going.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            live, chosen, place, mask, ended = live[keep], chosen[keep], place[keep], mask[keep], ended[keep]
        state = model(
            input_ids=chosen.unsqueeze(1),
            attention_mask=mask,
            position_ids=place.unsqueeze(1),
            past_key_values=cache,
            use_cache=True,
        )
        cache, logits = state.past_key_values, state.logits[:, -1]
    return out


def sample_completions(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    max_new: int,
    temperature: float,
    seed: int,
    progress: Callable[[int], None] = lambda rows: None,
) -> list[str]:
    """One completion for every entry of `prompts`, in their order; the global random stream is left alone."""
    generator = torch.Generator().manual_seed(seed)
    encoded = tokenizer([p + SEPARATOR for p in prompts])["input_ids"]
    order = sorted(range(len(prompts)), key=lambda i: (len(encoded[i]), i))
    texts = [""] * len(prompts)
    was_training = model.training
    model.eval()
    for start in range(0, len(order), ROWS_PER_BATCH):
        rows = order[start : start + ROWS_PER_BATCH]
        longest = max(len(encoded[i]) for i in rows)
        ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for b, i in enumerate(rows):
            ids[b, longest - len(encoded[i]) :] = torch.tensor(encoded[i])
            mask[b, longest - len(encoded[i]) :] = 1
        tokens = sample_tokens(model, ids, mask, max_new, temperature, generator)
        for i, text in zip(
            rows, tokenizer.batch_decode(_cut(tokens, model.config.eos_token_id, tokenizer.pad_token_id)), strict=True
        ):
            texts[i] = text
        progress(len(rows))
    model.train(was_training)
    return texts


def _cut(tokens: torch.Tensor, end: int, pad: int) -> list[list[int]]:
    """Token lists up to the end of the sequence."""
    rows = tokens.tolist()
    return [row[: next((i for i, v in enumerate(row) if v in (end, pad)), len(row))] for row in rows]


def correct_attempts(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    samples: Sequence[Sample],
    attempts: int,
    max_new: int,
    temperature: float,
    seed: int,
    progress: Callable[[int], None] = lambda rows: None,
) -> NDArray[np.int8]:
    """[N, attempts] 1 where the attempt's final answer is right."""
    prompts = [s.prompt for s in samples for _ in range(attempts)]
    texts = sample_completions(model, tokenizer, prompts, max_new, temperature, seed, progress)
    golds = [s.answer for s in samples for _ in range(attempts)]
    marks = [int(reward(text, gold)) for text, gold in zip(texts, golds, strict=True)]
    return np.asarray(marks, dtype=np.int8).reshape(len(samples), attempts)
