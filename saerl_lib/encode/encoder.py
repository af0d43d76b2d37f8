"""The encoder of the embedded world: a small LM of its own that reads the data and never trains.

It has another tokenizer, width and seed than the policy and a broader corpus (worked problems, comparisons,
counting), leaves out `HELD_OUT` leaf families and never sees the RL pool, whose prompts come from other seeds.
`all_families=True` builds the control that saw every family.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib import paths
from saerl_lib.config import sub_seed
from saerl_lib.data.families import FAMILIES
from saerl_lib.data.families.base import LEVELS
from saerl_lib.data.skills import SLIP_RATE
from saerl_lib.data.wording import HABITS
from saerl_lib.data.world import draw_sample
from saerl_lib.encode.language_model import LanguageModelConfig, Text, load_model, pretrain, save_model, train_tokenizer

ENCODER = LanguageModelConfig(
    seed=29,
    vocabulary=900,
    width=96,
    layers=4,
    heads=4,
    feed_forward=256,
    steps=1500,
    sequences_per_step=64,
    solution_only=False,
)
HELD_OUT = ("double_negative", "proportion", "congruence", "lengths")
"""Leaf families that the encoder never reads in training."""
MILD_SLIPS = dict.fromkeys(SLIP_RATE, 0.1)
SOURCES = tuple(HABITS)


def draw_general_text(rng: random.Random) -> Text:
    """A text that belongs to no leaf family: comparing, counting on, sorting up, parity."""
    a, b, step = rng.randint(1, 999), rng.randint(1, 999), rng.randint(2, 12)
    kind = rng.randrange(4)
    if kind == 0:
        return f"Which is larger, {a} or {b}?", f"Answer: {max(a, b)}"
    if kind == 1:
        return f"Count on from {a} in steps of {step}.", " ".join(str(a + i * step) for i in range(6))
    if kind == 2:
        return f"Is {a} even or odd?", f"Answer: {'even' if a % 2 == 0 else 'odd'}"
    return f"Write {a}, {b}, {step} from small to large.", " ".join(map(str, sorted((a, b, step))))


def draw_corpus_text(rng: random.Random, families: tuple[str, ...]) -> Text:
    """One text of the encoder's corpus: four fifths worked problems, one fifth general."""
    if rng.random() < 0.2:
        return draw_general_text(rng)
    sample = draw_sample(rng.choice(families), rng.choice(LEVELS), rng.choice(SOURCES), rng, "", MILD_SLIPS)
    return sample.prompt, sample.solution


def encoder_families(all_families: bool) -> tuple[str, ...]:
    """Families of the corpus."""
    return tuple(name for name in FAMILIES if all_families or name not in HELD_OUT)


def encoder_folder(all_families: bool = False) -> Path:
    """Where the shipped weights lie."""
    return paths.WEIGHTS / ("encoder_all_families" if all_families else "encoder")


def rebuild_encoder(
    folder: Path,
    all_families: bool = False,
    steps: int | None = None,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Train tokenizer and encoder from scratch into `folder`; returns the losses in nats a token."""
    families = encoder_families(all_families)

    def draw(rng: random.Random) -> Text:
        return draw_corpus_text(rng, families)

    rng = random.Random(sub_seed(ENCODER.seed, "tokenizer"))
    tokenizer = train_tokenizer(("\n".join(draw(rng)) for _ in range(20_000)), ENCODER.vocabulary)
    model, losses = pretrain(ENCODER, tokenizer, draw, report, steps)
    save_model(model, tokenizer, folder)
    (folder / "losses.json").write_text(json.dumps([round(v, 5) for v in losses[::50]]) + "\n", encoding="utf-8")
    return losses


def load_encoder(all_families: bool = False) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The shipped encoder, or the control that saw every family."""
    return load_model(encoder_folder(all_families))
