"""The CSV tables of `figures/data`: their columns, checked writing and reading, and what README.md and docs/ show of them.

The notebooks and the study write them, figures and claims are drawn from them alone. Shares, accuracies, purity and recall are
fractions in 0..1; only `paired_difference.csv`, the study's tables and rows of `claims.csv` that say so are in percent.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd

from saerl_lib import paths
from saerl_lib.artifacts import ToldError, write_atomic

COLUMNS = """
00 world_gates: gate value? ci_low? ci_high? low? high? met n? unit? note?
00 pass_rates: bin_low bin_high share_world% share_reference% n_world n_reference
01 sae_quality: encoder quantity value low? high? met? n_tokens?
01 sae_curve: quantity features k value ci_low? ci_high? n
01 reader_blocks: dataset target metric block value below_best ci_low ci_high n
02 representation: dataset choice option target metric value ci_low ci_high cross_validated? n_train n_test shared_with_default%
03 probe_ladder: dataset target metric features value? ci_low? ci_high? n_train n_test
03 ladder_pairs: dataset target metric features against difference ci_low ci_high n_test
03 replay: record form features share% own_rollouts spearman? silent?% silent_groups_saved? saved_low? saved_high? lead?
    lead_low? lead_high? teaching teaching_low teaching_high n runs
03 real_overlap: dataset evaluation_set n n_overlap
04 calibration: score bin n predicted_mean label_mean ci_low? ci_high?
04 cluster_topics: cluster domain n
04 cluster_agreement: level n purity% nmi ari paper_purity? paper_nmi? paper_ari?
04 cluster_summary: cluster n_pool n_labelled residual shrinkage%
04a cluster_audit real_cluster_audit: cluster n label top_topics? topic_entropy_bits difficulty_mean? difficulty_q25?
    difficulty_median? difficulty_q75? n_difficulty prompt_words_mean solution_words_mean representatives top_latents?
04a feature_groups real_feature_groups: group n_features gain_share?% ci_low?% ci_high?% top_20 top_100 paper_top_20
    paper_top_100 n
04a top_latents real_top_latents: feature block latent gain% topic? necessity?% sufficiency?% base_rate?% lift? frc?% ci_low?%
    ci_high?% control?% n n_active n_topic example_id example_text?
06b cluster_stability: varied pairs ari_mean ari_low ari_high n
04a real_counts: part source what n
04a real_clusters: dataset features quantity value ci_low? ci_high? paper_value? n
06b label_curve: features n_labels value ci_low ci_high n_subsets n_test
05 filter: rule kept n_pool target_kept purity?% recall?% paper_purity?% paper_recall?%
05 filter_scores: source bin_low bin_high share% n
05a filter_flaws real_flaws: dataset pool flaw score metric value% ci_low? ci_high? n_flawed n_sound
05a filter_selfreg real_selfreg: dataset target variant metric value ci_low? ci_high? n_test
05 real_filter: features rule kept n_pool target_kept purity?% recall% paper_purity?% paper_recall?%
05 real_separation: dataset metric features value% ci_low% ci_high% paper_value? n_train n_test
06b plan_sensitivity: varied setting default share_moved% mean_step_shift n
06 batch_composition: order step dominant_cluster dominant_share% n_clusters mean_ranking_score mean_sequence_words?
06 inbatch_diversity: order swapped_per_batch space value ci_low? ci_high? n_batches
06a gradient_coherence: grouping relation value? ci_low? ci_high? n n_zero
06a gradient_distance: space measure spearman? ci_low? ci_high? n_pairs n_prompts
06a mixing_theory: cluster_c cluster_d n_c n_d bias2 variance A? A_low? A_high? C? C_low? C_high? rho_star?% ci_low? ci_high?
    rho_h mse_change_at_h change_low? change_high? random_change random_low? random_high?
