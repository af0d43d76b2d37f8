"""`python -m saerl_lib`: what each command does; its options stand in `command_line`.

Expected errors are printed as one message with exit code 1; `--debug` keeps the traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError
from saerl_lib.command_line import build_parser
from saerl_lib.notebooks import UserError

EXPECTED = (UserError, ArtifactError, ValueError, OSError, FloatingPointError)
"""Errors whose message is written for the caller; FileNotFoundError is an OSError."""
INTERRUPTED = 130
WRITES_WHOLE = ("plan", "export")
"""Commands whose folder appears whole or not at all."""

# Imports are local to the commands so that `--help` stays quick.


def _run(a: argparse.Namespace) -> int:
    from saerl_lib.paper.path.options import option_names

    if a.plan_only:
        from saerl_lib.paper.command import run_plan

        given = {name: getattr(a, name) for name in ("only", "force", "seeds", "seed")} | {"from": a.start}
        return run_plan(a.profile, [f"--{name}" for name, value in given.items() if value] + option_names(a))
    if a.profile == "paper":
        from saerl_lib.paper.path.run import run_profile

        return run_profile(a)
    if option_names(a):
        raise UserError(f"{', '.join(option_names(a))}: only profile paper takes this; add --profile paper or leave it out")
    from saerl_lib.runner import RunOptions, run

    run(RunOptions(profile=a.profile, seed=a.seed, seeds=a.seeds, start=a.start, only=a.only, force=a.force))
    return 0


def _paper(a: argparse.Namespace) -> int:
    from saerl_lib.paper.path.run import run_command

    return run_command(a)


def _data(a: argparse.Namespace) -> int:
    from saerl_lib.data.published import load_labelled

    samples = load_labelled(a.file).samples
    print(f"{len(samples)} problems, {sum(bool(s.steps) for s in samples)} with a worked solution")
    return 0


def _world(a: argparse.Namespace) -> int:
    from saerl_lib.world_command import run_world

    return run_world(a.check, a.rebuild, a.device)


def _bench(a: argparse.Namespace) -> int:
    from saerl_lib.bench import run_bench

    return int(run_bench(a.name, a.samples, a.device, a.out) or 0)


def _scale(a: argparse.Namespace) -> int:
    from saerl_lib.scale.command import run_scale

    return run_scale(a.samples, a.simulate, a.write_docs)


def _sae(a: argparse.Namespace) -> int:
    from saerl_lib.sae_command import run_sae

    return run_sae(a)


def _ladder(a: argparse.Namespace) -> int:
    from saerl_lib.ladder_command import run_ladder

    return run_ladder(a.file, a.profile)


def _audit(a: argparse.Namespace) -> int:
    from saerl_lib.audit_command import run_audit

    return run_audit(a.sample_id, a.profile, a.seed, a.json)


def _encode(a: argparse.Namespace) -> int:
    from saerl_lib.encode_command import run_encode

    return run_encode(a)


def _plan(a: argparse.Namespace) -> int:
    if a.action is None:
        from saerl_lib.own_command import run_plan

        return run_plan(a)
    from saerl_lib.plan.compare import run_plan_diff

    return run_plan_diff(a.first, a.second)


def _export(a: argparse.Namespace) -> int:
    from saerl_lib.export_command import run_export

    return run_export(a.plan, a.samples, a.to, a.out, a.rollouts)


def _verify(a: argparse.Namespace) -> int:
    from saerl_lib.export_command import run_verify

    return run_verify(a.plan, a.log, a.rollouts, a.any_slot, a.steps)


def _train(a: argparse.Namespace) -> int:
    from saerl_lib.train_command import TrainSettings, run_train

    settings = TrainSettings(
        rollouts_per_prompt=a.rollouts, micro_batch=a.micro_batch, learning_rate=a.learning_rate, temperature=a.temperature,
        max_completion_tokens=a.max_completion, save_every_steps=a.save_every, vllm=a.vllm, bf16=a.bf16, chat=a.chat,
        loss=a.loss, steps=a.steps, keep_every_steps=a.keep_every, seed=a.seed, selector=a.selector,
    )  # fmt: skip
    return run_train(a.plan, a.samples, a.model, a.out, settings, a.measured)


def _grid(a: argparse.Namespace) -> int:
    from saerl_lib.grid_command import list_arms, run_grid_command, run_tables

    if a.list:
        return list_arms(a.arms_from)
    if a.tables:
        return run_tables(a.profile)
    return run_grid_command(a.arms, a.seeds, a.hours, a.arms_from, a.profile, a.publish, a.ray, a.go_on)


def _seeds_needed(a: argparse.Namespace) -> int:
    from saerl_lib.grid_command import run_seeds_needed

    return run_seeds_needed(a.profile)


def _readme(a: argparse.Namespace) -> int:
    from saerl_lib.report.documents import write_documents

    print("written: " + (", ".join(write_documents(paths.ROOT, paths.FIGURES / "data")) or "nothing, all tables are up to date"))
    return 0


def _train_job(a: argparse.Namespace) -> int:
    from saerl_lib.rl.job import run_job

    return run_job(a.path)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run, "paper": _paper, "data": _data, "world": _world, "bench": _bench, "scale": _scale, "ladder": _ladder,
    "sae": _sae, "audit": _audit, "encode": _encode, "plan": _plan, "export": _export, "verify": _verify, "train": _train,
    "grid": _grid, "seeds-needed": _seeds_needed, "readme": _readme, "train-job": _train_job,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` and run the command; returns 0, 1 for an expected error, or 130 when interrupted."""
    arguments = build_parser().parse_args(argv)
    try:
        return COMMANDS[arguments.command](arguments)
    except EXPECTED as error:
        if arguments.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        then = "nothing was written" if arguments.command in WRITES_WHOLE else "the same command continues where this one stopped"
        print(f"interrupted; {then}", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())
