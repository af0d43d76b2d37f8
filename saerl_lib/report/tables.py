"""The CSV tables of `figures/data`: their columns, checked writing and reading, and what README.md and docs/ show of them.

The notebooks and the study write them, figures and claims are drawn from them alone. Shares, accuracies, purity and recall are
fractions in 0..1; only `paired_difference.csv`, the study's tables and rows of `claims.csv` that say so are in percent.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from saerl_lib import paths
from saerl_lib.artifacts import ToldError, write_atomic

FOLDER = Path(__file__).parent
LABELS: dict[str, dict[str, str]] = {
    str(group): dict(zip(part["key"], part["label"], strict=True))
    for group, part in pd.read_csv(FOLDER / "labels.csv", dtype=str, keep_default_na=False).groupby("group", sort=False)
}
"""`labels.csv` beside this file: the one name of everything that figures and documents show, by group, in its order."""


class Schema(NamedTuple):
    """Columns of one table, in file order."""

    notebook: str
    """Number of the notebook that writes it."""
    columns: tuple[str, ...]
    optional: frozenset[str]
    """Columns whose cells may be empty."""
    fractions: frozenset[str]
    """Columns that must lie in 0..1."""


def _schemas() -> dict[str, Schema]:
    """`columns.txt` beside this file: the notebook that writes it, tables, columns in file order; `?`: cells may be empty, `%`:
    values must lie in 0..1."""
    found = {}
    for line in (FOLDER / "columns.txt").read_text(encoding="utf-8").splitlines():
        (notebook, *names), marked = (part.split() for part in line.split(":"))
        columns = tuple(name.rstrip("?%") for name in marked)
        empty, share = (frozenset(c for c, m in zip(columns, marked, strict=True) if mark in m) for mark in "?%")
        found |= dict.fromkeys(names, Schema(notebook, columns, empty, share))
    return found


SCHEMAS = _schemas()
"""Every table of `figures/data`, by name."""


class TableError(ToldError, ValueError):
    """A table is missing, empty or does not have its columns, or nothing is published."""


WAITING = ("paired_difference", "study_comparisons", "study_mixing")
"""Tables without rows until the runs that they compare are made."""


def _schema(name: str) -> Schema:
    if name not in SCHEMAS:
        raise TableError(f"table {name!r} is not known; choose one of {', '.join(SCHEMAS)}")
    return SCHEMAS[name]


def as_table(name: str, rows: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """Table `name` from its rows, cells in the order of its columns."""
    return pd.DataFrame(rows, columns=list(SCHEMAS[name].columns))


def _require_rows(frame: pd.DataFrame, name: str, where: str, remedy: str) -> None:
    schema = SCHEMAS[name]
    if missing := [column for column in schema.columns if column not in frame]:
        told = f"notebook {schema.notebook} writes {','.join(schema.columns)}"
        raise TableError(f"{where} lacks column {', '.join(missing)}; {told}")
    if frame.empty and name not in WAITING:
        raise TableError(f"{where} has no rows; {remedy}")


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
        raise TableError(f"table {name} has unknown column {', '.join(unknown)}; add it to saerl_lib/report/columns.txt")
    for column in schema.columns:
        values, told = frame[column], f"table {name}: column {column}"
        if column not in schema.optional and values.isna().any():
            raise TableError(f"{told} is empty in row {int(np.flatnonzero(values.isna())[0])}; fill it")
        numbers = pd.to_numeric(values, errors="coerce").astype(float)
        if np.isinf(numbers).any():
            raise TableError(f"{told} holds an infinite number; leave such cells empty")
        if column in schema.fractions and not numbers.dropna().between(-1e-9, 1 + 1e-9).all():
            raise TableError(f"{told} must lie in 0..1; write fractions, not percent")
    ready = frame[list(schema.columns)].apply(lambda values: values.map(_text) if values.dtype in (bool, object) else values)
    path = folder / f"{name}.csv"
    write_atomic(path, ready.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode("utf-8"))
    return path


def read_table(name: str, folder: Path) -> pd.DataFrame:
    """Read table `name` from `folder`; columns that only an earlier version had are left out. Raises TableError naming the file,
    the column and the notebook that writes it when it is missing, empty or incomplete."""
    schema, path = _schema(name), folder / f"{name}.csv"
    made = f"./run_all.sh --only {schema.notebook}, the notebook" if schema.notebook[:1].isdigit() else "the command"
    remedy = f"run {made} that writes it"
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


TOY = "toy task"
"""Where a claim was measured: the embedded world with its own policy; else on real mathematics."""
def main_claims(claims: pd.DataFrame) -> pd.DataFrame:
    """The main claims of `claims.csv` in the order of their labels, with their short name as `row`."""
    names, claim = LABELS["main claim"], claims["claim"].str
    return pd.concat([claims[claim.startswith(start)].head(1).assign(row=names[start]) for start in names], ignore_index=True)


def counted(claims: pd.DataFrame) -> str:
    """How many claims have which verdict, in words."""
    counts = claims["direction"].value_counts()
    return ", ".join(f"{counts[word]} {said}" for word, said in LABELS["direction"].items() if word in counts)


def estimate(claim: Any) -> str:
    """Our value of a claim with its interval, two decimals for shares and correlations, else one; a change has its sign. '' where
    it was not run."""
    if pd.isna(claim.our_value):
        return ""
    form = ("+" if "change" in claim.claim else "") + (".1f" if max(abs(claim.paper_value), abs(claim.our_value)) >= 1 else ".2f")
    value, low, high = (format(number, form) for number in (claim.our_value, claim.ci_low, claim.ci_high))
    return f"{value} ({low} to {high})"


def claims_markdown(frame: pd.DataFrame) -> str:
    """`claims.csv` as the table of docs/claims.md: claim, the paper's value, ours with its interval, direction, size, where."""
    rows = []
    for row in frame.fillna(dict.fromkeys(("size", "scale", "notebook", "figure", "command"), "")).itertuples():
        kind, target = ("figure", row.figure) if row.figure else ("notebook", row.notebook)
        where, command = f"[{kind}](../{target})" if target else "", f"`{row.command}`" if row.command else ""
        bounds = "" if pd.isna(row.ci_low) else f"{number(row.ci_low)} to {number(row.ci_high)}"
        seeds = f"{row.n_seeds:,.0f}" if row.direction != "not run" else ""
        judged = (f"**{row.direction}**", row.size, row.scale)
        rows.append([row.claim, row.paper_value, row.our_value, bounds, seeds, *judged, where, command])
    header = ["Claim", "Paper", "Here", "95 % interval", "Seeds", "Direction", "Size", "Measured on", "Where", "Command"]
    tested = frame[frame["paper_value"].notna()]
    within = (tested["size"] == "yes").sum()
    told = f"The paper's {len(tested)} numbers: {counted(tested)}; {within} intervals contain the paper's value."
    return f"{told}\n\n{markdown_table(header, rows)}"


