"""What the paper's run would cost stage by stage, what this machine lacks of it, and whether the locked packages are installed.

`python -m saerl_lib.needs --profile paper --plan-only` prints the plan, `python -m saerl_lib.needs --packages` checks the lock:
both by the standard library alone, before any package is installed, and nothing is downloaded. `ASSUMPTIONS` are the numbers
beside the profile's settings that the estimates rest on. Hours are pairs of an expected and an upper figure (the longest texts,
dense instead of sparse SAE gradients). Nothing of this was run at that scale.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from saerl_lib import paths
from saerl_lib.config import PLANS, Profile, get_profile
from saerl_lib.data.hub import BENCHMARKS, MODELS, POLICIES, QWEN3_17B, SETS, TRAINING_DATA, HubModel, model_folder

LOCK, MINIMUM_PYTHON = paths.ROOT / "requirements.lock", (3, 11)
HUB = ("huggingface.co", 443)
RUNS_OF_TABLE_4 = dict(zip(POLICIES, (7, 5), strict=True))
"""Policy -> main runs of the paper, one seed each: the rows of Table 4."""
SAE = ("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50, layer27 alone", 32_768)
"""What SAELens' registry reads for the profile's SAE, and its width; not pinned, SAELens downloads the newest revision."""
CHECKPOINTS, WEIGHT_BYTES = 2, 4
"""Checkpoints that a run leaves; bytes a parameter of the policies that are kept to be evaluated (float32)."""
PAPER, OURS = "stated in the paper", "ours"
ASSUMPTIONS: tuple[tuple[str, float, str, str, str], ...] = (
    ("paper_latents", 131_072, "latents", PAPER, "expansion 64 of Qwen3-1.7B's width, section C.1"),
    ("sae_text_bytes", 80e9, "B", PAPER, "FineWeb-Edu and Wikipedia, section C.1"),
    ("adarft_samples", 16, "rollouts a prompt", PAPER, "section C.3"),
    ("h100_peak_flops", 989e12, "FLOP/s", OURS, "dense bf16 of an H100 SXM, NVIDIA's data sheet"),
    ("h100_bytes_per_second", 3.35e12, "B/s", OURS, "memory of an H100 SXM, NVIDIA's data sheet"),
    ("a100_peak_flops", 312e12, "FLOP/s", OURS, "dense bf16 of an A100, NVIDIA's data sheet"),
    ("gpu_memory_bytes", 80e9, "B", OURS, "one H100 or A100; the paper does not say which size it used"),
    ("encode_utilisation", 0.4, "share", OURS, "of the peak, forward passes over packed texts"),
    ("train_utilisation", 0.4, "share", OURS, "of the peak, training of SAE and policy"),
    ("decode_bandwidth_share", 0.3, "share", OURS, "of the memory's bandwidth, generation with batches that run empty"),
    ("decode_sequences", 256, "sequences", OURS, "that a GPU generates together"),
    ("deepmath_solution_bytes", 4_959_744_761 / 103_022 / 3, "B", OURS, "card of DeepMath-103K: bytes / rows / 3 solutions"),
    ("numina_sample_bytes", 1_141_178_809 / 896_215, "B", OURS, "card of NuminaMath-1.5: bytes / rows"),
    ("prm_sample_bytes", 343_127_415 / 93_794, "B", OURS, "card of a copy of PRM800K: bytes / rows, metadata included"),
    ("deepscaler_sample_bytes", 19_443_229 / 40_315, "B", OURS, "card of a copy of DeepScaleR: bytes / rows"),
    ("math_bytes_per_token", 3.0, "B/token", OURS, "mathematics in LaTeX with Qwen's tokenizer"),
    ("web_bytes_per_token", 4.2, "B/token", OURS, "English web text with Qwen's tokenizer"),
    ("prompt_tokens", 100, "tokens", OURS, "mean prompt with its template"),
    ("response_tokens", 1000, "tokens", OURS, "mean completion; the upper figure takes the longest allowed"),
    ("update_forwards", 4.0, "forward passes", OURS, "an update: old log-probabilities, forward, and two for backward"),
    ("train_bytes_per_parameter", 18.0, "B", OURS, "bf16 weights 2, fp32 weights 4, Adam 8, fp32 gradient 4"),
    ("checkpoint_bytes_per_parameter", 14.0, "B", OURS, "bf16 weights 2, fp32 weights 4, Adam 8"),
    ("sae_train_bytes_per_parameter", 16.0, "B", OURS, "fp32 weights 4, gradient 4, Adam 8"),
    ("logits_tile", 4096 * 32_768, "numbers", OURS, "tokens x vocabulary that TRL's output head holds in fp32 at a time"),
    ("working_bytes", 8e9, "B", OURS, "buffers, and activations of a forward pass without gradients"),
)  # fmt: skip
"""Name, value, unit, origin, why."""
GIVEN = SimpleNamespace(**{name: value for name, value, *_ in ASSUMPTIONS})
"""Assumed values by name."""


# The arithmetic.


def sae_parameters(width: int, latents: int) -> int:
    """Encoder, decoder and both biases.

    >>> sae_parameters(2048, 32768)
    134252544
    """
    return 2 * width * latents + width + latents


def hours(flops: float, peak_flops: float, utilisation: float) -> float:
    """GPU-hours of `flops` on a GPU of `peak_flops` a second of which `utilisation` is reached."""
    return flops / (peak_flops * utilisation) / 3600.0


def gpus(memory_bytes: float) -> int:
    """GPUs whose memory holds `memory_bytes`."""
    return max(1, math.ceil(memory_bytes / GIVEN.gpu_memory_bytes))


def run_memory(profile: Profile, model: HubModel) -> tuple[float, float]:
    """Bytes of GPU memory to generate, and of one run.

    Generation holds bf16 weights, the cache of all sequences at full length and working memory; a run beside it weights and
    optimiser and one micro-batch of the longest sequences. The logits count as one fp32 tile, since TRL projects tile by tile
    (ours). With several GPUs each holds a micro-batch of its own: lower `micro_batch` in proportion to stay within this figure.
    """
    longest = (profile.train.max_prompt_tokens or 0) + profile.train.max_completion_tokens
    generation = 2 * model.parameters + GIVEN.decode_sequences * longest * model.cache_bytes + GIVEN.working_bytes
    update = profile.train.micro_batch * longest * model.activation_bytes + 4.0 * GIVEN.logits_tile
    return generation, model.parameters * GIVEN.train_bytes_per_parameter + update + generation


def reading_hours(samples: int, text_tokens: float, latents: int) -> float:
    """H100-hours to encode texts of `text_tokens`: a forward pass through all blocks without head, and the SAE's encoder."""
    flops = QWEN3_17B.forward_flops(text_tokens / 2, head=False) + 2.0 * QWEN3_17B.width * latents
    return hours(samples * text_tokens * flops, GIVEN.h100_peak_flops, GIVEN.encode_utilisation)


