"""How much of the plan hangs on each open choice: one setting changed at a time (ours; the paper reports none).

A change is read against a yardstick: the same settings under another k-means seed, which nobody chose. Only what depends
on a setting is fitted again: clusters for K and the seed, the corrections of equation 10 for tau_sh, the plan for the rest.

Stage `plan_study`: what clusters, difficulty and plan depend on that the paper leaves open (ours).

Difficulty quality against the number of labels: what |L| = 3,000 buys (ours; the paper fixes |L|).

`SUBSETS` random permutations of L are cut to their first 30, 100, ... samples, so the subsets of a permutation are nested.
Every subset has its penalties tuned on itself. The interval covers both the choice of the subset and the test samples.

The same pipeline with one ingredient changed: clusters and difficulty of the pool from other features than the SAE's (ours).

tfidf: TF-IDF of prompt and solution by truncated SVD, as many columns as z. dense: pooled activations of the SAE's layer.
frozen: an SAE whose decoder is random and never learns (arXiv 2602.14111). shuffled: the SAE's features, with the
difficulty model fitted on permuted labels. Metadata, K, settings and seeds are those of the SAE's own pipeline.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import TruncatedSVD

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import REST, UNEQUAL, PlanConfig, Profile, PropertyConfig, SAEConfig, sub_seed, to_dict
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.encode.models import open_decoder, token_vectors
from saerl_lib.encode.stages import read_features
from saerl_lib.encode.store import DENSE, MAIN, load_split_features
from saerl_lib.encode.tokens import Layout
from saerl_lib.encode.train_sae import train_sae
from saerl_lib.plan.batch_plan import BatchPlan, has_moved, step_shift
from saerl_lib.plan.orders import build_plan
from saerl_lib.properties.clusters import Clusters, pool_clusters, seed_fits, stability_row
from saerl_lib.properties.difficulty import DifficultyModel, with_clusters
from saerl_lib.properties.probes import Matrix, correlation, fit_elastic_net, fit_tfidf, require_rows, shuffled
from saerl_lib.properties.scorer import Columns, fit_properties, fit_scorer, sequence_words
from saerl_lib.report.statistics import Interval, percentile_interval

COLUMNS = ["varied", "setting", "default", "share_moved", "mean_step_shift", "n"]
FACTORS = {"clusters": (0.5, 1.5, 2.0), "shrinkage_tau": (0.2, 0.5, 2.0, 5.0), "window_batches": (0.05, 0.25, 2.0, 4.0)}
"""Multiples of the profile's value that are tried; h goes over 0, 1, 2, a quarter and a half of a batch."""
SEED = "k-means seed"
"""Name of the yardstick."""


@dataclass(frozen=True)
class PlanInputs:
    """All that a plan of the kept pool is made from: P pool samples, N of them kept, L labelled."""

    ids: np.ndarray
    """str [P]."""
    phi: np.ndarray
    """[P, D]; clusters are fitted on all of the pool."""
    lengths: np.ndarray
    """Words of prompt and solution, [P]."""
    kept: np.ndarray
    """Mask of the samples that the filter keeps, bool [P]."""
    labelled_phi: np.ndarray
    """[L, D]."""
    labels: np.ndarray
    """Difficulty labels, [L]."""
    clusters: Clusters
    """The profile's own."""
    model: DifficultyModel
    """Fitted on L with these clusters."""


class Planner:
    """Plans of the kept pool under changed settings."""

    def __init__(self, inputs: PlanInputs, profile: Profile) -> None:
        self.inputs, self.profile = inputs, profile
        kept = inputs.phi[np.flatnonzero(inputs.kept)]
        self._kept_phi = kept
        self.default = self.plan()

    def plan(
        self, clusters: Clusters | None = None, tau: float | None = None, config: PlanConfig | None = None
    ) -> BatchPlan:
        """The SAERL plan with the given clusters, tau_sh or plan settings; the profile's own where none is given."""
        inputs, profile = self.inputs, self.profile
        clusters, model = clusters or inputs.clusters, inputs.model
        if clusters is not inputs.clusters or tau is not None:
            assigned = clusters.assign(inputs.labelled_phi).label
            model = with_clusters(model, inputs.labels, assigned, clusters.k, tau or profile.properties.shrinkage_tau)
        label = clusters.assign(self._kept_phi).label
        scores = model.predict(self._kept_phi, label)
        lengths = inputs.lengths[inputs.kept]
        return build_plan(inputs.ids[inputs.kept], label, scores.ranking, scores.raw, lengths, config or profile.plan)


