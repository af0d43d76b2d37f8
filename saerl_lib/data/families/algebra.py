"""Algebra: equations, sequences, substitution."""

from __future__ import annotations

import random

from saerl_lib.data.families.base import Family, Task, factor, two_digit
from saerl_lib.data.skills import Solver


def linear_equation(rng: random.Random, level: int) -> Task:
    """x/a + b = c, solved for x."""
    a, b = factor(rng, min(level, 4)), rng.randint(4, 12 + 4 * level)
    c = b + rng.randint(5, 10 + 6 * level)

    def solve(s: Solver) -> int:
        return s.mul(s.sub(c, b) if s.holds("transpose") else s.add(c, b), a)

    return Task(
        (f"x/{a}+{b}={c}", f"{b}+x/{a}={c}, x"),
        (
            f"A heap is cut in {a}, then {b} come in and {c} are there. How many in the heap",
            f"Which x cut in {a} plus {b} makes {c}",
        ),
        solve,
    )


def sequence(rng: random.Random, level: int) -> Task:
    """The n-th term of an arithmetic sequence: n - 1 steps."""
    first, step, n = two_digit(rng, min(level, 3)), factor(rng, min(level, 4)), rng.randint(5, 10 + 4 * level)

    def solve(s: Solver) -> int:
        steps = s.sub(n, 1) if s.holds("off_by_one") else n
        return s.add(first, s.mul(steps, step))

    second = first + step
    return Task(
        (f"{first},{second},{second + step},..., term {n}", f"term {n}: {first},{second},{second + step},..."),
        (
            f"Row 1 has {first} beads, each row {step} more. How many in row {n}",
            f"Begin with {first}, each term {step} more. Which is term {n}",
        ),
        solve,
    )


def substitution(rng: random.Random, level: int) -> Task:
    """x^2 + b x at a negative x: the square is positive."""
    k, b = rng.randint(3, 7 + level), rng.randint(2, 4 + level)
    c = rng.randint(5, 20 + 10 * level)

    def solve(s: Solver) -> int:
        square = s.mul(k, k)
        value = square if s.holds("sign_of_square") else -square
        s.write(f"(-{k})^2={value}", value)
        return s.add(s.sub(value, s.mul(b, k)), c)

    return Task(
        (f"x=-{k}: x^2+{b}x+{c}", f"x^2+{b}x+{c}, x=-{k}"),
        (f"Put x=-{k} into x^2+{b}x+{c}", f"Work out x times x plus {b} times x plus {c} for x=-{k}"),
        solve,
    )


ALGEBRA = (
    Family("linear_equation", ("Algebra", "Equations", "Linear equations"), linear_equation, 0.6),
    Family("sequence", ("Algebra", "Sequences", "Arithmetic sequences"), sequence, 0.5),
    Family("substitution", ("Algebra", "Equations", "Substitution"), substitution, 0.6),
)
