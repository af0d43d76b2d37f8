"""Stages of profile `method` that read real mathematics: the LM trained on it, and its SAEs with their controls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage, file_sha256, get_or_compute
from saerl_lib.config import Profile, to_dict
from saerl_lib.data.real import corpus_texts, evaluation_keys, load_labelled
from saerl_lib.encode.text_model import train_text_model

CORPUS_FILES = ("math_train", "gsm8k_train", "deepmath_18k", "deepscaler_pass_rate")
"""Files whose texts the LM is trained on, without labels and without any question of a test or evaluation set."""
TEST_FILES = ("math_test", "gsm8k_test")
"""Files whose questions are kept out of the corpus, beside every evaluation set."""
TEXT_MODEL_CODE = (
    "data/real.py", "data/schema.py", "encode/language_model.py", "encode/text_model.py", "encode/real_stage.py",
)  # fmt: skip


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
    return keys.union(*(load_labelled(data_file(name)).keys for name in TEST_FILES))


def text_model_stage(profile: Profile) -> Stage:
    """The LM of real text: `model/` in Hugging Face format and losses.npy (nats a token, one a step)."""
    config = profile.method.text_model

    def compute(folder: Path) -> None:
        texts = list(corpus_texts([load_labelled(data_file(name)) for name in CORPUS_FILES], held_out_keys()))
        with tqdm(desc="text model", unit="step") as bar:

            def report(step: int, steps: int, loss: float) -> None:
                bar.total = steps
                bar.update()
                bar.set_postfix(nats=round(loss, 3))

            losses = train_text_model(texts, config, folder / "model", report)
        np.save(folder / "losses.npy", np.array(losses, dtype=np.float32), allow_pickle=False)

    data = {name: file_sha256(data_file(name))[:16] for name in (*CORPUS_FILES, *TEST_FILES)}
    settings = {**to_dict(config), "data": data, "threads": torch.get_num_threads()}
    return get_or_compute(profile, "text_model", TEXT_MODEL_CODE, settings, compute)
