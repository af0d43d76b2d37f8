"""Models of the Hugging Face hub that the paper's run reads, each with its pinned revision where one is known.

A revision stands here only when public sources show it in full with the repository's name; None is printed as "not pinned
yet". The sets stand in `saerl_lib.data.published`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class HubModel:
    """A decoder-only LM by the fields of its config.json, from which parameters and FLOPs are computed."""

    repository: str
    """owner/name on the hub."""
    layers: int
    """Blocks."""
    width: int
    """Width D of the residual stream."""
    feed_forward: int
    """Inner width of a block's gated MLP."""
    heads: int
    """Query heads."""
    key_value_heads: int
    """Key and value heads (grouped-query attention)."""
    head_width: int
    """Width of one head."""
    vocabulary: int
    """Rows of the embedding."""
    tied_embedding: bool
    """Whether the output head is the embedding."""
    query_bias: bool
    """Biases of query, key and value (Qwen2); otherwise norms of query and key a head (Qwen3)."""
    revision: str | None = None
    """Commit hash of the repository; None: not pinned yet."""


QWEN25_MATH_15B = HubModel(
    "Qwen/Qwen2.5-Math-1.5B", layers=28, width=1536, feed_forward=8960, heads=12, key_value_heads=2, head_width=128,
    vocabulary=151_936, tied_embedding=True, query_bias=True, revision="4a83ca6e4526a4f2da3aa259ec36c259f66b2ab2",
)  # fmt: skip
QWEN25_MATH_7B = HubModel(
    "Qwen/Qwen2.5-Math-7B", layers=28, width=3584, feed_forward=18_944, heads=28, key_value_heads=4, head_width=128,
    vocabulary=152_064, tied_embedding=False, query_bias=True, revision="b101308fe89651ea5ce025f25317fea6fc07e96e",
)  # fmt: skip
QWEN3_17B = HubModel(
    "Qwen/Qwen3-1.7B", layers=28, width=2048, feed_forward=6144, heads=16, key_value_heads=8, head_width=128,
    vocabulary=151_936, tied_embedding=True, query_bias=False, revision="70d244cc86ccca08cf5af4e1e306ecf908b1ad5e",
)  # fmt: skip
QWEN3_17B_BASE = replace(QWEN3_17B, repository="Qwen/Qwen3-1.7B-Base", revision="ea980cb0a6c2ae4b936e82123acc929f1cec04c1")
