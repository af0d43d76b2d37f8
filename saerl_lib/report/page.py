"""What a plan leaves behind: a reason for each row, cards of clusters, rows left out, what a reader must know, and the report.

The report is one HTML file that needs no network; equal inputs give equal bytes. Jinja escapes every text of the data, the rows
travel as JSON in which `<`, `>` and `&` are escaped, the script writes text alone, and the page's policy runs no script but this
file's (by hash) and forbids every request.
"""

from __future__ import annotations

import base64
import colorsys
import hashlib
import io
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from matplotlib.colors import to_hex, to_rgb
from matplotlib.image import imsave
from scipy.special import rel_entr
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

from saerl_lib.artifacts import write_json
from saerl_lib.config import PlanConfig, to_dict
from saerl_lib.data.answers import check_answers
from saerl_lib.data.sample import SAMPLES, Dropped, Sample, normalise, number_of, read_samples, write_samples
from saerl_lib.encode.store import FEATURES, PROMPT_COLUMNS, save_features
from saerl_lib.own import MIN_CLASS, MIN_LABELS, RECORD, Arranged, Planned
from saerl_lib.paths import FIGURES
from saerl_lib.plan.batch_plan import BatchPlan, plan_hash, read_plan, write_plan
from saerl_lib.report.tables import FOLDER, LABELS

TERMS = 6
"""Words of a cluster's card, each of three letters or more or a command of LaTeX."""
PLAIN = [*ENGLISH_STOP_WORDS, "does", "let", r"\left", r"\right", r"\text", r"\end"]
"""Words that say nothing about a cluster."""
TYPICAL = 3
"""Samples nearest to the centroid on a card."""


def score_table(arranged: Arranged) -> pd.DataFrame:
    """Rows of scores.parquet, one a row that was read, in the order of the source; unknown numbers are NaN, no step is -1.
    raw_difficulty, before calibration, orders rows of equal score; percentile is the share of the cluster ranked lower."""
    data, plan, scores = arranged.data, arranged.plan.table, arranged.scores
    out, label = {d.id: d for d in arranged.dropped}, scores["cluster"].to_numpy()
    below = scores.groupby("cluster")[["ranking", "distance"]].rank(method="min").sub(1).div(np.bincount(label)[label], axis=0)
    alike = scores.assign(id=data.ids).sort_values(["raw", "id"]).groupby(["cluster", "ranking"])["id"]
    table = pd.DataFrame({
        "where": data.where, "id": data.ids, "status": [out[i].status if i in out else "planned" for i in data.ids],
        "cluster": label, "distance": scores["distance"], "length": arranged.found.lengths, "label": data.labels,
        "raw_difficulty": scores["raw"], **{name: scores[name] for name in ("difficulty", "low", "high")},
        "percentile": below["ranking"], "quality": scores["quality"],
    })  # fmt: skip
    places = plan.set_index("sample_id")[["position", "step", "slot", "swapped_with"]]
    table = pd.concat([table, places.reindex(data.ids, fill_value=-1).reset_index(drop=True)], axis=1)
    own, percent = own_batches(arranged.plan), (100 * below + 1e-9).astype(int)  # rounded down: what is not all is not 100
    more = {"lower": percent["ranking"], "farther": percent["distance"]}
    rows = table.assign(**more, place=alike.cumcount() + 1, alike=alike.transform("size")).itertuples()
    return table.assign(reason=[_reason(r, out.get(r.id), own, arranged.ranked_by) for r in rows])


def own_batches(plan: BatchPlan) -> dict[int, str]:
    """Step -> such as 'full batch 3 of 3', of the steps that are one cluster's, tail aside; others hold what filled no batch."""
    stays = plan.table[plan.table["swapped_with"] < 0].groupby("step")["cluster"]
    whole = stays.first()[stays.nunique() == 1]
    number, of = whole.groupby(whole).cumcount() + 1, whole.map(whole.value_counts())
    return {int(step): f"full batch {number[step]} of {of[step]}" for step in whole.index}


