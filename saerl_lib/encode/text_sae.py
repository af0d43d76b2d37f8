"""An SAE trained on text of any length: streamed activations, SAELens' trainer, checkpoints to go on from (paper, section C.1).

The paper trains one of expansion 64 on 80 GB of FineWeb-Edu and Wikipedia; its k, learning rate and context are not stated.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.mixing_buffer import mixing_buffer
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from saerl_lib.artifacts import ArtifactError, provenance, write_json
from saerl_lib.config import sub_seed, to_dict
from saerl_lib.encode.activations import CutModel
from saerl_lib.encode.sae import BarTrainer, SAEQuality, load_sae, measure_sae, start_at_mean, write_quality
from saerl_lib.encode.text_stream import VectorStream, blocks, documents

CHECKPOINTS, POSITION, SETTINGS, DONE = "checkpoints", "position.json", "settings.json", "quality.json"
"""Checkpoints, each with its place in the text; what decides the SAE; what is written last."""
MEASURED_AT_ONCE = 1024


@dataclass(frozen=True)
class TextSAEConfig:
    """Everything that decides the SAE beside model and text."""

    latents: int
    """F (paper: 64 times the model's width)."""
    tokens: int
    """Activation vectors that it is trained on."""
    k: int = 50
    """Active latents a token (not stated in the paper; ours: the published SAE's)."""
    learning_rate: float = 3e-4
    """Adam, falling linearly to a tenth over the last fifth (not stated in the paper; ours: SAELens' default)."""
    vectors_per_step: int = 4096
    """Vectors of one optimiser step."""
    context: int = 1024
    """Tokens of a block; documents are joined and cut (not stated in the paper; ours)."""
    blocks_per_pass: int = 8
    """Blocks of one forward pass."""
    buffer_vectors: int = 131_072
    """Vectors that are mixed before they are served; half of them stay."""
    heldout_tokens: int = 100_000
    """The first vectors of the text, which measure the SAE and are never trained on."""
    checkpoint_every: int = 10_000_000
    """Vectors between checkpoints."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError with the option and the fix."""
        for name in ("latents", "tokens", "k", "vectors_per_step", "blocks_per_pass", "heldout_tokens", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.context < 2 or self.k > self.latents or self.tokens < self.vectors_per_step:
            raise ValueError(
                f"context={self.context} must be at least 2, k={self.k} at most latents={self.latents}, "
                f"tokens={self.tokens} at least vectors_per_step={self.vectors_per_step}"
            )
        if self.buffer_vectors < 2 * self.vectors_per_step:
            least = 2 * self.vectors_per_step
            raise ValueError(f"buffer_vectors={self.buffer_vectors} must be at least twice vectors_per_step, {least}")


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
