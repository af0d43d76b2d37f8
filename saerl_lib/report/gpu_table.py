"""`gpu_checks.csv`, which `bench gpu` writes, as a table of docs/speed.md."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from saerl_lib.report.schemas import TableError
from saerl_lib.report.tables import markdown_table

LARGEST = 131_072
"""F of the speed rows that are shown; the others stand in the CSV."""
SPEED = {
    "forward_s": "{}: forward pass of 4,096 tokens, s",
    "obvious_to_forward": "{}: forward and SAELens' dense latents, pooled / forward",
    "all_to_forward": "{}: forward and all latents, pooled / forward",
    "all_to_forward_and_product": "{}: the same / forward and the encoder's product",
    "retained_to_forward": "{}: forward and 240 retained latents alone / forward",
    "obvious / chunked peak at F =": "{}: peak memory, the obvious way / chunked",
}
"""Speed quantities without F -> how the table names them for a precision."""


def _speed_name(quantity: str) -> str:
    """The table's name of a speed quantity, empty for one that is not shown."""
    precision, _, rest = quantity.partition(": ")
    name = rest.removesuffix(f"_{LARGEST}").removesuffix(f" {LARGEST}")
    return SPEED[name].format(precision) if name != rest and name in SPEED else ""


def _shown(part: str, quantity: str) -> str:
    """The table's name of a quantity: without the SAE or the run that it was measured on."""
    if part == "speed":
        return _speed_name(quantity)
    where, _, rest = quantity.partition(": ")
    return rest if rest and where != "all runs" else quantity


def _span(values: pd.Series) -> str:
    low, high = f"{values.min():.4g}", f"{values.max():.4g}"
    return low if low == high else f"{low} to {high}"


def _allowed(low: float, high: float) -> str:
    if pd.isna(low) and pd.isna(high):
        return ""
    if pd.isna(high) or pd.isna(low):
        return f"at least {low:.4g}" if pd.isna(high) else f"at most {high:.4g}"
    return f"{low:.4g} to {high:.4g}"


def gpu_markdown(folder: Path) -> str:
    """One row a quantity, smallest and largest value over SAEs and runs, with the bounds fixed beforehand.

    Raises TableError where the record or the table is missing.
    """
    try:
        frame = pd.read_csv(folder / "gpu_checks.csv")
        record = json.loads((folder / "gpu_checks.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        fix = f"`python -m saerl_lib bench gpu --out {folder}` on a GPU writes it"
        raise TableError(f"{error.filename} is missing; {fix}") from error
    frame["shown"] = [_shown(p, q) for p, q in zip(frame["part"], frame["quantity"], strict=True)]
    groups = frame[frame["shown"] != ""].groupby(["part", "shown", "low", "high"], sort=False, dropna=False)
    rows = []
    for (part, shown, low, high), values in groups:
        rows.append([part, shown, _span(values["value"]), len(values), _allowed(low, high)])
    where = f"{record['device']}, torch {record['versions']['torch']}, commit {record['commit'][:7]}"
    spent = ", ".join(f"{name} {record['seconds'][name]:.0f} s" for name in frame["part"].unique())
    bounded = frame["met"].notna()
    met = int(frame.loc[bounded, "met"].astype(bool).sum())
    summary = f"{where}; {met} of {int(bounded.sum())} bounds met; {spent}."
    return summary + "\n\n" + markdown_table(["Part", "Quantity", "Value", "Rows", "Allowed"], rows)
