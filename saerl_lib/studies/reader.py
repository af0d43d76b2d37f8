"""The default reader: its SAE made again by one command (ours; paper, C.1), and any labelled file read by it.

The corpus is real mathematics, questions with their solutions, without evaluation sets and without any question that a probe is
tested on, mixed with texts of the embedded world that no split holds. Activations are collected once, in parts that are kept,
and read several times.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from tqdm.auto import tqdm

from saerl_lib import paths
from saerl_lib.artifacts import provenance, write_json
from saerl_lib.config import LadderConfig, Profile, ReaderConfig, content_hash, get_profile, to_dict
from saerl_lib.data.published import held_out_keys, load_labelled, load_set, math_splits, probe_splits, unread_keys
from saerl_lib.data.sample import Sample, hash_order, normalise
from saerl_lib.encode.models import identity, open_decoder, open_reader, token_batches, token_vectors
from saerl_lib.encode.sae import MEASURED_SAMPLES, SHIPPED_SAE, measure_sae, measured, open_sae, train_sae, untrained_sae
from saerl_lib.encode.stages import encode
from saerl_lib.encode.store import DENSE, Store, choose_retained
from saerl_lib.properties.probes import Matrix, Task, metric, pair_rows, real_tasks, tasks_of_file
from saerl_lib.report.figures import draw
from saerl_lib.report.tables import as_table, write_csv
from saerl_lib.studies.ladder import VARIANTS, Group, ladder
from saerl_lib.world.sources import corpus_texts, draw_world

SHARES = {"math_train": 5000, "gsm8k_train": 4000, "deepmath_18k": 4000, "deepscaler_pass_rate": 5000}
"""Real set -> samples of the corpus at most, by the hash of their question; 3.1 million tokens."""
WORLD_SAMPLES = 3000
PART = 512
"""Samples whose activations lie in one file."""
SHORT = replace(SHIPPED_SAE, tokens=500_000)
"""Of the variants, which are compared with each other."""
*SEEDS, FROZEN = VARIANTS
TRAININGS: dict[str, dict[str, int]] = {
    **{name: {"seed": seed} for seed, name in enumerate(SEEDS)},
    FROZEN: {},
    **{f"sae_k{k}": {"k": k} for k in (8, 16, 64, 128)},
}
"""Folder below `artifacts/sae` -> what differs from `SHORT`."""


def corpus(config: LadderConfig) -> dict[str, list[Sample]]:
    """The texts of the shipped SAE, real and the world's, by the hash of their question, so that files of activations hold about
    as many tokens each. Raises ArtifactError without `SAERL_DATA_DIR`."""
    unread, real, world = unread_keys(config), [], []
    for name, count in SHARES.items():
        data = load_set(name).without(unread)
        real += [data.samples[i] for i in hash_order(data.samples)[:count]]
    for number, (prompt, solution) in enumerate(itertools.islice(corpus_texts(), WORLD_SAMPLES)):
        *steps, last = solution.split("\n")
        world.append(Sample(f"corpus-{number}", prompt, tuple(steps), last.removeprefix("Answer: ")))
    return {name: [found[i] for i in hash_order(found)] for name, found in (("real", real), ("world", world))}


def collect(reader: ReaderConfig, samples: Sequence[Sample], folder: Path) -> list[Path]:
    """Files with the activations [n, D] of the samples' tokens in bfloat16, one a part; finished ones are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(samples), PART)
    parts = [(folder / f"{start // PART:05d}.safetensors", samples[start : start + PART]) for start in starts]
    todo = [(path, chunk) for path, chunk in parts if not path.is_file()]
    decoder, tokenizer, _ = open_decoder(reader)
    for path, chunk in tqdm(todo, desc="activations", unit="part"):
        vectors = torch.cat(list(token_vectors(chunk, decoder, tokenizer, reader.tokens_per_batch, reader.max_tokens)))
        save_file({"vectors": vectors.bfloat16()}, path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
    return [path for path, _ in parts]


def run_reader(step: str) -> int:
    """`reader STEP`: collect the corpus once, then train the shipped SAE, or the variants, or compare blocks. Raises
    ArtifactError without `SAERL_DATA_DIR` or the model."""
    {"sae": rebuild_sae, "variants": train_variants, "blocks": compare_blocks}[step](get_profile("laptop"))
    return 0


def corpus_vectors(profile: Profile) -> tuple[int, Tensor]:
    """Samples of the corpus, and the activations [n, D] of all of it in bfloat16."""
    texts = corpus(profile.ladder)
    folder = paths.sae_dir() / "vectors"
    files = [path for kind, samples in texts.items() for path in collect(profile.reader, samples, folder / kind)]
    return sum(map(len, texts.values())), torch.cat([load_file(path)["vectors"] for path in files])


def rebuild_sae(profile: Profile) -> None:
    """Train the shipped SAE and replace it, weights in bfloat16, with card.json: what it is made of and how good it is on MATH's
    test problems with their solutions and on the world's test split, of which neither was trained on; printed too."""
    samples, vectors = corpus_vectors(profile)
    train_sae(vectors, SHIPPED_SAE, trained := paths.sae_dir() / "trained")
    weights = {name: value.bfloat16().contiguous() for name, value in load_file(trained / "sae_weights.safetensors").items()}
    save_file(weights, paths.SAE / "sae_weights.safetensors")
    settings = json.loads((trained / "cfg.json").read_text(encoding="utf-8"))
    settings.pop("metadata", None)
    write_json(paths.SAE / "cfg.json", settings)
    shutil.copyfile(trained / "start.safetensors", paths.SAE / "start.safetensors")
    texts = {"real": load_set("math_test").samples, "world": draw_world(profile.world)["test"]}
    encoder = open_reader(profile.reader)
    card = {
        "text": {"samples": samples, "tokens": len(vectors), "corpus": {**SHARES, "world": WORLD_SAMPLES}},
        "settings": to_dict(SHIPPED_SAE), "reader": identity(replace(profile.reader, sae="none")),
        "quality": {name: asdict(measured(found, encoder)) for name, found in texts.items()},
        "licence": "Apache-2.0", "command": "python -m saerl_lib reader sae", "provenance": provenance(),
    }  # fmt: skip
    write_json(paths.SAE / "card.json", card)
    print(json.dumps(card["quality"], indent=1))


def train_variants(profile: Profile) -> None:
    """Train what stands beside the shipped SAE, each a folder that the ladder reads, and write the curve over k. Finished ones
    are kept. `sae_short#1` and `#2` differ from `#0` in their seed alone, `sae_k8` in k."""
    todo = {name: path for name in TRAININGS if not ((path := paths.sae_dir() / name) / "cfg.json").is_file()}
    _, vectors = corpus_vectors(profile) if todo else (0, torch.empty(0))
    for name, path in todo.items():
        train_sae(vectors, replace(SHORT, **TRAININGS[name]), path, "frozen_decoder" if name == FROZEN else "trained")
    write_csv(curve_table(profile), "sae_curve", paths.PUBLISHED)


def curve_samples(config: LadderConfig) -> dict[str, Task]:
    """Two tasks of questions alone: DeepMath's difficulty, and MATH's subject on as many samples."""
    tasks = real_tasks(load_set, config, held_out_keys())
    difficulty = next(t for t in tasks if (t.dataset, t.target) == ("deepmath_18k", "difficulty_level"))
    subject = next(t for t in tasks if (t.dataset, t.target) == ("math_test", "subject"))
    sides = {}
    for side, count in (("train", 2000), ("test", 1000)):
        samples, labels = getattr(subject, side), getattr(subject, f"y_{side}")
        rows = hash_order(samples)[:count]  # MATH's files are sorted by subject
        sides |= {side: tuple(replace(samples[i], solved=False) for i in rows), f"y_{side}": labels[rows]}
    return {"difficulty": difficulty, "subject": replace(subject, **sides)}


def curve_table(profile: Profile) -> pd.DataFrame:
    """Rows of sae_curve.csv: explained variance and probes against k, for the SAE, one as drawn, and k principal directions.
    Explained variance on MATH's test problems with their solutions; PCA is fitted on a part of the corpus."""
    encoder, tasks = open_reader(profile.reader), curve_samples(profile.ladder)
    trained = {SHIPPED_SAE.k: SEEDS[0]} | {TRAININGS[name]["k"]: name for name in TRAININGS if name.startswith("sae_k")}
    width = encoder.sae.cfg.d_in
    saes = {f"sae#{k}": open_sae(str((paths.sae_dir() / name).absolute()), width) for k, name in sorted(trained.items())}
    saes |= {f"sae_untrained#{k}": untrained_sae(0, k) for k in sorted(trained)}
    held = load_set("math_test").samples
    held = [held[i] for i in hash_order(held)[:MEASURED_SAMPLES]]
    size, longest = encoder.tokens_per_batch, encoder.max_tokens
    vectors = torch.cat(list(token_vectors(held, encoder.decoder, encoder.tokenizer, size, longest)))
    part = load_file(min((paths.sae_dir() / "vectors" / "real").glob("*.safetensors")))["vectors"].double()
    mean, directions = part.mean(dim=0), torch.linalg.eigh(torch.cov(part.T)).eigenvectors.flip(1)
    pca = {k: directions[:, :k] for k in sorted(trained)}
    rows = explained_rows(saes, vectors, mean, pca)
    everyone = replace(encoder, saes=saes, dense=True)
    for name, task in tasks.items():
        folder = paths.sae_dir() / "curve" / name
        shutil.rmtree(folder, ignore_errors=True)
        encode({folder: [*task.train, *task.test]}, replace(profile.reader, dense=True), workers=1, opened=lambda: everyone)
        blocks = {reader: Store(folder, reader).blocks() for reader in saes} | {DENSE: Store(folder).values(DENSE)}
        rows += probe_rows(name, task, Store(folder).ids, blocks | projections(blocks[DENSE], mean, pca), profile)
        if task.kind == "rank":
            rows += probe_rows("difficulty_by_retained", task, Store(folder).ids, few_latents(folder, task), profile)
    return as_table("sae_curve", rows)


def explained_rows(saes: Mapping[str, SAE], vectors: Tensor, mean: Tensor, pca: Mapping[int, Tensor]) -> list[tuple]:
    """Share of the variance of vectors [n, D] that each SAE and `k` principal directions [D, k] around `mean` [D] keep."""
    found = {name: measure_sae(sae, vectors.split(4096)).explained_variance for name, sae in saes.items()}
    centred, total = vectors.double() - mean, (vectors.double() - vectors.double().mean(dim=0)).square().sum()
    found |= {f"pca#{k}": 1 - float((centred - centred @ basis @ basis.T).square().sum() / total) for k, basis in pca.items()}
    return [("explained_variance", *_named(name), value, np.nan, np.nan, len(vectors)) for name, value in found.items()]


def projections(dense: np.ndarray, mean: Tensor, pca: Mapping[int, Tensor]) -> dict[str, np.ndarray]:
    """`pca#k` -> [N, 2 k], from dense pooled features [N, 4 D]: the projection of the prompt's mean state, twice. The projection
    of a mean is the mean of the projections."""
    found = {f"pca#{k}": (dense[:, : len(mean)] - mean.numpy()) @ basis.numpy() for k, basis in pca.items()}
    return {name: np.concatenate([x, x], axis=1) for name, x in found.items()}


def probe_rows(quantity: str, task: Task, ids: Sequence[str], blocks: Mapping[str, Matrix], profile: Profile) -> list[tuple]:
    """What the ladder's probe of a task reads of each block of features [N, D] of the samples `ids`."""
    rows = []
    for reader, block in blocks.items():
        table, _ = ladder([task], {"read": (ids, block)}, profile.properties, profile.seed, only=("read",))
        rows.append((quantity, *_named(reader), *table.iloc[-1][["value", "ci_low", "ci_high", "n_test"]]))
    return rows


def few_latents(folder: Path, task: Task) -> dict[str, np.ndarray]:
    """`sae#n` -> z of the n latents that the default rule retains on the training side, of the SAE of k = 32 and as drawn."""
    training, found = {s.id for s in task.train}, {}
    for kind in ("sae", "sae_untrained"):
        store = Store(folder, f"{kind}#{SHIPPED_SAE.k}")
        rows = np.array([name in training for name in store.ids])
        for n in (15, 30, 60, 120, 240, 480):
            found[f"{kind}#{n}"] = store.select(choose_retained(store, n, rows=rows))
    return found


def _named(reader: str) -> tuple[str, int]:
    kind, _, k = reader.partition("#")
    return kind, int(k or 0)


BLOCKS = (8, 15, 23)
"""A quarter, a half and three quarters of the depth."""


def compare_blocks(profile: Profile) -> None:
    """Rows of reader_blocks.csv: what the dense token means of each block read, cross-validated on training labels alone. The
    cheapest block is chosen that is within the paired 95 % interval of the best on every task."""
    splits = {"math_train": math_splits, "deepmath_18k": lambda *given: probe_splits(*given)["deepmath_18k"]}
    rows = []
    for name, split in splits.items():
        data = split(load_set, profile.ladder, held_out_keys()).train.with_label("level")
        data = data.rows(hash_order(data.samples)[: profile.ladder.max_train])
        means = block_means([replace(s, solved=False) for s in data.samples], profile.reader)
        for label, kind in (("level", "rank"), ("subject", "topic")):
            if data.has_label(label).all():
                y = data.labels[label]
                rows += _block_rows(Task(name, label, kind, data.samples, data.samples, y, y, False), means, profile)
    write_csv(as_table("reader_blocks", rows), "reader_blocks", paths.PUBLISHED)


def _block_rows(task: Task, means: dict[int, np.ndarray], profile: Profile) -> list[tuple]:
    """One row a block; the interval is that of the best block's lead over it, on the same resampled samples."""
    found = {}
    for block, x in means.items():
        model = make_pipeline(StandardScaler(), (RidgeCV if task.kind == "rank" else RidgeClassifierCV)(np.logspace(1, 5, 9)))
        folds = KFold(5, shuffle=True, random_state=profile.seed)
        found[str(block)] = cross_val_predict(model, x, task.y_train, cv=folds)
    value = {block: metric(task.kind, predicted, task.y_train) for block, predicted in found.items()}
    pairs = [(max(value, key=lambda block: value[block]), block) for block in found]
    leads = pair_rows(task, {b: [p] for b, p in found.items()}, pairs, profile.properties.bootstrap_samples, profile.seed)
    return [(dataset, target, measure, block, value[block], *lead) for dataset, target, measure, _, block, *lead in leads]


@torch.inference_mode()
def block_means(samples: Sequence[Sample], reader: ReaderConfig) -> dict[int, np.ndarray]:
    """Block of `BLOCKS` -> [N, D] mean state after it over a prompt's tokens but the first, from one pass."""
    decoder, tokenizer, shape = open_decoder(replace(reader, layer=max(BLOCKS)))
    found = {block: np.zeros((len(samples), shape.hidden_size), dtype=np.float32) for block in BLOCKS}
    for batch in token_batches(samples, tokenizer, reader.tokens_per_batch, reader.max_tokens):
        states = decoder.body(input_ids=batch.ids, use_cache=False, output_hidden_states=True).hidden_states
        for block in BLOCKS:
            kept = batch.prompt & (states[block].norm(dim=-1) <= (reader.max_norm or np.inf))
            kept[:, 0] = False
            total = (states[block] * kept.unsqueeze(-1)).sum(dim=1) / kept.sum(dim=1, keepdim=True).clamp(min=1)
            found[block][list(batch.rows)] = total.numpy()
    return found


def run_ladder(file: Path, profile: str) -> int:
    """`ladder`: every label of `file` that can be read becomes a task; tables and figure go to their own folder."""
    chosen = get_profile(profile)
    data = load_labelled(file)
    tasks = tasks_of_file(data, chosen.ladder, held_out_keys(), lambda line: print(line, flush=True))
    read = set().union(*(load_set(name).keys for name in SHARES)) - unread_keys(chosen.ladder)
    for task in tasks:
        seen = sum(normalise(s.prompt) in read for s in task.test)
        print(f"{task.target}: {len(task.train)} training and {len(task.test)} test problems; the SAE may have been "
              f"trained on the text of {seen} of the latter, without labels", flush=True)  # fmt: skip
    folder = paths.profile_dir(chosen.name) / "files" / data.name
    group = Group(data.name, tuple(tasks))
    table, pairs = ladder(tasks, group.blocks(chosen), chosen.properties, chosen.seed)
    write_csv(table, "probe_ladder", folder)
    write_csv(pairs, "ladder_pairs", folder)
    write_json(folder / "provenance.json", {"file": file.name, "settings": content_hash(to_dict(chosen)), **provenance()})
    shown = table[table["metric"].isin(("accuracy", "spearman", "roc_auc", "pearson"))]
    print(shown.pivot_table(index="features", columns=["target", "metric"], values="value", sort=False).round(3).to_string())
    print(f"tables and figure: {draw('probe_ladder', folder, folder).parent}")
    return 0
