"""Evaluation of a policy on the six sets, with a random stream that training never notices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib.artifacts import ArtifactError, Stage, get_or_compute
from saerl_lib.config import Profile, TrainConfig, WorldConfig, sub_seed
from saerl_lib.data.sample import Sample
from saerl_lib.rl.generation import correct_attempts


def evaluate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    sets: Mapping[str, Sequence[Sample]],
    train: TrainConfig,
    world: WorldConfig,
    seed: int,
    step: int,
    full: bool,
) -> list[dict[str, Any]]:
    """One row a problem: step, eval_set, full, sample_id, attempts, correct.

    The evaluation's seed depends on the matched seed, the step and the set, not on the arm, so arms are compared on
    the same problems from the same seed (the streams part once completions differ).
    """
    attempts = train.eval_samples_full if full else train.eval_samples_small
    rows: list[dict[str, Any]] = []
    for name, samples in sets.items():
        chosen = samples if full else samples[: world.eval_problems_small]
        marks = correct_attempts(
            model,
            tokenizer,
            chosen,
            attempts,
            train.max_completion_tokens,
            train.temperature,
            sub_seed(seed, f"evaluation-{name}-{step}-{full}"),
        )
        rows += [
            {"step": step, "eval_set": name, "full": full, "sample_id": s.id, "attempts": attempts, "correct": int(m.sum())}
            for s, m in zip(chosen, marks, strict=True)
        ]
    return rows


def evaluation_stage(profile: Profile, train: Stage) -> Stage:
    """The evaluations of all runs, one row a run, step and problem, checked to be complete: evaluations.parquet.

    Raises ArtifactError when two runs were not evaluated at the same steps on the same problems.
    """

    def compute(folder: Path) -> None:
        frame = pd.read_parquet(train.path("evaluations.parquet"))
        keys = ["step", "eval_set", "full", "sample_id", "attempts"]
        seen = {run: set(part[keys].itertuples(index=False, name=None)) for run, part in frame.groupby(["arm", "seed"])}
        first = next(iter(seen))
        for run, problems in seen.items():
            if problems != seen[first]:
                raise ArtifactError(
                    f"runs {first} and {run} were evaluated on different problems; delete their jobs and train again"
                )
        if frame.duplicated(["arm", "seed", *keys]).any():
            raise ArtifactError("a problem was evaluated twice at one step; delete the jobs and train again")
        frame.to_parquet(folder / "evaluations.parquet", index=False, compression="zstd")

    return get_or_compute(profile, "evaluation", "rl", {}, compute, (train,))
