"""Clusters of MATH and what tells them apart: section 5.4 and Tables 10 to 12 of the paper, on real problems.

The paper's clusters are of DeepMath and NuminaMath-1.5 read by Qwen3-1.7B, its topics are hundreds of leaves; MATH has seven
subjects and is read by a small LM, so the paper's values stand beside these for orientation and are not to be reached.
Purity has a floor, the share of the largest subject; shuffled labels show what each number is without a relation.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from saerl_lib.config import Profile, PropertyConfig, sub_seed
from saerl_lib.encode.features import FeatureTable
from saerl_lib.encode.metadata import FEATURES
from saerl_lib.encode.pooling import Encoder
from saerl_lib.properties.audit_stage import pool_facts
from saerl_lib.properties.cluster_audit import PoolFacts, cluster_audit_table
from saerl_lib.properties.clusters import agreement, pool_clusters
from saerl_lib.properties.feature_audit import (
    feature_gain,
    feature_groups_table,
    highest_activating,
    resampled_gains,
    top_latents_table,
)
from saerl_lib.properties.feature_names import feature_names
from saerl_lib.properties.highlights import TokenHighlights, Wanted, token_highlights
from saerl_lib.properties.real_features import RealPart
from saerl_lib.properties.stability import seed_fits, stability_row
from saerl_lib.properties.stage import PAPER_AGREEMENT

QUANTITIES = ("purity", "nmi", "ari")
SHUFFLES = 20
"""Shuffles of the labels behind the control (ours)."""
EXCERPT = 100
"""Longest quotation of a problem in characters: the data themselves are not redistributed."""
COLUMNS = ["dataset", "features", "quantity", "value", "ci_low", "ci_high", "paper_value", "n"]
"""Columns of real_clusters.csv."""
MAIN, FIRST = "sae", "sae#0"


def agreement_rows(
    label: np.ndarray, topics: np.ndarray, prefix: str, config: PropertyConfig, seed: int
) -> list[tuple[str, float, float, float]]:
    """(quantity, value, low, high) of clusters [N] against topics [N]; 95 % bootstrap over samples, clusters fixed."""
    def values(rows: np.ndarray) -> list[float]:
        found = agreement(label[rows], topics[rows])
        return [getattr(found, name) for name in QUANTITIES]

    rng, n = np.random.default_rng(seed), len(label)
    draws = np.array([values(rng.integers(0, n, n)) for _ in range(config.bootstrap_samples)])
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    found = zip(QUANTITIES, values(np.arange(n)), low, high, strict=True)
    return [(prefix + name, float(v), float(a), float(b)) for name, v, a, b in found]


def shuffled_rows(label: np.ndarray, topics: np.ndarray, seed: int) -> list[tuple[str, float, float, float]]:
    """(quantity, mean, least, largest) over shuffles of the topics: agreement without any relation."""
    rng = np.random.default_rng(seed)
    found = [agreement(label, rng.permutation(topics)) for _ in range(SHUFFLES)]
    draws = {name: np.array([getattr(f, name) for f in found]) for name in QUANTITIES}
    return [(name, float(v.mean()), float(v.min()), float(v.max())) for name, v in draws.items()]


def clustered_features(tables: Mapping[str, FeatureTable]) -> dict[str, np.ndarray]:
    """Features set -> phi [N, D] that is clustered: the SAE's, those of its controls, and metadata alone."""
    named = {MAIN: FIRST, "sae_untrained": "sae_untrained#0", "dense": "dense"}
    found = {name: tables[key].complete().phi for name, key in named.items()}
    return {**found, "metadata": tables[FIRST].metadata}


def clusters_table(tables: Mapping[str, FeatureTable], part: RealPart, profile: Profile) -> pd.DataFrame:
    """Rows of real_clusters.csv: agreement with subject and level by features, its controls, and stability over seeds.

    Quantities `ari_kmeans_seeds` and `ari_sae_seeds` compare clusters with clusters: value, ci_low and ci_high are mean, least
    and largest over all pairs; the latter is left out with one SAE. The paper's values are of its own leaf topics.
    """
    config, seed, rows = profile.properties, profile.seed, []
    subject, level = part.data.labels["subject"], part.data.labels["level"]
    rated, paper = np.isfinite(level), dict(zip(QUANTITIES, PAPER_AGREEMENT, strict=True))
    label = {name: pool_clusters(phi, config, seed).assign(phi).label for name, phi in clustered_features(tables).items()}
    draw = sub_seed(seed, "real-agreement")
    for name, own in label.items():
        rows += [(name, *row, len(own)) for row in agreement_rows(own, subject, "", config, draw)]
    rows += [("shuffled_labels", *row, len(subject)) for row in shuffled_rows(label[MAIN], subject, draw)]
    largest = float(np.unique(subject, return_counts=True)[1].max() / len(subject))
    rows.append(("majority", "purity", largest, np.nan, np.nan, len(subject)))
    pairs = agreement_rows(label[MAIN][rated], level[rated].astype(str), "level_", config, draw)
    rows += [(MAIN, *row, int(rated.sum())) for row in pairs]
    for quantity, labels in _seed_labels(tables, label[MAIN], config, seed).items():
        if len(labels) > 1:
            found = stability_row(quantity, labels).iloc[0]
            rows.append((MAIN, quantity, found["ari_mean"], found["ari_low"], found["ari_high"], len(subject)))
    frame = pd.DataFrame([(part.source[0], f, q, *rest[:3], np.nan, rest[3]) for f, q, *rest in rows], columns=COLUMNS)
    own = frame["features"].eq(MAIN)
    return frame.assign(paper_value=frame["quantity"].map(paper).where(own))


