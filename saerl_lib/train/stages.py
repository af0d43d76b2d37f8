"""Stages `train` and `evaluation`: the arms of a profile on their matched seeds, under either engine, and one table of answers.

Runs are processes; those of engine "packed" take one core with one thread each and are evaluated while they train, those of
engine "trl" run one after another, behind a launcher where there is one, and their kept weights are evaluated afterwards. A
killed run goes on from its last checkpoint, and a finished one is found.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from tqdm import tqdm

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage, get_or_compute, write_json
from saerl_lib.config import PLANS, SMOLLM2, Profile, TrainConfig, steps_of, sub_seed, to_dict
from saerl_lib.data.sample import Sample, load_split, write_samples
from saerl_lib.train.arms import DAPO, find_arm
from saerl_lib.train.policy import FOLDER, attempted, counted, measured_stage, open_sampler, policy_folder
from saerl_lib.train.run import PARENT, Run, command, keyed, read_run, write_run
from saerl_lib.train.run import train as train_here

ONE_CORE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
MEASURED = {name: find_arm(name).needs[0] for name in ("adarft", "gainrl")}
"""Arm of a profile that chooses as it learns -> what it must know of every sample."""
SEEDS = 1000
"""A run's seed is 1000 x base seed + matched seed."""


def jobs_home(profile: Profile) -> Path:
    """Where the job folders lie."""
    return paths.profile_dir(profile.name) / "jobs"


def matched_run(
    profile: Profile, data: Path, home: Path, arm: str, seed: int, plan: Path | None = None, table: Path | None = None,
    samples: Path | None = None, prompts_per_step: int = 0, changes: Mapping[str, Any] | None = None, policy: Path = FOLDER,
    arms: Path | None = None,
) -> Run:  # fmt: skip
    """The run of an arm on a matched seed, in a folder of its name under `home`.

    `plan` is the arm's order; with `table` its selector chooses. `samples` None: the pool of the data stage, whose folder also
    holds the evaluation sets. `prompts_per_step` 0: the profile's. `changes` of the profile's `TrainConfig` are the arm's own.
    Engine "packed" is evaluated while it trains.
    """
    packed = profile.train.engine == "packed"
    train, b = dataclasses.replace(profile.train, seeds=1, **(changes or {})), profile.plan.prompts_per_step
    chosen = samples or data / "pool.parquet"
    steps = profile.train_steps or steps_of(pq.read_metadata(chosen).num_rows, b)
    return keyed(Run(
        arm=arm, seed=SEEDS * profile.seed + seed, folder=home / f"{arm}-seed{seed}", policy=str(policy),
        samples=str(chosen), prompts_per_step=prompts_per_step or b,
        steps=steps, rollouts_per_step=b * train.rollouts_per_prompt,
        train=train, plan=str(plan or ""), table=str(table or ""), arms=str(arms or ""),
        sets=tuple(str(data / f"eval_{name}.parquet") for name in profile.eval_sets) if packed else (),
        small_problems=profile.curve_problems,
    ))  # fmt: skip


def profile_runs(profile: Profile, data: Stage, plans: Stage, measured: Stage | None) -> list[Run]:
    """Every arm of the profile on every matched seed, seed by seed; `measured` is there when an arm chooses as it learns."""
    runs, policy = [], policy_folder(profile.policy)
    for seed in range(profile.train.seeds):
        for arm in profile.arms:
            plan = plans.path(f"{PLANS[arm].format(seed=seed)}.parquet")
            if not plan.exists():
                raise ArtifactError(f"{plans.folder}: plan {plan.name} is missing; run notebook 06 with the same options first")
            table = measured.path(f"{MEASURED[arm]}.parquet") if measured and arm in MEASURED else None
            run = matched_run(
                profile, data.folder, jobs_home(profile), arm, seed, plan, table, plans.path("samples.parquet"),
                changes=DAPO if arm.endswith("dapo") else {}, policy=policy,
            )  # fmt: skip
            if profile.train.engine == "trl":  # GPU hours of another setting are not replaced
                run = dataclasses.replace(run, folder=run.folder.with_name(f"{run.folder.name}-{run.key[:8]}"))
            runs.append(run)
    return runs


