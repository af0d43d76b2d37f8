"""Skills: the steps of a worked solution, each done rightly or by one fixed wrong procedure.

Family code is written once and calls these methods. With no slips the lines are the gold solution; with slip rates
they are what a learner writes who has not yet mended those skills, and later steps build on the wrong value. Ours:
the paper trains on a policy whose weaknesses nobody can name; here every weakness has a name and a rate.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

SCHOOL_WEIGHT: dict[str, float] = {
    "carry": 0.1, "borrow": 0.2, "table": 0.3, "exact_division": 0.4,
    "precedence": 0.7, "brackets": 0.6, "double_negative": 0.9,
    "common_denominator": 1.3, "reduce": 0.9, "part_of_amount": 0.7, "percent_base": 1.3,
    "transpose": 1.0, "off_by_one": 1.3, "sign_of_square": 1.5,
    "remainder": 0.8, "common_multiple": 1.7, "wrap": 1.9,
    "unordered": 1.7, "mean_divide": 0.7, "sort": 1.1,
    "double": 0.3, "half": 0.7, "base_sixty": 1.2, "unit_factor": 0.6, "angle_sum": 0.5,
}  # fmt: skip
"""How late a skill is taught, in label units: part of the written difficulty formula, independent of the slip rates."""

SLIP_RATE: dict[str, float] = {
    "carry": 0.03, "borrow": 0.04, "table": 0.02, "exact_division": 0.02,
    "precedence": 0.94, "brackets": 0.25, "double_negative": 0.80,
    "common_denominator": 0.93, "reduce": 0.50, "part_of_amount": 0.70, "percent_base": 0.93,
    "transpose": 0.45, "off_by_one": 0.92, "sign_of_square": 0.96,
    "remainder": 0.12, "common_multiple": 0.90, "wrap": 0.88,
    "unordered": 0.35, "mean_divide": 0.06, "sort": 0.95,
    "double": 0.05, "half": 0.20, "base_sixty": 0.75, "unit_factor": 0.45, "angle_sum": 0.02,
}  # fmt: skip
"""Share of uses in which the pre-training learner follows the wrong procedure, at level 3."""

LEVEL_SLOPE = 0.6
"""Log-odds that a level adds to every slip rate: longer problems with larger numbers go wrong more often."""


def learner_rates(level: int) -> dict[str, float]:
    """Slip rates of the learner at a level from 1 to 5."""
    shift = LEVEL_SLOPE * (level - 3)
    return {name: 1.0 / (1.0 + math.exp(-(math.log(rate / (1.0 - rate)) + shift))) for name, rate in SLIP_RATE.items()}


@dataclass
class Solver:
    """Writes the lines of one solution; `rng=None` never slips."""

    rng: random.Random | None = None
    rates: Mapping[str, float] = field(default_factory=lambda: SLIP_RATE)
    forced: frozenset[str] = frozenset()
    """Skills that slip for certain: planted errors of a known kind."""
    lines: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    slipped: list[str] = field(default_factory=list)
    largest: int = 1
    """Largest absolute value written, for the difficulty formula."""
    bad_lines: list[int] = field(default_factory=list)
    """Indices of the lines written right after a slip; the index of the answer line is `len(lines)`."""

    def holds(self, skill: str) -> bool:
        """Record a use of `skill` and say whether it is done rightly this time."""
        self.used.append(skill)
        wrong = skill in self.forced or (self.rng is not None and self.rng.random() < self.rates[skill])
        if wrong:
            self.slipped.append(skill)
            self.bad_lines.append(len(self.lines))
        return not wrong

    def write(self, line: str, *values: int) -> None:
        """Append one line and note the size of its values."""
        self.lines.append(line)
        self.largest = max([self.largest, *(abs(v) for v in values)])

    def add(self, a: int, b: int) -> int:
        """a + b; the wrong procedure forgets the carry out of the units.

        >>> s = Solver(forced=frozenset({"carry"})); s.add(47, 38), s.lines
        (75, ['47+38=75'])
        """
        value = a + b
        if a >= 0 and b >= 0 and a % 10 + b % 10 > 9 and not self.holds("carry"):
            value -= 10
        self.write(f"{a}+{b}={value}", a, b, value)
        return value

    def sub(self, a: int, b: int) -> int:
        """a - b; the wrong procedure takes the smaller unit from the larger instead of borrowing."""
        value = a - b
        if a >= b >= 0 and a % 10 < b % 10 and not self.holds("borrow"):
            value = (a // 10 - b // 10) * 10 + (b % 10 - a % 10)
        self.write(f"{a}-{b}={value}", a, b, value)
        return value

    def mul(self, a: int, b: int) -> int:
        """a * b; the wrong procedure reads the neighbouring row of the table."""
        value = a * b
        if abs(a) > 1 and abs(b) > 1 and not self.holds("table"):
            value = a * b - a
        self.write(f"{a}*{b}={value}", a, b, value)
        return value

    def div(self, a: int, b: int) -> int:
        """a / b rounded down; the wrong procedure is one off."""
        value = a // b
        if b > 1 and not self.holds("exact_division"):
            value += 1
        self.write(f"{a}/{b}={value}", a, b, value)
        return value

    def lowest_terms(self, top: int, bottom: int) -> str:
        """A fraction in lowest terms; the wrong procedure leaves it as it is."""
        common = math.gcd(top, bottom)
        if common > 1 and self.holds("reduce"):
            self.write(f"{top}/{bottom}={top // common}/{bottom // common}", top, bottom)
            top, bottom = top // common, bottom // common
        return f"{top}/{bottom}"


def difficulty(solver: Solver) -> float:
    """Difficulty label of a gold solution: steps, operand size and the skills it needs (ours).

    1 + 0.04 (lines - 1) + 0.1 log10(largest value) + sum of school weights of the distinct skills used.
    """
    skills = sum(SCHOOL_WEIGHT[name] for name in sorted(set(solver.used)))
    return round(1.0 + 0.04 * (len(solver.lines) - 1) + 0.1 * math.log10(solver.largest) + skills, 3)
