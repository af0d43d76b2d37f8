"""Samples -> stored features: the reader's stages of a run, and the parts that a store is encoded in (paper, section 3.1).

Every split is read once, in parts that are resumed one by one and spread over processes or a Ray cluster (ours). A part is a pure
function: some samples and a `ReaderConfig` give one shard of a `Store`, by one thread on a CPU, so its bytes do not depend on the
number of workers. Its record holds the key of all that decides it, so a finished part is kept and one of other rows, another
reader or other code is done again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed, parallel_config
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

from saerl_lib import artifacts, paths
from saerl_lib.artifacts import MANIFEST, ArtifactError, Stage, code_hash, get_or_compute, provenance, read_json, write_json
from saerl_lib.config import SHIPPED, Profile, ReaderConfig, content_hash, sub_seed, to_dict
from saerl_lib.data.sample import DataError, Sample, load_split
from saerl_lib.encode.models import absolute, identity, model_name, open_causal, open_reader, open_tokenizer, sae_folder
from saerl_lib.encode.pool import Encoder, write_shard
from saerl_lib.encode.store import FeatureTable, Store, choose_retained, metadata_features, read_record, save_features, shard_path

# Stages.

READ = ("labelled", "test", "filter_negatives", "contest_train", "contest_test", "step_labelled", "pool")
"""Splits that are read where the data stage holds them; evaluation sets never are."""
BOUNDS = {"explained variance": (0.8, 1.0), "L0": (0.0, 0.06), "dead share": (0.0, 0.1)}
"""Lower and upper bounds of the shipped SAE, as `SAEQuality` has them; that of L0 is a share of the model's width (ours)."""
LEAST_TOKENS = 25_000
"""Fewer tokens leave latents silent that are alive: the share of dead ones is told then, and not judged."""
INFLUENCE_SHARE = 6
"""One of so many samples of L, the first ones, stands behind the gradient rule: 500 of 3,000."""


def splits_of(data: Stage) -> list[str]:
    """Names of the splits of a data stage that are read, in the order of `READ`."""
    return [name for name in READ if data.path(f"{name}.parquet").is_file()]


def reader_stage(profile: Profile, data: Stage) -> Stage:
    """sae_quality.parquet: rows of sae_quality.csv, the SAE on samples of L and of the test split. Raises ArtifactError
    for an SAE that explains less of L than the mean vector does: it is of another model or block."""

    def compute(_: Path) -> dict[str, pd.DataFrame]:
        from saerl_lib.encode.sae import measured  # SAELens takes seconds

        reader, encoder, rows = profile.reader, open_reader(profile.reader), []
        for split in ("labelled", "test"):
            found = measured(load_split(data, split), encoder)
            if not found.explained_variance > 0:
                raise ArtifactError(
                    f"--sae {reader.sae}: explained variance {found.explained_variance:.3f} on {found.n_tokens} tokens of "
                    f"{split} is not above 0, which the mean vector alone would reach; block {reader.layer} (--layer) or the "
                    "model (--reader) is probably not the one that this SAE was trained on"
                )
            for (quantity, (low, high)), value in zip(BOUNDS.items(), dataclasses.astuple(found), strict=False):
                high *= encoder.sae.cfg.d_in if quantity == "L0" else 1
                judged = (low, high, low <= value <= high)
                few = quantity == "dead share" and found.n_tokens < LEAST_TOKENS
                if reader.sae != SHIPPED or few:
                    judged = (None, None, None)
                rows.append((split, quantity, value, *judged, found.n_tokens))
        columns = ["encoder", "quantity", "value", "low", "high", "met", "n_tokens"]
        return {"sae_quality": pd.DataFrame(rows, columns=columns)}

    return get_or_compute(profile, "reader", identity(profile.reader), compute, (data,))


