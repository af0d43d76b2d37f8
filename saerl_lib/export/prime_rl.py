"""Export for prime-rl: a verifiers taskset whose tasks lie in plan order, and a configuration of `rl`."""

from __future__ import annotations

from saerl_lib.export.files import answer_files, jsonl_bytes, template
from saerl_lib.export.readme import Guide, readme
from saerl_lib.export.samples import Export

_GUIDE = Guide(
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
        "README.md": readme(export, _GUIDE),
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
