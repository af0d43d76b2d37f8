"""The registry and the stored notebooks: complete, short cells, text before code, outputs that belong to the code."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import nbformat
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from saerl_lib import notebooks, paths
from saerl_lib.notebooks import NOTEBOOKS, PARAMETERS, Notebook, RunOptions, UserError
from saerl_lib.report.figures import FIGURES
from saerl_lib.report.reproduction import code_of, executed_source, publisher
from saerl_lib.report.tables import SCHEMAS, SHOWS, WAITING

MAX_CODE_LINES = 15
MOST_BYTES = 4_000_000
"""Of all notebooks together."""
OTHER_CODE = "the outputs are of other code: run ./run_all.sh and ./run_all.sh publish, or clear them"
KINDS = {"text", "text/plain", "text/html", "image/png"}
OF_A_RUN = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|Users|opt|mnt|var)/\S*|\r| at 0x[0-9a-f]+|\bit/s\b")
"""What no output may hold: a path or an address of the machine, a progress bar."""


def stored_violations(content: NotebookNode) -> list[str]:
    """Outputs of other code, of a machine or of no use to a reader; a kernel other than python3."""
    found = [] if content.metadata.get("kernelspec", {}).get("name") == "python3" else ["the kernelspec is not python3"]
    if any(cell.get("outputs") for cell in content.cells) and content.metadata.get("code_hash") != code_of(content):
        found.append(OTHER_CODE)
    for number, cell in enumerate(content.cells, start=1):
        outputs = cell.get("outputs", [])
        found += [f"cell {number} holds {other} as metadata" for other in set(cell.metadata) - {"tags"}]
        found += [f"cell {number} holds stderr" for output in outputs if output.get("name") == "stderr"]
        data = [{"text": output.text} if "text" in output else output.get("data", {"error": ""}) for output in outputs]
        found += [f"cell {number} holds {kind}" for one in data for kind in set(one) - KINDS]
        texts = [text for one in data for kind, text in one.items() if kind != "image/png"]
        found += [f"cell {number} holds {match!r}" for text in texts for match in OF_A_RUN.findall(text)]
        found += [f"cell {number} holds two pictures"] * (sum("image/png" in one for one in data) > 1)
    return found + [f"the notebook holds {other} as metadata" for other in {"papermill", "widgets"} & set(content.metadata)]


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
def test_a_stored_notebook_keeps_the_rules_shows_its_figures_and_ends_with_an_answer(notebook: Notebook) -> None:
    path = paths.NOTEBOOKS / f"{notebook.stem}.ipynb"
    content = nbformat.read(path, as_version=4)
    nbformat.validate(content)
    assert stored_violations(content) == cell_violations(content) == []
    known = papermill.inspect_notebook(str(path))
    assert {name: ast.literal_eval(known[name]["default"]) for name in PARAMETERS} == {"profile": "laptop", "seed": 0, "seeds": 0}
    source = "".join(cell.source for cell in content.cells)
    drawn, declared = set(re.findall(r'draw\("(\w+)"', source)), {n[7:] for n in notebook.outputs if n.startswith("figure:")}
    assert notebook.tables_only or {name for name in drawn ^ declared if not set(WAITING) & set(FIGURES[name][0])} == set()
    for cell, after in itertools.pairwise(content.cells):
        if cell.cell_type == "code" and SHOWS.search(cell.source):
            assert re.match(r"\*\*.+\*\* \*What to see:\*", after.source), "each figure has a caption"
    assert content.cells[-3].source == "## Answer" and content.cells[-2].cell_type == "code"


def executed(*cells: NotebookNode, **metadata: object) -> NotebookNode:
    """What papermill leaves: the parameters of the run in a cell of their own, its metadata, the counters of the kernel."""
    injected = new_code_cell('profile = "laptop"', metadata={"tags": ["injected-parameters"]}, execution_count=2)
    told = {"parameters": RunOptions().parameters(), "duration": 1.5, "input_path": "/root/a.ipynb", **metadata}
    return new_notebook(cells=[injected, *cells], metadata={"papermill": told})


def test_stored_outputs_are_text_tables_and_pictures_and_belong_to_the_code(tmp_path: Path) -> None:
    source, copy, text = tmp_path / "00_a.ipynb", tmp_path / "run.ipynb", "x = 1\nx"
    kernel, tags = {"name": "python3", "display_name": "Python 3", "language": "python"}, {"tags": ["parameters"]}
    cells = [new_markdown_cell("# A"), new_code_cell(text, metadata=tags), new_code_cell("y")]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), source)
    printed = [("stdout", "one\n\r 50%"), ("stderr", "a warning"), ("stdout", "\r100%"), ("stdout", "\ntwo\n")]
    table = {"text/html": "<table></table>", "text/plain": "a  b", "application/json": {}}
    picture = {"image/png": "AAAA", "text/plain": "<Image>"}
    outputs = [*(new_output("stream", name=name, text=words) for name, words in printed),
               new_output("execute_result", table, execution_count=9), new_output("display_data", picture, metadata={"width": 3})]
    done = new_code_cell(text, outputs=outputs, execution_count=9, metadata={**tags, "papermill": {"duration": 1.5}})
    run = executed(new_markdown_cell("# B"), done, new_code_cell("y", execution_count=10))
    nbformat.write(run, copy)
    stored = executed_source(source, copy)
    content = nbformat.reads(stored, as_version=4)
    nbformat.validate(content)
    assert stored_violations(content) == [] and content.metadata["kernelspec"]["name"] == "python3"
    shown = [output.get("text") or dict(output.data) for output in content.cells[1].outputs]
    assert shown == ["one\ntwo\n", {"text/html": "<table></table>", "text/plain": "a  b"}, {"image/png": "AAAA"}]
    assert [cell.get("execution_count") for cell in content.cells] == [None, 1, 2] and content.cells[0].source == "# A"

    run.metadata.papermill.duration, run.cells[2].execution_count = 7.5, 4
    nbformat.write(run, copy)
    assert executed_source(source, copy) == stored, "the same outputs give the same bytes"
    content.cells[0].source = "# Another word"
    assert stored_violations(content) == [], "text may be mended without another run"
    content.cells[1].source += " + 1"
    content.cells[1].outputs[0].text = "written: /tmp/a.csv"
    assert stored_violations(content) == [OTHER_CODE, "cell 2 holds '/tmp/a.csv'"]

    run.metadata.papermill.parameters["seed"] = 1
    for wrong in (run, executed(new_code_cell("x = 2")), None):
        nbformat.write(wrong, copy) if wrong else copy.unlink()
        with pytest.raises(UserError, match="run.ipynb: no run of the present 00_a.ipynb; run ./run_all.sh to its end first"):
            executed_source(source, copy)


def test_the_notebooks_are_small_and_show_every_figure() -> None:
    assert sum(path.stat().st_size for path in paths.NOTEBOOKS.glob("*.ipynb")) <= MOST_BYTES
    shown = re.findall(r"!\[(\w+)\]", (paths.FIGURES / "README.md").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(path.stem for path in paths.FIGURES.glob("*.png"))


def test_a_notebook_opened_alone_finds_the_library_and_says_in_one_line_what_to_run(
    saerl_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (paths.NOTEBOOKS / "saerl_lib").resolve() == paths.ROOT / "saerl_lib", "a kernel starts in the folder of its notebook"
    imports = "from saerl_lib.artifacts import load_stage\nfrom saerl_lib.config import get_profile"
    InteractiveShell(history_length=0).run_cell(f"{imports}\nload_stage(get_profile('laptop'), 'store')")
    told = "stage store is missing; run ./run_all.sh --profile laptop with the same options (--only 02: this stage alone)"
    assert capsys.readouterr().out == f"{saerl_home}/laptop/store: {told}\n"


def test_registry_files_and_schemas_agree() -> None:
    assert sorted(path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")) == [notebook.stem for notebook in NOTEBOOKS]
    assert [notebook.number for notebook in NOTEBOOKS if notebook.number.isdigit()] == [f"{i:02d}" for i in range(11)]
    for position, notebook in enumerate(NOTEBOOKS):
        assert set(notebook.inputs) <= {n.number for n in NOTEBOOKS[:position]}, "inputs come from earlier notebooks"
    redraws = notebooks.select(NOTEBOOKS, only="09")[0]
    written = [(name, notebook) for notebook in NOTEBOOKS if notebook is not redraws for name in notebook.outputs]
    assert len(written) == len(dict(written)), "every output has one writer"
    assert set(redraws.outputs) == {name for name, _ in written if name.startswith("figure:")} and redraws.tables_only
    tables = {name: notebook.number for name, notebook in written if name.startswith("csv:")}
    own = {name: schema for name, schema in SCHEMAS.items() if publisher(name) != "reader"}  # written by a command
    assert tables == {f"csv:{name}": schema.notebook for name, schema in own.items()}
    assert set(notebooks.input_names(redraws, NOTEBOOKS)) == {name for name, number in tables.items() if number != "10"}