def store_stage(profile: Profile, data: Stage) -> Stage:
    """Read every split once: <split>/shard-*.safetensors with the pooled statistics of all latents, sparse. Parts lie beside the
    stage until it is whole, so that a killed run goes on behind its last part."""

    def compute(folder: Path) -> None:
        splits = {name: load_split(data, name) for name in splits_of(data)}
        read(splits, profile.reader, folder, paths.profile_dir(profile.name) / "parts")

    return get_or_compute(profile, "store", identity(profile.reader), compute, (data,))


def read(sets: Mapping[str, Sequence[Sample]], reader: ReaderConfig, folder: Path, parts: Path) -> None:
    """Stores of samples below `folder`, each under its name, read below `parts`, where finished parts outlive a kill."""
    encode({parts / name: samples for name, samples in sets.items()}, reader)
    for name in sets:
        shutil.copytree(parts / name, folder / name, copy_function=os.link, ignore=shutil.ignore_patterns("*.lock"))
    for name in sets:
        for path in sorted((parts / name).iterdir(), key=lambda path: path.name == LOCK):
            path.unlink()
        (parts / name).rmdir()
    with contextlib.suppress(OSError):  # others read below it
        parts.rmdir()


def read_stage(profile: Profile, name: str, samples: Sequence[Sample], reader: ReaderConfig) -> Stage:
    """Stage `read_<name>`: the store of any samples below `store`; only their texts, the reader and its code are in the key."""

    def compute(folder: Path) -> None:
        read({"store": samples}, reader, folder, paths.profile_dir(profile.name) / "parts" / name)

    texts = content_hash([[s.id, s.prompt, s.solution] for s in samples])
    return get_or_compute(profile, f"read_{name}", {"samples": texts, "reader": identity(reader)}, compute)


def features_stage(profile: Profile, data: Stage, store: Stage) -> Stage:
    """z and metadata of every split: retained.safetensors, then <split>.safetensors; nothing is read again. The retained set is
    chosen on L by `ReaderConfig.retained_rule`, by default without its labels."""

    def compute(folder: Path) -> None:
        retained = retained_of(profile, Store(store.path("labelled")), load_split(data, "labelled"))
        save_file({"retained": retained}, folder / "retained.safetensors")
        for name in splits_of(data):
            samples = load_split(data, name)
            z = Store(store.path(name)).select(retained)
            table = FeatureTable(tuple(s.id for s in samples), z, metadata_features(samples))
            save_features(table, folder / f"{name}.safetensors")

    return get_or_compute(profile, "features", to_dict(profile.reader), compute, (data, store))


def retained_of(
    profile: Profile, store: Store, samples: Sequence[Sample], rule: str | None = None, labels: np.ndarray | None = None
) -> np.ndarray:
    """The latents that a rule (default: the reader's) retains from the rows of `samples` in a store; ascending indices. Samples
    are those whose `labels` (default: their difficulty) may be used: L, or the training side of probes."""
    label = dict(zip([s.id for s in samples], [s.difficulty for s in samples] if labels is None else labels, strict=True))
    ids, reader = store.ids, profile.reader

    def influence() -> np.ndarray:
        from saerl_lib.encode.sae import gradient_influence

        chosen, tokens = samples[: len(samples) // INFLUENCE_SHARE], reader.tokens_per_batch // 4
        return gradient_influence(chosen, *open_causal(reader.model), reader.layer, open_reader(reader).sae, tokens)

    return choose_retained(
        store, min(reader.retained_latents, store.width), rule=rule or reader.retained_rule, influence=influence,
        rows=np.array([name in label for name in ids]), labels=np.array([label[name] for name in ids if name in label]),
        seed=sub_seed(profile.seed, "retained"),
    )  # fmt: skip


def retained_latents(features: Stage) -> np.ndarray:
    """Indices of the retained latents."""
    return load_file(features.path("retained.safetensors"))["retained"]


# Parts.

SAMPLES_PER_PART = 512
"""Samples that are batched together; bounds the memory of a worker and what its loss costs (ours)."""
LOSSES = 3
"""Times that workers may be lost without finishing a part in between, and that Ray repeats a part."""
IDLE = 60
"""Seconds after which a process that has nothing to do ends and gives its memory back, also one whose parent was killed."""
LOCK = "encode.lock"
"""Held while a call writes the folder; tells a folder of ours from another."""
PACKAGES = ("torch", "transformers", "tokenizers", "sae-lens", "numpy", "safetensors")
"""Packages that decide the bytes of a part."""
TOTALS = ("samples", "tokens", "truncated", "solved", "entries")
"""Counts in the record of a part that add up: samples cut, samples with a solution span, and entries above zero among them."""
RAY_WORKERS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(paths.ROOT)}
"""Environment of Ray's workers: one thread a process, no network."""


