"""Step `train`: TRL's GRPO on every plan, by `python -m saerl_lib train`, in this process or under a launcher.

A run's folder carries the hash of all that decides it; a run that was stopped goes on from its last checkpoint, and a finished
one is found. `trained.json` is written last, after the log of consumed samples was held against the plan, or against what the
arm's selector chose.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage, code_hash, file_sha256, provenance, write_json
from saerl_lib.config import content_hash, sub_seed
from saerl_lib.export.samples import open_export
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.path.home import Home, missing
from saerl_lib.paper.path.measure import measured_file
from saerl_lib.paper.path.places import model_folder, model_identity, policy_model
from saerl_lib.paper.path.plan import plan_name
from saerl_lib.paper.replacements import SELECTORS
from saerl_lib.plan.batch_plan import plan_hash, read_plan
from saerl_lib.train_command import TrainSettings, check_run, policy_at, run_train

CODE = ("train_command.py", "train_files.py", "data/answers.py")
SELECTOR_CODE = ("train_selector.py", "arms/adarft.py", "arms/gainrl.py", "arms/base.py")
RECORD = "trained.json"


@dataclass(frozen=True)
class Run:
    """One arm and matched seed."""

    arm: str
    seed: int
    key: str
    """Hash of plan, samples, policy, settings and code, and of what a selector knows."""
    folder: Path
    plan: Path
    samples: Path
    settings: TrainSettings
    measured: Path | None = None
    """What the arm's selector needs to know of the base policy."""

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end and its log agreed with the plan, or with what was chosen."""
        try:
            return json.loads((self.folder / RECORD).read_text(encoding="utf-8"))["key"] == self.key
        except (OSError, ValueError, KeyError):
            return False

    def policies(self, config: PaperConfig) -> dict[int, Path]:
        """Step -> weights of the evaluated steps after the first."""
        steps = {*range(config.eval_every_steps, config.steps + 1, config.eval_every_steps), config.steps}
        return {step: policy_at(self.folder, step) for step in sorted(steps)}


def settings_of(config: PaperConfig, arm: str, seed: int) -> TrainSettings:
    """What the paper and the options say of a run; the seed is shared by the arms."""
    return TrainSettings(
        rollouts_per_prompt=config.rollouts_per_prompt, micro_batch=config.micro_batch, learning_rate=config.learning_rate,
        temperature=config.temperature, max_completion_tokens=config.max_response_tokens,
        save_every_steps=config.eval_every_steps, vllm=config.vllm, bf16=config.bf16, chat=config.chat,
        loss="dapo" if arm in ("dapo", "saerl_dapo") else "grpo", steps=config.steps, keep_every_steps=config.eval_every_steps,
        seed=sub_seed(config.seed, f"training-{seed}"), selector=arm if arm in SELECTORS else "",
    )  # fmt: skip


def planned_runs(home: Home, plans: Stage, measured: Stage | None = None) -> list[Run]:
    """Every run, seed by seed; `measured` is there when an arm of `SELECTORS` is."""
    config, samples = home.config, plans.path("samples.parquet")
    policy, read = model_identity(policy_model(config)), file_sha256(samples)
    runs = []
    for seed in range(config.seeds):
        for arm in config.arms:
            plan, settings = plans.path(f"{plan_name(arm, seed)}.parquet"), settings_of(config, arm, seed)
            decides = {
                "plan": plan_hash(read_plan(plan)), "prompts": config.prompts_per_step, "samples": read, "policy": policy,
                "settings": dataclasses.asdict(settings), "code": code_hash(CODE), "versions": provenance()["versions"],
            }  # fmt: skip
            known = measured_file(measured, arm) if measured is not None and arm in SELECTORS else None
            if known is not None:
                decides |= {"measured": file_sha256(known), "selector": code_hash(SELECTOR_CODE)}
            key = content_hash(decides)
            folder = home.folder / "runs" / f"{plan_name(arm, seed)}-{key[:8]}"
            runs.append(Run(arm, seed, key, folder, plan, samples, settings, known))
    return runs


def train_runs(home: Home, plans: Stage, measured: Stage | None = None) -> list[Run]:
    """Train what is not finished. Raises ArtifactError when a run fails, or is missing and its step was not asked for."""
    runs = planned_runs(home, plans, measured)
    _free()  # what earlier steps of this process left on the GPU
    for run in runs:
        found = run.finished
        if not found and "train" not in home.steps:
            raise missing("train", f"run {run.folder.name}")
        if not found:
            train_run(run, home.config)
        if "train" in home.steps:
            made = f"trained, {home.config.steps} steps, as {'chosen' if run.measured else 'planned'}"
            home.say(f"train: {run.folder.name} {'found' if found else made}")
    return runs


def train_run(run: Run, config: PaperConfig) -> None:
    """Train or resume one run."""
    if config.launch:
        path = os.pathsep.join(filter(None, (str(paths.ROOT), os.environ.get("PYTHONPATH"))))
        code = subprocess.run(launch_command(run, config), env={**os.environ, "PYTHONPATH": path}).returncode
        if code:
            raise ArtifactError(f"run {run.folder.name} ended with exit code {code}; the same command continues it")
    else:
        folder = model_folder(policy_model(config), "--policy")
        run_train(run.plan, run.samples, str(folder), run.folder, run.settings, run.measured)
        _free()
    if not (run.folder / "final").is_dir():
        raise ArtifactError(f"run {run.folder.name} left no final weights; does --launch start the command that follows it?")
    check_run(open_export(run.plan, run.samples, config.rollouts_per_prompt), run.folder, run.settings, run.measured)
    record = {"key": run.key, "arm": run.arm, "seed": run.seed, "settings": dataclasses.asdict(run.settings)}
    write_json(run.folder / RECORD, {**record, "provenance": provenance()})


def launch_command(run: Run, config: PaperConfig) -> list[str]:
    """The command of one run under `config.launch`, for a job script too."""
    s = run.settings
    words = [
        "--plan", run.plan, "--samples", run.samples, "--out", run.folder,
        "--model", model_folder(policy_model(config), "--policy"), "--rollouts", s.rollouts_per_prompt,
        "--micro-batch", s.micro_batch, "--learning-rate", s.learning_rate,
        "--temperature", s.temperature, "--max-completion", s.max_completion_tokens, "--save-every", s.save_every_steps,
        "--loss", s.loss, "--steps", s.steps, "--keep-every", s.keep_every_steps, "--seed", s.seed,
    ]  # fmt: skip
    words += ["--selector", s.selector, "--measured", run.measured] if run.measured else []
    flags = [f"--{name}" for name in ("vllm", "bf16", "chat") if getattr(s, name)]
    return [*(shlex.split(config.launch) or [sys.executable]), "-m", "saerl_lib", "train", *map(str, words), *flags]


def _free() -> None:
    """Give a GPU's memory back before the next run."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
