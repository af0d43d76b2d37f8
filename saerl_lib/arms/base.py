"""What an arm of the study is: an order of the pool fixed beforehand, or a selector that learns from rewards.

A new arm is one file: a function and an `Arm` in a tuple named `ARMS`, put beside this one or named by `--arms-from`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd

from saerl_lib.config import PlanConfig
from saerl_lib.plan.batch_plan import BatchPlan

GROUPS = ("paper", "ablation", "filter", "mixing", "batch", "control", "rival", "transfer", "user")


class ArmError(ValueError):
    """An arm is not what the interface asks for."""


@dataclass(frozen=True)
class ArmPool:
    """What an arm may read of the pool, N samples in pool order."""

    table: pd.DataFrame
    """Columns sample_id, cluster, ranking, raw, length and label; further scalar columns are named in `Arm.needs`."""
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Matrices [N, ...] by name, for orders alone: a selector runs in the training process and sees the table only."""

    def column(self, name: str) -> np.ndarray:
        """One column [N]. Raises ArmError when the pool does not have it."""
        if name not in self.table:
            raise ArmError(f"the pool has no column {name!r}: name it in the arm's `needs`, or choose one of {list(self.table)}")
        return self.table[name].to_numpy()

    def matrix(self, name: str) -> np.ndarray:
        """One feature matrix [N, ...]. Raises ArmError when the pool does not have it."""
        if name not in self.features:
            raise ArmError(f"the pool has no features {name!r}: name them in the arm's `needs`")
        return self.features[name]

    @property
    def ids(self) -> list[str]:
        """Sample ids in pool order."""
        return self.table["sample_id"].tolist()


@dataclass(frozen=True)
class ArmSetting:
    """What an arm is told about the run."""

    plan: PlanConfig
    steps: int
    """Steps that the budget pays for."""
    seed: int
    """Seed of the arm's own randomness, another one for every matched seed."""


class Selector(Protocol):
    """Decides during training; the same calls must give the same rows, since a resumed run replays them."""

    def next(self, count: int) -> np.ndarray:
        """Row numbers [count] of the prompts to roll out now."""

    def told(self, rows: np.ndarray, rewards: np.ndarray) -> None:
        """Rewards [count, G] of the rows handed out last."""


class InOrder:
    """A selector that walks a fixed order, from the start again when it ends."""

    def __init__(self, rows: Sequence[int] | np.ndarray) -> None:
        self.rows, self.place = np.asarray(rows, dtype=np.int64), 0

    def next(self, count: int) -> np.ndarray:
        """The next `count` rows."""
        places = np.arange(self.place, self.place + count) % len(self.rows)
        self.place += count
        return self.rows[places]

    def told(self, rows: np.ndarray, rewards: np.ndarray) -> None:
        """Rewards change nothing."""


Order = Callable[[ArmPool, ArmSetting], "np.ndarray | BatchPlan"]
"""Row numbers in training order, or a whole plan."""
Policy = Callable[[ArmPool, ArmSetting], Selector]


@dataclass(frozen=True)
class Arm:
    """One arm: exactly one of `order` and `policy`."""

    name: str
    title: str
    """A line for tables and figures."""
    group: str = "user"
    """One of `GROUPS`."""
    order: Order | None = None
    policy: Policy | None = None
    dapo: bool = False
    """Token-level loss, clip-higher and dynamic sampling."""
    batch_factor: int = 1
    """Prompts of a step as a multiple of the profile's."""
    pool: str = "kept"
    """kept: after the quality filter; unfiltered: a sample of the noisy pool of the same size."""
    model: str = "policy"
    """Which policy is trained."""
    needs: tuple[str, ...] = ()
    """Columns and features beyond the standard ones."""
    seeded: bool = False
    """Whether the order depends on the matched seed."""
    cost: tuple[str, ...] = ()
    """What has to be prepared, names that `saerl_lib.report.study.preparation` counts."""
    baseline: str = "grpo"
    """The arm that this one is compared with."""

    def __post_init__(self) -> None:
        if (self.order is None) == (self.policy is None):
            raise ArmError(f"arm {self.name!r}: give exactly one of order and policy")
        if self.group not in GROUPS:
            raise ArmError(f"arm {self.name!r}: group={self.group!r} must be one of {', '.join(GROUPS)}")
        if not self.name.isidentifier():
            raise ArmError(f"arm {self.name!r}: the name becomes a folder, use letters, digits and underscores")
