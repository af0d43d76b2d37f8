"""What an audit reads: the finished stages of a profile, checked against each other. Nothing is fitted and no model runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from saerl_lib.artifacts import ArtifactError, Stage, load_stage
from saerl_lib.config import PlanConfig, Profile
from saerl_lib.data.sample import Sample
from saerl_lib.data.stage import load_split
from saerl_lib.encode.features import FeatureTable
from saerl_lib.encode.stage import load_split_features, retained_latents
from saerl_lib.plan.batch_plan import BatchPlan
from saerl_lib.plan.curriculum import Batch, cluster_first
from saerl_lib.plan.partners import BatchFacts, batch_facts
from saerl_lib.plan.stage import load_plan
from saerl_lib.properties.audit_stage import load_decision_model
from saerl_lib.properties.decision import DecisionModel
from saerl_lib.properties.feature_names import feature_names


@dataclass(frozen=True)
class Evidence:
    """Everything that decided about a pool of N samples; the rows of `samples`, `features` and `scores` agree."""

    samples: list[Sample]
    features: FeatureTable
    names: tuple[str, ...]
    """Column names of phi, `properties.feature_names`."""
    scores: pd.DataFrame
    """sample_id, cluster, distance, raw, calibrated, ranking, length, score (of the filter), kept."""
    clusters: pd.DataFrame
    """Indexed by cluster: label, n_labelled, residual, shrinkage."""
    decision: DecisionModel
    plan: BatchPlan
    batches: list[Batch]
    """Batches of the curriculum before the tail swap; rows index `planned`."""
    planned: pd.DataFrame
    """The kept rows of `scores`."""
    facts: list[BatchFacts]
    """Of `batches`."""
    config: PlanConfig

    @property
    def homes(self) -> dict[str, int]:
        """Step of every planned sample before the swap."""
        ids = self.planned["sample_id"].tolist()
        return {ids[row]: step for step, batch in enumerate(self.batches) for row in batch.rows.tolist()}


def gather(
    samples: list[Sample], features: FeatureTable, names: tuple[str, ...], scores: pd.DataFrame, clusters: pd.DataFrame,
    decision: DecisionModel, plan: BatchPlan, config: PlanConfig,
) -> Evidence:  # fmt: skip
    """Evidence from the stages' tables; the batches before the swap are built again.

    Raises ArtifactError when rows, scores or plan do not belong together.
    """
    if not [s.id for s in samples] == list(features.ids) == scores["sample_id"].tolist():
        raise ArtifactError("samples, features and scores are of different pools: run the notebooks of this profile in order")
    planned = scores[scores["kept"]].reset_index(drop=True)
    columns = {name: planned[name].to_numpy() for name in ("cluster", "ranking", "raw", "length")}
    batches = cluster_first(planned["sample_id"].tolist(), columns["cluster"], columns["ranking"], columns["raw"], config)
    before = planned["sample_id"].to_numpy()[np.concatenate([b.rows for b in batches])]
    stays = plan.table["swapped_with"].to_numpy() < 0
    if len(before) != len(plan.ids) or (before != np.array(plan.ids))[stays].any():
        raise ArtifactError("the plan is not the saerl plan of this pool: run notebook 06 again")
    facts = batch_facts(batches, columns["cluster"], columns["ranking"], columns["length"])
    return Evidence(samples, features, names, scores, clusters, decision, plan, batches, planned, facts, config)


def open_evidence(profile: Profile, audit_stage: Stage) -> Evidence:
    """Evidence of a profile's finished stages. Raises ArtifactError for a stage that is missing or of other settings."""
    world, features, difficulty, quality, plans = (
        load_stage(profile, name) for name in ("world", "features", "difficulty", "filter", "plans")
    )
    scores = pd.read_parquet(difficulty.path("scores.parquet"))
    scores = scores.merge(pd.read_parquet(quality.path("kept.parquet")), on="sample_id", validate="one_to_one")
    labels = pd.read_parquet(audit_stage.path("cluster_audit.parquet"))[["cluster", "label"]]
    clusters = pd.read_parquet(difficulty.path("clusters.parquet")).merge(labels, on="cluster").set_index("cluster")
    return gather(
        load_split(world, "pool"),
        load_split_features(features, "pool"),
        feature_names(retained_latents(features)),
        scores,
        clusters,
        load_decision_model(audit_stage),
        load_plan(plans, "saerl"),
        profile.plan,
    )
