"""Why one sample stands where it stands in the plan: its decision path as a record, as text and as a table (paper, section D.3).

The paper records z, m, cluster, d_hat, r, batch and tail-swap partner of every sample. Here that record also holds what
each feature added to the two linear scores, an interval of the difficulty, and the conditions that a swap met or failed
(ours). `open_evidence` reads the finished stages: nothing is fitted and no model runs. Difficulty and quality are linear in
standardised features: they describe the readers, not the policy.
"""

from __future__ import annotations

import json as json_format
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scipy.special import expit
from sklearn.preprocessing import StandardScaler

from saerl_lib.artifacts import ArtifactError, Stage, load_stage
from saerl_lib.config import PlanConfig, Profile, get_profile, near
from saerl_lib.data.sample import DataError, Sample, load_split
from saerl_lib.encode.pool import Encoder
from saerl_lib.encode.stages import retained_latents
from saerl_lib.encode.store import FeatureTable, load_split_features
from saerl_lib.plan.batch_plan import BatchPlan
from saerl_lib.plan.orders import batch_facts, candidates, cluster_first, dominant_clusters, load_plan
from saerl_lib.properties.audit import audit_stage, feature_names, is_latent, token_highlights
from saerl_lib.properties.scorer import LEVEL, Scorer, load_scorer

LISTED = 5
"""Features listed with the largest positive, and as many with the largest negative contribution (ours)."""
LISTED_CANDIDATES = 3
"""Nearest partner candidates listed for a batch without a partner (ours)."""
WIDTH = 110
"""Characters of a line of text."""


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
    scorer: Scorer
    """With difficulty and quality: both are linear in standardised features."""
    plan: BatchPlan
    config: PlanConfig
    blurred: pd.DataFrame | None = None
    """ranking and raw that the plan was made of, where they are not those of `scores`."""
    by_source: bool = False
    """The target source is planned, whatever the filter says."""

    @cached_property
    def planned(self) -> pd.DataFrame:
        """The plan's table with `home`, the step before the tail swap, indexed by sample_id."""
        table = self.plan.table
        home = table["step"].where(table["swapped_with"] < 0, table["swapped_with"])
        return table.assign(home=home).set_index("sample_id")

    @cached_property
    def facts(self) -> pd.DataFrame:
        """Of the batches before the swap, which are built again. Raises ArtifactError when they are not those of the plan."""
        planned = self.scores if self.blurred is None else self.scores.assign(**self.blurred[["ranking", "raw"]])
        pool = planned[planned["kept"]]
        ids, cluster, ranking, raw, length = (pool[c].to_numpy() for c in ("sample_id", "cluster", "ranking", "raw", "length"))
        batches = cluster_first(ids.tolist(), cluster, ranking, raw, self.config)
        if self.planned.sort_values(["home", "slot"]).index.tolist() != ids[batches.rows].ravel().tolist():
            raise ArtifactError("the plan is not the saerl plan of this pool: run notebook 06 again")
        return batch_facts(batches, cluster, ranking, length)


def open_evidence(profile: Profile, audits: Stage) -> Evidence:
    """Evidence of a profile's finished stages. Raises ArtifactError for a stage that is missing or of other settings, and when
    pool, scores and plan do not belong together."""
    world, features, difficulty, quality, plans = (
        load_stage(profile, name) for name in ("world", "features", "difficulty", "filter", "plans")
    )
    scores = pd.read_parquet(difficulty.path("scores.parquet"))
    scores = scores.merge(pd.read_parquet(quality.path("kept.parquet")), on="sample_id", validate="one_to_one")
    blurs = profile.score_correlation is not None
    blurred = pd.read_parquet(load_stage(profile, "scores").path("scores.parquet")) if blurs else None
    labels = pd.read_parquet(audits.path("cluster_audit.parquet"))[["cluster", "label"]]
    clusters = pd.read_parquet(difficulty.path("clusters.parquet")).merge(labels, on="cluster").set_index("cluster")
    names = feature_names(retained_latents(features))
    return Evidence(
        load_split(world, "pool"), load_split_features(features, "pool"), names, scores, clusters, load_scorer(difficulty),
        load_plan(plans, "saerl"), profile.plan, blurred, profile.planned == "target",
    )  # fmt: skip


