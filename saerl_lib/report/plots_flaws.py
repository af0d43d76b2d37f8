"""Figures of the harder question behind the quality filter: does a score find wrong samples, and is it length? (notebook 05)"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saerl_lib.report import style

SCORES = (
    "source_membership", "source_probe", "dsir", "dsir_per_ngram", "perplexity_prompt", "perplexity_solution",
    "peak_surprise_solution", "length", "prompt_length", "solution_length",
    "flaw_probe_sae", "flaw_probe_metadata", "flaw_probe_tfidf", "flaw_probe_shuffled",
)  # fmt: skip
"""Scores from top to bottom: source, text and likelihood without labels of flaws, lengths, then probes trained on flaws."""
LABELS = {
    "source_membership": "true source",
    "source_probe": "source probe (paper)",
    "dsir": "DSIR",
    "dsir_per_ngram": "DSIR per n-gram",
    "perplexity_prompt": "surprise, prompt",
    "perplexity_solution": "surprise, solution",
    "peak_surprise_solution": "peak surprise, solution",
    "flaw_probe_sae": "flaw probe, SAE*",
    "flaw_probe_metadata": "flaw probe, metadata*",
    "flaw_probe_tfidf": "flaw probe, TF-IDF*",
    "flaw_probe_shuffled": "flaw probe, shuffled*",
    "flaw_probe_dense": "flaw probe, dense*",
    "flaw_probe_sae_untrained": "flaw probe, untrained SAE*",
    "flaw_probe_selfreg": "flaw probe, SelfReg*",
}
COLUMNS = 4
FEWEST = 10
"""Flaws of a kind that get a panel of their own; rarer kinds are in the table alone."""
POOLS = ("whole pool", "within parent")
VARIANTS = (
    "plain", "scaled", "scaled_random", "dropped", "dropped_random", "residual", "residual_random", "metadata_only"
)  # fmt: skip
TARGETS = ("source", "flaw by source probe", "flaw")


def _colour(score: str) -> str:
    if score.startswith("flaw_probe"):
        return style.GREY if score.endswith("shuffled") else style.GREEN
    return {"source_probe": style.BLUE, "source_membership": style.SKY}.get(score, style.VERMILLION)


def _panels(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(dataset, pool, flaw) a panel: any flaw in each pool, then each kind with `FEWEST` flaws or more in the narrowest pool."""
    found = []
    for dataset in style.ordered(frame["dataset"], ("world",)):
        part = frame[frame["dataset"] == dataset]
        pools = style.ordered(part["pool"], POOLS)
        many = part[(part["flaw"] != "any") & (part["n_flawed"] >= FEWEST)]
        kinds = style.ordered(many["flaw"])
        found += [(dataset, pool, "any") for pool in pools]
        found += [(dataset, pools[-1], kind) for kind in kinds if len(kinds) > 1]
    return found


def _forest(axis: Axes, part: pd.DataFrame, names: list[str], chance: float | None) -> None:
    """Values with intervals, one row a name; missing names stay empty."""
    if chance is not None:
        axis.axvline(chance, color=style.BLACK, linewidth=0.8, linestyle="--")
    for y, name in enumerate(names):
        row = part[part["name"] == name]
        bars = style.error_lengths(row["value"], row["ci_low"], row["ci_high"])
        filled = "none" if name in ("source_membership", "flaw_probe_shuffled") or name.endswith("_random") else None
        colour = row["colour"].iloc[0] if len(row) else style.GREY
        axis.errorbar(row["value"], [y] * len(row), xerr=bars, fmt="o", color=colour, markersize=3.6, elinewidth=1,
                      markerfacecolor=filled, clip_on=False)  # fmt: skip
    axis.set_ylim(len(names) - 0.5, -0.5)
    style.light_grid(axis, "x")


