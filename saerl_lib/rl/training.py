"""GRPO by TRL on a batch plan: its settings and its callbacks (paper, section 4.1; settings in `TrainConfig`).

The order of the plan survives because the data set lies in plan order, `shuffle_dataset` is off and one generation
batch is one optimiser step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig

from saerl_lib.artifacts import ArtifactError
from saerl_lib.config import TrainConfig, sub_seed
from saerl_lib.data.sample import Sample
from saerl_lib.rl.feed import Feed
from saerl_lib.rl.trainer import FeedTrainer


def prompt_dataset(samples: Sequence[Sample]) -> Dataset:
    """Prompts in the given order with columns prompt and sample_id."""
    return Dataset.from_dict({"prompt": [s.prompt for s in samples], "sample_id": [s.id for s in samples]})


def plan_dataset(plan: pd.DataFrame, samples: Mapping[str, Sample]) -> Dataset:
    """The prompts in plan order."""
    return prompt_dataset([samples[i] for i in plan.sort_values("position")["sample_id"]])


def grpo_arguments(config: TrainConfig, prompts_per_step: int, steps: int, seed: int, folder: Path) -> GRPOConfig:
    """TRL settings of one run; every default that would disturb the plan or the comparison is set by name."""
    return GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=prompts_per_step * config.rollouts_per_prompt,
        num_generations=config.rollouts_per_prompt,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_iterations=1,
        shuffle_dataset=False,
        max_steps=steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=config.max_grad_norm,
        loss_type=config.loss_type,
        beta=config.kl_beta,
        epsilon=config.clip_epsilon,
        epsilon_high=config.clip_epsilon_high,
        scale_rewards="group",
        temperature=config.temperature,
        top_p=1.0,
        max_completion_length=config.max_completion_tokens,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=sub_seed(seed, "training") % 2**31,
        save_strategy="steps",
        save_steps=min(config.checkpoint_every_steps, steps),
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )


class Orphaned(ArtifactError):
    """The process that started this job is gone."""


class EvaluationCallback(TrainerCallback):
    """Evaluates at equal numbers of generated rollouts, ends the run with its budget, stops when the parent has died.

    Step t of the evaluations stands for t * `rollouts_per_step` generated rollouts, whatever the arm's batch.
    """

    def __init__(
        self, evaluate: Callable[[int, int, bool], None], generated: Callable[[], int], rollouts_per_step: int, every: int,
        last: int, progress: Callable[[int], None],
    ) -> None:  # fmt: skip
        """`evaluate` takes evaluation step, optimiser step and whether the sets are full; `last` is the final step."""
        self.evaluate, self.generated, self.rollouts_per_step = evaluate, generated, rollouts_per_step
        self.every, self.last, self.progress = every, last, progress
        self.parent, self.done = os.getppid(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Full evaluation of the initial weights, once."""
        self.done = self.generated() // self.rollouts_per_step
        if state.global_step == 0:
            self.evaluate(0, 0, True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Small evaluation every few steps, the full one when the budget is spent."""
        now = self.generated() // self.rollouts_per_step
        if now >= self.last:
            self.evaluate(self.last, state.global_step, True)
            control.should_training_stop = True
        elif now // self.every > self.done // self.every:
            self.evaluate(now // self.every * self.every, state.global_step, False)
        self.done = now
        self.progress(min(now, self.last))
        self.stop_when_orphaned()

    def stop_when_orphaned(self) -> None:
        """Raise Orphaned when the parent process has died, so that no two processes train one run."""
        if os.getppid() != self.parent:
            raise Orphaned("the process that started this job is gone; run the same command again to resume")


def build_trainer(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    dataset: Dataset,
    arguments: GRPOConfig,
    feed: Feed,
    callbacks: list[TrainerCallback],
) -> FeedTrainer:
    """TRL's trainer on the rollouts of `feed`."""
    return FeedTrainer(
        feed, model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer, callbacks=callbacks
    )
