"""`python -m saerl_lib train`: GRPO by TRL on a plan, in one process or many (`accelerate launch`, `torchrun`).

For policies that need GPUs. With `--selector` the plan only names the samples, and an arm of the study chooses among them as it
learns; DAPO's dynamic sampling is left out there, since it draws prompts that no plan names, and TRL has none.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from saerl_lib.artifacts import ArtifactError
from saerl_lib.config import TrainConfig
from saerl_lib.export.samples import open_export, samples_beside
from saerl_lib.train.run import Run, keyed, train, write_run


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
