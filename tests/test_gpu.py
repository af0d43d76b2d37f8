"""Encoding on a GPU (or, when asked, on the CPU in its place), and what of it every machine can check.

An SAE is not continuous: where the k-th and the next latent nearly tie, or one lies at its threshold, another order of
summation may swap them. So comparisons in float32 bound the share of entries that differ, not the largest difference.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from saerl_lib.cli import main
from saerl_lib.config import ReaderConfig
from saerl_lib.encode.models import open_reader, pick_device
from saerl_lib.encode.pool import Encoder
from saerl_lib.studies.bench import CPU, SMALL, random_sae
from saerl_lib.train.policy import FOLDER
from saerl_lib.world.pretrain import WIDTH
from saerl_lib.world.sources import TARGET, draw_split
from tests.stand_ins import pooled

KINDS, LATENTS = ("topk", "jumprelu"), np.arange(256)
SAMPLES = draw_split("gpu", 48, TARGET, 0, set())


@pytest.fixture(scope="module")
def saes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A TopK SAE and one with thresholds for the shipped policy, with random weights."""
    folder = tmp_path_factory.mktemp("saes")
    torch.manual_seed(0)
    for kind in KINDS:
        random_sae(len(LATENTS), kind, replace(SMALL, width=WIDTH, k=8)).save_model(str(folder / kind))
    return {kind: folder / kind for kind in KINDS}


def open_on(sae: Path, device: torch.device, bf16: bool = False, tokens: int = 1024) -> Encoder:
    """A fresh encoder on `device`, in batches of `tokens` tokens."""
    how = {"max_norm": None, "tokens_per_batch": tokens, "device": str(device), "bf16": bf16}
    return open_reader(ReaderConfig(str(FOLDER), 3, str(sae), **how))


def different_share(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-3) -> float:
    """Share of entries of [N, C] that differ by more than `tolerance` times the largest entry of their column."""
    scale = np.abs(expected).max(axis=0, keepdims=True, initial=1e-12)
    return float(1 - (np.abs(found - expected) <= tolerance * scale).mean())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_features_of_the_device_are_those_of_the_cpu(kind: str, gpu_device: torch.device, saes: dict[str, Path]) -> None:
    expected = pooled(SAMPLES, open_on(saes[kind], CPU), LATENTS)
    own = open_on(saes[kind], gpu_device, tokens=512)
    found = pooled(SAMPLES, own, LATENTS)
    assert (expected > 0).mean() > 0.01 and different_share(found, expected) < 2e-3
    assert different_share(found, pooled(SAMPLES, own, LATENTS), 1e-4) < 1e-4
    half = pooled(SAMPLES, open_on(saes[kind], gpu_device, bf16=True), LATENTS)
    varying = np.flatnonzero(np.ptp(expected, axis=0) > 0)
    rho = [spearmanr(half[:, c], expected[:, c]).statistic if np.ptp(half[:, c]) else 0.0 for c in varying]
    assert np.median(rho) > 0.9


def test_a_model_in_bfloat16_keeps_its_rotary_frequencies(saes: dict[str, Path]) -> None:
    full, encoder = open_on(saes["topk"], CPU), open_on(saes["topk"], CPU, bf16=True)
    assert {w.dtype for w in encoder.decoder.parameters()} == {torch.bfloat16} and encoder.sae.dtype == torch.float32
    for (name, buffer), expected in zip(encoder.decoder.named_buffers(), full.decoder.buffers(), strict=True):
        assert torch.equal(buffer, expected), name
    assert pooled(SAMPLES[:4], encoder, LATENTS).dtype == np.float32


def test_devices_are_named_and_missing_ones_refused(capsys: pytest.CaptureFixture[str]) -> None:
    missing, message = f"cuda:{torch.cuda.device_count()}", "CUDA devices; use --device cpu"
    assert pick_device("cpu").type == "cpu"
    for name, said in (("gpu", "choose cpu, cuda or cuda:N"), (missing, message)):
        with pytest.raises(ValueError, match=said):
            pick_device(name)
    for options, said in (("--check --device cpu", "world --check has no --device"), (f"--rebuild --device {missing}", message)):
        assert main(["world", *options.split()]) == 1
        assert said in capsys.readouterr().err
