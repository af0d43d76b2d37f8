"""The RL study as a whole: which runs there are, the tables of those that are finished, and the command `grid` (ours).

A profile with a study trains what is unfinished and writes its tables; every other profile shows
the committed ones of `figures/data`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage, load_stage
from saerl_lib.config import Profile, get_profile
from saerl_lib.encode.parts import ray_cluster, require_ray
from saerl_lib.encode.stages import features_stage, store_stage
from saerl_lib.encode.store import load_split_features
from saerl_lib.notebooks import UserError
from saerl_lib.plan.batch_plan import BatchPlan, plan_hash
from saerl_lib.plan.mixing import diversity_rows, projection_2d, standardised_space
from saerl_lib.properties.probes import correlation
from saerl_lib.properties.scorer import difficulty_stage, filter_stage
from saerl_lib.report import study
from saerl_lib.report.tables import read_table, write_csv
from saerl_lib.studies import grid
from saerl_lib.studies.sensitivity import alternatives_stage
from saerl_lib.train.arms import Arm, ArmPool, all_arms, find_arm
from saerl_lib.train.run import write_table
from saerl_lib.world.sources import world_stage

TABLES = (
    "study_runs", "study_summary", "study_comparisons", "study_targets", "study_paper_tables", "study_mixing",
    "study_batch", "study_budget", "study_provenance", "study_plans",
)  # fmt: skip
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
PLAN_COLUMNS = [
    "arm", "prompts_per_step", "swapped_per_batch", "batches", "swapped_batches", "swapped_batches_second_half",
    "swapped_samples", "label_rho", "largest_cluster", "plan_hash",
]  # fmt: skip


def mixing_diversity(profile: Profile) -> pd.DataFrame:
    """In-batch diversity of the plans of every h: the x axis of the paper's Figure 3.

    Mean k-NN distance in batches: arm, swapped_per_batch, space (of the kept pool), value, ci_low,
    ci_high, n_batches. Raises ArtifactError when the study's stages are missing.
    """
    pool = grid.load_arm_pool(load_stage(profile, "arm_pool"), "kept")
    table = load_split_features(load_stage(profile, "features"), "pool")
    place = {name: i for i, name in enumerate(table.ids)}
    z = table.z[np.array([place[i] for i in pool.ids])]
    spaces = {"PCA 2-D": projection_2d(z), "full": standardised_space(z)}
    rows = []
    for name in study.MIXING:
        plan = grid.arm_plan(find_arm(name), pool, profile.plan, profile.steps, seed=0)
        found = diversity_rows(plan, pool.ids, spaces, profile.properties.bootstrap_samples, profile.seed)
        rows.append(found.drop(columns="order").assign(arm=name))
    return pd.concat(rows, ignore_index=True)


def facts(plan: BatchPlan, pool: ArmPool) -> dict[str, float | str]:
    """Shares of batches and samples that were swapped, Spearman of position with the label, share of the largest cluster, hash.

    The hash is the beginning of `plan_hash`: arms that train on one plan share it.
    """
    table = plan.table
    swapped = table["swapped_with"].to_numpy() >= 0
    by_batch = pd.Series(swapped).groupby(table["step"].to_numpy()).any().to_numpy()
    label = pool.table.set_index("sample_id")["label"].loc[plan.ids].to_numpy()
    return {
        "prompts_per_step": plan.prompts_per_step, "swapped_per_batch": plan.swapped_per_batch, "batches": plan.steps,
        "swapped_batches": float(by_batch.mean()), "swapped_batches_second_half": float(by_batch[len(by_batch) // 2 :].mean()),
        "swapped_samples": float(swapped.mean()),
        "label_rho": correlation("spearman", np.arange(len(label), dtype=float), label),
        "largest_cluster": float(table["cluster"].value_counts(normalize=True).max()),
        "plan_hash": plan_hash(plan)[:12],
    }  # fmt: skip


def plan_facts(profile: Profile, arms: Mapping[str, Arm]) -> pd.DataFrame:
    """Rows of study_plans.csv, one an arm with a fixed order, at its first matched seed.

    Raises ArtifactError when the study's stages are missing.
    """
    stage, pools, rows = load_stage(profile, "arm_pool"), {}, []
    for arm in arms.values():
        if arm.order is None:
            continue
        pool = pools.setdefault(arm.pool, grid.load_arm_pool(stage, arm.pool))
        rows.append({"arm": arm.name} | facts(grid.arm_plan(arm, pool, profile.plan, profile.steps, seed=0), pool))
    return pd.DataFrame(rows, columns=PLAN_COLUMNS)


def study_tables(
    found: Mapping[str, pd.DataFrame], profile: Profile, diversity: pd.DataFrame, plans: pd.DataFrame,
    arms: Mapping[str, Arm] | None = None,
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """Every table of `TABLES` from `found`: evaluations, curve, budget and provenance of the finished runs of `arms` (None: all).

    `diversity` is that of `mixing_diversity`, `plans` that of `plan_facts`.
    """
    known = dict(arms or all_arms())
    problems, budget = profile.world.eval_problems_small, profile.steps
    evaluations = found["evaluations"].reset_index(drop=True)
    present = set(evaluations["arm"])
    steps = study.targets_by_policy(evaluations, known, problems, budget)
    own = [name for name, arm in known.items() if name in present and arm.group == "user"]
    per_step = {name: arm.batch_factor * profile.plan.prompts_per_step for name, arm in known.items()}
    sizes = study.Sizes(profile.pool_samples, profile.world.labelled_samples, grid.DIFFICULTY_ATTEMPTS)
    return {
        "study_runs": study.runs_table(evaluations, found["curve"]),
        "study_summary": study.summary_table(found, known, problems, budget, sizes),
        "study_comparisons": study.comparison_rows(evaluations, steps, own),
        "study_targets": steps,
        "study_paper_tables": study.beside_paper(evaluations, steps),
        "study_mixing": study.mixing_rows(evaluations, steps, diversity),
        "study_batch": study.batch_readings(evaluations, per_step),
        "study_budget": found["budget"],
        "study_provenance": found["provenance"],
        "study_plans": plans[plans["arm"].isin(present)],
    }


def collect_study(profile: Profile, cells: Sequence[tuple[Arm, int]], folder: Path) -> None:
    """Write the tables of all finished cells, and their evaluations by problem, into `folder`.

    Raises ArtifactError when no run of the baseline is finished. Unfinished cells are named.
    """
    here = grid.finished(profile, cells)
    found = grid.results(here) if here else None
    if found is None or "grpo" not in set(found["provenance"]["arm"]):
        raise ArtifactError("no finished run of grpo: run `python -m saerl_lib grid` first")
    done = set(found["provenance"]["run"])
    missing = [name for name in (grid.run_name(arm, seed) for arm, seed in cells) if name not in done]
    if missing:
        print(f"{len(missing)} of {len(cells)} runs are not finished and not in the tables: {', '.join(missing[:8])} ...")
    arms = {arm.name: arm for arm, _ in cells}
    for name, table in study_tables(found, profile, mixing_diversity(profile), plan_facts(profile, arms), arms).items():
        if table.empty:
            (folder / f"{name}.csv").unlink(missing_ok=True)
            print(f"{name} waits for arms that are not finished")
        else:
            write_csv(table, name, folder)
    evaluations = found["evaluations"].sort_values(["arm", "seed", "step", "eval_set", "sample_id"])
    write_table(evaluations[list(KINDS)].reset_index(drop=True).astype(KINDS), folder / PROBLEMS)


def study_stages(profile: Profile) -> tuple[Stage, Stage]:
    """World and arm pool with everything they need, computed where missing, on one thread as the runs are."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        world = world_stage(profile)
        features = features_stage(profile, world, store_stage(profile, world))
        difficulty, quality = difficulty_stage(profile, world, features), filter_stage(profile, world, features)
        alternatives = alternatives_stage(profile, world, features)
        return world, grid.arm_pool_stage(profile, world, features, difficulty, quality, alternatives)


