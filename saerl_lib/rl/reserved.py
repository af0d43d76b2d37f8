"""Gates that need training runs: transfer between domains, still rising, sensitivity to order.

All on reserved seeds, pools and evaluation problems that no other run uses, and with orders that are not SAERL's:
random, easy to hard and hard to easy by the true label.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student
from transformers import LlamaForCausalLM

from saerl_lib import paths
from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, sub_seed, to_dict
from saerl_lib.data.families import FAMILIES
from saerl_lib.data.sample import Sample, normalise, read_samples, write_samples
from saerl_lib.data.splits import ALL, draw_eval_sets, draw_world
from saerl_lib.data.world import draw_split, target_weights, uniform_weights
from saerl_lib.plan.batch_plan import write_plan
from saerl_lib.plan.orders import build_plan
from saerl_lib.train.grid import matched_run, run_all
from saerl_lib.train.policy import load_policy
from saerl_lib.train.sampler import correct_attempts

RESERVED_SEED = 90_002
MATCHED_SEEDS = (100, 101)
ORDERS = ("random", "ascending", "descending")
TRANSFER_DOMAINS = ("Algebra", "Number theory")
"""Domains trained alone, fixed beforehand: the first two by name among those of exactly three families."""
TRANSFER_STEPS = 160
PROBLEMS_PER_DOMAIN, ATTEMPTS = 60, 8


def _write_plan(samples: Sequence[Sample], profile: Profile, order: str, seed: int, path: Path) -> Path:
    n = len(samples)
    labels = np.array([s.difficulty for s in samples])
    ids = [s.id for s in samples]
    plan = build_plan(ids, np.zeros(n, int), labels, labels, np.ones(n), profile.plan, order=order, seed=seed, labels=labels)
    write_plan(plan, path)
    return path


def reserved_world(profile: Profile) -> Stage:
    """Pools, plans and evaluation sets from the reserved seed."""

    def compute(folder: Path) -> None:
        taken = {normalise(s.prompt) for split in draw_world(profile.world).values() for s in split}
        world = dataclasses.replace(profile.world, seed=RESERVED_SEED)
        sets = draw_eval_sets(world, taken)
        for domain in ALL:
            families = tuple(name for name, family in FAMILIES.items() if family.path[0] == domain)
            sample = draw_split(
                f"domain-{domain}", PROBLEMS_PER_DOMAIN, uniform_weights((2, 3, 4), families), "target", RESERVED_SEED, taken
            )
            write_samples(sample, folder / f"domain-{domain}.parquet")
        pool = draw_split("pool", profile.pool_samples, target_weights(), "target", RESERVED_SEED, taken)
        (folder / "orders").mkdir()
        write_samples(pool, folder / "orders" / "pool.parquet")
        for order in ORDERS:
            for seed in MATCHED_SEEDS if order == "random" else MATCHED_SEEDS[:1]:
                _write_plan(pool, profile, order, sub_seed(RESERVED_SEED, f"order-{seed}"), folder / f"{order}-{seed}.parquet")
        for domain in TRANSFER_DOMAINS:
            families = tuple(name for name, family in FAMILIES.items() if family.path[0] == domain)
            count = TRANSFER_STEPS * profile.plan.prompts_per_step
            alone = draw_split(f"alone-{domain}", count, uniform_weights(families=families), "target", RESERVED_SEED, taken)
            home = folder / f"transfer-{domain}"
            home.mkdir()
            write_samples(alone, home / "pool.parquet")
            _write_plan(alone, profile, "random", sub_seed(RESERVED_SEED, domain), folder / f"plan-{domain}.parquet")
            for name, samples in sets.items():
                write_samples(samples[:2], home / f"eval_{name}.parquet")
        for name, samples in sets.items():
            write_samples(samples, folder / "orders" / f"eval_{name}.parquet")

    sizes = {"prompts_per_step": profile.plan.prompts_per_step, "pool": profile.pool_samples}
    config = {**to_dict(profile.world), **sizes, "seeds": MATCHED_SEEDS}
    return get_or_compute(profile, "reserved_world", config, compute)


def order_evaluations(profile: Profile, world: Stage) -> pd.DataFrame:
    """Evaluations of every order on every reserved seed."""
    home = paths.profile_dir(profile.name) / "jobs_reserved"
    runs = []
    for seed in MATCHED_SEEDS:
        for order in ORDERS:
            plan = world.path(f"{order}-{seed if order == 'random' else MATCHED_SEEDS[0]}.parquet")
            runs.append(matched_run(profile, world.path("orders"), home, order, seed, plan))
    run_all(runs)
    return pd.concat([pd.read_parquet(run.folder / "evaluations.parquet") for run in runs])


def mean_accuracy(evaluations: pd.DataFrame, problems: int | None = None) -> pd.DataFrame:
    """[step x (arm, seed)] mean over sets of Avg@k in percent, on the first `problems` of each set or on all."""
    frame = evaluations.assign(rate=100 * evaluations["correct"] / evaluations["attempts"])
    if problems is not None:
        frame = frame.groupby(["arm", "seed", "step", "eval_set"]).head(problems)
    sets = frame.groupby(["arm", "seed", "step", "eval_set"])["rate"].mean()
    return sets.groupby(["step", "arm", "seed"]).mean().unstack(["arm", "seed"])


def order_effect(outcome: pd.Series, seeds: int) -> tuple[float, float, str]:
    """(largest difference between orders, minimum detectable effect of a study of `seeds` seeds, note), in points.

    `outcome` has one value an (arm, seed). The deviation of paired differences is pooled over the pairs of orders.
    """
    table = outcome.unstack("arm")
    pairs = [(a, b) for i, a in enumerate(ORDERS) for b in ORDERS[i + 1 :]]
    effects = {pair: (table[pair[0]] - table[pair[1]]).to_numpy() for pair in pairs}
    effect = max(abs(float(values.mean())) for values in effects.values())
    spread = np.concatenate([values - values.mean() for values in effects.values()])
    deviation = float(np.sqrt((spread**2).sum() / (len(spread) - len(effects))))
    quantiles = student.ppf(0.975, seeds - 1) + student.ppf(0.8, seeds - 1)
    detectable = float(quantiles * deviation / np.sqrt(seeds))
    means = ", ".join(f"{order} {table[order].mean():.2f}" for order in ORDERS)
    return effect, detectable, f"means in percent: {means}; largest difference {effect:.2f}, detectable {detectable:.2f} points"


def order_gates(evaluations: pd.DataFrame, problems: int, seeds: int) -> dict[str, dict[str, Any]]:
    """Gates from the reserved runs, for a study of `seeds` matched seeds.

    Final accuracy: the full evaluation after the last step, the estimator of the accuracy claims. Speed: the mean of
    the learning curve. Both average the sets' Avg@k. `problems` is the size of the small evaluations.
    """
    curves = mean_accuracy(evaluations, problems)
    outcomes = {"sensitivity": mean_accuracy(evaluations).iloc[-1], "sensitivity of speed": curves.iloc[1:].mean()}
    gates: dict[str, dict[str, Any]] = {}
    for name, outcome in outcomes.items():
        effect, detectable, note = order_effect(outcome, seeds)
        gates[f"{name}: order effect / minimum detectable effect"] = {
            "value": effect / detectable,
            "n": curves.shape[1],
            "note": note,
        }
    plain = curves["random"]
    start = len(plain) - 1 - (len(plain) - 1) // 4
    gains = plain.iloc[-3:].mean() - plain.iloc[start - 2 : start + 1].mean()
    by_seed = ", ".join(f"{gain:+.2f}" for gain in gains)
    note = (
        f"random order, {plain.iloc[0].mean():.1f} % at the start, {plain.iloc[-3:].mean().mean():.1f} % at the end; "
        f"by seed {by_seed}"
    )
    gates["grpo: gain in the last quarter, points"] = {"value": float(gains.mean()), "n": plain.shape[1], "note": note}
    return gates


def transfer_gate(profile: Profile, world: Stage) -> dict[str, Any]:
    """Largest ratio, over the domains trained alone, of the other domains' mean gain to the own gain."""
    quiet = dataclasses.replace(profile.train, eval_every_steps=10_000, eval_samples_full=1)
    changed = dataclasses.replace(profile, train=quiet)
    home = paths.profile_dir(profile.name) / "jobs_reserved"
    runs = []
    for domain in TRANSFER_DOMAINS:
        samples, plan = world.path(f"transfer-{domain}"), world.path(f"plan-{domain}.parquet")
        runs.append(matched_run(changed, samples, home, f"only-{domain}", MATCHED_SEEDS[0], plan))
    run_all(runs)
    folders = [run.folder for run in runs]
    before = _domain_rates(profile, world, load_policy())
    ratios, notes = [], []
    for domain, folder in zip(TRANSFER_DOMAINS, folders, strict=True):
        after = _domain_rates(profile, world, (load_trained(folder), load_policy()[1]))
        gains = {name: after[name] - before[name] for name in ALL}
        others = float(np.mean([gains[name] for name in ALL if name != domain]))
        ratios.append(others / gains[domain] if gains[domain] > 0 else float(np.finfo(np.float32).max))
        notes.append(f"{domain} alone: own {100 * gains[domain]:+.1f} points, others {100 * others:+.1f}")
    return {"value": max(ratios), "n": len(folders), "note": "; ".join(notes)}


def load_trained(folder: Path) -> LlamaForCausalLM:
    """The policy that a finished job trained, in float32."""
    return LlamaForCausalLM.from_pretrained(folder / "final", dtype=torch.float32, local_files_only=True).eval()


def _domain_rates(profile: Profile, world: Stage, policy: Any) -> dict[str, float]:
    rates = {}
    for domain in ALL:
        samples = read_samples(world.path(f"domain-{domain}.parquet"))
        marks = correct_attempts(
            *policy,
            samples,
            ATTEMPTS,
            profile.train.max_completion_tokens,
            profile.train.temperature,
            sub_seed(RESERVED_SEED, domain),
        )
        rates[domain] = float(marks.mean())
    return rates
