"""`bench encode`: token activations + SAE + pooling, against the bare forward pass of the same model on the same batches."""

from __future__ import annotations

import numpy as np

from saerl_lib.artifacts import Stage
from saerl_lib.bench.timing import REPEATS, report, seconds
from saerl_lib.config import Profile
from saerl_lib.data.stage import load_split
from saerl_lib.encode.activations import activations, token_batches
from saerl_lib.encode.pooling import pool_samples
from saerl_lib.encode.stage import open_encoder, sae_stage


def bench_encode(profile: Profile, world: Stage) -> int:
    """Median of `REPEATS` alternating passes over 2,000 samples."""
    encoder = open_encoder(profile, sae_stage(profile))
    samples = load_split(world, "pool")[:2000]
    batches = list(token_batches(samples, encoder.tokenizer, encoder.tokens_per_batch))
    retained = np.arange(profile.encoder.retained_latents)

    def forward() -> None:
        for batch in batches:
            activations(encoder.decoder, batch)

    floor, ours = [], []
    for _ in range(REPEATS):
        floor.append(seconds(forward))
        ours.append(seconds(lambda: pool_samples(samples, encoder, retained)))
    real = sum(int((b.prompt | b.solution).sum()) for b in batches)
    padded = sum(b.ids.numel() for b in batches)
    forward_s, encode_s = float(np.median(floor)), float(np.median(ours))
    return report(
        {
            "forward_s": forward_s,
            "encode_s": encode_s,
            "ratio_encode_to_forward": encode_s / forward_s,
            "tokens_per_second": real / encode_s,
            "padded_to_real_tokens": padded / real,
            "samples": len(samples),
        }
    )
