"""The notebooks in order, with what each reads and must leave behind. Edit the table when a notebook changes.

A name carries its kind: `csv:NAME` is NAME.csv in `paths.figure_data_dir(profile)`, `figure:NAME` is NAME.png and NAME.pdf
in `paths.figures_dir(profile)`, `stage:NAME` is the folder NAME with its manifest in `paths.profile_dir(profile)`, and
`notebook:NN` (inputs alone) is all that notebook NN leaves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from saerl_lib import paths
from saerl_lib.artifacts import MANIFEST, code_hash, file_sha256, imported_names, read_manifest
from saerl_lib.config import content_hash

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
