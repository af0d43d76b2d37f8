"""The cluster-first curriculum and the tail swap from a sorted file, stage by stage (paper, section 3; `saerl_lib.plan`).

Only the samples that fill no batch of their own cluster are known to all stages: fewer than b a cluster, read first. A stage
needs the next batch of each cluster, and a tail swap stays inside its stage, so `mix_tails` on some whole stages gives
what it gives on all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saerl_lib.config import PlanConfig
from saerl_lib.plan.curriculum import Batch, stage_of_batch
from saerl_lib.plan.mixing import mix_tails
from saerl_lib.scale.records import Scored, ranking_of, unpack, without_cluster


@dataclass(frozen=True)
class SortedPool:
    """Records in the order (cluster, ranking, raw, id), on disk."""

    path: Path
    dtype: np.dtype
    counts: np.ndarray
    """Samples of each cluster, int [K]."""

    def read(self, start: int, rows: int) -> np.ndarray:
        """Records start to start + rows."""
        return np.fromfile(self.path, self.dtype, rows, offset=start * self.dtype.itemsize)


@dataclass(frozen=True)
class PlannedStages:
    """Some whole stages in training order, after the tail swap."""

    rows: Scored
    """[T * b] in slot order."""
    swapped_with: np.ndarray
    """Step that a sample was exchanged with, -1 for one that stayed, int [T * b]."""


class _Cursor:
    """The full batches of one cluster, easy to hard, read some batches ahead."""

    def __init__(self, pool: SortedPool, start: int, batches: int, b: int, ahead: int) -> None:
        self.pool, self.place, self.batches, self.b, self.ahead = pool, start, batches, b, max(1, ahead)
        self.held, self.given = np.empty(0, pool.dtype), 0

    def next(self) -> np.ndarray:
        """The next batch, records [b]."""
        if not len(self.held):
            self.held = self.pool.read(self.place, self.b * min(self.ahead, self.batches - self.given))
            self.place += len(self.held)
        batch, self.held = self.held[: self.b], self.held[self.b :]
        self.given += 1
        return batch


def cut(pool: SortedPool, config: PlanConfig, ahead: int) -> tuple[list[_Cursor], np.ndarray]:
    """A cursor over the full batches of each cluster, and the records that are left over, in the order of their scores."""
    b, cursors, rests, start = config.prompts_per_step, [], [], 0
    for count in pool.counts.tolist():
        over = count % b
        first = over if config.rest == "pool_easiest" else 0
        rests.append(pool.read(start if first else start + count - over, over))
        cursors.append(_Cursor(pool, start + first, count // b, b, ahead))
        start += count
    rest = np.concatenate(rests)
    return cursors, rest[np.argsort(without_cluster(rest))]


def _mean_ranking(records: np.ndarray) -> float:
    return float(ranking_of(records).mean())


def stages(pool: SortedPool, config: PlanConfig, group_batches: int) -> Iterator[list[np.ndarray]]:
    """The batches, records [b] each, of one stage after another, before the tail swap."""
    b = config.prompts_per_step
    cursors, rest = cut(pool, config, group_batches // max(1, len(pool.counts)))
    waiting = [(_mean_ranking(batch), batch) for batch in rest.reshape(-1, b)]
    longest, highest = max(cursor.batches for cursor in cursors), -np.inf
    for number in range(longest):
        due = (
            c for c in cursors if c.given < c.batches and stage_of_batch(c.given, c.batches, longest, config.unequal) == number
        )
        stage = sorted((cursor.next() for cursor in due), key=_mean_ranking)
        highest = max(highest, _mean_ranking(np.concatenate(stage)))
        while waiting and config.rest != "append" and waiting[0][0] < highest:
            yield [waiting.pop(0)[1]]
        yield stage
    yield from ([batch] for _, batch in waiting)


def planned_stages(pool: SortedPool, config: PlanConfig, group_batches: int) -> Iterator[PlannedStages]:
    """The plan in groups of at least `group_batches` batches (the last may be smaller)."""
    held: list[tuple[int, np.ndarray]] = []
    first = 0
    for number, stage in enumerate(stages(pool, config, group_batches)):
        held += [(number, batch) for batch in stage]
        if len(held) >= group_batches:
            yield _swap(held, first, config)
            first, held = first + len(held), []
    if held:
        yield _swap(held, first, config)


def _swap(held: list[tuple[int, np.ndarray]], first: int, config: PlanConfig) -> PlannedStages:
    b, h = config.prompts_per_step, config.swapped_per_batch
    rows = unpack(np.concatenate([batch for _, batch in held]))
    batches = [Batch(stage, np.arange(i * b, (i + 1) * b)) for i, (stage, _) in enumerate(held)]
    mixed = mix_tails(batches, rows.clusters, rows.ranking, rows.length, config)
    order = np.concatenate([batch.rows for batch in mixed.batches])
    partner = np.where(mixed.partner < 0, -1, mixed.partner + first)
    swapped = np.where(np.arange(b) >= b - h, partner[:, None], -1).ravel()
    return PlannedStages(Scored(*(values[order] for values in vars(rows).values())), swapped)
