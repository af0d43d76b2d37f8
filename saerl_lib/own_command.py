"""`python -m saerl_lib plan --data FILE --out DIR`: a plan of one's own data, with its report."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from saerl_lib.data.rows import DEFAULTS, Fields
from saerl_lib.notebooks import UserError
from saerl_lib.own.settings import NO_ENCODER, OwnConfig

if TYPE_CHECKING:
    from saerl_lib.data.sample import Dataset
    from saerl_lib.own.represent import Representation

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


def config_of(arguments: argparse.Namespace) -> OwnConfig:
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
    config, started = config_of(arguments), time.monotonic()
    from saerl_lib.own.run import plan_own_data

    read = None
    if arguments.features is not None:
        if config.encoder != NO_ENCODER:
            raise UserError("--features takes the place of --encoder, --layer and --sae; leave them out")
        from saerl_lib.own.represent import represent_encoded

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
