"""`python -m saerl_lib`: run the notebooks, check or rebuild the embedded world, measure speed, export plans.

Expected errors are printed as one message with exit code 1; `--debug` keeps the traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError
from saerl_lib.notebooks import UserError

EXPECTED = (UserError, ArtifactError, ValueError, OSError, FloatingPointError)
"""Errors whose message is written for the caller; FileNotFoundError is an OSError."""
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors end with exit code 1, as all bad input does here."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.format_usage()}error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line of `python -m saerl_lib`."""
    from saerl_lib.own_command import add_plan_options

    parser = _Parser(prog="python -m saerl_lib", description="A notebook-first artifact of arXiv 2605.27354.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    names = "{run,data,world,bench,ladder,audit,plan,export,verify,grid,seeds-needed,train,readme}"
    commands = parser.add_subparsers(dest="command", required=True, metavar=names)
    run = commands.add_parser("run", parents=[common], help="execute the notebooks in order")
    run.add_argument("--profile", default="laptop", help="smoke, laptop, method, study; paper with --plan-only (default: laptop)")
    run.add_argument("--from", dest="start", metavar="NN", help="first notebook to run, such as 07")
    run.add_argument("--only", metavar="NN", help="the one notebook to run, such as 09")
    run.add_argument("--force", action="store_true", help="run what is up to date too and compute its stages anew")
    run.add_argument("--seeds", type=int, metavar="N", help="number of matched training seeds (default: the profile's)")
    run.add_argument("--seed", type=int, default=0, metavar="N", help="base seed (default: 0)")
    run.add_argument("--plan-only", action="store_true", help="print what --profile paper would take, and download nothing")
    data = commands.add_parser("data", parents=[common], help="check a JSON-lines file of problems, row by row")
    data.add_argument("file", type=Path)
    world = commands.add_parser("world", parents=[common], help="check or rebuild the embedded world")
    action = world.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="compute the world's gates again and compare them")
    action.add_argument("--rebuild", action="store_true", help="train the shipped policy and encoder anew")
    bench = commands.add_parser("bench", parents=[common], help="measure speed as ratios")
    bench.add_argument("name", choices=("encode", "memory", "plan", "grpo"))
    bench.add_argument("--samples", type=int, default=103_022, metavar="N", help="pool size of `bench plan` (default: 103022)")
    ladder = commands.add_parser("ladder", parents=[common], help="the control ladder on a labelled JSON-lines file")
    ladder.add_argument("file", type=Path)
    ladder.add_argument("--profile", default="method", help="method, or smoke to try it in small (default: method)")
    audit = commands.add_parser("audit", parents=[common], help="why one sample stands where it stands in the plan")
    audit.add_argument("sample_id", metavar="SAMPLE_ID", help="id of a sample of the pool, such as pool-target-00001")
    audit.add_argument("--profile", default="laptop", help="smoke or laptop, already run (default: laptop)")
    audit.add_argument("--seed", type=int, default=0, metavar="N", help="base seed (default: 0)")
    audit.add_argument("--json", action="store_true", help="print the record as JSON")
    plan = commands.add_parser("plan", parents=[common], help="plan your own data, or compare two stored plans (plan diff A B)")
    add_plan_options(plan)
    diff = plan.add_subparsers(dest="action", metavar="{diff}").add_parser(
        "diff", parents=[common], help="how far samples move and how much of their company they keep"
    )
    diff.add_argument("first", type=Path, metavar="A", help="a plan, such as artifacts/laptop/plans/saerl.parquet")
    diff.add_argument("second", type=Path, metavar="B", help="another plan")
    export = commands.add_parser("export", parents=[common], help="write a plan as another trainer's data set and configuration")
    export.add_argument("--plan", type=Path, required=True, metavar="P", help="a plan, such as plans/saerl.parquet")
    export.add_argument("--samples", type=Path, required=True, metavar="FILE", help="its samples, as Parquet or JSON lines")
    export.add_argument("--to", required=True, metavar="NAME", help="trl, verl, nemo-rl or prime-rl")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write; it must not exist")
    export.add_argument("--rollouts", type=int, default=8, metavar="G", help="rollouts a prompt (default: 8)")
    verify = commands.add_parser("verify", parents=[common], help="whether a trainer followed a plan, from its log of sample ids")
    verify.add_argument("--plan", type=Path, required=True, metavar="P", help="the plan")
    verify.add_argument("--log", type=Path, required=True, metavar="L", help="JSON lines or Parquet with sample_id, or text")
    verify.add_argument("--rollouts", type=int, metavar="G", help="rollouts a prompt, for logs without steps or prompt order")
    verify.add_argument("--any-slot", action="store_true", help="accept any order inside a step")
    grid = commands.add_parser("grid", parents=[common], help="run a part of the RL study: arms x matched seeds")
    grid.add_argument("--arms", nargs="*", default=[], metavar="ARM", help="names of arms (default: all)")
    grid.add_argument("--seeds", nargs="*", type=int, metavar="N", help="matched seeds (default: the study's)")
    grid.add_argument("--hours", type=float, metavar="H", help="start no further run after H hours")
    grid.add_argument("--arms-from", type=Path, metavar="FILE", help="Python file with arms of your own in a tuple ARMS")
    grid.add_argument("--profile", default="study", help="study, or smoke to try it in small (default: study)")
    grid.add_argument("--publish", action="store_true", help="write the tables to figures/data, where the committed ones lie")
    grid.add_argument("--list", action="store_true", help="print the arms and stop")
    needed = commands.add_parser("seeds-needed", parents=[common], help="the pilot: learning rate and number of matched seeds")
    needed.add_argument("--profile", default="study", help="study, or smoke to try it in small (default: study)")
    train = commands.add_parser("train", parents=[common], help="GRPO by TRL on a plan, also under accelerate launch or torchrun")
    train.add_argument("--plan", type=Path, required=True, metavar="P", help="a plan, as written by the notebooks or by `plan`")
    train.add_argument("--samples", type=Path, required=True, metavar="FILE", help="its samples, Parquet or JSON lines")
    train.add_argument("--model", required=True, metavar="M", help="policy in Hugging Face format: folder or hub name")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoints, logs and the trained policy")
    train.add_argument("--rollouts", type=int, default=8, metavar="G", help="rollouts a prompt (default: 8)")
    train.add_argument("--micro-batch", type=int, default=8, metavar="N", help="rollouts of one forward pass (default: 8)")
    train.add_argument("--learning-rate", type=float, default=1e-6, metavar="X", help="constant (default: 1e-6)")
    train.add_argument("--temperature", type=float, default=0.6, metavar="X", help="of the rollouts (default: 0.6)")
    train.add_argument("--max-completion", type=int, default=3072, metavar="N", help="tokens of a completion (default: 3072)")
    train.add_argument("--save-every", type=int, default=20, metavar="N", help="steps between checkpoints (default: 20)")
    for flag, text in (("--vllm", "rollouts by vLLM"), ("--bf16", "mixed precision, on a GPU"), ("--chat", "chat messages")):
        train.add_argument(flag, action="store_true", help=text)
    commands.add_parser("readme", parents=[common], help="write the README's tables of claims and gates from figures/data")
    job = commands.add_parser("train-job", parents=[common])
    job.add_argument("path")
    return parser


