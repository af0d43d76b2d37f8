"""The study's tables: from the finished runs of the grid (profile `study`), or those that are committed (every other profile).

The committed evaluations of single problems, `figures/data/study_problems.parquet`, are all that the statistics need.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from saerl_lib import paths
from saerl_lib.arms import all_arms
from saerl_lib.arms.base import Arm
from saerl_lib.artifacts import ArtifactError
from saerl_lib.config import Profile
from saerl_lib.report.arm_pairs import comparison_rows
from saerl_lib.report.arm_tables import PAPER, runs_table, summary_table, target_steps
from saerl_lib.report.schemas import read_table, write_csv
from saerl_lib.rl.grid import finished, results
from saerl_lib.rl.job import write_table

TABLES = ("study_runs", "study_summary", "study_comparisons", "study_targets", "study_provenance")
PROBLEMS = "study_problems.parquet"
COLUMNS = ["arm", "seed", "step", "update", "rollouts", "eval_set", "sample_id", "attempts", "correct"]


def study_tables(
    results_by_name: dict[str, pd.DataFrame], problems: int, budget: int, arms: dict[str, Arm] | None = None
) -> dict[str, pd.DataFrame]:
    """Every table of `TABLES` from evaluations, curve, budget and provenance; `problems` is the size of the small sets."""
    known = arms or all_arms()
    evaluations = results_by_name["evaluations"].reset_index(drop=True)
    present = set(evaluations["arm"])
    paper = [name for name, arm in known.items() if name in present and arm.group == PAPER]
    steps = target_steps(evaluations, paper, problems, budget)
    own = [name for name, arm in known.items() if name in present and arm.group == "user"]
    return {
        "study_runs": runs_table(evaluations, results_by_name["curve"]),
        "study_summary": summary_table(results_by_name, known, problems, budget),
        "study_comparisons": comparison_rows(evaluations, steps, own),
        "study_targets": steps,
        "study_provenance": results_by_name["provenance"],
    }


def collect_study(profile: Profile, cells: Sequence[tuple[Arm, int]], folder: Path) -> dict[str, pd.DataFrame]:
    """Write the tables of all finished cells, and their evaluations by problem, into `folder`.

    Raises ArtifactError when no run is finished or no baseline is among them. Unfinished cells are named.
    """
    folders = finished(profile, cells)
    missing = [f"{arm.name}-seed{seed}" for arm, seed in cells if not any(f.name == f"{arm.name}-seed{seed}" for f in folders)]
    if not any(f.name.startswith("grpo-seed") for f in folders):
        raise ArtifactError("no finished run of grpo: run `python -m saerl_lib grid` first")
    if missing:
        print(f"{len(missing)} of {len(cells)} runs are not finished and not in the tables: {', '.join(missing[:8])} ...")
    merged = results(folders)
    tables = study_tables(merged, profile.world.eval_problems_small, profile.steps)
    for name, table in tables.items():
        write_csv(table, name, folder)
    write_table(compact(merged["evaluations"]), folder / PROBLEMS)
    return tables


def compact(evaluations: pd.DataFrame) -> pd.DataFrame:
    """The evaluations with small integers and categories, sorted, so that the file is small."""
    frame = evaluations[COLUMNS].sort_values(["arm", "seed", "step", "eval_set", "sample_id"]).reset_index(drop=True)
    kinds = {"arm": "category", "eval_set": "category", "sample_id": "category", "attempts": "int8", "correct": "int8"}
    return frame.astype({**kinds, "seed": "int16", "step": "int16", "update": "int16", "rollouts": "int32"})


def committed_tables() -> dict[str, pd.DataFrame]:
    """The study's tables as they lie in `figures/data`."""
    return {name: read_table(name, paths.FIGURES / "data") for name in TABLES}
