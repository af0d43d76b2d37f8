"""One training run: the record of all that decides it, and how it is trained, resumed, checked against its plan and finished.

Its folder holds run.json (the record), checkpoints, logs and progress.json; after the end rollouts.parquet, curve.parquet,
evaluations.parquet, final/ (the trained policy) and, written last, done.json. `python -m saerl_lib train-job FOLDER` runs or
resumes it, alone or behind a launcher (`torchrun`, `accelerate launch`), whose processes share every step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from transformers import TrainerCallback

from saerl_lib.artifacts import (
    ArtifactError,
    code_hash,
    file_sha256,
    locked,
    provenance,
    read_json,
    resident_mib,
    write_atomic,
    write_json,
)
from saerl_lib.config import PlanConfig, TrainConfig, content_hash, sub_seed, to_dict
from saerl_lib.data.sample import SAMPLES
from saerl_lib.encode.models import open_causal
from saerl_lib.plan.batch_plan import plan_hash, read_plan
from saerl_lib.plan.trainers import append_rows, cut_back, in_plan_order, open_export, read_rows, read_sample_file
from saerl_lib.train.arms import ArmPool, ArmSetting, find_arm
from saerl_lib.train.policy import evaluate
from saerl_lib.train.sampler import Sampler
from saerl_lib.train.selectors import InOrder, Selector
from saerl_lib.train.trainer import Feed, PackedFeed, PlanTrainer, grpo_arguments, require_gathered, save_weights

RECORD, DONE, STATE = "run.json", "done.json", "trainer_state.json"
PARENT = "SAERL_PARENT"
"""Environment variable with the process id of whoever started a run and stops it when it ends."""
CURVE = {"reward": "reward_mean", "frac_reward_zero_std": "zero_variance_share", "entropy": "entropy", "grad_norm": "grad_norm",
         "completions/mean_length": "completion_tokens", "loss": "loss"}  # fmt: skip
"""TRL's log names against ours."""
ROLLOUTS = ["step", "round", "row", "sample_id", "used", "reward", "completion_tokens", "completion"]
"""`row` numbers the rollouts of a step's round over all processes; `used` is False for those that dynamic sampling dropped; only
engine "packed" keeps the completions."""


