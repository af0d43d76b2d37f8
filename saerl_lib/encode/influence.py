"""Gradient influence of SAE latents on the model's output (after GradSAE, arXiv 2505.08080; the reduction to one number is ours).

Influence of latent f = mean over samples of sum over tokens of |a_tf * <g_t, w_f>|: a its activation, w_f its decoder row, g_t
the gradient of the mean solution loss (nats a token) with respect to the residual stream at the hook. To first order it is
how much the loss would change if the latent were silenced.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from torch import Tensor
from transformers import PreTrainedModel

from saerl_lib.data.sample import Sample
from saerl_lib.encode.spans import Layout, TokenBatch, token_batches
from saerl_lib.encode.sparse import encode_all


def hooked_gradient(model: PreTrainedModel, layer: int, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Residual stream after block `layer` and the gradient there of each sample's mean solution loss, both [B, T, D].

    A sample without a solution span has no loss and a gradient of 0.
    """
    kept: dict[str, Tensor] = {}

    def keep(_module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        states = output[0] if isinstance(output, tuple) else output
        kept["states"] = states.detach().requires_grad_(True)
        return (kept["states"], *output[1:]) if isinstance(output, tuple) else kept["states"]

    handle = model.base_model.layers[layer - 1].register_forward_hook(keep)
    try:
        logits = model(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False).logits[:, :-1]
    finally:
        handle.remove()
    counted = batch.solution[:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.ids[:, 1:], reduction="none")
    loss = ((losses * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)).sum()
    loss.backward()
    return kept["states"].detach(), kept["states"].grad


def gradient_influence(
    samples: Sequence[Sample], model: PreTrainedModel, tokenizer: object, layer: int, sae: SAE, tokens_per_batch: int
) -> NDArray[np.float64]:
    """Influence of each latent, [F], over samples with a solution. `model` is the whole LM, not the one cut at the hook."""
    total, n = np.zeros(sae.cfg.d_sae), 0
    model.requires_grad_(False)
    for batch in token_batches(samples, tokenizer, tokens_per_batch, Layout()):
        states, gradient = hooked_gradient(model, layer, batch)
        keep = batch.prompt | batch.solution
        vectors, slopes = states[keep], gradient[keep]
        found = encode_all(sae, vectors)
        token, latent = torch.from_numpy(found.token), torch.from_numpy(found.latent)
        effect = np.empty(len(found.value))
        for part in torch.arange(len(token)).split(2**18):
            along = (slopes[token[part]] * sae.W_dec.detach()[latent[part]]).sum(dim=1).numpy()
            effect[part.numpy()] = np.abs(found.value[part.numpy()] * along)
        total += np.bincount(found.latent, weights=effect, minlength=len(total))
        n += int(batch.solution.any(dim=1).sum())
    return total / max(n, 1)