# The record.

Record = dict[str, Any]
"""Names -> numbers, text, further records and lists of them, ready for JSON."""


def audit(sample_id: str, evidence: Evidence) -> Record:
    """The decision path of one sample of the pool; a number that is not finite is None.

    Keys: sample_id, prompt, answer, solution, topic, source, label (the source's difficulty, which the readers never saw);
    cluster, difficulty, quality; batch and swap, None for a sample that is not planned. The functions below tell their keys.
    Raises DataError for an id that the pool does not hold, ArtifactError when the stored scores are not the sums of their parts.
    """
    ids = evidence.features.ids
    if sample_id not in ids:
        raise DataError(f"sample {sample_id!r} is not among the {len(ids)} of the pool, such as {ids[0]}{near(sample_id, ids)}")
    i = ids.index(sample_id)
    sample, placed = evidence.samples[i], sample_id in evidence.planned.index
    return _finite({
        "sample_id": sample.id, "prompt": sample.prompt, "answer": sample.answer, "solution": sample.solution,
        "topic": sample.topic, "source": sample.source, "label": float(sample.difficulty),
        "cluster": _cluster(i, evidence), "difficulty": _difficulty(i, evidence), "quality": _quality(i, evidence),
        "batch": _batch(sample_id, evidence) if placed else None, "swap": _swap(sample_id, evidence) if placed else None,
    })  # fmt: skip


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _contributions(places: list[int], names: tuple[str, ...], *columns: np.ndarray) -> list[Record]:
    """feature, value (as encoded), standardised (in deviations), contribution (in the score's units) of some columns."""
    keys = ("value", "standardised", "contribution")
    return [{"feature": names[j]} | {k: float(v[j]) for k, v in zip(keys, columns, strict=True)} for j in places]


def _cluster(i: int, evidence: Evidence) -> Record:
    """Nearest centroid and runner-up; distances are Euclidean in standardised, clipped phi, rank 1 is the nearest of the cluster.
    `features` make the own centroid nearer than the second: the largest differences of squared distance."""
    space, row, phi = evidence.scorer.clusters, evidence.scores.iloc[i], evidence.features.phi[i]
    labels, point, own = evidence.clusters["label"], space.standardise(phi[None])[0], int(row["cluster"])
    distances = np.linalg.norm(space.centroids - point, axis=1)
    _agree("distance to the centroid", float(distances[own]), float(row["distance"]))
    mates = evidence.scores.loc[evidence.scores["cluster"] == own, "distance"]
    others = [int(c) for c in np.lexsort((np.arange(space.k), distances)) if c != own]
    second, pull = (others[0] if others else None), np.zeros(len(point))
    if second is not None:
        pull = np.square(point - space.centroids[second]) - np.square(point - space.centroids[own])
    top = [int(j) for j in np.argsort(-pull, kind="stable")[:LISTED] if pull[j] > 0]
    return {
        "cluster": own, "label": str(labels.get(own, "")), "distance": float(row["distance"]),
        "distance_rank": int((mates < row["distance"]).sum()) + 1, "size": len(mates), "second": second,
        "second_label": "" if second is None else str(labels.get(second, "")),
        "second_distance": math.nan if second is None else float(distances[second]),
        "features": _contributions(top, evidence.names, phi, point, pull),
    }  # fmt: skip


