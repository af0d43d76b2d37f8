"""Stage `real_study`: Tables 6 and 10 to 12, clusters and flaws on real mathematics (profile `method`; smoke in small)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from saerl_lib import paths
from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, to_dict
from saerl_lib.encode.kinds_stage import ladder_reader, sae_kinds_stage
from saerl_lib.encode.language_model import load_model
from saerl_lib.encode.pooling import Encoder
from saerl_lib.encode.readers import Reader, read_all
from saerl_lib.encode.real_stage import text_model_stage
from saerl_lib.properties.real_clusters import cluster_study
from saerl_lib.properties.real_features import (
    FEATURES_CODE,
    PLAIN,
    RealPart,
    load_part,
    load_retained,
    plain_part,
    real_features_stage,
    real_parts,
    study_reader,
)
from saerl_lib.properties.real_quality import filter_study, flaw_study, paper_probe, question_surprise

TABLES = (
    "real_counts", "real_clusters", "real_cluster_audit", "real_feature_groups", "real_top_latents", "real_filter",
    "real_separation", "real_flaws", "real_selfreg",
)  # fmt: skip
"""Tables of the study, by the names of their CSV files."""
STUDY_CODE = (
    *FEATURES_CODE, "encode/perplexity.py", "properties/__init__.py", "properties/audit_stage.py", "properties/cluster_audit.py",
    "properties/clusters.py", "properties/confidence.py", "properties/dsir.py", "properties/feature_audit.py",
    "properties/feature_names.py", "properties/flaws.py", "properties/highlights.py", "properties/probes.py",
    "properties/quality.py", "report/statistics.py", "properties/real_clusters.py", "properties/real_quality.py",
    "properties/real_study.py", "properties/rows.py", "properties/selfreg.py", "properties/stability.py", "properties/stage.py",
    "properties/text.py",
)  # fmt: skip
"""Files that decide the tables."""


def plain_reader(profile: Profile) -> Reader:
    """The text LM with its first SAE alone."""
    text_model = text_model_stage(profile)
    return study_reader(ladder_reader(profile, sae_kinds_stage(profile, "text", text_model), text_model), PLAIN)


def _encoder(reader: Reader) -> Encoder:
    decoder, tokenizer, saes = reader.open()
    return Encoder(decoder, tokenizer, saes["sae#0"], reader.tokens_per_batch, reader.layout)


def _flaw_scores(parts: dict[str, RealPart], features: Stage, reader: Reader, profile: Profile) -> dict[str, np.ndarray]:
    """Suspicion of the ValiMath questions [N] that needs no label of a flaw: the paper's filter, and surprise of the LM."""
    part, limit = parts["valimath"], profile.method.max_text_tokens
    retained = {"sae#0": load_retained(features, "sources")["sae#0"]}
    z = read_all(part.data.samples, reader, retained, profile.method.workers).features["sae#0"]
    z = z[:, : z.shape[1] // 2]
    return {
        "source_probe": paper_probe(parts["sources"], load_part(features, parts["sources"])["sae#0"], z, profile.seed),
        "perplexity_prompt": question_surprise(part.texts, *load_model(reader.model), limit),
    }


def real_study_stage(profile: Profile) -> Stage:
    """One Parquet file a name of `TABLES`; features come from `real_features_stage`.

    Raises ArtifactError without `SAERL_DATA_DIR`.
    """
    features = real_features_stage(profile)

    def compute(folder: Path) -> None:
        parts, reader = real_parts(profile.method), plain_reader(profile)
        tables = {name: load_part(features, part) for name, part in parts.items()}
        plain = load_part(features, plain_part(parts["sources"]))
        latents = load_retained(features, "math")["sae#0"]
        scores = _flaw_scores(parts, features, reader, profile)
        found = {
            "real_counts": pd.read_parquet(features.path("counts.parquet")),
            **cluster_study(tables["math"], latents, parts["math"], _encoder(reader), profile),
            **filter_study(parts["sources"], tables["sources"], plain, profile),
            **flaw_study(parts["valimath"], tables["valimath"], scores, profile.properties, profile.seed),
        }
        for name in TABLES:
            found[name].to_parquet(folder / f"{name}.parquet", index=False)

    settings = {"method": to_dict(profile.method), "properties": to_dict(profile.properties), "seed": profile.seed}
    return get_or_compute(profile, "real_study", STUDY_CODE, settings, compute, (features,))


def real_tables(profile: Profile) -> dict[str, pd.DataFrame]:
    """Table name -> rows of the CSV table of that name: computed in a profile with a `method` where the real data lie.

    Else the committed ones of profile `method`, as `full_ladder` does. Raises ArtifactError when the profile demands the
    data and `SAERL_DATA_DIR` is not set.
    """
    method = profile.method
    if method is None or method.real_data != "required" and paths.shared_data_dir() is None:
        return {name: pd.read_csv(paths.FIGURES / "data" / f"{name}.csv") for name in TABLES}
    stage = real_study_stage(profile)
    return {name: pd.read_parquet(stage.path(f"{name}.parquet")) for name in TABLES}
