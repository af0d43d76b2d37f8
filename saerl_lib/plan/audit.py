"""`audit(sample_id, evidence)`: why one sample stands where it stands in the plan (paper, section D.3).

The paper records z, m, cluster, d_hat, r, batch and tail-swap partner of every sample. Here that record also holds what
each feature added to the two linear scores, an interval of the difficulty, and the conditions that a swap met or failed
(ours). `open_evidence` reads the finished stages: nothing is fitted and no model runs. `audit_text` tells the record.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from saerl_lib.artifacts import ArtifactError, Stage, load_stage
from saerl_lib.config import PlanConfig, Profile
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.encode.pool import Encoder
from saerl_lib.encode.stages import retained_latents
from saerl_lib.encode.store import FeatureTable, load_split_features
from saerl_lib.plan.batch_plan import BatchPlan
from saerl_lib.plan.curriculum import Batch, cluster_first
from saerl_lib.plan.mixing import BatchFacts, Candidate, batch_facts, candidates, dominant_cluster
from saerl_lib.plan.orders import load_plan
from saerl_lib.properties.audit import (
    DecisionModel,
    HighlightPage,
    LinearReader,
    Wanted,
    feature_names,
    is_latent,
    load_decision_model,
    token_highlights,
)
from saerl_lib.properties.difficulty import LEVEL

LISTED = 5
"""Features listed with the largest positive, and as many with the largest negative contribution (ours)."""
LISTED_CANDIDATES = 3
"""Nearest partner candidates listed for a batch without a partner (ours)."""
AGREEMENT = 1e-4
"""Largest relative difference between a stored score and the sum of its parts (ours; they agree to rounding)."""


class UnknownSampleError(ValueError):
    """The pool holds no sample of that id."""


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
    ids, cluster, ranking, raw, length = (planned[c].to_numpy() for c in ("sample_id", "cluster", "ranking", "raw", "length"))
    batches = cluster_first(ids.tolist(), cluster, ranking, raw, config)
    before = ids[np.concatenate([b.rows for b in batches])]
    stays = plan.table["swapped_with"].to_numpy() < 0
    if len(before) != len(plan.ids) or (before != np.array(plan.ids))[stays].any():
        raise ArtifactError("the plan is not the saerl plan of this pool: run notebook 06 again")
    facts = batch_facts(batches, cluster, ranking, length)
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
    names = feature_names(retained_latents(features))
    return gather(load_split(world, "pool"), load_split_features(features, "pool"), names, scores, clusters,
                  load_decision_model(audit_stage), load_plan(plans, "saerl"), profile.plan)  # fmt: skip


# The record.


@dataclass(frozen=True)
class Contribution:
    """What one feature added to a score."""

    feature: str
    value: float
    """Pooled or metadata value, as encoded."""
    standardised: float
    """In deviations from the mean that the reader was fitted with."""
    contribution: float
    """In the score's units."""


@dataclass(frozen=True)
class Breakdown:
    """A linear score as intercept + the listed contributions (by falling size) + the rest, in the score's units."""

    intercept: float
    listed: tuple[Contribution, ...]
    others: float
    """Sum of the contributions that are not listed."""
    n_others: int
    """How many of those are not zero."""

    @property
    def total(self) -> float:
        """The score."""
        return self.intercept + sum(c.contribution for c in self.listed) + self.others


@dataclass(frozen=True)
class ClusterPart:
    """Nearest centroid and runner-up; distances are Euclidean in standardised, clipped phi."""

    cluster: int
    label: str
    distance: float
    distance_rank: int
    """1 is the sample of the cluster nearest to its centroid."""
    size: int
    second: int | None
    """None when there is one cluster."""
    second_label: str
    second_distance: float
    features: tuple[Contribution, ...]
    """What makes the own centroid nearer than the second: the largest differences of squared distance."""


@dataclass(frozen=True)
class DifficultyPart:
    """Equation 10 for one sample, in label units."""

    raw: float
    """d_hat, the sum of `parts`."""
    parts: Breakdown
    calibrated: float
    """g(d_hat)."""
    residual: float
    """Delta_c."""
    shrinkage: float
    """lambda_c."""
    n_labelled: int
    """n_c."""
    ranking: float
    """r."""
    low: float
    high: float
    level: float
    """Nominal coverage of low to high, see `properties.conformal`."""
    interval_of_cluster: bool
    """Whether the interval rests on the labels of the cluster alone."""
    n_residuals: int
    percentile: float
    """Share of the pool with a smaller r, ties by half, in percent."""
    cluster_rank: int
    """1 is the easiest of the cluster by r."""


@dataclass(frozen=True)
class QualityPart:
    """The filter: a classifier of the source, not of correctness."""

    score: float
    rank: int
    """1 is the best of the pool; equal scores in ascending order of id, as `keep_top_k` takes them."""
    n_pool: int
    n_kept: int
    threshold: float
    """Smallest score that was kept."""
    kept: bool
    parts: Breakdown
    """Of the log-odds of the score."""


@dataclass(frozen=True)
class Companion:
    """A sample of the same batch."""

    slot: int
    sample_id: str
    cluster: int
    ranking: float
    home_step: int
    """Step at which the curriculum had it before the swap."""


@dataclass(frozen=True)
class BatchPart:
    """Where the sample trains."""

    position: int
    step: int
    n_steps: int
    slot: int
    stage: int
    dominant: int
    """Most frequent cluster of the batch as trained."""
    made_of_rests: bool
    """Whether the home batch gathers samples that filled no batch of their own cluster."""
    batch: tuple[Companion, ...]
    """All samples of the step, this one included, in slot order."""


