"""Attention while sampling groups: the prompt's keys and values are held and read once for all completions of a group.

At these sizes decoding is bound by reading the cache, and most of it is prompt. Registered with transformers under
`NAME`; without `groups` it is the ordinary scaled-dot-product attention (ours).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, LlamaForCausalLM
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "saerl_groups"


class GroupLayer(DynamicLayer):
    """One layer's cache: the prompts [P, H, T, D], and the tokens sampled so far of every live row [R, H, t, D]."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.length = room, 0
        self.buffers: list[torch.Tensor] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
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
