"""The steps in their order, and the commands `paper STEP` and `run --profile paper`.

Step `measure`: what the arms that choose as they learn need to know of the base policy, for every planned sample.

ADARFT takes the share of right answers among some rollouts (paper, section C.3: 16, whose cost it counts), GAINRL the angle
concentration of the last layer's states over the prompt. The samples are measured in parts, so that a step that was stopped goes
on with the part it was in. Nothing is computed when no such arm is asked for.

Step `train`: TRL's GRPO on every plan, in this process or under a launcher.

A run's folder carries the hash of all that decides it; a run that was stopped goes on from its last checkpoint, and a finished
one is found.

Step `evaluate`: kept policies on the six benchmarks, several attempts a problem (paper, section 4.1: Avg@8, Pass@8 on AIME24).

An answer counts when it is the gold one to the letter or by math-verify within its time, in a process that is killed when the
time is up. Each policy is a stage of its own, named by the hash of its run, so that another policy's evaluations stay; the
first evaluation, of the policy before training, is shared by the arms.

Step `report`: the tables of the trained arms, in the schema of the study's tables where it fits.

runs.csv (one row a run and evaluation), summary.csv (one an arm), study_targets.csv, training_curves.csv and, with several seeds,
study_comparisons.csv; beside them what the earlier steps counted and measured. Percent, AIME24 by Pass@k where a name says so.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage
from saerl_lib.config import TrainConfig, content_hash, sub_seed
from saerl_lib.cost import SELECTORS, PaperConfig
from saerl_lib.data.sample import Sample, read_samples
from saerl_lib.encode.models import open_tokenizer
from saerl_lib.encode.tokens import Layout, pack, sample_spans
from saerl_lib.needs import require_machine
from saerl_lib.notebooks import UserError
from saerl_lib.report.statistics import compare
from saerl_lib.report.study import FAMILIES, RUN, SMALLEST_POINTS, comparison_row, final_values, outcomes, set_rates, target_steps
from saerl_lib.report.tables import write_csv
from saerl_lib.studies.paper import (
    SETS,
    STEPS,
    Home,
    group,
    missing,
    model_folder,
    model_identity,
    plan_name,
    policy_model,
    require_stand_ins,
    samples_digest,
)
from saerl_lib.train.policy import attempted, counted, judged
from saerl_lib.train.run import Run, command, plan_run, train, write_run
from saerl_lib.train.sampler import GenerateSampler


def tell(text: str) -> None:
    """Print at once: a step may take long."""
    print(text, flush=True)


def run_paper(step: str, commands: bool, settings: PaperConfig) -> int:
    """`paper STEP`: one step, on what the earlier ones left, or all; `commands` prints those of the runs of step train."""
    config = from_here(settings)
    require_stand_ins(config)
    if step == "all":
        require_machine(config, tell)
    if commands:
        if step != "train":
            raise UserError("--commands belongs to step train")
        return print_commands(config)
    done = run_steps(config, STEPS if step == "all" else (step,), tell)
    tell(f"{'tables' if step == 'all' else step}: {done}")
    return 0


def from_here(config: PaperConfig) -> PaperConfig:
    """Folders by their path from the root: run_all.sh changes the folder and passes on where it was called. Other names stay."""
    here, changed = Path(os.environ.get("SAERL_CALLED_FROM") or ".").absolute(), {}
    for name in ("sources", "encoder_folder", "sae_source", "policy"):
        value = getattr(config, name) or ""
        head = "opensae:" if value.startswith("opensae:") else ""
        path = here / Path(value.removeprefix(head)).expanduser()
        if value and path.is_dir():
            changed[name] = head + str(path)
    return dataclasses.replace(config, **changed)


def run_steps(config: PaperConfig, steps: tuple[str, ...], say: Callable[[str], None] = lambda text: None) -> Path:
    """Compute the named steps on what those before them left; returns the folder of the last one.

    Raises ArtifactError when an earlier step was not run with the same settings, and what the steps raise.
    """
    home, last = Home(config, frozenset(steps), say), max(STEPS.index(step) for step in steps)
    # imports are local so that a step needs no more than it uses
    from saerl_lib.studies.paper import data_stage

    data = data_stage(home)
    if last == STEPS.index("data"):
        return data.folder
    from saerl_lib.studies.paper import encode_stage

    encoded = encode_stage(home, data)
    if last == STEPS.index("encode"):
        return encoded.folder
    from saerl_lib.studies.paper import fit_stage, plans_stage

    scores = fit_stage(home, data, encoded)
    plans = plans_stage(home, data, scores)
    if last == STEPS.index("plan"):
        return plans.folder
    measured = measured_stage(home, plans)
    if last == STEPS.index("measure"):
        return measured.folder if measured is not None else plans.folder
    runs = train_runs(home, plans, measured)
    if last == STEPS.index("train"):
        return home.folder / "runs"
    evaluated = evaluate_runs(home, data, runs)
    if last == STEPS.index("evaluate"):
        return home.folder
    earlier = (data, encoded, scores, plans, *([measured] if measured is not None else []))
    return report_stage(home, earlier, runs, evaluated).folder


def print_commands(config: PaperConfig) -> int:
    """The command of every run, one a line, for a scheduler's job script; the records are written, nothing is trained."""
    from saerl_lib.studies.paper import data_stage, encode_stage, fit_stage, plans_stage
    from saerl_lib.train.run import command

    home = Home(config, frozenset())
    data = data_stage(home)
    plans = plans_stage(home, data, fit_stage(home, data, encode_stage(home, data)))
    for run in planned_runs(home, plans, measured_stage(home, plans)):
        tell(shlex.join(command(write_whole(run, config), config.launch)))
    return 0


