"""Every order of a pool as a BatchPlan: SAERL, SAERL before mixing, and the baselines (paper, sections 3, 4.1 and 5).

`build_plan` is the entry point. `random` is the order of GRPO and DAPO, `ascending` that of DIFF, `descending` is ours. All
orders visit their samples once, in batches of the same size. The curriculum of SAERL is `cluster_first`: batches of one cluster,
easy to hard, interleaved stage by stage. Not stated in the paper; ours: inside a stage batches go by ascending mean ranking
score; the samples that fill no batch of their own cluster (the hardest of each) are left out and counted; the stages are those of
the largest cluster, over which the batches of the others are spread. `PlanConfig.rest` and `PlanConfig.unequal` name the other
readings. Axes: N samples, T batches (= steps), b a batch.

Moderate mixing: two batches exchange their last h samples (paper, section 3). Partners must have similar mean ranking scores,
similar mean lengths and different dominant clusters. The paper says "within each stage", "a nearby curriculum stage" and "a local
curriculum window": a partner is at most `window_batches` of the finished order away, whatever its stage. Not stated in the paper;
ours: batches choose in training order, each swaps once at most, and of the admissible partners that with the fewest of its own
wins, so that few are left alone, then that with the closest mean score, then the earlier one.

In-batch diversity (paper, Figure 3) is the mean distance to the k = 5 nearest neighbours inside a batch, in "a 2-D projection of
SAE space" that is not named: here PCA, and beside it the full standardised space (ours).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import PLANS, PlanConfig, Profile, sub_seed, to_dict
from saerl_lib.data.sample import SEPARATOR, DataError, Sample, load_split, write_samples
from saerl_lib.encode.store import load_split_features
from saerl_lib.needs import model_folder
from saerl_lib.plan.batch_plan import (
    Batches,
    BatchPlan,
    Ids,
    PlanError,
    by_name,
    make_pool,
    plan_of,
    read_plan,
    require_full_batches,
    rows_of,
    validate,
    write_plan,
)
from saerl_lib.plan.trainers import export_plan, open_export
from saerl_lib.properties.scorer import whole_batches
from saerl_lib.report.statistics import bootstrap_interval

ORDERS = ("saerl", "saerl_before_mixing", "random", "ascending", "descending")
DIFFICULTY, LENGTH, CLUSTER = "difficulty too different", "length too different", "same dominant cluster"
"""How a candidate fails the paper's three conditions on a partner (section 3)."""
TAKEN = "already exchanged with another"
"""A batch exchanges its tail once at most (ours)."""
NEIGHBOURS = 5
"""k of the k-NN distance (paper, Figure 3)."""


def random_order(ids: Ids, seed: int) -> np.ndarray:
    """Row numbers [N] in random order; depends on the set of ids and the seed, not on the order of the input."""
    return by_name(ids)[np.random.default_rng(seed).permutation(len(ids))]


def by_difficulty(ids: Ids, labels: np.ndarray, descending: bool = False) -> np.ndarray:
    """Row numbers [N] sorted by difficulty label, ties by id. Raises PlanError for unequal rows or non-finite labels."""
    labels = np.asarray(labels, dtype=float)
    if len(labels) != len(ids) or not np.isfinite(labels).all():
        raise PlanError(f"labels must hold {len(ids)} finite numbers, one a sample: pass the difficulty of every sample")
    named = by_name(ids)
    return named[np.argsort((-labels if descending else labels)[named], kind="stable")]


def cluster_first(
    ids: Ids, clusters: np.ndarray, ranking: np.ndarray, raw: np.ndarray, config: PlanConfig, within: np.ndarray | None = None
) -> Batches:
    """Batches in training order; a row number 0..N-1 occurs at most once. N is a multiple of `prompts_per_step`, scores are
    finite.

    Ties of the ranking score are broken by raw, then by id, so the order of the input does not matter. `within`, row
    numbers [N], replaces the order easy to hard inside clusters and rests. Raises PlanError when the rests are dropped and no
    cluster fills a batch.
    """
    if within is None:
        named = by_name(ids)
        within = named[np.lexsort((raw[named], ranking[named]))]
    full, rests = _cut(np.asarray(within), clusters, ranking, config)
    if config.rest == "pool":
        return _insert_rests(full, rests, ranking)
    if not len(full.rows):
        raise PlanError(f"no cluster holds {config.prompts_per_step} samples, a batch: lower prompts_per_step or clusters")
    return full


