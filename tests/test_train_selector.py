"""TRL's own trainer on prompts that a selector chooses: two processes choose alike, a resumed run replays what was chosen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from saerl_lib import paths
from saerl_lib.train.arms.adarft import difficulty, moved
from saerl_lib.artifacts import ArtifactError
from saerl_lib.command_line import build_parser
from saerl_lib.export.samples import open_export
from saerl_lib.paper.replacements import SELECTORS
from saerl_lib.train.policy import FOLDER
from saerl_lib.export.log import append_rows, read_rows
from saerl_lib.train_command import TrainSettings, check_run, run_train
from saerl_lib.train_selector import ARMS, LOG, Chooser, check_chosen, open_selector
from tests.test_train_command import STEPS, B, G, files  # noqa: F401 (a fixture)

SETTINGS = TrainSettings(
    rollouts_per_prompt=G, micro_batch=4, max_completion_tokens=24, temperature=1.0, save_every_steps=1, selector="adarft",
    cpu=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(files: Path) -> Path:  # noqa: F811
    ids = open_export(files / "plan.parquet", files / "samples.parquet", G).plan.ids
    path = files / "measured.parquet"
    hard = [0.0, 0.01, 0.02, 0.03, *np.arange(1, 9) / 10]  # the second step depends on the rewards of the first
    pd.DataFrame({"sample_id": ids[::-1], "pass_rate": 1 - np.array(hard)}).to_parquet(path)
    return path


def expected(measured: Path, rows: list[dict]) -> list[set[str]]:
    """The prompts of each step from the rewards before it, by the rule on paper: nearest to the target, each used once."""
    table = pd.read_parquet(measured).set_index("sample_id")["pass_rate"]
    left, target, found = dict(zip(table.index, difficulty(table.to_numpy()), strict=True)), 0.0, []
    for row in rows:
        step = sorted(left, key=lambda name: abs(left[name] - target))[:B]
        found.append(set(step))
        left = {name: value for name, value in left.items() if name not in step}
        target = moved(target, float(np.mean(row["rewards"])))
    return found


def test_two_processes_choose_alike_and_one_resumes_them(files: Path, measured: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "run"
    command = [
        sys.executable, str(Path(__file__).with_name("forked.py")), "2", "-m", "saerl_lib", "train",
        "--plan", str(files / "plan.parquet"), "--model", str(FOLDER), "--out", str(out), "--rollouts", str(G),
        "--micro-batch", "4", "--max-completion", "24", "--temperature", "1.0", "--save-every", "1",
        "--selector", "adarft", "--measured", str(measured),
    ]  # fmt: skip
    environment = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(paths.ROOT))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert '"followed": true' in done.stdout
    chosen = read_rows(out / LOG)
    assert [row["step"] for row in chosen] == [1, 2, 3] and [set(r["sample_ids"]) for r in chosen] == expected(measured, chosen)
    assert np.shape([row["rewards"] for row in chosen]) == (STEPS, B, G) and np.ptp([row["rewards"] for row in chosen]) > 0
    halves = [read_rows(out / f"consumed-{rank:03d}.jsonl") for rank in (0, 1)]
    assert [len(rows) for rows in halves] == [B * G * STEPS // 2] * 2
    for row in chosen:
        first, second = ([r["sample_id"] for r in rows if r["step"] == row["step"]] for rows in halves)
        assert first + second == [name for name in row["sample_ids"] for _ in range(G)], "each process takes its share in order"

    shutil.rmtree(out / "checkpoints" / f"checkpoint-{STEPS}")
    words = (files / "plan.parquet", None, str(FOLDER), out, SETTINGS)
    assert run_train(*words, measured) == 0
    again = read_rows(out / LOG)
    assert again[:2] == chosen[:2] and again[2]["sample_ids"] == chosen[2]["sample_ids"]
    export = open_export(files / "plan.parquet", None, G)
    assert check_run(export, out, SETTINGS, measured) == STEPS
    constant = float(np.mean(again[0]["rewards"]) < 0.6)
    other = [{**again[0], "rewards": np.full((B, G), constant).tolist()}, *again[1:]]
    (out / LOG).write_text("".join(json.dumps(row) + "\n" for row in other))
    with pytest.raises(ArtifactError, match="step 2 cannot be replayed"):
        check_run(export, out, SETTINGS, measured)
    with pytest.raises(ArtifactError, match="--selector and --measured belong together"):
        check_run(export, out, SETTINGS)
    (out / LOG).unlink()
    shutil.rmtree(out / "checkpoints" / f"checkpoint-{STEPS}")
    with pytest.raises(ArtifactError, match="does not hold steps 1 to 2 once each"):
        run_train(*words, measured)


def test_what_was_consumed_must_be_what_was_chosen(measured: Path, tmp_path: Path) -> None:
    ids = pd.read_parquet(measured)["sample_id"].tolist()

    def chooser(log: Path) -> Chooser:
        return Chooser(open_selector("adarft", measured, ids, B, 2, seed=1), ids, B, log, writes=True)

    first = chooser(tmp_path / LOG)
    for step in (1, 2):
        rows = first.choose()
        first.told(step, np.full((B, G), 0.5))
        append_rows(tmp_path / "consumed.jsonl", [{"step": step, "sample_id": ids[i]} for i in rows for _ in range(G)])
    consumed = [tmp_path / "consumed.jsonl"]
    check_chosen(chooser(tmp_path / LOG), consumed, G, steps=2)
    with pytest.raises(ArtifactError, match="does not hold steps 1 to 3 once each"):
        check_chosen(chooser(tmp_path / LOG), consumed, G, steps=3)
    with pytest.raises(ArtifactError, match="did not consume what was chosen, first at step 1"):
        check_chosen(chooser(tmp_path / LOG), consumed, G + 1, steps=2)
    append_rows(consumed[0], [{"step": 3, "sample_id": ids[0]}])
    with pytest.raises(ArtifactError, match="steps that nobody chose, first 3"):
        check_chosen(chooser(tmp_path / LOG), consumed, G, steps=2)


def test_gainrl_draws_by_the_angles_and_its_seed(tmp_path: Path) -> None:
    ids = [f"s{i}" for i in range(400)]
    pd.DataFrame({"sample_id": ids, "angle_concentration": np.linspace(1.0, 0.0, 400)}).to_parquet(tmp_path / "angles.parquet")
    draws = [open_selector("gainrl", tmp_path / "angles.parquet", ids, 8, 10, seed).next(8) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert Counter(draws[0]) != Counter(draws[2]) and max(draws[0]) < 5 * 20, "the Gaussian begins at the highest angles"


def test_a_measured_file_must_know_every_sample(measured: Path, tmp_path: Path) -> None:
    ids = pd.read_parquet(measured)["sample_id"].tolist()
    for name, path, of, message in (
        ("adarft", tmp_path / "none.parquet", ids, "none.parquet is missing: pass what .paper measure. writes"),
        ("gainrl", measured, ids, "needs the columns sample_id and angle_concentration"),
        ("adarft", measured, [*ids, "stranger"], "no pass_rate for 1 of 13 samples .first stranger"),
    ):
        with pytest.raises(ArtifactError, match=message):
            open_selector(name, path, of, B, 3, 0)
    assert {name: arm.needs[0] for name, arm in ARMS.items()} == SELECTORS
    with pytest.raises(SystemExit):
        build_parser().parse_args(["train", "--plan", "P", "--model", "M", "--out", "O", "--selector", "mopps"])
    for name in ARMS:
        build_parser().parse_args(["train", "--plan", "P", "--model", "M", "--out", "O", "--selector", name])
    with pytest.raises(ValueError, match="--selector mopps: choose adarft or gainrl"):
        TrainSettings(selector="mopps")