def measured_file(measured: Stage, arm: str) -> Path:
    """What the selector of `arm` reads: Parquet with sample_id and its column of `SELECTORS`."""
    return measured.path(f"{SELECTORS[arm]}.parquet")


def measured_stage(home: Home, plans: Stage) -> Stage | None:
    """One Parquet file for every arm of `SELECTORS` that is asked for, see `measured_file`, and measured.csv, their summary.

    None when no arm needs it.
    """
    config = home.config
    columns = [column for arm, column in SELECTORS.items() if arm in config.arms]
    if not columns:
        return None
    samples = sorted(read_samples(plans.path("samples.parquet")), key=lambda sample: sample.id)
    policy, parts = _Opened(config), _parts(samples, config.measure_part)
    found = {column: [_part(home, column, number, part, policy) for number, part in parts] for column in columns}
    stages = tuple(stage for own in found.values() for stage in own)

    def compute(folder: Path) -> None:
        attempts, rows = {"pass_rate": config.adarft_samples, "angle_concentration": 0}, []
        for column in columns:
            table = pd.concat([pd.read_parquet(stage.path("part.parquet")) for stage in found[column]], ignore_index=True)
            table.to_parquet(folder / f"{column}.parquet", index=False)
            values = table[column]
            rows.append((column, len(table), attempts[column] * len(table), values.mean(), values.std(ddof=0)))
        summary = pd.DataFrame(rows, columns=["quantity", "n_samples", "rollouts", "mean", "sd"])
        summary.to_csv(folder / "measured.csv", index=False, float_format="%.6g", lineterminator="\n")

    return home.stage("measure", "measured", {"columns": columns}, compute, stages)


class _Opened:
    """The base policy, opened when a part has to be computed and once for all of them."""

    policy: GenerateSampler | None

    def __init__(self, config: PaperConfig) -> None:
        self.config, self.model = config, policy_model(config)
        self.identity, self.policy = model_identity(self.model), None

    def __call__(self) -> GenerateSampler:
        if self.policy is None:
            self.policy = GenerateSampler(
                model_folder(self.model, "--policy"), self.config.bf16, self.config.chat, self.config.measure_sequences
            )
        return self.policy


