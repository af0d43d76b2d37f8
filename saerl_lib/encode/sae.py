"""The sparse autoencoder of a reader, as SAELens holds it: opened, checked and measured.

An SAE comes from a folder, from SAELens' registry, from an OpenSAE checkpoint that is converted on load, or as it was drawn.
OpenSAE (THU-KEG/OpenSAE, the paper's framework) stores config.json and safetensors: encoder.weight [F, D], encoder.bias [F],
W_dec [F, D], b_dec [D]. Its encoder standardises each token (mean 0, unbiased deviation 1 + eps), subtracts b_dec, applies a
linear map, ReLU and TopK: that is SAELens' TopK SAE with `layer_norm` and b_dec applied to the input. A wrong layer or model
raises no error by itself, and features of it would be noise: `measured` tells.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError
from saerl_lib.data.sample import Sample
from saerl_lib.encode.models import (
    OPENSAE,
    SAELENS,
    UNTRAINED,
    Layout,
    TokenBatch,
    sae_folder,
    sample_spans,
    token_batches,
    token_vectors,
)
from saerl_lib.encode.pool import Encoder, find_all

START = "start.safetensors"
"""Mean and mean norm of the vectors that the shipped SAE was trained on, from which an untrained one begins too."""


class SAEGateError(ArtifactError):
    """The SAE does not fit the model or misses a stated bound."""


@dataclass(frozen=True)
class SAEQuality:
    """Reconstruction quality on held-out tokens."""

    explained_variance: float
    """1 - squared error / variance about the mean vector, over all dimensions."""
    l0: float
    """Active latents a token, measured."""
    dead_share: float
    """Share of latents that fire on no held-out token."""
    n_tokens: int


def load_sae(folder: Path, width: int) -> SAE:
    """An SAE from disk, in float32; raises SAEGateError when its input width is not the model's `width`."""
    try:
        sae = SAE.load_from_disk(folder, device="cpu", dtype="float32")
    except SafetensorError as error:
        raise SAEGateError(f"{folder}: its weights cannot be read ({error}); the file is damaged, make it again") from error
    return _fitting(sae, str(folder), width)


def _fitting(sae: SAE, source: str, width: int) -> SAE:
    if sae.cfg.d_in != width:
        raise SAEGateError(
            f"{source}: the SAE reads vectors of width {sae.cfg.d_in}, the model's residual stream has width {width}; "
            "choose the SAE that was trained on this model and layer"
        )
    return sae.eval()


@torch.inference_mode()
def measure_sae(sae: SAE, batches: Sequence[Tensor]) -> SAEQuality:
    """Explained variance, L0 and dead share of `sae` on held-out activations [n, D]."""
    mean = torch.cat(list(batches)).double().mean(dim=0)
    error = variance = active = 0.0
    tokens = 0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=mean.device)
    for vectors in batches:
        latents = sae.encode(vectors)
        error += (sae.decode(latents).double() - vectors.double()).square().sum().item()
        variance += (vectors.double() - mean).square().sum().item()
        active += (latents > 0).sum().item()
        fired |= (latents > 0).any(dim=0)
        tokens += len(vectors)
    return SAEQuality(1 - error / variance, active / tokens, 1 - fired.float().mean().item(), tokens)


EPSILON = 1e-5
"""Added to the deviation by SAELens; an OpenSAE checkpoint with another value cannot be converted exactly."""
TENSORS = ("encoder.weight", "encoder.bias", "b_dec", "W_dec")


def open_sae(source: str, width: int) -> SAE:
    """An SAE named by `source` as `ReaderConfig.sae` names it, for a model of `width`, in float32 on the CPU. One of SAELens'
    registry is downloaded on first use. Raises SAEGateError when it does not exist or does not fit the model."""
    if source.startswith(UNTRAINED):
        sae = untrained_sae(int(source.removeprefix(UNTRAINED)))
    elif source.startswith(OPENSAE):
        sae = load_opensae(sae_folder(source))
    elif source.startswith(SAELENS) and "/" in source:
        release, _, name = source.removeprefix(SAELENS).partition("/")
        sae = SAE.from_pretrained(release, name, device="cpu")
    elif not (sae_folder(source) or Path()).joinpath("cfg.json").is_file():
        raise SAEGateError(f"{source}: no cfg.json; name a folder saved by SAELens, opensae:FOLDER or saelens:RELEASE/ID")
    else:
        return load_sae(sae_folder(source), width)
    return _fitting(sae, source, width)


def untrained_sae(seed: int, k: int | None = None) -> SAE:
    """The shipped SAE before its first step: SAELens' initial weights of `seed`, centred on the mean vector; or of another k."""
    like, start = SAE.load_from_disk(paths.SAE, device="cpu"), load_file(paths.SAE / START)
    shape, k = {"d_in": like.cfg.d_in, "d_sae": like.cfg.d_sae}, k or int(like.cfg.k)
    drawn = fresh_sae(start["mean"], seed, k, like.cfg.d_sae)
    sae = TopKSAE(TopKSAEConfig(k=k, rescale_acts_by_decoder_norm=like.cfg.rescale_acts_by_decoder_norm, **shape))
    sae.load_state_dict({name: value.detach() for name, value in drawn.state_dict().items()})
    return sae.eval()


