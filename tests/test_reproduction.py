"""Comparing a rerun with what is published: every outcome, a perturbed run, and publishing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from saerl_lib import paths
from saerl_lib.notebooks import UserError
from saerl_lib.report import reproduction
from saerl_lib.report.reproduction import INTERVAL, OUTSIDE, SAME, TOLERANCE, compare, compare_table, publish, report
from saerl_lib.report.tables import TableError


def outcomes(old: dict, new: dict, column: str) -> list[str]:
    found = compare_table(pd.DataFrame(old), pd.DataFrame(new))
    return found.loc[found["column"] == column, "outcome"].tolist()


def test_values_are_judged_by_the_published_interval_of_their_row() -> None:
    old = {"name": list("abcd"), "value": [1.0, 1.0, 1.0, 1.0], "ci_low": [0.5] * 4, "ci_high": [1.5] * 4}
    new = {**old, "value": [1.0, 1.0005, 1.4, 1.6], "ci_low": [0.5, 0.5, 0.9, 1.1]}
    assert outcomes(old, new, "value") == [SAME, TOLERANCE, INTERVAL, OUTSIDE]
    assert outcomes(old, new, "ci_low") == [SAME, SAME, TOLERANCE, OUTSIDE]


def test_rows_are_matched_by_their_text_whatever_their_order() -> None:
    old = {"name": ["a", "b"], "value": [1.0, 2.0], "ci_low": [0.9, 1.9], "ci_high": [1.1, 2.1]}
    new = {"name": ["c", "b", "a"], "value": [9.0, 2.0, 1.0], "ci_low": [8.0, 1.9, 0.9], "ci_high": [9.5, 2.1, 1.1]}
    assert outcomes(old, new, "value") == [SAME, SAME]
    lacking = {name: values[:2] for name, values in new.items()}
    assert outcomes(old, lacking, "value") == [OUTSIDE, SAME]


def test_other_columns_are_compared_by_their_mean_directions_as_words_and_a_missing_one_is_outside() -> None:
    values = np.random.default_rng(0).normal(size=200)
    for rerun, outcome in ((values, SAME), (values[::-1], TOLERANCE), (values + 1, OUTSIDE)):
        assert outcomes({"x": values}, {"x": rerun}, "x") == [outcome]
    assert outcomes({"direction": ["undecided"]}, {"direction": ["agrees"]}, "direction") == [OUTSIDE]
    assert outcomes({"x": [1.0], "y": [2.0]}, {"x": [1.0]}, "y") == [OUTSIDE]


def test_intervals_that_stand_behind_their_value_are_found() -> None:
    columns = ["cluster_c", "A", "A_low", "A_high", "rho_star", "ci_low", "ci_high", "ari_mean", "ari_low", "ari_high", "bin_low"]
    found = reproduction._intervals(columns)
    assert found == {"A": ("A_low", "A_high"), "rho_star": ("ci_low", "ci_high"), "ari_mean": ("ari_low", "ari_high")}


@pytest.fixture
def perturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of `laptop` in which every number came out differently, a little within its interval."""
    monkeypatch.setenv("SAERL_HOME", str(tmp_path))
    folder = paths.figure_data_dir("laptop")
    folder.mkdir(parents=True)
    for path in paths.PUBLISHED.glob("*.csv"):
        frame = pd.read_csv(path)
        for column in frame.select_dtypes("float"):
            frame[column] *= 1 + 1e-5
        frame.to_csv(folder / path.name, index=False)
    return folder


def test_a_perturbed_run_is_within_tolerance_and_leaves_the_published_files_alone(perturbed: Path) -> None:
    before = {path: path.read_bytes() for path in paths.FIGURES.rglob("*") if path.is_file()}
    text, outside = report("laptop")
    assert outside == 0 and "0 outside" in text
    numbers = compare("laptop")
    assert set(numbers["outcome"]) <= {SAME, TOLERANCE, INTERVAL} and (numbers["outcome"] == TOLERANCE).sum() > 100
    assert set(numbers["table"]) == set(reproduction.published_tables("laptop", paths.PUBLISHED))
    assert len(pd.read_csv(paths.profile_dir("laptop") / "reproduction.csv")) == len(numbers)
    assert "Reproduction, profile laptop" in (paths.profile_dir("laptop") / "reproduction.html").read_text(encoding="utf-8")
    assert {path: path.read_bytes() for path in before} == before


def test_what_changed_for_good_is_outside_and_named(perturbed: Path) -> None:
    probes = pd.read_csv(perturbed / "label_curve.csv")
    probes.loc[0, "value"] = probes["ci_high"].max() + 1
    probes.to_csv(perturbed / "label_curve.csv", index=False)
    (perturbed / "filter.csv").unlink()
    text, outside = report("laptop")
    assert outside == 2 and "outside: label_curve" in text and "outside: filter" in text


def test_publishing_replaces_the_profile_s_tables_and_says_where_they_come_from(
    perturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "clone"
    shutil.copytree(paths.FIGURES, root / "figures")
    shutil.copytree(paths.ROOT / "docs", root / "docs")
    for name in ("README.md", "notebooks/README.md"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(paths.ROOT / name, root / name)
    monkeypatch.setattr(paths, "ROOT", root)
    monkeypatch.setattr(paths, "FIGURES", root / "figures")
    monkeypatch.setattr(paths, "PUBLISHED", root / "figures" / "data")
    monkeypatch.setattr(paths, "NOTEBOOKS", root / "notebooks")
    monkeypatch.setattr("saerl_lib.report.reproduction.draw_all", lambda data, figures: [])
    study = (paths.PUBLISHED / "study_runs.csv").read_bytes()
    (perturbed / "runs").mkdir()
    (perturbed / "runs" / "a-seed0.parquet").write_bytes(b"the record of a run")
    changed = {path.name for path in publish("laptop")}
    assert {"label_curve.csv", "learning_curves.csv"} <= changed and "study_runs.csv" not in changed
    assert (paths.PUBLISHED / "study_runs.csv").read_bytes() == study
    assert (paths.PUBLISHED / "runs" / "a-seed0.parquet").read_bytes() == b"the record of a run"
    assert (paths.PUBLISHED / "label_curve.csv").read_bytes() == (perturbed / "label_curve.csv").read_bytes()
    assert {"processor", "threads", "versions", "commit"} <= set(reproduction.published_records()["laptop"])
    (root / "notebooks" / "00_data.ipynb").write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    with pytest.raises(UserError, match="no run of the present 00_data.ipynb"):
        publish("laptop")
    (perturbed / "filter.csv").unlink()
    with pytest.raises(FileNotFoundError, match="lacks filter; run ./run_all.sh --profile laptop to its end first"):
        publish("laptop")


def test_a_profile_without_published_results_says_so() -> None:
    with pytest.raises(TableError, match="profile smoke has no published results"):
        compare("smoke")
