"""Every figure, drawn from `figures/data/*.csv` alone: no model, no GPU, no download; the same tables give the same bytes.

A function takes the tables of its figure and returns the panels with their small print. Figures of the world, of real data and
of the study that look alike are one function, registered once a figure with what differs.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from saerl_lib.report import plots
from saerl_lib.report.plots import BLACK, BLUE, GREY, ORANGE, Look, figure_of, forest, lines, looks, ordered, panels, readable
from saerl_lib.report.statistics import over_seeds
from saerl_lib.report.study import BASELINE, BENCHMARKS, PASS_SET, baseline_of, planned_seeds
from saerl_lib.report.tables import TableError, allowed, is_true, number, read_table

Drawn = tuple[Figure, str]
"""The panels and their small print."""


def draw(name: str, data_folder: Path, figure_folder: Path) -> Path:
    """Draw figure `name` from its CSV tables; returns the PNG, the PDF lies beside it.

    Raises TableError for an unknown figure, a missing table or a missing column (naming the notebook that writes it),
    ArtifactError when the folder cannot be written.
    """
    if name not in plots.FIGURES:
        raise TableError(f"figure {name!r} is not known; choose one of {', '.join(plots.FIGURES)}")
    tables, function = plots.FIGURES[name]
    return plots.save(function(*(read_table(table, data_folder) for table in tables)), name, figure_folder)


def draw_all(data_folder: Path, figure_folder: Path) -> list[Path]:
    """Draw every figure whose tables are there; raises as `draw` does."""
    there = {path.stem for path in data_folder.glob("*.csv")}
    return [draw(name, data_folder, figure_folder) for name, (tables, _) in plots.FIGURES.items() if there.issuperset(tables)]


EVAL_SETS = ("easy_a", "easy_b", "mid_a", "mid_b", "hard", "hardest", "all")
METRICS = {"accuracy": "Accuracy", "spearman": "Spearman rho", "roc_auc": "ROC-AUC", "pearson": "Pearson r"}
"""Metrics that ladders draw; of RMSE and MAE only the figure of the world's probes."""
HERE = {"": Look(BLUE, label="here")}

# The embedded world.

STRIP = (-0.6, 1.6)
"""Visible part of the strip; the allowed range is 0..1, values beyond are drawn at its edge."""


@figure_of("world_gates")
def world_gates(gates: pd.DataFrame) -> Drawn:
    """A row a gate: its value on a strip that marks the allowed range; met or not by colour and by symbol."""
    met, y = is_true(gates["met"]).to_numpy(), np.arange(len(gates))
    value, low, high = gates[["value", "low", "high"]].to_numpy(dtype=float).T
    names = [textwrap.fill(str(name), 44) for name in gates["gate"]]
    figure, axes = panels(0.9 + 0.26 * len(gates) + 0.06 * sum(name.count("\n") for name in names))
    axis, told = axes[0, 0], []
    start, end = np.where(np.isnan(low), STRIP[0], 0.0), np.where(np.isnan(high), STRIP[1], 1.0)
    axis.barh(y, end - start, left=start, height=0.6, color=plots.SHADE, edgecolor="none")
    # with one bound, the distance to it is measured in units of that bound: twice an upper bound lies at 2
    unit = np.where(np.isnan(low), np.abs(high), np.where(np.isnan(high), np.abs(low), high - low))
    unit = np.where(unit > 0, unit, 1.0)
    place = np.nan_to_num(np.where(np.isnan(low), 1 + (value - high) / unit, (value - low) / unit), nan=0.5)
    for judged, marker, colour in ((met, "o", plots.GREEN), (~met, "X", plots.VERMILLION)):
        if judged.any():  # an empty artist has no place, which breaks the layout
            axis.plot(np.clip(place, *STRIP)[judged], y[judged], marker, color=colour, markersize=6, clip_on=False)
    for gate, ok in zip(gates.itertuples(), met, strict=True):
        unit = "" if pd.isna(gate.unit) or str(gate.unit).strip() in ("", "1") else f" {gate.unit}"
        n = "" if pd.isna(gate.n) else f"   n = {float(gate.n):,.0f}"
        interval = "" if pd.isna(gate.ci_low) else f" [{number(gate.ci_low)}, {number(gate.ci_high)}]"
        value = "not measured" if pd.isna(gate.value) else f"{number(gate.value)}{unit}{interval}"
        told.append(f"{value}  ({allowed(gate.low, gate.high)})  {'met' if ok else 'NOT MET'}{n}")
    for target, labels in ((axis, names), (axis.twinx(), told)):
        plots.row_axis(target, labels)
        target.grid(False)
        target.tick_params(axis="y", length=0)
        target.spines[:].set_visible(False)
    axis.set(xlim=STRIP, xticks=[], title=f"Gates of the embedded world: {int(met.sum())} of {len(gates)} met")
    return figure, (
        "Shaded: allowed range, each row on its own scale; beyond the strip: at its edge. Circle: met; cross: not met. "
        "In brackets: 95 % interval over seeds."
    )


@figure_of("pass_rates")
def pass_rates(rates: pd.DataFrame) -> Drawn:
    """Side by side: share of prompts by base-policy pass rate, in the world and in the reference."""
    figure, axes = panels(2.5, width=plots.COLUMN_WIDTH)
    axis, width = axes[0, 0], (rates["bin_high"] - rates["bin_low"]).to_numpy()
    centre = (rates["bin_low"] + rates["bin_high"]).to_numpy() / 2
    for name, side, style in (("world", -0.2, {"color": BLUE}), ("reference", 0.2, {"color": ORANGE, "hatch": "////"})):
        label = f"{name} (n = {int(rates[f'n_{name}'].max()):,})"
        axis.bar(centre + side * width, rates[f"share_{name}"], 0.4 * width, edgecolor="white", linewidth=0, label=label, **style)
    axis.set(xlabel="Pass rate of the base policy", ylabel="Share of prompts", xticks=np.linspace(0, 1, 6),
             title="Base-policy pass rates")  # fmt: skip
    axis.legend(loc="upper center")
    distance = (rates["share_world"] - rates["share_reference"]).abs().sum() / 2
    return figure, f"Total variation distance {distance:.3f}; n counts prompts."


@figure_of("world_controls")
def world_controls(table: pd.DataFrame) -> Drawn:
    """Exact accuracy of the controls over training, and what each gains over the random order of its seed."""
    wide = 100 * table.pivot_table(index=["arm", "seed"], columns="step", values="exact")
    arms, rows = ordered(table["arm"].unique()), []
    for arm in arms:
        shown = {"Held-out problems (%)": wide.loc[arm]}
        if arm != "random":
            shown["Difference to random (points)"] = (wide.loc[arm] - wide.loc["random"]).dropna()
        rows += [(panel, arm, step, *over_seeds(values[step]).interval())
                 for panel, values in shown.items() for step in wide.columns]  # fmt: skip
    long = pd.DataFrame(rows, columns=["panel", "group", "x", "value", "ci_low", "ci_high"])
    figure = lines(long, looks(arms), columns=2, xlabel="Step")
    counts = f"{table['seed'].nunique()} reserved seeds, {table['problems'].max()} held-out problems"
    return figure, f"{counts}; bands: 95 % over seeds."


@figure_of("difficulty_vs_pass_rate")
def difficulty_vs_pass_rate(table: pd.DataFrame) -> Drawn:
    """A point a prompt, with the mean pass rate and its 95 % interval by quantile bins of difficulty."""
    figure, axes = panels(3.0)
    axis = axes[0, 0]
    for domain, look in looks(ordered(table["domain"])).items():
        own = table["domain"] == domain
        axis.plot(table["difficulty"][own], table["pass_rate"][own], look.marker, color=look.colour, markersize=2.6, alpha=0.5,
                  markeredgewidth=0, label=look.label, rasterized=True)  # fmt: skip
    edges = np.unique(np.quantile(table["difficulty"], np.linspace(0, 1, 9)))
    index = np.clip(np.searchsorted(edges, table["difficulty"], side="right") - 1, 0, max(len(edges) - 2, 0))
    rows = [(part["difficulty"].mean(), *over_seeds(part["pass_rate"]).interval()) for _, part in table.groupby(index)]
    means = pd.DataFrame(rows, columns=["x", "value", "ci_low", "ci_high"])
    axis.errorbar(means["x"], means["value"], plots.error_lengths(means), color=BLACK, marker="o", markersize=3.5, zorder=5,
                  label="mean, 95 %")  # fmt: skip
    axis.set(xlabel="Difficulty label", ylabel="Pass rate of the base policy", title="Difficulty against pass rate")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.8)
    rank = float(stats.spearmanr(table["difficulty"], table["pass_rate"]).statistic) if len(table) > 2 else math.nan
    return figure, (
        f"n = {len(table):,} prompts, exact likelihood of the gold solution; Spearman {rank:.2f}. "
        "Black: mean of each quantile bin with a 95 % t interval over prompts."
    )


