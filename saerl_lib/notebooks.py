"""The notebooks in order, what each reads and must leave behind, and the main job: run them, skipping what is up to date.

A declared name carries its kind: `csv:NAME` is NAME.csv in `paths.figure_data_dir(profile)`, `figure:NAME` is NAME.png and
NAME.pdf in `paths.figures_dir(profile)`, `stage:NAME` is the folder NAME with its manifest in `paths.profile_dir(profile)`.

papermill executes a notebook in this interpreter's environment, from the project's root, into a copy. It is done when it ran to
its last cell and every declared output is there; tables and figures are removed before. Only then the copy is moved into place
and its record is written: `Parts`, what decides its outputs, and their hashes. The run stops at the first failure. `publish`
stores the outputs of a finished run in the notebooks themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
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

from saerl_lib import paths
from saerl_lib.artifacts import (
    MANIFEST,
    ToldError,
    code_hash,
    file_sha256,
    imported_names,
    is_complete,
    locked,
    read_json,
    write_atomic,
    write_json,
)
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
    "PYTHONWARNINGS": "ignore:IProgress not found,ignore::FutureWarning",
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
    tables_only: bool = False
    """Reads CSV files alone: the configuration does not matter to it."""
    of_world: frozenset[str] = frozenset()
    """Those outputs that only a profile with a world leaves."""

    @property
    def number(self) -> str:
        """Two digits, and a letter for an appendix."""
        return self.stem.partition("_")[0]


REGISTRY = """
00_data: world policy_rates*; world_gates* pass_rates*;
01_policy_and_sae 00: reader; sae_quality;
02_sae_representation 00: store features representation; representation; representation
03_data_properties 00 02: ladder_world; probe_ladder ladder_pairs replay real_overlap; probe_ladder_world* probe_ladder
    ladder_pairs replay
04_clusters_and_difficulty 00 02: difficulty; calibration cluster_topics cluster_summary cluster_agreement; calibration
04a_clusters_in_detail 00 02 04: audit; cluster_audit feature_groups top_latents real_counts real_clusters real_cluster_audit
    real_feature_groups real_top_latents; real_clusters
05_quality_filter 00 02 04: filter; filter real_filter real_separation; real_filter
05a_finding_errors 00 02 04: flaws*; filter_flaws* filter_selfreg* real_flaws real_selfreg; real_flaws
06_batch_plans 00 02 04 04a 05: plans; batch_composition inbatch_diversity; batch_composition
06a_gradients 00 02 04 05: gradients*; gradient_coherence* gradient_distance* mixing_theory*; gradient_coherence*
06b_sensitivity 00 02 04 05: plan_study; label_curve cluster_stability plan_sensitivity; plan_sensitivity
07_grpo_training 00 06: train; training_curves; training_curves
08_evaluation 00 01 02 03 04 05 06 07: evaluation; learning_curves paired_difference steps_to_target world_controls study_pilot
    study_runs study_summary study_comparisons study_targets study_provenance study_paper_tables study_mixing study_budget
    preparation_cost claims*; world_controls study_curves study_effects study_updates method*
