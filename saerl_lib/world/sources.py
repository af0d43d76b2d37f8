"""The embedded world: samples of three sources in splits of any size, deterministic from a seed.

The target source speaks of eight of the twelve topics; its unfiltered parent of all twelve, in other words and with planted
errors; the contest source holds long problems on a difficulty scale of its own. Splits are drawn in one fixed order, so that no
normalised prompt occurs in two of them, or in the texts that SAEs are trained on. With `WorldConfig.problems` short the same
splits hold short-answer arithmetic, for a real language model as policy.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, WorldConfig, sub_seed, to_dict
from saerl_lib.data.sample import Sample, normalise, write_samples
from saerl_lib.world.problems import (
    LEARNER_LENGTHS,
    LEARNER_RATES,
    LENGTHS,
    SIZES,
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
from saerl_lib.world.short import KINDS, draw_short
from saerl_lib.world.wording import HABITS, TOPICS, word

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


@dataclass(frozen=True)
class Mix:
    """What a split draws from: each of topics, lengths and sizes with equal odds; one named twice weighs twice."""

    source: str
    topics: tuple[str, ...]
    lengths: tuple[int, ...] = LENGTHS
    sizes: tuple[int, ...] = SIZES


TARGET = Mix("target", TRAINED)
PARENT = Mix("parent", TRAINED * 2 + EVERY)
CONTEST = Mix("contest", EVERY, LENGTHS[2:], (0, 1, 1))


def draw_sample(mix: Mix, rng: random.Random, sample_id: str, slips: Rates | None = None, plant: bool = True) -> Sample:
    """One sample of a mix; with `slips` the solution is a learner's. The parent's samples have a share of planted errors.

    Without `plant` none is planted.
    """
    topic = rng.choice(mix.topics)
    if topic in KINDS:
        return draw_short_sample(mix.source, topic, rng, sample_id, slips, plant)
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


def draw_short_sample(source: str, topic: str, rng: random.Random, sample_id: str, slips: Rates | None, plant: bool) -> Sample:
    """One sample of short-answer arithmetic: a line and its answer. A slip or a planted error spoils both."""
    short = draw_short(topic, source, rng)
    wrong = plant and source == "parent" and rng.random() < FLAW_SHARE
    if slips is not None:
        wrong = rng.random() < slips[KINDS[topic].sign, short.last % 10]
    value, flaw, labels = (short.value + rng.randint(1, 9), "wrong_step", (-1, 0)) if wrong else (short.value, "", (1, 1))
    steps = (f"{short.written} = {value}",)
    return Sample(sample_id, short.prompt, steps, str(value), topic, short.difficulty, source, flaw, labels)


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
