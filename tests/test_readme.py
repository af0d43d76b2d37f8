"""README.md, CONTRIBUTING.md and docs/: paths, commands and numbers are the repository's, and generated parts are up to date."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from saerl_lib import paths
from saerl_lib.cli import parse
from saerl_lib.notebooks import UserError
from saerl_lib.report.tables import generated, update_block

TOP = [paths.ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
DOCUMENTS = {p: p.read_text(encoding="utf-8") for p in (*TOP, *sorted((paths.ROOT / "docs").glob("*.md")))}
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
    assert missing == [] and len(LINKS) >= 3 and len(PATHS) >= 5


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
            if getattr(error, "code", 1):  # help ends with 0
                wrong.append((command, str(error), capsys.readouterr().err))
    assert wrong == [] and len(COMMANDS) >= 3


def test_sections_that_are_linked_exist() -> None:
    missing = []
    for document, content in DOCUMENTS.items():
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", content):
            text = DOCUMENTS[(document.parent / target).resolve() if target else document]
            titles = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)]
            missing += [(document.name, anchor)] * (anchor not in titles)
    assert missing == []


def test_the_readme_is_short_and_leads_to_every_document() -> None:
    words = [word for word in re.sub("<!--.*?-->", "", README).split() if re.search(r"\w", word)]  # bars of tables are none
    assert len(words) <= 1400 and 1 <= README.count("![") <= 5
    assert [p.name for p in DOCUMENTS if p not in TOP and f"](docs/{p.name})" not in README] == []


def test_generated_parts_are_up_to_date_and_stand_between_their_marks(tmp_path: Path) -> None:
    for (path, marker), text in generated().items():
        block = f"<!-- begin {marker} -->\n{text.strip()}\n<!-- end {marker} -->"
        assert block in path.read_text(encoding="utf-8"), f"python -m saerl_lib readme: {path.name}, {marker}"
    page = tmp_path / "page.md"
    page.write_text("head\n<!-- begin a -->\nold\n<!-- end a -->\ntail\n")
    assert update_block(page, "a", "new\n") and not update_block(page, "a", "new")
    assert page.read_text() == "head\n<!-- begin a -->\nnew\n<!-- end a -->\ntail\n"
    with pytest.raises(ValueError, match="<!-- begin b -->"):
        update_block(page, "b", "new")


# Numbers in prose. A paragraph says where its numbers come from in a comment: `<!-- numbers: TABLE WORD WORD|OTHER; ... -->`
# means the rows of TABLE.csv that hold each of these words (spaces written as _) as a whole cell.

STATED = {
    "README.md": {
        "0.47": "million parameters of the shipped policy", "0.45": "score_correlation of profile study",
        "1.5": "billion parameters of the paper's policy", "3.11": "pyproject.toml", "4,608": "width of the SAE",
        "24 GB": "the machine",
        "7,500": "MATH, docs/own_data.md",
        "6 %": "left out by SAERL, docs/study.md", "3.0": "paper, Table 4", "2.4": "means of world_controls.csv at step 112",
    },
    "docs/real_data.md": {
        "0.749": "paper, Table 2", "0.69": "aim stated before the run", "0.67": "cross-validation by a script of that time",
        "1.20": "bound of intervals", "1.25": "aim stated before the run", "4,608": "width of the SAE", "5.6 %": "32 of 576",
    },
    "docs/study.md": {
        **dict.fromkeys(("0.47", "1.12", "3,200", "12,800", "28 %", "2 %", "0.45", "300,000", "95 %", "15 %", "0.9"),
                        "settings of profile study"),
        **dict.fromkeys(("16 %", "38 %", "1.05", "1.67", "2.6", "3,008", "3,072"), "means of study_runs and study_budget"),
        "0.43": "probe_ladder.csv, DeepScaleR", "38.7 %": "mean of two seeds of study_pilot.csv",
    },
    "docs/world.md": {
        "1": "base of the difficulty label", "5,750": "samples of profile laptop", "0.48": "million tokens",
        "0.04": "million tokens", "2 %": "bound of forgetting", "2.4": "means of world_controls.csv at step 112",
        "36.0": "arXiv 2504.20571", "73.6": "arXiv 2504.20571", "0.45": "score_correlation of profile study",
        "4,000": "steps, saerl_lib/world/pretrain.py",
    },
    "docs/own_data.md": {
        "0.875": "7 / 8", "5 s": "saerl_lib/data/answers.py", "2.60": "Ray, tried by hand",
        "2.11": "torch of the GPU tests", "2.13": "torch, requirements.lock", "7,500": "MATH",
        "0.4": "40 %", "100,000": "rows, a limit",
        "7,488": "234 x 32",
    },
    "CONTRIBUTING.md": {"4.4": "inches, report/plots.py"},
    "docs/claims.md": {"95 %": "level of all intervals", "1.67": "means of study_budget"},
    "docs/deviations.md": {
        "0.47": "million parameters of the shipped policy", "4,608": "width of the SAE", "1.0": "temperature",
        "2.11": "torch of the GPU tests", "3.12": "Python of the GPU tests",
    },
    "docs/paper_scale.md": {
        "107,021": "rows, saerl_lib/config.py", "6,000": "rows, saerl_lib/config.py", "40 %": "assumed, printed by --plan-only",
        "30 %": "assumed, printed by --plan-only", "32,768": "width of the public SAE",
    },
    "docs/speed.md": {"2,048": "width of Qwen3-1.7B", "2,816": "11 x 32 x 8", "131,072": "latents", "32,768": "latents"},
}  # fmt: skip
"""Document -> numbers of its prose that no table holds, and where they come from."""
VALUE = r"\d+(?:,\d{3})*(?:\.\d+)?"
NUMBER = re.compile(rf"(?<![\w.,/-])({VALUE}(?: %| GB\b| s\b| minutes\b)?)(?![\w/]|\.\d)"
                    rf"(?:[^\d()]{{0,40}}\([^\d()]*?({VALUE}) to -?({VALUE})\b)?")  # fmt: skip
"""A number, with the interval behind it where there is one."""


def numbers_of(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Each number with a decimal point, comma, unit or interval: as printed, with its interval, and its sources."""
    text = re.sub(r"<!-- begin (\w+) -->.*?<!-- end \1 -->|```.*?```", "", text, flags=re.S)
    for part in re.split(r"\n\s*\n(?!<!-- numbers)|\n(?=- )", re.sub(r"^(?:\||#).*$", "", text, flags=re.M)):
        told = [source.strip() for comment in re.findall("<!-- numbers: (.*?) -->", part) for source in comment.split(";")]
        plain = re.sub(r"<!--.*?-->|`[^`]*`|\]\([^)]*\)|arXiv \S+", " ", part)
        for first, *interval in NUMBER.findall(" ".join(plain.split())):
            if interval[0] or re.search("[., ]", first):
                yield first, [v for v in (first, *interval) if v], told


