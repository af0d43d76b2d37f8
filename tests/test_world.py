"""The embedded world: families, skills, splits, planted errors, the guard of the frozen version."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_lib.config import WORLD_VERSION, get_profile
from saerl_lib.data.answers import read_answer
from saerl_lib.data.sample import Sample, normalise, read_samples, write_samples
from saerl_lib.world.gates import guess_rate, met, single_token_accuracy, trained_gates
from saerl_lib.world.problems import FAMILIES, LEVELS, SCHOOL_WEIGHT, Solver, difficulty
from saerl_lib.world.sources import EVAL_SETS, draw_sample, draw_world, step_labels

FROZEN = "f68dd83a253e5815"


def fingerprint(splits: dict[str, list[Sample]]) -> str:
    rows = [(s.id, s.prompt, s.steps, s.answer, s.difficulty, s.flaw) for name in sorted(splits) for s in splits[name]]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def test_world_is_frozen_under_its_version(smoke_world: dict[str, list[Sample]]) -> None:
    assert (WORLD_VERSION, fingerprint(smoke_world)) == ("1", FROZEN), (
        "a sample changed: raise WORLD_VERSION and measure the gates again"
    )


def test_no_normalised_prompt_occurs_twice(smoke_world: dict[str, list[Sample]]) -> None:
    prompts = [normalise(s.prompt) for samples in smoke_world.values() for s in samples]
    assert len(prompts) == len(set(prompts))
    ids = [s.id for samples in smoke_world.values() for s in samples]
    assert len(ids) == len(set(ids))
    assert not any(s.flaw for spec in EVAL_SETS for s in smoke_world[f"eval_{spec.name}"])
    other = draw_world(replace(get_profile("smoke").world, seed=1))
    assert fingerprint(other) != fingerprint(smoke_world)


@given(st.sampled_from(sorted(FAMILIES)), st.sampled_from(LEVELS), st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_gold_solutions_are_true(name: str, level: int, seed: int) -> None:
    """Every 'left=right' line of plain arithmetic holds, and the answer can be read back."""
    sample = draw_sample(name, level, "target", random.Random(seed), "x")
    for line in sample.steps:
        left, _, right = line.partition("=")
        for sign in "+-*":
            parts = left.split(sign)
            if len(parts) == 2 and all(p.isdigit() for p in parts) and right.isdigit():
                a, b = map(int, parts)
                assert {"+": a + b, "-": a - b, "*": a * b}[sign] == int(right), line
    assert read_answer(sample.solution) == sample.answer
    assert set(sample.step_labels) == {1}


def test_fraction_sum_against_exact_arithmetic() -> None:
    for seed in range(50):
        task = FAMILIES["fraction_sum"].draw(random.Random(seed), 3)
        a, b = task.symbolic[0].split("+")
        solver = Solver()
        top, bottom = str(task.solve(solver)).split("/")
        assert Fraction(int(top), int(bottom)) == Fraction(a) + Fraction(b)


def test_each_shared_skill_has_one_wrong_procedure() -> None:
    for name, numbers, right, skill, wrong in (
        ("add", (47, 38), 85, "carry", 75), ("sub", (52, 38), 14, "borrow", 26), ("mul", (7, 8), 56, "table", 49),
        ("lowest_terms", (6, 8), "3/4", "reduce", "6/8"),
    ):  # fmt: skip
        assert getattr(Solver(), name)(*numbers) == right
        assert getattr(Solver(forced=frozenset({skill})), name)(*numbers) == wrong


def test_difficulty_formula_by_hand() -> None:
    solver = Solver()
    solver.add(47, 38)
    assert difficulty(solver) == pytest.approx(1 + 0.1 * 1.9294189 + SCHOOL_WEIGHT["carry"], abs=1e-3)


def test_step_labels_follow_the_first_slip() -> None:
    solver = Solver(forced=frozenset({"precedence"}))
    solver.write("1+1=2")
    solver.holds("precedence")
    solver.write("2*3=5")
    solver.write("5+1=6")
    assert step_labels(solver) == (1, -1, 0, 0)


def test_planted_errors_are_of_known_kinds(smoke_world: dict[str, list[Sample]]) -> None:
    flaws = {s.flaw for s in smoke_world["pool"]} - {""}
    assert flaws <= {"wrong_answer", "missing_premise", "contradiction", "truncated_solution", "wrong_step"}
    assert flaws and all(s.source == "parent" for s in smoke_world["pool"] if s.flaw)


def test_samples_survive_the_disk(smoke_world: dict[str, list[Sample]], tmp_path) -> None:
    write_samples(smoke_world["pool"], tmp_path / "pool.parquet")
    assert read_samples(tmp_path / "pool.parquet") == smoke_world["pool"]


def test_the_recorded_gates_belong_to_the_present_settings() -> None:
    assert {"transfer: other domains' gain / own gain", "grpo: gain in the last quarter, points"} <= set(trained_gates())


def test_gate_measures_by_hand() -> None:
    rows = (("red one", "1", "A"), ("red two", "1", "A"), ("blue one", "2", "B"), ("red x", "1", "A"), ("blue x", "3", "B"))
    made = [Sample("i", prompt, (), answer, topic) for prompt, answer, topic in rows]
    train, test = made[:3], made[3:]
    assert guess_rate(train, test) == 0.5
    assert single_token_accuracy(train, test) == 1.0
    assert met(0.5, (None, 0.5)) and not met(0.5, (0.6, None))
