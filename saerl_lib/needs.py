"""What the paper's run needs stage by stage, what this machine lacks of it, and both as text.

`python -m saerl_lib.needs --profile paper --plan-only` prints the plan before any package is installed: the standard library
alone, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from saerl_lib import cost, paths
from saerl_lib.cost import GIVEN, PaperConfig
from saerl_lib.data.hub import HubModel
from saerl_lib.envcheck import LOCK, differences, installed_versions, read_lock

HUB = ("huggingface.co", 443)
CHECKPOINTS, WEIGHT_BYTES = 2, 4
"""Checkpoints that `train` leaves of a run; bytes a parameter of the policies that are kept to be evaluated (float32)."""


class Stage(NamedTuple):
    """What one stage needs, and how it is computed."""

    name: str
    gpu: str  # kind that the hours are counted in; '' for a stage of the CPU
    gpu_hours: tuple[float, ...]  # expected and upper
    memory_bytes: float  # of all GPUs together, or the main memory of a stage without one
    disk_bytes: float  # what it leaves
    how: str


def training_stage(config: PaperConfig, model: HubModel, runs: int) -> Stage:
    """All runs of one policy."""
    low, high = (cost.run_hours(config, model, tokens) for tokens in (GIVEN.response_tokens, config.max_response_tokens))
    kept = config.evaluated_policies
    how = (f"{runs} runs of {config.steps} steps; one run: {', '.join(f'{name} {low[name]:.0f}' for name in low)} hours; "
           f"disk: {CHECKPOINTS} checkpoints and {kept} weights a run")  # fmt: skip
    disk = runs * model.parameters * (CHECKPOINTS * GIVEN.checkpoint_bytes_per_parameter + WEIGHT_BYTES * kept)
    totals = (runs * sum(low.values()), runs * sum(high.values()))
    return Stage(f"GRPO, {model.repository}", "H100", totals, cost.training_memory(config, model), disk, how)


def sae_training_stage(config: PaperConfig) -> Stage:
    """Training of the SAE with the paper's settings; activations are streamed, never stored."""
    count = cost.sae_parameters(config.encoder.width, config.paper_latents)
    memory = count * GIVEN.sae_train_bytes_per_parameter + 2 * config.encoder.parameters + GIVEN.working_bytes
    how = f"{config.sae_text_gigabytes / GIVEN.web_bytes_per_token:.1f}e9 tokens, streamed; sparse or dense gradients"
    return Stage("train the SAE", "A100", cost.sae_training_hours(config), memory, 4.0 * count, how)


def stages(config: PaperConfig) -> list[Stage]:
    """Every stage of the paper's list in order, but for the SAE's training."""
    features = 4 * (4 * config.retained_latents + config.metadata_features)
    sae_bytes = 4 * cost.sae_parameters(config.encoder.width, config.sae_latents)
    reading = 2 * config.encoder.parameters + sae_bytes + GIVEN.working_bytes
    others = ((GIVEN.numina_samples, GIVEN.numina_sample_bytes), (config.rated_samples, GIVEN.prm_sample_bytes),
              (GIVEN.deepscaler_samples, GIVEN.deepscaler_sample_bytes))  # fmt: skip
    extra = sum(cost.reading_hours(config, n, text / GIVEN.math_bytes_per_token, config.sae_latents) for n, text in others)
    generating = cost.generation_memory(config, config.policies[0])
    return [
        Stage("encode the pool", "H100", cost.encode_hours(config, config.sae_latents), reading, config.pool_samples * features,
              "forward pass and SAE encoder; solutions cut at the longest response, or whole R1 solutions"),
        Stage("encode the other sources", "H100", (extra, extra), reading, sum(n for n, _ in others) * features,
              "NuminaMath-1.5, PRM800K, DeepScaleR, as far as the paper uses them"),
        Stage("probes, clusters, filter, plan", "", (0.0, 0.0), 4e9, 0.1e9, "CPU; `bench plan` measures 8 s for the plan itself"),
        Stage("ADARFT's difficulty rollouts", "H100", cost.adarft_hours(config), generating, 0.1e9,
              f"{config.pool_samples * config.adarft_samples:,} completions; for arm adarft alone"),
        *(training_stage(config, model, runs) for model, runs in zip(config.policies, config.runs_per_policy, strict=True)),
    ]  # fmt: skip


