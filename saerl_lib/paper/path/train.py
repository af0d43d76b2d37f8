"""Step `train`: TRL's GRPO on every plan, in this process or under a launcher.

A run's folder carries the hash of all that decides it; a run that was stopped goes on from its last checkpoint, and a finished
one is found.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage
from saerl_lib.config import TrainConfig
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.path.home import Home, missing
from saerl_lib.paper.path.measure import measured_file
from saerl_lib.paper.path.places import model_folder, model_identity, policy_model
from saerl_lib.paper.path.plan import plan_name
from saerl_lib.paper.replacements import SELECTORS
from saerl_lib.train.run import Run, command, train, write_run
from saerl_lib.train_command import plan_run

SEEDS = 1000
"""A run's seed is 1000 x base seed + matched seed, as in the world's study."""


def settings_of(config: PaperConfig, arm: str) -> TrainConfig:
    """What the paper and the options say of a run."""
    return TrainConfig(
        engine="trl", seeds=1, rollouts_per_prompt=config.rollouts_per_prompt, micro_batch=config.micro_batch,
        learning_rate=config.learning_rate, temperature=config.temperature, max_completion_tokens=config.max_response_tokens,
        checkpoint_every_steps=config.eval_every_steps, keep_every_steps=config.eval_every_steps,
        vllm=config.vllm, bf16=config.bf16, chat=config.chat, loss="dapo" if arm in ("dapo", "saerl_dapo") else "grpo",
    )  # fmt: skip


def kept_steps(run: Run) -> list[int]:
    """The evaluated steps after the first."""
    every = run.train.keep_every_steps or run.updates
    return sorted({*range(every, run.updates + 1, every), run.updates})


def planned_runs(home: Home, plans: Stage, measured: Stage | None = None) -> list[Run]:
    """Every run, seed by seed; `measured` is there when an arm of `SELECTORS` is."""
    config, model = home.config, policy_model(home.config)
    name, identity, runs = model if isinstance(model, str) else model.repository, model_identity(model), []
    for seed in range(config.seeds):
        for arm in config.arms:
            known = measured_file(measured, arm) if measured is not None and arm in SELECTORS else None
            run = plan_run(
                plans.path(f"{plan_name(arm, seed)}.parquet"), plans.path("samples.parquet"), name, home.folder,
                settings_of(config, arm), SEEDS * config.seed + seed, config.steps, arm, known, identity,
            )  # fmt: skip
            runs.append(dataclasses.replace(run, folder=home.folder / "runs" / f"{plan_name(arm, seed)}-{run.key[:8]}"))
    return runs


def train_runs(home: Home, plans: Stage, measured: Stage | None = None) -> list[Run]:
    """Train what is not finished. Raises ArtifactError when a run fails, or is missing and its step was not asked for."""
    runs = planned_runs(home, plans, measured)
    for run in runs:
        found = run.finished
        if not found and "train" not in home.steps:
            raise missing("train", f"run {run.folder.name}")
        if not found:
            train_run(run, home.config)
        if "train" in home.steps:
            made = f"trained, {home.config.steps} steps, as {'chosen' if run.table else 'planned'}"
            home.say(f"train: {run.folder.name} {'found' if found else made}")
    return runs


def train_run(run: Run, config: PaperConfig) -> None:
    """Train or resume one run."""
    run = write_whole(run, config)
    if not config.launch:
        return train(run)
    path = os.pathsep.join(filter(None, (str(paths.ROOT), os.environ.get("PYTHONPATH"))))
    code = subprocess.run(command(run, config.launch), env={**os.environ, "PYTHONPATH": path}).returncode
    if code:
        raise ArtifactError(f"run {run.folder.name} ended with exit code {code}; the same command continues it")
    if not run.finished:
        raise ArtifactError(f"run {run.folder.name} left no final weights; does --launch start the command that follows it?")


def write_whole(run: Run, config: PaperConfig) -> Run:
    """The run with its policy's folder, fetched where it is missing, and its record written."""
    run = dataclasses.replace(run, policy=str(model_folder(policy_model(config), "--policy")))
    write_run(run)
    return run
