"""The stored notebooks: short cells, text before code, outputs of this code; the runner on tiny ones: order and failures."""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from saerl_lib import notebooks, paths
from saerl_lib.artifacts import locked
from saerl_lib.notebooks import ENVIRONMENT, NOTEBOOKS, Notebook, RunOptions, UserError, output_files
from saerl_lib.report.figures import FIGURES
from saerl_lib.report.reproduction import code_of, executed_source, publisher
from saerl_lib.report.tables import SCHEMAS, SHOWS, WAITING

MAX_CODE_LINES = 15
MOST_BYTES = 4_200_000
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
    defaults = {name: ast.literal_eval(known[name]["default"]) for name in notebooks.PARAMETERS}
    assert defaults == {"profile": "laptop", "seed": 0, "seeds": 0}
    source = "".join(cell.source for cell in content.cells)
    drawn, declared = set(re.findall(r'draw\("(\w+)"', source)), {n[7:] for n in notebook.outputs if n.startswith("figure:")}
    assert notebook.number == "09" or not {name for name in drawn ^ declared if not set(WAITING) & set(FIGURES[name][0])}
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
    assert shown == ["one\ntwo\n", {"text/html": "<table></table>"}, {"image/png": "AAAA"}]
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
    assert sorted(shown) == sorted(path.stem for path in paths.FIGURES.glob("*.png")) and len(FIGURES) <= 20


