"""A batch plan for other trainers: the ordered data set in each framework's own schema, and a check of what was consumed.

`export_plan` writes a folder for one of `TARGETS`; `follow` compares a trainer's log with the plan. This room reads
`data` and `plan` alone. Axes: T steps, b prompts_per_step, G rollouts_per_prompt.

Where a plan can go, and where it cannot.

What keeps an order was read in the frameworks' sources: TRL 1.16, verl 0.9.1, OpenRLHF 0.11.2, SkyRL 0.3.0 and
verifiers 0.4.0 from the package index, NeMo-RL and prime-rl in their repositories.

The plan joined with its samples: what every export is written from.

Files as bytes, equal for equal input, and a folder that appears whole or not at all.

The README that lies in every export.

Export for TRL: Parquet with prompt (chat messages), solution and sample_id, a configuration of `trl grpo`, a reward.

Export for verl: Parquet in its RLHF schema, a Hydra configuration over `ppo_trainer`, a reward that logs sample ids.

Export for NeMo-RL: JSON lines for its ResponseDataset and a configuration over `grpo_math_1B.yaml`.

Export for prime-rl: a verifiers taskset whose tasks lie in plan order, and a configuration of `rl`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saerl_lib.config import near
from saerl_lib.data.published import load_labelled
from saerl_lib.data.sample import SAMPLES, Sample, read_samples
from saerl_lib.plan.batch_plan import BatchPlan, PlanError, plan_hash, read_plan, validate


class ExportError(ValueError):
    """The plan cannot be exported as asked."""


@dataclass(frozen=True)
class Export:
    """A plan, its samples in plan order and the size of a group."""

    plan: BatchPlan
    samples: tuple[Sample, ...]
    """In plan order, [T * b]."""
    rollouts_per_prompt: int
    """G, at least 2."""

    def __post_init__(self) -> None:
        if self.rollouts_per_prompt < 2:
            raise ExportError(f"--rollouts {self.rollouts_per_prompt}: give at least 2, a group of one has no advantage")
        if [s.id for s in self.samples] != self.plan.ids:
            raise ExportError("the samples are not those of the plan in its order: use open_export")

    @property
    def prompts_per_step(self) -> int:
        """b."""
        return self.plan.prompts_per_step

    @property
    def rollouts_per_step(self) -> int:
        """b * G."""
        return self.prompts_per_step * self.rollouts_per_prompt

    @property
    def hash(self) -> str:
        """SHA-256 of the ordered ids."""
        return plan_hash(self.plan)

    def step_of(self, position: int) -> int:
        """Plan step of a row, from 0."""
        return position // self.prompts_per_step


def open_plan(path: Path) -> BatchPlan:
    """The stored plan, checked to be whole batches of distinct samples.

    Raises PlanError when the file is missing, is no plan, repeats an id or misnumbers its steps.
    """
    if not path.is_file():
        raise PlanError(f"{path} is missing: pass a plan written by write_plan, such as plans/saerl.parquet")
    try:
        plan = read_plan(path)
    except (OSError, ValueError) as error:
        raise error if isinstance(error, PlanError) else PlanError(f"{path} is no batch plan: {error}") from error
    validate(plan, plan.ids, plan.prompts_per_step)
    return plan


def read_sample_file(path: Path) -> Sequence[Sample]:
    """Samples of a Parquet file by `write_samples` or of another file by `load_labelled`, told apart by the suffix.

    Raises ExportError when the file is missing, DataError when it is unreadable or a row is malformed.
    """
    if not path.is_file():
        raise ExportError(f"{path} is missing: pass the samples of the plan as Parquet or JSON lines")
    return read_samples(path) if path.suffix == ".parquet" else load_labelled(path).samples


def in_plan_order(plan: BatchPlan, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The plan's samples in its order; others are left out.

    Raises ExportError for ids of the plan that are missing, given twice, or have no answer to check against.
    """
    by_id: dict[str, Sample] = {}
    twice = []
    for sample in samples:
        twice += [sample.id] if sample.id in by_id else []
        by_id[sample.id] = sample
    problems = {
        "are missing in the samples: pass the file the plan was built from": [i for i in plan.ids if i not in by_id],
        "are given twice in the samples: give every sample its own id": [i for i in plan.ids if i in set(twice)],
        "have no answer: a verifiable reward needs one": [i for i in plan.ids if i in by_id and not by_id[i].answer.strip()],
    }
    for problem, ids in problems.items():
        if ids:
            raise ExportError(f"{len(ids)} of {len(plan.ids)} ids of the plan {problem} (first {ids[:3]})")
    return tuple(by_id[i] for i in plan.ids)


