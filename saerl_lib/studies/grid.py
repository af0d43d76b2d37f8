"""The RL study's grid: every arm on its matched seeds as independent runs, in parts, its tables, and the command `grid` (ours).

Seeds come first, arms second, so that a part that ends early holds whole seeds and its differences stay paired; a killed grid
goes on where it was. A profile with a study trains what is unfinished and writes its tables; every other profile shows the
committed ones of `figures/data`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage
from saerl_lib.config import PlanConfig, Profile, get_profile, sub_seed
from saerl_lib.encode.parts import ray_cluster, require_ray
from saerl_lib.encode.stages import features_stage, store_stage
from saerl_lib.notebooks import UserError
from saerl_lib.plan.batch_plan import BatchPlan, make_pool, plan_of, write_plan
from saerl_lib.properties.scorer import difficulty_stage, filter_stage
from saerl_lib.report import study
from saerl_lib.report.tables import read_table, write_csv
from saerl_lib.studies.pool import alternatives_stage, arm_pool_stage, load_arm_pool
from saerl_lib.train.arms import Arm, ArmError, ArmPool, ArmSetting, all_arms, find_arm, scaled
from saerl_lib.train.policy import policy_folder
from saerl_lib.train.run import DONE, Run, read_run, write_table
from saerl_lib.train.stages import jobs_home, matched_run, run_all
from saerl_lib.world.gates import scores_stage
from saerl_lib.world.sources import world_stage

TABLES = ("study_runs", "study_summary", "study_comparisons", "study_targets", "study_paper_tables", "study_mixing",
          "study_budget", "study_provenance")  # fmt: skip
"""Tables that `collect_study` writes."""
SHOWN = (*TABLES, "world_controls", "study_pilot", "preparation_cost")
"""Tables that notebook 08 shows: controls, pilot and the cost of preparation come from commands of their own."""
PROBLEMS = "study_problems.parquet"
"""Evaluations by problem: one row a run, evaluation and problem."""
KINDS = {
    "arm": "category", "seed": "int16", "step": "int16", "update": "int16", "rollouts": "int32", "eval_set": "category",
    "sample_id": "category", "attempts": "int8", "correct": "int8",
}  # fmt: skip
"""Columns of `PROBLEMS`, small so that the file is."""


def run_name(arm: Arm, seed: int) -> str:
    """Name of a run and of its folder."""
    return f"{arm.name}-seed{seed}"


def cells_of(profile: Profile, arms: Sequence[Arm], seeds: Sequence[int] | None = None) -> list[tuple[Arm, int]]:
    """(arm, matched seed), seed by seed: of the given seeds, or of all that the profile gives to the arm's group."""
    count = {arm.name: profile.study.seeds if arm.group == study.PAPER else profile.study.other_seeds for arm in arms}
    every = range(max(count.values(), default=0)) if seeds is None else seeds
    return [(arm, seed) for seed in every for arm in arms if seeds is not None or seed < count[arm.name]]


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
    b = sized.prompts_per_step
    wanted = min(steps * config.prompts_per_step, max(len(rows), len(pool.table))) // b * b
    if len(rows) < wanted or rows.min() < 0 or rows.max() >= len(pool.table):
        raise ArmError(f"arm {arm.name!r}: the order must hold {wanted} row numbers in 0..{len(pool.table) - 1}, got {len(rows)}")
    columns = (pool.column(name) for name in ("cluster", "ranking", "raw", "length"))
    return plan_of(make_pool(pool.ids, *columns), rows[:wanted].astype(np.int64), np.full(wanted, -1), arm.name, b)


def planned_run(profile: Profile, world: Stage, pools: Stage, arm: Arm, seed: int, home: Path, arms: Path | None = None) -> Run:
    """The run of an arm on a matched seed; a fixed order is written as a plan under `home`/plans."""
    plan, table = None, pools.path(f"{arm.pool}_table.parquet") if arm.policy is not None else None
    if arm.policy is None:
        matched = sub_seed(profile.seed, f"arm-order-{seed}") if arm.seeded else 0
        plan = home / "plans" / (f"{run_name(arm, seed)}.parquet" if arm.seeded else f"{arm.name}.parquet")
        plan.parent.mkdir(parents=True, exist_ok=True)
        write_plan(arm_plan(arm, load_arm_pool(pools, arm.pool), profile.plan, profile.steps, matched), plan)
    return matched_run(
        profile, world.folder, home, arm.name, seed, plan, table, pools.path(f"{arm.pool}.parquet"),
        arm.batch_factor * profile.plan.prompts_per_step, arm.train, policy_folder(profile.policy),
        arms if arm.name not in all_arms() else None,
    )  # fmt: skip


