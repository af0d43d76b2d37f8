"""SAEs trained by SAELens on a model's residual stream: from text as it streams by, or from stored vectors.

The paper trains one of expansion 64 on 80 GB of FineWeb-Edu and Wikipedia (section C.1); its k, learning rate and context are
not stated. Sources are files that `data.rows` reads, with a text field, or OWNER/NAME@COMMIT on the Hugging Face Hub, streamed.
The first token of a block is an attention sink and is left out, as everywhere in this room.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.mixing_buffer import mixing_buffer
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import save_file
from torch import Tensor

from saerl_lib.artifacts import ArtifactError, provenance, write_json
from saerl_lib.config import ReaderConfig, sub_seed, to_dict
from saerl_lib.data.rows import Source, rows
from saerl_lib.data.sample import DataError
from saerl_lib.encode.models import CutModel, TokenBatch, identity, open_decoder
from saerl_lib.encode.sae import START, TOKENS_AT_ONCE, SAEQuality, fresh_sae, load_sae, measure_sae
from saerl_lib.settings import SAEConfig

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
            if row.record is None:
                raise DataError(f"{source}, {row.where}: {row.problem}")
            text = row.record.get(field)
            if not isinstance(text, str):
                found = f"field {field!r} is {type(text).__name__}"
                raise DataError(f"{source}, {row.where}: {found}, not text; name the right one with --text-field")
            if text.strip():
                yield text


def blocks(texts: Iterator[str], tokenizer: Any, size: int) -> Iterator[list[int]]:
    """Documents joined by the end-of-text token and cut into blocks of `size` tokens; the last, short one is left out. Raises
    ValueError for a tokenizer without an end-of-text token."""
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError("the tokenizer has no end-of-text token to put between documents; set eos_token in its configuration")
    held: list[int] = []
    for text in texts:
        held += [*tokenizer(text, add_special_tokens=False)["input_ids"], end]
        while len(held) >= size:
            yield held[:size]
            held = held[size:]


class VectorStream:
    """Activations [n, D] of the tokens of some blocks at a time but the first of each, float32 on the model's device. It knows
    how many blocks it has read, so that it can go on after a stop."""

    def __init__(self, found: Iterator[list[int]], decoder: CutModel, rows: int) -> None:
        self.blocks, self.decoder, self.rows, self.read = found, decoder, rows, 0

    def skip_to(self, count: int) -> None:
        """Pass over blocks until `count` have been read; the model does not see them."""
        while self.read < count and next(self.blocks, None) is not None:
            self.read += 1

    def __iter__(self) -> Iterator[Tensor]:
        return self

    @torch.no_grad()
    def __next__(self) -> Tensor:
        taken = list(itertools.islice(self.blocks, self.rows))
        if not taken:
            raise StopIteration
        self.read += len(taken)
        ids = torch.tensor(taken)
        mask = torch.ones_like(ids, dtype=torch.bool)
        vectors = self.decoder(TokenBatch(tuple(range(len(ids))), ids, mask, ~mask, mask))[:, 1:].float().flatten(0, 1)
        if not torch.isfinite(vectors).all():
            raise FloatingPointError("a non-finite activation; check the encoder's weights or run it in float32")
        return vectors

    def first(self, count: int) -> Tensor:
        """The next `count` vectors or a few more, [n, D]. Raises StopIteration when the text holds fewer."""
        parts: list[Tensor] = []
        while sum(map(len, parts)) < count:
            parts.append(next(self))
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
    return SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * config.vectors_per_step, train_batch_size_samples=config.vectors_per_step,
            device=str(start.device), lr=config.learning_rate, lr_end=config.learning_rate / 10, lr_decay_steps=steps // 5,
            dead_feature_window=min(1000, max(5, steps // 30)), n_batches_for_norm_estimate=10,
            logger=LoggingConfig(log_to_wandb=False), **keeping,
        ),
        sae=sae,
        data_provider=provider,
        save_checkpoint_fn=save,
    )  # fmt: skip


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
    sources: Sequence[str], field: str, decoder: CutModel, tokenizer: Any, config: SAEConfig, model: str, out: Path
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
    sae, vectors = load_sae(out, held_out.shape[1]), held_out.cpu()
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
    decoder, tokenizer, shape = open_decoder(spec)
    config = replace(settings, latents=settings.latents or EXPANSION * shape.hidden_size)
    told = json.dumps(identity(replace(spec, sae="none")), sort_keys=True)
    found = train_text_sae(text, text_field, decoder, tokenizer, config, told, out)
    print(f"{out}: explained variance {found.explained_variance:.3f}, L0 {found.l0:.1f}, dead share {found.dead_share:.3f} on "
          f"{found.n_tokens:,} held-out tokens; read it with --sae {out}")  # fmt: skip
    line = {"explained_variance": found.explained_variance, "l0": found.l0, "dead_share": found.dead_share,
            "tokens": config.tokens, "seconds": round(time.monotonic() - started, 1)}  # fmt: skip
    print(json.dumps(line))
    return 0
