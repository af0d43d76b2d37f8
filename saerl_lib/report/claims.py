"""The claims of the paper beside what the tables of `figures/data` say.

A claim is one question with the paper's value, ours with its interval, and two verdicts: does the direction agree, and does the
paper's value lie within the interval? `claims.csv` and `comparisons.csv` beside this file hold what the paper says. The rules
were fixed before the arms of the study were trained. All ours unless the paper is named.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from saerl_lib.report.statistics import Interval, auc_interval, difference_interval, over_seeds, weighted_roc_auc, wilson_interval
from saerl_lib.report.study import COMPARISONS, NO_INTERVAL, UPDATE, planned_seeds
from saerl_lib.report.tables import is_true, read_table, rows_of

INPUTS = ("world_gates", "probe_ladder", "filter", "filter_scores", "inbatch_diversity", "study_comparisons", "preparation_cost")
"""Tables that the claims are built from."""
ORDER_GATE = "positive control: nearest to one half now - random"
"""Claims on training are "undecided" where the world cannot show that a better choice of prompts helps."""
CLAIMS = pd.read_csv(Path(__file__).with_name("claims.csv")).fillna(dict.fromkeys(("first", "second"), ""))
"""The paper's claims that no row of `COMPARISONS` holds: claim, paper_value, source, first, second.

Of source "outcome" and "steps" first and second are a pair of arms; of "probes" (Tables 1 to 3, on the world or on real
data, questions alone) data set, target, metric and features of two probes: the effect is first minus second."""
TOY, REAL = "toy task", "real data, small reader"
"""Where a claim was measured: the embedded world with its own policy, or real mathematics read by SmolLM2."""


class Effect(NamedTuple):
    """One claim with what was measured."""

    claim: str
    paper_value: float
    interval: Interval
    n_seeds: int
    notebook: str
    figure: str = ""
    """Name of the figure that shows it; '' for one that stands in its notebook's tables alone."""
    command: str = ""
    """What computes it; '' for its notebook under the default profile."""
    scale: str = TOY
    decidable: bool = True
    """Else "undecided" whatever its interval."""

    def row(self) -> tuple[Any, ...]:
        """Its row of `claims.csv`."""
        figure, command = f"figures/{self.figure}.png" if self.figure else "", f"./run_all.sh --only {self.notebook[:2]}"
        said = direction(self.interval, self.paper_value) if self.decidable else "undecided"
        judged = (said, size(self.interval, self.paper_value), self.scale)
        where = (f"notebooks/{self.notebook}.ipynb", figure, self.command or command)
        return (self.claim, self.paper_value, *self.interval, self.n_seeds, *judged, *where)


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


def _told(source: str) -> list[tuple[str, float]]:
    """claim and paper_value of the claims of `source`."""
    return list(CLAIMS.loc[CLAIMS["source"] == source, ["claim", "paper_value"]].itertuples(index=False, name=None))


def with_claims(comparisons: pd.DataFrame) -> pd.DataFrame:
    """study_comparisons.csv with claim ("": none) and paper_value; a record of `CLAIMS` goes before the table's own. The family
    `UPDATE` repeats comparisons of the paper's and has no claims."""
    comparisons = comparisons[comparisons["family"] != UPDATE]
    keys = {"source": "metric", "first": "arm", "second": "baseline"}
    told = comparisons.merge(CLAIMS.rename(columns=keys), how="left", on=list(keys.values()), suffixes=("_own", ""))
    own = {name: told[name].fillna(told[f"{name}_own"]) for name in ("claim", "paper_value")}
    return told.assign(**own).fillna({"claim": ""})


def study_effects(comparisons: pd.DataFrame, decidable: bool = True) -> list[Effect]:
    """An effect for each comparison of the study that a claim of the paper speaks of; intervals are Holm's within the family. A
    comparison with fewer seeds than planned stays "undecided": a look at half of the runs decides nothing. So do all with
    `decidable` False."""
    effects, where = [], ("08_evaluation", "study_effects", "./run_all.sh --profile study")
    for _, row in with_claims(comparisons).iterrows():
        if row["claim"]:
            judged = decidable and row["n_seeds"] >= planned_seeds(row["family"])
            told, found = row[["claim", "paper_value"]], _interval(row, "difference", "holm")
            effects.append(Effect(*told, found, int(row["n_seeds"]), *where, decidable=judged))
    return effects


