"""Linear probes of topic, difficulty, quality and validity, their tasks, and the rows of a task (paper, section 2, Tables 1-3).

Every feature set gets the same budget: logistic regression for topics and validity, ridge regression for difficulty and
quality. Dense features are standardised on the training samples; sparse ones stay as they are, because unit variance would
inflate rare words. Penalties are relative to the mean squared norm of a training row, so that one grid fits 26 metadata and
5,000 words alike. Grids, folds and the TF-IDF baseline are ours.

A task says which label is read from which samples. Intervals resample test samples and, where a feature set has several seeds,
the seeds as well (ours). Axes: N samples, D features (z 4 x S, metadata 26, phi both).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy import sparse
from scipy.stats import rankdata
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import ElasticNet, ElasticNetCV, LogisticRegression, RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, KernelCenterer, StandardScaler

from saerl_lib.config import LadderConfig, PropertyConfig, require
from saerl_lib.data.published import SPLIT_LABELS, math_splits, probe_splits
from saerl_lib.data.sample import LabelledSet, Sample, normalise
from saerl_lib.report.statistics import Interval, bootstrap_interval, bootstrap_runs

Matrix = Any
"""Dense array or scipy sparse matrix [N, D]."""


def require_finite(name: str, values: Matrix, first_row: int = 0) -> None:
    """Raise ValueError that names `values` and its first bad row, counted from `first_row`, when an entry is NaN or infinite."""
    matrix = sparse.coo_matrix(values) if sparse.issparse(values) else np.asarray(values)
    bad = ~np.isfinite(matrix.data if sparse.issparse(matrix) else matrix)
    if bad.any():
        rows = matrix.row[bad] if sparse.issparse(matrix) else np.nonzero(bad)[0]
        row = first_row + rows.min()
        raise ValueError(f"{name} holds {len(rows)} non-finite values, first in row {row}: encode that sample again or drop it")


def require_rows(**arrays: Matrix) -> None:
    """Raise ValueError unless all named arrays have the same, non-zero number of rows."""
    sizes = {name: (a.shape[0] if hasattr(a, "shape") else len(a)) for name, a in arrays.items()}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise ValueError(f"row counts must be equal and above zero, found {sizes}: pass the arrays of the same samples")


LOGISTIC_PENALTIES = (1.0, 10.0, 100.0)
"""C times the mean squared row norm; one held-out fold chooses."""
RIDGE_PENALTIES = tuple(10.0**power for power in range(-2, 4))
"""alpha over the mean squared row norm; cross-validation chooses."""
L1_RATIOS = (0.1, 0.5, 0.9)
"""Grid of the elastic net's l1_ratio; cross-validation chooses."""
FLOOR = 1e-2
"""Smallest over largest alpha of the path of f_D."""
FOLDS = 3
"""Folds of every cross-validation."""
WORKERS = 2
"""Fits that run at a time, one thread each."""
COLUMNS_AT_ONCE = 2048
"""Columns of a sparse matrix that are made dense at a time; bounds the memory."""
TOKEN_PATTERN = r"\w+|[^\w\s]"
"""Words, whole numbers and single signs: scikit-learn's default drops digits and operators, which carry mathematics."""
MAX_TERMS = 5000
"""Most frequent terms that TF-IDF keeps, which bounds the time of the elastic net."""
LEAST_TRAIN, LEAST_TEST = 30, 10
"""Samples of a task at least."""
METRICS = {"topic": "accuracy", "rank": "spearman", "binary": "roc_auc", "quality": "pearson"}
"""Kind of a task -> its metric in the ladder."""
ERRORS = ("rmse", "mae")
"""Further metrics of a quality task (paper, Table 3)."""
COLUMNS = ("dataset", "target", "metric", "features", "value", "ci_low", "ci_high", "n_train", "n_test")
"""Of probe_ladder.csv; the interval holds 95 % of the bootstrap over test samples."""
PAIR_COLUMNS = ("dataset", "target", "metric", "features", "against", "difference", "ci_low", "ci_high", "n_test")
"""Of ladder_pairs.csv."""
LEAST_ROWS = 43
"""Different questions that a file needs for a label: a split of 70 to 30 then leaves 30 and 13."""
LEAST_TOPIC_ROWS = 10
"""Rows of a file that a topic needs to be a class."""
STEP_SCORE = {1: 1.0, 0: 0.5, -1: 0.0}
"""Step label -> share of correctness (paper, Table 3)."""
LABELS = {
    "subject": ("topic", "subject"), "level": ("rank", "difficulty_level"), "pass_rate": ("rank", "difficulty_by_pass_rate"),
    "learnability": ("rank", "learnability"), "valid": ("binary", "well_posed"),
}  # fmt: skip
"""Label of a file -> kind of its task, and its usual name."""


