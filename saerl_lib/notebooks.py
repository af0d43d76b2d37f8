"""The notebooks in order, what each reads and must leave behind, and the main job: run them, skipping what is up to date.

A declared name carries its kind: `csv:NAME` is a table, `figure:NAME` a PNG and a PDF, `stage:NAME` a folder with its manifest.

papermill executes a notebook in this interpreter's environment, from the project's root, into a copy. It is done when no cell
failed and every declared output is there; tables and figures are removed before. Only then the copy is moved into place and its
record is written: what decides its outputs, and their hashes. The run stops at the first failure.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

from saerl_lib import artifacts, paths
from saerl_lib.artifacts import MANIFEST, ToldError, code_hash, file_sha256, imported_names, is_complete, locked
from saerl_lib.config import Profile, content_hash, get_profile, to_dict
from saerl_lib.needs import LOCK
from saerl_lib.settings import Options

PARAMETERS = ("profile", "seed", "seeds")
"""Names that every notebook's `parameters` cell defines; `seeds = 0` means the profile's own number."""
ADDED_TAGS = {"injected-parameters", "papermill-error-cell-tag"}
"""Tags of cells that papermill adds; cells are counted without them."""
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "SOURCE_DATE_EPOCH": "1779753600",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""What every notebook runs under; `run_all.sh` exports the same values."""


class UserError(ToldError, RuntimeError):
    """Something the caller can mend: its message is printed without a traceback and the exit code is 1."""


@dataclass(frozen=True)
class Notebook:
    """One numbered notebook."""

    stem: str
    """File name without `.ipynb`; what stands before the first `_` is what `--only` and `--from` take."""
    outputs: tuple[str, ...] = ()
    """Declared outputs: the run fails when one is missing afterwards."""
    inputs: tuple[str, ...] = ()
    """Numbers of the notebooks whose tables and stages it reads: when those change, it is no longer up to date."""
    of_world: frozenset[str] = frozenset()
    """Outputs, of any notebook, that only a profile with a world leaves."""

    @property
    def number(self) -> str:
        """Two digits, and a letter for an appendix."""
        return self.stem.partition("_")[0]


def _registry() -> tuple[Notebook, ...]:
    """One row of report/notebooks.csv a notebook: its stem, numbers of the notebooks that it reads, and what it leaves; `*` marks
    what only a world gives. A letter marks an appendix. Figures of tables that may have no rows are not declared."""
    text = (paths.ROOT / "saerl_lib" / "report" / "notebooks.csv").read_text(encoding="utf-8")
    found, of_world = [], frozenset[str]()
    for row in csv.DictReader(text.splitlines()):
        marked = [f"{kind}:{name}" for kind in ("stage", "csv", "figure") for name in row[kind].split()]
        of_world |= {name.rstrip("*") for name in marked if name.endswith("*")}
        found.append(Notebook(row["notebook"], tuple(name.rstrip("*") for name in marked), tuple(row["reads"].split())))
    drawn = tuple(name for notebook in found for name in notebook.outputs if name.startswith("figure:"))
    return tuple(replace(n, outputs=drawn if n.number == "09" else n.outputs, of_world=of_world) for n in found)


NOTEBOOKS = _registry()
"""All notebooks, in the order in which they run."""


def select(registry: tuple[Notebook, ...], start: str | None = None, only: str | None = None) -> tuple[Notebook, ...]:
    """The notebooks to run: all, those from number `start` on, or the single number `only`; one digit is enough. Raises UserError
    for an unknown number or when both are given."""
    if start is not None and only is not None:
        raise UserError("--from and --only exclude each other; give one of them")
    asked, numbers = only or start or registry[0].number, [notebook.number for notebook in registry]
    if asked.zfill(2) not in numbers:
        raise UserError(f"notebook {asked!r} does not exist; choose one of {', '.join(numbers)}")
    place = numbers.index(asked.zfill(2))
    return registry[place : place + 1] if only is not None else registry[place:]


def executed_dir(profile: str) -> Path:
    """Executed copies of the notebooks."""
    return paths.profile_dir(profile) / "notebooks"


def output_files(name: str, profile: str) -> tuple[Path, ...]:
    """Files that stand for one declared name of `profile`: a stage is its manifest, a figure its PNG and its PDF."""
    kind, _, stem = name.partition(":")
    if kind == "figure":
        return tuple(paths.figures_dir(profile) / f"{stem}.{ending}" for ending in ("png", "pdf"))
    return ({"csv": paths.figure_data_dir(profile) / f"{stem}.csv", "stage": paths.profile_dir(profile) / stem / MANIFEST}[kind],)


