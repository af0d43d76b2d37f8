"""The shipped SAE of the default reader, made again by one command: corpus, activations, training, card (ours; paper, C.1).

The corpus is real mathematics, questions with their solutions, without evaluation sets and without any question that a probe is
tested on, mixed with texts of the embedded world that no split holds. Activations are collected once, in parts that are kept,
and read several times.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from saerl_lib import paths
from saerl_lib.artifacts import provenance, write_json
from saerl_lib.config import LadderConfig, ReaderConfig, SAEConfig, get_profile, to_dict
from saerl_lib.data.published import load_set, unread_keys
from saerl_lib.data.sample import Sample, hash_order, hash_share, normalise, without
from saerl_lib.encode.models import identity, open_decoder, open_reader, token_vectors
from saerl_lib.encode.sae import MEASURED_SAMPLES, SAEQuality, measured
from saerl_lib.encode.tokens import Layout
from saerl_lib.encode.train_sae import train_sae
from saerl_lib.world.sources import corpus_texts, draw_world

SHARES = {"math_train": 4000, "gsm8k_train": 3000, "deepmath_18k": 6000, "deepscaler_pass_rate": 6000}
"""Real set -> samples of the corpus at most, by the hash of their question; 3.2 million tokens with the world's."""
WORLD_SAMPLES = 4000
"""Texts of the embedded world."""
PART = 512
"""Samples whose activations lie in one file."""
SETTINGS = SAEConfig(tokens=9_000_000, latents=4608, k=32, learning_rate=1e-3, vectors_per_step=2048)
"""Of the shipped SAE: 8 x 576 latents, 32 of them active, 5.6 % of the model's width."""


def corpus(config: LadderConfig) -> list[Sample]:
    """The texts of the shipped SAE in an order by hash. Raises ArtifactError without `SAERL_DATA_DIR`."""
    unread, found = unread_keys(config), []
    for name, count in SHARES.items():
        data = without(load_set(name), unread)
        found += [data.samples[i] for i in hash_order(data)[:count]]
    for number, (prompt, solution) in enumerate(itertools.islice(corpus_texts(), WORLD_SAMPLES)):
        *steps, last = solution.split("\n")
        found.append(Sample(f"corpus-{number}", prompt, tuple(steps), last.removeprefix("Answer: ")))
    return sorted(found, key=lambda s: (hash_share(normalise(s.prompt)), s.id))


def collect(reader: ReaderConfig, samples: Sequence[Sample], folder: Path) -> list[Path]:
    """Files with the activations [n, D] of the samples' tokens in bfloat16, one a part; finished ones are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(samples), PART)
    parts = [(folder / f"{start // PART:05d}.safetensors", samples[start : start + PART]) for start in starts]
    todo = [(path, chunk) for path, chunk in parts if not path.is_file()]
    decoder, tokenizer, _ = open_decoder(reader)
    for path, chunk in tqdm(todo, desc="activations", unit="part"):
        layout = Layout(max_tokens=reader.max_tokens)
        vectors = torch.cat(list(token_vectors(chunk, decoder, tokenizer, reader.tokens_per_batch, layout)))
        save_file({"vectors": vectors.bfloat16()}, path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
    return [path for path, _ in parts]


def load_vectors(files: Sequence[Path]) -> Tensor:
    """[n, D] all collected activations in bfloat16."""
    return torch.cat([load_file(path)["vectors"] for path in files])


def run_rebuild() -> int:
    """`rebuild-sae`: collect, train and replace the shipped SAE with its card.

    Raises ArtifactError without `SAERL_DATA_DIR` or the model.
    """
    profile, work = get_profile("laptop"), paths.artifacts_root() / "sae"
    samples = corpus(profile.ladder)
    vectors = load_vectors(collect(profile.reader, samples, work / "vectors"))
    train_sae(vectors, SETTINGS, work / "sae")
    ship(work / "sae", paths.SAE)
    card = {
        "text": {"samples": len(samples), "tokens": len(vectors), **SHARES, "world": WORLD_SAMPLES},
        "settings": to_dict(SETTINGS), "reader": identity(replace(profile.reader, sae="none")),
        "quality": {name: asdict(found) for name, found in held_out_quality(profile.reader).items()},
        "licence": "Apache-2.0", "command": "python -m saerl_lib rebuild-sae", "provenance": provenance(),
    }  # fmt: skip
    write_json(paths.SAE / "card.json", card)
    print(json.dumps(card["quality"], indent=1))
    return 0


def ship(trained: Path, folder: Path) -> None:
    """An SAE with its weights in bfloat16, as SAELens opens it; the configuration and the start come along."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.bfloat16().contiguous() for name, value in load_file(trained / "sae_weights.safetensors").items()}
    save_file(weights, folder / "sae_weights.safetensors")
    settings = json.loads((trained / "cfg.json").read_text(encoding="utf-8"))
    settings.pop("metadata", None)
    write_json(folder / "cfg.json", settings)
    save_file(load_file(trained / "start.safetensors"), folder / "start.safetensors")


def held_out_quality(reader: ReaderConfig) -> dict[str, SAEQuality]:
    """The SAE on MATH's test problems with their solutions, and on the world's test split: neither was trained on."""
    encoder, world = open_reader(reader), draw_world(get_profile("laptop").world)["test"]
    texts = {"real": load_set("math_test").samples, "world": world}
    return {name: measured(found[:MEASURED_SAMPLES], encoder) for name, found in texts.items()}
