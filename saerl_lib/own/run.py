"""From a file of problems to a plan with its report: read, validate, represent, fit, filter, plan, write."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from saerl_lib.artifacts import write_json
from saerl_lib.config import content_hash, to_dict
from saerl_lib.data import rows
from saerl_lib.data.sample import SAMPLES, DataError, Dataset, write_samples
from saerl_lib.own.settings import NO_ENCODER, OwnConfig

if TYPE_CHECKING:
    from saerl_lib.own.represent import Representation

RECORD = "run.json"
"""Written last; a folder that holds it is a finished plan."""


@dataclass(frozen=True)
class Outcome:
    """What was written."""

    folder: Path
    read: int
    """Rows of the source."""
    planned: int
    """Rows in the plan."""
    left_out: dict[str, int]
    """status -> rows that are not in the plan; with `planned` they add up to `read`."""
    steps: int
    warnings: tuple[str, ...]
    """Titles of the report's warnings."""


def load_data(source: str, config: OwnConfig) -> Dataset:
    """The usable rows of a file or hub data set. Raises DataError as `data.rows.read` does."""
    return rows.read(
        rows.Source.parse(source, config.split), config.fields, allowed=config.allowed_labels, turned=config.turned,
        skip_bad_rows=config.skip_bad_rows, batch=config.prompts_per_step,
    )  # fmt: skip


def plan_own_data(
    source: str,
    out: Path,
    config: OwnConfig,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
    read: Callable[[Dataset], Representation] | None = None,
) -> Outcome:
    """Plan `source` into the new folder `out`; `say` is told each step, `read` gives features that exist already.

    `out` holds plan.parquet, samples.parquet (the usable rows, for `export` and `train`), scores.csv, clusters.csv,
    not_planned.csv, features.safetensors, report.html and run.json. It is written beside its place and renamed at the end:
    after an error there is no folder, and an earlier one is as it was.
    Raises DataError for bad data or an `out` that exists (unless `force`, which replaces an earlier plan), and what the
    model's loaders raise.
    """
    _require_place(out, force)
    data = load_data(source, config)
    say(f"{data.name}: {data.read} rows read, {len(data.samples)} usable")
    partial, above = out.with_name(f".{out.name}.partial"), _missing_parents(out)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        outcome = _compute(data, partial, out, config, say, read)
        _put(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in above:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                folder.rmdir()
        raise
    return outcome


def _missing_parents(out: Path) -> list[Path]:
    """Folders above `out` that do not exist yet, the innermost first."""
    return [folder for folder in out.parents if not folder.exists()]


def _require_place(out: Path, force: bool) -> None:
    if not out.name:
        raise DataError(f"--out {out}: name a folder that does not exist yet")
    above = next(folder for folder in (out, *out.parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise DataError(f"--out {out}: {above} is no folder that can be written; name another place")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise DataError(f"{out} exists; name another folder, or pass --force to replace an earlier plan")
    if not (out / RECORD).is_file():
        raise DataError(f"{out} holds no earlier plan ({RECORD} is missing) and is not replaced; name another folder")


def _put(partial: Path, out: Path) -> None:
    """Rename a finished folder into place; an earlier one goes last."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _compute(
    data: Dataset, folder: Path, out: Path, config: OwnConfig, say: Callable[[str], None],
    read: Callable[[Dataset], Representation] | None,
) -> Outcome:  # fmt: skip
    from saerl_lib.encode.features import save_features
    from saerl_lib.own import arrange, caveats, fit, report, sections, tables
    from saerl_lib.plan.batch_plan import plan_hash, write_plan

    found = read(data) if read else _represent(data, folder, config)
    say(f"features: {found.name}, {found.phi.shape[1]} columns")
    settings = fit.properties_of(len(data.samples), config)
    grouping = fit.group(found, settings, config.seed)
    difficulty = fit.fit_scores(found, grouping, data.labels, settings, config.seed)
    quality = fit.fit_quality(found, data.quality, settings, config.seed)
    say(f"{grouping.clusters.k} clusters; difficulty from {difficulty.n_labels if difficulty else 0} labels")
    arranged = arrange.arrange(data, found, grouping, difficulty, quality, config)
    listed = caveats.caveats(data, found, grouping, difficulty, quality, arranged, config)
    scores = tables.score_table(data, found, grouping, difficulty, quality, arranged)
    cards = tables.cluster_table(data, found, grouping, scores)
    rest = tables.not_planned_table(data, arranged)
    _require_nothing_lost(data, len(arranged.plan.ids), rest)
    save_features(found.table, folder / "features.safetensors")
    write_plan(arranged.plan, folder / "plan.parquet")
    write_samples(data.samples, folder / SAMPLES)
    for name, table in (("scores", scores), ("clusters", cards), ("not_planned", rest)):
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    counts = dict(sorted(Counter(rest["status"]).items()))
    outcome = Outcome(out, data.read, len(arranged.plan.ids), counts, arranged.plan.steps,
                      tuple(c.title for c in listed if c.kind == "warning"))  # fmt: skip
    page = sections.Page(data, found, grouping, difficulty, arranged, listed, scores, cards, rest)
    (folder / "report.html").write_text(report.html(page), encoding="utf-8")
    record = {**asdict(outcome), "folder": out.name, "source": data.name, "settings": to_dict(config),
              "settings_hash": content_hash(to_dict(config)), "plan_hash": plan_hash(arranged.plan),
              "caveats": [asdict(c) for c in listed]}  # fmt: skip
    write_json(folder / RECORD, json.loads(json.dumps(record)))
    return outcome


def _represent(data: Dataset, folder: Path, config: OwnConfig) -> Representation:
    if config.encoder == NO_ENCODER:
        from saerl_lib.own.represent import represent_text

        return represent_text(data.samples, config.seed)
    from saerl_lib.own.model import represent_model

    found = represent_model(data.samples, config, folder / "store")
    shutil.rmtree(folder / "store")
    return found


def _require_nothing_lost(data: Dataset, planned: int, rest: pd.DataFrame) -> None:
    if planned + len(rest) != data.read:
        raise RuntimeError(f"{data.read} rows were read, {planned} planned and {len(rest)} listed: a row was lost")
