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


def training_memory(config: PaperConfig, given: Assumptions, model: HubModel) -> float:
    """Bytes of GPU memory of one run: the training state beside what generates."""
    return parameters(model) * given.train_bytes_per_parameter + generation_memory(config, given, model)


def gpus(memory_bytes: float, given: Assumptions) -> int:
    """GPUs whose memory holds `memory_bytes`.

    >>> gpus(81e9, Assumptions())
    2
    """
    return max(1, math.ceil(memory_bytes / given.gpu_memory_bytes))
