"""Step `encode`: all SAE latents of the samples, pooled, in parts that are kept one by one; then z of the retained latents.

The parts lie beside the stages, keyed by their samples, model and SAE: what a kill loses is the part that was under way. The
retained set is chosen from the samples of L alone (paper: 240 latents, the rule is not stated; ours).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from saerl_lib.artifacts import ArtifactError, Stage
from saerl_lib.encode.features import FeatureTable, load_features, save_features
from saerl_lib.encode.metadata import metadata_features
from saerl_lib.encode.models import open_reader
from saerl_lib.encode.parts import encode
from saerl_lib.encode.pooling import Encoder
from saerl_lib.encode.retain import choose_retained
from saerl_lib.paper.path.data import GROUPS, group
from saerl_lib.paper.path.home import Home
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

PARTS = "parts"
"""Folder of the stores of all latents, one a group."""


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

    @cache
    def opened() -> Encoder:
        everything = [sample.prompt for part in samples.values() for sample in part]
        return open_reader(encoder_settings(config, model_folder(model, "--encoder")), everything)

    quality = quality_stage(home, samples["labelled"], reading, opened)

    def compute(folder: Path) -> None:
        spec, read = encoder_settings(config, model_folder(model, "--encoder")), {}
        for name, part in samples.items():
            if part:
                read[name] = encode(part, spec, home.folder / PARTS / name, opened=opened)
                home.say(f"encode: {name}, {read[name].parts} parts, {read[name].reused} of them there before")
        labelled = read["labelled"].store
        retained = choose_retained(labelled, min(config.retained_latents, labelled.width))
        lengths = []
        for name, done in read.items():
            table = FeatureTable(done.store.ids, done.store.select(retained), metadata_features(samples[name]))
            save_features(table, folder / f"{name}.safetensors")
            columns = {column: done.store.values(column) for column in ("tokens", "truncated")}
            lengths.append(pd.DataFrame({"sample_id": done.store.ids, **columns}))
        pd.concat(lengths).to_parquet(folder / "lengths.parquet", index=False)
        cut = [(name, len(part), read[name].totals["truncated"] if name in read else 0) for name, part in samples.items()]
        counted = pd.DataFrame(cut, columns=["group", "n", "truncated"])
        counted.to_csv(folder / "truncated.csv", index=False, lineterminator="\n")
        shutil.copyfile(quality.path("sae_quality.csv"), folder / "sae_quality.csv")

    decides = {**reading, "retained": config.retained_latents, "samples": [samples_digest(part) for part in samples.values()]}
    return home.stage("encode", "features", decides, compute, (quality,))


def features(stage: Stage, names: Sequence[str]) -> FeatureTable:
    """The feature tables of some groups, one below the other."""
    tables = [load_features(stage.path(f"{name}.safetensors")) for name in names]
    ids = tuple(i for table in tables for i in table.ids)
    return FeatureTable(ids, np.concatenate([t.z for t in tables]), np.concatenate([t.metadata for t in tables]))


def lengths(stage: Stage, ids: Sequence[str]) -> np.ndarray:
    """Tokens of prompt and solution as they were encoded, float [N]."""
    found = pd.read_parquet(stage.path("lengths.parquet")).set_index("sample_id")["tokens"]
    return found.loc[list(ids)].to_numpy(dtype=float)
