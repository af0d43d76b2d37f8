"""The sparse autoencoder: trained and held by SAELens, checked against stated bounds (paper, sections 2 and C.1).

The k largest entries of each row of a wide array, for TopK SAEs: partitioning whole rows would cost as much as the product.

Two ways, for wide and for narrow rows, look at the maxima of groups of entries first.

SAEs from elsewhere, as SAELens objects: a folder on disk, SAELens' registry, and OpenSAE checkpoints converted on load.

OpenSAE (THU-KEG/OpenSAE, the paper's framework) stores config.json and safetensors: encoder.weight [F, D], encoder.bias [F],
W_dec [F, D], b_dec [D]. Its encoder standardises each token (mean 0, unbiased deviation 1 + eps), subtracts b_dec, applies a
linear map, ReLU and TopK: that is SAELens' TopK SAE with `layer_norm` and b_dec applied to the input.

Whether an SAE reads the residual stream that it was trained on: its reconstruction of some samples' own tokens (ours).

A wrong layer or model raises no error by itself; features of it would be noise.

An SAE trained on text of any length: streamed activations, SAELens' trainer, checkpoints to go on from (paper, section C.1).

The paper trains one of expansion 64 on 80 GB of FineWeb-Edu and Wikipedia; its k, learning rate and context are not stated.

Text of any length as a stream of activations: documents, blocks of tokens, vectors; nothing is held but a buffer (ours).

Sources: what `data.rows` reads, with a text field; plain text with a blank line between documents; or OWNER/NAME@COMMIT on the
Hugging Face Hub, streamed. The first token of a block is an attention sink and is left out, as everywhere in this room.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig, JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.mixing_buffer import mixing_buffer
from sae_lens.training.sae_trainer import SAETrainer
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from saerl_lib.artifacts import ArtifactError, provenance, write_json
from saerl_lib.config import EXPANSION, EncoderConfig, TextSAEConfig, sub_seed, to_dict
from saerl_lib.data.rows import HUB, Source, kind_of, rows
from saerl_lib.data.rows import KINDS as ROWS_KINDS
from saerl_lib.data.sample import DataError, Sample
from saerl_lib.encode.language_model import CutModel, TokenBatch, sample_spans, token_vectors
from saerl_lib.encode.pool import Encoder

KINDS = ("trained", "untrained", "frozen_decoder", "soft_frozen_decoder", "frozen_encoder")
"""The SAE and its controls: weights as drawn, decoder never updated, decoder kept near its start, encoder never updated."""
VECTORS_PER_STEP = 4096
"""Activation vectors of one SAE optimiser step."""


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


def shuffled_vectors(vectors: Tensor, seed: int) -> Iterator[Tensor]:
    """Endless batches of [VECTORS_PER_STEP, D] in a fresh order each epoch."""
    generator = torch.Generator().manual_seed(seed)
    size = min(VECTORS_PER_STEP, len(vectors))
    while True:
        order = torch.randperm(len(vectors), generator=generator)
        for start in range(0, len(order) - size + 1, size):
            yield vectors[order[start : start + size]]


def build_sae(width: int, config: EncoderConfig) -> TrainingSAE:
    """A training SAE of SAELens for vectors of `width`: TopK, BatchTopK (saved as JumpReLU) or JumpReLU.

    JumpReLU gets SAELens' quadratic loss with `sae_k` as its target L0, so that the three are comparable.
    """
    shape = {"d_in": width, "d_sae": config.sae_latents, "normalize_activations": "expected_average_only_in"}
    if config.sae_architecture == "topk":
        return TopKTrainingSAE(TopKTrainingSAEConfig(k=config.sae_k, **shape))
    if config.sae_architecture == "batchtopk":
        return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=float(config.sae_k), **shape))
    loss = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": float(config.sae_k), "jumprelu_bandwidth": 0.5}
    return JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(l0_coefficient=1.0, jumprelu_init_threshold=0.1, **loss, **shape))


def _keep_decoder_near(sae: TrainingSAE, start: Tensor, cosine: float) -> None:
    """Turn each decoder row back to at least `cosine` with its row of `start` [F, D] (unit rows), at its own norm."""
    with torch.no_grad():
        norm = sae.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12)
        unit = sae.W_dec / norm
        along = (unit * start).sum(dim=1, keepdim=True)
        across = unit - along * start
        across = across / across.norm(dim=1, keepdim=True).clamp_min(1e-12)
        turned = cosine * start + (1 - cosine**2) ** 0.5 * across
        sae.W_dec.copy_(norm * torch.where(along < cosine, turned, unit))


def start_at_mean(sae: TrainingSAE, vectors: Tensor) -> None:
    """Set the decoder's bias to the mean of vectors [n, D], in SAELens' scale; from zero a fifth of the latents never fires."""
    with torch.no_grad():
        sae.b_dec.copy_(vectors.mean(dim=0) * vectors.shape[1] ** 0.5 / vectors.norm(dim=1).mean())


class BarTrainer(SAETrainer):
    """SAELens's trainer with a bar that moves at every step; its own moves every 100 steps, which a short training never sees."""

    def _update_pbar(self, step_output: TrainStepOutput, pbar: tqdm, update_interval: int = 1) -> None:
        pbar.update(self.cfg.train_batch_size_samples)


