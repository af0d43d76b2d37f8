"""Parameters, FLOPs and bytes of a decoder, from the fields of its configuration. Pure functions of numbers."""

from __future__ import annotations

from saerl_lib.paper.hub import HubModel


def block_parameters(model: HubModel) -> int:
    """Weights of one block: attention, gated MLP, norms and, where the family has them, biases or head norms."""
    query, key = model.heads * model.head_width, model.key_value_heads * model.head_width
    attention = model.width * (2 * query + 2 * key)
    extra = query + 2 * key if model.query_bias else 2 * model.head_width
    return attention + extra + 3 * model.width * model.feed_forward + 2 * model.width


def parameters(model: HubModel) -> int:
    """All weights, a tied embedding counted once.

    >>> from saerl_lib.paper.hub import QWEN25_MATH_7B, QWEN25_MATH_15B
    >>> parameters(QWEN25_MATH_15B), parameters(QWEN25_MATH_7B)
    (1543714304, 7615616512)
    """
    embedding = model.vocabulary * model.width
    return model.layers * block_parameters(model) + model.width + embedding * (1 if model.tied_embedding else 2)


def forward_flops_per_token(model: HubModel, context_tokens: float, head: bool = True) -> float:
    """FLOPs of one token's forward pass: two a weight of the blocks and, with `head`, of the output head, plus attention.

    Attention over an average context of c tokens takes 4 c (heads x head width) FLOPs a layer.
    """
    weights = model.layers * block_parameters(model) + (model.vocabulary * model.width if head else 0)
    return 2.0 * weights + 4.0 * model.layers * context_tokens * model.heads * model.head_width


def key_value_bytes_per_token(model: HubModel, bytes_per_number: int = 2) -> int:
    """Cache of one token, keys and values of all layers.

    >>> from saerl_lib.paper.hub import QWEN25_MATH_15B
    >>> key_value_bytes_per_token(QWEN25_MATH_15B)
    28672
    """
    return 2 * model.layers * model.key_value_heads * model.head_width * bytes_per_number


def sae_parameters(width: int, latents: int) -> int:
    """Encoder, decoder and both biases.

    >>> sae_parameters(2048, 32768)
    134252544
    """
    return 2 * width * latents + width + latents


def decode_seconds_per_token(model: HubModel, sequences: int, context_tokens: float, bytes_per_second: float) -> float:
    """Seconds a generated token when memory traffic is the limit: weights once a step, the cache of every sequence.

    `sequences` decode together, each over `context_tokens` on average; weights and cache hold two bytes a number.
    """
    step_bytes = 2 * parameters(model) + sequences * context_tokens * key_value_bytes_per_token(model)
    return step_bytes / bytes_per_second / sequences


def hours(flops: float, peak_flops: float, utilisation: float) -> float:
    """GPU-hours of `flops` on a GPU of `peak_flops` a second of which `utilisation` is reached.

    >>> hours(3.6e18, 1e15, 0.5)
    2.0
    """
    return flops / (peak_flops * utilisation) / 3600.0
