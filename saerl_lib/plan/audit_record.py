"""The record of one sample's decision path (paper, section D.3), ready for JSON and for reading."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from saerl_lib.plan.partners import Candidate


@dataclass(frozen=True)
class Contribution:
    """What one feature added to a score."""

    feature: str
    value: float
    """Pooled or metadata value, as encoded."""
    standardised: float
    """In deviations from the mean that the reader was fitted with."""
    contribution: float
    """In the score's units."""


@dataclass(frozen=True)
class Breakdown:
    """A linear score as intercept + the listed contributions + the rest, in the score's units."""

    intercept: float
    listed: tuple[Contribution, ...]
    """By falling size."""
    others: float
    """Sum of the contributions that are not listed."""
    n_others: int
    """How many of those are not zero."""

    @property
    def total(self) -> float:
        """The score."""
        return self.intercept + sum(c.contribution for c in self.listed) + self.others


@dataclass(frozen=True)
class ClusterPart:
    """Nearest centroid and runner-up; distances are Euclidean in standardised, clipped phi."""

    cluster: int
    label: str
    distance: float
    distance_rank: int
    """1 is the sample of the cluster nearest to its centroid."""
    size: int
    second: int | None
    """None when there is one cluster."""
    second_label: str
    second_distance: float
    features: tuple[Contribution, ...]
    """What makes the own centroid nearer than the second: the largest differences of squared distance."""


@dataclass(frozen=True)
class DifficultyPart:
    """Equation 10 for one sample, in label units."""

    raw: float
    """d_hat, the sum of `parts`."""
    parts: Breakdown
    calibrated: float
    """g(d_hat)."""
    residual: float
    """Delta_c."""
    shrinkage: float
    """lambda_c."""
    n_labelled: int
    """n_c."""
    ranking: float
    """r."""
    low: float
    high: float
    level: float
    """Nominal coverage of low to high, see `properties.difficulty`."""
    interval_of_cluster: bool
    """Whether the interval rests on the labels of the cluster alone."""
    n_residuals: int
    percentile: float
    """Share of the pool with a smaller r, ties by half, in percent."""
    cluster_rank: int
    """1 is the easiest of the cluster by r."""


@dataclass(frozen=True)
class QualityPart:
    """The filter: a classifier of the source, not of correctness."""

    score: float
    rank: int
    """1 is the best of the pool."""
    n_pool: int
    n_kept: int
    threshold: float
    """Smallest score that was kept."""
    kept: bool
    parts: Breakdown
    """Of the log-odds of the score."""


@dataclass(frozen=True)
class Companion:
    """A sample of the same batch."""

    slot: int
    sample_id: str
    cluster: int
    ranking: float
    home_step: int
    """Step at which the curriculum had it before the swap."""


@dataclass(frozen=True)
class BatchPart:
    """Where the sample trains."""

    position: int
    step: int
    n_steps: int
    slot: int
    stage: int
    dominant: int
    """Most frequent cluster of the batch as trained."""
    made_of_rests: bool
    """Whether the home batch gathers samples that filled no batch of their own cluster."""
    batch: tuple[Companion, ...]
    """All samples of the step, this one included, in slot order."""


@dataclass(frozen=True)
class SwapPart:
    """What the tail swap did."""

    home_step: int
    """Step of the sample before the swap."""
    in_tail: bool
    """Whether the sample stood among the last h of its home batch."""
    partner: int | None
    """Step that the home batch exchanged its tail with, None for none."""
    swapped: bool
    """Whether this sample changed its batch."""
    h: int
    candidates: tuple[Candidate, ...]
    """The partner, or the nearest candidates of a batch without one."""
    n_candidates: int
    """Other batches of the stage inside the window."""


@dataclass(frozen=True)
class SampleAudit:
    """The whole decision path of one sample; `batch` and `swap` are None for a sample that the filter dropped."""

    sample_id: str
    prompt: str
    answer: str
    solution: str
    topic: str
    source: str
    label: float
    """The source's difficulty label, NaN when unknown; the readers never saw it."""
    cluster: ClusterPart
    difficulty: DifficultyPart
    quality: QualityPart
    batch: BatchPart | None
    swap: SwapPart | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; numbers that are not finite become null."""
        return _finite(asdict(self))

    def text(self) -> str:
        """The path as paragraphs."""
        from saerl_lib.plan.audit_view import audit_text  # the view needs these records

        return audit_text(self)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
