"""One look for every figure: helpers that draw tidy tables, and byte-identical files.

`forest` draws values with intervals, a row a name; `lines` draws curves with bands or bars. Both take a tidy table and know
nothing of what it holds. Okabe-Ito colours (readable with colour-blindness), each paired with a marker; 3.3 in for a column,
6.8 in for a page. Figures are made without pyplot, so drawing has no global state and needs no display.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from saerl_lib.artifacts import write_atomic

COLUMN_WIDTH, FULL_WIDTH = 3.3, 6.8
"""Inches of one column, and of the text width."""
DPI = 200

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
)  # fmt: skip
"""Okabe and Ito (2008)."""
GREY, LIGHT, SHADE = "#767676", "#D9D9D9", "#E6EFF5"
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY, BLACK, "#7A5195", "#8C6D31", YELLOW)
"""Colours of groups without a fixed look; yellow last, as it is weak on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 7.5, "axes.titlesize": 8, "axes.labelsize": 7.5, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "legend.fontsize": 7, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "axes.axisbelow": True, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.3,
    "lines.markersize": 4, "errorbar.capsize": 2, "pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "saerl",
    "path.simplify": True, "savefig.dpi": DPI, "figure.dpi": 100,
}  # fmt: skip
STYLE = ["default", RC]
"""The style whatever the user's own settings are."""
PAPER: dict[str, Any] = {
    "marker": "s", "linestyle": "none", "color": ORANGE, "markerfacecolor": "none", "markersize": 6.5, "clip_on": False,
    "label": "paper",
}  # fmt: skip
"""The paper's own value, in every figure."""

class Look(NamedTuple):
    """How one group looks in every panel, and what the legend calls it."""

    colour: str
    marker: str = "o"
    label: str = ""
    hollow: bool = False


NAMES = {
    "random": "random order", "saerl_grpo": "SAERL", "saerl_dapo": "SAERL on DAPO", "saerl_grpo_large": "SAERL, larger policy",
    "grpo_large": "GRPO, larger policy", "minus_diff": "no difficulty", "minus_diff_mix": "no difficulty, no mixing",
    "minus_clus_mix": "no clusters, no mixing", "minus_mix": "no mixing", "mix_1": "h = 1", "mix_4": "h = 4", "mix_8": "h = 8",
    "nearest_half": "pass rate nearest one half", "mopps": "MoPPS", "irds": "IRDS-style", "pass_rate_order": "pass-rate order",
}  # fmt: skip
"""Names of arms and orders that are not made of their words."""
WORDS = {name: name.upper() for name in ("saerl", "grpo", "dapo", "diff", "adarft", "gainrl", "shift", "e2h", "sec")} | {
    "tfidf": "TF-IDF", "4b": "at 4b", "true": "by the label"}  # fmt: skip


def arm_name(name: str) -> str:
    """The one name of an arm or order in every figure.

    >>> arm_name("saerl_grpo"), arm_name("saerl_tfidf"), arm_name("hard_to_easy")
    ('SAERL', 'SAERL TF-IDF', 'hard to easy')
    """
    return NAMES.get(name) or " ".join(WORDS.get(word, word) for word in name.split("_"))


ARMS = {
    "grpo": Look(GREY, "s"), "random": Look(GREY, "s"), "saerl": Look(BLUE), "saerl_grpo": Look(BLUE),
    "saerl_before_mixing": Look(ORANGE, "^"), "dapo": Look(BLACK, "D"), "saerl_dapo": Look(SKY, "P"),
    "diff": Look(VERMILLION, "^"), "adarft": Look(GREEN, "v"), "gainrl": Look(PURPLE, "X"), "nearest_half": Look(GREEN, "D"),
}  # fmt: skip
"""Colour and marker of an arm or order in every figure, from the first to the last of a legend."""


# Names, colours, labels.


def ordered(values: Iterable[Any], known: Iterable[Any] = ()) -> list[Any]:
    """Distinct values: the known ones first in their order, then the others sorted.

    >>> ordered(["b", "all", "a", "b"], ["all"])
    ['all', 'a', 'b']
    """
    present = list(dict.fromkeys(values))
    first = [value for value in known if value in present]
    return first + sorted(value for value in present if value not in first)


