"""Stages `sae`, `store` and `features`: the SAE of the encoder, all pooled latents, and phi of every split.

Stage `features_of_seeds`: the pool under SAEs of other seeds, for the stability of what is built on one (ours).

Stages of profile `method` that read real mathematics: the LM trained on it, and its SAEs with their controls.

Stages `saes_world` and `saes_text`: the SAE and its controls, several seeds of each, on one residual stream.

A small LM with a byte-level BPE tokenizer trained from scratch on real mathematics (ours; the paper reads Qwen3-1.7B).

The embedded encoder reads procedural problems alone. This one lets the whole method run on real text without a network;
it is small, so what it sees is a lower bound of what a pre-trained model sees.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from safetensors.numpy import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage, file_sha256, get_or_compute
from saerl_lib.config import EncoderConfig, MethodConfig, Profile, TextModelConfig, sub_seed, to_dict
from saerl_lib.data.published import SPLIT_LABELS, corpus_texts, evaluation_keys, load_labelled, probe_splits, probe_test_keys
from saerl_lib.data.sample import LabelledSet, Sample, hash_order, load_split, without
from saerl_lib.encode.language_model import (
    CutModel,
    LanguageModelConfig,
    Layout,
    build_model,
    load_model,
    save_model,
    token_vectors,
    train_tokenizer,
    truncate,
)
from saerl_lib.encode.models import ENCODER, encoder_folder, load_encoder, open_encoder
from saerl_lib.encode.pool import metadata_features
from saerl_lib.encode.readers import WORKERS, Reader
from saerl_lib.encode.sae import SAEQuality, check_sae, load_sae, measure_sae, train_sae, write_quality
from saerl_lib.encode.store import (
    FREQUENCY_BAND,
    FeatureTable,
    Store,
    choose_retained,
    encode_samples,
    gradient_influence,
    load_features,
    save_features,
    write_store,
)
from saerl_lib.world.sources import draw_corpus_text, encoder_families

SPLITS = ("labelled", "test", "filter_negatives", "contest_train", "contest_test", "step_labelled", "pool")
"""Splits that are encoded."""
INFLUENCE_SAMPLES = 500
"""Samples of L behind the gradient rule."""


def corpus_samples(all_families: bool, seed: int) -> Iterator[Sample]:
    """Endless texts of the encoder's own corpus, from a seed that its pre-training did not use."""
    rng = random.Random(seed)
    families = encoder_families(all_families)
    while True:
        prompt, solution = draw_corpus_text(rng, families)
        *steps, last = solution.split("\n")
        yield Sample("corpus", prompt, tuple(steps), last.removeprefix("Answer: "))


def collect_vectors(config: EncoderConfig, all_families: bool, seed: int) -> torch.Tensor:
    """[sae_vectors + sae_heldout_vectors, D] activations of corpus tokens; the held-out ones lie at the end."""
    model, tokenizer = load_encoder(all_families)
    decoder = truncate(model, config.hook_layer)
    wanted = config.sae_vectors + config.sae_heldout_vectors
    stream, parts, count = corpus_samples(all_families, seed), [], 0
    while count < wanted:
        samples = [next(stream) for _ in range(2000)]
        batches = list(token_vectors(samples, decoder, tokenizer, config.tokens_per_batch))
        parts += batches
        count += sum(map(len, batches))
    return torch.cat(parts)[:wanted]


def sae_stage(profile: Profile, all_families: bool = False) -> Stage:
    """Train the SAE with SAELens, load it back and check its gates: the folder holds the SAE and quality.json.

    Raises SAEGateError when explained variance or dead share miss their bounds.
    """
    config = profile.encoder
    name = "sae_all_families" if all_families else "sae"

    def compute(folder: Path) -> None:
        vectors = collect_vectors(config, all_families, sub_seed(profile.seed, f"sae-corpus-{all_families}"))
        train_sae(vectors[: config.sae_vectors], config, sub_seed(profile.seed, "sae"), folder / "sae")
        held_out = vectors[config.sae_vectors :]
        quality = measure_sae(load_sae(folder / "sae", ENCODER.width), held_out.split(8192))
        write_quality(quality, folder / "quality.json")
        check_sae(quality, config)

    return get_or_compute(profile, name, {**to_dict(config), "seed": profile.seed}, compute)


