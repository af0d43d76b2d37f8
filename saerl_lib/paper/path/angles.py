"""GAINRL's score of a prompt: how close the directions of the policy's last-layer states lie (arXiv 2506.02281, their script)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from saerl_lib.data.sample import Sample
from saerl_lib.encode.spans import Layout, pack, sample_spans
from saerl_lib.own.model import open_tokenizer
from saerl_lib.paper.path.generate import Policy

TEMPLATE_WEIGHT = 8.0
"""Of the tokens before the question (their public script)."""


@torch.inference_mode()
def angle_concentration(policy: Policy, samples: Sequence[Sample], tokens_per_batch: int, chat: bool) -> np.ndarray:
    """Mean cosine of the question's tokens with each other, each pair and itself, plus `TEMPLATE_WEIGHT` times that with the
    tokens of the chat template before them, float64 [N]; plain prompts have none.

    Samples of similar length go together, padded behind. Raises DataError when the template changes a question.
    """
    tokenizer = open_tokenizer(str(policy.folder), [s.prompt for s in samples[:20]], local=True)
    spans = [sample_spans(sample, tokenizer, Layout(chat=chat, prompt_only=True)) for sample in samples]
    out = np.empty(len(spans))
    for rows in pack([len(span.ids) for span in spans], tokens_per_batch):
        width = max(len(spans[i].ids) for i in rows)
        ids, real, question, before = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(4))
        for place, i in enumerate(rows):
            span = spans[i]
            ids[place, : len(span.ids)], real[place, : len(span.ids)] = torch.tensor(span.ids), 1
            question[place, : len(span.ids)] = torch.tensor(span.prompt, dtype=torch.long)
            before[place, : span.prompt.index(True) if chat else 0] = 1
        inputs = {"input_ids": ids.to(policy.device), "attention_mask": real.to(policy.device)}
        states = policy.model.base_model(**inputs, use_cache=False).last_hidden_state.double().cpu()
        directions = torch.nn.functional.normalize(states, dim=-1)
        own, other = (
            (directions * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1) for mask in (question, before)
        )
        out[list(rows)] = ((own * own).sum(dim=1) + TEMPLATE_WEIGHT * (own * other).sum(dim=1)).numpy()
    return out
