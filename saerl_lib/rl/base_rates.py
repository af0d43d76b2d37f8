"""Pass rates of the base policy on the pool, and the published histogram that they are held against."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, sub_seed, to_dict
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.train.policy import load_policy
from saerl_lib.train.sampler import correct_attempts

REFERENCE_SHARES = (0.3623, 0.0627, 0.0509, 0.0479, 0.0418, 0.0474, 0.049, 0.0535, 0.0899, 0.1946)
"""Shares per tenth of the pass rates in AdaRFT's union of DeepScaleR subsets (29,405 prompts, 128 attempts each)."""
REFERENCE_N = 29_405


def reference_shares(path: Path) -> tuple[float, ...]:
    """`REFERENCE_SHARES` recomputed from `deepscaler_pass_rate.jsonl.gz`."""
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        frame = pd.read_json(handle, lines=True, dtype={"id": str})
    return tuple(round(float(v), 4) for v in histogram(frame["pass_rate"].to_numpy()))


def histogram(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares per tenth of [0, 1]; the last tenth is closed on the right."""
    return np.histogram(rates, bins=np.linspace(0, 1, 11))[0] / len(rates)


def rated_prompts(pool: Sequence[Sample], count: int) -> list[Sample]:
    """The first `count` target-source prompts of the pool, in pool order; parents may hold planted wrong answers."""
    return [s for s in pool if s.source == "target"][:count]


def base_rates_stage(profile: Profile, world: Stage) -> Stage:
    """Attempts of the base policy on pool prompts: pass_rates.parquet with sample_id, domain, difficulty, pass_rate, attempts."""
    config = profile.world
    wanted = {
        "prompts": config.rated_prompts,
        "attempts": config.rated_attempts,
        "train": to_dict(profile.train),
        "seed": profile.seed,
    }

    def compute(folder: Path) -> None:
        torch.set_num_threads(1)  # these small products lose time on more, and the samples would depend on the machine
        samples = rated_prompts(load_split(world, "pool"), config.rated_prompts)
        model, tokenizer = load_policy()
        with tqdm(total=len(samples) * config.rated_attempts, desc="base attempts", file=sys.stdout, mininterval=10) as bar:
            marks = correct_attempts(
                model,
                tokenizer,
                samples,
                config.rated_attempts,
                profile.train.max_completion_tokens,
                profile.train.temperature,
                sub_seed(profile.seed, "base-rates"),
                bar.update,
            )
        frame = pd.DataFrame(
            {
                "sample_id": [s.id for s in samples],
                "domain": [s.topic.split(" -> ")[0] for s in samples],
                "difficulty": [s.difficulty for s in samples],
                "pass_rate": marks.mean(axis=1),
                "attempts": config.rated_attempts,
            }
        )
        frame.to_parquet(folder / "pass_rates.parquet", index=False)

    return get_or_compute(profile, "policy_rates", wanted, compute, (world,))


def pass_rate_table(rates: pd.DataFrame) -> pd.DataFrame:
    """Rows of pass_rates.csv: the world's histogram beside the published one."""
    edges = np.linspace(0, 1, 11)
    return pd.DataFrame(
        {
            "bin_low": edges[:-1],
            "bin_high": edges[1:],
            "share_world": histogram(rates["pass_rate"].to_numpy()),
            "share_reference": REFERENCE_SHARES,
            "n_world": len(rates),
            "n_reference": REFERENCE_N,
        }
    )
