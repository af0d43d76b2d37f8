"""The figures of the studies: the embedded world, the control ladder, flaws, real data, gradients, open choices, the RL study.

Each function takes tidy tables and returns a Figure; it loads and trains nothing. `figures` draws them by name.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from saerl_lib.report import plots
from saerl_lib.report.plots import (
    BLACK,
    BLUE,
    COLUMN_WIDTH,
    FULL_WIDTH,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    SHADE,
    SKY,
    VERMILLION,
    Look,
    caption,
    figure_of,
    forest,
    forest_panel,
    line_panel,
    lines,
    number,
    ordered,
    readable,
)
from saerl_lib.report.statistics import over_seeds, total_variation
from saerl_lib.report.study import BASELINE, BENCHMARKS, baseline_of, planned_seeds
from saerl_lib.report.tables import is_true

EVAL_SETS = ("easy_a", "easy_b", "mid_a", "mid_b", "hard", "hardest", "all")
METRICS = {"accuracy": "Accuracy", "spearman": "Spearman rho", "roc_auc": "ROC-AUC", "pearson": "Pearson r"}
"""Metrics that ladders draw; of RMSE and MAE only the figure of the world's probes."""

# The embedded world.

STRIP = (-0.6, 1.6)
"""Visible part of the strip; the allowed range is 0..1, values beyond are drawn at its edge."""


def strip_position(value: float, low: float, high: float) -> float:
    """Place of a gate's value on a strip where the allowed range ends at 0 (low) and 1 (high); nan is an open end.

    With one bound, the distance to it is measured in units of that bound, so twice an upper bound lies at 2.

    >>> strip_position(0.3, 0.2, 0.4), strip_position(0.05, float("nan"), 0.1), strip_position(3, 2, float("nan"))
    (0.4999999999999999, 0.5, 0.5)
    """
    if math.isnan(low) and math.isnan(high):
        return 0.5
    if math.isnan(low):
        return 1.0 + (value - high) / (abs(high) or 1.0)
    if math.isnan(high):
        return (value - low) / (abs(low) or 1.0)
    return (value - low) / ((high - low) or 1.0)


def _allowed(low: float, high: float) -> str:
    if math.isnan(low):
        return "reported" if math.isnan(high) else f"at most {number(high)}"
    return f"at least {number(low)}" if math.isnan(high) else f"{number(low)} to {number(high)}"


def _gate_row(axis: Axes, y: int, gate: pd.Series, met: bool) -> None:
    low, high = float(gate["low"]), float(gate["high"])
    start, end = STRIP[0] if math.isnan(low) else 0.0, STRIP[1] if math.isnan(high) else 1.0
    axis.barh(y, end - start, left=start, height=0.6, color=SHADE, edgecolor="none")
    for bound, place in ((low, 0.0), (high, 1.0)):
        if not math.isnan(bound):
            axis.plot([place, place], [y - 0.3, y + 0.3], color=BLUE, linewidth=1)
    place = strip_position(float(gate["value"]), low, high)
    shown = min(max(place, STRIP[0] + 0.05), STRIP[1] - 0.05)
    marker, colour = ("o", GREEN) if met else ("X", VERMILLION)
    axis.plot(shown, y, marker, color=colour, markersize=6, clip_on=False)
    if place != shown:
        edge, arrow = (STRIP[0] - 0.01, "<") if place < shown else (STRIP[1] + 0.01, ">")
        axis.plot(edge, y, arrow, color=colour, markersize=3, clip_on=False)


@figure_of("world_gates")
def world_gates(gates: pd.DataFrame) -> Figure:
    """A row a gate: its value on a strip that marks the allowed range; met or not by colour and by symbol."""
    met, rows, values = is_true(gates["met"]).to_numpy(), len(gates), []
    names = [textwrap.wrap(str(name), 44) for name in gates["gate"]]
    figure, axes = plots.panels(FULL_WIDTH, 0.9 + 0.26 * rows + 0.06 * sum(len(wrapped) - 1 for wrapped in names))
    axis = axes[0, 0]
    for y, (_, gate) in enumerate(gates.iterrows()):
        _gate_row(axis, y, gate, bool(met[y]))
        unit = "" if pd.isna(gate["unit"]) or str(gate["unit"]).strip() in ("", "1") else f" {gate['unit']}"
        n = "" if pd.isna(gate["n"]) else f"   n = {float(gate['n']):,.0f}"
        allowed, verdict = _allowed(gate["low"], gate["high"]), "met" if met[y] else "NOT MET"
        values.append(f"{number(float(gate['value']))}{unit}  ({allowed})  {verdict}{n}")
    for target, labels in ((axis, ["\n".join(wrapped) for wrapped in names]), (axis.twinx(), values)):
        plots.row_axis(target, labels)
        target.grid(False)
        target.tick_params(axis="y", length=0)
        for spine in target.spines.values():
            spine.set_visible(False)
    axis.set(xlim=STRIP, xticks=[], title=f"Gates of the embedded world: {int(met.sum())} of {rows} met")
    caption(
        figure,
        "Shaded: allowed range, blue ticks: its bounds, each row on its own scale. Circle: met; cross: not met; "
        "a small arrow: beyond the strip.",
    )
    return figure


@figure_of("pass_rates")
def pass_rates(rates: pd.DataFrame) -> Figure:
    """Side by side: share of prompts by base-policy pass rate, in the world and in the reference."""
    figure, axes = plots.panels(COLUMN_WIDTH, 2.5)
    axis, width = axes[0, 0], (rates["bin_high"] - rates["bin_low"]).to_numpy()
    centre = (rates["bin_low"] + rates["bin_high"]).to_numpy() / 2
    for name, side, style in (("world", -0.2, {"color": BLUE}), ("reference", 0.2, {"color": ORANGE, "hatch": "////"})):
        label = f"{name} (n = {int(rates[f'n_{name}'].max()):,})"
        axis.bar(centre + side * width, rates[f"share_{name}"], 0.4 * width, edgecolor="white", linewidth=0, label=label, **style)
    axis.set(
        xlabel="Pass rate of the base policy",
        ylabel="Share of prompts",
        xticks=np.linspace(0, 1, 6),
        title="Base-policy pass rates",
    )
    axis.legend(loc="upper center")
    distance = total_variation(rates["share_world"], rates["share_reference"])
    caption(figure, f"Total variation distance {distance:.3f}; n counts prompts.")
    return figure


