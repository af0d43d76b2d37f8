"""Expensive step -> files -> cheap step: get-or-compute by content hash, manifest last.

A stage is done only when its `manifest.json` holds the key that the caller computed and every output still has the recorded
SHA-256. Outputs are written to a sibling folder that is renamed into place: a killed or failed stage leaves nothing to trust.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from saerl_lib import paths
from saerl_lib.config import Profile, content_hash, to_dict

MANIFEST = "manifest.json"
TRAINED_GATES = "trained_gates.json"
"""A record of measurements beside the sources of `data/`; no stage depends on it, so it is no part of the code hash."""
DATA_SUFFIXES = (".safetensors", ".json", ".csv")
"""Endings of the data files that count as code."""

PACKAGES = ("torch", "transformers", "tokenizers", "trl", "accelerate", "sae-lens", "scikit-learn", "numpy", "safetensors")
"""Packages whose versions decide results."""
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
"""System errors that mean the output folder is full or cannot be written."""
FREE = "free space or set SAERL_HOME to a writable folder"
"""What mends them."""


class ToldError(Exception):
    """An error whose message names the fix: a notebook shows the message alone, as the command line does."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class ArtifactError(ToldError, RuntimeError):
    """An artifact is missing, stale or cannot be written."""


def absent(reason: str) -> None:
    """What a notebook says, in one line, in place of something that its profile lacks."""
    print(f"Not in this profile: {reason}.")


class Stage(NamedTuple):
    """A finished stage: its name, folder and key."""

    name: str
    folder: Path
    key: str
    computed: bool
    """True when this call computed it, False when it was found."""

    def path(self, name: str) -> Path:
        """Absolute path of one output."""
        return self.folder / name


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@functools.cache
def imported_names(source: str) -> set[str]:
    """Dotted names below `saerl_lib` that Python source imports, inside functions too.

    >>> sorted(imported_names("from saerl_lib.plan import mixing\\nimport numpy"))
    ['saerl_lib.plan', 'saerl_lib.plan.mixing']
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] == "saerl_lib"}


@functools.cache
def code_hash(*modules: str, root: Path = paths.ROOT) -> str:
    """Hash of the code below `root`/saerl_lib that these modules really import, directly or not, themselves included.

    The data files of a room (weights, JSON, CSV) come along with its modules, but for `report`, whose records decide no stage.
    """
    found: set[Path] = set()
    waiting = set(modules)
    while waiting:
        place = root.joinpath(*waiting.pop().split("."))
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file() and path not in found:
                found.add(path)
                waiting |= imported_names(path.read_text(encoding="utf-8"))
    package, digest = root / "saerl_lib", hashlib.sha256()
    for room in {path.relative_to(package).parts[0] for path in found if path.parent != package} - {"report"}:
        found |= {p for p in (package / room).rglob("*") if p.suffix in DATA_SUFFIXES and p.name != TRAINED_GATES}
    for path in sorted(found):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _made_by() -> dict[str, Any]:
    """Commit of the sources, marked when they differ from it ("unknown" outside a clone), and model of the processor with the
    instructions that torch uses: AVX-512, for one, changes the last bits of a product."""
    import torch

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=paths.ROOT, capture_output=True, text=True).stdout.strip()

    commit, name = "unknown", platform.machine()
    with contextlib.suppress(FileNotFoundError):
        commit = (git("rev-parse", "HEAD") or "unknown") + ("+changes" if git("status", "--porcelain", "--", "saerl_lib") else "")
    with contextlib.suppress(OSError):
        block = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
        fields = {k.strip(): v.strip() for k, v in (line.split(":", 1) for line in block.splitlines() if ":" in line)}
        name = f"{fields.get('model name', name)}, family {fields.get('cpu family', '?')}, model {fields.get('model', '?')}"
    versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}
    return {"commit": commit, "processor": f"{name}, {torch.backends.cpu.get_cpu_capability()}", "versions": versions}


def resident_mib(mark: str) -> float:
    """VmRSS, what of this process is resident now, or VmHWM, the most that was, MiB (Linux). `resource.getrusage` would give the
    most of the process that started this one, where that is more."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[mark].split()[0]) / 1024


def provenance() -> dict[str, Any]:
    """Where a result was made, stored with it: commit, versions, processor and threads."""
    import torch

    return {**_made_by(), "threads": torch.get_num_threads()}


