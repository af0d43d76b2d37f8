"""Every figure, at most twenty, drawn from `figures/data/*.csv` alone: the same tables give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saerl_lib.report import plots
from saerl_lib.report.claims import with_claims
from saerl_lib.report.plots import LOOKS, Look, arm_looks, arm_name, by_task, first_by, forest, lines, ordered, over_runs, span
from saerl_lib.report.study import BASELINE, COMPARISONS, PAPER, UPDATE, planned_seeds, study_trend
from saerl_lib.report.tables import LABELS, TOY, TableError, counted, estimate, main_claims, read_table
from saerl_lib.train.arms import HALF

Drawn = tuple[Figure, str, str]
"""The panels, a sentence that says what they show, and their small print."""
FIGURES: dict[str, tuple[tuple[str, ...], Callable[..., Figure]]] = {}
"""Figure name -> (names of its tables, function of these tables); `figure_of` fills it."""


def figure_of(name: str, *tables: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of `tables` (one of the figure's name by default), called with `options`, as the figure `name`. The
    registered one draws what the function returns (`Drawn`)."""

    def register(function: Callable[..., Drawn]) -> Callable[..., Drawn]:
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
    return [
        draw(name, data_folder, figure_folder) for name, (tables, _) in FIGURES.items()
        if all((data_folder / f"{table}.csv").is_file() and len(read_table(table, data_folder)) for table in tables)
    ]  # fmt: skip


# The method, and what of the paper holds here.


@figure_of("method", "claims")
def method(claims: pd.DataFrame) -> Drawn:
    """The method from prompts to training, and below it the main claims in multiples of what the paper found."""
    table = main_claims(claims)
    told = [estimate(row) or row.direction for row in table.itertuples()]
    parts = table[["our_value", "ci_low", "ci_high"]].div(table["paper_value"], axis=0).rename(columns={"our_value": "value"})
    look = table["direction"] + np.where(table["scale"].astype(str).str.startswith(TOY), " toy", "")
    low, high = np.sort(parts[["ci_low", "ci_high"]]).T  # dividing by a negative value turns an interval round
    table = table.assign(value=parts["value"], ci_low=low, ci_high=high, look=look, paper=1.0)
    colours = {"agrees": plots.GREEN, "opposite": plots.VERMILLION}  # of verdicts
    looks = {key: Look(colours.get(key.removesuffix(" toy"), plots.GREY), hollow=key.endswith("toy")) for key in ordered(look)}
    figure = plots.empty(plots.FULL_WIDTH, 3.8)
    plots.flow(figure.add_axes((0.005, 0.515, 0.99, 0.38)))
    below = figure.add_axes((0.345, 0.205, 0.28, 0.29))
    plots.forest_panel(below, table, looks, list(table["row"]), chance=0.0)
    below.set_xlabel("Effect here, in multiples of the paper's")
    for x, column in ((1.05, ["here (95 %)", *told]), (2.03, ["paper", *(f"{v:.3g}" for v in table["paper_value"])])):
        for y, text in enumerate(column, start=-1):
            below.text(x, y, text, transform=below.get_yaxis_transform(), fontsize=7, va="center")
    trained = table.loc[table["n_seeds"] > 1, "n_seeds"]
    return figure, f"{len(table)} main effects: {counted(table)}", (
        f"Squares: the paper. Filled: real data; open: toy task{f', n = {span(trained)} seeds' if len(trained) else ''}. Green: "
        "in the paper's direction; orange: against it, or more steps; grey: undecided. Bars: 95 %."
    )  # fmt: skip


# The representation, and what is read from it.


def _above(pairs: pd.DataFrame, names: Sequence[str]) -> str:
    """On how many tasks of ladder_pairs.csv all SAE latents are better than each of `names`, and by the whole paired interval."""
    pairs, told, said = pairs[pairs["features"] == "sae_all"], [], (" of {} tasks", " significantly")
    for key in names:
        part, name = pairs[pairs["against"] == key], LABELS["against"][key]
        above, clear = (part["difference"] > 0).sum(), (part["ci_low"] > 0).sum()
        told.append(f"better than {name} on {above}{said[0].format(len(part))} ({clear}{said[1]})")
        said = ("", "")
    return f"All SAE latents: {', '.join(told)}"


