"""What the study's fixed orders look like: how far they sort by difficulty and mix, and how unequal their clusters are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from saerl_lib.artifacts import load_stage
from saerl_lib.config import Profile
from saerl_lib.plan.batch_plan import BatchPlan, plan_hash
from saerl_lib.properties import correlation
from saerl_lib.train.arm_pool import load_arm_pool
from saerl_lib.train.arms import Arm, ArmPool
from saerl_lib.train.grid import arm_plan

COLUMNS = [
    "arm", "prompts_per_step", "swapped_per_batch", "batches", "swapped_batches", "swapped_batches_second_half",
    "swapped_samples", "label_rho", "largest_cluster", "plan_hash",
]  # fmt: skip
HASH_LENGTH = 12


def facts(plan: BatchPlan, pool: ArmPool) -> dict[str, float | str]:
    """Shares of batches and samples that were swapped, Spearman of position with the label, share of the largest cluster, hash.

    The hash is the beginning of `plan_hash`: arms that train on one plan share it.
    """
    table = plan.table
    swapped = table["swapped_with"].to_numpy() >= 0
    by_batch = pd.Series(swapped).groupby(table["step"].to_numpy()).any().to_numpy()
    label = pool.table.set_index("sample_id")["label"].loc[plan.ids].to_numpy()
    return {
        "prompts_per_step": plan.prompts_per_step, "swapped_per_batch": plan.swapped_per_batch, "batches": plan.steps,
        "swapped_batches": float(by_batch.mean()), "swapped_batches_second_half": float(by_batch[len(by_batch) // 2 :].mean()),
        "swapped_samples": float(swapped.mean()),
        "label_rho": correlation("spearman", np.arange(len(label), dtype=float), label),
        "largest_cluster": float(table["cluster"].value_counts(normalize=True).max()),
        "plan_hash": plan_hash(plan)[:HASH_LENGTH],
    }  # fmt: skip


def plan_facts(profile: Profile, arms: Mapping[str, Arm]) -> pd.DataFrame:
    """Rows of study_plans.csv, one an arm with a fixed order, at its first matched seed.

    Raises ArtifactError when the study's stages are missing.
    """
    stage, pools, rows = load_stage(profile, "arm_pool"), {}, []
    for arm in arms.values():
        if arm.order is None:
            continue
        pool = pools.setdefault(arm.pool, load_arm_pool(stage, arm.pool))
        rows.append({"arm": arm.name} | facts(arm_plan(arm, pool, profile.plan, profile.steps, seed=0), pool))
    return pd.DataFrame(rows, columns=COLUMNS)
