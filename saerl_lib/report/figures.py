"""Every figure, drawn from `figures/data/*.csv` alone; the same tables give the same bytes.

A function takes the tables of its figure, brings them into the form of `plots.forest` or `plots.lines`, and returns the panels,
a title that says what they show, and the small print. At most twenty figures: what else is measured is shown as a table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saerl_lib.report import plots
from saerl_lib.report.claims import TOY, with_claims
from saerl_lib.report.plots import BLACK, BLUE, GREY, ORANGE, Look, arm_looks, arm_name, forest, lines, ordered, span
from saerl_lib.report.statistics import over_seeds
from saerl_lib.report.study import UPDATE, planned_seeds
from saerl_lib.report.tables import TableError, number, read_table

Drawn = tuple[Figure, str, str]
"""The panels, a sentence that says what they show, and their small print."""
FIGURES: dict[str, tuple[tuple[str, ...], Callable[..., Figure]]] = {}
"""Figure name -> (names of its tables, function of these tables); `figure_of` fills it."""


def figure_of(name: str, *tables: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of `tables` (one of the figure's name by default), called with `options`, as the figure `name`. The
    registered one draws what the function returns (`Drawn`)."""

    def register(function: Callable[..., Drawn]) -> Callable[..., Drawn]:
        @functools.wraps(function)
        def drawn(*frames: pd.DataFrame) -> Figure:
            with matplotlib.style.context(plots.STYLE):
                return plots.tell(*function(*frames, **options))

        FIGURES[name] = (tables or (name,), drawn)
        return function

    return register


def draw(name: str, data_folder: Path, figure_folder: Path) -> Path:
    """Draw figure `name` from its CSV tables; returns the PNG, the PDF lies beside it. Raises TableError for an unknown figure, a
    missing table or column (naming the notebook that writes it) or a table without rows, ArtifactError when the folder cannot be
    written."""
    if name not in FIGURES:
        raise TableError(f"figure {name!r} is not known; choose one of {', '.join(FIGURES)}")
    tables, function = FIGURES[name]
    frames = [read_table(table, data_folder) for table in tables]
    if any(frame.empty for frame in frames):
        raise TableError(f"figure {name} has nothing to show: no run of it is finished yet")
    return plots.save(function(*frames), name, figure_folder)


def draw_all(data_folder: Path, figure_folder: Path) -> list[Path]:
    """Draw every figure whose tables are there and have rows; raises as `draw` does."""
    found = []
    for name, (tables, _) in FIGURES.items():
        if all((data_folder / f"{table}.csv").is_file() and len(read_table(table, data_folder)) for table in tables):
            found.append(draw(name, data_folder, figure_folder))
    return found


def first_by(table: pd.DataFrame, column: str, order: Sequence[str]) -> pd.DataFrame:
    """The rows in the order of `order` in `column`, otherwise as they were."""
    return table.sort_values(column, key=lambda values: values.map(list(order).index), kind="stable")


def over_runs(runs: pd.DataFrame, panels: Mapping[str, str], group: str = "arm", x: str = "step") -> pd.DataFrame:
    """Rows for `lines`: panel, group, x, value, ci_low, ci_high; the mean over runs with a 95 % t interval, a panel a column."""
    rows = [
        (title, *keys, *over_seeds(part[column]).interval())
        for column, title in panels.items() for keys, part in runs.dropna(subset=[column]).groupby([group, x], sort=False)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["panel", "group", "x", "value", "ci_low", "ci_high"])


# The method, and what of the paper holds here.

MAIN = {
    "Difficulty of held-out DeepMath questions": "difficulty read, rho",
    "Filter at p95": "quality filter, purity in points",
    "Mixing study: accuracy gain of h = 8 of 128 over h = 0,": "mixing, points",
    "Ablation without difficulty sorting: accuracy": "sorting by difficulty, points",
    "SAERL on GRPO against DIFF: accuracy": "SAERL above DIFF, points",
    "SAERL on GRPO against GRPO: accuracy": "SAERL above GRPO, points",
    "SAERL on GRPO against GRPO: fewer": "steps that SAERL saves, %",
}  # fmt: skip
"""Beginning of a claim -> its row."""
DIRECTIONS = {"agrees": plots.GREEN, "opposite": plots.VERMILLION, "undecided": GREY, "not run": GREY}


