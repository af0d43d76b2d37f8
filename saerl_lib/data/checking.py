"""Answers checked by math-verify in a worker process that is killed when one of them overruns its time.

math-verify's own limit is an alarm inside the process, which a long computation in C does not hear. Here the caller waits,
kills the worker when the time is up, and goes on with a new one. Multiple-choice letters and words are compared without
regard to case and marking, which math-verify does only in part.
"""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO

from saerl_lib import paths

START_SECONDS = 60.0
"""How long a worker may take to import math-verify; it does not count against the answer."""
UNHEARD_SECONDS = 3600
"""math-verify's own limit, out of the way of the caller's."""
CHOICE = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf)\{)?\s*\(?([A-E])\)?\s*\}?\.?")
CHOSEN = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf)\{)?\s*\(([A-E])\)|([A-E])[.:)]\s")
WORD = re.compile(r"(?:\\(?:text|mathrm)\{)?\s*([A-Za-z]{3,}|[Nn]o|NO)\s*\}?\.?")


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
        path = os.pathsep.join(filter(None, (str(paths.ROOT), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "saerl_lib.data.checking"], env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
        )  # fmt: skip
        self.replies: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True).start()
        if self.receive(START_SECONDS) != "ready\n":
            self.kill()
            raise RuntimeError("the checking process did not start; does `python -c 'import math_verify'` work?")

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            self.replies.put(line)
        self.replies.put("")

    def receive(self, seconds: float) -> str | None:
        """The next line, '' when the process has ended, None when the time is up."""
        try:
            return self.replies.get(timeout=seconds)
        except queue.Empty:
            return None

    def ask(self, gold: str, answer: str, seconds: float) -> str | None:
        """The reply to one pair, as `receive`."""
        try:
            self.process.stdin.write(json.dumps([gold, answer]) + "\n")  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
        except OSError:
            return ""
        return self.receive(seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass


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
            if reply:
                results.append(Checked(reply == "equal\n", "compared"))
                continue
            results.append(Checked(False, "overran" if reply is None else "crashed"))
            worker.kill()
            worker = None
    finally:
        if worker is not None:
            worker.kill()
    return results


def _serve(requests: IO[str], replies: IO[str]) -> None:
    from saerl_lib.data.answers import equivalent

    print("ready", file=replies, flush=True)
    for line in requests:
        gold, answer = json.loads(line)
        equal = same_label(gold, answer) or equivalent(gold, answer, UNHEARD_SECONDS)
        print("equal" if equal else "different", file=replies, flush=True)


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