def _difficulty(i: int, evidence: Evidence) -> Record:
    """Equation 10 in label units: raw d_hat as the sum of its `parts`, calibrated g(d_hat), residual Delta_c, shrinkage lambda_c,
    n_labelled n_c, ranking r; its interval and where that comes from; the share of the pool with a smaller r, ties by half, in
    percent; cluster_rank 1 is the easiest of the cluster."""
    row, pool = evidence.scores.iloc[i], evidence.scores["ranking"].to_numpy()
    own, r = int(row["cluster"]), float(row["ranking"])
    scaler, net = evidence.scorer.difficulty.predictor.named_steps.values()
    x = evidence.features.phi[i]
    parts = _parts("raw difficulty", float(row["raw"]), x, scaler, net.coef_, float(net.intercept_), evidence.names)
    correction, interval = evidence.clusters.loc[own], evidence.scorer.widths.loc[own]
    width = float(interval["width"])
    return {
        "raw": float(row["raw"]), "parts": parts, "calibrated": float(row["calibrated"]),
        "residual": float(correction["residual"]), "shrinkage": float(correction["shrinkage"]),
        "n_labelled": int(correction["n_labelled"]), "ranking": r, "low": r - width, "high": r + width, "level": LEVEL,
        "interval_of_cluster": bool(interval["own"]), "n_residuals": int(interval["n"]),
        "percentile": 100 * float((pool < r).mean() + (pool == r).mean() / 2),
        "cluster_rank": int((pool[evidence.scores["cluster"] == own] < r).sum()) + 1,
    }  # fmt: skip


def _quality(i: int, evidence: Evidence) -> Record:
    """The filter, a classifier of the source: score, rank (1 is the best; equal scores by id, as `keep_top_k` takes them), the
    smallest score that was kept, and the `parts` of the score's log-odds."""
    scores, z, reader = evidence.scores, evidence.features.z[i], evidence.scorer.quality
    weight, intercept = reader.classifier.coef_[0] / reader.norm, float(reader.classifier.intercept_[0])
    row, kept = scores.iloc[i], scores.loc[scores["kept"], "score"]
    parts = _parts("filter score", float(row["score"]), z, reader.scaler, weight, intercept, evidence.names[: len(z)], expit)
    equal = scores["score"] == row["score"]
    better = (scores["score"] > row["score"]) | (equal & (scores["sample_id"] < row["sample_id"]))
    return {
        "score": float(row["score"]), "rank": int(better.sum()) + 1, "n_pool": len(scores), "n_kept": len(kept),
        "threshold": float(kept.min()), "kept": bool(row["kept"]), "by_source": evidence.by_source, "parts": parts,
    }  # fmt: skip


def _parts(
    what: str, stored: float, x: np.ndarray, scaler: StandardScaler, weight: np.ndarray, intercept: float,
    names: tuple[str, ...], link: Callable[[float], float] = float,
) -> Record:  # fmt: skip
    """A linear score as intercept + `listed` contributions (the `LISTED` largest and smallest, by falling size) + all others."""
    standardised = scaler.transform(np.asarray(x, dtype=np.float64)[None])[0]
    parts = standardised * weight
    order = np.argsort(parts, kind="stable")
    listed = {int(j) for j in (*order[:LISTED], *order[::-1][:LISTED]) if parts[j] != 0}
    ranked = sorted(listed, key=lambda j: (-abs(parts[j]), j))
    others = np.delete(parts, ranked)
    _agree(what, float(link(intercept + parts.sum())), stored)
    return {"intercept": intercept, "listed": _contributions(ranked, names, x, standardised, parts),
            "others": float(others.sum()), "n_others": int(np.count_nonzero(others))}  # fmt: skip


def _agree(what: str, found: float, stored: float) -> None:
    if not math.isclose(found, stored, rel_tol=1e-4, abs_tol=1e-4):  # they agree to rounding
        different = "the stages are of different runs; run notebook 04 again"
        raise ArtifactError(f"{what}: stored {stored:.6g}, sum of its parts {found:.6g}: {different}")


