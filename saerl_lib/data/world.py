"""The embedded world: samples of three sources, drawn from (family, level) cells with fixed weights.

Deterministic from a seed and of any size. The weights of the target source were fitted once, on reserved seeds, so
that the base policy's pass rates follow a published histogram (`saerl_lib.rl.calibrate`); they are frozen in
`mixture.json`.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Mapping
from pathlib import Path

from saerl_lib.config import sub_seed
from saerl_lib.data.families import FAMILIES, Task
from saerl_lib.data.families.base import LEVELS
from saerl_lib.data.sample import Sample, normalise
from saerl_lib.data.skills import SLIP_RATE, Solver, difficulty
from saerl_lib.data.wording import carry_on, word

MIXTURE_PATH = Path(__file__).with_name("mixture.json")
FLAWS = ("wrong_answer", "missing_premise", "contradiction", "truncated_solution", "wrong_step")
FLAW_SHARE = 0.3
"""Share of the parent source with one planted error."""
STEP_SLIPS = dict.fromkeys(SLIP_RATE, 0.3)
"""Slip rates of the step-labelled solutions: every skill alike."""

Cell = tuple[str, int]


@functools.cache
def target_weights() -> Mapping[Cell, float]:
    """Weight of each (family, level) cell in the target source, summing to one."""
    table = json.loads(MIXTURE_PATH.read_text(encoding="utf-8"))["weights"]
    return {(name, level): table[name][level - 1] for name in FAMILIES for level in LEVELS}


def uniform_weights(levels: tuple[int, ...] = LEVELS, families: tuple[str, ...] = tuple(FAMILIES)) -> dict[Cell, float]:
    """Equal weights over the given families and levels."""
    return {(name, level): 1.0 / (len(families) * len(levels)) for name in families for level in levels}


def source_weights(source: str) -> dict[Cell, float]:
    """Cell weights of a source: the parent is wider than the target, the contest source harder."""
    if source == "target":
        return dict(target_weights())
    if source == "parent":
        wide = uniform_weights()
        return {cell: 0.5 * weight + 0.5 * wide[cell] for cell, weight in target_weights().items()}
    if source == "contest":
        return uniform_weights(levels=(3, 4, 5))
    raise ValueError(f"source={source!r}: choose target, parent or contest")


def contest_scale(solver: Solver) -> float:
    """Difficulty on the contest source's own scale: long work and large numbers weigh more than late skills (ours)."""
    return round(2.0 + 0.5 * (len(solver.lines) - 1) + 1.2 * (len(str(solver.largest)) - 1) + 0.35 * (difficulty(solver) - 1), 3)


def _other_answer(answer: str, rng: random.Random) -> str:
    """`answer` with its last number moved by one to nine."""
    head, tail = re.fullmatch(r"(.*?)(\d+)", answer, re.S).groups()  # type: ignore[union-attr]
    return f"{head}{int(tail) + rng.randint(1, 9):0{len(tail)}d}"


def step_labels(solver: Solver) -> tuple[int, ...]:
    """+1 before the first slip, -1 on a line that slips, 0 on sound work with wrong values; the answer line included."""
    bad = set(solver.bad_lines)
    first = min(bad, default=len(solver.lines) + 1)
    return tuple(-1 if i in bad else (1 if i < first else 0) for i in range(len(solver.lines) + 1))


def _plant(kind: str, prompt: str, task: Task, follow_ups: tuple, gold: Solver, answer: str, rng: random.Random) -> tuple:
    """(prompt, solver, answer) with one planted error of `kind`."""
    if kind == "wrong_answer":
        return prompt, gold, _other_answer(answer, rng)
    if kind == "missing_premise":
        spans = list(re.finditer(r"\d+", prompt))
        start, end = rng.choice(spans).span()
        return prompt[:start] + "some" + prompt[end:], gold, answer
    if kind == "contradiction":
        last = int(re.findall(r"\d+", answer)[-1])
        return f"{prompt} The result is {last + rng.randint(1, 40)}.", gold, answer
    if kind == "truncated_solution":
        gold.lines = gold.lines[: len(gold.lines) // 2]
        return prompt, gold, answer
    wrong = Solver(forced=frozenset({rng.choice(sorted(set(gold.used)) or ["carry"])}))
    return prompt, wrong, carry_on(wrong, task.solve(wrong), follow_ups)


def draw_sample(
    name: str, level: int, source: str, rng: random.Random, sample_id: str, slips: Mapping[str, float] | None = None
) -> Sample:
    """One sample of a cell; with `slips` (rate by skill) the solution is a learner's, step labels included."""
    family = FAMILIES[name]
    task = family.draw(rng, level)
    worded = word(task, family, level, source, rng)
    gold = Solver()
    answer = carry_on(gold, task.solve(gold), worded.follow_ups)
    label = contest_scale(gold) if source == "contest" else difficulty(gold)
    prompt, written, flaw = worded.prompt, gold, ""
    if slips is not None:
        written = Solver(rng, slips)
        answer = carry_on(written, task.solve(written), worded.follow_ups)
        flaw = "wrong_step" if written.slipped else ""
    elif source == "parent" and rng.random() < FLAW_SHARE:
        flaw = rng.choice(FLAWS)
        prompt, written, answer = _plant(flaw, prompt, task, worded.follow_ups, gold, answer, rng)
    return Sample(sample_id, prompt, tuple(written.lines), answer, family.topic, label, source, flaw, step_labels(written))


def draw_split(
    name: str,
    count: int,
    weights: Mapping[Cell, float],
    source: str,
    seed: int,
    taken: set[str],
    slips: Mapping[str, float] | None = None,
) -> list[Sample]:
    """`count` samples with distinct normalised prompts that are not in `taken`, which is extended."""
    rng = random.Random(sub_seed(seed, name))
    cells, odds = zip(*sorted(weights.items()), strict=True)
    samples: list[Sample] = []
    while len(samples) < count:
        family, level = rng.choices(cells, odds)[0]
        sample = draw_sample(family, level, source, rng, f"{name}-{len(samples):05d}", slips)
        key = normalise(sample.prompt)
        if key not in taken:
            taken.add(key)
            samples.append(sample)
    return samples
