"""Step `report`: the tables of the trained arms, in the schema of the study's tables where it fits.

runs.csv (one row a run and evaluation), summary.csv (one an arm), study_targets.csv, training_curves.csv and, with several seeds,
study_comparisons.csv; beside them what the earlier steps counted and measured. Percent, AIME24 by Pass@k where a name says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from saerl_lib.artifacts import Stage
from saerl_lib.paper.path.evaluate import evaluations
from saerl_lib.paper.path.home import Home
from saerl_lib.report.statistics import compare
from saerl_lib.report.study import FAMILIES, RUN, SMALLEST_POINTS, comparison_row, final_values, outcomes, set_rates, target_steps
from saerl_lib.report.tables import write_csv
from saerl_lib.train.run import Run

PASS_SET = "aime24"
"""Scored by Pass@8, the others by Avg@8 (paper, section 4.1)."""
KEPT = (("data", "counts.csv"), ("data", "malformed.csv"), ("features", "truncated.csv"), ("features", "sae_quality.csv"),
        ("scores", "difficulty.csv"), ("scores", "solutions.csv"), ("scores", "filter.csv"),
        ("scores", "separation.csv"), ("scores", "clusters.csv"), ("plans", "left_out.csv"),
        ("measured", "measured.csv"))  # fmt: skip
"""(stage, file) of the earlier steps' tables."""
TRAINING = ["reward_mean", "zero_variance_share", "entropy", "grad_norm", "completion_tokens"]


def report_stage(home: Home, earlier: Sequence[Stage], runs: Sequence[Run], evaluated: Sequence[Stage]) -> Stage:
    """The folder of tables; `earlier` are the stages named in `KEPT`."""

    def compute(folder: Path) -> None:
        frame, curve = evaluations(evaluated, runs, home.config), training_curve(runs)
        frame.to_parquet(folder / "evaluations.parquet", index=False)
        table = runs_table(frame, curve)
        table.to_csv(folder / "runs.csv", index=False, float_format="%.6g", lineterminator="\n")
        problems = int(frame.groupby("eval_set")["sample_id"].nunique().max())
        targets = target_steps(frame, home.config.arms, problems, home.config.steps)
        summary_table(frame, table, targets, home.config.arms).to_csv(
            folder / "summary.csv", index=False, float_format="%.6g", lineterminator="\n"
        )
        write_csv(targets, "study_targets", folder)
        write_csv(curve, "training_curves", folder)
        if home.config.seeds > 1 and len(comparisons := comparison_table(frame)):
            write_csv(comparisons, "study_comparisons", folder)
        for stage in earlier:
            for name, file in KEPT:
                if stage.name == name:
                    shutil.copyfile(stage.path(file), folder / file)

    config = home.config
    settings = {"runs": [run.key for run in runs], "arms": list(config.arms), "steps": config.steps, "seed": config.seed}
    return home.stage("report", "tables", settings, compute, (*earlier, *evaluated))


def training_curve(runs: Sequence[Run]) -> pd.DataFrame:
    """Rows of training_curves.csv, from TRL's own log."""
    return pd.concat([pd.read_parquet(run.folder / "curve.parquet") for run in runs])[[*RUN, "step", *TRAINING]]


def runs_table(evaluations: pd.DataFrame, curve: pd.DataFrame) -> pd.DataFrame:
    """One row an arm, seed and evaluated step: problems, completions, Avg@k a set, means, Pass@k of AIME24, training since."""
    key = [*RUN, "step"]
    rates = set_rates(evaluations)
    wide = rates.pivot(index=key, columns="eval_set", values="avg")
    passed = rates[rates["eval_set"] == PASS_SET].set_index(key)["passed"]
    others = wide.drop(columns=PASS_SET)
    table = evaluations.groupby(key).agg(problems=("sample_id", "size"), completions=("attempts", "sum"))
    table = table.join(wide.add_prefix("avg_"))
    table[f"pass_{PASS_SET}"] = passed
    table["mean_avg"], table["mean_without_pass_set"] = wide.mean(axis=1), others.mean(axis=1)
    table["mean_with_pass"] = pd.concat([others, passed], axis=1).mean(axis=1)
    table = table.reset_index().sort_values(key)
    before = table.groupby(RUN)["step"].shift(fill_value=-1)
    trained = []
    for row, low in zip(table.itertuples(), before, strict=True):
        own = (curve["arm"] == row.arm) & (curve["seed"] == row.seed) & curve["step"].between(low + 1, row.step)
        trained.append(curve[own][TRAINING].mean())
    return pd.concat([table.reset_index(drop=True), pd.DataFrame(trained).reset_index(drop=True)], axis=1)


def summary_table(evaluations: pd.DataFrame, runs: pd.DataFrame, targets: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """One row an arm: seeds, outcome (the last evaluation's mean with Pass@k on AIME24, as Table 4) with its deviation over
    seeds, the last evaluation of every set, steps to target as the mean over sets (as Table 5)."""
    outcome = outcomes(final_values(evaluations, PASS_SET))
    last = runs[runs["step"] == runs["step"].max()]
    rows = []
    for arm in arms:
        own, part = outcome.loc[arm], targets[targets["arm"] == arm]
        shown = last[last["arm"] == arm].filter(regex="^(avg|pass|mean)_").mean().add_prefix("final_")
        row = {"arm": arm, "n_seeds": len(own), "outcome": own.mean(), "outcome_sd": own.std(ddof=1)} | shown.to_dict()
        rows.append(row | {"steps_to_target": part["steps"].mean(), "targets_reached": part["reached"].mean()})
    return pd.DataFrame(rows)


def comparison_table(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Rows of study_comparisons.csv: the paper's pairs of arms that were trained, paired by seed, corrected by Holm."""
    present = set(evaluations["arm"])
    pairs = [pair for pair in FAMILIES["paper"] if {pair.arm, pair.baseline} <= present]
    found = compare(final_values(evaluations, PASS_SET), [(pair.arm, pair.baseline) for pair in pairs], SMALLEST_POINTS)
    return pd.DataFrame([comparison_row("paper", "outcome", pair, c) for pair, c in zip(pairs, found, strict=True)])
