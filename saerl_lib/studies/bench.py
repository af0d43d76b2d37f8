"""`python -m saerl_lib bench NAME`: speed and memory as ratios measured in one run; the last line is one JSON object.

With `--publish` the numbers replace their rows in `figures/data/measurements.csv`, which the documents cite.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from transformers import Qwen3Config, Qwen3Model
from trl import GRPOTrainer

from saerl_lib import paths
from saerl_lib.artifacts import Stage, provenance, resident_mib
from saerl_lib.config import PlanConfig, Profile, PropertyConfig, get_profile, sub_seed
from saerl_lib.data.answers import reward
from saerl_lib.data.published import load_labelled
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.encode.models import open_causal, open_reader, pick_device, token_batches, truncate
from saerl_lib.encode.pool import pool_vectors, write_shard
from saerl_lib.plan.batch_plan import write_plan
from saerl_lib.plan.orders import build_plan
from saerl_lib.properties.clusters import pool_clusters
from saerl_lib.properties.scorer import Columns, fit_scorer, rated_sources
from saerl_lib.report.tables import as_table, read_table, write_csv
from saerl_lib.train.policy import DIFFICULTY_ATTEMPTS, FOLDER, pass_rates
from saerl_lib.train.sampler import Sampler
from saerl_lib.train.selectors import InOrder
from saerl_lib.train.trainer import PackedFeed, PlanTrainer, grpo_arguments, record
from saerl_lib.world.sources import world_stage

CPU = torch.device("cpu")
Rows = dict[str, float]
REPEATS = 5
PLAN = PlanConfig(prompts_per_step=128, swapped_per_batch=8)
"""The paper's b and h."""
FEATURES_UP_TO = 2_000_000
"""Features of more samples would fill the disk (4 KB a sample)."""
Z_COLUMNS, METADATA_COLUMNS, GROUPS, CHUNK = 960, 26, 12, 8192
LABELLED, NEGATIVES = 3000, 1500
SCORES = ("sample_id", "cluster", "ranking", "raw", "length")
PARTS, PROMPTS = 5, 200
"""Of `bench preparation`: disjoint parts of the pool, and their prompts."""
GRPO_STEPS, GRPO_REPEATS, GRPO_PROMPTS = 4, 3, 32
"""A step has as many prompts as in profile `study`."""


def run_bench(name: str, samples: int, device: str | None = None, line: str | None = None, publish: bool = False) -> int:
    """Entry of the command. Raises ValueError for an option that the benchmark does not have."""
    for option, value, owner in (("device", device, "encode"), ("line", line, "command")):
        if value is not None and name != owner:
            raise ValueError(f"bench {name} has no --{option}; `bench {owner}` has one")
    if name == "plan":
        return report(name, f"{samples:,} samples", bench_plan(samples), publish)
    if name == "command":
        return report(name, line or "", bench_command(line), publish)
    profile = get_profile("laptop")
    world = world_stage(profile)
    if name == "encode":
        return report(name, device or "cpu", bench_encode(profile, world, pick_device(device or "cpu")), publish)
    if name == "grpo":
        return report(name, "one thread", bench_grpo(profile, world), publish)
    return report(name, f"{PARTS} x {PROMPTS} prompts", bench_preparation(profile, world, publish), publish)