def _parts(samples: Sequence[Sample], size: int) -> list[tuple[int, Sequence[Sample]]]:
    return [(number, samples[start : start + size]) for number, start in enumerate(range(0, len(samples), size))]


def _part(home: Home, column: str, number: int, samples: Sequence[Sample], opened: _Opened) -> Stage:
    config, measure = home.config, MEASURES[column]
    seed = sub_seed(config.seed, f"{column}-{number}")
    shared = {
        "policy": opened.identity, "samples": samples_digest(samples), "chat": config.chat, "bf16": config.bf16,
    }  # fmt: skip
    own = {
        "pass_rate": {
            "attempts": config.adarft_samples, "max_tokens": config.max_response_tokens, "temperature": config.temperature,
            "seconds": config.answer_seconds, "sequences": config.measure_sequences, "seed": seed,
        },
        "angle_concentration": {"tokens": config.tokens_per_batch},
    }  # fmt: skip

    def compute(folder: Path) -> None:
        values = measure(opened(), samples, config, seed)
        table = pd.DataFrame({"sample_id": [sample.id for sample in samples], column: values})
        table.to_parquet(folder / "part.parquet", index=False)

    return home.stage("measure", f"measured-{column}-{number:05d}", shared | own[column], compute)


def pass_rates(policy: GenerateSampler, samples: Sequence[Sample], config: PaperConfig, seed: int) -> np.ndarray:
    """Share of right answers among `adarft_samples` rollouts of each sample, [N]."""
    how = (config.adarft_samples, config.max_response_tokens, config.temperature, sub_seed(seed, "rates"))
    rows = attempted(policy, "rates", samples, *how)
    right = judged(rows, config.answer_seconds).groupby("sample_id")["correct"].mean()
    return right.reindex([sample.id for sample in samples]).to_numpy(dtype=float)


TEMPLATE_WEIGHT = 8.0
"""Of the tokens before the question (their public script)."""


@torch.inference_mode()
def angle_concentration(policy: GenerateSampler, samples: Sequence[Sample], tokens_per_batch: int, chat: bool) -> np.ndarray:
    """GAINRL's score of a prompt: how close the directions of the policy's last-layer states lie (arXiv 2506.02281, their code).

    Mean cosine of the question's tokens with each other, each pair and itself, plus `TEMPLATE_WEIGHT` times that with the
    tokens of the chat template before them, float64 [N]; plain prompts have none.

    Samples of similar length go together, padded behind. Raises DataError when the template changes a question.
    """
    tokenizer = open_tokenizer(str(policy.folder), [s.prompt for s in samples[:20]], local=True)
    spans = [sample_spans(sample, tokenizer, Layout(chat=chat, prompt_only=True)) for sample in samples]
    out = np.empty(len(spans))
    for rows in pack([len(span.ids) for span in spans], tokens_per_batch):
        width = max(len(spans[i].ids) for i in rows)
        ids, real, question, before = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(4))
        for place, i in enumerate(rows):
            span = spans[i]
            ids[place, : len(span.ids)], real[place, : len(span.ids)] = torch.tensor(span.ids), 1
            question[place, : len(span.ids)] = torch.tensor(span.prompt, dtype=torch.long)
            before[place, : span.prompt.index(True) if chat else 0] = 1
        inputs = {"input_ids": ids.to(policy.device), "attention_mask": real.to(policy.device)}
        states = policy.model.base_model(**inputs, use_cache=False).last_hidden_state.double().cpu()
        directions = torch.nn.functional.normalize(states, dim=-1)
        own, other = (
            (directions * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1) for mask in (question, before)
        )
        out[list(rows)] = ((own * own).sum(dim=1) + TEMPLATE_WEIGHT * (own * other).sum(dim=1)).numpy()
    return out


def angles(policy: GenerateSampler, samples: Sequence[Sample], config: PaperConfig, seed: int) -> np.ndarray:
    """Angle concentration of each sample's prompt as the policy gets it, [N]; nothing is drawn."""
    return angle_concentration(policy, samples, config.tokens_per_batch, config.chat)