class Encoded(NamedTuple):
    """What `encode` left behind: a store, its parts, those of them that were finished before, and the sums of `TOTALS`."""

    store: Store
    parts: int
    reused: int
    totals: dict[str, int]


class Part(NamedTuple):
    """Consecutive samples, the shard that they become, and the content hash of all that decides it, its number included."""

    path: str
    key: str
    samples: Sequence[Sample]


class Reading(NamedTuple):
    """What travels to the workers beside a part: the reader with absolute folders, and `environment()` of the caller."""

    spec: ReaderConfig
    environment: dict[str, str]


def encode(
    sets: Mapping[Path, Sequence[Sample]], spec: ReaderConfig, *, samples_per_part: int = SAMPLES_PER_PART,
    workers: int | None = None, ray: str | None = None, opened: Callable[[], Encoder] | None = None,
    about: Mapping[str, Any] | None = None,
) -> list[Encoded]:  # fmt: skip
    """Pooled latents of samples, in their order, as a store in each folder of `sets`; its manifest, which holds `about` too,
    comes last, after the parts of all folders. They are spread over `workers` processes of this machine (default: one for a GPU
    or for the samples of one part, else one a core), or over the Ray cluster at `ray` (HOST:PORT or auto), at most `workers` at
    a time; its machines share the folders. Where this process encodes itself, `opened` gives the reader, by default opened from
    `spec`. Raises DataError for no sample or a folder of something else, ValueError for bad settings, ArtifactError for a folder
    in use, lost workers or no such cluster, and what `open_reader` and `write_shard` raise. Finished parts are kept, and a call
    that finishes none leaves an earlier result as it was."""
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers} must be at least 1")
    if ray is not None:
        require_ray(ray)
        require_shared(spec)
    if not all(sets.values()):
        raise DataError("no sample to encode")
    spec = absolute(spec)
    reading = Reading(spec, environment())
    decides = {**identity(spec), "tokenizer": type(open_tokenizer(model_name(spec))).__name__, "environment": reading.environment}
    folders, parts = {folder.absolute(): samples for folder, samples in sets.items()}, dict[Path, list[Part]]()
    with contextlib.ExitStack() as held:
        for folder, samples in folders.items():
            held.enter_context(_locked(folder))
            parts[folder] = list(_cut(samples, folder, decides, samples_per_part))
        every = [part for own in parts.values() for part in own]
        there = ((part.path, read_record(Path(part.path), part.key)) for part in every)
        records = {path: record for path, record in there if record is not None}
        reused = {folder: sum(part.path in records for part in own) for folder, own in parts.items()}
        todo = [part for part in every if part.path not in records]
        if workers is None and ray is None and sum(len(part.samples) for part in todo) <= samples_per_part:
            workers = 1  # to start processes would take longer
        found = sum(record["samples"] for record in records.values())
        with tqdm(total=sum(map(len, folders.values())), initial=found, desc="encoding", unit="sample") as bar:
            for path, record in _work(todo, reading, workers, ray, opened):
                Path(path).with_name(MANIFEST).unlink(missing_ok=True)
                records[path] = record
                bar.update(record["samples"])
        return [_finish(folder, [records[part.path] for part in own], reused[folder], decides, about or {})
                for folder, own in parts.items()]  # fmt: skip


