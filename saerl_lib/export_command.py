"""`export` and `verify`: a batch plan for another trainer, and whether that trainer followed it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from saerl_lib.export import FollowReport, LogError, export_plan, follow, open_export, open_plan, read_log
from saerl_lib.export.targets import require_target


def run_export(plan: Path, samples: Path | None, target: str, out: Path, rollouts: int) -> int:
    """Write the plan's data set, configuration and README for a framework.

    Raises ExportError for a framework that cannot keep an order, ids without a sample, or a folder that is not free.
    """
    require_target(target)
    export = open_export(plan, samples, rollouts)
    files = export_plan(export, target, out)
    print(f"{out}: {export.plan.steps} steps of {export.prompts_per_step} prompts for {target}")
    print(f"files: {', '.join(files)}; {out / 'README.md'} has the launch command")
    return 0


def run_verify(plan: Path, log: Path, rollouts: int | None, any_slot: bool, steps: int | None = None) -> int:
    """Print the comparison, the last line as one JSON object; 0 when the plan was followed, else 1.

    With `steps` the log is that many steps long and may end in the middle of a pass over the plan. Raises PlanError or LogError
    when a file is missing or malformed.
    """
    if steps is not None and steps < 1:
        raise LogError(f"--steps {steps}: give the optimiser steps of the run, at least 1")
    report = follow(open_plan(plan), read_log(log), rollouts, any_slot)
    followed = report.followed_for(steps)
    if followed and not report.followed:
        print(f"the plan was followed: {steps} steps, {report.steps_planned} in a pass")
    else:
        print("\n".join(verdict(report)))
    if report.followed and not followed:
        print(f"but the log holds {report.steps_logged} steps, not {steps}")
    values = dataclasses.asdict(report) | {"followed": followed}
    print(json.dumps({**values, **{name: len(values[name]) for name in ("dropped", "repeated", "unknown")}}))
    return 0 if followed else 1


def verdict(report: FollowReport) -> list[str]:
    """The report in words, one line a finding."""
    times = "" if report.epochs == 1 else f", {report.epochs} times"
    if report.first is None:
        return [f"the plan was followed: {report.steps_planned} steps{times}"]
    first = report.first
    place = f"step {first.step}, slot {first.slot} (both from 0)"
    if report.log_ended:
        lines = [f"the plan was NOT followed to its end: the log ends before {place}, where the plan says {first.planned}"]
    else:
        planned, consumed = first.planned or "nothing more", first.consumed or "nothing"
        lines = [f"the plan was NOT followed: at {place} it says {planned}, the trainer consumed {consumed}"]
    lines.append(f"{report.steps_kept} of {report.steps_planned * report.epochs} steps hold the planned prompts")
    if report.only_order_inside_steps:
        lines.append("only the order inside steps differs, which changes no batch: --any-slot accepts it")
    for label, ids in (
        ("planned and never consumed", report.dropped),
        ("consumed in more steps than planned", report.repeated),
        ("not in the plan", report.unknown),
    ):
        if ids:
            lines.append(f"{len(ids)} ids {label}, first {', '.join(ids[:3])}")
    return lines