@figure_of("method", "claims")
def method(claims: pd.DataFrame) -> Drawn:
    """The method from prompts to training, and below it the main claims in multiples of what the paper found."""
    found = {label: claims[claims["claim"].str.startswith(start)].head(1) for start, label in MAIN.items()}
    table = pd.concat(found, names=["row", None]).reset_index("row").reset_index(drop=True)
    told = [f"{number(r.our_value)} ({number(r.ci_low)} to {number(r.ci_high)})".replace(" ( to )", "") or "not run"
            for r in table.itertuples()]  # fmt: skip
    parts = table[["our_value", "ci_low", "ci_high"]].div(table["paper_value"], axis=0).rename(columns={"our_value": "value"})
    looks = table["direction"] + np.where(table["scale"] == TOY, " toy", "")
    table = table.drop(columns=["ci_low", "ci_high"]).join(parts).assign(look=looks, paper=1.0)
    looks = {f"{name}{kind}": Look(colour, hollow=bool(kind)) for name, colour in DIRECTIONS.items() for kind in ("", " toy")}
    figure, (top, below) = plots.placed(3.4, (0.005, 0.515, 0.99, 0.38), (0.36, 0.225, 0.285, 0.27))
    plots.flow(top)
    plots.forest_panel(below, table, looks, list(table["row"]), chance=0.0)
    below.set_xlabel("Effect here, in multiples of the paper's")
    plots.beside(below, {1.05: ["here (95 %)", *told], 1.98: ["paper", *(f"{v:.3g}" for v in table["paper_value"])]})
    agree, opposite = (int((table["direction"] == name).sum()) for name in ("agrees", "opposite"))
    title = (f"Of {len(table)} main claims {agree} agree with the paper in direction, {opposite} show the opposite, "
             f"{len(table) - agree - opposite} undecided or not run")  # fmt: skip
    trained = table.loc[table["n_seeds"] > 1, "n_seeds"]
    return figure, title, (
        "Open squares: the paper. Full marks: real data; open marks: a toy task. Green: the same direction; red: the opposite; "
        "grey: undecided or not run. Bars: 95 % intervals." + (f" Training: n = {span(trained)} seeds." if len(trained) else "")
    )  # fmt: skip


# The representation, and what is read from it.


def _by_task(table: pd.DataFrame, looks: Mapping[str, Look], xlabel: str, chance: float | None = None) -> Figure:
    """A row a task, a mark a feature set of `looks`, the legend above."""
    table = table.assign(row=plots.task_names(table), panel="", xlabel=xlabel)
    rows = list(dict.fromkeys(table["row"]))
    height = min(0.4, 2.95 / len(rows))
    figure = forest(table[table["look"].isin(looks)], looks, rows, shift=0.8 / len(looks), row_height=height, chance=chance)
    for y in range(1, len(rows)):
        figure.axes[0].axhline(y - 0.5, color=plots.LIGHT, linewidth=0.5)
    plots.legend(figure)
    return figure


@figure_of("probe_ladder_world", "probe_ladder", world=True)
@figure_of("probe_ladder", world=False)
def ladder(table: pd.DataFrame, world: bool) -> Drawn:
    """A row a task, of the world or of real data alone, a mark a main feature set; a table without these shows what it has."""
    table = table[table["metric"].isin(plots.METRICS)]
    own = table[(table["dataset"] == "world") == world]
    table = plots.by_set(own if len(own) else table)
    figure = _by_task(table.assign(look=table["row"]), plots.LADDER, "Accuracy, rho or ROC-AUC on test problems")
    wide = table.pivot_table("value", ["dataset", "target", "metric"], "row")
    told = [f"{(wide['sae_all'] > wide[key]).sum()} of {len(wide[[key, 'sae_all']].dropna())} tasks better than {name}"
            for key, name in (("tfidf", "TF-IDF"), ("dense", "dense activations")) if {key, "sae_all"} <= set(wide)]  # fmt: skip
    return figure, "By value, all SAE latents read " + ", ".join(told) if told else "Tasks and the main feature sets", (
        f"Bars: 95 % bootstrap over test problems. Probes of n = {span(table['n_train'])} labels, the same splits and tuning "
        "budget for all sets. Majority / mean: a probe without features."
    )  # fmt: skip


AGAINST = {"tfidf": "TF-IDF", "dense": "dense activations", "sae_untrained_all": "the untrained SAE", "sae": "retained latents"}


