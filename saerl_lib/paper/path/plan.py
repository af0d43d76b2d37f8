"""Step `plan`, second half: the order of every arm and seed, the samples beside it, and the exports for other trainers.

Samples whose prompt is too long for the policy (paper, Table 9: 1,024 tokens), and those that fill no whole batch, are left out
and listed. SAERL's plan is the same for all seeds. That of an arm which chooses as it learns only names its samples, in a
random order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from saerl_lib.artifacts import Stage
from saerl_lib.config import PlanConfig, sub_seed
from saerl_lib.data.sample import DataError, Sample, normalise, write_samples
from saerl_lib.export.samples import open_export
from saerl_lib.export.targets import export_plan
from saerl_lib.own.arrange import TOLERANCE, whole_batches
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.path.data import group
from saerl_lib.paper.path.fit import POOL
from saerl_lib.paper.path.home import Home
from saerl_lib.paper.path.places import model_folder, model_identity, policy_model
from saerl_lib.paper.replacements import ORDERS, SELECTORS
from saerl_lib.plan.batch_plan import write_plan
from saerl_lib.plan.orders import build_plan
from saerl_lib.train.sampler import prompt_lengths


def plans_stage(home: Home, data: Stage, scores: Stage) -> Stage:
    """<arm>-seed<k>.parquet, samples.parquet, exports/<trainer>/<arm>-seed<k>/ for arms with an order, and left_out.csv.

    Raises DataError when less than a batch is left, PlanError when an arm needs labels that are not there.
    """
    config, model = home.config, policy_model(home.config)
    settings = {
        "arms": list(config.arms), "seeds": config.seeds, "seed": config.seed, "exports": list(config.exports),
        "chat": config.chat, "plan": dataclasses.asdict(plan_settings(config)), "tolerance": TOLERANCE,
        "rollouts": config.rollouts_per_prompt,
        "max_prompt": config.max_prompt_tokens, "policy": model_identity(model),
    }  # fmt: skip

    def compute(folder: Path) -> None:
        tokenizer_folder = model_folder(model, "--policy")
        samples = {s.id: s for name in POOL for s in group(data, name)}
        table = pd.read_parquet(scores.path("scores.parquet"))
        pool = table[table["planned"]].reset_index(drop=True)
        chosen = [samples[name] for name in pool["sample_id"]]
        pool = pool.assign(prompt_tokens=prompt_lengths(chosen, tokenizer_folder, config.chat))
        reason = left_out(pool, chosen, config)
        rest = pd.DataFrame({"sample_id": pool["sample_id"], "reason": reason})[reason != ""]
        rest.to_csv(folder / "left_out.csv", index=False, lineterminator="\n")
        planned = pool[reason == ""].reset_index(drop=True)
        write_samples([samples[name] for name in planned["sample_id"]], folder / "samples.parquet")
        for arm in config.arms:
            for seed in range(config.seeds):
                _write(folder, arm, seed, planned, config)

    return home.stage("plan", "plans", settings, compute, (data, scores))


def plan_settings(config: PaperConfig, deviation: float | None = None) -> PlanConfig:
    """What decides an order; the tolerance of the tail swap is a share of the scores' standard deviation, where that is known."""
    found = PlanConfig(prompts_per_step=config.prompts_per_step, swapped_per_batch=config.swapped_per_batch)
    return found if deviation is None else dataclasses.replace(found, difficulty_tolerance=TOLERANCE * deviation)


def plan_name(arm: str, seed: int) -> str:
    """File of a plan without its suffix."""
    return f"{arm}-seed{seed}"


def left_out(pool: pd.DataFrame, samples: Sequence[Sample], config: PaperConfig) -> np.ndarray:
    """Why a sample of the pool is not planned, str [N], '' when it is. Raises DataError when less than a batch is left."""
    b, reason = config.prompts_per_step, np.full(len(pool), "", dtype=object)
    long = (pool["prompt_tokens"] > config.max_prompt_tokens).to_numpy()
    reason[long] = f"prompt above {config.max_prompt_tokens} tokens"
    rows = np.flatnonzero(~long)
    if len(rows) < b:
        raise DataError(f"{len(rows)} samples are left to plan, less than a batch of {b}: lower --prompts-per-step")
    full = whole_batches([samples[i].id for i in rows], [normalise(samples[i].prompt) for i in rows], b)
    reason[rows[~full]] = f"fills no whole batch of {b}"
    return reason


def _write(folder: Path, arm: str, seed: int, pool: pd.DataFrame, config: PaperConfig) -> None:
    settings = plan_settings(config, float(pool["ranking"].std(ddof=0)))
    arrays = (pool[name].to_numpy() for name in ("cluster", "ranking", "raw", "tokens"))
    plan = build_plan(
        pool["sample_id"].tolist(), *arrays, settings, order=ORDERS.get(arm, "random"),
        seed=sub_seed(config.seed, f"random-order-{seed}"), labels=pool["label"].to_numpy(),
    )  # fmt: skip
    name = plan_name(arm, seed)
    path = folder / f"{name}.parquet"
    write_plan(plan, path)
    export = open_export(path, folder / "samples.parquet", config.rollouts_per_prompt)
    for target in config.exports if arm not in SELECTORS else ():
        export_plan(export, target, folder / "exports" / target / name)
