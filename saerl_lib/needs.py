"""What this machine has of what the paper's run needs, found out with the standard library and without a download.

What the paper's run would download, and what this machine lacks for it.

The plan of profile `paper` as text: downloads, costs by stage, the paper's own figures, assumptions, what is missing.

The command behind `--profile paper`: the plan for this machine, and whether it can be run; the standard library alone.

`python -m saerl_lib.needs --profile paper --plan-only`: the plan before any package is installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from saerl_lib import paths
from saerl_lib.cost import (
    ARMS,
    INFERRED,
    NOT_STATED,
    OURS,
    PAPER,
    SAE_DIFFERENCES,
    STATED,
    Assumptions,
    PaperConfig,
    Stage,
    adarft_hours,
    encode_hours,
    gpus,
    number,
    parameters,
    sae_parameters,
    sae_training_hours,
    sae_training_stage,
    size,
    stages,
    table,
)
from saerl_lib.data.published import HubData
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


SHOWN_PACKAGES = 3
"""Missing packages that are named before the rest is counted."""
NOT_LOCKED = (
    "packages: vLLM, without which rollouts and evaluations are several times slower; it is not locked here "
    "(`--vllm` uses it in training; `export --to verl` writes a plan for a trainer that brings its own)"
)
"""What no locked environment holds; the path runs without it."""


def downloads(config: PaperConfig) -> list[tuple[str, float, str | None]]:
    """(repository, bytes, revision) of everything that the plan would fetch; weights count two bytes a parameter."""
    models = (*config.policies, config.reading_model)
    found = [(m.repository, 2.0 * parameters(m), m.revision) for m in models]
    if config.sae == "published":
        weights = 4.0 * sae_parameters(config.encoder.width, config.sae_release_latents)
        found.append((f"{config.sae_repository}, {config.sae_id} alone", weights, config.sae_revision))
    if config.sae == "trained":
        share = config.sae_text_gigabytes * 1e9
        found.append((" and ".join(config.sae_corpora), share, None))
    return found + [(d.repository, float(d.download_bytes), d.revision) for d in (*config.training_data, *config.benchmarks)]


def missing(config: PaperConfig, given: Assumptions, machine: Machine) -> list[str]:
    """One sentence for each thing that this machine lacks."""
    found = []
    if not machine.hub_reachable:
        found.append("network: huggingface.co does not answer within a second")
    need = max(gpus(stage.memory_bytes, given) for stage in stages(config, given) if stage.gpu)
    have = [memory for _, memory in machine.gpus if memory >= 0.95 * given.gpu_memory_bytes]
    if len(have) < need:
        listed = ", ".join(f"{name} ({size(memory)})" for name, memory in machine.gpus) or "none found"
        found.append(f"GPU: {need} of {size(given.gpu_memory_bytes)} for the largest stage; here: {listed}")
    memory = max(stage.memory_bytes for stage in stages(config, given) if not stage.gpu)
    if 0 < machine.memory_bytes < memory:
        found.append(f"memory: {size(memory)} of main memory, {size(machine.memory_bytes)} here")
    if machine.missing_packages:
        names, rest = machine.missing_packages[:SHOWN_PACKAGES], len(machine.missing_packages) - SHOWN_PACKAGES
        found.append("packages: " + "; ".join(names) + (f"; and {rest} more" if rest > 0 else "") + " (requirements.lock)")
    found.append(NOT_LOCKED)
    fetched, left = sum(row[1] for row in downloads(config)), sum(stage.disk_bytes for stage in stages(config, given))
    if machine.cache_disk_bytes < fetched:
        found.append(f"disk: {size(fetched)} of downloads, {size(machine.cache_disk_bytes)} free in the cache")
    if machine.free_disk_bytes < left:
        found.append(f"disk: {size(left)} of results, {size(machine.free_disk_bytes)} free where outputs go (SAERL_HOME)")
    unpinned = sum(revision is None for _, _, revision in downloads(config))
    if unpinned:
        found.append(f"revisions: {unpinned} repositories are not pinned yet")
    return found


def blocking(config: PaperConfig, given: Assumptions, machine: Machine) -> list[str]:
    """Those sentences of `missing` without which the path cannot run on hub models and data."""
    pinned = dict(config.revisions)
    bare = [d.name for d in (*config.training_data, *config.benchmarks) if d.revision is None and d.name not in pinned]
    found = [item for item in missing(config, given, machine) if item != NOT_LOCKED and not item.startswith("revisions:")]
    return found + ([f"revisions: pass --revision SET=HASH for {', '.join(bare)}"] if bare and config.sources is None else [])


def _revision(revision: str | None) -> str:
    return revision or "not pinned yet"


def _local(data: HubData, machine: Machine) -> str:
    if data.local_file is None or machine.data_folder is None:
        return ""
    return f"; a local copy is there: {data.local_file}" if (machine.data_folder / data.local_file).is_file() else ""


def download_lines(config: PaperConfig, machine: Machine) -> Iterator[str]:
    """What would be downloaded, with revisions."""
    found = downloads(config)
    yield f"Downloads, {size(sum(row[1] for row in found))} (a plan downloads nothing):"
    yield from table([(name, size(count), _revision(revision)) for name, count, revision in found])
    yield "  Notes:"
    for data in (*config.training_data, *config.benchmarks):
        note = data.note + _local(data, machine)
        if note:
            yield f"  - {data.repository}: {note.removeprefix('; ')}"


def _stage_row(stage: Stage, given: Assumptions) -> tuple[str, ...]:
    if not stage.gpu:
        return (stage.name, "0", "no GPU", f"{size(stage.memory_bytes)} RAM", size(stage.disk_bytes), stage.how)
    low, high = stage.gpu_hours
    count = gpus(stage.memory_bytes, given)
    memory = f"{size(stage.memory_bytes)}, {count} x {size(given.gpu_memory_bytes)}"
    return (stage.name, f"{low:.1f} to {high:.1f}", f"{stage.gpu}-hours", memory, size(stage.disk_bytes), stage.how)


def stage_lines(config: PaperConfig, given: Assumptions) -> Iterator[str]:
    """GPU-hours, memory and disk by stage."""
    found = stages(config, given)
    yield "Stages (hours: expected to upper; memory: of one run, and the GPUs that hold it):"
    yield from table([("stage", "hours", "", "GPU memory", "disk", "how"), *(_stage_row(s, given) for s in found)])
    total = [sum(stage.gpu_hours[i] for stage in found if stage.gpu == "H100") for i in (0, 1)]
    yield f"  All of it: {total[0]:,.0f} to {total[1]:,.0f} H100-hours, {size(sum(s.disk_bytes for s in found))} of results."
    yield f"  That is the paper's list. The profile itself trains {', '.join(config.arms)} on {config.policy},"
    yield f"  {config.seeds} seed(s), unless told otherwise (--arms, of {', '.join(ARMS)}; --policy; --seeds)."
    if config.sae != "trained":
        yield "  An SAE trained with the paper's settings instead (a checkpoint on disk costs nothing):"
        yield from table([_stage_row(sae_training_stage(config, given), given)])


def comparison_lines(config: PaperConfig, given: Assumptions) -> Iterator[str]:
    """The paper's own figures beside the same quantity computed here."""
    measured = (
        ("SAE encoding of the pool, F = 131,072", 0.5, encode_hours(config, given, config.paper_latents), "H100-hours"),
        ("SAE training, 29 h x 4 A100", 116.0, sae_training_hours(config, given), "A100-hours"),
        ("ADARFT's rollouts", 17.33, adarft_hours(config, given), "H100-hours"),
    )
    rows = [("quantity", "paper", "computed", "computed / paper")]
    for name, paper, (low, high), unit in measured:
        rows.append((name, f"{paper:g} {unit}", f"{number(low)} to {number(high)}", f"{low / paper:.1f} to {high / paper:.1f}"))
    yield "The paper's own figures:"
    yield from table(rows)