def output_hash(name: str, profile: str) -> str | None:
    """Hash of one declared output (a stage: its manifest), or None when it is missing or empty."""
    files = output_files(name, profile)
    if not all(path.is_file() and path.stat().st_size for path in files):
        return None
    return content_hash([file_sha256(path) for path in files])


def input_names(notebook: Notebook, registry: tuple[Notebook, ...]) -> tuple[str, ...]:
    """Tables and stages that the notebook reads; figures are results and nobody's input."""
    outputs = [name for other in registry if other.number in notebook.inputs for name in other.outputs]
    return tuple(name for name in outputs if not name.startswith("figure:"))


def current_parts(notebook: Notebook, registry: tuple[Notebook, ...], profile: Profile, folder: Path) -> dict[str, object]:
    """What decides the outputs of a notebook of `folder` now: its cells (kind, text, tags: stored outputs do not matter), the
    library code that they import and all else; of shared files names and sizes. Raises UserError when it is missing."""
    shared = paths.shared_data_dir()
    files = sorted(p for p in shared.rglob("*") if p.is_file()) if shared else []
    path = folder / f"{notebook.stem}.ipynb"
    if not path.is_file():
        raise UserError(f"notebook {path} is missing; restore it or take it out of report/notebooks.csv")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return {
        "source": content_hash([[c["cell_type"], "".join(c["source"]), c["metadata"].get("tags", [])] for c in cells]),
        "code": code_hash(*sorted(set().union(*map(imported_names, texts)))),
        "packages": file_sha256(LOCK)[:16], "config": content_hash(to_dict(profile)),
        "data": content_hash([[str(path.relative_to(shared)), path.stat().st_size] for path in files]),
        "contents": {name: output_hash(name, profile.name) for name in input_names(notebook, registry)},
    }  # fmt: skip


def read_record(notebook: Notebook, profile: str) -> dict[str, Any] | None:
    """The record of a notebook, or None when there is none that can be read."""
    return artifacts.read_json(paths.profile_dir(profile) / "runs" / f"{notebook.stem}.json")


def write_record(notebook: Notebook, profile: str, parts: dict[str, object], elapsed_seconds: float) -> None:
    """Write the record of a notebook whose outputs are there: parts, outputs (hash by declared output), elapsed_seconds."""
    outputs = {name: output_hash(name, profile) for name in notebook.outputs}
    found = {"parts": parts, "outputs": outputs, "elapsed_seconds": round(elapsed_seconds, 2)}
    artifacts.write_json(paths.profile_dir(profile) / "runs" / f"{notebook.stem}.json", found)


def reasons_to_run(
    notebook: Notebook, parts: dict[str, object], record: dict[str, Any] | None, profile: str, unchecked: Collection[str] = ()
) -> list[str]:
    """Why the notebook has to run, in a few words each; outputs in `unchecked`, which a later one writes again, do not count."""
    if record is None:
        return ["it has not finished before"]
    before = record["parts"]
    changed = [f"{name} changed" for name in sorted({**parts, **before}) if parts.get(name) != before.get(name)]
    for name in (name for name in notebook.outputs if name not in unchecked):
        now = output_hash(name, profile)
        damaged = name.startswith("stage:") and not is_complete(output_files(name, profile)[0].parent)
        if now != record["outputs"].get(name) or damaged:
            changed.append(f"{name} is missing" if now is None else f"{name} was altered")
    if not (executed_dir(profile) / f"{notebook.stem}.ipynb").is_file():
        changed.append("its executed copy is missing")
    return changed


@dataclass(frozen=True)
class RunOptions:
    """What the command line asks for."""

    profile: str = "laptop"
    """smoke, laptop, study or paper; options of paper may follow it as JSON."""
    seed: int = 0
    """Base seed of fits, plans and training."""
    seeds: int | None = None
    """Number of matched training seeds; None: the profile's own."""
    start: str | None = None
    """First notebook to run, such as 07; None: the first of all."""
    only: str | None = None
    """The one notebook to run, such as 09; None: all."""
    force: bool = False
    """Run even what is up to date, and compute its stages anew."""
    strict: bool = False
    """Fail when a number of the run is outside what is published."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"--seed {self.seed} must be 0 or more")
        if self.seeds is not None and self.seeds < 1:
            raise UserError(f"--seeds {self.seeds} must be at least 1")

    @property
    def name(self) -> str:
        """The profile without options."""
        return self.profile.partition(" ")[0]

    def parameters(self) -> dict[str, str | int]:
        """The values of every notebook's `parameters` cell."""
        return {"profile": self.profile, "seed": self.seed, "seeds": self.seeds or 0}


