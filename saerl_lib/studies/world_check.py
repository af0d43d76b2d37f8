"""Fits the target source's cell weights so that base pass rates follow the published histogram.

Done once, on prompts from a reserved seed that no split uses, and frozen in `data/mixture.json`. The weights are a
linear program: least total variation, every cell between `LOWEST` and `HIGHEST` times its equal share.

Gates that need training runs: transfer between domains, still rising, sensitivity to order.

All on reserved seeds, pools and evaluation problems that no other run uses, and with orders that are not SAERL's:
random, easy to hard and hard to easy by the true label.

The pilot: the learning rate, chosen on `grpo` alone, and the number of matched seeds, both on reserved seeds.

The pool, the matched seeds and the evaluation problems are used by nothing else. Rule for the learning rate: the highest
outcome (mean of the last three evaluations) of `grpo` on the first `GRID_SEEDS` pilot seeds; ties go to the smaller.
Rule for the seeds: the standard deviation of the paired difference to `grpo`, pooled over the pilot's other arms, put
into the paired t-test's sample size for `DETECTABLE_POINTS`, within the bounds of `MAIN_SEEDS`.

`python -m saerl_lib world`: measure every gate of the world, or rebuild what it ships.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.stats import t as student
from tqdm import tqdm
from transformers import LlamaForCausalLM

from saerl_lib import paths
from saerl_lib.artifacts import Stage, get_or_compute, provenance, write_json
from saerl_lib.config import WORLD_PARTS, WORLD_VERSION, Profile, TrainConfig, get_profile, sub_seed, to_dict
from saerl_lib.data.sample import Sample, normalise, read_samples, write_samples
from saerl_lib.encode.models import pick_device
from saerl_lib.plan.batch_plan import write_plan
from saerl_lib.plan.orders import build_plan
from saerl_lib.report.figures import draw
from saerl_lib.report.tables import write_csv
from saerl_lib.train.policy import POLICIES, final_outcome, load_policy, policy_folder
from saerl_lib.train.sampler import correct_attempts
from saerl_lib.train.stages import matched_run, run_all
from saerl_lib.world.gates import REFERENCE_SHARES, TRAINED_RECORD, base_rates_stage, gate_table, histogram, trained_settings
from saerl_lib.world.problems import FAMILIES, LEVELS
from saerl_lib.world.sources import (
    ALL,
    MIXTURE_PATH,
    Cell,
    draw_eval_sets,
    draw_sample,
    draw_split,
    draw_world,
    rebuild_policy,
    target_weights,
    uniform_weights,
    world_stage,
)

RESERVED_SEED = 90_001
PROMPTS_PER_CELL, ATTEMPTS = 24, 32
LOWEST, HIGHEST = 0.4, 2.5


def pilot_histograms(train: TrainConfig) -> dict[Cell, NDArray[np.float64]]:
    """Pass-rate histogram of every (family, level) cell, PROMPTS_PER_CELL x ATTEMPTS, in target wording."""
    model, tokenizer = load_policy()
    rng = random.Random(sub_seed(RESERVED_SEED, "pilot"))
    cells = [(name, level) for name in FAMILIES for level in LEVELS]
    samples = [draw_sample(*cell, "target", rng, f"pilot-{i}") for cell in cells for i in range(PROMPTS_PER_CELL)]
    with tqdm(total=len(samples) * ATTEMPTS, desc="pilot attempts", file=sys.stdout, mininterval=10) as bar:
        marks = correct_attempts(
            model, tokenizer, samples, ATTEMPTS, train.max_completion_tokens, train.temperature, RESERVED_SEED, bar.update
        )
    rates = marks.mean(axis=1).reshape(len(cells), PROMPTS_PER_CELL)
    return {cell: histogram(row) for cell, row in zip(cells, rates, strict=True)}


def fit_weights(histograms: Mapping[Cell, NDArray[np.float64]], reference: NDArray[np.float64]) -> dict[Cell, float]:
    """Cell weights, summing to one, whose mixed histogram has the least total variation from `reference`."""
    cells = list(histograms)
    table = np.stack([histograms[cell] for cell in cells])
    n, bins = table.shape
    cost = np.concatenate([np.zeros(n), np.ones(bins)])
    above = np.hstack([table.T, -np.eye(bins)])
    below = np.hstack([-table.T, -np.eye(bins)])
    bounds = [(LOWEST / n, HIGHEST / n)] * n + [(0, None)] * bins
    solution = linprog(
        cost,
        A_ub=np.vstack([above, below]),
        b_ub=np.concatenate([reference, -reference]),
        A_eq=np.concatenate([np.ones(n), np.zeros(bins)])[None],
        b_eq=[1.0],
        bounds=bounds,
        method="highs",
    )
    if not solution.success:
        raise ValueError(f"no weights within {LOWEST} to {HIGHEST} times the equal share: {solution.message}")
    return dict(zip(cells, solution.x[:n].tolist(), strict=True))


def rebuild_mixture(train: TrainConfig) -> float:
    """Fit and store the weights; returns the total variation on the pilot."""
    histograms = pilot_histograms(train)
    reference = np.array(REFERENCE_SHARES) / sum(REFERENCE_SHARES)
    weights = fit_weights(histograms, reference)
    mixed = sum(weights[cell] * histograms[cell] for cell in histograms)
    table = {name: [round(weights[name, level], 6) for level in LEVELS] for name in FAMILIES}
    distance = float(0.5 * np.abs(mixed - reference).sum())
    record = {"seed": RESERVED_SEED, "pilot_total_variation": round(distance, 4), "weights": table}
    MIXTURE_PATH.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return distance


GATE_SEED = 90_002
MATCHED_SEEDS = (100, 101)
ORDERS = ("random", "ascending", "descending")
TRANSFER_DOMAINS = ("Algebra", "Number theory")
"""Domains trained alone, fixed beforehand: the first two by name among those of exactly three families."""
TRANSFER_STEPS = 160
PROBLEMS_PER_DOMAIN, RESERVED_ATTEMPTS = 60, 8


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
        world = dataclasses.replace(profile.world, seed=GATE_SEED)
        sets = draw_eval_sets(world, taken)
        for domain in ALL:
            families = tuple(name for name, family in FAMILIES.items() if family.path[0] == domain)
            sample = draw_split(
                f"domain-{domain}", PROBLEMS_PER_DOMAIN, uniform_weights((2, 3, 4), families), "target", GATE_SEED, taken
            )
            write_samples(sample, folder / f"domain-{domain}.parquet")
        pool = draw_split("pool", profile.pool_samples, target_weights(), "target", GATE_SEED, taken)
        (folder / "orders").mkdir()
        write_samples(pool, folder / "orders" / "pool.parquet")
        for order in ORDERS:
            for seed in MATCHED_SEEDS if order == "random" else MATCHED_SEEDS[:1]:
                _write_plan(pool, profile, order, sub_seed(GATE_SEED, f"order-{seed}"), folder / f"{order}-{seed}.parquet")
        for domain in TRANSFER_DOMAINS:
            families = tuple(name for name, family in FAMILIES.items() if family.path[0] == domain)
            count = TRANSFER_STEPS * profile.plan.prompts_per_step
            alone = draw_split(f"alone-{domain}", count, uniform_weights(families=families), "target", GATE_SEED, taken)
            home = folder / f"transfer-{domain}"
            home.mkdir()
            write_samples(alone, home / "pool.parquet")
            _write_plan(alone, profile, "random", sub_seed(GATE_SEED, domain), folder / f"plan-{domain}.parquet")
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
            RESERVED_ATTEMPTS,
            profile.train.max_completion_tokens,
            profile.train.temperature,
            sub_seed(GATE_SEED, domain),
        )
        rates[domain] = float(marks.mean())
    return rates


PILOT_RESERVED_SEED = 90_004
POWER, ALPHA = 0.8, 0.05
PILOT_RATES = (2e-5, 4e-5, 8e-5, 1.6e-4)
"""Learning rates of the pilot, on `grpo` alone, doubled until the best lies inside (ours)."""
PILOT_SEEDS, GRID_SEEDS = (200, 201, 202), 2
"""Reserved matched seeds of the pilot, its pool and problems reserved too; so many of them for each learning rate."""
DETECTABLE_POINTS = 1.0
"""Paired difference of the main arms that the study must be able to detect."""
MAIN_SEEDS = (8, 32)
"""Fewest and most matched seeds of the paper's arms; differences are paired over seeds."""


