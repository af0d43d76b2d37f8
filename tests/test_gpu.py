"""The GPU test set on a GPU (or, when asked, in small on the CPU), and the cheap part of it that every run of the tests takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from saerl_lib import paths
from saerl_lib.__main__ import main
from saerl_lib.artifacts import ArtifactError, provenance
from saerl_lib.bench.gpu.checks import RECORD, TABLE, Check, missed, write_checks
from saerl_lib.bench.gpu.encoding import KINDS, compare_encoding, different_share, median_rank_correlation, open_on, world_samples
from saerl_lib.bench.gpu.grpo import compare_orders
from saerl_lib.bench.gpu.policy import build_policy
from saerl_lib.bench.gpu.size import DRY, FULL, GpuSize, size_for
from saerl_lib.bench.gpu.speed import measure_speed
from saerl_lib.bench.timing import CPU, peak_mib, seconds
from saerl_lib.encode.device import pick_device
from saerl_lib.encode.encoder import encoder_folder
from saerl_lib.encode.language_model import load_model
from saerl_lib.encode.pooling import pool_samples
from saerl_lib.own.model import open_model
from saerl_lib.own.settings import OwnConfig
from saerl_lib.rl.policy import policy_folder, rebuild_policy
from saerl_lib.train_command import TrainSettings

SMALL = replace(DRY, hook_layer=3)
"""The shipped encoder's hook."""


@pytest.fixture(scope="module")
def size(gpu_device: torch.device) -> GpuSize:
    return size_for(gpu_device)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="module")
def policy(size: GpuSize, gpu_device: torch.device, work: Path) -> tuple[Path, list[Check]]:
    return work / "policy", build_policy(size, gpu_device, work / "policy")


@pytest.fixture(scope="module")
def encoding(policy: tuple[Path, list[Check]], size: GpuSize, gpu_device: torch.device, work: Path) -> list[Check]:
    (work / "saes").mkdir()
    return compare_encoding(policy[0], size, gpu_device, work / "saes")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Check]]:
    folder = tmp_path_factory.mktemp("small")
    return folder, compare_encoding(encoder_folder(), SMALL, CPU, folder)


def value(checks: list[Check], quantity: str) -> float:
    """The one value of a quantity."""
    (found,) = [c.value for c in checks if c.quantity == quantity]
    return found


@pytest.mark.gpu
def test_a_larger_policy_learns_in_bfloat16(policy: tuple[Path, list[Check]], size: GpuSize) -> None:
    folder, checks = policy
    assert not missed(checks)
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == size.policy.layers
    assert (folder / "model.safetensors").is_file()


@pytest.mark.gpu
def test_pretraining_on_the_device_begins_as_on_the_cpu(gpu_device: torch.device, tmp_path: Path) -> None:
    recorded = json.loads((policy_folder("policy") / "losses.json").read_text(encoding="utf-8"))
    losses = rebuild_policy(tmp_path, steps=51, device=gpu_device)
    assert [losses[0], losses[50]] == pytest.approx(recorded[:2], rel=0.02)
    model, _ = load_model(tmp_path)
    assert all(w.isfinite().all() for w in model.parameters())


@pytest.mark.gpu
def test_features_of_the_device_are_those_of_the_cpu(encoding: list[Check]) -> None:
    assert not missed(encoding)
    assert len(encoding) == 6 * len(KINDS)


@pytest.mark.gpu
def test_the_encode_benchmark_runs_in_both_precisions(size: GpuSize, gpu_device: torch.device) -> None:
    checks = measure_speed(size, gpu_device)
    assert not missed(checks)
    for latents in size.shape.latents:
        for precision in ("float32", "bfloat16"):
            assert value(checks, f"{precision}: forward_s_{latents}") > 0
    assert any("peak_mib" in c.quantity for c in checks) == (gpu_device.type == "cuda")


@pytest.mark.gpu
def test_grpo_on_the_device_follows_both_plans(
    policy: tuple[Path, list[Check]], encoding: list[Check], size: GpuSize, gpu_device: torch.device, work: Path
) -> None:
    (work / "runs").mkdir()
    checks = compare_orders(policy[0], work / "saes" / KINDS[0], size, gpu_device, work / "runs")
    assert not missed(checks)
    runs = [f"{arm}, seed {seed}" for arm in ("random", "saerl") for seed in range(size.seeds)]
    assert [value(checks, f"{run}: steps that consumed the planned prompts") for run in runs] == [size.steps] * len(runs)
    assert max(value(checks, f"{run}: share of groups with a gradient") for run in runs) > 0, "no step trained anything"
    plans = {run: (work / "runs" / f"{run.replace(', seed ', '-')}" / "consumed-000.jsonl").read_text() for run in runs}
    assert plans[runs[0]] != plans[runs[1]] != plans[runs[2]], "arms and random seeds consume different orders"


def test_encoding_in_small_meets_its_bounds_and_leaves_a_table(small: tuple[Path, list[Check]], tmp_path: Path) -> None:
    checks = small[1]
    assert not missed(checks)
    assert value(checks, "topk: rank correlation, model in bfloat16") < 1, "bfloat16 must change something"
    write_checks(checks, {"encoding": 1.25}, CPU, "dry", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / TABLE)
    assert table["quantity"].tolist() == [c.quantity for c in checks] and table["met"].all()
    assert set(table["commit"]) == {provenance()["commit"]} and set(table["size"]) == {"dry"}
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["seconds"] == {"encoding": 1.2} and record["versions"]["torch"] == torch.__version__
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [TABLE, RECORD]


