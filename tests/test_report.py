"""Tables, figures, claims and Markdown: figures from the committed tables, numbers from small ones that a hand can check."""

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
from saerl_lib.artifacts import ArtifactError
from saerl_lib.report import claims, figures, plots
from saerl_lib.report.figures import FIGURES
from saerl_lib.report.tables import (
    LABELS,
    SCHEMAS,
    TableError,
    claims_markdown,
    finding_markdown,
    gates_markdown,
    read_table,
    study_markdown,
    write_csv,
)


def frame(name: str, rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(SCHEMAS[name].columns))


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
    assert figure.get_suptitle().split(": ")[1].replace("\n", " ") in finding_markdown(table), "one list of main claims"
    rows = [label.get_text() for label in figure.axes[1].get_yticklabels()]
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
    assert not (tmp_path / "calibration.png").exists()


def test_write_csv_has_a_fixed_form(tmp_path: Path) -> None:
    none = (np.nan,) * 3
    rows = [("a", 1 / 3, *none, 12345678.0, True, 1000, "rho", None), ("b", 2, 1, 3, 0.1, 3, False, np.nan, "", "n")]
    table = frame("world_gates", rows)
    path = write_csv(table[list(reversed(table.columns))], "world_gates", tmp_path)
    assert path.read_bytes() == (
        b"gate,value,ci_low,ci_high,low,high,met,n,unit,note\na,0.333333,,,,1.23457e+07,true,1000,rho,\nb,2,1,3,0.1,3,false,,,n\n"
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
        (lambda f: f.assign(recall=f["recall"] * 100), "write fractions, not percent"),
        (lambda f: f.assign(kept=np.inf), "infinite"), (lambda f: f.assign(rule=None), "column rule is empty in row 0"),
    ],
)  # fmt: skip
def test_write_csv_rejects_a_bad_table(change, message: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=message):
        write_csv(change(read_table("real_filter", paths.PUBLISHED)), "real_filter", tmp_path)
    assert not list(tmp_path.iterdir())