def encode_hours(profile: Profile, latents: int) -> tuple[float, ...]:
    """H100-hours to encode the pool: solutions cut at the longest response, and whole R1 solutions."""
    whole = GIVEN.deepmath_solution_bytes / GIVEN.math_bytes_per_token
    cut = min(whole, profile.train.max_completion_tokens)
    return tuple(reading_hours(profile.pool_samples, GIVEN.prompt_tokens + n, latents) for n in (cut, whole))


def sae_training_hours() -> tuple[float, ...]:
    """A100-hours to train the SAE with the paper's settings: sparse gradients (TopK kernels), and dense ones.

    A token costs the LM's forward pass and 2 D F for the encoder, or six times both products, 12 D F, when all is dense.
    """
    tokens, forward = GIVEN.sae_text_bytes / GIVEN.web_bytes_per_token, QWEN3_17B.forward_flops(1024.0, head=False)
    flops = (tokens * (forward + factor * QWEN3_17B.width * GIVEN.paper_latents) for factor in (2, 12))
    return tuple(hours(count, GIVEN.a100_peak_flops, GIVEN.train_utilisation) for count in flops)


def rollout_hours(model: HubModel, completions: float, tokens: float) -> float:
    """H100-hours to generate `completions` of `tokens` each: memory traffic of decoding and the FLOPs of the prompts.

    A step of decoding reads the bf16 weights once and the cache of every sequence, half of its tokens on average.
    """
    traffic = 2 * model.parameters / GIVEN.decode_sequences + (GIVEN.prompt_tokens + tokens / 2) * model.cache_bytes
    decode = completions * tokens * traffic / (GIVEN.h100_bytes_per_second * GIVEN.decode_bandwidth_share) / 3600.0
    prefill = completions * GIVEN.prompt_tokens * model.forward_flops(GIVEN.prompt_tokens / 2)
    return decode + hours(prefill, GIVEN.h100_peak_flops, GIVEN.encode_utilisation)


