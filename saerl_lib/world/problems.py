"""Problems of the embedded world: chains of one to eight operations, their worked solutions, and the slips of a learner (ours).

Every topic uses the same five procedures, so that what is mended on one topic is mended on all. A slip is one fixed wrong
procedure; how often the learner slips hangs on the operation and the last digit of its operand, never on the topic. The paper
trains a policy whose weaknesses nobody can name; here each has a name and a rate.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

OPERATIONS = "+-*/f"
"""Add, subtract, multiply, divide without a remainder, take a fraction of."""
ODDS = (0.27, 0.27, 0.18, 0.14, 0.14)
"""How often each operation is tried; a try that leaves the allowed values is drawn again."""
LENGTHS, SIZES = tuple(range(1, 9)), (0, 1)
"""Operations of a problem; size of its numbers."""
LARGEST, LARGEST_TERM = (99, 199), (9, 60)
"""Largest value and largest term of a sum or difference, by size."""
SMALLEST, CERTAIN = 5, 0.7
"""No value is smaller; an answer below this share of the largest value is kept with a chance that falls with it."""
SCHOOL = {"+": 0.4, "-": 0.45, "*": 0.6, "/": 0.75, "f": 1.0}
"""What an operation adds to the difficulty label: how late it is taught, which knows nothing of the learner's rates."""


@dataclass(frozen=True)
class Step:
    """One operation."""

    operation: str
    """One of `OPERATIONS`."""
    amount: int
    """Its operand; the denominator of a fraction."""
    part: int = 0
    """Numerator of a fraction, else 0."""


@dataclass(frozen=True)
class Problem:
    """A start value and what happens to it."""

    start: int
    steps: tuple[Step, ...]


@dataclass
class Work:
    """One worked solution, right or not."""

    lines: list[str]
    """Running lines such as '+12=46'."""
    answer: int
    largest: int
    """Largest value of the way."""
    bad_lines: list[int]
    """Indices of the lines that a slip spoils; that of the answer line is `len(lines)`."""


Rates = Mapping[tuple[str, int], float]
"""(operation, last digit of its operand) -> share of uses in which the wrong procedure is followed."""


def even_rates(rate: float) -> Rates:
    """The same rate for every operation and digit."""
    return {(operation, digit): rate for operation in OPERATIONS for digit in range(10)}


BANDS = {"+": (0.15, 0.8), "-": (0.15, 0.8), "*": (0.05, 0.65), "/": (0.05, 0.65), "f": (0.25, 0.8)}
_rng = random.Random(4242)
LEARNER_RATES = {(name, digit): _rng.uniform(*BANDS[name]) for name in OPERATIONS for digit in range(10)}
"""Of the solutions that the policy is pre-trained on."""
LEARNER_LENGTHS = (0.30, 0.30, 0.22, 0.06, 0.05, 0.03, 0.02, 0.02)
"""Shares of problems of one to eight operations among them: mostly short ones."""


