"""The runner on tiny notebooks: order, skipping, failures with a place and a fix, and the right interpreter."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from saerl_lib import notebooks, paths
from saerl_lib.notebooks import ENVIRONMENT, NOTEBOOKS, Notebook, RunOptions, UserError, output_files, read_record, select

PARAMETERS = 'profile = "laptop"\nseed = 0\nseeds = 0'
WRITE = """from saerl_lib import paths
(paths.figure_data_dir(profile) / "{name}.csv").write_text("{text}")"""


@dataclass
class Lab:
    """A folder of tiny notebooks with a registry of its own, run under profile `smoke`."""

    folder: Path
    registry: tuple[Notebook, ...] = field(default_factory=tuple)

    def add(
        self, stem: str, *cells: str, outputs: tuple[str, ...] = (), inputs: tuple[str, ...] = (), text: str = "#", **kind: bool
    ) -> None:
        """Write a notebook with a text, the parameters cell and these code cells, and register it."""
        tagged = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        notebook = new_notebook(cells=[new_markdown_cell(text), tagged, *map(new_code_cell, cells)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.folder / f"{stem}.ipynb")
        self.registry = (*(n for n in self.registry if n.stem != stem), Notebook(stem, outputs, inputs, **kind))

    def run(self, **options: object) -> int:
        return notebooks.run(RunOptions(**{"profile": "smoke", **options}), self.registry, self.folder)

    def reasons(self, **options: object) -> dict[str, list[str]]:
        """Why each notebook would run now."""
        profile, found = notebooks.get_profile("smoke", **options), {}
        for notebook in self.registry:
            parts = notebooks.current_parts(notebook, self.registry, profile, self.folder)
            found[notebook.number] = notebooks.reasons_to_run(notebook, parts, read_record(notebook, "smoke"), "smoke")
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
        f"facts = [sys.executable, os.getcwd(), profile, seed, seeds, {{n: os.environ[n] for n in {list(ENVIRONMENT)}}}]\n"
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


def test_a_notebook_of_tables_alone_ignores_the_configuration_and_redraws_what_is_missing(
    lab: Lab, saerl_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.add("00_one", "1 / 0", outputs=("csv:one", "figure:one"))
    draw = "from saerl_lib import paths\n[(paths.figures_dir(profile) / f'one.{e}').write_text('1') for e in ('png', 'pdf')]"
    lab.add("09_all", draw, outputs=("figure:one",), inputs=("00",), tables_only=True)
    lab.pretend()
    assert lab.reasons(seed=5)["09"] == []
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
    assert read_record(lab.registry[0], "smoke") is None


def test_a_dead_kernel_and_an_early_exit_are_failures_even_with_an_old_output(lab: Lab, saerl_home: Path) -> None:
    lab.add("00_one", "import os\nos.kill(os.getpid(), 9)", outputs=("csv:one",))
    notebooks.prepare_folders("smoke")
    (saerl_home / "smoke/figures/data/one.csv").write_text("old")
    with pytest.raises(UserError, match="notebook 00_one failed in cell 3:\n    import os\n(.*\n)*DeadKernelError"):
        lab.run()
    lab.add("00_one", "import sys\nsys.exit(0)", WRITE.format(name="one", text="1"), outputs=("csv:one",))
    with pytest.raises(UserError, match="00_one failed: it ended early, after cell 3; declared output csv:one is missing"):
        lab.run()
    assert read_record(lab.registry[0], "smoke") is None


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
    with notebooks.alone("smoke"), pytest.raises(UserError, match=f"another run works in {saerl_home / 'smoke'}; wait for it"):
        lab.run()
    assert lab.run() == 0


def test_selection_and_files_of_an_output(saerl_home: Path) -> None:
    assert [n.number for n in select(NOTEBOOKS, start="7")] == ["07", "08", "09", "10"] and select(NOTEBOOKS) == NOTEBOOKS
    assert [n.stem for n in select(NOTEBOOKS, only="9")] == ["09_figures"]
    smoke = saerl_home / "smoke"
    assert output_files("csv:filter", "smoke") == (smoke / "figures/data/filter.csv",)
    assert output_files("figure:filter", "smoke") == (smoke / "figures/filter.png", smoke / "figures/filter.pdf")
    assert output_files("stage:world", "smoke") == (smoke / "world/manifest.json",)
