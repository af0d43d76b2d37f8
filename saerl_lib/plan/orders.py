"""Every order of a pool as a BatchPlan: SAERL, SAERL before mixing, and the baselines (paper, sections 3, 4.1 and 5).

`random` is the order of GRPO and DAPO, `ascending` that of DIFF, `descending` is ours. All orders visit the same
samples once, in batches of the same size.
"""

from __future__ import annotations

import numpy as np

from saerl_lib.config import PlanConfig
from saerl_lib.plan.batch_plan import BatchPlan, Ids, PlanError, by_name, make_pool, plan_of, require_full_batches, validate
from saerl_lib.plan.curriculum import cluster_first
from saerl_lib.plan.mixing import mix_tails

ORDERS = ("saerl", "saerl_before_mixing", "random", "ascending", "descending")


def random_order(ids: Ids, seed: int) -> np.ndarray:
    """Row numbers [N] in random order; depends on the set of ids and the seed, not on the order of the input."""
    return by_name(ids)[np.random.default_rng(seed).permutation(len(ids))]


def by_difficulty(ids: Ids, labels: np.ndarray, descending: bool = False) -> np.ndarray:
    """Row numbers [N] sorted by difficulty label, ties by id. Raises PlanError for unequal rows or non-finite labels."""
    labels = np.asarray(labels, dtype=float)
    if len(labels) != len(ids) or not np.isfinite(labels).all():
        raise PlanError(f"labels must hold {len(ids)} finite numbers, one a sample: pass the difficulty of every sample")
    named = by_name(ids)
    return named[np.argsort((-labels if descending else labels)[named], kind="stable")]


def build_plan(
    ids: Ids, clusters: np.ndarray, ranking: np.ndarray, raw: np.ndarray, lengths: np.ndarray, config: PlanConfig,
    *, order: str = "saerl", seed: int = 0, labels: np.ndarray | None = None, within: np.ndarray | None = None,
) -> BatchPlan:  # fmt: skip
    """The validated plan of a pool of N samples under one of `ORDERS`.

    ids str [N], clusters int [N], ranking and raw float [N] (label units, larger is harder), lengths [N] in tokens.
    `seed` matters for `random` only; `labels` [N] are needed for `ascending` and `descending`; `within`, row numbers [N],
    replaces easy to hard inside the clusters of the two curriculum orders.
    Raises PlanError for an unknown order, missing labels, N no multiple of `prompts_per_step`, repeated ids,
    non-finite scores or lengths of 0.
    """
    if order not in ORDERS:
        raise PlanError(f"order={order!r} does not exist; choose one of {', '.join(ORDERS)}")
    if order in ("ascending", "descending") and labels is None:
        raise PlanError(f"order={order!r} sorts by difficulty labels: pass labels")
    pool, b, h = make_pool(ids, clusters, ranking, raw, lengths), config.prompts_per_step, 0
    require_full_batches(len(pool.ids), b)
    swapped_with = np.full(len(pool.ids), -1, dtype=np.int64)
    if order == "random":
        rows = random_order(pool.ids, seed)
    elif order in ("ascending", "descending"):
        rows = by_difficulty(pool.ids, labels, descending=order == "descending")
    else:
        batches = cluster_first(pool.ids, pool.clusters, pool.ranking, pool.raw, config, within)
        if order == "saerl":
            h = config.swapped_per_batch
            mixed = mix_tails(batches, pool.clusters, pool.ranking, pool.lengths, config)
            batches = mixed.batches
            swapped_with = np.where(np.arange(b) >= b - h, mixed.partner[:, None], -1).ravel()
        rows = batches.rows.ravel()
    plan = plan_of(pool, rows, swapped_with, order, b, h)
    validate(plan, pool.ids, b)
    return plan