def _numbers(sizes: np.ndarray) -> np.ndarray:
    """0, 1, ... anew for each group of `sizes`, joined."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _cut(order: np.ndarray, clusters: np.ndarray, ranking: np.ndarray, config: PlanConfig) -> tuple[Batches, np.ndarray]:
    """Full batches of the clusters, in stages, from rows in `order` [N]; and batches [m, b] of those left over, the hardest."""
    b = config.prompts_per_step
    grouped = order[np.argsort(clusters[order], kind="stable")]
    size = np.unique(clusters, return_counts=True)[1]
    inside = _numbers(size) < np.repeat(size - size % b, size)
    full, left = grouped[inside].reshape(-1, b), np.ones(len(order), dtype=bool)
    left[full] = False
    batches = size // b
    stage, stages, of = _numbers(batches), batches.max(), np.repeat(batches, batches)
    if config.unequal == "stretch":
        stage = (2 * stage + 1) * stages // (2 * of)
    elif config.unequal == "back":
        stage = stage + stages - of
    # a stable sort: equal means of a stage stay in the order of the cluster numbers
    easy_first = np.lexsort((ranking[full].mean(axis=1), stage))
    return Batches(stage[easy_first], full[easy_first]), order[left[order]].reshape(-1, b)


def _insert_rests(full: Batches, rests: np.ndarray, ranking: np.ndarray) -> Batches:
    """Put each rest batch, as a stage of its own, before the first stage with a larger mean ranking score."""
    scores, ends = ranking[full.rows], np.flatnonzero(np.diff(full.stage, append=-1)) + 1
    means = [scores[start:end].ravel().mean() for start, end in zip([0, *ends[:-1]], ends, strict=True)] if len(full.rows) else []
    # the first stage above a mean is also the first at which the running maximum is above it
    place = np.searchsorted(np.maximum.accumulate(np.array(means)), ranking[rests].mean(axis=1), side="right")
    before = np.concatenate([place, full.stage])
    order = np.argsort(before, kind="stable")
    is_rest, before = order < len(rests), before[order]
    begins = is_rest[1:] | is_rest[:-1] | (before[1:] != before[:-1])
    return Batches(np.concatenate([[0], np.cumsum(begins)]), np.concatenate([rests, full.rows])[order])


# Mixing.


def dominant_clusters(clusters: np.ndarray) -> list[int]:
    """The most frequent cluster of each batch of clusters [T, b], the lowest number among equals.

    >>> dominant_clusters(np.array([[4, 2, 4, 2, 7], [7, 7, 2, 2, 7]]))
    [2, 7]
    """
    names, number = np.unique(clusters, return_inverse=True)
    number = number.reshape(clusters.shape) + len(names) * np.arange(len(clusters))[:, None]
    counts = np.bincount(number.ravel(), minlength=len(clusters) * len(names)).reshape(len(clusters), len(names))
    return names[counts.argmax(axis=1)].tolist()


def batch_facts(batches: Batches, clusters: np.ndarray, ranking: np.ndarray, lengths: np.ndarray) -> pd.DataFrame:
    """What a partner is chosen by, a row each of T batches before the swap: stage, ranking and length (means), dominant (most
    frequent cluster), n_clusters. clusters, ranking and lengths (above 0) are [N], indexed by `Batches.rows`."""
    rows, inside = batches.rows, clusters[batches.rows]
    ranking, lengths = (values[rows].mean(axis=1).astype(np.float64) for values in (ranking, lengths))
    return pd.DataFrame({"stage": batches.stage, "ranking": ranking, "length": lengths, "dominant": dominant_clusters(inside),
                         "n_clusters": _distinct(inside)})  # fmt: skip


def mix_tails(
    batches: Batches, clusters: np.ndarray, ranking: np.ndarray, lengths: np.ndarray, config: PlanConfig
) -> tuple[Batches, np.ndarray]:
    """Exchange the last `swapped_per_batch` samples of admissible pairs; h = 0 changes nothing. Arrays as in `batch_facts`.
    Returns the batches, the partner's tail in the last h slots, and the step that each exchanged tails with, -1 for none, [T]."""
    h, rows = config.swapped_per_batch, batches.rows.copy()
    partner = np.full(len(rows), -1, dtype=np.int64)
    if not h:
        return batches, partner
    facts, steps = batch_facts(batches, clusters, ranking, lengths), np.arange(len(rows))[:, None]
    others = steps + np.arange(1, config.window_batches + 1)  # the conditions are symmetric: earlier batches have chosen
    difference, _, met = _compared(steps, np.minimum(others, len(rows) - 1), facts, config)
    fits = np.logical_and.reduce([others < len(rows), *met.values()])
    choices = fits.sum(axis=1) + np.bincount(others[fits], minlength=len(rows))
    for i in range(len(rows)):
        free = np.flatnonzero(fits[i]) if partner[i] < 0 else np.empty(0, dtype=np.int64)
        free = free[partner[i + 1 + free] < 0]
        if len(free):
            j = i + 1 + free[np.lexsort((difference[i, free], choices[i + 1 + free]))[0]]
            partner[i], partner[j] = j, i
    paired = np.flatnonzero(partner >= 0)
    rows[paired, -h:] = batches.rows[partner[paired], -h:]
    return Batches(batches.stage, rows), partner


