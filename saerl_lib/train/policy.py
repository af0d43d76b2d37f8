"""The base policies of the embedded world: small models pre-trained on a learner's solutions.

Every skill slips at its own rate (`saerl_lib.world.problems.SLIP_RATE`), more often at higher levels, so that RL has
skills to mend one by one.

Evaluation of a policy: attempts at problems, which of them are right, and the outcome of a run.

One long table serves all: a row an attempt (eval_set, sample_id, attempt, answer, correct), counted to a row a problem. The
world's answers have one canonical form and are compared to the letter; others by math-verify within a time limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage, get_or_compute
from saerl_lib.config import Profile, TrainConfig, sub_seed
from saerl_lib.data.answers import check_answers, read_answer, read_final_answer
from saerl_lib.data.sample import Sample
from saerl_lib.train.language_model import LanguageModelConfig, load_model
from saerl_lib.train.sampler import Sampler

POLICY = LanguageModelConfig(
    seed=11, vocabulary=640, width=128, layers=4, heads=4, feed_forward=384, steps=4000, sequences_per_step=96
)
LARGE = LanguageModelConfig(
    seed=12, vocabulary=640, width=192, layers=6, heads=6, feed_forward=576, steps=2000, sequences_per_step=96,
    learning_rate=1.33e-3,
)  # fmt: skip
"""3.2 times the parameters on half the texts, the learning rate scaled with the width; the study's second policy."""
POLICIES = {"policy": POLICY, "policy_large": LARGE}
"""Policies by the name of their folder; both have the tokenizer of the first."""
FOLDER = paths.WEIGHTS / "policy"


def policy_folder(name: str) -> Path:
    """Where the weights of a policy of `POLICIES` lie. Raises KeyError for another name."""
    if name not in POLICIES:
        raise KeyError(f"policy {name!r} does not exist; choose one of {', '.join(POLICIES)}")
    return paths.WEIGHTS / name


def load_policy() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The shipped base policy and its tokenizer."""
    return load_model(FOLDER)


def attempted(
    sampler: Sampler, name: str, samples: Sequence[Sample], attempts: int, max_tokens: int, temperature: float, seed: int,
    read: Callable[[str], str | None] = read_final_answer,
) -> pd.DataFrame:  # fmt: skip
    """One row an attempt at a set: eval_set, sample_id, attempt, answer ('' when `read` finds none), gold."""
    completions = sampler.complete([s.prompt for s in samples], attempts, max_tokens, temperature, seed)
    rows = [
        (name, sample.id, attempt, read(text) or "", sample.answer)
        for sample, texts in zip(samples, completions, strict=True)
        for attempt, text in enumerate(texts)
    ]
    return pd.DataFrame(rows, columns=["eval_set", "sample_id", "attempt", "answer", "gold"])


def judged(frame: pd.DataFrame, seconds: float) -> pd.DataFrame:
    """With columns correct and outcome: same, no answer, compared, overran or crashed. Equal pairs are compared once."""
    same, empty = frame["answer"] == frame["gold"], frame["answer"] == ""
    pairs = sorted(set(zip(frame.loc[~same & ~empty, "gold"], frame.loc[~same & ~empty, "answer"], strict=True)))
    checked = dict(zip(pairs, check_answers(pairs, seconds), strict=True))

    def verdict(gold: str, answer: str) -> tuple[bool, str]:
        if not answer:
            return False, "no answer"
        return (True, "same") if gold == answer else (checked[gold, answer].equal, checked[gold, answer].outcome)

    verdicts = [verdict(gold, answer) for gold, answer in zip(frame["gold"], frame["answer"], strict=True)]
    return frame.assign(correct=[v for v, _ in verdicts], outcome=[o for _, o in verdicts])


def counted(attempts: pd.DataFrame) -> pd.DataFrame:
    """One row a set and problem, in order of appearance: eval_set, sample_id, attempts, correct."""
    grouped = attempts.groupby(["eval_set", "sample_id"], sort=False)["correct"]
    return grouped.agg(attempts="size", correct="sum").reset_index().astype({"correct": int})


def evaluate(
    sampler: Sampler, name: str, samples: Sequence[Sample], train: TrainConfig, seed: int, step: int, full: bool
) -> pd.DataFrame:
    """An evaluation during training, `counted`, with step and full; exact answers alone are right.

    The evaluation's seed depends on the matched seed, the step and the set, not on the arm, so arms are compared on
    the same problems from the same seed (the streams part once completions differ), and training never notices.
    """
    count = train.eval_samples_full if full else train.eval_samples_small
    own = sub_seed(seed, f"evaluation-{name}-{step}-{full}")
    frame = attempted(sampler, name, samples, count, train.max_completion_tokens, train.temperature, own, read_answer)
    return counted(frame.assign(correct=frame["answer"] == frame["gold"])).assign(step=step, full=full)


def final_outcome(evaluations: pd.DataFrame, last: int = 3) -> pd.DataFrame:
    """The study's outcome of each run (ours): mean over sets of Avg@k in percent, averaged over the last `last` evaluations.

    `evaluations` has one row a run, step and problem: arm, seed, step, eval_set, attempts, correct. Returns arm, seed,
    outcome. Raises ValueError when a run has fewer evaluations.
    """
    rates = evaluations.assign(rate=100 * evaluations["correct"].astype(float) / evaluations["attempts"])
    sets = rates.groupby(["arm", "seed", "step", "eval_set"])["rate"].mean()
    curve = sets.groupby(["arm", "seed", "step"]).mean()
    counts = curve.groupby(["arm", "seed"]).size()
    if (counts < last).any():
        raise ValueError(f"run {counts.idxmin()} has {counts.min()} evaluations, the outcome averages the last {last}")
    return curve.groupby(["arm", "seed"]).tail(last).groupby(["arm", "seed"]).mean().rename("outcome").reset_index()


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
                    f"runs {first} and {run} were evaluated on different problems; delete jobs/ and train again"
                )
        if frame.duplicated(["arm", "seed", *keys]).any():
            raise ArtifactError("a problem was evaluated twice at one step; delete jobs/ and train again")
        frame.to_parquet(folder / "evaluations.parquet", index=False, compression="zstd")

    return get_or_compute(profile, "evaluation", {}, compute, (train,))