def test_a_notebook_opened_alone_finds_the_library_and_says_in_one_line_what_to_run(
    saerl_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (paths.NOTEBOOKS / "saerl_lib").resolve() == paths.ROOT / "saerl_lib", "a kernel starts in the folder of its notebook"
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # the shell takes its place
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
    assert set(redraws.outputs) == {name for name, _ in written if name.startswith("figure:")}
    tables = {name: notebook.number for name, notebook in written if name.startswith("csv:")}
    own = {name: schema for name, schema in SCHEMAS.items() if schema.notebook[0].isdigit() and publisher(name) != "reader"}
    assert tables == {f"csv:{name}": schema.notebook for name, schema in own.items()}
    read = {name for name in notebooks.input_names(redraws, NOTEBOOKS) if name.startswith("csv:")}
    assert read == {name for name, number in tables.items() if number != "10"}


# The runner.


CELL = 'profile = "laptop"\nseed = 0\nseeds = 0'
WRITE = """from saerl_lib import paths
(paths.figure_data_dir(profile) / "{name}.csv").write_text("{text}")"""


@dataclass
class Lab:
    """A folder of tiny notebooks with a registry of its own, run under profile `smoke`."""

    folder: Path
    registry: tuple[Notebook, ...] = field(default_factory=tuple)

    def add(
        self, stem: str, *cells: str, outputs: tuple[str, ...] = (), inputs: tuple[str, ...] = (), text: str = "#"
    ) -> None:
        """Write a notebook with a text, the parameters cell and these code cells, and register it."""
        tagged = new_code_cell(CELL, metadata={"tags": ["parameters"]})
        notebook = new_notebook(cells=[new_markdown_cell(text), tagged, *map(new_code_cell, cells)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.folder / f"{stem}.ipynb")
        self.registry = (*(n for n in self.registry if n.stem != stem), Notebook(stem, outputs, inputs))

    def run(self, **options: object) -> int:
        return notebooks.run(RunOptions(**{"profile": "smoke", **options}), self.registry, self.folder)

    def reasons(self, **options: object) -> dict[str, list[str]]:
        """Why each notebook would run now."""
        profile, found = notebooks.get_profile("smoke", **options), {}
        for notebook in self.registry:
            parts = notebooks.current_parts(notebook, self.registry, profile, self.folder)
            found[notebook.number] = notebooks.reasons_to_run(notebook, parts, notebooks.read_record(notebook, "smoke"), "smoke")
        return found

    def pretend(self, output: object = {"outputs": {}}) -> None:
        """Leave what a run would leave, `output` in every file, without a kernel."""
        notebooks.prepare_folders("smoke")
        for notebook in self.registry:
            for path in (path for name in notebook.outputs for path in output_files(name, "smoke")):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(output))
            (notebooks.executed_dir("smoke") / f"{notebook.stem}.ipynb").write_text("executed")
            parts = notebooks.current_parts(notebook, self.registry, notebooks.get_profile("smoke"), self.folder)
            notebooks.write_record(notebook, "smoke", parts, 1.0)


@pytest.fixture
def lab(tmp_path: Path, saerl_home: Path) -> Lab:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    return Lab(folder)


def add_chain(lab: Lab) -> None:
    """Notebook 00 writes a table, 01 reads it."""
    lab.add("00_one", WRITE.format(name="one", text="1"), outputs=("csv:one",))
    lab.add("01_two", WRITE.format(name="two", text="2"), outputs=("csv:two",), inputs=("00",))


def test_it_runs_in_order_with_this_interpreter_and_the_parameters_then_skips(
    lab: Lab, saerl_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "jupyter" / "kernels" / "python3"
    wrong.mkdir(parents=True)
    (wrong / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "wrong", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    monkeypatch.chdir(tmp_path)
    cell = (
        "import json, os, sys\nfrom saerl_lib import paths\n"
        f"facts = [sys.executable, os.getcwd(), profile, seed, seeds, {{n: os.environ[n] for n in {[*ENVIRONMENT]}}}]\n"
        "_ = (paths.figure_data_dir(profile) / 'two.csv').write_text(json.dumps(facts))"
    )
    add_chain(lab)
    lab.add("01_two", cell, outputs=("csv:two",), inputs=("00",))
    before = dict(os.environ)
    assert lab.run(seed=7, seeds=3) == 2
    assert dict(os.environ) == before
    out = capsys.readouterr().out
    assert out.index("[01/02] 00_one (first time") < out.index("[02/02] 01_two (first time")
    assert str(saerl_home / "smoke" / "figures") in out
    facts = json.loads((saerl_home / "smoke/figures/data/two.csv").read_text())
    assert facts[:5] == [sys.executable, str(paths.ROOT), "smoke", 7, 3] and facts[5]["PYTHONHASHSEED"] == "0"
    assert {path.name for path in (saerl_home / "smoke" / "notebooks").iterdir()} == {"00_one.ipynb", "01_two.ipynb"}
    assert lab.run(seed=7, seeds=3) == 0
    assert "00_one is up to date" in capsys.readouterr().out


def test_what_makes_a_notebook_stale(lab: Lab, saerl_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_chain(lab)
    lab.pretend()
    assert lab.reasons() == {"00": [], "01": []}
    assert lab.reasons(seeds=3) == {"00": ["config changed"], "01": ["config changed"]}
    source = lab.folder / "00_one.ipynb"
    for what, change in (
        ("code", lambda patch: patch.setattr(notebooks, "code_hash", lambda *modules: "other")),
        ("packages", lambda patch: patch.setattr(notebooks, "LOCK", source)),
        ("data", lambda patch: patch.setenv("SAERL_DATA_DIR", str(lab.folder))),
    ):
        with monkeypatch.context() as patch:
            change(patch)
            assert lab.reasons()["00"] == [f"{what} changed"]
    stored = nbformat.read(source, as_version=4)
    stored.cells[1]["execution_count"] = 4
    nbformat.write(stored, source)
    assert lab.reasons() == {"00": [], "01": []}, "stored outputs are no part of the source"
    (saerl_home / "smoke/notebooks/01_two.ipynb").unlink()
    (saerl_home / "smoke/figures/data/one.csv").write_text("9")
    assert lab.reasons() == {"00": ["csv:one was altered"], "01": ["contents changed", "its executed copy is missing"]}
    (saerl_home / "smoke/figures/data/one.csv").unlink()
    assert lab.reasons()["00"] == ["csv:one is missing"]
    lab.pretend()
    lab.add("01_two", WRITE.format(name="two", text="3"), outputs=("csv:two",), inputs=("00",))
    assert lab.reasons() == {"00": [], "01": ["source changed"]}
    lab.add("00_one", outputs=("stage:world",))
    lab.pretend({"outputs": {"a.txt": "0" * 64}})
    (saerl_home / "smoke/world/a.txt").write_text("tampered")
    assert lab.reasons()["00"] == ["stage:world was altered"], "a stage is checked down to its files"


def test_a_figure_that_is_missing_is_drawn_again(lab: Lab, saerl_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab.add("00_one", "1 / 0", outputs=("csv:one", "figure:one"))
    draw = "from saerl_lib import paths\n[(paths.figures_dir(profile) / f'one.{e}').write_text('1') for e in ('png', 'pdf')]"
    lab.add("09_all", draw, outputs=("figure:one",), inputs=("00",))
    lab.pretend()
    (saerl_home / "smoke/figures/one.png").unlink()  # as after a kill of 09, which begins by removing its figures
    assert lab.run() == 1
    out = capsys.readouterr().out
    assert "00_one is up to date" in out and "09_all (last time 0:00:01; runs because figure:one is missing)" in out


def test_failing_cell_is_named_and_stops_the_run(lab: Lab, saerl_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab.add("00_one", "a = 1", "b = {}\nb['missing'] = a / 0", outputs=("csv:one",))
    lab.add("01_two", WRITE.format(name="two", text="2"), outputs=("csv:two",))
    with pytest.raises(UserError) as caught:
        lab.run()
    message = str(caught.value)
    assert "notebook 00_one failed in cell 4:\n    b = {}\n    b['missing'] = a / 0\n" in message
    assert "ZeroDivisionError: division by zero" in message
    copies = saerl_home / "smoke" / "notebooks"
    assert str(copies / "00_one.failed.ipynb") in message
    assert [path.name for path in copies.iterdir()] == ["00_one.failed.ipynb"]
    assert "01_two" not in capsys.readouterr().out
    assert notebooks.read_record(lab.registry[0], "smoke") is None


def test_a_dead_kernel_and_an_early_exit_are_failures_even_with_an_old_output(lab: Lab, saerl_home: Path) -> None:
    lab.add("00_one", "import os\nos.kill(os.getpid(), 9)", outputs=("csv:one",))
    notebooks.prepare_folders("smoke")
    (saerl_home / "smoke/figures/data/one.csv").write_text("old")
    with pytest.raises(UserError, match="notebook 00_one failed in cell 3:\n    import os\n(.*\n)*DeadKernelError"):
        lab.run()
    lab.add("00_one", "import sys\nsys.exit(0)", WRITE.format(name="one", text="1"), outputs=("csv:one",))
    with pytest.raises(UserError, match="00_one failed: declared outputs csv:one are missing"):
        lab.run()
    assert notebooks.read_record(lab.registry[0], "smoke") is None


def test_undeclared_parameter_and_missing_notebook_leave_what_is_there(lab: Lab, saerl_home: Path) -> None:
    lab.add("00_one", outputs=("csv:one",))
    lab.pretend()
    source = lab.folder / "00_one.ipynb"
    source.write_text(source.read_text().replace("seeds = 0", "sedes = 0"))
    with pytest.raises(UserError, match="00_one does not know the parameter seeds;.*profile, seed, sedes"):
        lab.run()
    source.unlink()
    with pytest.raises(UserError, match="00_one.ipynb is missing"):
        lab.run()
    assert (saerl_home / "smoke/figures/data/one.csv").is_file()


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_works(lab: Lab, saerl_home: Path) -> None:
    add_chain(lab)
    lab.pretend()
    with locked(saerl_home / "smoke/runs/lock", OSError()):
        with pytest.raises(UserError, match=f"another run works in {saerl_home / 'smoke'}; wait for it"):
            lab.run()
    assert lab.run() == 0


def test_one_digit_selects_too() -> None:
    assert [n.number for n in notebooks.select(NOTEBOOKS, start="7")] == ["07", "08", "09", "10"]
    assert notebooks.select(NOTEBOOKS) == NOTEBOOKS and notebooks.select(NOTEBOOKS, only="9")[0].stem == "09_figures"