def finding_markdown(frame: pd.DataFrame) -> str:
    """The main claims of `claims.csv` with their verdicts, and how many of all claims have which."""
    main, tested = main_claims(frame), frame[frame["paper_value"].notna()]
    rows = [[row.row, row.paper_value, estimate(row), f"**{row.direction}**", str(row.scale).partition(",")[0]]
            for row in main.itertuples()]
    header = ["Main effect", "Paper", "Here, 95 % interval", "Direction", "Measured on"]
    places = tested.groupby(tested["scale"].str.partition(",")[0])
    counts = "; ".join(f"on {'the ' * (place == 'toy task')}{place} {counted(part)}" for place, part in places)
    told = (f"[The paper's {len(tested)} numbers](docs/claims.md): {counts}. *Agrees*: our interval lies on the paper's side of "
            "zero.")  # fmt: skip
    return f"{told}\n\n{markdown_table(header, rows)}"


def gates_markdown(frame: pd.DataFrame) -> str:
    """`world_gates.csv` as a Markdown table: check, value with its 95 % interval, allowed range, met, n."""
    rows = []
    for row, met in zip(frame.itertuples(), is_true(frame["met"]), strict=True):
        check = next((said for start, said in LABELS["check"].items() if row.gate.startswith(start)), row.gate)
        value = "-" if pd.isna(row.value) else f"{row.value:.3g} {'' if pd.isna(row.unit) else row.unit}".strip()
        interval = "" if pd.isna(row.ci_low) else f" ({row.ci_low:.3g} to {row.ci_high:.3g})"
        ends = [f"{side} {number(end)}" for side, end in (("at least", row.low), ("at most", row.high)) if not math.isnan(end)]
        allowed = f"{number(row.low)} to {number(row.high)}" if len(ends) == 2 else "".join(ends) or "reported"
        rows.append([check, value + interval, allowed, "yes" if met else "**no**", "" if pd.isna(row.n) else f"{int(row.n):,}"])
    return markdown_table(["Check", "Value (95 %)", "Allowed", "Met", "n"], rows)


