"""The README that lies in every export."""

from __future__ import annotations

from dataclasses import dataclass

from saerl_lib.export.samples import Export


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
