"""Small causal language models in Hugging Face format: tokenizer, architecture, pre-training, loading.

Both models of the embedded world, the policy and the separate encoder, are built here (ours: the paper takes
Qwen models). Weights are stored as bfloat16 safetensors and run in float32.

Prompt and solution token spans, and batches of samples of similar length (paper, section 3.1).

Two layouts. Plain (the default): prompt, separator and solution are tokenised apart, so the border is exact by
construction. Chat: the model's own template is applied and the spans are found by character offsets; tokens of the template
belong to neither span. Special tokens, the first token (an attention sink) and padding are masked in both.

Token activations at one layer of a Hugging Face model; nothing is computed past the hook.

Axes: B texts, T tokens, D model width.

Where an encoder runs: batches are made on the CPU and computed on one device, and what is read from them comes back (ours).

How surprising a causal language model finds a prompt and its solution, in nats a token (ours).

The perplexity filter is a control for the quality filter. Works for the encoder of the world and for any Hugging Face
causal language model with its tokenizer. Axes: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

from saerl_lib.data.sample import DataError, Sample

if TYPE_CHECKING:
    from saerl_lib.encode.pool import Encoder

logging.disable_progress_bar()
Text = tuple[str, str]
"""A prompt and its solution."""

CPU = torch.device("cpu")
PAD, EOS = "<pad>", "<eos>"
SEPARATOR = "\n"
"""Between prompt and solution."""


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
    """Loss on the solution alone (policy) or on prompt and solution (encoder)."""


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
    """Apply the tokenizer's chat template (not stated in the paper; ours: plain text)."""
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


def _plain(sample: Sample, tokenizer: Any, layout: Layout) -> Spans:
    prompt = tokenizer(sample.prompt + SEPARATOR)["input_ids"]
    solution = (
        [] if layout.prompt_only or not sample.solved else tokenizer(sample.solution, add_special_tokens=False)["input_ids"]
    )
    ids, special = prompt + solution, set(tokenizer.all_special_ids)
    inside = [position > 0 and token not in special for position, token in enumerate(ids)]
    border = len(prompt)
    return Spans(
        ids,
        [keep and i < border for i, keep in enumerate(inside)],
        [keep and i >= border for i, keep in enumerate(inside)],
        False,
    )


def _chat(sample: Sample, tokenizer: Any, layout: Layout) -> Spans:
    with_solution = sample.solved and not layout.prompt_only
    messages = [{"role": "user", "content": sample.prompt}]
    if with_solution:
        messages.append({"role": "assistant", "content": sample.solution})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not with_solution)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    start = _find(text, sample.prompt, 0, sample.id)
    borders = [(start, start + len(sample.prompt))]
    if with_solution:
        start = _find(text, sample.solution, borders[0][1], sample.id)
        borders.append((start, start + len(sample.solution)))
    special = set(tokenizer.all_special_ids)

    def inside(span: tuple[int, int]) -> list[bool]:
        # a token that only touches the border by one character of the content counts: no content is lost
        return [
            position > 0 and token not in special and low < span[1] and high > span[0] and high > low
            for position, (token, (low, high)) in enumerate(
                zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            )
        ]

    masks = [inside(span) for span in borders]
    return Spans(encoded["input_ids"], masks[0], masks[1] if with_solution else [False] * len(masks[0]), False)


def _find(text: str, content: str, start: int, name: str) -> int:
    for candidate in (content, content.strip()):
        place = text.find(candidate, start)
        if candidate and place >= 0:
            return place
    raise DataError(f"sample {name}: the chat template changes its text, so its span cannot be found; use the plain layout")


def sample_spans(sample: Sample, tokenizer: Any, layout: Layout = Layout()) -> Spans:
    """Tokens of one sample with the masks of its spans. Raises DataError when nothing of the prompt is left to read."""
    spans = _chat(sample, tokenizer, layout) if layout.chat else _plain(sample, tokenizer, layout)
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
    shape = (len(rows), max(len(spans[i].ids) for i in rows))
    ids = torch.full(shape, pad_id)
    prompt, solution, real = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
    for b, i in enumerate(rows):
        n = len(spans[i].ids)
        ids[b, :n] = torch.tensor(spans[i].ids)
        prompt[b, :n] = torch.tensor(spans[i].prompt)
        solution[b, :n] = torch.tensor(spans[i].solution)
        real[b, :n] = True
    return TokenBatch(rows, ids, prompt, solution, real)


BIDIRECTIONAL = ("bert", "roberta", "mpnet", "distilbert", "xlm-roberta")
"""Model types whose tokens see those after them, so that padding has to be masked."""


