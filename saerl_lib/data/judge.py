"""One judge of what a row holds: a sample, or the reason why it is none; and `read`, which holds a whole source.

`judge` names row, field and fix. Rows may have the schemas of the trainers: chat messages, answers inside other fields (`NAMES`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import decimal
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saerl_lib.data.answers import GSM8K, bare_answer, marked_answer, worked
from saerl_lib.data.rows import ABSENT, Row, Source, field_of, filled_fields, kind_named, rows, unfolded
from saerl_lib.data.sample import DataError, Dataset, Dropped, Judged, Sample, letters_of, lines, number_of
from saerl_lib.data.values import MAX_ID, BadRow, Chat, chat, identifier, plain, text
from saerl_lib.settings import DEFAULTS, Fields, RowFields

NAMES = {
    "id": ("id", "sample_id", "unique_id", "uuid", "extra_info.sample_id", "extra_info.id"),
    "prompt": ("responses_create_params.input", "question", "problem", "prompt", "messages", "conversations", "input", "query",
               "instruction", "context_messages", "problem_statement", "problem_text", "question_text", "question_stem",
               "user_prompt"),
    "answer": ("answer", "ground_truth", "reward_model.ground_truth", "reward_spec.ground_truth",
               "final_answer", "expected_answer", "reference_answer",
               "gt_answer", "ground_truth_answer", "gold_answer", "correct_answer", "solution_answer", "answer_key", "gold", "gt",
               "gts", "target", "targets", "answers", "reference", "output", "correct_option", "correct_choice", "cop", "correct",
               "label"),
    "solution": ("solution", "worked_solution", "extra_info.solution", "solutions", "gold_standard_solution",
                 "generated_solution", "rationale", "response", "completion"),
    "topic": ("subject", "topic", "problem_type", "type", "extra_info.subject"),
}
"""What a field may be called where it is not named (`resolve_fields`), however it is spelled. A dot leads into an object."""
LEADS = ("context", "passage", "article", "story", "puzzle", "premise", "body")
"""Fields whose text leads to the question of the row, however they are spelled."""
OPTIONS = ("options", "choices", "answers", "endings")
"""Fields of options, which belong to the question where the answer names one of them."""
PLACES = ("correct_option", "correct_choice", "cop", "correct")
"""Fields of answers that name an option, where rows have some."""
COLUMNS = ("{}", "op{}", "option{}", "choice{}")
"""Names, without signs between, of columns of which each holds the option of a letter."""
WRONG = re.compile(r"(?:incorrect|wrong|distractor).*\d", re.I)
"""Names of fields that hold a wrong option alone."""
PICTURES = ("image", "images", "picture", "pictures")
LETTERS = "ABCDEFGHIJ"
SYSTEM = ("system", "system_prompt", "system_message")
"""Fields of a system text beside the prompt."""
MIN_ROWS = 10
"""Fewer usable rows give neither clusters nor a plan (ours)."""
SHORT, WORDS = 60, 4
"""A solution of one line and at most so many characters and words may be the answer itself (ours)."""
TRUTHS = {"true": 1, "false": 0, "yes": 1, "no": 0, "1": 1, "0": 0}
@dataclass(frozen=True)
class Rules:
    """What the rows of one source are judged by."""

    names: Mapping[str, str]
    """Name of a field of `Fields` -> the source's; absent: the source has none."""
    allowed: tuple[float, float] | None = None
    """Smallest and largest label."""
    turned: bool = False
    """Whether a larger label means easier, so that labels are turned round."""
    need_answer: bool = True
    """Whether a row without an answer is never planned, where the source has answers; without it answers stay as written."""
    from_solution: bool = False
    """Whether the answer stands in the solution: in its last box, or as all of one that is short or lies between dollars."""
    skip: bool = False
    """Whether a row whose label cannot be read is kept without it."""
    usual: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Fields that the caller did not name -> their usual names, where a row of another set is read."""
    indexed: bool = False
    """Whether answers say which option is right by its place from 0 (`_indexed`)."""
    by_file: bool = False
    """Whether ids are written with their file, since those of several files are equal."""
    guessed: dict[tuple[str, str], list[str]] = dataclasses.field(default_factory=dict)
    """(what, how it was read) -> the places of such rows, filled by `judge`."""
    seen: dict[str, str] = dataclasses.field(default_factory=dict)
    """Id -> the place of its row, filled by `judge`."""

    def guess(self, place: str, what: str, how: str) -> None:
        """Remember what was assumed of a row."""
        self.guessed.setdefault((what, how), []).append(place)


def read(
    sources: Sequence[Source | str | Path], fields: RowFields | None = None, *, allowed: tuple[float, float] | None = None,
    turned: bool = False, skip_bad_rows: bool = False,
) -> Dataset:  # fmt: skip
    """The usable rows of sources that are read as one list, with labels and the others; `allowed` and `turned` as in `Rules`. A
    row without an answer is set aside when other rows have one: no reward could be computed for it, but its labels count.
    Without a field of answers they are taken from the solutions when half of those have one. Raises DataError: what `rows` and
    `resolve_fields` raise; malformed rows, unless `skip_bad_rows` drops them; no usable row."""
    places = [source if isinstance(source, Source) else Source.parse(str(source)) for source in sources]
    several = len(places) > 1
    raw = [row._replace(where=f"{place.name}, {row.where}") if several else row
           for place in places for row in rows(place)]  # fmt: skip
    name = places[0].name + (f" and {len(places) - 1} more" if several else "")
    names, notes = resolve_fields(name, [row.record for row in raw if row.record is not None], fields or RowFields())
    usual = {part: known for part, known in NAMES.items() if getattr(fields or RowFields(), part) is None}
    ids = [(row.where.rpartition(", ")[0], str(field_of(row.record or {}, names["id"]))) for row in raw if "id" in names]
    by_file = len(set(ids)) == len(ids) > len({own for _, own in ids})
    notes += ["ids repeat across files: each is written with its file"] * by_file
    indexed = "answer" in names and _indexed([row.record for row in raw if row.record is not None], names["answer"])
    rules = Rules(names, allowed, turned, from_solution="answer" not in names, skip=skip_bad_rows, usual=usual, indexed=indexed,
                  by_file=by_file)  # fmt: skip
    outcomes = [_outcome(row, number, rules) for number, row in enumerate(raw, start=1)]
    if rules.from_solution:
        samples = [found.sample for found in outcomes if isinstance(found, Judged)]
        told = [bool(sample.answer) for sample in samples if sample.solved or sample.answer]
        if 2 * sum(told) > len(told):
            notes.append("answers were read from the solutions: the last box, or all of one that is short or between dollars")
        else:
            notes.append("0 answers were found in a field or in solutions: whether a row can be rewarded was not checked")
            rules = dataclasses.replace(rules, need_answer=False, from_solution=False, guessed={}, seen={})
            outcomes = [_outcome(row, number, rules) for number, row in enumerate(raw, start=1)]
    notes += [f"{number_of(len(there), what)} {how}; first {there[0]}" for (what, how), there in rules.guessed.items()]
    dropped = tuple(found for found in outcomes if isinstance(found, Dropped))
    if dropped and not skip_bad_rows:
        listed = [f"  {name}, {row.where}: {row.reason}" for row in dropped[:5]]
        listed += [f"  and {len(dropped) - 5} more"] * (len(dropped) > 5)
        raise DataError("\n".join([f"{name}: of {len(raw)} rows, {len(dropped)} cannot be used:", *listed,
                                   "mend them, or pass --skip-bad-rows to leave them out and have them listed"]))  # fmt: skip
    where = tuple(row.where for row, found in zip(raw, outcomes, strict=True) if isinstance(found, Judged))
    kept = [found for found in outcomes if isinstance(found, Judged)]
    label, quality = (np.array([getattr(found, part) for found in kept], dtype=float) for part in ("label", "quality"))
    aside = tuple(found.aside for found in kept if found.aside is not None)
    samples = tuple(found.sample for found in kept)
    return require(Dataset(name, samples, where, label, quality, dropped, tuple(notes), aside), 1)


def require(data: Dataset, least: int) -> Dataset:
    """The same data. Raises DataError unless at least so many rows may be planned."""
    usable = len(data.samples) - len(data.aside)
    if usable < least:
        lower, out = " or lower --prompts-per-step" if usable >= MIN_ROWS else "", [*data.dropped, *data.aside]
        first = f"; first row left out: {out[0].where}: {out[0].reason}" if out else ""
        few = f"{usable} of {data.read} rows are usable, at least {least} are needed"
        raise DataError(f"{data.name}: {few}; add rows{lower}{first}")
    return data


def _outcome(row: Row, number: int, rules: Rules) -> Judged | Dropped:
    try:
        return judge(row, number, rules)
    except BadRow as problem:
        value = field_of(row.record or {}, rules.names.get("id", ""))
        shown = str(value)[:MAX_ID].encode("utf-8", "replace").decode() if isinstance(value, str | int) else ""
        shown = re.sub(r"[\x00-\x1f]", " ", shown)  # a bare carriage return would break a line of left_out.csv
        return Dropped(row.where, shown, "malformed", str(problem))


def judge(row: Row, number: int, rules: Rules) -> Judged:
    """What a row holds; `number` counts the rows of the source from 1 and names rows without id. Raises BadRow."""
    if row.record is None:
        raise BadRow(row.problem)
    names = _names_of(row, rules)
    given = {field: field_of(row.record, name) for field, name in names.items() if name}
    asked = chat(_asked(row, names["prompt"], rules), names["prompt"])
    if not asked.question.strip():
        raise BadRow(f"field {names['prompt']!r} is missing or empty; fill it in or remove the row")
    solution, topic = (plain(_first(row, given.get(field), names[field], rules), names[field]) for field in ("solution", "topic"))
    if rules.indexed and "A" in (options := _listed(row.record, rules.names["answer"])[1]):
        given["answer"] = list(options)[int(given["answer"])]
        rules.guess(row.where, "answer", "given as the place of an option, from 0: the letter is taken")
    answer, solution, fault = _answered(row, given.get("answer"), names["answer"], asked, solution or asked.reply, rules)
    question = asked.question + (_options(row, answer, asked.question, rules) if rules.need_answer else "")
    _tell_unread(row, question, rules)
    name = identifier(given["id"], names["id"]) if "id" in given else f"row-{number:06d}"
    name = f"{row.where.rpartition(', ')[0]}:{name}" if rules.by_file else name
    before = asked.before or _system(row, rules)
    sample = Sample(name, question, lines(solution), answer, topic.strip(), solved=bool(solution.strip()), before=before)
    quality = truth(given.get("quality"), names["quality"])
    if name in rules.seen:
        raise BadRow(f"id {name!r} was already used in {rules.seen[name]}; give every row its own id")
    try:
        label = difficulty(given.get("labels"), names["labels"], rules)
    except BadRow as problem:
        if not rules.skip:
            raise
        rules.guess(f"{row.where}: {problem}", "label", "not read because of --skip-bad-rows: the rows are kept without")
        label = math.nan
    rules.seen[name] = row.where
    if not fault and not answer and rules.need_answer and (rules.from_solution or "answer" in rules.names):
        flawed = "labelled flawed and without an answer: it trains the quality filter and is never planned"
        fault = "no answer", flawed if quality == 0 else "no answer, so no reward could be computed"
    return Judged(sample, label, quality, Dropped(row.where, name, *fault) if fault else None)


def _names_of(row: Row, rules: Rules) -> dict[str, str]:
    """The names of the fields in this row: of one that lacks a field, as rows of another set do, another usual name."""
    record, names = row.record or {}, {field.name: rules.names.get(field.name, "") for field in dataclasses.fields(Fields)}
    strange = field_of(record, names["prompt"]) is None
    for part in ("prompt", "answer", "solution"):
        if names[part] and (strange or names[part].partition(".")[0] not in record) and field_of(record, names[part]) is None:
            others = [name for name in rules.usual.get(part, ()) if name not in names.values()]
            if other := next((name for name in others if field_of(record, name) not in (None, "")), ""):
                rules.guess(row.where, "row", f"without {names[part]!r}: {part} is {other!r} there")
                names[part] = other
    return names


def _asked(row: Row, name: str, rules: Rules) -> Any:
    """The value of the prompt, with what leads to it (`LEADS`, or instruction and input) where the caller names none."""
    record, value = row.record or {}, field_of(row.record or {}, name)
    if "prompt" not in rules.usual or not isinstance(value, str):
        return value
    pairs = [("instruction", "input")] if name in ("instruction", "input") else []
    pairs += [(key, name) for key in record if letters_of(key) in LEADS and key != name]
    for first, then in pairs:
        parts = [part for part in (record.get(first), record.get(then)) if isinstance(part, str) and part.strip()]
        if len(parts) == 2 and parts[0].strip() not in parts[1] and parts[1].strip() not in parts[0]:
            rules.guess(row.where, "row", f"whose question is {first!r} and {then!r}")
            return (" " if letters_of(first) == "body" else "\n").join(parts)
    return value


def _system(row: Row, rules: Rules) -> str:
    """`Sample.before` from a system text and earlier turns in fields of their own; '' without them."""
    record, before = row.record or {}, []
    for name in SYSTEM:
        if isinstance(words := record.get(name), str) and words.strip() and name not in rules.names.values():
            before.append({"role": "system", "content": text(words, name)})
            rules.guess(row.where, "row", f"whose {name!r} is kept as the system's message")
            break
    for pair in record["history"] if isinstance(record.get("history"), list) else ():
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair):
            before += [{"role": role, "content": part} for role, part in zip(("user", "assistant"), pair, strict=True)]
    return json.dumps(before) if before else ""


def _tell_unread(row: Row, question: str, rules: Rules) -> None:
    """Remember what is not read: pictures, numbers that stand elsewhere, and wrong options in fields of their own."""
    for name, value in (row.record or {}).items():
        filled = any(value.values()) if isinstance(value, Mapping) else bool(value)
        if filled and letters_of(name) in PICTURES:
            rules.guess(row.where, "picture", f"in {name!r}: not read")
    if re.search(r"\bN_\d\d\b", question):
        rules.guess(row.where, "row", "whose question has signs such as N_00 in place of numbers: nothing fills them")
    if wrong := [name for name, value in (row.record or {}).items() if value and WRONG.match(name)]:
        rules.guess(row.where, "row", f"whose wrong options ({wrong[0]!r}, ...) are not read")


def _options(row: Row, answer: str, question: str, rules: Rules) -> str:
    """The options of a multiple choice as lines 'A. 6' below a question that does not hold them; '' where the answer is none."""
    name, options = _listed(row.record or {}, rules.names.get("answer", ""))
    if not name or re.search(r"(?:^|\s)\(?A[.):]", question):
        return ""
    named = answer.strip("(). ") in (options or tuple(LETTERS + LETTERS.lower()))
    how = "below the question" if named else "not read: the answer names none of them"
    rules.guess(row.where, "row", f"whose {name!r} are {how}")
    if not options:
        return f"\n{(row.record or {})[name]}" if named else ""
    pairs = options.items() if named else ()
    return "".join(f"\n{text}" if re.match(rf"\(?{key}[.):]", str(text)) else f"\n{key}. {text}" for key, text in pairs)


def _listed(record: Mapping[str, Any], answer: str = "") -> tuple[str, dict[str, Any]]:
    """The field of a row that lists options, and key -> option, none where they are one text; ('', {}) without such a field.
    A field named `answer` is the answer; columns A, B, ... are options where the row fills two of them."""
    for name in OPTIONS:
        found = unfolded(record.get(name)) if name != answer else None
        if isinstance(found, Mapping) and isinstance(found.get("label"), list) and isinstance(found.get("text"), list):
            found = dict(zip(map(str, found["label"]), found["text"], strict=False))
        if isinstance(found, list) and len(found) > 1:
            return name, dict(zip(LETTERS, found, strict=False))
        if isinstance(found, Mapping) and found:
            return name, {str(key): option for key, option in found.items()}
        if isinstance(found, str) and re.match(r"\s*\(?a\s*[).:].*\bb\s*[).:]", found, re.I | re.S):
            return name, {}
    keys = {letters_of(key): key for key, value in record.items() if value is not None and key != answer}
    for form in COLUMNS:
        found = [keys.get(form.format(letter.lower())) for letter in LETTERS]
        if found[0] and found[1]:
            options = {letter: record[key] for letter, key in zip(LETTERS, found, strict=True) if key}
            return f"{found[0]}, {found[1]}, ...", options
    return "", {}


def _indexed(records: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether every answer beside options A, B, ... is a place among them, counted from 0, and one at least is no option."""
    listed = ((str(field_of(record, name)), _listed(record, name)[1]) for record in records)
    places = [(answer, options) for answer, options in listed if "A" in options]
    fit = all(answer in map(str, range(len(options))) for answer, options in places)
    return bool(places) and fit and any(answer not in map(str, options.values()) for answer, options in places)


