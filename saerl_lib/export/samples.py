"""The plan joined with its samples: what every export is written from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saerl_lib.data.published import load_labelled
from saerl_lib.data.sample import SAMPLES, Sample, read_samples
from saerl_lib.plan.batch_plan import BatchPlan, PlanError, plan_hash, read_plan, validate


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
        if [s.id for s in self.samples] != self.plan.ids:
            raise ExportError("the samples are not those of the plan in its order: use open_export")

    @property
    def prompts_per_step(self) -> int:
        """b."""
        return self.plan.prompts_per_step

    @property
    def rollouts_per_step(self) -> int:
        """b * G."""
        return self.prompts_per_step * self.rollouts_per_prompt

    @property
    def hash(self) -> str:
        """SHA-256 of the ordered ids."""
        return plan_hash(self.plan)

    def step_of(self, position: int) -> int:
        """Plan step of a row, from 0."""
        return position // self.prompts_per_step


def open_plan(path: Path) -> BatchPlan:
    """The stored plan, checked to be whole batches of distinct samples.

    Raises PlanError when the file is missing, is no plan, repeats an id or misnumbers its steps.
    """
    if not path.is_file():
        raise PlanError(f"{path} is missing: pass a plan written by write_plan, such as plans/saerl.parquet")
    try:
        plan = read_plan(path)
    except (OSError, ValueError) as error:
        raise error if isinstance(error, PlanError) else PlanError(f"{path} is no batch plan: {error}") from error
    validate(plan, plan.ids, plan.prompts_per_step)
    return plan


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
    by_id: dict[str, Sample] = {}
    twice = []
    for sample in samples:
        twice += [sample.id] if sample.id in by_id else []
        by_id[sample.id] = sample
    problems = {
        "are missing in the samples: pass the file the plan was built from": [i for i in plan.ids if i not in by_id],
        "are given twice in the samples: give every sample its own id": [i for i in plan.ids if i in set(twice)],
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

    Raises what `open_plan`, `samples_beside`, `read_sample_file` and `in_plan_order` raise.
    """
    found = open_plan(plan)
    chosen = samples_beside(plan) if samples is None else samples
    return Export(found, in_plan_order(found, read_sample_file(chosen)), rollouts_per_prompt)
