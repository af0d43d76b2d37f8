"""Sampled answers to problems, and which of them are right: for evaluations, and for the base policy's pass rates."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from saerl_lib.config import sub_seed
from saerl_lib.data.answers import check_answers, read_final_answer
from saerl_lib.data.sample import Sample
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.path.generate import Policy


def attempted(
    policy: Policy, name: str, samples: Sequence[Sample], attempts: int, temperature: float, sequences: int, config: PaperConfig,
    seed: int,
) -> pd.DataFrame:  # fmt: skip
    """One row an attempt at a set: eval_set, sample_id, attempt, answer ('' when none was read), gold."""
    completions = policy.complete(
        [s.prompt for s in samples], attempts, config.max_response_tokens, temperature, sequences,
        sub_seed(seed, name), config.chat,
    )  # fmt: skip
    rows = [
        (name, sample.id, attempt, read_final_answer(text) or "", sample.answer)
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
