"""Final answers: how they are read from a completion, compared, and checked under a time limit.

The embedded world asks for one canonical form (lowest terms, '13 r 4', '9:05'), so its reward compares strings. Real data are
checked by math-verify. Its own limit is an alarm inside the process, which a long computation in C does not hear; so
`check_answers` waits for a worker process, kills it when the time is up, and goes on with a new one. Multiple-choice letters
and words are compared without regard to case and marking, which math-verify does only in part. Exports carry this file as it
is, so it imports nothing of this library.
"""

from __future__ import annotations

import json
import re
import select
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO

LINE = re.compile(r"Answer:[ ]*([^\n]*)")
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
START_SECONDS = 60.0
"""How long a worker may take to import math-verify; it does not count against the answer."""
UNHEARD_SECONDS = 3600
"""math-verify's own limit, out of the way of the caller's."""
CHOICE = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf)\{)?\s*\(?([A-E])\)?\s*\}?\.?")
CHOSEN = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf)\{)?\s*\(([A-E])\)|([A-E])[.:)]\s")
WORD = re.compile(r"(?:\\(?:text|mathrm)\{)?\s*([A-Za-z]{3,}|[Nn]o|NO)\s*\}?\.?")


def read_answer(completion: str) -> str | None:
    """The text after the last 'Answer:', or None when there is none.

    >>> read_answer("3+4=7\\nAnswer: 7")
    '7'
    """
    found = LINE.findall(completion)
    return found[-1].strip() if found else None


def reward(completion: str, gold: str) -> float:
    """1.0 when the completion's final answer is the gold answer in canonical form, else 0.0."""
    return float(read_answer(completion) == gold)


def read_final_answer(completion: str) -> str | None:
    r"""The last `\boxed{...}`, braces balanced, or text behind `Answer:`, whichever comes later; None without one.

    A box that is not closed, as in a completion that was cut, is no answer.

    >>> read_final_answer("So \\boxed{\\frac{1}{2}}."), read_final_answer("Answer: 7"), read_final_answer("\\boxed{1")
    ('\\frac{1}{2}', '7', None)
    """
    found = [(m.start(), m.group(1).strip()) for m in LINE.finditer(completion)]
    for match in BOX.finditer(completion):
        content = _balanced(completion, match.end())
        if content is not None:
            found.append((match.start(), content.strip()))
    answers = [answer for _, answer in sorted(found) if answer]
    if not answers:
        return None
    inner = BOX.search(answers[-1])  # 'Answer: \boxed{7}' is found once as a line and once as a box
    boxed = _balanced(answers[-1], inner.end()) if inner else None
    return boxed.strip() if boxed else answers[-1].strip("$ ")


def _balanced(text: str, start: int) -> str | None:
    """The text from `start` to the brace that closes it, None when there is none."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return None


def equivalent(gold: str, answer: str, seconds: int = 3) -> bool:
    """Whether two mathematical expressions mean the same, by math-verify; a check that runs out of time is False.

    >>> equivalent("1/2", "0.5")
    True
    """
    from math_verify import parse, verify

    try:
        golds = parse(f"${gold}$", parsing_timeout=seconds)
        answers = parse(f"${answer}$", parsing_timeout=seconds)
        return bool(golds and answers) and verify(golds, answers, timeout_seconds=seconds)
    except TimeoutError:
        return False


@dataclass(frozen=True)
class Checked:
    """The outcome of one pair."""

    equal: bool
    """Whether the answer means the same as the gold answer."""
    outcome: str
    """compared; overran: the time was up; crashed: the worker died of it. The last two count as not equal."""


def same_label(gold: str, answer: str) -> bool:
    r"""Whether both are the same choice letter, marked or with its option's text behind it, or the same word.

    False says nothing: math-verify decides then.

    >>> same_label("C", r"\textbf{(C)}~12"), same_label("True", "true"), same_label("C", "(D)"), same_label("A", "A+1")
    (True, True, False, False)
    """
    gold, answer = gold.strip(), answer.strip()
    if letter := CHOICE.fullmatch(gold):
        given = CHOICE.fullmatch(answer.upper() if len(answer) == 1 else answer) or CHOSEN.match(answer)
        return bool(given) and letter.group(1) in given.groups()
    word, given = WORD.fullmatch(gold), WORD.fullmatch(answer)
    return bool(word and given) and word.group(1).lower() == given.group(1).lower()


class _Worker:
    """One process that answers line by line."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, encoding="utf-8",
        )  # fmt: skip
        if self.receive(START_SECONDS) != "ready\n":
            self.kill()
            raise RuntimeError("the checking process did not start; does `python -c 'import math_verify'` work?")

    def receive(self, seconds: float) -> str | None:
        """The next line, '' when the process has ended, None when the time is up."""
        replies = self.process.stdout
        return replies.readline() if replies and select.select([replies], [], [], seconds)[0] else None

    def ask(self, gold: str, answer: str, seconds: float) -> str | None:
        """The reply to one pair, as `receive`."""
        try:
            print(json.dumps([gold, answer]), file=self.process.stdin, flush=True)
        except OSError:
            return ""
        return self.receive(seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def check_answers(pairs: Iterable[tuple[str, str]], seconds: float) -> list[Checked]:
    """Check (gold, answer) pairs, each within `seconds`; one worker process, replaced when an answer overruns or kills it.

    Raises ValueError for a time that is not positive and RuntimeError when no worker can be started.
    """
    if seconds <= 0:
        raise ValueError(f"seconds={seconds} must be positive")
    results: list[Checked] = []
    worker: _Worker | None = None
    try:
        for gold, answer in pairs:
            worker = worker or _Worker()
            reply = worker.ask(gold, answer, seconds)
            results.append(Checked(reply == "equal\n", "compared" if reply else "overran" if reply is None else "crashed"))
            if not reply:
                worker.kill()
                worker = None
    finally:
        if worker is not None:
            worker.kill()
    return results


def _serve(requests: IO[str], replies: IO[str]) -> None:
    import math_verify  # noqa: F401  its import does not count against the first answer

    print("ready", file=replies, flush=True)
    for line in requests:
        gold, answer = json.loads(line)
        equal = same_label(gold, answer) or equivalent(gold, answer, UNHEARD_SECONDS)
        print("equal" if equal else "different", file=replies, flush=True)


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