def _seed_labels(
    tables: Mapping[str, FeatureTable], main: np.ndarray, config: PropertyConfig, seed: int
) -> dict[str, list[np.ndarray]]:
    phi = tables[FIRST].complete().phi
    others = [tables[n].complete().phi for n in sorted(tables) if n.startswith("sae#") and n != FIRST]
    return {
        "ari_kmeans_seeds": [fit.assign(phi).label for fit in seed_fits(phi, config, seed)],
        "ari_sae_seeds": [main, *(pool_clusters(x, config, seed).assign(x).label for x in others)],
    }


def math_facts(part: RealPart, table: FeatureTable) -> PoolFacts:
    """Topics are subjects, difficulty is the level."""
    facts = pool_facts(list(part.data.samples), table.metadata)
    return PoolFacts(facts.ids, part.data.labels["subject"], part.data.labels["level"], facts.prompt_words, facts.solution_words)


def short_excerpt(item: TokenHighlights, characters: int = EXCERPT) -> str:
    """The strongest token in guillemets with what surrounds it, at most `characters` long, line breaks as blanks.

    >>> short_excerpt(TokenHighlights("sol_max/3", "a", "solution", ("x", " =", " 7", " so"), (0.0, 0.5, 2.0, 0.0)), 9)
    '...« 7»...'
    """
    best = item.strongest or 0
    token = f"«{item.tokens[best]}»"[:characters]
    before, after = "".join(item.tokens[:best]), "".join(item.tokens[best + 1 :])
    room = max(0, characters - len(token) - 6)
    right = after[: max(room // 2, room - len(before))]
    left = before[len(before) - min(len(before), room - len(right)) :]
    marks = ("..." if len(left) < len(before) else "", "..." if len(right) < len(after) else "")
    return " ".join(f"{marks[0]}{left}{token}{right}{marks[1]}".split())


def with_excerpts(
    latents: pd.DataFrame, names: tuple[str, ...], part: RealPart, table: FeatureTable, encoder: Encoder
) -> pd.DataFrame:
    """`latents` with example_id and example_text, a short excerpt of the sample that each feature is largest on."""
    wanted = []
    for row in latents.itertuples():
        best = highest_activating(table.z, table.ids, names.index(row.feature), 1)[0]
        span = "prompt" if row.block.startswith("prompt") else "solution"
        wanted.append(Wanted(row.feature, row.latent, span, part.data.samples[best]))
    shown = token_highlights(wanted, encoder).items if wanted else ()
    return latents.assign(example_id=[i.sample_id for i in shown], example_text=[short_excerpt(i) for i in shown])


def cluster_study(
    tables: Mapping[str, FeatureTable], retained: np.ndarray, part: RealPart, encoder: Encoder, profile: Profile
) -> dict[str, pd.DataFrame]:
    """Tables real_clusters, real_cluster_audit, real_feature_groups, real_top_latents; `retained` [S] of the first SAE."""
    table, names = tables[FIRST].complete(), feature_names(retained, FEATURES)
    phi, facts, seed = table.phi, math_facts(part, table), sub_seed(profile.seed, "real-feature-audit")
    assigned = pool_clusters(phi, profile.properties, profile.seed).assign(phi)
    gain = feature_gain(phi, assigned.label, seed)
    latents = top_latents_table(gain, names, phi, facts.topics, bootstrap_samples=profile.properties.bootstrap_samples, seed=seed)
    return {
        "real_clusters": clusters_table(tables, part, profile),
        "real_cluster_audit": cluster_audit_table(phi, names, assigned, facts),
        "real_feature_groups": feature_groups_table(gain, resampled_gains(phi, assigned.label, seed), names, len(phi)),
        "real_top_latents": with_excerpts(latents, names, part, table, encoder),
    }
