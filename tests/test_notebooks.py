"""The registry and the stored notebooks: complete, stripped, short cells, text before code, figures that exist."""

from __future__ import annotations

import ast
import re

import nbformat
import papermill
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from saerl_lib import paths
from saerl_lib.notebooks import NOTEBOOKS, PARAMETERS, Notebook, find, input_names, output_files

MAX_CODE_LINES = 15
EMBEDDED = re.compile(r"\]\((\.\./figures/[^)]+)\)")
ALL = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)


def stored(notebook: Notebook) -> NotebookNode:
    """The notebook as stored; a registered notebook without a file is a failure."""
    path = paths.NOTEBOOKS / f"{notebook.stem}.ipynb"
    assert path.is_file(), f"{path.name} is in saerl_lib/notebooks.py but not in notebooks/"
    content = nbformat.read(path, as_version=4)
    nbformat.validate(content)
    return content


def stripped_violations(content: NotebookNode) -> list[str]:
    """Outputs, counters and timings that must not be stored, and a kernel other than python3."""
    found = []
    if content.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernelspec is not python3")
    if "papermill" in content.metadata:
        found.append("papermill metadata are stored")
    for number, cell in enumerate(content.cells, start=1):
        if cell.get("outputs") or cell.get("execution_count") is not None:
            found.append(f"cell {number} has stored outputs")
        if {"papermill", "execution"} & set(cell.metadata):
            found.append(f"cell {number} has stored timings")
    return found


def syntax_violations(source: str) -> list[str]:
    """What library code is for, or what ties a notebook to a folder: def, class, cd, sys.path, star imports, magics."""
    if any(line.lstrip().startswith(("%", "!")) for line in source.splitlines()):
        return ["a magic or a shell command"]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.append(f"defines {node.name}")
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            found.append("a star import")
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.path", "os.chdir"):
            found.append(ast.unparse(node))
    return found


