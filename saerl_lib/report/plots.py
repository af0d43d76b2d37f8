"""One look for every figure: helpers that draw tidy tables, and byte-identical files.

Okabe-Ito colours (readable with colour-blindness), each paired with a marker. A figure is at most 4.4 in wide, so that at 8 cm
its text still has 5 points. Figures are made without pyplot: no global state, no display.
"""

from __future__ import annotations

import io
import itertools
import textwrap
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
from saerl_lib.report.statistics import over_seeds
from saerl_lib.report.tables import FOLDER, LABELS

COLUMN_WIDTH, FULL_WIDTH = 3.3, 4.4
"""Inches of a figure of one panel, and of several."""
DPI = 200

COLOURS = {
    "black": "#000000", "orange": "#E69F00", "sky": "#56B4E9", "green": "#009E73", "yellow": "#F0E442", "blue": "#0072B2",
    "vermillion": "#D55E00", "purple": "#CC79A7", "grey": "#767676", "light": "#D9D9D9", "violet": "#7A5195", "brown": "#8C6D31",
}  # fmt: skip
"""Okabe and Ito (2008), and four more."""
BLACK, ORANGE, GREEN, BLUE, VERMILLION, GREY, LIGHT = (
    COLOURS[name] for name in ("black", "orange", "green", "blue", "vermillion", "grey", "light")
)

STYLE: list[Any] = ["default", {
    "font.family": "DejaVu Sans", "font.size": 7.5, "axes.titlesize": 8, "axes.labelsize": 7.5, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "legend.fontsize": 7, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "axes.axisbelow": True, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.3,
    "lines.markersize": 4, "errorbar.capsize": 2, "pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "saerl",
    "savefig.dpi": DPI,
}]  # fmt: skip
"""The style whatever the user's own settings are."""

class Look(NamedTuple):
    """How one group looks in every panel, and what the legend calls it."""

    colour: str
    marker: str = "o"
    label: str = ""
    hollow: bool = False


LOOKED = pd.read_csv(FOLDER / "labels.csv", dtype=str, keep_default_na=False)
KINDS = dict(LOOKED.loc[LOOKED["kind"] != "", ["key", "kind"]].itertuples(index=False, name=None))
"""Feature set -> its kind."""
LOOKS = {
    str(group): {row.key: Look(COLOURS[row.colour], row.marker, row.label, row.hollow == "yes") for row in part.itertuples()}
    for group, part in LOOKED[LOOKED["colour"] != ""].groupby("group", sort=False)
}
"""The one look of everything that is drawn, by group, in the order of its legend or rows."""
SET_NAMES, DATA_SETS, OPTIMIZERS, LOSSES = LABELS["set"], LABELS["data set"], LABELS["optimizer"], LOOKS["loss"]
"""What the notebooks name as the figures do."""
WORDS = {name: name.upper() for name in ("saerl", "grpo", "dapo", "diff", "adarft", "gainrl", "shift", "e2h", "sec")} | {
    "tfidf": "TF-IDF", "true": "true labels"}  # fmt: skip
"""Words of arms that are not written as they are."""


# Names and looks.


def ordered(values: Iterable[Any], known: Iterable[Any] = ()) -> list[Any]:
    """Distinct values: the known ones first in their order, then the others sorted.

    >>> ordered(["b", "all", "a", "b"], ["all"])
    ['all', 'a', 'b']
    """
    present = list(dict.fromkeys(values))
    first = [value for value in known if value in present]
    return first + sorted(value for value in present if value not in first)


def arm_name(name: str) -> str:
    """The one name of an arm or order in every figure.

    >>> arm_name("saerl_grpo"), arm_name("saerl_tfidf"), arm_name("hard_to_easy")
    ('SAERL', 'SAERL, TF-IDF', 'hard to easy')
    """
    return LABELS["arm"].get(name) or " ".join(WORDS.get(word, word) for word in name.split("_"))


def arm_looks(names: Iterable[str]) -> dict[str, Look]:
    """A look an arm, its name as label: the fixed one, else the next of those that are kept for others.

    >>> {name: look.colour == BLUE for name, look in arm_looks(["new", "saerl"]).items()}
    {'saerl': True, 'new': False}
    """
    fixed, others = LOOKS["arm"], itertools.cycle(LOOKS["other"].values())
    return {name: (fixed.get(name) or next(others))._replace(label=arm_name(name)) for name in ordered(names, fixed)}


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


