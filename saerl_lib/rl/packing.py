"""Log-probabilities of groups with each prompt computed once (ours): [prompt | completion 1 | ... | completion G] a sequence.

A completion's tokens see the prompt and their own past, and count their positions from the prompt's end, so the values
are those of separate rows; nothing is spent on copies of the prompt and little on padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

TOKENS_PER_PIECE = 1024
"""Tokens of one forward pass, padding included."""


@dataclass(frozen=True)
class Packed:
    """Q sequences of at most L tokens."""

    ids: torch.Tensor
    """[Q, L] tokens, 0 behind the end."""
    positions: torch.Tensor
    """[Q, L] positions."""
    visible: torch.Tensor
    """[Q, 1, L, L] whether row i may look at column j."""
    sources: torch.Tensor
    """[M] flat place in [Q * L] whose hidden state predicts a completion token."""
    rows: torch.Tensor
    """[M] row of the batch that the token belongs to."""
    columns: torch.Tensor
    """[M] its place in the completion."""


def groups_of(prompts: list[list[int]]) -> list[list[int]]:
    """Row numbers with the same prompt, in order of their first row.

    >>> groups_of([[1, 2], [3], [1, 2]])
    [[0, 2], [1]]
    """
    found: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        found.setdefault(tuple(prompt), []).append(row)
    return list(found.values())


def pack(prompts: list[list[int]], completions: list[list[int]], groups: list[list[int]]) -> Packed:
    """One sequence a group of `groups`; `prompts` and `completions` are token lists by row."""
    lengths = [len(prompts[g[0]]) + sum(len(completions[r]) for r in g) for g in groups]
    size = max(lengths)
    ids, positions = torch.zeros(len(groups), size, dtype=torch.long), torch.zeros(len(groups), size, dtype=torch.long)
    owner = torch.full((len(groups), size), -2)
    sources, rows, columns = [], [], []
    for q, group in enumerate(groups):
        prompt = prompts[group[0]]
        at = len(prompt)
        ids[q, :at], positions[q, :at], owner[q, :at] = torch.tensor(prompt), torch.arange(at), -1
        for r in group:
            n, end = len(completions[r]), at + len(completions[r])
            ids[q, at:end] = torch.tensor(completions[r])
            positions[q, at:end] = torch.arange(len(prompt), len(prompt) + n)
            owner[q, at:end] = r
            sources += [q * size + len(prompt) - 1, *range(q * size + at, q * size + end - 1)]
            rows += [r] * n
            columns += range(n)
            at = end
    past = torch.ones(size, size, dtype=torch.bool).tril()
    own = owner.unsqueeze(2) == owner.unsqueeze(1)
    visible = past & (own | (owner == -1).unsqueeze(1))
    return Packed(ids, positions, visible.unsqueeze(1), *(torch.tensor(v) for v in (sources, rows, columns)))


def pieces(prompts: list[list[int]], completions: list[list[int]], limit: int = TOKENS_PER_PIECE) -> list[list[list[int]]]:
    """Groups of similar length together, at most `limit` tokens a piece unless one group alone is longer."""
    length = {tuple(g): len(prompts[g[0]]) + sum(len(completions[r]) for r in g) for g in groups_of(prompts)}
    out: list[list[list[int]]] = []
    for group in sorted(length, key=lambda g: (length[g], g)):
        if not out or (len(out[-1]) + 1) * length[group] > limit:
            out.append([])
        out[-1].append(list(group))
    return out


def log_probabilities(
    model: Any, prompts: list[list[int]], completions: list[list[int]], temperature: float, limit: int = TOKENS_PER_PIECE
) -> torch.Tensor:
    """[B, longest completion] log-probability of every completion token, 0 behind its end."""
    rows, columns, values = [], [], []
    for groups in pieces(prompts, completions, limit):
        packed = pack(prompts, completions, groups)
        hidden = model.model(
            input_ids=packed.ids, position_ids=packed.positions, attention_mask=packed.visible, use_cache=False
        ).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[packed.sources]) / temperature
        targets = torch.tensor([completions[r][c] for r, c in zip(packed.rows.tolist(), packed.columns.tolist(), strict=True)])
        values.append(-torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        rows.append(packed.rows)
        columns.append(packed.columns)
    out = torch.zeros(len(prompts), max(len(c) for c in completions))
    return out.index_put((torch.cat(rows), torch.cat(columns)), torch.cat(values))
