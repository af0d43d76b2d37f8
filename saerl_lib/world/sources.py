"""The embedded world: chains of one to eight operations, in the words of three sources and in splits of any size (ours).

Every topic uses the same five procedures, so that what is mended on one topic is mended on all. A slip is one fixed wrong
procedure; how often the learner slips hangs on the operation and the last digit of its operand, never on the topic. The paper
trains a policy whose weaknesses nobody can name; here each has a name and a rate.

The target source speaks of eight of the twelve topics; its unfiltered parent of all twelve, in other words and with planted
errors; the contest source holds long problems on a difficulty scale of its own. No single word settles the topic, and no habit
of wording the source. Splits are drawn in one fixed order, so that no normalised prompt occurs in two of them, or in the texts
that SAEs are trained on. With `WorldConfig.problems` short they hold short-answer arithmetic, for a real model as policy.
"""

from __future__ import annotations

import csv
import functools
import math
import operator
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, WorldConfig, sub_seed, to_dict
from saerl_lib.data.sample import Sample, normalise, write_samples

# Problems, and the slips of a learner.

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


class Step(NamedTuple):
    """One of `OPERATIONS`, its operand (the denominator of a fraction) and the numerator of a fraction, else 0."""

    operation: str
    amount: int
    part: int = 0


class Problem(NamedTuple):
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
        else:
            tried, least = (range(2, 10), SMALLEST) if name == "/" else ((3, 4, 5), 3)
            if divisors := [d for d in tried if value % d == 0 and value // d >= least]:
                amount = rng.choice(divisors)
                part = rng.randint(2, amount - 1) if name == "f" else 0
                return Step(name, amount, part), value // amount * (part or 1)


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
    """What the wrong procedure makes of `value`; None where it cannot go wrong. A sum forgets the carry, a difference takes the
    smaller unit from the larger, a product reads the neighbouring row of the table, a quotient is one off, a fraction stops after
    the division.

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
        right = {"+": value + amount, "-": abs(value - amount), "*": value * amount, "/": value // amount}
        value = wrong if wrong is not None else right["/"] * step.part if name == "f" else right[name]
        if name != "f" or wrong is None:
            work.lines.append(f"*{step.part}={value}" if name == "f" else f"{name}{amount}={value}")
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

# Words.


def _words() -> dict[str, dict[str, tuple[str, ...]]]:
    """Of words.csv: topic -> starts, nouns and, for each operation, phrases that stand before its operand."""
    with Path(__file__).with_name("words.csv").open(encoding="utf-8", newline="") as file:
        return {row.pop("topic"): {k: tuple(cell.split(", ")) for k, cell in row.items()} for row in csv.DictReader(file)}


TOPICS = _words()
"""Topic 'A -> B -> C', as DeepMath writes it -> its words, in a fixed order."""
GENERAL = TOPICS.pop("general")
OWN, NAMED = 0.4, 0.3
"""Chances that a word is the topic's own, and that the noun is named behind an operand."""
IDLE = ("The {} look fine", "Nobody counts the {}", "It rains on the {}", "Last year the {} were late", "A child draws the {}",
        "The {} are old")  # fmt: skip
"""Sentences that do not matter."""


class Habits(NamedTuple):
    """Wording habits of a source."""

    openers: tuple[str, ...]
    joints: tuple[str, ...]
    """Between two clauses."""
    questions: tuple[str, ...]
    idle: tuple[int, ...]
    """Numbers of idle sentences, equally likely."""


HABITS = {
    "target": Habits(
        ("", "", "", "Question: "), (", ", ", ", ", then "), ("How many are there now?", "How many is that?", "What is left?"),
        (0, 0, 1, 2),
    ),
    "parent": Habits(
        ("", "", "Question: ", "Problem: "), (", ", ", then ", " and "),
        ("How many are there now?", "Find the total.", "Work out the rest.", "What is left?"), (0, 1, 1, 2),
    ),
    "contest": Habits(
        ("", "Round: ", "Task: "), (", ", "; "), ("Give the exact number.", "State the total.", "What is left?"), (0, 1)
    ),
}  # fmt: skip
"""Sources share most phrases: none settles the source alone."""


def word(problem: Problem, topic: str, source: str, rng: random.Random) -> str:
    """The prompt of a problem in the words of a topic and with the habits of a source."""
    habits, own = HABITS[source], TOPICS[topic]

    def pick(kind: str) -> str:
        return rng.choice((own if rng.random() < OWN else GENERAL)[kind])

    joint = rng.choice(habits.joints)
    clauses = [f"{pick('starts')} {problem.start} {pick('nouns')}"]
    for step in problem.steps:
        operand = f"{step.part}/{step.amount}" if step.part else str(step.amount)
        named = f" {pick('nouns')}" if rng.random() < NAMED else ""
        clauses.append(f"{pick(step.operation)} {operand}{named}")
    told = joint.join(clauses) + "."
    every = list(TOPICS.values())
    for _ in range(rng.choice(habits.idle)):
        idle = rng.choice(IDLE).format(rng.choice(rng.choice(every)["nouns"])) + "."
        told = f"{idle} {told}" if rng.random() < 0.5 else f"{told} {idle}"
    return f"{rng.choice(habits.openers)}{told} {rng.choice(habits.questions)}"


# Short-answer arithmetic. Base pass rates of SmolLM2-135M-Instruct at temperature 1: products of digits 0.135, their sums 0.12,
# two-digit sums 0.01.

DIGITS, TWO_DIGITS = (2, 9), (10, 99)
COMBINE = {"+": operator.add, "-": operator.sub, "*": operator.mul}


class Kind(NamedTuple):
    """Operands of one size, joined by one operation."""

    sign: str
    size: tuple[int, int]
    """Smallest and largest operand."""
    level: int
    terms: int = 2


KINDS = {
    "Digits -> Sums -> Sum of digits": Kind("+", DIGITS, 1),
    "Digits -> Products -> Product of digits": Kind("*", DIGITS, 1),
    "Digits -> Sums -> Three digits": Kind("+", DIGITS, 2, 3),
    "Two-digit numbers -> Differences -> Difference": Kind("-", TWO_DIGITS, 2),
    "Two-digit numbers -> Sums -> Sum of two-digit numbers": Kind("+", TWO_DIGITS, 3),
    "Two-digit numbers -> Products -> Product of two-digit numbers": Kind("*", TWO_DIGITS, 4),
}
"""Topic -> how its problems are drawn; a difference is never negative."""
OPENERS = {
    "target": ("", "Question: ", "Quick: ", "Please help: "), "parent": ("", "Problem: ", "Next: "), "contest": ("Round: ", ""),
}  # fmt: skip
ASKED = {
    "target": ("What is {}?", "Calculate {}.", "{} =", "Find the value of {}.", "How much is {}?", "Work out {}."),
    "parent": ("{} =", "How much is {}?", "Work out {}.", "Simplify {}.", "Give {} as one number."),
    "contest": ("Determine {}.", "Find the value of {}.", "Evaluate {} exactly."),
}


def draw_short(
    topic: str, source: str, rng: random.Random, sample_id: str = "", slips: Rates | None = None, plant: bool = False
) -> Sample:
    """One sample: a line and its answer, which a slip or a planted error spoils. Its difficulty label is the level of the kind
    and, behind the point, the size of the largest operand; the contest grades by the size of the result.

    >>> short = draw_short("Digits -> Products -> Product of digits", "target", random.Random(0))
    >>> short.prompt, short.answer, short.difficulty
    ('8 * 8 =', '64', 1.8)
    """
    kind = KINDS[topic]
    values = [rng.randint(*kind.size) for _ in range(kind.terms)]
    if kind.sign == "-":
        values.sort(reverse=True)
    value, written = functools.reduce(COMBINE[kind.sign], values), f" {kind.sign} ".join(map(str, values))
    label = kind.level + max(values) / (kind.size[1] + 1) if source != "contest" else 2 + 2.5 * math.log10(value + 1)
    prompt = rng.choice(OPENERS[source]) + rng.choice(ASKED[source]).format(written)
    wrong = plant and source == "parent" and rng.random() < FLAW_SHARE
    if slips is not None:
        wrong = rng.random() < slips[kind.sign, values[-1] % 10]
    value += rng.randint(1, 9) if wrong else 0
    flaw, labels = ("wrong_step", (-1, 0)) if wrong else ("", (1, 1))
    return Sample(sample_id, prompt, (f"{written} = {value}",), str(value), topic, round(label, 3), source, flaw, labels)


# Samples.

FLAWS = ("wrong_answer", "missing_premise", "contradiction", "truncated_solution", "wrong_step")
TARGET_SHARE = 103_022 / 210_043
"""Share of the target source in the noisy pool (paper, Table 6)."""
FLAW_SHARE = 0.3
"""Share of the parent source with one planted error."""
STEP_SLIPS, MILD_SLIPS = even_rates(0.3), even_rates(0.1)
"""Slips of the step-labelled solutions and of the SAE's texts: every procedure alike."""
EVERY = tuple(TOPICS)
OUTSIDE = EVERY[2::3]
"""Topics that the target source does not speak of: the last of each domain."""
TRAINED = tuple(topic for topic in EVERY if topic not in OUTSIDE)
Text = tuple[str, str]
"""A prompt and its solution."""


class Mix(NamedTuple):
    """What a split draws from: each of topics, lengths and sizes with equal odds; one named twice weighs twice."""

    source: str
    topics: tuple[str, ...]
    lengths: tuple[int, ...] = LENGTHS
    sizes: tuple[int, ...] = SIZES


TARGET = Mix("target", TRAINED)
PARENT = Mix("parent", TRAINED * 2 + EVERY)
CONTEST = Mix("contest", EVERY, LENGTHS[2:], (0, 1, 1))


def draw_sample(mix: Mix, rng: random.Random, sample_id: str, slips: Rates | None = None, plant: bool = True) -> Sample:
    """One sample of a mix; with `slips` the solution is a learner's. With `plant` a share of the parent's has a planted error."""
    topic = rng.choice(mix.topics)
    if topic in KINDS:
        return draw_short(topic, mix.source, rng, sample_id, slips, plant)
    length, size = rng.choice(mix.lengths), rng.choice(mix.sizes)
    problem = draw_problem(rng, length, size)
    prompt = word(problem, topic, mix.source, rng)
    label = contest_scale(problem) if mix.source == "contest" else difficulty(problem)
    work, flaw = work_out(problem) if slips is None else work_out(problem, learner(rng, slips)), ""
    if slips is not None:
        flaw = "wrong_step" if work.bad_lines else ""
    elif plant and mix.source == "parent" and rng.random() < FLAW_SHARE:
        flaw, steps = rng.choice(FLAWS), fallible(problem)
        if flaw == "wrong_step" and not steps:
            flaw = "wrong_answer"
        if flaw == "wrong_step":
            place = rng.choice(steps)
            work = work_out(problem, lambda number, step: number == place)
        elif flaw == "wrong_answer":
            work.answer += rng.randint(1, 9)
        elif flaw == "missing_premise":
            start, end = rng.choice(list(re.finditer(r"\d+(/\d+)?", prompt))).span()
            prompt = prompt[:start] + "some" + prompt[end:]
        elif flaw == "contradiction":
            prompt += f" The result is {work.answer + rng.randint(1, 40)}."
        else:
            work.lines = work.lines[: len(work.lines) // 2]
    return Sample(sample_id, prompt, tuple(work.lines), str(work.answer), topic, label, mix.source, flaw, step_labels(work))


FEW = 5_000
"""Tries in a row without a new prompt after which a split cannot be filled."""


def draw_split(
    name: str, count: int, mix: Mix, seed: int, taken: set[str], slips: Rates | None = None, plant: bool = True
) -> list[Sample]:
    """`count` samples with distinct normalised prompts that are not in `taken`, which is extended. Raises ValueError when the mix
    has no further prompt."""
    rng, tries = random.Random(sub_seed(seed, name)), 0
    samples: list[Sample] = []
    while len(samples) < count:
        sample, tries = draw_sample(mix, rng, f"{name}-{len(samples):05d}", slips, plant), tries + 1
        key = normalise(sample.prompt)
        if key not in taken:
            taken.add(key)
            samples.append(sample)
            tries = 0
        elif tries == FEW:
            raise ValueError(f"{name}: {len(samples)} of {count} problems are drawn and there are no more: ask for fewer")
    return samples


CORPUS_SEED, CORPUS_TEXTS = 29, 4000


def corpus_texts() -> Iterator[Text]:
    """The world's texts that SAEs may be trained on, of every source, with few slips in their solutions; no split holds them."""
    rng = random.Random(sub_seed(CORPUS_SEED, "corpus"))
    for number in range(CORPUS_TEXTS):
        sample = draw_sample((TARGET, PARENT, CONTEST)[number % 3], rng, "", MILD_SLIPS)
        yield sample.prompt, sample.solution


@functools.cache
def corpus_prompts() -> frozenset[str]:
    """Normalised prompts that the splits avoid."""
    return frozenset(normalise(prompt) for prompt, _ in corpus_texts())


def learner_text(rng: random.Random) -> Text:
    """A prompt of any topic and source with a learner's solution: what the policy is pre-trained on."""
    length = rng.choices(LENGTHS, LEARNER_LENGTHS)[0]
    sample = draw_sample(Mix(rng.choice(tuple(HABITS)), EVERY, (length,)), rng, "", LEARNER_RATES)
    return sample.prompt, sample.solution


EVAL_SETS = {
    "easy_a": Mix("target", TRAINED, (1, 2)), "easy_b": Mix("target", OUTSIDE, (1, 2)),
    "mid_a": Mix("target", TRAINED, (3, 4)), "mid_b": Mix("parent", OUTSIDE, (3, 4)),
    "hard": Mix("target", EVERY, (5, 6, 7, 8)), "hardest": Mix("contest", EVERY, (7, 8), (1,)),
}  # fmt: skip
"""Short and middle problems in (a) and outside (b) the training topics, long ones, and the longest with large numbers, scored by
Pass@k, after the paper's six benchmarks (section C.3)."""
SHORT = tuple(KINDS)
SHORT_SETS = {name: Mix("target", (topic,)) for name, topic in zip(EVAL_SETS, SHORT, strict=True)}
MIXES = {"chains": (TARGET, PARENT, CONTEST, EVAL_SETS), "target": (TARGET, TARGET, CONTEST, EVAL_SETS),
         "short": (Mix("target", SHORT), Mix("parent", SHORT), Mix("contest", SHORT[2:]), SHORT_SETS)}  # fmt: skip
"""`WorldConfig.problems` -> target, parent, contest and evaluation sets; those of short-answer arithmetic hold one kind each."""


def lesson(count: int, seed: int, topic: str) -> list[Sample]:
    """Distinct problems of one kind of short-answer arithmetic. Raises ValueError when there are no more."""
    return draw_split("lesson", count, Mix("target", (topic,)), seed, set())


def draw_world(config: WorldConfig) -> dict[str, list[Sample]]:
    """All splits: evaluation sets first, then labelled data, then the noisy pool. The six evaluation sets are drawn at full size;
    during training their first problems are used. `labelled` is L, disjoint from `pool`; `filter_negatives` are parent samples
    that train and place the quality filter; `pool` mixes target and parent in the paper's proportion (Table 6)."""
    taken, seed = set(corpus_prompts()), config.seed
    target, parent, contest, sets = MIXES[config.problems]
    full, draw = config.eval_problems_full, functools.partial(draw_split, seed=seed, taken=taken, plant=False)
    splits = {f"eval_{name}": draw(f"eval-{name}", full, mix) for name, mix in sets.items()}
    splits["labelled"] = draw_split("labelled", config.labelled_samples, target, seed, taken)
    splits["test"] = draw_split("test", config.test_samples, target, seed, taken)
    splits["filter_negatives"] = draw_split("parent", config.labelled_samples, parent, seed, taken)
    splits["contest_train"] = draw_split("contest-train", config.contest_train_samples, contest, seed, taken)
    splits["contest_test"] = draw_split("contest-test", config.contest_test_samples, contest, seed, taken)
    splits["step_labelled"] = draw_split("steps", config.step_labelled_samples, target, seed, taken, STEP_SLIPS)
    inside = round(config.noisy_pool_samples * TARGET_SHARE)
    pool = draw_split("pool-target", inside, target, seed, taken)
    pool += draw_split("pool-parent", config.noisy_pool_samples - inside, parent, seed, taken)
    random.Random(sub_seed(seed, "pool-order")).shuffle(pool)
    splits["pool"] = pool
    return splits


def world_stage(profile: Profile) -> Stage:
    """Draw the world of a profile, one `<split>.parquet` a split."""

    def compute(folder: Path) -> None:
        for name, samples in draw_world(profile.world).items():
            write_samples(samples, folder / f"{name}.parquet")

    return get_or_compute(profile, "world", to_dict(profile.world), compute)