@figure_of("probe_ladder_world", "probe_ladder", "ladder_pairs", world=True)
@figure_of("probe_ladder", "probe_ladder", "ladder_pairs", world=False)
def ladder(table: pd.DataFrame, pairs: pd.DataFrame, world: bool) -> Drawn:
    """A row a task, of the world or of real data alone, a mark a main feature set; tables without these show what they have."""
    table = table[table["metric"].isin(LABELS["metric"])]
    table, pairs = (own if len(own := part[(part["dataset"] == "world") == world]) else part for part in (table, pairs))
    table = plots.by_set(table)
    kind = "Pearson r" if "pearson" in set(table["metric"]) else "ROC-AUC"
    figure = by_task(table.assign(look=table["row"]), LOOKS["ladder"], f"Accuracy, rho or {kind} on test problems")
    alone = table.pivot_table(index=["dataset", "target"], columns="features", values="value")
    shorter = (alone["length"] > alone["sae_all"]).sum() if {"length", "sae_all"} <= set(alone) else 0
    title = _above(pairs, [name for name in ("tfidf", "dense") if name in set(pairs["against"])])
    return figure, title + f"; length alone is better than they on {shorter}" * bool(shorter), (
        f"Bars: 95 % bootstrap over test problems. Probes of n = {span(table['n_train'])} labels, the same splits and tuning "
        "budget for all sets. Majority / mean: a probe without features."
    )  # fmt: skip


@figure_of("ladder_pairs")
def ladder_pairs(table: pd.DataFrame) -> Drawn:
    """A row a task of real data, a mark a feature set: the metric of all SAE latents minus its, on the same test problems."""
    table = table[table["dataset"] != "world"] if (table["dataset"] != "world").any() else table
    against = LABELS["against"]
    table = table[(table["features"] == "sae_all") & table["against"].isin(against)]
    looks = {name: LOOKS["ladder"][name]._replace(label=f"minus {told}") for name, told in against.items()}
    table = table.assign(look=table["against"], value=table["difference"])
    figure = by_task(table, looks, "Metric of all SAE latents minus that of another set", chance=0.0)
    return figure, _above(table, ordered(table["against"], against)), (
        "Bars: paired 95 % bootstrap over test problems. Right of zero: all SAE latents are read better."
    )


