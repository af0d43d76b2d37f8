"""A plan of one's own data: every malformed input is named, no row is lost or doubled, and the report holds text, not markup."""

from __future__ import annotations

import doctest
import importlib
import json
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_lib import __main__
from saerl_lib.data.sample import DataError
from saerl_lib.encode.encoder import ENCODER, encoder_folder
from saerl_lib.own import Fields, OwnConfig, load_data, plan_own_data
from saerl_lib.own.arrange import whole_batches
from saerl_lib.own.fit import Quality, fit_quality, properties_of
from saerl_lib.own.report import embedded
from saerl_lib.own.represent import represent_text
from saerl_lib.paths import ROOT
from saerl_lib.plan.batch_plan import read_plan
from saerl_lib.plan.compare import plan_diff

SMALL = OwnConfig(prompts_per_step=4, clusters=3)
LABELLED = replace(SMALL, fields=Fields(labels="level"))


def rows(n: int = 60, **extra: Any) -> list[dict[str, Any]]:
    """n problems of three kinds; the level grows with the numbers, not with the length."""
    kinds = ("Add {} and {}.", "What is the area of a {} by {} rectangle?", "Find the remainder of {} divided by {}, a prime.")
    return [
        {"id": f"p-{i}", "question": kinds[i % 3].format(7 * i + 3, 11 + 13 * (i % 17)), "answer": str(i),
         "solution": f"Step one of {i}.\nStep two.", "subject": f"kind {i % 3}", "level": 1 + i % 17 // 4, **extra}
        for i in range(n)
    ]  # fmt: skip


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(r) for r in records) + "\n", encoding="utf-8")
    return str(path)


def fails(tmp_path: Path, source: str, config: OwnConfig = LABELLED) -> str:
    """The message of the DataError of a plan, which must leave nothing behind."""
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(DataError) as caught:
        plan_own_data(source, tmp_path / "out", config)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    return str(caught.value)


# Malformed data: the message names file, row, field and fix, and nothing is written.


def changed(**values: Any) -> list[dict[str, Any]]:
    """Rows whose third one has other values."""
    records = rows()
    records[2] |= values
    return records


def test_three_rows_are_too_few(tmp_path: Path) -> None:
    message = fails(tmp_path, write_jsonl(tmp_path / "my.jsonl", rows(3)))
    assert "3 of 3 rows are usable, at least 10 are needed" in message and "--prompts-per-step" not in message
    many = fails(tmp_path, write_jsonl(tmp_path / "my.jsonl", rows(20)), replace(LABELLED, prompts_per_step=32))
    assert "20 of 20 rows are usable, at least 32 are needed" in many and "lower --prompts-per-step" in many
    message = fails(tmp_path, write_jsonl(tmp_path / "my.jsonl", rows(30)), replace(SMALL, prompts_per_step=32))
    assert "at least 32 are needed" in message


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    assert "no such file" in fails(tmp_path, str(tmp_path / "absent.jsonl"))
    (tmp_path / "folder").mkdir()
    assert "is a folder" in fails(tmp_path, str(tmp_path / "folder"))


