"""Stages of profile `method` that read real mathematics: the LM trained on it, and its SAEs with their controls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage, file_sha256, get_or_compute
from saerl_lib.config import MethodConfig, Profile, to_dict
from saerl_lib.data.published import SPLIT_LABELS, corpus_texts, evaluation_keys, load_labelled, probe_splits, probe_test_keys
from saerl_lib.data.sample import LabelledSet
from saerl_lib.encode.text_model import train_text_model

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
