"""A small LM with a byte-level BPE tokenizer trained from scratch on real mathematics (ours; the paper reads Qwen3-1.7B).

The embedded encoder reads procedural problems alone. This one lets the whole method run on real text without a network;
it is small, so what it sees is a lower bound of what a pre-trained model sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib.config import TextModelConfig
from saerl_lib.encode.language_model import LanguageModelConfig, build_model, save_model, train_tokenizer


def packed_rows(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, row_tokens: int, seed: int) -> torch.Tensor:
    """[n, row_tokens] texts in a seeded order, joined by EOS and cut into rows: no padding."""
    order = np.random.default_rng(seed).permutation(len(texts))
    stream: list[int] = []
    for start in range(0, len(order), 1000):
        for ids in tokenizer([texts[i] for i in order[start : start + 1000]])["input_ids"]:
            stream += [*ids, tokenizer.eos_token_id]
    rows = len(stream) // row_tokens
    return torch.tensor(stream[: rows * row_tokens]).view(rows, row_tokens)


def train_text_model(
    texts: Sequence[str], config: TextModelConfig, folder: Path, report: Callable[[int, int, float], None] = lambda *_: None
) -> list[float]:
    """Train tokenizer and model into `folder`; returns the loss of every step in nats a token.

    `report` gets step, number of steps and loss. AdamW, cosine schedule, every row is read once.
    """
    tokenizer = train_tokenizer(iter(texts), config.vocabulary)
    shape = LanguageModelConfig(
        seed=config.seed, vocabulary=config.vocabulary, width=config.width, layers=config.layers, heads=config.heads,
        feed_forward=config.feed_forward, steps=0,
    )  # fmt: skip
    model = build_model(shape, tokenizer)
    rows = packed_rows(texts, tokenizer, config.row_tokens, config.seed)[: config.max_rows]
    losses = _fit(model, rows, config, report)
    save_model(model.eval(), tokenizer, folder)
    return losses


def _fit(
    model: LlamaForCausalLM, rows: torch.Tensor, config: TextModelConfig, report: Callable[[int, int, float], None]
) -> list[float]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    batches = rows.split(config.rows_per_step)
    losses: list[float] = []
    model.train()
    for step, ids in enumerate(batches):
        decay = 0.02 + 0.49 * (1 + math.cos(math.pi * step / len(batches)))
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (step + 1) / 50) * decay
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden).flatten(0, 1), ids[:, 1:].flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        report(step + 1, len(batches), losses[-1])
    return losses