def code_lines(source: str) -> int:
    """Lines of a cell, imports left out."""
    imports = [node for node in ast.parse(source).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return len(source.splitlines()) - sum(node.end_lineno - node.lineno + 1 for node in imports)


def cell_violations(content: NotebookNode) -> list[str]:
    """Cells that are too long, hold forbidden syntax, or stand without text before them; other than one parameters cell."""
    found = []
    tagged = [cell for cell in content.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1 or tagged[0].cell_type != "code":
        found.append(f"{len(tagged)} cells are tagged parameters")
    for number, cell in enumerate(content.cells, start=1):
        if cell.cell_type != "code":
            continue
        if not cell.source.strip():
            found.append(f"cell {number} is empty")
        if code_lines(cell.source) > MAX_CODE_LINES:
            found.append(f"cell {number} has more than {MAX_CODE_LINES} lines")
        if number == 1 or content.cells[number - 2].cell_type != "markdown" or not content.cells[number - 2].source.strip():
            found.append(f"cell {number} has no text before it")
        found += [f"cell {number}: {text}" for text in syntax_violations(cell.source)]
    return found


def embedded_figures(content: NotebookNode) -> list[str]:
    """Targets of `![caption](../figures/NAME.png)` in text cells, in order."""
    return [link for cell in content.cells if cell.cell_type == "markdown" for link in EMBEDDED.findall(cell.source)]


@ALL
def test_stored_without_outputs(notebook: Notebook) -> None:
    assert stripped_violations(stored(notebook)) == []


@ALL
def test_cells_are_short_calls_with_text_before_them(notebook: Notebook) -> None:
    assert cell_violations(stored(notebook)) == []


@ALL
def test_parameters_have_the_default_values(notebook: Notebook) -> None:
    stored(notebook)
    known = papermill.inspect_notebook(str(paths.NOTEBOOKS / f"{notebook.stem}.ipynb"))
    defaults = {name: ast.literal_eval(known[name]["default"]) for name in PARAMETERS}
    assert defaults == {"profile": "laptop", "seed": 0, "seeds": 0}


@ALL
def test_embedded_figures_exist(notebook: Notebook) -> None:
    for link in embedded_figures(stored(notebook)):
        assert (paths.NOTEBOOKS / link).resolve().is_file(), f"{notebook.stem} embeds {link}, which does not exist"


@ALL
def test_every_declared_figure_is_embedded(notebook: Notebook) -> None:
    declared = {f"../figures/{name.removeprefix('figure:')}.png" for name in notebook.outputs if name.startswith("figure:")}
    assert declared <= set(embedded_figures(stored(notebook)))


def test_registry_and_folder_hold_the_same_notebooks() -> None:
    assert sorted(path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")) == [notebook.stem for notebook in NOTEBOOKS]


def test_numbers_are_consecutive_and_begin_the_stem() -> None:
    assert [notebook.number for notebook in NOTEBOOKS] == [f"{i:02d}" for i in range(11)]
    for position, notebook in enumerate(NOTEBOOKS):
        assert set(notebook.inputs) <= {n.number for n in NOTEBOOKS[:position]}, "inputs come from earlier notebooks"
        assert all(output_files(name, "smoke") for name in notebook.outputs)


def test_every_output_has_one_writer_and_09_redraws_every_figure() -> None:
    redraws = find("09")
    computed = NOTEBOOKS[: NOTEBOOKS.index(redraws)]
    written = [name for notebook in NOTEBOOKS if notebook is not redraws for name in notebook.outputs]
    assert len(written) == len(set(written))
    assert set(redraws.outputs) == {name for name in written if name.startswith("figure:")}
    tables = {name for notebook in computed for name in notebook.outputs if name.startswith("csv:")}
    assert set(input_names(redraws, NOTEBOOKS)) == tables
    assert redraws.tables_only


def test_registry_agrees_with_the_table_schemas() -> None:
    from saerl_lib.report.tables import SCHEMAS

    writers = {
        name.removeprefix("csv:"): notebook.number
        for notebook in NOTEBOOKS
        for name in notebook.outputs
        if name.startswith("csv:")
    }
    assert writers == {name: schema.notebook for name, schema in SCHEMAS.items()}


# The rules themselves, on notebooks that break them.


def notebook_of(*cells: NotebookNode) -> NotebookNode:
    content = new_notebook(cells=list(cells))
    content.metadata["kernelspec"] = {"name": "python3"}
    return content


def test_stored_and_cell_rules() -> None:
    parameters = new_code_cell("a = 1", metadata={"tags": ["parameters"]})
    good = notebook_of(new_markdown_cell("# A"), parameters)
    assert stripped_violations(good) == cell_violations(good) == []
    ran = new_code_cell("1", execution_count=1, outputs=[new_output("stream", text="1")], metadata={"papermill": {}})
    bad = notebook_of(ran, new_markdown_cell("b"), new_code_cell("\n".join(["a = 1"] * 16)))
    bad.metadata["kernelspec"]["name"] = "mine"
    assert stripped_violations(bad) == [
        "the kernelspec is not python3", "cell 1 has stored outputs", "cell 1 has stored timings"
    ]  # fmt: skip
    assert cell_violations(bad) == [
        "0 cells are tagged parameters", "cell 1 has no text before it", "cell 3 has more than 15 lines"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import sys\nsys.path.insert(0, '.')", ["sys.path"]),
        ("def f():\n    pass", ["defines f"]),
        ("class A:\n    pass", ["defines A"]),
        ("from math import *", ["a star import"]),
        ("%cd ..", ["a magic or a shell command"]),
        ("import os\nos.chdir('..')", ["os.chdir"]),
        ("from math import pi\npi", []),
    ],
)
def test_syntax_rule(source: str, found: list[str]) -> None:
    assert syntax_violations(source) == found


def test_embedded_figures_are_found() -> None:
    text = new_markdown_cell("![a](../figures/a.png) and [b](../figures/b.png) and [c](other.png)")
    assert embedded_figures(notebook_of(text)) == ["../figures/a.png", "../figures/b.png"]