def _compared(
    step: int | np.ndarray, others: np.ndarray, facts: pd.DataFrame, config: PlanConfig
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Difference of the mean scores of steps and others, that of lengths as a share of the larger, and what is met."""
    mean, length, dominant = (facts[name].to_numpy() for name in ("ranking", "length", "dominant"))
    ranking = np.abs(mean[step] - mean[others])
    apart = np.abs(length[step] - length[others]) / np.maximum(length[step], length[others])
    met = {DIFFICULTY: ranking <= config.difficulty_tolerance, LENGTH: apart <= config.length_tolerance,
           CLUSTER: dominant[step] != dominant[others]}  # fmt: skip
    return ranking, apart, met


def candidates(step: int, facts: pd.DataFrame, partner: np.ndarray, config: PlanConfig) -> list[dict[str, Any]]:
    """The other batches inside the window as possible partners, closest mean ranking score first: step, dominant cluster,
    ranking_difference (label units), length_difference (a share of the larger), failed (conditions, in the words above).

    partner [T] is the step that each batch exchanged tails with, -1 for none. A batch without a partner has no candidate
    that fails nothing, for the conditions are symmetric: one of the two would have chosen the other.
    """
    away = np.abs(np.arange(len(facts)) - step)
    others = np.flatnonzero((away > 0) & (away <= config.window_batches))
    ranking, length, met = _compared(step, others, facts, config)
    met[TAKEN] = np.isin(partner[others], (-1, step))
    return [
        {"step": int(others[i]), "dominant": int(facts["dominant"][others[i]]), "ranking_difference": float(ranking[i]),
         "length_difference": float(length[i]), "failed": tuple(name for name, values in met.items() if not values[i])}
        for i in np.argsort(ranking, kind="stable")
    ]  # fmt: skip


def _distinct(clusters: np.ndarray) -> np.ndarray:
    """Number of different clusters in each row of clusters [T, b], int [T]."""
    return 1 + np.count_nonzero(np.diff(np.sort(clusters, axis=1), axis=1), axis=1)


# The plan and what its batches look like.


def build_plan(
    ids: Ids, clusters: np.ndarray, ranking: np.ndarray, raw: np.ndarray, lengths: np.ndarray, config: PlanConfig,
    *, order: str = "saerl", seed: int = 0, labels: np.ndarray | None = None, within: np.ndarray | None = None,
) -> BatchPlan:  # fmt: skip
    """The validated plan of a pool under one of `ORDERS`; arrays as in `make_pool`.

    `seed` matters for `random` only; `labels` [N] are needed for `ascending` and `descending`; `within`, row numbers [N],
    replaces easy to hard inside the clusters of the two curriculum orders. Raises PlanError for an unknown order, missing labels,
    N no multiple of `prompts_per_step`, clusters that fill no batch, and what `make_pool` raises.
    """
    if order not in ORDERS:
        raise PlanError(f"order={order!r} does not exist; choose one of {', '.join(ORDERS)}")
    if order in ("ascending", "descending") and labels is None:
        raise PlanError(f"order={order!r} sorts by difficulty labels: pass labels")
    pool, b = make_pool(ids, clusters, ranking, raw, lengths), config.prompts_per_step
    require_full_batches(len(pool.ids), b)
    h, partner = (config.swapped_per_batch if order == "saerl" else 0), None
    if order == "random":
        rows = random_order(pool.ids, seed)
    elif order in ("ascending", "descending"):
        rows = by_difficulty(pool.ids, labels, descending=order == "descending")
    else:
        batches = cluster_first(pool.ids, pool.clusters, pool.ranking, pool.raw, config, within)
        if order == "saerl":
            batches, partner = mix_tails(batches, pool.clusters, pool.ranking, pool.lengths, config)
        rows = batches.rows.ravel()
    partner = np.full(len(rows) // b, -1) if partner is None else partner
    plan = plan_of(pool, rows, np.where(np.arange(b) >= b - h, partner[:, None], -1).ravel(), order, b, h)
    validate(plan)
    return plan


def cluster_batches(plan: BatchPlan, pool: pd.DataFrame) -> pd.DataFrame:
    """One row a cluster of a curriculum: samples of the pool, left out of the plan, home batches, those without a partner."""
    b, swapped, home = plan.prompts_per_step, *(plan.table[name].to_numpy() for name in ("swapped_with", "cluster"))
    home, alone = home[::b], swapped.reshape(-1, b).max(axis=1) < 0  # the first of a batch is never exchanged
    counts = {"samples": pool["cluster"], "planned": plan.table["cluster"], "batches": home, "without_partner": home[alone]}
    found = pd.DataFrame({name: pd.Series(values).value_counts() for name, values in counts.items()}).fillna(0).astype(int)
    found["left_out"] = found["samples"] - found.pop("planned")
    return found.rename_axis("cluster").reset_index()


def standardised_space(x: np.ndarray) -> np.ndarray:
    """x [N, D] of the pool with mean 0 and deviation 1 a column."""
    return StandardScaler().fit_transform(np.asarray(x, dtype=np.float64))


def projection_2d(x: np.ndarray) -> np.ndarray:
    """First two principal components [N, 2] of the standardised pool x [N, D]; N and D at least 2."""
    return PCA(n_components=2, svd_solver="covariance_eigh").fit_transform(standardised_space(x))


def diversity_rows(
    plan: BatchPlan, ids: Ids, spaces: Mapping[str, np.ndarray], bootstrap_samples: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of `inbatch_diversity.csv`: `spaces` maps a name to points [N, D] in the order of ids [N]. The value is the mean over
    batches of the mean distance to the `NEIGHBOURS` nearest in the batch (b - 1 if that is less); the interval resamples them."""
    batches, rows = rows_of(plan.table["sample_id"], ids).reshape(plan.steps, plan.prompts_per_step), []
    last = min(NEIGHBOURS, plan.prompts_per_step - 1) + 1  # the first is the sample itself
    for space, points in spaces.items():
        distances = (np.linalg.norm(points[batch][:, None] - points[batch][None], axis=2) for batch in batches)
        values = np.array([np.sort(d, axis=1)[:, 1:last].mean() for d in distances])
        interval = bootstrap_interval(lambda index, v=values: float(v[index].mean()), len(values), bootstrap_samples, seed)
        rows.append({"order": plan.order, "swapped_per_batch": plan.swapped_per_batch, "space": space, "value": values.mean(),
                     "ci_low": interval.low, "ci_high": interval.high, "n_batches": len(values)})  # fmt: skip
    return rows


def composition_rows(plan: BatchPlan, ids: Ids, lengths: np.ndarray) -> pd.DataFrame:
    """Rows of `batch_composition.csv`, one a step; lengths [N] in words, in the order of ids [N]."""
    shape = (plan.steps, plan.prompts_per_step)
    words = np.asarray(lengths, dtype=float)[rows_of(plan.table["sample_id"], ids)].reshape(shape)
    clusters, ranking = (plan.table[name].to_numpy().reshape(shape) for name in ("cluster", "ranking_score"))
    dominant = np.array(dominant_clusters(clusters))
    return pd.DataFrame({
        "order": plan.order, "step": np.arange(plan.steps), "dominant_cluster": dominant,
        "dominant_share": (clusters == dominant[:, None]).mean(axis=1), "n_clusters": _distinct(clusters),
        "mean_ranking_score": ranking.mean(axis=1), "mean_sequence_words": words.mean(axis=1),
    })  # fmt: skip


# The stage.

Asked = str | list[dict[str, str]]
"""A prompt, or the chat messages that end with it."""


def shown_prompts(tokenizer: Any, prompts: Sequence[Asked], chat: bool) -> list[str]:
    """Prompts as text: the tokenizer's chat template with the assistant's turn opened, or a line break behind them. Raises
    DataError when the tokenizer has no chat template, and for messages without one."""
    if not chat:
        if any(isinstance(prompt, list) for prompt in prompts):
            raise DataError("a prompt has messages before it: use the chat template (train: --chat)")
        return [f"{prompt}{SEPARATOR}" for prompt in prompts]
    if not tokenizer.chat_template:
        raise DataError("the policy's tokenizer has no chat template: leave out --chat for plain text")
    chats = [prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}] for prompt in prompts]
    return [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]


