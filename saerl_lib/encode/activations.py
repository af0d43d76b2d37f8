"""Token activations at one layer of a Hugging Face model; nothing is computed past the hook.

Axes: B texts, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saerl_lib.data.sample import Sample
from saerl_lib.encode.spans import Layout, TokenBatch, token_batches

__all__ = ["CutModel", "TokenBatch", "activations", "check_finite", "token_batches", "token_vectors", "truncate"]

BIDIRECTIONAL = ("bert", "roberta", "mpnet", "distilbert", "xlm-roberta")
"""Model types whose tokens see those after them, so that padding has to be masked."""


class CutModel(nn.Module):
    """A model whose last block is the hooked one, without its final norm and without logits."""

    def __init__(self, body: nn.Module, needs_mask: bool) -> None:
        super().__init__()
        self.body = body
        self.needs_mask = needs_mask

    def forward(self, batch: TokenBatch) -> Tensor:
        """[B, T, D] residual stream after the hooked block.

        Under causal attention padding on the right needs no mask: no real token attends to it. The batch lies on the CPU,
        its states on the model's device and in its precision.
        """
        device = next(self.body.parameters()).device
        options: dict[str, Any] = {"attention_mask": batch.real.long().to(device)} if self.needs_mask else {"use_cache": False}
        return self.body(input_ids=batch.ids.to(device), **options).last_hidden_state


def _blocks(body: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds the list of blocks, and the list's name."""
    depth = body.config.num_hidden_layers
    for owner in (body, getattr(body, "encoder", None), getattr(body, "decoder", None)):
        for name in ("layers", "h", "layer"):
            blocks = getattr(owner, name, None)
            if isinstance(blocks, nn.ModuleList) and len(blocks) == depth:
                return owner, name
    raise ValueError(f"{type(body).__name__}: no list of {depth} blocks was found; load a decoder or a BERT-like encoder")


def truncate(model: nn.Module, layer: int) -> CutModel:
    """The model up to and including block `layer` (1 is the first), without the final norm and without logits.

    Raises ValueError when the model has fewer blocks. The model itself is changed: load it for this purpose alone.
    """
    body = getattr(model, "base_model", model)
    owner, name = _blocks(body)
    blocks = getattr(owner, name)
    if not 1 <= layer <= len(blocks):
        raise ValueError(f"hook_layer={layer} does not fit a model of {len(blocks)} blocks; choose 1 to {len(blocks)}")
    setattr(owner, name, blocks[:layer])
    body.config.num_hidden_layers = layer
    for norm in ("norm", "ln_f", "final_layer_norm", "final_layernorm"):
        if isinstance(getattr(body, norm, None), nn.Module):
            setattr(body, norm, nn.Identity())
    return CutModel(body, body.config.model_type in BIDIRECTIONAL).eval()


@torch.inference_mode()
def activations(decoder: CutModel, batch: TokenBatch) -> Tensor:
    """[B, T, D] residual stream at the hook."""
    return decoder(batch)


def token_vectors(
    samples: Sequence[Sample], decoder: CutModel, tokenizer: Any, tokens_per_batch: int, layout: Layout = Layout()  # noqa: B008
) -> Iterator[Tensor]:
    """[n, D] activations of the unmasked tokens of one batch after another, in float32 on the CPU.

    Raises FloatingPointError with the sample id when a value is not finite.
    """
    for batch in token_batches(samples, tokenizer, tokens_per_batch, layout):
        values = activations(decoder, batch)
        check_finite(values, batch, samples)
        yield values[batch.prompt | batch.solution].float().cpu()


def check_finite(values: Tensor, batch: TokenBatch, samples: Sequence[Sample]) -> None:
    """Raise FloatingPointError that names the first sample with a non-finite activation."""
    bad = ~torch.isfinite(values).all(dim=-1).cpu() & (batch.prompt | batch.solution)
    if bad.any():
        row = int(bad.any(dim=1).nonzero()[0])
        raise FloatingPointError(
            f"sample {samples[batch.rows[row]].id}: non-finite activation; check the encoder's weights or run it in float32"
        )