def _reason(row: Any, dropped: Dropped | None, own: dict[int, str], ranked_by: str) -> str:
    """Why a row stands where it stands, in words."""
    if dropped:
        return dropped.reason if dropped.reason.startswith(dropped.status) else f"{dropped.status}: {dropped.reason}"
    if row.swapped_with >= 0:
        why = f"from step {row.swapped_with}, whose batch exchanged its last rows with this one"
    elif row.step in own:
        why = f"{own[row.step]} of its own cluster"
    else:
        why = "in a mixed batch of rows that filled none of their own cluster"
    parts = [f"step {row.step}, slot {row.slot}: {why}"]
    _, _, more, least = RANKS[ranked_by]
    parts.append(f"{more} than {row.lower}% of its cluster" if row.lower else f"among the {least} of its cluster")
    if row.alike > 1:
        by = f"its score of {row.raw_difficulty:.2f} before calibration" if ranked_by == "difficulty" else "id"
        parts.append(f"{row.alike} rows of its cluster share this {ranked_by}: number {row.place} of them by {by}")
    if np.isfinite(row.difficulty):
        span = f" (95% interval {row.low:.2f} to {row.high:.2f})" if np.isfinite(row.high - row.low) else ""
        label = f", label {row.label:g}" if np.isfinite(row.label) else ""
        doubt = ": outside it, as about one label in 20 is" if row.label < row.low or row.label > row.high else ""
        parts.append(f"difficulty {row.difficulty:.2f}{span}{label}{doubt}")
    centre = f"farther from its centre than {row.farther}% of it" if row.farther else "among the nearest to its centre"
    parts.append(f"in cluster {row.cluster}, {centre}")
    if np.isfinite(row.quality):
        parts.append(f"quality {row.quality:.2f}")
    return "; ".join(parts)


