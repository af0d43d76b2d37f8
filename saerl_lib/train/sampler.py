"""Completions of a policy: prompts as it gets them, and two samplers with one interface.

`Sampler` is ours, for Llamas that fit a CPU core: one forward function over tokens of many texts at once, without padding,
serves sampling, the loss and exact likelihoods. A prompt is computed once for all its completions, its keys and values are held
and read once, ended rows leave the batch, and the random stream is its own. `transformers.generate` computes every copy of a
prompt, carries ended rows to the end and copies the cache at every token. `GenerateSampler` is Hugging Face's `generate`, for any
causal LM, on the GPU where there is one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib.data.answers import read_answer
from saerl_lib.data.sample import Sample
from saerl_lib.plan.orders import Asked, encode_prompts, shown_prompts

ROWS_PER_BATCH, SEQUENCES = 512, 64
"""Completions sampled at once by our engine and by `generate`; bounds the memory."""
DROP_BELOW = 0.85
"""Ended rows leave the batch when fewer than this share are still going."""


def last_number(text: str) -> str | None:
    """The last number of a text without separators, None when there is none.

    >>> last_number("7 x 8 makes 56."), last_number("1,200"), last_number("no")
    ('56', '1200', None)
    """
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return found[-1].replace(",", "") if found else None


READ: dict[str, Callable[[str], str | None]] = {"answer": read_answer, "last_number": last_number}
"""`TrainConfig.answer_from` -> how an answer is read from a completion."""
TOKENS_PER_PIECE = 4096
"""Tokens of one pass with gradients."""
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(block, queries [N, H, D], keys [N, K, D], values [N, K, D]) -> what each of N tokens reads, [N, H D]; K divides H."""


def rotations(model: LlamaForCausalLM, positions: torch.Tensor) -> torch.Tensor:
    """[2, N, 1, D] cosines of N positions, and sines whose first half is negative.

    Raises ValueError for another architecture than Llama.
    """
    if model.config.model_type != "llama":
        raise ValueError(f"engine 'packed' reads Llama models, not {model.config.model_type}: choose engine='trl'")
    cos, sin = (table[0][:, None] for table in model.model.rotary_emb(model.lm_head.weight, positions[None]))
    half = sin.shape[-1] // 2
    return torch.stack([cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)])


