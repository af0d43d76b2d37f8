"""Stage `gradients`: gradient coherence and the quantities of Appendix A on a seeded sample of the kept pool (ours)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file
from scipy.spatial.distance import cdist

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, sub_seed, to_dict
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.encode.features import load_split_features
from saerl_lib.plan.mixing import standardised_space
from saerl_lib.plan.stage import kept_pool
from saerl_lib.properties.clusters import CLIP
from saerl_lib.properties.probes import fit_tfidf
from saerl_lib.properties.scorer import topics_at
from saerl_lib.rl.coherence import coherence_table, distance_table, prompt_pairs
from saerl_lib.rl.gradients import GradientGram, measure_gradients
from saerl_lib.rl.mixing_theory import mixing_tables
from saerl_lib.train.policy import load_policy

LOCAL_SPACES = ("z", "metadata", "TF-IDF")
"""Spaces whose nearest neighbours are compared."""


def gradient_sample(pool: pd.DataFrame, prompts: int, seed: int) -> pd.DataFrame:
    """`prompts` rows of the kept pool drawn without replacement (all, if it holds fewer), in pool order."""
    rows = np.random.default_rng(seed).choice(len(pool), min(prompts, len(pool)), replace=False)
    return pool.iloc[np.sort(rows)].reset_index(drop=True)


def space_distances(
    z: np.ndarray, metadata: np.ndarray, samples: list[Sample], rows: np.ndarray, ranking: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Distances [N, N] between the sampled prompts in every space; z and metadata are those of the whole pool.

    Euclidean after standardising on the pool and clipping as for clusters; TF-IDF of prompt and solution by cosine;
    difficulty by the difference of labels and of ranking scores [N]; "z, permuted" gives every prompt another's z.
    """
    points = {"z": z, "phi": np.concatenate([z, metadata], axis=1), "metadata": metadata}
    points = {name: np.clip(standardised_space(v), -CLIP, CLIP)[rows] for name, v in points.items()}
    found = {name: cdist(v, v) for name, v in points.items()}
    texts = [f"{s.prompt}\n{s.solution}" for s in samples]
    terms = fit_tfidf(texts).transform(texts).toarray()
    found["TF-IDF"] = 1 - terms @ terms.T
    for name, values in (("difficulty label", np.array([s.difficulty for s in samples])), ("ranking score", ranking)):
        found[name] = np.abs(values[:, None] - values[None])
    order = np.random.default_rng(seed).permutation(len(rows))
    found["z, permuted"] = found["z"][np.ix_(order, order)]
    return found


def tenths(values: np.ndarray) -> np.ndarray:
    """Tenth 0 to 9 of each value [N] by rank; equal values may part."""
    return np.argsort(np.argsort(values, kind="stable"), kind="stable") * 10 // len(values)


