"""Every figure, drawn from `figures/data/*.csv` alone: no model, no GPU, no download; the same tables give the same bytes.

A function takes the tables of its figure, brings them into the form of `plots.forest` or `plots.lines`, and returns the panels,
a title that says what they show, and the small print. At most twenty figures: what else is measured is shown as a table.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saerl_lib.report import plots
from saerl_lib.report.claims import with_claims
from saerl_lib.report.plots import BLACK, BLUE, GREY, ORANGE, Look, arm_looks, arm_name, forest, lines, ordered, span
from saerl_lib.report.statistics import over_seeds
from saerl_lib.report.study import planned_seeds
from saerl_lib.report.tables import TableError, read_table

Drawn = tuple[Figure, str, str]
"""The panels, their title ("": none), and their small print."""
FIGURES: dict[str, tuple[tuple[str, ...], Callable[..., Figure]]] = {}
"""Figure name -> (names of its tables, function of these tables); `figure_of` fills it."""


def figure_of(name: str, *tables: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of `tables` (one of the figure's name by default), called with `options`, as the figure `name`.

    The function returns its panels, what they show ("": no title) and their small print; the registered one draws all three.
    """

    def register(function: Callable[..., Drawn]) -> Callable[..., Drawn]:
        @functools.wraps(function)
        def drawn(*frames: pd.DataFrame) -> Figure:
            with matplotlib.style.context(plots.STYLE):
                figure, title, text = function(*frames, **options)
                if figure.legends:  # constrained layout keeps no room for two things above the panels
                    figure.legends[0].set_title(title, {"size": 8})
                elif title:
                    figure.suptitle(title, fontsize=8)
                filled = textwrap.fill(text, int(figure.get_figwidth() * 19))
                figure.supxlabel(filled, fontsize=7, color="#333333", x=0.01, ha="left")
            return figure

        FIGURES[name] = (tables or (name,), drawn)
        return function

    return register


def draw(name: str, data_folder: Path, figure_folder: Path) -> Path:
    """Draw figure `name` from its CSV tables; returns the PNG, the PDF lies beside it.

    Raises TableError for an unknown figure, a missing table or a missing column (naming the notebook that writes it),
    ArtifactError when the folder cannot be written.
    """
    if name not in FIGURES:
        raise TableError(f"figure {name!r} is not known; choose one of {', '.join(FIGURES)}")
    tables, function = FIGURES[name]
    return plots.save(function(*(read_table(table, data_folder) for table in tables)), name, figure_folder)


def draw_all(data_folder: Path, figure_folder: Path) -> list[Path]:
    """Draw every figure whose tables are there; raises as `draw` does."""
    there = {path.stem for path in data_folder.glob("*.csv")}
    return [draw(name, data_folder, figure_folder) for name, (tables, _) in FIGURES.items() if there.issuperset(tables)]


METRICS = {"accuracy": "Accuracy", "spearman": "Spearman rho", "roc_auc": "ROC-AUC", "pearson": "Pearson r"}
"""Metrics that ladders draw; of RMSE and MAE the table alone speaks."""


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


# The representation, and what is read from it.