def fresh_sae(mean: Tensor, seed: int, k: int, latents: int, normalise: str = "none") -> TopKTrainingSAE:
    """A TopK SAE to train, its decoder's bias at the mean vector [D]: from zero a fifth of the latents never fires."""
    torch.manual_seed(seed)
    shape = {"d_in": len(mean), "d_sae": latents, "normalize_activations": normalise}
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(k=k, **shape))
    with torch.no_grad():
        sae.b_dec.copy_(mean)
    return sae


def load_opensae(folder: Path) -> SAE:
    """An OpenSAE checkpoint as a SAELens TopK SAE in float32; its latents are those of OpenSAE. Raises SAEGateError for a missing
    file or tensor, an unknown activation or shapes that contradict the configuration."""
    path, tensors = folder / "config.json", dict[str, Tensor]()
    if not path.is_file():
        raise SAEGateError(f"{path}: no such file; download the OpenSAE checkpoint with its configuration")
    try:
        for file in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(file)
    except SafetensorError as error:
        raise SAEGateError(f"{file}: cannot be read ({error}); the file is damaged, fetch it again") from error
    if missing := [name for name in TENSORS if name not in tensors]:
        raise SAEGateError(f"{folder}: tensor {missing[0]!r} is missing; an OpenSAE checkpoint holds {', '.join(TENSORS)}")
    config, encoder = json.loads(path.read_text(encoding="utf-8")), tensors["encoder.weight"].float()
    latents, width = encoder.shape
    normalised, activation = config.get("input_normalize", True), config.get("activation", "topk")
    epsilon = float(config.get("input_normalize_eps", EPSILON)) if normalised else EPSILON
    refused = {
        "a mixture of experts cannot be converted; use a checkpoint with num_experts 1": int(config.get("num_experts") or 1) > 1,
        f"input_normalize_eps {epsilon} is not {EPSILON}, which SAELens adds": abs(epsilon - EPSILON) > 1e-12,
        f"activation {activation!r} is not known; topk is": activation != "topk",
        f"encoder.weight is {latents} x {width}, config.json says otherwise; the download is damaged":
            (latents, width) != (config.get("feature_size", latents), config.get("hidden_size", width)),
    }  # fmt: skip
    for reason in (reason for reason, found in refused.items() if found):
        raise SAEGateError(f"{folder}: {reason}")
    shape = {"d_in": width, "d_sae": latents, "apply_b_dec_to_input": True}
    normalise = "layer_norm" if normalised else "none"
    sae = TopKSAE(TopKSAEConfig(k=int(config["k"]), rescale_acts_by_decoder_norm=False, normalize_activations=normalise, **shape))
    sae.load_state_dict({
        "W_enc": encoder.T.contiguous(), "b_enc": tensors["encoder.bias"], "W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"],
    })  # fmt: skip
    return sae.eval()


MEASURED_SAMPLES = 256
"""Samples that are read for it."""
MEASURED_TOKENS = 32_768
"""Of longer samples every n-th token is taken; bounds the memory to this times the model's width."""
TOKENS_AT_ONCE = 1024
"""Tokens whose latents, this times F, are held together."""


def measured(samples: Sequence[Sample], encoder: Encoder) -> SAEQuality:
    """Quality of the encoder's SAE on the samples' own tokens."""
    tokens = sum(len(sample_spans(sample, encoder.tokenizer, encoder.layout).ids) for sample in samples)
    stride = max(1, math.ceil(tokens / MEASURED_TOKENS))
    parts = token_vectors(samples, encoder.decoder, encoder.tokenizer, encoder.tokens_per_batch, encoder.layout)
    vectors = torch.cat([part[::stride] for part in parts]).to(encoder.sae.W_enc.device)
    return measure_sae(encoder.sae, vectors.split(TOKENS_AT_ONCE))


def hooked_gradient(model: PreTrainedModel, layer: int, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Residual stream after block `layer` and the gradient there of each sample's mean solution loss, both [B, T, D]. A sample
    without a solution span has no loss and a gradient of 0."""
    kept: dict[str, Tensor] = {}

    def keep(_module: object, _inputs: object, output: Tensor) -> Tensor:
        kept["states"] = output.detach().requires_grad_(True)
        return kept["states"]

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
        for token, latent, value in zip(*(part.split(2**18) for part in find_all(sae, vectors)), strict=True):
            along = (slopes[token] * sae.W_dec.detach()[latent]).sum(dim=1)
            total += np.bincount(latent.numpy(), weights=(value * along).abs().numpy(), minlength=len(total))
        n += int(batch.solution.any(dim=1).sum())
    return total / max(n, 1)
