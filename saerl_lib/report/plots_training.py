"""Figures of training and evaluation: reward, accuracy by step, paired differences (notebooks 07 and 08)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saerl_lib.report import style

ARMS = ("grpo", "saerl")


@style.styled
def training_curves(curves: pd.DataFrame) -> Figure:
    """Reward and share of groups without variance by step: thick the mean over seeds, thin each seed."""
    figure, axes = style.panels(style.FULL_WIDTH, 2.8, 1, 2, sharex=True)
    arms = style.ordered(curves["arm"], ARMS)
    palette, symbols = style.colours(arms, style.ARM_COLOURS), style.markers(arms, style.ARM_MARKERS)
    steps = int(curves["step"].nunique())
    window = max(1, steps // 20)
    for axis, column in zip(axes[0], ("reward_mean", "zero_variance_share"), strict=True):
        for arm in arms:
            table = curves[curves["arm"] == arm].pivot_table(index="step", columns="seed", values=column).sort_index()
            smooth = table.rolling(window, center=True, min_periods=1).mean()
            axis.plot(smooth.index, smooth.to_numpy(), color=palette[arm], linewidth=0.6, alpha=0.5)
            axis.plot(smooth.index, smooth.mean(axis=1), color=palette[arm], marker=symbols[arm], linewidth=1.6,
                      markevery=max(1, steps // 8), label=f"{arm} (n = {table.shape[1]} seeds)")  # fmt: skip
        axis.set_xlabel("Optimiser step")
        style.light_grid(axis)
    axes[0, 0].set_ylabel("Mean reward (0 to 1)")
    axes[0, 1].set_ylabel("Share of groups")
    axes[0, 0].set_title("Reward")
    axes[0, 1].set_title("Groups of equal rewards (no gradient)")
    axes[0, 1].set_ylim(0, 1.02)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(arms))
    style.caption(figure, f"Thick: mean over seeds; thin: each seed; {style.smoothing(window)}.")
    return figure


def _shown_metric(part: pd.DataFrame) -> str:
    """The metric with the most evaluated steps; on a tie Pass@k for the hardest set, Avg@k for the others."""
    paper = "pass_at_k" if part["eval_set"].iloc[0] == "hardest" else "avg_at_k"
    steps = part.groupby("metric")["step"].nunique()
    return max(sorted(steps.index), key=lambda metric: (steps[metric], metric == paper))


def _settings(part: pd.DataFrame) -> list[tuple[int, int]]:
    """The (n_problems, n_samples) pairs of a panel, the one evaluated most often first; Pass@k of one k alone."""
    steps = part.groupby(["n_problems", "n_samples"])["step"].nunique()
    pairs = sorted(steps.index, key=lambda pair: (-steps[pair], pair))
    return [pair for pair in pairs if part["metric"].iloc[0] != "pass_at_k" or pair[1] == pairs[0][1]]


def _curve(axis: Axes, part: pd.DataFrame, arm: str, colour: str, marker: str, full: bool) -> None:
    table = part.pivot_table(index="step", columns="seed", values="value").sort_index()
    mean, low, high = table.mean(axis=1), table.min(axis=1), table.max(axis=1)
    if full:
        lengths = style.error_lengths(mean, low, high)
        axis.errorbar(table.index, mean, lengths, color=colour, marker=marker, markersize=6, linestyle="none",
                      markerfacecolor="white", zorder=4)  # fmt: skip
        return
    axis.fill_between(table.index, low, high, color=colour, alpha=0.18, linewidth=0)
    axis.plot(table.index, mean, color=colour, marker=marker, markersize=3, label=arm)


def _sizes_text(settings: list[tuple[int, int]]) -> str:
    problems, samples = settings[0]
    text = f"{problems} x {samples}"
    return text + "".join(f", open {p} x {s}" for p, s in settings[1:])


@style.styled
def learning_curves(curves: pd.DataFrame) -> Figure:
    """A panel an evaluation set and their mean: accuracy by step, mean over seeds, band from lowest to highest seed."""
    sets = style.ordered(curves["eval_set"], style.EVAL_ORDER)
    arms = style.ordered(curves["arm"], ARMS)
    columns = min(4, len(sets))
    rows = -(-len(sets) // columns)
    figure, axes = style.panels(style.FULL_WIDTH, 0.8 + 1.8 * rows, rows, columns, sharex=True)
    palette, symbols = style.colours(arms, style.ARM_COLOURS), style.markers(arms, style.ARM_MARKERS)
    for axis, name in zip(axes.ravel(), sets, strict=False):
        part = curves[curves["eval_set"] == name]
        metric = _shown_metric(part)
        part = part[part["metric"] == metric]
        settings = _settings(part)
        for arm in arms:
            for pair in settings:
                chosen = part[(part["arm"] == arm) & (part["n_problems"] == pair[0]) & (part["n_samples"] == pair[1])]
                if not chosen.empty:
                    _curve(axis, chosen, arm, palette[arm], symbols[arm], full=pair != settings[0])
        title = "mean of the sets" if name == "all" else style.readable(name)
        axis.set_title(f"{title}, {style.readable(metric).replace(' at ', '@')}\n{_sizes_text(settings)}", fontsize=7.5)
        axis.locator_params(axis="x", nbins=4)
        style.light_grid(axis)
    style.hide_unused(axes, len(sets))
    for index, axis in enumerate(axes.ravel()[: len(sets)]):
        if index + columns >= len(sets):
            axis.tick_params(axis="x", labelbottom=True)
    for axis in axes[-1]:
        axis.set_xlabel("Optimiser step")
    for axis in axes[:, 0]:
        axis.set_ylabel("Accuracy (0 to 1)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(arms))
    seeds = curves.groupby("arm")["seed"].nunique()
    count = ", ".join(f"{arm} {seeds[arm]}" for arm in arms)
    style.caption(
        figure,
        f"Line: mean over seeds (n: {count}); band and bars: lowest to highest seed, not a confidence interval. "
        "Under each title: problems x completions a problem (k); open marks: the larger evaluation.",
    )
    return figure


@style.styled
def paired_difference(differences: pd.DataFrame) -> Figure:
    """saerl minus grpo in percent points by evaluation set, with 95 % intervals and the minimum detectable effect."""
    known = {name: place for place, name in enumerate(style.EVAL_ORDER)}
    table = differences.assign(place=differences["eval_set"].map(known).fillna(len(known)))
    table = table.sort_values(["place", "eval_set", "metric"], kind="stable").reset_index(drop=True)
    figure, axes = style.panels(style.FULL_WIDTH, 1.2 + 0.3 * len(table))
    axis = axes[0, 0]
    y = np.arange(len(table))
    effect = table["minimum_detectable_effect"].to_numpy(dtype=float)
    axis.barh(y, 2 * np.nan_to_num(effect), left=-np.nan_to_num(effect), height=0.62, color="#E9E9E9", zorder=0,
              label="below the minimum detectable effect")  # fmt: skip
    axis.use_sticky_edges = False
    axis.axvline(0, color=style.BLACK, linewidth=0.8)
    for index, row in table.iterrows():
        colour = style.VERMILLION if row["eval_set"] == "all" else style.BLUE
        marker = "D" if row["eval_set"] == "all" else "o"
        lengths = style.error_lengths([row["difference"]], [row["ci_low"]], [row["ci_high"]])
        axis.errorbar([row["difference"]], [index], xerr=lengths, color=colour, marker=marker, markersize=5)
    labels = [f"{'mean of the sets' if s == 'all' else style.readable(s)}, {style.readable(m).replace(' at ', '@')}"
              for s, m in zip(table["eval_set"], table["metric"], strict=True)]  # fmt: skip
    axis.set_yticks(y, labels)
    right = axis.twinx()
    for target in (axis, right):
        target.set_ylim(len(table) - 0.5, -0.5)
        target.tick_params(axis="y", length=0)
    right.spines["left"].set_visible(False)
    problems = ["" if pd.isna(n) else f", {int(n):,} problems" for n in table["n_problems"]]
    right.set_yticks(y, [f"{d:+.2f}{p}" for d, p in zip(table["difference"], problems, strict=True)])
    axis.set_xlabel("saerl minus grpo at the last step (percent points)")
    axis.set_title("Paired difference by evaluation set")
    n = table["n_seeds"]
    count = f"{int(n.min())}" if n.min() == n.max() else f"{int(n.min())} to {int(n.max())}"
    style.caption(
        figure,
        f"n = {count} matched seeds; bars: 95 % interval. Grey: below the minimum detectable effect, a true difference "
        "that would be found with probability 0.8 at alpha 0.05.",
    )
    return figure
