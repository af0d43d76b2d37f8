"""The path of profile `paper` from the published rows to the tables, on local stand-ins of every model, SAE and data set."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shlex
import shutil
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.isotonic import IsotonicRegression

from saerl_lib import needs
from saerl_lib.artifacts import Stage
from saerl_lib.cli import main
from saerl_lib.cost import PaperConfig
from saerl_lib.data.answers import Checked, check_answers
from saerl_lib.data.hub import SETS
from saerl_lib.data.sample import DataError, Sample, normalise, read_samples
from saerl_lib.plan.batch_plan import plan_hash, read_plan
from saerl_lib.plan.follow import follow, read_log
from saerl_lib.properties.difficulty import cluster_corrections
from saerl_lib.report.tables import read_table
from saerl_lib.studies import paper, paper_runs
from saerl_lib.studies.paper import STEPS, Home, trains
from saerl_lib.train import policy, sampler
from saerl_lib.train.run import read_run
from tests import stand_ins as build
from tests.test_paper import BARE

B, G, ATTEMPTS, TARGET, PARENT, RATED = 16, 2, 2, 40, 30, 60
COMPARED: dict[tuple[str, str], Checked] = {}
"""What the checking process said of (gold, answer): it starts for new pairs alone, which spares its slow import."""


def checked_once(pairs: list[tuple[str, str]], seconds: float) -> list[Checked]:
    """`check_answers`, with what it said before."""
    new = [pair for pair in pairs if pair not in COMPARED]
    COMPARED.update(zip(new, check_answers(new, seconds), strict=True))
    return [COMPARED[pair] for pair in pairs]


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder with stand-ins, the outputs of a run, and the options that name them."""

    root: Path
    options: list[str]

    @property
    def out(self) -> Path:
        return self.root / "home" / "paper"

    def run(self, *words: str) -> tuple[int, str, str]:
        """Exit code, standard output and error of `python -m saerl_lib WORDS` with the options; probes start no process."""
        out, error = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), pytest.MonkeyPatch.context() as patch,
            joblib.parallel_config("threading"),
        ):  # fmt: skip
            patch.setenv("SAERL_HOME", str(self.root / "home"))
            patch.setenv("HF_DATASETS_CACHE", str(self.root / "cache"))
            patch.setattr(policy, "check_answers", checked_once)
            code = main([*words, *self.options])
        return code, out.getvalue(), error.getvalue()


def make(root: Path, encoder: str, policy: str, sae: str, outside: int) -> Place:
    rows, others = build.deepmath_rows(TARGET), build.numina_rows(PARENT)
    asked = build.benchmark_rows("aime24")[0]["problem"].upper()
    rows += [rows[0], {**rows[1], "question": asked}, {**rows[2], "question": "What is $1+0$?", "difficulty": -1.0}]
    sources = root / "sources"
    build.write_set(sources, "deepmath", rows)
    build.write_set(sources, "numinamath", others)
    for name in paper_runs.SETS:
        build.write_set(sources, name, build.benchmark_rows(name))
    if outside:
        shared = {"problem": others[0]["problem"], "answer": "2", "solution": "", "pass_rate": 0.5}
        build.write_set(sources, "deepscaler", [*build.deepscaler_rows(outside - 1), shared])
        build.write_set(sources, "prm800k", build.prm_rows(RATED))
    texts = [r["question"] + "\n" + r["r1_solution_1"] for r in rows] + [r["problem"] + "\n" + r["solution"] for r in others]
    build.build_qwen(encoder, texts, root / "encoder")
    build.teach(build.build_qwen(policy, texts, root / "policy"), [r["question"] for r in rows])
    named = str(build.build_saelens(root / "sae")) if sae == "saelens" else f"opensae:{build.build_opensae(root / 'sae')}"
    options = [
        "--sources", str(sources), "--encoder", str(root / "encoder"), "--layer", "2", "--sae", named,
        "--policy", str(root / "policy"), "--labelled", "32",
        "--source-labels", "12", "--clusters", "3", "--retained", "8", "--prompts-per-step", str(B),
        "--rollouts", str(G), "--micro-batch", "8", "--max-completion", "8", "--learning-rate", "1e-3",
        "--eval-every", "1", "--attempts", str(ATTEMPTS),
    ]  # fmt: skip
    return Place(root, options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, str]:
    """Qwen3 reads through a SAELens SAE, Qwen2 trains: two arms, two seeds, one pass over the plan; all steps at once."""
    place = make(tmp_path_factory.mktemp("whole"), "qwen3", "qwen2", "saelens", outside=0)
    place.options.extend(["--seeds", "2", "--steps", "2", "--to", "trl", "verl"])
    code, out, error = place.run("run", "--profile", "paper")
    assert code == 0, error
    return place, out


