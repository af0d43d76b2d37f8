"""The control ladder: what each feature set reads of a task, same splits, same tuning budget (ours; see peers of the paper).

One ladder for the embedded world, the real sets, any labelled file, the paper's data and the choices of the representation: tasks
and pooled features go in, a long table comes out. Everything that is fitted (scalers, PCA, TF-IDF, retained sets) sees training
rows alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from saerl_lib import paths
from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import SHIPPED, Profile, PropertyConfig, ReaderConfig, content_hash, sub_seed, to_dict
from saerl_lib.data.published import evaluation_keys, held_out_keys, load_set, real_folder
from saerl_lib.data.sample import Sample, hash_order, load_split
from saerl_lib.encode.stages import read_stage, retained_of, splits_of
from saerl_lib.encode.store import DENSE, FEATURES, LABELLED, MAIN, PROMPT_COLUMNS, RULES, Store, metadata_features
from saerl_lib.plan.batch_plan import rows_of
from saerl_lib.properties import probes
from saerl_lib.properties.probes import Matrix, Task, fit_tfidf, fit_topic_probe, metric, ridge_predictions, shuffled, texts_of

Blocks = Mapping[str, tuple[Sequence[str], Matrix]]
"""Reader (kind, kind#seed or `dense`) -> sample ids [M] and features [M, 4 W]: mean and max of prompt, then of solution."""
UNTRAINED_SAE, ALL = "sae_untrained", "_all"
"""The SAE with weights as drawn; ending of the name where all latents are read in place of the retained ones."""
VARIANTS = ("sae_short#0", "sae_short#1", "sae_short#2", "sae_frozen_decoder")
"""SAEs of a shorter training (`reader variants`): three seeds, and one whose decoder is never updated."""
PAIRS = (
    ("sae_all", "tfidf"), ("sae_all", "dense"), ("sae_all", "sae"), ("sae_all", "sae_untrained_all"), ("sae", "sae_untrained"),
    ("sae", "dense_pca"), ("sae_short", "sae_frozen_decoder"), ("sae_all+tfidf", "tfidf"), ("sae_all+tfidf", "sae_all"),
)  # fmt: skip
"""Feature sets that are compared on the same test rows."""
SHUFFLES = 5
"""Permutations of the shuffled-label control."""
GROUPS = {
    "math": ("math_train", "math_test"),
    "deepmath": ("deepmath_18k", "deepscaler_pass_rate"),
    "valimath": ("quality_valimath",),
    "dsr": ("dsr_sub_training_accuracy",),
}
"""Group of real tasks, which share their samples -> the files they read."""
RULE_GROUPS, RULE_FOLDS = ("math", "deepmath"), 3
RULE_TASKS = (("math_test", "subject"), ("math_test", "difficulty_level"), ("deepmath_18k", "difficulty_level"))
"""Real tasks on which the rules of the retained set are compared."""
REPRESENTATION = ["dataset", "choice", "option", "target", "metric", "value", "ci_low", "ci_high", "cross_validated", "n_train",
                  "n_test", "shared_with_default"]  # fmt: skip


class FeatureSet(NamedTuple):
    """One rung of the ladder for one task."""

    name: str
    train: Matrix
    test: Matrix
    seed: int = 0
    """Seed of the SAE, or number of the permutation; 0 where there is one only."""
    shuffled: bool = False
    """Train on permuted labels."""
    standardise: bool = True
    """Off for principal directions, whose small ones would be brought to the size of the large ones."""


def feature_sets(task: Task, blocks: Mapping[str, tuple[Matrix, Matrix]]) -> list[FeatureSet]:
    """Length, metadata and TF-IDF, which need no model, then the dense activations and every SAE. `blocks` maps a reader to its
    (train, test) features; a task without solutions reads their first half. Dense features are projected to the width of the
    SAEs' retained features too. The reader's own SAE is read with metadata and with shuffled labels as well, all its latents with
    TF-IDF."""
    sides = (task.train, task.test)
    columns = list(range(len(FEATURES))) if task.with_solution else PROMPT_COLUMNS
    lengths = [place for place, column in enumerate(columns) if FEATURES[column].endswith("_characters")]
    metadata = _filled(*(metadata_features(samples)[:, columns] for samples in sides))
    texts = [texts_of(samples, task.with_solution) for samples in sides]
    words = fit_tfidf(texts[0])
    tfidf = tuple(words.transform(t) for t in texts)
    sets = [FeatureSet("length", *(m[:, lengths] for m in metadata)), FeatureSet("metadata", *metadata)]
    sets.append(FeatureSet("tfidf", *tfidf))
    for name, halves in blocks.items():
        a, b = (x if task.with_solution else x[:, : x.shape[1] // 2] for x in halves)
        a, b = balanced(a, b, 4 if task.with_solution else 2) if sparse.issparse(a) else _filled(a, b)
        kind, _, number = name.partition("#")
        sets.append(FeatureSet(kind, a, b, int(number or 0)))
        if kind == DENSE:  # PCA ends at the width of the dense features when that is smaller
            whole, scaler = min(x.shape[1] for x, _ in blocks.values()), StandardScaler().fit(a)
            scaled = scaler.transform(a)
            width = min(whole if task.with_solution else whole // 2, *a.shape)
            pca = PCA(n_components=width, svd_solver="covariance_eigh").fit(scaled)
            projected = (pca.transform(scaled), pca.transform(scaler.transform(b)))
            sets.append(FeatureSet("dense_pca", *projected, standardise=False))
        elif kind == MAIN:
            joined = [np.concatenate(pair, axis=1) for pair in zip((a, b), metadata, strict=True)]
            sets.append(FeatureSet("sae+metadata", *joined))
            sets += [FeatureSet("shuffled_labels", a, b, i, shuffled=True) for i in range(SHUFFLES)]
        elif kind == MAIN + ALL:
            both = [sparse.hstack(pair, format="csr") for pair in zip((a, b), tfidf, strict=True)]
            sets.append(FeatureSet("sae_all+tfidf", *both))
    return sets


def balanced(train: sparse.csr_matrix, test: sparse.csr_matrix, blocks: int) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """All latents [n, blocks x F]: square roots, and every block (mean, max) brought to one mean squared row norm (ours)."""
    width = train.shape[1] // blocks
    norms = [np.sqrt(abs(train[:, i * width : (i + 1) * width]).sum() / train.shape[0]) or 1.0 for i in range(blocks)]
    scale = sparse.diags(np.repeat(1 / np.array(norms), width))
    return tuple((side.sqrt() @ scale).tocsr() for side in (train, test))


def _filled(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A sample whose solution is absent or was cut off has the mean of the training samples there."""
    if not (np.isnan(train).any() or np.isnan(test).any()):
        return train, test
    mean = np.nanmean(train, axis=0)
    return np.where(np.isnan(train), mean, train), np.where(np.isnan(test), mean, test)


def predict(task: Task, features: FeatureSet, seed: int) -> np.ndarray:
    """Test predictions [n_test]: a topic, a difficulty, a probability of "true", or a quality."""
    y = shuffled(task.y_train, sub_seed(seed, f"shuffle-{features.seed}")) if features.shuffled else task.y_train
    with threadpool_limits(1):
        if task.kind in ("topic", "binary"):
            probe = fit_topic_probe(features.train, y, seed, features.standardise)
            if task.kind == "topic":
                return probe.predict(features.test)
            return probe.predict_proba(features.test)[:, list(probe.classes_).index(1.0)]
        return ridge_predictions(features.train, y, features.test, seed, features.standardise)


def ladder(
    tasks: Sequence[Task], blocks: Blocks, config: PropertyConfig, seed: int, *, workers: int = probes.WORKERS,
    only: Collection[str] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Rows of probe_ladder.csv and of ladder_pairs.csv, of every feature set for every task. A block is read for the tasks whose
    samples it all holds. `only` names the feature sets that are wanted; the baseline that reads nothing is always there. Fits are
    spread over `workers` processes of one thread. Raises ValueError as the probes do."""
    rows, pairs = [], []
    for task in tqdm(tasks, desc="ladder", unit="task"):
        own = sub_seed(seed, f"ladder-{task.dataset}-{task.target}")
        found = {}
        for name, (ids, values) in blocks.items():
            places = [rows_of([s.id for s in side], ids) for side in (task.train, task.test)]
            if min(rows.min() for rows in places) >= 0:
                found[name] = tuple(values[rows] for rows in places)
        sets = [s for s in feature_sets(task, found) if only is None or s.name in only]
        fits = (delayed(predict)(task, s, sub_seed(own, task.target)) for s in sets)
        done: dict[str, list[np.ndarray]] = {}
        for one, values in zip(sets, Parallel(n_jobs=workers)(fits), strict=True):
            done.setdefault(one.name, []).append(values)
        rows.append(probes.task_rows(task, done, config.bootstrap_samples, own, workers))
        pairs += probes.pair_rows(task, done, PAIRS, config.bootstrap_samples, own) if task.groups is None else []
    return pd.concat(rows, ignore_index=True), pd.DataFrame(pairs, columns=probes.PAIR_COLUMNS)


def ladder_reader(profile: Profile) -> ReaderConfig:
    """The profile's reader with an SAE as drawn, the variants that `reader variants` left, and the activations themselves."""
    folder = paths.sae_dir()
    trained = [(name, str(folder / name)) for name in VARIANTS if (folder / name / "cfg.json").is_file()]
    others = ((UNTRAINED_SAE, "untrained@0"), *(trained if profile.reader.sae == SHIPPED else ()))
    return replace(profile.reader, others=others, dense=True)


class Group(NamedTuple):
    """Samples that some tasks share; they are read once."""

    name: str
    tasks: tuple[Task, ...]

    def training(self, profile: Profile) -> tuple[list[Sample], np.ndarray]:
        """What latents are chosen on: `max_train` training samples by hash of the first task with numbers, and labels; where all
        are topics, of the first task, the topics numbered."""
        task = next((task for task in self.tasks if task.kind != "topic"), self.tasks[0])
        order = hash_order(task.train)[: profile.ladder.max_train]
        labels = task.y_train if task.kind != "topic" else np.unique(task.y_train, return_inverse=True)[1]
        return [task.train[i] for i in order], labels[order]

    def stage(self, profile: Profile) -> Stage:
        """shard-*.safetensors below `store`: every sample once, in the order of the tasks, read by `ladder_reader`."""
        samples = list({s.id: s for task in self.tasks for s in (*task.train, *task.test)}.values())
        return read_stage(profile, self.name, samples, ladder_reader(profile))

    def store(self, profile: Profile) -> Store:
        """The store of the stage."""
        return Store(self.stage(profile).path("store"))

    def retained(self, profile: Profile, store: Store) -> np.ndarray:
        """The latents that the reader's rule retains of the group's store, chosen on training samples alone."""
        samples, labels = self.training(profile)
        return retained_of(profile, store, samples, labels=labels)

    def blocks(self, profile: Profile) -> Blocks:
        """`blocks_of` the group's store."""
        return blocks_of([self.store(profile)], ladder_reader(profile), functools.partial(self.retained, profile))


def real_groups(profile: Profile) -> dict[str, Group]:
    """The real tasks by group. Raises ArtifactError without `SAERL_DATA_DIR`."""
    tasks = probes.real_tasks(load_set, profile.ladder, held_out_keys())
    return {name: Group(name, tuple(t for t in tasks if t.dataset in files)) for name, files in GROUPS.items()}


def blocks_of(stores: Sequence[Store], reader: ReaderConfig, retained: Callable[[Store], np.ndarray]) -> Blocks:
    """What the ladder reads of some stores in a row: of every SAE its retained latents, of the first two all, and dense ones."""
    ids, found = [name for store in stores for name in store.ids], {}
    for name in reader.sources:
        own = [replace(store, name=name) for store in stores]
        chosen = retained(own[0])
        found[name] = (ids, np.concatenate([store.select(chosen) for store in own]))
        if name in (MAIN, UNTRAINED_SAE):
            found[name + ALL] = (ids, sparse.vstack([store.blocks() for store in own], format="csr"))
    if reader.dense:
        found[DENSE] = (ids, np.concatenate([store.values(DENSE) for store in stores]))
    return found


def _ladder_stage(profile: Profile, group: Group, blocks: Callable[[], Blocks], inputs: tuple[Stage, ...]) -> Stage:
    """ladder.parquet and pairs.parquet of a group."""

    def compute(_: Path) -> dict[str, pd.DataFrame]:
        return dict(zip(("ladder", "pairs"), ladder(group.tasks, blocks(), profile.properties, profile.seed), strict=True))

    read = [[t.dataset, t.target, t.with_solution, *([s.id for s in side] for side in (t.train, t.test)), t.y_train.tolist(),
             t.y_test.tolist()] for t in group.tasks]  # fmt: skip
    config = {"properties": to_dict(profile.properties), "tasks": content_hash(read), "seed": profile.seed}
    return get_or_compute(profile, f"ladder_{group.name}", config, compute, inputs)


def world_ladder_stage(profile: Profile, world: Stage, store: Stage) -> Stage:
    """The ladder on the splits of the data stage, a world's or published ones; retained sets are chosen on L."""
    splits = {name: load_split(world, name) for name in splits_of(world) if name not in ("filter_negatives", "pool")}
    group = Group("world", tuple(probes.split_tasks(splits, "world" if profile.world else "published")))

    def blocks() -> Blocks:
        stores = [Store(store.path(name)) for name in splits]
        return blocks_of(stores, profile.reader, lambda own: retained_of(profile, own, splits["labelled"]))

    return _ladder_stage(profile, group, blocks, (world, store))


def has_real_data(profile: Profile) -> bool:
    """Whether the real sets are there, and read by the profile: published sets are labelled themselves."""
    return profile.world is not None and paths.shared_data_dir() is not None


def full_ladder(profile: Profile, world_ladder: Stage) -> dict[str, pd.DataFrame]:
    """Rows of probe_ladder.csv and ladder_pairs.csv: the world's, and the real sets' where they lie, else as published."""
    groups = real_groups(profile).values() if has_real_data(profile) else ()
    stages = [world_ladder, *(_ladder_stage(profile, g, functools.partial(g.blocks, profile), (g.stage(profile),))
                              for g in groups)]  # fmt: skip
    return {name: with_real_rows(pd.concat([pd.read_parquet(stage.path(file)) for stage in stages], ignore_index=True), name)
            for name, file in (("probe_ladder", "ladder.parquet"), ("ladder_pairs", "pairs.parquet"))}  # fmt: skip


def with_real_rows(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """A table of the world's rows with the published ones of real sets behind them, where it has none of its own."""
    path = paths.PUBLISHED / f"{name}.csv"
    if table["dataset"].ne("world").any() or not path.is_file():
        return table
    return pd.concat([table, pd.read_csv(path).query("dataset != 'world'")], ignore_index=True)


def overlap_table(profile: Profile) -> pd.DataFrame:
    """Rows of real_overlap.csv: exact overlap of every set with every evaluation set by normalised question."""
    if not has_real_data(profile):
        return pd.read_csv(paths.PUBLISHED / "real_overlap.csv")
    evaluation = {**evaluation_keys(real_folder()), "math_test": set(load_set("math_test").keys)}
    rows = []
    for name in (name for files in GROUPS.values() for name in files):
        keys = load_set(name).keys
        rows += [(name, other, len(keys), sum(key in questions for key in keys))
                 for other, questions in evaluation.items() if other != name]  # fmt: skip
    return pd.DataFrame(rows, columns=["dataset", "evaluation_set", "n", "n_overlap"])


def read_by(task: Task, block: tuple[Sequence[str], np.ndarray], profile: Profile, features: str = MAIN) -> pd.DataFrame:
    """The ladder's row of one feature set of one task, from z [N, 4 S] of the reader's own SAE."""
    table, _ = ladder([task], {MAIN: block}, profile.properties, profile.seed, workers=1, only=(features,))
    return table[table["features"] == features]


def rule_rows(tasks: Sequence[Task], stores: Sequence[Store], training: Sequence[Sample], profile: Profile) -> list[pd.DataFrame]:
    """Rows of representation.csv: what each task reads by 240 latents that each rule chose on `training`, in the first store.
    `cross_validated` is the metric of out-of-fold predictions on training samples; a rule that reads labels chooses anew in every
    fold. The default rule is the best of them by it."""
    ids, found, default = [name for store in stores for name in store.ids], [], None
    place, inside = {name: row for row, name in enumerate(ids)}, {s.id for s in training}
    rules = RULES if all(s.solved for s in training) else tuple(rule for rule in RULES if rule != "gradient")
    for rule in rules:
        chosen = retained_of(profile, stores[0], training, rule)
        default, z = chosen if default is None else default, np.concatenate([store.select(chosen) for store in stores])
        shared = {"option": rule, "choice": "retained set", "shared_with_default": np.isin(chosen, default).mean()}
        for task in tasks:
            kept, predicted = np.flatnonzero([s.id in inside for s in task.train]), np.empty_like(task.y_train)
            folds = KFold(RULE_FOLDS, shuffle=True, random_state=profile.seed)
            enough = len(kept) >= RULE_FOLDS * probes.LEAST_TRAIN // (RULE_FOLDS - 1)
            for rows in folds.split(kept) if enough else ():
                train, test = (kept[own] for own in rows)
                sides = [[task.train[i] for i in own] for own in (train, test)]
                own = stores[0].select(retained_of(profile, stores[0], sides[0], rule)) if rule in LABELLED else z
                own = own if task.with_solution else own[:, : own.shape[1] // 2]
                features = FeatureSet(MAIN, *_filled(*(own[[place[s.id] for s in side]] for side in sides)))
                predicted[test] = predict(replace(task, y_train=task.y_train[train]), features, profile.seed)
            score = metric(task.kind, predicted[kept], task.y_train[kept]) if enough else np.nan
            found.append(read_by(task, (ids, z), profile).assign(**shared, cross_validated=score))
    return found


def representation_stage(profile: Profile, world: Stage, store: Stage) -> Stage:
    """representation.parquet, rows of representation.csv: what the open choices of the representation cost (ours). The paper
    keeps 240 latents and reads prompt and solution. Here every rule of `saerl_lib.encode.store` chooses on training samples of
    the world and, where they lie, of MATH and DeepMath; on the world the prompt alone is read beside both spans."""

    def compute(_: Path) -> dict[str, pd.DataFrame]:
        splits = {name: load_split(world, name) for name in ("labelled", "test")}
        tasks = {task.target: task for task in probes.split_tasks(splits)}
        topic, both = tasks["topic_leaf"], tasks["difficulty_in_domain"]
        stores = [Store(store.path(name)) for name in splits]
        found = rule_rows((topic, both), stores, splits["labelled"], profile)
        chosen = retained_of(profile, stores[0], splits["labelled"])
        block = [s.id for samples in splits.values() for s in samples], np.concatenate([part.select(chosen) for part in stores])
        prompt = replace(both, with_solution=False)
        for option, task, features in (("prompt and solution", both, MAIN), ("prompt only", prompt, MAIN),
                                       ("phi, prompt and solution", both, "sae+metadata"),
                                       ("phi, prompt only", prompt, "sae+metadata")):  # fmt: skip
            found.append(read_by(task, block, profile, features).assign(choice="spans", option=option, shared_with_default=1.0))
        for group in [g for name, g in real_groups(profile).items() if name in RULE_GROUPS] if has_real_data(profile) else ():
            read = [task for task in group.tasks if (task.dataset, task.target) in RULE_TASKS]
            found += rule_rows(read, [group.store(profile)], group.training(profile)[0], profile)
        return {"representation": pd.concat(found, ignore_index=True).reindex(columns=REPRESENTATION)}

    real = [group.stage(profile) for group in real_groups(profile).values()] if has_real_data(profile) else []
    config = {**to_dict(profile.properties), "retained": profile.reader.retained_latents, "seed": profile.seed}
    return get_or_compute(profile, "representation", config, compute, (world, store, *real))
