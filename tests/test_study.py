"""From evaluations to curves, differences, steps to target; the gates of reserved runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from saerl_lib.report.laptop_runs import learning_curves, paired_differences, steps_to_targets
from saerl_lib.report.schemas import TableError
from saerl_lib.rl.gates import gate_row
from saerl_lib.rl.reserved import order_gates


def evaluations(gain: float) -> pd.DataFrame:
    """Two arms, two seeds, steps 0 and 20, two sets of four problems with two attempts; saerl solves `gain` more at the end."""
    rows = []
    for arm in ("grpo", "saerl"):
        for seed in (0, 1):
            for step in (0, 20):
                for name in ("easy_a", "hardest"):
                    solved = 1 + seed + (step == 20) + (gain if arm == "saerl" and step == 20 else 0)
                    for problem in range(4):
                        correct = 2 if problem < solved else 0
                        rows.append((arm, seed, step, name, True, f"{name}{problem}", 2, correct))
    columns = ["arm", "seed", "step", "eval_set", "full", "sample_id", "attempts", "correct"]
    return pd.DataFrame(rows, columns=columns)


def test_curves_by_hand() -> None:
    curves = learning_curves(evaluations(1))
    chosen = curves[(curves["arm"] == "saerl") & (curves["seed"] == 0) & (curves["step"] == 20)]
    assert chosen.set_index(["eval_set", "metric"])["value"].to_dict() == {
        ("easy_a", "avg_at_k"): 0.75, ("easy_a", "pass_at_k"): 0.75, ("hardest", "avg_at_k"): 0.75,
        ("hardest", "pass_at_k"): 0.75, ("all", "avg_at_k"): 0.75,
    }  # fmt: skip
    assert chosen.loc[chosen["eval_set"] == "all", "n_problems"].item() == 8


def test_paired_difference_is_in_points_over_matched_seeds() -> None:
    table = paired_differences(learning_curves(evaluations(1))).set_index(["eval_set", "metric"])
    assert table.loc[("all", "avg_at_k"), "difference"] == pytest.approx(25.0)
    assert table.loc[("hardest", "pass_at_k"), "n_seeds"] == 2
    assert (table["ci_low"] <= table["difference"]).all()


def test_a_missing_seed_is_an_error_not_a_smaller_n() -> None:
    frame = evaluations(0)
    lacking = frame[~((frame["arm"] == "saerl") & (frame["seed"] == 1))]
    with pytest.raises(TableError, match="lacks saerl or grpo for a seed"):
        paired_differences(learning_curves(lacking))


def test_steps_to_target_by_the_papers_rule() -> None:
    table = steps_to_targets(evaluations(1), 4).set_index(["eval_set", "arm", "seed"])
    assert table.loc[("easy_a", "grpo", 0), "target"] == pytest.approx(0.625)
    assert pd.isna(table.loc[("easy_a", "grpo", 0), "steps"])
    assert table.loc[("easy_a", "saerl", 0), "steps"] == 20


def reserved(random: float, ascending: float, descending: float, noise: float) -> pd.DataFrame:
    """Twelve evaluations that rise to the given ends, two seeds with opposite noise."""
    rows = []
    for arm, end in (("random", random), ("ascending", ascending), ("descending", descending)):
        for seed in (0, 1):
            for index in range(12):
                shift = noise * (1 if seed else -1) * (arm == "random")
                accuracy = round(64 * (10 + (end - 10) * index / 11 + shift * (index > 0)) / 100)
                rows += [(arm, seed, 20 * index, "easy_a", f"p{p}", 1, int(p < accuracy)) for p in range(64)]
    return pd.DataFrame(rows, columns=["arm", "seed", "step", "eval_set", "sample_id", "attempts", "correct"])


def test_sensitivity_is_large_only_when_orders_differ() -> None:
    name = "sensitivity: order effect / minimum detectable effect"
    far = order_gates(reserved(50, 50, 20, 3), 64, 3)
    near = order_gates(reserved(50, 50, 50, 3), 64, 3)
    assert far[name]["value"] > near[name]["value"]
    assert near[name]["value"] < 1
    assert far["grpo: gain in the last quarter, points"]["value"] > 0


def test_gate_rows_say_whether_they_are_met() -> None:
    assert gate_row("transfer: other domains' gain / own gain", 0.2, (None, 0.5), 2, "")["met"]
    assert not gate_row("transfer: other domains' gain / own gain", np.nan, (None, 0.5), 2, "")["met"]