07 training_curves: arm seed step reward_mean zero_variance_share% entropy? grad_norm? completion_tokens?
08 learning_curves: arm seed step eval_set metric value% n_problems n_samples
08 paired_difference: eval_set metric difference ci_low? ci_high? n_seeds n_problems? minimum_detectable_effect?
08 steps_to_target: eval_set target% arm seed steps?
08 claims: claim paper_value? our_value? ci_low? ci_high? n_seeds direction size? scale? notebook? figure? command?
08 world_controls: arm learning_rate seed step exact% sampled?% silent?% problems
08 study_pilot: part loss optimizer learning_rate seed outcome
08 study_runs: arm seed step part update rollouts problems completions avg_easy_a avg_easy_b avg_hard avg_hardest avg_mid_a
    avg_mid_b mean_avg zero_variance_share? entropy? grad_norm?
08 study_summary: arm title group n_seeds outcome outcome_sd? difference? ci_low? ci_high? holm_low? holm_high? detectable?
    final_avg_easy_a final_avg_easy_b final_avg_hard final_avg_hardest final_avg_mid_a final_avg_mid_b final_mean_avg
    steps_to_target targets_reached best tail? area silent caught? entropy grad_norm updates prompts distinct_prompts rollouts
    rollouts_used tokens training_s evaluation_s
08 study_comparisons: family metric arm baseline n_seeds difference ci_low? ci_high? holm_low? holm_high? p_value p_holm
    detectable? claim? paper_value?