def arm_looks(names: Iterable[str], labels: Mapping[str, str] | None = None) -> dict[str, Look]:
    """A look an arm: the fixed one, else the next colour and marker that none of `ARMS` among these names has.

    >>> {name: look.colour == BLUE for name, look in arm_looks(["new", "saerl"]).items()}
    {'saerl': True, 'new': False}
    """
    chosen = ordered(names, ARMS)
    taken = [ARMS[name] for name in chosen if name in ARMS]
    colours = [c for c in CYCLE if c not in {look.colour for look in taken}]
    markers = [m for m in MARKERS if m not in {look.marker for look in taken}]
    found = dict(ARMS)
    for i, name in enumerate(name for name in chosen if name not in ARMS):
        found[name] = Look(colours[i % len(colours)], markers[i % len(markers)])
    return {name: found[name]._replace(label=(labels or {}).get(name, arm_name(name))) for name in chosen}


def readable(name: Any) -> str:
    """A column value as a label: underscores become spaces."""
    return str(name).replace("_", " ")


def span(counts: pd.Series) -> str:
    """One count, or the smallest and the largest.

    >>> span(pd.Series([8, 8])), span(pd.Series([4, 1200]))
    ('8', '4 to 1,200')
    """
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


# Panels.


def _grid(
    names: Sequence[Any], columns: int, width: float, height: float, **share: Any
) -> tuple[Figure, list[tuple[str, Axes]]]:
    """A panel a name, at most `columns` in a row of `height` inches; unused places stay empty, lowest panels keep their ticks."""
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(width, 0.9 + rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **share)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(0, len(names) - columns) : len(names)]:
        axis.tick_params(axis="x", labelbottom=True)
    return figure, list(zip(names, axes.flat, strict=False))


def legend(figure: Figure, columns: int = 6) -> None:
    """One legend above the panels: every label of any panel once."""
    entries: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        list(entries.values()), list(entries), loc="outside upper center", ncols=min(columns, len(entries)), columnspacing=1.2,
        handletextpad=0.4,
    )  # fmt: skip


def _bounds(part: pd.DataFrame) -> np.ndarray:
    """Bounds [2, n] of the intervals; nan where the table has none."""
    return part.reindex(columns=["ci_low", "ci_high"]).to_numpy(dtype=float).T


def _bars(part: pd.DataFrame) -> np.ndarray:
    """Error bar lengths [2, n] below and above `value`; an empty bound of ci_low and ci_high is drawn as no bar."""
    value, (low, high) = part["value"].to_numpy(dtype=float), _bounds(part)
    return np.nan_to_num(np.clip(np.stack([value - low, high - value]), 0.0, None))


def _forest_panel(axis: Axes, part: pd.DataFrame, looks: Mapping[Any, Look], rows: Sequence[Any], shift: float) -> None:
    """One panel of `forest`, a row of `rows` at heights 0, 1, ..., the first on top."""
    place = {row: y for y, row in enumerate(rows)}
    if "paper" in part:
        once = part.drop_duplicates("row")
        axis.plot(once["paper"], once["row"].map(place), **PAPER)
    for index, (key, look) in enumerate(looks.items()):
        own = part[(part["look"] == key) & part["value"].notna()]
        if own.empty:  # an empty artist has no place, which breaks the layout
            continue
        y = own["row"].map(place).to_numpy(dtype=float) + shift * (index - (len(looks) - 1) / 2)
        axis.errorbar(
            own["value"], y, xerr=_bars(own), linestyle="none", color=look.colour, marker=look.marker, markersize=3.8,
            markerfacecolor="white" if look.hollow else look.colour, elinewidth=1, clip_on=False, label=look.label or None,
        )  # fmt: skip
    axis.margins(x=0.1)
    axis.grid(True, axis="x", color=LIGHT, linewidth=0.5)
    if "xlabel" in part:
        axis.set_xlabel(part["xlabel"].iloc[0])


