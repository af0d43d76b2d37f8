"""The options of `paper STEP` and of `run --profile paper`, and the settings that they name; the standard library alone."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.replacements import ARMS, POOLS, TARGETS

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
