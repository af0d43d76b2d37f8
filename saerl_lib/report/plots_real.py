"""Figures of clusters, features, source filter and flaws on real mathematics (notebooks 04 and 05).

Where the embedded world has the same figure its drawing function is used; the small print says what is different.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saerl_lib.report import plots_audit, plots_flaws, style

FEATURES = (
    "sae", "sae_seed_1", "sae_seed_2", "sae_plain", "sae_untrained", "sae_shuffled_labels", "dense", "metadata", "tfidf",
    "tfidf_plain", "delimiters", "length", "shuffled_labels", "majority",
)  # fmt: skip
"""Feature sets from top to bottom: the SAE and its controls, then what needs none."""
LABELS = {
    "sae": "SAE", "sae_seed_1": "SAE, seed 1", "sae_seed_2": "SAE, seed 2", "sae_plain": "SAE, no $ signs",
    "sae_untrained": "SAE, untrained", "sae_shuffled_labels": "SAE, shuffled labels", "dense": "dense activations",
    "tfidf": "TF-IDF", "tfidf_plain": "TF-IDF, no $ signs", "delimiters": "counts of $ signs", "length": "length",
    "shuffled_labels": "shuffled subjects", "majority": "largest subject",
}  # fmt: skip
SHOWN = ("sae", "sae_plain", "tfidf", "length")
"""Feature sets of the panels of rules; all others are in the table."""
QUANTITIES = {"purity": "Purity", "nmi": "NMI", "ari": "ARI"}
STABILITY = {"ari_kmeans_seeds": "seeds of k-means", "ari_sae_seeds": "seeds of the SAE"}


def _forest(axis: Axes, part: pd.DataFrame, names: Sequence[str]) -> None:
    """A row a feature set: value with interval, the paper's value as an open square."""
    for y, name in enumerate(names):
        row = part[part["features"] == name]
        colour = style.BLUE if name.startswith("sae") and "untrained" not in name and "shuffled" not in name else style.GREY
        bars = style.error_lengths(row["value"], row["ci_low"], row["ci_high"])
        axis.plot(row["paper_value"], [y] * len(row), "s", color=style.ORANGE, markerfacecolor="none", markersize=7)
        axis.errorbar(row["value"], [y] * len(row), xerr=bars, fmt="o", color=colour, markersize=3.6, elinewidth=1)
    axis.set_ylim(len(names) - 0.5, -0.5)
    style.light_grid(axis, "x")


def _named(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), [LABELS.get(name, style.readable(name)) for name in names])


@style.styled
def real_clusters(frame: pd.DataFrame) -> Figure:
    """Agreement of clusters with subjects by features, and of clusters with clusters under other seeds."""
    part = frame[frame["quantity"].isin(QUANTITIES)]
    names = style.ordered(part["features"], FEATURES)
    figure, axes = style.panels(style.FULL_WIDTH, 2.2 + 0.4 * len(names), 2, 2)
    for axis, (quantity, title) in zip(axes.ravel(), QUANTITIES.items(), strict=False):
        _forest(axis, part[part["quantity"] == quantity], names)
        axis.set_xlim(left=min(0.0, float(part.loc[part["quantity"] == quantity, "ci_low"].min())))
        axis.set_title(f"{title} with subject")
        _named(axis, names)
    stable = frame[frame["quantity"].isin(STABILITY)].assign(features=frame["quantity"])
    rows = style.ordered(stable["features"], STABILITY)
    _forest(axes[1, 1], stable, rows)
    axes[1, 1].set_yticks(
        range(len(rows)), [STABILITY[name].replace("seeds of ", "").replace("the ", "") + "\nseeds" for name in rows]
    )
    axes[1, 1].set_xlim(0, 1)
    axes[1, 1].set_title("ARI of two fits")
    style.caption(
        figure,
        f"n = {int(frame['n'].max()):,} problems of MATH with solutions. Bars: 95 % bootstrap over problems, clusters fixed; "
        "shuffled subjects and the last panel: least and largest of all shuffles or pairs. Open squares: the paper's clusters "
        "against its own leaf topics, of which there are hundreds; MATH has seven subjects, so they are no target.",
    )
    return figure


@style.styled
def real_cluster_audit(clusters: pd.DataFrame) -> Figure:
    """Table 10 on MATH: a row a cluster, drawn as in the embedded world."""
    figure = plots_audit.cluster_audit(clusters)
    style.caption(
        figure,
        f"n = {int(clusters['n'].sum()):,} problems of MATH. Difficulty: level 1 to 5; bar: its quartiles; line: median; "
        "diamond: mean. A label names the most frequent subjects (seven in all, at most 2.8 bits); mixed: the first of them has "
        "less than a quarter of the cluster.",
    )
    return figure


