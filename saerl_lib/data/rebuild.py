"""The weights that the world ships, trained again from scratch: the encoder on its corpus, the policies on a learner's solutions."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from saerl_lib.config import sub_seed
from saerl_lib.data.corpus import draw_corpus_text, encoder_families, tokenizer_corpus
from saerl_lib.data.families import FAMILIES
from saerl_lib.data.families.base import LEVELS
from saerl_lib.data.skills import learner_rates
from saerl_lib.data.wording import HABITS
from saerl_lib.data.world import draw_sample
from saerl_lib.encode.encoder import ENCODER
from saerl_lib.encode.language_model import CPU, LanguageModelConfig, Text, pretrain, save_model, train_tokenizer
from saerl_lib.train.policy import FOLDER, POLICY

SOURCES = tuple(HABITS)


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


def draw_learner_text(rng: random.Random) -> Text:
    """A prompt of any cell and wording with a learner's solution; planted errors never occur here."""
    name, level = rng.choice(tuple(FAMILIES)), rng.choice(LEVELS)
    sample = draw_sample(name, level, rng.choice(SOURCES), rng, "", learner_rates(level))
    return sample.prompt, sample.solution


def tokenizer_texts(seed: int, draw: Callable[[random.Random], Text], count: int = 20_000) -> Iterator[str]:
    """Texts that the tokenizer is trained on."""
    rng = random.Random(sub_seed(seed, "tokenizer"))
    for _ in range(count):
        yield "\n".join(draw(rng))


def rebuild_policy(
    folder: Path = FOLDER, steps: int | None = None, report: Callable[[int, float], None] = lambda step, loss: None,
    config: LanguageModelConfig = POLICY, device: torch.device = CPU,
) -> list[float]:  # fmt: skip
    """Train tokenizer and policy from scratch into `folder`; returns the losses in nats a solution token."""
    tokenizer = train_tokenizer(tokenizer_texts(POLICY.seed, draw_learner_text), POLICY.vocabulary)
    model, losses = pretrain(config, tokenizer, draw_learner_text, report, steps, device)
    save_model(model, tokenizer, folder)
    (folder / "losses.json").write_text(json.dumps([round(v, 5) for v in losses[::50]]) + "\n", encoding="utf-8")
    return losses
