"""The figures of the method, and drawing every figure from `figures/data/*.csv` alone.

Needs no model, no GPU and no download; the same tables give the same bytes. Figures of studies are in `figures_studies`.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from saerl_lib.report import figures_studies, plots
from saerl_lib.report.figures_studies import filter_panels
from saerl_lib.report.plots import (
    ARMS,
    BLACK,
    BLUE,
    FIGURES,
    FULL_WIDTH,
    GREEN,
    GREY,
    LIGHT,
    ORDERS,
    SHADE,
    SKY,
    VERMILLION,
    Look,
    caption,
    figure_of,
    forest,
    lines,
    ordered,
    readable,
    span,
)
from saerl_lib.report.tables import TableError, is_true, read_table


def draw(name: str, data_folder: Path, figure_folder: Path) -> Path:
    """Draw figure `name` from its CSV tables; returns the PNG, the PDF lies beside it.

    Raises TableError for an unknown figure, a missing table or a missing column (naming the notebook that writes it),
    ArtifactError when the folder cannot be written.
    """
    if name not in FIGURES:
        raise TableError(f"figure {name!r} is not known; choose one of {', '.join(FIGURES)}")
    tables, function = FIGURES[name]
    figure = function(*(read_table(table, data_folder) for table in tables))
    return plots.save(figure, name, figure_folder)


def draw_all(data_folder: Path, figure_folder: Path) -> list[Path]:
    """Draw every figure whose tables are there; raises as `draw` does."""
    there = {path.stem for path in data_folder.glob("*.csv")}
    return [draw(name, data_folder, figure_folder) for name, (tables, _) in FIGURES.items() if there.issuperset(tables)]


# The representation and what is read from it.

QUALITY = {"reported": Look(BLUE), "met": Look(GREEN), "outside": Look(VERMILLION, "X")}


@figure_of("sae_quality")
def sae_quality(quality: pd.DataFrame) -> Figure:
    """A panel a quantity, a row an encoder, the allowed range shaded; a cross is outside it."""
    judged, met = quality["met"].notna(), is_true(quality["met"])
    table = plots.without_interval(quality).assign(
        panel=quality["quantity"].map(readable),
        row=quality["encoder"],
        look=np.select([~judged, met], ["reported", "met"], "outside"),
    )
    figure = forest(table, QUALITY, list(dict.fromkeys(table["row"])), columns=4, row_height=0.32)
    for axis, (_, part) in zip(figure.axes, table.groupby("panel", sort=False), strict=False):
        low, high = part["low"].min(), part["high"].max()
        largest, smallest = (f(part[["value", "low", "high"]].to_numpy(dtype=float)) for f in (np.nanmax, np.nanmin))
        left, right = min(smallest, 0.0), largest + 0.25 * (largest - min(smallest, 0.0) or 1.0)
        if not (math.isnan(low) and math.isnan(high)):
            axis.axvspan(left if math.isnan(low) else low, right if math.isnan(high) else high, color=SHADE, zorder=0)
        for place, (_, row) in enumerate(part.iterrows()):
            axis.annotate(
                plots.number(float(row["value"])), (row["value"], place), (0, 5), textcoords="offset points", ha="center"
            )
        axis.set_xlim(left, right)
    tokens = quality["n_tokens"].dropna()
    n = f"n = {int(tokens.max()):,} held-out tokens. " if len(tokens) else ""
    caption(figure, f"{n}Shaded: allowed range; green: inside; blue: only reported; cross: outside.")
    return figure


@figure_of("sae_map")
def sae_map(points: pd.DataFrame) -> Figure:
    """Two views of the same projection of SAE space: coloured by domain and by cluster."""
    figure, axes = plots.panels(FULL_WIDTH, 3.6, 1, 2)
    for axis, column in zip(axes[0], ("domain", "cluster"), strict=True):
        groups = plots.looks(ordered(points[column]))
        for group, look in groups.items():
            part = points[points[column] == group]
            axis.plot(part["x"], part["y"], look.marker, color=look.colour, markersize=2, alpha=0.55, markeredgewidth=0,
                      rasterized=True, label=look.label)  # fmt: skip
            if column == "cluster":
                box = {"boxstyle": "circle,pad=0.2", "fc": "white", "ec": look.colour}
                middle = (part["x"].median(), part["y"].median())
                axis.annotate(str(group), middle, ha="center", va="center", fontsize=8, fontweight="bold", bbox=box)
        axis.set(xticks=[], yticks=[], xlabel="Projection 1", title=f"By {column}")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=5 if column == "cluster" else 3, markerscale=2.5,
                    handletextpad=0.1, columnspacing=0.8)  # fmt: skip
    axes[0, 0].set_ylabel("Projection 2")
    caption(figure, f"n = {len(points):,} samples, the same points in both panels; numbers mark the median of a cluster.")
    return figure


@figure_of("calibration")
def calibration(bins: pd.DataFrame) -> Figure:
    """Reliability of three difficulty scores: mean label against mean prediction by bin, the diagonal is perfect."""
    scores = ordered(bins["score"], ("raw", "global", "ranking"))
    counts = bins.groupby("score")["n"].sum()
    names = {score: f"{readable(score)} score (n = {counts[score]:,})" for score in scores}
    table = bins.rename(columns={"label_mean": "value", "predicted_mean": "x"}).assign(group="", panel=bins["score"].map(names))
    table = pd.concat([table[table["score"] == score] for score in scores])
    figure = lines(table, {"": Look(BLUE)}, height=2.3, band=False, xlabel="Predicted difficulty", ylabel="Difficulty label",
                   sharex=True, sharey=True)  # fmt: skip
    numbers = table[["x", "value", "ci_low", "ci_high"]].to_numpy(dtype=float)
    pad = 0.05 * (np.nanmax(numbers) - np.nanmin(numbers) or 1.0)
    limits = (np.nanmin(numbers) - pad, np.nanmax(numbers) + pad)
    for axis in figure.axes:
        axis.plot(limits, limits, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        axis.set(xlim=limits, ylim=limits, aspect="equal")
    caption(figure, "Held-out labelled samples in bins of equal size; bars: 95 % interval of the bin's mean; dashed: perfect.")
    return figure


@figure_of("cluster_topics")
def cluster_topics(counts: pd.DataFrame) -> Figure:
    """Heat map: share of each domain within each cluster, the cluster's size below."""
    table = counts.pivot_table(index="domain", columns="cluster", values="n", aggfunc="sum", fill_value=0).sort_index()
    totals = table.sum(axis=0)
    shares = (table / totals.where(totals > 0, 1)).to_numpy()
    figure, axes = plots.panels(FULL_WIDTH, 1.3 + 0.3 * len(table))
    axis = axes[0, 0]
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, x in np.ndindex(*shares.shape) if shares.shape[1] <= 16 else ():
        axis.text(x, y, f"{100 * shares[y, x]:.0f}", ha="center", va="center", fontsize=7,
                  color="white" if shares[y, x] > 0.55 else "black")  # fmt: skip
    axis.set_xticks(range(len(totals)), [f"{c}\n{int(n):,}" for c, n in totals.items()])
    axis.set_yticks(range(len(table)), [readable(name) for name in table.index])
    axis.tick_params(length=0)
    axis.set(xlabel="Cluster, and its number of samples", title="Domains by cluster")
    figure.colorbar(image, ax=axis, label="Share of the cluster", shrink=0.9)
    caption(figure, f"n = {int(totals.sum()):,} samples. Cells: percent of the cluster; a column adds up to 100.")
    return figure


