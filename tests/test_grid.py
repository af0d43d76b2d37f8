"""A small grid of real runs: fixed orders, a selector, DAPO and a user's arm; kill -9, parts, merging, failures."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from killing import kill_in_training, processes, until
from safetensors.numpy import save_file

from saerl_lib import grid_command
from saerl_lib.arms.base import ArmError
from saerl_lib.artifacts import ArtifactError, Stage, write_json
from saerl_lib.config import PlanConfig, StudyConfig, get_profile
from saerl_lib.data.sample import read_samples, write_samples
from saerl_lib.data.splits import draw_world
from saerl_lib.plan.batch_plan import plan_hash, read_plan
from saerl_lib.report.arm_tables import runs_table
from saerl_lib.report.schemas import write_csv
from saerl_lib.rl import grid as grids
from saerl_lib.rl.jobs import make_job, prepare_jobs
from saerl_lib.rl.outcome import final_outcome
from saerl_lib.rl.pilot import chosen_rate, paired_deviation, seeds_needed
from saerl_lib.rl.policy import policy_folder
from saerl_lib.rl.rollouts import read_rows
from saerl_lib.study.record import PROBLEMS, accepted, compact, joined, only, planned_keys, read_record, repeated

SMOKE = get_profile("smoke")
PROFILE = replace(
    SMOKE,
    name="grid-test",
    pool_samples=32,
    plan=PlanConfig(prompts_per_step=4, swapped_per_batch=1, window_batches=4),
    train=replace(
        SMOKE.train, rollouts_per_prompt=4, checkpoint_every_steps=2, eval_every_steps=2, eval_samples_full=1,
        eval_samples_small=1, max_completion_tokens=32,
    ),
    world=replace(SMOKE.world, eval_problems_small=2, eval_problems_full=2),
    study=StudyConfig(main_seeds=(2, 4), seeds=2, other_seeds=1),
)  # fmt: skip
MINE = """import numpy as np
from saerl_lib.arms.base import Arm

def last_first(pool, setting):
    return np.arange(len(pool.table))[::-1]

ARMS = (Arm('backwards', 'last first', order=last_first),)
"""
BROKEN = """from saerl_lib.arms.base import Arm

def start(pool, setting):
    raise RuntimeError('no prompts for you')

