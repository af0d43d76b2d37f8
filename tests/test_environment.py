"""One source of truth for versions, and `run_all.sh` finds or makes an environment that holds them."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from saerl_lib import needs
from saerl_lib.notebooks import ENVIRONMENT
from saerl_lib.paths import ROOT

LOCK = ROOT / "requirements.lock"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DISTRIBUTIONS = {"sklearn": "scikit-learn", "sae_lens": "sae-lens", "yaml": "PyYAML"}
"""Distribution by import name, where the two differ."""


def direct_requirements() -> list[Requirement]:
    project = PROJECT["project"]
    return [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["test"]]


# The check that decides whether an environment may be used.


def test_this_environment_holds_the_lock(capsys: pytest.CaptureFixture[str]) -> None:
    assert needs.main(["--packages"]) == 0, capsys.readouterr().out


def test_missing_and_other_versions_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = tmp_path / "lock"
    lock.write_text("# comment\n\nNumPy==0.0.1\n" + "".join(f"saerl-absent-{i}==1.0\n" for i in range(7)))
    assert needs.check_packages(lock) == 1
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"numpy is [\d.]+, locked is 0.0.1", lines[0])
    assert lines[1] == "saerl-absent-0 1.0 is not installed"
    assert lines[-1] == "and 3 more"


@pytest.mark.parametrize("line", ["numpy>=2", "-r other.txt", "numpy == 2.4.6"])
def test_lock_line_that_pins_nothing_is_an_error(tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lock").write_text(f"a==1\n{line}\n")
    assert needs.check_packages(tmp_path / "lock") == 1
    assert f"lock line 2: {line!r}" in capsys.readouterr().out
    assert needs.check_packages(tmp_path / "absent.lock") == 1
    assert "absent.lock" in capsys.readouterr().out


def test_old_python_is_rejected(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(needs, "MINIMUM_PYTHON", (99, 0))
    assert needs.check_packages() == 1 and "older than 99.0" in capsys.readouterr().out


# pyproject.toml, requirements.lock and environment.yml agree.


def test_lock_satisfies_every_direct_dependency() -> None:
    locked = needs.read_lock(LOCK)
    assert len(LOCK.read_text().splitlines()) == len(locked), "no package is locked twice"
    for requirement in direct_requirements():
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier, f"{requirement.name} has no version range in pyproject.toml"
        assert requirement.specifier.contains(version), f"{requirement.name} {version} does not satisfy {requirement}"


def test_conda_environment_refers_to_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == ["-r requirements.lock"]
    assert environment["name"] == PROJECT["project"]["name"]
    python = next(entry for entry in environment["dependencies"] if str(entry).startswith("python="))
    assert PROJECT["project"]["requires-python"] == f">={python.removeprefix('python=')}"
    assert python.removeprefix("python=") == ".".join(map(str, needs.MINIMUM_PYTHON))


def test_every_import_is_a_direct_dependency() -> None:
    extra = map(Requirement, PROJECT["project"]["optional-dependencies"]["ray"])
    declared = {canonicalize_name(requirement.name) for requirement in [*direct_requirements(), *extra]}
    ours = {"saerl_lib", "tests", *(path.stem for path in (ROOT / "tests").glob("*.py"))}
    for path in sorted([*(ROOT / "saerl_lib").rglob("*.py"), *(ROOT / "tests").glob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            for top in {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names):
                name = canonicalize_name(DISTRIBUTIONS.get(top, top))
                assert top in ours or name in declared, f"{path.name} imports {top}, not in pyproject.toml"


def test_data_files_travel_with_the_package() -> None:
    packed = PROJECT["tool"]["setuptools"]["package-data"]
    for path in (path for path in (ROOT / "saerl_lib").rglob("*") if path.suffix in (".json", ".safetensors", ".csv", ".j2")):
        room = path.relative_to(ROOT).parts[1]
        inside = str(path.relative_to(ROOT / "saerl_lib" / room))
        assert any(fnmatch(inside, pattern) for pattern in packed[f"saerl_lib.{room}"]), f"{path} is not package data"


def test_licence_and_citation() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n" in text and "Copyright 2026 The authors of this reproduction" in text
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["license"], citation["version"]) == ("Apache-2.0", PROJECT["project"]["version"])
    assert citation["references"][0]["url"].endswith("2605.27354")


BARE = (*(f"{name}.py" for name in ("__init__", "plan/__init__", "paths", "config", "settings", "needs")), "data/hub.csv")
"""What is imported before any package is installed."""

# run_all.sh, in a copy of the project that holds nothing but the scripts and a stub of the package.


def stub_project(folder: Path, lock: str) -> Path:
    """A project whose `python -m saerl_lib run ...` prints interpreter, arguments, and environment."""
    project = folder / "project"
    (project / "saerl_lib").mkdir(parents=True)
    (project / ".ci").mkdir()
    for name in ("run_all.sh", ".ci/run", *(f"saerl_lib/{name}" for name in BARE)):
        (project / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    (project / "requirements.lock").write_text(lock)
    (project / "saerl_lib" / "__main__.py").write_text(
        "import os, sys\nprint('prefix', sys.prefix)\nprint('arguments', sys.argv[1:])\nprint('cwd', os.getcwd())\n"
        "for name in sorted(os.environ):\n    print(name + '=' + os.environ[name])\n"
    )
    return project


def call(script: Path, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the stub project without any environment that the caller has activated."""
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX", *ENVIRONMENT)}
    kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    kept = {name: value for name, value in kept.items() if not name.startswith(("SAERL_", "PYTHON"))}
    return subprocess.run([str(script), *arguments], cwd=cwd, env=kept | environment, capture_output=True, text=True)


