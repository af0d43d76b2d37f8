"""Stage `features_of_seeds`: the pool under SAEs of other seeds, for the stability of what is built on one (ours)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tqdm.auto import tqdm

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, sub_seed, to_dict
from saerl_lib.data.sample import load_split
from saerl_lib.encode.encoder import ENCODER, open_encoder
from saerl_lib.encode.features import FeatureTable, encode_samples, load_features, save_features
from saerl_lib.encode.sae import load_sae, train_sae
from saerl_lib.encode.stage import collect_vectors, retained_of
from saerl_lib.encode.store import Store, write_store

OTHER_SEEDS = 2
"""SAEs beside the profile's own."""


def seed_features_stage(profile: Profile, world: Stage, sae: Stage) -> Stage:
    """<seed>/pool.safetensors for every other seed: an SAE trained on the same activations and the pool read through it.

    `sae` is the profile's own; only the seed of the weights and of the order of the activations differs.
    """
    config = profile.encoder

    def compute(folder: Path) -> None:
        vectors = collect_vectors(config, False, sub_seed(profile.seed, "sae-corpus-False"))[: config.sae_vectors]
        pool, labelled = load_split(world, "pool"), load_split(world, "labelled")
        for number in tqdm(range(1, OTHER_SEEDS + 1), desc="SAE seeds", unit="SAE"):
            here = folder / str(number)
            train_sae(vectors, config, sub_seed(profile.seed, f"sae-{number}"), here / "sae")
            encoder = dataclasses.replace(open_encoder(profile, sae), sae=load_sae(here / "sae", ENCODER.width))
            write_store(labelled, encoder, here / "store")
            retained = retained_of(profile, Store(here / "store", config.sae_latents), labelled, config.retained_rule)
            save_features(encode_samples(pool, encoder, retained), here / "pool.safetensors")

    settings = {**to_dict(config), "seed": profile.seed, "seeds": OTHER_SEEDS}
    return get_or_compute(profile, "features_of_seeds", settings, compute, (world, sae))


def pools_of_seeds(stage: Stage) -> list[FeatureTable]:
    """The pool's feature table under every other seed."""
    return [load_features(stage.folder / str(number) / "pool.safetensors") for number in range(1, OTHER_SEEDS + 1)]