@dataclass(frozen=True)
class Task:
    """One label to be read."""

    dataset: str
    target: str
    kind: str
    """Key of `METRICS`."""
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    y_train: np.ndarray
    y_test: np.ndarray
    with_solution: bool
    """Whether the solution may be read beside the prompt."""
    groups: np.ndarray | None = None
    """[n_test] what the intervals resample as one, such as the question of a solution; None: single rows."""

    def __post_init__(self) -> None:
        enough = len(self.train) >= LEAST_TRAIN and len(self.test) >= LEAST_TEST
        found = f"{len(self.train)} training and {len(self.test)} test samples are too few"
        require(enough, f"{self.dataset} {self.target}: {found}; label at least {LEAST_TRAIN} and {LEAST_TEST}")


def scaler_for(x: Matrix, standardise: bool = True) -> StandardScaler | FunctionTransformer:
    """A scaler for dense x, the identity for sparse x or where `standardise` is off."""
    return StandardScaler() if standardise and not sparse.issparse(x) else FunctionTransformer(accept_sparse=True)


def mean_squared_row_norm(x: Matrix) -> float:
    """Mean over rows of the squared Euclidean norm; 1 for an all-zero matrix."""
    squares = x.multiply(x) if sparse.issparse(x) else np.square(x)
    return float(squares.sum()) / x.shape[0] or 1.0


def _folds(x: Matrix, seed: int) -> KFold:
    if x.shape[0] < FOLDS:
        raise ValueError(f"{x.shape[0]} training samples are fewer than the {FOLDS} folds of the cross-validation: pass more")
    return KFold(FOLDS, shuffle=True, random_state=seed)  # shuffled: a train set may be two sources in a row


def _as_float(x: Matrix) -> Matrix:
    return x.tocsr().astype(np.float64) if sparse.issparse(x) else np.asarray(x, dtype=np.float64)


def fit_topic_probe(x: Matrix, y: np.ndarray, seed: int, standardise: bool = True) -> Pipeline:
    """L2 logistic regression on x [N, D], topics y [N]; C is chosen on one held-out fold, ties towards the stronger penalty.
    Raises ValueError for non-finite x, unequal rows or a single topic."""
    y = np.asarray(y)
    require_rows(train_x=x, train_y=y)
    require_finite("train_x", x)
    require(len(np.unique(y)) > 1, f"train_y holds the single topic {y[0]!r}: a topic probe needs at least two")
    x = _as_float(x)
    norm = mean_squared_row_norm(scaler_for(x, standardise).fit_transform(x))

    def fit(penalty: float, rows: np.ndarray) -> Pipeline:
        probe = LogisticRegression(C=penalty / norm, max_iter=300)
        return Pipeline([("scale", scaler_for(x, standardise)), ("probe", probe)]).fit(x[rows], y[rows])

    everything = np.arange(len(y))
    kept, held_out = train_test_split(everything, test_size=1 / FOLDS, random_state=seed)
    accuracies = [0.0]
    if len(np.unique(y[kept])) > 1:
        accuracies = [fit(penalty, kept).score(x[held_out], y[held_out]) for penalty in LOGISTIC_PENALTIES]
    return fit(LOGISTIC_PENALTIES[int(np.argmax(accuracies))], everything)