def pilot_world(profile: Profile) -> Stage:
    """Reserved pool, evaluation sets and plans: a shuffle a pilot seed, and easy to hard by label."""

    def compute(folder: Path) -> None:
        taken = {normalise(s.prompt) for split in draw_world(profile.world).values() for s in split}
        sets = draw_eval_sets(dataclasses.replace(profile.world, seed=PILOT_RESERVED_SEED), taken)
        pool = draw_split("pool", profile.pool_samples, target_weights(), "target", PILOT_RESERVED_SEED, taken)
        (folder / "samples").mkdir()
        write_samples(pool, folder / "samples" / "pool.parquet")
        for name, samples in sets.items():
            write_samples(samples, folder / "samples" / f"eval_{name}.parquet")
        for seed in PILOT_SEEDS:
            _plan(pool, profile, "random", seed, folder / f"random-{seed}.parquet")
        _plan(pool, profile, "ascending", 0, folder / "ascending.parquet")

    config = {**to_dict(profile.world), "pool": profile.pool_samples, "b": profile.plan.prompts_per_step}
    return get_or_compute(profile, "pilot_world", config, compute)


def _plan(pool: Sequence[Sample], profile: Profile, order: str, seed: int, path: Path) -> None:
    labels = np.array([s.difficulty for s in pool])
    n, ids = len(pool), [s.id for s in pool]
    shuffle = sub_seed(PILOT_RESERVED_SEED, f"order-{seed}")
    plan = build_plan(ids, np.zeros(n, int), labels, labels, np.ones(n), profile.plan, order=order, seed=shuffle, labels=labels)
    write_plan(plan, path)


