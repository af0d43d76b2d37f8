"""A rerun beside what is published: every number judged (`reproduction.csv`), figures old and new, and publishing the run.

Rows are matched by their text columns, else by their position. Clusters and samples differ between processors: a column without
an interval is compared by its mean alone.
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import numpy as np
import pandas as pd
from nbformat.v4 import new_output

from saerl_lib import paths
from saerl_lib.artifacts import provenance, read_json, write_atomic, write_json
from saerl_lib.config import content_hash, get_profile
from saerl_lib.notebooks import RunOptions, UserError, code_cells, executed_dir
from saerl_lib.report.claims import build_claims
from saerl_lib.report.figures import draw_all
from saerl_lib.report.tables import SCHEMAS, TableError, write_csv, write_documents

OUTCOMES = SAME, TOLERANCE, INTERVAL, OUTSIDE = "same", "within tolerance", "inside interval", "outside"
"""The same number; within `RELATIVE` of it, or the end of an interval that moved by less than half of the published width, or a
column without an interval whose mean moved by less than `STANDARD_ERRORS`; inside the published interval of its row; none of
these, a direction that changed, a row or table that the rerun lacks."""
RELATIVE = 0.001
"""Relative difference of two values that counts as none."""
STANDARD_ERRORS = 3.0
"""Move of a column's mean that counts as none, in standard errors of the published column."""
SCREEN_ROWS = 12
"""Numbers outside that are printed; all of them stand in the CSV file."""
RECORD = "published.json"
"""Beside the published tables: for each profile the processor, threads, versions and commit of the run they come from."""
TABLES_OF = {
    "world": ("study_pilot", "world_controls", "world_gates_amd"), "study": ("study_",),
    "bench": ("preparation_cost", "gpu_checks", "measurements"), "reader": ("sae_curve", "reader_blocks"),
}  # fmt: skip
"""Profile or command -> beginnings of the names of the tables that it publishes; all others belong to `laptop`."""


def publisher(table: str) -> str:
    """The profile (or `bench`) whose run the published `table` comes from.

    >>> publisher("study_runs"), publisher("world_gates")
    ('study', 'laptop')
    """
    return next((profile for profile, starts in TABLES_OF.items() if table.startswith(starts)), "laptop")


def published_tables(profile: str, folder: Path) -> list[str]:
    """Names of the tables of `folder` that a run of `profile` computes itself, sorted."""
    return sorted(name for name in SCHEMAS if publisher(name) == profile and (folder / f"{name}.csv").is_file())


def _intervals(columns: list[str]) -> dict[str, tuple[str, str]]:
    """Value column -> the columns of its interval: `X_low` and `X_high` bound X, or the column before them."""
    found: dict[str, tuple[str, str]] = {}
    for place, low in enumerate(columns):
        stem = low.removesuffix("_low")
        if stem in (low, "bin") or f"{stem}_high" not in columns or not place:
            continue
        before = columns[place - 1]
        value = stem if stem in columns else f"{stem}_mean" if f"{stem}_mean" in columns else before
        if not value.endswith("_high"):
            found.setdefault(value, (low, f"{stem}_high"))
    return found


def _matched(old: pd.DataFrame, new: pd.DataFrame, numeric: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The rerun's rows in the order of the published ones, and a name for each row; NaN in a row that the rerun lacks."""
    text = [c for c in old if c not in (*numeric, "direction", "size", "note", "met")]
    words, others = (frame[text].astype(object).fillna("").astype(str) for frame in (old, new))
    names = [" ".join(cell[:60] for cell in row if cell) or f"row {i}" for i, row in enumerate(words.to_numpy().tolist())]
    renamed = len(old) == len(new) and sorted(words.to_numpy().tolist()) != sorted(others.to_numpy().tolist())
    if renamed or not text:
        return new.reindex(range(len(old))), names
    keys = [pd.MultiIndex.from_frame(part.assign(place=part.groupby(text).cumcount())) for part in (words, others)]
    return new.set_axis(keys[1]).reindex(keys[0]).reset_index(drop=True), names


def _floats(values: pd.Series) -> np.ndarray:
    return pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)


def _judged(
    row: Sequence[str], column: str, old: Any, new: Any, low: Any = np.nan, high: Any = np.nan, inside: str = INTERVAL
) -> pd.DataFrame:
    """A row a number or a word: what is published, the rerun's, what counts as reproduced (named `inside`), and the outcome."""
    found = pd.DataFrame({"row": row, "column": column, "published": old, "rerun": new, "low": low, "high": high})
    x, y = _floats(found["published"]), _floats(found["rerun"])
    same = (found["published"] == found["rerun"]) | found[["published", "rerun"]].isna().all(axis=1)
    near, between = np.abs(y - x) <= RELATIVE * np.abs(x), (found["low"] <= y) & (y <= found["high"])
    outcome = np.select([same, np.isnan(x) | np.isnan(y), near, between], [SAME, OUTSIDE, TOLERANCE, inside], OUTSIDE)
    return found.assign(outcome=outcome)