def cells_of(source: str) -> np.ndarray:
    """The numbers [rows, columns], without their sign, of the rows that a source names."""
    name, *words = source.split()
    texts = pd.read_csv(paths.PUBLISHED / f"{name}.csv", dtype=str).fillna("")
    kept = np.ones(len(texts), dtype=bool)
    for word in words:
        kept &= texts.replace(" ", "_", regex=True).isin(word.split("|")).any(axis=1)
    assert kept.any(), f"no row of {source}"
    return texts[kept].apply(pd.to_numeric, errors="coerce").abs().to_numpy(dtype=float)


def in_one_row(cells: np.ndarray, printed: list[str]) -> bool:
    """Whether some row holds every printed number, as it is or as a share of 100, at its rounding."""
    found = []
    for text in printed:
        value, _, unit = text.partition(" ")
        near = 0.5 * 10.0 ** -len(value.partition(".")[2]) + 1e-9
        scales = {"minutes": (1 / 60,), "s": (1,), "GB": (1,)}.get(unit, (1, 100))
        found.append(np.any([np.abs(scale * cells - float(value.replace(",", ""))) <= near for scale in scales], axis=(0, 2)))
    return bool(np.all(found, axis=0).any())


@pytest.mark.parametrize("document", STATED)
def test_every_number_in_prose_is_that_of_its_table(document: str) -> None:
    found = list(numbers_of(DOCUMENTS[paths.ROOT / document]))
    wrong = [(shown, *interval) for shown, (_, *interval), told in found if shown not in STATED[document]
             and not any(in_one_row(cells_of(source), [shown, *interval]) for source in told)]  # fmt: skip
    assert wrong == [] and set(STATED[document]) <= {shown for shown, *_ in found}


def test_no_document_states_numbers_unseen() -> None:
    unseen = {path: content for path, content in DOCUMENTS.items() if path.relative_to(paths.ROOT).as_posix() not in STATED}
    assert [path.name for path, content in unseen.items() if list(numbers_of(content))] == []


def test_a_wrong_number_is_noticed() -> None:
    table = np.array([[0.779, 0.768, 0.791], [0.634, 0.61, 0.65]])
    assert in_one_row(table, ["0.779", "0.768", "0.791"]) and in_one_row(table, ["63.4"]) and in_one_row(table, ["63"])
    assert in_one_row(60 * table, ["0.78 minutes"]) and not in_one_row(table, ["77.9 s"])
    assert not any(in_one_row(table, wrong) for wrong in (["0.778"], ["0.779", "0.61", "0.65"], ["64"]))
    text = "It is 0.5 points below (0.4 to 0.6), 7 % of 1,206; `0.9` in 16 steps.\n<!-- numbers: a b; c -->\n\n| 0.3 |\n\nAt 2.5."
    found = [(printed, told) for _, printed, told in numbers_of(text)]
    assert found == [(["0.5", "0.4", "0.6"], ["a b", "c"]), (["7 %"], ["a b", "c"]), (["1,206"], ["a b", "c"]), (["2.5"], [])]
