"""The parts of the report as HTML; every text of the data goes through `safe`."""

from __future__ import annotations

import html as escaping
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from saerl_lib.data.sample import Dataset
from saerl_lib.own.arrange import Arranged
from saerl_lib.own.caveats import Caveat
from saerl_lib.own.fit import Difficulty, Grouping
from saerl_lib.own.represent import Representation
from saerl_lib.own.tables import TYPICAL
from saerl_lib.plan.mixing import dominant_clusters
from saerl_lib.properties.difficulty import reliability_table

TINTS = ("#4477aa", "#ee6677", "#228833", "#b59a00", "#3fa7c9", "#aa3377", "#e07b00", "#777f8c", "#7a5ac9", "#8c5a2b")
"""Colours of the first ten clusters; others are spread over the hues."""
LISTED = 200
"""Rows outside the plan that the report lists; the file holds all."""
RANK_NAMES = {"score": "difficulty", "label": "difficulty", "length": "length", "random": "random place"}
"""What a ranking is called."""
ORDERS = {
    "score": "easy to hard by predicted difficulty",
    "label": "easy to hard by label",
    "length": "short to long, a stand-in for easy to hard",
    "random": "at random",
}
"""What a ranking does."""


@dataclass(frozen=True)
class Page:
    """All that the report shows."""

    data: Dataset
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


def tint(cluster: int) -> str:
    """Colour of a cluster."""
    return TINTS[cluster] if cluster < len(TINTS) else f"hsl({cluster * 137 % 360} 60% 50%)"


def safe(text: object) -> str:
    """Text of the data as text of HTML, in elements and attributes."""
    return escaping.escape(str(text).replace("\0", "\N{REPLACEMENT CHARACTER}"))


def excerpt(text: str, length: int) -> str:
    """The beginning of a text in one line of at most `length` characters.

    >>> excerpt("one  two\\nthree", 8)
    'one two…'
    """
    flat = " ".join(text[: 4 * length].split())
    return flat if len(flat) <= length else flat[: length - 1] + "…"


def _options(values: Sequence[tuple[object, str]]) -> str:
    return "".join(f'<option value="{value}">{name}</option>' for value, name in values)


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]], extra: str = "") -> str:
    """A table whose cells are escaped; `extra` are attributes of it."""
    head = "".join(f"<th>{safe(name)}</th>" for name in heads)
    cells = ("".join(f'<td data-name="{safe(n)}">{safe(v)}</td>' for n, v in zip(heads, row, strict=True)) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="scroll"><table {extra}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def head(page: Page) -> str:
    """Title, what the plan is, and its counts."""
    plan, rest = page.arranged.plan, page.rest["status"].value_counts().sort_index()
    facts = [
        (f"{page.data.read:,}", "rows read"),
        (f"{len(plan.ids):,}", "planned"),
        (f"{plan.steps} x {plan.prompts_per_step}", "steps x prompts"),
        (f"{page.grouping.clusters.k}", "clusters"),
        *((f"{n:,}", f"{status}, not planned") for status, n in rest.items()),
    ]
    listed = "".join(f"<li><b>{value}</b>{safe(name)}</li>" for value, name in facts)
    return (
        f'<h1>Plan of {safe(page.data.name)}</h1>\n<p class="soft">Batches of one cluster, '
        f"{ORDERS[page.arranged.ranking.by]}, interleaved; the last {plan.swapped_per_batch} of a batch are exchanged with a "
        f'partner. Features: {safe(page.found.name)}.</p>\n<ul class="facts">{listed}</ul>'
    )


def caveats(page: Page) -> str:
    """Warnings and notes."""
    items = []
    for caveat in page.caveats:
        mark = "Warning: " if caveat.kind == "warning" else ""
        items.append(f'<div class="caveat {caveat.kind}"><b>{mark}{safe(caveat.title)}</b><p>{safe(caveat.text)}</p></div>')
    return '<h2>What to know first</h2>\n<div class="caveats">\n' + "\n".join(items) + "\n</div>"


def scatter(page: Page) -> str:
    """The map, which the script draws."""
    colours = [("cluster", "cluster"), ("rank", page.rank_name), ("step", "step of the plan")]
    if np.isfinite(page.data.labels).any():
        colours.insert(2, ("label", "label"))
    return f"""<h2>Map</h2>
<p class="soft">Two principal components of the features: near points read alike. Faint points are not planned.
Wheel or two fingers zoom, dragging moves, a click pins. Graded colours run from purple (low) to yellow (high).</p>
<div class="bar"><label>Colour <select id="colour">{_options(colours)}</select></label>
<button id="nearer" aria-label="zoom in">+</button><button id="farther" aria-label="zoom out">−</button>
<button id="whole">whole map</button></div>
<noscript><p class="caveat warning">Map and table of rows need JavaScript; the same rows are in scores.csv.</p></noscript>
<div class="map"><div class="stage"><canvas id="map" tabindex="0" role="img"
aria-label="Scatter of {len(page.scores)} rows; the table below holds the same rows"></canvas>
<div id="tip" class="tip" hidden></div></div><div id="panel" class="panel" aria-live="polite"></div></div>"""


def cluster_cards(page: Page) -> str:
    """One card a cluster."""
    prompt = {s.id: s.prompt for s in page.data.samples}
    order = page.scores.sort_values(["distance", "id"]).groupby("cluster")["id"]
    nearest = {cluster: ids.head(TYPICAL).tolist() for cluster, ids in order}
    cards = []
    for card in page.cards.itertuples():
        score = f"mean difficulty {card.mean_difficulty:.2f}, " if np.isfinite(card.mean_difficulty) else ""
        topic = f"<p>{safe(excerpt(card.top_topic, 80))} ({card.topic_share:.0%})</p>" if card.top_topic else ""
        typical = "".join(f"<li>{safe(excerpt(prompt[name], 110))}</li>" for name in nearest[card.cluster])
        cards.append(
            f'<div class="card" data-cluster="{card.cluster}" style="--tint:{tint(card.cluster)}">'
            f"<h3>Cluster {card.cluster}</h3><p>{card.n:,} rows ({card.share:.0%}), {card.planned:,} planned</p>"
            f'<p class="soft">{score}median length {card.median_length:.0f} {page.found.unit}, {card.labels:,} labels</p>'
            f"{topic}<p><b>{safe(card.terms)}</b></p><ul>{typical}</ul>"
            '<button aria-pressed="false">show on the map</button></div>'
        )
    return (
        '<h2>Clusters</h2>\n<p class="soft">The most frequent topic, words that are frequent here and rare elsewhere, and the '
        'rows nearest to the centre.</p>\n<div class="cards">\n' + "\n".join(cards) + "\n</div>"
    )


def curve(page: Page) -> str:
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
        '<h2>Plan</h2>\n<figure style="margin:0"><svg viewBox="0 0 1000 230" role="img" '
        f'aria-label="mean {page.rank_name} of each step"><text x="6" y="24">{high:.3g}</text>'
        f'<text x="6" y="194">{low:.3g}</text><text x="60" y="220">step 0</text>'
        f'<text x="980" y="220" text-anchor="end">step {len(means) - 1}</text>'
        f'<polyline class="trace" points="{trace}"/>{dots}</svg><figcaption>Mean {page.rank_name} of each step; the colour is '
        "that of the batch's most frequent cluster. A stage holds one batch of every cluster that still has one, lowest mean "
        "first, so the curve climbs in waves; at the end the largest clusters are left.</figcaption></figure>"
    )


