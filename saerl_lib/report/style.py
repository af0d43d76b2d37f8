"""One look for every figure, and byte-identical files.

Okabe-Ito colours (readable with colour-blindness), each paired with a marker; 3.3 in for a column, 6.8 in for a page.
Figures are made without pyplot, so drawing has no global state and needs no display.
"""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from saerl_lib.report.schemas import write_atomic

COLUMN_WIDTH = 3.3
"""Inches of one column."""
FULL_WIDTH = 6.8
"""Inches of the text width."""
DPI = 200

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
)  # fmt: skip
"""Okabe and Ito (2008)."""
GREY, LIGHT = "#767676", "#D9D9D9"
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY, BLACK, "#7A5195", "#8C6D31", YELLOW)
"""Colours of groups without a fixed colour; yellow last, as it is weak on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
MET_COLOUR, UNMET_COLOUR = GREEN, VERMILLION

ARM_COLOURS = {"grpo": GREY, "saerl": BLUE}
ARM_MARKERS = {"grpo": "s", "saerl": "o"}
ORDER_COLOURS = {"random": GREY, "saerl_before_mixing": ORANGE, "saerl": BLUE}
ORDER_MARKERS = {"random": "s", "saerl_before_mixing": "^", "saerl": "o"}
EVAL_ORDER = ("easy_a", "easy_b", "mid_a", "mid_b", "hard", "hardest", "all")

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "errorbar.capsize": 2,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.hashsalt": "saerl",
    "path.simplify": True,
    "savefig.dpi": DPI,
    "figure.dpi": 100,
}


def styled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run `function` under matplotlib's defaults plus `RC`, whatever the user's own settings are."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with matplotlib.style.context(["default", RC]):
            return function(*args, **kwargs)

    return wrapper


def panels(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of `width` x `height` inches and its axes [rows, columns]; `options` go to `Figure.subplots`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def caption(figure: Figure, text: str) -> None:
    """Small print below the panels: n, units, what an interval covers; wrapped to the figure's width."""
    characters = int(figure.get_figwidth() * 19)
    figure.supxlabel(textwrap.fill(text, characters), fontsize=7, color="#333333", x=0.01, ha="left")


def error_lengths(value: Iterable[float], low: Iterable[float], high: Iterable[float]) -> np.ndarray:
    """Error bar lengths [2, n] below and above; an empty bound is drawn as no bar."""
    v, a, b = (np.asarray(list(x), dtype=float) for x in (value, low, high))
    return np.nan_to_num(np.clip(np.stack([v - a, b - v]), 0.0, None))


def ordered(values: Iterable[Any], known: Iterable[Any] = ()) -> list[Any]:
    """Distinct values: the known ones first in their order, then the others sorted.

    >>> ordered(["b", "all", "a", "b"], ["all"])
    ['all', 'a', 'b']
    """
    present = list(dict.fromkeys(values))
    first = [value for value in known if value in present]
    return first + sorted(value for value in present if value not in first)


def colours(names: Iterable[Any], fixed: dict[str, str] | None = None) -> dict[Any, str]:
    """A colour a name: the fixed one, else the next free one of `CYCLE`."""
    fixed = fixed or {}
    names = list(names)
    taken = {fixed[name] for name in names if name in fixed}
    free = [colour for colour in CYCLE if colour not in taken]
    others = [name for name in names if name not in fixed]
    return {name: fixed[name] for name in names if name in fixed} | {
        name: free[i % len(free)] for i, name in enumerate(others)
    }


def markers(names: Iterable[Any], fixed: dict[str, str] | None = None) -> dict[Any, str]:
    """A marker a name, chosen as `colours` chooses."""
    fixed = fixed or {}
    names = list(names)
    free = [marker for marker in MARKERS if marker not in {fixed[n] for n in names if n in fixed}]
    others = [name for name in names if name not in fixed]
    return {name: fixed[name] for name in names if name in fixed} | {
        name: free[i % len(free)] for i, name in enumerate(others)
    }


def number(value: float) -> str:
    """Three significant digits, thousands grouped; empty for nan.

    >>> number(0.08333), number(12345.0), number(float("nan"))
    ('0.0833', '12,345', '')
    """
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def readable(name: Any) -> str:
    """A column value as a label: underscores become spaces."""
    return str(name).replace("_", " ")


def smoothing(window: int) -> str:
    """How a line over steps was smoothed, for a caption."""
    return f"rolling mean over {window} steps" if window > 1 else "each step, not smoothed"


def hide_unused(axes: np.ndarray, used: int) -> None:
    """Take away the panels of a grid beyond the first `used`."""
    for axis in axes.ravel()[used:]:
        axis.set_visible(False)


def light_grid(axis: Axes, which: str = "both") -> None:
    """Thin grid lines behind the data."""
    axis.grid(True, axis=which, color=LIGHT, linewidth=0.5)


@styled
def save(figure: Figure, name: str, folder: Path) -> Path:
    """Write `folder/name.png` (200 dots an inch) and `folder/name.pdf` (embedded TrueType), return the PNG's path.

    No dates or program names are stored, so the same figure gives the same bytes. Raises ArtifactError when the folder
    cannot be written.
    """
    metadata: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    for suffix in ("png", "pdf"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=DPI, metadata=metadata[suffix])
        write_atomic(folder / f"{name}.{suffix}", buffer.getvalue())
    return folder / f"{name}.png"
