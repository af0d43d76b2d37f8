"""Leaf families of the embedded world, by domain; `FAMILIES` is the registry.

Skills: the steps of a worked solution, each done rightly or by one fixed wrong procedure.

Family code is written once and calls these methods. With no slips the lines are the gold solution; with slip rates
they are what a learner writes who has not yet mended those skills, and later steps build on the wrong value. Ours:
the paper trains on a policy whose weaknesses nobody can name; here every weakness has a name and a rate.

What a leaf family is: a topic path and a rule that draws tasks of five levels.

Arithmetic: sums and differences, order of operations, brackets.

Ratios: fractions and percent.

Algebra: equations, sequences, substitution.

Number theory: division with remainder, common divisors and multiples, congruences.

Statistics: counting pairs, mean, median and range.

Geometry and measures: perimeter, area, angles, time, units.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
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


FAMILIES: dict[str, Family] = {
    family.name: family for family in (*ARITHMETIC, *RATIOS, *ALGEBRA, *NUMBER_THEORY, *STATISTICS, *GEOMETRY)
}
"""Every leaf family by its short name, in a fixed order."""