def calibration(page: Page) -> str:
    """Predictions against labels, or nothing without a difficulty."""
    found, known = page.difficulty, np.isfinite(page.data.labels)
    if found is None:
        return ""
    table = reliability_table("raw", found.raw[known], page.data.labels[known])
    rows = [
        (f"{r.n:,}", f"{r.predicted_mean:.2f}", f"{r.label_mean:.2f}",
         f"{r.ci_low:.2f} to {r.ci_high:.2f}" if np.isfinite(r.ci_low) else "")
        for r in table.itertuples()
    ]  # fmt: skip
    return (
        f"<h2>Difficulty against labels</h2>\n<p>Rank correlation {found.spearman:.3f} on rows that the fit did not see, from "
        f"{found.n_labels:,} labels; the length alone reaches {found.spearman_length:.3f} (difference {found.gain.low:.3f} to "
        f"{found.gain.high:.3f}, 95 %). The table shows the same predictions, before calibration.</p>\n"
        + _table(("rows", "mean prediction", "mean label", "95 % of the mean label"), rows)
    )


def rows_table(page: Page) -> str:
    """The table of rows, which the script fills."""
    clusters = [(-1, "all clusters"), *((c, f"cluster {c}") for c in range(page.grouping.clusters.k))]
    status = [(-1, "planned or not"), (0, "planned"), (1, "filtered"), (2, "left over")]
    order = [
        ("plan", "in order of the plan"), ("rank", f"by {page.rank_name}"), ("odd", "farthest from the centre first"),
        ("file", "in order of the source"),
    ]  # fmt: skip
    heads = ("id", "cluster", page.rank_name, "step", "prompt", "why")
    return f"""<h2>Rows</h2>
<div class="bar"><input id="find" type="search" placeholder="id or words of the prompt" aria-label="search rows">
<select id="only" aria-label="cluster">{_options(clusters)}</select>
<select id="status" aria-label="status">{_options(status)}</select>
<select id="order" aria-label="order">{_options(order)}</select></div>
{_table(heads, [], 'id="rows" class="narrow"')}
<div class="bar"><button id="back">back</button><button id="next">next</button><span id="count" class="soft"></span></div>"""


def not_planned(page: Page) -> str:
    """Rows outside the plan."""
    if page.rest.empty:
        return "<h2>Not planned</h2>\n<p>Every row is planned.</p>"
    rows = page.rest.head(LISTED)[["where", "id", "status", "reason"]].to_numpy().tolist()
    more = f"; the first {LISTED} are shown" if len(page.rest) > LISTED else ""
    return (
        f"<h2>Not planned</h2>\n<p>{len(page.rest):,} of {page.data.read:,} rows; all are in not_planned.csv{more}.</p>\n"
        + _table(("place", "id", "status", "reason"), rows, 'class="narrow"')
    )
