"""The sparse autoencoder of a reader, as SAELens holds it: opened, checked and measured.

OpenSAE (THU-KEG/OpenSAE, the paper's framework) stores config.json and safetensors: encoder.weight [F, D], encoder.bias [F],
W_dec [F, D], b_dec [D]. Its encoder standardises each token (mean 0, unbiased deviation 1 + eps), subtracts b_dec, applies a
linear map, ReLU and TopK: that is SAELens' TopK SAE with `layer_norm` and b_dec applied to the input. A wrong layer or model
raises no error by itself, and features of it would be noise: `measured` tells.

SAELens trains one on a model's residual stream, from text as it streams by or from stored vectors; the first token of a block is
an attention sink and is left out. The paper trains on 80 GB of FineWeb-Edu and Wikipedia (section C.1); k, learning rate and
context are not stated.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.tokenization_and_batching import concat_and_batch_sequences
from sae_lens.training.mixing_buffer import mixing_buffer
from sae_lens.training.sae_trainer import SAETrainer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, provenance, write_json
from saerl_lib.config import ReaderConfig, sub_seed, to_dict
from saerl_lib.data.rows import Source, rows
from saerl_lib.data.sample import DataError, Sample, hash_order
from saerl_lib.encode import models
from saerl_lib.encode.pool import Encoder, find_all
from saerl_lib.settings import SAEConfig

START = "start.safetensors"
"""Mean and mean norm of the vectors that the shipped SAE was trained on, from which an untrained one begins too."""


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


@torch.inference_mode()
def measure_sae(sae: SAE, batches: Sequence[Tensor]) -> SAEQuality:
    """Explained variance, L0 and dead share of `sae` on held-out activations [n, D]."""
    mean = torch.cat(list(batches)).double().mean(dim=0)
    error = variance = active = 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=mean.device)
    for vectors in batches:
        latents = sae.encode(vectors)
        error += (sae.decode(latents).double() - vectors.double()).square().sum().item()
        variance += (vectors.double() - mean).square().sum().item()
        active += (latents > 0).sum().item()
        fired |= (latents > 0).any(dim=0)
    tokens = sum(map(len, batches))
    return SAEQuality(1 - error / variance, active / tokens, 1 - fired.float().mean().item(), tokens)


EPSILON = 1e-5
"""Added to the deviation by SAELens; an OpenSAE checkpoint with another value cannot be converted exactly."""
TENSORS = ("encoder.weight", "encoder.bias", "b_dec", "W_dec")


def open_sae(source: str, width: int) -> SAE:
    """An SAE named by `source` as `ReaderConfig.sae` names it, for a model of `width`, in float32 on the CPU. One of SAELens'
    registry is downloaded on first use. Raises ArtifactError when it does not exist, cannot be read or does not fit the model."""
    folder = models.sae_folder(source)
    try:
        if source.startswith(models.UNTRAINED):
            sae = untrained_sae(int(source.removeprefix(models.UNTRAINED)))
        elif source.startswith(models.OPENSAE):
            sae = load_opensae(folder)
        elif source.startswith(models.SAELENS) and "/" in source:
            release, _, name = source.removeprefix(models.SAELENS).partition("/")
            sae = SAE.from_pretrained(release, name, device="cpu")
        elif folder is None or not (folder / "cfg.json").is_file():
            raise ArtifactError(f"{source}: no cfg.json; name a folder saved by SAELens, opensae:FOLDER or saelens:RELEASE/ID")
        else:
            sae = SAE.load_from_disk(folder, device="cpu", dtype="float32")
    except SafetensorError as error:
        said = f"its weights cannot be read ({error}); the file is damaged, fetch or make it again"
        raise ArtifactError(f"{folder or source}: {said}") from error
    if sae.cfg.d_in != width:
        raise ArtifactError(
            f"{folder or source}: the SAE reads vectors of width {sae.cfg.d_in}, the model's residual stream has width {width}; "
            "choose the SAE that was trained on this model and layer"
        )
    return sae.eval()


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
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(k=k, d_in=len(mean), d_sae=latents, normalize_activations=normalise))
    with torch.no_grad():
        sae.b_dec.copy_(mean)
    return sae


def load_opensae(folder: Path) -> SAE:
    """An OpenSAE checkpoint as a SAELens TopK SAE in float32; its latents are those of OpenSAE. Raises ArtifactError for a
    missing file or tensor, an unknown activation or shapes that contradict the configuration."""
    path, tensors = folder / "config.json", dict[str, Tensor]()
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; download the OpenSAE checkpoint with its configuration")
    try:
        for file in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(file)
    except SafetensorError as error:
        raise ArtifactError(f"{file}: cannot be read ({error}); the file is damaged, fetch it again") from error
    if missing := [name for name in TENSORS if name not in tensors]:
        raise ArtifactError(f"{folder}: tensor {missing[0]!r} is missing; an OpenSAE checkpoint holds {', '.join(TENSORS)}")
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
    if reasons := [reason for reason, applies in refused.items() if applies]:
        raise ArtifactError(f"{folder}: {reasons[0]}")
    shape = {"d_in": width, "d_sae": latents, "normalize_activations": "layer_norm" if normalised else "none"}
    sae = TopKSAE(TopKSAEConfig(k=int(config["k"]), rescale_acts_by_decoder_norm=False, apply_b_dec_to_input=True, **shape))
    sae.load_state_dict({
        "W_enc": encoder.T.contiguous(), "b_enc": tensors["encoder.bias"], "W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"],
    })  # fmt: skip
    return sae.eval()


MEASURED_SAMPLES = 256
"""Samples that are read for it, at most."""
MEASURED_TOKENS = 32_768
"""Of longer samples every n-th token is taken; bounds the memory to this times the model's width."""
TOKENS_AT_ONCE = 1024
"""Tokens whose latents, this times F, are held together."""