def encode_prompts(tokenizer: Any, prompts: Sequence[Asked], chat: bool = False) -> list[list[int]]:
    """Token ids of each prompt, the separator to the solution or the chat template included."""
    return tokenizer(shown_prompts(tokenizer, prompts, chat), add_special_tokens=not chat)["input_ids"]


def kept_pool(difficulty: Stage, quality: Stage) -> pd.DataFrame:
    """Scores of the samples that the filter kept, in pool order."""
    scores = pd.read_parquet(difficulty.path("scores.parquet"))
    kept = pd.read_parquet(quality.path("kept.parquet"))
    return scores.merge(kept[kept["kept"]][["sample_id"]], on="sample_id", validate="one_to_one")


def prompt_tokens(policy: str, samples: Sequence[Sample], chat: bool | None = None) -> np.ndarray:
    """Tokens of each prompt as the policy, a folder or hub name, is given it, int [N]; chat None: by its template where it has
    one."""
    from saerl_lib.encode.models import open_tokenizer  # loads transformers

    tokenizer = open_tokenizer(policy)
    chat = bool(tokenizer.chat_template) if chat is None else chat
    prompts = [sample.asked if chat else sample.prompt for sample in samples]
    return np.array([len(ids) for ids in encode_prompts(tokenizer, prompts, chat)])