09_figures 00 01 02 03 04 04a 05 05a 06 06a 06b 07 08:;;
10_your_own_data 00:; own_clusters;
"""
"""A line a notebook: its stem, numbers of the notebooks it reads: stages; tables; figures; `*` marks what only a world gives.
A letter marks an appendix of the notebook before it. Figures of tables that may have no rows are not declared."""


def _registry(text: str) -> tuple[Notebook, ...]:
    found = []
    for line in text.strip().replace("\n    ", " ").splitlines():
        (stem, *inputs), *declared = (part.split() for part in re.split("[:;]", line))
        kinds = zip(("stage", "csv", "figure"), declared, strict=True)
        marked = [f"{kind}:{name}" for kind, names in kinds for name in names]
        only = frozenset(name.rstrip("*") for name in marked if name.endswith("*"))
        found.append(Notebook(stem, tuple(name.rstrip("*") for name in marked), tuple(inputs), of_world=only))
    drawn = tuple(name for notebook in found for name in notebook.outputs if name.startswith("figure:"))
    redraw = {"outputs": drawn, "of_world": frozenset().union(*(n.of_world for n in found)), "tables_only": True}
    return tuple(replace(n, **redraw) if n.stem == "09_figures" else n for n in found)


NOTEBOOKS = _registry(REGISTRY)
"""All notebooks, in the order in which they run."""


def select(registry: tuple[Notebook, ...], start: str | None = None, only: str | None = None) -> tuple[Notebook, ...]:
    """The notebooks to run: all, those from number `start` on, or the single number `only`; one digit is enough.

    Raises UserError for a number that is not in the registry or when both are given.
    """
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
    kinds = ("csv:",) if notebook.tables_only else ("csv:", "stage:")
    return tuple(name for n in registry if n.number in notebook.inputs for name in n.outputs if name.startswith(kinds))


def notebook_hashes(path: Path) -> dict[str, str | None]:
    """Hash of a notebook's cells (kind, text and tags: stored outputs do not matter) and of the library code that they import.

    A file that cannot be read as cells of Python is hashed whole.
    """
    if not path.is_file():
        return {"source": None}
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        source = content_hash([[c["cell_type"], "".join(c["source"]), c["metadata"].get("tags", [])] for c in cells])
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        return {"source": source, "code": code_hash(*sorted(set().union(*map(imported_names, texts))))}
    except (ValueError, KeyError, SyntaxError):
        return {"source": file_sha256(path)}


Parts = dict[str, object]
"""What decides a notebook's outputs: source, code, packages, config, data (names and sizes of shared files), contents."""


def current_parts(notebook: Notebook, registry: tuple[Notebook, ...], profile: Profile, folder: Path) -> Parts:
    """What decides the outputs of a notebook of `folder`, as everything lies on the disk now."""
    parts: Parts = {**notebook_hashes(folder / f"{notebook.stem}.ipynb"), "packages": file_sha256(LOCK)[:16]}
    if not notebook.tables_only:
        shared = paths.shared_data_dir()
        files = sorted(p for p in shared.rglob("*") if p.is_file()) if shared else []
        data = content_hash([[str(path.relative_to(shared)), path.stat().st_size] for path in files])
        parts |= {"config": content_hash(to_dict(profile)), "data": data}
    return parts | {"contents": {name: output_hash(name, profile.name) for name in input_names(notebook, registry)}}


Record = dict[str, Any]
"""What the last successful run of a notebook left behind: parts, outputs (hash by declared output), elapsed_seconds."""


def read_record(notebook: Notebook, profile: str) -> Record | None:
    """The record of a notebook, or None when there is none that can be read."""
    return read_json(paths.profile_dir(profile) / "runs" / f"{notebook.stem}.json")


def write_record(notebook: Notebook, profile: str, parts: Parts, elapsed_seconds: float) -> None:
    """Write the record of a notebook whose outputs are there."""
    outputs = {name: output_hash(name, profile) for name in notebook.outputs}
    found = {"parts": parts, "outputs": outputs, "elapsed_seconds": round(elapsed_seconds, 2)}
    write_json(paths.profile_dir(profile) / "runs" / f"{notebook.stem}.json", found)


