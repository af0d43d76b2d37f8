"""PRM800K: solutions with a rating for each step, in the schema of OpenAI's README (openai/prm800k).

A row holds question {problem, ground_truth_answer, ...} and label {steps, finish_reason}; a step holds completions
[{text, rating}], chosen_completion (an index or null) and human_completion (null, or what the labeller wrote).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saerl_lib.data.schema import DataError, Sample

ANSWER_HEADING = "# Answer"
UNJUDGED = ("bad_problem", "give_up")
"""Values of finish_reason after which the labels judge no solution; such rows carry them as `flaw`."""


def _human_text(written: object) -> str:
    return str(written.get("text") or "") if isinstance(written, Mapping) else str(written or "")


def judged_step(step: Mapping[str, Any], where: str) -> tuple[str, int]:
    """(text, rating) of the solution's own step.

    The chosen completion, with its rating; else what the labeller wrote, which counts as +1; else, where labelling stopped
    at an error, the first completion, which is the model's own. A rating of null counts as 0.

    >>> judged_step({"completions": [{"text": "2+2=5", "rating": -1}], "chosen_completion": None}, "row 0")
    ('2+2=5', -1)
    """
    chosen, human = step.get("chosen_completion"), _human_text(step.get("human_completion"))
    if chosen is None and human:
        return human, 1
    completions = step.get("completions") or []
    index = 0 if chosen is None else chosen
    if not 0 <= index < len(completions):
        raise DataError(f"{where}: chosen_completion {chosen} names none of {len(completions)} completions; the row is damaged")
    rating = completions[index].get("rating") or 0
    if rating not in (-1, 0, 1):
        raise DataError(f"{where}: rating {rating!r} is none of -1, 0, +1")
    return str(completions[index].get("text") or ""), int(rating)


def split_answer(step: str) -> tuple[str, str]:
    """(work, answer) of a step that may end in '# Answer' and the answer; answer '' when it does not.

    >>> split_answer("So it is 5.\\n\\n# Answer\\n\\n5")
    ('So it is 5.', '5')
    """
    work, heading, answer = step.rpartition(ANSWER_HEADING)
    return (work.strip(), answer.strip()) if heading else (step.strip(), "")


def prm800k(row: Mapping[str, Any], index: int) -> Sample:
    """One labelled solution.

    `steps` are the judged steps, '# Answer' cut from the last; `answer` is what the solution itself answers, taken from
    pre_generated_answer where labelling stopped before, so that an empty answer line gives no error away. `step_labels`
    holds one rating a judged step, so their mean is Table 3's label; the answer line belongs to the last step and has none
    of its own. `flaw` is finish_reason unless that is 'solution'.

    Raises DataError for a row without the published structure or without a step.
    """
    where = f"prm800k row {index}"
    question, label = row.get("question"), row.get("label")
    if not isinstance(question, Mapping) or not isinstance(label, Mapping) or not question.get("problem"):
        raise DataError(f"{where}: expected question with problem, and label; is this openai/prm800k's own schema?")
    judged = [judged_step(step, where) for step in label.get("steps") or []]
    reason = str(label.get("finish_reason") or "")
    if not judged and reason not in UNJUDGED:
        raise DataError(f"{where}: no step was labelled; remove the row")
    parts = [split_answer(step) for step, _ in judged]
    return Sample(
        id=f"prm800k-{index}",
        prompt=str(question["problem"]).strip(),
        steps=tuple(work for work, _ in parts if work),
        answer=(parts[-1][1] if parts else "") or str(question.get("pre_generated_answer") or ""),
        source="prm800k",
        flaw="" if reason == "solution" else reason,
        step_labels=tuple(rating for _, rating in judged),
        solved=bool(parts),
    )
