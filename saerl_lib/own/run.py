"""From a file of problems to a plan with its report: read, validate, represent, arrange, write."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saerl_lib.artifacts import write_json
from saerl_lib.config import content_hash, to_dict
from saerl_lib.data import rows
from saerl_lib.data.sample import SAMPLES, DataError, Dataset, write_samples
from saerl_lib.own.settings import NO_ENCODER, OwnConfig

if TYPE_CHECKING:
    from saerl_lib.own.arrange import Arranged
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
    from saerl_lib.own.arrange import arrange  # scikit-learn loads after the rows were judged

    with _new_folder(out) as folder:
        found = read(data) if read else _represent(data, folder, config)
        say(f"features: {found.name}, {found.phi.shape[1]} columns")
        arranged = arrange(data, found, config)
        labels = arranged.difficulty.n_labels if arranged.difficulty else 0
        say(f"{arranged.grouping.clusters.k} clusters; difficulty from {labels} labels")
        return _write(arranged, folder, out)


def _represent(data: Dataset, folder: Path, config: OwnConfig) -> Representation:
    from saerl_lib.own.represent import represent_model, represent_text

    if config.encoder == NO_ENCODER:
        return represent_text(data.samples, config.seed)
    found = represent_model(data.samples, config, folder / "store")
    shutil.rmtree(folder / "store")
    return found


def _write(arranged: Arranged, folder: Path, out: Path) -> Outcome:
    """Write features, plan, tables, report and record of `out` into `folder`. Raises RuntimeError when a row was lost."""
    from saerl_lib.encode.features import save_features
    from saerl_lib.own.caveats import caveats
    from saerl_lib.own.tables import cluster_table, not_planned_table, score_table
    from saerl_lib.plan.batch_plan import plan_hash, write_plan
    from saerl_lib.report.page import page

    data, plan, config = arranged.data, arranged.plan, to_dict(arranged.config)
    scores, rest, listed = score_table(arranged), not_planned_table(arranged), caveats(arranged)
    cards = cluster_table(arranged, scores)
    if len(plan.ids) + len(rest) != data.read:
        raise RuntimeError(f"{data.read} rows were read, {len(plan.ids)} planned and {len(rest)} listed: a row was lost")
    save_features(arranged.found.table, folder / "features.safetensors")
    write_plan(plan, folder / "plan.parquet")
    write_samples(data.samples, folder / SAMPLES)
    for name, table in (("scores", scores), ("clusters", cards), ("not_planned", rest)):
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    (folder / "report.html").write_text(page(arranged, listed, scores, cards, rest), encoding="utf-8")
    outcome = Outcome(out, data.read, len(plan.ids), dict(sorted(Counter(rest["status"]).items())), plan.steps,
                      tuple(c.title for c in listed if c.kind == "warning"))  # fmt: skip
    record = {**asdict(outcome), "folder": out.name, "source": data.name, "settings": config,
              "settings_hash": content_hash(config), "plan_hash": plan_hash(plan),
              "caveats": [asdict(c) for c in listed]}  # fmt: skip
    write_json(folder / RECORD, json.loads(json.dumps(record)))
    return outcome


def _require_place(out: Path, force: bool) -> None:
    """Raises DataError when `out` cannot become a new plan, before anything is read."""
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


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well, an earlier `out` going last; else no trace stays."""
    partial, old = (out.with_name(f".{out.name}.{state}") for state in ("partial", "old"))
    missing = [folder for folder in out.parents if not folder.exists()]
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        try:
            partial.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in missing:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                folder.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)
