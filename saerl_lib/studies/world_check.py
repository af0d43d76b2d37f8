"""What the world is measured by before any SAERL arm trains, on seeds, pools and problems that no other run uses (ours).

- `world --check`: gates that need training runs, by orders that are not SAERL's: random, easy to hard and hard to easy by label.
- `world --rebuild`: weights and the mixture, whose cell weights are the linear program with the least total variation of the
  base pass rates from the published histogram.
- `seeds-needed`: the learning rate with the highest outcome of `grpo` alone, ties to the smaller, and the number of matched seeds
  by the paired t-test's sample size for `DETECTABLE_POINTS`.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
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
from saerl_lib.studies.grid import study_profile
from saerl_lib.train.policy import POLICIES, final_outcome, load_policy, policy_folder
from saerl_lib.train.run import Run
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

MIXTURE_SEED, GATE_SEED, PILOT_SEED = 90_001, 90_002, 90_004
"""Seeds of the three reserved draws of samples."""
PROMPTS_PER_CELL, ATTEMPTS = 24, 32
"""Behind the pass rates of a (family, level) cell of the mixture."""
LOWEST, HIGHEST = 0.4, 2.5
"""Bounds of a cell's weight, times its equal share."""
ORDERS = ("random", "ascending", "descending")
MATCHED_SEEDS = (100, 101)
"""Matched seeds of the gates' runs."""
TRANSFER_DOMAINS = ("Algebra", "Number theory")
"""Domains trained alone, fixed beforehand: the first two by name among those of exactly three families."""
TRANSFER_STEPS = 160
PROBLEMS_PER_DOMAIN, RESERVED_ATTEMPTS = 60, 8
PILOT_RATES = (2e-5, 4e-5, 8e-5, 1.6e-4)
"""Learning rates of the pilot, on `grpo` alone, doubled until the best lies inside (ours)."""
PILOT_SEEDS, GRID_SEEDS = (200, 201, 202), 2
"""Reserved matched seeds of the pilot; so many of them for each learning rate."""
DETECTABLE_POINTS = 1.0
"""Paired difference of the main arms that the study must be able to detect."""
MAIN_SEEDS = (8, 32)
"""Fewest and most matched seeds of the paper's arms; differences are paired over seeds."""


# What gates and pilot share: reserved samples, runs on them, paired differences.


def taken_prompts(profile: Profile) -> set[str]:
    """Normalised prompts of the profile's own world, which reserved samples must not repeat."""
    return {normalise(s.prompt) for split in draw_world(profile.world).values() for s in split}


def write_job(folder: Path, pool: Sequence[Sample], sets: Mapping[str, Sequence[Sample]]) -> None:
    """Samples of a training run as it reads them: pool.parquet and eval_<set>.parquet."""
    folder.mkdir()
    write_samples(pool, folder / "pool.parquet")
    for name, samples in sets.items():
        write_samples(samples, folder / f"eval_{name}.parquet")


def write_order(samples: Sequence[Sample], profile: Profile, order: str, seed: int, path: Path) -> None:
    """The plan of an order by the true label, in one cluster."""
    labels, n = np.array([s.difficulty for s in samples]), len(samples)
    ids = [s.id for s in samples]
    plan = build_plan(ids, np.zeros(n, int), labels, labels, np.ones(n), profile.plan, order=order, seed=seed, labels=labels)
    write_plan(plan, path)


def run_evaluations(runs: Sequence[Run]) -> pd.DataFrame:
    """Evaluations of runs, after running what is unfinished of them."""
    run_all(runs)
    return pd.concat([pd.read_parquet(run.folder / "evaluations.parquet") for run in runs])


def pooled_deviation(differences: pd.DataFrame) -> float:
    """Standard deviation over seeds (rows) around the mean of its column, pooled over the columns."""
    spread = (differences - differences.mean()).to_numpy()
    return float(np.sqrt((spread**2).sum() / (spread.size - spread.shape[1])))


def detectable(deviation: float, seeds: int) -> float:
    """Smallest difference that a paired t-test of `seeds` seeds detects with power 0.8 at alpha 0.05."""
    return float((student.ppf(0.975, seeds - 1) + student.ppf(0.8, seeds - 1)) * deviation / np.sqrt(seeds))


# Gates of training runs.


