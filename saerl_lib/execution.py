"""Execute one notebook with papermill: in this interpreter's environment, from the project's root, into a copy.

Tables and figures that a notebook declares are removed before it runs, so one that ends without them has failed. The executed
copy and its HTML are written under temporary names and moved into place on success; a failed copy stays as `<stem>.failed.ipynb`.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest.mock import patch

import nbformat
import papermill
from ipykernel.kernelspec import write_kernel_spec
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from papermill.exceptions import PapermillException

from saerl_lib import paths
from saerl_lib.notebooks import Notebook, UserError, executed_dir, output_files, output_hash

KERNEL = "python3"
ADDED_TAGS = {"injected-parameters", "papermill-error-cell-tag"}
"""Tags of cells that papermill adds; cells are counted without them."""
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "SOURCE_DATE_EPOCH": "1779753600",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
}
"""What every notebook runs under; `run_all.sh` exports the same values."""


@contextlib.contextmanager
def kernel_environment() -> Iterator[None]:
    """Environment in which the kernel `python3` is this very interpreter, whatever kernels the user has installed.

    A kernelspec in a temporary folder at the head of `JUPYTER_PATH` wins over every other; the IPython folder is
    temporary too, so that no startup file of the user takes part.
    """
    with tempfile.TemporaryDirectory(prefix="saerl-kernel-", ignore_cleanup_errors=True) as folder:
        write_kernel_spec(os.path.join(folder, "kernels", KERNEL), extra_arguments=["--log-level=ERROR"])
        values = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
        values |= {"IPYTHONDIR": os.path.join(folder, "ipython"), "SAERL_HOME": str(paths.artifacts_root())}
        for name, first in (("JUPYTER_PATH", folder), ("PYTHONPATH", str(paths.ROOT))):
            values[name] = os.pathsep.join([first, *filter(None, [os.environ.get(name)])])
        with patch.dict(os.environ, values):
            yield


def check_parameters(notebook: Notebook, source: Path, given: Mapping[str, str | int]) -> None:
    """Raise UserError when a given name is not defined in the `parameters` cell; papermill would only warn."""
    known = papermill.inspect_notebook(str(source))
    unknown = [name for name in given if name not in known]
    if unknown:
        cell = f"its cell tagged 'parameters' defines {', '.join(known) or 'nothing'}"
        raise UserError(f"notebook {notebook.stem} does not know the parameter {', '.join(unknown)}; {cell}")


def _code_cells(executed: NotebookNode) -> list[tuple[int, NotebookNode]]:
    """The code cells and their numbers, counted from 1 as stored: without the cells that papermill added."""
    own = [cell for cell in executed.cells if not ADDED_TAGS & set(cell.metadata.get("tags", []))]
    return [(number, cell) for number, cell in enumerate(own, start=1) if cell.cell_type == "code" and cell.source.strip()]


def describe_failure(notebook: Notebook, copy: Path, error: Exception) -> str:
    """A message with the notebook, the cell that failed (else the last that was started), its first lines, and the error."""
    cells = _code_cells(nbformat.read(copy, as_version=4)) if copy.is_file() else []
    started = [found for found in cells if found[1].metadata.get("papermill", {}).get("start_time")]
    failed = [found for found in started if any(output.output_type == "error" for output in found[1].get("outputs", []))]
    place = "before its first cell"
    for number, cell in failed[:1] or started[-1:]:
        place = "\n".join([f"in cell {number}:", *(f"    {line}" for line in cell.source.splitlines()[:3])])
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
    return f"notebook {notebook.stem} failed {place}\n{name}: {str(value).strip()}"


def ended_early(executed: NotebookNode) -> str | None:
    """The place after which code cells did not run (a `sys.exit` in a cell ends with exit code 0), or None."""
    last = 0
    for number, cell in _code_cells(executed):
        if cell.execution_count is None:
            return f"after cell {last}"
        last = number
    return None


def embed_figures(executed: NotebookNode, folder: Path) -> None:
    """Turn links to `../figures/NAME.png` into attachments, so that the copy and its HTML can be moved anywhere."""
    for cell in (cell for cell in executed.cells if cell.cell_type == "markdown"):
        for name in dict.fromkeys(re.findall(r"\]\(\.\./figures/([\w.-]+\.png)\)", cell.source)):
            if (folder / name).is_file():
                data = base64.b64encode((folder / name).read_bytes()).decode("ascii")
                cell.setdefault("attachments", {})[name] = {"image/png": data}
                cell.source = cell.source.replace(f"](../figures/{name})", f"](attachment:{name})")


def _kept(copy: Path, stem: str) -> str:
    """Move the partial copy of a failure to `<stem>.failed.ipynb` and say where it is."""
    if not copy.is_file():
        return "no executed copy was written"
    return f"the executed copy with the full traceback: {copy.replace(copy.with_name(f'{stem}.failed.ipynb'))}"


def save(executed: NotebookNode, copy: Path, stem: str, figures: Path) -> None:
    """Write `<stem>.ipynb` and `<stem>.html` beside the partial copy and drop the copy of an earlier failure."""
    embed_figures(executed, figures)
    nbformat.write(executed, copy)
    resources = {"metadata": {"name": stem, "path": str(copy.parent)}}
    text, _ = HTMLExporter(embed_images=True).from_notebook_node(executed, resources=resources)
    page = copy.with_suffix(".html")
    page.write_text(text, encoding="utf-8")
    page.replace(copy.with_name(f"{stem}.html"))
    copy.replace(copy.with_name(f"{stem}.ipynb"))
    copy.with_name(f"{stem}.failed.ipynb").unlink(missing_ok=True)


def run_notebook(notebook: Notebook, profile: str, given: Mapping[str, str | int], folder: Path) -> None:
    """Execute one notebook of `folder`; what its cells print goes to this process's stdout and stderr.

    Raises UserError when the notebook is missing, does not know a parameter, fails, ends early or leaves a declared output out.
    """
    source, stem = folder / f"{notebook.stem}.ipynb", notebook.stem
    if not source.is_file():
        raise UserError(f"notebook {source} is missing; restore it or take it out of saerl_lib/notebooks.py")
    copy = executed_dir(profile) / f".{stem}.partial.ipynb"
    copy.unlink(missing_ok=True)
    with kernel_environment():
        check_parameters(notebook, source, given)
        for path in (path for name in notebook.outputs if not name.startswith("stage:") for path in output_files(name, profile)):
            path.unlink(missing_ok=True)
        try:
            executed = papermill.execute_notebook(
                str(source), str(copy), parameters=dict(given), kernel_name=KERNEL, progress_bar=False, cwd=str(paths.ROOT),
                stdout_file=sys.stdout, stderr_file=sys.stderr, start_timeout=180,
            )  # fmt: skip
        except (PapermillException, RuntimeError, OSError) as error:
            raise UserError(f"{describe_failure(notebook, copy, error)}\n{_kept(copy, stem)}") from error
    early = ended_early(executed)
    wrong = [f"it ended early, {early}"] if early else []
    wrong += [f"declared output {name} is missing" for name in notebook.outputs if output_hash(name, profile) is None]
    if wrong:
        raise UserError(f"notebook {stem} failed: {'; '.join(wrong)}\n{_kept(copy, stem)}")
    try:
        save(executed, copy, stem, paths.figures_dir(profile))
    except OSError as error:
        raise UserError(f"cannot write {copy.parent}: {error.strerror}; free space or set SAERL_HOME") from error
