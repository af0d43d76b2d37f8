"""The report: one HTML file that needs no network, with a map of the rows, the cards of the clusters and a reason for each row.

Equal inputs give equal bytes. Text of the data is escaped where it stands in HTML, and `<`, `>`, `&` are escaped in the
embedded JSON, so that no prompt can end the script element; the page's policy forbids every request.
"""

from __future__ import annotations

import html as escaping
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saerl_lib.own.arrange import Arranged
from saerl_lib.own.caveats import Caveat
from saerl_lib.own.fit import Difficulty, Grouping
from saerl_lib.own.represent import Representation
from saerl_lib.own.validate import OwnData
from saerl_lib.plan.mixing import dominant_clusters
from saerl_lib.properties.difficulty import reliability_table

TINTS = ("#4477aa", "#ee6677", "#228833", "#b59a00", "#3fa7c9", "#aa3377", "#e07b00", "#777f8c", "#7a5ac9", "#8c5a2b")
"""Colours of the first ten clusters; others are spread over the hues."""
EXCERPT = 280
"""Characters of a prompt that the report holds."""
LISTED = 200
"""Rows outside the plan that the report lists; the file holds all."""
STATUSES = ("planned", "filtered", "left over")
RANK_NAMES = {"score": "difficulty", "label": "difficulty", "length": "length", "random": "random place"}
"""What a ranking is called."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Page:
    """All that the report shows."""

    data: OwnData
    found: Representation
    grouping: Grouping
    difficulty: Difficulty | None
    arranged: Arranged
    caveats: Sequence[Caveat]
    scores: pd.DataFrame
    cards: pd.DataFrame
    rest: pd.DataFrame

    @property
    def rank_name(self) -> str:
        """What orders a cluster, in words."""
        return RANK_NAMES[self.arranged.ranking.by]


def html(page: Page) -> str:
    """The whole report as one HTML document."""
    here = Path(__file__).parent
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    title = _safe(f"Plan of {page.data.name}")
    body = "\n".join((_head(page), _caveats(page), _map(page), _cards(page), _curve(page), _calibration(page), _rows(page), _rest(page)))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f'<script type="application/json" id="data">{embedded(_values(page))}</script>\n<script>\n{script}</script>\n</body>\n</html>\n'
    )


def embedded(value: Any) -> str:
    r"""JSON that may stand inside a script element.

    >>> embedded("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def tint(cluster: int) -> str:
    """Colour of a cluster."""
    return TINTS[cluster] if cluster < len(TINTS) else f"hsl({cluster * 137 % 360} 60% 50%)"


def _safe(text: object) -> str:
    return escaping.escape(str(text).replace("\0", "\N{REPLACEMENT CHARACTER}"))


def _excerpt(text: str, length: int = EXCERPT) -> str:
    flat = " ".join(text[: 4 * length].split())
    return flat if len(flat) <= length else flat[: length - 1] + "…"


def _values(page: Page) -> dict[str, Any]:
    """Columns of the rows, in the order of the source; the map's coordinates are whole numbers from 0 to 9999."""
    low, span = page.grouping.points.min(axis=0), np.ptp(page.grouping.points, axis=0)
    points = np.rint((page.grouping.points - low) / np.where(span > 0, span, 1) * 9999).astype(int)
    table = page.scores
    return {
        "x": points[:, 0].tolist(), "y": points[:, 1].tolist(), "id": table["id"].tolist(), "where": table["where"].tolist(),
        "prompt": [_excerpt(s.prompt) for s in page.data.samples], "cluster": table["cluster"].tolist(),
        "rank": _numbers(page.arranged.ranking.score), "label": _numbers(table["label"]), "distance": _numbers(table["distance"]),
        "status": [STATUSES.index(s) for s in table["status"]], "statuses": list(STATUSES), "step": table["step"].tolist(),
        "position": table["position"].tolist(), "reason": table["reason"].tolist(), "rankName": page.rank_name,
        "tints": [tint(c) for c in range(page.grouping.clusters.k)],
    }  # fmt: skip


def _numbers(values: Any) -> list[float | None]:
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in np.asarray(values, dtype=float)]


