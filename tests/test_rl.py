"""Training on a plan: sampling, logs, resume after kill -9, the published histogram."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import kill_in_training

from saerl_lib import paths
from saerl_lib.artifacts import write_json
from saerl_lib.config import Profile, get_profile, to_dict
from saerl_lib.data.sample import Sample, write_samples
from saerl_lib.data.splits import draw_world
from saerl_lib.plan.batch_plan import write_plan
from saerl_lib.plan.orders import build_plan
from saerl_lib.rl.base_rates import REFERENCE_SHARES, reference_shares
from saerl_lib.rl.calibrate import fit_weights
from saerl_lib.rl.generation import correct_attempts, sample_groups
from saerl_lib.rl.job import ROLLOUT_COLUMNS, Job
from saerl_lib.rl.jobs import PlannedRun, prepare_jobs
from saerl_lib.rl.policy import POLICIES, load_policy, policy_folder, rebuild_policy
from saerl_lib.rl.rollouts import PlanMismatchError, append_rows, compare_with_plan, cut_back, read_rows
from saerl_lib.rl.runner import is_done, run_jobs

PROFILE = replace(
    get_profile("smoke"),
    pool_samples=32,
    plan=replace(get_profile("smoke").plan, prompts_per_step=4),
    train=replace(
        get_profile("smoke").train, rollouts_per_prompt=4, checkpoint_every_steps=3, eval_every_steps=2, eval_samples_full=1,
        eval_samples_small=1, max_completion_tokens=32,
    ),
    world=replace(get_profile("smoke").world, eval_problems_small=2, eval_problems_full=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    splits = draw_world(PROFILE.world)
    for name, samples in splits.items():
        if name == "pool" or name.startswith("eval_"):
            write_samples(samples, folder / f"{name}.parquet")
    pool = splits["pool"][: PROFILE.pool_samples]
    ids, numbers = [s.id for s in pool], np.arange(len(pool), dtype=float)
    write_plan(
        build_plan(ids, np.zeros(len(pool), int), numbers, numbers, numbers + 1, PROFILE.plan, order="random", seed=3),
        folder / "plan.parquet",
    )
    return folder


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (folder,) = jobs(PROFILE, world, tmp_path_factory.mktemp("jobs"))
    run_jobs([folder], PROFILE.steps)
    return folder


def jobs(profile: Profile, world: Path, home: Path) -> list[Path]:
    return prepare_jobs([PlannedRun("grpo", 0, world / "plan.parquet")], profile, world, home)


def tables(folder: Path) -> list[pd.DataFrame]:
    return [pd.read_parquet(folder / f"{name}.parquet") for name in ("rollouts", "evaluations", "curve")]


def test_a_run_follows_the_plan_and_logs_every_rollout(undisturbed: Path, world: Path) -> None:
    rollouts, evaluations, curve = tables(undisturbed)
    plan = pd.read_parquet(world / "plan.parquet")
    seen = rollouts.drop_duplicates(["step", "sample_id"])["sample_id"].tolist()
    assert seen == plan.sort_values("position")["sample_id"].tolist()
    assert len(rollouts) == PROFILE.pool_samples * PROFILE.train.rollouts_per_prompt
    assert set(rollouts.columns) == {"arm", "seed", *ROLLOUT_COLUMNS}
    assert curve["step"].tolist() == list(range(1, PROFILE.steps + 1))
    assert sorted(evaluations["step"].unique()) == [0, 2, 4, 6, 8]
    assert rollouts.groupby("step")["reward"].mean().tolist() == pytest.approx(curve["reward_mean"].tolist())


def test_kill_9_and_resume_gives_the_same_metrics(undisturbed: Path, world: Path, tmp_path: Path) -> None:
    (folder,) = jobs(PROFILE, world, tmp_path)
    kill_in_training(folder, steps=5)
    assert list((folder / "checkpoints").glob("checkpoint-3"))
    run_jobs([folder], PROFILE.steps)
    for resumed, straight in zip(tables(folder), tables(undisturbed), strict=True):
        pd.testing.assert_frame_equal(resumed, straight)


def test_a_finished_job_is_not_run_again(undisturbed: Path) -> None:
    before = (undisturbed / "rollouts.parquet").stat().st_mtime_ns
    run_jobs([undisturbed], PROFILE.steps)
    assert (undisturbed / "rollouts.parquet").stat().st_mtime_ns == before


def test_another_learning_rate_starts_another_job(world: Path, tmp_path: Path) -> None:
    (folder,) = jobs(PROFILE, world, tmp_path)
    (folder / "trace").touch()
    write_json(folder / "done.json", {"key": json.loads((folder / "job.json").read_text())["key"]})
    assert is_done(folder)
    changed = replace(PROFILE, train=replace(PROFILE.train, learning_rate=1e-3))
    assert not is_done(jobs(changed, world, tmp_path)[0])
    assert not (folder / "trace").exists()


def test_more_matched_seeds_keep_finished_jobs(world: Path, tmp_path: Path) -> None:
    more = replace(PROFILE, train=replace(PROFILE.train, seeds=5))
    keys = [json.loads((jobs(p, world, tmp_path)[0] / "job.json").read_text())["key"] for p in (PROFILE, more)]
    assert keys[0] == keys[1]


def _log(*ids: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"step": [1 + i // 4 for i in range(len(ids))], "row": [i % 4 for i in range(len(ids))], "sample_id": ids}
    )


PLAN = pd.DataFrame({"step": [0, 0, 1, 1], "slot": [0, 1, 0, 1], "sample_id": list("abcd")})


def test_log_equal_to_the_plan_passes() -> None:
    compare_with_plan(_log(*"aabbccdd"), PLAN, 2)
    with pytest.raises(PlanMismatchError, match="step 1, rollout 2: the plan says b, the trainer saw c"):
        compare_with_plan(_log(*"aaccbbdd"), PLAN, 2)
    with pytest.raises(PlanMismatchError, match="step 2, rollout 2: the plan says d, the trainer saw nothing"):
        compare_with_plan(_log(*"aabbcc"), PLAN, 2)
    with pytest.raises(PlanMismatchError, match="steps that the plan does not have, first 3"):
        compare_with_plan(_log(*"aabbccddaa"), PLAN, 2)


@given(st.permutations(range(8)))
@settings(max_examples=40, deadline=None)
def test_only_the_planned_order_passes(order: list[int]) -> None:
    ids = [f"s{i}" for i in range(8)]
    plan = pd.DataFrame({"step": [i // 2 for i in range(8)], "slot": [i % 2 for i in range(8)], "sample_id": ids})
    shown = [ids[i] for i in order]
    log = pd.DataFrame({"step": [1 + i // 2 for i in range(8)], "row": [i % 2 for i in range(8)], "sample_id": shown})
    if shown == ids:
        compare_with_plan(log, plan, 1)
    else:
        with pytest.raises(PlanMismatchError):
            compare_with_plan(log, plan, 1)


def test_logs_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_rows(path, [{"step": i} for i in range(5)])
    with path.open("a") as handle:
        handle.write('{"step": 5')
    assert [row["step"] for row in read_rows(path)] == [0, 1, 2, 3, 4]
    cut_back(path, 2)
    assert [row["step"] for row in read_rows(path)] == [0, 1, 2]


def test_sampling_is_seeded_and_leaves_the_global_stream_alone() -> None:
    model, tokenizer = load_policy()
    prompts = ["31+47", "Find 90-13.", "31+47"]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = sample_groups(model, tokenizer, prompts, 1, 24, 2.0, seed=1).texts
    assert torch.equal(before, torch.random.get_rng_state())
    assert first == sample_groups(model, tokenizer, prompts, 1, 24, 2.0, seed=1).texts
    assert first != sample_groups(model, tokenizer, prompts, 1, 24, 2.0, seed=2).texts


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


@pytest.mark.parametrize("name", [name for name in POLICIES if policy_folder(name).is_dir()])
def test_policy_short_rebuild_matches_the_recorded_losses(name: str, tmp_path: Path) -> None:
    recorded = json.loads((policy_folder(name) / "losses.json").read_text(encoding="utf-8"))
    losses = rebuild_policy(tmp_path, steps=51, config=POLICIES[name])
    assert [losses[0], losses[50]] == pytest.approx(recorded[:2], rel=0.02)


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


def test_job_record_survives_the_disk(world: Path, tmp_path: Path) -> None:
    from saerl_lib.rl.job import read_job

    (folder,) = jobs(PROFILE, world, tmp_path)
    job = read_job(folder)
    assert isinstance(job, Job) and job.train == replace(PROFILE.train, seeds=1)
    write_json(folder / "again.json", to_dict(job))
    assert json.loads((folder / "again.json").read_text()) == json.loads((folder / "job.json").read_text())
