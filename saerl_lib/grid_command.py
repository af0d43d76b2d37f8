"""`python -m saerl_lib grid` and `seeds-needed`: run parts of the RL study, and the pilot that fixes its settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage
from saerl_lib.config import Profile, get_profile
from saerl_lib.encode.parts import ray_cluster, require_ray
from saerl_lib.notebooks import UserError
from saerl_lib.report.tables import write_csv
from saerl_lib.rl.pilot import chosen_rate, learning_rate_pilot, paired_deviation, pilot_world, seeds_needed, seeds_pilot
from saerl_lib.study.results import PROBLEMS, collect_study, read_record, repeated, rewrite_tables, study_cells, study_stages
from saerl_lib.train.arms import Arm
from saerl_lib.train.grid import chosen_arms, finished, jobs_home, planned_run, results, run_grid, spread


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
    profile = study_profile(profile_name)
    if ray is not None:
        if hours is not None:
            raise UserError("--hours belongs to this machine's cores: leave it out with --ray")
        require_ray(ray)
    world, pools = study_stages(profile)
    arms = chosen_arms(names, arms_file)
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
        from ray.util.joblib import register_ray

        register_ray()
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


def run_seeds_needed(profile_name: str = "study") -> int:
    """The pilot: learning rate on `grpo` alone, then the number of seeds; writes study_pilot.csv."""
    profile = study_profile(profile_name)
    world = pilot_world(profile)
    rates = learning_rate_pilot(profile, world)
    rate = chosen_rate(rates)
    runs = seeds_pilot(profile, world, rate)
    deviation = paired_deviation(runs)
    needed = seeds_needed(deviation, profile.study)
    table = pd.concat([
        rates.assign(part="learning rate", arm="grpo"), runs.assign(part="seeds", learning_rate=rate)
    ])[["part", "arm", "learning_rate", "seed", "outcome"]]  # fmt: skip
    write_csv(table, "study_pilot", paths.figure_data_dir(profile.name))
    print(rates.groupby("learning_rate")["outcome"].mean().round(2).to_string())
    print(f"learning rate {rate:g}; paired standard deviation {deviation:.2f} points; seeds needed: {needed}")
    return 0


def list_arms(arms_file: Path | None) -> int:
    """Print every arm with its group and title."""
    for arm in chosen_arms([], arms_file):
        print(f"{arm.name:18s} {arm.group:9s} {'during training' if arm.policy else 'fixed order':16s} {arm.title}")
    return 0