@figure_of("ladder_pairs")
def ladder_pairs(table: pd.DataFrame) -> Drawn:
    """A row a task of real data, a mark a feature set: the metric of all SAE latents minus its, on the same test problems."""
    table = table[table["dataset"] != "world"] if (table["dataset"] != "world").any() else table
    table = table[(table["features"] == "sae_all") & table["against"].isin(AGAINST)]
    looks = {name: plots.LADDER[name]._replace(label=f"minus {told}") for name, told in AGAINST.items()}
    table = table.assign(look=table["against"], value=table["difference"])
    figure = _by_task(table, looks, "Metric of all SAE latents minus that of another set", chance=0.0)
    clear = (table["ci_low"] > 0).groupby(table["against"]).agg(["sum", "size"])
    told = [f"{clear.loc[name, 'sum']} better than {AGAINST[name]}" for name in AGAINST if name in clear.index]
    return figure, f"Of {clear['size'].max()} tasks all SAE latents read {', '.join(told)}", (
        "Bars: paired 95 % bootstrap over test problems. Right of zero: all SAE latents are read better."
    )


@figure_of("sae_curve")
def sae_curve(table: pd.DataFrame) -> Drawn:
    """Explained variance and two probes against the number of active latents; dense activations as a dashed line."""
    shown = table.assign(panel=table["quantity"], group=table["features"], x=np.log2(table["k"].replace(0, 1)))
    shown = first_by(shown[shown["features"] != "dense"], "quantity", list(plots.CURVES))
    figure = lines(shown, plots.CURVE_LOOKS, columns=2, height=1.45)
    for axis, (quantity, name) in zip(figure.axes, plots.CURVES.items(), strict=False):
        own = table[table["quantity"] == quantity]
        ticks = sorted(own.loc[own["k"] > 0, "k"].unique())
        axis.set_xticks(np.log2(ticks), [f"{k:g}" for k in ticks])
        axis.set_title(f"{name}, n = {span(own['n'])}", fontsize=7.5)
        axis.set_xlabel("Latents retained, k = 32" if quantity.endswith("retained") else "Active latents a token, k")
        for value in own.loc[own["features"] == "dense", "value"]:
            axis.axhline(float(value), color=BLACK, linewidth=0.8, linestyle="--")
    at = table[table["quantity"].eq("explained_variance") & table["k"].eq(32)].set_index("features")["value"]
    names = {"sae": "trained SAE", "pca": "PCA", "sae_untrained": "untrained SAE"}
    kept = ", ".join(f"{name} {100 * at[key]:.0f} %" for key, name in names.items())
    return figure, f"Variance kept by 32 numbers a token: {kept}", (
        "n: tokens (variance) or test questions. Bands: 95 % bootstrap. Dashed: the dense activations. x axes are logarithmic."
    )


@figure_of("replay")
def replay(table: pd.DataFrame) -> Drawn:
    """Groups without a gradient that a prediction of pass rates avoids, and that a prompt's own history avoids instead."""
    table = table[table["share"] == 0.25].rename(columns={"saved_low": "ci_low", "saved_high": "ci_high"})
    table[["value", "ci_low", "ci_high"]] = 100 * table[["silent_groups_saved", "ci_low", "ci_high"]].to_numpy()
    text, past = table[table["form"].isin(("features", "simulated"))], table[table["form"] == "history"]
    group, rollouts = text["features"].mask(text["form"] == "simulated", "simulated"), past["own_rollouts"]
    shown = pd.concat([
        text.assign(panel="Predicted pass rate", group=group, x=text["spearman"]),
        past.assign(panel="The prompt's own rollouts", group=past["features"], x=np.log2(rollouts.replace(0, 0.5)))[
            past["features"].isin(("none", "sae_all"))],
    ])  # fmt: skip
    figure = lines(shown[shown["group"].isin(plots.REPLAY)], plots.REPLAY, band=False, columns=2, height=2.0,
                   ylabel="Groups without gradient\navoided (%)")  # fmt: skip
    for axis, label in zip(figure.axes, ("Spearman rho with the pass rate", "Earlier rollouts (log scale)"), strict=False):
        axis.set_xlabel(label)
    if own := sorted(rollouts.unique()):
        figure.axes[-1].set_xticks(np.log2(np.where(np.array(own) == 0, 0.5, own)), [f"{k:g}" for k in own])
    found = {"SAE latents avoid {:.0f} % on DeepScaleR": text[(text["form"] == "features") & (text["features"] == "sae_all")],
             "{:.0f} % on DSR-sub": past[(past["features"] == "sae_all") & (rollouts == 0)],
             "there one earlier epoch {:.0f} %": past[(past["features"] == "none") & (rollouts == 8)]}  # fmt: skip
    told = [name.format(rows["value"].iloc[0]) for name, rows in found.items() if len(rows)]
    return figure, "Groups without a gradient: " + ", ".join(told), (
        f"A quarter of the prompts is taken. Left: n = {text['n'].max():,} prompts of DeepScaleR, each seen once; right: "
        f"n = {past['n'].max():,} prompts of DSR-sub. Bars: 95 % bootstrap over prompts and streams."
    )  # fmt: skip