def changed_values(default: float, factors: Sequence[float]) -> list[float]:
    """Multiples of a default without the default itself; whole numbers stay whole and at least 1.

    >>> changed_values(10, (0.5, 1.0, 2.0)), changed_values(50.0, (0.2,)), changed_values(2, (0.25, 0.5))
    ([5, 20], [10.0], [1])
    """
    values = [max(1, round(default * f)) if isinstance(default, int) else default * f for f in factors]
    return [value for value in dict.fromkeys(values) if value != default]


def plan_sensitivity(inputs: PlanInputs, profile: Profile, seed_clusters: Sequence[Clusters] = ()) -> pd.DataFrame:
    """Rows of `plan_sensitivity.csv`: share of kept samples that move by more than a tenth of the run, mean shift in steps.

    `seed_clusters` are fits under further k-means seeds (`stability.seed_fits`), the yardstick; a row a setting.
    """
    planner, rows = Planner(inputs, profile), []
    for varied, setting, default, plan in _plans(planner, profile, seed_clusters):
        shift = step_shift(planner.default, plan)
        row = (varied, f"{setting:g}" if isinstance(setting, float) else str(setting), str(default))
        rows.append((*row, float(has_moved(shift).mean()), float(shift.mean() * plan.steps), len(shift)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _plans(
    planner: Planner, profile: Profile, seed_clusters: Sequence[Clusters]
) -> Iterator[tuple[str, object, object, BatchPlan]]:
    """(what varies, setting, default, plan), the yardstick first."""
    properties, config = profile.properties, profile.plan
    for number, clusters in enumerate(seed_clusters, start=1):
        yield SEED, f"seed {number}", "seed 0", planner.plan(clusters)
    for k in changed_values(properties.clusters, FACTORS["clusters"]):
        other = replace(properties, clusters=k)
        yield "K", k, properties.clusters, planner.plan(pool_clusters(planner.inputs.phi, other, profile.seed))
    for tau in changed_values(properties.shrinkage_tau, FACTORS["shrinkage_tau"]):
        yield "tau_sh", tau, f"{properties.shrinkage_tau:g}", planner.plan(tau=tau)
    b, h = config.prompts_per_step, config.swapped_per_batch
    for swapped in sorted({0, 1, 2, b // 4, b // 2} - {h}):
        if swapped < b:
            yield "h", swapped, h, planner.plan(config=replace(config, swapped_per_batch=swapped))
    for window in changed_values(config.window_batches, FACTORS["window_batches"]):
        yield "window", window, config.window_batches, planner.plan(config=replace(config, window_batches=window))
    for name, known in (("rest", REST), ("unequal", UNEQUAL)):
        default = getattr(config, name)
        for value in known:
            if value != default:
                yield name, value, default, planner.plan(config=replace(config, **{name: value}))


SIZES = (30, 100, 300, 1000, 3000)
"""Labels |L|."""
SUBSETS = 5
"""Nested random subsets of each size; all of L is one."""
CURVE_COLUMNS = ["features", "n_labels", "value", "ci_low", "ci_high", "n_subsets", "n_test"]


def curve_sizes(n: int, sizes: tuple[int, ...] = SIZES) -> tuple[int, ...]:
    """The sizes below n, then n itself.

    >>> curve_sizes(240), curve_sizes(3000)
    ((30, 100, 240), (30, 100, 300, 1000, 3000))
    """
    return (*(size for size in sizes if size < n), n)


def nested_subsets(n: int, seed: int, subsets: int = SUBSETS) -> list[np.ndarray]:
    """Permutations [n] of the labelled samples; the first m of one are its subset of size m."""
    return [np.random.default_rng(sub_seed(seed, f"label-subset-{i}")).permutation(n) for i in range(subsets)]


def label_curve(
    train: Mapping[str, Matrix], y: np.ndarray, test: Mapping[str, Matrix], truth: np.ndarray, config: PropertyConfig, seed: int
) -> pd.DataFrame:
    """Rows of `label_curve.csv`: Spearman of predicted with labelled difficulty on test samples, by features and |L|.

    train and test map a feature set to matrices [N, D] and [M, D]; y [N] and truth [M] are difficulty labels.
    Raises ValueError for unequal rows, non-finite values or fewer than `cv_folds` labels.
    """
    y, truth, rows = np.asarray(y, dtype=float), np.asarray(truth, dtype=float), []
    permutations = nested_subsets(len(y), seed)
    for name, x in train.items():
        require_rows(train_x=x, train_y=y)
        require_rows(test_x=test[name], test_y=truth)
        for size in curve_sizes(len(y)):
            chosen = [p[:size] for p in permutations] if size < len(y) else [np.arange(size)]
            fits = [fit_elastic_net(x[subset], y[subset], config, seed) for subset in chosen]
            predicted = np.stack([np.asarray(fit.predict(test[name]), dtype=float) for fit in fits])
            found = spearman_interval(predicted, truth, config.bootstrap_samples, seed)
            rows.append((name, size, *found, len(chosen), len(truth)))
    return pd.DataFrame(rows, columns=CURVE_COLUMNS)


def spearman_interval(predicted: np.ndarray, truth: np.ndarray, samples: int, seed: int) -> Interval:
    """Mean Spearman over S subsets, predicted [S, M] against truth [M], with its 95 % interval.

    A resample draws one subset and M test samples, so the spread over subsets counts as that of a single subset.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(samples):
        row, index = predicted[rng.integers(len(predicted))], rng.integers(0, len(truth), len(truth))
        drawn.append(correlation("spearman", row[index], truth[index]))
    return percentile_interval(np.mean([correlation("spearman", row, truth) for row in predicted]), drawn)


def plan_study_stage(
    profile: Profile, world: Stage, features: Stage, difficulty: Stage, quality: Stage
) -> Stage:
    """Write cluster_stability.parquet, label_curve.parquet, plan_sensitivity.parquet and cluster_sizes.parquet.

    The first three hold the rows of the CSV tables of their names, the last the sizes of the profile's clusters.
    """

    def compute(folder: Path) -> None:
        inputs = plan_inputs(profile, world, features, quality)
        _, *others = fits = seed_fits(inputs.phi, profile.properties, profile.seed)
        tables = {
            "cluster_stability": stability_row("k-means seed", [clusters.assign(inputs.phi).label for clusters in fits]),
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
    return get_or_compute(profile, "plan_study", config, compute, (world, features, difficulty, quality))


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


NAMES = ("tfidf", "dense", "frozen", "shuffled")


def _texts_alternatives(samples: list[Sample]) -> list[str]:
    return [f"{s.prompt}\n{s.solution}" for s in samples]


def tfidf_features(labelled: list[Sample], pool: list[Sample], width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """([L, width], [N, width]) with vocabulary and SVD fitted on L alone."""
    words = fit_tfidf(_texts_alternatives(labelled))
    matrix = words.transform(_texts_alternatives(labelled))
    svd = TruncatedSVD(min(width, matrix.shape[0] - 1, matrix.shape[1] - 1), random_state=seed).fit(matrix)
    return svd.transform(matrix), svd.transform(words.transform(_texts_alternatives(pool)))


FROZEN_SAE = SAEConfig(tokens=600_000, latents=4608, k=32, learning_rate=1e-3, vectors_per_step=2048)
"""Of the SAE with a frozen decoder: the settings of the shipped one but for the vectors, which are those of L."""


def model_features(
    profile: Profile, labelled: list[Sample], pool: list[Sample], folder: Path
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pooled features of a frozen-decoder SAE, trained on L's activations into `folder`, and of the dense activations."""
    decoder, tokenizer, _ = open_decoder(profile.reader)
    layout, size = Layout(max_tokens=profile.reader.max_tokens), profile.reader.tokens_per_batch
    vectors = torch.cat(list(token_vectors(labelled, decoder, tokenizer, size, layout)))
    config = replace(FROZEN_SAE, seed=sub_seed(profile.seed, "sae"))
    train_sae(vectors, config, folder / "sae", "frozen_decoder")
    reader = replace(profile.reader, sae=str(folder / "sae"), others=(), dense=True)
    ids = {s.id for s in labelled}
    found, _, store = read_features([*labelled, *pool], ids, profile, reader, folder)
    shutil.rmtree(store.folder)
    cut = len(labelled)
    return {"frozen": (found[MAIN][:cut], found[MAIN][cut:]), "dense": (found[DENSE][:cut], found[DENSE][cut:])}


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

    config = {**to_dict(profile.properties), "reader": to_dict(profile.reader), "seed": profile.seed}
    return get_or_compute(profile, "alternatives", config, compute, (world, features))
