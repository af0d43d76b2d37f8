"""`python -m saerl_lib train`: GRPO by TRL's own trainer on a plan, in one process or many (`accelerate launch`, `torchrun`).

For policies that need GPUs; the RL study of the embedded world has a faster trainer of its own. Order: the data set lies
in plan order, nothing shuffles, and one generation batch is one optimiser step, which the processes share. Every process
logs the samples that it consumed; at the end the logs are joined and held against the plan. With `--selector` the plan only
names the samples, and an arm of the study chooses among them as it learns (`train_selector`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from saerl_lib.artifacts import ArtifactError
from saerl_lib.data.answers import equivalent, read_final_answer
from saerl_lib.encode.language_model import SEPARATOR
from saerl_lib.export.follow import FollowReport, follow
from saerl_lib.export.log import ConsumedLog
from saerl_lib.export.samples import Export, open_export
from saerl_lib.own.model import open_tokenizer
from saerl_lib.rl.rollouts import append_rows, cut_back, read_rows
from saerl_lib.train_files import remove_broken_checkpoints, require_gathered, require_weights, resume_point, step_of
from saerl_lib.train_selector import ARMS, LOG, Chooser, SelectingTrainer, check_chosen, open_selector

LOSSES: dict[str, dict[str, Any]] = {"grpo": {"loss_type": "grpo"}, "dapo": {"loss_type": "dapo", "epsilon_high": 0.28}}
"""TRL's settings by loss. dapo: mean over all tokens of a step, clip-higher 0.28 (arXiv 2503.14476). Its dynamic sampling is left
out: it draws prompts that no plan names, and TRL has none."""


@dataclass(frozen=True)
class TrainSettings:
    """What a launch decides beside the plan."""

    rollouts_per_prompt: int = 8
    """G (paper, section C.2)."""
    micro_batch: int = 8
    """Rollouts of one forward pass of one process."""
    learning_rate: float = 1e-6
    """Constant (paper: 1e-6)."""
    temperature: float = 0.6
    """Of the rollouts (paper: 0.6)."""
    max_completion_tokens: int = 3072
    """Longest completion (paper: 3,072)."""
    save_every_steps: int = 20
    """Checkpoints; a run that was stopped goes on from the last one, with its place in the plan."""
    vllm: bool = False
    """Rollouts by vLLM beside the trainer (TRL's `use_vllm`, colocated)."""
    bf16: bool = False
    """Mixed precision; needs a GPU."""
    chat: bool = False
    """Prompts as chat messages, for a tokenizer with a chat template; else plain text and a line break."""
    loss: str = "grpo"
    """One of `LOSSES`."""
    steps: int | None = None
    """Optimiser steps; beyond the plan's end it starts again in the same order. None: one pass over the plan."""
    keep_every_steps: int | None = None
    """Keep the weights of every such step, and of the last, under policies/ to evaluate them; None: the final ones alone."""
    selector: str = ""
    """adarft or gainrl: choose each step's prompts by the rewards before it, among the plan's samples; '': the plan's order."""
    cpu: bool = False
    """Stay on the CPU where there is a GPU."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"--loss {self.loss}: choose {' or '.join(LOSSES)}")
        if self.selector and self.selector not in ARMS:
            raise ValueError(f"--selector {self.selector}: choose {' or '.join(ARMS)}")
        for name in ("steps", "keep_every_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


def accumulation(export: Export, settings: TrainSettings, processes: int) -> int:
    """Forward passes of a process in one step of the plan.

    >>> class E: rollouts_per_step = 1024
    >>> accumulation(E, TrainSettings(micro_batch=16), processes=8)
    8

    Raises ArtifactError when the plan's step does not divide into the processes' passes.
    """
    size = settings.micro_batch * processes
    if export.rollouts_per_step % size:
        raise ArtifactError(
            f"a step of the plan has {export.rollouts_per_step} rollouts, which {processes} processes x {settings.micro_batch} "
            "do not divide: choose another --micro-batch or number of processes"
        )
    return export.rollouts_per_step // size


def arguments(export: Export, settings: TrainSettings, processes: int, folder: Path) -> GRPOConfig:
    """TRL's settings; every default that would disturb the order is set by name.

    On a GPU the blocks' activations are computed twice instead of kept (gradient checkpointing); the gradients are the same.
    """
    on_cpu = settings.cpu or not torch.cuda.is_available()
    return GRPOConfig(
        output_dir=str(folder / "checkpoints"), per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=accumulation(export, settings, processes), num_generations=settings.rollouts_per_prompt,
        num_iterations=1, shuffle_dataset=False, max_steps=settings.steps or export.plan.steps,
        learning_rate=settings.learning_rate, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, beta=0.0,
        scale_rewards="group", **LOSSES[settings.loss],
        temperature=settings.temperature, top_p=1.0, max_completion_length=settings.max_completion_tokens,
        use_vllm=settings.vllm, bf16=settings.bf16, use_cpu=on_cpu,
        gradient_checkpointing=not on_cpu, gradient_checkpointing_kwargs={"use_reentrant": False}, seed=settings.seed,
        save_strategy="steps", save_steps=settings.save_every_steps, save_total_limit=2, logging_steps=1,
        report_to="none", disable_tqdm=True, dataloader_pin_memory=False, remove_unused_columns=False,
    )  # fmt: skip


def logging_reward(log: Path) -> Callable[..., list[float]]:
    """1.0 where the completion's answer is the sample's, in canonical form or by math-verify; logs step and sample id."""

    def correct(completions: list[Any], answer: list[str], sample_id: list[str], trainer_state: Any, **_: Any) -> list[float]:
        append_rows(log, [{"step": trainer_state.global_step + 1, "sample_id": name} for name in sample_id])
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        found = [read_final_answer(text) for text in texts]
        return [float(a is not None and (a == gold or equivalent(gold, a))) for a, gold in zip(found, answer, strict=True)]

    return correct


class KeepPolicies(TrainerCallback):
    """Saves the weights of some steps beside the checkpoints, which keep only the last; all processes take part."""

    def __init__(self, trainer: GRPOTrainer, folder: Path, every: int) -> None:
        self.trainer, self.folder, self.every = trainer, folder, every

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer before its own checkpoint, so that a step with a checkpoint has its weights."""
        step = state.global_step
        if step % self.every and step != state.max_steps:
            return
        place, partial = policy_at(self.folder, step), self.folder / "policies" / ".partial"
        self.trainer.save_model(str(partial))
        self.trainer.accelerator.wait_for_everyone()
        if self.trainer.accelerator.is_main_process:
            require_weights(partial)
            (partial / "training_args.bin").unlink(missing_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            partial.rename(place)


def policy_at(folder: Path, step: int) -> Path:
    """Where the weights of a kept step lie."""
    return folder / "policies" / f"step-{step:05d}"


def require_launcher(settings: TrainSettings, processes: int) -> None:
    """Raise ArtifactError for one process that sees several GPUs: torch would split each pass over them, several plan steps a
    step of the optimiser."""
    seen = torch.cuda.device_count()
    if processes == 1 and not settings.cpu and seen > 1:
        raise ArtifactError(
            f"one process sees {seen} GPUs and would consume {seen} steps of the plan at once: start one process a GPU with "
            "accelerate launch (`paper train --launch 'accelerate launch ...'`), or show it one with CUDA_VISIBLE_DEVICES=0"
        )


def run_train(
    plan: Path, samples: Path | None, model: str, folder: Path, settings: TrainSettings, measured: Path | None = None
) -> int:
    """Train or resume; process 0 checks the joined log against the plan, or against what the selector chose from `measured`.

    Raises ArtifactError when it was not followed, for several GPUs without a launcher, when no weights can be saved, and what
    `open_selector` raises.
    """
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    require_launcher(settings, processes)
    export = open_export(plan, samples, settings.rollouts_per_prompt)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"consumed-{rank:03d}.jsonl"
    total = settings.steps or export.plan.steps
    resume = resume_point(folder, total)
    if resume is not None and step_of(resume) >= total:
        if rank == 0:
            _conclude(export, folder, settings, processes, measured)
        return 0
    chooser = open_chooser(export, folder, settings, measured, writes=rank == 0)
    for path in sorted([*folder.glob("consumed-*.jsonl"), *folder.glob(LOG)]) if rank == 0 else ():
        cut_back(path, step_of(resume) if resume else 0)
    texts = [s.prompt for s in export.samples]
    prompts = [[{"role": "user", "content": t}] for t in texts] if settings.chat else [t + SEPARATOR for t in texts]
    answers = [s.answer for s in export.samples]
    rows = [{"prompt": p, "sample_id": i, "answer": a} for p, i, a in zip(prompts, export.plan.ids, answers, strict=True)]
    words: dict[str, Any] = {
        "model": AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), "reward_funcs": logging_reward(log),
        "args": arguments(export, settings, processes, folder), "train_dataset": Dataset.from_list(rows),
        "processing_class": open_tokenizer(model, texts[:20], Path(model).is_dir()),
    }  # fmt: skip
    trainer = GRPOTrainer(**words) if chooser is None else SelectingTrainer(chooser, rows, **words)
    require_gathered(trainer.accelerator.state)
    if settings.keep_every_steps:
        trainer.add_callback(KeepPolicies(trainer, folder, settings.keep_every_steps))
    trainer.accelerator.wait_for_everyone()  # every process has chosen its checkpoint
    if rank == 0:
        remove_broken_checkpoints(folder / "checkpoints")
    trainer.accelerator.wait_for_everyone()
    if chooser is not None:
        chooser.replay(step_of(resume) if resume else 0)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    trainer.save_state()
    trainer.save_model(str(folder / ".final.partial"))
    trainer.accelerator.wait_for_everyone()
    if rank == 0:
        require_weights(folder / ".final.partial")
        shutil.rmtree(folder / "final", ignore_errors=True)
        (folder / ".final.partial").rename(folder / "final")
        _conclude(export, folder, settings, processes, measured)
    return 0


def open_chooser(
    export: Export, folder: Path, settings: TrainSettings, measured: Path | None, writes: bool = False
) -> Chooser | None:
    """The run's selector before its first step, None where the plan decides.

    Raises ArtifactError for one of `measured` and a selector without the other, and what `open_selector` raises.
    """
    if bool(settings.selector) != (measured is not None):
        raise ArtifactError("--selector and --measured belong together: give both, or neither to follow the plan")
    if measured is None:
        return None
    ids, b, steps = export.plan.ids, export.prompts_per_step, settings.steps or export.plan.steps
    selector = open_selector(settings.selector, measured, ids, b, steps, settings.seed)
    return Chooser(selector, ids, b, folder / LOG, writes)


def _conclude(export: Export, folder: Path, settings: TrainSettings, processes: int, measured: Path | None) -> None:
    steps = check_run(export, folder, settings, measured)
    print(json.dumps({"followed": True, "steps": steps, "processes": processes}), flush=True)


def check_run(export: Export, folder: Path, settings: TrainSettings, measured: Path | None = None) -> int:
    """Hold the joined logs of a finished run against the plan, or against what its selector chose; returns the steps.

    Raises ArtifactError at the first departure.
    """
    chooser = open_chooser(export, folder, settings, measured)
    if chooser is None:
        return check_logs(export, folder, settings.steps).steps_logged
    steps, consumed = settings.steps or export.plan.steps, sorted(folder.glob("consumed-*.jsonl"))
    check_chosen(chooser, consumed, export.rollouts_per_prompt, steps)
    return steps


def check_logs(export: Export, folder: Path, steps: int | None = None) -> FollowReport:
    """The joined logs of all processes, of an earlier number of them too, against the plan.

    With `steps` the log may end there, in the middle of a pass over the plan. Raises ArtifactError at the first departure.
    """
    rows = [row for path in sorted(folder.glob("consumed-*.jsonl")) for row in read_rows(path)]
    log = ConsumedLog(tuple(r["sample_id"] for r in rows), tuple(int(r["step"]) for r in rows))
    report = follow(export.plan, log, any_slot=True)
    if not report.followed_for(steps):
        raise ArtifactError(f"the trainer did not follow the plan, first at {report.first}")
    return report