@figure_of("representation")
def representation(table: pd.DataFrame) -> Drawn:
    """What the rule of the retained set costs: a row a task, a mark a rule; what reading prompts alone costs, as text."""
    rules = table[table["choice"] == "retained set"]
    figure = _by_task(rules.assign(look=rules["option"]), plots.RULES, "Accuracy or correlation on test samples")
    best = rules.loc[rules.groupby(["dataset", "target"])["value"].idxmax(), "option"]
    spans = table[table["choice"] == "spans"].set_index("option")["value"]
    names = {"prompt and solution": "both spans", "prompt only": "the prompt alone"}
    read = [f"{name} {spans[key]:.3f}" for key, name in names.items() if key in spans]
    return figure, f"The default rule of the retained latents reads best on {(best == 'variance').sum()} of {len(best)} tasks", (
        "Bars: 95 % bootstrap over test samples." + (f" Difficulty of the toy task (rho): {', '.join(read)}." if read else "")
    )


# Clusters, difficulty, filter.


@figure_of("calibration")
def calibration(bins: pd.DataFrame) -> Drawn:
    """Mean label minus mean prediction by bin, of the difficulty score and of the two it is made from."""
    shift = bins["predicted_mean"]
    table = bins.assign(value=bins["label_mean"] - shift, ci_low=bins["ci_low"] - shift, ci_high=bins["ci_high"] - shift, x=shift,
                        group=bins["score"], panel="")  # fmt: skip
    figure = lines(table, plots.SCORES, height=2.0, width=plots.COLUMN_WIDTH, band=False,
                   xlabel="Predicted difficulty (label units)", ylabel="Label minus prediction\n(label units)")  # fmt: skip
    figure.axes[0].axhline(0, color=BLACK, linewidth=0.8, linestyle="--")
    away = table["value"].abs().groupby(bins["score"]).mean()
    told = ", ".join(f"{away[score]:.3f} {look.label}" for score, look in reversed(plots.SCORES.items()) if score in away)
    return figure, f"Predicted difficulty misses the label by {told.replace(' ', ' calibrated ', 1)}", (
        f"n = {bins.groupby('score')['n'].sum().max():,} held-out labelled samples in bins of equal size; bars: 95 % interval of "
        "the bin's mean label."
    )  # fmt: skip


@figure_of("real_clusters")
def real_clusters(frame: pd.DataFrame) -> Drawn:
    """Agreement of clusters with subjects by features, and of clusters with clusters under other seeds; the shuffles of the other
    features stand in the table alone."""
    names = {"sae, shuffled": "shuffled_labels", "sae, columns of the subject probe": "sae_by_subject"}
    frame = frame.assign(features=frame["features"].replace(names))
    frame = frame[~frame["features"].str.contains(",")]
    panels = {"purity": "Purity with subject", "nmi": "NMI with subject", "ari": "ARI with subject", "": "ARI of two fits"}
    stable = frame["quantity"].str.startswith("ari_")
    panel = frame["quantity"].where(~stable, "").map(panels)
    table = plots.by_set(frame).assign(panel=panel).dropna(subset="panel")
    table["row"] = table["row"].where(~stable, table["quantity"].str.removeprefix("ari_"))
    table = first_by(first_by(table, "row", ordered(table["row"], plots.SETS)), "panel", list(panels.values()))
    figure = forest(table, plots.RUNGS, columns=2, labels=plots.SET_NAMES, row_height=0.145)
    plots.legend(figure)
    for axis in figure.axes:
        axis.set_xlim(left=min(0.0, axis.get_xlim()[0]))
    purity = frame[frame["quantity"] == "purity"].set_index("features")["value"]
    above = purity.get("sae", np.nan) - purity.get("shuffled_labels", np.nan)
    return figure, f"The largest subject of a cluster fills {100 * above:.0f} points more of it than by chance", (
        f"n = {int(frame['n'].max()):,} problems of MATH, seven subjects. NMI: normalised mutual information; ARI: adjusted Rand "
        "index. Bars: 95 % bootstrap over problems, clusters fixed; shuffled subjects and the last panel: smallest and largest."
    )  # fmt: skip