def spent(seconds: float) -> str:
    """Wall clock as it is said: seconds, from two minutes on minutes and seconds.

    >>> spent(19.4), spent(1169.7)
    ('19 s', '19 min 30 s')
    """
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"


def times_markdown(frame: pd.DataFrame) -> str:
    """What the commands of README.md took, by `measurements.csv`: command, what it does, wall clock."""
    took = frame[(frame["bench"] == "command") & (frame["quantity"] == "seconds")].set_index("of")["value"]
    rows = [[f"`{line}`", said, spent(took[line]) if line in took else ""] for line, said in LABELS["command"].items()]
    return markdown_table(["Command", "What", "Time"], rows)


def speed_markdown(frame: pd.DataFrame) -> str:
    """The benchmarks of `measurements.csv` that docs/speed.md shows: bench, size, what was measured, value."""
    keys, places = frame["bench"] + " " + frame["quantity"], {key: place for place, key in enumerate(LABELS["measured"])}
    known = frame.assign(said=keys.map(LABELS["measured"]), place=keys.map(places), size=frame["of"].str.len()).dropna()
    known = known.sort_values(["bench", "size", "place"])  # of two sizes the longer number is the larger one
    rows = [[f"`{row.bench}`", row.of, row.said, number(row.value)] for row in known.itertuples()]
    return markdown_table(["Bench", "Of", "What", "Measured"], rows)


def interval(value: float, low: float, high: float, form: str) -> str:
    """A difference with its interval, bold where that excludes zero.

    >>> interval(1.26, 0.1, 2.44, ".1f")
    '**+1.3** (0.1 to 2.4)'
    """
    bold = "**" if low > 0 or high < 0 else ""
    return f"{bold}{value:+{form}}{bold} ({low:{form}} to {high:{form}})"


def _studied(row: Any) -> str:
    """One comparison with Holm's interval; with all runs at the limit of steps both differences are exactly zero."""
    value, low, high = row.difference, row.holm_low, row.holm_high
    if row.metric in ("steps", "caught"):  # the table holds percent saved
        if value == low == high == 0:
            return "not reached"
        value, low, high = -value, -high, -low
    form = ".2f" if row.metric in ("outcome", "once", "tail") else ".1f"
    return f"{value:+{form}}" if math.isnan(low) else interval(value, low, high, form)


def study_markdown(frame: pd.DataFrame, question: str) -> str:
    """Rows of `study_comparisons.csv` as a table of docs/study.md, for the families of one question: a row a pair, differences
    with Holm's 95 % intervals, the paper's value where it has one."""
    rows, families = [], LABELS["study question"][question].split()
    own = frame[frame["family"].isin(families)]
    for (family, arm, baseline), pair in own.groupby(["family", "arm", "baseline"], sort=False):
        shown = {row.metric: _studied(row) for row in pair.itertuples()}
        first = pair[pair["metric"] == "outcome"].iloc[0]
        told = {"family": family, "pair": f"`{arm}` - `{baseline}`", "seeds": first["n_seeds"], "paper": first["paper_value"]}
        rows.append({**shown, **told, "detectable": None if math.isnan(first["detectable"]) else f"{first['detectable']:.2f}"})
    if not rows:
        return "No run is finished yet."
    names = {name: said for name, said in LABELS["study column"].items() if name != "family" or len(families) > 1}
    table = pd.DataFrame(rows).reindex(columns=list(names)).dropna(axis=1, how="all")
    return markdown_table([names[name] for name in table], table.to_numpy(dtype=object).tolist())


