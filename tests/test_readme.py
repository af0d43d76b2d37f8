"""Every path and command in README.md and docs/ exists, and their tables are those of figures/data."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest

from saerl_lib import paths
from saerl_lib.command_line import build_parser
from saerl_lib.report.documents import BLOCKS, Block, write_documents
from saerl_lib.report.readings import READINGS, readings_markdown
from saerl_lib.report.schemas import TableError

DOCUMENTS = {p: p.read_text(encoding="utf-8") for p in (paths.ROOT / "README.md", *sorted((paths.ROOT / "docs").glob("*.md")))}
README = DOCUMENTS[paths.ROOT / "README.md"]
ALL = "\n".join(DOCUMENTS.values())
COMMANDS = sorted(set(re.findall(r"^(?:\$ )?(\./run_all\.sh[^\n#`]*|python -m saerl_lib [^\n#`]*)", ALL, re.M)))
INLINE = sorted(set(re.findall(r"`((?:\./run_all\.sh|python -m saerl_lib)[^`]*)`", ALL)))
LINKS = sorted({(p.parent, target) for p, text in DOCUMENTS.items() for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text)})
PATHS = sorted(set(re.findall(r"`((?:saerl_lib|notebooks|figures|tests|docs)/[\w./-]*)`", ALL)))
GROUPS = {"bench": "encode", "export": "--plan P --samples S --to trl --out D"}
"""Commands that prose names without their options -> options that they need."""


@pytest.mark.parametrize(("folder", "target"), [*LINKS, *((paths.ROOT, path) for path in PATHS)])
def test_path_exists(folder: Path, target: str) -> None:
    assert (folder / target).exists()


@pytest.mark.parametrize("command", COMMANDS + INLINE)
def test_command_is_understood(command: str) -> None:
    words = shlex.split(re.sub(r" N$", " 1", command.replace("NN", "07")))
    if words[0] == "./run_all.sh":
        assert (paths.ROOT / "run_all.sh").exists()
        if words[1:2] == ["test"]:
            return
        words = ["python", "-m", "saerl_lib", *([] if words[1:2] == ["publish"] else ["run"]), *words[1:]]
    if len(words) == 4:
        words += shlex.split(GROUPS.get(words[3], ""))
    assert build_parser().parse_args(words[3:]).command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_sections_that_are_linked_exist(document: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", DOCUMENTS[document]):
        text = DOCUMENTS[(document.parent / target).resolve() if target else document]
        titles = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)]
        assert anchor in titles


def test_the_readme_shows_commands_and_paths_and_leads_to_every_document() -> None:
    assert len(COMMANDS) >= 3 and len(LINKS) >= 3 and len(PATHS) >= 5
    for path in DOCUMENTS:
        assert path.name == "README.md" or f"](docs/{path.name})" in README


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.marker)
def test_tables_are_generated_from_the_csv(block: Block) -> None:
    text = block.render(paths.FIGURES / "data").strip()
    assert f"<!-- begin {block.marker} -->\n{text}\n<!-- end" in DOCUMENTS[paths.ROOT / block.document]


def test_documents_that_are_up_to_date_stay(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in {block.document for block in BLOCKS}:
        markers = [f"<!-- begin {b.marker} -->\n<!-- end {b.marker} -->\n" for b in BLOCKS if b.document == name]
        (tmp_path / name).write_text("head\n" + "".join(markers))
    assert write_documents(tmp_path, paths.FIGURES / "data") == ["README.md", "docs/real_data.md", "docs/speed.md", "docs/study.md"]
    assert write_documents(tmp_path, paths.FIGURES / "data") == []


def test_a_reading_whose_row_is_gone_is_named(tmp_path: Path) -> None:
    for name in {reading.table for reading in READINGS}:
        shutil.copy(paths.FIGURES / "data" / f"{name}.csv", tmp_path)
    assert readings_markdown(tmp_path) == readings_markdown(paths.FIGURES / "data")
    table = pd.read_csv(tmp_path / "gradient_distance.csv")
    table[table["space"] != "TF-IDF"].to_csv(tmp_path / "gradient_distance.csv", index=False)
    with pytest.raises(TableError, match="gradient_distance.csv: 0 rows where .*TF-IDF"):
        readings_markdown(tmp_path)
