"""Profile `paper`: its plan, its arithmetic, the readers of the published sets, and answers checked under a time limit."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saerl_lib import paths
from saerl_lib.__main__ import main
from saerl_lib.config import UnknownProfileError, get_profile
from saerl_lib.data.answers import Checked, check_answers
from saerl_lib.data.sample import DataError, Sample
from saerl_lib.paper import command, machine
from saerl_lib.paper.arithmetic import forward_flops_per_token, hours, parameters
from saerl_lib.paper.assumptions import OURS, PAPER, Assumptions
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.estimate import adarft_hours, encode_hours, sae_training_hours, stages
from saerl_lib.data.published import BENCHMARKS, READERS, SETS, TRAINING_DATA, HubData, prm800k
from saerl_lib.paper.hub import QWEN3_17B, QWEN25_MATH_7B, QWEN25_MATH_15B
from saerl_lib.paper.loading import LOCAL_FIELDS, as_published, from_folder, from_hub
from saerl_lib.paper.machine import Machine, parse_gpus, reachable
from saerl_lib.paper.memory import activation_bytes_per_token, gpus, training_memory
from saerl_lib.paper.needs import downloads, missing
from saerl_lib.paper.plan import plan_text

BARE = Machine(False, (), ("torch 2.13.0 is not installed",), 10**9, 10**9, 8 * 10**9, False, None)
FULL = Machine(True, (("NVIDIA H100 80GB HBM3", 85.5e9),) * 4, (), 10**14, 10**14, 10**12, True, None)


# The plan.


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "look", lambda: BARE)


def test_plan_prints_downloads_costs_and_what_is_missing(bare_machine: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--profile", "paper", "--plan-only"]) == 0
    text = capsys.readouterr().out
    for data in (*TRAINING_DATA, *BENCHMARKS):
        assert data.repository in text
    for name in ("Qwen2.5-Math-1.5B", "Qwen2.5-Math-7B", "Qwen3-1.7B-Base", "qwen-scope-3-1.7b-base-w32k-l50, layer27"):
        assert name in text
    assert text.count("  not pinned yet") == 4
    for words in ("network:", "GPU: 4 of 80 GB", "packages: torch", "disk:", "Token:", "0.5 H100-hours", "17.33 H100-hours"):
        assert words in text
    for item in (*dataclasses.fields(Assumptions), *dataclasses.fields(PaperConfig)[-10:]):
        assert re.search(rf"^  {item.name} .*({PAPER}|{OURS})", text, re.M), f"{item.name} is not printed with its origin"


def test_too_little_main_memory_is_said() -> None:
    small = dataclasses.replace(BARE, memory_bytes=2 * 10**9)
    assert any(s.startswith("memory: 4.0 GB") for s in missing(PaperConfig(), Assumptions(), small))


def test_full_machine_lacks_only_what_no_machine_has() -> None:
    found = missing(PaperConfig(), Assumptions(), FULL)
    assert [sentence.split(":")[0] for sentence in found] == ["packages", "revisions"]


def test_training_is_refused_and_names_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownProfileError, match="not part of this version yet.*--plan-only"):
        get_profile("paper")
    assert main(["run", "--profile", "paper"]) == 1
    assert "--plan-only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "laptop", "--plan-only"], "belongs to --profile paper"),
        (["--profile", "paper", "--plan-only", "--only", "03"], "leave out --only"),
        (["--profile", "paper", "--plan-only", "--seeds", "2"], "leave out --seeds"),
    ],
)
def test_plan_only_ignores_no_option(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_plan_needs_the_standard_library_alone() -> None:
    code = (
        "import sys\nfrom saerl_lib.paper import command, machine\nmachine.reachable = lambda seconds: False\n"
        "assert command.main(['--profile', 'paper', '--plan-only']) == 0\n"
        "assert command.main(['--profile', 'paper']) == 1 and command.main(['--profile', 'smoke', '--plan-only']) == 1\n"
        "print([name for name in ('torch', 'pandas', 'numpy', 'datasets', 'safetensors') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert found.stdout.splitlines()[-1] == "[]", found.stderr


def test_run_all_prints_the_plan_without_installing(tmp_path: Path) -> None:
    for name in ("run_all.sh", "requirements.lock", "saerl_lib/__init__.py", "saerl_lib/paths.py", "saerl_lib/envcheck.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((paths.ROOT / name).read_bytes())
    (tmp_path / "run_all.sh").chmod(0o755)
    (tmp_path / "requirements.lock").write_text("saerl_probe==1.0\n")
    (tmp_path / "saerl_lib" / "paper").mkdir()
    for source in (paths.ROOT / "saerl_lib" / "paper").glob("*.py"):
        (tmp_path / "saerl_lib" / "paper" / source.name).write_bytes(source.read_bytes())
    (tmp_path / "saerl_lib" / "paper" / "machine.py").open("a").write("\nreachable = lambda seconds: False\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SAERL_", "PYTHON", "VIRTUAL"))}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    script = [str(tmp_path / "run_all.sh"), "--profile", "paper", "--plan-only"]
    found = subprocess.run(script, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    assert "saerl-probe 1.0 is not installed" in found.stdout and "Stages" in found.stdout
    assert not (tmp_path / ".venv").exists()


def test_other_saes_change_downloads_and_stages() -> None:
    trained = PaperConfig(sae="trained")
    assert any("fineweb-edu" in name and size == 80e9 for name, size, _ in downloads(trained))
    assert stages(trained, Assumptions())[0].name == "train the SAE" and trained.sae_latents == 131_072
    opensae = PaperConfig(sae="opensae", opensae_folder="checkpoint")
    assert opensae.reading_model == QWEN3_17B and PaperConfig().reading_model.repository == "Qwen/Qwen3-1.7B-Base"
    for config in (trained, opensae):
        text = plan_text(config, Assumptions(), BARE)
        assert "differs from the paper" not in text and "qwen-scope" not in text


def test_published_sae_is_in_saelens_registry() -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    config = PaperConfig()
    release = get_pretrained_saes_directory()[config.sae_release]
    assert release.repo_id == config.sae_repository and release.model == config.reading_model.repository
    assert config.sae_id in release.saes_map


@pytest.mark.parametrize(
    "change",
    [
        {"sae": "random"}, {"sae": "opensae"}, {"runs_per_policy": (7,)}, {"solution_index": 4}, {"swapped_per_batch": 128},
        {"micro_batch": 3}, {"rollouts_per_prompt": 1}, {"steps": 0}, {"eval_every_steps": 0}, {"eval_samples": 0},
        {"labelled_samples": 0}, {"retained_latents": 0}, {"clusters": 0}, {"max_prompt_tokens": 0}, {"max_response_tokens": -1},
    ],
)  # fmt: skip
def test_bad_combination_is_rejected(change: dict[str, object]) -> None:
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=rf"{name}='?{re.escape(str(value))}'?.*(must|choose|give|needs|has)"):
        PaperConfig(**change)  # type: ignore[arg-type]


def test_a_given_sae_is_read_through_the_papers_encoder() -> None:
    """Only the published SAE and others of its registry were trained on the base model."""
    assert PaperConfig(sae_source="some/folder").reading_model == QWEN3_17B == PaperConfig(sae_source="opensae:x").reading_model
    assert PaperConfig(sae_source="saelens:a/b").reading_model == PaperConfig().reading_model != QWEN3_17B


def test_revision_is_a_whole_hash_or_none() -> None:
    with pytest.raises(ValueError, match="40-digit"):
        HubData("x", "a/b", "train", 1, 1, revision="main")
    config = PaperConfig()
    pinned = [item.revision for item in (*TRAINING_DATA, *BENCHMARKS, *config.policies, config.encoder, config.reading_model)]
    assert all(re.fullmatch(r"[0-9a-f]{40}", revision) for revision in pinned if revision)


# The arithmetic.


@pytest.mark.parametrize("model", [QWEN25_MATH_15B, QWEN25_MATH_7B, QWEN3_17B])
def test_parameters_agree_with_transformers(model) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    shape = {
        "hidden_size": model.width, "intermediate_size": model.feed_forward, "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads, "num_key_value_heads": model.key_value_heads, "vocab_size": model.vocabulary,
        "tie_word_embeddings": model.tied_embedding,
    }  # fmt: skip
    with torch.device("meta"):
        if model.query_bias:
            built = Qwen2ForCausalLM(Qwen2Config(**shape))
        else:
            built = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=model.head_width))
    assert parameters(model) == sum(p.numel() for p in built.parameters())


def test_flops_and_hours_by_hand() -> None:
    blocks = parameters(QWEN3_17B) - 151_936 * 2048 - 2048
    assert forward_flops_per_token(QWEN3_17B, 0, head=False) == 2 * blocks
    assert forward_flops_per_token(QWEN3_17B, 10) - forward_flops_per_token(QWEN3_17B, 0) == 4 * 10 * 28 * 2048
    assert hours(989e12 * 0.4 * 3600, 989e12, 0.4) == pytest.approx(1.0)


def test_estimates_lie_near_the_papers_own_figures() -> None:
    config, given = PaperConfig(), Assumptions()
    for paper, (low, high) in (
        (0.5, encode_hours(config, given, config.paper_latents)), (116.0, sae_training_hours(config, given)),
        (17.33, adarft_hours(config, given)),
    ):  # fmt: skip
        assert paper / 2 < low < 2 * paper and low <= high < 6 * paper


def test_estimates_follow_their_inputs() -> None:
    config, given = PaperConfig(), Assumptions()
    half = dataclasses.replace(config, pool_samples=config.pool_samples // 2)
    assert encode_hours(half, given, 32_768)[0] == pytest.approx(encode_hours(config, given, 32_768)[0] / 2)
    slow = dataclasses.replace(given, train_utilisation=0.2)
    assert sae_training_hours(config, slow)[0] == pytest.approx(2 * sae_training_hours(config, given)[0])
    for stage in stages(config, given):
        assert 0 <= stage.gpu_hours[0] <= stage.gpu_hours[1] and stage.disk_bytes > 0 and stage.how


def test_training_memory_by_hand() -> None:
    config, given = PaperConfig(), Assumptions()
    tokens, state = 8 * 4096, (18 + 2) * parameters(QWEN25_MATH_7B)
    kept, block = 4 * 28 * 3584, 8 * 3584 + 2 * (2 * 3584 + 2 * 512 + 2 * 3584 + 4 * 18944)
    assert activation_bytes_per_token(QWEN25_MATH_7B) == kept + block
    cache = given.decode_sequences * 4096 * 57_344
    expected = state + tokens * (kept + block) + 4 * given.logits_tile + cache + given.working_bytes
    found = training_memory(config, given, QWEN25_MATH_7B)
    assert found == pytest.approx(expected) and gpus(found, given) == 4
    twice = dataclasses.replace(config, micro_batch=16)
    assert training_memory(twice, given, QWEN25_MATH_7B) - found == pytest.approx(tokens * (kept + block))


@pytest.mark.parametrize(
    "name",
    ["paper.arithmetic", "paper.assumptions", "paper.memory", "paper.machine", "paper.text", "paper.steps", "paper.loading",
     "data.checking"],
)  # fmt: skip
def test_doctests(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"saerl_lib.{name}"))
    assert result.attempted > 0 and result.failed == 0


# The machine.


def test_machine_is_looked_at_quickly_and_without_a_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "reachable", lambda seconds: False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "there"))
    monkeypatch.setenv("HF_TOKEN", "x")
    found = machine.look()
    assert not found.hub_reachable and found.token_set and found.cache_disk_bytes > 0


def test_reachable_gives_up_in_time() -> None:
    started = time.monotonic()
    assert not reachable(0.3, ("127.0.0.1", 9))
    assert time.monotonic() - started < 2


def test_gpus_are_read_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA A100-SXM4-80GB, 81920'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert machine.list_gpus() == (("NVIDIA A100-SXM4-80GB", 81920.0 * 2**20),)
    tool.write_text("#!/bin/sh\necho 'failed to initialize NVML'; exit 9\n")
    assert machine.list_gpus() == () == parse_gpus("no devices, found\n")


# The readers, on rows of the published schemas.

ROWS = {
    "deepmath": {
        "question": "Find the limit.", "final_answer": "0", "difficulty": 4.5, "topic": "Mathematics -> Precalculus -> Limits",
        "r1_solution_1": "Okay, let me think.\n</think>\n\nIt is sin x / x.\n\nSo 0.", "r1_solution_2": "b", "r1_solution_3": "c",
    },
    "numinamath": {
        "problem": "Show it.", "solution": "Clear.", "answer": "proof", "problem_type": "Geometry", "question_type": "proof",
        "problem_is_valid": "Yes", "solution_is_valid": "No", "source": "olympiads", "synthetic": False,
    },
    "prm800k": {
        "labeler": "a", "generation": 9, "question": {"problem": "2+2?", "ground_truth_answer": "4", "pre_generated_answer": "5"},
        "label": {
            "steps": [
                {"completions": [{"text": "Add.", "rating": 0}], "human_completion": None, "chosen_completion": 0},
                {"completions": [{"text": "2+2=5", "rating": -1}, {"text": "2+2=4", "rating": 1}], "human_completion": None,
                 "chosen_completion": None},
            ],
            "total_time": 1, "finish_reason": "found_error",
        },
    },
    "deepscaler": {"problem": "1/2?", "answer": "\\frac{1}{2}", "solution": ""},
    "aime24": {"id": 60, "problem": "How long?", "solution": "Walk.", "answer": "204", "url": "u", "year": "2024"},
    "amc23": {"id": 3, "question": "How many?", "answer": 27.0, "url": "u"},
    "gsm8k": {"question": "Eggs?", "answer": "She sells 9.\n9 * 2000 = <<9*2000=18000>>18000.\n#### 18,000"},
    "math500": {
        "problem": "Polar?", "solution": "r = 3.", "answer": "3", "subject": "Precalculus", "level": 2,
        "unique_id": "test/precalculus/807.json",
    },
    "minerva": {"question": "How wide?", "answer": "1.6"},
    "olympiadbench": {
        "id": 1606, "question": "Moves?", "context": None, "solution": ["Two."], "final_answer": ["2", "3"],
        "subfield": "Combinatorics", "unit": None, "is_multiple_answer": True,
    },
}  # fmt: skip


def test_every_set_has_a_reader_and_a_row() -> None:
    assert set(READERS) == set(SETS) == set(ROWS)
    assert set(LOCAL_FIELDS) == {data.name for data in SETS.values() if data.local_file}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deepmath", Sample("deepmath-7", "Find the limit.", ("It is sin x / x.", "So 0."), "0",
                            "Mathematics -> Precalculus -> Limits", 4.5, "deepmath")),
        ("prm800k", Sample("prm800k-7", "2+2?", ("Add.", "2+2=5"), "5", source="prm800k", flaw="found_error",
                           step_labels=(0, -1))),
        ("math500", Sample("math500-test/precalculus/807.json", "Polar?", ("r = 3.",), "3", "Precalculus", 2.0, "math500")),
    ],
)  # fmt: skip
def test_row_becomes_this_sample(name: str, expected: Sample) -> None:
    found = READERS[name](ROWS[name], 7)
    assert str(found) == str(expected)  # a difficulty of NaN equals no other


@pytest.mark.parametrize(
    ("name", "answer", "solved"),
    [
        ("numinamath", "", True), ("deepscaler", "\\frac{1}{2}", False), ("aime24", "204", True), ("amc23", "27", False),
        ("gsm8k", "18000", True), ("minerva", "1.6", False), ("olympiadbench", "2, 3", True),
    ],
)  # fmt: skip
def test_answers_and_solutions(name: str, answer: str, solved: bool) -> None:
    sample = READERS[name](ROWS[name], 0)
    assert (sample.answer, sample.solved, sample.source) == (answer, solved, name)


def test_numinamath_marks_what_the_set_calls_not_valid() -> None:
    assert READERS["numinamath"](ROWS["numinamath"], 0).flaw == "solution"
    row = {**ROWS["numinamath"], "solution_is_valid": "Incomplete", "answer": "42"}
    assert (READERS["numinamath"](row, 0).flaw, READERS["numinamath"](row, 0).answer) == ("", "42")


def test_prm800k_follows_the_chosen_path() -> None:
    steps = [
        {"completions": [{"text": "wrong", "rating": -1}], "human_completion": {"text": "Mine.", "rating": None},
         "chosen_completion": None},
        {"completions": [{"text": "no", "rating": -1}, {"text": "So 4.\n\n# Answer\n\n4", "rating": 1}], "chosen_completion": 1},
    ]  # fmt: skip
    row = {"question": {"problem": "2+2?"}, "label": {"steps": steps, "finish_reason": "solution"}}
    sample = prm800k(row, 0)
    assert (sample.steps, sample.answer, sample.step_labels, sample.flaw) == (("Mine.", "So 4."), "4", (1, 1), "")
    damaged = {**row, "label": {"steps": [{"completions": [], "chosen_completion": 2}], "finish_reason": "solution"}}
    with pytest.raises(DataError, match="prm800k row 3: chosen_completion 2"):
        prm800k(damaged, 3)
    given_up = prm800k({**row, "label": {"steps": [], "finish_reason": "give_up"}}, 0)
    assert given_up.flaw == "give_up" and not given_up.solved


@pytest.mark.parametrize("name", sorted(ROWS))
def test_row_of_another_schema_is_named(name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} row 5: .*"):
        READERS[name]({"text": "something else"}, 5)


def test_numbers_that_are_none_are_rejected_or_unknown() -> None:
    assert math.isnan(READERS["deepmath"]({**ROWS["deepmath"], "difficulty": -1}, 0).difficulty)
    assert READERS["math500"]({**ROWS["math500"], "level": "Level 3"}, 0).difficulty == 3.0
    with pytest.raises(DataError, match="'difficulty' is True"):
        READERS["deepmath"]({**ROWS["deepmath"], "difficulty": True}, 0)


# From a folder and from the hub.


def test_local_copy_goes_through_the_same_reader(tmp_path: Path) -> None:
    record = {"id": "gsm8k-test-0", "question": "Eggs?", "answer": "18000", "solution": ROWS["gsm8k"]["answer"]}
    data = dataclasses.replace(SETS["gsm8k"], local_file="copy.jsonl")
    (tmp_path / "copy.jsonl").write_text(json.dumps(record) + "\n\n")
    assert as_published(data, record) == {"id": "0", **ROWS["gsm8k"]}
    (sample,) = from_folder(data, tmp_path)
    assert str(sample) == str(READERS["gsm8k"](ROWS["gsm8k"], 0))
    (tmp_path / "copy.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="copy.jsonl, line 1: not JSON"):
        list(from_folder(data, tmp_path))
    with pytest.raises(DataError, match="no local copy"):
        list(from_folder(SETS["prm800k"], tmp_path))


@pytest.mark.parametrize("name", ["deepmath", "numinamath", "math500"])
def test_hub_format_is_streamed_from_a_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = dataclasses.replace(SETS[name], repository=str(tmp_path / "repository"), revision=None)
    (tmp_path / "repository" / "data").mkdir(parents=True)
    pandas.DataFrame([ROWS[name]] * 3).to_parquet(tmp_path / "repository" / "data" / f"{data.split}-00000-of-00001.parquet")
    samples = list(from_hub(data, limit=2))
    assert [s.prompt for s in samples] == [READERS[name](ROWS[name], 0).prompt] * 2


@pytest.mark.parametrize("name", ["gsm8k", "olympiadbench"])
def test_configuration_of_a_repository_is_asked_for(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = dataclasses.replace(SETS[name], repository=str(tmp_path), revision=None)
    entry = "- config_name: {0}\n  data_files:\n  - split: {1}\n    path: {0}/*"
    listed = [entry.format(configuration, data.split) for configuration in ("other", data.configuration)]
    (tmp_path / "README.md").write_text("\n".join(["---", "configs:", *listed, "---", ""]))
    for configuration, row in (("other", {"wrong": "row"}), (str(data.configuration), ROWS[name])):
        (tmp_path / configuration).mkdir()
        pandas.DataFrame([row]).to_parquet(tmp_path / configuration / f"{data.split}-00000-of-00001.parquet")
    (sample,) = from_hub(data)
    assert str(sample) == str(READERS[name](ROWS[name], 0))


def test_prm800k_file_is_streamed_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = dataclasses.replace(SETS["prm800k"], repository=str(tmp_path), revision=None)
    (tmp_path / "phase2_train.jsonl").write_text(json.dumps(ROWS["prm800k"]) + "\n")
    (sample,) = from_hub(data)
    assert sample.step_labels == (0, -1)


def test_hub_is_asked_for_the_pinned_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[dict[str, object]] = []

    def load_dataset(repository: str, **rest: object) -> list[dict[str, object]]:
        asked.append(rest)
        return [ROWS["numinamath"]]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(list(from_hub(SETS["numinamath"]))) == 1
    assert asked[0]["revision"] == SETS["numinamath"].revision and asked[0]["streaming"] is True
    assert "trust_remote_code" not in asked[0]
    with pytest.raises(DataError, match="not pinned yet"):
        next(from_hub(SETS["amc23"]))
    assert len(asked) == 1


@pytest.fixture
def data_dir() -> Path:
    folder = paths.shared_data_dir()
    if folder is None:
        pytest.skip("SAERL_DATA_DIR is not set")
    return folder


@pytest.mark.parametrize("name", sorted(LOCAL_FIELDS))
def test_real_rows_become_samples(name: str, data_dir: Path) -> None:
    samples = list(from_folder(SETS[name], data_dir, limit=1000))
    assert samples and len({s.id for s in samples}) == len(samples)
    assert all(s.prompt and s.answer and s.source == name for s in samples)
    assert all(s.solved == (name in ("gsm8k", "math500")) for s in samples)
    if name in {data.name for data in BENCHMARKS}:
        assert len(list(from_folder(SETS[name], data_dir))) in (SETS[name].rows, 675)
    if name == "deepscaler":
        assert all(0 <= s.difficulty <= 1 for s in samples)
    if name == "deepmath":
        levels = [s.difficulty for s in from_folder(SETS[name], data_dir) if not math.isnan(s.difficulty)]
        assert 4000 < len(levels) < 5000 and min(levels) >= 0


# Answers under a time limit.

PAIRS = [
    (r"\text{(C)}", "C", True), ("C", r"\textbf{(C)}~12", True), ("C", "(D)", False), ("A", "A+1", False),
    ("(3,4]", r"x \in (3,4]", True), ("(3,4]", "[3,4]", False), (r"(0,9) \cup (9,36)", r"(9,36)\cup(0,9)", True),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2,1+\sqrt5,1-\sqrt5\}", True), ("1,3,5", "5,3,1", True), ("1,3,5", "1,3", False),
    (r"\frac{14}{3}", "14/3", True), (r"\dfrac{5}{2}", "2.5", True), (r"\frac{14}{3}", "4.6667", False),
    (r"5.4 \text{ cents}", "5.4", True), (r"18\text{ hours}", "18", True), ("Yes", "yes", True), ("Yes", "No", False),
    ("x", "", False),
]  # fmt: skip
ENDLESS = "9^{9^{9^9}}"


def test_answers_are_compared_and_an_endless_one_is_killed() -> None:
    pairs = [(gold, answer) for gold, answer, _ in PAIRS]
    started = time.monotonic()
    found = check_answers([*pairs[:9], (ENDLESS, "1"), *pairs[9:]], seconds=5)
    assert found.pop(9) == Checked(False, "overran")
    assert [c.outcome for c in found] == ["compared"] * len(PAIRS)
    wrong = [pair for pair, checked in zip(PAIRS, found, strict=True) if checked.equal != pair[2]]
    assert not wrong
    assert time.monotonic() - started < 60


def test_a_dead_worker_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from saerl_lib.data import checking

    ask = checking._Worker.ask

    def killed_once(self: checking._Worker, gold: str, answer: str, seconds: float) -> str | None:
        if gold == "poison":
            self.process.kill()
            self.process.wait()
        return ask(self, gold, answer, seconds)

    monkeypatch.setattr(checking._Worker, "ask", killed_once)
    found = check_answers([("1", "1"), ("poison", "1"), ("2", "2")], seconds=10)
    assert [c.outcome for c in found] == ["compared", "crashed", "compared"] and found[2].equal
    assert check_answers([], seconds=1) == []
    with pytest.raises(ValueError, match="positive"):
        check_answers([("1", "1")], seconds=0)


REAL = {
    "choice": ("deepmath", r"[A-E]", 10),
    "interval": ("deepmath", r"\[[^,]*,[^,]*[\])]|\([^,]*,[^,]*\]", 10),
    "set": ("deepmath", r"\\\{.+\\\}", 10),
    "fraction": ("math500", r"-?\\frac\{\d+\}\{\d+\}", 10),
    "unit": ("deepscaler", r"\d+\\text\{ \w+\}", 5),
}
"""Kind of answer -> set, form of the whole answer, how many rows."""


@pytest.mark.parametrize("kind", sorted(REAL))
def test_real_answers_agree_with_themselves_and_not_with_another(kind: str, data_dir: Path) -> None:
    name, form, count = REAL[kind]
    golds = [s.answer for s in from_folder(SETS[name], data_dir) if re.fullmatch(form, s.answer)][:count]
    assert golds
    others = {"choice": lambda a: "E" if a != "E" else "A"}.get(kind, lambda a: "123457")
    found = check_answers([*((a, a) for a in golds), *((a, others(a)) for a in golds)], seconds=10)
    assert [c.outcome for c in found] == ["compared"] * len(found)
    assert [c.equal for c in found[: len(golds)]] == [True] * len(golds), golds
    assert [c.equal for c in found[len(golds) :]] == [False] * len(golds), golds


def test_the_disk_of_training_holds_what_train_keeps() -> None:
    config, given = PaperConfig(), Assumptions()
    found = {stage.name: stage.disk_bytes for stage in stages(config, given)}
    for model, runs in zip(config.policies, config.runs_per_policy, strict=True):
        kept = len(range(config.eval_every_steps, config.steps + 1, config.eval_every_steps)) + 1
        expected = runs * parameters(model) * (2 * given.checkpoint_bytes_per_parameter + 4 * kept)
        assert found[f"GRPO, {model.repository}"] == pytest.approx(expected) and expected > 1e12