def probe_effects(ladder: pd.DataFrame) -> list[Effect]:
    """The effects of the source "probes" that the ladder has rows for. A difference of two probes gets the interval of two
    separate estimates, too wide where they share a test set."""
    found = ladder.dropna(subset=["value"])
    keys = [" ".join(row).split("|")[0] for row in found[["dataset", "target", "metric", "features"]].to_numpy()]
    found, effects = found.set_axis(keys, axis=0), []
    for claim, paper, _, first, second in CLAIMS[CLAIMS["source"] == "probes"].itertuples(index=False):
        if not {first, second or first} <= set(found.index):
            continue
        effect = _interval(found.loc[first])
        effect = difference_interval(effect, _interval(found.loc[second])) if second else effect
        real = (1, "03_data_properties", "probe_ladder", "SAERL_DATA_DIR=DIR ./run_all.sh", REAL)
        where = (1, "03_data_properties", "probe_ladder_world") if first.startswith("world ") else real
        effects.append(Effect(claim, paper, _moved(effect, 100 if " accuracy " in first else 1), *where))
    return effects


def filter_effects(rules: pd.DataFrame, scores: pd.DataFrame) -> list[Effect]:
    """Gain of purity at the p95 rule, and ROC-AUC above chance from the score histogram (Table 6)."""
    (purity,), (separation,), effects = _told("filter purity"), _told("filter auc"), []
    kept, full = rules.set_index("rule").loc["p95"], rules.set_index("rule").loc["full"]
    if kept["kept"] > 0:
        effect = _moved(wilson_interval(int(kept["target_kept"]), int(kept["kept"])), 100, -full["target_kept"] / full["kept"])
        claim = purity[0].format(recall=100 * kept["target_kept"] / full["target_kept"])
        effects.append(Effect(claim, *purity[1:], effect, 1, "05_quality_filter"))
    wide = scores.pivot(index="bin_low", columns="source", values="share").sort_index()[["target", "parent"]]
    shares, bins = (wide / wide.sum()).to_numpy(), np.arange(len(wide))
    is_target = np.repeat([True, False], len(wide))
    auc = float(weighted_roc_auc(np.tile(bins, 2), is_target, shares.T.reshape(1, -1))[0])
    interval = auc_interval(auc, int(full["target_kept"]), int(full["kept"] - full["target_kept"]))
    return [*effects, Effect(*separation, _moved(interval, 1, -0.5), 1, "05_quality_filter")]


def diversity_effects(diversity: pd.DataFrame) -> list[Effect]:
    """Gain of in-batch diversity in the paper's 2-D space by the smallest tail swap above 0, percent (Figure 3)."""
    ours, (told,) = diversity[diversity["order"].str.startswith("saerl")], _told("diversity")
    part = ours[ours["space"].str.contains("2")].sort_values("swapped_per_batch", kind="stable")
    mixed, unmixed = part[part["swapped_per_batch"] > 0], part[part["swapped_per_batch"] == 0]
    if mixed.empty or unmixed.empty or unmixed["value"].iloc[0] <= 0:
        return []
    before = _interval(unmixed.iloc[0])
    effect = _moved(difference_interval(_interval(mixed.iloc[0]), before), 100 / before.value)
    claim = told[0].format(h=mixed["swapped_per_batch"].iloc[0])
    return [Effect(claim, *told[1:], effect, 1, "06_batch_plans")]


def not_run(answered: Collection[str]) -> list[tuple[Any, ...]]:
    """A row for each claim of the paper that is not among those `answered`."""
    known = with_claims(COMPARISONS.assign(metric="outcome")).query("claim != ''")
    claims = [*zip(known["claim"], known["paper_value"], strict=True), *_told("not run")]
    return [(*claim, *NO_INTERVAL, 0, "not run", "", "", "", "", "") for claim in claims if claim[0] not in answered]


def build_claims(data_folder: Path) -> pd.DataFrame:
    """All rows of `claims.csv` from the other tables in `data_folder`; a gate that is missing counts as not met. Raises
    TableError for a missing table."""
    tables = {name: read_table(name, data_folder) for name in INPUTS}
    gates = tables["world_gates"]
    decidable = ORDER_GATE in set(gates.loc[is_true(gates["met"]), "gate"])
    saved = (over_seeds(tables["preparation_cost"]["saved"]).interval(), 1, "08_evaluation")
    effects = [
        *study_effects(tables["study_comparisons"], decidable),
        *probe_effects(tables["probe_ladder"]),
        *filter_effects(tables["filter"], tables["filter_scores"]),
        *diversity_effects(tables["inbatch_diversity"]),
        Effect(*_told("preparation")[0], *saved, command="python -m saerl_lib bench preparation"),
    ]
    return rows_of("claims", [*(effect.row() for effect in effects), *not_run({effect.claim for effect in effects})])