def _head(page: Page) -> str:
    plan, rest = page.arranged.plan, page.rest["status"].value_counts().sort_index()
    facts = [(page.data.read, "rows read"), (len(plan.ids), "planned"), (f"{plan.steps} x {plan.prompts_per_step}", "steps x prompts"),
             (page.grouping.clusters.k, "clusters"), *((n, f"{status}, not planned") for status, n in rest.items())]  # fmt: skip
    listed = "".join(f"<li><b>{value if isinstance(value, str) else f'{value:,}'}</b>{_safe(name)}</li>" for value, name in facts)
    order = {"score": "easy to hard by predicted difficulty", "label": "easy to hard by label", "length": "short to long, a stand-in for "
             "easy to hard", "random": "at random"}[page.arranged.ranking.by]  # fmt: skip
    return (f'<h1>Plan of {_safe(page.data.name)}</h1>\n<p class="soft">Batches of one cluster, {order}, interleaved; the last '
            f"{plan.swapped_per_batch} of a batch are exchanged with a partner. Features: {_safe(page.found.name)}.</p>\n"
            f'<ul class="facts">{listed}</ul>')  # fmt: skip


def _caveats(page: Page) -> str:
    items = "\n".join(
        f'<div class="caveat {c.kind}"><b>{"Warning: " if c.kind == "warning" else ""}{_safe(c.title)}</b><p>{_safe(c.text)}</p></div>'
        for c in page.caveats
    )
    return f'<h2>What to know first</h2>\n<div class="caveats">\n{items}\n</div>'


def _map(page: Page) -> str:
    labelled = '<option value="label">label</option>' if np.isfinite(page.data.labels).any() else ""
    return f"""<h2>Map</h2>
<p class="soft">Two principal components of the features: near points read alike. Faint points are not planned.
Wheel or two fingers zoom, dragging moves, a click pins.</p>
<div class="bar"><label>Colour <select id="colour"><option value="cluster">cluster</option><option value="rank">{page.rank_name}</option>
{labelled}<option value="step">step of the plan</option></select></label>
<button id="nearer" aria-label="zoom in">+</button><button id="farther" aria-label="zoom out">−</button><button id="whole">whole map</button></div>
<noscript><p class="caveat warning">The map and the table of rows need JavaScript; the same rows are in scores.csv.</p></noscript>
<div class="map"><div class="stage"><canvas id="map" tabindex="0" role="img"
aria-label="Scatter of {len(page.scores)} rows; the table below holds the same rows"></canvas><div id="tip" class="tip" hidden></div></div>
<div id="panel" class="panel" aria-live="polite"></div></div>"""


def _cards(page: Page) -> str:
    prompt = {s.id: s.prompt for s in page.data.samples}
    nearest = page.scores.sort_values(["distance", "id"]).groupby("cluster")["id"].apply(lambda ids: ids.head(3).tolist())
    cards = []
    for card in page.cards.itertuples():
        score = f"mean difficulty {card.mean_difficulty:.2f}, " if np.isfinite(card.mean_difficulty) else ""
        topic = f"<p>{_safe(card.top_topic)} ({card.topic_share:.0%})</p>" if card.top_topic else ""
        typical = "".join(f"<li>{_safe(_excerpt(prompt[name], 110))}</li>" for name in nearest[card.cluster])
        cards.append(
            f'<div class="card" data-cluster="{card.cluster}" style="--tint:{tint(card.cluster)}"><h3>Cluster {card.cluster}</h3>'
            f'<p>{card.n:,} rows ({card.share:.0%}), {card.planned:,} planned</p><p class="soft">{score}median length '
            f"{card.median_length:.0f} {page.found.unit}, {card.labels:,} labels</p>{topic}<p><b>{_safe(card.terms)}</b></p>"
            f'<ul>{typical}</ul><button aria-pressed="false">show on the map</button></div>'
        )  # fmt: skip
    return ('<h2>Clusters</h2>\n<p class="soft">Words that are frequent here and rare elsewhere, and the rows nearest to the centre.</p>\n'
            f'<div class="cards">\n{chr(10).join(cards)}\n</div>')  # fmt: skip


