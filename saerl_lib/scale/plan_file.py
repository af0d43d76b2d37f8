"""Scored samples in, plan.parquet out: external sort, curriculum, tail swap, row groups; memory does not grow with N.

What `Pool` and `validate` check with sets of all ids is checked here by a second sort, of the ids, and by a sum of their
hashes: every id once in the pool, and as many and the same ids in the plan as came in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from saerl_lib.config import PlanConfig
from saerl_lib.plan import BatchPlan, PlanError, write_plan
from saerl_lib.plan.batch_plan import COLUMNS, require_full_batches
from saerl_lib.scale.clock import Clock
from saerl_lib.scale.config import ScaleConfig
from saerl_lib.scale.curriculum import PlannedStages, SortedPool, planned_stages
from saerl_lib.scale.external_sort import merged, write_runs
from saerl_lib.scale.records import Scored, pack, record_dtype


@dataclass(frozen=True)
class Written:
    """What the out-of-core plan came to."""

    samples: int
    steps: int
    unpaired: int
    """Batches that exchanged no tail."""
    order_sha256: str
    """Of the ordered ids, as `plan_hash`."""
    sorted_bytes: int
    """Size of the sorted records; their runs took as much before."""
    plan_bytes: int


class _Spill:
    """Counts what passes and writes the ids beside the records."""

    def __init__(self, id_bytes: int) -> None:
        self.id_bytes, self.counts, self.checksum = id_bytes, np.zeros(1, dtype=np.int64), 0

    def records(self, chunks: Iterable[Scored], ids_file: Path) -> Iterator[np.ndarray]:
        with ids_file.open("wb") as handle:
            for chunk in chunks:
                found = pack(chunk, self.id_bytes)
                counts = np.bincount(chunk.clusters, minlength=len(self.counts))
                counts[: len(self.counts)] += self.counts
                self.counts, self.checksum = counts, (self.checksum + id_checksum(chunk.ids, self.id_bytes)) % 2**64
                chunk.ids.astype(f"S{self.id_bytes}").tofile(handle)
                yield found


def id_checksum(ids: np.ndarray, id_bytes: int) -> int:
    """Sum modulo 2**64 of a 64-bit hash of each id; does not depend on their order.

    >>> id_checksum(np.array([b"a", b"bc"]), 4) == id_checksum(np.array([b"bc", b"a"]), 6)
    True
    """
    width = -(-id_bytes // 8) * 8
    words = ids.astype(f"S{width}").view("<u8").reshape(len(ids), -1)
    total = np.full(len(ids), 0x9E3779B97F4A7C15, dtype=np.uint64)
    for column in words.T[: (words != 0).any(axis=0).nonzero()[0].max(initial=-1) + 1]:
        used = column != 0
        mixed = (total ^ column) * np.uint64(0xBF58476D1CE4E5B9)
        total = np.where(used, mixed ^ (mixed >> np.uint64(29)), total)
    return int(np.sum(total, dtype=np.uint64))


def require_unique(ids_file: Path, id_bytes: int, folder: Path, config: ScaleConfig) -> None:
    """Raise PlanError that names the first three repeated ids of a file of ids, found by an external sort."""
    dtype, last, repeated, count = np.dtype([("key", f"S{id_bytes}")]), None, [], 0
    chunks = (np.fromfile(ids_file, dtype, config.block_rows, offset=start * id_bytes)
              for start in range(0, ids_file.stat().st_size // id_bytes, config.block_rows))  # fmt: skip
    for block in merged(write_runs(chunks, folder, config.run_rows), dtype, config):
        keys = block["key"] if last is None else np.concatenate([[last], block["key"]])
        again = keys[1:][keys[1:] == keys[:-1]]
        count, last = count + len(again), block["key"][-1]
        repeated += [key.decode() for key in again[: 3 - len(repeated)]]
    if count:
        raise PlanError(f"ids holds {count} repeated ids, first {repeated}: give every sample its own id")


def plan_to_file(
    chunks: Iterable[Scored], out: Path, work: Path, plan: PlanConfig, config: ScaleConfig, id_bytes: int, clock: Clock
) -> Written:
    """Write the SAERL plan of all chunks to `out`, in the form of `write_plan`; `work` is an empty folder for runs.

    Raises PlanError for repeated ids, non-finite scores, lengths of 0 or less, or a number of samples that fills no whole
    batches; nothing stays at `out` then.
    """
    dtype, spill, ids_file, sorted_file = record_dtype(id_bytes), _Spill(id_bytes), work / "ids", work / "sorted"

    def sort() -> None:
        runs = write_runs(spill.records(clock.stream("assign_score", chunks), ids_file), work / "runs", config.run_rows)
        with sorted_file.open("wb") as handle:
            for block in merged(runs, dtype, config):
                block.tofile(handle)

    clock.call("external_sort", sort)
    samples = int(spill.counts.sum())
    if not samples:
        raise PlanError("the pool holds no sample: nothing to plan")
    require_full_batches(samples, plan.prompts_per_step)
    clock.call("unique_ids", lambda: require_unique(ids_file, id_bytes, work / "id-runs", config))
    pool = SortedPool(sorted_file, dtype, spill.counts)
    parts = clock.stream("swap", planned_stages(pool, plan, config.group_batches))
    return clock.call("export", lambda: _export(parts, spill, pool, out, plan, config))


def _export(
    parts: Iterator[PlannedStages], spill: _Spill, pool: SortedPool, out: Path, plan: PlanConfig, config: ScaleConfig
) -> Written:
    beside, digest, done, unpaired, total = out.with_name(out.name + ".partial"), hashlib.sha256(), 0, 0, 0
    b, samples = plan.prompts_per_step, int(pool.counts.sum())
    try:
        write_plan(BatchPlan(_frame(None, 0, b), "saerl", b, plan.swapped_per_batch), beside)
        schema = pq.read_schema(beside)  # of an empty plan, so that both writers agree
        with pq.ParquetWriter(beside, schema) as writer:
            for group in _row_groups(parts, config.row_group_rows):
                frame = pd.concat([_frame(part, done + start, b) for part, start in group], ignore_index=True)
                writer.write_table(pa.Table.from_pandas(frame, schema=schema, preserve_index=False), row_group_size=len(frame))
                digest.update(("\n" if done else "").encode() + "\n".join(frame["sample_id"]).encode())
                total += sum(id_checksum(part.rows.ids, spill.id_bytes) for part, _ in group)
                unpaired += int((frame["swapped_with"].to_numpy().reshape(-1, b).max(axis=1) < 0).sum())
                done += len(frame)
        if done != samples or total % 2**64 != spill.checksum:
            raise PlanError(
                f"the plan holds {done} of {samples} samples, or others than the pool: its work folder was changed, run it again"
            )
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
    return Written(done, done // b, unpaired, digest.hexdigest(), pool.path.stat().st_size, out.stat().st_size)


def _row_groups(parts: Iterator[PlannedStages], rows: int) -> Iterator[list[tuple[PlannedStages, int]]]:
    """Parts of at least `rows` samples together, each with its first position in the group."""
    held: list[tuple[PlannedStages, int]] = []
    size = 0
    for part in parts:
        held.append((part, size))
        size += len(part.rows)
        if size >= rows:
            yield held
            held, size = [], 0
    if held:
        yield held


def _frame(part: PlannedStages | None, first: int, b: int) -> pd.DataFrame:
    """Rows of the plan's table from position `first` on."""
    if part is None:
        return pd.DataFrame({name: [] for name in COLUMNS}).astype(COLUMNS)
    position, rows = np.arange(first, first + len(part.rows)), part.rows
    names = [name.decode() for name in rows.ids.tolist()]
    columns = (position, position // b, position % b, names, rows.clusters, rows.raw, rows.ranking, part.swapped_with)
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True))).astype(COLUMNS)
