"""The batch plan: which samples form the batch of every optimiser step (paper, section 3).

`build_plan` is the entry point; `curriculum` and `mixing` are its two steps, `batch_plan` is the record that is stored
and followed, `diversity` describes it. Axes: N samples, T batches (= steps), b = prompts_per_step.
"""

from __future__ import annotations

from saerl_lib.plan.batch_plan import BatchPlan, PlanError, plan_hash, read_plan, validate, write_plan
from saerl_lib.plan.orders import ORDERS, build_plan

__all__ = ["ORDERS", "BatchPlan", "PlanError", "build_plan", "plan_hash", "read_plan", "validate", "write_plan"]
