"""Encoding and training on a GPU (or, when asked, on the CPU in its place), and what of it every machine can check.

An SAE is not continuous: where the k-th and the next latent nearly tie, or one lies at its threshold, another order of
summation may swap them. So comparisons in float32 bound the share of entries that differ, not the largest difference.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from devices import KINDS, different_share, open_on, pooled, random_saes, world_samples
from scipy.stats import spearmanr

from saerl_lib.cli import main
from saerl_lib.encode.models import pick_device, token_vectors
from saerl_lib.encode.pool import find_all
from saerl_lib.studies.bench import CPU, PAPER_GPU, SMALL, shape_ratios


@pytest.fixture(scope="module")
def saes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return random_saes(tmp_path_factory.mktemp("saes"))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_features_of_the_device_are_those_of_the_cpu(
    kind: str, saes: dict[str, Path], gpu_device: torch.device
) -> None:
    samples = world_samples(48, "gpu-encode")
    expected = pooled(samples, open_on(saes[kind], CPU))
    own = open_on(saes[kind], gpu_device, tokens=512)
    found = pooled(samples, own)
    assert (expected > 0).mean() > 0.01
    assert different_share(found, expected) < 2e-3
    assert different_share(found, pooled(samples, own), 1e-4) < 1e-4
    half = pooled(samples, open_on(saes[kind], gpu_device, torch.bfloat16))
    varying = np.flatnonzero(np.ptp(expected, axis=0) > 0)
    rho = [spearmanr(half[:, c], expected[:, c]).statistic if np.ptp(half[:, c]) else 0.0 for c in varying]
    assert np.median(rho) > 0.9


@pytest.mark.gpu
def test_latents_of_the_device_are_those_of_saelens(saes: dict[str, Path], gpu_device: torch.device) -> None:
    encoder = open_on(saes["topk"], gpu_device)
    vectors = next(token_vectors(world_samples(32, "gpu-saelens"), encoder.decoder, encoder.tokenizer, 2048)).to(gpu_device)
    with torch.inference_mode():
        token, latent, value = (t.float().cpu().numpy() for t in find_all(encoder.sae, vectors))
        dense = encoder.sae.encode(vectors).float().cpu().numpy()
    own = np.zeros_like(dense)
    own[token.astype(int), latent.astype(int)] = value
    assert different_share(own, dense, 1e-4) < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_encode_benchmark_runs(precision: torch.dtype, gpu_device: torch.device) -> None:
    shape = SMALL if gpu_device.type == "cpu" else PAPER_GPU
    rows = shape_ratios(2, shape, gpu_device, precision)
    assert all(rows[f"forward_s_{latents}"] > 0 for latents in shape.latents)


def test_a_model_in_bfloat16_keeps_its_rotary_frequencies(saes: dict[str, Path]) -> None:
    full, encoder = open_on(saes["topk"], CPU), open_on(saes["topk"], CPU, torch.bfloat16)
    assert {w.dtype for w in encoder.decoder.parameters()} == {torch.bfloat16} and encoder.sae.dtype == torch.float32
    for (name, buffer), expected in zip(encoder.decoder.named_buffers(), full.decoder.buffers(), strict=True):
        assert torch.equal(buffer, expected), name
    assert pooled(world_samples(4, "gpu-rotary"), encoder).dtype == np.float32


def test_devices_are_named_and_missing_ones_refused() -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="choose cpu, cuda or cuda:N"):
        pick_device("gpu")
    with pytest.raises(ValueError, match="CUDA devices; use --device cpu"):
        pick_device(f"cuda:{torch.cuda.device_count()}")


def test_world_refuses_a_device_that_it_cannot_use(capsys: pytest.CaptureFixture[str]) -> None:
    missing = f"cuda:{torch.cuda.device_count()}"
    for options, message in (
        (["--check", "--device", "cpu"], "world --check has no --device"),
        (["--rebuild", "--device", missing], "CUDA devices; use --device cpu"),
    ):
        assert main(["world", *options]) == 1
        assert message in capsys.readouterr().err
