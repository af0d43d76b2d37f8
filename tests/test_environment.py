"""Modules are imported in the locked environment, versions have one source, and `run_all.sh` finds or makes what holds them."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import pkgutil
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

import saerl_lib
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


def test_every_module_is_importable_and_its_examples_hold() -> None:
    names = [m.name for m in pkgutil.walk_packages(saerl_lib.__path__, "saerl_lib.") if not m.name.endswith("__main__")]
    found = {name: doctest.testmod(importlib.import_module(name)) for name in names}
    assert [name for name, result in found.items() if result.failed] == []
    assert sum(result.attempted for result in found.values()) > 60


# The check that decides whether an environment may be used.


def test_this_environment_holds_the_lock(capsys: pytest.CaptureFixture[str]) -> None:
    assert needs.main(["--packages"]) == 0, capsys.readouterr().out


def test_missing_and_other_versions_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = tmp_path / "lock"
    lock.write_text("NumPy==0.0.1\n" + "".join(f"saerl-absent-{i}==1.0\n" for i in range(7)))
    assert needs.check_packages(lock) == 1
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"numpy is [\d.]+, locked is 0.0.1", lines[0])
    assert (lines[1], lines[-1]) == ("saerl-absent-0 1.0 is not installed", "and 3 more")


def test_a_lock_that_pins_nothing_and_an_old_python_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for line in ("numpy>=2", "-r other.txt", "numpy == 2.4.6"):
        (tmp_path / "lock").write_text(f"a==1\n{line}\n")
        assert needs.check_packages(tmp_path / "lock") == 1
        assert f"lock line 2: {line!r}" in capsys.readouterr().out
    assert needs.check_packages(tmp_path / "absent.lock") == 1
    assert "absent.lock" in capsys.readouterr().out
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
    environment, minimum = yaml.safe_load((ROOT / "environment.yml").read_text()), ".".join(map(str, needs.MINIMUM_PYTHON))
    assert {"pip": ["-r requirements.lock"]} in environment["dependencies"]
    assert f"python={minimum}" in environment["dependencies"] and PROJECT["project"]["requires-python"] == f">={minimum}"
    assert environment["name"] == PROJECT["project"]["name"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["license"], citation["version"]) == ("Apache-2.0", PROJECT["project"]["version"])


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


# run_all.sh, in a copy of the project that holds nothing but the scripts and a stub of the package.

BARE = (*(f"{name}.py" for name in ("__init__", "plan/__init__", "paths", "config", "settings", "needs")), "data/hub.csv")
"""What is imported before any package is installed."""


def stub_project(folder: Path, lock: str) -> Path:
    """A project whose `python -m saerl_lib run ...` prints interpreter, arguments, and environment."""
    project = folder / "project"
    for name in ("run_all.sh", ".ci/run", "saerl_lib/data/paper_plan.txt", *(f"saerl_lib/{name}" for name in BARE)):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    (project / "requirements.lock").write_text(lock)
    (project / "saerl_lib" / "__main__.py").write_text(
        "import os, sys\nprint('prefix', sys.prefix)\nprint('arguments', sys.argv[1:])\nprint('cwd', os.getcwd())\n"
        "for name in sorted(os.environ):\n    print(name + '=' + os.environ[name])\n"
    )
    return project


def call(script: Path, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the stub project without any environment that the caller has activated."""
    left_out = ("SAERL_", "PYTHON", "VIRTUAL_ENV", "CONDA_PREFIX", *ENVIRONMENT)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    return subprocess.run([str(script), *arguments], cwd=cwd, env=kept | environment, capture_output=True, text=True)


