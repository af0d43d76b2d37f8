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

from saerl_lib import paths
from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, sub_seed, to_dict
from saerl_lib.data.families import FAMILIES
from saerl_lib.data.schema import Sample, read_samples, write_samples
from saerl_lib.data.splits import ALL, draw_eval_sets
from saerl_lib.data.world import draw_split, target_weights, uniform_weights
from saerl_lib.encode.language_model import load_model
from saerl_lib.plan.batch_plan import write_plan
from saerl_lib.plan.orders import build_plan
from saerl_lib.rl.generation import correct_attempts
from saerl_lib.rl.policy import load_policy
from saerl_lib.rl.runner import PlannedRun, prepare_jobs, run_jobs

RESERVED_SEED = 90_002
MATCHED_SEEDS = (100, 101, 102)
ORDERS = ("random", "ascending", "descending")
TRANSFER_DOMAINS = ("Algebra", "Number theory")
"""Domains trained alone, fixed beforehand: the first two by name among those of exactly three families."""
TRANSFER_STEPS = 200
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
        taken: set[str] = set()
        world = dataclasses.replace(profile.world, seed=RESERVED_SEED)
        sets = draw_eval_sets(world, taken)
        for domain in ALL:
            families = tuple(name for name, family in FAMILIES.items() if family.path[0] == domain)
            sample = draw_split(f"domain-{domain}", PROBLEMS_PER_DOMAIN, uniform_weights((2, 3, 4), families), "target", RESERVED_SEED, taken)
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

    return get_or_compute(profile, "reserved_world", "plan", {**to_dict(profile.world), **to_dict(profile.plan)}, compute)


def order_evaluations(profile: Profile, world: Stage) -> pd.DataFrame:
    """Evaluations of every order on every reserved seed."""
    runs = [
        PlannedRun(order, seed, world.path(f"{order}-{seed if order == 'random' else MATCHED_SEEDS[0]}.parquet"))
        for seed in MATCHED_SEEDS
        for order in ORDERS
    ]
    home = paths.profile_dir(profile.name) / "jobs_reserved"
    folders = prepare_jobs(runs, profile, world.path("orders"), home)
    run_jobs(folders, profile.steps)
    return pd.concat([pd.read_parquet(folder / "evaluations.parquet") for folder in folders])


def mean_accuracy(evaluations: pd.DataFrame, problems: int) -> pd.DataFrame:
    """[step x (arm, seed)] mean over sets of Avg@k on the first `problems` of each set, in percent."""
    frame = evaluations.assign(rate=100 * evaluations["correct"] / evaluations["attempts"])
    frame = frame.groupby(["arm", "seed", "step", "eval_set"]).head(problems)
    sets = frame.groupby(["arm", "seed", "step", "eval_set"])["rate"].mean()
    return sets.groupby(["step", "arm", "seed"]).mean().unstack(["arm", "seed"])


def order_gates(curves: pd.DataFrame, detectable: Any) -> dict[str, dict[str, Any]]:
    """Gates from the reserved runs; `detectable(differences)` is the minimum detectable effect of paired differences.

    Final accuracy is the mean of the last three evaluations, speed the mean of all of them.
    """
    outcomes = {"sensitivity": curves.iloc[-3:].mean(), "sensitivity of speed": curves.iloc[1:].mean()}
    gates: dict[str, dict[str, Any]] = {}
    for name, outcome in outcomes.items():
        table = outcome.unstack("arm")
        pairs = [(a, b) for i, a in enumerate(ORDERS) for b in ORDERS[i + 1 :]]
        effects = {pair: (table[pair[0]] - table[pair[1]]).to_numpy() for pair in pairs}
        largest = max(effects, key=lambda pair: abs(effects[pair].mean()))
        spread = np.concatenate([values - values.mean() for values in effects.values()])
        scale = np.sqrt((spread**2).sum() / (len(spread) - len(effects)))
        unit = detectable(np.array([-1.0, 0.0, 1.0]) * scale)
        effect = abs(float(effects[largest].mean()))
        means = ", ".join(f"{order} {table[order].mean():.2f}" for order in ORDERS)
        note = f"means in percent: {means}; largest difference {effect:.2f} points, minimum detectable effect {unit:.2f}"
        gates[f"{name}: order effect / minimum detectable effect"] = {"value": effect / unit, "n": curves.shape[1], "note": note}
    random = curves["random"].mean(axis=1)
    quarter = len(random) - 1 - (len(random) - 1) // 4
    gain = float(random.iloc[-3:].mean() - random.iloc[quarter - 2 : quarter + 1].mean())
    gates["grpo: gain in the last quarter, points"] = {
        "value": gain,
        "n": len(MATCHED_SEEDS),
        "note": f"random order, {random.iloc[0]:.1f} % at the start, {random.iloc[-3:].mean():.1f} % at the end",
    }
    return gates


def transfer_gate(profile: Profile, world: Stage) -> dict[str, Any]:
    """Largest ratio, over the domains trained alone, of the other domains' mean gain to the own gain."""
    quiet = dataclasses.replace(profile.train, eval_every_steps=10_000, eval_samples_full=1)
    changed = dataclasses.replace(profile, train=quiet)
    home = paths.profile_dir(profile.name) / "jobs_reserved"
    folders = []
    for domain in TRANSFER_DOMAINS:
        run = PlannedRun(f"only-{domain}", MATCHED_SEEDS[0], world.path(f"plan-{domain}.parquet"))
        folders += prepare_jobs([run], changed, world.path(f"transfer-{domain}"), home)
    run_jobs(folders, TRANSFER_STEPS)
    before = _domain_rates(profile, world, load_policy())
    ratios, notes = [], []
    for domain, folder in zip(TRANSFER_DOMAINS, folders, strict=True):
        after = _domain_rates(profile, world, (load_model(folder / "final")[0], load_policy()[1]))
        gains = {name: after[name] - before[name] for name in ALL}
        others = float(np.mean([gains[name] for name in ALL if name != domain]))
        ratios.append(others / gains[domain])
        notes.append(f"{domain} alone: own {100 * gains[domain]:+.1f} points, others {100 * others:+.1f}")
    return {"value": max(ratios), "n": len(folders), "note": "; ".join(notes)}


def _domain_rates(profile: Profile, world: Stage, policy: Any) -> dict[str, float]:
    rates = {}
    for domain in ALL:
        samples = read_samples(world.path(f"domain-{domain}.parquet"))
        marks = correct_attempts(
            *policy, samples, ATTEMPTS, profile.train.max_completion_tokens, profile.train.temperature, sub_seed(RESERVED_SEED, domain)
        )
        rates[domain] = float(marks.mean())
    return rates
