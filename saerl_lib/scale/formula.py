"""Bytes, passes, the slowest resource, time and cost of each step for N samples, from assumptions alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from saerl_lib.paper.arithmetic import parameters
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.estimate import encode_hours
from saerl_lib.scale.assumptions import ScaleAssumptions
from saerl_lib.scale.config import ScaleConfig
from saerl_lib.scale.records import record_dtype

HOUR = 3600.0


@dataclass(frozen=True)
class Step:
    """One step at a given N."""

    key: str
    """As in the simulation's measurements."""
    name: str
    passes: str
    """What is gone over how often."""
    left_bytes: float
    """What it leaves on disk."""
    seconds_by: Mapping[str, float]
    """Resource -> seconds if nothing else took time."""
    gpu_hours: tuple[float, float] = (0.0, 0.0)
    """Expected and upper."""
    core_hours: float = 0.0

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        return max(self.seconds_by, key=lambda name: self.seconds_by[name])

    @property
    def seconds(self) -> float:
        """Time when the resources work side by side: that of the slowest."""
        return self.seconds_by[self.bound]

    def usd(self, given: ScaleAssumptions) -> tuple[float, float]:
        """Expected and upper cost of GPU-hours and core-hours; storage is apart."""
        cores = self.core_hours * given.usd_per_core_hour
        low, high = (hours * given.usd_per_h100_hour + cores for hours in self.gpu_hours)
        return low, high


def columns(config: PaperConfig) -> int:
    """Width of phi.

    >>> columns(PaperConfig())
    986
    """
    return 4 * config.retained_latents + config.metadata_features


def phi_bytes(config: PaperConfig, given: ScaleAssumptions) -> int:
    """Bytes of a sample in a feature shard: z, metadata, length and id.

    >>> phi_bytes(PaperConfig(), ScaleAssumptions())
    2047
    """
    return 4 * config.retained_latents * given.z_bytes + config.metadata_features * given.metadata_bytes + 8 + given.id_bytes


def solution_tokens(config: PaperConfig, given: ScaleAssumptions) -> tuple[float, float]:
    """Tokens of a solution: cut at the longest response, and whole."""
    whole = given.deepmath_solution_bytes / given.math_bytes_per_token
    return min(whole, config.max_response_tokens), whole


def distinct_latents(tokens: float, latents: int, k: int) -> float:
    """Expected number of distinct latents of a span when each token fires k of F at random: no span has more on average.

    >>> round(distinct_latents(100, 32768, 50))
    4640
    """
    return latents * (1.0 - (1.0 - k / latents) ** tokens)


def store_bytes(config: PaperConfig, given: ScaleAssumptions) -> tuple[float, float]:
    """Bytes of a sample as sparse pooled statistics of all latents: expected, and with latents at random."""
    spans = (float(given.prompt_tokens), solution_tokens(config, given)[0])
    entries = sum(distinct_latents(tokens, config.sae_latents, given.sae_k) for tokens in spans)
    most = entries * given.store_entry_bytes + 9 + given.id_bytes  # a row pointer, whether there is a solution, the id
    return given.distinct_share * most, most


def encode_step(samples: int, config: PaperConfig, given: ScaleAssumptions) -> Step:
    """Forward pass and SAE over all texts on `gpus` GPUs; the features are written by the next step."""
    hours = encode_hours(replace(config, pool_samples=samples), given, config.sae_latents)
    cut, whole = (given.prompt_tokens + tokens for tokens in solution_tokens(config, given))
    weights = 2.0 * parameters(config.reading_model) + 4.0 * config.encoder.width * config.sae_latents
    read = samples * cut / given.gpu_batch_tokens * weights
    text = samples * whole * given.math_bytes_per_token
    by = {
        "GPU FLOPs": hours[0] * HOUR / given.gpus,
        "GPU memory bandwidth": read / given.h100_bytes_per_second / given.gpus,
        "disk bandwidth": text / given.disk_bytes_per_second,
    }
    return Step("encode", "encode", "1 over the texts", 0.0, by, hours)


def feature_steps(samples: int, config: PaperConfig, given: ScaleAssumptions) -> list[Step]:
    """Both forms of the features; they are written while the GPUs work."""
    dense, sparse = samples * phi_bytes(config, given), samples * store_bytes(config, given)[0]
    wide = f"store features, {columns(config)} wide"
    forms = (("store_features", wide, dense), ("store_sparse", "or all latents, sparse", sparse))
    disk = given.disk_bytes_per_second
    return [Step(key, name, "1, written", size, {"disk bandwidth": size / disk}) for key, name, size in forms]


