"""Stages `saes_world` and `saes_text`: the SAE and its controls, several seeds of each, on one residual stream."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from torch import Tensor
from tqdm.auto import tqdm

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import EncoderConfig, MethodConfig, Profile, sub_seed, to_dict
from saerl_lib.data.sample import Sample, hash_order, without
from saerl_lib.encode.activations import CutModel, token_vectors, truncate
from saerl_lib.encode.encoder import ENCODER, encoder_folder
from saerl_lib.encode.language_model import load_model
from saerl_lib.encode.readers import Reader
from saerl_lib.encode.real_stage import CORPUS_FILES, load_set, unread_keys
from saerl_lib.encode.sae import load_sae, measure_sae, train_sae
from saerl_lib.encode.spans import Layout
from saerl_lib.encode.stage import collect_vectors

MAX_TEXT_TOKENS = 480
"""Longer problems are cut at the end and counted; the LM's positions end at 512."""
DECODER_COSINE = 0.8
"""The soft-frozen decoder stays at least this close to where it began (arXiv 2602.14111)."""
LADDER_NAMES = {
    "trained": "sae", "untrained": "sae_untrained", "frozen_decoder": "sae_frozen_decoder",
    "soft_frozen_decoder": "sae_soft_frozen_decoder", "frozen_encoder": "sae_frozen_encoder",
}  # fmt: skip
"""Kind of an SAE -> its name in the ladder."""


def collect_text_vectors(
    decoder: CutModel, tokenizer: Any, config: EncoderConfig, method: MethodConfig, layout: Layout, seed: int
) -> Tensor:
    """[n, D] activations of the corpus of real text, questions and solutions, in an order by hash; held-out ones last."""
    unread, samples = unread_keys(method), []
    for name in CORPUS_FILES:
        data = without(load_set(name), unread)
        samples += [data.samples[i] for i in hash_order(data)[: config.sae_vectors // 100]]
    order = np.random.default_rng(sub_seed(seed, "text-vectors")).permutation(len(samples))
    wanted = config.sae_vectors + config.sae_heldout_vectors
    parts, count = [], 0
    for start in range(0, len(order), 500):
        chosen: Sequence[Sample] = [samples[i] for i in order[start : start + 500]]
        found = torch.cat(list(token_vectors(chosen, decoder, tokenizer, config.tokens_per_batch, layout)))
        parts.append(found)
        count += len(found)
        if count >= wanted:
            break
    return torch.cat(parts)[:wanted]


def train_kinds(
    vectors: Tensor, config: EncoderConfig, kinds: Mapping[str, str], seeds: Sequence[int], method: MethodConfig, folder: Path
) -> None:
    """`<ladder name>#<number>/` for every kind and seed in `folder`, and quality.parquet measured on the last vectors [n, D]."""
    cut = min(config.sae_vectors, int(0.8 * len(vectors)))
    jobs = [(kind, number) for kind in kinds for number in range(len(seeds))]
    work = (
        delayed(_train)(
            vectors[:cut], vectors[cut:], config, kind, seeds[number], folder / f"{kinds[kind]}#{number}", DECODER_COSINE
        )
        for kind, number in jobs
    )
    done = list(tqdm(Parallel(n_jobs=method.workers, return_as="generator")(work), desc="SAEs", unit="SAE", total=len(jobs)))
    rows = [{"features": kinds[k], "seed": n, **quality} for (k, n), quality in zip(jobs, done, strict=True)]
    pd.DataFrame(rows).to_parquet(folder / "quality.parquet", index=False)


def _train(vectors: Tensor, held_out: Tensor, config: EncoderConfig, kind: str, seed: int, folder: Path, cosine: float) -> dict:
    torch.set_num_threads(1)
    with contextlib.redirect_stderr(io.StringIO()):  # SAELens' bars of SAEs that train side by side
        train_sae(vectors, config, seed, folder, kind, cosine)
    return asdict(measure_sae(load_sae(folder, vectors.shape[1]), held_out.split(8192)))


def sae_seeds(profile: Profile) -> list[int]:
    """The seeds of the SAEs of one kind."""
    return [sub_seed(profile.seed, "sae" if i == 0 else f"sae-{i}") for i in range(profile.method.sae_seeds)]


def sae_kinds_stage(profile: Profile, name: str, text_model: Stage | None) -> Stage:
    """`<ladder name>#<seed>/` for every kind and seed, and quality.parquet; `text_model` None: the world's encoder."""
    method = profile.method
    config = method.text_sae if text_model else profile.encoder

    def compute(folder: Path) -> None:
        if text_model:
            model, tokenizer = load_model(text_model.path("model"))
            layout = Layout(max_tokens=MAX_TEXT_TOKENS)
            vectors = collect_text_vectors(truncate(model, config.hook_layer), tokenizer, config, method, layout, profile.seed)
        else:
            vectors = collect_vectors(config, False, sub_seed(profile.seed, "sae-corpus-False"))
        train_kinds(vectors, config, LADDER_NAMES, sae_seeds(profile), method, folder)

    inputs = (text_model,) if text_model else ()
    settings = {**to_dict(config), "seeds": method.sae_seeds, "cosine": DECODER_COSINE, "seed": profile.seed}
    return get_or_compute(profile, f"saes_{name}", settings, compute, inputs)




def ladder_reader(profile: Profile, saes: Stage, text_model: Stage | None) -> Reader:
    """The reader of every SAE of a stage."""
    config = profile.method.text_sae if text_model else profile.encoder
    folders = {path.name: path for path in sorted(saes.folder.iterdir()) if path.is_dir()}
    model = text_model.path("model") if text_model else encoder_folder()
    width = profile.method.text_model.width if text_model else ENCODER.width
    layout = Layout(max_tokens=MAX_TEXT_TOKENS) if text_model else Layout()
    return Reader(model, config.hook_layer, folders, config.tokens_per_batch, layout, width)
