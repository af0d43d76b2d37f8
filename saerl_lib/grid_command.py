"""`python -m saerl_lib grid` and `seeds-needed`: run parts of the RL study, and the pilot that fixes its settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from saerl_lib import paths
from saerl_lib.arms.base import Arm
from saerl_lib.artifacts import ArtifactError, Stage
from saerl_lib.cluster.ray_grid import run_grid_on_ray
from saerl_lib.cluster.ray_link import require_cluster, require_ray
from saerl_lib.config import Profile, get_profile
from saerl_lib.notebooks import UserError
from saerl_lib.report.tables import write_csv
from saerl_lib.rl.grid import chosen_arms, finished, results, run_grid, run_name
from saerl_lib.rl.pilot import chosen_rate, learning_rate_pilot, paired_deviation, pilot_world, seeds_needed, seeds_pilot
from saerl_lib.study.record import PROBLEMS, Results, accepted, only, planned_keys, read_record, repeated
from saerl_lib.study.results import collect_study, rewrite_tables, study_cells, study_stages


def study_profile(name: str = "study") -> Profile:
    """A profile with a study. Raises UserError for one without."""
    profile = get_profile(name)
    if profile.study is None:
        raise UserError(f"profile {name!r} has no study; use --profile study")
    return profile


def run_grid_command(
    names: Sequence[str], seeds: Sequence[int] | None, hours: float | None, arms_file: Path | None, profile_name: str = "study",
    publish: bool = False, ray: str | None = None, go_on: bool = False,
) -> int:  # fmt: skip
    """Run what is unfinished of the chosen arms and seeds; raises ArtifactError when a run failed.

    With `go_on` the runs committed in `figures/data` under the same keys are not made again and join the tables.

    The runs are spread over this machine's cores, or over the Ray cluster at the address `ray`.

    The tables of all finished runs go to the profile's own folder, with `publish` to `figures/data`; without a run of `grpo`
    there are none.
    """
    profile = study_profile(profile_name)
    if ray is not None:
        require_ray()
        require_cluster(ray)
    world, pools = study_stages(profile)
    arms = chosen_arms(names, arms_file)
    whole = study_cells(profile, chosen_arms([], arms_file))
    record = committed(profile, world, pools, whole) if go_on else None
    known = set(record["provenance"]["run"]) if record else set()
    cells = [(arm, seed) for arm, seed in study_cells(profile, arms, seeds) if run_name(arm, seed) not in known]
    seconds = hours * 3600 if hours is not None else None
    if ray is None:
        failed = run_grid(profile, world, pools, cells, arms_file, seconds)
    else:
        failed = run_grid_on_ray(profile, world, pools, cells, ray, arms_file, seconds)
    done = finished(profile, cells)
    print(f"{len(done)} of {len(cells)} runs are finished, {len(failed)} failed")
    for run, log in failed.items():
        print(f"\n{run}\n{log}")
    if record is None and done and profile.name == "study":
        show_repeated(done)
    if record is None and not finished(profile, [cell for cell in whole if cell[0].name == "grpo"]):
        print("no tables: they compare with grpo, of which no run is finished here; --continue takes the committed ones")
    else:
        folder = paths.study_data_dir(profile.name) if publish else paths.profile_dir(profile.name) / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        collect_study(profile, whole, folder, record)
        print(f"tables of all finished runs: {folder}")
    if failed:
        raise ArtifactError(f"{len(failed)} runs failed; the same command runs them again")
    return 0


def committed(profile: Profile, world: Stage, pools: Stage, cells: Sequence[tuple[Arm, int]]) -> Results:
    """The runs in `figures/data` that stand beside those that would be made here; names those that do not."""
    record = read_record(paths.FIGURES / "data")
    made = set(record["provenance"]["run"])
    keys = planned_keys(profile, world, pools, [(arm, seed) for arm, seed in cells if run_name(arm, seed) in made])
    stands, stale = accepted(record, cells, keys)
    others = f"{len(stale)} were made under other settings, plans or code: {', '.join(stale) or 'none'}"
    print(f"{len(stands)} committed runs stand, {others}")
    return only(record, stands)


def show_repeated(folders: Sequence[Path]) -> None:
    """Print how finished runs that are on the committed record too compare with it."""
    data = paths.FIGURES / "data"
    if not (data / PROBLEMS).is_file():
        return
    for row in repeated(results(folders), read_record(data)).itertuples():
        same = "every evaluation equal" if row.equal else f"{row.outcome - row.committed_outcome:+.2f} points apart"
        where = "the same processor type" if row.cpu == row.committed_cpu else f"{row.cpu}; committed: {row.committed_cpu}"
        where += "" if row.same_key else "; made from other settings, measurements or code"
        print(f"{row.run}: outcome {row.outcome:.2f} %, committed {row.committed_outcome:.2f} %, {same} ({where})")


def run_tables(profile_name: str = "study") -> int:
    """The study's tables in `figures/data` again from the committed runs: no run, no stage, some tens of seconds."""
    folder = paths.study_data_dir(profile_name)
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
    write_csv(table, "study_pilot", paths.study_data_dir(profile.name))
    print(rates.groupby("learning_rate")["outcome"].mean().round(2).to_string())
    print(f"learning rate {rate:g}; paired standard deviation {deviation:.2f} points; seeds needed: {needed}")
    return 0


def list_arms(arms_file: Path | None) -> int:
    """Print every arm with its group and title."""
    for arm in chosen_arms([], arms_file):
        print(f"{arm.name:18s} {arm.group:9s} {'during training' if arm.policy else 'fixed order':16s} {arm.title}")
    return 0
