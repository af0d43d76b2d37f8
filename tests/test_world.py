"""The embedded world: problems, slips, wording, splits, planted errors, gates and their reserved runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from stand_ins import untrained_sae

from saerl_lib import paths
from saerl_lib.artifacts import Stage
from saerl_lib.config import WORLD_VERSION, PlanConfig, ReaderConfig, get_profile
from saerl_lib.data.answers import read_answer
from saerl_lib.data.sample import Sample, normalise, read_samples, write_samples
from saerl_lib.encode.models import open_causal
from saerl_lib.encode.stages import features_stage, store_stage
from saerl_lib.properties.scorer import difficulty_stage, filter_stage
from saerl_lib.studies import world_check
from saerl_lib.studies.grid import planned_run, profile_of
from saerl_lib.studies.pool import arm_pool_stage
from saerl_lib.studies.world_check import ALONE, GateRun, NearestHalf, Sizes, chosen_rates, pilot, run_pilot, train_reserved
from saerl_lib.train import policy
from saerl_lib.train.arms import PILOTED, ArmPool, ArmSetting, find_arm
from saerl_lib.train.policy import FOLDER
from saerl_lib.train.run import train, write_run
from saerl_lib.train.sampler import gold_probability
from saerl_lib.world import gates, sources
from saerl_lib.world.gates import Bounds, Measured, met
from saerl_lib.world.sources import EVERY, PARENT, SHORT, TARGET, Problem, Step, draw_split, draw_world, even_rates, work_out

FROZEN = "be8f9bf8f0a3fe89"


def fingerprint(splits: dict[str, list[Sample]]) -> str:
    rows = [(s.id, s.prompt, s.steps, s.answer, s.difficulty, s.flaw) for name in sorted(splits) for s in splits[name]]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def test_world_is_frozen_under_its_version_and_survives_the_disk(smoke_world: dict[str, list[Sample]], tmp_path: Path) -> None:
    found = (WORLD_VERSION, fingerprint(smoke_world))
    assert found == ("2", FROZEN), "a sample changed: raise WORLD_VERSION and measure the gates again"
    write_samples(smoke_world["pool"], tmp_path / "pool.parquet")
    assert read_samples(tmp_path / "pool.parquet") == smoke_world["pool"]


def test_no_normalised_prompt_occurs_twice(smoke_world: dict[str, list[Sample]]) -> None:
    corpus = list(sources.corpus_texts())
    prompts = [normalise(s.prompt) for samples in smoke_world.values() for s in samples]
    assert len(prompts) == len(set(prompts)) and not set(prompts) & {normalise(prompt) for prompt, _ in corpus}
    ids = [s.id for samples in smoke_world.values() for s in samples]
    assert len(ids) == len(set(ids)) and len(corpus) >= 3000
    one, other = (fingerprint({"own": draw_split("own", 9, TARGET, seed, set())}) for seed in (0, 1))
    assert one != other


@given(st.integers(1, 8), st.sampled_from((0, 1)), st.integers(0, 10_000))
@settings(max_examples=60)
def test_gold_solutions_are_true(length: int, size: int, seed: int) -> None:
    """The lines, read as a running calculation, lead from the start to the answer, and no value leaves its range."""
    problem = sources.draw_problem(random.Random(seed), length, size)
    work, value = work_out(problem), problem.start
    for line in work.lines:
        left, right = line.split("=")
        assert eval(f"{value}{left}") == int(right) <= (99, 199)[size]
        value = int(right)
    assert work.answer == value >= 3 and len(problem.steps) == length
    assert set(sources.step_labels(work)) == {1}


def test_slips_follow_their_rates_and_spoil_what_comes_after() -> None:
    problem = Problem(47, (Step("+", 38), Step("f", 5, 2), Step("-", 9)))
    assert work_out(problem).lines == ["+38=85", "/5=17", "*2=34", "-9=25"]
    first = work_out(problem, lambda number, step: number == 0)
    assert first.lines == ["+38=75", "/5=15", "*2=30", "-9=21"] and sources.step_labels(first) == (-1, 0, 0, 0, 0)
    second = work_out(problem, lambda number, step: number == 1)
    assert second.lines == ["+38=85", "/5=17", "-9=8"] and sources.step_labels(second) == (1, 1, -1, 0)
    assert sources.fallible(Problem(11, (Step("+", 2), Step("*", 3)))) == [1], "no carry, nothing to forget"
    rng = random.Random(0)
    wrong = [bool(work_out(problem, sources.learner(rng, even_rates(0.25))).bad_lines) for _ in range(2000)]
    assert np.mean(wrong) == pytest.approx(1 - 0.75**3, abs=0.03)


def test_planted_errors_are_of_known_kinds() -> None:
    pool = draw_split("flaws", 400, PARENT, 0, set())
    kinds = Counter(s.flaw for s in pool)
    assert set(kinds) == {"", *sources.FLAWS} and kinds[""] / len(pool) == pytest.approx(0.7, abs=0.07)
    for sample in pool:
        wrong = sample.flaw in ("wrong_answer", "wrong_step")
        end = int(sample.steps[-1].split("=")[1]) if sample.steps else -1
        assert (end != int(sample.answer)) == (sample.flaw in ("wrong_answer",)) or sample.flaw == "truncated_solution"
        assert ("some" in sample.prompt) == (sample.flaw == "missing_premise")
        assert ("The result is" in sample.prompt) == (sample.flaw == "contradiction")
        assert (-1 in sample.step_labels) == (sample.flaw == "wrong_step") and (wrong or read_answer(sample.solution))
    assert not any(s.flaw for s in draw_split("sound", 100, PARENT, 0, set(), plant=False))


# Gates.


def test_gate_measures_by_hand() -> None:
    rows = (("red one", "1", "A"), ("red two", "1", "A"), ("blue one", "2", "B"), ("red x", "1", "A"), ("blue x", "3", "B"))
    made = [Sample("i", prompt, (), answer, topic) for prompt, answer, topic in rows]
    train, test = made[:3], made[3:]
    assert gates.guess_rate(train, test) == 0.5
    assert gates.single_token_accuracy(train, test) == 1.0
    labelled = [replace(s, difficulty=d) for s, d in zip(made, (1.0, 1.0, 3.0, 3.0, 1.0), strict=True)]
    # means 5/3 and 2 around 9/5: (3 (2/15)^2 + 2 (1/5)^2) / (24/5)
    assert gates.eta_squared(labelled) == pytest.approx((3 * (2 / 15) ** 2 + 2 / 25) / 4.8)
    assert met(Measured(0.5, 1), Bounds(high=0.5)) and not met(Measured(0.5, 1), Bounds(0.6))
    inside, beyond = Measured(0.2, 8, -1.0, 1.4), Measured(0.2, 8, -1.6, 1.4)
    assert met(inside, gates.GATES[gates.NEGATIVE]) and not met(beyond, gates.GATES[gates.NEGATIVE])


def scored_pool(n: int = 600) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of three encoders, with ties in the ranking, of which one shows nothing; and the pass rates of two rows in three."""
    rng = np.random.default_rng(0)
    hard, ids = rng.normal(size=n), [f"p{i:04d}" for i in rng.permutation(n)]
    columns = {"sample_id": ids, "cluster": np.arange(n) % 3, "length": np.arange(n) + 1.0}
    for suffix, deviation in (("", 0.3), ("@tfidf", 0.8), ("@blind", 100.0)):
        raw = 5 + hard + deviation * rng.normal(size=n)
        columns |= {f"ranking{suffix}": raw.round(1), f"raw{suffix}": raw}
    columns["phi@sae"] = [np.array([value]) for value in columns["raw"]]
    return pd.DataFrame(columns), pd.DataFrame({"sample_id": ids, "pass_rate": 1 / (1 + np.exp(3 * hard))}).iloc[: 2 * n // 3]


def test_every_score_is_blurred_to_the_same_correlation_and_keeps_its_values() -> None:
    scores, rates = scored_pool()
    found, about = gates.blurred(scores, rates, 0.45, seed=0)
    about = about.set_index("encoder")
    assert (about["rho"] > 0.7).tolist() == [True, True, False] and (about["noise"] > 0).tolist() == [True, True, False]
    assert about.loc[["sae", "tfidf"], "expected"].tolist() == pytest.approx([0.45, 0.45], abs=0.002)
    assert about.loc[["sae", "tfidf"], "blurred"].tolist() == pytest.approx([0.45, 0.45], abs=0.05)
    by_hand = spearmanr(found["ranking"][: len(rates)], -rates["pass_rate"])[0]
    assert by_hand == pytest.approx(about.loc["sae", "blurred"]) and about["n"].unique().tolist() == [len(rates)]
    pairs = [sorted(map(tuple, table[["ranking", "raw"]].to_numpy())) for table in (scores, found)]
    assert pairs[0] == pairs[1] and found[["cluster", "ranking@blind"]].equals(scores[["cluster", "ranking@blind"]])
    assert spearmanr(found["ranking"], found["ranking@tfidf"])[0] > spearmanr(scores["ranking"], found["ranking@tfidf"])[0]
    assert np.concatenate(found["phi@sae"].tolist()).tolist() == found["raw"].tolist(), "features go with the score"
    shuffled = scores.sample(frac=1, random_state=1)
    again = gates.blurred(shuffled, rates, 0.45, seed=0)[0].loc[scores.index]
    pd.testing.assert_frame_equal(again[["ranking@tfidf"]], found[["ranking@tfidf"]])
    assert not gates.blurred(scores, rates, 0.45, seed=1)[0]["ranking"].equals(found["ranking"])


def test_the_scores_of_plans_are_blurred_in_one_place_and_the_sharp_arm_plans_as_before(saerl_home: Path) -> None:
    scores, rates = scored_pool(48)
    stages = {name: Stage(name, saerl_home / name, name, True) for name in ("difficulty", "tfidf")}
    for stage, columns in zip(stages.values(), (scores.columns[:5], ["sample_id", "ranking@tfidf", "raw@tfidf"]), strict=True):
        stage.folder.mkdir(parents=True)
        scores[[*columns]].to_parquet(stage.path("scores.parquet"))
    profile = replace(get_profile("smoke"), score_correlation=None)
    assert gates.scores_stage(profile, stages["difficulty"], stages["difficulty"]) is stages["difficulty"]
    made = gates.scores_stage(profile, stages["difficulty"], *stages.values())
    plain = pd.read_parquet(made.path("scores.parquet"))
    with pytest.MonkeyPatch.context() as patch:
        rates.to_parquet(saerl_home / "pass_rates.parquet")
        patch.setattr(gates, "base_rates_stage", lambda profile, world: Stage("policy_rates", saerl_home, "rates", True))
        made = gates.scores_stage(get_profile("smoke"), stages["difficulty"], *stages.values())
    found, setting = pd.read_parquet(made.path("scores.parquet")), ArmSetting(PlanConfig(prompts_per_step=4), 12, 0)
    arm, sharp = (find_arm(name).order for name in ("saerl_grpo", "saerl_sharp"))
    assert sharp(ArmPool(found), setting).ids == sharp(ArmPool(plain), setting).ids == arm(ArmPool(plain), setting).ids
    assert arm(ArmPool(found), setting).ids != arm(ArmPool(plain), setting).ids
    assert pd.read_parquet(made.path("blur.parquet"))["encoder"].tolist() == ["sae", "tfidf"]
    with pytest.raises(ValueError, match="score_correlation=0.45 must lie between 0 and 1, in a world alone"):
        replace(get_profile("paper"), score_correlation=0.45)


def reserved_rows(ends: dict[str, float], seeds: int = 3) -> pd.DataFrame:
    """Held-out problems of both topics that rise straight from 0.2 to the end of their arm; transfer runs carry over half."""
    rows = []
    for (arm, end), seed, step, topic in itertools.product(ends.items(), range(seeds), (0, 1, 2, 3, 4), EVERY):
        gain = (end - 0.2 + 0.01 * seed) * step / 4 * (0.5 if arm == "alone" and topic not in ALONE else 1.0)
        rows.append((step, f"p-{topic}", topic, 0.2 + gain, np.nan, arm, 1e-4, seed, 0.3))
    frame = pd.DataFrame(rows, columns=["step", "sample_id", "topic", "exact", "sampled", "arm", "rate", "seed", "silent"])
    return frame.assign(loss="token_mean", optimizer="adamw")


def test_trained_gates_by_hand() -> None:
    frame = reserved_rows({"random": 0.4, "nearest_half": 0.43, "reshuffled": 0.4, "alone": 0.3})
    found = world_check.trained_from(frame, Sizes(seeds=3, steps=4))
    assert found[gates.POSITIVE].value == pytest.approx(3.0) and found[gates.NEGATIVE].value == pytest.approx(0.0)
    assert found[gates.LATE].value == pytest.approx((20 + 1) / 4) and found[gates.FORGETTING].value == 0
    assert found[gates.TRANSFER].value == pytest.approx(0.5)
    assert found[gates.DETECTABLE].value == pytest.approx(0.0, abs=1e-6), "arms differ alike in every seed"
    falling = frame.assign(exact=np.where((frame["step"] == 4) & (frame["topic"] == EVERY[0]), 0.0, frame["exact"]))
    assert world_check.trained_from(falling, Sizes(seeds=3, steps=4))[gates.FORGETTING].value == pytest.approx(1 / 12)
    single = world_check.trained_from(frame[frame["seed"] == 0], Sizes(seeds=1, steps=4))
    assert set(single) == set(found) - {gates.DETECTABLE} and not met(single[gates.STILL], gates.GATES[gates.STILL])


def test_the_learning_rate_is_the_best_that_does_not_forget() -> None:
    sizes, low, middle = Sizes(steps=4), reserved_rows({"random": 0.3}), reserved_rows({"random": 0.4}).assign(rate=2e-4)
    high = reserved_rows({"random": 0.6}).assign(rate=4e-4)
    fallen = high.assign(exact=np.where((high["step"] == 4) & (high["topic"] == EVERY[0]), 0.0, high["exact"]))
    table = pilot(pd.concat([low, middle, fallen]), sizes)
    assert table.query("part == 'forgetting' and learning_rate == 4e-4")["outcome"].tolist() == pytest.approx([100 / 12] * 3)
    main = ("token_mean", "adamw")
    assert chosen_rates(table) == {main: 2e-4} and chosen_rates(pilot(fallen, sizes)) == {main: None}
    other = fallen.assign(optimizer="sgd", rate=0.1)
    assert chosen_rates(pilot(pd.concat([low, middle, high, other]), sizes)) == {main: 4e-4, ("token_mean", "sgd"): None}


def test_the_pilot_goes_on_while_the_best_rate_is_at_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(runs: Sequence[GateRun], home: Path) -> pd.DataFrame:
        """The nearer to a rate of 9, the better."""
        def told(one: GateRun) -> pd.DataFrame:
            end = 0.6 - 0.02 * abs(one.train.learning_rate - 9)
            setting = {"loss": one.train.loss, "optimizer": one.train.optimizer, "rate": one.train.learning_rate}
            return reserved_rows({"random": end}, 1).assign(seed=one.seed, **setting)

        return pd.concat([told(one) for one in runs])

    monkeypatch.setattr(world_check, "run_reserved", run)
    monkeypatch.setattr(world_check, "RATES", {("token_mean", "adamw"): 2.0, ("constant", "sgd"): 10.0})
    table = run_pilot(get_profile("laptop").train, Sizes(steps=4), tmp_path)
    tried = table.query("part == 'forgetting' and seed == 200").groupby("loss")["learning_rate"].apply(list)
    assert tried["token_mean"] == [1.0, 2.0, 4.0, 8.0, 16.0] and tried["constant"] == [5.0, 10.0, 20.0]
    assert chosen_rates(table) == {("token_mean", "adamw"): 8.0, ("constant", "sgd"): 10.0}


def test_the_study_has_the_rates_that_the_pilot_chose() -> None:
    assert chosen_rates(pd.read_csv(paths.PUBLISHED / "study_pilot.csv")) == PILOTED
    assert get_profile("study").train.learning_rate == PILOTED["token_mean", "adamw"]
    again = chosen_rates(pd.read_csv(paths.PUBLISHED / "study_pilot_amd.csv"))  # docs/world.md says how they differ
    assert again["token_mean", "adamw"] == PILOTED["token_mean", "adamw"] / 2
    assert sum(again[setting] != rate for setting, rate in PILOTED.items()) == 3
    met = [pd.read_csv(paths.PUBLISHED / f"{name}.csv").set_index("gate")["met"] for name in ("world_gates", "world_gates_amd")]
    assert met[0].equals(met[1]) and len(met[0]) == 14


def test_a_reserved_run_is_trained_once_and_read_again(tmp_path: Path) -> None:
    sizes = Sizes(seeds=1, steps=4, prompts_per_step=2, held_out=8, looked_at=6, looked_every=2)
    train = replace(get_profile("laptop").train, rollouts_per_prompt=2, max_completion_tokens=24)
    runs = [GateRun(arm, 1, train, sizes) for arm in ("random", "nearest_half")]
    frames = [train_reserved(run, tmp_path) for run in runs]
    for frame, run in zip(frames, runs, strict=True):
        assert frame["step"].unique().tolist() == [0, 1, 2, 3, 4] and len(frame) == 5 * 8
        assert frame.loc[frame["step"] > 0, "silent"].between(0, 1).all()
        assert frame.loc[frame["step"].isin([0, 4]), "sampled"].isin([0, 1]).all()
        pd.testing.assert_frame_equal(train_reserved(run, tmp_path), frame)
    start = [frame.loc[frame["step"] == 0, "exact"].to_numpy() for frame in frames]
    assert np.array_equal(*start), "arms of a seed start from the same policy and problems"


def test_the_positive_control_takes_the_prompts_nearest_to_one_half() -> None:
    samples, policy = draw_split("near", 12, TARGET, 2, set()), open_causal(FOLDER)
    control = NearestHalf(policy, samples, Sizes(looked_at=12, looked_every=2), seed=0)
    rates = np.abs(gold_probability(*policy, samples, 1.0) - 0.5)
    chosen = np.concatenate([control.next(2), control.next(2)])
    assert sorted(chosen) == sorted(np.argsort(rates, kind="stable")[:4])


# Short-answer arithmetic.


def test_short_arithmetic_has_its_kinds_as_topics_and_true_lines() -> None:
    splits = draw_world(replace(get_profile("smoke").world, problems="short"))
    assert {s.topic for s in splits["pool"]} == set(SHORT) and {s.source for s in splits["pool"]} == {"target", "parent"}
    for samples in splits.values():
        for sample in samples:
            written, value = sample.steps[0].split(" = ")
            wrong = sample.flaw == "wrong_step"
            assert written in sample.prompt and value == sample.answer and (eval(written) != int(value)) == wrong
            assert sample.step_labels == ((-1, 0) if wrong else (1, 1))
    flaws = {name: np.mean([bool(s.flaw) for s in samples]) for name, samples in splits.items()}
    assert flaws["labelled"] == flaws["eval_hardest"] == 0 < min(flaws["filter_negatives"], flaws["step_labelled"])
    assert [{s.topic for s in splits[f"eval_{name}"]} for name in sources.EVAL_SETS] == [{topic} for topic in SHORT]
    label = pd.DataFrame([(s.topic, s.difficulty) for s in splits["labelled"]], columns=["topic", "label"]).groupby("topic")
    assert (label["label"].nunique() > 1).all() and label["label"].mean().idxmax() == SHORT[-1], "sizes of operands are levels"


def test_a_real_policys_arithmetic_is_read_scored_planned_and_trained_like_the_rest(
    saerl_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2 and its SAE by stand-ins: the world's policy, whose tokenizer has no chat template, and an SAE as drawn."""
    monkeypatch.setattr(policy, "smollm2_folder", lambda: FOLDER)
    smoke, small = get_profile("smoke"), {"eval_problems_small": 1, "eval_problems_full": 1, "rated_prompts": 4}
    sizes = {"labelled_samples": 40, "test_samples": 20, "noisy_pool_samples": 48, "step_labelled_samples": 12}
    arm = find_arm("saerl_grpo_real")
    own = profile_of(smoke, arm)
    profile = replace(
        own, world=replace(own.world, **sizes, **small), pool_samples=12, score_correlation=None,
        reader=ReaderConfig(str(FOLDER), 2, str(untrained_sae(tmp_path / "sae")), max_norm=None, retained_latents=8),
        train=replace(own.train, chat=False, trained_blocks=1, rollouts_per_prompt=2, max_completion_tokens=4),
        plan=PlanConfig(prompts_per_step=2), properties=replace(smoke.properties, clusters=2),
    )  # fmt: skip
    world = sources.world_stage(profile)
    features = features_stage(profile, world, store_stage(profile, world))
    difficulty, quality = difficulty_stage(profile, world, features), filter_stage(profile, world, features)
    pools = arm_pool_stage(profile, world, features, gates.scores_stage(profile, world, difficulty), quality)
    run = planned_run(profile, world, pools, arm, 1, saerl_home / "jobs")
    write_run(run)
    train(run)
    rollouts, table = (pd.read_parquet(path) for path in (run.folder / "rollouts.parquet", pools.path("kept_table.parquet")))
    assert rollouts["step"].max() == profile.steps == 7 and set(rollouts["sample_id"]) <= set(table["sample_id"])
    asked = pd.read_parquet(run.folder / "evaluations.parquet")
    assert set(asked["step"]) == {0, 7} and set(asked["attempts"]) == {1} and asked["gold_probability"].isna().all()
    rates = pd.read_parquet(gates.base_rates_stage(profile, world).path("pass_rates.parquet"))
    assert len(rates) == 4 and set(rates["pass_rate"] * 16 % 1) == {0}, "shares of sixteen answers, not likelihoods"