def quality_table(stages: dict[str, Stage], config: EncoderConfig) -> pd.DataFrame:
    """Rows of sae_quality.csv for some SAE stages by encoder name."""
    rows = []
    for name, stage in stages.items():
        quality = SAEQuality(**json.loads(stage.path("quality.json").read_text(encoding="utf-8")))
        for quantity, value, low, high in (
            ("explained variance", quality.explained_variance, config.min_explained_variance, 1.0),
            ("dead share", quality.dead_share, 0.0, config.max_dead_share),
            ("L0", quality.l0, None, None),
        ):
            met = None if low is None else low <= value <= high
            rows.append((name, quantity, value, low, high, met, quality.n_tokens))
    return pd.DataFrame(rows, columns=["encoder", "quantity", "value", "low", "high", "met", "n_tokens"])


def influence_of(profile: Profile, sae: Stage, samples: Sequence[Sample], all_families: bool = False) -> np.ndarray:
    """Gradient influence of the SAE of a stage on the first samples of L, [F]."""
    model, tokenizer = load_encoder(all_families)
    layer, tokens = profile.encoder.hook_layer, profile.encoder.tokens_per_batch
    loaded = load_sae(sae.path("sae"), ENCODER.width)
    return gradient_influence(samples[:INFLUENCE_SAMPLES], model, tokenizer, layer, loaded, tokens)


def retained_of(profile: Profile, store: Store, samples: Sequence[Sample], rule: str, all_families: bool = False) -> np.ndarray:
    """The retained set that a rule chooses on the store of L; ascending indices."""
    config = profile.encoder
    return choose_retained(
        store, config.retained_latents, rule=rule, band=FREQUENCY_BAND,
        labels=np.array([s.difficulty for s in samples]), seed=sub_seed(profile.seed, "retained"),
        influence=lambda: influence_of(profile, sae_stage(profile, all_families), samples, all_families),
    )  # fmt: skip


def store_stage(profile: Profile, world: Stage, sae: Stage, all_families: bool = False) -> Stage:
    """Encode every split once: <split>/shard-*.safetensors with the pooled statistics of all latents, sparse.

    Evaluation sets are never encoded. The control encoder (`all_families`) reads L and the test split alone.
    """
    splits = ("labelled", "test") if all_families else SPLITS

    def compute(folder: Path) -> None:
        encoder = open_encoder(profile, sae, all_families)
        for name in tqdm(splits, desc="encoding", unit="split"):
            write_store(load_split(world, name), encoder, folder / name)

    name = "store_all_families" if all_families else "store"
    return get_or_compute(profile, name, {"tokens": profile.encoder.tokens_per_batch}, compute, (world, sae))


def features_stage(profile: Profile, world: Stage, store: Stage, all_families: bool = False) -> Stage:
    """z and metadata of every split: retained.safetensors, then <split>.safetensors; nothing is encoded again.

    The retained set is chosen on L by `EncoderConfig.retained_rule`, by default without its labels.
    """
    splits = ("labelled", "test") if all_families else SPLITS
    width = profile.encoder.sae_latents

    def compute(folder: Path) -> None:
        labelled, rule = load_split(world, "labelled"), profile.encoder.retained_rule
        retained = retained_of(profile, Store(store.path("labelled"), width), labelled, rule, all_families)
        save_file({"retained": retained}, folder / "retained.safetensors")
        for name in splits:
            samples = load_split(world, name)
            z = Store(store.path(name), width).select(retained)
            table = FeatureTable(tuple(s.id for s in samples), z, metadata_features(samples))
            save_features(table, folder / f"{name}.safetensors")

    name = "features_all_families" if all_families else "features"
    return get_or_compute(profile, name, to_dict(profile.encoder), compute, (world, store))