# The representation, and what is read from it.

QUALITY = {"reported": Look(BLUE), "met": Look(plots.GREEN), "outside": Look(plots.VERMILLION, "X")}


@figure_of("sae_quality")
def sae_quality(quality: pd.DataFrame) -> Drawn:
    """A panel a quantity, a row an encoder, the allowed range shaded; a cross is outside it."""
    look = np.select([quality["met"].isna(), is_true(quality["met"])], ["reported", "met"], "outside")
    table = quality.assign(panel=quality["quantity"].map(readable), row=quality["encoder"], look=look)
    figure = forest(table, QUALITY, list(dict.fromkeys(table["row"])), columns=4, row_height=0.32)
    for axis, (_, part) in zip(figure.axes, table.groupby("panel", sort=False), strict=False):
        low, high, numbers = part["low"].min(), part["high"].max(), part[["value", "low", "high"]].to_numpy(dtype=float)
        left, largest = min(np.nanmin(numbers), 0.0), np.nanmax(numbers)
        right = largest + 0.25 * (largest - left or 1.0)
        if not (math.isnan(low) and math.isnan(high)):
            axis.axvspan(left if math.isnan(low) else low, right if math.isnan(high) else high, color=plots.SHADE, zorder=0)
        for place, value in enumerate(part["value"].astype(float)):
            axis.annotate(number(value), (value, place), (0, 5), textcoords="offset points", ha="center")
        axis.set_xlim(left, right)
    tokens = quality["n_tokens"].dropna()
    n = f"n = {int(tokens.max()):,} held-out tokens. " if len(tokens) else ""
    return figure, f"{n}Shaded: allowed range; green: inside; blue: only reported; cross: outside."


@figure_of("sae_map")
def sae_map(points: pd.DataFrame) -> Drawn:
    """Two views of the same projection of SAE space: coloured by domain and by cluster."""
    figure, axes = panels(3.6, 1, 2)
    for axis, column in zip(axes[0], ("domain", "cluster"), strict=True):
        for group, look in looks(ordered(points[column])).items():
            part = points[points[column] == group]
            axis.plot(part["x"], part["y"], look.marker, color=look.colour, markersize=2, alpha=0.55, markeredgewidth=0,
                      rasterized=True, label=look.label)  # fmt: skip
            if column == "cluster":
                box, middle = {"boxstyle": "circle,pad=0.2", "fc": "white", "ec": look.colour}, part[["x", "y"]].median()
                axis.annotate(str(group), middle, ha="center", va="center", fontsize=8, fontweight="bold", bbox=box)
        axis.set(xticks=[], yticks=[], xlabel="Projection 1", title=f"By {column}")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=5 if column == "cluster" else 3, markerscale=2.5,
                    handletextpad=0.1, columnspacing=0.8)  # fmt: skip
    axes[0, 0].set_ylabel("Projection 2")
    return figure, f"n = {len(points):,} samples, the same points in both panels; numbers mark the median of a cluster."


RUNGS = {
    "sae": Look(BLUE, "o", "SAE"), "control": Look(plots.SKY, "D", "SAE controls"),
    "dense": Look(plots.GREEN, "^", "dense activations"),
    "text": Look(ORANGE, "s", "text: length, metadata, TF-IDF"), "nothing": Look(GREY, "X", "majority / mean, shuffled labels"),
}  # fmt: skip
"""Kind of a feature set -> its look."""
SETS = {
    "sae_all+tfidf": "sae", "sae_all": "sae", "sae+metadata": "sae", "sae": "sae", "sae_short": "sae",
    "sae_frozen_decoder": "control", "sae_untrained_all": "control", "sae_untrained": "control", "dense_pca": "dense",
    "dense": "dense", "tfidf": "text", "metadata": "text", "length": "text", "shuffled_labels": "nothing",
    "majority / mean": "nothing",
}  # fmt: skip
"""Feature sets from top to bottom of the ladder, with their kind."""
SET_NAMES = {
    "sae_all+tfidf": "SAE, all latents, and TF-IDF", "sae_all": "SAE, all latents", "sae+metadata": "SAE, retained, and metadata",
    "sae": "SAE, retained", "sae_short": "SAE, short training", "sae_frozen_decoder": "SAE, frozen decoder",
    "sae_untrained_all": "untrained SAE, all", "sae_untrained": "untrained SAE", "dense_pca": "dense, PCA", "tfidf": "TF-IDF",
}  # fmt: skip
TITLES = {
    "math_test": "MATH:\n", "deepmath_18k": "DeepMath:\n", "deepscaler_pass_rate": "DeepScaleR:\n",
    "quality_valimath": "ValiMath:\n", "dsr_sub_training_accuracy": "DSR-sub:\n", "world": "",
}  # fmt: skip
LADDER_TEXT = (
    "Bars: 95 % bootstrap over test problems and, where a set has several, over SAE seeds. Dotted: TF-IDF. All sets: the "
    "same splits and the same tuning budget."
)
PROBES_TEXT = "Bars: 95 % interval over test samples. Dotted: TF-IDF. RMSE and MAE: lower is better."


@figure_of("world_probes", world=None, text=PROBES_TEXT)
@figure_of("probe_ladder_world", "probe_ladder", world=True)
@figure_of("probe_ladder", world=False)
def ladder(table: pd.DataFrame, world: bool | None, text: str = LADDER_TEXT) -> Drawn:
    """A panel a task, a row a feature set, of the world or of real data alone; a table without these shows what it has."""
    if world is not None:
        table = table[table["metric"].isin(METRICS)]
        own = table[(table["dataset"] == "world") == world]
        table = own if len(own) else table
    several = table.groupby(["dataset", "target"])["metric"].transform("nunique") > 1
    shown = table["features"].replace({name: "majority / mean" for name in ("majority", "mean", "majority|mean")})
    metric = table["metric"].map(lambda name: METRICS.get(name, name.upper()))
    sizes = [f"{m}\n(train {train:,}, test {test:,})"
             for m, train, test in zip(metric, table["n_train"], table["n_test"], strict=True)]  # fmt: skip
    panel = [TITLES.get(d, f"{readable(d)}:\n") + readable(t) + (f", {m}" if s else "")
             for d, t, m, s in zip(table["dataset"], table["target"], metric, several, strict=True)]  # fmt: skip
    table = table.assign(row=shown, look=[SETS.get(name, "control") for name in shown], panel=panel, xlabel=sizes)
    figure = forest(table, RUNGS, ordered(shown, SETS), labels=SET_NAMES, row_height=0.14)
    for axis, (_, part) in zip(figure.axes, table.groupby("panel", sort=False), strict=False):
        for best in part.loc[part["row"] == "tfidf", "value"]:
            axis.axvline(float(best), color=ORANGE, linewidth=0.7, linestyle=":")
    plots.legend(figure, 3)
    return figure, text


PAIR_TEXT = "Bars: paired 95 % bootstrap over test problems. Right of zero: the first set of a row is read better."


@figure_of("ladder_pairs")
def ladder_pairs(table: pd.DataFrame) -> Drawn:
    """A panel a task of real data, a row a pair of feature sets: difference of the metric on the same test problems."""
    table = table[table["dataset"] != "world"] if (table["dataset"] != "world").any() else table
    panel = [TITLES.get(d, f"{readable(d)}:\n") + readable(t) for d, t in zip(table["dataset"], table["target"], strict=True)]
    row = [" - ".join(SET_NAMES.get(name, readable(name)) for name in pair)
           for pair in zip(table["features"], table["against"], strict=True)]  # fmt: skip
    table = table.assign(panel=panel, row=row, value=table["difference"], xlabel=table["metric"].map(METRICS))
    figure = forest(table, None, list(dict.fromkeys(row)), columns=2, row_height=0.15, chance=0.0)
    clear, told = table["ci_low"] > 0, []
    for against, name in (("tfidf", "TF-IDF"), ("dense", "dense"), ("sae_untrained_all", "the untrained SAE")):
        own = (table["features"] == "sae_all") & (table["against"] == against)
        told += [f"{name} on {int(clear[own].sum())} of {int(own.sum())}"] if own.any() else []
    figure.suptitle(f"Tasks that all SAE latents read better than\n{', '.join(told)}", fontsize=8)
    return figure, PAIR_TEXT


CURVES = {
    "explained_variance": "Explained variance", "difficulty": "DeepMath difficulty, rho", "subject": "MATH subject, accuracy",
    "difficulty_by_retained": "DeepMath difficulty, rho,\nn latents of k = 32",
}  # fmt: skip
CURVE_LOOKS = {"sae": Look(BLUE, "o", "SAE"), "sae_untrained": Look(plots.SKY, "D", "the same, untrained"),
               "pca": Look(plots.GREEN, "^", "k principal directions")}  # fmt: skip


