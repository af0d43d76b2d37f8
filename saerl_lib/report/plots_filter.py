"""Figure of the quality filter: scores by source, purity and recall by rule beside the paper's values (notebook 05)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saerl_lib.report import style

SOURCES = ("target", "parent")


def _scores_panel(axis: Axes, scores: pd.DataFrame) -> None:
    sources = style.ordered(scores["source"], SOURCES)
    palette = style.colours(sources)
    for source, dashes in zip(sources, ("-", "--", ":", "-.") * len(sources), strict=False):
        part = scores[scores["source"] == source].sort_values("bin_low")
        edges = np.append(part["bin_low"].to_numpy(), part["bin_high"].iloc[-1])
        axis.stairs(part["share"], edges, color=palette[source], linestyle=dashes, linewidth=1.4, label=style.readable(source))
    axis.set_xlabel("Filter score")
    axis.set_ylabel("Share of the source")
    axis.set_ylim(bottom=0)
    axis.legend(loc="best")
    axis.set_title("Scores by source")


@style.styled
def filter_rules(rules: pd.DataFrame, scores: pd.DataFrame) -> Figure:
    """Score histograms by source; purity and recall of each rule, filled here, open in the paper (Table 6)."""
    figure, axes = style.panels(
        style.FULL_WIDTH, max(2.6, 1.1 + 0.3 * len(rules)), 1, 3, gridspec_kw={"width_ratios": [1.25, 1, 1]}
    )
    _scores_panel(axes[0, 0], scores)
    y = np.arange(len(rules))
    labels = [f"{style.readable(rule)}\n({int(kept):,} kept)" for rule, kept in zip(rules["rule"], rules["kept"], strict=True)]
    for axis, column in zip(axes[0, 1:], ("purity", "recall"), strict=True):
        axis.plot(100 * rules[f"paper_{column}"], y, "s", color=style.ORANGE, markerfacecolor="none", markersize=7,
                  clip_on=False, label="paper")  # fmt: skip
        axis.plot(100 * rules[column], y, "o", color=style.BLUE, clip_on=False, label="here")
        axis.set_xlim(-3, 103)
        axis.set_ylim(len(rules) - 0.5, -0.5)
        axis.set_xlabel(f"{column.capitalize()} (%)")
        axis.set_title(column.capitalize())
        axis.set_yticks(y, labels if column == "purity" else [""] * len(rules))
        style.light_grid(axis)
    axes[0, 2].tick_params(axis="y", length=0)
    figure.legend(*axes[0, 2].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    style.caption(
        figure,
        f"n = {int(rules['n_pool'].max()):,} samples in the pool. Filled: here; open: paper, Table 6, on DeepMath and "
        "NuminaMath-1.5. Purity: share of the kept from the target source; recall: share of the target source kept.",
    )
    return figure
