"""How well one latent stands for one label: necessity, sufficiency and their harmonic mean, FRC.

Ours, after the definition of "feature representation confidence" in LinguaLens (arXiv 2502.20344), which the paper's
authors use elsewhere. There both probabilities come from minimal pairs of sentences with and without a property; here
they are conditional frequencies over the samples of a pool, so everything below is correlational: necessity is a recall,
sufficiency a precision, FRC their F1. No text is changed and no latent is switched off.

    necessity   = P(latent active | label)      sufficiency = P(label | latent active)
    FRC = 2 * necessity * sufficiency / (necessity + sufficiency)

A latent is active in a sample when it fires on a token of the span of its block. Axes: N samples, J latents, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saerl_lib.properties import require_rows
from saerl_lib.report.statistics import Interval, percentile_interval


@dataclass(frozen=True)
class Confidence:
    """One latent against one label over n samples."""

    necessity: float
    """P(active | label); 0 when no sample has the label."""
    sufficiency: float
    """P(label | active); 0 when the latent is never active."""
    base_rate: float
    """P(label)."""
    n: int
    n_active: int
    n_label: int

    @property
    def frc(self) -> float:
        """Harmonic mean of necessity and sufficiency, 0 when both are 0."""
        total = self.necessity + self.sufficiency
        return 2 * self.necessity * self.sufficiency / total if total else 0.0

    @property
    def lift(self) -> float:
        """Sufficiency over base rate; 1 means that the latent says nothing about the label."""
        return self.sufficiency / self.base_rate if self.base_rate else float("nan")


def confidence(active: np.ndarray, has_label: np.ndarray) -> Confidence:
    """Necessity and sufficiency of a latent, active [N], for a label, has_label [N].

    >>> c = confidence(np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 0]))
    >>> round(c.necessity, 3), round(c.sufficiency, 3), round(c.frc, 3), round(c.lift, 3)
    (0.667, 0.667, 0.667, 1.111)

    Raises ValueError for unequal rows or none.
    """
    require_rows(active=active, has_label=has_label)
    active, has_label = np.asarray(active, dtype=bool), np.asarray(has_label, dtype=bool)
    n, both, n_active, n_label = len(active), int((active & has_label).sum()), int(active.sum()), int(has_label.sum())
    return Confidence(both / max(1, n_label), both / max(1, n_active), n_label / n, n, n_active, n_label)


def confidence_interval(active: np.ndarray, has_label: np.ndarray, samples: int, seed: int) -> Interval:
    """95 % percentile interval of FRC over `samples` bootstrap resamples of the N samples.

    A resample only redraws how many samples fall into the four cells of (active, label), so the cells are drawn directly.
    The interval does not cover that the label was chosen as the best one; `best_label_control` does.
    """
    require_rows(active=active, has_label=has_label)
    cells = np.bincount(2 * np.asarray(active, dtype=int) + np.asarray(has_label, dtype=int), minlength=4)
    draws = np.random.default_rng(seed).multinomial(cells.sum(), cells / cells.sum(), size=samples)
    marginals = draws[:, 1] + draws[:, 2] + 2 * draws[:, 3]
    return percentile_interval(confidence(active, has_label).frc, 2 * draws[:, 3] / np.maximum(1, marginals))


def frc_matrix(active: np.ndarray, one_hot: np.ndarray) -> np.ndarray:
    """FRC of every latent for every label, [J, C]; active is bool [N, J], one_hot bool [N, C].

    The harmonic mean of both / n_label and both / n_active is 2 both / (n_active + n_label).
    """
    both = active.T.astype(np.float64) @ one_hot.astype(np.float64)
    marginals = active.sum(axis=0)[:, None] + one_hot.sum(axis=0)[None]
    return 2 * both / np.maximum(1, marginals)


def best_labels(active: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The label with the largest FRC for each latent, str [J]; the first by name among equals."""
    require_rows(active=active, labels=labels)
    names, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    one_hot = codes[:, None] == np.arange(len(names))
    return names[frc_matrix(np.asarray(active, dtype=bool), one_hot).argmax(axis=1)]


def best_label_control(active: np.ndarray, labels: np.ndarray, shuffles: int, seed: int) -> np.ndarray:
    """Mean over shuffles of the labels of the largest FRC that each latent then reaches, float [J].

    The best label is chosen anew in every shuffle, as for the real labels: what FRC looks like without a relation.
    """
    require_rows(active=active, labels=labels)
    names, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    rng, active = np.random.default_rng(seed), np.asarray(active, dtype=bool)
    found = [
        frc_matrix(active, rng.permutation(codes)[:, None] == np.arange(len(names))).max(axis=1) for _ in range(shuffles)
    ]
    return np.mean(found, axis=0)