@dataclass(frozen=True)
class Run:
    """An arm, a seed, and everything that decides the outcome."""

    arm: str
    seed: int
    """Fixes rollouts and evaluations; the arms of a matched seed share it."""
    folder: Path
    policy: str
    """Folder in Hugging Face format, or a hub name for engine "trl"."""
    samples: str
    """File of samples that the plan or the selector chooses from."""
    prompts_per_step: int
    steps: int
    """Evaluation steps, each worth `rollouts_per_step` rollouts whatever the arm's batch; beyond a plan's end it starts again."""
    rollouts_per_step: int
    train: TrainConfig
    plan: str = ""
    """Parquet of the batch plan, '' where a selector chooses from all samples."""
    table: str = ""
    """Parquet that the arm's selector reads, which then chooses (among the plan's samples, with a plan); '': the plan decides."""
    arms: str = ""
    """File with the user's own arms, '' for none."""
    sets: tuple[str, ...] = ()
    """Evaluation sets, eval_<name>.parquet each; none: the run is not evaluated while it trains."""
    small_problems: int = 0
    """Problems of each set in the small evaluations."""
    initial: str = ""
    """Evaluation of the initial weights, which all arms of a matched seed share."""
    key: str = ""
    """Content hash of all that decides the run, not of where files lie; `keyed` computes it."""

    @property
    def budget(self) -> int:
        """Rollouts of the run."""
        return self.steps * self.rollouts_per_step

    @property
    def updates(self) -> int:
        """Optimiser steps that the budget pays for."""
        return -(-self.budget // (self.prompts_per_step * self.train.rollouts_per_prompt))

    @property
    def last_update(self) -> int:
        """Optimiser steps with those of the common random tail."""
        tail = self.train.tail_steps * self.rollouts_per_step
        return self.updates - (-tail // (self.prompts_per_step * self.train.rollouts_per_prompt))

    def progress(self, update: int, generated: int) -> int:
        """Evaluation steps that are spent after `update` optimiser steps and `generated` rollouts."""
        by_steps = self.train.dynamic_sampling == "equal_steps"
        spent = update * self.prompts_per_step * self.train.rollouts_per_prompt if by_steps else generated
        return spent // self.rollouts_per_step

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end under its present key and had followed its plan or selector."""
        return (read_json(self.folder / DONE) or {}).get("key") == self.key

    @property
    def step(self) -> int:
        """Evaluation steps that are done, as its process last told."""
        return int((read_json(self.folder / "progress.json") or {}).get("step", 0))

    def kept(self, step: int) -> Path:
        """The folder of a kept step's weights."""
        return self.folder / "policies" / f"step-{step:05d}"


def keyed(run: Run) -> Run:
    """The run with its key and the place of its initial evaluation."""
    folder = Path(run.policy)
    files = [p for name in ("*.safetensors", "tokenizer.json", "config.json") for p in sorted(folder.glob(name))]
    settings = {name: value for name, value in to_dict(run.train).items() if name != "seeds"}
    shared = {
        "seed": run.seed, "sets": [file_sha256(Path(p)) for p in run.sets], "small": run.small_problems,
        "policy": [file_sha256(p) for p in files] or run.policy, "code": code_hash(__name__),
        "versions": provenance()["versions"],
    }  # fmt: skip
    own = {
        "arm": run.arm, "plan": plan_hash(read_plan(Path(run.plan))) if run.plan else "", "train": settings,
        "files": [file_sha256(Path(p)) if p else "" for p in (run.samples, run.table, run.arms)],
        "sizes": [run.prompts_per_step, run.steps, run.rollouts_per_step],
    }  # fmt: skip
    quiet = {name: settings[name] for name in ("eval_samples_full", "max_completion_tokens", "temperature")}
    initial = run.folder.parent / "initial" / f"{content_hash({**shared, **quiet})}.parquet" if run.sets else ""
    return dataclasses.replace(run, key=content_hash({**shared, **own}), initial=str(initial))


def write_run(run: Run, replace: bool = False) -> None:
    """Write the record into the run's folder.

    Raises ArtifactError when the folder holds a run with another key; with `replace` that one is removed.
    """
    earlier = read_json(run.folder / RECORD)
    if earlier is not None and earlier["key"] != run.key:
        if not replace:
            raise ArtifactError(
                f"{run.folder} holds a run of another plan, policy, setting or version of the code: choose another folder, or "
                "delete this one"
            )
        shutil.rmtree(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / RECORD, {name: value for name, value in dataclasses.asdict(run).items() if name != "folder"})


def read_run(folder: Path) -> Run:
    """The record of a folder. Raises ArtifactError when there is none."""
    found = read_json(folder / RECORD)
    if found is None:
        raise ArtifactError(f"{folder / RECORD} is missing: name a folder that `train`, `grid` or `run` has written")
    return Run(**{**found, "folder": folder, "train": TrainConfig(**found["train"]), "sets": tuple(found["sets"])})


def command(run: Run, launcher: str = "") -> list[str]:
    """The command that trains a run whose record is written; `launcher` starts the processes, such as 'torchrun --nproc 8'."""
    return [*(shlex.split(launcher) or [sys.executable]), "-m", "saerl_lib", "train-job", str(run.folder)]


def train(run: Run) -> None:
    """Train or resume a run in this process, which may be one of several behind a launcher; does nothing when it is finished.

    Raises ArtifactError when plan or selector were not followed, for several GPUs without a launcher, when another process
    trains the run, or when no weights can be saved whole.
    """
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    require_launcher(run.train, processes)
    busy = ArtifactError(f"{run.folder}: another process trains this run; wait for it or stop it")
    with locked(run.folder / "lock", busy, 60.0) if rank == 0 else contextlib.nullcontext():  # time for a predecessor to die
        if not run.finished:
            if not (run.folder / "final").is_dir():
                _train(run, rank, processes)
                gc.collect()  # trainer and model hold each other
            if rank == 0:
                conclude(run)


def require_launcher(train: TrainConfig, processes: int) -> None:
    """Raise ArtifactError for one process that sees several GPUs: torch would split each pass over them, several plan steps a
    step of the optimiser."""
    seen = torch.cuda.device_count() if train.engine == "trl" and not train.cpu else 0
    if processes == 1 and seen > 1:
        raise ArtifactError(
            f"one process sees {seen} GPUs and would consume {seen} steps of the plan at once: start one process a GPU with "
            "accelerate launch (`run --launch 'accelerate launch ...'`), or show it one with CUDA_VISIBLE_DEVICES=0"
        )


def _train(run: Run, rank: int, processes: int) -> None:
    """Up to the final weights."""
    if run.train.engine == "packed" and not run.train.trained_blocks:
        torch.set_num_threads(1)  # one of many runs; a large policy has the machine for itself
    started, found = time.monotonic(), run.folder / "checkpoints"
    done, resume = max(checkpoints(found).items(), default=(0, None))
    if rank == 0:
        for path in run.folder.glob("rollouts-*.jsonl"):
            cut_back(path, done)
        if (run.folder / "evaluations.jsonl").exists():
            cut_back(run.folder / "evaluations.jsonl", done if resume else -1, "update")
    trainer, watch = prepare(run, rank, processes)
    require_gathered(trainer.accelerator.state)
    trainer.accelerator.wait_for_everyone()  # every process has chosen its checkpoint, and the logs are cut
    if rank == 0:
        for half in {*found.glob("checkpoint-*")} - {*checkpoints(found).values()}:
            shutil.rmtree(half)
    trainer.feed.replay([row for row in logged(run.folder) if row["step"] <= done])
    trainer.accelerator.wait_for_everyone()
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    finally:
        if rank == 0:
            append_rows(run.folder / "times.jsonl", [{"total": time.monotonic() - started, "evaluation": watch.seconds}])
    trainer.save_state()
    save_weights(trainer, run.folder / "final")


def open_feed(run: Run, log: Path, policy: tuple[Any, Any] | None = None) -> Feed:
    """What hands out the prompts of a run, by its plan or its arm's selector, at its first step; with `policy` the packed one.

    Behind the rows of the plan, or of the file, all of the file follows in a random order: the tail. Raises as `open_selector`.
    """
    every, steps = read_sample_file(Path(run.samples)), run.train.tail_steps
    samples = list(in_plan_order(read_plan(Path(run.plan)), every)) if run.plan else every
    selector = open_selector(run, [s.id for s in samples])
    shuffled = np.random.default_rng(sub_seed(run.seed, "tail")).permutation(len(every)) if steps else ()
    chosen = ([*samples, *(every[i] for i in shuffled)], selector, run.train, run.prompts_per_step, log)
    by_steps = run.train.dynamic_sampling == "equal_steps"
    budget = float("inf") if by_steps else run.budget + steps * run.rollouts_per_step
    feed = Feed(*chosen) if policy is None else PackedFeed(policy, *chosen, budget, run.seed)
    feed.tail, feed.choices = (run.updates, InOrder(len(samples) + np.arange(len(shuffled)))), len(samples)
    return feed


def open_selector(run: Run, ids: Sequence[str]) -> Selector:
    """What decides the prompts of a run among the samples `ids`, before its first step.

    Raises ArtifactError when the table is missing, or lacks a column that the arm needs or one of the samples.
    """
    if not run.table:
        return InOrder(range(len(ids)))
    arm, path = find_arm(run.arm, Path(run.arms) if run.arms else None), Path(run.table)
    assert arm.policy is not None
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: pass what the stage `measured` writes, Parquet with sample_id, as --measured")
    needed, names = ["sample_id", *arm.needs], pq.read_schema(path).names
    table = pd.read_parquet(path, columns=[n for n in names if not n.startswith("phi@") or n in needed])  # of wide ones its own
    if not set(needed) <= set(table):
        raise ArtifactError(f"{path}: {arm.name} needs the columns {' and '.join(needed)}, found {list(table)}")
    table = table.drop_duplicates("sample_id").set_index("sample_id")
    lacking = [name for name in ids if name not in table.index]
    if lacking:
        raise ArtifactError(f"{path}: no {' or '.join(arm.needs)} for {len(lacking)} of {len(ids)} samples (first {lacking[0]})")
    setting = ArmSetting(PlanConfig(prompts_per_step=run.prompts_per_step), run.steps, sub_seed(run.seed, f"arm-{arm.name}"))
    return arm.policy(ArmPool(table.loc[list(ids)].reset_index()), setting)


def prepare(run: Run, rank: int = 0, processes: int = 1) -> tuple[PlanTrainer, Watch]:
    """The trainer of a run with its feed, at its first step."""
    packed, blocks = run.train.engine == "packed", run.train.trained_blocks
    if packed and processes > 1:
        raise ArtifactError(f"{run.folder}: engine 'packed' trains in one process; start it without a launcher")
    model, tokenizer = open_causal(run.policy)
    if blocks:
        model.requires_grad_(False)
        for part in (*model.model.layers[-blocks:], model.model.norm):
            part.requires_grad_(True)
    feed = open_feed(run, run.folder / f"rollouts-{rank:03d}.jsonl", (model, tokenizer) if packed else None)
    arguments = grpo_arguments(run.train, run.prompts_per_step, run.last_update, run.seed, run.folder / "checkpoints", processes)
    trainer = PlanTrainer(feed, (model, tokenizer), arguments)
    watch = Watch(run, trainer, Sampler(model, tokenizer, run.train.chat) if run.sets else None)
    trainer.add_callback(watch)
    return trainer, watch


class Watch(TrainerCallback):
    """Evaluates as `Run.progress` counts, keeps weights, ends the run with its budget or when its starter died.

    Evaluation step t stands for t * `rollouts_per_step` rollouts, whatever the arm's batch. All processes take part.
    """

    def __init__(self, run: Run, trainer: PlanTrainer, sampler: Sampler | None) -> None:
        self.run, self.trainer, self.sampler = run, trainer, sampler
        self.sets = {Path(p).stem.removeprefix("eval_"): read_sample_file(Path(p)) for p in run.sets}
        self.seconds, self.done = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Full evaluation of the initial weights, once."""
        self.done = self.run.progress(state.global_step, self.trainer.feed.generated)
        if state.global_step == 0:
            self.evaluate(0, 0, full=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Small evaluation every few steps, the full one when the budget is spent; weights before the trainer's checkpoint."""
        run, every = self.run, self.run.train.eval_every_steps
        now = run.progress(state.global_step, self.trainer.feed.generated)
        if now >= run.steps:
            if self.done < run.steps:
                self.evaluate(run.steps, state.global_step, full=True)
            elif state.global_step == run.last_update:
                self.evaluate(run.steps + run.train.tail_steps, state.global_step, full=True)
            control.should_training_stop = not run.train.tail_steps or state.global_step >= run.last_update
        elif now // every > self.done // every:
            self.evaluate(now // every * every, state.global_step, full=False)
        control.should_save &= not control.should_training_stop  # the final weights come next
        self.done = now
        keep = run.train.keep_every_steps
        if keep and (state.global_step % keep == 0 or state.global_step == state.max_steps):
            save_weights(self.trainer, run.kept(state.global_step))
        if self.trainer.accelerator.is_main_process:
            write_json(run.folder / "progress.json", {"step": min(now, run.steps), "steps": run.steps})
        self.stop_when_orphaned()

    def evaluate(self, step: int, update: int, full: bool) -> None:
        """One evaluation of all sets, appended to evaluations.jsonl; that of the initial weights is shared by the arms."""
        if self.sampler is None:
            return
        started, run = time.monotonic(), self.run
        count = run.train.eval_samples_full if full and step <= run.steps else run.train.eval_samples_small
        known = Path(run.initial) if step == 0 else None
        if known is not None and known.exists():
            rows = pd.read_parquet(known).to_dict("records")
        else:
            rows = []
            for name, samples in self.sets.items():
                problems = samples if full else samples[: run.small_problems]
                rows += evaluate(self.sampler, name, problems, count, run.train, run.seed, step, full).to_dict("records")
                self.stop_when_orphaned()
            if known is not None:
                write_atomic(known, pd.DataFrame(rows).to_parquet(index=False, compression="zstd"))
        more = {"update": update, "rollouts": self.trainer.feed.generated}
        append_rows(run.folder / "evaluations.jsonl", [{**row, **more} for row in rows])
        self.seconds += time.monotonic() - started

    def stop_when_orphaned(self) -> None:
        """Raise ArtifactError when the process that started the run has died, so that no two processes train one run."""
        if str(os.getppid()) != os.environ.get(PARENT, str(os.getppid())):
            raise ArtifactError("the process that started this run is gone; run the same command again to resume")


def logged(folder: Path) -> list[dict[str, Any]]:
    """The rollouts logged by all processes, of an earlier number of them too, in order of step, round and row."""
    rows = [row for path in sorted(folder.glob("rollouts-*.jsonl")) for row in read_rows(path)]
    return sorted(rows, key=lambda row: (row["step"], row["round"], row["row"]))


def check_followed(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    """Replay the log of a finished run: its plan or selector must choose what was logged, step by step to the end.

    Raises ArtifactError at the first departure.
    """
    if not rows:
        raise ArtifactError(f"{run.folder}: no log of the rollouts is left; delete the folder and run it again")
    feed, last = open_feed(run, run.folder / "rollouts"), rows[-1]["step"]
    feed.replay(rows)
    sizes = Counter(row["step"] for row in rows)
    size = run.prompts_per_step * run.train.rollouts_per_prompt  # the last step may be cut by the budget
    whole = run.train.dynamic_sampling != "none" or {sizes[step] for step in range(1, last)} <= {size}
    short = run.progress(last, feed.generated) < run.steps or (run.train.tail_steps and last < run.last_update)
    if short or sorted(sizes) != list(range(1, last + 1)) or not whole:
        logged_so = f"the log holds {feed.generated} rollouts of {last} steps"
        raise ArtifactError(f"{run.folder}: {logged_so}, the run has {run.budget} rollouts or {run.updates} steps")


def conclude(run: Run) -> None:
    """Check the log, write the Parquet tables and, last, done.json; needs the final weights alone."""
    rows = logged(run.folder)
    check_followed(run, rows)
    state = json.loads((run.folder / "checkpoints" / STATE).read_text(encoding="utf-8"))
    curve = pd.DataFrame([row for row in state["log_history"] if "reward" in row]).rename(columns=CURVE)
    tables = {"curve": curve.reindex(columns=["step", *CURVE.values()]), "rollouts": pd.DataFrame(rows)}
    tables["rollouts"] = tables["rollouts"][[name for name in ROLLOUTS if name in tables["rollouts"]]]
    if run.sets:
        tables["evaluations"] = pd.DataFrame(read_rows(run.folder / "evaluations.jsonl"))
    for name, table in tables.items():
        table.insert(0, "seed", run.seed)
        table.insert(0, "arm", run.arm)
        write_atomic(run.folder / f"{name}.parquet", table.to_parquet(index=False, compression="zstd"))
    times = pd.DataFrame(read_rows(run.folder / "times.jsonl")).sum()
    spent = {"training": times["total"] - times["evaluation"], "evaluation": times["evaluation"]}
    seconds = {name: round(float(value), 1) for name, value in spent.items()}
    peak = round(resident_mib("VmHWM")) if sys.platform == "linux" else None
    made = {**provenance(), "peak_memory_mb": peak}
    write_json(run.folder / DONE, {"key": run.key, "steps": int(curve["step"].max()), "seconds": seconds, "environment": made})
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    for path in (*run.folder.glob("rollouts-*.jsonl"), run.folder / "evaluations.jsonl"):
        path.unlink(missing_ok=True)


def checkpoints(folder: Path) -> dict[int, Path]:
    """Step -> its checkpoint in `folder`; one that a kill left half written is none: the trainer's state comes last."""
    return {int(p.name.rsplit("-", 1)[1]): p for p in folder.glob("checkpoint-*") if read_json(p / STATE) is not None}


def plan_run(
    plan: Path, samples: Path | None, model: str, folder: Path, settings: TrainConfig, seed: int = 0,
    steps: int | None = None, arm: str = "", measured: Path | None = None,
) -> Run:  # fmt: skip
    """The run of a plan on its samples, or of `arm` among its samples by what `measured` knows of them.

    `samples` None: those beside the plan. `steps` None: one pass over the plan. Raises what `open_export` raises, ValueError for
    `steps` below 1.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    export = open_export(plan, samples, settings.rollouts_per_prompt)
    b = export.plan.prompts_per_step
    files = [str(Path(p).absolute()) for p in (plan, samples or plan.parent / SAMPLES)]
    return keyed(Run(
        arm=arm or "plan", seed=seed, folder=folder, policy=str(Path(model).absolute()) if Path(model).is_dir() else model,
        plan=files[0], samples=files[1], prompts_per_step=b, steps=steps or export.plan.steps,
        rollouts_per_step=b * settings.rollouts_per_prompt, train=settings, table=str(measured.absolute()) if measured else "",
    ))  # fmt: skip


def run_train(
    plan: Path, samples: Path | None, out: Path, model: str, steps: int | None, selector: str | None, measured: Path | None,
    seed: int, settings: TrainConfig,
) -> int:  # fmt: skip
    """`train`; process 0 says at the end that the plan, or what the selector chose, was followed.

    Raises ArtifactError for one of --selector and --measured without the other, and what `plan_run`, `write_run` and `train`
    raise.
    """
    if bool(selector) != (measured is not None):
        raise ArtifactError("--selector and --measured belong together: give both, or neither to follow the plan")
    run = plan_run(plan, samples, model, out, settings, seed, steps, selector or "", measured)
    first, processes = os.environ.get("RANK", "0") == "0", int(os.environ.get("WORLD_SIZE", "1"))
    if first:
        write_run(run)
    train(run)
    if first:
        print(json.dumps({"followed": True, "steps": run.updates, "processes": processes}), flush=True)
    return 0


def run_train_job(folder: Path) -> int:
    """`train-job`: run or resume the recorded run of a folder."""
    train(read_run(folder))
    return 0
