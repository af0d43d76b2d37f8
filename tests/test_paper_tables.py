"""The study's tables beside the paper's: the paper's numbers, and ours on cases that a hand can check."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from saerl_lib import paths
from saerl_lib.report.arm_effects import final_values, outcome_values, outcomes
from saerl_lib.report.claims import STEPS_CLAIMS, batch_claim
from saerl_lib.report.figures import draw
from saerl_lib.report.paper_tables import (
    BENCHMARKS,
    batch_readings,
    beside_paper,
    last_rates,
    mixing_rows,
    paper_values,
    table_view,
)
from saerl_lib.report.schemas import read_table, write_csv
from saerl_lib.train.arms import all_arms

STEPS = (0, 10, 20, 30, 40)
SETS = tuple(name for name in BENCHMARKS.values() if name != "mean")


def evaluations(solved: dict[str, list[float]], seeds: int = 3) -> pd.DataFrame:
    """Ten problems a set, ten attempts each; `solved` has the share of right attempts a problem at each step."""
    rows = []
    for arm, shares in solved.items():
        for seed in range(seeds):
            for step, share in zip(STEPS, shares, strict=True):
                rows += [(arm, seed, step, name, f"{name}-{i}", 10, round(10 * share) - (i < seed))
                         for name in SETS for i in range(10)]  # fmt: skip
    return pd.DataFrame(rows, columns=["arm", "seed", "step", "eval_set", "sample_id", "attempts", "correct"])


def steps_of(arms: list[str]) -> pd.DataFrame:
    return pd.DataFrame([(a, s, name, 10 * (i + 1)) for i, a in enumerate(arms) for s in range(3) for name in SETS],
                        columns=["arm", "seed", "eval_set", "steps"])  # fmt: skip


def test_the_papers_means_follow_from_its_cells() -> None:
    """Guards the transcription: Tables 4, 5 and 7 print a mean over six benchmarks, rounded or cut."""
    paper = paper_values()
    for table, slack in (("4", 0.1), ("5", 1.0), ("7", 0.1)):
        part = paper[paper["table"] == table].pivot(index="arm", columns="column", values="value")
        cells = part.drop(columns="mean")
        assert cells.shape[1] == 6 and not cells.isna().any(axis=None)
        unequal = (cells.mean(axis=1) - part["mean"]).abs() > slack
        assert not unequal.any(), (table, part[unequal])


def test_every_arm_of_the_papers_tables_is_an_arm_of_the_grid() -> None:
    named = {arm for arm in paper_values()["arm"] if not arm.endswith("_large")}
    assert named <= set(all_arms())


def test_cells_by_hand() -> None:
    frame = evaluations({"grpo": [0.1, 0.2, 0.3, 0.4, 0.5], "saerl_grpo": [0.1, 0.2, 0.3, 0.5, 0.7]})
    found = beside_paper(frame, steps_of(["grpo", "saerl_grpo"])).set_index(["table", "arm", "benchmark"])
    # seeds 0, 1, 2 lose 0, 1 and 2 of 100 attempts: mean 1 point below the share
    assert found.loc[("4", "grpo", "GSM8K"), "our_value"] == pytest.approx(49.0)
    assert found.loc[("4", "grpo", "AIME24"), "our_value"] == 100.0, "the hardest set counts by Pass@k"
    assert found.loc[("8 Avg@8", "grpo", "AIME24"), "our_value"] == pytest.approx(49.0)
    assert found.loc[("4", "grpo", "mean"), "our_value"] == pytest.approx((5 * 49 + 100) / 6)
    gain = found.loc[("4 gain", "saerl_grpo", "GSM8K")]
    assert gain["our_value"] == pytest.approx(20.0) and gain["ci_low"] == pytest.approx(20.0)
    assert gain["paper_value"] == pytest.approx(2.4)
    assert found.loc[("5", "saerl_grpo", "mean"), "our_value"] == 20
    assert found.loc[("4", "diff", "GSM8K"), "n_seeds"] == 0 and math.isnan(found.loc[("4", "diff", "GSM8K"), "our_value"])
    view = table_view(found.reset_index(), "4")
    assert view.index.tolist() == ["grpo", "saerl_grpo"] and view.loc["grpo", ("GSM8K", "paper")] == 81.1


def test_small_integers_do_not_overflow() -> None:
    """The committed evaluations are stored as int8, where 100 x 2 would be -56."""
    frame = evaluations({"grpo": [0.1, 0.2, 0.3, 0.4, 0.5]})
    small = frame.astype({"correct": "int8", "attempts": "int8"})
    pd.testing.assert_series_equal(outcomes(outcome_values(small)), outcomes(outcome_values(frame)))
    pd.testing.assert_frame_equal(last_rates(small), last_rates(frame))
    for name, values in final_values(small).items():
        pd.testing.assert_frame_equal(values, final_values(frame)[name])


def test_batch_readings_by_hand() -> None:
    """At b the gain falls from 0.2 to 0 between the middle and the end; at 4b it is 0.1 at the end."""
    rises = [0.2, 0.3, 0.3, 0.5, 0.5]
    frame = evaluations({
        "grpo": rises, "saerl_grpo": [0.2, 0.5, 0.5, 0.5, 0.5], "grpo_4b": rises, "saerl_4b": [0.2, 0.3, 0.4, 0.6, 0.6],
    })  # fmt: skip
    sizes = {"grpo": 32, "saerl_grpo": 32, "grpo_4b": 128, "saerl_4b": 128}
    found = batch_readings(frame, sizes).set_index(["reading", "comparison"])
    # equal prompts: the last three evaluations 20, 30, 40; the paper's counts: b stops at 30, so 10, 20, 30
    assert found.loc[("equal prompts", "gain at b"), "difference"] == pytest.approx(100 * 0.2 / 3)
    assert found.loc[("the paper's counts", "gain at b"), "difference"] == pytest.approx(100 * 0.4 / 3)
    for reading in ("equal prompts", "the paper's counts"):
        assert found.loc[(reading, "gain at 4b"), "difference"] == pytest.approx(100 * 0.3 / 3)
        small, large = found.loc[(reading, "gain at b"), "difference"], found.loc[(reading, "gain at 4b"), "difference"]
        assert found.loc[(reading, "4b - b"), "difference"] == pytest.approx(large - small)
    assert batch_readings(frame[frame["arm"] != "saerl_4b"], sizes).empty


def test_mixing_by_hand_and_drawn(tmp_path) -> None:
    rises = [0.1, 0.2, 0.3, 0.4, 0.5]
    arms = {"grpo": rises, "minus_mix": rises, "saerl_grpo": [0.1, 0.3, 0.4, 0.5, 0.6], "mix_4": rises}
    frame = evaluations(arms)
    mixed = (("minus_mix", 0, 2.0), ("saerl_grpo", 2, 3.0), ("mix_4", 4, 4.0))
    diversity = pd.DataFrame([(arm, h, space, value * k) for arm, h, value in mixed
                              for space, k in (("PCA 2-D", 1), ("full", 5))],
                             columns=["arm", "swapped_per_batch", "space", "value"])  # fmt: skip
    found = mixing_rows(frame, steps_of(list(arms)), diversity)
    assert found["arm"].tolist() == ["minus_mix", "saerl_grpo", "mix_4"] and found["paper_swapped"].tolist() == [0, 8, 16]
    assert found["difference"].round(6).tolist() == [0.0, 10.0, 0.0] and found["diversity_2d"].tolist() == [1.0, 1.5, 2.0]
    assert found["paper_difference"].round(2).tolist() == [0.0, 1.9, 0.8]
    write_csv(found, "study_mixing", tmp_path)
    write_csv(beside_paper(frame, steps_of(list(arms))), "study_paper_tables", tmp_path)
    for name in ("study_mixing", "study_sets"):
        assert draw(name, tmp_path, tmp_path).stat().st_size > 10_000
    assert mixing_rows(frame[frame["arm"] != "minus_mix"], steps_of(["grpo"]), diversity).empty


def test_the_committed_tables_follow_from_the_committed_evaluations() -> None:
    folder = paths.FIGURES / "data"
    frame = pd.read_parquet(folder / "study_problems.parquet").astype({"arm": str, "eval_set": str, "sample_id": str})
    outcome = outcomes(outcome_values(frame))
    summary = read_table("study_summary", folder).set_index("arm")
    np.testing.assert_allclose(outcome.groupby("arm").mean()[summary.index], summary["outcome"], rtol=1e-5)
    pairs = read_table("study_comparisons", folder).query("metric == 'outcome'")
    for row in pairs.itertuples():
        paired = (outcome.loc[row.arm] - outcome.loc[row.baseline]).dropna()
        assert len(paired) == row.n_seeds and paired.mean() == pytest.approx(row.difference, abs=1e-3)
    rates = last_rates(frame).query("eval_set == 'mean'").groupby("arm")["avg"].mean()
    np.testing.assert_allclose(rates[summary.index], summary["final_mean_avg"], rtol=1e-5)


def test_the_papers_values_of_steps_and_batch_claims_follow_from_its_tables() -> None:
    paper = paper_values()
    steps = paper[(paper["table"] == "5") & (paper["column"] == "mean")].drop_duplicates("arm").set_index("arm")["value"]
    for (arm, baseline), (_, saved) in STEPS_CLAIMS.items():
        assert saved == pytest.approx(100 * (steps[baseline] - steps[arm]) / steps[baseline], abs=0.06)
    gains = paper[paper["table"] == "8 Avg@8"].groupby("arm")["value"].mean()
    readings = pd.DataFrame([("the paper's counts", "gain at b", -6.0, -9.0, -3.0, 5)],
                            columns=["reading", "comparison", "difference", "ci_low", "ci_high", "n_seeds"])  # fmt: skip
    (row,) = batch_claim(readings)
    assert row["paper_value"] == pytest.approx(gains["saerl_grpo"] - gains["grpo"], abs=0.01)
    assert row["verdict"] == "not reproduced" and batch_claim(readings.assign(n_seeds=3))[0]["verdict"] == "undecided"