RUNGS = {
    "sae": Look(BLUE, "o", "SAE"), "control": Look(plots.SKY, "D", "SAE controls"),
    "dense": Look(plots.GREEN, "^", "dense activations"),
    "text": Look(ORANGE, "s", "text: length, metadata, TF-IDF"), "nothing": Look(GREY, "X", "majority / mean, shuffled labels"),
}  # fmt: skip
"""Kind of a feature set -> its look."""
SETS = {
    "sae_all+tfidf": ("sae", "SAE, all latents, and TF-IDF"), "sae_all": ("sae", "SAE, all latents"),
    "sae+metadata": ("sae", "SAE, retained, and metadata"), "sae": ("sae", "SAE, retained"), "sae_seed_1": ("sae", "SAE, seed 1"),
    "sae_seed_2": ("sae", "SAE, seed 2"), "sae_plain": ("sae", "SAE, no $ signs"), "sae_short": ("sae", "SAE, short training"),
    "sae_frozen_decoder": ("control", "SAE, frozen decoder"), "sae_untrained_all": ("control", "untrained SAE, all"),
    "sae_untrained": ("control", "untrained SAE"), "sae_shuffled_labels": ("nothing", "SAE, shuffled labels"),
    "dense_pca": ("dense", "dense, PCA"), "dense": ("dense", "dense"), "tfidf": ("text", "TF-IDF"),
    "tfidf_plain": ("text", "TF-IDF, no $ signs"), "metadata": ("text", "metadata"), "delimiters": ("text", "counts of $ signs"),
    "length": ("text", "length"), "shuffled_labels": ("nothing", "shuffled labels"),
    "majority / mean": ("nothing", "majority / mean"),
}  # fmt: skip
"""Feature sets from top to bottom, with their kind and their one name in every figure."""
SET_NAMES = {key: name for key, (_, name) in SETS.items()} | {"kmeans_seeds": "k-means seeds", "sae_seeds": "SAE seeds"}
DATA_SETS = {
    "math_test": "MATH", "deepmath_18k": "DeepMath", "deepscaler_pass_rate": "DeepScaleR", "quality_valimath": "ValiMath",
    "dsr_sub_training_accuracy": "DSR-sub", "world": "",
}  # fmt: skip


