"""Export of a plan for other trainers and the check of what they consumed; real readers where they are installed."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset

from saerl_lib.cli import main
from saerl_lib.data.judge import read
from saerl_lib.data.rows import jsonl
from saerl_lib.data.sample import DataError, Sample, write_samples
from saerl_lib.plan import trainers
from saerl_lib.plan.batch_plan import BatchPlan, make_pool, plan_hash, plan_of, read_plan, write_plan

STEPS, B, G = 5, 4, 3


def small_plan(steps: int = STEPS, b: int = B) -> BatchPlan:
    """A random order of samples s00, s01, ..."""
    n = steps * b
    ids = [f"s{i:02d}" for i in range(n)]
    pool = make_pool(ids, np.zeros(n), np.arange(n), np.arange(n), np.ones(n))
    return plan_of(pool, np.random.default_rng(3).permutation(n), np.full(n, -1), "random", b)


def pool_samples(n: int = STEPS * B) -> list[Sample]:
    """One sample an id and a stranger, in the order of ids; prompts hold quotes, line separators and other alphabets."""
    odd = ("", ' "quoted"', " \u2028 two", " \u03c0 \\frac{1}{2}")
    samples = [Sample(f"s{i:02d}", f"Find {i} + 1.{odd[i % 4]}", (f"{i}+1={i + 1}",), str(i + 1)) for i in range(n)]
    return [*samples, Sample("stranger", "Find 1.", (), "1")]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A plan and its samples on disk."""
    plan, samples = tmp_path / "plan.parquet", tmp_path / "samples.parquet"
    write_plan(small_plan(), plan)
    write_samples(pool_samples(), samples)
    return plan, samples


@pytest.fixture
def export(files: tuple[Path, Path]) -> trainers.Export:
    return trainers.open_export(*files, rollouts_per_prompt=G)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda samples: samples[3:], "3 of 20 ids of the plan are missing"),
        (lambda samples: [*samples, samples[0]], "1 of 20 ids of the plan are given twice"),
        (lambda samples: [replace(samples[0], answer=" "), *samples[1:]], "1 of 20 ids of the plan have no answer"),
    ],
)
def test_samples_that_do_not_fit_the_plan(files: tuple[Path, Path], change: Callable, message: str) -> None:
    write_samples(change(pool_samples()), files[1])
    with pytest.raises(trainers.ExportError, match=message):
        trainers.open_export(*files)


# What is written.


@pytest.mark.parametrize("target", trainers.TARGETS)
def test_export_is_deterministic_and_names_what_keeps_the_order(export: trainers.Export, target: str, tmp_path: Path) -> None:
    first, second = trainers.export_files(export, target), trainers.export_files(export, target)
    assert first == second
    names = trainers.export_plan(export, target, tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in names} == first
    text = first["README.md"].decode()
    assert plan_hash(export.plan) in text and "## Launch" in text and "verify --plan" in text
    assert "{{" not in text and str(tmp_path) not in "".join(c.decode("latin-1") for c in first.values())


def test_refusals_say_why(export: trainers.Export, tmp_path: Path) -> None:
    for target in trainers.REFUSED:
        with pytest.raises(trainers.ExportError, match="cannot keep an order.*shuffle=True.*trl, verl, nemo-rl, prime-rl"):
            trainers.export_plan(export, target, tmp_path / "out")
    with pytest.raises(trainers.ExportError, match="choose one of trl"):
        trainers.export_plan(export, "torch", tmp_path / "out")
    assert list(tmp_path.glob("out*")) == []
    (tmp_path / "out").touch()
    with pytest.raises(trainers.ExportError, match="already exists"):
        trainers.export_plan(export, "trl", tmp_path / "out")


