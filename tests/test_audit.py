"""Reading the plan: clusters, features, intervals, and the decision path of one sample."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import ElasticNet, SGDClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from saerl_lib.artifacts import ArtifactError
from saerl_lib.config import PlanConfig
from saerl_lib.data.sample import DataError, Sample
from saerl_lib.encode.store import FeatureTable
from saerl_lib.plan.audit import Evidence, audit, audit_text
from saerl_lib.plan.orders import build_plan
from saerl_lib.properties import audit as audits
from saerl_lib.properties import scorer as difficulty
from saerl_lib.properties.audit import cluster_audit_table
from saerl_lib.properties.clusters import Assignment, Clusters
from saerl_lib.properties.quality import SourceClassifier
from saerl_lib.properties.scorer import DifficultyModel, Scorer

# Confidence of a latent for a label.


def test_frc_by_hand() -> None:
    active = np.array([1, 1, 1, 1, 0, 0, 0, 0], dtype=bool)
    labels = np.array(["a", "a", "a", "b", "a", "b", "b", "b"])
    found = audits.frc_table(np.column_stack([active, labels == "a"]), labels, bootstrap_samples=50, seed=0)
    columns = ["topic", "necessity", "sufficiency", "base_rate", "lift", "frc", "n", "n_active", "n_topic"]
    assert found[columns].to_numpy().tolist() == [["a", 0.75, 0.75, 0.5, 1.5, 0.75, 8, 4, 4], ["a", 1, 1, 0.5, 2, 1, 8, 4, 4]]
    assert audits.frc_matrix(np.zeros((8, 1)), (labels == "a")[:, None]) == 0.0


def test_a_real_relation_lies_above_its_shuffled_control() -> None:
    labels = np.repeat(["a", "b", "c", "d"], 50)
    active = np.column_stack([labels == "b", np.arange(200) % 2 == 0])
    real, even = audits.frc_table(active, labels, bootstrap_samples=200, seed=1).itertuples()
    assert real.ci_low == real.ci_high == 1.0 > real.control + 0.5
    assert even.ci_low < even.frc < even.ci_high and even.ci_low < even.control
    other = audits.frc_table(active, labels, bootstrap_samples=200, seed=2)
    assert (other["control"] != [real.control, even.control]).all()


# Cluster audit.


def dozen() -> tuple[np.ndarray, Assignment, pd.DataFrame]:
    """Twelve samples in clusters 0 (6, mostly topic A -> x) and 1 (6, topic B -> y or none); column 0 separates them."""
    label = np.repeat([0, 1], 6)
    phi = np.column_stack([np.where(label == 0, 2.0, 0.0), np.arange(12) % 2, np.full(12, 7.0)])
    topics = np.array(["A -> x"] * 4 + ["B -> y"] * 2 + ["B -> y"] * 3 + [""] * 3)
    difficulty = np.array([1.0, 2, 3, 4, 5, 6, 9, 9, 9, 9, 9, np.nan])
    distance = np.array([3.0, 1, 2, 6, 5, 4, 1, 1, 1, 2, 2, 2])
    facts = pd.DataFrame({"sample_id": [f"s{i:02d}" for i in range(12)], "topic": topics, "difficulty": difficulty,
                          "prompt_words": np.arange(12.0), "solution_words": 2 * np.arange(12.0)})  # fmt: skip
    return phi, Assignment(label, distance), facts


def test_cluster_audit_of_a_dozen_samples_by_hand() -> None:
    phi, assigned, facts = dozen()
    table = cluster_audit_table(phi, ["sol_mean/5", "prompt_max/8", "metadata/words"], assigned, facts)
    first, second = table.to_dict("records")
    assert (first["label"], first["top_topics"], first["n"]) == ("x, y", "A -> x (67%); B -> y (33%)", 6)
    assert first["topic_entropy_bits"] == pytest.approx(0.9183, abs=1e-4)
    assert [first[f"difficulty_{name}"] for name in ("mean", "q25", "median", "q75")] == [3.5, 2.25, 3.5, 4.75]
    assert (first["prompt_words_mean"], first["solution_words_mean"]) == (2.5, 5.0)
    assert first["representatives"] == "s01; s02; s00"
    assert first["top_latents"] == "sol_mean/5 (+2.0)"  # the metadata column is no latent, the other does not differ
    assert (second["label"], second["topic_entropy_bits"], second["n_difficulty"]) == ("y", 0.0, 5)
    assert second["representatives"] == "s06; s07; s08"  # equal distances: by id


# Feature audit.


def groups(n: int = 200) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Two noisy classes that sol_mean/4 tells apart, one of them rare."""
    rng = np.random.default_rng(3)
    labels = (np.arange(n) % 8 == 0).astype(int)
    phi = np.abs(rng.normal(size=(n, 10))).astype(np.float32)
    names = audits.feature_names([4, 9], ["words", "lines"])
    phi[:, names.index("sol_mean/4")] += 3 * labels
    return phi, labels, names


