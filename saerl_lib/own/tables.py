"""What a plan leaves behind as tables: one row a sample with its reasons, the cards of the clusters, the rows left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import rel_entr
from sklearn.feature_extraction.text import CountVectorizer

from saerl_lib.data.sample import Dropped
from saerl_lib.own.arrange import Arranged
from saerl_lib.plan.mixing import dominant_clusters

TERMS = 8
"""Words of a cluster's card, each of three letters or more."""
TYPICAL = 3
"""Samples nearest to the centroid on a card."""


def score_table(arranged: Arranged) -> pd.DataFrame:
    """Rows of scores.csv, one a usable row in the order of the source; unknown numbers are NaN, step and slot -1 without a place.

    Columns: where, id, status (planned, filtered or left over), cluster, distance, length, label, difficulty, low, high,
    percentile (share of the cluster that is ranked lower), quality, position, step, slot, swapped_with, reason.
    """
    data, difficulty, plan = arranged.data, arranged.difficulty, arranged.plan.table
    out, label = {d.id: d for d in arranged.dropped}, arranged.grouping.assignment.label
    rank = pd.Series(arranged.ranking).groupby(label).rank(method="min").to_numpy() - 1
    table = pd.DataFrame({
        "where": data.where, "id": data.ids, "status": [out[i].status if i in out else "planned" for i in data.ids],
        "cluster": label, "distance": arranged.grouping.assignment.distance, "length": arranged.found.lengths,
        "label": data.labels, "difficulty": difficulty.ranking if difficulty else np.nan,
        "low": difficulty.low if difficulty else np.nan, "high": difficulty.high if difficulty else np.nan,
        "percentile": rank / np.bincount(label)[label], "quality": arranged.quality.score if arranged.quality else np.nan,
    })  # fmt: skip
    places = plan.set_index("sample_id")[["position", "step", "slot", "swapped_with"]]
    table = pd.concat([table, places.reindex(data.ids, fill_value=-1).reset_index(drop=True)], axis=1)
    leading = dominant_clusters(plan["cluster"].to_numpy().reshape(arranged.plan.steps, -1))
    reasons = [_reason(row, out.get(row.id), leading, arranged.ranked_by, arranged.found.unit) for row in table.itertuples()]
    return table.assign(reason=reasons)


def _reason(row: object, dropped: Dropped | None, leading: Sequence[int], ranked_by: str, unit: str) -> str:
    """Why a row stands where it stands, in words."""
    if dropped:
        parts = [f"{dropped.status}: {dropped.reason}"]
    elif row.swapped_with >= 0:
        parts = [f"step {row.step}, slot {row.slot}: tail exchanged with step {row.swapped_with}"]
    elif leading[row.step] == row.cluster:
        parts = [f"step {row.step}, slot {row.slot}: with its own cluster"]
    else:
        parts = [f"step {row.step}, slot {row.slot}: among what filled no batch of its own cluster, with cluster "
                 f"{leading[row.step]}"]  # fmt: skip
    parts.append(f"in cluster {row.cluster}, {row.distance:.1f} from its centre")
    if np.isfinite(row.difficulty):
        span = f" ({row.low:.2f} to {row.high:.2f})" if np.isfinite(row.high - row.low) else ""
        own = f", label {row.label:g}" if np.isfinite(row.label) else ""
        parts.append(f"difficulty {row.difficulty:.2f}{span}{own}")
    parts.append({
        "difficulty": f"harder than {row.percentile:.0%} of its cluster",
        "length": f"longer than {row.percentile:.0%} of its cluster ({row.length:.0f} {unit})",
        "random": "random order within its cluster",
    }[ranked_by])  # fmt: skip
    if np.isfinite(row.quality):
        parts.append(f"quality {row.quality:.2f}")
    return "; ".join(parts)


def cluster_table(arranged: Arranged, scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of clusters.csv: cluster, n, share, planned, median_length, mean_difficulty, labels, top_topic, topic_share, terms,
    typical.

    terms are words of the prompts that are frequent here and rare elsewhere; typical are the ids nearest to the centre.
    """
    samples = arranged.data.samples
    terms = _terms([s.prompt for s in samples], arranged.grouping.assignment.label)
    topics = pd.Series([s.topic for s in samples], dtype=object)
    rows = []
    for cluster, inside in scores.groupby("cluster"):
        counts = topics[inside.index][topics[inside.index] != ""].value_counts().sort_index(kind="stable")
        nearest = inside.sort_values(["distance", "id"])["id"].head(TYPICAL).tolist()
        rows.append({
            "cluster": int(cluster), "n": len(inside), "share": len(inside) / len(scores),
            "planned": int((inside["status"] == "planned").sum()), "median_length": float(inside["length"].median()),
            "mean_difficulty": float(inside["difficulty"].mean()), "labels": int(inside["label"].notna().sum()),
            "top_topic": str(counts.idxmax()) if len(counts) else "",
            "topic_share": float(counts.max() / len(inside)) if len(counts) else np.nan,
            "terms": " ".join(terms[int(cluster)]), "typical": " ".join(nearest),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _terms(prompts: Sequence[str], cluster: np.ndarray) -> dict[int, list[str]]:
    """Words of each cluster by share inside x log of (share inside / share of all)."""
    counter = CountVectorizer(token_pattern=r"[^\W\d_]{3,}", binary=True, max_features=5000, stop_words="english")
    try:
        seen = counter.fit_transform(prompts).tocsr()
    except ValueError:  # no prompt holds a word
        return {int(c): [] for c in np.unique(cluster)}
    names, everywhere = counter.get_feature_names_out(), (np.asarray(seen.sum(axis=0)).ravel() + 1) / (len(prompts) + 2)
    out = {}
    for number in np.unique(cluster):
        inside = seen[np.flatnonzero(cluster == number)]
        weight = rel_entr(np.asarray(inside.sum(axis=0)).ravel() / inside.shape[0], everywhere)
        best = np.lexsort((names, -weight))[:TERMS]
        out[int(number)] = [str(names[i]) for i in best if weight[i] > 0]
    return out


def not_planned_table(arranged: Arranged) -> pd.DataFrame:
    """Rows of not_planned.csv: where, id, status, reason of every row of the source that is not in the plan."""
    rows = [(d.where, d.id, d.status, d.reason) for d in (*arranged.data.dropped, *arranged.dropped)]
    return pd.DataFrame(rows, columns=["where", "id", "status", "reason"])
