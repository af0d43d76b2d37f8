"""Figures of the RL study: paired differences, learning curves, the pilot (notebook 08). Drawn from their tables alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saerl_lib.report import style
from saerl_lib.report.arm_pairs import planned_seeds
from saerl_lib.report.statistics import paired_t_interval

PAPER_ARMS = ("grpo", "dapo", "diff", "adarft", "gainrl", "saerl_grpo", "saerl_dapo")
FAMILY_TITLES = {
    "paper": "Paper's arms", "ablation": "Ablations", "mixing": "Mixing", "batch": "Batch of 4b", "filter": "Filter",
    "features": "Other features", "post_hoc": "After the first results", "order": "Other orders", "rival": "Rivals",
    "transfer": "Larger policy", "user": "Your arms",
}  # fmt: skip


SHORT = {
    "grpo": "GRPO", "dapo": "DAPO", "diff": "DIFF", "adarft": "ADARFT", "gainrl": "GAINRL", "saerl_grpo": "SAERL",
    "saerl_dapo": "SAERL on DAPO", "minus_diff": "unsorted", "minus_diff_mix": "unsorted, unmixed",
    "minus_clus_mix": "difficulty alone", "minus_mix": "h = 0", "mix_1": "h = 1", "mix_4": "h = 4", "mix_8": "h = 8",
    "saerl_4b": "SAERL, 4 b", "grpo_4b": "GRPO, 4 b", "grpo_unfiltered": "GRPO unfiltered",
    "saerl_unfiltered": "SAERL unfiltered", "saerl_tfidf": "TF-IDF", "saerl_dense": "dense", "saerl_frozen": "frozen decoder",
    "saerl_shuffled": "shuffled scores", "saerl_true": "true label", "saerl_stretch": "clusters spread",
    "saerl_back": "clusters end together", "informative_half": "informative half, twice",
    "pass_rate_order": "easy first, by pass rate", "grpo_shuffle_b": "second shuffle", "grpo_shuffle_c": "third shuffle",
    "shift": "SHIFT", "irds": "IRDS", "e2h": "E2H",
    "mopps": "MoPPS", "sec": "SEC", "grpo_large": "GRPO, larger", "saerl_grpo_large": "SAERL, larger",
}  # fmt: skip
"""Arms in the labels of figures; others are shown by their names."""


def short(arm: str) -> str:
    """The label of an arm.

    >>> short("minus_diff"), short("hard_to_easy")
    ('unsorted', 'hard to easy')
    """
    return SHORT.get(arm, style.readable(arm))


@style.styled
def study_effects(comparisons: pd.DataFrame) -> Figure:
    """Every comparison of the outcome in points: thick the 95 % interval, thin Holm's within its family."""
    table = comparisons[comparisons["metric"] == "outcome"].reset_index(drop=True)
    figure, axes = style.panels(style.FULL_WIDTH, 1.3 + 0.24 * (len(table) + table["family"].nunique()))
    axis, y, places, labels = axes[0, 0], 0, [], []
    for family, part in table.groupby("family", sort=False):
        axis.text(0.005, y, FAMILY_TITLES.get(family, family), transform=axis.get_yaxis_transform(), fontsize=7.5,
                  fontweight="bold", va="center", color=style.GREY)  # fmt: skip
        y += 1
        for row in part.itertuples():
            early = row.n_seeds < planned_seeds(family)
            colour = style.GREEN if row.holm_low > 0 else style.VERMILLION if row.holm_high < 0 else style.BLUE
            colour = style.GREY if early else colour
            missed = float(np.nan_to_num(row.detectable))
            axis.barh(y, 2 * missed, left=-missed, height=0.7, color="#EDEDED", zorder=0)
            axis.plot([row.holm_low, row.holm_high], [y, y], color=colour, linewidth=0.8)
            axis.plot([row.ci_low, row.ci_high], [y, y], color=colour, linewidth=2.4, solid_capstyle="butt")
            axis.plot(row.difference, y, marker="o", markersize=4.5, color="white" if early else colour,
                      markeredgecolor=colour if early else "white")  # fmt: skip
            if pd.notna(row.paper_value):
                axis.plot(row.paper_value, y, marker="x", markersize=4.5, color=style.BLACK, linestyle="none")
            places.append(y)
            labels.append(f"{short(row.arm)} - {short(row.baseline)} (n = {row.n_seeds})")
            y += 1
    axis.axvline(0, color=style.BLACK, linewidth=0.8)
    axis.set_yticks(places, labels, fontsize=7)
    axis.set_ylim(y - 0.4, -0.8)
    axis.set_xlabel("second better  <  difference of the outcome (percent points)  >  first better")
    style.light_grid(axis, "x")
    waiting = (table["n_seeds"] < table["family"].map(planned_seeds)).any()
    early_note = "Open and grey: fewer seeds than planned, decides nothing. " if waiting else ""
    style.caption(
        figure,
        "Outcome: mean of the last three evaluations. n = matched seeds. Thick: 95 % interval, over seeds and problems; thin: "
        f"corrected by Holm within its family. Green / red: the corrected interval excludes 0. {early_note}Grey band: "
        "below the minimum detectable effect (power 0.8). "
        "Cross: the paper's tables, whose averages count AIME24 by Pass@8.",
    )
    return figure


