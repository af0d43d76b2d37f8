"""TRL's own trainer on a plan in two processes: the union of their logs equals the plan, also after a resume."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError
from saerl_lib.config import PlanConfig
from saerl_lib.data.sample import write_samples
from saerl_lib.data.world import draw_split, target_weights
from saerl_lib.export.samples import open_export
from saerl_lib.plan.batch_plan import PlanError, write_plan
from saerl_lib.plan.orders import build_plan
from saerl_lib.rl.policy import FOLDER
from saerl_lib.rl.rollouts import append_rows, read_rows
from saerl_lib.train_command import TrainSettings, accumulation, arguments, check_logs, logging_reward, run_train
from saerl_lib.train_files import remove_broken_checkpoints, require_gathered, require_weights, resume_point

B, G, STEPS = 4, 4, 3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    samples = draw_split("pool", B * STEPS, target_weights(), "target", 3, set())
    numbers, ids = np.arange(len(samples), dtype=float), [s.id for s in samples]
    plan = build_plan(
        ids, np.zeros(len(ids), int), numbers, numbers, numbers + 1, PlanConfig(prompts_per_step=B), order="random", seed=1
    )
    write_plan(plan, folder / "plan.parquet")
    write_samples(samples, folder / "samples.parquet")
    return folder


def launch(files: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Two processes on the CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", "-m", "saerl_lib", "train",
        "--plan", str(files / "plan.parquet"), "--samples", str(files / "samples.parquet"), "--model", str(FOLDER),
        "--out", str(out), "--rollouts", str(G), "--micro-batch", "4", "--max-completion", "24", "--temperature", "1.0",
        "--save-every", "1", "--keep-every", "2",
    ]  # fmt: skip
    environment = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(paths.ROOT))
    return subprocess.run(command, cwd=out.parent, env=environment, capture_output=True, text=True, timeout=600)


def test_two_processes_see_exactly_the_plan_and_resume_in_it(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = launch(files, out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert '"followed": true' in done.stdout
    logs = [read_rows(out / f"consumed-{rank:03d}.jsonl") for rank in (0, 1)]
    assert [len(rows) for rows in logs] == [B * G * STEPS // 2] * 2, "each process takes half of every step"
    kept = ["final", *(f"policies/step-{step:05d}" for step in (2, STEPS))]
    assert all((out / name / "model.safetensors").is_file() for name in kept) and not (out / "policies" / ".partial").exists()
    shutil.rmtree(out / "checkpoints" / f"checkpoint-{STEPS}")
    again = launch(files, out)
    assert again.returncode == 0, again.stderr[-3000:]
    assert '"followed": true' in again.stdout
    resumed = [read_rows(out / f"consumed-{rank:03d}.jsonl") for rank in (0, 1)]
    assert [[r["sample_id"] for r in rows] for rows in resumed] == [[r["sample_id"] for r in rows] for rows in logs]


def test_a_departure_is_an_error(files: Path, tmp_path: Path) -> None:
    export = open_export(files / "plan.parquet", files / "samples.parquet", G)
    rows = [{"step": 1 + i // B, "sample_id": name} for i, name in enumerate(export.plan.ids)]
    append_rows(tmp_path / "consumed-000.jsonl", rows)
    assert check_logs(export, tmp_path).followed
    rows[0], rows[B] = {**rows[B], "step": 1}, {**rows[0], "step": 2}
    (tmp_path / "consumed-000.jsonl").unlink()
    append_rows(tmp_path / "consumed-000.jsonl", rows)
    with pytest.raises(ArtifactError, match="did not follow the plan"):
        check_logs(export, tmp_path)


def test_a_step_must_divide_into_passes(files: Path) -> None:
    export = open_export(files / "plan.parquet", files / "samples.parquet", G)
    assert accumulation(export, TrainSettings(micro_batch=4), 2) == 2
    with pytest.raises(ArtifactError, match="--micro-batch"):
        accumulation(export, TrainSettings(micro_batch=4), 3)


def test_one_process_with_several_gpus_is_refused(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would split each pass over them, so that one step of the optimiser takes several steps of the plan."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    words = (files / "plan.parquet", files / "samples.parquet", str(FOLDER), tmp_path / "run")
    with pytest.raises(ArtifactError, match="sees 2 GPUs.*accelerate launch.*--launch.*CUDA_VISIBLE_DEVICES=0"):
        run_train(*words, TrainSettings())
    assert not (tmp_path / "run").exists()
    for environment, settings in (({"WORLD_SIZE": "2"}, TrainSettings()), ({}, TrainSettings(cpu=True))):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            with pytest.raises(PlanError, match="none.parquet is missing"):  # goes on to read its files
                run_train(tmp_path / "none.parquet", *words[1:], settings)


def test_activations_are_kept_on_the_cpu_alone(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = open_export(files / "plan.parquet", files / "samples.parquet", G)
    asked: list[dict] = []
    monkeypatch.setattr("saerl_lib.train_command.GRPOConfig", lambda **words: asked.append(words))
    for there, cpu, expected in ((False, False, False), (True, False, True), (True, True, False)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        arguments(export, TrainSettings(micro_batch=4, cpu=cpu), 1, tmp_path)
        assert (asked[-1]["gradient_checkpointing"], asked[-1]["use_cpu"]) == (expected, not expected)


def test_weights_that_would_not_be_saved_whole_are_refused(tmp_path: Path) -> None:
    class State:
        """What accelerate says of its launcher's configuration."""

        fsdp_plugin = deepspeed_plugin = None

    def plugin(**fields: object) -> object:
        return type("Plugin", (), fields)()

    whole = [State(), State(), State(), State()]
    whole[1].fsdp_plugin = plugin(state_dict_type="StateDictType.FULL_STATE_DICT")
    whole[2].deepspeed_plugin = plugin(zero_stage=2, deepspeed_config={})
    gather = {"zero_optimization": {"stage3_gather_16bit_weights_on_model_save": True}}
    whole[3].deepspeed_plugin = plugin(zero_stage=3, deepspeed_config=gather)
    for state in whole:
        require_gathered(state)
    sharded, scattered = State(), State()
    sharded.fsdp_plugin = plugin(state_dict_type="StateDictType.SHARDED_STATE_DICT")
    scattered.deepspeed_plugin = plugin(zero_stage=3, deepspeed_config={"zero_optimization": {"stage": 3}})
    for state in (sharded, scattered):
        with pytest.raises(ArtifactError, match="fsdp_state_dict_type: FULL_STATE_DICT.*stage3_gather_16bit_weights"):
            require_gathered(state)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="no .*safetensors were saved"):
        require_weights(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_broken_checkpoint_is_passed_over_and_removed_later(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    assert resume_point(tmp_path, 20) is None
    for step, state in ((9, "{}"), (10, "{}"), (15, '{"epoch": 0.'), (16, None)):
        (checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        if state is not None:
            (checkpoints / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert resume_point(tmp_path, 20) == checkpoints / "checkpoint-10" and len(list(checkpoints.iterdir())) == 4
    assert resume_point(tmp_path, 10) == checkpoints / "checkpoint-9", "the last step's counts with the final weights alone"
    (tmp_path / "final").mkdir()
    assert resume_point(tmp_path, 10) == checkpoints / "checkpoint-10"
    remove_broken_checkpoints(checkpoints)
    assert sorted(p.name for p in checkpoints.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_the_reward_reads_text_and_chat(tmp_path: Path) -> None:
    reward = logging_reward(tmp_path / "log.jsonl")
    state = type("State", (), {"global_step": 0})()
    texts = ["Answer: 1/2", [{"role": "assistant", "content": "Answer: 0.5"}], "no answer"]
    assert reward(texts, ["1/2", "1/2", "1"], ["a", "b", "c"], state) == [1.0, 1.0, 0.0]
    assert [json.loads(line)["sample_id"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == ["a", "b", "c"]
