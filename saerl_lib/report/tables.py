"""Markdown tables for README.md and docs/, and putting them between their markers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from saerl_lib.report.schemas import is_true, write_atomic

EMPTY = "-"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)) or str(value).strip() == "":
        return EMPTY
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).split()).replace("|", "\\|")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A GitHub Markdown table; numbers with four significant digits, empty cells as "-".

    >>> print(markdown_table(["a", "b"], [["x|y", 1.23456], ["", float("nan")]]))
    | a | b |
    | --- | --- |
    | x\\|y | 1.235 |
    | - | - |
    """
    lines = [header, ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bounds(low: Any, high: Any) -> str:
    if pd.isna(low) or pd.isna(high):
        return ""
    return f"{float(low):.3g} to {float(high):.3g}"


def _count(value: Any) -> str:
    return "" if pd.isna(value) else f"{int(value):,}"


def claims_markdown(frame: pd.DataFrame) -> str:
    """`claims.csv` as a Markdown table: claim, the paper's value, ours with its interval, seeds, verdict, where to look."""
    rows = []
    for row in frame.to_dict("records"):
        where = "" if pd.isna(row["figure"]) or not str(row["figure"]) else f"[figure]({row['figure']})"
        command = "" if pd.isna(row["command"]) or not str(row["command"]) else f"`{row['command']}`"
        interval = _bounds(row["ci_low"], row["ci_high"])
        seeds = _count(row["n_seeds"]) if row["verdict"] != "not run" else ""
        rows.append(
            [row["claim"], row["paper_value"], row["our_value"], interval, seeds, f"**{row['verdict']}**", where, command]
        )
    return markdown_table(["Claim", "Paper", "Here", "95 % interval", "Seeds", "Verdict", "Where", "Command"], rows)


HEADLINES = (
    "SAERL on GRPO against GRPO: accuracy gain, points (all sets",
    "SAERL on GRPO against GRPO: fewer steps",
    "SAERL on DAPO against DAPO",
    "SAERL on GRPO against DIFF",
    "Ablation without difficulty sorting: accuracy lost",
    "Ablation without clusters and mixing",
    "Mixing study: accuracy gain of h = 8 of 128 over h = 0",
    "SAERL on SAE features against SAERL on TF-IDF",
    "MATH, 7 subjects",
    "DeepMath difficulty, then DeepScaleR, in-domain",
    "Filter at p95",
    "Larger policy, same plan",
)
"""Beginnings of the claims that the README opens with."""


def finding_markdown(frame: pd.DataFrame) -> str:
    """How many claims got which verdict, by what they speak of, and the main ones, from `claims.csv`."""
    rows = []
    for start in HEADLINES:
        for row in frame[frame["claim"].str.startswith(start)].to_dict("records"):
            bounds = _bounds(row["ci_low"], row["ci_high"])
            here = "" if pd.isna(row["our_value"]) else f"{row['our_value']:.3g}" + (f" ({bounds})" if bounds else "")
            rows.append([row["claim"], row["paper_value"], here, f"**{row['verdict']}**"])
    table = markdown_table(["Claim", "Paper", "Here, 95 % interval", "Verdict"], rows)
    return f"{_counted_verdicts(frame)} The main claims:\n\n{table}"


def _counted_verdicts(frame: pd.DataFrame) -> str:
    """A sentence a part: training (the study), the laptop's own runs, and reading, filter, plan and cost."""
    run = frame[frame["verdict"] != "not run"]
    laptop, study = run["claim"].str.startswith("Laptop runs"), run["command"].str.endswith("--profile study")
    parts = {
        "What training gains, from the study": run[study], "The same from the laptop's own runs": run[laptop],
        "What features, filter and plan hold and cost": run[~study & ~laptop],
    }  # fmt: skip
    said = []
    for name, part in parts.items():
        counts = part["verdict"].value_counts()
        found = ", ".join(f"{n} {v}" for v in ("reproduced", "not reproduced", "undecided") if (n := counts.get(v, 0)))
        said.append(f"{name}: {found} of {len(part)} claims.")
    missing = len(frame) - len(run)
    return " ".join(said) + (f" Not run: {missing}." if missing else "")


def gates_markdown(frame: pd.DataFrame) -> str:
    """`world_gates.csv` as a Markdown table: gate, value, allowed range, met, n."""
    rows = []
    for row, met in zip(frame.to_dict("records"), is_true(frame["met"]), strict=True):
        low, high = row["low"], row["high"]
        allowed = _bounds(low, high) or (
            f"at most {high:.3g}" if pd.notna(high) else f"at least {low:.3g}" if pd.notna(low) else "reported"
        )
        unit = "" if pd.isna(row["unit"]) else str(row["unit"])
        rows.append([row["gate"], f"{row['value']:.3g} {unit}", allowed, "yes" if met else "**no**", _count(row["n"])])
    return markdown_table(["Gate", "Value", "Allowed", "Met", "n"], rows)


LADDER_COLUMNS = {
    "length": "length", "tfidf": "TF-IDF", "sentence_embedding": "sentence", "dense": "dense", "sae_untrained": "untrained SAE",
    "sae": "SAE", "sentence_sae": "SAE of the sentence encoder", "shuffled_labels": "shuffled",
}  # fmt: skip
"""Feature sets of the README's ladder -> their heading; the others stand in the CSV."""
LADDER_METRICS = ("accuracy", "spearman", "roc_auc", "pearson")


def ladder_markdown(frame: pd.DataFrame) -> str:
    """`probe_ladder.csv` as a Markdown table: a row a task, a column a feature set, the SAE with its interval."""
    frame = frame[frame["metric"].isin(LADDER_METRICS)]
    columns = {name: title for name, title in LADDER_COLUMNS.items() if name in set(frame["features"])}
    rows = []
    for (dataset, target, metric), part in frame.groupby(["dataset", "target", "metric"], sort=False):
        values = part.drop_duplicates("features").set_index("features")
        cells = []
        for name in columns:
            if name not in values.index:
                cells.append("")
            elif name == "sae":
                row = values.loc[name]
                cells.append(f"**{row['value']:.3f}** ({row['ci_low']:.3f} to {row['ci_high']:.3f})")
            else:
                cells.append(f"{values.loc[name, 'value']:.3f}")
        rows.append([f"{dataset}: {target}".replace("_", " "), metric.replace("_", " "), *cells, _count(part["n_test"].max())])
    return markdown_table(["Data and label", "Metric", *columns.values(), "n test"], rows)


def saes_markdown(frame: pd.DataFrame) -> str:
    """`ladder_saes.csv` as a Markdown table: a row a model and kind of SAE, means over its seeds."""
    rows = []
    for (model, features), part in frame.groupby(["model", "features"], sort=False):
        means = [f"{part[name].mean():.{digits}f}" for name, digits in (("explained_variance", 3), ("l0", 1), ("dead_share", 3))]
        rows.append([model, f"`{features}`", *means, _count(len(part)), _count(part["n_tokens"].max())])
    return markdown_table(["Reads", "SAE", "Explained variance", "L0", "Dead share", "Seeds", "Tokens"], rows)


def study_markdown(frame: pd.DataFrame) -> str:
    """`study_summary.csv` as a Markdown table: outcome, difference to `grpo`, speed, and the cost before and during training."""
    rows = []
    for row in frame.to_dict("records"):
        prepared = {
            "labels": row["prep_labels"], "rollouts": row["prep_rollouts"], "samples encoded": row["prep_encoded"],
            "prompts read": row["prep_forward"],
        }  # fmt: skip
        before = ", ".join(f"{int(count):,} {name}" for name, count in prepared.items() if count)
        against = "" if pd.isna(row["difference"]) else f"{row['difference']:+.2f}"
        interval = _bounds(row["holm_low"], row["holm_high"])
        rows.append(
            [
                f"`{row['arm']}`", _count(row["n_seeds"]), f"{row['outcome']:.1f}", against, interval,
                f"{row['steps_to_target']:.0f}", f"{row['area']:.1f}", f"{row['final_mean_with_pass']:.1f}",
                f"{row['updates']:.0f}", _count(row["distinct_prompts"]), f"{row['tokens'] / 1e6:.2f}", before,
            ]
        )  # fmt: skip
    header = [
        "Arm", "Seeds", "Outcome %", "Paired difference to `grpo`", "95 %, Holm over the arms", "Steps to target",
        "Area under the curve, %", "Last evaluation, hardest set by Pass@8, %", "Updates", "Distinct prompts",
        "Generated tokens, million", "Before training",
    ]  # fmt: skip
    return markdown_table(header, rows)


def plans_markdown(frame: pd.DataFrame) -> str:
    """`study_plans.csv` as a Markdown table: how a fixed order sorts, mixes, how large its largest cluster is, and its hash."""
    rows = []
    for row in frame.to_dict("records"):
        shares = [f"{100 * row[name]:.0f}" if row["swapped_per_batch"] else "" for name in
                  ("swapped_batches", "swapped_batches_second_half")]  # fmt: skip
        asked, got = row["swapped_per_batch"] / row["prompts_per_step"], row["swapped_samples"]
        mixed = [f"{100 * asked:.1f}", f"{100 * got:.1f}"] if asked else ["", ""]
        sorts, largest = f"{row['label_rho']:.2f}", f"{100 * row['largest_cluster']:.0f}"
        rows.append([f"`{row['arm']}`", sorts, largest, *mixed, *shares, f"`{row['plan_hash']}`"])
    header = [
        "Arm", "rho of position and label", "Largest cluster, % of the pool", "Swapped samples asked for, %",
        "Swapped samples, %", "Batches that swap, %", "In the second half, %", "Plan",
    ]  # fmt: skip
    return markdown_table(header, rows)


def _difference(row: pd.Series) -> str:
    corrected = f" ({row['holm_low']:+.1f} to {row['holm_high']:+.1f})" if pd.notna(row["holm_low"]) else ""
    return f"{row['difference']:+.1f}{corrected}"


def comparisons_markdown(frame: pd.DataFrame) -> str:
    """`study_comparisons.csv` as a Markdown table: outcome, last evaluation and area, intervals corrected within the family."""
    rows, others = [], {}
    for name in ("final_with_pass", "area"):
        others[name] = frame[frame["metric"] == name].set_index(["family", "arm", "baseline"])
    for row in frame[frame["metric"] == "outcome"].to_dict("records"):
        pair = f"`{row['arm']}` - `{row['baseline']}`"
        bounds = f"{row['holm_low']:+.1f} to {row['holm_high']:+.1f}" if pd.notna(row["holm_low"]) else ""
        detectable = "" if pd.isna(row["detectable"]) else f"{row['detectable']:.1f}"
        paper = "" if pd.isna(row["paper_value"]) else f"{row['paper_value']:+.1f}"
        beside = [_difference(other.loc[(row["family"], row["arm"], row["baseline"])]) for other in others.values()]
        seeds, difference = _count(row["n_seeds"]), f"{row['difference']:+.1f}"
        rows.append([row["family"], pair, seeds, difference, bounds, detectable, *beside, paper])
    header = [
        "Family", "Pair", "Seeds", "Difference, points", "95 %, corrected by Holm", "Detectable", "At the last evaluation",
        "Area under the curve", "Paper",
    ]  # fmt: skip
    return markdown_table(header, rows)


def update_block(path: Path, marker: str, text: str) -> bool:
    """Replace what stands between `<!-- begin MARKER -->` and `<!-- end MARKER -->`; True when the file changed.

    Raises ValueError when the file does not hold each marker once, in this order; ArtifactError when it cannot be written.
    """
    begin, end = f"<!-- begin {marker} -->", f"<!-- end {marker} -->"
    old = path.read_text(encoding="utf-8")
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise ValueError(f"{path} must hold {begin!r} and then {end!r}, each once: add the two lines")
    head, tail = old[: old.index(begin) + len(begin)], old[old.index(end) :]
    new = f"{head}\n{text.strip()}\n{tail}"
    if new != old:
        write_atomic(path, new.encode("utf-8"))
    return new != old
