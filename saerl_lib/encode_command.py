"""`python -m saerl_lib encode --data FILE --encoder FOLDER --layer N --sae SAE --out DIR`: a data file as stored SAE latents."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from saerl_lib.artifacts import file_sha256
from saerl_lib.data.rows import DEFAULTS, Fields, Rules, Source, field_names, judge, require_sound, resolve_fields, rows
from saerl_lib.data.sample import DataError, Dropped, Sample
from saerl_lib.own.settings import OwnConfig

LEFT_OUT = "not_encoded.csv"


def add_encode_options(parser: argparse.ArgumentParser) -> None:
    """The options of `encode`."""
    add = parser.add_argument
    add("--data", nargs="+", required=True, metavar="FILE", help="JSON lines, CSV or Parquet; several are read as one list")
    add("--encoder", required=True, metavar="MODEL", help="Hugging Face model: folder or hub name")
    add("--layer", type=int, required=True, metavar="N", help="block whose residual stream the SAE reads, 1 is the first")
    add("--sae", required=True, metavar="SAE", help="FOLDER saved by SAELens, opensae:FOLDER or saelens:RELEASE/ID")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the latents; the same command continues there")
    for name, usual in DEFAULTS.items():
        add(f"--{name}-field", metavar="NAME", help=f"field of the {name} (default: {usual})")
    add("--max-tokens", type=int, metavar="N", help="cut longer samples (default: the model's positions)")
    add("--skip-bad-rows", action="store_true", help="leave malformed rows out and list them, instead of stopping")
    add("--workers", type=int, metavar="N", help="processes (default: one a core; on Ray two parts a CPU of the cluster)")
    add("--ray", metavar="ADDRESS", help='HOST:PORT of a Ray cluster, or auto; needs pip install -e ".[ray]"')


def run_encode(a: argparse.Namespace) -> int:
    """Encode with a bar; the last line is one JSON object. Raises DataError for bad data, and what `encode` raises."""
    config = OwnConfig(
        fields=Fields(**{name: getattr(a, f"{name}_field") for name in DEFAULTS}), encoder=a.encoder, layer=a.layer, sae=a.sae,
        max_tokens=a.max_tokens, skip_bad_rows=a.skip_bad_rows,
    )  # fmt: skip
    from saerl_lib.encode.parts import encode, require_ray, require_shared

    if a.ray is not None:
        require_ray(a.ray)
        require_shared(config.reader)
    started = time.monotonic()
    samples, dropped, notes = usable_rows(a.data, config)
    left_out = dict(sorted(Counter(d.status for d in dropped).items()))
    read = len(samples) + len(dropped)
    files = [Path(name) for name in a.data]
    source = [{"name": f.name, "sha256": file_sha256(f) if f.is_file() else None} for f in files]
    about = {"source": source, "read": read, "left_out": left_out, "notes": notes}
    done = encode(samples, config.reader, a.out, workers=a.workers, ray=a.ray, about=about)
    rest = [(d.where, d.id, d.status, d.reason) for d in dropped]
    table = pd.DataFrame(rest, columns=["where", "id", "status", "reason"])
    table.to_csv(a.out / LEFT_OUT, index=False, lineterminator="\n")
    for status, count in left_out.items():
        print(f"not encoded, {status}: {count} ({LEFT_OUT})")
    line = {"read": read, "left_out": left_out, "parts": done.parts, "reused": done.reused, **done.totals,
            "seconds": round(time.monotonic() - started, 1)}  # fmt: skip
    print(json.dumps(line))
    return 0


def usable_rows(sources: Sequence[str], config: OwnConfig) -> tuple[list[Sample], list[Dropped], list[str]]:
    """The usable rows of files that are read as one list, the others, and what was assumed; judged as `plan` judges them.

    Raises DataError with file, row, field and fix.
    """
    places = [Source.parse(source) for source in sources]
    name = places[0].name + (f" and {len(places) - 1} more" if len(places) > 1 else "")
    raw = [
        dataclasses.replace(row, where=f"{place.name}, {row.where}") if len(places) > 1 else row
        for place in places
        for row in rows(place)
    ]
    names, notes = resolve_fields(name, field_names(raw), config.fields)
    rules = Rules(names)
    judged = [judge(row, number, rules) for number, row in enumerate(raw, start=1)]
    dropped = [found for found in judged if isinstance(found, Dropped)]
    samples = [found.sample for found in judged if not isinstance(found, Dropped)]
    if not config.skip_bad_rows:
        require_sound(name, len(raw), dropped)
    if not samples:
        raise DataError(f"{name}: none of {len(dropped)} rows is usable; first: {dropped[0].where}: {dropped[0].reason}")
    return samples, dropped, notes