def study_cells(profile: Profile, arms: Sequence[Arm], seeds: Sequence[int] | None = None) -> list[tuple[Arm, int]]:
    """The cells of the grid, of all matched seeds or of the given ones."""
    if seeds is None:
        return grid.grid(profile, profile.study.seeds, arms)
    return [(arm, seed) for seed in seeds for arm in arms]


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
        cells = study_cells(profile, grid.chosen_arms([]))
        failed = grid.run_grid(profile, *study_stages(profile), cells)
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


def study_profile(name: str) -> Profile:
    """A profile with a study. Raises UserError for one without."""
    profile = get_profile(name)
    if profile.study is None:
        raise UserError(f"profile {name!r} has no study; use --profile study")
    return profile


def run_on_ray(
    profile: Profile, stages: tuple[Stage, Stage], cells: Sequence[tuple[Arm, int]], address: str, arms_file: Path | None
) -> dict[str, str]:
    """`run_grid` on the cluster at `address` by joblib's Ray backend; the outputs lie under the same path on all its machines."""
    runs = [grid.planned_run(profile, *stages, arm, seed, grid.jobs_home(profile), arms_file) for arm, seed in cells]
    with ray_cluster(address):
        import_module("ray.util.joblib").register_ray()
        return grid.spread(runs, "ray")


def run_study(
    arms: Sequence[str] | None, seeds: Sequence[int] | None, hours: float | None, arms_from: Path | None, profile: str,
    list: bool, ray: str | None,
) -> int:  # fmt: skip
    """`grid`: run what is unfinished of the chosen arms and seeds, or `list` the arms.

    The runs are spread over this machine's cores, or over the Ray cluster at the address `ray`. The tables of all finished runs
    go to the profile's own folder; without a run of `grpo` there are none. Raises ArtifactError when a run failed.
    """
    everything = grid.chosen_arms([], arms_from)
    if list:
        for arm in everything:
            print(f"{arm.name:18s} {arm.group:9s} {'during training' if arm.policy else 'fixed order':16s} {arm.title}")
        return 0
    chosen, wanted = study_profile(profile), grid.chosen_arms(arms or (), arms_from)
    if ray is not None:
        if hours is not None:
            raise UserError("--hours belongs to this machine's cores: leave it out with --ray")
        require_ray(ray)
    stages = study_stages(chosen)
    whole, cells = study_cells(chosen, everything), study_cells(chosen, wanted, seeds)
    if ray is None:
        failed = grid.run_grid(chosen, *stages, cells, arms_from, hours * 3600 if hours is not None else None)
    else:
        failed = run_on_ray(chosen, stages, cells, ray, arms_from)
    print(f"{len(grid.finished(chosen, cells))} of {len(cells)} runs are finished, {len(failed)} failed")
    for run, log in failed.items():
        print(f"\n{run}\n{log}")
    if not grid.finished(chosen, [cell for cell in whole if cell[0].name == "grpo"]):
        print("no tables: they compare with grpo, of which no run is finished here")
    else:
        folder = paths.profile_dir(chosen.name) / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        collect_study(chosen, whole, folder)
        print(f"tables of all finished runs: {folder}")
    if failed:
        raise ArtifactError(f"{len(failed)} runs failed; the same command runs them again")
    return 0
