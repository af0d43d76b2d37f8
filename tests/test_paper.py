"""Profile `paper`: its plan and arithmetic, and its whole path on local stand-ins of every model, SAE and data set."""

from __future__ import annotations

import atexit
import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace as Space
from typing import Any

import huggingface_hub
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbformat import NotebookNode
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from saerl_lib import needs, paths
from saerl_lib.artifacts import Stage
from saerl_lib.cli import main
from saerl_lib.config import PAPER, PAPER_TINY, Profile, PublishedConfig, get_profile
from saerl_lib.data import published
from saerl_lib.data.sample import DataError, load_split, normalise
from saerl_lib.encode.stages import features_stage, store_stage
from saerl_lib.needs import SETS, HubData, model_folder
from saerl_lib.plan.batch_plan import read_plan
from saerl_lib.plan.orders import plans_stage, shown_prompts
from saerl_lib.properties.scorer import difficulty_stage, filter_stage
from saerl_lib.report.study import learning_curves, paired_differences, steps_to_targets
from saerl_lib.settings import Options
from saerl_lib.train import stages as train_stages
from saerl_lib.train.policy import angle_concentration, judged, open_sampler
from saerl_lib.train.run import Run, read_run, train, write_run
from tests import stand_ins as build

TARGET, PARENT, RATED = 122, 90, 90


# The plan.


def test_plan_prints_downloads_costs_and_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, found in (("list_gpus", ()), ("package_faults", ("torch 2.13.0 is not installed",)), ("free_bytes", 10**9)):
        monkeypatch.setattr(needs, name, lambda *_, found=found: found)
    assert main(["run", "--profile", "paper", "--plan-only"]) == 0
    text = capsys.readouterr().out
    for data in SETS.values():
        assert data.repository in text
    assert text.count("  not pinned yet") == 4 and "qwen-scope-3-1.7b-base-w32k-l50/layer27" in text
    for words in ("GPU: 4 of 80 GB", "packages: torch", "disk:", "0.5 H100-hours", "17.33 H100-hours",
                  "All of it: 662 to 2,865 H100-hours, 10 TB of results.", "train the SAE  152.2 to 266.0"):
        assert words in text
    assert len(re.findall(r"^  \w+ .*  (?:stated in the paper|ours)  ", text, re.M)) == 25
    for more, message in ((["--only", "03"], "leave out --only"), (["--policy", "x"], "leave out --policy")):
        assert main(["run", "--profile", "paper", "--plan-only", *more]) == 1
        assert message in capsys.readouterr().err
    assert main(["run", "--profile", "paper", "--policy", "Qwen/Qwen2.5-Math-7B"]) == 1
    error = capsys.readouterr().err
    assert "not given: --data, --reader, --sae, --policy" in error and "pass --revision SET=HASH for amc23, minerva" in error


def test_published_sae_is_in_saelens_registry() -> None:
    name, place = PAPER.reader.sae.removeprefix("saelens:").split("/")
    release = get_pretrained_saes_directory()[name]
    assert needs.SAE[0] == f"{release.repo_id}, {place} alone" and release.model == PAPER.reader.model
    assert place in release.saes_map and int(place.removeprefix("layer")) + 1 == PAPER.reader.layer


def test_the_gpus_of_the_machine_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA A100-SXM4-80GB, 81920'; echo 'no devices, found'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert needs.list_gpus() == (("NVIDIA A100-SXM4-80GB", 81920.0 * 2**20),)
    tool.write_text("#!/bin/sh\necho 'failed to initialize NVML'; exit 9\n")
    assert needs.list_gpus() == () and needs.free_bytes(tmp_path / "not" / "there") > 0


# The path.


