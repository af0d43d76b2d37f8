"""A sample's decision path as text and as the tidy rows of `sample_audit.csv`, from which its figure is drawn."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from json import dumps

import numpy as np
import pandas as pd

from saerl_lib.artifacts import load_stage
from saerl_lib.config import get_profile
from saerl_lib.plan.audit import Breakdown, DifficultyPart, Evidence, SampleAudit, SwapPart, audit, open_evidence
from saerl_lib.plan.mixing import Candidate
from saerl_lib.properties.audit import audit_stage

WIDTH = 110
"""Characters of a line of text."""
BINS = 40
"""Bins of the pool's histogram of r."""
COLUMNS = ("sample_id", "part", "item", "value", "low", "high", "cluster", "slot", "n", "note")


def audit_text(audit: SampleAudit) -> str:
    """The path of a sample as paragraphs of at most `WIDTH` characters a line, each saying one decision and its grounds."""
    lines = [line for part in (_what, _cluster, _difficulty, _quality, _plan) for line in part(audit)]
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="   ", break_on_hyphens=False) for line in lines)


def path_lines(audit: SampleAudit) -> dict[str, str]:
    """One short line a decision: cluster, difficulty, filter, batch, swap; the head of the figure."""
    c, d, q, b = audit.cluster, audit.difficulty, audit.quality, audit.batch
    second = "there is no other cluster" if c.second is None else f"next is {c.second} at {c.second_distance:.1f}"
    return {
        "cluster": f"{c.cluster} ({c.label}), distance {c.distance:.1f}; {second}",
        "difficulty": f"r = {d.ranking:.2f}{_interval(d)}, percentile {d.percentile:.0f} of the pool",
        "filter": f"{'kept' if q.kept else 'dropped'}, score {q.score:.3f}, rank {q.rank:,} of {q.n_pool:,}; {q.n_kept:,} stay",
        "batch": "none" if b is None else f"step {b.step} of {b.n_steps} (from 0), slot {b.slot}, stage {b.stage}",
        "swap": "none" if audit.swap is None else _swap_line(audit.swap),
    }


def _what(audit: SampleAudit) -> Iterator[str]:
    label = "" if math.isnan(audit.label) else f"difficulty label {audit.label:.2f}"
    about = ", ".join(filter(None, (f"{audit.source} source" * bool(audit.source), audit.topic, label)))
    yield f"Sample {audit.sample_id}{f' ({about})' if about else ''}."
    yield f"   Prompt: {' '.join(audit.prompt.split())}"
    yield f"   Answer: {' '.join(audit.answer.split())}"


def _cluster(audit: SampleAudit) -> Iterator[str]:
    c = audit.cluster
    second = f"the next nearest is cluster {c.second} ({c.second_label}) at {c.second_distance:.1f}"
    yield (
        f"1. Cluster {c.cluster} ({c.label}; {c.size:,} samples): its centroid is nearest, at {c.distance:.1f} (number "
        f"{c.distance_rank:,} of the cluster, nearest first); {'there is no other cluster' if c.second is None else second}."
    )
    if c.features:
        shown = ", ".join(f"{f.feature} at {f.standardised:+.1f} sd" for f in c.features)
        yield f"   Features that set it apart from cluster {c.second}: {shown}."


def _difficulty(audit: SampleAudit) -> Iterator[str]:
    d = audit.difficulty
    whose = "labelled samples of the cluster" if d.interval_of_cluster else "labelled samples of all clusters"
    yield f"2. Difficulty: raw d_hat = {d.raw:.2f} = {d.parts.intercept:.2f} (mean of L) {_sum(d.parts)}."
    yield (
        f"   Calibrated g(d_hat) = {d.calibrated:.2f}; cluster correction {d.shrinkage:.2f} x {d.residual:+.3f} "
        f"(lambda_c x Delta_c, n_c = {d.n_labelled:,}); r = {d.calibrated:.2f} {'-' if d.residual < 0 else '+'} "
        f"{abs(d.shrinkage * d.residual):.3f} = {d.ranking:.2f}{_interval(d)}, from {d.n_residuals:,} {whose}. Harder than "
        f"{d.percentile:.0f} % of the pool, number {d.cluster_rank:,} of {audit.cluster.size:,} in its cluster from easy to hard."
    )


def _interval(d: DifficultyPart) -> str:
    if not math.isfinite(d.high):
        return f" (too few labels for a {100 * d.level:.0f} % interval)"
    return f" ({100 * d.level:.0f} % interval {d.low:.2f} to {d.high:.2f})"


def _sum(parts: Breakdown) -> str:
    shown = " ".join(f"{c.contribution:+.2f} ({c.feature})" for c in parts.listed)
    return f"{shown} {parts.others:+.2f} ({parts.n_others} others)".strip()


def _quality(audit: SampleAudit) -> Iterator[str]:
    q = audit.quality
    yield (
        f"3. Filter: {'kept, among' if q.kept else 'dropped, the filter keeps'} the best {q.n_kept:,}: score {q.score:.4f} "
        f"(smallest kept {q.threshold:.4f}), rank {q.rank:,} of {q.n_pool:,}. The score is the probability of the target source, "
        "not of a correct solution."
    )
    yield f"   Log-odds = {q.parts.intercept:+.2f} (intercept) {_sum(q.parts)}."


