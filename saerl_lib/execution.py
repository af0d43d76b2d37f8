"""Execute one notebook with papermill: in this interpreter's environment, from the project's root, into a copy.

The executed copy and its HTML are written under temporary names and moved into place when the notebook succeeded;
a failed copy is kept as `<stem>.failed.ipynb`. A notebook that ends without its declared outputs has failed.
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

import nbformat
import papermill
from ipykernel.kernelspec import write_kernel_spec
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from papermill.exceptions import PapermillException

from saerl_lib import paths
from saerl_lib.notebooks import Notebook, UserError, executed_dir, output_files, output_hash

KERNEL = "python3"
START_TIMEOUT_SECONDS = 180
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

Parameters = Mapping[str, str | int]


@contextlib.contextmanager
def kernel_environment() -> Iterator[None]:
    """Environment in which the kernel `python3` is this very interpreter, whatever kernels the user has installed.

    A kernelspec in a temporary folder at the head of `JUPYTER_PATH` wins over every other; the IPython folder is
    temporary too, so that no startup file of the user takes part.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="saerl-kernel-", ignore_cleanup_errors=True) as folder:
        write_kernel_spec(os.path.join(folder, "kernels", KERNEL), extra_arguments=["--log-level=ERROR"])
        search = [folder, *filter(None, [before.get("JUPYTER_PATH")])]
        modules = [str(paths.ROOT), *filter(None, [before.get("PYTHONPATH")])]
        os.environ |= {name: before.get(name, value) for name, value in ENVIRONMENT.items()}
        os.environ |= {"JUPYTER_PATH": os.pathsep.join(search), "PYTHONPATH": os.pathsep.join(modules)}
        os.environ |= {"IPYTHONDIR": os.path.join(folder, "ipython"), "SAERL_HOME": str(paths.artifacts_root())}
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def check_parameters(notebook: Notebook, source: Path, given: Parameters) -> None:
    """Raise UserError when a given name is not defined in the `parameters` cell; papermill would only warn."""
    known = papermill.inspect_notebook(str(source))
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UserError(
            f"notebook {notebook.stem} does not know the parameter {', '.join(unknown)}; "
            f"its cell tagged 'parameters' defines {', '.join(known) or 'nothing'}"
        )


def _own_cells(executed: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in executed.cells if not ADDED_TAGS & set(cell.metadata.get("tags", []))]


def _failed_cell(executed: NotebookNode) -> tuple[int, str] | None:
    """Number and source of the code cell that failed: the one with an error, else the last one that was started."""
    started = None
    for number, cell in enumerate(_own_cells(executed), start=1):
        if cell.cell_type == "code" and cell.metadata.get("papermill", {}).get("start_time"):
            started = (number, cell.source)
            if any(output.output_type == "error" for output in cell.get("outputs", [])):
                break
    return started


def describe_failure(notebook: Notebook, copy: Path, error: Exception) -> str:
    """A message with the notebook, the cell (counted from 1 as stored), its first lines, and the error's name and value."""
    name = getattr(error, "ename", type(error).__name__)
    value = str(getattr(error, "evalue", error)).strip()
    failed = _failed_cell(nbformat.read(copy, as_version=4)) if copy.is_file() else None
    place = "before its first cell"
    if failed:
        number, source = failed
        place = f"in cell {number}:\n" + "\n".join(f"    {line}" for line in source.splitlines()[:3])
    return f"notebook {notebook.stem} failed {place}\n{name}: {value}"


