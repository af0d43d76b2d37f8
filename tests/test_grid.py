"""A small grid of real runs: fixed orders, a selector, DAPO and a user's arm; kill -9, failures, tables."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from killing import kill_in_training
from safetensors.numpy import save_file

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage, file_sha256, write_json
from saerl_lib.config import PlanConfig, StudyConfig, get_profile, to_dict
from saerl_lib.data.sample import read_samples, write_samples
from saerl_lib.report.tables import TableError, write_csv
from saerl_lib.studies import grid
from saerl_lib.train.arms import ArmError
from saerl_lib.train.run import DONE, Run, read_run, train, write_run
from saerl_lib.train.stages import jobs_home
from saerl_lib.world.sources import draw_world

SMOKE = get_profile("smoke")
PROFILE = replace(
    SMOKE, name="grid-test", pool_samples=8, plan=PlanConfig(prompts_per_step=2, swapped_per_batch=1, window_batches=4),
    train=replace(
        SMOKE.train, rollouts_per_prompt=4, checkpoint_every_steps=1, eval_every_steps=2, eval_samples_full=1,
        eval_samples_small=0, max_completion_tokens=32, tail_steps=1,
    ),
    properties=replace(SMOKE.properties, clusters=2), world=replace(SMOKE.world, eval_problems_small=2, eval_problems_full=2),
    study=StudyConfig(seeds=2, other_seeds=1), eval_sets=("easy_a", "hardest"),
)  # fmt: skip
NAMES = ["grpo", "adarft_once", "dapo", "dapo_rollouts", "grpo_4b", "backwards"]
MINE = """import numpy as np
from saerl_lib.train.arms import Arm

def last_first(pool, setting):
    return np.arange(len(pool.table))[::-1]

def start(pool, setting):
    raise RuntimeError('no prompts for you')

ARMS = (Arm('backwards', 'last first', order=last_first), Arm('broken', 'fails', policy=start))
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


