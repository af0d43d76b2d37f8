"""The generated parts of README.md and docs/: what stands between which markers of which document, from `figures/data`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from saerl_lib.report import tables
from saerl_lib.report.gpu_table import gpu_markdown
from saerl_lib.report.readings import readings_markdown
from saerl_lib.report.schemas import read_table


class Block(NamedTuple):
    """What stands between `<!-- begin MARKER -->` and `<!-- end MARKER -->`."""

    document: str
    """Path from the root of the repository."""
    marker: str
    render: Callable[[Path], str]
    """Gets the folder of the tables."""


def _table(name: str, render: Callable[[pd.DataFrame], str]) -> Callable[[Path], str]:
    return lambda folder: render(read_table(name, folder))


BLOCKS = (
    Block("README.md", "finding", _table("claims", tables.finding_markdown)),
    Block("README.md", "claims", _table("claims", tables.claims_markdown)),
    Block("README.md", "gates", _table("world_gates", tables.gates_markdown)),
    Block("docs/real_data.md", "ladder", _table("probe_ladder", tables.ladder_markdown)),
    Block("docs/real_data.md", "saes", _table("ladder_saes", tables.saes_markdown)),
    Block("docs/real_data.md", "readings", readings_markdown),
    Block("docs/speed.md", "gpu", gpu_markdown),
    Block("docs/study.md", "comparisons", _table("study_comparisons", tables.comparisons_markdown)),
    Block("docs/study.md", "plans", _table("study_plans", tables.plans_markdown)),
    Block("docs/study.md", "study", _table("study_summary", tables.study_markdown)),
)


def write_documents(root: Path, data_folder: Path) -> list[str]:
    """Bring every block up to date with `figures/data`; returns the documents that changed."""
    changed = set()
    for block in BLOCKS:
        text = block.render(data_folder)
        if tables.update_block(root / block.document, block.marker, text):
            changed.add(block.document)
    return sorted(changed)