@figure_of("difficulty_vs_pass_rate")
def difficulty_vs_pass_rate(table: pd.DataFrame, bins: int = 8) -> Figure:
    """A point a prompt, with the mean pass rate and its 95 % interval by quantile bins of difficulty."""
    figure, axes = plots.panels(FULL_WIDTH, 3.0)
    axis, attempts = axes[0, 0], int(table["attempts"].max())
    jitter = np.random.default_rng(0).uniform(-0.5, 0.5, len(table)) / max(attempts, 1)
    for domain, look in plots.looks(ordered(table["domain"])).items():
        rows = (table["domain"] == domain).to_numpy()
        x, y = table["difficulty"][rows], table["pass_rate"][rows] + jitter[rows]
        axis.plot(
            x, y, look.marker, color=look.colour, markersize=2.6, alpha=0.5, markeredgewidth=0, label=look.label, rasterized=True
        )
    edges = np.unique(np.quantile(table["difficulty"], np.linspace(0, 1, bins + 1)))
    index = np.clip(np.searchsorted(edges, table["difficulty"], side="right") - 1, 0, max(len(edges) - 2, 0))
    rows = [(part["difficulty"].mean(), *over_seeds(part["pass_rate"]).interval()) for _, part in table.groupby(index)]
    means = pd.DataFrame(rows, columns=["x", "value", "ci_low", "ci_high"])
    axis.errorbar(means["x"], means["value"], plots.error_lengths(means), color=BLACK, marker="o", markersize=3.5, zorder=5,
                  label="mean, 95 %")  # fmt: skip
    axis.set(xlabel="Difficulty label", ylabel="Pass rate of the base policy", title="Difficulty against pass rate")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.8)
    rank = float(stats.spearmanr(table["difficulty"], table["pass_rate"]).statistic) if len(table) > 2 else math.nan
    caption(
        figure,
        f"n = {len(table):,} prompts, {attempts} attempts each; Spearman {rank:.2f}. Points are jittered within one attempt. "
        "Black: mean of each quantile bin with a 95 % t interval over prompts.",
    )
    return figure


# Ladders.

RUNGS = {
    "sae": Look(BLUE, "o", "SAE"), "control": Look(SKY, "D", "SAE controls"),
    "dense": Look(GREEN, "^", "dense: sentence embedding, activations"),
    "text": Look(ORANGE, "s", "text: length, metadata, TF-IDF"), "nothing": Look(GREY, "X", "majority / mean, shuffled labels"),
}  # fmt: skip
"""Kind of a feature set -> its look."""
SETS = {
    "sentence_sae": "sae", "sentence_sae_untrained": "control", "sae+metadata": "sae", "sae": "sae",
    "sae_soft_frozen_decoder": "control", "sae_frozen_decoder": "control", "sae_frozen_encoder": "control",
    "sae_untrained": "control", "sae_all_families": "control", "dense_random_projection": "dense", "dense_pca": "dense",
    "dense": "dense", "sentence_embedding": "dense", "tfidf": "text", "metadata": "text", "length": "text",
    "shuffled_labels": "nothing", "majority / mean": "nothing",
}  # fmt: skip
"""Feature sets from top to bottom of the ladder, with their kind."""
TITLES = {
    "math_test": "MATH:\n", "deepmath_18k": "DeepMath:\n", "deepscaler_pass_rate": "DeepScaleR:\n",
    "quality_valimath": "ValiMath:\n", "dsr_sub_training_accuracy": "DSR-sub:\n", "world": "",
}  # fmt: skip


def _ladder(table: pd.DataFrame) -> Figure:
    """A panel a task, a row a feature set."""
    several = table.groupby(["dataset", "target"])["metric"].transform("nunique") > 1
    shown = table["features"].replace({name: "majority / mean" for name in ("majority", "mean", "majority|mean")})
    sizes = [f"{METRICS.get(m, m.upper())}\n(train {train:,}, test {test:,})"
             for m, train, test in zip(table["metric"], table["n_train"], table["n_test"], strict=True)]  # fmt: skip
    panel = [TITLES.get(d, f"{readable(d)}:\n") + readable(t) + (f", {METRICS.get(m, m.upper())}" if s else "")
             for d, t, m, s in zip(table["dataset"], table["target"], table["metric"], several, strict=True)]  # fmt: skip
    table = table.assign(row=shown, look=[SETS.get(name, "control") for name in shown], panel=panel, xlabel=sizes)
    figure = forest(table, RUNGS, ordered(shown, SETS), row_height=0.14)
    for axis, (_, part) in zip(figure.axes, table.groupby("panel", sort=False), strict=False):
        for best in part.loc[part["row"] == "tfidf", "value"]:
            axis.axvline(float(best), color=ORANGE, linewidth=0.7, linestyle=":")
    plots.legend(figure, 3)
    caption(
        figure,
        "Bars: 95 % bootstrap over test problems and, where a set has several, over SAE seeds. Dotted: TF-IDF. All sets: the "
        "same splits and the same tuning budget.",
    )
    return figure


@figure_of("probe_ladder")
def probe_ladder(ladder: pd.DataFrame) -> Figure:
    """Real data: a panel a task, a row a feature set. A table without real data shows the world."""
    ladder = ladder[ladder["metric"].isin(METRICS)]
    real = ladder[ladder["dataset"] != "world"]
    return _ladder(real if len(real) else ladder)


@figure_of("probe_ladder", name="probe_ladder_world")
def probe_ladder_world(ladder: pd.DataFrame) -> Figure:
    """The embedded world: a panel a task, a row a feature set."""
    ladder = ladder[ladder["metric"].isin(METRICS)]
    world = ladder[ladder["dataset"] == "world"]
    return _ladder(world if len(world) else ladder)


@figure_of("world_probes")
def world_probes(probes: pd.DataFrame) -> Figure:
    """Tables 1 to 3 on the world, with intervals over its test samples alone."""
    figure = _ladder(probes)
    caption(figure, "Bars: 95 % interval over test samples. Dotted: TF-IDF. RMSE and MAE: lower is better.")
    return figure