def forest(
    table: pd.DataFrame, looks: Mapping[Any, Look] | None = None, rows: Sequence[Any] | None = None, *, columns: int = 3,
    labels: Mapping[Any, str] | None = None, shift: float = 0.0, row_height: float = 0.16, chance: float | None = None,
    width: float = FULL_WIDTH,
) -> Figure:  # fmt: skip
    """Values with horizontal intervals: a panel each value of `panel`, each with the rows `rows` or its own in the table's order.

    `table` has panel, row and value; optionally look (a key of `looks`), ci_low, ci_high, paper (an open square) and xlabel. Rows
    without a value stay empty. Groups of one row stand `shift` rows apart. `chance` is a dashed line.
    """
    looks = looks or {"": Look(BLUE)}
    table = table if "look" in table else table.assign(look="")
    names = list(dict.fromkeys(table["panel"]))
    most = len(rows) if rows is not None else int(table.groupby("panel")["row"].nunique().max())
    height = 0.6 + 0.13 * max(str(name).count("\n") for name in names) + row_height * most
    figure, axes = _grid(names, columns, width, height, sharey=rows is not None)
    for name, axis in axes:
        part = table[table["panel"] == name]
        own = list(rows) if rows is not None else list(dict.fromkeys(part["row"]))
        if chance is not None:
            axis.axvline(chance, color=BLACK, linewidth=0.8, linestyle="--")
        _forest_panel(axis, part, looks, own, shift)
        axis.set_yticks(range(len(own)), [(labels or {}).get(row, readable(row)) for row in own])
        axis.set_ylim(len(own) - 0.5, -0.5)
        axis.locator_params(axis="x", nbins=max(4, int(1.6 * width / min(columns, len(names)))))
        axis.set_title(str(name), fontsize=7.5)
    return figure


def _line_panel(axis: Axes, part: pd.DataFrame, looks: Mapping[Any, Look], band: bool, every: int) -> None:
    """One panel of `lines`."""
    for key, look in looks.items():
        own = part[part["group"] == key].sort_values("x", kind="stable")
        apart = own["apart"].to_numpy(dtype=bool) if "apart" in own else np.zeros(len(own), dtype=bool)
        near, far = own[~apart], own[apart]
        style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "label": look.label or None}
        style["markerfacecolor"] = "white" if look.hollow else look.colour
        if band:
            axis.fill_between(near["x"], *_bounds(near), color=look.colour, alpha=0.15, linewidth=0)
            axis.plot(near["x"], near["value"], markersize=3, markevery=every, **style)
        else:
            axis.errorbar(near["x"], near["value"], _bars(near), elinewidth=1, **style)
        if len(far):
            far_style = {"color": look.colour, "markersize": 4.5, "markerfacecolor": "white", "elinewidth": 0.8, "zorder": 4}
            axis.errorbar(far["x"], far["value"], _bars(far), fmt=look.marker, **far_style)
    axis.grid(True, color=LIGHT, linewidth=0.5)


def lines(
    table: pd.DataFrame, looks: Mapping[Any, Look], *, columns: int = 3, height: float = 1.9, width: float = FULL_WIDTH,
    band: bool = True, every: int = 1, xlabel: str = "", ylabel: str = "", titles: bool = True, **share: Any,
) -> Figure:  # fmt: skip
    """Curves with intervals as bands or bars: a panel each value of `panel`, a mark at each `every`-th point, one legend.

    `table` has panel, group (a key of `looks`), x and value; optionally ci_low, ci_high, and apart: points that stand for
    themselves, as open marks with bars. `share` goes to `Figure.subplots`.
    """
    figure, axes = _grid(list(dict.fromkeys(table["panel"])), columns, width, height, **share)
    for index, (name, axis) in enumerate(axes):
        _line_panel(axis, table[table["panel"] == name], looks, band, every)
        if titles:
            axis.set_title(str(name), fontsize=7.5)
        if index + columns >= len(axes):
            axis.set_xlabel(xlabel)
        if index % columns == 0:
            axis.set_ylabel(ylabel)
    legend(figure, 6 if width > COLUMN_WIDTH else 2)
    return figure


def save(figure: Figure, name: str, folder: Path) -> Path:
    """Write `folder/name.png` (200 dots an inch) and `folder/name.pdf` (embedded TrueType), return the PNG's path.

    No dates or program names are stored, so the same figure gives the same bytes. Raises ArtifactError when the folder
    cannot be written.
    """
    for suffix, unnamed in (("png", ["Software"]), ("pdf", ["CreationDate", "Creator", "Producer"])):
        buffer = io.BytesIO()
        with matplotlib.style.context(STYLE):
            figure.savefig(buffer, format=suffix, dpi=DPI, metadata=dict.fromkeys(unnamed))
        write_atomic(folder / f"{name}.{suffix}", buffer.getvalue())
    return folder / f"{name}.png"