MEASURES: dict[str, Callable[[GenerateSampler, Sequence[Sample], PaperConfig, int], np.ndarray]] = {
    "pass_rate": pass_rates, "angle_concentration": angles,
}  # fmt: skip
"""Column -> how it is measured."""


SEEDS = 1000
"""A run's seed is 1000 x base seed + matched seed, as in the world's study."""


def settings_of(config: PaperConfig, arm: str) -> TrainConfig:
    """What the paper and the options say of a run."""
    return TrainConfig(
        engine="trl", seeds=1, rollouts_per_prompt=config.rollouts_per_prompt, micro_batch=config.micro_batch,
        learning_rate=config.learning_rate, temperature=config.temperature, max_completion_tokens=config.max_response_tokens,
        checkpoint_every_steps=config.eval_every_steps, keep_every_steps=config.eval_every_steps,
        vllm=config.vllm, bf16=config.bf16, chat=config.chat, loss="dapo" if arm in ("dapo", "saerl_dapo") else "grpo",
    )  # fmt: skip


def kept_steps(run: Run) -> list[int]:
    """The evaluated steps after the first."""
    every = run.train.keep_every_steps or run.updates
    return sorted({*range(every, run.updates + 1, every), run.updates})


def planned_runs(home: Home, plans: Stage, measured: Stage | None = None) -> list[Run]:
    """Every run, seed by seed; `measured` is there when an arm of `SELECTORS` is."""
    config, model = home.config, policy_model(home.config)
    name, identity, runs = model if isinstance(model, str) else model.repository, model_identity(model), []
    for seed in range(config.seeds):
        for arm in config.arms:
            known = measured_file(measured, arm) if measured is not None and arm in SELECTORS else None
            run = plan_run(
                plans.path(f"{plan_name(arm, seed)}.parquet"), plans.path("samples.parquet"), name, home.folder,
                settings_of(config, arm), SEEDS * config.seed + seed, config.steps, arm, known, identity,
            )  # fmt: skip
            runs.append(dataclasses.replace(run, folder=home.folder / "runs" / f"{plan_name(arm, seed)}-{run.key[:8]}"))
    return runs


def train_runs(home: Home, plans: Stage, measured: Stage | None = None) -> list[Run]:
    """Train what is not finished. Raises ArtifactError when a run fails, or is missing and its step was not asked for."""
    runs = planned_runs(home, plans, measured)
    for run in runs:
        found = run.finished
        if not found and "train" not in home.steps:
            raise missing("train", f"run {run.folder.name}")
        if not found:
            train_run(run, home.config)
        if "train" in home.steps:
            made = f"trained, {home.config.steps} steps, as {'chosen' if run.table else 'planned'}"
            home.say(f"train: {run.folder.name} {'found' if found else made}")
    return runs


def train_run(run: Run, config: PaperConfig) -> None:
    """Train or resume one run."""
    run = write_whole(run, config)
    if not config.launch:
        return train(run)
    path = os.pathsep.join(filter(None, (str(paths.ROOT), os.environ.get("PYTHONPATH"))))
    code = subprocess.run(command(run, config.launch), env={**os.environ, "PYTHONPATH": path}).returncode
    if code:
        raise ArtifactError(f"run {run.folder.name} ended with exit code {code}; the same command continues it")
    if not run.finished:
        raise ArtifactError(f"run {run.folder.name} left no final weights; does --launch start the command that follows it?")


def write_whole(run: Run, config: PaperConfig) -> Run:
    """The run with its policy's folder, fetched where it is missing, and its record written."""
    run = dataclasses.replace(run, policy=str(model_folder(policy_model(config), "--policy")))
    write_run(run)
    return run