@figure_of("representation")
def representation(table: pd.DataFrame) -> Figure:
    """What the rule of the retained set and reading prompts alone cost: a panel a choice and target, a row an option."""
    names = [readable(o) + (f"\n({s:.0%} shared)" if c == "retained set" else "")
             for o, c, s in zip(table["option"], table["choice"], table["shared_with_default"], strict=True)]  # fmt: skip
    panel = [f"{readable(t)}\nby {c}" for c, t in zip(table["choice"], table["target"], strict=True)]
    sizes = [f"{METRICS.get(m, m)}\n(n = {n:,})" for m, n in zip(table["metric"], table["n_test"], strict=True)]
    figure = forest(table.assign(row=names, panel=panel, xlabel=sizes), columns=4, row_height=0.22)
    caption(figure, "Bars: 95 % bootstrap over test samples. Shared: part of the default's retained latents.")
    return figure


# The filter, and the harder question behind it: does a score find wrong samples, and is it length?

SCORES = {
    "source_membership": "true source", "source_probe": "source probe (paper)", "dsir": "DSIR",
    "dsir_per_ngram": "DSIR per n-gram", "perplexity_prompt": "surprise, prompt", "perplexity_solution": "surprise, solution",
    "peak_surprise_solution": "peak surprise, solution", "length": "length", "prompt_length": "prompt length",
    "solution_length": "solution length", "flaw_probe_sae": "flaw probe, SAE*", "flaw_probe_metadata": "flaw probe, metadata*",
    "flaw_probe_tfidf": "flaw probe, TF-IDF*", "flaw_probe_shuffled": "flaw probe, shuffled*",
    "flaw_probe_dense": "flaw probe, dense*", "flaw_probe_sae_untrained": "flaw probe, untrained SAE*",
    "flaw_probe_selfreg": "flaw probe, SelfReg*",
}  # fmt: skip
"""Scores from top to bottom: source, text and likelihood without labels of flaws, lengths, then probes trained on flaws."""
SCORE_LOOKS = {
    "source": Look(BLUE), "true source": Look(SKY, hollow=True), "score": Look(VERMILLION), "probe": Look(GREEN),
    "shuffled": Look(GREY, hollow=True),
}  # fmt: skip
FEWEST = 10
"""Flaws of a kind that get a panel of their own; rarer kinds are in the table alone."""
FLAWS_TEXT = (
    "Larger scores are more suspect; the sign was never fitted, so below 0.5 a score points the wrong way. Numbers: flawed of "
    "compared samples. True source: what a perfect source probe would reach; it knows nothing of flaws. * trained on labelled "
    "flaws outside the pool. Bars: 95 % bootstrap over samples of the pool."
)
REAL_FLAWS_TEXT = (
    "Larger scores are more suspect; the sign was never fitted, so below 0.5 a score points the wrong way. Numbers: flawed of "
    "compared questions, people's judgement. Panels after the first: the first check that a question failed, where ten or more "
    "did. * trained on 1,502 judged questions at most; selfreg: columns that metadata explain count less. Bars: 95 % bootstrap "
    "over questions."
)


def _score_look(score: str) -> str:
    if score.startswith("flaw_probe"):
        return "shuffled" if score.endswith("shuffled") else "probe"
    return {"source_probe": "source", "source_membership": "true source"}.get(score, "score")


@figure_of("filter_flaws")
def filter_flaws(frame: pd.DataFrame, text: str = FLAWS_TEXT) -> Figure:
    """ROC-AUC of each score against flaws: any flaw in each pool, then each kind in the narrowest pool; dashed at 0.5."""
    frame = frame[frame["metric"].eq("roc_auc") & frame["score"].ne("chance")]
    parts = []
    for dataset in ordered(frame["dataset"], ("world",)):
        part = frame[frame["dataset"] == dataset]
        pools = ordered(part["pool"], ("whole pool", "within parent"))
        kinds = ordered(part.loc[(part["flaw"] != "any") & (part["n_flawed"] >= FEWEST), "flaw"])
        shown = [(pool, "any") for pool in pools] + [(pools[-1], kind) for kind in kinds if len(kinds) > 1]
        parts += [part[(part["pool"] == pool) & (part["flaw"] == flaw)] for pool, flaw in shown]
    for i, part in enumerate(parts):
        first = part.iloc[0]
        flaw = "any flaw" if first["flaw"] == "any" else readable(first["flaw"])
        counts = f"{first['n_flawed']:,} of {first['n_flawed'] + first['n_sound']:,}"
        parts[i] = part.assign(panel=f"{flaw}\n{first['dataset']}, {first['pool']}\n{counts}")
    table = pd.concat(parts).assign(xlabel="ROC-AUC")
    table = table.assign(row=table["score"], look=table["score"].map(_score_look))
    figure = forest(table, SCORE_LOOKS, ordered(table["score"], SCORES), columns=4, labels=SCORES, chance=0.5, share_x=True)
    figure.axes[0].set_xlim(-0.02, 1.02)
    figure.axes[0].set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    caption(figure, text)
    return figure


@figure_of("real_flaws")
def real_flaws(frame: pd.DataFrame) -> Figure:
    """ROC-AUC of each score against the flawed questions of ValiMath, drawn as in the embedded world."""
    return filter_flaws(frame.assign(dataset="ValiMath", flaw=frame["flaw"].str.replace("level_0", "level 0")), REAL_FLAWS_TEXT)


VARIANTS = (
    "plain", "scaled", "scaled_random", "dropped", "dropped_random", "residual", "residual_random", "metadata_only"
)  # fmt: skip
VARIANT_LOOKS = {"kept": Look(BLUE), "random": Look(BLUE, hollow=True), "metadata": Look(GREY)}
SELFREG_TEXT = (
    "Suppressed: latents that metadata (lengths, counts, shares of signs) explain. Scaled: columns times 1 - R²; dropped: the "
    "half with the largest R²; residual: minus the linear prediction from metadata. Open: the same done to random columns or "
    "directions. "
)
OF_WORLD = "Source on the whole pool, flaws among parent samples. Bars: 95 % bootstrap over test samples."