ARMS = (Arm('broken', 'fails', policy=start),)
"""


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stage, Stage]:
    world, pools = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("pools")
    splits = draw_world(PROFILE.world)
    for name, samples in splits.items():
        if name.startswith("eval_"):
            write_samples(samples, world / f"{name}.parquet")
    kept, n = splits["pool"][: PROFILE.pool_samples], PROFILE.pool_samples
    write_samples(kept, pools / "kept.parquet")
    numbers = np.arange(n, dtype=float)
    table = pd.DataFrame(
        {"sample_id": [s.id for s in kept], "cluster": np.arange(n) % 3, "ranking": numbers, "raw": numbers,
         "length": numbers + 1, "label": numbers, "pass_rate": np.linspace(1, 0, n)}
    )  # fmt: skip
    table.to_parquet(pools / "kept_table.parquet", index=False)
    save_file({"motifs": np.ones((n, 2), np.float32)}, pools / "features.safetensors")
    return Stage("world", world, "", True), Stage("arm_pool", pools, "", True)


@pytest.fixture(scope="module")
def arms_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(MINE)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAERL_HOME", str(tmp_path))
    return grids.jobs_home(PROFILE)


@pytest.fixture(scope="module")
def finished(stages: tuple[Stage, Stage], arms_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAERL_HOME", str(folder))
        arms = grids.chosen_arms(["grpo", "adarft", "dapo", "grpo_4b", "backwards"], arms_file)
        assert grids.run_grid(PROFILE, *stages, [(arm, 0) for arm in arms], arms_file) == {}
    return folder / PROFILE.name / "jobs"


def test_every_kind_of_arm_spends_the_same_rollouts(finished: Path) -> None:
    tables = grids.results(sorted(p for p in finished.iterdir() if (p / "done.json").exists()))
    budget = tables["budget"].set_index("arm")
    assert (budget["rollouts"] == 32 * 4).all() and len(budget) == 5
    assert budget.loc["grpo_4b", "updates"] == 2 and budget.loc["grpo", "updates"] == 8
    assert budget.loc["dapo", "rollouts_used"] < budget.loc["dapo", "rollouts"]
    assert budget.loc["adarft", "distinct_prompts"] == 32, "every prompt once a pass"
    steps = tables["evaluations"].groupby("arm")["step"].unique()
    assert all(sorted(found)[-1] == 8 and 0 in found for found in steps)
    first = tables["evaluations"][tables["evaluations"]["step"] == 0]
    assert first.groupby("sample_id")["correct"].nunique().max() == 1, "one evaluation of the initial weights for all arms"


def test_a_users_order_is_followed(finished: Path, stages: tuple[Stage, Stage]) -> None:
    ids = [s.id for s in read_samples(stages[1].path("kept.parquet"))]
    rollouts = pd.read_parquet(finished / "backwards-seed0" / "rollouts.parquet")
    assert rollouts["sample_id"].drop_duplicates().tolist() == ids[::-1]


def test_results_of_other_versions_are_refused(finished: Path, tmp_path: Path) -> None:
    import shutil

    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        shutil.copytree(finished / "grpo-seed0", folder)
    record = json.loads((folders[1] / "done.json").read_text())
    record["environment"]["versions"]["torch"] = "1.0"
    write_json(folders[1] / "done.json", record)
    with pytest.raises(ArtifactError, match="different versions are not merged"):
        grids.results(folders)
    assert set(grids.results(folders[:1])["provenance"].columns) >= {"config_hash", "commit", "cpu", "versions", "threads"}


def test_the_committed_record_gives_the_same_tables_and_keys(
    finished: Path, stages: tuple[Stage, Stage], arms_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["grpo", "adarft", "dapo", "grpo_4b"]
    fresh = grids.results([finished / f"{name}-seed0" for name in names])
    runs = runs_table(fresh["evaluations"], fresh["curve"])
    for name, table in {"study_runs": runs, "study_budget": fresh["budget"], "study_provenance": fresh["provenance"]}.items():
        write_csv(table, name, tmp_path)
    compact(fresh["evaluations"]).to_parquet(tmp_path / PROBLEMS, index=False)
    record = read_record(tmp_path)
    pd.testing.assert_frame_equal(runs_table(record["evaluations"], record["curve"]), runs, rtol=1e-5)
    pd.testing.assert_frame_equal(record["budget"], fresh["budget"], check_dtype=False)
    monkeypatch.setenv("SAERL_HOME", str(finished.parents[1]))
    cells = [(arm, 0) for arm in grids.chosen_arms(names)]
    keys = planned_keys(PROFILE, *stages, cells)
    assert keys == record["provenance"].set_index("run")["config_hash"].to_dict(), "nothing would be trained again"
    assert accepted(record, cells, keys) == ([f"{name}-seed0" for name in names], [])
    ours = only(fresh, {"grpo-seed0", "adarft-seed0"})
    same = repeated(ours, record).set_index("run")
    assert same["equal"].tolist() == same["same_key"].tolist() == [True, True]
    wanted = final_outcome(ours["evaluations"]).set_index("arm")["outcome"]
    outcomes = same.loc["grpo-seed0", ["outcome", "committed_outcome"]].tolist()
    assert outcomes == [wanted["grpo"]] * 2, "small integers do not overflow"
    changed = record["evaluations"].query("arm == 'adarft'").index[-1]
    record["evaluations"].loc[changed, "correct"] ^= 1
    again = repeated(ours, record).set_index("run")
    other = again.loc["adarft-seed0"]
    assert not other["equal"] and other["outcome"] != other["committed_outcome"]
    assert again.loc["grpo-seed0", "equal"]


def test_a_committed_run_stands_under_its_key_or_with_its_whole_arm() -> None:
    cells = [(arm, seed) for arm in grids.chosen_arms(["grpo", "adarft", "mopps"]) for seed in (0, 1)]
    made = ["grpo-seed0", "grpo-seed1", "adarft-seed0", "adarft-seed1", "mopps-seed0", "gone-seed0"]
    record = {"provenance": pd.DataFrame({"run": made, "config_hash": ["a", "b", "c", "d", "e", "f"]})}
    stands, stale = accepted(record, cells, {"grpo-seed0": "a", "grpo-seed1": "other", "adarft-seed0": "other"})
    assert stands == ["grpo-seed0", "adarft-seed0", "adarft-seed1"]
    assert stale == ["grpo-seed1", "mopps-seed0", "gone-seed0"]


def test_parts_are_joined_in_order_and_not_across_versions() -> None:
    def part(arm: str, version: str) -> dict[str, pd.DataFrame]:
        made = pd.DataFrame({"run": [f"{arm}-seed1"], "arm": arm, "seed": 1001, "versions": version, "learning_rate": 1.0})
        return {"provenance": made, "budget": made[["arm", "seed"]].assign(tokens=len(arm))}

    whole = joined([part("grpo", "1"), part("diff", "1")], ["diff-seed1", "grpo-seed1"])
    assert whole["provenance"]["run"].tolist() == ["diff-seed1", "grpo-seed1"]
    assert whole["budget"]["arm"].tolist() == ["diff", "grpo"]
    assert only(whole, {"diff-seed1"})["budget"]["arm"].tolist() == ["diff"]
    with pytest.raises(ArtifactError, match="grpo-seed1.*different versions are not merged"):
        joined([part("grpo", "1"), part("diff", "2")], ["diff-seed1", "grpo-seed1"])


def test_a_missing_record_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no committed runs to go on from"):
        read_record(tmp_path)


def test_kill_9_of_a_selector_run_and_resume(finished: Path, stages: tuple[Stage, Stage], home: Path) -> None:
    (arm,) = grids.chosen_arms(["adarft"])
    run = grids.planned_run(PROFILE, stages[1], arm, 0, home, None)
    (folder,) = prepare_jobs([run], PROFILE, stages[0].folder, home)
    kill_in_training(folder, steps=4)
    assert (folder / "checkpoints" / "checkpoint-2").exists()
    assert grids.run_grid(PROFILE, *stages, [(arm, 0)]) == {}
    for name in ("rollouts", "evaluations", "curve"):
        resumed, straight = (pd.read_parquet(f / f"{name}.parquet") for f in (folder, finished / "adarft-seed0"))
        pd.testing.assert_frame_equal(resumed, straight)


@pytest.mark.slow
def test_ray_finishes_a_run_whose_worker_was_killed(
    finished: Path, stages: tuple[Stage, Stage], home: Path, two_machines: Any
) -> None:
    from saerl_lib.cluster.ray_grid import run_grid_on_ray

    killed: list[int] = []

    def kill() -> None:
        log = home / "adarft-seed0" / "rollouts.jsonl"
        until(lambda: log.exists() and len({row["step"] for row in read_rows(log)}) >= 4)
        known = processes()
        trains = next(pid for pid, (_, line) in known.items() if line.rstrip().endswith(f"train-job {log.parent}"))
        worker = known[trains][0]
        assert known[worker][1].startswith("ray::run_one")
        os.kill(worker, signal.SIGKILL)
        killed.append(worker)

    arms = grids.chosen_arms(["grpo", "adarft"])
    with ThreadPoolExecutor() as pool:
        done = pool.submit(kill)
        assert run_grid_on_ray(PROFILE, *stages, [(arm, 0) for arm in arms], two_machines.address) == {}
        done.result()
    assert len(killed) == 1
    for run in ("grpo-seed0", "adarft-seed0"):
        assert sum(1 for _ in (home / run / "times.jsonl").open()) >= 1
        for name in ("rollouts", "evaluations", "curve"):
            found, wanted = (pd.read_parquet(folder / run / f"{name}.parquet") for folder in (home, finished))
            pd.testing.assert_frame_equal(found, wanted)


@pytest.mark.slow
def test_a_run_that_fails_on_ray_is_reported_and_no_run_starts_late(
    stages: tuple[Stage, Stage], home: Path, tmp_path: Path, two_machines: Any
) -> None:
    from saerl_lib.cluster.ray_grid import run_grid_on_ray

    broken = tmp_path / "broken.py"
    broken.write_text(BROKEN)
    cells = [(arm, 0) for arm in grids.chosen_arms(["broken"], broken)]
    failed = run_grid_on_ray(PROFILE, *stages, cells, two_machines.address, broken)
    assert list(failed) == ["broken-seed0"] and "no prompts for you" in failed["broken-seed0"]
    assert run_grid_on_ray(PROFILE, *stages, cells, two_machines.address, broken, seconds=0) == {}


def test_a_failed_run_is_reported_and_the_others_go_on(stages: tuple[Stage, Stage], home: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(BROKEN)
    arms = grids.chosen_arms(["broken", "diff"], broken)
    failed = grids.run_grid(PROFILE, *stages, [(arm, 0) for arm in arms], broken)
    assert list(failed) == ["broken-seed0"] and "no prompts for you" in failed["broken-seed0"]
    assert [f.name for f in grids.finished(PROFILE, [(arm, 0) for arm in arms])] == ["diff-seed0"]


def test_one_run_without_grpo_is_no_error(
    stages: tuple[Stage, Stage], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training one arm and seed again, to compare it with the committed run, leaves no tables and no error."""
    collected: list[object] = []
    for name, value in (
        ("study_profile", lambda name: PROFILE), ("study_stages", lambda profile: stages),
        ("study_cells", lambda profile, arms, seeds=None: [(arm, 7) for arm in arms]),
        ("run_grid", lambda *_: {}), ("collect_study", lambda *words: collected.append(words)),
    ):  # fmt: skip
        monkeypatch.setattr(grid_command, name, value)
    assert grid_command.run_grid_command(["hard_to_easy"], [7], None, None) == 0
    assert "no tables: they compare with grpo" in capsys.readouterr().out and not collected
    monkeypatch.setattr(grid_command, "finished", lambda profile, cells: [home] if cells[0][0].name == "grpo" else [])
    assert grid_command.run_grid_command(["hard_to_easy"], [7], None, None) == 0
    assert len(collected) == 1