def reasons_to_run(
    notebook: Notebook, parts: Parts, record: Record | None, profile: str, unchecked: Collection[str] = ()
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
        write_atomic(folder / "probe", bytes(4096))
        (folder / "probe").unlink()


@contextlib.contextmanager
def alone(profile: str) -> Iterator[None]:
    """Hold the profile's folder for this run; the kernel lets go of it when the process ends, however it does.

    Raises UserError while another run works in it: two would remove each other's half-made stages.
    """
    folder = paths.profile_dir(profile)
    busy = UserError(f"another run works in {folder}; wait for it, or set SAERL_HOME to another folder")
    with locked(folder / "runs" / "lock", busy):
        yield


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


def failed_place(executed: Any) -> str:
    """The cell that failed, else the last that was started, with its first lines."""
    started = [found for found in code_cells(executed) if found[1].metadata.get("papermill", {}).get("start_time")]
    failed = [found for found in started if any(output.output_type == "error" for output in found[1].get("outputs", []))]
    for number, cell in failed[:1] or started[-1:]:
        return "\n".join([f"in cell {number}:", *(f"    {line}" for line in cell.source.splitlines()[:3])])
    return "before its first cell"


def ended_early(executed: Any) -> str | None:
    """The place after which code cells did not run (a `sys.exit` in a cell ends with exit code 0), or None."""
    last = 0
    for number, cell in code_cells(executed):
        if cell.execution_count is None:
            return f"after cell {last}"
        last = number
    return None


def execute(notebook: Notebook, options: RunOptions, folder: Path) -> None:
    """Execute one notebook of `folder`; what its cells print goes to this process's stdout and stderr.

    Raises UserError when the notebook is missing, does not know a parameter, fails, ends early or leaves a declared output out.
    """
    import nbformat
    import papermill
    from papermill.exceptions import PapermillException

    profile, stem, source = options.name, notebook.stem, folder / f"{notebook.stem}.ipynb"
    if not source.is_file():
        raise UserError(f"notebook {source} is missing; restore it or take it out of saerl_lib/notebooks.py")
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
            executed = papermill.execute_notebook(
                str(source), str(copy), parameters=options.parameters(), kernel_name="python3", progress_bar=False,
                cwd=str(paths.ROOT), stdout_file=sys.stdout, stderr_file=sys.stderr, start_timeout=180,
            )  # fmt: skip
        wrong = [f"it ended early, {place}"] if (place := ended_early(executed)) else []
        wrong += [f"declared output {name} is missing" for name in notebook.outputs if output_hash(name, profile) is None]
        if wrong:
            raise UserError(f"notebook {stem} failed: {'; '.join(wrong)}")
    except (UserError, PapermillException, RuntimeError, OSError) as error:
        message, kept = str(error), "no executed copy was written"
        if copy.is_file():
            place = failed_place(nbformat.read(copy, as_version=4))
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


def _run_one(notebook: Notebook, parts: Parts, options: RunOptions, folder: Path) -> None:
    profile = options.name
    stages = [output_files(name, profile)[0].parent for name in notebook.outputs if name.startswith("stage:")]
    for stage in stages if options.force else ():
        shutil.rmtree(stage, ignore_errors=True)
    started = time.monotonic()
    execute(notebook, options, folder)
    elapsed = time.monotonic() - started
    write_record(notebook, profile, parts, elapsed)
    places = dict.fromkeys(path.parent for name in notebook.outputs for path in output_files(name, profile))
    lines = [f"     {place}" for place in [*places, executed_dir(profile) / f"{notebook.stem}.ipynb"]]
    print("\n".join([f"     done in {_took(elapsed)}; outputs:", *lines]), flush=True)


def run(options: RunOptions, registry: tuple[Notebook, ...] = NOTEBOOKS, folder: Path = paths.NOTEBOOKS) -> int:
    """Run the notebooks of `registry` that `options` ask for; returns the number of those that were executed.

    Raises UserError or ValueError with a message for the caller; nothing after the first failure is run.
    """
    profile = get_profile(options.profile, seeds=options.seeds, seed=options.seed)
    left = frozenset() if profile.world else frozenset().union(*(notebook.of_world for notebook in registry))
    registry = tuple(replace(n, outputs=tuple(name for name in n.outputs if name not in left)) for n in registry)
    chosen = select(registry, options.start, options.only)
    prepare_folders(profile.name)
    started, executed = time.monotonic(), 0
    with alone(profile.name):
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
            _run_one(notebook, parts, options, folder)
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