CLUSTER_TEXT = (
    "n = {n:,} samples. Bar: quartiles of the label; line: median; diamond: mean. A label names the most frequent leaf topics; "
    "mixed: the first of them has less than a quarter of the cluster."
)
REAL_CLUSTER_TEXT = (
    "n = {n:,} problems of MATH. Difficulty: level 1 to 5; bar: its quartiles; line: median; diamond: mean. A label names the "
    "most frequent subjects (seven in all, at most 2.8 bits); mixed: the first of them has less than a quarter of the cluster."
)


@figure_of("cluster_audit")
def cluster_audit(clusters: pd.DataFrame, text: str = CLUSTER_TEXT) -> Figure:
    """A row a cluster, easiest above: quartiles of difficulty, topic entropy, words of the solution, number of samples."""
    table = clusters.sort_values(["difficulty_median", "cluster"], kind="stable").reset_index(drop=True)
    y = np.arange(len(table))
    figure, axes = plots.panels(
        FULL_WIDTH, 1.3 + 0.36 * len(table), 1, 4, sharey=True, gridspec_kw={"width_ratios": [1.6, 1, 1, 1]}
    )
    first = axes[0, 0]
    first.hlines(y, table["difficulty_q25"], table["difficulty_q75"], color=SKY, linewidth=6)
    first.plot(table["difficulty_median"], y, "|", color=BLACK, markersize=9, markeredgewidth=1.6)
    first.plot(table["difficulty_mean"], y, "D", color=VERMILLION, markersize=3.5)
    first.set(xlabel="Difficulty label", title="Difficulty")
    columns = (("topic_entropy_bits", "Bits", "Topic entropy"), ("solution_words_mean", "Words (mean)", "Solution length"),
               ("n", "Samples", "Size"))  # fmt: skip
    for axis, (column, unit, title) in zip(axes[0, 1:], columns, strict=True):
        plots.bar_panel(axis, table[column])
        axis.set(xlabel=unit, title=title)
    names = [textwrap.shorten(str(label), 58, placeholder=" ...") for label in table["label"]]
    plots.row_axis(first, [textwrap.fill(f"{c}  {name}", 30) for c, name in zip(table["cluster"], names, strict=True)])
    caption(figure, text.format(n=int(table["n"].sum())))
    return figure


