"""A batch plan for other trainers: the ordered data set in each framework's own schema, with what keeps the order there.

`export_plan` writes a folder for one of `TARGETS`: the rows in plan order, and the files of `templates/<framework>`, filled in.
What keeps an order was read in the frameworks' sources: TRL 1.16, verl 0.9.1, OpenRLHF 0.11.2, SkyRL 0.3.0 and verifiers 0.4.0
from the package index, NeMo-RL and prime-rl in their repositories. Axes: T steps, b prompts_per_step, G rollouts_per_prompt.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from saerl_lib.artifacts import whole_folder
from saerl_lib.config import near
from saerl_lib.data.answers import bare_answer
from saerl_lib.data.published import load_labelled
from saerl_lib.data.sample import SAMPLES, Sample, read_samples
from saerl_lib.plan.batch_plan import BatchPlan, plan_hash, read_whole_plan


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
        raise ExportError(f"{path} is missing: pass the samples of the plan as Parquet or JSON lines")
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


def samples_beside(plan: Path) -> Path:
    """The samples that the command `plan` wrote beside its plan. Raises ExportError when there are none."""
    found = plan.parent / SAMPLES
    if not found.is_file():
        raise ExportError(f"{plan.parent} holds no {SAMPLES}: name the samples of the plan with --samples")
    return found


def open_export(plan: Path, samples: Path | None = None, rollouts_per_prompt: int = 8) -> Export:
    """Plan and samples from files; None: the samples beside the plan. Raises what `read_whole_plan`, `samples_beside`,
    `read_sample_file` and `in_plan_order` raise."""
    found = read_whole_plan(plan)
    chosen = samples_beside(plan) if samples is None else samples
    return Export(found, in_plan_order(found, read_sample_file(chosen)), rollouts_per_prompt)


TARGETS: dict[str, dict[str, dict[str, Any]]] = {
    "trl": {
        "data/train.parquet": {
            "prompt": "$messages", "solution": "$answer", "answer": "$answer", "sample_id": "$id", "step": "$step",
        },
    },
    "verl": {
        "train.parquet": {
            "data_source": "math_dapo",  # names verl's scorer for 'Answer: ...' lines and \boxed answers
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
CHECKERS = {"trl": "answers.py", "prime-rl": "saerl_plan/answers.py"}
"""Framework -> where the module lies that reads and checks answers; the others have their own."""
REFUSED = {
    "openrlhf": (
        "OpenRLHF (0.11.2) cannot keep an order: its PPO trainer builds the loader of prompts with shuffle=True written "
        "into the call (openrlhf/trainer/ppo_trainer.py), and no option reaches it. Pass False there in a copy of your "
        "own, or train with one of {targets}"
    ),
    "skyrl": (
        "SkyRL (0.3.0) cannot keep an order in RL: its loader of training prompts is built with shuffle=True "
        "(skyrl/train/utils/trainer_utils.py); the option `sampler` belongs to supervised fine-tuning alone. Change that "
        "line in a copy of your own, or train with one of {targets}"
    ),
}
"""Framework -> why no plan is exported for it."""
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
    plan, files = export.plan, dict[str, bytes]()
    told = [
        {"id": sample.id, "prompt": sample.prompt, "messages": sample.messages, "position": position, "asked": sample.asked,
         "answer": bare_answer(sample.answer), "step": position // plan.prompts_per_step}
        for position, sample in enumerate(export.samples)
    ]  # fmt: skip
    for name, schema in TARGETS[target].items():
        files[name] = _rows_as_bytes([_filled(schema, values) for values in told], Path(name).suffix)
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
        raise ExportError(REFUSED[target].format(targets=names))
    if target not in TARGETS:
        raise ExportError(f"--to {target}: choose one of {names}{near(target, TARGETS)}")


def run_export(plan: Path, samples: Path | None, out: Path, to: str, rollouts: int) -> int:
    """`export`: write the plan's data set, configuration and README for a framework. Raises what `open_export` and
    `export_plan` raise."""
    require_target(to)
    export = open_export(plan, samples, rollouts)
    files = export_plan(export, to, out)
    print(f"{out}: {export.plan.steps} steps of {export.plan.prompts_per_step} prompts for {to}")
    print(f"files: {', '.join(files)}; {out / 'README.md'} has the launch command")
    return 0