@figure_of("sae_curve")
def sae_curve(table: pd.DataFrame) -> Drawn:
    """Explained variance and two probes against the number of active latents; dense activations as a dashed line."""
    shown = table.assign(panel=table["quantity"].map(CURVES), group=table["features"], x=np.log2(table["k"].replace(0, 1)))
    shown = shown.sort_values("quantity", key=lambda q: q.map(list(CURVES).index), kind="stable")
    shown = shown[shown["features"] != "dense"]
    figure = lines(shown, CURVE_LOOKS, columns=2, xlabel="Active latents a token, k (last panel: n)")
    for axis, quantity in zip(figure.axes, CURVES, strict=False):
        ticks = sorted(table.loc[(table["quantity"] == quantity) & (table["k"] > 0), "k"].unique())
        axis.set_xticks(np.log2(ticks), [f"{k:g}" for k in ticks])
        for value in table.loc[(table["quantity"] == quantity) & (table["features"] == "dense"), "value"]:
            axis.axhline(float(value), color=BLACK, linewidth=0.8, linestyle="--")
    return figure, "Bands: 95 % bootstrap over test problems, questions alone. Dashed: the dense activations themselves."


REPLAY_LOOKS = {
    "simulated": Look(GREY, "", "simulated score"), "sae_all": Look(BLUE, "o", "SAE"), "dense": Look(plots.GREEN, "^", "dense"),
    "tfidf": Look(ORANGE, "s", "TF-IDF"), "clusters": Look(plots.PURPLE, "D", "clusters"), "none": Look(BLACK, "v", "nothing"),
    "true rates": Look(plots.VERMILLION, "*", "true rates"),
}  # fmt: skip
PREDICTED = "Silent groups saved (%)\nby correlation, a quarter taken"
SCREENED = "Teaching groups a rollout\n(uniform = 1) by screening"
OWN = "Silent groups saved (%)\nby a prompt's own rollouts"


@figure_of("replay")
def replay(table: pd.DataFrame) -> Drawn:
    """What a prediction of pass rates saves, what screening adds, and what a prompt's own history says instead."""
    quarter = table["share"] == 0.25
    names = ("value", "ci_low", "ci_high")
    saved = {name: 100 * table[own] for name, own in zip(names, ("silent_groups_saved", "saved_low", "saved_high"), strict=True)}
    teaching = {name: table[own] for name, own in zip(names, ("teaching", "teaching_low", "teaching_high"), strict=True)}
    simulated, screening = table["form"] == "simulated", table["form"] == "screening"
    group = table["features"].mask(simulated, "simulated")
    shown = pd.concat([
        table.assign(**saved, panel=PREDICTED, group=group, x=table["spearman"])[
            quarter & ((table["form"] == "features") | simulated) & (table["features"] != "true rates")],
        table.assign(**teaching, panel=SCREENED, group=group, x=table["own_rollouts"])[
            screening & (quarter | (table["features"] == "none")) & (table["features"] != "true rates")],
        table.assign(**saved, panel=OWN, group=group, x=np.log2(table["own_rollouts"].replace(0, 0.5)))[
            quarter & (table["form"] == "history")],
    ])  # fmt: skip
    shown = shown[shown["group"].isin(REPLAY_LOOKS)]
    figure = lines(shown, REPLAY_LOOKS, band=False, columns=3, height=2.2)
    own = sorted(table.loc[table["form"] == "history", "own_rollouts"].unique())
    for axis, label in zip(figure.axes, ("Spearman rho with the pass rate", "Rollouts before a group is broken off",
                                         "Own rollouts before (log scale)"), strict=False):  # fmt: skip
        axis.set_xlabel(label)
    if own:
        figure.axes[2].set_xticks(np.log2(np.where(np.array(own) == 0, 0.5, own)), [f"{k:g}" for k in own])
    text = table[quarter & (table["form"] == "features") & (table["features"] == "sae_all")]
    past = table[quarter & (table["form"] == "history") & (table["features"] == "none") & (table["own_rollouts"] == 8)]
    if len(text) and len(past):
        figure.suptitle(f"SAE features save {saved['value'][text.index[0]]:.0f} % of the silent groups in one pass, "
                        f"one earlier epoch {saved['value'][past.index[0]]:.0f} %", fontsize=8)  # fmt: skip
    return figure, "Bars: 95 % bootstrap over prompts and streams. Left, middle: DeepScaleR, seen once; right: DSR-sub's record."


@figure_of("representation")
def representation(table: pd.DataFrame) -> Drawn:
    """What the rule of the retained set and reading prompts alone cost: a panel a choice and target, a row an option."""
    names = [readable(o) + (f"\n({s:.0%} shared)" if c == "retained set" else "")
             for o, c, s in zip(table["option"], table["choice"], table["shared_with_default"], strict=True)]  # fmt: skip
    panel = [f"{TITLES.get(d, '')}{readable(t)}\nby {c}" for d, c, t in zip(table["dataset"], table["choice"], table["target"],
                                                                              strict=True)]  # fmt: skip
    sizes = [f"{METRICS.get(m, m)}\n(n = {n:,})" for m, n in zip(table["metric"], table["n_test"], strict=True)]
    figure = forest(table.assign(row=names, panel=panel, xlabel=sizes), columns=3, row_height=0.22)
    return figure, "Bars: 95 % bootstrap over test samples. Shared: part of the default's retained latents."


# Clusters and difficulty.


