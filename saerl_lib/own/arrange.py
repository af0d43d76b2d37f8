"""One's own rows from features to a plan: fit, filter, cut to whole batches, plan; a row ends in the plan or among the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saerl_lib.config import PlanConfig, sub_seed
from saerl_lib.data.sample import Dataset, Dropped, hash_share, normalise
from saerl_lib.own import fit
from saerl_lib.own.represent import Representation
from saerl_lib.own.settings import OwnConfig
from saerl_lib.plan.batch_plan import BatchPlan
from saerl_lib.plan.mixing import batch_diversity
from saerl_lib.plan.orders import build_plan, random_order
from saerl_lib.properties.quality import keep_top_k

TOLERANCE = 0.5
"""Partners of a tail swap differ by at most this many standard deviations of the ranking score (ours)."""


@dataclass(frozen=True)
class Arranged:
    """N usable rows, what was read from them, and their plan: all that tables and report show."""

    config: OwnConfig
    data: Dataset
    found: Representation
    grouping: fit.Grouping
    difficulty: fit.Difficulty | None
    quality: fit.Quality | None
    ranking: np.ndarray
    """What orders a row within its cluster, larger comes later, [N]."""
    ranked_by: str
    """difficulty, or its stand-in without labels: length or random."""
    plan: BatchPlan
    dropped: tuple[Dropped, ...]
    """Filtered rows, then those that fill no batch, each in the order of the source."""
    diversity: float
    """Mean distance to the 5 nearest neighbours of a batch on the map."""
    diversity_random: float
    """The same for a random order of the planned samples."""


def whole_batches(ids: Sequence[str], keys: Sequence[str], prompts_per_step: int) -> np.ndarray:
    """Mask bool [N] of the rows that fill whole batches: by the hash of the question, so neither easy nor late rows are favoured.

    >>> int(whole_batches(["a", "b", "c"], ["1", "2", "3"], 2).sum())
    2
    """
    order = np.lexsort((np.asarray(ids, dtype=str), np.array([hash_share(key) for key in keys])))
    mask = np.zeros(len(ids), dtype=bool)
    mask[order[: len(ids) - len(ids) % prompts_per_step]] = True
    return mask


def arrange(data: Dataset, found: Representation, config: OwnConfig) -> Arranged:
    """Fit clusters, difficulty and quality, filter, cut to whole batches and plan.

    Raises ValueError when a filter is asked for that could not be fitted or that leaves less than a batch.
    """
    ids, b = data.ids, config.prompts_per_step
    settings = fit.properties_of(len(ids), config)
    grouping = fit.group(found, settings, config.seed)
    difficulty = fit.fit_scores(found, grouping, data.labels, settings, config.seed)
    quality = fit.fit_quality(found, data.quality, settings, config.seed)
    ranking, ties, ranked_by = _ranking(ids, found, difficulty, config)
    kept = _filtered(ids, quality, config)
    rows = np.flatnonzero(kept)
    full = whole_batches([ids[i] for i in rows], [normalise(data.samples[i].prompt) for i in rows], b)
    planned = rows[full]
    plan = build_plan(
        [ids[i] for i in planned], grouping.assignment.label[planned], ranking[planned], ties[planned], found.lengths[planned],
        PlanConfig(prompts_per_step=b, swapped_per_batch=config.swapped_per_batch,
                   difficulty_tolerance=TOLERANCE * float(ranking[planned].std())),
    )  # fmt: skip
    dropped = [
        Dropped(
            data.where[i], ids[i], "filtered", f"quality score {quality.score[i]:.3f} is not among the best {config.keep:.0%}"
        )
        for i in np.flatnonzero(~kept)
    ] + [Dropped(data.where[i], ids[i], "left over", f"fills no whole batch of {b}") for i in rows[~full]]
    row = {name: i for i, name in enumerate(ids)}
    shuffled = random_order([ids[i] for i in planned], sub_seed(config.seed, "diversity"))
    spread = [
        float(batch_diversity(grouping.points, order.reshape(-1, b)).mean())
        for order in (np.array([row[name] for name in plan.ids]), planned[shuffled])
    ]
    return Arranged(config, data, found, grouping, difficulty, quality, ranking, ranked_by, plan, tuple(dropped), *spread)


def _ranking(
    ids: Sequence[str], found: Representation, difficulty: fit.Difficulty | None, config: OwnConfig
) -> tuple[np.ndarray, np.ndarray, str]:
    """What orders rows within a cluster [N], what breaks its ties [N], and its name."""
    if difficulty is not None:
        return difficulty.ranking, difficulty.raw, "difficulty"
    if config.without_labels == "length":
        return found.lengths, found.lengths, "length"
    place = np.empty(len(ids))
    place[random_order(ids, sub_seed(config.seed, "within"))] = np.arange(len(ids))
    return place, place, "random"


def _filtered(ids: Sequence[str], quality: fit.Quality | None, config: OwnConfig) -> np.ndarray:
    """Mask bool [N] of the rows that the quality filter keeps, at least a batch."""
    if config.keep is None:
        return np.ones(len(ids), dtype=bool)
    if quality is None:
        raise ValueError("--keep needs at least 10 rows labelled true and 10 labelled false: label more, or leave --keep out")
    kept = keep_top_k(quality.score, ids, max(1, round(config.keep * len(ids))))
    if kept.sum() < config.prompts_per_step:
        raise ValueError(f"the filter keeps {kept.sum()} of {len(ids)} rows, less than a batch of {config.prompts_per_step}: "
                         "raise --keep")  # fmt: skip
    return kept
