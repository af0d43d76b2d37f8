"""Short-answer arithmetic: problems that a real small language model can learn from in minutes (ours).

A source of the embedded world like its word problems: the kind is the topic, sizes of operands are domains and levels. Base pass
rates of SmolLM2-135M-Instruct at temperature 1: products of digits 0.135, their sums 0.12, two-digit sums 0.01.
"""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Callable
from dataclasses import dataclass

DIGITS, TWO_DIGITS = (2, 9), (10, 99)


@dataclass(frozen=True)
class Kind:
    """Operands of one size, joined by one operation."""

    sign: str
    combine: Callable[[int, int], int]
    size: tuple[int, int]
    """Smallest and largest operand."""
    level: int
    terms: int = 2


KINDS: dict[str, Kind] = {
    "Digits -> Sums -> Sum of digits": Kind("+", operator.add, DIGITS, 1),
    "Digits -> Products -> Product of digits": Kind("*", operator.mul, DIGITS, 1),
    "Digits -> Sums -> Three digits": Kind("+", operator.add, DIGITS, 2, 3),
    "Two-digit numbers -> Differences -> Difference": Kind("-", operator.sub, TWO_DIGITS, 2),
    "Two-digit numbers -> Sums -> Sum of two-digit numbers": Kind("+", operator.add, TWO_DIGITS, 3),
    "Two-digit numbers -> Products -> Product of two-digit numbers": Kind("*", operator.mul, TWO_DIGITS, 4),
}
"""Topic -> how its problems are drawn; a difference is never negative."""
OPENERS = {
    "target": ("", "Question: ", "Quick: ", "Please help: "), "parent": ("", "Problem: ", "Next: "), "contest": ("Round: ", ""),
}  # fmt: skip
ASKED = {
    "target": ("What is {}?", "Calculate {}.", "{} =", "Find the value of {}.", "How much is {}?", "Work out {}."),
    "parent": ("{} =", "How much is {}?", "Work out {}.", "Simplify {}.", "Give {} as one number."),
    "contest": ("Determine {}.", "Find the value of {}.", "Evaluate {} exactly."),
}
"""Wording habits of the sources, of which none settles the source alone."""


@dataclass(frozen=True)
class Short:
    """One problem with its value and its labels."""

    prompt: str
    written: str
    """The operation alone."""
    last: int
    """Its last operand."""
    value: int
    difficulty: float


def draw_short(topic: str, source: str, rng: random.Random) -> Short:
    """A problem of a kind in the words of a source. Its difficulty label is the level of the kind and, behind the point, the size
    of the largest operand; the contest grades by the size of the result.

    >>> short = draw_short("Digits -> Products -> Product of digits", "target", random.Random(0))
    >>> short.prompt, short.value, short.difficulty
    ('8 * 8 =', 64, 1.8)
    """
    kind = KINDS[topic]
    values = [rng.randint(*kind.size) for _ in range(kind.terms)]
    if kind.sign == "-":
        values.sort(reverse=True)
    value, written = values[0], f" {kind.sign} ".join(map(str, values))
    for other in values[1:]:
        value = kind.combine(value, other)
    label = kind.level + max(values) / (kind.size[1] + 1) if source != "contest" else 2 + 2.5 * math.log10(value + 1)
    prompt = rng.choice(OPENERS[source]) + rng.choice(ASKED[source]).format(written)
    return Short(prompt, written, values[-1], value, round(label, 3))
