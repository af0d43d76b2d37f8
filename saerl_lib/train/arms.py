"""The arms of the study: which prompts, in which order.

An arm is an order of the pool fixed beforehand, or a selector that chooses the prompts of each step by the rewards before it.
Here are the random order and controls of order, the SAERL curriculum with its ablations (Table 7), mixing (Figure 3) and batch
size (Table 8), other features in place of the SAE's, and the rivals ADARFT (arXiv 2504.05520), GAINRL (2506.02281), MoPPS
(2507.04632), SEC (2505.14970, with SAE clusters as categories), E2H, SHIFT and IRDS. An arm of your own is one file: `grid
--arms-from`. N samples in pool order, a row number stands for a sample, G rollouts a prompt.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saerl_lib.config import PlanConfig, near, sub_seed
from saerl_lib.plan.batch_plan import BatchPlan
from saerl_lib.plan.orders import build_plan, random_order
from saerl_lib.train.selectors import AdaptiveTarget, ClusterBandit, MovingGaussian, PosteriorSampling, Selector, needs, online

DAPO = {"dynamic_sampling": "equal_steps"}
"""DAPO (arXiv 2503.14476) at equal optimiser steps, the paper's axis; loss and clip are GRPO's: see `trainer.LOSSES`."""
SAME_COST = {"dynamic_sampling": "equal_rollouts", "tail_steps": 0}
"""DAPO at equal generated rollouts."""
PILOTED = {("token_mean", "adamw"): 1e-4, ("sequence_mean", "adamw"): 1e-4, ("constant", "adamw"): 5e-5,
           ("token_mean", "sgd"): 0.01, ("sequence_mean", "sgd"): 0.01, ("constant", "sgd"): 0.06}  # fmt: skip
"""Loss and optimizer -> the rate that the pilot of `world --check` chose for a random order; the main one first."""
ORDERS = ("grpo", "diff", "saerl_grpo", "hard_to_easy", "informative_half")
"""Arms that are trained under each of them: when does order matter?"""
HALF = "half_rate"
"""End of the names of the first three at half the main rate, which the pilot's rule chooses on another processor."""
HELD = ("grpo", "saerl_grpo", "diff", "saerl_online")
"""Arms that a real model is trained by as well: does the picture hold?"""
WIDER, REAL = ("wide", "real")
"""Where an arm is trained, if elsewhere than the others, and the end of its name: each has a random order of its own."""
GROUPS = ("paper", "ablation", "filter", "mixing", "batch", "control", "rival", "online", "update", "user", REAL)


class ArmError(ValueError):
    """An arm is not what the interface asks for."""


@dataclass(frozen=True)
class ArmPool:
    """What an arm may read of the pool, N samples in pool order."""

    table: pd.DataFrame
    """Columns sample_id, cluster, ranking, raw, length, label, and what else was measured."""
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Matrices [N, ...] by name, of the kept pool and for orders alone: a selector runs in the training process."""

    def column(self, name: str) -> np.ndarray:
        """One column [N]. Raises ArmError when the pool does not have it."""
        if name not in self.table:
            hint = f", or name it in the arm's `needs=({name!r},)`" if name.startswith("phi@") else ""
            raise ArmError(f"the pool has no column {name!r}: choose one of {list(self.table)}{hint}")
        return self.table[name].to_numpy()

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
    draw: int = 0
    """Which SAE and k-means the matched seed has, of `DRAWS`; 0: the profile's own."""


DRAWS = 3
"""SAE x k-means draws that are crossed with the matched seeds, so that intervals over seeds cover them (ours)."""
WIDE = 4
"""Times the pool of the arms that are `wide`: in one pass over a pool of their own size every prompt is used (ours)."""
SHARP = "sharp"
"""Ending of the names of the SAEs' scores before they are blurred: cluster@sharp, ranking@draw1_sharp."""


