"""What the open choices of the representation cost: the rule of the retained set, and reading prompts alone (ours).

The paper keeps 240 latents and reads prompt and solution. Here every rule of `saerl_lib.encode.retain` is run on the same store
with the same probes, and the prompt-only representation beside the full one. All choices see L alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, sub_seed, to_dict
from saerl_lib.data.sample import Sample
from saerl_lib.data.stage import load_split
from saerl_lib.encode.metadata import PROMPT_COLUMNS, metadata_features
from saerl_lib.encode.retain import RULES
from saerl_lib.encode.stage import retained_of
from saerl_lib.encode.store import Store
from saerl_lib.properties.probes import ProbeRow, difficulty_probe, topic_probe


def _rows(profile: Profile, name: str, z: tuple[np.ndarray, np.ndarray], samples: tuple[list[Sample], list[Sample]],
          with_solution: bool) -> list[ProbeRow]:  # fmt: skip
    """Topic from the prompt side, difficulty from what the choice allows, without metadata."""
    common = {"dataset": "world", "features": name, "config": profile.properties}
    leaf = [np.array([s.topic for s in part]) for part in samples]
    label = [np.array([s.difficulty for s in part]) for part in samples]
    half = z[0].shape[1] // 2
    full = [x if with_solution else x[:, :half] for x in z]
    topic = topic_probe(
        z[0][:, :half], leaf[0], z[1][:, :half], leaf[1], target="topic_leaf", seed=sub_seed(profile.seed, "topic"), **common
    )
    difficulty = difficulty_probe(
        full[0], label[0], full[1], label[1], target="difficulty_in_domain", seed=sub_seed(profile.seed, "difficulty"), **common
    )
    return [topic, difficulty]


def representation_table(profile: Profile, world: Stage, store: Stage) -> pd.DataFrame:
    """Rows of representation.csv.

    Columns: choice, option, target, metric, value, ci_low, ci_high, n_train, n_test, shared_with_default.
    """
    samples = load_split(world, "labelled"), load_split(world, "test")
    stores = [Store(store.path(name), profile.encoder.sae_latents) for name in ("labelled", "test")]
    count, default, found = profile.encoder.retained_latents, None, []
    for rule in RULES:
        chosen = retained_of(profile, stores[0], samples[0], rule)
        default = chosen if default is None else default
        shared = len(np.intersect1d(chosen, default)) / count
        z = (stores[0].select(chosen), stores[1].select(chosen))
        found += [("retained set", rule, shared, row) for row in _rows(profile, rule, z, samples, True)]
        if rule == RULES[0]:
            found += [("spans", "prompt and solution", 1.0, row) for row in _rows(profile, rule, z, samples, True)[1:]]
            found += [("spans", "prompt only", 1.0, row) for row in _rows(profile, rule, z, samples, False)[1:]]
            found += [("spans", *pair) for pair in _metadata_rows(profile, z, samples)]
    rows = [
        (choice, option, r.target, r.metric, r.value, r.ci_low, r.ci_high, r.n_train, r.n_test, shared)
        for choice, option, shared, r in found
    ]
    columns = "choice option target metric value ci_low ci_high n_train n_test shared_with_default".split()
    return pd.DataFrame(rows, columns=columns)


def _metadata_rows(profile: Profile, z: tuple[np.ndarray, np.ndarray], samples: tuple[list[Sample], list[Sample]]) -> list:
    """phi of both spans and prompt-only phi, the two that clustering and difficulty may use."""
    metadata = [metadata_features(part) for part in samples]
    labels = [np.array([s.difficulty for s in part]) for part in samples]
    half, out = z[0].shape[1] // 2, []
    for name, features, columns in (("phi, prompt and solution", z, slice(None)), ("phi, prompt only", None, PROMPT_COLUMNS)):
        parts = features or tuple(x[:, :half] for x in z)
        joined = [np.concatenate([x, m[:, columns]], axis=1) for x, m in zip(parts, metadata, strict=True)]
        row = difficulty_probe(
            joined[0], labels[0], joined[1], labels[1], dataset="world", target="difficulty_in_domain", features=name,
            config=profile.properties, seed=sub_seed(profile.seed, "difficulty"),
        )  # fmt: skip
        out.append((name, 1.0, row))
    return out


def representation_stage(profile: Profile, world: Stage, sae: Stage, store: Stage) -> Stage:
    """Stage `representation`: representation.parquet."""

    def compute(folder: Path) -> None:
        representation_table(profile, world, store).to_parquet(folder / "representation.parquet", index=False)

    config = {**to_dict(profile.properties), "encoder": to_dict(profile.encoder), "seed": profile.seed}
    return get_or_compute(profile, "representation", "properties", config, compute, (world, sae, store))