def test_the_gain_lies_where_the_classes_differ_and_repeats() -> None:
    phi, labels, names = groups()
    gain = audits.feature_gain(phi, labels, seed=0)
    assert names[int(gain.argmax())] == "sol_mean/4"
    np.testing.assert_array_equal(gain, audits.feature_gain(phi, labels, seed=0))
    table = audits.feature_groups_table(gain, audits.resampled_gains(phi, labels, 0, 3), names, len(phi))
    assert table["group"].tolist() == list(audits.GROUPS)
    assert table["gain_share"].sum() == pytest.approx(1.0)
    row = table.set_index("group").loc["sol_mean"]
    assert row["gain_share"] > 0.8
    assert 0 <= row["ci_low"] <= row["gain_share"] <= row["ci_high"] <= 1
    assert (row["paper_top_20"], row["paper_top_100"], row["n_features"]) == (10, 36, 2)


def test_top_latents_name_the_topic_they_stand_for() -> None:
    phi, labels, names = groups()
    phi[:, names.index("sol_mean/4")] *= labels  # fires on the rare class alone
    gain = audits.feature_gain(phi, labels, seed=0)
    topics = np.where(labels == 1, "rare", "common")
    top = audits.top_latents_table(gain, names, phi, topics, bootstrap_samples=50, seed=0)
    first = top.iloc[0]
    assert (first["feature"], first["block"], first["latent"], first["topic"]) == ("sol_mean/4", "sol_mean", 4, "rare")
    assert (first["necessity"], first["sufficiency"], first["frc"], first["lift"]) == (1.0, 1.0, 1.0, 8.0)
    assert first["control"] < 0.6
    assert not top["feature"].str.startswith("metadata").any()


# Highlights.


def test_highlights_escape_html_and_read_without_colour() -> None:
    tokens, activations = ("if ", "x<", "y>", " &", "\n"), (0.0, 4.0, 2.0, 1.0, 0.0)
    item = audits.TokenHighlights("sol_max/<3>", "a&b", "solution", tokens, activations)
    html = item.html()
    assert "sol_max/&lt;3&gt;" in html
    assert "a&amp;b" in html
    assert "x&lt;</span>" in html
    assert "<3>" not in html
    assert html.count("font-weight:bold") == 2  # from half the maximum on
    assert item.text() == "if «x<»y> & |"
    assert item.text(context=0) == "...«x<»..."


def test_token_highlights_take_the_right_span_and_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [Sample("p", "", (), ""), Sample("q", "", (), "")]
    mask = torch.tensor([[True, True, False], [True, False, False]])
    batch = SimpleNamespace(rows=(1, 0), ids=torch.tensor([[5, 6, 7], [8, 9, 0]]), prompt=mask, solution=~mask)
    values = torch.arange(12.0).reshape(2, 3, 2)
    encoder = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: f"<{ids[0]}>"), tokens_per_batch=9, max_tokens=None)
    monkeypatch.setattr(audits, "token_batches", lambda *_: [batch])
    monkeypatch.setattr(audits, "batch_latents", lambda *_: values)
    first, second = audits.token_highlights([("sol_max/1", samples[0]), ("prompt_max/0", samples[1])], encoder)
    assert (first.sample_id, first.tokens, first.activations) == ("p", ("<9>", "<0>"), (9.0, 11.0))
    assert (second.sample_id, second.tokens, second.activations) == ("q", ("<5>", "<6>"), (0.0, 2.0))


# Intervals of the difficulty.


def test_conformal_half_width_by_hand() -> None:
    residuals = np.array([0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8, 0.9])
    assert difficulty.conformal_half_width(residuals, level=0.8) == 0.8  # the 8th of 9, ceil(10 * 0.8)
    assert difficulty.conformal_half_width(residuals, level=0.95) == np.inf