def test_pass_rates_are_shares(tmp_path: Path) -> None:
    config = replace(SMALL, fields=Fields(labels="pass_rate"))
    assert "outside 0 to 1" in fails(tmp_path, write_jsonl(tmp_path / "my.jsonl", rows(20, pass_rate=75)), config)
    data = load_data(write_jsonl(tmp_path / "my.jsonl", rows(20, pass_rate=0.75)), config)
    assert np.allclose(data.labels, 0.25)  # larger is harder
    easy = replace(SMALL, fields=Fields(labels="level"), larger_is_easier=True)
    assert load_data(write_jsonl(tmp_path / "my.jsonl", rows(20)), easy).labels[0] == -1
    turned = json.loads((make(tmp_path, rows(60), easy, "turned") / "run.json").read_text())["caveats"]
    (note,) = (c["text"] for c in turned if c["title"] == "Labels are turned round")
    assert "A larger level means easier" in note
    assert "Labels are turned round" not in [c["title"] for c in json.loads((make(tmp_path) / "run.json").read_text())["caveats"]]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"encoder": "model"}, "needs --layer and --sae"), ({"layer": 3}, "need a model"), ({"keep": 0.5}, "--quality"),
        ({"keep": 1.5, "fields": Fields(quality="ok")}, "--keep 1.5"), ({"prompts_per_step": 1}, "at least 2"),
        ({"label_range": (5.0, 1.0)}, "--label-range"), ({"without_labels": "hash"}, "length or random"),
        ({"clusters": 0}, "clusters"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(change: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        OwnConfig(**change)


# The plan: nothing lost, nothing doubled, nothing half-written.


@settings(max_examples=15)
@given(
    good=st.integers(12, 50), faults=st.lists(st.sampled_from(("json", "id", "label", "answer", "prompt", "twice")), max_size=6),
    b=st.integers(2, 9), labelled=st.booleans(), keep=st.sampled_from((None, 0.5, 1.0)), seed=st.integers(0, 3),
)  # fmt: skip
def test_no_row_is_lost_or_doubled(
    tmp_path_factory: pytest.TempPathFactory, good: int, faults: list[str], b: int, labelled: bool, keep: float | None, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("property")
    lines = [json.dumps(r | {"sound": i % 2 == 0}) for i, r in enumerate(rows(max(good, 24)))]
    for number, fault in enumerate(faults):
        bad = rows(1)[0] | {"id": f"bad-{number}"}
        bad |= {"id": {"id": []}, "label": {"level": "?"}, "answer": {"answer": ""}, "prompt": {"question": ""},
                "twice": {"id": "p-1"}, "json": {}}[fault]  # fmt: skip
        lines.insert((number * 7 + seed) % len(lines), "{" if fault == "json" else json.dumps(bad))
    (folder / "my.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = OwnConfig(
        fields=Fields(labels="level" if labelled else None, quality="sound" if keep else None), prompts_per_step=b, keep=keep,
        skip_bad_rows=True, seed=seed,
    )  # fmt: skip
    outcome = plan_own_data(str(folder / "my.jsonl"), folder / "out", config)
    plan, rest = read_plan(folder / "out" / "plan.parquet"), pd.read_csv(folder / "out" / "not_planned.csv")
    scores = pd.read_csv(folder / "out" / "scores.csv")
    assert outcome.read == len(lines) == len(plan.ids) + len(rest) and len(set(plan.ids)) == len(plan.ids)
    assert outcome.planned == len(plan.ids) == outcome.steps * b
    assert sum(outcome.left_out.values()) == len(rest) and rest["reason"].notna().all()
    planned = scores[scores["status"] == "planned"].sort_values("position")
    assert planned["id"].tolist() == plan.ids
    places = set(planned["where"]) | set(rest["where"])
    assert places == {f"line {i + 1}" for i in range(len(lines))} and len(planned) + len(rest) == len(places)
    assert (scores["status"] == "left over").sum() < b
    shutil.rmtree(folder)


def make(
    tmp_path: Path, records: list[dict[str, Any]] | None = None, config: OwnConfig = LABELLED, name: str = "out", **options: Any
) -> Path:
    source = write_jsonl(tmp_path / "my.jsonl", rows() if records is None else records)
    return plan_own_data(source, tmp_path / name, config, **options).folder


def titles(folder: Path) -> list[str]:
    return [c["title"] for c in json.loads((folder / "run.json").read_text())["caveats"]]


def text_of(folder: Path, title: str) -> str:
    return next(c["text"] for c in json.loads((folder / "run.json").read_text())["caveats"] if c["title"] == title)


def test_equal_runs_give_equal_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    first, second = make(tmp_path, name="a"), make(tmp_path, name="b")
    for name in ("plan.parquet", "scores.csv", "clusters.csv", "not_planned.csv", "features.safetensors", "report.html"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    third = make(tmp_path, name="c", config=replace(LABELLED, seed=1))
    assert (first / "report.html").read_bytes() != (third / "report.html").read_bytes()


def test_the_left_over_do_not_depend_on_the_order_of_the_file() -> None:
    ids = [f"i{n}" for n in range(23)]
    kept = {name for name, keep in zip(ids, whole_batches(ids, ids, 5), strict=True) if keep}
    back = {name for name, keep in zip(ids[::-1], whole_batches(ids[::-1], ids[::-1], 5), strict=True) if keep}
    assert kept == back and len(kept) == 20


def test_a_failure_leaves_nothing_and_an_earlier_plan_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = make(tmp_path)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(DataError, match="--force"):
        make(tmp_path)

    def stop(page: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("saerl_lib.own.report.html", stop)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, force=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my.jsonl", "out"]
    monkeypatch.undo()
    make(tmp_path, force=True, config=replace(LABELLED, seed=5))
    assert (out / "run.json").read_bytes() != before["run.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my.jsonl", "out"]


def test_no_empty_folder_stays_and_a_place_that_cannot_be_written_is_named_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_jsonl(tmp_path / "my.jsonl", rows())
    monkeypatch.setattr("saerl_lib.own.report.html", lambda page: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plan_own_data(source, tmp_path / "a" / "b" / "c", LABELLED)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my.jsonl"]
    for out in (tmp_path / "my.jsonl" / "out", tmp_path / "my.jsonl" / "a" / "out"):
        with pytest.raises(DataError, match="my.jsonl is no folder that can be written"):
            plan_own_data("absent.jsonl", out, LABELLED)


def test_a_folder_that_is_no_plan_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="holds no earlier plan"):
        make(tmp_path, force=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert (make(tmp_path, name="empty") / "run.json").is_file()


# What the plan says about itself.


def test_without_labels_it_says_what_it_cannot_do(tmp_path: Path) -> None:
    by_length = make(tmp_path, config=SMALL)
    assert "a stand-in for difficulty" in text_of(by_length, "No labels")
    scores = pd.read_csv(by_length / "scores.csv")
    assert scores["difficulty"].isna().all() and scores["reason"].str.contains("longer than").all()
    assert "Difficulty against labels" not in (by_length / "report.html").read_text(encoding="utf-8")
    at_random = make(tmp_path, config=replace(SMALL, without_labels="random"), name="random")
    assert "the order is random" in text_of(at_random, "No labels")
    lengths = scores.set_index("id")["length"]
    for folder, rises in ((by_length, True), (at_random, False)):
        plan = read_plan(folder / "plan.parquet").table
        inside = (
            plan[(plan["swapped_with"] < 0)].groupby("step")["sample_id"].apply(lambda ids: lengths[ids].is_monotonic_increasing)
        )
        assert inside.all() == rises


def test_labels_rank_and_may_replace_the_score(tmp_path: Path) -> None:
    records = rows(120)
    for record in records[::2]:
        del record["level"]
    scores = pd.read_csv(make(tmp_path, records) / "scores.csv")
    assert scores["difficulty"].notna().all() and scores["label"].isna().sum() == 60
    own = read_plan(make(tmp_path, records, replace(LABELLED, rank_by="label"), "own") / "plan.parquet").table
    label = scores.set_index("id")["label"].reindex(own["sample_id"]).to_numpy()
    known = np.isfinite(label)
    np.testing.assert_array_equal(own["ranking_score"].to_numpy()[known], label[known])


@pytest.mark.parametrize(
    ("change", "title"),
    [
        (lambda i: {"level": 1 + i % 3 if i < 10 else None}, "Too few labels"),
        (lambda i: {"level": 2}, "All labels are equal"),
        (lambda i: {}, "Few labels"),
        (lambda i: {"question": "Compute " + " ".join(["and"] * (i % 30 + 1)), "solution": None, "level": i % 30},
         "The probe is no better than length"),
        (lambda i: {"level": int(np.random.default_rng(0).permutation(60)[i])},
         "The probe is not shown to be better than length"),
        (lambda i: {"answer": None if i % 3 else "1"}, "40 rows of 60: no answer"),
        (lambda i: {"question": f"Add {i} and {i + 1}." if i < 54 else f"\\zeta({i})\\" * 9, "solution": None},
         "Dominant cluster"),
        (lambda i: {"question": f"Add {i // 2}."}, "30 repeated questions"),
    ],
)  # fmt: skip
def test_what_makes_a_result_doubtful_is_a_warning(tmp_path: Path, change: Callable[[int], dict[str, Any]], title: str) -> None:
    folder = make(tmp_path, [r | change(i) for i, r in enumerate(rows())])
    record = json.loads((folder / "run.json").read_text())
    assert title in record["warnings"]
    assert title in (folder / "report.html").read_text(encoding="utf-8")


def test_labels_that_the_features_hold_raise_no_length_warning(tmp_path: Path) -> None:
    records = [
        r | {"question": f"{'Sum' if i % 2 else 'Integral'} {'of it' * (i % 5)}", "level": i % 2} for i, r in enumerate(rows(90))
    ]
    assert not any("better than length" in title for title in titles(make(tmp_path, records)))


def test_a_filter_keeps_the_share_by_scores_that_saw_no_own_label(tmp_path: Path) -> None:
    records = [r | {"sound": i % 3 == 0 if i % 2 else int(i % 3 == 0)} for i, r in enumerate(rows(90))]
    config = replace(LABELLED, fields=Fields(labels="level", quality="sound"), keep=0.4)
    folder = make(tmp_path, records, config)
    scores = pd.read_csv(folder / "scores.csv")
    assert (scores["status"] == "filtered").sum() == 54
    assert (
        scores.loc[scores["status"] == "filtered", "quality"].max() <= scores.loc[scores["status"] == "planned", "quality"].min()
    )
    data = load_data(str(tmp_path / "my.jsonl"), config)
    found, noise = represent_text(data.samples, 0), np.random.default_rng(0).permutation(np.arange(90) % 2).astype(float)
    fitted = fit_quality(found, noise, properties_of(90, config), 0)
    assert isinstance(fitted, Quality) and abs(fitted.roc_auc - 0.5) < 0.2  # random labels: in-sample it would be near 1
    with pytest.raises(ValueError, match="labelled true and 10 labelled false"):
        make(tmp_path, [r | {"sound": True} for r in rows()], config, "other")
    assert not (tmp_path / "other").exists()


def test_odd_but_valid_data_are_planned(tmp_path: Path) -> None:
    same = [{"id": i, "question": "1+1"} for i in range(12)]
    assert "One cluster" in titles(make(tmp_path, same, SMALL))
    signs = [{"question": "?" * (i + 1), "answer": "ü", "subject": 3} for i in range(13)]
    assert len(pd.read_csv(make(tmp_path, signs, SMALL, "signs") / "scores.csv")) == 13
    half = [r | ({"solution": None} if i % 4 == 0 else {}) for i, r in enumerate(rows(40))]
    assert "30 of 40 rows have a solution; prompt and solution" in text_of(make(tmp_path, half, SMALL, "half"), "What was read")


# The report.


class Reader(HTMLParser):
    """Tags with their attributes, and the text of every script."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> <!-- &lt;b&gt; \u2028 {} \'"` </style>'


def test_text_of_the_data_never_becomes_markup(tmp_path: Path) -> None:
    records = [
        r | {"id": f"{EVIL[:40]}{i}", "question": f"{r['question']} {EVIL}", "subject": EVIL} for i, r in enumerate(rows())
    ]
    source = tmp_path / "<b>my<b>.jsonl"
    write_jsonl(source, [*records, {"id": EVIL, "question": ""}])
    folder = plan_own_data(str(source), tmp_path / "out", replace(LABELLED, skip_bad_rows=True)).folder
    page = (folder / "report.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    names = [name for name, _ in reader.tags]
    assert names.count("script") == 2 and not {"img", "b"} - {"b"} & set(names) and "iframe" not in names
    assert all(not key.startswith("on") for _, attributes in reader.tags for key in attributes)
    values = json.loads(reader.scripts[0])
    assert values["prompt"][0].startswith(records[0]["question"][:30]) and EVIL[:60] in values["prompt"][0]
    assert values["id"] == [r["id"] for r in records]


def test_the_report_asks_for_nothing_and_its_numbers_are_those_of_the_tables(tmp_path: Path) -> None:
    folder = make(tmp_path, rows(70))
    page = (folder / "report.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    links = [a[key] for _, a in reader.tags for key in ("src", "href", "action") if key in a]
    assert links == ["data:,"] and "http://" not in page and "https://" not in page and "innerHTML" not in page
    policy = next(a["content"] for _, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert any(a.get("name") == "viewport" for _, a in reader.tags)
    values, scores = json.loads(reader.scripts[0]), pd.read_csv(folder / "scores.csv")
    assert {len(values[name]) for name in ("x", "y", "id", "prompt", "rank", "step", "reason")} == {70}
    assert values["reason"] == scores["reason"].tolist() and values["step"] == scores["step"].tolist()
    assert min(values["x"]) == 0 and max(values["x"]) == 9999
    cards = pd.read_csv(folder / "clusters.csv")
    assert sum(a.get("class") == "card" for _, a in reader.tags) == len(cards) and cards["n"].sum() == 70
    assert "left over" in page and "2 of 70 rows" in page


def test_embedded_json_survives_and_holds_no_markup() -> None:
    assert json.loads(embedded([EVIL, "&amp;"])) == [EVIL, "&amp;"]
    assert not set("<>&\u2028") & set(embedded(EVIL))


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_parses() -> None:
    script = Path(__main__.__file__).parent / "own" / "page.js"
    assert subprocess.run(["node", "--check", str(script)], capture_output=True).returncode == 0


# A model and an SAE.


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from saerl_lib.config import EncoderConfig
    from saerl_lib.encode.sae import train_sae

    folder = tmp_path_factory.mktemp("sae")
    torch.manual_seed(0)
    train_sae(
        torch.randn(4096, ENCODER.width), EncoderConfig(sae_latents=128, sae_k=8, retained_latents=12), 0, folder, "untrained"
    )
    return folder


def test_a_model_and_its_sae_give_the_features(tmp_path: Path, sae: Path) -> None:
    config = replace(LABELLED, encoder=str(encoder_folder()), layer=3, sae=str(sae), retained_latents=12, max_tokens=60)
    records = rows(45)
    records[7]["solution"] = None
    records[8]["solution"] = "Very long. " * 80
    folder = make(tmp_path, records, config)
    assert not (folder / "store").exists()
    titled = titles(folder)
    assert "1 row cut" in titled and "A first look" not in titled and "The SAE does not fit this layer" in titled
    assert "12 SAE latents of encoder, layer 3" in text_of(folder, "What was read")
    from saerl_lib.encode.features import load_features

    table = load_features(folder / "features.safetensors")
    assert table.z.shape == (45, 48) and not table.solved[7] and table.solved[0] and np.abs(table.z[0]).max() > 0
    assert plan_diff(*[read_plan(folder / "plan.parquet")] * 2).same_batches == 1
    assert pd.read_csv(folder / "scores.csv")["length"].max() == 60


def test_an_sae_of_another_layer_is_told_from_its_own(tmp_path: Path) -> None:
    import torch

    from saerl_lib.config import EncoderConfig
    from saerl_lib.encode.activations import token_vectors, truncate
    from saerl_lib.encode.encoder import load_encoder
    from saerl_lib.encode.sae import train_sae

    samples = load_data(write_jsonl(tmp_path / "my.jsonl", rows(200)), LABELLED).samples
    model, tokenizer = load_encoder()
    vectors = torch.cat(list(token_vectors(samples, truncate(model, 3), tokenizer, 4096)))
    small = EncoderConfig(sae_latents=256, sae_k=16, retained_latents=12, sae_training_tokens=200_000)
    train_sae(vectors, small, 0, tmp_path / "sae")
    config = replace(LABELLED, encoder=str(encoder_folder()), layer=3, sae=str(tmp_path / "sae"), retained_latents=12)
    own, other = (make(tmp_path, rows(45), replace(config, layer=layer), f"layer-{layer}") for layer in (3, 1))
    assert "How well the SAE reads the model" in titles(own) and "The SAE does not fit this layer" not in titles(own)
    assert "The SAE does not fit this layer" in titles(other)


def test_damaged_weights_are_named(tmp_path: Path, sae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_jsonl(tmp_path / "my.jsonl", rows(45))
    for name, good in (("encoder", encoder_folder()), ("sae", sae)):
        bad = tmp_path / name
        shutil.copytree(good, bad)
        (weights,) = bad.glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:200])
        used = {"encoder": encoder_folder(), "sae": sae} | {name: bad}
        options = ["--encoder", str(used["encoder"]), "--layer", "3", "--sae", str(used["sae"]), "--out", str(tmp_path / "out")]
        assert __main__.main(["plan", "--data", source, *options]) == 1
        assert f"{bad}: its weights cannot be read" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_data_are_judged_before_a_model_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saerl_lib.own.model.open_model", lambda *_: pytest.fail("a model was opened"))
    config = replace(LABELLED, encoder=str(encoder_folder()), layer=3, sae="nowhere")
    assert "line 3" in fails(tmp_path, write_jsonl(tmp_path / "my.jsonl", changed(level="x")), config)


@pytest.mark.parametrize(
    ("change", "part"), [({"sae": "nowhere"}, "no cfg.json"), ({"layer": 9}, "choose 1 to 4")]
)  # fmt: skip
def test_what_does_not_fit_the_model_leaves_nothing(tmp_path: Path, sae: Path, change: dict[str, Any], part: str) -> None:
    config = replace(LABELLED, **({"encoder": str(encoder_folder()), "layer": 3, "sae": str(sae)} | change))
    with pytest.raises((ValueError, RuntimeError), match=part):
        make(tmp_path, config=config)
    assert [p.name for p in tmp_path.iterdir()] == ["my.jsonl"]


# The command.


def test_the_command_plans_and_diff_still_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_jsonl(tmp_path / "my.jsonl", rows(70))
    common = ["plan", "--data", source, "--prompts-per-step", "8", "--clusters", "2"]
    assert __main__.main([*common, "--labels", "level", "--label-range", "1", "5", "--out", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert json.loads(out[-1]) | {"seconds": 0} == {
        "read": 70, "planned": 64, "left_out": {"left over": 6}, "steps": 8, "seconds": 0
    }  # fmt: skip
    assert any(line.startswith("warning: Few labels") for line in out) and "not planned, left over: 6 (not_planned.csv)" in out
    assert __main__.main([*common, "--without-labels", "random", "--out", str(tmp_path / "b")]) == 0
    assert __main__.main(["plan", "diff", str(tmp_path / "a" / "plan.parquet"), str(tmp_path / "b" / "plan.parquet")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n"] == 64


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([], "plan diff A B"), (["--data", "x.jsonl"], "--out"), (["--data", "absent.jsonl", "--out", "o"], "no such file"),
        (["--data", "x", "--out", "o", "--layer", "3"], "need a model"),
    ],
)  # fmt: skip
def test_bad_commands_end_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert __main__.main(["plan", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and part in error and "Traceback" not in error and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["arrange", "caveats", "report", "sections"])
def test_docstring_examples(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"saerl_lib.own.{name}"))
    assert found.failed == 0 and found.attempted > 0


def test_style_and_script_belong_to_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["package-data"]["saerl_lib.own"] == ["*.css", "*.js"]