def groupings(samples: list[Sample], clusters: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Labels [N] of every grouping; "clusters, permuted" keeps the sizes and nothing else."""
    return {
        "cluster": clusters,
        "leaf topic": topics_at(samples, 3),
        "domain": topics_at(samples, 1),
        "difficulty tenth": tenths(np.array([s.difficulty for s in samples])),
        "clusters, permuted": np.random.default_rng(seed).permutation(clusters),
    }


def write_tables(
    folder: Path, profile: Profile, pool: pd.DataFrame, chosen: pd.DataFrame, samples: list[Sample], gram: GradientGram,
    spaces: dict[str, np.ndarray],
) -> None:
    """The tables of the stage from a Gram matrix: needs no model."""
    config, b = profile.gradients, profile.plan.prompts_per_step
    clusters, seed = chosen["cluster"].to_numpy(), sub_seed(profile.seed, "gradient-bootstrap")
    labels = groupings(samples, clusters, sub_seed(profile.seed, "gradient-permutation"))
    local = {name: spaces[name] for name in LOCAL_SPACES}
    coherence = coherence_table(gram, labels, local, config.neighbours, b, config.bootstrap_samples, seed)
    coherence.to_parquet(folder / "gradient_coherence.parquet", index=False)
    distance_table(gram, spaces, config.bootstrap_samples, seed).to_parquet(folder / "gradient_distance.parquet", index=False)
    shares = pool["cluster"].value_counts(normalize=True).to_dict()
    theory, curve = mixing_tables(
        prompt_pairs(gram), clusters, shares, b, profile.plan.swapped_per_batch, config.bootstrap_samples, seed
    )
    theory.to_parquet(folder / "mixing_theory.parquet", index=False)
    curve.to_parquet(folder / "mixing_curve.parquet", index=False)


def prompt_table(chosen: pd.DataFrame, samples: list[Sample], gram: GradientGram) -> pd.DataFrame:
    """One row a prompt: sample_id, cluster, topic, difficulty, pass rate and squared gradient of each half."""
    squared = np.diag(gram.products).reshape(2, -1)
    frame = pd.DataFrame({"sample_id": gram.ids, "cluster": chosen["cluster"].to_numpy()})
    frame["topic"], frame["difficulty"] = [s.topic for s in samples], [s.difficulty for s in samples]
    for half in range(2):
        frame[f"pass_rate_{half + 1}"], frame[f"squared_gradient_{half + 1}"] = gram.pass_rate[:, half], squared[half]
    return frame


def compute_gradients(
    folder: Path, profile: Profile, world: Stage, features: Stage, difficulty: Stage, quality: Stage
) -> None:
    """Measure the gradients and write all outputs of the stage into `folder`."""
    torch.set_num_threads(1)  # the rollouts would depend on the machine's number of cores
    pool = kept_pool(difficulty, quality)
    chosen = gradient_sample(pool, profile.gradients.prompts, sub_seed(profile.seed, "gradient-sample"))
    by_id = {s.id: s for s in load_split(world, "pool")}
    samples = [by_id[name] for name in chosen["sample_id"]]
    gram = measure_gradients(*load_policy(), samples, profile.train, sub_seed(profile.seed, "gradient-rollouts"))
    save_file({"products": gram.products, "pass_rate": gram.pass_rate}, folder / "gram.safetensors")
    prompt_table(chosen, samples, gram).to_parquet(folder / "gradient_prompts.parquet", index=False)
    table = load_split_features(features, "pool")
    place = {name: i for i, name in enumerate(table.ids)}
    kept = np.array([place[name] for name in pool["sample_id"]])
    rows = np.flatnonzero(pool["sample_id"].isin(chosen["sample_id"]).to_numpy())
    spaces = space_distances(
        table.z[kept], table.metadata[kept], samples, rows, chosen["ranking"].to_numpy(),
        sub_seed(profile.seed, "gradient-permuted-z"),
    )  # fmt: skip
    write_tables(folder, profile, pool, chosen, samples, gram, spaces)


def gradients_stage(profile: Profile, world: Stage, features: Stage, difficulty: Stage, quality: Stage) -> Stage:
    """Write gradient_coherence, gradient_distance, mixing_theory and mixing_curve (rows of the CSV tables of the same
    names), gradient_prompts.parquet (a prompt a row) and gram.safetensors (inner products [2 N, 2 N])."""

    def compute(folder: Path) -> None:
        compute_gradients(folder, profile, world, features, difficulty, quality)

    config = {
        **to_dict(profile.gradients),
        "train": to_dict(profile.train),
        "plan": to_dict(profile.plan),
        "seed": profile.seed,
    }
    config["train"].pop("seeds")
    return get_or_compute(profile, "gradients", config, compute, (world, features, difficulty, quality))


def zero_variance_table(stage: Stage) -> pd.DataFrame:
    """One row a cluster and one for all: prompts, share of groups whose rewards are all equal (no gradient), by side."""
    frame = pd.read_parquet(stage.path("gradient_prompts.parquet"))
    groups = [*((str(c), part) for c, part in frame.groupby("cluster")), ("all", frame)]
    rows = []
    for name, part in groups:
        rates = part[["pass_rate_1", "pass_rate_2"]].to_numpy()
        wrong, right = rates == 0, rates == 1
        rows.append((name, len(part), float(np.mean(wrong | right)), float(wrong.mean()), float(right.mean())))
    return pd.DataFrame(rows, columns=["cluster", "prompts", "zero-variance share", "all wrong", "all right"])