def test_the_interval_covers_new_samples_and_small_clusters_borrow() -> None:
    rng = np.random.default_rng(5)
    spread = np.array([0.5, 2.0, 9.0])
    train, test = rng.choice(3, 1500, p=[0.6, 0.38, 0.02]), rng.choice(2, 4000)
    widths = difficulty.cluster_half_widths(rng.normal(size=1500) * spread[train], train, 4)
    assert widths["own"].tolist() == [True, True, False, False]
    assert widths["width"][2] == widths["width"][3] > widths["width"][0]
    assert widths["n"][3] == 1500
    truth = rng.normal(size=4000)
    table = difficulty.coverage_table(truth + rng.normal(size=4000) * spread[test], truth, test, widths)
    assert table["cluster"].tolist() == ["0", "1", "all"]
    assert table["coverage"].between(0.93, 0.97).all()
    assert (table["ci_low"] < 0.95).all()
    assert (table["ci_high"] > 0.95).all()


# The decision path of one sample.

CONFIG = PlanConfig(4, 1, window_batches=3, difficulty_tolerance=0.5, length_tolerance=0.5, unequal="front")


def scaler(columns: int, deviation: float) -> StandardScaler:
    """Centred on zero, every column in the same unit."""
    found = StandardScaler().fit(np.zeros((2, columns)))
    found.scale_ = np.full(columns, deviation)
    return found


def world(config: PlanConfig = CONFIG) -> Evidence:
    """40 samples, 32 kept: clusters 0 and 1 share easy stages and swap, cluster 2 is alone in the last stages."""
    rng = np.random.default_rng(0)
    names = audits.feature_names([3, 7], ["words"])
    cluster = np.concatenate([np.zeros(12, int), np.ones(12, int), np.full(16, 2)])
    z = rng.random((40, 8)).astype(np.float32)
    z[:, 0] += 5 * cluster
    table = FeatureTable(tuple(f"item-{i:02d}" for i in range(40)), z, (4 + rng.random((40, 1))).astype(np.float32))
    centroids = np.array([[first] + [0.0] * 8 for first in (-4.5, 0.5, 4.5)])  # within the clip at 5 deviations
    space = Clusters(np.array([5.0, *[0.0] * 8]), np.ones(9), centroids)
    assigned = space.assign(table.phi)
    net, source = ElasticNet(), SGDClassifier(loss="log_loss")
    net.coef_, net.intercept_ = np.array([0, 1.0, 0, -0.5, 0, 0, 0, 0, 0.2]), 1.0
    source.coef_, source.intercept_, source.classes_ = np.array([[0, 0, 4.0, 0, -2.0, 0, 0, 0]]), np.array([0.1]), np.arange(2)
    quality = SourceClassifier(scaler(8, 2.0), 2.0, source)
    difficulty = DifficultyModel(Pipeline([("scale", scaler(9, 1.0)), ("probe", net)]), None, None, None)
    raw, score = difficulty.predictor.predict(table.phi.astype(float)), quality.score(z)
    corrections = pd.DataFrame(
        {"label": ["easy", "odd", "alone"], "n_labelled": [60, 10, 0], "residual": [0.1, -0.2, 0.0], "shrinkage": [0.5, 0.2, 0.0]}
    )
    kept = np.ones(40, dtype=bool)
    kept[np.argsort(score)[:8]] = False
    ranking = raw + (corrections["residual"] * corrections["shrinkage"]).to_numpy()[assigned.label]
    scores = pd.DataFrame({"sample_id": table.ids, "cluster": assigned.label, "distance": assigned.distance, "raw": raw,
                           "calibrated": raw, "ranking": ranking, "length": 5.0, "score": score, "kept": kept})  # fmt: skip
    pool = scores[scores["kept"]]
    arrays = (pool[name].to_numpy() for name in ("cluster", "ranking", "raw", "length"))
    plan = build_plan(pool["sample_id"].tolist(), *arrays, config)
    samples = [Sample(i, f"What is {i}?", ("1+1=2",), "2", "A -> B", 2.0, "target") for i in table.ids]
    widths = pd.DataFrame({"width": [0.5, 0.75, np.inf], "n": [60, 70, 5], "own": [True, False, False]})
    return Evidence(samples, table, names, scores, corrections, Scorer(space, difficulty, widths, quality=quality), plan, config)


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return world()


