"""Final answers: how they are read from a completion, compared, and checked under a time limit.

The embedded world asks for one canonical form (lowest terms, '13 r 4', '9:05'), so its reward compares strings. Real data are
checked by math-verify, behind `plain_form`, which mends what it misreads and can be mended. Its own limit is an alarm inside the
process, which a long computation in C does not hear; so `check_answers` asks a worker process, which the kernel ends when its CPU
time is up (a busy machine changes no verdict), and goes on with a new one. Multiple-choice letters, words and phrases are
compared without regard to case and marking, which math-verify does only in part. Exports carry this file as it is, so it
imports nothing of this library.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

LINE = re.compile(r"Answer:[ ]*([^\n]*)")
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
UNHEARD_SECONDS = 3600
"""math-verify's own limit, out of the way of the caller's."""
CHOICE = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf)\{)?\s*\(?([A-E])\)?\s*\}?\.?")
CHOSEN = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf)\{)?\s*\(([A-E])\)|([A-E])[.:)]\s")
WORD = re.compile(r"(?:\\(?:text|mathrm|textbf)\{)?\s*([A-Za-z]{3,}(?:[ '-][A-Za-z]+)*|[Nn]o(?: [A-Za-z]+)*|NO)\s*\}?\.?")
GSM8K = re.compile(r"####\s*(.+?)\s*$")
"""How GSM8K marks the answer at the end of a solution."""
TAGGED = re.compile(r"<answer>\s*(.+?)\s*</answer>", re.DOTALL | re.IGNORECASE)
SAID = re.compile(
    r"(?:\A|[.\n]\s*)(?:(?:\w+,? )?the (?:final )?answer is:?|[#*]*\s*(?:final )?answer\**(?::|\s*\n)\**)\s*"
    r"(?=[^\n]*[\d$\\]|\W*\w\W*\Z)([^\n]{1,60}?)[.*]*\s*\Z",
    re.IGNORECASE,
)
"""How a text says its answer at its end, in a sentence or behind 'Answer:': an expression, or one letter."""
DOLLARS = re.compile(r"(\${1,2})([^$]+)\1|\\[(\[]((?:(?!\\[()\[\]]).)+)\\[)\]]", re.DOTALL)
"""All of a text between dollars, or between LaTeX's own marks."""
NO_PROSE = re.compile(r"\$[^$]*\$|\\[(\[].*?\\[)\]]|\\begin\{(\w+\*?)\}.*?\\end\{\1\}|\\[A-Za-z]+(?:\{[^{}]*\})?", re.DOTALL)
"""Mathematics and commands of LaTeX in a text."""
SIGNS = str.maketrans({"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty "})
RAISED = re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿ]+")
ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]))")
THIN = re.compile(r"(?<=\d)\\[,; ](?=\d{3}(?!\d))")
"""A space of LaTeX between thousands."""
NUMBER = r"\d{1,3}(?:[, ]\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
MONEY = re.compile(
    rf"(-?)(?:\\?\$|[€£¥])?\s*({NUMBER})(?: (?!hundred|thousand|million|billion|trillion|dozen)[A-Za-z]{{3,}}){{0,2}}"
)
MEASURED = re.compile(rf"(-?)({NUMBER}) (?:[cdkm]?m|in|ft|kg)(?:\^\{{?[23]\}}?|/(?:h|min|s))")
"""A number with a unit that would be read as letters."""
MIXED = re.compile(r"(-?)(\d+)\s+(\d+/\d+)")
POWER = re.compile(r"(-?\d+(?:\.\d+)?)[eE]([+-]?\d+)")
INTERVAL = re.compile(r"\s*(?:\\left)?[\[(].*,.*[\])]\s*")
FUNCTION = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc|ln|log)\^\{?\d\}?)\s*(\\?[A-Za-z]+)\b")
ORDER = re.compile(r"[<>]|\\[lg]eq?(?![a-z])")
GROWS = re.compile(r"[!^]|\\(?:[dt]?binom|sum|prod|int|Gamma)")
"""What an expression must hold to be larger than it looks."""


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
    found = [(m.start(), m.group(1)) for m in LINE.finditer(completion)]
    found += [(m.start(), _balanced(completion, m.end()) or "") for m in BOX.finditer(completion)]
    answers = [answer.strip() for _, answer in sorted(found) if answer.strip()]
    if not answers:
        return None
    inner = BOX.search(answers[-1])  # 'Answer: \boxed{7}' is found once as a line and once as a box
    boxed = _balanced(answers[-1], inner.end()) if inner else None
    return boxed.strip() if boxed else answers[-1].strip("$* ")


