"""What a reader of the plan must know: what the data allow, what they do not, and what was left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from saerl_lib.data.sample import Dataset, normalise
from saerl_lib.own.arrange import Arranged
from saerl_lib.own.fit import MIN_CLASS, MIN_LABELS, Difficulty, Grouping, Quality
from saerl_lib.own.represent import Representation
from saerl_lib.own.settings import OwnConfig

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


@dataclass(frozen=True)
class Caveat:
    """One thing to know."""

    kind: str
    """warning: doubt the result. note: how it was made."""
    title: str
    text: str


def caveats(
    data: Dataset,
    found: Representation,
    grouping: Grouping,
    difficulty: Difficulty | None,
    quality: Quality | None,
    arranged: Arranged,
    config: OwnConfig,
) -> list[Caveat]:
    """Warnings first, then notes."""
    listed = [
        *_difficulty(data, difficulty, config), *_clusters(grouping, arranged), *_quality(data, quality, config),
        *_rows(data, found, arranged), *_features(found),
    ]  # fmt: skip
    return sorted(listed, key=lambda caveat: caveat.kind != "warning")


def _count(n: int, what: str) -> str:
    """A number with its noun.

    >>> _count(1, "row"), _count(2, "row")
    ('1 row', '2 rows')
    """
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _difficulty(data: Dataset, difficulty: Difficulty | None, config: OwnConfig) -> list[Caveat]:
    known = int(np.isfinite(data.labels).sum())
    if difficulty is None:
        order = {"length": "by length, short first: a stand-in for difficulty, not a measure of it",
                 "random": "random"}[config.without_labels]  # fmt: skip
        text = (
            "Clusters, their interleaving and the diversity of batches are real; easy-to-hard is not. "
            f"Within a cluster the order is {order}. There is no difficulty score, no interval and no calibration."
        )
        if config.fields.labels is None:
            return [Caveat("warning", "No labels", f"{text} Some {FEW_LABELS} labels (--labels FIELD) would give a difficulty.")]
        if known < MIN_LABELS:
            return [Caveat("warning", "Too few labels", f"{known} rows have a label, {MIN_LABELS} are needed. {text}")]
        return [Caveat("warning", "All labels are equal", f"They order nothing. {text}")]
    out, gain = [], difficulty.gain
    if known < FEW_LABELS:
        out.append(
            Caveat("warning", "Few labels", f"Difficulty rests on {known} labels; below {FEW_LABELS} expect rough scores.")
        )
    if gain.low <= 0:
        worse = gain.high <= SMALL_GAIN
        title = "The probe is no better than length" if worse else "The probe is not shown to be better than length"
        end = "Sorting by length would do as well." if worse else "More labels would decide it."
        out.append(Caveat(
            "warning", title,
            f"Rank correlation with the labels: {difficulty.spearman:.3f} from the features, {difficulty.spearman_length:.3f} "
            f"from the length alone (difference {gain.low:.3f} to {gain.high:.3f}). {end}",
        ))  # fmt: skip
    if config.turned:
        how = "1 minus it" if config.allowed_labels == (0.0, 1.0) else "the range turned round, or its negative without one"
        out.append(Caveat(
            "note", "Labels are turned round",
            f"A larger {config.fields.labels} means easier; the report and scores.csv show {how}, so that larger is harder.",
        ))  # fmt: skip
    if not np.isfinite(difficulty.high).all():
        out.append(Caveat("note", "No intervals", "There are too few labels for a 95 % interval of the difficulty."))
    used = (
        "Labelled rows are ranked by their label." if config.rank_by == "label" else "--rank-by label would rank by the labels."
    )
    out.append(Caveat(
        "note", "How difficulty was read",
        f"{known:,} of {len(data.samples):,} rows have a label. A labelled row's prediction comes from a fit that did not see "
        f"its label; the calibration on top of it saw all labels. {used}",
    ))  # fmt: skip
    return out


def _clusters(grouping: Grouping, arranged: Arranged) -> list[Caveat]:
    sizes, out = np.bincount(grouping.assignment.label, minlength=grouping.clusters.k), []
    if grouping.clusters.k == 1:
        out.append(Caveat(
            "warning", "One cluster",
            "All rows are in one cluster: there is no company to choose and no tail to swap. A small file has several when "
            "batches are smaller (--prompts-per-step) or when --clusters asks for them.",
        ))  # fmt: skip
    elif sizes.max() > DOMINANT * sizes.sum():
        out.append(Caveat(
            "warning", "Dominant cluster",
            f"Cluster {sizes.argmax()} holds {sizes.max() / sizes.sum():.0%} of the rows: most batches come from it. "
            "Try other features or more clusters.",
        ))  # fmt: skip
    plan = arranged.plan
    if grouping.clusters.k > 1 and plan.unpaired_share > UNPAIRED:
        out.append(Caveat("note", "Few swaps", f"{plan.unpaired_share:.0%} of the batches found no partner for the tail swap."))
    if grouping.clusters.n_merged:
        out.append(Caveat(
            "note", _count(grouping.clusters.n_merged, "small cluster") + " merged",
            f"{_count(grouping.clusters.n_moved, 'row')} of clusters that fill no batch went to the nearest other one.",
        ))  # fmt: skip
    out.append(Caveat(
        "note", "How varied batches are",
        f"Mean distance to the five nearest neighbours of a batch, on the map: {arranged.diversity:.2f} in the plan, "
        f"{arranged.diversity_random:.2f} in a random order. Batches of one cluster are meant to be closer.",
    ))  # fmt: skip
    return out


def _quality(data: Dataset, quality: Quality | None, config: OwnConfig) -> list[Caveat]:
    if config.fields.quality is None:
        return [Caveat("note", "No filter", "No quality labels were named (--quality FIELD): no row was filtered.")]
    if quality is None:
        known = int(np.isfinite(data.quality).sum())
        return [Caveat("warning", "Too few quality labels",
                       f"{known} rows have one; {MIN_CLASS} of either kind are needed. No row was filtered.")]  # fmt: skip
    out = []
    if quality.roc_auc <= quality.roc_auc_length:
        out.append(Caveat(
            "warning", "The filter is no better than length",
            f"ROC-AUC {quality.roc_auc:.3f} from the features, {quality.roc_auc_length:.3f} from the length alone.",
        ))  # fmt: skip
    kept = "no row was filtered (--keep SHARE would)" if config.keep is None else f"the best {config.keep:.0%} were kept"
    text = f"{quality.n_labels} labels, ROC-AUC {quality.roc_auc:.3f} on rows that a fit did not see; {kept}."
    out.append(Caveat("note", "How quality was read", text))
    return out


def _rows(data: Dataset, found: Representation, arranged: Arranged) -> list[Caveat]:
    counts = Counter(d.status for d in (*data.dropped, *arranged.dropped))
    out = [
        Caveat(
            "warning" if status == "malformed" or count > MANY * data.read and status != "filtered" else "note",
            f"{_count(count, 'row')} of {data.read:,}: {status}",
            f"{text} Listed in not_planned.csv.",
        )
        for status, text in STATUS_TEXT.items() if (count := counts[status])
    ]  # fmt: skip
    repeated = sum(count - 1 for count in Counter(normalise(s.prompt) for s in data.samples).values())
    if repeated:
        out.append(Caveat("warning", _count(repeated, "repeated question"), "Equal to an earlier row but for case, space or "
                          "punctuation. They stay in the plan, so their question counts more than once."))  # fmt: skip
    if found.truncated:
        out.append(
            Caveat(
                "warning",
                f"{_count(found.truncated, 'row')} cut",
                "Longer than the model reads; the end was not read. --max-tokens sets where.",
            )
        )
    return out + [Caveat("note", "Assumed", note) for note in data.notes]


def _features(found: Representation) -> list[Caveat]:
    solved, n = int(found.table.solved.sum()), len(found.phi)
    spans = f"{solved} of {n} rows have a solution; " + (
        "prompt and solution were read, a missing one stands at the mean." if found.with_solution else "prompts alone were read."
    )
    out = [Caveat("note", "What was read", f"{found.name}, {found.phi.shape[1]} columns. {spans}")]
    if found.sae is not None:
        told = (f"Explained variance {found.sae.explained_variance:.3f} on {found.sae.n_tokens:,} tokens of these rows, "
                f"{found.sae.l0:.0f} latents a token.")  # fmt: skip
        fits = found.sae.explained_variance > 0
        out.append(Caveat("note", "How well the SAE reads the model", told) if fits else Caveat(
            "warning", "The SAE does not fit this layer",
            f"{told} The mean vector alone reaches 0: --layer or --encoder is probably not what this SAE was trained on, and "
            "its features are noise. Layers count from 1, the block after which the residual stream is read.",
        ))  # fmt: skip
    if not found.by_model:
        out.append(Caveat("note", "A first look", "No model read the rows: these are words and counts, not SAE features."))
    return out