def train_sae(
    vectors: Tensor, config: EncoderConfig, seed: int, folder: Path, kind: str = "trained", cosine: float = 0.8
) -> None:
    """Train an SAE on activations [n, D] with SAELens and save it for inference under `folder`.

    `kind` is one of `KINDS`: the controls of arXiv 2602.14111 share initialisation, order of the data and
    hyperparameters with the trained one. Raises ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(KINDS)}")
    torch.manual_seed(seed)
    sae = build_sae(vectors.shape[1], config)
    start_at_mean(sae, vectors)
    size = min(VECTORS_PER_STEP, len(vectors))
    steps = max(1, config.sae_training_tokens // size)
    sae.W_dec.requires_grad_(kind != "frozen_decoder")
    sae.W_enc.requires_grad_(kind != "frozen_encoder")
    trainer = BarTrainer(
        cfg=SAETrainerConfig(
            total_training_samples=0 if kind == "untrained" else steps * size,
            train_batch_size_samples=size,
            lr=config.sae_learning_rate,
            lr_end=config.sae_learning_rate / 10,
            lr_decay_steps=steps // 3,
            dead_feature_window=max(5, steps // 30),
            n_batches_for_norm_estimate=10,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=shuffled_vectors(vectors, seed),
    )
    if kind == "soft_frozen_decoder":
        start = torch.nn.functional.normalize(sae.W_dec.detach().clone(), dim=1)
        trainer.optimizer.register_step_post_hook(lambda *_: _keep_decoder_near(sae, start, cosine))
    trainer.fit().save_inference_model(str(folder))


def load_sae(folder: Path, width: int) -> SAE:
    """An SAE from disk, in float32; raises SAEGateError when its input width is not the model's `width`."""
    try:
        sae = SAE.load_from_disk(folder, device="cpu")
    except SafetensorError as error:
        raise SAEGateError(f"{folder}: its weights cannot be read ({error}); the file is damaged, make it again") from error
    if sae.cfg.d_in != width:
        raise SAEGateError(
            f"{folder}: the SAE reads vectors of width {sae.cfg.d_in}, the model's residual stream has width {width}; "
            "choose the SAE that was trained on this model and layer"
        )
    return sae.eval()


@torch.inference_mode()
def measure_sae(sae: SAE, batches: Sequence[Tensor]) -> SAEQuality:
    """Explained variance, L0 and dead share of `sae` on held-out activations [n, D]."""
    mean = torch.cat(list(batches)).double().mean(dim=0)
    error = variance = active = 0.0
    tokens = 0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    for vectors in batches:
        latents = sae.encode(vectors)
        error += (sae.decode(latents).double() - vectors.double()).square().sum().item()
        variance += (vectors.double() - mean).square().sum().item()
        active += (latents > 0).sum().item()
        fired |= (latents > 0).any(dim=0)
        tokens += len(vectors)
    return SAEQuality(1 - error / variance, active / tokens, 1 - fired.float().mean().item(), tokens)


