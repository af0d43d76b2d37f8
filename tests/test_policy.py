"""The shipped policies, rollouts, the packed loss and dynamic sampling, against slow twins, TRL and Hugging Face."""

from __future__ import annotations

import itertools
import json
import types
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOTrainer

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError
from saerl_lib.config import TrainConfig
from saerl_lib.data.sample import DataError, write_samples
from saerl_lib.encode.models import open_causal
from saerl_lib.plan.trainers import read_rows
from saerl_lib.studies import world_check
from saerl_lib.studies.world_check import rebuild_policy
from saerl_lib.train import run, sampler, trainer
from saerl_lib.train.policy import FOLDER, policy_folder
from saerl_lib.train.sampler import gold_probability, log_probabilities, sample_groups
from saerl_lib.train.selectors import InOrder
from saerl_lib.train.trainer import Feed, PackedFeed, PlanTrainer, grpo_arguments, record
from saerl_lib.world.gates import REFERENCE_SHARES
from saerl_lib.world.sources import SHORT, TARGET, draw_split, lesson

TRAIN = TrainConfig(rollouts_per_prompt=4, max_completion_tokens=48)
SAMPLES = [replace(s, id=f"p{i}") for i, s in enumerate(draw_split("feed", 16, TARGET, 7, set()))]


@pytest.fixture(scope="module")
def policy() -> tuple[Any, Any]:
    return open_causal(FOLDER)


def feed(policy: tuple[Any, Any], log: Path, train: TrainConfig = TRAIN, **changes: Any) -> PackedFeed:
    options = {"selector": InOrder(range(len(SAMPLES))), "prompts_per_step": 2, "budget": 10_000, "seed": 1, **changes}
    return PackedFeed(policy, SAMPLES, train=train, log=log, **options)


def fewer_key_heads() -> LlamaForCausalLM:
    """A random Llama with two key heads for its four query heads, as SmolLM2 has three for nine."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, num_hidden_layers=2, pad_token_id=0, eos_token_id=1, **sizes)).eval()


@pytest.mark.parametrize("grouped", [False, True])
def test_packed_log_probabilities_equal_separate_rows(
    policy: tuple[Any, Any], grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fewer_key_heads() if grouped else policy[0]
    prompts, completions = [[5, 6, 7], [8, 9], [5, 6, 7], [5, 6, 7]], [[10, 11], [12, 13, 14], [15], [16, 17, 18, 1]]
    with torch.no_grad():
        found = log_probabilities(model, prompts, completions, temperature=0.7)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0] / 0.7
            expected = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])[:, 0]
            torch.testing.assert_close(found[row, : len(completion)], expected, atol=1e-4, rtol=1e-4)
            assert (found[row, len(completion) :] == 0).all()
        monkeypatch.setattr(sampler, "TOKENS_PER_PIECE", 1)
        torch.testing.assert_close(log_probabilities(model, prompts, completions, 0.7), found, atol=1e-4, rtol=1e-4)


def test_the_exact_probability_of_a_solution_is_that_of_its_tokens(policy: tuple[Any, Any]) -> None:
    model, tokenizer = policy
    sample = replace(SAMPLES[0], prompt="31+47", steps=(), answer="8")
    exact = float(gold_probability(model, tokenizer, [sample, SAMPLES[1]], 1.0)[0])
    prompt, solution = tokenizer("31+47\n")["input_ids"], [*tokenizer("Answer: 8")["input_ids"], tokenizer.eos_token_id]
    odds = torch.log_softmax(model(input_ids=torch.tensor([prompt + solution])).logits[0], dim=-1)[len(prompt) - 1 : -1]
    assert exact == pytest.approx(float(odds.gather(1, torch.tensor(solution)[:, None]).sum().exp()), rel=1e-4)


def by_hand(model: Any, inputs: dict[str, Any], loss: str, temperature: float) -> torch.Tensor:
    """The loss of a batch rollout by rollout, every token's weight written out."""
    total, n = torch.zeros(()), len(inputs["advantages"])
    for i, advantage in enumerate(inputs["advantages"]):
        prompt = inputs["prompt_ids"][i][inputs["prompt_mask"][i] == 1]
        completion = inputs["completion_ids"][i][inputs["completion_mask"][i] == 1]
        logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1] / temperature
        logps = torch.log_softmax(logits, dim=-1).gather(1, completion[:, None])
        weight = {"token_mean": 1 / inputs["completion_mask"].sum(), "sequence_mean": 1 / (n * len(completion)),
                  "constant": 1 / (n * TRAIN.max_completion_tokens)}[loss]  # fmt: skip
        total = total - advantage * weight * logps.sum()
    return total


