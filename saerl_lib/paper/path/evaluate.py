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
from saerl_lib.paper.path.answers import attempted, judged
from saerl_lib.paper.path.data import SETS, group
from saerl_lib.paper.path.generate import Policy
from saerl_lib.paper.path.home import Home, code_of
from saerl_lib.paper.path.places import model_folder, model_identity, policy_model, samples_digest
from saerl_lib.paper.path.train import Run

CODE = code_of(
    "paper/path/evaluate.py", "paper/path/answers.py", "paper/path/generate.py", "paper/path/prompts.py", "own/model.py",
    "data/answers.py",
)  # fmt: skip


def evaluate_runs(home: Home, data: Stage, runs: Sequence[Run]) -> list[Stage]:
    """One stage a seed for the policy before training, one a run and kept step after it: attempts.parquet."""
    config, base = home.config, policy_model(home.config)
    stages, identity = [], model_identity(base)
    for seed in range(config.seeds):
        name = f"initial-{content_hash(identity)[:8]}-seed{seed}"
        stages.append(_stage(home, data, name, model_folder(base, "--policy"), identity, seed, 0))
    for run in runs:
        for step, folder in run.policies(config).items():
            stages.append(_stage(home, data, f"{run.folder.name}-{step:05d}", folder, f"{run.key}@{step}", run.seed, step))
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
        found = Policy(folder, config.bf16)
        how = (config.eval_samples, config.eval_temperature, config.eval_sequences, config, settings["seed"])
        answers = [attempted(found, key, samples, *how) for key, samples in sets.items()]
        rows = judged(pd.concat(answers, ignore_index=True), config.answer_seconds)
        rows.drop(columns="gold").assign(step=step).to_parquet(out / "attempts.parquet", index=False)

    return home.stage("evaluate", f"evaluation-{name}", CODE, settings, compute)


def evaluations(stages: Sequence[Stage], runs: Sequence[Run], config: PaperConfig) -> pd.DataFrame:
    """One row a run, step and problem, in the study's columns: arm, seed, step, eval_set, sample_id, attempts, correct.

    The evaluation before training stands in every arm of its seed. Stages are those of `evaluate_runs`.
    """

    @cache
    def counted(place: int) -> pd.DataFrame:
        frame = pd.read_parquet(stages[place].path("attempts.parquet"))
        grouped = frame.groupby(["step", "eval_set", "sample_id"], sort=False)["correct"]
        return grouped.agg(attempts="size", correct="sum").reset_index()

    parts, place = [], config.seeds
    for run in runs:
        own = [counted(run.seed)]
        for _ in run.policies(config):
            own.append(counted(place))
            place += 1
        parts.append(pd.concat(own).assign(arm=run.arm, seed=run.seed))
    return pd.concat(parts, ignore_index=True).astype({"correct": int})