def test_verl_and_nemo_rl_schemas(export: trainers.Export, tmp_path: Path) -> None:
    for target in ("verl", "nemo-rl"):
        trainers.export_plan(export, target, tmp_path / target)
    rows = pq.read_table(tmp_path / "verl" / "train.parquet").to_pylist()
    assert rows[5] == {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": export.samples[5].prompt}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": export.samples[5].answer},
        "extra_info": {"index": 5, "split": "train", "sample_id": export.plan.ids[5], "step": 1},
    }
    assert [row["extra_info"]["sample_id"] for row in rows] == export.plan.ids
    verl, nemo = (yaml.safe_load((tmp_path / target / "saerl_plan.yaml").read_text()) for target in ("verl", "nemo-rl"))
    assert verl["data"]["shuffle"] is nemo["data"]["shuffle"] is False and verl["data"]["train_batch_size"] == B
    assert verl["actor_rollout_ref"]["rollout"] == {"n": G} and verl["trainer"]["total_training_steps"] == STEPS
    train, grpo = nemo["data"]["train"], nemo["grpo"]
    first = json.loads((tmp_path / "nemo-rl" / train["data_path"]).read_text().split("\n")[0])
    assert (first[train["input_key"]], first[train["output_key"]]) == (export.samples[0].prompt, export.samples[0].answer)
    assert (grpo["num_prompts_per_step"], grpo["num_generations_per_prompt"], grpo["max_num_steps"]) == (B, G, STEPS)
    assert nemo["policy"]["train_global_batch_size"] == B * G and train["split_validation_size"] == 0


