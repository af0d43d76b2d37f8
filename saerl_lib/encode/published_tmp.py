"""Interim stages of a reader of published data."""
from __future__ import annotations
from pathlib import Path
import numpy as np
import pandas as pd
from safetensors.numpy import save_file
from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, to_dict
from saerl_lib.data.hub import model_folder
from saerl_lib.data.sample import load_split
from saerl_lib.encode.models import ReaderSpec, open_reader
from saerl_lib.encode.parts import encode
from saerl_lib.encode.pool import metadata_features
from saerl_lib.encode.sae import MEASURED_SAMPLES, SAEGateError, explains, measured
from saerl_lib.encode.store import FeatureTable, Store, choose_retained, save_features

SPLITS = ("labelled", "test", "filter_negatives", "contest_train", "contest_test", "step_labelled", "pool")


def spec_of(profile: Profile) -> ReaderSpec:
    r = profile.reader
    return ReaderSpec(str(model_folder(r.model, "--reader")), r.layer, r.sae, r.max_tokens, r.tokens_per_batch, r.device, r.bf16)


def store_stage(profile: Profile, data: Stage) -> Stage:
    spec = spec_of(profile)

    def compute(folder: Path) -> None:
        labelled = load_split(data, "labelled")
        encoder = open_reader(spec, [s.prompt for s in labelled])
        quality = measured(labelled[:MEASURED_SAMPLES], encoder, spec.sae)
        if not explains(quality):
            raise SAEGateError(f"explained variance {quality.explained_variance:.3f}")
        rows = [("reader", "explained variance", quality.explained_variance, 0.0, 1.0, True, quality.n_tokens),
                ("reader", "dead share", quality.dead_share, None, None, None, quality.n_tokens),
                ("reader", "L0", quality.l0, None, None, None, quality.n_tokens)]
        pd.DataFrame(rows, columns=["encoder", "quantity", "value", "low", "high", "met", "n_tokens"]).to_csv(folder / "sae_quality.csv", index=False)
        for name in SPLITS:
            samples = load_split(data, name)
            if samples:
                encode(samples, spec, folder / name, opened=lambda: encoder)
    return get_or_compute(profile, "store", to_dict(profile.reader), compute, (data,))


def features_stage(profile: Profile, data: Stage, store: Stage) -> Stage:
    width = pd.read_json(store.path("labelled") / "manifest.json", typ="series")["width"]

    def compute(folder: Path) -> None:
        retained = choose_retained(Store(store.path("labelled"), width), min(width, profile.reader.retained_latents))
        save_file({"retained": retained}, folder / "retained.safetensors")
        for name in SPLITS:
            samples = load_split(data, name)
            if samples:
                z = Store(store.path(name), width).select(retained)
                save_features(FeatureTable(tuple(s.id for s in samples), z, metadata_features(samples)), folder / f"{name}.safetensors")
    return get_or_compute(profile, "features", to_dict(profile.reader), compute, (data, store))
