"""The benchmarks in their smallest form: what is measured is what it says, and the JSON line is printed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from saerl_lib.cli import main
from saerl_lib.encode.pool import pool_vectors
from saerl_lib.studies import bench
from saerl_lib.studies.bench import SMALL, Stopwatch, peak_mib


def test_encoding_adds_to_the_forward_pass() -> None:
    rows = bench.shape_ratios(1, SMALL)
    for latents in SMALL.latents:
        assert rows[f"forward_s_{latents}"] > 0
        assert all(rows[f"{way}_to_forward_{latents}"] > 1 for way in ("obvious", "all"))
        assert 0 < rows[f"all_to_forward_and_product_{latents}"] < rows[f"all_to_forward_{latents}"]


def test_the_obvious_way_pools_the_same_latents() -> None:
    sae = bench.random_sae(512, "topk", SMALL)
    with torch.inference_mode():
        vectors = bench.shape_activations(SMALL)().flatten(0, 1)
        mean = bench.dense_way(sae, vectors, 2 * SMALL.samples)[: 2 * SMALL.samples]
    found = pool_vectors(sae, vectors, *bench.span_groups(SMALL))
    dense = np.zeros(mean.shape, np.float32)
    dense[2 * found.row + found.span, found.latent] = found.mean
    assert np.allclose(dense, mean, atol=1e-5) and (dense > 0).any()


def test_the_obvious_way_takes_more_memory() -> None:
    rows = bench.encode_peaks(replace(SMALL, latents=(16_384,), tokens=2048))
    assert rows["obvious_peak_mib"] > 2048 * 16_384 * 4 / 2**20
    assert rows["obvious_to_chunked_peak"] > 2


def test_peaks_and_seconds_are_of_the_one_call() -> None:
    assert 60 < peak_mib(lambda: np.ones(2**23)) < 90
    assert peak_mib(lambda: None) < 20
    watch = Stopwatch()
    assert [watch("a_s", int, "7"), watch("a_s", max, [1, 2], key=abs)] == [7, 2]
    watch("floor", sum, range(10**6))
    assert watch.times["floor"] > watch.times["a_s"] and watch.times["processor_s"] < watch.times["floor"]


@pytest.mark.parametrize("kind", ["scores", "features"])
def test_a_plan_is_timed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "in_fresh_process", lambda work, folder: work(folder))
    monkeypatch.setattr(bench, "FEATURES_UP_TO", 10**6 if kind == "features" else 0)
    small = {"Z_COLUMNS": 40, "LABELLED": 300, "NEGATIVES": 150}
    for name, value in small.items():
        monkeypatch.setattr(bench, name, value)
    assert main(["bench", "plan", "--samples", "1300"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    stages = {"clusters_s", "score_s"} if kind == "features" else {"read_s"}
    stages |= {"plan_s", "write_s"}
    assert stages == {key for key in row if key.endswith("_s")} - {"total_s", "processor_s"}
    assert row["total_s"] == pytest.approx(sum(row[key] for key in stages), abs=1e-4)
    assert row["peak_gb"] > 0.1


def test_a_fresh_process_runs_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert bench.in_fresh_process(os.getenv, "OMP_NUM_THREADS") == "1" and "OMP_NUM_THREADS" not in os.environ
    with pytest.raises(ValueError, match="invalid literal"):
        bench.in_fresh_process(int, "no number")


def test_options_that_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--samples", "5"], "samples=5 fill no batch of 128"), (["--device", "cpu"], "bench plan has no --device"),
    ):  # fmt: skip
        assert main(["bench", "plan", *words]) == 1
        assert message in capsys.readouterr().err