def write_atomic(path: Path, data: bytes) -> None:
    """Write bytes through a temporary sibling that is renamed into place. Raises ArtifactError when they cannot be written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        if path.parent.is_dir():
            partial.unlink(missing_ok=True)
        raise ArtifactError(f"cannot write {path}: {error.strerror}; {FREE}") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_atomic` writes bytes."""
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode("utf-8"))


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well, an earlier `out` going last; else no trace stays.
    Raises ArtifactError for the folder in which the command runs."""
    if not out.name:
        raise ArtifactError(f"{out}: is the folder that you are in; name a new one")
    partial, old = (out.with_name(f".{out.name}.{state}") for state in ("partial", "old"))
    missing = [folder for folder in out.parents if not folder.exists()]
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        try:
            partial.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in missing:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                folder.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, busy: Exception, seconds: float = 0.0) -> Iterator[None]:
    """An exclusive lock on a file, which the kernel releases when the process ends. Raises `busy` when another process has held
    it for `seconds`."""
    deadline = time.monotonic() + seconds
    with path.open("w") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise busy from None
                time.sleep(0.2)
        yield


def read_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds, None where it is missing, unreadable or half written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_complete(folder: Path, key: str | None = None) -> bool:
    """Whether `folder` holds a manifest, with `key` if one is given, and every output with its recorded hash."""
    manifest = read_json(folder / MANIFEST)
    if manifest is None or key not in (None, manifest.get("key")):
        return False
    return all((folder / name).is_file() and file_sha256(folder / name) == sha for name, sha in manifest["outputs"].items())


def settings_hash(profile: Profile) -> str:
    """Hash of a profile but for its number of matched seeds, which only adds runs."""
    settings = to_dict(profile)
    settings["train"].pop("seeds")
    return content_hash(settings)


def load_stage(profile: Profile, name: str) -> Stage:
    """A finished stage by name, for a notebook that only reads it.

    Raises ArtifactError when the stage is missing or was computed with another seed or other settings, with what to run.
    """
    folder = paths.profile_dir(profile.name) / name
    manifest = read_json(folder / MANIFEST)
    if manifest is None or manifest["settings"] != settings_hash(profile):
        wrong = "is missing" if manifest is None else "was computed with another seed or other settings"
        notebooks = import_module("saerl_lib.notebooks").NOTEBOOKS  # by name, so that no stage's key depends on it
        fix = f"run ./run_all.sh --profile {profile.name} with the same options"
        fix += "".join(f" (--only {n.number}: this stage alone)" for n in notebooks if f"stage:{name}" in n.outputs)
        raise ArtifactError(f"{folder}: stage {name} {wrong}; {fix}")
    return Stage(name, folder, manifest["key"], computed=False)


def get_or_compute(
    profile: Profile,
    name: str,
    config: Mapping[str, Any],
    compute: Callable[[Path], Mapping[str, Any] | None],
    inputs: tuple[Stage, ...] = (),
) -> Stage:
    """The stage `name` of `profile`, computed by `compute(folder)` into a fresh folder when its key changed.

    `compute(folder)` writes all outputs into `folder`, or returns tables, name -> frame, that become `<name>.parquet`; its module
    and all that this imports are part of the key. Raises ArtifactError when the disk is full or not writable; an exception of
    `compute` propagates and leaves no folder behind.
    """
    folder = paths.profile_dir(profile.name) / name
    settings, decides = settings_hash(profile), {"config": dict(config), "inputs": {s.name: s.key for s in inputs}}
    key = content_hash({"stage": name, **decides, "code": code_hash(compute.__module__)})
    if is_complete(folder, key):
        manifest = read_json(folder / MANIFEST) or {}
        if manifest["settings"] != settings:  # another base seed may share an upstream stage
            write_json(folder / MANIFEST, {**manifest, "settings": settings})
        return Stage(name, folder, key, computed=False)
    import torch

    threads = torch.get_num_threads()
    try:
        with whole_folder(folder) as partial:
            for table, frame in (compute(partial) or {}).items():
                frame.to_parquet(partial / f"{table}.parquet", index=False)
            files = sorted(p for p in partial.rglob("*") if p.is_file() and p.name != MANIFEST)
            if not files:
                raise ArtifactError(f"stage {name} wrote no output into {partial}")
            write_json(partial / MANIFEST, {
                "stage": name, "key": key, "settings": settings, **decides, "provenance": provenance(),
                "outputs": {str(p.relative_to(partial)): file_sha256(p) for p in files},
            })  # fmt: skip
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) not in UNWRITABLE and "os error" not in str(error):
            raise
        raise ArtifactError(f"stage {name} cannot write {folder}: {error}; {FREE}") from error
    finally:
        torch.set_num_threads(threads)  # it decides last digits: what a stage sets does not leak into the next
    return Stage(name, folder, key, computed=True)
