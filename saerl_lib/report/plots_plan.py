"""Figures of the batch plans: composition along the run and diversity inside a batch (notebook 06)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saerl_lib.report import style

ORDERS = ("random", "saerl_before_mixing", "saerl")
SPACES = {"pca2": "2-D projection (PCA)", "full": "Full standardised space"}
QUANTITIES = (
    ("dominant_share", "Share of the\nlargest cluster"),
    ("n_clusters", "Clusters\nin the batch"),
    ("mean_ranking_score", "Mean ranking score\n(difficulty units)"),
)


@style.styled
def batch_composition(batches: pd.DataFrame) -> Figure:
    """Three panels over training steps, a line an order: share of the largest cluster, clusters, mean ranking score."""
    figure, axes = style.panels(style.FULL_WIDTH, 4.6, len(QUANTITIES), 1, sharex=True)
    orders = style.ordered(batches["order"], ORDERS)
    palette, symbols = style.colours(orders, style.ORDER_COLOURS), style.markers(orders, style.ORDER_MARKERS)
    steps = int(batches.groupby("order").size().max())
    window = max(1, steps // 20)
    for axis, (column, label) in zip(axes[:, 0], QUANTITIES, strict=True):
        for order in orders:
            part = batches[batches["order"] == order].sort_values("step")
            axis.plot(part["step"], part[column], symbols[order], color=palette[order], markersize=1.8, alpha=0.35,
                      markeredgewidth=0)  # fmt: skip
            smooth = part[column].rolling(window, center=True, min_periods=1).mean()
            axis.plot(part["step"], smooth, color=palette[order], marker=symbols[order], markevery=max(1, steps // 8),
                      label=style.readable(order))  # fmt: skip
        axis.set_ylabel(label)
        style.light_grid(axis, "y")
    axes[0, 0].set_ylim(0, 1.05)
    axes[1, 0].set_ylim(bottom=0)
    axes[0, 0].set_title("What a batch holds along the run")
    axes[-1, 0].set_xlabel("Optimiser step")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(orders))
    style.caption(figure, f"n = {steps} batches an order. Faint: each batch; line: {style.smoothing(window)}.")
    return figure


@style.styled
def inbatch_diversity(diversity: pd.DataFrame) -> Figure:
    """Mean distance between nearest neighbours of a batch against the number of exchanged samples, a panel a space."""
    spaces = style.ordered(diversity["space"], SPACES)
    figure, axes = style.panels(min(style.FULL_WIDTH, 0.4 + 3.0 * len(spaces)), 2.7, 1, len(spaces))
    orders = style.ordered(diversity["order"], ORDERS)
    palette, symbols = style.colours(orders, style.ORDER_COLOURS), style.markers(orders, style.ORDER_MARKERS)
    shift = 0.03 * max(1, int(diversity["swapped_per_batch"].max()))
    for axis, space in zip(axes[0], spaces, strict=True):
        for place, order in enumerate(orders):
            part = diversity[(diversity["space"] == space) & (diversity["order"] == order)].sort_values("swapped_per_batch")
            if part.empty:
                continue
            lengths = style.error_lengths(part["value"], part["ci_low"], part["ci_high"])
            x = part["swapped_per_batch"] + shift * (place - (len(orders) - 1) / 2)
            axis.errorbar(x, part["value"], lengths, color=palette[order], marker=symbols[order],
                          label=style.readable(order))  # fmt: skip
            if len(part) == 1:
                axis.axhline(float(part["value"].iloc[0]), color=palette[order], linewidth=0.8, linestyle=":")
        axis.set_title(SPACES.get(space, style.readable(space)))
        axis.set_xlabel("Samples exchanged in a batch, h")
        axis.set_xticks(sorted(diversity["swapped_per_batch"].unique()))
        axis.margins(x=0.12)
        style.light_grid(axis, "y")
    axes[0, 0].set_ylabel("Mean nearest-neighbour\ndistance in a batch")
    handles, labels = _legend_entries(axes)
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    n = diversity["n_batches"]
    count = f"{int(n.min())}" if n.min() == n.max() else f"{int(n.min())} to {int(n.max())}"
    style.caption(
        figure,
        f"n = {count} batches a point; bars: 95 % interval over batches; dotted: level of an order with one h. "
        "Points of equal h are set apart sideways.",
    )
    return figure


def _legend_entries(axes: np.ndarray) -> tuple[list[Any], list[str]]:
    entries: dict[str, Any] = {}
    for axis in axes.ravel():
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    return list(entries.values()), list(entries)
