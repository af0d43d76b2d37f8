"""Stage `plan_study`: what clusters, difficulty and plan depend on that the paper leaves open (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, sub_seed, to_dict
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.encode.features import FeatureTable, load_split_features
from saerl_lib.encode.seed_stage import pools_of_seeds
from saerl_lib.plan.sensitivity import PlanInputs, plan_sensitivity
from saerl_lib.properties.clusters import Clusters, pool_clusters, seed_fits, stability_row
from saerl_lib.properties.label_curve import label_curve
from saerl_lib.properties.probes import fit_tfidf
from saerl_lib.properties.scorer import fit_properties, sequence_words


def plan_study_stage(
    profile: Profile, world: Stage, features: Stage, difficulty: Stage, quality: Stage, seeds: Stage
) -> Stage:
    """Write cluster_stability.parquet, label_curve.parquet, plan_sensitivity.parquet and cluster_sizes.parquet.

    The first three hold the rows of the CSV tables of their names, the last the sizes of the profile's clusters.
    `seeds` holds features of the same pool under SAEs of other seeds, for the second row of cluster_stability.
    """

    def compute(folder: Path) -> None:
        inputs = plan_inputs(profile, world, features, quality)
        _, *others = fits = seed_fits(inputs.phi, profile.properties, profile.seed)
        tables = {
            "cluster_stability": _stability(profile, inputs, fits, pools_of_seeds(seeds)),
            "cluster_sizes": cluster_sizes(profile, inputs),
            "plan_sensitivity": plan_sensitivity(inputs, profile, others),
            "label_curve": _label_curve(profile, world, features),
        }
        for name, table in tables.items():
            table.to_parquet(folder / f"{name}.parquet", index=False)

    config = {
        "properties": to_dict(profile.properties),
        "plan": to_dict(profile.plan),
        "seed": profile.seed,
    }
    return get_or_compute(profile, "plan_study", config, compute, (world, features, difficulty, quality, seeds))


def plan_inputs(profile: Profile, world: Stage, features: Stage, quality: Stage) -> PlanInputs:
    """Features, fits and the filter's choice; the fits are those of the stage `difficulty`."""
    pool, labelled = load_split_features(features, "pool"), load_split_features(features, "labelled")
    clusters, model = fit_properties(profile, world, features)
    kept = pd.read_parquet(quality.path("kept.parquet")).set_index("sample_id")["kept"].reindex(list(pool.ids))
    labels = np.array([s.difficulty for s in load_split(world, "labelled")])
    ids, lengths = np.array(pool.ids), sequence_words(pool.metadata)
    return PlanInputs(ids, pool.phi, lengths, kept.to_numpy(dtype=bool), labelled.phi, labels, clusters, model)


def cluster_sizes(profile: Profile, inputs: PlanInputs) -> pd.DataFrame:
    """One row: clusters asked for and found, empty and merged ones, samples moved by merging, sizes in the pool."""
    found, sizes = inputs.clusters, np.bincount(inputs.clusters.assign(inputs.phi).label, minlength=inputs.clusters.k)
    fitted = min(len(inputs.phi), profile.properties.cluster_fit_rows)
    row = (profile.properties.clusters, found.k, found.n_dropped, found.n_merged, found.n_moved)
    columns = ["asked", "clusters", "empty", "merged", "samples_moved", "smallest", "largest", "n_fitted", "n"]
    return pd.DataFrame([(*row, int(sizes.min()), int(sizes.max()), fitted, len(inputs.phi))], columns=columns)


def _stability(profile: Profile, inputs: PlanInputs, fits: Sequence[Clusters], others: Sequence[FeatureTable]) -> pd.DataFrame:
    by_seed = [clusters.assign(inputs.phi).label for clusters in fits]
    by_sae = [pool_clusters(table.phi, profile.properties, profile.seed).assign(table.phi).label for table in others]
    return pd.concat([stability_row("k-means seed", by_seed), stability_row("SAE seed", [by_seed[0], *by_sae])])


def _label_curve(profile: Profile, world: Stage, features: Stage) -> pd.DataFrame:
    """phi, metadata and TF-IDF; the words of TF-IDF are chosen on the texts of all of L, which need no label."""
    samples, tables = ({name: load(source, name) for name in ("labelled", "test")} for load, source in (
        (load_split, world), (load_split_features, features)
    ))  # fmt: skip
    words = fit_tfidf(_texts(samples["labelled"]))
    sets = {
        name: {
            "sae+metadata": tables[name].phi,
            "metadata": tables[name].metadata,
            "tfidf": words.transform(_texts(samples[name])),
        }
        for name in samples
    }
    y, truth = (np.array([s.difficulty for s in samples[name]]) for name in ("labelled", "test"))
    seed = sub_seed(profile.seed, "label-curve")
    return label_curve(sets["labelled"], y, sets["test"], truth, profile.properties, seed)


def _texts(samples: Sequence[Sample]) -> list[str]:
    return [f"{sample.prompt}\n{sample.solution}" for sample in samples]