def measured(samples: Sequence[Sample], encoder: Encoder) -> SAEQuality:
    """Quality of the encoder's SAE on tokens of `MEASURED_SAMPLES` samples, taken by hash: files may be sorted by subject."""
    samples = [samples[i] for i in hash_order(samples)[:MEASURED_SAMPLES]]
    tokens = sum(len(models.sample_spans(sample, encoder.tokenizer, encoder.max_tokens).ids) for sample in samples)
    stride = max(1, math.ceil(tokens / MEASURED_TOKENS))
    parts = models.token_vectors(samples, encoder.decoder, encoder.tokenizer, encoder.tokens_per_batch, encoder.max_tokens)
    vectors = torch.cat([part[::stride] for part in parts]).to(encoder.sae.W_enc.device)
    return measure_sae(encoder.sae, vectors.split(TOKENS_AT_ONCE))


def hooked_gradient(model: PreTrainedModel, layer: int, batch: models.TokenBatch) -> tuple[Tensor, Tensor]:
    """Residual stream after block `layer` and the gradient there of each sample's mean solution loss, both [B, T, D]. A sample
    without a solution span has no loss and a gradient of 0."""
    kept: dict[str, Tensor] = {}

    def keep(_module: object, _inputs: object, output: Tensor) -> Tensor:
        kept["states"] = output.detach().requires_grad_(True)
        return kept["states"]

    counted = batch.solution[:, 1:]
    places = counted.any(dim=0).nonzero().squeeze(1)
    handle = model.base_model.layers[layer - 1].register_forward_hook(keep)
    try:
        logits = model(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False, logits_to_keep=places).logits
    finally:
        handle.remove()
    counted = counted[:, places]
    losses = models.token_losses(logits, batch.ids[:, places + 1])
    loss = ((losses * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)).sum()
    loss.backward()
    return kept["states"].detach(), kept["states"].grad


