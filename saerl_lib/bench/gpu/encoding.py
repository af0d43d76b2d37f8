"""Part `encoding`: pooled SAE features on the device against those of the CPU, in float32 and bfloat16.

An SAE is not continuous: where the k-th and the next latent nearly tie, or one lies at its threshold, another order of
summation may swap them, so every comparison in float32 bounds the share of entries that differ, not the largest difference.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from scipy.stats import rankdata
from torch import Tensor

from saerl_lib.bench.gpu.checks import Check
from saerl_lib.bench.gpu.size import GpuSize
from saerl_lib.bench.timing import CPU
from saerl_lib.config import sub_seed
from saerl_lib.data.sample import Sample
from saerl_lib.data.world import draw_split, target_weights
from saerl_lib.encode.activations import token_vectors, truncate
from saerl_lib.encode.device import place
from saerl_lib.encode.language_model import load_model
from saerl_lib.encode.pooling import Encoder, pool_samples
from saerl_lib.encode.retain import choose_retained
from saerl_lib.encode.sae import load_sae, train_sae
from saerl_lib.encode.sparse import encode_all
from saerl_lib.encode.store import write_store

KINDS = ("topk", "jumprelu")
"""Architectures; of the second the retained latents are encoded without the others."""
TOLERANCE = 1e-3
"""Two float32 features agree when they differ by at most this share of the largest entry of their column."""
DIFFERENT_SHARE = 2e-3
"""Largest share of entries that may disagree."""
RANK = 0.9
"""Smallest median rank correlation, over columns, of features in bfloat16 with those in float32."""
FIRING = 0.01
"""Least share of features above 0: two encodings of nothing would agree."""
PROBED = 512
"""Vectors that set the threshold."""
SAME_DEVICE = 1e-4
"""As both bounds above, between two ways of encoding on one device."""


def world_samples(count: int, name: str) -> list[Sample]:
    """Samples of the target source with worked solutions."""
    return draw_split(name, count, target_weights(), "target", sub_seed(0, "gpu"), set())


def train_saes(model: Path, size: GpuSize, device: torch.device, folder: Path) -> dict[str, Path]:
    """A TopK SAE, trained with SAELens on the CPU on activations that the device computed, and its threshold twin."""
    decoder, tokenizer = load_model(model)
    cut, texts = truncate(decoder, size.hook_layer).to(device), world_samples(3 * size.encoded_samples, "gpu-sae")
    vectors = torch.cat(list(token_vectors(texts, cut, tokenizer, size.sae.tokens_per_batch)))
    paths = {kind: folder / kind for kind in KINDS}
    train_sae(vectors, size.sae, sub_seed(0, "gpu-sae"), paths["topk"])
    twin = threshold_twin(load_sae(paths["topk"], vectors.shape[1]), vectors[:PROBED], size.sae.sae_k)
    twin.save_model(str(paths["jumprelu"]))
    return paths


@torch.inference_mode()
def threshold_twin(sae: SAE, vectors: Tensor, k: int) -> SAE:
    """A JumpReLU SAE with the weights of a TopK one; k latents a token pass its threshold, on average over `vectors` [n, D]."""
    shape = {"d_in": sae.cfg.d_in, "d_sae": sae.cfg.d_sae, "apply_b_dec_to_input": sae.cfg.apply_b_dec_to_input}
    twin = JumpReLUSAE(JumpReLUSAEConfig(**shape))
    hidden = sae.process_sae_in(vectors) @ sae.W_enc + sae.b_enc
    threshold = hidden.flatten().kthvalue(hidden.numel() - k * len(vectors)).values.clamp_min(0)
    twin.load_state_dict({**sae.state_dict(), "threshold": threshold.expand(sae.cfg.d_sae).clone()})
    return twin


def open_on(
    model: Path, sae: Path, size: GpuSize, device: torch.device, precision: torch.dtype = torch.float32, part: int = 1
) -> Encoder:
    """A fresh encoder on `device`; `part` divides the tokens of a batch."""
    decoder, tokenizer = load_model(model)
    width = decoder.config.hidden_size
    encoder = Encoder(truncate(decoder, size.hook_layer), tokenizer, load_sae(sae, width), size.sae.tokens_per_batch // part)
    return place(encoder, device, precision)


def different_share(found: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float = TOLERANCE) -> float:
    """Share of entries of [N, C] that differ by more than `tolerance` times their column; a NaN in one alone counts.

    >>> different_share(np.array([[1.0, 2.0], [4.0, 2.1]]), np.array([[1.0, 2.0], [4.0, 2.0]]))
    0.25
    """
    scale = np.nanmax(np.abs(expected), axis=0, keepdims=True, initial=1e-12)
    near = np.abs(found - expected) <= tolerance * scale
    return float(1 - (near | (np.isnan(found) & np.isnan(expected))).mean())


def median_rank_correlation(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Median over the columns of [N, C] that vary in `expected` of Spearman's rho; a constant column of `found` counts as 0.

    Raises ValueError when no column varies.
    """
    columns = np.flatnonzero(np.ptp(expected, axis=0) > 0)
    if not len(columns):
        raise ValueError("no feature varies between the samples; encode more samples or train the SAE longer")
    rho = []
    for column in columns:
        a, b = (rankdata(values[:, column]) for values in (found, expected))
        rho.append(0.0 if np.ptp(a) == 0 else float(np.corrcoef(a, b)[0, 1]))
    return float(np.median(rho))


