"""What the study's arms may read of the pool: other features' scores, and what is asked of the base policy (ours).

Alternatives: the same pipeline with one ingredient changed. tfidf: TF-IDF of prompt and solution by truncated SVD, as many
columns as z. dense: pooled activations of the SAE's layer. frozen: an SAE whose decoder is random and never learns (arXiv
2602.14111). draw1 and further: SAE and k-means of another seed, crossed with the matched seeds. A wide pool, whose profile is no
study itself, has the first two.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file, save_file
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib import paths
from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, TrainConfig, sub_seed, to_dict
from saerl_lib.data.sample import Sample, load_split, write_samples
from saerl_lib.encode.models import open_decoder, token_vectors
from saerl_lib.encode.sae import SHIPPED_SAE, train_sae
from saerl_lib.encode.stages import read, retained_of, store_stage
from saerl_lib.encode.store import DENSE, Store, load_split_features
from saerl_lib.properties.clusters import pool_clusters
from saerl_lib.properties.probes import fit_tfidf, texts_of
from saerl_lib.properties.quality import keep_top_k
from saerl_lib.properties.scorer import Columns, difficulty_stage, fit_scorer, kept_rows, load_scorer
from saerl_lib.train.arms import DRAWS, ArmPool
from saerl_lib.train.policy import DIFFICULTY_ATTEMPTS, angle_concentration, open_sampler, pass_rates, policy_folder
from saerl_lib.train.sampler import encode_prompts, sample_groups

DRAWN = tuple(f"draw{number}" for number in range(1, DRAWS))
NAMES = ("tfidf", "dense", "frozen", *DRAWN)
MOTIFS = 32
"""Groups of retained latents for the IRDS-style arm (not public; ours)."""
GREEDY = 1e-4
"""Temperature at which sampling is greedy but for exact ties."""
OWN_TOKENS = 300_000
"""Vectors of L, in several passes, that the SAEs of this stage are trained on; their other settings are the shipped one's."""
PASSES = 10
"""Passes over L at most, which bounds them where a profile is small."""


