"""GPU memory of generation and of training, and how many GPUs hold it."""

from __future__ import annotations

import math

from saerl_lib.paper.arithmetic import key_value_bytes_per_token, parameters
from saerl_lib.paper.assumptions import Assumptions
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.hub import HubModel


def generation_memory(config: PaperConfig, given: Assumptions, model: HubModel) -> float:
    """Bytes of GPU memory to generate: bf16 weights, the cache of all sequences at full length, working memory."""
    longest = config.max_prompt_tokens + config.max_response_tokens
    cache = given.decode_sequences * longest * key_value_bytes_per_token(model)
    return 2 * parameters(model) + cache + given.working_bytes


def activation_bytes_per_token(model: HubModel) -> int:
    """Kept for the backward pass with gradient checkpointing in mixed precision (ours).

    4 L D for the fp32 input of every block, and one block that is computed again: 8 D for its two norms in fp32, and in bf16
    2 (2 q + 2 k + 2 D + 4 F) for queries and their output, keys and values, both projections back, and the gated MLP of
    width F. Attention scores are not stored (FlashAttention or its like).

    >>> from saerl_lib.paper.hub import QWEN25_MATH_15B
    >>> activation_bytes_per_token(QWEN25_MATH_15B)
    269312
    """
    query, key = model.heads * model.head_width, model.key_value_heads * model.head_width
    block = 8 * model.width + 2 * (2 * query + 2 * key + 2 * model.width + 4 * model.feed_forward)
    return 4 * model.layers * model.width + block


def update_memory(config: PaperConfig, given: Assumptions, model: HubModel) -> float:
    """Bytes beside weights and optimiser while one micro-batch of the longest sequences is trained on (ours).

    The logits count as one fp32 tile, since TRL projects tile by tile. With several GPUs each holds a micro-batch of its own:
    lower `micro_batch` in proportion to stay within this figure.
    """
    tokens = config.micro_batch * (config.max_prompt_tokens + config.max_response_tokens)
    return tokens * activation_bytes_per_token(model) + 4.0 * given.logits_tile


def training_memory(config: PaperConfig, given: Assumptions, model: HubModel) -> float:
    """Bytes of GPU memory of one run: the training state and one micro-batch's activations beside what generates."""
    state = parameters(model) * given.train_bytes_per_parameter + update_memory(config, given, model)
    return state + generation_memory(config, given, model)


def gpus(memory_bytes: float, given: Assumptions) -> int:
    """GPUs whose memory holds `memory_bytes`.

    >>> gpus(81e9, Assumptions())
    2
    """
    return max(1, math.ceil(memory_bytes / given.gpu_memory_bytes))