@figure_of("filter_selfreg")
def filter_selfreg(frame: pd.DataFrame, more: str = OF_WORLD) -> Figure:
    """ROC-AUC and rank correlation with length by variant of the probe, one column a target."""
    metrics = {"roc_auc": "ROC-AUC", "spearman_length": "Spearman with length"}
    named = (frame["dataset"].where(frame["dataset"] != "world", "") + " " + frame["target"]).str.strip()
    targets, parts = ordered(named, ("source", "flaw by source probe", "flaw")), []
    for metric, label in metrics.items():
        for target in targets:
            part = frame[(named == target) & (frame["metric"] == metric)]
            parts.append(part.assign(panel=f"{target}\n{label}, n = {part['n_test'].iloc[0]:,}", xlabel=label))
    table = pd.concat(parts)
    kinds = ["metadata" if v == "metadata_only" else "random" if v.endswith("_random") else "kept" for v in table["variant"]]
    rows = ordered(table["variant"], VARIANTS)
    figure = forest(table.assign(row=table["variant"], look=kinds), VARIANT_LOOKS, rows, columns=len(targets), share_x="row")
    for axis in figure.axes:
        axis.axvline(0.5 if axis.get_xlabel() == "ROC-AUC" else 0.0, color=BLACK, linewidth=0.8, linestyle="--")
    caption(figure, SELFREG_TEXT + more)
    return figure


@figure_of("real_selfreg")
def real_selfreg(frame: pd.DataFrame) -> Figure:
    """The flaw probe of ValiMath when latents tied to length and style are suppressed, drawn as in the embedded world."""
    return filter_selfreg(frame.assign(dataset="ValiMath"), "Bars: 95 % bootstrap over test questions.")


def filter_panels(
    axes: Sequence[Axes], rules: pd.DataFrame, looks: Mapping[str, Look], labels: Mapping[str, str] | None = None
) -> None:
    """Purity and recall of each rule in percent beside the paper's, groups by column look."""
    for axis, column in zip(axes, ("purity", "recall"), strict=True):
        part = plots.without_interval(rules).assign(
            row=rules["rule"], value=100 * rules[column], paper=100 * rules[f"paper_{column}"]
        )
        forest_panel(axis, part, looks, list(dict.fromkeys(rules["rule"])), labels, 0.16)
        axis.set(xlim=(-3, 103), xlabel=f"{column.capitalize()} (%)", title=column.capitalize())
    axes[1].set_yticklabels([])


# Real mathematics.

FEATURES = {
    "sae": "SAE", "sae_seed_1": "SAE, seed 1", "sae_seed_2": "SAE, seed 2", "sae_plain": "SAE, no $ signs",
    "sae_untrained": "SAE, untrained", "sae_shuffled_labels": "SAE, shuffled labels", "dense": "dense activations",
    "metadata": "metadata", "tfidf": "TF-IDF", "tfidf_plain": "TF-IDF, no $ signs", "delimiters": "counts of $ signs",
    "length": "length", "shuffled_labels": "shuffled subjects", "majority": "largest subject",
    "ari_kmeans_seeds": "k-means seeds", "ari_sae_seeds": "SAE seeds",
}  # fmt: skip
"""Feature sets from top to bottom: the SAE and its controls, then what needs none."""
FEATURE_LOOKS = {True: Look(BLUE), False: Look(GREY)}
AGREEMENT = {"purity": "Purity with subject", "nmi": "NMI with subject", "ari": "ARI with subject"}


def _is_sae(features: pd.Series) -> pd.Series:
    return features.str.startswith("sae") & ~features.str.contains("untrained|shuffled")


@figure_of("real_clusters")
def real_clusters(frame: pd.DataFrame) -> Figure:
    """Agreement of clusters with subjects by features, and of clusters with clusters under other seeds."""
    stable = frame["quantity"].str.startswith("ari_")
    rows = frame["features"].where(~stable, frame["quantity"])
    panel = frame["quantity"].map(AGREEMENT).where(~stable, "ARI of two fits")
    table = frame.assign(row=rows, look=_is_sae(frame["features"]), panel=panel, paper=frame["paper_value"])[panel.notna()]
    order = ordered(table["row"], FEATURES)
    table = table.sort_values("row", key=lambda row: row.map(order.index), kind="stable")
    table = pd.concat([table[table["panel"] == name] for name in (*AGREEMENT.values(), "ARI of two fits")])
    figure = forest(table, FEATURE_LOOKS, columns=2, labels=FEATURES, row_height=0.17)
    for axis in figure.axes:
        axis.set_xlim(left=min(0.0, axis.get_xlim()[0] if axis.get_xlim()[0] < -0.01 else 0.0))
    figure.axes[-1].set_xlim(0, 1)
    caption(
        figure,
        f"n = {int(frame['n'].max()):,} problems of MATH with solutions. Bars: 95 % bootstrap over problems, clusters fixed; "
        "shuffled subjects and the last panel: least and largest of all shuffles or pairs. Open squares: the paper's clusters "
        "against its own leaf topics, of which there are hundreds; MATH has seven subjects, so they are no target.",
    )
    return figure


@figure_of("real_filter", "real_separation")
def real_filter(rules: pd.DataFrame, separation: pd.DataFrame) -> Figure:
    """ROC-AUC of the source probe by features; purity and recall of each rule, filled here, open in the paper (Table 6)."""
    part = separation[separation["metric"] == "roc_auc"]
    part = part.assign(row=part["features"], look=_is_sae(part["features"]), paper=part["paper_value"], xlabel="ROC-AUC")
    names = ordered(part["features"], FEATURES)
    figure, axes = plots.panels(FULL_WIDTH, 1.4 + 0.2 * len(names), 1, 3, gridspec_kw={"width_ratios": [1.3, 1, 1]})
    forest_panel(axes[0, 0], part, FEATURE_LOOKS, names, FEATURES, chance=0.5)
    axes[0, 0].set_title("DeepMath against DeepScaleR")
    shown = [name for name in ("sae", "sae_plain", "tfidf", "length") if name in set(rules["features"])]
    filter_panels(
        axes[0, 1:], rules[rules["features"].isin(shown)].assign(look=rules["features"]), plots.looks(shown, labels=FEATURES)
    )
    plots.legend(figure)
    caption(
        figure,
        f"n = {int(part['n_test'].max()):,} questions in the pool. Filled: here; open squares: paper, Table 6, on DeepMath and "
        "NuminaMath-1.5, another pair of sources. No $ signs: questions read without the signs around formulas, which the two "
        "sources write differently. Bars: 95 % bootstrap over questions of the pool.",
    )
    return figure


# What difficulty and plan depend on.

LABELLED = {"sae+metadata": Look(BLUE, "o", "SAE + metadata (phi)"), "metadata": Look(GREY, "s", "Metadata"),
            "tfidf": Look(ORANGE, "^", "TF-IDF")}  # fmt: skip


