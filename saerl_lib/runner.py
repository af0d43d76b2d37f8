"""The main job: every notebook in order, skipping what is up to date, stopping at the first failure.

A notebook counts as done when it ran to its last cell and each declared output was written by this run and is not empty;
only then its record is written, last and atomically. The record holds the notebook's fingerprint (source, profile, code,
locked packages, shared data, fingerprints and contents of what it reads) and the hash of every declared output.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saerl_lib import paths
from saerl_lib.artifacts import file_sha256, write_json
from saerl_lib.config import Profile, content_hash, get_profile, to_dict
from saerl_lib.envcheck import LOCK
from saerl_lib.notebooks import (
    NOTEBOOKS,
    Notebook,
    UserError,
    data_digest,
    executed_dir,
    input_names,
    notebook_code,
    output_files,
    output_hash,
    select,
    source_hash,
    stage_folders,
    stage_is_whole,
)

Parts = dict[str, Any]
"""What decides a notebook's outputs, by kind: source, config, code, packages, data, inputs, contents."""


@dataclass(frozen=True)
class Record:
    """What the last successful run of a notebook left behind."""

    parts: Parts
    outputs: dict[str, str]
    """Hash of the files by declared output."""
    elapsed_seconds: float


def record_path(notebook: Notebook, profile: str) -> Path:
    """Where the record of a notebook lies."""
    return paths.profile_dir(profile) / "runs" / f"{notebook.stem}.json"