def _cut(samples: Sequence[Sample], folder: Path, decides: Mapping[str, Any], size: int) -> Iterator[Part]:
    """The parts of one folder."""
    for number, start in enumerate(range(0, len(samples), size)):
        own = samples[start : start + size]
        key = content_hash({**decides, "number": number, "rows": json.dumps([dataclasses.asdict(sample) for sample in own])})
        yield Part(str(shard_path(folder, number)), key, own)


def _locked(folder: Path) -> contextlib.AbstractContextManager[None]:
    """The folder for this call alone."""
    if folder.exists() and not (folder / LOCK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} holds what `encode` did not write; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return artifacts.locked(folder / LOCK, ArtifactError(f"{folder}: another command encodes into it; wait for it or stop it"))


def _finish(
    folder: Path, records: Sequence[Mapping[str, Any]], reused: int, decides: Mapping[str, Any], about: Mapping[str, Any]
) -> Encoded:
    """Remove what is not of this call, then write the manifest."""
    wanted = {shard_path(folder, number) for number in range(len(records))}
    missing = sorted(path.name for path in wanted if not path.is_file())
    if missing:
        raise ArtifactError(f"{missing[0]} is not in {folder}, which the workers wrote; it must be shared by all machines")
    for path in {*folder.glob("shard-*"), *folder.glob(".shard-*")} - wanted:
        path.unlink(missing_ok=True)
    totals = {name: sum(record[name] for record in records) for name in TOTALS}
    manifest = {
        **about, "decided_by": dict(decides), "totals": totals, "widths": records[0]["widths"],
        "shards": [record["key"] for record in records],
    }  # fmt: skip
    if (read_json(folder / MANIFEST) or {}) | {"provenance": None} != manifest | {"provenance": None}:
        write_json(folder / MANIFEST, {**manifest, "provenance": provenance()})
    return Encoded(Store(folder), len(records), reused, totals)


def open_encoded(folder: Path) -> tuple[Store, dict[str, Any]]:
    """The store that `encode` left in `folder`, and its manifest. Raises ArtifactError unless it is finished and whole."""
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        raise ArtifactError(f"{folder}: no {MANIFEST}; `python -m saerl_lib encode` has not finished there, run it again")
    for number, key in enumerate(manifest["shards"]):
        if read_record(shard_path(folder, number), key) is None:
            raise ArtifactError(f"{shard_path(folder, number)}: damaged or of another encoding; run the same `encode` again")
    return Store(folder), manifest


# One part.


def _encode_part(part: Part, reading: Reading, opened: Callable[[], Encoder] | None = None) -> tuple[str, dict[str, Any]]:
    """Encode one part; returns its path and record. Safe to repeat and to run twice at once: the file appears by renaming."""
    for name, wanted in environment().items():
        if reading.environment[name] != wanted:
            raise ArtifactError(
                f"{name} is {wanted} on {socket.gethostname()} and {reading.environment[name]} where the command runs; install "
                "the same on all machines"
            )
    path = Path(part.path)
    encoder = (opened or functools.partial(_opened, reading.spec))()
    partial = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if reading.spec.device == "cpu" else before)
        record = write_shard(part.samples, encoder, partial, {"key": part.key})
        partial.replace(path)
    finally:
        torch.set_num_threads(before)
        partial.unlink(missing_ok=True)
    return part.path, record


_opened = functools.lru_cache(maxsize=1)(open_reader)
"""The reader, opened once a worker."""


@functools.cache
def environment() -> dict[str, str]:
    """Hash of the code that decides a part, and versions of the packages."""
    return {"code": code_hash("saerl_lib.encode.stages")} | {name: metadata.version(name) for name in PACKAGES}