def gradient_influence(
    samples: Sequence[Sample], model: PreTrainedModel, tokenizer: object, layer: int, sae: SAE, tokens_per_batch: int
) -> NDArray[np.float64]:
    """Influence of each latent, [F], over samples with a solution. `model` is the whole LM, not the one cut at the hook."""
    total, n = np.zeros(sae.cfg.d_sae), 0
    model.requires_grad_(False)
    for batch in models.token_batches(samples, tokenizer, tokens_per_batch):
        states, gradient = hooked_gradient(model, layer, batch)
        keep = batch.prompt | batch.solution
        vectors, slopes = states[keep], gradient[keep]
        for token, latent, value in zip(*(part.split(2**18) for part in find_all(sae, vectors)), strict=True):
            along = (slopes[token] * sae.W_dec.detach()[latent]).sum(dim=1)
            total += np.bincount(latent.numpy(), weights=(value * along).abs().numpy(), minlength=len(total))
        n += int(batch.solution.any(dim=1).sum())
    return total / max(n, 1)


# Training.

EXPANSION = 64
"""F over the model's width (paper, section C.1)."""
SHIPPED_SAE = SAEConfig(tokens=3_300_000, latents=4608, k=32, learning_rate=7e-4, vectors_per_step=1024)
"""Of the shipped SAE: 8 x 576 latents, 32 of them active, 5.6 % of the model's width."""


def documents(sources: Sequence[str], field: str = "text") -> Iterator[str]:
    """Every document of some sources, one source after another; empty ones are passed over. Raises DataError with the source,
    line and fix: what `data.rows` raises, a data set of the hub without its commit, a row without the field."""
    for source in sources:
        opened = Source.parse(source, streaming=True)
        if opened.published and not opened.revision:
            raise DataError(f"{source}: name a file, or OWNER/NAME@COMMIT on the hub (a commit has 40 digits)")
        for row in rows(opened, (field,)):
            text = (row.record or {}).get(field)
            if not isinstance(text, str):
                unlike = f"field {field!r} is {type(text).__name__}, not text; name the right one with --text-field"
                raise DataError(f"{source}, {row.where}: {row.problem or unlike}")
            if text.strip():
                yield text


def blocks(texts: Iterator[str], tokenizer: Any, size: int) -> Iterator[Tensor]:
    """Documents joined by the end-of-text token and cut into blocks of `size` tokens; the last, short one is left out. Raises
    ValueError for a tokenizer without an end-of-text token."""
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError("the tokenizer has no end-of-text token to put between documents; set eos_token in its configuration")
    tokens = (torch.tensor([*tokenizer(text, add_special_tokens=False)["input_ids"], end]) for text in texts)
    return concat_and_batch_sequences(tokens, size)


class VectorStream:
    """Activations [n, D] of the tokens of some blocks at a time but the first of each, float32 on the model's device. It knows
    how many blocks it has read, so that it can go on after a stop."""

    def __init__(self, found: Iterator[Tensor], decoder: models.CutModel, rows: int) -> None:
        self.blocks, self.decoder, self.rows, self.read = found, decoder, rows, 0

    def skip_to(self, count: int) -> None:
        """Pass over blocks until `count` have been read; the model does not see them."""
        while self.read < count and next(self.blocks, None) is not None:
            self.read += 1

    @torch.no_grad()
    def __iter__(self) -> Iterator[Tensor]:
        while taken := list(itertools.islice(self.blocks, self.rows)):
            self.read += len(taken)
            vectors = self.decoder(torch.stack(taken))[:, 1:].float().flatten(0, 1)
            if not torch.isfinite(vectors).all():
                raise FloatingPointError("a non-finite activation; check the encoder's weights or run it in float32")
            yield vectors

    def first(self, count: int) -> Tensor:
        """The next `count` vectors or a few more, [n, D]. Raises StopIteration when the text holds fewer."""
        vectors, parts = iter(self), list[Tensor]()
        while sum(map(len, parts)) < count:
            parts.append(next(vectors))
        return torch.cat(parts)


