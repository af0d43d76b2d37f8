"""The shipped policies: sampling, what they can do, their rebuild, the published histogram."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from saerl_lib import paths
from saerl_lib.data.sample import Sample
from saerl_lib.studies.world_check import fit_weights
from saerl_lib.train.policy import POLICIES, load_policy, policy_folder
from saerl_lib.train.sampler import GroupSampler, correct_attempts, sample_groups
from saerl_lib.world.gates import REFERENCE_SHARES, reference_shares
from saerl_lib.world.sources import rebuild_policy


def test_sampling_is_seeded_and_leaves_the_global_stream_alone() -> None:
    model, tokenizer = load_policy()
    prompts = ["31+47", "Find 90-13.", "31+47"]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = sample_groups(model, tokenizer, prompts, 1, 24, 2.0, seed=1).texts
    assert torch.equal(before, torch.random.get_rng_state())
    assert first == sample_groups(model, tokenizer, prompts, 1, 24, 2.0, seed=1).texts
    assert first != sample_groups(model, tokenizer, prompts, 1, 24, 2.0, seed=2).texts
    assert GroupSampler(model, tokenizer).complete(prompts, 1, 24, 2.0, seed=1) == [[text] for text in first]


def test_near_greedy_sampling_equals_generate() -> None:
    """The sampler drops finished rows; the reference is Hugging Face's own greedy generation."""
    model, tokenizer = load_policy()
    prompts = ["31+47.\n", "A box holds 86 beads; 20 go out. How many are left?\n", "Find 9/4+1/8.\n"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    out = model.generate(**batch, max_new_tokens=40, do_sample=False)
    expected = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    stripped = [p.rstrip("\n") for p in prompts]
    for group in (1, 3):
        ours = sample_groups(model, tokenizer, stripped, group, 40, 1e-4, seed=0).texts
        assert ours == [text for text in expected for _ in range(group)]


def test_base_policy_solves_easy_and_fails_on_hidden_skills() -> None:
    model, tokenizer = load_policy()
    easy = [Sample(f"e{i}", f"{31 + i}+{40 + i}.", (), str(71 + 2 * i)) for i in range(4)]
    hard = [Sample(f"h{i}", f"{40 + i}+3*7.", (), str(61 + i)) for i in range(4)]
    rates = [correct_attempts(model, tokenizer, part, 16, 64, 1.0, seed=0).mean() for part in (easy, hard)]
    assert rates[0] > 0.7 > 0.4 > rates[1]


def test_tokenizer_splits_digits_and_survives_the_disk() -> None:
    _, tokenizer = load_policy()
    text = "Find 4075-12, then add 9. \nAnswer: 4072"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    pieces = [tokenizer.decode([i]) for i in ids]
    assert all(len([c for c in piece if c.isdigit()]) <= 1 for piece in pieces)


@pytest.mark.parametrize(("name", "losses"), [("policy", [6.48531, 6.45493, 6.39856]), ("policy_large", [6.49214])])
def test_a_rebuild_begins_with_the_recorded_losses(name: str, losses: list[float], tmp_path: Path) -> None:
    """Data order, initialisation, optimiser and loss are those that made the shipped weights."""
    assert losses[0] == json.loads((policy_folder(name) / "losses.json").read_text(encoding="utf-8"))[0]
    assert rebuild_policy(tmp_path, steps=len(losses), config=POLICIES[name]) == pytest.approx(losses, rel=0.002)
    with pytest.raises(KeyError, match="policy 'huge' does not exist; choose one of policy, policy_large"):
        policy_folder("huge")


def test_shipped_weights_are_small_and_safe() -> None:
    files = [p for p in paths.WEIGHTS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 12e6
    assert {p.suffix for p in files} <= {".safetensors", ".json"}


def test_mixture_program_on_two_cells() -> None:
    easy, hard = np.eye(10)[9], np.eye(10)[0]
    weights = fit_weights({("a", 1): easy, ("b", 1): hard}, 0.25 * easy + 0.75 * hard)
    assert weights["a", 1] == pytest.approx(0.25) and weights["b", 1] == pytest.approx(0.75)


def test_published_histogram_equals_its_source() -> None:
    folder = paths.shared_data_dir()
    if folder is None:
        pytest.skip("SAERL_DATA_DIR is not set: no real pass rates to compare with")
    assert reference_shares(folder / "deepscaler_pass_rate.jsonl.gz") == REFERENCE_SHARES
