"""Figures of the representation and of what is read from it: SAE, probes, clusters, calibration, filter (notebooks 01-05)."""

from __future__ import annotations

import math
import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saerl_lib.report import style
from saerl_lib.report.schemas import is_true

TARGETS = (
    "topic_l2", "topic_l3", "topic_leaf", "difficulty_in_domain", "difficulty_out_of_domain", "difficulty_adapted",
    "solution_quality",
)  # fmt: skip
METRIC_LABELS = {"accuracy": "Accuracy", "spearman": "Spearman rho", "pearson": "Pearson r", "rmse": "RMSE", "mae": "MAE"}
METRICS = tuple(METRIC_LABELS)
BASELINE = "majority / mean"
FEATURES = (BASELINE, "shuffled_labels", "length", "metadata", "tfidf", "sae", "sae+metadata")
SCORES = ("raw", "global", "ranking")


def _quality_panel(axis: Axes, part: pd.DataFrame, encoders: list[str]) -> None:
    low, high = part["low"].min(), part["high"].max()
    if not (math.isnan(low) and math.isnan(high)):
        span = part[["value", "low", "high"]].to_numpy(dtype=float)
        top = np.nanmax(span) + 0.35 * (np.nanmax(span) - min(np.nanmin(span), 0.0) or 1.0)
        axis.axhspan(0.0 if math.isnan(low) else low, top if math.isnan(high) else high, color="#E6EFF5", zorder=0)
        axis.set_ylim(min(0.0, np.nanmin(span)), top)
    else:
        axis.set_ylim(0, (part["value"].max() * 1.35) or 1.0)
    judged = part["met"].notna().to_numpy()
    for index, (_, row) in enumerate(part.iterrows()):
        met = not judged[index] or bool(is_true(pd.Series([row["met"]])).iloc[0])
        colour = style.BLUE if not judged[index] else style.MET_COLOUR if met else style.UNMET_COLOUR
        x = encoders.index(row["encoder"])
        axis.plot(x, row["value"], "o" if met else "X", color=colour, markersize=6)
        axis.annotate(style.number(float(row["value"])), (x, row["value"]), (0, 6), textcoords="offset points", ha="center")
    axis.set_xticks(range(len(encoders)), [textwrap.fill(style.readable(name), 12) for name in encoders])
    axis.set_xlim(-0.6, len(encoders) - 0.4)


@style.styled
def sae_quality(quality: pd.DataFrame) -> Figure:
    """A panel a quantity, a point an encoder, the allowed range shaded; a cross is outside it."""
    quantities = list(dict.fromkeys(quality["quantity"]))
    encoders = list(dict.fromkeys(quality["encoder"]))
    columns = min(4, len(quantities))
    rows = -(-len(quantities) // columns)
    figure, axes = style.panels(style.FULL_WIDTH, 0.7 + 1.7 * rows, rows, columns)
    for axis, quantity in zip(axes.ravel(), quantities, strict=False):
        _quality_panel(axis, quality[quality["quantity"] == quantity], encoders)
        axis.set_title(style.readable(quantity))
    style.hide_unused(axes, len(quantities))
    tokens = quality["n_tokens"].dropna()
    n = f"n = {int(tokens.max()):,} held-out tokens. " if len(tokens) else ""
    style.caption(figure, f"{n}Shaded: allowed range; circle: inside or only reported; cross: outside.")
    return figure


def _map_panel(axis: Axes, table: pd.DataFrame, column: str, number_groups: bool) -> None:
    groups = style.ordered(table[column])
    palette, symbols = style.colours(groups), style.markers(groups)
    for group in groups:
        part = table[table[column] == group]
        axis.plot(part["x"], part["y"], symbols[group], color=palette[group], markersize=2, alpha=0.55, markeredgewidth=0,
                  rasterized=True, label=style.readable(group))  # fmt: skip
    if number_groups:
        for group in groups:
            part = table[table[column] == group]
            axis.annotate(
                str(group), (part["x"].median(), part["y"].median()), ha="center", va="center", fontsize=8, fontweight="bold",
                bbox={"boxstyle": "circle,pad=0.2", "fc": "white", "ec": palette[group]},
            )  # fmt: skip
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel("Projection 1")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=5 if number_groups else 3, markerscale=2.5,
                handletextpad=0.1, columnspacing=0.8)  # fmt: skip


@style.styled
def sae_map(points: pd.DataFrame) -> Figure:
    """Two views of the same projection of SAE space: coloured by domain and by cluster."""
    figure, axes = style.panels(style.FULL_WIDTH, 3.6, 1, 2)
    _map_panel(axes[0, 0], points, "domain", number_groups=False)
    _map_panel(axes[0, 1], points, "cluster", number_groups=True)
    axes[0, 0].set_ylabel("Projection 2")
    axes[0, 0].set_title("By domain")
    axes[0, 1].set_title("By cluster")
    style.caption(figure, f"n = {len(points):,} samples, the same points in both panels; numbers mark the median of a cluster.")
    return figure


