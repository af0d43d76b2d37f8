"""What clusters, difficulty and plan depend on that the paper leaves open, or that comes from the SAE (ours).

Sensitivity: one setting changed at a time, read against a yardstick, the same settings under another k-means seed, which nobody
chose. Only what depends on a setting is fitted again: clusters for K and the seed, the corrections of equation 10 for tau_sh, the
plan for the rest. Label curve: difficulty quality against |L|, on `SUBSETS` random permutations of L cut to their first 30, 100,
... samples; every subset has its penalties tuned on itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import REST, UNEQUAL, PlanConfig, Profile, PropertyConfig, sub_seed, to_dict
from saerl_lib.data.sample import load_split
from saerl_lib.encode.store import load_split_features
from saerl_lib.plan.batch_plan import BatchPlan, plan_diff, rows_of
from saerl_lib.plan.orders import build_plan, kept_pool
from saerl_lib.properties.clusters import Clusters, pool_clusters, seed_fits, stability_row
from saerl_lib.properties.probes import Matrix, fit_elastic_net, fit_tfidf, metric, texts_of
from saerl_lib.properties.scorer import load_scorer, with_clusters
from saerl_lib.report.statistics import percentile_interval

SIZES = (30, 100, 300, 1000, 3000)
"""Labels |L|."""
SUBSETS = 5
"""Nested random subsets of each size; all of L is one."""


def changed_values(default: float, factors: Sequence[float]) -> list[float]:
    """Multiples of a default without the default itself; whole numbers stay whole and at least 1.

    >>> changed_values(10, (0.5, 1.0, 2.0)), changed_values(50.0, (0.2,)), changed_values(2, (0.25, 0.5))
    ([5, 20], [10.0], [1])
    """
    values = [max(1, round(default * f)) if isinstance(default, int) else default * f for f in factors]
    return [value for value in dict.fromkeys(values) if value != default]


def plan_sensitivity(
    plan: Callable[..., BatchPlan], phi: np.ndarray, profile: Profile, seed_clusters: Sequence[Clusters]
) -> pd.DataFrame:
    """Rows of `plan_sensitivity.csv`: share of kept samples that move by more than a tenth of the run, mean shift in steps.
    `plan` makes the plan with other clusters, tau_sh or plan settings (`config`), the profile's own where none is given; phi is
    that of the kept samples. `seed_clusters` are fits under further k-means seeds (`seed_fits`), the yardstick; a row a
    setting."""
    properties, config, seed = profile.properties, profile.plan, profile.seed
    b, h = config.prompts_per_step, config.swapped_per_batch
    settings: dict[str, tuple[str, Sequence[Any]]] = {
        "swapped_per_batch": ("h", [swapped for swapped in sorted({0, 1, 2, b // 4, b // 2} - {h}) if swapped < b]),
        "window_batches": ("window", changed_values(config.window_batches, (0.05, 0.25, 2.0, 4.0))),
        "rest": ("rest", [value for value in REST if value != config.rest]),
        "unequal": ("unequal", [value for value in UNEQUAL if value != config.unequal]),
    }
    tried: list[tuple[str, Any, Any, dict[str, Any]]] = [
        *(("k-means seed", f"seed {i}", "seed 0", {"clusters": fit}) for i, fit in enumerate(seed_clusters, start=1)),
        *(("K", k, properties.clusters, {"clusters": pool_clusters(phi, replace(properties, clusters=k), seed)})
          for k in changed_values(properties.clusters, (0.5, 1.5, 2.0))),
        *(("tau_sh", tau, f"{properties.shrinkage_tau:g}", {"tau": tau})
          for tau in changed_values(properties.shrinkage_tau, (0.2, 0.5, 2.0, 5.0))),
        *((varied, value, getattr(config, name), {"config": replace(config, **{name: value})})
          for name, (varied, values) in settings.items() for value in values),
    ]  # fmt: skip
    default, rows = plan(), []
    for varied, setting, usual, changes in tried:
        found = plan_diff(default, plan(**changes))
        row = (varied, f"{setting:g}" if isinstance(setting, float) else str(setting), str(usual))
        rows.append((*row, found["share_moved"], found["mean_step_shift"], found["n"]))
    return pd.DataFrame(rows, columns=["varied", "setting", "default", "share_moved", "mean_step_shift", "n"])


def label_curve(
    train: Mapping[str, Matrix], y: np.ndarray, test: Mapping[str, Matrix], truth: np.ndarray, config: PropertyConfig, seed: int
) -> pd.DataFrame:
    """Rows of `label_curve.csv`: mean Spearman over subsets of predicted with labelled difficulty on test samples, by features
    and |L|. A resample draws one subset and M test samples, so the spread over subsets counts as that of a single subset. train
    and test map a feature set to matrices [N, D] and [M, D]; y [N] and truth [M] are difficulty labels."""
    y, truth, rows = np.asarray(y, dtype=float), np.asarray(truth, dtype=float), []
    permutations = [np.random.default_rng(sub_seed(seed, f"label-subset-{i}")).permutation(len(y)) for i in range(SUBSETS)]
    for name, x in train.items():
        for size in (*(size for size in SIZES if size < len(y)), len(y)):
            chosen = [p[:size] for p in permutations] if size < len(y) else [np.arange(size)]
            fits = [fit_elastic_net(x[subset], y[subset], config, seed) for subset in chosen]
            predicted = np.stack([np.asarray(fit.predict(test[name]), dtype=float) for fit in fits])
            rng, drawn = np.random.default_rng(seed), []
            for _ in range(config.bootstrap_samples):
                row, index = predicted[rng.integers(len(predicted))], rng.integers(0, len(truth), len(truth))
                drawn.append(metric("rank", row[index], truth[index]))
            found = percentile_interval(np.mean([metric("rank", row, truth) for row in predicted]), drawn)
            rows.append((name, size, *found, len(chosen), len(truth)))
    return pd.DataFrame(rows, columns=["features", "n_labels", "value", "ci_low", "ci_high", "n_subsets", "n_test"])


def plan_study_stage(profile: Profile, world: Stage, features: Stage, difficulty: Stage, quality: Stage) -> Stage:
    """Rows of the CSV tables cluster_stability, label_curve and plan_sensitivity, a Parquet file each."""

    def compute(_: Path) -> dict[str, pd.DataFrame]:
        samples = {name: load_split(world, name) for name in ("labelled", "test")}
        table = {name: load_split_features(features, name) for name in ("labelled", "test", "pool")}
        labels = {name: np.array([s.difficulty for s in part]) for name, part in samples.items()}
        pool, config, seed, scorer = table["pool"], profile.properties, profile.seed, load_scorer(difficulty)
        own, model = scorer.clusters, scorer.difficulty
        kept = kept_pool(difficulty, quality)
        ids, lengths, phi = kept["sample_id"], kept["length"].to_numpy(), pool.phi[rows_of(kept["sample_id"], pool.ids)]

        def plan(clusters: Clusters = own, tau: float | None = None, config: PlanConfig = profile.plan) -> BatchPlan:
            assigned = clusters.assign(table["labelled"].phi).label
            fitted = with_clusters(model, labels["labelled"], assigned, clusters.k, tau or profile.properties.shrinkage_tau)
            label = clusters.assign(phi).label
            scores = fitted.predict(phi, label)
            return build_plan(ids, label, scores["ranking"].to_numpy(), scores["raw"].to_numpy(), lengths, config)

        fits = seed_fits(phi, config, seed)
        words = fit_tfidf(texts_of(samples["labelled"]))  # chosen on the texts of all of L, which need no label
        sets = {
            name: {"sae+metadata": table[name].phi, "metadata": table[name].metadata, "tfidf": words.transform(texts_of(part))}
            for name, part in samples.items()
        }
        sides = (sets["labelled"], labels["labelled"], sets["test"], labels["test"])
        return {
            "cluster_stability": stability_row("k-means seed", [fit.assign(pool.phi).label for fit in fits]),
            "plan_sensitivity": plan_sensitivity(plan, phi, profile, fits[1:]),
            "label_curve": label_curve(*sides, config, sub_seed(seed, "label-curve")),
        }

    config = {"properties": to_dict(profile.properties), "plan": to_dict(profile.plan), "seed": profile.seed}
    return get_or_compute(profile, "plan_study", config, compute, (world, features, difficulty, quality))
