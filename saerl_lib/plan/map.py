"""The map of SAE space: two principal components of the pool's z, with domain and cluster."""

from __future__ import annotations

import numpy as np
import pandas as pd

from saerl_lib.artifacts import Stage
from saerl_lib.config import Profile
from saerl_lib.data.sample import load_split
from saerl_lib.encode.features import load_split_features
from saerl_lib.plan.mixing import projection_2d
from saerl_lib.properties.clusters import pool_clusters
from saerl_lib.properties.scorer import topics_at


def sae_map_table(profile: Profile, world: Stage, features: Stage) -> pd.DataFrame:
    """Rows of sae_map.csv, one a pool sample; the clusters are those of the difficulty stage (same seed, same phi)."""
    samples, table = load_split(world, "pool"), load_split_features(features, "pool")
    clusters = pool_clusters(table.phi, profile.properties, profile.seed)
    points = projection_2d(table.z)
    return pd.DataFrame(
        {
            "sample_id": table.ids,
            "x": points[:, 0],
            "y": points[:, 1],
            "domain": topics_at(samples, 1),
            "cluster": clusters.assign(table.phi).label,
            "difficulty": np.array([s.difficulty for s in samples]),
        }
    )
