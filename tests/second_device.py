"""A second device without hardware: tensors that live on the CPU, claim device `other:0`, and refuse to meet CPU tensors.

Code that leaves a tensor on the wrong side raises RuntimeError here as it would on a GPU. Registering the device changes the
process, so a test starts this in one of its own. Uses torch's Python-backend hook, which is private and pinned by the lock.
"""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from devices import KINDS, pooled, world_samples
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from saerl_lib.encode.models import token_vectors, truncate
from saerl_lib.encode.pool import Encoder, batch_latents
from saerl_lib.encode.tokens import token_batches
from saerl_lib.studies.bench import SMALL, random_sae
from saerl_lib.train.policy import load_policy

DEVICE = "other:0"
aten = torch.ops.aten
MAY_MIX = (aten.index.Tensor, aten.index_put_.default, aten.copy_.default)
"""Operations that a GPU, too, does with an index or a source on the CPU."""


def register() -> torch.device:
    """Make `other` known to torch."""
    amp = SimpleNamespace(get_amp_supported_dtype=lambda: [torch.bfloat16], is_available=lambda: True, device_count=lambda: 1)
    _setup_privateuseone_for_python_backend("other", amp)
    return torch.device(DEVICE)


class OtherTensor(torch.Tensor):
    """A tensor of the second device; `held` has its values."""

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> OtherTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype, device=DEVICE
        )

    def __init__(self, real: torch.Tensor) -> None:
        self.held = real

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    """While active, factories with `device=other` make tensors of the second device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run `func` on the values and put its results where the operands, or the asked device, are."""
    leaves = tree_flatten((args, kwargs))[0]
    tensors = [t for t in leaves if isinstance(t, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, OtherTensor)]
    asked = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
    if there and func not in MAY_MIX and any(t.dim() for t in tensors if not isinstance(t, OtherTensor)):
        raise RuntimeError(f"{func}: operands on {DEVICE} and on cpu")
    held = {id(t.held): t for t in there}
    result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    to_other = asked.type == "other" if asked else bool(tensors) and isinstance(tensors[0], OtherTensor)

    def outer(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not to_other:
            return value
        return held[id(value)] if id(value) in held else OtherTensor(value)

    return tree_map(outer, result)


def _inner(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "other":
        return torch.device("cpu")
    return value.held if isinstance(value, OtherTensor) else value


def move(module: torch.nn.Module) -> torch.nn.Module:
    """Put the weights and buffers of a module on the second device, in place."""
    for part in module.modules():
        for name, weight in list(part._parameters.items()):
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(OtherTensor(weight.data), requires_grad=False)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = OtherTensor(buffer)
    return module


def encode_twice(kind: str) -> dict[str, bool]:
    """Whether pooled features, one batch's latents and token vectors are those of the CPU."""
    samples, retained = world_samples(12, "second-device"), np.arange(0, 512, 7)
    found = []
    for there in (False, True):
        model, tokenizer = load_policy()
        torch.manual_seed(0)
        small = replace(SMALL, width=model.config.hidden_size)
        encoder = Encoder(truncate(model, 3), tokenizer, {"sae": random_sae(512, kind, small)}, 512)
        if there:
            move(encoder.decoder), move(encoder.sae)
        batch = next(iter(token_batches(samples[:4], tokenizer, 512)))
        vectors = torch.cat(list(token_vectors(samples, encoder.decoder, tokenizer, 512)))
        latents = batch_latents(encoder, batch, samples[:4])
        found.append((pooled(samples, encoder, retained), latents.numpy(), vectors.numpy()))
    names = ("features", "latents", "vectors")
    same = [bool(np.array_equal(a, b, equal_nan=True)) and bool(a.any()) for a, b in zip(*found, strict=True)]
    return dict(zip((f"{kind} {name}" for name in names), same, strict=True))


def refused() -> dict[str, bool]:
    """Whether a tensor left behind is noticed."""
    try:
        OtherTensor(torch.ones(3)) + torch.ones(3)
    except RuntimeError as error:
        return {"refused": "operands on other:0 and on cpu" in str(error)}
    return {"refused": False}


if __name__ == "__main__":
    register()
    with SecondDevice():
        results = [encode_twice(kind) for kind in KINDS] + [refused()]
    print(json.dumps({name: same for result in results for name, same in result.items()}))
