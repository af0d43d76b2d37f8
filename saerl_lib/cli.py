"""`python -m saerl_lib`: what each command does; its options stand in `command_line`.

Expected errors are printed as one message with exit code 1; `--debug` keeps the traceback.

The options of every command of `python -m saerl_lib`, by what they are for.

`python -m saerl_lib encode --data FILE --encoder FOLDER --layer N --sae SAE --out DIR`: a data file as stored SAE latents.

`python -m saerl_lib plan --data FILE --out DIR`: a plan of one's own data, with its report.

`python -m saerl_lib sae --text FILE --encoder MODEL --layer N --tokens N --out DIR`: an SAE of one's own, on any text.

`python -m saerl_lib train`: GRPO by TRL on a plan, in one process or many (`accelerate launch`, `torchrun`).

For policies that need GPUs. With `--selector` the plan only names the samples, and an arm of the study chooses among them as it
learns; DAPO's dynamic sampling is left out there, since it draws prompts that no plan names, and TRL has none.

`python -m saerl_lib ladder FILE`: the whole control ladder on one labelled file, with the readers of profile `method`.

`python -m saerl_lib audit SAMPLE_ID`: the decision path of one sample of a finished profile.

`export` and `verify`: a batch plan for another trainer, and whether that trainer followed it.

The options of `paper STEP` and of `run --profile paper`, and the settings that they name; the standard library alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pandas as pd

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, file_sha256, load_stage, provenance, write_json
from saerl_lib.config import WORLD_PARTS, Profile, TrainConfig, content_hash, get_profile, to_dict
from saerl_lib.cost import ARMS, POOLS, TARGETS, PaperConfig
from saerl_lib.data.published import load_labelled
from saerl_lib.data.rows import DEFAULTS, Fields, Rules, Source, field_names, judge, require_sound, resolve_fields, rows
from saerl_lib.data.sample import DataError, Dropped, Sample, normalise
from saerl_lib.notebooks import UserError
from saerl_lib.own import NO_ENCODER, OwnConfig
from saerl_lib.plan.audit import audit, open_evidence
from saerl_lib.plan.audit_text import audit_text
from saerl_lib.plan.export import export_plan, open_export, open_plan, require_target, samples_beside
from saerl_lib.plan.follow import FollowReport, LogError, follow, read_log
from saerl_lib.properties.audit import audit_stage
from saerl_lib.properties.probes import tasks_of_file
from saerl_lib.report.figures import draw
from saerl_lib.report.tables import write_csv
from saerl_lib.studies.ladder import encode_tasks, ladder
from saerl_lib.train.run import Run, keyed, train, write_run
from saerl_lib.world.stages import corpus_keys, held_out_keys, ladder_reader, sae_kinds_stage, text_model_stage

if TYPE_CHECKING:
    from saerl_lib.data.sample import Dataset
    from saerl_lib.own import Representation

SAMPLES_HELP = "its samples, Parquet or JSON lines (default: those that `plan` wrote beside the plan)"


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors end with exit code 1, as all bad input does here."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.format_usage()}error: {message}\n")


def _add_notebooks(commands: Any, common: argparse.ArgumentParser) -> None:
    """Running the artifact, checking its data and its speed."""
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
    bench.add_argument("name", choices=("encode", "plan", "grpo", "preparation"))
    bench.add_argument("--samples", type=int, default=103_022, metavar="N", help="pool size of `bench plan` (default: 103022)")
    bench.add_argument("--device", metavar="NAME", help="cpu or cuda, for `bench encode` (default: cpu)")
    publish = commands.add_parser("publish", parents=[common], help="replace the published results by those of the finished run")
    publish.add_argument("--profile", default="laptop", help="laptop, method or study (default: laptop)")
    commands.add_parser("readme", parents=[common], help="write the tables of README.md and docs/ from figures/data")


def _add_reading(commands: Any, common: argparse.ArgumentParser) -> None:
    """Reading data: the ladder, one sample, plans."""
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


EXPECTED = (UserError, ArtifactError, ValueError, OSError, FloatingPointError)
"""Errors whose message is written for the caller; FileNotFoundError is an OSError."""
INTERRUPTED = 130
WRITES_WHOLE = ("plan", "export")
"""Commands whose folder appears whole or not at all."""

# Imports are local to the commands so that `--help` stays quick.


def _run(a: argparse.Namespace) -> int:
    if a.plan_only:
        from saerl_lib.needs import run_plan

        given = {name: getattr(a, name) for name in ("only", "force", "seeds", "seed")} | {"from": a.start}
        return run_plan(a.profile, [f"--{name}" for name, value in given.items() if value] + option_names(a))
    if a.profile == "paper":
        from saerl_lib.studies.paper_runs import run_profile

        return run_profile(a)
    if option_names(a):
        raise UserError(f"{', '.join(option_names(a))}: only profile paper takes this; add --profile paper or leave it out")
    from saerl_lib.notebooks import RunOptions, run

    run(RunOptions(profile=a.profile, seed=a.seed, seeds=a.seeds, start=a.start, only=a.only, force=a.force, strict=a.strict))
    return 0


def _paper(a: argparse.Namespace) -> int:
    from saerl_lib.studies.paper_runs import run_command

    return run_command(a)


def _data(a: argparse.Namespace) -> int:
    from saerl_lib.data.published import load_labelled

    samples = load_labelled(a.file).samples
    print(f"{len(samples)} problems, {sum(bool(s.steps) for s in samples)} with a worked solution")
    return 0


def _world(a: argparse.Namespace) -> int:
    from saerl_lib.studies.world_check import run_world

    return run_world(a.check, a.rebuild, a.device)


def _bench(a: argparse.Namespace) -> int:
    from saerl_lib.studies.bench import run_bench

    return int(run_bench(a.name, a.samples, a.device) or 0)


def _sae(a: argparse.Namespace) -> int:
    return run_sae(a)


def _ladder(a: argparse.Namespace) -> int:
    return run_ladder(a.file, a.profile)


def _audit(a: argparse.Namespace) -> int:
    return run_audit(a.sample_id, a.profile, a.seed, a.json)


def _encode(a: argparse.Namespace) -> int:
    return run_encode(a)


def _plan(a: argparse.Namespace) -> int:
    if a.action is None:
        return run_plan(a)
    from saerl_lib.plan.batch_plan import run_plan_diff

    return run_plan_diff(a.first, a.second)


def _export(a: argparse.Namespace) -> int:
    return run_export(a.plan, a.samples, a.to, a.out, a.rollouts)


def _verify(a: argparse.Namespace) -> int:
    return run_verify(a.plan, a.log, a.rollouts, a.any_slot, a.steps)


def _train(a: argparse.Namespace) -> int:
    return run_train(a)


def _grid(a: argparse.Namespace) -> int:
    from saerl_lib.studies.results import list_arms, run_grid_command, run_tables

    if a.list:
        return list_arms(a.arms_from)
    if a.tables:
        return run_tables(a.profile)
    return run_grid_command(a.arms, a.seeds, a.hours, a.arms_from, a.profile, a.ray)


def _seeds_needed(a: argparse.Namespace) -> int:
    from saerl_lib.studies.results import run_seeds_needed

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


LEFT_OUT = "not_encoded.csv"


def add_encode_options(parser: argparse.ArgumentParser) -> None:
    """The options of `encode`."""
    add = parser.add_argument
    add("--data", nargs="+", required=True, metavar="FILE", help="JSON lines, CSV or Parquet; several are read as one list")
    add("--encoder", required=True, metavar="MODEL", help="Hugging Face model: folder or hub name")
    add("--layer", type=int, required=True, metavar="N", help="block whose residual stream the SAE reads, 1 is the first")
    add("--sae", required=True, metavar="SAE", help="FOLDER saved by SAELens, opensae:FOLDER or saelens:RELEASE/ID")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the latents; the same command continues there")
    for name, usual in DEFAULTS.items():
        add(f"--{name}-field", metavar="NAME", help=f"field of the {name} (default: {usual})")
    add("--max-tokens", type=int, metavar="N", help="cut longer samples (default: the model's positions)")
    add("--skip-bad-rows", action="store_true", help="leave malformed rows out and list them, instead of stopping")
    add("--workers", type=int, metavar="N", help="processes (default: one a core; on Ray two parts a CPU of the cluster)")
    add("--ray", metavar="ADDRESS", help='HOST:PORT of a Ray cluster, or auto; needs pip install -e ".[ray]"')


def run_encode(a: argparse.Namespace) -> int:
    """Encode with a bar; the last line is one JSON object. Raises DataError for bad data, and what `encode` raises."""
    config = OwnConfig(
        fields=Fields(**{name: getattr(a, f"{name}_field") for name in DEFAULTS}), encoder=a.encoder, layer=a.layer, sae=a.sae,
        max_tokens=a.max_tokens, skip_bad_rows=a.skip_bad_rows,
    )  # fmt: skip
    from saerl_lib.encode.parts import encode, require_ray, require_shared

    if a.ray is not None:
        require_ray(a.ray)
        require_shared(config.reader)
    started = time.monotonic()
    samples, dropped, notes = usable_rows(a.data, config)
    left_out = dict(sorted(Counter(d.status for d in dropped).items()))
    read = len(samples) + len(dropped)
    files = [Path(name) for name in a.data]
    source = [{"name": f.name, "sha256": file_sha256(f) if f.is_file() else None} for f in files]
    about = {"source": source, "read": read, "left_out": left_out, "notes": notes}
    done = encode(samples, config.reader, a.out, workers=a.workers, ray=a.ray, about=about)
    rest = [(d.where, d.id, d.status, d.reason) for d in dropped]
    table = pd.DataFrame(rest, columns=["where", "id", "status", "reason"])
    table.to_csv(a.out / LEFT_OUT, index=False, lineterminator="\n")
    for status, count in left_out.items():
        print(f"not encoded, {status}: {count} ({LEFT_OUT})")
    line = {"read": read, "left_out": left_out, "parts": done.parts, "reused": done.reused, **done.totals,
            "seconds": round(time.monotonic() - started, 1)}  # fmt: skip
    print(json.dumps(line))
    return 0


def usable_rows(sources: Sequence[str], config: OwnConfig) -> tuple[list[Sample], list[Dropped], list[str]]:
    """The usable rows of files that are read as one list, the others, and what was assumed; judged as `plan` judges them.

    Raises DataError with file, row, field and fix.
    """
    places = [Source.parse(source) for source in sources]
    name = places[0].name + (f" and {len(places) - 1} more" if len(places) > 1 else "")
    raw = [
        dataclasses.replace(row, where=f"{place.name}, {row.where}") if len(places) > 1 else row
        for place in places
        for row in rows(place)
    ]
    names, notes = resolve_fields(name, field_names(raw), config.fields)
    rules = Rules(names)
    judged = [judge(row, number, rules) for number, row in enumerate(raw, start=1)]
    dropped = [found for found in judged if isinstance(found, Dropped)]
    samples = [found.sample for found in judged if not isinstance(found, Dropped)]
    if not config.skip_bad_rows:
        require_sound(name, len(raw), dropped)
    if not samples:
        raise DataError(f"{name}: none of {len(dropped)} rows is usable; first: {dropped[0].where}: {dropped[0].reason}")
    return samples, dropped, notes


BARE = OwnConfig()
"""Where the options take their defaults from."""


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """The options of `plan` beside its subcommand `diff`."""
    add = parser.add_argument
    add("--data", metavar="FILE",
        help="JSON lines, CSV or Parquet (.gz allowed but for Parquet), or owner/name on the Hugging Face Hub")  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="new folder for plan.parquet, scores.csv, report.html and their neighbours")
    add("--force", action="store_true", help="replace an earlier plan at DIR")
    add("--labels", metavar="FIELD", help="field of difficulty labels, such as level or pass_rate (default: no labels)")
    add("--label-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="refuse labels outside (pass_rate: 0 1)")
    add("--larger-is-easier", action="store_true", help="the labels fall with difficulty (pass_rate: always)")
    add("--quality", metavar="FIELD", help="field of true/false labels: sound, or of the wanted source")
    add("--keep", type=float, metavar="SHARE", help="keep this share of the rows by quality (default: all)")
    for name, usual in DEFAULTS.items():
        add(f"--{name}-field", metavar="NAME", help=f"field of the {name} (default: {usual})")
    add("--split", default=BARE.split, help=f"split of a hub data set (default: {BARE.split})")
    add("--encoder", default=BARE.encoder, metavar="MODEL",
        help="none, or a Hugging Face model: folder or hub name (default: none)")  # fmt: skip
    add("--layer", type=int, metavar="N", help="block whose residual stream the SAE reads, 1 is the first")
    add("--sae", metavar="SAE", help="FOLDER saved by SAELens, opensae:FOLDER or saelens:RELEASE/ID")
    add("--features", type=Path, metavar="DIR", help="what `encode` left of this file, in place of --encoder, --layer and --sae")
    add("--max-tokens", type=int, metavar="N", help="cut longer samples (default: the model's positions)")
    add("--device", default=BARE.device, metavar="NAME", help=f"where the model runs: cpu, cuda, cuda:N (default: {BARE.device})")
    add("--bf16", action="store_true", help="run the model in bfloat16")
    add("--clusters", type=int, metavar="K", help="number of clusters (default: 10, fewer for a small file)")
    add("--prompts-per-step", type=int, default=BARE.prompts_per_step, metavar="B",
        help=f"batch size (default: {BARE.prompts_per_step})")  # fmt: skip
    add("--without-labels", choices=("length", "random"), default=BARE.without_labels,
        help="order within a cluster without labels (default: length)")  # fmt: skip
    add("--skip-bad-rows", action="store_true", help="leave malformed rows out and list them, instead of stopping")
    add("--seed", type=int, default=BARE.seed, metavar="N", help=f"base seed (default: {BARE.seed})")


def config_of_own(arguments: argparse.Namespace) -> OwnConfig:
    """The settings that the options name. Raises ValueError for a bad combination."""
    span = arguments.label_range
    given = vars(arguments) | {"label_range": tuple(span) if span else None}
    own = Fields(labels=arguments.labels, quality=arguments.quality, **{name: given[f"{name}_field"] for name in DEFAULTS})
    return OwnConfig(fields=own, **{entry.name: given[entry.name] for entry in fields(OwnConfig) if entry.name in given})


def run_plan(arguments: argparse.Namespace) -> int:
    """Plan, tell each step and the warnings; the last line is one JSON object.

    Raises UserError without --data or --out, and what `plan_own_data` raises.
    """
    if arguments.data is None or arguments.out is None:
        raise UserError("plan needs --data FILE and --out DIR; to compare two stored plans: plan diff A B")
    config, started = config_of_own(arguments), time.monotonic()
    from saerl_lib.own import plan_own_data

    read = None
    if arguments.features is not None:
        if config.encoder != NO_ENCODER:
            raise UserError("--features takes the place of --encoder, --layer and --sae; leave them out")
        from saerl_lib.own import represent_encoded

        def read(data: Dataset) -> Representation:
            return represent_encoded(data, arguments.data, arguments.features, config)

    outcome = plan_own_data(arguments.data, arguments.out, config, arguments.force, lambda text: print(text, flush=True), read)
    for title in outcome.warnings:
        print(f"warning: {title}")
    for status, count in outcome.left_out.items():
        print(f"not planned, {status}: {count} (not_planned.csv)")
    print(f"{outcome.planned} of {outcome.read} rows in {outcome.steps} steps; open {arguments.out / 'report.html'}")
    line = {"read": outcome.read, "planned": outcome.planned, "left_out": outcome.left_out, "steps": outcome.steps,
            "seconds": round(time.monotonic() - started, 1)}  # fmt: skip
    print(json.dumps(line))
    return 0


EXPANSION = 64
"""F over the model's width (paper, section C.1)."""


