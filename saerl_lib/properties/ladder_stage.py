"""Stages `ladder_<group>`: the full control ladder on the world and on real data (profile `method`; smoke in small).

A group of tasks shares its samples, so each sample is encoded once. A stage keeps every test prediction, so that a reader can
ask new questions without fitting again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from saerl_lib import paths
from saerl_lib.artifacts import Stage, file_sha256, get_or_compute
from saerl_lib.config import Profile, sub_seed, to_dict
from saerl_lib.data.sample import Sample, hash_share, normalise
from saerl_lib.data.stage import load_split
from saerl_lib.encode.kinds_stage import ladder_reader, sae_kinds_stage
from saerl_lib.encode.one_pass import read_retaining
from saerl_lib.encode.readers import DENSE, Reader
from saerl_lib.encode.real_stage import data_file, held_out_keys, load_set, text_model_stage
from saerl_lib.encode.sentence import sentence_embeddings, sentence_model_folder
from saerl_lib.encode.sentence_stage import sentence_reader
from saerl_lib.properties.controls import FeatureSet, block_sets, predict_all, task_texts, text_sets
from saerl_lib.properties.scores import task_rows
from saerl_lib.properties.tasks import Task, real_tasks, world_tasks

GROUPS = {
    "math": ("math_train", "math_test"),
    "deepmath": ("deepmath_18k", "deepscaler_pass_rate"),
    "valimath": ("quality_valimath",),
    "dsr": ("dsr_sub_training_accuracy",),
}
"""Group of real tasks -> the files they read."""
WORLD_SPLITS = ("labelled", "test", "contest_train", "contest_test", "step_labelled")


def group_of(task: Task) -> str:
    """The group that a real task belongs to."""
    return next(name for name, files in GROUPS.items() if task.dataset in files)


def encode_tasks(
    tasks: Sequence[Task], profile: Profile, reader: Reader, folder: Path, sentence: Reader | None = None
) -> None:
    """Features of all samples of some tasks: features.safetensors, samples.parquet (id, row) and counts.parquet.

    Retained sets are chosen on training samples alone. `sentence/prompt` and `sentence/both` are there when the package is;
    `sentence` reads the SAEs of that model.
    """
    samples: dict[str, Sample] = {s.id: s for task in tasks for s in (*task.train, *task.test)}
    training = {s.id: s for task in tasks for s in task.train}
    ordered = sorted(training.values(), key=lambda s: (hash_share(normalise(s.prompt)), s.id))
    chosen = {s.id for s in ordered[: profile.method.max_train]}
    config = profile.method.text_sae if reader.layout.max_tokens else profile.encoder
    rule = config.retained_latents, config.frequency_band, config.retained_rule, profile.method.workers
    pooled, _ = read_retaining(list(samples.values()), chosen, reader, *rule)
    arrays = dict(pooled.features)
    if sentence is not None:
        read, _ = read_retaining(list(samples.values()), chosen, sentence, *rule)
        arrays |= {name: values for name, values in read.features.items() if name != DENSE}
    if sentence_model_folder() is not None:
        for with_solution in sorted({task.with_solution for task in tasks}):
            texts = task_texts(list(samples.values()), with_solution)
            arrays[SENTENCE[with_solution]] = sentence_embeddings(texts, profile.method.workers)
    save_file(arrays, folder / "features.safetensors")
    pd.DataFrame({"sample_id": list(samples)}).to_parquet(folder / "samples.parquet", index=False)
    counts = [(t.dataset, t.target, len(t.train), len(t.test), len(samples), pooled.truncated) for t in tasks]
    columns = ["dataset", "target", "n_train", "n_test", "n_encoded", "n_truncated"]
    pd.DataFrame(counts, columns=columns).to_parquet(folder / "counts.parquet", index=False)


def task_sets(task: Task, encoded: Path, profile: Profile, seed: int) -> list[FeatureSet]:
    """Every rung of the ladder for one task, from the folder that `encode_tasks` wrote."""
    row = {name: i for i, name in enumerate(pd.read_parquet(encoded / "samples.parquet")["sample_id"])}
    places = [np.array([row[s.id] for s in side]) for side in (task.train, task.test)]
    blocks, sentence = {}, []
    with safe_open(encoded / "features.safetensors", framework="numpy") as handle:
        for name in sorted(handle.keys()):
            if name in SENTENCE.values():
                if name == SENTENCE[task.with_solution]:
                    values = handle.get_tensor(name)
                    sentence = [FeatureSet("sentence_embedding", *(values[p] for p in places))]
                continue
            values = handle.get_tensor(name)
            blocks[name] = tuple(values[p] for p in places)
    width = (4 if task.with_solution else 2) * profile.encoder.retained_latents
    return [*text_sets(task), *sentence, *block_sets(task, blocks, width, seed)]


def ladder_of(tasks: Sequence[Task], profile: Profile, encoded: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of probe_ladder.csv, and every test prediction, for tasks whose samples lie encoded in a folder."""
    rows, predictions = [], []
    for task in tqdm(tasks, desc="ladder", unit="task"):
        seed = sub_seed(profile.seed, f"ladder-{task.dataset}-{task.target}")
        found = predict_all(task, task_sets(task, encoded, profile, seed), profile.properties, seed, profile.method.workers)
        rows += task_rows(task, found, profile.properties.bootstrap_samples, seed, profile.method.workers)
        predictions += [
            pd.DataFrame({"target": task.target, "features": n, "seed": s, "sample_id": [x.id for x in task.test],
                          "prediction": np.asarray(v).astype(str), "label": task.y_test.astype(str)})
            for (n, s), v in found.items()
        ]  # fmt: skip
    return pd.DataFrame([dataclasses.asdict(r) for r in rows]), pd.concat(predictions)


