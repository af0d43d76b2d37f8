"""Whether an SAE reads the residual stream that it was trained on: its reconstruction of some samples' own tokens (ours).

A wrong layer or model raises no error by itself; features of it would be noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from saerl_lib.data.sample import Sample
from saerl_lib.encode.activations import token_vectors
from saerl_lib.encode.pooling import Encoder
from saerl_lib.encode.sae import SAEQuality, measure_sae
from saerl_lib.encode.sources import open_sae_source
from saerl_lib.encode.spans import sample_spans

MEASURED_SAMPLES = 256
"""Samples that are read for it."""
MEASURED_TOKENS = 32_768
"""Of longer samples every n-th token is taken; bounds the memory to this times the model's width."""
TOKENS_AT_ONCE = 1024
"""Tokens whose latents, this times F, are held together."""


def measured(samples: Sequence[Sample], encoder: Encoder, source: str) -> SAEQuality:
    """Quality of the SAE named `source` on activations of the encoder's model; the SAE runs on the CPU in float32."""
    tokens = sum(len(sample_spans(sample, encoder.tokenizer, encoder.layout).ids) for sample in samples)
    stride = max(1, math.ceil(tokens / MEASURED_TOKENS))
    parts = token_vectors(samples, encoder.decoder, encoder.tokenizer, encoder.tokens_per_batch, encoder.layout)
    vectors = torch.cat([part[::stride] for part in parts])
    return measure_sae(open_sae_source(source, vectors.shape[1]), vectors.split(TOKENS_AT_ONCE))


def explains(quality: SAEQuality) -> bool:
    """Whether the SAE reconstructs better than the mean vector does."""
    return quality.explained_variance > 0