def _first(row: Row, value: Any, name: str, rules: Rules) -> Any:
    """The first of several texts, or what a chat says last; other values as they are."""
    inner = unfolded(value)
    if not isinstance(inner, list) or not inner:
        return value
    if isinstance(inner[-1], Mapping):
        return inner[-1].get("content", inner[-1].get("value"))
    if len(inner) > 1 and isinstance(inner[0], str):
        rules.guess(row.where, "row", f"with several texts in {name!r}: the first is read")
    return inner[0] if isinstance(inner[0], str) else value


def _answered(
    row: Row, value: Any, name: str, asked: Chat, solution: str, rules: Rules
) -> tuple[str, str, tuple[str, str] | None]:
    """(answer alone, worked solution, None or status and reason of a row that is never planned) from the field of answers. A
    worked text there is the solution, and what it marks the answer; where a row has no answer its solution may mark one."""
    try:
        answer = plain(value, name).strip() or asked.gold
    except BadRow as problem:
        if not rules.need_answer or not isinstance(unfolded(value), list | Mapping):
            raise
        return "", solution, ("unverifiable", str(problem))
    if not rules.need_answer:
        return answer, solution, None
    if worked(answer) or GSM8K.search(answer):
        rules.guess(row.where, "worked text", f"in {name!r}: what it marks is the answer")
        solution, answer = solution or GSM8K.sub("", answer), marked_answer(answer)
        if not answer:
            return "", solution, ("no answer", f"field {name!r} is a worked text that marks no answer, such as by a box")
    whole = solution.strip()
    if not answer and (rules.from_solution or value is None):
        short = (len(solution) <= SHORT and "\n" not in whole) or (whole[:1] == "$" and bare_answer(whole) != whole)
        short = short and len(re.findall(r"[^\W\d_]{2,}", whole)) <= WORDS
        answer = marked_answer(solution) or (whole if short and rules.from_solution else "")
        if answer and not rules.from_solution:
            rules.guess(row.where, "answer", "read from the solution: the row has none")
    alone = (answer, f"\\boxed{{{answer}}}", f"$\\boxed{{{answer}}}$")  # TRL calls the answer a solution
    return "" if answer.lower() in ABSENT else bare_answer(answer), "" if whole in alone else solution, None


