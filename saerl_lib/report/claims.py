"""The claims of the paper beside what the tables of `figures/data` say.

A claim is one question with the paper's value, ours with its interval, and two verdicts: does the direction agree, and does the
paper's value lie within the interval? The rules, ours, were fixed before the arms of the study were trained.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saerl_lib.report.statistics import Interval, difference_interval, over_seeds, wilson_interval
from saerl_lib.report.study import COMPARISONS, NO_INTERVAL, UPDATE, planned_seeds
from saerl_lib.report.tables import TOY, as_table, is_true, read_table

ORDER_GATE = "positive control: nearest to one half now - random"
"""Claims on training are "undecided" where the world cannot show that a better choice of prompts helps."""
BLURRED = f"{TOY}, blurred scores"
"""Where SAERL's claims on training are measured: DIFF sorts by labels as they are, SAERL by scores with noise (docs/world.md)."""


def _claims() -> pd.DataFrame:
    """`claims.csv` and the comparisons of the study beside this file: claim ("": none), paper_value, source, first, second, and
    where it is measured (scale, notebook, figure, command)."""
    pairs = COMPARISONS[COMPARISONS["family"] != UPDATE].rename(columns={"arm": "first", "baseline": "second"})
    scale = np.where(pairs["first"].str.contains("saerl"), BLURRED, TOY)
    told = pd.read_csv(Path(__file__).with_name("claims.csv"))
    where = told.loc[told["source"] == "steps", ["notebook", "command"]].iloc[0]
    figure = np.where(pairs["family"] == "mixing", "figures/study_mixing.png", "figures/study_effects.png")
    pairs = pairs.drop(columns="family").assign(source="outcome", scale=scale, figure=figure, **where)
    claims = pd.concat([pairs, told], ignore_index=True)
    return claims.fillna(dict.fromkeys(claims.columns.drop("paper_value"), ""))


CLAIMS = _claims()
"""Every claim of the paper. Of source "outcome" and "steps" first and second are a pair of arms; of "probes" (Tables 1 to 3, on
the world or on real data, questions alone) data set, target, metric and features of two probes: first minus second. A change in
steps is negative where fewer are needed. The family `UPDATE` repeats comparisons of the paper's and has no claims."""


def judged(told: Any, interval: Interval, n_seeds: int = 1, verdict: str = "") -> tuple[Any, ...]:
    """The row of `claims.csv` of one claim, `told` of `CLAIMS`, and what was measured; `verdict` stands whatever the interval."""
    within = "" if verdict == "not comparable" else size(interval, told.paper_value)
    found = (verdict or direction(interval, told.paper_value), within, told.scale)
    return (told.claim, told.paper_value, *interval, n_seeds, *found, told.notebook, told.figure, told.command)


def direction(effect: Interval, paper_value: float) -> str:
    """agrees: the 95 % interval lies on the paper's side of 0 (above, where the paper has no value); opposite: on the other side;
    else, and without an interval, undecided.

    >>> [direction(Interval(1, low, high), 0.5) for low, high in ((0.2, 2), (-1, -0.4), (-1, 2), (float("nan"), 2))]
    ['agrees', 'opposite', 'undecided', 'undecided']
    >>> direction(Interval(-1, -2, -0.1), -0.4)
    'agrees'
    """
    low, high = (effect.low, effect.high) if not paper_value < 0 else (-effect.high, -effect.low)
    return "agrees" if low > 0 else "opposite" if high < 0 else "undecided"


def size(effect: Interval, paper_value: float) -> str:
    """Whether the paper's value lies within the interval: yes or no, '' without one of the two.

    >>> [size(Interval(1, 0.2, 2), value) for value in (0.5, 3.0, float("nan"))]
    ['yes', 'no', '']
    """
    if math.isnan(paper_value) or math.isnan(effect.low):
        return ""
    return "yes" if effect.low <= paper_value <= effect.high else "no"


def _interval(row: Any, value: str = "value", bounds: str = "ci") -> Interval:
    return Interval(*(float(row[column]) for column in (value, f"{bounds}_low", f"{bounds}_high")))


def _moved(interval: Interval, factor: float, by: float = 0.0) -> Interval:
    """The interval plus `by`, times `factor`."""
    return Interval(*(factor * (bound + by) for bound in interval))


def _told(source: str, **words: Any) -> Any:
    """The one claim of `source`, `words` put into its text."""
    told = CLAIMS[CLAIMS["source"] == source].iloc[0]
    return told.replace({told["claim"]: told["claim"].format(**words)})