@figure_of("real_cluster_audit")
def real_cluster_audit(clusters: pd.DataFrame) -> Figure:
    """Table 10 on MATH, drawn as `cluster_audit`."""
    return cluster_audit(clusters, REAL_CLUSTER_TEXT)


@figure_of("feature_groups")
def feature_groups(groups: pd.DataFrame, of: str = "samples", source: str = "(240 latents a block)") -> Figure:
    """Share of LightGBM's gain by feature group with its interval; the top 20 and 100 features, here and in the paper."""
    names = {g: f"{readable(g)} ({int(n):,})" for g, n in zip(groups["group"], groups["n_features"], strict=True)}
    share = 100 * groups[["gain_share", "ci_low", "ci_high"]].rename(columns={"gain_share": "value"}).astype(float)
    parts = [share.assign(row=groups["group"], paper=np.nan, panel="Gain by feature group", xlabel="Share of total gain (%)")]
    for top in (20, 100):
        part = pd.DataFrame({"row": groups["group"], "value": groups[f"top_{top}"], "paper": groups[f"paper_top_{top}"]})
        parts.append(plots.without_interval(part).assign(panel=f"Among the top {top} by gain", xlabel="Features"))
    figure = forest(pd.concat(parts), {"": Look(BLUE, label="here")}, list(names), labels=names, row_height=0.24)
    for axis in figure.axes:
        axis.set_xlim(left=min(0.0, axis.get_xlim()[0]))
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    plots.legend(figure)
    caption(
        figure,
        f"n = {int(groups['n'].max()):,} {of}; number of features of a group in brackets. LightGBM predicts the cluster label; "
        f"bars: 95 % interval over bootstrap resamples of the {of}. Open: paper, section 5.4 {source}.",
    )
    return figure


@figure_of("real_feature_groups")
def real_feature_groups(groups: pd.DataFrame) -> Figure:
    """Table 11 on MATH, drawn as `feature_groups`."""
    return feature_groups(groups, "problems of MATH", "on its own data")


