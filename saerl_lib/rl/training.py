"""GRPO by TRL on a batch plan: the trainer, its reward and its callbacks (paper, section 4.1; settings in `TrainConfig`).

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
from trl import GRPOConfig, GRPOTrainer

from saerl_lib.artifacts import ArtifactError
from saerl_lib.config import TrainConfig, sub_seed
from saerl_lib.data.answers import reward
from saerl_lib.data.schema import Sample
from saerl_lib.encode.language_model import SEPARATOR
from saerl_lib.rl.rollouts import append_rows


def plan_dataset(plan: pd.DataFrame, samples: Mapping[str, Sample]) -> Dataset:
    """The prompts in plan order with columns prompt, sample_id and answer."""
    ids = plan.sort_values("position")["sample_id"].tolist()
    return Dataset.from_dict(
        {
            "prompt": [samples[i].prompt + SEPARATOR for i in ids],
            "sample_id": ids,
            "answer": [samples[i].answer for i in ids],
        }
    )


def logging_reward(path: Path) -> Callable[..., list[float]]:
    """A reward function that appends every rollout to `path`: step, row, sample id, reward, length, completion."""

    def exact_answer(
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        sample_id: Sequence[str],
        answer: Sequence[str],
        trainer_state: Any,
        **_: Any,
    ) -> list[float]:
        rewards = [reward(text, gold) for text, gold in zip(completions, answer, strict=True)]
        step = trainer_state.global_step + 1
        append_rows(
            path,
            [
                {"step": step, "row": i, "sample_id": s, "reward": r, "completion_tokens": len(ids), "completion": text}
                for i, (s, r, ids, text) in enumerate(zip(sample_id, rewards, completion_ids, completions, strict=True))
            ],
        )
        return rewards

    return exact_answer


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
        loss_type="grpo",
        beta=config.kl_beta,
        epsilon=config.clip_epsilon,
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
    """Evaluates before the first step, every few steps and after the last, and stops when the parent has died."""

    def __init__(self, evaluate: Callable[[int, bool], None], every: int, last: int, progress: Callable[[int], None]) -> None:
        self.evaluate, self.every, self.last, self.progress = evaluate, every, last, progress
        self.parent = os.getppid()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Full evaluation of the initial weights, once."""
        if state.global_step == 0:
            self.evaluate(0, True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Small evaluation every few steps, the full one at the end."""
        step = state.global_step
        if step == self.last:
            self.evaluate(step, True)
        elif step % self.every == 0:
            self.evaluate(step, False)
        self.progress(step)
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
    reward_function: Callable[..., list[float]],
    callbacks: list[TrainerCallback],
) -> GRPOTrainer:
    """TRL's trainer, unchanged."""
    return GRPOTrainer(
        model=model,
        reward_funcs=reward_function,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