def ladder_markdown(values: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """`probe_ladder.csv` and `ladder_pairs.csv` as the tables of docs/real_data.md, a row a real task: values by feature set, and
    all latents minus each other set on the same test problems."""
    keys, names, against = ["dataset", "target", "metric"], LABELS["target"], LABELS["against"]
    sets = {name: said for name, said in LABELS["ladder"].items() if name in set(values["features"])}
    read, less = [], []
    for (dataset, target, metric), own in values[values["dataset"] != "world"].groupby(keys, sort=False):
        task = f"{LABELS['data set'][dataset]}, {names.get(target, target.replace('_', ' '))}"
        mean, size = own.set_index("features")["value"].map("{:.3f}".format), own["n_test"].iloc[0]
        read.append([task, LABELS["metric"][metric], f"{size:,}", *(mean.get(name, "") for name in sets)])
        chosen = (pairs["dataset"] == dataset) & (pairs["target"] == target) & (pairs["features"] == "sae_all")
        rows = {row.against: row for row in pairs[chosen].itertuples()}
        less.append([task, *(interval(*(getattr(rows[name], end) for end in ("difference", "ci_low", "ci_high")), ".3f")
                             for name in against)])  # fmt: skip
    gain = [f"minus {name}" for name in against.values()]
    return f"{markdown_table(['Task', 'Metric', 'n', *sets.values()], read)}\n\n{markdown_table(['All latents', *gain], less)}"


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
    import nbformat  # takes a second that every notebook would wait

    front, rows, figures = [], [], []
    for path in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        title, _, text = cells[0].source.removeprefix("# ").partition("\n")
        question = "".join(re.findall(r"[^.?*]+\?", text)[:1]).strip()
        answer = "".join(output.get("text", "") for output in [c for c in cells if c.cell_type == "code"][-1].outputs).strip()
        shown = [(name, after.source) for cell, after in itertools.pairwise(cells) if cell.cell_type == "code"
                 for name in map("".join, SHOWS.findall(cell.source)) if (paths.FIGURES / f"{name}.png").is_file()]  # fmt: skip
        picture = f'<img src="../figures/{shown[0][0]}.png" width="160">' if shown else ""
        short = re.split(r"; |[.] ", re.sub(r" \([^()]*\)", "", answer))[0].rstrip(".") or question or title
        short = re.sub(r"^(?:Yes|No)(.*?): (.)", lambda found: found[2].upper(), short)
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


def plan_markdown() -> str:
    """The paper's own figures beside those that `--plan-only` prints."""
    text = (FOLDER.parent / "data" / "paper_plan.txt").read_text(encoding="utf-8")
    figures, total = re.search("The paper's own figures:\n(.*?)\n\n", text, re.S), re.search("All of it: .*", text)
    assert figures and total
    return f"```text\n{figures[1]}\n\n  {total[0]}\n```"


def generated() -> dict[tuple[Path, str], str]:
    """Every generated part of a document: (document, marker of its block) -> text, from `figures/data` and the notebooks."""
    names = ("claims", "world_gates", "study_comparisons", "measurements", "probe_ladder", "ladder_pairs")
    claims, gates, study, measured, *ladder = (read_table(name, paths.PUBLISHED) for name in names)
    return {
        (paths.ROOT / "README.md", "finding"): finding_markdown(claims),
        (paths.ROOT / "README.md", "times"): times_markdown(measured),
        (paths.ROOT / "docs" / "speed.md", "measured"): speed_markdown(measured),
        (paths.ROOT / "docs" / "claims.md", "claims"): claims_markdown(claims),
        (paths.ROOT / "docs" / "paper_scale.md", "plan"): plan_markdown(),
        (paths.ROOT / "docs" / "world.md", "gates"): gates_markdown(gates),
        (paths.ROOT / "docs" / "real_data.md", "ladder"): ladder_markdown(*ladder),
        **{(paths.ROOT / "docs" / "study.md", name): study_markdown(study, name) for name in LABELS["study question"]},
        **{(path, "gallery"): text for path, text in galleries().items()},
    }


def write_documents() -> list[str]:
    """Bring every generated part of a document up to date; returns which changed."""
    return [f"{path} ({marker})" for (path, marker), text in generated().items() if update_block(path, marker, text)]


def run_readme() -> int:
    """`readme`: write the documents, and say which changed."""
    print("written: " + (", ".join(write_documents()) or "nothing, all of them are up to date"))
    return 0