OTHER_SEEDS = 2
"""SAEs beside the profile's own."""


def seed_features_stage(profile: Profile, world: Stage, sae: Stage) -> Stage:
    """<seed>/pool.safetensors for every other seed: an SAE trained on the same activations and the pool read through it.

    `sae` is the profile's own; only the seed of the weights and of the order of the activations differs.
    """
    config = profile.encoder

    def compute(folder: Path) -> None:
        vectors = collect_vectors(config, False, sub_seed(profile.seed, "sae-corpus-False"))[: config.sae_vectors]
        pool, labelled = load_split(world, "pool"), load_split(world, "labelled")
        for number in tqdm(range(1, OTHER_SEEDS + 1), desc="SAE seeds", unit="SAE"):
            here = folder / str(number)
            train_sae(vectors, config, sub_seed(profile.seed, f"sae-{number}"), here / "sae")
            encoder = dataclasses.replace(open_encoder(profile, sae), sae=load_sae(here / "sae", ENCODER.width))
            write_store(labelled, encoder, here / "store")
            retained = retained_of(profile, Store(here / "store", config.sae_latents), labelled, config.retained_rule)
            save_features(encode_samples(pool, encoder, retained), here / "pool.safetensors")

    settings = {**to_dict(config), "seed": profile.seed, "seeds": OTHER_SEEDS}
    return get_or_compute(profile, "features_of_seeds", settings, compute, (world, sae))


def pools_of_seeds(stage: Stage) -> list[FeatureTable]:
    """The pool's feature table under every other seed."""
    return [load_features(stage.folder / str(number) / "pool.safetensors") for number in range(1, OTHER_SEEDS + 1)]


TEXT_MODEL_SEED = 27354
"""Seed of the text model's weights and of the order of its texts."""
ROW_TOKENS = 256
"""Tokens of a training row of the text model."""
TEXT_LEARNING_RATE = 2e-3
"""Peak of a cosine schedule with 50 warm-up steps, AdamW."""


def packed_rows(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """[n, ROW_TOKENS] texts in a seeded order, joined by EOS and cut into rows: no padding."""
    order = np.random.default_rng(TEXT_MODEL_SEED).permutation(len(texts))
    stream: list[int] = []
    for start in range(0, len(order), 1000):
        for ids in tokenizer([texts[i] for i in order[start : start + 1000]])["input_ids"]:
            stream += [*ids, tokenizer.eos_token_id]
    rows = len(stream) // ROW_TOKENS
    return torch.tensor(stream[: rows * ROW_TOKENS]).view(rows, ROW_TOKENS)


def train_text_model(
    texts: Sequence[str], config: TextModelConfig, folder: Path, report: Callable[[int, int, float], None] = lambda *_: None
) -> list[float]:
    """Train tokenizer and model into `folder`; returns the loss of every step in nats a token.

    `report` gets step, number of steps and loss. AdamW, cosine schedule, every row is read once.
    """
    tokenizer = train_tokenizer(iter(texts), config.vocabulary)
    shape = LanguageModelConfig(
        seed=TEXT_MODEL_SEED, vocabulary=config.vocabulary, width=config.width, layers=config.layers, heads=config.heads,
        feed_forward=config.feed_forward, steps=0,
    )  # fmt: skip
    model = build_model(shape, tokenizer)
    rows = packed_rows(texts, tokenizer)[: config.max_rows]
    losses = _fit(model, rows, config, report)
    save_model(model.eval(), tokenizer, folder)
    return losses


def _fit(
    model: LlamaForCausalLM, rows: torch.Tensor, config: TextModelConfig, report: Callable[[int, int, float], None]
) -> list[float]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=TEXT_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    batches = rows.split(config.rows_per_step)
    losses: list[float] = []
    model.train()
    for step, ids in enumerate(batches):
        decay = 0.02 + 0.49 * (1 + math.cos(math.pi * step / len(batches)))
        for group in optimiser.param_groups:
            group["lr"] = TEXT_LEARNING_RATE * min(1.0, (step + 1) / 50) * decay
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden).flatten(0, 1), ids[:, 1:].flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        report(step + 1, len(batches), losses[-1])
    return losses


