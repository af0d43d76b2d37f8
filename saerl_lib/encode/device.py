"""Where an encoder runs: batches are made on the CPU and computed on one device, and what is read from them comes back (ours)."""

from __future__ import annotations

import torch

from saerl_lib.encode.activations import CutModel
from saerl_lib.encode.pooling import Encoder


def pick_device(name: str) -> torch.device:
    """`cpu`, `cuda` or `cuda:N`. Raises ValueError with the fix for another name and where there is no such device."""
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdigit())):
        raise ValueError(f"--device {name}: choose cpu, cuda or cuda:N")
    seen = torch.cuda.device_count() if kind == "cuda" else 0
    if kind == "cuda" and int(number or 0) >= seen:
        raise ValueError(f"--device {name}: torch {torch.__version__} sees {seen} CUDA devices; use --device cpu")
    return torch.device(name)


def place(encoder: Encoder, device: torch.device, precision: torch.dtype = torch.float32) -> Encoder:
    """The encoder with its model and SAE moved to `device`, the model's weights in `precision`; the SAE keeps its own.

    Modules move in place: open another encoder to keep one elsewhere.
    """
    place_model(encoder.decoder, device, precision)
    encoder.sae.to(device)
    return encoder


def place_model(decoder: CutModel, device: torch.device, precision: torch.dtype = torch.float32) -> CutModel:
    """The model moved to `device`, its weights in `precision`."""
    decoder.to(device)
    for weight in decoder.parameters():  # not the buffers: rotary frequencies in bfloat16 would blur positions
        weight.data = weight.data.to(precision)
    return decoder
