"""The embedded world: samples of three sources, drawn from (family, level) cells with fixed weights, and how they are worded.

Deterministic from a seed and of any size. The weights of the target source were fitted once, on reserved seeds, so that the
base policy's pass rates follow a published histogram (`saerl_lib.studies.world_check`); they are frozen in `mixture.json`. A
task is put into words bare or told, with follow-up operations, distractors and a source's habits. Splits are drawn in one fixed
order, so that no normalised prompt occurs in two of them, or in the corpus that SAEs are trained on.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, WorldConfig, sub_seed, to_dict
from saerl_lib.data.sample import Sample, normalise, write_samples
from saerl_lib.train.language_model import CPU, LanguageModelConfig, Text, batches, pretrain, save_model, train_tokenizer
from saerl_lib.train.policy import FOLDER, POLICY
from saerl_lib.world.problems import FAMILIES, LEVELS, SLIP_RATE, Family, Solver, Task, difficulty, learner_rates

FRAMES = ("{}", "Find {}", "Compute {}", "{} = ?", "What is {}")
"""Frames of bare statements, shared by all families."""

DISTRACTORS = (
    "A clock near the field says {n}.",
    "The price rises by {n}%.",
    "The mean teams of row {n} are over.",
    "A triangle of area {n} is on the box.",
    "The jug holds {n} of a litre.",
    "Which bags are equal, {n} times?",
    "The median term is {n}.",
    "A game takes {n} heaps.",
    "The base of the row is {n} m.",
    "Divisor {n} is on each bag of beads.",
    "Put x into the cup of {n}.",
    "{n} beads meet at the edge.",
)
"""Sentences with other families' words and a number that does not matter."""


@dataclass(frozen=True)
class Habits:
    """Wording habits of a source."""

    openers: tuple[str, ...]
    closers: tuple[str, ...]
    distractor_share: float
    symbolic_factor: float
    """Multiplies a family's share of bare statements."""


HABITS = {
    "target": Habits(("", "", "", "Question: ", "Now: "), ("", "", "Give it exactly.", "Show each step."), 0.35, 1.0),
    "parent": Habits(
        ("", "", "", "Problem: ", "Now: "), ("", "", "Explain it.", "Show each step.", "State the result."), 0.45, 0.7
    ),
    "contest": Habits(("", "Round {n}: ", "Now: "), ("", "Prove it.", "Give it exactly."), 0.45, 0.9),
}
"""Habits by source; they overlap, so that no phrase settles the source alone."""

FOLLOW_UPS = (0, 0, 1, 1, 2)
"""Follow-up operations by level, for tasks with an integer answer."""


@dataclass(frozen=True)
class Worded:
    """A prompt and the operations that carry the family's answer on."""

    prompt: str
    follow_ups: tuple[tuple[str, int], ...]


def carry_on(solver: Solver, value: int | str, follow_ups: tuple[tuple[str, int], ...]) -> str:
    """The final answer after the follow-up operations."""
    for kind, amount in follow_ups:
        assert isinstance(value, int)
        value = solver.add(value, amount) if kind == "add" else solver.sub(value, amount)
    return str(value)


def word(task: Task, family: Family, level: int, source: str, rng: random.Random) -> Worded:
    """Choose a wording for `task` with the habits of `source`."""
    habits = HABITS[source]
    gold = Solver()
    value = task.solve(gold)
    follow_ups: list[tuple[str, int]] = []
    if isinstance(value, int):
        for _ in range(FOLLOW_UPS[level - 1]):
            amount = rng.randint(11, 30 + 20 * level)
            kind = "sub" if value > amount + 5 and rng.random() < 0.5 else "add"
            value = value + amount if kind == "add" else value - amount
            follow_ups.append((kind, amount))
    if rng.random() < family.symbolic_share * habits.symbolic_factor:
        text = rng.choice(FRAMES).format(rng.choice(task.symbolic))
    else:
        text = rng.choice(task.stories)
    for kind, amount in follow_ups:
        text += f", then {rng.choice(('add', 'plus')) if kind == 'add' else rng.choice(('take away', 'minus'))} {amount}"
    if not text.endswith("?"):
        text += rng.choice((".", "?")) if text[0].isupper() else "."
    if rng.random() < habits.distractor_share:
        aside = rng.choice(DISTRACTORS).format(n=rng.randint(2, 99))
        text = f"{aside} {text}" if rng.random() < 0.5 else f"{text} {aside}"
    opener = rng.choice(habits.openers).format(n=rng.randint(1, 9))
    closer = rng.choice(habits.closers)
    return Worded(f"{opener}{text}{' ' + closer if closer else ''}", tuple(follow_ups))


