"""Local stand-ins of everything that profile `paper` takes from the hub: models, SAEs and data sets in the published formats."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from saerl_lib.data.sample import Sample
from saerl_lib.encode.pool import Encoder, write_shard
from saerl_lib.encode.sae import fresh_sae
from saerl_lib.encode.store import Store, shard_path
from saerl_lib.needs import SETS

WIDTH, LATENTS = 32, 64
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TOPICS = ("Mathematics -> Algebra -> Sums", "Mathematics -> Number Theory -> Products")


def deepmath_rows(count: int) -> list[dict[str, Any]]:
    """Rows of zwhe99/DeepMath-103K: remainders of sums and products, harder with larger numbers."""
    rows = []
    for i in range(count):
        a, b, product = 3 + 7 * i, 5 + 11 * i, i % 2
        value, sign, name = (a * b, "*", "product") if product else (a + b, "+", "sum")
        rows.append({
            "question": f"Divide the {name} of $a = {a}$ and $b = {b}$ by 3. What remains?", "final_answer": str(value % 3),
            "difficulty": 1.0 + i / 8 + product, "topic": TOPICS[product],
            "r1_solution_1": f"Let me think.\n</think>\n\n{a} {sign} {b} = {value}.\nSo \\boxed{{{value % 3}}}.",
            "r1_solution_2": "b", "r1_solution_3": "c",
        })  # fmt: skip
    return rows


def numina_rows(count: int) -> list[dict[str, Any]]:
    """Rows of AI-MO/NuminaMath-1.5: word problems, of which every tenth is a proof."""
    return [
        {
            "problem": f"A farmer has {i + 2} cows and buys {2 * i} more of them. How many cows are there?",
            "solution": f"There are {3 * i + 2} cows in the end, since {i + 2} and {2 * i} were counted.",
            "answer": "proof" if i % 10 == 9 else str(3 * i + 2), "problem_type": "Algebra", "question_type": "math-word-problem",
            "problem_is_valid": "Yes", "solution_is_valid": "Yes", "source": "olympiads", "synthetic": False,
        }
        for i in range(count)
    ]  # fmt: skip


def deepscaler_rows(count: int) -> list[dict[str, Any]]:
    """Rows of DeepScaleR with the pass rates that its derivatives carry."""
    return [
        {"problem": f"Find the remainder of ${31 * i + 7}$ by 9.", "answer": str((31 * i + 7) % 9), "solution": "",
         "pass_rate": (i % 8) / 8}
        for i in range(count)
    ]  # fmt: skip


def prm_rows(count: int) -> list[dict[str, Any]]:
    """Rows of PRM800K's phase 2: three solutions a question, of which the second errs and the third errs twice; then one
    whose labeller called the problem bad."""
    rows = []
    for i in range(count):
        question, wrong = 5 * (i // 3) + 2, i % 3
        texts = [(f"{question} + {n} = {question + n + 100 * (n <= wrong)}.", -1 if n <= wrong else 1) for n in (1, 2, 3)]
        steps = [{"completions": [{"text": text, "rating": rating}], "human_completion": None, "chosen_completion": 0}
                 for text, rating in texts]  # fmt: skip
        rows.append({"question": {"problem": f"Add 1, 2 and 3 to {question}.", "ground_truth_answer": str(question + 6)},
                     "label": {"steps": steps, "finish_reason": "solution"}})  # fmt: skip
    bad = {"question": {"problem": "Add.", "ground_truth_answer": "1"}, "label": {"steps": [], "finish_reason": "bad_problem"}}
    return [*rows, bad]


def benchmark_rows(name: str) -> list[dict[str, Any]]:
    """Two rows of an evaluation set, in its own schema."""
    asked = [(f"What remains of {i + 7} plus {len(name)} of {name} by 3?", str((i + 7 + len(name)) % 3)) for i in range(2)]
    if name == "gsm8k":
        return [{"question": q, "answer": f"Add.\n#### {a}"} for q, a in asked]
    if name == "olympiadbench":
        return [{"id": i, "question": q, "context": None, "solution": ["Add."], "final_answer": [a], "subfield": "Algebra"}
                for i, (q, a) in enumerate(asked)]  # fmt: skip
    if name in ("amc23", "minerva"):
        return [{"question": q, "answer": a} for q, a in asked]
    more = {"subject": "Algebra", "level": 2} if name == "math500" else {}
    return [{"problem": q, "solution": "Add.", "answer": a, **more, **({"unique_id": f"t/{i}"} if more else {"id": i})}
            for i, (q, a) in enumerate(asked)]  # fmt: skip


def write_set(root: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """A folder OWNER/NAME as the hub serves it: Parquet, and the card's list of configurations where the set has several."""
    data = SETS[name]
    folder, inner = root / data.repository, data.configuration or "data"
    if data.data_file:
        folder.mkdir(parents=True)
        (folder / data.data_file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return
    (folder / inner).mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / inner / f"{data.split}-00000-of-00001.parquet")
    if data.configuration:
        entry = f"- config_name: {inner}\n  data_files:\n  - split: {data.split}\n    path: {inner}/*"
        (folder / "README.md").write_text("\n".join(["---", "configs:", entry, "---", ""]))


