"""Linear probes of topic, difficulty and solution quality, and what they are asked (paper, section 2, Tables 1-3).

Every feature set gets the same budget: dense features are standardised on the training samples; sparse ones (TF-IDF)
stay as they are, because unit variance would inflate rare words and weaken the baseline. Penalties are grids relative
to the mean squared norm of a training row, so that one grid fits 26 metadata and 5,000 words alike. Grids and folds are not
stated in the paper; ours. TF-IDF is the baseline that an SAE probe has to beat (ours; the paper has none).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import ElasticNet, ElasticNetCV, LogisticRegression, RidgeCV
from sklearn.model_selection import KFold, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from saerl_lib.config import PropertyConfig
from saerl_lib.data.sample import Sample
from saerl_lib.properties import Matrix, require_finite, require_rows

LOGISTIC_PENALTIES = (1.0, 10.0, 100.0)
"""C times the mean squared row norm; one held-out fold chooses."""
RIDGE_PENALTIES = tuple(10.0**power for power in range(-2, 4))
"""alpha over the mean squared row norm; cross-validation chooses."""
L1_RATIOS = (0.1, 0.5, 0.9)
"""Grid of the elastic net's l1_ratio; cross-validation chooses."""
FLOOR = 1e-2
"""Smallest over largest alpha of the path of f_D: what the study's plans were made with."""
PROBE_FLOOR = 1e-3
"""The same of the probes, scikit-learn's default: at 1e-2 most feature sets chose the last one."""
FOLDS = 3
"""Folds of every cross-validation."""
TOKEN_PATTERN = r"\w+|[^\w\s]"
"""Words, whole numbers and single signs: scikit-learn's default drops digits and operators, which carry mathematics."""
MAX_TERMS = 5000
"""Most frequent terms that TF-IDF keeps, which bounds the time of the elastic net."""
LEAST_TRAIN, LEAST_TEST = 30, 10
"""Samples of a task at least."""
METRICS = {"topic": "accuracy", "rank": "spearman", "binary": "roc_auc", "quality": "pearson"}
"""Kind of a task -> its metric in the ladder."""


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
        if len(self.train) != len(self.y_train) or len(self.test) != len(self.y_test):
            raise ValueError(f"{self.dataset} {self.target}: samples and labels differ in number")
        if len(self.train) < LEAST_TRAIN or len(self.test) < LEAST_TEST:
            raise ValueError(
                f"{self.dataset} {self.target}: {len(self.train)} training and {len(self.test)} test samples are too few; "
                f"label at least {LEAST_TRAIN} and {LEAST_TEST}"
            )


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


def _folds(x: Matrix, seed: int) -> KFold:
    if x.shape[0] < FOLDS:
        raise ValueError(f"{x.shape[0]} training samples are fewer than the {FOLDS} folds of the cross-validation: pass more")
    return KFold(FOLDS, shuffle=True, random_state=seed)  # shuffled: a train set may be two sources in a row


def _as_float(x: Matrix) -> Matrix:
    return x.tocsr().astype(np.float64) if sparse.issparse(x) else np.asarray(x, dtype=np.float64)


def fit_topic_probe(x: Matrix, y: np.ndarray, seed: int) -> Pipeline:
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
    kept, held_out = train_test_split(everything, test_size=1 / FOLDS, random_state=seed)
    accuracies = [0.0]
    if len(np.unique(y[kept])) > 1:
        accuracies = [fit(penalty, kept).score(x[held_out], y[held_out]) for penalty in LOGISTIC_PENALTIES]
    return fit(LOGISTIC_PENALTIES[int(np.argmax(accuracies))], everything)


def fit_elastic_net(x: Matrix, y: np.ndarray, config: PropertyConfig, seed: int, probe: bool = False) -> Pipeline:
    """Elastic net on x [N, D], y [N]; alpha and l1_ratio by threefold cross-validation on the training samples.

    The path is that of the plan's f_D or, for a `probe`, the longer one.
    Raises ValueError for non-finite values, unequal rows or fewer samples than folds.
    """
    x, y = _checked(x, y)
    scaler = scaler_for(x)
    scaled = scaler.fit_transform(x)
    alpha, l1_ratio = 1.0, 0.5
    if np.ptp(y) > 0 and abs(scaled).max() > 0:  # otherwise the alpha path is undefined and the mean is the best prediction
        search = ElasticNetCV(
            l1_ratio=list(L1_RATIOS), alphas=config.probe_alphas if probe else config.elastic_net_alphas,
            eps=PROBE_FLOOR if probe else FLOOR, max_iter=300, tol=1e-3, cv=_folds(x, seed),
        )  # fmt: skip
        with warnings.catch_warnings():  # ranking the penalties needs fewer digits than the probe itself
            warnings.simplefilter("ignore", ConvergenceWarning)
            search.fit(scaled, y)
        alpha, l1_ratio = float(search.alpha_), float(search.l1_ratio_)
    net = ElasticNet(alpha=alpha, l1_ratio=l1_ratio, max_iter=5000).fit(scaled, y)
    return Pipeline([("scale", scaler), ("probe", net)])


def fit_ridge(x: Matrix, y: np.ndarray, seed: int) -> Pipeline:
    """Ridge regression on x [N, D], y [N]; alpha by threefold cross-validation. Errors as `fit_elastic_net`."""
    x, y = _checked(x, y)
    scaler = scaler_for(x)
    scaled = scaler.fit_transform(x)
    alphas = mean_squared_row_norm(scaled) * np.array(RIDGE_PENALTIES)
    return Pipeline([("scale", scaler), ("probe", RidgeCV(alphas, cv=_folds(x, seed)).fit(scaled, y))])


def shuffled(labels: np.ndarray, seed: int) -> np.ndarray:
    """A permuted copy of labels [N]: the control that shows what a probe reads out of nothing."""
    return np.random.default_rng(seed).permutation(np.asarray(labels))


def _checked(x: Matrix, y: np.ndarray) -> tuple[Matrix, np.ndarray]:
    require_rows(train_x=x, train_y=y)
    require_finite("train_x", x)
    require_finite("train_y", y)
    return _as_float(x), np.asarray(y, dtype=np.float64)


def _checked(x: Matrix, y: np.ndarray) -> tuple[Matrix, np.ndarray]:
    require_rows(train_x=x, train_y=y)
    require_finite("train_x", x)
    require_finite("train_y", y)
    return _as_float(x), np.asarray(y, dtype=np.float64)


def fit_tfidf(train_texts: Sequence[str], max_terms: int = MAX_TERMS) -> TfidfVectorizer:
    """A vectoriser of lower-case 1-grams and 2-grams with sublinear counts, fitted on training texts only.

    `fit_tfidf(train).transform(texts)` is a sparse matrix [N, at most max_terms] with rows of norm 1.
    Raises ValueError when there is no text or no text holds a term.
    """
    if not any(text.strip() for text in train_texts):
        raise ValueError("train_texts is empty or blank: pass the texts of the training samples")
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=TOKEN_PATTERN, max_features=max_terms, sublinear_tf=True)
    return vectorizer.fit(train_texts)
