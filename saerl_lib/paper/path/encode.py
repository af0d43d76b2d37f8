"""Step `encode`: all SAE latents of the samples, pooled, in parts that are kept one by one; then z of the retained latents.

A part is one stage keyed by its samples, model and SAE: what a kill loses is the part that was under way. The retained set
is chosen from the samples of L alone (paper: 240 latents, the rule is not stated; ours).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from saerl_lib.artifacts import ArtifactError, Stage
from saerl_lib.data.sample import Sample
from saerl_lib.encode.features import FeatureTable, load_features, save_features
from saerl_lib.encode.metadata import metadata_features
from saerl_lib.encode.pooling import Encoder
from saerl_lib.encode.retain import choose_retained
from saerl_lib.encode.spans import sample_spans
from saerl_lib.encode.store import SHARD_SAMPLES, Shard, Store, write_store
from saerl_lib.own.model import open_model
from saerl_lib.paper.path.data import GROUPS, group
from saerl_lib.paper.path.home import Home, code_of
from saerl_lib.paper.path.places import (
    Precision,
    encoder_model,
    encoder_settings,
    model_folder,
    model_identity,
    precisions,
    require_sae,
    sae_identity,
    samples_digest,
)
from saerl_lib.paper.path.quality import quality_stage

CODE = code_of("paper/path/encode.py", "encode", "own/model.py", "data/sample.py")


@dataclass(frozen=True)
class Parts(Store):
    """A store whose shards lie in several stages, in order."""

    folders: tuple[Path, ...] = ()

    def shards(self) -> Iterator[Shard]:
        """One shard after another."""
        for folder in self.folders:
            yield from Store(folder, self.width).shards()


def encode_stage(home: Home, data: Stage) -> Stage:
    """Features of every group, <group>.safetensors, with lengths.parquet (sample_id, tokens, truncated), truncated.csv
    (group, n, truncated) and sae_quality.csv.

    A later step on another kind of machine reads what was encoded here: a GPU is needed to encode, not to plan.
    Raises DataError for a model or SAE that is not there, SAEGateError for an SAE that does not fit the model or explains
    nothing of it, and FloatingPointError for non-finite activations.
    """
    require_sae(home.config)
    here, elsewhere = precisions(home.config)
    try:
        return _encoded(home, data, here)
    except ArtifactError:
        if "encode" in home.steps:
            raise
        try:
            return _encoded(home, data, elsewhere)
        except ArtifactError:
            pass
        raise


def _encoded(home: Home, data: Stage, precision: Precision) -> Stage:
    config, model = home.config, encoder_model(home.config)
    reading = {
        "encoder": model_identity(model), "sae": sae_identity(config), "layer": config.encoder_layer,
        "max_tokens": config.encode_max_tokens, "tokens_per_batch": config.tokens_per_batch,
        "device": precision.device, "bf16": precision.bf16,
    }  # fmt: skip
    samples = {name: group(data, name) for name in GROUPS}
    everything = [sample for part in samples.values() for sample in part]

    @cache
    def opened() -> Encoder:
        return open_model(encoder_settings(config, model_folder(model, "--encoder")), everything)

    quality = quality_stage(home, samples["labelled"], reading, opened)
    parts = {name: _parts(home, name, part, reading, opened) for name, part in samples.items()}

    def compute(folder: Path) -> None:
        stores = {name: _store(found) for name, found in parts.items() if found}
        labelled = stores["labelled"]
        retained = choose_retained(labelled, min(config.retained_latents, labelled.width))
        for name, store in stores.items():
            table = FeatureTable(tuple(s.id for s in samples[name]), store.select(retained), metadata_features(samples[name]))
            save_features(table, folder / f"{name}.safetensors")
        lengths = {name: [pd.read_parquet(part.path("lengths.parquet")) for part in found] for name, found in parts.items()}
        pd.concat([table for found in lengths.values() for table in found]).to_parquet(folder / "lengths.parquet", index=False)
        cut = [(name, sum(map(len, found)), sum(int(t["truncated"].sum()) for t in found)) for name, found in lengths.items()]
        counted = pd.DataFrame(cut, columns=["group", "n", "truncated"])
        counted.to_csv(folder / "truncated.csv", index=False, lineterminator="\n")
        shutil.copyfile(quality.path("sae_quality.csv"), folder / "sae_quality.csv")

    inputs = (quality, *(part for found in parts.values() for part in found))
    return home.stage("encode", "features", CODE, {"retained": config.retained_latents}, compute, inputs)


def _parts(home: Home, name: str, samples: Sequence[Sample], reading: dict, opened) -> list[Stage]:
    found = []
    for number, start in enumerate(range(0, len(samples), SHARD_SAMPLES)):
        part = samples[start : start + SHARD_SAMPLES]

        def compute(folder: Path, part: Sequence[Sample] = part) -> None:
            encoder = opened()
            write_store(part, encoder, folder)
            spans = [sample_spans(sample, encoder.tokenizer, encoder.layout) for sample in part]
            frame = pd.DataFrame({"sample_id": [s.id for s in part], "tokens": [len(s.ids) for s in spans]})
            frame.assign(truncated=[s.truncated for s in spans]).to_parquet(folder / "lengths.parquet", index=False)
            pd.DataFrame({"latents": [encoder.sae.cfg.d_sae]}).to_parquet(folder / "width.parquet", index=False)

        settings = {**reading, "samples": samples_digest(part)}
        found.append(home.stage("encode", f"store-{name}-{number:05d}", CODE, settings, compute))
    return found


def _store(parts: Sequence[Stage]) -> Parts:
    width = int(pd.read_parquet(parts[0].path("width.parquet"))["latents"][0])
    return Parts(parts[0].folder, width, tuple(part.folder for part in parts))


def features(stage: Stage, names: Sequence[str]) -> FeatureTable:
    """The feature tables of some groups, one below the other."""
    tables = [load_features(stage.path(f"{name}.safetensors")) for name in names]
    ids = tuple(i for table in tables for i in table.ids)
    return FeatureTable(ids, np.concatenate([t.z for t in tables]), np.concatenate([t.metadata for t in tables]))


def lengths(stage: Stage, ids: Sequence[str]) -> np.ndarray:
    """Tokens of prompt and solution as they were encoded, float [N]."""
    found = pd.read_parquet(stage.path("lengths.parquet")).set_index("sample_id")["tokens"]
    return found.loc[list(ids)].to_numpy(dtype=float)