@figure_of("label_curve")
def label_curve(curve: pd.DataFrame) -> Figure:
    """Spearman of predicted with labelled difficulty against the number of labels, a line a feature set."""
    looks = plots.looks(ordered(curve["features"], LABELLED), LABELLED)
    place = curve["features"].map({name: i - (len(looks) - 1) / 2 for i, name in enumerate(looks)})
    table = curve.assign(group=curve["features"], panel="Labels", x=curve["n_labels"] * 1.05**place)
    figure = lines(table, looks, width=COLUMN_WIDTH, height=2.0, band=False, titles=False)
    axis, sizes = figure.axes[0], sorted(curve["n_labels"].unique())
    axis.set_xscale("log")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()
    axis.set(xlabel="Labelled samples |L| (log scale)", ylabel="Spearman ρ on test samples")
    axis.set_ylim(min(0.0, float(curve["ci_low"].min())) - 0.02, 1.02)
    caption(
        figure,
        f"n = {int(curve['n_test'].iloc[0]):,} test samples. Point: mean over {int(curve['n_subsets'].max())} nested random "
        "subsets (all of L is one); bar: 95 % interval over subsets and test samples. A constant prediction counts as 0.",
    )
    return figure


YARDSTICK = "k-means seed"
RANDOM_ORDERS = 0.81
"""Share moved between two random orders: 1 - 2 * 0.1 + 0.1^2."""


@figure_of("plan_sensitivity")
def plan_sensitivity(rows: pd.DataFrame) -> Figure:
    """Share of samples that move by more than a tenth of the run, a row a changed setting, beside other k-means seeds."""
    seeds, changed = rows[rows["varied"] == YARDSTICK], rows[rows["varied"] != YARDSTICK]
    groups = ordered(changed["varied"], ("K", "tau_sh", "h", "window", "rest", "unequal"))
    changed = pd.concat([changed[changed["varied"] == group] for group in groups])
    varied = changed["varied"].map(readable).replace("tau sh", r"$\tau_{sh}$")
    names = [
        f"{v} = {readable(s)} ({readable(d)})" for v, s, d in zip(varied, changed["setting"], changed["default"], strict=True)
    ]
    looks = {name: look._replace(label="") for name, look in plots.looks(groups).items()}
    table = plots.without_interval(changed).assign(row=names, look=changed["varied"], panel="", value=changed["share_moved"])
    if len(seeds):
        names.append(f"{len(seeds)} other k-means seeds")
    figure = forest(table, looks, names, labels=dict(zip(names, names, strict=True)), width=COLUMN_WIDTH, row_height=0.17)
    axis = figure.axes[0]
    axis.hlines(range(len(table)), 0, table["value"], color=[looks[name].colour for name in table["look"]], linewidth=0.8)
    if len(seeds):
        axis.axvspan(seeds["share_moved"].min(), seeds["share_moved"].max(), color=LIGHT, alpha=0.6, linewidth=0)
        axis.plot(seeds["share_moved"], np.full(len(seeds), len(table)), "|", color=BLACK, markersize=7)
    axis.axvline(RANDOM_ORDERS, color=GREY, linewidth=0.8, linestyle=":")
    axis.set(xlim=(0, 1), xlabel="Share of samples moved by more\nthan a tenth of the run")
    caption(
        figure,
        f"n = {int(rows['n'].iloc[0]):,} planned samples; one setting changed at a time (default in brackets). Grey band: range "
        "over other k-means seeds, the yardstick; dotted: two random orders.",
    )
    return figure


# Policy gradients.

LEVELS = {"prompt": "Between single prompts", "batch": "Between batches"}
GROUPINGS = ("cluster", "cluster, topics differ", "clusters, permuted", "leaf topic", "domain", "difficulty tenth")
RELATIONS = {"within": Look(BLUE, "o", "Same group"), "across": Look(ORANGE, "s", "Different groups")}
MEAN = "mean"


@figure_of("gradient_coherence")
def gradient_coherence(coherence: pd.DataFrame) -> Figure:
    """Mean cosine of policy gradients, same group against different groups, a panel for prompts and one for batches."""
    shown = coherence[coherence["relation"].isin(RELATIONS)]
    table = shown.assign(row=shown["grouping"], look=shown["relation"], panel=shown["level"].map(LEVELS),
                         xlabel="Cosine of policy gradients\n(linear to 0.1, then logarithmic)")  # fmt: skip
    table = table.sort_values("level", key=lambda level: level.map(list(LEVELS).index), kind="stable")
    figure = forest(table, RELATIONS, ordered(shown["grouping"], GROUPINGS), columns=2, shift=0.3, row_height=0.28)
    lines_of = {"random": Look(GREY, ":", "Any two"), "halves": Look(BLACK, "--", "Same prompts, new rollouts")}
    for axis, level in zip(figure.axes, ordered(shown["level"], LEVELS), strict=True):
        rows = coherence[coherence["level"] == level]
        for relation, look in lines_of.items():
            row = rows[rows["relation"] == relation].iloc[0]
            axis.axvspan(row["ci_low"], row["ci_high"], color=look.colour, alpha=0.12, linewidth=0)
            axis.axvline(row["value"], color=look.colour, linestyle=look.marker, linewidth=1, label=look.label)
        plots.symlog(axis, 0.1, (-0.05, 0.0, 0.05, 0.1, 0.2, 0.5, 1.0))
        axis.set_xlim(min(-0.03, 1.2 * rows["ci_low"].min()), 1.0)
    plots.legend(figure)
    pool = coherence[coherence["relation"] == "random"]
    n, alive, zero = (int(v) for v in (pool["n"].max(), pool["n"].min(), pool["n_zero"].max()))
    caption(
        figure,
        f"n = {n} prompts of the kept pool at the base policy, {zero} without any gradient (all rewards equal): left out between "
        f"prompts (n = {alive}), zero inside batches. Groupings without batches have none on the right. "
        "Bars and bands: 95 % bootstrap over prompts.",
    )
    return figure