@figure_of("calibration")
def calibration(bins: pd.DataFrame) -> Drawn:
    """Reliability of three difficulty scores: mean label against mean prediction by bin, the diagonal is perfect."""
    scores, counts = ordered(bins["score"], ("raw", "global", "ranking")), bins.groupby("score")["n"].sum()
    names = {score: f"{readable(score)} score (n = {counts[score]:,})" for score in scores}
    table = bins.rename(columns={"label_mean": "value", "predicted_mean": "x"}).assign(group="", panel=bins["score"].map(names))
    table = table.sort_values("score", key=lambda score: score.map(scores.index), kind="stable")
    figure = lines(table, {"": Look(BLUE)}, height=2.3, band=False, xlabel="Predicted difficulty", ylabel="Difficulty label",
                   sharex=True, sharey=True)  # fmt: skip
    numbers = table[["x", "value", "ci_low", "ci_high"]].to_numpy(dtype=float)
    pad = 0.05 * (np.nanmax(numbers) - np.nanmin(numbers) or 1.0)
    limits = (np.nanmin(numbers) - pad, np.nanmax(numbers) + pad)
    for axis in figure.axes:
        axis.plot(limits, limits, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        axis.set(xlim=limits, ylim=limits, aspect="equal")
    return figure, "Held-out labelled samples in bins of equal size; bars: 95 % interval of the bin's mean; dashed: perfect."


@figure_of("cluster_topics")
def cluster_topics(counts: pd.DataFrame) -> Drawn:
    """Heat map: share of each domain within each cluster, the cluster's size below."""
    table = counts.pivot_table(index="domain", columns="cluster", values="n", aggfunc="sum", fill_value=0).sort_index()
    totals = table.sum(axis=0)
    shares = (table / totals.where(totals > 0, 1)).to_numpy()
    figure, axes = panels(1.3 + 0.3 * len(table))
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
    return figure, f"n = {int(totals.sum()):,} samples. Cells: percent of the cluster; a column adds up to 100."


CLUSTER_TEXT = (
    "n = {n:,} samples. Bar: quartiles of the label; line: median; diamond: mean. A label names the most frequent leaf topics; "
    "mixed: the first of them has less than a quarter of the cluster."
)
REAL_CLUSTER_TEXT = (
    "n = {n:,} problems of MATH. Difficulty: level 1 to 5; bar: its quartiles; line: median; diamond: mean. A label names the "
    "most frequent subjects (seven in all, at most 2.8 bits); mixed: the first of them has less than a quarter of the cluster."
)


@figure_of("cluster_audit", text=CLUSTER_TEXT)
@figure_of("real_cluster_audit", text=REAL_CLUSTER_TEXT)
def cluster_audit(clusters: pd.DataFrame, text: str) -> Drawn:
    """A row a cluster, easiest above: quartiles of difficulty, topic entropy, words of the solution, number of samples."""
    table = clusters.sort_values(["difficulty_median", "cluster"], kind="stable").reset_index(drop=True)
    y, ratios = np.arange(len(table)), {"width_ratios": [1.6, 1, 1, 1]}
    figure, axes = panels(1.3 + 0.36 * len(table), 1, 4, sharey=True, gridspec_kw=ratios)
    first = axes[0, 0]
    first.hlines(y, table["difficulty_q25"], table["difficulty_q75"], color=plots.SKY, linewidth=6)
    first.plot(table["difficulty_median"], y, "|", color=BLACK, markersize=9, markeredgewidth=1.6)
    first.plot(table["difficulty_mean"], y, "D", color=plots.VERMILLION, markersize=3.5)
    first.set(xlabel="Difficulty label", title="Difficulty")
    columns = (("topic_entropy_bits", "Bits", "Topic entropy"), ("solution_words_mean", "Words (mean)", "Solution length"),
               ("n", "Samples", "Size"))  # fmt: skip
    for axis, (column, unit, title) in zip(axes[0, 1:], columns, strict=True):
        plots.bar_panel(axis, table[column])
        axis.set(xlabel=unit, title=title)
    names = [textwrap.shorten(str(label), 58, placeholder=" ...") for label in table["label"]]
    plots.row_axis(first, [textwrap.fill(f"{c}  {name}", 30) for c, name in zip(table["cluster"], names, strict=True)])
    return figure, text.format(n=int(table["n"].sum()))


@figure_of("feature_groups", of="samples", source="(240 latents a block)")
@figure_of("real_feature_groups", of="problems of MATH", source="on its own data")
def feature_groups(groups: pd.DataFrame, of: str, source: str) -> Drawn:
    """Share of LightGBM's gain by feature group with its interval; the top 20 and 100 features, here and in the paper."""
    names = {g: f"{readable(g)} ({int(n):,})" for g, n in zip(groups["group"], groups["n_features"], strict=True)}
    share = 100 * groups[["gain_share", "ci_low", "ci_high"]].rename(columns={"gain_share": "value"}).astype(float)
    parts = [share.assign(row=groups["group"], paper=np.nan, panel="Gain by feature group", xlabel="Share of total gain (%)")]
    for top in (20, 100):
        part = pd.DataFrame({"row": groups["group"], "value": groups[f"top_{top}"], "paper": groups[f"paper_top_{top}"]})
        parts.append(part.assign(panel=f"Among the top {top} by gain", xlabel="Features"))
    figure = forest(pd.concat(parts).assign(look=""), HERE, list(names), labels=names, row_height=0.24)
    for axis in figure.axes:
        axis.set_xlim(left=min(0.0, axis.get_xlim()[0]))
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    plots.legend(figure)
    return figure, (
        f"n = {int(groups['n'].max()):,} {of}; number of features of a group in brackets. LightGBM predicts the cluster label; "
        f"bars: 95 % interval over bootstrap resamples of the {of}. Open: paper, section 5.4 {source}."
    )


LABELLED = {"sae+metadata": Look(BLUE, "o", "SAE + metadata (phi)"), "metadata": Look(GREY, "s", "Metadata"),
            "tfidf": Look(ORANGE, "^", "TF-IDF")}  # fmt: skip


@figure_of("label_curve")
def label_curve(curve: pd.DataFrame) -> Drawn:
    """Spearman of predicted with labelled difficulty against the number of labels, a line a feature set."""
    names = looks(ordered(curve["features"], LABELLED), LABELLED)
    x = curve["n_labels"] * 1.05 ** plots.aside(curve["features"], list(names))
    table = curve.assign(group=curve["features"], panel="Labels", x=x)
    figure = lines(table, names, width=plots.COLUMN_WIDTH, height=2.0, band=False, titles=False)
    axis, sizes = figure.axes[0], sorted(curve["n_labels"].unique())
    axis.set_xscale("log")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()
    axis.set(xlabel="Labelled samples |L| (log scale)", ylabel="Spearman ρ on test samples")
    axis.set_ylim(min(0.0, float(curve["ci_low"].min())) - 0.02, 1.02)
    return figure, (
        f"n = {int(curve['n_test'].iloc[0]):,} test samples. Point: mean over {int(curve['n_subsets'].max())} nested random "
        "subsets (all of L is one); bar: 95 % interval over subsets and test samples. A constant prediction counts as 0."
    )


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
def real_clusters(frame: pd.DataFrame) -> Drawn:
    """Agreement of clusters with subjects by features, and of clusters with clusters under other seeds."""
    stable = frame["quantity"].str.startswith("ari_")
    rows = frame["features"].where(~stable, frame["quantity"])
    panel = frame["quantity"].map(AGREEMENT).where(~stable, "ARI of two fits")
    table = frame.assign(row=rows, look=_is_sae(frame["features"]), panel=panel, paper=frame["paper_value"])[panel.notna()]
    order, titles = ordered(table["row"], FEATURES), [*AGREEMENT.values(), "ARI of two fits"]
    table = table.assign(first=table["panel"].map(titles.index), second=table["row"].map(order.index))
    table = table.sort_values(["first", "second"], kind="stable")
    figure = forest(table, FEATURE_LOOKS, columns=2, labels=FEATURES, row_height=0.17)
    for axis in figure.axes:
        axis.set_xlim(left=axis.get_xlim()[0] if axis.get_xlim()[0] < -0.01 else 0.0)
    figure.axes[-1].set_xlim(0, 1)
    return figure, (
        f"n = {int(frame['n'].max()):,} problems of MATH with solutions. Bars: 95 % bootstrap over problems, clusters fixed; "
        "shuffled subjects and the last panel: least and largest of all shuffles or pairs. Open squares: the paper's clusters "
        "against its own leaf topics, of which there are hundreds; MATH has seven subjects, so they are no target."
    )


# The filter, and the harder question behind it: does a score find wrong samples, and is it length?


def _filter_panels(
    axes: Sequence[Axes], rules: pd.DataFrame, looks: Mapping[str, Look], labels: Mapping[str, str] | None = None
) -> None:
    """Purity and recall of each rule in percent beside the paper's, groups by column look."""
    for axis, column in zip(axes, ("purity", "recall"), strict=True):
        part = rules.assign(row=rules["rule"], value=100 * rules[column], paper=100 * rules[f"paper_{column}"])
        plots.forest_panel(axis, part, looks, list(dict.fromkeys(rules["rule"])), labels, 0.16)
        axis.set(xlim=(-3, 103), xlabel=f"{column.capitalize()} (%)", title=column.capitalize())
    axes[1].set_yticklabels([])


@figure_of("filter", "filter", "filter_scores")
def filter_rules(rules: pd.DataFrame, scores: pd.DataFrame) -> Drawn:
    """Score histograms by source; purity and recall of each rule, filled here, open in the paper (Table 6)."""
    figure, axes = panels(1.4 + 0.24 * len(rules), 1, 3, gridspec_kw={"width_ratios": [1.25, 1, 1]})
    axis, sources = axes[0, 0], looks(ordered(scores["source"], ("target", "parent")))
    for (source, look), dashes in zip(sources.items(), ("-", "--", ":", "-.") * len(sources), strict=False):
        part = scores[scores["source"] == source].sort_values("bin_low")
        edges = np.append(part["bin_low"].to_numpy(), part["bin_high"].iloc[-1])
        axis.stairs(part["share"], edges, color=look.colour, linestyle=dashes, linewidth=1.4, label=f"source: {look.label}")
    axis.set(xlabel="Filter score", ylabel="Share of the source", title="Scores by source", ylim=(0, None))
    kept = {rule: f"{readable(rule)}\n({int(n):,} kept)" for rule, n in zip(rules["rule"], rules["kept"], strict=True)}
    _filter_panels(axes[0, 1:], rules.assign(look=""), HERE, kept)
    plots.legend(figure)
    return figure, (
        f"n = {int(rules['n_pool'].max()):,} samples in the pool. Filled: here; open: paper, Table 6, on DeepMath and "
        "NuminaMath-1.5. Purity: share of the kept from the target source; recall: share of the target source kept."
    )


@figure_of("real_filter", "real_filter", "real_separation")
def real_filter(rules: pd.DataFrame, separation: pd.DataFrame) -> Drawn:
    """ROC-AUC of the source probe by features; purity and recall of each rule, filled here, open in the paper (Table 6)."""
    part = separation[separation["metric"] == "roc_auc"]
    part = part.assign(row=part["features"], look=_is_sae(part["features"]), paper=part["paper_value"], xlabel="ROC-AUC")
    names = ordered(part["features"], FEATURES)
    figure, axes = panels(1.4 + 0.2 * len(names), 1, 3, gridspec_kw={"width_ratios": [1.3, 1, 1]})
    plots.forest_panel(axes[0, 0], part, FEATURE_LOOKS, names, FEATURES, chance=0.5)
    axes[0, 0].set_title("DeepMath against DeepScaleR")
    shown = [name for name in ("sae", "sae_plain", "tfidf", "length") if name in set(rules["features"])]
    rules = rules[rules["features"].isin(shown)].assign(look=rules["features"])
    _filter_panels(axes[0, 1:], rules, looks(shown, labels=FEATURES))
    plots.legend(figure)
    return figure, (
        f"n = {int(part['n_test'].max()):,} questions in the pool. Filled: here; open squares: paper, Table 6, on DeepMath and "
        "NuminaMath-1.5, another pair of sources. No $ signs: questions read without the signs around formulas, which the two "
        "sources write differently. Bars: 95 % bootstrap over questions of the pool."
    )


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
    "source_probe": Look(BLUE), "source_membership": Look(plots.SKY, hollow=True), "score": Look(plots.VERMILLION),
    "flaw_probe": Look(plots.GREEN), "flaw_probe_shuffled": Look(GREY, hollow=True),
}  # fmt: skip
FEWEST = 10
"""Flaws of a kind that get a panel of their own; rarer kinds are in the table alone."""
SIGN_TEXT = "Larger scores are more suspect; the sign was never fitted, so below 0.5 a score points the wrong way. "
FLAWS_TEXT = (
    f"{SIGN_TEXT}Numbers: flawed of compared samples. True source: what a perfect source probe would reach; it knows nothing of "
    "flaws. * trained on labelled flaws outside the pool. Bars: 95 % bootstrap over samples of the pool."
)
REAL_FLAWS_TEXT = (
    f"{SIGN_TEXT}Numbers: flawed of compared questions, people's judgement. Panels after the first: the first check that a "
    "question failed, where ten or more did. * trained on 1,502 judged questions at most; selfreg: columns that metadata explain "
    "count less. Bars: 95 % bootstrap over questions."
)


