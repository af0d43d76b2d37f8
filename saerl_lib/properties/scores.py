"""From test predictions to rows of `probe_ladder.csv`, with intervals over test samples and over SAE seeds (ours).

The bootstrap resamples test samples and, where a feature set has several seeds, the seeds as well: each resample draws
seeds with replacement and averages their metric on the same resampled samples.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from joblib import Parallel, delayed
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from saerl_lib.properties.probes import METRICS, ProbeRow, Task
from saerl_lib.report.statistics import Interval, bootstrap_runs


def metric(kind: str, predicted: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy, Spearman, ROC-AUC or Pearson of predictions [n]; a constant prediction orders nothing: 0, or 0.5 for ROC-AUC.

    Spearman is Pearson of the ranks, so that a bootstrap may rank once and resample ranks.
    """
    if kind == "topic":
        return float(np.mean(predicted == truth))
    if kind == "binary":
        return float(roc_auc_score(truth, predicted)) if 0 < truth.sum() < len(truth) else float("nan")
    if kind == "rank":
        predicted, truth = rankdata(predicted), rankdata(truth)
    a, b = predicted - predicted.mean(), truth - truth.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


ERRORS = {
    "rmse": lambda gap: float(np.sqrt(np.mean(gap**2))),
    "mae": lambda gap: float(np.mean(np.abs(gap))),
}
"""Metric of Table 3 -> its value from predictions minus truth [n]."""


def interval(kind: str, runs: list[np.ndarray], truth: np.ndarray, samples: int, seed: int) -> Interval:
    """Mean metric over runs (seeds) and its 95 % bootstrap interval; each run is a vector of predictions [n]."""
    return bootstrap_runs(lambda rows, i: metric(kind, runs[i][rows], truth[rows]), len(truth), len(runs), samples, seed)


def baseline(task: Task) -> tuple[str, np.ndarray]:
    """The prediction that reads nothing: the most frequent topic, or the mean."""
    if task.kind == "topic":
        names, counts = np.unique(task.y_train, return_counts=True)
        return "majority", np.full(len(task.y_test), names[counts.argmax()])
    return ("majority" if task.kind == "binary" else "mean"), np.full(len(task.y_test), float(np.mean(task.y_train)))


def task_rows(
    task: Task, predictions: Mapping[tuple[str, int], np.ndarray], bootstrap_samples: int, seed: int, workers: int = 1
) -> list[ProbeRow]:
    """Rows of one task: its metric for every feature set, and RMSE and MAE for a quality task; `workers` processes."""
    name, constant = baseline(task)
    runs: dict[str, list[np.ndarray]] = {name: [constant]}
    for (features, _), values in predictions.items():
        runs.setdefault(features, []).append(values)
    n_train, n_test = len(task.y_train), len(task.y_test)
    measured = [features for features in runs if not (task.kind == "quality" and features == "mean")]
    found_all = Parallel(n_jobs=workers)(
        delayed(interval)(task.kind, runs[features], task.y_test, bootstrap_samples, seed) for features in measured
    )
    intervals = dict(zip(measured, found_all, strict=True))
    rows = []
    for features, values in runs.items():
        if features in intervals:
            found = intervals[features]
            rows.append(ProbeRow(task.dataset, task.target, METRICS[task.kind], features, *found, n_train, n_test))
        if task.kind == "quality" and features != "shuffled_labels":
            rows += _error_rows(task, features, values, bootstrap_samples, seed)
    return rows


def _error_rows(task: Task, features: str, runs: list[np.ndarray], samples: int, seed: int) -> list[ProbeRow]:
    truth, out = task.y_test, []
    for name, error in ERRORS.items():
        found = bootstrap_runs(lambda rows, i, f=error: f(runs[i][rows] - truth[rows]), len(truth), len(runs), samples, seed)
        out.append(ProbeRow(task.dataset, task.target, name, features, *found, len(task.y_train), len(truth)))
    return out