@figure_of("mixing_theory", "mixing_curve")
def mixing_theory(theory: pd.DataFrame, curve: pd.DataFrame) -> Figure:
    """Appendix A with measured moments: optimum of each pair, change at the plan's share, change against the share."""
    theory, curve = theory.astype({"cluster_c": str, "cluster_d": str}), curve.astype({"cluster_c": str})
    means, pairs = theory[theory["cluster_d"] == MEAN], theory[theory["cluster_d"] != MEAN]
    everyone = means[means["cluster_c"] == MEAN].iloc[0]
    figure, axes = plots.panels(FULL_WIDTH, 2.9, 1, 3)
    left, middle, right = axes[0]
    left.hist(pairs["rho_star"], bins=np.linspace(0, 1, 11), color=SKY, edgecolor="white", linewidth=0.6)
    left.set(xlabel=r"Best share of the partner, $\rho^*$", ylabel="Ordered pairs of clusters", title="Optimum of a pair")
    change = 100 * means[["mse_change_at_h", "change_low", "change_high"]].set_axis(["value", "ci_low", "ci_high"], axis=1)
    change = change.assign(row=means["cluster_c"], look=means["cluster_c"] == MEAN)
    clusters = [MEAN, *sorted((c for c in means["cluster_c"] if c != MEAN), key=int)]
    forest_panel(middle, change, {True: Look(VERMILLION, "D"), False: Look(BLUE)}, clusters, {MEAN: "all"})
    plots.symlog(middle, 10, [-100, -10, 0, 10, 100, 1000])
    middle.axvline(0, color=BLACK, linewidth=0.8)
    middle.set(ylabel="Cluster of the batch", xlabel="Change of the error (%)\n(linear to 10, then logarithmic)",
               title=rf"At the plan's $\rho$ = {everyone['rho_h']:g}")  # fmt: skip
    part = curve[curve["cluster_c"] == MEAN]
    part = pd.DataFrame({"group": "", "x": part["rho"], "value": 100 * part["mse_change"], "ci_low": 100 * part["ci_low"],
                         "ci_high": 100 * part["ci_high"]})  # fmt: skip
    line_panel(right, part, {"": Look(VERMILLION, "", "Mixed batch")})
    right.axhline(100 * everyone["random_change"], color=GREY, linestyle="--", linewidth=1, label="Random batch")
    right.axhline(0, color=BLACK, linewidth=0.8)
    right.axvline(everyone["rho_h"], color=BLUE, linestyle=":", linewidth=1, label="Plan (h / b)")
    right.set(xlabel=r"Share of the partner, $\rho$", ylabel="Change of the error (%)", title="All clusters")
    right.legend(loc="best", fontsize=7)
    share = everyone["bias2"] / (everyone["bias2"] + everyone["variance"])
    caption(
        figure,
        f"n = {int(everyone['n_c'])} prompts, {len(pairs)} ordered pairs of clusters. Error: mean squared error of a batch "
        f"gradient as an estimate of the pool's; of a pure batch of one cluster, {100 * share:.1f} % is squared bias, the rest "
        "variance. Middle and right: partner drawn by size. Bars and band: 95 % bootstrap over prompts.",
    )
    return figure


# The RL study.

PAPER_ARMS = ("grpo", "dapo", "diff", "adarft", "gainrl", "saerl_grpo", "saerl_dapo")
STUDY_ARMS = {"grpo": Look(GREY, "s"), "saerl_grpo": Look(BLUE)}
ORDERS = ("saerl_grpo", "saerl_stretch", "minus_clus_mix", "minus_diff", "diff", "hard_to_easy")
"""SAERL, the same with its clusters spread over the run, its difficulty alone, its clusters and mixing unsorted, the label's
order, and that order turned round."""
FAMILY_TITLES = {
    "paper": "Paper's arms", "ablation": "Ablations", "mixing": "Mixing", "batch": "Batch of 4b", "filter": "Filter",
    "features": "Other features", "post_hoc": "After the first results", "order": "Other orders", "rival": "Rivals",
    "transfer": "Larger policy", "user": "Your arms",
}  # fmt: skip
SHORT = {
    "grpo": "GRPO", "dapo": "DAPO", "diff": "DIFF", "adarft": "ADARFT", "gainrl": "GAINRL", "saerl_grpo": "SAERL",
    "saerl_dapo": "SAERL on DAPO", "minus_diff": "unsorted", "minus_diff_mix": "unsorted, unmixed",
    "minus_clus_mix": "difficulty alone", "minus_mix": "h = 0", "mix_1": "h = 1", "mix_4": "h = 4", "mix_8": "h = 8",
    "saerl_4b": "SAERL, 4 b", "grpo_4b": "GRPO, 4 b", "grpo_unfiltered": "GRPO unfiltered",
    "saerl_unfiltered": "SAERL unfiltered", "saerl_tfidf": "TF-IDF", "saerl_dense": "dense", "saerl_frozen": "frozen decoder",
    "saerl_shuffled": "shuffled scores", "saerl_true": "true label", "saerl_stretch": "clusters spread",
    "saerl_back": "clusters end together", "informative_half": "informative half, twice",
    "pass_rate_order": "easy first, by pass rate", "grpo_shuffle_b": "second shuffle", "grpo_shuffle_c": "third shuffle",
    "shift": "SHIFT", "irds": "IRDS", "e2h": "E2H", "mopps": "MoPPS", "sec": "SEC", "grpo_large": "GRPO, larger",
    "saerl_grpo_large": "SAERL, larger",
}  # fmt: skip
"""Arms in the labels of figures; others are shown by their names."""


def short(arm: str) -> str:
    """The label of an arm.

    >>> short("minus_diff"), short("hard_to_easy")
    ('unsorted', 'hard to easy')
    """
    return SHORT.get(arm, readable(arm))


def _effect(axis: Axes, y: int, row: pd.Series, early: bool) -> None:
    """One comparison at height y: grey band, thin and thick interval, its point, and the paper's value."""
    colour = GREY if early else GREEN if row["holm_low"] > 0 else VERMILLION if row["holm_high"] < 0 else BLUE
    missed = float(np.nan_to_num(row["detectable"]))
    axis.barh(y, 2 * missed, left=-missed, height=0.7, color="#EDEDED", zorder=0)
    axis.plot([row["holm_low"], row["holm_high"]], [y, y], color=colour, linewidth=0.8)
    axis.plot([row["ci_low"], row["ci_high"]], [y, y], color=colour, linewidth=2.4, solid_capstyle="butt")
    axis.plot(row["difference"], y, marker="o", markersize=4.5, color="white" if early else colour,
              markeredgecolor=colour if early else "white")  # fmt: skip
    if pd.notna(row["paper_value"]):
        axis.plot(row["paper_value"], y, **plots.PAPER | {"markersize": 5})


