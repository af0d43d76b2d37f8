"""Sampling completions from a policy: one prefill a prompt, ended rows dropped, a random stream of its own.

Ours, for policies that fit a CPU core: `transformers.generate` computes every copy of a prompt, carries ended rows to
the end and copies the cache at every token; `saerl_lib.rl.group_attention` does neither. TRL trains on what is sampled here (`saerl_lib.rl.feed`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib.data.answers import reward
from saerl_lib.data.sample import Sample
from saerl_lib.encode.language_model import SEPARATOR
from saerl_lib.rl.group_attention import Groups, sampling_attention

ROWS_PER_BATCH = 512
"""Completions sampled at once; bounds the memory."""
DROP_BELOW = 0.85
"""Ended rows leave the batch when fewer than this share are still going."""


@dataclass(frozen=True)
class Sampled:
    """Completions of one batch."""

    tokens: torch.Tensor
    """[B * group, max_new], prompt-major, padded after the end-of-sequence token."""
    entropy: torch.Tensor
    """[B * group] sum over the completion's tokens of the sampling distribution's entropy, in nats."""


def draw(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One token [B] from each row of `logits` [B, V] by inverting its cumulative distribution, and the entropies [B] in nats."""
    logp = torch.log_softmax(logits.float() / temperature, dim=-1)
    odds = logp.exp()
    cumulative = odds.cumsum(dim=-1)
    place = torch.rand(len(logits), 1, generator=generator) * cumulative[:, -1:]
    chosen = (cumulative <= place).sum(dim=-1).clamp(max=logits.shape[-1] - 1)
    return chosen, -(odds * logp.clamp(min=-1e4)).sum(dim=-1)


@torch.inference_mode()
def sample_tokens(
    model: LlamaForCausalLM,
    ids: torch.Tensor,
    mask: torch.Tensor,
    max_new: int,
    temperature: float,
    generator: torch.Generator,
    group: int = 1,
) -> Sampled:
    """`group` completions for every prompt of `ids` [B, T], padded on the left."""
    end, pad = model.config.eos_token_id, model.config.pad_token_id
    groups = Groups(model, mask, group, max_new)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=groups.cache, use_cache=True, logits_to_keep=1
    ).logits[:, -1]
    logits, place = logits.repeat_interleave(group, dim=0), positions[:, -1].repeat_interleave(group)
    n = len(place)
    out, entropy = torch.full((n, max_new), pad), torch.zeros(n)
    ended = torch.zeros(n, dtype=torch.bool)
    with sampling_attention(model):
        for t in range(max_new):
            chosen, spread = draw(logits, temperature, generator)
            live = groups.live
            entropy[live[~ended]] += spread[~ended]
            chosen[ended] = pad
            out[live, t] = chosen
            ended = ended | (chosen == end)
            if ended.all() or t == max_new - 1:
                break
            place = place + 1
            if (~ended).float().mean() < DROP_BELOW:
                keep = (~ended).nonzero().squeeze(1)
                groups.keep(keep)
                chosen, place, ended = chosen[keep], place[keep], ended[keep]
            logits = model(
                input_ids=chosen.unsqueeze(1), position_ids=place.unsqueeze(1), past_key_values=groups.cache, use_cache=True,
                groups=groups,
            ).logits[:, -1]  # fmt: skip
    return Sampled(out, entropy)


@dataclass(frozen=True)
class Completions:
    """`group` completions a prompt, prompt-major: [N * group] each."""

    ids: list[list[int]]
    """Token ids, the end-of-sequence token included where one was sampled."""
    texts: list[str]
    entropy: NDArray[np.float64]
    """Mean entropy of a token, in nats."""


def sample_groups(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    group: int,
    max_new: int,
    temperature: float,
    seed: int,
    progress: Callable[[int], None] = lambda rows: None,
) -> Completions:
    """`group` completions for every entry of `prompts`, in their order; the global random stream is left alone."""
    generator = torch.Generator().manual_seed(seed)
    encoded = encode_prompts(tokenizer, prompts)
    order = sorted(range(len(prompts)), key=lambda i: (len(encoded[i]), i))
    ids: list[list[int]] = [[] for _ in range(len(prompts) * group)]
    entropy = np.zeros(len(ids))
    was_training = model.training
    model.eval()
    size = max(1, ROWS_PER_BATCH // group)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        batch, mask = left_padded([encoded[i] for i in rows], tokenizer.pad_token_id)
        found = sample_tokens(model, batch, mask, max_new, temperature, generator, group)
        places = [i * group + g for i in rows for g in range(group)]
        for i, tokens, total in zip(places, found.tokens.tolist(), found.entropy.tolist(), strict=True):
            ids[i] = _until_end(tokens, model.config.eos_token_id)
            entropy[i] = total / len(ids[i])
        progress(len(places))
    model.train(was_training)
    return Completions(ids, tokenizer.batch_decode(ids, skip_special_tokens=True), entropy)


def encode_prompts(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, the separator to the solution included."""
    return tokenizer([p + SEPARATOR for p in prompts])["input_ids"]


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, [B, T] each."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for b, row in enumerate(rows):
        ids[b, longest - len(row) :] = torch.tensor(row)
        mask[b, longest - len(row) :] = 1
    return ids, mask


def _until_end(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


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
    prompts = [s.prompt for s in samples]
    texts = sample_groups(model, tokenizer, prompts, attempts, max_new, temperature, seed, progress).texts
    golds = [s.answer for s in samples for _ in range(attempts)]
    marks = [int(reward(text, gold)) for text, gold in zip(texts, golds, strict=True)]
    return np.asarray(marks, dtype=np.int8).reshape(len(samples), attempts)
