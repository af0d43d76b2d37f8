"""Text of any length as a stream of activations: documents, blocks of tokens, vectors; nothing is held but a buffer (ours).

Sources: what `data.rows` reads, with a text field; plain text with a blank line between documents; or OWNER/NAME@COMMIT on the
Hugging Face Hub, streamed. The first token of a block is an attention sink and is left out, as everywhere in this room.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saerl_lib.data.rows import HUB, KINDS, Source, kind_of, rows
from saerl_lib.data.sample import DataError
from saerl_lib.encode.activations import CutModel
from saerl_lib.encode.spans import TokenBatch

TEXT = (".txt", ".txt.gz")


def documents(sources: Sequence[str], field: str = "text") -> Iterator[str]:
    """Every document of some sources, one source after another; empty ones are passed over.

    Raises DataError with the source, line and fix: no such file, an unknown ending, a row without the field.
    """
    for source in sources:
        yield from (text for text in _one(source, field) if text.strip())


def require_sources(sources: Sequence[str]) -> None:
    """Raise DataError for a source that is neither a readable file nor a hub name with its commit."""
    for source in sources:
        if (named := HUB.fullmatch(source)) and named.group(2):
            continue
        if not Path(source).is_file():
            raise DataError(f"{source}: no such file; name one, or OWNER/NAME@COMMIT on the hub (a commit has 40 digits)")
        if not kind_of(Path(source)) and not source.endswith(TEXT):
            raise DataError(f"{source}: unknown ending; name the file {', '.join((*KINDS, *TEXT))} by what it holds")


def _one(source: str, field: str) -> Iterator[str]:
    if source.endswith(TEXT):
        yield from _paragraphs(source)
        return
    for row in rows(Source.parse(source, streaming=True), (field,)):
        if row.record is None:
            raise DataError(f"{source}, {row.where}: {row.problem}")
        value = row.record.get(field)
        if not isinstance(value, str):
            found = f"field {field!r} is {type(value).__name__}"
            raise DataError(f"{source}, {row.where}: {found}, not text; name the right one with --text-field")
        yield value


def _lines(source: str) -> io.TextIOBase:
    opened = gzip.open if source.endswith(".gz") else open
    return opened(source, "rt", encoding="utf-8", newline="\n")  # type: ignore[return-value]


def _paragraphs(source: str) -> Iterator[str]:
    held: list[str] = []
    with _lines(source) as lines:
        for line in lines:
            if line.strip():
                held.append(line)
            elif held:
                yield "".join(held)
                held = []
    if held:
        yield "".join(held)


def blocks(texts: Iterator[str], tokenizer: Any, size: int) -> Iterator[list[int]]:
    """Documents joined by the end-of-text token and cut into blocks of `size` tokens; the last, short one is left out.

    Raises ValueError for a tokenizer without an end-of-text token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError("the tokenizer has no end-of-text token to put between documents; set eos_token in its configuration")
    held: list[int] = []
    for text in texts:
        held += [*tokenizer(text, add_special_tokens=False)["input_ids"], end]
        while len(held) >= size:
            yield held[:size]
            held = held[size:]


@torch.no_grad()
def block_vectors(found: Sequence[list[int]], decoder: CutModel) -> Tensor:
    """[n, D] activations of the tokens of some blocks of one length but the first of each, float32 on the model's device.

    Raises FloatingPointError for a value that is not finite.
    """
    ids = torch.tensor(found)
    mask = torch.ones_like(ids, dtype=torch.bool)
    values = decoder(TokenBatch(tuple(range(len(ids))), ids, mask, ~mask, mask))[:, 1:].float()
    if not torch.isfinite(values).all():
        raise FloatingPointError("a non-finite activation; check the encoder's weights or run it in float32")
    return values.flatten(0, 1)


class VectorStream:
    """Vectors from blocks of tokens; knows how many blocks it has read, so that it can go on after a stop."""

    def __init__(self, found: Iterator[list[int]], decoder: CutModel, rows: int) -> None:
        self.blocks, self.decoder, self.rows, self.read = found, decoder, rows, 0

    def skip_to(self, count: int) -> None:
        """Pass over blocks until `count` have been read; the model does not see them."""
        while self.read < count and next(self.blocks, None) is not None:
            self.read += 1

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        taken = [block for _, block in zip(range(self.rows), self.blocks, strict=False)]
        if not taken:
            raise StopIteration
        self.read += len(taken)
        return block_vectors(taken, self.decoder)

    def first(self, count: int) -> Tensor:
        """The next `count` vectors or a few more, [n, D]. Raises StopIteration when the text holds fewer."""
        parts: list[Tensor] = []
        while sum(map(len, parts)) < count:
            parts.append(next(self))
        return torch.cat(parts)