def _stage(
    profile: Profile, group: str, tasks: Sequence[Task], reader: Reader, inputs: tuple[Stage, ...], second: Reader | None = None
) -> Stage:
    files = {name: file_sha256(data_file(name))[:16] for name in GROUPS.get(group, ())}
    sentence = sentence_model_folder() is not None
    shared = {"method": to_dict(profile.method), "encoder": to_dict(profile.encoder), "data": files, "seed": profile.seed}

    def encode(folder: Path) -> None:
        encode_tasks(tasks, profile, reader, folder, second)

    encoded = get_or_compute(profile, f"encoded_{group}", ENCODED_CODE, {**shared, "sentence": sentence}, encode, inputs)

    def compute(folder: Path) -> None:
        for name, table in zip(("ladder", "predictions"), ladder_of(tasks, profile, encoded.folder), strict=True):
            table.to_parquet(folder / f"{name}.parquet", index=False)

    settings = {**shared, "properties": to_dict(profile.properties)}
    return get_or_compute(profile, f"ladder_{group}", LADDER_CODE, settings, compute, (encoded,))


SENTENCE = {False: "sentence/prompt", True: "sentence/both"}
"""Whether the solution is read -> name of the sentence embeddings."""
ENCODED_CODE = (
    "data/published.py", "data/rows.py", "data/sample.py", "encode/activations.py", "encode/one_pass.py", "encode/pooling.py",
    "encode/readers.py", "encode/retain.py", "encode/sentence.py", "encode/sparse.py", "encode/spans.py", "encode/topk.py",
    "properties/tasks.py",
)  # fmt: skip
"""Files that decide the features; the SAEs and the LM come in as stages."""
LADDER_CODE = (
    *ENCODED_CODE, "encode/metadata.py", "properties/controls.py", "properties/ladder_stage.py", "properties/probes.py",
    "properties/scores.py", "properties/text.py",
)  # fmt: skip
"""Files that decide the ladder."""


def world_ladder_stage(profile: Profile, world: Stage) -> Stage:
    """The full ladder on the embedded world."""
    saes = sae_kinds_stage(profile, "world", None)
    tasks = world_tasks({name: load_split(world, name) for name in WORLD_SPLITS})
    return _stage(profile, "world", tasks, ladder_reader(profile, saes, None), (world, saes))


def real_ladder_stages(profile: Profile) -> list[Stage]:
    """The full ladder on the real sets, a stage a group."""
    text_model = text_model_stage(profile)
    saes = sae_kinds_stage(profile, "text", text_model)
    tasks = real_tasks(load_set, profile.method, held_out_keys())
    reader = ladder_reader(profile, saes, text_model)
    second = sentence_reader(profile)
    inputs = (text_model, saes, *((second[1],) if second else ()))
    by_group = {name: [t for t in tasks if group_of(t) == name] for name in GROUPS}
    return [_stage(profile, name, part, reader, inputs, second[0] if second else None) for name, part in by_group.items()]


def ladder_stages(profile: Profile, world: Stage) -> list[Stage]:
    """Every group that the profile asks for and that can be had: the real ones need `SAERL_DATA_DIR`."""
    return [world_ladder_stage(profile, world), *(real_ladder_stages(profile) if has_real_data(profile) else [])]


def has_real_data(profile: Profile) -> bool:
    """Whether the profile reads the real sets: the folder is there, or the profile demands it."""
    return profile.method is not None and (profile.method.real_data == "required" or paths.shared_data_dir() is not None)
