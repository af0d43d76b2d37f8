"""Get-or-compute: a stage is trusted only when its key and every output agree with the manifest written last."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from saerl_lib import artifacts, paths
from saerl_lib.artifacts import MANIFEST, ArtifactError, Stage, get_or_compute, imported_names, read_json
from saerl_lib.config import get_profile

SMOKE = get_profile("smoke")


class Counter:
    """A compute function that counts its calls and writes one text."""

    def __init__(self, text: str = "12") -> None:
        self.text = text
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "deep").mkdir()
        (folder / "deep" / "value.txt").write_text(self.text)


def compute(counter: Callable[[Path], None], config: dict[str, int] | None = None, inputs: tuple[Stage, ...] = ()) -> Stage:
    return get_or_compute(SMOKE, "thing", config or {"size": 1}, counter, inputs)


def test_second_call_computes_nothing_and_the_manifest_says_what_was_made(saerl_home: Path) -> None:
    counter = Counter()
    first, second = compute(counter), compute(counter)
    assert (counter.calls, first.computed, second.computed) == (1, True, False) and first.key == second.key
    assert second.path("deep/value.txt").read_text() == "12" and first.folder == saerl_home / "smoke" / "thing"
    manifest = read_json(first.folder / MANIFEST)
    assert manifest["config"] == {"size": 1}
    assert manifest["outputs"] == {"deep/value.txt": artifacts.file_sha256(first.path("deep/value.txt"))}
    made = manifest["provenance"]
    assert set(made) == {"commit", "versions", "processor", "threads"}
    assert made["processor"].endswith(torch.backends.cpu.get_cpu_capability()) and made["threads"] == torch.get_num_threads()


def test_changed_config_and_changed_input_compute_again(saerl_home: Path) -> None:
    counter = Counter()
    compute(counter)
    assert compute(counter, {"size": 2}).computed
    keys = [compute(counter, inputs=(Stage("before", saerl_home, key, False),)).key for key in ("a", "a", "b")]
    assert keys[0] == keys[1] != keys[2]
    assert counter.calls == 4


@pytest.mark.parametrize("damage", ["tamper", "delete", "manifest"])
def test_damaged_output_is_computed_again(saerl_home: Path, damage: str) -> None:
    counter = Counter()
    stage = compute(counter)
    if damage == "tamper":
        stage.path("deep/value.txt").write_text("13")
    elif damage == "delete":
        stage.path("deep/value.txt").unlink()
    else:
        stage.path("manifest.json").write_text("{half")
    assert compute(counter).computed
    assert stage.path("deep/value.txt").read_text() == "12"


def test_a_failure_leaves_nothing_of_itself_and_keeps_the_finished_stage(saerl_home: Path) -> None:
    def broken(folder: Path) -> None:
        torch.set_num_threads(7)
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        compute(broken)
    assert not (saerl_home / "smoke").exists() and torch.get_num_threads() == threads
    stage = compute(Counter())
    with pytest.raises(KeyboardInterrupt):
        compute(broken, {"size": 2})
    assert artifacts.is_complete(stage.folder, stage.key)


def test_leftover_of_a_killed_stage_is_dropped_and_nothing_written_is_an_error(saerl_home: Path) -> None:
    leftover = saerl_home / "smoke" / ".thing.partial"
    leftover.mkdir(parents=True)
    (leftover / "old.txt").write_text("old")
    assert not compute(Counter()).path("old.txt").exists() and not leftover.exists()
    with pytest.raises(ArtifactError, match="stage thing wrote no output"):
        compute(lambda folder: None, {"size": 2})


def test_write_json_is_atomic_and_names_an_unwritable_path(tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "new" / "a.json", {"b": 1, "a": 2})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"a": 2, "b": 1}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write .*file/a.json"):
        artifacts.write_json(tmp_path / "file" / "a.json", {})


def test_a_stage_follows_the_modules_that_it_really_imports(tmp_path: Path) -> None:
    """A copy of the sources in which a used module changes, or one that the stage never reaches."""
    shutil.copytree(paths.ROOT / "saerl_lib", tmp_path / "a" / "saerl_lib", ignore=shutil.ignore_patterns("__pycache__"))
    module = "saerl_lib.encode.pool"
    before = artifacts.code_hash(module, root=tmp_path / "a")
    assert before == artifacts.code_hash(module)
    unused = ("report/figures.py", "report/claims.csv", "notebooks.py")
    for place, changes in (("encode/pool.py", True), *((place, False) for place in unused)):
        root = tmp_path / place.replace("/", "-")
        shutil.copytree(tmp_path / "a", root)
        with (root / "saerl_lib" / place).open("a", encoding="utf-8") as handle:
            handle.write("# changed\n")
        assert (artifacts.code_hash(module, root=root) != before) is changes


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_message_and_leaves_nothing(saerl_home: Path) -> None:
    def text(folder: Path) -> None:
        (folder / "half.txt").write_text("begun")
        with open("/dev/full", "w", encoding="utf-8") as device:  # the kernel answers every write with "no space left"
            device.write("x" * 100_000)

    def tensors(folder: Path) -> None:  # safetensors reports the system's error in words of its own
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    for work in (text, tensors):
        with pytest.raises(ArtifactError, match="stage thing cannot write .*No space left on device.*free space or set SAERL"):
            compute(work)
        assert not list((saerl_home / "smoke").glob("*thing*"))


ROOMS = ("data", "encode", "properties", "plan", "train", "report")
"""Rooms of the core, in the order in which they may import: each those before it."""
OUTSIDE = ("saerl_lib.studies", "saerl_lib.world")
ENTRIES = ("saerl_lib.cli", "saerl_lib.notebooks", "saerl_lib.__main__")


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Module of the library -> modules of the library that it imports."""
    sources = {".".join(p.relative_to(paths.ROOT).with_suffix("").parts): p for p in (paths.ROOT / "saerl_lib").rglob("*.py")}
    return {name: imported_names(path.read_text(encoding="utf-8")) & set(sources) for name, path in sources.items()}