def test_every_audit_adds_up_agrees_with_the_plan_and_says_why(evidence: Evidence) -> None:
    place, said = evidence.plan.table.set_index("sample_id"), {True: set(), False: set(), None: set()}
    for row in evidence.scores.itertuples():
        record = audit(row.sample_id, evidence)
        difficulty, cluster, batch, swap = (record[name] for name in ("difficulty", "cluster", "batch", "swap"))
        parts = difficulty["parts"]
        total = parts["intercept"] + sum(part["contribution"] for part in parts["listed"]) + parts["others"]
        assert total == pytest.approx(row.raw)
        expected = difficulty["calibrated"] + difficulty["shrinkage"] * difficulty["residual"]
        assert difficulty["ranking"] == pytest.approx(expected)
        assert cluster["distance"] < cluster["second_distance"]
        assert (batch is None) == (row.sample_id not in place.index)
        if batch:
            planned = place.loc[row.sample_id]
            assert (batch["step"], batch["slot"], batch["position"]) == (planned.step, planned.slot, planned.position)
            assert batch["batch"][batch["slot"]]["sample_id"] == row.sample_id
            assert (batch["ranking"], batch["blurred"]) == (pytest.approx(planned.ranking_score), False)
            below = [r < planned.ranking_score for r in place.loc[place["cluster"] == planned.cluster, "ranking_score"]]
            assert (batch["cluster_place"], batch["n_cluster"]) == (sum(below) + 1, len(below))
            assert swap["swapped"] == (planned.swapped_with >= 0) == (swap["home_step"] != batch["step"])
        json.dumps(record, allow_nan=False)
        text = audit_text(record)
        if swap is None and row.kept:
            assert "fills no batch of its cluster, being among its hardest, and is never" in " ".join(text.split())
        elif swap is None:
            quality = record["quality"]
            assert quality["score"] < quality["threshold"] and "dropped by the filter and is never trained on" in text
            by_source = audit_text(audit(row.sample_id, replace(evidence, by_source=True)))
            assert "3. Filter: not used by this plan" in by_source and "is not of the target source and is never" in by_source
        elif swap["swapped"]:
            assert swap["partner"] == batch["step"] and not swap["candidates"][0]["failed"]
            assert f"exchanged from step {swap['home_step']} to step {batch['step']}" in text
        elif swap["in_tail"]:
            assert swap["partner"] is None and all(candidate["failed"] for candidate in swap["candidates"])
            assert "found no partner" in text
        else:
            assert "stays: only the last 1 of a batch are exchanged" in text
        said[swap and swap["swapped"]].add(swap and swap["in_tail"])
    assert said == {True: {True}, False: {True, False}, None: {None}}, "the small world holds every case"
    still = world(replace(CONFIG, swapped_per_batch=0))
    assert "stays: this plan exchanges nothing" in audit_text(audit(still.plan.ids[0], still))


def test_the_interval_says_where_it_comes_from(evidence: Evidence) -> None:
    own, borrowed, short = (audit(i, evidence)["difficulty"] for i in ("item-00", "item-12", "item-24"))
    assert own["high"] - own["low"] == pytest.approx(1.0)
    assert (own["interval_of_cluster"], borrowed["interval_of_cluster"], short["high"]) == (True, False, None)
    assert "labelled samples of all clusters" in audit_text(audit("item-12", evidence)).replace("\n   ", " ")
    assert "too few labels for a 95 % interval" in audit_text(audit("item-24", evidence)).replace("\n   ", " ")
    pool = evidence.scores["ranking"].to_numpy()
    assert own["percentile"] == pytest.approx(100 * ((pool < own["ranking"]).sum() + 0.5) / 40)


def test_unknown_ids_and_stages_of_different_runs_are_refused(evidence: Evidence) -> None:
    with pytest.raises(DataError, match="not among the 40 of the pool, such as item-00$"):
        audit("zzz", evidence)
    other = replace(evidence, scores=evidence.scores.assign(raw=evidence.scores["raw"] + 0.1))
    with pytest.raises(ArtifactError, match="raw difficulty: stored .* different runs"):
        audit("item-00", other)
    shuffled = replace(evidence.plan, table=evidence.plan.table.assign(sample_id=evidence.plan.ids[::-1]))
    with pytest.raises(ArtifactError, match="not the saerl plan of this pool"):
        audit(evidence.plan.ids[0], replace(evidence, plan=shuffled))


def test_the_command_prints_text_json_and_near_ids(evidence: Evidence, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from saerl_lib import cli
    from saerl_lib.plan import audit as command

    for name, value in (("load_stage", None), ("audit_stage", None), ("open_evidence", evidence)):
        monkeypatch.setattr(command, name, lambda *_, value=value: value)
    assert cli.main(["audit", "item-03", "--profile", "smoke"]) == 0
    assert capsys.readouterr().out.startswith("Sample item-03 (target source, A -> B, difficulty label 2.00).")
    assert cli.main(["audit", "item-03", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sample_id"] == "item-03"
    assert cli.main(["audit", "item-3"]) == 1
    assert "did you mean item-" in capsys.readouterr().err
