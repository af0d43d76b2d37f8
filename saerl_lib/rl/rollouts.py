"""Append-only logs of a training job: cut back to the checkpoint on resume, compared with the plan at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from saerl_lib.artifacts import ArtifactError
from saerl_lib.data.rows import jsonl


class PlanMismatchError(ArtifactError):
    """The trainer did not see the samples of the plan in the plan's order."""


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows as JSON lines."""
    with path.open("a", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines log, none without the file; a last line that a kill cut short is left out."""
    return list(jsonl(path, strict_end=False)) if path.exists() else []


def cut_back(path: Path, step: int, field: str = "step") -> None:
    """Keep only rows whose `field` is at most `step`: a resumed run writes the later ones again."""
    rows = [row for row in read_rows(path) if row[field] <= step]
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    append_rows(partial, rows)
    if partial.exists():
        partial.replace(path)


def compare_with_plan(rollouts: pd.DataFrame, plan: pd.DataFrame, rollouts_per_prompt: int) -> None:
    """Raise PlanMismatchError at the first step whose logged sample ids differ from the plan's.

    `rollouts` has columns step (1-based optimiser step), row, sample_id; each planned sample must occur
    `rollouts_per_prompt` times in a row, in slot order.
    """
    logged = {step: group.sort_values("row")["sample_id"].tolist() for step, group in rollouts.groupby("step")}
    for step, group in plan.groupby("step"):
        expected = [i for i in group.sort_values("slot")["sample_id"] for _ in range(rollouts_per_prompt)]
        seen = logged.pop(step + 1, [])
        if seen != expected:
            where = next(
                (i for i, (a, b) in enumerate(zip(seen, expected, strict=False)) if a != b), min(len(seen), len(expected))
            )
            raise PlanMismatchError(
                f"step {step + 1}, rollout {where}: the plan says {expected[where] if where < len(expected) else 'nothing'}, "
                f"the trainer saw {seen[where] if where < len(seen) else 'nothing'}; keep shuffle_dataset=False and one "
                "generation batch a step"
            )
    if logged:
        raise PlanMismatchError(f"the trainer logged steps that the plan does not have, first {min(logged)}")
