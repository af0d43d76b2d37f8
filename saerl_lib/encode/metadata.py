"""The 26 shallow metadata features m (paper, sections 3.1 and B.1; the paper names three kinds, the list is ours)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from saerl_lib.data.sample import Sample


def _share(text: str, pattern: str) -> float:
    return len(re.findall(pattern, text)) / max(1, len(text))


def _count(text: str, pattern: str) -> float:
    return float(len(re.findall(pattern, text)))


def _numbers(text: str) -> list[int]:
    return [int(v[:15]) for v in re.findall(r"\d+", text)]


def _log_max(text: str) -> float:
    return math.log10(1 + max(_numbers(text), default=0))


def _log_mean(text: str) -> float:
    values = _numbers(text)
    return math.log10(1 + sum(values) / max(1, len(values)))


def _distinct_words(text: str) -> float:
    words = re.findall(r"\w+", text.lower())
    return len(set(words)) / max(1, len(words))


TEX = r"\\[a-zA-Z]+|[${}^_]"
OPERATORS = r"[-+*/%:]"

_BOTH: dict[str, Callable[[str], float]] = {
    "characters": lambda t: float(len(t)),
    "words": lambda t: _count(t, r"\S+"),
    "numbers": lambda t: _count(t, r"\d+"),
    "digit_ratio": lambda t: _share(t, r"\d"),
    "tex_ratio": lambda t: _share(t, TEX),
    "operators": lambda t: _count(t, OPERATORS),
    "punctuation_ratio": lambda t: _share(t, r"[.,;!?]"),
    "log10_largest_number": _log_max,
    "log10_mean_number": _log_mean,
    "distinct_word_share": _distinct_words,
    "brackets": lambda t: _count(t, r"[()\[\]]"),
}
_PROMPT: dict[str, Callable[[str], float]] = {
    "question_marks": lambda t: _count(t, r"\?"),
    "upper_case_ratio": lambda t: _share(t, r"[A-Z]"),
}
_SOLUTION: dict[str, Callable[[str], float]] = {"lines": lambda t: _count(t, r"\n") + 1.0}

FEATURES: tuple[str, ...] = (
    *(f"prompt_{name}" for name in (*_BOTH, *_PROMPT)),
    *(f"solution_{name}" for name in (*_BOTH, *_SOLUTION)),
    "solution_to_prompt_length",
)
"""Names of the 26 features, in column order."""
PROMPT_COLUMNS = [i for i, name in enumerate(FEATURES) if name.startswith("prompt_")]
"""Columns that need no solution."""
FORMULAS: dict[str, str] = {
    "characters": "number of characters",
    "words": "number of runs without white space",
    "numbers": "number of digit runs",
    "digit_ratio": "digits / characters",
    "tex_ratio": r"TeX commands and the signs $ { } ^ _ / characters",
    "operators": "number of the signs - + * / % :",
    "punctuation_ratio": "signs . , ; ! ? / characters",
    "log10_largest_number": "log10(1 + largest digit run as a number), 15 digits at the most",
    "log10_mean_number": "log10(1 + mean of the digit runs as numbers)",
    "distinct_word_share": "distinct words / words, lower case",
    "brackets": "number of ( ) [ ]",
    "question_marks": "number of ?",
    "upper_case_ratio": "capital letters A-Z / characters",
    "lines": "number of lines",
    "solution_to_prompt_length": "characters of the solution / characters of the prompt",
}
"""What each feature computes, by its name without `prompt_` or `solution_`."""


def formula_table() -> list[tuple[str, str, str]]:
    """(feature, span, formula) of the 26 features, in column order."""
    rows = []
    for name in FEATURES:
        span, _, rest = name.partition("_")
        both = name == "solution_to_prompt_length"
        rows.append((name, "prompt and solution" if both else span, FORMULAS[name if both else rest]))
    return rows


def metadata_features(samples: Sequence[Sample]) -> NDArray[np.float32]:
    """[N, 26] metadata of the samples, unscaled, columns as in `FEATURES`; NaN where a feature needs a missing solution."""
    rows = []
    for sample in samples:
        prompt, solution = sample.prompt, sample.solution
        row = [f(prompt) for f in (*_BOTH.values(), *_PROMPT.values())]
        if sample.solved:
            row += [f(solution) for f in (*_BOTH.values(), *_SOLUTION.values())]
            row.append(len(solution) / len(prompt))
        else:
            row += [math.nan] * (len(FEATURES) - len(row))
        rows.append(row)
    return np.asarray(rows, dtype=np.float32).reshape(len(samples), len(FEATURES))
