"""Prompts as the policy gets them, in training and in evaluation alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saerl_lib.data.sample import DataError, Sample
from saerl_lib.encode.language_model import SEPARATOR
from saerl_lib.own.model import open_tokenizer


def prompt_lengths(samples: Sequence[Sample], folder: Path, chat: bool) -> list[int]:
    """Tokens of each prompt under the tokenizer of the policy in `folder`."""
    prompts = [sample.prompt for sample in samples]
    tokenizer = open_tokenizer(str(folder), prompts[:20], local=True)
    return [len(ids) for ids in tokenizer(shown_prompts(tokenizer, prompts, chat), add_special_tokens=not chat)["input_ids"]]


def shown_prompts(tokenizer: Any, prompts: Sequence[str], chat: bool) -> list[str]:
    """Prompts as text: the tokenizer's chat template with the assistant's turn opened, or a line break behind them.

    Raises DataError when the tokenizer has no chat template.
    """
    if not chat:
        return [prompt + SEPARATOR for prompt in prompts]
    if not tokenizer.chat_template:
        raise DataError("the policy's tokenizer has no chat template: pass --plain for prompts as plain text")
    return [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        for prompt in prompts
    ]
