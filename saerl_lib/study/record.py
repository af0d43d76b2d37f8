"""The study's finished runs as they are committed, so that a grid goes on from a clone without training them again (ours).

`figures/data` holds what the tables need of a run: its evaluations by problem, the means of training between them, what it
spent, and how it was made. Tables as `rl.grid.results` gives them come back from there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd

from saerl_lib.arms.base import Arm
from saerl_lib.artifacts import ArtifactError, Stage
from saerl_lib.config import Profile
from saerl_lib.report.tables import read_table
from saerl_lib.rl.grid import jobs_home, planned_run, refuse_mixed, run_name
from saerl_lib.rl.jobs import make_job
from saerl_lib.rl.outcome import final_outcome

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
        raise ArtifactError(f"{folder / PROBLEMS} is missing: there are no committed runs to go on from")
    evaluations = pd.read_parquet(folder / PROBLEMS)
    runs = read_table("study_runs", folder)
    curve = runs.loc[runs["update"] > 0, ["arm", "seed", "update", *TRAINING]].rename(columns={"update": "step"})
    tables = {name: read_table(f"study_{name}", folder) for name in ("budget", "provenance")}
    return {"evaluations": evaluations.astype(TEXT | dict.fromkeys(COUNTS, "int64")), "curve": curve, **tables}


def planned_keys(profile: Profile, world: Stage, pools: Stage, cells: Sequence[tuple[Arm, int]]) -> dict[str, str]:
    """Run -> key under which the grid would make it here and now."""
    home = jobs_home(profile)
    keys = {}
    for arm, seed in cells:
        job = make_job(planned_run(profile, pools, arm, seed, home, None), profile, world.folder, home)
        keys[run_name(arm, seed)] = job.key
    return keys


def accepted(record: Results, cells: Sequence[tuple[Arm, int]], keys: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Runs of the record that stand beside new ones, and those that do not and have to be made again.

    A run stands when the grid would make it under the same key. An arm that decides during training reads numbers measured
    on the machine (pass rates, hidden states) whose last digits are the processor's, and its key with them: such an arm
    stands when all its cells are on record, so that no arm mixes two measurements.
    """
    made = record["provenance"].set_index("run")["config_hash"]
    wanted = {run_name(arm, seed): arm for arm, seed in cells}
    partial = {arm.name for run, arm in wanted.items() if run not in made.index}
    stands, stale = [], []
    for run in made.index:
        arm = wanted.get(run)
        whole = arm is not None and arm.policy is not None and arm.name not in partial
        (stands if whole or made[run] == keys.get(run) else stale).append(run)
    return stands, stale


def run_names(table: pd.DataFrame) -> pd.Series:
    """Name of the run of each row; tables hold 1000 x base seed + matched seed."""
    return table["arm"] + "-seed" + (table["seed"] % 1000).astype(str)


def only(record: Results, runs: Collection[str]) -> Results:
    """The tables of some runs."""
    return {name: table[run_names(table).isin(list(runs))] for name, table in record.items()}


def repeated(here: Results, record: Results) -> pd.DataFrame:
    """Runs that are in both, a row each: processors, whether keys and all evaluations are equal, and both outcomes in percent."""
    runs = set(here["provenance"]["run"]) & set(record["provenance"]["run"])
    both = [only(results, runs) for results in (here, record)]
    made = [part["provenance"].set_index("run") for part in both]
    rows = []
    for run in made[0].index:
        frames = [compact(only(part, {run})["evaluations"]).astype(TEXT) for part in both]
        outcome = [final_outcome(frame)["outcome"].item() for frame in frames]
        cpus, keys = ([table[name][run] for table in made] for name in ("cpu", "config_hash"))
        rows.append((run, *cpus, keys[0] == keys[1], frames[0].equals(frames[1]), *outcome))
    names = ["run", "cpu", "committed_cpu", "same_key", "equal", "outcome", "committed_outcome"]
    return pd.DataFrame(rows, columns=names)


def joined(parts: Sequence[Results], order: Sequence[str]) -> Results:
    """Tables of several parts as one, runs in the `order` of their names.

    Raises ArtifactError when two runs were made with different versions of the packages or learning rates.
    """
    whole = {name: pd.concat([part[name] for part in parts], ignore_index=True) for name in parts[0]}
    refuse_mixed(whole["provenance"])
    place = {run: i for i, run in enumerate(order)}
    return {name: t.iloc[run_names(t).map(place).argsort(kind="stable")].reset_index(drop=True) for name, t in whole.items()}
