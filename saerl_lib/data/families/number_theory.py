"""Number theory: division with remainder, common divisors and multiples, congruences."""

from __future__ import annotations

import math
import random

from saerl_lib.data.families.base import Family, Task, factor
from saerl_lib.data.skills import Solver


def remainder(rng: random.Random, level: int) -> Task:
    """Quotient and remainder, written '13 r 4'."""
    b = factor(rng, min(level + 1, 5))
    a = b * rng.randint(4, 9 + 3 * level) + rng.randint(1, b - 1)

    def solve(s: Solver) -> str:
        quotient = a // b
        rest = s.sub(a, s.mul(quotient, b))
        if not s.holds("remainder"):
            rest = s.sub(b, rest)
        return f"{quotient} r {rest}"

    return Task(
        (f"{a}:{b}, r", f"{a} r {b}"),
        (
            f"{a} beads go into bags of {b}. How many bags and how many are left",
            f"Cut {a} in {b} equal heaps. How many in each and what is left",
        ),
        solve,
    )


def common_multiple(rng: random.Random, level: int) -> Task:
    """Greatest common divisor and least common multiple, written '12, 144'."""
    common = rng.randint(2, 4 + 2 * level)
    p, q = rng.choice(((2, 3), (3, 2), (3, 4), (2, 5), (3, 5), (4, 5), (5, 3), (5, 2), (4, 3), (2, 7), (3, 7))[: 5 + level])
    a, b = common * p, common * q

    def solve(s: Solver) -> str:
        x, y = max(a, b), min(a, b)
        while x % y:
            s.write(f"{x}%{y}={x % y}", x)
            x, y = y, x % y
        s.write(f"{x}%{y}=0", x)
        if not s.holds("common_multiple"):
            return f"{y}, {s.mul(a, b)}"
        return f"{y}, {s.mul(s.div(a, y), b)}"

    assert math.gcd(a, b) == common
    return Task(
        (f"({a},{b}), [{a},{b}]", f"[{a},{b}] and ({a},{b})"),
        (
            f"Greatest shared divisor and least shared multiple of {a} and {b}",
            f"Bags of {a} and bags of {b}: the largest equal heaps, and when both meet",
        ),
        solve,
    )


def congruence(rng: random.Random, level: int) -> Task:
    """The smallest number above a bound with a given remainder."""
    m = rng.randint(5, 7 + level)
    bound, rest = rng.randint(30 + 20 * level, 99 + 60 * level), rng.randint(0, m - 1)

    def solve(s: Solver) -> int:
        have = bound % m
        s.write(f"{bound}%{m}={have}", bound)
        gap = rest - have
        s.write(f"{rest}-{have}={gap}", rest)
        if gap <= 0:
            gap = s.add(gap, m) if s.holds("wrap") else -gap
        return s.add(bound, gap)

    return Task(
        (f"x>{bound}, x%{m}={rest}", f"x%{m}={rest}, x>{bound}"),
        (
            f"Bags of {m}, {rest} are left, more than {bound} beads. How many at least",
            f"Least number above {bound} with {rest} left when cut in {m}",
        ),
        solve,
    )


NUMBER_THEORY = (
    Family("remainder", ("Number theory", "Divisibility", "Division with remainder"), remainder, 0.5),
    Family("common_multiple", ("Number theory", "Divisibility", "Common multiples"), common_multiple, 0.6),
    Family("congruence", ("Number theory", "Congruences", "Least solution"), congruence, 0.5),
)
