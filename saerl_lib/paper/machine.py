"""What this machine has of what the paper's run needs, found out with the standard library and without a download."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from saerl_lib import paths
from saerl_lib.envcheck import LOCK, differences, installed_versions, read_lock

HUB = ("huggingface.co", 443)


@dataclass(frozen=True)
class Machine:
    """Findings about this machine."""

    hub_reachable: bool
    """Whether a connection to the hub could be opened; nothing is sent over it."""
    gpus: tuple[tuple[str, float], ...]
    """Name and memory in bytes of each GPU that nvidia-smi lists."""
    missing_packages: tuple[str, ...]
    """One sentence for each locked package that is absent or of another version."""
    free_disk_bytes: int
    """Free space where the outputs go (`SAERL_HOME`)."""
    cache_disk_bytes: int
    """Free space where downloads go (`HF_HOME`, else ~/.cache/huggingface)."""
    memory_bytes: int
    """Main memory, 0 when unknown."""
    token_set: bool
    """Whether `HF_TOKEN` is set; its value is not looked at."""
    data_folder: Path | None
    """The folder named by `SAERL_DATA_DIR`."""


def reachable(seconds: float = 1.0, address: tuple[str, int] = HUB) -> bool:
    """Whether a TCP connection opens within `seconds`, the look-up of the name included; nothing is sent."""
    found: list[bool] = []

    def connect() -> None:
        try:
            with socket.create_connection(address, timeout=seconds):
                found.append(True)
        except OSError:
            found.append(False)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(found and found[0])


def list_gpus() -> tuple[tuple[str, float], ...]:
    """GPUs that nvidia-smi lists, with memory in bytes; empty without it or when it does not answer in 3 seconds."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=3, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_gpus(listed)


def parse_gpus(listed: str) -> tuple[tuple[str, float], ...]:
    """Name and bytes from nvidia-smi's lines of name and MiB; lines of another form are passed over.

    >>> parse_gpus("NVIDIA H100 80GB HBM3, 81559\\n")
    (('NVIDIA H100 80GB HBM3', 85520809984.0),)
    """
    rows = [line.rsplit(",", 1) for line in listed.splitlines() if "," in line]
    return tuple((name.strip(), float(size) * 2**20) for name, size in rows if size.strip().isdigit())


def _free(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def look(seconds: float = 1.0) -> Machine:
    """Look at this machine; takes about `seconds` when the hub cannot be reached.

    Raises FileNotFoundError when `SAERL_DATA_DIR` names no folder and ValueError for a damaged requirements.lock.
    """
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    return Machine(
        hub_reachable=reachable(seconds),
        gpus=list_gpus(),
        missing_packages=tuple(differences(read_lock(LOCK), installed_versions())),
        free_disk_bytes=_free(paths.artifacts_root()),
        cache_disk_bytes=_free(cache),
        memory_bytes=_memory(),
        token_set=bool(os.environ.get("HF_TOKEN")),
        data_folder=paths.shared_data_dir(),
    )