@pytest.mark.slow
def test_trl_consumes_the_batches_of_the_plan(export: trainers.Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl import DatasetMixtureConfig, GRPOConfig, GRPOTrainer, ModelConfig, TrlParser
    from trl.scripts.grpo import GRPOScriptArguments

    from saerl_lib.encode.models import open_causal
    from saerl_lib.train.policy import FOLDER

    trainers.export_plan(export, "trl", tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    parser = TrlParser((GRPOScriptArguments, GRPOConfig, ModelConfig, DatasetMixtureConfig))
    here = "--use_cpu true --bf16 false --report_to none --save_strategy no --max_completion_length 4 --disable_tqdm true".split()
    script, arguments, _, _ = parser.parse_args_and_config(["--config", "grpo.yaml", *here])
    assert arguments.generation_batch_size == B * G and arguments.steps_per_generation == arguments.gradient_accumulation_steps
    assert arguments.max_steps == STEPS and script.reward_funcs == ["reward.correct"]
    data = load_dataset(script.dataset_name, cache_dir=str(tmp_path / "cache"))[script.dataset_train_split]
    namespace = reward_of(tmp_path / "out", monkeypatch)
    model, tokenizer = open_causal(FOLDER)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    trainer = GRPOTrainer(model, namespace["correct"], arguments, data, processing_class=tokenizer)
    # One batch of the loader is generated once and taken in steps_per_generation parts, so it is repeated as often.
    loaded = list(trainer.get_train_dataloader())[:: arguments.steps_per_generation]
    assert len(loaded) == STEPS
    for step, batch in enumerate(loaded):
        planned = export.plan.ids[step * B : (step + 1) * B]
        assert [row["sample_id"] for row in batch] == [name for name in planned for _ in range(G)]
        assert {row["step"] for row in batch} == {step}
    trainer.train()
    assert trainers.read_log(Path("consumed.jsonl")).steps == tuple(i // (B * G) for i in range(STEPS * B * G))
    assert main(["verify", "--plan", str(tmp_path / "plan.parquet"), "--log", "consumed.jsonl"]) == 0


def reward_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the exported `reward.py` defines, imported from its folder as `trl grpo` does."""
    monkeypatch.syspath_prepend(str(folder))
    for name in ("reward", "answers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return vars(importlib.import_module("reward"))


ANSWERS = (("so\nAnswer: 4", "4", 1.0), ("so\nAnswer: 5", "4", 0.0), ("none", "4", 0.0), ("\\boxed{0.5}", "\\frac{1}{2}", 1.0))
"""Completion, gold answer, reward."""


def test_verls_reward_reads_the_last_answer_in_a_thread(
    export: trainers.Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers.export_plan(export, "verl", tmp_path / "out")
    namespace = reward_of(tmp_path / "out", monkeypatch)
    with namespace["CHECKERS"], ThreadPoolExecutor(2) as threads:  # as verl calls it
        asked = [threads.submit(namespace["compute_score"], "math_dapo", *row[:2], {"sample_id": "a"}) for row in ANSWERS]
        assert [item.result()["score"] for item in asked] == [reward for *_, reward in ANSWERS]
    assert trainers.read_log(tmp_path / "out" / "consumed.jsonl").ids == ("a",) * len(ANSWERS)


def test_the_reward_reads_the_last_answer(export: trainers.Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers.export_plan(export, "trl", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    said, gold, expected = ([row[i] for row in ANSWERS] for i in range(3))
    messages = [[{"role": "assistant", "content": text}] for text in said]
    names = [f"s{i}" for i in range(len(said))]
    correct = reward_of(tmp_path / "out", monkeypatch)["correct"]
    assert correct(messages, solution=gold, sample_id=names, trainer_state=SimpleNamespace(global_step=3)) == expected
    assert trainers.read_log(tmp_path / "consumed.jsonl") == trainers.ConsumedLog(tuple(names), (3,) * len(names))


# What real packages read; each lives in an environment of its own, named by a variable.


def run_elsewhere(variable: str, package: str, script: str, folder: Path, *arguments: str) -> str:
    """Last line that `script` prints under the interpreter that the variable names; skips without it."""
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no interpreter with {package}")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder.parent / "cache"), "OMP_NUM_THREADS": "1"}
    command = [python, "-c", script, str(folder), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().split("\n")[-1]


VERL = """
import json, os, sys
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.trainer.ppo.utils import create_rl_dataset, create_rl_sampler
from verl.utils.dataset.rl_dataset import collate_fn
from verl.utils.import_utils import load_extern_object
folder = sys.argv[1]
with initialize_config_module("verl.trainer.config", version_base=None):
    base = compose("ppo_trainer")
own = OmegaConf.load(folder + "/saerl_plan.yaml")
del own["defaults"]
OmegaConf.set_struct(base, True)
config = OmegaConf.merge(base, own)  # a setting that verl does not know is an error here
OmegaConf.set_struct(config, False)
config.data.cache_dir = folder
data = create_rl_dataset([folder + "/train.parquet"], config.data, None, None)
loader = StatefulDataLoader(
    data, batch_size=config.data.get("gen_batch_size", None) or config.data.train_batch_size, drop_last=True,
    collate_fn=collate_fn, sampler=create_rl_sampler(config.data, data),
)
score = load_extern_object(folder + "/reward.py", config.reward.custom_reward_function.name)
batches, scores = [], []
for batch in loader:
    rows = list(zip(batch["extra_info"], batch["reward_model"], batch["data_source"], batch["raw_prompt"]))
    for info, truth, source, _ in reversed(rows):
        for _ in range(config.actor_rollout_ref.rollout.n):
            scores.append(score(source, "so\\nAnswer: " + truth["ground_truth"], truth["ground_truth"], info)["score"])
    batches.append([(info["sample_id"], prompt[0]["content"], truth["ground_truth"]) for info, truth, _, prompt in rows])
print(json.dumps([batches, scores, config.data.shuffle]))
"""


def test_verl_reads_the_batches_of_the_plan(export: trainers.Export, files: tuple[Path, Path], tmp_path: Path) -> None:
    trainers.export_plan(export, "verl", tmp_path / "out")
    said = run_elsewhere("SAERL_VERL_PYTHON", "verl 0.9.1", VERL, tmp_path / "out")
    batches, scores, shuffle = json.loads(said)
    rows = [[s.id, s.prompt, s.answer] for s in export.samples]
    assert batches == [rows[i : i + B] for i in range(0, len(rows), B)]
    assert scores == [1.0] * len(rows) * G and shuffle is False
    log = ["verify", "--plan", str(files[0]), "--log", str(tmp_path / "out" / "consumed.jsonl")]
    assert main([*log, "--any-slot", "--rollouts", str(G)]) == 0 and main(log) == 1


VERIFIERS = """
import asyncio, json, os, sys
sys.path.insert(0, sys.argv[1])
os.chdir(sys.argv[1])
import verifiers.v1 as vf
from verifiers.v1.utils.loaders import load_taskset
source = json.loads(sys.argv[2])
config = vf.SingleAgentEnvConfig.model_validate(source["env"])
tasks = list(load_taskset(config.taskset).select(vf.SelectConfig()))
class Trace:
    def __init__(self, answer):
        self.last_reply = "so\\nAnswer: " + answer
rewards = [asyncio.run(task.hooks("reward")[0](Trace(task.data.answer))) for task in tasks]
print(json.dumps([[(t.key, t.data.prompt_text, t.data.answer) for t in tasks], rewards, config.agent.harness.id]))
"""


def test_verifiers_reads_the_tasks_of_the_plan(export: trainers.Export, files: tuple[Path, Path], tmp_path: Path) -> None:
    import tomllib

    trainers.export_plan(export, "prime-rl", tmp_path / "out")
    settings = tomllib.loads((tmp_path / "out" / "rl.toml").read_text())
    (source,) = settings["orchestrator"]["train"]["source"]
    assert settings["orchestrator"]["batch_size"] == B * G and source["group_size"] == G and settings["max_steps"] == STEPS
    said = run_elsewhere("SAERL_VERIFIERS_PYTHON", "verifiers 0.4", VERIFIERS, tmp_path / "out", json.dumps(source))
    tasks, rewards, harness = json.loads(said)
    assert tasks == [[s.id, s.prompt, s.answer] for s in export.samples]
    assert rewards == [1.0] * len(tasks) and harness == "null"
    assert main(["verify", "--plan", str(files[0]), "--log", str(tmp_path / "out" / "consumed.jsonl")]) == 0


@pytest.mark.parametrize("target", trainers.TARGETS)
def test_an_export_is_read_back_as_it_was(target: str, tmp_path: Path) -> None:
    system = json.dumps([{"role": "system", "content": "Be brief.\u2029"}])
    samples = [replace(s, before=system, answer=f"\\boxed{{{s.answer}}}") for s in pool_samples()[:-1]]
    by_id = {s.id: s for s in samples}
    export = trainers.Export(small_plan(), tuple(by_id[i] for i in small_plan().ids), G)
    files = trainers.export_plan(export, target, tmp_path / "out")
    data = read([tmp_path / "out"])
    assert [(s.id, s.prompt, s.answer) for s in data.samples] == [(s.id, s.prompt, s.answer[7:-1]) for s in export.samples]
    if target != "nemo-rl":  # whose lines hold the question alone
        assert all(s.before == system for s in data.samples)
    else:
        gym = read([tmp_path / "out" / "gym"])
        assert [s.messages for s in gym.samples] == [s.messages for s in export.samples] and gym.ids == data.ids
    for name in files:
        if name.endswith(".jsonl"):
            assert len((tmp_path / "out" / name).read_text().splitlines()) == len(samples), "no sign of Unicode ends a line"
    assert "first batch of the resumed run" in (tmp_path / "out" / "README.md").read_text()


def own_log(kind: str, folder: Path, ids: list[str], samples: dict[str, Sample]) -> Path:
    """The log that a framework itself writes of a run through `ids`, G rollouts a prompt, one file a step."""
    for step in range(0, len(ids) // B):
        shown = [(i, f"<|user|>\n{samples[i].prompt}<|assistant|>") for i in ids[step * B : step * B + B] for _ in range(G)]
        chats = [[{"role": "user", "content": samples[i].prompt}] for i, _ in shown]
        names = {"trl": f"completions_{step + 1:05d}.parquet", "verl": f"{step + 1}.jsonl",
                 "nemo-rl": f"train_data_step{step + 1}.jsonl",
                 "prime-rl": f"step_{step}/train_rollouts.jsonl"}  # fmt: skip
        rows = {
            "trl": [{"step": step + 1, "prompt": chat, "completion": [], "correct": 1.0} for chat in chats],
            "verl": [{"input": text, "output": "4", "gts": "4", "score": 1.0, "step": step + 1} for _, text in shown],
            "nemo-rl": [{"content": [text, "4"], "rewards": 1.0} for _, text in shown],
            "prime-rl": [{"task": {"key": i}, "reward": 1.0} for i, _ in shown],
        }[kind]
        path = folder / names[kind]
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "trl":
            pd.DataFrame(rows).to_parquet(path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("kind", trainers.TARGETS)
def test_the_frameworks_own_logs_are_verified(kind: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    plan, samples = small_plan(), {s.id: s for s in pool_samples()}
    words = ["verify", "--plan", str(files[0]), "--samples", str(files[1]), "--any-slot", "--log"]
    assert main([*words, str(own_log(kind, tmp_path / "log", plan.ids, samples))]) == 0
    turned = [*plan.ids[B : 2 * B], *plan.ids[:B], *plan.ids[2 * B :]]
    assert main([*words, str(own_log(kind, tmp_path / "turned", turned, samples))]) == 1


# What was consumed.


def rollouts_of(ids: list[str], g: int = G) -> list[str]:
    return [name for name in ids for _ in range(g)]


IDS = small_plan().ids


@pytest.mark.parametrize(
    ("ids", "first", "kept", "lists"),
    [
        ([*IDS[:6], IDS[9], *IDS[7:9], IDS[6], *IDS[10:]], (1, 2, IDS[6], IDS[9]), 3, ((), (), ())),
        ([*IDS[:7], *IDS[8:]], (1, 3, IDS[7], IDS[8]), 1, ((IDS[7],), (), ())),
        ([*IDS[:-1], "x"], (STEPS - 1, B - 1, IDS[-1], "x"), STEPS - 1, ((IDS[-1],), (), ("x",))),
        ([*IDS[:4], *IDS[:4], *IDS[8:]], (1, 0, IDS[4], IDS[0]), STEPS - 1, (tuple(IDS[4:8]), tuple(IDS[:4]), ())),
        (IDS[:10], (2, 2, IDS[10], None), 2, (tuple(IDS[10:]), (), ())),
    ],
    ids=["swapped", "left out", "unknown", "repeated", "ends early"],
)
def test_departures_by_hand(ids: list[str], first: tuple, kept: int, lists: tuple) -> None:
    report = trainers.follow(small_plan(), trainers.ConsumedLog(tuple(rollouts_of(ids))))
    assert not report.followed and report.steps_kept == kept and report.log_ended == (first[3] is None)
    assert report.first == first and (report.dropped, report.repeated, report.unknown) == lists


def test_a_missing_step_and_two_epochs() -> None:
    plan = small_plan()
    rows = [(i // B, name) for i, name in enumerate(plan.ids) if i // B != 2]
    gap = trainers.follow(plan, trainers.ConsumedLog(tuple(name for _, name in rows), tuple(step for step, _ in rows)))
    assert gap.first.step == 2 and gap.first.consumed is None and not gap.log_ended and gap.steps_kept == STEPS - 1
    twice = trainers.follow(plan, trainers.ConsumedLog(tuple(plan.ids * 2)))
    assert twice.followed and twice.epochs == 2 and twice.repeated == ()
    assert not trainers.follow(plan, trainers.ConsumedLog(tuple(plan.ids + plan.ids[:4]))).followed


def test_order_inside_a_step_counts_unless_told_otherwise() -> None:
    plan = small_plan()
    turned = trainers.ConsumedLog(tuple(name for i in range(0, STEPS * B, B) for name in rollouts_of(plan.ids[i : i + B])[::-1]))
    mixed = tuple(name for i in range(0, STEPS * B, B) for _ in range(G) for name in plan.ids[i : i + B])
    steps = tuple(i // (B * G) for i in range(len(mixed)))
    strict = trainers.follow(plan, turned)
    assert not strict.followed and any("only the order inside steps differs" in line for line in strict.told())
    for log, rollouts in ((turned, None), (trainers.ConsumedLog(mixed), G), (trainers.ConsumedLog(mixed, steps), None)):
        assert trainers.follow(plan, log, rollouts, any_slot=True).followed
    with pytest.raises(trainers.LogError, match="optimiser step"):
        trainers.follow(plan, trainers.ConsumedLog(("s00",), (10**9,)))


def test_a_prompt_consumed_twice_is_no_order_inside_a_step() -> None:
    plan = small_plan()
    whole = [(i // B, name) for i, name in enumerate(plan.ids) for _ in range(G)]
    step_again = sorted(whole + [row for row in whole if row[0] == 1])
    group_again = sorted(whole + [(2, plan.ids[8])] * G)
    for rows, at in ((step_again, 1), (group_again, 2)):
        log = trainers.ConsumedLog(tuple(name for _, name in rows), tuple(step for step, _ in rows))
        for rollouts in (None, G):
            report = trainers.follow(plan, log, rollouts=rollouts, any_slot=True)
            assert not report.followed and report.first.step == at and report.first.planned is None
            assert report.first.consumed in plan.ids[at * B : (at + 1) * B] and not report.log_ended


def test_a_run_may_end_within_a_pass(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = small_plan()
    for ids, steps, said in (
        (plan.ids + plan.ids[: 2 * B], STEPS + 2, "the plan was followed: 7 steps, 5 in a pass"),
        (plan.ids[: 3 * B], 3, "the plan was followed: 3 steps"),
        (plan.ids + plan.ids[B : 3 * B], STEPS + 2, ""), (plan.ids[: 3 * B], 4, ""),
        (plan.ids, STEPS + 1, "holds 5 steps, not 6"),
    ):  # fmt: skip
        log = tmp_path / "log.txt"
        log.write_text("\n".join(rollouts_of(ids)))
        code = main(["verify", "--plan", str(files[0]), "--log", str(log), "--steps", str(steps)])
        out = capsys.readouterr().out
        assert code == (0 if said.startswith("the plan") else 1) and said in out
        assert json.loads(out.strip().split("\n")[-1])["followed"] == (code == 0)


def test_a_plan_of_ones_own_file_is_exported_as_it_is(tmp_path: Path) -> None:
    """40 problems under other field names; their ids are row numbers."""
    rows = [{"text": f"Add {i} and {i * 7 % 31}.", "result": i + i * 7 % 31, "level": i % 5} for i in range(40)]
    pd.DataFrame(rows).to_parquet(tmp_path / "my.parquet")
    plan = tmp_path / "plan" / "plan.parquet"
    words = ["plan", "--data", str(tmp_path / "my.parquet"), "--labels", "level", "--prompt-field", "text", "--answer-field"]
    assert main([*words, "result", "--reader", "none", "--prompts-per-step", "8", "--out", str(plan.parent)]) == 0
    assert main(["export", "--plan", str(plan), "--to", "trl", "--out", str(tmp_path / "out")]) == 0
    table = pq.read_table(tmp_path / "out" / "data" / "train.parquet").to_pylist()
    assert [row["sample_id"] for row in table] == read_plan(plan).ids and len(table) == 40
    assert {(row["prompt"][0]["content"], row["solution"]) for row in table} == {(r["text"], str(r["result"])) for r in rows}
    (plan.parent / "samples.parquet").unlink()
    assert main(["export", "--plan", str(plan), "--to", "trl", "--out", str(tmp_path / "again")]) == 1


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("\n \n", "no sample id"), ('{"sample_id": "a"}\n{"id": "b"}\n', "line 2: field 'sample_id' is missing"),
        ('{"sample_id": "a"}\n{"sample_id": 3}\n', "line 2: sample_id is 3"),
        ('{"sample_id": "a", "step": 1}\n{"sample_id": "b"}\n', "1 of 2 lines have a step"),
        ('{"sample_id": "a", "step": 1.5}\n', "line 1: step is 1.5"),
        ({"step": [1]}, "row 1: field 'sample_id' is missing"),
    ],
)  # fmt: skip
def test_malformed_logs(tmp_path: Path, log: str | dict[str, list], message: str) -> None:
    path = tmp_path / ("log.jsonl" if isinstance(log, str) else "log.parquet")
    path.write_text(log) if isinstance(log, str) else pd.DataFrame(log).to_parquet(path)
    with pytest.raises(trainers.LogError, match=message):
        trainers.read_log(path)


def test_a_log_that_was_cut_short_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a"')
    assert list(jsonl(path, strict_end=False)) == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match="log.jsonl, line 4: not JSON"):
        list(jsonl(path))
    path.write_text('{"a"\n{"a": 2}')
    with pytest.raises(DataError, match="line 1: not JSON"):
        list(jsonl(path, strict_end=False))
