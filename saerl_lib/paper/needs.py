"""What the paper's run would download, and what this machine lacks for it."""

from __future__ import annotations

from saerl_lib.paper.arithmetic import parameters, sae_parameters
from saerl_lib.paper.assumptions import Assumptions
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.estimate import stages
from saerl_lib.paper.machine import Machine
from saerl_lib.paper.memory import gpus
from saerl_lib.paper.text import size

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