KINDS = ("trained", "frozen_decoder")
"""The SAE, and the control of arXiv 2602.14111 whose decoder is never updated."""


def build_trainer(
    start: Tensor, provider: Iterator[Tensor], config: SAEConfig, kind: str = KINDS[0], **keeping: Any
) -> SAETrainer:
    """SAELens' trainer of a TopK SAE on batches of vectors; `start` [n, D] gives the mean where the decoder's bias begins.
    `kind` is one of `KINDS`, `keeping` are SAELens' settings of checkpoints."""
    steps, save = max(1, config.tokens // config.vectors_per_step), keeping.pop("save", None)
    mean = start.float().mean(dim=0) * start.shape[1] ** 0.5 / start.float().norm(dim=1).mean()
    sae = fresh_sae(mean.cpu(), sub_seed(config.seed, "text-sae"), config.k, config.latents, "expected_average_only_in")
    sae.W_dec.requires_grad_(kind != "frozen_decoder")
    settings = SAETrainerConfig(
        total_training_samples=steps * config.vectors_per_step, train_batch_size_samples=config.vectors_per_step,
        device=str(start.device), lr=config.learning_rate, lr_end=config.learning_rate / 10, lr_decay_steps=steps // 5,
        dead_feature_window=min(1000, max(5, steps // 30)), n_batches_for_norm_estimate=10,
        logger=LoggingConfig(log_to_wandb=False), **keeping,
    )  # fmt: skip
    return SAETrainer(cfg=settings, sae=sae, data_provider=provider, save_checkpoint_fn=save)


def shuffled_vectors(vectors: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of [size, D] in float32, in a fresh order each pass."""
    generator, size = torch.Generator().manual_seed(seed), min(size, len(vectors))
    while True:
        for chosen in torch.randperm(len(vectors), generator=generator).split(size):
            if len(chosen) == size:
                yield vectors[chosen].float()


def train_sae(vectors: Tensor, config: SAEConfig, folder: Path, kind: str = KINDS[0]) -> None:
    """Train on stored vectors [n, D], several passes if `config.tokens` asks for them, and save for inference under `folder`.
    `start.safetensors` beside it holds what an untrained SAE begins from as well."""
    start = vectors[:: max(1, len(vectors) // 100_000)].float()
    provider = shuffled_vectors(vectors, config.vectors_per_step, config.seed)
    build_trainer(start, provider, config, kind).fit().save_inference_model(str(folder))
    save_file({"mean": start.mean(dim=0)}, folder / START)


CHECKPOINTS, POSITION, SETTINGS, DONE = "checkpoints", "position.json", "settings.json", "quality.json"
"""Checkpoints, each with its place in the text; what decides the SAE; what is written last."""


def train_text_sae(
    sources: Sequence[str], field: str, decoder: models.CutModel, tokenizer: Any, config: SAEConfig, model: str, out: Path
) -> SAEQuality:
    """Train into `out` as SAELens saves it for inference, with quality.json last; the same call goes on after a stop. `model`
    tells model and layer apart. After a stop the text goes on behind the last checkpoint, without the vectors that lay in the
    buffer; nothing is read twice. Raises DataError for bad text, ArtifactError for an `out` of other settings or text that ends
    too early, FloatingPointError for non-finite activations."""
    settings, record = {**to_dict(config), "sources": list(sources), "field": field, "model": model}, out / SETTINGS
    if not record.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ArtifactError(f"{out} holds something else; name a folder that does not exist yet")
        out.mkdir(parents=True, exist_ok=True)
        write_json(record, settings)
    elif json.loads(record.read_text(encoding="utf-8")) != settings:
        raise ArtifactError(f"{out} was begun with other settings, model or text; name another folder")
    if (out / DONE).is_file():
        return SAEQuality(**json.loads((out / DONE).read_text(encoding="utf-8")))
    stream = VectorStream(blocks(documents(sources, field), tokenizer, config.context), decoder, config.blocks_per_pass)
    try:
        held_out = stream.first(config.heldout_tokens)
        trainer = _streaming(held_out, config, stream, out)
        # a checkpoint is whole when its place in the text is there, which is written after everything else
        if whole := [path.parent for path in (out / CHECKPOINTS).glob(f"*/{POSITION}")]:
            _go_on(trainer, stream, max(whole, key=lambda path: int(path.name)))
            print(f"going on after {trainer.n_training_samples:,} of {config.tokens:,} vectors", flush=True)
        trainer.fit().save_inference_model(str(out))
    except StopIteration as error:
        raise ArtifactError(f"the text ends before {config.heldout_tokens:,} held-out and {config.tokens:,} training vectors "
                            "were read; name more sources or lower --tokens") from error  # fmt: skip
    sae, vectors = open_sae(str(out.absolute()), held_out.shape[1]), held_out.cpu()
    quality = measure_sae(sae, vectors.split(TOKENS_AT_ONCE))
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    write_json(out / "provenance.json", {"settings": settings, **provenance()})
    write_json(out / DONE, asdict(quality))
    return quality


def _streaming(held_out: Tensor, config: SAEConfig, stream: VectorStream, out: Path) -> SAETrainer:
    """The trainer of a stream, whose checkpoints know their place in the text."""

    def keep(checkpoint_path: Path | None) -> None:
        write_json(checkpoint_path / POSITION, {"blocks": stream.read})
        for older in (out / CHECKPOINTS).iterdir():
            if older != checkpoint_path:
                shutil.rmtree(older)

    mixed = mixing_buffer(config.buffer_vectors, config.vectors_per_step, stream)
    checkpoints = (config.tokens - 1) // config.checkpoint_every
    return build_trainer(held_out, mixed, config, n_checkpoints=checkpoints, checkpoint_path=str(out / CHECKPOINTS), save=keep)


def _go_on(trainer: SAETrainer, stream: VectorStream, checkpoint: Path) -> None:
    trainer.sae.to(trainer.cfg.device)  # SAELens does so in `fit`, and the moments loaded before that would stay on the CPU
    trainer.sae.load_weights_from_checkpoint(checkpoint)
    trainer.load_trainer_state(checkpoint)
    trainer.checkpoint_thresholds = [t for t in trainer.checkpoint_thresholds if t >= trainer.n_training_samples]
    stream.skip_to(int(json.loads((checkpoint / POSITION).read_text(encoding="utf-8"))["blocks"]))
    torch.manual_seed(sub_seed(trainer.n_training_samples, "text-sae"))  # the mixing of what follows


def run_sae(
    text: Sequence[str], text_field: str, reader: str, layer: int, out: Path, device: str, bf16: bool, settings: SAEConfig
) -> int:
    """`sae`: train into `out` or go on; the last line is one JSON object. Raises as `open_decoder` and `train_text_sae`."""
    for source in text:  # bad ones are told before a model is opened
        next(documents([source], text_field), None)
    started, spec = time.monotonic(), ReaderConfig(reader, layer, device=device, bf16=bf16, max_norm=None, max_tokens=None)
    decoder, tokenizer, shape = models.open_decoder(spec)
    config = replace(settings, latents=settings.latents or EXPANSION * shape.hidden_size)
    told = json.dumps(models.identity(replace(spec, sae="none")), sort_keys=True)
    found = train_text_sae(text, text_field, decoder, tokenizer, config, told, out)
    print(f"{out}: explained variance {found.explained_variance:.3f}, L0 {found.l0:.1f}, dead share {found.dead_share:.3f} on "
          f"{found.n_tokens:,} held-out tokens; read it with --sae {out}")  # fmt: skip
    measures = {name: getattr(found, name) for name in ("explained_variance", "l0", "dead_share")}
    print(json.dumps({**measures, "tokens": config.tokens, "seconds": round(time.monotonic() - started, 1)}))
    return 0
