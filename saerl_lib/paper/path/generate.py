"""Sampled completions of a policy, several a problem, by Hugging Face's `generate`: repeatable for a seed on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from saerl_lib.encode.models import open_tokenizer
from saerl_lib.paper.path.prompts import shown_prompts


class Policy:
    """A causal LM with its tokenizer, on the GPU where there is one."""

    def __init__(self, folder: Path, bf16: bool = False) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = torch.bfloat16 if bf16 else torch.float32
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=precision, local_files_only=True).to(self.device).eval()
        self.folder = folder

    @torch.inference_mode()
    def complete(
        self, prompts: Sequence[str], attempts: int, max_tokens: int, temperature: float, sequences: int, seed: int, chat: bool
    ) -> list[list[str]]:
        """`attempts` completions of each of N prompts, [N][attempts], without special tokens.

        Prompts of similar length go together; the sampler's stream starts anew with `seed`.
        """
        tokenizer = open_tokenizer(str(self.folder), prompts[:20], local=True)
        tokenizer.padding_side = "left"
        shown = shown_prompts(tokenizer, prompts, chat)
        lengths = [len(ids) for ids in tokenizer(shown, add_special_tokens=not chat)["input_ids"]]
        order = sorted(range(len(shown)), key=lambda i: (lengths[i], i))
        rows = [i for i in order for _ in range(attempts)]
        found: list[list[str]] = [[] for _ in shown]
        torch.manual_seed(seed)
        for start in range(0, len(rows), sequences):
            batch = rows[start : start + sequences]
            inputs = tokenizer([shown[i] for i in batch], return_tensors="pt", padding=True, add_special_tokens=not chat)
            width = inputs["input_ids"].shape[1]
            out = self.model.generate(
                input_ids=inputs["input_ids"].to(self.device), attention_mask=inputs["attention_mask"].to(self.device),
                generation_config=self._settings(tokenizer, max_tokens, temperature),
            )  # fmt: skip
            for i, text in zip(batch, tokenizer.batch_decode(out[:, width:], skip_special_tokens=True), strict=True):
                found[i].append(text)
        return found

    def _settings(self, tokenizer: Any, max_tokens: int, temperature: float) -> GenerationConfig:
        """Plain sampling: what a model's own generation settings would cut (top-k, top-p, penalties) is switched off by name."""
        own = self.model.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        return GenerationConfig(
            do_sample=True, temperature=temperature, top_p=1.0, top_k=0, min_p=None, repetition_penalty=1.0,
            max_new_tokens=max_tokens, pad_token_id=tokenizer.pad_token_id or 0, eos_token_id=sorted(ends) or None,
        )  # fmt: skip
