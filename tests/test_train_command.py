"""TRL on a plan or a selector, in one process and two: what was consumed, kill -9 and resume, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace as Space

import numpy as np
import pandas as pd
import pytest
import torch
from killing import until

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError
from saerl_lib.cli import main
from saerl_lib.config import PlanConfig, TrainConfig
from saerl_lib.data.sample import write_samples
from saerl_lib.plan.batch_plan import PlanError, write_plan
from saerl_lib.plan.orders import build_plan
from saerl_lib.plan.trainers import append_rows, read_rows
from saerl_lib.train import run as train_run
from saerl_lib.train import trainer
from saerl_lib.train.arms import find_arm
from saerl_lib.train.policy import FOLDER, MEASURES
from saerl_lib.train.run import Run, check_followed, conclude, open_feed, open_selector, plan_run, read_run, train
from saerl_lib.world.sources import TARGET, draw_split

B, G, STEPS = 4, 4, 3
TRAIN = TrainConfig(
    engine="trl", rollouts_per_prompt=G, micro_batch=4, max_completion_tokens=24, checkpoint_every_steps=1, cpu=True
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plan.parquet, samples.parquet and measured.parquet, in which the second step depends on the rewards of the first."""
    folder = tmp_path_factory.mktemp("plan")
    samples = draw_split("pool", B * STEPS, TARGET, 3, set())
    numbers, ids = np.arange(len(samples), dtype=float), [s.id for s in samples]
    columns = (np.zeros(len(ids), int), numbers, numbers, numbers + 1)
    plan = build_plan(ids, *columns, PlanConfig(prompts_per_step=B), order="random", seed=1)
    write_plan(plan, folder / "plan.parquet")
    write_samples(samples, folder / "samples.parquet")
    hard = [0.0, 0.01, 0.02, 0.03, *np.arange(1, 9) / 10]
    pd.DataFrame({"sample_id": plan.ids[::-1], "pass_rate": 1 - np.array(hard)}).to_parquet(folder / "measured.parquet")
    return folder


def a_run(files: Path, out: Path, arm: str = "", **changes: object) -> Run:
    measured = files / "measured.parquet" if arm else None
    return plan_run(files / "plan.parquet", None, str(FOLDER), out, replace(TRAIN, **changes), arm=arm, measured=measured)


def words(files: Path, out: Path, *more: str) -> list[str]:
    return [
        "train", "--plan", str(files / "plan.parquet"), "--model", str(FOLDER), "--out", str(out), "--rollouts", str(G),
        "--micro-batch", "4", "--max-completion", "24", "--temperature", "1.0", "--save-every", "1", *more,
    ]  # fmt: skip


