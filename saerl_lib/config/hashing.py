"""Configurations as plain values, content hashes and derived seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON-ready values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def content_hash(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sub_seed(base: int, label: str) -> int:
    """A 31-bit seed derived from a base seed and a label, the same on every machine.

    >>> sub_seed(0, "plan") == sub_seed(0, "plan"), sub_seed(0, "plan") == sub_seed(1, "plan")
    (True, False)
    """
    digest = hashlib.sha256(f"{base}:{label}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFF_FFFF