08 study_paper_tables: table arm benchmark eval_set paper_value our_value? ci_low? ci_high? n_seeds
08 preparation_cost: part prompts rollouts encode_s rollouts_s saved
08 study_mixing: arm swapped_per_batch outcome difference ci_low? ci_high? n_seeds paper_swapped paper_difference
08 study_targets: arm seed eval_set target steps reached
08 study_budget: arm seed steps updates prompts distinct_prompts rollouts rollouts_used tokens
08 study_provenance: run arm seed config_hash learning_rate commit cpu threads versions training_s evaluation_s peak_memory_mb
10 own_clusters: cluster n share% planned median_length mean_difficulty? labels top_topic? topic_share?% terms? typical
"""
"""Notebook that writes it, tables, columns in file order; `?`: cells may be empty, `%`: values must lie in 0..1."""


@dataclass(frozen=True)
class Schema:
    """Columns of one table, in file order."""

    notebook: str
    """Number of the notebook that writes it."""
    columns: tuple[str, ...]
    optional: frozenset[str]
    """Columns whose cells may be empty."""
    fractions: frozenset[str]
    """Columns that must lie in 0..1."""


def _schemas(text: str) -> dict[str, Schema]:
    found = {}
    for line in text.strip().replace("\n    ", " ").splitlines():
        (notebook, *names), marked = (part.split() for part in line.split(":"))
        columns = tuple(name.rstrip("?%") for name in marked)
        empty, share = (frozenset(c for c, m in zip(columns, marked, strict=True) if mark in m) for mark in "?%")
        found |= dict.fromkeys(names, Schema(notebook, columns, empty, share))
    return found


SCHEMAS = _schemas(COLUMNS)
"""Every table of `figures/data`, by name."""


class TableError(ToldError, ValueError):
    """A table is missing, empty or does not have its columns, or nothing is published."""


WAITING = ("study_comparisons", "study_mixing")
"""Tables without rows until the study has made the runs that they compare."""


def _schema(name: str) -> Schema:
    if name not in SCHEMAS:
        raise TableError(f"table {name!r} is not known; choose one of {', '.join(SCHEMAS)}")
    return SCHEMAS[name]


def rows_of(name: str, rows: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """Table `name` from its rows, cells in the order of its columns."""
    return pd.DataFrame(rows, columns=list(SCHEMAS[name].columns))


def _require_rows(frame: pd.DataFrame, name: str, where: str, remedy: str) -> None:
    schema = SCHEMAS[name]
    if missing := [column for column in schema.columns if column not in frame]:
        told = f"notebook {schema.notebook} writes {','.join(schema.columns)}"
        raise TableError(f"{where} lacks column {', '.join(missing)}; {told}")
    if frame.empty and name not in WAITING:
        raise TableError(f"{where} has no rows; {remedy}")


def _check_values(frame: pd.DataFrame, name: str, schema: Schema) -> None:
    for column in schema.columns:
        values = frame[column]
        if column not in schema.optional and values.isna().any():
            raise TableError(f"table {name}: column {column} is empty in row {int(np.flatnonzero(values.isna())[0])}; fill it")
        numbers = pd.to_numeric(values, errors="coerce").astype(float)
        if np.isinf(numbers).any():
            raise TableError(f"table {name}: column {column} holds an infinite number; leave such cells empty")
        if column in schema.fractions and not numbers.dropna().between(-1e-9, 1 + 1e-9).all():
            raise TableError(f"table {name}: column {column} must lie in 0..1; write fractions, not percent")


def _text(cell: Any) -> Any:
    if isinstance(cell, (bool, np.bool_)):
        return str(bool(cell)).lower()
    return f"{cell:.6g}" if isinstance(cell, (float, np.floating)) and np.isfinite(cell) else cell


def write_csv(frame: pd.DataFrame, name: str, folder: Path) -> Path:
    """Write table `name` into `folder` and return its path: schema order, 6 digits, `\\n` line ends, atomically. Raises
    TableError for an empty table, a missing or unknown column, an empty cell where none may be, an infinite number, or a percent
    where a fraction belongs; ArtifactError when the folder cannot be written."""
    schema = _schema(name)
    _require_rows(frame, name, f"table {name}", "nothing would be drawn from it")
    if unknown := [column for column in frame if column not in schema.columns]:
        raise TableError(f"table {name} has unknown column {', '.join(unknown)}; add it to saerl_lib/report/tables.py")
    _check_values(frame, name, schema)
    ready = frame[list(schema.columns)].apply(lambda values: values.map(_text) if values.dtype in (bool, object) else values)
    path = folder / f"{name}.csv"
    write_atomic(path, ready.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode("utf-8"))
    return path


def read_table(name: str, folder: Path) -> pd.DataFrame:
    """Read table `name` from `folder`; columns that only an earlier version had are left out. Raises TableError naming the file,
    the column and the notebook that writes it when it is missing, empty or incomplete."""
    schema, path = _schema(name), folder / f"{name}.csv"
    remedy = f"run ./run_all.sh --only {schema.notebook}, the notebook that writes it"
    if not path.is_file():
        raise TableError(f"{path} is missing; {remedy}")
    try:
        frame = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise TableError(f"{path} is not a CSV table ({error}); {remedy}") from error
    _require_rows(frame, name, str(path), remedy)
    return frame[list(schema.columns)]


def is_true(values: pd.Series) -> pd.Series:
    """A column of true and false, however it was read, as booleans; empty cells are false."""
    return values.astype(str).str.lower().eq("true")


def number(value: float) -> str:
    """Three significant digits, thousands grouped; empty for nan.

    >>> number(0.08333), number(12345.0), number(float("nan"))
    ('0.0833', '12,345', '')
    """
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# The same tables in README.md and docs/, and the galleries of notebooks and figures.


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)) or str(value).strip() == "":
        return "-"
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


def _bounds(row: Any) -> str:
    return "" if pd.isna(row.ci_low) or pd.isna(row.ci_high) else f"{number(row.ci_low)} to {number(row.ci_high)}"


def claims_markdown(frame: pd.DataFrame) -> str:
    """`claims.csv` as the table of docs/claims.md: claim, the paper's value, ours with its interval, direction, size, where."""
    rows = []
    for row in frame.fillna(dict.fromkeys(("size", "scale", "notebook", "figure", "command"), "")).itertuples():
        kind, target = ("figure", row.figure) if row.figure else ("notebook", row.notebook)
        where, command = f"[{kind}](../{target})" if target else "", f"`{row.command}`" if row.command else ""
        seeds = f"{row.n_seeds:,.0f}" if row.direction != "not run" else ""
        judged = (f"**{row.direction}**", row.size, row.scale)
        rows.append([row.claim, row.paper_value, row.our_value, _bounds(row), seeds, *judged, where, command])
    header = ["Claim", "Paper", "Here", "95 % interval", "Seeds", "Direction", "Size", "Scale", "Where", "Command"]
    return markdown_table(header, rows)


