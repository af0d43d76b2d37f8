"""Figures of the embedded world: its gates, its pass rates, and difficulty against pass rate (notebook 00).

Each function takes tidy tables and returns a Figure; it loads and trains nothing.
"""

from __future__ import annotations

import math
import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from saerl_lib.report import style
from saerl_lib.report.schemas import is_true
from saerl_lib.report.statistics import paired_t_interval, total_variation

JITTER_SEED = 0
STRIP = (-0.6, 1.6)
"""Visible part of the strip; the allowed range is 0..1, values beyond are drawn at its edge."""


def strip_position(value: float, low: float, high: float) -> float:
    """Place of a gate's value on a strip where the allowed range ends at 0 (low) and 1 (high); nan is an open end.

    With one bound, the distance to it is measured in units of that bound, so twice an upper bound lies at 2.

    >>> strip_position(0.3, 0.2, 0.4), strip_position(0.05, float("nan"), 0.1), strip_position(3, 2, float("nan"))
    (0.4999999999999999, 0.5, 0.5)
    """
    if math.isnan(low) and math.isnan(high):
        return 0.5
    if math.isnan(low):
        return 1.0 + (value - high) / (abs(high) or 1.0)
    if math.isnan(high):
        return (value - low) / (abs(low) or 1.0)
    return (value - low) / ((high - low) or 1.0)


def _range_text(low: float, high: float) -> str:
    if math.isnan(low) and math.isnan(high):
        return "reported"
    if math.isnan(low):
        return f"at most {style.number(high)}"
    if math.isnan(high):
        return f"at least {style.number(low)}"
    return f"{style.number(low)} to {style.number(high)}"


def _gate_row(axis: Axes, y: int, gate: pd.Series, met: bool) -> None:
    low, high = float(gate["low"]), float(gate["high"])
    start = STRIP[0] if math.isnan(low) else 0.0
    end = STRIP[1] if math.isnan(high) else 1.0
    axis.barh(y, end - start, left=start, height=0.6, color="#E6EFF5", edgecolor="none")
    for bound, place in ((low, 0.0), (high, 1.0)):
        if not math.isnan(bound):
            axis.plot([place, place], [y - 0.3, y + 0.3], color=style.BLUE, linewidth=1)
    place = strip_position(float(gate["value"]), low, high)
    shown = min(max(place, STRIP[0] + 0.05), STRIP[1] - 0.05)
    outside = "<" if place < shown else ">" if place > shown else None
    marker, colour = ("o", style.MET_COLOUR) if met else ("X", style.UNMET_COLOUR)
    axis.plot(shown, y, marker, color=colour, markersize=6, clip_on=False)
    if outside:
        axis.plot(STRIP[0] - 0.01 if outside == "<" else STRIP[1] + 0.01, y, outside, color=colour, markersize=3, clip_on=False)


@style.styled
def world_gates(gates: pd.DataFrame) -> Figure:
    """A row a gate: its value on a strip that marks the allowed range; met or not by colour and by symbol."""
    met = is_true(gates["met"]).to_numpy()
    rows = len(gates)
    names = [textwrap.wrap(str(name), 44) for name in gates["gate"]]
    figure, axes = style.panels(style.FULL_WIDTH, 0.9 + 0.26 * rows + 0.06 * sum(len(lines) - 1 for lines in names))
    axis = axes[0, 0]
    values = []
    for y, (_, gate) in enumerate(gates.iterrows()):
        _gate_row(axis, y, gate, bool(met[y]))
        unit = "" if pd.isna(gate["unit"]) or str(gate["unit"]).strip() in ("", "1") else f" {gate['unit']}"
        n = "" if pd.isna(gate["n"]) else f"   n = {float(gate['n']):,.0f}"
        verdict = "met" if met[y] else "NOT MET"
        values.append(f"{style.number(float(gate['value']))}{unit}  ({_range_text(gate['low'], gate['high'])})  {verdict}{n}")
    for target in (axis, axis.twinx()):
        target.set_ylim(rows - 0.5, -0.5)
        target.tick_params(axis="y", length=0)
        for spine in target.spines.values():
            spine.set_visible(False)
    axis.set_yticks(range(rows), ["\n".join(lines) for lines in names])
    figure.axes[1].set_yticks(range(rows), values)
    axis.set_xlim(*STRIP)
    axis.set_xticks([])
    axis.set_title(f"Gates of the embedded world: {int(met.sum())} of {rows} met")
    style.caption(
        figure,
        "Shaded: allowed range, blue ticks: its bounds, each row on its own scale. Circle: met; cross: not met; "
        "a small arrow: beyond the strip.",
    )
    return figure


