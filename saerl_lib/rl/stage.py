"""Stages `train` and `evaluation`: the matched runs of the arms, collected into tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage, get_or_compute
from saerl_lib.config import Profile, to_dict
from saerl_lib.rl.jobs import PlannedRun, prepare_jobs
from saerl_lib.rl.runner import run_jobs

ARMS = ("grpo", "saerl")
"""Arms of this profile: GRPO on a random order, GRPO on the SAERL plan (paper, section 4.1)."""


def planned_runs(profile: Profile, plans: Stage) -> list[PlannedRun]:
    """One run an arm and matched seed, seed by seed; the SAERL plan is the same for all seeds."""
    runs = []
    for seed in range(profile.train.seeds):
        runs.append(PlannedRun("grpo", seed, plans.path(f"random-{seed}.parquet")))
        runs.append(PlannedRun("saerl", seed, plans.path("saerl.parquet")))
    return runs


def train_stage(profile: Profile, world: Stage, plans: Stage) -> Stage:
    """Train every run and collect rollouts.parquet, curve.parquet and evaluations.parquet.

    The runs are resumable jobs under `jobs/`, so a killed cell loses at most the steps since the last checkpoint.
    """
    home = paths.profile_dir(profile.name) / "jobs"

    def compute(folder: Path) -> None:
        runs = planned_runs(profile, plans)
        missing = [run.plan.name for run in runs if not run.plan.exists()]
        if missing:
            raise ArtifactError(f"{plans.folder}: plan {missing[0]} is missing; run notebook 06 with the same --seeds first")
        folders = prepare_jobs(runs, profile, world.folder, home)
        run_jobs(folders, profile.steps)
        for name in ("rollouts", "curve", "evaluations"):
            pd.concat([pd.read_parquet(f / f"{name}.parquet") for f in folders]).to_parquet(
                folder / f"{name}.parquet", index=False, compression="zstd"
            )

    return get_or_compute(profile, "train", "rl", {**to_dict(profile.train), "seed": profile.seed}, compute, (world, plans))


def training_table(train: Stage) -> pd.DataFrame:
    """Rows of training_curves.csv."""
    return pd.read_parquet(train.path("curve.parquet"))


def runs_table(train: Stage) -> pd.DataFrame:
    """One row a run: optimiser steps, rollouts, generated tokens, mean reward of the first and last tenth."""
    rollouts = pd.read_parquet(train.path("rollouts.parquet"), columns=["arm", "seed", "step", "reward", "completion_tokens"])
    rows = []
    for (arm, seed), run in rollouts.groupby(["arm", "seed"]):
        last = run["step"].max()
        tenth = max(1, last // 10)
        rows.append(
            {
                "arm": arm,
                "seed": seed,
                "steps": last,
                "rollouts": len(run),
                "tokens": int(run["completion_tokens"].sum()),
                "reward, first tenth": run.loc[run["step"] <= tenth, "reward"].mean(),
                "reward, last tenth": run.loc[run["step"] > last - tenth, "reward"].mean(),
            }
        )
    return pd.DataFrame(rows)
