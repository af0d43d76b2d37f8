"""A plan in other trainers: the ordered data set in each one's own schema, and whether what it consumed followed the plan.

`export_plan` writes a folder for one of `TARGETS`: the rows in plan order, and the files of `templates/<framework>`, filled in.
What keeps an order was read in the frameworks' sources: TRL 1.16, verl 0.9.1, OpenRLHF 0.11.2, SkyRL 0.3.0 and verifiers 0.4.0
from the package index, NeMo-RL and prime-rl in their repositories. `follow` compares a step of the trainer with the same step of
the plan; a log of several epochs repeats it. Axes: T steps, b prompts_per_step, G rollouts_per_prompt.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from saerl_lib.artifacts import whole_folder, write_atomic
from saerl_lib.config import near
from saerl_lib.data.answers import bare_answer
from saerl_lib.data.published import load_labelled
from saerl_lib.data.rows import Row, Source, field_of, json_rows, kind_of, rows
from saerl_lib.data.sample import SAMPLES, Sample, normalise, read_samples
from saerl_lib.plan.batch_plan import BatchPlan, plan_hash, read_whole_plan

# Export.


class ExportError(ValueError):
    """The plan cannot be exported as asked."""


@dataclass(frozen=True)
class Export:
    """A plan, its samples in plan order and the size of a group."""

    plan: BatchPlan
    samples: tuple[Sample, ...]
    """In plan order, [T * b]."""
    rollouts_per_prompt: int
    """G, at least 2."""

    def __post_init__(self) -> None:
        if self.rollouts_per_prompt < 2:
            raise ExportError(f"--rollouts {self.rollouts_per_prompt}: give at least 2, a group of one has no advantage")


def read_sample_file(path: Path) -> Sequence[Sample]:
    """Samples of a Parquet file by `write_samples` or of another file by `load_labelled`, told apart by the suffix. Raises
    ExportError when the file is missing, DataError when it is unreadable or a row is malformed."""
    if not path.is_file():
        raise ExportError(f"{path} is missing: name the samples of the plan, Parquet or JSON lines, with --samples")
    return read_samples(path) if path.suffix == ".parquet" else load_labelled(path).samples


def in_plan_order(plan: BatchPlan, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The plan's samples in its order; others are left out. Raises ExportError for ids of the plan that are missing, given twice,
    or have no answer to check against."""
    by_id = {sample.id: sample for sample in samples}
    twice = {name for name, count in Counter(sample.id for sample in samples).items() if count > 1}
    problems = {
        "are missing in the samples: pass the file the plan was built from": [i for i in plan.ids if i not in by_id],
        "are given twice in the samples: give every sample its own id": [i for i in plan.ids if i in twice],
        "have no answer: a verifiable reward needs one": [i for i in plan.ids if i in by_id and not by_id[i].answer.strip()],
    }
    for problem, ids in problems.items():
        if ids:
            raise ExportError(f"{len(ids)} of {len(plan.ids)} ids of the plan {problem} (first {ids[:3]})")
    return tuple(by_id[i] for i in plan.ids)


def open_export(plan: Path, samples: Path | None = None, rollouts_per_prompt: int = 8) -> Export:
    """Plan and samples from files; None: the samples that the command `plan` wrote beside the plan. Raises what
    `read_whole_plan`, `read_sample_file` and `in_plan_order` raise."""
    found = read_whole_plan(plan)
    return Export(found, in_plan_order(found, read_sample_file(samples or plan.parent / SAMPLES)), rollouts_per_prompt)


TARGETS: dict[str, dict[str, dict[str, Any]]] = {
    "trl": {
        "data/train.parquet": {
            "prompt": "$messages", "solution": "$answer", "answer": "$answer", "sample_id": "$id", "step": "$step",
        },
    },
    "verl": {
        "train.parquet": {
            "data_source": "math_dapo",  # a name that verl knows; reward.py scores
            "prompt": "$messages", "ability": "math", "reward_model": {"style": "rule", "ground_truth": "$answer"},
            "extra_info": {"index": "$position", "split": "train", "sample_id": "$id", "step": "$step"},
        },
    },
    "nemo-rl": {
        "train.jsonl": {"input": "$prompt", "output": "$answer", "sample_id": "$id", "step": "$step"},
        "gym/train.jsonl": {
            "responses_create_params": {"input": "$messages"}, "question": "$prompt", "expected_answer": "$answer",
            "agent_ref": {"type": "responses_api_agents", "name": "math_with_judge_simple_agent"},
            "sample_id": "$id", "step": "$step",
        },
    },
    "prime-rl": {
        "saerl_plan/tasks.jsonl": {"id": "$id", "prompt": "$asked", "answer": "$answer", "step": "$step"},
    },
}  # fmt: skip
"""Framework -> path of the rows, whose suffix is their format -> a row in its schema, with `$name` for what `_filled` knows."""
CHECKERS = {"trl": "answers.py", "verl": "answers.py", "prime-rl": "saerl_plan/answers.py"}
"""Framework -> where the module lies that reads and checks answers; the others have their own."""
REFUSED = {"openrlhf": "openrlhf/trainer/ppo_trainer.py of OpenRLHF 0.11.2",
           "skyrl": "skyrl/train/utils/trainer_utils.py of SkyRL 0.3.0"}  # fmt: skip
