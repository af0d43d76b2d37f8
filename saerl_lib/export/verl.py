"""Export for verl: Parquet in its RLHF schema, a Hydra configuration over `ppo_trainer`, a reward that logs sample ids."""

from __future__ import annotations

from saerl_lib.export.files import parquet_bytes, template
from saerl_lib.export.readme import Guide, readme
from saerl_lib.export.samples import Export

DATA_SOURCE = "math_dapo"
"""Names verl's scorer for 'Answer: ...' lines and \\boxed answers."""

_GUIDE = Guide(
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
        "README.md": readme(export, _GUIDE),
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
