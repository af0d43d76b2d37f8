"""README.md, CONTRIBUTING.md and docs/: paths, commands and numbers are the repository's, and generated parts are up to date."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

from saerl_lib import paths
from saerl_lib.cli import parse
from saerl_lib.config import PASSES, PublishedConfig, get_profile
from saerl_lib.data.answers import unreadable
from saerl_lib.needs import MINIMUM_PYTHON, POLICIES, read_lock
from saerl_lib.notebooks import UserError
from saerl_lib.report.plots import FULL_WIDTH
from saerl_lib.report.statistics import ALPHA, POWER
from saerl_lib.report.study import COMPARISONS, PAPER_VALUES
from saerl_lib.report.tables import generated, update_block
from saerl_lib.studies.grid import profile_of
from saerl_lib.studies.pool import OWN_TOKENS
from saerl_lib.studies.world_check import PRETRAIN_STEPS
from saerl_lib.train.arms import PILOTED, WIDE, find_arm
from saerl_lib.train.policy import FOLDER
from saerl_lib.train.selectors import DISCOUNT
from saerl_lib.train.trainer import OPTIMIZERS
from saerl_lib.world.gates import FORGETTING, GATES
from saerl_lib.world.sources import SCHOOL

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


# Numbers in prose. A comment says where the numbers before it come from, back to the comment or the paragraph before:
# `<!-- numbers: TABLE WORD WORD|OTHER; ... -->`
# means the rows of TABLE.csv that hold each of these words (spaces written as _) as a whole cell; `@COLUMN`
# means that column alone.

STUDY, LAPTOP = get_profile("study"), get_profile("laptop")
REAL = profile_of(STUDY, find_arm("grpo_real"))
SAE = json.loads((paths.ROOT / "saerl_lib" / "data" / "sae" / "cfg.json").read_text(encoding="utf-8"))
LOCKED = read_lock()


def million_weights() -> float:
    """Of the shipped policy."""
    with safe_open(FOLDER / "model.safetensors", "np") as weights:
        return sum(int(np.prod(weights.get_slice(name).get_shape())) for name in weights.keys()) / 1e6


def version(text: str) -> float:
    """Its first two parts, as a number is printed."""
    return float(".".join(re.findall(r"\d+", text)[:2]))


def paper_gain() -> float:
    """Points that the paper's Table 4 gives for SAERL on GRPO."""
    mean = PAPER_VALUES.query("table == '4' and model == '1.5B' and column == 'mean'").set_index("arm")["value"]
    return mean["saerl_grpo"] - mean["grpo"]


def study_facts() -> dict[str, list[float]]:
    """What docs/study.md says of runs, beside the tables of comparisons."""
    budget, runs, pilot = (pd.read_csv(paths.PUBLISHED / f"study_{name}.csv") for name in ("budget", "runs", "pilot"))
    used = budget[budget["arm"] == "saerl_grpo"]["distinct_prompts"]
    arms = runs[runs["part"] == "run"].groupby(["arm", "step"])[["mean_avg", "zero_variance_share"]].mean()
    silent = arms.query("0 < step <= 50").groupby("arm")["zero_variance_share"].mean()
    lead = arms.loc["saerl_online_rate", "mean_avg"] - arms.loc["grpo", "mean_avg"]
    behind = runs[runs["part"] == "run"].pivot(index=["step", "seed"], columns="arm", values="mean_avg")
    late, behind = ((behind["grpo"] - behind[arm]).groupby("step").mean() for arm in ("diff", "minus_clus_mix"))
    rates = pilot.groupby(["part", "optimizer", "loss", "learning_rate"])["outcome"].mean()
    slow, mean = rates["learning rate", "sgd"], ("token_mean", 2 * PILOTED["token_mean", "sgd"])
    spent = budget.groupby("arm")["rollouts"].mean()
    ends = pd.read_csv(paths.PUBLISHED / "study_summary.csv").set_index("arm")
    return {
        "2.6": [ends.loc["grpo", "outcome"] - ends.loc["saerl_online_rate", "outcome"]], "1.67": [spent["dapo"] / spent["grpo"]],
        "3,008": [used.min()], "3,072": [used.max()], "6 %": [1 - used.min() / STUDY.pool_samples],
        "38 %": [silent["grpo"]], "16 %": [silent["saerl_online_rate"]], "1.05": [lead.loc[50]], "38.7 %": [slow.max() / 100],
        "0.3": [behind.loc[100]], "1.2": [behind.loc[112]], "1.1": [-behind.loc[20]],
        "1.53": [late.loc[10]], "111.7": [ends.loc["grpo", "caught"]], "38.5 %": [slow[mean] / 100],
        "41 %": [arms.loc[("grpo_real", 60), "mean_avg"] / 100], "19 %": [arms.loc[("grpo_real", 20), "mean_avg"] / 100],
        "31 %": [arms.loc[("diff_real", 20), "mean_avg"] / 100],
        "2.1 %": [rates["forgetting", "sgd"][mean] / 100],
        "41.5 %": [rates["learning rate", "adamw", "token_mean", PILOTED["token_mean", "adamw"]] / 100],
    }  # fmt: skip


