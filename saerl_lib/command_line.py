"""The options of every command of `python -m saerl_lib`, by what they are for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from saerl_lib.config import WORLD_PARTS

SAMPLES_HELP = "its samples, Parquet or JSON lines (default: those that `plan` wrote beside the plan)"


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors end with exit code 1, as all bad input does here."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.format_usage()}error: {message}\n")


def _add_notebooks(commands: Any, common: argparse.ArgumentParser) -> None:
    """Running the artifact, checking its data and its speed."""
    from saerl_lib.paper.path.options import add_options

    run = commands.add_parser("run", parents=[common], help="execute the notebooks in order")
    run.add_argument("--profile", default="laptop", help="smoke, laptop, method, study or paper (default: laptop)")
    run.add_argument("--from", dest="start", metavar="NN", help="first notebook to run, such as 07")
    run.add_argument("--only", metavar="NN", help="the one notebook to run, such as 09")
    run.add_argument("--force", action="store_true", help="run what is up to date too and compute its stages anew")
    run.add_argument("--strict", action="store_true", help="fail when a number is outside what is published")
    run.add_argument("--seeds", type=int, metavar="N", help="number of matched training seeds (default: the profile's)")
    run.add_argument("--seed", type=int, default=0, metavar="N", help="base seed (default: 0)")
    run.add_argument("--plan-only", action="store_true", help="print what --profile paper would take, and download nothing")
    add_options(run, shared=False)
    paper = commands.add_parser("paper", parents=[common], help="one step of profile paper, or all of them")
    steps = ("data", "encode", "plan", "measure", "train", "evaluate", "report", "all")
    paper.add_argument("step", choices=steps, metavar="STEP", help=f"{', '.join(steps[:-1])} or all")
    paper.add_argument("--commands", action="store_true", help="with step train: print the command of every run and stop")
    add_options(paper)
    data = commands.add_parser("data", parents=[common], help="check a JSON-lines file of problems, row by row")
    data.add_argument("file", type=Path)
    world = commands.add_parser("world", parents=[common], help="check or rebuild the embedded world")
    action = world.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="compute the world's gates again and compare them")
    action.add_argument("--rebuild", nargs="*", choices=WORLD_PARTS, metavar="PART",
                        help=f"train what the world ships anew, all of it or some: {', '.join(WORLD_PARTS)}")  # fmt: skip
    world.add_argument("--device", metavar="NAME", help="where --rebuild trains weights: cpu or cuda (default: cpu)")
    bench = commands.add_parser("bench", parents=[common], help="measure speed as ratios")
    bench.add_argument("name", choices=("encode", "memory", "plan", "grpo", "preparation"))
    bench.add_argument("--samples", type=int, default=103_022, metavar="N", help="pool size of `bench plan` (default: 103022)")
    bench.add_argument("--device", metavar="NAME", help="cpu or cuda, for `bench encode` (default: cpu)")
    publish = commands.add_parser("publish", parents=[common], help="replace the published results by those of the finished run")
    publish.add_argument("--profile", default="laptop", help="laptop, method or study (default: laptop)")
    commands.add_parser("readme", parents=[common], help="write the tables of README.md and docs/ from figures/data")


def _add_reading(commands: Any, common: argparse.ArgumentParser) -> None:
    """Reading data: the ladder, one sample, plans."""
    from saerl_lib.encode_command import add_encode_options
    from saerl_lib.own_command import add_plan_options
    from saerl_lib.sae_command import add_sae_options

    ladder = commands.add_parser("ladder", parents=[common], help="the control ladder on a labelled JSON-lines file")
    ladder.add_argument("file", type=Path)
    ladder.add_argument("--profile", default="method", help="method, or smoke to try it in small (default: method)")
    audit = commands.add_parser("audit", parents=[common], help="why one sample stands where it stands in the plan")
    audit.add_argument("sample_id", metavar="SAMPLE_ID", help="id of a sample of the pool, such as pool-target-00001")
    audit.add_argument("--profile", default="laptop", help="smoke or laptop, already run (default: laptop)")
    audit.add_argument("--seed", type=int, default=0, metavar="N", help="base seed (default: 0)")
    audit.add_argument("--json", action="store_true", help="print the record as JSON")
    sae = commands.add_parser("sae", parents=[common], help="train an SAE on any text, for any model")
    add_sae_options(sae)
    encode = commands.add_parser("encode", parents=[common], help="pooled SAE latents of a data file, in shards, also on Ray")
    add_encode_options(encode)
    plan = commands.add_parser("plan", parents=[common], help="plan your own data, or compare two stored plans (plan diff A B)")
    add_plan_options(plan)
    diff = plan.add_subparsers(dest="action", metavar="{diff}").add_parser(
        "diff", parents=[common], help="how far samples move and how much of their company they keep"
    )
    diff.add_argument("first", type=Path, metavar="A", help="a plan, such as artifacts/laptop/plans/saerl.parquet")
    diff.add_argument("second", type=Path, metavar="B", help="another plan")


def _add_trainers(commands: Any, common: argparse.ArgumentParser) -> None:
    """Plans in trainers."""
    export = commands.add_parser("export", parents=[common], help="write a plan as another trainer's data set and configuration")
    export.add_argument("--plan", type=Path, required=True, metavar="P", help="a plan, such as plans/saerl.parquet")
    export.add_argument("--samples", type=Path, metavar="FILE", help=SAMPLES_HELP)
    export.add_argument("--to", required=True, metavar="NAME", help="trl, verl, nemo-rl or prime-rl")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write; it must not exist")
    export.add_argument("--rollouts", type=int, default=8, metavar="G", help="rollouts a prompt (default: 8)")
    verify = commands.add_parser("verify", parents=[common], help="whether a trainer followed a plan, from its log of sample ids")
    verify.add_argument("--plan", type=Path, required=True, metavar="P", help="the plan")
    verify.add_argument("--log", type=Path, required=True, metavar="L", help="JSON lines or Parquet with sample_id, or text")
    verify.add_argument("--rollouts", type=int, metavar="G", help="rollouts a prompt, for logs without steps or prompt order")
    verify.add_argument("--steps", type=int, metavar="N", help="steps of the run, when it ended within a pass over the plan")
    verify.add_argument("--any-slot", action="store_true", help="accept any order inside a step")
    train = commands.add_parser("train", parents=[common], help="GRPO by TRL on a plan, also under accelerate launch or torchrun")
    train.add_argument("--plan", type=Path, required=True, metavar="P", help="a plan, as written by the notebooks or by `plan`")
    train.add_argument("--samples", type=Path, metavar="FILE", help=SAMPLES_HELP)
    train.add_argument("--model", required=True, metavar="M", help="policy in Hugging Face format: folder or hub name")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoints, logs and the trained policy")
    train.add_argument("--rollouts", type=int, default=8, metavar="G", help="rollouts a prompt (default: 8)")
    train.add_argument("--micro-batch", type=int, default=8, metavar="N", help="rollouts of one forward pass (default: 8)")
    train.add_argument("--learning-rate", type=float, default=1e-6, metavar="X", help="constant (default: 1e-6)")
    train.add_argument("--temperature", type=float, default=0.6, metavar="X", help="of the rollouts (default: 0.6)")
    train.add_argument("--max-completion", type=int, default=3072, metavar="N", help="tokens of a completion (default: 3072)")
    train.add_argument("--save-every", type=int, default=20, metavar="N", help="steps between checkpoints (default: 20)")
    train.add_argument("--loss", choices=("grpo", "dapo"), default="grpo", help="grpo, or dapo's loss and clip (default: grpo)")
    train.add_argument("--steps", type=int, metavar="N", help="optimiser steps; a plan's end starts it again (default: one pass)")
    train.add_argument("--keep-every", type=int, metavar="N", help="keep the weights of every N-th step, to evaluate them")
    train.add_argument("--selector", choices=("adarft", "gainrl"), default="", help="choose prompts by the rewards, not the plan")
    train.add_argument("--measured", type=Path, metavar="FILE", help="Parquet of sample_id and what the selector needs of it")
    train.add_argument("--seed", type=int, default=0, metavar="N", help="of the rollouts (default: 0)")
    for flag, text in (("--vllm", "rollouts by vLLM"), ("--bf16", "mixed precision, on a GPU"), ("--chat", "chat messages")):
        train.add_argument(flag, action="store_true", help=text)


def _add_study(commands: Any, common: argparse.ArgumentParser) -> None:
    """The RL study."""
    grid = commands.add_parser("grid", parents=[common], help="run a part of the RL study: arms x matched seeds")
    grid.add_argument("--arms", nargs="*", default=[], metavar="ARM", help="names of arms (default: all)")
    grid.add_argument("--seeds", nargs="*", type=int, metavar="N", help="matched seeds (default: the study's)")
    grid.add_argument("--hours", type=float, metavar="H", help="start no further run after H hours; 0: only the tables")
    grid.add_argument("--arms-from", type=Path, metavar="FILE", help="Python file with arms of your own in a tuple ARMS")
    grid.add_argument("--profile", default="study", help="study, or smoke to try it in small (default: study)")
    grid.add_argument("--list", action="store_true", help="print the arms and stop")
    grid.add_argument("--tables", action="store_true", help="write the tables again from the committed runs alone, and stop")
    grid.add_argument("--ray", metavar="ADDRESS", help='HOST:PORT of a Ray cluster, or auto; needs pip install -e ".[ray]"')
    needed = commands.add_parser("seeds-needed", parents=[common], help="the pilot: learning rate and number of matched seeds")
    needed.add_argument("--profile", default="study", help="study, or smoke to try it in small (default: study)")
    job = commands.add_parser("train-job", parents=[common])
    job.add_argument("path")


def build_parser() -> argparse.ArgumentParser:
    """The command line of `python -m saerl_lib`."""
    parser = _Parser(prog="python -m saerl_lib", description="A notebook-first artifact of arXiv 2605.27354.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    names = "{run,paper,data,world,bench,ladder,audit,sae,encode,plan,export,verify,train,grid,seeds-needed,publish,readme}"
    commands = parser.add_subparsers(dest="command", required=True, metavar=names)
    for add in (_add_notebooks, _add_reading, _add_trainers, _add_study):
        add(commands, common)
    return parser
