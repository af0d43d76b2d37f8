"""Short-answer arithmetic: problems that a real small language model can learn from in minutes (ours).

Kinds and operand sizes are topics and levels, as everywhere. Base pass rates of SmolLM2-135M-Instruct at temperature 1: products
of digits 0.135, their sums 0.12, two-digit sums 0.01.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from saerl_lib.config import sub_seed
from saerl_lib.data.sample import Sample

Draw = Callable[[random.Random], tuple[str, int]]
"""A written operation and its value."""
WORDINGS = ("What is {}?", "Calculate {}.", "{} =", "Find the value of {}.")


def _digit(rng: random.Random) -> int:
    return rng.randint(2, 9)


def _number(rng: random.Random) -> int:
    return rng.randint(10, 99)


def _operation(sign: str, operand: Callable[[random.Random], int], terms: int = 2) -> Draw:
    """`terms` operands joined by + , - or *; a difference is never negative."""

    def draw(rng: random.Random) -> tuple[str, int]:
        values = [operand(rng) for _ in range(terms)]
        if sign == "-":
            values.sort(reverse=True)
        text = f" {sign} ".join(map(str, values))
        return text, eval(text)  # digits and signs alone

    return draw


KINDS: dict[str, tuple[str, int, Draw]] = {
    "sum of digits": ("sums", 1, _operation("+", _digit)),
    "product of digits": ("products", 1, _operation("*", _digit)),
    "three digits": ("sums", 2, _operation("+", _digit, 3)),
    "difference": ("differences", 2, _operation("-", _number)),
    "sum of two-digit numbers": ("sums", 3, _operation("+", _number)),
    "product of two-digit numbers": ("products", 4, _operation("*", _number)),
}
"""Kind -> (subfield, level, how it is drawn)."""


def draw_short(count: int, seed: int, kinds: Sequence[str] = tuple(KINDS)) -> list[Sample]:
    """`count` problems with distinct prompts, the kinds in turn; the same for the same seed. The last line is the answer.

    Raises ValueError when a kind has no further problem.

    >>> sample = draw_short(1, 0, ["product of digits"])[0]
    >>> sample.topic, sample.difficulty, sample.steps[0].endswith(f"= {sample.answer}")
    ('Short arithmetic -> products -> product of digits', 1.0, True)
    """
    rng, found, taken = random.Random(sub_seed(seed, "short")), list[Sample](), set[str]()
    for i in range(count):
        kind = kinds[i % len(kinds)]
        subfield, level, draw = KINDS[kind]
        for _ in range(1000):
            text, value = draw(rng)
            prompt = rng.choice(WORDINGS).format(text)
            if prompt not in taken:
                break
        else:
            raise ValueError(f"{count} problems: there are no more of kind {kind!r}, ask for fewer")
        taken.add(prompt)
        topic = f"Short arithmetic -> {subfield} -> {kind}"
        found.append(Sample(f"short-{i:05d}", prompt, (f"{text} = {value}",), str(value), topic, float(level), "short"))
    return found