def left_out(profile: Profile, samples: Sequence[Sample]) -> np.ndarray:
    """Why a kept sample is not planned, str [N], '' when it is: its prompt is too long, or it fills no whole batch. Raises
    DataError when less than a batch is left."""
    b, longest, reason = profile.plan.prompts_per_step, profile.train.max_prompt_tokens, np.full(len(samples), "", dtype=object)
    if longest is not None:
        lengths = prompt_tokens(str(model_folder(profile.policy, "--policy")), samples, profile.train.chat)
        reason[lengths > longest] = f"prompt above {longest} tokens"
    rows = np.flatnonzero(reason == "")
    if len(rows) < b:
        raise DataError(f"{len(rows)} samples are left to plan, less than a batch of {b}: lower prompts_per_step")
    full = whole_batches([samples[i] for i in rows], b)
    reason[rows[~full]] = f"fills no whole batch of {b}"
    return reason


def order_pool(pool: pd.DataFrame, config: PlanConfig, order: str, seed: int = 0) -> BatchPlan:
    """A validated plan of the kept pool; `label` among its columns is needed for `ascending`."""
    arrays = (pool[name].to_numpy() for name in ("cluster", "ranking", "raw", "length"))
    labels = pool["label"].to_numpy() if "label" in pool else None
    return build_plan(pool["sample_id"], *arrays, config, order=order, seed=seed, labels=labels)