def check_sae(quality: SAEQuality, config: EncoderConfig) -> None:
    """Raise SAEGateError when a bound of `config` is missed."""
    if quality.explained_variance < config.min_explained_variance:
        raise SAEGateError(
            f"explained variance {quality.explained_variance:.3f} is below "
            f"min_explained_variance={config.min_explained_variance}; train longer (sae_training_tokens) or raise sae_k"
        )
    if quality.dead_share > config.max_dead_share:
        raise SAEGateError(
            f"dead share {quality.dead_share:.3f} is above max_dead_share={config.max_dead_share}; "
            "train longer or lower sae_latents"
        )


def write_quality(quality: SAEQuality, path: Path) -> None:
    """Store the measured quality as JSON."""
    path.write_text(json.dumps(asdict(quality), indent=1) + "\n", encoding="utf-8")


GROUP = 128
"""Entries of a group at most."""
WIDE = 16
"""A row counts as wide on a CPU when its k best groups are at most one part in so many of it."""
TINY = torch.finfo(torch.float32).tiny


def topk_entries(hidden: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positive entries among the k largest of each row of [n, F], as (row, column, value); by ascending row.

    On a CPU columns ascend within a row too.

    >>> [v.tolist() for v in topk_entries(torch.tensor([[3.0, -1.0, 2.0, 1.0]]), 2)]
    [[0, 0], [0, 2], [3.0, 2.0]]
    """
    group, on_cpu = group_size(hidden.shape[1], k), hidden.device.type == "cpu"
    if on_cpu and group > 1 and hidden.shape[1] < WIDE * k * GROUP:
        return _above_bound(hidden, k, group)
    values, columns = _of_best_groups(hidden, k) if group == GROUP else hidden.topk(k, dim=1, sorted=False)
    if on_cpu:
        columns, order = columns.sort(dim=1)
        values = values.gather(1, order)
    rows = torch.arange(len(hidden), device=hidden.device).unsqueeze(1).expand_as(columns)
    keep = values > 0
    return rows[keep], columns[keep], values[keep]


def group_size(width: int, k: int) -> int:
    """Entries of a group: the largest power of two up to `GROUP` that leaves whole groups, at least twice k of them.

    >>> group_size(131_072, 50), group_size(2048, 32), group_size(100, 50)
    (128, 32, 1)
    """
    size = GROUP
    while size > 1 and (width % size or width // size < 2 * k):
        size //= 2
    return size


def _above_bound(hidden: Tensor, k: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k-th largest of the groups' maxima bounds the k-th largest entry from below: only entries above it are ranked.

    For rows so narrow that the k best groups would be much of them. This reads the array twice. A group is every
    (F / group)-th column, so that the maxima of neighbouring groups are taken at once.
    """
    n, width = hidden.shape
    maxima = hidden.view(n, group, width // group).amax(dim=1)
    bound = torch.from_numpy(_kth_largest(maxima.float().numpy(), k)).unsqueeze(1).clamp_min(TINY).to(hidden.dtype)
    place, flat = np.flatnonzero((hidden >= bound).numpy()), hidden.flatten()
    value = flat.numpy()[place] if hidden.dtype == torch.float32 else flat[torch.from_numpy(place)].float().numpy()
    row = place // width
    keep, tied = _largest(row, value, n, k)
    for i in tied:  # torch.topk takes its own of equal entries; so do we, and the same everywhere
        own = slice(*np.searchsorted(row, (i, i + 1)))
        keep[own] = np.isin(place[own] - i * width, hidden[i].topk(k, sorted=False).indices.numpy())
    row, place, value = row[keep], place[keep], value[keep]
    return torch.from_numpy(row), torch.from_numpy(place - row * width), torch.from_numpy(value).to(hidden.dtype)


def _kth_largest(values: np.ndarray, k: int) -> np.ndarray:
    """The k-th largest entry of each row, [n]."""
    return np.partition(values, values.shape[1] - k, axis=1)[:, values.shape[1] - k]


def _largest(row: np.ndarray, value: np.ndarray, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Mask of the entries, by ascending row, that are at least the k-th largest of their row, and the rows with more than k."""
    counts = np.bincount(row, minlength=n)
    within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((n, max(int(counts.max(initial=0)), k)), -np.inf, dtype=np.float32)
    table[row, within] = value
    keep = value >= _kth_largest(table, k)[row]
    return keep, np.flatnonzero(np.bincount(row[keep], minlength=n) > k)


def _of_best_groups(hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns [n, k] of the k largest entries, which lie in the k groups with the largest maxima.

    The array is read once. Sizes do not depend on the values, so a GPU need not wait for them.
    """
    n, width = hidden.shape
    groups = hidden.view(n, width // GROUP, GROUP)
    best = groups.amax(dim=2).topk(k, dim=1, sorted=False).indices
    near = groups.gather(1, best.unsqueeze(2).expand(-1, -1, GROUP)).flatten(1)
    values, place = near.topk(k, dim=1, sorted=False)
    return values, best.gather(1, place // GROUP) * GROUP + place % GROUP


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


MEASURED_SAMPLES = 256
"""Samples that are read for it."""
MEASURED_TOKENS = 32_768
"""Of longer samples every n-th token is taken; bounds the memory to this times the model's width."""
TOKENS_AT_ONCE = 1024
"""Tokens whose latents, this times F, are held together."""


def measured(samples: Sequence[Sample], encoder: Encoder, source: str) -> SAEQuality:
    """Quality of the SAE named `source` on activations of the encoder's model; the SAE runs on the CPU in float32."""
    tokens = sum(len(sample_spans(sample, encoder.tokenizer, encoder.layout).ids) for sample in samples)
    stride = max(1, math.ceil(tokens / MEASURED_TOKENS))
    parts = token_vectors(samples, encoder.decoder, encoder.tokenizer, encoder.tokens_per_batch, encoder.layout)
    vectors = torch.cat([part[::stride] for part in parts])
    return measure_sae(open_sae_source(source, vectors.shape[1]), vectors.split(TOKENS_AT_ONCE))


def explains(quality: SAEQuality) -> bool:
    """Whether the SAE reconstructs better than the mean vector does."""
    return quality.explained_variance > 0


TEXT = (".txt", ".txt.gz")


def documents(sources: Sequence[str], field: str = "text") -> Iterator[str]:
    """Every document of some sources, one source after another; empty ones are passed over.

    Raises DataError with the source, line and fix: no such file, an unknown ending, a row without the field.
    """
    for source in sources:
        yield from (text for text in _one(source, field) if text.strip())


def require_sources(sources: Sequence[str]) -> None:
    """Raise DataError for a source that is neither a readable file nor a hub name with its commit."""
    for source in sources:
        if (named := HUB.fullmatch(source)) and named.group(2):
            continue
        if not Path(source).is_file():
            raise DataError(f"{source}: no such file; name one, or OWNER/NAME@COMMIT on the hub (a commit has 40 digits)")
        if not kind_of(Path(source)) and not source.endswith(TEXT):
            raise DataError(f"{source}: unknown ending; name the file {', '.join((*ROWS_KINDS, *TEXT))} by what it holds")


def _one(source: str, field: str) -> Iterator[str]:
    if source.endswith(TEXT):
        yield from _paragraphs(source)
        return
    for row in rows(Source.parse(source, streaming=True), (field,)):
        if row.record is None:
            raise DataError(f"{source}, {row.where}: {row.problem}")
        value = row.record.get(field)
        if not isinstance(value, str):
            found = f"field {field!r} is {type(value).__name__}"
            raise DataError(f"{source}, {row.where}: {found}, not text; name the right one with --text-field")
        yield value


def _lines(source: str) -> io.TextIOBase:
    opened = gzip.open if source.endswith(".gz") else open
    return opened(source, "rt", encoding="utf-8", newline="\n")  # type: ignore[return-value]


def _paragraphs(source: str) -> Iterator[str]:
    held: list[str] = []
    with _lines(source) as lines:
        for line in lines:
            if line.strip():
                held.append(line)
            elif held:
                yield "".join(held)
                held = []
    if held:
        yield "".join(held)


def blocks(texts: Iterator[str], tokenizer: Any, size: int) -> Iterator[list[int]]:
    """Documents joined by the end-of-text token and cut into blocks of `size` tokens; the last, short one is left out.

    Raises ValueError for a tokenizer without an end-of-text token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError("the tokenizer has no end-of-text token to put between documents; set eos_token in its configuration")
    held: list[int] = []
    for text in texts:
        held += [*tokenizer(text, add_special_tokens=False)["input_ids"], end]
        while len(held) >= size:
            yield held[:size]
            held = held[size:]


@torch.no_grad()
def block_vectors(found: Sequence[list[int]], decoder: CutModel) -> Tensor:
    """[n, D] activations of the tokens of some blocks of one length but the first of each, float32 on the model's device.

    Raises FloatingPointError for a value that is not finite.
    """
    ids = torch.tensor(found)
    mask = torch.ones_like(ids, dtype=torch.bool)
    values = decoder(TokenBatch(tuple(range(len(ids))), ids, mask, ~mask, mask))[:, 1:].float()
    if not torch.isfinite(values).all():
        raise FloatingPointError("a non-finite activation; check the encoder's weights or run it in float32")
    return values.flatten(0, 1)


class VectorStream:
    """Vectors from blocks of tokens; knows how many blocks it has read, so that it can go on after a stop."""

    def __init__(self, found: Iterator[list[int]], decoder: CutModel, rows: int) -> None:
        self.blocks, self.decoder, self.rows, self.read = found, decoder, rows, 0

    def skip_to(self, count: int) -> None:
        """Pass over blocks until `count` have been read; the model does not see them."""
        while self.read < count and next(self.blocks, None) is not None:
            self.read += 1

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        taken = [block for _, block in zip(range(self.rows), self.blocks, strict=False)]
        if not taken:
            raise StopIteration
        self.read += len(taken)
        return block_vectors(taken, self.decoder)

    def first(self, count: int) -> Tensor:
        """The next `count` vectors or a few more, [n, D]. Raises StopIteration when the text holds fewer."""
        parts: list[Tensor] = []
        while sum(map(len, parts)) < count:
            parts.append(next(self))
        return torch.cat(parts)


CHECKPOINTS, POSITION, SETTINGS, DONE = "checkpoints", "position.json", "settings.json", "quality.json"
"""Checkpoints, each with its place in the text; what decides the SAE; what is written last."""
MEASURED_AT_ONCE = 1024


def train_text_sae(
    sources: Sequence[str], field: str, decoder: CutModel, tokenizer: Any, config: TextSAEConfig, identity: str, out: Path,
    say: Callable[[str], None] = lambda text: None,
) -> SAEQuality:  # fmt: skip
    """Train into `out` as SAELens saves it for inference, with quality.json last; the same call goes on after a stop.

    `identity` tells model and layer apart. After a stop the text goes on behind the last checkpoint, without the vectors that
    lay in the buffer; nothing is read twice. Raises DataError for bad text, ArtifactError for an `out` of other settings or
    text that ends too early, FloatingPointError for non-finite activations.
    """
    settings = {**to_dict(config), "sources": list(sources), "field": field, "model": identity}
    _claim(out, settings)
    if (out / DONE).is_file():
        return SAEQuality(**json.loads((out / DONE).read_text(encoding="utf-8")))
    stream = VectorStream(blocks(documents(sources, field), tokenizer, config.context), decoder, config.blocks_per_pass)
    try:
        held_out = stream.first(config.heldout_tokens)
        trainer = _trainer(held_out, config, stream, out)
        if checkpoint := _last_checkpoint(out):
            _go_on(trainer, stream, checkpoint)
            say(f"going on after {trainer.n_training_samples:,} of {config.tokens:,} vectors")
        trainer.fit().save_inference_model(str(out))
    except StopIteration as error:
        raise ArtifactError(f"the text ends before {config.heldout_tokens:,} held-out and {config.tokens:,} training vectors "
                            "were read; name more sources or lower --tokens") from error  # fmt: skip
    sae, vectors = load_sae(out, held_out.shape[1]), held_out.cpu()
    quality = measure_sae(sae, vectors.split(MEASURED_AT_ONCE))
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    write_json(out / "provenance.json", {"settings": settings, **provenance()})
    write_quality(quality, out / DONE)
    return quality


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or find that it is of the same settings. Raises ArtifactError otherwise."""
    record = out / SETTINGS
    if record.is_file():
        if json.loads(record.read_text(encoding="utf-8")) != settings:
            raise ArtifactError(f"{out} was begun with other settings, model or text; name another folder")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArtifactError(f"{out} holds something else; name a folder that does not exist yet")
    out.mkdir(parents=True, exist_ok=True)
    write_json(record, settings)


def _trainer(held_out: Tensor, config: TextSAEConfig, stream: VectorStream, out: Path) -> SAETrainer:
    """SAELens' trainer on the stream; the decoder's bias starts at the mean of the held-out vectors, as in `sae.train_sae`."""
    torch.manual_seed(sub_seed(config.seed, "text-sae"))
    shape = {"d_in": held_out.shape[1], "d_sae": config.latents, "normalize_activations": "expected_average_only_in"}
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(k=config.k, **shape))
    start_at_mean(sae, held_out.cpu())
    steps = config.tokens // config.vectors_per_step

    def keep(checkpoint_path: Path | None) -> None:
        write_json(checkpoint_path / POSITION, {"blocks": stream.read})
        for older in (out / CHECKPOINTS).iterdir():
            if older != checkpoint_path:
                shutil.rmtree(older)

    return BarTrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * config.vectors_per_step, train_batch_size_samples=config.vectors_per_step,
            device=str(held_out.device), lr=config.learning_rate, lr_end=config.learning_rate / 10, lr_decay_steps=steps // 5,
            n_batches_for_norm_estimate=10, n_checkpoints=(config.tokens - 1) // config.checkpoint_every,
            checkpoint_path=str(out / CHECKPOINTS), logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=mixing_buffer(config.buffer_vectors, config.vectors_per_step, stream),
        save_checkpoint_fn=keep,
    )  # fmt: skip


def _last_checkpoint(out: Path) -> Path | None:
    """The last whole checkpoint: its place in the text is written after everything else."""
    found = [path.parent for path in (out / CHECKPOINTS).glob(f"*/{POSITION}")]
    return max(found, key=lambda path: int(path.name), default=None)


def _go_on(trainer: SAETrainer, stream: VectorStream, checkpoint: Path) -> None:
    trainer.sae.to(trainer.cfg.device)  # SAELens does so in `fit`, and the moments loaded before that would stay on the CPU
    trainer.sae.load_weights_from_checkpoint(checkpoint)
    trainer.load_trainer_state(checkpoint)
    trainer.checkpoint_thresholds = [t for t in trainer.checkpoint_thresholds if t >= trainer.n_training_samples]
    stream.skip_to(int(json.loads((checkpoint / POSITION).read_text(encoding="utf-8"))["blocks"]))
    torch.manual_seed(sub_seed(trainer.n_training_samples, "text-sae"))  # the mixing of what follows


def run_sae(
    text: Sequence[str], text_field: str, encoder: str, layer: int, out: Path, device: str, bf16: bool, settings: TextSAEConfig
) -> int:
    """`sae`: train into `out` or go on; the last line is one JSON object. Raises as `open_decoder` and `train_text_sae`."""
    from saerl_lib.encode.models import open_decoder  # it imports this module

    require_sources(text)
    started = time.monotonic()
    decoder, tokenizer, width, identity = open_decoder(encoder, layer, device, bf16)
    config = replace(settings, latents=settings.latents or EXPANSION * width)
    found = train_text_sae(text, text_field, decoder, tokenizer, config, identity, out, lambda line: print(line, flush=True))
    print(f"{out}: explained variance {found.explained_variance:.3f}, L0 {found.l0:.1f}, dead share {found.dead_share:.3f} on "
          f"{found.n_tokens:,} held-out tokens; read it with --sae {out}")  # fmt: skip
    line = {"explained_variance": found.explained_variance, "l0": found.l0, "dead_share": found.dead_share,
            "tokens": config.tokens, "seconds": round(time.monotonic() - started, 1)}  # fmt: skip
    print(json.dumps(line))
    return 0
