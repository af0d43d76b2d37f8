"""What a plan leaves behind as tables: one row a sample with its reasons, the cards of the clusters, the rows left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import rel_entr
from sklearn.feature_extraction.text import CountVectorizer

from saerl_lib.data.sample import Dataset, Dropped
from saerl_lib.own.arrange import Arranged
from saerl_lib.own.fit import Difficulty, Grouping, Quality
from saerl_lib.own.represent import Representation
from saerl_lib.plan.mixing import dominant_clusters

WORD = r"[^\W\d_]{3,}"
"""Words of a cluster's card: three letters or more."""
TERMS = 8
"""Words of a card."""
TYPICAL = 3
"""Samples nearest to the centroid on a card."""


def score_table(
    data: Dataset,
    found: Representation,
    grouping: Grouping,
    difficulty: Difficulty | None,
    quality: Quality | None,
    arranged: Arranged,
) -> pd.DataFrame:
    """Rows of scores.csv, one a usable row in the order of the source; unknown numbers are NaN, step and slot -1 without a place.

    Columns: where, id, status (planned, filtered or left over), cluster, distance, length, label, difficulty, low, high,
    percentile (share of the cluster that is ranked lower), quality, position, step, slot, swapped_with, reason.
    """
    n, nothing = len(data.samples), np.full(len(data.samples), np.nan)
    out = {d.id: d for d in arranged.dropped}
    places = arranged.plan.table.set_index("sample_id")[["position", "step", "slot", "swapped_with"]]
    places = places.reindex(data.ids, fill_value=-1).reset_index(drop=True)
    label = grouping.assignment.label
    rank = pd.Series(arranged.ranking.score).groupby(label).rank(method="min").to_numpy() - 1
    table = pd.DataFrame({
        "where": data.where, "id": data.ids, "status": [out[i].status if i in out else "planned" for i in data.ids],
        "cluster": label, "distance": grouping.assignment.distance, "length": found.lengths, "label": data.labels,
        "difficulty": difficulty.ranking if difficulty else nothing, "low": difficulty.low if difficulty else nothing,
        "high": difficulty.high if difficulty else nothing, "percentile": rank / np.bincount(label)[label],
        "quality": quality.score if quality else nothing,
    }, index=range(n))  # fmt: skip
    table = pd.concat([table, places], axis=1)
    leading = dominant_clusters(arranged.plan.table["cluster"].to_numpy().reshape(arranged.plan.steps, -1))
    table["reason"] = [_reason(row, out.get(row.id), leading, arranged, found.unit) for row in table.itertuples()]
    return table


def _reason(row: object, dropped: Dropped | None, leading: Sequence[int], arranged: Arranged, unit: str) -> str:
    """Why a row stands where it stands, in words."""
    parts = [f"in cluster {row.cluster}, {row.distance:.1f} from its centre"]
    if np.isfinite(row.difficulty):
        span = f" ({row.low:.2f} to {row.high:.2f})" if np.isfinite(row.high - row.low) else ""
        own = f", label {row.label:g}" if np.isfinite(row.label) else ""
        parts.append(f"difficulty {row.difficulty:.2f}{span}{own}")
    by = {"score": "harder than", "label": "harder than", "length": "longer than", "random": ""}[arranged.ranking.by]
    if by:
        parts.append(f"{by} {row.percentile:.0%} of its cluster" + (f" ({row.length:.0f} {unit})" if by == "longer than" else ""))
    else:
        parts.append("random order within its cluster")
    if np.isfinite(row.quality):
        parts.append(f"quality {row.quality:.2f}")
    if dropped:
        return "; ".join([f"{dropped.status}: {dropped.reason}", *parts])
    home = leading[row.step]
    if row.swapped_with >= 0:
        place = f"tail exchanged with step {row.swapped_with}"
    else:
        place = (
            "with its own cluster"
            if home == row.cluster
            else f"among what filled no batch of its own cluster, with cluster {home}"
        )
    return "; ".join([f"step {row.step}, slot {row.slot}: {place}", *parts])


def cluster_table(data: Dataset, found: Representation, grouping: Grouping, scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of clusters.csv: cluster, n, share, planned, median_length, mean_difficulty, labels, top_topic, topic_share, terms,
    typical.

    terms are words of the prompts that are frequent here and rare elsewhere; typical are the ids nearest to the centre.
    """
    words = _terms([s.prompt for s in data.samples], grouping.assignment.label, grouping.clusters.k)
    topics = np.array([s.topic for s in data.samples], dtype=object)
    rows = []
    for cluster, inside in scores.groupby("cluster"):
        names, counts = np.unique(topics[inside.index][topics[inside.index] != ""].astype(str), return_counts=True)
        top = int(counts.argmax()) if len(counts) else -1
        nearest = inside.sort_values(["distance", "id"])["id"].head(TYPICAL).tolist()
        rows.append({
            "cluster": int(cluster), "n": len(inside), "share": len(inside) / len(scores),
            "planned": int((inside["status"] == "planned").sum()), "median_length": float(inside["length"].median()),
            "mean_difficulty": float(inside["difficulty"].mean()), "labels": int(inside["label"].notna().sum()),
            "top_topic": str(names[top]) if top >= 0 else "",
            "topic_share": float(counts[top] / len(inside)) if top >= 0 else np.nan,
            "terms": " ".join(words[int(cluster)]), "typical": " ".join(nearest),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _terms(prompts: Sequence[str], cluster: np.ndarray, k: int) -> list[list[str]]:
    """Words of each cluster by share inside x log of (share inside / share of all)."""
    counter = CountVectorizer(token_pattern=WORD, binary=True, max_features=5000, stop_words="english")
    try:
        seen = counter.fit_transform(prompts).tocsr()
    except ValueError:  # no prompt holds a word
        return [[] for _ in range(k)]
    names, everywhere = counter.get_feature_names_out(), (np.asarray(seen.sum(axis=0)).ravel() + 1) / (len(prompts) + 2)
    out = []
    for number in range(k):
        inside = seen[np.flatnonzero(cluster == number)]
        share = np.asarray(inside.sum(axis=0)).ravel() / max(1, inside.shape[0])
        weight = rel_entr(share, everywhere)
        best = np.lexsort((names, -weight))[:TERMS]
        out.append([str(names[i]) for i in best if weight[i] > 0])
    return out


def not_planned_table(data: Dataset, arranged: Arranged) -> pd.DataFrame:
    """Rows of not_planned.csv: where, id, status, reason of every row of the source that is not in the plan."""
    rows = [(d.where, d.id, d.status, d.reason) for d in (*data.dropped, *arranged.dropped)]
    return pd.DataFrame(rows, columns=["where", "id", "status", "reason"])