def ended_early(executed: NotebookNode) -> str | None:
    """The place after which code cells did not run (a `sys.exit` in a cell ends with exit code 0), or None."""
    last = 0
    for number, cell in enumerate(_own_cells(executed), start=1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        if cell.execution_count is None:
            return f"after cell {last}"
        last = number
    return None


def embed_figures(executed: NotebookNode, folder: Path) -> None:
    """Turn links to `../figures/NAME.png` into attachments, so that the copy and its HTML can be moved anywhere."""
    for cell in executed.cells:
        if cell.cell_type != "markdown":
            continue
        for name in dict.fromkeys(re.findall(r"\]\(\.\./figures/([\w.-]+\.png)\)", cell.source)):
            if (folder / name).is_file():
                data = base64.b64encode((folder / name).read_bytes()).decode("ascii")
                cell.setdefault("attachments", {})[name] = {"image/png": data}
                cell.source = cell.source.replace(f"](../figures/{name})", f"](attachment:{name})")


def execute(notebook: Notebook, source: Path, folder: Path, given: Parameters) -> NotebookNode:
    """Run `source` and return the executed notebook; what its cells print goes to this process's stdout and stderr.

    Raises UserError with notebook, cell and error when it fails; `<stem>.failed.ipynb` in `folder` then holds the copy.
    """
    copy = folder / f".{notebook.stem}.partial.ipynb"
    copy.unlink(missing_ok=True)
    try:
        return papermill.execute_notebook(
            str(source), str(copy), parameters=dict(given), kernel_name=KERNEL, progress_bar=False, cwd=str(paths.ROOT),
            stdout_file=sys.stdout, stderr_file=sys.stderr, start_timeout=START_TIMEOUT_SECONDS,
        )  # fmt: skip
    except (PapermillException, RuntimeError, OSError) as error:
        message = describe_failure(notebook, copy, error)
        raise UserError(f"{message}\n{keep_failed(notebook, folder)}") from error


def keep_failed(notebook: Notebook, folder: Path) -> str:
    """Move the partial copy to `<stem>.failed.ipynb` and say where it is."""
    failed = folder / f"{notebook.stem}.failed.ipynb"
    copy = folder / f".{notebook.stem}.partial.ipynb"
    if not copy.is_file():
        return "no executed copy was written"
    copy.replace(failed)
    return f"the executed copy with the full traceback: {failed}"


def publish(notebook: Notebook, executed: NotebookNode, folder: Path, figures: Path) -> None:
    """Write `<stem>.ipynb` and `<stem>.html` into `folder` and drop the copy of an earlier failure."""
    copy, page = folder / f".{notebook.stem}.partial.ipynb", folder / f".{notebook.stem}.partial.html"
    embed_figures(executed, figures)
    nbformat.write(executed, copy)
    exporter = HTMLExporter(embed_images=True)
    text, _ = exporter.from_notebook_node(executed, resources={"metadata": {"name": notebook.stem, "path": str(folder)}})
    page.write_text(text, encoding="utf-8")
    page.replace(folder / f"{notebook.stem}.html")
    copy.replace(folder / f"{notebook.stem}.ipynb")
    (folder / f"{notebook.stem}.failed.ipynb").unlink(missing_ok=True)


def _stamps(notebook: Notebook, profile: str) -> dict[str, list[tuple[int, int]]]:
    """Inode and modification time of the tables and figures; stages are left out, as a finished one is not rewritten."""
    stats = {
        name: [path.stat() for path in output_files(name, profile) if path.is_file()]
        for name in notebook.outputs
        if not name.startswith("stage:")
    }
    return {name: [(stat.st_ino, stat.st_mtime_ns) for stat in found] for name, found in stats.items() if found}


def undelivered(notebook: Notebook, profile: str, before: dict[str, list[tuple[int, int]]]) -> list[str]:
    """One sentence a declared output that is missing, empty, or left over from an earlier run."""
    now = _stamps(notebook, profile)
    missing = [name for name in notebook.outputs if output_hash(name, profile) is None]
    stale = [name for name in before if name not in missing and now[name] == before[name]]
    return [f"declared output {name} is missing" for name in missing] + [
        f"declared output {name} was not written by this run" for name in stale
    ]


def run_notebook(notebook: Notebook, profile: str, values: Parameters, folder: Path) -> None:
    """Execute one notebook of `folder` and check that it delivered what it declares.

    `values` holds a value for each name in `notebook.parameters`. Raises UserError when the notebook is missing, fails,
    ends early, does not know a parameter, or leaves a declared output unwritten.
    """
    source, copies = folder / f"{notebook.stem}.ipynb", executed_dir(profile)
    if not source.is_file():
        raise UserError(f"notebook {source} is missing; restore it or take it out of saerl_lib/notebooks.py")
    given = {name: values[name] for name in notebook.parameters}
    with kernel_environment():
        check_parameters(notebook, source, given)
        before = _stamps(notebook, profile)
        executed = execute(notebook, source, copies, given)
    wrong = undelivered(notebook, profile, before)
    early = ended_early(executed)
    if early:
        wrong.insert(0, f"it ended early, {early}")
    if wrong:
        raise UserError(f"notebook {notebook.stem} failed: {'; '.join(wrong)}\n{keep_failed(notebook, copies)}")
    try:
        publish(notebook, executed, copies, paths.figures_dir(profile))
    except OSError as error:
        raise UserError(f"cannot write {copies}: {error.strerror}; free space or set SAERL_HOME") from error