def reserved_world(profile: Profile) -> Stage:
    """Pools, plans and evaluation sets of the gates."""

    def compute(folder: Path) -> None:
        taken = taken_prompts(profile)
        sets = draw_eval_sets(dataclasses.replace(profile.world, seed=GATE_SEED), taken)
        own = {domain: tuple(n for n, family in FAMILIES.items() if family.path[0] == domain) for domain in ALL}
        for domain, families in own.items():
            weights = uniform_weights((2, 3, 4), families)
            sample = draw_split(f"domain-{domain}", PROBLEMS_PER_DOMAIN, weights, "target", GATE_SEED, taken)
            write_samples(sample, folder / f"domain-{domain}.parquet")
        pool = draw_split("pool", profile.pool_samples, target_weights(), "target", GATE_SEED, taken)
        write_job(folder / "orders", pool, sets)
        for order in ORDERS:
            for seed in MATCHED_SEEDS if order == "random" else MATCHED_SEEDS[:1]:
                write_order(pool, profile, order, sub_seed(GATE_SEED, f"order-{seed}"), folder / f"{order}-{seed}.parquet")
        for domain in TRANSFER_DOMAINS:
            count, weights = TRANSFER_STEPS * profile.plan.prompts_per_step, uniform_weights(families=own[domain])
            alone = draw_split(f"alone-{domain}", count, weights, "target", GATE_SEED, taken)
            write_job(folder / f"transfer-{domain}", alone, {name: samples[:2] for name, samples in sets.items()})
            write_order(alone, profile, "random", sub_seed(GATE_SEED, domain), folder / f"plan-{domain}.parquet")

    sizes = {"prompts_per_step": profile.plan.prompts_per_step, "pool": profile.pool_samples}
    config = {**to_dict(profile.world), **sizes, "seeds": MATCHED_SEEDS}
    return get_or_compute(profile, "reserved_world", config, compute)


def mean_accuracy(evaluations: pd.DataFrame, problems: int | None = None) -> pd.DataFrame:
    """[step x (arm, seed)] mean over sets of Avg@k in percent, on the first `problems` of each set or on all."""
    frame = evaluations.assign(rate=100 * evaluations["correct"] / evaluations["attempts"])
    if problems is not None:
        frame = frame.groupby(["arm", "seed", "step", "eval_set"]).head(problems)
    sets = frame.groupby(["arm", "seed", "step", "eval_set"])["rate"].mean()
    return sets.groupby(["step", "arm", "seed"]).mean().unstack(["arm", "seed"])


def order_gates(evaluations: pd.DataFrame, problems: int, seeds: int) -> dict[str, dict[str, Any]]:
    """Gates from the reserved runs of every order, for a study of `seeds` matched seeds.

    An effect is the largest difference between two orders, over what the study detects. Final accuracy: the full evaluation after
    the last step. Speed: the mean of the learning curve on the first `problems` of each set. Both average the sets' Avg@k.
    """
    curves = mean_accuracy(evaluations, problems)
    outcomes = {"sensitivity": mean_accuracy(evaluations).iloc[-1], "sensitivity of speed": curves.iloc[1:].mean()}
    gates: dict[str, dict[str, Any]] = {}
    for name, outcome in outcomes.items():
        table = outcome.unstack("arm")
        pairs = [(a, b) for i, a in enumerate(ORDERS) for b in ORDERS[i + 1 :]]
        differences = pd.DataFrame({f"{a} - {b}": table[a] - table[b] for a, b in pairs})
        effect, least = float(differences.mean().abs().max()), detectable(pooled_deviation(differences), seeds)
        means = ", ".join(f"{order} {table[order].mean():.2f}" for order in ORDERS)
        note = f"means in percent: {means}; largest difference {effect:.2f}, detectable {least:.2f} points"
        gate = {"value": effect / least, "n": curves.shape[1], "note": note}
        gates[f"{name}: order effect / minimum detectable effect"] = gate
    plain = curves["random"]
    start = len(plain) - 1 - (len(plain) - 1) // 4
    gains = plain.iloc[-3:].mean() - plain.iloc[start - 2 : start + 1].mean()
    ends = f"random order, {plain.iloc[0].mean():.1f} % at the start, {plain.iloc[-3:].mean().mean():.1f} % at the end"
    note = f"{ends}; by seed {', '.join(f'{gain:+.2f}' for gain in gains)}"
    gates["grpo: gain in the last quarter, points"] = {"value": float(gains.mean()), "n": plain.shape[1], "note": note}
    return gates