HEADLINES = (
    "SAERL on GRPO against GRPO: accuracy gain, points (all sets",
    "SAERL on GRPO against GRPO: fewer steps",
    "SAERL on GRPO against DIFF: accuracy gain",
    "Difficulty of held-out DeepMath questions",
    "Filter at p95",
)
"""Beginnings of the claims that the README opens with."""
TRAINED = "figures/study_effects.png"
"""The figure of the claims about training."""


DIRECTIONS = {"agrees": "agree", "opposite": "show the opposite", "undecided": "undecided"}


def finding_markdown(frame: pd.DataFrame) -> str:
    """How many claims agree, and the main ones, from `claims.csv`."""
    rows = []
    for start in HEADLINES:
        for row in frame[frame["claim"].str.startswith(start)].itertuples():
            here = "" if pd.isna(row.our_value) else f"{row.our_value:.3g}" + (f" ({b})" if (b := _bounds(row)) else "")
            within = "" if pd.isna(row.size) else row.size
            rows.append([row.claim, row.paper_value, here, f"**{row.direction}**", within, row.scale])
    run, said = frame[frame["direction"] != "not run"], []
    trained = run["figure"] == TRAINED
    for name, part in (("Reading and preparing the data", run[~trained]), ("Training", run[trained])):
        counts = part["direction"].value_counts()
        found = ", ".join(f"{counts[word]} {text}" for word, text in DIRECTIONS.items() if word in counts)
        within = (part["size"] == "yes").sum()
        said.append(f"{name}: of {len(part)} claims {found}; {within} intervals hold the paper's value")
    header = ["Question", "Paper", "Here, 95 % interval", "Direction", "Paper's value in the interval", "Measured on"]
    first = f"Do our effects have the paper's sign? {'. '.join(said)}. {len(frame) - len(run)} are not run yet. The main ones:"
    return f"{first}\n\n{markdown_table(header, rows)}"


def gates_markdown(frame: pd.DataFrame) -> str:
    """`world_gates.csv` as a Markdown table: gate, value, 95 % interval, allowed range, met, n."""
    rows = []
    for row, met in zip(frame.itertuples(), is_true(frame["met"]), strict=True):
        value = "-" if pd.isna(row.value) else f"{row.value:.3g} {'' if pd.isna(row.unit) else row.unit}"
        n = "" if pd.isna(row.n) else f"{int(row.n):,}"
        interval = "-" if pd.isna(row.ci_low) else f"{row.ci_low:.3g} to {row.ci_high:.3g}"
        ends = [f"{side} {number(end)}" for side, end in (("at least", row.low), ("at most", row.high)) if not math.isnan(end)]
        allowed = f"{number(row.low)} to {number(row.high)}" if len(ends) == 2 else "".join(ends) or "reported"
        rows.append([row.gate, value, interval, allowed, "yes" if met else "**no**", n])
    return markdown_table(["Gate", "Value", "95 %", "Allowed", "Met", "n"], rows)


def study_markdown(frame: pd.DataFrame) -> str:
    """`study_comparisons.csv` as the table of docs/study.md: a row a pair, differences with Holm's 95 % intervals."""
    rows = []
    for (family, arm, baseline), pair in frame.groupby(["family", "arm", "baseline"], sort=False):
        of = {row.metric: row for row in pair.itertuples()}
        shown = {m: f"{one.difference:+.2f} ({one.holm_low:.2f} to {one.holm_high:.2f})" for m, one in of.items()}
        first = of["outcome"]
        shown["detectable"] = f"{first.detectable:.2f}"
        names = (family, f"`{arm}` - `{baseline}`", first.n_seeds)
        rows.append([*names, *(shown.get(metric, "") for metric in STUDIED), first.paper_value])
    return markdown_table(["Family", "Pair", "Seeds", *STUDIED.values(), "Paper"], rows) if rows else "No run is finished yet."


