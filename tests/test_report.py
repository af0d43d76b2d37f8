"""Tables, figures and claims, from the committed tables and from small ones that a hand can check; a rerun beside them."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import matplotlib
import matplotlib.text
import numpy as np
import pandas as pd
import pytest

from saerl_lib import paths
from saerl_lib.notebooks import UserError
from saerl_lib.report import claims, figures, plots, reproduction
from saerl_lib.report.figures import FIGURES
from saerl_lib.report.reproduction import INTERVAL, OUTSIDE, SAME, TOLERANCE, compare, compare_table, publish, report
from saerl_lib.report.study import study_trend
from saerl_lib.report.tables import TableError, as_table, finding_markdown, read_table, write_csv

# Figures.


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_a_title_and_can_be_read_at_eight_centimetres(name: str) -> None:
    names, function = FIGURES[name]
    shown = [read_table(table, paths.PUBLISHED) for table in names]
    if any(table.empty for table in shown):
        pytest.skip("no run of it is finished yet")
    figure = function(*shown)
    texts = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text()]
    width, height = figure.get_size_inches()
    assert min(t.get_fontsize() for t in texts) * (8 / 2.54) / width >= 5 and height * plots.DPI <= 900
    title = figure.legends[0].get_title().get_text() if figure.legends else figure.get_suptitle()
    assert re.search(r"\d", title) and "nan" not in " ".join(t.get_text() for t in texts), "it says what was found"
    assert "n = " in " ".join(t.get_text() for t in texts).replace("\u00a0", " ")
    figure.savefig(buffer := io.BytesIO(), dpi=40)
    assert len(buffer.getvalue()) > 2000


def test_a_figure_without_rows_is_not_drawn(tmp_path: Path) -> None:
    write_csv(read_table("study_mixing", paths.PUBLISHED).iloc[:0], "study_mixing", tmp_path)
    with pytest.raises(TableError, match="figure study_mixing has nothing to show: no run of it is finished yet"):
        figures.draw("study_mixing", tmp_path, tmp_path)
    assert figures.draw_all(tmp_path, tmp_path) == []


def test_the_method_picture_shows_claims_beside_the_papers() -> None:
    table = claims.build_claims(paths.PUBLISHED)
    ours = table["claim"].str.startswith("SAERL on GRPO against GRPO: accuracy")
    table.loc[ours, ["paper_value", "our_value", "ci_low", "ci_high", "direction"]] = (2.0, -1.0, -3.0, -0.5, "opposite")
    figure = FIGURES["method"][1](table)
    texts = {text.get_text() for text in figure.axes[1].texts}
    assert {"-1.0 (-3.0 to -0.5)", "paper"} <= texts and "against it" in figure.get_suptitle()
    rows = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert rows == re.findall(r"^\| ([^|]+[a-z%]) \| [-\d]", finding_markdown(table), re.M), "one list of main claims"
    point = (-0.5, float(rows.index("SAERL vs random, points")))  # half of the paper's, in the other direction
    assert point in {tuple(xy) for line in figure.axes[1].lines for xy in line.get_xydata().tolist()}
    steps = table["claim"].str.startswith("SAERL on GRPO against GRPO: steps")  # more steps, where the paper has fewer
    assert table.loc[steps, "paper_value"].item() < 0 < table.loc[steps, "our_value"].item()
    assert f"+{table.loc[steps, 'our_value'].item():.1f} (+" in finding_markdown(table)
    waiting = table.assign(our_value=np.nan, ci_low=np.nan, ci_high=np.nan, direction="not run", scale=np.nan, n_seeds=0)
    assert "not run" in {text.get_text() for text in FIGURES["method"][1](waiting).axes[1].texts}


@pytest.mark.parametrize("name", ["plan_sensitivity", "study_effects"])
def test_a_second_draw_gives_the_same_bytes_whatever_the_users_style(name: str, tmp_path: Path) -> None:
    first = figures.draw(name, paths.PUBLISHED, tmp_path / "a")
    assert first.name == f"{name}.png"
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 5, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        figures.draw(name, paths.PUBLISHED, tmp_path / "b")
    for suffix in ("png", "pdf"):
        data = (tmp_path / "a" / f"{name}.{suffix}").read_bytes()
        assert len(data) > 5000 and b"CreationDate" not in data
        assert data == (tmp_path / "b" / f"{name}.{suffix}").read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [f"{name}.pdf", f"{name}.png"]


def test_curves_of_one_seed_have_no_band_and_of_two_their_t_interval() -> None:
    rows = [("grpo", seed, step, 2.0 * seed + step) for seed in (0, 1) for step in (1, 2)]
    runs = pd.DataFrame(rows, columns=["arm", "seed", "step", "reward"])
    (one, _), two = (plots.over_runs(part, {"reward": "R"}).itertuples() for part in (runs[runs["seed"] == 0], runs))
    assert one.value == 1.0 and np.isnan(one.ci_low)
    first = next(two)  # 1 and 3: t of one degree of freedom times a standard error of 1
    assert (first.group, first.x, first.value) == ("grpo", 1, 2.0) and first.ci_high == pytest.approx(2 + 12.706, abs=1e-3)


def test_a_forest_puts_values_in_their_rows_and_leaves_missing_ones_empty() -> None:
    rows = [("p", "a", 1.0, 0.5, 2.0, 3.0), ("p", "b", np.nan, np.nan, np.nan, np.nan), ("q", "b", 2.0, np.nan, np.nan, np.nan)]
    table = pd.DataFrame(rows, columns=["panel", "row", "value", "ci_low", "ci_high", "paper"])
    first, second = plots.forest(table, rows=["a", "b", "c"], labels={"a": "A"}).axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["A", "b", "c"] and first.get_ylim() == (2.5, -0.5)
    assert [line.get_xydata().tolist() for line in second.lines if line.get_marker() == "o"] == [[[2.0, 1.0]]]
    (bars,) = first.containers[0].lines[2]
    assert [path.vertices.tolist() for path in bars.get_paths()] == [[[0.5, 0.0], [2.0, 0.0]]]


# Tables.


def test_missing_table_column_and_figure_are_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="calibration.csv is missing; run ./run_all.sh --only 04"):
        figures.draw("calibration", tmp_path, tmp_path)
    frame = read_table("calibration", paths.PUBLISHED).drop(columns="ci_low")
    frame.to_csv(tmp_path / "calibration.csv", index=False)
    with pytest.raises(TableError, match="lacks column ci_low; notebook 04"):
        figures.draw("calibration", tmp_path, tmp_path)
    (tmp_path / "calibration.csv").write_text("")
    with pytest.raises(TableError, match="is not a CSV table"):
        figures.draw("calibration", tmp_path, tmp_path)
    frame.assign(ci_low=1.0, old=2).to_csv(tmp_path / "calibration.csv", index=False)
    assert "old" not in read_table("calibration", tmp_path), "a column of an earlier version is left out"
    with pytest.raises(TableError, match="'pie' is not known"):
        figures.draw("pie", paths.PUBLISHED, tmp_path)
    with pytest.raises(TableError, match="'filters' is not known"):
        write_csv(frame, "filters", tmp_path)
    assert not (tmp_path / "calibration.png").exists()


def test_write_csv_has_a_fixed_form(tmp_path: Path) -> None:
    none = (np.nan,) * 3
    rows = [("a", 1 / 3, *none, 12345678.0, True, 1000, "rho", None), ("b", 2, 1, 3, 0.1, 3, False, np.nan, "", "n")]
    table = as_table("world_gates", rows)
    path = write_csv(table[list(reversed(table.columns))], "world_gates", tmp_path)
    assert path.read_bytes() == (
        b"gate,value,ci_low,ci_high,low,high,met,n,unit,note\na,0.333333,,,,1.23457e+07,true,1000,rho,\nb,2,1,3,0.1,3,false,,,n\n"
    )
    assert list(tmp_path.iterdir()) == [path]
    assert read_table("world_gates", tmp_path)["met"].tolist() == [True, False]
    table = as_table("sae_quality", [("e", "q", 1 / 3, None, None, None, 5), ("e", "r", 0.5, None, 2 / 3, True, 5)])
    text = write_csv(table, "sae_quality", tmp_path).read_text()
    assert text.splitlines()[1:] == ["e,q,0.333333,,,,5", "e,r,0.5,,0.666667,true,5"], "mixed columns keep the form"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.iloc[:0], "no rows"), (lambda f: f.assign(extra=1), "unknown column extra"),
        (lambda f: f.assign(recall=f["recall"] * 100), "write fractions, not percent"),
        (lambda f: f.assign(kept=np.inf), "infinite"), (lambda f: f.assign(rule=None), "column rule is empty in row 0"),
    ],
)  # fmt: skip
def test_write_csv_rejects_a_bad_table(change, message: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=message):
        write_csv(change(read_table("real_filter", paths.PUBLISHED)), "real_filter", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_trend_over_settings_is_said_where_the_ranks_support_it() -> None:
    ends = [30.0, 32.0, 34.0, 36.0, 38.0, 40.0]
    said = {name: study_trend(pd.DataFrame({"end": ends, "value": values})) for name, values in
            {"falls": (3, 2, 1, 0.5, -1, -2), "below": (-1, -2, -3, -4, -5, -6),
             "mixed": (1, -1, 2, -2, 1, -3)}.items()}
    assert "farthest and gains where it gets least far (6 settings" in said["falls"]
    assert said["below"].startswith("easy to hard does worse the farther") and "without a clear trend" in said["mixed"]


# Claims.


def test_without_the_order_gate_or_with_few_seeds_verdicts_on_order_are_undecided(tmp_path: Path) -> None:
    shutil.copytree(paths.PUBLISHED, tmp_path, dirs_exist_ok=True)
    pairs, gates = (read_table(name, paths.PUBLISHED) for name in ("study_comparisons", "world_gates"))

    def built(seeds: int, gated: bool) -> pd.DataFrame:
        write_csv(pairs.assign(difference=2.0, holm_low=1.0, holm_high=3.0, n_seeds=seeds), "study_comparisons", tmp_path)
        write_csv(gates[gated | (gates["gate"] != claims.ORDER_GATE)], "world_gates", tmp_path)
        return claims.build_claims(tmp_path)

    met = built(8, True)
    order = met["claim"].str.startswith("SAERL on GRPO against GRPO")
    assert order.any() and set(met.loc[order, "direction"]) == {"agrees"}
    same = ~met["command"].str.endswith("--profile study", na=False)
    for unmet in (built(8, False), built(3, True)):
        assert set(unmet.loc[order, "direction"]) == {"undecided"}
        assert unmet.loc[same, "direction"].tolist() == met.loc[same, "direction"].tolist()


def test_the_committed_claims_follow_from_the_committed_tables_whatever_the_order_of_their_rows(tmp_path: Path) -> None:
    shutil.copytree(paths.PUBLISHED, tmp_path, dirs_exist_ok=True)
    for name in ("probe_ladder", "real_filter", "real_separation", "inbatch_diversity"):
        write_csv(read_table(name, paths.PUBLISHED).iloc[::-1], name, tmp_path)
    path = write_csv(claims.build_claims(tmp_path), "claims", tmp_path)
    assert path.read_bytes() == (paths.PUBLISHED / "claims.csv").read_bytes()
    told = read_table("claims", tmp_path).set_index("claim")
    assert (told["direction"] == "not comparable").sum() == 2, "preparation: other models; diversity: another share exchanged"
    begin = ("SAERL on ", "SAERL at ", "Ablation", "Mixing study")
    assert set(told.index[told["scale"] == claims.BLURRED]) == {name for name in told.index
                                                               if name.startswith(begin)
                                                               and told.loc[name, "direction"] != "not run"}  # fmt: skip


# A rerun beside what is published.


def outcomes(old: dict, new: dict, column: str) -> list[str]:
    found = compare_table(pd.DataFrame(old), pd.DataFrame(new))
    return found.loc[found["column"] == column, "outcome"].tolist()


@pytest.mark.parametrize(("value", "bound"), [("value", "ci"), ("A", "A"), ("ari_mean", "ari")])
def test_values_are_judged_by_the_published_interval_of_their_row(value: str, bound: str) -> None:
    low, high = f"{bound}_low", f"{bound}_high"
    old = {"name": list("abcd"), value: [1.0, 1.0, 1.0, 1.0], low: [0.5] * 4, high: [1.5] * 4}
    new = {**old, value: [1.0, 1.0005, 1.4, 1.6], low: [0.5, 0.5, 0.9, 1.1]}
    assert outcomes(old, new, value) == [SAME, TOLERANCE, INTERVAL, OUTSIDE]
    assert outcomes(old, new, low) == [SAME, SAME, TOLERANCE, OUTSIDE]


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
        publish("smoke")
