"""The control ladder: what each feature set reads of a task, same splits, same tuning budget (ours; see peers of the paper).

One ladder for the embedded world, the real sets, any labelled file, the paper's data and the choices of the representation: tasks
and pooled features go in, a long table comes out. Everything that is fitted (scalers, PCA, TF-IDF, retained sets) sees training
rows alone. Test predictions are kept, so that a reader can ask new questions without fitting again.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from sklearn.random_projection import GaussianRandomProjection
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from saerl_lib import paths
from saerl_lib.artifacts import Stage, file_sha256, get_or_compute, provenance, write_json
from saerl_lib.config import Profile, PropertyConfig, ReaderConfig, content_hash, get_profile, sub_seed, to_dict
from saerl_lib.data.published import corpus_keys, data_file, evaluation_keys, held_out_keys, load_labelled, load_set, real_folder
from saerl_lib.data.sample import Sample, hash_share, load_split, normalise
from saerl_lib.encode.metadata import FEATURES, PROMPT_COLUMNS, metadata_features
from saerl_lib.encode.models import identity
from saerl_lib.encode.stages import read_features, retained_of, splits_of
from saerl_lib.encode.store import DENSE, RULES, Store
from saerl_lib.properties.probes import (
    METRICS,
    Matrix,
    ProbeRow,
    Task,
    baseline,
    fit_elastic_net,
    fit_ridge,
    fit_tfidf,
    fit_topic_probe,
    metric,
    real_tasks,
    shuffled,
    split_tasks,
    task_rows,
    tasks_of_file,
)
from saerl_lib.report.figures import draw
from saerl_lib.report.statistics import bootstrap_interval
from saerl_lib.report.tables import write_csv

Blocks = Mapping[str, tuple[Sequence[str], np.ndarray]]
"""Reader (kind, kind#seed or `dense`) -> sample ids [M] and features [M, 4 W]: mean and max of prompt, then of solution."""
CONTROLS = (("sae_untrained", "untrained@0"),)
"""SAEs that read beside the reader's own."""
WORKERS = 2
"""Processes of the fits, one thread each."""
SHUFFLES = 5
"""Permutations of the shuffled-label control."""
GROUPS = {
    "math": ("math_train", "math_test"),
    "deepmath": ("deepmath_18k", "deepscaler_pass_rate"),
    "valimath": ("quality_valimath",),
    "dsr": ("dsr_sub_training_accuracy",),
}
"""Group of real tasks, which share their samples -> the files they read."""
WORLD_SPLITS = ("labelled", "test", "contest_train", "contest_test", "step_labelled")
WORLD_SETS = ("majority", "mean", "length", "metadata", "tfidf", "sae", "sae+metadata", "shuffled_labels")
"""Feature sets of world_probes.csv, which every profile computes."""
COLUMNS = [field.name for field in dataclasses.fields(ProbeRow)]


@dataclass(frozen=True)
class FeatureSet:
    """One rung of the ladder for one task."""

    name: str
    train: Matrix
    test: Matrix
    seed: int = 0
    """Seed of the SAE, or number of the permutation; 0 where there is one only."""
    shuffled: bool = False
    """Train on permuted labels."""


def task_texts(samples: Sequence[Sample], with_solution: bool) -> list[str]:
    """What a text baseline reads."""
    return [f"{s.prompt}\n{s.solution}" if with_solution else s.prompt for s in samples]


def text_sets(task: Task) -> list[FeatureSet]:
    """Length, metadata and TF-IDF, which need no model."""
    sides = (task.train, task.test)
    columns = list(range(len(FEATURES))) if task.with_solution else PROMPT_COLUMNS
    lengths = [place for place, column in enumerate(columns) if FEATURES[column].endswith("_characters")]
    metadata = _filled(*(metadata_features(samples)[:, columns] for samples in sides))
    texts = [task_texts(samples, task.with_solution) for samples in sides]
    words = fit_tfidf(texts[0])
    return [
        FeatureSet("length", *(m[:, lengths] for m in metadata)),
        FeatureSet("metadata", *metadata),
        FeatureSet("tfidf", *(words.transform(t) for t in texts)),
    ]


def _filled(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A sample whose solution is absent or was cut off has the mean of the training samples there."""
    if not (np.isnan(train).any() or np.isnan(test).any()):
        return train, test
    mean = np.nanmean(train, axis=0)
    return np.where(np.isnan(train), mean, train), np.where(np.isnan(test), mean, test)


def block_sets(task: Task, blocks: Mapping[str, tuple[np.ndarray, np.ndarray]], seed: int) -> list[FeatureSet]:
    """Dense activations (all, PCA, random projection) and every SAE; `blocks` maps a reader to its (train, test) features.

    Dense features are projected to the width of the SAEs' features. The SAE itself is read with metadata and with shuffled
    labels as well.
    """
    halves = {
        name: tuple(x if task.with_solution else x[:, : x.shape[1] // 2] for x in sides) for name, sides in blocks.items()
    }
    width = max((x.shape[1] for name, (x, _) in halves.items() if name != DENSE), default=0)
    sets = []
    for name, sides in halves.items():
        a, b = _filled(*sides)
        if name == DENSE:
            sets += [FeatureSet(DENSE, a, b), *_projected(a, b, width, seed)]
            continue
        kind, _, number = name.partition("#")
        sets.append(FeatureSet(kind, a, b, int(number or 0)))
        if kind == "sae":
            columns = slice(None) if task.with_solution else PROMPT_COLUMNS
            metadata = _filled(*(metadata_features(samples)[:, columns] for samples in (task.train, task.test)))
            joined = [np.concatenate(pair, axis=1) for pair in zip((a, b), metadata, strict=True)]
            sets.append(FeatureSet("sae+metadata", *joined, seed=int(number or 0)))
            if number in ("", "0"):
                sets += [FeatureSet("shuffled_labels", a, b, i, shuffled=True) for i in range(SHUFFLES)]
    return sets


def _projected(train: np.ndarray, test: np.ndarray, width: int, seed: int) -> list[FeatureSet]:
    """Dense features brought to `width` columns; PCA ends at their own width when that is smaller."""
    scaler = StandardScaler().fit(train)
    a, b = scaler.transform(train), scaler.transform(test)
    pca = PCA(n_components=min(width, *a.shape), svd_solver="covariance_eigh").fit(a)
    random = GaussianRandomProjection(n_components=width, random_state=seed).fit(a)
    return [
        FeatureSet("dense_pca", pca.transform(a), pca.transform(b)),
        FeatureSet("dense_random_projection", random.transform(a), random.transform(b)),
    ]


def predict(task: Task, features: FeatureSet, config: PropertyConfig, seed: int) -> np.ndarray:
    """Test predictions [n_test]: a topic, a difficulty, a probability of "true", or a quality."""
    y = task.y_train
    if features.shuffled:
        y = shuffled(y, sub_seed(seed, f"shuffle-{features.seed}"))
    with threadpool_limits(1):
        if task.kind == "topic":
            return fit_topic_probe(features.train, y, seed).predict(features.test)
        if task.kind == "binary":
            probe = fit_topic_probe(features.train, y, seed)
            return probe.predict_proba(features.test)[:, list(probe.classes_).index(1.0)]
        fitted = fit_ridge(features.train, y, seed) if task.kind == "quality" else fit_elastic_net(
            features.train, y, config, seed, probe=True
        )  # fmt: skip
        return np.asarray(fitted.predict(features.test), dtype=float)


def ladder(
    tasks: Sequence[Task], blocks: Blocks, config: PropertyConfig, seed: int, *, workers: int = WORKERS,
    only: Collection[str] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Rows in the columns of probe_ladder.csv, and every test prediction, of every feature set for every task.

    A block is read for the tasks whose samples it all holds. `only` names the feature sets that are wanted; the baseline that
    reads nothing is always there. Fits are spread over `workers` processes of one thread. Raises ValueError as the probes do.
    """
    places = {name: {sample: i for i, sample in enumerate(ids)} for name, (ids, _) in blocks.items()}
    rows, predictions = [], []
    for task in tqdm(tasks, desc="ladder", unit="task"):
        own = sub_seed(seed, f"ladder-{task.dataset}-{task.target}")
        found = {
            name: tuple(values[[places[name][s.id] for s in side]] for side in (task.train, task.test))
            for name, (_, values) in sorted(blocks.items())
            if all(s.id in places[name] for s in (*task.train, *task.test))
        }
        sets = text_sets(task) if only is None or set(only) & {"length", "metadata", "tfidf"} else []
        sets = [s for s in (*sets, *block_sets(task, found, own)) if only is None or s.name in only]
        fits = (delayed(predict)(task, s, config, sub_seed(own, task.target)) for s in sets)
        done = {(s.name, s.seed): values for s, values in zip(sets, Parallel(n_jobs=workers)(fits), strict=True)}
        if task.groups is None:
            rows += task_rows(task, done, config.bootstrap_samples, own, workers)
        else:
            rows += grouped_rows(task, done, config.bootstrap_samples, own)
        predictions += [
            pd.DataFrame({"target": task.target, "features": n, "seed": s, "sample_id": [x.id for x in task.test],
                          "prediction": np.asarray(v).astype(str), "label": task.y_test.astype(str)})
            for (n, s), v in done.items()
        ]  # fmt: skip
    table = pd.DataFrame([dataclasses.asdict(r) for r in rows], columns=COLUMNS)
    return table, pd.concat(predictions) if predictions else pd.DataFrame()


def grouped_rows(
    task: Task, predictions: Mapping[tuple[str, int], np.ndarray], samples: int, seed: int
) -> list[ProbeRow]:
    """As `task_rows` for a quality task whose intervals resample whole groups of test samples."""
    name, constant = baseline(task)
    runs: dict[str, list[np.ndarray]] = {name: [constant]}
    for (features, _), values in predictions.items():
        runs.setdefault(features, []).append(values)
    members = [np.flatnonzero(task.groups == group) for group in np.unique(task.groups)]
    measures = {
        METRICS[task.kind]: lambda predicted, truth: metric(task.kind, predicted, truth),
        "rmse": lambda predicted, truth: float(np.sqrt(np.mean((predicted - truth) ** 2))),
        "mae": lambda predicted, truth: float(np.mean(np.abs(predicted - truth))),
    }
    rows = []
    for features, values in runs.items():
        for measure, value in measures.items():
            if features == name and measure == METRICS[task.kind]:
                continue  # a constant has no correlation

            def mean(drawn: np.ndarray, value=value, values=values) -> float:
                index = np.concatenate([members[i] for i in drawn])
                return float(np.mean([value(run[index], task.y_test[index]) for run in values]))

            found, whole = bootstrap_interval(mean, len(members), samples, seed), mean(np.arange(len(members)))
            named = (task.dataset, task.target, measure, features)
            rows.append(ProbeRow(*named, whole, found.low, found.high, len(task.y_train), len(task.y_test)))
    return rows


def ladder_reader(profile: Profile) -> ReaderConfig:
    """The profile's reader with the ladder's controls: the SAE as it was drawn, and the activations themselves."""
    return dataclasses.replace(profile.reader, others=CONTROLS, dense=True)


def encode_tasks(tasks: Sequence[Task], profile: Profile, folder: Path) -> Blocks:
    """Features of all samples of some tasks by every reader, also written: features.safetensors and samples.parquet (ids).

    Retained sets are chosen on training samples alone.
    """
    samples: dict[str, Sample] = {s.id: s for task in tasks for s in (*task.train, *task.test)}
    training = {s.id: s for task in tasks for s in task.train}
    ordered = sorted(training.values(), key=lambda s: (hash_share(normalise(s.prompt)), s.id))
    chosen = {s.id for s in ordered[: profile.ladder.max_train]}
    features, _, store = read_features(list(samples.values()), chosen, profile, ladder_reader(profile), folder)
    shutil.rmtree(store.folder)
    save_file(features, folder / "features.safetensors")
    pd.DataFrame({"sample_id": list(samples)}).to_parquet(folder / "samples.parquet", index=False)
    return read_blocks(folder)


def read_blocks(folder: Path) -> Blocks:
    """What `encode_tasks` wrote."""
    ids = pd.read_parquet(folder / "samples.parquet")["sample_id"].tolist()
    return {name: (ids, values) for name, values in load_file(folder / "features.safetensors").items()}


def _encoded(profile: Profile, group: str, tasks: Sequence[Task]) -> Stage:
    files = {name: file_sha256(data_file(name))[:16] for name in GROUPS[group]}
    retained = [profile.reader.retained_latents, profile.reader.retained_rule]
    reader = identity(ladder_reader(profile))
    settings = {"ladder": to_dict(profile.ladder), "reader": reader, "data": files, "retained": retained, "seed": profile.seed}
    return get_or_compute(profile, f"encoded_{group}", settings, lambda folder: encode_tasks(tasks, profile, folder))


def _ladder_stage(
    profile: Profile, group: str, tasks: Sequence[Task], blocks: Callable[[], Blocks], inputs: tuple[Stage, ...]
) -> Stage:
    """ladder.parquet and predictions.parquet of a group."""

    def compute(folder: Path) -> None:
        found = ladder(tasks, blocks(), profile.properties, profile.seed)
        for name, table in zip(("ladder", "predictions"), found, strict=True):
            table.to_parquet(folder / f"{name}.parquet", index=False)

    config = {"properties": to_dict(profile.properties), "seed": profile.seed}
    return get_or_compute(profile, f"ladder_{group}", config, compute, inputs)


def world_ladder_stage(profile: Profile, world: Stage, store: Stage) -> Stage:
    """The ladder on the splits of the data stage, a world's or published ones; retained sets are chosen on L."""
    there = [name for name in splits_of(world) if name in WORLD_SPLITS]
    tasks = split_tasks({name: load_split(world, name) for name in there}, "world" if profile.world else "published")

    def blocks() -> Blocks:
        stores, found = [Store(store.path(name)) for name in there], {}
        ids = [name for part in stores for name in part.ids]
        for name in profile.reader.sources:
            own = [dataclasses.replace(part, name=name) for part in stores]
            retained = retained_of(profile, own[0], load_split(world, "labelled"), profile.reader.retained_rule)
            found[name] = (ids, np.concatenate([part.select(retained) for part in own]))
        if profile.reader.dense:
            found[DENSE] = (ids, np.concatenate([part.values(DENSE) for part in stores]))
        return found

    return _ladder_stage(profile, "world", tasks, blocks, (world, store))


def real_ladder_stages(profile: Profile) -> list[Stage]:
    """The full ladder on the real sets, a stage a group."""
    tasks, found = real_tasks(load_set, profile.ladder, held_out_keys()), []
    for group, files in GROUPS.items():
        own = [task for task in tasks if task.dataset in files]
        encoded = _encoded(profile, group, own)
        found.append(_ladder_stage(profile, group, own, functools.partial(read_blocks, encoded.folder), (encoded,)))
    return found


def has_real_data(profile: Profile) -> bool:
    """Whether the real sets are there, and read by the profile: published sets are labelled themselves."""
    return profile.world is not None and paths.shared_data_dir() is not None


def ladder_table(stage: Stage) -> pd.DataFrame:
    """Rows of one stage of the ladder."""
    return pd.read_parquet(stage.path("ladder.parquet"))


def world_probes(world_ladder: Stage) -> pd.DataFrame:
    """Rows of world_probes.csv: the feature sets of the world's ladder that every profile computes."""
    table = ladder_table(world_ladder)
    return table[table["features"].isin(WORLD_SETS)].reset_index(drop=True)


def _committed(name: str) -> pd.DataFrame:
    return pd.read_csv(paths.FIGURES / "data" / f"{name}.csv")


def full_ladder(profile: Profile, world_ladder: Stage) -> pd.DataFrame:
    """Rows of probe_ladder.csv: the world's, and the real sets' where they are there, else as they were published."""
    if not has_real_data(profile):
        published = _committed("probe_ladder")
        return pd.concat([ladder_table(world_ladder), published[published["dataset"] != "world"]], ignore_index=True)
    return pd.concat([ladder_table(stage) for stage in (world_ladder, *real_ladder_stages(profile))], ignore_index=True)


def overlap_table(profile: Profile) -> pd.DataFrame:
    """Rows of real_overlap.csv: exact overlap of every set with every evaluation set by normalised question."""
    if not has_real_data(profile):
        return _committed("real_overlap")
    evaluation = {**evaluation_keys(real_folder()), "math_test": set(load_set("math_test").keys)}
    rows = []
    for name in (name for files in GROUPS.values() for name in files):
        keys = load_set(name).keys
        rows += [(name, other, len(keys), sum(key in questions for key in keys))
                 for other, questions in evaluation.items() if other != name]  # fmt: skip
    return pd.DataFrame(rows, columns=["dataset", "evaluation_set", "n", "n_overlap"])


def representation_table(profile: Profile, world: Stage, store: Stage) -> pd.DataFrame:
    """Rows of representation.csv: what the open choices of the representation cost (ours).

    The paper keeps 240 latents and reads prompt and solution. Here every rule of `saerl_lib.encode.store` chooses on L from
    the same store, and the prompt alone is read beside both spans. Columns: choice, option, target, metric, value, ci_low,
    ci_high, n_train, n_test, shared_with_default.
    """
    splits = {name: load_split(world, name) for name in ("labelled", "test")}
    tasks = {task.target: task for task in split_tasks(splits)}
    topic, both = tasks["topic_leaf"], tasks["difficulty_in_domain"]
    prompt = dataclasses.replace(both, with_solution=False)
    ids = [s.id for name in ("labelled", "test") for s in splits[name]]
    stores = [Store(store.path(name)) for name in ("labelled", "test")]
    default, found = None, []
    for rule in RULES:
        chosen = retained_of(profile, stores[0], splits["labelled"], rule)
        default = chosen if default is None else default
        shared = len(np.intersect1d(chosen, default)) / len(chosen)
        blocks = {"sae": (ids, np.concatenate([part.select(chosen) for part in stores]))}

        def read(task: Task, features: str = "sae", blocks: Blocks = blocks) -> pd.DataFrame:
            table, _ = ladder([task], blocks, profile.properties, profile.seed, only=(features,))
            return table[table["features"] == features]

        found += [(("retained set", rule, shared), read(task)) for task in (topic, both)]
        if rule == RULES[0]:
            spans = [("prompt and solution", both, "sae"), ("prompt only", prompt, "sae"),
                     ("phi, prompt and solution", both, "sae+metadata"),
                     ("phi, prompt only", prompt, "sae+metadata")]  # fmt: skip
            found += [(("spans", option, 1.0), read(task, features)) for option, task, features in spans]
    named = [t.assign(choice=c, option=o, shared_with_default=share) for (c, o, share), t in found]
    columns = ["choice", "option", *[c for c in COLUMNS if c not in ("dataset", "features")], "shared_with_default"]
    return pd.concat(named, ignore_index=True)[columns]


def representation_stage(profile: Profile, world: Stage, store: Stage) -> Stage:
    """Stage `representation`: representation.parquet."""

    def compute(folder: Path) -> None:
        representation_table(profile, world, store).to_parquet(folder / "representation.parquet", index=False)

    config = {**to_dict(profile.properties), "retained": profile.reader.retained_latents, "seed": profile.seed}
    return get_or_compute(profile, "representation", config, compute, (world, store))


def run_ladder(file: Path, profile: str) -> int:
    """`ladder`: every label of `file` that can be read becomes a task; table, figure and predictions go to their own folder."""
    chosen = get_profile(profile)
    data = load_labelled(file)
    tasks = tasks_of_file(data, chosen.ladder, held_out_keys(), lambda line: print(line, flush=True))
    read = corpus_keys(chosen.ladder)
    for task in tasks:
        seen = sum(normalise(s.prompt) in read for s in task.test)
        print(f"{task.target}: {len(task.train)} training and {len(task.test)} test problems; the SAE may have been "
              f"trained on the text of {seen} of the latter, without labels", flush=True)  # fmt: skip
    folder = paths.profile_dir(chosen.name) / "files" / data.name
    folder.mkdir(parents=True, exist_ok=True)
    blocks = encode_tasks(tasks, chosen, folder)
    table, predictions = ladder(tasks, blocks, chosen.properties, chosen.seed)
    write_csv(table, "probe_ladder", folder)
    predictions.to_parquet(folder / "predictions.parquet", index=False)
    write_json(folder / "provenance.json", {"file": file.name, "settings": content_hash(to_dict(chosen)), **provenance()})
    shown = table[table["metric"].isin(("accuracy", "spearman", "roc_auc", "pearson"))]
    print(shown.pivot_table(index="features", columns=["target", "metric"], values="value", sort=False).round(3).to_string())
    print(f"table, figure and predictions: {draw('probe_ladder', folder, folder).parent}")
    return 0
