"""In-batch diversity of the study's plans for every h: the x axis of the paper's Figure 3."""

from __future__ import annotations

import numpy as np
import pandas as pd

from saerl_lib.artifacts import load_stage
from saerl_lib.config import Profile
from saerl_lib.encode.features import load_split_features
from saerl_lib.plan.mixing import diversity_rows, projection_2d, standardised_space
from saerl_lib.report.study import MIXING
from saerl_lib.train.arm_pool import load_arm_pool
from saerl_lib.train.arms import find_arm
from saerl_lib.train.grid import arm_plan


def mixing_diversity(profile: Profile) -> pd.DataFrame:
    """Mean k-NN distance in batches of each arm of `MIXING`: arm, swapped_per_batch, space, value, ci_low, ci_high, n_batches.

    The space is that of the kept pool. Raises ArtifactError when the study's stages are missing.
    """
    pool = load_arm_pool(load_stage(profile, "arm_pool"), "kept")
    table = load_split_features(load_stage(profile, "features"), "pool")
    place = {name: i for i, name in enumerate(table.ids)}
    z = table.z[np.array([place[i] for i in pool.ids])]
    spaces = {"PCA 2-D": projection_2d(z), "full": standardised_space(z)}
    rows = []
    for name in MIXING:
        plan = arm_plan(find_arm(name), pool, profile.plan, profile.steps, seed=0)
        found = diversity_rows(plan, pool.ids, spaces, profile.properties.bootstrap_samples, profile.seed)
        rows.append(found.drop(columns="order").assign(arm=name))
    return pd.concat(rows, ignore_index=True)