def scored(pool: ArmPool, setting: ArmSetting, name: str, features: str = "") -> np.ndarray:
    """A column [N]; cluster, ranking and raw are those of an encoder: the SAE of the matched seed's draw, blurred or
    (`SHARP`) not, or any other by its name."""
    own = [f"draw{setting.draw}"] * (setting.draw > 0)
    encoder = "_".join(own + [SHARP] * (features == SHARP)) if features in ("", SHARP) else features
    return pool.column(f"{name}@{encoder}" if encoder and name in ("cluster", "ranking", "raw") else name)


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
    train: Mapping[str, Any] = field(default_factory=dict)
    """Changes of the profile's `TrainConfig`, such as another loss or optimizer."""
    batch_factor: int = 1
    """Prompts of a step as a multiple of the profile's."""
    pool: str = "kept"
    """kept: the target source; filtered: as many of the noisy pool, by the quality filter; unfiltered: as many at random."""
    needs: tuple[str, ...] = ()
    """Columns beyond the standard ones that a `policy` reads."""

    def __post_init__(self) -> None:
        if (self.order is None) == (self.policy is None):
            raise ArmError(f"arm {self.name!r}: give exactly one of order and policy")
        if self.group not in GROUPS:
            raise ArmError(f"arm {self.name!r}: group={self.group!r} must be one of {', '.join(GROUPS)}")
        if not self.name.isidentifier():
            raise ArmError(f"arm {self.name!r}: the name becomes a folder, use letters, digits and underscores")


def variant_of(name: str) -> str:
    """How an arm is trained by the end of its name. `_wide`: on `WIDE` times as many prompts of the target source, of which a run
    takes a part; `_real`: SmolLM2, on short-answer arithmetic; else ''.

    >>> variant_of("grpo_wide"), variant_of("grpo")
    ('wide', '')
    """
    end = name.rpartition("_")[2]
    return end if end in (WIDER, REAL) else ""


def shuffle(pool: ArmPool, setting: ArmSetting, label: str = "shuffle") -> np.ndarray:
    """A random order, another one for every matched seed; `label` tells several shuffles of one seed apart."""
    return random_order(pool.ids, sub_seed(setting.seed, label))


def easy_to_hard(pool: ArmPool, setting: ArmSetting, columns: Sequence[str]) -> np.ndarray:
    """Sorted by the first of `columns`, ties by the next and last by id, over the whole pool: no clusters, no mixing."""
    return np.lexsort((np.asarray(pool.ids), *(scored(pool, setting, name) for name in reversed(columns))))


def ascending(pool: ArmPool, setting: ArmSetting, column: str, descending: bool = False) -> np.ndarray:
    """Sorted by a column of the pool; equal values in random order, since ids tell the source of a sample."""
    shuffled = shuffle(pool, setting, "ties")
    values = pool.column(column)[shuffled]
    return shuffled[np.argsort(-values if descending else values, kind="stable")]


def curriculum(
    pool: ArmPool, setting: ArmSetting, mixing: bool = True, sorting: bool = True, swapped: float | None = None,
    features: str = "", ranking: str = "ranking", permuted: bool = False, **reading: str,
) -> BatchPlan:  # fmt: skip
    """Cluster-first curriculum: SAERL, and with one argument changed its ablations and variants.

    `swapped` is h as a share of the batch (None: the profile's), `reading` another `PlanConfig.rest` or `unequal`; `features`
    names another encoder. Without `sorting` the samples of a cluster come in random order, the same for every matched seed.
    `permuted` deals the scores to other samples: a difficulty that knows nothing, with the same values.
    """
    config = setting.plan
    h = config.swapped_per_batch if swapped is None else round(swapped * config.prompts_per_step)
    config = dataclasses.replace(config, swapped_per_batch=h, **reading)  # type: ignore[arg-type]
    within = None if sorting else random_order(pool.ids, sub_seed(0, "within-cluster"))
    cluster, score, raw = (scored(pool, setting, name, features) for name in ("cluster", ranking, "raw"))
    if permuted:
        other = np.random.default_rng(sub_seed(0, "permuted-scores")).permutation(len(score))
        score, raw = score[other], raw[other]
    return build_plan(
        pool.ids, cluster, score, raw, pool.column("length"), config,
        order="saerl" if mixing else "saerl_before_mixing", within=within,
    )  # fmt: skip


def farthest_first(quality: np.ndarray, points: np.ndarray, count: int) -> np.ndarray:
    """Greedy argmax of quality(x) * min over chosen x' of ||x - x'||, [count]; the first is the best quality.

    >>> farthest_first(np.array([1.0, 1.0, 0.9]), np.array([[0.0], [0.1], [1.0]]), 2).tolist()
    [0, 2]
    """
    chosen = [int(quality.argmax())]
    nearest = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < count:
        gain = quality * nearest
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return np.asarray(chosen)


