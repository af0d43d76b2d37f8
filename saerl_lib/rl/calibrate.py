"""Fits the target source's cell weights so that base pass rates follow the published histogram.

Done once, on prompts from a reserved seed that no split uses, and frozen in `data/mixture.json`. The weights are a
linear program: least total variation, every cell between `LOWEST` and `HIGHEST` times its equal share.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from tqdm import tqdm

from saerl_lib.config import TrainConfig, sub_seed
from saerl_lib.data.families import FAMILIES
from saerl_lib.data.families.base import LEVELS
from saerl_lib.data.world import MIXTURE_PATH, Cell, draw_sample
from saerl_lib.rl.base_rates import REFERENCE_SHARES, histogram
from saerl_lib.train.policy import load_policy
from saerl_lib.train.sampler import correct_attempts

RESERVED_SEED = 90_001
PROMPTS_PER_CELL, ATTEMPTS = 24, 32
LOWEST, HIGHEST = 0.4, 2.5


def pilot_histograms(train: TrainConfig) -> dict[Cell, NDArray[np.float64]]:
    """Pass-rate histogram of every (family, level) cell, PROMPTS_PER_CELL x ATTEMPTS, in target wording."""
    model, tokenizer = load_policy()
    rng = random.Random(sub_seed(RESERVED_SEED, "pilot"))
    cells = [(name, level) for name in FAMILIES for level in LEVELS]
    samples = [draw_sample(*cell, "target", rng, f"pilot-{i}") for cell in cells for i in range(PROMPTS_PER_CELL)]
    with tqdm(total=len(samples) * ATTEMPTS, desc="pilot attempts", file=sys.stdout, mininterval=10) as bar:
        marks = correct_attempts(
            model, tokenizer, samples, ATTEMPTS, train.max_completion_tokens, train.temperature, RESERVED_SEED, bar.update
        )
    rates = marks.mean(axis=1).reshape(len(cells), PROMPTS_PER_CELL)
    return {cell: histogram(row) for cell, row in zip(cells, rates, strict=True)}


def fit_weights(histograms: Mapping[Cell, NDArray[np.float64]], reference: NDArray[np.float64]) -> dict[Cell, float]:
    """Cell weights, summing to one, whose mixed histogram has the least total variation from `reference`."""
    cells = list(histograms)
    table = np.stack([histograms[cell] for cell in cells])
    n, bins = table.shape
    cost = np.concatenate([np.zeros(n), np.ones(bins)])
    above = np.hstack([table.T, -np.eye(bins)])
    below = np.hstack([-table.T, -np.eye(bins)])
    bounds = [(LOWEST / n, HIGHEST / n)] * n + [(0, None)] * bins
    solution = linprog(
        cost,
        A_ub=np.vstack([above, below]),
        b_ub=np.concatenate([reference, -reference]),
        A_eq=np.concatenate([np.ones(n), np.zeros(bins)])[None],
        b_eq=[1.0],
        bounds=bounds,
        method="highs",
    )
    if not solution.success:
        raise ValueError(f"no weights within {LOWEST} to {HIGHEST} times the equal share: {solution.message}")
    return dict(zip(cells, solution.x[:n].tolist(), strict=True))


def rebuild_mixture(train: TrainConfig) -> float:
    """Fit and store the weights; returns the total variation on the pilot."""
    histograms = pilot_histograms(train)
    reference = np.array(REFERENCE_SHARES) / sum(REFERENCE_SHARES)
    weights = fit_weights(histograms, reference)
    mixed = sum(weights[cell] * histograms[cell] for cell in histograms)
    table = {name: [round(weights[name, level], 6) for level in LEVELS] for name in FAMILIES}
    distance = float(0.5 * np.abs(mixed - reference).sum())
    record = {"seed": RESERVED_SEED, "pilot_total_variation": round(distance, 4), "weights": table}
    MIXTURE_PATH.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return distance
