"""The smoke profile of all notebooks, as a user runs it: complete, repeatable, quick when nothing changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from saerl_lib import paths
from saerl_lib.export.log import read_rows
from saerl_lib.notebooks import NOTEBOOKS, find
from saerl_lib.plan.batch_plan import read_plan, validate

pytestmark = pytest.mark.slow


def users_environment(home: Path, real_data: bool = True) -> dict[str, str]:
    """A clean artifacts folder, and as many threads as a user gets."""
    hidden = {"OMP_NUM_THREADS"} | (set() if real_data else {"SAERL_DATA_DIR"})
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**environment, "SAERL_HOME": str(home), "PYTHONHASHSEED": "0"}


def run_smoke(home: Path, *options: str, real_data: bool = True) -> subprocess.CompletedProcess[str]:
    """One command in a clean artifacts folder."""
    command = [sys.executable, "-m", "saerl_lib", "run", "--profile", "smoke", *options]
    environment = users_environment(home, real_data)
    return subprocess.run(command, cwd=paths.ROOT, env=environment, capture_output=True, text=True, timeout=1500)


def digests(folder: Path, pattern: str) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob(pattern))}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    done = run_smoke(folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_every_notebook_leaves_a_copy_and_html(home: Path) -> None:
    folder = home / "smoke" / "notebooks"
    for notebook in NOTEBOOKS:
        assert (folder / f"{notebook.stem}.ipynb").is_file() and (folder / f"{notebook.stem}.html").is_file()


def test_rollouts_lie_in_parquet(home: Path) -> None:
    rollouts = pd.read_parquet(home / "smoke" / "train" / "rollouts.parquet")
    assert {"sample_id", "step", "reward", "completion_tokens", "completion"} <= set(rollouts.columns)
    assert set(rollouts["arm"]) == {"grpo", "saerl"} and rollouts["seed"].nunique() == 2


def test_plan_is_a_permutation_of_the_kept_pool_and_of_the_log(home: Path) -> None:
    plan = read_plan(home / "smoke" / "plans" / "saerl.parquet")
    kept = pd.read_parquet(home / "smoke" / "filter" / "kept.parquet")
    ids = kept.loc[kept["kept"], "sample_id"].tolist()
    validate(plan, ids, plan.prompts_per_step)
    rollouts = pd.read_parquet(home / "smoke" / "train" / "rollouts.parquet")
    run = rollouts[(rollouts["arm"] == "saerl") & (rollouts["seed"] == rollouts["seed"].min())]
    assert run.drop_duplicates(["step", "sample_id"])["sample_id"].tolist() == list(plan.ids)


def test_a_second_run_recomputes_nothing(home: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (home / "smoke").rglob("manifest.json")}
    done = run_smoke(home)
    assert done.returncode == 0
    assert {p: p.stat().st_mtime_ns for p in (home / "smoke").rglob("manifest.json")} == before
    assert "first time" not in done.stdout


def test_figures_are_redrawn_byte_for_byte_from_the_tables_alone(home: Path, tmp_path: Path) -> None:
    figures = home / "smoke" / "figures"
    before = digests(figures, "*.p[nd][gf]")
    assert len(before) == 2 * len(find("09").outputs)
    shutil.copytree(figures / "data", tmp_path / "smoke" / "figures" / "data")
    done = run_smoke(tmp_path, "--only", "09")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert digests(tmp_path / "smoke" / "figures", "*.p[nd][gf]") == before


def kill_in_training(home: Path) -> None:
    """Start the command and kill it with SIGKILL when a run has trained past a checkpoint."""
    command = [sys.executable, "-m", "saerl_lib", "run", "--profile", "smoke"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=paths.ROOT, env=users_environment(home), **quiet)
    deadline = time.monotonic() + 1500
    while time.monotonic() < deadline and process.poll() is None:
        logs = (home / "smoke" / "jobs").glob("*/rollouts-000.jsonl")
        if any(len({row["step"] for row in read_rows(log)}) > 5 for log in logs):
            break
        time.sleep(0.05)
    assert process.poll() is None, "the command ended before it could be killed"
    process.kill()
    process.wait()
    assert not (home / "smoke" / "train" / "manifest.json").exists()


def test_same_seed_same_tables_after_kill_9_in_training_another_seed_others(home: Path, tmp_path: Path) -> None:
    kill_in_training(tmp_path / "same")
    with ThreadPoolExecutor() as pool:  # side by side, in folders of their own
        runs = [
            pool.submit(run_smoke, tmp_path / "same"),
            pool.submit(run_smoke, tmp_path / "other", "--seed", "1", real_data=False),
        ]
    for done in (run.result() for run in runs):
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    tables, same, other = (
        digests(f / "smoke" / "figures" / "data", "*.csv") for f in (home, tmp_path / "same", tmp_path / "other")
    )
    assert same == tables
    plans = [digests(f / "smoke" / "plans", "saerl.parquet") for f in (home, tmp_path / "same", tmp_path / "other")]
    assert plans[0] == plans[1] != plans[2]
    assert other["learning_curves.csv"] != tables["learning_curves.csv"]
    assert other["batch_composition.csv"] != tables["batch_composition.csv"]