def model_features(
    profile: Profile, labelled: list[Sample], pool: list[Sample], folder: Path
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pooled features of a frozen-decoder SAE and the draws', trained on L's activations into `folder`, and dense activations."""
    decoder, tokenizer, _ = open_decoder(profile.reader)
    size, longest = profile.reader.tokens_per_batch, profile.reader.max_tokens
    vectors = torch.cat(list(token_vectors(labelled, decoder, tokenizer, size, longest)))
    saes = {name: folder / f"sae_{name}" for name in ("frozen", *DRAWN)}
    for name, place in saes.items():
        config = replace(SHIPPED_SAE, tokens=min(OWN_TOKENS, PASSES * len(vectors)), seed=sub_seed(profile.seed, f"sae-{name}"))
        train_sae(vectors, config, place, "frozen_decoder" if name == "frozen" else "trained")
    others = tuple((name, str(saes[name])) for name in DRAWN)
    reader = replace(profile.reader, sae=str(saes["frozen"]), others=others, dense=True)
    read({"store": [*labelled, *pool]}, reader, folder, paths.profile_dir(profile.name) / "parts" / "alternatives")
    store = Store(folder / "store")
    found = {"dense": store.values(DENSE)}
    for name in saes:
        own = store if name == "frozen" else Store(store.folder, name)
        found[name] = own.select(retained_of(profile, own, labelled))
    shutil.rmtree(store.folder)
    return {name: (z[: len(labelled)], z[len(labelled) :]) for name, z in found.items()}


def alternatives_stage(profile: Profile, world: Stage, features: Stage) -> Stage:
    """scores.parquet of the noisy pool: sample_id, for every name of `NAMES` cluster@, ranking@ and raw@, phi@ where an arm reads
    it, and phi@sae."""

    def compute(folder: Path) -> None:
        labelled, pool = load_split(world, "labelled"), load_split(world, "pool")
        names = NAMES if profile.study else NAMES[:2]
        own = [load_split_features(features, name) for name in ("labelled", "pool")]
        labels = np.array([s.difficulty for s in labelled])
        scorer = load_scorer(difficulty_stage(profile, world, features))
        kept = kept_rows(profile, pool, scorer.quality.score(own[1].z))
        if profile.study:
            found = model_features(profile, labelled, pool, folder)
        else:
            read_once = store_stage(profile, world)  # its reader keeps the dense activations
            found = {"dense": tuple(Store(read_once.path(name)).values(DENSE) for name in ("labelled", "pool"))}
        words = fit_tfidf(texts_of(labelled))  # vocabulary and SVD come from L alone
        texts = [words.transform(texts_of(part)) for part in (labelled, pool)]
        width = min(own[0].z.shape[1], texts[0].shape[0] - 1, texts[0].shape[1] - 1)
        svd = TruncatedSVD(width, random_state=sub_seed(profile.seed, "tfidf")).fit(texts[0])
        found["tfidf"] = (svd.transform(texts[0]), svd.transform(texts[1]))
        frame = pd.DataFrame({"sample_id": own[1].ids, "phi@sae": list(own[1].phi)})
        for name in names:
            seed = profile.seed + (DRAWN.index(name) + 1 if name in DRAWN else 0)
            phi = [np.concatenate([z, table.metadata], axis=1) for z, table in zip(found[name], own, strict=True)]
            alone, pooled = (Columns(table.ids, x, x) for table, x in zip(own, phi, strict=True))
            clusters = pool_clusters(phi[1][kept], profile.properties, seed)
            scores = fit_scorer(clusters, alone, labels, None, profile.properties, seed).score(pooled)
            frame = frame.assign(**{f"{column}@{name}": scores[column] for column in ("cluster", "ranking", "raw")})
            if name in ("tfidf", "dense"):
                frame[f"phi@{name}"] = list(phi[1].astype(np.float32))
        frame.to_parquet(folder / "scores.parquet", index=False)

    kept = [profile.pool_samples, profile.planned, profile.plan.prompts_per_step]
    config = {**to_dict(profile.properties), "reader": to_dict(profile.reader), "seed": profile.seed, "kept": kept}
    return get_or_compute(profile, "alternatives", config, compute, (world, features))


@torch.inference_mode()
def solution_shift(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample], train: TrainConfig, seed: int
) -> np.ndarray:
    """[s ; e - s] of one greedy rollout a sample, [N, 2 D], float32.

    s and e are the hidden states at its first and last token, averaged over layers (SHIFT).
    """
    prompts = [s.prompt for s in samples]
    rollouts = sample_groups(model, tokenizer, prompts, 1, train.max_completion_tokens, GREEDY, seed, chat=train.chat)
    out = np.empty((len(samples), 2 * model.config.hidden_size), dtype=np.float32)
    for i, (prompt, tokens) in enumerate(zip(encode_prompts(tokenizer, prompts, train.chat), rollouts.ids, strict=True)):
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


def arm_pool_stage(profile: Profile, world: Stage, features: Stage, scores: Stage, quality: Stage) -> Stage:
    """<pool>.parquet (samples), <pool>_table.parquet and features.safetensors (kept pool). `scores` is that of `scores_stage`."""

    def compute(folder: Path) -> None:
        samples, z = load_split(world, "pool"), load_split_features(features, "pool").z
        labels = pd.DataFrame({"sample_id": [s.id for s in samples], "label": [s.difficulty for s in samples]})
        table = pd.read_parquet(scores.path("scores.parquet")).drop(columns=["distance", "calibrated", "half_width"])
        table = table.merge(labels, on="sample_id", validate="one_to_one")
        judged = pd.read_parquet(quality.path("kept.parquet"))
        size, draw = int(judged["kept"].sum()), np.random.default_rng(sub_seed(profile.seed, "unfiltered"))
        rows = {
            "kept": np.flatnonzero(judged["kept"].to_numpy()),
            "filtered": np.flatnonzero(keep_top_k(judged["score"].to_numpy(), judged["sample_id"].tolist(), size)),
            "unfiltered": np.sort(draw.choice(len(samples), size, replace=False)),
        }
        for name, chosen in rows.items():
            write_samples([samples[i] for i in chosen], folder / f"{name}.parquet")
        kept, train, seed = [samples[i] for i in rows["kept"]], profile.train, sub_seed(profile.seed, "arm-pool")
        torch.set_num_threads(1)  # the rollouts would depend on the machine's number of cores
        sampler = open_sampler(policy_folder(profile.policy), train)
        measured = {"pass_rate": pass_rates(sampler, kept, train, seed),
                    "angle_concentration": angle_concentration(sampler, kept, train)}  # fmt: skip
        matrices = {"solution_shift": solution_shift(sampler.model, sampler.tokenizer, kept, train, seed),
                    "motifs": motif_activations(z[rows["kept"]], MOTIFS, seed)}  # fmt: skip
        save_file({k: np.ascontiguousarray(v, dtype=np.float32) for k, v in matrices.items()}, folder / "features.safetensors")
        for name, chosen in rows.items():
            own = table.iloc[chosen].assign(**(measured if name == "kept" else {}))
            own.to_parquet(folder / f"{name}_table.parquet", index=False)

    train = profile.train
    config = {"train": [train.max_completion_tokens, train.temperature, train.chat, train.answer_from], "seed": profile.seed}
    config |= {"attempts": DIFFICULTY_ATTEMPTS, "pool": to_dict(profile.world), "policy": profile.policy}
    return get_or_compute(profile, "arm_pool", config, compute, (world, features, scores, quality))


def load_arm_pool(stage: Stage, name: str) -> ArmPool:
    """One pool of the stage as orders read it; the feature matrices belong to the kept one."""
    path = stage.path(f"{name}_table.parquet")
    table = pd.read_parquet(path, columns=[n for n in pq.read_schema(path).names if not n.startswith("phi@")])
    features = load_file(stage.path("features.safetensors")) if name == "kept" else {}
    return ArmPool(table, {k: v.astype(np.float64) for k, v in features.items()})