def prepare_folders(profile: str) -> None:
    """Create the output folders. Raises ArtifactError naming the one that cannot be written."""
    for folder in (executed_dir(profile), paths.profile_dir(profile) / "runs", paths.figure_data_dir(profile)):
        artifacts.write_atomic(folder / "probe", bytes(4096))
        (folder / "probe").unlink(missing_ok=True)  # by another command, which is told next


# One notebook.


@contextlib.contextmanager
def kernel_environment() -> Iterator[None]:
    """Environment in which the kernel `python3` is this very interpreter, whatever kernels the user has installed.

    A kernelspec in a temporary folder at the head of `JUPYTER_PATH` wins over every other; the IPython folder is
    temporary too, so that no startup file of the user takes part.
    """
    from ipykernel.kernelspec import write_kernel_spec

    with tempfile.TemporaryDirectory(prefix="saerl-kernel-", ignore_cleanup_errors=True) as folder:
        write_kernel_spec(os.path.join(folder, "kernels", "python3"), extra_arguments=["--log-level=CRITICAL"])
        values = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
        values |= {"IPYTHONDIR": os.path.join(folder, "ipython"), "SAERL_HOME": str(paths.artifacts_root())}
        for name, first in (("JUPYTER_PATH", folder), ("PYTHONPATH", str(paths.ROOT))):
            values[name] = os.pathsep.join([first, *filter(None, [os.environ.get(name)])])
        with patch.dict(os.environ, values):
            yield


def code_cells(executed: Any) -> list[tuple[int, Any]]:
    """The code cells and their numbers, counted from 1 as stored: without the cells that papermill added."""
    own = [cell for cell in executed.cells if not ADDED_TAGS & set(cell.metadata.get("tags", []))]
    return [(number, cell) for number, cell in enumerate(own, start=1) if cell.cell_type == "code" and cell.source.strip()]


def execute(notebook: Notebook, options: RunOptions, folder: Path) -> None:
    """Execute one notebook of `folder`; what its cells print goes to this process's stdout and stderr.

    Raises UserError when the notebook does not know a parameter, fails, or leaves a declared output out, as after a `sys.exit`.
    """
    import nbformat
    import papermill
    from papermill.exceptions import PapermillException

    profile, stem, source = options.name, notebook.stem, folder / f"{notebook.stem}.ipynb"
    known = papermill.inspect_notebook(str(source))  # papermill itself would only warn
    if unknown := [name for name in PARAMETERS if name not in known]:
        cell = f"its cell tagged 'parameters' defines {', '.join(known) or 'nothing'}"
        raise UserError(f"notebook {stem} does not know the parameter {', '.join(unknown)}; {cell}")
    for path in (path for name in notebook.outputs if not name.startswith("stage:") for path in output_files(name, profile)):
        path.unlink(missing_ok=True)
    copy = executed_dir(profile) / f".{stem}.partial.ipynb"
    copy.unlink(missing_ok=True)
    try:
        with kernel_environment():
            papermill.execute_notebook(
                str(source), str(copy), parameters=options.parameters(), kernel_name="python3", progress_bar=False,
                cwd=str(paths.ROOT), stdout_file=sys.stdout, stderr_file=sys.stderr, start_timeout=180,
            )  # fmt: skip
        if absent := [name for name in notebook.outputs if output_hash(name, profile) is None]:
            raise UserError(f"notebook {stem} failed: declared outputs {', '.join(absent)} are missing")
    except (UserError, PapermillException, RuntimeError, OSError) as error:
        message, place, kept = str(error), "before its first cell", "no executed copy was written"
        if copy.is_file():
            for number, cell in code_cells(nbformat.read(copy, as_version=4)):
                if cell.metadata.get("papermill", {}).get("start_time"):  # the last of these failed
                    place = "\n".join([f"in cell {number}:", *(f"    {line}" for line in cell.source.splitlines()[:3])])
            kept = f"the executed copy with the full traceback: {copy.replace(copy.with_name(f'{stem}.failed.ipynb'))}"
        if not isinstance(error, UserError):
            name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
            message = f"notebook {stem} failed {place}\n{name}: {str(value).strip()}"
        raise UserError(f"{message}\n{kept}") from error
    copy.replace(copy.with_name(f"{stem}.ipynb"))
    copy.with_name(f"{stem}.failed.ipynb").unlink(missing_ok=True)


