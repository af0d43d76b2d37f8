"""The 26 shallow metadata features m (paper, sections 3.1 and B.1; the paper names three kinds, the list is ours)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from saerl_lib.data.sample import Sample

TEX = r"\\[a-zA-Z]+|[${}^_]"


def _share(pattern: str) -> Callable[[str], float]:
    return lambda text: len(re.findall(pattern, text)) / max(1, len(text))


def _count(pattern: str) -> Callable[[str], float]:
    return lambda text: float(len(re.findall(pattern, text)))


def _numbers(text: str) -> list[int]:
    return [int(v[:15]) for v in re.findall(r"\d+", text)]


def _log_mean(text: str) -> float:
    values = _numbers(text)
    return math.log10(1 + sum(values) / max(1, len(values)))


def _distinct_words(text: str) -> float:
    words = re.findall(r"\w+", text.lower())
    return len(set(words)) / max(1, len(words))


_BOTH: dict[str, tuple[Callable[[str], float], str]] = {
    "characters": (lambda text: float(len(text)), "number of characters"),
    "words": (_count(r"\S+"), "number of runs without white space"),
    "numbers": (_count(r"\d+"), "number of digit runs"),
    "digit_ratio": (_share(r"\d"), "digits / characters"),
    "tex_ratio": (_share(TEX), r"TeX commands and the signs $ { } ^ _ / characters"),
    "operators": (_count(r"[-+*/%:]"), "number of the signs - + * / % :"),
    "punctuation_ratio": (_share(r"[.,;!?]"), "signs . , ; ! ? / characters"),
    "log10_largest_number": (lambda text: math.log10(1 + max(_numbers(text), default=0)),
                             "log10(1 + largest digit run as a number), 15 digits at the most"),
    "log10_mean_number": (_log_mean, "log10(1 + mean of the digit runs as numbers)"),
    "distinct_word_share": (_distinct_words, "distinct words / words, lower case"),
    "brackets": (_count(r"[()\[\]]"), "number of ( ) [ ]"),
}  # fmt: skip
"""Feature of either side -> how it is computed, and that in words."""
_PROMPT = _BOTH | {
    "question_marks": (_count(r"\?"), "number of ?"),
    "upper_case_ratio": (_share(r"[A-Z]"), "capital letters A-Z / characters"),
}
_SOLUTION = _BOTH | {"lines": (lambda text: text.count("\n") + 1.0, "number of lines")}
_SIDES = {"prompt": _PROMPT, "solution": _SOLUTION}

FEATURES: tuple[str, ...] = (*(f"{side}_{name}" for side in _SIDES for name in _SIDES[side]), "solution_to_prompt_length")
"""Names of the 26 features, in column order."""
PROMPT_COLUMNS = [i for i, name in enumerate(FEATURES) if name.startswith("prompt_")]
"""Columns that need no solution."""


def formula_table() -> list[tuple[str, str, str]]:
    """(feature, span, formula) of the 26 features, in column order."""
    rows = [(f"{side}_{name}", side, formula) for side in _SIDES for name, (_, formula) in _SIDES[side].items()]
    return [*rows, (FEATURES[-1], "prompt and solution", "characters of the solution / characters of the prompt")]


def metadata_features(samples: Sequence[Sample]) -> NDArray[np.float32]:
    """[N, 26] metadata of the samples, unscaled, columns as in `FEATURES`; NaN where a feature needs a missing solution."""
    rows = []
    for sample in samples:
        prompt, solution = sample.prompt, sample.solution
        row = [of(prompt) for of, _ in _PROMPT.values()]
        if sample.solved:
            row += [of(solution) for of, _ in _SOLUTION.values()]
            row.append(len(solution) / len(prompt))
        else:
            row += [math.nan] * (len(FEATURES) - len(row))
        rows.append(row)
    return np.asarray(rows, dtype=np.float32).reshape(len(samples), len(FEATURES))
