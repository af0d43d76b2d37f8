"""Single numbers that docs/real_data.md speaks of, each with the table of `figures/data` that it is read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from saerl_lib.report.schemas import TableError, read_table
from saerl_lib.report.tables import markdown_table


@dataclass(frozen=True)
class Reading:
    """One row of the document."""

    what: str
    table: str
    where: Mapping[str, str]
    """Column -> value of the row, or of the rows whose smallest and largest value are told."""
    value: str = "value"
    low: str = "ci_low"
    high: str = "ci_high"
    paper: str = ""
    """Column of the paper's value."""
    count: str = field(default="n", kw_only=True)


def _agreement(what: str, quantity: str, features: str = "sae") -> Reading:
    return Reading(what, "real_clusters", {"features": features, "quantity": quantity}, paper="paper_value")


def _moved(what: str, varied: str) -> Reading:
    return Reading(what, "plan_sensitivity", {"varied": varied}, "share_moved", "", "")


def _coherence(what: str, grouping: str, level: str, relation: str) -> Reading:
    return Reading(what, "gradient_coherence", {"grouping": grouping, "level": level, "relation": relation})


def _flaws(what: str, table: str, pool: str, score: str) -> Reading:
    where = {"pool": pool, "flaw": "any", "score": score, "metric": "roc_auc"}
    return Reading(what, table, where, count="n_flawed")


def _kept(what: str, table: str, column: str, where: Mapping[str, str]) -> Reading:
    return Reading(what, table, {"rule": "p95", **where}, column, "", "", f"paper_{column}", count="n_pool")


def _separation(what: str, features: str) -> Reading:
    return Reading(what, "real_separation", {"metric": "roc_auc", "features": features}, paper="paper_value", count="n_test")


READINGS = (
    Reading("Clusters of other k-means seeds, world: ARI", "cluster_stability", {"varied": "k-means seed"}, "ari_mean", "ari_low",
            "ari_high"),
    Reading("Clusters of other SAE seeds, world: ARI", "cluster_stability", {"varied": "SAE seed"}, "ari_mean", "ari_low",
            "ari_high"),
    _agreement("Clusters of other k-means seeds, MATH: ARI", "ari_kmeans_seeds"),
    _agreement("Clusters of other SAE seeds, MATH: ARI", "ari_sae_seeds"),
    _agreement("Clusters against MATH's subjects: purity", "purity"),
    _agreement("The same, dense activations", "purity", "dense"),
    _agreement("The same, metadata", "purity", "metadata"),
    _agreement("The same, one cluster", "purity", "majority"),
    _moved("Samples that another k-means seed moves by over a tenth of the run", "k-means seed"),
    _moved("Samples that another K moves so far", "K"),
    _moved("Samples that another tau_sh moves so far", "tau_sh"),
    _moved("Samples that another h moves so far", "h"),
    _moved("Samples that another window moves so far", "window"),
    _moved("Samples that another staging of unequal clusters moves so far", "unequal"),
    _coherence("Gradients of batches of one cluster: cosine", "cluster", "batch", "within"),
    _coherence("Of batches of two clusters", "cluster", "batch", "across"),
    _coherence("Difference", "cluster", "batch", "difference"),
    _coherence("Single prompts, difference", "cluster", "prompt", "difference"),
    _coherence("Batches by leaf topic, difference", "leaf topic", "batch", "difference"),
    Reading("Distance in z against distance of gradients: rho", "gradient_distance",
            {"space": "z", "measure": "cosine"}, "spearman",
            count="n_pairs"),
    Reading("Distance in TF-IDF against distance of gradients: rho", "gradient_distance",
            {"space": "TF-IDF", "measure": "cosine"}, "spearman", count="n_pairs"),
    Reading("Appendix A with measured moments: rho*, mean over pairs of clusters", "mixing_theory",
            {"cluster_c": "mean", "cluster_d": "mean"}, "rho_star", count="n_c"),
    Reading("Change of the squared gradient error at h = 1 of 8, share", "mixing_theory",
            {"cluster_c": "mean", "cluster_d": "mean"}, "mse_change_at_h", "change_low", "change_high", count="n_c"),
    _kept("Filter at p95, world: purity", "filter", "purity", {}),
    _kept("Filter at p95, world: recall", "filter", "recall", {}),
    _kept("Filter at p95, DeepMath against DeepScaleR: purity", "real_filter", "purity", {"features": "sae"}),
    _kept("Filter at p95, DeepMath against DeepScaleR: recall", "real_filter", "recall", {"features": "sae"}),
    _separation("DeepMath against DeepScaleR from SAE features: ROC-AUC", "sae"),
    _separation("The same, untrained SAE", "sae_untrained"),
    _separation("The same, TF-IDF", "tfidf"),
    _flaws("Planted errors by the source probe, whole pool: ROC-AUC", "filter_flaws", "whole pool", "source_probe"),
    _flaws("The same within the parent source", "filter_flaws", "within parent", "source_probe"),
    _flaws("Within the parent source, surprise of the worst solution token", "filter_flaws", "within parent",
           "peak_surprise_solution"),
    _flaws("Flawed questions of ValiMath by the source probe: ROC-AUC", "real_flaws", "test", "source_probe"),
    _flaws("By a probe trained on flaws", "real_flaws", "test", "flaw_probe_sae"),
)  # fmt: skip


def _number(value: Any) -> str:
    return "" if pd.isna(value) else f"{float(value):.3f}"


def _row(reading: Reading, folder: Path) -> list[str]:
    frame = read_table(reading.table, folder)
    for column, value in reading.where.items():
        frame = frame[frame[column].astype(str) == value]
    if frame.empty or (len(frame) > 1 and reading.low):
        raise TableError(f"{reading.table}.csv: {len(frame)} rows where {dict(reading.where)}; {reading.what!r} needs one")
    values, first = frame[reading.value].astype(float), frame.iloc[0]
    shown = _number(values.min()) if len(frame) == 1 else f"{_number(values.min())} to {_number(values.max())}"
    low, high = (_number(first[name]) if name else "" for name in (reading.low, reading.high))
    paper = _number(first[reading.paper]) if reading.paper else ""
    bounds = f"{low} to {high}" if low else ""
    return [reading.what, shown, bounds, paper, f"{int(first[reading.count]):,}", f"`{reading.table}.csv`"]


def readings_markdown(folder: Path) -> str:
    """Every reading as a row of a Markdown table. Raises TableError when a table lacks its row."""
    header = ["Quantity", "Here", "95 % interval", "Paper", "n", "From"]
    return markdown_table(header, [_row(reading, folder) for reading in READINGS])
