"""Every path and command in README.md and docs/ exists, and their tables are those of figures/data."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from saerl_lib import paths
from saerl_lib.cli import parse
from saerl_lib.notebooks import UserError
from saerl_lib.report.reproduction import BLOCKS, write_documents
from saerl_lib.report.tables import read_table

DOCUMENTS = {p: p.read_text(encoding="utf-8") for p in (paths.ROOT / "README.md", *sorted((paths.ROOT / "docs").glob("*.md")))}
README = DOCUMENTS[paths.ROOT / "README.md"]
ALL = "\n".join(DOCUMENTS.values())
COMMANDS = sorted(set(re.findall(r"^(?:\$ )?(\./run_all\.sh[^\n#`]*|python -m saerl_lib [^\n#`]*)", ALL, re.M)))
INLINE = sorted(set(re.findall(r"`((?:\./run_all\.sh|python -m saerl_lib)[^`]*)`", ALL)))
LINKS = sorted({(p.parent, target) for p, text in DOCUMENTS.items() for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text)})
PATHS = sorted(set(re.findall(r"`((?:saerl_lib|notebooks|figures|tests|docs)/[\w./-]*)`", ALL)))
GROUPS = {"bench": "encode", "export": "--plan P --samples S --to trl --out D", "plan": "--data F --out D"}
"""Commands that prose names without their options -> options that they need."""


def test_every_path_exists() -> None:
    missing = [target for folder, target in (*LINKS, *((paths.ROOT, path) for path in PATHS)) if not (folder / target).exists()]
    assert missing == []


def test_every_command_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for command in COMMANDS + INLINE:
        words = shlex.split(re.sub(r" N$", " 1", command.replace("NN", "07")))
        if words[0] == "./run_all.sh":
            if words[1:2] == ["test"]:
                continue
            words = ["python", "-m", "saerl_lib", *([] if words[1:2] == ["publish"] else ["run"]), *words[1:]]
        if len(words) == 4:
            words += shlex.split(GROUPS.get(words[3], ""))
        try:
            parse(words[3:])
        except (SystemExit, UserError) as error:
            wrong.append((command, str(error), capsys.readouterr().err))
    assert wrong == [] and (paths.ROOT / "run_all.sh").exists()


def test_sections_that_are_linked_exist() -> None:
    missing = []
    for document, content in DOCUMENTS.items():
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", content):
            text = DOCUMENTS[(document.parent / target).resolve() if target else document]
            titles = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)]
            missing += [(document.name, anchor)] * (anchor not in titles)
    assert missing == []


def test_the_readme_shows_commands_and_paths_and_leads_to_every_document() -> None:
    assert len(COMMANDS) >= 3 and len(LINKS) >= 3 and len(PATHS) >= 5
    assert len(README.split()) <= 1400 and 1 <= README.count("![") <= 5
    assert [p.name for p in DOCUMENTS if p.name != "README.md" and f"](docs/{p.name})" not in README] == []


def test_generated_tables_are_those_of_the_csv_and_are_written_once(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for marker, (document, table, markdown) in BLOCKS.items():
        text = markdown(read_table(table, paths.PUBLISHED)).strip()
        assert f"<!-- begin {marker} -->\n{text}\n<!-- end" in DOCUMENTS[paths.ROOT / document]
        with (tmp_path / document).open("a") as file:
            file.write(f"<!-- begin {marker} -->\n<!-- end {marker} -->\n")
    assert write_documents(tmp_path, paths.PUBLISHED) == ["README.md", "docs/claims.md", "docs/study.md", "docs/world.md"]
    assert write_documents(tmp_path, paths.PUBLISHED) == []