STUDIED = {
    "outcome": "Outcome, points", "detectable": "Detectable", "steps": "Steps to target saved, %",
    "caught": "Steps to the end of `grpo` saved, %", "area": "Area under the curve", "best": "Best evaluation",
    "tail": "Behind the tail", "silent": "Groups without gradient, points",
}  # fmt: skip
"""Metric of study_comparisons.csv -> its column in docs/study.md."""


def update_block(path: Path, marker: str, text: str) -> bool:
    """Replace what stands between `<!-- begin MARKER -->` and `<!-- end MARKER -->`; True when the file changed. Raises
    ValueError when the file does not hold each marker once, in this order; ArtifactError when it cannot be written."""
    block = re.compile(f"(<!-- begin {marker} -->\n).*?(<!-- end {marker} -->)", re.DOTALL)
    old = path.read_text(encoding="utf-8")
    if len(block.findall(old)) != 1:
        raise ValueError(f"{path} must hold '<!-- begin {marker} -->' and then '<!-- end {marker} -->', each once: add them")
    new = block.sub(lambda found: f"{found[1]}{text.strip()}\n{found[2]}", old)
    if new != old:
        write_atomic(path, new.encode("utf-8"))
    return new != old


SHOWS = re.compile(r'draw\("(\w+)"|FIGURES / "(\w+)\.png"')
"""How a cell names the figure that it shows."""


def galleries() -> dict[Path, str]:
    """Document -> its block `gallery`, told in the notebooks themselves: on the front page and in notebooks/ what each notebook
    answers, when its outputs are stored (on the front page an appendix is a link), in figures/ every published figure that one of
    them shows."""
    front, rows, figures = [], [], []
    for path in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        title, _, text = cells[0].source.removeprefix("# ").partition("\n")
        question = "".join(re.findall(r"[^.?*]+\?", text)[:1]).strip()
        answer = "".join(output.get("text", "") for output in [c for c in cells if c.cell_type == "code"][-1].outputs).strip()
        shown = [(name, after.source) for cell, after in itertools.pairwise(cells) if cell.cell_type == "code"
                 for name in map("".join, SHOWS.findall(cell.source)) if (paths.FIGURES / f"{name}.png").is_file()]  # fmt: skip
        picture = f'<img src="../figures/{shown[0][0]}.png" width="160">' if shown else ""
        short = re.split(r"; (?![^(]*\))|[.] ", answer)[0].rstrip(".") or question or title
        link = f"[{(number := path.name.partition('_')[0])}](notebooks/{path.name})"
        if number.isdigit():
            front.append([link, short])
        else:
            front[-1][0] += f" {link}"
        rows.append([picture, f"[{title}]({path.name})", question, answer])
        figures += [f"![{name}]({name}.png)\n\n{text} Notebook [{title}](../notebooks/{path.name})." for name, text in shown]
    return {
        paths.ROOT / "README.md": markdown_table(["Notebook", "[Answer](notebooks/README.md)"], front),
        paths.NOTEBOOKS / "README.md": markdown_table(["", "Notebook", "Question", "Answer"], rows),
        paths.FIGURES / "README.md": "\n\n".join(figures),
    }


def generated() -> dict[tuple[Path, str], str]:
    """Every generated part of a document: (document, marker of its block) -> text, from `figures/data` and the notebooks."""
    claims, gates, study = (read_table(name, paths.PUBLISHED) for name in ("claims", "world_gates", "study_comparisons"))
    return {
        (paths.ROOT / "README.md", "finding"): finding_markdown(claims),
        (paths.ROOT / "docs" / "claims.md", "claims"): claims_markdown(claims),
        (paths.ROOT / "docs" / "world.md", "gates"): gates_markdown(gates),
        (paths.ROOT / "docs" / "study.md", "study"): study_markdown(study),
        **{(path, "gallery"): text for path, text in galleries().items()},
    }


def run_readme() -> int:
    """`readme`: bring every generated part of a document up to date, and say which changed."""
    changed = [f"{path} ({marker})" for (path, marker), text in generated().items() if update_block(path, marker, text)]
    print("written: " + (", ".join(changed) or "nothing, all of them are up to date"))
    return 0