def adarft_hours(profile: Profile) -> tuple[float, ...]:
    """H100-hours of ADARFT's difficulty estimate on the first policy, mean and longest completions."""
    completions = profile.pool_samples * GIVEN.adarft_samples
    lengths = (GIVEN.response_tokens, profile.train.max_completion_tokens)
    return tuple(rollout_hours(POLICIES[0], completions, tokens) for tokens in lengths)


# The stages.


class Stage(NamedTuple):
    """What one stage needs, and how it is computed."""

    name: str
    gpu: str  # kind that the hours are counted in; '' for a stage of the CPU
    gpu_hours: tuple[float, ...]  # expected and upper
    memory_bytes: float  # of all GPUs together, or the main memory of a stage without one
    disk_bytes: float  # what it leaves
    how: str


def training_stage(profile: Profile, model: HubModel, runs: int) -> Stage:
    """All runs of one policy: rollouts, updates and evaluations, with completions of mean and of longest length."""
    completions = profile.steps * profile.plan.prompts_per_step * profile.train.rollouts_per_prompt
    kept = profile.steps // (profile.train.keep_every_steps or profile.steps) + 1  # of one run: every kept step, and the end
    answers = kept * sum(SETS[name].rows for name in profile.eval_sets) * profile.train.eval_samples_full
    found = []
    for tokens in (GIVEN.response_tokens, profile.train.max_completion_tokens):
        text = GIVEN.prompt_tokens + tokens
        update = GIVEN.update_forwards * completions * text * model.forward_flops(text / 2)
        found.append({
            "rollouts": rollout_hours(model, completions, tokens),
            "updates": hours(update, GIVEN.h100_peak_flops, GIVEN.train_utilisation),
            "evaluations": rollout_hours(model, answers, tokens),
        })  # fmt: skip
    low, high = found
    how = (f"{runs} runs of {profile.steps} steps; one run: {', '.join(f'{name} {low[name]:.0f}' for name in low)} hours; "
           f"disk: {CHECKPOINTS} checkpoints and {kept} weights a run")  # fmt: skip
    disk = runs * model.parameters * (CHECKPOINTS * GIVEN.checkpoint_bytes_per_parameter + WEIGHT_BYTES * kept)
    totals = (runs * sum(low.values()), runs * sum(high.values()))
    return Stage(f"GRPO, {model.repository}", "H100", totals, run_memory(profile, model)[1], disk, how)


def sae_training_stage() -> Stage:
    """Training of the SAE with the paper's settings; activations are streamed, never stored."""
    count = sae_parameters(QWEN3_17B.width, GIVEN.paper_latents)
    memory = count * GIVEN.sae_train_bytes_per_parameter + 2 * QWEN3_17B.parameters + GIVEN.working_bytes
    how = f"{GIVEN.sae_text_bytes / GIVEN.web_bytes_per_token / 1e9:.1f}e9 tokens, streamed; sparse or dense gradients"
    return Stage("train the SAE", "A100", sae_training_hours(), memory, 4.0 * count, how)


def stages(profile: Profile, runs: dict[HubModel, int] = RUNS_OF_TABLE_4) -> list[Stage]:
    """Every stage in order, but for the SAE's training."""
    config, reader = profile.published, profile.reader
    assert config is not None and reader is not None
    features, latents = 4 * (4 * reader.retained_latents + 26), SAE[1]
    reading = 2 * QWEN3_17B.parameters + 4 * sae_parameters(QWEN3_17B.width, latents) + GIVEN.working_bytes
    others = ((config.parent_samples, GIVEN.numina_sample_bytes), (config.step_labelled_samples, GIVEN.prm_sample_bytes),
              (config.contest_train_samples + config.contest_test_samples, GIVEN.deepscaler_sample_bytes))  # fmt: skip
    extra = sum(reading_hours(n, text / GIVEN.math_bytes_per_token, latents) for n, text in others)
    pool = profile.pool_samples
    return [
        Stage("encode the pool", "H100", encode_hours(profile, latents), reading, pool * features,
              "forward pass and SAE encoder; solutions cut at the longest response, or whole R1 solutions"),
        Stage("encode the other sources", "H100", (extra, extra), reading, sum(n for n, _ in others) * features,
              "NuminaMath-1.5, PRM800K, DeepScaleR, as far as the paper uses them"),
        Stage("probes, clusters, filter, plan", "", (0.0, 0.0), 4e9, 0.1e9, "CPU; `bench plan` measures 8 s for the plan itself"),
        Stage("ADARFT's difficulty rollouts", "H100", adarft_hours(profile), run_memory(profile, POLICIES[0])[0], 0.1e9,
              f"{pool * GIVEN.adarft_samples:,} completions; for arm adarft alone"),
        *(training_stage(profile, model, count) for model, count in runs.items()),
    ]  # fmt: skip


