"""The notebooks in order, with what each reads and must leave behind. Edit the table when a notebook changes.

A name carries its kind: `csv:NAME` is NAME.csv in `paths.figure_data_dir(profile)`, `figure:NAME` is NAME.png and NAME.pdf
in `paths.figures_dir(profile)`, `stage:NAME` is the folder NAME with its manifest in `paths.profile_dir(profile)`, and
`notebook:NN` (inputs alone) is all that notebook NN leaves.

The main job: every notebook in order, skipping what is up to date, stopping at the first failure.

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
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from saerl_lib import paths
from saerl_lib.artifacts import MANIFEST, code_hash, file_sha256, imported_names, read_manifest, write_json
from saerl_lib.config import Profile, content_hash, get_profile, to_dict
from saerl_lib.envcheck import LOCK

PARAMETERS = ("profile", "seed", "seeds")
"""Every notebook's `parameters` cell; `seeds = 0` means the profile's own number."""


class UserError(RuntimeError):
    """Something the caller can mend: its message is printed without a traceback and the exit code is 1."""


@dataclass(frozen=True)
class Notebook:
    """One numbered notebook."""

    number: str
    """Two digits, as typed after `--only` and `--from`."""
    stem: str
    """File name without `.ipynb`."""
    title: str
    """What it shows, in a few words."""
    outputs: tuple[str, ...]
    """Declared outputs: the run fails when one is missing afterwards."""
    inputs: tuple[str, ...] = ()
    """What it reads: when that changes, the notebook is no longer up to date."""
    parameters: tuple[str, ...] = PARAMETERS
    """Names that its `parameters` cell must define."""
    trains: bool = False
    """Left out by a profile that does not train."""
    tables_only: bool = False
    """Reads CSV files alone: the configuration does not matter to it."""


def _notebook(stem: str, title: str, inputs: str, outputs: str, figures: str) -> Notebook:
    declared = (*outputs.split(), *(f"figure:{name}" for name in figures.split()))
    reads = tuple(f"notebook:{number}" for number in inputs.split())
    return Notebook(stem[:2], stem, title, declared, reads, trains=stem[:2] in ("07", "08"))


def _redraw(stem: str, title: str, written: tuple[Notebook, ...]) -> Notebook:
    names = [name for notebook in written for name in notebook.outputs]
    figures = tuple(name for name in names if name.startswith("figure:"))
    tables = tuple(name for name in names if name.startswith("csv:"))
    return Notebook(stem[:2], stem, title, figures, tables, tables_only=True)


# Arguments: stem, title, numbers of the notebooks it reads, stages and tables, figures.
_COMPUTED = (
    _notebook(
        "00_data", "The data and its gates", "",
        "stage:world stage:policy_rates csv:world_gates csv:pass_rates csv:difficulty_vs_pass_rate",
        "world_gates pass_rates difficulty_vs_pass_rate",
    ),
    _notebook(
        "01_policy_and_sae", "The encoder and its SAE", "",
        "stage:sae stage:sae_all_families csv:sae_quality",
        "sae_quality",
    ),
    _notebook(
        "02_sae_representation", "Samples in SAE space", "00 01",
        "stage:store stage:features stage:representation csv:sae_map csv:representation",
        "sae_map representation",
    ),
    _notebook(
        "03_data_properties", "What the features know", "00 01 02",
        "stage:store_all_families stage:features_all_families stage:ladder_world csv:world_probes csv:probe_ladder "
        "csv:ladder_saes csv:real_overlap",
        "world_probes probe_ladder_world probe_ladder",
    ),
    _notebook(
        "04_clusters_and_difficulty", "Clusters and calibrated difficulty", "00 01 02",
        "stage:difficulty stage:features_of_seeds stage:plan_study stage:audit csv:calibration csv:cluster_topics "
        "csv:cluster_summary csv:cluster_agreement csv:cluster_stability csv:label_curve csv:cluster_audit csv:feature_groups "
        "csv:top_latents csv:real_counts csv:real_clusters csv:real_cluster_audit csv:real_feature_groups csv:real_top_latents",
        "calibration cluster_topics label_curve cluster_audit feature_groups real_clusters real_cluster_audit "
        "real_feature_groups",
    ),
    _notebook(
        "05_quality_filter", "The quality filter", "00 02",
        "stage:filter stage:flaws csv:filter csv:filter_scores csv:filter_flaws csv:filter_selfreg csv:real_filter "
        "csv:real_separation csv:real_flaws csv:real_selfreg",
        "filter filter_flaws filter_selfreg real_filter real_flaws real_selfreg",
    ),
    _notebook(
        "06_batch_plans", "The batch plans", "00 01 02 04 05",
        "stage:plans stage:gradients csv:batch_composition csv:inbatch_diversity csv:plan_sensitivity csv:sample_audit "
        "csv:gradient_coherence csv:gradient_distance csv:mixing_theory csv:mixing_curve",
        "batch_composition inbatch_diversity plan_sensitivity sample_audit gradient_coherence mixing_theory",
    ),
    _notebook("07_grpo_training", "GRPO training", "00 06", "stage:train csv:training_curves", "training_curves"),
    _notebook(
        "08_evaluation", "Evaluation and claims", "00 01 02 03 04 05 06 07",
        "stage:evaluation csv:learning_curves csv:paired_difference csv:steps_to_target csv:study_pilot csv:study_runs "
        "csv:study_summary csv:study_comparisons csv:study_targets csv:study_provenance csv:study_final csv:study_paper_tables "
        "csv:study_mixing csv:study_plans csv:study_batch csv:study_budget csv:preparation_cost csv:claims",
        "learning_curves paired_difference study_pilot study_curves study_effects study_gap study_sets study_mixing "
        "preparation_cost",
    ),
)  # fmt: skip

NOTEBOOKS: tuple[Notebook, ...] = (
    *_COMPUTED,
    _redraw("09_figures", "Every figure from the tables alone", _COMPUTED),
    _notebook("10_your_own_data", "The library on a file of one's own", "00", "csv:own_clusters", ""),
)
"""All notebooks, in the order in which they run."""


def find(number: str, registry: tuple[Notebook, ...] = NOTEBOOKS) -> Notebook:
    """The notebook with this number; one digit is enough.

    >>> find("7").stem
    '07_grpo_training'

    Raises UserError for a number that is not in the registry.
    """
    for notebook in registry:
        if notebook.number == number.zfill(2):
            return notebook
    raise UserError(f"notebook {number!r} does not exist; choose one of {', '.join(n.number for n in registry)}")


def select(registry: tuple[Notebook, ...], start: str | None = None, only: str | None = None) -> tuple[Notebook, ...]:
    """The notebooks to run: all, those from number `start` on, or the single number `only`.

    Raises UserError for an unknown number or when both are given.
    """
    if start is not None and only is not None:
        raise UserError("--from and --only exclude each other; give one of them")
    if only is not None:
        return (find(only, registry),)
    if start is not None:
        return registry[registry.index(find(start, registry)) :]
    return registry


def executed_dir(profile: str) -> Path:
    """Executed copies and HTML versions of the notebooks."""
    return paths.profile_dir(profile) / "notebooks"


def output_files(name: str, profile: str) -> tuple[Path, ...]:
    """Files that stand for one declared name of `profile`: a stage is its manifest, a figure its PNG and its PDF.

    Raises ValueError for a name without a known prefix.
    """
    kind, _, stem = name.partition(":")
    if kind == "csv" and stem:
        return (paths.figure_data_dir(profile) / f"{stem}.csv",)
    if kind == "figure" and stem:
        return tuple(paths.figures_dir(profile) / f"{stem}.{ending}" for ending in ("png", "pdf"))
    if kind == "stage" and stem:
        return (paths.profile_dir(profile) / stem / MANIFEST,)
    raise ValueError(f"declared output {name!r} must start with csv:, figure: or stage:")


def file_hash(path: Path) -> str | None:
    """SHA-256 of a file, or None when it is missing or empty."""
    return file_sha256(path) if path.is_file() and path.stat().st_size else None


def source_hash(path: Path) -> str | None:
    """Hash of kind, text and tags of a notebook's cells, so that stored outputs do not matter; None when it is missing."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return content_hash([[c["cell_type"], "".join(c["source"]), c["metadata"].get("tags", [])] for c in cells])
    except (ValueError, KeyError, TypeError, AttributeError):
        return file_sha256(path)
    except FileNotFoundError:
        return None


