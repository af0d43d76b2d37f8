"""Pre-training of the world's policy on a learner's solutions: tokenizer, weights and the files that are shipped (ours)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from saerl_lib.config import sub_seed
from saerl_lib.data.sample import SEPARATOR
from saerl_lib.train.policy import FOLDER
from saerl_lib.train.sampler import log_probabilities
from saerl_lib.world.sources import Text, learner_text

SEED = 11
"""Of weights and texts."""
VOCABULARY = 900
WIDTH, LAYERS, HEADS, FEED_FORWARD = 96, 4, 4, 208
"""0.47 million parameters, embeddings tied."""
STEPS, TEXTS_PER_STEP = 4000, 32
LEARNING_RATE = 2e-3
"""Peak of a cosine schedule with 100 warm-up steps, AdamW."""
TOKENIZER_TEXTS = 20_000
logging.disable_progress_bar()
PIECES = r"\n?[-+*/]|\n?Answer: |\d|[=\n]|, then |, |; | and |[.:?] ?|[^\d,;.:?\n=*/+-]+?(?= and |[\d,;.:?\n=*/+-]|$)"
"""What the tokenizer never merges across: signs, digits, joints, and the phrases between them."""


def train_tokenizer(
    texts: Iterable[str], pieces: str = PIECES, vocabulary: int = VOCABULARY, special: Sequence[str] = ("<pad>", "<eos>")
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that merges nothing across `pieces`; of the special tokens the first pads, the last ends. By
    default it has a token for every digit and sign and, where they are frequent, for whole phrases."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pieces), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    words = {"vocab_size": vocabulary, "special_tokens": [*special], "initial_alphabet": letters, "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(**words))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], eos_token=special[-1], padding_side="left"
    )  # fmt: skip


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with tied embeddings and random weights."""
    torch.manual_seed(SEED)
    architecture = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=FEED_FORWARD, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=WIDTH**-0.5,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(architecture)


def batches(rng: random.Random) -> Iterator[list[Text]]:
    """Endless batches of texts of similar length: eight batches are drawn, sorted by length and shuffled as batches."""
    size = TEXTS_PER_STEP
    while True:
        texts = sorted((learner_text(rng) for _ in range(8 * size)), key=lambda text: len(text[0]) + len(text[1]))
        groups = [texts[i : i + size] for i in range(0, len(texts), size)]
        rng.shuffle(groups)
        yield from groups


def solution_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[Text]) -> torch.Tensor:
    """Mean cross-entropy of a solution token, its end included, in nats."""
    prompts = tokenizer([p + SEPARATOR for p, _ in texts])["input_ids"]
    solutions = [ids + [tokenizer.eos_token_id] for ids in tokenizer([s for _, s in texts])["input_ids"]]
    return -log_probabilities(model, prompts, solutions, 1.0).sum() / sum(map(len, solutions))


def rebuild_policy(folder: Path = FOLDER, steps: int = STEPS) -> list[float]:
    """Train tokenizer and policy from scratch on an endless stream of texts, on the CPU, into `folder`, weights in bfloat16;
    returns the loss of every step in nats a solution token.

    `steps` cuts the run short under the schedule of the full one, so that a short rebuild can be compared.
    """
    rng = random.Random(sub_seed(SEED, "tokenizer"))
    tokenizer = train_tokenizer("\n".join(learner_text(rng)) for _ in range(TOKENIZER_TEXTS))
    model = build_model(tokenizer).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    stream, losses = batches(random.Random(SEED)), list[float]()
    for step in range(steps):
        rate = LEARNING_RATE * min(1.0, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / STEPS)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = solution_loss(model, tokenizer, next(stream))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        if step % 100 == 0:
            print(f"step {step}: {losses[-1]:.4f} nats a token", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    model.eval().to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return losses