def resolve_fields(name: str, records: Sequence[Mapping[str, Any]], fields: RowFields) -> tuple[dict[str, str], list[str]]:
    """(our name -> the file's, what was assumed) for the rows `records`; where none has a name as it is, its `letters_of` count.
    Raises DataError for a field that no row has."""
    names: dict[str, str] = {}
    notes: list[str] = []
    present = dict.fromkeys(key for record in records for key in record)
    if not present:
        return {"prompt": DEFAULTS["prompt"]}, notes
    filled = Counter(key for record in records for key in filled_fields(record))
    spelled = {letters_of(name): name for name in reversed((*filled, *present))}
    for entry in dataclasses.fields(fields):
        given, known = getattr(fields, entry.name), NAMES.get(entry.name, ())
        option = f"--{entry.name}" if entry.name in ("labels", "quality") else f"--{entry.name}-field"
        likely = [wanted if wanted in filled else spelled.get(letters_of(wanted)) for wanted in ((given,) if given else known)]
        found = [usual for usual in likely if usual and (given or usual in filled)]
        if not given:
            left = [usual for usual in found if usual not in (getattr(fields, "labels", None), getattr(fields, "quality", None))]
            if entry.name == "solution" and not left:  # a worked text beside the answer that was taken
                others = [n for n in (*NAMES["answer"], *filled) if n in filled and n != names.get("answer")]
                others = [n for n in others if n.rpartition(".")[2] in NAMES["answer"] or "solution" in n.lower()]
                left = [n for n in others if _mostly_worked(records, n)][:1]
            found = _fitting(entry.name, left, records, filled) or [n for n in likely if n in present and entry.name != "id"]
        if found:
            names[entry.name] = found[0]
        elif given or entry.name == "prompt":
            listed = ", ".join(key if len(key) <= 60 else f"{key[:59]}…" for key in list(present)[:20])
            missing = f"a field {given!r}" if given else f"a prompt under a usual name ({', '.join(known)})"
            inside = [key for key in filled if given and key.lower().endswith(f".{given.lower()}")]
            meant = f"; did you mean {inside[0]!r}?" if inside else ""
            raise DataError(f"{name}: no row has {missing}{meant}; its fields are: {listed}; name the right one with {option}")
        if given is None and found and found[0] != DEFAULTS[entry.name]:
            notes.append(f"{entry.name}: the field {found[0]!r} was taken; {option} names another")
    if "id" not in names:
        notes.append(f"the file has no field {DEFAULTS['id']!r}: ids are row numbers")
    return names, notes


