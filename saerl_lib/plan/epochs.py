"""The plan of a later pass over the pool: what follows the first epoch is not stated in the paper (900 x 128 are 1.12).

`PlanConfig.second_epoch` names the reading; every pass is a permutation of the pool by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saerl_lib.config import PlanConfig, sub_seed
from saerl_lib.plan.batch_plan import BatchPlan, PlanError
from saerl_lib.plan.orders import build_plan, random_order


def epoch_plan(
    epoch: int, ids: Sequence[str], clusters: np.ndarray, ranking: np.ndarray, raw: np.ndarray, lengths: np.ndarray,
    config: PlanConfig, *, order: str = "saerl", seed: int = 0, labels: np.ndarray | None = None,
) -> BatchPlan:
    """The validated plan of pass `epoch` (0 is the first); the other arguments are those of `build_plan`.

    After the first pass the orders `saerl` and `saerl_before_mixing` follow `second_epoch`; `random` is shuffled anew
    unless that is 'same'; orders by difficulty labels stay. Raises PlanError as `build_plan` does and for epoch below 0.
    """
    if epoch < 0:
        raise PlanError(f"epoch={epoch} must be at least 0, the first pass")
    within = None
    if epoch and config.second_epoch != "same":
        seed = sub_seed(seed, f"epoch-{epoch}")
        if config.second_epoch == "random" and order.startswith("saerl"):
            order = "random"
        within = random_order(ids, seed)
    arrays = (ids, clusters, ranking, raw, lengths)
    return build_plan(*arrays, config, order=order, seed=seed, labels=labels, within=within)