def _run(profile: Profile, world: Stage, arms: Sequence[tuple[str, int, Path]], rate: float) -> pd.DataFrame:
    """Outcome of `arms`, (name, seed, plan), by arm and seed at one learning rate."""
    changed = dataclasses.replace(profile, train=dataclasses.replace(profile.train, learning_rate=rate))
    home = paths.profile_dir(profile.name) / "jobs_pilot" / f"{rate:g}"
    runs = [matched_run(changed, world.path("samples"), home, arm, seed, plan, dapo=arm == "dapo") for arm, seed, plan in arms]
    run_all(runs)
    return final_outcome(pd.concat([pd.read_parquet(run.folder / "evaluations.parquet") for run in runs]))


def learning_rate_pilot(profile: Profile, world: Stage) -> pd.DataFrame:
    """Rows learning_rate, seed, outcome (percent) of `grpo`."""
    rows = []
    for rate in PILOT_RATES:
        seeds = PILOT_SEEDS[:GRID_SEEDS]
        runs = [("grpo", seed, world.path(f"random-{seed}.parquet")) for seed in seeds]
        rows.append(_run(profile, world, runs, rate).assign(learning_rate=rate))
    return pd.concat(rows)[["learning_rate", "seed", "outcome"]]


def chosen_rate(table: pd.DataFrame) -> float:
    """The learning rate with the highest mean outcome, the smaller of equals."""
    means = table.groupby("learning_rate")["outcome"].mean()
    return float(means[means == means.max()].index.min())


