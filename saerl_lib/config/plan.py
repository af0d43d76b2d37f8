"""The batch plan and its open choices."""

from __future__ import annotations

from dataclasses import dataclass

REST = ("pool", "pool_easiest", "append")
"""pool: the hardest of each cluster are left over, sorted together into mixed batches, each before the first harder stage.
pool_easiest: the easiest are left over instead. append: as pool, but all mixed batches come at the end."""
UNEQUAL = ("front", "stretch", "back")
"""front: stage t holds the t-th batch of every cluster that still has one. stretch: the batches of a small cluster are
spread evenly over the run. back: small clusters begin late, so that all end together."""


@dataclass(frozen=True)
class PlanConfig:
    """The batch plan (paper, section 4)."""

    prompts_per_step: int = 8
    """b, prompts of one optimiser step (paper: 128)."""
    swapped_per_batch: int = 1
    """h, samples at the end of a batch exchanged with a partner (paper: 8 of 128 is best)."""
    window_batches: int = 20
    """Partner candidates are at most this many batches away (not stated in the paper; ours)."""
    difficulty_tolerance: float = 0.75
    """Largest difference of mean ranking scores between partners, in label units (not stated in the paper; ours)."""
    length_tolerance: float = 0.35
    """Largest relative difference of mean sequence lengths between partners (not stated in the paper; ours)."""
    rest: str = "pool"
    """What fills no batch of its own cluster (not stated in the paper; ours), one of `REST`."""
    unequal: str = "front"
    """In which stages a cluster with few batches takes part (not stated in the paper; ours), one of `UNEQUAL`."""

    def __post_init__(self) -> None:
        if not 0 <= self.swapped_per_batch < self.prompts_per_step:
            raise ValueError(
                f"swapped_per_batch={self.swapped_per_batch} must be at least 0 and "
                f"below prompts_per_step={self.prompts_per_step}"
            )
        for name, known in (("rest", REST), ("unequal", UNEQUAL)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(known)}")
