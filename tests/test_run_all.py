"""The runner on tiny notebooks: order, skipping, failures with a place and a fix, and the right interpreter."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from saerl_lib import notebooks, paths
from saerl_lib.cli import main
from saerl_lib.execution import ENVIRONMENT, embed_figures, ended_early
from saerl_lib.notebooks import (
    NOTEBOOKS,
    Notebook,
    RunOptions,
    UserError,
    alone,
    duration,
    find,
    output_files,
    prepare_folders,
    read_record,
    run,
    select,
)

PARAMETERS = 'profile = "laptop"\nseed = 0\nseeds = 0'
WRITE = """from pathlib import Path
from saerl_lib import paths
folder = paths.figure_data_dir(profile)
Path(folder / "{name}.csv").write_text("{text}")"""


@dataclass
class Lab:
    """A folder of tiny notebooks with a registry of its own."""

    folder: Path
    registry: tuple[Notebook, ...] = field(default_factory=tuple)

    def add(self, stem: str, *cells: str, outputs: tuple[str, ...] = (), inputs: tuple[str, ...] = ()) -> Notebook:
        """Write a notebook with a heading, the parameters cell and these code cells, and register it."""
        tagged = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        notebook = new_notebook(cells=[new_markdown_cell("# " + stem), tagged, *map(new_code_cell, cells)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.folder / f"{stem}.ipynb")
        entry = Notebook(stem[:2], stem, stem, outputs, inputs)
        self.registry = (*(n for n in self.registry if n.stem != stem), entry)
        return entry

    def run(self, **options: object) -> int:
        return run(RunOptions(**{"profile": "smoke", **options}), self.registry, self.folder)


@pytest.fixture
def lab(tmp_path: Path, saerl_home: Path) -> Lab:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    return Lab(folder)


def add_chain(lab: Lab) -> None:
    """Notebook 00 writes a table, 01 reads it."""
    lab.add("00_one", WRITE.format(name="one", text="1"), outputs=("csv:one",))
    lab.add("01_two", WRITE.format(name="two", text="2"), outputs=("csv:two",), inputs=("notebook:00",))


def test_runs_in_order_then_skips_then_follows_a_change(
    lab: Lab, saerl_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_chain(lab)
    assert lab.run() == 2
    first = capsys.readouterr().out
    assert first.index("[01/02] 00_one (first time") < first.index("[02/02] 01_two (first time")
    assert str(saerl_home / "smoke" / "figures") in first
    for name in ("00_one.ipynb", "00_one.html", "01_two.ipynb", "01_two.html"):
        assert (saerl_home / "smoke" / "notebooks" / name).stat().st_size > 0
    assert list((saerl_home / "smoke" / "notebooks").glob(".*")) == []

    assert lab.run() == 0
    assert "00_one is up to date" in capsys.readouterr().out

    lab.add("01_two", WRITE.format(name="two", text="3"), outputs=("csv:two",), inputs=("notebook:00",))
    assert lab.run() == 1
    assert "01_two (last time " in (changed := capsys.readouterr().out)
    assert "source changed" in changed
    assert (saerl_home / "smoke/figures/data/two.csv").read_text() == "3"


def test_altered_output_runs_its_notebook_and_what_reads_it_alone_if_contents_differ(lab: Lab, saerl_home: Path) -> None:
    add_chain(lab)
    lab.run()
    table = saerl_home / "smoke/figures/data/one.csv"
    table.write_text("9")
    assert lab.run() == 1  # 00 writes the same bytes again, so 01 stays up to date
    assert table.read_text() == "1"


def reasons(lab: Lab, **options: object) -> dict[str, list[str]]:
    """Why each notebook of the lab would run now, without running it."""
    given = RunOptions(**{"profile": "smoke", **options})
    profile = notebooks.get_profile(given.profile, given.seeds, given.seed)
    known = notebooks.definitions(lab.registry, profile, lab.folder)
    found = {}
    for notebook in lab.registry:
        parts = notebooks.current_parts(notebook, known, lab.registry, "smoke")
        found[notebook.number] = notebooks.reasons_to_run(notebook, parts, read_record(notebook, "smoke"), "smoke")
    return found


def record_as_done(lab: Lab) -> None:
    """Write the outputs and the records that a run of the lab would leave, without a kernel."""
    known = notebooks.definitions(lab.registry, notebooks.get_profile("smoke"), lab.folder)
    for notebook in lab.registry:
        for path in (path for name in notebook.outputs for path in output_files(name, "smoke")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"outputs": {}}))
        parts = notebooks.current_parts(notebook, known, lab.registry, "smoke")
        hashes = {name: notebooks.output_hash(name, "smoke") or "" for name in notebook.outputs}
        notebooks.write_record(notebook, "smoke", notebooks.Record(parts, hashes, 1.0))


def test_what_makes_a_notebook_stale(lab: Lab, saerl_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_chain(lab)
    record_as_done(lab)
    assert reasons(lab) == {"00": [], "01": []}
    assert reasons(lab, seeds=3)["00"] == ["config changed"]
    assert reasons(lab, seed=1)["01"] == ["config changed", "inputs changed"]
    with monkeypatch.context() as patch:
        patch.setattr(notebooks, "notebook_code", lambda path: "other")
        assert reasons(lab)["00"] == ["code changed"]
    (lab.folder.parent / "lock").write_text("x==1\n")
    monkeypatch.setattr(notebooks, "LOCK", lab.folder.parent / "lock")
    assert reasons(lab)["00"] == ["packages changed"]


def test_contents_of_an_input_and_stored_outputs(lab: Lab, saerl_home: Path) -> None:
    add_chain(lab)
    record_as_done(lab)
    source = lab.folder / "00_one.ipynb"
    stored = nbformat.read(source, as_version=4)
    stored.cells[1]["execution_count"] = 4
    nbformat.write(stored, source)
    assert reasons(lab) == {"00": [], "01": []}
    (saerl_home / "smoke/figures/data/one.csv").write_text("9")
    assert reasons(lab) == {"00": ["csv:one was altered"], "01": ["contents changed"]}
    (saerl_home / "smoke/figures/data/one.csv").unlink()
    assert reasons(lab)["00"] == ["csv:one is missing"]


def test_a_stage_is_checked_down_to_its_files(lab: Lab, saerl_home: Path) -> None:
    lab.add("00_one", outputs=("stage:world",))
    record_as_done(lab)
    folder = saerl_home / "smoke" / "world"
    (folder / "manifest.json").write_text(json.dumps({"outputs": {"a.txt": "0" * 64}}))
    notebook = lab.registry[0]
    record = read_record(notebook, "smoke")
    assert record is not None
    whole = replace(record, outputs={"stage:world": notebooks.output_hash("stage:world", "smoke") or ""})
    (folder / "a.txt").write_text("tampered")
    assert notebooks.reasons_to_run(notebook, record.parts, whole, "smoke") == ["stage:world was altered"]


def test_a_notebook_of_tables_alone_ignores_the_configuration(lab: Lab, saerl_home: Path) -> None:
    add_chain(lab)
    lab.add("09_all", outputs=("figure:one",), inputs=("csv:one",))
    lab.registry = (*lab.registry[:2], replace(lab.registry[2], tables_only=True))
    record_as_done(lab)
    assert reasons(lab, seed=5)["09"] == []
    (saerl_home / "smoke/figures/data/one.csv").write_text("9")
    assert reasons(lab)["09"] == ["contents changed"]


def test_failing_cell_is_named_and_stops_the_run(
    lab: Lab, saerl_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_dead_kernel_is_named(lab: Lab) -> None:
    lab.add("00_one", "import os\nos.kill(os.getpid(), 9)")
    with pytest.raises(UserError, match="notebook 00_one failed in cell 3:\n    import os\n(.*\n)*DeadKernelError"):
        lab.run()


def test_early_exit_is_a_failure_even_with_an_old_output(lab: Lab, saerl_home: Path) -> None:
    lab.add("00_one", "import sys\nsys.exit(0)", WRITE.format(name="one", text="1"), outputs=("csv:one",))
    with pytest.raises(UserError, match="00_one failed: it ended early, .*declared output csv:one is missing"):
        lab.run()
    (saerl_home / "smoke/figures/data/one.csv").write_text("old")
    with pytest.raises(UserError, match="it ended early, after cell 3; declared output csv:one was not written by this run"):
        lab.run()
    assert read_record(lab.registry[0], "smoke") is None


def test_undeclared_parameter_is_an_error(lab: Lab) -> None:
    entry = lab.add("00_one", "a = 1")
    source = lab.folder / "00_one.ipynb"
    source.write_text(source.read_text().replace("seeds = 0", "sedes = 0"))
    assert entry.parameters == ("profile", "seed", "seeds")
    with pytest.raises(UserError, match="00_one does not know the parameter seeds;.*profile, seed, sedes"):
        lab.run()


def test_kernel_is_this_interpreter_and_gets_the_parameters(
    lab: Lab, saerl_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        "text = json.dumps(facts)\nprint('from the kernel')\n"
        "_ = (paths.figure_data_dir(profile) / 'facts.csv').write_text(text)"
    )
    lab.add("00_one", cell, outputs=("csv:facts",))
    before = dict(os.environ)
    lab.run(seed=7, seeds=3)
    facts = json.loads((saerl_home / "smoke/figures/data/facts.csv").read_text())
    assert facts[0] == sys.executable
    assert facts[1:5] == [str(paths.ROOT), "smoke", 7, 3]
    assert facts[5]["PYTHONHASHSEED"] == "0"
    assert dict(os.environ) == before


def test_force_removes_the_stage_and_only_picks_one(lab: Lab, saerl_home: Path) -> None:
    cell = (
        "from saerl_lib import paths\nfolder = paths.profile_dir(profile) / 'world'\n"
        "folder.mkdir()\n_ = (folder / 'manifest.json').write_text('{\"outputs\": {}}')"
    )
    lab.add("00_one", cell, outputs=("stage:world",))  # mkdir fails when the stage folder is still there
    lab.add("01_two", "a = 1")
    assert lab.run(only="0") == 1
    (saerl_home / "smoke" / "world" / "old.txt").write_text("old")
    assert lab.run(only="00", force=True) == 1
    assert not (saerl_home / "smoke" / "world" / "old.txt").exists()


def test_missing_table_names_the_file(lab: Lab, saerl_home: Path) -> None:
    lab.add("09_figures", inputs=("csv:one",))
    with pytest.raises(UserError, match="09_figures needs .*one.csv, which is missing"):
        lab.run()


def test_missing_notebook_is_named(lab: Lab) -> None:
    lab.add("00_one")
    (lab.folder / "00_one.ipynb").unlink()
    with pytest.raises(UserError, match="00_one.ipynb is missing"):
        lab.run()


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_works(lab: Lab, saerl_home: Path) -> None:
    add_chain(lab)
    prepare_folders("smoke")
    with alone("smoke"), pytest.raises(UserError, match=f"another run works in {saerl_home / 'smoke'}; wait for it"):
        lab.run()
    assert lab.run() == 2


def test_unwritable_output_folder_names_path_and_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SAERL_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write into .*file/smoke/notebooks: .*SAERL_HOME"):
        prepare_folders("smoke")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "huge"], "profile 'huge' does not exist; choose one of smoke, laptop"),
        (["--only", "12"], "notebook '12' does not exist; choose one of 00, 01"),
        (["--from", "x"], "notebook 'x' does not exist"),
        (["--from", "01", "--only", "02"], "exclude each other"),
        (["--seeds", "0"], "--seeds 0 must be at least 1"),
        (["--seed", "-1"], "--seed -1 must be 0 or more"),
    ],
)
def test_bad_options_end_with_one_line_and_exit_code_1(
    saerl_home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["run", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert error.count("\n") == 1
    assert not saerl_home.exists()


def test_debug_keeps_the_traceback(saerl_home: Path) -> None:
    with pytest.raises(UserError):
        main(["run", "--only", "12", "--debug"])


def test_select_from_and_only() -> None:
    assert [n.number for n in select(NOTEBOOKS, start="7")] == ["07", "08", "09", "10"]
    assert [n.stem for n in select(NOTEBOOKS, only="9")] == ["09_figures"]
    assert select(NOTEBOOKS) == NOTEBOOKS
    assert find("07") is find("7")


def test_output_files_by_kind(saerl_home: Path) -> None:
    smoke = saerl_home / "smoke"
    assert output_files("csv:filter", "smoke") == (smoke / "figures/data/filter.csv",)
    assert output_files("figure:filter", "smoke") == (smoke / "figures/filter.png", smoke / "figures/filter.pdf")
    assert output_files("stage:world", "smoke") == (smoke / "world/manifest.json",)
    with pytest.raises(ValueError, match="'filter' must start with csv:"):
        output_files("filter", "smoke")


def test_durations() -> None:
    assert [duration(s) for s in (0, 59.9, 60, 1390, 3600)] == ["0.0 s", "59.9 s", "1 min 0 s", "23 min 10 s", "1 h 0 min"]


def test_ended_early_counts_cells_as_stored() -> None:
    ran, empty, pending = new_code_cell("a", execution_count=1), new_code_cell(" "), new_code_cell("b")
    added = new_code_cell("profile = 1", execution_count=2, metadata={"tags": ["injected-parameters"]})
    assert ended_early(new_notebook(cells=[ran, added, empty])) is None
    assert ended_early(new_notebook(cells=[new_markdown_cell("x"), ran, added, pending])) == "after cell 2"


def test_figures_become_attachments(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"png")
    notebook = new_notebook(cells=[new_markdown_cell("![A](../figures/a.png) ![B](../figures/b.png)")])
    embed_figures(notebook, tmp_path)
    assert notebook.cells[0].source == "![A](attachment:a.png) ![B](../figures/b.png)"
    assert notebook.cells[0].attachments == {"a.png": {"image/png": "cG5n"}}