@style.styled
def real_feature_groups(groups: pd.DataFrame) -> Figure:
    """Table 11 on MATH: gain by feature group, drawn as in the embedded world."""
    figure = plots_audit.feature_groups(groups)
    style.caption(
        figure,
        f"n = {int(groups['n'].max()):,} problems of MATH; number of features of a group in brackets. LightGBM predicts the "
        "cluster label; bars: 95 % interval over bootstrap resamples of the problems. Filled: here; open: paper, section 5.4, on "
        "its own data.",
    )
    return figure


@style.styled
def real_filter(rules: pd.DataFrame, separation: pd.DataFrame) -> Figure:
    """ROC-AUC of the source probe by features; purity and recall of each rule, filled here, open in the paper (Table 6)."""
    part = separation[separation["metric"] == "roc_auc"]
    names = style.ordered(part["features"], FEATURES)
    figure, axes = style.panels(style.FULL_WIDTH, 1.4 + 0.2 * len(names), 1, 3, gridspec_kw={"width_ratios": [1.3, 1, 1]})
    _forest(axes[0, 0], part, names)
    _named(axes[0, 0], names)
    axes[0, 0].axvline(0.5, color=style.BLACK, linewidth=0.8, linestyle="--")
    axes[0, 0].set_xlabel("ROC-AUC")
    axes[0, 0].set_title("DeepMath against DeepScaleR")
    _rule_panels(axes[0, 1:], rules)
    figure.legend(*axes[0, 2].get_legend_handles_labels(), loc="outside upper right", ncols=5, columnspacing=1.0)
    style.caption(
        figure,
        f"n = {int(part['n_test'].max()):,} questions in the pool. Filled: here; open squares: paper, Table 6, on DeepMath and "
        "NuminaMath-1.5, another pair of sources. No $ signs: questions read without the signs around formulas, which the two "
        "sources write differently. Bars: 95 % bootstrap over questions of the pool.",
    )
    return figure


def _rule_panels(axes: Sequence[Axes], rules: pd.DataFrame) -> None:
    shown = [name for name in SHOWN if name in set(rules["features"])]
    order = list(dict.fromkeys(rules["rule"]))
    palette, symbols = style.colours(shown), style.markers(shown)
    for axis, column in zip(axes, ("purity", "recall"), strict=True):
        paper = rules[rules["features"] == shown[0]].set_index("rule")[f"paper_{column}"].reindex(order)
        axis.plot(100 * paper, range(len(order)), "s", color=style.ORANGE, markerfacecolor="none", markersize=8, clip_on=False,
                  label="paper")  # fmt: skip
        for i, name in enumerate(shown):
            part = rules[rules["features"] == name].set_index("rule").reindex(order)
            y = np.arange(len(order)) + 0.16 * (i - (len(shown) - 1) / 2)
            axis.plot(100 * part[column], y, symbols[name], color=palette[name], clip_on=False, label=LABELS[name])
        axis.set_xlim(-3, 103)
        axis.set_ylim(len(order) - 0.5, -0.5)
        axis.set_yticks(range(len(order)), [style.readable(rule) for rule in order] if column == "purity" else [""] * len(order))
        axis.set_xlabel(f"{column.capitalize()} (%)")
        style.light_grid(axis)


@style.styled
def real_flaws(frame: pd.DataFrame) -> Figure:
    """ROC-AUC of each score against the flawed questions of ValiMath, drawn as in the embedded world."""
    figure = plots_flaws.filter_flaws(frame.assign(dataset="ValiMath", flaw=frame["flaw"].str.replace("level_0", "level 0")))
    style.caption(
        figure,
        "Larger scores are more suspect; the sign was never fitted, so below 0.5 a score points the wrong way. Numbers: flawed "
        "of compared questions, people's judgement. Panels after the first: the first check that a question failed, where ten or "
        "more did. * trained on 1,502 judged questions at most; selfreg: columns that metadata explain count less. Bars: 95 % "
        "bootstrap over questions.",
    )
    return figure


@style.styled
def real_selfreg(frame: pd.DataFrame) -> Figure:
    """The flaw probe of ValiMath when latents tied to length and style are suppressed, drawn as in the embedded world."""
    figure = plots_flaws.filter_selfreg(frame.assign(dataset="ValiMath"))
    style.caption(
        figure,
        "Suppressed: latents that metadata (lengths, counts, shares of signs) explain. Scaled: columns times 1 - R²; dropped: "
        "the half with the largest R²; residual: minus the linear prediction from metadata. Open: the same done to random "
        "columns or directions. Bars: 95 % bootstrap over test questions.",
    )
    return figure
