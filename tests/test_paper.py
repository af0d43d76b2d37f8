"""Profile `paper`: its plan, its settings, its arithmetic, and what a machine lacks."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saerl_lib import cost, needs, paths
from saerl_lib.cli import main
from saerl_lib.config import UnknownProfileError, get_profile
from saerl_lib.cost import GIVEN, OURS, PAPER, PaperConfig
from saerl_lib.data.hub import BENCHMARKS, QWEN3_17B, QWEN25_MATH_7B, QWEN25_MATH_15B, TRAINING_DATA, HubData, HubModel
from saerl_lib.needs import Machine, downloads, missing, plan_text, reachable, stages

BARE = Machine(False, (), ("torch 2.13.0 is not installed",), 10**9, 10**9, False)
FULL = Machine(True, (("NVIDIA H100 80GB HBM3", 85.5e9),) * 4, (), 10**14, 10**14, True)


# The plan.


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "look", lambda: BARE)


def test_plan_prints_downloads_costs_and_what_is_missing(bare_machine: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--profile", "paper", "--plan-only"]) == 0
    text = capsys.readouterr().out
    for data in (*TRAINING_DATA, *BENCHMARKS):
        assert data.repository in text
    for name in ("Qwen2.5-Math-1.5B", "Qwen2.5-Math-7B", "Qwen3-1.7B-Base", "qwen-scope-3-1.7b-base-w32k-l50, layer27"):
        assert name in text
    assert text.count("  not pinned yet") == 4
    for words in ("network:", "GPU: 4 of 80 GB", "packages: torch", "disk:", "Token:", "0.5 H100-hours", "17.33 H100-hours",
                  "All of it: 662 to 2,865 H100-hours, 10 TB of results.", "response_tokens                 1,000 tokens"):
        assert words in text
    for name in (*vars(GIVEN), *(item.name for item in dataclasses.fields(PaperConfig)[-10:])):
        assert re.search(rf"^  {name} .*({PAPER}|{OURS})", text, re.M), f"{name} is not printed with its origin"


def test_full_machine_lacks_only_what_no_machine_has() -> None:
    found = missing(PaperConfig(), FULL)
    assert [sentence.split(":")[0] for sentence in found] == ["packages", "revisions"]


def test_training_is_refused_and_names_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownProfileError, match="has no notebooks yet.*--plan-only"):
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
        "import sys\n"
        "from saerl_lib import needs\n"
        "needs.reachable = lambda: False\n"
        "assert needs.main(['--profile', 'paper', '--plan-only']) == 0\n"
        "assert needs.main(['--profile', 'paper']) == 1 and needs.main(['--profile', 'smoke', '--plan-only']) == 1\n"
        "print([name for name in ('torch', 'pandas', 'numpy', 'datasets', 'safetensors') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert found.stdout.splitlines()[-1] == "[]", found.stderr


def test_run_all_prints_the_plan_without_installing(tmp_path: Path) -> None:
    modules = ("__init__", "paths", "envcheck", "config", "cost", "data/__init__", "data/hub")
    for name in ("run_all.sh", *(f"saerl_lib/{module}.py" for module in modules)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((paths.ROOT / name).read_bytes())
    (tmp_path / "run_all.sh").chmod(0o755)
    (tmp_path / "requirements.lock").write_text("saerl_probe==1.0\n")
    before, last = (paths.ROOT / "saerl_lib" / "needs.py").read_text(encoding="utf-8").split("if __name__ ==")
    offline = "reachable = lambda: False\n\n\nif __name__ =="
    (tmp_path / "saerl_lib" / "needs.py").write_text(before + offline + last, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SAERL_", "PYTHON", "VIRTUAL"))}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    script = [str(tmp_path / "run_all.sh"), "--profile", "paper", "--plan-only"]
    found = subprocess.run(script, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    assert "saerl-probe 1.0 is not installed" in found.stdout and "Stages" in found.stdout
    assert not (tmp_path / ".venv").exists()


def test_other_saes_change_downloads_and_widths() -> None:
    trained = PaperConfig(sae="trained")
    assert any("fineweb-edu" in name and count == 80e9 for name, count, _ in downloads(trained))
    assert trained.sae_latents == 131_072 == 4 * PaperConfig().sae_latents
    opensae = PaperConfig(sae="opensae", opensae_folder="checkpoint")
    assert opensae.reading_model == QWEN3_17B and PaperConfig().reading_model.repository == "Qwen/Qwen3-1.7B-Base"
    for config in (trained, opensae):
        text = plan_text(config, BARE)
        assert "differs from the paper" not in text and "qwen-scope" not in text and "train the SAE  152.2 to 266.0" in text


def test_published_sae_is_in_saelens_registry() -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    config = PaperConfig()
    release = get_pretrained_saes_directory()[config.sae_release]
    assert release.repo_id == config.sae_repository and release.model == config.reading_model.repository
    assert config.sae_id in release.saes_map


@pytest.mark.parametrize(
    "change",
    [
        {"sae": "random"}, {"sae": "opensae"}, {"runs_per_policy": (7,)}, {"solution_index": 4}, {"prompts_per_step": 1},
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
def test_parameters_agree_with_transformers(model: HubModel) -> None:
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
    assert model.parameters == sum(p.numel() for p in built.parameters())


def test_flops_hours_and_gpus_by_hand() -> None:
    blocks = QWEN3_17B.parameters - 151_936 * 2048 - 2048
    assert QWEN3_17B.forward_flops(0, head=False) == 2 * blocks
    assert QWEN3_17B.forward_flops(10) - QWEN3_17B.forward_flops(0) == 4 * 10 * 28 * 2048
    assert cost.hours(989e12 * 0.4 * 3600, 989e12, 0.4) == pytest.approx(1.0)
    assert [cost.gpus(memory) for memory in (1.0, 80e9, 81e9)] == [1, 1, 2]


def test_estimates_lie_near_the_papers_own_figures() -> None:
    config = PaperConfig()
    for paper, (low, high) in (
        (0.5, cost.encode_hours(config, config.paper_latents)), (116.0, cost.sae_training_hours(config)),
        (17.33, cost.adarft_hours(config)),
    ):  # fmt: skip
        assert paper / 2 < low < 2 * paper and low <= high < 6 * paper


def test_estimates_follow_their_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PaperConfig()
    half, before = dataclasses.replace(config, pool_samples=config.pool_samples // 2), cost.sae_training_hours(config)[0]
    assert cost.encode_hours(half, 32_768)[0] == pytest.approx(cost.encode_hours(config, 32_768)[0] / 2)
    for stage in stages(config):
        assert 0 <= stage.gpu_hours[0] <= stage.gpu_hours[1] and stage.disk_bytes > 0 and stage.how
    monkeypatch.setattr(GIVEN, "train_utilisation", 0.2)
    assert cost.sae_training_hours(config)[0] == pytest.approx(2 * before)


def test_training_memory_by_hand() -> None:
    config = PaperConfig()
    tokens, state = 8 * 4096, (18 + 2) * QWEN25_MATH_7B.parameters
    kept, block = 4 * 28 * 3584, 8 * 3584 + 2 * (2 * 3584 + 2 * 512 + 2 * 3584 + 4 * 18944)
    assert QWEN25_MATH_7B.activation_bytes == kept + block
    cache = GIVEN.decode_sequences * 4096 * 57_344
    expected = state + tokens * (kept + block) + 4 * GIVEN.logits_tile + cache + GIVEN.working_bytes
    found = cost.training_memory(config, QWEN25_MATH_7B)
    assert found == pytest.approx(expected) and cost.gpus(found) == 4
    twice = dataclasses.replace(config, micro_batch=16)
    assert cost.training_memory(twice, QWEN25_MATH_7B) - found == pytest.approx(tokens * (kept + block))


def test_the_disk_of_training_holds_what_train_keeps() -> None:
    config = PaperConfig()
    found = {stage.name: stage.disk_bytes for stage in stages(config)}
    for model, runs in zip(config.policies, config.runs_per_policy, strict=True):
        kept = len(range(config.eval_every_steps, config.steps + 1, config.eval_every_steps)) + 1
        expected = runs * model.parameters * (2 * GIVEN.checkpoint_bytes_per_parameter + 4 * kept)
        assert found[f"GRPO, {model.repository}"] == pytest.approx(expected) and expected > 1e12


@pytest.mark.parametrize("name", ["cost", "needs", "data.hub"])
def test_doctests(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"saerl_lib.{name}"))
    assert result.attempted > 0 and result.failed == 0


# The machine.


def test_machine_is_looked_at_without_a_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(needs, "reachable", lambda: False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "there"))
    monkeypatch.setenv("HF_TOKEN", "x")
    found = needs.look()
    assert not found.hub_reachable and found.token_set and found.cache_disk_bytes > 0


def test_reachable_gives_up_in_time() -> None:
    started = time.monotonic()
    assert not reachable(0.3, ("127.0.0.1", 9))
    assert time.monotonic() - started < 2


def test_gpus_are_read_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA A100-SXM4-80GB, 81920'; echo 'no devices, found'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert needs.list_gpus() == (("NVIDIA A100-SXM4-80GB", 81920.0 * 2**20),)
    tool.write_text("#!/bin/sh\necho 'failed to initialize NVML'; exit 9\n")
    assert needs.list_gpus() == ()