CORPUS_FILES = ("math_train", "gsm8k_train", "deepmath_18k", "deepscaler_pass_rate")
"""Files whose texts the LM is trained on, without labels and without any question that a probe or a policy is tested on."""
TEST_FILES = ("math_test", "gsm8k_test")
"""Files whose questions are kept out of the corpus, beside every evaluation set."""


def real_folder() -> Path:
    """The folder of real labelled mathematics. Raises ArtifactError when `SAERL_DATA_DIR` is not set."""
    folder = paths.shared_data_dir()
    if folder is None:
        raise ArtifactError("SAERL_DATA_DIR is not set; point it at the folder of labelled mathematics (README, Real data)")
    return folder


def data_file(stem: str) -> Path:
    """The file of one real set, gzip or plain. Raises ArtifactError when it is missing."""
    folder = real_folder()
    for name in (f"{stem}.jsonl.gz", f"{stem}.jsonl"):
        if (folder / name).is_file():
            return folder / name
    raise ArtifactError(f"{folder}: {stem}.jsonl.gz is missing; the folder must hold the sets that the README lists")


def held_out_keys() -> set[str]:
    """Normalised questions that no fit may see: evaluation sets and official test sets."""
    keys = set().union(*evaluation_keys(real_folder()).values())
    return keys.union(*(load_set(name).keys for name in TEST_FILES))


def load_set(stem: str) -> LabelledSet:
    """One real set by name."""
    return load_labelled(data_file(stem))


def unread_keys(config: MethodConfig) -> set[str]:
    """Normalised questions that neither the LM nor an SAE may read: `held_out_keys` and what the probes are tested on."""
    held_out = held_out_keys()
    return held_out | probe_test_keys(probe_splits(load_set, config, held_out))


def corpus_keys(config: MethodConfig) -> set[str]:
    """Normalised questions that the LM and the SAEs may have read."""
    return set().union(*(load_set(name).keys for name in CORPUS_FILES)) - unread_keys(config)


def corpus_files(config: MethodConfig) -> dict[str, object]:
    """What decides the corpus: hashes of the files, and the sizes of the splits whose test side is left out."""
    names = dict.fromkeys((*CORPUS_FILES, *TEST_FILES, *SPLIT_LABELS))
    return {**{n: file_sha256(data_file(n))[:16] for n in names}, "max_train": config.max_train, "max_test": config.max_test}


def text_model_stage(profile: Profile) -> Stage:
    """The LM of real text: `model/` in Hugging Face format and losses.npy (nats a token, one a step)."""
    config = profile.method.text_model

    def compute(folder: Path) -> None:
        texts = list(corpus_texts([load_set(name) for name in CORPUS_FILES], unread_keys(profile.method)))
        with tqdm(desc="text model", unit="step") as bar:

            def report(step: int, steps: int, loss: float) -> None:
                bar.total = steps
                bar.set_postfix(nats=round(loss, 3), refresh=False)  # a line a step would fill the notebook
                bar.update()

            losses = train_text_model(texts, config, folder / "model", report)
        np.save(folder / "losses.npy", np.array(losses, dtype=np.float32), allow_pickle=False)

    settings = {**to_dict(config), "data": corpus_files(profile.method), "threads": torch.get_num_threads()}
    return get_or_compute(profile, "text_model", settings, compute)


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
    done = list(tqdm(Parallel(n_jobs=WORKERS, return_as="generator")(work), desc="SAEs", unit="SAE", total=len(jobs)))
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