def fit_elastic_net(x: Matrix, y: np.ndarray, config: PropertyConfig, seed: int) -> Pipeline:
    """The plan's f_D: elastic net on x [N, D], y [N]; alpha and l1_ratio by threefold cross-validation on the training samples.
    Raises ValueError for non-finite values, unequal rows or fewer samples than folds."""
    x, y = _checked(x, y)
    scaler = scaler_for(x)
    scaled = scaler.fit_transform(x)
    alpha, l1_ratio = 1.0, 0.5
    if np.ptp(y) > 0 and abs(scaled).max() > 0:  # otherwise the alpha path is undefined and the mean is the best prediction
        path = {"l1_ratio": list(L1_RATIOS), "alphas": config.elastic_net_alphas, "eps": FLOOR}
        search = ElasticNetCV(**path, max_iter=300, tol=1e-3, cv=_folds(x, seed))
        with warnings.catch_warnings():  # ranking the penalties needs fewer digits than the probe itself
            warnings.simplefilter("ignore", ConvergenceWarning)
            search.fit(scaled, y)
        alpha, l1_ratio = float(search.alpha_), float(search.l1_ratio_)
    net = ElasticNet(alpha=alpha, l1_ratio=l1_ratio, max_iter=5000).fit(scaled, y)
    return Pipeline([("scale", scaler), ("probe", net)])


def inner_products(a: sparse.csr_matrix, b: sparse.csr_matrix) -> np.ndarray:
    """Inner products [N, M] of the rows of two sparse matrices, by dense blocks of columns: on pooled latents four times as fast
    as the sparse product."""
    blocks = [slice(start, start + COLUMNS_AT_ONCE) for start in range(0, a.shape[1], COLUMNS_AT_ONCE)]
    return sum(a[:, block].toarray() @ b[:, block].toarray().T for block in blocks)


def ridge_predictions(x: Matrix, y: np.ndarray, test: Matrix, seed: int, standardise: bool = True) -> np.ndarray:
    """Ridge regression on x [N, D], y [N]: predictions for test rows [M]; alpha by threefold cross-validation. Dense columns are
    standardised where `standardise` is on; sparse ones are read through their Gram matrix, so that D does not matter. Raises
    ValueError for non-finite values, unequal rows or fewer samples than folds."""
    x, y = _checked(x, y)
    if not sparse.issparse(x):
        scaler = scaler_for(x, standardise).fit(x)
        scaled = scaler.transform(x)
        alphas = mean_squared_row_norm(scaled) * np.array(RIDGE_PENALTIES)
        return RidgeCV(alphas, cv=_folds(x, seed)).fit(scaled, y).predict(scaler.transform(_as_float(test)))
    gram, cross = inner_products(x, x), inner_products(_as_float(test), x)
    centre = KernelCenterer().fit(gram)
    gram, cross = centre.transform(gram), centre.transform(cross)
    alphas = [float(np.trace(gram)) / len(y) * penalty or 1.0 for penalty in RIDGE_PENALTIES]
    ridge, folds = KernelRidge(kernel="precomputed"), _folds(x, seed)
    search = GridSearchCV(ridge, {"alpha": alphas}, cv=folds, scoring="neg_mean_squared_error")
    return search.fit(gram, y - y.mean()).predict(cross) + y.mean()


def shuffled(labels: np.ndarray, seed: int) -> np.ndarray:
    """A permuted copy of labels [N]: the control that shows what a probe reads out of nothing."""
    return np.random.default_rng(seed).permutation(np.asarray(labels))


def _checked(x: Matrix, y: np.ndarray) -> tuple[Matrix, np.ndarray]:
    require_rows(train_x=x, train_y=y)
    require_finite("train_x", x)
    require_finite("train_y", y)
    return _as_float(x), np.asarray(y, dtype=np.float64)


