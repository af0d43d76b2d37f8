"""The study's grid: every arm on its matched seeds as independent jobs, in parts, and what the finished ones say.

Seeds come first, arms second, so that a part that ends early holds whole seeds and its differences stay paired.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saerl_lib import paths
from saerl_lib.arms import all_arms, find_arm
from saerl_lib.arms.base import Arm, ArmError, ArmPool, ArmSetting
from saerl_lib.arms.saerl import scaled
from saerl_lib.artifacts import ArtifactError, Stage
from saerl_lib.config import PlanConfig, Profile, sub_seed
from saerl_lib.plan.batch_plan import BatchPlan, make_pool, plan_of, write_plan
from saerl_lib.rl.arm_pool import load_arm_pool
from saerl_lib.rl.jobs import PlannedRun, prepare_jobs
from saerl_lib.rl.policy import policy_folder
from saerl_lib.rl.runner import is_done, run_jobs

MAIN = "paper"
"""Group of arms that get the larger number of seeds."""


def run_name(arm: Arm, seed: int) -> str:
    """Name of a run and of its folder."""
    return f"{arm.name}-seed{seed}"


def grid(profile: Profile, main_seeds: int, arms: Sequence[Arm]) -> list[tuple[Arm, int]]:
    """(arm, matched seed), seed by seed; arms of the paper have `main_seeds`, all others `StudyConfig.other_seeds`."""
    count = {arm.name: main_seeds if arm.group == MAIN else profile.study.other_seeds for arm in arms}
    return [(arm, seed) for seed in range(max(count.values(), default=0)) for arm in arms if seed < count[arm.name]]


def arm_plan(arm: Arm, pool: ArmPool, config: PlanConfig, steps: int, seed: int) -> BatchPlan:
    """The arm's order as a plan of its own batch size, whole batches alone.

    Raises ArmError when the order names rows that the pool does not have or is shorter than the budget.
    """
    sized = scaled(config, arm.batch_factor) if arm.batch_factor > 1 else config
    setting = ArmSetting(sized, steps // arm.batch_factor, seed)
    found = arm.order(pool, setting)  # type: ignore[misc]
    if isinstance(found, BatchPlan):
        return found
    rows = np.asarray(found)
    wanted = steps * config.prompts_per_step
    if len(rows) < wanted or rows.min() < 0 or rows.max() >= len(pool.table):
        raise ArmError(f"arm {arm.name!r}: the order must hold {wanted} row numbers in 0..{len(pool.table) - 1}, got {len(rows)}")
    columns = (pool.column(name) for name in ("cluster", "ranking", "raw", "length"))
    b, rows = sized.prompts_per_step, rows[:wanted].astype(np.int64)
    return plan_of(make_pool(pool.ids, *columns), rows, np.full(wanted, -1), arm.name, b)


def planned_run(profile: Profile, pools: Stage, arm: Arm, seed: int, home: Path, arms_file: Path | None) -> PlannedRun:
    """The run of an arm on a matched seed; a fixed order is written as a plan under `home`/plans."""
    pool_file = pools.path(f"{arm.pool}.parquet")
    common = {"pool": pool_file, "dapo": arm.dapo, "arms": arms_file if arm.name not in all_arms() else None}
    common |= {"prompts_per_step": arm.batch_factor * profile.plan.prompts_per_step, "policy": policy_folder(arm.model)}
    if arm.policy is not None:
        return PlannedRun(arm.name, seed, table=pools.path(f"{arm.pool}_table.parquet"), **common)
    matched = sub_seed(profile.seed, f"arm-order-{seed}") if arm.seeded else 0
    plan = arm_plan(arm, load_arm_pool(pools, arm.pool), profile.plan, profile.steps, matched)
    path = home / "plans" / (f"{run_name(arm, seed)}.parquet" if arm.seeded else f"{arm.name}.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_plan(plan, path)
    return PlannedRun(arm.name, seed, plan=path, **common)


def jobs_home(profile: Profile) -> Path:
    """Where the job folders lie."""
    return paths.profile_dir(profile.name) / "jobs"


def run_grid(
    profile: Profile, world: Stage, pools: Stage, cells: Sequence[tuple[Arm, int]], arms_file: Path | None = None,
    seconds: float | None = None,
) -> dict[str, str]:  # fmt: skip
    """Run what is unfinished of the grid; after `seconds` no further run is started. Returns failures, log by run."""
    home = jobs_home(profile)
    runs = [planned_run(profile, pools, arm, seed, home, arms_file) for arm, seed in cells]
    folders = prepare_jobs(runs, profile, world.folder, home)
    failed = run_jobs(folders, profile.steps, keep_going=True, seconds=seconds)
    return {folder.name: log for folder, log in failed.items()}


def results(folders: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """`evaluations`, `curve`, `budget` and `provenance` of finished runs, merged.

    The curve's share of groups without a gradient counts every generated group, those that dynamic sampling dropped too.
    Raises ArtifactError when two runs were made with different versions of the packages or learning rates.
    """
    made = pd.DataFrame([_provenance(f, json.loads((f / "done.json").read_text(encoding="utf-8"))) for f in folders])
    refuse_mixed(made)
    evaluations = pd.concat([pd.read_parquet(f / "evaluations.parquet") for f in folders])
    tables = {"evaluations": evaluations, "curve": pd.concat([_curve(f) for f in folders])}
    return {**tables, "budget": pd.DataFrame([_budget(f) for f in folders]), "provenance": made}


def refuse_mixed(provenance: pd.DataFrame) -> None:
    """Raises ArtifactError when two runs were made with different versions of the packages or learning rates."""
    first = provenance.iloc[0]
    for what in ("versions", "learning_rate"):
        other = provenance[provenance[what] != first[what]]
        if len(other):
            raise ArtifactError(
                f"{other['run'].iloc[0]} was made with {what} {other[what].iloc[0]}, {first['run']} with {first[what]}: runs of "
                f"different {what.replace('_', ' ')} are not merged; make them again with one"
            )


def _curve(folder: Path) -> pd.DataFrame:
    """A run's curve with the share of groups without a gradient among all that were generated."""
    size = json.loads((folder / "job.json").read_text(encoding="utf-8"))["train"]["rollouts_per_prompt"]
    rollouts = pd.read_parquet(folder / "rollouts.parquet", columns=["step", "round", "row", "reward"])
    groups = rollouts.groupby(["step", "round", rollouts["row"] // size])["reward"].nunique()
    share = (groups == 1).groupby("step").mean().rename("zero_variance_share")
    curve = pd.read_parquet(folder / "curve.parquet")
    return curve.drop(columns="zero_variance_share").merge(share, left_on="step", right_index=True)[list(curve.columns)]


def _provenance(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    made = record["environment"]
    return {
        "run": folder.name, "arm": job["arm"], "seed": job["seed"], "config_hash": record["key"],
        "learning_rate": job["train"]["learning_rate"], "commit": made["commit"], "cpu": made["cpu"],
        "threads": made["threads"], "versions": " ".join(f"{k}={v}" for k, v in sorted(made["versions"].items())),
        "training_s": record["seconds"]["training"], "evaluation_s": record["seconds"]["evaluation"],
        "peak_memory_mb": made["peak_memory_mb"],
    }  # fmt: skip


def _budget(folder: Path) -> dict[str, Any]:
    """Prompts, rollouts and tokens that a run spent, by evaluation step where needed summed up."""
    columns = ["arm", "seed", "step", "sample_id", "used", "completion_tokens"]
    rollouts = pd.read_parquet(folder / "rollouts.parquet", columns=columns)
    group = rollouts.drop_duplicates(["step", "sample_id"])
    return {
        "arm": rollouts["arm"].iloc[0], "seed": rollouts["seed"].iloc[0], "updates": int(rollouts["step"].max()),
        "prompts": len(group), "distinct_prompts": rollouts["sample_id"].nunique(), "rollouts": len(rollouts),
        "rollouts_used": int(rollouts["used"].sum()), "tokens": int(rollouts["completion_tokens"].sum()), "counted": "run",
    }  # fmt: skip


def finished(profile: Profile, cells: Sequence[tuple[Arm, int]]) -> list[Path]:
    """Folders of the finished runs of these cells."""
    folders = [jobs_home(profile) / run_name(arm, seed) for arm, seed in cells]
    return [folder for folder in folders if is_done(folder)]


def chosen_arms(names: Sequence[str], arms_file: Path | None = None) -> list[Arm]:
    """Arms by name; none named: all of them. Raises ArmError for an unknown one."""
    known = all_arms(arms_file)
    return [find_arm(name, arms_file) for name in names] if names else list(known.values())
