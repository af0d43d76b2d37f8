"""Linear probes of topic, difficulty and solution quality with bootstrap intervals (paper, section 2, Tables 1-3).

Every feature set gets the same budget: dense features are standardised on the training samples; sparse ones (TF-IDF)
stay as they are, because unit variance would inflate rare words and weaken the baseline. Penalties are grids relative
to the mean squared norm of a training row, so that one grid fits 26 metadata and 5,000 words alike. Grids, folds and
intervals are not stated in the paper; ours. The intervals resample test samples; they leave out the spread over training sets.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, ElasticNetCV, LogisticRegression, RidgeCV
from sklearn.model_selection import KFold, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from saerl_lib.config import PropertyConfig
from saerl_lib.properties import Matrix, correlation, require_finite, require_rows
from saerl_lib.report.statistics import bootstrap_interval

LOGISTIC_PENALTIES = (1.0, 10.0, 100.0)
"""C times the mean squared row norm; one held-out fold chooses."""
RIDGE_PENALTIES = tuple(10.0**power for power in range(-2, 4))
"""alpha over the mean squared row norm; cross-validation chooses."""


@dataclass(frozen=True)
class ProbeRow:
    """One row of `probe_ladder.csv`; the interval holds 95 % of the bootstrap over test samples."""

    dataset: str
    target: str
    metric: str
    features: str
    value: float
    ci_low: float
    ci_high: float
    n_train: int
    n_test: int


def scaler_for(x: Matrix) -> StandardScaler | FunctionTransformer:
    """A scaler for dense x, the identity for sparse x."""
    return FunctionTransformer(accept_sparse=True) if sparse.issparse(x) else StandardScaler()


def mean_squared_row_norm(x: Matrix) -> float:
    """Mean over rows of the squared Euclidean norm; 1 for an all-zero matrix."""
    squares = x.multiply(x) if sparse.issparse(x) else np.square(x)
    return float(squares.sum()) / x.shape[0] or 1.0


def _folds(x: Matrix, config: PropertyConfig, seed: int) -> KFold:
    if x.shape[0] < config.cv_folds:
        raise ValueError(f"cv_folds={config.cv_folds} exceeds the {x.shape[0]} training samples: pass more or fold less")
    return KFold(config.cv_folds, shuffle=True, random_state=seed)  # shuffled: a train set may be two sources in a row


def _as_float(x: Matrix) -> Matrix:
    return x.tocsr().astype(np.float64) if sparse.issparse(x) else np.asarray(x, dtype=np.float64)


def fit_topic_probe(x: Matrix, y: np.ndarray, config: PropertyConfig, seed: int) -> Pipeline:
    """L2 logistic regression on x [N, D], topics y [N]; C is chosen on one held-out fold, ties towards the stronger penalty.

    Raises ValueError for non-finite x, unequal rows or a single topic.
    """
    y = np.asarray(y)
    require_rows(train_x=x, train_y=y)
    require_finite("train_x", x)
    if len(np.unique(y)) < 2:
        raise ValueError(f"train_y holds the single topic {y[0]!r}: a topic probe needs at least two")
    x = _as_float(x)
    norm = mean_squared_row_norm(scaler_for(x).fit_transform(x))

    def fit(penalty: float, rows: np.ndarray) -> Pipeline:
        probe = LogisticRegression(C=penalty / norm, max_iter=300)
        return Pipeline([("scale", scaler_for(x)), ("probe", probe)]).fit(x[rows], y[rows])

    everything = np.arange(len(y))
    kept, held_out = train_test_split(everything, test_size=1 / config.cv_folds, random_state=seed)
    accuracies = [0.0]
    if len(np.unique(y[kept])) > 1:
        accuracies = [fit(penalty, kept).score(x[held_out], y[held_out]) for penalty in LOGISTIC_PENALTIES]
    return fit(LOGISTIC_PENALTIES[int(np.argmax(accuracies))], everything)


def fit_elastic_net(x: Matrix, y: np.ndarray, config: PropertyConfig, seed: int) -> Pipeline:
    """Elastic net on x [N, D], y [N]; alpha and l1_ratio by `cv_folds`-fold cross-validation on the training samples.

    The path is that of the plan's f_D; `probe_path(config)` gives the longer one of the probes.
    Raises ValueError for non-finite values, unequal rows or fewer samples than folds.
    """
    x, y = _checked(x, y)
    scaler = scaler_for(x)
    scaled = scaler.fit_transform(x)
    alpha, l1_ratio = 1.0, 0.5
    if np.ptp(y) > 0 and abs(scaled).max() > 0:  # otherwise the alpha path is undefined and the mean is the best prediction
        search = ElasticNetCV(
            l1_ratio=list(config.elastic_net_l1_ratios), alphas=config.elastic_net_alphas, eps=config.elastic_net_floor,
            max_iter=300, tol=1e-3, cv=_folds(x, config, seed),
        )  # fmt: skip
        with warnings.catch_warnings():  # ranking the penalties needs fewer digits than the probe itself
            warnings.simplefilter("ignore", ConvergenceWarning)
            search.fit(scaled, y)
        alpha, l1_ratio = float(search.alpha_), float(search.l1_ratio_)
    probe = ElasticNet(alpha=alpha, l1_ratio=l1_ratio, max_iter=5000).fit(scaled, y)
    return Pipeline([("scale", scaler), ("probe", probe)])


def probe_path(config: PropertyConfig) -> PropertyConfig:
    """The same settings with the penalty path of the difficulty probes."""
    return replace(config, elastic_net_alphas=config.probe_alphas, elastic_net_floor=config.probe_floor)


def fit_ridge(x: Matrix, y: np.ndarray, config: PropertyConfig, seed: int) -> Pipeline:
    """Ridge regression on x [N, D], y [N]; alpha by `cv_folds`-fold cross-validation. Errors as `fit_elastic_net`."""
    x, y = _checked(x, y)
    scaler = scaler_for(x)
    scaled = scaler.fit_transform(x)
    alphas = mean_squared_row_norm(scaled) * np.array(RIDGE_PENALTIES)
    return Pipeline([("scale", scaler), ("probe", RidgeCV(alphas, cv=_folds(x, config, seed)).fit(scaled, y))])


def topic_probe(
    train_x: Matrix, train_y: np.ndarray, test_x: Matrix, test_y: np.ndarray, *,
    dataset: str, target: str, features: str, config: PropertyConfig, seed: int,
) -> ProbeRow:
    """Accuracy of `fit_topic_probe` on test samples. The control passes `shuffled(train_y, seed)` as train_y."""
    _check_test(test_x, test_y)
    predicted = fit_topic_probe(train_x, train_y, config, seed).predict(_as_float(test_x))
    return accuracy_row(predicted == np.asarray(test_y), len(train_y), dataset, target, features, config, seed)


def majority_baseline(
    train_y: np.ndarray, test_y: np.ndarray, *, dataset: str, target: str, config: PropertyConfig, seed: int
) -> ProbeRow:
    """Accuracy of the most frequent training topic (the first by name among equals)."""
    topics, counts = np.unique(np.asarray(train_y), return_counts=True)
    hits = np.asarray(test_y) == topics[np.argmax(counts)]
    return accuracy_row(hits, len(train_y), dataset, target, "majority", config, seed)


def accuracy_row(
    hits: np.ndarray, n_train: int, dataset: str, target: str, features: str, config: PropertyConfig, seed: int
) -> ProbeRow:
    """The row of a vector of hits [N test], true where the prediction is right."""
    hits = np.asarray(hits, dtype=float)
    interval = bootstrap_interval(lambda rows: float(hits[rows].mean()), len(hits), config.bootstrap_samples, seed)
    return ProbeRow(dataset, target, "accuracy", features, float(hits.mean()), interval.low, interval.high, n_train, len(hits))


def difficulty_probe(
    train_x: Matrix, train_y: np.ndarray, test_x: Matrix, test_y: np.ndarray, *,
    dataset: str, target: str, features: str, config: PropertyConfig, seed: int,
) -> ProbeRow:
    """Spearman correlation of elastic-net predictions with difficulty labels on test samples (paper, Table 2)."""
    model = fit_elastic_net(train_x, train_y, probe_path(config), seed)
    return score_difficulty(
        model, test_x, test_y, n_train=len(train_y), dataset=dataset, target=target, features=features, config=config, seed=seed
    )


def score_difficulty(
    model: Pipeline, test_x: Matrix, test_y: np.ndarray, *,
    n_train: int, dataset: str, target: str, features: str, config: PropertyConfig, seed: int,
) -> ProbeRow:
    """The row of a fitted elastic net, so that one fit serves the in-domain and the out-of-domain test set."""
    _check_test(test_x, test_y)
    predicted, labels = model.predict(_as_float(test_x)), np.asarray(test_y, dtype=float)
    metrics = {"spearman": lambda rows: correlation("spearman", predicted[rows], labels[rows])}
    return _metric_rows(metrics, len(labels), n_train, dataset, target, features, config, seed)[0]


def quality_regression(
    train_x: Matrix, train_y: np.ndarray, test_x: Matrix, test_y: np.ndarray, *,
    dataset: str, target: str, features: str, config: PropertyConfig, seed: int, groups: np.ndarray | None = None,
) -> list[ProbeRow]:
    """RMSE, MAE and Pearson of ridge predictions of solution quality in [0, 1] (paper, Table 3), one row a metric.

    `groups` [n test] names what the intervals resample as one, such as the solutions of one question; None: single rows.
    """
    _check_test(test_x, test_y)
    predicted = fit_ridge(train_x, train_y, config, seed).predict(_as_float(test_x))
    labels = np.asarray(test_y, dtype=float)
    metrics = _regression_metrics(predicted, labels)
    return _metric_rows(metrics, len(labels), len(train_y), dataset, target, features, config, seed, groups)


def mean_baseline(
    train_y: np.ndarray, test_y: np.ndarray, *, dataset: str, target: str, config: PropertyConfig, seed: int,
    groups: np.ndarray | None = None,
) -> list[ProbeRow]:
    """RMSE and MAE of the training mean; it has no correlation (paper, Table 3)."""
    labels = np.asarray(test_y, dtype=float)
    metrics = _regression_metrics(np.full(len(labels), np.mean(train_y)), labels)
    metrics.pop("pearson")
    return _metric_rows(metrics, len(labels), len(train_y), dataset, target, "mean", config, seed, groups)


def shuffled(labels: np.ndarray, seed: int) -> np.ndarray:
    """A permuted copy of labels [N]: the control that shows what a probe reads out of nothing."""
    return np.random.default_rng(seed).permutation(np.asarray(labels))


def _checked(x: Matrix, y: np.ndarray) -> tuple[Matrix, np.ndarray]:
    require_rows(train_x=x, train_y=y)
    require_finite("train_x", x)
    require_finite("train_y", y)
    return _as_float(x), np.asarray(y, dtype=np.float64)


def _check_test(test_x: Matrix, test_y: np.ndarray) -> None:
    require_rows(test_x=test_x, test_y=test_y)
    require_finite("test_x", test_x)


def _regression_metrics(predicted: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[np.ndarray], float]]:
    return {
        "rmse": lambda rows: float(np.sqrt(np.mean((predicted[rows] - labels[rows]) ** 2))),
        "mae": lambda rows: float(np.mean(np.abs(predicted[rows] - labels[rows]))),
        "pearson": lambda rows: correlation("pearson", predicted[rows], labels[rows]),
    }


def _metric_rows(
    metrics: dict[str, Callable[[np.ndarray], float]], n: int, n_train: int,
    dataset: str, target: str, features: str, config: PropertyConfig, seed: int, groups: np.ndarray | None = None,
) -> list[ProbeRow]:
    members = None if groups is None else [np.flatnonzero(groups == group) for group in np.unique(groups)]
    rows = []
    for name, metric in metrics.items():

        def resampled(drawn: np.ndarray, metric: Callable[[np.ndarray], float] = metric) -> float:
            return metric(drawn if members is None else np.concatenate([members[i] for i in drawn]))

        units = n if members is None else len(members)
        interval = bootstrap_interval(resampled, units, config.bootstrap_samples, seed)
        rows.append(ProbeRow(dataset, target, name, features, metric(np.arange(n)), interval.low, interval.high, n_train, n))
    return rows