def add_sae_options(parser: argparse.ArgumentParser) -> None:
    """The options of `sae`."""
    add = parser.add_argument
    add("--text", nargs="+", required=True, metavar="FILE",
        help="JSON lines, Parquet or text, or OWNER/NAME@COMMIT[:CONFIGURATION] on the hub; read one after another")  # fmt: skip
    add("--text-field", default="text", metavar="NAME", help="field that holds the text (default: text)")
    add("--encoder", required=True, metavar="MODEL", help="model in Hugging Face format: folder or hub name")
    add("--layer", type=int, required=True, metavar="N", help="block whose residual stream is read, 1 is the first")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the SAE; the same command goes on there")
    add("--tokens", type=int, required=True, metavar="N", help="activation vectors to train on")
    add("--latents", type=int, metavar="F", help=f"width (default: {EXPANSION} times the model's, as the paper's)")
    add("--k", type=int, default=50, metavar="N", help="active latents a token (default: 50)")
    add("--learning-rate", type=float, default=3e-4, metavar="X", help="of Adam (default: 0.0003)")
    add("--vectors-per-step", type=int, default=4096, metavar="N", help="vectors of one optimiser step (default: 4096)")
    add("--context", type=int, default=1024, metavar="N", help="tokens of a block of text (default: 1024)")
    add("--buffer", type=int, default=131_072, metavar="N", help="vectors that are mixed; bounds the memory (default: 131072)")
    add("--heldout", type=int, default=100_000, metavar="N", help="first vectors, which measure the SAE (default: 100000)")
    add("--checkpoint-every", type=int, default=10_000_000, metavar="N", help="vectors between checkpoints (default: 10000000)")
    add("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    add("--bf16", action="store_true", help="run the model in bfloat16; the SAE stays in float32")
    add("--seed", type=int, default=0, metavar="N", help="of weights and mixing (default: 0)")


def run_sae(a: argparse.Namespace) -> int:
    """Train or go on; the last line is one JSON object. Raises what `open_decoder` and `train_text_sae` raise."""
    from saerl_lib.encode.sae import require_sources

    require_sources(a.text)
    from saerl_lib.encode.models import open_decoder
    from saerl_lib.encode.sae import TextSAEConfig, train_text_sae

    started = time.monotonic()
    decoder, tokenizer, width, identity = open_decoder(a.encoder, a.layer, a.device, a.bf16)
    config = TextSAEConfig(
        latents=a.latents or EXPANSION * width, tokens=a.tokens, k=a.k, learning_rate=a.learning_rate,
        vectors_per_step=a.vectors_per_step, context=a.context, buffer_vectors=a.buffer, heldout_tokens=a.heldout,
        checkpoint_every=a.checkpoint_every, seed=a.seed,
    )  # fmt: skip
    quality = train_text_sae(a.text, a.text_field, decoder, tokenizer, config, identity, a.out, lambda t: print(t, flush=True))
    print(f"{a.out}: explained variance {quality.explained_variance:.3f}, L0 {quality.l0:.1f}, dead share "
          f"{quality.dead_share:.3f} on {quality.n_tokens:,} held-out tokens; read it with --sae {a.out}")  # fmt: skip
    line = {"explained_variance": quality.explained_variance, "l0": quality.l0, "dead_share": quality.dead_share,
            "tokens": a.tokens, "seconds": round(time.monotonic() - started, 1)}  # fmt: skip
    print(json.dumps(line))
    return 0


def plan_run(
    plan: Path, samples: Path | None, model: str, folder: Path, settings: TrainConfig, seed: int = 0, steps: int | None = None,
    arm: str = "", measured: Path | None = None, identity: str = "",
) -> Run:  # fmt: skip
    """The run of a plan by TRL, or of the selector of `arm` among its samples by what `measured` knows of them.

    `samples` None: those beside the plan. `steps` None: one pass over the plan. Raises what `open_export` raises, ValueError for
    `steps` below 1.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    export = open_export(plan, samples, settings.rollouts_per_prompt)
    files = [str(Path(p).absolute()) for p in (plan, samples or samples_beside(plan))]
    return keyed(Run(
        arm=arm or "plan", seed=seed, folder=folder, policy=str(Path(model).absolute()) if Path(model).is_dir() else model,
        plan=files[0], samples=files[1], prompts_per_step=export.prompts_per_step, steps=steps or export.plan.steps,
        rollouts_per_step=export.rollouts_per_step, train=settings, table=str(measured.absolute()) if measured else "",
    ), identity)  # fmt: skip


def run_train(a: argparse.Namespace) -> int:
    """Entry of the command; process 0 says at the end that the plan, or what the selector chose, was followed.

    Raises ArtifactError for one of --selector and --measured without the other, and what `plan_run`, `write_run` and `train`
    raise.
    """
    if bool(a.selector) != (a.measured is not None):
        raise ArtifactError("--selector and --measured belong together: give both, or neither to follow the plan")
    settings = TrainConfig(
        engine="trl", rollouts_per_prompt=a.rollouts, micro_batch=a.micro_batch, learning_rate=a.learning_rate,
        temperature=a.temperature, max_completion_tokens=a.max_completion, checkpoint_every_steps=a.save_every, loss=a.loss,
        keep_every_steps=a.keep_every, vllm=a.vllm, bf16=a.bf16, chat=a.chat,
    )  # fmt: skip
    run = plan_run(a.plan, a.samples, a.model, a.out, settings, a.seed, a.steps, a.selector, a.measured)
    first, processes = os.environ.get("RANK", "0") == "0", int(os.environ.get("WORLD_SIZE", "1"))
    if first:
        write_run(run)
    train(run)
    if first:
        print(json.dumps({"followed": True, "steps": run.updates, "processes": processes}), flush=True)
    return 0


def require_method(name: str) -> Profile:
    """A profile that has the full ladder. Raises UserError for one that has not."""
    profile = get_profile(name)
    if profile.method is None:
        raise UserError(f"profile {name!r} computes no ladder; use --profile method, or smoke to try it in small")
    return profile


def run_ladder(file: Path, profile_name: str) -> int:
    """Every label of `file` that can be read becomes a task; table, figure and predictions go to a folder of their own."""
    profile = require_method(profile_name)
    data = load_labelled(file)
    tasks = tasks_of_file(data, profile.method, held_out_keys(), lambda line: print(line, flush=True))
    read = corpus_keys(profile.method)
    for task in tasks:
        seen = sum(normalise(s.prompt) in read for s in task.test)
        print(f"{task.target}: {len(task.train)} training and {len(task.test)} test problems; the LM and the SAEs may have read "
              f"the text of {seen} of the latter, without labels", flush=True)  # fmt: skip
    text_model = text_model_stage(profile)
    reader = ladder_reader(profile, sae_kinds_stage(profile, "text", text_model), text_model)
    folder = paths.profile_dir(profile.name) / "files" / data.name
    folder.mkdir(parents=True, exist_ok=True)
    blocks = encode_tasks(tasks, profile, reader, folder)
    table, predictions = ladder(tasks, blocks, profile.properties, profile.seed)
    write_csv(table, "probe_ladder", folder)
    predictions.to_parquet(folder / "predictions.parquet", index=False)
    write_json(folder / "provenance.json", {"file": file.name, "settings": content_hash(to_dict(profile)), **provenance()})
    shown = table[table["metric"].isin(("accuracy", "spearman", "roc_auc", "pearson"))]
    print(shown.pivot_table(index="features", columns=["target", "metric"], values="value", sort=False).round(3).to_string())
    print(f"table, figure and predictions: {draw('probe_ladder', folder, folder).parent}")
    return 0


def run_audit(sample_id: str, profile: str, seed: int, as_json: bool) -> int:
    """Print the record as paragraphs or JSON; the stage `audit` is computed when it is missing.

    Raises UnknownSampleError with near ids, ArtifactError when a stage of the profile was not run yet.
    """
    settings = get_profile(profile, seed=seed)
    stages = [load_stage(settings, name) for name in ("world", "sae", "features", "difficulty")]
    for name in ("filter", "plans"):
        load_stage(settings, name)
    record = audit(sample_id, open_evidence(settings, audit_stage(settings, *stages)))
    print(json.dumps(record.to_dict(), indent=1, ensure_ascii=False) if as_json else audit_text(record))
    return 0


def run_export(plan: Path, samples: Path | None, target: str, out: Path, rollouts: int) -> int:
    """Write the plan's data set, configuration and README for a framework.

    Raises ExportError for a framework that cannot keep an order, ids without a sample, or a folder that is not free.
    """
    require_target(target)
    export = open_export(plan, samples, rollouts)
    files = export_plan(export, target, out)
    print(f"{out}: {export.plan.steps} steps of {export.prompts_per_step} prompts for {target}")
    print(f"files: {', '.join(files)}; {out / 'README.md'} has the launch command")
    return 0


def run_verify(plan: Path, log: Path, rollouts: int | None, any_slot: bool, steps: int | None = None) -> int:
    """Print the comparison, the last line as one JSON object; 0 when the plan was followed, else 1.

    With `steps` the log is that many steps long and may end in the middle of a pass over the plan. Raises PlanError or LogError
    when a file is missing or malformed.
    """
    if steps is not None and steps < 1:
        raise LogError(f"--steps {steps}: give the optimiser steps of the run, at least 1")
    report = follow(open_plan(plan), read_log(log), rollouts, any_slot)
    followed = report.followed_for(steps)
    if followed and not report.followed:
        print(f"the plan was followed: {steps} steps, {report.steps_planned} in a pass")
    else:
        print("\n".join(verdict(report)))
    if report.followed and not followed:
        print(f"but the log holds {report.steps_logged} steps, not {steps}")
    values = dataclasses.asdict(report) | {"followed": followed}
    print(json.dumps({**values, **{name: len(values[name]) for name in ("dropped", "repeated", "unknown")}}))
    return 0 if followed else 1


def verdict(report: FollowReport) -> list[str]:
    """The report in words, one line a finding."""
    times = "" if report.epochs == 1 else f", {report.epochs} times"
    if report.first is None:
        return [f"the plan was followed: {report.steps_planned} steps{times}"]
    first = report.first
    place = f"step {first.step}, slot {first.slot} (both from 0)"
    if report.log_ended:
        lines = [f"the plan was NOT followed to its end: the log ends before {place}, where the plan says {first.planned}"]
    else:
        planned, consumed = first.planned or "nothing more", first.consumed or "nothing"
        lines = [f"the plan was NOT followed: at {place} it says {planned}, the trainer consumed {consumed}"]
    lines.append(f"{report.steps_kept} of {report.steps_planned * report.epochs} steps hold the planned prompts")
    if report.only_order_inside_steps:
        lines.append("only the order inside steps differs, which changes no batch: --any-slot accepts it")
    for label, ids in (
        ("planned and never consumed", report.dropped),
        ("consumed in more steps than planned", report.repeated),
        ("not in the plan", report.unknown),
    ):
        if ids:
            lines.append(f"{len(ids)} ids {label}, first {', '.join(ids[:3])}")
    return lines


PREFIX = "paper_"
"""Of the options' places in the parsed arguments, apart from those of other commands."""
SWAP = 16
"""One of so many samples of a batch is exchanged (paper: 8 of 128)."""
HELP: dict[str, tuple[str, str, str]] = {
    "sources": ("--sources", "DIR", "folder with every data set as OWNER/NAME, in the hub's format (default: the hub)"),
    "encoder_folder": ("--encoder", "FOLDER", "model that reads the data (default: the hub's)"),
    "encoder_layer": ("--layer", "N", "block whose residual stream the SAE reads, 1 is the first"),
    "sae_source": ("--sae", "SAE", "FOLDER saved by SAELens, opensae:FOLDER or saelens:RELEASE/ID (default: the published one)"),
    "policy": ("--policy", "MODEL", "policy to train: a folder, or one of the paper's repositories"),
    "filter_samples": ("--filter-samples", "N", "NuminaMath-1.5 samples of the noisy pool"),
    "labelled_samples": ("--labelled", "N", "difficulty labels of the calibration"),
    "source_labels": ("--source-labels", "N", "samples of each source that the filter is trained on"),
    "rated_samples": ("--rated", "N", "PRM800K solutions whose quality is read"),
    "clusters": ("--clusters", "K", "number of clusters"),
    "retained_latents": ("--retained", "N", "latents that enter z"),
    "encode_max_tokens": ("--encode-tokens", "N", "cut longer samples when encoding"),
    "steps": ("--steps", "N", "optimiser steps; beyond the plan's end the plan starts again"),
    "prompts_per_step": ("--prompts-per-step", "B", "prompts of one step; one of 16 is swapped"),
    "rollouts_per_prompt": ("--rollouts", "G", "rollouts a prompt"),
    "max_prompt_tokens": ("--max-prompt", "N", "longest prompt; samples with a longer one are left out"),
    "max_response_tokens": ("--max-completion", "N", "longest completion"),
    "learning_rate": ("--learning-rate", "X", "constant"),
    "micro_batch": ("--micro-batch", "N", "rollouts of one forward pass of one process"),
    "eval_every_steps": ("--eval-every", "N", "steps between evaluated policies"),
    "eval_samples": ("--attempts", "K", "completions a problem in evaluations"),
    "adarft_samples": ("--rate-attempts", "K", "rollouts a prompt of the base policy, for arm adarft"),
    "measure_part": ("--measure-part", "N", "samples of one part of step measure, which a stopped step goes on with"),
    "measure_sequences": ("--measure-sequences", "N", "completions generated side by side in step measure"),
    "eval_sequences": ("--eval-sequences", "N", "completions generated side by side in evaluations"),
    "answer_seconds": ("--answer-seconds", "X", "longest comparison of one answer in an evaluation or a pass rate"),
    "seeds": ("--seeds", "N", "matched seeds"),
    "seed": ("--seed", "N", "base seed"),
    "launch": ("--launch", "COMMAND", "starts the training processes, such as 'accelerate launch --config_file FILE'"),
}  # fmt: skip
"""Field of PaperConfig -> option, placeholder, help."""
SHARED = ("seeds", "seed")
"""Options that `run` has of its own."""
TYPES = {"int": int, "float": float}
PLACES = ("sources", "encoder_folder", "sae_source", "policy")
"""Fields that may name a folder, meant from where the command was typed."""


def add_options(parser: argparse.ArgumentParser, shared: bool = True) -> None:
    """Add the options; without `shared` those that the parser has already are left out."""
    group = parser.add_argument_group("profile paper")
    kinds, bare = {f.name: str(f.type) for f in fields(PaperConfig)}, PaperConfig()
    for name, (option, placeholder, text) in HELP.items():
        if name in SHARED and not shared:
            continue
        default = getattr(bare, name)
        shown = "" if "default:" in text or default == "" else f" (default: {default})"
        group.add_argument(option, dest=PREFIX + name, type=TYPES.get(kinds[name], str), metavar=placeholder, help=text + shown)
    group.add_argument("--arms", dest=PREFIX + "arms", nargs="+", metavar="ARM", help=f"of {', '.join(ARMS)}")
    group.add_argument("--to", dest=PREFIX + "exports", nargs="*", metavar="NAME", help=f"export plans to {', '.join(TARGETS)}")
    group.add_argument("--train-on", dest=PREFIX + "train_on", choices=POOLS, help="DeepMath alone, or what the filter keeps")
    group.add_argument(
        "--revision", dest=PREFIX + "revisions", action="append", metavar="SET=HASH", help="pin a data set, such as amc23=..."
    )
    group.add_argument("--plain", dest=PREFIX + "plain", action="store_true", help="prompts without the chat template")
    for name, text in (("skip_bad_rows", "leave malformed rows out and list them"), ("vllm", "rollouts by vLLM"),
                       ("bf16", "bfloat16, on a GPU")):  # fmt: skip
        group.add_argument(f"--{name.replace('_', '-')}", dest=PREFIX + name, action="store_true", help=text)


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, by field; `plain` besides."""
    found = {name.removeprefix(PREFIX): value for name, value in vars(arguments).items() if name.startswith(PREFIX)}
    return {name: value for name, value in found.items() if value is not None and value is not False}


def option_names(arguments: argparse.Namespace) -> list[str]:
    """The options that were given, as they are written."""
    written = {"arms": "--arms", "exports": "--to", "revisions": "--revision"} | {name: entry[0] for name, entry in HELP.items()}
    return [written.get(name, f"--{name.replace('_', '-')}") for name in given(arguments)]


def config_of(values: dict[str, Any]) -> PaperConfig:
    """The settings that given options name. Raises ValueError for a bad value or combination."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    values |= {name: _absolute(values[name]) for name in PLACES if name in values}
    if values.pop("plain", False):
        values["chat"] = False
    if "revisions" in values:
        pairs = tuple(tuple(item.split("=", 1)) for item in values["revisions"])
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"--revision {' '.join(values['revisions'])}: write SET=HASH, such as amc23=0123...")
        values["revisions"] = pairs
    if "prompts_per_step" in values:
        values["swapped_per_batch"] = max(1, values["prompts_per_step"] // SWAP)
    return PaperConfig(**values)


def _absolute(name: str) -> str:
    """A folder's name from the root; run_all.sh changes the folder and passes on where it was called. Other names stay."""
    kind, colon, rest = name.partition(":")
    head, place = (kind + colon, rest) if kind == "opensae" else ("", name)
    path = Path(os.environ.get("SAERL_CALLED_FROM") or ".").absolute() / Path(place).expanduser()
    return head + str(path) if path.is_dir() else name


if __name__ == "__main__":
    raise SystemExit(main())