def texts_of(samples: Sequence[Sample], with_solution: bool = True) -> list[str]:
    """What a text baseline reads: the prompts, with their solutions behind them."""
    return [f"{s.prompt}\n{s.solution}" if with_solution else s.prompt for s in samples]


def fit_tfidf(train_texts: Sequence[str]) -> TfidfVectorizer:
    """A vectoriser of lower-case 1-grams and 2-grams with sublinear counts, fitted on training texts only.
    `fit_tfidf(train).transform(texts)` is a sparse matrix [N, at most `MAX_TERMS`] with rows of norm 1. Raises ValueError when
    there is no text or no text holds a term."""
    return tfidf_vectorizer(train_texts).fit(train_texts)


def tfidf_vectorizer(train_texts: Sequence[str]) -> TfidfVectorizer:
    """That of `fit_tfidf` before it is fitted; errors as there."""
    require(any(map(str.strip, train_texts)), "train_texts is empty or blank: pass the texts of the training samples")
    return TfidfVectorizer(ngram_range=(1, 2), token_pattern=TOKEN_PATTERN, max_features=MAX_TERMS, sublinear_tf=True)


def labelled_task(
    train: LabelledSet, test: LabelledSet, label: str, target: str | None = None, *, with_solution: bool = False
) -> Task:
    """The task of one label, `target` or its name in `LABELS`; rows without it are left out of this task alone. A pass rate is
    turned into difficulty by its sign."""
    (kind, name), parts = LABELS[label], (train.with_label(label), test.with_label(label))
    labels = [-part.labels[label] if label == "pass_rate" else part.labels[label] for part in parts]
    return Task(test.name, target or name, kind, *(part.samples for part in parts), *labels, with_solution)


def joined_labels(*sources: np.ndarray) -> np.ndarray:
    """Labels of several sources in a row, each brought to mean 0 and deviation 1: they have no common scale (ours).

    >>> joined_labels(np.array([1.0, 3.0]), np.array([0.0, 100.0])).tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """
    return np.concatenate([(values - values.mean()) / (values.std() or 1.0) for values in sources])


def real_tasks(load: Callable[[str], LabelledSet], config: LadderConfig, held_out: set[str]) -> list[Task]:
    """The tasks of the shared sets: MATH, DeepMath, DeepScaleR, ValiMath, DSR-sub (paper, Tables 1 and 2, and beyond); the last
    two are DeepMath difficulty -> DeepScaleR pass rate, without and with some labels of the target source (Table 2)."""
    math = math_splits(load, config, held_out)
    tasks = [
        labelled_task(*math, "subject"),
        labelled_task(*math, "level"),
        labelled_task(*math, "level", "difficulty_level_with_solution", with_solution=True),
    ]
    splits = probe_splits(load, config, held_out)
    tasks += [labelled_task(splits[name].train, splits[name].test, label) for name, label in SPLIT_LABELS.items()]
    deepmath, scaler = splits["deepmath_18k"].train.with_label("level"), splits["deepscaler_pass_rate"]
    rated, held = scaler.train, scaler.test
    y, truth = joined_labels(deepmath.labels["level"]), -held.labels["pass_rate"]
    outside = Task(held.name, "difficulty_out_of_domain", "rank", deepmath.samples, held.samples, y, truth, False)
    some = rated.rows(np.arange(min(config.adapted_labels, len(rated))))
    both = joined_labels(deepmath.labels["level"], -some.labels["pass_rate"])
    adapted = Task(held.name, "difficulty_adapted", "rank", (*deepmath.samples, *some.samples), held.samples, both, truth, False)
    return [*tasks, outside, adapted]


def topics_at(samples: Sequence[Sample], depth: int) -> np.ndarray:
    """Topic paths cut to `depth` levels: 1 domain, 2 subfield, 3 leaf."""
    return np.array([" -> ".join(s.topic.split(" -> ")[:depth]) for s in samples])