def _curve(page: Page) -> str:
    """Mean of the ranking and dominant cluster of each step, as SVG."""
    plan = page.arranged.plan
    means = plan.table.groupby("step")["ranking_score"].mean().to_numpy()
    leading = dominant_clusters(plan.table["cluster"].to_numpy().reshape(plan.steps, -1))
    low, high = float(means.min()), float(means.max())
    x = 60 + 920 * np.arange(len(means)) / max(1, len(means) - 1)
    y = 190 - 170 * (means - low) / ((high - low) or 1.0)
    trace = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{tint(c)}"/>' for a, b, c in zip(x, y, leading, strict=True))
    return (
        f'<h2>Plan</h2>\n<figure style="margin:0"><svg viewBox="0 0 1000 230" role="img" aria-label="mean {page.rank_name} of each step">'
        f'<text x="6" y="24">{high:.3g}</text><text x="6" y="194">{low:.3g}</text><text x="60" y="220">step 0</text>'
        f'<text x="980" y="220" text-anchor="end">step {len(means) - 1}</text><polyline class="trace" points="{trace}"/>{dots}</svg>'
        f"<figcaption>Mean {page.rank_name} of each step; the colour is that of the batch's most frequent cluster.</figcaption></figure>"
    )


def _calibration(page: Page) -> str:
    if page.difficulty is None:
        return ""
    known, found = np.isfinite(page.data.labels), page.difficulty
    table = reliability_table("ranking", found.ranking[known], page.data.labels[known])
    rows = "".join(
        f'<tr><td class="number">{r.n:,}</td><td class="number">{r.predicted_mean:.2f}</td><td class="number">{r.label_mean:.2f}</td>'
        f'<td class="number">{f"{r.ci_low:.2f} to {r.ci_high:.2f}" if np.isfinite(r.ci_low) else ""}</td></tr>' for r in table.itertuples()
    )
    return (
        f"<h2>Difficulty against labels</h2>\n<p>Rank correlation {found.spearman:.3f} on rows that the fit did not see, from "
        f"{found.n_labels:,} labels; the length alone reaches {found.spearman_length:.3f} (difference {found.gain.low:.3f} to "
        f'{found.gain.high:.3f}, 95 %).</p>\n<div class="scroll"><table><thead><tr><th>rows</th><th>mean score</th><th>mean label</th>'
        f"<th>95 % of the mean label</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _rows(page: Page) -> str:
    clusters = "".join(f'<option value="{c}">cluster {c}</option>' for c in range(page.grouping.clusters.k))
    return f"""<h2>Rows</h2>
<div class="bar"><input id="find" type="search" placeholder="id or words of the prompt" aria-label="search rows">
<select id="only" aria-label="cluster"><option value="-1">all clusters</option>{clusters}</select>
<select id="status" aria-label="status"><option value="-1">planned or not</option><option value="0">planned</option>
<option value="1">filtered</option><option value="2">left over</option></select>
<select id="order" aria-label="order"><option value="plan">in order of the plan</option><option value="rank">by {page.rank_name}</option>
<option value="odd">farthest from the centre first</option><option value="file">in order of the source</option></select></div>
<div class="scroll"><table id="rows" class="narrow"><thead><tr><th>id</th><th>cluster</th><th>{page.rank_name}</th><th>step</th>
<th>prompt</th><th>why</th></tr></thead><tbody></tbody></table></div>
<div class="bar"><button id="back">back</button><button id="next">next</button><span id="count" class="soft"></span></div>"""


def _rest(page: Page) -> str:
    if page.rest.empty:
        return "<h2>Not planned</h2>\n<p>Every row is planned.</p>"
    rows = "".join(
        f'<tr><td data-name="place">{_safe(r.where)}</td><td data-name="id">{_safe(r.id)}</td><td data-name="status">{_safe(r.status)}</td>'
        f'<td data-name="reason">{_safe(r.reason)}</td></tr>' for r in page.rest.head(LISTED).itertuples()
    )
    more = f"; the first {LISTED} are shown" if len(page.rest) > LISTED else ""
    return (f"<h2>Not planned</h2>\n<p>{len(page.rest):,} of {page.data.read:,} rows; all are in not_planned.csv{more}.</p>\n"
            f'<div class="scroll"><table class="narrow"><thead><tr><th>place</th><th>id</th><th>status</th><th>reason</th></tr></thead>'
            f"<tbody>{rows}</tbody></table></div>")  # fmt: skip
