"""The same pipeline with one ingredient changed: clusters and difficulty of the pool from other features than the SAE's (ours).

tfidf: TF-IDF of prompt and solution by truncated SVD, as many columns as z. dense: pooled activations of the SAE's layer.
frozen: an SAE whose decoder is random and never learns (arXiv 2602.14111). shuffled: the SAE's features, with the
difficulty model fitted on permuted labels. Metadata, K, settings and seeds are those of the SAE's own pipeline.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import TruncatedSVD

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, sub_seed, to_dict
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.encode.encoder import ENCODER, encoder_folder
from saerl_lib.encode.features import load_split_features
from saerl_lib.encode.readers import DENSE, Reader, read_all, retained_sets
from saerl_lib.encode.sae import train_sae
from saerl_lib.encode.spans import Layout
from saerl_lib.encode.stage import collect_vectors
from saerl_lib.properties.probes import fit_tfidf, shuffled
from saerl_lib.properties.scorer import Columns, fit_scorer

NAMES = ("tfidf", "dense", "frozen", "shuffled")
FROZEN = "sae_frozen_decoder"


def _texts(samples: list[Sample]) -> list[str]:
    return [f"{s.prompt}\n{s.solution}" for s in samples]


def tfidf_features(labelled: list[Sample], pool: list[Sample], width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """([L, width], [N, width]) with vocabulary and SVD fitted on L alone."""
    words = fit_tfidf(_texts(labelled))
    matrix = words.transform(_texts(labelled))
    svd = TruncatedSVD(min(width, matrix.shape[0] - 1, matrix.shape[1] - 1), random_state=seed).fit(matrix)
    return svd.transform(matrix), svd.transform(words.transform(_texts(pool)))


def model_features(
    profile: Profile, labelled: list[Sample], pool: list[Sample], folder: Path
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pooled features of the frozen-decoder SAE, trained into `folder`, and of the dense activations."""
    config = profile.encoder
    vectors = collect_vectors(config, False, sub_seed(profile.seed, "sae-corpus-False"))
    train_sae(vectors[: config.sae_vectors], config, sub_seed(profile.seed, "sae"), folder / "sae", "frozen_decoder")
    reader = Reader(
        encoder_folder(), config.hook_layer, {FROZEN: folder / "sae"}, config.tokens_per_batch, Layout(), ENCODER.width
    )
    retained = retained_sets(labelled, reader, config.retained_latents, config.frequency_band)
    parts = [read_all(samples, reader, retained, workers=1).features for samples in (labelled, pool)]
    return {"frozen": (parts[0][FROZEN], parts[1][FROZEN]), "dense": (parts[0][DENSE], parts[1][DENSE])}


def alternatives_stage(profile: Profile, world: Stage, features: Stage) -> Stage:
    """scores.parquet: sample_id and, for every name of `NAMES`, cluster@, ranking@ and raw@ of the noisy pool."""

    def compute(folder: Path) -> None:
        labelled, pool = load_split(world, "labelled"), load_split(world, "pool")
        own = [load_split_features(features, name) for name in ("labelled", "pool")]
        labels = np.array([s.difficulty for s in labelled])
        found = model_features(profile, labelled, pool, folder)
        found["tfidf"] = tfidf_features(labelled, pool, own[0].z.shape[1], sub_seed(profile.seed, "tfidf"))
        found["shuffled"] = (own[0].z, own[1].z)
        frame = pd.DataFrame({"sample_id": own[1].ids})
        for name in NAMES:
            phi = [np.concatenate([z, table.metadata], axis=1) for z, table in zip(found[name], own, strict=True)]
            y = shuffled(labels, sub_seed(profile.seed, "study-shuffle")) if name == "shuffled" else labels
            alone, pooled = (Columns(table.ids, x, x) for table, x in zip(own, phi, strict=True))
            scores = fit_scorer(pooled, alone, y, None, profile.properties, profile.seed).score(pooled)
            frame = frame.assign(**{f"{column}@{name}": scores[column] for column in ("cluster", "ranking", "raw")})
        frame.to_parquet(folder / "scores.parquet", index=False)

    config = {**to_dict(profile.properties), "encoder": to_dict(profile.encoder), "seed": profile.seed}
    return get_or_compute(profile, "alternatives", config, compute, (world, features))
