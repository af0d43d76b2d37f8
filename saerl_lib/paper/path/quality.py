"""Whether the SAE reads the residual stream that it was trained on: its reconstruction of the samples' own tokens (ours).

A wrong layer or model raises no error by itself; features of it would be noise. Measured before anything is encoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from saerl_lib.artifacts import Stage
from saerl_lib.data.schema import Sample
from saerl_lib.encode.activations import token_vectors
from saerl_lib.encode.pooling import Encoder
from saerl_lib.encode.sae import SAEGateError, SAEQuality, measure_sae
from saerl_lib.encode.sources import open_sae_source
from saerl_lib.encode.spans import sample_spans
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.path.home import Home, code_of
from saerl_lib.paper.path.places import sae_name, samples_digest

CODE = code_of("paper/path/quality.py", "encode", "own/model.py", "data/schema.py")
MEASURED_SAMPLES = 256
"""The first of L, which lie in hash order."""
MEASURED_TOKENS = 32_768
"""Of longer samples every n-th token is taken; bounds the memory to this times the model's width."""
TOKENS_AT_ONCE = 1024
"""Tokens whose latents, this times F, are held together."""


def quality_stage(
    home: Home, samples: Sequence[Sample], reading: Mapping[str, Any], opened: Callable[[], Encoder]
) -> Stage:
    """sae_quality.csv of the SAE on the first samples of L. Raises SAEGateError for an SAE that does not explain them."""
    part = samples[:MEASURED_SAMPLES]

    def compute(folder: Path) -> None:
        quality = measured(part, opened(), sae_name(home.config))
        require_explained(quality, home.config)
        quality_table(quality).to_csv(folder / "sae_quality.csv", index=False, float_format="%.6g", lineterminator="\n")

    return home.stage("encode", "sae_quality", CODE, {**reading, "samples": samples_digest(part)}, compute)


def measured(samples: Sequence[Sample], encoder: Encoder, source: str) -> SAEQuality:
    """Quality of the SAE named `source` on activations of the encoder's model; the SAE runs on the CPU in float32."""
    tokens = sum(len(sample_spans(sample, encoder.tokenizer, encoder.layout).ids) for sample in samples)
    stride = max(1, math.ceil(tokens / MEASURED_TOKENS))
    parts = token_vectors(samples, encoder.decoder, encoder.tokenizer, encoder.tokens_per_batch, encoder.layout)
    vectors = torch.cat([part[::stride] for part in parts])
    return measure_sae(open_sae_source(source, vectors.shape[1]), vectors.split(TOKENS_AT_ONCE))


def require_explained(quality: SAEQuality, config: PaperConfig) -> None:
    """Raise SAEGateError unless the SAE reconstructs better than the mean vector does."""
    if not quality.explained_variance > 0:
        raise SAEGateError(
            f"--sae {sae_name(config)}: explained variance {quality.explained_variance:.3f} on {quality.n_tokens} tokens is not "
            f"above 0, which the mean vector alone would reach; block {config.encoder_layer} (--layer) or the model (--encoder) "
            "is probably not the one that this SAE was trained on"
        )


def quality_table(quality: SAEQuality) -> pd.DataFrame:
    """Rows in the schema of the study's sae_quality.csv."""
    rows = [
        ("paper", "explained variance", quality.explained_variance, 0.0, 1.0, True, quality.n_tokens),
        ("paper", "dead share", quality.dead_share, None, None, None, quality.n_tokens),
        ("paper", "L0", quality.l0, None, None, None, quality.n_tokens),
    ]
    return pd.DataFrame(rows, columns=["encoder", "quantity", "value", "low", "high", "met", "n_tokens"])
