"""The report: one HTML file that needs no network, with a map of the rows, the cards of the clusters and a reason for each row.

Equal inputs give equal bytes. Text of the data is escaped where it stands in HTML, and `<`, `>`, `&` are escaped in the
embedded JSON, so that no prompt can end the script element; the page's policy forbids every request.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from saerl_lib.own import sections
from saerl_lib.own.sections import Page, excerpt, safe, tint

EXCERPT = 280
"""Characters of a prompt that the report holds."""
STATUSES = ("planned", "filtered", "left over")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
PARTS = (
    sections.head, sections.caveats, sections.scatter, sections.cluster_cards, sections.curve, sections.calibration,
    sections.rows_table, sections.not_planned,
)  # fmt: skip


def html(page: Page) -> str:
    """The whole report as one HTML document."""
    here = Path(__file__).parent
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    body = "\n".join(part(page) for part in PARTS)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Plan of {safe(page.data.name)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="data">{embedded(values(page))}</script>
<script>
{script}</script>
</body>
</html>
"""


def embedded(value: Any) -> str:
    r"""JSON that may stand inside a script element.

    >>> embedded("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def values(page: Page) -> dict[str, Any]:
    """Columns of the rows, in the order of the source; the map's coordinates are whole numbers from 0 to 9999."""
    low, span = page.grouping.points.min(axis=0), np.ptp(page.grouping.points, axis=0)
    points = np.rint((page.grouping.points - low) / np.where(span > 0, span, 1) * 9999).astype(int)
    table = page.scores
    return {
        "x": points[:, 0].tolist(),
        "y": points[:, 1].tolist(),
        "prompt": [excerpt(s.prompt, EXCERPT) for s in page.data.samples],
        "rank": _numbers(page.arranged.ranking.score),
        "label": _numbers(table["label"]),
        "distance": _numbers(table["distance"]),
        "status": [STATUSES.index(s) for s in table["status"]],
        **{name: table[name].tolist() for name in ("id", "where", "cluster", "step", "position", "reason")},
        "statuses": list(STATUSES),
        "rankName": page.rank_name,
        "tints": [tint(c) for c in range(page.grouping.clusters.k)],
    }


def _numbers(column: Any) -> list[float | None]:
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in np.asarray(column, dtype=float)]
