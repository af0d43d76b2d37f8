"""Readers of texts: any Hugging Face model cut at a layer, with the SAE of its residual stream there.

The encoder of the embedded world: a small LM of its own that reads the data and never trains.

It has another tokenizer, width and seed than the policy and a broader corpus (worked problems, comparisons,
counting; `saerl_lib.world.sources`), which leaves out `HELD_OUT` leaf families and shares no prompt with any split of
the world. `all_families=True` builds the control that saw every family.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, LlamaForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from saerl_lib import paths
from saerl_lib.artifacts import Stage, file_sha256
from saerl_lib.config import Profile
from saerl_lib.encode.language_model import (
    CutModel,
    LanguageModelConfig,
    Layout,
    load_model,
    pick_device,
    place,
    place_model,
    truncate,
)
from saerl_lib.encode.pool import Encoder
from saerl_lib.encode.sae import load_sae, open_sae_source

OPENSAE = "opensae:"
"""Before the folder of an OpenSAE checkpoint."""
PROBED = 20
"""Prompts on which a tokenizer must keep the spaces."""


@dataclass(frozen=True)
class ReaderSpec:
    """All that decides pooled latents beside the samples."""

    model: str
    """Folder in Hugging Face format, or hub name."""
    layer: int
    """Block whose residual stream the SAE reads; 1 is the first."""
    sae: str
    """FOLDER saved by SAELens, opensae:FOLDER or saelens:RELEASE/ID."""
    max_tokens: int | None = None
    """Longer samples are cut at the end; None: the positions that the model has."""
    tokens_per_batch: int = 8192
    """Padded tokens of one batch; bounds the memory and decides last digits."""
    device: str = "cpu"
    """cpu, cuda or cuda:N; last digits differ between devices."""
    bf16: bool = False
    """Run the model in bfloat16; the SAE stays in float32."""

    @property
    def sae_folder(self) -> Path | None:
        """The SAE's folder, None for one of SAELens' registry."""
        return None if self.sae.startswith("saelens:") else Path(self.sae.removeprefix(OPENSAE))

    def absolute(self) -> ReaderSpec:
        """The same with absolute folders, for a process that starts elsewhere."""
        model = str(Path(self.model).absolute()) if Path(self.model).is_dir() else self.model
        prefix = OPENSAE if self.sae.startswith(OPENSAE) else ""
        sae = f"{prefix}{self.sae_folder.absolute()}" if self.sae_folder else self.sae
        return replace(self, model=model, sae=sae)

    def identity(self) -> dict[str, Any]:
        """What decides the numbers: contents of folders, revision of a hub model, settings; where the folders lie does not."""
        model = Path(self.model)
        return {
            "model": _folder_sha256(model) if model.is_dir() else f"{self.model}@{_settings(self.model)._commit_hash}",
            "sae": _folder_sha256(self.sae_folder) if self.sae_folder else self.sae,
            "sae_format": OPENSAE if self.sae.startswith(OPENSAE) else "", "layer": self.layer, "max_tokens": self.max_tokens,
            "tokens_per_batch": self.tokens_per_batch, "device": self.device.partition(":")[0], "bf16": self.bf16,
        }  # fmt: skip


def _folder_sha256(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        found.update(f"{path.relative_to(folder)}\n{file_sha256(path)}\n".encode())
    return found.hexdigest()


def open_reader(spec: ReaderSpec, prompts: Sequence[str]) -> Encoder:
    """The model cut at its layer, its tokenizer (tried on the first `PROBED` prompts) and the SAE, on their device.

    A folder is read without a network. Raises OSError or ValueError for a model that cannot be read, and SAEGateError for an
    SAE that does not fit it.
    """
    device, local = pick_device(spec.device), Path(spec.model).is_dir()
    settings = _settings(spec.model)
    sae = open_sae_source(spec.sae, _width(settings))
    tokenizer = open_tokenizer(spec.model, prompts[:PROBED], local)
    precision = torch.bfloat16 if spec.bf16 else torch.float32
    model = _load(spec.model, precision)
    layout = Layout(max_tokens=spec.max_tokens or getattr(settings, "max_position_embeddings", None))
    encoder = Encoder(truncate(model, spec.layer), tokenizer, sae, spec.tokens_per_batch, layout)
    return place(encoder, device, precision)


def open_decoder(name: str, layer: int, device: str, bf16: bool) -> tuple[CutModel, Any, int, str]:
    """A model cut at a layer, its tokenizer, its width D, and what tells it from others; no SAE. Errors as `open_reader`."""
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


ENCODER = LanguageModelConfig(
    seed=29,
    vocabulary=900,
    width=96,
    layers=4,
    heads=4,
    feed_forward=256,
    steps=1500,
    sequences_per_step=64,
    solution_only=False,
)


def encoder_folder(all_families: bool = False) -> Path:
    """Where the shipped weights lie."""
    return paths.WEIGHTS / ("encoder_all_families" if all_families else "encoder")


def load_encoder(all_families: bool = False) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The shipped encoder, or the control that saw every family."""
    return load_model(encoder_folder(all_families))


def open_encoder(profile: Profile, sae: Stage, all_families: bool = False) -> Encoder:
    """The encoder cut at its hook, with the SAE of a stage."""
    model, tokenizer = load_encoder(all_families)
    return Encoder(
        truncate(model, profile.encoder.hook_layer),
        tokenizer,
        load_sae(sae.path("sae"), ENCODER.width),
        profile.encoder.tokens_per_batch,
    )
