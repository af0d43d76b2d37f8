"""How a task is put into words: bare or told, with follow-up operations, distractors and a source's habits."""

from __future__ import annotations

import random
from dataclasses import dataclass

from saerl_lib.data.families import Family, Task
from saerl_lib.data.skills import Solver

FRAMES = ("{}", "Find {}", "Compute {}", "{} = ?", "What is {}")
"""Frames of bare statements, shared by all families."""

DISTRACTORS = (
    "A clock near the field says {n}.",
    "The price rises by {n}%.",
    "The mean teams of row {n} are over.",
    "A triangle of area {n} is on the box.",
    "The jug holds {n} of a litre.",
    "Which bags are equal, {n} times?",
    "The median term is {n}.",
    "A game takes {n} heaps.",
    "The base of the row is {n} m.",
    "Divisor {n} is on each bag of beads.",
    "Put x into the cup of {n}.",
    "{n} beads meet at the edge.",
)
"""Sentences with other families' words and a number that does not matter."""


@dataclass(frozen=True)
class Habits:
    """Wording habits of a source."""

    openers: tuple[str, ...]
    closers: tuple[str, ...]
    distractor_share: float
    symbolic_factor: float
    """Multiplies a family's share of bare statements."""


HABITS = {
    "target": Habits(("", "", "", "Question: ", "Now: "), ("", "", "Give it exactly.", "Show each step."), 0.35, 1.0),
    "parent": Habits(
        ("", "", "", "Problem: ", "Now: "), ("", "", "Explain it.", "Show each step.", "State the result."), 0.45, 0.7
    ),
    "contest": Habits(("", "Round {n}: ", "Now: "), ("", "Prove it.", "Give it exactly."), 0.45, 0.9),
}
"""Habits by source; they overlap, so that no phrase settles the source alone."""

FOLLOW_UPS = (0, 0, 1, 1, 2)
"""Follow-up operations by level, for tasks with an integer answer."""


@dataclass(frozen=True)
class Worded:
    """A prompt and the operations that carry the family's answer on."""

    prompt: str
    follow_ups: tuple[tuple[str, int], ...]


def carry_on(solver: Solver, value: int | str, follow_ups: tuple[tuple[str, int], ...]) -> str:
    """The final answer after the follow-up operations."""
    for kind, amount in follow_ups:
        assert isinstance(value, int)
        value = solver.add(value, amount) if kind == "add" else solver.sub(value, amount)
    return str(value)


def word(task: Task, family: Family, level: int, source: str, rng: random.Random) -> Worded:
    """Choose a wording for `task` with the habits of `source`."""
    habits = HABITS[source]
    gold = Solver()
    value = task.solve(gold)
    follow_ups: list[tuple[str, int]] = []
    if isinstance(value, int):
        for _ in range(FOLLOW_UPS[level - 1]):
            amount = rng.randint(11, 30 + 20 * level)
            kind = "sub" if value > amount + 5 and rng.random() < 0.5 else "add"
            value = value + amount if kind == "add" else value - amount
            follow_ups.append((kind, amount))
    if rng.random() < family.symbolic_share * habits.symbolic_factor:
        text = rng.choice(FRAMES).format(rng.choice(task.symbolic))
    else:
        text = rng.choice(task.stories)
    for kind, amount in follow_ups:
        text += f", then {rng.choice(('add', 'plus')) if kind == 'add' else rng.choice(('take away', 'minus'))} {amount}"
    if not text.endswith("?"):
        text += rng.choice((".", "?")) if text[0].isupper() else "."
    if rng.random() < habits.distractor_share:
        aside = rng.choice(DISTRACTORS).format(n=rng.randint(2, 99))
        text = f"{aside} {text}" if rng.random() < 0.5 else f"{text} {aside}"
    opener = rng.choice(habits.openers).format(n=rng.randint(1, 9))
    closer = rng.choice(habits.closers)
    return Worded(f"{opener}{text}{' ' + closer if closer else ''}", tuple(follow_ups))
