"""The reader's stages of a run: its SAE measured, every split read into a store, and z with metadata of each split.

The data stage holds `<split>.parquet`, whether a world drew it or published sets were read; L, the split `labelled`, must be
there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from saerl_lib import paths
from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import SHIPPED, Profile, ReaderConfig, content_hash, sub_seed, to_dict
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.encode.models import identity, open_causal, open_reader
from saerl_lib.encode.parts import encode
from saerl_lib.encode.pool import Encoder
from saerl_lib.encode.sae import MEASURED_SAMPLES, SAEGateError, measured
from saerl_lib.encode.store import FeatureTable, Store, choose_retained, gradient_influence, metadata_features, save_features

READ = ("labelled", "test", "filter_negatives", "contest_train", "contest_test", "step_labelled", "pool")
"""Splits that are read where the data stage holds them; evaluation sets never are."""
BOUNDS = {"explained variance": (0.8, 1.0), "dead share": (0.0, 0.1), "L0": (0.0, 0.06)}
"""Lower and upper bounds of the shipped SAE; that of L0 is a share of the model's width (ours)."""
LEAST_TOKENS = 25_000
"""Fewer tokens leave latents silent that are alive: the share of dead ones is told then, and not judged."""
INFLUENCE_SHARE = 6
"""One of so many samples of L, the first ones, stands behind the gradient rule: 500 of 3,000."""


def splits_of(data: Stage) -> list[str]:
    """Names of the splits of a data stage that are read, in the order of `READ`."""
    return [name for name in READ if data.path(f"{name}.parquet").is_file()]


def reader_stage(profile: Profile, data: Stage) -> Stage:
    """sae_quality.parquet: rows of sae_quality.csv, the SAE on the first samples of L and of the test split. Raises SAEGateError
    for an SAE that explains less of L than the mean vector does: it is of another model or block."""

    def compute(_: Path) -> dict[str, pd.DataFrame]:
        encoder = open_reader(profile.reader)
        rows = []
        for name in ("labelled", "test"):
            rows += _quality_rows(name, load_split(data, name), encoder, profile.reader)
        columns = ["encoder", "quantity", "value", "low", "high", "met", "n_tokens"]
        return {"sae_quality": pd.DataFrame(rows, columns=columns)}

    return get_or_compute(profile, "reader", identity(profile.reader), compute, (data,))


def _quality_rows(split: str, samples: Sequence[Sample], encoder: Encoder, reader: ReaderConfig) -> list[tuple]:
    found = measured(samples[:MEASURED_SAMPLES], encoder)
    if not found.explained_variance > 0:
        raise SAEGateError(
            f"--sae {reader.sae}: explained variance {found.explained_variance:.3f} on {found.n_tokens} tokens of {split} is not "
            f"above 0, which the mean vector alone would reach; block {reader.layer} (--layer) or the model (--encoder) is "
            "probably not the one that this SAE was trained on"
        )
    values = dict(zip(("explained variance", "L0", "dead share"), asdict(found).values(), strict=False))
    rows = []
    for quantity, value in values.items():
        low, high = BOUNDS[quantity] if reader.sae == SHIPPED else (None, None)
        if quantity == "L0" and high is not None:
            high *= encoder.sae.cfg.d_in
        if quantity == "dead share" and found.n_tokens < LEAST_TOKENS:
            low = high = None
        rows.append((split, quantity, value, low, high, None if low is None else low <= value <= high, found.n_tokens))
    return rows


def store_stage(profile: Profile, data: Stage) -> Stage:
    """Read every split once: <split>/shard-*.safetensors with the pooled statistics of all latents, sparse. Parts lie beside the
    stage until it is whole, so that a killed run goes on behind its last part."""

    def compute(folder: Path) -> None:
        opened = cache(lambda: open_reader(profile.reader, [s.prompt for s in load_split(data, "labelled")]))
        for name in splits_of(data):
            read(load_split(data, name), profile.reader, folder / name, paths.profile_dir(profile.name) / "parts" / name, opened)

    return get_or_compute(profile, "store", identity(profile.reader), compute, (data,))


def read(
    samples: Sequence[Sample], reader: ReaderConfig, folder: Path, parts: Path, opened: Callable[[], Encoder] | None = None
) -> Store:
    """The store of samples in `folder`, read in `parts`, where finished parts outlive a kill."""
    encode(samples, reader, parts, opened=opened)
    shutil.copytree(parts, folder, copy_function=os.link, ignore=shutil.ignore_patterns("*.lock"))
    shutil.rmtree(parts)
    return Store(folder)


def read_stage(profile: Profile, name: str, samples: Sequence[Sample], reader: ReaderConfig) -> Stage:
    """Stage `read_<name>`: the store of any samples below `store`; only their texts, the reader and its code are in the key."""

    def compute(folder: Path) -> None:
        read(samples, reader, folder / "store", paths.profile_dir(profile.name) / "parts" / name)

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
    ids, rule = store.ids, rule or profile.reader.retained_rule
    return choose_retained(
        store, min(profile.reader.retained_latents, store.width), rule=rule, rows=np.array([name in label for name in ids]),
        labels=np.array([label[name] for name in ids if name in label]), seed=sub_seed(profile.seed, "retained"),
        influence=lambda: influence_of(profile.reader, samples),
    )  # fmt: skip


def influence_of(reader: ReaderConfig, samples: Sequence[Sample]) -> np.ndarray:
    """Gradient influence of the reader's SAE on the first samples of L, [F]; the whole model runs."""
    sae, (model, tokenizer) = open_reader(reader).sae, open_causal(reader)
    chosen, tokens = samples[: len(samples) // INFLUENCE_SHARE], reader.tokens_per_batch // 4
    return gradient_influence(chosen, model, tokenizer, reader.layer, sae, tokens)


def retained_latents(features: Stage) -> np.ndarray:
    """Indices of the retained latents."""
    return load_file(features.path("retained.safetensors"))["retained"]
