"""The RL study as a whole: its committed record, its tables, the diversity behind its mixing curve.

The study's tables: from the finished runs of the grid (profile `study`), or the committed ones (every other profile).

`figures/data` holds what the tables need of a run: its evaluations by problem (`study_problems.parquet`), the means of training
between them, what it spent, and how it was made. Committed runs are only shown, and held against those that are made again.

In-batch diversity of the study's plans for every h: the x axis of the paper's Figure 3.

What the study's fixed orders look like: how far they sort by difficulty and mix, and how unequal their clusters are.

`python -m saerl_lib grid` and `seeds-needed`: run parts of the RL study, and the pilot that fixes its settings.
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
from saerl_lib.report.study import (
    MIXING,
    Sizes,
    batch_readings,
    beside_paper,
    comparison_rows,
    last_rates,
    mixing_rows,
    runs_table,
    summary_table,
    targets_by_policy,
)
from saerl_lib.report.tables import read_table, write_csv
from saerl_lib.studies.grid import (
    arm_plan,
    arm_pool_stage,
    chosen_arms,
    finished,
    grid,
    load_arm_pool,
    planned_run,
    results,
    run_grid,
    run_name,
    spread,
)
from saerl_lib.studies.sensitivity import alternatives_stage
from saerl_lib.studies.world_check import (
    chosen_rate,
    learning_rate_pilot,
    paired_deviation,
    pilot_world,
    seeds_needed,
    seeds_pilot,
)
from saerl_lib.train.arms import Arm, ArmPool, all_arms, find_arm
from saerl_lib.train.policy import DIFFICULTY_ATTEMPTS, final_outcome
from saerl_lib.train.run import write_table
from saerl_lib.train.stages import jobs_home
from saerl_lib.world.sources import world_stage


def mixing_diversity(profile: Profile) -> pd.DataFrame:
    """Mean k-NN distance in batches of each arm of `MIXING`: arm, swapped_per_batch, space, value, ci_low, ci_high, n_batches.

    The space is that of the kept pool. Raises ArtifactError when the study's stages are missing.
    """
    pool = load_arm_pool(load_stage(profile, "arm_pool"), "kept")
    table = load_split_features(load_stage(profile, "features"), "pool")
    place = {name: i for i, name in enumerate(table.ids)}
    z = table.z[np.array([place[i] for i in pool.ids])]
    spaces = {"PCA 2-D": projection_2d(z), "full": standardised_space(z)}
    rows = []
    for name in MIXING:
        plan = arm_plan(find_arm(name), pool, profile.plan, profile.steps, seed=0)
        found = diversity_rows(plan, pool.ids, spaces, profile.properties.bootstrap_samples, profile.seed)
        rows.append(found.drop(columns="order").assign(arm=name))
    return pd.concat(rows, ignore_index=True)


COLUMNS = [
    "arm", "prompts_per_step", "swapped_per_batch", "batches", "swapped_batches", "swapped_batches_second_half",
    "swapped_samples", "label_rho", "largest_cluster", "plan_hash",
]  # fmt: skip
HASH_LENGTH = 12


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
        "plan_hash": plan_hash(plan)[:HASH_LENGTH],
    }  # fmt: skip


def plan_facts(profile: Profile, arms: Mapping[str, Arm]) -> pd.DataFrame:
    """Rows of study_plans.csv, one an arm with a fixed order, at its first matched seed.

    Raises ArtifactError when the study's stages are missing.
    """
    stage, pools, rows = load_stage(profile, "arm_pool"), {}, []
    for arm in arms.values():
        if arm.order is None:
            continue
        pool = pools.setdefault(arm.pool, load_arm_pool(stage, arm.pool))
        rows.append({"arm": arm.name} | facts(arm_plan(arm, pool, profile.plan, profile.steps, seed=0), pool))
    return pd.DataFrame(rows, columns=COLUMNS)


TABLES = (
    "study_runs", "study_final", "study_summary", "study_comparisons", "study_targets", "study_paper_tables", "study_mixing",
    "study_batch", "study_budget", "study_provenance", "study_plans",
)  # fmt: skip
"""Tables that `collect_study` writes."""
SHOWN = (*TABLES, "study_pilot", "preparation_cost")
"""Tables that notebook 08 shows: the pilot's and the cost of preparation come from commands of their own."""
PROBLEMS = "study_problems.parquet"
"""One row a run, evaluation and problem."""
RESULTS_COLUMNS = ["arm", "seed", "step", "update", "rollouts", "eval_set", "sample_id", "attempts", "correct"]
COUNTS = ("seed", "step", "update", "rollouts", "attempts", "correct")
TRAINING = ["zero_variance_share", "entropy", "grad_norm"]
TEXT = dict.fromkeys(("arm", "eval_set", "sample_id"), "str")
Results = dict[str, pd.DataFrame]


