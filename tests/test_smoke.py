"""The smoke profile of all notebooks, as a user runs it: complete, repeatable, quick when nothing changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from real_files import write_real_files

from saerl_lib import paths
from saerl_lib.notebooks import NOTEBOOKS, select
from saerl_lib.plan.batch_plan import read_plan, validate
from saerl_lib.report.figures import FIGURES, draw_all

pytestmark = pytest.mark.slow


def run_smoke(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """One command in a clean artifacts folder, with one thread beside other tests; small files stand in for the real sets."""
    command = [sys.executable, "-m", "saerl_lib", "run", "--profile", "smoke", *options]
    real = home / "real"
    if not real.is_dir():
        write_real_files(real)
    environment = os.environ | {"SAERL_HOME": str(home), "SAERL_DATA_DIR": str(real), "PYTHONHASHSEED": "0"}
    return subprocess.run(command, cwd=paths.ROOT, env=environment, capture_output=True, text=True, timeout=2700)


def digests(folder: Path, pattern: str) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob(pattern))}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, published = tmp_path_factory.mktemp("home"), digests(paths.FIGURES, "*.*")
    done = run_smoke(folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert digests(paths.FIGURES, "*.*") == published, "a run must leave the published results alone"
    return folder


def test_the_plan_holds_kept_samples_once_and_the_log_goes_through_it_and_on(home: Path) -> None:
    plan = read_plan(home / "smoke" / "plans" / "saerl.parquet")
    kept = pd.read_parquet(home / "smoke" / "filter" / "kept.parquet")
    validate(plan)
    assert set(plan.ids) <= set(kept.loc[kept["kept"], "sample_id"])
    rollouts = pd.read_parquet(home / "smoke" / "train" / "rollouts.parquet")
    assert {"reward", "completion_tokens", "completion"} <= set(rollouts) and set(rollouts["arm"]) == {"grpo", "saerl"}
    run = rollouts[(rollouts["arm"] == "saerl") & (rollouts["seed"] == rollouts["seed"].min())]
    shown = run.drop_duplicates(["step", "sample_id"])["sample_id"].tolist()
    assert len(shown) > len(plan.ids) and shown == [*plan.ids, *plan.ids][: len(shown)], "the second pass is in the plan's order"


def test_what_is_lost_is_computed_anew_to_the_same_bytes_and_nothing_else_is(home: Path) -> None:
    """The notebooks behind 04 read its stage and tables: one other byte in them, and they would run again."""
    before = {p: p.stat().st_mtime_ns for p in (home / "smoke").rglob("manifest.json")}
    lost = home / "smoke" / "difficulty" / "manifest.json"
    shutil.rmtree(lost.parent)
    done = run_smoke(home)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "runs because stage:difficulty is missing" in done.stdout
    assert f": 1 run, {len(NOTEBOOKS) - 1} up to date." in done.stdout
    after = {p: p.stat().st_mtime_ns for p in before}
    assert [p for p in before if after[p] != before[p]] == [lost]


def test_figures_are_redrawn_byte_for_byte_from_the_tables_alone(home: Path, tmp_path: Path) -> None:
    figures = home / "smoke" / "figures"
    draw_all(figures / "data", tmp_path)
    drawn = digests(figures, "*.p[nd][gf]")
    declared = {name.removeprefix("figure:") for name in select(NOTEBOOKS, only="09")[0].outputs}
    assert digests(tmp_path, "*.*") == drawn and declared <= {name.partition(".")[0] for name in drawn} <= set(FIGURES)
