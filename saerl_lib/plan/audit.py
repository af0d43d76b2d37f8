"""`audit(sample_id, evidence)`: why one sample stands where it stands in the plan (paper, section D.3).

The paper records z, m, cluster, d_hat, r, batch and tail-swap partner of every sample. Here that record also holds what
each feature added to the two linear scores, an interval of the difficulty, and the conditions that a swap met or failed
(ours). `evidence` reads the stages, `audit_record` is the record, `audit_view` renders it.
"""

from __future__ import annotations

import difflib
import math

import numpy as np
from scipy.special import expit

from saerl_lib.artifacts import ArtifactError
from saerl_lib.encode.pooling import Encoder
from saerl_lib.plan.audit_record import (
    BatchPart,
    Breakdown,
    ClusterPart,
    Companion,
    Contribution,
    DifficultyPart,
    QualityPart,
    SampleAudit,
    SwapPart,
)
from saerl_lib.plan.evidence import Evidence, gather, open_evidence
from saerl_lib.plan.mixing import dominant_cluster
from saerl_lib.plan.partners import candidates
from saerl_lib.properties.audit import HighlightPage, Wanted, is_latent, token_highlights
from saerl_lib.properties.decision import LinearReader
from saerl_lib.properties.difficulty import LEVEL

__all__ = ["Evidence", "SampleAudit", "UnknownSampleError", "audit", "gather", "highlighted", "open_evidence"]

LISTED = 5
"""Features listed with the largest positive, and as many with the largest negative contribution (ours)."""
LISTED_CANDIDATES = 3
"""Nearest partner candidates listed for a batch without a partner (ours)."""
AGREEMENT = 1e-4
"""Largest relative difference between a stored score and the sum of its parts (ours; they agree to rounding)."""


class UnknownSampleError(ValueError):
    """The pool holds no sample of that id."""


def audit(sample_id: str, evidence: Evidence) -> SampleAudit:
    """The decision path of one sample of the pool.

    Raises UnknownSampleError with near ids for an id that the pool does not hold, ArtifactError when the stored scores
    are not the sums of their parts (stages of different runs).
    """
    ids = evidence.features.ids
    if sample_id not in ids:
        near = difflib.get_close_matches(sample_id, ids, n=3, cutoff=0.5)
        hint = f"; near: {', '.join(near)}" if near else f"; the pool holds {len(ids)} ids such as {ids[0]}"
        raise UnknownSampleError(f"sample {sample_id!r} is not in the pool{hint}")
    i = ids.index(sample_id)
    sample, row = evidence.samples[i], evidence.scores.iloc[i]
    placed = bool(row["kept"])
    return SampleAudit(
        sample.id, sample.prompt, sample.answer, sample.solution, sample.topic, sample.source, float(sample.difficulty),
        _cluster(i, evidence), _difficulty(i, evidence), _quality(i, evidence),
        _batch(sample_id, evidence) if placed else None, _swap(sample_id, evidence) if placed else None,
    )  # fmt: skip


def _cluster(i: int, evidence: Evidence) -> ClusterPart:
    space, row, phi = evidence.decision.clusters, evidence.scores.iloc[i], evidence.features.phi[i]
    point, own = space.standardise(phi[None])[0], int(row["cluster"])
    distances = np.linalg.norm(space.centroids - point, axis=1)
    _agree("distance to the centroid", float(distances[own]), float(row["distance"]))
    mates = evidence.scores.loc[evidence.scores["cluster"] == own, "distance"]
    order = [int(c) for c in np.lexsort((np.arange(space.k), distances)) if c != own]
    second, pull = (order[0] if order else None), np.zeros(len(point))
    if second is not None:
        pull = np.square(point - space.centroids[second]) - np.square(point - space.centroids[own])
    top = [int(j) for j in np.argsort(-pull, kind="stable")[:LISTED] if pull[j] > 0]
    return ClusterPart(
        own,
        _label(evidence, own),
        float(row["distance"]),
        int((mates < row["distance"]).sum()) + 1,
        len(mates),
        second,
        "" if second is None else _label(evidence, second),
        math.nan if second is None else float(distances[second]),
        tuple(Contribution(evidence.names[j], float(phi[j]), float(point[j]), float(pull[j])) for j in top),
    )


def _difficulty(i: int, evidence: Evidence) -> DifficultyPart:
    row, reader, widths = evidence.scores.iloc[i], evidence.decision.difficulty, evidence.decision.widths
    own, r, pool = int(row["cluster"]), float(row["ranking"]), evidence.scores["ranking"].to_numpy()
    parts = _parts(reader, evidence.features.phi[i], evidence.names)
    _agree("raw difficulty", parts.total, float(row["raw"]))
    correction, width = evidence.clusters.loc[own], float(widths.width[own])
    return DifficultyPart(
        float(row["raw"]),
        parts,
        float(row["calibrated"]),
        float(correction["residual"]),
        float(correction["shrinkage"]),
        int(correction["n_labelled"]),
        r,
        r - width,
        r + width,
        LEVEL,
        bool(widths.own[own]),
        int(widths.n[own]),
        100 * float((pool < r).mean() + (pool == r).mean() / 2),
        int((pool[evidence.scores["cluster"] == own] < r).sum()) + 1,
    )