class Machine(NamedTuple):
    """Findings about this machine."""

    hub_reachable: bool
    gpus: tuple[tuple[str, float], ...]  # name and bytes of each
    missing_packages: tuple[str, ...]  # a sentence for each locked package that is absent or of another version
    free_disk_bytes: int  # where the outputs go (`SAERL_HOME`)
    cache_disk_bytes: int  # where downloads go (`HF_HOME`, else ~/.cache/huggingface)
    token_set: bool  # whether `HF_TOKEN` is set; its value is not looked at


def reachable(seconds: float = 1.0, address: tuple[str, int] = HUB) -> bool:
    """Whether a TCP connection opens within `seconds`, the look-up of the name included; nothing is sent."""
    opened = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=seconds):
            opened.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return opened.is_set()


def list_gpus() -> tuple[tuple[str, float], ...]:
    """Name and memory in bytes of the GPUs that nvidia-smi lists; empty without it or when it does not answer in 3 seconds."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=3, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.rsplit(",", 1) for line in listed.splitlines() if "," in line]
    return tuple((name.strip(), float(mib) * 2**20) for name, mib in rows if mib.strip().isdigit())


def _free(folder: Path) -> int:
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def look() -> Machine:
    """Look at this machine; takes about a second when the hub cannot be reached.

    Raises ValueError for a damaged requirements.lock.
    """
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser().absolute()
    return Machine(
        hub_reachable=reachable(),
        gpus=list_gpus(),
        missing_packages=tuple(differences(read_lock(LOCK), installed_versions())),
        free_disk_bytes=_free(paths.artifacts_root()),
        cache_disk_bytes=_free(cache),
        token_set=bool(os.environ.get("HF_TOKEN")),
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
    found = [(m.repository, 2.0 * m.parameters, m.revision) for m in (*config.policies, config.reading_model)]
    if config.sae == "published":
        weights = 4.0 * cost.sae_parameters(config.encoder.width, config.sae_release_latents)
        found.append((f"{config.sae_repository}, {config.sae_id} alone", weights, config.sae_revision))
    if config.sae == "trained":
        found.append((" and ".join(config.sae_corpora), config.sae_text_gigabytes * 1e9, None))
    return found + [(d.repository, float(d.download_bytes), d.revision) for d in (*config.training_data, *config.benchmarks)]


def missing(config: PaperConfig, machine: Machine) -> list[str]:
    """One sentence for each thing that this machine lacks."""
    listed, fetched = stages(config), downloads(config)
    need = max(cost.gpus(stage.memory_bytes) for stage in listed if stage.gpu)
    large = sum(memory >= 0.95 * GIVEN.gpu_memory_bytes for _, memory in machine.gpus)
    here = ", ".join(f"{name} ({size(memory)})" for name, memory in machine.gpus) or "none found"
    packages, rest = machine.missing_packages, len(machine.missing_packages) - SHOWN_PACKAGES
    more = f"; and {rest} more" if rest > 0 else ""
    weight, left = sum(row[1] for row in fetched), sum(stage.disk_bytes for stage in listed)
    cache, free = machine.cache_disk_bytes, machine.free_disk_bytes
    unpinned = sum(revision is None for *_, revision in fetched)
    found = {
        "network: huggingface.co does not answer within a second": not machine.hub_reachable,
        f"GPU: {need} of {size(GIVEN.gpu_memory_bytes)} for the largest stage; here: {here}": large < need,
        f"packages: {'; '.join(packages[:SHOWN_PACKAGES])}{more} (requirements.lock)": packages,
        NOT_LOCKED: True,
        f"disk: {size(weight)} of downloads, {size(cache)} free in the cache": cache < weight,
        f"disk: {size(left)} of results, {size(free)} free where outputs go (SAERL_HOME)": free < left,
        f"revisions: {unpinned} repositories are not pinned yet": unpinned,
    }  # fmt: skip
    return [sentence for sentence, lacks in found.items() if lacks]


def blocking(config: PaperConfig, machine: Machine) -> list[str]:
    """Those sentences of `missing` without which the path cannot run on hub models and data."""
    pinned, sets = dict(config.revisions), (*config.training_data, *config.benchmarks)
    bare = [data.name for data in sets if data.revision is None and data.name not in pinned]
    found = [item for item in missing(config, machine) if item != NOT_LOCKED and not item.startswith("revisions:")]
    return found + ([f"revisions: pass --revision SET=HASH for {', '.join(bare)}"] if bare and config.sources is None else [])


def size(count: float) -> str:
    """Bytes as people read them, in powers of ten.

    >>> size(2_136_106_260), size(81_670), size(80e9)
    ('2.1 GB', '82 kB', '80 GB')
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            value = count / factor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{count:.0f} B"