@pytest.fixture(scope="module")
def stepwise(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Qwen2 reads through an OpenSAE checkpoint, Qwen3 trains on the filtered pool, beyond the plan's end."""
    place = make(tmp_path_factory.mktemp("stepwise"), "qwen2", "qwen3", "opensae", outside=40)
    place.options.extend(["--arms", "grpo", "saerl_dapo", "--steps", "3", "--train-on", "filtered", "--eval-every", "2"])
    place.options.extend(["--encode-tokens", "57", "--rated", str(RATED - 3)])
    return place


def counts(place: Place, name: str) -> dict[str, int]:
    table = pd.read_csv(place.out / "data" / "counts.csv")
    return dict(table[table["source"] == name][["what", "n"]].itertuples(index=False, name=None))


def test_every_row_is_counted_and_no_benchmark_question_is_trained_on(whole: tuple[Place, str]) -> None:
    place, _ = whole
    assert counts(place, "deepmath") == {"read": TARGET + 3, "question occurs twice": 1, "question is in aime24": 1}
    assert counts(place, "numinamath") == {"read": PARENT, "no answer to check": PARENT // 10}
    assert (counts(place, "labelled"), counts(place, "target")) == ({"kept": 32}, {"kept": TARGET + 1 - 32})
    trained = {s.prompt.lower() for s in read_samples(place.out / "plans" / "samples.parquet")}
    asked = {s.prompt.lower() for name in paper_runs.SETS for s in read_samples(place.out / "data" / f"eval_{name}.parquet")}
    assert not trained & asked and len(asked) == 12


def test_scores_are_equation_10_and_labels_of_l_alone_decide(whole: tuple[Place, str]) -> None:
    place, _ = whole
    scores = pd.read_parquet(place.out / "scores" / "scores.parquet")
    labelled = {s.id for s in read_samples(place.out / "data" / "labelled.parquet")}
    cards = pd.read_csv(place.out / "scores" / "clusters.csv")
    inside = scores[scores["sample_id"].isin(labelled)]
    g = IsotonicRegression(out_of_bounds="clip").fit(inside["raw"], inside["label"])
    residuals = (inside["label"] - g.predict(inside["raw"])).to_numpy()
    found = cluster_corrections(residuals, inside["cluster"].to_numpy(), len(cards), 50.0)
    np.testing.assert_array_equal(cards["n_labelled"], found.n_labelled)
    np.testing.assert_allclose(cards["shrinkage"], found.shrinkage)
    np.testing.assert_allclose(cards["residual"], found.residual, atol=1e-9)
    corrections = (found.shrinkage * found.residual)[scores["cluster"]]
    assert np.abs(corrections).max() > 1e-4 and len(inside) == 32 < len(scores)
    np.testing.assert_allclose(scores["ranking"], g.predict(scores["raw"]) + corrections, atol=1e-9)
    rules = pd.read_csv(place.out / "tables" / "filter.csv").set_index("rule")
    assert rules.loc["full", "n_pool"] == TARGET + 1 + PARENT * 9 // 10 and rules.loc["full", "recall"] == 1


def test_what_was_consumed_is_the_plan(whole: tuple[Place, str], capsys: pytest.CaptureFixture[str]) -> None:
    place, _ = whole
    runs = sorted((place.out / "runs").iterdir())
    assert len(runs) == 4
    for run in runs:
        plan = place.out / "plans" / f"{run.name.rpartition('-')[0]}.parquet"
        assert main(["verify", "--plan", str(plan), "--log", str(run / "rollouts.parquet")]) == 0
        assert "the plan was followed: 2 steps" in capsys.readouterr().out
    names = [f"{arm}-seed{seed}" for arm in ("grpo", "saerl_grpo") for seed in (0, 1)]
    hashes = [plan_hash(read_plan(place.out / "plans" / f"{name}.parquet")) for name in names]
    assert hashes[2] == hashes[3] and len(set(hashes)) == 3, "random orders differ by seed, SAERL's plan is one"
    rest = pd.read_csv(place.out / "plans" / "left_out.csv")
    assert len(rest) == TARGET + 1 - 2 * B and set(rest["reason"]) == {f"fills no whole batch of {B}"}
    for trainer in ("trl", "verl"):
        assert (place.out / "plans" / "exports" / trainer / "saerl_grpo-seed1" / "README.md").is_file()


def test_tables_hold_every_set_attempt_and_step(whole: tuple[Place, str]) -> None:
    place, _ = whole
    attempts = [pd.read_parquet(path) for path in sorted(place.out.glob("evaluation-*/attempts.parquet"))]
    assert len(attempts) == 2 + 4 * 2, "the policy before training is evaluated once a seed"
    for frame in attempts:
        assert frame.groupby("eval_set").size().to_dict() == dict.fromkeys(paper_runs.SETS, 2 * ATTEMPTS)
        assert not frame.duplicated(["eval_set", "sample_id", "attempt"]).any()
    everything = pd.concat(attempts)
    assert 0.1 < everything["correct"].mean() < 0.7 and set(everything["outcome"]) <= {"same", "compared", "no answer"}
    runs = pd.read_csv(place.out / "tables" / "runs.csv")
    assert len(runs) == 4 * 3 and set(runs["completions"]) == {12 * ATTEMPTS}
    start = runs[(runs["step"] == 0) & (runs["seed"] == 0)]["mean_avg"]
    assert start.nunique() == 1 and runs["mean_avg"].nunique() > 1, "both arms start at the same evaluation"
    assert runs[runs["step"] == 0]["entropy"].isna().all() and runs[runs["step"] > 0]["entropy"].gt(0).all()
    tables = place.out / "tables"
    assert len(read_table("study_targets", tables)) == 4 * 6 and len(read_table("training_curves", tables)) == 4 * 2
    compared = read_table("study_comparisons", tables)
    assert compared[["arm", "baseline", "n_seeds", "paper_value"]].values.tolist() == [["saerl_grpo", "grpo", 2, 3.0]]
    quality = read_table("sae_quality", tables).set_index("quantity")
    assert quality.loc["explained variance", "value"] > 0.9 and (quality["n_tokens"] > 1000).all()
    assert pd.read_csv(tables / "summary.csv")[["arm", "n_seeds"]].values.tolist() == [["grpo", 2], ["saerl_grpo", 2]]


def test_a_second_run_computes_nothing(whole: tuple[Place, str], monkeypatch: pytest.MonkeyPatch) -> None:
    place, first = whole
    for owner, name in ((paper, "open_reader"), (paper_runs, "train"), (paper_runs, "GenerateSampler")):
        monkeypatch.setattr(owner, name, lambda *_: pytest.fail("computed again"))
    code, out, _ = place.run("run", "--profile", "paper")
    assert code == 0 and "computed" not in out and "trained" not in out
    assert first.count("computed") + first.count("trained,") == out.count("found") > 15


def test_steps_run_one_by_one_and_name_what_is_missing(stepwise: Place) -> None:
    code, _, error = stepwise.run("paper", "plan")
    assert code == 1 and "run `python -m saerl_lib paper data`" in error
    for step in ("data", "encode", "plan"):
        assert stepwise.run("paper", step)[0] == 0
    lengths = pd.read_parquet(stepwise.out / "features" / "lengths.parquet")
    assert lengths["tokens"].max() == 57 and lengths["truncated"].any(), "long samples are cut"
    code, out, _ = stepwise.run("paper", "train", "--commands")
    lines = [shlex.split(line) for line in out.splitlines()]
    assert code == 0 and [words[1:4] for words in lines] == [["-m", "saerl_lib", "train-job"]] * 2
    assert [read_run(Path(words[4])).train.loss for words in lines] == ["grpo", "dapo"]
    code, _, error = Place(stepwise.root, [*stepwise.options, "--launch", "true"]).run("paper", "train")
    assert code == 1 and "left no final weights" in error
    assert main(lines[1][3:]) == 0, "the printed command trains, as behind a launcher"
    code, out, _ = stepwise.run("paper", "train")
    assert code == 0 and out.count("trained,") == 1 and out.count("found") == 1
    assert stepwise.run("paper", "evaluate")[0] == 0
    code, out, error = stepwise.run("paper", "report")
    assert code == 0, error
    assert pd.read_csv(stepwise.out / "tables" / "runs.csv")["step"].tolist() == [0, 2, 3] * 2, "the last step is evaluated too"
    cut = pd.read_csv(stepwise.out / "tables" / "truncated.csv").set_index("group")
    assert cut["n"].sum() == len(lengths) and cut["truncated"].sum() == lengths["truncated"].sum()
    assert not (stepwise.out / "tables" / "study_comparisons.csv").exists(), "one seed has no paired difference"


def test_training_beyond_the_plans_end_starts_it_again(stepwise: Place) -> None:
    for run in sorted((stepwise.out / "runs").iterdir()):
        plan = read_plan(stepwise.out / "plans" / f"{run.name.rpartition('-')[0]}.parquet")
        log = read_log(run / "rollouts.parquet")
        report = follow(plan, log)
        assert (plan.steps, report.steps_logged, report.steps_kept, report.log_ended) == (2, 3, 3, True)
        third = {name for name, step in zip(log.ids, log.steps or (), strict=True) if step == 3}
        assert third == set(plan.ids[:B])


def test_the_filtered_pool_holds_what_the_classifier_kept(stepwise: Place) -> None:
    scores = pd.read_parquet(stepwise.out / "scores" / "scores.parquet")
    assert scores["planned"].sum() == TARGET + 1
    regimes = pd.read_csv(stepwise.out / "tables" / "difficulty.csv").set_index("target")
    read = regimes.loc[regimes["features"] == "sae"]
    assert read["n_test"].tolist() == [TARGET - 32, 36, 36]
    assert read["value"].notna().tolist() == [False, True, True], "eight test problems are too few"
    assert {"mean", "length", "metadata", "tfidf", "sae", "sae+metadata", "shuffled_labels"} == set(regimes["features"])
    assert counts(stepwise, "deepscaler") == {"read": 40}, "a question of NuminaMath-1.5 is kept: it is never tested with it"


def test_the_quality_of_solutions_is_read_from_step_labels_question_by_question(stepwise: Place) -> None:
    assert counts(stepwise, "prm800k") == {
        "read": RATED + 1, "step labels judge no solution (bad_problem)": 1, "beyond the number drawn": 3,
    }  # fmt: skip
    samples = paper.group(Stage("data", stepwise.out / "data", "", False), "rated")
    sizes = pd.Series([normalise(s.prompt) for s in samples]).value_counts()
    assert (sizes == 3).all(), "what is left out is one whole question, the last by its hash"
    rows = pd.read_csv(stepwise.out / "tables" / "solutions.csv")
    test = sum(not trains(normalise(s.prompt)) for s in samples)
    assert set(rows["n_test"]) == {test} and set(rows["n_train"]) == {len(samples) - test} and test % 3 == 0
    found = rows.set_index(["features", "metric"])
    assert {name for name, _ in found.index} >= {"mean", "metadata", "tfidf", "sae", "shuffled_labels"}
    expected = (2 / 27) ** 0.5  # solutions of quality 1, 2/3 and 1/3 to every question, the mean being 2/3
    assert found.loc[("mean", "rmse"), ["value", "ci_low", "ci_high"]].tolist() == pytest.approx([expected] * 3), "by question"


def test_what_a_gpu_encoded_is_planned_without_one(stepwise: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    here, elsewhere = paper.precisions(PaperConfig())
    monkeypatch.setattr(paper, "precisions", lambda config: (elsewhere, here))
    code, _, error = stepwise.run("paper", "plan")
    assert code == 0, error
    monkeypatch.setattr(paper, "precisions", lambda config: (elsewhere, paper.Precision("cuda", True)))
    code, _, error = stepwise.run("paper", "plan")
    assert code == 1 and "run `python -m saerl_lib paper encode`" in error, "parts of two precisions are never mixed"


def test_an_sae_of_another_model_is_an_error(stepwise: Place, tmp_path: Path) -> None:
    """Turned round, a decoder adds to the residual stream what it should explain."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(stepwise.out / "data", tmp_path / "home" / "paper" / "data")
    build.build_opensae(tmp_path / "sae")
    tensors = load_file(tmp_path / "sae" / "model.safetensors")
    save_file({**tensors, "W_dec": -tensors["W_dec"]}, tmp_path / "sae" / "model.safetensors")
    code, _, error = Place(tmp_path, [*stepwise.options, "--sae", f"opensae:{tmp_path / 'sae'}"]).run("paper", "encode")
    assert code == 1 and "explained variance -" in error and "--layer" in error and "--encoder" in error
    assert [p.name for p in (tmp_path / "home" / "paper").iterdir()] == ["data"]


def test_other_options_make_other_stages_and_keep_earlier_runs(stepwise: Place) -> None:
    code, _, error = Place(stepwise.root, [*stepwise.options, "--learning-rate", "1e-5"]).run("paper", "report")
    assert code == 1 and "run `python -m saerl_lib paper train`" in error
    assert len(list((stepwise.out / "runs").iterdir())) == 2


# What is missing.


def test_missing_stand_ins_are_all_named(whole: tuple[Place, str], tmp_path: Path) -> None:
    place, _ = whole
    (tmp_path / "sources" / "openai" / "gsm8k").mkdir(parents=True)
    (tmp_path / "encoder").mkdir()
    words = ["--sources", str(tmp_path / "sources"), "--encoder", str(tmp_path / "encoder"), "--sae", f"opensae:{tmp_path}",
             "--policy", str(tmp_path / "nowhere")]  # fmt: skip
    for step in ("data", "train"):
        code, _, error = Place(tmp_path, words).run("paper", step)
        assert code == 1 and "zwhe99/DeepMath-103K, AI-MO/NuminaMath-1.5" in error and "openai/gsm8k" not in error
        assert "no config.json there" in error and "nowhere: no such folder" in error and "--sae opensae:" in error
    assert not (tmp_path / "home").exists()


def test_without_stand_ins_the_machine_is_asked(
    whole: tuple[Place, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place, _ = whole
    monkeypatch.setattr(needs, "look", lambda: BARE)
    code, out, error = Place(tmp_path, ["--policy", str(place.root / "policy")]).run("run", "--profile", "paper")
    assert code == 1 and "not given: --sources, --encoder, --sae\n" in error and "--plan-only" in error
    assert "  - network:" in out and "  - GPU:" in out and "--revision SET=HASH for amc23, minerva, olympiadbench" in out
    assert not (tmp_path / "home").exists()


def test_hub_models_are_fetched_at_their_revision_without_pickles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: list[dict] = []

    def snapshot(name: str, **rest: object) -> str:
        asked.append({"name": name, **rest})
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    config = PaperConfig(policy="Qwen/Qwen2.5-Math-7B")
    assert paper.model_folder(paper.policy_model(config), "--policy") == tmp_path
    assert asked[0]["name"] == config.policy and len(asked[0]["revision"]) == 40
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked[0]["allow_patterns"])

    def offline(name: str, **rest: object) -> str:
        raise FileNotFoundError("offline mode is enabled")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE=0.*--policy FOLDER"):
        paper.model_folder(paper.policy_model(config), "--policy")
    with pytest.raises(DataError, match="amc23, minerva, olympiadbench"):
        paper.sets_to_read(PaperConfig())
    assert paper.sae_name(PaperConfig()) == "saelens:qwen-scope-3-1.7b-base-w32k-l50/layer27"


def test_malformed_rows_stop_the_step_or_are_listed(whole: tuple[Place, str], tmp_path: Path) -> None:
    place, _ = whole
    sources = tmp_path / "sources"
    shutil.copytree(place.root / "sources", sources)
    rows = build.numina_rows(PARENT)
    rows[3]["problem"] = " "
    build.write_set(sources, "numinamath", rows)
    words = ["--sources", str(sources), *place.options[2:]]
    code, _, error = Place(tmp_path, words).run("paper", "data")
    assert code == 1 and "numinamath row 3: field 'problem' is empty" in error and "--skip-bad-rows" in error
    assert not (tmp_path / "home" / "paper" / "data").exists()
    skipping = Place(tmp_path, [*words, "--skip-bad-rows"])
    assert skipping.run("paper", "data")[0] == 0
    assert counts(skipping, "numinamath")["malformed"] == 1
    assert "row 3" in pd.read_csv(skipping.out / "data" / "malformed.csv")["problem"][0]


def test_draws_are_made_among_labelled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = build.deepscaler_rows(40)
    bare = [{k: v for k, v in row.items() if k != "pass_rate" or i % 2} for i, row in enumerate(rows)]
    monkeypatch.setattr(paper, "published_rows", lambda source: iter(bare))
    found = paper.Rows(PaperConfig(sources="unused"))
    drawn = found.drawn("deepscaler", 12, with_label=True)
    assert len(drawn) == 12 and all(np.isfinite(sample.difficulty) for sample in drawn)
    assert found.counts["deepscaler", "no difficulty label"] == 20 and found.counts["deepscaler", "beyond the number drawn"] == 8


def test_repeated_ids_are_counted_by_row() -> None:
    samples = [Sample(name, "p", ("s",), "1") for name in ("a", "b", "b", "b", "c", "c")]
    with pytest.raises(DataError, match="target: id 'b' is given to 3 rows, and 1 more ids occur several times"):
        paper._require_distinct("target", samples)


def test_other_defaults_of_the_library_make_other_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes, clusters and plans read settings that no option names; their keys hold them."""
    asked: list[dict] = []

    class Keys(Home):
        def stage(self, step, name, settings, compute, inputs=()):
            asked.append(dict(settings))

    monkeypatch.setattr(paper, "model_identity", lambda model: "model")
    home = Keys(PaperConfig(), frozenset())
    paper.fit_stage(home, None, None)
    paper.plans_stage(home, None, None)
    assert {"shrinkage_tau", "clusters", "cluster_fit_rows"} <= set(asked[0]["properties"])
    assert {"window_batches", "length_tolerance", "swapped_per_batch"} <= set(asked[1]["plan"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["paper", "data", "--arms", "best"], "name each of grpo"),
        (["paper", "data", "--revision", "amc23"], "write SET=HASH"),
        (["paper", "data", "--filter-samples", "0"], "filter_samples=0 must be at least 1"),
        (["paper", "data", "--attempts", "0"], "eval_samples=0 must be at least 1"),
        (["paper", "data", "--micro-batch", "3"], "micro_batch=3 does not divide"),
        (["paper", "data", "--steps", "2", "--to", "openrlhf"], "exports=openrlhf"),
        (["paper", "data", "--commands"], "--commands belongs to step train"),
    ],
)
def test_options_that_do_not_fit_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1
    assert message in capsys.readouterr().err


def test_folders_are_meant_from_where_the_command_was_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sae").mkdir()
    monkeypatch.setenv("SAERL_CALLED_FROM", str(tmp_path))
    named = PaperConfig(sae_source="opensae:sae", policy="Qwen/Qwen2.5-Math-7B", encoder_folder="sae")
    config = paper_runs.from_here(named)
    assert (config.sae_source, config.encoder_folder) == (f"opensae:{tmp_path / 'sae'}", str(tmp_path / "sae"))
    assert config.policy == "Qwen/Qwen2.5-Math-7B"


def test_attempts_are_judged_by_text_then_by_meaning() -> None:
    pairs = [("0.5", "\\frac{1}{2}"), ("0.5", "0.5"), ("0.5", ""), ("0.5", "3")]
    frame = policy.judged(pd.DataFrame(pairs, columns=["gold", "answer"]), seconds=3)
    assert frame["correct"].tolist() == [True, True, False, False]
    assert frame["outcome"].tolist() == ["compared", "same", "no answer", "compared"]


def test_the_papers_values_are_the_defaults() -> None:
    config = PaperConfig()
    assert (config.steps, config.prompts_per_step, config.swapped_per_batch) == (900, 128, 8)
    settings = paper_runs.settings_of(config, "saerl_dapo")
    assert (settings.learning_rate, settings.rollouts_per_prompt) == (1e-6, 8)
    assert (settings.max_completion_tokens, settings.loss) == (3072, "dapo")
    assert PaperConfig(prompts_per_step=512).swapped_per_batch == 32 and tuple(STEPS)[-1] == "report"
    assert set(paper_runs.SETS) <= set(SETS) and json.dumps(dataclasses.asdict(config))


def test_arms_that_choose_as_they_learn_are_measured_and_trained(
    stepwise: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ADARFT and GAINRL on the stand-ins, from the base policy's pass rates and angles to the report's earlier tables."""
    shutil.copytree(stepwise.root / "home", tmp_path / "home", ignore=shutil.ignore_patterns("runs", "evaluation-*", "tables"))
    place = Place(tmp_path, [*stepwise.options, "--arms", "adarft", "gainrl", "--rate-attempts", "3", "--to", "trl"])
    place.options.extend(["--measure-part", "20"])
    assert place.run("paper", "plan")[0] == 0
    assert not (place.out / "plans" / "exports").exists(), "no other trainer is given an order that is not one"
    code, _, error = place.run("paper", "train")
    assert code == 1 and "run `python -m saerl_lib paper measure`" in error
    code, out, error = place.run("paper", "measure")
    assert code == 0, error
    samples = sorted(read_samples(place.out / "plans" / "samples.parquet"), key=lambda s: s.id)
    assert out.count("measured-pass_rate-") == out.count("measured-angle") == -(-len(samples) // 20) > 1
    rates = pd.read_parquet(place.out / "measured" / "pass_rate.parquet")
    assert rates["sample_id"].tolist() == [s.id for s in samples]
    assert set((3 * rates["pass_rate"]).round(6)) <= {0, 1, 2, 3} and 0 < rates["pass_rate"].mean() < 1
    assert pd.read_csv(place.out / "measured" / "measured.csv")["rollouts"].tolist() == [3 * len(samples), 0]
    angles = pd.read_parquet(place.out / "measured" / "angle_concentration.parquet").set_index("sample_id")["angle_concentration"]
    policy = sampler.GenerateSampler(stepwise.root / "policy")
    tokenizer, sample = sampler.open_tokenizer(str(policy.folder), [], local=True), samples[7]
    (shown,) = sampler.shown_prompts(tokenizer, [sample.prompt], True)
    start = shown.index(sample.prompt)
    tokens = tokenizer(shown, return_tensors="pt", add_special_tokens=False, return_offsets_mapping=True)
    asked = [i for i, (low, high) in enumerate(tokens.pop("offset_mapping")[0].tolist())
             if high > start and low < start + len(sample.prompt)]  # fmt: skip
    states = torch.nn.functional.normalize(policy.model(**tokens, output_hidden_states=True).hidden_states[-1][0].detach(), dim=1)
    cosines = (states @ states.T)[asked].mean(dim=0)
    expected = cosines[asked].mean() + 8 * cosines[: asked[0]].mean()
    assert angles[sample.id] == pytest.approx(expected.item(), abs=1e-5), "the template stands before the question"
    code, out, error = place.run("paper", "train")
    assert code == 0 and out.count("trained, 3 steps, as chosen") == 2, error
    runs = [read_run(path) for path in sorted((place.out / "runs").iterdir())]
    assert [Path(run.table).name for run in runs] == ["pass_rate.parquet", "angle_concentration.parquet"]
