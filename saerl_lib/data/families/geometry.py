"""Geometry and measures: perimeter, area, angles, time, units."""

from __future__ import annotations

import random

from saerl_lib.data.families.base import Family, Task, factor, two_digit
from saerl_lib.data.skills import Solver


def perimeter(rng: random.Random, level: int) -> Task:
    """2 (a + b)."""
    a, b = two_digit(rng, min(level, 4)), two_digit(rng, min(level, 4))

    def solve(s: Solver) -> int:
        half = s.add(a, b)
        return s.mul(half, 2) if s.holds("double") else half

    return Task(
        (f"O({a}x{b})", f"the value of O: {a}x{b}"),
        (f"A field is {a} by {b}. How long is the way round it", f"Work out the edge all round a box of {a} by {b}"),
        solve,
    )


def triangle_area(rng: random.Random, level: int) -> Task:
    """b * h / 2."""
    base, height = 2 * factor(rng, min(level + 1, 5)), factor(rng, min(level + 1, 5)) + level

    def solve(s: Solver) -> int:
        product = s.mul(base, height)
        return s.div(product, 2) if s.holds("half") else product

    return Task(
        (f"T({base}x{height})", f"the value of T: {base}x{height}"),
        (
            f"A field with three sides has base {base} and height {height}. How much land is it",
            f"Area of a triangle, {base} by {height}",
        ),
        solve,
    )


def angles(rng: random.Random, level: int) -> Task:
    """The third angle of a triangle."""
    a, b = rng.randint(21, 60 + 4 * level), rng.randint(22, 70 + 4 * level)

    def solve(s: Solver) -> int:
        total = 180 if s.holds("angle_sum") else 360
        return s.sub(total, s.add(a, b))

    return Task(
        (f"T<{a},{b},x>", f"T<x,{a},{b}>, x"),
        (f"A field with three sides turns by {a} and {b} inside. What is left", f"Third angle of a triangle with {a} and {b}"),
        solve,
    )


def clock(rng: random.Random, level: int) -> Task:
    """A time of day plus minutes, written '14:35'."""
    hour, minute, span = rng.randint(1, 21), rng.randint(1, 59), rng.randint(12, 19 + 8 * level)

    def solve(s: Solver) -> str:
        h, total = hour, s.add(minute, span)
        if total >= 60:
            total = s.sub(total, 60)
            if s.holds("base_sixty"):
                h = s.add(h, 1)
        return f"{h}:{max(total, 0):02d}"

    return Task(
        (f"{hour}:{minute:02d}+{span}", f"the value of {hour}:{minute:02d}+0:{span}"),
        (
            f"A game begins at {hour}:{minute:02d} and takes {span}. When is it over",
            f"It is {hour}:{minute:02d}. What time in {span} more",
        ),
        solve,
    )


def lengths(rng: random.Random, level: int) -> Task:
    """Metres and centimetres, in centimetres."""
    metres, extra = rng.randint(2, 9 + 6 * level), rng.randint(3, 95)
    more = two_digit(rng, min(level, 3))

    def solve(s: Solver) -> int:
        whole = s.mul(metres, 100 if s.holds("unit_factor") else 10)
        return s.add(s.add(whole, extra), more)

    return Task(
        (f"{metres}m{extra}+{more}", f"the value of {more}+{metres}m{extra}"),
        (
            f"A field is {metres} m and {extra} cm long and {more} cm come in. How long is it then",
            f"Work out {metres} m {extra} plus {more} in cm",
        ),
        solve,
    )


GEOMETRY = (
    Family("perimeter", ("Geometry", "Plane figures", "Perimeter"), perimeter, 0.5),
    Family("triangle_area", ("Geometry", "Plane figures", "Triangle area"), triangle_area, 0.5),
    Family("angles", ("Geometry", "Plane figures", "Angles"), angles, 0.5),
    Family("clock", ("Geometry", "Measures", "Clock"), clock, 0.5),
    Family("lengths", ("Geometry", "Measures", "Lengths"), lengths, 0.5),
)
