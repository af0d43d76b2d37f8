"""A second, larger policy under the plans of the first: the claim that one SAE guides all policies (Table 4, Section 5.2)."""

from __future__ import annotations

from saerl_lib.arms.base import Arm
from saerl_lib.arms.orders import shuffle
from saerl_lib.arms.saerl import COST, curriculum

LARGE = "policy_large"

ARMS = (
    Arm("grpo_large", "GRPO, larger policy", "transfer", order=shuffle("shuffle"), seeded=True, model=LARGE,
        baseline="grpo_large"),
    Arm("saerl_grpo_large", "SAERL on GRPO, larger policy", "transfer", order=curriculum(), model=LARGE, cost=COST,
        baseline="grpo_large"),
)  # fmt: skip
