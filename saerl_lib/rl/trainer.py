"""TRL's GRPO trainer with two changes of speed and none of substance (ours).

Rollouts come from a `Feed`, which also decides the prompts when the arm chooses them during training. The loss skips
groups whose rewards are all equal, since their advantage and so their gradient is zero, and computes each prompt of the
others once (`saerl_lib.rl.packing`); the value and the gradient are those of TRL's own loss.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from trl import GRPOTrainer

from saerl_lib.rl.feed import Feed
from saerl_lib.rl.packing import log_probabilities

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def stored_reward(reward: list[float], **_: Any) -> list[float]:
    """The rewards that the feed has computed and logged."""
    return reward


class FeedTrainer(GRPOTrainer):
    """GRPOTrainer whose rollouts come from a feed."""

    def __init__(self, feed: Feed, **arguments: Any) -> None:
        super().__init__(reward_funcs=stored_reward, rollout_func=feed.completions, **arguments)
        self.feed = feed

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        ids = [row["sample_id"] for row in inputs[:: self.num_generations]]
        return super()._generate_and_score_completions(self.feed.step(self.state.global_step + 1, ids))

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        advantages = inputs["advantages"]
        active = advantages.nonzero().squeeze(1)
        loss = torch.stack([p.sum() for p in model.parameters()]).sum() * 0.0
        if len(active):
            share = len(active) / len(advantages) if self.loss_type == "grpo" else 1.0
            loss = loss + share * super()._compute_loss(model, _rows(inputs, active))
        self._metrics["train"]["entropy"] = [self.feed.entropy]
        return loss

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Log-probabilities [B, C]; the entropies are zeros here, the feed has measured them while sampling."""
        split = input_ids.shape[1] - logits_to_keep
        prompts = _token_lists(input_ids[:, :split], attention_mask[:, :split])
        completions = _token_lists(input_ids[:, split:], attention_mask[:, split:])
        found = log_probabilities(self.accelerator.unwrap_model(model), prompts, completions, self.temperature)
        logps = torch.nn.functional.pad(found, (0, logits_to_keep - found.shape[1]))
        return logps, torch.zeros_like(logps), None


def _token_lists(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]


def _rows(inputs: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """The given rows of a batch."""
    n = len(inputs["advantages"])
    return {k: v[rows] if isinstance(v, torch.Tensor) and v.dim() and len(v) == n else v for k, v in inputs.items()}