@figure_of("real_filter", "real_filter", "real_separation")
def real_filter(rules: pd.DataFrame, separation: pd.DataFrame) -> Drawn:
    """The source probe by features: ROC-AUC, and purity and recall at the threshold p95, with the paper's (Table 6)."""
    auc = separation[separation["metric"] == "roc_auc"]
    auc = auc.assign(panel="Separation", xlabel="ROC-AUC", paper=auc["paper_value"])
    p95 = rules[rules["rule"] == "p95"]
    parts = [p95.assign(panel=f"{name} at p95".capitalize(), value=100 * p95[name], paper=100 * p95[f"paper_{name}"],
                        xlabel="Questions (%)") for name in ("purity", "recall")]  # fmt: skip
    table = plots.by_set(pd.concat([auc, *parts]))
    figure = forest(table, plots.RUNGS, ordered(table["row"], plots.SETS), labels=plots.SET_NAMES, row_height=0.18)
    plots.legend(figure)
    sae, tfidf = auc.set_index("features")["value"].reindex(["sae", "tfidf"])
    return figure, f"The source of a question: ROC-AUC {sae:.3f} from SAE features, {tfidf:.3f} from TF-IDF", (
        f"DeepMath against DeepScaleR, n = {int(auc['n_test'].max()):,} questions. Open squares: paper, Table 6, for DeepMath "
        "and NuminaMath-1.5, another pair. No $ signs: the two sources mark formulas differently. Bars: 95 % bootstrap."
    )  # fmt: skip


@figure_of("real_flaws")
def real_flaws(frame: pd.DataFrame) -> Drawn:
    """ROC-AUC of each score against people's judgement that a question is ill posed, whatever its flaw; dashed at 0.5."""
    table = frame[frame["metric"].eq("roc_auc") & frame["score"].ne("chance") & frame["flaw"].eq("any")]
    table = table.assign(row=table["score"], panel="", xlabel="ROC-AUC, ill-posed\nquestions of ValiMath",
                         look=table["score"].eq("source_probe"))  # fmt: skip
    looks, rows = {False: Look(BLUE), True: Look(plots.VERMILLION)}, ordered(table["score"], plots.FLAW_SCORES)
    figure = forest(table, looks, rows, labels=plots.FLAW_SCORES, width=plots.COLUMN_WIDTH, chance=0.5, row_height=0.17)
    value, flawed, sound = table.set_index("score")["value"], *table.iloc[0][["n_flawed", "n_sound"]]
    title = f"Ill-posed questions: source probe {value['source_probe']:.2f}, best probe trained on flaws {value.max():.2f}"
    return figure, title, (
        f"n = {flawed + sound:,} questions, {flawed:,} of them flawed. Below 0.5 a score points the wrong way. * trained on "
        "other judged questions; SelfReg: SAE features without what metadata explain. Bars: 95 % bootstrap over questions."
    )


# The batch plan.