def cluster_table(arranged: Arranged, scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of clusters.csv: terms are words of the prompts that are frequent here and rare elsewhere, each with the share of the
    cluster's rows that hold it and, in brackets, of all others; apart are features in standard deviations; typical are the ids
    nearest to the centre."""
    samples = arranged.data.samples
    terms, apart = _terms([s.prompt for s in samples], arranged.scores["cluster"].to_numpy()), _apart(arranged)
    topics, rows = pd.Series([s.topic or None for s in samples], dtype=object), []
    for cluster, inside in scores.groupby("cluster"):
        topic = topics[inside.index].mode()  # the most frequent ones, sorted
        rows.append({
            "cluster": cluster, "n": len(inside), "share": len(inside) / len(scores),
            "planned": (inside["status"] == "planned").sum(), "median_length": inside["length"].median(),
            "mean_difficulty": inside["difficulty"].mean(),
            "top_topic": topic[0] if len(topic) else "",
            "topic_share": (topics[inside.index] == topic[0]).mean() if len(topic) else np.nan,
            "terms": ", ".join(terms[cluster]), "apart": ", ".join(apart[cluster]),
            "typical": inside.sort_values(["distance", "id"])["id"].head(TYPICAL).tolist(),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _terms(prompts: Sequence[str], cluster: np.ndarray) -> dict[int, list[str]]:
    """Words of each cluster with their shares, by share inside x log of (share inside / share of all)."""
    pattern = r"\\[a-z]{2,}|(?<!\\)\b[^\W\d_]{3,}"
    counter = CountVectorizer(token_pattern=pattern, binary=True, max_features=5000, stop_words=PLAIN)
    out: dict[int, list[str]] = {int(number): [] for number in np.unique(cluster)}
    try:
        seen = counter.fit_transform(prompts).tocsr()
    except ValueError:  # no prompt holds a word
        return out
    names, total = counter.get_feature_names_out(), np.asarray(seen.sum(axis=0)).ravel()
    for number in out:
        rows = np.flatnonzero(cluster == number)
        inside = np.asarray(seen[rows].sum(axis=0)).ravel()
        share, others = inside / len(rows), (total - inside) / max(1, len(prompts) - len(rows))
        weight = rel_entr(share, (total + 1) / (len(prompts) + 2))
        best = [i for i in np.lexsort((names, -weight))[:TERMS] if weight[i] > 0]
        out[number] = [f"{names[i]} {share[i]:.0%} ({others[i]:.0%})" for i in best]
    return out


def _apart(arranged: Arranged) -> dict[int, list[str]]:
    """The text features and the SAE latents of each cluster that differ most from all rows, in standard deviations."""
    table, latents = arranged.found.table, arranged.found.latents
    text = [FEATURES[i].removeprefix("prompt_").replace("tex_ratio", "LaTeX_share").replace("_", " ") for i in PROMPT_COLUMNS]
    values = pd.DataFrame(np.hstack([table.metadata[:, PROMPT_COLUMNS], table.z[:, : len(latents)]]))
    values.columns = [*text, *(f"latent {i}" for i in latents)]
    means = values.groupby(arranged.scores["cluster"].to_numpy()).mean()
    out: dict[int, list[str]] = {int(cluster): [] for cluster in means.index}
    for cluster, row in ((means - values.mean()) / values.std(ddof=0).replace(0, 1)).iterrows():
        for part in (row.iloc[: len(text)], row.iloc[len(text) :]):
            first = part.sort_values(key=abs, ascending=False, kind="stable").head(TYPICAL)
            out[int(cluster)] += [f"{name} {value:+.1f} sd" for name, value in first.items()]
    return out


FEW_LABELS = 200
"""Below this many labels the difficulty is called rough (ours)."""
STATUSES = ("planned", *(status for status in LABELS["left out"] if status != "malformed"))
"""What became of a sample."""


class Caveat(NamedTuple):
    """One thing to know."""

    kind: str
    """warning (doubt the result) or note (how it was made)."""
    title: str
    text: str


SHARE = re.compile(r"(?:pass|solv|success|correct|win).*(?:rate|ratio|share)|pass\W?@|accura|reward|correct$|^acc$", re.I)
"""Names of labels that look like shares of right answers."""
Told = Iterator[tuple[str, str, str]]


def caveats(arranged: Arranged) -> list[Caveat]:
    """Warnings first, then notes."""
    listed = [Caveat(*told) for part in (_difficulty, _clusters, _quality, _rows, _features) for told in part(arranged)]
    return sorted(listed, key=lambda caveat: caveat.kind != "warning")


def _difficulty(arranged: Arranged) -> Told:
    found, config, known = arranged.difficulty, arranged.config, int(np.isfinite(arranged.data.labels).sum())
    if found is None:
        order = {"length": "by length, short first: a stand-in for difficulty, not a measure of it", "random": "random"}
        company = "Clusters and the company of batches are real; easy-to-hard is not. " if arranged.clusters.k > 1 else ""
        text = f"{company}The order is {order[arranged.ranked_by]}."
        if config.fields.labels is None:
            yield "warning", "No labels", f"{text} Some {FEW_LABELS} labels (--labels FIELD) would give a difficulty."
        elif known < MIN_LABELS:
            yield "warning", "Too few labels", f"{known} rows have a label, {MIN_LABELS} are needed. {text}"
        else:
            yield "warning", "All labels are equal", f"They order nothing. {text}"
        return
    if known < FEW_LABELS:
        yield "warning", "Few labels", f"Difficulty rests on {known} labels; below {FEW_LABELS} expect rough scores."
    low, high = found.gain.low, found.gain.high
    skill = (f"Rank correlation with the labels: {found.skill:.3f} from the features, {found.by_length:.3f} from the length "
             f"alone (difference {low:.3f} to {high:.3f}, 95 %).")  # fmt: skip
    if low <= 0:
        worse = high <= 0.05  # a gain in rank correlation that does not matter (ours)
        fix = "Sorting by length would do as well." if worse else "More labels would decide it."
        yield "warning", f"The probe is {'no' if worse else 'not shown to be'} better than length", f"{skill} {fix}"
    if config.turned:
        how = "1 minus it" if config.allowed_labels == (0.0, 1.0) else "the range turned round, or its negative without one"
        yield "note", "Labels are turned round", f"A larger {config.fields.labels} means easier: turned; shown is {how}."
    else:
        text = f"A larger {config.fields.labels} was read as harder. If it means easier, add --larger-is-easier."
        named = SHARE.search((config.fields.labels or "").rpartition(".")[2])
        doubtful = named or np.nanmax(np.abs(arranged.data.labels - 0.5)) <= 0.5
        why = "It is called like a share of right answers." if named else "All lie from 0 to 1, as shares of right answers do."
        yield ("warning", "Is a larger label harder?", f"{why} {text}") if doubtful else (
            "note", "Labels as written", text)
    text = (f"A single difficulty has a 95% interval{_spans(arranged)}. It orders rows even where a label is known: from a fit "
            "that did not see this label, calibrated on all labels.")  # fmt: skip
    labelled = arranged.scores.assign(label=arranged.data.labels, length=arranged.found.lengths).dropna(subset="label")
    ranks = labelled.groupby("cluster")[["raw", "length", "label"]].rank().groupby(labelled["cluster"])
    inside = ranks.corr()["label"].unstack()[["raw", "length"]].median()
    within = f"Inside a cluster it is {inside['raw']:.3f} from the score, {inside['length']:.3f} from the length (medians). "
    own = (f"{skill} " if low > 0 else "") + (within if inside.notna().all() else "")
    bare = ", ".join(arranged.data.ids[i] for i in np.flatnonzero(np.isnan(arranged.data.labels)))
    without = f"; without one are {excerpt(bare, 100)}" if bare else ""
    yield "note", "How difficulty was read", f"{known:,} of {len(arranged.data.ids):,} rows have a label{without}. {own}{text}"


def _clusters(arranged: Arranged) -> Told:
    sizes = np.bincount(arranged.scores["cluster"].to_numpy(), minlength=arranged.clusters.k)
    if len(sizes) == 1:
        text = "There is no company to choose and no tail to swap; --clusters or smaller batches (--prompts-per-step) give more."
        yield "warning", "One cluster", text
    elif 2 * sizes.max() > sizes.sum():
        text = f"Cluster {sizes.argmax()} holds {sizes.max() / sizes.sum():.0%} of the rows: most batches come from it."
        yield "warning", "Dominant cluster", f"{text} Try other features or more clusters."


def _quality(arranged: Arranged) -> Told:
    quality, keep = arranged.quality, arranged.config.keep
    if arranged.config.fields.quality is None:
        yield "note", "No filter", "No quality labels were named (--quality FIELD): no row was filtered."
    elif quality is None:
        known = int(np.isfinite(arranged.data.quality).sum())
        text = f"{known} rows have one; {MIN_CLASS} of either kind are needed. No row was filtered."
        yield "warning", "Too few quality labels", text
    else:
        if quality.skill <= quality.by_length:
            text = f"ROC-AUC {quality.skill:.3f} from the features, {quality.by_length:.3f} from the length alone."
            yield "warning", "The filter is no better than length", text
        kept = "no row was filtered (--keep SHARE would)" if keep is None else f"the best {keep:.0%} were kept"
        text = f"{quality.n_labels} labels, ROC-AUC {quality.skill:.3f} on rows that a fit did not see; {kept}."
        yield "note", "How quality was read", text


def _rows(arranged: Arranged) -> Told:
    data, truncated = arranged.data, arranged.found.truncated
    counts = Counter(d.status for d in (*data.dropped, *arranged.dropped))
    for status, text in LABELS["left out"].items():
        if count := counts[status]:
            doubtful = status in ("malformed", "unverifiable", "too long") or (count > 0.05 * data.read and status != "filtered")
            title = f"{count:,} of {data.read:,} rows not planned: {status}"
            place = "at the end of this page" if status == "malformed" else "under Rows"
            yield "warning" if doubtful else "note", title, f"{text} Listed {place} and in left_out.csv."
    asked: dict[str, list[Sample]] = {}
    for sample in data.samples:
        asked.setdefault(normalise(sample.prompt), []).append(sample)
    if repeated := len(data.samples) - len(asked):
        pairs = "; ".join(" and ".join(s.id for s in same[:2]) for same in asked.values() if len(same) > 1)
        text = f"Equal to an earlier row but for case, space or punctuation, at least: {excerpt(pairs, 200)}. All are planned."
        yield "warning", number_of(repeated, "repeated question"), text
    golds = [list({normalise(s.answer): s for s in same if s.answer}.values()) for same in asked.values()]
    unlike = [(same[0], other) for same in golds for other in same[1:]]
    verdicts = check_answers([(one.answer, other.answer) for one, other in unlike], 5.0)
    torn = {a.id: f"{a.id} ({excerpt(a.answer, 40)}) and {b.id} ({excerpt(b.answer, 40)})"
            for (a, b), verdict in zip(unlike, verdicts, strict=True) if not verdict.equal}  # fmt: skip
    if torn:
        text = f"What earns the reward under one id fails under the other: {excerpt('; '.join(torn.values()), 300)}. Mend them."
        yield "warning", f"{number_of(len(torn), 'question')} with different answers", text
    if broken := [s.id for s in data.samples if "\0" in f"{s.prompt}{s.answer}{''.join(s.steps)}"]:
        text = f"The sign NUL usually comes from a broken export; first {broken[0]}. It is kept as it is."
        yield "warning", f"{number_of(len(broken), 'row')} with NUL characters", text
    if truncated:
        text = "Longer than the model reads; the end was not read. --max-tokens sets where."
        yield "warning", f"{number_of(truncated, 'row')} cut", text
    for note in data.notes:
        title, _, text = note.partition(": ")
        yield ("warning", title, text) if re.match(r"[\d,]+ (answer|label|picture)", title) else ("note", "Assumed", note)


def _features(arranged: Arranged) -> Told:
    found, sae = arranged.found, arranged.found.sae
    alone = found.phi.shape[1] == found.table.prompt_phi.shape[1]
    what = "prompts alone were read" if alone else "prompt and solution were read, a missing one stands at the mean"
    solved = f"{int(found.table.solved.sum())} of {len(found.phi)} rows have a solution"
    look = " No model read the rows: these are words and counts, not SAE features." if found.unit == "words" else ""
    yield "note", "What was read", f"{found.name}.{look} {solved}; {what}."
    if sae is not None:
        text = (f"Explained variance {sae.explained_variance:.3f}, measured on {sae.n_tokens:,} tokens of these rows; "
                f"{sae.l0:.0f} latents are active at each token.")  # fmt: skip
        if sae.explained_variance > 0:
            yield "note", "How well the SAE reads the model", text
        else:
            fix = "Its features are noise: name the --layer (counted from 1) and --reader that this SAE was trained on."
            yield "warning", "The SAE does not fit this layer", f"{text} The mean vector alone reaches 0. {fix}"


FIGURE = re.compile(r"\[asy\](.*?)\[/asy\]", re.DOTALL)
CUTS = (10_000, 2_000, 800, 280, 120, 40)
"""Characters of a question that the report holds: the most with which its rows keep to `ROOM`."""
ROOM = 7_000_000, 350
"""Bytes of the rows, for 7,500 rows or fewer and for each further one."""
LISTED = 200
"""Rows without a sample, or outside the plan, that the report lists; the file holds all."""
TINTS = ("#2f5597", "#ee6677", "#228833", "#b59a00", "#35c8e0", "#aa3377", "#e07b00", "#777f8c", "#7a5ac9", "#8c5a2b")
"""Colours of the first ten clusters; others are spread over the hues."""
RANKS = {
    "difficulty": ("difficulty", "easy to hard by predicted difficulty", "predicted harder", "easiest"),
    "length": ("length", "short to long, a stand-in for easy to hard", "longer", "shortest"),
    "random": ("random place", "in random order", "later in the random order", "first in the random order"),
}
"""What a ranking is called, what it does, and what its later and its first rows are."""
REPLAY = FIGURES / "data" / "replay.csv"
"""The replay study, whose simulated scores say what a correlation saves when a quarter of the prompts is taken."""


def expectation(arranged: Arranged) -> tuple[float, float, float] | None:
    """Share of silent groups that choice by this score would save if labels were pass rates, read from the replay study; and what
    SAE features reached there on real ones: correlation, share. None without table or score."""
    if arranged.difficulty is None or not REPLAY.is_file():
        return None
    table = pd.read_csv(REPLAY).query("share == 0.25")[["form", "features", "spearman", "silent_groups_saved"]]
    curve = table[table["form"] == "simulated"].sort_values("spearman")
    real = table.query("form == 'features' and features == 'sae_all'").iloc[0]
    return float(np.interp(arranged.difficulty.skill, curve["spearman"], curve["silent_groups_saved"])), *map(float, real[2:])


def _spans(arranged: Arranged) -> str:
    """How wide the intervals of difficulty are beside the range of the labels; '' without intervals."""
    scores, label = arranged.scores, pd.Series(arranged.data.labels)
    width = (scores["high"] - scores["low"]).replace(np.inf, np.nan).mean()
    told = f" on average {width:.1f} wide where labels go from {label.min():g} to {label.max():g}"
    return told if np.isfinite(width) else ""


def largest_fall(plan: BatchPlan) -> pd.DataFrame:
    """Two steps, one after the other among those of one cluster, of which the second is the easier one by the most: step,
    cluster, ranking_score (mean); no row in a plan that never falls."""
    steps = plan.table[plan.table["step"].isin(own_batches(plan).keys())].groupby("step", as_index=False)
    means = steps.agg(cluster=("cluster", "first"), ranking_score=("ranking_score", "mean"))
    change = means["ranking_score"].diff()
    return means.iloc[change.argmin() - 1 :].head(2) if change.min() < 0 else means.head(0)


def tints_of(k: int) -> list[str]:
    """k colours as #rrggbb."""
    return [*TINTS[:k], *(to_hex(colorsys.hls_to_rgb(c * 137 % 360 / 360, 0.5, 0.6)) for c in range(len(TINTS), k))]


def carpet(plan: BatchPlan) -> str:
    """The plan as a PNG in a data: URI: a column a step, a row a slot, colour = cluster, darker = later in the ranking."""
    cluster, rank = (plan.table[name].to_numpy() for name in ("cluster", "ranking_score"))
    colours = 255 * np.array([to_rgb(tint) for tint in tints_of(int(cluster.max()) + 1)])
    shade = 0.3 + 0.7 * (pd.Series(rank).rank(pct=True).to_numpy()[:, None])
    pixels = np.rint(255 - (255 - colours[cluster]) * shade).astype(np.uint8).reshape(plan.steps, -1, 3).swapaxes(0, 1)
    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(pixels), format="png", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def notebook_view(done: Planned) -> str:
    """What a notebook shows of a plan: the carpet, the first rows, what was left out and why. All text is escaped."""
    scores, rest = done.scores, done.rows_left_out
    prompts = {s.id: excerpt(s.prompt, 90) for s in read_samples(done.folder / SAMPLES)}
    first = scores[scores["position"] >= 0].sort_values("position").head(8)
    shown = ["step", "id", "question", "cluster", "difficulty", "quality", "reason"]
    first = first.assign(question=first["id"].map(prompts))[shown]
    counted = rest.groupby("status").agg(rows=("id", "size"), first=("id", "first"), reason=("reason", "first")).reset_index()
    return _templates().get_template("notebook.html.j2").render(
        done=done, carpet=carpet(read_plan(done.folder / "plan.parquet")),
        tables=[t.round(2).to_html(index=False, border=0, na_rep="") for t in (first.dropna(axis=1, how="all"), counted)],
    )  # fmt: skip


def page(
    arranged: Arranged, caveats: Sequence[Caveat], scores: pd.DataFrame, clusters: pd.DataFrame, left_out: pd.DataFrame
) -> str:
    """The whole report as one HTML document; the tables are those of this module."""
    scripts = [(FOLDER / name).read_text(encoding="utf-8") for name in ("katex.min.js", "page.js")]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts)
    k, (rank, order, dark, _) = arranged.clusters.k, RANKS[arranged.ranked_by]
    tints = tints_of(k)
    return _templates().get_template("page.html.j2").render(
        arranged=arranged, plan=arranged.plan, data=arranged.data, found=arranged.found, caveats=caveats, k=k,
        rank=rank, order=order, dark=dark, tints=tints, labelled=bool(np.isfinite(arranged.data.labels).any()),
        falls=largest_fall(arranged.plan).to_dict("records"), window=PlanConfig.window_batches,
        shown=arranged.points.var(axis=0).sum() / max(1, np.count_nonzero(np.ptp(arranged.found.phi, axis=0))),
        counts=left_out["status"].value_counts().sort_index(), cards=list(clusters.itertuples()),
        carpet=carpet(arranged.plan), saved=expectation(arranged), spans=_spans(arranged), statuses=STATUSES,
        mixed=sorted({*range(arranged.plan.steps)} - own_batches(arranged.plan).keys()),
        prompts={s.id: s.prompt for s in arranged.data.samples},
        unread=left_out[left_out["status"] == "malformed"], listed=LISTED,
        rows=_rows_page(arranged, scores, {"statuses": STATUSES, "rankName": rank, "tints": tints}),
        style=(FOLDER / "page.css").read_text(encoding="utf-8"), scripts=scripts, hashes=hashes,
    )  # fmt: skip


