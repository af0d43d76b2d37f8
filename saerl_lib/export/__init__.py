"""A batch plan for other trainers: the ordered data set in each framework's own schema, and a check of what was consumed.

`export_plan` writes a folder for one of `TARGETS`; `follow` compares a trainer's log with the plan. This room reads
`data` and `plan` alone. Axes: T steps, b prompts_per_step, G rollouts_per_prompt.
"""

from __future__ import annotations

from saerl_lib.export.follow import FollowReport, follow
from saerl_lib.export.log import ConsumedLog, LogError, read_log
from saerl_lib.export.samples import Export, ExportError, open_export, open_plan
from saerl_lib.export.targets import REFUSED, TARGETS, export_plan

__all__ = [
    "REFUSED", "TARGETS", "ConsumedLog", "Export", "ExportError", "FollowReport", "LogError", "export_plan", "follow",
    "open_export", "open_plan", "read_log",
]  # fmt: skip
