"""Stage `audit`: cluster audit, feature audit and the models that one sample's decision path needs (paper, 5.4 and D)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, sub_seed, to_dict
from saerl_lib.data.sample import Sample
from saerl_lib.data.stage import load_split
from saerl_lib.encode.features import FeatureTable
from saerl_lib.encode.metadata import FEATURES
from saerl_lib.encode.stage import load_split_features, open_encoder, retained_latents
from saerl_lib.properties.cluster_audit import PoolFacts, cluster_audit_table
from saerl_lib.properties.clusters import Assignment
from saerl_lib.properties.decision import DecisionModel, fit_decision, load_decision, save_decision
from saerl_lib.properties.feature_audit import (
    feature_gain,
    feature_groups_table,
    highest_activating,
    resampled_gains,
    top_latents_table,
)
from saerl_lib.properties.feature_names import feature_names
from saerl_lib.properties.highlights import HighlightPage, Wanted, from_records, to_records, token_highlights

EXAMPLES = 3
"""Highest-activating samples of each top latent (ours)."""


def pool_facts(samples: list[Sample], metadata: np.ndarray) -> PoolFacts:
    """Labels and lengths of a pool beside its features."""
    words = {side: metadata[:, FEATURES.index(f"{side}_words")] for side in ("prompt", "solution")}
    topics = np.array([s.topic for s in samples], dtype=str)
    difficulty = np.array([s.difficulty for s in samples], dtype=float)
    return PoolFacts([s.id for s in samples], topics, difficulty, words["prompt"], words["solution"])


def audit_stage(profile: Profile, world: Stage, sae: Stage, features: Stage, difficulty: Stage) -> Stage:
    """Write what notebook 04 shows and what `plan.audit` reads.

    cluster_audit.parquet, feature_groups.parquet and top_latents.parquet hold the rows of the CSV tables of these names,
    difficulty_interval.parquet the interval's coverage on the test split, highlights.json the tokens of the top latents,
    decision.safetensors the fitted models.
    """

    def compute(folder: Path) -> None:
        samples, table = load_split(world, "pool"), load_split_features(features, "pool")
        names = feature_names(retained_latents(features))
        scores = pd.read_parquet(difficulty.path("scores.parquet"))
        assigned = Assignment(scores["cluster"].to_numpy(), scores["distance"].to_numpy())
        phi, facts = table.phi, pool_facts(samples, table.metadata)
        cluster_audit_table(phi, names, assigned, facts).to_parquet(folder / "cluster_audit.parquet", index=False)
        seed = sub_seed(profile.seed, "feature-audit")
        gain = feature_gain(phi, assigned.label, seed)
        groups = feature_groups_table(gain, resampled_gains(phi, assigned.label, seed), names, len(phi))
        groups.to_parquet(folder / "feature_groups.parquet", index=False)
        latents = top_latents_table(
            gain, names, phi, facts.topics, bootstrap_samples=profile.properties.bootstrap_samples, seed=seed
        )
        page = _page(latents, names, samples, table, profile, sae)
        (folder / "highlights.json").write_text(json.dumps(to_records(page)) + "\n", encoding="utf-8")
        with_examples(latents, page).to_parquet(folder / "top_latents.parquet", index=False)
        decision, coverage = fit_decision(profile, world, features)
        save_decision(decision, folder / "decision.safetensors")
        coverage.to_parquet(folder / "difficulty_interval.parquet", index=False)

    config = {**to_dict(profile.properties), "seed": profile.seed}
    return get_or_compute(profile, "audit", "properties", config, compute, (world, sae, features, difficulty))


def _page(
    latents: pd.DataFrame, names: tuple[str, ...], samples: list[Sample], table: FeatureTable, profile: Profile, sae: Stage
) -> HighlightPage:
    wanted = []
    for row in latents.itertuples():
        span = "prompt" if row.block.startswith("prompt") else "solution"
        for i in highest_activating(table.z, table.ids, names.index(row.feature), EXAMPLES):
            wanted.append(Wanted(row.feature, row.latent, span, samples[i]))
    return token_highlights(wanted, open_encoder(profile, sae)) if wanted else HighlightPage(())


def with_examples(latents: pd.DataFrame, page: HighlightPage) -> pd.DataFrame:
    """The rows of `top_latents.csv`: `latents` with example_id and example_text of the highest-activating sample."""
    first = {item.feature: item for item in reversed(page.items)}
    shown = [first[feature] for feature in latents["feature"]]
    return latents.assign(example_id=[item.sample_id for item in shown], example_text=[item.text() for item in shown])


def load_highlights(audit: Stage) -> HighlightPage:
    """The tokens of the top latents' highest-activating samples; shown as HTML in a notebook."""
    return from_records(json.loads(audit.path("highlights.json").read_text(encoding="utf-8")))


def load_decision_model(audit: Stage) -> DecisionModel:
    """The fitted models of the stage."""
    return load_decision(audit.path("decision.safetensors"))