def room(module: str) -> str:
    return (module.split(".") + [""])[1]


def test_the_core_imports_no_study_and_no_world_and_its_rooms_point_one_way(imports: dict[str, set[str]]) -> None:
    core = [module for module in imports if not module.startswith(OUTSIDE) and module not in ENTRIES]
    pairs = [(module, name) for module in core for name in imports[module]]
    wrong = [pair for pair in pairs if pair[1].startswith(OUTSIDE)]
    for module, name in pairs:
        both = room(module) in ROOMS and room(name) in ROOMS
        if both and ROOMS.index(room(name)) > ROOMS.index(room(module)) and name != "saerl_lib.report.statistics":
            wrong.append((module, name))
    assert wrong == [] and len(pairs) > 100


def test_no_stage_is_computed_anew_because_a_table_or_figure_looks_otherwise(imports: dict[str, set[str]]) -> None:
    shown = {f"saerl_lib.report.{name}" for name in ("tables", "reproduction", "plots", "figures", "page", "study")}
    stages = [path for path in (paths.ROOT / "saerl_lib").rglob("*.py") if "get_or_compute(" in path.read_text(encoding="utf-8")]
    for path in stages:
        module = ".".join(path.relative_to(paths.ROOT).with_suffix("").parts)
        reached, waiting = set(), {module} - {"saerl_lib.artifacts"}
        while waiting:
            reached |= waiting
            waiting = set().union(*(imports[name] for name in waiting)) - reached
        assert not reached & shown, module
    assert len(stages) > 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_has_the_memory_of_its_own() -> None:
    """Not that of the larger one that started it, as `getrusage` has."""
    child = "from saerl_lib.artifacts import resident_mib; print(resident_mib('VmHWM'))"
    parent = f"import subprocess, sys; held = bytearray(2**31); subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    found = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True, cwd=paths.ROOT).stdout
    assert 10 < float(found) < 1500