def plans_stage(profile: Profile, data: Stage, features: Stage, difficulty: Stage, quality: Stage) -> Stage:
    """The kept samples in every order that is trained or compared, <order>.parquet, with samples.parquet and left_out.csv.

    random-<k> belongs to matched seed k, the other plans to all. clusters.parquet is `cluster_batches` of SAERL's plan;
    composition.parquet and diversity.parquet hold the rows of batch_composition.csv and inbatch_diversity.csv,
    exports/<trainer>/<order>/ the plans for other trainers. Raises DataError when less than a batch is left, PlanError when an
    order needs labels that are not there.
    """

    def compute(folder: Path) -> None:
        pool, samples = kept_pool(difficulty, quality), {sample.id: sample for sample in load_split(data, "pool")}
        reason = left_out(profile, [samples[name] for name in pool["sample_id"]])
        decided = pd.read_parquet(quality.path("kept.parquet"))
        cut = decided[~decided["reason"].isin(["", "filtered"])][["sample_id", "reason"]]
        rest = pd.DataFrame({"sample_id": pool["sample_id"], "reason": reason})[reason != ""]
        pool = pool[reason == ""].reset_index(drop=True)
        planned = [samples[name] for name in pool["sample_id"]]
        write_samples(planned, folder / "samples.parquet")
        pool = pool.assign(label=[sample.difficulty for sample in planned])
        names = {PLANS[arm] for arm in profile.arms} - {"random-{seed}"} | {"saerl", "saerl_before_mixing"}
        plans = {name: order_pool(pool, profile.plan, name) for name in sorted(names)}
        for seed in range(profile.train.seeds):
            shuffle = sub_seed(profile.seed, f"random-order-{seed}")
            plans[f"random-{seed}"] = order_pool(pool, profile.plan, "random", shuffle)
        cluster_batches(plans["saerl"], pool).to_parquet(folder / "clusters.parquet", index=False)
        dropped = pool.loc[rows_of(pool["sample_id"], plans["saerl"].ids) < 0, ["sample_id"]]
        left = [cut, rest, dropped.assign(reason="fills no batch of its cluster (left out by SAERL alone)")]
        pd.concat(left).to_csv(folder / "left_out.csv", index=False, lineterminator="\n")
        for name, plan in plans.items():
            write_plan(plan, folder / f"{name}.parquet")
            for target in profile.exports if name != "saerl_before_mixing" else ():
                export = open_export(folder / f"{name}.parquet", folder / "samples.parquet", profile.train.rollouts_per_prompt)
                export_plan(export, target, folder / "exports" / target / name)
        shown = (plans["random-0"], plans["saerl_before_mixing"], plans["saerl"])
        composition = [composition_rows(plan, pool["sample_id"], pool["length"].to_numpy()) for plan in shown]
        pd.concat(composition).to_parquet(folder / "composition.parquet", index=False)
        _diversity(profile, features, pool, plans).to_parquet(folder / "diversity.parquet", index=False)

    train = profile.train
    config = {
        **to_dict(profile.plan), "seeds": train.seeds, "seed": profile.seed, "bootstrap": profile.properties.bootstrap_samples,
        "orders": sorted({PLANS[arm] for arm in profile.arms}), "exports": list(profile.exports),
        "prompts": [profile.policy, train.max_prompt_tokens, train.chat, train.rollouts_per_prompt],
    }  # fmt: skip
    return get_or_compute(profile, "plans", config, compute, (data, features, difficulty, quality))


def _diversity(profile: Profile, features: Stage, pool: pd.DataFrame, plans: dict[str, BatchPlan]) -> pd.DataFrame:
    """In-batch diversity of random order and of the curriculum with h = 0 to half a batch swapped."""
    table = load_split_features(features, "pool")
    z = table.z[rows_of(pool["sample_id"], table.ids)]
    spaces = {"PCA 2-D": projection_2d(z), "full": standardised_space(z)}
    b, resamples = profile.plan.prompts_per_step, profile.properties.bootstrap_samples
    swapped = (replace(profile.plan, swapped_per_batch=h) for h in range(0, b // 2 + 1, max(1, b // 32)))
    shown = [plans["random-0"], *(order_pool(pool, config, "saerl") for config in swapped)]
    return pd.DataFrame([r for p in shown for r in diversity_rows(p, pool["sample_id"], spaces, resamples, profile.seed)])


def load_plan(plans: Stage, name: str) -> BatchPlan:
    """One plan of the stage."""
    return read_plan(plans.path(f"{name}.parquet"))