def number(value: float) -> str:
    """Two digits below ten, whole numbers above.

    >>> number(0.853), number(13.7), number(152.2)
    ('0.85', '14', '152')
    """
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines of aligned columns, the last one ragged."""
    widths = [*(max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]), 0]
    return "\n".join("  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def items(sentences: Iterable[str]) -> str:
    """Sentences as a list."""
    return "\n".join(f"  - {sentence}" for sentence in sentences)


SAE_DIFFERENCES = """The SAE differs from the paper's:
  - it was trained on Qwen3-1.7B-Base, the paper's on Qwen3-1.7B: the encoder read through it is the base model
  - width 32,768 (expansion 16), the paper's 131,072 (expansion 64)
  - TopK with k = 50; the paper does not state k
  - trained on Qwen's own corpus, which is not public; the paper's on 80 GB of FineWeb-Edu and Wikipedia
  - trained by Qwen-Scope and loaded by SAELens; the paper's with OpenSAE, which also standardises every token
"""


def plan_text(config: PaperConfig, machine: Machine) -> str:
    """The whole plan: downloads, costs by stage, the paper's own figures, assumptions, what is missing."""
    saes = {"published": f"{config.sae_release}, {config.sae_id}", "trained": "trained with the paper's settings"}
    fetched, listed = downloads(config), stages(config)
    low, high = (sum(stage.gpu_hours[i] for stage in listed if stage.gpu == "H100") for i in (0, 1))
    return f"""Profile paper: a plan of arXiv 2605.27354's own experiments, none of which was run at this scale.
Policies: {", ".join(model.repository for model in config.policies)}. \
Encoder: {config.reading_model.repository}, SAE: {saes.get(config.sae, f"OpenSAE, {config.opensae_folder}")}.
{SAE_DIFFERENCES if config.sae == "published" else ""}
Downloads, {size(sum(row[1] for row in fetched))} (a plan downloads nothing):
{table([(name, size(count), revision or "not pinned yet") for name, count, revision in fetched])}
  Notes:
{items(f"{data.repository}: {data.note}" for data in (*config.training_data, *config.benchmarks) if data.note)}

Stages (hours: expected to upper; memory: of one run, and the GPUs that hold it):
{table([("stage", "hours", "", "GPU memory", "disk", "how"), *map(stage_row, listed)])}
  All of it: {low:,.0f} to {high:,.0f} H100-hours, {size(sum(stage.disk_bytes for stage in listed))} of results.
  That is the paper's list. The profile itself trains {", ".join(config.arms)} on {config.policy},
  {config.seeds} seed(s), unless told otherwise (--arms, of {", ".join(cost.ARMS)}; --policy; --seeds).
  An SAE trained with the paper's settings instead (a checkpoint on disk costs nothing):
{table([stage_row(sae_training_stage(config))])}

The paper's own figures:
{table([("quantity", "paper", "computed", "computed / paper"), *comparison(config)])}

Assumptions:
{table(cost.assumption_rows(config))}
Not stated in the paper and still to be chosen:
  - reward function, KL weight, clip values and mini-batch of GRPO
  - temperature and response length of evaluations
  - k, learning rate, number of tokens and reconstruction quality of the SAE
  - how the 240 latents are chosen, scaling, chat template, which R1 solution is read
  - alpha and l1_ratio of the elastic net, the form of g, tau_sh, window and tolerances of the tail swap
  - rests that fill no batch, clusters of unequal size, the order of a second epoch (900 steps are 1.12 epochs)

Missing here:
{items(missing(config, machine))}
  Token: none is needed as far as known, HF_TOKEN is \
{"set" if machine.token_set else "not set; downloads are slower without one"}."""


