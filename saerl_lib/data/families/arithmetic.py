"""Arithmetic: sums and differences, order of operations, brackets."""

from __future__ import annotations

import random

from saerl_lib.data.families.base import Family, Task, factor, two_digit
from saerl_lib.data.skills import Solver


def chain(rng: random.Random, level: int) -> Task:
    """a + b - c ..., two to four terms."""
    terms = [two_digit(rng, level) for _ in range((2, 2, 3, 3, 4)[level - 1])]
    signs, total = [], terms[0]
    for term in terms[1:]:
        signs.append("-" if total - term > 5 and rng.random() < 0.5 else "+")
        total += term if signs[-1] == "+" else -term

    def solve(s: Solver) -> int:
        value = terms[0]
        for sign, term in zip(signs, terms[1:], strict=True):
            value = s.add(value, term) if sign == "+" else s.sub(value, term)
        return value

    bare = str(terms[0]) + "".join(f"{sign}{term}" for sign, term in zip(signs, terms[1:], strict=True))
    moves = ", then ".join(
        f"{term} {'come in' if sign == '+' else 'go out'}" for sign, term in zip(signs, terms[1:], strict=True)
    )
    talk = ", then ".join(f"{'add' if sign == '+' else 'take away'} {term}" for sign, term in zip(signs, terms[1:], strict=True))
    return Task(
        (f"{bare}", f"the value of {bare}"),
        (f"A box holds {terms[0]} beads; {moves}. How many are left", f"Begin with {terms[0]}, {talk}"),
        solve,
    )


def precedence(rng: random.Random, level: int) -> Task:
    """a + b * c: the product comes first."""
    a, b, c = two_digit(rng, min(level, 3)), factor(rng, level), factor(rng, level)

    def solve(s: Solver) -> int:
        return s.add(a, s.mul(b, c)) if s.holds("precedence") else s.mul(s.add(a, b), c)

    return Task(
        (f"{a}+{b}*{c}", f"the value of {a}+{b}*{c}"),
        (f"A box holds {a} beads and {b} bags of {c} come in. How many are left", f"Work out {a} plus {b} times {c}"),
        solve,
    )


def brackets(rng: random.Random, level: int) -> Task:
    """a * (b + c) or a * (b - c): the bracket comes first."""
    a, b, c = factor(rng, min(level, 4)), two_digit(rng, min(level, 3)), rng.randint(4, 19)
    minus = b > c + 3 and rng.random() < 0.5
    sign, word = ("-", "minus") if minus else ("+", "plus")

    def solve(s: Solver) -> int:
        if s.holds("brackets"):
            return s.mul(s.sub(b, c) if minus else s.add(b, c), a)
        return s.sub(s.mul(b, a), c) if minus else s.add(s.mul(b, a), c)

    gone = f"{c} {'go out' if minus else 'come in'}"
    return Task(
        (f"{a}*({b}{sign}{c})", f"the value of ({b}{sign}{c})*{a}"),
        (
            f"Each of {a} bags holds {b} beads; then {gone} of each. How many in all",
            f"Work out {b} {word} {c}, all of it times {a}",
        ),
        solve,
    )


def double_negative(rng: random.Random, level: int) -> Task:
    """a - (b - c): the sign of c turns."""
    a, b, c = two_digit(rng, min(level + 1, 4)) + 60, two_digit(rng, min(level, 2)) + 10, rng.randint(3, 20)

    def solve(s: Solver) -> int:
        value = s.sub(a, b)
        return s.add(value, c) if s.holds("double_negative") else s.sub(value, c)

    return Task(
        (f"{a}-({b}-{c})", f"the value of {a}-({b}-{c})"),
        (f"Of {a} beads a box should lose {b}, but {c} fewer go out. How many are left", f"Take {b} minus {c} away from {a}"),
        solve,
    )


ARITHMETIC = (
    Family("chain", ("Arithmetic", "Integers", "Sums and differences"), chain, 0.6),
    Family("precedence", ("Arithmetic", "Expressions", "Order of operations"), precedence, 0.6),
    Family("brackets", ("Arithmetic", "Expressions", "Brackets"), brackets, 0.6),
    Family("double_negative", ("Arithmetic", "Integers", "Double negatives"), double_negative, 0.6),
)