def _quality(i: int, evidence: Evidence) -> QualityPart:
    scores, reader = evidence.scores, evidence.decision.quality
    row, z = scores.iloc[i], evidence.features.z[i]
    parts = _parts(reader, z, evidence.names[: len(z)])
    _agree("filter score", float(expit(parts.total)), float(row["score"]))
    # equal scores are taken in ascending order of id, as `keep_top_k` does
    equal = scores["score"] == row["score"]
    better = (scores["score"] > row["score"]) | (equal & (scores["sample_id"] < row["sample_id"]))
    return QualityPart(
        float(row["score"]),
        int(better.sum()) + 1,
        len(scores),
        int(scores["kept"].sum()),
        float(scores.loc[scores["kept"], "score"].min()),
        bool(row["kept"]),
        parts,
    )


def _batch(sample_id: str, evidence: Evidence) -> BatchPart:
    table, home = evidence.plan.table, evidence.homes
    row = table[table["sample_id"] == sample_id].iloc[0]
    mates = table[table["step"] == row["step"]]
    batch = [
        Companion(int(m.slot), m.sample_id, int(m.cluster), float(m.ranking_score), home[m.sample_id]) for m in mates.itertuples()
    ]
    origin = evidence.facts[home[sample_id]]
    return BatchPart(
        int(row["position"]),
        int(row["step"]),
        evidence.plan.steps,
        int(row["slot"]),
        origin.stage,
        dominant_cluster(mates["cluster"].to_numpy()),
        origin.n_clusters > 1,
        tuple(batch),
    )


def _swap(sample_id: str, evidence: Evidence) -> SwapPart:
    partner = evidence.plan.table.groupby("step")["swapped_with"].max().to_numpy()
    home, h = evidence.homes[sample_id], evidence.plan.swapped_per_batch
    rows = evidence.batches[home].rows.tolist()
    in_tail = sample_id in evidence.planned["sample_id"].to_numpy()[rows[len(rows) - h :]]
    found = candidates(home, evidence.facts, partner, evidence.config)
    with_whom = int(partner[home]) if partner[home] >= 0 else None
    shown = [c for c in found if c.step == with_whom] if with_whom is not None else found[:LISTED_CANDIDATES]
    return SwapPart(home, in_tail, with_whom, in_tail and with_whom is not None, h, tuple(shown), len(found))


def _parts(reader: LinearReader, x: np.ndarray, names: tuple[str, ...]) -> Breakdown:
    """The `LISTED` largest positive and negative contributions by falling size, and the sum of all others."""
    parts, standardised = reader.contributions(x), reader.standardise(x)
    order = np.argsort(parts, kind="stable")
    listed = {int(j) for j in (*order[:LISTED], *order[::-1][:LISTED]) if parts[j] != 0}
    ranked = sorted(listed, key=lambda j: (-abs(parts[j]), j))
    shown = tuple(Contribution(names[j], float(x[j]), float(standardised[j]), float(parts[j])) for j in ranked)
    others = np.delete(parts, ranked)
    return Breakdown(reader.intercept, shown, float(others.sum()), int(np.count_nonzero(others)))


def _label(evidence: Evidence, cluster: int) -> str:
    return str(evidence.clusters["label"].get(cluster, ""))


def _agree(what: str, found: float, stored: float) -> None:
    if not abs(found - stored) <= AGREEMENT * max(1.0, abs(stored)):
        raise ArtifactError(
            f"{what}: stored {stored:.6g}, sum of its parts {found:.6g}: the stages are of different runs; run notebook 04 again"
        )


def highlighted(record: SampleAudit, evidence: Evidence, encoder: Encoder) -> HighlightPage:
    """Where the latents that mattered fire in the sample itself: those of cluster, difficulty and quality, each once.

    Runs the encoder on this one sample.
    """
    sample = evidence.samples[evidence.features.ids.index(record.sample_id)]
    mattered = (*record.cluster.features, *record.difficulty.parts.listed, *record.quality.parts.listed)
    wanted = []
    for name in dict.fromkeys(c.feature for c in mattered if c.value > 0 and is_latent(c.feature)):
        block, latent = name.split("/")
        wanted.append(Wanted(name, int(latent), "prompt" if block.startswith("prompt") else "solution", sample))
    return token_highlights(wanted, encoder)
