"""Profiles: what they hold, what they reject, and hashes that do not move."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from saerl_lib import config, paths
from saerl_lib.config import LAPTOP, PAPER, PROFILES, PlanConfig, Profile, TrainConfig, content_hash, get_profile, sub_seed
from saerl_lib.needs import SETS
from saerl_lib.settings import Options


def test_profiles_have_their_own_name_and_make_the_papers_1_12_passes() -> None:
    assert set(PROFILES) == {"smoke", "laptop", "study", "paper", "paper_tiny"}
    assert all(name == profile.name for name, profile in PROFILES.items())
    assert (LAPTOP.steps, round(LAPTOP.steps * 8 / LAPTOP.pool_samples, 2)) == (134, 1.12)


def test_the_papers_values_are_the_profile() -> None:
    """The estimates of its cost are fixed numbers: what they were computed from must still be so."""
    train, found, properties = PAPER.train, PAPER.published, PAPER.properties
    assert (PAPER.steps, PAPER.plan.prompts_per_step, PAPER.plan.swapped_per_batch, PAPER.pool_samples) == (900, 128, 8, 103_022)
    assert (train.learning_rate, train.rollouts_per_prompt, train.max_prompt_tokens) == (1e-6, 8, 1024)
    assert (train.max_completion_tokens, train.micro_batch, train.keep_every_steps, train.eval_samples_full) == (3072, 8, 20, 8)
    assert (properties.clusters, found.labelled_samples, PAPER.reader.retained_latents) == (10, 3000, 240)
    assert (found.parent_samples, found.step_labelled_samples) == (107_021, 97_782)
    assert (found.contest_train_samples, found.contest_test_samples) == (800, 10_000)
    assert sum(SETS[name].rows for name in PAPER.eval_sets) == 2835


def test_options_travel_with_the_name_and_reach_their_records() -> None:
    told = Options(data="/sets", revision=("amc23=01",), layer=3, arms=("grpo", "diff"), steps=5, bf16=True)
    profile = get_profile(told.text("paper"))
    assert (profile.published.folder, profile.published.revisions, profile.reader.layer) == ("/sets", (("amc23", "01"),), 3)
    assert (profile.arms, profile.steps, profile.reader.bf16, profile.train.bf16) == (("grpo", "diff"), 5, True, True)
    assert profile.name == "paper" and Options().text("paper") == "paper"
    assert get_profile("paper") == config.PAPER


def test_seeds_and_seed_change_nothing_else() -> None:
    changed = get_profile("smoke", seeds=5, seed=7)
    assert (changed.train.seeds, changed.seed) == (5, 7)
    back = dataclasses.replace(changed, seed=0, train=dataclasses.replace(changed.train, seeds=2))
    assert back == get_profile("smoke")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: get_profile("Laptop"), "smoke, laptop"),
        (lambda: get_profile("smoke", seeds=0), "seeds=0"),
        (lambda: TrainConfig(rollouts_per_prompt=1), "rollouts_per_prompt"),
        (lambda: PlanConfig(prompts_per_step=4, swapped_per_batch=4), "swapped_per_batch=4"),
        (lambda: Profile("x", pool_samples=3201), "pool_samples=3201"),
        (lambda: TrainConfig(dynamic_sampling="equal_steps", engine="trl"), "choose engine='packed'"),
        (lambda: Profile("x", arms=("grpo", "grpo")), "name each arm once"),
        (lambda: Options(data="x").apply(LAPTOP), "--data: profile laptop draws its own data"),
    ],
)
def test_bad_combination_names_the_field(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_content_hash_ignores_key_order_and_sees_values() -> None:
    assert content_hash({"a": 1, "b": [2.5]}) == content_hash({"b": [2.5], "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})
    assert content_hash([]) == "4f53cda18c2baa0c"  # sha256 of "[]"
    with pytest.raises(ValueError):
        content_hash({"a": float("nan")})


def test_profile_hash_is_the_same_in_another_process_with_another_hash_seed() -> None:
    code = "from saerl_lib.config import *; print(content_hash(to_dict(get_profile('laptop'))), sub_seed(3, 'plan'))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(paths.ROOT)}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.split() == [content_hash(config.to_dict(LAPTOP)), str(sub_seed(3, "plan"))]
    assert len({sub_seed(base, label) for base in (0, 1, 2) for label in ("plan", "train", "evaluation")}) == 9


def test_folders_follow_the_environment(saerl_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert all(paths.figure_data_dir(name) == saerl_home / name / "figures" / "data" for name in PROFILES), "not the published"
    monkeypatch.setenv("SAERL_HOME", "")
    assert paths.artifacts_root() == paths.ROOT / "artifacts"
    monkeypatch.setenv("SAERL_DATA_DIR", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match="SAERL_DATA_DIR=.*absent"):
        paths.shared_data_dir()