def _batch(sample_id: str, evidence: Evidence) -> Record:
    """Where the sample trains: position, step, slot, stage; the `batch` in slot order, each with its step before the swap, and
    its most frequent cluster; whether its home batch gathers samples that filled no batch of their own cluster; and by which
    score: blurred or not, ranking, raw, its number among the planned samples of its cluster from easy to hard."""
    facts, table = evidence.facts, evidence.planned
    planned, row = table.loc[sample_id], table.loc[sample_id].astype(int)
    peers = table.loc[table["cluster"] == planned["cluster"], "ranking_score"]
    mates = table[table["step"] == row["step"]]
    batch = [{"slot": int(m.slot), "sample_id": m.Index, "cluster": int(m.cluster), "ranking": float(m.ranking_score),
              "home_step": int(m.home)} for m in mates.itertuples()]  # fmt: skip
    return {
        "position": int(row["position"]), "step": int(row["step"]), "n_steps": evidence.plan.steps, "slot": int(row["slot"]),
        "stage": int(facts["stage"][row["home"]]), "dominant": dominant_clusters(mates["cluster"].to_numpy()[None])[0],
        "made_of_rests": bool(facts["n_clusters"][row["home"]] > 1), "batch": batch, "blurred": evidence.blurred is not None,
        "ranking": float(planned["ranking_score"]), "raw": float(planned["raw_difficulty"]), "n_cluster": len(peers),
        "cluster_place": int((peers < planned["ranking_score"]).sum()) + 1,
    }  # fmt: skip


def _swap(sample_id: str, evidence: Evidence) -> Record:
    """What the tail swap did: home_step, whether the sample stood among the last h of its batch, the step that this batch
    exchanged its tail with, whether the sample moved; as `candidates` the partner, or the nearest ones of a batch without one."""
    partner, row = evidence.planned.groupby("step")["swapped_with"].max().to_numpy(), evidence.planned.loc[sample_id]
    home, h = int(row["home"]), evidence.plan.swapped_per_batch
    in_tail = bool(row["slot"] >= evidence.plan.prompts_per_step - h)
    found = candidates(home, evidence.facts, partner, evidence.config)
    with_whom = int(partner[home]) if partner[home] >= 0 else None
    shown = [c for c in found if c["step"] == with_whom] if with_whom is not None else found[:LISTED_CANDIDATES]
    return {"home_step": home, "in_tail": in_tail, "partner": with_whom, "swapped": in_tail and with_whom is not None,
            "h": h, "candidates": shown, "n_candidates": len(found)}  # fmt: skip


def highlighted(record: Record, evidence: Evidence, encoder: Encoder) -> str:
    """HTML of where the latents that mattered fire in the sample itself: those of cluster, difficulty and quality, each once.
    Runs the encoder on this one sample."""
    sample = evidence.samples[evidence.features.ids.index(record["sample_id"])]
    scores = (record["difficulty"]["parts"], record["quality"]["parts"])
    mattered = [*record["cluster"]["features"], *(part for parts in scores for part in parts["listed"])]
    names = dict.fromkeys(part["feature"] for part in mattered if part["value"] > 0 and is_latent(part["feature"]))
    return "".join(item.html() for item in token_highlights([(name, sample) for name in names], encoder))


# As text.


def audit_text(record: Record) -> str:
    """The path of a sample as paragraphs of at most `WIDTH` characters a line, each saying one decision and its grounds."""
    made = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), undefined=StrictUndefined, trim_blocks=True)
    made.globals["one_line"] = lambda text: " ".join(text.split())
    label = "" if record["label"] is None else f"difficulty label {record['label']:.2f}"
    about = ", ".join(filter(None, (f"{record['source']} source" * bool(record["source"]), record["topic"], label)))
    lines = made.get_template("audit.txt.j2").render(record, about=about).splitlines()
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="   ", break_on_hyphens=False) for line in lines)


def run_audit(sample_id: str, profile: str, seed: int, json: bool) -> int:
    """`audit`: print the record as paragraphs or JSON; the stage `audit` is computed when it is missing. Raises what `audit` and
    `load_stage` raise."""
    settings = get_profile(profile, seed=seed)
    stages = [load_stage(settings, name) for name in ("world", "features", "difficulty", "filter", "plans")]
    record = audit(sample_id, open_evidence(settings, audit_stage(settings, *stages[:3])))
    print(json_format.dumps(record, indent=1, ensure_ascii=False) if json else audit_text(record))
    return 0
