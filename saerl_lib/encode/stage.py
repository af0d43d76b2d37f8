"""Stages `sae`, `store` and `features`: the SAE of the encoder, all pooled latents, and phi of every split."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import EncoderConfig, Profile, sub_seed, to_dict
from saerl_lib.data.corpus import draw_corpus_text, encoder_families
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.encode.activations import token_vectors, truncate
from saerl_lib.encode.encoder import ENCODER, load_encoder, open_encoder
from saerl_lib.encode.features import FeatureTable, save_features
from saerl_lib.encode.influence import gradient_influence
from saerl_lib.encode.metadata import metadata_features
from saerl_lib.encode.retain import choose_retained
from saerl_lib.encode.sae import SAEQuality, check_sae, load_sae, measure_sae, train_sae, write_quality
from saerl_lib.encode.store import Store, write_store

SPLITS = ("labelled", "test", "filter_negatives", "contest_train", "contest_test", "step_labelled", "pool")
"""Splits that are encoded."""
INFLUENCE_SAMPLES = 500
"""Samples of L behind the gradient rule."""


def corpus_samples(all_families: bool, seed: int) -> Iterator[Sample]:
    """Endless texts of the encoder's own corpus, from a seed that its pre-training did not use."""
    rng = random.Random(seed)
    families = encoder_families(all_families)
    while True:
        prompt, solution = draw_corpus_text(rng, families)
        *steps, last = solution.split("\n")
        yield Sample("corpus", prompt, tuple(steps), last.removeprefix("Answer: "))


def collect_vectors(config: EncoderConfig, all_families: bool, seed: int) -> torch.Tensor:
    """[sae_vectors + sae_heldout_vectors, D] activations of corpus tokens; the held-out ones lie at the end."""
    model, tokenizer = load_encoder(all_families)
    decoder = truncate(model, config.hook_layer)
    wanted = config.sae_vectors + config.sae_heldout_vectors
    stream, parts, count = corpus_samples(all_families, seed), [], 0
    while count < wanted:
        samples = [next(stream) for _ in range(2000)]
        batches = list(token_vectors(samples, decoder, tokenizer, config.tokens_per_batch))
        parts += batches
        count += sum(map(len, batches))
    return torch.cat(parts)[:wanted]


def sae_stage(profile: Profile, all_families: bool = False) -> Stage:
    """Train the SAE with SAELens, load it back and check its gates: the folder holds the SAE and quality.json.

    Raises SAEGateError when explained variance or dead share miss their bounds.
    """
    config = profile.encoder
    name = "sae_all_families" if all_families else "sae"

    def compute(folder: Path) -> None:
        vectors = collect_vectors(config, all_families, sub_seed(profile.seed, f"sae-corpus-{all_families}"))
        train_sae(vectors[: config.sae_vectors], config, sub_seed(profile.seed, "sae"), folder / "sae")
        held_out = vectors[config.sae_vectors :]
        quality = measure_sae(load_sae(folder / "sae", ENCODER.width), held_out.split(8192))
        write_quality(quality, folder / "quality.json")
        check_sae(quality, config)

    return get_or_compute(profile, name, {**to_dict(config), "seed": profile.seed}, compute)


def quality_table(stages: dict[str, Stage], config: EncoderConfig) -> pd.DataFrame:
    """Rows of sae_quality.csv for some SAE stages by encoder name."""
    rows = []
    for name, stage in stages.items():
        quality = SAEQuality(**json.loads(stage.path("quality.json").read_text(encoding="utf-8")))
        for quantity, value, low, high in (
            ("explained variance", quality.explained_variance, config.min_explained_variance, 1.0),
            ("dead share", quality.dead_share, 0.0, config.max_dead_share),
            ("L0", quality.l0, None, None),
        ):
            met = None if low is None else low <= value <= high
            rows.append((name, quantity, value, low, high, met, quality.n_tokens))
    return pd.DataFrame(rows, columns=["encoder", "quantity", "value", "low", "high", "met", "n_tokens"])


def influence_of(profile: Profile, sae: Stage, samples: Sequence[Sample], all_families: bool = False) -> np.ndarray:
    """Gradient influence of the SAE of a stage on the first samples of L, [F]."""
    model, tokenizer = load_encoder(all_families)
    layer, tokens = profile.encoder.hook_layer, profile.encoder.tokens_per_batch
    loaded = load_sae(sae.path("sae"), ENCODER.width)
    return gradient_influence(samples[:INFLUENCE_SAMPLES], model, tokenizer, layer, loaded, tokens)


def retained_of(profile: Profile, store: Store, samples: Sequence[Sample], rule: str, all_families: bool = False) -> np.ndarray:
    """The retained set that a rule chooses on the store of L; ascending indices."""
    config = profile.encoder
    return choose_retained(
        store, config.retained_latents, rule=rule, band=config.frequency_band,
        labels=np.array([s.difficulty for s in samples]), seed=sub_seed(profile.seed, "retained"),
        influence=lambda: influence_of(profile, sae_stage(profile, all_families), samples, all_families),
    )  # fmt: skip


def store_stage(profile: Profile, world: Stage, sae: Stage, all_families: bool = False) -> Stage:
    """Encode every split once: <split>/shard-*.safetensors with the pooled statistics of all latents, sparse.

    Evaluation sets are never encoded. The control encoder (`all_families`) reads L and the test split alone.
    """
    splits = ("labelled", "test") if all_families else SPLITS

    def compute(folder: Path) -> None:
        encoder = open_encoder(profile, sae, all_families)
        for name in tqdm(splits, desc="encoding", unit="split"):
            write_store(load_split(world, name), encoder, folder / name)

    name = "store_all_families" if all_families else "store"
    return get_or_compute(profile, name, {"tokens": profile.encoder.tokens_per_batch}, compute, (world, sae))


def features_stage(profile: Profile, world: Stage, store: Stage, all_families: bool = False) -> Stage:
    """z and metadata of every split: retained.safetensors, then <split>.safetensors; nothing is encoded again.

    The retained set is chosen on L by `EncoderConfig.retained_rule`, by default without its labels.
    """
    splits = ("labelled", "test") if all_families else SPLITS
    width = profile.encoder.sae_latents

    def compute(folder: Path) -> None:
        labelled, rule = load_split(world, "labelled"), profile.encoder.retained_rule
        retained = retained_of(profile, Store(store.path("labelled"), width), labelled, rule, all_families)
        save_file({"retained": retained}, folder / "retained.safetensors")
        for name in splits:
            samples = load_split(world, name)
            z = Store(store.path(name), width).select(retained)
            table = FeatureTable(tuple(s.id for s in samples), z, metadata_features(samples))
            save_features(table, folder / f"{name}.safetensors")

    name = "features_all_families" if all_families else "features"
    return get_or_compute(profile, name, to_dict(profile.encoder), compute, (world, store))
