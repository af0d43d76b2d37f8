"""Part `policy`: a larger policy of the embedded world, pre-trained shortly in bfloat16 on the device.

It takes the learner's texts, tokenizer and loss of the shipped policy (`saerl_lib.train.policy`), weights in float32 under
autocast. It is no good policy; it is one that encoding and GRPO can be run on at a size that a GPU notices.
"""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib.bench.gpu.checks import Check
from saerl_lib.bench.gpu.size import GpuSize
from saerl_lib.bench.timing import synchronise
from saerl_lib.config import sub_seed
from saerl_lib.data.corpus import Text, batches
from saerl_lib.encode.language_model import LanguageModelConfig, batch_loss, build_model, save_model, train_tokenizer
from saerl_lib.train.policy import draw_learner_text, tokenizer_texts

WARM_UP = 20
"""Steps until the learning rate has its full size."""
FALL = 0.6
"""The loss at the end is at most this share of the loss at the start."""
AGREE = 0.02
"""Largest relative difference between the loss under autocast and in float32."""


def loss_on(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[Text], bf16: bool) -> torch.Tensor:
    """Mean nats a solution token, computed on the model's device."""
    with model.device, torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
        return batch_loss(model, tokenizer, texts, solution_only=True)


def pretrain_bf16(
    config: LanguageModelConfig, tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> tuple[LlamaForCausalLM, list[float]]:
    """The model of `config` after its steps of bfloat16 pre-training, and the loss of every step in nats a token.

    AdamW under a cosine schedule, as `saerl_lib.encode.language_model.pretrain`, with a shorter warm-up.
    """
    model = build_model(config, tokenizer).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    stream = batches(random.Random(config.seed), draw_learner_text, config.sequences_per_step)
    losses: list[torch.Tensor] = []
    for step in range(config.steps):
        decay = 0.02 + 0.49 * (1 + math.cos(math.pi * step / config.steps))
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (step + 1) / WARM_UP) * decay
        loss = loss_on(model, tokenizer, next(stream), bf16=True)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.detach())
    return model.eval(), torch.stack(losses).float().cpu().tolist()


@torch.inference_mode()
def _agreement(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, config: LanguageModelConfig) -> float:
    """Relative difference of the loss under autocast on texts that were not trained on."""
    texts = next(batches(random.Random(sub_seed(config.seed, "held out")), draw_learner_text, config.sequences_per_step))
    full, half = (loss_on(model, tokenizer, texts, bf16).item() for bf16 in (False, True))
    return abs(half - full) / full


def build_policy(size: GpuSize, device: torch.device, folder: Path) -> list[Check]:
    """Pre-train the policy of `size` into `folder` in Hugging Face format and check how it learnt."""
    config = size.policy
    tokenizer = train_tokenizer(tokenizer_texts(config.seed, draw_learner_text, size.tokenizer_texts), config.vocabulary)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    model, losses = pretrain_bf16(config, tokenizer, device)
    synchronise(device)
    spent = time.perf_counter() - start
    tenth = max(1, len(losses) // 10)
    checks = [
        Check("policy", "million parameters", sum(p.numel() for p in model.parameters()) / 1e6),
        Check("policy", "loss of the first step, nats a token", losses[0]),
        Check("policy", "loss of the last tenth / first step", float(np.mean(losses[-tenth:])) / losses[0], 0.0, FALL),
        Check("policy", "relative difference of the bfloat16 loss", _agreement(model, tokenizer, config), 0.0, AGREE),
        Check("policy", "seconds a pre-training step", spent / config.steps),
    ]
    if device.type == "cuda":
        checks.append(Check("policy", "peak GPU memory, MiB", torch.cuda.max_memory_allocated(device) / 2**20))
    save_model(model.cpu(), tokenizer, folder)
    return checks