def _by_set(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the row and the look of each feature set."""
    row = table["features"].replace({name: "majority / mean" for name in ("majority", "mean", "majority|mean")})
    return table.assign(row=row, look=[SETS.get(name, ("control", ""))[0] for name in row])


def _tasks(table: pd.DataFrame) -> list[str]:
    """Data set and target of each row, as a title; the world goes without saying."""
    names = [DATA_SETS.get(name, plots.readable(name)) for name in table["dataset"]]
    return [(f"{name}:\n" if name else "") + plots.readable(of) for name, of in zip(names, table["target"], strict=True)]


LADDER_TEXT = (
    "Bars: 95 % bootstrap over test problems and, where a set has several, over SAE seeds. Dotted: TF-IDF. All sets: the "
    "same splits and the same tuning budget."
)


@figure_of("probe_ladder_world", "probe_ladder", world=True)
@figure_of("probe_ladder", world=False)
def ladder(table: pd.DataFrame, world: bool) -> Drawn:
    """A panel a task, a row a feature set, of the world or of real data alone; a table without these shows what it has."""
    table = table[table["metric"].isin(METRICS)]
    own = table[(table["dataset"] == "world") == world]
    table = own if len(own) else table
    several = table.groupby(["dataset", "target"])["metric"].transform("nunique") > 1
    metric = table["metric"].map(METRICS)
    sizes = [f"{m}\n(train {train:,}, test {test:,})"
             for m, train, test in zip(metric, table["n_train"], table["n_test"], strict=True)]  # fmt: skip
    panel = [task + (f", {m}" if s else "") for task, m, s in zip(_tasks(table), metric, several, strict=True)]
    table = _by_set(table).assign(panel=panel, xlabel=sizes)
    figure = forest(table, RUNGS, ordered(table["row"], SETS), labels=SET_NAMES, row_height=0.14)
    for axis, (_, part) in zip(figure.axes, table.groupby("panel", sort=False), strict=False):
        for best in part.loc[part["row"] == "tfidf", "value"]:
            axis.axvline(float(best), color=ORANGE, linewidth=0.7, linestyle=":")
    plots.legend(figure, 3)
    return figure, "", LADDER_TEXT


@figure_of("ladder_pairs")
def ladder_pairs(table: pd.DataFrame) -> Drawn:
    """A panel a task of real data, a row a pair of feature sets: difference of the metric on the same test problems."""
    table = table[table["dataset"] != "world"] if (table["dataset"] != "world").any() else table
    row = [" - ".join(SET_NAMES.get(name, plots.readable(name)) for name in pair)
           for pair in zip(table["features"], table["against"], strict=True)]  # fmt: skip
    table = table.assign(panel=_tasks(table), row=row, value=table["difference"], xlabel=table["metric"].map(METRICS))
    figure = forest(table, None, list(dict.fromkeys(row)), columns=2, row_height=0.15, chance=0.0)
    clear, told = table["ci_low"] > 0, []
    for against, name in (("tfidf", "TF-IDF"), ("dense", "dense"), ("sae_untrained_all", "the untrained SAE")):
        own = (table["features"] == "sae_all") & (table["against"] == against)
        told += [f"{name} on {int(clear[own].sum())} of {int(own.sum())}"] if own.any() else []
    return figure, f"Tasks that all SAE latents read better than\n{', '.join(told)}", (
        "Bars: paired 95 % bootstrap over test problems. Right of zero: the first set of a row is read better."
    )


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
    shown = first_by(shown[shown["features"] != "dense"], "quantity", list(CURVES))
    figure = lines(shown, CURVE_LOOKS, columns=2, xlabel="Active latents a token, k (last panel: n)")
    for axis, quantity in zip(figure.axes, CURVES, strict=False):
        ticks = sorted(table.loc[(table["quantity"] == quantity) & (table["k"] > 0), "k"].unique())
        axis.set_xticks(np.log2(ticks), [f"{k:g}" for k in ticks])
        for value in table.loc[(table["quantity"] == quantity) & (table["features"] == "dense"), "value"]:
            axis.axhline(float(value), color=BLACK, linewidth=0.8, linestyle="--")
    at = table[table["quantity"].eq("explained_variance") & table["k"].eq(32)].set_index("features")["value"]
    names = {"sae": "the SAE", "pca": "PCA", "sae_untrained": "as drawn"}
    kept = ", ".join(f"{name} {100 * at[key]:.0f} %" for key, name in names.items() if key in at)
    return figure, kept and f"Variance kept by 32 numbers a token: {kept}", (
        "Bands: 95 % bootstrap over test problems, questions alone. Dashed: the dense activations themselves."
    )


REPLAY_LOOKS = {
    "simulated": Look(GREY, "", "simulated score"), "sae_all": Look(BLUE, "o", "SAE"), "dense": Look(plots.GREEN, "^", "dense"),
    "tfidf": Look(ORANGE, "s", "TF-IDF"), "clusters": Look(plots.PURPLE, "D", "clusters"), "none": Look(BLACK, "v", "nothing"),
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
            quarter & ((table["form"] == "features") | simulated)],
        table.assign(**teaching, panel=SCREENED, group=group, x=table["own_rollouts"])[
            screening & (quarter | (table["features"] == "none"))],
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
    text = table[quarter & (table["form"] == "features") & (table["features"] == "sae_all")].index
    past = table[quarter & (table["form"] == "history") & (table["features"] == "none") & (table["own_rollouts"] == 8)].index
    found = [f"{name} {saved['value'][place[0]]:.0f} %" for name, place in (("SAE features", text), ("one earlier epoch", past))
             if len(place)]  # fmt: skip
    return figure, "Silent groups saved: " + ", ".join(found), (
        "Bars: 95 % bootstrap over prompts and streams. Left, middle: DeepScaleR, seen once; right: DSR-sub's record."
    )


@figure_of("representation")
def representation(table: pd.DataFrame) -> Drawn:
    """What the rule of the retained set and reading prompts alone cost: a panel a choice and target, a row an option."""
    names = [plots.readable(o) + (f"\n({s:.0%} shared)" if c == "retained set" else "")
             for o, c, s in zip(table["option"], table["choice"], table["shared_with_default"], strict=True)]  # fmt: skip
    panel = [f"{task}\nby {choice}" for task, choice in zip(_tasks(table), table["choice"], strict=True)]
    sizes = [f"{METRICS.get(m, m)}\n(n = {n:,})" for m, n in zip(table["metric"], table["n_test"], strict=True)]
    figure = forest(table.assign(row=names, panel=panel, xlabel=sizes), columns=3, row_height=0.22)
    return figure, "", "Bars: 95 % bootstrap over test samples. Shared: part of the default's retained latents."


# Clusters, difficulty, filter.

SCORES = {"raw": Look(GREY, "s", "raw"), "global": Look(ORANGE, "^", "global map"),
          "ranking": Look(BLUE, "o", "and cluster residual")}  # fmt: skip


@figure_of("calibration")
def calibration(bins: pd.DataFrame) -> Drawn:
    """Reliability of the difficulty score and of the two it is made from: mean label against mean prediction by bin."""
    table = bins.rename(columns={"label_mean": "value", "predicted_mean": "x", "score": "group"}).assign(panel="")
    figure = lines(table, SCORES, height=2.5, width=plots.COLUMN_WIDTH, band=False, xlabel="Predicted difficulty",
                   ylabel="Difficulty label")  # fmt: skip
    axis, ends = figure.axes[0], table[["x", "value"]].agg(["min", "max"]).agg(["min", "max"], axis=1)
    limits = (ends.loc["min", "min"], ends.loc["max", "max"])
    axis.plot(limits, limits, color=BLACK, linewidth=0.8, linestyle="--", zorder=0)
    away = (bins["label_mean"] - bins["predicted_mean"]).abs().groupby(bins["score"]).mean()
    return figure, f"Label and prediction of a bin differ by {away.get('ranking', away.iloc[-1]):.2f}", (
        f"n = {bins.groupby('score')['n'].sum().max():,} held-out labelled samples in bins of equal size; bars: 95 % interval of "
        "the bin's mean; dashed: perfect."
    )  # fmt: skip


AGREEMENT = {"purity": "Purity with subject", "nmi": "NMI with subject", "ari": "ARI with subject", "": "ARI of two fits"}


@figure_of("real_clusters")
def real_clusters(frame: pd.DataFrame) -> Drawn:
    """Agreement of clusters with subjects by features, and of clusters with clusters under other seeds."""
    stable = frame["quantity"].str.startswith("ari_")
    panel = frame["quantity"].where(~stable, "").map(AGREEMENT)
    table = _by_set(frame).assign(panel=panel)[panel.notna()]
    table["row"] = table["row"].where(~stable, table["quantity"].str.removeprefix("ari_"))
    table = first_by(first_by(table, "row", ordered(table["row"], SETS)), "panel", list(AGREEMENT.values()))
    figure = forest(table, RUNGS, columns=2, labels=SET_NAMES, row_height=0.16)
    plots.legend(figure, 3)
    for axis in figure.axes:
        axis.set_xlim(left=min(0.0, axis.get_xlim()[0]))
    purity = frame[frame["quantity"] == "purity"].set_index("features")["value"]
    above = purity.get("sae", np.nan) - purity.get("shuffled_labels", np.nan)
    return figure, f"Clusters of SAE features hold their largest subject {100 * above:.0f} points more often than chance", (
        f"n = {int(frame['n'].max()):,} problems of MATH with solutions, seven subjects. Bars: 95 % bootstrap over problems, "
        "clusters fixed; shuffled subjects and the last panel: least and largest of all shuffles or pairs."
    )  # fmt: skip


@figure_of("real_filter", "real_filter", "real_separation")
def real_filter(rules: pd.DataFrame, separation: pd.DataFrame) -> Drawn:
    """The source probe by features: ROC-AUC, and purity and recall at the threshold p95, with the paper's (Table 6)."""
    auc = separation[separation["metric"] == "roc_auc"]
    auc = auc.assign(panel="DeepMath against DeepScaleR", xlabel="ROC-AUC", paper=auc["paper_value"])
    p95 = rules[rules["rule"] == "p95"]
    parts = [p95.assign(panel=name.capitalize(), value=100 * p95[name], paper=100 * p95[f"paper_{name}"], xlabel="At p95 (%)")
             for name in ("purity", "recall")]  # fmt: skip
    figure = forest(_by_set(pd.concat([auc, *parts])), RUNGS, ordered(auc["features"], SETS), labels=SET_NAMES, row_height=0.18)
    plots.legend(figure, 3)
    sae, tfidf = auc.set_index("features")["value"].reindex(["sae", "tfidf"])
    return figure, f"The source of a question: ROC-AUC {sae:.3f} from SAE features, {tfidf:.3f} from TF-IDF", (
        f"n = {int(auc['n_test'].max()):,} questions in the pool. Open squares: paper, Table 6, on DeepMath and NuminaMath-1.5, "
        "another pair of sources. No $ signs: questions read without the signs around formulas, which the two sources write "
        "differently. Bars: 95 % bootstrap over questions of the pool."
    )  # fmt: skip


FLAW_SCORES = {
    "flaw_probe_sae": "flaw probe, SAE*", "flaw_probe_selfreg": "the same, SelfReg*",
    "flaw_probe_sae_untrained": "flaw probe, untrained SAE*", "flaw_probe_dense": "flaw probe, dense*",
    "flaw_probe_tfidf": "flaw probe, TF-IDF*", "flaw_probe_metadata": "flaw probe, metadata*",
    "flaw_probe_shuffled": "flaw probe, shuffled*", "dsir_per_ngram": "DSIR per n-gram", "dsir": "DSIR",
    "source_probe": "source probe (paper)", "length": "length", "perplexity_prompt": "surprise of the prompt",
}  # fmt: skip
"""Scores from top to bottom: probes trained on flaws, then what knows no label of a flaw."""


@figure_of("real_flaws")
def real_flaws(frame: pd.DataFrame) -> Drawn:
    """ROC-AUC of each score against people's judgement that a question is ill posed, whatever its flaw; dashed at 0.5."""
    table = frame[frame["metric"].eq("roc_auc") & frame["score"].ne("chance") & frame["flaw"].eq("any")]
    table = table.assign(row=table["score"], panel="", xlabel="ROC-AUC, ill-posed\nquestions of ValiMath",
                         look=table["score"].eq("source_probe"))  # fmt: skip
    looks, rows = {False: Look(BLUE), True: Look(plots.VERMILLION)}, ordered(table["score"], FLAW_SCORES)
    figure = forest(table, looks, rows, labels=FLAW_SCORES, width=plots.COLUMN_WIDTH, chance=0.5, row_height=0.17)
    value, flawed, sound = table.set_index("score")["value"], *table.iloc[0][["n_flawed", "n_sound"]]
    title = f"Ill-posed questions: source probe {value['source_probe']:.2f},\nprobe trained on flaws {value.max():.2f}"
    return figure, title, (
        f"{flawed:,} flawed of {flawed + sound:,} questions. The sign of a score was never fitted: below 0.5 it points the wrong "
        "way. * trained on other judged questions; SelfReg: columns that metadata explain count less. Bars: 95 % bootstrap over "
        "questions."
    )


# The batch plan.

QUANTITIES = {"dominant_share": "Share of the\nlargest cluster", "n_clusters": "Clusters\nin the batch",
              "mean_ranking_score": "Mean ranking score\n(difficulty units)"}  # fmt: skip


def smoothed(long: pd.DataFrame, groups: Sequence[str]) -> tuple[pd.Series, str]:
    """Rolling mean of `raw` along the steps of each of `groups`, over a twentieth of the run, and how to say it."""
    window = max(1, long["step"].nunique() // 20)
    mean = long.groupby(list(groups))["raw"].transform(lambda v: v.rolling(window, center=True, min_periods=1).mean())
    return mean, f"rolling mean over {window} steps" if window > 1 else "each step, not smoothed"


@figure_of("batch_composition")
def batch_composition(batches: pd.DataFrame) -> Drawn:
    """Three panels over training steps, a line an order: share of the largest cluster, clusters, mean ranking score."""
    steps = int(batches.groupby("order").size().max())
    long = batches.melt(["order", "step"], list(QUANTITIES), "panel", "raw").sort_values("step", kind="stable")
    mean, smoothing = smoothed(long, ["panel", "order"])
    figure = lines(long.assign(value=mean, x=long["step"], group=long["order"]), arm_looks(batches["order"]), columns=1,
                   height=1.0, every=max(1, steps // 8), xlabel="Optimiser step", titles=False, sharex=True)  # fmt: skip
    for axis, label in zip(figure.axes, QUANTITIES.values(), strict=True):
        axis.set_ylabel(label)
    share = batches.groupby("order")["dominant_share"].mean()
    title = f"The largest cluster fills {100 * share.get('saerl', np.nan):.0f} % of a batch of the plan"
    return figure, title, f"n = {steps} batches an order; {smoothing}."


YARDSTICK, BY_CONSTRUCTION = "k-means seed", ("h", "window")
"""Other seeds measure what counts as noise; tails are swapped within a stage, so that these two settings move nobody far."""
RANDOM_ORDERS = 0.81
"""Share moved between two random orders: 1 - 2 * 0.1 + 0.1^2."""


@figure_of("plan_sensitivity")
def plan_sensitivity(rows: pd.DataFrame) -> Drawn:
    """Share of samples that move by more than a tenth of the run, a row a changed setting, beside other k-means seeds."""
    seeds, changed = rows[rows["varied"] == YARDSTICK], rows[~rows["varied"].isin((YARDSTICK, *BY_CONSTRUCTION))]
    changed = first_by(changed, "varied", ordered(changed["varied"], ("K", "tau_sh", "rest", "unequal")))
    names = [f"{plots.readable(v)} = {plots.readable(s)} ({plots.readable(d)})"
             for v, s, d in zip(changed["varied"], changed["setting"], changed["default"], strict=True)]  # fmt: skip
    table = changed.assign(row=names, panel="", value=changed["share_moved"])
    figure = forest(table, None, names, width=plots.COLUMN_WIDTH, row_height=0.17)
    axis, noise = figure.axes[0], seeds["share_moved"]
    if len(seeds):
        axis.axvspan(noise.min(), noise.max(), color=plots.LIGHT, alpha=0.6, linewidth=0)
    axis.axvline(RANDOM_ORDERS, color=GREY, linewidth=0.8, linestyle=":")
    axis.set(xlim=(0, 1), xlabel="Share of samples moved by more\nthan a tenth of the run")
    above = int((changed["share_moved"] > noise.max()).sum())
    return figure, f"{above} of {len(changed)} changed settings move more\nsamples than another k-means seed", (
        f"n = {span(rows['n'])} planned samples; one setting changed at a time (default in brackets). Grey band: range over "
        f"{len(seeds)} other k-means seeds; dotted: two random orders."
    )  # fmt: skip


GROUPINGS = ("cluster", "leaf topic", "domain", "difficulty tenth", "clusters, permuted")
RELATIONS = {"within": Look(BLUE, "o", "Same group"), "across": Look(ORANGE, "s", "Different groups")}


@figure_of("gradient_coherence")
def gradient_coherence(coherence: pd.DataFrame) -> Drawn:
    """Mean cosine of the policy gradients of two batches, of the same group and of different groups."""
    batches = coherence[coherence["level"] == "batch"]
    shown = batches[batches["relation"].isin(RELATIONS)]
    table = shown.assign(row=shown["grouping"], look=shown["relation"], panel="", xlabel="Cosine of the gradients of two batches")
    figure = forest(table, RELATIONS, ordered(shown["grouping"], GROUPINGS), shift=0.3, row_height=0.28, width=plots.COLUMN_WIDTH)
    plots.legend(figure)
    of = batches.set_index(["grouping", "relation"])
    apart, ceiling = of.loc[("cluster", "difference")], of.loc[("random", "halves"), "value"]
    title = (f"Batches of one cluster agree {apart['value']:.3f} more\n({apart['ci_low']:.3f} to {apart['ci_high']:.3f}); "
             f"new rollouts of the same prompts: {ceiling:.2f}")  # fmt: skip
    return figure, title, (
        f"n = {int(batches['n'].max())} prompts of the kept pool at the base policy, {int(batches['n_zero'].max())} of them "
        "without any gradient (all rewards equal). Bars: 95 % bootstrap over prompts."
    )


# Training.


@figure_of("world_controls")
def world_controls(table: pd.DataFrame) -> Drawn:
    """Exact accuracy of the controls over training, and what each gains over the random order of its seed."""
    random = table[table["arm"] == "random"].set_index(["seed", "step"])["exact"]
    runs = table.join(random.rename("random"), on=["seed", "step"]).assign(exact=100 * table["exact"])
    runs = runs.assign(gain=(runs["exact"] - 100 * runs["random"]).where(runs["arm"] != "random"))
    long = over_runs(runs, {"exact": "Held-out problems (%)", "gain": "Difference to random (points)"})
    figure = lines(long, arm_looks(table["arm"]), columns=2, xlabel="Step")
    last = runs[(runs["step"] == runs["step"].max()) & (runs["arm"] == "nearest_half")]["gain"].mean()
    counts = f"n = {table['seed'].nunique()} reserved seeds, {table['problems'].max()} held-out problems; bands: 95 % over seeds."
    return figure, f"Prompts whose pass rate is nearest one half gain {last:.1f} points over a random order", counts


@figure_of("training_curves")
def training_curves(curves: pd.DataFrame) -> Drawn:
    """Reward and share of groups without variance by step."""
    titles = {"reward_mean": "Mean reward (0 to 1)", "zero_variance_share": "Share of groups of equal rewards (no gradient)"}
    runs = curves.melt(["arm", "seed", "step"], list(titles), "panel", "raw").sort_values("step", kind="stable")
    mean, smoothing = smoothed(runs, ["panel", "arm", "seed"])
    wide = runs.assign(raw=mean).pivot(index=["arm", "seed", "step"], columns="panel", values="raw").reset_index()
    figure = lines(over_runs(wide, titles), arm_looks(curves["arm"]), columns=2, every=max(1, curves["step"].nunique() // 8),
                   xlabel="Optimiser step", sharex=True)  # fmt: skip
    for axis in figure.axes:
        axis.set_ylim(0, 1)
    silent = curves.groupby("arm")["zero_variance_share"].mean()
    told = ", ".join(f"{arm_name(arm)} {100 * share:.0f} %" for arm, share in silent.items())
    n = curves.groupby("arm")["seed"].nunique()
    return figure, f"Groups that teach nothing: {told}", f"n = {span(n)} seeds; band: 95 % t interval over seeds; {smoothing}."


PAPER_ARMS = ("grpo", "dapo", "diff", "adarft", "gainrl", "saerl_grpo", "saerl_dapo")
CURVED = {"mean_avg": "Mean Avg@k of all sets (%)", "zero_variance_share": "Groups without gradient",
          "entropy": "Entropy (nats a token)"}  # fmt: skip


@figure_of("study_curves", "study_runs")
def study_curves(runs: pd.DataFrame) -> Drawn:
    """Accuracy, groups without a gradient, and entropy by generated rollouts, for the paper's arms."""
    runs = runs[runs["arm"].isin(PAPER_ARMS) & (runs["part"] == "run")]
    facts = runs.groupby(["arm", "step"])[["rollouts", "problems"]].mean().reset_index()
    more = facts["problems"] > facts.groupby("arm")["problems"].transform("min")
    facts = facts.assign(more=more).rename(columns={"arm": "group", "step": "x"})
    long = over_runs(runs, CURVED).merge(facts, on=["group", "x"])
    long = long.assign(x=long["rollouts"] / 1000, apart=long["more"] & (long["panel"] == CURVED["mean_avg"]))
    seeds = runs.groupby("arm")["seed"].nunique()
    arms = arm_looks(runs["arm"], {arm: f"{arm_name(arm)} ({n})" for arm, n in seeds.items()})
    figure = lines(long, arms, height=2.3, xlabel="Rollouts generated (thousands)", sharex=True)
    last = runs[runs["step"] == runs["step"].max()].groupby("arm")["mean_avg"].mean()
    return figure, f"Highest at the end: {arm_name(last.idxmax())}, {last.max():.1f} %", (
        "In brackets: matched seeds. Line: mean over seeds; band and bars: 95 % t interval over seeds. Open: the first and the "
        "last evaluation, of more problems than the others and not comparable with them."
    )


EFFECTS = {"Of the paper": ("paper", "ablation", "mixing", "batch", "transfer"),
           "Beyond the paper": ("features", "filter", "order", "rival", "online")}  # fmt: skip
"""Panel -> its families of comparisons; those that the first results suggested stand in the table alone."""
DECIDED = {"above": Look(plots.GREEN), "below": Look(plots.VERMILLION), "open": Look(BLUE), "early": Look(GREY, hollow=True)}


@figure_of("study_effects", "study_comparisons")
def study_effects(comparisons: pd.DataFrame) -> Drawn:
    """Every comparison of the outcome in points, with Holm's interval within its family."""
    panel_of = {family: panel for panel, families in EFFECTS.items() for family in families}
    table = with_claims(comparisons[comparisons["metric"].eq("outcome") & comparisons["family"].isin(panel_of)])
    early = table["n_seeds"] < table["family"].map(planned_seeds)
    look = np.select([early, table["holm_low"] > 0, table["holm_high"] < 0], ["early", "above", "below"], "open")
    names = [f"{arm_name(first)} - {arm_name(second)}" for first, second in zip(table["arm"], table["baseline"], strict=True)]
    table = table.assign(row=names, look=look, panel=table["family"].map(panel_of), value=table["difference"],
                         ci_low=table["holm_low"], ci_high=table["holm_high"], paper=table["paper_value"],
                         xlabel="Outcome in points,\nfirst arm minus second")  # fmt: skip
    table = first_by(table, "family", list(panel_of))
    figure = forest(table, DECIDED, columns=2, row_height=0.155, chance=0.0)
    plots.legend(figure)
    main = table[(table["arm"] == "saerl_grpo") & (table["baseline"] == "grpo")]
    title = "; ".join(f"SAERL - GRPO: {r.value:.1f} points ({r.ci_low:.1f} to {r.ci_high:.1f})" for r in main.itertuples())
    return figure, title, (
        f"Outcome: mean of the last three evaluations; n = {span(table['n_seeds'])} matched seeds. Bars: 95 %, over seeds and "
        "problems, corrected by Holm within a family of comparisons; green and red exclude 0. "
        + "Open and grey: fewer seeds than planned, decides nothing. " * bool(early.any())
        + "Open square: the paper's tables, most of whose averages count AIME24 by Pass@8."
    )  # fmt: skip


@figure_of("study_mixing")
def study_mixing(mixing: pd.DataFrame) -> Drawn:
    """Figure 3: accuracy against the share of a batch that is swapped, relative to h = 0, here and in the paper."""
    here = mixing.assign(group="here", panel="", value=mixing["difference"], x=mixing["paper_swapped"] / 1.28)
    paper = here.assign(group="paper", value=mixing["paper_difference"], ci_low=np.nan, ci_high=np.nan)
    table, seeds = pd.concat([here, paper]), f"here (n = {span(mixing['n_seeds'])} seeds)"
    looks = {"here": Look(BLUE, "o", seeds), "paper": Look(ORANGE, "s", "paper (one run)", hollow=True)}
    figure = lines(table, looks, width=plots.COLUMN_WIDTH, height=2.2, band=False, xlabel="Share of the batch to swap, h / b (%)",
                   ylabel="Accuracy minus h = 0 (points)")  # fmt: skip
    figure.axes[0].axhline(0, color=BLACK, linewidth=0.8)
    clear = mixing[(mixing["ci_low"] > 0) | (mixing["ci_high"] < 0)]
    title = f"{len(clear)} of {int((mixing['swapped_per_batch'] > 0).sum())} shares differ from no mixing"
    return figure, title, (
        "Here: mean of the last three evaluations, paired by seed, 95 % t interval, uncorrected; b = 32. Paper: read off its "
        "Figure 3, step 800, b = 128. Batches without an admissible partner swap nothing."
    )  # fmt: skip
