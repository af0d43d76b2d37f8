"""The command line and its records: help, near misses, exit codes, what options reach; profiles and hashes that do not move."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from saerl_lib import cli, config, paths
from saerl_lib.config import LAPTOP, PAPER, PROFILES, PlanConfig, Profile, TrainConfig, content_hash, get_profile, sub_seed
from saerl_lib.needs import SETS
from saerl_lib.notebooks import RunOptions
from saerl_lib.own import plan as plan_call
from saerl_lib.settings import Fields, Options, OwnConfig


def test_help_shows_each_option_once_with_its_text_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.COMMANDS:
        assert cli.main([*name.split(), "--help"]) == 0
        lines = [line.rstrip("│| ") for line in capsys.readouterr().out.splitlines()]
        starts = [i for i, line in enumerate(lines) if re.match(r"\S --[a-z]", line)]
        shown = [lines[i].split()[1] for i in starts]
        assert len(shown) == len(set(shown)), f"{name} shows an option twice"
        for option, i, end in zip(shown, starts, [*starts[1:], len(lines)], strict=False):
            text = " ".join(" ".join(line.lstrip("│|") for line in lines[i:end]).split())
            assert re.match(r"--\S+ .*[a-z]{3}.*\((default: .*?|required)\)", text), f"{name} {option}: {text}"
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert [name for name in cli.COMMANDS if f"\n  {name} " not in overview] == []


def test_every_command_runs_a_function_that_takes_its_options() -> None:
    for name, (record, entry) in cli.COMMANDS.items():
        module, function = entry.split(":")
        found = getattr(importlib.import_module(f"saerl_lib.{module}"), function)
        assert list(inspect.signature(found).parameters) == [f.name for f in dataclasses.fields(record)], name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["runn"], 1, "did you mean run?"),
        (["bench", "grop"], 2, "invalid choice 'grop'"),
        (["run", "--profile", "lapto"], 1, "did you mean laptop?"),
        (["run", "--profile", "paper", "--data", ".", "--arms", "sarel"], 1, "did you mean saerl?"),
        (["run", "--profile", "paper", "--revision", "amc23"], 1, "write SET=HASH"),
        (["run", "--profile", "paper", "--steps", "0"], 1, "--steps 0 must be at least 1"),
        (["run", "--profile", "paper", "--micro-batch", "3"], 1, "micro_batch=3 does not divide"),
        (["run", "--profile", "smoke", "--policy", "x"], 1, "--policy: profile smoke draws its own data"),
        (["run", "--profile", "huge"], 1, "profile 'huge' does not exist; choose one of smoke, laptop"),
        (["run", "--only", "12"], 1, "notebook '12' does not exist; choose one of 00, 01"),
        (["run", "--from", "01", "--only", "02"], 1, "exclude each other"),
        (["run", "--seeds", "0"], 1, "--seeds 0 must be at least 1"),
        (["run", "--seed", "-1"], 1, "--seed -1 must be 0 or more"),
        (["grid", "--profile", "stuyd"], 1, "did you mean study?"),
        (["export", "--plan", "p", "--out", "o", "--to", "nemo"], 1, "did you mean nemo-rl?"),
        (["plan", "--data", "d", "--out", "o", "--without-labels", "lenght"], 2, "invalid choice 'lenght'"),
        (["plan", "--data", "d", "--out", "o", "--layr", "3"], 2, "--layer INT"),
        (["run", "--profle", "smoke"], 2, "--profile STR"),
        (["run", "--only"], 2, "Missing value for argument '--only'"),
        (["run", "--seeds", "two"], 2, "--seeds"),
        (["plan"], 2, "--data STR"),
        (["world"], 1, "--check and --rebuild"),
        (["world", "--check", "--seeds", "0"], 1, "--seeds 0: must be at least 1"),
        (["grid", "--seeds", "0", "1000"], 1, "--seeds 0 1000: give 0 to 999"),
        (["encode", "--data", "d", "--out", "o", "--reader", "M", "--layer", "0", "--sae", "s"], 1, "layer=0 must be at least 1"),
        ([], 2, ""),
    ],
)
def test_a_mistake_ends_with_one_message(
    words: list[str], code: int, part: str, capsys: pytest.CaptureFixture[str], saerl_home: Path
) -> None:
    assert cli.main(words) == code
    error = capsys.readouterr().err
    assert part in error and "Traceback" not in error and (code == 2 or error.count("\n") == 1) and not saerl_home.exists()
    if code == 1:
        with pytest.raises(cli.EXPECTED):
            cli.main([*words, "--debug"])


def test_options_reach_the_records_of_the_method() -> None:
    model = ["--reader", "M", "--layer", "14", "--sae", "opensae:F", "--bf16"]
    own = ["--labels", "level", "--prompt-field", "text", "--label-range", "-1", "5"]
    name, plan = cli.parse(["plan", "--data", "d", "--out", "o", *own, *model])
    fields = Fields(prompt="text", labels="level")
    assert (name, plan.settings) == (
        "plan", OwnConfig(fields=fields, label_range=(-1.0, 5.0), reader="M", layer=14, sae="opensae:F", bf16=True)
    )  # fmt: skip
    for words in (["plan", "--data", "d", "--out", "o"], ["encode", "--data", "d", "--out", "o"]):
        told = vars(cli.parse(words)[1])
        assert (told.get("settings") or told["reading"]).reader == inspect.signature(plan_call).parameters["reader"].default
    name, run = cli.parse(["run", "--from", "06", "--seeds", "5"])
    assert (name, run.notebooks) == ("run", RunOptions(start="06", seeds=5))
    words = ["--profile", "paper", "--arms", "adarft", "--seeds", "2", "--revision", "amc23=01", "minerva=23", "--to", "trl"]
    name, run = cli.parse(["run", *words])
    assert (run.notebooks.profile, run.notebooks.seeds) == ("paper", 2)
    assert run.options == Options(arms=("adarft",), revision=("amc23=01", "minerva=23"), export_to=("trl",))
    train = cli.parse(["train", "--plan", "p", "--out", "o", "--model", "m", "--rollouts", "4"])[1].settings
    assert (train.engine, train.rollouts_per_prompt, train.learning_rate) == ("trl", 4, 1e-6)
    assert cli.parse(["world", "--rebuild"])[1].rebuild and cli.parse(["world", "--check", "--seeds", "2"])[1].seeds == 2
    assert cli.parse(["grid", "--arms", "grpo", "saerl_grpo", "--seeds", "0", "1"])[1].seeds == (0, 1)
    assert cli.parse(["plan", "diff", "a", "b"])[0] == "plan diff"


# Profiles.


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