# All of them.


def _took(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def run(options: RunOptions, registry: tuple[Notebook, ...] = NOTEBOOKS, folder: Path = paths.NOTEBOOKS) -> int:
    """Run the notebooks of `registry` that `options` ask for, up to the first failure; returns the number of those that were
    executed. Raises UserError for what failed, and while another run works in the profile's folder; ValueError for a profile."""
    profile = get_profile(options.profile, seeds=options.seeds, seed=options.seed)
    registry = tuple(replace(n, outputs=tuple(o for o in n.outputs if profile.world or o not in n.of_world)) for n in registry)
    chosen = select(registry, options.start, options.only)
    prepare_folders(profile.name)
    started, executed, home = time.monotonic(), 0, paths.profile_dir(profile.name)
    busy = UserError(f"another run works in {home}; wait for it, or set SAERL_HOME to another folder")
    with locked(home / "runs" / "lock", busy):  # two would remove each other's half-made stages
        for position, notebook in enumerate(chosen):
            record, parts = read_record(notebook, profile.name), current_parts(notebook, registry, profile, folder)
            later = {name for n in chosen[position + 1 :] for name in n.outputs}
            reasons = reasons_to_run(notebook, parts, record, profile.name, later)
            label = f"[{registry.index(notebook) + 1:02d}/{len(registry):02d}] {notebook.stem}"
            if not reasons and not options.force:
                print(f"{label} is up to date", flush=True)
                continue
            last = f"last time {_took(record['elapsed_seconds'])}" if record else "first time"
            print(f"{label} ({last}; runs because {', '.join(reasons[:3]) or 'of --force'}) ...", flush=True)
            for name in (name for name in notebook.outputs if options.force and name.startswith("stage:")):
                shutil.rmtree(output_files(name, profile.name)[0].parent, ignore_errors=True)
            begun = time.monotonic()
            execute(notebook, options, folder)
            write_record(notebook, profile.name, parts, time.monotonic() - begun)
            print(f"     done in {_took(time.monotonic() - begun)}", flush=True)
            executed += 1
        print(f"All done in {_took(time.monotonic() - started)}: {executed} run, {len(chosen) - executed} up to date.")
        print(f"Figures: {paths.figures_dir(profile.name)}\nExecuted notebooks: {executed_dir(profile.name)}")
        if options.only is None:
            _compare(options)
    return executed


def from_here(options: Options) -> Options:
    """Folders by their path from the root: run_all.sh changes the folder and passes on where it was called. Other names stay."""
    here, changed = Path(os.environ.get("SAERL_CALLED_FROM") or ".").absolute(), {}
    for name in ("data", "reader", "sae", "policy"):
        value = getattr(options, name) or ""
        head = "opensae:" if value.startswith("opensae:") else ""
        path = here / Path(value.removeprefix(head)).expanduser()
        if value and path.is_dir():
            changed[name] = head + str(path)
    return replace(options, **changed)


def run_notebooks(notebooks: RunOptions, options: Options, plan_only: bool) -> int:
    """`run`; with `plan_only` the plan of profile paper instead."""
    from saerl_lib.needs import require_machine, run_plan

    if plan_only:
        given = {f.name for f in fields(RunOptions) if getattr(notebooks, f.name) != f.default} - {"profile"} | set(options.given)
        return run_plan(notebooks.profile, [f"--{'from' if name == 'start' else name}" for name in sorted(given)])
    told = replace(notebooks, profile=from_here(options).text(notebooks.profile))
    require_machine(get_profile(told.profile, told.seeds, told.seed))
    run(told)
    return 0


def _compare(options: RunOptions) -> None:
    """Say how the run compares with what is published. Raises UserError under `--strict` when a number is outside."""
    from saerl_lib.report.reproduction import published_tables, report

    if not published_tables(options.name, paths.PUBLISHED):
        print(f"Nothing is published of profile {options.name}: no comparison.", flush=True)
        return
    text, outside = report(options.name)
    print(f"\n{text}", flush=True)
    if outside and options.strict:
        raise UserError(f"{outside} numbers are outside what is published (--strict)")