def _start(run: Run, launch: str = "") -> subprocess.Popen[bytes]:
    write_run(run, replace=run.train.engine == "packed")
    own = ONE_CORE if run.train.engine == "packed" else {}
    path = os.pathsep.join(filter(None, (str(paths.ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0", "PYTHONPATH": path, **own}
    environment |= {} if launch else {PARENT: str(os.getpid())}
    with (run.folder / "output.log").open("ab") as log:
        return subprocess.Popen(command(run, launch), stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=paths.ROOT)


def run_all(
    runs: Sequence[Run], processes: int | None = None, keep_going: bool = False, seconds: float | None = None, launch: str = "",
    ended: Callable[[Run], object] = id,
) -> dict[str, str]:  # fmt: skip
    """Run what is unfinished, `processes` at a time (default: one a core), with one progress bar over all steps.

    Raises ArtifactError with the end of the log when a run fails; the other running ones are stopped and resume later.
    With `keep_going` the rest is run first and the failures are returned, message by name of the folder. After `seconds` no
    further run is started. `launch` starts the processes of a run. `ended` is told of each finished run, at once.
    """
    deadline = time.monotonic() + (float("inf") if seconds is None else seconds)
    failed: dict[str, str] = {}
    waiting = [run for run in runs if not run.finished]
    done = sum(run.steps for run in runs) - sum(run.steps for run in waiting)
    for run in runs:
        if run.finished:
            ended(run)
    limit = processes or len(os.sched_getaffinity(0))
    running: list[tuple[Run, subprocess.Popen[bytes]]] = []
    bar = tqdm(total=sum(r.steps for r in runs), desc="training", unit="step", initial=done, mininterval=10, file=sys.stdout)
    try:
        while running or (waiting and time.monotonic() < deadline):
            while waiting and len(running) < limit and time.monotonic() < deadline:
                running.append((waiting[0], _start(waiting.pop(0), launch)))
            time.sleep(0.2)
            for run, process in [pair for pair in running if pair[1].poll() is not None]:
                running.remove((run, process))
                if run.finished:
                    done += run.steps
                    ended(run)
                else:
                    tail = (run.folder / "output.log").read_text(encoding="utf-8", errors="replace")[-2000:]
                    message = f"training run {run.folder.name} failed with exit code {process.returncode}:\n{tail}"
                    failed[run.folder.name] = message
                    if not keep_going:
                        raise ArtifactError(message)
            bar.n = done + sum(run.step for run, _ in running)
            bar.refresh() if not running else bar.update(0)
    finally:
        for _, process in running:
            process.terminate()
        for _, process in running:
            process.wait()
        bar.close()
    return failed


def train_stage(profile: Profile, data: Stage, plans: Stage) -> Stage:
    """GRPO of every arm and matched seed on its plan, or by its selector (paper, section 4.1).

    Collects rollouts.parquet and curve.parquet, for engine "packed" evaluations.parquet, for "trl" runs.json, the folders of
    `jobs/` with the kept weights. A killed cell loses at most the steps since the last checkpoint. Raises ArtifactError for a
    missing plan and a run that fails.
    """
    columns = [MEASURED[arm] for arm in profile.arms if arm in MEASURED]
    measured = measured_stage(profile, plans, columns) if columns else None

    def compute(folder: Path) -> dict[str, pd.DataFrame]:
        runs, packed = profile_runs(profile, data, plans, measured), profile.train.engine == "packed"
        by_arm = sorted(runs, key=lambda run: run.arm)  # arms of one seed side by side would both evaluate its initial weights
        run_all(by_arm, None if packed else 1, launch=profile.launch)
        if not packed:
            write_json(folder / "runs.json", [run.folder.name for run in runs])
        names = ("rollouts", "curve", *(["evaluations"] if packed else []))
        return {name: pd.concat([pd.read_parquet(run.folder / f"{name}.parquet") for run in runs]) for name in names}

    settings = {**to_dict(profile.train), "seed": profile.seed, "arms": list(profile.arms), "steps": profile.train_steps}
    settings["policy"] = profile.policy
    return get_or_compute(profile, "train", settings, compute, (data, plans, *([measured] if measured else [])))


def training_table(train: Stage) -> pd.DataFrame:
    """Rows of training_curves.csv."""
    return pd.read_parquet(train.path("curve.parquet")).drop(columns="loss")


def runs_table(train: Stage) -> pd.DataFrame:
    """One row a run: optimiser steps, rollouts, generated tokens."""
    rollouts = pd.read_parquet(train.path("rollouts.parquet"), columns=["arm", "seed", "step", "completion_tokens"])
    runs = rollouts.groupby(["arm", "seed"])
    return runs.agg(steps=("step", "max"), rollouts=("step", "size"), tokens=("completion_tokens", "sum")).reset_index()


LIVE = TrainConfig(
    seeds=1, learning_rate=2e-5, max_completion_tokens=16, chat=True, answer_from="last_number", trained_blocks=15,
    checkpoint_every_steps=1000,
)  # fmt: skip
"""SmolLM2-135M-Instruct on short-answer arithmetic, the upper half of its blocks: minutes on a laptop's CPU (ours)."""
LIVE_PROMPTS, SHOWN = 6, 8
"""Prompts of a live step, and of those that are answered before and after it."""


def live_stage(profile: Profile, lesson: Sequence[Sample]) -> Stage:
    """SmolLM2 trained by GRPO in this process for `live_steps` steps on all of `lesson` but the first `SHOWN`.

    curve.parquet and rollouts.parquet as of every run; completions.parquet: prompt, answer, before and after of those first ones.
    Raises ArtifactError when SmolLM2 has not been fetched.
    """

    def compute(folder: Path) -> dict[str, pd.DataFrame]:
        shown, base, size = lesson[:SHOWN], policy_folder(SMOLLM2), LIVE_PROMPTS * LIVE.rollouts_per_prompt
        write_samples(lesson[SHOWN:], folder / "lesson.parquet")
        run = keyed(Run(
            arm="live", seed=SEEDS * profile.seed, folder=folder / "run", policy=str(base),
            samples=str(folder / "lesson.parquet"), prompts_per_step=LIVE_PROMPTS, steps=profile.live_steps,
            rollouts_per_step=size, train=LIVE,
        ))  # fmt: skip
        write_run(run)
        train_here(run)
        table = {"prompt": [s.prompt for s in shown], "answer": [s.answer for s in shown]}
        for name, weights in (("before", base), ("after", run.folder / "final")):
            sampler, most = open_sampler(weights, LIVE), LIVE.max_completion_tokens
            table[name] = [texts[0] for texts in sampler.complete(table["prompt"], 1, most, LIVE.temperature, profile.seed)]
        found = {name: pd.read_parquet(run.folder / f"{name}.parquet") for name in ("curve", "rollouts")}
        shutil.rmtree(run.folder)  # half a gigabyte of weights
        return {"completions": pd.DataFrame(table), **found}

    settings = {**to_dict(LIVE), "steps": profile.live_steps, "lesson": [s.prompt for s in lesson], "seed": profile.seed}
    return get_or_compute(profile, "live", settings, compute)


def evaluation_stage(profile: Profile, data: Stage, train: Stage) -> Stage:
    """The evaluations of all runs: evaluations.parquet, one row a run, step and problem.

    Columns: run, arm, seed, step, eval_set, sample_id, attempts, correct (sampled), gold_probability (exact; engine "packed"
    alone: see `policy.evaluate`), full. Engine "trl" evaluates the kept weights here, and the policy before training once a
    seed, which stands in every arm.
    """
    parts = kept_evaluations(profile, data, train) if profile.train.engine == "trl" else []

    def compute(folder: Path) -> dict[str, pd.DataFrame]:
        if parts:
            answers = [(of, pd.read_parquet(stage.path("attempts.parquet"))) for of, stage in parts]
            frame = pd.concat([counted(part).assign(**of, full=True) for of, part in answers], ignore_index=True)
        else:
            frame = pd.read_parquet(train.path("evaluations.parquet"))
            frame.insert(0, "run", frame["arm"] + "-seed" + (frame["seed"] % SEEDS).astype(str))
        return {"evaluations": frame}

    return get_or_compute(profile, "evaluation", {}, compute, (train, *(stage for _, stage in parts)))


def kept_evaluations(profile: Profile, data: Stage, train: Stage) -> list[tuple[dict[str, Any], Stage]]:
    """Run, arm, seed and step, and the stage with attempts.parquet, of every kept step of every run, step 0 included."""
    settings, names = profile.train, json.loads(train.path("runs.json").read_text(encoding="utf-8"))
    sets = {name: load_split(data, f"eval_{name}") for name in profile.eval_sets}
    asked = {key: [s.id for s in samples] for key, samples in sets.items()}
    how = [settings.eval_samples_full, settings.max_completion_tokens, settings.temperature, settings.chat, settings.bf16]

    def answers(name: str, folder: Path, policy: str, seed: int, step: int) -> Stage:
        base = sub_seed(profile.seed, f"evaluation-{seed}-{step}")

        def compute(out: Path) -> dict[str, pd.DataFrame]:
            seeds = {key: sub_seed(base, key) for key in sets}
            found = attempted(open_sampler(folder, settings), sets, settings.eval_samples_full, settings, seeds)
            return {"attempts": found.drop(columns="gold")}

        config = {"policy": policy, "how": [*how, base], "sets": asked}
        return get_or_compute(profile, f"evaluation-{name}", config, compute)

    found = []
    for run in (read_run(jobs_home(profile) / name) for name in names):
        every, seed = run.train.keep_every_steps or run.updates, run.seed % SEEDS
        of = {"run": run.folder.name, "arm": run.arm, "seed": run.seed}
        found.append(({**of, "step": 0}, answers(f"initial-seed{seed}", Path(run.policy), run.policy, seed, 0)))
        for step in sorted({*range(every, run.updates + 1, every), run.updates}):
            name, policy = f"{run.folder.name}-{step:05d}", f"{run.key}@{step}"
            found.append(({**of, "step": step}, answers(name, run.kept(step), policy, seed, step)))
    return found
