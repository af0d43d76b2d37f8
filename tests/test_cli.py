"""The command line: help, near misses, exit codes, and options that reach what they are for."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import saerl_lib
from saerl_lib import cli, paths
from saerl_lib.artifacts import imported_names
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


def test_the_library_and_every_help_are_imported_quickly() -> None:
    heavy, slow = ("numpy", "pandas", "pyarrow"), ("torch", "sklearn", "transformers", "scipy", "matplotlib")
    code = f"""import sys, saerl_lib; print([n for n in {heavy + slow} if n in sys.modules], callable(saerl_lib.plan))
from saerl_lib import cli; cli.main(['plan', '--help']); print([n for n in {slow} if n in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=paths.ROOT, check=True)
    assert done.stdout.splitlines()[0] == "[] True" and done.stdout.splitlines()[-1] == "[]"
    assert imported_names(Path(saerl_lib.__file__).read_text()) == set(), "or every stage would depend on own data"


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
    model = ["--encoder", "M", "--layer", "14", "--sae", "opensae:F", "--bf16"]
    own = ["--labels", "level", "--prompt-field", "text", "--label-range", "-1", "5"]
    name, plan = cli.parse(["plan", "--data", "d", "--out", "o", *own, *model])
    fields = Fields(prompt="text", labels="level")
    assert (name, plan.settings) == (
        "plan", OwnConfig(fields=fields, label_range=(-1.0, 5.0), encoder="M", layer=14, sae="opensae:F", bf16=True)
    )  # fmt: skip
    for words in (["plan", "--data", "d", "--out", "o"], ["encode", "--data", "d", "--out", "o"]):
        told = vars(cli.parse(words)[1])
        assert (told.get("settings") or told["reading"]).encoder == inspect.signature(plan_call).parameters["reader"].default
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
