"""Rows of the published data sets as `Sample` records: pure functions of one row, written against the published schemas.

Field names are those of the data set cards and, for PRM800K, of OpenAI's README. Each function takes the row and a number
that serves as id where the set has none. A malformed row raises DataError with the row, the field and the fix.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from saerl_lib.data.schema import DataError, Sample
from saerl_lib.paper.steps import prm800k

Row = Mapping[str, Any]
Reader = Callable[[Row, int], Sample]

NO_ANSWER = frozenset({"proof", "notfound", "not found"})
"""NuminaMath-1.5's words for a problem without a final answer that can be checked."""
THINKING = "</think>"
GSM8K_ANSWER = re.compile(r"####\s*(.+?)\s*$")


def text(row: Row, name: str, where: str, needed: bool = True) -> str:
    """A field as text; '' when it is absent or null and not needed.

    Raises DataError when it is needed and missing, empty, or no text.
    """
    value = row.get(name)
    if value is None and not needed:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: field {name!r} is {type(value).__name__}, not text; is this the published schema?")
    if needed and not value.strip():
        raise DataError(f"{where}: field {name!r} is empty; remove the row")
    return value.strip()


def number(row: Row, name: str, where: str) -> float:
    """A field as a number, NaN when it is absent, null or below 0; text such as 'Level 3' counts by its number."""
    value = row.get(name)
    if isinstance(value, str):
        found = re.search(r"\d+(\.\d+)?", value)
        value = float(found.group()) if found else None
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: field {name!r} is {value!r}, not a number; leave it out when unknown")
    return float(value) if value >= 0 else math.nan


def lines(solution: str) -> tuple[str, ...]:
    """A worked solution as steps, one a line that holds something."""
    return tuple(line for line in solution.split("\n") if line.strip())


def _sample(
    source: str, name: object, prompt: str, answer: str, solution: str, topic: str = "", level: float = math.nan
) -> Sample:
    steps = lines(solution)
    return Sample(f"{source}-{name}", prompt, steps, answer, topic, level, source, solved=bool(steps))


def deepmath(row: Row, index: int, solution_index: int = 1) -> Sample:
    """zwhe99/DeepMath-103K: question, final_answer, difficulty, topic ('A -> B -> C'), r1_solution_1 to r1_solution_3.

    The thinking before `</think>` is left out where the solution marks its end; the paper does not say what it reads.
    """
    where = f"deepmath row {index}"
    solution = text(row, f"r1_solution_{solution_index}", where, needed=False).rpartition(THINKING)[2]
    answer, topic = text(row, "final_answer", where), text(row, "topic", where, needed=False)
    name = row.get("id", index)
    return _sample("deepmath", name, text(row, "question", where), answer, solution, topic, number(row, "difficulty", where))


def numinamath(row: Row, index: int) -> Sample:
    """AI-MO/NuminaMath-1.5: problem, solution, answer, problem_type, problem_is_valid, solution_is_valid, source, synthetic.

    An answer 'proof' or 'notfound' becomes ''. `flaw` is 'problem' or 'solution' where the set calls it not valid.
    """
    where = f"numinamath row {index}"
    answer = text(row, "answer", where, needed=False)
    sample = _sample(
        "numinamath", index, text(row, "problem", where), "" if answer.lower() in NO_ANSWER else answer,
        text(row, "solution", where, needed=False), text(row, "problem_type", where, needed=False),
    )  # fmt: skip
    judged = [part for part in ("problem", "solution") if text(row, f"{part}_is_valid", where, needed=False) == "No"]
    return dataclasses.replace(sample, flaw=judged[0] if judged else "")


def deepscaler(row: Row, index: int) -> Sample:
    """agentica-org/DeepScaleR-Preview-Dataset: problem, answer, solution; a few rows have no answer.

    `difficulty` is 1 minus the share of correct attempts where the row carries `pass_rate`, as the local copy does.
    """
    where = f"deepscaler row {index}"
    answer = row.get("answer")
    shown = str(answer) if isinstance(answer, int | float) else text(row, "answer", where, needed=False)
    solution, rate = text(row, "solution", where, needed=False), number(row, "pass_rate", where)
    return _sample("deepscaler", row.get("id", index), text(row, "problem", where), shown, solution, level=1.0 - rate)


def gsm8k(row: Row, index: int) -> Sample:
    """openai/gsm8k, configuration main: question, answer (worked lines, then '#### 18')."""
    where = f"gsm8k row {index}"
    written = text(row, "answer", where)
    found = GSM8K_ANSWER.search(written)
    if found is None:
        raise DataError(f"{where}: field 'answer' has no line '#### ...'; is this openai/gsm8k?")
    answer = found.group(1).replace(",", "")
    return _sample("gsm8k", row.get("id", index), text(row, "question", where), answer, written[: found.start()])


def math500(row: Row, index: int) -> Sample:
    """HuggingFaceH4/MATH-500: problem, solution, answer, subject, level (1 to 5), unique_id."""
    where = f"math500 row {index}"
    return _sample(
        "math500", row.get("unique_id") or index, text(row, "problem", where), text(row, "answer", where),
        text(row, "solution", where, needed=False), text(row, "subject", where, needed=False), number(row, "level", where),
    )  # fmt: skip


def aime24(row: Row, index: int) -> Sample:
    """HuggingFaceH4/aime_2024: id, problem, solution, answer ('033' as text), url, year."""
    where = f"aime24 row {index}"
    solution = text(row, "solution", where, needed=False)
    return _sample("aime24", row.get("id", index), text(row, "problem", where), text(row, "answer", where), solution)


def question_and_answer(source: str) -> Reader:
    """Reader of a set of question and answer alone: math-ai/amc23 (with id) and math-ai/minervamath."""

    def read(row: Row, index: int) -> Sample:
        where, answer = f"{source} row {index}", row.get("answer")
        whole = isinstance(answer, float) and answer.is_integer()
        shown = str(int(answer) if whole else answer) if isinstance(answer, int | float) else text(row, "answer", where)
        return _sample(source, row.get("id", index), text(row, "question", where), shown, "")

    return read


def olympiadbench(row: Row, index: int) -> Sample:
    """Hothan/OlympiadBench, OE_TO_maths_en_COMP: id, question, context, solution and final_answer (lists), subfield, unit.

    Several final answers are joined by commas; a context stands before the question.
    """
    where = f"olympiadbench row {index}"
    answers = row.get("final_answer")
    if not isinstance(answers, list) or not answers:
        raise DataError(f"{where}: field 'final_answer' is no list with an entry; is this OE_TO_maths_en_COMP?")
    worked = row.get("solution") or [""]
    prompt = "\n".join(filter(None, (text(row, "context", where, needed=False), text(row, "question", where))))
    topic = text(row, "subfield", where, needed=False)
    return _sample("olympiadbench", row.get("id", index), prompt, ", ".join(map(str, answers)), str(worked[0]), topic)


READERS: dict[str, Reader] = {
    "deepmath": deepmath,
    "numinamath": numinamath,
    "prm800k": prm800k,
    "deepscaler": deepscaler,
    "aime24": aime24,
    "amc23": question_and_answer("amc23"),
    "gsm8k": gsm8k,
    "math500": math500,
    "minerva": question_and_answer("minerva"),
    "olympiadbench": olympiadbench,
}
"""Reader by the name of `saerl_lib.paper.hub.HubData`."""
