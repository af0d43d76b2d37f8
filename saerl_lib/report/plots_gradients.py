"""Figures of the policy gradients: coherence by grouping, and Appendix A with measured moments (notebook 06)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from saerl_lib.report import style

LEVELS = {"prompt": "Between single prompts", "batch": "Between batches"}
GROUPINGS = (
    "cluster", "cluster, topics differ", "clusters, permuted", "leaf topic", "domain", "difficulty tenth",
)  # fmt: skip
RELATIONS = {"within": ("Same group", style.BLUE, "o"), "across": ("Different groups", style.ORANGE, "s")}
CEILING, POOL = "halves", "random"
TICKS = (-0.05, 0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
BINS = 10
MEAN = "mean"


def _points(axis: Axes, part: pd.DataFrame, y: np.ndarray, label: str, colour: str, marker: str) -> None:
    """Dots with horizontal intervals at heights y."""
    lengths = style.error_lengths(part["value"], part["ci_low"], part["ci_high"])
    axis.errorbar(part["value"], y, xerr=lengths, color=colour, marker=marker, linestyle="none", label=label)


def _coherence_panel(axis: Axes, rows: pd.DataFrame, groupings: list[str]) -> None:
    """One level: same and different groups of every grouping, the pool's mean and the ceiling as lines with bands."""
    for name, colour, line, label in (
        (POOL, style.GREY, ":", "Any two"), (CEILING, style.BLACK, "--", "Same prompts, new rollouts")
    ):  # fmt: skip
        row = rows[rows["relation"] == name].iloc[0]
        axis.axvspan(row["ci_low"], row["ci_high"], color=colour, alpha=0.12, linewidth=0)
        axis.axvline(row["value"], color=colour, linestyle=line, linewidth=1, label=label)
    place = {name: -i for i, name in enumerate(groupings)}
    for shift, (relation, (label, colour, marker)) in zip((0.14, -0.14), RELATIONS.items(), strict=True):
        part = rows[(rows["relation"] == relation) & rows["grouping"].isin(groupings)]
        _points(axis, part, part["grouping"].map(place).to_numpy() + shift, label, colour, marker)
    axis.set_xscale("symlog", linthresh=0.1, linscale=1.2)
    axis.set_xlim(min(-0.03, 1.2 * rows["ci_low"].min()), 1.0)
    axis.xaxis.set_major_locator(FixedLocator(TICKS))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_ylim(0.6 - len(groupings), 0.6)
    style.light_grid(axis, "x")


@style.styled
def gradient_coherence(coherence: pd.DataFrame) -> Figure:
    """Mean cosine of policy gradients, same group against different groups, a panel for prompts and one for batches."""
    shown = coherence[coherence["relation"].isin(RELATIONS)]
    groupings = style.ordered(shown["grouping"], GROUPINGS)
    levels = style.ordered(coherence["level"], LEVELS)
    figure, axes = style.panels(style.FULL_WIDTH, 1.3 + 0.27 * len(groupings), 1, len(levels), sharey=True)
    for axis, level in zip(axes[0], levels, strict=True):
        _coherence_panel(axis, coherence[coherence["level"] == level], groupings)
        axis.set_title(LEVELS.get(level, style.readable(level)))
        axis.set_xlabel("Cosine of policy gradients\n(linear to 0.1, then logarithmic)")
    axes[0, 0].set_yticks([-i for i in range(len(groupings))], groupings)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    pool = coherence[coherence["relation"] == POOL].set_index("level")
    n, alive, zero = (int(v) for v in (pool["n"].max(), pool["n"].min(), pool["n_zero"].max()))
    style.caption(
        figure,
        f"n = {n} prompts of the kept pool at the base policy, {zero} without any gradient (all rewards equal): left out between "
        f"prompts (n = {alive}), zero inside batches. Groupings without batches have none on the right. "
        "Bars and bands: 95 % bootstrap over prompts.",
    )
    return figure