@style.styled
def pass_rates(rates: pd.DataFrame) -> Figure:
    """Side by side: share of prompts by base-policy pass rate, in the world and in the reference."""
    figure, axes = style.panels(style.COLUMN_WIDTH, 2.5)
    axis = axes[0, 0]
    width = (rates["bin_high"] - rates["bin_low"]).to_numpy()
    centre = (rates["bin_low"] + rates["bin_high"]).to_numpy() / 2
    n_world, n_reference = int(rates["n_world"].max()), int(rates["n_reference"].max())
    axis.bar(centre - 0.2 * width, rates["share_world"], 0.4 * width, color=style.BLUE, label=f"world (n = {n_world:,})")
    axis.bar(
        centre + 0.2 * width, rates["share_reference"], 0.4 * width, color=style.ORANGE, hatch="////",
        edgecolor="white", linewidth=0, label=f"reference (n = {n_reference:,})",
    )  # fmt: skip
    axis.set_xlabel("Pass rate of the base policy")
    axis.set_ylabel("Share of prompts")
    axis.set_xticks(np.linspace(0, 1, 6))
    axis.legend(loc="upper center")
    distance = total_variation(rates["share_world"], rates["share_reference"])
    axis.set_title("Base-policy pass rates")
    style.caption(figure, f"Total variation distance {distance:.3f}; n counts prompts.")
    return figure


def _binned(table: pd.DataFrame, bins: int) -> pd.DataFrame:
    edges = np.unique(np.quantile(table["difficulty"], np.linspace(0, 1, bins + 1)))
    index = np.clip(np.searchsorted(edges, table["difficulty"], side="right") - 1, 0, max(len(edges) - 2, 0))
    rows = []
    for _, part in table.groupby(index):
        interval = paired_t_interval(part["pass_rate"])
        rows.append((part["difficulty"].mean(), *interval))
    return pd.DataFrame(rows, columns=["difficulty", "mean", "low", "high"])


@style.styled
def difficulty_vs_pass_rate(table: pd.DataFrame, bins: int = 8) -> Figure:
    """A point a prompt, with the mean pass rate and its 95 % interval by quantile bins of difficulty."""
    figure, axes = style.panels(style.FULL_WIDTH, 3.0)
    axis = axes[0, 0]
    attempts = int(table["attempts"].max())
    jitter = np.random.default_rng(JITTER_SEED).uniform(-0.5, 0.5, len(table)) / max(attempts, 1)
    domains = style.ordered(table["domain"])
    palette, symbols = style.colours(domains), style.markers(domains)
    for domain in domains:
        rows = (table["domain"] == domain).to_numpy()
        axis.plot(
            table["difficulty"][rows], table["pass_rate"][rows] + jitter[rows], symbols[domain], color=palette[domain],
            markersize=2.6, alpha=0.5, markeredgewidth=0, label=style.readable(domain), rasterized=True,
        )  # fmt: skip
    means = _binned(table, bins)
    lengths = style.error_lengths(means["mean"], means["low"], means["high"])
    axis.errorbar(
        means["difficulty"], means["mean"], lengths, color=style.BLACK, marker="o", markersize=3.5, zorder=5, label="mean, 95 %"
    )
    axis.set_xlabel("Difficulty label")
    axis.set_ylabel("Pass rate of the base policy")
    axis.set_title("Difficulty against pass rate")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.8)
    rank = float(stats.spearmanr(table["difficulty"], table["pass_rate"]).statistic) if len(table) > 2 else math.nan
    style.caption(
        figure,
        f"n = {len(table):,} prompts, {attempts} attempts each; Spearman {rank:.2f}. Points are jittered within one attempt. "
        "Black: mean of each quantile bin with a 95 % t interval over prompts.",
    )
    return figure