@pytest.fixture(scope="module")
def finished(stages: tuple[Stage, Stage], arms_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, one after another in this process."""
    home = tmp_path_factory.mktemp("home") / PROFILE.name / "jobs"
    for arm in grid.chosen_arms(NAMES, arms_file):
        run = grid.planned_run(PROFILE, *stages, arm, 0, home, arms_file)
        write_run(run)
        train(run)
        assert run.finished
    return home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAERL_HOME", str(tmp_path))
    return jobs_home(PROFILE)


@pytest.fixture(scope="module")
def kept(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The records of all runs."""
    home = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAERL_HOME", str(home))  # its evaluation sets are drawn there
        return {name: grid.keep_record(PROFILE, read_run(finished / f"{name}-seed0"), home) for name in NAMES}


def test_every_kind_of_arm_spends_the_same_rollouts(kept: dict[str, Path], finished: Path) -> None:
    tables = grid.results(list(kept.values()))
    assert max(path.stat().st_size for path in kept.values()) < 12_000
    budget = tables["budget"].set_index("arm")
    same = budget.drop(index="dapo")
    assert (same["rollouts"] == 32).all(), "8 prompts x 4 rollouts, whatever the batch and whatever is dropped"
    assert budget.loc["grpo_4b", "updates"] == 1 and budget.loc["grpo", "updates"] == 4
    larger = grid.scaled(PROFILE.plan, 4)
    assert (larger.prompts_per_step, larger.swapped_per_batch, larger.window_batches) == (8, 4, 1)
    assert budget.loc["dapo", "updates"] == 4 and budget.loc["dapo", "rollouts_used"] == 32 < budget.loc["dapo", "rollouts"]
    assert budget.loc["dapo_rollouts", "rollouts_used"] < 32
    assert budget.loc["adarft_once", "distinct_prompts"] == 8, "each prompt once a pass"
    steps = tables["evaluations"].groupby("arm")["step"].unique()
    assert all(sorted(found)[-1] == 4 and 0 in found for found in steps) and sorted(steps["grpo"]) == [0, 2, 4]
    first = tables["evaluations"][tables["evaluations"]["step"] == 0]
    assert first.groupby("sample_id")["correct"].nunique().max() == 1, "one evaluation of the initial weights for all arms"
    raw = pd.read_parquet(finished / "grpo-seed0" / "evaluations.parquet")
    assert [raw.query(f"step == {step}")["attempts"].unique().tolist() for step in (2, 4)] == [[0], [1]]
    assert tables["evaluations"].query("arm == 'grpo'")["avg"].to_numpy() == pytest.approx(
        raw.query("step <= 4").sort_values(["step", "eval_set"], kind="stable")["gold_probability"], abs=1e-4
    )
    assert len(list((finished / "initial").iterdir())) == 1


def test_all_arms_end_with_one_random_tail(kept: dict[str, Path], finished: Path, stages: tuple[Stage, Stage]) -> None:
    """Two prompts behind the last step, the same for every order; DAPO draws until they teach, at equal rollouts none is left."""
    asked = {}
    for name in NAMES:
        run, rollouts = read_run(finished / f"{name}-seed0"), pd.read_parquet(finished / f"{name}-seed0" / "rollouts.parquet")
        asked[name] = rollouts[rollouts["step"] > run.updates]["sample_id"].drop_duplicates().tolist()
    assert asked["grpo"] == asked["adarft_once"] == asked["backwards"] and len(asked["grpo"]) == 2
    ids, mine = [s.id for s in read_samples(stages[1].path("kept.parquet"))], finished / "backwards-seed0"
    rollouts, curve = (pd.read_parquet(mine / f"{name}.parquet") for name in ("rollouts", "curve"))
    assert rollouts["sample_id"].drop_duplicates().tolist() == ids[::-1], "a user's order is followed"
    assert rollouts.groupby("step")["reward"].mean().tolist() == pytest.approx(curve["reward_mean"].tolist())
    assert asked["dapo"][:2] == asked["grpo"] == asked["grpo_4b"][:2] and not asked["dapo_rollouts"]
    tail = grid.results(list(kept.values()))["tail"]
    assert set(tail["arm"]) == set(NAMES) - {"dapo_rollouts"} and set(tail["step"]) == {5}
    before, behind = (pd.read_parquet(kept["grpo"]).query(f"step == {step}")["gold_probability"] for step in (4, 5))
    assert len(before) == len(behind) and not np.array_equal(before, behind), "the tail trains"


def test_a_committed_record_stands_for_its_run(
    kept: dict[str, Path], finished: Path, stages: tuple[Stage, Stage], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "PUBLISHED", home.parent / "published")
    monkeypatch.setattr(grid, "study_stages", lambda _: pytest.fail("a record is found without pool and plan"))
    (home.parent / "published" / grid.RUNS).mkdir(parents=True)
    committed = Path(shutil.copy(kept["grpo"], home.parent / "published" / grid.RUNS / "grpo-seed0.parquet"))
    cells = [(grid.find_arm("grpo"), 0)]
    assert grid.records(PROFILE, cells) == {"grpo-seed0": committed}
    assert grid.run_grid(PROFILE, cells) == {} and not home.exists(), "it is not trained here"
    for other in (replace(PROFILE, train=replace(PROFILE.train, learning_rate=1e-3)), replace(PROFILE, score_correlation=None)):
        assert not grid.records(other, cells), "other settings, another way of planning"
    monkeypatch.setattr(grid, "study_stages", lambda _: stages)
    (run,) = grid.planned_runs(PROFILE, cells)
    shutil.copytree(finished / "grpo-seed0", run.folder)
    write_json(run.folder / DONE, {**json.loads((run.folder / DONE).read_text()), "key": run.key})
    write_run(run)
    assert grid.run_grid(PROFILE, cells, again=True) == {}, "it is finished here, so it is kept"
    own = grid.records(PROFILE, cells)["grpo-seed0"]
    assert own != committed and grid.difference(own, committed) == "every evaluation of every problem as committed"
    pd.read_parquet(own).assign(gold_probability=0.5).to_parquet(own)
    monkeypatch.setattr(grid, "about_record", lambda path: {"provenance": {"cpu": "a type"}})
    assert grid.difference(own, committed).startswith("last evaluation 50.00 %, committed")


def test_kill_9_resume_and_a_failure_beside_it(
    finished: Path, stages: tuple[Stage, Stage], home: Path, arms_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A selector's run is killed and resumed to the same tables; the grid reports a run that fails beside it."""
    arms = grid.chosen_arms(["broken", "adarft_once"], arms_file)
    run = grid.planned_run(PROFILE, *stages, grid.find_arm("adarft_once"), 0, home)
    kill_in_training(run, steps=3)
    assert (run.folder / "checkpoints" / "checkpoint-1").exists()
    train(run)
    monkeypatch.setattr(grid, "study_stages", lambda _: stages)
    both = [(arm, 0) for arm in arms]
    failed = grid.run_grid(PROFILE, both, arms_file)
    assert list(failed) == ["broken-seed0"] and "no prompts for you" in failed["broken-seed0"]
    assert list(grid.records(PROFILE, both, arms_file)) == ["adarft_once-seed0"]
    for name in ("rollouts", "evaluations", "curve"):
        resumed, straight = (pd.read_parquet(f / f"{name}.parquet") for f in (run.folder, finished / "adarft_once-seed0"))
        pd.testing.assert_frame_equal(resumed, straight)
    before = (run.folder / "rollouts.parquet").stat().st_mtime_ns
    assert grid.run_grid(PROFILE, both, arms_file, seconds=1e-9) == {}, "no run starts late"
    with monkeypatch.context() as patched:
        patched.setattr(grid, "planned_runs", lambda *_: pytest.fail("a run was prepared"))
        assert grid.run_grid(PROFILE, both, arms_file, seconds=0) == {}
    monkeypatch.setattr(grid, "run_all", lambda runs, *_, **__: {run.folder.name: f"{len(runs)} a worker" for run in runs})
    again = grid.run_grid(PROFILE, both, arms_file, backend="threading")
    assert again == {"broken-seed0": "1 a worker"}, "what is finished is not run again"
    assert (run.folder / "rollouts.parquet").stat().st_mtime_ns == before
    write_run(replace(run, key="other"), replace=True)
    assert [p.name for p in run.folder.iterdir()] == ["run.json"], "a run under another key begins in an empty folder"


def test_runs_of_other_versions_are_not_merged(kept: dict[str, Path], finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "grpo-seed0", tmp_path / "b")
    done = json.loads((tmp_path / "b" / "done.json").read_text())
    done["environment"]["versions"]["torch"] = "1.0"
    write_json(tmp_path / "b" / "done.json", done)
    with pytest.raises(ArtifactError, match="different versions are not merged"):
        grid.results([kept["grpo"], grid.keep_record(PROFILE, read_run(tmp_path / "b"), tmp_path)])


def test_one_run_without_grpo_is_no_error(
    stages: tuple[Stage, Stage], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training one arm and seed leaves no tables and no error."""
    cells = [(grid.find_arm("hard_to_easy"), 7)]
    for name, value in (("get_profile", PROFILE), ("study_stages", stages), ("run_grid", {}), ("cells_of", cells)):
        monkeypatch.setattr(grid, name, lambda *_, value=value: value)
    command = partial(grid.run_study, ["hard_to_easy"], [7], None, None, "study", ray=None)
    assert command(list=True) == 0
    assert re.search("^adarft +paper +during training", capsys.readouterr().out, re.MULTILINE)
    assert command(list=False) == 0
    assert "no tables: they compare with grpo" in capsys.readouterr().out
    assert not paths.figure_data_dir(PROFILE.name).exists()


def in_this_process(runs: list[Run], *_: Any, ended: Callable[[Run], Any], **__: Any) -> dict[str, str]:
    for run in runs:
        write_run(run)
        train(run)
        ended(run)
    return {}


def test_an_own_arm_is_tried_in_small_and_has_its_row_in_every_table(
    stages: tuple[Stage, Stage], arms_file: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("get_profile", replace(PROFILE, study=None, eval_sets=SMOKE.eval_sets)), ("study_stages", stages)):
        monkeypatch.setattr(grid, name, lambda *_, value=value: value)
    monkeypatch.setattr(grid, "run_all", in_this_process)
    assert grid.run_study(["grpo", "backwards"], [0], None, arms_file, PROFILE.name, list=False, ray=None) == 0
    tables = {path.stem: pd.read_csv(path) for path in paths.figure_data_dir(f"{PROFILE.name}-study").glob("*.csv")}
    assert set(tables["study_summary"]["arm"]) == {"grpo", "backwards"} == set(tables["study_runs"]["arm"])
    rows = tables["study_comparisons"].query("family == 'user'")
    assert set(rows["arm"]) == {"backwards"} and set(rows["baseline"]) == {"grpo"} and rows["difference"].notna().all()


def test_a_profile_with_a_study_shows_its_own_tables(saerl_home: Path) -> None:
    own = paths.figure_data_dir("study")
    own.mkdir(parents=True)
    committed = grid.study_table(get_profile("laptop"), "study_provenance")
    write_csv(committed.head(3), "study_provenance", own)
    assert len(grid.study_table(get_profile("study"), "study_provenance")) == 3 < len(committed)
    assert len(grid.study_table(get_profile("study"), "study_pilot")), "the pilot is a command of its own"
    with pytest.raises(TableError, match="study_runs"):
        grid.open_study(get_profile("study"))


def test_an_order_that_is_too_short_or_wrong_is_refused(stages: tuple[Stage, Stage], tmp_path: Path) -> None:
    for rows, message in (
        ("np.arange(5)", "must hold 8 row numbers in 0..7, got 5, from 0 to 4"), ("np.arange(8) > 2", "of a mask.*got bool"),
        ("np.arange(1, 9)", "got 8, from 1 to 8"), ("pool.ids", "must be whole row numbers"),
    ):  # fmt: skip
        file = tmp_path / f"wrong{len(rows)}.py"
        file.write_text(MINE.replace("np.arange(len(pool.table))[::-1]", rows))
        (arm,) = grid.chosen_arms(["backwards"], file)
        with pytest.raises(ArmError, match=message):
            grid.planned_run(PROFILE, *stages, arm, 0, tmp_path, file)


def test_the_order_of_cells_by_hand() -> None:
    cells = grid.cells_of(PROFILE, grid.chosen_arms(["grpo", "hard_to_easy", "diff", "saerl_online"]))
    assert [(arm.name, seed) for arm, seed in cells] == [
        ("grpo", 0), ("diff", 0), ("grpo", 1), ("diff", 1), ("saerl_online", 0), ("saerl_online", 1), ("hard_to_easy", 0),
    ], "by question, then by seed"  # fmt: skip
    everything = grid.chosen_arms([])
    assert {arm.name for arm, _ in grid.cells_of(PROFILE, everything)} == {arm.name for arm in everything}


def test_a_wide_arm_draws_from_a_larger_pool_of_the_wanted_source(
    stages: tuple[Stage, Stage], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "study_stages", lambda _: stages)
    arm, narrow = grid.find_arm("saerl_online_rate_wide"), grid.find_arm("saerl_online_rate")
    wide = grid.profile_of(PROFILE, arm)
    assert (wide.pool_samples, wide.steps) == (4 * PROFILE.pool_samples, PROFILE.steps)
    assert grid.profile_of(PROFILE, narrow) is PROFILE
    drawn, own = draw_world(wide.world), draw_world(PROFILE.world)
    assert {s.source for s in drawn["pool"]} == {"target"} and len(drawn["pool"]) == wide.pool_samples
    assert all(drawn[name] == own[name] for name in ("labelled", "eval_easy_a", "eval_hardest")), "judged and scored alike"
    run, other = grid.planned_runs(PROFILE, [(arm, 0), (narrow, 0)])
    assert run.folder.parent == other.folder.parent and run.steps == other.steps
    made = grid.protocol(PROFILE, arm, 0)
    monkeypatch.setattr(grid, "profile_of", lambda profile, _: profile)
    assert grid.protocol(PROFILE, arm, 0) != made, "the pool is part of it"


def test_a_protocol_is_that_of_the_run_it_stands_for(
    stages: tuple[Stage, Stage], arms_file: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says of settings, sizes and files is what a planned run holds."""
    monkeypatch.setattr(grid, "study_stages", lambda _: stages)
    for arm in grid.chosen_arms(["dapo_rollouts", "grpo_4b", "backwards"], arms_file):
        told: list[list] = []
        monkeypatch.setattr(grid, "content_hash", lambda value, told=told: told.append(value) or "")
        grid.protocol(PROFILE, arm, 1, arms_file)
        (run,), ((name, seed, settings, sizes, _, files, _),) = grid.planned_runs(PROFILE, [(arm, 1)], arms_file), told
        assert (name, seed, sizes) == (
            run.arm, run.seed, [run.prompts_per_step, run.steps, run.rollouts_per_step, run.small_problems]
        )  # fmt: skip
        assert settings == {k: v for k, v in to_dict(run.train).items() if k not in ("seeds", "checkpoint_every_steps")}
        held = [*run.sets, str(Path(run.policy) / "model.safetensors"), *([run.arms] if run.arms else [])]
        assert files == [file_sha256(Path(path)) for path in held]
