"""The RL study's tables on small evaluations that a hand can check, and every statistic on numbers that a hand can check."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from saerl_lib import paths
from saerl_lib.config import get_profile
from saerl_lib.report import claims, statistics, study
from saerl_lib.report.figures import FIGURES
from saerl_lib.report.statistics import Estimate, Interval, bootstrap_interval, difference_interval, over_seeds
from saerl_lib.report.study import outcome_values, outcomes
from saerl_lib.report.tables import SCHEMAS, TableError, read_table, write_csv
from saerl_lib.studies.grid import RUNS, TABLES, cells_of, study_tables
from saerl_lib.studies.grid import results as merged
from saerl_lib.studies.world_check import RATES
from saerl_lib.train.arms import ORDERS, PILOTED, all_arms

SETS, STEPS, SMALL, FULL = ("easy_a", "easy_b", "hard", "hardest", "mid_a", "mid_b"), (0, 10, 20, 30), 4, 10

COLUMNS = ["arm", "seed", "step", "eval_set", "sample_id", "attempts", "correct"]
PROFILE = get_profile("study")
PROFILE = replace(PROFILE, pool_samples=30 * 32, world=replace(PROFILE.world, eval_problems_small=SMALL))


def evaluations(gains: dict[str, float], seeds: int = 3, noise: float = 0.1) -> pd.DataFrame:
    """One row a run, step and problem: `gains` is added to the share of right answers after the first step."""
    rng, rows = np.random.default_rng(0), []
    for arm, seed, step, name in product(gains, range(seeds), STEPS, SETS):
        full = step in (0, STEPS[-1])
        attempts, problems = (8, FULL) if full else (2, SMALL)
        rate = 0.4 + (gains[arm] + 0.004 * step + noise * rng.normal() / 10) * (step > 0)
        rows += [(arm, seed, step, step, step * 256, name, f"{name}-{i}", attempts, correct, full)
                 for i, correct in enumerate(rng.binomial(attempts, min(max(rate, 0), 1), problems))]  # fmt: skip
    columns = ["arm", "seed", "step", "update", "rollouts", "eval_set", "sample_id", "attempts", "correct", "full"]
    return pd.DataFrame(rows, columns=columns)


def results(gains: dict[str, float], seeds: int = 3) -> dict[str, pd.DataFrame]:
    runs = [(arm, seed) for arm in gains for seed in range(seeds)]
    curve = [(a, s, t, 0.5, 0.4, 0.05, 1.0, 30.0) for a, s in runs for t in range(1, 31)]
    names = ["arm", "seed", "step", "reward_mean", "zero_variance_share", "entropy", "grad_norm", "completion_tokens"]
    budget = [(a, s, 30, 30, 960, 960, 7680, 7680, 240_000) for a, s in runs]
    made = [(f"{a}-seed{s}", a, s, "k", 8e-5, "c", "cpu", 1, "torch=2", 100.0, 40.0, 900) for a, s in runs]
    spent = ["arm", "seed", "steps", "updates", "prompts", "distinct_prompts", "rollouts", "rollouts_used", "tokens"]
    found = evaluations(gains, seeds)
    return {
        "evaluations": found,
        "tail": found[(found["step"] == 30) & ~found["arm"].str.endswith("_rollouts")].assign(step=33, update=33),
        "curve": pd.DataFrame(curve, columns=names),
        "budget": pd.DataFrame(budget, columns=spent),
        "provenance": pd.DataFrame(made, columns=list(SCHEMAS["study_provenance"].columns)),
    }


def test_outcome_by_hand() -> None:
    """Two sets; the small evaluations hold problem a alone, the last one a and b."""
    rows = [("x", 0, step, name, p, k, c) for name in ("s", "t") for step, p, k, c in
            ((1, "a", 2, 1), (2, "a", 2, 2), (3, "a", 4, 4), (3, "b", 4, 0))]  # fmt: skip
    frame = pd.DataFrame(rows, columns=COLUMNS)
    # steps: 50 %, 100 %, 50 %
    assert outcomes(outcome_values(frame)).loc["x", 0] == pytest.approx(200 / 3)


def test_steps_to_target_by_hand() -> None:
    rows = [(a, 0, t, "s", "p", 10, c) for a, counts in {"grpo": (1, 2, 6), "diff": (1, 6, 8), "slow": (1, 1, 1)}.items()
            for t, c in zip((0, 10, 20), counts, strict=True)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=COLUMNS)
    steps = study.target_steps(frame, ["grpo", "diff"], problems=1, budget=20).set_index("arm")
    assert steps["target"].tolist() == [60.0] * 3, "the lowest final accuracy of the paper's arms alone"
    assert steps["steps"].to_dict() == {"grpo": 20, "diff": 10, "slow": 20}
    assert not steps.loc["slow", "reached"]
    three = pd.concat([steps.reset_index().assign(seed=s, steps=lambda t, s=s: t["steps"] + s) for s in range(3)])
    found = study.compare_runs(three.groupby(["arm", "seed"])["steps"].mean(), [("diff", "grpo")], saved=True)
    assert found["difference"].tolist() == pytest.approx([np.mean([100 * 10 / (20 + s) for s in range(3)])])


def test_when_a_curve_reaches_a_value_by_hand() -> None:
    curve = pd.DataFrame({"step": [0, 10, 20, 30], "avg": [10.0, 20.0, 18.0, 30.0]})
    assert [study._reached(curve, aim) for aim in (5.0, 15.0, 20.0, 24.0, 31.0)] == [0.0, 5.0, 10.0, 25.0, 30.0]
    assert math.isnan(study._reached(curve, math.nan)), "without a baseline"


def test_tables_have_their_columns_and_every_arm(tmp_path) -> None:
    gains = {"grpo": 0.0, "saerl_grpo": 0.05, "diff": 0.02, "minus_diff": 0.0, "dapo": 0.1, "saerl_dapo": 0.1}
    gains |= {"minus_mix": 0.0, "grpo_4b": 0.0, "saerl_4b": 0.1, "diff_constant_sgd": -0.02, "grpo_constant_sgd": -0.06}
    others = {name: replace(all_arms()[name.split("_")[0]], name=name, group="update") for name in gains if "sgd" in name}
    tables = study_tables(results(gains), PROFILE, known := {**all_arms(), **others})
    for name in TABLES:
        write_csv(tables[name], name, tmp_path)
    assert tables["study_summary"]["arm"].tolist() == [a for a in known if a in gains]
    assert tables["study_runs"]["part"].value_counts().to_dict() == {"run": len(gains) * 3 * len(STEPS), "tail": len(gains) * 3}
    summary = tables["study_summary"].set_index("arm")
    assert math.isnan(summary.loc["grpo", "difference"]) and summary.loc["dapo", "difference"] > 0
    assert summary.loc["grpo", ["prompts", "rollouts", "tokens"]].tolist() == [960, 7680, 240_000]
    pairs = tables["study_comparisons"]
    assert set(pairs["family"]) == {"paper", "ablation", "batch", "post_hoc", "update"}
    assert set(pairs["metric"]) == {"outcome", "steps", "caught", "area", "best", "once", "tail", "silent"}
    sooner = pairs.query("metric == 'caught' and arm == 'diff_constant_sgd'")["difference"].item()
    assert sooner > 10, "steps are counted to the random order under the same loss and optimizer, not to grpo"
    assert (summary["best"] > 0).all() and np.allclose(summary["silent"], 40), "40 % of the groups in every step"
    last = tables["study_runs"].query("step == 30").groupby("arm")["mean_avg"].mean()
    assert summary["tail"].to_dict() == pytest.approx(last.to_dict()), "here the tail repeats the last evaluation"
    for figure in ("study_effects", "study_curves", "study_mixing", "study_updates"):
        names, function = FIGURES[figure]
        assert function(*(read_table(name, tmp_path) for name in names)).axes


def test_a_real_models_runs_have_rows_of_their_own() -> None:
    """They are judged by other problems at other steps, by sampled answers, and held against their own random order."""
    gains = {"grpo": 0.0, "diff": -0.05}
    toy, real = results(gains), results({f"{name}_real": gain for name, gain in gains.items()})
    answers = real["evaluations"]
    real["evaluations"] = answers.assign(sample_id=answers["sample_id"] + "-other", step=answers["step"] // 2)
    tables = study_tables({name: pd.concat([toy[name], real[name]]) for name in toy}, PROFILE, all_arms())
    alone = study_tables(toy, PROFILE, all_arms())
    for name, table in tables.items():
        kept = table[~table["arm"].str.endswith("_real")].reset_index(drop=True)
        pd.testing.assert_frame_equal(kept, alone[name], check_dtype=False, check_categorical=False)
    pairs = tables["study_comparisons"].query("family == 'real'")
    assert set(pairs["baseline"]) == {"grpo_real"} and set(pairs["arm"]) == {"diff_real"}
    assert pairs.query("metric == 'outcome'")["difference"].item() < 0
    assert set(tables["study_runs"].query("arm == 'diff_real' and part == 'run'")["step"]) == {step // 2 for step in STEPS}


def test_every_pair_names_arms_of_the_grid() -> None:
    named = {*study.COMPARISONS["arm"], *study.COMPARISONS["baseline"]}
    waiting = {f"{arm}_{'_'.join(setting)}" for arm in ORDERS for setting in set(RATES) - set(PILOTED)}
    assert named == set(all_arms()) | waiting, "an arm that nothing is compared with is trained in vain"
    assert {arm for arm in study.PAPER_VALUES["arm"] if not arm.endswith("_large")} <= named


# Beside the paper.

def solved_evaluations(solved: dict[str, list[float]], seeds: int = 3) -> pd.DataFrame:
    """Ten problems a set, ten attempts each; `solved` has the share of right attempts a problem at every tenth step."""
    rows = [
        (arm, seed, 10 * number, name, f"{name}-{i}", 10, round(10 * share) - (i < seed))
        for arm, seed, name, i in product(solved, range(seeds), SETS, range(10))
        for number, share in enumerate(solved[arm])
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_the_papers_means_follow_from_its_cells() -> None:
    """Guards the transcription: Tables 4, 5 and 7 print a mean over six benchmarks, rounded or cut."""
    paper = study.PAPER_VALUES
    for table, slack in (("4", 0.1), ("5", 1.0), ("7", 0.1)):
        part = paper[paper["table"] == table].pivot(index="arm", columns="column", values="value")
        cells = part.drop(columns="mean")
        assert cells.shape[1] == 6 and not cells.isna().any(axis=None)
        unequal = (cells.mean(axis=1) - part["mean"]).abs() > slack
        assert not unequal.any(), (table, part[unequal])
    steps = paper[(paper["table"] == "5") & (paper["column"] == "mean")].drop_duplicates("arm").set_index("arm")["value"]
    for claim in claims.CLAIMS.query("source == 'steps'").itertuples():
        change = 100 * (steps[claim.first] - steps[claim.second]) / steps[claim.second]
        assert claim.paper_value == pytest.approx(change, abs=0.06)


def test_cells_by_hand() -> None:
    frame = solved_evaluations({"grpo": [0.1, 0.2, 0.3, 0.4, 0.5], "saerl_grpo": [0.1, 0.2, 0.3, 0.5, 0.7]})
    steps = [(arm, seed, name, n) for arm, n in (("grpo", 10), ("saerl_grpo", 20)) for seed in range(3) for name in SETS]
    steps = pd.DataFrame(steps, columns=["arm", "seed", "eval_set", "steps"])
    found = study.beside_paper(frame, steps).set_index(["table", "arm", "benchmark"])
    # seeds 0, 1, 2 lose 0, 1 and 2 of 100 attempts: mean 1 point below the share
    assert found.loc[("4", "grpo", "GSM8K"), "our_value"] == pytest.approx(49.0)
    assert found.loc[("4", "grpo", "AIME24"), "our_value"] == 100.0, "the hardest set counts by Pass@k"
    assert found.loc[("8 Avg@8", "grpo", "AIME24"), "our_value"] == pytest.approx(49.0)
    assert found.loc[("4", "grpo", "mean"), "our_value"] == pytest.approx((5 * 49 + 100) / 6)
    assert found.loc[("5", "saerl_grpo", "mean"), "our_value"] == 20
    assert found.loc[("4", "diff", "GSM8K"), "n_seeds"] == 0 and math.isnan(found.loc[("4", "diff", "GSM8K"), "our_value"])
    view = study.table_view(found.reset_index(), "4")
    assert view.index.tolist() == ["grpo", "saerl_grpo"] and view.loc["grpo", ("GSM8K", "paper")] == 81.1


def test_mixing_by_hand() -> None:
    rises = [0.1, 0.2, 0.3, 0.4, 0.5]
    arms = {"grpo": rises, "minus_mix": rises, "saerl_grpo": [0.1, 0.3, 0.4, 0.5, 0.6], "mix_4": rises}
    found = study.mixing_rows(solved_evaluations(arms))
    assert found["arm"].tolist() == ["minus_mix", "saerl_grpo", "mix_4"] and found["paper_swapped"].tolist() == [0, 8, 16]
    assert found["difference"].round(6).tolist() == [0.0, 10.0, 0.0] and found["n_seeds"].tolist() == [3, 3, 3]
    assert found["paper_difference"].round(2).tolist() == [0.0, 1.9, 0.8]
    assert study.mixing_rows(solved_evaluations({"grpo": rises, "saerl_grpo": rises})).empty, "no h = 0"


def test_the_committed_tables_follow_from_the_committed_records() -> None:
    files = sorted((paths.PUBLISHED / RUNS).glob("*.parquet"))
    made = merged(files)
    cpus = made["provenance"].pivot(index="seed", columns="arm", values="cpu")
    for row in study.COMPARISONS.itertuples():
        pair = cpus.reindex(columns=[row.arm, row.baseline]).dropna()
        assert (pair[row.arm] == pair[row.baseline]).all(), "runs that are compared come from one type of processor"
    answers, folder = made["evaluations"], paths.PUBLISHED
    parts = answers.groupby(answers["arm"].str.endswith("_real"))  # judged by other problems at other steps
    outcome = pd.concat([outcomes(outcome_values(part.reset_index(drop=True))) for _, part in parts])
    summary = read_table("study_summary", folder).set_index("arm")
    assert set(summary.index) == set(made["budget"]["arm"])
    np.testing.assert_allclose(outcome.groupby("arm").mean()[summary.index], summary["outcome"], rtol=1e-5)
    pairs = read_table("study_comparisons", folder).query("metric == 'outcome'")
    for row in pairs.itertuples():
        paired = (outcome.loc[row.arm] - outcome.loc[row.baseline]).dropna()
        assert len(paired) == row.n_seeds and paired.mean() == pytest.approx(row.difference, abs=1e-3)
    told = f"{len(files)} of {len(cells_of(get_profile('study'), list(all_arms().values())))} runs"
    for document in (paths.ROOT / "README.md", paths.ROOT / "docs" / "study.md"):
        assert told in document.read_text(encoding="utf-8"), f"{document.name} says how many runs are made"


# The laptop's own runs.


def laptop_evaluations(gain: float) -> pd.DataFrame:
    """Two arms, two seeds, steps 0 and 20, two sets of four problems with two attempts; saerl solves `gain` more at the end."""
    rows = []
    for arm, seed, step, name, problem in product(("grpo", "saerl"), (0, 1), (0, 20), ("easy_a", "hardest"), range(4)):
        solved = 1 + seed + (step == 20) * (1 + gain * (arm == "saerl"))
        rows.append((arm, seed, step, name, f"{name}{problem}", 2, 2 * (problem < solved)))
    return pd.DataFrame(rows, columns=COLUMNS).assign(full=True)


def test_curves_differences_and_steps_of_the_laptop_by_hand() -> None:
    curves = study.learning_curves(laptop_evaluations(1))
    chosen = curves[(curves["arm"] == "saerl") & (curves["seed"] == 0) & (curves["step"] == 20)]
    assert chosen.set_index(["eval_set", "metric"])["value"].to_dict() == {
        ("easy_a", "avg_at_k"): 0.75, ("easy_a", "pass_at_k"): 0.75, ("hardest", "avg_at_k"): 0.75,
        ("hardest", "pass_at_k"): 0.75, ("all", "avg_at_k"): 0.75,
    }  # fmt: skip
    paired = study.paired_differences(curves).set_index(["eval_set", "metric"])
    assert paired.loc[("all", "avg_at_k"), "difference"] == pytest.approx(25.0)
    assert paired.loc[("hardest", "pass_at_k"), "n_seeds"] == 2
    with pytest.raises(TableError, match="lacks saerl or grpo for a seed"):
        study.paired_differences(curves[(curves["arm"] != "saerl") | (curves["seed"] != 1)])
    assert study.paired_differences(curves[curves["arm"] == "saerl"]).empty, "an arm that was not trained is no error"
    steps = study.steps_to_targets(laptop_evaluations(1), 4).set_index(["eval_set", "arm", "seed"])
    assert steps.loc[("easy_a", "grpo", 0), "target"] == pytest.approx(0.625), "the paper's rule"
    assert pd.isna(steps.loc[("easy_a", "grpo", 0), "steps"]) and steps.loc[("easy_a", "saerl", 0), "steps"] == 20


# Statistics.


def test_difference_interval_adds_half_widths_in_squares() -> None:
    assert difference_interval(Interval(0.7, 0.4, 1.0), Interval(0.2, -0.2, 0.6)) == pytest.approx((0.5, 0.0, 1.0))
    constant = Interval(0.2, math.nan, math.nan)
    assert difference_interval(Interval(0.7, 0.4, 0.9), constant) == pytest.approx((0.5, 0.2, 0.7))
    assert math.isnan(difference_interval(constant, Interval(0.1, 0.0, 0.2)).low)


def test_a_bootstrap_of_a_mean_has_its_standard_error() -> None:
    coin = np.array([0.0, 1.0] * 50)
    found = bootstrap_interval(lambda rows: float(coin[rows].mean()), 100, 1000, seed=0)
    assert found.value == 0.5 and found.high - found.low == pytest.approx(2 * 1.96 * 0.05, rel=0.15)
    x = np.arange(40.0)
    first, again, other = (bootstrap_interval(lambda rows: float(x[rows].mean()), 40, 50, seed=s) for s in (0, 0, 1))
    assert first == again != other


def test_a_bootstrap_over_runs_draws_them_too() -> None:
    """Two runs that differ by 1 and samples that do not: a resample has mean 0, 0.5 or 1."""
    found = statistics.bootstrap_runs(lambda rows, run: float(run), 30, 2, 500, seed=0)
    assert found == Interval(0.5, 0.0, 1.0)
    one = statistics.bootstrap_runs(lambda rows, run: float(rows.mean()), 30, 1, 50, seed=3)
    assert one == bootstrap_interval(lambda rows: float(rows.mean()), 30, 50, seed=3), "one run draws nothing"


def test_undefined_resamples_are_left_out_or_named() -> None:
    assert statistics.weighted_interval(np.array([1.0, math.nan, 3.0, 3.0])) == Interval(1.0, 3.0, 3.0)
    assert math.isnan(statistics.percentile_interval(1.0, [math.nan]).low)
    scores, positive = np.array([1.0, 2.0]), np.array([True, False])
    with pytest.raises(ValueError, match="more samples of the rarer class"):
        statistics.rank_metrics(scores, positive, np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]))


def test_one_value_a_seed_is_a_t_test() -> None:
    by_seed = np.array([0.0, 2.0, 4.0, 2.0])
    found, expected = over_seeds(by_seed), stats.ttest_1samp(by_seed, 0.0)
    assert found.p_value() == pytest.approx(expected.pvalue) and found.degrees == 3
    assert found.interval()[1:] == pytest.approx(tuple(expected.confidence_interval(0.95)))
    # n = 4, standard error sqrt(8 / 3) / 2: (3.1824 + 0.9785) times it
    assert found.detectable() == pytest.approx((3.1824 + 0.9785) * math.sqrt(8 / 3) / 2, abs=1e-3)
    assert over_seeds([0.5, 0.5, 0.5]).detectable() == 0.0 and over_seeds([0.5, 0.5]).p_value() == 0.0
    single = over_seeds([1.5])
    assert single.interval().value == 1.5 and math.isnan(single.interval().low) and math.isnan(single.detectable())
    with pytest.raises(ValueError, match="finite"):
        over_seeds([1.0, math.nan])


def block(values: np.ndarray, evaluations: int = 1) -> pd.DataFrame:
    columns = pd.MultiIndex.from_product([[evaluations], [f"p{i}" for i in range(values.shape[1])]])
    return pd.DataFrame(values, columns=columns)


def test_the_problems_part_by_hand() -> None:
    # seeds agree: the variance of a mean over problems is that of a sample of 4, (1 + 1 + 1 + 1) / 3 / 4
    same = np.tile([1.0, 3.0, 1.0, 3.0], (3, 1))
    assert statistics.problem_variance(block(same)) == pytest.approx(4 / 3 / 4)
    # a constant of each seed is no problem's, and of two strata each has its own mean
    assert statistics.problem_variance(block(same + np.array([[0.0], [5.0], [9.0]]))) == pytest.approx(4 / 3 / 4)
    apart = pd.concat([block(same), block(same + 100, 3)], axis=1)
    assert statistics.problem_variance(apart) == pytest.approx(2 * 0.5**2 * 4 / 3 / 4)


@pytest.mark.parametrize(("seeds", "problems", "rest"), [(1.0, 3.0, 0.0), (0.3, 1.0, 8.0)])
def test_intervals_hold_what_they_say_at_five_seeds(seeds: float, problems: float, rest: float) -> None:
    """Coverage of the 95 % interval when seeds, problems and attempts differ; percentiles over seeds would hold 90.5 %."""
    rng, inside = np.random.default_rng(5), 0
    index = pd.MultiIndex.from_product([["a", "b"], range(5)], names=["arm", "seed"])
    for _ in range(300):
        noise = seeds * rng.normal(size=(5, 1)) + problems * rng.normal(size=24) + rest * rng.normal(size=(5, 24))
        table = block(np.concatenate([noise, np.zeros_like(noise)])).set_axis(index)
        _, low, high = statistics.paired_estimate({"s": table}, "a", "b").interval()
        inside += low <= 0 <= high
    assert 0.92 < inside / 300 < 0.985


def test_what_a_comparison_finds_hangs_on_its_place_in_the_family() -> None:
    found = statistics.corrected([("a", "z"), ("b", "z"), ("c", "z")], [Estimate(m, 0.15, 1e9, 8) for m in (0.1, 0.2, 2.0)])
    # Holm's order is that of differences from 0: c 5 / 3 %, b 2.5 %, a none left
    assert found["detectable"][2] == pytest.approx((stats.norm.ppf(1 - 0.05 / 6) + stats.norm.ppf(0.8)) * 0.15)
    assert statistics.corrected([], []).empty


def test_a_measure_that_one_arm_lacks_is_compared_for_the_other_pairs() -> None:
    table, summary = (read_table(name, paths.PUBLISHED) for name in ("study_comparisons", "study_summary"))
    known = set(summary.dropna(subset="tail")["arm"])
    pairs = [table.loc[table["metric"] == metric, ["family", "arm", "baseline"]] for metric in ("outcome", "tail")]
    both = pairs[0][pairs[0][["arm", "baseline"]].isin(known).all(axis=1)]
    assert len(both) < len(pairs[0]) and set(both.itertuples(index=False)) == set(pairs[1].itertuples(index=False))