def hidden_states(model: LlamaForCausalLM, ids: torch.Tensor, turned: torch.Tensor, attend: Attend) -> torch.Tensor:
    """Last hidden states [N, W] of N tokens of any number of texts, `turned` by `rotations`; `attend` knows which see which.

    The model's own weights, without the padding, masks and caches of its own forward pass.
    """
    inner, n, (cos, sin) = model.model, len(ids), turned
    x = inner.embed_tokens(ids)
    for number, block in enumerate(inner.layers):
        own, h = block.self_attn, _normed(x, block.input_layernorm)
        q, k, v = (project(h).view(n, -1, own.head_dim) for project in (own.q_proj, own.k_proj, own.v_proj))
        q, k = (torch.addcmul(y * cos, y.roll(y.shape[-1] // 2, dims=-1), sin) for y in (q, k))  # rotary positions
        x = x + own.o_proj(attend(number, q, k, v))
        x = x + block.mlp(_normed(x, block.post_attention_layernorm))
    return _normed(x, inner.norm)


def _normed(x: torch.Tensor, norm: Any) -> torch.Tensor:
    return torch.nn.functional.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


@dataclass(frozen=True)
class Packed:
    """P prompts and R completions of them as one row of N tokens, the prompts first: each prompt is computed once (ours)."""

    ids: torch.Tensor
    """[N]."""
    positions: torch.Tensor
    """[N]; a completion counts on from its prompt's end."""
    prompts: torch.Tensor
    """[P, T] places of each prompt's tokens among the N, -1 behind its end."""
    rows: torch.Tensor
    """[R, C] the same of each completion."""
    owner: torch.Tensor
    """[R] prompt of each completion."""

    @property
    def ends(self) -> torch.Tensor:
        """[P] place of each prompt's last token."""
        return self.prompts.amax(dim=1)

    @property
    def sources(self) -> torch.Tensor:
        """[M] place whose hidden state predicts each of the completions' tokens, by row."""
        before = torch.cat([self.ends[self.owner, None], self.rows[:, :-1]], dim=1)
        return before[self.rows >= 0]

    @cached_property
    def visible(self) -> torch.Tensor:
        """[R, 1, C, T + C] whether a completion's token sees a place of its prompt, or of itself up to then."""
        (r, c), t = self.rows.shape, self.prompts.shape[1]
        prompt = (self.prompts >= 0)[self.owner][:, None].expand(r, c, t)
        return torch.cat([prompt, torch.ones(c, c, dtype=torch.bool).tril().expand(r, c, c)], dim=2)[:, None]

    def attend(self, number: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """As `Attend`: prompts see their own past, completions their prompt and their own past."""
        keys, values = spread(k, self.prompts), spread(v, self.prompts)
        seen = _attention(spread(q, self.prompts), keys, values, None).transpose(1, 2)[self.prompts >= 0]
        if len(self.rows):
            keys = torch.cat([keys[self.owner], spread(k, self.rows)], dim=2)
            values = torch.cat([values[self.owner], spread(v, self.rows)], dim=2)
            found = _attention(spread(q, self.rows), keys, values, self.visible)
            seen = torch.cat([seen, found.transpose(1, 2)[self.rows >= 0]])
        return seen.flatten(1)


def spread(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """x [N, H, D] at `places` [B, T], as [B, H, T, D]."""
    return x[places.clamp(min=0)].transpose(1, 2)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
    """Scaled dot products [B, H, T, D]; causal without `visible`."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) if x.shape[1] < q.shape[1] else x for x in (k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None)


def _places(lengths: Sequence[int], first: int = 0) -> torch.Tensor:
    """[B, longest] numbers from `first` on, row by row, -1 behind each row's length.

    >>> _places([2, 1], 5).tolist()
    [[5, 6], [7, -1]]
    """
    size = torch.tensor(lengths, dtype=torch.long)
    inside = torch.arange(max(lengths, default=0)) < size[:, None]
    found = torch.full(inside.shape, -1)
    found[inside] = torch.arange(first, first + int(size.sum()))
    return found


def pack(prompts: Sequence[list[int]], completions: Sequence[list[int]], owner: Sequence[int]) -> Packed:
    """Token lists of P prompts, of R completions, and the number of each completion's prompt."""
    first, own = [len(p) for p in prompts], [len(c) for c in completions]
    ids = [token for part in (*prompts, *completions) for token in part]
    positions = [*map(range, first), *(range(first[p], first[p] + n) for p, n in zip(owner, own, strict=True))]
    return Packed(
        torch.tensor(ids), torch.tensor([i for span in positions for i in span]), _places(first), _places(own, sum(first)),
        torch.tensor(owner, dtype=torch.long),
    )  # fmt: skip


def pieces(prompts: list[list[int]], completions: list[list[int]]) -> list[list[int]]:
    """Row numbers in pieces of whole groups (rows of one prompt), similar lengths together; at most `TOKENS_PER_PIECE` tokens
    a piece unless one group alone is longer.

    >>> pieces([[1, 2], [3], [1, 2]], [[4], [5], [6]])
    [[1, 0, 2]]
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(row)
    length = {key: len(key) + sum(len(completions[r]) for r in rows) for key, rows in groups.items()}
    out, size = list[list[int]](), TOKENS_PER_PIECE
    for key in sorted(groups, key=lambda k: (length[k], groups[k])):
        if not out or size + length[key] > TOKENS_PER_PIECE:
            out.append([])
            size = 0
        out[-1] += groups[key]
        size += length[key]
    return out


def log_probabilities(model: Any, prompts: list[list[int]], completions: list[list[int]], temperature: float) -> torch.Tensor:
    """[B, longest completion] log-probability of every completion token, 0 behind its end."""
    out = torch.zeros(len(prompts), max(len(c) for c in completions))
    where, values = [], []
    for rows in pieces(prompts, completions):
        number = {key: p for p, key in enumerate(dict.fromkeys(tuple(prompts[r]) for r in rows))}
        owner = [number[tuple(prompts[r])] for r in rows]
        packed = pack([list(key) for key in number], [completions[r] for r in rows], owner)
        hidden = hidden_states(model, packed.ids, rotations(model, packed.positions), packed.attend)
        logits = model.lm_head(hidden[packed.sources]) / temperature
        values.append(-torch.nn.functional.cross_entropy(logits, packed.ids[int(packed.ends.max()) + 1 :], reduction="none"))
        row, column = (packed.rows >= 0).nonzero(as_tuple=True)
        where.append((torch.tensor(rows)[row], column))
    return out.index_put(tuple(torch.cat(part) for part in zip(*where, strict=True)), torch.cat(values))


@torch.inference_mode()
def gold_probability(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample], temperature: float, chat: bool = False
) -> NDArray[np.float64]:
    """[N] exact probability of writing each sample's own solution, to the end: a pass rate without sampling noise where a
    problem has one way of being solved, else a lower bound of it."""
    prompts = encode_prompts(tokenizer, [s.asked for s in samples], chat)
    solutions = tokenizer([s.solution for s in samples], add_special_tokens=False)["input_ids"]
    found = log_probabilities(model, prompts, [ids + [model.config.eos_token_id] for ids in solutions], temperature)
    return found.sum(dim=1).double().exp().numpy()


class Decoder:
    """P prompts continued by R = P G rows of sampled tokens; a prompt's keys and values are held and read once for its rows."""

    def __init__(self, model: LlamaForCausalLM, prompts: Sequence[list[int]], group: int, room: int) -> None:
        """`room` is the largest number of sampled tokens."""
        self.model, self.group, self.length, self.live = model, group, 0, torch.arange(len(prompts) * group)
        packed, config = pack(prompts, [], []), model.config
        self.asked, self.places = torch.arange(len(prompts)), self.live
        self.prompt = list[tuple[torch.Tensor, torch.Tensor]]()
        self.bias = torch.zeros(packed.prompts.shape).masked_fill(packed.prompts < 0, -torch.inf)[:, None, None]

        def attend(number: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self.prompt.append((spread(k, packed.prompts).transpose(2, 3).contiguous(), spread(v, packed.prompts).contiguous()))
            return packed.attend(number, q, k, v)

        self.turned = rotations(model, torch.arange(packed.prompts.shape[1] + room))
        hidden = hidden_states(model, packed.ids, self.turned[:, packed.positions], attend)
        self.logits = model.lm_head(hidden[packed.ends]).repeat_interleave(group, dim=0)
        self.position = torch.tensor([len(p) for p in prompts]).repeat_interleave(group)
        heads, width = config.num_key_value_heads, self.prompt[0][1].shape[-1]
        self.sampled = torch.empty(len(self.prompt), 2, len(self.live), heads, room, width)

    def step(self, tokens: torch.Tensor) -> None:
        """Append a token [R] to every live row; `logits` [R, V] are then those of the next one."""
        hidden = hidden_states(self.model, tokens, self.turned.index_select(1, self.position), self._attend)
        self.logits, self.position, self.length = self.model.lm_head(hidden), self.position + 1, self.length + 1

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all live rows but these, and the prompts once half of them have none; unfilled room is not copied."""
        self.live, self.position, held = self.live[rows], self.position[rows], self.sampled[..., : self.length, :]
        self.sampled = self.sampled.new_empty(*held.shape[:2], len(rows), *self.sampled.shape[3:])
        torch.index_select(held, 2, rows, out=self.sampled[..., : self.length, :])
        owner = self.live // self.group
        left = torch.unique(owner)
        if 2 * len(left) <= len(self.asked):
            held = torch.searchsorted(self.asked, left)
            self.asked, self.bias = left, self.bias[held]
            self.prompt = [(keys[held], values[held]) for keys, values in self.prompt]
        self.places = torch.searchsorted(self.asked, owner) * self.group + self.live % self.group

    def _attend(self, number: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        end, (keys, values), pair = self.length + 1, self.prompt[number], self.sampled[number]
        pair[0][:, :, self.length], pair[1][:, :, self.length] = k, v
        q = q.view(len(q), k.shape[1], -1, q.shape[2]) * q.shape[2] ** -0.5  # [R, K, H / K, D]
        prompt = self._from_grid(self._to_grid(q) @ keys + self.bias, q.shape[2])
        weights = torch.softmax(torch.cat([prompt, q @ pair[0][:, :, :end].transpose(2, 3)], dim=-1), dim=-1)
        split = keys.shape[-1]
        out = self._from_grid(self._to_grid(weights[..., :split]) @ values, q.shape[2])
        return (out + weights[..., split:] @ pair[1][:, :, :end]).flatten(1)

    def _to_grid(self, rows: torch.Tensor) -> torch.Tensor:
        """Live rows [R, K, J, X] as [P, K, G J, X], zero where a row was dropped."""
        if len(self.live) < len(self.bias) * self.group:
            rows = rows.new_zeros(len(self.bias) * self.group, *rows.shape[1:]).index_copy_(0, self.places, rows)
        return rows.view(len(self.bias), self.group, *rows.shape[1:]).transpose(1, 2).flatten(2, 3)

    def _from_grid(self, grid: torch.Tensor, heads: int) -> torch.Tensor:
        """[P, K, G J, X] back to the live rows [R, K, J, X]."""
        rows = grid.unflatten(2, (self.group, heads)).transpose(1, 2).flatten(0, 1)
        return rows if len(self.live) == len(rows) else rows.index_select(0, self.places)


def draw(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One token [B] from each row of `logits` [B, V] by inverting its cumulative distribution, and the entropies [B] in nats."""
    logp = torch.log_softmax(logits / temperature, dim=-1)
    odds = logp.exp()
    cumulative = odds.cumsum(dim=-1)
    place = torch.rand(len(logits), 1, generator=generator) * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, place, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return chosen, -(odds * logp.clamp(min=-1e4)).sum(dim=-1)


@torch.inference_mode()
def sample_tokens(
    model: LlamaForCausalLM, prompts: Sequence[list[int]], max_new: int, temperature: float, generator: torch.Generator,
    group: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """`group` completions of each of B prompts, given as tokens: tokens [B group, max_new], prompt-major, padded after the
    end-of-sequence token, and the sum over a completion's tokens of the sampling distribution's entropy, [B group] in nats."""
    end, pad = model.config.eos_token_id, model.config.pad_token_id
    decoder = Decoder(model, prompts, group, max_new)
    n = len(decoder.live)
    out, entropy, ended = torch.full((n, max_new), pad), torch.zeros(n), torch.zeros(n, dtype=torch.bool)
    for t in range(max_new):
        chosen, spread = draw(decoder.logits, temperature, generator)
        entropy[decoder.live[~ended]] += spread[~ended]
        chosen[ended] = pad
        out[decoder.live, t] = chosen
        ended = ended | (chosen == end)
        if ended.all() or t == max_new - 1:
            break
        if (~ended).float().mean() < DROP_BELOW:
            keep = (~ended).nonzero().squeeze(1)
            decoder.keep(keep)
            chosen, ended = chosen[keep], ended[keep]
        decoder.step(chosen)
    return out, entropy


@dataclass(frozen=True)
class Completions:
    """`group` completions a prompt, prompt-major: [N * group] each."""

    ids: list[list[int]]
    """Token ids, the end-of-sequence token included where one was sampled."""
    texts: list[str]
    entropy: NDArray[np.float64]
    """Mean entropy of a token, in nats."""


def batches(rows: int, size: int) -> Iterable[int]:
    """First row of each batch of `size`, with a progress bar when they take more than a minute."""
    return tqdm(range(0, rows, size), desc="rollouts", unit="batch", delay=60, mininterval=10, file=sys.stdout)


def sample_groups(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Asked], group: int, max_new: int,
    temperature: float, seed: int, *, chat: bool = False,
) -> Completions:  # fmt: skip
    """`group` completions for every entry of `prompts`, in their order; the global random stream is left alone."""
    generator = torch.Generator().manual_seed(seed)
    encoded = encode_prompts(tokenizer, prompts, chat)
    order = sorted(range(len(prompts)), key=lambda i: (len(encoded[i]), i))
    ids: list[list[int]] = [[] for _ in range(len(prompts) * group)]
    entropy, end = np.zeros(len(ids)), model.config.eos_token_id
    was_training = model.training
    model.eval()
    size = max(1, ROWS_PER_BATCH // group)
    for start in batches(len(order), size):
        rows = order[start : start + size]
        found, spread = sample_tokens(model, [encoded[i] for i in rows], max_new, temperature, generator, group)
        places = [i * group + g for i in rows for g in range(group)]
        for i, tokens, total in zip(places, found.tolist(), spread.tolist(), strict=True):
            ids[i] = tokens[: tokens.index(end) + 1] if end in tokens else tokens
            entropy[i] = total / len(ids[i])
    model.train(was_training)
    return Completions(ids, tokenizer.batch_decode(ids, skip_special_tokens=True), entropy)


class Sampler:
    """Draws completions of one policy, by the CPU engine."""

    def __init__(self, model: Any, tokenizer: Any, chat: bool = False) -> None:
        self.model, self.tokenizer, self.chat, self.device = model, tokenizer, chat, model.device

    def complete(
        self, prompts: Sequence[Asked], attempts: int, max_tokens: int, temperature: float, seed: int
    ) -> list[list[str]]:
        """`attempts` completions of each of N prompts, [N][attempts], without special tokens; the same for the same seed."""
        texts = sample_groups(self.model, self.tokenizer, prompts, attempts, max_tokens, temperature, seed, chat=self.chat).texts
        return [texts[i : i + attempts] for i in range(0, len(texts), attempts)]


class GenerateSampler(Sampler):
    """Draws them by `generate` of any causal LM."""

    @torch.inference_mode()
    def complete(
        self, prompts: Sequence[Asked], attempts: int, max_tokens: int, temperature: float, seed: int
    ) -> list[list[str]]:
        """See `Sampler`. Prompts of similar length go together; torch's global stream starts anew with `seed`."""
        tokenizer = self.tokenizer
        shown = shown_prompts(tokenizer, prompts, self.chat)
        lengths = [len(ids) for ids in encode_prompts(tokenizer, prompts, self.chat)]
        rows = [i for i in sorted(range(len(shown)), key=lambda i: (lengths[i], i)) for _ in range(attempts)]
        found: list[list[str]] = [[] for _ in shown]
        torch.manual_seed(seed)
        for start in batches(len(rows), SEQUENCES):
            batch = rows[start : start + SEQUENCES]
            inputs = tokenizer(
                [shown[i] for i in batch], return_tensors="pt", padding=True, padding_side="left",
                add_special_tokens=not self.chat, return_token_type_ids=False,
            ).to(self.device)  # fmt: skip
            out = self.model.generate(**inputs, generation_config=self._settings(max_tokens, temperature))
            texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, text in zip(batch, texts, strict=True):
                found[i].append(text)
        return found

    def _settings(self, max_tokens: int, temperature: float) -> GenerationConfig:
        """Plain sampling: what a model's own generation settings would cut (top-k, top-p, penalties) is switched off by name."""
        own, pad = self.model.generation_config.eos_token_id, self.tokenizer.pad_token_id or 0
        ends = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        return GenerationConfig(
            do_sample=True, temperature=temperature, top_p=1.0, top_k=0, min_p=None, repetition_penalty=1.0,
            max_new_tokens=max_tokens, pad_token_id=pad, eos_token_id=sorted(ends) or None,
        )  # fmt: skip
