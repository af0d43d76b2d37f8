"""Tables, figures, claims and Markdown, from small synthetic tables built here."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from saerl_lib.artifacts import ArtifactError
from saerl_lib.report import claims, effects, figures, plots_training, plots_world, schemas, style, tables
from saerl_lib.report.schemas import SCHEMAS, TableError, read_table, write_csv
from saerl_lib.report.statistics import Interval

SETS = ("easy_a", "hard", "hardest")


def _frame(name: str, rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(SCHEMAS[name].columns))


def _world() -> dict[str, pd.DataFrame]:
    nan = float("nan")
    gates = [
        ("guess rate", 0.002, nan, 0.01, True, 400, "", ""),
        ("Spearman of difficulty with solution length, a gate with a long name", 0.9, nan, 0.6, False, 300, "rho", "x"),
        ("TF-IDF leaf accuracy", 0.62, 0.4, 0.8, True, nan, None, None),
        (claims.ORDER_GATE, 1.5, 1.0, nan, True, 3, "", ""),
    ]
    shares = [0.4, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.2]
    prompts = [(f"s{i}", "ab"[i % 2], i / 3, (i * 7 % 9) / 8, 8) for i in range(24)]
    return {
        "world_gates": _frame("world_gates", gates),
        "pass_rates": _frame("pass_rates", [(i / 10, (i + 1) / 10, s, 0.1, 100, 4000) for i, s in enumerate(shares)]),
        "difficulty_vs_pass_rate": _frame("difficulty_vs_pass_rate", prompts),
    }


def _properties() -> dict[str, pd.DataFrame]:
    nan = float("nan")
    quality = [("main", "explained_variance", 0.86, 0.8, nan, True, 900), ("main", "l0", 31.5, nan, nan, None, 900)]
    accuracy = {"majority": 0.2, "tfidf": 0.6, "sae": 0.5}
    ladder = [("world", t, "accuracy", f, v, v - 0.03, v + 0.03, 90, 40)
              for t in ("topic_l2", "topic_l3", "topic_leaf") for f, v in accuracy.items()]  # fmt: skip
    rho = {"difficulty_in_domain": 0.7, "difficulty_out_of_domain": 0.2, "difficulty_adapted": 0.25}
    ladder += [("world", t, "spearman", "sae", v, v - 0.1, v + 0.1, 90, 40) for t, v in rho.items()]
    ladder += [("world", "solution_quality", "pearson", f, v, v - 0.01, v + 0.01, 90, 40)
               for f, v in (("metadata", 0.35), ("sae", 0.3))]  # fmt: skip
    ladder.append(("world", "solution_quality", "pearson", "mean", nan, nan, nan, 90, 40))
    bins = [(s, b, 12, b + 0.1, b, b - 0.5, b + 0.5) for s in ("raw", "global", "ranking") for b in range(3)]
    kept = [("full", 100, 100, 50, 0.5, 1.0, 0.4905, 1.0), ("p95", 50, 100, 45, 0.9, 0.9, 0.9537, 0.9546),
            ("top_k used", 40, 100, 38, 0.95, 0.76, nan, nan)]  # fmt: skip
    scores = [(s, i / 4, (i + 1) / 4, share, 50) for s, shares in (("target", (0, 0.1, 0.3, 0.6)), ("parent", (0.6, 0.3, 0.1, 0)))
              for i, share in enumerate(shares)]  # fmt: skip
    return {
        "sae_quality": _frame("sae_quality", quality),
        "sae_map": _frame("sae_map", [(f"s{i}", i % 5, i % 7, "ab"[i % 2], i % 4, float(i)) for i in range(40)]),
        "probe_ladder": _frame("probe_ladder", ladder),
        "calibration": _frame("calibration", bins),
        "cluster_topics": _frame("cluster_topics", [(c, d, 3 + c) for c in range(4) for d in "abc"]),
        "cluster_summary": _frame("cluster_summary", [(c, 20, 5, 0.1, 0.3, 2.0, 1.5, "a", 0.5, 30.0, 40.0) for c in range(4)]),
        "filter": _frame("filter", kept),
        "filter_scores": _frame("filter_scores", scores),
    }


def _runs(seeds: int) -> dict[str, pd.DataFrame]:
    orders = ("random", "saerl_before_mixing", "saerl")
    batches = [(o, t, 0, 0.5 + 0.25 * i, 3 - i, t * 0.5, 30.0) for i, o in enumerate(orders) for t in range(4)]
    diversity = [("random", 0, "pca2", 1.4, 1.3, 1.5, 4), ("saerl_before_mixing", 0, "pca2", 1.0, 0.9, 1.1, 4),
                 ("saerl", 1, "pca2", 1.5, 1.4, 1.6, 4), ("saerl", 2, "pca2", 1.7, 1.6, 1.8, 4)]  # fmt: skip
    gain = {"grpo": 0.0, "saerl": 0.02}
    training = [(a, s, t, 0.3 + t / 40 + g, 0.4, None, None, 20.0) for a, g in gain.items() for s in range(seeds)
                for t in range(1, 5)]  # fmt: skip
    curves = []
    for arm, g in gain.items():
        for seed in range(seeds):
            noise = 0.002 * seed * (arm == "saerl")
            for step in (0, 2, 4):
                for name in SETS:
                    value = 0.4 + step / 20 + (g + noise) * (step > 0)
                    curves.append((arm, seed, step, name, "avg_at_k", value, 8, 2))
                    if name == "hardest":
                        curves.append((arm, seed, step, name, "pass_at_k", value + 0.1 + g * (step > 0), 8, 2))
                    if step == 4:
                        curves.append((arm, seed, step, name, "avg_at_k", value + g, 20, 8))
                curves.append((arm, seed, step, "all", "avg_at_k", 0.4, 24, 2))
    paired = [(n, "pass_at_k" if n == "hardest" else "avg_at_k", 2.0, 0.5, 3.5, seeds, 8, 1.1) for n in (*SETS, "all")]
    steps = [(n, 0.5, a, s, None if (n, a) == ("hard", "grpo") else 2.0) for n in SETS for a in gain for s in range(seeds)]
    return {
        "batch_composition": _frame("batch_composition", batches),
        "inbatch_diversity": _frame("inbatch_diversity", diversity),
        "training_curves": _frame("training_curves", training),
        "learning_curves": _frame("learning_curves", curves),
        "paired_difference": _frame("paired_difference", paired),
        "steps_to_target": _frame("steps_to_target", steps),
    }


def write_tables(folder: Path, seeds: int = 2) -> Path:
    for name, frame in (_world() | _properties() | _runs(seeds)).items():
        write_csv(frame, name, folder)
    return folder


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tables(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("module", [claims, plots_world, style, tables])
def test_docstring_examples(module) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_is_drawn_and_byte_identical_on_a_second_draw(name: str, data_folder: Path, tmp_path: Path) -> None:
    first = figures.draw(name, data_folder, tmp_path / "a")
    assert first == tmp_path / "a" / f"{name}.png"
    figures.draw(name, data_folder, tmp_path / "b")
    for suffix in ("png", "pdf"):
        data = (tmp_path / "a" / f"{name}.{suffix}").read_bytes()
        assert len(data) > 5000
        assert data == (tmp_path / "b" / f"{name}.{suffix}").read_bytes()
        assert b"CreationDate" not in data
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [f"{name}.pdf", f"{name}.png"]


def test_the_figure_changes_with_the_table(data_folder: Path, tmp_path: Path) -> None:
    rates = read_table("pass_rates", data_folder)
    write_csv(rates, "pass_rates", tmp_path)
    before = figures.draw("pass_rates", tmp_path, tmp_path).read_bytes()
    write_csv(rates.assign(share_world=rates["share_world"].to_numpy()[::-1]), "pass_rates", tmp_path)
    assert figures.draw("pass_rates", tmp_path, tmp_path).read_bytes() != before


def test_a_users_own_style_does_not_change_a_figure(data_folder: Path, tmp_path: Path) -> None:
    import matplotlib

    plain = figures.draw("calibration", data_folder, tmp_path).read_bytes()
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 5, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        assert figures.draw("calibration", data_folder, tmp_path).read_bytes() == plain


@pytest.mark.parametrize("seeds", [1, 32])
def test_training_figures_take_one_seed_and_many(seeds: int) -> None:
    runs = _runs(seeds)
    runs["paired_difference"].loc[:, ["ci_low", "ci_high", "minimum_detectable_effect"]] = np.nan
    assert plots_training.learning_curves(runs["learning_curves"]).axes
    assert plots_training.training_curves(runs["training_curves"]).axes
    assert plots_training.paired_difference(runs["paired_difference"]).axes


def test_learning_curves_has_a_panel_a_set_and_labels_the_metric() -> None:
    figure = plots_training.learning_curves(_runs(2)["learning_curves"])
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    assert [t.split("\n")[0] for t in titles] == ["easy a, avg@k", "hard, avg@k", "hardest, pass@k", "mean of the sets, avg@k"]
    assert titles[0].endswith("8 x 2, open 20 x 8")


def test_smallest_text_is_seven_points(data_folder: Path) -> None:
    for tables_of, function in figures.FIGURES.values():
        figure = function(*(read_table(t, data_folder) for t in tables_of))
        texts = figure.findobj(lambda artist: hasattr(artist, "get_fontsize") and hasattr(artist, "get_text"))
        assert min(t.get_fontsize() for t in texts if t.get_text()) >= 7


def test_draw_all_draws_the_registry(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = {name: figures.FIGURES[name] for name in ("pass_rates", "calibration")}
    monkeypatch.setattr(figures, "FIGURES", two)
    assert [p.name for p in figures.draw_all(data_folder, tmp_path)] == ["pass_rates.png", "calibration.png"]


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
    frame = _frame("world_gates", rows)
    path = write_csv(frame[list(reversed(frame.columns))], "world_gates", tmp_path)
    assert path.read_bytes() == (
        b"gate,value,low,high,met,n,unit,note\na,0.333333,,1.23457e+07,true,1000,rho,\nb,2,0.1,3,false,,,n\n"
    )
    assert list(tmp_path.iterdir()) == [path]
    assert read_table("world_gates", tmp_path)["met"].tolist() == [True, False]


def test_mixed_columns_keep_the_form(tmp_path: Path) -> None:
    frame = _frame("sae_quality", [("e", "q", 1 / 3, None, None, None, 5), ("e", "r", 0.5, None, 2 / 3, True, 5)])
    text = write_csv(frame, "sae_quality", tmp_path).read_text()
    assert text.splitlines()[1:] == ["e,q,0.333333,,,,5", "e,r,0.5,,0.666667,true,5"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.iloc[:0], "no rows"),
        (lambda f: f.drop(columns="share"), "lacks column share"),
        (lambda f: f.assign(extra=1), "unknown column extra"),
        (lambda f: f.assign(share=f["share"] * 100), "write fractions, not percent"),
        (lambda f: f.assign(n=np.inf), "infinite"),
        (lambda f: f.assign(source=None), "column source is empty in row 0"),
    ],
)
def test_write_csv_rejects_a_bad_table(change, message: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=message):
        write_csv(change(_properties()["filter_scores"]), "filter_scores", tmp_path)
    assert not list(tmp_path.iterdir())


def test_unwritable_folder_and_unknown_table(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot write"):
        write_csv(_properties()["filter_scores"], "filter_scores", tmp_path / "file")
    with pytest.raises(TableError, match="'filters' is not known"):
        write_csv(_properties()["filter_scores"], "filters", tmp_path)


def test_strip_position_marks_bounds() -> None:
    nan = float("nan")
    assert plots_world.strip_position(0.4, 0.4, 0.8) == 0.0
    assert plots_world.strip_position(0.8, 0.4, 0.8) == pytest.approx(1.0)
    assert plots_world.strip_position(0.2, nan, 0.1) == pytest.approx(2.0)
    assert plots_world.strip_position(-0.5, 0.0, nan) == pytest.approx(-0.5)


def test_final_differences_use_the_largest_last_evaluation() -> None:
    curves = _runs(3)["learning_curves"]
    small = effects.final_differences(curves[curves["n_samples"] == 2], {"easy_a": "avg_at_k", "hard": "avg_at_k"})
    assert small == pytest.approx([2.0, 2.2, 2.4])
    assert effects.final_differences(curves, {"easy_a": "avg_at_k"}) == pytest.approx([4.0, 4.2, 4.4])
    with pytest.raises(TableError, match="lacks saerl or grpo"):
        effects.final_differences(curves[curves["arm"] == "grpo"], {"easy_a": "avg_at_k"})
    with pytest.raises(TableError, match="different steps"):
        effects.final_differences(curves[(curves["arm"] == "grpo") | (curves["step"] < 4)], {"easy_a": "avg_at_k"})


def test_steps_effect_counts_a_target_never_reached_with_the_budget() -> None:
    effect = effects.steps_effect(_runs(2)["steps_to_target"], budget=8)
    # grpo: (2 + 8 + 2) / 3 = 4, saerl: 2
    assert effect.interval == pytest.approx((50.0, 50.0, 50.0))
    at_start = _runs(2)["steps_to_target"].assign(steps=0.0)
    assert np.isnan(effects.steps_effect(at_start, budget=8).interval.value)


def test_claims_by_hand(data_folder: Path) -> None:
    table = claims.build_claims(data_folder).set_index("claim")
    topic = table.loc["L2 topic from SAE features: accuracy above majority, points"]
    assert topic["our_value"] == pytest.approx(30.0)
    assert topic["ci_low"] == pytest.approx(30 - 3 * 2**0.5)
    assert (topic["verdict"], topic["paper_value"]) == ("reproduced", 22.8)
    quality = table.loc["Solution quality: Pearson of SAE above metadata (0.3715 against 0.2100)"]
    assert (quality["our_value"], quality["verdict"]) == (pytest.approx(-0.05), "not reproduced")
    assert table.loc["Difficulty, adapted: gain of Spearman rho (0.135 to 0.286)", "verdict"] == "undecided"
    purity = table.loc["Filter at p95: purity above the pool's, points (95.37 against 49.05)"]
    assert (purity["our_value"], purity["verdict"]) == (pytest.approx(40.0), "reproduced")
    auc = table.loc["Source probe: ROC-AUC above chance (0.9911 - 0.5)", "our_value"]
    assert auc == pytest.approx(0.1 * 0.75 + 0.3 * 0.95 + 0.6 - 0.5)
    swap = table.loc["Tail swap raises in-batch diversity, percent (h = 1, space pca2)"]
    assert (swap["our_value"], swap["verdict"]) == (pytest.approx(50.0), "reproduced")
    accuracy = table.loc["Accuracy gain over GRPO, points (2 sets, without the Pass@k set)"]
    assert (accuracy["our_value"], accuracy["n_seeds"]) == (pytest.approx(4.1), 2)


def test_claims_are_written_and_read_back(data_folder: Path, tmp_path: Path) -> None:
    table = claims.build_claims(data_folder)
    write_csv(table, "claims", tmp_path)
    back = read_table("claims", tmp_path)
    assert back["verdict"].tolist() == table["verdict"].tolist()
    assert set(back["verdict"]) <= {"reproduced", "not reproduced", "undecided", "not run"}
    assert (back["verdict"] == "not run").sum() == len(claims.NOT_RUN)
    assert set(back["figure"].dropna()) <= {f"figures/{name}.png" for name in figures.FIGURES}


def test_without_the_order_gate_verdicts_on_order_are_undecided(data_folder: Path, tmp_path: Path) -> None:
    met, unmet = claims.build_claims(data_folder), claims.build_claims(data_folder, gate_met=False)
    order = met["claim"].str.startswith(("Accuracy gain", "Fewer steps"))
    assert order.sum() == 4
    steps = met["claim"].str.startswith("Fewer steps")  # decided by the gate of speed, which this table does not hold
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
        ((1.0, 0.01, 2.0), "reproduced"),
        ((0.1, 0.05, 0.2), "reproduced"),
        ((0.2, 0.0, 0.49), "not reproduced"),
        ((-2.0, -3.0, -1.0), "not reproduced"),
        ((0.2, -0.1, 0.5), "undecided"),
        ((2.0, float("nan"), float("nan")), "undecided"),
    ],
)
def test_verdict_rule(interval: tuple[float, float, float], expected: str) -> None:
    assert claims.verdict(Interval(*interval), smallest=0.5) == expected


def test_markdown_tables(data_folder: Path) -> None:
    text = tables.claims_markdown(claims.build_claims(data_folder))
    topic = "| L2 topic from SAE features: accuracy above majority, points | 22.8 | 30 | 25.8 to 34.2 | 1 | **reproduced** |"
    assert topic in text
    assert "| 7B policy: accuracy gain over GRPO, points (Table 4) | 2 | - | - | - | **not run** | - | - |" in text
    gates = tables.gates_markdown(read_table("world_gates", data_folder))
    assert "| guess rate | 0.002 | at most 0.01 | yes | 400 |" in gates
    assert "| TF-IDF leaf accuracy | 0.62 | 0.4 to 0.8 | yes | - |" in gates
    assert "0.9 rho | at most 0.6 | **no** | 300 |" in gates
    assert len({line.count(" | ") for line in gates.splitlines()}) == 1


def test_update_readme_replaces_between_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("head\n<!-- begin claims -->\nold\n<!-- end claims -->\ntail\n")
    assert tables.update_readme(readme, "claims", "new\n") is True
    assert readme.read_text() == "head\n<!-- begin claims -->\nnew\n<!-- end claims -->\ntail\n"
    assert tables.update_readme(readme, "claims", "new") is False
    with pytest.raises(ValueError, match="<!-- begin gates -->"):
        tables.update_readme(readme, "gates", "new")


def test_colours_and_markers_keep_fixed_ones_and_never_repeat() -> None:
    palette = style.colours(["other", "grpo", "saerl", "more"], style.ARM_COLOURS)
    assert palette["grpo"] == style.ARM_COLOURS["grpo"]
    assert len(set(palette.values())) == 4
    assert len(set(style.markers(["x", "grpo", "saerl"], style.ARM_MARKERS).values())) == 3


def test_every_table_has_a_schema_with_known_columns() -> None:
    for schema in schemas.SCHEMAS.values():
        assert set(schema.optional) | set(schema.fractions) <= set(schema.columns)
    assert {name for names, _ in figures.FIGURES.values() for name in names} <= set(SCHEMAS)