MIXTURE_PATH = Path(__file__).with_name("mixture.json")
FLAWS = ("wrong_answer", "missing_premise", "contradiction", "truncated_solution", "wrong_step")
TARGET_SHARE = 103_022 / 210_043
"""Share of the target source in the noisy pool (paper, Table 6)."""
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


CORPUS_SEED, CORPUS_TEXTS = 29, 20_000
"""Of the texts that SAEs may be trained on, whose prompts no split holds."""
FURTHER_BATCHES, BATCH_TEXTS = 1500, 64
"""Further texts whose prompts the splits avoid, from the first version of the world: without them its samples would be others."""
HELD_OUT = ("double_negative", "proportion", "congruence", "lengths")
"""Leaf families that the corpus leaves out."""
MILD_SLIPS = dict.fromkeys(SLIP_RATE, 0.1)
SOURCES = tuple(HABITS)


def draw_general_text(rng: random.Random) -> Text:
    """A text that belongs to no leaf family: comparing, counting on, sorting up, parity."""
    a, b, step = rng.randint(1, 999), rng.randint(1, 999), rng.randint(2, 12)
    kind = rng.randrange(4)
    if kind == 0:
        return f"Which is larger, {a} or {b}?", f"Answer: {max(a, b)}"
    if kind == 1:
        return f"Count on from {a} in steps of {step}.", " ".join(str(a + i * step) for i in range(6))
    if kind == 2:
        return f"Is {a} even or odd?", f"Answer: {'even' if a % 2 == 0 else 'odd'}"
    return f"Write {a}, {b}, {step} from small to large.", " ".join(map(str, sorted((a, b, step))))


def draw_corpus_text(rng: random.Random, families: tuple[str, ...]) -> Text:
    """One text of the corpus: four fifths worked problems, one fifth general."""
    if rng.random() < 0.2:
        return draw_general_text(rng)
    sample = draw_sample(rng.choice(families), rng.choice(LEVELS), rng.choice(SOURCES), rng, "", MILD_SLIPS)
    return sample.prompt, sample.solution


def corpus_texts() -> Iterator[Text]:
    """The world's texts that SAEs may be trained on."""
    rng, families = random.Random(sub_seed(CORPUS_SEED, "tokenizer")), tuple(name for name in FAMILIES if name not in HELD_OUT)
    for _ in range(CORPUS_TEXTS):
        yield draw_corpus_text(rng, families)


@functools.cache
def corpus_prompts() -> frozenset[str]:
    """Normalised prompts that the splits avoid."""
    families = tuple(name for name in FAMILIES if name not in HELD_OUT)
    prompts = {normalise(prompt) for prompt, _ in corpus_texts()}
    stream = batches(random.Random(CORPUS_SEED), lambda rng: draw_corpus_text(rng, families), BATCH_TEXTS)
    for _ in range(FURTHER_BATCHES):
        prompts.update(normalise(prompt) for prompt, _ in next(stream))
    return frozenset(prompts)


@dataclass(frozen=True)
class EvalSpec:
    """One evaluation set: which cells it draws from and how it is scored."""

    name: str
    domains: tuple[str, ...]
    levels: tuple[int, ...]
    source: str
    metric: str
    """avg_at_k or pass_at_k."""


ALL = ("Arithmetic", "Ratios", "Algebra", "Number theory", "Statistics", "Geometry")
EVAL_SETS = (
    EvalSpec("easy_a", ("Arithmetic", "Ratios", "Geometry"), (1, 2), "target", "avg_at_k"),
    EvalSpec("easy_b", ("Algebra", "Number theory", "Statistics"), (1, 2), "target", "avg_at_k"),
    EvalSpec("mid_a", ("Arithmetic", "Ratios", "Geometry"), (3,), "target", "avg_at_k"),
    EvalSpec("mid_b", ("Algebra", "Number theory", "Statistics"), (3,), "parent", "avg_at_k"),
    EvalSpec("hard", ALL, (4, 5), "target", "avg_at_k"),
    EvalSpec("hardest", ALL, (5,), "contest", "pass_at_k"),
)
"""Two easy, two middle, one hard and the hardest set (scored by Pass@k), after the paper's six benchmarks (section C.3)."""