# Hands: this process, processes of this machine, a Ray cluster.


def _work(
    todo: Sequence[Part], reading: Reading, workers: int | None, ray: str | None, opened: Callable[[], Encoder] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Paths and records of the parts as they are done, in any order; the largest are begun first."""
    todo = sorted(todo, key=lambda part: len(part.samples), reverse=True)
    if ray is not None:
        return _on_ray(todo, reading, ray, workers)
    workers = min(len(todo), workers or (len(os.sched_getaffinity(0)) if reading.spec.device == "cpu" else 1))
    if workers >= 2:
        return _in_processes(todo, reading, workers)
    opened = opened or functools.cache(lambda: open_reader(reading.spec))
    return (_encode_part(part, reading, opened) for part in todo)


def _in_processes(todo: Sequence[Part], reading: Reading, workers: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """joblib's processes with one thread each; the parts of a pool that lost a worker are done again by a new one."""
    losses, waiting = 0, {part.path: part for part in todo}
    while waiting:
        try:
            with parallel_config("loky", inner_max_num_threads=1, idle_worker_timeout=IDLE):
                pool = Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)
                for path, record in pool(delayed(_encode_part)(part, reading) for part in list(waiting.values())):
                    del waiting[path]
                    losses = 0
                    yield path, record
        except BrokenProcessPool as error:
            losses += 1
            if losses > LOSSES:
                raise ArtifactError(
                    f"worker processes were killed {losses} times in a row, for want of memory perhaps: lower --workers; "
                    "finished parts are kept and the same command continues"
                ) from error


def _on_ray(
    todo: Sequence[Part], reading: Reading, address: str, workers: int | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Tasks of one CPU each, two a CPU at a time so that none waits for this loop; Ray gives a part whose worker or machine was
    lost to another."""
    if not todo:
        return
    with ray_cluster(address) as ray:
        task = ray.remote(num_cpus=1, max_retries=LOSSES, scheduling_strategy="SPREAD")(_encode_part)
        most, left, running = max(1, workers or 2 * int(ray.cluster_resources().get("CPU", 1))), list(todo), []
        while left or running:
            while left and len(running) < most:
                running.append(task.remote(left.pop(0), reading))
            done, running = ray.wait(running)
            yield from ray.get(done)


def require_ray(address: str) -> None:
    """Raise ArtifactError when Ray is missing or nothing answers at `address`."""
    _import_ray()
    host, _, port = address.rpartition(":")
    try:
        if address != "auto":
            socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError, ValueError) as error:
        raise ArtifactError(
            f"--ray {address}: nothing answers there ({error}); start a cluster with `ray start --head`, join this machine to it "
            "with `ray start --address HOST:PORT`, and pass HOST:PORT, or auto"
        ) from error


def require_shared(spec: ReaderConfig) -> None:
    """Raise ValueError for a reader on the hub, which the machines of a cluster may not all reach."""
    for option, folder in (("--reader", Path(model_name(spec))), ("--sae", sae_folder(spec.sae))):
        if folder is None or not folder.is_dir():
            raise ValueError(f"{option}: with --ray, name a folder that all machines share, so that all read the same")


def _import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return import_module("ray")
    except ModuleNotFoundError as error:
        raise ArtifactError('--ray needs the package ray, which is not installed: pip install -e ".[ray]"') from error


@contextlib.contextmanager
def ray_cluster(address: str) -> Iterator[ModuleType]:
    """Ray, joined to a running cluster until the block ends; its errors become those of a part, or ArtifactError."""
    ray = _import_ray()
    try:
        ray.init(address=address, runtime_env={"env_vars": RAY_WORKERS}, log_to_driver=False, logging_level=logging.ERROR)
        yield ray
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.RayError, ConnectionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ArtifactError(
            f"--ray {address}: Ray gave up ({reason}); finished parts are kept and the same command continues"
        ) from error
    finally:
        ray.shutdown()
