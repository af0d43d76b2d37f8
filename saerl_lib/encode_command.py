"""`python -m saerl_lib encode --data FILE --encoder FOLDER --layer N --sae SAE --out DIR`: pooled SAE latents in shards."""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path

from saerl_lib.data.rows import DEFAULTS, Fields
from saerl_lib.own.settings import OwnConfig

BARE = OwnConfig()


def add_encode_options(parser: argparse.ArgumentParser) -> None:
    """The options of `encode`."""
    add = parser.add_argument
    add("--data", nargs="+", required=True, metavar="FILE", help="JSON lines, CSV or Parquet; several are read as one list")
    add("--encoder", required=True, metavar="FOLDER", help="model in Hugging Face format")
    add("--layer", type=int, required=True, metavar="N", help="block whose residual stream the SAE reads, 1 is the first")
    add("--sae", required=True, metavar="SAE", help="FOLDER saved by SAELens, or opensae:FOLDER")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the shards; the same command continues there")
    for name, usual in DEFAULTS.items():
        add(f"--{name}-field", metavar="NAME", help=f"field of the {name} (default: {usual})")
    add("--max-tokens", type=int, metavar="N", help="cut longer samples (default: the model's positions)")
    add("--tokens-per-batch", type=int, default=BARE.tokens_per_batch, metavar="N",
        help=f"padded tokens of one batch; bounds the memory (default: {BARE.tokens_per_batch})")  # fmt: skip
    add("--skip-bad-rows", action="store_true", help="leave malformed rows out and list them, instead of stopping")
    add("--shard-rows", type=int, default=4096, metavar="N", help="rows of a shard, a multiple of 256 (default: 4096)")
    add("--workers", type=int, metavar="N", help="processes (default: one a core, on Ray one a CPU of the cluster)")
    add("--ray", metavar="ADDRESS", help='HOST:PORT of a Ray cluster, or auto; needs pip install -e ".[ray]"')


def run_encode(a: argparse.Namespace) -> int:
    """Encode, tell each shard; the last line is one JSON object. Raises what `encode_files` raises."""
    if a.workers is not None and a.workers < 1:
        raise ValueError(f"--workers {a.workers} must be at least 1")
    config = OwnConfig(
        fields=Fields(**{name: getattr(a, f"{name}_field") for name in DEFAULTS}), encoder=a.encoder, layer=a.layer, sae=a.sae,
        max_tokens=a.max_tokens, tokens_per_batch=a.tokens_per_batch, skip_bad_rows=a.skip_bad_rows,
    )  # fmt: skip
    if a.ray is not None:
        from saerl_lib.cluster.ray_link import require_cluster, require_ray

        require_ray()
        require_cluster(a.ray)
    from saerl_lib.cluster.encode import encode_files
    from saerl_lib.cluster.local import encode_local
    from saerl_lib.cluster.ray_encode import encode_on_ray

    started = time.monotonic()
    hands = functools.partial(encode_local, workers=a.workers)
    if a.ray is not None:
        hands = functools.partial(encode_on_ray, address=a.ray, workers=a.workers)
    done = encode_files(a.data, a.out, config, hands, a.shard_rows, lambda text: print(text, flush=True))
    for status, count in done.left_out.items():
        print(f"not encoded, {status}: {count} (not_encoded.csv)")
    line = {"read": done.read, "encoded": done.encoded, "left_out": done.left_out, "shards": done.shards, "reused": done.reused,
            **done.totals, "seconds": round(time.monotonic() - started, 1)}  # fmt: skip
    print(json.dumps(line))
    return 0