def test_unwritable_folder_and_unknown_table(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot write"):
        write_csv(read_table("real_filter", paths.PUBLISHED), "real_filter", tmp_path / "file")
    with pytest.raises(TableError, match="'filters' is not known"):
        write_csv(read_table("real_filter", paths.PUBLISHED), "filters", tmp_path)


def test_every_table_has_a_schema_with_known_columns() -> None:
    for schema in SCHEMAS.values():
        assert set(schema.optional) | set(schema.fractions) <= set(schema.columns)
    assert {name for names, _ in FIGURES.values() for name in names} <= set(SCHEMAS) and len(FIGURES) <= 20


def test_markdown_tables() -> None:
    claim = ("a | b: points", 19.1, 30.0, 25.757, 34.243, 1, "agrees", "no", "toy task", "notebooks/a.ipynb", None, "x")
    rows = [claim, ("c", *[np.nan] * 4, 0, "not run", *[None] * 5)]
    text = claims_markdown(frame("claims", rows)).splitlines()
    assert text[2] == (
        "| a \\| b: points | 19.1 | 30 | 25.8 to 34.2 | 1 | **agrees** | no | toy task | [notebook](../notebooks/a.ipynb) | `x` |"
    )
    assert text[3] == "| c | - | - | - | - | **not run** | - | - | - | - |"
    nan = float("nan")
    gates = [("guess rate", 0.002, nan, nan, nan, 0.01, True, 400, "", ""), ("x", 0.9, 0.8, 1, nan, 0.6, False, 9, "rho", "")]
    text = gates_markdown(frame("world_gates", gates)).splitlines()
    assert text[2] == "| Answers that a guess gets right | 0.002 | at most 0.01 | yes | 400 |"
    assert text[3] == "| x | 0.9 rho (0.8 to 1) | at most 0.6 | **no** | 9 |"
    known = read_table("world_gates", paths.PUBLISHED)["gate"]
    assert all(any(gate.startswith(start) for start in LABELS["check"]) for gate in known)
    rows = [("paper", m, "a", "b", 3, *v, *v[1:], nan, nan, 1.0, "", 2.0) for m, v in
            {"outcome": (1.0, 0.5, 1.5), "steps": (10.0, 5.0, 20.0), "caught": (0.0, 0.0, 0.0)}.items()]  # fmt: skip
    text = study_markdown(frame("study_comparisons", rows)).splitlines()
    assert text[4].startswith("| paper | `a` - `b` | 3 | +1.00 (0.50 to 1.50) | 1.00 | -10.00 (-20.00 to -5.00) | not reached |")


def test_a_trend_over_settings_is_said_where_the_ranks_support_it() -> None:
    ends = [30.0, 32.0, 34.0, 36.0, 38.0, 40.0]
    said = {name: figures._trend(pd.DataFrame({"end": ends, "value": values})) for name, values in
            {"falls": (3, 2, 1, 0.5, -1, -2), "below": (-1, -2, -3, -4, -5, -6),
             "mixed": (1, -1, 2, -2, 1, -3)}.items()}
    assert said["falls"].startswith("easy to hard loses where a random order gets far and gains where it does not (6 settings")
    assert said["below"].startswith("easy to hard does worse the farther") and "without a clear trend" in said["mixed"]


# Claims.


def test_claims_about_probes_by_hand() -> None:
    rows = [("math_test", "subject", "accuracy", "sae", 0.6, 0.58, 0.62, 700, 300),
            ("math_test", "subject", "accuracy", "majority", 0.2, 0.18, 0.22, 700, 300),
            ("deepmath_18k", "difficulty_level", "spearman", "sae", 0.5, 0.45, 0.55, 300, 100),
            ("deepscaler_pass_rate", "difficulty_out_of_domain", "spearman", "sae", 0.2, 0.17, 0.23, 300, 100),
            ("deepscaler_pass_rate", "difficulty_adapted", "spearman", "sae", 0.3, 0.26, 0.34, 380, 100)]  # fmt: skip
    found = claims.probe_effects(frame("probe_ladder", rows))
    assert [round(e.interval.value, 6) for e in found] == [40.0, 0.5, 0.3, 0.1]
    assert found[3].interval.low == pytest.approx(0.1 - (0.04**2 + 0.03**2) ** 0.5)
    assert claims.probe_effects(frame("probe_ladder", rows[:0])) == []
    rows = [("world", "topic_leaf", "accuracy", f, v, v - 0.03, v + 0.03, 90, 40) for f, v in (("majority", 0.2), ("sae", 0.5))]
    pearson = {"metadata": 0.35, "sae": 0.3}
    rows += [("world", "solution_quality", "pearson", f, v, v - 0.01, v + 0.01, 90, 40) for f, v in pearson.items()]
    topic, quality = (effect.row() for effect in claims.probe_effects(frame("probe_ladder", rows)))
    assert topic[:3] == ("leaf topic from SAE features: accuracy above majority, points", 19.1, pytest.approx(30.0))
    assert topic[3] == pytest.approx(30 - 3 * 2**0.5) and topic[6:8] == ("agrees", "no")
    assert quality[0] == "Solution quality: Pearson of SAE above metadata (0.3715 against 0.2100)"
    assert quality[2] == pytest.approx(-0.05) and quality[6] == "opposite"


def test_claims_about_filter_and_mixing_by_hand() -> None:
    rules = [("sae", "full", 100, 100, 50, 0.5, 1.0, 0.4905, 1.0), ("sae", "p95", 50, 100, 45, 0.9, 0.9, 0.9537, 0.9546),
             ("tfidf", "p95", 50, 100, 50, 1.0, 1.0, 0.9537, 0.9546)]  # fmt: skip
    parted = [("pair", "roc_auc", name, value, value - 0.01, value + 0.01, 0.9911, 50, 100)
              for name, value in (("tfidf", 0.99), ("sae", 0.9))]  # fmt: skip
    purity, auc = claims.filter_effects(frame("real_filter", rules), frame("real_separation", parted))
    assert purity.row()[0].endswith("here DeepMath against DeepScaleR, questions alone, recall 90 %)")
    assert purity.interval.value == pytest.approx(40.0) and purity.row()[6] == "agrees"
    assert auc.interval == pytest.approx((0.4, 0.39, 0.41))
    diversity = [("random", 0, "pca2", 1.4, 1.3, 1.5, 4), ("saerl_before_mixing", 0, "pca2", 1.0, 0.9, 1.1, 4),
                 ("saerl", 1, "pca2", 1.5, 1.4, 1.6, 4), ("saerl", 2, "pca2", 1.7, 1.6, 1.8, 4)]  # fmt: skip
    (swap,) = claims.diversity_effects(frame("inbatch_diversity", diversity))
    assert (swap.row()[0], swap.row()[6]) == ("Tail swap raises in-batch diversity, percent (h = 1, 2-D projection)", "agrees")
    assert swap.interval.value == pytest.approx(50.0)


def test_without_the_order_gate_verdicts_on_order_are_undecided(tmp_path: Path) -> None:
    shutil.copytree(paths.PUBLISHED, tmp_path, dirs_exist_ok=True)
    pairs = read_table("study_comparisons", paths.PUBLISHED)
    write_csv(pairs.assign(difference=2.0, holm_low=1.0, holm_high=3.0, n_seeds=8), "study_comparisons", tmp_path)
    met, gates = claims.build_claims(tmp_path), read_table("world_gates", paths.PUBLISHED)
    write_csv(gates[gates["gate"] != claims.ORDER_GATE], "world_gates", tmp_path)
    unmet = claims.build_claims(tmp_path)
    order = met["claim"].str.startswith("SAERL on GRPO against GRPO")
    assert order.any() and set(met.loc[order, "direction"]) == {"agrees"}
    assert set(unmet.loc[order, "direction"]) == {"undecided"}
    same = ~met["command"].str.endswith("--profile study", na=False)
    assert unmet.loc[same, "direction"].tolist() == met.loc[same, "direction"].tolist()


def test_the_committed_claims_follow_from_the_committed_tables(tmp_path: Path) -> None:
    path = write_csv(claims.build_claims(paths.PUBLISHED), "claims", tmp_path)
    assert path.read_bytes() == (paths.PUBLISHED / "claims.csv").read_bytes()
    told = read_table("claims", tmp_path).set_index("claim")
    assert (told["direction"] == "not comparable").sum() == 1, "preparation is timed on other models"
    assert set(told.index[told["scale"] == claims.BLURRED]) == {name for name in told.index if name.startswith("SAERL on ")
                                                               and told.loc[name, "direction"] != "not run"}  # fmt: skip
