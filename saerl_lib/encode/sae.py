"""The sparse autoencoder: trained and held by SAELens, checked against stated bounds (paper, sections 2 and C.1)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from saerl_lib.artifacts import ArtifactError
from saerl_lib.config import EncoderConfig

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
