"""One value of one's own data: text, id, number or truth value, or a BadRow that names field and fix."""

from __future__ import annotations

import math
from typing import Any

from saerl_lib.own.settings import SHARE_FIELD, OwnConfig

MAX_CHARACTERS = 200_000
"""Longest prompt or solution; a longer one is a broken export rather than a problem (ours)."""
MAX_ID = 200
"""Longest id, in characters."""
TRUTH = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}
"""Quality labels of a CSV file."""


class BadRow(Exception):
    """A row that cannot be used; the message names field and fix."""


def text(value: Any, name: str) -> str:
    """A text field; '' when missing."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"field {name!r} is a {type(value).__name__}, not text; write the text itself in quotes")
    if len(value) > MAX_CHARACTERS:
        raise BadRow(
            f"field {name!r} has {len(value):,} characters, at most {MAX_CHARACTERS:,} are read; shorten it or remove the row"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"field {name!r} holds half a character at place {error.start + 1}; write it as valid Unicode") from error
    return value


def plain(value: Any, name: str) -> str:
    """A text or number as text; '' when missing."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadRow(f"field {name!r} is {value}; write the value as text, or leave it out when unknown")
        return str(int(value) if value.is_integer() else value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text(value, name)


def identifier(value: Any, name: str) -> str:
    """An id as text."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        found = "missing" if value is None else f"a {type(value).__name__}"
        raise BadRow(f"field {name!r} is {found}; an id is text or a whole number")
    found = text(str(value), name)
    if not found.strip() or len(found) > MAX_ID or any(ord(letter) < 32 for letter in found):
        raise BadRow(
            f"field {name!r} is empty, longer than {MAX_ID} characters or holds control characters; give the row a short id"
        )
    return found


def difficulty(value: Any, name: str, config: OwnConfig, text_only: bool) -> float:
    """A label, larger is harder; NaN when missing."""
    if value is None:
        return math.nan
    if text_only:
        try:
            value = float(value)
        except ValueError as error:
            raise BadRow(f"field {name!r} is {value[:40]!r}, not a number; leave it empty when unknown") from error
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(f"field {name!r} is {str(value)[:40]!r}, a {type(value).__name__}, not a number; leave it out when unknown")
    label, allowed = finite(value, name), config.allowed_labels
    if allowed is not None and not allowed[0] <= label <= allowed[1]:
        raise BadRow(
            f"field {name!r} is {label:g}, outside {allowed[0]:g} to {allowed[1]:g}; mend it, leave it out when unknown, "
            "or set --label-range"
        )
    if not (config.larger_is_easier or name == SHARE_FIELD):
        return label
    return (sum(allowed) if allowed else 0.0) - label


def finite(value: float, name: str) -> float:
    """A number below 1e12 in size."""
    try:
        label = float(value)
    except OverflowError:
        label = math.inf
    if not math.isfinite(label) or abs(label) > 1e12:
        raise BadRow(f"field {name!r} is {label}, not a finite number of usual size; leave it out when unknown")
    return label


def truth(value: Any, name: str, text_only: bool) -> float:
    """1 for true, 0 for false, NaN when missing."""
    if text_only and value is not None:
        value = TRUTH.get(value.strip().lower(), value)
    if value is None:
        return math.nan
    if value not in (0, 1):  # True and False are
        raise BadRow(f"field {name!r} is {str(value)[:40]!r}; write true or false, or leave it out when unknown")
    return float(value)
