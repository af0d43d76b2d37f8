"""Step `evaluate`: kept policies on the six benchmarks, several attempts a problem (paper, section 4.1: Avg@8, Pass@8 on AIME24).

An answer counts when it is the gold one to the letter or by math-verify within its time, in a process that is killed when the
time is up. Each policy is a stage of its own, named by the hash of its run, so that another policy's evaluations stay; the
first evaluation, of the policy before training, is shared by the arms.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pandas as pd

from saerl_lib.artifacts import Stage
from saerl_lib.config import content_hash, sub_seed
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.path.data import SETS, group
from saerl_lib.paper.path.home import Home
from saerl_lib.paper.path.places import model_folder, model_identity, policy_model, samples_digest
from saerl_lib.paper.path.train import SEEDS, kept_steps
from saerl_lib.train.evaluate import attempted, counted, judged
from saerl_lib.train.run import Run
from saerl_lib.train.sampler import GenerateSampler


def evaluate_runs(home: Home, data: Stage, runs: Sequence[Run]) -> list[Stage]:
    """One stage a seed for the policy before training, one a run and kept step after it: attempts.parquet."""
    config, base = home.config, policy_model(home.config)
    stages, identity = [], model_identity(base)
    for seed in range(config.seeds):
        name = f"initial-{content_hash(identity)[:8]}-seed{seed}"
        stages.append(_stage(home, data, name, model_folder(base, "--policy"), identity, seed, 0))
    for run in runs:
        for step in kept_steps(run):
            name = f"{run.folder.name}-{step:05d}"
            stages.append(_stage(home, data, name, run.kept(step), f"{run.key}@{step}", run.seed % SEEDS, step))
    return stages


def _stage(home: Home, data: Stage, name: str, folder: Path, policy: str, seed: int, step: int) -> Stage:
    config, sets = home.config, {set_name: group(data, f"eval_{set_name}") for set_name in SETS}
    settings = {
        "policy": policy, "sets": {key: samples_digest(samples) for key, samples in sets.items()},
        "attempts": config.eval_samples, "max_tokens": config.max_response_tokens, "temperature": config.eval_temperature,
        "chat": config.chat,
        "seconds": config.answer_seconds, "bf16": config.bf16, "sequences": config.eval_sequences,
        "seed": sub_seed(config.seed, f"evaluation-{seed}-{step}"),
    }  # fmt: skip

    def compute(out: Path) -> None:
        sampler = GenerateSampler(folder, config.bf16, config.chat, config.eval_sequences)
        how = (config.eval_samples, config.max_response_tokens, config.eval_temperature)
        answers = [attempted(sampler, key, samples, *how, sub_seed(settings["seed"], key)) for key, samples in sets.items()]
        rows = judged(pd.concat(answers, ignore_index=True), config.answer_seconds)
        rows.drop(columns="gold").assign(step=step).to_parquet(out / "attempts.parquet", index=False)

    return home.stage("evaluate", f"evaluation-{name}", settings, compute)


def evaluations(stages: Sequence[Stage], runs: Sequence[Run], config: PaperConfig) -> pd.DataFrame:
    """One row a run, step and problem, in the study's columns: arm, seed, step, eval_set, sample_id, attempts, correct.

    The evaluation before training stands in every arm of its seed. Stages are those of `evaluate_runs`.
    """

    @cache
    def read(place: int) -> pd.DataFrame:
        frame = pd.read_parquet(stages[place].path("attempts.parquet"))
        return counted(frame).assign(step=frame["step"].iloc[0])

    parts, place = [], config.seeds
    for run in runs:
        own = [read(run.seed % SEEDS)]
        for _ in kept_steps(run):
            own.append(read(place))
            place += 1
        parts.append(pd.concat(own).assign(arm=run.arm, seed=run.seed % SEEDS))
    return pd.concat(parts, ignore_index=True)