def draw_step(rng: random.Random, value: int, size: int) -> tuple[Step, int]:
    """An operation that `value` allows, and its right result."""
    most, term = LARGEST[size], LARGEST_TERM[size]
    while True:
        name = rng.choices(OPERATIONS, ODDS)[0]
        if name in "+-":
            amount = rng.randint(2, term)
            result = value + amount if name == "+" else value - amount
            if SMALLEST <= result <= most:
                return Step(name, amount), result
        elif name == "*":
            amount = rng.randint(2, 9)
            if value * amount <= most:
                return Step(name, amount), value * amount
        elif name == "/":
            divisors = [d for d in range(2, 10) if value % d == 0 and value // d >= SMALLEST]
            if divisors:
                amount = rng.choice(divisors)
                return Step(name, amount), value // amount
        else:
            divisors = [d for d in (3, 4, 5) if value % d == 0 and value // d >= 3]
            if divisors:
                amount = rng.choice(divisors)
                part = rng.randint(2, amount - 1)
                return Step(name, amount, part), value // amount * part


def draw_problem(rng: random.Random, length: int, size: int) -> Problem:
    """A chain of `length` operations on numbers of a size; small answers are rarer than by chance: none can be guessed."""
    while True:
        value = start = rng.randint(SMALLEST, LARGEST[size] // 2)
        steps = []
        for _ in range(length):
            step, value = draw_step(rng, value, size)
            steps.append(step)
        if rng.random() < value / (CERTAIN * LARGEST[size]):
            return Problem(start, tuple(steps))


def wrong_result(step: Step, value: int) -> int | None:
    """What the wrong procedure makes of `value`; None where it cannot go wrong.

    A sum forgets the carry, a difference takes the smaller unit from the larger, a product reads the neighbouring row of the
    table, a quotient is one off, a fraction stops after the division.

    >>> [wrong_result(Step(o, 8), 47) for o in "+-*/f"], wrong_result(Step("+", 2), 47)
    ([45, 41, 329, 6, 5], None)
    """
    amount = step.amount
    if step.operation == "+":
        return value + amount - 10 if value % 10 + amount % 10 > 9 else None
    if step.operation == "-":
        borrows = value >= amount and value % 10 < amount % 10
        return (value // 10 - amount // 10) * 10 + amount % 10 - value % 10 if borrows else None
    if step.operation == "*":
        return value * (amount - 1)
    return value // amount + (step.operation == "/")


Slips = Callable[[int, Step], bool]
"""Whether the wrong procedure is followed at a step, given its number."""


def learner(rng: random.Random, rates: Rates) -> Slips:
    """Slips of someone who follows the wrong procedures at `rates`."""
    return lambda number, step: rng.random() < rates[step.operation, step.amount % 10]


def work_out(problem: Problem, slips: Slips = lambda number, step: False) -> Work:
    """The solution of a problem, by default the right one. Later steps build on a wrong value.

    >>> work_out(Problem(47, (Step("+", 8), Step("f", 5, 2)))).lines
    ['+8=55', '/5=11', '*2=22']
    """
    value = problem.start
    work = Work([], value, value, [])
    for number, step in enumerate(problem.steps):
        name, amount = step.operation, step.amount
        wrong = wrong_result(step, value) if slips(number, step) else None
        if name == "f":
            work.lines.append(f"/{amount}={value // amount}")
        if wrong is not None:
            work.bad_lines.append(len(work.lines))
        if name == "f":
            right = value // amount * step.part
            work.lines += [f"*{step.part}={right}"] if wrong is None else []
        else:
            right = {"+": value + amount, "-": abs(value - amount), "*": value * amount, "/": value // amount}[name]
            work.lines.append(f"{name}{amount}={right if wrong is None else wrong}")
        value = right if wrong is None else wrong
        work.largest = max(work.largest, value)
    work.answer = value
    return work


def fallible(problem: Problem) -> list[int]:
    """Numbers of the steps at which a slip changes the value."""
    value, found = problem.start, []
    for number, step in enumerate(problem.steps):
        right = work_out(Problem(value, (step,))).answer
        if wrong_result(step, value) not in (None, right):
            found.append(number)
        value = right
    return found


def step_labels(work: Work) -> tuple[int, ...]:
    """+1 before the first slip, -1 on a line that a slip spoils, 0 on sound work with wrong values; the answer line included."""
    first = min(work.bad_lines, default=len(work.lines) + 1)
    return tuple(-1 if i in work.bad_lines else int(i < first) for i in range(len(work.lines) + 1))


def difficulty(problem: Problem) -> float:
    """Difficulty label: 1 + the school weights of its operations + log10(largest value / 10) (ours).

    >>> difficulty(Problem(47, (Step("+", 8), Step("f", 5, 2))))
    3.14
    """
    work = work_out(problem)
    return round(1.0 + sum(SCHOOL[step.operation] for step in problem.steps) + math.log10(work.largest / 10), 3)


def contest_scale(problem: Problem) -> float:
    """Difficulty on the contest source's own scale: large numbers and the rarer operations weigh more than length (ours)."""
    rare = sum(step.operation in "*/f" for step in problem.steps)
    return round(2.0 + 0.25 * len(problem.steps) + 0.5 * rare + 2.5 * math.log10(work_out(problem).largest / 10), 3)
