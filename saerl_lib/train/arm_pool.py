"""Stage `arm_pool`: everything that any arm may read of the kept and of the unfiltered pool, and what preparing it cost.

Some arms ask something of the base policy before training: pass rates, angle concentration, the shift over a solution. What that
costs in rollouts and tokens is reported for the arm.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file, save_file
from sklearn.cluster import KMeans
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, TrainConfig, sub_seed, to_dict
from saerl_lib.data.sample import Sample, load_split, write_samples
from saerl_lib.encode.features import load_split_features
from saerl_lib.train.arms import ArmPool
from saerl_lib.train.policy import load_policy
from saerl_lib.train.sampler import correct_attempts, encode_prompts, sample_groups

MOTIFS = 32
"""Groups of retained latents for the IRDS-style arm (not public; ours)."""
GREEDY = 1e-4
"""Temperature at which sampling is greedy but for exact ties."""


def pass_rates(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample], attempts: int, train: TrainConfig,
    seed: int,
) -> np.ndarray:  # fmt: skip
    """Share of right answers among `attempts` of each sample, [N]."""
    with tqdm(total=len(samples) * attempts, desc="pass rates", file=sys.stdout, mininterval=10) as bar:
        marks = correct_attempts(
            model, tokenizer, samples, attempts, train.max_completion_tokens, train.temperature, seed, bar.update
        )
    return marks.mean(axis=1)


@torch.inference_mode()
def angle_concentration(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample]
) -> np.ndarray:
    """Mean cosine similarity between the last-layer states of the prompt's tokens, [N] (GAINRL)."""
    out = np.empty(len(samples))
    for i, tokens in enumerate(encode_prompts(tokenizer, [s.prompt for s in samples])):
        states = model.model(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]
        states = states / states.norm(dim=1, keepdim=True)
        out[i] = float((states @ states.T).mean())
    return out


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
        keep = pd.read_parquet(quality.path("kept.parquet"))["kept"].to_numpy()
        rows = {
            "kept": np.flatnonzero(keep),
            "unfiltered": unfiltered_rows(len(samples), int(keep.sum()), profile.seed),
        }
        for name, chosen in rows.items():
            write_samples([samples[i] for i in chosen], folder / f"{name}.parquet")
        kept = [samples[i] for i in rows["kept"]]
        torch.set_num_threads(1)  # the rollouts would depend on the machine's number of cores
        model, tokenizer = load_policy()
        train, attempts, costs = profile.train, profile.study.difficulty_attempts, list[dict]()
        n, seed = len(kept), sub_seed(profile.seed, "arm-pool")
        extra = {
            "pass_rate": _timed(costs, f"rollouts_{attempts}", n * attempts, n,
                                lambda: pass_rates(model, tokenizer, kept, attempts, train, seed)),
            "angle_concentration": _timed(costs, "policy_forward", 0, n, lambda: angle_concentration(model, tokenizer, kept)),
        }  # fmt: skip
        matrices = {
            "solution_shift": _timed(costs, "rollouts_1", n, n, lambda: solution_shift(model, tokenizer, kept, train, seed)),
            "motifs": motif_activations(z[rows["kept"]], MOTIFS, seed),
        }
        save_file({k: np.ascontiguousarray(v, dtype=np.float32) for k, v in matrices.items()}, folder / "features.safetensors")
        table.iloc[rows["kept"]].assign(**extra).to_parquet(folder / "kept_table.parquet", index=False)
        table.iloc[rows["unfiltered"]].to_parquet(folder / "unfiltered_table.parquet", index=False)
        pd.DataFrame(costs).to_parquet(folder / "costs.parquet", index=False)

    config = {"train": [profile.train.max_completion_tokens, profile.train.temperature], "seed": profile.seed}
    config |= {"attempts": profile.study.difficulty_attempts, "pool": to_dict(profile.world)}
    inputs = (world, features, difficulty, quality, alternatives)
    return get_or_compute(profile, "arm_pool", config, compute, inputs)


def load_arm_pool(stage: Stage, name: str) -> ArmPool:
    """One pool of the stage; the feature matrices belong to the kept one."""
    table = pd.read_parquet(stage.path(f"{name}_table.parquet"))
    features = load_file(stage.path("features.safetensors")) if name == "kept" else {}
    return ArmPool(table, {k: v.astype(np.float64) for k, v in features.items()})