@figure_of("study_comparisons")
def study_effects(comparisons: pd.DataFrame) -> Figure:
    """Every comparison of the outcome in points: thick the 95 % interval, thin Holm's within its family."""
    table = comparisons[comparisons["metric"] == "outcome"]
    early = table["n_seeds"] < table["family"].map(planned_seeds)
    figure, axes = plots.panels(FULL_WIDTH, 1.3 + 0.24 * (len(table) + table["family"].nunique()))
    axis, places = axes[0, 0], {}
    y = 0
    for family, part in table.groupby("family", sort=False):
        axis.text(0.005, y, FAMILY_TITLES.get(family, family), transform=axis.get_yaxis_transform(), fontsize=7.5,
                  fontweight="bold", va="center", color=GREY)  # fmt: skip
        for y, (index, row) in enumerate(part.iterrows(), start=y + 1):  # noqa: B020
            _effect(axis, y, row, bool(early[index]))
            places[y] = f"{short(row['arm'])} - {short(row['baseline'])} (n = {row['n_seeds']})"
        y += 1
    axis.axvline(0, color=BLACK, linewidth=0.8)
    axis.set_yticks(list(places), list(places.values()), fontsize=7)
    axis.set(ylim=(y - 0.4, -0.8), xlabel="second better  <  difference of the outcome (percent points)  >  first better")
    plots.light_grid(axis, "x")
    caption(
        figure,
        "Outcome: mean of the last three evaluations. n = matched seeds. Thick: 95 % interval, over seeds and problems; thin: "
        "corrected by Holm within its family. Green / red: the corrected interval excludes 0. "
        + "Open and grey: fewer seeds than planned, decides nothing. "
        * bool(early.any())
        + "Grey band: below the minimum detectable effect (power 0.8). Open square: the paper's tables, whose averages count "
        "AIME24 by Pass@8.",
    )
    return figure


def _over_seeds(groups: object, column: str) -> pd.DataFrame:
    """Mean of `column` over seeds with its 95 % t interval: a row a group of one `groupby`."""
    rows = {key: (*over_seeds(part[column]).interval(), part["seed"].nunique()) for key, part in groups}
    return pd.DataFrame(rows, index=["value", "ci_low", "ci_high", "n"]).T.rename_axis(["group", "step"]).reset_index()


@figure_of("study_runs")
def study_curves(runs: pd.DataFrame) -> Figure:
    """Accuracy, groups without a gradient, and entropy by generated rollouts, for the paper's arms."""
    runs = runs[runs["arm"].isin(PAPER_ARMS)]
    seeds, parts = runs.groupby("arm")["seed"].nunique(), []
    facts = runs.groupby(["arm", "step"])[["rollouts", "problems"]].mean().rename_axis(["group", "step"]).reset_index()
    smallest = facts.groupby("group")["problems"].transform("min")
    for column, label in (("mean_avg", "Mean Avg@k of six sets (%)"), ("zero_variance_share", "Groups without gradient"),
                          ("entropy", "Entropy (nats a token)")):  # fmt: skip
        found = _over_seeds(runs[runs[column].notna()].groupby(["arm", "step"]), column)
        apart = facts.assign(x=facts["rollouts"] / 1000, apart=(facts["problems"] > smallest) & (column == "mean_avg"))
        parts.append(found.merge(apart, on=["group", "step"]).assign(panel=label))
    arms = plots.looks(ordered(runs["arm"], PAPER_ARMS), STUDY_ARMS, {a: f"{readable(a)} ({n})" for a, n in seeds.items()})
    figure = lines(pd.concat(parts), arms, height=2.3, xlabel="Rollouts generated (thousands)", sharex=True)
    figure.axes[1].set_ylim(-0.02, 1.02)
    caption(
        figure,
        "In brackets: matched seeds. Line: mean over seeds; band and bars: 95 % t interval over seeds. Open: the first and the "
        "last evaluation, of more problems than the others and not comparable with them.",
    )
    return figure