def transfer_gate(profile: Profile, world: Stage, home: Path) -> dict[str, Any]:
    """Largest ratio, over the domains trained alone, of the other domains' mean gain to the own gain."""
    quiet = dataclasses.replace(profile.train, eval_every_steps=10_000, eval_samples_full=1)
    changed = dataclasses.replace(profile, train=quiet)
    runs = []
    for domain in TRANSFER_DOMAINS:
        samples, plan = world.path(f"transfer-{domain}"), world.path(f"plan-{domain}.parquet")
        runs.append(matched_run(changed, samples, home, f"only-{domain}", MATCHED_SEEDS[0], plan))
    run_all(runs)
    model, tokenizer = load_policy()
    before = _domain_rates(profile, world, model, tokenizer)
    ratios, notes = [], []
    for domain, run in zip(TRANSFER_DOMAINS, runs, strict=True):
        trained = LlamaForCausalLM.from_pretrained(run.folder / "final", dtype=torch.float32, local_files_only=True).eval()
        after = _domain_rates(profile, world, trained, tokenizer)
        gains = {name: after[name] - before[name] for name in ALL}
        others = float(np.mean([gains[name] for name in ALL if name != domain]))
        ratios.append(others / gains[domain] if gains[domain] > 0 else float(np.finfo(np.float32).max))
        notes.append(f"{domain} alone: own {100 * gains[domain]:+.1f} points, others {100 * others:+.1f}")
    return {"value": max(ratios), "n": len(runs), "note": "; ".join(notes)}


def _domain_rates(profile: Profile, world: Stage, model: Any, tokenizer: Any) -> dict[str, float]:
    train, rates = profile.train, {}
    for domain in ALL:
        samples, seed = read_samples(world.path(f"domain-{domain}.parquet")), sub_seed(GATE_SEED, domain)
        settings = (RESERVED_ATTEMPTS, train.max_completion_tokens, train.temperature, seed)
        rates[domain] = float(correct_attempts(model, tokenizer, samples, *settings).mean())
    return rates


def check_world(profile: Profile) -> bool:
    """Measure all gates, store those of training runs, print the table; True when every gate is met."""
    reserved, home = reserved_world(profile), paths.profile_dir(profile.name) / "jobs_reserved"
    runs = []
    for seed in MATCHED_SEEDS:
        for order in ORDERS:
            plan = reserved.path(f"{order}-{seed if order == 'random' else MATCHED_SEEDS[0]}.parquet")
            runs.append(matched_run(profile, reserved.path("orders"), home, order, seed, plan))
    gates = order_gates(run_evaluations(runs), profile.world.eval_problems_small, profile.train.seeds)
    gates["transfer: other domains' gain / own gain"] = transfer_gate(profile, reserved, home)
    record = {"settings": trained_settings(), "world_version": WORLD_VERSION, "provenance": provenance(), "gates": gates}
    write_json(TRAINED_RECORD, record)
    world = world_stage(profile)
    table = gate_table(world, base_rates_stage(profile, world))
    folder = paths.profile_dir(profile.name) / "world_check"
    write_csv(table, "world_gates", folder)
    draw("world_gates", folder, folder)
    print(table[["gate", "value", "low", "high", "met", "n"]].to_string(index=False))
    print(f"table and figure: {folder}")
    return bool(table["met"].all())


# What the world ships.


def fit_weights(histograms: Mapping[Cell, np.ndarray], reference: np.ndarray) -> dict[Cell, float]:
    """Cell weights, summing to one, whose mixed histogram has the least total variation from `reference`.

    Raises ValueError when no weights lie within their bounds.
    """
    table = np.stack(list(histograms.values()))
    n, bins = table.shape
    slack = -np.eye(bins)
    solution = linprog(
        np.concatenate([np.zeros(n), np.ones(bins)]),
        A_ub=np.vstack([np.hstack([table.T, slack]), np.hstack([-table.T, slack])]), b_ub=np.concatenate([reference, -reference]),
        A_eq=np.concatenate([np.ones(n), np.zeros(bins)])[None], b_eq=[1.0],
        bounds=[(LOWEST / n, HIGHEST / n)] * n + [(0, None)] * bins, method="highs",
    )  # fmt: skip
    if not solution.success:
        raise ValueError(f"no weights within {LOWEST} to {HIGHEST} times the equal share: {solution.message}")
    return dict(zip(histograms, solution.x[:n].tolist(), strict=True))


def rebuild_mixture(train: TrainConfig) -> float:
    """Fit the weights to the pass rates of every (family, level) cell and store them; returns the total variation."""
    rng = random.Random(sub_seed(MIXTURE_SEED, "pilot"))
    cells = [(name, level) for name in FAMILIES for level in LEVELS]
    samples = [draw_sample(*cell, "target", rng, f"pilot-{i}") for cell in cells for i in range(PROMPTS_PER_CELL)]
    with tqdm(total=len(samples) * ATTEMPTS, desc="pilot attempts", file=sys.stdout, mininterval=10) as bar:
        settings = (ATTEMPTS, train.max_completion_tokens, train.temperature, MIXTURE_SEED, bar.update)
        rates = correct_attempts(*load_policy(), samples, *settings).mean(axis=1).reshape(len(cells), PROMPTS_PER_CELL)
    histograms = {cell: histogram(row) for cell, row in zip(cells, rates, strict=True)}
    reference = np.array(REFERENCE_SHARES) / sum(REFERENCE_SHARES)
    weights = fit_weights(histograms, reference)
    distance = float(0.5 * np.abs(sum(weights[cell] * histograms[cell] for cell in histograms) - reference).sum())
    table = {name: [round(weights[name, level], 6) for level in LEVELS] for name in FAMILIES}
    record = {"seed": MIXTURE_SEED, "pilot_total_variation": round(distance, 4), "weights": table}
    MIXTURE_PATH.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return distance


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
    where, profile = pick_device(device or "cpu"), get_profile("laptop")
    for part in rebuild or (() if check else WORLD_PARTS):
        rebuild_part(part, profile, where)
    return 0 if not check or check_world(profile) else 1