def assumption_lines(config: PaperConfig, given: Assumptions) -> Iterator[str]:
    """Every number that the estimates use, marked with its origin."""
    rows = [(name, str(getattr(config, name)), PAPER, what) for name, what in STATED]
    rows += [(name, str(getattr(config, name)), OURS, what) for name, what in INFERRED]
    rows.append(("benchmark problems", f"{config.benchmark_problems:,}", OURS, "rows of the six repositories"))
    rows += [tuple(row) for row in given.rows()]
    yield "Assumptions:"
    yield from table(rows)
    yield "Not stated in the paper and still to be chosen:"
    yield from (f"  - {item}" for item in NOT_STATED)


def machine_lines(config: PaperConfig, given: Assumptions, machine: Machine) -> Iterator[str]:
    """What this machine lacks."""
    yield "Missing here:"
    yield from (f"  - {item}" for item in missing(config, given, machine))
    token = "set" if machine.token_set else "not set; downloads are slower without one"
    yield f"  Token: none is needed as far as known, HF_TOKEN is {token}."


def plan_text(config: PaperConfig, given: Assumptions, machine: Machine) -> str:
    """The whole plan."""
    sae = {"published": f"{config.sae_release}, {config.sae_id}", "trained": "trained with the paper's settings"}
    lines = [
        "Profile paper: a plan of arXiv 2605.27354's own experiments, none of which was run at this scale.",
        f"Policies: {', '.join(m.repository for m in config.policies)}. "
        f"Encoder: {config.reading_model.repository}, SAE: {sae.get(config.sae, f'OpenSAE, {config.opensae_folder}')}.",
    ]
    if config.sae == "published":
        lines += ["The SAE differs from the paper's:", *(f"  - {item}" for item in SAE_DIFFERENCES)]
    parts = (
        download_lines(config, machine), stage_lines(config, given), comparison_lines(config, given),
        assumption_lines(config, given), machine_lines(config, given, machine),
    )  # fmt: skip
    return "\n".join([*lines, *(line for part in parts for line in ["", *part])])


