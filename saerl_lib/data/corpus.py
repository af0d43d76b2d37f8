"""The encoder's pre-training corpus, and which of its prompts the world must therefore leave out.

Four fifths worked problems of all but the `HELD_OUT` leaf families, one fifth general texts (comparing, counting on,
parity, sorting). The draws are repeatable, so `encoder_prompts` lists every prompt that the shipped encoder has read
and the splits of the world avoid them: the encoder never sees the RL pool.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator

from saerl_lib.config import sub_seed
from saerl_lib.data.families import FAMILIES
from saerl_lib.data.families.base import LEVELS
from saerl_lib.data.sample import normalise
from saerl_lib.data.skills import SLIP_RATE
from saerl_lib.data.wording import HABITS
from saerl_lib.data.world import draw_sample
from saerl_lib.encode.encoder import ENCODER
from saerl_lib.encode.language_model import Text, batches

TOKENIZER_TEXTS = 20_000
"""Texts that the encoder's tokenizer is trained on."""
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


def tokenizer_corpus(families: tuple[str, ...]) -> Iterator[Text]:
    """The texts that the encoder's tokenizer is trained on."""
    rng = random.Random(sub_seed(ENCODER.seed, "tokenizer"))
    for _ in range(TOKENIZER_TEXTS):
        yield draw_corpus_text(rng, families)


@functools.cache
def _encoder_prompts() -> frozenset[str]:
    families = encoder_families(all_families=False)
    prompts = {normalise(prompt) for prompt, _ in tokenizer_corpus(families)}
    stream = batches(random.Random(ENCODER.seed), lambda rng: draw_corpus_text(rng, families), ENCODER.sequences_per_step)
    for _ in range(ENCODER.steps):
        prompts.update(normalise(prompt) for prompt, _ in next(stream))
    return frozenset(prompts)


def encoder_prompts() -> set[str]:
    """Normalised prompts that the shipped encoder was pre-trained on, drawn again from its seeds."""
    return set(_encoder_prompts())
