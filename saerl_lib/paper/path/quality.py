"""Stage `sae_quality`: whether the SAE fits the model, measured on the first of L before anything is encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from saerl_lib.artifacts import Stage
from saerl_lib.data.sample import Sample
from saerl_lib.encode.pooling import Encoder
from saerl_lib.encode.sae import SAEGateError, SAEQuality
from saerl_lib.encode.sae_check import MEASURED_SAMPLES, explains, measured
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.path.home import Home
from saerl_lib.paper.path.places import sae_name, samples_digest


def quality_stage(
    home: Home, samples: Sequence[Sample], reading: Mapping[str, Any], opened: Callable[[], Encoder]
) -> Stage:
    """sae_quality.csv of the SAE on the first samples of L. Raises SAEGateError for an SAE that does not explain them."""
    part = samples[:MEASURED_SAMPLES]

    def compute(folder: Path) -> None:
        quality = measured(part, opened(), sae_name(home.config))
        require_explained(quality, home.config)
        quality_table(quality).to_csv(folder / "sae_quality.csv", index=False, float_format="%.6g", lineterminator="\n")

    return home.stage("encode", "sae_quality", {**reading, "samples": samples_digest(part)}, compute)


def require_explained(quality: SAEQuality, config: PaperConfig) -> None:
    """Raise SAEGateError unless the SAE reconstructs better than the mean vector does."""
    if not explains(quality):
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
