"""The SAERL curriculum, its ablations (Table 7), mixing (Figure 3), batch size (Table 8), and other features in place of the SAE's."""

from __future__ import annotations

import dataclasses

import numpy as np

from saerl_lib.arms.base import Arm, ArmPool, ArmSetting, Order
from saerl_lib.config import PlanConfig, sub_seed
from saerl_lib.plan.batch_plan import BatchPlan
from saerl_lib.plan.orders import build_plan, random_order

COST = ("encode", "label_subset")


def curriculum(
    mixing: bool = True, sorting: bool = True, swapped: float | None = None, features: str = "", ranking: str = "ranking",
    permuted: bool = False,
) -> Order:
    """Cluster-first curriculum. `swapped` is h as a share of the batch (None: the profile's); `features` names another encoder.

    Without `sorting` the samples of a cluster come in random order, the same for every matched seed. `permuted` deals the
    scores to other samples: a difficulty that knows nothing, with the same values.
    """

    def order(pool: ArmPool, setting: ArmSetting) -> BatchPlan | np.ndarray:
        suffix = f"@{features}" if features else ""
        config = setting.plan
        if swapped is not None:
            config = dataclasses.replace(config, swapped_per_batch=round(swapped * config.prompts_per_step))
        within = None if sorting else random_order(pool.ids, sub_seed(0, "within-cluster"))
        score, raw = pool.column(f"{ranking}{suffix}" if ranking == "ranking" else ranking), pool.column(f"raw{suffix}")
        if permuted:
            other = np.random.default_rng(sub_seed(0, "permuted-scores")).permutation(len(score))
            score, raw = score[other], raw[other]
        return build_plan(
            pool.ids, pool.column(f"cluster{suffix}"), score, raw, pool.column("length"), config,
            order="saerl" if mixing else "saerl_before_mixing", within=within,
        )  # fmt: skip

    return order


def difficulty_alone(pool: ArmPool, setting: ArmSetting) -> BatchPlan | np.ndarray:
    """Easy to hard by the ranking score over the whole pool: no clusters, no mixing."""
    return np.lexsort((np.asarray(pool.ids), pool.column("raw"), pool.column("ranking")))


def scaled(config: PlanConfig, factor: int) -> PlanConfig:
    """The plan's settings at `factor` times the batch: the same share swapped, the same number of samples in the window."""
    return dataclasses.replace(
        config,
        prompts_per_step=factor * config.prompts_per_step,
        swapped_per_batch=factor * config.swapped_per_batch,
        window_batches=max(1, round(config.window_batches / factor)),
    )


def _arm(name: str, title: str, group: str, order: Order, **rest: object) -> Arm:
    return Arm(name, title, group, order=order, **{"cost": COST, **rest})  # type: ignore[arg-type]


ARMS = (
    _arm("saerl_grpo", "SAERL on GRPO", "paper", curriculum()),
    _arm("saerl_dapo", "SAERL on DAPO", "paper", curriculum(), dapo=True),
    _arm("minus_diff", "- Diff: random inside clusters", "ablation", curriculum(sorting=False), baseline="saerl_grpo"),
    _arm("minus_diff_mix", "- Diff & Mix", "ablation", curriculum(False, False), baseline="saerl_grpo"),
    _arm("minus_clus_mix", "- Clus & Mix: difficulty alone", "ablation", difficulty_alone, baseline="saerl_grpo"),
    _arm("minus_mix", "- Mix: h = 0", "ablation", curriculum(False), baseline="saerl_grpo"),
    _arm("mix_1", "h = 1 of 32", "mixing", curriculum(swapped=1 / 32), baseline="minus_mix"),
    _arm("mix_4", "h = 4 of 32", "mixing", curriculum(swapped=4 / 32), baseline="minus_mix"),
    _arm("mix_8", "h = 8 of 32", "mixing", curriculum(swapped=8 / 32), baseline="minus_mix"),
    _arm("saerl_4b", "SAERL, four times the batch", "batch", curriculum(), batch_factor=4, baseline="grpo_4b"),
    _arm(
        "saerl_unfiltered", "SAERL on the unfiltered pool", "filter", curriculum(), pool="unfiltered",
        baseline="grpo_unfiltered",
    ),
    _arm("saerl_true", "SAERL with the true label as difficulty", "control", curriculum(ranking="label"),
         cost=("encode", "label_pool"), baseline="saerl_grpo"),
    _arm("saerl_tfidf", "SAERL with TF-IDF features", "control", curriculum(features="tfidf"), needs=("cluster@tfidf",),
         cost=("label_subset",), baseline="saerl_grpo"),
    _arm("saerl_dense", "SAERL with dense activations", "control", curriculum(features="dense"), needs=("cluster@dense",),
         baseline="saerl_grpo"),
    _arm("saerl_frozen", "SAERL with a frozen-decoder SAE", "control", curriculum(features="frozen"),
         needs=("cluster@frozen",), baseline="saerl_grpo"),
    _arm("saerl_shuffled", "SAERL with shuffled difficulty", "control", curriculum(permuted=True), baseline="saerl_grpo"),
)  # fmt: skip
