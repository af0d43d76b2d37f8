"""One look for every figure: helpers that draw tidy tables, and byte-identical files.

`forest` draws values with intervals, a row a name; `lines` draws curves with bands or bars; `bar_panel` draws lengths. Each takes
a tidy table and knows nothing of what it holds. Okabe-Ito colours (readable with colour-blindness), each paired with a marker;
3.3 in for a column, 6.8 in for a page. Figures are made without pyplot, so drawing has no global state and needs no display.
"""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from saerl_lib.artifacts import write_atomic
from saerl_lib.report.tables import number

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

FIGURES: dict[str, tuple[tuple[str, ...], Callable[..., Figure]]] = {}
"""Figure name -> (names of its tables, function of these tables); `figure_of` fills it."""


class Look(NamedTuple):
    """How one group looks in every panel, and what the legend calls it."""

    colour: str
    marker: str = "o"
    label: str = ""
    hollow: bool = False


ARMS = {"grpo": Look(GREY, "s"), "saerl": Look(BLUE)}
ORDERS = {"random": Look(GREY, "s"), "saerl_before_mixing": Look(ORANGE, "^"), "saerl": Look(BLUE)}


def figure_of(name: str, *tables: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of `tables` (one of the figure's name by default), called with `options`, as the figure `name`.

    The function returns its panels and their small print; the registered one draws both in the one style.
    """

    def register(function: Callable[..., tuple[Figure, str]]) -> Callable[..., tuple[Figure, str]]:
        @functools.wraps(function)
        def drawn(*frames: pd.DataFrame) -> Figure:
            with matplotlib.style.context(STYLE):
                figure, text = function(*frames, **options)
                filled = textwrap.fill(text, int(figure.get_figwidth() * 19))
                figure.supxlabel(filled, fontsize=7, color="#333333", x=0.01, ha="left")
            return figure

        FIGURES[name] = (tables or (name,), drawn)
        return function

    return register


# Names, colours, labels.


def ordered(values: Iterable[Any], known: Iterable[Any] = ()) -> list[Any]:
    """Distinct values: the known ones first in their order, then the others sorted.

    >>> ordered(["b", "all", "a", "b"], ["all"])
    ['all', 'a', 'b']
    """
    present = list(dict.fromkeys(values))
    first = [value for value in known if value in present]
    return first + sorted(value for value in present if value not in first)


def looks(
    names: Iterable[Any], fixed: Mapping[Any, Look] | None = None, labels: Mapping[Any, str] | None = None
) -> dict[Any, Look]:
    """A look a name: the fixed one, else the next colour and marker that no fixed one of these names has.

    >>> {name: look.colour == BLUE for name, look in looks(["new", "saerl"], ARMS).items()}
    {'new': False, 'saerl': True}
    """
    fixed, labels, names = fixed or {}, labels or {}, list(names)
    taken = [fixed[name] for name in names if name in fixed]
    colours = [c for c in CYCLE if c not in {look.colour for look in taken}]
    markers = [m for m in MARKERS if m not in {look.marker for look in taken}]
    others = [name for name in names if name not in fixed]
    found = {name: Look(colours[i % len(colours)], markers[i % len(markers)]) for i, name in enumerate(others)}
    chosen = {name: fixed[name] if name in fixed else found[name] for name in names}
    return {name: look._replace(label=labels.get(name, look.label or readable(name))) for name, look in chosen.items()}


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


def aside(groups: pd.Series, names: Sequence[Any]) -> pd.Series:
    """How many places each group stands from the middle of `names`, so that points of equal x can be set apart."""
    return groups.map({name: i - (len(names) - 1) / 2 for i, name in enumerate(names)})


# Panels.


def panels(
    height: float, rows: int = 1, columns: int = 1, width: float = FULL_WIDTH, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of `width` x `height` inches and its axes [rows, columns]; `options` go to `Figure.subplots`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _grid(names: Sequence[Any], columns: int, width: float, height: float, **share: Any) -> tuple[Figure, list[Axes]]:
    """A panel a name, at most `columns` in a row of `height` inches; unused places stay empty, lowest panels keep their ticks."""
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    figure, axes = panels(0.9 + rows * height, rows, columns, width, **share)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(0, len(names) - columns) : len(names)]:
        axis.tick_params(axis="x", labelbottom=True)
    return figure, list(axes.flat[: len(names)])


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


def light_grid(axis: Axes, which: str = "both") -> None:
    """Thin grid lines behind the data."""
    axis.grid(True, axis=which, color=LIGHT, linewidth=0.5)


def symlog(axis: Axes, linear: float, ticks: Sequence[float]) -> None:
    """The x axis linear up to `linear`, then logarithmic, with plain numbers at `ticks`."""
    axis.set_xscale("symlog", linthresh=linear, linscale=1.2)
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def _bounds(part: pd.DataFrame) -> np.ndarray:
    """Bounds [2, n] of the intervals; nan where the table has none."""
    return part.reindex(columns=["ci_low", "ci_high"]).to_numpy(dtype=float).T


def error_lengths(part: pd.DataFrame) -> np.ndarray:
    """Error bar lengths [2, n] below and above `value`; an empty bound of ci_low and ci_high is drawn as no bar."""
    value, (low, high) = part["value"].to_numpy(dtype=float), _bounds(part)
    return np.nan_to_num(np.clip(np.stack([value - low, high - value]), 0.0, None))


# Forest plots.


def row_axis(axis: Axes, labels: Sequence[str]) -> None:
    """A labelled row at heights 0, 1, ..., the first on top."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    light_grid(axis, "x")


def forest_panel(
    axis: Axes, part: pd.DataFrame, looks: Mapping[Any, Look], rows: Sequence[Any], labels: Mapping[Any, str] | None = None,
    shift: float = 0.0, chance: float | None = None,
) -> None:  # fmt: skip
    """Values with horizontal intervals, a row a name; rows without a value stay empty.

    `part` has row, value and look (a key of `looks`); optionally ci_low, ci_high, paper (an open square) and xlabel. Groups of
    one row stand `shift` apart. `chance` is a dashed line.
    """
    place = {row: y for y, row in enumerate(rows)}
    if chance is not None:
        axis.axvline(chance, color=BLACK, linewidth=0.8, linestyle="--")
    if "paper" in part:
        once = part.drop_duplicates("row")
        axis.plot(once["paper"], once["row"].map(place), **PAPER)
    for index, (key, look) in enumerate(looks.items()):
        own = part[(part["look"] == key) & part["value"].notna()]
        if own.empty:  # an empty artist has no place, which breaks the layout
            continue
        y = own["row"].map(place).to_numpy(dtype=float) + shift * (index - (len(looks) - 1) / 2)
        axis.errorbar(
            own["value"], y, xerr=error_lengths(own), linestyle="none", color=look.colour, marker=look.marker, markersize=3.8,
            markerfacecolor="white" if look.hollow else look.colour, elinewidth=1, clip_on=False, label=look.label or None,
        )  # fmt: skip
    axis.margins(x=0.1)
    axis.locator_params(axis="x", nbins=4)
    row_axis(axis, [(labels or {}).get(row, readable(row)) for row in rows])
    if "xlabel" in part:
        axis.set_xlabel(part["xlabel"].iloc[0])


def forest(
    table: pd.DataFrame, looks: Mapping[Any, Look] | None = None, rows: Sequence[Any] | None = None, *, columns: int = 3,
    labels: Mapping[Any, str] | None = None, shift: float = 0.0, row_height: float = 0.16, chance: float | None = None,
    share_x: bool | str = False, width: float = FULL_WIDTH,
) -> Figure:  # fmt: skip
    """A panel each value of `panel`, as `forest_panel`; all panels have the rows `rows`, or each its own in the table's order.

    `table` needs no look when all values look alike.
    """
    looks = looks or {"": Look(BLUE)}
    table = table if "look" in table else table.assign(look="")
    names = list(dict.fromkeys(table["panel"]))
    most = len(rows) if rows is not None else int(table.groupby("panel")["row"].nunique().max())
    height = 0.6 + 0.13 * max(str(name).count("\n") for name in names) + row_height * most
    figure, axes = _grid(names, columns, width, height, sharex=share_x, sharey=rows is not None)
    for axis, name in zip(axes, names, strict=True):
        part = table[table["panel"] == name]
        own = rows if rows is not None else list(dict.fromkeys(part["row"]))
        forest_panel(axis, part, looks, own, labels, shift, chance)
        axis.locator_params(axis="x", nbins=max(4, int(1.6 * width / min(columns, len(names)))))
        axis.set_title(str(name), fontsize=7.5)
    for axis in axes[: len(names) - columns] if share_x is True else ():
        axis.set_xlabel("")
    return figure


# Curves.


def smoothed(long: pd.DataFrame, groups: Sequence[str], steps: int) -> tuple[pd.Series, int, str]:
    """Rolling mean of `raw` along the steps of each of `groups`, its window (a twentieth of the run), and how to say it."""
    window = max(1, steps // 20)
    mean = long.groupby(list(groups))["raw"].transform(lambda v: v.rolling(window, center=True, min_periods=1).mean())
    return mean, window, f"rolling mean over {window} steps" if window > 1 else "each step, not smoothed"


def line_panel(
    axis: Axes, part: pd.DataFrame, looks: Mapping[Any, Look], *, band: bool = True, joined: bool = True, every: int = 1
) -> None:
    """A curve a group with its interval as a band or as bars; a mark at each `every`-th point.

    `part` has group (a key of `looks`), x and value; optionally ci_low, ci_high, and apart: points that stand for themselves, as
    open marks with bars.
    """
    for key, look in looks.items():
        own = part[part["group"] == key].sort_values("x", kind="stable")
        apart = own["apart"].to_numpy(dtype=bool) if "apart" in own else np.zeros(len(own), dtype=bool)
        near, far = own[~apart], own[apart]
        style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "label": look.label or None}
        style["linestyle"] = "-" if joined else "none"
        if band:
            axis.fill_between(near["x"], *_bounds(near), color=look.colour, alpha=0.15, linewidth=0)
            axis.plot(near["x"], near["value"], markersize=3, markevery=every, **style)
        else:
            axis.errorbar(near["x"], near["value"], error_lengths(near), elinewidth=1, **style)
        if len(far):
            axis.errorbar(
                far["x"], far["value"], error_lengths(far), fmt=look.marker, color=look.colour, markersize=4.5,
                markerfacecolor="white", elinewidth=0.8, zorder=4,
            )  # fmt: skip
    light_grid(axis)


def lines(
    table: pd.DataFrame, looks: Mapping[Any, Look], *, columns: int = 3, height: float = 1.9, width: float = FULL_WIDTH,
    band: bool = True, every: int = 1, xlabel: str = "", ylabel: str = "", titles: bool = True, **share: Any,
) -> Figure:  # fmt: skip
    """A panel each value of `panel`, as `line_panel`, with one legend; `share` goes to `Figure.subplots`."""
    names = list(dict.fromkeys(table["panel"]))
    figure, axes = _grid(names, columns, width, height, **share)
    for index, (axis, name) in enumerate(zip(axes, names, strict=True)):
        line_panel(axis, table[table["panel"] == name], looks, band=band, every=every)
        if titles:
            axis.set_title(str(name), fontsize=7.5)
        if columns > 3:
            axis.locator_params(axis="x", nbins=4)
        if index + columns >= len(names):
            axis.set_xlabel(xlabel)
        if index % columns == 0:
            axis.set_ylabel(ylabel)
    legend(figure)
    return figure


# Bars.


def bar_panel(axis: Axes, values: Sequence[float], colours: Any = SKY, form: Callable[[float], str] = number) -> None:
    """Horizontal bars at heights 0, 1, ... from 0, each with its number at the end."""
    v = np.asarray(values, dtype=float)
    axis.barh(np.arange(len(v)), v, 0.58, color=colours)
    for place, value in enumerate(v):
        right = value >= 0
        axis.annotate(form(value), (value, place), (3 if right else -3, 0), textcoords="offset points", va="center",
                      ha="left" if right else "right")  # fmt: skip
    pad = 0.3 * (max(v.max(), 0.0) - min(v.min(), 0.0) or 1.0)  # room for the numbers
    axis.set_xlim(min(v.min() - pad, 0.0) if v.min() < 0 else 0.0, max(v.max() + pad, 0.0))
    axis.locator_params(axis="x", nbins=4)


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