def split_tasks(splits: Mapping[str, Sequence[Sample]], dataset: str = "world") -> list[Task]:
    """Tables 1 to 3 on the splits of a data stage: labelled and test; contest_* and step_labelled where there are some. A
    question with several solutions lies on one side of the split, and intervals resample questions (ours)."""
    labelled, test, contest, extra, steps = (tuple(splits.get(name, ())) for name in
                                             ("labelled", "test", "contest_test", "contest_train", "step_labelled"))  # fmt: skip

    def difficulty(samples: Sequence[Sample]) -> np.ndarray:
        return np.array([s.difficulty for s in samples])

    tasks = []
    for target, depth in (("topic_l2", 1), ("topic_l3", 2), ("topic_leaf", 3)):
        y, truth = (topics_at(part, depth) for part in (labelled, test))
        if len({*y}) > 1:  # DeepMath's paths share their first level
            tasks.append(Task(dataset, target, "topic", labelled, test, y, truth, False))
    regimes = [("difficulty_in_domain", labelled, difficulty(labelled), test)]
    if len(contest) >= LEAST_TEST:
        joined = joined_labels(*(difficulty(part) for part in (labelled, extra) if part))
        regimes.append(("difficulty_out_of_domain", labelled, difficulty(labelled), contest))
        regimes.append(("difficulty_adapted", (*labelled, *extra), joined, contest))
    for target, train, y, held in regimes:
        with_solution = all(sample.solved for sample in (*train, *held))
        tasks.append(Task(dataset, target, "rank", train, held, y, difficulty(held), with_solution))
    if len(steps) >= 2 * LEAST_TRAIN:
        keys, cut = [normalise(s.prompt) for s in steps], 3 * len(steps) // 4
        while keys[cut] == keys[cut - 1] and cut < len(keys) - 1:
            cut += 1
        scores = np.array([np.mean([STEP_SCORE[label] for label in s.step_labels]) for s in steps])
        groups = np.array(keys[cut:]) if len({*keys}) < len(keys) else None
        train, held, y, truth = steps[:cut], steps[cut:], scores[:cut], scores[cut:]
        tasks.append(Task(dataset, "solution_quality", "quality", train, held, y, truth, True, groups))
    return tasks


def tasks_of_file(
    data: LabelledSet, config: LadderConfig, held_out: set[str], say: Callable[[str], None] = lambda line: None
) -> list[Task]:
    """A task for every label that a file carries, with its own split by hash; `say` is told of every row that is left out. Raises
    ValueError when no label has two values on `LEAST_ROWS` different questions."""
    tasks = []
    for label, (kind, _) in LABELS.items():
        labelled = data.with_label(label)
        if not len(labelled):
            continue
        part = labelled
        if kind == "topic":
            names, counts = np.unique(labelled.labels[label], return_counts=True)
            part = labelled.rows(np.flatnonzero(np.isin(labelled.labels[label], names[counts >= LEAST_TOPIC_ROWS])))
        questions, values = len(part.unique()), len(np.unique(part.labels[label]))
        if questions < LEAST_ROWS or values < 2:
            say(f"{label}: not read; {len(labelled)} rows carry it, {questions} different questions with {values} values of use, "
                f"and {LEAST_ROWS} with 2 are needed")  # fmt: skip
            continue
        train, test = part.split(config.max_train, config.max_test)
        own = train.without(held_out)
        left = {
            f"of topics with fewer than {LEAST_TOPIC_ROWS} rows": len(labelled) - len(part),
            "that repeat a question": len(part) - questions,
            f"beyond max_train = {config.max_train} and max_test = {config.max_test}": questions - len(train) - len(test),
            "for training whose question stands in an evaluation set": len(train) - len(own),
        }
        say(f"{label}: {len(labelled)} of {len(data)} rows carry it; left out: "
            + (", ".join(f"{count} {reason}" for reason, count in left.items() if count) or "none"))  # fmt: skip
        tasks.append(labelled_task(own, test, label))
        if label == "level":
            bare = sum(not s.solved for s in (*own.samples, *test.samples))
            if not bare:
                tasks.append(labelled_task(own, test, label, "difficulty_level_with_solution", with_solution=True))
            elif bare < len(own) + len(test):
                say(f"level with solutions: not read; {bare} of {len(own) + len(test)} rows have no solution")
    none = f"{data.name}: no label with two values on at least {LEAST_ROWS} rows; known labels: {', '.join(LABELS)}"
    require(len(tasks) > 0, none)
    return tasks