def dispatch(arguments: argparse.Namespace) -> int:
    """Run the chosen command and return its exit code; imports are local so that `--help` stays quick."""
    if arguments.command == "run":
        if arguments.plan_only:
            from saerl_lib.paper.command import run_plan

            given = {name: getattr(arguments, name) for name in ("only", "force", "seeds", "seed")} | {"from": arguments.start}
            return run_plan(arguments.profile, [f"--{name}" for name, value in given.items() if value])
        from saerl_lib.runner import RunOptions, run

        run(
            RunOptions(
                profile=arguments.profile, seed=arguments.seed, seeds=arguments.seeds,
                start=arguments.start, only=arguments.only, force=arguments.force,
            )
        )  # fmt: skip
        return 0
    if arguments.command == "data":
        from saerl_lib.data.schema import load_jsonl

        samples = load_jsonl(arguments.file.read_text(encoding="utf-8").split("\n"), arguments.file.name)
        print(f"{len(samples)} problems, {sum(bool(s.steps) for s in samples)} with a worked solution")
        return 0
    if arguments.command == "world":
        from saerl_lib.world_command import run_world

        return int(run_world(arguments.check, arguments.rebuild) or 0)
    if arguments.command == "bench":
        from saerl_lib.bench import run_bench

        return int(run_bench(arguments.name, arguments.samples) or 0)
    if arguments.command == "ladder":
        from saerl_lib.ladder_command import run_ladder

        return run_ladder(arguments.file, arguments.profile)
    if arguments.command == "audit":
        from saerl_lib.audit_command import run_audit

        return run_audit(arguments.sample_id, arguments.profile, arguments.seed, arguments.json)
    if arguments.command == "plan" and arguments.action is None:
        from saerl_lib.own_command import run_plan

        return run_plan(arguments)
    if arguments.command == "plan":
        from saerl_lib.plan.compare import run_plan_diff

        return run_plan_diff(arguments.first, arguments.second)
    if arguments.command == "export":
        from saerl_lib.export_command import run_export

        return run_export(arguments.plan, arguments.samples, arguments.to, arguments.out, arguments.rollouts)
    if arguments.command == "verify":
        from saerl_lib.export_command import run_verify

        return run_verify(arguments.plan, arguments.log, arguments.rollouts, arguments.any_slot)
    if arguments.command == "grid":
        from saerl_lib.grid_command import list_arms, run_grid_command

        if arguments.list:
            return list_arms(arguments.arms_from)
        return run_grid_command(
            arguments.arms, arguments.seeds, arguments.hours, arguments.arms_from, arguments.profile, arguments.publish
        )
    if arguments.command == "seeds-needed":
        from saerl_lib.grid_command import run_seeds_needed

        return run_seeds_needed(arguments.profile)
    if arguments.command == "train":
        from saerl_lib.train_command import TrainSettings, run_train

        settings = TrainSettings(
            arguments.rollouts, arguments.micro_batch, arguments.learning_rate, arguments.temperature, arguments.max_completion,
            arguments.save_every, arguments.vllm, arguments.bf16, arguments.chat,
        )  # fmt: skip
        return run_train(arguments.plan, arguments.samples, arguments.model, arguments.out, settings)
    if arguments.command == "readme":
        from saerl_lib.report.tables import write_readme_tables

        write_readme_tables(paths.ROOT / "README.md", paths.FIGURES / "data")
        return 0
    from saerl_lib.rl.job import run_job

    return int(run_job(arguments.path) or 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` and run the command; returns 0, 1 for an expected error, or 130 when interrupted."""
    arguments = build_parser().parse_args(argv)
    try:
        return dispatch(arguments)
    except EXPECTED as error:
        if arguments.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues where this one stopped", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())
