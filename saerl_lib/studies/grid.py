"""The RL study's grid: every arm on its matched seeds as independent runs, in parts, its tables, and the command `grid` (ours).

Runs go by question, then by seed, so that a part that ends early holds whole seeds and its differences stay paired; a killed
grid goes on where it was. A finished run leaves a record of some kilobytes; those of `figures/data/runs` are committed and
stand for their runs, so that the study goes on on another machine. A profile with a study trains what is unfinished; every other
profile shows the committed tables of `figures/data`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from threadpoolctl import threadpool_limits

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage, file_sha256
from saerl_lib.config import SMOLLM2, PlanConfig, Profile, StudyConfig, content_hash, get_profile, steps_of, sub_seed, to_dict
from saerl_lib.encode.stages import features_stage, ray_cluster, require_ray, store_stage
from saerl_lib.notebooks import UserError
from saerl_lib.plan.batch_plan import BatchPlan, make_pool, plan_of, write_plan
from saerl_lib.properties.scorer import difficulty_stage, filter_stage
from saerl_lib.report import study
from saerl_lib.report.tables import read_table, write_csv
from saerl_lib.studies.pool import alternatives_stage, arm_pool_stage, load_arm_pool
from saerl_lib.train.arms import DRAWS, REAL, WIDE, WIDER, Arm, ArmError, ArmPool, ArmSetting, all_arms, find_arm, variant_of
from saerl_lib.train.policy import policy_folder
from saerl_lib.train.run import DONE, Run
from saerl_lib.train.stages import LIVE, LIVE_PROMPTS, SEEDS, jobs_home, matched_run, run_all
from saerl_lib.world.gates import scores_stage
from saerl_lib.world.sources import SHORT, TARGET_SHARE, world_stage

TABLES = ("study_runs", "study_summary", "study_comparisons", "study_targets", "study_paper_tables", "study_mixing",
          "study_budget", "study_provenance")  # fmt: skip
"""Tables that `collect_study` writes."""
SHOWN = (*TABLES, "world_controls", "study_pilot", "preparation_cost")
"""Tables that notebook 08 shows: controls, pilot and the cost of preparation come from commands of their own."""
RUNS = "runs"
"""Folder of the records, `<run>.parquet`: its evaluations by problem, and in the file's metadata the rest."""
KINDS = {
    "arm": "category", "seed": "int16", "step": "int16", "update": "int16", "rollouts": "int32", "eval_set": "category",
    "sample_id": "category", "attempts": "int8", "correct": "int8", "gold_probability": "float32",
}  # fmt: skip
"""Columns of a record; likelihoods have four decimals."""
CURVE = ["step", *study.TRAINING]
ENGINE = 1
"""Raised whenever training changes what a run gives: committed runs of another engine do not count."""
QUESTIONS = (("paper",), ("online",), ("update",), ("ablation", "mixing", "batch", "filter"), ("control",), ("rival", "user"),
             (REAL,))  # fmt: skip
"""Groups of arms in the order in which their questions are answered: the paper's method against a random order first."""
REAL_TRAIN = replace(LIVE, eval_every_steps=10, eval_samples_small=1, eval_samples_full=1, checkpoint_every_steps=20)
"""As notebook 07 trains it; judged by one answer a problem, since a right answer of a chat model has many texts."""


def run_name(arm: Arm, seed: int) -> str:
    """Name of a run and of its folder."""
    return f"{arm.name}-seed{seed}"


def cells_of(profile: Profile, arms: Sequence[Arm], seeds: Sequence[int] | None = None) -> list[tuple[Arm, int]]:
    """(arm, matched seed), by question and then by seed: of the given seeds, or of all that the profile gives to the group."""
    cells = []
    for groups in QUESTIONS:
        own = [arm for arm in arms if arm.group in groups]
        count = profile.study.seeds if groups[0] in study.WHOLE else profile.study.other_seeds
        cells += [(arm, seed) for seed in (range(count) if seeds is None else seeds) for arm in own]
    return cells


