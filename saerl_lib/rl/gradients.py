"""GRPO policy gradients of single prompts at the base policy, kept as their exact Gram matrix.

The paper lets distance in SAE space stand for gradient coherence (Appendix A) and measures no gradient. Here every
prompt gets two independent groups of G rollouts ("halves"), each with the gradient that training would take from it:
group-normalised advantages and TRL's loss_type "grpo". The first step is on-policy, so the ratio is 1 and no clip acts.
A batch gradient is the mean of its prompts' gradients, and all that is asked of them are inner products: the Gram
matrix of the float32 gradients loses nothing, where a projection to m dimensions errs by about 1 / sqrt(m) a cosine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib.config import TrainConfig
from saerl_lib.data.answers import reward
from saerl_lib.data.sample import Sample
from saerl_lib.train.sampler import encode_prompts, sample_groups

HALVES = 2
"""Independent groups a prompt: products between them carry no rollout noise (ours)."""
DEVIATION_FLOOR = 1e-4
"""Added to a group's standard deviation, as TRL does."""
GRAM_BLOCK = 65_536
"""Parameters of one product in float32; blocks are summed in float64."""


@dataclass(frozen=True)
class Rollouts:
    """Two groups of one prompt."""

    prompt: list[int]
    """Token ids, separator included."""
    completions: list[list[int]]
    """2 G completions up to and with their end token."""
    rewards: np.ndarray
    """[2, G] exact-answer rewards."""


@dataclass(frozen=True)
class GradientGram:
    """Inner products of the gradients of N prompts."""

    ids: tuple[str, ...]
    products: np.ndarray
    """[2 N, 2 N] float64; row h N + i is half h of prompt i; zero where the group has no gradient."""
    pass_rate: np.ndarray
    """[N, 2] share of right answers in each half."""

    @property
    def zero(self) -> np.ndarray:
        """[N, 2] whether all rewards of the half were equal, so that its gradient is exactly zero."""
        return (self.pass_rate == 0) | (self.pass_rate == 1)


def advantages(rewards: np.ndarray) -> np.ndarray:
    """Group-normalised advantages of rewards [..., G], zero where a group's rewards are all equal.

    >>> advantages(np.array([1.0, 0.0, 0.0, 0.0])).round(2).tolist()
    [1.5, -0.5, -0.5, -0.5]
    """
    deviation = rewards.std(axis=-1, ddof=1, keepdims=True)
    return (rewards - rewards.mean(axis=-1, keepdims=True)) / (deviation + DEVIATION_FLOOR)


def draw_rollouts(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample], train: TrainConfig, seed: int
) -> list[Rollouts]:
    """Two groups of `train.rollouts_per_prompt` completions of every sample, in their order, from a stream of their own."""
    rows = HALVES * train.rollouts_per_prompt
    prompts = [s.prompt for s in samples]
    with tqdm(total=len(samples) * rows, desc="gradient rollouts", file=sys.stdout, mininterval=10) as bar:
        found = sample_groups(model, tokenizer, prompts, rows, train.max_completion_tokens, train.temperature, seed, bar.update)
    marks = np.array([reward(text, samples[i // rows].answer) for i, text in enumerate(found.texts)])
    return [
        Rollouts(tokens, found.ids[i * rows : (i + 1) * rows], marks[i * rows : (i + 1) * rows].reshape(HALVES, -1))
        for i, tokens in enumerate(encode_prompts(tokenizer, prompts))
    ]


def group_loss(
    model: LlamaForCausalLM, prompt: list[int], completions: Sequence[list[int]], weights: np.ndarray, temperature: float
) -> torch.Tensor:
    """TRL's "grpo" loss of one group: - mean over G of advantage x mean log-probability of its tokens.

    `weights` [G] are the advantages. Rows are padded on the right, where causal attention never looks.
    """
    longest = max(1, max(map(len, completions)))
    ids = torch.zeros(len(completions), len(prompt) + longest, dtype=torch.long)
    counted = torch.zeros(len(completions), longest)
    for i, completion in enumerate(completions):
        ids[i, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
        counted[i, : len(completion)] = 1.0
    logits = model(input_ids=ids, logits_to_keep=longest + 1, use_cache=False).logits[:, :-1] / temperature
    chosen = torch.log_softmax(logits, dim=-1).gather(2, ids[:, len(prompt) :].unsqueeze(2)).squeeze(2)
    rows = (chosen * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1.0)
    return -(torch.as_tensor(weights, dtype=rows.dtype) * rows).mean()


def flat_gradient(model: LlamaForCausalLM, loss: torch.Tensor) -> torch.Tensor:
    """Gradient of `loss` over all parameters as one vector [P]; tied weights count once."""
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])


def gram_matrix(rows: torch.Tensor) -> np.ndarray:
    """Inner products [R, R] of rows [R, P], float64."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for start in range(0, rows.shape[1], GRAM_BLOCK):
        block = rows[:, start : start + GRAM_BLOCK]
        total += (block @ block.T).double()
    return ((total + total.T) / 2).numpy()


def measure_gradients(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample], train: TrainConfig, seed: int
) -> GradientGram:
    """Draw two groups a sample and return the Gram matrix of their gradients.

    Transient memory: one float32 gradient (3.8 MB at 0.94 M parameters) a group that has one.
    """
    drawn = draw_rollouts(model, tokenizer, samples, train, seed)
    weights = np.stack([advantages(r.rewards) for r in drawn])
    pass_rate = np.stack([r.rewards.mean(axis=1) for r in drawn])
    places = [(h, i) for h in range(HALVES) for i in range(len(drawn)) if 0 < pass_rate[i, h] < 1]
    rows = torch.empty(len(places), sum(p.numel() for p in model.parameters()))
    for row, (h, i) in enumerate(tqdm(places, desc="prompt gradients", file=sys.stdout, mininterval=10)):
        group = drawn[i].completions[h * train.rollouts_per_prompt : (h + 1) * train.rollouts_per_prompt]
        rows[row] = flat_gradient(model, group_loss(model, drawn[i].prompt, group, weights[i, h], train.temperature))
    products = np.zeros((HALVES * len(drawn), HALVES * len(drawn)))
    where = np.array([h * len(drawn) + i for h, i in places], dtype=int)
    products[np.ix_(where, where)] = gram_matrix(rows)
    return GradientGram(tuple(s.id for s in samples), products, pass_rate)
