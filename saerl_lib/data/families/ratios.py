"""Ratios: fractions and percent."""

from __future__ import annotations

import math
import random

from saerl_lib.data.families.base import Family, Task, two_digit
from saerl_lib.data.skills import Solver


def fraction_sum(rng: random.Random, level: int) -> Task:
    """a/b + c/d over the least common denominator, in lowest terms."""
    bottoms = ((4, 8), (6, 9), (6, 12), (8, 12), (9, 12), (10, 15), (12, 18), (4, 6), (15, 20), (14, 21))
    b, d = rng.choice(bottoms[: 4 + level + 1])
    if rng.random() < 0.5:
        b, d = d, b
    a, c = rng.randint(1, b + 4 * level), rng.randint(1, d + 4 * level)
    common = math.lcm(b, d)

    def solve(s: Solver) -> str:
        if not s.holds("common_denominator"):
            s.write(f"({a}+{c})/({b}+{d})={a + c}/{b + d}", a + c, b + d)
            return s.lowest_terms(a + c, b + d)
        first, second = a * common // b, c * common // d
        s.write(f"{a}/{b}={first}/{common}", first, common)
        s.write(f"{c}/{d}={second}/{common}", second, common)
        s.write(f"{first}+{second}={first + second}", first + second)
        return s.lowest_terms(first + second, common)

    return Task(
        (f"{a}/{b}+{c}/{d}", f"the value of {a}/{b}+{c}/{d}"),
        (f"A jug holds {a}/{b} and a cup {c}/{d} of a litre. How much in all", f"Work out {a}/{b} plus {c}/{d}"),
        solve,
    )


def part_of_amount(rng: random.Random, level: int) -> Task:
    """p/q of an amount."""
    q = rng.randint(3, 5 + level)
    p, unit = rng.randint(2, q - 1), rng.randint(4, 9 + 4 * level)
    amount = q * unit

    def solve(s: Solver) -> int:
        share = s.div(amount, q)
        return s.mul(share, p) if s.holds("part_of_amount") else share

    return Task(
        (f"{amount}*{p}/{q}", f"{p}/{q} of {amount}"),
        (
            f"{p}/{q} of {amount} beads go out. How many are those",
            f"A bag of {amount} is cut in {q} equal heaps. How many in {p} heaps",
        ),
        solve,
    )


def percent_change(rng: random.Random, level: int) -> Task:
    """An amount grows or shrinks by a multiple of ten percent."""
    amount = 10 * rng.randint(3 + level, 12 + 6 * level)
    tens = rng.randint(1, 4 + level)
    up = rng.random() < 0.5 or tens > 7

    def solve(s: Solver) -> int:
        change = s.mul(s.div(amount, 10), tens)
        if not s.holds("percent_base"):
            return change
        return s.add(amount, change) if up else s.sub(amount, change)

    sign, verb = ("+", "rises") if up else ("-", "falls")
    return Task(
        (f"{amount}{sign}{tens}0%", f"the value of {amount}{sign}{tens}0%"),
        (f"The price of a bag is {amount} and {verb} by {tens}0%. How much is it then", f"{amount} {verb} by {tens}0%"),
        solve,
    )


def proportion(rng: random.Random, level: int) -> Task:
    """If n bags cost x, what do m bags cost: through one bag."""
    n, m, one = rng.randint(3, 6 + level), rng.randint(2, 8 + level), two_digit(rng, min(level, 2))

    def solve(s: Solver) -> int:
        return s.mul(s.div(n * one, n), m)

    return Task(
        (f"{n}:{n * one}={m}:x", f"{m}:x={n}:{n * one}"),
        (f"{n} bags cost {n * one}. How much do {m} bags cost", f"{n} equal heaps hold {n * one} beads. How many in {m} heaps"),
        solve,
    )


RATIOS = (
    Family("fraction_sum", ("Ratios", "Fractions", "Adding fractions"), fraction_sum, 0.6),
    Family("part_of_amount", ("Ratios", "Fractions", "Part of an amount"), part_of_amount, 0.5),
    Family("percent_change", ("Ratios", "Percent", "Percent change"), percent_change, 0.5),
    Family("proportion", ("Ratios", "Percent", "Proportion"), proportion, 0.4),
)