@torch.inference_mode()
def _against_saelens(sae: SAE, encoder: Encoder, samples: list[Sample], device: torch.device) -> float:
    """Share of latents of a few samples that differ from SAELens' own dense encoding on the device."""
    vectors = next(token_vectors(samples[:32], encoder.decoder, encoder.tokenizer, 2048)).to(device)
    found, dense = encode_all(sae, vectors), sae.encode(vectors).float().cpu().numpy()
    own = np.zeros_like(dense)
    own[found.token, found.latent] = found.value
    return different_share(own, dense, SAME_DEVICE)


def compare_encoding(model: Path, size: GpuSize, device: torch.device, work: Path) -> list[Check]:
    """Checks for both architectures of SAE; `model` is a causal LM in Hugging Face format, `work` an empty folder.

    The device's batches are half as large as the CPU's, so that a dry run on a CPU meets other sums too.
    """
    samples, checks = world_samples(size.encoded_samples, "gpu-encode"), []
    for kind, sae in train_saes(model, size, device, work).items():
        store = write_store(samples, open_on(model, sae, size, CPU), work / f"store-{kind}")
        retained = choose_retained(store, size.sae.retained_latents)
        expected = store.select(retained)
        own = open_on(model, sae, size, device, part=2)
        found = pool_samples(samples, own, retained)
        full = write_store(samples, own, work / f"device-{kind}").select(retained)
        saelens = _against_saelens(own.sae, own, samples, device)
        half = pool_samples(samples, open_on(model, sae, size, device, torch.bfloat16), retained)
        both = open_on(model, sae, size, device, torch.bfloat16)
        both.sae.to(dtype=torch.bfloat16)
        all_half = pool_samples(samples, both, retained)
        rows = [
            ("share of features above 0", float((expected > 0).mean()), FIRING, 1.0),
            ("share of features that differ from the CPU's", different_share(found, expected), 0.0, DIFFERENT_SHARE),
            ("share that differs, retained latents alone against all", different_share(found, full, SAME_DEVICE),
             0.0, SAME_DEVICE),
            ("share that differs from SAELens' dense latents", saelens, 0.0, SAME_DEVICE),
            ("rank correlation, model in bfloat16", median_rank_correlation(half, expected), RANK, 1.0),
            ("rank correlation, model and SAE in bfloat16", median_rank_correlation(all_half, expected), RANK, 1.0),
        ]  # fmt: skip
        checks += [Check("encoding", f"{kind}: {quantity}", *row) for quantity, *row in rows]
    return checks
