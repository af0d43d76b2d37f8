"""The plan of profile `paper` as text: downloads, costs by stage, the paper's own figures, assumptions, what is missing."""

from __future__ import annotations

from collections.abc import Iterator

from saerl_lib.data.published import HubData
from saerl_lib.paper.assumptions import INFERRED, OURS, PAPER, STATED, Assumptions
from saerl_lib.paper.config import NOT_STATED, SAE_DIFFERENCES, PaperConfig
from saerl_lib.paper.estimate import Stage, adarft_hours, encode_hours, sae_training_hours, sae_training_stage, stages
from saerl_lib.paper.machine import Machine
from saerl_lib.paper.memory import gpus
from saerl_lib.paper.needs import downloads, missing
from saerl_lib.paper.replacements import ARMS
from saerl_lib.paper.text import number, size, table


def _revision(revision: str | None) -> str:
    return revision or "not pinned yet"


def _local(data: HubData, machine: Machine) -> str:
    if data.local_file is None or machine.data_folder is None:
        return ""
    return f"; a local copy is there: {data.local_file}" if (machine.data_folder / data.local_file).is_file() else ""


def download_lines(config: PaperConfig, machine: Machine) -> Iterator[str]:
    """What would be downloaded, with revisions."""
    found = downloads(config)
    yield f"Downloads, {size(sum(row[1] for row in found))} (a plan downloads nothing):"
    yield from table([(name, size(count), _revision(revision)) for name, count, revision in found])
    yield "  Notes:"
    for data in (*config.training_data, *config.benchmarks):
        note = data.note + _local(data, machine)
        if note:
            yield f"  - {data.repository}: {note.removeprefix('; ')}"


def _stage_row(stage: Stage, given: Assumptions) -> tuple[str, ...]:
    if not stage.gpu:
        return (stage.name, "0", "no GPU", f"{size(stage.memory_bytes)} RAM", size(stage.disk_bytes), stage.how)
    low, high = stage.gpu_hours
    count = gpus(stage.memory_bytes, given)
    memory = f"{size(stage.memory_bytes)}, {count} x {size(given.gpu_memory_bytes)}"
    return (stage.name, f"{low:.1f} to {high:.1f}", f"{stage.gpu}-hours", memory, size(stage.disk_bytes), stage.how)


def stage_lines(config: PaperConfig, given: Assumptions) -> Iterator[str]:
    """GPU-hours, memory and disk by stage."""
    found = stages(config, given)
    yield "Stages (hours: expected to upper; memory: of one run, and the GPUs that hold it):"
    yield from table([("stage", "hours", "", "GPU memory", "disk", "how"), *(_stage_row(s, given) for s in found)])
    total = [sum(stage.gpu_hours[i] for stage in found if stage.gpu == "H100") for i in (0, 1)]
    yield f"  All of it: {total[0]:,.0f} to {total[1]:,.0f} H100-hours, {size(sum(s.disk_bytes for s in found))} of results."
    yield f"  That is the paper's list. The profile itself trains {', '.join(config.arms)} on {config.policy},"
    yield f"  {config.seeds} seed(s), unless told otherwise (--arms, of {', '.join(ARMS)}; --policy; --seeds)."
    if config.sae != "trained":
        yield "  An SAE trained with the paper's settings instead (a checkpoint on disk costs nothing):"
        yield from table([_stage_row(sae_training_stage(config, given), given)])


def comparison_lines(config: PaperConfig, given: Assumptions) -> Iterator[str]:
    """The paper's own figures beside the same quantity computed here."""
    measured = (
        ("SAE encoding of the pool, F = 131,072", 0.5, encode_hours(config, given, config.paper_latents), "H100-hours"),
        ("SAE training, 29 h x 4 A100", 116.0, sae_training_hours(config, given), "A100-hours"),
        ("ADARFT's rollouts", 17.33, adarft_hours(config, given), "H100-hours"),
    )
    rows = [("quantity", "paper", "computed", "computed / paper")]
    for name, paper, (low, high), unit in measured:
        rows.append((name, f"{paper:g} {unit}", f"{number(low)} to {number(high)}", f"{low / paper:.1f} to {high / paper:.1f}"))
    yield "The paper's own figures:"
    yield from table(rows)


def assumption_lines(config: PaperConfig, given: Assumptions) -> Iterator[str]:
    """Every number that the estimates use, marked with its origin."""
    rows = [(name, str(getattr(config, name)), PAPER, what) for name, what in STATED]
    rows += [(name, str(getattr(config, name)), OURS, what) for name, what in INFERRED]
    rows.append(("benchmark problems", f"{config.benchmark_problems:,}", OURS, "rows of the six repositories"))
    rows += [tuple(row) for row in given.rows()]
    yield "Assumptions:"
    yield from table(rows)
    yield "Not stated in the paper and still to be chosen:"
    yield from (f"  - {item}" for item in NOT_STATED)


def machine_lines(config: PaperConfig, given: Assumptions, machine: Machine) -> Iterator[str]:
    """What this machine lacks."""
    yield "Missing here:"
    yield from (f"  - {item}" for item in missing(config, given, machine))
    token = "set" if machine.token_set else "not set; downloads are slower without one"
    yield f"  Token: none is needed as far as known, HF_TOKEN is {token}."


def plan_text(config: PaperConfig, given: Assumptions, machine: Machine) -> str:
    """The whole plan."""
    sae = {"published": f"{config.sae_release}, {config.sae_id}", "trained": "trained with the paper's settings"}
    lines = [
        "Profile paper: a plan of arXiv 2605.27354's own experiments, none of which was run at this scale.",
        f"Policies: {', '.join(m.repository for m in config.policies)}. "
        f"Encoder: {config.reading_model.repository}, SAE: {sae.get(config.sae, f'OpenSAE, {config.opensae_folder}')}.",
    ]
    if config.sae == "published":
        lines += ["The SAE differs from the paper's:", *(f"  - {item}" for item in SAE_DIFFERENCES)]
    parts = (
        download_lines(config, machine), stage_lines(config, given), comparison_lines(config, given),
        assumption_lines(config, given), machine_lines(config, given, machine),
    )  # fmt: skip
    return "\n".join([*lines, *(line for part in parts for line in ["", *part])])
