"""Shards on a Ray cluster: Ray Data streams the list of shards through tasks of one CPU and repeats those whose worker is lost.

The rows do not pass through Ray's object store: a task streams its own Parquet file of rows, block by block, into its Parquet
shard. So memory is bounded by a block a worker, nothing but a finished file counts as done, and a lost worker or machine costs
the shards that it held.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Generator, Sequence
from typing import Any

from saerl_lib.cluster.ray_link import connected
from saerl_lib.cluster.shard import EncodeSpec, ShardTask, encode_shard


def encode_on_ray(
    tasks: Sequence[ShardTask], spec: EncodeSpec, address: str, workers: int | None = None
) -> Generator[dict[str, Any]]:
    """Records of the shards as the cluster at `address` finishes them, at most `workers` at a time (default: one a CPU).

    Ray Data repeats a shard whose worker was lost without end; `encode_shard` gives it up after some. Raises ArtifactError
    without ray or cluster.
    """
    with connected(address):
        data = importlib.import_module("ray.data")
        context = data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = data.from_items([dataclasses.asdict(task) for task in tasks], override_num_blocks=len(tasks))
        records = rows.map(_encode_row, fn_kwargs={"spec": spec}, num_cpus=1, concurrency=workers)
        for record in records.iter_rows():
            yield {name: value for name, value in record.items() if value is not None}


def _encode_row(row: dict[str, Any], spec: EncodeSpec) -> dict[str, Any]:
    return encode_shard(ShardTask(**row), spec)