def compact(evaluations: pd.DataFrame) -> pd.DataFrame:
    """The evaluations with small integers and categories, sorted, so that the file is small."""
    frame = evaluations[RESULTS_COLUMNS].sort_values(["arm", "seed", "step", "eval_set", "sample_id"]).reset_index(drop=True)
    kinds = {"arm": "category", "eval_set": "category", "sample_id": "category", "attempts": "int8", "correct": "int8"}
    return frame.astype({**kinds, "seed": "int16", "step": "int16", "update": "int16", "rollouts": "int32"})


def read_record(folder: Path) -> Results:
    """`evaluations`, `curve`, `budget` and `provenance` of the runs committed in `folder`.

    The curve has a row an evaluation, the mean over the updates since the one before. Raises ArtifactError when there is none.
    """
    if not (folder / PROBLEMS).is_file():
        raise ArtifactError(f"{folder / PROBLEMS} is missing: there are no committed runs")
    evaluations = pd.read_parquet(folder / PROBLEMS)
    runs = read_table("study_runs", folder)
    curve = runs.loc[runs["update"] > 0, ["arm", "seed", "update", *TRAINING]].rename(columns={"update": "step"})
    tables = {name: read_table(f"study_{name}", folder) for name in ("budget", "provenance")}
    return {"evaluations": evaluations.astype(TEXT | dict.fromkeys(COUNTS, "int64")), "curve": curve, **tables}


def repeated(here: Results, record: Results) -> pd.DataFrame:
    """Runs that are in both, by arm and seed: whether all evaluations are equal, both processors and outcomes in percent."""
    made = here["provenance"].merge(record["provenance"], on=["arm", "seed"], suffixes=("", "_committed"))
    rows = []
    for run in made.itertuples():
        both = [t[(t["arm"] == run.arm) & (t["seed"] == run.seed)] for t in (here["evaluations"], record["evaluations"])]
        frames = [compact(part).astype(TEXT | dict.fromkeys(COUNTS, "int64")) for part in both]
        outcome = [final_outcome(frame)["outcome"].item() for frame in frames]
        rows.append((run.run, frames[0].equals(frames[1]), run.cpu, run.cpu_committed, *outcome))
    return pd.DataFrame(rows, columns=["run", "equal", "cpu", "committed_cpu", "outcome", "committed_outcome"])


def sizes_of(profile: Profile) -> Sizes:
    """What the preparation of the arms is counted from."""
    return Sizes(profile.pool_samples, profile.world.labelled_samples, DIFFICULTY_ATTEMPTS)


