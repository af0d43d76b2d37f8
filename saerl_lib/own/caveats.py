"""What a reader of the plan must know: what the data allow, what they do not, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from saerl_lib.data.sample import normalise
from saerl_lib.own.arrange import Arranged
from saerl_lib.own.fit import MIN_CLASS, MIN_LABELS

FEW_LABELS = 200
"""Below this many labels the difficulty is called rough (ours)."""
DOMINANT = 0.5
"""A cluster with more than this share of the rows is called dominant (ours)."""
SMALL_GAIN = 0.05
"""A gain in rank correlation over length that does not matter (ours)."""
MANY = 0.05
"""When more than this share of the rows is not planned for one reason, it is a warning (ours)."""
UNPAIRED = 0.5
"""More batches without a swap partner than this are named (ours)."""
STATUS_TEXT = {
    "malformed": "Left out because of --skip-bad-rows; each is named with its fault.",
    "no answer": "Set aside, since no reward could be computed.",
    "filtered": "Below the share that --keep asks for.",
    "left over": "They fill no whole batch; which ones is decided by the hash of the question.",
}
"""What became of rows that are not planned."""
Told = Iterator[tuple[str, str, str]]
"""Kind, title and text of caveats."""


@dataclass(frozen=True)
class Caveat:
    """One thing to know."""

    kind: str
    """warning: doubt the result. note: how it was made."""
    title: str
    text: str


def caveats(arranged: Arranged) -> list[Caveat]:
    """Warnings first, then notes."""
    parts = (_difficulty, _clusters, _quality, _rows, _features)
    listed = [Caveat(*told) for part in parts for told in part(arranged)]
    return sorted(listed, key=lambda caveat: caveat.kind != "warning")


def _count(n: int, what: str) -> str:
    """A number with its noun.

    >>> _count(1, "row"), _count(2, "row")
    ('1 row', '2 rows')
    """
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _without_difficulty(arranged: Arranged) -> Told:
    known = int(np.isfinite(arranged.data.labels).sum())
    order = {"length": "by length, short first: a stand-in for difficulty, not a measure of it", "random": "random"}
    text = (
        "Clusters, their interleaving and the diversity of batches are real; easy-to-hard is not. "
        f"Within a cluster the order is {order[arranged.ranked_by]}. There is no difficulty score, no interval and no "
        "calibration."
    )
    if arranged.config.fields.labels is None:
        yield "warning", "No labels", f"{text} Some {FEW_LABELS} labels (--labels FIELD) would give a difficulty."
    elif known < MIN_LABELS:
        yield "warning", "Too few labels", f"{known} rows have a label, {MIN_LABELS} are needed. {text}"
    else:
        yield "warning", "All labels are equal", f"They order nothing. {text}"


def _difficulty(arranged: Arranged) -> Told:
    difficulty, config, n = arranged.difficulty, arranged.config, len(arranged.data.samples)
    if difficulty is None:
        yield from _without_difficulty(arranged)
        return
    known, gain = difficulty.n_labels, difficulty.gain
    if known < FEW_LABELS:
        yield "warning", "Few labels", f"Difficulty rests on {known} labels; below {FEW_LABELS} expect rough scores."
    if gain.low <= 0:
        worse = gain.high <= SMALL_GAIN
        yield (
            "warning",
            "The probe is no better than length" if worse else "The probe is not shown to be better than length",
            f"Rank correlation with the labels: {difficulty.spearman:.3f} from the features, {difficulty.spearman_length:.3f} "
            f"from the length alone (difference {gain.low:.3f} to {gain.high:.3f}). "
            + ("Sorting by length would do as well." if worse else "More labels would decide it."),
        )
    if config.turned:
        how = "1 minus it" if config.allowed_labels == (0.0, 1.0) else "the range turned round, or its negative without one"
        yield (
            "note", "Labels are turned round",
            f"A larger {config.fields.labels} means easier; the report and scores.csv show {how}, so that larger is harder.",
        )  # fmt: skip
    if not np.isfinite(difficulty.high).all():
        yield "note", "No intervals", "There are too few labels for a 95 % interval of the difficulty."
    yield (
        "note", "How difficulty was read",
        f"{known:,} of {n:,} rows have a label. A labelled row's prediction comes from a fit that did not see its label; the "
        "calibration on top of it saw all labels.",
    )  # fmt: skip


def _clusters(arranged: Arranged) -> Told:
    clusters, plan = arranged.grouping.clusters, arranged.plan
    sizes = np.bincount(arranged.grouping.assignment.label, minlength=clusters.k)
    if clusters.k == 1:
        yield (
            "warning", "One cluster",
            "All rows are in one cluster: there is no company to choose and no tail to swap. A small file has several when "
            "batches are smaller (--prompts-per-step) or when --clusters asks for them.",
        )  # fmt: skip
    elif sizes.max() > DOMINANT * sizes.sum():
        yield (
            "warning", "Dominant cluster",
            f"Cluster {sizes.argmax()} holds {sizes.max() / sizes.sum():.0%} of the rows: most batches come from it. "
            "Try other features or more clusters.",
        )  # fmt: skip
    if clusters.k > 1 and plan.unpaired_share > UNPAIRED:
        yield "note", "Few swaps", f"{plan.unpaired_share:.0%} of the batches found no partner for the tail swap."
    if clusters.n_merged:
        yield (
            "note", _count(clusters.n_merged, "small cluster") + " merged",
            f"{_count(clusters.n_moved, 'row')} of clusters that fill no batch went to the nearest other one.",
        )  # fmt: skip
    yield (
        "note", "How varied batches are",
        f"Mean distance to the five nearest neighbours of a batch, on the map: {arranged.diversity:.2f} in the plan, "
        f"{arranged.diversity_random:.2f} in a random order. Batches of one cluster are meant to be closer.",
    )  # fmt: skip


def _quality(arranged: Arranged) -> Told:
    quality, keep = arranged.quality, arranged.config.keep
    if arranged.config.fields.quality is None:
        yield "note", "No filter", "No quality labels were named (--quality FIELD): no row was filtered."
        return
    if quality is None:
        known = int(np.isfinite(arranged.data.quality).sum())
        text = f"{known} rows have one; {MIN_CLASS} of either kind are needed. No row was filtered."
        yield "warning", "Too few quality labels", text
        return
    if quality.roc_auc <= quality.roc_auc_length:
        text = f"ROC-AUC {quality.roc_auc:.3f} from the features, {quality.roc_auc_length:.3f} from the length alone."
        yield "warning", "The filter is no better than length", text
    kept = "no row was filtered (--keep SHARE would)" if keep is None else f"the best {keep:.0%} were kept"
    text = f"{quality.n_labels} labels, ROC-AUC {quality.roc_auc:.3f} on rows that a fit did not see; {kept}."
    yield "note", "How quality was read", text


def _rows(arranged: Arranged) -> Told:
    data, truncated = arranged.data, arranged.found.truncated
    counts = Counter(d.status for d in (*data.dropped, *arranged.dropped))
    for status, text in STATUS_TEXT.items():
        if count := counts[status]:
            doubtful = status == "malformed" or (count > MANY * data.read and status != "filtered")
            title = f"{_count(count, 'row')} of {data.read:,}: {status}"
            yield "warning" if doubtful else "note", title, f"{text} Listed in not_planned.csv."
    repeated = sum(count - 1 for count in Counter(normalise(s.prompt) for s in data.samples).values())
    if repeated:
        yield (
            "warning", _count(repeated, "repeated question"),
            "Equal to an earlier row but for case, space or punctuation. They stay in the plan, so their question counts more "
            "than once.",
        )  # fmt: skip
    if truncated:
        text = "Longer than the model reads; the end was not read. --max-tokens sets where."
        yield "warning", f"{_count(truncated, 'row')} cut", text
    for note in data.notes:
        yield "note", "Assumed", note


def _features(arranged: Arranged) -> Told:
    found, sae = arranged.found, arranged.found.sae
    what = "prompt and solution were read, a missing one stands at the mean" if found.with_solution else "prompts alone were read"
    solved = f"{int(found.table.solved.sum())} of {len(found.phi)} rows have a solution"
    yield "note", "What was read", f"{found.name}, {found.phi.shape[1]} columns. {solved}; {what}."
    if sae is not None:
        told = (f"Explained variance {sae.explained_variance:.3f} on {sae.n_tokens:,} tokens of these rows, "
                f"{sae.l0:.0f} latents a token.")  # fmt: skip
        if sae.explained_variance > 0:
            yield "note", "How well the SAE reads the model", told
        else:
            yield (
                "warning", "The SAE does not fit this layer",
                f"{told} The mean vector alone reaches 0: --layer or --encoder is probably not what this SAE was trained on, and "
                "its features are noise. Layers count from 1, the block after which the residual stream is read.",
            )  # fmt: skip
    if not found.by_model:
        yield "note", "A first look", "No model read the rows: these are words and counts, not SAE features."