@figure_of("sae_curve")
def sae_curve(table: pd.DataFrame) -> Drawn:
    """Explained variance and two probes against the number of active latents; dense activations as a dashed line."""
    shown = table.assign(panel=table["quantity"], group=table["features"], x=np.log2(table["k"].replace(0, 1)))
    shown = first_by(shown[shown["features"] != "dense"], "quantity", list(LABELS["curve"]))
    figure = lines(shown, LOOKS["curve set"], columns=2, height=1.45)
    for axis, (quantity, name) in zip(figure.axes, LABELS["curve"].items(), strict=False):
        own = table[table["quantity"] == quantity]
        ticks = sorted(own.loc[own["k"] > 0, "k"].unique())
        axis.set_xticks(np.log2(ticks), [f"{k:g}" for k in ticks])
        axis.set_title(f"{name}, n = {span(own['n'])}", fontsize=7.5)
        axis.set_xlabel("Latents retained, k = 32" if quantity.endswith("retained") else "Active latents a token, k")
        for value in own.loc[own["features"] == "dense", "value"]:
            axis.axhline(float(value), color=plots.BLACK, linewidth=0.8, linestyle="--")
    at = table[table["quantity"].eq("explained_variance") & table["k"].eq(32)].set_index("features")["value"]
    names = {"sae": "trained SAE", "pca": "PCA", "sae_untrained": "untrained SAE"}
    kept = ", ".join(f"{name} {100 * at[key]:.0f} %" for key, name in names.items())
    return figure, f"Variance of 256 problems of MATH kept by 32 numbers a token: {kept}", (
        "SAEs of a short training. n: tokens (variance) or test questions. "
        "Bands: 95 % bootstrap. Dashed: the dense activations. x axes are logarithmic."
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
    looks = LOOKS["replay"]
    figure = lines(shown[shown["group"].isin(looks)], looks, band=False, columns=2, height=2.0,
                   ylabel="Groups without gradient\navoided (%)")  # fmt: skip
    for axis, label in zip(figure.axes, ("Spearman rho with the pass rate", "Earlier rollouts (log scale)"), strict=False):
        axis.set_xlabel(label)
    if own := sorted(rollouts.unique()):
        figure.axes[-1].set_xticks(np.log2(np.where(np.array(own) == 0, 0.5, own)), [f"{k:g}" for k in own])
    at = table.set_index(["form", "features", "own_rollouts"])["value"]
    found = {"choosing by SAE latents avoids {:.0f} % of them on DeepScaleR": ("features", "sae_all", 0),
             "{:.0f} % on DSR-sub": ("history", "sae_all", 0),
             "by eight earlier rollouts of a prompt {:.0f} %": ("history", "none", 8)}  # fmt: skip
    told = [name.format(at[key]) for name, key in found.items() if key in at.index]
    dense = [("features", "dense", 0), ("history", "dense", 0)]
    beside = " and ".join(f"{at[key]:.0f} %" for key in dense if key in at.index)
    return figure, "Groups without a gradient: " + ", ".join(told), (
        f"A quarter of the prompts is taken. Left: n = {text['n'].max():,} prompts of DeepScaleR, each seen once; right: "
        f"n = {past['n'].max():,} prompts of DSR-sub. Dense activations avoid {beside}. Bars: 95 % bootstrap over prompts and "
        "streams."
    )  # fmt: skip


@figure_of("representation")
def representation(table: pd.DataFrame) -> Drawn:
    """What the rule of the retained set costs: a row a task, a mark a rule; what reading prompts alone costs, as text."""
    rules = table[table["choice"] == "retained set"]
    figure = by_task(rules.assign(look=rules["option"]), LOOKS["rule"], "Accuracy or correlation on test samples")
    best = rules.loc[rules.groupby(["dataset", "target"])["value"].idxmax()]
    topics = best["metric"] == "accuracy"
    read = {name: ", ".join(dict.fromkeys(best.loc[rows, "option"].map(lambda rule: LOOKS["rule"][rule].label)))
            for name, rows in (("topics", topics), ("difficulty", ~topics))}  # fmt: skip
    spans = table[table["choice"] == "spans"].set_index("option")["value"]
    names = {"prompt and solution": "both spans", "prompt only": "the prompt alone"}
    told = [f"{name} {spans[key]:.3f}" for key, name in names.items() if key in spans]
    title = f"Of {len(best)} tasks retained latents read topics best by {read['topics']}, difficulty by {read['difficulty']}"
    return figure, title, (
        "ANOVA and elastic net choose by labels of difficulty, variance and gradient without labels. Bars: 95 % bootstrap over "
        "test samples." + (f" Difficulty of the toy task (rho): {', '.join(told)}." if told else "")
    )


# Clusters, difficulty, filter.


@figure_of("calibration")
def calibration(bins: pd.DataFrame) -> Drawn:
    """Mean label minus mean prediction by bin, of the difficulty score and of the two it is made from."""
    shift = bins["predicted_mean"]
    table = bins.assign(value=bins["label_mean"] - shift, ci_low=bins["ci_low"] - shift, ci_high=bins["ci_high"] - shift, x=shift,
                        group=bins["score"], panel="")  # fmt: skip
    figure = lines(table, LOOKS["score"], height=2.0, width=plots.COLUMN_WIDTH, band=False,
                   xlabel="Predicted difficulty (label units)", ylabel="Label minus prediction\n(label units)")  # fmt: skip
    figure.axes[0].axhline(0, color=plots.BLACK, linewidth=0.8, linestyle="--")
    away = table["value"].abs().groupby(bins["score"]).mean()
    told = ", ".join(f"{away[score]:.3f} ({label})" for score, label in reversed(LABELS["score"].items()) if score in away)
    return figure, f"Mean label and mean prediction of a bin differ on average by {told}", (
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
    table = first_by(first_by(table, "row", ordered(table["row"], LABELS["set"])), "panel", list(panels.values()))
    figure = forest(table, LOOKS["rung"], columns=2, labels=LABELS["set"], row_height=0.145)
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
                        xlabel=f"{name} (%)".capitalize()) for name in ("purity", "recall")]  # fmt: skip
    table = plots.by_set(pd.concat([auc, *parts]))
    sets = ("sae_all", "sae", "sae_plain", "sae_untrained", "dense", "tfidf", "tfidf_plain", "metadata")
    table = table[table["row"].isin(sets)]  # on the wide axis of the others these would lie on one another
    rows = ordered(table["row"], sets)
    figure = forest(table, LOOKS["rung"], rows, labels=LABELS["set"], row_height=0.22)
    sae, tfidf = auc.set_index("features")["value"].reindex(["sae", "tfidf"])
    return figure, f"The source of a question: ROC-AUC {sae:.3f} from SAE features, {tfidf:.3f} from TF-IDF", (
        f"DeepMath against DeepScaleR, n = {int(auc['n_test'].max()):,} questions. Open squares: paper, Table 6, for DeepMath "
        "and NuminaMath-1.5, another pair. No formula delimiters: the sources mark formulas differently. Purity: kept questions "
        "that are DeepMath's; recall: DeepMath's that are kept. Bars of ROC-AUC: 95 % bootstrap."
    )  # fmt: skip


