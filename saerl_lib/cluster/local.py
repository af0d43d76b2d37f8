"""Shards on the cores of this machine: a pool of processes with one thread each, which outlives a killed worker."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from saerl_lib.artifacts import ArtifactError
from saerl_lib.cluster.shard import EncodeSpec, ShardTask, encode_shard

LOSSES = 3
"""Times that a pool may lose a worker without finishing a shard in between."""


def encode_local(tasks: Sequence[ShardTask], spec: EncodeSpec, workers: int | None = None) -> Generator[dict[str, Any]]:
    """Records of the shards as they are finished, by `workers` processes (default: one a core).

    When a worker is killed, the shards in progress are done again by a new pool. Raises ArtifactError when that happens
    more than `LOSSES` times in a row.
    """
    pending, losses = {task.number: task for task in tasks}, 0
    limit = workers or len(os.sched_getaffinity(0))
    while pending:
        pool = ProcessPoolExecutor(min(limit, len(pending)), multiprocessing.get_context("spawn"), _start_worker)
        try:
            for done in as_completed([pool.submit(encode_shard, task, spec) for task in pending.values()]):
                record = done.result()
                pending.pop(record["number"])
                losses = 0
                yield record
        except BrokenProcessPool as error:
            losses += 1
            if losses > LOSSES:
                raise ArtifactError(
                    f"worker processes were killed {losses} times in a row, for want of memory perhaps: pass a smaller "
                    "--workers; finished shards are kept and the same command continues"
                ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """One thread for the mathematics, and one that ends the process when the one that started it is gone."""
    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