def write(arranged: Arranged, folder: Path, out: Path, key: str) -> Planned:
    """Write all of `out` into `folder`: plan.parquet, samples.parquet (the usable rows, for `export` and `train`),
    scores.parquet, clusters.csv, left_out.csv, features.safetensors, report.html and run.json."""
    data, plan, config = arranged.data, arranged.plan, to_dict(arranged.config)
    scores, listed = score_table(arranged), caveats(arranged)
    rest = pd.DataFrame((*data.dropped, *arranged.dropped), columns=["where", "id", "status", "reason"])
    cards = cluster_table(arranged, scores)
    save_features(arranged.found.table, folder / "features.safetensors")
    write_plan(plan, folder / "plan.parquet")
    write_samples(data.samples, folder / SAMPLES)
    shutil.copymode(folder / SAMPLES, folder / "features.safetensors")  # which safetensors keeps to its owner
    scores.to_parquet(folder / "scores.parquet", index=False)
    for name, table in (("clusters", cards.assign(typical=cards["typical"].str.join(" "))), ("left_out", rest)):
        table.replace("\r", " ", regex=True).to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    (folder / "report.html").write_text(page(arranged, listed, scores, cards, rest), encoding="utf-8")
    done = Planned(out, data.read, len(plan.ids), dict(sorted(Counter(rest["status"]).items())), plan.steps,
                   tuple(c.title for c in listed if c.kind == "warning"))  # fmt: skip
    record = {**asdict(done), "folder": out.name, "source": data.name, "settings": config, "key": key,
              "plan_hash": plan_hash(plan), "caveats": [c._asdict() for c in listed]}  # fmt: skip
    write_json(folder / RECORD, record)
    return done


