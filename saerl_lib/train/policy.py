"""The base policies of the embedded world: small models pre-trained on a learner's solutions.

Every skill slips at its own rate (`saerl_lib.data.skills.SLIP_RATE`), more often at higher levels, so that RL has
skills to mend one by one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib import paths
from saerl_lib.config import sub_seed
from saerl_lib.data.corpus import Text
from saerl_lib.data.families import FAMILIES
from saerl_lib.data.families.base import LEVELS
from saerl_lib.data.skills import learner_rates
from saerl_lib.data.wording import HABITS
from saerl_lib.data.world import draw_sample
from saerl_lib.encode.language_model import CPU, LanguageModelConfig, load_model, pretrain, save_model, train_tokenizer

POLICY = LanguageModelConfig(
    seed=11, vocabulary=640, width=128, layers=4, heads=4, feed_forward=384, steps=4000, sequences_per_step=96
)
LARGE = LanguageModelConfig(
    seed=12, vocabulary=640, width=192, layers=6, heads=6, feed_forward=576, steps=2000, sequences_per_step=96,
    learning_rate=1.33e-3,
)  # fmt: skip
"""3.2 times the parameters on half the texts, the learning rate scaled with the width; the study's second policy."""
POLICIES = {"policy": POLICY, "policy_large": LARGE}
"""Policies by the name of their folder; both have the tokenizer of the first."""
FOLDER = paths.WEIGHTS / "policy"
SOURCES = tuple(HABITS)


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


def policy_folder(name: str) -> Path:
    """Where the weights of a policy of `POLICIES` lie. Raises KeyError for another name."""
    if name not in POLICIES:
        raise KeyError(f"policy {name!r} does not exist; choose one of {', '.join(POLICIES)}")
    return paths.WEIGHTS / name


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


def load_policy() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The shipped base policy and its tokenizer."""
    return load_model(FOLDER)
