"""The encoder of the embedded world: a small LM of its own that reads the data and never trains.

It has another tokenizer, width and seed than the policy and a broader corpus (worked problems, comparisons,
counting; `saerl_lib.data.corpus`), which leaves out `HELD_OUT` leaf families and shares no prompt with any split of
the world. `all_families=True` builds the control that saw every family.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib import paths
from saerl_lib.data.corpus import (
    ENCODER_SEED,
    ENCODER_SEQUENCES_PER_STEP,
    ENCODER_STEPS,
    Text,
    draw_corpus_text,
    encoder_families,
    tokenizer_corpus,
)
from saerl_lib.encode.language_model import CPU, LanguageModelConfig, load_model, pretrain, save_model, train_tokenizer

ENCODER = LanguageModelConfig(
    seed=ENCODER_SEED,
    vocabulary=900,
    width=96,
    layers=4,
    heads=4,
    feed_forward=256,
    steps=ENCODER_STEPS,
    sequences_per_step=ENCODER_SEQUENCES_PER_STEP,
    solution_only=False,
)


def encoder_folder(all_families: bool = False) -> Path:
    """Where the shipped weights lie."""
    return paths.WEIGHTS / ("encoder_all_families" if all_families else "encoder")


def rebuild_encoder(
    folder: Path,
    all_families: bool = False,
    steps: int | None = None,
    report: Callable[[int, float], None] = lambda step, loss: None,
    device: torch.device = CPU,
) -> list[float]:
    """Train tokenizer and encoder from scratch into `folder`; returns the losses in nats a token."""
    families = encoder_families(all_families)

    def draw(rng: random.Random) -> Text:
        return draw_corpus_text(rng, families)

    tokenizer = train_tokenizer(("\n".join(text) for text in tokenizer_corpus(families)), ENCODER.vocabulary)
    model, losses = pretrain(ENCODER, tokenizer, draw, report, steps, device)
    save_model(model, tokenizer, folder)
    (folder / "losses.json").write_text(json.dumps([round(v, 5) for v in losses[::50]]) + "\n", encoding="utf-8")
    return losses


def load_encoder(all_families: bool = False) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The shipped encoder, or the control that saw every family."""
    return load_model(encoder_folder(all_families))