def make(root: Path) -> Options:
    """Stand-ins in `root`: Qwen3 reads through a SAELens SAE, Qwen2 trains."""
    rows, others = build.deepmath_rows(TARGET - 2), build.numina_rows(PARENT)
    asked = build.benchmark_rows("aime24")[0]["problem"].upper()
    rows += [rows[0], {**rows[1], "question": asked}]
    build.write_set(root / "sets", "deepmath", rows)
    build.write_set(root / "sets", "numinamath", others)
    for name in PAPER_TINY.eval_sets:
        build.write_set(root / "sets", name, build.benchmark_rows(name))
    shared = {"problem": others[0]["problem"], "answer": "2", "solution": "", "pass_rate": 0.5}
    build.write_set(root / "sets", "deepscaler", [*build.deepscaler_rows(59), shared])
    build.write_set(root / "sets", "prm800k", build.prm_rows(RATED))
    texts = [r["question"] + "\n" + r["r1_solution_1"] for r in rows] + [r["problem"] + "\n" + r["solution"] for r in others]
    build.build_qwen("qwen3", texts, root / "reader")
    build.teach(build.build_qwen("qwen2", texts, root / "policy"), [r["question"] for r in rows[:43]])
    sae = build.build_saelens(root / "sae")
    return Options(data=str(root / "sets"), reader=str(root / "reader"), sae=str(sae), policy=str(root / "policy"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    """The stages of the notebooks once; arms of both kinds, beyond the plan's end. All but the last run train in this process."""
    root = tmp_path_factory.mktemp("paper")
    options = dataclasses.replace(make(root), arms=("grpo", "saerl", "gainrl", "adarft"), steps=8, export_to=("trl", "verl"))
    profile, in_processes = get_profile(options.text("paper_tiny")), train_stages.run_all

    def run_all(runs: list[Run], *words: Any, **more: Any) -> None:
        for run in runs[:-1]:
            write_run(run)
            train(run)
        in_processes(runs, *words, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAERL_HOME", str(root / "home"))
        patch.setenv("HF_DATASETS_CACHE", str(root / "cache"))
        patch.setattr(train_stages, "run_all", run_all)
        stages = dict(zip(("data", "plans", "train", "evaluation"), path(profile), strict=True))
        yield Space(home=root / "home", options=options, profile=profile, **stages)


def path(profile: Profile) -> tuple[Stage, Stage, Stage, Stage]:
    """Data, plans, training and evaluation."""
    data = published.published_stage(profile)
    features = features_stage(profile, data, store_stage(profile, data))
    difficulty, quality = difficulty_stage(profile, data, features), filter_stage(profile, data, features)
    plans = plans_stage(profile, data, features, difficulty, quality)
    trained = train_stages.train_stage(profile, data, plans)
    return data, plans, trained, train_stages.evaluation_stage(profile, data, trained)


def counts(data: Stage, name: str) -> dict[str, int]:
    table = pd.read_csv(data.path("counts.csv"))
    return dict(table[table["source"] == name][["what", "n"]].itertuples(index=False, name=None))


def test_every_row_is_counted_and_no_benchmark_question_is_trained_on(done: Space) -> None:
    data, sizes = done.data, PAPER_TINY.published
    assert counts(data, "deepmath") == {"read": TARGET, "question occurs twice": 1, "question is in aime24": 1}
    drawn, proofs = sizes.parent_samples + sizes.parent_labels, PARENT // 10
    assert counts(data, "numinamath") == {
        "read": PARENT, "no answer to check": proofs, "beyond the number drawn": PARENT - proofs - drawn,
    }  # fmt: skip
    assert counts(data, "deepscaler") == {"read": 60, "beyond the number drawn": 12}, "NuminaMath-1.5 is never tested with it"
    assert counts(data, "prm800k") == {
        "read": RATED + 1, "step labels judge no solution (bad_problem)": 1, "beyond the number drawn": 3,
    }  # fmt: skip
    by_question = pd.Series([normalise(s.prompt) for s in load_split(data, "step_labelled")]).value_counts()
    assert (by_question == 3).all(), "what is left out is one whole question, the last by its hash"
    asked = {s.prompt.lower() for name in PAPER_TINY.eval_sets for s in load_split(data, f"eval_{name}")}
    assert not asked & {s.prompt.lower() for s in load_split(data, "pool")} and len(asked) == 12
    pool, negatives = ({s.id for s in load_split(data, name)} for name in ("pool", "filter_negatives"))
    assert {s.id for name in ("labelled", "test") for s in load_split(data, name)} < pool and not negatives & pool


def test_what_was_consumed_is_the_plan_and_what_a_selector_chose(done: Space, capsys: pytest.CaptureFixture[str]) -> None:
    left = pd.read_csv(done.plans.path("left_out.csv"))["reason"].value_counts().to_dict()
    saerl = read_plan(done.plans.path("saerl.parquet"))
    assert left.pop("fills no batch of its cluster (left out by SAERL alone)", 0) == (TARGET - 2) // 16 * 16 - len(saerl.ids)
    assert left == {"fills no whole batch of 16": (TARGET - 2) % 16}, "the target alone is planned"
    home = train_stages.jobs_home(done.profile)
    for name in ("grpo", "saerl"):
        (run,) = home.glob(f"{name}-seed0-*")
        words = ["--plan", read_run(run).plan, "--log", str(run / "rollouts.parquet"), "--steps", "8"]
        assert main(["verify", *words]) == 0
        assert "the plan was followed" in capsys.readouterr().out
    for trainer in ("trl", "verl"):
        assert (done.plans.folder / "exports" / trainer / "saerl" / "README.md").is_file()
    rates = pd.read_parquet(done.plans.folder.parent / "measured" / "pass_rate.parquet")["pass_rate"]
    assert len(rates) == 112 and set(rates * 16 % 1) == {0} and 0 < rates.mean() < 1
    (chosen,) = home.glob("adarft-seed0-*")
    assert pd.read_parquet(chosen / "rollouts.parquet").groupby("step")["sample_id"].nunique().eq(16).all()


def test_the_evaluations_are_one_long_table_of_all_runs_steps_and_sets(done: Space) -> None:
    frame = pd.read_parquet(done.evaluation.path("evaluations.parquet"))
    assert list(frame)[:5] == ["eval_set", "sample_id", "attempts", "correct", "run"] and set(frame["attempts"]) == {2}
    assert frame.groupby(["arm", "step"]).size().to_dict() == {(arm, s): 12 for arm in done.profile.arms for s in (0, 2, 4, 6, 8)}
    first = frame[frame["step"] == 0].groupby("arm")["correct"].apply(list)
    assert first.map(tuple).nunique() == 1, "all arms start at the same evaluation"
    curves = learning_curves(frame)
    assert set(curves["eval_set"]) == {*PAPER_TINY.eval_sets, "all"} and 0.1 < curves["value"].mean() < 0.8
    assert "pass_at_k" in set(paired_differences(curves, PAPER_TINY.pass_set)["metric"])
    assert len(steps_to_targets(frame, done.profile.curve_problems)) == 4 * 7
    answers = [pd.read_parquet(path) for path in done.evaluation.folder.parent.glob("evaluation-*/attempts.parquet")]
    assert {len(part) for part in answers} == {24} and len(answers) == 1 + 4 * 4, "one for all arms at step 0"


def test_a_second_run_computes_nothing_and_another_setting_keeps_the_runs(done: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(stage.computed for stage in path(done.profile))
    changed = dataclasses.replace(done.profile, train=dataclasses.replace(done.profile.train, learning_rate=1e-5))
    measured = Stage("measured", done.plans.folder.parent / "measured", "", False)
    runs = train_stages.profile_runs(changed, done.data, done.plans, measured)
    assert len(runs) == 4 and not any(run.finished or run.folder.exists() for run in runs)


def test_angle_concentration_by_hand(done: Space) -> None:
    """The template stands before the question, with its own weight."""
    sampler, sample = open_sampler(Path(done.profile.policy), done.profile.train), load_split(done.data, "pool")[7]
    shown = shown_prompts(sampler.tokenizer, [sample.prompt], True)[0]
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": sample.prompt}]
    assert shown_prompts(sampler.tokenizer, [chat], True) == [f"<|im_start|>system\nBe brief.<|im_end|>\n{shown}"]
    start = shown.index(sample.prompt)
    tokens = sampler.tokenizer(shown, return_tensors="pt", add_special_tokens=False, return_offsets_mapping=True)
    asked = [i for i, (low, high) in enumerate(tokens.pop("offset_mapping")[0].tolist())
             if high > start and low < start + len(sample.prompt)]  # fmt: skip
    last = sampler.model(**tokens, output_hidden_states=True).hidden_states[-1][0].detach()
    states = last / last.norm(dim=1, keepdim=True)
    cosines = (states @ states.T)[asked].mean(dim=0)
    expected = cosines[asked].mean() + 8 * cosines[: asked[0]].mean()
    assert angle_concentration(sampler, [sample], done.profile.train)[0] == pytest.approx(expected.item(), abs=1e-5)


def test_attempts_are_judged_by_text_then_by_meaning() -> None:
    pairs = [("0.5", "\\frac{1}{2}"), ("0.5", "0.5"), ("0.5", ""), ("0.5", "3")]
    frame = judged(pd.DataFrame(pairs, columns=["gold", "answer"]), seconds=60)
    assert frame["correct"].tolist() == [True, True, False, False]


# What is missing.


def test_missing_stand_ins_are_all_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], saerl_home: Path) -> None:
    (tmp_path / "sets" / "openai" / "gsm8k").mkdir(parents=True)
    (tmp_path / "reader").mkdir()
    words = ["--data", str(tmp_path / "sets"), "--reader", str(tmp_path / "reader"), "--sae", f"opensae:{tmp_path}",
             "--policy", str(tmp_path / "nowhere")]  # fmt: skip
    assert main(["run", "--profile", "paper", *words]) == 1
    error = capsys.readouterr().err
    assert "zwhe99/DeepMath-103K, AI-MO/NuminaMath-1.5" in error and "openai/gsm8k" not in error and "--sae opensae:" in error
    assert "no config.json there" in error and "nowhere: no such folder" in error and not saerl_home.exists()


def test_hub_models_are_fetched_at_their_revision_without_pickles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **rest: asked.append(rest) or str(tmp_path))
    assert model_folder("Qwen/Qwen2.5-Math-7B", "--policy") == tmp_path and len(asked[0]["revision"]) == 40
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked[0]["allow_patterns"])

    def offline(name: str, **rest: object) -> str:
        raise FileNotFoundError("offline mode is enabled")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE=0.*--policy FOLDER"):
        model_folder("Qwen/Qwen2.5-Math-7B", "--policy")
    with pytest.raises(DataError, match="amc23, minerva, olympiadbench"):
        published.sets_to_read(PAPER)
    with pytest.raises(ValueError, match="40-digit"):
        HubData("x", "a/b", "train", 1, 1, revision="main")