def excerpt(text: str, length: int) -> str:
    """The beginning of a text in one line of `length` characters; code of a figure is told by its size.

    >>> excerpt("one  two\\nthree", 8), excerpt("[asy]dot((0,0));[/asy] is", 80)
    ('one two…', '[figure: 11 characters of Asymptote] is')
    """
    text = FIGURE.sub(lambda code: f"[figure: {len(code[1])} characters of Asymptote]", text)
    flat = " ".join(text[: 4 * length].split())
    return flat if len(flat) <= length else flat[: length - 1].rstrip() + "…"


def _templates() -> Environment:
    """Jinja with escaping on; a name that is not given is an error, and NUL, which HTML forbids, is shown as a sign."""
    found = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value,
    )  # fmt: skip
    whole = r"<span class=option>\g<0></span>"  # no line breaks inside an option such as --larger-is-easier
    found.filters |= {"excerpt": excerpt, "whole_options": lambda escaped: re.sub(r"--\w[\w-]*", whole, str(escaped))}
    return found


def _rows_page(arranged: Arranged, scores: pd.DataFrame, more: dict[str, Any]) -> str:
    """JSON of columns of the rows, in the order of the source, and of `more`; the map's coordinates are whole numbers from 0 to
    9999, a reason is numbers of `parts`, and `cut` are the rows whose question is not whole."""
    points, samples = arranged.points, arranged.data.samples
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    rank = arranged.scores["difficulty" if arranged.difficulty else "ranking"]
    numbers = {"rank": rank, **{name: scores[name] for name in ("label", "quality", "low", "high")}}
    x, y = np.rint((points - low) / np.where(span > 0, span, 1) * 9999).astype(int).T.tolist()
    parts = dict[str, int]()
    columns = more | {
        "x": x, "y": y, "answer": [excerpt(s.answer or "", 200) for s in samples],
        **{name: [float(f"{v:.4g}") if np.isfinite(v) else None for v in column] for name, column in numbers.items()},
        "status": [STATUSES.index(s) for s in scores["status"]],
        **{name: scores[name].tolist() for name in ("id", "where", "cluster", "step", "slot", "position")},
        "reason": [[parts.setdefault(part, len(parts)) for part in reason.split("; ")] for reason in scores["reason"]],
        "parts": list(parts),
    }  # fmt: skip
    for most in CUTS:
        cut = [i for i, s in enumerate(samples) if len(s.prompt) > most]
        columns |= {"prompt": [excerpt(s.prompt, most) for s in samples], "cut": cut}
        rows = htmlsafe_json_dumps(columns, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        if len(rows.encode()) <= ROOM[0] + ROOM[1] * max(0, len(samples) - 7_500):
            break
    return rows
