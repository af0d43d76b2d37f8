"""The base policies of the embedded world: small models pre-trained on a learner's solutions.

Every skill slips at its own rate (`saerl_lib.data.skills.SLIP_RATE`), more often at higher levels, so that RL has
skills to mend one by one.
"""

from __future__ import annotations

from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saerl_lib import paths
from saerl_lib.encode.language_model import LanguageModelConfig, load_model

POLICY = LanguageModelConfig(
    seed=11, vocabulary=640, width=128, layers=4, heads=4, feed_forward=384, steps=4000, sequences_per_step=96
)
LARGE = LanguageModelConfig(
    seed=12, vocabulary=640, width=192, layers=6, heads=6, feed_forward=576, steps=2000, sequences_per_step=96,
    learning_rate=1.33e-3,
)  # fmt: skip
"""3.2 times the parameters on half the texts, the learning rate scaled with the width; the study's second policy."""
POLICIES = {"policy": POLICY, "policy_large": LARGE}
"""Policies by the name of their folder; both have the tokenizer of the first."""
FOLDER = paths.WEIGHTS / "policy"


def policy_folder(name: str) -> Path:
    """Where the weights of a policy of `POLICIES` lie. Raises KeyError for another name."""
    if name not in POLICIES:
        raise KeyError(f"policy {name!r} does not exist; choose one of {', '.join(POLICIES)}")
    return paths.WEIGHTS / name


def load_policy() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The shipped base policy and its tokenizer."""
    return load_model(FOLDER)