class CutModel(nn.Module):
    """A model whose last block is the hooked one, without its final norm and without logits."""

    def __init__(self, body: nn.Module, needs_mask: bool) -> None:
        super().__init__()
        self.body = body
        self.needs_mask = needs_mask

    def forward(self, batch: TokenBatch) -> Tensor:
        """[B, T, D] residual stream after the hooked block.

        Under causal attention padding on the right needs no mask: no real token attends to it. The batch lies on the CPU,
        its states on the model's device and in its precision.
        """
        device = next(self.body.parameters()).device
        options: dict[str, Any] = {"attention_mask": batch.real.long().to(device)} if self.needs_mask else {"use_cache": False}
        return self.body(input_ids=batch.ids.to(device), **options).last_hidden_state


def _blocks(body: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds the list of blocks, and the list's name."""
    depth = body.config.num_hidden_layers
    for owner in (body, getattr(body, "encoder", None), getattr(body, "decoder", None)):
        for name in ("layers", "h", "layer"):
            blocks = getattr(owner, name, None)
            if isinstance(blocks, nn.ModuleList) and len(blocks) == depth:
                return owner, name
    raise ValueError(f"{type(body).__name__}: no list of {depth} blocks was found; load a decoder or a BERT-like encoder")


def truncate(model: nn.Module, layer: int) -> CutModel:
    """The model up to and including block `layer` (1 is the first), without the final norm and without logits.

    Raises ValueError when the model has fewer blocks. The model itself is changed: load it for this purpose alone.
    """
    body = getattr(model, "base_model", model)
    owner, name = _blocks(body)
    blocks = getattr(owner, name)
    if not 1 <= layer <= len(blocks):
        raise ValueError(f"hook_layer={layer} does not fit a model of {len(blocks)} blocks; choose 1 to {len(blocks)}")
    setattr(owner, name, blocks[:layer])
    body.config.num_hidden_layers = layer
    for norm in ("norm", "ln_f", "final_layer_norm", "final_layernorm"):
        if isinstance(getattr(body, norm, None), nn.Module):
            setattr(body, norm, nn.Identity())
    return CutModel(body, body.config.model_type in BIDIRECTIONAL).eval()


@torch.inference_mode()
def activations(decoder: CutModel, batch: TokenBatch) -> Tensor:
    """[B, T, D] residual stream at the hook."""
    return decoder(batch)


def token_vectors(
    samples: Sequence[Sample], decoder: CutModel, tokenizer: Any, tokens_per_batch: int, layout: Layout = Layout()
) -> Iterator[Tensor]:
    """[n, D] activations of the unmasked tokens of one batch after another, in float32 on the CPU.

    Raises FloatingPointError with the sample id when a value is not finite.
    """
    for batch in token_batches(samples, tokenizer, tokens_per_batch, layout):
        values = activations(decoder, batch)
        check_finite(values, batch, samples)
        yield values[batch.prompt | batch.solution].float().cpu()


def check_finite(values: Tensor, batch: TokenBatch, samples: Sequence[Sample]) -> None:
    """Raise FloatingPointError that names the first sample with a non-finite activation."""
    bad = ~torch.isfinite(values).all(dim=-1).cpu() & (batch.prompt | batch.solution)
    if bad.any():
        row = int(bad.any(dim=1).nonzero()[0])
        raise FloatingPointError(
            f"sample {samples[batch.rows[row]].id}: non-finite activation; check the encoder's weights or run it in float32"
        )


def pick_device(name: str) -> torch.device:
    """`cpu`, `cuda` or `cuda:N`. Raises ValueError with the fix for another name and where there is no such device."""
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdigit())):
        raise ValueError(f"--device {name}: choose cpu, cuda or cuda:N")
    seen = torch.cuda.device_count() if kind == "cuda" else 0
    if kind == "cuda" and int(number or 0) >= seen:
        raise ValueError(f"--device {name}: torch {torch.__version__} sees {seen} CUDA devices; use --device cpu")
    return torch.device(name)


def place(encoder: Encoder, device: torch.device, precision: torch.dtype = torch.float32) -> Encoder:
    """The encoder with its model and SAE moved to `device`, the model's weights in `precision`; the SAE keeps its own.

    Modules move in place: open another encoder to keep one elsewhere.
    """
    place_model(encoder.decoder, device, precision)
    encoder.sae.to(device)
    return encoder


def place_model(decoder: CutModel, device: torch.device, precision: torch.dtype = torch.float32) -> CutModel:
    """The model moved to `device`, its weights in `precision`."""
    decoder.to(device)
    for weight in decoder.parameters():  # not the buffers: rotary frequencies in bfloat16 would blur positions
        weight.data = weight.data.to(precision)
    return decoder


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
