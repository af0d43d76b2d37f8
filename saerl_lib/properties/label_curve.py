"""Difficulty quality against the number of labels: what |L| = 3,000 buys (ours; the paper fixes |L|).

`SUBSETS` random permutations of L are cut to their first 30, 100, ... samples, so the subsets of a permutation are nested.
Every subset has its penalties tuned on itself. The interval covers both the choice of the subset and the test samples.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from saerl_lib.config import PropertyConfig, sub_seed
from saerl_lib.properties import Matrix, correlation, require_rows
from saerl_lib.properties.probes import fit_elastic_net
from saerl_lib.report.statistics import Interval, percentile_interval

SIZES = (30, 100, 300, 1000, 3000)
"""Labels |L|."""
SUBSETS = 5
"""Nested random subsets of each size; all of L is one."""
COLUMNS = ["features", "n_labels", "value", "ci_low", "ci_high", "n_subsets", "n_test"]


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
    return pd.DataFrame(rows, columns=COLUMNS)


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