def _feature_pass(samples: int, config: PaperConfig, given: ScaleAssumptions, bytes_per_number: int) -> dict[str, float]:
    d, k, n = columns(config), config.clusters, samples / given.processes
    return {
        "disk bandwidth": samples * phi_bytes(config, given) / given.disk_bytes_per_second,
        "memory bandwidth": n * d * bytes_per_number / given.memory_bytes_per_second,
        "CPU": n * d * (2 * k + given.elementwise_flops_per_number) / given.core_flops,
    }


def plan_steps(samples: int, config: PaperConfig, given: ScaleAssumptions, scale: ScaleConfig) -> list[Step]:
    """From stored features to plan.parquet, on `processes` cores."""
    record, n = record_dtype(given.id_bytes).itemsize, samples / given.processes
    merges = scale.merge_passes(samples)
    records, ids, disk = samples * record, samples * given.id_bytes, given.disk_bytes_per_second
    merging = merges * samples / given.merge_rows_per_second
    run_compares = n * math.log2(min(scale.run_rows, samples)) / given.compares_per_second
    plan = samples * given.plan_row_bytes
    works = (
        ("cluster_fit", "cluster fit", "1 over the features", 0.0,
         _feature_pass(samples, config, given, given.fit_bytes_per_number)),
        ("assign_score", "assign and score", "1 over the features", 0.0,
         _feature_pass(samples, config, given, given.score_bytes_per_number)),
        ("external_sort", "external sort", f"{1 + merges} over the records", records,
         {"disk bandwidth": (1 + 2 * merges) * records / disk, "CPU": run_compares + merging}),
        ("unique_ids", "ids, each once", f"{1 + merges} over the ids", 0.0,
         {"disk bandwidth": (2 + 2 * merges) * ids / disk, "CPU": run_compares + merging}),
        ("swap", "stages and tail swap", "1 over the records", 0.0,
         {"disk bandwidth": records / disk, "CPU": samples / given.swap_rows_per_second}),
        ("export", "export", "1, written", plan,
         {"disk bandwidth": plan / disk, "CPU": samples / given.export_rows_per_second}),
    )  # fmt: skip
    found = []
    for key, name, passes, left, by in works:
        seconds = max(by.values())
        found.append(Step(key, name, passes, left, by, core_hours=seconds * given.processes / HOUR))
    return found


def all_steps(samples: int, config: PaperConfig, given: ScaleAssumptions, scale: ScaleConfig) -> list[Step]:
    """Every step in order. Raises ValueError for fewer samples than a batch."""
    if samples < config.prompts_per_step:
        raise ValueError(f"samples={samples} fill no batch of {config.prompts_per_step}: pass --samples with more")
    reading = [encode_step(samples, config, given), *feature_steps(samples, config, given)]
    return reading + plan_steps(samples, config, given, scale)


@dataclass(frozen=True)
class Growth:
    """Memory of a function of the in-memory path that grows with N."""

    function: str
    what: str
    bytes_per_sample: float

    def full_at(self, memory_bytes: float) -> int:
        """Samples at which it alone fills a memory."""
        return int(memory_bytes // self.bytes_per_sample)


def in_memory_growth(config: PaperConfig, given: ScaleAssumptions) -> list[Growth]:
    """What the in-memory path holds for every sample, the largest first."""
    text = given.python_id_bytes + given.id_bytes
    z = 4.0 * 4 * config.retained_latents
    columns_of_plan = 6 * 8 + text
    found = [
        Growth("encode.pooling.pool_samples", "z of all samples, float32", z),
        Growth("encode.store.Store.select", "z of every shard and the joined copy, float32", 2 * z),
        Growth("plan.batch_plan.validate", "a Counter and a set of all ids, beside the plan's table",
               2 * (text + given.counter_entry_bytes) + columns_of_plan),
        Growth("plan.batch_plan.Pool", "a Counter of all ids, beside the arrays",
               text + given.counter_entry_bytes + 4 * 8 + 4 * given.id_bytes),
        Growth("properties.clusters.open_phi", "ids as Python strings; the features stay on disk", text),
    ]  # fmt: skip
    return sorted(found, key=lambda growth: -growth.bytes_per_sample)
