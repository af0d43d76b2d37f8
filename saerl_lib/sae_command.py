"""`python -m saerl_lib sae --text FILE --encoder MODEL --layer N --tokens N --out DIR`: an SAE of one's own, on any text."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

EXPANSION = 64
"""F over the model's width (paper, section C.1)."""


def add_sae_options(parser: argparse.ArgumentParser) -> None:
    """The options of `sae`."""
    add = parser.add_argument
    add("--text", nargs="+", required=True, metavar="FILE",
        help="JSON lines, Parquet or text, or OWNER/NAME@COMMIT[:CONFIGURATION] on the hub; read one after another")  # fmt: skip
    add("--text-field", default="text", metavar="NAME", help="field that holds the text (default: text)")
    add("--encoder", required=True, metavar="MODEL", help="model in Hugging Face format: folder or hub name")
    add("--layer", type=int, required=True, metavar="N", help="block whose residual stream is read, 1 is the first")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the SAE; the same command goes on there")
    add("--tokens", type=int, required=True, metavar="N", help="activation vectors to train on")
    add("--latents", type=int, metavar="F", help=f"width (default: {EXPANSION} times the model's, as the paper's)")
    add("--k", type=int, default=50, metavar="N", help="active latents a token (default: 50)")
    add("--learning-rate", type=float, default=3e-4, metavar="X", help="of Adam (default: 0.0003)")
    add("--vectors-per-step", type=int, default=4096, metavar="N", help="vectors of one optimiser step (default: 4096)")
    add("--context", type=int, default=1024, metavar="N", help="tokens of a block of text (default: 1024)")
    add("--buffer", type=int, default=131_072, metavar="N", help="vectors that are mixed; bounds the memory (default: 131072)")
    add("--heldout", type=int, default=100_000, metavar="N", help="first vectors, which measure the SAE (default: 100000)")
    add("--checkpoint-every", type=int, default=10_000_000, metavar="N", help="vectors between checkpoints (default: 10000000)")
    add("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    add("--bf16", action="store_true", help="run the model in bfloat16; the SAE stays in float32")
    add("--seed", type=int, default=0, metavar="N", help="of weights and mixing (default: 0)")


def run_sae(a: argparse.Namespace) -> int:
    """Train or go on; the last line is one JSON object. Raises what `open_decoder` and `train_text_sae` raise."""
    from saerl_lib.encode.text_stream import require_sources

    require_sources(a.text)
    from saerl_lib.encode.models import open_decoder
    from saerl_lib.encode.text_sae import TextSAEConfig, train_text_sae

    started = time.monotonic()
    decoder, tokenizer, width, identity = open_decoder(a.encoder, a.layer, a.device, a.bf16)
    config = TextSAEConfig(
        latents=a.latents or EXPANSION * width, tokens=a.tokens, k=a.k, learning_rate=a.learning_rate,
        vectors_per_step=a.vectors_per_step, context=a.context, buffer_vectors=a.buffer, heldout_tokens=a.heldout,
        checkpoint_every=a.checkpoint_every, seed=a.seed,
    )  # fmt: skip
    quality = train_text_sae(a.text, a.text_field, decoder, tokenizer, config, identity, a.out, lambda t: print(t, flush=True))
    print(f"{a.out}: explained variance {quality.explained_variance:.3f}, L0 {quality.l0:.1f}, dead share "
          f"{quality.dead_share:.3f} on {quality.n_tokens:,} held-out tokens; read it with --sae {a.out}")  # fmt: skip
    line = {"explained_variance": quality.explained_variance, "l0": quality.l0, "dead_share": quality.dead_share,
            "tokens": a.tokens, "seconds": round(time.monotonic() - started, 1)}  # fmt: skip
    print(json.dumps(line))
    return 0