def _by_mean(old: pd.Series, new: pd.Series) -> pd.DataFrame:
    """A column as one number, its mean; equal means of unequal columns are within tolerance, not the same."""
    a, b = (pd.Series(_floats(values)) for values in (old, new))
    half = STANDARD_ERRORS * np.nan_to_num(a.sem())
    found = _judged([f"mean of {len(a)}"], str(old.name), a.mean(), b.mean(), a.mean() - half, a.mean() + half, TOLERANCE)
    return found if a.equals(b) else found.assign(outcome=found["outcome"].replace(SAME, TOLERANCE))


def compare_table(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Every number of the published table `old` beside the rerun's `new`; directions of claims are compared as words."""
    missing = [column for column in old if column not in new]
    parts = [_judged([""], column, "column", "missing") for column in missing]
    old = old.drop(columns=missing)
    new = new[list(old)]
    numeric = [c for c in old if all(pd.api.types.is_numeric_dtype(frame[c]) for frame in (old, new))]
    other, names = _matched(old, new, numeric)
    bounds = _intervals(list(old))
    for value, ends in bounds.items():
        low, high = (_floats(old[end]) for end in ends)
        parts.append(_judged(names, value, _floats(old[value]), _floats(other[value]), low, high))
        for end in ends:
            at, half = _floats(old[end]), (high - low) / 2
            parts.append(_judged(names, end, at, _floats(other[end]), at - half, at + half, TOLERANCE))
    covered = {*bounds, *(end for ends in bounds.values() for end in ends)}
    parts += [_by_mean(old[column], new[column]) for column in numeric if column not in covered]
    if "direction" in old:
        parts.append(_judged(names, "direction", old["direction"].astype(str), other["direction"].astype(str).to_numpy()))
    return pd.concat(parts, ignore_index=True)


def compare(profile: str) -> pd.DataFrame:
    """One row a number of the tables that `profile` publishes: table, row, column, published, rerun, low, high, outcome."""
    found, rerun = {}, paths.figure_data_dir(profile)
    for name in published_tables(profile, paths.PUBLISHED):
        if (rerun / f"{name}.csv").is_file():
            found[name] = compare_table(*(pd.read_csv(folder / f"{name}.csv") for folder in (paths.PUBLISHED, rerun)))
        else:
            found[name] = _judged([""], "", "table", "missing")
    return pd.concat(found, names=["table", None]).reset_index("table").reset_index(drop=True)


def published_records() -> dict[str, dict[str, object]]:
    """Profile -> what `publish` wrote of the run that its published results come from."""
    return read_json(paths.PUBLISHED / RECORD) or {}


def write_page(profile: str, text: str) -> Path:
    """`reproduction.html` beside the run's tables: the screen, and every figure as published and of this run."""
    old, new = ({path.stem: base64.b64encode(path.read_bytes()).decode("ascii") for path in folder.glob("*.png")}
                for folder in (paths.FIGURES, paths.figures_dir(profile)))  # fmt: skip
    figures = [(name, old.get(name, ""), new.get(name, "")) for name in sorted({*old, *new})]
    template = Path(__file__).with_name("reproduction.html.j2").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True).from_string(template).render(profile=profile, text=text, figures=figures)
    path = paths.profile_dir(profile) / "reproduction.html"
    write_atomic(path, page.encode("utf-8"))
    return path


def report(profile: str) -> tuple[str, int]:
    """Compare a finished run with what is published; writes `reproduction.csv` and `write_page`. Returns one screen (counts a
    table, then the numbers outside) and the number outside."""
    numbers = compare(profile)
    table = paths.profile_dir(profile) / "reproduction.csv"
    write_atomic(table, numbers.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode("utf-8"))
    counts = numbers.groupby("table", sort=True)["outcome"].value_counts().unstack(fill_value=0)
    counts = counts.reindex(columns=list(OUTCOMES), fill_value=0)
    changed = counts[counts[SAME] < counts.sum(axis=1)]
    made = published_records().get(profile, {}).get("processor", "an unrecorded processor")
    machine = f"published on {made}, rerun on {provenance()['processor']}"
    lines = [f"Reproduction of the {len(numbers)} published numbers of profile {profile} ({machine}):"]
    lines.append("  " + ", ".join(f"{count} {outcome}" for outcome, count in counts.sum().items()))
    if not changed.empty:
        lines += ["", changed.to_string()]
    outside = numbers[numbers["outcome"] == OUTSIDE]
    for row in outside.head(SCREEN_ROWS).itertuples():
        lines.append(f"  outside: {row.table}, {row.row[:70]}, {row.column}: published {row.published}, here {row.rerun}")
    if len(outside) > SCREEN_ROWS:
        lines.append(f"  and {len(outside) - SCREEN_ROWS} more")
    page = write_page(profile, "\n".join(lines))
    return "\n".join([*lines, f"Every number: {table}", f"Figures old and new: {page}"]), len(outside)