def _band(part: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean and 95 % t interval over seeds by step."""
    rows = {step: paired_t_interval(group[column].to_numpy()) for step, group in part.groupby("step")}
    return pd.DataFrame(rows, index=["value", "low", "high"]).T


def _curve(axis: Axes, part: pd.DataFrame, column: str, colour: str, marker: str, label: str) -> None:
    """One arm; accuracies of the larger evaluations are open marks apart, since they are of more problems."""
    band = _band(part, column)
    facts = part.groupby("step")[["rollouts", "problems"]].mean().loc[band.index]
    thousands, larger = facts["rollouts"] / 1000, facts["problems"] > facts["problems"].min()
    small = ~larger | (column != "mean_avg")
    axis.fill_between(thousands[small], band["low"][small], band["high"][small], color=colour, alpha=0.13, linewidth=0)
    axis.plot(thousands[small], band["value"][small], color=colour, marker=marker, markersize=3, linewidth=1.1, label=label)
    apart = band[~small]
    lengths = style.error_lengths(apart["value"], apart["low"], apart["high"])
    axis.errorbar(thousands[~small], apart["value"], lengths, fmt=marker, color=colour, markersize=4, markerfacecolor="white",
                  elinewidth=0.8, capsize=0)  # fmt: skip


@style.styled
def study_curves(runs: pd.DataFrame) -> Figure:
    """Accuracy, groups without a gradient, and entropy by generated rollouts, for the paper's arms."""
    arms = [name for name in PAPER_ARMS if name in set(runs["arm"])]
    palette, symbols = style.colours(arms, {"grpo": style.GREY, "saerl_grpo": style.BLUE}), style.markers(arms)
    columns = {
        "mean_avg": "Mean Avg@k of six sets (%)",
        "zero_variance_share": "Groups without gradient",
        "entropy": "Entropy (nats a token)",
    }
    figure, axes = style.panels(style.FULL_WIDTH, 3.1, 1, 3, sharex=True)
    for axis, (column, label) in zip(axes[0], columns.items(), strict=True):
        for arm in arms:
            part = runs[(runs["arm"] == arm) & runs[column].notna()]
            _curve(axis, part, column, palette[arm], symbols[arm], f"{style.readable(arm)} ({part['seed'].nunique()})")
        axis.set_title(label, fontsize=7.5)
        if column == "zero_variance_share":
            axis.set_ylim(-0.02, 1.02)
        axis.set_xlabel("Rollouts generated (thousands)")
        style.light_grid(axis)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=min(4, len(arms)))
    style.caption(
        figure,
        "In brackets: matched seeds. Line: mean over seeds; band and bars: 95 % t interval over seeds. Open: the first and the "
        "last evaluation, of more problems than the others and not comparable with them.",
    )
    return figure


@style.styled
def study_pilot(pilot: pd.DataFrame) -> Figure:
    """The pilot's learning rates, and the arms behind the number of seeds."""
    figure, axes = style.panels(style.FULL_WIDTH, 2.5, 1, 2)
    rates = pilot[pilot["part"] == "learning rate"]
    axis = axes[0, 0]
    axis.plot(rates["learning_rate"], rates["outcome"], "o", color=style.BLUE, markersize=4)
    axis.plot(rates.groupby("learning_rate")["outcome"].mean(), color=style.BLUE)
    axis.set_xscale("log")
    values = sorted(rates["learning_rate"].unique())
    axis.set_xticks(values, [f"{value:.1e}" for value in values])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("Learning rate")
    axis.set_ylabel("Outcome of grpo (%)")
    axis.set_title("Learning rate, reserved seeds")
    seeds = pilot[pilot["part"] == "seeds"].pivot(index="seed", columns="arm", values="outcome")
    other = axes[0, 1]
    for place, arm in enumerate([c for c in seeds if c != "grpo"]):
        other.plot(np.full(len(seeds), place), seeds[arm] - seeds["grpo"], "o", color=style.CYCLE[place], markersize=4)
    other.axhline(0, color=style.BLACK, linewidth=0.8)
    other.set_xticks(range(seeds.shape[1] - 1), [c for c in seeds if c != "grpo"])
    other.set_xlim(-0.5, seeds.shape[1] - 1.5)
    other.set_ylabel("Difference to grpo (points)")
    other.set_title("Paired differences")
    for panel in axes[0]:
        style.light_grid(panel)
    counts = f"n = {rates['seed'].nunique()} seeds a rate, {len(seeds)} seeds a pair"
    style.caption(figure, f"Each point is a run; {counts}, none used by the study.")
    return figure