def samples_beside(plan: Path) -> Path:
    """The samples that the command `plan` wrote beside its plan. Raises ExportError when there are none."""
    found = plan.parent / SAMPLES
    if not found.is_file():
        raise ExportError(f"{plan.parent} holds no {SAMPLES}: name the samples of the plan with --samples")
    return found


def open_export(plan: Path, samples: Path | None = None, rollouts_per_prompt: int = 8) -> Export:
    """Plan and samples from files; None: the samples beside the plan.

    Raises what `open_plan`, `samples_beside`, `read_sample_file` and `in_plan_order` raise.
    """
    found = open_plan(plan)
    chosen = samples_beside(plan) if samples is None else samples
    return Export(found, in_plan_order(found, read_sample_file(chosen)), rollouts_per_prompt)


TEMPLATES = Path(__file__).parent / "templates"


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    """Rows as Parquet in one row group, order kept; the same pyarrow gives the same bytes."""
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, buffer, compression="zstd", row_group_size=max(1, table.num_rows))
    return buffer.getvalue()


def jsonl_bytes(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as JSON lines in UTF-8, keys in the order given."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def template(name: str) -> bytes:
    """A file that an export carries as it is."""
    return (TEMPLATES / name).read_bytes()


def answer_files() -> dict[str, bytes]:
    """The module that reads and checks final answers, carried as it is: it needs math-verify alone."""
    return {"answers.py": (Path(__file__).parents[1] / "data" / "answers.py").read_bytes()}


def write_folder(files: Mapping[str, bytes], out: Path) -> None:
    """Write relative paths -> bytes to a sibling of `out`, then rename it into place.

    Raises ExportError when `out` is a file or a folder with content.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ExportError(f"{out} already exists: remove it or name another folder")
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, content in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True)
class Guide:
    """What differs between the READMEs of the frameworks."""

    framework: str
    """Its name and the version the export is meant for."""
    files: dict[str, str]
    """Relative path -> what it holds."""
    launch: str
    """Shell commands, run in the folder of the export."""
    order: str
    """What keeps the order, in a paragraph."""
    verify: str
    """How to log the consumed ids and which options `verify` then needs; ROLLOUTS stands for G."""
    checked: str
    """What was run against which version."""


def readme(export: Export, guide: Guide) -> bytes:
    """The README of one export in Markdown."""
    plan = export.plan
    files = "\n".join(f"- `{name}`: {text}" for name, text in guide.files.items())
    return f"""# A batch plan for {guide.framework}

Order `{plan.order}`: {plan.steps} steps of {plan.prompts_per_step} prompts, {export.rollouts_per_prompt} rollouts a prompt
({export.rollouts_per_step} rollouts a step). SHA-256 of the ordered sample ids: `{export.hash}`.

{files}

## Launch

`MODEL` is the policy, a folder or a name on the model hub. Run in this folder:

```bash
{guide.launch.strip()}
```

Model, learning rate, lengths and hardware are yours to set; what the configuration here sets keeps the plan.

## What keeps the order

{guide.order.strip()}

## Was the plan followed?

{guide.verify.strip().replace("ROLLOUTS", str(export.rollouts_per_prompt))}

## Checked

{guide.checked.strip()}
""".encode()


_GUIDE = Guide(
    framework="TRL 1.16",
    files={
        "data/train.parquet": "columns prompt (chat messages), solution, sample_id, step; rows in plan order",
        "grpo.yaml": "the settings that keep the order, for `trl grpo`",
        "reward.py": "1 when the text after the last `Answer:` or in the last `\\boxed{}` is the solution, as written or by "
        "math-verify; logs sample ids",
        "answers.py": "how an answer is read and checked",
    },
    launch="""
pip install "trl==1.16.*" math-verify
trl grpo --config grpo.yaml --model_name_or_path "$MODEL"
""",
    order="""
`shuffle_dataset` is on by default in TRL and off here. One generation batch is one optimiser step: `steps_per_generation` is
left at its default, `gradient_accumulation_steps`, and processes x `per_device_train_batch_size` x `gradient_accumulation_steps`
is the number of rollouts a step. `grpo.yaml` is written for one process; with P processes divide `gradient_accumulation_steps` by
P, or the steps hold P times the plan's prompts. Every epoch repeats the same order. The prompts are chat messages, so the
tokenizer needs a chat template.
""",
    verify="""
`reward.py` appends step and sample id of every rollout to `consumed.jsonl` (`SAERL_LOG` moves it):

```bash
python -m saerl_lib verify --plan PLAN --log consumed.jsonl
```

With several processes the lines of a step arrive interleaved: add `--any-slot`. A run that was resumed from a checkpoint logs the
repeated steps twice: cut the log back to the checkpoint first.
""",
    checked="""
With TRL 1.16.0: `grpo.yaml` by its own parser, the order by the data loader of its `GRPOTrainer`, and the log of a whole short
run of that trainer in one process.
""",
)


def trl_files(export: Export) -> dict[str, bytes]:
    """Relative paths and contents of the export for TRL."""
    rows = [
        {
            "prompt": [{"role": "user", "content": sample.prompt}],
            "solution": sample.answer,
            "sample_id": sample.id,
            "step": export.step_of(position),
        }
        for position, sample in enumerate(export.samples)
    ]
    return {
        "data/train.parquet": parquet_bytes(rows),
        "grpo.yaml": trl_configuration(export).encode(),
        "reward.py": template("trl_reward.py.txt"),
        **answer_files(),
        "README.md": readme(export, _GUIDE),
    }


def trl_configuration(export: Export) -> str:
    """`grpo.yaml`: one group a micro-batch, one generation batch a step, nothing shuffled."""
    return f"""# TRL 1.16. One process; with P processes divide gradient_accumulation_steps by P.
dataset_name: data
dataset_train_split: train
reward_funcs:
  - reward.correct
output_dir: out
shuffle_dataset: false
num_generations: {export.rollouts_per_prompt}
per_device_train_batch_size: {export.rollouts_per_prompt}
gradient_accumulation_steps: {export.prompts_per_step}
num_iterations: 1
max_steps: {export.plan.steps}
remove_unused_columns: false
eval_strategy: "no"
"""


DATA_SOURCE = "math_dapo"
"""Names verl's scorer for 'Answer: ...' lines and \\boxed answers."""

_VERL_GUIDE = Guide(
    framework="verl 0.9.1",
    files={
        "train.parquet": "columns data_source, prompt (chat messages), ability, reward_model, extra_info; rows in plan order",
        "saerl_plan.yaml": "the settings that keep the order, on top of verl's `ppo_trainer`",
        "reward.py": "verl's own score for `data_source: math_dapo`; logs sample ids",
    },
    launch="""
pip install "verl==0.9.1"   # in an environment of its own: it pins transformers below 5.11
python3 -m verl.trainer.main_ppo --config-dir "$PWD" --config-name saerl_plan \\
  actor_rollout_ref.model.path="$MODEL" actor_rollout_ref.rollout.name=vllm \\
  data.train_files="$PWD/train.parquet" data.val_files="$PWD/train.parquet" \\
  reward.custom_reward_function.path="$PWD/reward.py"
""",
    order="""
`data.shuffle` is on by default in verl and off here: the sampler is then sequential. A batch of the loader is a step of the plan
(`data.train_batch_size`, in prompts), one update is made of it (`ppo_mini_batch_size`), and the trainer is the synchronous one.
`data.filter_overlong_prompts` and `algorithm.filter_groups` stay off: either would drop prompts and shift all later batches, so
set `data.max_prompt_length` to the longest prompt of your tokenizer. Which rollouts end first decides the order inside a step.
""",
    verify="""
`reward.py` appends the sample id of every rollout to `consumed.jsonl` beside it (`SAERL_LOG` moves it), in the order in which
rollouts were scored; the synchronous trainer scores a step before it begins the next:

```bash
python -m saerl_lib verify --plan PLAN --log consumed.jsonl --any-slot --rollouts ROLLOUTS
```
""",
    checked="""
With verl 0.9.1: the Parquet file, batch by batch, through its `RLHFDataset`, sampler and collate function; every setting against
its configuration, in which an unknown one is an error; `reward.py` with its scorer. No training run was made.
""",
)


def verl_files(export: Export) -> dict[str, bytes]:
    """Relative paths and contents of the export for verl."""
    rows = [
        {
            "data_source": DATA_SOURCE,
            "prompt": [{"role": "user", "content": sample.prompt}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": sample.answer},
            "extra_info": {
                "index": position, "split": "train", "sample_id": sample.id, "step": export.step_of(position),
            },
        }
        for position, sample in enumerate(export.samples)
    ]  # fmt: skip
    return {
        "train.parquet": parquet_bytes(rows),
        "saerl_plan.yaml": verl_configuration(export).encode(),
        "reward.py": template("verl_reward.py.txt"),
        "README.md": readme(export, _VERL_GUIDE),
    }


def verl_configuration(export: Export) -> str:
    """`saerl_plan.yaml`: batch, mini-batch and steps of the plan, nothing shuffled, filtered or asynchronous."""
    b = export.prompts_per_step
    return f"""# verl 0.9.1; paths and model are set on the command line.
defaults:
  - ppo_trainer
  - _self_

data:
  shuffle: false
  validation_shuffle: false
  train_batch_size: {b}
  gen_batch_size: null
  train_max_samples: -1
  filter_overlong_prompts: false
  truncation: error

actor_rollout_ref:
  rollout:
    n: {export.rollouts_per_prompt}
  actor:
    shuffle: false
    ppo_mini_batch_size: {b}
    ppo_epochs: 1
    use_dynamic_bsz: true

algorithm:
  adv_estimator: grpo
  filter_groups:
    enable: false

reward:
  custom_reward_function:
    name: compute_score

trainer:
  use_v1: true
  v1:
    trainer_mode: sync
  total_epochs: 1
  total_training_steps: {export.plan.steps}
  val_before_train: false
  test_freq: -1
"""


_NEMO_RL_GUIDE = Guide(
    framework="NeMo-RL 0.7",
    files={
        "train.jsonl": "keys input, output, sample_id, step; lines in plan order",
        "saerl_plan.yaml": "the settings that keep the order, on top of `grpo_math_1B.yaml`",
    },
    launch="""
EXPORT="$PWD"
cd "$NEMO_RL"   # a checkout of https://github.com/NVIDIA-NeMo/RL at version 0.7
cp "$EXPORT/saerl_plan.yaml" examples/configs/
uv run examples/run_grpo.py --config examples/configs/saerl_plan.yaml \\
  policy.model_name="$MODEL" data.train.data_path="$EXPORT/train.jsonl"
""",
    order="""
`data.shuffle` is on by default in NeMo-RL's recipe and off here. `grpo.num_prompts_per_step` is the plan's step and
`policy.train_global_batch_size` makes one update of it. No part is split off for validation, dynamic sampling is off (it draws
further prompts) and so is asynchronous GRPO. Its reward is its math environment's (`math-verify`).
""",
    verify="""
NeMo-RL hands no sample id on to its logs: its data set keeps input and output alone. The rows of `train_data_step*.jsonl` in its
log folder hold the prompt in `content`; look it up in `train.jsonl`, write one JSON object a rollout with `sample_id` and `step`,
and pass that file:

```bash
python -m saerl_lib verify --plan PLAN --log consumed.jsonl --any-slot
```
""",
    checked="""
Keys and settings were read in NeMo-RL's sources (ResponseDataset, GRPO's loader, its guide). The package index holds a
placeholder alone (nemo-rl 0.0.0), so nothing was run against it; the test reads the lines with `datasets`, as its data set does.
""",
)


def nemo_rl_files(export: Export) -> dict[str, bytes]:
    """Relative paths and contents of the export for NeMo-RL."""
    rows = (
        {"input": sample.prompt, "output": sample.answer, "sample_id": sample.id, "step": export.step_of(position)}
        for position, sample in enumerate(export.samples)
    )
    return {
        "train.jsonl": jsonl_bytes(rows),
        "saerl_plan.yaml": nemo_rl_configuration(export).encode(),
        "README.md": readme(export, _NEMO_RL_GUIDE),
    }


def nemo_rl_configuration(export: Export) -> str:
    """`saerl_plan.yaml`: the plan's step as the step of GRPO, nothing shuffled, split off or asynchronous."""
    return f"""# NeMo-RL 0.7; lies in examples/configs, path and model are set on the command line.
defaults: grpo_math_1B.yaml

grpo:
  num_prompts_per_step: {export.prompts_per_step}
  num_generations_per_prompt: {export.rollouts_per_prompt}
  max_num_epochs: 1
  max_num_steps: {export.plan.steps}
  use_dynamic_sampling: false
  batch_multiplier: 1
  val_period: 0
  val_at_start: false
  async_grpo:
    enabled: false

policy:
  train_global_batch_size: {export.rollouts_per_step}

data:
  shuffle: false
  use_multiple_dataloader: false
  train:
    dataset_name: ResponseDataset
    data_path: train.jsonl
    input_key: input
    output_key: output
    split: train
    split_validation_size: 0
    prompt_file: null
    system_prompt_file: null
    processor: math_hf_data_processor
    env_name: math
  validation: null
"""


_PRIME_RL_GUIDE = Guide(
    framework="prime-rl 0.8",
    files={
        "saerl_plan/": "an installable verifiers taskset with its reward; `tasks.jsonl` holds the tasks in plan order",
        "pyproject.toml": "makes the taskset installable",
        "rl.toml": "the settings that keep the order, for `rl`",
    },
    launch="""
EXPORT="$PWD"
cd "$PRIME_RL"   # a checkout of https://github.com/PrimeIntellect-ai/prime-rl at version 0.8, after `uv sync --all-extras`
uv pip install -e "$EXPORT"
uv run --no-sync rl @ "$EXPORT/rl.toml" --model.name "$MODEL"
""",
    order="""
The sampler of a source is `standard` by default: it takes the tasks in source order, again from the start after the last. Give
the source no other curriculum, no gate and no `select.shuffle`. The batch is the plan's step in rollouts, at most one batch is in
flight, and samples without advantage are not replaced by later ones (`constant_trainer_batch_size = false`).

prime-rl is asynchronous: it *dispatches* in plan order, and a step holds the groups that finished first. Where groups overtake
each other across the edge of a step, its company differs from the plan's; `verify` says where.
""",
    verify="""
The reward appends the sample id of every rollout to `consumed.jsonl` in the working folder of the environment server (`SAERL_LOG`
moves it), in the order of scoring; `task.key` in prime-rl's own traces is the sample id as well:

```bash
python -m saerl_lib verify --plan PLAN --log consumed.jsonl --any-slot --rollouts ROLLOUTS
```
""",
    checked="""
The taskset loaded by verifiers 0.4.0, order, keys and reward included. prime-rl is not on the package index: sampler and settings
were read in its repository, whose table of settings moves between versions; `rl` rejects a setting it does not know.
""",
)


def prime_rl_files(export: Export) -> dict[str, bytes]:
    """Relative paths and contents of the export for prime-rl."""
    rows = (
        {"id": sample.id, "prompt": sample.prompt, "answer": sample.answer, "step": export.step_of(position)}
        for position, sample in enumerate(export.samples)
    )
    return {
        "saerl_plan/__init__.py": template("prime_rl_taskset.py.txt"),
        "saerl_plan/tasks.jsonl": jsonl_bytes(rows),
        **{f"saerl_plan/{name}": content for name, content in answer_files().items()},
        "pyproject.toml": _PROJECT.encode(),
        "rl.toml": prime_rl_configuration(export).encode(),
        "README.md": readme(export, _PRIME_RL_GUIDE),
    }


_PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "saerl-plan"
version = "0.1.0"
dependencies = ["verifiers>=0.4", "math-verify>=0.8"]

[tool.setuptools]
packages = ["saerl_plan"]

[tool.setuptools.package-data]
saerl_plan = ["tasks.jsonl"]
"""


def prime_rl_configuration(export: Export) -> str:
    """`rl.toml`: the plan's step as the batch, one batch in flight, no replacement of samples."""
    return f"""# prime-rl 0.8; the model is set on the command line.
max_steps = {export.plan.steps}

[orchestrator]
batch_size = {export.rollouts_per_step}
constant_trainer_batch_size = false

[orchestrator.concurrency]
max_inflight = {export.rollouts_per_step}

# The default sampler, "standard", keeps the order of the tasks: no curriculum, gate or select.shuffle here.
[[orchestrator.train.source]]
name = "saerl-plan"
group_size = {export.rollouts_per_prompt}
env.taskset.id = "saerl-plan"
env.agent.harness.id = "null"
env.agent.runtime.type = "subprocess"
"""


TARGETS: dict[str, Callable[[Export], dict[str, bytes]]] = {
    "trl": trl_files, "verl": verl_files, "nemo-rl": nemo_rl_files, "prime-rl": prime_rl_files,
}  # fmt: skip
"""Framework -> relative paths and contents of its export."""

REFUSED = {
    "openrlhf": (
        "OpenRLHF (0.11.2) cannot keep an order: its PPO trainer builds the loader of prompts with shuffle=True written "
        "into the call (openrlhf/trainer/ppo_trainer.py), and no option reaches it. Pass False there in a copy of your "
        "own, or train with one of {targets}"
    ),
    "skyrl": (
        "SkyRL (0.3.0) cannot keep an order in RL: its loader of training prompts is built with shuffle=True "
        "(skyrl/train/utils/trainer_utils.py); the option `sampler` belongs to supervised fine-tuning alone. Change that "
        "line in a copy of your own, or train with one of {targets}"
    ),
}
"""Framework -> why no plan is exported for it."""


def export_plan(export: Export, target: str, out: Path) -> list[str]:
    """Write the folder `out` for a framework; returns the relative paths of its files, sorted.

    Raises ExportError for a framework that is unknown or cannot keep an order, or when `out` is not free.
    """
    require_target(target)
    files = TARGETS[target](export)
    write_folder(files, out)
    return sorted(files)


def require_target(target: str) -> None:
    """Raise ExportError unless plans can be exported for `target`."""
    names = ", ".join(TARGETS)
    if target in REFUSED:
        raise ExportError(REFUSED[target].format(targets=names))
    if target not in TARGETS:
        raise ExportError(f"--to {target}: choose one of {names}{near(target, TARGETS)}")


def run_export(plan: Path, samples: Path | None, out: Path, to: str, rollouts: int) -> int:
    """`export`: write the plan's data set, configuration and README for a framework.

    Raises ExportError for a framework that cannot keep an order, ids without a sample, or a folder that is not free.
    """
    require_target(to)
    export = open_export(plan, samples, rollouts)
    files = export_plan(export, to, out)
    print(f"{out}: {export.plan.steps} steps of {export.prompts_per_step} prompts for {to}")
    print(f"files: {', '.join(files)}; {out / 'README.md'} has the launch command")
    return 0
