"""SAERL with the other readings of an open choice: in which stages a cluster with few batches takes part.

By default stage t holds the t-th batch of every cluster that still has one, so that the run ends on batches of the largest
cluster alone. Added after the first results had shown that SAERL loses accuracy there.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from saerl_lib.arms.base import Arm, ArmPool, ArmSetting, Order
from saerl_lib.arms.saerl import COST, curriculum
from saerl_lib.plan.batch_plan import BatchPlan


def staged(unequal: str) -> Order:
    """The curriculum with `PlanConfig.unequal` as given."""
    whole = curriculum()

    def order(pool: ArmPool, setting: ArmSetting) -> BatchPlan | np.ndarray:
        return whole(pool, replace(setting, plan=replace(setting.plan, unequal=unequal)))

    return order


ARMS = (
    Arm("saerl_stretch", "SAERL, clusters spread over the run", "control", order=staged("stretch"), cost=COST,
        baseline="saerl_grpo"),
    Arm("saerl_back", "SAERL, clusters end together", "control", order=staged("back"), cost=COST, baseline="saerl_grpo"),
)  # fmt: skip
