"""SAEs from elsewhere, as SAELens objects: a folder on disk, SAELens' registry, and OpenSAE checkpoints converted on load.

OpenSAE (THU-KEG/OpenSAE, the paper's framework) stores config.json and safetensors: encoder.weight [F, D], encoder.bias [F],
W_dec [F, D], b_dec [D]. Its encoder standardises each token (mean 0, unbiased deviation 1 + eps), subtracts b_dec, applies a
linear map, ReLU and TopK: that is SAELens' TopK SAE with `layer_norm` and b_dec applied to the input.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saerl_lib.encode.sae import SAEGateError, load_sae

EPSILON = 1e-5
"""Added to the deviation by SAELens; an OpenSAE checkpoint with another value cannot be converted exactly."""
TENSORS = ("encoder.weight", "encoder.bias", "b_dec", "W_dec")


def open_sae_source(source: str, width: int) -> SAE:
    """An SAE named by `source`, for a model of `width`.

    `FOLDER` (saved by SAELens), `opensae:FOLDER`, or `saelens:RELEASE/ID` (SAELens' registry; downloads on first use).
    Raises SAEGateError when it does not exist or does not fit the model.
    """
    kind, _, rest = source.partition(":")
    if kind == "opensae" and rest:
        return _checked(load_opensae(Path(rest)), source, width)
    if kind == "saelens" and "/" in rest:
        release, _, name = rest.partition("/")
        return _checked(SAE.from_pretrained(release, name, device="cpu"), source, width)
    folder = Path(source)
    if not (folder / "cfg.json").is_file():
        raise SAEGateError(f"{source}: no cfg.json; name a folder saved by SAELens, opensae:FOLDER or saelens:RELEASE/ID")
    return load_sae(folder, width)


def _checked(sae: SAE, source: str, width: int) -> SAE:
    if sae.cfg.d_in != width:
        raise SAEGateError(
            f"{source}: the SAE reads vectors of width {sae.cfg.d_in}, the model's residual stream has width {width}"
        )
    return sae.eval()


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as handle:
                found |= {name: handle.get_tensor(name).float() for name in handle.keys() if name in TENSORS}
        except SafetensorError as error:
            raise SAEGateError(f"{path}: cannot be read ({error}); the file is damaged, fetch it again") from error
    missing = [name for name in TENSORS if name not in found]
    if missing:
        raise SAEGateError(f"{folder}: tensor {missing[0]!r} is missing; an OpenSAE checkpoint holds {', '.join(TENSORS)}")
    return found


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise SAEGateError(f"{path}: no such file; download the OpenSAE checkpoint with its configuration")
    config = json.loads(path.read_text(encoding="utf-8"))
    if int(config.get("num_experts") or 1) > 1:
        raise SAEGateError(f"{path}: a mixture of experts cannot be converted; use a checkpoint with num_experts 1")
    if config.get("input_normalize", True) and abs(float(config.get("input_normalize_eps", EPSILON)) - EPSILON) > 1e-12:
        raise SAEGateError(f"{path}: input_normalize_eps {config['input_normalize_eps']} is not {EPSILON}, which SAELens adds")
    return config


def load_opensae(folder: Path) -> SAE:
    """An OpenSAE checkpoint as a SAELens TopK (or JumpReLU) SAE in float32; its latents are those of OpenSAE.

    Raises SAEGateError for a missing file or tensor, an unknown activation or shapes that contradict the configuration.
    """
    config, tensors = _read_config(folder), _read_tensors(folder)
    latents, width = tensors["encoder.weight"].shape
    if (latents, width) != (config.get("feature_size", latents), config.get("hidden_size", width)):
        raise SAEGateError(
            f"{folder}: encoder.weight is {latents} x {width}, config.json says otherwise; the download is damaged"
        )
    normalise = "layer_norm" if config.get("input_normalize", True) else "none"
    shape = {"d_in": width, "d_sae": latents, "apply_b_dec_to_input": True, "normalize_activations": normalise}
    activation = config.get("activation", "topk")
    if activation == "topk":
        sae: SAE = TopKSAE(TopKSAEConfig(k=int(config["k"]), rescale_acts_by_decoder_norm=False, **shape))
    elif activation == "jumprelu":
        sae = JumpReLUSAE(JumpReLUSAEConfig(**shape))
    else:
        raise SAEGateError(f"{folder}: activation {activation!r} is not known; topk and jumprelu are")
    state = {
        "W_enc": tensors["encoder.weight"].T.contiguous(), "b_enc": tensors["encoder.bias"],
        "W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"],
    }  # fmt: skip
    if activation == "jumprelu":
        state["threshold"] = torch.full((latents,), float(config.get("jumprelu_theta", 0.5)))
    sae.load_state_dict(state)
    return sae.eval()
