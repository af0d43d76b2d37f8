"""A batch plan for other trainers: the ordered data set in each framework's own schema, with what keeps the order there.

`export_plan` writes a folder for one of `TARGETS`: the rows in plan order, and the files of `templates/<framework>`, filled in.
What keeps an order was read in the frameworks' sources: TRL 1.16, verl 0.9.1, OpenRLHF 0.11.2, SkyRL 0.3.0 and verifiers 0.4.0
from the package index, NeMo-RL and prime-rl in their repositories. Axes: T steps, b prompts_per_step, G rollouts_per_prompt.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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

    @property
    def prompts_per_step(self) -> int:
        """b."""
        return self.plan.prompts_per_step

    @property
    def rollouts_per_step(self) -> int:
        """b * G."""
        return self.prompts_per_step * self.rollouts_per_prompt


def read_sample_file(path: Path) -> Sequence[Sample]:
    """Samples of a Parquet file by `write_samples` or of another file by `load_labelled`, told apart by the suffix.

    Raises ExportError when the file is missing, DataError when it is unreadable or a row is malformed.
    """
    if not path.is_file():
        raise ExportError(f"{path} is missing: pass the samples of the plan as Parquet or JSON lines")
    return read_samples(path) if path.suffix == ".parquet" else load_labelled(path).samples


def in_plan_order(plan: BatchPlan, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The plan's samples in its order; others are left out.

    Raises ExportError for ids of the plan that are missing, given twice, or have no answer to check against.
    """
    by_id = {sample.id: sample for sample in samples}
    last = {sample.id: row for row, sample in enumerate(samples)}
    twice = {sample.id for row, sample in enumerate(samples) if last[sample.id] != row}
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
    """Plan and samples from files; None: the samples beside the plan.

    Raises what `read_whole_plan`, `samples_beside`, `read_sample_file` and `in_plan_order` raise.
    """
    found = read_whole_plan(plan)
    chosen = samples_beside(plan) if samples is None else samples
    return Export(found, in_plan_order(found, read_sample_file(chosen)), rollouts_per_prompt)


@dataclass(frozen=True)
class Target:
    """How a framework reads a data set; its other files are those of `templates/<framework>`."""

    data: str
    """Relative path of the rows; the suffix is their format."""
    row: Callable[[Sample, int, int], dict[str, Any]]
    """Sample, position and plan step (from 0) -> the row in the framework's schema."""
    answers: str = ""
    """Where the module lies that reads and checks answers; '': the framework has its own."""
    second: tuple[str, Callable[[Sample, int, int], dict[str, Any]]] | None = None
    """Path and rows of the same plan in the framework's other schema."""


TARGETS = {
    "trl": Target(
        "data/train.parquet",
        lambda sample, _, step: {
            "prompt": sample.messages,
            "solution": sample.answer,
            "answer": sample.answer,
            "sample_id": sample.id,
            "step": step,
        },
        "answers.py",
    ),
    "verl": Target(
        "train.parquet",
        lambda sample, position, step: {
            "data_source": "math_dapo",  # names verl's scorer for 'Answer: ...' lines and \boxed answers
            "prompt": sample.messages,
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": sample.answer},
            "extra_info": {"index": position, "split": "train", "sample_id": sample.id, "step": step},
        },
    ),
    "nemo-rl": Target(
        "train.jsonl",
        lambda sample, _, step: {"input": sample.prompt, "output": sample.answer, "sample_id": sample.id, "step": step},
        second=(
            "gym/train.jsonl",
            lambda sample, _, step: {
                "responses_create_params": {"input": sample.messages},
                "question": sample.prompt,
                "expected_answer": sample.answer,
                "agent_ref": {"type": "responses_api_agents", "name": "math_with_judge_simple_agent"},
                "sample_id": sample.id,
                "step": step,
            },
        ),
    ),
    "prime-rl": Target(
        "saerl_plan/tasks.jsonl",
        lambda sample, _, step: {
            "id": sample.id,
            "prompt": sample.messages if sample.before else sample.prompt,
            "answer": sample.answer,
            "step": step,
        },
        "saerl_plan/answers.py",
    ),
}
"""Frameworks that a plan is exported to."""
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


def export_files(export: Export, target: str) -> dict[str, bytes]:
    """Relative path -> content of the export for one of `TARGETS`."""
    chosen, plan = TARGETS[target], export.plan
    samples, files = [replace(sample, answer=bare_answer(sample.answer)) for sample in export.samples], {}
    for name, row in filter(None, ((chosen.data, chosen.row), chosen.second)):
        rows = [row(sample, i, i // plan.prompts_per_step) for i, sample in enumerate(samples)]
        files[name] = _rows_as_bytes(rows, Path(name).suffix)
    if chosen.answers:  # it needs math-verify alone
        files[chosen.answers] = (Path(__file__).parents[1] / "data" / "answers.py").read_bytes()
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    values = {"plan": plan, "rollouts": export.rollouts_per_prompt, "rollouts_per_step": export.rollouts_per_step,
              "hash": plan_hash(plan)}  # fmt: skip
    for path in sorted((TEMPLATES / target).rglob("*.j2")):
        text = made.get_template(path.relative_to(TEMPLATES).as_posix()).render(values)
        files[path.relative_to(TEMPLATES / target).as_posix().removesuffix(".j2")] = text.encode()
    return files


def write_folder(files: Mapping[str, bytes], out: Path) -> None:
    """Write relative paths -> bytes to a folder that appears whole or not at all.

    Raises ExportError when `out` is a file or a folder with content.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ExportError(f"{out} already exists: remove it or name another folder")
    with whole_folder(out) as folder:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def export_plan(export: Export, target: str, out: Path) -> list[str]:
    """Write the folder `out` for a framework; returns the relative paths of its files, sorted.

    Raises ExportError for a framework that is unknown or cannot keep an order, or when `out` is not free.
    """
    require_target(target)
    files = export_files(export, target)
    write_folder(files, out)
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
