"""One value of a row as text: a prompt or a chat, an answer, an id; `BadRow` names the field and the fix."""

from __future__ import annotations

import decimal
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from saerl_lib.data.rows import kind_named, unfolded

MAX_CHARACTERS, MAX_ID = 200_000, 200
"""Longest prompt or solution, longer ones are broken exports rather than problems; longest id (ours)."""
ROLES = {"human": "user", "gpt": "assistant"}
"""Other names of the roles in a chat."""


class BadRow(Exception):
    """A row that cannot be used; the message names field and fix."""


class Chat(NamedTuple):
    """A prompt as it was written: question, `Sample.before`, what the assistant says behind the question, and the answer."""

    question: str
    before: str = ""
    reply: str = ""
    gold: str = ""


def chat(value: Any, name: str) -> Chat:
    """The question of a prompt: all of a text, or the last message of the user in a chat, which may be `unfolded`."""
    inner = unfolded(value) if isinstance(value, str) else None
    if isinstance(inner, list) and isinstance(inner[0], Mapping) and {"role", "from"} & set(inner[0]):
        value = inner
    value = value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) else value
    if not isinstance(value, list):
        return Chat(text(value, name))
    messages, gold = [], ""
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "from"} & set(message):
            raise BadRow(f"field {name!r} is a list, but not of chat messages; write objects with role and content")
        role = str(message.get("role") or message.get("from"))
        content = message.get("content", message.get("value"))
        if isinstance(content, list):
            if any(not isinstance(part, Mapping) or not isinstance(part.get("text"), str) for part in content):
                raise BadRow(f"field {name!r} holds a message that is not text alone; a plan reads text")
            content = "".join(part["text"] for part in content)
        right = message.get("ground_truth")
        gold = plain(right.get("value") if isinstance(right, Mapping) else right, name).strip() or gold
        messages.append({"role": ROLES.get(role, role), "content": text(content, name)})
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        raise BadRow(f"field {name!r} holds no message of the user; write the question as one")
    before = json.dumps(messages[:last]) if last else ""
    reply = "\n".join(message["content"] for message in messages[last + 1 :] if message["role"] == "assistant")
    return Chat(messages[last]["content"], before, "" if reply.strip() == "<think>" else reply, gold)


def text(value: Any, name: str) -> str:
    """A text field, also as bytes; '' when missing."""
    if value is None:
        return ""
    value = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    if not isinstance(value, str):
        inside = isinstance(value, Mapping) and len(value) > 0
        fix = f"name what is in it, such as {name}.{next(iter(value))}" if inside else "write the text itself in quotes"
        raise BadRow(f"field {name!r} is {kind_named(value)}, not text; {fix}")
    if len(value) > MAX_CHARACTERS:
        limit = f"at most {MAX_CHARACTERS:,} are read; shorten it or remove the row"
        raise BadRow(f"field {name!r} has {len(value):,} characters, {limit}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"field {name!r} holds half a character, or no UTF-8, at place {error.start + 1}; mend it") from error
    return value


def plain(value: Any, name: str) -> str:
    """A text, number, truth value or bytes, also as all elements of a list (as text too), as text; '' when missing."""
    listed = unfolded(value)
    if isinstance(listed, list) and (listed is value or "".join(map(str, listed)).isprintable()):  # LaTeX must be escaped
        if len(set(map(str, listed))) > 1:
            raise BadRow(f"field {name!r} is a list of {len(listed)}, where one value is read; write one")
        value = listed[0] if listed else None
    if isinstance(value, float | decimal.Decimal):
        if not math.isfinite(value):
            raise BadRow(f"field {name!r} is {value}; write the value as text, or leave it out when unknown")
        if value == int(value):
            return str(int(value))
        return str(value) if isinstance(value, float) else format(value.normalize(), "f")
    return str(value) if isinstance(value, int) else text(value, name)


def identifier(value: Any, name: str) -> str:
    """An id as text; a whole float, as pandas makes them, as its number."""
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(value, bool) or not isinstance(value, str | int):
        found = "missing" if value is None else kind_named(value)
        raise BadRow(f"field {name!r} is {found}; an id is text or a whole number")
    found = text(str(value), name)
    if not found.strip() or len(found) > MAX_ID or any(ord(letter) < 32 for letter in found):
        fault = f"is empty, longer than {MAX_ID} characters or holds control characters"
        raise BadRow(f"field {name!r} {fault}; give the row a short id")
    return found
