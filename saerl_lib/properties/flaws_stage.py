"""Stage `flaws`: which scores find the planted errors of the noisy pool, and what is left without length and style (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, sub_seed, to_dict
from saerl_lib.data.sample import Sample
from saerl_lib.data.stage import load_split
from saerl_lib.encode.encoder import load_encoder
from saerl_lib.encode.features import FeatureTable
from saerl_lib.encode.perplexity import measure_surprise
from saerl_lib.encode.stage import load_split_features
from saerl_lib.properties.flaws import FlawData, common_scores, flaw_table
from saerl_lib.properties.quality import fit_source_classifier
from saerl_lib.properties.selfreg import Target, selfreg_table, suppressed_views

DATASET = "world"


def sample_text(sample: Sample) -> str:
    """Prompt and solution as one text."""
    return f"{sample.prompt}\n{sample.solution}"


def flaw_data(samples: Sequence[Sample], features: FeatureTable) -> FlawData:
    """Features, texts and flaws of samples [N]. Raises ValueError when the features are of other samples."""
    if tuple(s.id for s in samples) != features.ids:
        raise ValueError("samples and features have different ids: load both from the same split")
    texts = tuple(sample_text(s) for s in samples)
    return FlawData(features.z, features.metadata, texts, np.array([s.flaw for s in samples]))


def source_training(target: FlawData, parent: FlawData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(z, metadata, is_target) of the samples that train the source filter: L and the first half of the parent split."""
    half = len(parent.z) // 2
    z = np.concatenate([target.z, parent.z[:half]])
    metadata = np.concatenate([target.metadata, parent.metadata[:half]])
    return z, metadata, np.arange(len(z)) < len(target.z)


def pool_scores(profile: Profile, target: FlawData, parent: FlawData, pool: FlawData, samples: Sequence[Sample]) -> dict:
    """score -> [N pool] suspicion: the paper's source probe, surprise, lengths of the sides, and `common_scores`.

    `source_membership`, the true source, is what a perfect source probe would say: any excess over chance is no knowledge
    of flaws.
    """
    z, _, is_target = source_training(target, parent)
    classifier = fit_source_classifier(z, is_target, sub_seed(profile.seed, "filter"))  # the very probe of stage `filter`
    surprise = measure_surprise([s.prompt for s in samples], [s.solution for s in samples], *load_encoder())
    return {
        "source_membership": np.array([s.source == "parent" for s in samples], dtype=float),
        "source_probe": 1.0 - classifier.score(pool.z),
        **common_scores(parent, pool, target.texts, sub_seed(profile.seed, "flaws")),
        "perplexity_prompt": surprise.prompt,
        "perplexity_solution": surprise.solution,
        "peak_surprise_solution": surprise.solution_peak,
        "prompt_length": np.array([len(s.prompt) for s in samples], dtype=float),
        "solution_length": np.array([len(s.solution) for s in samples], dtype=float),
    }


def selfreg_rows(profile: Profile, target: FlawData, parent: FlawData, pool: FlawData, in_parent: np.ndarray) -> pd.DataFrame:
    """Rows of filter_selfreg.csv: the source probe on source and (as 1 - s) on flaws, and the direct flaw probe.

    Targets: `source` on the whole pool; `flaw by source probe` and `flaw` among parent samples.
    """
    z, metadata, is_target = source_training(target, parent)
    seed = sub_seed(profile.seed, "selfreg")
    length = np.array([len(text) for text in pool.texts], dtype=float)
    everything = np.ones(len(length), dtype=bool)
    named = {"dataset": DATASET, "config": profile.properties, "seed": seed}
    views = suppressed_views(z, metadata, pool.z, pool.metadata, seed)
    targets = {"source": Target(~in_parent, everything), "flaw by source probe": Target(pool.flawed, in_parent, sign=-1.0)}
    source = selfreg_table(views, is_target, targets, length, **named)
    views = suppressed_views(parent.z, parent.metadata, pool.z, pool.metadata, seed)
    flaws = selfreg_table(views, parent.flawed, {"flaw": Target(pool.flawed, in_parent)}, length, **named)
    return pd.concat([source, flaws], ignore_index=True)


def flaws_stage(profile: Profile, world: Stage, features: Stage) -> Stage:
    """Planted errors against scores: flaws.parquet (rows of filter_flaws.csv) and selfreg.parquet (filter_selfreg.csv).

    Pools: `whole pool`, where flaws occur in the parent source alone, so that a source score gets credit for membership; and
    `within parent`, where it does not. The share kept is the run's own.
    """

    def compute(folder: Path) -> None:
        samples = {name: load_split(world, name) for name in ("labelled", "filter_negatives", "pool")}
        data = {name: flaw_data(rows, load_split_features(features, name)) for name, rows in samples.items()}
        target, parent, pool = data.values()
        in_parent = np.array([s.source == "parent" for s in samples["pool"]])
        scores = pool_scores(profile, target, parent, pool, samples["pool"])
        table = flaw_table(
            scores,
            pool.flaw,
            {"whole pool": np.ones(len(in_parent), dtype=bool), "within parent": in_parent},
            dataset=DATASET,
            keep_share=profile.pool_samples / len(in_parent),
            config=profile.properties,
            seed=profile.seed,
        )
        table.to_parquet(folder / "flaws.parquet", index=False)
        selfreg_rows(profile, target, parent, pool, in_parent).to_parquet(folder / "selfreg.parquet", index=False)

    config = {**to_dict(profile.properties), "kept": profile.pool_samples, "seed": profile.seed}
    return get_or_compute(profile, "flaws", "properties", config, compute, (world, features))
