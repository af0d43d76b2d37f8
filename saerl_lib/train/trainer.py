"""GRPO by TRL (paper, section 4.1): which prompts a step trains on, its rollouts and rewards, the settings, the loss.

A `Feed` hands out the prompts of each step in the order of a selector (a plan is one that walks a fixed order), whatever TRL's
own data loader holds, and logs every rollout. Engine "trl" leaves sampling and loss to TRL, in one process or many. Engine
"packed" is for policies that fit a CPU core: rollouts by `saerl_lib.train.sampler`, and a loss that skips groups whose rewards
are all equal, since their advantage and so their gradient is zero, and computes each prompt of the others once. Value and
gradient are those of TRL's own loss. There DAPO's dynamic sampling (arXiv 2503.14476, section 3.2) may draw further prompts
until every group of the step has a gradient; each rollout that it drops is counted and logged.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from saerl_lib.artifacts import ArtifactError
from saerl_lib.config import TrainConfig, sub_seed
from saerl_lib.data.answers import equivalent, read_final_answer
from saerl_lib.data.sample import Sample
from saerl_lib.plan.orders import shown_prompts
from saerl_lib.plan.trainers import append_rows
from saerl_lib.train.sampler import READ, encode_prompts, log_probabilities, sample_groups
from saerl_lib.train.selectors import Selector

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
# TRL sets arguments that transformers has renamed
warnings.filterwarnings("ignore", ".* is deprecated and will be removed in v6", FutureWarning)
LOSSES = {"token_mean": "dapo", "sequence_mean": "grpo", "constant": "dr_grpo"}
"""TRL's name of each loss. With one update a batch, as here, the ratio is 1 and no clip acts, DAPO's clip-higher neither."""
OPTIMIZERS: dict[str, tuple[Any, dict[str, float], float]] = {
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.0, "fused": True}, 1.0), "sgd": (torch.optim.SGD, {"momentum": 0.9}, 1e9),
}  # fmt: skip
"""Class, settings, and the norm at which the gradient is clipped: SGD's step follows the gradient's length (ours)."""
ROUND_PROMPTS = 8
"""Prompts that dynamic sampling draws at a time (not stated in the paper; ours: few, so that little is drawn in vain)."""


@dataclass(frozen=True)
class Group:
    """One prompt with its G rollouts."""

    sample: Sample
    ids: list[list[int]]
    texts: list[str]
    rewards: list[float]
    entropy: list[float]
    """Mean entropy of a token of each rollout, in nats."""

    @property
    def informative(self) -> bool:
        """Whether the rewards differ, so that the group has a gradient."""
        return len(set(self.rewards)) > 1


class Feed:
    """Engine "trl": TRL samples, this says which prompts, gives the rewards and logs its process's share of the rollouts.

    Every process holds its own copy and tells its selector the rewards that TRL gathers from all, so that all choose alike.
    """

    packed = False

    def __init__(
        self, samples: Sequence[Sample], selector: Selector, train: TrainConfig, prompts_per_step: int, log: Path
    ) -> None:
        """`samples` are those that the selector's row numbers mean."""
        self.samples, self.selector, self.train = list(samples), selector, train
        self.prompts_per_step, self.log, self.generated = prompts_per_step, log, 0
        self.rows, self.first = np.empty(0, dtype=np.int64), 0
        self.tail: tuple[int, Selector] = (sys.maxsize, selector)
        """The last optimiser step of `selector`, and what chooses behind it."""
        self.choices = len(self.samples)
        """Samples that `selector` chooses from, the first ones: those of the tail follow."""

    def chooser(self, step: int) -> Selector:
        """What chooses the prompts of an optimiser step."""
        return self.tail[1] if step > self.tail[0] else self.selector

    def choose(self, chooser: Selector, count: int) -> NDArray[np.int64]:
        """Row numbers [count]. Raises ValueError where the selector gives anything else."""
        rows, most = np.atleast_1d(chooser.next(count)), self.choices if chooser is self.selector else len(self.samples)
        if rows.shape != (count,) or rows.dtype.kind not in "iu" or ((rows < 0) | (rows >= most)).any():
            raise ValueError(
                f"{type(chooser).__name__}.next({count}) must give {count} whole row numbers in 0..{most - 1}, "
                f"got {rows.dtype} of shape {rows.shape}: {rows[:5]} ..."
            )
        return rows

    def replay(self, rows: Sequence[dict[str, Any]]) -> None:
        """Bring selector and count to where the log of an interrupted run ends, its rows joined over the processes and in order.

        Raises ArtifactError when the selector now chooses other prompts than the log holds.
        """
        size = self.train.rollouts_per_prompt
        for (step, _), group in groupby(rows, key=itemgetter("step", "round")):
            part, chooser = list(group), self.chooser(step)
            chosen = self.choose(chooser, len(part) // size)
            if [self.samples[i].id for i in chosen for _ in range(size)] != [row["sample_id"] for row in part]:
                raise ArtifactError(
                    f"{self.log.parent}: step {step} cannot be replayed, the run would choose other prompts than logged: seed "
                    "the random numbers of an arm of your own by `setting.seed`, delete the folder and run it again"
                )
            chooser.told(chosen, np.array([row["reward"] for row in part], dtype=float).reshape(-1, size))
            self.generated += len(part)

    def step(self, step: int, first: int, count: int) -> list[dict[str, Any]]:
        """Records for TRL of this process's share, rollouts `first` to `first + count`, of optimiser step `step`."""
        self.rows, self.first = self.choose(self.selector, self.prompts_per_step), first
        places = np.repeat(self.rows, self.train.rollouts_per_prompt)[first : first + count]
        return [record(self.samples[i], self.train.chat) for i in places]

    def reward(
        self, completions: list[Any], completion_ids: list[list[int]], answer: list[str], sample_id: list[str],
        trainer_state: Any, **_: Any,
    ) -> list[float]:  # fmt: skip
        """TRL's reward function: 1.0 where the answer is the sample's, in canonical form or by math-verify. Logs the rollouts."""
        found = [read_final_answer(c if isinstance(c, str) else c[-1]["content"]) for c in completions]
        right = [float(a is not None and (a == gold or equivalent(gold, a))) for a, gold in zip(found, answer, strict=True)]
        step = {"step": trainer_state.global_step + 1, "round": 0, "used": True}
        append_rows(self.log, [
            {**step, "row": self.first + i, "sample_id": name, "reward": value, "completion_tokens": len(ids)}
            for i, (name, value, ids) in enumerate(zip(sample_id, right, completion_ids, strict=True))
        ])  # fmt: skip
        return right

    def told(self, rewards: torch.Tensor) -> None:
        """Rewards [b G] of the whole step, in the order of its rollouts."""
        groups = rewards.double().cpu().numpy().reshape(-1, self.train.rollouts_per_prompt)
        self.generated += groups.size
        self.selector.told(self.rows, groups)


def record(sample: Sample, chat: bool = False) -> dict[str, Any]:
    """A row of TRL's data set: the prompt as the policy gets it, with what its reward is computed from."""
    prompt = sample.messages if chat else shown_prompts(None, [sample.asked], chat)[0]
    return {"prompt": prompt, "sample_id": sample.id, "answer": sample.answer}


class PackedFeed(Feed):
    """Engine "packed": draws the rollouts itself, exact answers alone are right, and stops at the run's budget."""

    packed = True

    def __init__(
        self, policy: tuple[Any, Any], samples: Sequence[Sample], selector: Selector, train: TrainConfig, prompts_per_step: int,
        log: Path, budget: float, seed: int,
    ) -> None:  # fmt: skip
        """`budget` is the number of rollouts of the run, infinite where steps end it."""
        super().__init__(samples, selector, train, prompts_per_step, log)
        (self.model, self.tokenizer), self.budget, self.seed = policy, budget, seed
        self.entropy, self.used = 0.0, list[Group]()

    def step(self, step: int, first: int = 0, count: int = 0) -> list[dict[str, Any]]:
        """Records for TRL, one a rollout that is trained on: a batch of groups, under dynamic sampling of those with a gradient,
        or what the budget still yields; at least one group. As many prompts in vain as there are to choose from end it too."""
        dynamic, wanted = self.train.dynamic_sampling != "none", self.prompts_per_step
        kept, drawn, number, vain = list[Group](), list[Group](), 0, 0
        while not number or (dynamic and len(kept) < wanted and self.generated < self.budget and vain < self.choices):
            drawn = self._round(step, number, ROUND_PROMPTS if dynamic else wanted)
            places = [i for i, group in enumerate(drawn) if group.informative or not dynamic][: wanted - len(kept)]
            self._write(step, number, drawn, places)
            kept += [drawn[i] for i in places]
            number, vain = number + 1, 0 if places else vain + len(drawn)
        self.used = kept or drawn[:1]
        self.entropy = float(np.mean([value for group in self.used for value in group.entropy]))
        return [{"prompt": g.sample.prompt, "stored": r} for g in self.used for r in g.rewards]

    def completions(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """TRL's `rollout_func`: the completions that `step` has drawn."""
        encoded = encode_prompts(self.tokenizer, [g.sample.asked for g in self.used], self.train.chat)
        repeated = [tokens for tokens, g in zip(encoded, self.used, strict=True) for _ in g.ids]
        return {"prompt_ids": repeated, "completion_ids": [ids for g in self.used for ids in g.ids], "logprobs": None}

    def reward(self, stored: list[float], **_: Any) -> list[float]:  # type: ignore[override]
        """The rewards that `step` has computed and logged."""
        return stored

    def told(self, rewards: torch.Tensor) -> None:
        """The selector knows already."""

    def _round(self, step: int, number: int, prompts: int) -> list[Group]:
        """Groups of so many prompts, or as many as the budget still pays for."""
        size, train, chooser = self.train.rollouts_per_prompt, self.train, self.chooser(step)
        rows = self.choose(chooser, max(1, int(min(prompts, (self.budget - self.generated) // size))))
        chosen, read = [self.samples[i] for i in rows], READ[train.answer_from]
        seed = sub_seed(self.seed, f"rollouts-{step}-{number}")
        found = sample_groups(
            self.model, self.tokenizer, [s.asked for s in chosen], size, train.max_completion_tokens, train.temperature, seed,
            chat=train.chat,
        )  # fmt: skip
        self.generated += len(found.ids)
        groups = []
        for i, sample in enumerate(chosen):
            part = slice(i * size, (i + 1) * size)
            rewards = [float(read(text) == sample.answer) for text in found.texts[part]]
            groups.append(Group(sample, found.ids[part], found.texts[part], rewards, found.entropy[part].tolist()))
        chooser.told(np.asarray(rows), np.array([g.rewards for g in groups]))
        return groups

    def _write(self, step: int, number: int, groups: Sequence[Group], used: Sequence[int]) -> None:
        size, of = self.train.rollouts_per_prompt, {"step": step, "round": number}
        append_rows(self.log, [
            {**of, "row": place * size + g, "sample_id": group.sample.id, "used": place in used, "reward": group.rewards[g],
             "completion_tokens": len(group.ids[g]), "completion": group.texts[g]}
            for place, group in enumerate(groups) for g in range(size)
        ])  # fmt: skip


def grpo_arguments(
    train: TrainConfig, prompts_per_step: int, updates: int, seed: int, folder: Path, processes: int = 1
) -> GRPOConfig:
    """TRL's settings of one run; every default that would disturb the plan or the comparison is set by name.

    One generation batch is one optimiser step, which the processes share. On a GPU the blocks' activations are computed twice
    instead of kept (gradient checkpointing); the gradients are the same. Raises ArtifactError when a step does not divide into
    the processes' forward passes.
    """
    packed, rollouts = train.engine == "packed", prompts_per_step * train.rollouts_per_prompt
    size = rollouts if packed else train.micro_batch
    if rollouts % (size * processes):
        raise ArtifactError(
            f"a step has {rollouts} rollouts, which {processes} processes x {size} do not divide: choose another --micro-batch "
            "or number of processes"
        )
    on_cpu, passes = packed or train.cpu or not torch.cuda.is_available(), rollouts // (size * processes)
    return GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=size, gradient_accumulation_steps=passes, steps_per_generation=passes,
        num_generations=train.rollouts_per_prompt, num_iterations=1, shuffle_dataset=False, max_steps=updates,
        learning_rate=train.learning_rate, lr_scheduler_type="constant", warmup_steps=0,
        max_grad_norm=OPTIMIZERS[train.optimizer][2], beta=0.0, scale_rewards="group", loss_type=LOSSES[train.loss],
        temperature=train.temperature, top_p=1.0, max_completion_length=train.max_completion_tokens,
        use_vllm=train.vllm, bf16=train.bf16, use_cpu=on_cpu,
        gradient_checkpointing=not on_cpu, gradient_checkpointing_kwargs={"use_reentrant": False},
        seed=sub_seed(seed, "training") % 2**31,
        save_strategy="steps", save_steps=min(train.checkpoint_every_steps, updates), save_total_limit=2,
        logging_strategy="steps", logging_steps=1,
        report_to="none", disable_tqdm=True, dataloader_pin_memory=False, remove_unused_columns=False,
    )  # fmt: skip


class PlanTrainer(GRPOTrainer):
    """GRPOTrainer on the prompts of a feed; the data set only says how many rollouts a step has."""

    def __init__(self, feed: Feed, policy: tuple[Any, Any], arguments: GRPOConfig) -> None:
        """`policy` is a model and its tokenizer."""
        super().__init__(
            model=policy[0], processing_class=policy[1], args=arguments, reward_funcs=feed.reward,
            train_dataset=Dataset.from_list([record(sample, feed.train.chat) for sample in feed.samples]),
            rollout_func=feed.completions if feed.packed else None,
        )  # fmt: skip
        self.remove_callback(PrinterCallback)  # its log holds what would be printed at every step
        self.feed = feed
        kind, settings, _ = OPTIMIZERS[feed.train.optimizer]
        self.optimizer_cls_and_kwargs = kind, {"lr": self.args.learning_rate, **settings}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL calls this once a step, in every process, with the process's share of the step's rollouts."""
        first = self.accelerator.process_index * len(inputs)
        return super()._generate_and_score_completions(self.feed.step(self.state.global_step + 1, first, len(inputs)))

    def _calculate_rewards(self, *arguments: Any) -> torch.Tensor:
        """Rewards [b G, 1] of the whole step, gathered from all processes in their order."""
        rewards = super()._calculate_rewards(*arguments)
        self.feed.told(rewards[:, 0])
        return rewards

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if not self.feed.packed:
            return super()._compute_loss(model, inputs)
        advantages = inputs["advantages"]
        active = advantages.nonzero().squeeze(1)
        loss = torch.stack([p.sum() for p in model.parameters() if p.requires_grad]).sum() * 0.0
        if len(active):
            n = len(advantages)
            share = 1.0 if self.loss_type == "dapo" else len(active) / n
            rows = {k: v[active] if isinstance(v, torch.Tensor) and v.dim() and len(v) == n else v for k, v in inputs.items()}
            loss = loss + share * super()._compute_loss(model, rows)
        self._metrics["train"]["entropy"] = [self.feed.entropy]
        return loss

    def _get_per_token_logps_and_entropies(self, model: Any, *arguments: Any, **named: Any) -> tuple[torch.Tensor, ...]:
        """Log-probabilities [B, C]; the packed feed has measured the entropies while sampling, so that they are zeros here."""
        if not self.feed.packed:
            return super()._get_per_token_logps_and_entropies(model, *arguments, **named)
        ids, mask, kept = arguments[:3]
        start = ids.shape[1] - kept  # TRL pads prompts before their first token and completions behind their last
        rows, before, behind = (x.tolist() for x in (ids, mask[:, :start].sum(dim=1), mask[:, start:].sum(dim=1)))
        prompts = [row[start - n : start] for row, n in zip(rows, before, strict=True)]
        completions = [row[start : start + n] for row, n in zip(rows, behind, strict=True)]
        found = log_probabilities(self.accelerator.unwrap_model(model), prompts, completions, self.temperature)
        logps = torch.nn.functional.pad(found, (0, kept - found.shape[1]))
        return logps, torch.zeros_like(logps), None


def save_weights(trainer: PlanTrainer, place: Path) -> None:
    """Save the policy to `place`, whole or not at all; all processes take part."""
    partial = place.with_name(f".{place.name}.partial")
    trainer.save_model(str(partial))
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        (partial / "training_args.bin").unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
    trainer.accelerator.wait_for_everyone()


def require_gathered(state: Any) -> None:
    """Raise ArtifactError when accelerate's `state` names a setting under which no weights would be saved as safetensors."""
    fsdp, deepspeed = (getattr(state, f"{name}_plugin", None) for name in ("fsdp", "deepspeed"))
    sharded = fsdp is not None and "FULL_STATE_DICT" not in str(fsdp.state_dict_type)
    if deepspeed is not None and deepspeed.zero_stage == 3:
        zero = deepspeed.deepspeed_config.get("zero_optimization", {})
        sharded |= not zero.get("stage3_gather_16bit_weights_on_model_save")
    if sharded:
        raise ArtifactError(
            "the launcher's configuration shards the weights and does not gather them to save: set fsdp_state_dict_type: "
            "FULL_STATE_DICT (FSDP), or stage3_gather_16bit_weights_on_model_save: true (DeepSpeed ZeRO-3; "
            "zero3_save_16bit_model in accelerate's file)"
        )
