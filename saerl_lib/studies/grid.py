"""The study's grid: every arm on its matched seeds as independent runs, in parts, and what the finished ones say.

Seeds come first, arms second, so that a part that ends early holds whole seeds and its differences stay paired; a killed grid
goes on where it was. The stage `arm_pool` holds everything that any arm may read of the kept and of the unfiltered pool, some of
it asked of the base policy, and what preparing it cost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file, save_file
from sklearn.cluster import KMeans
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib.artifacts import ArtifactError, Stage, get_or_compute
from saerl_lib.config import PlanConfig, Profile, TrainConfig, sub_seed, to_dict
from saerl_lib.data.sample import Sample, load_split, write_samples
from saerl_lib.encode.store import load_split_features
from saerl_lib.plan.batch_plan import BatchPlan, make_pool, plan_of, write_plan
from saerl_lib.properties.quality import keep_top_k
from saerl_lib.train.arms import Arm, ArmError, ArmPool, ArmSetting, all_arms, find_arm, scaled
from saerl_lib.train.policy import DIFFICULTY_ATTEMPTS, angle_concentration, load_policy, pass_rates, policy_folder
from saerl_lib.train.run import DONE, Run, read_run
from saerl_lib.train.sampler import GroupSampler, encode_prompts, sample_groups
from saerl_lib.train.stages import jobs_home, matched_run, run_all

MOTIFS = 32
"""Groups of retained latents for the IRDS-style arm (not public; ours)."""
GREEDY = 1e-4
"""Temperature at which sampling is greedy but for exact ties."""


@torch.inference_mode()
def solution_shift(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample], train: TrainConfig, seed: int
) -> np.ndarray:
    """[s ; e - s] of one greedy rollout a sample, [N, 2 D], float32.

    s and e are the hidden states at its first and last token, averaged over layers (SHIFT).
    """
    prompts = [s.prompt for s in samples]
    rollouts = sample_groups(model, tokenizer, prompts, 1, train.max_completion_tokens, GREEDY, seed)
    out = np.empty((len(samples), 2 * model.config.hidden_size), dtype=np.float32)
    for i, (prompt, tokens) in enumerate(zip(encode_prompts(tokenizer, prompts), rollouts.ids, strict=True)):
        ids = torch.tensor([prompt + tokens])
        layers = model.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[1:]
        states = torch.stack([layer[0, [len(prompt), -1]] for layer in layers]).mean(dim=0)
        out[i] = torch.cat([states[0], states[1] - states[0]]).numpy()
    return out


def motif_activations(z: np.ndarray, motifs: int, seed: int) -> np.ndarray:
    """[N, motifs] mean activation of groups of latents; latents that fire on the same samples share a group.

    z [N, 4 S] is pooled; the four statistics of a latent are averaged, its profile over samples is scaled to norm 1.
    """
    latents = z.reshape(len(z), 4, -1).mean(axis=1)
    profiles = latents.T / np.maximum(np.linalg.norm(latents, axis=0)[:, None], 1e-12)
    groups = KMeans(min(motifs, len(profiles)), n_init=4, random_state=seed).fit(profiles).labels_
    return np.stack([latents[:, groups == g].mean(axis=1) for g in range(groups.max() + 1)], axis=1)


def base_table(scores: pd.DataFrame, samples: Sequence[Sample], alternatives: pd.DataFrame) -> pd.DataFrame:
    """The standard columns and those of the alternatives, one row a sample of the noisy pool."""
    labels = pd.DataFrame({"sample_id": [s.id for s in samples], "label": [s.difficulty for s in samples]})
    columns = ["sample_id", "cluster", "ranking", "raw", "length"]
    table = scores[columns].merge(labels, on="sample_id", validate="one_to_one")
    return table.merge(alternatives, on="sample_id", validate="one_to_one")


def unfiltered_rows(n: int, size: int, seed: int) -> np.ndarray:
    """`size` of n rows in ascending order, drawn without repetition."""
    return np.sort(np.random.default_rng(sub_seed(seed, "unfiltered")).choice(n, size, replace=False))


def _timed(costs: list[dict], item: str, rollouts: int, prompts: int, work: Callable[[], np.ndarray]) -> np.ndarray:
    started = time.perf_counter()
    found = work()
    costs.append({"item": item, "prompts": prompts, "rollouts": rollouts, "seconds": time.perf_counter() - started})
    return found


def arm_pool_stage(
    profile: Profile, world: Stage, features: Stage, difficulty: Stage, quality: Stage, alternatives: Stage
) -> Stage:
    """<pool>.parquet (samples), <pool>_table.parquet, features.safetensors (kept pool) and costs.parquet."""

    def compute(folder: Path) -> None:
        samples, z = load_split(world, "pool"), load_split_features(features, "pool").z
        scores = pd.read_parquet(difficulty.path("scores.parquet"))
        table = base_table(scores, samples, pd.read_parquet(alternatives.path("scores.parquet")))
        judged = pd.read_parquet(quality.path("kept.parquet"))
        keep, scored = judged["kept"].to_numpy(), judged["score"].to_numpy()
        rows = {
            "kept": np.flatnonzero(keep),
            "filtered": np.flatnonzero(keep_top_k(scored, judged["sample_id"].tolist(), int(keep.sum()))),
            "unfiltered": unfiltered_rows(len(samples), int(keep.sum()), profile.seed),
        }
        for name, chosen in rows.items():
            write_samples([samples[i] for i in chosen], folder / f"{name}.parquet")
        kept = [samples[i] for i in rows["kept"]]
        torch.set_num_threads(1)  # the rollouts would depend on the machine's number of cores
        sampler, train, costs = GroupSampler(*load_policy()), profile.train, list[dict]()
        n, seed = len(kept), sub_seed(profile.seed, "arm-pool")
        rollouts = DIFFICULTY_ATTEMPTS * n
        extra = {
            "pass_rate": _timed(costs, "rollouts_16", rollouts, n, lambda: pass_rates(sampler, kept, train, seed)),
            "angle_concentration": _timed(costs, "policy_forward", 0, n, lambda: angle_concentration(sampler, kept, train)),
        }
        model, tokenizer = sampler.model, sampler.tokenizer
        matrices = {
            "solution_shift": _timed(costs, "rollouts_1", n, n, lambda: solution_shift(model, tokenizer, kept, train, seed)),
            "motifs": motif_activations(z[rows["kept"]], MOTIFS, seed),
        }
        save_file({k: np.ascontiguousarray(v, dtype=np.float32) for k, v in matrices.items()}, folder / "features.safetensors")
        table.iloc[rows["kept"]].assign(**extra).to_parquet(folder / "kept_table.parquet", index=False)
        for name in ("filtered", "unfiltered"):
            table.iloc[rows[name]].to_parquet(folder / f"{name}_table.parquet", index=False)
        pd.DataFrame(costs).to_parquet(folder / "costs.parquet", index=False)

    config = {"train": [profile.train.max_completion_tokens, profile.train.temperature], "seed": profile.seed}
    config |= {"attempts": DIFFICULTY_ATTEMPTS, "pool": to_dict(profile.world)}
    inputs = (world, features, difficulty, quality, alternatives)
    return get_or_compute(profile, "arm_pool", config, compute, inputs)


def load_arm_pool(stage: Stage, name: str) -> ArmPool:
    """One pool of the stage; the feature matrices belong to the kept one."""
    table = pd.read_parquet(stage.path(f"{name}_table.parquet"))
    features = load_file(stage.path("features.safetensors")) if name == "kept" else {}
    return ArmPool(table, {k: v.astype(np.float64) for k, v in features.items()})


MAIN = "paper"
"""Group of arms that get the larger number of seeds."""

def spread(runs: Sequence[Run], backend: str) -> dict[str, str]:
    """Run what is unfinished on the workers of a joblib backend, such as "ray", one run a CPU; failures by name of the folder.

    The machines share the folders under the same paths. A run that was lost with its machine is resumed by the next call.
    """
    waiting = [run for run in runs if not run.finished]
    with joblib.parallel_config(backend, n_jobs=-1):
        found = joblib.Parallel()(joblib.delayed(run_all)([run], 1, True) for run in waiting)
    return {name: log for part in found for name, log in part.items()}


def run_name(arm: Arm, seed: int) -> str:
    """Name of a run and of its folder."""
    return f"{arm.name}-seed{seed}"


def grid(profile: Profile, main_seeds: int, arms: Sequence[Arm]) -> list[tuple[Arm, int]]:
    """(arm, matched seed), seed by seed; arms of the paper have `main_seeds`, all others `StudyConfig.other_seeds`."""
    count = {arm.name: main_seeds if arm.group == MAIN else profile.study.other_seeds for arm in arms}
    return [(arm, seed) for seed in range(max(count.values(), default=0)) for arm in arms if seed < count[arm.name]]


def arm_plan(arm: Arm, pool: ArmPool, config: PlanConfig, steps: int, seed: int) -> BatchPlan:
    """The arm's order as a plan of its own batch size, whole batches alone.

    Raises ArmError when the order names rows that the pool does not have or is shorter than the budget.
    """
    sized = scaled(config, arm.batch_factor) if arm.batch_factor > 1 else config
    setting = ArmSetting(sized, steps // arm.batch_factor, seed)
    found = arm.order(pool, setting)  # type: ignore[misc]
    if isinstance(found, BatchPlan):
        return found
    rows = np.asarray(found)
    b = sized.prompts_per_step
    wanted = min(steps * config.prompts_per_step, max(len(rows), len(pool.table))) // b * b
    if len(rows) < wanted or rows.min() < 0 or rows.max() >= len(pool.table):
        raise ArmError(f"arm {arm.name!r}: the order must hold {wanted} row numbers in 0..{len(pool.table) - 1}, got {len(rows)}")
    columns = (pool.column(name) for name in ("cluster", "ranking", "raw", "length"))
    return plan_of(make_pool(pool.ids, *columns), rows[:wanted].astype(np.int64), np.full(wanted, -1), arm.name, b)


def planned_run(profile: Profile, world: Stage, pools: Stage, arm: Arm, seed: int, home: Path, arms: Path | None = None) -> Run:
    """The run of an arm on a matched seed; a fixed order is written as a plan under `home`/plans."""
    plan, table = None, pools.path(f"{arm.pool}_table.parquet") if arm.policy is not None else None
    if arm.policy is None:
        matched = sub_seed(profile.seed, f"arm-order-{seed}") if arm.seeded else 0
        plan = home / "plans" / (f"{run_name(arm, seed)}.parquet" if arm.seeded else f"{arm.name}.parquet")
        plan.parent.mkdir(parents=True, exist_ok=True)
        write_plan(arm_plan(arm, load_arm_pool(pools, arm.pool), profile.plan, profile.steps, matched), plan)
    return matched_run(
        profile, world.folder, home, arm.name, seed, plan, table, pools.path(f"{arm.pool}.parquet"),
        arm.batch_factor * profile.plan.prompts_per_step, arm.train, policy_folder(arm.model),
        arms if arm.name not in all_arms() else None,
    )  # fmt: skip


def run_grid(
    profile: Profile, world: Stage, pools: Stage, cells: Sequence[tuple[Arm, int]], arms_file: Path | None = None,
    seconds: float | None = None,
) -> dict[str, str]:  # fmt: skip
    """Run what is unfinished of the grid; after `seconds` no further run is started. Returns failures, log by run."""
    home = jobs_home(profile)
    runs = [planned_run(profile, world, pools, arm, seed, home, arms_file) for arm, seed in cells]
    return run_all(runs, keep_going=True, seconds=seconds)


def results(folders: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """`evaluations`, `curve`, `budget` and `provenance` of finished runs, merged.

    The curve's share of groups without a gradient counts every generated group, those that dynamic sampling dropped too.
    Raises ArtifactError when two runs were made with different versions of the packages or learning rates.
    """
    made = pd.DataFrame([_provenance(f, json.loads((f / DONE).read_text(encoding="utf-8"))) for f in folders])
    refuse_mixed(made)
    evaluations = pd.concat([pd.read_parquet(f / "evaluations.parquet") for f in folders])
    tables = {"evaluations": evaluations, "curve": pd.concat([_curve(f) for f in folders])}
    return {**tables, "budget": pd.DataFrame([_budget(f) for f in folders]), "provenance": made}


def refuse_mixed(provenance: pd.DataFrame) -> None:
    """Raises ArtifactError when two runs were made with different versions of the packages or learning rates."""
    first = provenance.iloc[0]
    for what in ("versions", "learning_rate"):
        other = provenance[provenance[what] != first[what]]
        if len(other):
            raise ArtifactError(
                f"{other['run'].iloc[0]} was made with {what} {other[what].iloc[0]}, {first['run']} with {first[what]}: runs of "
                f"different {what.replace('_', ' ')} are not merged; make them again with one"
            )


def _curve(folder: Path) -> pd.DataFrame:
    """A run's curve with the share of groups without a gradient among all that were generated."""
    size = read_run(folder).train.rollouts_per_prompt
    rollouts = pd.read_parquet(folder / "rollouts.parquet", columns=["step", "round", "row", "reward"])
    groups = rollouts.groupby(["step", "round", rollouts["row"] // size])["reward"].nunique()
    share = (groups == 1).groupby("step").mean().rename("zero_variance_share")
    curve = pd.read_parquet(folder / "curve.parquet")
    return curve.drop(columns="zero_variance_share").merge(share, left_on="step", right_index=True)[list(curve.columns)]


def _provenance(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    run, made = read_run(folder), record["environment"]
    return {
        "run": folder.name, "arm": run.arm, "seed": run.seed, "config_hash": record["key"],
        "learning_rate": run.train.learning_rate, "commit": made["commit"], "cpu": made["processor"],
        "threads": made["threads"], "versions": " ".join(f"{k}={v}" for k, v in sorted(made["versions"].items())),
        "training_s": record["seconds"]["training"], "evaluation_s": record["seconds"]["evaluation"],
        "peak_memory_mb": made["peak_memory_mb"],
    }  # fmt: skip


def _budget(folder: Path) -> dict[str, Any]:
    """Prompts, rollouts and tokens that a run spent, by evaluation step where needed summed up."""
    columns = ["arm", "seed", "step", "sample_id", "used", "completion_tokens"]
    rollouts = pd.read_parquet(folder / "rollouts.parquet", columns=columns)
    group = rollouts.drop_duplicates(["step", "sample_id"])
    return {
        "arm": rollouts["arm"].iloc[0], "seed": rollouts["seed"].iloc[0], "updates": int(rollouts["step"].max()),
        "prompts": len(group), "distinct_prompts": rollouts["sample_id"].nunique(), "rollouts": len(rollouts),
        "rollouts_used": int(rollouts["used"].sum()), "tokens": int(rollouts["completion_tokens"].sum()), "counted": "run",
    }  # fmt: skip


def finished(profile: Profile, cells: Sequence[tuple[Arm, int]]) -> list[Path]:
    """Folders of the finished runs of these cells, each under the key it was last asked for."""
    folders = [jobs_home(profile) / run_name(arm, seed) for arm, seed in cells]
    return [folder for folder in folders if (folder / DONE).exists() and read_run(folder).finished]


def chosen_arms(names: Sequence[str], arms_file: Path | None = None) -> list[Arm]:
    """Arms by name; none named: all of them. Raises ArmError for an unknown one."""
    known = all_arms(arms_file)
    return [find_arm(name, arms_file) for name in names] if names else list(known.values())
