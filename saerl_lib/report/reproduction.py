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
    "method": ("probe_ladder", "ladder_saes", "real_"),
    "bench": ("preparation_cost", "gpu_checks"),
}
"""Profile or command -> beginnings of the names of the tables that it publishes; all others belong to `laptop`."""


class NothingPublishedError(ValueError):
    """The profile has no published results."""


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


def _matched(old: pd.DataFrame, new: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Rows of both in one order, and a name for each row; NaN in a row that the rerun lacks."""
    numeric = [c for c in old if all(pd.api.types.is_numeric_dtype(frame[c]) for frame in (old, new))]
    text = [c for c in old if c not in (*numeric, "verdict", "note", "met")]
    words, others = (frame[text].astype(object).fillna("").astype(str) for frame in (old, new))
    names = [" ".join(cell[:60] for cell in row if cell) or f"row {i}" for i, row in enumerate(words.to_numpy().tolist())]
    if len(old) == len(new) and sorted(words.to_numpy().tolist()) != sorted(others.to_numpy().tolist()):
        return old, new, names
    if not text:
        return old, new.reindex(range(len(old))), names
    keys = [pd.MultiIndex.from_frame(part.assign(place=part.groupby(text).cumcount())) for part in (words, others)]
    return old, new.set_axis(keys[1]).reindex(keys[0]).reset_index(drop=True), names


def _floats(values: pd.Series) -> np.ndarray:
    return pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)


def _judged(
    rows: str | list[str], column: str, old: np.ndarray, new: np.ndarray, low: np.ndarray, high: np.ndarray, inside: str
) -> pd.DataFrame:
    """A row a number: what is published, the rerun's, what counts as reproduced, and the outcome; `inside` names that range."""
    same = (old == new) | (np.isnan(old) & np.isnan(new))
    near, between = np.abs(new - old) <= RELATIVE * np.abs(old), (low <= new) & (new <= high)
    outcome = np.select([same, np.isnan(old) | np.isnan(new), near, between], [SAME, OUTSIDE, TOLERANCE, inside], OUTSIDE)
    values = {"row": rows, "column": column, "published": old, "rerun": new, "low": low, "high": high, "outcome": outcome}
    return pd.DataFrame(values)


def _by_mean(old: pd.Series, new: pd.Series, column: str) -> pd.DataFrame:
    """A column as one number, its mean; equal means of unequal columns are within tolerance, not the same."""
    a, b = _floats(old), _floats(new)
    equal, spread = np.array_equal(a, b, equal_nan=True), pd.Series(a).sem()
    mean, other = np.array([np.nan if np.isnan(v).all() else np.nanmean(v) for v in (a, b)]).reshape(2, 1)
    half = np.nan if equal else STANDARD_ERRORS * (0.0 if np.isnan(spread) else spread)
    found = _judged(f"mean of {len(a)}", column, mean, other, mean - half, mean + half, TOLERANCE)
    return found if equal else found.assign(outcome=found["outcome"].replace(SAME, TOLERANCE))


def compare_table(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Every number of the published table `old` beside the rerun's `new`; verdicts are compared as words."""
    missing = [column for column in old.columns if column not in new.columns]
    parts = [_named("", column, "column", "missing") for column in missing]
    old, new = old.drop(columns=missing), new[[column for column in old.columns if column in new.columns]]
    bounds = _intervals(list(old.columns))
    first, second, names = _matched(old, new)
    for value, ends in bounds.items():
        low, high = (_floats(first[end]) for end in ends)
        parts.append(_judged(names, value, _floats(first[value]), _floats(second[value]), low, high, INTERVAL))
        for end in ends:
            here, half = _floats(first[end]), (high - low) / 2
            parts.append(_judged(names, end, here, _floats(second[end]), here - half, here + half, TOLERANCE))
    covered = {*bounds, *(end for ends in bounds.values() for end in ends)}
    numeric = [c for c in old.columns if pd.api.types.is_numeric_dtype(old[c]) and pd.api.types.is_numeric_dtype(new[c])]
    parts += [_by_mean(old[column], new[column], column) for column in numeric if column not in covered]
    if "verdict" in old.columns:
        both = zip(names, first["verdict"].astype(str), second["verdict"].astype(str), strict=True)
        parts += [_named(name, "verdict", x, y) for name, x, y in both]
    return pd.concat(parts, ignore_index=True)


def _named(row: str, column: str, published: str, rerun: str) -> pd.DataFrame:
    """The row of something that is compared as a word."""
    values = {"row": row, "column": column, "published": published, "rerun": rerun, "low": np.nan, "high": np.nan}
    return pd.DataFrame([values | {"outcome": SAME if published == rerun else OUTSIDE}])


def compare(profile: str, published: Path | None = None, rerun: Path | None = None) -> pd.DataFrame:
    """One row a number of the tables that `profile` publishes: table, row, column, published, rerun, low, high, outcome.

    Raises NothingPublishedError for a profile that publishes no table.
    """
    published, rerun = published or paths.PUBLISHED, rerun or paths.figure_data_dir(profile)
    names = published_tables(profile, published)
    if not names:
        raise NothingPublishedError(f"profile {profile} has no published results; laptop, method and study have")
    found = {}
    for name in names:
        if (rerun / f"{name}.csv").is_file():
            found[name] = compare_table(*(pd.read_csv(folder / f"{name}.csv") for folder in (published, rerun)))
        else:
            found[name] = _named("", "", "table", "missing")
    return pd.concat(found, names=["table", None]).reset_index("table").reset_index(drop=True)


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
