"""Stage `plans`: the filtered pool in the orders that are trained or compared."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import PlanConfig, Profile, sub_seed, to_dict
from saerl_lib.encode.features import load_split_features
from saerl_lib.plan.batch_plan import BatchPlan, read_plan, rows_of, write_plan
from saerl_lib.plan.mixing import composition_rows, diversity_rows, projection_2d, standardised_space
from saerl_lib.plan.orders import build_plan


def kept_pool(difficulty: Stage, quality: Stage) -> pd.DataFrame:
    """Scores of the samples that the filter kept, in pool order."""
    scores = pd.read_parquet(difficulty.path("scores.parquet"))
    kept = pd.read_parquet(quality.path("kept.parquet"))
    return scores.merge(kept[kept["kept"]][["sample_id"]], on="sample_id", validate="one_to_one")


def order_pool(pool: pd.DataFrame, config: PlanConfig, order: str, seed: int = 0) -> BatchPlan:
    """A validated plan of the kept pool."""
    arrays = (pool[name].to_numpy() for name in ("cluster", "ranking", "raw", "length"))
    return build_plan(pool["sample_id"], *arrays, config, order=order, seed=seed)


def plans_stage(profile: Profile, features: Stage, difficulty: Stage, quality: Stage) -> Stage:
    """Write saerl.parquet, saerl_before_mixing.parquet and one random-<seed>.parquet a matched seed, with two tables.

    composition.parquet and diversity.parquet hold the rows of batch_composition.csv and inbatch_diversity.csv.
    """

    def compute(folder: Path) -> None:
        pool = kept_pool(difficulty, quality)
        plans = {name: order_pool(pool, profile.plan, name) for name in ("saerl", "saerl_before_mixing")}
        for seed in range(profile.train.seeds):
            shuffle = sub_seed(profile.seed, f"random-order-{seed}")
            plans[f"random-{seed}"] = order_pool(pool, profile.plan, "random", shuffle)
        for name, plan in plans.items():
            write_plan(plan, folder / f"{name}.parquet")
        shown = (plans["random-0"], plans["saerl_before_mixing"], plans["saerl"])
        composition = [composition_rows(plan, pool["sample_id"], pool["length"].to_numpy()) for plan in shown]
        pd.concat(composition).to_parquet(folder / "composition.parquet", index=False)
        _diversity(profile, features, pool, plans).to_parquet(folder / "diversity.parquet", index=False)

    config = {
        **to_dict(profile.plan),
        "seeds": profile.train.seeds,
        "seed": profile.seed,
        "bootstrap": profile.properties.bootstrap_samples,
    }
    return get_or_compute(profile, "plans", config, compute, (features, difficulty, quality))


def _diversity(profile: Profile, features: Stage, pool: pd.DataFrame, plans: dict[str, BatchPlan]) -> pd.DataFrame:
    """In-batch diversity of random order and of the curriculum with h = 0 to half a batch swapped."""
    table = load_split_features(features, "pool")
    z = table.z[rows_of(pool["sample_id"], table.ids)]
    spaces = {"PCA 2-D": projection_2d(z), "full": standardised_space(z)}
    b, resamples = profile.plan.prompts_per_step, profile.properties.bootstrap_samples
    rows = [diversity_rows(plans["random-0"], pool["sample_id"], spaces, resamples, profile.seed)]
    for h in range(b // 2 + 1):
        config = PlanConfig(**{**to_dict(profile.plan), "swapped_per_batch": h})
        plan = order_pool(pool, config, "saerl")
        rows.append(diversity_rows(plan, pool["sample_id"], spaces, resamples, profile.seed))
    return pd.concat(rows)


def load_plan(plans: Stage, name: str) -> BatchPlan:
    """One plan of the stage."""
    return read_plan(plans.path(f"{name}.parquet"))