@figure_of("filter_flaws", text=FLAWS_TEXT)
@figure_of("real_flaws", text=REAL_FLAWS_TEXT, dataset="ValiMath")
def filter_flaws(frame: pd.DataFrame, text: str, dataset: str = "") -> Drawn:
    """ROC-AUC of each score against flaws: any flaw in each pool, then each kind in the narrowest pool; dashed at 0.5."""
    frame, parts = frame[frame["metric"].eq("roc_auc") & frame["score"].ne("chance")], []
    for name in ordered(frame["dataset"], ("world",)):
        part = frame[frame["dataset"] == name]
        pools = ordered(part["pool"], ("whole pool", "within parent"))
        kinds = ordered(part.loc[(part["flaw"] != "any") & (part["n_flawed"] >= FEWEST), "flaw"])
        for pool, flaw in [(pool, "any") for pool in pools] + [(pools[-1], kind) for kind in kinds if len(kinds) > 1]:
            own = part[(part["pool"] == pool) & (part["flaw"] == flaw)]
            flawed, sound = own.iloc[0][["n_flawed", "n_sound"]]
            title = f"{'any flaw' if flaw == 'any' else readable(flaw)}\n{dataset or name}, {pool}"
            parts.append(own.assign(panel=f"{title}\n{flawed:,} of {flawed + sound:,}"))
    table = pd.concat(parts)
    kinds = ["flaw_probe" if s.startswith("flaw_probe") and s not in SCORE_LOOKS else s for s in table["score"]]
    table = table.assign(row=table["score"], look=[k if k in SCORE_LOOKS else "score" for k in kinds], xlabel="ROC-AUC")
    figure = forest(table, SCORE_LOOKS, ordered(table["score"], SCORES), columns=4, labels=SCORES, chance=0.5, share_x=True)
    figure.axes[0].set_xlim(-0.02, 1.02)
    figure.axes[0].set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    return figure, text


VARIANTS = ("plain", "scaled", "scaled_random", "dropped", "dropped_random", "residual", "residual_random", "metadata_only")
VARIANT_LOOKS = {"kept": Look(BLUE), "random": Look(BLUE, hollow=True), "metadata": Look(GREY)}
SELFREG_TEXT = (
    "Suppressed: latents that metadata (lengths, counts, shares of signs) explain. Scaled: columns times 1 - R²; dropped: the "
    "half with the largest R²; residual: minus the linear prediction from metadata. Open: the same done to random columns or "
    "directions. "
)
OF_WORLD = "Source on the whole pool, flaws among parent samples. Bars: 95 % bootstrap over test samples."


@figure_of("filter_selfreg", text=OF_WORLD)
@figure_of("real_selfreg", text="Bars: 95 % bootstrap over test questions.", dataset="ValiMath ")
def filter_selfreg(frame: pd.DataFrame, text: str, dataset: str = "") -> Drawn:
    """ROC-AUC and rank correlation with length by variant of the probe, one column a target."""
    targets, parts = ordered(frame["target"], ("source", "flaw by source probe", "flaw")), []
    for metric, label in {"roc_auc": "ROC-AUC", "spearman_length": "Spearman with length"}.items():
        for target in targets:
            part = frame[(frame["target"] == target) & (frame["metric"] == metric)]
            parts.append(part.assign(panel=f"{dataset}{target}\n{label}, n = {part['n_test'].iloc[0]:,}", xlabel=label))
    table = pd.concat(parts)
    kinds = ["metadata" if v == "metadata_only" else "random" if v.endswith("_random") else "kept" for v in table["variant"]]
    rows = ordered(table["variant"], VARIANTS)
    figure = forest(table.assign(row=table["variant"], look=kinds), VARIANT_LOOKS, rows, columns=len(targets), share_x="row")
    for axis in figure.axes:
        axis.axvline(0.5 if axis.get_xlabel() == "ROC-AUC" else 0.0, color=BLACK, linewidth=0.8, linestyle="--")
    return figure, SELFREG_TEXT + text


# The batch plan.

QUANTITIES = {"dominant_share": "Share of the\nlargest cluster", "n_clusters": "Clusters\nin the batch",
              "mean_ranking_score": "Mean ranking score\n(difficulty units)"}  # fmt: skip
SPACES = {"pca2": "2-D projection (PCA)", "full": "Full standardised space"}


@figure_of("batch_composition")
def batch_composition(batches: pd.DataFrame) -> Drawn:
    """Three panels over training steps, a line an order: share of the largest cluster, clusters, mean ranking score."""
    orders, steps = looks(ordered(batches["order"], plots.ORDERS), plots.ORDERS), int(batches.groupby("order").size().max())
    long = batches.melt(["order", "step"], list(QUANTITIES), "panel", "raw").sort_values("step", kind="stable")
    mean, _, smoothing = plots.smoothed(long, ["panel", "order"], steps)
    long = long.assign(value=mean, x=long["step"], group=long["order"])
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
    return figure, f"n = {steps} batches an order. Faint: each batch; line: {smoothing}."


@figure_of("inbatch_diversity")
def inbatch_diversity(diversity: pd.DataFrame) -> Drawn:
    """Mean distance between nearest neighbours of a batch against the number of exchanged samples, a panel a space."""
    orders, spaces = looks(ordered(diversity["order"], plots.ORDERS), plots.ORDERS), ordered(diversity["space"], SPACES)
    swapped = diversity["swapped_per_batch"]
    x = swapped + 0.03 * max(1, int(swapped.max())) * plots.aside(diversity["order"], list(orders))
    table = diversity.assign(group=diversity["order"], x=x, panel=diversity["space"].map(lambda s: SPACES.get(s, readable(s))))
    table = table.sort_values("space", key=lambda space: space.map(spaces.index), kind="stable")
    figure = lines(table, orders, columns=2, width=min(plots.FULL_WIDTH, 0.4 + 3.0 * len(spaces)), band=False,
                   xlabel="Samples exchanged in a batch, h", ylabel="Mean nearest-neighbour\ndistance in a batch")  # fmt: skip
    for axis, space in zip(figure.axes, spaces, strict=True):
        for order, part in diversity[diversity["space"] == space].groupby("order"):
            if len(part) == 1:
                axis.axhline(float(part["value"].iloc[0]), color=orders[order].colour, linewidth=0.8, linestyle=":")
        axis.set_xticks(sorted(swapped.unique()))
        axis.margins(x=0.12)
    return figure, (
        f"n = {plots.span(diversity['n_batches'])} batches a point; bars: 95 % interval over batches; dotted: level of an order "
        "with one h. Points of equal h are set apart sideways."
    )


PATH = ("cluster", "difficulty", "filter", "batch", "swap")


def _contributions(axis: Axes, parts: pd.DataFrame, title: str, unit: str) -> None:
    """What leads from the intercept to a score: latents keep block/number, metadata features go by their words."""
    rows = parts[parts["item"] != "intercept"].reset_index(drop=True)
    values = rows["value"].to_numpy(dtype=float)
    plots.bar_panel(axis, values, np.where(values < 0, BLUE, plots.VERMILLION).tolist(), "{:+.2f}".format)
    names = rows["item"].astype(str).where(rows["item"] != "others", rows["n"].map("{:,.0f} others".format))
    plots.row_axis(axis, [readable(n.removeprefix("metadata/")) if n.startswith("metadata/") else n for n in names])
    axis.grid(False)
    axis.axvline(0, color=BLACK, linewidth=0.6)
    start = float(parts.loc[parts["item"] == "intercept", "value"].iloc[0])
    axis.set(title=f"{title}: from {start:.2f} to {start + values.sum():.2f}", xlabel=unit)


