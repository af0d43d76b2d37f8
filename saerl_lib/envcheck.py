"""Does this interpreter hold the locked packages? Standard library only, so any Python can run it before an install.

`python saerl_lib/envcheck.py [LOCK]` exits 0 when every `name==version` line of the lock is installed in exactly that
version, else prints what is wrong and exits 1.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
MINIMUM_PYTHON = (3, 11)
SHOWN = 5
"""Differences printed before the rest is only counted."""


def canonical(name: str) -> str:
    """A distribution name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(path: Path) -> dict[str, str]:
    """Locked version by canonical name. Raises ValueError for a line that is neither empty, a comment, nor `name==version`."""
    locked: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.split("#")[0].strip()
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+_-]+)", text)
        if text and match is None:
            raise ValueError(f"{path.name} line {number}: {text!r} is not of the form name==version")
        locked |= {canonical(match[1]): match[2]} if match else {}
    return locked


def installed_versions() -> dict[str, str]:
    """Installed version by canonical name; the first one on the import path wins, as it does for `import`."""
    found = [(d.metadata["Name"], d.version) for d in metadata.distributions()]
    return {canonical(name): version for name, version in reversed(found) if name}


def differences(locked: dict[str, str], installed: dict[str, str]) -> list[str]:
    """One sentence a package that is absent or has another version; a local suffix such as `+cpu` is ignored.

    >>> differences({"torch": "2.13.0", "trl": "1.16.0"}, {"torch": "2.13.0+cpu"})
    ['trl 1.16.0 is not installed']
    """
    wrong = []
    for name, version in locked.items():
        have = installed.get(name)
        if have is None:
            wrong.append(f"{name} {version} is not installed")
        elif have.split("+")[0] != version.split("+")[0]:
            wrong.append(f"{name} is {have}, locked is {version}")
    return wrong


def main(arguments: list[str]) -> int:
    """Exit code 0 when the environment agrees with the lock, else 1 with the first differences on stdout."""
    if sys.version_info < MINIMUM_PYTHON:
        print(f"Python {sys.version.split()[0]} is older than {'.'.join(map(str, MINIMUM_PYTHON))}")
        return 1
    try:
        wrong = differences(read_lock(Path(arguments[0]) if arguments else LOCK), installed_versions())
    except (OSError, ValueError) as error:
        wrong = [f"cannot read the lock: {error}"]
    for sentence in [*wrong[:SHOWN], *([f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else [])]:
        print(sentence)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
