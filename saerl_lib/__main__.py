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

    run(RunOptions(profile=a.profile, seed=a.seed, seeds=a.seeds, start=a.start, only=a.only, force=a.force, strict=a.strict))
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

    return int(run_bench(a.name, a.samples, a.device) or 0)


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
    from saerl_lib.plan.batch_plan import run_plan_diff

    return run_plan_diff(a.first, a.second)


def _export(a: argparse.Namespace) -> int:
    from saerl_lib.export_command import run_export

    return run_export(a.plan, a.samples, a.to, a.out, a.rollouts)


def _verify(a: argparse.Namespace) -> int:
    from saerl_lib.export_command import run_verify

    return run_verify(a.plan, a.log, a.rollouts, a.any_slot, a.steps)


def _train(a: argparse.Namespace) -> int:
    from saerl_lib.train_command import run_train

    return run_train(a)


def _grid(a: argparse.Namespace) -> int:
    from saerl_lib.grid_command import list_arms, run_grid_command, run_tables

    if a.list:
        return list_arms(a.arms_from)
    if a.tables:
        return run_tables(a.profile)
    return run_grid_command(a.arms, a.seeds, a.hours, a.arms_from, a.profile, a.ray)


def _seeds_needed(a: argparse.Namespace) -> int:
    from saerl_lib.grid_command import run_seeds_needed

    return run_seeds_needed(a.profile)


def _publish(a: argparse.Namespace) -> int:
    from saerl_lib.report.reproduction import publish

    changed = publish(a.profile)
    print(f"{len(changed)} published files changed" + "".join(f"\n  {path}" for path in changed))
    return 0


def _readme(a: argparse.Namespace) -> int:
    from saerl_lib.report.tables import write_documents

    print("written: " + (", ".join(write_documents(paths.ROOT, paths.PUBLISHED)) or "nothing, all tables are up to date"))
    return 0


def _train_job(a: argparse.Namespace) -> int:
    from pathlib import Path

    from saerl_lib.train.run import read_run, train

    train(read_run(Path(a.path)))
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run, "paper": _paper, "data": _data, "world": _world, "bench": _bench, "ladder": _ladder,
    "sae": _sae, "audit": _audit, "encode": _encode, "plan": _plan, "export": _export, "verify": _verify, "train": _train,
    "grid": _grid, "seeds-needed": _seeds_needed, "publish": _publish, "readme": _readme, "train-job": _train_job,
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