def test_the_comparison_of_devices_notices_a_wrong_layer_and_coarse_numbers(small: tuple[Path, list[Check]]) -> None:
    samples, retained, sae = world_samples(24, "gpu-wrong"), np.arange(SMALL.sae.sae_latents), small[0] / "topk"

    def features(layer: int, precision: torch.dtype) -> np.ndarray:
        encoder = open_on(encoder_folder(), sae, replace(SMALL, hook_layer=layer), CPU, precision)
        return pool_samples(samples, encoder, retained)

    right, coarse, wrong = features(3, torch.float32), features(3, torch.bfloat16), features(2, torch.float32)
    assert different_share(right, right) == 0
    for other in (wrong, coarse):
        assert missed([Check("encoding", "share", different_share(other, right), 0.0, 2e-3)])
    assert median_rank_correlation(wrong, right) < 0.9 < median_rank_correlation(coarse, right)


def test_a_model_in_bfloat16_keeps_its_rotary_frequencies(small: tuple[Path, list[Check]]) -> None:
    sae = str(small[0] / "topk")
    own = OwnConfig(encoder=str(encoder_folder()), layer=3, sae=sae, bf16=True)
    full = open_on(encoder_folder(), Path(sae), SMALL, CPU)
    samples = world_samples(4, "gpu-rotary")
    for encoder in (open_model(own, samples), open_on(encoder_folder(), Path(sae), SMALL, CPU, torch.bfloat16)):
        assert {w.dtype for w in encoder.decoder.parameters()} == {torch.bfloat16} and encoder.sae.dtype == torch.float32
        for (name, buffer), expected in zip(encoder.decoder.named_buffers(), full.decoder.buffers(), strict=True):
            assert torch.equal(buffer, expected), name
        assert pool_samples(samples, encoder, np.arange(4)).dtype == np.float32


def test_every_tensor_of_the_encode_path_lies_on_the_device() -> None:
    command = [sys.executable, str(Path(__file__).with_name("second_device.py"))]
    environment = dict(os.environ, PYTHONPATH=str(paths.ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=paths.ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(found) == 7 and all(found.values()), found


def test_bounds_are_kept_by_numbers_alone() -> None:
    assert Check("p", "q", 1.0).met is None
    assert Check("p", "q", 1.0, 0.0, 1.0).met and Check("p", "q", 5.0, low=1.0).met
    bad = [Check("p", "nan", float("nan"), 0.0, 1.0), Check("p", "low", -0.1, 0.0, 1.0), Check("p", "high", 1.1, high=1.0)]
    assert missed(bad) == [f"p: {n} is {v}, allowed {r}" for n, v, r in (
        ("nan", "nan", "0.0 to 1.0"), ("low", "-0.1", "0.0 to 1.0"), ("high", "1.1", "None to 1.0"))]  # fmt: skip


def test_differences_and_rank_correlation_by_hand() -> None:
    expected = np.array([[1.0, 10.0, np.nan], [2.0, 20.0, 3.0], [4.0, 30.0, 5.0]])
    found = np.array([[1.0, 10.02, 0.0], [2.0, 20.04, 3.0], [4.005, 30.0, 5.0]])
    assert different_share(found, expected) == pytest.approx(3 / 9)
    assert median_rank_correlation(expected[:, :2] ** 3, expected[:, :2]) == pytest.approx(1.0)
    assert median_rank_correlation(-expected[:, :1], expected[:, :1]) == pytest.approx(-1.0)
    assert median_rank_correlation(np.zeros((3, 1)), expected[:, :1]) == 0
    with pytest.raises(ValueError, match="no feature varies"):
        median_rank_correlation(expected[:, :1], np.ones((3, 1)))


def test_devices_are_named_and_missing_ones_refused() -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="choose cpu, cuda or cuda:N"):
        pick_device("gpu")
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ValueError, match="CUDA devices; use --device cpu"):
        pick_device(missing)
    with pytest.raises(ValueError, match="need a model"):
        OwnConfig(device="cuda")
    assert seconds(lambda: None) >= 0 and peak_mib(lambda: None, CPU) is None
    assert not TrainSettings().cpu and FULL.name == size_for(torch.device("cuda")).name


def test_the_command_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    missing = f"cuda:{torch.cuda.device_count()}"
    for options, message in (
        (["gpu"], "bench gpu needs --out DIR"),
        (["gpu", "--device", missing, "--out", str(out)], "CUDA devices; use --device cpu"),
        (["plan", "--device", "cpu"], "bench plan has no --device"),
        (["memory", "--out", str(out)], "bench memory has no --out"),
    ):
        assert main(["bench", *options]) == 1
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_world_refuses_a_device_that_it_cannot_use(capsys: pytest.CaptureFixture[str]) -> None:
    missing = f"cuda:{torch.cuda.device_count()}"
    for options, message in (
        (["--check", "--device", "cpu"], "world --check has no --device"),
        (["--rebuild", "policy_large", "--device", missing], "CUDA devices; use --device cpu"),
    ):
        assert main(["world", *options]) == 1
        assert message in capsys.readouterr().err


def test_the_committed_run_of_the_full_set_met_its_bounds() -> None:
    folder = paths.FIGURES / "data"
    table, record = pd.read_csv(folder / TABLE), json.loads((folder / RECORD).read_text(encoding="utf-8"))
    named = ["part", "quantity", "value", "low", "high"]
    checks = [Check(*(None if v != v else v for v in row)) for row in table[named].itertuples(index=False)]
    assert not missed(checks) and [c.met for c in checks if c.met is not None] == table["met"].dropna().tolist()
    assert record["size"] == FULL.name
    assert set(table["device"]) == {record["device"]} and set(table["commit"]) == {record["commit"]}
    assert sum(record["seconds"].values()) < 8 * 60


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="name another folder with --out"):
        write_checks([Check("p", "q", 1.0)], {}, CPU, "dry", tmp_path / "file")