def smoothed(long: pd.DataFrame, groups: Sequence[str]) -> tuple[pd.Series, str]:
    """Rolling mean of `raw` along the steps of each of `groups`, over a twentieth of the run, and how to say it."""
    window = max(1, long["step"].nunique() // 20)
    mean = long.groupby(list(groups))["raw"].transform(lambda v: v.rolling(window, center=True, min_periods=1).mean())
    return mean, f"rolling mean over {window} steps" if window > 1 else "each step, not smoothed"


@figure_of("batch_composition")
def batch_composition(batches: pd.DataFrame) -> Drawn:
    """Three panels over training steps, a line an order: share of the largest cluster, clusters, mean ranking score."""
    long = batches.melt(["order", "step"], list(plots.QUANTITIES), "panel", "raw").sort_values("step", kind="stable")
    mean, smoothing = smoothed(long, ["panel", "order"])
    long = long.assign(value=mean, x=long["step"], group=long["order"], panel=long["panel"].map(plots.QUANTITIES))
    figure = lines(long, arm_looks(batches["order"]), columns=1, height=1.0, every=max(1, batches["step"].nunique() // 8),
                   xlabel="Optimiser step", sharex=True)  # fmt: skip
    share = 100 * batches.groupby("order")["dominant_share"].mean()
    title = f"The largest cluster fills {share['saerl']:.0f} % of a planned batch, {share['random']:.0f} % of a random one"
    return figure, title, f"n = {span(batches.groupby('order').size())} batches an order; {smoothing}."


RANDOM_ORDERS = 0.81
"""Share moved between two random orders: 1 - 2 * 0.1 + 0.1^2."""


@figure_of("plan_sensitivity")
def plan_sensitivity(rows: pd.DataFrame) -> Drawn:
    """Share of samples that move by more than a tenth of the run, a row a changed setting, beside other k-means seeds."""
    noise = rows.loc[rows["varied"] == "k-means seed", "share_moved"]
    changed = first_by(rows[rows["varied"].isin(plots.SETTINGS)], "varied", list(plots.SETTINGS))
    said = changed["varied"].map(plots.SETTINGS), changed["setting"].map(plots.readable), changed["default"].map(plots.readable)
    names = [f"{name}: {setting} ({default})" for name, setting, default in zip(*said, strict=True)]
    table = changed.assign(row=names, panel="", value=changed["share_moved"])
    figure = forest(table, None, names, width=plots.COLUMN_WIDTH, row_height=0.17)
    axis = figure.axes[0]
    axis.axvspan(noise.min(), noise.max(), color=plots.LIGHT, alpha=0.6, linewidth=0)
    axis.axvline(RANDOM_ORDERS, color=GREY, linewidth=0.8, linestyle=":")
    axis.set(xlim=(0, 1), xlabel="Share of samples moved by more\nthan a tenth of the run")
    most = changed.groupby(changed["varied"].eq("K"))["share_moved"].max()
    title = f"Another k-means seed moves {100 * noise.min():.0f} to {100 * noise.max():.0f} % of the samples, another K up to "
    title += f"{100 * most[True]:.0f} %, other settings at most {100 * most[False]:.0f} %"
    return figure, title, (
        f"n = {span(rows['n'])} planned samples; one setting changed at a time (default in brackets). Grey band: range over "
        f"{len(noise)} other k-means seeds; dotted: two random orders."
    )  # fmt: skip


@figure_of("gradient_coherence")
def gradient_coherence(coherence: pd.DataFrame) -> Drawn:
    """Mean cosine of the policy gradients of two batches, of the same group and of different groups."""
    shown = coherence[coherence["relation"].isin(plots.RELATIONS)]
    table = shown.assign(row=shown["grouping"], look=shown["relation"], panel="", xlabel="Cosine of the gradients of two batches")
    rows = list(shown["grouping"].unique())
    figure = forest(table, plots.RELATIONS, rows, shift=0.3, row_height=0.28, width=plots.COLUMN_WIDTH)
    plots.legend(figure)
    of = coherence.set_index(["grouping", "relation"])
    apart, ceiling = of.loc[("cluster", "difference")], of.loc[("random", "halves"), "value"]
    title = (f"Gradients within a cluster: cosine higher by {apart['value']:.3f} ({apart['ci_low']:.3f} to "
             f"{apart['ci_high']:.3f}); same prompts, new rollouts: {ceiling:.2f}")  # fmt: skip
    return figure, title, (
        f"n = {int(coherence['n'].max())} prompts that the filter kept, at the base policy; {int(coherence['n_zero'].max())} "
        "have no gradient (all rewards equal). Bars: 95 % bootstrap over prompts."
    )


# Training.


@figure_of("world_controls")
def world_controls(table: pd.DataFrame) -> Drawn:
    """Exact accuracy of the controls over training, and what each gains over the random order of its seed."""
    random = table[table["arm"] == "random"].set_index(["seed", "step"])["exact"]
    runs = table.join(random.rename("random"), on=["seed", "step"]).assign(exact=100 * table["exact"])
    runs = runs.assign(gain=(runs["exact"] - 100 * runs["random"]).where(runs["arm"] != "random"))
    long = over_runs(runs, {"exact": "Held-out problems (%)", "gain": "Difference to random (points)"})
    figure = lines(long, arm_looks(table["arm"]), columns=2, xlabel="Optimiser step")
    last = runs[(runs["step"] == runs["step"].max()) & (runs["arm"] == "nearest_half")]["gain"].mean()
    text = f"n = {table['problems'].max()} held-out problems, seeds: {table['seed'].nunique()}. Bands: 95 % t interval."
    return figure, f"Training on pass rates nearest one half gains {last:.1f} points over a random order", text


@figure_of("training_curves")
def training_curves(curves: pd.DataFrame) -> Drawn:
    """Reward and share of groups without variance by step."""
    titles = {"reward_mean": "Mean reward (0 to 1)", "zero_variance_share": "Share of groups without gradient"}
    runs = curves.melt(["arm", "seed", "step"], list(titles), "panel", "raw").sort_values("step", kind="stable")
    mean, smoothing = smoothed(runs, ["panel", "arm", "seed"])
    wide = runs.assign(raw=mean).pivot(index=["arm", "seed", "step"], columns="panel", values="raw").reset_index()
    figure = lines(over_runs(wide, titles), arm_looks(curves["arm"]), columns=2, every=max(1, curves["step"].nunique() // 8),
                   xlabel="Optimiser step", sharex=True, subplot_kw={"ylim": (0, 1)})  # fmt: skip
    means = curves.groupby("arm")["zero_variance_share"].mean()
    told = " and ".join(f"{100 * share:.0f} % of {arm_name(arm)}'s" for arm, share in means.items())
    text = f"n = {span(curves.groupby('arm')['seed'].nunique())} seeds; band: 95 % t interval over seeds; {smoothing}."
    return figure, f"Over the run {told} groups give no gradient", text


PAPER_ARMS = ("grpo", "dapo", "diff", "adarft", "gainrl", "saerl_grpo", "saerl_dapo")
CURVED = {"mean_avg": "Mean accuracy of all sets (%)", "zero_variance_share": "Share of groups without gradient"}


@figure_of("study_curves", "study_runs")
def study_curves(runs: pd.DataFrame) -> Drawn:
    """Accuracy and groups without a gradient by generated rollouts, for the paper's arms; entropy stands in the table. The first
    and the last evaluation are of more problems and not comparable with the others: they stand in the table too."""
    runs = runs[runs["arm"].isin(PAPER_ARMS) & (runs["part"] == "run")]
    runs = runs[runs["problems"] == runs["problems"].min()]
    rollouts = runs.groupby(["arm", "step"])["rollouts"].mean().rename_axis(["group", "x"]).div(1000).reset_index()
    long = over_runs(runs, CURVED).merge(rollouts, on=["group", "x"]).drop(columns="x").rename(columns={"rollouts": "x"})
    figure = lines(long, arm_looks(runs["arm"]), columns=2, height=2.0, xlabel="Rollouts generated (thousands)", sharex=True)
    last = runs[runs["step"] == runs["step"].max()].groupby("arm")["mean_avg"].mean().sort_values(ascending=False)
    first, final = (f"{arm_name(last.index[place])} at {last.iloc[place]:.1f} %" for place in (0, -1))
    return figure, f"After {runs['step'].max()} steps {first} is highest and {final} lowest", (
        f"n = {span(runs.groupby('arm')['seed'].nunique())} matched seeds, {runs['problems'].max()} problems. Lines: means; "
        "bands: 95 % t interval over seeds."
    )


EFFECTS = ("paper", "ablation", "batch", "transfer", "features", "online")
"""Families of comparisons that are drawn; the others stand in the table alone."""
DECIDED = {"above": Look(plots.GREEN), "below": Look(plots.VERMILLION), "open": Look(BLUE), "early": Look(GREY, hollow=True)}


@figure_of("study_effects", "study_comparisons")
def study_effects(comparisons: pd.DataFrame) -> Drawn:
    """The main comparisons of the outcome in points, with Holm's interval within its family."""
    own = comparisons["metric"].eq("outcome") & comparisons["family"].isin(EFFECTS)
    table = with_claims(comparisons[own & ~comparisons["arm"].isin(("saerl_online_sharp", "saerl_online_rate"))])
    early = table["n_seeds"] < table["family"].map(planned_seeds)
    look = np.select([early, table["holm_low"] > 0, table["holm_high"] < 0], ["early", "above", "below"], "open")
    names = [f"{arm_name(first)} - {arm_name(second)}" for first, second in zip(table["arm"], table["baseline"], strict=True)]
    table = table.assign(row=names, look=look, panel="", value=table["difference"], ci_low=table["holm_low"],
                         ci_high=table["holm_high"], paper=table["paper_value"],
                         xlabel="Accuracy, first minus second (points)")  # fmt: skip
    figure = forest(first_by(table, "family", EFFECTS), DECIDED, row_height=min(0.155, 3.0 / len(table)), chance=0.0)
    plots.legend(figure)
    main = table[(table["arm"] == "saerl_grpo") & (table["baseline"] == "grpo")]
    title = [f"SAERL - GRPO: {r.value:.1f} points ({r.ci_low:.1f} to {r.ci_high:.1f})" for r in main.itertuples()]
    title.append(f"Of {len(table)} comparisons {(look == 'above').sum()} above 0, {(look == 'below').sum()} below")
    return figure, ". ".join(title), (
        f"Mean of the last three evaluations; n = {span(table['n_seeds'])} matched seeds. Bars: 95 %, corrected by Holm within a "
        "family of comparisons. Green and red exclude 0. " + "Grey: fewer seeds than planned. " * bool(early.any())
        + "Open squares: the paper's tables."
    )  # fmt: skip


@figure_of("study_updates", "study_comparisons")
def study_updates(comparisons: pd.DataFrame) -> Drawn:
    """Orders against the random order of the same loss and optimizer."""
    own = comparisons[comparisons["metric"].eq("outcome") & comparisons["family"].eq(UPDATE)]
    setting = f"_({'|'.join(plots.LOSSES)})_({'|'.join(plots.OPTIMIZERS)})$"
    found = own["arm"].str.extract(setting).fillna({0: "token_mean", 1: "adamw"})
    table = own.assign(row=own["arm"].str.replace(setting, "", regex=True).map(arm_name), look=found[0],
                       panel=found[1].map(plots.OPTIMIZERS), value=own["difference"], ci_low=own["holm_low"],
                       ci_high=own["holm_high"], xlabel="Minus random order (points)")  # fmt: skip
    figure = forest(table, plots.LOSSES, list(dict.fromkeys(table["row"])), shift=0.25, row_height=0.34, chance=0.0)
    plots.legend(figure)
    counted = table.assign(above=table["ci_low"] > 0, below=table["ci_high"] < 0).groupby("row", sort=False)
    title = ", ".join(f"{row} {part['above'].sum()} ({part['below'].sum()})" for row, part in counted)
    early = bool((table["n_seeds"] < planned_seeds(UPDATE)).any())
    first = f"{'So far better' if early else 'Better'} (worse) than a random order, of {len(found.drop_duplicates())} settings"
    return figure, f"{first}: {title}", (
        f"Mean of the last three evaluations, n = {span(table['n_seeds'])} matched seeds, each setting at the best rate of its "
        f"random order. Bars: 95 %, corrected by Holm over {len(table)} comparisons."
        + " Fewer seeds than planned: undecided by the protocol." * early
    )  # fmt: skip


@figure_of("study_mixing")
def study_mixing(mixing: pd.DataFrame) -> Drawn:
    """Figure 3: accuracy against the share of a batch that is swapped, relative to h = 0, here and in the paper."""
    here = mixing.assign(group="here", panel="", value=mixing["difference"], x=mixing["paper_swapped"] / 1.28)
    paper = here.assign(group="paper", value=mixing["paper_difference"], ci_low=np.nan, ci_high=np.nan)
    table, seeds = pd.concat([here, paper]), f"here (n = {span(mixing['n_seeds'])} seeds)"
    looks = {"here": Look(BLUE, "o", seeds), "paper": Look(ORANGE, "s", "paper (one run)", hollow=True)}
    figure = lines(table, looks, width=plots.COLUMN_WIDTH, height=2.2, band=False, xlabel="Swapped share of a batch, h / b (%)",
                   ylabel="Accuracy minus h = 0 (points)")  # fmt: skip
    figure.axes[0].axhline(0, color=BLACK, linewidth=0.8)
    clear = mixing[(mixing["ci_low"] > 0) | (mixing["ci_high"] < 0)]
    title = f"{len(clear)} of {int((mixing['swapped_per_batch'] > 0).sum())} amounts of mixing differ from none"
    return figure, title, (
        "Here: mean of the last three evaluations, paired by seed; bars: 95 % t interval, uncorrected; b = 32. Paper: its "
        "Figure 3, step 800, b = 128."
    )  # fmt: skip