@figure_of("filter", "filter_scores", name="filter")
def filter_rules(rules: pd.DataFrame, scores: pd.DataFrame) -> Figure:
    """Score histograms by source; purity and recall of each rule, filled here, open in the paper (Table 6)."""
    figure, axes = plots.panels(FULL_WIDTH, 1.4 + 0.24 * len(rules), 1, 3, gridspec_kw={"width_ratios": [1.25, 1, 1]})
    axis = axes[0, 0]
    sources = plots.looks(ordered(scores["source"], ("target", "parent")))
    for (source, look), dashes in zip(sources.items(), ("-", "--", ":", "-.") * len(sources), strict=False):
        part = scores[scores["source"] == source].sort_values("bin_low")
        edges = np.append(part["bin_low"].to_numpy(), part["bin_high"].iloc[-1])
        axis.stairs(part["share"], edges, color=look.colour, linestyle=dashes, linewidth=1.4, label=f"source: {look.label}")
    axis.set(xlabel="Filter score", ylabel="Share of the source", title="Scores by source", ylim=(0, None))
    kept = {rule: f"{readable(rule)}\n({int(n):,} kept)" for rule, n in zip(rules["rule"], rules["kept"], strict=True)}
    filter_panels(axes[0, 1:], rules.assign(look=""), {"": Look(BLUE, label="here")}, kept)
    plots.legend(figure)
    caption(
        figure,
        f"n = {int(rules['n_pool'].max()):,} samples in the pool. Filled: here; open: paper, Table 6, on DeepMath and "
        "NuminaMath-1.5. Purity: share of the kept from the target source; recall: share of the target source kept.",
    )
    return figure


# The batch plan.

QUANTITIES = {"dominant_share": "Share of the\nlargest cluster", "n_clusters": "Clusters\nin the batch",
              "mean_ranking_score": "Mean ranking score\n(difficulty units)"}  # fmt: skip
SPACES = {"pca2": "2-D projection (PCA)", "full": "Full standardised space"}


