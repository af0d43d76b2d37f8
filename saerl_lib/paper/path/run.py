"""The steps in their order, and the commands `paper STEP` and `run --profile paper`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path

from saerl_lib.notebooks import UserError
from saerl_lib.paper.command import require_machine
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.path.home import STEPS, Home
from saerl_lib.paper.path.options import config_of, given
from saerl_lib.paper.path.places import require_stand_ins


def tell(text: str) -> None:
    """Print at once: a step may take long."""
    print(text, flush=True)


def run_profile(arguments: argparse.Namespace) -> int:
    """`run --profile paper`: all steps in order. Raises UserError for options that belong to notebooks."""
    named = {"--from": arguments.start, "--only": arguments.only, "--force": arguments.force}
    wrong = [name for name, value in named.items() if value]
    if wrong:
        raise UserError(f"{', '.join(wrong)}: profile paper has steps, not notebooks; `python -m saerl_lib paper STEP` runs one")
    values = given(arguments) | {"seed": arguments.seed} | ({"seeds": arguments.seeds} if arguments.seeds is not None else {})
    config = config_of(values)
    require_stand_ins(config)
    require_machine(config, tell)
    tell(f"tables: {run_steps(config, STEPS, tell)}")
    return 0


def run_command(arguments: argparse.Namespace) -> int:
    """`paper STEP`: one step, on what the earlier ones left, or all."""
    config, step = config_of(given(arguments)), arguments.step
    require_stand_ins(config)
    if step == "all":
        require_machine(config, tell)
    if arguments.commands:
        if step != "train":
            raise UserError("--commands belongs to step train")
        return print_commands(config)
    tell(f"{step}: {run_steps(config, STEPS if step == 'all' else (step,), tell)}")
    return 0


def run_steps(config: PaperConfig, steps: tuple[str, ...], say: Callable[[str], None] = lambda text: None) -> Path:
    """Compute the named steps on what those before them left; returns the folder of the last one.

    Raises ArtifactError when an earlier step was not run with the same settings, and what the steps raise.
    """
    home, last = Home(config, frozenset(steps), say), max(STEPS.index(step) for step in steps)
    # imports are local so that a step needs no more than it uses
    from saerl_lib.paper.path.data import data_stage

    data = data_stage(home)
    if last == STEPS.index("data"):
        return data.folder
    from saerl_lib.paper.path.encode import encode_stage

    encoded = encode_stage(home, data)
    if last == STEPS.index("encode"):
        return encoded.folder
    from saerl_lib.paper.path.fit import fit_stage
    from saerl_lib.paper.path.plan import plans_stage

    scores = fit_stage(home, data, encoded)
    plans = plans_stage(home, data, scores)
    if last == STEPS.index("plan"):
        return plans.folder
    from saerl_lib.paper.path.measure import measured_stage

    measured = measured_stage(home, plans)
    if last == STEPS.index("measure"):
        return measured.folder if measured is not None else plans.folder
    from saerl_lib.paper.path.train import train_runs

    runs = train_runs(home, plans, measured)
    if last == STEPS.index("train"):
        return home.folder / "runs"
    from saerl_lib.paper.path.evaluate import evaluate_runs
    from saerl_lib.paper.path.report import report_stage

    evaluated = evaluate_runs(home, data, runs)
    if last == STEPS.index("evaluate"):
        return home.folder
    earlier = (data, encoded, scores, plans, *([measured] if measured is not None else []))
    return report_stage(home, earlier, runs, evaluated).folder


def print_commands(config: PaperConfig) -> int:
    """The command of every run, one a line, for a scheduler's job script; the records are written, nothing is trained."""
    from saerl_lib.paper.path.data import data_stage
    from saerl_lib.paper.path.encode import encode_stage
    from saerl_lib.paper.path.fit import fit_stage
    from saerl_lib.paper.path.measure import measured_stage
    from saerl_lib.paper.path.plan import plans_stage
    from saerl_lib.paper.path.train import planned_runs, write_whole
    from saerl_lib.train.run import command

    home = Home(config, frozenset())
    data = data_stage(home)
    plans = plans_stage(home, data, fit_stage(home, data, encode_stage(home, data)))
    for run in planned_runs(home, plans, measured_stage(home, plans)):
        tell(shlex.join(command(write_whole(run, config), config.launch)))
    return 0
