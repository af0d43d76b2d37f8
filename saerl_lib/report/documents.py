"""The generated parts of README.md and docs/: which table of `figures/data` stands between which markers of which document."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from saerl_lib.report import tables
from saerl_lib.report.schemas import read_table


class Block(NamedTuple):
    """What stands between `<!-- begin MARKER -->` and `<!-- end MARKER -->`."""

    document: str
    """Path from the root of the repository."""
    marker: str
    table: str
    render: Callable[[pd.DataFrame], str]


BLOCKS = (
    Block("README.md", "finding", "claims", tables.finding_markdown),
    Block("README.md", "claims", "claims", tables.claims_markdown),
    Block("README.md", "gates", "world_gates", tables.gates_markdown),
    Block("docs/real_data.md", "ladder", "probe_ladder", tables.ladder_markdown),
    Block("docs/study.md", "comparisons", "study_comparisons", tables.comparisons_markdown),
    Block("docs/study.md", "study", "study_summary", tables.study_markdown),
)


def write_documents(root: Path, data_folder: Path) -> list[str]:
    """Bring every block up to date with `figures/data`; returns the documents that changed."""
    changed = set()
    for block in BLOCKS:
        text = block.render(read_table(block.table, data_folder))
        if tables.update_block(root / block.document, block.marker, text):
            changed.add(block.document)
    return sorted(changed)