def _score_in_pool(axis: Axes, pool: pd.DataFrame, score: pd.Series) -> None:
    axis.stairs(100 * pool["value"], np.append(pool["low"], pool["high"].iloc[-1]), fill=True, color=plots.LIGHT)
    if math.isfinite(score["low"]):
        label = f"{score['note']} interval"
        axis.axvspan(score["low"], score["high"], color=plots.SKY, alpha=0.35, linewidth=0, ymax=0.8, label=label)
    axis.axvline(float(score["value"]), color=plots.VERMILLION, ymax=0.8, label="this sample")
    axis.set(ylim=(0, 130 * pool["value"].max()), xlabel="Ranking score r (difficulty units)", ylabel="Share of the pool (%)",
             title="Difficulty in the pool")  # fmt: skip
    axis.legend(loc="upper center", ncols=2, columnspacing=1.0)


def _its_batch(axis: Axes, batch: pd.DataFrame) -> None:
    axis.set_title("Its batch")
    if batch.empty:
        axis.text(0.5, 0.5, "no batch:\ndropped by the filter", ha="center", va="center", transform=axis.transAxes)
        axis.set(xticks=[], yticks=[])
        return
    clusters = looks(ordered(batch["cluster"].astype(int)))
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
def sample_audit(table: pd.DataFrame) -> Drawn:
    """One sample's decision path: a line a decision, contributions to both scores, its place in the pool, its batch."""
    part = {name: rows.reset_index(drop=True) for name, rows in table.groupby("part", sort=False)}
    said = dict(zip(part["path"]["item"], part["path"]["note"], strict=True))
    figure, axes = panels(5.9, 2, 2, gridspec_kw={"height_ratios": [1.35, 1]})
    text = [textwrap.fill(f"{name.capitalize()}: {said[name]}", 118, subsequent_indent="    ") for name in PATH if name in said]
    head = "\n".join([f"Decision path of {table['sample_id'].iloc[0]}", *text])
    figure.suptitle(head, fontsize=7.5, x=0.01, ha="left", linespacing=1.5)
    _contributions(axes[0, 0], part["difficulty"], "Raw difficulty", "Contribution (difficulty units)")
    _contributions(axes[0, 1], part["quality"], "Filter log-odds", "Contribution (log-odds)")
    _score_in_pool(axes[1, 0], part["pool"], part["score"].iloc[0])
    _its_batch(axes[1, 1], part.get("batch", table.iloc[:0]))
    return figure, (
        f"n = {int(part['pool']['n'].max()):,} samples in the pool; interval from the out-of-fold residuals of "
        f"{int(part['score']['n'].iloc[0]):,} labelled samples. Names: block/latent of the SAE, or a metadata feature. "
        "Contributions lead from the intercept to the score. Ring: this sample."
    )


YARDSTICK = "k-means seed"
RANDOM_ORDERS = 0.81
"""Share moved between two random orders: 1 - 2 * 0.1 + 0.1^2."""


@figure_of("plan_sensitivity")
def plan_sensitivity(rows: pd.DataFrame) -> Drawn:
    """Share of samples that move by more than a tenth of the run, a row a changed setting, beside other k-means seeds."""
    seeds, changed = rows[rows["varied"] == YARDSTICK], rows[rows["varied"] != YARDSTICK]
    groups = ordered(changed["varied"], ("K", "tau_sh", "h", "window", "rest", "unequal"))
    changed = changed.sort_values("varied", key=lambda varied: varied.map(groups.index), kind="stable")
    varied = changed["varied"].map(readable).replace("tau sh", r"$\tau_{sh}$")
    names = [f"{v} = {readable(s)} ({readable(d)})"
             for v, s, d in zip(varied, changed["setting"], changed["default"], strict=True)]  # fmt: skip
    own = {name: look._replace(label="") for name, look in looks(groups).items()}
    table = changed.assign(row=names, look=changed["varied"], panel="", value=changed["share_moved"])
    names += [f"{len(seeds)} other k-means seeds"] * bool(len(seeds))
    figure = forest(table, own, names, labels=dict(zip(names, names, strict=True)), width=plots.COLUMN_WIDTH, row_height=0.17)
    axis = figure.axes[0]
    axis.hlines(range(len(table)), 0, table["value"], color=[own[name].colour for name in table["look"]], linewidth=0.8)
    if len(seeds):
        axis.axvspan(seeds["share_moved"].min(), seeds["share_moved"].max(), color=plots.LIGHT, alpha=0.6, linewidth=0)
        axis.plot(seeds["share_moved"], np.full(len(seeds), len(table)), "|", color=BLACK, markersize=7)
    axis.axvline(RANDOM_ORDERS, color=GREY, linewidth=0.8, linestyle=":")
    axis.set(xlim=(0, 1), xlabel="Share of samples moved by more\nthan a tenth of the run")
    return figure, (
        f"n = {int(rows['n'].iloc[0]):,} planned samples; one setting changed at a time (default in brackets). Grey band: range "
        "over other k-means seeds, the yardstick; dotted: two random orders."
    )


# Policy gradients.

LEVELS = {"prompt": "Between single prompts", "batch": "Between batches"}
GROUPINGS = ("cluster", "cluster, topics differ", "clusters, permuted", "leaf topic", "domain", "difficulty tenth")
RELATIONS = {"within": Look(BLUE, "o", "Same group"), "across": Look(ORANGE, "s", "Different groups")}
MEAN = "mean"


@figure_of("gradient_coherence")
def gradient_coherence(coherence: pd.DataFrame) -> Drawn:
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
    return figure, (
        f"n = {n} prompts of the kept pool at the base policy, {zero} without any gradient (all rewards equal): left out between "
        f"prompts (n = {alive}), zero inside batches. Groupings without batches have none on the right. "
        "Bars and bands: 95 % bootstrap over prompts."
    )


@figure_of("mixing_theory", "mixing_theory", "mixing_curve")
def mixing_theory(theory: pd.DataFrame, curve: pd.DataFrame) -> Drawn:
    """Appendix A with measured moments: optimum of each pair, change at the plan's share, change against the share."""
    theory, curve = theory.astype({"cluster_c": str, "cluster_d": str}), curve.astype({"cluster_c": str})
    means, pairs = theory[theory["cluster_d"] == MEAN], theory[theory["cluster_d"] != MEAN]
    everyone = means[means["cluster_c"] == MEAN].iloc[0]
    figure, axes = panels(2.9, 1, 3)
    left, middle, right = axes[0]
    left.hist(pairs["rho_star"], bins=np.linspace(0, 1, 11), color=plots.SKY, edgecolor="white", linewidth=0.6)
    left.set(xlabel=r"Best share of the partner, $\rho^*$", ylabel="Ordered pairs of clusters", title="Optimum of a pair")
    interval = ["value", "ci_low", "ci_high"]
    change = 100 * means[["mse_change_at_h", "change_low", "change_high"]].set_axis(interval, axis=1)
    change = change.assign(row=means["cluster_c"], look=means["cluster_c"] == MEAN)
    clusters = [MEAN, *sorted((c for c in means["cluster_c"] if c != MEAN), key=int)]
    plots.forest_panel(middle, change, {True: Look(plots.VERMILLION, "D"), False: Look(BLUE)}, clusters, {MEAN: "all"})
    plots.symlog(middle, 10, [-100, -10, 0, 10, 100, 1000])
    middle.axvline(0, color=BLACK, linewidth=0.8)
    middle.set(ylabel="Cluster of the batch", xlabel="Change of the error (%)\n(linear to 10, then logarithmic)",
               title=rf"At the plan's $\rho$ = {everyone['rho_h']:g}")  # fmt: skip
    part = curve[curve["cluster_c"] == MEAN]
    part = (100 * part[["mse_change", "ci_low", "ci_high"]]).set_axis(interval, axis=1).assign(group="", x=part["rho"])
    plots.line_panel(right, part, {"": Look(plots.VERMILLION, "", "Mixed batch")})
    right.axhline(100 * everyone["random_change"], color=GREY, linestyle="--", linewidth=1, label="Random batch")
    right.axhline(0, color=BLACK, linewidth=0.8)
    right.axvline(everyone["rho_h"], color=BLUE, linestyle=":", linewidth=1, label="Plan (h / b)")
    right.set(xlabel=r"Share of the partner, $\rho$", ylabel="Change of the error (%)", title="All clusters")
    right.legend(loc="best", fontsize=7)
    share = everyone["bias2"] / (everyone["bias2"] + everyone["variance"])
    return figure, (
        f"n = {int(everyone['n_c'])} prompts, {len(pairs)} ordered pairs of clusters. Error: mean squared error of a batch "
        f"gradient as an estimate of the pool's; of a pure batch of one cluster, {100 * share:.1f} % is squared bias, the rest "
        "variance. Middle and right: partner drawn by size. Bars and band: 95 % bootstrap over prompts."
    )