def _plan(audit: SampleAudit) -> Iterator[str]:
    b, s = audit.batch, audit.swap
    if b is None or s is None:
        yield "4. No batch and no swap: the sample was dropped by the filter and is never trained on."
        return
    mates = ", ".join(f"{m.sample_id} (cluster {m.cluster}, r {m.ranking:.2f})" for m in b.batch if m.slot != b.slot)
    rests = " Its home batch gathers samples that filled no batch of their own cluster." if b.made_of_rests else ""
    yield (
        f"4. Batch: step {b.step} of {b.n_steps} (from 0), slot {b.slot}, position {b.position:,}; stage {b.stage} of the "
        f"curriculum; dominant cluster {b.dominant}.{rests} With it: {mates}."
    )
    line = f"5. Swap: {_swap_line(s)}."
    if s.h and not s.in_tail and s.partner is not None:
        line += f" Its batch exchanged its tail with step {s.partner}."
    if s.partner is not None and s.candidates:
        c = s.candidates[0]
        line += (
            f" That partner is similar in difficulty (means {c.ranking_difference:.2f} apart) and in length "
            f"({100 * c.length_difference:.0f} % apart) and of another dominant cluster ({c.dominant} before the exchange)."
        )
    elif s.h and s.partner is None:
        refused = "; ".join(map(_refusal, s.candidates)) or "no other batch of its stage lies in the window"
        line += f" Its batch found no partner: {refused}."
    yield line


def _swap_line(s: SwapPart) -> str:
    if s.swapped:
        return f"exchanged from step {s.home_step} to step {s.partner}"
    if s.h == 0:
        return "stays: this plan exchanges nothing"
    if not s.in_tail:
        return f"stays: only the last {s.h} of a batch are exchanged"
    return f"stays: no admissible partner among {s.n_candidates} candidates"


def _refusal(c: Candidate) -> str:
    return (
        f"step {c.step} (cluster {c.dominant}, difficulty {c.ranking_difference:.2f} and length "
        f"{100 * c.length_difference:.0f} % apart) was refused: {', '.join(c.failed)}"
    )


def audit_table(audit: SampleAudit, evidence: Evidence) -> pd.DataFrame:
    """Rows of `sample_audit.csv`: sample_id, part, item, value, low, high, cluster, slot, n, note; unused cells are NaN or ''.

    Parts: path (a line a decision in note), difficulty and quality (item a feature, value its contribution, first the
    intercept, last the n others), pool (low, high a bin of r, value its share of n samples), score (value r, low, high its
    interval, n residuals), batch (item a sample, value its r, n its home step, note 'this sample' or 'exchanged').
    """
    d, pool = audit.difficulty, evidence.scores["ranking"].to_numpy()
    rows = [{"part": "path", "item": name, "note": line} for name, line in path_lines(audit).items()]
    for part, parts in (("difficulty", d.parts), ("quality", audit.quality.parts)):
        rows.append({"part": part, "item": "intercept", "value": parts.intercept})
        rows += [{"part": part, "item": c.feature, "value": c.contribution} for c in parts.listed]
        rows.append({"part": part, "item": "others", "value": parts.others, "n": parts.n_others})
    counts, edges = np.histogram(pool, bins=BINS)
    bins = zip(counts / counts.sum(), edges, edges[1:], strict=False)
    rows += [{"part": "pool", "item": "r", "value": v, "low": a, "high": b, "n": len(pool)} for v, a, b in bins]
    low, high = (d.low, d.high) if math.isfinite(d.high) else (math.nan, math.nan)
    rows.append({"part": "score", "item": "r", "value": d.ranking, "low": low, "high": high, "n": d.n_residuals,
                 "note": f"{100 * d.level:.0f} %"})  # fmt: skip
    for m in audit.batch.batch if audit.batch else ():
        note = "this sample" if m.sample_id == audit.sample_id else "exchanged" if m.home_step != audit.batch.step else ""
        rows.append({"part": "batch", "item": m.sample_id, "value": m.ranking, "cluster": m.cluster, "slot": m.slot,
                     "n": m.home_step, "note": note})  # fmt: skip
    frame = pd.DataFrame(rows).assign(sample_id=audit.sample_id).reindex(columns=list(COLUMNS))
    return frame.assign(note=frame["note"].fillna(""))


def run_audit(sample_id: str, profile: str, seed: int, json: bool) -> int:
    """`audit`: print the record as paragraphs or JSON; the stage `audit` is computed when it is missing.

    Raises UnknownSampleError with near ids, ArtifactError when a stage of the profile was not run yet.
    """
    settings = get_profile(profile, seed=seed)
    stages = [load_stage(settings, name) for name in ("world", "sae", "features", "difficulty")]
    for name in ("filter", "plans"):
        load_stage(settings, name)
    record = audit(sample_id, open_evidence(settings, audit_stage(settings, *stages)))
    print(dumps(record.to_dict(), indent=1, ensure_ascii=False) if json else audit_text(record))
    return 0
