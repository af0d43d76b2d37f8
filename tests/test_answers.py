"""Answers: how they are read from rows, compared under a time limit, and which golds no answer could match."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from saerl_lib.data import answers
from saerl_lib.data.answers import Checked, bare_answer, check_answers, marked_answer, read_final_answer, unreadable, worked
from saerl_lib.data.judge import read
from tests.real_files import write_jsonl

PAIRS = [
    (r"\text{(C)}", "C", True), ("C", r"\textbf{(C)}~12", True), ("C", "(D)", False), ("A", "A+1", False),
    ("(3,4]", r"x \in (3,4]", True), ("(3,4]", "[3,4]", False), (r"(0,9) \cup (9,36)", r"(9,36)\cup(0,9)", True),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2,1+\sqrt5,1-\sqrt5\}", True), ("1,3,5", "5,3,1", True), ("1,3,5", "1,3", False),
    (r"\frac{14}{3}", "14/3", True), (r"\dfrac{5}{2}", "2.5", True), (r"\frac{14}{3}", "4.6667", False),
    (r"5.4 \text{ cents}", "5.4", True), (r"18\text{ hours}", "18", True), ("Yes", "yes", True), ("Yes", "No", False),
    ("x", "", False), ("７", "7", True), (r"\$18", "18", True), ("2,000 dollars", "2000", True), ("1 1/4", "5/4", True),
    ("½", "0.5", True), ("2√3", r"2\sqrt{3}", True), ("10⁵", "100000", True), (r"10\,000", "10000", True),
    ("1 000", "1000", True), ("(−∞, 2)", r"(-\infty,2)", True), ("12 cm²", "12", True), ("60 km/h", "60", True),
    ("a + b + c", "c+b+a", True), ("1e5", "100000", True), ("(3,4]", r"3<x\le 4", True),
    ("No solution", r"\text{no solution}", True), (r"-\frac{5}{3}.", "-5/3", True), (r"28\%", "28", True),
    (r"28\%", "0.28", True), ("28", r"28\%", True), ("(1,2)", "1,2", True), ("1/2004!", "1/2006!", True), ("x=5", "5", True),
    ("1011_2", "1011", True), ("1331 and 1728", "1728", False), ("28", "0.28", False), ("12,5", "12.5", False),
    ("10 million", "10000000", False), ("east", "seat", False),
]  # fmt: skip
ENDLESS = "9^{9^{9^9}}"


def test_answers_are_compared_and_an_endless_one_is_killed() -> None:
    pairs = [(gold, answer) for gold, answer, _ in PAIRS]
    found = check_answers([*pairs[:9], (ENDLESS, "1"), *pairs[9:]], seconds=3)
    assert found.pop(9) == Checked(False, "overran")
    assert [c.outcome for c in found] == ["compared"] * len(PAIRS)
    wrong = [pair for pair, checked in zip(PAIRS, found, strict=True) if checked.equal != pair[2]]
    assert not wrong


def test_answers_that_nothing_could_match_are_named_with_the_form_that_is_read() -> None:
    fine = ["7", "1,2,3", "1 1/4", r"\$18", r"\text{(B)}", "no solution", "18 apples", r"28\%", "−7", "７３", "x²", "(1,2]",
            r"\frac{1}{2}"]  # fmt: skip
    found, unchecked = unreadable([*fine, r"\boxed{3} and \boxed{7}", "見解", "?", ENDLESS], seconds=3)
    assert not unchecked
    assert list(found) == [r"\boxed{3} and \boxed{7}", "見解", "?", ENDLESS]
    assert "3, 7 would be read" in found[r"\boxed{3} and \boxed{7}"] and "takes more than 3 s of CPU time" in found[ENDLESS]
    assert "write a number, an expression in LaTeX, a choice letter or a word" in found["?"]


def test_a_dead_worker_is_replaced_and_one_that_is_held_up_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ask, poison = answers._Worker.ask, "x^2+1"

    def held_up_or_killed(self: answers._Worker, gold: str, answer: str | None, seconds: float) -> str | None:
        self.process.send_signal(signal.SIGKILL if gold == poison else signal.SIGSTOP)
        threading.Timer(1.3, self.process.send_signal, [signal.SIGCONT]).start()
        return ask(self, gold, answer, seconds)

    monkeypatch.setattr(answers._Worker, "ask", held_up_or_killed)
    found = check_answers([("1", "1"), (poison, "1"), ("2", "2")], seconds=1)
    assert [c.outcome for c in found] == ["compared", "crashed", "compared"] and found[2].equal
    assert unreadable([poison], seconds=1) == ({}, [poison]), "a crash says nothing about the gold"
    with pytest.raises(ValueError, match="positive"):
        check_answers([("1", "1")], seconds=0)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Thus $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"), ("\\boxed{1} no, \\boxed{2}", "2"), ("Answer: $7$", "7"),
        ("\\boxed{3}\nAnswer: 4", "4"), ("Answer: \\boxed{5}", "5"), ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"), ("\\boxed{6", None),
        ("nothing", None), ("\\boxed{}", None), ("**Answer:** 7", "7"),
    ],
)  # fmt: skip
def test_final_answers_are_read(text: str, answer: str | None) -> None:
    assert read_final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\(7\)", "7"), (r"\[\frac{1}{2}\]", r"\frac{1}{2}"), (r"\[1\] and \[2\]", r"\[1\] and \[2\]"), ("$x$ or $y$",) * 2,
        ("<think>Hm.</think><answer> $7$ </answer>", "7"), ("The answer is 3.5.", "3.5"),
        ("We add.\nSo the answer is: (C)", "(C)"), ("Answer: 7", "7"),
        ("We add.\n### Final Answer\n$7$", "7"), ("The answer is clear.", "The answer is clear."), ("2 + 2 = 4 #### $4$", "4"),
    ],
)  # fmt: skip
def test_marks_of_a_gold_answer_are_taken_off(text: str, answer: str) -> None:
    assert bare_answer(text) == answer


def test_a_worked_text_is_told_from_an_answer_and_its_last_mark_is_read() -> None:
    long = "three hours and 15 minutes", r"\begin{pmatrix}1\n2\end{pmatrix}", "$it = 1 \\text{ if all of these are so, 0 else}$"
    assert not any(map(worked, (*long, "x = 1\ny = 2", "none of these sets is both open and closed", r"\boxed{7}")))
    assert worked("She buys 3 pens and then sells all of them.") and worked("We add.\nIt is 4.")
    texts = "No, \\boxed{1}.\nIt is \\boxed{2}.", "So 3\n#### 3\nThe answer is: 3", "We add.\nThe result follows."
    assert list(map(marked_answer, texts)) == ["2", "3", ""]


# Answers as rows have them, beside options, pictures and proofs.


def test_what_a_row_has_beside_its_text_is_kept_or_told(tmp_path: Path) -> None:
    row = {"instruction": "Again?", "output": "2", "system": "Be brief.", "history": [["Hi", "Yes?"]], "image": {"bytes": "x"}}
    other = row | {"image": {"bytes": None}, "output": "It is clear, as we said."}
    data = read([write_jsonl(tmp_path / "my.jsonl", [row, other])])
    said = [message["content"] for message in json.loads(data.samples[0].before)]
    assert said == ["Be brief.", "Hi", "Yes?"] and "1 picture in 'image': not read; first line 1" in data.notes
    assert [sample.answer for sample in data.samples] == ["2", "It is clear, as we said."], "an answer in a field of answers"
    proof = read([write_jsonl(tmp_path / "my.jsonl", [{"problem": f"Why, {i}?", "solution": text} for i, text in
                                                      enumerate(("$2$", "3", "It is so by what we said."))])])  # fmt: skip
    assert [sample.answer for sample in proof.samples] == ["2", "3", ""] and len(proof.aside) == 1, "a sentence is no answer"


@pytest.mark.parametrize(
    ("answers", "options", "read_as"),
    [((0, 1, 2), [1, "x", "y"], "ABC"), ((0, 1, 1), [0, 1, 2], "011"), ((1, 2, 3), [5, 6, 7], "123")],
)
def test_answers_that_are_places_of_options_are_read_as_letters(
    tmp_path: Path, answers: tuple[int, ...], options: list[Any], read_as: str
) -> None:
    """Not where every answer is an option itself, nor where one lies outside the places from 0."""
    rows = [{"question": f"Which, {i}?", "choices": options, "answer": i} for i in answers]
    data = read([write_jsonl(tmp_path / "my.jsonl", rows)])
    assert "".join(sample.answer for sample in data.samples) == read_as
    assert ("C. y" in data.samples[0].prompt) == (read_as == "ABC") == any("place of an option" in note for note in data.notes)