def run_grid(
    profile: Profile, world: Stage, pools: Stage, cells: Sequence[tuple[Arm, int]], arms_file: Path | None = None,
    seconds: float | None = None, backend: str | None = None,
) -> dict[str, str]:  # fmt: skip
    """Run what is unfinished of the grid; after `seconds` no further run is started. Returns failures, log by run.

    With a joblib `backend`, such as "ray", its workers take one run a CPU; the machines share the folders under the same paths.
    A run that was lost with its machine is resumed by the next call.
    """
    runs = [planned_run(profile, world, pools, arm, seed, jobs_home(profile), arms_file) for arm, seed in cells]
    if backend is None:
        return run_all(runs, keep_going=True, seconds=seconds)
    with joblib.parallel_config(backend, n_jobs=-1):
        found = joblib.Parallel()(joblib.delayed(run_all)([run], 1, True) for run in runs if not run.finished)
    return {name: log for part in found for name, log in part.items()}


def results(folders: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """`evaluations`, `curve`, `budget` and `provenance` of finished runs, merged.

    The curve's share of groups without a gradient counts every generated group, those that dynamic sampling dropped too.
    Raises ArtifactError when two runs were made with different versions of the packages or learning rates.
    """
    made = pd.DataFrame([_provenance(f, json.loads((f / DONE).read_text(encoding="utf-8"))) for f in folders])
    first = made.iloc[0]
    for what in ("versions", "learning_rate"):
        other = made[made[what] != first[what]]
        if len(other):
            raise ArtifactError(
                f"{other['run'].iloc[0]} was made with {what} {other[what].iloc[0]}, {first['run']} with {first[what]}: runs of "
                f"different {what.replace('_', ' ')} are not merged; make them again with one"
            )
    evaluations = pd.concat([pd.read_parquet(f / "evaluations.parquet") for f in folders])
    tables = {"evaluations": evaluations, "curve": pd.concat([_curve(f) for f in folders])}
    return {**tables, "budget": pd.DataFrame([_budget(f) for f in folders]), "provenance": made}


def _curve(folder: Path) -> pd.DataFrame:
    """A run's curve with the share of groups without a gradient among all that were generated."""
    size = read_run(folder).train.rollouts_per_prompt
    rollouts = pd.read_parquet(folder / "rollouts.parquet", columns=["step", "round", "row", "reward"])
    groups = rollouts.groupby(["step", "round", rollouts["row"] // size])["reward"].nunique()
    share = (groups == 1).groupby("step").mean().rename("zero_variance_share")
    curve = pd.read_parquet(folder / "curve.parquet")
    return curve.drop(columns="zero_variance_share").merge(share, left_on="step", right_index=True)[list(curve.columns)]


def _provenance(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    run, made = read_run(folder), record["environment"]
    return {
        "run": folder.name, "arm": run.arm, "seed": run.seed, "config_hash": record["key"],
        "learning_rate": run.train.learning_rate, "commit": made["commit"], "cpu": made["processor"],
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
    """Folders of the finished runs of these cells, each under the key it was last asked for."""
    folders = [jobs_home(profile) / run_name(arm, seed) for arm, seed in cells]
    return [folder for folder in folders if (folder / DONE).exists() and read_run(folder).finished]


def chosen_arms(names: Sequence[str], arms_file: Path | None = None) -> list[Arm]:
    """Arms by name; none named: all of them. Raises ArmError for an unknown one."""
    known = all_arms(arms_file)
    return [find_arm(name, arms_file) for name in names] if names else list(known.values())


# The tables.


def study_tables(
    found: Mapping[str, pd.DataFrame], profile: Profile, arms: Mapping[str, Arm] | None = None
) -> dict[str, pd.DataFrame]:
    """Every table of `TABLES` from evaluations, curve, budget and provenance of the finished runs of `arms` (None: all)."""
    known = dict(arms or all_arms())
    evaluations = found["evaluations"].reset_index(drop=True)
    present = set(evaluations["arm"])
    steps = study.study_targets(evaluations, known, profile.world.eval_problems_small, profile.steps)
    own = [name for name, arm in known.items() if name in present and arm.group == "user"]
    return {
        "study_runs": study.runs_table(evaluations, found["curve"]),
        "study_summary": study.summary_table(found, known, steps),
        "study_comparisons": study.comparison_rows(evaluations, steps, own),
        "study_targets": steps,
        "study_paper_tables": study.beside_paper(evaluations, steps),
        "study_mixing": study.mixing_rows(evaluations),
        "study_budget": found["budget"],
        "study_provenance": found["provenance"],
    }


def collect_study(profile: Profile, cells: Sequence[tuple[Arm, int]], folder: Path) -> None:
    """Write the tables of all finished cells, and their evaluations by problem, into `folder`; none without a run of `grpo`.

    Says which cells are not finished, and where the tables lie.
    """
    here = finished(profile, cells)
    done = {run.name for run in here}
    missing = [name for name in (run_name(arm, seed) for arm, seed in cells) if name not in done]
    if missing:
        print(f"{len(missing)} of {len(cells)} runs are not finished and not in the tables: {', '.join(missing[:8])} ...")
    if not any(name.startswith(f"{study.BASELINE}-seed") for name in done):
        print("no tables: they compare with grpo, of which no run is finished here")
        return
    found, arms = results(here), {arm.name: arm for arm, _ in cells}
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in study_tables(found, profile, arms).items():
        if table.empty:
            (folder / f"{name}.csv").unlink(missing_ok=True)
            print(f"{name} waits for arms that are not finished")
        else:
            write_csv(table, name, folder)
    evaluations = found["evaluations"].sort_values(["arm", "seed", "step", "eval_set", "sample_id"])
    write_table(evaluations[list(KINDS)].reset_index(drop=True).astype(KINDS), folder / PROBLEMS)
    print(f"tables of all finished runs: {folder}")


def study_stages(profile: Profile) -> tuple[Stage, Stage]:
    """World and arm pool with everything they need, computed where missing, on one thread as the runs are."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        world = world_stage(profile)
        features = features_stage(profile, world, store_stage(profile, world))
        difficulty, quality = difficulty_stage(profile, world, features), filter_stage(profile, world, features)
        scores = scores_stage(profile, world, difficulty, alternatives_stage(profile, world, features))
        return world, arm_pool_stage(profile, world, features, scores, quality)


def study_table(profile: Profile, name: str) -> pd.DataFrame:
    """A table of the study: that of the profile's own runs where it has a study, else the committed one."""
    own = paths.figure_data_dir(profile.name)
    made = profile.study is not None and (name in TABLES or (own / f"{name}.csv").is_file())
    return read_table(name, own if made else paths.PUBLISHED)


def train_study(profile: Profile) -> pd.DataFrame:
    """Runs by arm: finished runs, seconds and memory of each. A profile with a study first runs what is unfinished of it.

    Raises ArtifactError when runs failed; the others are kept.
    """
    if profile.study is not None:
        cells = cells_of(profile, chosen_arms([]))
        failed = run_grid(profile, *study_stages(profile), cells)
        collect_study(profile, cells, paths.figure_data_dir(profile.name))
        if failed:
            raise ArtifactError(f"{len(failed)} runs of the study failed, first {next(iter(failed.values()))}")
    made = study_table(profile, "study_provenance").groupby("arm", sort=False)
    columns = ["training_s", "evaluation_s", "peak_memory_mb"]
    return made[columns].mean().round(0).assign(runs=made.size()).reset_index()


def open_study(profile: Profile) -> dict[str, pd.DataFrame]:
    """The study's tables by name, copied beside the profile's own where it did not make them: figures are drawn from there."""
    tables = {name: study_table(profile, name) for name in SHOWN}
    for name, table in tables.items():
        write_csv(table, name, paths.figure_data_dir(profile.name))
    return tables


def run_study(
    arms: Sequence[str] | None, seeds: Sequence[int] | None, hours: float | None, arms_from: Path | None, profile: str,
    list: bool, ray: str | None,
) -> int:  # fmt: skip
    """`grid`: run what is unfinished of the chosen arms and seeds, or `list` the arms.

    The runs are spread over this machine's cores, or over the Ray cluster at the address `ray`. The tables of all finished runs
    go to the profile's own folder; without a run of `grpo` there are none. Raises ArtifactError when a run failed.
    """
    everything = chosen_arms([], arms_from)
    if list:
        for arm in everything:
            print(f"{arm.name:18s} {arm.group:9s} {'during training' if arm.policy else 'fixed order':16s} {arm.title}")
        return 0
    chosen, wanted = get_profile(profile), chosen_arms(arms or (), arms_from)
    if chosen.study is None:
        raise UserError(f"profile {profile!r} has no study; use --profile study")
    if ray is not None:
        if hours is not None:
            raise UserError("--hours belongs to this machine's cores: leave it out with --ray")
        require_ray(ray)
    stages = study_stages(chosen)
    whole, cells = cells_of(chosen, everything), cells_of(chosen, wanted, seeds)
    with ray_cluster(ray) if ray is not None else contextlib.nullcontext():
        if ray is not None:
            import_module("ray.util.joblib").register_ray()
        seconds = hours * 3600 if hours is not None else None
        failed = run_grid(chosen, *stages, cells, arms_from, seconds, None if ray is None else "ray")
    print(f"{len(finished(chosen, cells))} of {len(cells)} runs are finished, {len(failed)} failed")
    for run, log in failed.items():
        print(f"\n{run}\n{log}")
    collect_study(chosen, whole, paths.profile_dir(chosen.name) / "tables")
    if failed:
        raise ArtifactError(f"{len(failed)} runs failed; the same command runs them again")
    return 0
