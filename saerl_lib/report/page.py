"""The report of a plan: one HTML file that needs no network, with a map, cards of the clusters and a reason for each row.

Equal inputs give equal bytes. Jinja escapes every text of the data, the rows travel as JSON in which `<`, `>` and `&` are
escaped, the script writes text alone, and the page's policy runs no script but this file's (by hash) and forbids every request.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from saerl_lib.own.arrange import Arranged
from saerl_lib.own.caveats import Caveat
from saerl_lib.own.tables import TYPICAL
from saerl_lib.plan.mixing import dominant_clusters
from saerl_lib.properties.difficulty import reliability_table

HERE = Path(__file__).parent
EXCERPT = 280
"""Characters of a prompt that the report holds."""
LISTED = 200
"""Rows outside the plan that the report lists; the file holds all."""
STATUSES = ("planned", "filtered", "left over")
TINTS = ("#4477aa", "#ee6677", "#228833", "#b59a00", "#3fa7c9", "#aa3377", "#e07b00", "#777f8c", "#7a5ac9", "#8c5a2b")
"""Colours of the first ten clusters; others are spread over the hues."""
RANKS = {
    "difficulty": ("difficulty", "easy to hard by predicted difficulty"),
    "length": ("length", "short to long, a stand-in for easy to hard"),
    "random": ("random place", "at random"),
}
"""What a ranking is called, and what it does."""


def page(
    arranged: Arranged, caveats: Sequence[Caveat], scores: pd.DataFrame, clusters: pd.DataFrame, not_planned: pd.DataFrame
) -> str:
    """The whole report as one HTML document; the tables are those of `saerl_lib.own.tables`."""
    scripts = [(HERE / name).read_text(encoding="utf-8") for name in ("katex.min.js", "page.js")]
    k, (rank, order) = arranged.grouping.clusters.k, RANKS[arranged.ranked_by]
    tints = [TINTS[c] if c < len(TINTS) else f"hsl({c * 137 % 360} 60% 50%)" for c in range(k)]
    return _templates().get_template("page.html.j2").render(
        arranged=arranged, plan=arranged.plan, data=arranged.data, found=arranged.found, caveats=caveats, k=k,
        rank=rank, order=order, tints=tints, labelled=bool(np.isfinite(arranged.data.labels).any()),
        left_out=not_planned["status"].value_counts().sort_index(), cards=_cards(arranged, scores, clusters),
        curve=_curve(arranged, tints), reliability=_reliability(arranged), not_planned=not_planned, listed=LISTED,
        rows=_rows(arranged, scores) | {"statuses": STATUSES, "rankName": rank, "tints": tints},
        style=(HERE / "page.css").read_text(encoding="utf-8"), scripts=scripts,
        hashes=" ".join(f"'sha256-{_digest(text)}'" for text in scripts),
    )  # fmt: skip


def excerpt(text: str, length: int) -> str:
    """The beginning of a text in one line of at most `length` characters.

    >>> excerpt("one  two\\nthree", 8)
    'one two…'
    """
    flat = " ".join(text[: 4 * length].split())
    return flat if len(flat) <= length else flat[: length - 1] + "…"


def _templates() -> Environment:
    """Jinja with escaping on; a name that is not given is an error, and NUL, which HTML forbids, is shown as a sign."""
    found = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value,
    )  # fmt: skip
    found.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False, "ensure_ascii": False}
    found.filters["excerpt"] = excerpt
    return found


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _rows(arranged: Arranged, scores: pd.DataFrame) -> dict[str, list[Any]]:
    """Columns of the rows, in the order of the source; the map's coordinates are whole numbers from 0 to 9999."""
    points = arranged.grouping.points
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    x, y = np.rint((points - low) / np.where(span > 0, span, 1) * 9999).astype(int).T.tolist()
    return {
        "x": x, "y": y, "prompt": [excerpt(s.prompt, EXCERPT) for s in arranged.data.samples],
        "rank": _numbers(arranged.ranking), "label": _numbers(scores["label"]), "distance": _numbers(scores["distance"]),
        "status": [STATUSES.index(s) for s in scores["status"]],
        **{name: scores[name].tolist() for name in ("id", "where", "cluster", "step", "position", "reason")},
    }  # fmt: skip


def _numbers(column: Any) -> list[float | None]:
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in np.asarray(column, dtype=float)]


def _cards(arranged: Arranged, scores: pd.DataFrame, clusters: pd.DataFrame) -> list[tuple[Any, list[str]]]:
    """The row of each cluster, and the prompts nearest to its centre."""
    prompts = scores.assign(prompt=[s.prompt for s in arranged.data.samples]).sort_values(["distance", "id"])
    nearest = prompts.groupby("cluster")["prompt"].apply(lambda inside: inside.head(TYPICAL).tolist())
    return [(card, nearest[card.cluster]) for card in clusters.itertuples()]


def _curve(arranged: Arranged, tints: Sequence[str]) -> dict[str, Any]:
    """Mean ranking of each step as places of an SVG of 1000 x 230, and the colour of its most frequent cluster."""
    plan = arranged.plan
    means = plan.table.groupby("step")["ranking_score"].mean().to_numpy()
    leading = dominant_clusters(plan.table["cluster"].to_numpy().reshape(plan.steps, -1))
    low, high = float(means.min()), float(means.max())
    x = 60 + 920 * np.arange(len(means)) / max(1, len(means) - 1)
    y = 190 - 170 * (means - low) / ((high - low) or 1.0)
    dots = [(f"{a:.1f}", f"{b:.1f}", tints[c]) for a, b, c in zip(x, y, leading, strict=True)]
    return {"low": f"{low:.3g}", "high": f"{high:.3g}", "dots": dots}


def _reliability(arranged: Arranged) -> list[tuple[str, str, str, str]]:
    """Rows, mean prediction, mean label and its interval of each bin of predictions; none without a difficulty."""
    found, known = arranged.difficulty, np.isfinite(arranged.data.labels)
    if found is None:
        return []
    table = reliability_table("raw", found.raw[known], arranged.data.labels[known])
    return [
        (f"{r.n:,}", f"{r.predicted_mean:.2f}", f"{r.label_mean:.2f}",
         f"{r.ci_low:.2f} to {r.ci_high:.2f}" if np.isfinite(r.ci_low) else "")
        for r in table.itertuples()
    ]  # fmt: skip