def eval_cells(spec: EvalSpec) -> dict[Cell, float]:
    """Equal weights over the leaf families of the set's domains and its levels."""
    families = tuple(name for name, family in FAMILIES.items() if family.path[0] in spec.domains)
    return uniform_weights(spec.levels, families)


def draw_eval_sets(config: WorldConfig, taken: set[str]) -> dict[str, list[Sample]]:
    """The six sets at full size; during training their first problems are used. Gold answers are always sound."""
    sets: dict[str, list[Sample]] = {}
    for spec in EVAL_SETS:
        count = config.eval_problems_full
        drawn = draw_split(f"eval-{spec.name}", 3 * count, eval_cells(spec), spec.source, config.seed, taken)
        sets[spec.name] = [s for s in drawn if not s.flaw][:count]
    return sets


def draw_world(config: WorldConfig) -> dict[str, list[Sample]]:
    """All splits: evaluation sets first, then labelled data, then the noisy pool.

    `labelled` is L, disjoint from `pool`; `filter_negatives` are parent samples that train and place the quality
    filter; `pool` mixes target and parent in the paper's proportion (Table 6). No prompt of the corpus occurs in any
    split.
    """
    taken = set(corpus_prompts())
    splits = {f"eval_{name}": samples for name, samples in draw_eval_sets(config, taken).items()}
    target, parent, contest = (source_weights(name) for name in ("target", "parent", "contest"))
    seed = config.seed
    splits["labelled"] = draw_split("labelled", config.labelled_samples, target, "target", seed, taken)
    splits["test"] = draw_split("test", config.test_samples, target, "target", seed, taken)
    splits["filter_negatives"] = draw_split("parent", config.labelled_samples, parent, "parent", seed, taken)
    splits["contest_train"] = draw_split("contest-train", config.contest_train_samples, contest, "contest", seed, taken)
    splits["contest_test"] = draw_split("contest-test", config.contest_test_samples, contest, "contest", seed, taken)
    splits["step_labelled"] = draw_split(
        "steps", config.step_labelled_samples, uniform_weights(), "target", seed, taken, STEP_SLIPS
    )
    inside = round(config.noisy_pool_samples * TARGET_SHARE)
    pool = draw_split("pool-target", inside, target, "target", seed, taken)
    pool += draw_split("pool-parent", config.noisy_pool_samples - inside, parent, "parent", seed, taken)
    random.Random(sub_seed(seed, "pool-order")).shuffle(pool)
    splits["pool"] = pool
    return splits


def world_stage(profile: Profile) -> Stage:
    """Draw the world of a profile, one `<split>.parquet` a split."""

    def compute(folder: Path) -> None:
        for name, samples in draw_world(profile.world).items():
            write_samples(samples, folder / f"{name}.parquet")

    return get_or_compute(profile, "world", to_dict(profile.world), compute)




def draw_learner_text(rng: random.Random) -> Text:
    """A prompt of any cell and wording with a learner's solution; planted errors never occur here."""
    name, level = rng.choice(tuple(FAMILIES)), rng.choice(LEVELS)
    sample = draw_sample(name, level, rng.choice(SOURCES), rng, "", learner_rates(level))
    return sample.prompt, sample.solution


def tokenizer_texts(seed: int, draw: Callable[[random.Random], Text], count: int = 20_000) -> Iterator[str]:
    """Texts that the tokenizer is trained on."""
    rng = random.Random(sub_seed(seed, "tokenizer"))
    for _ in range(count):
        yield "\n".join(draw(rng))


def rebuild_policy(
    folder: Path = FOLDER, steps: int | None = None, report: Callable[[int, float], None] = lambda step, loss: None,
    config: LanguageModelConfig = POLICY, device: torch.device = CPU,
) -> list[float]:  # fmt: skip
    """Train tokenizer and policy from scratch into `folder`; returns the losses in nats a solution token."""
    tokenizer = train_tokenizer(tokenizer_texts(POLICY.seed, draw_learner_text), POLICY.vocabulary)
    model, losses = pretrain(config, tokenizer, draw_learner_text, report, steps, device)
    save_model(model, tokenizer, folder)
    (folder / "losses.json").write_text(json.dumps([round(v, 5) for v in losses[::50]]) + "\n", encoding="utf-8")
    return losses