def stage_row(stage: Stage) -> tuple[str, ...]:
    """A stage as it is printed."""
    hours, unit, memory = "0", "no GPU", f"{size(stage.memory_bytes)} RAM"
    if stage.gpu:
        hours, unit = f"{stage.gpu_hours[0]:.1f} to {stage.gpu_hours[1]:.1f}", f"{stage.gpu}-hours"
        memory = f"{size(stage.memory_bytes)}, {cost.gpus(stage.memory_bytes)} x {size(GIVEN.gpu_memory_bytes)}"
    return (stage.name, hours, unit, memory, size(stage.disk_bytes), stage.how)


def comparison(config: PaperConfig) -> list[tuple[str, ...]]:
    """The paper's own figures (section 5, section C) beside the same quantity computed here."""
    measured = (
        ("SAE encoding of the pool, F = 131,072", 0.5, "H100-hours", cost.encode_hours(config, config.paper_latents)),
        ("SAE training, 29 h x 4 A100", 116.0, "A100-hours", cost.sae_training_hours(config)),
        ("ADARFT's rollouts", 17.33, "H100-hours", cost.adarft_hours(config)),
    )
    return [
        (name, f"{paper:g} {unit}", f"{number(low)} to {number(high)}", f"{low / paper:.1f} to {high / paper:.1f}")
        for name, paper, unit, (low, high) in measured
    ]


def run_plan(profile: str, rest: Sequence[str] = (), plan_only: bool = True) -> int:
    """Print the plan of profile `paper` for this machine; returns 0.

    Raises ValueError when something else is asked for, and what `look` raises.
    """
    if profile != "paper":
        raise ValueError(f"--plan-only belongs to --profile paper; profile {profile!r} has no plan, run it without --plan-only")
    if not plan_only:
        raise ValueError("profile 'paper' runs in an environment with the locked packages alone; add --plan-only for its plan")
    if rest:
        raise ValueError(f"--plan-only takes no further option; leave out {' '.join(rest)}")
    print(plan_text(PaperConfig(), look()))
    return 0


def require_machine(config: PaperConfig, say: Callable[[str], None]) -> None:
    """Let a run pass whose models, SAE and data are all local, or whose plan this machine can hold; the plan is shown then.

    Else `say` is told what is missing, and ValueError is raised.
    """
    absent = [option for option, there in config.stand_ins.items() if not there]
    if not absent:
        return
    chosen = tuple(model for model in config.policies if model.repository == config.policy) or config.policies[:1]
    wanted, machine = replace(config, policies=chosen, runs_per_policy=(len(config.arms) * config.seeds,)), look()
    lacks = blocking(wanted, machine)
    if not lacks:
        say(plan_text(wanted, machine))
        return
    say(f"Missing here:\n{items(lacks)}")
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
        return run_plan(arguments.profile, rest, arguments.plan_only)
    except (ValueError, OSError) as error:
        if arguments.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
