"""Small causal language models in Hugging Face format, pre-trained here: the policy of the embedded world (ours)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from saerl_lib.encode.tokens import SEPARATOR

logging.disable_progress_bar()
Text = tuple[str, str]
"""A prompt and its solution."""
CPU = torch.device("cpu")
PAD, EOS = "<pad>", "<eos>"


@dataclass(frozen=True)
class LanguageModelConfig:
    """Architecture and pre-training of one small language model (ours)."""

    seed: int
    """Seed of weights and of the corpus."""
    vocabulary: int
    """Byte-level BPE tokens."""
    width: int
    """Model width D."""
    layers: int
    """Blocks."""
    heads: int
    """Attention heads."""
    feed_forward: int
    """Inner width of a block."""
    steps: int
    """Optimiser steps of pre-training."""
    sequences_per_step: int = 128
    """Sequences of one optimiser step."""
    learning_rate: float = 2e-3
    """Peak of a cosine schedule with 100 warm-up steps, AdamW."""
    solution_only: bool = True
    """Loss on the solution alone, or on prompt and solution."""


def batches(rng: random.Random, draw: Callable[[random.Random], Text], size: int, buffered: int = 8) -> Iterator[list[Text]]:
    """Endless batches of texts of similar length: `buffered` batches are drawn, sorted by length and shuffled as batches."""
    while True:
        texts = sorted((draw(rng) for _ in range(size * buffered)), key=lambda text: len(text[0]) + len(text[1]))
        groups = [texts[i : i + size] for i in range(0, len(texts), size)]
        rng.shuffle(groups)
        yield from groups


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that gives every digit its own token."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, padding_side="left")


def build_model(config: LanguageModelConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with tied embeddings and random weights from `config.seed`."""
    torch.manual_seed(config.seed)
    architecture = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(architecture)


def batch_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[Text], solution_only: bool
) -> torch.Tensor:
    """Mean cross-entropy in nats over the tokens that count."""
    prompts = tokenizer([p + SEPARATOR for p, _ in texts])["input_ids"]
    solutions = tokenizer([s for _, s in texts])["input_ids"]
    rows = [p + s + [tokenizer.eos_token_id] for p, s in zip(prompts, solutions, strict=True)]
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        start = len(prompt) if solution_only else 0
        labels[i, start : len(row)] = ids[i, start : len(row)]
    hidden = model.model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).last_hidden_state[:, :-1]
    counted = labels[:, 1:] != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[counted]), labels[:, 1:][counted])


def pretrain(
    config: LanguageModelConfig,
    tokenizer: PreTrainedTokenizerFast,
    draw: Callable[[random.Random], Text],
    report: Callable[[int, float], None] = lambda step, loss: None,
    steps: int | None = None,
    device: torch.device = CPU,
) -> tuple[LlamaForCausalLM, list[float]]:
    """Pre-train on an endless stream of texts; returns the model, on the CPU, and the loss of every step in nats a token.

    `steps` cuts the run short under the schedule of the full one, so that a short rebuild can be compared. The first
    weights are drawn on the CPU, whichever `device` trains them.
    """
    model = build_model(config, tokenizer).to(device)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    stream = batches(random.Random(config.seed), draw, config.sequences_per_step)
    losses: list[float] = []
    for step in range(config.steps if steps is None else steps):
        warm = min(1.0, (step + 1) / 100)
        rate = config.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        with device:
            loss = batch_loss(model, tokenizer, next(stream), config.solution_only)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        report(step, losses[-1])
    return model.cpu().eval(), losses


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write bfloat16 safetensors, configuration and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    model.to(torch.float32)


def load_model(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A model in float32 and its tokenizer, from a local folder.

    The tokenizer is read as `PreTrainedTokenizerFast`: the automatic class may build another one from the
    configuration's model type and drop spaces.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no config.json; rebuild the weights with `python -m saerl_lib world --rebuild`")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), tokenizer
