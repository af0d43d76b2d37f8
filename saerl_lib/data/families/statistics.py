"""Statistics: counting pairs, mean, median and range."""

from __future__ import annotations

import random

from saerl_lib.data.families.base import Family, Task, two_digit
from saerl_lib.data.skills import Solver


def pairs(rng: random.Random, level: int) -> Task:
    """Unordered pairs of n things, plus a few more."""
    n, extra = rng.randint(5, 10 + 5 * level), rng.randint(3, 20 + 10 * level)

    def solve(s: Solver) -> int:
        ordered = s.mul(n, s.sub(n, 1))
        return s.add(s.div(ordered, 2) if s.holds("unordered") else ordered, extra)

    return Task(
        (f"C({n},2)+{extra}", f"{extra}+C({n},2)"),
        (
            f"Each two of {n} teams meet once, and {extra} more games come in. How many in all",
            f"How many heaps of two from {n} beads, plus {extra}",
        ),
        solve,
    )


def mean(rng: random.Random, level: int) -> Task:
    """The mean of three to five numbers."""
    count = (3, 3, 4, 4, 5)[level - 1]
    values = [two_digit(rng, min(level, 3)) for _ in range(count - 1)]
    values.append(20 + (-sum(values) - 20) % count + count * rng.randint(0, 8))

    def solve(s: Solver) -> int:
        total = values[0]
        for value in values[1:]:
            total = s.add(total, value)
        return s.div(total, count) if s.holds("mean_divide") else total

    row = ",".join(map(str, values))
    return Task(
        (f"E({row})", f"the value of E[{row}]"),
        (f"{count} bags hold {row} beads, then all are made equal. How many in each", f"What is the mean of {row}"),
        solve,
    )


def median(rng: random.Random, level: int) -> Task:
    """Median and range of five numbers, written '33, 57'."""
    values = rng.sample(range(11, (40, 60, 80, 99, 160)[level - 1]), 3 if level < 2 else 5)

    def solve(s: Solver) -> str:
        row = sorted(values) if s.holds("sort") else list(values)
        s.write(" ".join(map(str, row)), *row)
        return f"{row[len(row) // 2]}, {s.sub(row[-1], row[0])}"

    row = ",".join(map(str, values))
    return Task(
        (f"M({row}), R({row})", f"M and R of {row}"),
        (
            f"Heaps of {row} beads stand in order of size. Which is in the middle, and by how much do the ends differ",
            f"What are the median and the range of {row}",
        ),
        solve,
    )


STATISTICS = (
    Family("pairs", ("Statistics", "Counting", "Pairs"), pairs, 0.5),
    Family("mean", ("Statistics", "Averages", "Mean"), mean, 0.5),
    Family("median", ("Statistics", "Averages", "Median and range"), median, 0.5),
)
