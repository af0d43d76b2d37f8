"""Export for TRL: Parquet with prompt (chat messages), solution and sample_id, a configuration of `trl grpo`, a reward."""

from __future__ import annotations

from saerl_lib.export.files import answer_files, parquet_bytes, template
from saerl_lib.export.readme import Guide, readme
from saerl_lib.export.samples import Export

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
