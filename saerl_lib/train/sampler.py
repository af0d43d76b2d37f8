"""Completions of a policy: prompts as it gets them, and two samplers with one interface.

`GroupSampler` is ours, for policies that fit a CPU core: one prefill a prompt, ended rows dropped, a random stream of its own,
and the prompt's keys and values held and read once for all completions of a group. `transformers.generate` computes every copy
of a prompt, carries ended rows to the end and copies the cache at every token. At these sizes decoding is bound by reading the
cache, and most of it is prompt. `GenerateSampler` is Hugging Face's `generate`, for any causal LM, on the GPU where there is
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from saerl_lib.data.answers import reward
from saerl_lib.data.sample import Sample
from saerl_lib.encode.models import open_tokenizer
from saerl_lib.encode.tokens import SEPARATOR
from saerl_lib.plan.orders import shown_prompts

ROWS_PER_BATCH = 512
"""Completions sampled at once; bounds the memory."""
DROP_BELOW = 0.85
"""Ended rows leave the batch when fewer than this share are still going."""
NAME = "saerl_groups"
"""Our attention among those of transformers; without `groups` it is the ordinary scaled-dot-product attention."""


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


class Sampler(Protocol):
    """Draws completions of one policy."""

    model: Any
    tokenizer: Any
    device: torch.device

    def complete(
        self, prompts: Sequence[str], attempts: int, max_tokens: int, temperature: float, seed: int,
        progress: Callable[[int], None] = lambda rows: None,
    ) -> list[list[str]]:  # fmt: skip
        """`attempts` completions of each of N prompts, [N][attempts], without special tokens; the same for the same seed."""


class GroupSampler:
    """The CPU engine on a model and its tokenizer; plain prompts alone."""

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, torch.device("cpu")

    def complete(
        self, prompts: Sequence[str], attempts: int, max_tokens: int, temperature: float, seed: int,
        progress: Callable[[int], None] = lambda rows: None,
    ) -> list[list[str]]:  # fmt: skip
        """See `Sampler`; the global random stream is left alone."""
        texts = sample_groups(self.model, self.tokenizer, prompts, attempts, max_tokens, temperature, seed, progress).texts
        return [texts[i : i + attempts] for i in range(0, len(texts), attempts)]


class GenerateSampler:
    """A causal LM in a local folder with its tokenizer, `sequences` completions side by side."""

    def __init__(self, folder: Path, bf16: bool = False, chat: bool = False, sequences: int = 64) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = torch.bfloat16 if bf16 else torch.float32
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=precision, local_files_only=True).to(self.device).eval()
        self.tokenizer = open_tokenizer(str(folder), ["What is 3 plus 4?"], local=True)
        self.tokenizer.padding_side = "left"
        self.chat, self.sequences = chat, sequences

    @torch.inference_mode()
    def complete(
        self, prompts: Sequence[str], attempts: int, max_tokens: int, temperature: float, seed: int,
        progress: Callable[[int], None] = lambda rows: None,
    ) -> list[list[str]]:  # fmt: skip
        """See `Sampler`. Prompts of similar length go together; torch's global stream starts anew with `seed`."""
        tokenizer = self.tokenizer
        shown = shown_prompts(tokenizer, prompts, self.chat)
        lengths = [len(ids) for ids in tokenizer(shown, add_special_tokens=not self.chat)["input_ids"]]
        rows = [i for i in sorted(range(len(shown)), key=lambda i: (lengths[i], i)) for _ in range(attempts)]
        found: list[list[str]] = [[] for _ in shown]
        torch.manual_seed(seed)
        for start in range(0, len(rows), self.sequences):
            batch = rows[start : start + self.sequences]
            inputs = tokenizer([shown[i] for i in batch], return_tensors="pt", padding=True, add_special_tokens=not self.chat)
            width = inputs["input_ids"].shape[1]
            out = self.model.generate(
                input_ids=inputs["input_ids"].to(self.device), attention_mask=inputs["attention_mask"].to(self.device),
                generation_config=self._settings(max_tokens, temperature),
            )  # fmt: skip
            for i, text in zip(batch, tokenizer.batch_decode(out[:, width:], skip_special_tokens=True), strict=True):
                found[i].append(text)
            progress(len(batch))
        return found

    def _settings(self, max_tokens: int, temperature: float) -> GenerationConfig:
        """Plain sampling: what a model's own generation settings would cut (top-k, top-p, penalties) is switched off by name."""
        own, pad = self.model.generation_config.eos_token_id, self.tokenizer.pad_token_id or 0
        ends = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        return GenerationConfig(
            do_sample=True, temperature=temperature, top_p=1.0, top_k=0, min_p=None, repetition_penalty=1.0,
            max_new_tokens=max_tokens, pad_token_id=pad, eos_token_id=sorted(ends) or None,
        )  # fmt: skip