# The pilot of the study.


def pilot_world(profile: Profile) -> Stage:
    """Reserved pool, evaluation sets and plans: a shuffle a pilot seed, and easy to hard by label."""

    def compute(folder: Path) -> None:
        taken = taken_prompts(profile)
        sets = draw_eval_sets(dataclasses.replace(profile.world, seed=PILOT_SEED), taken)
        pool = draw_split("pool", profile.pool_samples, target_weights(), "target", PILOT_SEED, taken)
        write_job(folder / "samples", pool, sets)
        for name, order, seed in [*((f"random-{s}", "random", s) for s in PILOT_SEEDS), ("ascending", "ascending", 0)]:
            write_order(pool, profile, order, sub_seed(PILOT_SEED, f"order-{seed}"), folder / f"{name}.parquet")

    config = {**to_dict(profile.world), "pool": profile.pool_samples, "b": profile.plan.prompts_per_step}
    return get_or_compute(profile, "pilot_world", config, compute)


def pilot_outcomes(profile: Profile, world: Stage, rate: float, arms: Sequence[str], seeds: Sequence[int]) -> pd.DataFrame:
    """Rows arm, seed, outcome (percent) of arms among `grpo`, `dapo` and `diff` at one learning rate."""
    changed = dataclasses.replace(profile, train=dataclasses.replace(profile.train, learning_rate=rate))
    home, runs = paths.profile_dir(profile.name) / "jobs_pilot" / f"{rate:g}", []
    for seed in seeds:
        for arm in arms:
            plan = world.path("ascending.parquet" if arm == "diff" else f"random-{seed}.parquet")
            runs.append(matched_run(changed, world.path("samples"), home, arm, seed, plan, dapo=arm == "dapo"))
    return final_outcome(run_evaluations(runs)).assign(learning_rate=rate)


def chosen_rate(table: pd.DataFrame) -> float:
    """The learning rate with the highest mean outcome, the smaller of equals."""
    means = table.groupby("learning_rate")["outcome"].mean()
    return float(means[means == means.max()].index.min())


def paired_deviation(table: pd.DataFrame) -> float:
    """Standard deviation over seeds of the difference to `grpo`, pooled over the other arms."""
    wide = table.pivot(index="seed", columns="arm", values="outcome")
    return pooled_deviation(wide.drop(columns="grpo").sub(wide["grpo"], axis=0))


def seeds_needed(deviation: float) -> int:
    """Fewest seeds within `MAIN_SEEDS` that detect `DETECTABLE_POINTS`.

    >>> seeds_needed(1.0), seeds_needed(0.1), seeds_needed(9.0)
    (10, 8, 32)
    """
    lowest, highest = MAIN_SEEDS
    return next((n for n in range(lowest, highest) if detectable(deviation, n) <= DETECTABLE_POINTS), highest)


def run_seeds_needed(profile: str) -> int:
    """The pilot: learning rate on `grpo` alone, then the number of seeds; writes study_pilot.csv."""
    chosen = study_profile(profile)
    world = pilot_world(chosen)
    rates = pd.concat([pilot_outcomes(chosen, world, rate, ("grpo",), PILOT_SEEDS[:GRID_SEEDS]) for rate in PILOT_RATES])
    rate = chosen_rate(rates)
    runs = pilot_outcomes(chosen, world, rate, ("grpo", "dapo", "diff"), PILOT_SEEDS)
    deviation = paired_deviation(runs)
    columns = ["part", "arm", "learning_rate", "seed", "outcome"]
    table = pd.concat([rates.assign(part="learning rate"), runs.assign(part="seeds")])[columns]
    write_csv(table, "study_pilot", paths.figure_data_dir(chosen.name))
    print(rates.groupby("learning_rate")["outcome"].mean().round(2).to_string())
    print(f"learning rate {rate:g}; paired standard deviation {deviation:.2f} points; seeds needed: {seeds_needed(deviation)}")
    return 0