def with_claims(comparisons: pd.DataFrame) -> pd.DataFrame:
    """study_comparisons.csv with the columns of `CLAIMS` in place of its own, without the family `UPDATE`."""
    own = comparisons[comparisons["family"] != UPDATE].drop(columns=["claim", "paper_value"])
    told = CLAIMS.rename(columns={"source": "metric", "first": "arm", "second": "baseline"})
    return own.merge(told, how="left", on=["metric", "arm", "baseline"]).fillna({"claim": ""})


def study_effects(comparisons: pd.DataFrame, decidable: bool = True) -> Iterator[tuple[Any, ...]]:
    """A row for each comparison of the study that a claim of the paper speaks of; intervals are Holm's within the family. A
    comparison with fewer seeds than planned stays "undecided": a look at half of the runs decides nothing. So do all with
    `decidable` False."""
    for _, row in with_claims(comparisons).query("claim != ''").iterrows():
        found = _interval(row, "difference", "holm")
        if row["metric"] == "steps":  # the table has percent saved
            found = Interval(-found.value, -found.high, -found.low)
        decided = decidable and row["n_seeds"] >= planned_seeds(row["family"])
        yield judged(row, found, int(row["n_seeds"]), "" if decided else "undecided")


def probe_effects(ladder: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """The claims of the source "probes" that the ladder has rows for; a difference of two probes is a `difference_interval`."""
    found = ladder.dropna(subset=["value"])
    keys = [" ".join(row).split("|")[0] for row in found[["dataset", "target", "metric", "features"]].to_numpy()]
    found = found.set_axis(keys, axis=0)
    for told in CLAIMS[CLAIMS["source"] == "probes"].itertuples():
        if {told.first, told.second or told.first} <= set(found.index):
            effect = _interval(found.loc[told.first])
            effect = difference_interval(effect, _interval(found.loc[told.second])) if told.second else effect
            yield judged(told, _moved(effect, 100 if " accuracy " in told.first else 1))


def filter_effects(rules: pd.DataFrame, separation: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """Of the retained latents on real sources: gain of purity at the p95 rule, and ROC-AUC above chance (Table 6)."""
    rules = rules[rules["features"] == "sae"].set_index("rule")
    kept, full = rules.loc["p95"], rules.loc["full"]
    if kept["kept"] > 0:
        effect = _moved(wilson_interval(int(kept["target_kept"]), int(kept["kept"])), 100, -full["target_kept"] / full["kept"])
        yield judged(_told("filter purity", recall=100 * kept["target_kept"] / full["target_kept"]), effect)
    auc = separation.query("metric == 'roc_auc' and features == 'sae'").iloc[0]
    yield judged(_told("filter auc"), _moved(_interval(auc), 1, -0.5))


def diversity_effects(diversity: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """Gain of in-batch diversity in the paper's 2-D space by the smallest tail swap above 0, percent (Figure 3)."""
    ours = diversity[diversity["order"].str.startswith("saerl")]
    part = ours[ours["space"].str.contains("2")].sort_values("swapped_per_batch", kind="stable")
    mixed, unmixed = part[part["swapped_per_batch"] > 0], part[part["swapped_per_batch"] == 0]
    if mixed.empty or unmixed.empty or unmixed["value"].iloc[0] <= 0:
        return
    before = _interval(unmixed.iloc[0])
    effect = _moved(difference_interval(_interval(mixed.iloc[0]), before), 100 / before.value)
    yield judged(_told("diversity", h=mixed["swapped_per_batch"].iloc[0]), effect, verdict="not comparable")


def build_claims(data_folder: Path) -> pd.DataFrame:
    """All rows of `claims.csv` from the other tables in `data_folder`, those of the study without an answer, or that nothing here
    can answer, as "not run"; a gate that is missing counts as not met. Raises TableError for a missing table."""
    read = functools.partial(read_table, folder=data_folder)
    gates = read("world_gates")
    decidable = ORDER_GATE in set(gates.loc[is_true(gates["met"]), "gate"])
    saved = over_seeds(read("preparation_cost")["saved"]).interval()
    answers = [
        *study_effects(read("study_comparisons"), decidable),
        *probe_effects(read("probe_ladder")),
        *filter_effects(read("real_filter"), read("real_separation")),
        *diversity_effects(read("inbatch_diversity")),
        judged(_told("preparation"), saved, verdict="not comparable"),
    ]
    answered = {"", *(row[0] for row in answers)}
    rest = CLAIMS[CLAIMS["source"].isin(("outcome", "not run")) & ~CLAIMS["claim"].isin(answered)].itertuples()
    waiting = [(told.claim, told.paper_value, *NO_INTERVAL, 0, "not run", "", "", "", "", "") for told in rest]
    return as_table("claims", [*answers, *waiting])