def evaluate_runs(home: Home, data: Stage, runs: Sequence[Run]) -> list[Stage]:
    """One stage a seed for the policy before training, one a run and kept step after it: attempts.parquet."""
    config, base = home.config, policy_model(home.config)
    stages, identity = [], model_identity(base)
    for seed in range(config.seeds):
        name = f"initial-{content_hash(identity)[:8]}-seed{seed}"
        stages.append(_stage(home, data, name, model_folder(base, "--policy"), identity, seed, 0))
    for run in runs:
        for step in kept_steps(run):
            name = f"{run.folder.name}-{step:05d}"
            stages.append(_stage(home, data, name, run.kept(step), f"{run.key}@{step}", run.seed % SEEDS, step))
    return stages


def _stage(home: Home, data: Stage, name: str, folder: Path, policy: str, seed: int, step: int) -> Stage:
    config, sets = home.config, {set_name: group(data, f"eval_{set_name}") for set_name in SETS}
    settings = {
        "policy": policy, "sets": {key: samples_digest(samples) for key, samples in sets.items()},
        "attempts": config.eval_samples, "max_tokens": config.max_response_tokens, "temperature": config.eval_temperature,
        "chat": config.chat,
        "seconds": config.answer_seconds, "bf16": config.bf16, "sequences": config.eval_sequences,
        "seed": sub_seed(config.seed, f"evaluation-{seed}-{step}"),
    }  # fmt: skip

    def compute(out: Path) -> None:
        sampler = GenerateSampler(folder, config.bf16, config.chat, config.eval_sequences)
        how = (config.eval_samples, config.max_response_tokens, config.eval_temperature)
        answers = [attempted(sampler, key, samples, *how, sub_seed(settings["seed"], key)) for key, samples in sets.items()]
        rows = judged(pd.concat(answers, ignore_index=True), config.answer_seconds)
        rows.drop(columns="gold").assign(step=step).to_parquet(out / "attempts.parquet", index=False)

    return home.stage("evaluate", f"evaluation-{name}", settings, compute)


def evaluations(stages: Sequence[Stage], runs: Sequence[Run], config: PaperConfig) -> pd.DataFrame:
    """One row a run, step and problem, in the study's columns: arm, seed, step, eval_set, sample_id, attempts, correct.

    The evaluation before training stands in every arm of its seed. Stages are those of `evaluate_runs`.
    """

    @cache
    def read(place: int) -> pd.DataFrame:
        frame = pd.read_parquet(stages[place].path("attempts.parquet"))
        return counted(frame).assign(step=frame["step"].iloc[0])

    parts, place = [], config.seeds
    for run in runs:
        own = [read(run.seed % SEEDS)]
        for _ in kept_steps(run):
            own.append(read(place))
            place += 1
        parts.append(pd.concat(own).assign(arm=run.arm, seed=run.seed % SEEDS))
    return pd.concat(parts, ignore_index=True)


PASS_SET = "aime24"
"""Scored by Pass@8, the others by Avg@8 (paper, section 4.1)."""
KEPT = (("data", "counts.csv"), ("data", "malformed.csv"), ("features", "truncated.csv"), ("features", "sae_quality.csv"),
        ("scores", "difficulty.csv"), ("scores", "solutions.csv"), ("scores", "filter.csv"),
        ("scores", "separation.csv"), ("scores", "clusters.csv"), ("plans", "left_out.csv"),
        ("measured", "measured.csv"))  # fmt: skip
"""(stage, file) of the earlier steps' tables."""
TRAINING = ["reward_mean", "zero_variance_share", "entropy", "grad_norm", "completion_tokens"]


