"""Figures of what difficulty and plan depend on: labels (notebook 04) and open choices (notebook 06)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saerl_lib.report import style

FEATURES = {"sae+metadata": "SAE + metadata (phi)", "metadata": "Metadata", "tfidf": "TF-IDF"}
FEATURE_COLOURS = {"sae+metadata": style.BLUE, "metadata": style.GREY, "tfidf": style.ORANGE}
FEATURE_MARKERS = {"sae+metadata": "o", "metadata": "s", "tfidf": "^"}
YARDSTICK = "k-means seed"
VARIED = (YARDSTICK, "K", "tau_sh", "h", "window", "rest", "unequal")
NAMES = {"tau_sh": r"$\tau_{sh}$", "h": "h", "K": "K", "window": "window", "rest": "rest", "unequal": "unequal"}
RANDOM_ORDERS = 0.81
"""Share moved between two random orders: 1 - 2 * 0.1 + 0.1^2."""


@style.styled
def label_curve(curve: pd.DataFrame) -> Figure:
    """Spearman of predicted with labelled difficulty against the number of labels, a line a feature set."""
    figure, axes = style.panels(style.COLUMN_WIDTH, 2.8)
    axis, features = axes[0, 0], style.ordered(curve["features"], FEATURES)
    palette, symbols = style.colours(features, FEATURE_COLOURS), style.markers(features, FEATURE_MARKERS)
    for place, name in enumerate(features):
        part = curve[curve["features"] == name].sort_values("n_labels")
        x = part["n_labels"] * 1.05 ** (place - (len(features) - 1) / 2)
        lengths = style.error_lengths(part["value"], part["ci_low"], part["ci_high"])
        axis.errorbar(x, part["value"], lengths, color=palette[name], marker=symbols[name],
                      label=FEATURES.get(name, style.readable(name)))  # fmt: skip
    sizes = sorted(curve["n_labels"].unique())
    axis.set_xscale("log")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()
    axis.set_xlabel("Labelled samples |L| (log scale)")
    axis.set_ylabel("Spearman ρ on test samples")
    axis.set_ylim(min(0.0, float(curve["ci_low"].min())) - 0.02, 1.02)
    style.light_grid(axis)
    figure.legend(loc="outside upper center", ncols=len(features), columnspacing=1.0, handletextpad=0.4)
    style.caption(
        figure,
        f"n = {int(curve['n_test'].iloc[0]):,} test samples. Point: mean over {int(curve['n_subsets'].max())} nested random "
        "subsets (all of L is one); bar: 95 % interval over subsets and test samples. A constant prediction counts as 0.",
    )
    return figure


@style.styled
def plan_sensitivity(rows: pd.DataFrame) -> Figure:
    """Share of samples that move by more than a tenth of the run, a line a changed setting, beside other k-means seeds."""
    seeds, changed = rows[rows["varied"] == YARDSTICK], rows[rows["varied"] != YARDSTICK]
    groups = style.ordered(changed["varied"], VARIED)
    lines = [line for group in groups for line in changed[changed["varied"] == group].to_dict("records")]
    figure, axes = style.panels(style.COLUMN_WIDTH, 1.5 + 0.17 * (len(lines) + bool(len(seeds))))
    axis, palette, symbols = axes[0, 0], style.colours(groups), style.markers(groups)
    for place, line in enumerate(lines):
        axis.plot([0, line["share_moved"]], [place, place], color=palette[line["varied"]], linewidth=0.8)
        axis.plot(line["share_moved"], place, symbols[line["varied"]], color=palette[line["varied"]], clip_on=False)
    labels = [_label(line) for line in lines]
    if len(seeds):
        axis.axvspan(seeds["share_moved"].min(), seeds["share_moved"].max(), color=style.LIGHT, alpha=0.6, linewidth=0)
        axis.plot(seeds["share_moved"], np.full(len(seeds), len(lines)), "|", color=style.BLACK, markersize=7)
        labels.append(f"{len(seeds)} other k-means seeds")
    axis.axvline(RANDOM_ORDERS, color=style.GREY, linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.set_xlim(0, 1)
    axis.set_xlabel("Share of samples moved by more\nthan a tenth of the run")
    style.light_grid(axis, "x")
    style.caption(
        figure,
        f"n = {int(rows['n'].iloc[0]):,} planned samples; one setting changed at a time (default in brackets). Grey band: range "
        "over other k-means seeds, the yardstick; dotted: two random orders.",
    )
    return figure


def _label(line: dict[str, object]) -> str:
    varied, setting, default = (style.readable(line[name]) for name in ("varied", "setting", "default"))
    return f"{NAMES.get(str(line['varied']), varied)} = {setting} ({default})"
