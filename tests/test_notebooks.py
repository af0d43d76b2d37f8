"""The registry and the stored notebooks: complete, stripped, short cells, text before code, figures that exist."""

from __future__ import annotations

import ast
import re

import nbformat
import papermill
import pytest
from nbformat import NotebookNode

from saerl_lib import paths
from saerl_lib.notebooks import NOTEBOOKS, PARAMETERS, Notebook, find, input_names
from saerl_lib.report.figures import FIGURES
from saerl_lib.report.reproduction import publisher
from saerl_lib.report.tables import SCHEMAS

MAX_CODE_LINES = 15
EMBEDDED = re.compile(r"\]\((\.\./figures/[^)]+)\)")


def stored_violations(content: NotebookNode) -> list[str]:
    """Outputs, counters and timings that must not be stored, and a kernel other than python3."""
    found = [] if content.metadata.get("kernelspec", {}).get("name") == "python3" else ["the kernelspec is not python3"]
    found += ["papermill metadata are stored"] if "papermill" in content.metadata else []
    for number, cell in enumerate(content.cells, start=1):
        if cell.get("outputs") or cell.get("execution_count") is not None:
            found.append(f"cell {number} has stored outputs")
        if {"papermill", "execution"} & set(cell.metadata):
            found.append(f"cell {number} has stored timings")
    return found


def source_violations(source: str) -> list[str]:
    """What library code is for, or what ties a notebook to a folder, and too many lines, imports left out."""
    if any(line.lstrip().startswith(("%", "!")) for line in source.splitlines()):
        return ["a magic or a shell command"]
    found, lines, tree = [], len(source.splitlines()), ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.append(f"defines {node.name}")
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            found.append("a star import")
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.path", "os.chdir"):
            found.append(ast.unparse(node))
        if node in tree.body and isinstance(node, (ast.Import, ast.ImportFrom)):
            lines -= node.end_lineno - node.lineno + 1
    found += [f"more than {MAX_CODE_LINES} lines"] if lines > MAX_CODE_LINES else []
    return found + ([] if source.strip() else ["empty"])


def cell_violations(content: NotebookNode) -> list[str]:
    """Code cells that break a rule of `source_violations` or stand without text before them; not one parameters cell."""
    tagged = [cell for cell in content.cells if "parameters" in cell.metadata.get("tags", [])]
    found = [] if [cell.cell_type for cell in tagged] == ["code"] else [f"{len(tagged)} cells are tagged parameters"]
    for before, (number, cell) in zip([None, *content.cells], enumerate(content.cells, start=1), strict=False):
        if cell.cell_type == "code":
            text = before is not None and before.cell_type == "markdown" and before.source.strip()
            found += [] if text else [f"cell {number}: no text before it"]
            found += [f"cell {number}: {broken}" for broken in source_violations(cell.source)]
    return found


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_stored_notebook_keeps_the_rules_and_shows_its_figures(notebook: Notebook) -> None:
    path = paths.NOTEBOOKS / f"{notebook.stem}.ipynb"
    content = nbformat.read(path, as_version=4)
    nbformat.validate(content)
    assert stored_violations(content) == cell_violations(content) == []
    known = papermill.inspect_notebook(str(path))
    assert {name: ast.literal_eval(known[name]["default"]) for name in PARAMETERS} == {"profile": "laptop", "seed": 0, "seeds": 0}
    shown = {link for cell in content.cells if cell.cell_type == "markdown" for link in EMBEDDED.findall(cell.source)}
    waiting = {name for name, (tables, _) in FIGURES.items()
               if not all((paths.PUBLISHED / f"{table}.csv").is_file() for table in tables)}  # fmt: skip
    files = [(paths.NOTEBOOKS / link).resolve() for link in shown]
    assert all(file.is_file() or file.stem in waiting for file in files), "a figure is there once its table is published"
    assert {f"../figures/{name[7:]}.png" for name in notebook.outputs if name.startswith("figure:")} <= shown


def test_registry_files_and_schemas_agree() -> None:
    assert sorted(path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")) == [notebook.stem for notebook in NOTEBOOKS]
    assert [notebook.number for notebook in NOTEBOOKS] == [f"{i:02d}" for i in range(11)]
    for position, notebook in enumerate(NOTEBOOKS):
        assert set(notebook.inputs) <= {n.number for n in NOTEBOOKS[:position]}, "inputs come from earlier notebooks"
    redraws = find("09")
    written = [(name, notebook) for notebook in NOTEBOOKS if notebook is not redraws for name in notebook.outputs]
    assert len(written) == len(dict(written)), "every output has one writer"
    assert set(redraws.outputs) == {name for name, _ in written if name.startswith("figure:")} and redraws.tables_only
    tables = {name: notebook.number for name, notebook in written if name.startswith("csv:")}
    own = {name: schema for name, schema in SCHEMAS.items() if publisher(name) != "reader"}  # written by a command
    assert tables == {f"csv:{name}": schema.notebook for name, schema in own.items()}
    assert set(input_names(redraws, NOTEBOOKS)) == {name for name, number in tables.items() if number != "10"}
