"""What a leaf family is: a topic path and a rule that draws tasks of five levels."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from saerl_lib.data.skills import Solver

LEVELS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Task:
    """One drawn problem before its wording is chosen."""

    symbolic: tuple[str, ...]
    """Bare statements, with as few words as the notation allows."""
    stories: tuple[str, ...]
    """Statements in words."""
    solve: Callable[[Solver], int | str]
    """Writes the lines and returns the answer; an integer may be carried on by follow-up operations."""


@dataclass(frozen=True)
class Family:
    """A leaf topic with its rule."""

    name: str
    path: tuple[str, str, str]
    """Domain, subfield, leaf."""
    draw: Callable[[random.Random, int], Task]
    symbolic_share: float = 0.5
    """Share of bare statements among its prompts."""

    @property
    def topic(self) -> str:
        """The path as DeepMath writes it, 'A -> B -> C'."""
        return " -> ".join(self.path)


def two_digit(rng: random.Random, level: int) -> int:
    """An operand that grows with the level."""
    low, high = ((11, 49), (21, 99), (21, 99), (31, 199), (101, 399))[level - 1]
    return rng.randint(low, high)


def factor(rng: random.Random, level: int) -> int:
    """A one- or two-digit factor that grows with the level."""
    low, high = ((2, 6), (3, 9), (3, 9), (4, 12), (6, 15))[level - 1]
    return rng.randint(low, high)
