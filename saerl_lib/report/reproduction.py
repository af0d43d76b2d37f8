"""Does a rerun reproduce what is published? Every published number of a profile beside the rerun's, and publishing a run (ours).

A run writes its tables and figures below `artifacts/PROFILE/figures`; the published ones lie in `figures/`. Each number of a
table that the profile computes gets one of four outcomes:
  same              the same text;
  within tolerance  a value within `RELATIVE` of the published one; the end of an interval that moved by less than half of the
                    published width; a column without an interval whose mean moved by less than `STANDARD_ERRORS` standard errors;
  inside interval   the value of a row inside the published interval of that row;
  outside           none of these; a verdict that changed; a row or table that the rerun lacks.
Rows are matched by their text columns, else by their position. Clusters and samples differ between processors, so a column
without an interval is compared by its mean alone.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

from saerl_lib import paths
from saerl_lib.artifacts import provenance, write_json
from saerl_lib.config import get_profile
from saerl_lib.report.tables import write_atomic

SAME, TOLERANCE, INTERVAL, OUTSIDE = "same", "within tolerance", "inside interval", "outside"
OUTCOMES = (SAME, TOLERANCE, INTERVAL, OUTSIDE)
RELATIVE = 0.001
"""Relative difference of two values that counts as none."""
STANDARD_ERRORS = 3.0
"""Move of a column's mean that counts as none, in standard errors of the published column."""
SCREEN_ROWS = 12
"""Numbers outside that are printed; all of them stand in the CSV file."""
RECORD = "published.json"
"""Beside the published tables: for each profile the processor, threads, versions and commit of the run they come from."""
TABLES_OF = {
    "study": ("study_",),
    "real data": ("probe_ladder", "real_"),
    "bench": ("preparation_cost", "gpu_checks"),
}
"""Profile or command -> beginnings of the names of the tables that it publishes; all others belong to `laptop`."""


class NothingPublishedError(ValueError):
    """The profile has no published results."""


@dataclass(frozen=True)
class Number:
    """One published number beside that of the rerun."""

    table: str
    row: str
    """Text columns of the row; "mean of N" for a column that is compared by its mean."""
    column: str
    published: float | str
    rerun: float | str
    low: float
    """Lower end of what counts as reproduced; NaN where there is none."""
    high: float
    outcome: str


def publisher(table: str) -> str:
    """The profile (or `bench`) whose run the published `table` comes from.

    >>> publisher("study_runs"), publisher("world_gates")
    ('study', 'laptop')
    """
    return next((profile for profile, starts in TABLES_OF.items() if table.startswith(starts)), "laptop")


def published_tables(profile: str, folder: Path | None = None) -> list[str]:
    """Names of the published tables that a run of `profile` computes itself, sorted."""
    return sorted(path.stem for path in (folder or paths.PUBLISHED).glob("*.csv") if publisher(path.stem) == profile)


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


def _text_columns(*frames: pd.DataFrame) -> list[str]:
    first = frames[0]
    return [c for c in first.columns if not all(pd.api.types.is_numeric_dtype(frame[c]) for frame in frames)]


