"""How much of the plan hangs on each open choice: one setting changed at a time (ours; the paper reports none).

A change is read against a yardstick: the same settings under another k-means seed, which nobody chose. Only what depends
on a setting is fitted again: clusters for K and the seed, the corrections of equation 10 for tau_sh, the plan for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from saerl_lib.config import REST, UNEQUAL, PlanConfig, Profile
from saerl_lib.plan.batch_plan import BatchPlan, has_moved, step_shift
from saerl_lib.plan.orders import build_plan
from saerl_lib.properties.clusters import Clusters, pool_clusters
from saerl_lib.properties.difficulty import DifficultyModel, with_clusters

COLUMNS = ["varied", "setting", "default", "share_moved", "mean_step_shift", "n"]
FACTORS = {"clusters": (0.5, 1.5, 2.0), "shrinkage_tau": (0.2, 0.5, 2.0, 5.0), "window_batches": (0.05, 0.25, 2.0, 4.0)}
"""Multiples of the profile's value that are tried; h goes over 0, 1, 2, a quarter and a half of a batch."""
SEED = "k-means seed"
"""Name of the yardstick."""


@dataclass(frozen=True)
class PlanInputs:
    """All that a plan of the kept pool is made from: P pool samples, N of them kept, L labelled."""

    ids: np.ndarray
    """str [P]."""
    phi: np.ndarray
    """[P, D]; clusters are fitted on all of the pool."""
    lengths: np.ndarray
    """Words of prompt and solution, [P]."""
    kept: np.ndarray
    """Mask of the samples that the filter keeps, bool [P]."""
    labelled_phi: np.ndarray
    """[L, D]."""
    labels: np.ndarray
    """Difficulty labels, [L]."""
    clusters: Clusters
    """The profile's own."""
    model: DifficultyModel
    """Fitted on L with these clusters."""


class Planner:
    """Plans of the kept pool under changed settings."""

    def __init__(self, inputs: PlanInputs, profile: Profile) -> None:
        self.inputs, self.profile = inputs, profile
        kept = inputs.phi[np.flatnonzero(inputs.kept)]
        self._kept_phi = kept
        self.default = self.plan()

    def plan(
        self, clusters: Clusters | None = None, tau: float | None = None, config: PlanConfig | None = None
    ) -> BatchPlan:
        """The SAERL plan with the given clusters, tau_sh or plan settings; the profile's own where none is given."""
        inputs, profile = self.inputs, self.profile
        clusters, model = clusters or inputs.clusters, inputs.model
        if clusters is not inputs.clusters or tau is not None:
            assigned = clusters.assign(inputs.labelled_phi).label
            model = with_clusters(model, inputs.labels, assigned, clusters.k, tau or profile.properties.shrinkage_tau)
        label = clusters.assign(self._kept_phi).label
        scores = model.predict(self._kept_phi, label)
        lengths = inputs.lengths[inputs.kept]
        return build_plan(inputs.ids[inputs.kept], label, scores.ranking, scores.raw, lengths, config or profile.plan)


def changed_values(default: float, factors: Sequence[float]) -> list[float]:
    """Multiples of a default without the default itself; whole numbers stay whole and at least 1.

    >>> changed_values(10, (0.5, 1.0, 2.0)), changed_values(50.0, (0.2,)), changed_values(2, (0.25, 0.5))
    ([5, 20], [10.0], [1])
    """
    values = [max(1, round(default * f)) if isinstance(default, int) else default * f for f in factors]
    return [value for value in dict.fromkeys(values) if value != default]


def plan_sensitivity(inputs: PlanInputs, profile: Profile, seed_clusters: Sequence[Clusters] = ()) -> pd.DataFrame:
    """Rows of `plan_sensitivity.csv`: share of kept samples that move by more than a tenth of the run, mean shift in steps.

    `seed_clusters` are fits under further k-means seeds (`stability.seed_fits`), the yardstick; a row a setting.
    """
    planner, rows = Planner(inputs, profile), []
    for varied, setting, default, plan in _plans(planner, profile, seed_clusters):
        shift = step_shift(planner.default, plan)
        row = (varied, f"{setting:g}" if isinstance(setting, float) else str(setting), str(default))
        rows.append((*row, float(has_moved(shift).mean()), float(shift.mean() * plan.steps), len(shift)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _plans(
    planner: Planner, profile: Profile, seed_clusters: Sequence[Clusters]
) -> Iterator[tuple[str, object, object, BatchPlan]]:
    """(what varies, setting, default, plan), the yardstick first."""
    properties, config = profile.properties, profile.plan
    for number, clusters in enumerate(seed_clusters, start=1):
        yield SEED, f"seed {number}", "seed 0", planner.plan(clusters)
    for k in changed_values(properties.clusters, FACTORS["clusters"]):
        other = replace(properties, clusters=k)
        yield "K", k, properties.clusters, planner.plan(pool_clusters(planner.inputs.phi, other, profile.seed))
    for tau in changed_values(properties.shrinkage_tau, FACTORS["shrinkage_tau"]):
        yield "tau_sh", tau, f"{properties.shrinkage_tau:g}", planner.plan(tau=tau)
    b, h = config.prompts_per_step, config.swapped_per_batch
    for swapped in sorted({0, 1, 2, b // 4, b // 2} - {h}):
        if swapped < b:
            yield "h", swapped, h, planner.plan(config=replace(config, swapped_per_batch=swapped))
    for window in changed_values(config.window_batches, FACTORS["window_batches"]):
        yield "window", window, config.window_batches, planner.plan(config=replace(config, window_batches=window))
    for name, known in (("rest", REST), ("unequal", UNEQUAL)):
        default = getattr(config, name)
        for value in known:
            if value != default:
                yield name, value, default, planner.plan(config=replace(config, **{name: value}))