@pytest.mark.parametrize("loss", ["token_mean", "sequence_mean", "constant"])
def test_loss_and_gradient_equal_those_of_trl_and_by_hand(tmp_path: Path, loss: str) -> None:
    train = replace(TRAIN, loss=loss, temperature=0.9, optimizer="sgd", learning_rate=0.5)
    model, _ = policy = open_causal(FOLDER)
    arguments = grpo_arguments(train, len(SAMPLES), 1, 1, tmp_path / "c")
    source = feed(policy, tmp_path / "r.jsonl", train, prompts_per_step=len(SAMPLES))
    trainer = PlanTrainer(source, policy, arguments)
    trainer.current_gradient_accumulation_steps = 1
    model.train()
    inputs = trainer._generate_and_score_completions([record(s) for s in SAMPLES for _ in range(4)])
    active = inputs["advantages"] != 0
    assert active.any() and not active.all(), "the case needs groups with and without a gradient"

    def parameters() -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    def gradient(value: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        value.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    own = trainer._compute_loss(model, inputs)
    found = gradient(own)
    trainer._get_per_token_logps_and_entropies = types.MethodType(GRPOTrainer._get_per_token_logps_and_entropies, trainer)
    plain = GRPOTrainer._compute_loss(trainer, model, inputs)
    told, hand = gradient(plain), gradient(by_hand(model, inputs, loss, 0.9))
    assert own.item() == pytest.approx(plain.item(), abs=1e-6) and hand.abs().max() > 1e-4
    for one in (found, told):
        torch.testing.assert_close(one, hand, atol=1e-6, rtol=1e-3)

    before, step = parameters(), trainer.create_optimizer().step
    step(), step()
    torch.testing.assert_close(parameters(), before - 0.5 * (1 + 1.9) * hand, atol=1e-6, rtol=1e-4)  # momentum 0.9
    adamw = grpo_arguments(replace(train, optimizer="adamw"), 2, 1, 1, tmp_path)
    assert (arguments.max_grad_norm, adamw.max_grad_norm) == (1e9, 1)


def test_a_run_without_a_plan_trains_the_last_blocks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = lesson(8, 0, SHORT[0])
    assert len({s.prompt for s in sums}) == 8 and all(sampler.last_number(s.steps[0]) == s.answer for s in sums)
    with pytest.raises(ValueError, match="lesson: 1.* of 4000 problems are drawn and there are no more: ask for fewer"):
        lesson(4000, 0, SHORT[0])
    write_samples(sums, tmp_path / "lesson.parquet")
    turns, answer = itertools.cycle([True, False]), MagicMock()
    answer.__eq__ = lambda self, other: next(turns)  # right every other time
    monkeypatch.setattr(trainer, "READ", {"last_number": lambda text: answer})
    changes = {"trained_blocks": 1, "answer_from": "last_number", "max_completion_tokens": 6, "learning_rate": 1e-2,
               "checkpoint_every_steps": 1}  # fmt: skip
    job = run.Run("live", 0, tmp_path / "run", str(FOLDER), str(tmp_path / "lesson.parquet"), 2, 2, 8, replace(TRAIN, **changes))
    save, found, left = run.save_weights, job.folder / "checkpoints", list[int]()
    monkeypatch.setattr(run, "save_weights", lambda *told: left.extend(run.checkpoints(found)) or save(*told))
    run.write_run(job)
    run.train(job)
    assert left == [1], "one behind the last step would leave no step to end the run"
    rollouts = pd.read_parquet(job.folder / "rollouts.parquet")
    assert rollouts["sample_id"].tolist() == [s.id for s in sums[:4] for _ in range(4)] and rollouts["reward"].mean() == 0.5
    before, after = (open_causal(folder)[0].state_dict() for folder in (FOLDER, job.folder / "final"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith(("model.layers.3.", "model.norm.")) for name in moved)


def test_draw_follows_the_distribution() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).repeat(20_000, 1)
    chosen, entropy = sampler.draw(logits, 1.0, torch.Generator().manual_seed(0))
    shares = torch.bincount(chosen, minlength=3) / len(chosen)
    assert torch.allclose(shares, torch.tensor([0.2, 0.5, 0.3]), atol=0.015)
    assert entropy[0].item() == pytest.approx(-sum(p * np.log(p) for p in (0.2, 0.5, 0.3)), abs=1e-5)


def test_dynamic_sampling_keeps_groups_with_a_gradient_and_counts_the_rest(
    policy: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "ROUND_PROMPTS", 3)
    train = replace(TRAIN, dynamic_sampling="equal_rollouts")
    source = feed(policy, tmp_path / "r.jsonl", train, selector=InOrder(range(6)))
    records, rows = source.step(1), read_rows(tmp_path / "r.jsonl")
    assert len(source.used) == 2 and all(g.informative for g in source.used) and len(records) == 8
    assert source.generated == len(rows) and sum(r["used"] for r in rows) == 8 and source.generated > 8
    assert [r["sample_id"] for r in rows[:12:4]] == ["p0", "p1", "p2"]
    source = feed(policy, tmp_path / "s.jsonl", train, selector=InOrder([4, 4, 4]), prompts_per_step=6, budget=20)
    source.step(1)
    assert source.generated == 20, "it stops at the budget"
    monkeypatch.setitem(trainer.READ, train.answer_from, lambda text: None)
    source = feed(policy, tmp_path / "t.jsonl", train, selector=InOrder(range(16)), budget=float("inf"))
    assert len(source.step(1)) == train.rollouts_per_prompt and source.generated == 18 * 4, "nor does it search for ever"


def test_the_reward_reads_text_and_chat_and_logs_the_rollouts(tmp_path: Path) -> None:
    source = Feed(SAMPLES, InOrder(range(16)), replace(TRAIN, engine="trl", chat=True), 2, tmp_path / "log.jsonl")
    shares = [[row["sample_id"] for row in source.step(step, 4, 4)] for step in (1, 2)]
    assert shares == [["p1"] * 4, ["p3"] * 4], "the second half of each step"
    state = types.SimpleNamespace(global_step=0)
    texts = ["Answer: 1/2", [{"role": "assistant", "content": "Answer: 0.5"}], "no answer"]
    assert source.reward(texts, [[1], [1, 2], []], ["1/2", "1/2", "1"], ["a", "b", "c"], state) == [1.0, 1.0, 0.0]
    rows = read_rows(tmp_path / "log.jsonl")
    assert [(r["step"], r["row"], r["sample_id"], r["reward"], r["completion_tokens"]) for r in rows] == [
        (1, 4, "a", 1.0, 1), (1, 5, "b", 1.0, 2), (1, 6, "c", 0.0, 0)]  # fmt: skip
    assert record(SAMPLES[0], chat=True)["prompt"] == [{"role": "user", "content": SAMPLES[0].prompt}]
    told = replace(SAMPLES[0], before='[{"role": "system", "content": "Be brief."}]')
    assert [m["role"] for m in record(told, chat=True)["prompt"]] == ["system", "user"]
    with pytest.raises(DataError, match="a prompt has messages before it: use the chat template"):
        record(told)


def test_a_step_must_divide_into_passes_and_activations_are_kept_on_the_cpu_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(trainer, "GRPOConfig", lambda **words: asked.append(words))
    train = TrainConfig(engine="trl", rollouts_per_prompt=4, micro_batch=4)
    for there, cpu, expected in ((False, False, False), (True, False, True), (True, True, False)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        grpo_arguments(replace(train, cpu=cpu), 4, 3, 0, tmp_path, processes=2)
        assert (asked[-1]["gradient_checkpointing"], asked[-1]["use_cpu"]) == (expected, not expected)
        assert asked[-1]["gradient_accumulation_steps"] == asked[-1]["steps_per_generation"] == 2
    with pytest.raises(ArtifactError, match="16 rollouts, which 3 processes x 4 do not divide: choose another --micro-batch"):
        grpo_arguments(train, 4, 3, 0, tmp_path, processes=3)

# The shipped policies.


def test_sampling_is_seeded_and_leaves_the_global_stream_alone(policy: tuple[Any, Any]) -> None:
    model, tokenizer = policy
    prompts = ["31+47", "Find 90-13.", "31+47"]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = sample_groups(model, tokenizer, prompts, 1, 24, 2.0, seed=1).texts
    assert torch.equal(before, torch.random.get_rng_state())
    assert first == sample_groups(model, tokenizer, prompts, 1, 24, 2.0, seed=1).texts
    assert first != sample_groups(model, tokenizer, prompts, 1, 24, 2.0, seed=2).texts
    assert sampler.Sampler(model, tokenizer).complete(prompts, 1, 24, 2.0, seed=1) == [[text] for text in first]


def test_near_greedy_sampling_equals_generate(policy: tuple[Any, Any]) -> None:
    """The sampler drops finished rows and prompts; the reference is Hugging Face's own greedy generation."""
    model, tokenizer = policy
    prompts = ["31+47.\n", "A box holds 86 beads; 20 go out. How many are left?\n", *(f"{s.prompt}\n" for s in SAMPLES)]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    batch.pop("token_type_ids", None)
    out = model.generate(**batch, max_new_tokens=40, do_sample=False)
    expected = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    stripped = [p.rstrip("\n") for p in prompts]
    grouped, ids = fewer_key_heads(), torch.tensor([[5, 6, 7], [8, 9, 5]])
    told = grouped.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[:, 3:]
    found = sampler.sample_tokens(grouped, ids.tolist(), 12, 1e-4, torch.Generator().manual_seed(0), 2)[0]
    assert found.tolist() == told.repeat_interleave(2, dim=0).tolist()
    assert sample_groups(model, tokenizer, stripped, 3, 40, 1e-4, seed=0).texts == [text for text in expected for _ in range(3)]


def test_the_tokenizer_keeps_spaces_and_splits_digits(policy: tuple[Any, Any]) -> None:
    text, tokenizer = "Find 4075-12, then add 9. \nAnswer: 4072", policy[1]
    tokens = [tokenizer.decode([i]) for i in tokenizer(text)["input_ids"]]
    assert "".join(tokens) == text and all(sum(map(str.isdigit, token)) <= 1 for token in tokens)


def test_a_rebuild_begins_with_the_recorded_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tokenizer, data order, initialisation, optimiser and loss are those that made the shipped weights."""
    losses = []
    monkeypatch.setattr(world_check, "FOLDER", tmp_path)
    monkeypatch.setattr(world_check, "rebuild_policy", lambda: losses.extend(rebuild_policy(tmp_path, 5)))
    assert world_check.run_world(check=False, rebuild=True, seeds=8) == 0
    assert losses[4] == pytest.approx(7.149, abs=0.005) and f"step 0: {losses[0]:.4f} nats a token" in capsys.readouterr().out
    assert json.loads((tmp_path / "provenance.json").read_text())["command"] == "python -m saerl_lib world --rebuild"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in FOLDER.iterdir()}
    assert (tmp_path / "tokenizer.json").read_bytes() == (FOLDER / "tokenizer.json").read_bytes()
    fresh, shipped = (open_causal(folder)[0].state_dict() for folder in (tmp_path, FOLDER))
    assert {name: value.shape for name, value in fresh.items()} == {name: value.shape for name, value in shipped.items()}
    with pytest.raises(ValueError, match="--policy huge: no such folder"):
        policy_folder("huge")


def test_shipped_weights_are_small_and_safe() -> None:
    files = [p for p in paths.WEIGHTS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 4e6
    assert {p.suffix for p in files} <= {".safetensors", ".json"}


def test_published_histogram_equals_its_source() -> None:
    folder = paths.shared_data_dir()
    if folder is None:
        pytest.skip("SAERL_DATA_DIR is not set: no real pass rates to compare with")
    rates = pd.read_json(folder / "deepscaler_pass_rate.jsonl.gz", lines=True, dtype={"id": str})["pass_rate"]
    assert tuple((np.histogram(rates, np.linspace(0, 1, 11))[0] / len(rates)).round(4)) == REFERENCE_SHARES
