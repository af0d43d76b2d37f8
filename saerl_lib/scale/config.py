"""How much the out-of-core path holds in memory at a time; none of it changes the plan."""

from __future__ import annotations

from dataclasses import dataclass

from saerl_lib.properties.clusters import CHUNK_ROWS


@dataclass(frozen=True)
class ScaleConfig:
    """Sizes of blocks, runs and buffers (ours)."""

    shard_rows: int = 16_384
    """Samples of one feature shard on disk: 33 MB with z in float16."""
    block_rows: int = CHUNK_ROWS
    """Samples read from a shard at a time."""
    run_rows: int = 2**19
    """Records sorted in memory and written as one run."""
    merge_rows: int = 2**19
    """Records that the merge of all runs buffers."""
    fan_in: int = 256
    """Runs merged at once; more are merged in several passes."""
    group_batches: int = 512
    """Batches that the tail swap sees at a time; a stage is never cut."""
    row_group_rows: int = 2**17
    """Rows of one Parquet row group of the plan, rounded up to whole groups of batches."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            least = 2 if name == "fan_in" else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")

    def merge_passes(self, records: int) -> int:
        """Passes over the records that merging the sorted runs takes.

        >>> ScaleConfig().merge_passes(100_000_000), ScaleConfig(run_rows=10, fan_in=2).merge_passes(80)
        (1, 3)
        """
        runs, passes = -(-records // self.run_rows), 0
        while runs > 1 or not passes:
            runs, passes = -(-runs // self.fan_in), passes + 1
        return passes