# Publishing.

STORED = RunOptions().profile
"""The profile that the notebooks name, whose outputs they hold."""
PROGRESS = re.compile(r"[^\n]*\r[^\n]*\n?")
"""A line that is written again and again: a progress bar."""


def code_of(content: Any) -> str:
    """Hash of a notebook's code cells (text and tags), which its outputs belong to: what is said around them may change."""
    return content_hash([[cell.source, cell.metadata.get("tags", [])] for _, cell in code_cells(content)])


def _kept(outputs: list[Any]) -> Iterator[Any]:
    """Outputs as they are stored: text, tables and pictures, without progress bars, stderr, counters and metadata."""
    shown = [output for output in outputs if output.get("name") != "stderr"]
    for is_text, group in itertools.groupby(shown, lambda output: output.output_type == "stream"):
        if is_text and (text := PROGRESS.sub("", "".join(output.text for output in group)).strip("\n")):
            yield new_output("stream", text=f"{text}\n")
        for data in () if is_text else (output.data for output in group):
            kind = next(kind for kind in ("image/png", "text/html", "text/plain") if kind in data)
            yield new_output("display_data", {kind: data[kind]})


def executed_source(source: Path, executed: Path) -> str:
    """The text of a notebook with the outputs of its executed copy and, in its metadata, the hash of the code they belong to.

    Raises UserError when the copy is missing, or of other code or parameters than the notebook's own.
    """
    content, run = (nbformat.read(path, as_version=4) if path.is_file() else None for path in (source, executed))
    if run is None or code_of(run) != code_of(content) or run.metadata.papermill.parameters != RunOptions().parameters():
        raise UserError(f"{executed}: no run of the present {source.name}; run ./run_all.sh to its end first")
    for count, ((_, cell), (_, done)) in enumerate(zip(code_cells(content), code_cells(run), strict=True), start=1):
        cell.execution_count, cell.outputs = count, list(_kept(done.outputs))
    content.metadata["code_hash"] = code_of(content)
    return f"{nbformat.writes(content)}\n"


def publish(profile: str) -> list[Path]:
    """Replace the published tables, figures and documents of `profile` by those of its finished run; returns what changed.

    Tables that another profile publishes stay. Figures and claims are made again from the published tables. Of the profile
    `STORED` the notebooks take over the outputs too. Raises TableError for a profile that publishes nothing, FileNotFoundError
    when a table of the run is missing, UserError when a notebook changed since; then nothing is written.
    """
    source = paths.figure_data_dir(profile)
    names = sorted({*published_tables(profile, paths.PUBLISHED), *published_tables(profile, source)})
    if not names:
        raise TableError(f"profile {profile} has no published results; laptop and study have")
    missing = [name for name in names if not (source / f"{name}.csv").is_file()]
    if missing:
        raise FileNotFoundError(f"{source} lacks {', '.join(missing)}; run ./run_all.sh --profile {profile} to its end first")
    notebooks = sorted(paths.NOTEBOOKS.glob("*.ipynb")) if profile == STORED else []
    texts = {path: executed_source(path, executed_dir(profile) / path.name) for path in notebooks}
    before = {p: p.read_bytes() for p in [*paths.PUBLISHED.glob("*.csv"), *paths.FIGURES.glob("*.p[nd][gf]"), *notebooks]}
    records = sorted(path.relative_to(source) for path in source.glob("*/*.parquet"))
    for name in [*(f"{name}.csv" for name in names), *records]:
        write_atomic(paths.PUBLISHED / name, (source / name).read_bytes())
    write_csv(build_claims(paths.PUBLISHED), "claims", paths.PUBLISHED)
    draw_all(paths.PUBLISHED, paths.FIGURES)
    for path, text in texts.items():
        write_atomic(path, text.encode("utf-8"))
    write_documents()
    write_json(paths.PUBLISHED / RECORD, {**published_records(), profile: provenance()})
    return [path for path, data in before.items() if path.read_bytes() != data]


def run_publish(profile: str) -> int:
    """`publish`: say which published files changed."""
    changed = publish(get_profile(profile).name)
    print(f"{len(changed)} published files changed" + "".join(f"\n  {path}" for path in changed))
    return 0