def downloads(profile: Profile, policies: Iterable[HubModel] = POLICIES) -> list[tuple[str, float, str | None]]:
    """(repository, bytes, revision) of everything that the plan would fetch; weights count two bytes a parameter."""
    config, reader = profile.published, profile.reader
    assert config is not None and reader is not None
    pinned, models = dict(config.revisions), [*policies, *([MODELS[reader.model]] if reader.model in MODELS else [])]
    found = [(model.repository, 2.0 * model.parameters, model.revision) for model in models]
    if reader.sae.startswith("saelens:"):
        found.append((SAE[0], 4.0 * sae_parameters(QWEN3_17B.width, SAE[1]), None))
    if config.folder is None:
        sets = (*TRAINING_DATA, *BENCHMARKS)
        found += [(d.repository, float(d.download_bytes), pinned.get(d.name, d.revision)) for d in sets]
    return found


# The packages.


def canonical(name: str) -> str:
    """A distribution name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(path: Path = LOCK) -> dict[str, str]:
    """Locked version by canonical name. Raises ValueError for a line that is neither empty, a comment, nor `name==version`."""
    locked: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.split("#")[0].strip()
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+_-]+)", text)
        if text and match is None:
            raise ValueError(f"{path.name} line {number}: {text!r} is not of the form name==version")
        locked |= {canonical(match[1]): match[2]} if match else {}
    return locked


def package_faults(path: Path = LOCK) -> tuple[str, ...]:
    """One sentence a locked package that is absent or has another version; a local suffix such as `+cpu` is ignored.

    Of several installed versions the first on the import path counts, as for `import`. Raises what `read_lock` raises.
    """
    found = [(d.metadata["Name"], d.version) for d in metadata.distributions()]
    installed, wrong = {canonical(name): version for name, version in reversed(found) if name}, []
    for name, version in read_lock(path).items():
        have = installed.get(name)
        if have is None:
            wrong.append(f"{name} {version} is not installed")
        elif have.split("+")[0] != version.split("+")[0]:
            wrong.append(f"{name} is {have}, locked is {version}")
    return tuple(wrong)


def check_packages(path: Path = LOCK) -> int:
    """0 when this Python is new enough and holds the lock, else 1 with the first five differences on stdout."""
    if sys.version_info < MINIMUM_PYTHON:
        print(f"Python {sys.version.split()[0]} is older than {'.'.join(map(str, MINIMUM_PYTHON))}")
        return 1
    try:
        wrong = package_faults(path)
    except (OSError, ValueError) as error:
        wrong = (f"cannot read the lock: {error}",)
    print("\n".join([*wrong[:5], *([f"and {len(wrong) - 5} more"] if len(wrong) > 5 else [])]), end="\n" if wrong else "")
    return 1 if wrong else 0


# This machine.


class Machine(NamedTuple):
    """Findings about this machine."""

    hub_reachable: bool
    gpus: tuple[tuple[str, float], ...]  # name and bytes of each
    missing_packages: tuple[str, ...]  # a sentence for each locked package that is absent or of another version
    free_disk_bytes: int  # where the outputs go (`SAERL_HOME`)
    cache_disk_bytes: int  # where downloads go (`HF_HOME`, else ~/.cache/huggingface)


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
    """Look at this machine; takes about a second without a hub. Raises ValueError for a damaged requirements.lock."""
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser().absolute()
    return Machine(reachable(), list_gpus(), package_faults(), _free(paths.artifacts_root()), _free(cache))


def missing(profile: Profile, machine: Machine, runs: dict[HubModel, int] = RUNS_OF_TABLE_4) -> list[str]:
    """One sentence for each thing that this machine lacks to run the stages on hub models and data."""
    listed, fetched = stages(profile, runs), downloads(profile, runs)
    need = max(gpus(stage.memory_bytes) for stage in listed if stage.gpu)
    large = sum(memory >= 0.95 * GIVEN.gpu_memory_bytes for _, memory in machine.gpus)
    here = ", ".join(f"{name} ({size(memory)})" for name, memory in machine.gpus) or "none found"
    packages = machine.missing_packages
    more = f"; and {len(packages) - 3} more" if len(packages) > 3 else ""
    weight, left = sum(row[1] for row in fetched), sum(stage.disk_bytes for stage in listed)
    cache, free = machine.cache_disk_bytes, machine.free_disk_bytes
    bare = [data.name for data in SETS.values() if (data.repository, float(data.download_bytes), None) in fetched]
    found = {
        "network: huggingface.co does not answer within a second": not machine.hub_reachable,
        f"GPU: {need} of {size(GIVEN.gpu_memory_bytes)} for the largest stage; here: {here}": large < need,
        f"packages: {'; '.join(packages[:3])}{more} (requirements.lock)": packages,
        f"disk: {size(weight)} of downloads, {size(cache)} free in the cache": cache < weight,
        f"disk: {size(left)} of results, {size(free)} free where outputs go (SAERL_HOME)": free < left,
        f"revisions: not pinned yet, pass --revision SET=HASH for {', '.join(bare)}": bare,
    }  # fmt: skip
    return [sentence for sentence, lacks in found.items() if lacks]


# As text.


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


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines of aligned columns, the last one ragged."""
    widths = [*(max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]), 0]
    return "\n".join("  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def items(sentences: Iterable[str]) -> str:
    """Sentences as a list."""
    return "\n".join(f"  - {sentence}" for sentence in sentences)


def stage_row(stage: Stage) -> tuple[str, ...]:
    """A stage as it is printed."""
    spent, unit, memory = "0", "no GPU", f"{size(stage.memory_bytes)} RAM"
    if stage.gpu:
        spent, unit = f"{stage.gpu_hours[0]:.1f} to {stage.gpu_hours[1]:.1f}", f"{stage.gpu}-hours"
        memory = f"{size(stage.memory_bytes)}, {gpus(stage.memory_bytes)} x {size(GIVEN.gpu_memory_bytes)}"
    return (stage.name, spent, unit, memory, size(stage.disk_bytes), stage.how)


def plan_text(profile: Profile, machine: Machine) -> str:
    """The whole plan: downloads, costs by stage, the paper's own figures, assumptions, what is missing."""
    fetched, listed, reader = downloads(profile), stages(profile), profile.reader
    assert reader is not None
    low, high = (sum(stage.gpu_hours[i] for stage in listed if stage.gpu == "H100") for i in (0, 1))
    assumed = [(name, f"{value:,} {unit}" if isinstance(value, int) else f"{value:.4g} {unit}", origin, why)
               for name, value, unit, origin, why in ASSUMPTIONS]  # fmt: skip
    measured = (("SAE encoding of the pool, F = 131,072", 0.5, "H100-hours", encode_hours(profile, GIVEN.paper_latents)),
                ("SAE training, 29 h x 4 A100", 116.0, "A100-hours", sae_training_hours()),
                ("ADARFT's rollouts", 17.33, "H100-hours", adarft_hours(profile)))  # fmt: skip
    figures = [(name, f"{paper:g} {unit}", " to ".join(f"{n:.2g}" if top < 10 else f"{n:,.0f}" for n in (bottom, top)),
                f"{bottom / paper:.1f} to {top / paper:.1f}") for name, paper, unit, (bottom, top) in measured]  # fmt: skip
    return f"""Profile paper: a plan of arXiv 2605.27354's own experiments, none of which was run at this scale.
Policies: {", ".join(model.repository for model in POLICIES)}. Reader: {reader.model}, SAE: {reader.sae}.
The SAE differs from the paper's, which is not public: trained on the base model, 32,768 latents (expansion 16) in place of
131,072 (64), TopK with k = 50 (the paper does not state k), on Qwen's own corpus in place of FineWeb-Edu and Wikipedia.

Downloads, {size(sum(row[1] for row in fetched))} (a plan downloads nothing):
{table([(name, size(count), revision or "not pinned yet") for name, count, revision in fetched])}
  Notes:
{items(f"{data.repository}: {data.note}" for data in SETS.values() if data.note)}

Stages (hours: expected to upper; memory: of one run, and the GPUs that hold it):
{table([("stage", "hours", "", "GPU memory", "disk", "how"), *map(stage_row, listed)])}
  All of it: {low:,.0f} to {high:,.0f} H100-hours, {size(sum(stage.disk_bytes for stage in listed))} of results.
  That is the paper's list. The profile itself trains {", ".join(profile.arms)} on {profile.policy},
  {profile.train.seeds} seed(s), {profile.steps} steps, unless --arms (of {", ".join(PLANS)}), --policy, --seeds or
  --steps say otherwise.
  An SAE trained with the paper's settings instead (`python -m saerl_lib sae`, then --sae FOLDER):
{table([stage_row(sae_training_stage())])}

The paper's own figures:
{table([("quantity", "paper", "computed", "computed / paper"), *figures])}

Assumptions, beside the settings of profile paper in saerl_lib/config.py:
{table(assumed)}
Not stated in the paper and still to be chosen:
  - reward function, KL weight, clip values and mini-batch of GRPO
  - temperature and response length of evaluations
  - k, learning rate, number of tokens and reconstruction quality of the SAE
  - how the 240 latents are chosen, scaling, chat template, which R1 solution is read
  - alpha and l1_ratio of the elastic net, the form of g, tau_sh, window and tolerances of the tail swap
  - rests that fill no batch, clusters of unequal size, the order of a second epoch (900 steps are 1.12 epochs)

Missing here:
{items([*missing(profile, machine), "vLLM is not locked here: without it rollouts are several times slower"])}"""


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
    print(plan_text(get_profile(profile), look()))
    return 0


def require_machine(profile: Profile) -> None:
    """Look at every local stand-in before anything is read, and at the machine where one of them is missing.

    Raises ValueError that lists all that is wrong, or what the machine lacks and the options that name stand-ins.
    """
    config, reader = profile.published, profile.reader
    if config is None or reader is None:
        return
    from saerl_lib.data.published import sets_to_read  # needs packages, the plan does not

    def require_sae() -> None:
        file = "config.json" if reader.sae.startswith("opensae:") else "cfg.json"
        if not (Path(reader.sae.removeprefix("opensae:")) / file).is_file():
            known = "a folder saved by SAELens, opensae:FOLDER or saelens:RELEASE/ID"
            raise ValueError(f"--sae {reader.sae}: no {file} there; name {known}")

    checks = {
        "--data": (config.folder is not None, lambda: sets_to_read(profile)),
        "--reader": (reader.model not in MODELS, lambda: model_folder(reader.model, "--reader")),
        "--sae": (not reader.sae.startswith("saelens:"), require_sae),
        "--policy": (profile.policy not in MODELS, lambda: model_folder(profile.policy, "--policy")),
    }
    problems = []
    for local, check in checks.values():
        try:
            _ = check() if local else None
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    absent, count = [option for option, (local, _) in checks.items() if not local], len(profile.arms) * profile.train.seeds
    lacks = missing(profile, look(), {MODELS.get(profile.policy, POLICIES[0]): count}) if absent else []
    if lacks:
        raise ValueError(
            f"profile {profile.name!r} takes models and data from the Hugging Face Hub and needs GPUs; this machine lacks\n"
            f"{items(lacks)}\n--plan-only prints the whole plan. On local stand-ins it runs anywhere; not given: "
            + ", ".join(absent)
        )


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m saerl_lib.needs`: needs no package; returns 0, or 1 with a message."""
    parser = argparse.ArgumentParser(prog="python -m saerl_lib.needs", description="the plan of profile paper")
    parser.add_argument("--packages", action="store_true", help="whether the locked packages are installed")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--plan-only", action="store_true")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.packages:
        return check_packages()
    try:
        return run_plan(arguments.profile, [word for word in rest if word != "--debug"], arguments.plan_only)
    except (ValueError, OSError) as error:
        if "--debug" in rest:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