@style.styled
def filter_flaws(frame: pd.DataFrame) -> Figure:
    """ROC-AUC of each score against flaws: any flaw by pool, then each kind; dashed at 0.5."""
    frame = frame[frame["metric"].eq("roc_auc")].copy()
    found, names = _panels(frame), style.ordered([s for s in frame["score"] if s != "chance"], SCORES)
    frame["name"], frame["colour"] = frame["score"], frame["score"].map(_colour)
    rows = -(-len(found) // COLUMNS)
    figure, axes = style.panels(
        style.FULL_WIDTH, 0.9 + rows * (0.5 + 0.155 * len(names)), rows, COLUMNS, sharex=True, sharey=True
    )
    for axis, (dataset, pool, flaw) in zip(axes.ravel(), found, strict=False):
        part = frame[(frame["dataset"] == dataset) & (frame["pool"] == pool) & (frame["flaw"] == flaw)]
        _forest(axis, part, names, 0.5)
        axis.set_title(f"{style.readable(flaw)}{' flaw' if flaw == 'any' else ''}\n{dataset}, {pool}"
                       f"\n{int(part['n_flawed'].iloc[0]):,} of "
                       f"{int(part[['n_flawed', 'n_sound']].iloc[0].sum()):,}")  # fmt: skip
    axes[0, 0].set_yticks(range(len(names)), [LABELS.get(name, style.readable(name)) for name in names])
    axes[0, 0].set_xlim(-0.02, 1.02)
    axes[0, 0].set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    for axis in axes.ravel()[max(0, len(found) - COLUMNS) : len(found)]:
        axis.tick_params(axis="x", labelbottom=True)
        axis.set_xlabel("ROC-AUC")
    style.hide_unused(axes, len(found))
    style.caption(
        figure,
        "Larger scores are more suspect; the sign was never fitted, so below 0.5 a score points the wrong way. Numbers: flawed "
        "of compared samples. True source: what a perfect source probe would reach; it knows nothing of flaws. * trained on "
        "labelled flaws outside the pool. Bars: 95 % bootstrap over samples of the pool.",
    )
    return figure


@style.styled
def filter_selfreg(frame: pd.DataFrame) -> Figure:
    """ROC-AUC and rank correlation with length by variant of the probe, one column a target."""
    frame = frame.copy()
    frame["target"] = frame["dataset"].where(frame["dataset"] != "world", "") + "|" + frame["target"]
    targets = style.ordered(frame["target"], [f"|{name}" for name in TARGETS])
    names = style.ordered(frame["variant"], VARIANTS)
    frame["name"] = frame["variant"]
    frame["colour"] = [style.GREY if name == "metadata_only" else style.BLUE for name in frame["variant"]]
    metrics = {"roc_auc": ("ROC-AUC", 0.5), "spearman_length": ("Spearman with length", 0.0)}
    figure, axes = style.panels(
        style.FULL_WIDTH, 1.3 + len(metrics) * (0.45 + 0.16 * len(names)), len(metrics), len(targets), sharex="row", sharey=True
    )
    for row, (metric, (label, chance)) in zip(axes, metrics.items(), strict=True):
        for axis, target in zip(row, targets, strict=True):
            part = frame[(frame["target"] == target) & (frame["metric"] == metric)]
            _forest(axis, part, names, chance)
            axis.set_xlabel(label)
            if metric == "roc_auc":
                title = " ".join(word for word in target.split("|") if word)
                axis.set_title(f"{title}\nn = {int(part['n_test'].iloc[0]):,}")
    axes[0, 0].set_yticks(np.arange(len(names)), [style.readable(name) for name in names])
    style.caption(
        figure,
        "Suppressed: latents that metadata (lengths, counts, shares of signs) explain. Scaled: columns times 1 - R²; dropped: "
        "the half with the largest R²; residual: minus the linear prediction from metadata. Open: the same done to random "
        "columns or directions. Source on the whole pool, flaws among parent samples. Bars: 95 % bootstrap over test samples.",
    )
    return figure
