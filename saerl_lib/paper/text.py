"""Sizes and tables as plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def size(count: float) -> str:
    """Bytes as people read them, in powers of ten.

    >>> size(2_136_106_260), size(81_670), size(80e9)
    ('2.1 GB', '82 kB', '80 GB')
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            value = count / factor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{count:.0f} B"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines of aligned columns, the last one ragged."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        yield "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()


def number(value: float) -> str:
    """Two digits below ten, whole numbers above.

    >>> number(0.853), number(13.7), number(152.2)
    ('0.85', '14', '152')
    """
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"