def report_stage(home: Home, earlier: Sequence[Stage], runs: Sequence[Run], evaluated: Sequence[Stage]) -> Stage:
    """The folder of tables; `earlier` are the stages named in `KEPT`."""

    def compute(folder: Path) -> None:
        frame, curve = evaluations(evaluated, runs, home.config), training_curve(runs)
        frame.to_parquet(folder / "evaluations.parquet", index=False)
        table = runs_table(frame, curve)
        table.to_csv(folder / "runs.csv", index=False, float_format="%.6g", lineterminator="\n")
        problems = int(frame.groupby("eval_set")["sample_id"].nunique().max())
        targets = target_steps(frame, home.config.arms, problems, home.config.steps)
        summary_table(frame, table, targets, home.config.arms).to_csv(
            folder / "summary.csv", index=False, float_format="%.6g", lineterminator="\n"
        )
        write_csv(targets, "study_targets", folder)
        write_csv(curve, "training_curves", folder)
        if home.config.seeds > 1 and len(comparisons := comparison_table(frame)):
            write_csv(comparisons, "study_comparisons", folder)
        for stage in earlier:
            for name, file in KEPT:
                if stage.name == name:
                    shutil.copyfile(stage.path(file), folder / file)

    config = home.config
    settings = {"runs": [run.key for run in runs], "arms": list(config.arms), "steps": config.steps, "seed": config.seed}
    return home.stage("report", "tables", settings, compute, (*earlier, *evaluated))


def training_curve(runs: Sequence[Run]) -> pd.DataFrame:
    """Rows of training_curves.csv, from TRL's own log."""
    return pd.concat([pd.read_parquet(run.folder / "curve.parquet") for run in runs])[[*RUN, "step", *TRAINING]]


def runs_table(evaluations: pd.DataFrame, curve: pd.DataFrame) -> pd.DataFrame:
    """One row an arm, seed and evaluated step: problems, completions, Avg@k a set, means, Pass@k of AIME24, training since."""
    key = [*RUN, "step"]
    rates = set_rates(evaluations)
    wide = rates.pivot(index=key, columns="eval_set", values="avg")
    passed = rates[rates["eval_set"] == PASS_SET].set_index(key)["passed"]
    others = wide.drop(columns=PASS_SET)
    table = evaluations.groupby(key).agg(problems=("sample_id", "size"), completions=("attempts", "sum"))
    table = table.join(wide.add_prefix("avg_"))
    table[f"pass_{PASS_SET}"] = passed
    table["mean_avg"], table["mean_without_pass_set"] = wide.mean(axis=1), others.mean(axis=1)
    table["mean_with_pass"] = pd.concat([others, passed], axis=1).mean(axis=1)
    table = table.reset_index().sort_values(key)
    before = table.groupby(RUN)["step"].shift(fill_value=-1)
    trained = []
    for row, low in zip(table.itertuples(), before, strict=True):
        own = (curve["arm"] == row.arm) & (curve["seed"] == row.seed) & curve["step"].between(low + 1, row.step)
        trained.append(curve[own][TRAINING].mean())
    return pd.concat([table.reset_index(drop=True), pd.DataFrame(trained).reset_index(drop=True)], axis=1)


def summary_table(evaluations: pd.DataFrame, runs: pd.DataFrame, targets: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """One row an arm: seeds, outcome (the last evaluation's mean with Pass@k on AIME24, as Table 4) with its deviation over
    seeds, the last evaluation of every set, steps to target as the mean over sets (as Table 5)."""
    outcome = outcomes(final_values(evaluations, PASS_SET))
    last = runs[runs["step"] == runs["step"].max()]
    rows = []
    for arm in arms:
        own, part = outcome.loc[arm], targets[targets["arm"] == arm]
        shown = last[last["arm"] == arm].filter(regex="^(avg|pass|mean)_").mean().add_prefix("final_")
        row = {"arm": arm, "n_seeds": len(own), "outcome": own.mean(), "outcome_sd": own.std(ddof=1)} | shown.to_dict()
        rows.append(row | {"steps_to_target": part["steps"].mean(), "targets_reached": part["reached"].mean()})
    return pd.DataFrame(rows)


def comparison_table(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Rows of study_comparisons.csv: the paper's pairs of arms that were trained, paired by seed, corrected by Holm."""
    present = set(evaluations["arm"])
    pairs = [pair for pair in FAMILIES["paper"] if {pair.arm, pair.baseline} <= present]
    found = compare(final_values(evaluations, PASS_SET), [(pair.arm, pair.baseline) for pair in pairs], SMALLEST_POINTS)
    return pd.DataFrame([comparison_row("paper", "outcome", pair, c) for pair, c in zip(pairs, found, strict=True)])
