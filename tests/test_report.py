"""Tables, figures, claims and Markdown, from small synthetic tables built here."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from sample_tables import frame, property_tables, run_tables, write_tables

from saerl_lib.artifacts import ArtifactError
from saerl_lib.report import claims, figures, plots, tables
from saerl_lib.report.plots import FIGURES
from saerl_lib.report.statistics import Interval
from saerl_lib.report.tables import SCHEMAS, TableError, read_table, write_csv


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tables(tmp_path_factory.mktemp("data"))


# Figures.


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_with_text_of_seven_points_or_more(name: str, data_folder: Path) -> None:
    names, function = FIGURES[name]
    figure = function(*(read_table(table, data_folder) for table in names))
    texts = figure.findobj(lambda artist: hasattr(artist, "get_fontsize") and hasattr(artist, "get_text"))
    assert min(t.get_fontsize() for t in texts if t.get_text()) >= 7
    figure.savefig(buffer := io.BytesIO(), dpi=40)
    assert len(buffer.getvalue()) > 2000


@pytest.mark.parametrize("name", ["pass_rates", "calibration", "label_curve"])
def test_a_second_draw_gives_the_same_bytes_whatever_the_users_style(name: str, data_folder: Path, tmp_path: Path) -> None:
    first = figures.draw(name, data_folder, tmp_path / "a")
    assert first.name == f"{name}.png"
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 5, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        figures.draw(name, data_folder, tmp_path / "b")
    for suffix in ("png", "pdf"):
        data = (tmp_path / "a" / f"{name}.{suffix}").read_bytes()
        assert len(data) > 5000 and b"CreationDate" not in data
        assert data == (tmp_path / "b" / f"{name}.{suffix}").read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [f"{name}.pdf", f"{name}.png"]


@pytest.mark.parametrize("seeds", [1, 32])
def test_training_figures_take_one_seed_and_many(seeds: int) -> None:
    runs = run_tables(seeds)
    runs["paired_difference"].loc[:, ["ci_low", "ci_high", "minimum_detectable_effect"]] = np.nan
    for name in ("learning_curves", "training_curves", "paired_difference"):
        assert FIGURES[name][1](runs[name]).axes


def test_a_forest_puts_values_in_their_rows_and_leaves_missing_ones_empty() -> None:
    rows = [("p", "a", 1.0, 0.5, 2.0, 3.0), ("p", "b", np.nan, np.nan, np.nan, np.nan), ("q", "b", 2.0, np.nan, np.nan, np.nan)]
    table = pd.DataFrame(rows, columns=["panel", "row", "value", "ci_low", "ci_high", "paper"])
    first, second = plots.forest(table, rows=["a", "b", "c"], labels={"a": "A"}).axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["A", "b", "c"] and first.get_ylim() == (2.5, -0.5)
    assert [line.get_xydata().tolist() for line in second.lines if line.get_marker() == "o"] == [[[2.0, 1.0]]]
    (bars,) = first.containers[0].lines[2]
    assert [path.vertices.tolist() for path in bars.get_paths()] == [[[0.5, 0.0], [2.0, 0.0]]]


# Tables.


def test_missing_table_column_and_figure_are_named(data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TableError, match="calibration.csv is missing; run ./run_all.sh --only 04"):
        figures.draw("calibration", tmp_path, tmp_path)
    frame = read_table("calibration", data_folder).drop(columns="ci_low")
    frame.to_csv(tmp_path / "calibration.csv", index=False)
    with pytest.raises(TableError, match="lacks column ci_low; notebook 04"):
        figures.draw("calibration", tmp_path, tmp_path)
    (tmp_path / "calibration.csv").write_text("")
    with pytest.raises(TableError, match="is not a CSV table"):
        figures.draw("calibration", tmp_path, tmp_path)
    with pytest.raises(TableError, match="'pie' is not known"):
        figures.draw("pie", data_folder, tmp_path)
    assert not (tmp_path / "calibration.png").exists()


def test_write_csv_has_a_fixed_form(tmp_path: Path) -> None:
    rows = [("a", 1 / 3, np.nan, 12345678.0, True, 1000, "rho", None), ("b", 2, 0.1, 3, False, np.nan, "", "n")]
    table = frame("world_gates", rows)
    path = write_csv(table[list(reversed(table.columns))], "world_gates", tmp_path)
    assert path.read_bytes() == (
        b"gate,value,low,high,met,n,unit,note\na,0.333333,,1.23457e+07,true,1000,rho,\nb,2,0.1,3,false,,,n\n"
    )
    assert list(tmp_path.iterdir()) == [path]
    assert read_table("world_gates", tmp_path)["met"].tolist() == [True, False]
    table = frame("sae_quality", [("e", "q", 1 / 3, None, None, None, 5), ("e", "r", 0.5, None, 2 / 3, True, 5)])
    text = write_csv(table, "sae_quality", tmp_path).read_text()
    assert text.splitlines()[1:] == ["e,q,0.333333,,,,5", "e,r,0.5,,0.666667,true,5"], "mixed columns keep the form"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.iloc[:0], "no rows"), (lambda f: f.assign(extra=1), "unknown column extra"),
        (lambda f: f.assign(share=f["share"] * 100), "write fractions, not percent"),
        (lambda f: f.assign(n=np.inf), "infinite"), (lambda f: f.assign(source=None), "column source is empty in row 0"),
    ],
)  # fmt: skip
def test_write_csv_rejects_a_bad_table(change, message: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=message):
        write_csv(change(property_tables()["filter_scores"]), "filter_scores", tmp_path)
    assert not list(tmp_path.iterdir())


def test_unwritable_folder_and_unknown_table(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot write"):
        write_csv(property_tables()["filter_scores"], "filter_scores", tmp_path / "file")
    with pytest.raises(TableError, match="'filters' is not known"):
        write_csv(property_tables()["filter_scores"], "filters", tmp_path)


def test_every_table_has_a_schema_with_known_columns() -> None:
    for schema in SCHEMAS.values():
        assert set(schema.optional) | set(schema.fractions) <= set(schema.columns)
    assert {name for names, _ in FIGURES.values() for name in names} <= set(SCHEMAS)


def test_markdown_tables(data_folder: Path) -> None:
    text = tables.claims_markdown(claims.build_claims(data_folder))
    topic = "| L2 topic from SAE features: accuracy above majority, points | 22.8 | 30 | 25.8 to 34.2 | 1 | **reproduced** |"
    assert topic in text
    assert "one family) | - | - | - | - | **not run** | - | - |" in text
    gates = tables.gates_markdown(read_table("world_gates", data_folder))
    assert "| guess rate | 0.002 | at most 0.01 | yes | 400 |" in gates
    assert "0.9 rho | at most 0.6 | **no** | 300 |" in gates
    assert len({line.count(" | ") for line in gates.splitlines()}) == 1


def test_update_block_replaces_between_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("head\n<!-- begin claims -->\nold\n<!-- end claims -->\ntail\n")
    assert tables.update_block(readme, "claims", "new\n") is True
    assert readme.read_text() == "head\n<!-- begin claims -->\nnew\n<!-- end claims -->\ntail\n"
    assert tables.update_block(readme, "claims", "new") is False
    with pytest.raises(ValueError, match="<!-- begin gates -->"):
        tables.update_block(readme, "gates", "new")


# Claims.


def test_steps_effect_counts_a_target_never_reached_with_the_budget() -> None:
    effect = claims.steps_effect(run_tables(2)["steps_to_target"], budget=8)
    # grpo: (2 + 8 + 2) / 3 = 4, saerl: 2
    assert effect.interval == pytest.approx((50.0, 50.0, 50.0))
    at_start = run_tables(2)["steps_to_target"].assign(steps=0.0)
    assert np.isnan(claims.steps_effect(at_start, budget=8).interval.value)


def test_claims_by_hand(data_folder: Path) -> None:
    table = claims.build_claims(data_folder).set_index("claim")
    topic = table.loc["L2 topic from SAE features: accuracy above majority, points"]
    assert topic["our_value"] == pytest.approx(30.0)
    assert topic["ci_low"] == pytest.approx(30 - 3 * 2**0.5)
    assert (topic["verdict"], topic["paper_value"]) == ("reproduced", 22.8)
    quality = table.loc["Solution quality: Pearson of SAE above metadata (0.3715 against 0.2100)"]
    assert (quality["our_value"], quality["verdict"]) == (pytest.approx(-0.05), "not reproduced")
    assert table.loc["Difficulty from SAE features, adapted: gain of Spearman rho (0.135 to 0.286)", "verdict"] == "undecided"
    purity = table.loc["Filter at p95: purity above the pool's, points (95.37 against 49.05; recall 95 %, here 90 %)"]
    assert (purity["our_value"], purity["verdict"]) == (pytest.approx(40.0), "reproduced")
    auc = table.loc["Source probe: ROC-AUC above chance (0.9911 - 0.5)", "our_value"]
    assert auc == pytest.approx(0.1 * 0.75 + 0.3 * 0.95 + 0.6 - 0.5)
    swap = table.loc["Tail swap raises in-batch diversity, percent (h = 1, space pca2)"]
    assert (swap["our_value"], swap["verdict"]) == (pytest.approx(50.0), "reproduced")
    accuracy = table.loc["Laptop runs: accuracy gain over GRPO, points (2 sets, without the Pass@k set)"]
    assert (accuracy["our_value"], accuracy["n_seeds"]) == (pytest.approx(4.1), 2)


def test_claims_on_real_data_by_hand() -> None:
    rows = [("math_test", "subject", "accuracy", "sae", 0.6, 0.58, 0.62, 700, 300),
            ("math_test", "subject", "accuracy", "majority", 0.2, 0.18, 0.22, 700, 300),
            ("deepmath_18k", "difficulty_level", "spearman", "sae", 0.5, 0.45, 0.55, 300, 100),
            ("deepscaler_pass_rate", "difficulty_out_of_domain", "spearman", "sae", 0.2, 0.17, 0.23, 300, 100),
            ("deepscaler_pass_rate", "difficulty_adapted", "spearman", "sae", 0.3, 0.26, 0.34, 380, 100)]  # fmt: skip
    found = claims.probe_effects(frame("probe_ladder", rows), real=True)
    assert [round(e.interval.value, 6) for e in found] == [40.0, 0.5, 0.3, 0.1]
    assert found[3].interval.low == pytest.approx(0.1 - (0.04**2 + 0.03**2) ** 0.5)
    assert claims.probe_effects(frame("probe_ladder", rows[:0]), real=True) == []


def test_without_the_order_gate_verdicts_on_order_are_undecided(data_folder: Path, tmp_path: Path) -> None:
    met, unmet = claims.build_claims(data_folder), claims.build_claims(data_folder, gate_met=False)
    order = met["claim"].str.startswith("Laptop runs:")
    assert order.sum() == 4
    # decided by the gate of speed, which this table does not hold
    steps = met["claim"].str.startswith("Laptop runs: fewer steps")
    assert set(met.loc[order & ~steps, "verdict"]) == {"reproduced"}
    assert set(met.loc[steps, "verdict"]) == {"undecided"}
    assert set(claims.build_claims(data_folder, gate_met=True).loc[order, "verdict"]) == {"reproduced"}
    assert set(unmet.loc[order, "verdict"]) == {"undecided"}
    assert unmet.loc[~order, "verdict"].tolist() == met.loc[~order, "verdict"].tolist()
    gates = read_table("world_gates", data_folder)
    assert claims.order_gate_met(gates)
    assert not claims.order_gate_met(gates.assign(met=False))
    assert not claims.order_gate_met(gates[gates["gate"] != claims.ORDER_GATE])


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((1.0, 0.01, 2.0), "reproduced"), ((0.1, 0.05, 0.2), "reproduced"), ((0.2, 0.0, 0.49), "not reproduced"),
        ((-2.0, -3.0, -1.0), "not reproduced"), ((0.2, -0.1, 0.5), "undecided"),
        ((2.0, float("nan"), float("nan")), "undecided"),
    ],
)  # fmt: skip
def test_verdict_rule(interval: tuple[float, float, float], expected: str) -> None:
    assert claims.verdict(Interval(*interval), smallest=0.5) == expected
