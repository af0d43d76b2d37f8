"""Figures for reading the plan: clusters, feature groups, the decision path of one sample (notebooks 04 and 06)."""

from __future__ import annotations

import math
import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from saerl_lib.report import style

PATH = ("cluster", "difficulty", "filter", "batch", "swap")
GAIN_COLOUR, LOSS_COLOUR = style.VERMILLION, style.BLUE


@style.styled
def feature_groups(groups: pd.DataFrame) -> Figure:
    """Share of LightGBM's gain by feature group with its interval; the top 20 and 100 features, here and in the paper."""
    figure, axes = style.panels(style.FULL_WIDTH, 2.5, 1, 3, gridspec_kw={"width_ratios": [1.3, 1, 1]})
    y = np.arange(len(groups))
    share = 100 * groups["gain_share"].astype(float)
    lengths = style.error_lengths(share, 100 * groups["ci_low"], 100 * groups["ci_high"])
    axes[0, 0].barh(y, share.fillna(0.0), 0.55, xerr=lengths, color=style.SKY, ecolor=style.BLACK)
    axes[0, 0].set_xlim(left=0)
    axes[0, 0].set_xlabel("Share of total gain (%)")
    axes[0, 0].set_title("Gain by feature group")
    labels = [f"{style.readable(g)} ({int(n):,})" for g, n in zip(groups["group"], groups["n_features"], strict=True)]
    for axis, top in zip(axes[0, 1:], (20, 100), strict=True):
        axis.plot(groups[f"paper_top_{top}"], y, "s", color=style.ORANGE, markerfacecolor="none", markersize=7, clip_on=False,
                  label="paper")  # fmt: skip
        axis.plot(groups[f"top_{top}"], y, "o", color=style.BLUE, clip_on=False, label="here")
        axis.set_xlim(-0.03 * top, max(groups[f"top_{top}"].max(), groups[f"paper_top_{top}"].max()) * 1.1)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.set_xlabel("Features")
        axis.set_title(f"Among the top {top} by gain")
    for axis in axes[0]:
        axis.set_yticks(y, labels if axis is axes[0, 0] else [""] * len(y))
        axis.set_ylim(len(y) - 0.5, -0.5)
        style.light_grid(axis, "x")
    figure.legend(*axes[0, 2].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    style.caption(
        figure,
        f"n = {int(groups['n'].max()):,} samples; number of features of a group in brackets. LightGBM predicts the "
        "cluster label; bars: 95 % interval over bootstrap resamples of the samples. Filled: here; open: paper, section 5.4 "
        "(240 latents a block).",
    )
    return figure


def _difficulty_panel(axis: Axes, clusters: pd.DataFrame, y: np.ndarray) -> None:
    axis.hlines(y, clusters["difficulty_q25"], clusters["difficulty_q75"], color=style.SKY, linewidth=6)
    axis.plot(clusters["difficulty_median"], y, "|", color=style.BLACK, markersize=9, markeredgewidth=1.6)
    axis.plot(clusters["difficulty_mean"], y, "D", color=style.VERMILLION, markersize=3.5)
    axis.set_xlabel("Difficulty label")
    axis.set_title("Difficulty")


@style.styled
def cluster_audit(clusters: pd.DataFrame) -> Figure:
    """A row a cluster, easiest above: quartiles of difficulty, topic entropy, words of the solution, number of samples."""
    table = clusters.sort_values(["difficulty_median", "cluster"], kind="stable").reset_index(drop=True)
    y = np.arange(len(table))
    figure, axes = style.panels(
        style.FULL_WIDTH, 1.3 + 0.36 * len(table), 1, 4, sharey=True, gridspec_kw={"width_ratios": [1.6, 1, 1, 1]}
    )
    _difficulty_panel(axes[0, 0], table, y)
    columns = (("topic_entropy_bits", "Bits", "Topic entropy"), ("solution_words_mean", "Words (mean)", "Solution length"),
               ("n", "Samples", "Size"))  # fmt: skip
    for axis, (column, unit, title) in zip(axes[0, 1:], columns, strict=True):
        axis.barh(y, table[column], 0.55, color=style.SKY)
        for place, value in zip(y, table[column], strict=True):
            axis.annotate(style.number(round(float(value), 2)), (value, place), (2, 0), textcoords="offset points", va="center")
        axis.set_xlim(0, max(float(table[column].max()), 1e-9) * 1.35)
        axis.set_xlabel(unit)
        axis.set_title(title)
    names = [textwrap.shorten(str(label), 58, placeholder=" ...") for label in table["label"]]
    axes[0, 0].set_yticks(y, [textwrap.fill(f"{c}  {name}", 30) for c, name in zip(table["cluster"], names, strict=True)])
    axes[0, 0].set_ylim(len(table) - 0.5, -0.5)
    style.light_grid(axes[0, 0], "x")
    style.caption(
        figure,
        f"n = {int(table['n'].sum()):,} samples. Bar: quartiles of the label; line: median; diamond: mean. A label names "
        "the most frequent leaf topics; mixed: the first of them has less than a quarter of the cluster.",
    )
    return figure


def _item_label(item: str, n: float) -> str:
    """A feature as a tick label: latents keep block/number, metadata features go by their words."""
    if item == "others":
        return f"{int(n):,} others"
    return style.readable(item.removeprefix("metadata/")) if item.startswith("metadata/") else item


def _contribution_panel(axis: Axes, parts: pd.DataFrame, title: str, unit: str) -> None:
    rows = parts[parts["item"] != "intercept"].reset_index(drop=True)
    y, values = np.arange(len(rows)), rows["value"].to_numpy(dtype=float)
    axis.barh(y, values, 0.6, color=np.where(values < 0, LOSS_COLOUR, GAIN_COLOUR).tolist())
    axis.set_yticks(y, [_item_label(str(item), n) for item, n in zip(rows["item"], rows["n"].fillna(0), strict=True)])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.axvline(0, color=style.BLACK, linewidth=0.6)
    pad = 0.3 * (max(values.max(), 0.0) - min(values.min(), 0.0) or 1.0)  # room for the numbers
    axis.set_xlim(min(values.min(), 0.0) - pad, max(values.max(), 0.0) + pad)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    for place, value in zip(y, values, strict=True):
        axis.annotate(f"{value:+.2f}", (value, place), (3 if value >= 0 else -3, 0), textcoords="offset points", va="center",
                      ha="left" if value >= 0 else "right")  # fmt: skip
    start = float(parts.loc[parts["item"] == "intercept", "value"].iloc[0])
    axis.set_title(f"{title}: from {start:.2f} to {start + values.sum():.2f}")
    axis.set_xlabel(unit)


def _score_panel(axis: Axes, pool: pd.DataFrame, score: pd.Series) -> None:
    axis.stairs(100 * pool["value"], np.append(pool["low"], pool["high"].iloc[-1]), fill=True, color=style.LIGHT)
    low, high = float(score["low"]), float(score["high"])
    if math.isfinite(low):
        axis.axvspan(low, high, color=style.SKY, alpha=0.35, linewidth=0, ymax=0.8, label=f"{score['note']} interval")
    axis.axvline(float(score["value"]), color=style.VERMILLION, ymax=0.8, label="this sample")
    axis.set_ylim(0, 130 * pool["value"].max())
    axis.set_xlabel("Ranking score r (difficulty units)")
    axis.set_ylabel("Share of the pool (%)")
    axis.set_title("Difficulty in the pool")
    axis.legend(loc="upper center", ncols=2, columnspacing=1.0)


def _batch_panel(axis: Axes, batch: pd.DataFrame) -> None:
    axis.set_title("Its batch")
    if batch.empty:
        axis.text(0.5, 0.5, "no batch:\ndropped by the filter", ha="center", va="center", transform=axis.transAxes)
        axis.set_xticks([])
        axis.set_yticks([])
        return
    clusters = style.ordered(batch["cluster"].astype(int))
    palette, symbols = style.colours(clusters), style.markers(clusters)
    for row in batch.itertuples():
        cluster = int(row.cluster)
        axis.plot(row.slot, row.value, symbols[cluster], color=palette[cluster], markersize=6)
        if row.note == "this sample":
            axis.plot(row.slot, row.value, "o", color=style.BLACK, markerfacecolor="none", markersize=12)
        if len(batch) <= 16:
            axis.annotate(str(cluster), (row.slot, row.value), (0, 9), textcoords="offset points", ha="center")
    axis.margins(x=0.06, y=0.3)
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.set_xlabel("Slot (above the mark: cluster)")
    axis.set_ylabel("Ranking score r")
    style.light_grid(axis, "y")


@style.styled
def sample_audit(table: pd.DataFrame) -> Figure:
    """One sample's decision path: a line a decision, contributions to both scores, its place in the pool, its batch."""
    part = {name: rows.reset_index(drop=True) for name, rows in table.groupby("part", sort=False)}
    lines = dict(zip(part["path"]["item"], part["path"]["note"], strict=True))
    figure, axes = style.panels(style.FULL_WIDTH, 5.9, 2, 2, gridspec_kw={"height_ratios": [1.35, 1]})
    text = [textwrap.fill(f"{name.capitalize()}: {lines[name]}", 118, subsequent_indent="    ") for name in PATH if name in lines]
    head = "\n".join([f"Decision path of {table['sample_id'].iloc[0]}", *text])
    figure.suptitle(head, fontsize=7.5, x=0.01, ha="left", linespacing=1.5)
    _contribution_panel(axes[0, 0], part["difficulty"], "Raw difficulty", "Contribution (difficulty units)")
    _contribution_panel(axes[0, 1], part["quality"], "Filter log-odds", "Contribution (log-odds)")
    _score_panel(axes[1, 0], part["pool"], part["score"].iloc[0])
    _batch_panel(axes[1, 1], part.get("batch", table.iloc[:0]))
    residuals = int(part["score"]["n"].iloc[0])
    style.caption(
        figure,
        f"n = {int(part['pool']['n'].max()):,} samples in the pool; interval from the out-of-fold residuals of {residuals:,} "
        "labelled samples. Names: block/latent of the SAE, or a metadata feature. Contributions lead from the intercept to the "
        "score. Ring: this sample.",
    )
    return figure