def _balanced(text: str, start: int) -> str | None:
    """The text from `start` to the brace that closes it, None when there is none."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return None


def bare_answer(text: str) -> str:
    r"""A gold answer alone: behind the last `####` (GSM8K), in tags, said at the end, in its one box or between its dollars.

    >>> [bare_answer(t) for t in ("2 + 2 = 4\n#### 4", r"so $\boxed{\frac{1}{2}}$", "$x$", r"\boxed{1}, \boxed{2}")]
    ['4', '\\frac{1}{2}', 'x', '\\boxed{1}, \\boxed{2}']
    """
    text = text.strip()
    for mark in (GSM8K, TAGGED, SAID):
        text = next(reversed(mark.findall(text)), text).strip()
    boxes = [_balanced(text, box.end()) for box in BOX.finditer(text)]
    if len(boxes) == 1 and boxes[0]:
        return boxes[0].strip()
    dollars = DOLLARS.fullmatch(text)
    return (dollars.group(2) or dollars.group(3)).strip() if dollars else text


def marked_answer(text: str) -> str:
    """What a worked text marks as its answer, the last of several; '' without a mark."""
    marked = any(mark.search(text) for mark in (GSM8K, TAGGED, SAID))
    return bare_answer(text) if marked else read_final_answer(text) or ""


def worked(text: str) -> bool:
    r"""Whether a gold answer is a worked text: besides mathematics, lines with a word, or a sentence of eight words and a digit.

    >>> [worked(t) for t in ("3 hours 15 minutes", "We add.\n4", "x=1\ny=2", "It sells 6 pens a day on each of the next days.")]
    [False, True, False, True]
    """
    prose = NO_PROSE.sub("", text.strip())
    words = re.findall(r"[^\W\d_]{2,}", prose)
    several = "\n" in prose.strip() and any(len(word) > 2 for word in words)
    return several or (len(words) >= 8 and bool(re.search(r"\d", prose)))


def plain_form(text: str) -> str:
    r"""An answer as math-verify reads it: signs of Unicode, currencies, thousands, units, mixed numbers, spaces.

    >>> [plain_form(t) for t in ("７", "\\$1,800", "18 apples", "1 1/4", "3½", "a + b", "1e5", "10 million", r"\sin^2 t")]
    ['7', '1800', '18', '(1+1/4)', '(3+1/2)', 'a+b', '1*10^{5}', '10 million', '\\sin^2(t)']
    >>> [plain_form(t) for t in ("10⁻³", "2√(x+1)", r"10\,000", "1 000 000", "12 cm²")]
    ['10^{-3}', '2\\sqrt{x+1}', '10000', '1000000', '12']
    """
    text = RAISED.sub(lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}", text).translate(SIGNS)
    text = "".join(f" {c}" if unicodedata.decomposition(c).startswith("<fraction>") else c for c in text)
    text = unicodedata.normalize("NFKC", text).replace("\N{FRACTION SLASH}", "/").replace(r"\!", "").strip().rstrip(".,; ")
    text = THIN.sub("", ROOT.sub(r"\\sqrt{\1\2}", text))
    if money := MONEY.fullmatch(text) or MEASURED.fullmatch(text):
        return money.group(1) + re.sub("[, ]", "", money.group(2))
    if mixed := MIXED.fullmatch(text):
        return f"{mixed.group(1)}({mixed.group(2)}+{mixed.group(3)})"
    if power := POWER.fullmatch(text):
        return f"{power.group(1)}*10^{{{power.group(2)}}}"
    text = re.sub(r"(\d),(?=\d{3}(?:,\d{3})*\})", r"\1", FUNCTION.sub(r"\1(\2)", text))
    return re.sub(r"\s*([-+*/=])\s*", r"\1", text)


def equivalent(gold: str, answer: str, seconds: int = 3) -> bool:
    r"""Whether two mathematical expressions mean the same, by math-verify on `plain_form`; a check out of time is False.

    Known verdicts of math-verify 0.9.0 that stay, each tested: 28\% equals 28 and 0.28, whichever is gold; a tuple, an open
    interval and a set of the same numbers are equal; numbers closer than 1e-6 are equal, so 1/2004! equals 1/2006!; x=5 equals 5;
    units are not compared; a subscript base is read as digits (1011_2 is 1011); 12,5 is two numbers. An interval and an
    inequality are compared both ways, which it does in one alone; a subset never passes for a set.
    """
    from math_verify import parse, verify

    if all(len(text) > 3 and WORD.fullmatch(text.strip()) for text in (gold, answer)):
        return same_label(gold, answer)  # math-verify would read products of letters
    try:
        golds, answers = (parse(f"${plain_form(text)}$", parsing_timeout=seconds) for text in (gold, answer))
        if not golds or not answers:
            return False
        turned = INTERVAL.fullmatch(gold) and ORDER.search(answer)
        return verify(*((answers, golds) if turned else (golds, answers)), timeout_seconds=seconds)
    except TimeoutError:
        return False


def readable(gold: str, seconds: int = 3) -> bool:
    """Whether a gold answer is a choice, words, or an expression that math-verify parses, once, and can compare."""
    from math_verify import ExprExtractionConfig, parse, verify

    if same_label(gold, gold):
        return True
    parsed = parse(f"${plain_form(gold)}$", parsing_timeout=seconds)
    if all(isinstance(part, str) for part in parsed) or len(BOX.findall(gold)) > 1:
        return False
    if GROWS.search(gold):
        half = parse("0.5", [ExprExtractionConfig()], parsing_timeout=seconds)
        verify(parsed, half, timeout_seconds=seconds)  # what explodes does so here
    return verify(parsed, parsed, timeout_seconds=seconds)


def shape(gold: str) -> str:
    r"""A gold answer with each number as 9 and each single letter as x: the checker reads answers of one shape alike.

    Exponents and what stands before a factorial stay as they are.

    >>> shape(r"12y^10+\dfrac{305}{7}"), shape("2^{31}"), shape("5!"), shape("1,234"), shape("(1,2)")
    ('9x^10+\\frac{9}{9}', '9^{31}', '5!', '9,999', '(9,9)')
    """
    short = re.sub(r"\\left|\\right|\\,|(?<=\\)[dt](?=frac)", "", gold)
    short = re.sub(r"(?<![\\A-Za-z])[a-z](?![A-Za-z\s])", "x", short)
    size = 3 if re.search(r"\d,\d{3}", short) else 1
    return re.sub(
        r"(?<![\^\d])(?<!\^\{)(?<!\^\{-)\d+(?![\d!])", lambda m: "9" * min(size, len(m[0])) if m[0] != "0" else "0", short
    )


def unreadable(golds: Iterable[str], seconds: float = 5.0) -> tuple[dict[str, str], list[str]]:
    """Gold answer -> why no answer could earn a reward against it, and the form that would; and the golds that were not checked.

    One answer of each `shape` is checked, within `seconds` of CPU time; plain numbers, choices and words need no check. A check
    that overran or crashed is repeated alone before it counts; one that crashes twice says nothing about the gold.
    """
    shapes: dict[str, list[str]] = {}
    for gold in dict.fromkeys(golds):
        if not re.fullmatch(f"-?(?:{NUMBER})", plain_form(gold)) and not same_label(gold, gold):
            shapes.setdefault(shape(plain_form(gold)), []).append(gold)
    asked: list[tuple[str, str | None]] = [(alike[0], None) for alike in shapes.values()]
    hands = min(os.cpu_count() or 1, 4, 1 + len(asked) // 50)
    with ThreadPoolExecutor(hands) as pool:
        parts = list(pool.map(lambda hand: check_answers(asked[hand::hands], seconds), range(hands)))
    found, unchecked = dict[str, str](), list[str]()
    for number, alike in enumerate(shapes.values()):
        checked = parts[number % hands][number // hands]
        if checked.outcome != "compared":
            (checked,) = check_answers([asked[number]], seconds)
        unchecked += alike if checked.outcome == "crashed" else []
        for gold in alike if not checked.equal and checked.outcome != "crashed" else ():
            boxes = [_balanced(gold, box.end()) or "" for box in BOX.finditer(gold)]
            fix = "write a number, an expression in LaTeX, a choice letter or a word"
            fix = f"{', '.join(boxes)} would be read" if len(boxes) > 1 else fix
            slow = f"checking {gold[:60]!r} against itself takes more than {seconds:g} s of CPU time; write it out"
            found[gold] = f"{gold[:60]!r} is not read by the checker; {fix}" if checked.outcome == "compared" else slow
    return found, unchecked


class Checked(NamedTuple):
    """The outcome of one pair."""

    equal: bool
    outcome: str
    """compared; overran: its CPU time was up; crashed: the worker died. The last two count as not equal."""


def same_label(gold: str, answer: str) -> bool:
    """Whether both are the same choice letter, marked or with its option's text behind it, or the same words.

    False says nothing: math-verify decides then.
    """
    gold, answer = (" ".join(given.split()) for given in (gold, answer))
    if letter := CHOICE.fullmatch(gold):
        given = CHOICE.fullmatch(answer.upper() if len(answer) == 1 else answer) or CHOSEN.match(answer)
        return bool(given) and letter.group(1) in given.groups()
    word, given = WORD.fullmatch(gold), WORD.fullmatch(answer)
    return bool(word and given) and word.group(1).lower() == given.group(1).lower()


def right(gold: str, answer: str, seconds: int = 3) -> bool:
    """Whether an answer earns the reward: as written, as the same choice or words, or by `equivalent`."""
    return gold == answer or same_label(gold, answer) or equivalent(gold, answer, seconds)


def _start() -> subprocess.Popen[str]:
    """A process that answers line by line."""
    worker = subprocess.Popen(
        [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, encoding="utf-8",
    )  # fmt: skip
    if worker.stdout.readline() != "ready\n":  # it imports math-verify, which does not count against an answer
        worker.communicate()
        raise ChildProcessError("the checking process did not start; does `python -c 'import math_verify'` work?")
    return worker


def _ask(worker: subprocess.Popen[str], gold: str, answer: str | None, seconds: float) -> str:
    """The reply to one pair, '' when the process has ended."""
    try:
        print(json.dumps([seconds, gold, answer]), file=worker.stdin, flush=True)
    except OSError:
        return ""
    return worker.stdout.readline()


def check_answers(pairs: Iterable[tuple[str, str | None]], seconds: float) -> list[Checked]:
    """Check (gold, answer) pairs, each within `seconds` of CPU time; one worker, replaced when an answer overruns or kills it.

    Without an answer it is asked whether the gold answer is `readable`. Raises ValueError for a time that is not positive and
    ChildProcessError when no worker can be started.
    """
    if seconds <= 0:
        raise ValueError(f"seconds={seconds} must be positive")
    results: list[Checked] = []
    worker: subprocess.Popen[str] | None = None
    try:
        for gold, answer in pairs:
            worker = worker or _start()
            if reply := _ask(worker, gold, answer, seconds):
                results.append(Checked(reply == "equal\n", "compared"))
                continue
            worker.communicate()
            results.append(Checked(False, "overran" if worker.returncode == -signal.SIGPROF else "crashed"))
            worker = None
    finally:
        if worker:
            worker.kill()
            worker.communicate()
    return results


if __name__ == "__main__":
    import math_verify  # noqa: F401  its import does not count against the first answer

    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # it ends the process, also inside a long computation in C
    print("ready", flush=True)
    for request in sys.stdin:
        limit, *pair = json.loads(request)
        signal.setitimer(signal.ITIMER_PROF, limit)
        equal = readable(pair[0], UNHEARD_SECONDS) if pair[1] is None else right(*pair, UNHEARD_SECONDS)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print("equal" if equal else "different", flush=True)