def seconds(work: Callable[[], Any], device: torch.device = CPU) -> float:
    """Wall-clock seconds of one call, the work that it leaves running on `device` included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


class Stopwatch:
    """Seconds of named calls, added up, and as processor_s the processor's seconds of those that end in _s."""

    def __init__(self) -> None:
        self.times: Rows = defaultdict(float, processor_s=0.0)

    def __call__(self, name: str, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of `work(*args, **kwargs)`, timed under `name`."""
        start, processor = time.perf_counter(), time.process_time()
        found = work(*args, **kwargs)
        self.times[name] += time.perf_counter() - start
        self.times["processor_s"] += time.process_time() - processor if name.endswith("_s") else 0.0
        return found


def peak_mib(work: Callable[[], Any]) -> float:
    """Largest resident memory that one call takes above what lies there before, MiB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark starts again from what is resident now
    before = resident_mib("VmRSS")
    work()
    return resident_mib("VmHWM") - before


def in_fresh_process(work: Callable[..., Rows], *args: Any) -> Rows:
    """What `work` measures in a process of its own, so that its memory is its own; one thread unless OMP_NUM_THREADS is set."""
    with patch.dict(os.environ, OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1")):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(work, *args).result()


def report(bench: str, of: str, rows: Rows, publish: bool) -> int:
    """Print a small table, and the JSON line; `publish` replaces the rows of this benchmark `of` this size or command."""
    print(pd.Series(rows).round(3).to_string())
    if publish:
        known, made = (paths.PUBLISHED / "measurements.csv").is_file(), provenance()
        old = read_table("measurements", paths.PUBLISHED) if known else as_table("measurements", [])
        found = as_table("measurements", [(bench, of, *row, made["processor"], made["commit"]) for row in rows.items()])
        kept = old[(old["bench"] != bench) | (old["of"] != of)]
        table = pd.concat([kept, found]).sort_values(["bench", "of"], kind="stable")
        print(f"written: {write_csv(table, 'measurements', paths.PUBLISHED)}")
    print(json.dumps({name: round(value, 5) for name, value in rows.items()}))
    return 0


def bench_command(line: str | None) -> Rows:
    """Seconds of a command of a shell and the peak of its processes' own memory, GB. Raises ValueError where it fails."""
    if line is None:
        raise ValueError("bench command needs --line, what a shell runs")
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(line, shell=True, cwd=os.environ.get("SAERL_CALLED_FROM")) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(0.5)
            peak = max(peak, sum(map(own_memory, [root, *root.children(recursive=True)])))
    if process.returncode:
        raise ValueError(f"{line} ended with code {process.returncode}: nothing is reported")
    return {"seconds": time.perf_counter() - start, "peak_gb": peak / 1e9}


def own_memory(process: psutil.Process) -> int:
    """Bytes of one process, shared ones divided among those that share them; 0 once it has ended."""
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


@dataclass(frozen=True)
class Shape:
    """A decoder, its SAEs and one batch; the defaults are Qwen3-1.7B cut at the paper's layer 27 of 28."""

    width: int = 2048
    feed_forward: int = 6144
    layers: int = 27
    heads: int = 16
    key_value_heads: int = 8
    head_width: int = 128
    latents: tuple[int, ...] = (32_768, 131_072)  # F of the SAEs that are measured
    k: int = 50  # active latents a token
    samples: int = 4  # of the batch, half prompt and half solution
    tokens: int = 256  # of the batch
    device: torch.device = CPU
    precision: torch.dtype = torch.float32  # of model and SAEs


PAPER = Shape()
PAPER_GPU = replace(PAPER, samples=64, tokens=4096)
"""256 tokens would leave a GPU idle; at 4,096 the obvious way still fits into 24 GB beside model and SAEs."""


def shape_activations(shape: Shape) -> Callable[[], torch.Tensor]:
    """The forward pass to [B, T, D] of a batch of equal samples, by random weights cut at the last block. The vocabulary is
    small, as embeddings cost no product."""
    torch.manual_seed(0)
    with shape.device:
        model = truncate(Qwen3Model(Qwen3Config(
            vocab_size=512, max_position_embeddings=1024, hidden_size=shape.width, intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads,
            head_dim=shape.head_width,
        )), shape.layers)  # fmt: skip
    for weight in model.parameters():
        weight.data = weight.data.to(shape.precision)
    ids = torch.randint(0, 512, (shape.samples, shape.tokens // shape.samples), generator=torch.Generator().manual_seed(0))
    return torch.inference_mode()(functools.partial(model, ids))


def random_sae(latents: int, shape: Shape) -> TopKSAE:
    """A SAELens SAE with random weights."""
    sae = TopKSAE(TopKSAEConfig(k=shape.k, d_in=shape.width, d_sae=latents, device=str(shape.device)))
    torch.nn.init.normal_(sae.W_enc, std=shape.width**-0.5)
    return sae.to(dtype=shape.precision).eval()


def span_groups(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Span of each token of the batch, prompts even and solutions, the second half of a sample, odd; the tokens of each span."""
    group = np.repeat(np.arange(2 * shape.samples), shape.tokens // shape.samples // 2)
    return group, np.bincount(group)


def dense_way(sae: TopKSAE, vectors: torch.Tensor, spans: int) -> torch.Tensor:
    """The obvious way: all latents of all tokens [T, F], then mean and maximum of each of `spans` equal spans."""
    found = sae.encode(vectors).view(spans, -1, sae.cfg.d_sae)
    return torch.cat([found.mean(dim=1), found.amax(dim=1)])


@torch.inference_mode()
def shape_ratios(repeats: int, shape: Shape) -> Rows:
    """Ratios for each F of `shape`, every part added to the same measured forward pass."""
    forward_pass, spans = shape_activations(shape), span_groups(shape)
    vectors = torch.nn.functional.normalize(forward_pass().flatten(0, 1)) * shape.width**0.5
    rows: Rows = {}
    for latents in shape.latents:
        top = random_sae(latents, shape)
        works = {
            "forward": forward_pass,
            "product": lambda sae=top: sae.process_sae_in(vectors) @ sae.W_enc,
            "dense": functools.partial(dense_way, top, vectors, 2 * shape.samples),
            "all": functools.partial(pool_vectors, top, vectors, *spans),
        }
        for work in works.values():
            work()
        timed = [{name: seconds(work, shape.device) for name, work in works.items()} for _ in range(repeats)]
        found = pd.DataFrame(timed).median()  # run in turn, so that a slow moment of the machine hits all of them
        forward = found["forward"]
        rows |= {
            f"forward_s_{latents}": forward,
            f"obvious_to_forward_{latents}": (forward + found["dense"]) / forward,
            f"all_to_forward_{latents}": (forward + found["all"]) / forward,
            f"all_to_forward_and_product_{latents}": (forward + found["all"]) / (forward + found["product"]),
        }
    return rows


@torch.inference_mode()
def encode_peaks(shape: Shape = replace(PAPER, latents=(131_072,), samples=32, tokens=8192)) -> Rows:  # noqa: B008
    """Peaks of resident memory above weights and activations of both ways of encoding, in this process."""
    sae, vectors = random_sae(shape.latents[0], shape), torch.randn(shape.tokens, shape.width)
    chunked = peak_mib(lambda: pool_vectors(sae, vectors, *span_groups(shape)))
    obvious = peak_mib(lambda: dense_way(sae, vectors, 2 * shape.samples))
    return {"obvious_peak_mib": obvious, "chunked_peak_mib": chunked, "obvious_to_chunked_peak": obvious / max(chunked, 1.0)}


def bench_encode(profile: Profile, world: Stage, device: torch.device = CPU) -> Rows:
    """Padding of MATH (without `SAERL_DATA_DIR`: of the world's pool) and the paper's shape; on a CPU also the peak of memory, on
    a GPU the shape in bfloat16 too."""
    on_cpu = device.type == "cpu"
    shape = PAPER if on_cpu else replace(PAPER_GPU, device=device)
    encoder, folder = open_reader(profile.reader), paths.shared_data_dir()
    samples = load_labelled(folder / "math_train.jsonl.gz").samples if folder else load_split(world, "pool")
    batches = list(token_batches(samples, encoder.tokenizer, encoder.tokens_per_batch, encoder.max_tokens))
    rows = {"padded_to_real_tokens": sum(b.ids.numel() for b in batches) / sum(int(b.real.sum()) for b in batches)}
    rows |= shape_ratios(REPEATS, shape)
    largest = max(shape.latents)
    rows["paper_shape_tokens_per_s"] = shape.tokens / (rows[f"forward_s_{largest}"] * rows[f"all_to_forward_{largest}"])
    if on_cpu:
        return rows | in_fresh_process(encode_peaks)
    print(f"device {torch.cuda.get_device_name(device)}")
    half = shape_ratios(REPEATS, replace(shape, precision=torch.bfloat16))
    return rows | {f"bf16_{name}": value for name, value in half.items()}


def bench_plan(samples: int) -> Rows:
    """Draw `samples` prompts (not timed) and time the way to the plan. Raises ValueError for fewer samples than a batch."""
    if samples < PLAN.prompts_per_step:
        raise ValueError(f"samples={samples} fill no batch of {PLAN.prompts_per_step}: pass --samples with more")
    draw, work = (write_features, plan_from_features) if samples <= FEATURES_UP_TO else (write_scores, plan_from_scores)
    with tempfile.TemporaryDirectory(prefix="saerl-bench-") as name:
        draw(Path(name), samples)
        rows = in_fresh_process(work, Path(name))
    return rows | {"total_s": sum(value for key, value in rows.items() if key.endswith("_s") and key != "processor_s")}


def plan_from_features(folder: Path) -> Rows:
    """Seconds a stage, from the files of `write_features` to plan.parquet beside them, and those of `fit` on the labelled
    samples, which does not grow with the pool."""
    config, watch = PropertyConfig(), Stopwatch()
    pool, labelled, negatives = (
        Columns([f"{name}-{i:07d}" for i in range(len(phi))], phi, phi[:, :Z_COLUMNS])
        for name, phi in ((n, np.load(folder / f"{n}.npy", mmap_mode="r")) for n in ("pool", "labelled", "negatives"))
    )
    clusters = watch("clusters_s", pool_clusters, pool.phi, config, 0)
    rated = rated_sources(labelled, negatives)
    scorer = watch("fit", fit_scorer, clusters, labelled, np.load(folder / "difficulty.npy"), rated, config, 0)
    table = watch("score_s", scorer.score, pool, len(pool.ids) - len(pool.ids) % PLAN.prompts_per_step)
    table = table.assign(length=pool.phi[:, Z_COLUMNS].astype(float))[table["kept"]]
    plan = watch("plan_s", build_plan, *(table[name].to_numpy() for name in SCORES), PLAN)
    watch("write_s", write_plan, plan, folder / "plan.parquet")
    return {**watch.times, "peak_gb": resident_mib("VmHWM") / 1024}


def plan_from_scores(folder: Path) -> Rows:
    """Seconds a stage, from the file of `write_scores` to plan.parquet beside it. Rows that fill no batch are cut off."""
    watch = Stopwatch()
    table = watch("read_s", pq.read_table, folder / "scores.parquet")
    table = table.slice(0, len(table) - len(table) % PLAN.prompts_per_step)
    columns = (table[name].to_numpy() for name in SCORES[1:])
    plan = watch("plan_s", build_plan, table["sample_id"], *columns, PLAN)
    watch("write_s", write_plan, plan, folder / "plan.parquet")
    return {**watch.times, "peak_gb": resident_mib("VmHWM") / 1024}


def write_scores(folder: Path, samples: int) -> None:
    """Write scores.parquet, columns of `SCORES`, in no order: clusters of unequal size, harder ones longer."""
    rng = np.random.default_rng(0)
    cluster = rng.choice(GROUPS, samples, p=rng.dirichlet(np.full(GROUPS, 5.0)))
    ranking = 5 + rng.normal(size=samples) + cluster / GROUPS
    pd.DataFrame({
        "sample_id": [f"pool-{i:010d}" for i in rng.permutation(samples)], "cluster": cluster, "ranking": ranking,
        "raw": ranking + rng.normal(size=samples), "length": np.ceil(40 * ranking.clip(1) * rng.lognormal(size=samples)),
    }).to_parquet(folder / "scores.parquet", index=False)  # fmt: skip


def write_features(folder: Path, samples: int) -> None:
    """Write phi of pool, labelled and negatives, and the difficulty of the labelled, linear in z and noisy, into `folder`.

    Sparse non-negative values with cluster structure: each of 12 groups fires some latents often and the rest seldom.
    """
    rng = np.random.default_rng(0)
    often = np.where(rng.random((GROUPS, Z_COLUMNS)) < 0.2, 0.5, 0.05).astype(np.float32)
    weight = rng.normal(size=Z_COLUMNS) * (rng.random(Z_COLUMNS) < 0.05)
    for name, n in {"pool": samples, "labelled": LABELLED, "negatives": NEGATIVES}.items():
        phi = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (n, Z_COLUMNS + METADATA_COLUMNS))
        for start in range(0, n, CHUNK):
            group = rng.integers(0, GROUPS, min(CHUNK, n - start))
            drawn = rng.standard_exponential((len(group), phi.shape[1]), dtype=np.float32)
            drawn[:, :Z_COLUMNS] *= rng.random((len(group), Z_COLUMNS), dtype=np.float32) < often[group]
            drawn[:, Z_COLUMNS:] = 1 + drawn[:, Z_COLUMNS:] * (1 + group[:, None] / GROUPS)
            phi[start : start + CHUNK] = drawn
        if name == "labelled":
            np.save(folder / "difficulty.npy", 5 + phi[:, :Z_COLUMNS] @ weight + rng.normal(size=n) + 0.1 * phi[:, Z_COLUMNS])


def bench_preparation(profile: Profile, world: Stage, publish: bool) -> Rows:
    """Means over parts of the pool, encoded with all pooled latents stored, then rolled out (paper, section 5: 0.5 against 17.33
    H100-hours). `publish` writes the table preparation_cost, whose `saved` is in percent of rollouts_s."""
    samples, encoder = load_split(world, "pool"), open_reader(profile.reader)
    policy, rows = Sampler(*open_causal(FOLDER)), []
    with tempfile.TemporaryDirectory() as folder:
        write_shard(samples[-PROMPTS:], encoder, Path(folder) / "warm", {})
        for part in range(PARTS):
            chosen, seed = samples[part * PROMPTS : (part + 1) * PROMPTS], sub_seed(profile.seed, f"bench-preparation-{part}")
            read = seconds(functools.partial(write_shard, chosen, encoder, Path(folder) / str(part), {}))
            rolled = seconds(functools.partial(pass_rates, policy, chosen, profile.train, seed))
            rows.append((part, PROMPTS, PROMPTS * DIFFICULTY_ATTEMPTS, read, rolled, 100 * (1 - read / rolled)))
    table = as_table("preparation_cost", rows)
    if publish:
        print(f"written: {write_csv(table, 'preparation_cost', paths.PUBLISHED)}")
    mean = table[["encode_s", "rollouts_s", "saved"]].mean()
    return {**mean.to_dict(), "ratio_rollouts_to_encoding": mean["rollouts_s"] / mean["encode_s"]}


def bench_trainer(profile: Profile, samples: list[Sample], folder: Path, own: bool) -> Any:
    """The artifact's trainer with its log, or TRL's as it comes with the exact-answer reward."""

    def exact_answer(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [reward(text, gold) for text, gold in zip(completions, answer, strict=True)]

    policy, arguments = open_causal(FOLDER), grpo_arguments(profile.train, GRPO_PROMPTS, GRPO_STEPS, sub_seed(0, "bench"), folder)
    if own:
        order, log = InOrder(range(len(samples))), folder / "rollouts-000.jsonl"
        return PlanTrainer(PackedFeed(policy, samples, order, profile.train, GRPO_PROMPTS, log, 10**9, 0), policy, arguments)
    data = Dataset.from_list([record(s) for s in samples])
    return GRPOTrainer(policy[0], exact_answer, arguments, train_dataset=data, processing_class=policy[1])


def bench_grpo(profile: Profile, world: Stage) -> Rows:
    """Medians of alternating runs of `GRPO_STEPS` steps on one thread: a step, and of ours the rollouts, the loss, its gradient
    and the rest, which is the optimiser and bookkeeping."""
    torch.set_num_threads(1)
    samples, runs = load_split(world, "pool")[: GRPO_STEPS * GRPO_PROMPTS], []
    for _ in range(GRPO_REPEATS):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            watch, trainer = Stopwatch(), bench_trainer(profile, samples, Path(other), True)
            watch("trl_step_s", bench_trainer(profile, samples, Path(one), False).train)
            for owner, name, part in ((trainer.feed, "step", "rollouts_s"), (trainer, "_compute_loss", "loss_s"),
                                      (trainer.accelerator, "backward", "backward_s")):  # fmt: skip
                setattr(owner, name, functools.partial(watch, part, getattr(owner, name)))
            watch("artifact_step_s", trainer.train)
            runs.append(watch.times)
    rows = (pd.DataFrame(runs).drop(columns="processor_s").median() / GRPO_STEPS).to_dict()
    rows["other_s"] = rows["artifact_step_s"] - sum(rows[part] for part in ("rollouts_s", "loss_s", "backward_s"))
    return rows | {"ratio_trl_to_artifact": rows["trl_step_s"] / rows["artifact_step_s"]}