@figure_of("real_flaws")
def real_flaws(frame: pd.DataFrame) -> Drawn:
    """ROC-AUC of each score against people's judgement that a question is ill posed, whatever its flaw; dashed at 0.5."""
    table = frame[frame["metric"].eq("roc_auc") & frame["score"].ne("chance") & frame["flaw"].eq("any")]
    table = table.assign(row=table["score"], panel="", xlabel="ROC-AUC, ill-posed\nquestions of ValiMath",
                         look=table["score"].eq("source_probe"))  # fmt: skip
    looks, rows = {False: Look(plots.BLUE), True: Look(plots.VERMILLION)}, ordered(table["score"], LABELS["flaw score"])
    figure = forest(table, looks, rows, labels=LABELS["flaw score"], width=plots.COLUMN_WIDTH, chance=0.5, row_height=0.17)
    value, flawed, sound = table.set_index("score")["value"], *table.iloc[0][["n_flawed", "n_sound"]]
    title = f"Ill-posed questions: source probe {value['source_probe']:.2f}, best probe trained on flaws {value.max():.2f}"
    return figure, title, (
        f"n = {flawed + sound:,} questions, {flawed:,} of them flawed. Below 0.5 a score points the wrong way. * uses "
        "other judged questions. SelfReg: SAE columns weigh less, the more metadata explain them. Bars: 95 % bootstrap."
    )


# The batch plan.