# Training and evaluation on the laptop.


@figure_of("training_curves")
def training_curves(curves: pd.DataFrame) -> Drawn:
    """Reward and share of groups without variance by step: thick the mean over seeds, thin each seed."""
    seeds = curves.groupby("arm")["seed"].nunique()
    arms = looks(ordered(curves["arm"], plots.ARMS), plots.ARMS, {arm: f"{arm} (n = {n} seeds)" for arm, n in seeds.items()})
    titles = {"reward_mean": "Mean reward (0 to 1)", "zero_variance_share": "Share of groups of equal rewards (no gradient)"}
    runs = curves.melt(["arm", "seed", "step"], list(titles), "panel", "raw").sort_values("step", kind="stable")
    mean, window, smoothing = plots.smoothed(runs, ["panel", "arm", "seed"], int(curves["step"].nunique()))
    runs = runs.assign(value=mean, panel=runs["panel"].map(titles))
    means = runs.groupby(["panel", "arm", "step"], sort=False)["value"].mean().reset_index()
    means = means.rename(columns={"arm": "group", "step": "x"})
    figure = lines(means, arms, columns=2, every=max(1, window * 20 // 8), xlabel="Optimiser step", sharex=True)
    for axis, title in zip(figure.axes, dict.fromkeys(means["panel"]), strict=True):
        for (arm, _), part in runs[runs["panel"] == title].groupby(["arm", "seed"]):
            axis.plot(part["step"], part["value"], color=arms[arm].colour, linewidth=0.6, alpha=0.5)
    figure.axes[1].set_ylim(0, 1.02)
    return figure, f"Thick: mean over seeds; thin: each seed; {smoothing}."


def _set_name(name: str, metric: str) -> str:
    return f"{'mean of the sets' if name == 'all' else readable(name)}, {readable(metric).replace(' at ', '@')}"


def _set_panel(part: pd.DataFrame) -> pd.DataFrame:
    """Rows for `lines` of one evaluation set: mean of the seeds, lowest and highest; larger evaluations stand apart.

    The hardest set by Pass@k, of the k that most evaluations have, all others by Avg@k.
    """
    name = part["eval_set"].iloc[0]
    metric = "pass_at_k" if name == PASS_SET else "avg_at_k"
    part = part[part["metric"] == metric]
    steps = part.groupby(["n_problems", "n_samples"])["step"].nunique()
    sizes = sorted(steps.index, key=lambda pair: (-steps[pair], pair))
    sizes = [pair for pair in sizes if metric != "pass_at_k" or pair[1] == sizes[0][1]]
    text = f"{sizes[0][0]} x {sizes[0][1]}" + "".join(f", open {p} x {s}" for p, s in sizes[1:])
    found = part.groupby(["arm", "n_problems", "n_samples", "step"])["value"].agg(["mean", "min", "max"]).reset_index()
    pairs = pd.Series(list(zip(found["n_problems"], found["n_samples"], strict=True)), index=found.index)
    found = found.assign(apart=pairs != sizes[0], panel=f"{_set_name(name, metric)}\n{text}")[pairs.isin(sizes)]
    return found.rename(columns={"arm": "group", "step": "x", "mean": "value", "min": "ci_low", "max": "ci_high"})


@figure_of("learning_curves")
def learning_curves(curves: pd.DataFrame) -> Drawn:
    """A panel an evaluation set and their mean: accuracy by step, mean over seeds, band from lowest to highest seed."""
    arms, seeds = looks(ordered(curves["arm"], plots.ARMS), plots.ARMS), curves.groupby("arm")["seed"].nunique()
    table = pd.concat([_set_panel(curves[curves["eval_set"] == name]) for name in ordered(curves["eval_set"], EVAL_SETS)])
    figure = lines(table, arms, columns=4, height=1.8, xlabel="Optimiser step", ylabel="Accuracy (0 to 1)", sharex=True)
    count = ", ".join(f"{arm} {seeds[arm]}" for arm in arms)
    return figure, (
        f"Line: mean over seeds (n: {count}); band and bars: lowest to highest seed, not a confidence interval. "
        "Under each title: problems x completions a problem (k); open marks: the larger evaluation."
    )


@figure_of("paired_difference")
def paired_difference(differences: pd.DataFrame) -> Drawn:
    """saerl minus grpo in percent points by evaluation set, with 95 % intervals and the minimum detectable effect."""
    order = ordered(differences["eval_set"], EVAL_SETS)
    table = differences.assign(place=differences["eval_set"].map(order.index)).sort_values(["place", "metric"], kind="stable")
    names = [_set_name(*pair) for pair in zip(table["eval_set"], table["metric"], strict=True)]
    table = table.assign(panel="Paired difference by evaluation set", row=names, value=table["difference"],
                         look=np.where(table["eval_set"] == "all", "mean", "set"))  # fmt: skip
    figure = forest(table, {"set": Look(BLUE), "mean": Look(plots.VERMILLION, "D")}, names, row_height=0.27)
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
    return figure, (
        f"n = {plots.span(table['n_seeds'])} matched seeds; bars: 95 % interval. Grey: below the minimum detectable effect, a "
        "true difference that would be found with probability 0.8 at alpha 0.05."
    )


# The RL study.

PAPER_ARMS = ("grpo", "dapo", "diff", "adarft", "gainrl", "saerl_grpo", "saerl_dapo")
STUDY_ARMS = {"grpo": Look(GREY, "s"), "saerl_grpo": Look(BLUE)}
STUDY_ORDERS = ("saerl_grpo", "saerl_stretch", "minus_clus_mix", "minus_diff", "diff", "hard_to_easy")
"""SAERL, the same with its clusters spread over the run, its difficulty alone, its clusters and mixing unsorted, the label's
order, and that order turned round."""


@figure_of("study_effects", "study_comparisons")
def study_effects(comparisons: pd.DataFrame) -> Drawn:
    """Every comparison of the outcome in points: thick the 95 % interval, thin Holm's within its family."""
    table = comparisons[comparisons["metric"] == "outcome"]
    number, families = pd.factorize(table["family"])
    y, early = np.arange(len(table)) + number + 1, (table["n_seeds"] < table["family"].map(planned_seeds)).to_numpy()
    figure, axes = panels(1.3 + 0.24 * (len(table) + len(families)))
    axis, missed = axes[0, 0], table["detectable"].fillna(0.0)
    for place, family in enumerate(families):
        axis.text(0.005, y[number == place][0] - 1, readable(family).capitalize(), transform=axis.get_yaxis_transform(),
                  fontsize=7.5, fontweight="bold", va="center", color=GREY)  # fmt: skip
    colour = np.select([early, table["holm_low"] > 0, table["holm_high"] < 0], [GREY, plots.GREEN, plots.VERMILLION], BLUE)
    axis.barh(y, 2 * missed, left=-missed, height=0.7, color="#EDEDED", zorder=0)
    axis.hlines(y, table["holm_low"], table["holm_high"], colour, linewidth=0.8)
    axis.hlines(y, table["ci_low"], table["ci_high"], colour, linewidth=2.4)
    inside, edge = np.where(early, "white", colour), np.where(early, colour, "white")
    axis.scatter(table["difference"], y, 20, inside, zorder=3, edgecolors=edge)
    axis.plot(table["paper_value"], y, **plots.PAPER | {"markersize": 5})
    names = [f"{readable(row.arm)} - {readable(row.baseline)} (n = {row.n_seeds})" for row in table.itertuples()]
    axis.axvline(0, color=BLACK, linewidth=0.8)
    axis.set_yticks(y, names, fontsize=7)
    axis.set(ylim=(y.max() + 0.6, -0.8), xlabel="second better  <  difference of the outcome (percent points)  >  first better")
    plots.light_grid(axis, "x")
    return figure, (
        "Outcome: mean of the last three evaluations. n = matched seeds. Thick: 95 % interval, over seeds and problems; thin: "
        "corrected by Holm within its family. Green / red: the corrected interval excludes 0. "
        + "Open and grey: fewer seeds than planned, decides nothing. " * bool(early.any())
        + "Grey band: below the minimum detectable effect (power 0.8). Open square: the paper's tables, whose averages count "
        "AIME24 by Pass@8."
    )  # fmt: skip


def _over_seeds(groups: object, column: str) -> pd.DataFrame:
    """Mean of `column` over seeds with its 95 % t interval: a row a group of one `groupby`."""
    rows = {key: (*over_seeds(part[column]).interval(), part["seed"].nunique()) for key, part in groups}
    return pd.DataFrame(rows, index=["value", "ci_low", "ci_high", "n"]).T.rename_axis(["group", "step"]).reset_index()


@figure_of("study_curves", "study_runs")
def study_curves(runs: pd.DataFrame) -> Drawn:
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
    arms = looks(ordered(runs["arm"], PAPER_ARMS), STUDY_ARMS, {a: f"{readable(a)} ({n})" for a, n in seeds.items()})
    figure = lines(pd.concat(parts), arms, height=2.3, xlabel="Rollouts generated (thousands)", sharex=True)
    figure.axes[1].set_ylim(-0.02, 1.02)
    return figure, (
        "In brackets: matched seeds. Line: mean over seeds; band and bars: 95 % t interval over seeds. Open: the first and the "
        "last evaluation, of more problems than the others and not comparable with them."
    )


def gaps(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Arm minus `grpo` on matched seeds: group, step, value, ci_low, ci_high, n; the interval is a 95 % t interval over seeds."""
    baseline = runs[runs["arm"] == BASELINE].set_index(["step", "seed"])[column]
    paired = runs[runs["arm"].isin(STUDY_ORDERS)].join(baseline.rename("baseline"), on=["step", "seed"])
    paired = paired.assign(gap=paired[column] - paired["baseline"]).dropna(subset=["gap"])
    found = _over_seeds(paired.groupby(["arm", "step"]), "gap")
    return found[found["n"] > 1].astype({"n": int, "step": int})


@figure_of("study_gap", "study_runs")
def study_gap(runs: pd.DataFrame) -> Drawn:
    """Fixed orders against a random one, paired by seed: when the difference arises, and on which problems it ends."""
    over, last = gaps(runs, "mean_avg"), runs[runs["step"] == runs["step"].max()]
    sets = [name for name in EVAL_SETS if f"avg_{name}" in runs]
    end = pd.concat([gaps(last, f"avg_{name}").assign(place=i) for i, name in enumerate(sets)])
    n = over.groupby("group")["n"].max()
    labels = {arm: f"{readable(arm)} ({n[arm]})" for arm in n.index}
    arms = looks(ordered(over["group"], STUDY_ORDERS), STUDY_ARMS, labels)
    figure, axes = panels(3.1, 1, 2, sharey=True)
    left, right = axes[0]
    plots.line_panel(left, over.assign(x=over["step"]), arms)
    end = end.assign(x=end["place"] + 0.14 * plots.aside(end["group"], list(arms)))
    plots.line_panel(right, end, arms, band=False, joined=False)
    for axis in (left, right):
        axis.axhline(0, color=BLACK, linewidth=0.8)
    left.set(xlabel="Step", ylabel="Difference to GRPO (points)")
    left.set_title("Mean of six sets", fontsize=7.5)
    right.set_xticks(range(len(sets)), [readable(name) for name in sets], fontsize=7)
    right.grid(False, axis="x")
    right.set_title("Last evaluation, by set", fontsize=7.5)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=min(5, len(arms)))
    return figure, (
        "In brackets: matched seeds. Bars and bands: 95 % t interval over seeds, uncorrected. Evaluations before the last are of "
        "fewer problems; every difference is of the same problems. Minus diff: clusters and mixing without difficulty."
    )


@figure_of("study_pilot")
def study_pilot(pilot: pd.DataFrame) -> Drawn:
    """The pilot's learning rates, and the arms behind the number of seeds."""
    figure, axes = panels(2.5, 1, 2)
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
    for place, (arm, look) in enumerate(looks(others).items()):
        right.plot(np.full(len(seeds), place), seeds[arm] - seeds[BASELINE], "o", color=look.colour)
    right.axhline(0, color=BLACK, linewidth=0.8)
    right.set_xticks(range(len(others)), others)
    right.set(xlim=(-0.5, len(others) - 0.5), ylabel="Difference to grpo (points)", title="Paired differences")
    for axis in axes[0]:
        plots.light_grid(axis)
    counts = f"n = {rates['seed'].nunique()} seeds a rate, {len(seeds)} seeds a pair"
    return figure, f"Each point is a run; {counts}, none used by the study."


@figure_of("study_sets", "study_paper_tables")
def study_sets(tables: pd.DataFrame) -> Drawn:
    """Table 4 set by set: what each arm gains over its baseline at the last evaluation, here and in the paper."""
    gains = tables[(tables["table"] == "4 gain") & (tables["n_seeds"] > 0)]
    n = gains.groupby("arm")["n_seeds"].max()
    names = {b: f"{'mean' if b == 'mean' else readable(s)} ({'six sets' if b == 'mean' else b})" for b, s in BENCHMARKS.items()}
    panel = [f"{readable(arm)} - {readable(baseline_of(arm))} (n = {n[arm]})" for arm in gains["arm"]]
    table = gains.assign(row=gains["benchmark"], value=gains["our_value"], paper=gains["paper_value"], panel=panel, look="",
                         xlabel="Gain (points)")  # fmt: skip
    figure = forest(table, HERE, list(BENCHMARKS), labels=names, share_x=True)
    for axis in figure.axes:
        axis.axvline(0, color=BLACK, linewidth=0.8)
    plots.legend(figure)
    return figure, (
        "First arm minus second at the last evaluation. Dot: here, with a 95 % t interval over n matched seeds, uncorrected. "
        "Square: the paper's single runs on the benchmark in brackets, which the set stands for. Avg@8; the hardest set by "
        "Pass@8, as AIME24 in the paper."
    )


@figure_of("study_mixing")
def study_mixing(mixing: pd.DataFrame) -> Drawn:
    """Figure 3: accuracy against h and against in-batch diversity, both relative to h = 0."""
    figure, axes = panels(2.7, 1, 2, sharey=True)
    left, right = axes[0]
    here, share = mixing.assign(group="", value=mixing["difference"]), mixing["paper_swapped"] / 1.28
    look = {"": Look(BLUE, "o", f"here (n = {mixing['n_seeds'].min()} seeds)")}
    for axis, x, paper_x in ((left, share, share), (right, mixing["diversity_2d"], mixing["paper_diversity"])):
        plots.line_panel(axis, here.assign(x=x), look, band=False, joined=axis is left)
        style = {"label": "paper (one run)", "linewidth": 0.8, "linestyle": "--" if axis is left else "none"}
        axis.plot(paper_x, mixing["paper_difference"], **plots.PAPER | style)
        axis.axhline(0, color=GREY, linewidth=0.8)
    for row in mixing.itertuples():
        top = row.difference if np.isnan(row.ci_high) else row.ci_high
        right.annotate(f"h = {row.swapped_per_batch}", (row.diversity_2d, top), xytext=(0, 4), textcoords="offset points",
                       ha="center", fontsize=7, color=BLUE)  # fmt: skip
    right.margins(y=0.1)
    left.set(xlabel="Share of the batch to swap, h / b (%)", ylabel="Accuracy minus h = 0 (points)")
    right.set_xlabel("In-batch diversity in 2-D, relative to h = 0")
    left.legend(loc="best")
    return figure, (
        "Here: mean of the last three evaluations, difference to h = 0 paired by seed with a 95 % t interval, uncorrected; "
        "b = 32. Paper: read off its Figure 3, step 800, b = 128. Diversity: mean distance to the 5 nearest neighbours in the "
        "batch. Batches without an admissible partner swap nothing, so that less was swapped than asked for (study_plans.csv)."
    )


PAPER_HOURS = {"encode_s": 0.5, "rollouts_s": 17.33}
"""H100-hours for `PAPER_SAMPLES` samples (paper, section 5)."""
PAPER_SAMPLES = 103_022


@figure_of("preparation_cost")
def preparation_cost(cost: pd.DataFrame) -> Drawn:
    """Time a prompt of SAE encoding and of ADARFT's rollouts, here and in the paper."""
    names = {"encode_s": "SAE encoding", "rollouts_s": "ADARFT's rollouts"}
    table = cost.melt(["prompts"], list(names), "row", "seconds")
    table = table.assign(value=1000 * table["seconds"] / table["prompts"], look="", panel="",
                         paper=3.6e6 * table["row"].map(PAPER_HOURS) / PAPER_SAMPLES)  # fmt: skip
    here = {"": Look(BLUE, label="here, each part")}
    figure = forest(table, here, list(names), labels=names, width=plots.COLUMN_WIDTH, row_height=0.3)
    figure.axes[0].set_xscale("log")
    figure.axes[0].set_xlabel("Milliseconds a prompt (log scale)")
    plots.legend(figure)
    return figure, (
        f"n = {len(cost)} disjoint parts of {int(cost['prompts'].iloc[0])} prompts, CPU; the paper: one H100, "
        f"{PAPER_SAMPLES:,} samples."
    )