def notebook_code(path: Path) -> str | None:
    """Hash of the library code that the notebook's cells import, directly or not; None when it cannot be read."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        return code_hash(*sorted(set().union(*map(imported_names, sources))))
    except (OSError, ValueError, KeyError, TypeError, SyntaxError):
        return None


def data_digest() -> str:
    """Hash of the names and sizes of the files in `SAERL_DATA_DIR`; of nothing when it is not set."""
    folder = paths.shared_data_dir()
    files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder else []
    return content_hash([[str(path.relative_to(folder)), path.stat().st_size] for path in files])


def output_hash(name: str, profile: str) -> str | None:
    """Hash of one declared output (a stage: its manifest), or None when it is missing or empty."""
    hashes = [file_hash(path) for path in output_files(name, profile)]
    return None if None in hashes else content_hash(hashes)


def stage_is_whole(name: str, profile: str) -> bool:
    """Whether every file that the manifest of a stage lists still has its recorded hash."""
    folder = output_files(name, profile)[0].parent
    outputs = (read_manifest(folder) or {}).get("outputs", {})
    return all((folder / file).is_file() and file_sha256(folder / file) == sha for file, sha in outputs.items())


def input_names(notebook: Notebook, registry: tuple[Notebook, ...]) -> tuple[str, ...]:
    """Tables and stages that the notebook reads; figures are results and nobody's input."""
    names: list[str] = []
    for name in notebook.inputs:
        kind, _, number = name.partition(":")
        names += [n for n in find(number, registry).outputs if not n.startswith("figure:")] if kind == "notebook" else [name]
    return tuple(dict.fromkeys(names))


def stage_folders(notebook: Notebook, profile: str) -> tuple[Path, ...]:
    """Folders of the stages that the notebook declares."""
    return tuple(output_files(name, profile)[0].parent for name in notebook.outputs if name.startswith("stage:"))


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
    """smoke, laptop, method, study or paper."""
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


def run_notebooks(notebooks: RunOptions, plan_only: bool) -> int:
    """`run`; with `plan_only` the plan of profile paper instead. Raises ValueError for any other option beside that."""
    if plan_only:
        from saerl_lib.needs import run_plan

        given = {f.name for f in fields(RunOptions) if getattr(notebooks, f.name) != f.default}
        return run_plan(notebooks.profile, [f"--{'from' if name == 'start' else name}" for name in sorted(given - {"profile"})])
    run(notebooks)
    return 0


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