def read_record(notebook: Notebook, profile: str) -> Record | None:
    """The record of the last successful run, or None when there is none that can be read."""
    try:
        value = json.loads(record_path(notebook, profile).read_text(encoding="utf-8"))
        return Record(dict(value["parts"]), dict(value["outputs"]), float(value["elapsed_seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(notebook: Notebook, profile: str, record: Record) -> None:
    """Write the record atomically. Raises ArtifactError when the folder cannot be written."""
    value = {
        "notebook": notebook.stem,
        "fingerprint": content_hash(record.parts),
        "parts": record.parts,
        "outputs": record.outputs,
        "elapsed_seconds": round(record.elapsed_seconds, 2),
    }
    write_json(record_path(notebook, profile), value)


def definitions(registry: tuple[Notebook, ...], profile: Profile, folder: Path) -> dict[str, Parts]:
    """What is known before anything runs, by notebook number; `folder` holds the notebooks.

    The fingerprint of every notebook named in `inputs` is part of it, so a change travels to all that build on it.
    """
    packages, data = file_sha256(LOCK)[:16], data_digest()
    known: dict[str, Parts] = {}
    for notebook in registry:
        path = folder / f"{notebook.stem}.ipynb"
        parts: Parts = {"source": source_hash(path), "packages": packages, "code": notebook_code(path)}
        if not notebook.tables_only:
            read = [name.removeprefix("notebook:") for name in notebook.inputs if name.startswith("notebook:")]
            parts |= {"config": content_hash(to_dict(profile)), "data": data}
            parts["inputs"] = {number: content_hash(known[number]) for number in read}
        known[notebook.number] = parts
    return known


def current_parts(notebook: Notebook, known: dict[str, Parts], registry: tuple[Notebook, ...], profile: str) -> Parts:
    """The definition of a notebook together with the contents of its inputs as they lie on the disk now."""
    contents = {name: output_hash(name, profile) for name in input_names(notebook, registry)}
    return known[notebook.number] | {"contents": contents}


def reasons_to_run(notebook: Notebook, parts: Parts, record: Record | None, profile: str) -> list[str]:
    """Why the notebook has to run, in a few words each; empty when it is up to date."""
    if record is None:
        return ["it has not finished before"]
    names = {**parts, **record.parts}
    changed = [f"{name} changed" for name in sorted(names) if parts.get(name) != record.parts.get(name)]
    for name in notebook.outputs:
        now = output_hash(name, profile)
        if now is None:
            changed.append(f"{name} is missing")
        elif now != record.outputs.get(name) or (name.startswith("stage:") and not stage_is_whole(name, profile)):
            changed.append(f"{name} was altered")
    return changed


@dataclass(frozen=True)
class RunOptions:
    """What the command line asks for."""

    profile: str = "laptop"
    seed: int = 0
    """Base seed of fits, plans and training."""
    seeds: int | None = None
    """Number of matched seeds; None keeps the profile's own."""
    start: str | None = None
    """First notebook to run (`--from`)."""
    only: str | None = None
    """The one notebook to run (`--only`)."""
    force: bool = False
    """Run even what is up to date, and compute its stages anew."""
    strict: bool = False
    """Fail when a number of the run is outside what is published."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"--seed {self.seed} must be 0 or more")
        if self.seeds is not None and self.seeds < 1:
            raise UserError(f"--seeds {self.seeds} must be at least 1")

    def parameters(self) -> dict[str, str | int]:
        """The values of every notebook's `parameters` cell."""
        return {"profile": self.profile, "seed": self.seed, "seeds": self.seeds or 0}


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(4.26), duration(1390), duration(3725)
    ('4.3 s', '23 min 10 s', '1 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def prepare_folders(profile: str) -> None:
    """Create the output folders. Raises UserError naming the folder that cannot be written."""
    for folder in (executed_dir(profile), paths.profile_dir(profile) / "runs", paths.figure_data_dir(profile)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(4096))
        except OSError as error:
            raise UserError(
                f"cannot write into {folder}: {error.strerror}; free space, mend its permissions, "
                "or set SAERL_HOME to a writable folder for the large outputs"
            ) from error


@contextlib.contextmanager
def alone(profile: str) -> Iterator[None]:
    """Hold the profile's folder for this run; the kernel lets go of it when the process ends, however it does.

    Raises UserError while another run works in it: two would remove each other's half-made stages.
    """
    folder = paths.profile_dir(profile)
    with (folder / "runs" / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another run works in {folder}; wait for it, or set SAERL_HOME to another folder") from error
        yield


def _check_tables(notebook: Notebook, profile: str) -> None:
    """Tables that a notebook draws from; in a folder without any, `laptop` takes the published ones."""
    tables = [name for name in notebook.inputs if name.startswith("csv:")]
    missing = [name for name in tables if output_hash(name, profile) is None]
    if missing == tables and tables and profile == "laptop":
        for name in missing:
            path = output_files(name, profile)[0]
            shutil.copyfile(paths.PUBLISHED / path.name, path)
        print(f"     no run yet: notebook {notebook.stem} draws the {len(missing)} published tables", flush=True)
    elif missing:
        path = output_files(missing[0], profile)[0]
        raise UserError(f"notebook {notebook.stem} needs {path}, which is missing; run the notebook that writes it (--from 00)")


def _where(notebook: Notebook, profile: str) -> str:
    folders = {path.parent: None for name in notebook.outputs for path in output_files(name, profile)}
    return "\n".join(f"     {folder}" for folder in [*folders, executed_dir(profile) / f"{notebook.stem}.html"])


def _run_one(notebook: Notebook, parts: Parts, options: RunOptions, folder: Path) -> None:
    if options.force:
        for stage in stage_folders(notebook, options.profile):
            shutil.rmtree(stage, ignore_errors=True)
            shutil.rmtree(stage.with_name(f".{stage.name}.partial"), ignore_errors=True)
    from saerl_lib.execution import run_notebook

    started = time.monotonic()
    run_notebook(notebook, options.profile, options.parameters(), folder)
    elapsed = time.monotonic() - started
    outputs = {name: output_hash(name, options.profile) or "" for name in notebook.outputs}
    write_record(notebook, options.profile, Record(parts, outputs, elapsed))
    print(f"     done in {duration(elapsed)}; outputs:\n{_where(notebook, options.profile)}", flush=True)


def run(options: RunOptions, registry: tuple[Notebook, ...] = NOTEBOOKS, folder: Path = paths.NOTEBOOKS) -> int:
    """Run the notebooks of `registry` that `options` ask for; returns the number of those that were executed.

    Raises UserError or ValueError with a message for the caller; nothing after the first failure is run.
    """
    profile: Profile = get_profile(options.profile, seeds=options.seeds, seed=options.seed)
    chosen = tuple(n for n in select(registry, options.start, options.only) if profile.trains or not n.trains)
    if not chosen:
        raise UserError(f"notebook {options.only} trains, profile {profile.name} does not; use --profile laptop")
    prepare_folders(profile.name)
    with alone(profile.name):
        executed = _run_chosen(options, profile, registry, chosen, folder)
        if options.only is None:
            _reproduction(options)
    return executed


def _reproduction(options: RunOptions) -> None:
    """Say how the run compares with what is published. Raises UserError under `--strict` when a number is outside."""
    from saerl_lib.report.reproduction import published_tables, report

    if not published_tables(options.profile):
        print(f"Nothing is published of profile {options.profile}: no comparison.", flush=True)
        return
    text, outside = report(options.profile)
    print(f"\n{text}", flush=True)
    if outside and options.strict:
        raise UserError(f"{outside} numbers are outside what is published (--strict)")


def _run_chosen(
    options: RunOptions, profile: Profile, registry: tuple[Notebook, ...], chosen: tuple[Notebook, ...], folder: Path
) -> int:
    known = definitions(registry, profile, folder)
    started, executed = time.monotonic(), 0
    for notebook in chosen:
        _check_tables(notebook, profile.name)
        record = read_record(notebook, profile.name)
        parts = current_parts(notebook, known, registry, profile.name)
        reasons = reasons_to_run(notebook, parts, record, profile.name)
        if not reasons and not (executed_dir(profile.name) / f"{notebook.stem}.html").is_file():
            reasons = ["its HTML version is missing"]
        label = f"[{registry.index(notebook) + 1:02d}/{len(registry):02d}] {notebook.stem}"
        if not reasons and not options.force:
            print(f"{label} is up to date", flush=True)
            continue
        last = f"last time {duration(record.elapsed_seconds)}" if record else "first time"
        print(f"{label} ({last}; runs because {', '.join(reasons[:3]) or 'of --force'}) ...", flush=True)
        _run_one(notebook, parts, options, folder)
        executed += 1
    total = duration(time.monotonic() - started)
    print(f"All done in {total}: {executed} run, {len(chosen) - executed} up to date.")
    print(f"Figures: {paths.figures_dir(profile.name)}\nExecuted notebooks and HTML: {executed_dir(profile.name)}", flush=True)
    return executed