def test_cells_come_seed_by_seed(stages: tuple[Stage, Stage]) -> None:
    cells = grids.grid(PROFILE, 2, grids.chosen_arms(["grpo", "hard_to_easy", "diff"]))
    assert [(arm.name, seed) for arm, seed in cells] == [("grpo", 0), ("hard_to_easy", 0), ("diff", 0), ("grpo", 1), ("diff", 1)]


def test_a_larger_policy_gets_the_same_plan_and_its_own_weights(stages: tuple[Stage, Stage], home: Path) -> None:
    for name in ("saerl_grpo", "grpo"):
        arms = grids.chosen_arms([name, f"{name}_large"])
        runs = [grids.planned_run(PROFILE, stages[1], arm, 0, home, None) for arm in arms]
        assert plan_hash(read_plan(runs[0].plan)) == plan_hash(read_plan(runs[1].plan))
        jobs = [make_job(run, PROFILE, stages[0].folder, home) for run in runs]
        assert (
            jobs[0].key != jobs[1].key
            and jobs[0].initial != jobs[1].initial
            and jobs[1].policy == str(policy_folder("policy_large"))
        )
    with pytest.raises(KeyError, match="policy 'huge' does not exist; choose one of policy, policy_large"):
        policy_folder("huge")


def test_an_order_that_is_too_short_or_wrong_is_refused(stages: tuple[Stage, Stage], tmp_path: Path) -> None:
    file = tmp_path / "short.py"
    file.write_text(MINE.replace("np.arange(len(pool.table))[::-1]", "np.arange(5)"))
    (arm,) = grids.chosen_arms(["backwards"], file)
    with pytest.raises(ArmError, match="must hold 32 row numbers in 0..31, got 5"):
        grids.planned_run(PROFILE, stages[1], arm, 0, tmp_path, file)


def test_pilot_rules_by_hand() -> None:
    table = pd.DataFrame({"learning_rate": [1.0, 1.0, 2.0, 2.0, 4.0, 4.0], "seed": [0, 1] * 3, "outcome": [1, 3, 2, 2, 0, 1.0]})
    assert chosen_rate(table) == 1.0, "ties go to the smaller"
    runs = pd.DataFrame({"arm": ["grpo"] * 3 + ["diff"] * 3, "seed": [0, 1, 2] * 2, "outcome": [0.0, 0.0, 0.0, 1.0, 2.0, 3.0]})
    assert paired_deviation(runs) == pytest.approx(1.0)
    assert seeds_needed(1.0, StudyConfig()) == 10