def seeds_pilot(profile: Profile, world: Stage, rate: float) -> pd.DataFrame:
    """Rows arm, seed, outcome (percent) of `grpo`, `dapo` and `diff` on every pilot seed."""
    runs = []
    for seed in PILOT_SEEDS:
        shuffled = world.path(f"random-{seed}.parquet")
        runs += [("grpo", seed, shuffled), ("dapo", seed, shuffled), ("diff", seed, world.path("ascending.parquet"))]
    return _run(profile, world, runs, rate)


def paired_deviation(table: pd.DataFrame, baseline: str = "grpo") -> float:
    """Standard deviation over seeds of the difference to `baseline`, pooled over the other arms."""
    wide = table.pivot(index="seed", columns="arm", values="outcome")
    differences = wide.drop(columns=baseline).sub(wide[baseline], axis=0)
    spread = (differences - differences.mean()).to_numpy()
    return float(math.sqrt((spread**2).sum() / (spread.size - spread.shape[1])))


def seeds_needed(deviation: float) -> int:
    """Fewest seeds whose paired t-test detects `DETECTABLE_POINTS` with power 0.8 at alpha 0.05, within `MAIN_SEEDS`.

    >>> seeds_needed(1.0), seeds_needed(0.1), seeds_needed(9.0)
    (10, 8, 32)
    """
    lowest, highest = MAIN_SEEDS
    for seeds in range(lowest, highest):
        quantiles = student.ppf(1 - ALPHA / 2, seeds - 1) + student.ppf(POWER, seeds - 1)
        if quantiles * deviation / math.sqrt(seeds) <= DETECTABLE_POINTS:
            return seeds
    return highest


def check_world(profile: Profile) -> bool:
    """Measure all gates, store those of training runs, print the table; True when every gate is met."""
    reserved = reserved_world(profile)
    evaluations = order_evaluations(profile, reserved)
    gates = order_gates(evaluations, profile.world.eval_problems_small, profile.train.seeds)
    gates["transfer: other domains' gain / own gain"] = transfer_gate(profile, reserved)
    write_json(
        TRAINED_RECORD,
        {"settings": trained_settings(), "world_version": WORLD_VERSION, "provenance": provenance(), "gates": gates},
    )
    world = world_stage(profile)
    table = gate_table(profile, world, base_rates_stage(profile, world))
    folder = paths.profile_dir(profile.name) / "world_check"
    write_csv(table, "world_gates", folder)
    draw("world_gates", folder, folder)
    print(table[["gate", "value", "low", "high", "met", "n"]].to_string(index=False))
    print(f"table and figure: {folder}")
    return bool(table["met"].all())


def rebuild_part(part: str, profile: Profile, device: torch.device) -> None:
    """One of `WORLD_PARTS`, from scratch, in place; weights are trained on `device` and get provenance.json beside them."""

    def report(step: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"step {step}: {loss:.4f} nats a token", flush=True)

    if part == "mixture":
        print(f"mixture: total variation {rebuild_mixture(profile.train):.4f} on the pilot")
        return
    print(part)
    rebuild_policy(policy_folder(part), report=report, config=POLICIES[part], device=device)
    on = {} if device.type == "cpu" else {"device": torch.cuda.get_device_name(device)}
    command = f"python -m saerl_lib world --rebuild {part}" + (f" --device {device.type}" if on else "")
    write_json(paths.WEIGHTS / part / "provenance.json", {**provenance(), **on, "command": command})


def run_world(check: bool, rebuild: Sequence[str] | None, device: str | None = None) -> int:
    """Entry of the command; exit code 1 when a gate is missed.

    `rebuild` names some of `WORLD_PARTS`, all of them when it is empty. Raises ValueError for a device that is not there
    and for one given with `check`: gates and mixture are measured on the CPU.
    """
    if check == (rebuild is not None):
        raise ValueError("world takes one of --check and --rebuild [PART ...]")
    if check and device:
        raise ValueError("world --check has no --device: gates are measured on the CPU")
    where = pick_device(device or "cpu")
    profile = get_profile("laptop")
    for part in rebuild or (() if check else WORLD_PARTS):
        rebuild_part(part, profile, where)
    return 0 if not check or check_world(profile) else 1