def profile_of(profile: Profile, arm: Arm) -> Profile:
    """The profile that an arm is trained in: the study's, for a wide arm one of a larger pool and as many steps, for a real one
    SmolLM2's: short-answer arithmetic of six kinds, as many clusters, 60 steps. The rules for scores are the study's."""
    if not (variant := variant_of(arm.name)):
        return profile
    own = replace(profile, name=f"{profile.name}-{variant}", study=None, reader=replace(profile.reader, dense=True))
    if variant == WIDER:
        samples = WIDE * profile.pool_samples
        world = replace(profile.world, problems="target", noisy_pool_samples=samples)
        return replace(own, pool_samples=samples, train_steps=profile.steps, world=world)
    problems = profile.world.eval_problems_small
    samples = min(324, profile.pool_samples // LIVE_PROMPTS * LIVE_PROMPTS)  # 1.12 passes are 60 steps of 6
    world = replace(
        profile.world, problems="short", noisy_pool_samples=round(samples / TARGET_SHARE), test_samples=60, rated_prompts=160,
        contest_train_samples=16, contest_test_samples=34, step_labelled_samples=64, eval_problems_full=problems,
    )  # fmt: skip
    return replace(
        own, pool_samples=samples, train_steps=None, world=world, plan=PlanConfig(prompts_per_step=LIVE_PROMPTS),
        properties=replace(profile.properties, clusters=len(SHORT)), policy=SMOLLM2, train=REAL_TRAIN,
    )  # fmt: skip


def scaled(config: PlanConfig, factor: int) -> PlanConfig:
    """The plan's settings at `factor` times the batch: the same share swapped, the same number of samples in the window."""
    return replace(
        config,
        prompts_per_step=factor * config.prompts_per_step,
        swapped_per_batch=factor * config.swapped_per_batch,
        window_batches=max(1, round(config.window_batches / factor)),
    )


def arm_plan(arm: Arm, pool: ArmPool, config: PlanConfig, steps: int, seed: int, draw: int = 0) -> BatchPlan:
    """The arm's order as a plan of its own batch size, whole batches alone.

    Raises ArmError when the order names rows that the pool does not have or is shorter than the budget.
    """
    sized = scaled(config, arm.batch_factor) if arm.batch_factor > 1 else config
    steps = min(steps, steps_of(len(pool.table), config.prompts_per_step))  # in small a pool holds less than the profile's
    found = arm.order(pool, ArmSetting(sized, steps // arm.batch_factor, seed, draw))  # type: ignore[misc]
    if isinstance(found, BatchPlan):
        return found
    rows, b = np.asarray(found), sized.prompts_per_step
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ArmError(f"arm {arm.name!r}: the order must be whole row numbers (of a mask: np.flatnonzero), got {rows.dtype}")
    wanted = min(steps * config.prompts_per_step, max(len(rows), len(pool.table))) // b * b
    if len(rows) < wanted or rows.min() < 0 or rows.max() >= len(pool.table):
        got = f"{len(rows)}, from {min(rows, default=0)} to {max(rows, default=0)}"
        raise ArmError(f"arm {arm.name!r}: the order must hold {wanted} row numbers in 0..{len(pool.table) - 1}, got {got}")
    columns = (pool.column(name) for name in ("cluster", "ranking", "raw", "length"))
    return plan_of(make_pool(pool.ids, *columns), rows[:wanted].astype(np.int64), np.full(wanted, -1), arm.name, b)


def planned_run(profile: Profile, world: Stage, pools: Stage, arm: Arm, seed: int, home: Path, arms: Path | None = None) -> Run:
    """The run of an arm on a matched seed; a fixed order is written as a plan under `home`/plans."""
    plan, table = None, pools.path(f"{arm.pool}_table.parquet") if arm.policy is not None else None
    if arm.policy is None:
        matched, pool = sub_seed(profile.seed, f"arm-order-{seed}"), load_arm_pool(pools, arm.pool)
        plan = home / "plans" / f"{run_name(arm, seed)}.parquet"
        plan.parent.mkdir(parents=True, exist_ok=True)
        draw = seed % DRAWS if profile.study else 0  # another profile has one SAE
        write_plan(arm_plan(arm, pool, profile.plan, profile.steps, matched, draw), plan)
    return matched_run(
        profile, world.folder, home, arm.name, seed, plan, table, pools.path(f"{arm.pool}.parquet"),
        arm.batch_factor * profile.plan.prompts_per_step, arm.train, policy_folder(profile.policy),
        arms if arm.name not in all_arms() else None,
    )  # fmt: skip


def planned_runs(profile: Profile, cells: Sequence[tuple[Arm, int]], arms_file: Path | None = None) -> list[Run]:
    """`planned_run` of every cell, what it needs computed where missing."""
    stages, owned = functools.cache(study_stages), [(profile_of(profile, arm), arm, seed) for arm, seed in cells]
    return [planned_run(own, *stages(own), arm, seed, jobs_home(profile), arms_file) for own, arm, seed in owned]


@functools.cache
def judged_by(profile: Profile) -> tuple[str, ...]:
    """Hashes of the evaluation sets and of the policy before training."""
    sets = [world_stage(profile).path(f"eval_{name}.parquet") for name in profile.eval_sets]
    return tuple(file_sha256(path) for path in (*sets, policy_folder(profile.policy) / "model.safetensors"))


def protocol(profile: Profile, arm: Arm, seed: int, arms_file: Path | None = None) -> str:
    """Hash of what a record shares with the run that it stands for.

    Not the plan, which may differ in its last digits between processors, but all that it is made by; nor the code.
    """
    own = profile_of(profile, arm)
    b, train = own.plan.prompts_per_step, to_dict(replace(own.train, **arm.train))
    settings = {name: value for name, value in train.items() if name not in ("seeds", "checkpoint_every_steps")}
    files = [*judged_by(own), *([file_sha256(arms_file)] if arms_file and arm.name not in all_arms() else [])]
    sizes = [arm.batch_factor * b, own.steps, b * own.train.rollouts_per_prompt, own.curve_problems]
    made = (own.world, own.reader, own.properties, own.plan)
    planned = [*map(to_dict, made), own.seed, own.pool_samples, own.planned, own.score_correlation]
    return content_hash([arm.name, SEEDS * own.seed + seed, settings, sizes, planned, files, ENGINE])


def keep_record(profile: Profile, run: Run, home: Path) -> Path:
    """Write the record of a finished run into `home`, whole or not at all. Weights of a large policy are removed then.

    The curve's share of groups without a gradient counts every generated group, those that dynamic sampling dropped too.
    """
    path, done = home / f"{run.folder.name}.parquet", json.loads((run.folder / DONE).read_text(encoding="utf-8"))
    home.mkdir(parents=True, exist_ok=True)
    frame = pd.read_parquet(run.folder / "evaluations.parquet").sort_values(["step", "eval_set"], kind="stable")
    frame["gold_probability"] = frame["gold_probability"].round(4)
    rollouts, curve = (pd.read_parquet(run.folder / f"{name}.parquet") for name in ("rollouts", "curve"))
    groups = rollouts.groupby(["step", "round", rollouts["row"] // run.train.rollouts_per_prompt])["reward"].nunique()
    curve = curve.set_index("step").assign(zero_variance_share=(groups == 1).groupby("step").mean()).reset_index()
    arms_file = Path(run.arms) if run.arms else None
    made_by = protocol(profile, find_arm(run.arm, arms_file), run.seed % SEEDS, arms_file)
    about = {"protocol": made_by, "key": run.key, "provenance": _provenance(run, done),
             "budget": _budget(run, rollouts), "curve": curve[CURVE].astype(float).round(4).to_dict("list")}  # fmt: skip
    table = pa.Table.from_pandas(frame[list(KINDS)].astype(KINDS), preserve_index=False)
    partial = path.with_suffix(".partial")
    with pq.ParquetWriter(partial, table.schema, compression="zstd", compression_level=19, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"run": json.dumps(about)})  # not in the schema, which is stored twice
    partial.replace(path)
    if run.train.trained_blocks:
        shutil.rmtree(run.folder / "final", ignore_errors=True)
    return path


def about_record(path: Path) -> dict[str, Any]:
    """protocol, key, provenance, budget and curve of a record."""
    return json.loads(pq.read_metadata(path).metadata[b"run"])


def records(
    profile: Profile, cells: Sequence[tuple[Arm, int]], arms_file: Path | None = None, committed: bool = True
) -> dict[str, Path]:
    """Name of a run -> its record: one of this machine, or else (with `committed`) the committed one of the same protocol."""
    found = dict[str, Path]()
    for arm, seed in cells:
        name = run_name(arm, seed)
        for home in (paths.figure_data_dir(profile.name), *([paths.PUBLISHED] if committed else [])):
            path = home / RUNS / f"{name}.parquet"
            if path.is_file() and about_record(path)["protocol"] == protocol(profile, arm, seed, arms_file):
                found.setdefault(name, path)
    return found


def run_grid(
    profile: Profile, cells: Sequence[tuple[Arm, int]], arms_file: Path | None = None, seconds: float | None = None,
    backend: str | None = None, again: bool = False,
) -> dict[str, str]:  # fmt: skip
    """Run and record what has no record, with `again` no record of this machine; `seconds` after the call no further run starts.

    With a joblib `backend`, such as "ray", its workers take one run a CPU; the machines share the folders under the same paths.
    A run that was lost with its machine is resumed by the next call. Returns failures, log by run.
    """
    begun, known = time.monotonic(), records(profile, cells, arms_file, committed=not again)
    missing = [cell for cell in cells if run_name(*cell) not in known]
    waiting = planned_runs(profile, missing, arms_file) if seconds != 0 else []
    keep = functools.partial(keep_record, profile, home=paths.figure_data_dir(profile.name) / RUNS)
    if backend is None:
        left = None if seconds is None else seconds - (time.monotonic() - begun)
        return run_all(waiting, keep_going=True, seconds=left, ended=keep)
    with joblib.parallel_config(backend, n_jobs=-1):
        found = joblib.Parallel()(joblib.delayed(run_all)([run], 1, True, ended=keep) for run in waiting)
    return {name: log for part in found for name, log in part.items()}


def results(files: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """`evaluations`, those of the `tail`, `curve`, `budget` and `provenance` of records, merged.

    Evaluations have avg, the exact chance of the gold solution, or where there is none the share of right answers, and passed,
    the chance of one gold solution in `PASS_AT` attempts.
    Raises ArtifactError when two runs were made with different versions of the packages.
    """
    about = [about_record(path) for path in files]
    made = pd.DataFrame([one["provenance"] for one in about])
    first = made.iloc[0]
    other = made[made["versions"] != first["versions"]]
    if len(other):
        raise ArtifactError(
            f"{other['run'].iloc[0]} was made with {other['versions'].iloc[0]}, {first['run']} with {first['versions']}: runs of "
            "different versions are not merged; make them again with one"
        )
    frames = [pd.read_parquet(path).astype({name: str for name in ("arm", "eval_set", "sample_id")}) for path in files]
    evaluations = pd.concat([frame.assign(run=place) for place, frame in enumerate(frames)], ignore_index=True)
    gold = evaluations["gold_probability"].astype(float)
    evaluations = evaluations.assign(avg=chances(evaluations), passed=1 - (1 - gold) ** study.PASS_AT)
    curves = [pd.DataFrame(one["curve"]).assign(arm=one["budget"]["arm"], seed=one["budget"]["seed"]) for one in about]
    end = evaluations["run"].map({place: one["budget"]["steps"] for place, one in enumerate(about)})
    evaluations, behind = evaluations.drop(columns="run"), evaluations["step"] > end
    tables = {"evaluations": evaluations[~behind], "tail": evaluations[behind], "curve": pd.concat(curves, ignore_index=True)}
    return {**tables, "budget": pd.DataFrame([one["budget"] for one in about]), "provenance": made}


def chances(evaluations: pd.DataFrame) -> pd.Series:
    """Exact chance of the gold solution, or the share of right answers."""
    return evaluations["gold_probability"].astype(float).fillna(evaluations["correct"] / evaluations["attempts"])


def _provenance(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    made = record["environment"]
    return {
        "run": run.folder.name, "arm": run.arm, "seed": run.seed, "config_hash": record["key"],
        "learning_rate": run.train.learning_rate, "commit": made["commit"], "cpu": made["processor"],
        "threads": made["threads"], "versions": " ".join(f"{k}={v}" for k, v in sorted(made["versions"].items())),
        "training_s": record["seconds"]["training"], "evaluation_s": record["seconds"]["evaluation"],
        "peak_memory_mb": made["peak_memory_mb"],
    }  # fmt: skip


def _budget(run: Run, rollouts: pd.DataFrame) -> dict[str, Any]:
    """Prompts, rollouts and tokens that a run spent before its tail."""
    rollouts = rollouts[rollouts["step"] <= run.updates]
    return {
        "arm": run.arm, "seed": run.seed, "steps": run.steps, "updates": int(rollouts["step"].max()),
        "prompts": len(rollouts.drop_duplicates(["step", "sample_id"])), "distinct_prompts": rollouts["sample_id"].nunique(),
        "rollouts": len(rollouts), "rollouts_used": int(rollouts["used"].sum()),
        "tokens": int(rollouts["completion_tokens"].sum()),
    }  # fmt: skip


def difference(path: Path, committed: Path) -> str:
    """What a run that was trained again gives beside its committed record."""
    if not committed.is_file():
        return "not committed"
    here, there = (pd.read_parquet(p) for p in (path, committed))
    if here.equals(there):
        return "every evaluation of every problem as committed"
    ends = [chances(frame[frame["step"] == frame["step"].max()]).mean() for frame in (here, there)]
    cpus = [about_record(p)["provenance"]["cpu"] for p in (path, committed)]
    return f"last evaluation {100 * ends[0]:.2f} %, committed {100 * ends[1]:.2f} % ({cpus[0]}; {cpus[1]})"


def chosen_arms(names: Sequence[str], arms_file: Path | None = None) -> list[Arm]:
    """Arms by name; none named: all of them. Raises ArmError for an unknown one."""
    return [find_arm(name, arms_file) for name in names] or list(all_arms(arms_file).values())


def study_tables(found: Mapping[str, pd.DataFrame], profile: Profile, arms: Mapping[str, Arm]) -> dict[str, pd.DataFrame]:
    """Every table of `TABLES` from evaluations, curve, budget and provenance of the finished runs of `arms`.

    A real model's runs are judged by problems of their own, so their rows are made apart.
    """
    real = {name: table["arm"].map(variant_of) == REAL for name, table in found.items()}
    tables = _tables({name: table[~real[name]] for name, table in found.items()}, profile, arms)
    if real["budget"].any():
        own = profile_of(profile, find_arm(f"{study.BASELINE}_{REAL}"))
        more = _tables({name: table[real[name]] for name, table in found.items()}, own, arms)
        for name in set(TABLES) - {"study_paper_tables", "study_mixing"}:
            tables[name] = pd.concat([tables[name], more[name]], ignore_index=True)
    return tables


def _tables(found: Mapping[str, pd.DataFrame], profile: Profile, known: Mapping[str, Arm]) -> dict[str, pd.DataFrame]:
    evaluations = found["evaluations"].reset_index(drop=True)
    present = set(evaluations["arm"])
    trained = [name for name in known if name in present]
    rated = [name for name in trained if known[name].group == study.PAPER] or trained  # their final accuracies are the targets
    steps = study.target_steps(
        evaluations[evaluations["arm"].isin(trained)], rated, profile.world.eval_problems_small, profile.steps
    )
    runs = study.runs_table(evaluations, found["curve"], found["tail"])
    own = [name for name in trained if known[name].group == "user"]
    return {
        "study_runs": runs,
        "study_summary": study.summary_table(found, known, steps, runs),
        "study_comparisons": study.comparison_rows(evaluations, steps, runs, own),
        "study_targets": steps,
        "study_paper_tables": study.beside_paper(evaluations, steps),
        "study_mixing": study.mixing_rows(evaluations),
        "study_budget": found["budget"],
        "study_provenance": found["provenance"],
    }


def collect_study(profile: Profile, chosen: Sequence[Arm] = (), arms_file: Path | None = None) -> None:
    """Write the tables of all runs of the `chosen` arms (none: all) with a record into the profile's own folder, a table that
    waits for other arms without rows.

    None without a record of `grpo`. Says which runs have no record, and where the tables lie.
    """
    folder, arms = paths.figure_data_dir(profile.name), all_arms(arms_file)
    cells = cells_of(profile, chosen or list(arms.values()))
    known = records(profile, cells, arms_file)
    missing = [name for name in (run_name(*cell) for cell in cells) if name not in known]
    if missing:
        more = " ..." * (len(missing) > 8)
        print(f"{len(missing)} of {len(cells)} runs over all seeds are not made yet: {', '.join(missing[:8])}{more}")
    if not any(name.startswith(f"{study.BASELINE}-seed") for name in known):
        print("no tables: they compare with grpo, of which no run is finished here; name it among the arms as well")
        return
    for name, table in study_tables(results(list(known.values())), profile, arms).items():
        write_csv(table, name, folder)
        if table.empty:
            print(f"{name} is empty: it needs other arms")
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
        failed = run_grid(profile, cells_of(profile, chosen_arms([])))
        collect_study(profile)
        if failed:
            raise ArtifactError(f"{len(failed)} runs of the study failed, first {next(iter(failed.values()))}")
    made = study_table(profile, "study_provenance").groupby("arm", sort=False)
    return made[["training_s", "evaluation_s", "peak_memory_mb"]].mean().round(0).assign(runs=made.size()).reset_index()


def open_study(profile: Profile) -> dict[str, pd.DataFrame]:
    """The study's tables by name, copied beside the profile's own where it did not make them: figures are drawn from there."""
    tables = {name: study_table(profile, name) for name in SHOWN}
    for name, table in tables.items():
        write_csv(table, name, paths.figure_data_dir(profile.name))
    return tables


def run_study(
    arms: Sequence[str] | None, seeds: Sequence[int] | None, hours: float | None, arms_from: Path | None, profile: str,
    list: bool, ray: str | None, again: bool = False,
) -> int:  # fmt: skip
    """`grid`: run what is unfinished of the chosen arms and seeds, or `list` the arms.

    Then the tables of all finished runs (`collect_study`), in small those of the chosen arms. With `again` committed runs are
    trained here too, and it says how they differ. Raises ArtifactError when a run failed.
    """
    everything = chosen_arms([], arms_from)
    if list:
        for arm in everything:
            print(f"{arm.name:18s} {arm.group:9s} {'during training' if arm.policy else 'fixed order':16s} {arm.title}")
        return 0
    chosen, wanted = get_profile(profile), chosen_arms(arms or (), arms_from)
    if not all(0 <= seed < SEEDS for seed in seeds or ()):
        raise UserError(f"--seeds {' '.join(map(str, seeds or ()))}: give 0 to {SEEDS - 1}")
    if chosen.world is None:
        raise UserError(f"profile {profile!r} has no toy task to train in; use --profile study, or smoke to try it in small")
    if chosen.study is None:  # in small, beside the profile's own runs
        count = chosen.train.seeds
        chosen = replace(chosen, name=f"{chosen.name}-study", study=StudyConfig(seeds=count, other_seeds=count))
        everything = wanted  # four times the batch does not fit every small pool
    if ray is not None:
        if hours is not None:
            raise UserError("--hours belongs to this machine's cores: leave it out with --ray")
        require_ray(ray)
    cells = cells_of(chosen, wanted, seeds)
    with ray_cluster(ray) if ray is not None else contextlib.nullcontext():
        if ray is not None:
            import_module("ray.util.joblib").register_ray()
        seconds = hours * 3600 if hours is not None else None
        failed = run_grid(chosen, cells, arms_from, seconds, None if ray is None else "ray", again)
    here = records(chosen, cells, arms_from, committed=not again)
    print(f"{len(here)} of {len(cells)} runs are finished, {len(failed)} failed")
    for name, path in here.items() if again else ():
        print(f"{name}: {difference(path, paths.PUBLISHED / RUNS / path.name)}")
    for name, log in failed.items():
        print(f"\n{name}\n{log}")
    collect_study(chosen, everything, arms_from)
    if failed:
        raise ArtifactError(f"{len(failed)} runs failed; the same command runs them again")
    return 0
