"""What is told of the study's orders, on eight samples that a hand can count."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest

from saerl_lib import paths
from saerl_lib.plan.batch_plan import make_pool, plan_of
from saerl_lib.report.tables import read_table
from saerl_lib.studies.results import COLUMNS, facts
from saerl_lib.train.arms import ArmPool


def test_what_an_order_sorts_and_mixes_by_hand() -> None:
    ids, clusters = [f"s{i}" for i in range(8)], np.array([0, 0, 0, 0, 0, 1, 1, 1])
    zeros = np.zeros(8)
    order = np.array([0, 1, 2, 3, 5, 4, 7, 6])
    swapped = np.array([-1, -1, -1, 2, -1, 1, -1, -1])  # one sample of the batches 1 and 2 each
    plan = plan_of(make_pool(ids, clusters, zeros, zeros, zeros + 1), order, swapped, "x", b=2, h=1)
    pool = ArmPool(pd.DataFrame({"sample_id": ids, "label": np.arange(8.0)}), {})
    found = facts(plan, pool)
    assert list(found) == COLUMNS[1:]
    assert (found["batches"], found["swapped_batches"], found["swapped_batches_second_half"]) == (4, 0.5, 0.5)
    assert (found["swapped_samples"], found["largest_cluster"]) == (0.25, 0.625)
    # two neighbours changed places twice: 1 - 6 (1 + 1 + 1 + 1) / (8 (64 - 1))
    assert found["label_rho"] == pytest.approx(1 - 24 / 504)
    assert found["plan_hash"] == hashlib.sha256(b"s0\ns1\ns2\ns3\ns5\ns4\ns7\ns6").hexdigest()[:12]


def test_the_larger_policy_was_trained_on_the_plans_of_the_smaller_one() -> None:
    hashes = read_table("study_plans", paths.FIGURES / "data").set_index("arm")["plan_hash"]
    for arm in ("grpo", "saerl_grpo"):
        assert hashes[f"{arm}_large"] == hashes[arm]
    assert hashes["grpo"] != hashes["saerl_grpo"]