def _histogram_panel(axis: Axes, pairs: pd.DataFrame) -> None:
    counts, edges = np.histogram(pairs["rho_star"], bins=np.linspace(0, 1, BINS + 1))
    axis.bar(edges[:-1], counts, width=1 / BINS, align="edge", color=style.SKY, edgecolor="white", linewidth=0.6)
    axis.set_xlabel(r"Best share of the partner, $\rho^*$")
    axis.set_ylabel("Ordered pairs of clusters")
    axis.set_title("Optimum of a pair")


def _cluster_panel(axis: Axes, means: pd.DataFrame) -> None:
    """Change at the plan's own share, a row a cluster, the mean over clusters on top."""
    clusters = [MEAN, *sorted((c for c in means["cluster_c"] if c != MEAN), key=int)]
    rows = means.set_index("cluster_c").loc[clusters]
    y = -np.arange(len(rows))
    colours = [style.VERMILLION if c == MEAN else style.BLUE for c in clusters]
    lengths = 100 * style.error_lengths(rows["mse_change_at_h"], rows["change_low"], rows["change_high"])
    for i, colour in enumerate(colours):
        axis.errorbar(100 * rows["mse_change_at_h"].iloc[i], y[i], xerr=lengths[:, [i]], color=colour,
                      marker="D" if i == 0 else "o")  # fmt: skip
    axis.axvline(0, color=style.BLACK, linewidth=0.8)
    axis.set_xscale("symlog", linthresh=10)
    axis.xaxis.set_major_locator(FixedLocator([-100, -10, 0, 10, 100, 1000]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_yticks(y, ["all" if c == MEAN else c for c in clusters])
    axis.set_ylabel("Cluster of the batch")
    axis.set_xlabel("Change of the error (%)\n(linear to 10, then logarithmic)")
    axis.set_title(rf"At the plan's $\rho$ = {rows['rho_h'].iloc[0]:g}")
    style.light_grid(axis, "x")


def _curve_panel(axis: Axes, curve: pd.DataFrame, mean: pd.Series) -> None:
    """Predicted change against rho, averaged over clusters, with the random batch as a reference."""
    part = curve[curve["cluster_c"].astype(str) == MEAN].sort_values("rho")
    axis.fill_between(part["rho"], 100 * part["ci_low"], 100 * part["ci_high"], color=style.VERMILLION, alpha=0.2, linewidth=0)
    axis.plot(part["rho"], 100 * part["mse_change"], color=style.VERMILLION, label="Mixed batch")
    axis.axhline(100 * mean["random_change"], color=style.GREY, linestyle="--", linewidth=1, label="Random batch")
    axis.axhline(0, color=style.BLACK, linewidth=0.8)
    axis.axvline(mean["rho_h"], color=style.BLUE, linestyle=":", linewidth=1, label="Plan (h / b)")
    axis.set_xlabel(r"Share of the partner, $\rho$")
    axis.set_ylabel("Change of the error (%)")
    axis.set_title("All clusters")
    axis.legend(loc="best", fontsize=7)
    style.light_grid(axis, "y")


@style.styled
def mixing_theory(theory: pd.DataFrame, curve: pd.DataFrame) -> Figure:
    """Appendix A with measured moments: optimum of each pair, change at the plan's share, change against the share."""
    theory = theory.astype({"cluster_c": str, "cluster_d": str})
    means = theory[theory["cluster_d"] == MEAN]
    everyone = means[means["cluster_c"] == MEAN].iloc[0]
    figure, axes = style.panels(style.FULL_WIDTH, 2.9, 1, 3)
    pairs = theory[theory["cluster_d"] != MEAN]
    _histogram_panel(axes[0, 0], pairs)
    _cluster_panel(axes[0, 1], means)
    _curve_panel(axes[0, 2], curve, everyone)
    share = everyone["bias2"] / (everyone["bias2"] + everyone["variance"])
    style.caption(
        figure,
        f"n = {int(everyone['n_c'])} prompts, {len(pairs)} ordered pairs of clusters. Error: mean squared error of a batch "
        f"gradient as an estimate of the pool's; of a pure batch of one cluster, {100 * share:.1f} % is squared bias, the rest "
        "variance. Middle and right: partner drawn by size. Bars and band: 95 % bootstrap over prompts.",
    )
    return figure