def fake_python(prefix: Path, body: str) -> None:
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").write_text(f"#!/bin/sh\n{body}\n")
    (prefix / "bin" / "python").chmod(0o755)


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_active_environment_is_used_when_it_passes(tmp_path: Path, variable: str) -> None:
    project = stub_project(tmp_path, "")
    fake_python(tmp_path / "active", f'echo "through active"; exec {sys.executable} "$@"')
    result = call(
        project / "run_all.sh", "--profile", "smoke", "--only", "07", cwd=tmp_path,
        SAERL_HOME="out", SAERL_DATA_DIR="/data", **{variable: str(tmp_path / "active")},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"environment: active, {tmp_path / 'active' / 'bin' / 'python'}"
    assert "arguments ['run', '--profile', 'smoke', '--only', '07']" in lines
    assert f"cwd {project}" in lines
    assert f"SAERL_HOME={tmp_path / 'out'}" in lines and "SAERL_DATA_DIR=/data" in lines
    assert {f"{name}={value}" for name, value in ENVIRONMENT.items()} <= set(lines)
    assert not (project / ".venv").exists()


def test_own_venv_is_used_when_the_active_one_lacks_packages(tmp_path: Path) -> None:
    project = stub_project(tmp_path, "")
    fake_python(tmp_path / "active", "exit 1")
    fake_python(project / ".venv", f'exec {sys.executable} "$@"')
    result = call(project / "run_all.sh", cwd=tmp_path, VIRTUAL_ENV=str(tmp_path / "active"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"environment: .venv, {project}/.venv/bin/python\n")


def make_wheel(folder: Path, name: str, version: str) -> None:
    """An installable package with one empty module."""
    folder.mkdir()
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def test_venv_is_made_once_from_the_lock_and_a_failed_install_stops(tmp_path: Path) -> None:
    project = stub_project(tmp_path, "saerl_probe==1.0\n")
    wheels = tmp_path / "wheels"
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    assert "--profile smoke|laptop" in call(project / "run_all.sh", "--help", cwd=tmp_path).stdout
    assert not (project / ".venv").exists(), "help needs no environment"
    failed = call(project / "run_all.sh", cwd=tmp_path, **offline)
    assert failed.returncode != 0
    assert "saerl_probe==1.0" in failed.stderr and "prefix" not in failed.stdout
    make_wheel(wheels, "saerl_probe", "1.0")
    first = call(project / "run_all.sh", "--seeds", "2", cwd=tmp_path, **offline)
    assert first.returncode == 0, first.stderr
    assert re.search(r"environment: installed in \d+ s\n", first.stdout)
    assert f"prefix {project / '.venv'}\n" in first.stdout
    second = call(project / "run_all.sh", cwd=tmp_path, **offline)
    assert second.returncode == 0
    assert "install" not in second.stdout.split("prefix")[0]


def test_ci_runs_the_tests_with_the_data_beside_the_checkout(tmp_path: Path) -> None:
    project = stub_project(tmp_path, "")
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (project / "test_data.py").write_text("import os\ndef test_data():\n    assert 0, os.environ['SAERL_DATA_DIR']\n")
    active = {"VIRTUAL_ENV": sys.prefix}
    found = call(project / ".ci" / "run", "-p", "no:cacheprovider", cwd=tmp_path, **active)
    assert found.returncode == 1
    assert f"AssertionError: {tmp_path / 'shared' / 'data'}\n" in found.stdout
    given = call(project / ".ci" / "run", "-p", "no:cacheprovider", cwd=tmp_path, SAERL_DATA_DIR="/elsewhere", **active)
    assert "AssertionError: /elsewhere\n" in given.stdout