def check_request(profile: str, plan_only: bool, rest: Sequence[str] = ()) -> None:
    """Raise ValueError unless the plan of profile `paper`, and nothing else, is asked for."""
    if profile != "paper":
        raise ValueError(f"--plan-only belongs to --profile paper; profile {profile!r} has no plan, run it without --plan-only")
    if not plan_only:
        raise ValueError("profile 'paper' runs in an environment with the locked packages alone; add --plan-only for its plan")
    if rest:
        raise ValueError(f"--plan-only takes no further option; leave out {' '.join(rest)}")


def run_plan(profile: str, rest: Sequence[str] = ()) -> int:
    """Print the plan for this machine; returns 0.

    Raises ValueError when something else is asked for, and what `saerl_lib.needs.look` raises.
    """
    check_request(profile, True, rest)
    print(plan_text(PaperConfig(), Assumptions(), look()))
    return 0


def require_machine(config: PaperConfig, say: Callable[[str], None]) -> None:
    """Let a run pass whose models, SAE and data are all local, or whose plan this machine can hold; the plan is shown then.

    Else `say` is told what is missing, and ValueError is raised.
    """
    absent = [option for option, there in config.stand_ins.items() if not there]
    if not absent:
        return
    chosen = tuple(model for model in config.policies if model.repository == config.policy) or config.policies[:1]
    wanted = replace(config, policies=chosen, runs_per_policy=(len(config.arms) * config.seeds,))
    given, machine = Assumptions(), look()
    lacks = blocking(wanted, given, machine)
    if not lacks:
        say(plan_text(wanted, given, machine))
        return
    say("\n".join(["Missing here:", *(f"  - {item}" for item in lacks)]))
    raise ValueError(
        "profile 'paper' takes models and data from the Hugging Face Hub and needs GPUs; this machine lacks what is listed above "
        f"(--plan-only prints the whole plan). On local stand-ins it runs anywhere; not given: {', '.join(absent)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m saerl_lib.needs`: needs no package; returns 0, or 1 with a message."""
    parser = argparse.ArgumentParser(prog="python -m saerl_lib.needs", description="the plan of profile paper")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--plan-only", action="store_true")
    parser.add_argument("--debug", action="store_true")
    arguments, rest = parser.parse_known_args(argv)
    try:
        check_request(arguments.profile, arguments.plan_only, rest)
        return run_plan(arguments.profile)
    except (ValueError, OSError) as error:
        if arguments.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
