"""Figures of the study beside the paper's Table 4 and Figure 3 (notebook 08). Drawn from their tables alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saerl_lib.report import style
from saerl_lib.report.paper_tables import BENCHMARKS, baseline_of


def _bounds(part: pd.DataFrame, centre: str) -> np.ndarray:
    """Lengths of error bars [2, n]; none where there is no interval."""
    low, high = part["ci_low"].fillna(part[centre]), part["ci_high"].fillna(part[centre])
    return style.error_lengths(part[centre], low, high)


@style.styled
def study_sets(tables: pd.DataFrame) -> Figure:
    """Table 4 set by set: what each arm gains over its baseline at the last evaluation, here and in the paper."""
    gains = tables[(tables["table"] == "4 gain") & (tables["n_seeds"] > 0)]
    arms = list(gains["arm"].unique())
    columns = min(3, len(arms))
    rows = -(-len(arms) // columns)
    figure, axes = style.panels(style.FULL_WIDTH, 0.5 + 1.75 * rows, rows, columns, sharex=True, sharey=True)
    for axis, arm in zip(axes.flat, arms, strict=False):
        part = gains[gains["arm"] == arm].set_index("benchmark").loc[list(BENCHMARKS)].reset_index()
        places = np.arange(len(part))
        axis.errorbar(part["our_value"], places, xerr=_bounds(part, "our_value"), fmt="o", color=style.BLUE, markersize=4,
                      elinewidth=1.2)  # fmt: skip
        axis.plot(part["paper_value"], places, "x", color=style.BLACK, markersize=4.5)
        axis.axvline(0, color=style.BLACK, linewidth=0.8)
        axis.set_title(f"{style.readable(arm)} - {style.readable(baseline_of(arm))} (n = {part['n_seeds'].max()})", fontsize=7.5)
        labels = [f"{'mean' if b == 'mean' else style.readable(s)} ({'six sets' if b == 'mean' else b})"
                  for b, s in BENCHMARKS.items()]  # fmt: skip
        axis.set_yticks(places, labels, fontsize=7)
        style.light_grid(axis, "x")
    axes.flat[0].invert_yaxis()
    style.hide_unused(axes, len(arms))
    for axis in axes.flat[max(0, len(arms) - columns) : len(arms)]:  # the lowest panel of each column
        axis.set_xlabel("Gain (points)")
        axis.tick_params(labelbottom=True)
    style.caption(
        figure,
        "First arm minus second at the last evaluation. Dot: here, with a 95 % t interval over n matched seeds, uncorrected. "
        "Cross: the paper's single runs on the benchmark in brackets, which the set stands for. Avg@8; the hardest set by "
        "Pass@8, as AIME24 in the paper.",
    )
    return figure


def _mixing_panel(axis: Axes, table: pd.DataFrame, x: str, paper_x: str, label: str, joined: bool = True) -> None:
    ours, paper = table.sort_values(x), table.sort_values(paper_x)
    axis.errorbar(ours[x], ours["difference"], yerr=_bounds(ours, "difference"), fmt="o-" if joined else "o",
                  color=style.BLUE, markersize=4, linewidth=1.1, elinewidth=1.2,
                  label=f"here (n = {ours['n_seeds'].min()} seeds)")  # fmt: skip
    axis.plot(paper[paper_x], paper["paper_difference"], "x--" if joined else "x", color=style.BLACK, markersize=4.5,
              linewidth=0.8, label="paper (one run)")  # fmt: skip
    axis.axhline(0, color=style.GREY, linewidth=0.8)
    axis.set_xlabel(label)
    style.light_grid(axis)


@style.styled
def study_mixing(mixing: pd.DataFrame) -> Figure:
    """Figure 3: accuracy against h and against in-batch diversity, both relative to h = 0."""
    figure, axes = style.panels(style.FULL_WIDTH, 2.7, 1, 2, sharey=True)
    share = mixing.assign(share=mixing["paper_swapped"] / 1.28, paper_share=mixing["paper_swapped"] / 1.28)
    _mixing_panel(axes[0, 0], share, "share", "paper_share", "Share of the batch to swap, h / b (%)")
    _mixing_panel(axes[0, 1], mixing, "diversity_2d", "paper_diversity", "In-batch diversity in 2-D, relative to h = 0", False)
    for row in mixing.itertuples():
        top = row.difference if np.isnan(row.ci_high) else row.ci_high
        axes[0, 1].annotate(f"h = {row.swapped_per_batch}", (row.diversity_2d, top), xytext=(0, 4), textcoords="offset points",
                            ha="center", fontsize=7, color=style.BLUE)  # fmt: skip
    axes[0, 1].margins(y=0.1)
    axes[0, 0].set_ylabel("Accuracy minus h = 0 (points)")
    axes[0, 0].legend(loc="best")
    style.caption(
        figure,
        "Here: mean of the last three evaluations, difference to h = 0 paired by seed with a 95 % t interval, uncorrected; "
        "b = 32. Paper: read off its Figure 3, step 800, b = 128. Diversity: mean distance to the 5 nearest neighbours in the "
        "batch. Batches without an admissible partner swap nothing, so that less was swapped than asked for (study_plans.csv).",
    )
    return figure


PAPER_HOURS = {"SAE encoding": 0.5, "ADARFT's rollouts": 17.33}
"""H100-hours for `PAPER_SAMPLES` samples (paper, section 5)."""
PAPER_SAMPLES = 103_022


@style.styled
def preparation_cost(cost: pd.DataFrame) -> Figure:
    """Time a prompt of SAE encoding and of ADARFT's rollouts, here and in the paper."""
    figure, axes = style.panels(style.COLUMN_WIDTH, 1.9)
    axis, n = axes[0, 0], len(cost)
    ours = {"SAE encoding": cost["encode_s"], "ADARFT's rollouts": cost["rollouts_s"]}
    for place, (name, spent) in enumerate(ours.items()):
        here, paper = ("here, each part", "paper") if not place else (None, None)
        axis.plot(1000 * spent / cost["prompts"], np.full(n, place), "o", color=style.BLUE, markersize=4, label=here)
        axis.plot(3.6e6 * PAPER_HOURS[name] / PAPER_SAMPLES, place, "x", color=style.BLACK, markersize=5, label=paper)
    axis.set_xscale("log")
    axis.set_yticks(range(len(ours)), list(ours))
    axis.set_ylim(len(ours) - 0.5, -0.5)
    axis.set_xlabel("Milliseconds a prompt (log scale)")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    style.light_grid(axis, "x")
    style.caption(
        figure, f"n = {n} disjoint parts of {int(cost['prompts'].iloc[0])} prompts, CPU; the paper: one H100, 103,022 samples."
    )
    return figure
