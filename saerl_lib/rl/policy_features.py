"""What some arms ask of the base policy before training: pass rates, angle concentration, the shift over a solution.

Each is a function of samples in the order given; what it costs in rollouts and tokens is reported for the arm.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib.config import TrainConfig
from saerl_lib.data.sample import Sample
from saerl_lib.rl.generation import correct_attempts, encode_prompts, sample_groups

GREEDY = 1e-4
"""Temperature at which sampling is greedy but for exact ties."""


def pass_rates(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample], attempts: int, train: TrainConfig,
    seed: int,
) -> np.ndarray:  # fmt: skip
    """Share of right answers among `attempts` of each sample, [N]."""
    with tqdm(total=len(samples) * attempts, desc="pass rates", file=sys.stdout, mininterval=10) as bar:
        marks = correct_attempts(
            model, tokenizer, samples, attempts, train.max_completion_tokens, train.temperature, seed, bar.update
        )
    return marks.mean(axis=1)


@torch.inference_mode()
def angle_concentration(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample]
) -> np.ndarray:
    """Mean cosine similarity between the last-layer states of the prompt's tokens, [N] (GAINRL)."""
    out = np.empty(len(samples))
    for i, tokens in enumerate(encode_prompts(tokenizer, [s.prompt for s in samples])):
        states = model.model(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]
        states = states / states.norm(dim=1, keepdim=True)
        out[i] = float((states @ states.T).mean())
    return out


@torch.inference_mode()
def solution_shift(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample], train: TrainConfig, seed: int
) -> np.ndarray:
    """[s ; e - s] of one greedy rollout a sample, [N, 2 D], float32.

    s and e are the hidden states at its first and last token, averaged over layers (SHIFT).
    """
    prompts = [s.prompt for s in samples]
    rollouts = sample_groups(model, tokenizer, prompts, 1, train.max_completion_tokens, GREEDY, seed)
    out = np.empty((len(samples), 2 * model.config.hidden_size), dtype=np.float32)
    for i, (prompt, tokens) in enumerate(zip(encode_prompts(tokenizer, prompts), rollouts.ids, strict=True)):
        ids = torch.tensor([prompt + tokens])
        layers = model.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[1:]
        states = torch.stack([layer[0, [len(prompt), -1]] for layer in layers]).mean(dim=0)
        out[i] = torch.cat([states[0], states[1] - states[0]]).numpy()
    return out
