"""Filter, whole batches and the plan of one's own rows: every row ends in the plan or in the list of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saerl_lib.config import PlanConfig, sub_seed
from saerl_lib.data.sample import Dataset, Dropped, hash_share, normalise
from saerl_lib.own.fit import Difficulty, Grouping, Quality
from saerl_lib.own.represent import Representation
from saerl_lib.own.settings import OwnConfig
from saerl_lib.plan.batch_plan import BatchPlan
from saerl_lib.plan.diversity import batch_diversity
from saerl_lib.plan.orders import build_plan, random_order
from saerl_lib.properties.quality import keep_top_k

TOLERANCE = 0.5
"""Partners of a tail swap differ by at most this many standard deviations of the ranking score (ours)."""


@dataclass(frozen=True)
class Ranking:
    """What orders N samples within their cluster."""

    score: np.ndarray
    """Larger comes later, [N]."""
    raw: np.ndarray
    """Breaks ties, [N]."""
    by: str
    """score, label, length or random."""


@dataclass(frozen=True)
class Arranged:
    """The plan and what is not in it."""

    plan: BatchPlan
    ranking: Ranking
    dropped: tuple[Dropped, ...]
    """Filtered rows, then those that fill no batch, each in the order of the source."""
    diversity: float
    """Mean distance to the 5 nearest neighbours of a batch on the map."""
    diversity_random: float
    """The same for a random order of the planned samples."""


def rank_rows(data: Dataset, found: Representation, difficulty: Difficulty | None, config: OwnConfig) -> Ranking:
    """The order within clusters: difficulty, or its stand-in when there are no labels to learn from."""
    if difficulty is not None:
        own = config.rank_by == "label"
        score = np.where(np.isfinite(data.labels), data.labels, difficulty.ranking) if own else difficulty.ranking
        return Ranking(score, difficulty.raw, config.rank_by)
    if config.without_labels == "length":
        return Ranking(found.lengths, found.lengths, "length")
    score = np.empty(len(data.samples))
    score[random_order(data.ids, sub_seed(config.seed, "within"))] = np.arange(len(score))
    return Ranking(score, score, "random")


def whole_batches(ids: Sequence[str], keys: Sequence[str], prompts_per_step: int) -> np.ndarray:
    """Mask bool [N] of the rows that fill whole batches: by the hash of the question, so neither easy nor late rows are favoured.

    >>> int(whole_batches(["a", "b", "c"], ["1", "2", "3"], 2).sum())
    2
    """
    order = np.lexsort((np.asarray(ids, dtype=str), np.array([hash_share(key) for key in keys])))
    mask = np.zeros(len(ids), dtype=bool)
    mask[order[: len(ids) - len(ids) % prompts_per_step]] = True
    return mask


def arrange(
    data: Dataset,
    found: Representation,
    grouping: Grouping,
    difficulty: Difficulty | None,
    quality: Quality | None,
    config: OwnConfig,
) -> Arranged:
    """Filter, cut to whole batches and plan.

    Raises ValueError when a filter is asked for that could not be fitted or that leaves less than a batch.
    """
    ids, b = data.ids, config.prompts_per_step
    kept = _filtered(ids, quality, config)
    if kept.sum() < b:
        raise ValueError(f"the filter keeps {kept.sum()} of {len(ids)} rows, less than a batch of {b}: raise --keep")
    rows = np.flatnonzero(kept)
    full = whole_batches([ids[i] for i in rows], [normalise(data.samples[i].prompt) for i in rows], b)
    planned, ranking = rows[full], rank_rows(data, found, difficulty, config)
    dropped = [
        Dropped(
            data.where[i], ids[i], "filtered", f"quality score {quality.score[i]:.3f} is not among the best {config.keep:.0%}"
        )
        for i in np.flatnonzero(~kept)
    ] + [Dropped(data.where[i], ids[i], "left over", f"fills no whole batch of {b}") for i in rows[~full]]
    settings = PlanConfig(
        prompts_per_step=b, swapped_per_batch=config.swapped_per_batch,
        difficulty_tolerance=TOLERANCE * float(ranking.score[planned].std()),
    )  # fmt: skip
    plan = build_plan(
        [ids[i] for i in planned], grouping.assignment.label[planned], ranking.score[planned], ranking.raw[planned],
        found.lengths[planned], settings,
    )  # fmt: skip
    row = {name: i for i, name in enumerate(ids)}
    batches = np.array([row[name] for name in plan.ids]).reshape(-1, b)
    shuffled = planned[random_order([ids[i] for i in planned], sub_seed(config.seed, "diversity"))].reshape(-1, b)
    spread = [float(batch_diversity(grouping.points, rows).mean()) for rows in (batches, shuffled)]
    return Arranged(plan, ranking, tuple(dropped), *spread)


def _filtered(ids: Sequence[str], quality: Quality | None, config: OwnConfig) -> np.ndarray:
    if config.keep is None:
        return np.ones(len(ids), dtype=bool)
    if quality is None:
        raise ValueError("--keep needs at least 10 rows labelled true and 10 labelled false: label more, or leave --keep out")
    return keep_top_k(quality.score, ids, max(1, round(config.keep * len(ids))))