@figure_of("batch_composition")
def batch_composition(batches: pd.DataFrame) -> Drawn:
    """Three panels over training steps, a line an order: share of the largest cluster, clusters, mean ranking score."""
    names = LABELS["quantity"]
    smooth, smoothing = plots.smoothed(batches, ["order"], list(names))
    long = smooth.rename(columns={"step": "x", "order": "group", **names}).melt(["group", "x"], list(names.values()), "panel")
    figure = lines(long, arm_looks(batches["order"]), columns=1, height=1.0, every=max(1, batches["step"].nunique() // 8),
                   xlabel="Optimiser step", sharex=True)  # fmt: skip
    share = 100 * batches.groupby("order")["dominant_share"].mean()
    title = f"The largest cluster fills {share['saerl']:.0f} % of a planned batch, {share['random']:.0f} % of a random one"
    return figure, title, f"n = {span(batches.groupby('order').size())} batches an order; {smoothing}."


@figure_of("plan_sensitivity")
def plan_sensitivity(rows: pd.DataFrame) -> Drawn:
    """Share of samples that move by more than a tenth of the run, a row a changed setting, beside other k-means seeds."""
    noise = rows.loc[rows["varied"] == "k-means seed", "share_moved"]
    names = LABELS["setting"]
    changed = first_by(rows[rows["varied"].isin(names)], "varied", list(names))
    said = changed["varied"].map(names), changed["setting"].map(plots.readable), changed["default"].map(plots.readable)
    names = [f"{name}: {setting} ({default})" for name, setting, default in zip(*said, strict=True)]
    table = changed.assign(row=names, panel="", value=changed["share_moved"])
    figure = forest(table, None, names, width=plots.COLUMN_WIDTH, row_height=0.17)
    axis = figure.axes[0]
    axis.axvspan(noise.min(), noise.max(), color=plots.LIGHT, alpha=0.6, linewidth=0)
    axis.axvline(0.81, color=plots.GREY, linewidth=0.8, linestyle=":")  # of two random orders: 1 - 2 * 0.1 + 0.1^2
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
    shown = coherence[coherence["relation"].isin(LOOKS["relation"])]
    table = shown.assign(row=shown["grouping"], look=shown["relation"], panel="", xlabel="Cosine of the gradients of two batches")
    rows = list(shown["grouping"].unique())
    figure = forest(table, LOOKS["relation"], rows, shift=0.3, row_height=0.28, width=plots.COLUMN_WIDTH)
    of = coherence.set_index(["grouping", "relation"])
    apart, ceiling = of.loc[("cluster", "difference")], of.loc[("random", "halves"), "value"]
    title = (f"Gradients within a cluster: cosine higher by {apart['value']:.3f} ({apart['ci_low']:.3f} to "
             f"{apart['ci_high']:.3f}); same prompts, new rollouts: {ceiling:.2f}")  # fmt: skip
    return figure, title, (
        f"n = {int(coherence['n'].max())} planned prompts, at the base policy; {int(coherence['n_zero'].max())} "
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
    gains = runs[runs["arm"] == "nearest_half"].groupby("step")["gain"].mean().iloc[-2:]
    told = ", ".join(f"{gain:.1f} points after {step} steps" for step, gain in gains.items())
    text = f"n = {table['problems'].max()} held-out problems, seeds: {table['seed'].nunique()}. Bands: 95 % t interval."
    return figure, f"Training on prompts whose true pass rate is nearest one half gains over a random order: {told}", text


@figure_of("training_curves")
def training_curves(curves: pd.DataFrame) -> Drawn:
    """Reward and share of groups without variance by step."""
    titles = LABELS["training curve"]
    runs, smoothing = plots.smoothed(curves, ["arm", "seed"], list(titles))
    figure = lines(over_runs(runs, titles), arm_looks(curves["arm"]), columns=2, every=max(1, curves["step"].nunique() // 8),
                   xlabel="Optimiser step", sharex=True, subplot_kw={"ylim": (0, 1)})  # fmt: skip
    shown = runs.groupby(["arm", "step"])["reward_mean"].mean().groupby("arm")
    told = ", ".join(f"{arm_name(arm)} {low:.2f} to {high:.2f}" for arm, low, high in shown.agg(["min", "max"]).itertuples())
    text = f"n = {span(curves.groupby('arm')['seed'].nunique())} seeds; band: 95 % t interval over seeds; {smoothing}. "
    text += "The reward is that of each order's own prompts: it compares neither the orders nor the ends of a run."
    return figure, f"Smoothed reward, lowest to highest: {told}", text


@figure_of("study_curves", "study_runs")
def study_curves(runs: pd.DataFrame) -> Drawn:
    """Accuracy and groups without a gradient by generated rollouts, for the paper's arms; entropy stands in the table. The first
    and the last evaluation are of more problems and not comparable with the others: they stand in the table too. The title
    compares at the rollouts that every arm has reached, linear between evaluations."""
    paper = COMPARISONS[COMPARISONS["family"] == PAPER]
    runs = runs[runs["arm"].isin([*paper["arm"], *paper["baseline"]]) & (runs["part"] == "run")]
    runs, panels = runs[runs["problems"] == runs["problems"].min()], LABELS["study curve"]
    rollouts = runs.groupby(["arm", "step"])["rollouts"].mean().rename_axis(["group", "x"]).div(1000).reset_index()
    long = over_runs(runs, panels).merge(rollouts, on=["group", "x"]).drop(columns="x").rename(columns={"rollouts": "x"})
    figure = lines(long, arm_looks(runs["arm"]), columns=2, height=2.3, every=2, xlabel="Rollouts generated (thousands)",
                   sharex=True)  # fmt: skip
    curves = long[long["panel"] == panels["mean_avg"]].sort_values("x")
    at = curves.groupby("group")["x"].max().min()
    values = {arm_name(arm): np.interp(at, part["x"], part["value"]) for arm, part in curves.groupby("group")}
    order = sorted(values, key=values.__getitem__, reverse=True)
    told = ", ".join(f"{arm} {values[arm]:.1f} %" for arm in order)
    figure.axes[0].set(ylim=(curves.loc[curves["x"] > at / 3, "value"].min(), None), xlim=(at / 3, None))  # where they part
    return figure, f"After {1000 * at:,.0f} rollouts {order[0]} is ahead: {told}", (
        f"n = {span(runs.groupby('arm')['seed'].nunique())} matched seeds, {runs['problems'].max()} problems. Lines: means; "
        "bands: 95 % t interval over seeds. The first third of the run is left out. DAPO draws more rollouts a step."
    )


@figure_of("study_effects", "study_comparisons", "study_summary")
def study_effects(comparisons: pd.DataFrame, summary: pd.DataFrame) -> Drawn:
    """The main comparisons of the outcome in points, with Holm's interval within its family; a name says how many times the
    rollouts, where the arms generate unequal ones."""
    families = ("paper", "ablation", "batch", "features", "wide")  # intervals of a real model are far wider
    own = comparisons["metric"].eq("outcome") & comparisons["family"].isin(families)
    twins = comparisons["family"].eq("wide") & comparisons["baseline"].ne("grpo_wide")
    table = with_claims(comparisons[own & ~twins])
    early = table["n_seeds"] < table["family"].map(planned_seeds)
    look = np.select([early, table["holm_low"] > 0, table["holm_high"] < 0], ["early", "above", "below"], "open")
    rollouts = summary.set_index("arm")["rollouts"]
    times = table["arm"].map(rollouts) / table["baseline"].map(rollouts)
    names = [f"{arm_name(row.arm)} vs {arm_name(row.baseline)}" + (f" ({by:.2f}x rollouts)" if abs(by - 1) > 0.05 else "")
             for row, by in zip(table.itertuples(), times, strict=True)]  # fmt: skip
    table = table.assign(row=names, look=look, panel="", value=table["difference"], ci_low=table["holm_low"],
                         ci_high=table["holm_high"], paper=table["paper_value"],
                         xlabel="Accuracy, first minus second (points)")  # fmt: skip
    figure = forest(first_by(table, "family", families), LOOKS["verdict"], row_height=min(0.17, 3.0 / len(table)), chance=0.0)
    plots.legend(figure)  # empty: it holds the title
    unsure = {"open": " (interval includes 0)", "early": " (so far)"}
    told = [f"{abs(row.value):.1f} points {'above' if row.value > 0 else 'below'} {name}{unsure.get(row.look, '')}"
            for baseline, name in (("grpo", "a random order"), ("diff", "easy to hard"))
            for row in table[(table["arm"] == "saerl_grpo") & (table["baseline"] == baseline)].itertuples()]  # fmt: skip
    return figure, f"SAERL ends {' and '.join(told)}", (
        f"Mean of the last three evaluations; n = {span(table['n_seeds'])} matched seeds. Bars: 95 %, corrected by Holm within a "
        "family of comparisons. Green and orange exclude 0, blue does not. "
        + "Grey: fewer seeds than planned. " * bool(early.any()) + "Open squares: the paper's tables. SAERL's scores are blurred."
    )  # fmt: skip


@figure_of("study_updates", "study_comparisons", "study_summary")
def study_updates(comparisons: pd.DataFrame, summary: pd.DataFrame) -> Drawn:
    """A panel an order, a row a setting of loss, optimizer and rate: the order against the random order of its setting. Settings
    stand by where that random order ends, the farthest on top."""
    family, losses, optimizers = comparisons["family"], LABELS["loss"], LABELS["optimizer"]
    own = comparisons["metric"].eq("outcome") & family.isin([UPDATE, HALF]) & family.eq(UPDATE).any()
    table = comparisons[own & comparisons["baseline"].str.startswith(BASELINE)].reset_index(drop=True)
    setting = f"_(?:({'|'.join(losses)})_({'|'.join(optimizers)})|{HALF})$"
    found = table["arm"].str.extract(setting).fillna({0: "token_mean", 1: "adamw"})
    found = found.assign(end=table["baseline"].map(summary.set_index("arm")["outcome"]), half=table["family"].eq(HALF))
    names = [f"{optimizers[by]}, {losses[loss]}{', half rate' * half}: {end:.1f} %" for loss, by, end, half in found.to_numpy()]
    table = table.assign(panel=table["arm"].str.replace(setting, "", regex=True).map(arm_name), row=names, end=found["end"],
                         look=found[1], value=table["difference"], ci_low=table["holm_low"], ci_high=table["holm_high"],
                         xlabel="Difference (points)")  # fmt: skip
    rows = list(table.sort_values("end", ascending=False, kind="stable")["row"].unique())
    figure = forest(table, LOOKS["optimizer"], rows, columns=2, row_height=0.15, chance=0.0)
    for axis in figure.axes:
        axis.set_xlim(table["ci_low"].min() - 0.2, table["ci_high"].max() + 0.2)  # one scale
    early = bool((table["n_seeds"] < planned_seeds(UPDATE)).any())
    said = study_trend(table[table["panel"] == arm_name("diff")])
    return figure, f"So far {said}" if early else said[0].upper() + said[1:], (
        f"Each order minus the random order of its setting, whose end stands beside the name. DIFF: easy to hard. Mean of the "
        f"last three evaluations, n = {span(table['n_seeds'])} seeds. Each setting uses the rate whose random order ends highest "
        "among rates that forget at most 2 % of the problems; half the main rate came later. Bars: 95 %, Holm in each family."
        + f" Not final: {planned_seeds(UPDATE)} seeds are planned." * early
    )  # fmt: skip


@figure_of("study_mixing")
def study_mixing(mixing: pd.DataFrame) -> Drawn:
    """Figure 3: accuracy against the share of a batch that is swapped, relative to h = 0, here and in the paper."""
    here = mixing.assign(group="here", panel="", value=mixing["difference"], x=mixing["paper_swapped"] / 1.28)
    paper = here.assign(group="paper", value=mixing["paper_difference"], ci_low=np.nan, ci_high=np.nan)
    table, seeds = pd.concat([here, paper]), f"here (n = {span(mixing['n_seeds'])} seeds)"
    looks = {"here": Look(plots.BLUE, "o", seeds), "paper": Look(plots.ORANGE, "s", "paper (one run)", hollow=True)}
    figure = lines(table, looks, width=plots.COLUMN_WIDTH, height=2.2, band=False, xlabel="Swapped share of a batch, h / b (%)",
                   ylabel="Accuracy minus h = 0 (points)")  # fmt: skip
    figure.axes[0].axhline(0, color=plots.BLACK, linewidth=0.8)
    clear = mixing[(mixing["ci_low"] > 0) | (mixing["ci_high"] < 0)]
    tried = int((mixing["swapped_per_batch"] > 0).sum())
    title = f"{tried - len(clear)} of {tried} amounts of mixing are undecided"
    return figure, title, (
        "Here: mean of the last three evaluations, paired by seed; bars: 95 % t interval, uncorrected; b = 32. Paper: its "
        "Figure 3, step 800, b = 128."
    )  # fmt: skip
