"""The pilot: the learning rate, chosen on `grpo` alone, and the number of matched seeds, both on reserved seeds.

The pool, the matched seeds and the evaluation problems are used by nothing else. Rule for the learning rate: the highest
outcome (mean of the last three evaluations) of `grpo` on the first `grid_seeds` pilot seeds; ties go to the smaller.
Rule for the seeds: the standard deviation of the paired difference to `grpo`, pooled over the pilot's other arms, put
into the paired t-test's sample size for `detectable_points`, within the bounds of `main_seeds`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from saerl_lib import paths
from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, StudyConfig, sub_seed, to_dict
from saerl_lib.data.sample import Sample, normalise, write_samples
from saerl_lib.data.splits import draw_eval_sets, draw_world
from saerl_lib.data.world import draw_split, target_weights
from saerl_lib.plan.batch_plan import write_plan
from saerl_lib.plan.orders import build_plan
from saerl_lib.train.evaluate import final_outcome
from saerl_lib.train.grid import matched_run, run_all

RESERVED_SEED = 90_004
POWER, ALPHA = 0.8, 0.05


def pilot_world(profile: Profile) -> Stage:
    """Reserved pool, evaluation sets and plans: a shuffle a pilot seed, and easy to hard by label."""

    def compute(folder: Path) -> None:
        taken = {normalise(s.prompt) for split in draw_world(profile.world).values() for s in split}
        sets = draw_eval_sets(dataclasses.replace(profile.world, seed=RESERVED_SEED), taken)
        pool = draw_split("pool", profile.pool_samples, target_weights(), "target", RESERVED_SEED, taken)
        (folder / "samples").mkdir()
        write_samples(pool, folder / "samples" / "pool.parquet")
        for name, samples in sets.items():
            write_samples(samples, folder / "samples" / f"eval_{name}.parquet")
        for seed in profile.study.pilot_seeds:
            _plan(pool, profile, "random", seed, folder / f"random-{seed}.parquet")
        _plan(pool, profile, "ascending", 0, folder / "ascending.parquet")

    config = {**to_dict(profile.world), "pool": profile.pool_samples, "b": profile.plan.prompts_per_step}
    return get_or_compute(profile, "pilot_world", config, compute)


def _plan(pool: Sequence[Sample], profile: Profile, order: str, seed: int, path: Path) -> None:
    labels = np.array([s.difficulty for s in pool])
    n, ids = len(pool), [s.id for s in pool]
    shuffle = sub_seed(RESERVED_SEED, f"order-{seed}")
    plan = build_plan(ids, np.zeros(n, int), labels, labels, np.ones(n), profile.plan, order=order, seed=shuffle, labels=labels)
    write_plan(plan, path)


def _run(profile: Profile, world: Stage, arms: Sequence[tuple[str, int, Path]], rate: float) -> pd.DataFrame:
    """Outcome of `arms`, (name, seed, plan), by arm and seed at one learning rate."""
    changed = dataclasses.replace(profile, train=dataclasses.replace(profile.train, learning_rate=rate))
    home = paths.profile_dir(profile.name) / "jobs_pilot" / f"{rate:g}"
    runs = [matched_run(changed, world.path("samples"), home, arm, seed, plan, dapo=arm == "dapo") for arm, seed, plan in arms]
    run_all(runs)
    return final_outcome(pd.concat([pd.read_parquet(run.folder / "evaluations.parquet") for run in runs]))


def learning_rate_pilot(profile: Profile, world: Stage) -> pd.DataFrame:
    """Rows learning_rate, seed, outcome (percent) of `grpo`."""
    rows = []
    for rate in profile.study.learning_rates:
        seeds = profile.study.pilot_seeds[: profile.study.grid_seeds]
        runs = [("grpo", seed, world.path(f"random-{seed}.parquet")) for seed in seeds]
        rows.append(_run(profile, world, runs, rate).assign(learning_rate=rate))
    return pd.concat(rows)[["learning_rate", "seed", "outcome"]]


def chosen_rate(table: pd.DataFrame) -> float:
    """The learning rate with the highest mean outcome, the smaller of equals."""
    means = table.groupby("learning_rate")["outcome"].mean()
    return float(means[means == means.max()].index.min())


def seeds_pilot(profile: Profile, world: Stage, rate: float) -> pd.DataFrame:
    """Rows arm, seed, outcome (percent) of `grpo`, `dapo` and `diff` on every pilot seed."""
    runs = []
    for seed in profile.study.pilot_seeds:
        shuffled = world.path(f"random-{seed}.parquet")
        runs += [("grpo", seed, shuffled), ("dapo", seed, shuffled), ("diff", seed, world.path("ascending.parquet"))]
    return _run(profile, world, runs, rate)


def paired_deviation(table: pd.DataFrame, baseline: str = "grpo") -> float:
    """Standard deviation over seeds of the difference to `baseline`, pooled over the other arms."""
    wide = table.pivot(index="seed", columns="arm", values="outcome")
    differences = wide.drop(columns=baseline).sub(wide[baseline], axis=0)
    spread = (differences - differences.mean()).to_numpy()
    return float(math.sqrt((spread**2).sum() / (spread.size - spread.shape[1])))


def seeds_needed(deviation: float, study: StudyConfig) -> int:
    """Fewest seeds whose paired t-test detects `detectable_points` with power 0.8 at alpha 0.05, within `main_seeds`.

    >>> seeds_needed(1.0, StudyConfig()), seeds_needed(0.1, StudyConfig()), seeds_needed(9.0, StudyConfig())
    (10, 8, 32)
    """
    lowest, highest = study.main_seeds
    for seeds in range(lowest, highest):
        quantiles = student.ppf(1 - ALPHA / 2, seeds - 1) + student.ppf(POWER, seeds - 1)
        if quantiles * deviation / math.sqrt(seeds) <= study.detectable_points:
            return seeds
    return highest