class GroupLayer(DynamicLayer):
    """One layer's cache: the prompts [P, H, T, D], and the tokens sampled so far of every live row [R, H, t, D]."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.length = room, 0
        self.buffers: list[torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The first call stores the prompts; later ones append a token and return the sampled part alone."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        rows, heads, _, width = key_states.shape
        if self.buffers is None:
            self.buffers = [key_states.new_empty(rows, heads, self.room, width) for _ in range(2)]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length] = new[:, :, 0]
        self.length += 1
        keys, values = (buffer[:, :, : self.length] for buffer in self.buffers)
        return keys, values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these of the live rows."""
        if self.buffers is not None:
            self.buffers = [buffer[indices] for buffer in self.buffers]


class Groups:
    """The groups of one batch: P prompts of G completions each."""

    def __init__(self, model: LlamaForCausalLM, mask: torch.Tensor, group: int, room: int) -> None:
        config = model.config
        if config.num_key_value_heads != config.num_attention_heads:
            raise ValueError("group sampling expects as many key heads as query heads; generate with TRL's own sampler")
        self.cache = Cache(layers=[GroupLayer(room) for _ in range(config.num_hidden_layers)])
        self.group, self.live = group, torch.arange(len(mask) * group)
        self.bias = torch.zeros(mask.shape).masked_fill(mask == 0, torch.finfo(torch.float32).min)[:, None, None]

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all live rows but these."""
        self.live = self.live[rows]
        self.cache.batch_select_indices(rows)

    def to_grid(self, rows: torch.Tensor) -> torch.Tensor:
        """Live rows [R, H, X] as [P, H, G, X], zero where a row was dropped."""
        prompts = len(self.bias)
        grid = rows.new_zeros(prompts * self.group, *rows.shape[1:])
        grid[self.live] = rows
        return grid.view(prompts, self.group, *rows.shape[1:]).transpose(1, 2)

    def from_grid(self, grid: torch.Tensor) -> torch.Tensor:
        """[P, H, G, X] back to the live rows [R, H, X]."""
        return grid.transpose(1, 2).flatten(0, 1)[self.live]


def group_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, groups: Groups | None = None, **arguments: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Output [R, 1, H, D] of one new token a row; `key` and `value` [R, H, t, D] hold the sampled tokens."""
    if groups is None or query.shape[2] > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **arguments)
    layer = groups.cache.layers[module.layer_idx]
    scale = module.scaling if scaling is None else scaling
    prompt = (groups.to_grid(query[:, :, 0]) @ layer.keys.transpose(2, 3)) * scale + groups.bias
    sampled = (query @ key.transpose(2, 3)).squeeze(2) * scale
    split = prompt.shape[-1]
    weights = torch.softmax(torch.cat([groups.from_grid(prompt), sampled], dim=-1), dim=-1)
    out = groups.from_grid(groups.to_grid(weights[..., :split]) @ layer.values)
    out = out + (weights[:, :, None, split:] @ value).squeeze(2)
    return out.unsqueeze(1), None


AttentionInterface.register(NAME, group_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def sampling_attention(model: LlamaForCausalLM) -> Iterator[None]:
    """The model with group attention; afterwards as it was."""
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before