def build_tokenizer(texts: list[str], folder: Path) -> int:
    """A byte-level BPE tokenizer with Qwen's splitting, special tokens and a chat template; returns its size."""
    from saerl_lib.studies.world_check import train_tokenizer  # loads TRL

    fast = train_tokenizer(texts, QWEN_SPLIT, 400, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return len(fast)


def build_qwen(kind: str, texts: list[str], folder: Path) -> Path:
    """A tiny qwen2 or qwen3 with its tokenizer, as safetensors."""
    vocabulary = build_tokenizer(texts, folder)
    shape = {"vocab_size": vocabulary, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
             "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None}  # fmt: skip
    torch.manual_seed(3)
    shape |= {"head_dim": 8} if kind == "qwen3" else {}
    architecture, config = (getattr(transformers, f"{kind.capitalize()}{part}") for part in ("ForCausalLM", "Config"))
    architecture(config(**shape)).save_pretrained(folder)
    return folder


def teach(folder: Path, prompts: list[str], steps: int = 60) -> None:
    """Teach a stand-in to box a remainder at random, so that some attempts are right and groups differ."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(6)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        shown = [
            tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
            for prompt in prompts[step % 4 :: 4]
        ]
        answers = [f"\\boxed{{{digit}}}<|im_end|>" for digit in torch.randint(0, 3, (len(shown),)).tolist()]
        rows = [tokenizer(text + answer)["input_ids"] for text, answer in zip(shown, answers, strict=True)]
        length = max(map(len, rows))
        ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
        labels = ids.clone()
        labels[:, : length - len(tokenizer(answers[0])["input_ids"])] = -100
        model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)


def turned(seed: int) -> torch.Tensor:
    """Encoder weights [D, F], F = 2 D: a rotation in both signs, whose transpose reconstructs what ReLU lets through."""
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed)))[0]
    return torch.cat([rotation, -rotation], dim=1)


def build_saelens(folder: Path) -> Path:
    """A JumpReLU SAE as SAELens saves it, which explains activations of any model of its width."""
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=WIDTH, d_sae=LATENTS))
    with torch.no_grad():
        sae.W_enc.copy_(5 * turned(4))
        sae.W_dec.copy_(turned(4).T / 5)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
        sae.threshold.fill_(0.02)
    sae.save_model(str(folder))
    return folder


def build_opensae(folder: Path) -> Path:
    """A TopK checkpoint of OpenSAE."""
    tensors = {
        "encoder.weight": turned(5).T.contiguous(), "encoder.bias": torch.zeros(LATENTS),
        "W_dec": turned(5).T.contiguous(), "b_dec": torch.zeros(WIDTH),
    }  # fmt: skip
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    values = {"hidden_size": WIDTH, "feature_size": LATENTS, "input_normalize": True, "input_normalize_eps": 1e-5,
              "activation": "topk", "k": 7}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def untrained_sae(folder: Path) -> Path:
    """An SAE of the shipped policy as drawn, with 128 latents: they mean nothing, their arithmetic is that of any other."""
    from saerl_lib.studies.world_check import WIDTH  # loads TRL

    fresh_sae(torch.zeros(WIDTH), 0, 8, 128).save_inference_model(folder)
    return folder


def pooled(samples: list[Sample], encoder: Encoder, retained: np.ndarray) -> np.ndarray:
    """z [N, 4 S] of samples, read now."""
    with tempfile.TemporaryDirectory() as folder:
        write_shard(samples, encoder, shard_path(Path(folder), 0), {})
        return Store(Path(folder)).select(retained)