def metric(kind: str, predicted: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy, Spearman, ROC-AUC or Pearson of predictions [n], by kind of task, or one of `ERRORS`. A constant prediction
    orders nothing: 0, or 0.5 for ROC-AUC. Spearman is Pearson of the ranks, so that a bootstrap may rank once and resample
    ranks."""
    if kind == "topic":
        return float(np.mean(predicted == truth))
    if kind == "binary":
        return float(roc_auc_score(truth, predicted)) if 0 < truth.sum() < len(truth) else float("nan")
    if kind in ERRORS:
        gap = predicted - truth
        return float(np.sqrt(np.mean(gap**2)) if kind == "rmse" else np.mean(np.abs(gap)))
    if kind == "rank":
        predicted, truth = rankdata(predicted), rankdata(truth)
    a, b = predicted - predicted.mean(), truth - truth.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def interval(kind: str, runs: Sequence[np.ndarray], task: Task, samples: int, seed: int) -> Interval:
    """Mean metric over runs (seeds) and its 95 % bootstrap interval; each run is a vector of predictions [n]."""
    parts = None if task.groups is None else [np.flatnonzero(task.groups == group) for group in np.unique(task.groups)]

    def value(drawn: np.ndarray, run: int) -> float:
        rows = drawn if parts is None else np.concatenate([parts[i] for i in drawn])
        return metric(kind, runs[run][rows], task.y_test[rows])

    return bootstrap_runs(value, len(task.y_test) if parts is None else len(parts), len(runs), samples, seed)


Runs = Mapping[str, Sequence[np.ndarray]]
"""Feature set -> the predictions [n] of its seeds."""


def pair_rows(task: Task, runs: Runs, pairs: Sequence[tuple[str, str]], samples: int, seed: int) -> list[tuple[Any, ...]]:
    """Differences of the metric between two feature sets on the same resampled test rows as rows of ladder_pairs.csv. A set
    of several seeds is the mean of their metrics."""
    rows = []

    def value(name: str, drawn: np.ndarray) -> float:
        return float(np.mean([metric(task.kind, run[drawn], task.y_test[drawn]) for run in runs[name]]))

    for first, second in pairs:
        if first in runs and second in runs:
            gap = bootstrap_interval(
                lambda drawn, a=first, b=second: value(a, drawn) - value(b, drawn), len(task.y_test), samples, seed
            )
            rows.append((task.dataset, task.target, METRICS[task.kind], first, second, *gap, len(task.y_test)))
    return rows


def task_rows(task: Task, runs: Runs, bootstrap_samples: int, seed: int, workers: int = 1) -> pd.DataFrame:
    """Rows of one task: its metric for every feature set and for a constant, the most frequent topic or the mean, that reads
    nothing, and RMSE and MAE for a quality task; `workers` processes."""
    name, quality = "majority" if task.kind in ("topic", "binary") else "mean", task.kind == "quality"
    constant = pd.Series(task.y_train).mode()[0] if task.kind == "topic" else float(np.mean(task.y_train))
    runs = {name: [np.full(len(task.y_test), constant)], **runs}
    measured = [
        (features, kind) for features in runs for kind in (task.kind, *(ERRORS if quality else ()))
        if not (quality and features == (name if kind == task.kind else "shuffled_labels"))  # a constant has no correlation
    ]  # fmt: skip
    intervals = Parallel(n_jobs=workers)(
        delayed(interval)(kind, runs[features], task, bootstrap_samples, seed) for features, kind in measured
    )
    rows = [
        (task.dataset, task.target, METRICS.get(kind, kind), features, *found, len(task.y_train), len(task.y_test))
        for (features, kind), found in zip(measured, intervals, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)