def gaps(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Arm minus `grpo` on matched seeds: group, step, value, ci_low, ci_high, n; the interval is a 95 % t interval over seeds."""
    baseline = runs[runs["arm"] == BASELINE].set_index(["step", "seed"])[column]
    paired = runs[runs["arm"].isin(ORDERS)].join(baseline.rename("baseline"), on=["step", "seed"])
    paired = paired.assign(gap=paired[column] - paired["baseline"]).dropna(subset=["gap"])
    found = _over_seeds(paired.groupby(["arm", "step"]), "gap")
    return found[found["n"] > 1].astype({"n": int, "step": int})


@figure_of("study_runs")
def study_gap(runs: pd.DataFrame) -> Figure:
    """Fixed orders against a random one, paired by seed: when the difference arises, and on which problems it ends."""
    over, last = gaps(runs, "mean_avg"), runs[runs["step"] == runs["step"].max()]
    sets = [name for name in EVAL_SETS if f"avg_{name}" in runs]
    end = pd.concat([gaps(last, f"avg_{name}").assign(place=i) for i, name in enumerate(sets)])
    n = over.groupby("group")["n"].max()
    arms = plots.looks(ordered(over["group"], ORDERS), STUDY_ARMS, {arm: f"{short(arm)} ({n[arm]})" for arm in n.index})
    shift = end["group"].map({arm: 0.14 * (i - (len(arms) - 1) / 2) for i, arm in enumerate(arms)})
    figure, axes = plots.panels(FULL_WIDTH, 3.1, 1, 2, sharey=True)
    left, right = axes[0]
    line_panel(left, over.assign(x=over["step"]), arms)
    line_panel(right, end.assign(x=end["place"] + shift), arms, band=False, joined=False)
    for axis in (left, right):
        axis.axhline(0, color=BLACK, linewidth=0.8)
    left.set(xlabel="Step", ylabel="Difference to GRPO (points)")
    left.set_title("Mean of six sets", fontsize=7.5)
    right.set_xticks(range(len(sets)), [readable(name) for name in sets], fontsize=7)
    right.grid(False, axis="x")
    right.set_title("Last evaluation, by set", fontsize=7.5)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=min(5, len(arms)))
    caption(
        figure,
        "In brackets: matched seeds. Bars and bands: 95 % t interval over seeds, uncorrected. Evaluations before the last are of "
        "fewer problems; every difference is of the same problems. Unsorted: clusters and mixing without difficulty.",
    )
    return figure


@figure_of("study_pilot")
def study_pilot(pilot: pd.DataFrame) -> Figure:
    """The pilot's learning rates, and the arms behind the number of seeds."""
    figure, axes = plots.panels(FULL_WIDTH, 2.5, 1, 2)
    left, right = axes[0]
    rates = pilot[pilot["part"] == "learning rate"]
    left.plot(rates["learning_rate"], rates["outcome"], "o", color=BLUE)
    left.plot(rates.groupby("learning_rate")["outcome"].mean(), color=BLUE)
    left.set_xscale("log")
    values = sorted(rates["learning_rate"].unique())
    left.set_xticks(values, [f"{value:.1e}" for value in values])
    left.set_xticks([], minor=True)
    left.set(xlabel="Learning rate", ylabel="Outcome of grpo (%)", title="Learning rate, reserved seeds")
    seeds = pilot[pilot["part"] == "seeds"].pivot(index="seed", columns="arm", values="outcome")
    others = [name for name in seeds if name != BASELINE]
    for place, (arm, look) in enumerate(plots.looks(others).items()):
        right.plot(np.full(len(seeds), place), seeds[arm] - seeds[BASELINE], "o", color=look.colour)
    right.axhline(0, color=BLACK, linewidth=0.8)
    right.set_xticks(range(len(others)), others)
    right.set(xlim=(-0.5, len(others) - 0.5), ylabel="Difference to grpo (points)", title="Paired differences")
    for axis in axes[0]:
        plots.light_grid(axis)
    counts = f"n = {rates['seed'].nunique()} seeds a rate, {len(seeds)} seeds a pair"
    caption(figure, f"Each point is a run; {counts}, none used by the study.")
    return figure


@figure_of("study_paper_tables")
def study_sets(tables: pd.DataFrame) -> Figure:
    """Table 4 set by set: what each arm gains over its baseline at the last evaluation, here and in the paper."""
    gains = tables[(tables["table"] == "4 gain") & (tables["n_seeds"] > 0)]
    n = gains.groupby("arm")["n_seeds"].max()
    names = {b: f"{'mean' if b == 'mean' else readable(s)} ({'six sets' if b == 'mean' else b})" for b, s in BENCHMARKS.items()}
    panel = [f"{readable(arm)} - {readable(baseline_of(arm))} (n = {n[arm]})" for arm in gains["arm"]]
    table = gains.assign(row=gains["benchmark"], value=gains["our_value"], paper=gains["paper_value"], panel=panel, look="",
                         xlabel="Gain (points)")  # fmt: skip
    figure = forest(table, {"": Look(BLUE, label="here")}, list(BENCHMARKS), labels=names, share_x=True)
    for axis in figure.axes:
        axis.axvline(0, color=BLACK, linewidth=0.8)
    plots.legend(figure)
    caption(
        figure,
        "First arm minus second at the last evaluation. Dot: here, with a 95 % t interval over n matched seeds, uncorrected. "
        "Square: the paper's single runs on the benchmark in brackets, which the set stands for. Avg@8; the hardest set by "
        "Pass@8, as AIME24 in the paper.",
    )
    return figure


@figure_of("study_mixing")
def study_mixing(mixing: pd.DataFrame) -> Figure:
    """Figure 3: accuracy against h and against in-batch diversity, both relative to h = 0."""
    figure, axes = plots.panels(FULL_WIDTH, 2.7, 1, 2, sharey=True)
    here = mixing.assign(group="", value=mixing["difference"])
    look = {"": Look(BLUE, "o", f"here (n = {mixing['n_seeds'].min()} seeds)")}
    paper = plots.PAPER | {"label": "paper (one run)", "linewidth": 0.8}
    share = mixing["paper_swapped"] / 1.28
    for axis, x, paper_x, joined in (
        (axes[0, 0], share, share, True),
        (axes[0, 1], mixing["diversity_2d"], mixing["paper_diversity"], False),
    ):
        line_panel(axis, here.assign(x=x), look, band=False, joined=joined)
        axis.plot(paper_x, mixing["paper_difference"], **paper | {"linestyle": "--" if joined else "none"})
        axis.axhline(0, color=GREY, linewidth=0.8)
    for row in mixing.itertuples():
        top = row.difference if np.isnan(row.ci_high) else row.ci_high
        axes[0, 1].annotate(f"h = {row.swapped_per_batch}", (row.diversity_2d, top), xytext=(0, 4), textcoords="offset points",
                            ha="center", fontsize=7, color=BLUE)  # fmt: skip
    axes[0, 1].margins(y=0.1)
    axes[0, 0].set(xlabel="Share of the batch to swap, h / b (%)", ylabel="Accuracy minus h = 0 (points)")
    axes[0, 1].set_xlabel("In-batch diversity in 2-D, relative to h = 0")
    axes[0, 0].legend(loc="best")
    caption(
        figure,
        "Here: mean of the last three evaluations, difference to h = 0 paired by seed with a 95 % t interval, uncorrected; "
        "b = 32. Paper: read off its Figure 3, step 800, b = 128. Diversity: mean distance to the 5 nearest neighbours in the "
        "batch. Batches without an admissible partner swap nothing, so that less was swapped than asked for (study_plans.csv).",
    )
    return figure


PAPER_HOURS = {"encode_s": 0.5, "rollouts_s": 17.33}
"""H100-hours for `PAPER_SAMPLES` samples (paper, section 5)."""
PAPER_SAMPLES = 103_022


@figure_of("preparation_cost")
def preparation_cost(cost: pd.DataFrame) -> Figure:
    """Time a prompt of SAE encoding and of ADARFT's rollouts, here and in the paper."""
    names = {"encode_s": "SAE encoding", "rollouts_s": "ADARFT's rollouts"}
    table = plots.without_interval(cost.melt(["prompts"], list(names), "row", "seconds"))
    table = table.assign(value=1000 * table["seconds"] / table["prompts"], look="", panel="",
                         paper=3.6e6 * table["row"].map(PAPER_HOURS) / PAPER_SAMPLES)  # fmt: skip
    figure = forest(
        table, {"": Look(BLUE, label="here, each part")}, list(names), labels=names, width=COLUMN_WIDTH, row_height=0.3
    )
    figure.axes[0].set_xscale("log")
    figure.axes[0].set_xlabel("Milliseconds a prompt (log scale)")
    plots.legend(figure)
    caption(
        figure,
        f"n = {len(cost)} disjoint parts of {int(cost['prompts'].iloc[0])} prompts, CPU; the paper: one H100, "
        f"{PAPER_SAMPLES:,} samples.",
    )
    return figure
