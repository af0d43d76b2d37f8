"""The embedded world: samples of three sources in their own words, in splits of any size, deterministic from a seed.

The target source speaks of eight of the twelve topics; its unfiltered parent of all twelve, in other words and with planted
errors; the contest source holds long problems on a difficulty scale of its own. A prompt is an opener, a start, one clause an
operation, sentences that do not matter, and a question. Each word is the topic's own or a general one, and the idle sentences
speak of any topic's things, so that no single word settles the topic, and no habit of wording the source.

Splits are drawn in one fixed order, so that no normalised prompt occurs in two of them, or in the texts that SAEs are trained on.
With `WorldConfig.problems` short the same splits hold short-answer arithmetic, for a real language model as policy.
"""

from __future__ import annotations

import functools
import math
import operator
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, WorldConfig, sub_seed, to_dict
from saerl_lib.data.sample import Sample, normalise, write_samples
from saerl_lib.world.problems import (
    LEARNER_LENGTHS,
    LEARNER_RATES,
    LENGTHS,
    OPERATIONS,
    SIZES,
    Problem,
    Rates,
    contest_scale,
    difficulty,
    draw_problem,
    even_rates,
    fallible,
    learner,
    step_labels,
    work_out,
)

# Words.

TABLE = """
Nature -> Gardens -> Orchard      | An orchard has, The trees bear | apples, pears | ripens, grows | drops, feeds birds
 | blooms times, yields times | is basketed by, is rowed by | sends off, picks
Nature -> Gardens -> Greenhouse   | A greenhouse has, The beds hold | seedlings, tulips | sows, plants | wilts, repots
 | sprouts times, seeds times | is potted by, is bedded by | waters, blossoms
Nature -> Animals -> Apiary       | An apiary has, The hives keep | bees, combs | hatches, swarms in | swarms off, freezes
 | breeds times, buzzes times | is hived by, is framed by | feeds, shelters
Trade -> Shops -> Bakery          | A bakery has, The oven holds | rolls, cakes | bakes, kneads | burns, eats up
 | doughs times, serves times | is trayed by, is sliced by | ices, glazes
Trade -> Shops -> Bookshop        | A bookshop has, The shelves show | novels, maps | orders, reprints | lends, sells off
 | prints times, copies times | is shelved by, is bundled by | stamps, reviews
Trade -> Freight -> Harbour       | A harbour has, The ship carries | crates, barrels | loads, lands | unloads, sinks
 | hauls times, ferries times | is decked by, is docked by | ships, moors
Leisure -> Games -> Marbles       | A player has, The ring holds | marbles, points | wins, scores | forfeits, misses
 | stakes times, raises times | is dealt by, is teamed by | banks, pockets
Leisure -> Games -> Stamps        | An album has, The pages show | stamps, coins | collects, swaps in | swaps out, tears
 | doubles up times, reissues times | is paged by, is sorted by | mounts, frames
Leisure -> Stage -> Theatre       | A theatre has, The rows seat | tickets, guests | books, invites | refunds, cancels
 | tours times, plays times | is rowed up by, is boxed by | claps, admits
Works -> Materials -> Quarry      | A quarry has, The pit gives | stones, slabs | digs, blasts | crushes, rejects
 | drills times, quarries times | is carted by, is piled by | polishes, cuts
Works -> Materials -> Sawmill     | A sawmill has, The yard stacks | planks, logs | saws, fells | warps, splinters
 | planes times, mills times | is stacked by, is strapped by | sands, dries
Works -> Energy -> Depot          | A depot has, The tank stores | litres, cans | pumps in, fills | leaks, pumps out
 | refines times, heats times | is tanked by, is piped by | seals, meters
"""
"""Path | starts | nouns | one column of verbs an operation, in the order of `OPERATIONS`; two of each."""


class Words(NamedTuple):
    """The words of one topic, or the general ones."""

    starts: tuple[str, ...]
    nouns: tuple[str, ...]
    verbs: dict[str, tuple[str, ...]]
    """Operation -> phrases that stand before its operand."""


def _words(cells: str) -> Words:
    starts, nouns, *verbs = (tuple(word.strip() for word in cell.split(",")) for cell in cells.split("|"))
    return Words(starts, nouns, dict(zip(OPERATIONS, verbs, strict=True)))


TOPICS: dict[str, Words] = {
    row.partition("|")[0].strip(): _words(row.partition("|")[2]) for row in TABLE.replace("\n |", " |").strip().split("\n")
}
"""Topic 'A -> B -> C', as DeepMath writes it -> its words, in a fixed order."""
GENERAL = _words(
    "There are, A store has, We count | pieces, items, things | adds, gains, gets | loses, gives away, drops out"
    " | is taken times, multiplies by, is scaled by | is divided by, is split by, is shared by | keeps, is cut to, holds on to"
)
OWN = 0.4
"""Chance that a word is the topic's own."""
NAMED = 0.3
"""Chance that the noun is named behind an operand."""
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

    def pick() -> Words:
        return own if rng.random() < OWN else GENERAL

    joint = rng.choice(habits.joints)
    clauses = [f"{rng.choice(pick().starts)} {problem.start} {rng.choice(pick().nouns)}"]
    for step in problem.steps:
        operand = f"{step.part}/{step.amount}" if step.part else str(step.amount)
        named = f" {rng.choice(pick().nouns)}" if rng.random() < NAMED else ""
        clauses.append(f"{rng.choice(pick().verbs[step.operation])} {operand}{named}")
    told = joint.join(clauses) + "."
    every = list(TOPICS.values())
    for _ in range(rng.choice(habits.idle)):
        idle = rng.choice(IDLE).format(rng.choice(rng.choice(every).nouns)) + "."
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
    """`count` samples with distinct normalised prompts that are not in `taken`, which is extended.

    Raises ValueError when the mix has no further prompt.
    """
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
MIXES = {"chains": (TARGET, PARENT, CONTEST, EVAL_SETS),
         "short": (Mix("target", SHORT), Mix("parent", SHORT), Mix("contest", SHORT[2:]), SHORT_SETS)}  # fmt: skip
"""`WorldConfig.problems` -> target, parent, contest and evaluation sets; those of short-answer arithmetic hold one kind each."""


def lesson(count: int, seed: int, topic: str) -> list[Sample]:
    """Distinct problems of one kind of short-answer arithmetic. Raises ValueError when there are no more."""
    return draw_split("lesson", count, Mix("target", (topic,)), seed, set())


def draw_world(config: WorldConfig) -> dict[str, list[Sample]]:
    """All splits: evaluation sets first, then labelled data, then the noisy pool.

    The six evaluation sets are drawn at full size; during training their first problems are used.
    `labelled` is L, disjoint from `pool`; `filter_negatives` are parent samples that train and place the quality filter;
    `pool` mixes target and parent in the paper's proportion (Table 6). No prompt of the SAE's texts occurs in any split.
    """
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