def _fitting(part: str, likely: Sequence[str], records: Sequence[Mapping[str, Any]], filled: Counter[str]) -> list[str]:
    """The usual names that fit a part, best first: of those that half as many rows fill as the fullest (an id: half of all
    rows), an answer's short ones before worked texts; where there is none, the only one inside an object."""
    if part == "answer" and any(name in filled for name in NAMES["solution"]):
        likely = [name for name in likely if name != "label"]  # then it is more likely a class
    if part == "answer" and not any(_listed(record)[0] for record in records[:200]):
        likely = [name for name in likely if name not in PLACES]
    fullest = len(records) if part == "id" else max((filled[name] for name in likely), default=0)
    found = [name for name in likely if 2 * filled[name] >= fullest]
    if part == "answer":
        found = [name for name in found if not _mostly_worked(records, name)] or found
    if not found and part in ("prompt", "answer"):
        usual = {name.rpartition(".")[2] for name in NAMES[part]}
        inside = [name for name in filled if "." in name and name.rpartition(".")[2].lower() in usual]
        found = inside if len(inside) == 1 else []
    return found


def _mostly_worked(records: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether most texts of a field are worked, by the first 200 rows."""
    values = (field_of(record, name) for record in records[:200])
    texts = [value for value in values if isinstance(value, str) and value.strip()]
    return 2 * sum(map(worked, texts)) > len(texts)


# Labels.


def difficulty(value: Any, name: str, rules: Rules) -> float:
    """A label, larger is harder; NaN when missing. Rewards of attempts, each 0 to 1, count as their mean, '7/8' as 0.875,
    '40%' as 0.4; NaN and `ABSENT` are missing."""
    if isinstance(value, str) and value.strip()[:1] == "[":
        with contextlib.suppress(ValueError):  # a list in CSV
            value = [float(TRUTHS.get(one.lower(), one)) for one in re.findall(r"[^\s,\[\]]+", value)]
    if isinstance(value, list) and all(isinstance(one, int | float) and (0 <= one <= 1 or len(value) == 1) for one in value):
        value = sum(value) / len(value) if value else None
    if isinstance(value, str):
        written = value.strip().lower().removeprefix("level").strip()  # MATH
        share = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:/\s*0*([1-9]\d*)|%)\s*", written)  # right of attempts, or percent
        with contextlib.suppress(ValueError):
            value = None if written in (*ABSENT, "?") else float(share[1]) / int(share[2] or 100) if share else float(written)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal):
        raise BadRow(f"field {name!r} is {str(value)[:40]!r}, {kind_named(value)}, not a number; leave it out when unknown")
    if not abs(value) <= 1e12:
        raise BadRow(f"field {name!r} is {str(value)[:40]}, not a finite number of usual size; leave it out when unknown")
    label, allowed = float(value), rules.allowed
    if allowed is not None and not allowed[0] <= label <= allowed[1]:
        fix = "mend it, leave it out when unknown, or set --label-range"
        raise BadRow(f"field {name!r} is {label:g}, outside {allowed[0]:g} to {allowed[1]:g}; {fix}")
    return (sum(allowed) if allowed else 0.0) - label if rules.turned else label


def truth(value: Any, name: str) -> float:
    """1 for true, 0 for false, also as text ('yes'), NaN when missing."""
    if isinstance(value, str):
        value = TRUTHS.get(value.strip().lower(), value)
    if value is None:
        return math.nan
    if value not in (0, 1):  # True and False are
        raise BadRow(f"field {name!r} is {str(value)[:40]!r}; write true or false, or leave it out when unknown")
    return float(value)
