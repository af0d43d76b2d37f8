"""Figures of the control ladder and of the open choices of the representation (notebooks 02 and 03)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saerl_lib.report import style

RUNGS: dict[str, tuple[str, str, str]] = {
    "nothing": (style.GREY, "X", "majority / mean, shuffled labels"),
    "text": (style.ORANGE, "s", "text: length, metadata, TF-IDF"),
    "dense": (style.GREEN, "^", "dense: sentence embedding, activations"),
    "control": (style.SKY, "D", "SAE controls"),
    "sae": (style.BLUE, "o", "SAE"),
}
"""Kind of a feature set -> colour, marker, legend."""
SETS: dict[str, str] = {
    "majority / mean": "nothing", "shuffled_labels": "nothing", "length": "text", "metadata": "text", "tfidf": "text",
    "sentence_embedding": "dense", "dense": "dense", "dense_pca": "dense", "dense_random_projection": "dense",
    "sae_untrained": "control", "sae_frozen_encoder": "control", "sae_frozen_decoder": "control",
    "sae_soft_frozen_decoder": "control", "sae": "sae", "sae+metadata": "sae",
    "sentence_sae_untrained": "control", "sentence_sae": "sae",
}  # fmt: skip
"""Feature sets from bottom to top of the ladder."""
MAIN = {"accuracy": "Accuracy", "spearman": "Spearman rho", "roc_auc": "ROC-AUC", "pearson": "Pearson r"}
"""Metrics that are drawn; RMSE and MAE stand in the table."""
TITLES = {
    "math_test": "MATH", "deepmath_18k": "DeepMath", "deepscaler_pass_rate": "DeepScaleR", "quality_valimath": "ValiMath",
    "dsr_sub_training_accuracy": "DSR-sub", "world": "world",
}  # fmt: skip


def _panel(axis: Axes, part: pd.DataFrame, names: list[str]) -> None:
    for name in names:
        row = part[part["shown"] == name]
        if row.empty or pd.isna(row["value"].iloc[0]):
            continue
        colour, marker, _ = RUNGS[SETS.get(name, "control")]
        lengths = style.error_lengths(row["value"], row["ci_low"], row["ci_high"])
        axis.errorbar(row["value"], [names.index(name)], xerr=lengths, linestyle="none", color=colour, marker=marker,
                      markersize=3.5)  # fmt: skip
    best = part[part["shown"] == "tfidf"]["value"]
    if len(best):
        axis.axvline(float(best.iloc[0]), color=style.ORANGE, linewidth=0.7, linestyle=":")
    axis.margins(x=0.1)
    axis.locator_params(axis="x", nbins=4)
    style.light_grid(axis, "x")


def _ladder(table: pd.DataFrame, columns: int = 3) -> Figure:
    shown = table["features"].replace({"majority": "majority / mean", "mean": "majority / mean"})
    table = table.assign(shown=shown)[table["metric"].isin(MAIN)]
    names = style.ordered(table["shown"], SETS)
    tasks = list(dict.fromkeys(zip(table["dataset"], table["target"], table["metric"], strict=True)))
    rows = -(-len(tasks) // columns)
    figure, axes = style.panels(style.FULL_WIDTH, 1.0 + rows * (0.75 + 0.14 * len(names)), rows, columns, sharey=True)
    for axis, (dataset, target, metric) in zip(axes.ravel(), tasks, strict=False):
        part = table[(table["dataset"] == dataset) & (table["target"] == target) & (table["metric"] == metric)]
        _panel(axis, part, names)
        label = style.readable(target)
        axis.set_title(label if dataset == "world" else f"{TITLES.get(dataset, style.readable(dataset))}: {label}", fontsize=7)
        axis.set_xlabel(f"{MAIN[metric]}\n(train {int(part['n_train'].max()):,}, test {int(part['n_test'].max()):,})", fontsize=7)
    style.hide_unused(axes, len(tasks))
    for row in axes:
        row[0].set_yticks(range(len(names)), [style.readable(name) for name in names], fontsize=7)
    axes[0, 0].set_ylim(-0.7, len(names) - 0.3)
    handles = [axes[0, 0].plot([], [], marker, color=colour, label=label)[0] for colour, marker, label in RUNGS.values()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    style.caption(
        figure,
        "Bars: 95 % bootstrap over test problems and, where a set has several, over SAE seeds. Dotted: TF-IDF. All sets: the "
        "same splits and the same tuning budget.",
    )
    return figure


@style.styled
def probe_ladder(ladder: pd.DataFrame) -> Figure:
    """Real data: a panel a task, a row a feature set. A table without real data shows the world."""
    real = ladder[ladder["dataset"] != "world"]
    return _ladder(real if len(real) else ladder)


@style.styled
def probe_ladder_world(ladder: pd.DataFrame) -> Figure:
    """The embedded world: a panel a task, a row a feature set."""
    world = ladder[ladder["dataset"] == "world"]
    return _ladder(world if len(world) else ladder)


@style.styled
def representation(table: pd.DataFrame) -> Figure:
    """What the rule of the retained set and reading prompts alone cost: a panel a choice and target, a row an option."""
    panels = list(dict.fromkeys(zip(table["choice"], table["target"], table["metric"], strict=True)))
    heights = [0.5 + 0.2 * (table["choice"] == choice).sum() for choice, _, _ in panels]
    figure, axes = style.panels(style.FULL_WIDTH, 0.6 + max(heights), 1, len(panels))
    for axis, (choice, target, metric) in zip(axes[0], panels, strict=True):
        part = table[(table["choice"] == choice) & (table["target"] == target) & (table["metric"] == metric)]
        y = np.arange(len(part))[::-1]
        lengths = style.error_lengths(part["value"], part["ci_low"], part["ci_high"])
        axis.errorbar(part["value"], y, xerr=lengths, linestyle="none", color=style.BLUE, marker="o")
        labels = [style.readable(n) + (f"\n({s:.0%} shared)" if choice == "retained set" else "")
                  for n, s in zip(part["option"], part["shared_with_default"], strict=True)]  # fmt: skip
        axis.set_yticks(y, labels, fontsize=7)
        axis.set_ylim(-0.6, len(part) - 0.4)
        axis.set_title(f"{style.readable(target)}\nby {choice}", fontsize=7.5)
        axis.set_xlabel(f"{MAIN.get(metric, metric)}\n(n = {int(part['n_test'].max()):,})")
        axis.locator_params(axis="x", nbins=4)
        style.light_grid(axis, "x")
    style.caption(figure, "Bars: 95 % bootstrap over test samples. Shared: part of the default's retained latents.")
    return figure
