"""What reads the data: encoder, SAE, and the small LM of real text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderConfig:
    """The model and the SAE that read the data; the policy never passes through it (paper, section 3.1)."""

    hook_layer: int = 3
    """Residual stream after this many blocks (paper: layer 27 of 28; ours: 3 of 4)."""
    sae_latents: int = 2048
    """Width F of the SAE (paper: 131,072)."""
    sae_architecture: str = "topk"
    """topk, batchtopk or jumprelu, as SAELens trains them (not stated in the paper; ours)."""
    sae_k: int = 64
    """Active latents a token (not stated in the paper; ours)."""
    sae_vectors: int = 300_000
    """Distinct activation vectors collected for the SAE, from the encoder's own corpus (ours)."""
    sae_heldout_vectors: int = 100_000
    """Further vectors that measure explained variance, L0 and dead share."""
    sae_training_tokens: int = 300_000
    """Activation vectors the SAE is trained on (ours; longer training lets more latents die here)."""
    sae_learning_rate: float = 1e-3
    """Adam learning rate of the SAE (not stated in the paper; ours)."""
    min_explained_variance: float = 0.8
    """The run stops below this."""
    max_dead_share: float = 0.2
    """The run stops above this share of latents that never fire on held-out tokens."""
    retained_latents: int = 240
    """|F| retained: 960 = 4 x 240 pooled dimensions (paper, section B.1, inferred)."""
    retained_rule: str = "frequency_variance"
    """How they are chosen (not stated in the paper; ours), one of `saerl_lib.encode.retain.RULES`."""
    frequency_band: tuple[float, float] = (0.01, 0.9)
    """Shares of samples a retained latent may fire on (not stated in the paper; ours)."""
    tokens_per_batch: int = 16_384
    """Padded tokens of one encoding batch; bounds the memory."""

    def __post_init__(self) -> None:
        if self.retained_latents > self.sae_latents:
            raise ValueError(
                f"retained_latents={self.retained_latents} exceeds sae_latents={self.sae_latents}: retain fewer or widen the SAE"
            )
        if self.sae_architecture not in ("topk", "batchtopk", "jumprelu"):
            raise ValueError(f"sae_architecture={self.sae_architecture!r}: choose 'topk', 'batchtopk' or 'jumprelu'")
        if self.sae_k > self.sae_latents:
            raise ValueError(f"sae_k={self.sae_k} exceeds sae_latents={self.sae_latents}")


@dataclass(frozen=True)
class TextModelConfig:
    """The small LM that reads real mathematics offline (ours; the paper reads Qwen3-1.7B)."""

    seed: int = 27354
    """Seed of weights and order."""
    vocabulary: int = 4096
    """Byte-level BPE tokens."""
    width: int = 128
    """Model width D."""
    layers: int = 4
    """Blocks."""
    heads: int = 4
    """Attention heads."""
    feed_forward: int = 352
    """Inner width of a block."""
    row_tokens: int = 256
    """Tokens of a training row; texts are joined and cut, so there is no padding."""
    rows_per_step: int = 32
    """Rows of one optimiser step."""
    learning_rate: float = 2e-3
    """Peak of a cosine schedule with 50 warm-up steps, AdamW."""
    max_rows: int = 16_000
    """Training rows, each read once: a seeded sample of the corpus (4.1 million tokens)."""