def fake_python(prefix: Path, body: str) -> None:
    (prefix / "bin").mkdir(parents=True, exist_ok=True)
    (prefix / "bin" / "python").write_text(f"#!/bin/sh\n{body}\n")
    (prefix / "bin" / "python").chmod(0o755)


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_the_active_environment_is_used_when_it_holds_the_packages_else_the_own(tmp_path: Path, variable: str) -> None:
    project, active = stub_project(tmp_path, ""), tmp_path / "active"
    fake_python(active, f'echo "through active"; exec {sys.executable} "$@"')
    known = {"SAERL_HOME": "out", "SAERL_DATA_DIR": "/data", variable: str(active)}
    result = call(project / "run_all.sh", "--profile", "smoke", "--only", "07", cwd=tmp_path, **known)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"environment: active, {active / 'bin' / 'python'}"
    expected = {"arguments ['run', '--profile', 'smoke', '--only', '07']", f"cwd {project}", "SAERL_DATA_DIR=/data",
                f"SAERL_HOME={tmp_path / 'out'}", *(f"{name}={value}" for name, value in ENVIRONMENT.items())}  # fmt: skip
    assert expected <= set(lines) and not (project / ".venv").exists()
    fake_python(active, "exit 1")
    fake_python(project / ".venv", f'exec {sys.executable} "$@"')
    result = call(project / "run_all.sh", cwd=tmp_path, **known)
    assert result.stdout.startswith(f"environment: .venv, {project}/.venv/bin/python\n"), result.stderr


def make_wheel(folder: Path, name: str, version: str) -> None:
    """An installable package with one empty module."""
    folder.mkdir()
    info = f"{name}-{version}.dist-info"
    files = {f"{name}.py": "", f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
             f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}  # fmt: skip
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": "".join(f"{path},,\n" for path in files)}.items():
            wheel.writestr(path, text)


def test_venv_is_made_once_from_the_lock_and_a_failed_install_stops(tmp_path: Path) -> None:
    project = stub_project(tmp_path, "saerl_probe==1.0\n")
    wheels = tmp_path / "wheels"
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    assert "--profile smoke|laptop" in call(project / "run_all.sh", "--help", cwd=tmp_path).stdout
    assert not (project / ".venv").exists(), "help needs no environment"
    needs_script = project / "saerl_lib" / "needs.py"
    before, last = needs_script.read_text(encoding="utf-8").split("if __name__ ==")
    check = "assert not {'torch', 'pandas', 'numpy', 'safetensors'} & set(sys.modules)\n"
    needs_script.write_text(f"{before}{check}\n\nif __name__ =={last}", encoding="utf-8")
    found = call(project / "run_all.sh", "--profile", "paper", "--plan-only", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "saerl-probe 1.0 is not installed" in found.stdout and "Stages" in found.stdout
    assert not (project / ".venv").exists(), "nor does the plan of the paper's run, or any package"
    failed = call(project / "run_all.sh", cwd=tmp_path, **offline)
    assert failed.returncode != 0 and "saerl_probe==1.0" in failed.stderr and "prefix" not in failed.stdout
    make_wheel(wheels, "saerl_probe", "1.0")
    first = call(project / "run_all.sh", "--seeds", "2", cwd=tmp_path, **offline)
    assert first.returncode == 0, first.stderr
    assert re.search(r"environment: installed in \d+ s\n", first.stdout) and f"prefix {project / '.venv'}\n" in first.stdout
    second = call(project / "run_all.sh", cwd=tmp_path, **offline)
    assert second.returncode == 0 and "install" not in second.stdout.split("prefix")[0]


def test_ci_runs_the_tests_with_the_data_beside_the_checkout(tmp_path: Path) -> None:
    project = stub_project(tmp_path, "")
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (project / "test_data.py").write_text("import os\ndef test_data():\n    assert 0, os.environ['SAERL_DATA_DIR']\n")
    active = {"VIRTUAL_ENV": sys.prefix}
    found = call(project / ".ci" / "run", "-p", "no:cacheprovider", cwd=tmp_path, **active)
    assert found.returncode == 1 and f"AssertionError: {tmp_path / 'shared' / 'data'}\n" in found.stdout