@dataclass(frozen=True)
class SwapPart:
    """What the tail swap did."""

    home_step: int
    """Step of the sample before the swap."""
    in_tail: bool
    """Whether the sample stood among the last h of its home batch."""
    partner: int | None
    """Step that the home batch exchanged its tail with, None for none."""
    swapped: bool
    """Whether this sample changed its batch."""
    h: int
    candidates: tuple[Candidate, ...]
    """The partner, or the nearest candidates of a batch without one."""
    n_candidates: int
    """Other batches of the stage inside the window."""


@dataclass(frozen=True)
class SampleAudit:
    """The whole decision path of one sample; `batch` and `swap` are None for a sample that the filter dropped."""

    sample_id: str
    prompt: str
    answer: str
    solution: str
    topic: str
    source: str
    label: float
    """The source's difficulty label, NaN when unknown; the readers never saw it."""
    cluster: ClusterPart
    difficulty: DifficultyPart
    quality: QualityPart
    batch: BatchPart | None
    swap: SwapPart | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; numbers that are not finite become null."""
        return _finite(asdict(self))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# From evidence to record.


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
    sample, placed = evidence.samples[i], bool(evidence.scores.iloc[i]["kept"])
    return SampleAudit(
        sample.id, sample.prompt, sample.answer, sample.solution, sample.topic, sample.source, float(sample.difficulty),
        _cluster(i, evidence), _difficulty(i, evidence), _quality(i, evidence),
        _batch(sample_id, evidence) if placed else None, _swap(sample_id, evidence) if placed else None,
    )  # fmt: skip


def _cluster(i: int, evidence: Evidence) -> ClusterPart:
    space, row, phi = evidence.decision.clusters, evidence.scores.iloc[i], evidence.features.phi[i]
    labels, point, own = evidence.clusters["label"], space.standardise(phi[None])[0], int(row["cluster"])
    distances = np.linalg.norm(space.centroids - point, axis=1)
    _agree("distance to the centroid", float(distances[own]), float(row["distance"]))
    mates = evidence.scores.loc[evidence.scores["cluster"] == own, "distance"]
    others = [int(c) for c in np.lexsort((np.arange(space.k), distances)) if c != own]
    second, pull = (others[0] if others else None), np.zeros(len(point))
    if second is not None:
        pull = np.square(point - space.centroids[second]) - np.square(point - space.centroids[own])
    top = [int(j) for j in np.argsort(-pull, kind="stable")[:LISTED] if pull[j] > 0]
    return ClusterPart(
        own, str(labels.get(own, "")), float(row["distance"]), int((mates < row["distance"]).sum()) + 1, len(mates),
        second, "" if second is None else str(labels.get(second, "")), math.nan if second is None else float(distances[second]),
        tuple(Contribution(evidence.names[j], float(phi[j]), float(point[j]), float(pull[j])) for j in top),
    )  # fmt: skip


def _difficulty(i: int, evidence: Evidence) -> DifficultyPart:
    row, widths, pool = evidence.scores.iloc[i], evidence.decision.widths, evidence.scores["ranking"].to_numpy()
    own, r = int(row["cluster"]), float(row["ranking"])
    parts = _parts(evidence.decision.difficulty, evidence.features.phi[i], evidence.names)
    _agree("raw difficulty", parts.total, float(row["raw"]))
    correction, width = evidence.clusters.loc[own], float(widths.width[own])
    return DifficultyPart(
        float(row["raw"]), parts, float(row["calibrated"]), float(correction["residual"]), float(correction["shrinkage"]),
        int(correction["n_labelled"]), r, r - width, r + width, LEVEL, bool(widths.own[own]), int(widths.n[own]),
        percentile=100 * float((pool < r).mean() + (pool == r).mean() / 2),
        cluster_rank=int((pool[evidence.scores["cluster"] == own] < r).sum()) + 1,
    )  # fmt: skip


def _quality(i: int, evidence: Evidence) -> QualityPart:
    scores, z = evidence.scores, evidence.features.z[i]
    row, kept = scores.iloc[i], scores.loc[scores["kept"], "score"]
    parts = _parts(evidence.decision.quality, z, evidence.names[: len(z)])
    _agree("filter score", float(expit(parts.total)), float(row["score"]))
    equal = scores["score"] == row["score"]
    better = (scores["score"] > row["score"]) | (equal & (scores["sample_id"] < row["sample_id"]))
    return QualityPart(
        float(row["score"]), int(better.sum()) + 1, len(scores), len(kept), float(kept.min()), bool(row["kept"]), parts
    )


def _batch(sample_id: str, evidence: Evidence) -> BatchPart:
    table, home = evidence.plan.table, evidence.homes
    row = table[table["sample_id"] == sample_id].iloc[0]
    mates, origin = table[table["step"] == row["step"]], evidence.facts[home[sample_id]]
    return BatchPart(
        int(row["position"]), int(row["step"]), evidence.plan.steps, int(row["slot"]), origin.stage,
        dominant_cluster(mates["cluster"].to_numpy()), origin.n_clusters > 1,
        tuple(Companion(int(m.slot), m.sample_id, int(m.cluster), float(m.ranking_score), home[m.sample_id])
              for m in mates.itertuples()),
    )  # fmt: skip


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
