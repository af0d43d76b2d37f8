"""Reading and checking final answers.

The embedded world asks for one canonical form (lowest terms, '13 r 4', '9:05'), so its check compares strings.
Real data are checked by math-verify under a time limit.
"""

from __future__ import annotations

import re

from math_verify import parse, verify

ANSWER_LINE = re.compile(r"Answer:[ ]*([^\n]*)")


def read_answer(completion: str) -> str | None:
    """The text after the last 'Answer:', or None when there is none.

    >>> read_answer("3+4=7\\nAnswer: 7")
    '7'
    """
    found = ANSWER_LINE.findall(completion)
    return found[-1].strip() if found else None


def reward(completion: str, gold: str) -> float:
    """1.0 when the completion's final answer is the gold answer in canonical form, else 0.0."""
    return float(read_answer(completion) == gold)


def equivalent(gold: str, answer: str, seconds: int = 3) -> bool:
    """Whether two mathematical expressions mean the same, by math-verify; a check that runs out of time is False.

    >>> equivalent("1/2", "0.5")
    True
    """
    try:
        golds = parse(f"${gold}$", parsing_timeout=seconds)
        answers = parse(f"${answer}$", parsing_timeout=seconds)
        return bool(golds and answers) and verify(golds, answers, timeout_seconds=seconds)
    except TimeoutError:
        return False
