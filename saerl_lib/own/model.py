"""SAE features of one's own rows: any Hugging Face model cut at a layer, and an SAE of its residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from saerl_lib.artifacts import file_sha256
from saerl_lib.data.sample import Sample
from saerl_lib.encode.activations import CutModel, truncate
from saerl_lib.encode.device import pick_device, place, place_model
from saerl_lib.encode.features import FeatureTable
from saerl_lib.encode.metadata import metadata_features
from saerl_lib.encode.pooling import Encoder
from saerl_lib.encode.retain import choose_retained
from saerl_lib.encode.sae_check import MEASURED_SAMPLES, measured
from saerl_lib.encode.sources import open_sae_source
from saerl_lib.encode.spans import Layout, sample_spans
from saerl_lib.encode.store import write_store
from saerl_lib.own.represent import TOKENS, Representation, finish
from saerl_lib.own.settings import OwnConfig

PROBED = 20
"""Prompts on which a tokenizer must keep the spaces."""


def represent_model(samples: Sequence[Sample], config: OwnConfig, work: Path) -> Representation:
    """SAE features and metadata of N samples; `work` is an empty folder for the store of all latents.

    Raises OSError or ValueError for a model that cannot be read, SAEGateError for an SAE that does not fit it, and
    FloatingPointError for non-finite activations.
    """
    encoder = open_model(config, samples)
    spans = [sample_spans(s, encoder.tokenizer, encoder.layout) for s in samples]
    lengths, truncated = np.array([len(s.ids) for s in spans], dtype=float), sum(s.truncated for s in spans)
    del spans
    store = write_store(samples, encoder, work)
    retained = choose_retained(store, min(config.retained_latents, store.width))
    table = FeatureTable(tuple(s.id for s in samples), store.select(retained), metadata_features(samples))
    name = f"{len(retained)} SAE latents of {Path(config.encoder).name}, layer {config.layer}, and metadata"
    quality = measured(samples[:MEASURED_SAMPLES], encoder, config.sae)
    return replace(finish(table, lengths, TOKENS, name, truncated), sae=quality)


def open_model(config: OwnConfig, samples: Sequence[Sample]) -> Encoder:
    """The model cut at its layer, its tokenizer and the SAE; a folder is read without a network. Errors as `represent_model`."""
    device, local = pick_device(config.device), Path(config.encoder).is_dir()
    settings = _settings(config.encoder)
    sae = open_sae_source(config.sae, _width(settings))
    tokenizer = open_tokenizer(config.encoder, [s.prompt for s in samples[:PROBED]], local)
    precision = torch.bfloat16 if config.bf16 else torch.float32
    model = _load(config.encoder, precision)
    layout = Layout(max_tokens=config.max_tokens or getattr(settings, "max_position_embeddings", None))
    encoder = Encoder(truncate(model, config.layer), tokenizer, sae, config.tokens_per_batch, layout)
    return place(encoder, device, precision)


def open_decoder(name: str, layer: int, device: str, bf16: bool) -> tuple[CutModel, Any, int, str]:
    """A model cut at a layer, its tokenizer, its width D, and what tells it from others; no SAE. Errors as `represent_model`."""
    where, local = pick_device(device), Path(name).is_dir()
    settings = _settings(name)
    precision = torch.bfloat16 if bf16 else torch.float32
    model = _load(name, precision)
    weights = sorted(Path(name).glob("*.safetensors")) if local else []
    identity = " ".join(file_sha256(path)[:16] for path in weights) or f"{name}@{getattr(settings, '_commit_hash', None)}"
    decoder = place_model(truncate(model, layer), where, precision)
    tokenizer = open_tokenizer(name, ["What is 3 plus 4?"], local)
    return decoder, tokenizer, _width(settings), f"{identity}, layer {layer}, {precision}"


def _settings(name: str) -> PretrainedConfig:
    local = Path(name).is_dir()
    try:
        return AutoConfig.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        what = "cannot be read" if local else "no such folder, and not readable from the Hugging Face Hub"
        raise ValueError(f"--encoder {name}: {what} ({reason})") from error


def _width(settings: PretrainedConfig) -> int:
    return getattr(settings, "hidden_size", None) or settings.get_text_config().hidden_size


def _load(name: str, precision: torch.dtype) -> nn.Module:
    try:
        return AutoModel.from_pretrained(name, dtype=precision, local_files_only=Path(name).is_dir()).eval()
    except SafetensorError as error:
        raise ValueError(f"--encoder {name}: its weights cannot be read ({error}); fetch them again") from error


def open_tokenizer(name: str, texts: Sequence[str], local: bool) -> Any:
    """The model's tokenizer, one that keeps spaces: the automatic class may build another than the folder holds.

    Raises ValueError when every class drops the spaces of `texts`.
    """
    for kind in (AutoTokenizer, PreTrainedTokenizerFast):
        tokenizer = kind.from_pretrained(name, local_files_only=local, padding_side="right")
        if _keeps_spaces(tokenizer, texts):
            return tokenizer
    raise ValueError(f"{name}: its tokenizer loses the spaces of the prompts; check the tokenizer files of the model")


def _keeps_spaces(tokenizer: Any, texts: Sequence[str]) -> bool:
    """Whether a round trip keeps at least half of the white space."""
    decoded = "".join(tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) for text in texts)
    return 2 * sum(c.isspace() for c in decoded) >= sum(c.isspace() for text in texts for c in text)