"""Framework that shuffles prompts in RL whatever its options say -> where."""
TEMPLATES = Path(__file__).parent / "templates"
"""One folder a framework with Jinja templates of its files, and the README that all of them extend."""


def _rows_as_bytes(rows: list[dict[str, Any]], suffix: str) -> bytes:
    """Rows as Parquet in one row group or as JSON lines, in order; equal rows give equal bytes with the same pyarrow."""
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()  # ASCII: no sign of Unicode ends a line
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="zstd", row_group_size=max(1, len(rows)))
    return buffer.getvalue()


def _filled(schema: Any, values: Mapping[str, Any]) -> Any:
    """A row of `TARGETS` with its values."""
    if isinstance(schema, dict):
        return {name: _filled(part, values) for name, part in schema.items()}
    return values[schema[1:]] if schema.startswith("$") else schema


def export_files(export: Export, target: str) -> dict[str, bytes]:
    """Relative path -> content of the export for one of `TARGETS`."""
    plan = export.plan
    told = [
        {"id": sample.id, "prompt": sample.prompt, "messages": sample.messages, "position": position, "asked": sample.asked,
         "answer": bare_answer(sample.answer), "step": position // plan.prompts_per_step}
        for position, sample in enumerate(export.samples)
    ]  # fmt: skip
    files = {name: _rows_as_bytes([_filled(schema, values) for values in told], Path(name).suffix)
             for name, schema in TARGETS[target].items()}  # fmt: skip
    if target in CHECKERS:  # it needs math-verify alone
        files[CHECKERS[target]] = (Path(__file__).parents[1] / "data" / "answers.py").read_bytes()
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    values = {"plan": plan, "rollouts": export.rollouts_per_prompt, "hash": plan_hash(plan),
              "rollouts_per_step": plan.prompts_per_step * export.rollouts_per_prompt}  # fmt: skip
    for path in sorted((TEMPLATES / target).rglob("*.j2")):
        text = made.get_template(path.relative_to(TEMPLATES).as_posix()).render(values)
        files[path.relative_to(TEMPLATES / target).as_posix().removesuffix(".j2")] = text.encode()
    return files


def export_plan(export: Export, target: str, out: Path) -> list[str]:
    """Write the folder `out` for a framework, whole or not at all; returns the relative paths of its files, sorted. Raises
    ExportError for a framework that is unknown or cannot keep an order, or when `out` is a file or holds something."""
    require_target(target)
    files = export_files(export, target)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ExportError(f"{out} already exists: remove it or name another folder")
    with whole_folder(out) as folder:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return sorted(files)


def require_target(target: str) -> None:
    """Raise ExportError unless plans can be exported for `target`."""
    names = ", ".join(TARGETS)
    if target in REFUSED:
        raise ExportError(f"--to {target} cannot keep an order: shuffle=True is written into {REFUSED[target]}, and no option "
                          f"reaches it. Change that line in a copy of your own, or train with one of {names}")  # fmt: skip
    if target not in TARGETS:
        raise ExportError(f"--to {target}: choose one of {names}{near(target, TARGETS)}")


def run_export(plan: Path, samples: Path | None, out: Path, to: str, rollouts: int) -> int:
    """`export`: write the plan for a framework. Raises what `open_export` and `export_plan` raise."""
    require_target(to)
    export = open_export(plan, samples, rollouts)
    files = export_plan(export, to, out)
    print(f"{out}: {export.plan.steps} steps of {export.plan.prompts_per_step} prompts for {to}")
    print(f"files: {', '.join(files)}; {out / 'README.md'} has the launch command")
    return 0


# What was consumed.


class LogError(ValueError):
    """The log cannot be read as ids that a trainer consumed."""


class ConsumedLog(NamedTuple):
    """Sample ids in the order of the log, one a rollout or one a prompt, and the trainer's step of each, from 0 or 1, if any."""

    ids: tuple[str, ...]
    steps: tuple[int, ...] | None = None


def append_rows(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Append records as JSON lines."""
    with path.open("a", encoding="utf-8") as handle:
        handle.writelines(json.dumps(record, sort_keys=True) + "\n" for record in records)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Complete rows of a JSON-lines log; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def cut_back(path: Path, step: int, field: str = "step") -> None:
    """Keep only rows whose `field` is at most `step`: a resumed run writes the later ones again."""
    kept = [json.dumps(row, sort_keys=True) + "\n" for row in read_rows(path) if row[field] <= step]
    write_atomic(path, "".join(kept).encode("utf-8"))


IDS = ("sample_id", "extra_info.sample_id", "task.key", "task.data.id", "task.id", "info.sample_id", "example_id", "key", "id")
"""Where the logs of trainers hold the id of a row."""
PROMPTS = ("prompt", "input", "content", "messages", "task.data.prompt", "task.prompt")
"""Where they hold its prompt: text, chat messages, or the texts of a conversation."""
STEP = re.compile(r"(?:step[_-]?|completions_)(\d+)|(\d+)\.jsonl")


def read_log(path: Path, samples: Sequence[Sample] = ()) -> ConsumedLog:
    """The log of one run: a file, or the folder in which a trainer leaves one file a step.

    Rows have sample_id and, all or none, step; those of the trainers' own logs (TRL's completions, verl's rollout_data_dir,
    NeMo-RL's train_data_step*.jsonl, prime-rl's rollouts) are known by an id of `samples` or by their prompt, and the step may
    stand in the file's name. Raises LogError that names line or row and what is wrong with it.
    """
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and kind_of(p)]
    if not files:
        raise LogError(f"{path} is missing or empty: pass the log of sample ids that the trainer wrote")
    steps: list[int] = []
    ids: list[str] = []
    whose = _Whose(samples)
    for file in sorted(files, key=lambda p: (_step_of(p) or 0, str(p))):
        for row in _log_rows(file):
            where, record = f"{file.name}, {row.where}", row.record or {}
            name, step = whose.of(record), record.get("step", _step_of(file))
            if not isinstance(name, str) or not name:
                fault = "field 'sample_id' is missing" if name is None else f"sample_id is {name!r}, not an id; write it as text"
                raise LogError(f"{where}: {row.problem or fault}")
            if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
                raise LogError(f"{where}: step is {step!r}, not a whole number from 0")
            ids.append(name)
            steps += [] if step is None else [step]
    if not ids:
        raise LogError(f"{path} holds no sample id")
    if len(steps) not in (0, len(ids)):
        raise LogError(f"{path.name}: {len(steps)} of {len(ids)} lines have a step; write it in all lines or in none")
    return ConsumedLog(tuple(ids), tuple(steps) or None)


def _step_of(path: Path) -> int | None:
    """The step in the name of a trainer's file, or of its folder."""
    found = STEP.search(path.name) or STEP.search(path.parent.name)
    return int(found[1] or found[2]) if found else None


class _Whose:
    """Which sample a row of a log belongs to."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.known = {sample.id for sample in samples}
        self.by_prompt = {normalise(sample.prompt): sample.id for sample in reversed(samples)}
        self.around = (0, 0)
        """Characters that the chat template puts before and behind a prompt, once they are known."""

    def of(self, record: Mapping[str, Any]) -> Any:
        """The id, what stands in its place, or None."""
        for place in IDS:
            name = field_of(record, place)
            if name is not None and (place == "sample_id" or name in self.known):
                return name
        texts = (_said(field_of(record, place)) for place in PROMPTS)
        return next((found for said in texts if said and (found := self._prompt(normalise(said)))), None)

    def _prompt(self, said: str) -> str | None:
        before, behind = self.around
        if found := self.by_prompt.get(said) or self.by_prompt.get(said[before : len(said) - behind]):
            return found
        inside = max((prompt for prompt in self.by_prompt if prompt and prompt in said), key=len, default=None)
        if inside is None:
            return None
        self.around = (said.index(inside), len(said) - said.index(inside) - len(inside))
        return self.by_prompt[inside]


def _said(value: Any) -> str:
    """The question in a log's prompt: the last message of the user in a chat, the first of several texts, or the text."""
    if isinstance(value, list) and value:
        spoken = [message for message in value if isinstance(message, Mapping) and message.get("role") == "user"]
        value = spoken[-1].get("content") if spoken else value[0]
    return value if isinstance(value, str) else ""


def _log_rows(path: Path) -> list[Row]:
    """Rows of Parquet, of JSON lines or of text with one id a line."""
    if path.suffix == ".parquet":
        return list(rows(Source(str(path))))
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise LogError(f"{path} is no UTF-8 text: pass Parquet with the suffix .parquet, JSON lines or text") from error
    if next((line for line in lines if line.strip()), "").lstrip().startswith("{"):
        return list(json_rows(path, strict_end=False))
    return [Row(f"line {n}", {"sample_id": line.strip()}) for n, line in enumerate(lines, start=1) if line.strip()]


EPOCHS = 1000
"""A log of more repetitions of the plan than this is taken for a mistake."""


class Departure(NamedTuple):
    """The first place where log and plan differ; steps, on through all epochs, and slots count from 0."""

    step: int
    slot: int
    planned: str | None
    """None when the step holds more prompts than planned."""
    consumed: str | None
    """None when the step, or the log, ends here."""


@dataclass(frozen=True)
class FollowReport:
    """The comparison of a log with a plan."""

    followed: bool
    steps_logged: int
    steps_planned: int
    """T, of one epoch."""
    epochs: int
    """Times that the log would have to repeat the plan."""
    steps_kept: int
    """Steps of the log that hold the planned prompts in any order."""
    first: Departure | None
    """None when the plan was followed."""
    log_ended: bool
    """Whether all that was logged agrees with the plan, which goes on."""
    dropped: tuple[str, ...]
    """Planned ids that were never consumed, in plan order."""
    repeated: tuple[str, ...]
    """Ids consumed in more steps than there are epochs, in order of appearance."""
    unknown: tuple[str, ...]
    """Ids that are not in the plan, in order of appearance."""

    def followed_for(self, steps: int | None) -> bool:
        """Whether the log holds exactly `steps` steps of the plan, however often it starts again; None: whole passes."""
        if steps is None:
            return self.followed
        return (self.followed or self.log_ended) and self.steps_logged == self.steps_kept == steps

    def told(self, steps: int | None = None) -> list[str]:
        """The comparison in words, one line a finding; `steps` as in `followed_for`."""
        first, followed = self.first, self.followed_for(steps)
        if followed and not self.followed:
            return [f"the plan was followed: {steps} steps, {self.steps_planned} in a pass"]
        if first is None:
            times = "" if self.epochs == 1 else f", {self.epochs} times"
            lines = [f"the plan was followed: {self.steps_planned} steps{times}"]
            return lines if followed else [*lines, f"but the log holds {self.steps_logged} steps, not {steps}"]
        place = f"step {first.step}, slot {first.slot} (both from 0)"
        said = f": at {place} it says {first.planned or 'nothing more'}, the trainer consumed {first.consumed or 'nothing'}"
        if self.log_ended:
            said = f" to its end: the log ends before {place}, where the plan says {first.planned}"
        lines = [f"the plan was NOT followed{said}"]
        lines.append(f"{self.steps_kept} of {self.steps_planned * self.epochs} steps hold the planned prompts")
        if self.steps_kept == self.steps_planned * self.epochs:
            lines.append("only the order inside steps differs, which changes no batch: --any-slot accepts it")
        kinds = {"planned and never consumed": self.dropped, "consumed in more steps than planned": self.repeated,
                 "not in the plan": self.unknown}  # fmt: skip
        return lines + [f"{len(ids)} ids {kind}, first {', '.join(ids[:3])}" for kind, ids in kinds.items() if ids]


def follow(plan: BatchPlan, log: ConsumedLog, rollouts: int | None = None, any_slot: bool = False) -> FollowReport:
    """Compare what was consumed with the plan.

    Ids that follow themselves are rollouts of one prompt. With steps in the log (from 0, or from 1) they are compared step by
    step; else the prompts are cut into steps of b, or with `rollouts` (G) the lines into steps of b * G. `any_slot` takes the
    prompts of a step in any order: one with more rollouts than a group, G or what most have, was consumed more than once.
    Raises LogError when `rollouts` is below 1 or the log's steps go beyond `EPOCHS` repetitions of the plan.
    """
    steps = consumed_steps(log, plan.prompts_per_step, rollouts, any_slot)
    count = max(steps) + 1
    if count > EPOCHS * plan.steps:
        raise LogError(f"the log reaches step {count - 1}, the plan has {plan.steps}: is its 'step' the optimiser step?")
    epochs = -(-count // plan.steps)
    planned = [plan.ids[i : i + plan.prompts_per_step] for i in range(0, len(plan.ids), plan.prompts_per_step)] * epochs
    found = [steps.get(step, []) for step in range(len(planned))]
    first = next((d for step in range(len(found)) if (d := _departure(step, planned[step], found[step], any_slot))), None)
    times = Counter(name for step in found for name in set(step))
    known, consumed = set(plan.ids), dict.fromkeys(log.ids)
    return FollowReport(
        first is None, count, plan.steps, epochs, first=first,
        steps_kept=sum(sorted(a) == sorted(b) for a, b in zip(planned, found, strict=True)),
        log_ended=first is not None and first.consumed is None and not any(found[first.step + 1 :]),
        dropped=tuple(name for name in plan.ids if name not in times),
        repeated=tuple(name for name in consumed if times[name] > epochs),
        unknown=tuple(name for name in consumed if name not in known),
    )  # fmt: skip


def consumed_steps(
    log: ConsumedLog, prompts_per_step: int, rollouts: int | None = None, any_slot: bool = False
) -> dict[int, list[str]]:
    """Step from 0 -> the prompts it consumed, in order of the log; with `any_slot` each group of a prompt's rollouts once.

    >>> consumed_steps(ConsumedLog(("a", "a", "b", "b", "c", "c")), prompts_per_step=2)
    {0: ['a', 'b'], 1: ['c']}
    """
    if rollouts is not None and rollouts < 1:
        raise LogError(f"--rollouts {rollouts}: give the rollouts a prompt, at least 1")
    lines: dict[int, list[str]] = {}
    if log.steps is not None:
        base = 0 if min(log.steps) == 0 else 1
        for step, name in sorted(zip((s - base for s in log.steps), log.ids, strict=True), key=lambda pair: pair[0]):
            lines.setdefault(step, []).append(name)
    else:
        ids = list(log.ids) if rollouts else _without_rollouts(log.ids)
        size = prompts_per_step * (rollouts or 1)
        lines = {i // size: ids[i : i + size] for i in range(0, len(ids), size)}
    if not any_slot:
        return {step: _without_rollouts(ids) for step, ids in lines.items()}
    counts = {step: Counter(ids) for step, ids in lines.items()}
    sizes = Counter(count for found in counts.values() for count in found.values())
    group = rollouts or max(sizes, key=lambda size: (sizes[size], -size))
    return {step: [name for name, n in found.items() for _ in range(-(-n // group))] for step, found in counts.items()}


def _without_rollouts(ids: Iterable[str]) -> list[str]:
    return [name for name, _ in groupby(ids)]


def _departure(step: int, planned: list[str], found: list[str], any_slot: bool) -> Departure | None:
    """The first difference of one step; with `any_slot` the first planned prompt that is missing and the first one too many."""
    if any_slot:
        strangers = (Counter(found) - Counter(planned)).elements()
        found = [name if name in found else next(strangers, None) for name in planned] + list(strangers)
    pairs = enumerate(zip_longest(planned, found))
    return next((Departure(step, slot, name, other) for slot, (name, other) in pairs if name != other), None)


def run_verify(plan: Path, log: Path, samples: Path | None, rollouts: int | None, steps: int | None, any_slot: bool) -> int:
    """`verify`: print the comparison, the last line as one JSON object; 0 when the plan was followed, else 1. `samples` None:
    those beside the plan, if any. Raises PlanError or LogError when a file is missing or malformed."""
    if steps is not None and steps < 1:
        raise LogError(f"--steps {steps}: give the optimiser steps of the run, at least 1")
    planned, file = read_whole_plan(plan), samples or plan.parent / SAMPLES
    own = set(planned.ids)
    known = [sample for sample in read_sample_file(file) if sample.id in own] if samples or file.is_file() else []
    report = follow(planned, read_log(log, known), rollouts, any_slot)
    print("\n".join(report.told(steps)))
    values = vars(report) | {"followed": report.followed_for(steps), "first": report.first and report.first._asdict()}
    print(json.dumps({**values, **{name: len(values[name]) for name in ("dropped", "repeated", "unknown")}}))
    return 0 if values["followed"] else 1
