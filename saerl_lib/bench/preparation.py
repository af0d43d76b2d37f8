"""`bench preparation`: what reading prompts by the SAE costs beside ADARFT's rollouts of the same prompts.

The paper: 0.5 against 17.33 H100-hours (section 5). Here: disjoint parts of the pool, each encoded (prompt and solution, all
pooled latents stored) and rolled out 16 times by the policy.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from saerl_lib import paths
from saerl_lib.artifacts import Stage
from saerl_lib.bench.timing import report, seconds
from saerl_lib.config import Profile, StudyConfig, sub_seed
from saerl_lib.data.sample import load_split
from saerl_lib.encode.encoder import open_encoder
from saerl_lib.encode.stage import sae_stage
from saerl_lib.encode.store import write_store
from saerl_lib.report.tables import write_csv
from saerl_lib.train.arm_pool import pass_rates
from saerl_lib.train.policy import load_policy

PARTS, PROMPTS = 5, 200


def preparation_costs(profile: Profile, world: Stage, parts: int = PARTS, prompts: int = PROMPTS) -> pd.DataFrame:
    """Rows of preparation_cost.csv: part, prompts, rollouts, encode_s, rollouts_s, saved (percent of the rollouts' time).

    Raises ValueError when the pool is smaller than `parts` x `prompts`.
    """
    samples, encoder = load_split(world, "pool"), open_encoder(profile, sae_stage(profile))
    if len(samples) < parts * prompts:
        raise ValueError(f"the pool holds {len(samples)} samples, {parts} parts of {prompts} need {parts * prompts}")
    (model, tokenizer), attempts = load_policy(), StudyConfig().difficulty_attempts
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_store(samples[-prompts:], encoder, Path(folder) / "warm")
        for part in tqdm(range(parts), desc="preparation", unit="part"):
            chosen, place = samples[part * prompts : (part + 1) * prompts], Path(folder) / str(part)
            read = seconds(lambda chosen=chosen, place=place: write_store(chosen, encoder, place))
            seed = sub_seed(profile.seed, f"bench-preparation-{part}")
            rolled = seconds(lambda chosen=chosen, seed=seed: pass_rates(model, tokenizer, chosen, attempts, profile.train, seed))
            rows.append((part, prompts, prompts * attempts, read, rolled, 100 * (1 - read / rolled)))
    return pd.DataFrame(rows, columns=["part", "prompts", "rollouts", "encode_s", "rollouts_s", "saved"])


def bench_preparation(profile: Profile, world: Stage) -> int:
    """Measure, write figures/data/preparation_cost.csv and print the means."""
    table = preparation_costs(profile, world)
    path = write_csv(table, "preparation_cost", paths.FIGURES / "data")
    print(f"written: {path}")
    means = table.mean()
    return report({
        "encoding, ms a prompt": 1000 * means["encode_s"] / means["prompts"],
        "16 rollouts, ms a prompt": 1000 * means["rollouts_s"] / means["prompts"],
        "rollouts / encoding": means["rollouts_s"] / means["encode_s"],
        "saved, percent": means["saved"],
    })  # fmt: skip