def control_gain() -> float:
    """Points of the positive control at the study's last step."""
    table = pd.read_csv(paths.PUBLISHED / "world_controls.csv").query(f"step == {STUDY.steps}")
    means = table.groupby("arm")["exact"].mean()
    return 100 * (means["nearest_half"] - means["random"])


POLICY, FACTS, BLUR = [million_weights()], study_facts(), [STUDY.score_correlation]
READ = pd.read_csv(paths.ROOT / "saerl_lib" / "report" / "claims.csv").query("source == 'probes'")
PURITY = pd.read_csv(paths.PUBLISHED / "real_filter.csv").query("features == 'tfidf'").set_index("rule")["purity"]
COUNTS = pd.read_csv(paths.PUBLISHED / "real_counts.csv").query("what == 'in the file'").set_index("source")["n"]
SPLITS = {"labelled": 2, "test": 1, "noisy_pool": 1, "contest_train": 1, "contest_test": 1, "step_labelled": 1}
"""Splits of a world that are read; the parent's labels are as many as those of L."""
HELD: dict[str, dict[str, list[float]]] = {
    "README.md": {
        "0.47": POLICY, "0.45": BLUR, "1.5": [POLICIES[0].parameters / 1e9],
        "3.11": [float(".".join(map(str, MINIMUM_PYTHON)))], "4,608": [SAE["d_sae"]], "7,500": [COUNTS["math_train"]],
        "6 %": FACTS["6 %"], "3.0": [paper_gain()], "45.0": [100 * (PURITY["p95"] - PURITY["full"])],
    },
    "docs/real_data.md": {
        "0.749": [READ.loc[READ["first"].str.startswith("deepmath_18k"), "paper_value"].iloc[0]],
        "4,608": [SAE["d_sae"]], "5.6 %": [SAE["k"] / SAE["d_in"]], "7,500": [COUNTS["math_train"]],
        "18,329": [COUNTS["deepmath_18k"]], "29,405": [COUNTS["deepscaler_pass_rate"]], "2,147": [COUNTS["quality_valimath"]],
        "95 %": [1 - ALPHA],
    },
    "docs/study.md": {
        "0.47": POLICY, "1.12": [PASSES], "3,200": [STUDY.pool_samples], "12,800": [WIDE * STUDY.pool_samples],
        "1.11": [REAL.steps * REAL.plan.prompts_per_step / REAL.pool_samples],
        "28 %": [STUDY.steps * STUDY.plan.prompts_per_step / (WIDE * STUDY.pool_samples)], "2 %": [GATES[FORGETTING].high],
        "0.45": BLUR, "300,000": [OWN_TOKENS], "95 %": [1 - ALPHA], "0.9": [OPTIMIZERS["sgd"][1]["momentum"]],
        "0.5": [DISCOUNT], "3.0": [paper_gain()], "1.4": COMPARISONS.query("family == 'paper'")["paper_value"].head(1).tolist(),
        **{shown: value for shown, value in FACTS.items() if shown != "6 %"},
    },
    "docs/world.md": {
        "1": [1, min(SCHOOL.values()), max(SCHOOL.values())], "2 %": [GATES[FORGETTING].high], "2.4": [control_gain()],
        "5,750": [sum(getattr(LAPTOP.world, f"{name}_samples") * times for name, times in SPLITS.items())], "0.45": BLUR,
        "4,000": [PRETRAIN_STEPS],
    },
    "docs/own_data.md": {
        "5 s": [inspect.signature(unreadable).parameters["seconds"].default],
        "2.13": [version(LOCKED["torch"])], "7,500": [COUNTS["math_train"]], "7,488": [(COUNTS["math_train"] - 2) // 32 * 32],
    },
    "CONTRIBUTING.md": {"4.4": [FULL_WIDTH]},
    "docs/claims.md": {"95 %": [1 - ALPHA], "1.67": FACTS["1.67"]},
    "docs/deviations.md": {"0.47": POLICY, "4,608": [SAE["d_sae"]], "1.0": [STUDY.train.temperature]},
    "docs/paper_scale.md": {
        "107,021": [PublishedConfig().parent_samples], "6,000": [PublishedConfig().parent_labels],
    },
    "docs/glossary.md": {"0.8": [POWER], "5 %": [ALPHA], "3,000": [PublishedConfig().labelled_samples]},
    "docs/speed.md": {"2,816": [STUDY.train.tail_steps * STUDY.plan.prompts_per_step * STUDY.train.rollouts_per_prompt]},
}  # fmt: skip
"""Document -> numbers of its prose that no table holds, and what the repository holds: settings, constants, other values."""
OUTSIDE = {
    "README.md": {"24 GB": "the machine"},
    "docs/real_data.md": {"0.69": "an aim", "0.65": "an aim", "1.20": "a bound of intervals", "1.25": "an aim",
                          "5,000": "MATH's test set",
                          **dict.fromkeys(["3,000", "0.032", "0.00"], "`ladder FILE` on rows that no task uses"),
                          **dict.fromkeys(["0.389", "0.435", "0.386", "0.046", "0.004", "0.311", "0.336"], "a finer grid"),
                          **dict.fromkeys(["5.4", "80 minutes", "50 minutes", "45 minutes"], "the run on AMD"),
                          "7,473": "GSM8K", "1,319": "GSM8K", "4,998": "labels of deepmath_18k", "1,209": "DSR-sub"},
    "docs/study.md": {"15 %": "an aim", "0.38": "blur.parquet of the larger pool's scores, which is not committed"},
    "docs/world.md": {"36.0": "arXiv 2504.20571", "73.6": "arXiv 2504.20571"},
    "docs/own_data.md": {"0.875": "an example", "0.4": "an example", "2.60": "Ray, tried by hand",
                         "2.11": "torch of the GPU tests", "100,000": "rows, a limit"},
    "docs/deviations.md": {"2.11": "torch of the GPU tests", "3.12": "Python of the GPU tests",
                           **dict.fromkeys(["24 minutes", "8,009", "6,357", "1,211"], "the run limited to AVX2"),
                           **dict.fromkeys(["20 minutes", "6,536", "1,182"], "the run on AMD")},
    "docs/paper_scale.md": {"40 %": "assumed, printed by --plan-only", "30 %": "assumed, printed by --plan-only",
                            "32,768": "width of the public SAE"},
    "docs/glossary.md": {"1,209": "DSR-sub"},
    "docs/speed.md": {**dict.fromkeys(["105 s", "85 s", "94 s"], "runs alone on one core"), "2,048": "width of Qwen3-1.7B", "131,072": "latents", "32,768": "latents"},
}  # fmt: skip
"""Document -> numbers that stand nowhere else in the repository: other people's, aims, machines."""
VALUE = r"\d+(?:,\d{3})*(?:\.\d+)?"
NUMBER = re.compile(rf"(?<![\w.,/])(?<!\w-)(?<!--)({VALUE}(?: %| GB\b| s\b| minutes\b)?)(?![\w/]|\.\d)"
                    rf"(?:[^\d()]{{0,40}}\([^\d()]*?({VALUE}) to -?({VALUE})\b)?")  # fmt: skip
"""A number, with the interval behind it where there is one."""


def numbers_of(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Each number with a decimal point, comma, unit or interval: as printed, with its interval, and its sources."""
    text = re.sub(r"<!-- begin (\w+) -->.*?<!-- end \1 -->|```.*?```", "", text, flags=re.S)
    for part in re.split(r"\n\s*\n(?!<!-- numbers)|\n(?=- |\|)", re.sub(r"^#.*$", "", text, flags=re.M)):
        pieces = re.split("<!-- numbers: (.*?) -->", part)
        for text, comment in zip_longest(pieces[::2], pieces[1::2], fillvalue=""):
            plain = re.sub(r"<!--.*?-->|`[^`]*`|\]\([^)]*\)|arXiv \S+", " ", text)
            told = [source.strip() for source in comment.split(";") if source]
            for first, *interval in NUMBER.findall(" ".join(plain.split())):
                if interval[0] or re.search("[., ]", first):
                    yield first, [v for v in (first, *interval) if v], told


def cells_of(source: str) -> np.ndarray:
    """The numbers [rows, columns], without their sign, of the rows that a source names; shares stand there in percent as well."""
    name, *words = source.split()
    texts = pd.read_csv(paths.PUBLISHED / f"{name}.csv", dtype=str).fillna("")
    kept, columns = np.ones(len(texts), dtype=bool), [word[1:] for word in words if word.startswith("@")]
    for word in words[: len(words) - len(columns)]:
        kept &= texts.replace(" ", "_", regex=True).isin(word.split("|")).any(axis=1)
    assert kept.any(), f"no row of {source}"
    corrected = texts.columns[texts.columns.isin(["ci_low", "ci_high", "p_value", "p_holm"])] if "holm_low" in texts else []
    numbers = (texts[columns] if columns else texts.drop(columns=corrected)).apply(pd.to_numeric, errors="coerce").abs()
    shares = [100 * numbers.loc[:, numbers.max() <= 1]]
    return pd.concat([numbers, *shares], axis=1)[kept].to_numpy(dtype=float)


def in_one_row(cells: np.ndarray, printed: list[str]) -> bool:
    """Whether some row holds every printed number at its rounding."""
    found = []
    for text in printed:
        value, _, unit = text.partition(" ")
        near = 0.5 * 10.0 ** -len(value.partition(".")[2]) + 1e-9
        scale = 1 / 60 if unit == "minutes" else 1
        found.append((np.abs(scale * cells - float(value.replace(",", ""))) <= near).any(axis=1))
    return bool(np.all(found, axis=0).any())


@pytest.mark.parametrize("document", sorted({*HELD, *OUTSIDE}))
def test_every_number_is_that_of_its_table_or_of_the_repository(document: str) -> None:
    held, outside = HELD.get(document, {}), OUTSIDE.get(document, {})
    found = list(numbers_of(DOCUMENTS[paths.ROOT / document]))
    wrong = [
        (printed, held.get(shown)) for shown, printed, told in found
        if shown not in outside and not any(in_one_row(cells_of(source), printed) for source in told)
        and not in_one_row(np.array([held.get(shown, [np.nan])]) * (100 if "%" in shown else 1), printed)
    ]  # fmt: skip
    assert wrong == [] and {*held, *outside} <= {shown for shown, *_ in found}


def test_no_document_states_numbers_unseen() -> None:
    told = {paths.ROOT / name for name in (*HELD, *OUTSIDE)}
    assert [path.name for path, content in DOCUMENTS.items() if path not in told and list(numbers_of(content))] == []


def test_a_wrong_number_is_noticed() -> None:
    table = np.array([[0.779, 0.768, 0.791], [0.634, 0.61, 0.65]])
    assert in_one_row(table, ["0.779", "0.768", "0.791"]) and in_one_row(100 * table, ["63.4"])
    assert in_one_row(60 * table, ["0.78 minutes"]) and not in_one_row(table, ["77.9 s"])
    assert not any(in_one_row(table, wrong) for wrong in (["0.778"], ["0.779", "0.61", "0.65"], ["64"]))
    text = "It is 0.5 points below (0.4 to 0.6), 7 % of 1,206; `0.9` in 16 steps.\n<!-- numbers: a b; c -->\n\n| 0.3 |\n\nAt 2.5."
    found = [(printed, told) for _, printed, told in numbers_of(text)]
    said = [["0.5", "0.4", "0.6"], ["7 %"], ["1,206"]]
    assert found == [*((printed, ["a b", "c"]) for printed in said), (["0.3"], []), (["2.5"], [])]