def _probe_panel(axis: Axes, part: pd.DataFrame, features: list[str], datasets: list[str]) -> None:
    palette, symbols = style.colours(datasets), style.markers(datasets)
    for index, dataset in enumerate(datasets):
        rows = part[part["dataset"] == dataset].dropna(subset=["value"])
        y = np.array([features.index(name) for name in rows["shown"]]) + 0.3 * (index - (len(datasets) - 1) / 2)
        lengths = style.error_lengths(rows["value"], rows["ci_low"], rows["ci_high"])
        axis.errorbar(rows["value"], y, xerr=lengths, linestyle="none", color=palette[dataset], marker=symbols[dataset],
                      label=style.readable(dataset))  # fmt: skip
    axis.margins(x=0.12)
    axis.locator_params(axis="x", nbins=4)
    style.light_grid(axis)


@style.styled
def probe_ladder(ladder: pd.DataFrame) -> Figure:
    """A panel a target and metric, a row a feature set, dots with 95 % intervals; colour and marker by data set."""
    table = ladder.assign(shown=ladder["features"].replace({"majority": BASELINE, "mean": BASELINE, "majority|mean": BASELINE}))
    targets, metrics = style.ordered(table["target"], TARGETS), style.ordered(table["metric"], METRICS)
    present = set(zip(table["target"], table["metric"], strict=True))
    pairs = [(target, metric) for target in targets for metric in metrics if (target, metric) in present]
    features, datasets = style.ordered(table["shown"], FEATURES), style.ordered(table["dataset"], ("world",))
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure, axes = style.panels(style.FULL_WIDTH, 0.8 + rows * (0.55 + 0.17 * len(features)), rows, columns, sharey=True)
    for axis, (target, metric) in zip(axes.ravel(), pairs, strict=False):
        part = table[(table["target"] == target) & (table["metric"] == metric)]
        _probe_panel(axis, part, features, datasets)
        axis.set_title(style.readable(target))
        axis.set_xlabel(f"{METRIC_LABELS.get(metric, metric)} (n = {_span(part['n_test'])})")
    style.hide_unused(axes, len(pairs))
    axes[0, 0].set_yticks(range(len(features)), [style.readable(name) for name in features])
    axes[0, 0].set_ylim(len(features) - 0.5, -0.5)
    if len(datasets) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(datasets))
    style.caption(figure, "Bars: 95 % interval over test samples; n: test samples. RMSE and MAE: lower is better.")
    return figure


def _span(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


@style.styled
def calibration(bins: pd.DataFrame) -> Figure:
    """Reliability of three difficulty scores: mean label against mean prediction by bin, the diagonal is perfect."""
    scores = style.ordered(bins["score"], SCORES)
    figure, axes = style.panels(style.FULL_WIDTH, 3.1, 1, len(scores), sharex=True, sharey=True)
    numbers = bins[["predicted_mean", "label_mean", "ci_low", "ci_high"]].to_numpy(dtype=float)
    pad = 0.05 * (np.nanmax(numbers) - np.nanmin(numbers) or 1.0)
    limits = (np.nanmin(numbers) - pad, np.nanmax(numbers) + pad)
    palette, symbols = style.colours(scores), style.markers(scores)
    for axis, score in zip(axes[0], scores, strict=True):
        part = bins[bins["score"] == score].sort_values("predicted_mean")
        lengths = style.error_lengths(part["label_mean"], part["ci_low"], part["ci_high"])
        axis.plot(limits, limits, color=style.GREY, linewidth=0.8, linestyle="--")
        axis.errorbar(part["predicted_mean"], part["label_mean"], lengths, color=palette[score], marker=symbols[score])
        axis.set_title(f"{style.readable(score)} score (n = {int(part['n'].sum()):,})")
        axis.set_xlabel("Predicted difficulty")
        axis.set(xlim=limits, ylim=limits, aspect="equal")
    axes[0, 0].set_ylabel("Difficulty label")
    text = "Held-out labelled samples in bins of equal size; bars: 95 % interval of the bin's mean; dashed: perfect."
    style.caption(figure, text)
    return figure


@style.styled
def cluster_topics(counts: pd.DataFrame) -> Figure:
    """Heat map: share of each domain within each cluster, the cluster's size below."""
    table = counts.pivot_table(index="domain", columns="cluster", values="n", aggfunc="sum", fill_value=0).sort_index()
    totals = table.sum(axis=0)
    shares = (table / totals.where(totals > 0, 1)).to_numpy()
    rows, columns = shares.shape
    figure, axes = style.panels(style.FULL_WIDTH, 1.3 + 0.3 * rows)
    axis = axes[0, 0]
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if columns <= 16:
        for y, x in np.ndindex(rows, columns):
            axis.text(x, y, f"{100 * shares[y, x]:.0f}", ha="center", va="center", fontsize=7,
                      color="white" if shares[y, x] > 0.55 else "black")  # fmt: skip
    axis.set_xticks(range(columns), [f"{c}\n{int(n):,}" for c, n in zip(table.columns, totals, strict=True)])
    axis.set_yticks(range(rows), [style.readable(name) for name in table.index])
    axis.tick_params(length=0)
    axis.set_xlabel("Cluster, and its number of samples")
    axis.set_title("Domains by cluster")
    figure.colorbar(image, ax=axis, label="Share of the cluster", shrink=0.9)
    style.caption(figure, f"n = {int(totals.sum()):,} samples. Cells: percent of the cluster; a column adds up to 100.")
    return figure