def test_the_hub_is_asked_for_the_pinned_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, rows = list[dict[str, Any]](), build.numina_rows(1)
    monkeypatch.setattr("datasets.load_dataset", lambda repository, **rest: asked.append(rest) or rows)
    assert list(published.published_rows(SETS["numinamath"])) == rows
    assert asked[0]["revision"] == SETS["numinamath"].revision and asked[0]["streaming"] is True
    assert "trust_remote_code" not in asked[0]
    with pytest.raises(DataError, match="not pinned yet"):
        list(published.published_rows(SETS["amc23"]))
    assert len(asked) == 1


def test_malformed_rows_stop_the_stage_or_are_listed(done: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAERL_HOME", str(tmp_path / "home"))
    shutil.copytree(done.options.data, tmp_path / "sets")
    rows = build.numina_rows(PARENT)
    rows[3]["problem"] = " "
    build.write_set(tmp_path / "sets", "numinamath", rows)
    options = dataclasses.replace(done.options, data=str(tmp_path / "sets"))
    with pytest.raises(DataError, match="numinamath row 3: field 'problem' is missing or empty.*--skip-bad-rows"):
        published.published_stage(get_profile(options.text("paper_tiny")))
    data = published.published_stage(get_profile(dataclasses.replace(options, skip_bad_rows=True).text("paper_tiny")))
    assert counts(data, "numinamath")["malformed"] == 1 and "row 3" in pd.read_csv(data.path("malformed.csv"))["problem"][0]


def test_draws_are_made_among_labelled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = [{k: v for k, v in row.items() if k != "pass_rate" or i % 2} for i, row in enumerate(build.deepscaler_rows(40))]
    monkeypatch.setattr(published, "published_rows", lambda source: iter(bare))
    rows = published.PublishedRows(PublishedConfig(folder="unused"))
    drawn = rows.drawn("deepscaler", rows.fresh("deepscaler", True), 12)
    assert len(drawn) == 12 and all(np.isfinite(sample.difficulty) for sample in drawn)
    assert rows.counts["deepscaler", "no difficulty label"] == 20 and rows.counts["deepscaler", "beyond the number drawn"] == 8


def in_this_process(source: str, copy: str, parameters: dict[str, Any], **_: Any) -> NotebookNode:
    """What papermill does, without a kernel, so that everything is imported once."""
    content, shell = nbformat.read(source, as_version=4), InteractiveShell(history_length=0)
    for number, cell in enumerate(content.cells, start=1):
        if cell.cell_type == "code":
            shell.run_cell(cell.source).raise_error()
            shell.push(parameters if "parameters" in cell.metadata.get("tags", []) else {})
            cell.execution_count = number
    plt.close("all")
    shell.atexit_operations()  # now, while its folder is there
    atexit.unregister(shell.atexit_operations)
    nbformat.write(content, copy)
    return content


@pytest.mark.slow
def test_the_notebooks_run_on_published_sets(done: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run --profile paper_tiny`: every notebook, which finds the stages of these options. Real kernels are those of smoke."""
    monkeypatch.setattr(papermill, "execute_notebook", in_this_process)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # a shell takes its place and leaves it empty
    monkeypatch.chdir(paths.ROOT)
    made = (done.train.path("manifest.json"), done.evaluation.path("manifest.json"))
    before = [path.stat().st_mtime_ns for path in made]
    words = [word for name in ("data", "reader", "sae", "policy") for word in (f"--{name}", getattr(done.options, name))]
    words += ["--arms", *done.options.arms, "--steps", "8", "--to", *done.options.export_to]
    with pd.option_context("display.max_colwidth", None):
        assert main(["run", "--profile", "paper_tiny", *words]) == 0
    assert [path.stat().st_mtime_ns for path in made] == before, "nothing is trained or evaluated anew"
    tables = done.home / "paper_tiny" / "figures" / "data"
    assert {"learning_curves.csv", "steps_to_target.csv", "filter.csv", "sae_quality.csv"} <= {p.name for p in tables.iterdir()}
