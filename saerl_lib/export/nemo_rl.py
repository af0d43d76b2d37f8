"""Export for NeMo-RL: JSON lines for its ResponseDataset and a configuration over `grpo_math_1B.yaml`."""

from __future__ import annotations

from saerl_lib.export.files import jsonl_bytes
from saerl_lib.export.readme import Guide, readme
from saerl_lib.export.samples import Export

_GUIDE = Guide(
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
        "README.md": readme(export, _GUIDE),
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