def by_set(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the row of each feature set and the look of its kind; sets without a kind are left out."""
    row = table["features"].replace({name: "majority / mean" for name in ("majority", "mean", "majority|mean")})
    return table.assign(row=row, look=row.map(KINDS))[row.isin(KINDS)]


def first_by(table: pd.DataFrame, column: str, order: Sequence[str]) -> pd.DataFrame:
    """The rows in the order of `order` in `column`, otherwise as they were."""
    return table.sort_values(column, key=lambda values: values.map(list(order).index), kind="stable")


def over_runs(runs: pd.DataFrame, panels: Mapping[str, str]) -> pd.DataFrame:
    """Rows for `lines`, a panel a column: panel, group (arm), x (step), value, ci_low, ci_high; means over runs, t interval."""
    rows = [
        (title, *keys, *over_seeds(part[column]).interval()) for column, title in panels.items()
        for keys, part in runs.dropna(subset=[column]).groupby(["arm", "step"], sort=False)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["panel", "group", "x", "value", "ci_low", "ci_high"])


def smoothed(table: pd.DataFrame, run: list[str], columns: list[str]) -> tuple[pd.DataFrame, str]:
    """The table by run (its columns `run`) and step with rolling means of `columns` over a fifth of the run, more than one pass
    through the clusters, and how to say it."""
    window, table = max(1, table["step"].nunique() // 5), table.sort_values([*run, "step"])
    means = table.groupby(run)[columns].transform(lambda v: v.rolling(window, center=True, min_periods=1).mean())
    return table.assign(**means), f"rolling mean over {window} steps" if window > 1 else "each step, not smoothed"


# Panels.


def empty(width: float, height: float, layout: str | None = None) -> Figure:
    """A figure of `width` x `height` inches without pyplot."""
    FigureCanvasAgg(figure := Figure(figsize=(width, height), layout=layout))
    return figure


def _grid(
    names: Sequence[Any], columns: int, width: float, height: float, **share: Any
) -> tuple[Figure, list[tuple[str, Axes]]]:
    """A panel a name, at most `columns` in a row of `height` inches; unused places stay empty, lowest panels keep their ticks."""
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    figure = empty(width, 0.9 + rows * height, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **share)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(0, len(names) - columns) : len(names)]:
        axis.tick_params(axis="x", labelbottom=True)
    return figure, list(zip(names, axes.flat, strict=False))


def _wrapped(text: str, most: float) -> str:
    """Lines of about equal length, at most `most` characters each; numbers keep their sign."""
    lines = -(-len(text) // int(most)) or 1
    joined = text.replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0")
    return textwrap.fill(joined, int(min(most, len(text) / lines + 8)), break_on_hyphens=False)


def tell(figure: Figure, title: str, text: str) -> Figure:
    """The figure with the sentence that says what it shows above its legend, and the small print `text` below."""
    title = _wrapped(title, 15.5 * figure.get_figwidth())
    if figure.legends:  # constrained layout keeps no room for two things above the panels
        figure.legends[0].set_title(title, {"size": 8})
        figure.legends[0].get_title().set_multialignment("center")
    else:
        figure.suptitle(title, fontsize=8)
    figure.supxlabel(_wrapped(text, 19 * figure.get_figwidth()), fontsize=7, color="#333333", x=0.01, ha="left")
    return figure


def legend(figure: Figure) -> None:
    """One legend above the panels: every label of any panel once, in as many columns as fit."""
    entries: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    fit = int(figure.get_figwidth() / (0.42 + 0.05 * max(map(len, entries), default=1)))
    figure.legend(
        list(entries.values()), list(entries), loc="outside upper center", ncols=max(1, min(fit, len(entries))),
        columnspacing=1.2, handletextpad=0.4,
    )  # fmt: skip


def _bounds(part: pd.DataFrame) -> np.ndarray:
    """Bounds [2, n] of the intervals; nan where the table has none."""
    return part.reindex(columns=["ci_low", "ci_high"]).to_numpy(dtype=float).T


def _bars(part: pd.DataFrame) -> np.ndarray:
    """Error bar lengths [2, n] below and above `value`; an empty bound of ci_low and ci_high is drawn as no bar."""
    value, (low, high) = part["value"].to_numpy(dtype=float), _bounds(part)
    return np.nan_to_num(np.clip(np.stack([value - low, high - value]), 0.0, None))


def forest_panel(
    axis: Axes, part: pd.DataFrame, looks: Mapping[Any, Look], rows: Sequence[Any], *, labels: Mapping[Any, str] | None = None,
    shift: float = 0.0, chance: float | None = None,
) -> None:  # fmt: skip
    """One panel of `forest`: a row of `rows` at heights 0, 1, ..., the first on top. Groups of one row stand `shift` rows apart;
    `chance` is a dashed line."""
    place = {row: y for y, row in enumerate(rows)}
    if chance is not None:
        axis.axvline(chance, color=BLACK, linewidth=0.8, linestyle="--")
    if "paper" in part:
        once = part.drop_duplicates("row")
        axis.plot(
            once["paper"], once["row"].map(place), marker="s", linestyle="none", color=BLACK, markerfacecolor="none",
            markersize=6.5, clip_on=False, label="paper",
        )  # fmt: skip
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
    axis.set_yticks(range(len(rows)), [(labels or {}).get(row, readable(row)) for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    if "xlabel" in part:
        axis.set_xlabel(part["xlabel"].iloc[0])


def forest(
    table: pd.DataFrame, looks: Mapping[Any, Look] | None = None, rows: Sequence[Any] | None = None, *, columns: int = 3,
    row_height: float = 0.16, width: float = FULL_WIDTH, **options: Any,
) -> Figure:  # fmt: skip
    """Values with horizontal intervals: a panel each value of `panel`, each with the rows `rows` or its own in the table's order.
    `table` has panel, row and value; optionally look (a key of `looks`), ci_low, ci_high, paper (an open square) and xlabel. Rows
    without a value stay empty. `options` go to `forest_panel`."""
    looks = looks or {"": Look(BLUE)}
    table = table if "look" in table else table.assign(look="")
    names = list(dict.fromkeys(table["panel"]))
    most = len(rows) if rows is not None else int(table.groupby("panel")["row"].nunique().max())
    height = 0.6 + 0.13 * max(str(name).count("\n") for name in names) + row_height * most
    figure, axes = _grid(names, columns, width, height, sharey=rows is not None)
    for name, axis in axes:
        part = table[table["panel"] == name]
        own = list(rows) if rows is not None else list(dict.fromkeys(part["row"]))
        forest_panel(axis, part, looks, own, **options)
        axis.locator_params(axis="x", nbins=max(3, int(2 * width / min(columns, len(names)) - 1)))
        axis.set_title(str(name), fontsize=7.5)
    if any(look.label for look in looks.values()):
        legend(figure)
    return figure


def by_task(table: pd.DataFrame, looks: Mapping[str, Look], xlabel: str, chance: float | None = None) -> Figure:
    """A row a task, with its metric and number of test problems, a mark a feature set of `looks`, the legend above."""
    sets, targets, metrics = (LABELS[group] for group in ("data set", "target", "metric"))
    names = [f"{sets.get(r.dataset, readable(r.dataset))}: {targets.get(r.target, readable(r.target))}\n"
             f"{metrics.get(r.metric, r.metric)}, n = {r.n_test:,}" for r in table.itertuples()]  # fmt: skip
    table, rows = table.assign(row=names, panel="", xlabel=xlabel), list(dict.fromkeys(names))
    height = min(0.4, 2.95 / len(rows))
    figure = forest(table[table["look"].isin(looks)], looks, rows, shift=0.8 / len(looks), row_height=height, chance=chance)
    for y in range(1, len(rows)):
        figure.axes[0].axhline(y - 0.5, color=LIGHT, linewidth=0.5)
    return figure


def lines(
    table: pd.DataFrame, looks: Mapping[Any, Look], *, columns: int = 3, height: float = 1.9, width: float = FULL_WIDTH,
    band: bool = True, every: int = 1, xlabel: str = "", ylabel: str = "", **share: Any,
) -> Figure:  # fmt: skip
    """Curves with intervals as bands or bars: a panel each value of `panel`, a mark at each `every`-th point, one legend. `table`
    has panel, group (a key of `looks`), x and value; optionally ci_low and ci_high. `share` goes to `Figure.subplots`."""
    figure, axes = _grid(list(dict.fromkeys(table["panel"])), columns, width, height, **share)
    for index, (name, axis) in enumerate(axes):
        part = table[table["panel"] == name].sort_values("x", kind="stable")
        for key, look in looks.items():
            own = part[part["group"] == key]
            style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "label": look.label or None}
            style["markerfacecolor"] = "white" if look.hollow else look.colour
            if band:
                axis.fill_between(own["x"], *_bounds(own), color=look.colour, alpha=0.15, linewidth=0)
                axis.plot(own["x"], own["value"], markersize=3, markevery=every, **style)
            else:
                axis.errorbar(own["x"], own["value"], _bars(own), elinewidth=1, **style)
        axis.grid(True, color=LIGHT, linewidth=0.5)
        axis.set_title(str(name), fontsize=7.5)
        if index + columns >= len(axes):
            axis.set_xlabel(xlabel)
        if index % columns == 0:
            axis.set_ylabel(ylabel)
    legend(figure)
    return figure


# The method.


def flow(axis: Axes) -> None:
    """The method as a picture, 100 by 40: prompts -> SAE -> z -> clusters, difficulty, quality -> batch plan -> GRPO."""
    boxes = {"prompts,\nsolutions": (7, 20), "small LM\n+ SAE": (23, 20), "GRPO\nor DAPO": (94, 20)}
    arrows = ((12.5, 20, 17, 20), (29, 20, 34, 20), (40, 23, 46, 33), (40, 20, 46, 20), (40, 17, 46, 7),
              (64, 33, 70, 24), (64, 20, 70, 20), (64, 7, 70, 16), (84, 20, 88.5, 20))  # fmt: skip
    steps = {"latents z": (37, 5), "clusters": (55, 26.5), "difficulty": (55, 13.5), "quality filter": (55, 0.5),
             "batch plan": (77, 3.5)}  # fmt: skip
    colours = (BLUE, ORANGE, GREEN)
    axis.set(xlim=(0, 100), ylim=(0, 40))
    axis.axis("off")
    box = {"boxstyle": "round", "fc": "#E6EFF5", "ec": BLUE, "lw": 0.8}
    for name, (x, y) in boxes.items():
        axis.text(x, y, name, ha="center", va="center", fontsize=7, bbox=box)
    for name, (x, y) in steps.items():
        axis.text(x, y, name, ha="center", va="bottom", fontsize=7)
    for x, y, to_x, to_y in arrows:
        axis.annotate("", (to_x, to_y), (x, y), arrowprops={"arrowstyle": "->", "color": GREY, "shrinkA": 0, "shrinkB": 0})
    fires = np.isin(np.arange(15), (3, 7, 8, 12))
    axis.bar(np.full(15, 37), 1.6, 3.4, 10.5 + 1.6 * np.arange(15), color=np.where(fires, BLUE, "white"), edgecolor=GREY, lw=0.4)
    for colour, x in zip(colours, (50, 55, 60), strict=True):
        axis.scatter(x + np.array([-1.2, 0.4, 1.3, -0.3]), 34 + np.array([0.2, 1.9, -0.9, -1.8]), 5, color=colour, linewidths=0)
    seven = np.arange(7)
    axis.bar(49 + 2 * seven, 1 + 0.8 * seven, 1.5, 18, color=[str(0.8 - 0.1 * i) for i in seven])
    axis.scatter(49 + 2 * seven, np.full(7, 7), 9, color=np.where(seven % 2, "white", "black"), edgecolors="black", lw=0.5)
    for step, row in np.ndindex(6, 6):  # a batch a column: one cluster but for a swapped prompt, harder to the right
        colour = colours[(step + (row == 0)) % 3]
        axis.bar(71.5 + 2.1 * step, 3.6, 1.9, 9.5 + 3.8 * row, color=colour, alpha=0.35 + 0.39 * (step > 2) + 0.05 * row)


def save(figure: Figure, name: str, folder: Path) -> Path:
    """Write `folder/name.png` (200 dots an inch) and `folder/name.pdf` (embedded TrueType), return the PNG's path. No dates or
    program names are stored, so the same figure gives the same bytes. Raises ArtifactError when the folder cannot be written."""
    for suffix, unnamed in (("png", ["Software"]), ("pdf", ["CreationDate", "Creator", "Producer"])):
        buffer = io.BytesIO()
        with matplotlib.style.context(STYLE):
            figure.savefig(buffer, format=suffix, dpi=DPI, metadata=dict.fromkeys(unnamed))
        write_atomic(folder / f"{name}.{suffix}", buffer.getvalue())
    return folder / f"{name}.png"
