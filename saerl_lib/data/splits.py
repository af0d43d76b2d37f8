"""Every split of the embedded world in one fixed order, so that no normalised prompt occurs in two of them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from saerl_lib.config import WorldConfig, sub_seed
from saerl_lib.data.corpus import encoder_prompts
from saerl_lib.data.families import FAMILIES
from saerl_lib.data.sample import Sample
from saerl_lib.data.world import STEP_SLIPS, Cell, draw_split, source_weights, uniform_weights


@dataclass(frozen=True)
class EvalSpec:
    """One evaluation set: which cells it draws from and how it is scored."""

    name: str
    domains: tuple[str, ...]
    levels: tuple[int, ...]
    source: str
    metric: str
    """avg_at_k or pass_at_k."""


ALL = ("Arithmetic", "Ratios", "Algebra", "Number theory", "Statistics", "Geometry")
EVAL_SETS = (
    EvalSpec("easy_a", ("Arithmetic", "Ratios", "Geometry"), (1, 2), "target", "avg_at_k"),
    EvalSpec("easy_b", ("Algebra", "Number theory", "Statistics"), (1, 2), "target", "avg_at_k"),
    EvalSpec("mid_a", ("Arithmetic", "Ratios", "Geometry"), (3,), "target", "avg_at_k"),
    EvalSpec("mid_b", ("Algebra", "Number theory", "Statistics"), (3,), "parent", "avg_at_k"),
    EvalSpec("hard", ALL, (4, 5), "target", "avg_at_k"),
    EvalSpec("hardest", ALL, (5,), "contest", "pass_at_k"),
)
"""Two easy, two middle, one hard and the hardest set (scored by Pass@k), after the paper's six benchmarks (section C.3)."""


def eval_cells(spec: EvalSpec) -> dict[Cell, float]:
    """Equal weights over the leaf families of the set's domains and its levels."""
    families = tuple(name for name, family in FAMILIES.items() if family.path[0] in spec.domains)
    return uniform_weights(spec.levels, families)


def draw_eval_sets(config: WorldConfig, taken: set[str]) -> dict[str, list[Sample]]:
    """The six sets at full size; during training their first problems are used. Gold answers are always sound."""
    sets: dict[str, list[Sample]] = {}
    for spec in EVAL_SETS:
        count = config.eval_problems_full
        drawn = draw_split(f"eval-{spec.name}", 3 * count, eval_cells(spec), spec.source, config.seed, taken)
        sets[spec.name] = [s for s in drawn if not s.flaw][:count]
    return sets


def draw_world(config: WorldConfig) -> dict[str, list[Sample]]:
    """All splits: evaluation sets first, then labelled data, then the noisy pool.

    `labelled` is L, disjoint from `pool`; `filter_negatives` are parent samples that train and place the quality
    filter; `pool` mixes target and parent in the paper's proportion (Table 6). No prompt that the encoder was
    pre-trained on occurs in any split.
    """
    taken = encoder_prompts()
    splits = {f"eval_{name}": samples for name, samples in draw_eval_sets(config, taken).items()}
    target, parent, contest = (source_weights(name) for name in ("target", "parent", "contest"))
    seed = config.seed
    splits["labelled"] = draw_split("labelled", config.labelled_samples, target, "target", seed, taken)
    splits["test"] = draw_split("test", config.test_samples, target, "target", seed, taken)
    splits["filter_negatives"] = draw_split("parent", config.labelled_samples, parent, "parent", seed, taken)
    splits["contest_train"] = draw_split("contest-train", config.contest_train_samples, contest, "contest", seed, taken)
    splits["contest_test"] = draw_split("contest-test", config.contest_test_samples, contest, "contest", seed, taken)
    splits["step_labelled"] = draw_split(
        "steps", config.step_labelled_samples, uniform_weights(), "target", seed, taken, STEP_SLIPS
    )
    inside = round(config.noisy_pool_samples * config.target_share)
    pool = draw_split("pool-target", inside, target, "target", seed, taken)
    pool += draw_split("pool-parent", config.noisy_pool_samples - inside, parent, "parent", seed, taken)
    random.Random(sub_seed(seed, "pool-order")).shuffle(pool)
    splits["pool"] = pool
    return splits
