"""The encoder of the embedded world: a small LM of its own that reads the data and never trains.

It has another tokenizer, width and seed than the policy and a broader corpus (worked problems, comparisons,
counting; `saerl_lib.data.corpus`), which leaves out `HELD_OUT` leaf families and shares no prompt with any split of
the world. `all_families=True` builds the control that saw every family.
"""

from __future__ import annotations

from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib import paths
from saerl_lib.artifacts import Stage
from saerl_lib.config import Profile
from saerl_lib.encode.activations import truncate
from saerl_lib.encode.language_model import LanguageModelConfig, load_model
from saerl_lib.encode.pooling import Encoder
from saerl_lib.encode.sae import load_sae

ENCODER = LanguageModelConfig(
    seed=29,
    vocabulary=900,
    width=96,
    layers=4,
    heads=4,
    feed_forward=256,
    steps=1500,
    sequences_per_step=64,
    solution_only=False,
)


def encoder_folder(all_families: bool = False) -> Path:
    """Where the shipped weights lie."""
    return paths.WEIGHTS / ("encoder_all_families" if all_families else "encoder")


def load_encoder(all_families: bool = False) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The shipped encoder, or the control that saw every family."""
    return load_model(encoder_folder(all_families))


def open_encoder(profile: Profile, sae: Stage, all_families: bool = False) -> Encoder:
    """The encoder cut at its hook, with the SAE of a stage."""
    model, tokenizer = load_encoder(all_families)
    return Encoder(
        truncate(model, profile.encoder.hook_layer),
        tokenizer,
        load_sae(sae.path("sae"), ENCODER.width),
        profile.encoder.tokens_per_batch,
    )