def test_two_processes_choose_alike_and_one_goes_on_after_kill_9(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torchrun` with a selector; killed after the first checkpoint, brought to its end by one process, then found."""
    out = tmp_path / "run"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    selector = ("--selector", "adarft", "--measured", str(files / "measured.parquet"), "--keep-every", "2")
    same = words(files, out, *selector, "--loss", "sequence_mean")
    environment = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(paths.ROOT))
    with (tmp_path / "output.log").open("wb") as output:
        process = subprocess.Popen(
            [*launcher, "-m", "saerl_lib", *same], cwd=tmp_path, env=environment, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        until(lambda: process.poll() is not None or len({r["step"] for r in read_rows(out / "rollouts-001.jsonl")}) > 1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert (out / "run.json").is_file(), (tmp_path / "output.log").read_text()[-3000:]
    assert not (out / "done.json").exists()
    first, second = ([r for r in read_rows(out / f"rollouts-{rank:03d}.jsonl") if r["step"] == 1] for rank in (0, 1))
    assert [r["row"] for r in first + second] == list(range(B * G)), "each process takes its half of the step, in order"

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(same) == 0, "the selector chooses what was logged, by the rewards of both processes"
    assert '{"followed": true, "steps": 3, "processes": 1}' in capsys.readouterr().out
    rows = pd.read_parquet(out / "rollouts.parquet")
    assert rows.head(B * G)["sample_id"].tolist() == [r["sample_id"] for r in first + second], "the first step was not repeated"
    assert len(rows) == STEPS * B * G and np.ptp(rows["reward"]) > 0
    kept = ["final", *(f"policies/step-{step:05d}" for step in (2, STEPS))]
    assert all((out / name / "model.safetensors").is_file() for name in kept)
    assert not list(out.rglob("training_args.bin")) and not list(out.rglob(".*partial"))
    curve = pd.read_parquet(out / "curve.parquet")
    assert curve["step"].tolist() == [1, 2, 3] and curve[["reward_mean", "entropy", "loss"]].notna().all(axis=None)
    assert not (out / "checkpoints").exists() and [p.name for p in out.glob("*.jsonl")] == ["times.jsonl"]

    monkeypatch.setattr(train_run, "_train", lambda *_: pytest.fail("trained again"))
    assert main(same) == 0, "a finished run is found"
    assert main(words(files, out, *selector, "--loss", "constant")) == 1
    assert "holds a run of another plan, policy, setting or version of the code: choose another folder" in capsys.readouterr().err


def log_of(run: Run, steps: int, reward: float = 0.5) -> list[dict]:
    """Rows as a run would log them."""
    feed, rows = open_feed(run, run.folder), []
    for step in range(1, steps + 1):
        chosen = feed.selector.next(B)
        feed.selector.told(chosen, np.full((B, G), reward))
        names = [feed.samples[i].id for i in chosen for _ in range(G)]
        rows += [{"step": step, "round": 0, "row": i, "sample_id": n, "reward": reward} for i, n in enumerate(names)]
    return rows


def test_a_departure_from_the_plan_or_the_selector_is_an_error(files: Path, tmp_path: Path) -> None:
    run, other = a_run(files, tmp_path), a_run(files, tmp_path, "adarft")
    rows, chosen = log_of(run, STEPS), log_of(other, STEPS)
    check_followed(run, rows), check_followed(other, chosen)
    names = {rows[0]["sample_id"]: rows[B * G]["sample_id"], rows[B * G]["sample_id"]: rows[0]["sample_id"]}
    swapped = [{**row, "sample_id": names.get(row["sample_id"], row["sample_id"])} for row in rows]
    rewarded = [{**row, "reward": 1.0 if row["step"] == 1 else row["reward"]} for row in chosen]
    for of, wrong, message in (
        (run, swapped, "step 1 cannot be replayed"), (run, rows[:-1], "step 3 cannot be replayed|the log holds"),
        (run, [*rows, {**rows[-1], "step": 4}], "cannot be replayed"), (other, rewarded, "step 2 cannot be replayed"),
        *((of, log[: 2 * B * G], "the log holds 32 rollouts of 2 steps") for of, log in ((run, rows), (other, chosen))),
    ):  # fmt: skip
        with pytest.raises(ArtifactError, match=message):
            check_followed(of, wrong)


def test_a_selector_that_gives_other_rows_than_asked_for_is_named(files: Path, tmp_path: Path) -> None:
    feed = open_feed(a_run(files, tmp_path), tmp_path)
    for wrong in (np.arange(B - 1), np.full(B, -1), np.full(B, feed.choices), np.full(B, 0.5), None):
        feed.selector.next = lambda _, wrong=wrong: wrong
        with pytest.raises(ValueError, match=f"InOrder.next.{B}. must give {B} whole row numbers in 0..{feed.choices - 1}"):
            feed.step(1, 0, B)


def test_a_selector_needs_what_was_measured_of_every_sample(files: Path, tmp_path: Path) -> None:
    run = a_run(files, tmp_path, "adarft")
    ids = [s.id for s in open_feed(run, tmp_path).samples]
    for changed, of, message in (
        (replace(run, table=str(tmp_path / "none.parquet")), ids, "none.parquet is missing: pass what the stage .measured."),
        (replace(run, arm="gainrl"), ids, "gainrl needs the columns sample_id and angle_concentration"),
        (run, [*ids, "stranger"], "no pass_rate for 1 of 13 samples .first stranger"),
    ):
        with pytest.raises(ArtifactError, match=message):
            open_selector(changed, of)
    assert {find_arm(name).needs[0] for name in ("adarft", "gainrl")} == set(MEASURES)


def test_the_command_refuses_bad_options(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    for more, message in (
        (["--selector", "adarft"], "--selector and --measured belong together"), (["--steps", "0"], "steps=0 must be at least 1"),
        (["--keep-every", "0"], "keep_every_steps=0 must be at least 1"),
    ):  # fmt: skip
        assert main(words(files, out, *more)) == 1
        assert message in capsys.readouterr().err and not out.exists()
    assert main(words(files, out, "--selector", "mopps")) == 2, "none of the choices"


def test_one_process_with_several_gpus_is_refused(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would split each pass over them, so that one step of the optimiser takes several steps of the plan."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ArtifactError, match="sees 2 GPUs.*accelerate launch.*--launch.*CUDA_VISIBLE_DEVICES=0"):
        train(a_run(files, tmp_path / "run", cpu=False))
    train_run.require_launcher(TRAIN, 1)
    train_run.require_launcher(replace(TRAIN, cpu=False), 2)
    with pytest.raises(PlanError, match="none.parquet is missing"):
        plan_run(tmp_path / "none.parquet", None, str(FOLDER), tmp_path, TRAIN)
    with pytest.raises(ArtifactError, match="engine 'packed' trains in one process"):
        train_run.prepare(a_run(files, tmp_path, engine="packed"), 0, 2)


def test_weights_that_would_not_be_saved_whole_are_refused() -> None:
    def state(fsdp: str = "", stage: int = 0, **zero: object) -> Space:
        """What accelerate says of its launcher's configuration."""
        deepspeed = Space(zero_stage=stage, deepspeed_config={"zero_optimization": zero}) if stage else None
        return Space(fsdp_plugin=Space(state_dict_type=fsdp) if fsdp else None, deepspeed_plugin=deepspeed)

    gathered = state(stage=3, stage3_gather_16bit_weights_on_model_save=True)
    for sound in (state(), state("StateDictType.FULL_STATE_DICT"), state(stage=2), gathered):
        trainer.require_gathered(sound)
    for sharded in (state("StateDictType.SHARDED_STATE_DICT"), state(stage=3)):
        with pytest.raises(ArtifactError, match="fsdp_state_dict_type: FULL_STATE_DICT.*stage3_gather_16bit_weights"):
            trainer.require_gathered(sharded)


def test_a_broken_checkpoint_is_passed_over(tmp_path: Path) -> None:
    assert train_run.checkpoints(tmp_path / "none") == {}
    for step, state in ((8, "{}"), (9, "{}"), (15, '{"epoch": 0.'), (16, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert train_run.checkpoints(tmp_path) == {step: tmp_path / f"checkpoint-{step}" for step in (8, 9)}


def test_a_run_killed_behind_its_last_step_is_only_concluded(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(files, tmp_path)
    (tmp_path / "final").mkdir()
    append_rows(tmp_path / "rollouts-000.jsonl", [{**row, "used": True, "completion_tokens": 1} for row in log_of(run, STEPS)])
    append_rows(tmp_path / "times.jsonl", [{"total": 2.0, "evaluation": 0.5}])
    (tmp_path / "checkpoints").mkdir()
    state = {"log_history": [{"step": s, "reward": 0.5, "loss": 0.1} for s in (1, 2, 3)] + [{"step": 3, "train_runtime": 1}]}
    (tmp_path / "checkpoints" / "trainer_state.json").write_text(json.dumps(state))
    monkeypatch.setattr(train_run, "_train", lambda *_: pytest.fail("trained again"))
    train(run)
    assert run.finished and len(pd.read_parquet(tmp_path / "curve.parquet")) == STEPS
    assert json.loads((tmp_path / "done.json").read_text())["seconds"] == {"training": 1.5, "evaluation": 0.5}
    assert not replace(run, key="other").finished
    shutil.rmtree(tmp_path / "final")
    (tmp_path / "done.json").unlink()
    with pytest.raises(ArtifactError, match="no log of the rollouts is left"):
        conclude(run)


def test_the_key_holds_what_decides_and_not_where_it_lies(files: Path, tmp_path: Path) -> None:
    run = a_run(files, tmp_path / "a")
    shutil.copytree(files, tmp_path / "copy")
    assert a_run(tmp_path / "copy", tmp_path / "b").key == run.key == a_run(files, tmp_path / "a", seeds=5).key
    planned = partial(plan_run, files / "plan.parquet", None, str(FOLDER), tmp_path, TRAIN)
    others = (a_run(files, tmp_path, learning_rate=1e-3), a_run(files, tmp_path, "adarft"), planned(steps=2), planned(seed=1))
    assert len({run.key, *(other.key for other in others)}) == 5
    train_run.write_run(run)
    assert read_run(run.folder) == run