def greedy_log_det(points: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Greedy maximisation of log det(I + sum_i w_i phi_i phi_i^T) by Sherman-Morrison, [count] (the ridge of 1 is ours).

    The gain of x is log(1 + w phi^T A^-1 phi); `points` [N, K], `weights` [N] of 0 or more.
    """
    inverse = np.eye(points.shape[1])
    chosen: list[int] = []
    for _ in range(count):
        gain = weights * np.einsum("nk,kl,nl->n", points, inverse, points, optimize=True)
        gain[chosen] = -np.inf
        best = int(gain.argmax())
        chosen.append(best)
        v = inverse @ points[best]
        inverse = inverse - weights[best] * np.outer(v, v) / (1.0 + weights[best] * float(points[best] @ v))
    return np.asarray(chosen)


def motif_weights(motifs: np.ndarray, pass_rate: np.ndarray) -> np.ndarray:
    """w_i = (sum_k f_k phi_ik) p_i (1 - p_i), f_k the activation-weighted failure rate of motif k, [N]."""
    failure = motifs.T @ (1.0 - pass_rate) / np.maximum(motifs.sum(axis=0), 1e-12)
    return (motifs @ failure) * pass_rate * (1.0 - pass_rate)


def shift_rows(pool: ArmPool, count: int) -> np.ndarray:
    """SHIFT: quality log(1 + ||Delta||), distance between normalised [s ; Delta]."""
    states = pool.features["solution_shift"]
    change = states[:, states.shape[1] // 2 :]
    points = states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)
    return farthest_first(np.log1p(np.linalg.norm(change, axis=1)), points, count)


def irds_rows(pool: ArmPool, count: int) -> np.ndarray:
    """IRDS-style: log-determinant coverage of SAE motifs, weighted by failure and by p (1 - p)."""
    motifs = pool.features["motifs"]
    return greedy_log_det(motifs, motif_weights(motifs, pool.column("pass_rate")), count)


def twice(pool: ArmPool, setting: ArmSetting, select: Callable[[ArmPool, int], np.ndarray]) -> np.ndarray:
    """The half of the pool that `select` chooses, shuffled by the matched seed, in two passes."""
    total, rng = setting.steps * setting.plan.prompts_per_step, np.random.default_rng(setting.seed)
    chosen = np.sort(select(pool, len(pool.table) // 2))
    return np.concatenate([rng.permutation(chosen) for _ in range(-(-total // len(chosen)))])[:total]


def informative_rows(pool: ArmPool, count: int) -> np.ndarray:
    """Row numbers [count] by ascending distance of the pass rate from one half; ties by id."""
    return np.lexsort((np.asarray(pool.ids), np.abs(pool.column("pass_rate") - 0.5)))[:count]


BINS = 5
"""Bins of equal size by label (not stated; ours)."""


def e2h(pool: ArmPool, setting: ArmSetting) -> np.ndarray:
    """E2H (arXiv 2506.06632): row numbers of `steps` batches; the share of each difficulty bin follows a cosine over the run.

    Bin i of K weighs K - i early and i + 1 late; one that is used up is dealt again in a new order.
    """
    rng = np.random.default_rng(setting.seed)
    by_label = np.lexsort((np.asarray(pool.ids), pool.column("label")))
    bins = [list(rng.permutation(part)) for part in np.array_split(by_label, BINS)]
    dealt: list[list[int]] = [[] for _ in bins]
    rows = []
    for step in range(setting.steps):
        early = 0.5 * (1.0 + np.cos(np.pi * step / max(1, setting.steps - 1)))
        weights = early * (BINS - np.arange(BINS)) + (1.0 - early) * (np.arange(BINS) + 1)
        for number in rng.choice(BINS, size=setting.plan.prompts_per_step, p=weights / weights.sum()):
            if not dealt[number]:
                dealt[number] = list(rng.permutation(bins[number]))
            rows.append(dealt[number].pop())
    return np.asarray(rows, dtype=np.int64)


def adarft(pool: ArmPool, setting: ArmSetting, once: bool = False) -> Selector:
    """ADARFT; equal difficulties are visited in a seeded order."""
    values = 100.0 * (1.0 - pool.column("pass_rate"))
    ties = np.random.default_rng(setting.seed).permutation(len(values))
    return AdaptiveTarget(values + 1e-6 * ties / len(values), once)


ARMS = (
    Arm("adarft", "ADARFT", "paper", policy=adarft, needs=("pass_rate",)),
    Arm("adarft_once", "ADARFT, every prompt once", "control", policy=partial(adarft, once=True), needs=("pass_rate",)),
    Arm("e2h", "E2H, cosine", "rival", order=e2h),
    Arm("gainrl", "GAINRL", "paper", needs=("angle_concentration",),
        policy=lambda pool, setting: MovingGaussian(pool.column("angle_concentration"), setting.seed)),
    Arm("mopps", "MoPPS", "rival", policy=lambda pool, setting: PosteriorSampling(len(pool.table), setting.seed)),
    Arm("grpo", "GRPO, random order", "paper", order=shuffle),
    Arm("dapo", "DAPO, random order", "paper", order=shuffle, train=DAPO),
    Arm("dapo_rollouts", "DAPO at equal rollouts", "control", order=shuffle, train=SAME_COST),
    Arm("diff", "DIFF: easy to hard by label", "paper", order=partial(easy_to_hard, columns=("label",))),
    Arm("grpo_shuffle_b", "random order, second shuffle", "control", order=partial(shuffle, label="shuffle-b")),
    Arm("grpo_shuffle_c", "random order, third shuffle", "control", order=partial(shuffle, label="shuffle-c")),
    Arm("hard_to_easy", "hard to easy by label", "control", order=partial(ascending, column="label", descending=True)),
    Arm("short_to_long", "short to long", "control", order=partial(ascending, column="length")),
    Arm("pass_rate_order", "easy to hard by base pass rate", "control",
        order=partial(ascending, column="pass_rate", descending=True)),
    Arm("grpo_4b", "GRPO, four times the batch", "batch", order=shuffle, batch_factor=4),
    Arm("grpo_filtered", "GRPO on the filtered noisy pool", "filter", order=shuffle, pool="filtered"),
    Arm("grpo_unfiltered", "GRPO on the unfiltered pool", "filter", order=shuffle, pool="unfiltered"),
    Arm("informative_half", "half the pool by pass rates near one half, twice", "control",
        order=partial(twice, select=informative_rows)),
    Arm("saerl_grpo", "SAERL on GRPO", "paper", order=curriculum),
    Arm("saerl_dapo", "SAERL on DAPO", "paper", order=curriculum, train=DAPO),
    Arm("saerl_dapo_rollouts", "SAERL on DAPO at equal rollouts", "control", order=curriculum, train=SAME_COST),
    Arm("minus_diff", "- Diff: random inside clusters", "ablation", order=partial(curriculum, sorting=False)),
    Arm("minus_diff_mix", "- Diff & Mix", "ablation", order=partial(curriculum, mixing=False, sorting=False)),
    Arm("minus_clus_mix", "- Clus & Mix: difficulty alone", "ablation",
        order=partial(easy_to_hard, columns=("ranking", "raw"))),
    Arm("minus_mix", "- Mix: h = 0", "ablation", order=partial(curriculum, mixing=False)),
    *(Arm(f"mix_{h}", f"h = {h} of 32", "mixing", order=partial(curriculum, swapped=h / 32)) for h in (1, 4, 8)),
    Arm("saerl_4b", "SAERL, four times the batch", "batch", order=curriculum, batch_factor=4),
    Arm("saerl_filtered", "SAERL on the filtered noisy pool", "filter", order=curriculum, pool="filtered"),
    Arm("saerl_unfiltered", "SAERL on the unfiltered pool", "filter", order=curriculum, pool="unfiltered"),
    Arm("saerl_true", "SAERL with the true label as difficulty", "control", order=partial(curriculum, ranking="label")),
    *(Arm(f"saerl_{name}", f"SAERL with {title}", "control", order=partial(curriculum, features=name))
      for name, title in (("tfidf", "TF-IDF features"), ("dense", "dense activations"), ("frozen", "a frozen-decoder SAE"))),
    Arm("saerl_sharp", "SAERL with unblurred difficulty", "control", order=partial(curriculum, features=SHARP)),
    Arm("saerl_shuffled", "SAERL with shuffled difficulty", "control", order=partial(curriculum, permuted=True)),
    Arm("sec", "SEC with SAE clusters", "rival",
        policy=lambda pool, setting: ClusterBandit(pool.column("cluster"), setting.seed)),
    Arm("saerl_front", "SAERL, small clusters end early", "control", order=partial(curriculum, unequal="front")),
    Arm("saerl_back", "SAERL, clusters end together", "control", order=partial(curriculum, unequal="back")),
    Arm("saerl_rests", "SAERL, rests of clusters in mixed batches", "control", order=partial(curriculum, rest="pool")),
    Arm("shift", "SHIFT, half the pool", "rival", order=partial(twice, select=shift_rows)),
    Arm("irds", "IRDS-style, half the pool", "rival", order=partial(twice, select=irds_rows)),
    Arm("saerl_online", "current pass rate from SAE features", "online", policy=online, needs=needs("sae")),
    Arm("saerl_online_rate", "current pass rate from the base pass rate", "online", policy=partial(online, features="rate"),
        needs=needs("rate")),
    Arm("grpo_wide", "GRPO, random order of four times the pool", "online", order=shuffle),
    *(Arm(f"saerl_online{of}_wide", f"current pass rate from {title}, four times the pool", "online",
          policy=partial(online, features=of[1:] or "sae"), needs=needs(of[1:] or "sae"))
      for of, title in (("", "SAE features"), ("_tfidf", "TF-IDF features"), ("_dense", "dense activations"),
                        ("_cluster", "the cluster alone"), ("_shuffled", "other prompts' features"),
                        (f"_{SHARP}", "unblurred SAE features"), ("_rate", "the base pass rate"))),
)  # fmt: skip
"""The arms of the study. GAINRL reads the angle concentration that was measured, SEC draws from the pool's clusters."""


def under(arm: Arm, end: str, title: str, group: str = "update", **settings: Any) -> Arm:
    """The arm with other settings of training, told apart by the end of its name and of its title."""
    train = {**arm.train, **settings}
    return dataclasses.replace(arm, name=f"{arm.name}_{end}", title=f"{arm.title}; {title}", group=group, train=train)


@cache
def all_arms(extra: Path | None = None) -> dict[str, Arm]:
    """Every arm by name, grouped, the baseline first; those of the user's file `extra` included.

    Raises ArmError for a doubled or malformed arm.
    """
    (_, main), *rates = PILOTED.items()
    others = [
        under(arm, f"{loss}_{by}", f"{loss.replace('_', ' ')}, {by}", loss=loss, optimizer=by, learning_rate=rate)
        for (loss, by), rate in rates for arm in ARMS if arm.name in ORDERS
    ]  # fmt: skip
    half = [under(arm, HALF, "half the learning rate", learning_rate=main / 2) for arm in ARMS if arm.name in ORDERS[:3]]
    real = [under(arm, REAL, "SmolLM2", REAL) for arm in ARMS if arm.name in HELD]
    found = {arm.name: arm for arm in (*ARMS, *others, *half, *real)}
    for arm in () if extra is None else _load(extra):
        if not isinstance(arm, Arm):
            raise ArmError(f"{extra}: ARMS holds a {type(arm).__name__}, not an Arm")
        if arm.name in found:
            raise ArmError(f"{extra}: an arm named {arm.name!r} exists already; choose another name")
        found[arm.name] = arm
    return dict(sorted(found.items(), key=lambda item: (GROUPS.index(item[1].group), item[0] != "grpo")))


def _load(path: Path) -> tuple[Arm, ...]:
    """ARMS of a Python file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ArmError(f"{path}: no Python file; name one that defines ARMS")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "ARMS", None), tuple):
        raise ArmError(f"{path}: define a tuple named ARMS, such as ARMS = (arm,)")
    return module.ARMS


def find_arm(name: str, extra: Path | None = None) -> Arm:
    """The arm `name`. Raises ArmError when there is none."""
    arms = all_arms(extra)
    if name not in arms:
        raise ArmError(f"arm {name!r} does not exist; choose one of {', '.join(arms)}{near(name, arms)}")
    return arms[name]