def study_tables(
    results_by_name: dict[str, pd.DataFrame], problems: int, budget: int, sizes: Sizes, diversity: pd.DataFrame,
    plans: pd.DataFrame, prompts: int, arms: dict[str, Arm] | None = None,
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """Every table of `TABLES` from evaluations, curve, budget and provenance.

    `problems` is the size of the small sets, `prompts` that of a step, `diversity` as `mixing_diversity`
    gives it, `plans` as `plan_facts` does.
    """
    known = arms or all_arms()
    evaluations = results_by_name["evaluations"].reset_index(drop=True)
    present = set(evaluations["arm"])
    steps = targets_by_policy(evaluations, known, problems, budget)
    own = [name for name, arm in known.items() if name in present and arm.group == "user"]
    per_step = {name: arm.batch_factor * prompts for name, arm in known.items()}
    final = last_rates(evaluations).rename(columns={"avg": "avg_at_k", "passed": "pass_at_k"})
    return {
        "study_runs": runs_table(evaluations, results_by_name["curve"]),
        "study_summary": summary_table(results_by_name, known, problems, budget, sizes),
        "study_comparisons": comparison_rows(evaluations, steps, own),
        "study_targets": steps,
        "study_final": final,
        "study_paper_tables": beside_paper(evaluations, steps),
        "study_mixing": mixing_rows(evaluations, steps, diversity),
        "study_batch": batch_readings(evaluations, per_step),
        "study_budget": results_by_name["budget"],
        "study_provenance": results_by_name["provenance"],
        "study_plans": plans[plans["arm"].isin(present)],
    }


def collect_study(profile: Profile, cells: Sequence[tuple[Arm, int]], folder: Path) -> dict[str, pd.DataFrame]:
    """Write the tables of all finished cells, and their evaluations by problem, into `folder`.

    Raises ArtifactError when no run is finished or no baseline is among them. Unfinished cells are named.
    """
    here = finished(profile, cells)
    merged = results(here) if here else None
    if merged is None or "grpo" not in set(merged["provenance"]["arm"]):
        raise ArtifactError("no finished run of grpo: run `python -m saerl_lib grid` first")
    done = set(merged["provenance"]["run"])
    missing = [name for name in (run_name(arm, seed) for arm, seed in cells) if name not in done]
    if missing:
        print(f"{len(missing)} of {len(cells)} runs are not finished and not in the tables: {', '.join(missing[:8])} ...")
    problems, prompts = profile.world.eval_problems_small, profile.plan.prompts_per_step
    arms = {arm.name: arm for arm, _ in cells}
    diversity, plans = mixing_diversity(profile), plan_facts(profile, arms)
    tables = study_tables(merged, problems, profile.steps, sizes_of(profile), diversity, plans, prompts, arms)
    for name, table in tables.items():
        if table.empty:
            (folder / f"{name}.csv").unlink(missing_ok=True)
            print(f"{name} waits for arms that are not finished")
        else:
            write_csv(table, name, folder)
    write_table(compact(merged["evaluations"]), folder / PROBLEMS)
    return tables


def rewrite_tables(profile: Profile, folder: Path) -> None:
    """Every table of `TABLES` again from the runs committed in `folder` alone, after a change of what is computed from them."""
    mixing = read_table("study_mixing", folder)
    spaces = {"PCA 2-D": "diversity_2d", "full": "diversity_full"}
    diversity = pd.concat([
        mixing[["arm", "swapped_per_batch"]].assign(space=space, value=mixing[column]) for space, column in spaces.items()
    ])  # fmt: skip
    problems, prompts = profile.world.eval_problems_small, profile.plan.prompts_per_step
    plans = read_table("study_plans", folder)
    tables = study_tables(read_record(folder), problems, profile.steps, sizes_of(profile), diversity, plans, prompts)
    for name, table in tables.items():
        write_csv(table, name, folder)


def study_stages(profile: Profile) -> tuple[Stage, Stage]:
    """World and arm pool with everything they need, computed where missing, on one thread as the runs are."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        world = world_stage(profile)
        features = features_stage(profile, world, store_stage(profile, world))
        difficulty, quality = difficulty_stage(profile, world, features), filter_stage(profile, world, features)
        alternatives = alternatives_stage(profile, world, features)
        return world, arm_pool_stage(profile, world, features, difficulty, quality, alternatives)


def study_cells(profile: Profile, arms: Sequence[Arm], seeds: Sequence[int] | None = None) -> list[tuple[Arm, int]]:
    """The cells of the grid, of all matched seeds or of the given ones."""
    if seeds is None:
        return grid(profile, profile.study.seeds, arms)
    return [(arm, seed) for seed in seeds for arm in arms]


def train_study(profile: Profile) -> pd.DataFrame:
    """Runs by arm: finished runs, seconds and memory of each. A profile with a study first runs what is unfinished of it.

    Raises ArtifactError when runs failed; the others are kept.
    """
    if profile.study is not None:
        cells = study_cells(profile, chosen_arms([]))
        failed = run_grid(profile, *study_stages(profile), cells)
        collect_study(profile, cells, paths.figure_data_dir(profile.name))
        if failed:
            raise ArtifactError(f"{len(failed)} runs of the study failed, first {next(iter(failed.values()))}")
    made = read_table("study_provenance", paths.FIGURES / "data").groupby("arm", sort=False)
    columns = ["training_s", "evaluation_s", "peak_memory_mb"]
    return made[columns].mean().round(0).assign(runs=made.size()).reset_index()


def open_study(profile: Profile) -> dict[str, pd.DataFrame]:
    """The study's tables as they lie in `figures/data`, copied beside the profile's own so that figures are drawn from there."""
    tables = {name: read_table(name, paths.FIGURES / "data") for name in SHOWN}
    for name, table in tables.items():
        write_csv(table, name, paths.figure_data_dir(profile.name))
    return tables


def study_profile(name: str = "study") -> Profile:
    """A profile with a study. Raises UserError for one without."""
    profile = get_profile(name)
    if profile.study is None:
        raise UserError(f"profile {name!r} has no study; use --profile study")
    return profile


def run_grid_command(
    names: Sequence[str], seeds: Sequence[int] | None, hours: float | None, arms_file: Path | None, profile_name: str = "study",
    ray: str | None = None,
) -> int:  # fmt: skip
    """Run what is unfinished of the chosen arms and seeds; raises ArtifactError when a run failed.

    The runs are spread over this machine's cores, or over the Ray cluster at the address `ray`. The tables of all finished runs
    go to the profile's own folder; without a run of `grpo` there are none. Runs that are committed too are compared with those.
    """
    profile, arms = study_profile(profile_name), chosen_arms(names, arms_file)
    if ray is not None:
        if hours is not None:
            raise UserError("--hours belongs to this machine's cores: leave it out with --ray")
        require_ray(ray)
    world, pools = study_stages(profile)
    whole, cells = study_cells(profile, chosen_arms([], arms_file)), study_cells(profile, arms, seeds)
    if ray is None:
        failed = run_grid(profile, world, pools, cells, arms_file, hours * 3600 if hours is not None else None)
    else:
        failed = run_grid_on_ray(profile, world, pools, cells, ray, arms_file)
    done = finished(profile, cells)
    print(f"{len(done)} of {len(cells)} runs are finished, {len(failed)} failed")
    for run, log in failed.items():
        print(f"\n{run}\n{log}")
    if done and profile.name == "study":
        show_repeated(done)
    if not finished(profile, [cell for cell in whole if cell[0].name == "grpo"]):
        print("no tables: they compare with grpo, of which no run is finished here")
    else:
        folder = paths.profile_dir(profile.name) / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        collect_study(profile, whole, folder)
        print(f"tables of all finished runs: {folder}")
    if failed:
        raise ArtifactError(f"{len(failed)} runs failed; the same command runs them again")
    return 0


def run_grid_on_ray(
    profile: Profile, world: Stage, pools: Stage, cells: Sequence[tuple[Arm, int]], address: str, arms_file: Path | None = None
) -> dict[str, str]:
    """`run_grid` on the cluster at `address` by joblib's Ray backend; the outputs lie under the same path on all its machines."""
    runs = [planned_run(profile, world, pools, arm, seed, jobs_home(profile), arms_file) for arm, seed in cells]
    with ray_cluster(address):
        import_module("ray.util.joblib").register_ray()
        return spread(runs, "ray")


def show_repeated(folders: Sequence[Path]) -> None:
    """Print how finished runs that are on the committed record too compare with it."""
    data = paths.FIGURES / "data"
    if not (data / PROBLEMS).is_file():
        return
    for row in repeated(results(folders), read_record(data)).itertuples():
        same = "every evaluation equal" if row.equal else f"{row.outcome - row.committed_outcome:+.2f} points apart"
        where = "the same processor type" if row.cpu == row.committed_cpu else f"{row.cpu}; committed: {row.committed_cpu}"
        print(f"{row.run}: outcome {row.outcome:.2f} %, committed {row.committed_outcome:.2f} %, {same} ({where})")


def run_tables(profile_name: str = "study") -> int:
    """The study's tables in `figures/data` again from the committed runs: no run, no stage, some tens of seconds."""
    folder = paths.PUBLISHED
    rewrite_tables(study_profile(profile_name), folder)
    print(f"tables of the committed runs: {folder}")
    return 0


def run_seeds_needed(profile: str = "study") -> int:
    """The pilot: learning rate on `grpo` alone, then the number of seeds; writes study_pilot.csv."""
    chosen = study_profile(profile)
    world = pilot_world(chosen)
    rates = learning_rate_pilot(chosen, world)
    rate = chosen_rate(rates)
    runs = seeds_pilot(chosen, world, rate)
    deviation = paired_deviation(runs)
    needed = seeds_needed(deviation)
    table = pd.concat([
        rates.assign(part="learning rate", arm="grpo"), runs.assign(part="seeds", learning_rate=rate)
    ])[["part", "arm", "learning_rate", "seed", "outcome"]]  # fmt: skip
    write_csv(table, "study_pilot", paths.figure_data_dir(chosen.name))
    print(rates.groupby("learning_rate")["outcome"].mean().round(2).to_string())
    print(f"learning rate {rate:g}; paired standard deviation {deviation:.2f} points; seeds needed: {needed}")
    return 0


def list_arms(arms_file: Path | None) -> int:
    """Print every arm with its group and title."""
    for arm in chosen_arms([], arms_file):
        print(f"{arm.name:18s} {arm.group:9s} {'during training' if arm.policy else 'fixed order':16s} {arm.title}")
    return 0


def run_study(
    arms: Sequence[str] | None, seeds: Sequence[int] | None, hours: float | None, arms_from: Path | None, profile: str,
    list: bool, tables: bool, ray: str | None,
) -> int:  # fmt: skip
    """`grid`: runs of the study; with `list` its arms instead, with `tables` the tables of the committed runs."""
    if list:
        return list_arms(arms_from)
    return run_tables(profile) if tables else run_grid_command(arms or (), seeds, hours, arms_from, profile, ray)
