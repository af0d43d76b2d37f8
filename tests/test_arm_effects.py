"""Statistics of the RL study on small tables that a hand can check."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from saerl_lib.artifacts import ArtifactError
from saerl_lib.config import get_profile
from saerl_lib.report import arm_pairs, arm_tables
from saerl_lib.report.arm_effects import final_values, outcome_values, outcomes
from saerl_lib.report.claims import not_run_claims, planned_seeds, study_claims
from saerl_lib.report.figures import draw
from saerl_lib.report.paired import Estimate, compare, corrected, over_seeds, problem_variance
from saerl_lib.report.paper_tables import MIXING
from saerl_lib.report.plots_gap import gaps
from saerl_lib.report.schemas import SCHEMAS, write_csv
from saerl_lib.report.statistics import minimum_detectable_effect
from saerl_lib.study import results as study_results
from saerl_lib.study.results import PROBLEMS, TABLES, compact, study_tables
from saerl_lib.train.arms import all_arms
from saerl_lib.train.evaluate import final_outcome
from saerl_lib.train.run import write_table

SETS, STEPS, SMALL, FULL = ("easy_a", "easy_b", "hard", "hardest", "mid_a", "mid_b"), (0, 10, 20, 30), 4, 10

DIVERSITY = pd.DataFrame(
    [(arm, h, space, 1.0 + h) for h, arm in enumerate(MIXING) for space in ("PCA 2-D", "full")],
    columns=["arm", "swapped_per_batch", "space", "value"],
)
PLANS = pd.DataFrame(
    [(arm, 32, 2, 30, 0.7, 0.5, 0.04, 0.8, 0.2, "a1") for arm in all_arms()], columns=list(SCHEMAS["study_plans"].columns)
)
SIZES = arm_tables.Sizes(pool=960, labelled=100, attempts=16)


def evaluations(gains: dict[str, float], seeds: int = 3, noise: float = 0.1) -> pd.DataFrame:
    """One row a run, step and problem: `gains` is added to the share of right answers after the first step."""
    rng, rows = np.random.default_rng(0), []
    for arm, gain in gains.items():
        for seed in range(seeds):
            for step in STEPS:
                full = step in (0, STEPS[-1])
                attempts, problems = (8, FULL) if full else (2, SMALL)
                for name in SETS:
                    rate = 0.4 + (gain + 0.004 * step + noise * rng.normal() / 10) * (step > 0)
                    for i in range(problems):
                        correct = int(rng.binomial(attempts, min(max(rate, 0), 1)))
                        rows.append((arm, seed, step, step, step * 256, name, f"{name}-{i}", attempts, correct, full))
    columns = ["arm", "seed", "step", "update", "rollouts", "eval_set", "sample_id", "attempts", "correct", "full"]
    return pd.DataFrame(rows, columns=columns)


def results(gains: dict[str, float], seeds: int = 3) -> dict[str, pd.DataFrame]:
    runs = [(arm, seed) for arm in gains for seed in range(seeds)]
    curve = [(a, s, t, 0.5, 0.4, 0.05, 1.0, 30.0) for a, s in runs for t in range(1, 31)]
    names = ["arm", "seed", "step", "reward_mean", "zero_variance_share", "entropy", "grad_norm", "completion_tokens"]
    budget = [(a, s, 30, 960, 960, 7680, 7680, 240_000, "run") for a, s in runs]
    made = [(f"{a}-seed{s}", a, s, "k", 8e-5, "c", "cpu", 1, "torch=2", 100.0, 40.0, 900) for a, s in runs]
    spent = ["arm", "seed", "updates", "prompts", "distinct_prompts", "rollouts", "rollouts_used", "tokens", "counted"]
    return {
        "evaluations": evaluations(gains, seeds),
        "curve": pd.DataFrame(curve, columns=names),
        "budget": pd.DataFrame(budget, columns=spent),
        "provenance": pd.DataFrame(made, columns=list(SCHEMAS["study_provenance"].columns)),
    }


def test_outcome_by_hand_and_by_both_ways() -> None:
    """Two sets; the small evaluations hold problem a alone, the last one a and b."""
    rows = [("x", 0, step, name, p, k, c) for name in ("s", "t") for step, p, k, c in
            ((1, "a", 2, 1), (2, "a", 2, 2), (3, "a", 4, 4), (3, "b", 4, 0))]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["arm", "seed", "step", "eval_set", "sample_id", "attempts", "correct"])
    # steps: 50 %, 100 %, 50 %
    assert outcomes(outcome_values(frame)).loc["x", 0] == pytest.approx(200 / 3)
    assert final_outcome(frame)["outcome"].iloc[0] == pytest.approx(200 / 3)
    full = evaluations({"grpo": 0.0, "diff": 0.1})
    both = final_outcome(full).set_index(["arm", "seed"])["outcome"]
    pd.testing.assert_series_equal(outcomes(outcome_values(full)).sort_index(), both.sort_index(), check_names=False)
    with pytest.raises(ValueError, match="averages the last 3"):
        final_outcome(frame[frame["step"] > 1])


def test_the_pass_set_counts_a_problem_once() -> None:
    frame = evaluations({"grpo": 0.0})
    values = final_values(frame, "hardest")
    assert set(np.unique(values["hardest"])) <= {0.0, 100.0}
    assert len(np.unique(values["easy_a"])) > 2


def test_the_error_of_seeds_alone_is_that_of_a_t_test() -> None:
    by_seed = np.array([0.0, 2.0, 4.0, 2.0])
    found, expected = over_seeds(by_seed), stats.ttest_1samp(by_seed, 0.0)
    assert found.p_value() == pytest.approx(expected.pvalue) and found.degrees == 3
    assert found.interval(0.05)[1:] == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.detectable(0.05) == pytest.approx(minimum_detectable_effect(by_seed))


def block(values: np.ndarray, evaluations: int = 1) -> pd.DataFrame:
    columns = pd.MultiIndex.from_product([[evaluations], [f"p{i}" for i in range(values.shape[1])]])
    return pd.DataFrame(values, columns=columns)


def test_the_problems_part_by_hand_and_by_bootstrap() -> None:
    # seeds agree: the variance of a mean over problems is that of a sample of 4, (1 + 1 + 1 + 1) / 3 / 4
    same = np.tile([1.0, 3.0, 1.0, 3.0], (3, 1))
    assert problem_variance(block(same)) == pytest.approx(4 / 3 / 4)
    # a constant of each seed is no problem's, and of two strata each has its own mean
    assert problem_variance(block(same + np.array([[0.0], [5.0], [9.0]]))) == pytest.approx(4 / 3 / 4)
    apart = pd.concat([block(same), block(same + 100, 3)], axis=1)
    assert problem_variance(apart) == pytest.approx(2 * 0.5**2 * 4 / 3 / 4)
    rng = np.random.default_rng(3)
    values = rng.normal(size=(6, 1)) + 2 * rng.normal(size=40) + 3 * rng.normal(size=(6, 40))
    seeds, problems = (
        np.var([values[rng.integers(0, 6, 6)].mean() for _ in range(4000)]) * 6 / 5,
        np.var([values[:, rng.integers(0, 40, 40)].mean() for _ in range(4000)]) * 40 / 39,
    )
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    both = seeds + problems - np.square(rest).sum() / (5 * 39) / 240  # both axes hold the rest, which counts once
    total = over_seeds(values.mean(axis=1), problem_variance(block(values))).error ** 2
    assert total == pytest.approx(both, rel=0.06)


@pytest.mark.parametrize(("seeds", "problems", "rest"), [(1.0, 0.0, 0.0), (1.0, 3.0, 0.0), (0.3, 1.0, 8.0), (0.0, 0.0, 8.0)])
def test_intervals_hold_what_they_say_at_five_seeds(seeds: float, problems: float, rest: float) -> None:
    """Coverage of the 95 % interval when seeds, problems and attempts differ; percentiles over seeds would hold 90.5 %."""
    rng, inside = np.random.default_rng(5), 0
    index = pd.MultiIndex.from_product([["a", "b"], range(5)], names=["arm", "seed"])
    for _ in range(600):
        noise = seeds * rng.normal(size=(5, 1)) + problems * rng.normal(size=24) + rest * rng.normal(size=(5, 24))
        table = block(np.concatenate([noise, np.zeros_like(noise)])).set_axis(index)
        (found,) = compare({"s": table}, [("a", "b")])
        inside += found.interval.low <= 0 <= found.interval.high
    assert 0.925 < inside / 600 < 0.98


def test_a_bound_from_above_has_its_own_correction() -> None:
    """Differences 0.1 and 0.2 with error 0.15 lie below 0.5 alone; of two such bounds one must hold at 2.5 %."""
    found = corrected([("a", "z"), ("b", "z"), ("c", "z")], [Estimate(m, 0.15, 1e9, 8) for m in (0.1, 0.2, 2.0)], smallest=0.5)
    alone = [2 * stats.norm.sf((0.5 - m) / 0.15) for m in (0.1, 0.2)]
    assert [c.p_small for c in found] == pytest.approx([3 * alone[0], 2 * alone[1], 1.0], rel=1e-4)
    assert found[0].interval.high < 0.5 and found[1].interval.high < 0.5
    # Holm's order is that of differences from 0: c 5 / 3 %, b 2.5 %, a none left
    assert found[2].detectable == pytest.approx((stats.norm.ppf(1 - 0.05 / 6) + stats.norm.ppf(0.8)) * 0.15)


def test_comparisons_pair_by_seed_and_correct_within_the_family() -> None:
    values = outcome_values(evaluations({"grpo": 0.0, "diff": 0.3, "adarft": 0.0}, seeds=4))
    found = compare(values, [("diff", "grpo"), ("adarft", "grpo")])
    assert found[0].interval.low > 15 and found[0].n_seeds == 4 and found[0].p_holm < 0.01
    assert found[1].interval.low < 0 < found[1].interval.high
    for c in found:
        assert c.corrected.low <= c.interval.low and c.corrected.high >= c.interval.high and c.p_holm >= c.p_value
        half = (c.interval.high - c.interval.low) / 2
        assert c.interval.value == pytest.approx((c.interval.high + c.interval.low) / 2) and half > 0
    alone = compare(values, [("diff", "grpo")])[0]
    assert alone.corrected == alone.interval


def test_one_seed_has_no_interval() -> None:
    (found,) = compare(outcome_values(evaluations({"grpo": 0.0, "diff": 0.3}, seeds=1)), [("diff", "grpo")])
    assert math.isnan(found.interval.low) and math.isnan(found.detectable) and found.interval.value > 0


def test_steps_to_target_by_hand() -> None:
    rows = [(a, 0, t, "s", "p", 10, c) for a, counts in {"grpo": (1, 2, 6), "diff": (1, 6, 8), "slow": (1, 1, 1)}.items()
            for t, c in zip((0, 10, 20), counts, strict=True)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["arm", "seed", "step", "eval_set", "sample_id", "attempts", "correct"])
    steps = arm_tables.target_steps(frame, ["grpo", "diff"], problems=1, budget=20).set_index("arm")
    assert steps["target"].tolist() == [60.0] * 3, "the lowest final accuracy of the paper's arms alone"
    assert steps["steps"].to_dict() == {"grpo": 20, "diff": 10, "slow": 20}
    assert not steps.loc["slow", "reached"]
    three = pd.concat([steps.reset_index().assign(seed=s, steps=lambda t, s=s: t["steps"] + s) for s in range(3)])
    (found,) = arm_pairs.compare_steps(three, [("diff", "grpo")])
    assert found.interval.value == pytest.approx(np.mean([100 * 10 / (20 + s) for s in range(3)]))


def test_arms_of_another_policy_have_their_own_targets_and_baseline() -> None:
    gains = {"grpo": 0.0, "diff": 0.1, "minus_diff": 0.0, "grpo_large": 0.3, "saerl_grpo_large": 0.35}
    tables = study_tables(results(gains), SMALL, 30, SIZES, DIVERSITY, PLANS, prompts=32)
    small = results({k: v for k, v in gains.items() if "large" not in k})
    alone = study_tables(small, SMALL, 30, SIZES, DIVERSITY, PLANS, prompts=32)
    steps = tables["study_targets"].set_index("arm")
    small = steps.loc[["diff", "grpo", "minus_diff"]].reset_index()
    pd.testing.assert_frame_equal(small, alone["study_targets"], check_dtype=False)
    target = {arm: steps.loc[arm].groupby("eval_set")["target"].first() for arm in ("grpo_large", "grpo")}
    assert (target["grpo_large"] > target["grpo"]).all()
    summary, outcome = tables["study_summary"].set_index("arm"), tables["study_summary"].set_index("arm")["outcome"]
    assert math.isnan(summary.loc["grpo_large", "difference"])
    expected = outcome["saerl_grpo_large"] - outcome["grpo_large"]
    assert summary.loc["saerl_grpo_large", "difference"] == pytest.approx(expected)
    transfer = tables["study_comparisons"].query("family == 'transfer' and metric == 'outcome'")
    assert transfer[["arm", "baseline"]].values.tolist() == [["saerl_grpo_large", "grpo_large"]]
    assert transfer["claim"].notna().all()


def test_tables_have_their_columns_and_every_arm(tmp_path) -> None:
    gains = {"grpo": 0.0, "saerl_grpo": 0.05, "diff": 0.02, "minus_diff": 0.0, "dapo": 0.1, "saerl_dapo": 0.1}
    gains |= {"minus_mix": 0.0, "grpo_4b": 0.0, "saerl_4b": 0.1}
    tables = study_tables(results(gains), SMALL, 30, SIZES, DIVERSITY, PLANS, prompts=32)
    for name in TABLES:
        write_csv(tables[name], name, tmp_path)
    assert tables["study_summary"]["arm"].tolist() == [a for a in all_arms() if a in gains]
    assert len(tables["study_runs"]) == len(gains) * 3 * len(STEPS)
    summary = tables["study_summary"].set_index("arm")
    assert math.isnan(summary.loc["grpo", "difference"]) and summary.loc["dapo", "difference"] > 0
    assert summary.loc["grpo", ["prompts", "rollouts", "tokens"]].tolist() == [960, 7680, 240_000]
    assert summary.loc["diff", "prep_labels"] == 960
    assert summary.loc["saerl_grpo", ["prep_labels", "prep_encoded"]].tolist() == [100, 1060]
    pairs = tables["study_comparisons"]
    assert set(pairs["family"]) == {"paper", "ablation", "batch", "post_hoc"}
    assert set(pairs["metric"]) == {*arm_pairs.accuracy_metrics(results(gains)["evaluations"]), "steps", "area"}
    for figure in ("study_effects", "study_curves", "study_gap", "study_sets", "study_mixing"):
        assert draw(figure, tmp_path, tmp_path).stat().st_size > 10_000


def test_the_tables_can_be_written_again_from_the_committed_runs(tmp_path: Path) -> None:
    profile = get_profile("study")
    profile = replace(profile, pool_samples=30 * 32, world=replace(profile.world, eval_problems_small=SMALL))
    made = results({"grpo": 0.0, "saerl_grpo": 0.05, "minus_mix": 0.0, "grpo_4b": 0.0, "saerl_4b": 0.1})
    sizes = study_results.sizes_of(profile)
    for name, table in study_tables(made, SMALL, profile.steps, sizes, DIVERSITY, PLANS, 32).items():
        write_csv(table, name, tmp_path)
    write_table(compact(made["evaluations"]), tmp_path / PROBLEMS)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")}
    (tmp_path / "study_comparisons.csv").unlink()
    study_results.rewrite_tables(profile, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")} == before


def test_gaps_are_paired_by_seed_and_step() -> None:
    rows = [("grpo", 0, 10, 40.0), ("grpo", 1, 10, 50.0), ("diff", 0, 10, 42.0), ("diff", 1, 10, 54.0), ("diff", 2, 10, 90.0)]
    runs = pd.DataFrame(rows, columns=["arm", "seed", "step", "mean_avg"])
    (found,) = gaps(runs, "mean_avg").itertuples(index=False)
    half = 12.706 * 1.0  # t of one degree of freedom, standard error 1
    assert (found.arm, found.step, found.n) == ("diff", 10, 2)
    assert [found.value, found.low, found.high] == pytest.approx([3.0, 3.0 - half, 3.0 + half], abs=1e-2)


def test_the_tables_hold_what_is_finished_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = results({"grpo": 0.3, "adarft": 0.0})
    monkeypatch.setattr(study_results, "finished", lambda profile, cells: [tmp_path])
    monkeypatch.setattr(study_results, "results", lambda found: made)
    monkeypatch.setattr(study_results, "mixing_diversity", lambda profile: DIVERSITY)
    monkeypatch.setattr(study_results, "plan_facts", lambda profile, arms: PLANS)
    cells = [(arm, seed) for seed in range(3) for arm in all_arms().values() if arm.name in ("grpo", "diff", "adarft")]
    tables = study_results.collect_study(get_profile("study"), cells, tmp_path)
    outcome = tables["study_summary"].set_index("arm")["outcome"]
    assert outcome["grpo"] == pytest.approx(final_outcome(made["evaluations"]).groupby("arm")["outcome"].mean()["grpo"])
    kept = pd.read_parquet(tmp_path / PROBLEMS)
    assert kept.groupby("arm", observed=True)["seed"].nunique().to_dict() == {"adarft": 3, "grpo": 3}
    monkeypatch.setattr(study_results, "results", lambda found: results({"adarft": 0.0}))
    with pytest.raises(ArtifactError, match="no finished run of grpo"):
        study_results.collect_study(get_profile("study"), cells, tmp_path)


def test_claims_of_the_study_follow_the_corrected_interval() -> None:
    gains = {"grpo": 0.0, "saerl_grpo": 0.4, "diff": 0.0}
    made = results(gains, seeds=planned_seeds("paper"))
    pairs = study_tables(made, SMALL, 30, SIZES, DIVERSITY, PLANS, 32)["study_comparisons"]
    rows = {row["claim"]: row for row in study_claims(pairs)}
    early = study_claims(pairs.assign(n_seeds=3))
    assert {row["verdict"] for row in early} == {"undecided"}, "fewer seeds than planned decide nothing"
    gain = rows["SAERL on GRPO against GRPO: accuracy gain, points (last evaluation, the hardest set by Pass@8)"]
    assert gain["verdict"] == "reproduced" and gain["paper_value"] == 3.0 and gain["n_seeds"] == 8
    assert rows["DIFF against GRPO: accuracy gain, points (Table 4)"]["verdict"] in ("undecided", "not reproduced")
    left = {row["claim"] for row in not_run_claims(list(rows))}
    assert not left & set(rows) and any(claim.startswith("SAERL on DAPO against DAPO") for claim in left)


def test_every_pair_names_arms_of_the_grid() -> None:
    named = {name for pairs in arm_pairs.FAMILIES.values() for p in pairs for name in (p.arm, p.baseline)}
    assert named == set(all_arms()), "an arm that nothing is compared with is trained in vain"
