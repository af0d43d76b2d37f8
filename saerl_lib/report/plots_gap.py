"""Where the study's orders part from a random one: over training, and by evaluation set at the end (notebook 08)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saerl_lib.report import style
from saerl_lib.report.plots_arms import short
from saerl_lib.report.statistics import paired_t_interval

BASELINE = "grpo"
ORDERS = ("saerl_grpo", "saerl_stretch", "minus_clus_mix", "minus_diff", "diff", "hard_to_easy")
"""SAERL, the same with its clusters spread over the run, its difficulty alone, its clusters and mixing unsorted, the label's
order, and that order turned round."""
SETS = ("easy_a", "easy_b", "mid_a", "mid_b", "hard", "hardest")


def gaps(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Arm minus `grpo` on matched seeds: arm, step, value, low, high, n; the interval is a 95 % t interval over seeds."""
    wide = runs.pivot(index=["step", "seed"], columns="arm", values=column)
    rows = []
    for arm in (name for name in ORDERS if name in wide):
        for step, part in wide.groupby(level="step"):
            paired = (part[arm] - part[BASELINE]).dropna().to_numpy()
            if len(paired) > 1:
                rows.append((arm, step, *paired_t_interval(paired), len(paired)))
    return pd.DataFrame(rows, columns=["arm", "step", "value", "low", "high", "n"])


def _over_training(axis: Axes, runs: pd.DataFrame, palette: dict[str, str], symbols: dict[str, str]) -> None:
    for arm, part in gaps(runs, "mean_avg").groupby("arm", sort=False):
        axis.fill_between(part["step"], part["low"], part["high"], color=palette[arm], alpha=0.13, linewidth=0)
        axis.plot(part["step"], part["value"], color=palette[arm], marker=symbols[arm], markersize=3, linewidth=1.1,
                  label=f"{short(arm)} ({part['n'].max()})")  # fmt: skip
    axis.axhline(0, color=style.BLACK, linewidth=0.8)
    axis.set_xlabel("Step")
    axis.set_ylabel("Difference to GRPO (points)")
    axis.set_title("Mean of six sets", fontsize=7.5)
    style.light_grid(axis)


def _at_the_end(axis: Axes, runs: pd.DataFrame, palette: dict[str, str], symbols: dict[str, str]) -> None:
    last = runs[runs["step"] == runs["step"].max()]
    found = pd.concat([gaps(last, f"avg_{name}").assign(place=i) for i, name in enumerate(SETS)])
    arms = list(found["arm"].unique())
    for number, arm in enumerate(arms):
        part = found[found["arm"] == arm]
        shift = 0.14 * (number - (len(arms) - 1) / 2)
        lengths = style.error_lengths(part["value"], part["low"], part["high"])
        axis.errorbar(part["place"] + shift, part["value"], yerr=lengths, fmt=symbols[arm], color=palette[arm], markersize=3.5,
                      elinewidth=1.0)  # fmt: skip
    axis.axhline(0, color=style.BLACK, linewidth=0.8)
    axis.set_xticks(np.arange(len(SETS)), [style.readable(name) for name in SETS], fontsize=7)
    axis.set_title("Last evaluation, by set", fontsize=7.5)
    style.light_grid(axis, "y")


@style.styled
def study_gap(runs: pd.DataFrame) -> Figure:
    """Fixed orders against a random one, paired by seed: when the difference arises, and on which problems it ends."""
    arms = [name for name in ORDERS if name in set(runs["arm"])]
    palette, symbols = style.colours(arms, {"saerl_grpo": style.BLUE}), style.markers(arms)
    figure, axes = style.panels(style.FULL_WIDTH, 3.1, 1, 2, sharey=True)
    _over_training(axes[0, 0], runs, palette, symbols)
    _at_the_end(axes[0, 1], runs, palette, symbols)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=min(5, len(arms)))
    style.caption(
        figure,
        "In brackets: matched seeds. Bars and bands: 95 % t interval over seeds, uncorrected. Evaluations before the last are of "
        "fewer problems; every difference is of the same problems. Unsorted: clusters and mixing without difficulty.",
    )
    return figure