@figure_of("batch_composition")
def batch_composition(batches: pd.DataFrame) -> Figure:
    """Three panels over training steps, a line an order: share of the largest cluster, clusters, mean ranking score."""
    orders = plots.looks(ordered(batches["order"], ORDERS), ORDERS)
    steps = int(batches.groupby("order").size().max())
    window = max(1, steps // 20)
    long = batches.melt(["order", "step"], list(QUANTITIES), "panel", "raw").sort_values("step", kind="stable")
    smooth = long.groupby(["panel", "order"])["raw"].transform(lambda v: v.rolling(window, center=True, min_periods=1).mean())
    long = plots.without_interval(long.assign(value=smooth, x=long["step"], group=long["order"]))
    figure = lines(
        long, orders, columns=1, height=1.25, every=max(1, steps // 8), xlabel="Optimiser step", titles=False, sharex=True
    )
    for axis, (column, label) in zip(figure.axes, QUANTITIES.items(), strict=True):
        for order, look in orders.items():
            part = batches[batches["order"] == order]
            axis.plot(part["step"], part[column], look.marker, color=look.colour, markersize=1.8, alpha=0.35, markeredgewidth=0)
        axis.set_ylabel(label)
    figure.axes[0].set(ylim=(0, 1.05), title="What a batch holds along the run")
    figure.axes[1].set_ylim(bottom=0)
    smoothing = f"rolling mean over {window} steps" if window > 1 else "each step, not smoothed"
    caption(figure, f"n = {steps} batches an order. Faint: each batch; line: {smoothing}.")
    return figure


@figure_of("inbatch_diversity")
def inbatch_diversity(diversity: pd.DataFrame) -> Figure:
    """Mean distance between nearest neighbours of a batch against the number of exchanged samples, a panel a space."""
    orders, spaces = plots.looks(ordered(diversity["order"], ORDERS), ORDERS), ordered(diversity["space"], SPACES)
    place = diversity["order"].map({order: i - (len(orders) - 1) / 2 for i, order in enumerate(orders)})
    x = diversity["swapped_per_batch"] + 0.03 * max(1, int(diversity["swapped_per_batch"].max())) * place
    table = diversity.assign(group=diversity["order"], x=x, panel=diversity["space"].map(lambda s: SPACES.get(s, readable(s))))
    table = pd.concat([table[table["space"] == space] for space in spaces])
    figure = lines(table, orders, columns=2, width=min(FULL_WIDTH, 0.4 + 3.0 * len(spaces)), band=False,
                   xlabel="Samples exchanged in a batch, h", ylabel="Mean nearest-neighbour\ndistance in a batch")  # fmt: skip
    for axis, space in zip(figure.axes, spaces, strict=True):
        for order, part in diversity[diversity["space"] == space].groupby("order"):
            if len(part) == 1:
                axis.axhline(float(part["value"].iloc[0]), color=orders[order].colour, linewidth=0.8, linestyle=":")
        axis.set_xticks(sorted(diversity["swapped_per_batch"].unique()))
        axis.margins(x=0.12)
    caption(
        figure,
        f"n = {span(diversity['n_batches'])} batches a point; bars: 95 % interval over batches; dotted: level of an order with "
        "one h. Points of equal h are set apart sideways.",
    )
    return figure


PATH = ("cluster", "difficulty", "filter", "batch", "swap")


def _contributions(axis: Axes, parts: pd.DataFrame, title: str, unit: str) -> None:
    """What leads from the intercept to a score: latents keep block/number, metadata features go by their words."""
    rows = parts[parts["item"] != "intercept"].reset_index(drop=True)
    values = rows["value"].to_numpy(dtype=float)
    plots.bar_panel(axis, values, np.where(values < 0, BLUE, VERMILLION).tolist(), "{:+.2f}".format)
    items = zip(rows["item"].astype(str), rows["n"].fillna(0), strict=True)
    names = [f"{int(n):,} others" if item == "others" else item for item, n in items]
    names = [readable(name.removeprefix("metadata/")) if name.startswith("metadata/") else name for name in names]
    plots.row_axis(axis, names)
    axis.grid(False)
    axis.axvline(0, color=BLACK, linewidth=0.6)
    start = float(parts.loc[parts["item"] == "intercept", "value"].iloc[0])
    axis.set(title=f"{title}: from {start:.2f} to {start + values.sum():.2f}", xlabel=unit)


def _score_in_pool(axis: Axes, pool: pd.DataFrame, score: pd.Series) -> None:
    axis.stairs(100 * pool["value"], np.append(pool["low"], pool["high"].iloc[-1]), fill=True, color=LIGHT)
    if math.isfinite(score["low"]):
        axis.axvspan(score["low"], score["high"], color=SKY, alpha=0.35, linewidth=0, ymax=0.8, label=f"{score['note']} interval")
    axis.axvline(float(score["value"]), color=VERMILLION, ymax=0.8, label="this sample")
    axis.set(ylim=(0, 130 * pool["value"].max()), xlabel="Ranking score r (difficulty units)", ylabel="Share of the pool (%)",
             title="Difficulty in the pool")  # fmt: skip
    axis.legend(loc="upper center", ncols=2, columnspacing=1.0)


def _its_batch(axis: Axes, batch: pd.DataFrame) -> None:
    axis.set_title("Its batch")
    if batch.empty:
        axis.text(0.5, 0.5, "no batch:\ndropped by the filter", ha="center", va="center", transform=axis.transAxes)
        axis.set(xticks=[], yticks=[])
        return
    clusters = plots.looks(ordered(batch["cluster"].astype(int)))
    for row in batch.itertuples():
        look = clusters[int(row.cluster)]
        axis.plot(row.slot, row.value, look.marker, color=look.colour, markersize=6)
        if row.note == "this sample":
            axis.plot(row.slot, row.value, "o", color=BLACK, markerfacecolor="none", markersize=12)
        if len(batch) <= 16:
            axis.annotate(str(int(row.cluster)), (row.slot, row.value), (0, 9), textcoords="offset points", ha="center")
    axis.margins(x=0.06, y=0.3)
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.set(xlabel="Slot (above the mark: cluster)", ylabel="Ranking score r")
    plots.light_grid(axis, "y")


@figure_of("sample_audit")
def sample_audit(table: pd.DataFrame) -> Figure:
    """One sample's decision path: a line a decision, contributions to both scores, its place in the pool, its batch."""
    part = {name: rows.reset_index(drop=True) for name, rows in table.groupby("part", sort=False)}
    said = dict(zip(part["path"]["item"], part["path"]["note"], strict=True))
    figure, axes = plots.panels(FULL_WIDTH, 5.9, 2, 2, gridspec_kw={"height_ratios": [1.35, 1]})
    text = [textwrap.fill(f"{name.capitalize()}: {said[name]}", 118, subsequent_indent="    ") for name in PATH if name in said]
    head = "\n".join([f"Decision path of {table['sample_id'].iloc[0]}", *text])
    figure.suptitle(head, fontsize=7.5, x=0.01, ha="left", linespacing=1.5)
    _contributions(axes[0, 0], part["difficulty"], "Raw difficulty", "Contribution (difficulty units)")
    _contributions(axes[0, 1], part["quality"], "Filter log-odds", "Contribution (log-odds)")
    _score_in_pool(axes[1, 0], part["pool"], part["score"].iloc[0])
    _its_batch(axes[1, 1], part.get("batch", table.iloc[:0]))
    caption(
        figure,
        f"n = {int(part['pool']['n'].max()):,} samples in the pool; interval from the out-of-fold residuals of "
        f"{int(part['score']['n'].iloc[0]):,} labelled samples. Names: block/latent of the SAE, or a metadata feature. "
        "Contributions lead from the intercept to the score. Ring: this sample.",
    )
    return figure


# Training and evaluation.


@figure_of("training_curves")
def training_curves(curves: pd.DataFrame) -> Figure:
    """Reward and share of groups without variance by step: thick the mean over seeds, thin each seed."""
    seeds = curves.groupby("arm")["seed"].nunique()
    arms = plots.looks(ordered(curves["arm"], ARMS), ARMS, {arm: f"{arm} (n = {n} seeds)" for arm, n in seeds.items()})
    window = max(1, int(curves["step"].nunique()) // 20)
    titles = {"reward_mean": "Mean reward (0 to 1)", "zero_variance_share": "Share of groups of equal rewards (no gradient)"}
    runs = curves.melt(["arm", "seed", "step"], list(titles), "panel", "raw").sort_values("step", kind="stable")
    smooth = runs.groupby(["panel", "arm", "seed"])["raw"].transform(
        lambda v: v.rolling(window, center=True, min_periods=1).mean()
    )
    runs = runs.assign(value=smooth, panel=runs["panel"].map(titles))
    means = runs.groupby(["panel", "arm", "step"], sort=False)["value"].mean().reset_index()
    means = plots.without_interval(means.rename(columns={"arm": "group", "step": "x"}))
    figure = lines(means, arms, columns=2, every=max(1, window * 20 // 8), xlabel="Optimiser step", sharex=True)
    for axis, title in zip(figure.axes, dict.fromkeys(means["panel"]), strict=True):
        for (arm, _), part in runs[runs["panel"] == title].groupby(["arm", "seed"]):
            axis.plot(part["step"], part["value"], color=arms[arm].colour, linewidth=0.6, alpha=0.5)
    figure.axes[1].set_ylim(0, 1.02)
    smoothing = f"rolling mean over {window} steps" if window > 1 else "each step, not smoothed"
    caption(figure, f"Thick: mean over seeds; thin: each seed; {smoothing}.")
    return figure


def _set_panel(part: pd.DataFrame) -> pd.DataFrame:
    """Rows for `lines` of one evaluation set: mean of the seeds, lowest and highest; larger evaluations stand apart.

    The metric is the one with the most evaluated steps, on a tie Pass@k for the hardest set; Pass@k of one k alone.
    """
    name = part["eval_set"].iloc[0]
    steps = part.groupby("metric")["step"].nunique()
    metric = max(sorted(steps.index), key=lambda m: (steps[m], m == ("pass_at_k" if name == "hardest" else "avg_at_k")))
    part = part[part["metric"] == metric]
    steps = part.groupby(["n_problems", "n_samples"])["step"].nunique()
    sizes = sorted(steps.index, key=lambda pair: (-steps[pair], pair))
    sizes = [pair for pair in sizes if metric != "pass_at_k" or pair[1] == sizes[0][1]]
    text = f"{sizes[0][0]} x {sizes[0][1]}" + "".join(f", open {p} x {s}" for p, s in sizes[1:])
    title = "mean of the sets" if name == "all" else readable(name)
    found = part.groupby(["arm", "n_problems", "n_samples", "step"])["value"].agg(["mean", "min", "max"]).reset_index()
    pairs = pd.Series(list(zip(found["n_problems"], found["n_samples"], strict=True)), index=found.index)
    found = found.assign(apart=pairs != sizes[0], panel=f"{title}, {readable(metric).replace(' at ', '@')}\n{text}")[
        pairs.isin(sizes)
    ]
    return found.rename(columns={"arm": "group", "step": "x", "mean": "value", "min": "ci_low", "max": "ci_high"})


@figure_of("learning_curves")
def learning_curves(curves: pd.DataFrame) -> Figure:
    """A panel an evaluation set and their mean: accuracy by step, mean over seeds, band from lowest to highest seed."""
    sets, seeds = ordered(curves["eval_set"], figures_studies.EVAL_SETS), curves.groupby("arm")["seed"].nunique()
    arms = plots.looks(ordered(curves["arm"], ARMS), ARMS)
    table = pd.concat([_set_panel(curves[curves["eval_set"] == name]) for name in sets])
    figure = lines(table, arms, columns=4, height=1.8, xlabel="Optimiser step", ylabel="Accuracy (0 to 1)", sharex=True)
    count = ", ".join(f"{arm} {seeds[arm]}" for arm in arms)
    caption(
        figure,
        f"Line: mean over seeds (n: {count}); band and bars: lowest to highest seed, not a confidence interval. "
        "Under each title: problems x completions a problem (k); open marks: the larger evaluation.",
    )
    return figure


@figure_of("paired_difference")
def paired_difference(differences: pd.DataFrame) -> Figure:
    """saerl minus grpo in percent points by evaluation set, with 95 % intervals and the minimum detectable effect."""
    order = ordered(differences["eval_set"], figures_studies.EVAL_SETS)
    table = differences.assign(place=differences["eval_set"].map(order.index)).sort_values(["place", "metric"], kind="stable")
    names = [f"{'mean of the sets' if s == 'all' else readable(s)}, {readable(m).replace(' at ', '@')}"
             for s, m in zip(table["eval_set"], table["metric"], strict=True)]  # fmt: skip
    table = table.assign(panel="Paired difference by evaluation set", row=names, value=table["difference"],
                         look=np.where(table["eval_set"] == "all", "mean", "set"))  # fmt: skip
    figure = forest(table, {"set": Look(BLUE), "mean": Look(VERMILLION, "D")}, names, row_height=0.27)
    axis, effect = figure.axes[0], np.nan_to_num(table["minimum_detectable_effect"].to_numpy(dtype=float))
    axis.barh(np.arange(len(table)), 2 * effect, left=-effect, height=0.62, color="#E9E9E9", zorder=0)
    axis.use_sticky_edges = False
    axis.axvline(0, color=BLACK, linewidth=0.8)
    axis.set_xlabel("saerl minus grpo at the last step (percent points)")
    right = axis.twinx()
    problems = ["" if pd.isna(n) else f", {int(n):,} problems" for n in table["n_problems"]]
    plots.row_axis(right, [f"{d:+.2f}{p}" for d, p in zip(table["difference"], problems, strict=True)])
    right.spines["left"].set_visible(False)
    right.tick_params(axis="y", length=0)
    caption(
        figure,
        f"n = {span(table['n_seeds'])} matched seeds; bars: 95 % interval. Grey: below the minimum detectable effect, a true "
        "difference that would be found with probability 0.8 at alpha 0.05.",
    )
    return figure
