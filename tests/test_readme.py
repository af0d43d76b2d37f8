"""Every path and command in the README exists, and its tables are those of figures/data."""

from __future__ import annotations

import re
import shlex

import pytest

from saerl_lib import paths
from saerl_lib.command_line import build_parser
from saerl_lib.report.schemas import read_table
from saerl_lib.report.tables import claims_markdown, comparisons_markdown, gates_markdown, ladder_markdown, study_markdown

README = (paths.ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"^(?:\$ )?(\./run_all\.sh[^\n#`]*|python -m saerl_lib [^\n#`]*)", README, re.M)))
INLINE = sorted(set(re.findall(r"`((?:\./run_all\.sh|python -m saerl_lib)[^`]*)`", README)))
LINKS = sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README)))
PATHS = sorted(set(re.findall(r"`((?:saerl_lib|notebooks|figures|tests)/[\w./-]*)`", README)))


@pytest.mark.parametrize("target", LINKS + PATHS)
def test_path_exists(target: str) -> None:
    assert (paths.ROOT / target).exists()


@pytest.mark.parametrize("command", COMMANDS + INLINE)
def test_command_is_understood(command: str) -> None:
    words = shlex.split(command.replace("NN", "07").replace("[OPTIONS]", ""))
    if words[0] == "./run_all.sh":
        assert (paths.ROOT / "run_all.sh").exists()
        if words[1:2] == ["test"]:
            return
        words = ["python", "-m", "saerl_lib", "run", *words[1:]]
    assert build_parser().parse_args(words[3:]).command


def test_the_readme_shows_commands_and_paths() -> None:
    assert len(COMMANDS) >= 3 and len(LINKS) >= 3 and len(PATHS) >= 5


@pytest.mark.parametrize(
    ("table", "render"),
    [
        ("claims", claims_markdown), ("world_gates", gates_markdown), ("probe_ladder", ladder_markdown),
        ("study_summary", study_markdown), ("study_comparisons", comparisons_markdown),
    ],
)  # fmt: skip
def test_tables_are_generated_from_the_csv(table: str, render) -> None:
    assert render(read_table(table, paths.FIGURES / "data")).strip() in README