def _matched(old: pd.DataFrame, new: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Rows of both in one order, and a name for each row; NaN in a row that the rerun lacks."""
    text = [c for c in _text_columns(old, new) if c not in ("verdict", "note", "met")]
    words, others = (frame[text].astype(object).fillna("").astype(str) for frame in (old, new))
    names = [" ".join(cell[:60] for cell in row if cell) or f"row {i}" for i, row in enumerate(words.to_numpy().tolist())]
    if len(old) == len(new) and sorted(words.to_numpy().tolist()) != sorted(others.to_numpy().tolist()):
        return old, new, names
    if not text:
        return old, new.reindex(range(len(old))), names

    def keys(part: pd.DataFrame) -> pd.Index:
        joined = part.agg("\x1f".join, axis=1)
        return pd.Index(joined + "\x1f" + joined.groupby(joined).cumcount().astype(str))

    return old, new.set_axis(keys(others)).reindex(keys(words)).reset_index(drop=True), names


def _judge(old: float, new: float, low: float, high: float) -> str:
    if old == new or (np.isnan(old) and np.isnan(new)):
        return SAME
    if np.isnan(old) or np.isnan(new):
        return OUTSIDE
    if abs(new - old) <= RELATIVE * abs(old):
        return TOLERANCE
    return INTERVAL if low <= new <= high else OUTSIDE


def _row_by_row(table: str, old: pd.DataFrame, new: pd.DataFrame, bounds: dict[str, tuple[str, str]]) -> Iterator[Number]:
    """Values with an interval, and the ends of their intervals."""
    first, second, names = _matched(old, new)
    for value, ends in bounds.items():
        lows, highs = (pd.to_numeric(first[end], errors="coerce").astype(float) for end in ends)
        for column in (value, *ends):
            a, b = (pd.to_numeric(frame[column], errors="coerce").astype(float) for frame in (first, second))
            for name, x, y, low, high in zip(names, a, b, lows, highs, strict=True):
                if column in ends:
                    half = (high - low) / 2
                    outcome = _judge(x, y, x - half, x + half)
                    yield Number(table, name, column, x, y, x - half, x + half, TOLERANCE if outcome == INTERVAL else outcome)
                else:
                    yield Number(table, name, column, x, y, low, high, _judge(x, y, low, high))


def _by_mean(table: str, old: pd.DataFrame, new: pd.DataFrame, column: str) -> Number:
    a, b = (pd.to_numeric(frame[column], errors="coerce").astype(float) for frame in (old, new))
    mean, other = float(a.mean()), float(b.mean())
    if len(a) == len(b) and np.array_equal(a.to_numpy(), b.to_numpy(), equal_nan=True):
        return Number(table, f"mean of {len(a)}", column, mean, other, np.nan, np.nan, SAME)
    half = STANDARD_ERRORS * float(a.std(ddof=1)) / np.sqrt(max(1, int(a.notna().sum()))) if a.notna().sum() > 1 else 0.0
    outcome = _judge(mean, other, mean - half, mean + half)
    outcome = TOLERANCE if outcome in (INTERVAL, SAME) else outcome
    return Number(table, f"mean of {len(a)}", column, mean, other, mean - half, mean + half, outcome)


def compare_table(table: str, old: pd.DataFrame, new: pd.DataFrame) -> list[Number]:
    """Every number of the published table `old` beside the rerun's `new`; verdicts are compared as words."""
    numbers: list[Number] = []
    missing = [column for column in old.columns if column not in new.columns]
    numbers += [Number(table, "", column, "column", "missing", np.nan, np.nan, OUTSIDE) for column in missing]
    old, new = old.drop(columns=missing), new[[column for column in old.columns if column in new.columns]]
    bounds = _intervals(list(old.columns))
    numbers += _row_by_row(table, old, new, bounds)
    covered = {*bounds, *(end for ends in bounds.values() for end in ends)}
    numeric = [c for c in old.columns if pd.api.types.is_numeric_dtype(old[c]) and pd.api.types.is_numeric_dtype(new[c])]
    numbers += [_by_mean(table, old, new, column) for column in numeric if column not in covered]
    if "verdict" in old.columns:
        first, second, names = _matched(old, new)
        for name, x, y in zip(names, first["verdict"], second["verdict"], strict=True):
            numbers.append(Number(table, name, "verdict", str(x), str(y), np.nan, np.nan, SAME if x == y else OUTSIDE))
    return numbers


def compare(profile: str, published: Path | None = None, rerun: Path | None = None) -> pd.DataFrame:
    """One row a number of the tables that `profile` publishes: table, row, column, published, rerun, low, high, outcome.

    Raises NothingPublishedError for a profile that publishes no table.
    """
    published, rerun = published or paths.PUBLISHED, rerun or paths.figure_data_dir(profile)
    names = published_tables(profile, published)
    if not names:
        raise NothingPublishedError(f"profile {profile} has no published results; laptop, method and study have")
    numbers: list[Number] = []
    for name in names:
        if not (rerun / f"{name}.csv").is_file():
            numbers.append(Number(name, "", "", "table", "missing", np.nan, np.nan, OUTSIDE))
            continue
        numbers += compare_table(name, *(pd.read_csv(folder / f"{name}.csv") for folder in (published, rerun)))
    return pd.DataFrame([asdict(number) for number in numbers])


def published_record(profile: str) -> dict[str, object]:
    """What `publish` wrote of the run that the published results of `profile` come from; empty where nothing is known."""
    path = paths.PUBLISHED / RECORD
    return json.loads(path.read_text(encoding="utf-8")).get(profile, {}) if path.is_file() else {}


def summary(profile: str, numbers: pd.DataFrame) -> str:
    """The comparison on one screen: counts a table, then the numbers outside."""
    counts = numbers.groupby("table", sort=True)["outcome"].value_counts().unstack(fill_value=0)
    counts = counts.reindex(columns=list(OUTCOMES), fill_value=0)
    changed = counts[counts[SAME] < counts.sum(axis=1)]
    total = {outcome: int(counts[outcome].sum()) for outcome in OUTCOMES}
    known = published_record(profile)
    machine = f"published on {known.get('processor', 'an unrecorded processor')}, rerun on {provenance()['processor']}"
    lines = [f"Reproduction of the {len(numbers)} published numbers of profile {profile} ({machine}):"]
    lines.append("  " + ", ".join(f"{count} {outcome}" for outcome, count in total.items()))
    if not changed.empty:
        lines += ["", changed.to_string()]
    outside = numbers[numbers["outcome"] == OUTSIDE]
    for row in outside.head(SCREEN_ROWS).itertuples():
        lines.append(f"  outside: {row.table}, {row.row[:70]}, {row.column}: published {row.published}, here {row.rerun}")
    if len(outside) > SCREEN_ROWS:
        lines.append(f"  and {len(outside) - SCREEN_ROWS} more")
    return "\n".join(lines)


PAGE = """<!doctype html><meta charset="utf-8"><title>Reproduction, profile {{ profile }}</title>
<style>body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em}img{width:48%}td,th{padding:0 .8em;text-align:right}
td:first-child,th:first-child{text-align:left}pre{white-space:pre-wrap}</style>
<h1>Reproduction, profile {{ profile }}</h1><pre>{{ text }}</pre>
<h2>Figures: published left, this run right</h2>
{% for name, old, new in figures %}<h3>{{ name }}{% if old == new %}: the same{% endif %}</h3>
{% for data in ([old] if old == new else [old, new]) %}{% if data %}<img src="data:image/png;base64,{{ data }}" alt="{{ name }}">
{% else %}<em>missing</em>{% endif %}{% endfor %}{% endfor %}
"""


def _picture(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii") if path.is_file() else ""


def write_page(profile: str, text: str) -> Path:
    """`reproduction.html` beside the run's tables: the summary and every figure old and new."""
    names = sorted({path.stem for folder in (paths.FIGURES, paths.figures_dir(profile)) for path in folder.glob("*.png")})
    figures = [(n, _picture(paths.FIGURES / f"{n}.png"), _picture(paths.figures_dir(profile) / f"{n}.png")) for n in names]
    page = jinja2.Environment(autoescape=True).from_string(PAGE).render(profile=profile, text=text, figures=figures)
    path = paths.profile_dir(profile) / "reproduction.html"
    write_atomic(path, page.encode("utf-8"))
    return path


def report(profile: str) -> tuple[str, int]:
    """Compare a finished run with what is published, write `reproduction.csv` and `.html`; the screen and the number outside."""
    numbers = compare(profile)
    table = paths.profile_dir(profile) / "reproduction.csv"
    write_atomic(table, numbers.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode("utf-8"))
    text = summary(profile, numbers)
    page = write_page(profile, text)
    return f"{text}\nEvery number: {table}\nFigures old and new: {page}", int((numbers["outcome"] == OUTSIDE).sum())


def publish(profile: str) -> list[Path]:
    """Replace the published tables, figures and documents of `profile` by those of its finished run; returns what changed.

    Tables that another profile publishes stay. Figures and claims are made again from the published tables. Raises
    NothingPublishedError for a profile that publishes nothing, FileNotFoundError when a table of the run is missing.
    """
    from saerl_lib.report.claims import build_claims
    from saerl_lib.report.figures import draw_all
    from saerl_lib.report.tables import write_csv, write_documents

    names, source = published_tables(profile), paths.figure_data_dir(profile)
    if not names:
        raise NothingPublishedError(f"profile {profile} has no published results; laptop, method and study have")
    missing = [name for name in names if not (source / f"{name}.csv").is_file()]
    if missing:
        raise FileNotFoundError(f"{source} lacks {', '.join(missing)}; run ./run_all.sh --profile {profile} to its end first")
    before = {p: p.read_bytes() for p in [*paths.PUBLISHED.glob("*.csv"), *paths.FIGURES.glob("*.p[nd][gf]")]}
    evaluations = [path.name for path in source.glob("*.parquet") if publisher(path.stem) == profile]
    for name in [*(f"{name}.csv" for name in names), *sorted(evaluations)]:
        partial = paths.PUBLISHED / f".{name}.{os.getpid()}.partial"
        shutil.copyfile(source / name, partial)
        partial.replace(paths.PUBLISHED / name)
    write_csv(build_claims(paths.PUBLISHED), "claims", paths.PUBLISHED)
    draw_all(paths.PUBLISHED, paths.FIGURES)
    write_documents(paths.ROOT, paths.PUBLISHED)
    record = paths.PUBLISHED / RECORD
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    write_json(record, {**known, profile: provenance()})
    return [path for path, data in before.items() if path.read_bytes() != data]


def run_publish(profile: str) -> int:
    """`publish`: say which published files changed."""
    changed = publish(get_profile(profile).name)
    print(f"{len(changed)} published files changed" + "".join(f"\n  {path}" for path in changed))
    return 0
