"""The study's tables: from the finished runs of the grid (profile `study`), or the committed ones (every other profile).

`figures/data` holds what the tables need of a run: its evaluations by problem (`study_problems.parquet`), the means of training
between them, what it spent, and how it was made. Committed runs are only shown, and held against those that are made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage
from saerl_lib.config import Profile
from saerl_lib.data.stage import world_stage
from saerl_lib.encode.stage import features_stage, sae_stage, store_stage
from saerl_lib.properties.alternatives import alternatives_stage
from saerl_lib.properties.scorer import difficulty_stage, filter_stage
from saerl_lib.report.study import (
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
from saerl_lib.study.mixing import mixing_diversity
from saerl_lib.study.plans import plan_facts
from saerl_lib.train.arm_pool import arm_pool_stage
from saerl_lib.train.arms import Arm, all_arms
from saerl_lib.train.evaluate import final_outcome
from saerl_lib.train.grid import chosen_arms, finished, grid, results, run_grid, run_name
from saerl_lib.train.run import write_table

TABLES = (
    "study_runs", "study_final", "study_summary", "study_comparisons", "study_targets", "study_paper_tables", "study_mixing",
    "study_batch", "study_budget", "study_provenance", "study_plans",
)  # fmt: skip
"""Tables that `collect_study` writes."""
SHOWN = (*TABLES, "study_pilot", "preparation_cost")
"""Tables that notebook 08 shows: the pilot's and the cost of preparation come from commands of their own."""
PROBLEMS = "study_problems.parquet"
"""One row a run, evaluation and problem."""
COLUMNS = ["arm", "seed", "step", "update", "rollouts", "eval_set", "sample_id", "attempts", "correct"]
COUNTS = ("seed", "step", "update", "rollouts", "attempts", "correct")
TRAINING = ["zero_variance_share", "entropy", "grad_norm"]
TEXT = dict.fromkeys(("arm", "eval_set", "sample_id"), "str")
Results = dict[str, pd.DataFrame]


def compact(evaluations: pd.DataFrame) -> pd.DataFrame:
    """The evaluations with small integers and categories, sorted, so that the file is small."""
    frame = evaluations[COLUMNS].sort_values(["arm", "seed", "step", "eval_set", "sample_id"]).reset_index(drop=True)
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
    return Sizes(profile.pool_samples, profile.world.labelled_samples, profile.study.difficulty_attempts)


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
        features = features_stage(profile, world, store_stage(profile, world, sae_stage(profile)))
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
