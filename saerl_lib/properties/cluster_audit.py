"""Cluster audit: what each cluster holds, in numbers and names (paper, Table 10), without an external language model.

The paper gives a label, topic entropy, difficulty, solution length and representative samples a cluster. Here the label
is made of the most frequent leaf topics; that rule, the latents beside it and their number are not stated in the paper; ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from saerl_lib.properties import require_finite, require_rows
from saerl_lib.properties.clusters import Assignment, topic_entropy
from saerl_lib.properties.feature_names import is_latent

UNLABELLED = "unlabelled"
"""Label of a cluster whose samples have no topic."""
TOP_TOPICS, REPRESENTATIVES, TOP_LATENTS = 3, 3, 5
"""Named topics, samples nearest to the centroid and latents a cluster (not stated in the paper; ours)."""
LABEL_SHARE = 0.1
"""A topic joins the label from this share of its cluster on; the first one always does (not stated in the paper; ours)."""
MIXED_SHARE = 0.25
"""Below this share of the first topic the label says that the cluster is mixed (not stated in the paper; ours)."""
COLUMNS = (
    "cluster", "n", "label", "top_topics", "topic_entropy_bits", "difficulty_mean", "difficulty_q25", "difficulty_median",
    "difficulty_q75", "n_difficulty", "prompt_words_mean", "solution_words_mean", "representatives", "top_latents",
)  # fmt: skip


@dataclass(frozen=True)
class PoolFacts:
    """What is known of N samples beside their features; topics may be '' and difficulty NaN."""

    ids: Sequence[str]
    topics: np.ndarray
    """Paths 'A -> B -> C', str [N]."""
    difficulty: np.ndarray
    """Labels, float [N]."""
    prompt_words: np.ndarray
    """[N]."""
    solution_words: np.ndarray
    """[N]."""


def ranked_topics(topics: np.ndarray) -> list[tuple[str, float]]:
    """(topic, share) of the non-empty topics [N], most frequent first, by name among equals; shares of the labelled ones.

    >>> ranked_topics(np.array(["b", "a", "", "a"]))
    [('a', 0.6666666666666666), ('b', 0.3333333333333333)]
    """
    names, counts = np.unique(topics[topics != ""], return_counts=True)
    order = np.lexsort((names, -counts))
    return [(str(names[i]), float(counts[i] / counts.sum())) for i in order]


def cluster_label(ranked: Sequence[tuple[str, float]]) -> str:
    """A cluster's label: the leaves of its top topics with a share of at least `LABEL_SHARE`, else the first leaf alone.

    >>> cluster_label([("Algebra -> Linear -> Two steps", 0.5), ("Numbers -> Primes", 0.3), ("Numbers -> Powers", 0.05)])
    'Two steps, Primes'
    >>> cluster_label([("Algebra -> Linear", 0.15), ("Numbers -> Primes", 0.05)])
    'mixed: Linear'
    """
    if not ranked:
        return UNLABELLED
    named = [topic for place, (topic, share) in enumerate(ranked[:TOP_TOPICS]) if place == 0 or share >= LABEL_SHARE]
    return ("mixed: " if ranked[0][1] < MIXED_SHARE else "") + ", ".join(topic.split(" -> ")[-1] for topic in named)


def standardised_shift(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Mean of `inside` [N] minus mean of the rest, in deviations of all rows of values [N, D]; 0 if constant or without a rest.

    >>> standardised_shift(np.array([[3.0, 1.0], [1.0, 1.0]]), np.array([True, False])).tolist()
    [2.0, 0.0]
    """
    if inside.all() or not inside.any():
        return np.zeros(values.shape[1])
    spread = values.std(axis=0)
    shift = values[inside].mean(axis=0) - values[~inside].mean(axis=0)
    return np.divide(shift, spread, out=np.zeros_like(shift), where=spread > 1e-12)


def cluster_audit_table(phi: np.ndarray, names: Sequence[str], assigned: Assignment, facts: PoolFacts) -> pd.DataFrame:
    """Rows of `cluster_audit.csv`, one a cluster that holds a sample; columns of `COLUMNS`.

    phi is [N, D] with column names [D]. Quartiles are of the finite difficulty labels, NaN without one; entropy in bits,
    0 without topics; lengths in words. `representatives` are the ids nearest to the centroid, `top_latents` the pooled
    latents whose mean lies most deviations above that of the other clusters. Both are joined by '; '.

    Raises ValueError for unequal rows, non-finite phi or another number of names than columns.
    """
    require_rows(phi=phi, labels=assigned.label, ids=facts.ids, topics=facts.topics, difficulty=facts.difficulty)
    require_finite("phi", phi)
    if len(names) != phi.shape[1]:
        raise ValueError(f"{len(names)} names for {phi.shape[1]} columns of phi: build them with feature_names")
    latents = np.flatnonzero([is_latent(name) for name in names])
    values, latent_names = np.asarray(phi, dtype=np.float64)[:, latents], [names[i] for i in latents]
    rows = [_row(int(c), values, latent_names, assigned, facts) for c in np.unique(assigned.label)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(cluster: int, values: np.ndarray, latents: Sequence[str], assigned: Assignment, facts: PoolFacts) -> tuple:
    inside = assigned.label == cluster
    topics = np.asarray(facts.topics, dtype=str)[inside]
    ranked = ranked_topics(topics)
    difficulty = np.asarray(facts.difficulty, dtype=float)[inside]
    difficulty = difficulty[np.isfinite(difficulty)]
    quartiles = np.percentile(difficulty, [25, 50, 75]).tolist() if len(difficulty) else [np.nan] * 3
    ids = np.asarray(facts.ids, dtype=str)[inside]
    nearest = ids[np.lexsort((ids, assigned.distance[inside]))][:REPRESENTATIVES]
    shift = standardised_shift(values, inside)
    top = [i for i in np.argsort(-shift, kind="stable")[:TOP_LATENTS] if shift[i] > 0]
    return (
        cluster,
        int(inside.sum()),
        cluster_label(ranked),
        "; ".join(f"{topic} ({share:.0%})" for topic, share in ranked[:TOP_TOPICS]),
        topic_entropy(topics[topics != ""]) if ranked else 0.0,
        float(difficulty.mean()) if len(difficulty) else np.nan,
        *quartiles,
        len(difficulty),
        float(np.mean(np.asarray(facts.prompt_words)[inside])),
        float(np.mean(np.asarray(facts.solution_words)[inside])),
        "; ".join(nearest),
        "; ".join(f"{latents[i]} (+{shift[i]:.1f})" for i in top),
    )
